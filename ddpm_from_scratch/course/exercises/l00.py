"""Exercises of lesson 00: a first one, and the self-test on what the course takes for granted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

# ---------------------------------------------------------------- 00.1


def blend(image: Tensor, noise: Tensor, amount: float) -> Tensor:
    """A mixture of an image and noise.

    image, noise: any shape, the same.
    amount: share of the noise, from 0 (only image) to 1 (only noise); the image has the rest.
    Returns the mixture, of image's shape.
    """
    return (1 - amount) * image + amount * noise


def blend_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points at several amounts, both ends included."""
    shape = ((3, 8, 8), (5, 2), (4,), (2, 1, 6, 6), (6,), (3, 2))[index]
    amount = (0.25, 0.9, 0.6, 0.1, 0.0, 1.0)[index]
    image, noise = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    return Case({"image": image, "noise": noise, "amount": amount}, {"percent": f"{amount:.0%}"})


def blend_in_float64(image, noise, amount):
    return ((1 - amount) * image.double() + amount * noise.double()).to(image.dtype)


def blend_by_loop(image, noise, amount):
    return torch.stack([(1 - amount) * x + amount * e for x, e in zip(image, noise, strict=True)])


def blend_in_place(image, noise, amount):
    result = image.clone()
    result += amount * (noise - image)
    return result


def blend_flat(image, noise, amount):
    return torch.lerp(image.flatten(), noise.flatten(), amount).reshape(image.shape)


BLEND = Exercise(
    id="00.1",
    title="Blend an image with noise",
    difficulty=1,
    minutes=2,
    equation="",
    where="How exercises work",
    lines=1,
    reference=blend,
    inputs=blend_inputs,
    hints=(
        "Two parts are added. If the noise has the share `amount`, which share is left for the image?",
        "mixture = (1 - amount) · image + amount · noise",
        "`return (1 - ...) * image + ... * noise`",
    ),
    mistakes=(
        Mistake(
            lambda x, e, a: a * x + (1 - a) * e,
            "you swapped the shares: with amount = {amount} yours holds {percent} image, and it should hold {percent} "
            "noise",
        ),
        Mistake(
            lambda x, e, a: x + a * e,
            "you added the noise to the whole image: the image keeps all of itself, where the shares should add up to "
            "1",
        ),
        Mistake(
            lambda x, e, a: (1 - a) * x + e,
            "you added all of the noise, not the share {amount} of it",
        ),
        Mistake(
            lambda x, e, a: (x + e) / 2,
            "you took the plain average: `amount` is not used",
        ),
        Mistake(
            lambda x, e, a: (1 - a) * x,
            "you only dimmed the image: `noise` is not used",
        ),
        Mistake(
            lambda x, e, a: (1 - a) * x - a * e,
            "you subtracted the noise where it is to be added",
        ),
        Mistake(
            lambda x, e, a: (1 - a) * x + a * torch.randn_like(x),
            "you drew new noise and left the argument `noise` unused: no one can repeat your result",
        ),
        Mistake(
            lambda x, e, a: (1 - a) ** 0.5 * x + a**0.5 * e,
            "you took square roots of the shares: that is lesson 01's mix, which keeps the variance; here the "
            "two shares add up to 1 as they are",
        ),
        Mistake(
            lambda x, e, a: x + a * (x - e),
            "you went from the image away from the noise: with amount = {amount} yours holds more than the whole "
            "image, less some noise",
        ),
        Mistake(
            lambda x, e, a: a * e,
            "you returned the noise's part alone: the image has the rest of the mixture",
        ),
        Mistake(
            lambda x, e, a: (1 - a) * x + a,
            "you added the number {amount} itself: it is the share of `noise`, and `noise` is not used",
        ),
        Mistake(
            lambda x, e, a: (1 - a) * (x + e),
            "you gave image and noise the same share: with amount = {amount} the noise should have {percent}",
        ),
    ),
    alternatives=(blend_in_float64, blend_by_loop, blend_in_place, blend_flat),
    cases=6,
)


# ---------------------------------------------------------------- 00.2


def scale_each(images: Tensor, scales: Tensor) -> Tensor:
    """Image i multiplied by number i.

    images: shape (B, ...), of any number of axes.
    scales: shape (B,).
    Returns images' shape.
    """
    return images * scales.reshape(-1, *[1] * (images.ndim - 1))


