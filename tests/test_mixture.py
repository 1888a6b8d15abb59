"""Lesson 03's closed forms against the truth: the weight of the bound, and the perfect prediction for a mixture."""

from __future__ import annotations

import pytest
import torch

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course.exercises.l03 import ancestral_step, eps_weight, mixture_eps


def test_the_weight_of_the_bound_is_the_ratio_of_kl_and_squared_error() -> None:
    """KL(posterior ‖ model step) less its value for the right ε, over (ε - ε_θ)², at every t > 1 (Ho eq. 5, 8, 12)."""
    betas = schedules.linear(50, 0.01, 0.3)
    bar = schedules.alpha_bars(betas)
    variances = betas * 0.7
    generator = torch.Generator().manual_seed(0)
    x0, eps, guess = (torch.randn(49, generator=generator, dtype=torch.float64) for _ in range(3))
    now, prev = bar[1:], bar[:-1]
    x_t = gaussian.q_sample(x0, eps, now)
    mean, log_var = gaussian.posterior_mean(x_t, x0, now, prev), gaussian.posterior_variance(now, prev).log()
    zero = torch.zeros_like(x_t)
    right, wrong = (ancestral_step(x_t, said, zero, now, prev) for said in (eps, guess))
    log_sigma2 = variances[1:].log()
    kl = gaussian.normal_kl(mean, log_var, wrong, log_sigma2) - gaussian.normal_kl(mean, log_var, right, log_sigma2)
    torch.testing.assert_close(kl / (eps - guess) ** 2, eps_weight(betas, variances)[1:], rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha_bar", [0.05, 0.5, 0.95])
def test_the_perfect_prediction_is_the_mean_noise_by_quadrature(alpha_bar: float) -> None:
    """E[ε | x_t] as an integral over x_0, on a fine grid."""
    weights, centres, stds = (torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.4], [-1.0, 0.7], [0.3, 0.5]))
    x0 = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    prior = (weights / stds * torch.exp(-((x0[:, None] - centres) ** 2) / (2 * stds**2))).sum(1)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)
    eps = gaussian.eps_from_x0(x_t[:, None], x0, alpha_bar)
    mass = prior * torch.exp(-(eps**2) / 2)
    expected = (mass * eps).sum(1) / mass.sum(1)
    found = mixture_eps(x_t[:, None], alpha_bar, weights, centres[:, None], stds)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
