"""Timestep embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(t: Tensor, dim: int, flip_sin_to_cos: bool = False, freq_shift: float = 0) -> Tensor:
    """The positional encoding of Vaswani et al. 2017 (section 3.5), of timesteps; Ho appendix B.

    Args:
        t: (B,) timesteps.
        dim: length of the embedding; an odd one is padded with a zero.
        flip_sin_to_cos: cosines first instead of sines first.
        freq_shift: 0 spaces the frequencies over `dim/2` steps, 1 over `dim/2 - 1` as in Ho's code.

    Returns:
        (B, dim), float32.
    """
    half = dim // 2
    # ω_i = 10000^(-i / (dim/2 - shift));  embedding = (sin ω_i t, cos ω_i t)
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device).float() / (half - freq_shift))
    angles = t.float()[:, None] * frequencies[None, :]  # (B, half)
    first, second = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    embedding = torch.cat([first, second], dim=-1)  # (B, 2·half)
    return nn.functional.pad(embedding, (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between: (B, in_channels) → (B, time_embed_dim)."""

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, sample: Tensor) -> Tensor:
        """(B, in_channels) → (B, time_embed_dim)."""
        return self.linear_2(self.act(self.linear_1(sample)))