def scale_each_inputs(generator: torch.Generator, index: int) -> Case:
    """First as many images as an image has columns, so that the wrong axis does not raise."""
    shape = ((8, 1, 8, 8), (4, 3, 5, 5), (6, 2), (3,))[index]
    images, scales = torch.randn(shape, generator=generator), torch.rand(shape[:1], generator=generator) + 0.5
    return Case({"images": images, "scales": scales}, {"count": shape[0]})


def scale_each_in_float64(images, scales):
    return torch.einsum("b...,b->b...", images.double(), scales.double()).to(images.dtype)


def scale_each_by_loop(images, scales):
    return torch.stack([image * scale for image, scale in zip(images, scales, strict=True)])


def scale_each_in_place(images, scales):
    result = images.clone()
    for i in range(len(result)):
        result[i] *= scales[i]
    return result


def scale_each_turned(images, scales):
    return (images.movedim(0, -1) * scales).movedim(-1, 0)


SCALE_EACH = Exercise(
    id="00.2",
    title="PyTorch: one number per image",
    difficulty=1,
    minutes=2,
    equation="",
    where="Self-test",
    lines=1,
    reference=scale_each,
    inputs=scale_each_inputs,
    hints=(
        "PyTorch lines shapes up from the last axis. Give `scales` as many axes as `images` has, all but the first of "
        "length 1.",
        "(B,) must become (B, 1, 1, 1) for images and (B, 1) for points: a reshape with `images.ndim - 1` ones.",
        "`return images * scales.reshape(-1, *[1] * (...))`",
    ),
    mistakes=(
        Mistake(
            lambda x, s: x * s,
            "you multiplied shape (B, ...) by shape (B,) as it stands: the scales line up with the last axis, so you "
            "scaled "
            "{count} columns, not {count} images (refresher A)",
        ),
        Mistake(
            lambda x, s: x * s[:, None, None, None],
            "you assumed four axes: right for images, but `images` may have any number of axes, and points, shape "
            "(B, 2), come out with four (refresher A)",
        ),
        Mistake(
            lambda x, s: x * s[:, None],
            "you gave `scales` one further axis, whatever `images` has: that is right for points, shape (B, 2), "
            "and for images it lines up with rows of pixels (refresher A)",
        ),
        Mistake(
            lambda x, s: x * s.reshape(-1, *[1] * x.ndim),
            "you gave `scales` one axis too many: every image meets every scale, and the result has {count} × {count} "
            "images (refresher A)",
        ),
        Mistake(
            lambda x, s: torch.tensordot(s, x, dims=1),
            "you summed over the batch: the images melt into one, weighted by their scales (refresher A)",
        ),
        Mistake(
            lambda x, s: x * s.reshape(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else x * s,
            "you gave `scales` one axis too few: it lines up with the second axis from the left, not with the first "
            "(refresher A)",
        ),
        Mistake(
            lambda x, s: x * s[0],
            "you scaled every image by the first number (refresher A)",
        ),
        Mistake(
            lambda x, s: x * s.mean(),
            "you scaled every image by the mean of the numbers (refresher A)",
        ),
        Mistake(
            lambda x, s: x / s.reshape(-1, *[1] * (x.ndim - 1)),
            "you divided by the scales where you should multiply",
        ),
        Mistake(
            lambda x, s: x + s.reshape(-1, *[1] * (x.ndim - 1)),
            "you added the numbers to the images where you should multiply",
        ),
    ),
    alternatives=(scale_each_in_float64, scale_each_by_loop, scale_each_in_place, scale_each_turned),
)


# ---------------------------------------------------------------- 00.3


def draw(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """A draw from N(mean, variance), made from a draw `noise` from N(0, 1).

    mean, variance, noise: the same shape; variance is positive.
    Returns the same shape; gradients flow to mean and variance.
    """
    return mean + variance**0.5 * noise


def draw_inputs(generator: torch.Generator, index: int) -> Case:
    """Means and variances of several shapes."""
    shape = ((6,), (3, 4), (2, 1, 5, 5), (1,))[index]
    mean, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    variance = torch.rand(shape, generator=generator) * 3 + 0.2
    facts = {"first": float(variance.flatten()[0])}
    return Case({"mean": mean, "variance": variance, "noise": noise}, facts)


def value_and_gradients(answer, mean, variance, noise):
    """The draw and its gradients with respect to mean and variance (zeros where none arrive)."""
    mean, variance = mean.requires_grad_(), variance.requires_grad_()
    value = answer(mean, variance, noise)
    if not isinstance(value, Tensor):
        names = ("draw", "gradient for mean", "gradient for variance")
        return None if value is None else {"type": type(value).__name__, **dict.fromkeys(names)}
    gradients = [torch.zeros_like(mean), torch.zeros_like(variance)]
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), (mean, variance), allow_unused=True)
        gradients = [zero if g is None else g for zero, g in zip(gradients, found, strict=True)]
    return {
        "type": "tensor",
        "draw": value.detach(),
        "gradient for mean": gradients[0],
        "gradient for variance": gradients[1],
    }


