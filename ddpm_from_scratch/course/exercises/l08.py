"""Exercises of lesson 08, DDIM sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from ddpm_from_scratch import DDIMPipeline, gaussian, schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.course.exercises.l03 import CENTRES, STDS, WEIGHTS, levels, mixture_eps
from ddpm_from_scratch.course.exercises.l07 import as_table, spaced_timesteps

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


def in_kind(yours, like):
    """The answer's output; the name of its kind where that is not `like`'s: "float64" or "ndarray"."""
    if isinstance(yours, list | tuple):
        kinds = tuple(in_kind(one, like) for one in yours)
        return next((kind for kind in kinds if isinstance(kind, str)), kinds)
    if isinstance(yours, np.ndarray):
        return "ndarray"
    if isinstance(yours, Tensor) and yours.dtype == torch.float64 != like.dtype:
        return "float64"
    return yours


# ---------------------------------------------------------------- 08.1


def ddim_sigma(alpha_bar_t: float | Tensor, alpha_bar_prev: float | Tensor, eta: float) -> float | Tensor:
    """The standard deviation σ of the noise in one DDIM step.

    alpha_bar_t: ᾱ at t, in (0, 1), a number or a tensor.
    alpha_bar_prev: ᾱ at the step moved to, greater than alpha_bar_t; 1 at the clean end.
    eta: from 0 (no noise) to 1.
    Returns a number or a tensor, as given.
    """
    beta = 1 - alpha_bar_t / alpha_bar_prev
    return eta * ((1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta) ** 0.5


def ddim_sigma_inputs(generator: torch.Generator, index: int) -> Case:
    """One step, strides of 100 steps as a tensor, a stride, and the last step."""
    t, t_prev = ((500, 499), (200, 100), (300, 280), (0, -1))[index]
    eta = (1.0, 0.5, 0.3, 1.0)[index]
    if index == 1:
        now = torch.randint(200, 900, (4, 1, 1), generator=generator)
        now[0] = t
        return Case({"alpha_bar_t": ALPHA_BAR[now], "alpha_bar_prev": ALPHA_BAR[now - 100], "eta": eta}, {"t": t})
    return Case({**levels(t, t_prev), "eta": eta}, {"t": t})


def real_sigma(answer, alpha_bar_t, alpha_bar_prev, eta):
    """The answer's σ; NaN for a complex number, which is what Python makes of the root of a negative one."""
    sigma = answer(alpha_bar_t, alpha_bar_prev, eta)
    if isinstance(sigma, complex):
        return math.nan if sigma.imag else sigma.real
    return sigma


def _posterior(a, p):
    return (1 - p) / (1 - a) * (1 - a / p)


def ddim_sigma_in_two_roots(a, p, eta):
    return eta * ((1 - p) / (1 - a)) ** 0.5 * (1 - a / p) ** 0.5


def ddim_sigma_by_the_posterior(a, p, eta):
    return (eta**2 * gaussian.posterior_variance(a, p)) ** 0.5


def ddim_sigma_in_tensors(a, p, eta):
    now, prev = (torch.as_tensor(c, dtype=torch.float64) for c in (a, p))
    return eta * torch.sqrt((1 - prev) * (prev - now) / (prev * (1 - now)))


def ddim_sigma_by_loop(a, p, eta):
    if not isinstance(a, Tensor):
        return eta * math.sqrt((1 - p) / (1 - a) * (1 - a / p))
    pairs = zip(a.flatten().tolist(), p.flatten().tolist(), strict=True)
    return torch.tensor([eta * math.sqrt(_posterior(x, y)) for x, y in pairs], dtype=a.dtype).reshape(a.shape)


DDIM_SIGMA = Exercise(
    id="08.1",
    title="How much noise a step adds",
    difficulty=1,
    minutes=4,
    equation="Song eq. 16",
    where="One knob for the noise",
    lines=2,
    reference=ddim_sigma,
    inputs=ddim_sigma_inputs,
    run=real_sigma,
    hints=(
        "Two roots, multiplied, and η in front. Both of the paper's α are levels ᾱ here.",
        "σ = η √((1-ᾱ_prev) / (1-ᾱ_t)) √(1 - ᾱ_t/ᾱ_prev). The product under the roots is β̃ of lesson 03.",
        "`beta = 1 - ... / ...`, then `eta * (...) ** 0.5`",
    ),
    mistakes=(
        Mistake(
            lambda a, p, eta: eta * _posterior(a, p),
            "you left out the square root: σ is a standard deviation, what stands under the roots is a variance "
            "(t = {t})",
        ),
        Mistake(
            lambda a, p, eta: eta**2 * _posterior(a, p),
            "you returned σ², the variance: the standard deviation is asked for (t = {t})",
        ),
        Mistake(
            lambda a, p, eta: (eta * _posterior(a, p)) ** 0.5,
            "you took η under the root: it stands in front, so that η = 0.5 halves the standard deviation",
        ),
        Mistake(
            lambda a, p, eta: eta**2 * _posterior(a, p) ** 0.5,
            "you squared η: it scales the standard deviation once; yours is right at η = 0 and 1 only",
        ),
        Mistake(
            lambda a, p, eta: eta * (1 - a / p) ** 0.5,
            "you left out the first root: yours is η√β, the paper's σ̂ at η = 1, which adds noise at the last step too",
        ),
        Mistake(
            lambda a, p, eta: eta * (1 - p) ** 0.5,
            "you used 1-ᾱ_t in the second root: it cancels with the first and √(1-ᾱ_prev) is left, all the noise there "
            "is at the next step (t = {t}); the root holds a quotient of levels",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - a) / (1 - p) * (1 - a / p)) ** 0.5,
            "you turned the first quotient upside down: the noise of the step before belongs above the line; yours "
            "divides by 0 at the last step",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - p) / (1 - a) * (p - a)) ** 0.5,
            "you subtracted the two levels in the second root: a step multiplies ᾱ, so it is their quotient that "
            "counts (t = {t})",
        ),
        Mistake(
            lambda a, p, eta: _posterior(a, p) ** 0.5,
            "you did not use η: yours is DDPM's noise, whatever η is",
        ),
        Mistake(
            lambda a, p, eta: (1 - eta) * _posterior(a, p) ** 0.5,
            "you turned η round: 0 is the deterministic end, and 1 has the most noise",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - p) / (1 - a)) ** 0.5,
            "you left out the second root: without it even the smallest step would add much noise (t = {t})",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - p) / (1 - a)) * (1 - a / p) ** 0.5,
            "you took the root of the second factor only: both stand under a root (t = {t})",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - p) / (1 - a)) ** 0.5 * (1 - a / p),
            "you took the root of the first factor only: both stand under a root (t = {t})",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - p) / (1 - a)) ** 0.5 * (1 - p / a) ** 0.5,
            "you turned the quotient of the two levels upside down: ᾱ_prev is the larger one, so one minus your "
            "quotient is negative and has no real root",
        ),
        Mistake(
            lambda a, p, eta: eta * ((1 - a) / (1 - p)) ** 0.5 * (1 - p / a) ** 0.5,
            "you exchanged the two levels: ᾱ_t comes first and is the smaller one; yours takes the root of a negative "
            "number, and divides by 0 at the last step, where ᾱ_prev is 1",
        ),
    ),
    alternatives=(
        ddim_sigma_in_two_roots,
        ddim_sigma_by_the_posterior,
        ddim_sigma_in_tensors,
        ddim_sigma_by_loop,
    ),
    package="ddpm_from_scratch.gaussian.ddim_sigma",
    rtol=1e-5,
)


