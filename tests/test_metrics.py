"""Distances, shares and the likelihood bound, where the truth is known and against torchmetrics."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddpm_from_scratch import gaussian, metrics, training
from ddpm_from_scratch.schedulers import DDPMScheduler


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_covariance(size: int, seed: int, rank: int | None = None) -> Tensor:
    factor = normal((size, rank or size), seed)
    return factor @ factor.T / size


def frechet(first: metrics.GaussianStatistics, second: metrics.GaussianStatistics) -> float:
    return metrics.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


# ---------------------------------------------------------------- Fréchet distance


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    mean1, mean2 = normal((6,), 0), normal((6,), 1)
    var1, var2 = normal((6,), 2).exp(), normal((6,), 3).exp()
    rotation = torch.linalg.qr(normal((6, 6), 4))[0]
    covariances = [rotation * v @ rotation.T for v in (var1, var2)]
    truth = (mean1 - mean2).square().sum() + (var1.sqrt() - var2.sqrt()).square().sum()
    found = metrics.frechet_distance(mean1, covariances[0], mean2, covariances[1])
    assert found == pytest.approx(float(truth), rel=1e-12)


def test_frechet_distance_in_two_dimensions_is_the_closed_form() -> None:
    """Tr √M = √(Tr M + 2 √det M) for a 2×2 matrix, here Σ1 Σ2, which is not symmetric."""
    a, b = random_covariance(2, 0), random_covariance(2, 1)
    product = a @ b
    cross = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    truth = float(a.trace() + b.trace()) - 2 * cross
    assert metrics.frechet_distance(torch.zeros(2), a, torch.zeros(2), b) == pytest.approx(truth, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 8))
def test_frechet_distance_is_a_distance_and_keeps_rotations(seed: int, size: int) -> None:
    mean1, mean2 = normal((size,), seed), normal((size,), seed + 1)
    cov1, cov2 = random_covariance(size, seed + 2), random_covariance(size, seed + 3)
    found = metrics.frechet_distance(mean1, cov1, mean2, cov2)
    rotation = torch.linalg.qr(normal((size, size), seed + 4))[0]
    turned = [rotation @ mean1, rotation @ cov1 @ rotation.T, rotation @ mean2, rotation @ cov2 @ rotation.T]
    assert found > 0
    assert metrics.frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(found, rel=1e-7)
    assert metrics.frechet_distance(*turned) == pytest.approx(found, rel=1e-7)
    assert metrics.frechet_distance(3 * mean1, 9 * cov1, 3 * mean2, 9 * cov2) == pytest.approx(9 * found, rel=1e-7)
    # a root of a rounded zero: up to √ε where a covariance is nearly singular
    assert metrics.frechet_distance(mean1, cov1, mean1, cov1) == pytest.approx(0, abs=1e-7)


def test_frechet_distance_takes_singular_covariances() -> None:
    """Fewer samples than features: N(0, e1 e1ᵀ) against N(0, 4 e2 e2ᵀ) have distance 1 + 4."""
    first, second = torch.zeros(3, 3), torch.zeros(3, 3)
    first[0, 0], second[1, 1] = 1, 4
    assert metrics.frechet_distance(torch.zeros(3), first, torch.zeros(3), second) == pytest.approx(5, rel=1e-12)


class Halves(nn.Module):
    """A feature extractor for torchmetrics: the images' first `size` values."""

    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.num_features]


@pytest.fixture
def two_sets() -> tuple[Tensor, Tensor]:
    mixing = normal((12, 12), 0)
    return normal((300, 12), 1) @ mixing, (normal((200, 12), 2) + 0.3) @ mixing.T


def test_frechet_distance_agrees_with_torchmetrics(two_sets: tuple[Tensor, Tensor]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=Halves(), input_img_size=(1, 4, 3))
    theirs.set_dtype(torch.float64)
    for real, features in zip((True, False), two_sets, strict=True):
        theirs.update(features.view(-1, 1, 4, 3), real=real)
    ours = frechet(*map(metrics.gaussian_statistics, two_sets))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_kernel_distance_agrees_with_torchmetrics(two_sets: tuple[Tensor, Tensor]) -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = (features[:200] for features in two_sets)
    theirs = KernelInceptionDistance(feature=Halves(), subsets=1, subset_size=200)
    for real, features in ((True, x), (False, y)):
        theirs.update(features.view(-1, 1, 4, 3), real=real)
    assert metrics.kernel_distance(x, y) == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


# ---------------------------------------------------------------- kernel distance