def draw_in_float64(mean, variance, noise):
    return (mean.double() + variance.double().sqrt() * noise.double()).to(mean.dtype)


def draw_by_loop(mean, variance, noise):
    parts = zip(mean.flatten(), variance.flatten(), noise.flatten(), strict=True)
    return torch.stack([m + v.sqrt() * e for m, v, e in parts]).reshape(mean.shape)


def draw_in_place(mean, variance, noise):
    result = mean.clone()
    result += noise * variance.sqrt()
    return result


def draw_flat(mean, variance, noise):
    return torch.addcmul(mean.reshape(-1), variance.reshape(-1).sqrt(), noise.reshape(-1)).reshape(mean.shape)


DRAW = Exercise(
    id="00.3",
    title="Reparameterisation",
    difficulty=1,
    minutes=2,
    equation="",
    where="Self-test",
    lines=1,
    reference=draw,
    inputs=draw_inputs,
    run=value_and_gradients,
    hints=(
        "Start from a standard normal number. Stretch it until its spread is right, then shift it.",
        "If ε ~ N(0, 1), then μ + σ ε ~ N(μ, σ²). You are given σ², not σ.",
        "`return mean + (...) ** 0.5 * noise`",
    ),
    mistakes=(
        Mistake(
            lambda m, v, e: m + v * e,
            lambda at: (
                f"you scaled the noise by the variance ({at.first:.3g} for the first number); what stretches a draw is "
                f"the standard deviation ({at.first**0.5:.3g}) (refresher B)"
            ),
        ),
        Mistake(
            lambda m, v, e: v**0.5 * (m + e),
            "you shifted first and stretched afterwards, so that the mean got stretched too (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m + e,
            "you left out the spread: every draw of yours has variance 1 (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m + e / v**0.5,
            "you divided by the standard deviation: that turns a draw back into a standard normal number (refresher B)",
        ),
        Mistake(
            lambda m, v, e: v**0.5 * e,
            "you left out the mean (refresher B)",
        ),
        Mistake(
            lambda m, v, e: torch.normal(m.detach(), v.detach() ** 0.5),
            "you let PyTorch draw: `noise` is not used, and no gradient reaches mean and variance (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m.detach() + v.detach() ** 0.5 * e,
            "you cut the gradient: the draw is right, but nothing can be learned through it (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m + v.detach() ** 0.5 * e,
            "your draw is right, but no gradient reaches `variance`: `.detach()`, `.data` or `.item()` cuts it off, so "
            "the spread could not be learned (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m.detach() + v**0.5 * e,
            "your draw is right, but no gradient reaches `mean`: `.detach()`, `.data` or `.item()` cuts it off "
            "(refresher B)",
        ),
        Mistake(
            lambda m, v, e: m + v**2 * e,
            lambda at: (
                f"you squared the variance; a draw is stretched by the standard deviation, its root "
                f"({at.first**0.5:.3g} for the first number, yours is {at.first**2:.3g}) (refresher B)"
            ),
        ),
        Mistake(
            lambda m, v, e: m + torch.exp(v / 2) * e,
            "you took the variance for its logarithm, which networks often predict; here `variance` is the variance "
            "itself (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m + v / 2 * e,
            "you halved the variance: the standard deviation is its square root, not its half (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m - v**0.5 * e,
            "you subtracted the noise: as likely a draw, but not the one that `noise` stands for (refresher B)",
        ),
        Mistake(
            lambda m, v, e: m + v**0.5,
            "you went one standard deviation up from the mean: `noise` is not used (refresher B)",
        ),
    ),
    alternatives=(draw_in_float64, draw_by_loop, draw_in_place, draw_flat),
)


# ---------------------------------------------------------------- 00.4


