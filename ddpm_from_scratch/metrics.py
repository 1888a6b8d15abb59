"""How good are samples, and how likely are images: Fréchet and kernel distance, shares, bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import outputs, seeded

KERNEL_BLOCK = 1000

# ---------------------------------------------------------------- distances between sets of features


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean (D,) and covariance (D, D) of `count` feature vectors, float64."""

    mean: Tensor
    covariance: Tensor
    count: int


def gaussian_statistics(features: Tensor) -> GaussianStatistics:
    """Mean and unbiased covariance of feature vectors (N, D).

    Raises:
        ValueError: fewer than two vectors, or values that are not finite.
    """
    _check_features(features)
    f = features.cpu().double()
    return GaussianStatistics(f.mean(dim=0), torch.cov(f.T).reshape(f.shape[1], f.shape[1]), len(f))


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected at least two feature vectors, (N, D), got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("some features are not finite: the images hold NaN or infinite values")


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The squared Fréchet distance of two Gaussians, FID where the features are Inception's (Heusel et al. 2017).

    Its estimate from samples is biased upwards, the more the fewer they are: compare equal numbers only.

    Args:
        mean1, mean2: (D,).
        covariance1, covariance2: (D, D), symmetric, no negative eigenvalue.
    """
    mean1, covariance1, mean2, covariance2 = (x.cpu().double() for x in (mean1, covariance1, mean2, covariance2))
    # Tr (Σ1 Σ2)^½ = Tr (Σ1^½ Σ2 Σ1^½)^½, and the right-hand matrix is symmetric
    values, vectors = torch.linalg.eigh(covariance1)
    root1 = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root1 @ covariance2 @ root1).clamp(min=0).sqrt().sum()
    # Heusel et al. 2017, eq. 6: ‖μ1 - μ2‖² + Tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½)
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(features1: Tensor, features2: Tensor) -> float:
    """The unbiased squared MMD with the kernel (x·y / D + 1)³, KID where the features are Inception's.

    Binkowski et al. 2018, section 4. Its expectation does not depend on the numbers of samples; it may be negative.

    Args:
        features1, features2: (N, D) and (M, D).

    Raises:
        ValueError: fewer than two vectors in a set, values that are not finite, or two feature sizes.
    """
    for features in (features1, features2):
        _check_features(features)
    if features1.shape[1] != features2.shape[1]:
        raise ValueError(f"the sets have {features1.shape[1]} and {features2.shape[1]} features a vector")
    x, y = features1.cpu().double(), features2.cpu().double()
    n, m = len(x), len(y)
    # unbiased: the pairs of a vector with itself are left out
    within_x = (_kernel_sum(x, x) - _kernel_diagonal(x).sum()) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _kernel_diagonal(y).sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y) / (n * m))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x·y / D + 1)³ of every pair; x (N, D) and y (M, D) → (N, M) (Binkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([kernel(block, y).sum() for block in x.split(KERNEL_BLOCK)]).sum()


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.square().mean(dim=1) + 1) ** 3


# ---------------------------------------------------------------- shares


def confident_share(logits: Tensor, threshold: float = 0.9) -> float:
    """Share of the images whose likeliest class has a probability above `threshold`; logits (N, K)."""
    return float((logits.cpu().double().softmax(dim=1).amax(dim=1) > threshold).double().mean())


def class_shares(logits: Tensor) -> list[float]:
    """Share of the images for which each class is the likeliest; logits (N, K) → K shares."""
    counts = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
    return (counts.cpu().double() / len(logits)).tolist()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over equal ranges of confidence.

    Args:
        logits: (N, K).
        labels: (N,).
    """
    confidence, guess = logits.cpu().double().softmax(dim=1).max(dim=1)
    gap = (guess == labels.cpu()).double() - confidence
    place = (confidence * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins).double().index_add_(0, place, gap).abs().sum() / len(logits))


# ---------------------------------------------------------------- bits per dimension


@dataclass(frozen=True)
class BitsPerDimension:
    """The variational bound of Ho eq. 5 in bits per dimension, averaged over images.

    Args:
        prior: L_T.
        diffusion: Σ L_{t-1} over t > 0.
        decoder: L_0.
        standard_error: of the total, from the spread over the images.
        by_timestep: (T,), L_0 first, then the mean of L_{t-1} at each t; NaN where no image was asked.
    """

    prior: float
    diffusion: float
    decoder: float
    standard_error: float
    by_timestep: Tensor

    @property
    def total(self) -> float:
        """The bound itself."""
        return self.prior + self.diffusion + self.decoder


