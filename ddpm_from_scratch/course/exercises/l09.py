"""Exercises of lesson 09, the latent space."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from ddpm_from_scratch import DDIMPipeline, DDIMScheduler, gaussian, schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


def level(t: int) -> float:
    """ᾱ at `t`, where -1 stands for the clean end."""
    return float(ALPHA_BAR[t]) if t >= 0 else 1.0


# ---------------------------------------------------------------- 09.1


def ode_step(x: Tensor, eps: Tensor, alpha_bar_from: float, alpha_bar_to: float) -> Tensor:
    """One Euler step of the ODE of DDIM, in either direction (Song eq. 13, 14).

    x, eps: any shape, the same; eps is what the network says at x.
    alpha_bar_from, alpha_bar_to: ᾱ now and at the step moved to, in (0, 1]; which is larger says the direction.
    Returns x at the step moved to, of x's shape.
    """
    sigma_from = ((1 - alpha_bar_from) / alpha_bar_from) ** 0.5
    sigma_to = ((1 - alpha_bar_to) / alpha_bar_to) ** 0.5
    x_bar = x / alpha_bar_from**0.5 + (sigma_to - sigma_from) * eps
    return alpha_bar_to**0.5 * x_bar


def ode_step_inputs(generator: torch.Generator, index: int) -> Case:
    """A decoding and an encoding step, the last step of decoding, the first of encoding."""
    shape = ((3, 1, 6, 6), (8, 2), (2, 3, 4, 4), (7,))[index]
    t, t_to = ((700, 600), (200, 300), (40, -1), (-1, 30))[index]
    x, eps = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return Case({"x": x, "eps": eps, "alpha_bar_from": level(t), "alpha_bar_to": level(t_to)}, {"t": t, "t_to": t_to})


def ode_step_as_ddim(x, eps, a, b):
    return gaussian.ddim_mean(gaussian.x0_from_eps(x, eps, a), eps, b)


def ode_step_in_float64(x, eps, a, b):
    return ode_step(x.double(), eps.double(), a, b).to(x.dtype)


def ode_step_by_loop(x, eps, a, b):
    return torch.stack([ode_step(one, noise, a, b) for one, noise in zip(x, eps, strict=True)])


def ode_step_in_place(x, eps, a, b):
    moved = x.clone()
    moved /= a**0.5
    moved += (_sigma(b) - _sigma(a)) * eps
    return moved.mul_(b**0.5)


def ode_step_by_two_factors(x, eps, a, b):
    return (b / a) ** 0.5 * x + ((1 - b) ** 0.5 - (b / a * (1 - a)) ** 0.5) * eps


def _sigma(a):
    return ((1 - a) / a) ** 0.5


ODE_STEP = Exercise(
    id="09.1",
    title="DDIM as an Euler step",
    difficulty=1,
    minutes=5,
    equation="Song eq. 13",
    where="DDIM is an ODE in disguise",
    lines=4,
    reference=ode_step,
    inputs=ode_step_inputs,
    hints=(
        "Three moves: go over to x̄, take the straight step that the slope ε says, come back to x.",
        "x̄ = x/√ᾱ, σ = √((1-ᾱ)/ᾱ), x̄_to = x̄ + (σ_to - σ_from) ε, and x_to = √ᾱ_to x̄_to.",
        "`sigma_from = (...) ** 0.5`, `sigma_to = ...`, `x_bar = x / ... + (...) * eps`, then scale it back",
    ),
    mistakes=(
        Mistake(
            lambda x, e, a, b: x / a**0.5 + (_sigma(b) - _sigma(a)) * e,
            "you returned x̄: it has to be scaled back to x at the level moved to (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x + (_sigma(b) - _sigma(a)) * e),
            "you stepped from x where the equation steps from x̄: x is shrunk by √ᾱ_from at t = {t}, and x̄ is not",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + (_sigma(a) - _sigma(b)) * e),
            "you took σ_from - σ_to: with this sign a decoding step puts noise in (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: a**0.5 * (x / a**0.5 + (_sigma(b) - _sigma(a)) * e),
            "you scaled back with √ᾱ_from: x̄ was left at the level moved to, t = {t_to}",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + (_sigma(b) ** 2 - _sigma(a) ** 2) * e),
            "you stepped in σ² = (1-ᾱ)/ᾱ: the time of this ODE is its square root (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + ((1 - b) ** 0.5 - (1 - a) ** 0.5) * e),
            "you took √(1-ᾱ) for σ: that is the noise in x, and x̄ has it divided by √ᾱ (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b * (x / a + (_sigma(b) - _sigma(a)) * e),
            "you scaled by ᾱ where its square root belongs (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * x / a**0.5 + (_sigma(b) - _sigma(a)) * e,
            "you scaled x back and left the step in ε as it is for x̄: both belong to x̄ (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: x + (_sigma(b) - _sigma(a)) * e,
            "you took the Euler step on x itself: the ODE is for x̄ (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: gaussian.ddim_mean(gaussian.x0_from_eps(x, e, a).clamp(-1, 1), e, b),
            "you clipped x̂_0: a clipped step has no inverse, and it is no step of the ODE (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: (x - (1 - a) ** 0.5 * e) / a**0.5,
            "you went all the way to x̂_0: the step ends at t = {t_to}",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + _sigma(b) * e),
            "you added σ_to ε and did not take σ_from ε out: the noise that is already in x̄ counts (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: (b / a) ** 0.5 * (x + (_sigma(b) - _sigma(a)) * e),
            "you divided the step in ε by √ᾱ_from too: x alone becomes x̄ in that way, σ is on the scale of x̄ already "
            "(t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: gaussian.q_sample(x, e, b),
            "you took x for the clean image and noised it: at t = {t} it holds noise already",
        ),
        Mistake(
            lambda x, e, a, b: ode_step(x, e, b, a),
            "you swapped the two levels: x is at t = {t} and has to go to t = {t_to}",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x * a**0.5 + (_sigma(b) - _sigma(a)) * e),
            "you multiplied x by √ᾱ_from: that shrinks it once more, and x̄ is x with the shrinking undone (t = {t})",
        ),
        Mistake(
            lambda x, e, a, b: (x / a**0.5 + (_sigma(b) - _sigma(a)) * e) / b**0.5,
            "you divided by √ᾱ_to at the end: x̄ is x divided by it, so the way back is the other one (t = {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + (_sigma(b) + _sigma(a)) * e),
            "you added the two σ, or put into x̂_0 the noise that has to be taken out of it: the step in ε is as long "
            "as the difference of the two (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + ((1 - b) ** 0.5 / b - (1 - a) ** 0.5 / a) * e),
            "you took the root of 1 - ᾱ alone in σ: ᾱ below it is under the root too (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + (1 / _sigma(b) - 1 / _sigma(a)) * e),
            "you turned the fraction in σ over: signal over noise has no value at ᾱ = 1, and σ is noise over signal",
        ),
        Mistake(
            lambda x, e, a, b: (b / a) ** 0.5 * x,
            "you took no step: ε is not used, or both σ are 0, as 1 - ᾱ/ᾱ is without brackets (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 - _sigma(a) * e),
            "you took the noise out and put none in: at t = {t_to} x holds the noise √(1-ᾱ_to) ε",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 - abs(_sigma(b) - _sigma(a)) * e),
            "you took the size of the step: its sign says whether noise goes out or in (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + abs(_sigma(b) - _sigma(a)) * e),
            "you took the size of the step and always put noise in: where x becomes cleaner, σ becomes smaller "
            "(t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + (b - a) * e),
            "you stepped by the difference of the two ᾱ: the time of this ODE is σ (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x / a**0.5 + (b**-0.5 - a**-0.5) * e),
            "you took √(1/ᾱ) for σ: the 1 - ᾱ above the line is missing (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: (b / a) ** 0.5 * x + abs(1 - b / a) ** 0.5 * e,
            "you took the root of the difference of the two σ² for the step, which is how the forward process adds "
            "fresh noise: ε is in x already, and the step is the difference of the two σ (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x - (1 - a) * e) / a**0.5 + (1 - b) ** 0.5 * e,
            "you left the root out of √(1-ᾱ_from), where the noise is taken out of x (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) * e,
            "you left the root out of √(1-ᾱ_to), where the noise is put in again (t = {t} → {t_to})",
        ),
        Mistake(
            lambda x, e, a, b: ode_step(x, e, a, b).clamp(-1, 1),
            "you clipped the result: x holds noise, which goes beyond [-1, 1] (t = {t} → {t_to})",
        ),
    ),
    alternatives=(
        ode_step_as_ddim,
        ode_step_in_float64,
        ode_step_by_loop,
        ode_step_in_place,
        ode_step_by_two_factors,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 09.2


def encode(model: Callable[[Tensor, int], Tensor], x0: Tensor, timesteps: list[int], alpha_bar: Tensor) -> Tensor:
    """From an image to its noise: the deterministic sampler backwards.

    model: model(x, t) gives the predicted noise, of x's shape.
    x0: clean data, (B, ...).
    timesteps: those that decoding visits, largest first.
    alpha_bar: ᾱ of every timestep, shape (T,).
    Returns x at timesteps[0]. A step asks the model at the x and t that it starts from; the clean image has no t, so
    the first step asks at the smallest timestep.
    """
    x, now, t_now = x0, 1.0, timesteps[-1]
    for t in reversed(timesteps):
        eps = model(x, t_now)
        x0_hat = gaussian.x0_from_eps(x, eps, now)
        now, t_now = float(alpha_bar[t]), t
        x = gaussian.ddim_mean(x0_hat, eps, now)
    return x


def encode_inputs(generator: torch.Generator, index: int) -> Case:
    """A few uneven timesteps, with a model that depends on t and on x."""
    shape = ((2, 1, 4, 4), (5, 2), (3, 1, 3, 3))[index]
    timesteps = ([900, 500, 200, 30], [799, 599, 399, 199], [600, 350, 300, 100, 9])[index]
    x0 = torch.randn(shape, generator=generator) * 0.5

    def model(x: Tensor, t: int) -> Tensor:
        a = float(ALPHA_BAR[t])
        return (1 - a) ** 0.5 * (x - 0.2 * a**0.5) / (0.3 * a + 1 - a)

    args = {"model": model, "x0": x0, "timesteps": timesteps, "alpha_bar": ALPHA_BAR}
    return Case(args, {"first": timesteps[-1], "last": timesteps[0], "n": len(timesteps)})


def encode_by_the_package(model, x0, timesteps, alpha_bar):
    from ddpm_from_scratch import ddim_invert

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(timesteps=timesteps)
    return ddim_invert(model, x0, scheduler)


def encode_by_euler(model, x0, timesteps, alpha_bar):
    levels = [1.0, *(float(alpha_bar[t]) for t in timesteps[::-1])]
    asked = [timesteps[-1], *timesteps[::-1][:-1]]
    x = x0
    for t, a, b in zip(asked, levels, levels[1:], strict=False):
        x = ode_step(x, model(x, t), a, b)
    return x


def encode_in_x_bar(model, x0, timesteps, alpha_bar):
    x_bar, sigma, t_now = x0.clone(), 0.0, timesteps[-1]
    for t in timesteps[::-1]:
        eps = model(x_bar / (1 + sigma**2) ** 0.5, t_now)
        step = _sigma(float(alpha_bar[t])) - sigma
        x_bar += step * eps
        sigma, t_now = sigma + step, t
    return x_bar / (1 + sigma**2) ** 0.5


def encode_in_float64(model, x0, timesteps, alpha_bar):
    return encode(model, x0.double(), timesteps, alpha_bar).to(x0.dtype)


def encode_one_by_one(model, x0, timesteps, alpha_bar):
    return torch.cat([encode(model, one[None], timesteps, alpha_bar) for one in x0])


def encode_recursively(model, x0, timesteps, alpha_bar):
    if not timesteps:
        return x0
    x = encode_recursively(model, x0, timesteps[1:], alpha_bar)
    a = float(alpha_bar[timesteps[1]]) if len(timesteps) > 1 else 1.0
    return ode_step(x, model(x, timesteps[min(1, len(timesteps) - 1)]), a, float(alpha_bar[timesteps[0]]))


def _climb(
    model, x0, steps, alpha_bar, *, ask="from", first=None, start=1.0, keep=None, limit=math.inf, clean=math.inf
):
    """The loop with another t for the model, another first level, or with x or x̂_0 clipped."""
    x, now, t_now = x0, start, steps[0] if first is None else first
    for t in steps:
        eps = model(x, {"from": t_now, "to": t, "first": steps[0]}[ask]) if keep is None else keep
        x0_hat = gaussian.x0_from_eps(x, eps, now).clamp(-clean, clean)
        x = gaussian.ddim_mean(x0_hat, eps, float(alpha_bar[t])).clamp(-limit, limit)
        now, t_now = float(alpha_bar[t]), t
    return x


def _asks_about_x0(model, x0, timesteps, alpha_bar):
    x, now, t_now = x0, 1.0, timesteps[-1]
    for t in timesteps[::-1]:
        x, now, t_now = ode_step(x, model(x0, t_now), now, float(alpha_bar[t])), float(alpha_bar[t]), t
    return x


def _noises_the_image(model, x0, timesteps, alpha_bar):
    x, t_now = x0, timesteps[-1]
    for t in timesteps[::-1]:
        x, t_now = gaussian.q_sample(x0, model(x, t_now), float(alpha_bar[t])), t
    return x


def _steps_as_the_forward_process(model, x0, timesteps, alpha_bar):
    x, now, t_now = x0, 1.0, timesteps[-1]
    for t in timesteps[::-1]:
        x, now, t_now = gaussian.q_sample(x, model(x, t_now), float(alpha_bar[t]) / now), float(alpha_bar[t]), t
    return x


def _decodes(model, x0, timesteps, alpha_bar):
    x, levels = x0, [*(float(alpha_bar[t]) for t in timesteps), 1.0]
    for t, a, b in zip(timesteps, levels, levels[1:], strict=False):
        x = ode_step(x, model(x, t), a, b)
    return x


def _forgets_the_level(model, x0, timesteps, alpha_bar):
    x, t_now = x0, timesteps[-1]
    for t in timesteps[::-1]:
        x, t_now = ode_step(x, model(x, t_now), 1.0, float(alpha_bar[t])), t
    return x


ENCODE = Exercise(
    id="09.2",
    title="From an image to its noise",
    difficulty=3,
    minutes=9,
    equation="Song eq. 13, section 4.3",
    where="Encode",
    lines=7,
    reference=encode,
    inputs=encode_inputs,
    hints=(
        "The decoding loop, walked from the other end. Keep two things beside x: the level ᾱ that it is at, and the t "
        "at which the model may be asked about it.",
        "Start with x_0, ᾱ = 1 and t = the smallest timestep. For each t upwards: ε at the old x and old t, then the "
        "step of Song eq. 13 from the old ᾱ to ᾱ_t.",
        "`x, now, t_now = x0, 1.0, timesteps[-1]`, `for t in reversed(timesteps):`, then ε, x̂_0, the new level, and x",
    ),
    mistakes=(
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts, ab),
            "you visit the timesteps as decoding does, {last} first: encoding starts at the clean end, so at {first}",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, ask="to"),
            "you asked the model at the timestep moved to, where x is not yet: it is still at the one before",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, start=float(ab[0])),
            "you started at ᾱ_0 = {alpha_bar[0]:.4f}, as if the clean image had had one step of noise: its level is 1",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, start=float(ab[ts[-1]])),
            "you started at the level of t = {first}: the model is asked there, but the image is clean, at level 1",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, first=0),
            "you asked the model at t = 0 about the clean image: the timesteps visited begin at {first}, and decoding "
            "asks there too",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1][:-1], ab),
            "you stopped one step early: the code is x at t = {last}, after {n} steps",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, keep=m(x, ts[-1])),
            "you asked the model once and used its answer for all {n} steps",
        ),
        Mistake(
            _asks_about_x0,
            "you asked the model about x_0 at every step: it has to see the x of the moment",
        ),
        Mistake(
            _forgets_the_level,
            "you took every step as if x were clean: after the first one it is at the level of the timestep before",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(lambda y, t: -m(y, t), x, ts[::-1], ab),
            "you have the sign of ε wrong: encoding is the decoding step with the two levels swapped, and nothing else",
        ),
        Mistake(
            _noises_the_image,
            "you noised x_0 itself with the latest ε at every step: the step starts from the x before",
        ),
        Mistake(
            _steps_as_the_forward_process,
            "you added ε as the forward process adds fresh noise, with √(1 - ᾱ_t/ᾱ_s): ε is the noise that is in x "
            "already, and the step is that of eq. 13",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, first=-1),
            "you asked the model at t = -1 about the clean image: it knows no such t; the smallest visited is {first}",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, range(len(ab)), ab, ask="to"),
            "you climbed through every timestep of the table: {n} are asked for, from {first} to {last}",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, range(ts[0] + 1), ab, ask="to"),
            "you climbed through every timestep up to {last}: {n} of them are asked for",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[-1:], ab),
            "you returned after the first step: the code is x at t = {last}, after {n} steps (how far is `return` "
            "indented?)",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, range(len(ts)), ab),
            "you took the position in the list for the timestep: the {n} timesteps themselves are its entries",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, limit=1.0),
            "you clipped x on the way: noise goes beyond [-1, 1], and a clipped step has no inverse",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, clean=1.0),
            "you clipped x̂_0: a clipped step has no inverse, so encoding never clips",
        ),
        Mistake(
            lambda m, x, ts, ab: x.clone(),
            "you get x_0 back unchanged: each step goes to x̂_0 and back with the same ᾱ, where it starts from the old "
            "one and ends at the new one",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, ask="first"),
            "you asked the model at t = {first} in every step: from the second one on x is at the timestep that the "
            "step before reached",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, start=float(ab[-1])),
            "you took alpha_bar[-1] for the level of the clean image: in Python that is the last entry, and the clean "
            "level is 1",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[::-1], ab, start=float(ab[-1]), first=-1),
            "you let -1 stand for the clean image and looked alpha_bar[-1] up, the last entry: the clean level is 1, "
            "and the model is asked at t = {first}",
        ),
        Mistake(
            _decodes,
            "you decoded: the image is at the clean end, and its noise is reached by going up, from {first} to {last}",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, [*ts[::-1], len(ab) - 1], ab),
            "you took a step more, up to the end of the table: the code is x at t = {last}",
        ),
        Mistake(
            lambda m, x, ts, ab: _climb(m, x, ts[:1], ab),
            "you went to t = {last} in a single step: there are {n}, and each asks the model anew",
        ),
        Mistake(
            lambda m, x, ts, ab: encode(m, x, ts, ab) / float(ab[ts[0]]) ** 0.5,
            "you returned x̄: it has to be scaled back to x, with √ᾱ at t = {last}",
        ),
    ),
    alternatives=(
        encode_by_the_package,
        encode_by_euler,
        encode_in_x_bar,
        encode_in_float64,
        encode_one_by_one,
        encode_recursively,
    ),
    rtol=1e-4,
    cases=3,
)


# ---------------------------------------------------------------- 09.3


def convergence_order(steps: Tensor, errors: Tensor) -> float:
    """The order p of a method whose error falls like 1/steps^p: a straight line through the logarithms.

    steps: numbers of steps, shape (n,).
    errors: the error with each, shape (n,), above 0.
    Returns p, the least-squares slope of log(error) over log(steps), without its minus sign.
    """
    x, y = steps.double().log(), errors.double().log()
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())


def convergence_order_inputs(generator: torch.Generator, index: int) -> Case:
    """First and second order and one between, with a little scatter."""
    steps = (
        torch.tensor([10.0, 20.0, 40.0, 80.0]),
        torch.tensor([5.0, 10.0, 25.0, 50.0, 100.0]),
        torch.tensor([8.0, 30.0, 300.0]),
    )[index]
    order = (1.0, 2.0, 0.6)[index] + 0.1 * torch.rand(1, generator=generator).item()
    scatter = torch.exp(0.3 * torch.randn(len(steps), generator=generator))
    return Case({"steps": steps, "errors": (3, 0.5, 20)[index] * steps**-order * scatter}, {"n": len(steps)})


def order_in_numpy(steps, errors):
    return -float(np.polyfit(np.log(steps.double().numpy()), np.log(errors.double().numpy()), 1)[0])


def order_by_lstsq(steps, errors):
    x = torch.stack([steps.double().log(), torch.ones(len(steps), dtype=torch.float64)], dim=1)
    return -float(torch.linalg.lstsq(x, errors.double().log()[:, None]).solution[0, 0])


def order_in_log10(steps, errors):
    x, y = steps.double().log10(), errors.double().log10()
    return float(((x.mean() - x) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def order_by_covariance(steps, errors):
    covariance = torch.cov(torch.stack([(1 / steps.double()).log(), errors.double().log()]))
    return float(covariance[0, 1] / covariance[0, 0])


def order_by_loop(steps, errors):
    xs, ys = ([math.log(value) for value in column.tolist()] for column in (steps, errors))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    top = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return -top / sum((x - mean_x) ** 2 for x in xs)


def _slope(x, y):
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


CONVERGENCE_ORDER = Exercise(
    id="09.3",
    title="How fast the error falls",
    difficulty=2,
    minutes=5,
    equation="",
    where="How much is lost",
    lines=3,
    reference=convergence_order,
    inputs=convergence_order_inputs,
    hints=(
        "A power law is a straight line once both axes are logarithmic. The order is its slope.",
        "With x = log(steps) and y = log(error): slope = Σ (x - x̄) y / Σ (x - x̄)².",
        "`x, y = ...log(), ...log()`, `x = x - x.mean()`, then a quotient of two sums",
    ),
    mistakes=(
        Mistake(
            lambda s, e: _slope(s.double().log(), e.double().log()),
            "you returned the slope with its sign: the error falls, and the order is counted as positive",
        ),
        Mistake(
            lambda s, e: -_slope(s.double(), e.double().log()),
            "you took the logarithm of the errors alone: that fits an exponential, not a power of the number of steps",
        ),
        Mistake(
            lambda s, e: -_slope(s.double(), e.double()),
            "you fitted a line to the numbers themselves: take the logarithm of both",
        ),
        Mistake(
            lambda s, e: -_slope(e.double().log(), s.double().log()),
            "you fitted the steps over the errors, so your slope is that of the other axis",
        ),
        Mistake(
            lambda s, e: -float((e[-1] / e[0]).double().log() / (s[-1] / s[0]).double().log()),
            "you used the first and the last point alone: all {n} of them count in a least-squares fit",
        ),
        Mistake(
            lambda s, e: -float((s.double().log() * e.double().log()).sum() / (s.double().log() ** 2).sum()),
            "you forgot to take the mean off: that fits a line through the origin, where the error is 1 with one step",
        ),
        Mistake(
            lambda s, e: -_slope(s.double().log10(), e.double().log()),
            "you mixed two logarithms, log10 for the steps and log for the errors: the slope is 2.3 times too large",
        ),
        Mistake(
            lambda s, e: -float(((e[1:] / e[:-1]).double().log() / (s[1:] / s[:-1]).double().log()).mean()),
            "you averaged the slopes between neighbours: a least-squares line weighs the points otherwise",
        ),
        Mistake(
            lambda s, e: -float(np.polyfit(s.double().log(), e.double().log(), 1)[1]),
            "you returned the other number of the line, where it meets the axis: the order is its slope",
        ),
        Mistake(
            lambda s, e: -float((e.double().log() / s.double().log()).mean()),
            "you divided the logarithms point by point: that is right only for errors of exactly 1/steps^p, and here "
            "a factor stands in front",
        ),
        Mistake(
            lambda s, e: -float(torch.corrcoef(torch.stack([s, e]).double().log())[0, 1]),
            "you returned the correlation of the two logarithms: it says how well a line fits, not how steep it is",
        ),
        Mistake(
            lambda s, e: float(round(convergence_order(s, e))),
            "you rounded to a whole number: what the {n} points say is asked for",
        ),
        Mistake(
            lambda s, e: -_slope(s.double().log(), e.double()),
            "you took the logarithm of the steps alone: the errors fall by a power, so both are needed",
        ),
        Mistake(
            lambda s, e: _slope(s.double().log(), e.double().log()) ** -1 * -1,
            "you turned the slope over: how much log(error) changes with log(steps) is asked for, not the reverse",
        ),
        Mistake(
            lambda s, e: (
                -float(((s.double().log() - s.double().log().mean()) * e.double().log()).sum())
                / float(s.double().log().square().sum())
            ),
            "you took the mean off above the line, but not below: the squares are those of the distances from it, too",
        ),
        Mistake(
            lambda s, e: convergence_order(s, e) * (len(s) - 1) / len(s),
            "you took the mean of the products, over n, and PyTorch's variance, over n-1: divide both alike, or "
            "neither",
        ),
        Mistake(
            lambda s, e: convergence_order(s, e) * (len(s) - 1),
            "you divided a sum by a variance, which is a mean: take the sum of the squares, or the mean of both",
        ),
        Mistake(
            lambda s, e: float(e.double().log().std() / s.double().log().std()),
            "you divided the two spreads: where the points scatter that is more than the slope of the fitted line",
        ),
        Mistake(
            lambda s, e: -float(torch.cov(torch.stack([s, e]).double().log())[0, 1] / s.double().log().std()),
            "you divided by the standard deviation: a slope has the variance of log(steps) below the line",
        ),
        Mistake(
            lambda s, e: -_slope(torch.arange(len(s)).double(), e.double().log()),
            "you took the number of the measurement for log(steps): the steps need not be equally far apart",
        ),
        Mistake(
            lambda s, e: -_slope(s.double().log(), e.double().log10()),
            "you mixed two logarithms, log for the steps and log10 for the errors: the slope is 2.3 times too small",
        ),
        Mistake(
            lambda s, e: convergence_order(s[:2], e[:2]),
            "you used the first two points alone: all {n} of them count in a least-squares fit",
        ),
        Mistake(
            lambda s, e: convergence_order(s[-2:], e[-2:]),
            "you used the last two points alone: all {n} of them count in a least-squares fit",
        ),
    ),
    alternatives=(
        order_in_numpy,
        order_by_lstsq,
        order_in_log10,
        order_by_covariance,
        order_by_loop,
    ),
    rtol=1e-4,
    cases=3,
)


# ---------------------------------------------------------------- 09.4


def slerp(z0: Tensor, z1: Tensor, w: float) -> Tensor:
    """Between two batches of noise, along the sphere (Song section 5.3).

    z0, z1: the same shape, (B, ...); each sample has an angle of its own.
    w: from 0, which gives z0, to 1, which gives z1. Where a sample's two ends are equal, every w gives that noise.
    Returns z0's shape.
    """
    a, b = z0.flatten(1), z1.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos().clamp(min=1e-3)  # parallel: as good as a straight line
    angle = angle.view(-1, *[1] * (z0.ndim - 1))
    return (torch.sin((1 - w) * angle) * z0 + torch.sin(w * angle) * z1) / torch.sin(angle)


def slerp_inputs(generator: torch.Generator, index: int) -> Case:
    """Images, points in the plane, as many vectors as each has elements; angles from sharp to obtuse.

    In the last case two samples of four have equal ends. In the first cos θ is exactly 1, in the second float32 makes
    it 1.0000001 everywhere: the squares add up to 32, whose root is rounded down. The ends of the third share two
    elements.
    """
    shape = ((3, 1, 6, 6), (4, 2), (2, 3, 4, 4), (5, 5), (4, 1, 4, 4))[index]
    z0, z1 = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    z1 = z1 + (0.0, 0.5, -0.4, 0.8, 0.0)[index] * z0
    if index == 4:
        z0[0] = z0[0].sign()
        z0[1], z0[1, 0, 0, :2] = 1, 3
        z1[:2] = z0[:2]
        z1[2, 0, 0, :2] = z0[2, 0, 0, :2]
    return Case({"z0": z0, "z1": z1, "w": (0.4, 0.25, 0.7, 0.9, 0.3)[index]}, {"B": shape[0]})


def slerp_by_loop(z0, z1, w):
    made = []
    for a, b in zip(z0, z1, strict=True):
        angle = torch.acos((torch.dot(a.flatten(), b.flatten()) / a.norm() / b.norm()).clamp(max=1))
        weights = (1 - w, w) if angle == 0 else (torch.sin(share * angle) / torch.sin(angle) for share in (1 - w, w))
        made.append(sum(weight * end for weight, end in zip(weights, (a, b), strict=True)))
    return torch.stack(made)


def slerp_by_cosine_similarity(z0, z1, w):
    shape = (-1, *[1] * (z0.ndim - 1))
    angle = torch.cosine_similarity(z0.flatten(1), z1.flatten(1)).clamp(-1, 1 - 1e-6).acos().view(shape)
    return torch.sin((1 - w) * angle) / torch.sin(angle) * z0 + torch.sin(w * angle) / torch.sin(angle) * z1


def slerp_in_float64(z0, z1, w):
    return slerp(z0.double(), z1.double(), w).to(z0.dtype)


def slerp_with_einsum(z0, z1, w):
    a, b = (z.reshape(len(z), -1) for z in (z0, z1))
    product = torch.einsum("bi,bi->b", a, b) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    angle = torch.arccos(product.clamp(-1, 1))[:, None]
    made = (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle) < 1e-4, torch.lerp(a, b, w), made).reshape(z0.shape)


def slerp_in_place(z0, z1, w):
    dims = tuple(range(1, z0.ndim))
    dot = (z0 * z1).sum(dims, keepdim=True)
    angle = (dot / ((z0**2).sum(dims, keepdim=True) * (z1**2).sum(dims, keepdim=True)) ** 0.5).clamp(-1, 1).acos()
    angle += 1e-4
    made = z0.clone()
    made *= torch.sin((1 - w) * angle)
    made += torch.sin(w * angle) * z1
    return made.div_(angle.sin())


def _cosine(a, b):
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _per_sample(angle, z):
    return angle.view(-1, *[1] * (z.ndim - 1))


def _weighted(z0, z1, w, angle):
    return (torch.sin((1 - w) * angle) * z0 + torch.sin(w * angle) * z1) / torch.sin(angle)


def _by_angle(find, place=_per_sample):
    """Slerp with `find(a, b)` for θ, the ends flattened, and kept above `least`."""
    return lambda z0, z1, w, least: _weighted(z0, z1, w, place(find(z0.flatten(1), z1.flatten(1)).clamp(min=least), z0))


def _weights(left, right):
    """Slerp with other weights of the two ends, from w and θ."""

    def answer(z0, z1, w, least):
        angle = _angles(z0, z1).clamp(min=least)
        return left(w, angle) * z0 + right(w, angle) * z1

    return answer


def _over_axes(axes):
    """Slerp with an angle over some axes alone."""

    def answer(z0, z1, w, least):
        lengths = z0.norm(dim=axes, keepdim=True) * z1.norm(dim=axes, keepdim=True)
        return _weighted(z0, z1, w, ((z0 * z1).sum(axes, True) / lengths).clamp(-1, 1).acos().clamp(min=least))

    return answer


def _twice(answer, says):
    """A wrong answer by somebody who thought of equal ends, and by somebody who did not."""
    unguarded = f"{says}; and equal ends give no number, since sin θ = 0 there"
    return Mistake(partial(answer, least=1e-3), says), Mistake(partial(answer, least=-math.inf), unguarded)


def _angles(z0, z1):
    return _per_sample(_cosine(z0.flatten(1), z1.flatten(1)).clamp(-1, 1).acos(), z0)


def _lengths(z):
    return _per_sample(z.flatten(1).norm(dim=1), z)


def _lerp_rescaled(z0, z1, w):
    straight = (1 - w) * z0 + w * z1
    return straight * ((1 - w) * _lengths(z0) + w * _lengths(z1)) / _lengths(straight)


def _directions_and_lengths(z0, z1, w):
    return slerp(z0 / _lengths(z0), z1 / _lengths(z1), w) * ((1 - w) * _lengths(z0) + w * _lengths(z1))


@cache
def fashion() -> DDIMPipeline:
    """The model of clothes that comes with the course, as a deterministic sampler."""
    return DDIMPipeline.from_pretrained("fashion")


def draw_row(answer, steps: int = 8, count: int = 6) -> Tensor:
    """A row of clothes between two seeds, by the learner's interpolation, decoded by DDIM."""
    ends = [torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    x = torch.cat([answer(*ends, i / (count - 1)) for i in range(count)]).float()
    scheduler: Any = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(fashion().unet(x, t).sample, t, x).prev_sample
    return x


def draw_slerp(answer):
    """The row by the learner's function above the reference's."""
    with rc_context(plots.STYLE):
        return plots.grid_figure(
            torch.cat([draw_row(answer), draw_row(slerp)]), 6, row_labels=["yours", "reference"], width=plots.WIDTH
        )


SLERP = Exercise(
    id="09.4",
    title="Along the sphere",
    difficulty=2,
    minutes=7,
    equation="Song section 5.3",
    where="Between two noises",
    lines=5,
    reference=slerp,
    inputs=slerp_inputs,
    hints=(
        "Each sample is one long vector, whatever its shape. You need the angle between its two ends, then two weights "
        "that add the ends up.",
        "cos θ = z0·z1 / (|z0| |z1|); the weights are sin((1-w)θ)/sin θ and sin(wθ)/sin θ.",
        "`a, b = z0.flatten(1), z1.flatten(1)`, the cosine per sample, `.acos()`, kept from being 0, and a "
        "`.view(-1, 1, ..., 1)` so that it multiplies images",
    ),
    mistakes=(
        Mistake(
            lambda a, b, w: (1 - w) * a + w * b,
            "you went along the straight line: halfway its points are too short, and the noise too weak",
        ),
        Mistake(
            _lerp_rescaled,
            "you took the straight line and corrected its length: that stays on the sphere, but does not move along it "
            "evenly",
        ),
        Mistake(
            lambda a, b, w: (1 - w) ** 0.5 * a + w**0.5 * b,
            "you took √(1-w) and √w as weights: right in length where θ is 90°, but not evenly along the circle",
        ),
        Mistake(
            lambda a, b, w: _weighted(a, b, w, _per_sample(_cosine(a.flatten(1), b.flatten(1)).acos(), a)),
            "you get no number for a sample whose two ends are equal, whatever the rest of the batch is: there θ is 0, "
            "and you divide by its sine",
        ),
        Mistake(
            lambda a, b, w: _weighted(
                a, b, w, _per_sample(_cosine(a.flatten(1), b.flatten(1)).acos().clamp(min=1e-3), a)
            ),
            "you took the arc cosine of a number above 1: rounding can lift the cosine of equal ends there, and `acos` "
            "then gives no number, which no clamp of θ brings back",
        ),
        Mistake(
            lambda a, b, w: torch.lerp(a, b, w) if _angles(a, b).min() < 1e-3 else slerp(a, b, w),
            "you took the straight line for the whole batch because one of its {B} samples has equal ends: each sample "
            "is decided by its own angle",
        ),
        *_twice(
            _by_angle(lambda a, b: _cosine(a, b).clamp(-1, 1).acos(), place=lambda angle, z: angle),
            "you multiplied {B} angles, shape ({B},), with the last axis of the batch: each belongs to a whole sample, "
            "so they need axes of size 1 behind",
        ),
        Mistake(
            lambda a, b, w: _weighted(a, b, w, _per_sample(_cosine(a.flatten(1), b.flatten(1)), a)),
            "you took the cosine for the angle itself: θ is its arc cosine",
        ),
        *_twice(
            _by_angle(lambda a, b: (a * b).sum(1).clamp(-1, 1).acos()),
            "you took the scalar product for the cosine: it has to be divided by both lengths",
        ),
        Mistake(
            lambda a, b, w: _weighted(a, b, w, _per_sample((a * b).flatten(1).sum(1).acos(), a)),
            "you took the arc cosine of the scalar product, which is often beyond 1: the cosine is what is left when "
            "both lengths are divided out",
        ),
        Mistake(
            lambda a, b, w: _weighted(
                a, b, w, _per_sample((a * b).flatten(1).sum(1) / (a.norm() * b.norm()), a).acos()
            ),
            "you divided by the length of the whole batch of {B}: each sample has its own, so take the norm per sample",
        ),
        Mistake(
            partial(_by_angle(lambda a, b: ((a * b).sum() / (a.norm() * b.norm())).acos()[None]), least=0),
            "you computed one angle for the whole batch: each of its {B} samples has its own",
        ),
        *_twice(
            _over_axes((-1,)),
            "you computed an angle along the last axis alone: a sample is one vector of all its elements",
        ),
        *_twice(
            _over_axes((-2, -1)),
            "you computed an angle over the last two axes: right for images of one channel, but a sample is one vector "
            "of all its elements",
        ),
        *_twice(
            _over_axes((1,)),
            "you computed an angle along the channels alone, the axis after the batch: a sample is one vector of all "
            "its elements",
        ),
        *_twice(
            _by_angle(lambda a, b: _cosine(a, b).clamp(-1, 1).acos().rad2deg()),
            "you gave the sine degrees: `torch.sin` wants the angle as `acos` gives it",
        ),
        *_twice(
            lambda a, b, w, least: _weighted(a, b, 1 - w, _angles(a, b).clamp(min=least)),
            "you run from z1 to z0: w = 0 has to give z0",
        ),
        Mistake(
            lambda a, b, w: slerp(a, b, w) / slerp(a, b, w).std(),
            "you brought the result to standard deviation 1: slerp leaves the length as it comes out",
        ),
        Mistake(
            lambda a, b, w: torch.where(_angles(a, b) > 0, slerp(a, b, w), 0 * a),
            "you get zeros where the two ends are equal: sin θ was kept from 0 below the line, but not above it, or 0 "
            "was put in for what is no number",
        ),
        Mistake(
            lambda a, b, w: slerp(a, b, w) * _angles(a, b).sin(),
            "you forgot to divide by sin θ: at the ends you do not get z0 and z1",
        ),
        Mistake(
            lambda a, b, w: math.cos(w * math.pi / 2) * a + math.sin(w * math.pi / 2) * b,
            "you took θ = 90° for all: nearly true for large images, and wrong for these",
        ),
        Mistake(
            lambda a, b, w: (
                (torch.cos((1 - w) * _angles(a, b)) * a + torch.cos(w * _angles(a, b)) * b) / torch.cos(_angles(a, b))
            ),
            "you took cosines where the weights have sines",
        ),
        Mistake(
            lambda a, b, w: slerp(a, b, w) / _lengths(slerp(a, b, w)),
            "you returned a vector of length 1: noise of D elements is about √D long",
        ),
        *_twice(
            lambda a, b, w, least: _weighted(a / _lengths(a), b / _lengths(b), w, _angles(a, b).clamp(min=least)),
            "you interpolated the directions, of length 1: the weights belong to z0 and z1 themselves",
        ),
        Mistake(
            _directions_and_lengths,
            "you interpolated directions and lengths each by itself: a possible way, but here the weights belong to z0 "
            "and z1 themselves",
        ),
        Mistake(
            lambda a, b, w: torch.where(a == b, a, _weighted(a, b, w, _angles(a, b))),
            "you kept every single element in which the two ends agree: ends are equal where all their elements are",
        ),
        *_twice(
            _weights(lambda w, t: torch.sin((1 - w) * t), lambda w, t: torch.sin(w * t) / torch.sin(t)),
            "you divided the second term alone by sin θ: both are divided, so put the sum into brackets",
        ),
        *_twice(
            _weights(lambda w, t: math.sin(1 - w) * t / torch.sin(t), lambda w, t: math.sin(w) * t / torch.sin(t)),
            "you multiplied the sines by θ: it belongs inside, sin of w times θ",
        ),
        *_twice(
            _weights(lambda w, t: torch.sin(1 - w * t) / torch.sin(t), lambda w, t: torch.sin(w * t) / torch.sin(t)),
            "you lost the brackets around 1-w: it is multiplied by θ as a whole",
        ),
        *_twice(
            _weights(lambda w, t: torch.sin((1 - w) * t) / t, lambda w, t: torch.sin(w * t) / t),
            "you divided by θ: the weights have its sine below the line",
        ),
        *_twice(
            _weights(lambda w, t: torch.sin((1 - w) * t) / torch.sin(t), lambda w, t: -torch.sin(w * t) / torch.sin(t)),
            "you subtracted the second term: both ends are added",
        ),
        *_twice(
            _weights(lambda w, t: 1 - torch.sin(w * t) / torch.sin(t), lambda w, t: torch.sin(w * t) / torch.sin(t)),
            "you let the two weights add up to 1: on the sphere they do not, the first one has a sine of its own",
        ),
        *_twice(
            _by_angle(lambda a, b: _cosine(a, b).clamp(-1, 1).acos(), place=lambda angle, z: angle.view(-1, 1, 1, 1)),
            "you gave the angles three axes behind the batch: that fits images alone, a point in the plane has one",
        ),
        *_twice(
            _by_angle(lambda a, b: ((a * b).sum(1) / a.square().sum(1)).clamp(-1, 1).acos()),
            "you divided by the length of z0 twice: the second one is that of z1",
        ),
        *_twice(
            _by_angle(lambda a, b: ((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1))).clamp(-1, 1).acos()),
            "you divided by the squares of the two lengths: the roots are missing",
        ),
        *_twice(
            _by_angle(lambda a, b: (a * b).mean(1).clamp(-1, 1).acos()),
            "you took the mean of the products for the cosine: that is nearly right for long vectors of noise, and "
            "wrong for these",
        ),
    ),
    alternatives=(
        slerp_by_loop,
        slerp_by_cosine_similarity,
        slerp_in_float64,
        slerp_with_einsum,
        slerp_in_place,
    ),
    picture=draw_slerp,
    rtol=1e-3,
    cases=5,
)