def condition(mean: Tensor, covariance: Tensor, y: float) -> Tensor:
    """Mean and variance of x given y, for two jointly Gaussian numbers (x, y).

    mean: shape (2,), the means of x and y.
    covariance: shape (2, 2), symmetric, positive definite: [[Var x, Cov], [Cov, Var y]].
    y: the value that was seen.
    Returns shape (2,): E[x | y] and Var[x | y].
    """
    gain = covariance[0, 1] / covariance[1, 1]
    return torch.stack([mean[0] + gain * (y - mean[1]), covariance[0, 0] - gain * covariance[0, 1]])


def condition_inputs(generator: torch.Generator, index: int) -> Case:
    """Random means and covariances."""
    mean, root = torch.randn(2, generator=generator), torch.randn(2, 2, generator=generator)
    y = (1.5, -2.0, 0.5, 3.0)[index]
    return Case({"mean": mean, "covariance": root @ root.T + 0.3 * torch.eye(2), "y": y}, {"y": y})


def condition_in_float64(mean, covariance, y):
    m, c = mean.double(), covariance.double()
    return torch.stack([m[0] + c[0, 1] / c[1, 1] * (y - m[1]), c[0, 0] - c[0, 1] ** 2 / c[1, 1]]).to(mean.dtype)


def condition_by_precision(mean, covariance, y):
    precision = torch.linalg.inv(covariance)
    variance = 1 / precision[0, 0]
    return torch.stack([mean[0] - variance * precision[0, 1] * (y - mean[1]), variance])


def condition_by_correlation(mean, covariance, y):
    std = covariance.diagonal().sqrt()
    rho = covariance[0, 1] / (std[0] * std[1])
    return torch.stack([mean[0] + rho * std[0] * (y - mean[1]) / std[1], std[0] ** 2 * (1 - rho**2)])


def condition_by_numbers(mean, covariance, y):
    (xx, xy), (_, yy) = covariance.tolist()
    mx, my = mean.tolist()
    return torch.tensor([mx + xy / yy * (y - my), xx - xy * xy / yy], dtype=mean.dtype)


def _conditioned(mean, covariance, y, gain, lost):
    return torch.stack([mean[0] + gain * (y - mean[1]), covariance[0, 0] - lost])


