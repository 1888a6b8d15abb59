"""Exercises of lesson 01, the forward process."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_from_scratch import schedules
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

BETAS = schedules.linear()


# ---------------------------------------------------------------- 01.1


def forward_step(x_prev: Tensor, noise: Tensor, beta_t: float | Tensor) -> Tensor:
    """One step of the forward chain, from x_{t-1} to x_t.

    x_prev, noise: any shape, the same; noise is standard normal.
    beta_t: in (0, 1), a number or a tensor that broadcasts against x_prev.
    Returns x_t, of x_prev's shape.
    """
    return (1 - beta_t) ** 0.5 * x_prev + beta_t**0.5 * noise


def forward_step_inputs(generator: torch.Generator, index: int) -> Case:
    """Images, points in the plane, single numbers, and a batch in which every image has its own β."""
    shape = ((4, 3, 8, 8), (7, 2), (5,), (2, 1, 6, 6))[index]
    t = (99, 999, 0, 499)[index]
    x_prev = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    beta = float(BETAS[t])
    beta_t = torch.tensor([beta, 0.3]).reshape(2, 1, 1, 1) if index == 3 else beta
    return Case({"x_prev": x_prev, "noise": noise, "beta_t": beta_t}, {"t": t, "beta": beta})


def forward_step_in_float64(x_prev, noise, beta_t):
    mean, std = torch.as_tensor(1 - beta_t).double().sqrt(), torch.as_tensor(beta_t).double().sqrt()
    return (mean * x_prev.double() + std * noise.double()).to(x_prev.dtype)


def forward_step_by_loop(x_prev, noise, beta_t):
    betas = torch.as_tensor(beta_t, dtype=x_prev.dtype).expand(x_prev.shape[:1] + (1,) * (x_prev.ndim - 1))
    return torch.stack([(1 - b) ** 0.5 * x + b**0.5 * e for x, e, b in zip(x_prev, noise, betas, strict=True)])


def forward_step_in_place(x_prev, noise, beta_t):
    x_t = x_prev.clone()
    x_t *= (1 - beta_t) ** 0.5
    x_t += noise * beta_t**0.5
    return x_t


def forward_step_flat(x_prev, noise, beta_t):
    beta = torch.as_tensor(beta_t, dtype=x_prev.dtype).expand_as(x_prev).reshape(-1)
    return torch.addcmul(torch.sqrt(1 - beta) * x_prev.reshape(-1), beta.sqrt(), noise.reshape(-1)).reshape_as(x_prev)


FORWARD_STEP = Exercise(
    id="01.1",
    title="One step of noise",
    difficulty=1,
    minutes=4,
    equation="Ho eq. 2",
    where="One step",
    lines=1,
    reference=forward_step,
    inputs=forward_step_inputs,
    hints=(
        "Ho eq. 2 names a Gaussian by its mean and its variance. A draw from it is the mean plus the standard deviation "
        "times `noise`.",
        "q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I). The second argument is a variance.",
        "Fill in two coefficients: `return (...) ** 0.5 * x_prev + (...) ** 0.5 * noise`",
    ),
    mistakes=(
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x + b * e,
            lambda at: (
                f"you used β_t where the draw needs √β_t: your noise is {at.beta**-0.5:.0f} times too small at "
                f"t = {at.t}. β_t is a variance"
            ),
        ),
        Mistake(
            lambda x, e, b: (1 - b) * x + b**0.5 * e,
            "you scaled x_prev by 1-β_t, not by its square root: the variance is not kept, and at t = {t} the signal "
            "shrinks twice as fast as it should",
        ),
        Mistake(
            lambda x, e, b: (1 - b) * x + b * e,
            "you left out both square roots: β_t is a variance, and noise is scaled by a standard deviation",
        ),
        Mistake(
            lambda x, e, b: b**0.5 * x + (1 - b) ** 0.5 * e,
            lambda at: (
                f"you swapped the two coefficients: at t = {at.t} your step keeps {at.beta**0.5:.1%} of the image, "
                "where one step should hardly change it"
            ),
        ),
        Mistake(
            lambda x, e, b: x + b**0.5 * e,
            "you added the noise without shrinking x_prev: the variance grows by β_t at every step (t = {t} here)",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x - b**0.5 * e,
            "you subtracted the noise: as likely a draw, but not the one that `noise` stands for",
        ),
        Mistake(
            lambda x, e, b: (1 - b**0.5) * x + b**0.5 * e,
            "you took the root inside: 1-√β_t where the equation has √(1-β_t)",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x + b**0.5 * torch.randn_like(x),
            "you drew fresh noise and left the argument `noise` unused: no one can repeat your step",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x,
            "you returned the mean only: `noise` is not used",
        ),
    ),
    alternatives=(forward_step_in_float64, forward_step_by_loop, forward_step_in_place, forward_step_flat),
    package="ddpm_from_scratch.gaussian.forward_step",
)


EXERCISES = (FORWARD_STEP,)