def test_kernel_distance_is_the_sum_over_distinct_pairs() -> None:
    x, y = normal((4, 3), 0), normal((5, 3), 1)

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / (4 * 3)
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    between = sum(kernel(a, b) for a in x for b in y) / (4 * 5)
    assert metrics.kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_kernel_distance_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal((50, 4), 0), normal((40, 4), 1)
    whole = metrics.kernel_distance(x, y)
    monkeypatch.setattr(metrics, "KERNEL_BLOCK", 7)
    assert metrics.kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_is_unbiased() -> None:
    """For x ~ N(0, 1) and y ~ N(m, 1) in one dimension MMD² = 9 m² + 6 m⁴ + ... is known: k's features are moments.

    n = 400 repetitions of 20 against 30 samples; the mean must lie within 5 standard errors (false alarm below 1e-6).
    """
    m = 0.4
    # (xy + 1)³ = Σ_p C(3, p) x^p y^p, so MMD² = Σ_p C(3, p) (E x^p - E y^p)²
    moments_x, moments_y = [1.0, 0.0, 1.0, 0.0], [1.0, m, 1 + m**2, 3 * m + m**3]
    truth = sum(math.comb(3, p) * (moments_x[p] - moments_y[p]) ** 2 for p in range(4))
    draws = normal((400, 50, 1), 5)
    found = torch.tensor([metrics.kernel_distance(d[:20], d[20:] + m) for d in draws])
    assert abs(float(found.mean()) - truth) < 5 * float(found.std()) / math.sqrt(len(found))


# ---------------------------------------------------------------- statistics and shares


def test_gaussian_statistics_are_mean_and_unbiased_covariance() -> None:
    features = normal((20, 3), 0)
    found = metrics.gaussian_statistics(features)
    centred = features - features.mean(dim=0)
    torch.testing.assert_close(found.mean, features.mean(dim=0), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(found.covariance, centred.T @ centred / 19, rtol=1e-12, atol=1e-15)
    assert found.count == 20 and found.mean.dtype == torch.float64
    assert metrics.gaussian_statistics(features[:, :1]).covariance.shape == (1, 1)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.zeros(4), torch.full((4, 2), math.nan)])
def test_features_that_cannot_be_judged_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="feature"):
        metrics.gaussian_statistics(bad)
    with pytest.raises(ValueError, match="feature"):
        metrics.kernel_distance(bad, torch.zeros(4, 3))


def test_sets_of_different_features_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 features"):
        metrics.kernel_distance(torch.zeros(4, 2), torch.zeros(4, 3))


def test_shares_and_calibration_of_known_logits() -> None:
    probabilities = torch.tensor([[0.95, 0.05, 0.0], [0.6, 0.4, 0.0], [0.05, 0.95, 0.0], [0.92, 0.08, 0.0]])
    logits = (probabilities + 1e-30).log()
    assert metrics.confident_share(logits) == 0.75
    assert metrics.confident_share(logits, threshold=0.94) == 0.5
    assert metrics.class_shares(logits) == [0.75, 0.25, 0.0]
    # over 10 ranges: in 0.9-1 the confidences are 0.95, 0.95, 0.92 and two of three are right; in 0.6-0.7 one of one
    gap = abs(0.95 + 0.95 + 0.92 - 2) + abs(1 - 0.6)
    assert metrics.calibration_error(logits, torch.tensor([0, 0, 0, 0]), bins=10) == pytest.approx(gap / 4, abs=1e-6)


# ---------------------------------------------------------------- bits per dimension

BETAS = torch.linspace(0.02, 0.4, 12, dtype=torch.float64)
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e)


def schedule(**options: object) -> DDPMScheduler:
    given = {"trained_betas": BETAS.tolist(), "num_train_timesteps": 12, "variance_type": "fixed_large"}
    return DDPMScheduler(**{**given, "clip_sample": False, **options})


def exact_noise(scheduler: DDPMScheduler, data_variance: float = 1.0):  # type: ignore[no-untyped-def]
    """ε*(x_t, t) = E[ε | x_t] for x_0 ~ N(0, s I): √(1-ᾱ) x_t / (ᾱ s + 1 - ᾱ)."""

    def model(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        alpha_bar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - alpha_bar) ** 0.5 * x_t / (alpha_bar * data_variance + 1 - alpha_bar))

    return model


