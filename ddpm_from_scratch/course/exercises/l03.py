"""Exercises of lesson 03, the reverse process."""

from __future__ import annotations

import torch
from matplotlib import rc_context
from torch import Tensor

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

ALPHA_BAR = schedules.alpha_bars(schedules.linear())

WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1])
CENTRES = torch.tensor([[-1.1, -0.8], [1.2, -0.6], [0.1, 1.4], [0.2, 0.1]])
STDS = torch.tensor([0.12, 0.3, 0.18, 0.08])
"""The mixture of Gaussians in the plane that the lesson samples from."""


def levels(t: int, t_prev: int) -> dict[str, float]:
    """ᾱ at `t` and at the step that comes next, where -1 stands for the clean end."""
    return {
        "alpha_bar_t": float(ALPHA_BAR[t]),
        "alpha_bar_prev": float(ALPHA_BAR[t_prev]) if t_prev >= 0 else 1.0,
    }


# ---------------------------------------------------------------- 03.1


def posterior_variance(alpha_bar_t: float | Tensor, alpha_bar_prev: float | Tensor) -> float | Tensor:
    """The variance of q(x_{t-1} | x_t, x_0).

    alpha_bar_t: ᾱ at t, in [0, 1), a number or a tensor.
    alpha_bar_prev: ᾱ one step earlier, at t-1, greater than alpha_bar_t; 1 at the clean end.
    Returns a number or a tensor, as given.
    """
    beta_t = 1 - alpha_bar_t / alpha_bar_prev
    return (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta_t


def posterior_variance_inputs(generator: torch.Generator, index: int) -> Case:
    """Two steps as numbers, strides of 100 steps as a tensor, and the last step of a sampler."""
    t, t_prev = ((500, 499), (200, 100), (30, 29), (0, -1))[index]
    if index == 1:
        now = torch.randint(200, 900, (4, 1, 1), generator=generator)
        now[0] = t
        return Case({"alpha_bar_t": ALPHA_BAR[now], "alpha_bar_prev": ALPHA_BAR[now - 100]}, {"t": t})
    return Case(levels(t, t_prev), {"t": t})


def posterior_variance_by_precision(alpha_bar_t, alpha_bar_prev):
    alpha = alpha_bar_t / alpha_bar_prev
    return (1 - alpha) * (1 - alpha_bar_prev) / (alpha * (1 - alpha_bar_prev) + 1 - alpha)


def posterior_variance_by_conditioning(alpha_bar_t, alpha_bar_prev):
    covariance = (alpha_bar_t / alpha_bar_prev) ** 0.5 * (1 - alpha_bar_prev)
    return 1 - alpha_bar_prev - covariance**2 / (1 - alpha_bar_t)


def posterior_variance_by_loop(alpha_bar_t, alpha_bar_prev):
    if not isinstance(alpha_bar_t, Tensor):
        return (1 - alpha_bar_prev) * (1 - alpha_bar_t / alpha_bar_prev) / (1 - alpha_bar_t)
    pairs = zip(alpha_bar_t.flatten().tolist(), alpha_bar_prev.flatten().tolist(), strict=True)
    values = [(1 - p) / (1 - a) * (1 - a / p) for a, p in pairs]
    return torch.tensor(values, dtype=alpha_bar_t.dtype).reshape(alpha_bar_t.shape)


def posterior_variance_in_float32(alpha_bar_t, alpha_bar_prev):
    beta_t = 1 - torch.as_tensor(alpha_bar_t) / torch.as_tensor(alpha_bar_prev)
    return (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta_t


def posterior_variance_in_tensors(alpha_bar_t, alpha_bar_prev):
    now, prev = (torch.as_tensor(a, dtype=torch.float64) for a in (alpha_bar_t, alpha_bar_prev))
    return (1 - prev) / (1 - now) * (prev - now) / prev


POSTERIOR_VARIANCE = Exercise(
    id="03.1",
    title="How sure the posterior is",
    difficulty=1,
    minutes=4,
    equation="Ho eq. 7",
    where="The posterior when x_0 is known",
    lines=2,
    reference=posterior_variance,
    inputs=posterior_variance_inputs,
    hints=(
        "Ho eq. 7 has a β_t, which is not an argument. One step multiplies ᾱ by α_t: get α_t from the two levels.",
        "β̃_t = (1-ᾱ_{t-1}) / (1-ᾱ_t) · β_t, and ᾱ_t = α_t ᾱ_{t-1} with α_t = 1-β_t.",
        "`beta_t = 1 - ... / ...`, then a product of a quotient and `beta_t`",
    ),
    mistakes=(
        Mistake(
            lambda a, p: 1 - a / p,
            "you returned β_t itself, the variance of the step forward (t = {t}); knowing x_0 makes the way back more "
            "certain than that",
        ),
        Mistake(
            lambda a, p: (1 - a) / (1 - p) * (1 - a / p),
            "you turned the quotient upside down: your variance is larger than β_t, but knowing x_0 can only make it "
            "smaller (t = {t})",
        ),
        Mistake(
            lambda a, p: 1 - p,
            "you returned 1-ᾱ_prev, the variance of x_prev when only x_0 is known, or took 1-ᾱ_t for β_t: β_t is the "
            "variance of one step, and x_t is known too (t = {t})",
        ),
        Mistake(
            lambda a, p: (1 - p) / (1 - a) * (p - a),
            "you took ᾱ_prev-ᾱ_t for β_t: a step multiplies ᾱ, so it is their quotient that counts (t = {t})",
        ),
        Mistake(
            lambda a, p: ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5,
            "you returned the square root, a standard deviation: the variance is asked for (t = {t})",
        ),
        Mistake(
            lambda a, p: (1 - p) / (1 - a) * (a / p),
            "you multiplied by α_t where the equation has β_t: at t = {t} the result is far too large",
        ),
        Mistake(
            lambda a, p: p / a * (1 - a / p),
            "you divided ᾱ by ᾱ: the quotient is of 1-ᾱ, the variances of the noise (t = {t})",
        ),
        Mistake(
            lambda a, p: (1 - p) / (1 - a) * (1 - p / a),
            "you divided the two levels the wrong way round: ᾱ falls with t, so yours is a negative variance (t = {t})",
        ),
        Mistake(
            lambda a, p: (1 - p) / (1 - a),
            "you left out the factor β_t: the quotient is the share of β_t that remains, near 1 at t = {t}",
        ),
        Mistake(
            lambda a, p: (1 - a) / (1 - p) * (1 - p / a),
            "you swapped the two levels: ᾱ_t is the smaller one, and at the clean end it is ᾱ_prev that is 1 (t = {t})",
        ),
        Mistake(
            lambda a, p: 1 / ((a / p) / (1 - a / p) + 1 / (1 - p)),
            "you computed 1/A as it stands in step 2: right elsewhere, but at the clean end it divides by "
            "1-ᾱ_prev = 0; step 3 brings it to a form that does not",
        ),
        Mistake(
            lambda a, p: (1 - p) * (1 - a / p),
            "you forgot to divide by 1-ᾱ_t (t = {t})",
        ),
    ),
    alternatives=(
        posterior_variance_by_precision,
        posterior_variance_by_conditioning,
        posterior_variance_by_loop,
        posterior_variance_in_float32,
        posterior_variance_in_tensors,
    ),
    package="ddpm_from_scratch.gaussian.posterior_variance",
    rtol=5e-5,
)


# ---------------------------------------------------------------- 03.2


def posterior_mean(x_t: Tensor, x0: Tensor, alpha_bar_t: float | Tensor, alpha_bar_prev: float | Tensor) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0).

    x_t, x0: any shape, the same.
    alpha_bar_t, alpha_bar_prev: ᾱ at t and at t-1, numbers or tensors that broadcast against x_t.
    Returns x_t's shape.
    """
    alpha_t = alpha_bar_t / alpha_bar_prev
    from_x0 = alpha_bar_prev**0.5 * (1 - alpha_t) / (1 - alpha_bar_t) * x0
    from_x_t = alpha_t**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar_t) * x_t
    return from_x0 + from_x_t


def posterior_mean_inputs(generator: torch.Generator, index: int) -> Case:
    """Images, points, the last step, and a batch in which every image has its own levels."""
    shape = ((4, 3, 6, 6), (7, 2), (5,), (2, 1, 5, 5))[index]
    x_t, x0 = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t, t_prev = ((300, 299), (600, 550), (0, -1), (400, 200))[index]
    if index == 3:
        now, prev = (ALPHA_BAR[steps].float().reshape(2, 1, 1, 1) for steps in ([t, 700], [t_prev, 500]))
        return Case({"x_t": x_t, "x0": x0, "alpha_bar_t": now, "alpha_bar_prev": prev}, {"t": t})
    return Case({"x_t": x_t, "x0": x0, **levels(t, t_prev)}, {"t": t})


def posterior_mean_by_conditioning(x_t, x0, a, p):
    covariance = (a / p) ** 0.5 * (1 - p)
    return p**0.5 * x0 + covariance / (1 - a) * (x_t - a**0.5 * x0)


def posterior_mean_in_float64(x_t, x0, a, p):
    beta = 1 - a / p
    mean = (p**0.5 * beta * x0.double() + (1 - beta) ** 0.5 * (1 - p) * x_t.double()) / (1 - a)
    return mean.to(x_t.dtype)


def posterior_mean_by_loop(x_t, x0, a, p):
    now, prev = (torch.as_tensor(c).flatten().tolist() for c in (a, p))
    now, prev = (c * (len(x_t) // len(c)) for c in (now, prev))
    rows = []
    for x, clean, at, before in zip(x_t, x0, now, prev, strict=True):
        alpha = at / before
        rows.append((before**0.5 * (1 - alpha) * clean + alpha**0.5 * (1 - before) * x) / (1 - at))
    return torch.stack(rows)


def posterior_mean_in_place(x_t, x0, a, p):
    mean = x_t.clone()
    mean *= (a / p) ** 0.5 * (1 - p)
    mean += p**0.5 * (1 - a / p) * x0
    mean /= 1 - a
    return mean


def _posterior_mean(x_t, x0, a, p, on_x0=None, on_x_t=None):
    """The posterior mean with another numerator of one coefficient."""
    alpha = a / p
    left = p**0.5 * (1 - alpha) if on_x0 is None else on_x0
    right = alpha**0.5 * (1 - p) if on_x_t is None else on_x_t
    return left / (1 - a) * x0 + right / (1 - a) * x_t


def _share_of_x0(a, p):
    return p**0.5 * (1 - a / p) / (1 - a)


def _share_of_x_t(a, p):
    return (a / p) ** 0.5 * (1 - p) / (1 - a)


def _mean_by_precisions(x_t, x0, a, p):
    alpha = a / p
    precision = alpha / (1 - alpha) + 1 / (1 - p)
    return (alpha**0.5 / (1 - alpha) * x_t + p**0.5 / (1 - p) * x0) / precision


POSTERIOR_MEAN = Exercise(
    id="03.2",
    title="Where it was one step ago",
    difficulty=2,
    minutes=6,
    equation="Ho eq. 7",
    where="The posterior when x_0 is known",
    lines=4,
    reference=posterior_mean,
    inputs=posterior_mean_inputs,
    hints=(
        "Two witnesses are averaged: where x_0 says it should be, and where x_t says it was. Compute one coefficient "
        "each.",
        "μ̃_t = √ᾱ_{t-1} β_t / (1-ᾱ_t) · x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) · x_t, with α_t = ᾱ_t / ᾱ_{t-1}.",
        "`alpha_t = ... / ...`, then `(...) ** 0.5 * (1 - ...) / (1 - alpha_bar_t)` once for x0 and once for x_t",
    ),
    mistakes=(
        Mistake(
            lambda x, c, a, p: _posterior_mean(c, x, a, p),
            "you swapped the two coefficients, or x_t and x_0: one small step (t = {t}) should leave you near x_t, "
            "and x_0 pulls only a little",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x0=p * (1 - a / p)),
            "you left out the square root on ᾱ_prev in front of x_0 (t = {t})",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x_t=a / p * (1 - p)),
            "you left out the square root on α_t in front of x_t (t = {t}): a step shrinks by √α_t",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x_t=a**0.5 * (1 - p)),
            "you used √ᾱ_t where √α_t belongs, in front of x_t: that is the shrinking of all steps, not of one "
            "(t = {t})",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x0=a**0.5 * (1 - a / p)),
            "you used ᾱ_t where ᾱ_prev belongs, in front of x_0: it is x_prev that is looked for (t = {t})",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x_t=(a / p) ** 0.5 * (1 - a)),
            "you used 1-ᾱ_t where 1-ᾱ_prev belongs, in front of x_t: it cancels, and x_t keeps its whole weight "
            "(t = {t})",
        ),
        Mistake(
            lambda x, c, a, p: (1 - a) * _posterior_mean(x, c, a, p),
            "you forgot to divide by 1-ᾱ_t (t = {t}): both coefficients have it below the line",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x0=p**0.5 * (1 - a)),
            "you took 1-ᾱ_t for β_t in front of x_0 (t = {t}): β_t is the variance of one step",
        ),
        Mistake(
            lambda x, c, a, p: p**0.5 * c,
            "you returned √ᾱ_prev x_0, the mean when only x_0 is known: x_t is not used",
        ),
        Mistake(
            lambda x, c, a, p: x / (a / p) ** 0.5,
            "you only undid the shrinking of x_t: x_0 is not used, and noise that was added stays in (t = {t})",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, p, a),
            "you swapped the two levels: ᾱ_t is the smaller one, and at the clean end it is ᾱ_prev that is 1 (t = {t})",
        ),
        Mistake(
            _mean_by_precisions,
            "you computed B/A as it stands in step 2: right elsewhere, but at the clean end it divides by "
            "1-ᾱ_prev = 0; step 4 brings it to a form that does not",
        ),
        Mistake(
            lambda x, c, a, p: c * _share_of_x0(a, p) + (1 - _share_of_x0(a, p)) * x,
            "you let the two coefficients add up to 1 (t = {t}): they do not, since x_prev, x_t and x_0 have different "
            "scales",
        ),
        Mistake(
            lambda x, c, a, p: (1 - _share_of_x_t(a, p)) * c + _share_of_x_t(a, p) * x,
            "you made the coefficient of x_0 what that of x_t leaves of 1 (t = {t}): they do not add up to 1, since "
            "x_prev, x_t and x_0 have different scales",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x0=p * (1 - a / p), on_x_t=a / p * (1 - p)),
            "you left out both square roots, on ᾱ_prev and on α_t (t = {t})",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x_t=(a / p) ** 0.5),
            "you left out 1-ᾱ_prev in front of x_t (t = {t}): at the clean end it makes the coefficient 0",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x0=p**0.5),
            "you left out β_t in front of x_0 (t = {t}): then x_0 pulls far too hard",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, float(a), float(p)),
            "you made one Python number of a level: a level may be a tensor, one for each image, and `math.sqrt` and "
            "`float` take a single number only; `** 0.5` takes the root of both",
        ),
        Mistake(
            lambda x, c, a, p: _posterior_mean(x, c, a, p, on_x0=torch.sqrt(p) * (1 - a / p)),
            "you took the levels for tensors: they may be plain numbers, which `torch.sqrt` refuses; `** 0.5` takes "
            "the root of both",
        ),
    ),
    alternatives=(
        posterior_mean_by_conditioning,
        posterior_mean_in_float64,
        posterior_mean_by_loop,
        posterior_mean_in_place,
    ),
    package="ddpm_from_scratch.gaussian.posterior_mean",
    rtol=1e-4,
)


# ---------------------------------------------------------------- 03.3


def eps_weight(betas: Tensor, variances: Tensor) -> Tensor:
    """The weight of the squared error of ε in the bound, at every timestep (Ho eq. 12).

    betas: shape (T,), each in (0, 1).
    variances: σ_t² of every reverse step, shape (T,), each above 0.
    Returns shape (T,).
    """
    alphas = 1 - betas
    alpha_bars = torch.cumprod(alphas, dim=0)
    return betas**2 / (2 * variances * alphas * (1 - alpha_bars))


def eps_weight_inputs(generator: torch.Generator, index: int) -> Case:
    """The linear schedule, a short one, and random ones, all with variances of their own."""
    betas = (
        schedules.linear(),
        schedules.linear(10, 0.01, 0.3),
        torch.rand(50, generator=generator, dtype=torch.float64) * 0.3 + 0.01,
        torch.rand(7, generator=generator) * 0.8 + 0.1,
    )[index]
    shrink = torch.rand(len(betas), generator=generator, dtype=betas.dtype) * 0.8 + 0.1
    return Case({"betas": betas, "variances": betas * shrink}, {"T": len(betas)})


def eps_weight_by_logarithm(betas, variances):
    log_bars = torch.cumsum(torch.log1p(-betas), 0)
    log_weight = 2 * betas.log() - variances.log() - torch.log1p(-betas) - torch.log(-torch.expm1(log_bars))
    return log_weight.exp() / 2


def eps_weight_by_loop(betas, variances):
    kept, result = 1.0, []
    for beta, variance in zip(betas, variances, strict=True):
        kept = kept * (1 - beta)
        result.append(0.5 * beta * beta / variance / (1 - beta) / (1 - kept))
    return torch.stack(result)


def eps_weight_by_squares(betas, variances):
    gain = betas / ((1 - betas) * (1 - torch.cumprod(1 - betas, 0))).sqrt()
    return (gain / variances.sqrt()) ** 2 / 2


def eps_weight_in_place(betas, variances):
    result = betas.double().square()
    result /= 2 * variances.double()
    result /= 1 - betas.double()
    result /= 1 - torch.cumprod(1 - betas.double(), 0)
    return result.to(betas.dtype)


def _levels(betas):
    return 1 - betas, torch.cumprod(1 - betas, 0)


EPS_WEIGHT = Exercise(
    id="03.3",
    title="What the bound finds important",
    difficulty=2,
    minutes=5,
    equation="Ho eq. 12",
    where="From means to noise",
    lines=3,
    reference=eps_weight,
    inputs=eps_weight_inputs,
    hints=(
        "Put the two means, μ̃_t with the true ε and μ_θ with the predicted one, into Ho eq. 8. What does not cancel is "
        "a factor times the difference of the two ε. Square that factor.",
        "The factor is β_t / (√α_t √(1-ᾱ_t)), and eq. 8 divides its square by 2σ_t².",
        "`alphas = 1 - betas`, the running product of them, then `betas**2 / (...)` with four factors below the line",
    ),
    mistakes=(
        Mistake(
            lambda b, v: 2 * b**2 / (2 * v * (1 - b) * (1 - _levels(b)[1])),
            "you lost the ½ of eq. 8: yours is twice the right weight everywhere",
        ),
        Mistake(
            lambda b, v: b / (2 * v * (1 - b) * (1 - _levels(b)[1])),
            "you forgot to square β_t: the factor in front of ε is squared as a whole",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v.sqrt() * (1 - b) * (1 - _levels(b)[1])),
            "you divided by σ_t where eq. 8 has σ_t²: `variances` holds σ_t² already, no root is needed",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v**2 * (1 - b) * (1 - _levels(b)[1])),
            "you squared `variances`: it holds σ_t², not σ_t",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * _levels(b)[1] * (1 - _levels(b)[1])),
            "you used ᾱ_t where α_t belongs: the factor 1/√α_t in the mean undoes the shrinking of one step",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * (1 - b) * b),
            "you used 1-α_t where 1-ᾱ_t belongs: ε is the noise of all steps up to t, of variance 1-ᾱ_t",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * (1 - _levels(b)[1])),
            "you left α_t out: the whole bracket of eq. 11 is divided by √α_t",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * (1 - b) * (1 - _levels(b)[1]).sqrt()),
            "you kept the root on 1-ᾱ_t: the factor β_t/√(1-ᾱ_t) is squared",
        ),
        Mistake(
            lambda b, v: 1 / (2 * v),
            "you returned the weight of the squared difference of means (eq. 8); that of ε follows from it with eq. 11",
        ),
        Mistake(
            lambda b, v: _levels(b)[1] / (1 - _levels(b)[1]),
            "you returned the signal-to-noise ratio; σ_t² is not used",
        ),
        Mistake(
            lambda b, v: b / (2 * (1 - b) * (1 - _levels(b)[1])),
            "you put σ_t² = β_t: that is one choice, but `variances` says what σ_t² is",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * (1 - b) * (1 - _levels(b)[1])),
            "you left σ_t² out: eq. 8 divides by it",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * (1 - b) * (1 - _levels(b)[1] / (1 - b))),
            "you used the ᾱ of the step before: your first weight divides by 1-1 = 0; ε is the noise of all steps up "
            "to t itself",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * (1 - b).sqrt() * (1 - _levels(b)[1])),
            "you kept the root on α_t: the factor β_t/√α_t is squared",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * (1 - b) * _levels(b)[1]),
            "you used ᾱ_t where 1-ᾱ_t belongs: it is the noise that is divided out, not what is left of x_0",
        ),
        Mistake(
            lambda b, v: b**2 / 2 * v * (1 - b) * (1 - _levels(b)[1]),
            "you multiplied by σ_t², α_t and 1-ᾱ_t: Python divides by the 2 alone, look at your brackets",
        ),
        Mistake(
            lambda b, v: b**2 / (2 * v * ((1 - b) * (1 - _levels(b)[1])).sqrt()),
            "you kept the roots on α_t and 1-ᾱ_t: the factor in front of ε is squared as a whole",
        ),
    ),
    alternatives=(eps_weight_by_logarithm, eps_weight_by_loop, eps_weight_by_squares, eps_weight_in_place),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 03.4


def eps_from_v(x_t: Tensor, v: Tensor, alpha_bar_t: float | Tensor) -> Tensor:
    """The noise ε from x_t and the velocity v.

    x_t, v: any shape, the same.
    alpha_bar_t: in [0, 1), a number or a tensor that broadcasts against x_t. It may be exactly 0.
    Returns x_t's shape, all values finite.
    """
    return (1 - alpha_bar_t) ** 0.5 * x_t + alpha_bar_t**0.5 * v


def eps_from_v_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points at three levels, ᾱ = 0 among them, and a batch with a level for each image, one of them 0."""
    shape = ((3, 3, 6, 6), (6, 2), (5,), (2, 1, 4, 4))[index]
    alpha_bar = (0.3, 0.9, 0.0, torch.tensor([0.7, 0.0]).reshape(2, 1, 1, 1))[index]
    x_t, v = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    level = "one each" if index == 3 else alpha_bar
    return Case({"x_t": x_t, "v": v, "alpha_bar_t": alpha_bar}, {"level": level})


def eps_from_v_through_x0(x_t, v, alpha_bar_t):
    x0 = gaussian.x0_from_v(x_t, v, alpha_bar_t)
    return gaussian.eps_from_x0(x_t, x0, alpha_bar_t)


def eps_from_v_in_float64(x_t, v, alpha_bar_t):
    a = torch.as_tensor(alpha_bar_t).double()
    return ((1 - a).sqrt() * x_t.double() + a.sqrt() * v.double()).to(x_t.dtype)


def eps_from_v_by_rotation(x_t, v, alpha_bar_t):
    angle = torch.acos(torch.as_tensor(alpha_bar_t, dtype=x_t.dtype).sqrt())
    return angle.sin() * x_t + angle.cos() * v


def eps_from_v_by_loop(x_t, v, alpha_bar_t):
    values = torch.as_tensor(alpha_bar_t).flatten().tolist()
    values = values * (len(x_t) // len(values))
    return torch.stack([(1 - a) ** 0.5 * x + a**0.5 * w for x, w, a in zip(x_t, v, values, strict=True)])


EPS_FROM_V = Exercise(
    id="03.4",
    title="From velocity to noise",
    difficulty=2,
    minutes=5,
    equation="Salimans and Ho, appendix D",
    where="Three things to predict",
    lines=1,
    reference=eps_from_v,
    inputs=eps_from_v_inputs,
    hints=(
        "x_t and v are two equations in the two unknowns x_0 and ε. Combine them so that x_0 drops out.",
        "x_t = √ᾱ x_0 + √(1-ᾱ) ε and v = √ᾱ ε - √(1-ᾱ) x_0. Multiply the first by √(1-ᾱ), the second by √ᾱ, and add.",
        "`return (...) ** 0.5 * x_t + (...) ** 0.5 * v`",
    ),
    mistakes=(
        Mistake(
            lambda x, v, a: a**0.5 * x - (1 - a) ** 0.5 * v,
            "you returned x_0: with the combination you took, ε drops out and x_0 stays",
        ),
        Mistake(
            lambda x, v, a: a**0.5 * x + (1 - a) ** 0.5 * v,
            "you swapped the two coefficients: at ᾱ = 0, x_t itself is the noise, so x_t must have the coefficient 1 "
            "there",
        ),
        Mistake(
            lambda x, v, a: (1 - a) ** 0.5 * x - a**0.5 * v,
            "you have a sign wrong (ᾱ = {level}): in v, ε stands with a plus",
        ),
        Mistake(
            lambda x, v, a: (1 - a) * x + a * v,
            "you left out both square roots (ᾱ = {level}): the two coefficients are the sine and cosine of one angle",
        ),
        Mistake(
            lambda x, v, a: (v + (1 - a) ** 0.5 * (a**0.5 * x - (1 - a) ** 0.5 * v)) / a**0.5,
            "you divide by √ᾱ_t: right elsewhere, but 0/0 where ᾱ = 0, at the end of some schedules; there is a way "
            "that never divides",
        ),
        Mistake(
            lambda x, v, a: (v + (1 - a) ** 0.5 * x) / a**0.5,
            "you solved v = √ᾱ ε - √(1-ᾱ) x_0 for ε with x_t in the place of x_0: x_0 is not known",
        ),
        Mistake(
            lambda x, v, a: a**0.5 * v,
            "you used v alone: √ᾱ v is ε less its part along x_t, and x_t holds the rest",
        ),
        Mistake(
            lambda x, v, a: v,
            "you returned v: it is ε only where nothing has been noised yet, at ᾱ = 1",
        ),
        Mistake(
            lambda x, v, a: (x - a**0.5 * v) / (1 - a) ** 0.5,
            "you used v as if it were x_0: that formula is Ho eq. 4 solved for ε, and needs x_0",
        ),
        Mistake(
            lambda x, v, a: a**0.5 * v - (1 - a) ** 0.5 * x,
            "you took the second row of the matrix as it stands (ᾱ = {level}): that row makes v from x_0 and ε. The "
            "way back is the transposed matrix, whose second row is this one's second column",
        ),
        Mistake(
            lambda x, v, a: torch.nan_to_num((v + (1 - a) ** 0.5 * (a**0.5 * x - (1 - a) ** 0.5 * v)) / a**0.5),
            "you divide by √ᾱ_t and cover up the 0/0: at ᾱ = 0 your ε is 0, and x_t itself is the noise there; there "
            "is a way that never divides",
        ),
        Mistake(
            lambda x, v, a: (1 - a) ** 0.5 * (x + v),
            "you gave v the coefficient of x_t (ᾱ = {level}): they are the sine and cosine of one angle",
        ),
        Mistake(
            lambda x, v, a: (1 - a**0.5) * x + a**0.5 * v,
            "you took 1-√ᾱ where √(1-ᾱ) belongs (ᾱ = {level})",
        ),
        Mistake(
            lambda x, v, a: (1 - float(a)) ** 0.5 * x + float(a) ** 0.5 * v,
            "you made one Python number of ᾱ_t: it may be a tensor with a level for each image, and `math.sqrt` and "
            "`float` take a single number only; `** 0.5` takes the root of both",
        ),
        Mistake(
            lambda x, v, a: torch.sqrt(1 - a) * x + torch.sqrt(a) * v,
            "you took ᾱ_t for a tensor: it may be a plain number, which `torch.sqrt` refuses; `** 0.5` takes the root "
            "of both",
        ),
        Mistake(
            lambda x, v, a: x if a == 0 else (v + (1 - a) ** 0.5 * (a**0.5 * x - (1 - a) ** 0.5 * v)) / a**0.5,
            "you treat ᾱ = 0 apart: ᾱ_t may be a tensor with a level for each image, which is no single yes or no; "
            "there is a way that never divides",
        ),
    ),
    alternatives=(eps_from_v_through_x0, eps_from_v_in_float64, eps_from_v_by_rotation, eps_from_v_by_loop),
    package="ddpm_from_scratch.gaussian.eps_from_v",
)


# ---------------------------------------------------------------- 03.5


def mixture_eps(x_t: Tensor, alpha_bar_t: float, weights: Tensor, centres: Tensor, stds: Tensor) -> Tensor:
    """E[ε | x_t] when x_0 comes from a mixture of K round Gaussians in D dimensions.

    x_t: shape (N, D).
    alpha_bar_t: ᾱ at t, in (0, 1).
    weights: w_k, shape (K,), positive, adding up to 1.
    centres: m_k, shape (K, D).
    stds: s_k, shape (K,).
    Returns shape (N, D), finite also for points far from every centre.
    """
    variances = alpha_bar_t * stds**2 + 1 - alpha_bar_t
    away = x_t[:, None] - alpha_bar_t**0.5 * centres
    log_density = -(away**2).sum(dim=-1) / (2 * variances) - centres.shape[1] / 2 * variances.log()
    share = torch.softmax(weights.log() + log_density, dim=1)
    eps_of_each = (1 - alpha_bar_t) ** 0.5 * away / variances[:, None]
    return (share[..., None] * eps_of_each).sum(dim=1)


def mixture_eps_inputs(generator: torch.Generator, index: int) -> Case:
    """The lesson's mixture in the plane, random ones in one, three and two dimensions, and points far from it."""
    t = (200, 400, 100, 300, 29)[index]
    weights, centres, stds = WEIGHTS, CENTRES, STDS
    if index in (1, 2, 3):
        count, dimensions = ((4, 2), (3, 1), (5, 3), (2, 2))[index]
        weights = torch.rand(count, generator=generator) + 0.2
        weights = weights / weights.sum()
        centres = torch.randn(count, dimensions, generator=generator)
        stds = torch.rand(count, generator=generator) * 0.6 + 0.1
    x_t = torch.randn(9 + index, centres.shape[1], generator=generator)
    if index == 4:
        x_t = 5 * x_t / x_t.norm(dim=1, keepdim=True)
        x_t[0] = torch.tensor([-4.0, 3.0])
    args = {"x_t": x_t, "alpha_bar_t": float(ALPHA_BAR[t]), "weights": weights, "centres": centres, "stds": stds}
    return Case(args, {"t": t, "D": centres.shape[1]})


def _mixture(x_t, a, weights, centres, stds, *, shrink=True, v=None, power=None, half=0.5):
    """Shares (N, K) and the ε of each component (N, K, D), with a part of the formula replaced."""
    variances = a * stds**2 + 1 - a if v is None else v
    power = centres.shape[1] / 2 if power is None else power
    away = x_t[:, None] - (a**0.5 if shrink else 1.0) * centres
    log_density = -half * (away**2).sum(-1) / variances - power * variances.log()
    share = torch.softmax(weights.log() + log_density, 1)
    return share, (1 - a) ** 0.5 * away / variances[:, None]


def _weighted(parts):
    share, eps = parts
    return (share[..., None] * eps).sum(1)


def mixture_eps_by_loop(x_t, a, weights, centres, stds):
    logs, answers = [], []
    for weight, centre, std in zip(weights, centres, stds, strict=True):
        variance = a * std**2 + 1 - a
        away = x_t - a**0.5 * centre
        logs.append(weight.log() - x_t.shape[1] / 2 * variance.log() - (away**2).sum(1) / (2 * variance))
        answers.append((1 - a) ** 0.5 * away / variance)
    top = torch.stack(logs).amax(0)
    masses = [(log - top).exp()[:, None] for log in logs]
    return sum(mass * answer for mass, answer in zip(masses, answers, strict=True)) / sum(masses)


def _mixture_by_densities(x_t, a, weights, centres, stds, least=0.0):
    """The right formula with densities in place of their logarithms."""
    total, mean = torch.full_like(x_t[:, :1], least), torch.zeros_like(x_t)
    for weight, centre, std in zip(weights, centres, stds, strict=True):
        variance = a * std**2 + 1 - a
        away = x_t - a**0.5 * centre
        mass = weight * variance ** (-x_t.shape[1] / 2) * torch.exp(-(away**2).sum(1, keepdim=True) / (2 * variance))
        total = total + mass
        mean = mean + mass * (1 - a) ** 0.5 * away / variance
    return mean / total


def mixture_eps_from_the_score(x_t, a, weights, centres, stds):
    with torch.enable_grad():
        x = x_t.detach().clone().requires_grad_(True)
        v = a * stds**2 + 1 - a
        away = ((x[:, None] - a**0.5 * centres) ** 2).sum(-1)
        log_q = torch.logsumexp(weights.log() - away / (2 * v) - x.shape[1] / 2 * v.log(), 1)
        (score,) = torch.autograd.grad(log_q.sum(), x)
    return -((1 - a) ** 0.5) * score


def mixture_eps_through_x0(x_t, a, weights, centres, stds):
    share, eps = _mixture(x_t, a, weights, centres, stds)
    variances = a * stds**2 + 1 - a
    x0 = centres + (a**0.5 * stds**2 / variances)[:, None] * (x_t[:, None] - a**0.5 * centres)
    return gaussian.eps_from_x0(x_t, (share[..., None] * x0).sum(1), a)


def mixture_eps_in_float64(x_t, a, weights, centres, stds):
    wide = [value.double() for value in (weights, centres, stds)]
    return _weighted(_mixture(x_t.double(), a, *wide)).to(x_t.dtype)


def mixture_eps_one_by_one(x_t, a, weights, centres, stds):
    return torch.cat([_weighted(_mixture(point[None], a, weights, centres, stds)) for point in x_t])


def mixture_x0(x_t, a, weights, centres, stds):
    return gaussian.x0_from_eps(x_t, mixture_eps(x_t, a, weights, centres, stds), a)


def mixture_eps_without_responsibilities(x_t, a, weights, centres, stds):
    return (weights[:, None] * _mixture(x_t, a, weights, centres, stds)[1]).sum(1)


def mixture_eps_of_the_nearest(x_t, a, weights, centres, stds):
    share, eps = _mixture(x_t, a, weights, centres, stds)
    return eps[torch.arange(len(x_t)), share.argmax(1)]


def mixture_eps_of_one_gaussian(x_t, a, weights, centres, stds):
    mean = weights @ centres
    spread = weights @ (stds**2 + ((centres - mean) ** 2).mean(1))
    return (1 - a) ** 0.5 * (x_t - a**0.5 * mean) / (a * spread + 1 - a)


def mixture_eps_not_normalised(x_t, a, weights, centres, stds):
    v = a * stds**2 + 1 - a
    away = x_t[:, None] - a**0.5 * centres
    mass = weights * (2 * torch.pi * v) ** (-centres.shape[1] / 2) * torch.exp(-(away**2).sum(-1) / (2 * v))
    return (mass[..., None] * (1 - a) ** 0.5 * away / v[:, None]).sum(1)


def _without_division(x_t, a, weights, centres, stds):
    share, eps = _mixture(x_t, a, weights, centres, stds)
    return share, eps * (a * stds**2 + 1 - a)[:, None]


def _divided_by_the_root(x_t, a, weights, centres, stds):
    share, eps = _mixture(x_t, a, weights, centres, stds)
    return share, eps * (a * stds**2 + 1 - a)[:, None] ** 0.5


def _by_normal_with_variance(x_t, a, weights, centres, stds):
    variances = a * stds**2 + 1 - a
    density = torch.distributions.Normal(a**0.5 * centres, variances[:, None])
    share = torch.softmax(weights.log() + density.log_prob(x_t[:, None]).sum(-1), 1)
    return share, _mixture(x_t, a, weights, centres, stds)[1]


def _softmax_over_points(x_t, a, weights, centres, stds):
    variances = a * stds**2 + 1 - a
    away = x_t[:, None] - a**0.5 * centres
    logs = weights.log() - (away**2).sum(-1) / (2 * variances) - centres.shape[1] / 2 * variances.log()
    return torch.softmax(logs, 0), (1 - a) ** 0.5 * away / variances[:, None]


MIXTURE_EPS = Exercise(
    id="03.5",
    title="The perfect answer for a mixture",
    difficulty=3,
    minutes=10,
    equation="",
    where="A mixture, exactly",
    lines=6,
    reference=mixture_eps,
    inputs=mixture_eps_inputs,
    hints=(
        "Answer first as if you knew the component k: one Gaussian, one line. Then average these K answers with the "
        "probability of each component given x_t.",
        "V_k = ᾱ s_k² + 1-ᾱ. E[ε | x_t, k] = √(1-ᾱ) (x_t - √ᾱ m_k) / V_k. Its probability is proportional to "
        "w_k V_k^(-D/2) exp(-|x_t - √ᾱ m_k|² / (2 V_k)); a softmax of the logarithm makes the K of them add up to 1.",
        "`away = x_t[:, None] - ...` of shape (N, K, D); `share = torch.softmax(..., dim=1)` of shape (N, K); then "
        "`(share[..., None] * ...).sum(dim=1)`",
    ),
    mistakes=(
        Mistake(mixture_x0, "you returned E[x_0 | x_t], the expected clean point; the noise is asked for (t = {t})"),
        Mistake(
            mixture_eps_without_responsibilities,
            "you averaged with the weights w_k: those are the probabilities before x_t was seen. A point next to one "
            "centre most likely came from it",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, torch.ones_like(w), c, s)),
            "you left the weights w_k out of the probabilities: a rare component then counts as much as a frequent one",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, power=0.0)),
            "you left out the normalisation of the Gaussian density, which contains the variance: wide components get "
            "too large a share",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, power=0.5)),
            "you normalised the density as in one dimension: here x_t has {D}, and each gives a factor V_k^(-1/2)",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, v=s**2 + 1 - a)),
            "you did not shrink the components: at t = {t} their variance s_k² is multiplied by ᾱ_t, as everything "
            "clean is",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, shrink=False)),
            "you left the centres where they are in the data: at t = {t} they have moved to √ᾱ_t m_k",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, v=a * s + 1 - a)),
            "you used s_k where its square belongs: `stds` holds standard deviations, and variances add",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, half=1.0)),
            "you lost the ½ in the exponent of the Gaussian density: the shares are too sharp",
        ),
        Mistake(
            mixture_eps_of_the_nearest,
            "you took the answer of the most likely component alone: between two of them the mean lies between "
            "their answers",
        ),
        Mistake(
            lambda x, a, w, c, s: gaussian.score_from_eps(mixture_eps(x, a, w, c, s), a),
            "you returned the score ∇ log q(x_t), which is -1/√(1-ᾱ_t) times what is asked for",
        ),
        Mistake(
            mixture_eps_of_one_gaussian,
            "you replaced the mixture by one Gaussian of its mean and variance: the components are gone",
        ),
        Mistake(
            mixture_eps_not_normalised,
            "you weighted with probability times density, and these do not add up to 1 over the components: divide by "
            "their sum",
        ),
        Mistake(
            _mixture_by_densities,
            "your formula is right, but you computed it with the densities themselves: far from every centre all of "
            "them are too small for float32, and you divide 0 by 0. The text says how to avoid that",
        ),
        Mistake(
            lambda x, a, w, c, s: _mixture_by_densities(x, a, w, c, s, 1e-12),
            "you added a small number to the sum of the densities, so that it is never 0: where the densities are "
            "smaller than that number (t = {t}, points far from every centre) your answer is 0, and it should be large",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, v=torch.full_like(s, 1 - a))),
            "you took 1-ᾱ_t for the variance of a component: that is the noise alone, and the component was wide "
            "before it (t = {t})",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_without_division(x, a, w, c, s)),
            "you left out the division by V_k in E[ε | x_t, k]: with little noise, the offset of x_t is mostly data, "
            "and only the share √(1-ᾱ_t)/V_k of it is ε (t = {t})",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, power=c.shape[1])),
            "you normalised the density with V_k^(-D), where it is V_k^(-D/2): wide components get too small a share",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, power=1.0)),
            "you normalised the density as in the plane, whatever D is: each dimension gives a factor V_k^(-1/2)",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w.exp(), c, s)),
            "you added the weights w_k to the logarithm of the densities: what belongs there is their logarithm",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, c, s, power=-c.shape[1] / 2)),
            "you have the sign of D/2 log V_k wrong: a wide component has a low density, not a high one",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_mixture(x, a, w, a**0.5 * c, s)),
            "you shrank the centres by ᾱ_t: they move to √ᾱ_t m_k, as everything clean does (t = {t})",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_divided_by_the_root(x, a, w, c, s)),
            "you divided by the root of V_k in E[ε | x_t, k] (t = {t}): the gain is a covariance over a variance",
        ),
        Mistake(
            lambda x, a, w, c, s: mixture_eps(x, a, w, c, s) / (1 - a) ** 0.5,
            "you left out √(1-ᾱ_t), the covariance of x_t and ε (t = {t})",
        ),
        Mistake(
            lambda x, a, w, c, s: mixture_eps(x, a, w, c, s) * (1 - a) ** 0.5,
            "you left out the root in E[ε | x_t, k] (t = {t}): 1-ᾱ_t is a variance, and the covariance of x_t and ε is "
            "not that",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_by_normal_with_variance(x, a, w, c, s)),
            "you put V_k where the density has its root, or gave it to PyTorch's `Normal`, which takes a standard "
            "deviation: V_k is the variance of a component",
        ),
        Mistake(
            lambda x, a, w, c, s: _weighted(_softmax_over_points(x, a, w, c, s)),
            "you took the softmax over the points: for each point, the shares of the K components add up to 1",
        ),
    ),
    alternatives=(
        mixture_eps_by_loop,
        mixture_eps_from_the_score,
        mixture_eps_through_x0,
        mixture_eps_in_float64,
        mixture_eps_one_by_one,
    ),
    rtol=1e-3,
    cases=5,
)


