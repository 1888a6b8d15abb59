"""Exercises of lesson 07, DDPM sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from ddpm_from_scratch import DDPMPipeline, DDPMScheduler, gaussian, schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.course.exercises.l01 import value_and_type

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


def levels(t: int, t_prev: int) -> dict[str, float]:
    """ᾱ at `t` and at the step that comes next, where -1 stands for the clean end."""
    return {
        "alpha_bar_t": float(ALPHA_BAR[t]),
        "alpha_bar_prev": float(ALPHA_BAR[t_prev]) if t_prev >= 0 else 1.0,
    }


# ---------------------------------------------------------------- 07.1


def ddpm_mean(x_t: Tensor, eps: Tensor, alpha_bar_t: float, alpha_bar_prev: float) -> Tensor:
    """The mean of one step of algorithm 2, written with the predicted noise.

    x_t, eps: any shape, the same; eps is what the network says at x_t.
    alpha_bar_t, alpha_bar_prev: ᾱ at t and at the step moved to; alpha_bar_prev is 1 at the last step.
    Returns x_t's shape.
    """
    alpha_t = alpha_bar_t / alpha_bar_prev
    beta_t = 1 - alpha_t
    return (x_t - beta_t / (1 - alpha_bar_t) ** 0.5 * eps) / alpha_t**0.5


def ddpm_mean_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points at an early and a middle step, a stride of 100 steps, and the last step from t = 19."""
    shape = ((3, 1, 6, 6), (8, 2), (2, 3, 5, 5), (6,))[index]
    t, t_prev = ((700, 699), (200, 199), (600, 500), (19, -1))[index]
    x_t, eps = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return Case({"x_t": x_t, "eps": eps, **levels(t, t_prev)}, {"t": t})


def ddpm_mean_through_x0(x_t, eps, a, p):
    return gaussian.posterior_mean(x_t, gaussian.x0_from_eps(x_t, eps, a), a, p)


def ddpm_mean_in_float64(x_t, eps, a, p):
    return ddpm_mean(x_t.double(), eps.double(), a, p).to(x_t.dtype)


def ddpm_mean_by_loop(x_t, eps, a, p):
    return torch.stack([ddpm_mean(x, e, a, p) for x, e in zip(x_t, eps, strict=True)])


def ddpm_mean_in_place(x_t, eps, a, p):
    mean = x_t.clone()
    mean.sub_(eps, alpha=(1 - a / p) / (1 - a) ** 0.5)
    return mean.div_((a / p) ** 0.5)


def ddpm_mean_flattened(x_t, eps, a, p):
    on_x, on_eps = (p / a) ** 0.5, -(1 - a / p) * (p / a / (1 - a)) ** 0.5
    return (torch.stack([x_t, eps], dim=-1) @ x_t.new_tensor([on_x, on_eps])).reshape(x_t.shape)


def _mean(x, e, a, p, *, push=None, shrink=None):
    """Ho eq. 11 with another factor in front of ε or another divisor."""
    push = (1 - a / p) / (1 - a) ** 0.5 if push is None else push
    return (x - push * e) / ((a / p) ** 0.5 if shrink is None else shrink)


