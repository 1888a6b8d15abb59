"""DDPM and DDIM from scratch, in the vocabulary of Hugging Face Diffusers."""

from ddpm_from_scratch.models import UNet2DModel, UNet2DOutput
from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline, ImagePipelineOutput
from ddpm_from_scratch.schedulers import (
    DDIMScheduler,
    DDIMSchedulerOutput,
    DDPMScheduler,
    DDPMSchedulerOutput,
    ddim_invert,
)

__version__ = "0.1.0"
