"""From the likelihood to the loss (Ho eq. 3, 8 to 10, 16; Song eq. 8, 11), each against a closed form in float64.

All chains here are of straight lines and Gaussian steps, so every expectation is exact and nothing is drawn.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ddpm_from_scratch import DDPMScheduler, gaussian, metrics, schedules

BETAS = schedules.linear(12, 0.02, 0.4)
NOW = schedules.alpha_bars(BETAS)
PREV = torch.cat([torch.ones(1, dtype=torch.float64), NOW[:-1]])
ERRORS = torch.linspace(-0.4, 0.5, 12, dtype=torch.float64)
"""What the model's ε is wrong by, at each t."""


def bound_of_eq_3(slope: Tensor, offset: Tensor, m: float, s2: float) -> float:
    """E_q[-log p(x_T) - Σ log p(x_{t-1} | x_t) / q(x_t | x_{t-1})] in nats, factor by factor, σ² = β.

    The data are N(m, s2), a point at s2 = 0, and p(x_{t-1} | x_t) = N(slope · x_t + offset, β_t).
    """
    before, after = PREV * s2 + 1 - PREV, NOW * s2 + 1 - NOW  # variances of x_{t-1} and x_t
    covariance = (1 - BETAS) ** 0.5 * before
    miss = (PREV**0.5 - slope * NOW**0.5) * m - offset
    square = before - 2 * slope * covariance + slope**2 * after + miss**2
    steps_back = 0.5 * ((2 * math.pi * BETAS).log() + square / BETAS)  # -E log p(x_{t-1} | x_t)
    steps_forward = -0.5 * (2 * math.pi * math.e * BETAS).log()  # E log q(x_t | x_{t-1})
    end = 0.5 * (math.log(2 * math.pi) + after[-1] + NOW[-1] * m**2)
    return float(end + (steps_back + steps_forward).sum())