def expected_terms(data_variance: float) -> tuple[Tensor, Tensor]:
    """L_0, L_1, .., L_{T-1}, L_T in bits for x_0 ~ N(0, s), true ε* and σ² = β: constants, and means of squares.

    All conditional means are linear in x_t, so every term is a constant plus the mean of a squared normal variable.
    """
    bars, s = torch.cumprod(1 - BETAS, dim=0), data_variance
    marginal = torch.cat([torch.tensor([s]).double(), bars * s + 1 - bars])  # Var x_{t-1}, then Var x_t
    slope = (1 - BETAS) ** 0.5 * marginal[:-1] / marginal[1:]
    conditional = marginal[:-1] - slope**2 * marginal[1:]  # Var[x_{t-1} | x_t]
    posterior = (1 - bars[:-1]) / (1 - bars[1:]) * BETAS[1:]
    # E (μ̃ - E[x_{t-1} | x_t])² = Var[x_{t-1} | x_t] - β̃_t, as μ̃ = E[x_{t-1} | x_t, x_0]
    numerators = torch.cat([conditional[:1], conditional[1:] - posterior, bars[-1:] * s])
    squares = numerators / torch.cat([BETAS, torch.ones(1).double()])
    constants = [
        (2 * math.pi * BETAS[:1]).log(),
        (BETAS[1:] / posterior).log() + posterior / BETAS[1:] - 1,
        -bars[-1:] - (1 - bars[-1:]).log(),
    ]
    return torch.cat(constants) / (2 * math.log(2)), squares / (2 * math.log(2))


def test_expected_terms_add_up_to_the_entropy() -> None:
    """For s = 1 the reverse chain with σ² = β is exact, so the bound is tight."""
    assert float(sum(expected_terms(1.0)).sum()) == pytest.approx(ENTROPY, rel=1e-12)


@pytest.mark.parametrize("data_variance", [1.0, 0.3])
def test_continuous_bound_is_the_expected_one_term_by_term(data_variance: float) -> None:
    """n = 40 draws of 1,024 dimensions; each of 14 figures within 5 standard errors (false alarm below 1e-5)."""
    scheduler = schedule()
    x0 = data_variance**0.5 * normal((40, 1, 32, 32), 0)
    found = metrics.bits_per_dimension(exact_noise(scheduler, data_variance), scheduler, x0, seed=1, discrete=False)
    constants, squares = expected_terms(data_variance)
    truth = constants + squares
    assert found.standard_error < 0.01
    assert abs(found.total - float(truth.sum())) < 5 * found.standard_error
    terms = torch.cat([found.by_timestep, torch.tensor([found.prior]).double()])
    # the square of a normal variable has a standard deviation of √2 times its mean
    assert ((terms - truth).abs() < 5 * squares * math.sqrt(2 / x0.numel())).all()
    assert found.decoder == pytest.approx(float(found.by_timestep[0]), rel=1e-12)
    assert found.diffusion == pytest.approx(float(found.by_timestep[1:].sum()), rel=1e-12)


def test_fewer_timesteps_leave_the_estimate_unbiased() -> None:
    """n = 300 images asked at 3 of 11 t against all t: within 5 standard errors (false alarm below 1e-6)."""
    scheduler = schedule()
    x0 = normal((300, 1, 4, 4), 0)
    model = exact_noise(scheduler, 0.5)
    few = metrics.bits_per_dimension(model, scheduler, x0, timesteps_per_image=3, discrete=False)
    every = metrics.bits_per_dimension(model, scheduler, x0, discrete=False)
    assert few.standard_error > every.standard_error
    assert abs(few.total - every.total) < 5 * math.hypot(few.standard_error, every.standard_error)
    torch.testing.assert_close(few.by_timestep[1:], every.by_timestep[1:], rtol=0.5, atol=0)


def test_bits_do_not_depend_on_the_batch_and_follow_the_seed() -> None:
    scheduler = schedule()
    x0 = normal((5, 1, 4, 4), 0)

    def total(**options: int) -> float:
        return metrics.bits_per_dimension(exact_noise(scheduler), scheduler, x0, discrete=False, **options).total

    assert total(batch_size=7) == pytest.approx(total(batch_size=60), rel=1e-13)
    assert total(seed=1) != total(seed=2)


def eight_bit(seed: int, count: int = 6) -> Tensor:
    pixels = torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    return pixels.float() / 127.5 - 1


def test_discrete_decoder_of_a_certain_model_costs_nothing() -> None:
    """A model that knows x_0, on a schedule whose last step is far finer than a pixel's bin: L_0 = 0, L_{t-1} = 0."""
    scheduler = DDPMScheduler(num_train_timesteps=10, beta_start=1e-9, beta_end=0.5, prediction_type="sample")
    x0 = eight_bit(0)

    def model(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=x0[calls.pop(0)].to(x_t))

    calls = [torch.arange(6).repeat_interleave(10)]
    found = metrics.bits_per_dimension(model, scheduler, x0)
    assert found.decoder == pytest.approx(0, abs=1e-12)
    assert found.diffusion == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_discrete_decoder_has_the_next_posterior_variance(variance_type: str) -> None:
    """With x̂_0 = 0, L_0 is the discretised likelihood (Ho eq. 13) at the mean 0 and the variance β̃ of t = 1."""
    scheduler = DDPMScheduler(trained_betas=[0.1, 0.2], num_train_timesteps=2, variance_type=variance_type)
    x0 = eight_bit(1)
    found = metrics.bits_per_dimension(lambda x, t: SimpleNamespace(sample=gaussian_zero(x, t)), scheduler, x0)
    variance = torch.tensor(0.1 / 0.28 * 0.2, dtype=torch.float64)
    truth = -gaussian.discretized_log_likelihood(x0.double(), torch.zeros(()).double(), variance.log())
    assert found.decoder == pytest.approx(float(truth.mean()) / math.log(2), rel=1e-9)


