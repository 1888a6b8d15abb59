"""Intervals and bias of the distances, on Gaussians, where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddpm_from_scratch import metrics, uncertainty
from ddpm_from_scratch.metrics import GaussianStatistics

D = 6
SCALES = torch.tensor([2.0, 1.5, 1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
REAL = GaussianStatistics(torch.zeros(D).double(), torch.diag(SCALES**2), 10**9)
SHIFT = 0.4


def draws(count: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator, dtype=torch.float64) * SCALES + shift * SCALES


def frechet(features: Tensor) -> float:
    own = metrics.gaussian_statistics(features)
    return metrics.frechet_distance(own.mean, own.covariance, REAL.mean, REAL.covariance)


# ---------------------------------------------------------------- intervals


def test_the_interval_is_the_replicates_moved_onto_the_figure() -> None:
    found = uncertainty.centred_interval(10.0, torch.arange(101), level=0.9)
    assert (found.low, found.high) == (pytest.approx(10 - 45), pytest.approx(10 + 45))


def test_counts_are_draws_with_replacement() -> None:
    counts = uncertainty.resampled_counts(40, 300, seed=1)
    assert (counts.sum(dim=1) == 40).all()
    # n p (1 - p) with n = 40: the standard deviation of the mean of 12,000 squares is about 0.02
    assert float((counts - 1).square().mean()) == pytest.approx(1 - 1 / 40, abs=0.1)
    assert torch.equal(counts, uncertainty.resampled_counts(40, 300, seed=1))
    assert not torch.equal(counts, uncertainty.resampled_counts(40, 300, seed=2))


@pytest.mark.parametrize("name", ["frechet", "kernel"])
def test_intervals_hold_the_mean_figure_as_often_as_they_say(name: str) -> None:
    """200 sets of 150 samples: the 95 % interval holds the mean figure of 95 % of them.

    The bootstrap is not exact at this size; a share outside [0.88, 0.99] would need a deviation of more than 4 standard
    deviations (0.015) from 0.95 (false alarm about 1e-4).
    """
    real = draws(300, 10_000)
    sets = [draws(150, seed, SHIFT) for seed in range(200)]
    if name == "frechet":
        figures = [frechet(one) for one in sets]
        intervals = [uncertainty.frechet_interval(one, REAL, replicates=100) for one in sets]
    else:
        figures = [metrics.kernel_distance(one, real) for one in sets]
        intervals = [uncertainty.kernel_interval(one, real, replicates=100) for one in sets]
    mean = sum(figures) / len(figures)
    held = sum(i.low <= mean <= i.high for i in intervals) / len(intervals)
    assert 0.88 <= held <= 0.99
    assert all(i.low <= figure <= i.high for i, figure in zip(intervals, figures, strict=True))


def test_a_sample_drawn_twice_is_no_pair_with_itself() -> None:
    """By hand over the pairs of different samples, each as often as both were drawn."""
    x, y = draws(4, 0), draws(5, 1, SHIFT)
    counts = torch.tensor([[2.0, 1, 1, 0], [1, 1, 1, 1], [0, 3, 0, 1]], dtype=torch.float64)
    found = uncertainty.kernel_replicates(x, y, counts)
    for row, value in zip(counts.tolist(), found.tolist(), strict=True):
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        weight = sum(row[i] * row[j] for i, j in pairs)
        within = sum(row[i] * row[j] * float(x[i] @ x[j] / D + 1) ** 3 for i, j in pairs) / weight
        between = sum(row[i] * float(x[i] @ z / D + 1) ** 3 for i in range(4) for z in y) / 20
        assert value == pytest.approx(within - 2 * between, rel=1e-12)


def test_the_smallest_sets_have_finite_intervals() -> None:
    """Of 4 samples, one in 64 sets holds a single sample four times, which has no pair."""
    for seed in range(5):
        found = uncertainty.kernel_interval(draws(4, seed), draws(10, 9), replicates=500, seed=seed)
        assert math.isfinite(found.low) and found.low < found.high < math.inf


def test_at_the_floor_the_interval_errs_on_the_safe_side() -> None:
    """200 sets from the very Gaussian that they are compared with: too wide, so it holds the mean even more often."""
    sets = [draws(150, seed) for seed in range(200)]
    mean = sum(map(frechet, sets)) / len(sets)
    intervals = [uncertainty.frechet_interval(one, REAL, replicates=60) for one in sets]
    assert sum(i.low <= mean <= i.high for i in intervals) / len(intervals) >= 0.93
    assert all(i.low >= 0 for i in intervals)


def test_a_set_without_repetition_gives_the_kernel_distance_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every sample drawn once, each replicate is the figure: the interval is a point."""
    monkeypatch.setattr(uncertainty, "resampled_counts", lambda size, b, seed: torch.ones(b, size).double())
    x, y = draws(30, 0, SHIFT), draws(40, 1)
    for found, figure in (
        (uncertainty.kernel_interval(x, y), metrics.kernel_distance(x, y)),
        (uncertainty.frechet_interval(x, REAL), frechet(x)),
    ):
        assert found.low == pytest.approx(figure, rel=1e-9) == found.high


