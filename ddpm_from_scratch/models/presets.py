"""A U-Net that suits a dataset of small images."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_from_scratch.models.unet import UNet2DModel

CHANNELS_PER_GROUP = 16


def small_unet(
    image_shape: tuple[int, int, int],
    widths: Sequence[int] = (32, 64, 128),
    layers_per_block: int = 1,
    num_classes: int | None = None,
    learned_variance: bool = False,
) -> UNet2DModel:
    """A U-Net with attention at its lowest resolution only.

    Group norms take 16 channels per group and attention heads 32 channels: the sizes that matrix units like.

    Args:
        image_shape: (C, H, W); H and W multiples of 2^(len(widths) - 1).
        widths: channels per resolution, the finest first; multiples of the first, which is a multiple of 16.
        layers_per_block: ResNet blocks per resolution.
        num_classes: classes of a conditional model; one more is added, the "no class" of classifier-free guidance.
        learned_variance: twice the output channels.

    Raises:
        ValueError: widths or an image size that do not fit.
    """
    channels, height, width = image_shape
    multiple = 2 ** (len(widths) - 1)
    if height % multiple or width % multiple:
        raise ValueError(
            f"{height}×{width} images cannot be halved {len(widths) - 1} times: resize them or give fewer widths"
        )
    plain = len(widths) - 1
    return UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels * (2 if learned_variance else 1),
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        block_out_channels=tuple(widths),
        layers_per_block=layers_per_block,
        attention_head_dim=min(32, widths[-1]),
        norm_num_groups=max(1, widths[0] // CHANNELS_PER_GROUP),
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )
