"""The equations of diffusion against closed forms, float64 to 1e-12; statistics with n and false-alarm rate stated."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from ddpm_from_scratch import gaussian

examples = settings(max_examples=40, deadline=None, derandomize=True)
TIGHT = {"rtol": 1e-12, "atol": 1e-12}
inside = st.floats(1e-4, 1 - 1e-4)
value = st.floats(-3, 3)
two_levels = st.tuples(inside, inside).map(sorted).filter(lambda pair: pair[0] < 0.999 * pair[1])
"""ᾱ_t < ᾱ_prev."""


def scalar(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def close(actual: object, expected: object, **tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), **(tolerance or TIGHT))


# ---------------------------------------------------------------- noise


def test_randn_draws_from_its_generator_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    drawn = gaussian.randn((4, 3), torch.Generator().manual_seed(7), dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.randn((4, 3), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert torch.equal(drawn, expected)


def test_randn_with_one_generator_per_sample_makes_each_sample_its_own() -> None:
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batch = gaussian.randn((3, 2, 5), seeded(1, 2, 3))
    alone = gaussian.randn((1, 2, 5), seeded(2))
    assert torch.equal(batch[1:2], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        gaussian.randn((3, 2), seeded(1, 2))
    for seed in (5, [1, 2, 3], "cpu"):
        with pytest.raises(TypeError, match="must be a torch.Generator, or a list of them, got"):
            gaussian.randn((3, 2), seed)  # type: ignore[arg-type]


# ---------------------------------------------------------------- forward process


@examples
@given(inside, value, value)
def test_forward_step_is_eq_2_and_preserves_unit_variance(beta: float, x: float, noise: float) -> None:
    step = gaussian.forward_step(scalar(x), scalar(noise), beta)
    close(step, math.sqrt(1 - beta) * x + math.sqrt(beta) * noise)
    close(
        gaussian.forward_step(scalar(1), scalar(0), beta) ** 2 + gaussian.forward_step(scalar(0), scalar(1), beta) ** 2,
        1,
    )


@examples
@given(st.lists(st.floats(1e-4, 0.5), min_size=1, max_size=30), value)
def test_q_sample_is_the_forward_chain_in_one_jump(betas: list[float], x0: float) -> None:
    mean, variance, alpha_bar = scalar(x0), scalar(0), 1.0
    for beta in betas:
        gain = gaussian.forward_step(scalar(1), scalar(0), beta)
        spread = gaussian.forward_step(scalar(0), scalar(1), beta)
        mean, variance, alpha_bar = gain * mean, gain**2 * variance + spread**2, alpha_bar * (1 - beta)
    close(gaussian.q_sample(scalar(x0), scalar(0), alpha_bar), mean)
    close(gaussian.q_sample(scalar(0), scalar(1), alpha_bar) ** 2, variance)


@pytest.mark.parametrize("alpha_bar", [0.0, 1e-4, 0.3, 0.97, 1.0])
def test_q_sample_moments(alpha_bar: float) -> None:
    """n = 200,000 draws; two-sided tests of mean (normal) and variance (χ²), each with a false-alarm rate of 1e-6."""
    n, x0, alarm = 200_000, 0.7, 1e-6
    noise = gaussian.randn((n,), torch.Generator().manual_seed(0), dtype=torch.float64)
    x = gaussian.q_sample(torch.full((n,), x0, dtype=torch.float64), noise, alpha_bar).numpy()
    mean, variance = math.sqrt(alpha_bar) * x0, 1 - alpha_bar
    if variance == 0:
        close(x, x0)
        return
    assert abs(x.mean() - mean) < scipy.stats.norm.isf(alarm / 2) * math.sqrt(variance / n)
    low, high = scipy.stats.chi2.ppf([alarm / 2, 1 - alarm / 2], n - 1)
    assert low < (n - 1) * x.var(ddof=1) / variance < high


# ---------------------------------------------------------------- ε, x_0, v and the score


@examples
@given(inside, value, value)
def test_each_prediction_gives_back_the_others(alpha_bar: float, x0: float, eps: float) -> None:
    x = gaussian.q_sample(scalar(x0), scalar(eps), alpha_bar)
    v = gaussian.velocity(scalar(x0), scalar(eps), alpha_bar)
    # dividing by √ᾱ or √(1-ᾱ), at least 0.01 here, costs two digits
    close(gaussian.x0_from_eps(x, scalar(eps), alpha_bar), x0)
    close(gaussian.eps_from_x0(x, scalar(x0), alpha_bar), eps)
    close(gaussian.x0_from_v(x, v, alpha_bar), x0)
    close(gaussian.eps_from_v(x, v, alpha_bar), eps)


@examples
@given(st.floats(0, math.pi / 2), value, value)
def test_velocity_is_the_derivative_along_the_circle(angle: float, x0: float, eps: float) -> None:
    """x = cos φ x_0 + sin φ ε has dx/dφ = -sin φ x_0 + cos φ ε, and ᾱ = cos² φ (Salimans and Ho 2022, appendix D)."""
    expected = math.cos(angle) * eps - math.sin(angle) * x0
    # √(1 - cos² φ) loses half its digits at small φ, where it multiplies x_0
    close(gaussian.velocity(scalar(x0), scalar(eps), math.cos(angle) ** 2), expected, rtol=0, atol=1e-7)
    if angle > 0.01:
        close(gaussian.velocity(scalar(x0), scalar(eps), math.cos(angle) ** 2), expected)


def test_velocity_at_both_ends() -> None:
    x, v = scalar(0.3), scalar(-1.2)
    close(gaussian.x0_from_v(x, v, 0.0), 1.2)
    close(gaussian.eps_from_v(x, v, 0.0), 0.3)
    close(gaussian.x0_from_v(x, v, 1.0), 0.3)
    close(gaussian.eps_from_v(x, v, 1.0), -1.2)


@examples
@given(inside, value, st.floats(0.05, 2), value)
def test_score_of_gaussian_data(alpha_bar: float, m: float, s: float, x: float) -> None:
    """For data N(m, s²), E[ε | x_t] is known, and its score is the gradient of the log-density of x_t."""
    variance = alpha_bar * s**2 + 1 - alpha_bar
    eps = math.sqrt(1 - alpha_bar) * (x - math.sqrt(alpha_bar) * m) / variance
    x_t = scalar(x).requires_grad_()
    Normal(scalar(math.sqrt(alpha_bar) * m), scalar(math.sqrt(variance))).log_prob(x_t).backward()
    close(gaussian.score_from_eps(scalar(eps), alpha_bar), x_t.grad)


# ---------------------------------------------------------------- posterior and DDIM


@examples
@given(two_levels, value, value)
def test_posterior_is_the_conditional_of_the_joint_gaussian(levels: list[float], x0: float, x: float) -> None:
    """Given x_0, (x_{t-1}, x_t) is Gaussian: its 2×2 covariance and the rule for conditioning give Ho eq. 7."""
    alpha_bar, alpha_bar_prev = levels
    alpha = alpha_bar / alpha_bar_prev
    loading = np.array([[1, 0], [alpha**0.5, (1 - alpha) ** 0.5]])
    covariance = loading @ np.diag([1 - alpha_bar_prev, 1]) @ loading.T
    mean = np.array([alpha_bar_prev**0.5, alpha_bar**0.5]) * x0
    gain = covariance[0, 1] / covariance[1, 1]
    expected_mean = mean[0] + gain * (x - mean[1])
    expected_variance = covariance[0, 0] - gain * covariance[1, 0]
    close(gaussian.posterior_mean(scalar(x), scalar(x0), alpha_bar, alpha_bar_prev), expected_mean)
    close(gaussian.posterior_variance(alpha_bar, alpha_bar_prev), expected_variance)


def test_posterior_at_the_ends() -> None:
    """At the last step the posterior is x_0 itself; from pure noise (ᾱ_t = 0) it is q(x_{t-1} | x_0)."""
    x, x0 = scalar(5.0), scalar(0.4)
    assert gaussian.posterior_variance(0.9, 1.0) == 0
    close(gaussian.posterior_mean(x, x0, 0.9, 1.0), 0.4)
    close(gaussian.posterior_variance(0.0, 0.25), 0.75)
    close(gaussian.posterior_mean(x, x0, 0.0, 0.25), 0.2)


@examples
@given(two_levels, st.floats(0, 1), value)
def test_ddim_keeps_the_marginals(levels: list[float], share: float, x0: float) -> None:
    """Song lemma 1: x_t ~ q(x_t | x_0) becomes x_{t-1} ~ q(x_{t-1} | x_0), for every σ up to √(1-ᾱ_prev)."""
    alpha_bar, alpha_bar_prev = levels
    sigma = share * (1 - alpha_bar_prev) ** 0.5

    def mean_of_step(x: float) -> torch.Tensor:
        eps = gaussian.eps_from_x0(scalar(x), scalar(x0), alpha_bar)
        return gaussian.ddim_mean(scalar(x0), eps, alpha_bar_prev, sigma)

    centre = alpha_bar**0.5 * x0
    slope = mean_of_step(centre + 1) - mean_of_step(centre)
    close(mean_of_step(centre), alpha_bar_prev**0.5 * x0)
    close(slope**2 * (1 - alpha_bar) + sigma**2, 1 - alpha_bar_prev)


@examples
@given(two_levels, value, value)
def test_ddim_at_eta_1_is_the_posterior(levels: list[float], x0: float, x: float) -> None:
    sigma = gaussian.ddim_sigma(*levels, eta=1.0)
    eps = gaussian.eps_from_x0(scalar(x), scalar(x0), levels[0])
    close(sigma**2, gaussian.posterior_variance(*levels))
    close(
        gaussian.ddim_mean(scalar(x0), eps, levels[1], sigma), gaussian.posterior_mean(scalar(x), scalar(x0), *levels)
    )
    assert gaussian.ddim_sigma(*levels, eta=0.0) == 0


def test_ddim_to_a_noisier_level_is_refused() -> None:
    """The root of a negative number would be complex, and a learner's loop go on with it."""
    with pytest.raises(ValueError, match=r"ᾱ_prev = 0.2 is below ᾱ_t = 0.5"):
        gaussian.ddim_sigma(0.5, 0.2, eta=0.5)
    assert gaussian.ddim_sigma(0.5, 0.5, eta=1.0) == 0


def test_coefficients_may_be_tensors_one_per_image() -> None:
    levels, before = (
        torch.tensor([[0.2], [0.5]], dtype=torch.float64),
        torch.tensor([[0.4], [0.9]], dtype=torch.float64),
    )
    x, x0 = torch.randn((2, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = gaussian.ddim_sigma(levels, before, 0.7)
    batch = gaussian.posterior_mean(x, x0, levels, before), gaussian.ddim_mean(x0, x, before, sigma)
    for i, (level, prev) in enumerate([(0.2, 0.4), (0.5, 0.9)]):
        close(batch[0][i], gaussian.posterior_mean(x[i], x0[i], level, prev))
        close(batch[1][i], gaussian.ddim_mean(x0[i], x[i], prev, gaussian.ddim_sigma(level, prev, 0.7)))


# ---------------------------------------------------------------- divergences and likelihoods


@examples
@given(value, st.floats(-6, 3), value, st.floats(-6, 3))
def test_normal_kl(mean_q: float, log_var_q: float, mean_p: float, log_var_p: float) -> None:
    arguments = [scalar(x) for x in (mean_q, log_var_q, mean_p, log_var_p)]
    q = Normal(arguments[0], (arguments[1] / 2).exp())
    p = Normal(arguments[2], (arguments[3] / 2).exp())
    close(gaussian.normal_kl(*arguments), kl_divergence(q, p))
    assert gaussian.normal_kl(*arguments) >= -1e-12
    close(gaussian.normal_kl(*arguments[:2], *arguments[:2]), 0)


def test_normal_kl_is_the_integral() -> None:
    q, p = scipy.stats.norm(0.3, 0.8), scipy.stats.norm(-0.4, 1.3)
    integral, _ = scipy.integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), -12, 12, epsabs=1e-13)
    arguments = (0.3, 2 * math.log(0.8), -0.4, 2 * math.log(1.3))
    close(gaussian.normal_kl(*map(scalar, arguments)), integral, rtol=1e-10)


PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("mean", [-1.4, -1.0, 0.0, 0.3, 0.999, 2.5])
@pytest.mark.parametrize("log_var", [-14.0, -9.0, -3.0, 0.0, 3.0])
def test_the_256_bins_sum_to_one(mean: float, log_var: float) -> None:
    log_p = gaussian.discretized_log_likelihood(PIXELS, scalar(mean), scalar(log_var))
    close(log_p.exp().sum(), 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bins_are_the_naive_difference_where_that_is_exact(dtype: torch.dtype) -> None:
    mean, std = 0.1, 0.5
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    expected = np.log(np.diff(scipy.stats.norm.cdf(edges, mean, std)))
    log_var = torch.tensor(2 * math.log(std), dtype=dtype)
    log_p = gaussian.discretized_log_likelihood(PIXELS.to(dtype), torch.tensor(mean, dtype=dtype), log_var)
    # float32: a bin of width 2/255 is the difference of numbers near 1, which keeps four digits
    close(log_p, expected, rtol=1e-11 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize(
    ("pixel", "mean", "std"), [(3, 0.9, 0.02), (250, -0.9, 0.05), (128, 1.0, 0.01), (0, 1.0, 0.03)]
)
def test_bins_keep_their_digits_in_the_tails(pixel: int, mean: float, std: float) -> None:
    """30 to 100 standard deviations away, against 60-digit arithmetic; the naive difference is log 0 there."""
    with mpmath.workdps(60):
        centre, half, m, s = mpmath.mpf(pixel) / 127.5 - 1, mpmath.mpf(1) / 255, mpmath.mpf(mean), mpmath.mpf(std)
        lower = mpmath.mpf("-inf") if pixel == 0 else (centre - half - m) / s
        upper = (centre + half - m) / s
        near, far = (upper, lower) if upper < 0 else (-lower, -upper)
        expected = mpmath.log(mpmath.ncdf(near) - mpmath.ncdf(far))
    log_p = gaussian.discretized_log_likelihood(PIXELS[pixel], scalar(mean), scalar(2 * math.log(std)))
    assert expected < -400
    close(log_p, float(expected), rtol=1e-11)


@pytest.mark.parametrize("log_var", [-20.0, -9.0, 0.0, 4.0])
def test_likelihood_and_its_gradient_are_finite_in_float32(log_var: float) -> None:
    mean = torch.zeros(256, requires_grad=True)
    spread = torch.full((256,), log_var, requires_grad=True)
    gaussian.discretized_log_likelihood(PIXELS.float(), mean, spread).sum().backward()
    assert mean.grad.isfinite().all() and spread.grad.isfinite().all()


def test_nats_to_bits() -> None:
    close(gaussian.nats_to_bits(scalar(math.log(8))), 3)