DDPM_MEAN = Exercise(
    id="07.1",
    title="The mean, from the predicted noise",
    difficulty=1,
    minutes=5,
    equation="Ho eq. 11",
    where="Algorithm 2, line by line",
    lines=3,
    reference=ddpm_mean,
    inputs=ddpm_mean_inputs,
    hints=(
        "Two things are undone: a part of the noise is taken out, then the shrinking of this one step. The β and α of "
        "the step are not arguments: get them from the two levels.",
        "μ = (x_t - β_t / √(1-ᾱ_t) · ε) / √α_t, with α_t = ᾱ_t / ᾱ_prev and β_t = 1 - α_t.",
        "`alpha_t = ... / ...`, then `(x_t - ... * eps) / ...`",
    ),
    mistakes=(
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, shrink=1.0),
            "you took noise out and left the shrinking in: at t = {t} the step forward had also multiplied by √α_t",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - a / p) / (1 - a)),
            lambda at: (
                f"you divided by 1-ᾱ_t where eq. 11 has its square root: at t = {at.t} that takes out "
                f"{(1 - at.alpha_bar_t) ** -0.5 - 1:.2%} too much"
            ),
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - a / p) ** 0.5),
            lambda at: (
                f"you took out √β_t ε, all the noise that one step can have added; x_t's noise came in many "
                f"steps, and ε tells only their sum. At t = {at.t} that is "
                f"{(1 - at.alpha_bar_t) ** 0.5 / (1 - at.alpha_bar_t / at.alpha_bar_prev) ** 0.5:.1f} times too much"
            ),
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - a) ** 0.5, shrink=a**0.5),
            "you returned x̂_0 (Ho eq. 15): all the noise taken out at once, where one step is asked for (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, shrink=a**0.5),
            lambda at: (
                f"you divided by √ᾱ_t, the shrinking of all steps: at t = {at.t} your result is "
                f"{at.alpha_bar_prev**-0.5:.3g} times too large; one step has an α of its own"
            ),
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=-(1 - a / p) / (1 - a) ** 0.5),
            "you added the noise where eq. 11 takes it out (t = {t}): look at the sign in front of ε",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - a / p) / (1 - p) ** 0.5 if p < 1 else 0.0),
            "you used the level of the step moved to, ᾱ_prev, under the root: ε is the noise of x_t (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(p - a) / (1 - a) ** 0.5),
            "you took ᾱ_prev-ᾱ_t for β_t: a step multiplies ᾱ, so it is their quotient that counts (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, shrink=a / p),
            "you divided by α_t where eq. 11 has its square root (t = {t}): a step shrinks values by the root, and "
            "variances by α_t",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - a) / (1 - a) ** 0.5),
            "you took out √(1-ᾱ_t) ε, the noise of all steps up to t = {t}, or took 1-ᾱ_t for β_t: one step back takes "
            "out the share of one step",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=gaussian.posterior_variance(a, p) / (1 - a) ** 0.5),
            "you put β̃_t where eq. 11 has β_t (t = {t}): β̃_t is the variance of a step back, here the step forward "
            "counts",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=1 - a / p),
            "you left out the division of β_t by √(1-ᾱ_t) (t = {t}): too little noise is taken out",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=((1 - a / p) / (1 - a)) ** 0.5),
            "you took the square root of β_t (t = {t}): in eq. 11 only 1-ᾱ_t stands under the root",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=a / p / (1 - a) ** 0.5),
            "you put α_t in front of ε where eq. 11 has β_t = 1-α_t (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - p / a) / (1 - a) ** 0.5, shrink=(p / a) ** 0.5),
            "you divided the two levels the other way round (t = {t}): α_t is below 1, yours is above it",
        ),
        Mistake(
            lambda x, e, a, p: x / (a / p) ** 0.5 - (1 - a / p) / (1 - a) ** 0.5 * e,
            "you divided x_t alone by √α_t (t = {t}): the bracket around x_t and ε is missing",
        ),
        Mistake(
            lambda x, e, a, p: gaussian.posterior_mean(x, gaussian.x0_from_eps(x, e, a).clamp(-1, 1), a, p),
            "you clipped x̂_0 on the way (t = {t}): eq. 11 does not, this function is for any data",
        ),
        Mistake(
            lambda x, e, a, p: p**0.5 * gaussian.x0_from_eps(x, e, a) + (1 - p) ** 0.5 * e,
            "you noised x̂_0 again with the same ε, the deterministic step of lesson 08 (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: (x - (1 - a / p) * e) / (1 - a) ** 0.5 / (a / p) ** 0.5,
            "you let √(1-ᾱ_t) divide x_t as well (t = {t}): it stands below β_t ε alone",
        ),
        Mistake(
            lambda x, e, a, p: x - (1 - a / p) / (1 - a) ** 0.5 * e / (a / p) ** 0.5,
            "you divided the noise alone by √α_t (t = {t}): the bracket around x_t and ε is missing",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, shrink=(p / a) ** 0.5),
            "you shrink once more where a step back has to undo the shrinking (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - a / p) / (1 - a**0.5)),
            "you divided by 1-√ᾱ_t, with ᾱ_t alone under the root: in eq. 11 the difference stands there (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: _mean(x, e, a, p, push=(1 - p) / (1 - a) ** 0.5, shrink=p**0.5),
            "you took ᾱ_prev for the α of this step: it is the share left after all the steps before, and at the last "
            "step your x stays as it was (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: ddpm_mean(x, e, a, p).clamp(-1, 1),
            "you clipped the mean: x_prev is noisy, and noise goes beyond [-1, 1] by right (t = {t})",
        ),
        Mistake(
            lambda x, e, a, p: x - (1 - a) ** 0.5 * e if p == 1 else ddpm_mean(x, e, a, p),
            "you took the noise out at the last step and did not undo the shrinking (t = {t}): ᾱ_prev is 1 there, and "
            "eq. 11 holds as at every other step",
        ),
    ),
    alternatives=(
        ddpm_mean_through_x0,
        ddpm_mean_in_float64,
        ddpm_mean_by_loop,
        ddpm_mean_in_place,
        ddpm_mean_flattened,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 07.2


def reverse_variance(alpha_bar_t: float, alpha_bar_prev: float, data_variance: float | Tensor) -> float | Tensor:
    """The variance of q(x_prev | x_t) for Gaussian data, x_0 ~ N(m, data_variance) (Ho section 3.2).

    alpha_bar_t, alpha_bar_prev: ᾱ at t and at the step moved to; alpha_bar_prev is 1 at the last step.
    data_variance: s², a number or a tensor, at least 0.
    Returns a number or a tensor, as data_variance is.
    """
    beta_t = 1 - alpha_bar_t / alpha_bar_prev
    now = alpha_bar_t * data_variance + 1 - alpha_bar_t
    before = alpha_bar_prev * data_variance + 1 - alpha_bar_prev
    return beta_t * before / now


def reverse_variance_inputs(generator: torch.Generator, index: int) -> Case:
    """Narrow and wide data, many data variances at once, a stride of 100 steps, and the last step."""
    t, t_prev = ((60, 59), (300, 200), (20, 19), (0, -1))[index]
    wanted = (0.1, 0.3, 0.6, 0.02)[index] + 0.1 * torch.rand(1, generator=generator).item()
    variance = torch.rand(5, generator=generator) * 2 + 0.05 if index == 1 else round(wanted, 3)
    return Case({**levels(t, t_prev), "data_variance": variance}, {"t": t})


def reverse_variance_by_conditioning(a, p, s2):
    before = p * s2 + 1 - p
    return before - (a / p) * before**2 / (a * s2 + 1 - a)


def reverse_variance_by_total_variance(a, p, s2):
    of_x0 = s2 * (1 - a) / (a * s2 + 1 - a)
    coefficient = p**0.5 * (1 - a / p) / (1 - a)
    return gaussian.posterior_variance(a, p) + coefficient**2 * of_x0


def reverse_variance_by_precision(a, p, s2):
    before = p * s2 + 1 - p
    return 1 / (a / p / (1 - a / p) + 1 / before)


def reverse_variance_by_loop(a, p, s2):
    if not isinstance(s2, Tensor):
        return (p - a) * (s2 + (1 - p) / p) / (a * s2 + (1 - a))
    values = [reverse_variance_by_precision(a, p, one) for one in s2.double().tolist()]
    return torch.tensor(values, dtype=s2.dtype).reshape(s2.shape)


def reverse_variance_in_tensors(a, p, s2):
    now, prev = (torch.tensor(level, dtype=torch.float64) for level in (a, p))
    total = [level * s2 + 1 - level for level in (now, prev)]
    return (1 - now / prev) * total[1] / total[0]


def _total(level, s2):
    return level * s2 + 1 - level


REVERSE_VARIANCE = Exercise(
    id="07.2",
    title="What the variance should be",
    difficulty=2,
    minutes=5,
    equation="Ho section 3.2",
    where="How much noise: β or β̃",
    lines=4,
    reference=reverse_variance,
    inputs=reverse_variance_inputs,
    hints=(
        "Forget x_0: the pair (x_prev, x_t) is jointly Gaussian. All that is needed is how far each of the two spreads "
        "over all data, and β of the step.",
        "V_t = ᾱ_t s² + 1 - ᾱ_t is the variance of x_t, V_prev that of x_prev. Then the variance of x_prev, given x_t, "
        "is β_t V_prev / V_t.",
        "`beta_t = 1 - ... / ...`, then `now` and `before` from the same formula at the two levels",
    ),
    mistakes=(
        Mistake(
            lambda a, p, s2: gaussian.posterior_variance(a, p) + 0 * s2,
            "you returned β̃_t, which is right when x_0 is known, or the data are a single point; here they spread, and "
            "`data_variance` counts (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: 1 - a / p + 0 * s2,
            "you returned β_t, which is right for data of variance 1; `data_variance` is not used (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: gaussian.posterior_variance(a, p),
            "you returned β̃_t, one number even where `data_variance` holds several: it is right when x_0 is known "
            "(t = {t})",
        ),
        Mistake(
            lambda a, p, s2: 1 - a / p,
            "you returned β_t, one number even where `data_variance` holds several: it is right for data of variance 1 "
            "(t = {t})",
        ),
        Mistake(
            lambda a, p, s2: (1 - a / p) * _total(a, s2) / _total(p, s2),
            "you turned the quotient of the two variances upside down: at t = {t} the data are narrower than 1, so "
            "V_prev is below V_t and the variance below β_t; yours is above it",
        ),
        Mistake(
            lambda a, p, s2: _total(p, s2) / _total(a, s2),
            "you left out β_t: the two variances are nearly the same at neighbouring steps, and the step is short "
            "(t = {t})",
        ),
        Mistake(
            lambda a, p, s2: _total(p, s2),
            "you returned the variance of x_prev over all data: x_t is known here, and says much of it (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: (1 - a / p) * (s2 + 1 - p) / (s2 + 1 - a),
            "you left the data as wide as they were: at t = {t} their variance is multiplied by ᾱ, as everything clean "
            "is",
        ),
        Mistake(
            lambda a, p, s2: ((1 - a / p) * _total(p, s2) / _total(a, s2)) ** 0.5,
            "you returned the square root, a standard deviation: the variance is asked for (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: (1 - a / p) * _total(p, s2**2) / _total(a, s2**2),
            "you squared `data_variance`: it is s² already (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: (p - a) * _total(p, s2) / _total(a, s2),
            "you took ᾱ_prev-ᾱ_t for β_t: a step multiplies ᾱ, so it is their quotient that counts (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: a / p * _total(p, s2) / _total(a, s2),
            "you multiplied by α_t where β_t belongs: at t = {t} your variance is that of everything kept, not of the "
            "noise of one step",
        ),
        Mistake(
            lambda a, p, s2: gaussian.posterior_variance(a, p) * _total(p, s2) / _total(a, s2),
            "you put β̃_t in front of the quotient where the formula has β_t (t = {t}): β̃_t is what comes out for data "
            "that are a point",
        ),
        Mistake(
            lambda a, p, s2: s2 * (1 - a / p) + (1 - s2) * gaussian.posterior_variance(a, p),
            "you mixed β_t and β̃_t by `data_variance` (t = {t}): the ends are right, but between them a quotient, "
            "V_prev over V_t, counts",
        ),
        Mistake(
            lambda a, p, s2: (1 - p / a) * _total(p, s2) / _total(a, s2),
            "you divided the two levels the other way round (t = {t}): β_t is then negative, and so is your variance",
        ),
        Mistake(
            lambda a, p, s2: _total(p, s2) - _total(p, s2) ** 2 / _total(a, s2),
            "you left the factor α_t out of the squared covariance (t = {t}): the covariance of x_prev and x_t is "
            "√α_t V_prev",
        ),
        Mistake(
            lambda a, p, s2: s2 * (1 - a) / _total(a, s2),
            "you returned the variance of x_0, given x_t: that of x_prev is asked for (t = {t})",
        ),
        Mistake(
            lambda a, p, s2: gaussian.posterior_variance(a, p) + s2 * (1 - a) / _total(a, s2),
            "you added what is unknown of x_0 in full (t = {t}): in x_prev it counts with its coefficient in Ho "
            "eq. 7, squared",
        ),
        Mistake(
            lambda a, p, s2: (1 - a) * _total(p, s2) / _total(a, s2),
            "you took 1-ᾱ_t for β_t (t = {t}): that is the noise of all steps up to t, and β_t that of one",
        ),
        Mistake(
            lambda a, p, s2: (1 - a / p) ** 0.5 * _total(p, s2) / _total(a, s2),
            "you took the root of β_t (t = {t}): variances are asked for, no standard deviation occurs",
        ),
        Mistake(
            lambda a, p, s2: (1 - a / p) * _total(p, s2) / _total(a, s2) * s2,
            "you multiplied by `data_variance` once more (t = {t}): it is in V_prev and V_t already",
        ),
        Mistake(
            lambda a, p, s2: (1 - a / p) * _total(p, s2),
            "you left out what x_t spreads over, V_t, below the line: with data of variance 1, where V_t is 1, "
            "nobody would notice (t = {t})",
        ),
    ),
    alternatives=(
        reverse_variance_by_conditioning,
        reverse_variance_by_total_variance,
        reverse_variance_by_precision,
        reverse_variance_by_loop,
        reverse_variance_in_tensors,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 07.3


def ddpm_step(
    x_t: Tensor, eps: Tensor, noise: Tensor, alpha_bar_t: float, alpha_bar_prev: float, large: bool
) -> tuple[Tensor, Tensor]:
    """One step of algorithm 2 for images, with x̂_0 clipped to [-1, 1].

    x_t, eps, noise: any shape, the same; eps is the predicted noise in x_t, noise is standard normal and fresh.
    alpha_bar_t, alpha_bar_prev: ᾱ at t and at the step moved to; alpha_bar_prev is 1 at the last step.
    large: whether σ² is β_t; else it is β̃_t.
    Returns (x_prev, x̂_0), both of x_t's shape; no noise is added at the last step.
    """
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t).clamp(-1, 1)
    mean = gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)
    if alpha_bar_prev == 1:
        return mean, x0
    beta_t = 1 - alpha_bar_t / alpha_bar_prev
    variance = beta_t if large else gaussian.posterior_variance(alpha_bar_t, alpha_bar_prev)
    return mean + variance**0.5 * noise, x0


def ddpm_step_inputs(generator: torch.Generator, index: int) -> Case:
    """Both variances at neighbouring and at distant steps, and the last step from t = 19."""
    shape = ((3, 1, 6, 6), (2, 3, 4, 4), (5, 1, 5, 5), (7, 16), (2, 1, 6, 6))[index]
    t, t_prev = ((100, 99), (40, 39), (300, 250), (19, -1), (500, 400))[index]
    clean = torch.rand(shape, generator=generator) * 2.4 - 1.2
    eps, off, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    x_t = gaussian.q_sample(clean, eps, float(ALPHA_BAR[t]))
    args = {"x_t": x_t, "eps": eps + 0.2 * off, "noise": noise, **levels(t, t_prev), "large": index in (1, 3, 4)}
    return Case(args, {"t": t})


def _variance(a, p, large):
    return (1 - a / p) * (1 if large else (1 - p) / (1 - a))


def _step(x, e, z, a, p, large, *, bound=1.0, std=None, last=0.0):
    """The step with another clipping, standard deviation, or noise at the last step."""
    x0 = gaussian.x0_from_eps(x, e, a).clamp(-bound, bound)
    std = _variance(a, p, large) ** 0.5 if std is None else std
    std = last if p == 1 else std
    return gaussian.posterior_mean(x, x0, a, p) + std * z, x0


def ddpm_step_with_one_expression(x, e, z, a, p, large):
    x0 = ((x - (1 - a) ** 0.5 * e) / a**0.5).clamp(-1, 1)
    mean = (p**0.5 * (1 - a / p) * x0 + (a / p) ** 0.5 * (1 - p) * x) / (1 - a)
    return mean + (p < 1) * _variance(a, p, large) ** 0.5 * z, x0


def ddpm_step_in_float64(x, e, z, a, p, large):
    return tuple(part.to(x.dtype) for part in ddpm_step(x.double(), e.double(), z.double(), a, p, large))


def ddpm_step_by_loop(x, e, z, a, p, large):
    pairs = [ddpm_step(*sample, a, p, large) for sample in zip(x, e, z, strict=True)]
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def ddpm_step_by_eq_11(x, e, z, a, p, large):
    x0 = torch.minimum(torch.maximum(gaussian.x0_from_eps(x, e, a), x.new_tensor(-1)), x.new_tensor(1))
    mean = ddpm_mean(x, gaussian.eps_from_x0(x, x0, a), a, p)
    return (mean if p == 1 else mean + _variance(a, p, large) ** 0.5 * z), x0


def ddpm_step_in_place(x, e, z, a, p, large):
    x0 = x.clone()
    x0 -= (1 - a) ** 0.5 * e
    x0 /= a**0.5
    x0.clamp_(-1, 1)
    x_prev = gaussian.posterior_mean(x, x0, a, p)
    if p < 1:
        x_prev += _variance(a, p, large) ** 0.5 * z
    return x_prev, x0


def _clipped_mean(x, e, z, a, p, large):
    x0 = gaussian.x0_from_eps(x, e, a)
    return gaussian.posterior_mean(x, x0, a, p).clamp(-1, 1) + (p < 1) * _variance(a, p, large) ** 0.5 * z, x0


def _clipped_result(x, e, z, a, p, large):
    x_prev, x0 = _step(x, e, z, a, p, large)
    return x_prev.clamp(-1, 1), x0


def _clipped_to_0_1(x, e, z, a, p, large):
    x0 = gaussian.x0_from_eps(x, e, a).clamp(0, 1)
    return gaussian.posterior_mean(x, x0, a, p) + (p < 1) * _variance(a, p, large) ** 0.5 * z, x0


def _clipped_too_late(x, e, z, a, p, large):
    x_prev, x0 = _step(x, e, z, a, p, large, bound=1e9)
    return x_prev, x0.clamp(-1, 1)


@cache
def digits() -> DDPMPipeline:
    """The model of digits that comes with the course."""
    pipeline: DDPMPipeline = DDPMPipeline.from_pretrained("digits")
    return pipeline


def draw_digits(step: Callable[..., tuple[Tensor, Tensor]], count: int = 4, steps: int = 16) -> Tensor:
    """Digits made by `step`, (count, 1, 16, 16)."""
    scheduler, generator = DDPMScheduler(timestep_spacing="trailing"), torch.Generator().manual_seed(7)
    scheduler.set_timesteps(steps)
    x = torch.randn(count, 1, 16, 16, generator=generator)
    visited = [*scheduler.timesteps.tolist(), -1]
    with torch.no_grad():
        for t, t_prev in zip(visited, visited[1:], strict=False):
            noise = torch.randn(x.shape, generator=generator)
            x, _ = step(x, digits().unet(x, t).sample, noise, *levels(t, t_prev).values(), False)
    return x


def side_by_side(yours: Tensor, reference: Tensor):
    """Two rows of images."""
    with rc_context(plots.STYLE):
        return plots.grid_figure(torch.cat([yours, reference]), len(yours), row_labels=["yours", "reference"])


STEP_GIVEN = """
x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t)
mean = gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)
# your code: clip x0 in the right place, then about 5 lines
...
"""


DDPM_STEP = Exercise(
    id="07.3",
    title="One full step, and the last one",
    difficulty=2,
    minutes=6,
    equation="Ho algorithm 2, eq. 7, 15",
    where="The last step",
    lines=7,
    reference=ddpm_step,
    given=STEP_GIVEN,
    inputs=ddpm_step_inputs,
    hints=(
        "Lesson 03's step with three additions: x̂_0 is clipped before it is used, σ² is one of two, and the last step "
        "returns the mean.",
        "x̂_0 from Ho eq. 15, clipped; μ̃_t(x_t, x̂_0) from eq. 7; then μ̃_t + σ_t z, with σ_t² = β_t = 1 - ᾱ_t/ᾱ_prev or "
        "β̃_t, and z = 0 where ᾱ_prev is 1.",
        "`x0 = gaussian.x0_from_eps(...).clamp(...)`, `mean = gaussian.posterior_mean(...)`, "
        "`if alpha_bar_prev == 1: ...`, then the variance by `large`",
    ),
    mistakes=(
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, last=_variance(a, p, large) ** 0.5),
            lambda at: (
                f"you added noise at the last step: the final image gets grain of standard deviation "
                f"{(1 - at.alpha_bar_t) ** 0.5:.2f}, which no later step takes out"
            ),
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, std=_variance(a, p, large)),
            lambda at: (
                f"you scaled the noise by the variance σ²: at t = {at.t} it is "
                f"{_variance(at.alpha_bar_t, at.alpha_bar_prev, at.large) ** -0.5:.1f} times too small"
            ),
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, bound=1e9),
            "you did not clip x̂_0: both outputs go beyond what a pixel can be (t = {t})",
        ),
        Mistake(
            _clipped_too_late,
            "you clipped x̂_0 only after the mean had been made from it: the first output does not feel it (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: (
                _step(x, e, z, a, p, large)[0],
                gaussian.x0_from_eps(x, e, a),
            ),
            "you returned x̂_0 as it was before clipping: the second output is the one that the step used (t = {t})",
        ),
        Mistake(
            _clipped_mean,
            "you clipped the mean and not x̂_0: at t = {t} x_prev is noisy, and noise may go beyond [-1, 1]",
        ),
        Mistake(
            _clipped_result,
            "you clipped x_prev: a noisy image has to go beyond [-1, 1], and the network expects it (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, not large),
            "you took β_t where `large` is false and β̃_t where it is true (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, False),
            "you took β̃_t whatever `large` says: at t = {t} β_t was asked for",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, True),
            "you took β_t whatever `large` says: at t = {t} β̃_t was asked for",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, std=0.0),
            "you returned the mean at every step: `noise` is used nowhere (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, bound=1.0)[::-1],
            "you returned the two outputs in the other order: x_prev comes first",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large)[0],
            "you returned x_prev alone: x̂_0 is asked for too, as a pair",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, std=(1 - a) ** 0.5),
            "you added noise of variance 1-ᾱ_t, that of all steps together: one step adds σ² only (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, std=(1 - a) ** 0.5 if large else None),
            "you took 1-ᾱ_t for β_t where `large` is true: that is the variance of all steps together (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, -z, a, p, large),
            "you subtracted the noise: as likely a draw, but not the one that `noise` stands for (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, e, a, p, large),
            "you added the predicted noise again: what is added is fresh, the argument `noise` (t = {t})",
        ),
        Mistake(
            _clipped_to_0_1,
            "you clipped x̂_0 to [0, 1]: the pixels of this course lie in [-1, 1] (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large)[0 if p == 1 else slice(None)],
            "you returned one output at the last step: a pair is asked for there, too",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, std=(p - a) ** 0.5 if large else None),
            "you took ᾱ_prev-ᾱ_t for β_t where `large` is true: a step multiplies ᾱ, their quotient counts (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, z, a, p, large, std=None if large else ((1 - p) / (1 - a)) ** 0.5),
            "you took (1-ᾱ_prev)/(1-ᾱ_t) for β̃_t where `large` is false: near 1, far more than one step adds (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e.clamp(-1, 1), z, a, p, large),
            "you clipped ε: noise may have any size, it is pixels that have a range (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, large: _step(x, e, torch.randn_like(x), a, p, large),
            "you drew noise of your own and left the argument `noise` unused: no one can repeat your step",
        ),
    ),
    alternatives=(
        ddpm_step_with_one_expression,
        ddpm_step_in_float64,
        ddpm_step_by_loop,
        ddpm_step_by_eq_11,
        ddpm_step_in_place,
    ),
    picture=lambda answer: side_by_side(draw_digits(answer), draw_digits(ddpm_step)),
    rtol=1e-3,
    cases=5,
)