# ---------------------------------------------------------------- 08.2


def ddim_step(x_t: Tensor, eps: Tensor, noise: Tensor, alpha_bar_t: float, alpha_bar_prev: float, eta: float) -> Tensor:
    """One DDIM step, from x_t to the step whose level is alpha_bar_prev.

    x_t, eps, noise: any shape, the same; eps is the predicted noise in x_t, noise is standard normal and fresh.
    alpha_bar_t, alpha_bar_prev: ᾱ now and at the step moved to; alpha_bar_prev is 1 at the last step.
    eta: from 0 (deterministic) to 1 (as much noise as DDPM).
    Returns x_t's shape. Nothing is clipped.
    """
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t)
    sigma = gaussian.ddim_sigma(alpha_bar_t, alpha_bar_prev, eta)
    direction = (1 - alpha_bar_prev - sigma**2) ** 0.5 * eps
    return alpha_bar_prev**0.5 * x0 + direction + sigma * noise


def ddim_step_inputs(generator: torch.Generator, index: int) -> Case:
    """A long stride at η = 1, a deterministic step, points at η = 0.5, and the last step from t = 19."""
    shape = ((3, 3, 6, 6), (8, 2), (2, 1, 5, 5), (6,))[index]
    t, t_prev = ((600, 500), (200, 180), (900, 700), (19, -1))[index]
    x_t, eps, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    args = {"x_t": x_t, "eps": eps, "noise": noise, **levels(t, t_prev), "eta": (1.0, 0.0, 0.5, 1.0)[index]}
    return Case(args, {"t": t, "t_prev": t_prev})


def run_step(answer, x_t, eps, noise, alpha_bar_t, alpha_bar_prev, eta):
    """The answer's step, or the name of what it is instead of a tensor of x_t's dtype."""
    return in_kind(answer(x_t, eps, noise, alpha_bar_t, alpha_bar_prev, eta), x_t)


def _sigma(a, p, eta):
    return gaussian.ddim_sigma(a, p, eta)


def _step(x, e, z, a, p, eta, *, x0=None, scale=None, direction=None, sigma=None):
    """A DDIM step with another part; `direction` is the square of the coefficient of ε."""
    sigma = gaussian.ddim_sigma(a, p, eta) if sigma is None else sigma
    x0 = gaussian.x0_from_eps(x, e, a) if x0 is None else x0
    direction = 1 - p - sigma**2 if direction is None else direction
    return (p**0.5 if scale is None else scale) * x0 + max(direction, 0.0) ** 0.5 * e + sigma * z


def _stride_beta_without_a_floor(x, e, z, a, p, eta):
    sigma = eta * (1 - a / p) ** 0.5
    return p**0.5 * gaussian.x0_from_eps(x, e, a) + (1 - p - sigma**2) ** 0.5 * e + sigma * z


def ddim_step_by_the_mean(x_t, eps, noise, a, p, eta):
    sigma = gaussian.ddim_sigma(a, p, eta)
    return gaussian.ddim_mean(gaussian.x0_from_eps(x_t, eps, a), eps, p, sigma) + sigma * noise


def ddim_step_in_float64(x_t, eps, noise, a, p, eta):
    return ddim_step(x_t.double(), eps.double(), noise.double(), a, p, eta).to(x_t.dtype)


def ddim_step_by_loop(x_t, eps, noise, a, p, eta):
    return torch.stack([ddim_step(x, e, z, a, p, eta) for x, e, z in zip(x_t, eps, noise, strict=True)])


def ddim_step_in_place(x_t, eps, noise, a, p, eta):
    x = x_t.clone()
    x -= (1 - a) ** 0.5 * eps
    x *= (p / a) ** 0.5
    x += (1 - p - eta**2 * _posterior(a, p)) ** 0.5 * eps
    x += eta * _posterior(a, p) ** 0.5 * noise
    return x


def ddim_step_by_coefficients(x_t, eps, noise, a, p, eta):
    variance = eta**2 * _posterior(a, p)
    on_eps = (1 - p - variance) ** 0.5 - (p / a) ** 0.5 * (1 - a) ** 0.5
    return (p / a) ** 0.5 * x_t + on_eps * eps + variance**0.5 * noise


def ddim_step_flattened(x_t, eps, noise, a, p, eta):
    return ddim_step(x_t.flatten(), eps.flatten(), noise.flatten(), a, p, eta).reshape(x_t.shape)


DIGITS = (10, 8)
"""Steps and images of the picture that the learner's step makes."""


