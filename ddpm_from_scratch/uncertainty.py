"""How sure a distance between sets of features is: bootstrap intervals, and what the number of samples does to it.

Two different things. The interval says how much the figure would move with other samples, as many. The bias says how
far it lies, on average, above what infinitely many samples would give; the interval does not cover that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_from_scratch import metrics

REPLICATES = 200
LEVEL = 0.95
SPLITS = 8


@dataclass(frozen=True)
class Interval:
    """A figure's range: it holds the mean figure of as many samples, about `LEVEL` of the times that one is made."""

    low: float
    high: float


def centred_interval(figure: float, replicates: Tensor, level: float = LEVEL) -> Interval:
    """The percentile interval of bootstrap replicates, moved so that their mean is the figure.

    Drawing again from a sample adds the bias of a sample once more (Efron and Tibshirani 1993, chapter 10): the
    replicates of a Fréchet distance lie above the figure, and without the move the interval might not hold it.

    Args:
        figure: of the samples themselves.
        replicates: (B,) the same figure of B sets drawn from them with replacement.
        level: share of the replicates inside, in (0, 1).

    Raises:
        ValueError: fewer than two replicates, or a level out of range.
    """
    if replicates.ndim != 1 or len(replicates) < 2 or not 0 < level < 1:
        raise ValueError(f"expected at least 2 replicates and a level in (0, 1), got {len(replicates)} and {level}")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (replicates.double().quantile(tails) - replicates.double().mean() + figure).tolist()
    return Interval(low, high)