CONDITION = Exercise(
    id="00.4",
    title="Conditioning a Gaussian",
    difficulty=2,
    minutes=4,
    equation="",
    where="Self-test",
    lines=2,
    reference=condition,
    inputs=condition_inputs,
    hints=(
        "Seeing y moves the guess for x in proportion to the surprise y - E[y], and makes x less uncertain.",
        "E[x | y] = E[x] + Cov / Var y · (y - E[y]) and Var[x | y] = Var x - Cov² / Var y.",
        "`gain = covariance[0, 1] / ...`, then `return torch.stack([mean[0] + gain * (...), covariance[0, 0] - ...])`",
    ),
    mistakes=(
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1], c[0, 1] ** 2),
            "you did not divide by Var y: a noisy y must move the guess less than a sharp one (refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[0, 0], c[0, 1] ** 2 / c[0, 0]),
            "you divided by Var x where Var y belongs: that is the rule for y given x (refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[1, 1], 0 * c[0, 0]),
            "your mean is right, but you left the variance as it was: knowing y makes x less uncertain (refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[1, 1], -(c[0, 1] ** 2) / c[1, 1]),
            "your mean is right, but your variance grew: knowing y can only make x less uncertain (refresher C)",
        ),
        Mistake(
            lambda m, c, y: torch.stack([m[0] + c[0, 1] / c[1, 1] * y, c[0, 0] - c[0, 1] ** 2 / c[1, 1]]),
            "you moved the guess by y itself, not by the surprise y - E[y]: a y just as expected must change nothing "
            "(refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, -c[0, 1] / c[1, 1], c[0, 1] ** 2 / c[1, 1]),
            "you moved the mean the wrong way: with a positive covariance a high y speaks for a high x (refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[1, 1] ** 0.5, c[0, 1] ** 2 / c[1, 1]),
            "you divided by the standard deviation of y in the mean, where its variance belongs (refresher C)",
        ),
        Mistake(
            lambda m, c, y: torch.stack([m[0], c[0, 0]]),
            "you returned the mean and variance of x before y was seen (refresher C)",
        ),
        Mistake(
            lambda m, c, y: tuple(condition(m, c, y)),
            "your two numbers are right, but you returned them one beside the other: the answer is one tensor of shape "
            "(2,), and `torch.stack` makes it",
        ),
        Mistake(
            lambda m, c, y: condition(m, c, y).flip(0),
            "your two numbers are right, but swapped: first E[x | y], then Var[x | y]",
        ),
        Mistake(
            lambda m, c, y: torch.stack([condition(m, c, y)[0], condition(m, c, y)[1] ** 0.5]),
            "your mean is right, but you returned the standard deviation: the variance is asked for (refresher C)",
        ),
        Mistake(
            lambda m, c, y: torch.stack([m[1] + c[0, 1] / c[0, 0] * (y - m[0]), c[1, 1] - c[0, 1] ** 2 / c[0, 0]]),
            "you swapped the roles of x and y: yours are the mean and variance of y, once x = {y} is known",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / (c[0, 0] * c[1, 1]) ** 0.5, c[0, 1] ** 2 / c[1, 1]),
            "you took the correlation for the slope: it is the slope only where x and y have the same spread "
            "(refresher C)",
        ),
        Mistake(
            lambda m, c, y: torch.stack([m[0] + c[0, 1] / c[1, 1] * (y - m[0]), c[0, 0] - c[0, 1] ** 2 / c[1, 1]]),
            "your variance is right, but you measured the surprise in y = {y} from E[x]: it is y that surprises "
            "(refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(
                0 * m + torch.stack([0 * m[0], m[1]]), c, y, c[0, 1] / c[1, 1], c[0, 1] ** 2 / c[1, 1]
            ),
            "your variance is right, but your mean lacks E[x]: the surprise in y moves the guess away from there "
            "(refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[1, 1], c[0, 1] / c[1, 1]),
            "your mean is right, but you took the slope Cov / Var y off the variance: what it loses is Cov² / Var y "
            "(refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[1, 1], c[0, 1]),
            "your mean is right, but you took the covariance itself off the variance: what it loses is Cov² / Var y "
            "(refresher C)",
        ),
        Mistake(
            lambda m, c, y: _conditioned(m, c, y, c[0, 1] / c[1, 1], c[0, 1] ** 2 / c[1, 1] ** 2),
            "your mean is right, but you divided by Var y twice in the variance (refresher C)",
        ),
    ),
    alternatives=(condition_in_float64, condition_by_precision, condition_by_correlation, condition_by_numbers),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 00.5


def kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    """KL(q ‖ p) of one-dimensional Gaussians q = N(mean_q, var_q) and p = N(mean_p, var_p), in nats.

    All four: the same shape; variances are positive.
    Returns the same shape.
    """
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


def kl_inputs(generator: torch.Generator, index: int) -> Case:
    """Pairs of Gaussians, in several shapes."""
    shape = ((5,), (2, 3), (1,), (4, 1, 2))[index]
    means = [torch.randn(shape, generator=generator) for _ in range(2)]
    variances = [torch.rand(shape, generator=generator) * 2 + 0.2 for _ in range(2)]
    return Case({"mean_q": means[0], "var_q": variances[0], "mean_p": means[1], "var_p": variances[1]})


def kl_in_float64(mean_q, var_q, mean_p, var_p):
    mq, vq, mp, vp = (value.double() for value in (mean_q, var_q, mean_p, var_p))
    return (0.5 * (vp.log() - vq.log() + (vq + (mq - mp) ** 2) / vp - 1)).to(mean_q.dtype)


def kl_by_loop(mean_q, var_q, mean_p, var_p):
    result = torch.empty_like(mean_q)
    for i in range(mean_q.numel()):
        mq, vq, mp, vp = (float(value.flatten()[i]) for value in (mean_q, var_q, mean_p, var_p))
        result.view(-1)[i] = 0.5 * (math.log(vp / vq) + (vq + (mq - mp) ** 2) / vp - 1)
    return result


def kl_by_torch(mean_q, var_q, mean_p, var_p):
    normal = torch.distributions.Normal
    return torch.distributions.kl_divergence(normal(mean_q, var_q.sqrt()), normal(mean_p, var_p.sqrt()))


def kl_in_place(mean_q, var_q, mean_p, var_p):
    result = mean_q.clone()
    result -= mean_p
    result = result.square_().add_(var_q).div_(var_p)
    return result.sub_(1).sub_(torch.log(var_q / var_p)).mul_(0.5)