# ---------------------------------------------------------------- 03.6


def ancestral_step(x_t: Tensor, eps: Tensor, noise: Tensor, alpha_bar_t: float, alpha_bar_prev: float) -> Tensor:
    """One step back, a draw from q(x_{t-1} | x_t, x̂_0), where x̂_0 is what eps says.

    x_t, eps, noise: any shape, the same; eps is the predicted noise in x_t, noise is standard normal and fresh.
    alpha_bar_t, alpha_bar_prev: ᾱ at t and at t-1; alpha_bar_prev is 1 at the last step.
    Returns x_{t-1}, of x_t's shape.
    """
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t)
    mean = gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)
    return mean + gaussian.posterior_variance(alpha_bar_t, alpha_bar_prev) ** 0.5 * noise


def ancestral_step_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points at an early and a middle step, a stride of several steps, and the last step from t = 19."""
    shape = ((3, 3, 6, 6), (8, 2), (6,), (2, 1, 5, 5))[index]
    t, t_prev = ((500, 499), (200, 199), (600, 550), (19, -1))[index]
    x_t, eps, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    return Case({"x_t": x_t, "eps": eps, "noise": noise, **levels(t, t_prev)}, {"t": t})


def _std(a, p):
    return ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5


def _mean(x_t, x0, a, p):
    return gaussian.posterior_mean(x_t, x0, a, p)


def ancestral_step_by_eq_11(x_t, eps, noise, a, p):
    beta = 1 - a / p
    return (x_t - beta / (1 - a) ** 0.5 * eps) / (1 - beta) ** 0.5 + _std(a, p) * noise


def ancestral_step_in_float64(x_t, eps, noise, a, p):
    return ancestral_step(x_t.double(), eps.double(), noise.double(), a, p).to(x_t.dtype)


def ancestral_step_by_loop(x_t, eps, noise, a, p):
    return torch.stack([ancestral_step(x, e, z, a, p) for x, e, z in zip(x_t, eps, noise, strict=True)])


def ancestral_step_in_place(x_t, eps, noise, a, p):
    x_prev = x_t.clone()
    x_prev -= (1 - a / p) / (1 - a) ** 0.5 * eps
    x_prev /= (a / p) ** 0.5
    x_prev += _std(a, p) * noise
    return x_prev


def ancestral_step_as_ddim(x_t, eps, noise, a, p):
    variance = gaussian.posterior_variance(a, p)
    x0 = gaussian.x0_from_eps(x_t, eps, a)
    return gaussian.ddim_mean(x0, eps, p, variance**0.5) + variance**0.5 * noise


def ancestral_step_in_pieces(x_t, eps, noise, a, p):
    x0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
    return (p**0.5 * (1 - a / p) * x0 + (a / p) ** 0.5 * (1 - p) * x_t) / (1 - a) + _std(a, p) * noise


def sample_mixture(step, count: int = 1000, stride: int = 10) -> Tensor:
    """Points of the lesson's mixture, made by `step` and the exact ε*, in 1000/stride steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=generator)
    visited = [*range(999, -1, -stride), -1]
    for t, t_prev in zip(visited, visited[1:], strict=False):
        a, p = levels(t, t_prev).values()
        eps = mixture_eps(x, a, WEIGHTS, CENTRES, STDS)
        x = step(x, eps, torch.randn(x.shape, generator=generator), a, p)
    return x


