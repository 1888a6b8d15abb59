"""Points in the plane, as lesson 03 builds them, for later lessons: a mixture, a small network, ancestral sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.course.exercises.l03 import CENTRES, STDS, WEIGHTS

MIXTURE = (WEIGHTS.double(), CENTRES.double(), STDS.double())
"""Weights (K,), centres (K, 2) and standard deviations (K,) of lesson 03's mixture of Gaussians."""


def draw_mixture(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of the mixture, (n, 2) in float64, and the component of each, (n,)."""
    weights, centres, stds = MIXTURE
    k = torch.multinomial(weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return centres[k] + stds[k, None] * noise, k


class SmallNetwork(nn.Module):
    """A prediction for points: x_t (N, 2) and t (N,), 0 to 999, give (N, 2)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        sizes = (2 + 13, width, width, width)
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        share = t[:, None] / 1000
        waves = share * math.pi * 2.0 ** torch.arange(6)
        return self.layers(torch.cat([x_t, share, waves.sin(), waves.cos()], dim=1))


def sample_points(
    predict: Callable[[Tensor, int], Tensor], alpha_bar: Tensor, n: int, seed: int, stride: int = 1
) -> Tensor:
    """Points by ancestral sampling with the variance β̃ (Ho algorithm 2), at every `stride`-th t from T-1 down.

    Args:
        predict: (x_t, t) → ε, shaped like x_t.
        alpha_bar: (T,).

    Returns:
        (n, 2) in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    visited = [*range(len(alpha_bar) - 1, -1, -stride), -1]
    for t, t_prev in zip(visited, visited[1:], strict=False):
        now, before = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        mean = gaussian.posterior_mean(x, gaussian.x0_from_eps(x, predict(x, t), now), now, before)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = mean + gaussian.posterior_variance(now, before) ** 0.5 * noise
    return x