KL = Exercise(
    id="00.5",
    title="The distance of two Gaussians",
    difficulty=2,
    minutes=4,
    equation="",
    where="Self-test",
    lines=1,
    reference=kl,
    inputs=kl_inputs,
    hints=(
        "KL(q ‖ p) is the mean, over draws from q, of log q - log p. Both logarithms are parabolas.",
        "KL = ½ (log(σ_p² / σ_q²) + (σ_q² + (μ_q - μ_p)²) / σ_p² - 1)",
        "`return 0.5 * (torch.log(...) + (var_q + ...) / var_p - 1)`",
    ),
    mistakes=(
        Mistake(
            lambda mq, vq, mp, vp: 2 * kl(mq, vq, mp, vp),
            "you left out the factor ½ (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: kl(mp, vp, mq, vq),
            "you computed KL(p ‖ q): the KL is not symmetric, and here the average is over draws from q (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vq / vp) + (vq + (mq - mp) ** 2) / vp - 1),
            "you turned the fraction in the logarithm over: your KL is negative for some q, and a KL never is "
            "(refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + (vq + (mq - mp) ** 2) / vp),
            "you left out the -1: two equal Gaussians are ½ apart for you, and should be 0 apart (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + (vq + (mq - mp).abs()) / vp - 1),
            "you did not square the difference of the means (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + vq / vp - 1),
            "you left out the means (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: (mq - mp) ** 2 / (2 * vp),
            "you compared the means only: that is the KL of two Gaussians with equal variances (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: kl(mq, vq**2, mp, vp**2),
            "you took var_q and var_p for standard deviations and squared them again (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: gaussian.normal_kl(mq, vq, mp, vp),
            "you took the variances for their logarithms: `gaussian.normal_kl` of the package expects log-variances",
        ),
        Mistake(
            lambda mq, vq, mp, vp: kl(mq, vq, mp, vp) / math.log(2),
            "you returned bits; the answer is asked in nats, with the natural logarithm (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log2(vp / vq) + (vq + (mq - mp) ** 2) / vp - 1),
            "you took the logarithm to base 2; the formula holds with the natural one (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * torch.log(vp / vq) + (vq + (mq - mp) ** 2) / vp - 1,
            "your ½ is on the logarithm alone: it belongs to all of the terms, look at your brackets (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: torch.log(vp / vq) + 0.5 * ((vq + (mq - mp) ** 2) / vp - 1),
            "your ½ is missing on the logarithm of the variances: log(σ_p/σ_q) has none, log(σ_p²/σ_q²) has one "
            "(refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: torch.log(vp / vq) / 2 + (vq + (mq - mp) ** 2) / (2 * vp) - 1,
            "your -1 lacks the factor ½: two equal Gaussians are -½ apart for you, and a KL is never negative "
            "(refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + (vq + mq - mp) / vp - 1),
            "you left out the square of the difference of the means: yours counts p's mean below q's as nearer than "
            "equal (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * ((vq + (mq - mp) ** 2) / vp - 1),
            "you left out the logarithm of the two variances (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + (mq - mp) ** 2 / vp - 1),
            "you left out q's variance over p's (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + vq / vp + (mq - mp) ** 2 - 1),
            "you did not divide the difference of the means by p's variance: a sharp p makes the same difference count "
            "for more (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + (vq + (mq - mp) ** 2) / vq - 1),
            "you divided by q's variance where p's belongs: the distance is measured on the scale of p (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) + vq + (mq - mp) ** 2 / vp - 1),
            "you divided only the square by p's variance, not q's variance: look at your brackets (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: 0.5 * (torch.log(vp / vq) / 2 + (vq + (mq - mp) ** 2) / vp - 1),
            "you halved the logarithm twice: log(σ_p/σ_q) is half of log(σ_p²/σ_q²) already (refresher D)",
        ),
        Mistake(
            lambda mq, vq, mp, vp: kl(mq, vq, mp, vp).sum(),
            "you summed over all pairs: every pair of Gaussians has a KL of its own, so the result has their shape",
        ),
    ),
    alternatives=(kl_in_float64, kl_by_loop, kl_by_torch, kl_in_place),
    rtol=1e-4,
)


EXERCISES = (BLEND, SCALE_EACH, DRAW, CONDITION, KL)