def draw_digits(answer):
    """Digits made by the shipped network in ten steps, with the learner's step and with the reference."""
    steps, count = DIGITS
    unet = DDIMPipeline.from_pretrained("digits").unet.eval()
    start = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    visited = [*range(900, -1, -1000 // steps), -1]
    rows = []
    for step in (answer, ddim_step):
        x = start
        for t, t_prev in zip(visited, visited[1:], strict=False):
            with torch.no_grad():
                eps = unet(x, t).sample
            now, before = levels(t, t_prev).values()
            x = step(x, eps, torch.zeros_like(x), now, before, 0.0)
        rows.append(x)
    return plots.grid_figure(torch.cat(rows), count, row_labels=["yours", "reference"])


DDIM_STEP = Exercise(
    id="08.2",
    title="One DDIM step",
    difficulty=2,
    minutes=7,
    equation="Song eq. 12",
    where="The sampler",
    lines=4,
    reference=ddim_step,
    inputs=ddim_step_inputs,
    run=run_step,
    hints=(
        "Three terms: the predicted clean image at the level of the step moved to, the same ε once more, and fresh "
        "noise. The variances of the last two add up to all the noise that belongs there.",
        "x_prev = √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ²) ε + σ z, with x̂_0 from Song eq. 9 and σ from eq. 16. Both are functions "
        "of `gaussian`.",
        "`x0 = ...`, `sigma = ...`, `direction = (1 - ... - ...) ** 0.5 * eps`, then the sum of three terms",
    ),
    mistakes=(
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, direction=1 - p),
            lambda at: (
                "you forgot σ² in front of ε: with the fresh noise, the total variance is "
                f"{1 - at.alpha_bar_prev + gaussian.ddim_sigma(at.alpha_bar_t, at.alpha_bar_prev, at.eta) ** 2:.2f} "
                f"where {1 - at.alpha_bar_prev:.2f} belongs (t = {at.t})"
            ),
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, direction=1 - p - gaussian.ddim_sigma(a, p, eta)),
            "you subtracted σ under the root, where variances add up: it is a standard deviation (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, direction=1 - a - gaussian.ddim_sigma(a, p, eta) ** 2),
            "you used ᾱ_t in front of ε: that leaves the noise of t = {t} in, and nothing is denoised",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(
                x, e, z, a, p, eta, direction=1 - a / p - gaussian.ddim_sigma(a, p, eta) ** 2, scale=(a / p) ** 0.5
            ),
            "you read the paper's α as Ho's: Song's α_prev is the level ᾱ_prev, not the share that one step keeps "
            "(t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, x0=gaussian.x0_from_eps(x, e, a / p)),
            "you used the α of one step in x̂_0: eq. 9 takes out all of the noise up to t = {t}, and Song's α is ᾱ",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta**2),
            "you squared η: σ is η times √β̃; yours is right at η = 0 and 1 only",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, 0.0),
            "you always took the deterministic step: `eta` and `noise` are not used (η = {eta} here)",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta) - gaussian.ddim_sigma(a, p, eta) * z,
            "you left the fresh noise out, but made room for it in front of ε: the result has too little noise",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: (
                _step(x, e, z, a, p, eta) + gaussian.ddim_sigma(a, p, eta) * (gaussian.ddim_sigma(a, p, eta) - 1) * z
            ),
            "you scaled the fresh noise by the variance σ² (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, scale=a**0.5),
            "you scaled x̂_0 by √ᾱ_t: the step moves to another level (t = {t} to {t_prev}), which has its own scale",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, scale=p),
            "you left out the square root on ᾱ_prev in front of x̂_0 (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, x0=gaussian.x0_from_eps(x, e, a).clamp(-1, 1)),
            "you clipped x̂_0: pixels may be clipped, but this function is for any data",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, x0=x),
            "you used x_t in the place of x̂_0: the noise has to be taken out first, with eq. 9",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: (
                gaussian.posterior_mean(x, gaussian.x0_from_eps(x, e, a), a, p) + gaussian.ddim_sigma(a, p, eta) * z
            ),
            "you took DDPM's mean and only scaled its noise: with less noise the mean has to change too, or variance "
            "gets lost (η = {eta} here)",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: p**0.5 * gaussian.x0_from_eps(x, e, a) + (1 - p) ** 0.5 * z,
            "you noised x̂_0 afresh: `eps` has to be used again, it is what ties x_prev to x_t",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, sigma=eta * (1 - a / p) ** 0.5),
            "you used η√β for σ: eq. 16 has another root in front, which makes it 0 at the last step",
        ),
        Mistake(
            _stride_beta_without_a_floor,
            "you used η√β for σ, and at the last step nothing but a negative number is left under the root in front of "
            "ε: your result is complex there; eq. 16 has another root in front",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, 1.0),
            "you did not use `eta`: yours adds as much noise as DDPM, whatever η is (η = {eta} here)",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, direction=1 - p + _sigma(a, p, eta) ** 2),
            "you added σ² under the root in front of ε: the fresh noise needs room, yours takes it away (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, direction=((1 - p) ** 0.5 - _sigma(a, p, eta)) ** 2),
            "you subtracted σ from the root in front of ε: variances add up, not standard deviations (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, torch.randn_like(x), a, p, eta),
            "you drew fresh noise and left the argument `noise` unused: no one can repeat your step",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, direction=(1 - p - _sigma(a, p, eta) ** 2) ** 2),
            "you left out the root in front of ε: under it stands a variance, and ε wants a standard deviation "
            "(t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: (
                _step(x, e, z, a, p, eta, sigma=0.0, direction=1 - p - _sigma(a, p, eta) ** 2) + eta * z
            ),
            "you scaled the fresh noise by η alone: it is only a factor of σ (η = {eta} here)",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta) + (eta - 1) * _sigma(a, p, eta) * z,
            "you scaled the fresh noise by η once more: σ holds it already; right at η = 0 and 1 only",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: (
                p**0.5 * gaussian.x0_from_eps(x, e, a)
                + max(1 - p - _sigma(a, p, eta) ** 2, 0.0) ** 0.5 * z
                + _sigma(a, p, eta) * e
            ),
            "you exchanged the last two noises: the direction takes the ε of the network, σ the fresh one (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, z, e, a, p, eta),
            "you took `noise` for `eps` and `eps` for `noise` throughout: what the network found in x_t is `eps`",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: _step(x, e, z, a, p, eta, x0=gaussian.x0_from_eps(x, e, p)),
            "you used ᾱ_prev in x̂_0: the noise is to be taken out of x_t, whose level is ᾱ_t (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: (
                _step(x, e, z, a, p, eta) + max(1 - p - _sigma(a, p, eta) ** 2, 0.0) ** 0.5 * (x - e)
            ),
            "you used x_t in the second term: the direction is that of the noise ε; x_t still holds the image, which "
            "the first term has already (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: ddim_step(x, e, z, a, p, eta).clamp(-1, 1),
            "you clipped the result: x_prev is still noisy, and noise goes beyond [-1, 1] by right (t = {t})",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: ddim_step(x.double(), e.double(), z.double(), a, p, eta),
            "you returned float64 where x_t is float32: the network that gets your x next takes only float32; compute "
            "in float64 if you like, and return x_t's dtype",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: ddim_step(x, e, z, a, p, eta).numpy(),
            "you returned a NumPy array: the network that gets your x next takes a tensor",
        ),
        Mistake(
            lambda x, e, z, a, p, eta: x - (1 - a) ** 0.5 * e if p == 1 else ddim_step(x, e, z, a, p, eta),
            "you took the noise out at the last step and did not undo the shrinking (t = {t}): ᾱ_prev is 1 there, and "
            "eq. 12 holds as at every other step",
        ),
    ),
    alternatives=(
        ddim_step_by_the_mean,
        ddim_step_in_float64,
        ddim_step_by_loop,
        ddim_step_in_place,
        ddim_step_by_coefficients,
        ddim_step_flattened,
    ),
    picture=draw_digits,
    rtol=1e-4,
)


# ---------------------------------------------------------------- 08.3


def betas_from_song(alphas: Tensor) -> Tensor:
    """Ho's β_1 ... β_T from the α_1 ... α_T of the DDIM paper.

    alphas: shape (T,), falling, in (0, 1); the DDIM paper's α_t, and its α_0 is 1.
    Returns shape (T,).
    """
    before = torch.cat([torch.ones_like(alphas[:1]), alphas[:-1]])
    return 1 - alphas / before


def betas_from_song_inputs(generator: torch.Generator, index: int) -> Case:
    """The linear and the cosine schedule, and two random ones, the last with a step that leaves next to nothing."""
    betas = (
        schedules.linear(),
        schedules.cosine(50),
        torch.rand(7, generator=generator) * 0.6 + 0.1,
        torch.rand(20, generator=generator, dtype=torch.float64) * 0.3 + 0.05,
    )[index]
    if index == 3:
        betas[-1] = 0.9995
    alphas = torch.cumprod(1 - betas, 0)
    return Case({"alphas": alphas}, {"T": len(alphas)})


def betas_from_song_by_loop(alphas):
    before, betas = 1.0, []
    for alpha in alphas:
        betas.append(1 - alpha / before)
        before = alpha
    return torch.stack(betas)