def test_bits_are_the_bound_of_eq_3() -> None:
    """A model that knows x_0 and errs by ERRORS: its terms do not depend on the noise, and eq. 11 gives its means."""
    x0 = 0.3

    def model(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        a, error = (table[t].view(-1, 1, 1, 1) for table in (NOW, ERRORS))
        return SimpleNamespace(sample=(x_t - a**0.5 * x0) / (1 - a) ** 0.5 + error)

    scheduler = DDPMScheduler(12, trained_betas=BETAS.tolist(), variance_type="fixed_large", clip_sample=False)
    images = torch.full((2, 1, 3, 3), x0, dtype=torch.float64)
    found = metrics.bits_per_dimension(model, scheduler, images, discrete=False, show_progress=False)
    factor = BETAS / (1 - NOW) ** 0.5  # Ho eq. 11: μ_θ = (x_t - factor · ε_θ) / √α_t
    slope = (1 - factor / (1 - NOW) ** 0.5) / (1 - BETAS) ** 0.5
    offset = factor * ((NOW / (1 - NOW)) ** 0.5 * x0 - ERRORS) / (1 - BETAS) ** 0.5
    assert found.total == pytest.approx(bound_of_eq_3(slope, offset, x0, 0.0) / math.log(2), rel=1e-12)


@pytest.mark.parametrize("s", [0.2, 1.0, 1.7])
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_the_bound_read_progressively_is_that_of_eq_3(s: float, error: float) -> None:
    """Ho eq. 16 for data N(0, s²) and a model whose means are off by `error`: three parts against one expectation."""
    before, after = PREV * s**2 + 1 - PREV, NOW * s**2 + 1 - NOW
    slope = (1 - BETAS) ** 0.5 * before / after  # E[x_{t-1} | x_t] = slope · x_t
    true_variance = before - slope**2 * after
    zero, off = torch.zeros_like(NOW), torch.full_like(NOW, error)
    end = gaussian.normal_kl(zero[-1], after[-1].log(), zero[-1], zero[-1])
    steps = gaussian.normal_kl(zero, true_variance.log(), off, BETAS.log())
    entropy = 0.5 * math.log(2 * math.pi * math.e * s**2)
    expected = bound_of_eq_3(slope, off, 0.0, s**2)
    assert float(end + steps.sum()) + entropy == pytest.approx(expected, rel=1e-12)
    if s == 1 and error == 0:
        assert expected == pytest.approx(entropy, rel=1e-12)  # σ² = β is exact for these data


def test_the_kl_of_a_step_is_a_squared_difference_of_means() -> None:
    """Ho eq. 8, for one x_0, at every t > 1: over 2σ², plus a constant that the model's mean does not enter."""
    now, prev, sigma2 = NOW[1:], PREV[1:], 0.7 * BETAS[1:]
    x_t, x0, mean_theta = torch.randn(3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, variance = gaussian.posterior_mean(x_t, x0, now, prev), gaussian.posterior_variance(now, prev)
    constant = 0.5 * ((sigma2 / variance).log() + variance / sigma2 - 1)
    kl = gaussian.normal_kl(mean, variance.log(), mean_theta, sigma2.log())
    torch.testing.assert_close(kl, (mean - mean_theta) ** 2 / (2 * sigma2) + constant, rtol=1e-12, atol=1e-12)


def test_the_posterior_mean_written_by_the_noise() -> None:
    """Ho eq. 9: x_0 by x_t and ε. Ho eq. 10: then μ̃ = (x_t - β_t/√(1-ᾱ_t) ε) / √α_t. At every t."""
    x0, eps = torch.randn(2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = NOW**0.5 * x0 + (1 - NOW) ** 0.5 * eps
    eq_9 = gaussian.posterior_mean(x_t, gaussian.x0_from_eps(x_t, eps, NOW), NOW, PREV)
    eq_10 = (x_t - BETAS / (1 - NOW) ** 0.5 * eps) / (1 - BETAS) ** 0.5
    torch.testing.assert_close(eq_9, gaussian.posterior_mean(x_t, x0, NOW, PREV), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(eq_9, eq_10, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_steps_forward_of_the_family_by_bayes(eta: float) -> None:
    """Song eq. 8: q_σ(x_t | x_{t-1}, x_0) from eq. 7 and the marginals; at η = 1 it is Ho eq. 2, at η = 0 no draw."""
    now, prev, x0 = NOW[1:], PREV[1:], torch.tensor(0.6, dtype=torch.float64)
    sigma = gaussian.ddim_sigma(now, prev, eta)

    def mean_back(x_t: Tensor) -> Tensor:
        return gaussian.ddim_mean(x0, gaussian.eps_from_x0(x_t, x0, now), prev, sigma)

    slope = mean_back(now**0.5 * x0 + 1) - mean_back(now**0.5 * x0)
    covariance = slope * (1 - now)  # of x_{t-1} and x_t, given x_0
    gain = covariance / (1 - prev)
    variance = 1 - now - gain * covariance  # of x_t, given x_{t-1} and x_0
    torch.testing.assert_close(gain**2 * (1 - prev) + variance, 1 - now, rtol=1e-12, atol=1e-12)
    if eta == 0:
        torch.testing.assert_close(variance, torch.zeros_like(now), rtol=0, atol=1e-12)
    if eta == 1:
        torch.testing.assert_close(gain, (1 - BETAS[1:]) ** 0.5, rtol=1e-12, atol=0)
        torch.testing.assert_close(variance, BETAS[1:], rtol=1e-10, atol=0)
        on_x0 = now**0.5 - gain * prev**0.5
        torch.testing.assert_close(on_x0, torch.zeros_like(now), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_bound_of_the_family_is_the_weighted_loss(eta: float) -> None:
    """Song eq. 11 for one x_0, factor by factor, is L_γ of eq. 5 plus what it is for the right ε (theorem 1)."""
    x0 = torch.tensor(0.6, dtype=torch.float64)
    sigma = torch.as_tensor(gaussian.ddim_sigma(NOW, PREV, eta)).clone()
    sigma[0] = 0.1  # the paper's last step has a variance too

    def bound(errors: Tensor) -> Tensor:
        """E_q[log q_σ(x_{1:T} | x_0) - log p_θ(x_{0:T})]: the end, and per step -E log p + E log q."""
        nodes = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None]  # exact for squares of straight lines
        x_t = NOW**0.5 * x0 + (1 - NOW) ** 0.5 * nodes
        eps = nodes + errors
        means = gaussian.ddim_mean(gaussian.x0_from_eps(x_t, eps, NOW), eps, PREV, sigma)
        means[:, 0] = gaussian.x0_from_eps(x_t, eps, NOW)[:, 0]
        variance = torch.cat([torch.zeros(1, dtype=torch.float64), sigma[1:] ** 2])  # of x_{t-1}; x_0 is given
        truth = gaussian.ddim_mean(x0, nodes.expand(2, 12), PREV, sigma)
        truth[:, 0] = x0
        minus_log_p = 0.5 * ((2 * math.pi * sigma**2).log() + (variance + ((truth - means) ** 2).mean(0)) / sigma**2)
        log_q = -0.5 * (2 * math.pi * math.e * sigma[1:] ** 2).log()
        end = 0.5 * (NOW[-1] * x0**2 - NOW[-1] - (1 - NOW[-1]).log())  # KL(q(x_T | x_0) ‖ N(0, 1))
        return end + minus_log_p.sum() + log_q.sum()

    a = PREV**0.5 - (1 - PREV - sigma**2).clamp(min=0) ** 0.5 * (NOW / (1 - NOW)) ** 0.5
    a[0] = 1
    gamma = a**2 / (2 * sigma**2) * (1 - NOW) / NOW
    constant = bound(torch.zeros_like(NOW))
    torch.testing.assert_close(bound(ERRORS) - constant, (gamma * ERRORS**2).sum(), rtol=1e-10, atol=0)
    log_variance = 2 * sigma[1:].log()
    off = a[1:] * ((1 - NOW[1:]) / NOW[1:]) ** 0.5 * ERRORS[1:]
    kl = gaussian.normal_kl(torch.zeros_like(off), log_variance, off, log_variance)
    torch.testing.assert_close(kl, gamma[1:] * ERRORS[1:] ** 2, rtol=1e-12, atol=0)
