"""The U-Net and its parts."""

from ddpm_from_scratch.models.presets import small_unet
from ddpm_from_scratch.models.unet import UNet2DModel, UNet2DOutput

__all__ = ["UNet2DModel", "UNet2DOutput", "small_unet"]