@torch.no_grad()
def bits_per_dimension(
    model: Callable[..., Any],
    scheduler: DDPMScheduler,
    images: Tensor,
    timesteps_per_image: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    discrete: bool = True,
    class_labels: Tensor | None = None,
    show_progress: bool = True,
    done: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> BitsPerDimension:
    """The negative log-likelihood bound of a model (Ho eq. 3), term by term (eq. 5; discrete decoder eq. 13).

    Conventions of Nichol and Dhariwal 2021: x̂_0 is clipped or thresholded as by the scheduler, and the decoder of
    8-bit pixels has the variance β̃ of the step after it, whatever `variance_type` (their own β̃ or β would be 0 or too
    wide).

    Args:
        model: `model(x_t, t).sample` is the prediction.
        scheduler: gives the noise schedule, the prediction type, the variance and the clipping.
        images: (N, C, H, W), finite floating-point numbers, in [-1, 1] where `discrete`.
        timesteps_per_image: ask this many t > 0, one from each of as many equal ranges, which leaves the estimate
            unbiased; None asks all.
        batch_size: network calls at a time; it does not change the result.
        seed: the noise and the choice of t depend on (seed, image, t) alone.
        discrete: 8-bit pixels (values k/127.5 - 1) under the discrete decoder; False: continuous data under the
            Gaussian density, for checks against a known entropy.
        class_labels: (N,), for a class-conditional model.
        show_progress: with a bar.
        done: (K,), the terms that a call with the same arguments gave to `keep` before it was stopped.
        keep: called after each batch with all terms so far, (K,) float64. The result is that of an unbroken call, to
            the last digit if the batches have the same size.

    Raises:
        ValueError: fewer than two images, or other ones than these; a number of timesteps out of range, or batches of
            none; ε-prediction where ᾱ_T = 0; a network whose output does not fit the scheduler.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    T, n = len(scheduler), len(images)
    asked = T - 1 if timesteps_per_image is None else timesteps_per_image
    if n < 2 or not min(1, T - 1) <= asked <= T - 1:
        raise ValueError(f"expected at least 2 images and 1 to {T - 1} timesteps an image, got {n} and {asked}")
    _check_bound(scheduler, images, discrete)
    bound = _Bound(model, scheduler, discrete)
    pairs = torch.cat([_ask(seed, i, asked, T) for i in range(n)])  # columns: image, t, weight
    index, t = pairs[:, 0].long(), pairs[:, 1].long()
    known = torch.zeros(0) if done is None else done
    terms = torch.cat([known.double(), torch.zeros(len(pairs) - len(known)).double()])
    bar = {"initial": len(known) // batch_size, "total": math.ceil(len(pairs) / batch_size)}
    starts = range(len(known), len(pairs), batch_size)
    for start in tqdm(starts, desc="bits per dimension", unit="batch", disable=not show_progress, **bar):
        part = slice(start, start + batch_size)
        x0, labels = images[index[part]], None if class_labels is None else class_labels[index[part]]
        noise = gaussian.randn(x0.shape, list(_noise_generators(seed, index[part], t[part])))
        terms[part] = bound.term(x0, noise, t[part], labels)
        if keep is not None:
            keep(terms[: part.stop])
    sums, counts, per_image = torch.zeros(T).double(), torch.zeros(T).double(), torch.zeros(2, n).double()
    sums.index_add_(0, t, terms)
    counts.index_add_(0, t, torch.ones_like(terms))
    per_image.view(-1).index_add_(0, index + n * (t == 0), terms * pairs[:, 2])
    prior = bound.prior(images)
    total = prior + per_image.sum(dim=0)
    error = float(total.std()) / math.sqrt(n)
    diffusion, decoder = per_image.mean(dim=1).tolist()
    return BitsPerDimension(float(prior.mean()), diffusion, decoder, error, sums / counts)


def _check_bound(scheduler: DDPMScheduler, images: Tensor, discrete: bool) -> None:
    if not images.is_floating_point() or not images.isfinite().all():
        found = "values that are not finite" if images.is_floating_point() else images.dtype
        raise ValueError(f"images must be finite floating-point numbers (8-bit ones pixel / 127.5 - 1), got {found}")
    if discrete and images.abs().max() > 1:
        low, high = float(images.min()), float(images.max())
        raise ValueError(f"8-bit images lie in [-1, 1] (pixel / 127.5 - 1), got values from {low:.4g} to {high:.4g}")
    if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] == 0:
        raise ValueError(
            "ε-prediction has no bound where ᾱ_T = 0 (zero terminal SNR), for x_0 cannot be recovered there: take a "
            "model trained with prediction_type='v_prediction' or 'sample'"
        )


def _ask(seed: int, image: int, asked: int, T: int) -> Tensor:
    """Which t an image is asked: 0, and one of each of `asked` ranges of 1..T-1, with the range's length as weight."""
    edges = 1 + torch.arange(asked + 1) * (T - 1) // max(asked, 1)
    lengths = edges.diff()
    uniform = torch.rand(asked, generator=seeded(seed, "order", image))
    t = torch.cat([torch.zeros(1), edges[:-1] + (uniform * lengths).floor()])
    weight = torch.cat([torch.ones(1), lengths])
    return torch.stack([torch.full_like(weight, image), t, weight], dim=1).double()


def _noise_generators(seed: int, index: Tensor, t: Tensor) -> Iterator[torch.Generator]:
    return (seeded(seed, "noise", i, s) for i, s in zip(index.tolist(), t.tolist(), strict=True))


class _Bound:
    """The terms of Ho eq. 5 for one model, in bits per dimension; float64 but for the network."""

    def __init__(self, model: Callable[..., Any], scheduler: DDPMScheduler, discrete: bool) -> None:
        self.model, self.scheduler, self.discrete = model, scheduler, discrete
        now = scheduler.alphas_cumprod.double()
        prev = torch.cat([torch.ones(1).double(), now[:-1]])
        self.now, self.prev = now, prev
        posterior = torch.as_tensor(gaussian.posterior_variance(now, prev))
        self.small, self.large = posterior.log(), (1 - now / prev).log()
        self.small[0] = self.small[1] if len(now) > 1 else math.log(1e-20)
        self.fixed = self.large.clone() if scheduler.variance_type.startswith("fixed_large") else self.small.clone()
        if discrete:
            self.fixed[0] = self.small[0]

    def prior(self, x0: Tensor) -> Tensor:
        """L_T per image: KL(q(x_T | x_0) ‖ N(0, I))."""
        alpha_bar = self.now[-1]
        mean, zero = alpha_bar**0.5 * x0.double().cpu(), torch.zeros(()).double()
        return _bits(gaussian.normal_kl(mean, (1 - alpha_bar).log(), zero, zero))

    def term(self, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """L_{t-1} per image, L_0 where t = 0."""
        x0, noise = x0.cpu().double(), noise.double()
        now, prev, small, large, fixed = (
            table[t].view(-1, *[1] * (x0.ndim - 1))
            for table in (self.now, self.prev, self.small, self.large, self.fixed)
        )
        x_t = gaussian.q_sample(x0, noise, now)
        prediction, v = self._predict(x_t, t, labels)
        log_variance = fixed if v is None else (v + 1) / 2 * large + (1 - v) / 2 * small
        mean = gaussian.posterior_mean(x_t, self.scheduler._predict_x0(prediction, x_t, now), now, prev)
        kl = gaussian.normal_kl(gaussian.posterior_mean(x_t, x0, now, prev), small, mean, log_variance)
        first = (t == 0).nonzero().flatten()
        return _bits(kl.index_copy(0, first, self._decoder(x0[first], mean[first], log_variance[first])))

    def _predict(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        device = getattr(self.model, "device", x_t.device)
        dtype = getattr(self.model, "dtype", x_t.dtype)
        condition = {} if labels is None else {"class_labels": labels.to(device)}
        output = self.model(x_t.to(device, dtype), t.to(device), **condition).sample.cpu().double()
        expected = (len(x_t), outputs(self.scheduler, x_t.shape[1]), *x_t.shape[2:])
        if output.shape != expected:
            raise ValueError(
                f"the network's output has shape {tuple(output.shape)}, a scheduler of variance_type="
                f"{self.scheduler.variance_type!r} expects {expected}: take the one that it was trained with"
            )
        if self.scheduler.variance_is_learned:
            prediction, v = output.chunk(2, dim=1)
            return prediction, v
        return output, None

    def _decoder(self, x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """-log p(x_0 | x_1) per element, in nats."""
        if self.discrete:
            return -gaussian.discretized_log_likelihood(x0, mean, log_variance)
        return 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean) ** 2 * torch.exp(-log_variance))


def _bits(nats: Tensor) -> Tensor:
    """Nats per element (B, C, H, W) → bits per dimension (B,)."""
    return gaussian.nats_to_bits(nats.flatten(1).mean(dim=1))
