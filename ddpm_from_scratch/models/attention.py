"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) V (Vaswani et al. 2017, eq. 1), for tensors of shape (B, heads, N, d).

    On a CPU the two products are written out for few tokens: there the fused kernel's backward pass in bfloat16 is
    several times slower. For many it is the faster one, and holds no N × N scores.
    """
    if q.device.type != "cpu" or q.shape[-2] > 128:
        return nn.functional.scaled_dot_product_attention(q, k, v)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, N, N)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return weights.to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention with a residual connection: (B, C, H, W) → (B, C, H, W).

    Args:
        channels: C.
        head_dim: channels of one head; there are C // head_dim heads. None for a single head.
        norm_num_groups: groups of the group norm in front, None for no norm.
        eps: epsilon of that norm.
        output_scale_factor: divides the sum of input and result.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int | None,
        norm_num_groups: int | None = 32,
        eps: float = 1e-5,
        output_scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        head_dim = channels if head_dim is None else head_dim
        if not 1 <= head_dim <= channels:
            raise ValueError(f"attention_head_dim must lie in [1, {channels}], the block's channels; got {head_dim}")
        if norm_num_groups is not None and (norm_num_groups < 1 or channels % norm_num_groups):
            raise ValueError(f"attn_norm_num_groups={norm_num_groups} does not divide the block's {channels} channels")
        self.heads = channels // head_dim
        self.heads_at_once = self.heads
        self.output_scale_factor = output_scale_factor
        inner = self.heads * head_dim
        self.group_norm = nn.GroupNorm(norm_num_groups, channels, eps) if norm_num_groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels), nn.Dropout(0.0)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        h = hidden_states if self.group_norm is None else self.group_norm(hidden_states)
        tokens = h.flatten(2).transpose(1, 2)  # (B, C, H, W) → (B, H·W, C)
        qkv = (self._split_heads(project(tokens)) for project in (self.to_q, self.to_k, self.to_v))
        slices = zip(*(x.split(self.heads_at_once, dim=1) for x in qkv), strict=True)
        out = torch.cat([scaled_dot_product_attention(*some) for some in slices], dim=1)  # (B, heads, N, d)
        out = out.transpose(1, 2).flatten(2)  # (B, heads, N, d) → (B, N, heads·d)
        out = self.to_out[0](out).transpose(1, 2).reshape(hidden_states.shape)  # (B, N, C) → (B, C, H, W)
        return (hidden_states + out) / self.output_scale_factor

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, heads·d) → (B, heads, N, d)