@pytest.mark.parametrize(("count", "level"), [(1, 0.95), (10, 1.0), (10, 0.0)])
def test_intervals_that_mean_nothing_are_refused(count: int, level: float) -> None:
    with pytest.raises(ValueError, match="at least 2 replicates and a level"):
        uncertainty.centred_interval(1.0, torch.zeros(count), level)


# ---------------------------------------------------------------- bias


def test_bias_of_one_dimension_is_the_known_one() -> None:
    """For N(0, s): E m² = s/N, and E (√S - √s)² ≈ s / (2 (N - 1))."""
    found = uncertainty.gaussian_bias(torch.tensor([[3.0]]), 100)
    assert found == pytest.approx(3 / 100 + 3 / (2 * 99), rel=1e-12)


@pytest.mark.parametrize("count", [100, 400])
def test_bias_is_what_draws_of_the_same_gaussian_have(count: int) -> None:
    """n = 400 sets. The mean figure, within 5 standard errors and 3 % for the second order in 1/N."""
    figures = torch.tensor([frechet(draws(count, seed)) for seed in range(400)])
    truth = uncertainty.gaussian_bias(REAL.covariance, count)
    error = float(figures.std()) / math.sqrt(len(figures))
    assert abs(float(figures.mean()) - truth) < 5 * error + 0.03 * truth


def test_halves_tell_the_bias_and_give_the_limit() -> None:
    """n = 150 sets of 200 samples. Truth: ‖μ‖² for two Gaussians of the same covariance; within 5 standard errors."""
    truth = float((SHIFT * SCALES).square().sum())
    sets = [draws(200, seed, SHIFT) for seed in range(150)]
    figures = torch.tensor([frechet(one) for one in sets])
    corrected = figures - torch.tensor([uncertainty.frechet_bias(one, REAL, splits=2) for one in sets])
    error = float(corrected.std()) / math.sqrt(len(sets))
    assert abs(float(corrected.mean()) - truth) < 5 * error
    assert float(figures.mean()) - truth > 5 * error, "without the correction the figure lies above the truth"


def test_the_figure_falls_with_the_number_of_samples() -> None:
    found = uncertainty.frechet_by_size(draws(800, 0), REAL, [25, 100, 400], repeats=20)
    assert found[0] > 2 * found[1] > 4 * found[2] > 0
    assert uncertainty.frechet_by_size(draws(50, 0), REAL, [50]) == [pytest.approx(frechet(draws(50, 0)), rel=1e-9)]
    with pytest.raises(ValueError, match=r"\[2, 50\]"):
        uncertainty.frechet_by_size(draws(50, 0), REAL, [51])


def test_the_floor_of_fewer_images_is_predicted() -> None:
    """From the figure of 4,000 held-out draws to that of 200: n = 200 sets, within 5 standard errors and 5 %."""
    test = metrics.gaussian_statistics(draws(4000, 0))
    predicted = uncertainty.floor_at(REAL, test, 200)
    figures = torch.tensor([frechet(draws(200, seed)) for seed in range(1, 201)])
    error = float(figures.std()) / math.sqrt(len(figures))
    assert abs(float(figures.mean()) - predicted) < 5 * error + 0.05 * predicted
    assert uncertainty.floor_at(REAL, test, test.count) == pytest.approx(
        metrics.frechet_distance(REAL.mean, REAL.covariance, test.mean, test.covariance), rel=1e-9
    )


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 draws"):
        uncertainty.gaussian_bias(REAL.covariance, 1)
    with pytest.raises(ValueError, match="at least 4"):
        uncertainty.frechet_bias(draws(3, 0), REAL)
