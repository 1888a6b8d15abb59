"""Schedulers: the noise schedule and the sampling step, apart from any network."""

from ddpm_from_scratch.schedulers.ddim import DDIMScheduler, DDIMSchedulerOutput, ddim_invert
from ddpm_from_scratch.schedulers.ddpm import DDPMScheduler, DDPMSchedulerOutput

__all__ = ["DDIMScheduler", "DDIMSchedulerOutput", "DDPMScheduler", "DDPMSchedulerOutput", "ddim_invert"]