def draw_samples(answer):
    """A hundred steps with the learner's function and with the reference, from the same noise."""
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH * 0.8, 3.5, 1, 2, sharey=True)
        for ax, step, title in zip(figure.axes, (answer, ancestral_step), ("yours", "reference"), strict=True):
            plots.draw_points(ax, sample_mixture(step), limit=2.4, title=title)
    return figure


ANCESTRAL_STEP = Exercise(
    id="03.6",
    title="One step back",
    difficulty=2,
    minutes=7,
    equation="Ho eq. 7, 11, 15",
    where="Sampling without a network",
    lines=3,
    reference=ancestral_step,
    inputs=ancestral_step_inputs,
    hints=(
        "Three finished pieces in a row: what ε says about x_0, the mean of the posterior with that x_0, and a draw "
        "around this mean.",
        "x̂_0 from Ho eq. 15, μ̃_t(x_t, x̂_0) and β̃_t from eq. 7; a draw is the mean plus the standard deviation times "
        "`noise`. All three are functions of `gaussian`.",
        "`x0 = gaussian.x0_from_eps(...)`, `mean = gaussian.posterior_mean(...)`, then a draw around it",
    ),
    mistakes=(
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p) + _std(a, p) ** 2 * z,
            lambda at: (
                f"you scaled the noise by the variance β̃_t: at t = {at.t} it is "
                f"{1 / _std(at.alpha_bar_t, at.alpha_bar_prev):.0f} times too small"
            ),
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p),
            "you returned the mean: `noise` is not used, and all samples end up too close to the centres",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p) + (1 - a / p) ** 0.5 * z,
            "you scaled the noise by √β_t: that is another choice that the paper allows, but here the draw is from the "
            "posterior; yours adds noise at the last step too",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, x, a, p) + _std(a, p) * z,
            "you used x_t in the place of x̂_0: `eps` is not used",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, e, a, p) + _std(a, p) * z,
            "you used ε in the place of x̂_0: turn it into x̂_0 first, with eq. 15",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a).clamp(-1, 1), a, p) + _std(a, p) * z,
            "you clipped x̂_0 to [-1, 1]: pixels may be clipped, but this function is for any data, and points of the "
            "plane lie outside",
        ),
        Mistake(
            lambda x, e, z, a, p: p**0.5 * gaussian.x0_from_eps(x, e, a) + (1 - p) ** 0.5 * z,
            "you noised x̂_0 afresh to the level of t-1: that forgets x_t, where one step should stay near it",
        ),
        Mistake(
            lambda x, e, z, a, p: p**0.5 * gaussian.x0_from_eps(x, e, a) + (1 - p) ** 0.5 * e,
            "you took the deterministic step of lesson 08, which uses ε again and no fresh noise",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p) - _std(a, p) * z,
            "you subtracted the noise: as likely a draw, but not the one that `noise` stands for",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, -e, a), a, p) + _std(a, p) * z,
            "you have the sign of ε wrong: the noise is taken out of x_t, not put in once more",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p) + _std(a, p) * torch.randn_like(x),
            "you drew fresh noise and left the argument `noise` unused: no one can repeat your step",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p) + (1 - a / p) ** 0.5 * z * (p < 1),
            "you scaled the noise by √β_t: that is another choice that the paper allows, but here the draw is from the "
            "posterior (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(gaussian.x0_from_eps(x, e, a), x, a, p) + _std(a, p) * z,
            "you gave `posterior_mean` x̂_0 and x_t in the wrong order: one small step (t = {t}) should leave you near "
            "x_t",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, p), a, p) + _std(a, p) * z,
            "you read x̂_0 off with ᾱ_prev: eps is the noise in x_t, whose level is ᾱ_t (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, z, a), a, p) + _std(a, p) * e,
            "you exchanged `eps` and `noise`: eps is what is taken out of x_t, noise is what is added fresh",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), p, a) + _std(a, p) * z,
            "you swapped the two levels in the mean: ᾱ_t is the smaller one, and at the clean end it is ᾱ_prev that is "
            "1 (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p: (
                _posterior_mean(x, gaussian.x0_from_eps(x, e, a), a, p, on_x0=p * (1 - a / p)) + _std(a, p) * z
            ),
            "you left out the square root on ᾱ_prev in front of x̂_0 (t = {t}), as in exercise 03.2",
        ),
        Mistake(
            lambda x, e, z, a, p: (
                _posterior_mean(x, gaussian.x0_from_eps(x, e, a), a, p, on_x_t=a / p * (1 - p)) + _std(a, p) * z
            ),
            "you left out the square root on α_t in front of x_t (t = {t}), as in exercise 03.2",
        ),
        Mistake(
            lambda x, e, z, a, p: gaussian.x0_from_eps(x, e, a) + _std(a, p) * z,
            "you drew around x̂_0 itself (t = {t}): one step goes only to the mean of the posterior, near x_t",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, gaussian.x0_from_eps(x, e, a), a, p) + (1 - p) ** 0.5 * z,
            "you scaled the noise by √(1-ᾱ_prev), all of the noise at the next level (t = {t}): most of it is in the "
            "mean already, as a part of x_t",
        ),
        Mistake(
            lambda x, e, z, a, p: (x - (1 - a / p) / (1 - a) ** 0.5 * e) * (a / p) ** 0.5 + _std(a, p) * z,
            "you multiplied by √α_t where Ho eq. 11 divides (t = {t}): going back undoes the shrinking of the step",
        ),
        Mistake(
            lambda x, e, z, a, p: (x - (1 - a / p) * e) / (a / p) ** 0.5 + _std(a, p) * z,
            "you took β_t ε out of x_t (t = {t}): Ho eq. 11 has β_t/√(1-ᾱ_t) in front of ε",
        ),
        Mistake(
            lambda x, e, z, a, p: (x - (1 - a / p) ** 0.5 * e) / (a / p) ** 0.5 + _std(a, p) * z,
            "you undid the forward step with ε as the noise of one step (t = {t}): ε is the noise of all steps, and a "
            "step has only the share β_t/√(1-ᾱ_t) of it",
        ),
        Mistake(
            lambda x, e, z, a, p: x / (a / p) ** 0.5 - (1 - a / p) / (1 - a) ** 0.5 * e + _std(a, p) * z,
            "you divided x_t alone by √α_t (t = {t}): in Ho eq. 11 the whole bracket is divided",
        ),
        Mistake(
            lambda x, e, z, a, p: (x - (1 - a / p) / (1 - a) * e) / (a / p) ** 0.5 + _std(a, p) * z,
            "you left out the root on 1-ᾱ_t in front of ε (t = {t}): see Ho eq. 11",
        ),
        Mistake(
            lambda x, e, z, a, p: (x - (1 - a / p) / (1 - a) ** 0.5 * e) / a**0.5 + _std(a, p) * z,
            "you divided by √ᾱ_t where Ho eq. 11 has √α_t (t = {t}): that undoes the shrinking of all steps",
        ),
        Mistake(
            lambda x, e, z, a, p: _mean(x, x - (1 - a) ** 0.5 * e, a, p) + _std(a, p) * z,
            "you took the noise out of x_t and did not undo its shrinking (t = {t}): eq. 15 divides by √ᾱ_t",
        ),
        Mistake(
            lambda x, e, z, a, p: x - (1 - a) ** 0.5 * e if p == 1 else ancestral_step(x, e, z, a, p),
            "you took the noise out at the last step and did not undo the shrinking (t = {t}): ᾱ_prev is 1 there, and "
            "the equations hold as at every other step",
        ),
    ),
    alternatives=(
        ancestral_step_by_eq_11,
        ancestral_step_in_float64,
        ancestral_step_by_loop,
        ancestral_step_in_place,
        ancestral_step_as_ddim,
        ancestral_step_in_pieces,
    ),
    picture=draw_samples,
    rtol=1e-4,
)


