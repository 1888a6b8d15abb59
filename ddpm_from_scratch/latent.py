"""What x_T means: paths between two images, how smooth they are, what x_T decides, and what encoding loses.

For Song's sections 5.3 and 5.4. A model, a feature extractor and a sampler's noise go in, numbers come out; which
images and which features is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.schedulers import DDIMScheduler, ddim_invert
from ddpm_from_scratch.training import seeded

KINDS = ("ddim", "ddpm, shared noise", "ddpm, fresh noise")
"""The samplers of `interpolation_paths`: η = 0; η = 1 with the same step noise along a path; η = 1 with fresh noise."""


def slerp(x: Tensor, y: Tensor, share: float) -> Tensor:
    """Spherical interpolation from x (share 0) to y (share 1): ends of one length keep it (Song section 5.3).

    Between two draws of N(0, I) a straight line passes through points that are too short for noise.

    Args:
        x, y: one image or batch each, the same shape; the angle is taken over all values.
        share: in [0, 1].

    Raises:
        ValueError: shapes that differ, or ends in opposite directions.
    """
    if x.shape != y.shape:
        raise ValueError(f"both ends need the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = x.cpu().double().flatten(), y.cpu().double().flatten()
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-300)
    angle = float(torch.arccos(cosine.clamp(-1, 1)))
    if math.sin(angle) < 1e-6:
        if angle > 1:
            raise ValueError("x and y point in opposite directions, so every way between them is as short: change one")
        return x + share * (y - x)
    # Song, section 5.3 and appendix: sin((1-α)θ)/sin θ · x + sin(αθ)/sin θ · y
    return math.sin((1 - share) * angle) / math.sin(angle) * x + math.sin(share * angle) / math.sin(angle) * y


@torch.no_grad()
def sample_from(
    model: Callable[..., Any],
    scheduler: DDIMScheduler,
    x_T: Tensor,
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Images from given x_T, by DDIM (Song eq. 12).

    Args:
        model: `model(x, t).sample` is the prediction.
        scheduler: its timesteps are set.
        x_T: (N, C, H, W).
        eta: η; above 0, `step_noise(step)` gives the noise of each step, shaped like x_T.

    Returns:
        (N, C, H, W), not clipped.

    Raises:
        ValueError: η above 0 without noise.
    """
    if eta > 0 and step_noise is None:
        raise ValueError("with eta above 0 each step needs its noise: give step_noise")
    x, advance = x_T, cast(Any, scheduler.step)
    for step, t in enumerate(scheduler.timesteps):
        noise = step_noise(step) if step_noise is not None and eta > 0 else None
        prediction = model(x, t).sample[:, : x.shape[1]]  # DDIM has no use for a learned variance
        x = advance(prediction, t, x, eta=eta, variance_noise=noise).prev_sample
    return x


def interpolation_paths(
    model: Callable[..., Any], scheduler: DDIMScheduler, x_T: tuple[Tensor, Tensor], points: int, seed: int = 0
) -> dict[str, Tensor]:
    """Images along the slerp between two x_T, by the three samplers of `KINDS`.

    Args:
        model: `model(x, t).sample` is the prediction.
        scheduler: its timesteps are set.
        x_T: the two ends, (C, H, W) each.
        points: images on a path, both ends included, at least 2.
        seed: of the step noise.

    Returns:
        (points, C, H, W) for each kind.

    Raises:
        ValueError: fewer than two points.
    """
    if points < 2:
        raise ValueError(f"a path needs at least 2 points, got {points}")
    ends = torch.stack([slerp(*x_T, i / (points - 1)) for i in range(points)])
    shape, device, dtype = ends.shape, ends.device, ends.dtype

    def fresh(step: int) -> Tensor:
        generators = [seeded(seed, "noise", step, 1 + i) for i in range(points)]
        return gaussian.randn(shape, generators, device, dtype)

    def shared(step: int) -> Tensor:
        return gaussian.randn((1, *shape[1:]), seeded(seed, "noise", step, 0), device, dtype).expand(shape)

    noises = (None, shared, fresh)
    etas = (0.0, 1.0, 1.0)
    return {
        kind: sample_from(model, scheduler, ends, eta, noise)
        for kind, eta, noise in zip(KINDS, etas, noises, strict=True)
    }