def gaussian_zero(x_t: Tensor, t: Tensor) -> Tensor:
    """ε for which x̂_0 = 0, for β = 0.1, 0.2."""
    alpha_bar = torch.tensor([0.9, 0.72], dtype=x_t.dtype)[t].view(-1, 1, 1, 1)
    return x_t / (1 - alpha_bar) ** 0.5


def test_learned_variance_agrees_with_the_training_loss() -> None:
    """The bound's terms against `training.bound_term`, in its float32."""
    scheduler = schedule(variance_type="learned_range", clip_sample=True)
    x0 = eight_bit(2)
    output = 0.5 * normal((6, 2, 4, 4), 3)
    found = metrics._Bound(lambda x, t: SimpleNamespace(sample=output), scheduler, discrete=True)
    noise, t = normal((6, 1, 4, 4), 4), torch.tensor([0, 1, 2, 5, 8, 11])
    x_t = scheduler.add_noise(x0, noise.float(), t)
    prediction, v = output.float().chunk(2, dim=1)
    truth = training.bound_term(scheduler, prediction, v, x0, x_t, t)
    torch.testing.assert_close(found.term(x0, noise, t, None).float(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "asked"), [(1, None), (4, 0), (4, 12)])
def test_questions_without_an_answer_are_refused(count: int, asked: int | None) -> None:
    scheduler = schedule()
    with pytest.raises(ValueError, match="at least 2 images and 1 to 11 timesteps"):
        metrics.bits_per_dimension(exact_noise(scheduler), scheduler, torch.zeros(count, 1, 2, 2), asked)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_x0_hat_is_thresholded_where_the_scheduler_does_it(kind: str) -> None:
    """A decoder at the mean x̂_0: L_0 is what the scheduler's own step makes of the same prediction."""
    scheduler = schedule(prediction_type=kind, thresholding=True, sample_max_value=2.0)
    x0, prediction, t = eight_bit(3), 3 * normal((6, 1, 4, 4), 5), torch.zeros(6, dtype=torch.long)
    bound = metrics._Bound(lambda x, t: SimpleNamespace(sample=prediction), scheduler, discrete=True)
    x_t = scheduler.add_noise(x0.double(), noise := normal((6, 1, 4, 4), 6), t)
    hat = scheduler.step(prediction, 0, x_t).pred_original_sample
    truth = -gaussian.discretized_log_likelihood(x0.double(), hat, bound.small[0]).flatten(1).mean(dim=1) / math.log(2)
    torch.testing.assert_close(bound.term(x0, noise, t, None), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.full((2, 1, 4, 4), 9, dtype=torch.uint8), "floating-point numbers .* torch.uint8"),
        (torch.full((2, 1, 4, 4), math.nan), "finite"),
        (torch.full((2, 1, 4, 4), math.inf), "finite"),
        (torch.full((2, 1, 4, 4), 3.0), r"lie in \[-1, 1\] .* from 3 to 3"),
    ],
)
def test_images_that_have_no_bits_are_refused(images: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metrics.bits_per_dimension(exact_noise(schedule()), schedule(), images)


def test_epsilon_has_no_bound_at_zero_terminal_snr() -> None:
    options = {"rescale_betas_zero_snr": True, "num_train_timesteps": 5}
    with pytest.raises(ValueError, match="zero terminal SNR"):
        metrics.bits_per_dimension(lambda x, t: SimpleNamespace(sample=x), DDPMScheduler(**options), eight_bit(0))
    for kind in ("v_prediction", "sample"):
        scheduler = DDPMScheduler(**options, prediction_type=kind)
        found = metrics.bits_per_dimension(lambda x, t: SimpleNamespace(sample=x), scheduler, eight_bit(0))
        assert math.isfinite(found.total)


@pytest.mark.parametrize(("variance_type", "channels"), [("fixed_small", 2), ("learned_range", 1), ("fixed_large", 3)])
def test_a_network_that_does_not_fit_the_scheduler_is_refused(variance_type: str, channels: int) -> None:
    scheduler = schedule(variance_type=variance_type)
    with pytest.raises(ValueError, match=rf"output has shape \(66, {channels}, 4, 4\), .*{variance_type}"):
        metrics.bits_per_dimension(
            lambda x, t: SimpleNamespace(sample=x.repeat(1, channels, 1, 1)), scheduler, eight_bit(0), 10
        )
