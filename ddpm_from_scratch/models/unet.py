"""The U-Net of DDPM (Ho appendix B), with the parameter names of Diffusers' `UNet2DModel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_from_scratch.config import register_to_config
from ddpm_from_scratch.hub import ModelMixin
from ddpm_from_scratch.models.attention import Attention
from ddpm_from_scratch.models.embeddings import TimestepEmbedding, sinusoidal_embedding
from ddpm_from_scratch.models.resnet import ACTIVATIONS, Downsample2D, ResnetBlock2D, Upsample2D
from ddpm_from_scratch.outputs import Output

Options = dict[str, Any]


@dataclass
class UNet2DOutput(Output):
    """`sample`, the network's prediction, (B, out_channels, H, W)."""

    sample: Tensor


class Checkpointed(nn.Module):
    """A module that may recompute the activations of its layers in the backward pass."""

    gradient_checkpointing = False

    def _run(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        """`layer(*inputs)`, checkpointed where that is switched on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class Block(Checkpointed):
    """ResNet blocks, each followed by attention where `with_attention`, and a way to run them.

    Args:
        resnet_channels: (in, out) of each ResNet block.
        resnet: keyword arguments common to all ResNet blocks.
        attention: keyword arguments common to all attention layers.
    """

    with_attention: ClassVar[bool] = False

    def __init__(self, resnet_channels: Sequence[tuple[int, int]], resnet: Options, attention: Options) -> None:
        super().__init__()
        resnets, attentions = nn.ModuleList(), nn.ModuleList()
        for in_channels, out_channels in resnet_channels:  # made in Diffusers' order: a seed gives the same weights
            resnets.append(ResnetBlock2D(in_channels, out_channels, **resnet))
            if self.with_attention:
                attentions.append(Attention(out_channels, **attention))
        if self.with_attention:
            self.attentions = attentions
        self.resnets = resnets

    def _layer(self, index: int, x: Tensor, temb: Tensor) -> Tensor:
        x = self._run(self.resnets[index], x, temb)
        return self.attentions[index](x) if self.with_attention else x


class DownBlock2D(Block):
    """Layers at one resolution, then the halving; every output is kept for the way up."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, padding: int | None, resnet: Options, attention: Options
    ) -> None:
        channels = [(in_channels if i == 0 else out_channels, out_channels) for i in range(layers)]
        super().__init__(channels, resnet, attention)
        self.downsamplers = None if padding is None else nn.ModuleList([Downsample2D(out_channels, padding)])

    def forward(self, hidden_states: Tensor, temb: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, C_in, H, W) → (B, C_out, H/2, W/2) and the skips, one per layer and one for the halving."""
        skips: tuple[Tensor, ...] = ()
        for i in range(len(self.resnets)):
            hidden_states = self._layer(i, hidden_states, temb)
            skips += (hidden_states,)
        if self.downsamplers is not None:
            hidden_states = self.downsamplers[0](hidden_states)
            skips += (hidden_states,)
        return hidden_states, skips


class AttnDownBlock2D(DownBlock2D):
    """`DownBlock2D` with attention after each ResNet block."""

    with_attention = True


class UpBlock2D(Block):
    """Layers at one resolution, each fed one skip by concatenation, then the doubling."""

    def __init__(
        self,
        in_channels: int,
        skips: Sequence[int],
        out_channels: int,
        double: bool,
        resnet: Options,
        attention: Options,
    ) -> None:
        channels = [((in_channels if i == 0 else out_channels) + s, out_channels) for i, s in enumerate(skips)]
        super().__init__(channels, resnet, attention)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if double else None

    def forward(self, hidden_states: Tensor, skips: Sequence[Tensor], temb: Tensor) -> Tensor:
        """(B, C_in, H, W) and one skip per layer, the last used first → (B, C_out, 2H, 2W)."""
        for i, skip in enumerate(reversed(skips)):
            hidden_states = self._layer(i, torch.cat([hidden_states, skip], dim=1), temb)
        return hidden_states if self.upsamplers is None else self.upsamplers[0](hidden_states)


class AttnUpBlock2D(UpBlock2D):
    """`UpBlock2D` with attention after each ResNet block."""

    with_attention = True


class UNetMidBlock2D(Checkpointed):
    """ResNet block, attention (optional), ResNet block, at the lowest resolution."""

    def __init__(self, channels: int, resnet: Options, attention: Options, scale: float, add_attention: bool) -> None:
        super().__init__()
        resnet = {"output_scale_factor": scale, **resnet}
        first = ResnetBlock2D(channels, channels, **resnet)  # Diffusers' order again: ResNet, attention, ResNet
        middle = Attention(channels, output_scale_factor=scale, **attention) if add_attention else None
        self.attentions = nn.ModuleList([middle])  # type: ignore[list-item]
        self.resnets = nn.ModuleList([first, ResnetBlock2D(channels, channels, **resnet)])

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        hidden_states = self.resnets[0](hidden_states, temb)
        if self.attentions[0] is not None:
            hidden_states = self.attentions[0](hidden_states)
        return self._run(self.resnets[1], hidden_states, temb)


DOWN_BLOCKS: dict[str, type[DownBlock2D]] = {"DownBlock2D": DownBlock2D, "AttnDownBlock2D": AttnDownBlock2D}
UP_BLOCKS: dict[str, type[UpBlock2D]] = {"UpBlock2D": UpBlock2D, "AttnUpBlock2D": AttnUpBlock2D}
SUPPORTED: dict[str, tuple[str | int | None, ...]] = {
    "down_block_types": tuple(DOWN_BLOCKS),
    "up_block_types": tuple(UP_BLOCKS),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}
SIZES = ("in_channels", "out_channels", "num_class_embeds", "sample_size", "time_embedding_dim", "block_out_channels")
MAX_LAYERS_PER_BLOCK = 64
MAX_RESOLUTIONS = 16
MAX_SIZE = 2**20


class UNet2DModel(ModelMixin):
    """Predicts noise (or x_0, or v) from a noisy image and its timestep.

    Args:
        sample_size: side of the images, or (height, width); used by pipelines to choose the noise's shape.
        in_channels, out_channels: of the images; `out_channels` is twice `in_channels` for a learned variance.
        center_input_sample: map inputs from [0, 1] to [-1, 1] first.
        time_embedding_type: "positional".
        time_embedding_dim: length of the timestep embedding, by default 4 · block_out_channels[0].
        freq_shift, flip_sin_to_cos: see `sinusoidal_embedding`.
        down_block_types: "DownBlock2D" or "AttnDownBlock2D" per resolution, the finest first.
        mid_block_type: "UNetMidBlock2D", or None for no middle block.
        up_block_types: "UpBlock2D" or "AttnUpBlock2D" per resolution, the coarsest first.
        block_out_channels: channels per resolution, each a multiple of `norm_num_groups`.
        layers_per_block: ResNet blocks per resolution on the way down; one more on the way up.
        mid_block_scale_factor: divides the residual sums of the middle block.
        downsample_padding: 1, or 0 for padding below and to the right only.
        downsample_type, upsample_type: "conv".
        dropout: inside the ResNet blocks.
        act_fn: "silu" (or "swish"), "mish", "gelu" or "relu".
        attention_head_dim: channels per attention head, None for a single head.
        norm_num_groups, norm_eps: of the group norms.
        attn_norm_num_groups: groups of the middle attention's norm; None takes `norm_num_groups`, or no norm with
            "scale_shift".
        resnet_time_scale_shift: "default" or "scale_shift".
        add_attention: attention in the middle block.
        class_embed_type: None (a table, where `num_class_embeds` is given), "timestep" or "identity".
        num_class_embeds: number of classes of that table.
        num_train_timesteps: kept in the configuration for Diffusers; "learned" time embeddings are not supported.

    Raises:
        ValueError: an option that is not supported, named, or sizes that do not fit together.
    """

    older_names: ClassVar[tuple[str, ...]] = ("UNetUnconditionalModel", "UNetModel")
    older_keys: ClassVar[Mapping[str, Callable[[Any], tuple[str, Any]]]] = {
        "image_size": lambda value: ("sample_size", value),
        "num_head_channels": lambda value: ("attention_head_dim", value),
        "resnet_eps": lambda value: ("norm_eps", value),
    }
    _supports_gradient_checkpointing: ClassVar[bool] = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        down_block_types = [name.removeprefix("UNetRes") for name in down_block_types]
        up_block_types = [name.removeprefix("UNetRes") for name in up_block_types]
        _check_supported({**self.config, "down_block_types": down_block_types, "up_block_types": up_block_types})
        _check_sizes(self.config)
        widths = list(block_out_channels)
        _check_widths(widths, len(down_block_types), len(up_block_types), norm_num_groups, layers_per_block)

        if norm_eps < 0 or mid_block_scale_factor <= 0:
            raise ValueError(f"norm_eps={norm_eps} must be ≥ 0 and mid_block_scale_factor={mid_block_scale_factor} > 0")

        time_embed_dim = time_embedding_dim or widths[0] * 4
        resnet: Options = {"temb_channels": time_embed_dim, "groups": norm_num_groups, "eps": norm_eps}
        resnet |= {"dropout": dropout, "time_scale_shift": resnet_time_scale_shift, "act_fn": act_fn}
        attention = {"head_dim": attention_head_dim, "norm_num_groups": norm_num_groups, "eps": norm_eps}
        mid_groups = attn_norm_num_groups or (norm_num_groups if resnet_time_scale_shift == "default" else None)

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], time_embed_dim)
        self.class_embedding = _class_embedding(class_embed_type, num_class_embeds, widths[0], time_embed_dim)

        self.down_blocks, skips = _way_down(
            down_block_types, widths, layers_per_block, downsample_padding, resnet, attention
        )

        self.mid_block: UNetMidBlock2D | None = None
        if mid_block_type is not None:
            middle = {**attention, "norm_num_groups": mid_groups}
            self.mid_block = UNetMidBlock2D(widths[-1], resnet, middle, mid_block_scale_factor, add_attention)

        self.up_blocks = _way_up(up_block_types, widths, layers_per_block, skips, resnet, attention)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The prediction at x_t.

        Args:
            sample: x_t, (B, in_channels, H, W); H and W multiples of 2^(number of resolutions - 1).
            timestep: t, a number for all or (B,).
            class_labels: (B,) integers, where the model is conditional; (B, time_embed_dim) with "identity".
            return_dict: False gives the tuple (prediction,).

        Returns:
            `UNet2DOutput` with `.sample`, (B, out_channels, H, W).

        Raises:
            ValueError: a shape or dtype that does not fit, labels missing, not expected, or no classes of this model.
        """
        self._check_sample(sample)
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        temb = self._embed(sample, timestep, class_labels)

        h = self.conv_in(sample)
        skips: list[Tensor] = [h]
        for block in self.down_blocks:
            h, made = block(h, temb)
            skips += made
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        for block in self.up_blocks:
            n = len(block.resnets)  # type: ignore[arg-type]
            h = block(h, skips[-n:], temb)
            del skips[-n:]
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return UNet2DOutput(h) if return_dict else (h,)

    def _embed(self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> Tensor:
        """The embedding of timestep and class, (B, time_embed_dim)."""
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        if t.numel() not in (1, sample.shape[0]):
            raise ValueError(f"got {t.numel()} timesteps for a batch of {sample.shape[0]}: give one, or one per sample")
        temb = self.time_embedding(self._sinusoids(t.expand(sample.shape[0])))
        kind, classes = self.config.class_embed_type, self.config.num_class_embeds
        if (self.class_embedding is None) != (class_labels is None):
            fault = "class_labels missing: the" if class_labels is None else "class_labels given, but the"
            raise ValueError(f"{fault} model was built with class_embed_type={kind!r}, num_class_embeds={classes}")
        if self.class_embedding is None or class_labels is None:
            return temb
        labels = self._sinusoids(class_labels) if kind == "timestep" else class_labels
        if isinstance(self.class_embedding, nn.Embedding):
            labels = self._checked_labels(labels, sample)
        return temb + self.class_embedding(labels).to(temb.dtype)

    def _checked_labels(self, labels: Tensor | Sequence[int], sample: Tensor) -> Tensor:
        """Class labels as integers, (B,) or (1,). Their range is looked at on a CPU only: a GPU would have to wait."""
        given = torch.as_tensor(labels, device=sample.device).reshape(-1)
        last = self.config.num_class_embeds - 1
        outside = given.is_cpu and bool(((given < 0) | (given > last)).any())
        if given.is_floating_point() or len(given) not in (1, len(sample)) or outside:
            raise ValueError(f"class_labels must be {len(sample)} integers in [0, {last}], got {str(labels)[:60]}")
        return given.long()

    def _sinusoids(self, t: Tensor) -> Tensor:
        dim = self.config.block_out_channels[0]
        return sinusoidal_embedding(t, dim, self.config.flip_sin_to_cos, self.config.freq_shift).to(self.dtype)

    def _check_sample(self, sample: Tensor) -> None:
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            expected = f"(batch, {self.config.in_channels}, height, width)"
            raise ValueError(f"the network takes images of shape {expected}, got {tuple(sample.shape)}")
        if sample.dtype != self.dtype and not torch.is_autocast_enabled(sample.device.type):
            raise ValueError(f"the network's weights are {self.dtype}, the images {sample.dtype}: convert one of them")
        multiple = 2 ** (len(self.config.block_out_channels) - 1)
        if sample.shape[2] % multiple or sample.shape[3] % multiple:
            size = f"{sample.shape[2]}×{sample.shape[3]}"
            raise ValueError(f"height and width must be multiples of {multiple}, got {size}: pad or resize the images")

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass: less memory for about a third more time."""
        self._set_gradient_checkpointing(True)

    def disable_gradient_checkpointing(self) -> None:
        """Keeps activations again."""
        self._set_gradient_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def _set_gradient_checkpointing(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, Checkpointed):
                module.gradient_checkpointing = value


def _check_supported(config: Mapping[str, Any]) -> None:
    for name, choices in SUPPORTED.items():
        given = config[name]
        for value in given if isinstance(given, list) else [given]:
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not supported: choose one of {', '.join(map(str, choices))}")


def _class_embedding(kind: str | None, classes: int | None, width: int, time_embed_dim: int) -> nn.Module | None:
    """The layer from class labels to what is added to the timestep embedding."""
    if kind == "timestep":
        return TimestepEmbedding(width, time_embed_dim)
    if kind == "identity":
        return nn.Identity()
    return None if classes is None else nn.Embedding(classes, time_embed_dim)


def _way_down(
    names: Sequence[str], widths: list[int], layers: int, padding: int, resnet: Options, attention: Options
) -> tuple[nn.ModuleList, list[int]]:
    """The blocks from the finest resolution to the coarsest, and the channels of every skip, in the order made."""
    blocks, skips = nn.ModuleList(), [widths[0]]
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        halve = i < len(widths) - 1
        narrow = widths[max(i - 1, 0)]
        blocks.append(DOWN_BLOCKS[name](narrow, width, layers, padding if halve else None, resnet, attention))
        skips += [width] * (layers + halve)
    return blocks, skips


def _way_up(
    names: Sequence[str], widths: list[int], layers: int, skips: list[int], resnet: Options, attention: Options
) -> nn.ModuleList:
    """The blocks from the coarsest resolution to the finest; each takes the last skips that are left."""
    blocks, below, left = nn.ModuleList(), widths[-1], list(skips)
    for name, width in zip(names, reversed(widths), strict=True):
        taken = [left.pop() for _ in range(layers + 1)]
        blocks.append(UP_BLOCKS[name](below, taken, width, bool(left), resnet, attention))
        below = width
    return blocks


def _check_sizes(config: Mapping[str, Any]) -> None:
    for name in SIZES:
        given = config[name]
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name} must lie in [1, {MAX_SIZE}], got {value}")


def _check_widths(widths: list[int], down: int, up: int, groups: int, layers: int) -> None:
    if not len(widths) == down == up or not widths:
        raise ValueError(
            f"block_out_channels, down_block_types and up_block_types need the same length (Must provide the same "
            f"number), got {len(widths)}, {down} and {up}"
        )
    if len(widths) > MAX_RESOLUTIONS:
        raise ValueError(f"at most {MAX_RESOLUTIONS} resolutions are supported, got {len(widths)}")
    if not 1 <= layers <= MAX_LAYERS_PER_BLOCK:
        raise ValueError(f"layers_per_block must lie in [1, {MAX_LAYERS_PER_BLOCK}], got {layers}")
    for width in widths:
        if width < 1 or groups < 1 or width % groups:
            raise ValueError(f"block_out_channels must be multiples of norm_num_groups={groups}, got {width}")