def betas_from_song_by_logarithm(alphas):
    log = alphas.double().log()
    return -torch.expm1(torch.diff(log, prepend=log.new_zeros(1))).to(alphas.dtype)


def betas_from_song_in_place(alphas):
    betas = alphas.clone()
    betas[1:] /= alphas[:-1]
    return 1 - betas


def betas_from_song_by_difference(alphas):
    before = torch.nn.functional.pad(alphas[:-1], (1, 0), value=1.0)
    return (before - alphas) / before


def betas_from_song_in_numpy(alphas):
    a = alphas.double().numpy()
    return torch.from_numpy(1 - a / np.concatenate([[1.0], a[:-1]])).to(alphas.dtype)


BETAS_FROM_SONG = Exercise(
    id="08.3",
    title="Out of the notation trap",
    difficulty=2,
    minutes=4,
    equation="Song eq. 4",
    where="The notation trap",
    lines=2,
    reference=betas_from_song,
    inputs=betas_from_song_inputs,
    hints=(
        "Their α_t is our ᾱ_t, the share that is left after all steps up to t. One step multiplies it by 1-β_t.",
        "ᾱ_t = (1-β_t) ᾱ_{t-1}, solved for β_t, with ᾱ_0 = 1 for the first one.",
        "`before = torch.cat([..., alphas[:-1]])`, then one minus a quotient",
    ),
    mistakes=(
        Mistake(
            lambda s: 1 - s,
            "you fell into the trap: 1-α_t is β_t in Ho's notation; here it is 1-ᾱ_t, the noise of all steps together, "
            "and near 1 for most t",
        ),
        Mistake(
            lambda s: 1 - torch.cumprod(s, 0),
            "you multiplied the α up, as one does with Ho's: these are products already",
        ),
        Mistake(
            lambda s: 1 - s / torch.roll(s, 1),
            "you let the first entry wrap round: before the first step nothing is lost, and α_0 is 1",
        ),
        Mistake(
            lambda s: torch.cat([torch.ones_like(s[:1]), s[:-1]]) - s,
            "you subtracted neighbours: a step multiplies, so its loss counts against what was left before it",
        ),
        Mistake(
            lambda s: s / torch.cat([torch.ones_like(s[:1]), s[:-1]]),
            "you returned Ho's α_t, the share that one step keeps: β_t is what it takes away",
        ),
        Mistake(
            lambda s: 1 - s[1:] / s[:-1],
            "you left the first β out: {T} steps have {T} values, and α_0 is 1",
        ),
        Mistake(
            lambda s: 1 - (s / torch.cat([torch.ones_like(s[:1]), s[:-1]])) ** 0.5,
            "you took a square root: the α are shares of variance, no root is needed",
        ),
        Mistake(
            lambda s: 1 - torch.cat([torch.ones_like(s[:1]), s[:-1]]) / s,
            "you divided the wrong way round: α falls with t, so yours are negative",
        ),
        Mistake(
            lambda s: 1 - s**2,
            "you read the α as scales of x_0 and squared them: they stand under a root in eq. 4, and are one step's "
            "business only after a division",
        ),
        Mistake(
            lambda s: 1 - s / torch.cat([s[:1], s[:-1]]),
            "you put α_1 in the place of α_0, so your first β is 0: before the first step nothing is lost, α_0 is 1",
        ),
        Mistake(
            lambda s: 1 - s / torch.cat([torch.zeros_like(s[:1]), s[:-1]]),
            "you put 0 in the place of α_0, and divided by it: the α are shares that are left, and α_0 is the largest",
        ),
        Mistake(
            lambda s: torch.cat([torch.zeros_like(s[:1]), betas_from_song(s)]),
            "you returned a β for α_0 as well, T + 1 values in all: no step leads there, and {T} steps have {T} values",
        ),
        Mistake(
            lambda s: 1 - torch.cat([s[1:], s[-1:]]) / s,
            "you divided the next α by this one: yours is β of the step after t, and the last one has no next",
        ),
        Mistake(
            lambda s: 1 - s / torch.cat([s[1:], torch.ones_like(s[:1])]),
            "you divided by the next α: it is smaller, so yours are negative; β_t is what was lost since the last one",
        ),
        Mistake(
            lambda s: 1 - s[1:] / torch.cat([torch.ones_like(s[:1]), s[:-2]]),
            "you divided by the α two steps before: a β belongs to one step",
        ),
        Mistake(
            lambda s: betas_from_song(s).clamp(max=0.999),
            "you capped the β at 0.999, as in exercise 02.3: there a schedule is made, here one is read",
        ),
    ),
    alternatives=(
        betas_from_song_by_loop,
        betas_from_song_by_logarithm,
        betas_from_song_in_place,
        betas_from_song_by_difference,
        betas_from_song_in_numpy,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 08.4


def quadratic_timesteps(T: int, n: int) -> list[int]:
    """The n timesteps of the quadratic spacing, largest first, none taken twice (Song appendix D.2).

    T: number of training steps; timesteps are whole numbers from 0 to T-1.
    n: how many are visited, from 1 to T.
    The i-th from the clean end, i = 1 ... n, is (T-1)·i²/n², rounded down; where that is not above the timestep found
    before it, it is one more than that. Returns n whole numbers, T-1 the first.
    """
    found: list[int] = []
    for i in range(1, n + 1):
        lowest = found[-1] + 1 if found else 0
        found.append(max((T - 1) * i**2 // n**2, lowest))
    return found[::-1]


QUADRATIC_CASES = ((1000, 10), (1000, 100), (200, 40), (100, 80), (1000, 400), (20, 20))


def quadratic_timesteps_inputs(generator: torch.Generator, index: int) -> Case:
    """Few timesteps, which need no care, many, and all."""
    T, n = QUADRATIC_CASES[index]
    return Case({"T": T, "n": n}, {"repeats": n - len({(T - 1) * i * i // n**2 for i in range(1, n + 1)})})


def quadratic_timesteps_in_numpy(T, n):
    i = np.arange(1, n + 1)
    exact = (T - 1) * i**2 // n**2
    return (np.maximum.accumulate(exact - i) + i)[::-1]


def quadratic_timesteps_in_torch(T, n):
    i = torch.arange(1, n + 1)
    exact = (T - 1) * i.square() // n**2
    return ((exact - i).cummax(0).values + i).flip(0)


def quadratic_timesteps_with_while(T, n):
    found: list[int] = []
    i = 1
    while i <= n:
        t = math.floor((T - 1) * (i / n) ** 2)
        while found and t <= found[0]:
            t += 1
        found.insert(0, t)
        i += 1
    return tuple(found)


def quadratic_timesteps_by_passes(T, n):
    found = [(T - 1) * i * i // (n * n) for i in range(1, n + 1)]
    for i in range(1, n):
        if found[i] <= found[i - 1]:
            found[i] = found[i - 1] + 1
    return sorted(found, reverse=True)


def quadratic_timesteps_by_maxima(T, n):
    exact = [(T - 1) * i * i // (n * n) for i in range(1, n + 1)]
    return [max(exact[j] + i - j for j in range(i + 1)) for i in reversed(range(n))]


def _quadratic(T, n):
    """With repeats, the smallest first."""
    return [(T - 1) * i * i // n**2 for i in range(1, n + 1)]


def _without_repeats(exact):
    """Each at least one more than that before it, the largest first."""
    found: list[int] = []
    for t in exact:
        found.append(max(t, found[-1] + 1) if found else t)
    return found[::-1]


def _lowered(T, n):
    found = [T - 1]
    for t in reversed(_quadratic(T, n)[:-1]):
        found.append(min(t, found[-1] - 1))
    return found


def _raised_by_the_exact_one(T, n):
    exact = _quadratic(T, n)
    return [max(t, before + 1) for t, before in zip(exact, [-1, *exact], strict=False)][::-1]


QUADRATIC_TIMESTEPS = Exercise(
    id="08.4",
    title="Dense at the clean end",
    difficulty=2,
    minutes=6,
    equation="Song appendix D.2",
    where="Subsequences",
    lines=5,
    reference=quadratic_timesteps,
    inputs=quadratic_timesteps_inputs,
    run=as_table,
    hints=(
        "Build the list from the clean end upwards, and look at what you have found before you add the next.",
        "(T-1)·i²/n² rounded down, for i = 1 ... n, or one more than the last one found, whichever is larger. Then "
        "turn the list round.",
        "`found = []`, a loop over `range(1, n + 1)`, `found.append(max(..., ...))`, and the first entry has none "
        "before it",
    ),
    mistakes=(
        Mistake(
            lambda T, n: _quadratic(T, n)[::-1],
            "you left repeats in (T = {T}, n = {n} has {repeats}): a step from t to t goes nowhere, and the scheduler "
            "refuses the list",
        ),
        Mistake(
            lambda T, n: sorted(set(_quadratic(T, n)), reverse=True),
            "you dropped the repeats, so fewer than n = {n} timesteps are left: n are asked for",
        ),
        Mistake(
            lambda T, n: quadratic_timesteps(T, n)[::-1],
            "you gave the smallest first: a sampler starts in the noise, at the largest t",
        ),
        Mistake(
            lambda T, n: _quadratic(T, n),
            "you gave the smallest first and left repeats in: a sampler starts in the noise, and visits no timestep "
            "twice",
        ),
        Mistake(
            _lowered,
            "you took repeats away from the noisy end downwards: at the clean end there is no room below 0, where "
            "yours goes (T = {T}, n = {n})",
        ),
        Mistake(
            _raised_by_the_exact_one,
            "you compared with the neighbour as it was before it was raised: where three fall on one number, two of "
            "them are alike still (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n: _without_repeats([(T - 1) * i // n for i in range(1, n + 1)]),
            "you did not square: yours are evenly spaced in t (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n: _without_repeats([T * i * i // n**2 for i in range(1, n + 1)]),
            "you scaled by T: your largest is {T}, and the table ends at T-1",
        ),
        Mistake(
            lambda T, n: _without_repeats([(T - 1) * i * i // n**2 for i in range(n)]),
            "you counted i from 0 to n-1: the largest timestep must be T-1, where pure noise is",
        ),
        Mistake(
            lambda T, n: _without_repeats([round((T - 1) * i * i / n**2) for i in range(1, n + 1)]),
            "you rounded to the nearest: here it is rounded down (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n: _without_repeats([(T - 1) * i * i / n**2 for i in range(1, n + 1)]),
            "you did not round: a timestep is a whole number, an index into tables (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n: [(T - 1) * i * i / n**2 for i in range(n, 0, -1)],
            "you did not round, and so saw no repeats: a timestep is a whole number, an index (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n: [T - 1 - t for t in quadratic_timesteps(T, n)[::-1]],
            "you made it dense at the noisy end: the small timesteps must lie close together",
        ),
        Mistake(
            lambda T, n: [t + 1 for t in quadratic_timesteps(T, n)],
            "you counted timesteps from 1, as the papers do: in code they go from 0 to T-1",
        ),
        Mistake(
            lambda T, n: [*quadratic_timesteps(T, n), -1],
            "you appended the clean end: that is where the last step goes, but not a timestep that is visited",
        ),
    ),
    alternatives=(
        quadratic_timesteps_in_numpy,
        quadratic_timesteps_in_torch,
        quadratic_timesteps_with_while,
        quadratic_timesteps_by_passes,
        quadratic_timesteps_by_maxima,
    ),
    cases=len(QUADRATIC_CASES),
)


# ---------------------------------------------------------------- 08.5


def clipped_prediction(x_t: Tensor, eps: Tensor, alpha_bar_t: float) -> tuple[Tensor, Tensor]:
    """The predicted clean image, clipped, and the noise that fits it.

    x_t, eps: any shape, the same; eps is the network's prediction.
    alpha_bar_t: ᾱ at t, in (0, 1).
    Returns (x̂_0 clipped to [-1, 1], the ε̂ for which this x̂_0 and x_t fit together), each of x_t's shape.
    """
    x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar_t).clamp(-1, 1)
    return x0, gaussian.eps_from_x0(x_t, x0, alpha_bar_t)


def clipped_prediction_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points whose predictions lie partly outside [-1, 1], from much noise to little."""
    shape = ((2, 3, 6, 6), (9, 2), (3, 1, 5, 5), (12,))[index]
    t = (900, 500, 200, 60)[index]
    level = float(ALPHA_BAR[t])
    x0, noise, error = (torch.randn(shape, generator=generator) for _ in range(3))
    x_t = gaussian.q_sample(0.8 * x0, noise, level)
    return Case({"x_t": x_t, "eps": noise + 0.3 * error, "alpha_bar_t": level}, {"t": t})


def run_prediction(answer, x_t, eps, alpha_bar_t):
    """The answer's pair, with the name of what is no tensor of x_t's dtype."""
    return in_kind(answer(x_t, eps, alpha_bar_t), x_t)


def _x0(x, e, a):
    return gaussian.x0_from_eps(x, e, a)


def clipped_prediction_in_float64(x_t, eps, a):
    x0, found = clipped_prediction(x_t.double(), eps.double(), a)
    return x0.to(x_t.dtype), found.to(x_t.dtype)


def clipped_prediction_by_loop(x_t, eps, a):
    pairs = [clipped_prediction(x, e, a) for x, e in zip(x_t, eps, strict=True)]
    return torch.stack([x0 for x0, _ in pairs]), torch.stack([e for _, e in pairs])


def clipped_prediction_by_difference(x_t, eps, a):
    x0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
    inside = torch.clip(x0, -1, 1)
    return inside, eps + (x0 - inside) * (a / (1 - a)) ** 0.5


def clipped_prediction_in_place(x_t, eps, a):
    x0 = x_t.clone()
    x0.sub_(eps, alpha=(1 - a) ** 0.5).div_(a**0.5).clamp_(-1, 1)
    return [x0, (x_t - a**0.5 * x0) / (1 - a) ** 0.5]


def clipped_prediction_by_masks(x_t, eps, a):
    x0 = _x0(x_t, eps, a)
    outside = x0.abs() > 1
    x0 = torch.where(outside, x0.sign(), x0)
    return x0, torch.where(outside, (x_t - a**0.5 * x0) / (1 - a) ** 0.5, eps)


CLIPPED_PREDICTION = Exercise(
    id="08.5",
    title="Clip, and keep the two in step",
    difficulty=2,
    minutes=5,
    equation="Song eq. 4, 9",
    where="Clipping",
    lines=2,
    reference=clipped_prediction,
    inputs=clipped_prediction_inputs,
    run=run_prediction,
    hints=(
        "x_t is known, so x̂_0 and ε̂ determine each other. Clip the first, then ask which noise belongs to it.",
        "x̂_0 from Song eq. 9, clipped; then eq. 4, x_t = √ᾱ_t x̂_0 + √(1-ᾱ_t) ε̂, solved for ε̂.",
        "`x0 = ...clamp(-1, 1)`, then return it with `gaussian.eps_from_x0(...)`",
    ),
    mistakes=(
        Mistake(
            lambda x, e, a: (_x0(x, e, a).clamp(-1, 1), e),
            "you left ε as the network gave it, or derived it from the unclipped x̂_0: the clipped x̂_0 and this ε "
            "together do not make x_t any more (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a), e),
            "you did not clip: x̂_0 has values outside [-1, 1] (t = {t})",
        ),
        Mistake(
            lambda x, e, a: clipped_prediction(x, e, a)[::-1],
            "you returned the pair in the wrong order: x̂_0 comes first",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e.clamp(-1, 1), a), e.clamp(-1, 1)),
            "you clipped ε: noise may have any size, it is pixels that have a range (t = {t})",
        ),
        Mistake(
            lambda x, e, a: clipped_prediction(x.clamp(-1, 1), e, a),
            "you clipped x_t: a noisy image goes beyond [-1, 1] by right (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a).clamp(0, 1), gaussian.eps_from_x0(x, _x0(x, e, a).clamp(0, 1), a)),
            "you clipped to [0, 1]: the model's pixels run from -1 to 1",
        ),
        Mistake(
            lambda x, e, a: (
                _x0(x, e, a) / _x0(x, e, a).abs().max(),
                gaussian.eps_from_x0(x, _x0(x, e, a) / _x0(x, e, a).abs().max(), a),
            ),
            "you scaled the whole x̂_0 down: clipping changes only the values outside the range",
        ),
        Mistake(
            lambda x, e, a: (
                _x0(x, e, a).clamp(-1, 1),
                (x - _x0(x, e, a).clamp(-1, 1)) / (1 - a) ** 0.5,
            ),
            "you subtracted x̂_0 without its scale: at t = {t} the clean image is in x_t only √ᾱ_t times",
        ),
        Mistake(
            lambda x, e, a: (
                _x0(x, e, a).clamp(-1, 1),
                (x - a**0.5 * _x0(x, e, a).clamp(-1, 1)) / (1 - a),
            ),
            "you divided by 1-ᾱ_t without its square root: the noise comes out too large (t = {t})",
        ),
        Mistake(
            lambda x, e, a: _x0(x, e, a).clamp(-1, 1),
            "you returned x̂_0 alone: the noise that fits it is asked for too",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a).clamp(-1, 1), clipped_prediction(x, e, a)[1].clamp(-1, 1)),
            "you clipped ε̂ as well: noise may have any size, and a clipped one does not fit x_t and x̂_0 (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a), clipped_prediction(x, e, a)[1]),
            "you returned x̂_0 as it was before clipping; your ε̂ belongs to the clipped one (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a).clamp(max=1), gaussian.eps_from_x0(x, _x0(x, e, a).clamp(max=1), a)),
            "you clipped at the upper end only: pixels below -1 are as impossible as pixels above 1 (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a).clamp(min=-1), gaussian.eps_from_x0(x, _x0(x, e, a).clamp(min=-1), a)),
            "you clipped at the lower end only: pixels above 1 are as impossible as pixels below -1 (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (x.clamp(-1, 1), gaussian.eps_from_x0(x, x.clamp(-1, 1), a)),
            "you clipped x_t and took it for x̂_0: the noise has to be taken out first, with eq. 9 (t = {t})",
        ),
        Mistake(
            lambda x, e, a: (_x0(x, e, a).clamp(-1, 1), gaussian.eps_from_x0(x.clamp(-1, 1), _x0(x, e, a), a)),
            "you clipped x_t where ε̂ is made, and x̂_0 not: it is the clipped x̂_0 and the whole x_t that ε̂ has to fit "
            "(t = {t})",
        ),
        Mistake(
            lambda x, e, a: clipped_prediction(x.double(), e.double(), a),
            "you returned float64 where x_t is float32: compute in float64 if you like, and return x_t's dtype",
        ),
        Mistake(
            lambda x, e, a: [one.numpy() for one in clipped_prediction(x, e, a)],
            "you returned NumPy arrays: the sampler that goes on with them needs tensors",
        ),
    ),
    alternatives=(
        clipped_prediction_in_float64,
        clipped_prediction_by_loop,
        clipped_prediction_by_difference,
        clipped_prediction_in_place,
        clipped_prediction_by_masks,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 08.6


def ddim_sample(
    predict: Callable[[Tensor, int], Tensor],
    x_T: Tensor,
    timesteps: list[int],
    alpha_bar: Tensor,
    eta: float,
    noises: Tensor,
) -> Tensor:
    """The DDIM loop: from noise to a clean sample, along any falling list of timesteps.

    predict: predict(x_t, t) gives the noise in x_t, of x_t's shape.
    x_T: the start, any shape.
    timesteps: n whole numbers, falling; the last step goes from the last of them to the clean end, where ᾱ is 1.
    alpha_bar: ᾱ of every timestep, shape (T,).
    eta: from 0 to 1.
    noises: standard normal, shape (n, *x_T.shape); the step from timesteps[i] uses noises[i].
    Returns the clean sample, of x_T's shape and dtype. Nothing is clipped: the data may lie anywhere.
    """
    x, steps = x_T, [*timesteps, -1]
    for i, (t, t_prev) in enumerate(zip(steps, steps[1:], strict=False)):
        now, before = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        eps = predict(x, t)
        x0 = gaussian.x0_from_eps(x, eps, now)
        sigma = gaussian.ddim_sigma(now, before, eta)
        x = gaussian.ddim_mean(x0, eps, before, sigma) + sigma * noises[i]
    return x


def two_values(x, t):
    """ε* for data that are +3 and -3 equally often in every element."""
    a = float(ALPHA_BAR[t])
    return gaussian.eps_from_x0(x, 3 * torch.tanh(3 * a**0.5 * x / (1 - a)), a)


def one_gaussian(x, t):
    """ε* for data from N(2.5, 0.3²) in every element."""
    a = float(ALPHA_BAR[t])
    return (1 - a) ** 0.5 * (x - a**0.5 * 2.5) / (a * 0.09 + 1 - a)


def ddim_sample_inputs(generator: torch.Generator, index: int) -> Case:
    """Uneven lists of timesteps, with and without noise, points and images."""
    shape = ((6, 2), (2, 1, 4, 4), (5,), (3, 2))[index]
    timesteps = ([900, 640, 410, 200, 60], [750, 500, 250, 0], [999, 666, 333], [990, 700, 300, 120, 30, 5])[index]
    noises = torch.randn(len(timesteps), *shape, generator=generator)
    args = {
        "predict": one_gaussian if index % 2 else two_values,
        "x_T": torch.randn(shape, generator=generator),
        "timesteps": timesteps,
        "alpha_bar": ALPHA_BAR,
        "eta": (0.0, 1.0, 0.5, 0.7)[index],
        "noises": noises,
    }
    return Case(args, {"n": len(timesteps)})


def run_loop(answer, predict, x_T, timesteps, alpha_bar, eta, noises):
    """The answer's sample, or what happened in a word; NaN after a step to a noisier level, infinity after one to 0."""
    given = list(timesteps)
    try:
        made = answer(predict, x_T, timesteps, alpha_bar, eta, noises)
    except ZeroDivisionError:
        return torch.full_like(x_T, math.inf)
    except ValueError as error:
        if "ᾱ_prev" not in str(error):
            raise
        made = torch.full_like(x_T, math.nan)
    if timesteps != given:
        return "list changed"
    if isinstance(made, Tensor) and made.is_complex():
        return torch.full_like(x_T, math.nan)
    return in_kind(made, x_T)


def _level(alpha_bar, t):
    return float(alpha_bar[t]) if t >= 0 else 1.0


def _loop(
    predict,
    x,
    timesteps,
    alpha_bar,
    eta,
    noises,
    *,
    previous=None,
    level=_level,
    ask=None,
    noise=None,
    scale=None,
    bend=None,
    mean=None,
):
    """The loop with another rule for the step moved to, levels, what the network is asked, noise, σ, x̂_0 or mean."""
    previous = previous or (lambda i: timesteps[i + 1] if i + 1 < len(timesteps) else -1)
    for i, t in enumerate(timesteps):
        now, before = _level(alpha_bar, t), level(alpha_bar, previous(i))
        eps = predict(x, t) if ask is None else ask(x, i)
        sigma = gaussian.ddim_sigma(now, before, eta) if scale is None else scale(now, before, t)
        x0 = gaussian.x0_from_eps(x, eps, now)
        x0, eps = (x0, eps) if bend is None else bend(x, x0, eps, now)
        x = gaussian.ddim_mean(x0, eps, before, sigma) if mean is None else mean(x, x0, now, before)
        x = x + sigma * (noises[i] if noise is None else noise(i))
    return x


def _beta(alpha_bar, t):
    """β of one training step."""
    return float(1 - alpha_bar[t] / (alpha_bar[t - 1] if t else 1.0))


def _without_room(f, x, ts, ab, eta, z):
    for t, t_prev, noise in zip(ts, [*ts[1:], -1], z, strict=True):
        now, before = _level(ab, t), _level(ab, t_prev)
        x = _step(x, f(x, t), noise, now, before, eta, direction=1 - before)
    return x


def _with_the_callers_list(f, x, ts, ab, eta, z):
    made = ddim_sample(f, x, list(ts), ab, eta, z)
    ts.append(-1)
    return made


def ddim_sample_with_while(predict, x_T, timesteps, alpha_bar, eta, noises):
    x, i = x_T.clone(), 0
    while i < len(timesteps):
        now = alpha_bar[timesteps[i]].item()
        before = alpha_bar[timesteps[i + 1]].item() if i < len(timesteps) - 1 else 1.0
        eps = predict(x, timesteps[i])
        variance = eta**2 * _posterior(now, before)
        x = (before / now) ** 0.5 * (x - (1 - now) ** 0.5 * eps) + max(1 - before - variance, 0) ** 0.5 * eps
        x += variance**0.5 * noises[i]
        i += 1
    return x


def ddim_sample_by_recursion(predict, x_T, timesteps, alpha_bar, eta, noises):
    if not timesteps:
        return x_T
    t, *rest = timesteps
    x = ddim_step(x_T, predict(x_T, t), noises[0], _level(alpha_bar, t), _level(alpha_bar, [*rest, -1][0]), eta)
    return ddim_sample_by_recursion(predict, x, rest, alpha_bar, eta, noises[1:])


def ddim_sample_in_float64(predict, x_T, timesteps, alpha_bar, eta, noises):
    return ddim_sample(predict, x_T.double(), timesteps, alpha_bar, eta, noises.double()).to(x_T.dtype)


def ddim_sample_one_by_one(predict, x_T, timesteps, alpha_bar, eta, noises):
    made = [ddim_sample(predict, x[None], timesteps, alpha_bar, eta, noises[:, i : i + 1]) for i, x in enumerate(x_T)]
    return torch.cat(made)


def ddim_sample_with_a_padded_table(predict, x_T, timesteps, alpha_bar, eta, noises):
    table = torch.cat([alpha_bar, torch.ones(1, dtype=alpha_bar.dtype)])  # so that index -1 is the clean end
    x = x_T
    for t, t_prev, z in zip(timesteps, [*timesteps[1:], -1], noises, strict=True):
        x = ddim_step(x, predict(x, t), z, float(table[t]), float(table[t_prev]), eta)
    return x


def draw_mixture_in_ten_steps(answer):
    """Ten steps of the learner's loop and of the reference's on lesson 03's mixture, from the same noise."""
    x_T = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))

    def predict(x, t):
        return mixture_eps(x, float(ALPHA_BAR[t]), WEIGHTS, CENTRES, STDS)

    timesteps = spaced_timesteps(10, 1000, "trailing")
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH * 0.8, 3.5, 1, 2, sharey=True)
        for ax, sample, title in zip(figure.axes, (answer, ddim_sample), ("yours", "reference"), strict=True):
            made = sample(predict, x_T, list(timesteps), ALPHA_BAR, 0.0, torch.zeros(10, 1000, 2))
            plots.draw_points(ax, made, limit=2.4, title=title)
    return figure


DDIM_SAMPLE = Exercise(
    id="08.6",
    title="The whole sampler",
    difficulty=3,
    minutes=9,
    equation="Song eq. 12",
    where="The loop",
    lines=8,
    reference=ddim_sample,
    inputs=ddim_sample_inputs,
    run=run_loop,
    hints=(
        "Walk through the list in pairs: where you are, and where the list says you go next. After the last entry "
        "comes the clean end.",
        "For each pair (t, t_prev): ε = predict(x, t), x̂_0 by eq. 9, σ by eq. 16, the step by eq. 12. ᾱ of t_prev is 1 "
        "at the clean end, which no index of the table gives.",
        "`steps = [*timesteps, -1]`, `for i, (t, t_prev) in enumerate(zip(steps, steps[1:])):`, two levels, then the "
        "step of exercise 08.2 with noises[i]",
    ),
    mistakes=(
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, previous=lambda i: ts[i] - 1),
            "you went from t to t-1: the step must reach the next entry of `timesteps`, or x holds the noise of "
            "another timestep than the one that you tell the network",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, previous=lambda i: ts[i] - len(ab) // len(ts)),
            "you went from t to t - T//n: these timesteps are not evenly spaced, the next entry is what counts",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, level=lambda table, t: table[t]),
            "you stepped to a noisier level, and eq. 16 took the root of a negative number: either index -1 is in "
            "play, a table's last entry and the noisiest, while the clean end has ᾱ = 1, or you walk the list upwards, "
            "while the timesteps run from large to small",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, level=lambda table, t: float(table[max(t, 0)])),
            "you ended at timestep 0: that still has a little noise, and the clean end has ᾱ = 1",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts[:-1], ab, eta, z, previous=lambda i: ts[i + 1]),
            "you left out the last step: the sample still has the noise of the last timestep",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, ask=lambda y, i: f(y, len(ts) - 1 - i)),
            "you told the network the number of the step: it knows only the timesteps it was trained with",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, ask=lambda y, i: f(y, [*ts[1:], 0][i])),
            "you asked the network at the timestep moved to: x still has the noise of t",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, ask=lambda y, i: f(x, ts[i])),
            "you asked the network about x_T in every step: it has to see the current x",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, noise=lambda i: z[0]),
            "you added the same noise in every step: `noises` has one for each",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, noise=lambda i: z[len(ts) - 1 - i]),
            "you used the noises from the last to the first: the step from timesteps[i] uses noises[i]",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, 0.0, z),
            "you did not use η: yours is the deterministic sampler, whatever η is",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, 1.0, z),
            "you did not use η: yours adds as much noise as DDPM, whatever η is",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts[:1], ab, eta, z, previous=lambda i: ts[1]),
            "you returned after the first step: does `return` stand inside the loop?",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts[:1], ab, eta, z),
            "you went from the first timestep to the clean end in one step: the other timesteps are to be visited too",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(
                f, x, ts, ab, eta, z, previous=lambda i: ts[i] - 1, level=lambda table, t: table[t]
            ),
            "you went from t to t-1, and read the table at index -1 where t is 0: the step must reach the next entry "
            "of `timesteps`, and the clean end has ᾱ = 1",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, ask=lambda y, i: f(y, i)),
            "you told the network the place in the list, 0, 1, 2, ...: it knows only the timesteps it was trained with",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, ask=lambda y, i: f(y, ts[i] + 1)),
            "you told the network t + 1: `timesteps` counts as the network does, from 0",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, ask=lambda y, i: f(y, ts[i] - 1)),
            "you told the network t - 1: x has the noise of t, and `timesteps` counts as the network does",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, noise=lambda i: z[i - 1]),
            "you used noises[i-1]: the step from timesteps[i] uses noises[i]; does your loop count from 1 there?",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, mean=gaussian.posterior_mean),
            "you took DDPM's mean and only scaled its noise: with less noise the mean has to change too, or variance "
            "gets lost; right at η = 1 only",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts[-1:], ab, eta, z[-1:]),
            "you do not carry x on: every step starts from x_T again, and only the last one is left",
        ),
        Mistake(
            _without_room,
            lambda at: (
                f"you made no room for the fresh noise in front of ε: with η = {at.eta} the variances of the two add "
                "up to more than belongs at the step moved to"
            ),
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(
                f, x, ts, ab, eta, z, scale=lambda now, before, t: eta * _beta(ab, t) ** 0.5
            ),
            "you used β_t of one training step in σ: your stride is longer, and its noise follows from the levels at "
            "its two ends",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(
                f, x, ts, ab, eta, z, scale=lambda now, before, t: eta * (1 - now / before) ** 0.5
            ),
            "you used η σ̂, the root of the stride's β: eq. 16 has another root in front, which ends with σ = 0",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta**2, z),
            "you squared η: it scales the standard deviation once; right at η = 0 and 1 only",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, level=lambda table, t: float(table[t]) * (t >= 0)),
            "you gave the clean end the level 0, and divided by it: ᾱ is the share of the image that is left, so "
            "the clean end has the largest of all",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, bend=lambda y, x0, e, a: (x0.clamp(-1, 1), e)),
            "you clipped x̂_0 to [-1, 1] in every step: pixels have that range, but this loop is for any data",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(
                f,
                x,
                ts,
                ab,
                eta,
                z,
                bend=lambda y, x0, e, a: (x0.clamp(-1, 1), gaussian.eps_from_x0(y, x0.clamp(-1, 1), a)),
            ),
            "you clipped x̂_0 to [-1, 1] in every step and derived ε anew: a good way for pixels, but this loop is for "
            "any data",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, bend=lambda y, x0, e, a: (x0.clamp(-2, 2), e)),
            "you clipped x̂_0 to [-2, 2] in every step: nothing says that the data stay inside",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: ddim_sample(f, x, ts, ab, eta, z).clamp(-1, 1),
            "you clipped the result to [-1, 1]: what lies outside belongs to the data here",
        ),
        Mistake(
            _with_the_callers_list,
            "you changed the list `timesteps`, which belongs to the caller: the next one who uses it visits other "
            "timesteps; make a list of your own",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: ddim_sample(f, x.double(), ts, ab, eta, z.double()),
            "you returned float64 where x_T is float32: compute in float64 if you like, and return x_T's dtype",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: ddim_sample(f, x, ts, ab, eta, z).numpy(),
            "you returned a NumPy array: a tensor went in, and a tensor is asked for",
        ),
    ),
    alternatives=(
        ddim_sample_with_while,
        ddim_sample_by_recursion,
        ddim_sample_in_float64,
        ddim_sample_one_by_one,
        ddim_sample_with_a_padded_table,
    ),
    picture=draw_mixture_in_ten_steps,
    rtol=1e-3,
)


