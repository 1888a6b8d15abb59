"""Lesson 03's closed forms against the truth: the weight of the bound, and the perfect prediction for a mixture."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
import torch
from torch import nn

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import build, points
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


def lesson_03(*names: str) -> dict[str, Any]:
    """The functions and classes of these names, as the lesson's cells define them."""
    alpha_bar = schedules.alpha_bars(schedules.linear())
    weights, centres, stds = points.MIXTURE
    space: dict[str, Any] = {"torch": torch, "nn": nn, "math": math, "step_back": ancestral_step}
    space |= {"alpha_bar": alpha_bar, "weights": weights, "centres": centres, "stds": stds}
    for cell in build.read_source(build.sources(["03"])[0]):
        for node in ast.parse(cell.text).body if cell.kind == "code" else ():
            if getattr(node, "name", "") in names:
                exec(compile(ast.Module([node], []), cell.id, "exec"), space)
    return space


def test_points_are_what_lesson_03_builds() -> None:
    """The same mixture, the same network and the same sampler, to the bit."""
    lesson = lesson_03("draw_mixture", "SmallNetwork", "sample")
    for mine, theirs in zip(
        points.draw_mixture(50, torch.Generator().manual_seed(3)),
        lesson["draw_mixture"](50, torch.Generator().manual_seed(3)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    networks = []
    for cls in (points.SmallNetwork, lesson["SmallNetwork"]):
        torch.manual_seed(0)
        networks.append(cls())
    x_t, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.arange(0, 1000, 200)
    assert torch.equal(networks[0](x_t, t), networks[1](x_t, t))

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        return mixture_eps(x_t, float(lesson["alpha_bar"][t]), *points.MIXTURE)

    made = points.sample_points(predict, lesson["alpha_bar"], 20, seed=4, stride=50)
    torch.testing.assert_close(made, lesson["sample"](predict, 20, 4, 50)[0], rtol=1e-12, atol=1e-12)
