"""The residual block and the two resampling layers."""

from __future__ import annotations

from torch import Tensor, nn

ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


class ResnetBlock2D(nn.Module):
    """norm → act → conv, plus the timestep, → norm → act → dropout → conv, plus the input (Ho appendix B).

    Args:
        in_channels, out_channels: a 1×1 convolution carries the input across where they differ.
        temb_channels: length of the timestep embedding.
        groups, eps: of both group norms.
        time_scale_shift: "default" adds the projected embedding; "scale_shift" scales and shifts the second norm's
            output with it (Nichol and Dhariwal 2021, appendix A).
        output_scale_factor: divides the sum of input and result.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        time_scale_shift: str = "default",
        act_fn: str = "silu",
        output_scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift = time_scale_shift == "scale_shift"
        self.output_scale_factor = output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, (2 if self.scale_shift else 1) * out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[act_fn]()
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """(B, in_channels, H, W) and (B, temb_channels) → (B, out_channels, H, W)."""
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        t = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]  # (B, C) → (B, C, 1, 1)
        if self.scale_shift:
            scale, shift = t.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + t)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return (shortcut + h) / self.output_scale_factor


class Downsample2D(nn.Module):
    """A 3×3 convolution of stride 2: (B, C, H, W) → (B, C, H/2, W/2).

    `padding=0` pads one row below and one column to the right, as the original TensorFlow networks did.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2)."""
        if self.padding == 0:
            hidden_states = nn.functional.pad(hidden_states, (0, 1, 0, 1))
        return self.conv(hidden_states)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling, then a 3×3 convolution: (B, C, H, W) → (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return self.conv(nn.functional.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))