# ---------------------------------------------------------------- 07.4


def spaced_timesteps(n: int, T: int, spacing: str) -> list[int]:
    """The n timesteps that a sampler visits, largest first.

    n: how many, from 2 to T.
    T: number of training steps; timesteps are indices from 0 to T-1.
    spacing: "leading" (0 and every multiple of T // n), "trailing" (T-1 and down in steps of T/n, rounded) or
        "linspace" (n numbers evenly from 0 to T-1, both included, rounded).
    """
    if spacing == "leading":
        return [i * (T // n) for i in range(n)][::-1]
    if spacing == "trailing":
        return [round(T - i * T / n) - 1 for i in range(n)]
    return [round(i * (T - 1) / (n - 1)) for i in range(n)][::-1]


def spaced_timesteps_inputs(generator: torch.Generator, index: int) -> Case:
    """Each spacing, and numbers of steps that do not divide T."""
    n, T, spacing = (
        (6, 1000, "leading"),
        (7, 1000, "trailing"),
        (8, 1000, "linspace"),
        (9, 100, "leading"),
        (6, 50, "trailing"),
        (4, 20, "linspace"),
    )[index]
    return Case({"n": n, "T": T, "spacing": spacing}, {"step": T / n})


def as_table(answer, *args):
    """The answer's numbers as a tensor, whatever sequence they came in; 9.0 is as good as 9."""
    found = answer(*args)
    if found is None or isinstance(found, int | float):
        return found
    table = found if isinstance(found, Tensor) else torch.as_tensor(np.asarray(list(found)))
    return table.long() if table.is_floating_point() and bool((table % 1 == 0).all()) else table


def spaced_timesteps_in_numpy(n, T, spacing):
    i = np.arange(n)
    steps = {
        "leading": (i * (T // n))[::-1],
        "trailing": np.round(T - i * T / n) - 1,
        "linspace": np.round(np.linspace(0, T - 1, n))[::-1],
    }
    return steps[spacing]


def spaced_timesteps_in_torch(n, T, spacing):
    if spacing == "leading":
        steps = torch.arange(n).flip(0) * (T // n)
    elif spacing == "trailing":
        steps = (T - torch.arange(n, dtype=torch.float64) * T / n).round() - 1
    else:
        steps = torch.linspace(T - 1, 0, n, dtype=torch.float64).round()
    return steps.long()


def spaced_timesteps_by_loop(n, T, spacing):
    steps: list[int] = []
    for i in range(n):
        if spacing == "leading":
            steps.insert(0, i * (T // n))
        elif spacing == "trailing":
            steps.append(int(T - i * T / n + 0.5) - 1)
        else:
            steps.insert(0, int(i * (T - 1) / (n - 1) + 0.5))
    return steps


def spaced_timesteps_by_the_package(n, T, spacing):
    scheduler = DDPMScheduler(T, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    return scheduler.timesteps.tolist()


def spaced_timesteps_sorted(n, T, spacing):
    if spacing == "leading":
        return sorted(range(0, n * (T // n), T // n), reverse=True)
    if spacing == "trailing":
        return sorted((round((i + 1) * T / n) - 1 for i in range(n)), reverse=True)
    return sorted((round(i * (T - 1) / (n - 1)) for i in range(n)), reverse=True)


def _other(spacing, wrong):
    """A function that is right but for one spacing."""
    return lambda n, T, s: wrong(n, T) if s == spacing else spaced_timesteps(n, T, s)


def _floored(n, T, spacing):
    if spacing == "leading":
        return spaced_timesteps(n, T, spacing)
    if spacing == "trailing":
        return [int(T - i * T / n) - 1 for i in range(n)]
    return [int(i * (T - 1) / (n - 1)) for i in range(n)][::-1]


def _unrounded(n, T, spacing):
    if spacing == "leading":
        return spaced_timesteps(n, T, spacing)
    if spacing == "trailing":
        return [T - i * T / n - 1 for i in range(n)]
    return [i * (T - 1) / (n - 1) for i in range(n)][::-1]


SPACED_GIVEN = """
if spacing == "leading":
    return [i * (T // n) for i in range(n)][::-1]
# your code: the other two, about 3 lines
...
"""


SPACED_TIMESTEPS = Exercise(
    id="07.4",
    title="Which timesteps to visit",
    difficulty=2,
    minutes=5,
    equation="Lin table 2",
    where="Fewer steps",
    lines=5,
    reference=spaced_timesteps,
    given=SPACED_GIVEN,
    inputs=spaced_timesteps_inputs,
    run=as_table,
    hints=(
        "Write each spacing for i = 0 … n-1 and mind two things: which end it must contain, and that the largest comes "
        "first.",
        "leading: i · (T // n), so 0 is in. trailing: T - i · T/n, rounded, minus 1, so T-1 is in. linspace: "
        "i · (T-1)/(n-1), rounded, so both are in.",
        "two lists of the form `[... for i in range(n)]`, one of them turned round by `[::-1]`",
    ),
    mistakes=(
        Mistake(
            lambda n, T, s: spaced_timesteps(n, T, s)[::-1],
            "you count upwards: a sampler starts at the noisiest step, so the largest timestep comes first",
        ),
        Mistake(
            lambda n, T, s: spaced_timesteps(n, T, "leading"),
            "you return the leading timesteps whatever `spacing` says: {spacing} was asked for",
        ),
        Mistake(
            lambda n, T, s: spaced_timesteps(n, T, "trailing"),
            "you return the trailing timesteps whatever `spacing` says: {spacing} was asked for",
        ),
        Mistake(
            _other("linspace", lambda n, T: spaced_timesteps(n, T, "linspace")[::-1]),
            "your linspace timesteps count upwards: a sampler starts at the noisiest step",
        ),
        Mistake(
            _other("trailing", lambda n, T: spaced_timesteps(n, T, "trailing")[::-1]),
            "your trailing timesteps count upwards: a sampler starts at the noisiest step",
        ),
        Mistake(
            _other("trailing", lambda n, T: spaced_timesteps(n, T, "linspace")),
            "your trailing timesteps are those of linspace: trailing contains {T} minus 1, but not 0",
        ),
        Mistake(
            _other("linspace", lambda n, T: spaced_timesteps(n, T, "trailing")),
            "your linspace timesteps are those of trailing: linspace contains 0, too",
        ),
        Mistake(
            _unrounded,
            "you did not round: a timestep is a whole number, an index into tables",
        ),
        Mistake(
            _other("trailing", lambda n, T: [round(T - i * T / n) for i in range(n)]),
            "your trailing timesteps are one too large: they start at {T}, and the last index is one less",
        ),
        Mistake(
            _other("trailing", lambda n, T: [T - i * (T // n) - 1 for i in range(n)]),
            "your trailing timesteps use whole strides T // n: with {n} steps of {T} the exact stride is {step:.2f}, "
            "and rounding comes after multiplying",
        ),
        Mistake(
            _other("leading", lambda n, T: [round(i * T / n) for i in range(n)][::-1]),
            "your leading timesteps use the exact stride {step:.2f}: this spacing has whole strides, T // n",
        ),
        Mistake(
            _other("leading", lambda n, T: list(range(T - 1, -1, -(T // n)))),
            "your leading timesteps start at T-1 and may miss 0: this spacing contains 0 and has exactly {n} entries",
        ),
        Mistake(
            _other("linspace", lambda n, T: [round(i * T / n) for i in range(n)][::-1]),
            "your linspace timesteps do not reach T-1: {n} numbers from 0 to {T} minus 1, both ends included, have "
            "n - 1 gaps",
        ),
        Mistake(
            _other("linspace", lambda n, T: [round(i * T / (n - 1)) for i in range(n)][::-1]),
            "your linspace timesteps reach {T}, which is no index: they run from 0 to T-1",
        ),
        Mistake(
            _floored,
            "you cut the fraction off where the definition rounds: some timesteps are one too small",
        ),
        Mistake(
            _other("trailing", lambda n, T: [int(T - i * T / n) - 1 for i in range(n)]),
            "your trailing timesteps are cut off where the definition rounds: some are one too small",
        ),
        Mistake(
            _other("trailing", lambda n, T: [T - i * T // n - 1 for i in range(n)]),
            "your trailing timesteps round what is taken off T down, and so themselves up: round the whole of it",
        ),
        Mistake(
            _other("linspace", lambda n, T: [int(i * (T - 1) / (n - 1)) for i in range(n)][::-1]),
            "your linspace timesteps are cut off where the definition rounds: some are one too small",
        ),
        Mistake(
            lambda n, T, s: [*spaced_timesteps(n, T, s), -1],
            "you added -1, the clean end: the sampler goes there from the last timestep, but the network is not asked "
            "at it",
        ),
    ),
    alternatives=(
        spaced_timesteps_in_numpy,
        spaced_timesteps_in_torch,
        spaced_timesteps_by_loop,
        spaced_timesteps_by_the_package,
        spaced_timesteps_sorted,
    ),
    cases=6,
)


# ---------------------------------------------------------------- 07.5


def sample(
    model: Callable[[Tensor, int], Tensor],
    scheduler: Any,
    shape: tuple[int, ...],
    generators: list[torch.Generator],
) -> Tensor:
    """Algorithm 2 from noise to data, with one generator per sample.

    model: model(x_t, t) gives the predicted noise, of x_t's shape; t is an int.
    scheduler: a DDPMScheduler whose `timesteps` are set; `scheduler.step(eps, t, x_t, generator=...)` makes one step.
    shape: of the result, (B, ...).
    generators: B of them; sample i gets its x_T, then the noise of every step, from generator i.
    Returns x_0, float32.
    """
    x = gaussian.randn(shape, generators)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(model(x, t), t, x, generator=generators).prev_sample
    return x


def sample_inputs(generator: torch.Generator, index: int) -> Case:
    """A few steps with the exact ε* of Gaussian data, images and points, every spacing, both variances.

    β_1 is so large that the step from t = 0 matters.
    """
    shape = ((2, 1, 4, 4), (3, 2), (4, 1, 3, 3))[index]
    spacing, variance = (("trailing", "fixed_small"), ("leading", "fixed_large"), ("linspace", "fixed_small"))[index]
    options = {"beta_start": 0.01, "beta_end": 0.2, "variance_type": variance, "clip_sample": False}
    scheduler = DDPMScheduler(100, timestep_spacing=spacing, **options)
    scheduler.set_timesteps((5, 8, 6)[index])
    seed = int(torch.randint(1000, (), generator=generator))
    generators = [torch.Generator().manual_seed(seed + i) for i in range(shape[0])]

    def exact_eps(x: Tensor, t: int) -> Tensor:
        """ε* for data N(0.3, 0.25)."""
        a = float(scheduler.alphas_cumprod[t])
        return (1 - a) ** 0.5 * (x - a**0.5 * 0.3) / (a * 0.25 + 1 - a)

    args = {"model": exact_eps, "scheduler": scheduler, "shape": shape, "generators": generators}
    return Case(args, {"n": len(scheduler.timesteps)})


def sample_one_by_one(model, scheduler, shape, generators):
    return torch.cat([sample(model, scheduler, (1, *shape[1:]), [generator]) for generator in generators])


def sample_by_own_steps(model, scheduler, shape, generators):
    x = torch.stack([torch.randn(shape[1:], generator=g) for g in generators])
    visited = [*scheduler.timesteps.tolist(), -1]
    for t, t_prev in zip(visited, visited[1:], strict=False):
        a, p = scheduler._alpha_bar(t), scheduler._alpha_bar(t_prev)
        x_mean = ddpm_mean(x, model(x, t), a, p)
        if t_prev < 0:
            return x_mean
        z = torch.stack([torch.randn(shape[1:], generator=g) for g in generators])
        x = x_mean + _variance(a, p, scheduler.config.variance_type == "fixed_large") ** 0.5 * z
    return x


def sample_by_tuple(model, scheduler, shape, generators):
    x = scheduler.init_noise_sigma * gaussian.randn(shape, generators)
    for t in scheduler.timesteps:
        eps = model(scheduler.scale_model_input(x, t), int(t))
        x, _ = scheduler.step(eps, int(t), x, generators, return_dict=False)
    return x


def sample_by_while(model, scheduler, shape, generators):
    x, left = gaussian.randn(shape, generators), scheduler.timesteps.tolist()
    while left:
        t = left.pop(0)
        x = scheduler.step(model(x, t), t, x, generator=generators).prev_sample
    return x


def sample_in_float64(model, scheduler, shape, generators):
    x = gaussian.randn(shape, generators).double()
    for t in scheduler.timesteps.tolist():
        a, p = scheduler._alpha_bar(t), scheduler._alpha_bar(scheduler._previous(t))
        mean = ddpm_mean(x, model(x, t), a, p)
        drawn = scheduler.step(torch.zeros(shape), t, torch.zeros(shape), generator=generators).prev_sample
        x = mean + drawn.double()  # at x_t = 0 and ε = 0 a step gives its noise alone
    return x.float()


def _loop(model, scheduler, shape, generators, *, steps=None, ask=None, start=None, draw=None, keep=False):
    """The loop with other timesteps, another t for the model, another start or other noise."""
    x = gaussian.randn(shape, generators) if start is None else start
    first = x
    for i, t in enumerate(scheduler.timesteps.tolist() if steps is None else steps):
        eps = model(first if keep else x, t if ask is None else ask(i, t))
        x = scheduler.step(eps, t, x, generator=generators if draw is None else draw()).prev_sample
    return x


def _seeded_anew(model, scheduler, shape, generators):
    again = [torch.Generator().manual_seed(g.initial_seed()) for g in generators]
    return _loop(
        model,
        scheduler,
        shape,
        generators,
        draw=lambda: [g.manual_seed(g.initial_seed()) for g in again],
    )


def _with_noise_of_its_own(model, scheduler, shape, generators):
    x = gaussian.randn(shape, generators)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(model(x, t), t, x, generator=generators).prev_sample + gaussian.randn(shape, generators)
    return x


def _swapped_arguments(model, scheduler, shape, generators):
    x = gaussian.randn(shape, generators)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(x, t, model(x, t), generator=generators).prev_sample
    return x


def _uniform(model, scheduler, shape, generators):
    start = torch.cat([torch.rand((1, *shape[1:]), generator=g) for g in generators])
    return _loop(model, scheduler, shape, generators, start=start)


def _never_assigned(model, scheduler, shape, generators):
    x = gaussian.randn(shape, generators)
    for t in scheduler.timesteps.tolist():
        last = scheduler.step(model(x, t), t, x, generator=generators).prev_sample
    return last


def _of_the_last_x0(model, scheduler, shape, generators):
    x = gaussian.randn(shape, generators)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(model(x, t), t, x, generator=generators).pred_original_sample
    return x


def draw_loop(answer) -> Tensor:
    """Digits by the learner's loop."""
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(16)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    with torch.no_grad():
        made: Tensor = answer(lambda x, t: digits().unet(x, t).sample, scheduler, (4, 1, 16, 16), generators)
    return made


SAMPLE = Exercise(
    id="07.5",
    title="The whole loop",
    difficulty=2,
    minutes=6,
    equation="Ho algorithm 2",
    where="The scheduler",
    lines=4,
    reference=sample,
    inputs=sample_inputs,
    run=value_and_type,
    hints=(
        "Algorithm 2 has one line before its loop and two inside. The scheduler holds the timesteps and the step; you "
        "hold x.",
        "x_T ~ N(0, I), drawn with `gaussian.randn`, which takes a list of generators. Then for every t: "
        "ε = model(x, t), x = the step's `prev_sample`.",
        "`x = gaussian.randn(...)`, `for t in scheduler.timesteps.tolist():`, `x = scheduler.step(...).prev_sample`",
    ),
    mistakes=(
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, steps=s.timesteps.tolist()[::-1]),
            "you visit the timesteps from the smallest up: at t = 0 the network is told that pure noise is clean",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, ask=lambda i, t: i),
            "you told the model the number of the loop (0, 1, 2, …) in the place of t: it does not know how noisy x is",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, ask=lambda i, t: max(s._previous(t), 0)),
            "you asked the model at the timestep that comes next; x is still at t",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, steps=s.timesteps.tolist()[:-1]),
            "you stopped one step early: after the last of the {n} timesteps a noisy x is left",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, steps=s.timesteps.tolist()[:1]),
            "you return after the first of the {n} timesteps: is `return` inside the loop?",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, steps=range(len(s) - 1, -1, -1)),
            "you visit every training step: `scheduler.timesteps` has {n}, and a step goes to the next of them",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, start=torch.zeros(shape)),
            "you started from zeros: x_T is a draw from the standard normal, and almost all the variety comes from it",
        ),
        Mistake(
            _uniform,
            "you started from uniform noise (`rand`): x_T is standard normal",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, draw=lambda: g[0]),
            "you drew the noise of all samples from the first generator: sample i then depends on who shares its batch",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, draw=lambda: None),
            "you did not pass the generators to `scheduler.step`: its noise comes from the global random state, and no "
            "seed gives your images again",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, start=torch.randn(shape)),
            "you drew x_T from the global random state: the generators are there so that a seed gives the same images",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, start=torch.randn(shape, generator=g[0])),
            "you drew x_T of all samples from the first generator: sample i then depends on who shares its batch",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, start=[gaussian.randn(shape, g) for _ in range(2)][1]),
            "you drew from the generators once more than needed before the loop: what comes first is x_T",
        ),
        Mistake(
            _with_noise_of_its_own,
            "you added noise to what the step returned: `scheduler.step` has added σ_t z already, from the generators",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g).clamp(-1, 1),
            "you clipped the result to [-1, 1]: this loop is for any data; whether to clip is the scheduler's choice",
        ),
        Mistake(
            _swapped_arguments,
            "you swapped x and the predicted noise in `scheduler.step`: the model's output comes first, x last",
        ),
        Mistake(
            _seeded_anew,
            "you seeded the generators anew at every step: each step then adds the same noise, and they no longer "
            "average out",
        ),
        Mistake(
            _never_assigned,
            "you do not carry x on: every one of the {n} steps starts from x_T again",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, keep=True),
            "you asked the model about x_T at every step: it has to see the x of the moment",
        ),
        Mistake(
            _of_the_last_x0,
            "you carried on with x̂_0 (`pred_original_sample`): it is a guess of the clean image, not the next x",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g, steps=[t for t in s.timesteps.tolist() if t]),
            "you left out the step from t = 0: it is a timestep like the others, and noise is left there, too",
        ),
        Mistake(
            lambda m, s, shape, g: _loop(m, s, shape, g).double(),
            "your samples are right, but they are float64: x_0 is asked for in float32",
        ),
    ),
    alternatives=(
        sample_one_by_one,
        sample_by_own_steps,
        sample_by_tuple,
        sample_by_while,
        sample_in_float64,
    ),
    picture=lambda answer: side_by_side(draw_loop(answer), draw_loop(sample)),
    rtol=1e-3,
    cases=3,
)


# ---------------------------------------------------------------- the bug clinic


def noise_everywhere(unet, x, t, t_prev, noise):
    a, p = levels(t, t_prev).values()
    x0 = gaussian.x0_from_eps(x, unet(x, t).sample, a).clamp(-1, 1)
    return gaussian.posterior_mean(x, x0, a, p) + (1 - a / p) ** 0.5 * noise


def no_root(unet, x, t, t_prev, noise):
    a, p = levels(t, t_prev).values()
    x0 = gaussian.x0_from_eps(x, unet(x, t).sample, a).clamp(-1, 1)
    return gaussian.posterior_mean(x, x0, a, p) + (1 - a / p) * noise * (t_prev >= 0)


def level_off_by_one(unet, x, t, t_prev, noise):
    a, p = levels(t, t_prev).values()
    x0 = gaussian.x0_from_eps(x, unet(x, t).sample, p).clamp(-1, 1)
    return gaussian.posterior_mean(x, x0, a, p) + (1 - a / p) ** 0.5 * noise * (t_prev >= 0)


def not_reversed(unet, x, t, t_prev, noise):
    a, p = levels(t, t_prev).values()
    x0 = gaussian.x0_from_eps(x, unet(x, 999 - t).sample, a).clamp(-1, 1)
    return gaussian.posterior_mean(x, x0, a, p) + (1 - a / p) ** 0.5 * noise * (t_prev >= 0)


BROKEN = {"A": no_root, "B": not_reversed, "C": noise_everywhere, "D": level_off_by_one}
"""Steps with one bug each, as `step(unet, x_t, t, t_prev, noise)` → x_prev. Guess before you read them."""


EXERCISES = (DDPM_MEAN, REVERSE_VARIANCE, DDPM_STEP, SPACED_TIMESTEPS, SAMPLE)