# ---------------------------------------------------------------- bug clinic: steps with one bug each


def no_noise(x_t, eps, noise, alpha_bar_t, alpha_bar_prev):
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t)
    return gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)


def clipped(x_t, eps, noise, alpha_bar_t, alpha_bar_prev):
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t).clamp(-1, 1)
    mean = gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)
    return mean + gaussian.posterior_variance(alpha_bar_t, alpha_bar_prev) ** 0.5 * noise


def same_noise(x_t, eps, noise, alpha_bar_t, alpha_bar_prev):
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t)
    mean = gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)
    return mean + gaussian.posterior_variance(alpha_bar_t, alpha_bar_prev) ** 0.5 * noise


def wrong_time(x_t, eps, noise, alpha_bar_t, alpha_bar_prev):
    t = int((ALPHA_BAR - alpha_bar_t).abs().argmin())
    mixture = [part.to(x_t.dtype) for part in (WEIGHTS, CENTRES, STDS)]
    eps = mixture_eps(x_t, float(ALPHA_BAR[max(t - 60, 0)]), *mixture)
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t)
    mean = gaussian.posterior_mean(x_t, x0, alpha_bar_t, alpha_bar_prev)
    return mean + gaussian.posterior_variance(alpha_bar_t, alpha_bar_prev) ** 0.5 * noise


BROKEN = {"A": no_noise, "B": clipped, "C": same_noise, "D": wrong_time}


EXERCISES = (POSTERIOR_VARIANCE, POSTERIOR_MEAN, EPS_WEIGHT, EPS_FROM_V, MIXTURE_EPS, ANCESTRAL_STEP)
