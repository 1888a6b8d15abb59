"""Lesson 12 against the truth: guidance on an exact mixture, and the learned variance against the package's."""

from __future__ import annotations

import pytest
import torch

from ddpm_from_scratch import DDPMScheduler, gaussian, schedules
from ddpm_from_scratch.course.exercises.l03 import mixture_eps
from ddpm_from_scratch.course.exercises.l12 import guided_eps, log_variance, min_snr_weight
from ddpm_from_scratch.training import loss_weights

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_guidance_follows_the_exact_classifier(w: float) -> None:
    """The guided score is the class's score plus w times the gradient of log q(c | x_t), taken by autograd."""
    weights, centres, stds = (
        torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [-1, 0.2, 1.1], [0.3] * 3)
    )
    level, wanted = 0.4, torch.tensor([1, 2])
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_(True)
    variance = level * stds**2 + 1 - level
    log_parts = weights.log() - (x[:, None] - level**0.5 * centres) ** 2 / (2 * variance) - variance.log() / 2
    log_class = torch.logsumexp(log_parts[:, wanted], 1)
    target = log_class + w * (log_class - torch.logsumexp(log_parts, 1))
    (score,) = torch.autograd.grad(target.sum(), x)

    def exact(members: torch.Tensor) -> torch.Tensor:
        parts = (weights[members], centres[members, None], stds[members])
        return mixture_eps(x.detach()[:, None], level, *parts)[:, 0]

    guided = guided_eps(exact(wanted), exact(torch.arange(3)), w)
    torch.testing.assert_close(gaussian.score_from_eps(guided, level), score, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("t", "t_prev"), [(900, 850), (500, 450), (100, 50)])
def test_the_learned_variance_is_that_of_the_scheduler(t: int, t_prev: int) -> None:
    """With ε = 0 and no clipping, two steps that differ in v alone differ by noise times the two deviations."""
    v = torch.linspace(0, 1, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(timesteps=[t, t_prev, 0])
    x = torch.zeros(5, 1, 1, 1, dtype=torch.float64)
    output = torch.cat([x, 2 * v - 1], dim=1)
    noise = gaussian.randn(x.shape, torch.Generator().manual_seed(0), dtype=torch.float64)
    made = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    expected = log_variance(v, float(ALPHA_BAR[t]), float(ALPHA_BAR[t_prev])).mul(0.5).exp() * noise
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_those_of_training(predicts: str) -> None:
    t = torch.arange(1000)
    trained_with = loss_weights(DDPMScheduler(prediction_type=predicts), t, 5.0)
    torch.testing.assert_close(min_snr_weight(ALPHA_BAR, 5.0, predicts).float(), trained_with, rtol=1e-6, atol=0)