# ---------------------------------------------------------------- 09.5


def interpolation_grid(corners: Tensor, rows: int, columns: int) -> Tensor:
    """Noise between four corners: first down the two sides, then across from side to side, all by `slerp`.

    corners: (4, ...), in the order top left, top right, bottom left, bottom right.
    rows, columns: at least 2 each, so that the corners of the grid are the given ones.
    Returns (rows, columns, ...).
    """
    a, b, c, d = corners[:, None]
    lines = []
    for down in torch.linspace(0, 1, rows).tolist():
        left, right = slerp(a, c, down), slerp(b, d, down)
        lines.append(torch.cat([slerp(left, right, w) for w in torch.linspace(0, 1, columns).tolist()]))
    return torch.stack(lines)


def interpolation_grid_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points, grids that are not square."""
    shape = ((1, 4, 4), (2,), (3, 3, 3))[index]
    corners = torch.randn(4, *shape, generator=generator)
    return Case({"corners": corners, "rows": (3, 4, 2)[index], "columns": (5, 3, 4)[index]})


def grid_by_broadcasting(corners, rows, columns):
    a, b, c, d = (corner[None].expand(rows * columns, *corner.shape) for corner in corners)
    down = [i / (rows - 1) for i in range(rows) for _ in range(columns)]
    across = [j / (columns - 1) for _ in range(rows) for j in range(columns)]
    made = [
        slerp(slerp(a[k : k + 1], c[k : k + 1], v), slerp(b[k : k + 1], d[k : k + 1], v), w)
        for k, (v, w) in enumerate(zip(down, across, strict=True))
    ]
    return torch.cat(made).reshape(rows, columns, *corners.shape[1:])


def grid_into_a_tensor(corners, rows, columns):
    made = corners.new_empty(rows, columns, *corners.shape[1:])
    for i in range(rows):
        for j in range(columns):
            sides = slerp(corners[:2], corners[2:], i / (rows - 1))
            made[i, j] = slerp(sides[:1], sides[1:], j / (columns - 1))[0]
    return made


def grid_by_sides(corners, rows, columns):
    sides = torch.stack([slerp(corners[:2], corners[2:], i / (rows - 1)) for i in range(rows)])
    return torch.stack([slerp(sides[:, 0], sides[:, 1], j / (columns - 1)) for j in range(columns)], dim=1)


def grid_in_float64(corners, rows, columns):
    return interpolation_grid(corners.double(), rows, columns).to(corners.dtype)


def grid_transposed_twice(corners, rows, columns):
    a, b, c, d = corners[:, None]
    by_column = [torch.cat([slerp(slerp(a, c, v), slerp(b, d, v), w) for v in _places(rows)]) for w in _places(columns)]
    return torch.stack(by_column).transpose(0, 1)


def _places(n):
    return [i / (n - 1) for i in range(n)]


def _grid(corners, rows, columns, *, order=(0, 1, 2, 3), between=None, across=None, ends=True):
    between = between or slerp
    across = across or between
    a, b, c, d = corners[list(order), None]
    places = _places if ends else lambda n: [i / n for i in range(n)]
    lines = []
    for v in places(rows):
        left, right = between(a, c, v), between(b, d, v)
        lines.append(torch.cat([across(left, right, w) for w in places(columns)]))
    return torch.stack(lines)


def _without_a_batch(corners, rows, columns):
    a, b, c, d = corners
    sides = [(slerp(a, c, v), slerp(b, d, v)) for v in _places(rows)]
    return torch.stack([torch.stack([slerp(*ends, w) for w in _places(columns)]) for ends in sides])


def _straight(a, b, w):
    return (1 - w) * a + w * b


INTERPOLATION_GRID = Exercise(
    id="09.5",
    title="A grid between four seeds",
    difficulty=2,
    minutes=7,
    equation="Song section 5.3",
    where="A grid to walk in",
    lines=6,
    reference=interpolation_grid,
    inputs=interpolation_grid_inputs,
    hints=(
        "A row of the grid is an interpolation between a point on the left side and one on the right side. These two "
        "are interpolations themselves.",
        "left = slerp(A, C, i/(rows-1)), right = slerp(B, D, i/(rows-1)); then slerp(left, right, j/(columns-1)).",
        "a loop over rows; in it `left, right = slerp(...), slerp(...)`, then a list over columns, `torch.cat`; "
        "`torch.stack` at the end. `corners[:, None]` gives batches of one.",
    ),
    mistakes=(
        Mistake(
            lambda z, r, c: _grid(z, r, c, between=_straight),
            "you interpolated along straight lines: in the middle of the grid the noise is only half as long",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c, order=(0, 2, 1, 3)),
            "you took the second corner for the one below the first: the order is top left, top right, bottom left, "
            "bottom right",
        ),
        Mistake(
            lambda z, r, c: _grid(z, c, r),
            lambda at: (
                f"you swapped rows and columns: the grid has {at.rows} rows of {at.columns}, yours has {at.columns} of "
                f"{at.rows}"
            ),
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c, ends=False),
            "you never reach the far corners: the last row and column have w = 1",
        ),
        Mistake(
            lambda z, r, c: _grid(z, c, r, order=(0, 2, 1, 3)).transpose(0, 1),
            "you went across first and then down: on a sphere that is not the same, and here the sides come first",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c).flatten(0, 1),
            "you returned one long list of noises: its first two axes are rows and columns",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c, order=(0, 1, 3, 2)),
            "you swapped the two lower corners: the third is at the bottom left",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c).flip(0),
            "you built the grid from the bottom up: the first row has the first two corners",
        ),
        Mistake(
            lambda z, r, c: torch.stack([torch.cat([slerp(z[:1], z[1:2], w) for w in _places(c)])] * r),
            "you interpolated between the upper corners only: every row is the same, and the lower two are not used",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c).transpose(0, 1),
            lambda at: (
                f"you stacked the columns: the first axis has to hold the {at.rows} rows, and yours holds {at.columns} "
                "columns"
            ),
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c).flip(1),
            "you built each row from the right: its first noise lies on the left side",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c)[:, :, None],
            lambda at: (
                f"your result has an axis too many, shape {tuple(at.yours.shape)}: where a batch of one goes into "
                "`slerp`, one comes out"
            ),
        ),
        Mistake(
            lambda z, r, c: torch.stack(
                [torch.cat([slerp(z[:1], z[3:], (v + u) / 2) for u in _places(c)]) for v in _places(r)]
            ),
            "you interpolated between the first and the last corner alone: the other two are not used",
        ),
        Mistake(
            _without_a_batch,
            "you gave `slerp` single noises: it takes batches, so each corner has to be a batch of one (with one axis "
            "there is no sample left, and with more the first is taken for it)",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c, across=_straight),
            "you went down the sides along the sphere, but from side to side along straight lines: both ways are by "
            "`slerp`",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c, between=_straight, across=slerp),
            "you went from side to side along the sphere, but down the sides along straight lines: both ways are by "
            "`slerp`",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c).flip(0, 1),
            "you began with the corner at the bottom right: the first noise of the first row is the first corner",
        ),
        Mistake(
            lambda z, r, c: torch.stack([torch.cat([slerp(z[:1], z[2:3], v)] * c) for v in _places(r)]),
            "you interpolated down the left side only: every column is the same, and the right corners are not used",
        ),
        Mistake(
            lambda z, r, c: torch.stack([_grid(z, c, c)[j, j] for j in range(c)]).expand(r, *[-1] * z.ndim),
            "you used the place in the row for both ways: how far down the sides depends on the row",
        ),
        Mistake(
            lambda z, r, c: torch.stack([_grid(z, r, r)[i, i].expand(c, *z.shape[1:]) for i in range(r)]),
            "you used the row's place for both ways: how far from side to side depends on the place in the row",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r + 1, c)[:-1],
            "you never reach the two lower corners: the last row has w = 1",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c + 1)[:, :-1],
            "you never reach the two right corners: the last column has w = 1",
        ),
        Mistake(
            lambda z, r, c: _grid(z, r, c)[:1],
            "you returned after the first row (how far is `return` indented?)",
        ),
    ),
    alternatives=(
        grid_by_broadcasting,
        grid_into_a_tensor,
        grid_by_sides,
        grid_in_float64,
        grid_transposed_twice,
    ),
    rtol=1e-3,
    cases=3,
)


EXERCISES = (ODE_STEP, ENCODE, CONVERGENCE_ORDER, SLERP, INTERPOLATION_GRID)
