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

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


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
            "you squared η: it scales the standard deviation once; right at η = 1 only",
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
    """A long stride at η = 1, a deterministic step, points at η = 0.5, and the last step."""
    shape = ((3, 3, 6, 6), (8, 2), (2, 1, 5, 5), (6,))[index]
    t, t_prev = ((600, 500), (200, 180), (900, 700), (0, -1))[index]
    x_t, eps, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    args = {"x_t": x_t, "eps": eps, "noise": noise, **levels(t, t_prev), "eta": (1.0, 0.0, 0.5, 1.0)[index]}
    return Case(args, {"t": t, "t_prev": t_prev})


def _step(x, e, z, a, p, eta, *, x0=None, scale=None, direction=None, sigma=None):
    """A DDIM step with another part; `direction` is the square of the coefficient of ε."""
    sigma = gaussian.ddim_sigma(a, p, eta) if sigma is None else sigma
    x0 = gaussian.x0_from_eps(x, e, a) if x0 is None else x0
    direction = 1 - p - sigma**2 if direction is None else direction
    return (p**0.5 if scale is None else scale) * x0 + max(direction, 0.0) ** 0.5 * e + sigma * z


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
            "you squared η: σ is η times √β̃, and right at η = 0 and 1 only",
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
            lambda x, e, z, a, p, eta: _step(x, e, torch.randn_like(x), a, p, eta),
            "you drew fresh noise and left the argument `noise` unused: no one can repeat your step",
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
    """The linear and the cosine schedule, and two random ones."""
    betas = (
        schedules.linear(),
        schedules.cosine(50),
        torch.rand(7, generator=generator) * 0.6 + 0.1,
        torch.rand(20, generator=generator, dtype=torch.float64) * 0.3 + 0.05,
    )[index]
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