# ---------------------------------------------------------------- the four patients of the lesson


def to_the_neighbour(x_t, eps, noise, t, t_prev, eta):
    now, before = levels(t, t - 1).values()
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta)
    return gaussian.ddim_mean(x0, eps, before, sigma) + sigma * noise


def old_noise_kept(x_t, eps, noise, t, t_prev, eta):
    now, before = levels(t, t_prev).values()
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta)
    return before**0.5 * x0 + (1 - now - sigma**2) ** 0.5 * eps + sigma * noise


def level_of_minus_one(x_t, eps, noise, t, t_prev, eta):
    now, before = ALPHA_BAR[t], ALPHA_BAR[t_prev]
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = eta * torch.as_tensor(gaussian.posterior_variance(now, before)).clamp(min=0) ** 0.5
    return gaussian.ddim_mean(x0, eps, before, sigma) + sigma * noise


def eta_squared(x_t, eps, noise, t, t_prev, eta):
    now, before = levels(t, t_prev).values()
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta**2)
    return gaussian.ddim_mean(x0, eps, before, sigma) + sigma * noise


BROKEN = {"A": to_the_neighbour, "B": old_noise_kept, "C": level_of_minus_one, "D": eta_squared}
"""A step each with one bug: called as (x_t, ε, noise, t, t_prev, η)."""


EXERCISES = (DDIM_SIGMA, DDIM_STEP, BETAS_FROM_SONG, QUADRATIC_TIMESTEPS, CLIPPED_PREDICTION, DDIM_SAMPLE)