def resampled_counts(size: int, replicates: int, seed: int) -> Tensor:
    """How often each of `size` samples is drawn when as many are drawn with replacement; (replicates, size) float64."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(replicates, size, dtype=torch.float64)
    for row in counts:
        row += torch.bincount(torch.randint(size, (size,), generator=generator), minlength=size)
    return counts


def frechet_interval(
    features: Tensor, real: metrics.GaussianStatistics, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """Bootstrap interval of the Fréchet distance; the real images' statistics are taken as given.

    Near the floor it is too wide, by up to √3: where the true distance is 0 the figure is a square of errors, and the
    bootstrap adds the sample's own error to those it draws. It errs on the safe side.

    Args:
        features: (N, D) of the samples.
        real: statistics of the real images.
        replicates: sets drawn with replacement.
        seed: of these draws.

    Raises:
        ValueError: features that cannot be judged, or fewer than two replicates.
    """
    own, f = metrics.gaussian_statistics(features), features.cpu().double()
    found = []
    for counts in resampled_counts(len(f), replicates, seed):
        mean = counts @ f / len(f)
        away = f - mean
        covariance = (counts[:, None] * away).T @ away / (len(f) - 1)
        found.append(metrics.frechet_distance(mean, covariance, real.mean, real.covariance))
    figure = metrics.frechet_distance(own.mean, own.covariance, real.mean, real.covariance)
    moved = centred_interval(figure, torch.tensor(found))
    return Interval(max(moved.low, 0.0), moved.high)


def kernel_interval(features: Tensor, real_features: Tensor, replicates: int = REPLICATES, seed: int = 0) -> Interval:
    """Bootstrap interval of the kernel distance; the real images' features are taken as given.

    A sample that is drawn twice is no pair with itself: such pairs are left out, as in the figure.

    Args:
        features: (N, D) of the samples; N² kernel values are held at a time.
        real_features: (M, D).
        replicates, seed: as in `frechet_interval`.

    Raises:
        ValueError: as `metrics.kernel_distance`, or fewer than two replicates.
    """
    figure = metrics.kernel_distance(features, real_features)
    counts = resampled_counts(len(features), replicates, seed)
    counts = counts[counts.amax(dim=1) < len(features)]  # one sample again and again has no pair
    return centred_interval(figure, kernel_replicates(features, real_features, counts))


def kernel_replicates(features: Tensor, real_features: Tensor, counts: Tensor) -> Tensor:
    """The kernel distance of resampled sets, but for its part within the real images, which is the same in all.

    Args:
        features, real_features: (N, D) and (M, D).
        counts: (B, N), how often each sample is in each set, in none of them one sample alone.

    Returns:
        (B,), float64.
    """
    x, y = features.cpu().double(), real_features.cpu().double()
    own = metrics.kernel(x, x)
    own.fill_diagonal_(0)
    to_real = torch.cat([metrics.kernel(block, y).mean(dim=1) for block in x.split(metrics.KERNEL_BLOCK)])
    pairs = len(x) ** 2 - counts.square().sum(dim=1)
    return (counts @ own * counts).sum(dim=1) / pairs - 2 * counts @ to_real / len(x)


# ---------------------------------------------------------------- sample size and bias


def gaussian_bias(covariance: Tensor, count: int) -> float:
    """The mean Fréchet distance between N(μ, Σ) and the statistics of `count` of its own draws, to first order in 1/N.

    With Σ = diag(λ), the mean costs Tr Σ / N. A small change E of Σ costs ½ Σ_ij E_ij² / (λ_i + λ_j), and the sample
    covariance has Var E_ij = λ_i λ_j (1 + δ_ij) / (N - 1). Both are proportional to 1/N.

    Args:
        covariance: Σ, (D, D); directions without variance cost nothing.
        count: N, at least 2.

    Raises:
        ValueError: fewer than two draws.
    """
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 draws, got {count}")
    eigenvalues = torch.linalg.eigvalsh(covariance.cpu().double()).clamp(min=0)
    scale = eigenvalues[eigenvalues > 1e-12 * eigenvalues.amax().clamp(min=1e-300)]
    pairs = scale[:, None] * scale / (scale[:, None] + scale)
    return float(scale.sum() / count + (pairs.sum() + pairs.diagonal().sum()) / (2 * (count - 1)))


def frechet_by_size(
    features: Tensor, real: metrics.GaussianStatistics, sizes: list[int], repeats: int = SPLITS, seed: int = 0
) -> list[float]:
    """The mean Fréchet distance of random subsets of each size.

    Args:
        features: (N, D).
        real: statistics of the real images.
        sizes: each from 2 to N.
        repeats: subsets of each size.
        seed: of their choice.

    Raises:
        ValueError: a size out of range.
    """
    if not all(2 <= size <= len(features) for size in sizes):
        raise ValueError(f"sizes must lie in [2, {len(features)}], got {sizes}")
    generator = torch.Generator().manual_seed(seed)
    means = []
    for size in sizes:
        total = 0.0
        for _ in range(repeats):
            part = metrics.gaussian_statistics(features[torch.randperm(len(features), generator=generator)[:size]])
            total += metrics.frechet_distance(part.mean, part.covariance, real.mean, real.covariance)
        means.append(total / repeats)
    return means


def frechet_bias(features: Tensor, real: metrics.GaussianStatistics, splits: int = SPLITS, seed: int = 0) -> float:
    """How far the Fréchet distance of these samples lies above that of infinitely many, by its own halves.

    If the figure of n samples is a + b/n on average, two halves give b/N more than the whole, and b/N is the bias of
    the whole. (Chong and Forsyth 2020, arXiv 1911.07023, fit the same line through more sizes.)

    Args:
        features: (N, D), N at least 4; the line holds where N is several times D.
        real: statistics of the real images.
        splits: into random halves, averaged.
        seed: of the splits.

    Raises:
        ValueError: fewer than four vectors.
    """
    if len(features) < 4:
        raise ValueError(f"two halves need at least 4 feature vectors, got {len(features)}")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in (torch.randperm(len(features), generator=generator).chunk(2) for _ in range(splits)):
        for half in part:
            own = metrics.gaussian_statistics(features[half])
            found.append(metrics.frechet_distance(own.mean, own.covariance, real.mean, real.covariance))
    whole = metrics.gaussian_statistics(features)
    figure = metrics.frechet_distance(whole.mean, whole.covariance, real.mean, real.covariance)
    return sum(found) / len(found) - figure


def floor_at(train: metrics.GaussianStatistics, test: metrics.GaussianStatistics, count: int) -> float:
    """The Fréchet distance that `count` real images would have, from that of the test images there are.

    The 1/N part of it (`gaussian_bias`) is exchanged for that of another number; Gaussian features are assumed there.

    Args:
        train: statistics that samples are compared with.
        test: statistics of real images held out.
        count: at least 2.

    Raises:
        ValueError: fewer than two images.
    """
    measured = metrics.frechet_distance(train.mean, train.covariance, test.mean, test.covariance)
    change = gaussian_bias(train.covariance, count) - gaussian_bias(train.covariance, test.count)
    return max(measured + change, 0.0)