# ---------------------------------------------------------------- what a path and an x_T are worth


def path_length_ratio(features: Tensor) -> float:
    """How far a path goes in feature space, in units of the straight line between its ends: 1 is straight.

    Args:
        features: (points, D) along the path, at least 2 points.

    Raises:
        ValueError: fewer than two points, or ends with the same features.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected the features of at least 2 points, got {tuple(features.shape)}")
    f = features.cpu().double()
    direct = float((f[-1] - f[0]).norm())
    if direct == 0:
        raise ValueError("both ends of the path have the same features: there is nothing to compare its length with")
    return float(f.diff(dim=0).norm(dim=1).sum()) / direct


def largest_jump(features: Tensor) -> float:
    """The largest step of a path in feature space, as a share of its length: 1/(points - 1) is even.

    Args:
        features: (points, D) along the path, at least 2 points that are not all alike.

    Raises:
        ValueError: fewer than two points, or no movement.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected the features of at least 2 points, got {tuple(features.shape)}")
    steps = features.cpu().double().diff(dim=0).norm(dim=1)
    if float(steps.sum()) == 0:
        raise ValueError("the features of all points are the same")
    return float(steps.max() / steps.sum())


def explained_share(features: Tensor) -> float:
    """The share of the features' variance that x_T explains: 1 where it decides the image, 0 where it says nothing.

    The variance within the repetitions of an x_T is what it leaves open; the rest of the total variance is its own.
    Estimated without bias, so values a little below 0 occur. A smooth path alone proves nothing: with the step noise
    shared, a path is smooth whatever x_T decides.

    Args:
        features: (x_T, repetitions, D), at least 2 of each; a repetition has its own step noise.

    Raises:
        ValueError: too few, or features without variance.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(f"expected features (x_T, repetitions, D), at least 2 of each, got {tuple(features.shape)}")
    f = features.cpu().double()
    repetitions = f.shape[1]
    within = f.var(dim=1).mean(dim=0).sum()
    between = f.mean(dim=1).var(dim=0).sum() - within / repetitions  # means of few repetitions vary by themselves
    total = float(within + between)
    if total <= 0:
        raise ValueError("the features have no variance")
    return float(between) / total


# ---------------------------------------------------------------- encode, then decode


def encode_decode_errors(
    model: Callable[..., Any], scheduler: DDIMScheduler, images: Tensor, steps: Sequence[int]
) -> list[float]:
    """The mean squared error of encoding images to x_T and decoding them again, for each number of steps.

    Song section 5.4 (table 2 there), on images in [-1, 1]. Nothing is clipped on either way.

    Args:
        model: `model(x, t).sample` is the prediction.
        scheduler: gives the noise schedule and the spacing; its own timesteps are left as they are.
        images: (N, C, H, W) in [-1, 1].
        steps: numbers of steps S.

    Raises:
        ValueError: a number of steps out of range.
    """
    found = []
    for count in steps:
        unclipped = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
        unclipped.set_timesteps(count)
        with torch.no_grad():
            x_T = ddim_invert(model, images, unclipped)
        back = sample_from(model, unclipped, x_T)
        found.append(float((back.cpu().double() - images.cpu().double()).square().mean()))
    return found


def observed_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order p of errors that fall as S^-p: minus the slope of log error over log S, by least squares.

    A solver of first order has a distance of order 1 and a squared distance of order 2.

    Args:
        steps: S, at least two.
        errors: one per S, above 0.

    Raises:
        ValueError: fewer than two, or an error that is not positive.
    """
    if len(steps) < 2 or len(steps) != len(errors) or not all(error > 0 for error in errors):
        raise ValueError(f"expected at least two numbers of steps with positive errors, got {list(errors)}")
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (steps, errors))
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())