def spaced_timesteps(T: int, n: int, spacing: str) -> list[int]:
    """The n timesteps that a sampler visits, largest first (Song section 4.2).

    T: number of training steps; timesteps are whole numbers from 0 to T-1.
    n: how many are visited, at least 2 and at most T.
    spacing: "leading", "trailing" or "linspace".
    Returns n whole numbers.
    """
    if spacing == "leading":
        return [i * (T // n) for i in reversed(range(n))]
    if spacing == "trailing":
        return [round(T - i * T / n) - 1 for i in range(n)]
    return [round(i * (T - 1) / (n - 1)) for i in reversed(range(n))]


SPACED_CASES = (
    (1000, 10, "leading"),
    (1000, 7, "trailing"),
    (1000, 30, "linspace"),
    (200, 9, "leading"),
    (1000, 300, "trailing"),
    (100, 8, "linspace"),
)


def spaced_timesteps_inputs(generator: torch.Generator, index: int) -> Case:
    """Even and uneven numbers of steps in all three spacings, none with a tie in its rounding."""
    return Case(dict(zip(("T", "n", "spacing"), SPACED_CASES[index], strict=True)))


def as_table(answer, T, n, spacing):
    """The answer's numbers as a tensor, whatever sequence they came in."""
    found = answer(T, n, spacing)
    if found is None or isinstance(found, Tensor):
        return found
    return torch.as_tensor(np.asarray(list(found)))


def spaced_timesteps_in_numpy(T, n, spacing):
    i = np.arange(n)
    if spacing == "leading":
        return (i[::-1] * (T // n)).tolist()
    if spacing == "trailing":
        return np.round(T - i * (T / n)).astype(int) - 1
    return np.round(np.linspace(0, T - 1, n))[::-1].astype(int).tolist()


def spaced_timesteps_in_torch(T, n, spacing):
    i = torch.arange(n, dtype=torch.float64)
    table = {
        "leading": i.flip(0) * (T // n),
        "trailing": (T - i * T / n).round() - 1,
        "linspace": (i.flip(0) * (T - 1) / (n - 1)).round(),
    }
    return table[spacing].long()


def spaced_timesteps_by_loop(T, n, spacing):
    found: list[int] = []
    for i in range(n):
        if spacing == "leading":
            t = i * (T // n)
        elif spacing == "trailing":
            t = round((i + 1) * T / n) - 1
        else:
            t = round((T - 1) * i / (n - 1))
        found.insert(0, t)
    return found


def spaced_timesteps_by_slices(T, n, spacing):
    if spacing == "leading":
        return range(0, T, T // n)[:n][::-1]
    exact = torch.linspace(T / n, T, n).double() - 1 if spacing == "trailing" else torch.linspace(0, T - 1, n).double()
    return tuple(exact.round().long().flip(0).tolist())


def _spaced(T, n, spacing, *, leading=None, trailing=None, linspace=None):
    right = spaced_timesteps(T, n, spacing)
    other = {"leading": leading, "trailing": trailing, "linspace": linspace}[spacing]
    return right if other is None else [other(i) for i in range(n)]


SPACED_TIMESTEPS = Exercise(
    id="08.4",
    title="Which timesteps to visit",
    difficulty=2,
    minutes=7,
    equation="Song section 4.2",
    where="Subsequences",
    lines=5,
    reference=spaced_timesteps,
    inputs=spaced_timesteps_inputs,
    run=as_table,
    hints=(
        "The three differ in what they make sure of: leading contains 0 and takes strides of one whole length, "
        "trailing contains T-1, linspace contains both.",
        "leading: i · floor(T/n) for i = 0 ... n-1. trailing: round(T - i·T/n) - 1. linspace: round(i·(T-1)/(n-1)). "
        "The largest comes first.",
        "one `return [... for i in range(n)]` per spacing, with `reversed(range(n))` where the formula rises with i",
    ),
    mistakes=(
        Mistake(
            lambda T, n, s: spaced_timesteps(T, n, s)[::-1],
            "you gave the smallest first: a sampler starts in the noise, at the largest t",
        ),
        Mistake(
            lambda T, n, s: spaced_timesteps(T, n, "leading"),
            "you used the leading spacing for all three: `spacing` is not used (here {spacing})",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, leading=lambda i: int((n - 1 - i) * T / n)),
            "you divided T by n without rounding down in the leading spacing: its strides are all of one length "
            "(T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, trailing=lambda i: round(T - i * T / n)),
            "you forgot the -1 in the trailing spacing: it starts at T = {T}, and the table ends at T-1",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, trailing=lambda i: T - 1 - i * (T // n)),
            "you took strides of one whole length in the trailing spacing: T/n is not rounded, each timestep is "
            "(T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, trailing=lambda i: int(T - i * T / n) - 1),
            "you cut the decimals off in the trailing spacing: it rounds to the nearest (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, linspace=lambda i: round((n - 1 - i) * T / n)),
            "you divided into n parts in the linspace spacing: n points from one end to the other have n-1 gaps "
            "(T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, linspace=lambda i: int((n - 1 - i) * (T - 1) / (n - 1))),
            "you cut the decimals off in the linspace spacing: it rounds to the nearest (T = {T}, n = {n})",
        ),
        Mistake(
            lambda T, n, s: _spaced(T, n, s, linspace=lambda i: round((n - 1 - i) * T / (n - 1))),
            "you ended the linspace spacing at T = {T}: the last timestep is T-1",
        ),
        Mistake(
            lambda T, n, s: [*spaced_timesteps(T, n, s), -1],
            "you appended the clean end: that is where the last step goes, but not a timestep that is visited",
        ),
        Mistake(
            lambda T, n, s: [t + 1 for t in spaced_timesteps(T, n, s)],
            "you counted timesteps from 1, as the papers do: in code they go from 0 to T-1",
        ),
    ),
    alternatives=(
        spaced_timesteps_in_numpy,
        spaced_timesteps_in_torch,
        spaced_timesteps_by_loop,
        spaced_timesteps_by_slices,
    ),
    cases=len(SPACED_CASES),
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
    Returns the clean sample, of x_T's shape.
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
    """ε* for data that are +1 and -1 equally often in every element."""
    a = float(ALPHA_BAR[t])
    return gaussian.eps_from_x0(x, torch.tanh(a**0.5 * x / (1 - a)), a)


def one_gaussian(x, t):
    """ε* for data from N(0.5, 0.3²) in every element."""
    a = float(ALPHA_BAR[t])
    return (1 - a) ** 0.5 * (x - a**0.5 * 0.5) / (a * 0.09 + 1 - a)


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


def _level(alpha_bar, t):
    return float(alpha_bar[t]) if t >= 0 else 1.0


def _loop(predict, x, timesteps, alpha_bar, eta, noises, *, previous=None, level=_level, ask=None, noise=None):
    """The loop with another rule for the step moved to, the levels, what the network is asked, or the noise."""
    previous = previous or (lambda i: timesteps[i + 1] if i + 1 < len(timesteps) else -1)
    for i, t in enumerate(timesteps):
        now, before = _level(alpha_bar, t), level(alpha_bar, previous(i))
        eps = predict(x, t) if ask is None else ask(x, i)
        sigma = gaussian.ddim_sigma(now, before, eta)
        x = gaussian.ddim_mean(gaussian.x0_from_eps(x, eps, now), eps, before, sigma)
        x = x + sigma * (noises[i] if noise is None else noise(i))
    return x


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

    timesteps = spaced_timesteps(1000, 10, "trailing")
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH * 0.8, 3.5, 1, 2, sharey=True)
        for ax, sample, title in zip(figure.axes, (answer, ddim_sample), ("yours", "reference"), strict=True):
            made = sample(predict, x_T, timesteps, ALPHA_BAR, 0.0, torch.zeros(10, 1000, 2))
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
            "you went from t to t-1: the step must reach the next entry of `timesteps`, or the noise in x and the t "
            "that you tell the network part",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, previous=lambda i: ts[i] - len(ab) // len(ts)),
            "you went from t to t - T//n: these timesteps are not evenly spaced, the next entry is what counts",
        ),
        Mistake(
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts, ab, eta, z, level=lambda table, t: table[t]),
            "you stepped to a noisier level, and eq. 16 took the root of a negative number: index -1 of a table is its "
            "last entry, the noisiest, while the clean end has ᾱ = 1; and the timesteps run from large to small",
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
            lambda f, x, ts, ab, eta, z: _loop(f, x, ts[:1], ab, eta, z),
            "you returned after the first step: does `return` stand inside the loop?",
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


EXERCISES = (DDIM_SIGMA, DDIM_STEP, BETAS_FROM_SONG, SPACED_TIMESTEPS, CLIPPED_PREDICTION, DDIM_SAMPLE)
