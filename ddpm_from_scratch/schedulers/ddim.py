"""DDIM: the non-Markovian sampler of Song, Meng and Ermon 2021 (arXiv 2010.02502). Their α_t is the ᾱ_t used here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.config import register_to_config
from ddpm_from_scratch.outputs import Output
from ddpm_from_scratch.schedulers.base import Scheduler


@dataclass
class DDIMSchedulerOutput(Output):
    """`prev_sample` is x at the next timestep, `pred_original_sample` the x̂_0 behind it; shaped like the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class DDIMScheduler(Scheduler):
    """Sampling along any decreasing subsequence of timesteps, deterministic at η = 0 (Song eq. 12, 16).

    The step goes from t to the next entry of `timesteps`, whatever the spacing, and from the last one to x_0
    (Diffusers goes to t - T//n, which differs for "linspace", and for "trailing" where n does not divide T).

    Args:
        set_alpha_to_one: ᾱ at the end of sampling is 1; with False it is ᾱ at timestep 0.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, clip_sample, clip_sample_range,
        prediction_type, thresholding, dynamic_thresholding_ratio, sample_max_value, timestep_spacing, steps_offset,
        rescale_betas_zero_snr: as in `DDPMScheduler`.

    Raises:
        ValueError: an unknown choice, a β outside (0, 1), a number of given betas other than T.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | np.ndarray | Tensor | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._set_up()
        if not set_alpha_to_one:
            self.final_alpha_cumprod = self.alphas_cumprod[0]

    def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
        """β̃ between two timesteps, σ² at η = 1 (Song eq. 16)."""
        variance = gaussian.posterior_variance(self._alpha_bar(timestep), self._alpha_bar(prev_timestep))
        return torch.tensor(variance, dtype=torch.float64)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: gaussian.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One DDIM step to the next entry of `timesteps` (Song eq. 10, 12).

        Args:
            model_output: the network's prediction, shaped like `sample`.
            timestep: t, an integer in [0, T-1].
            sample: x_t, (B, C, H, W).
            eta: η of Song eq. 16, in [0, 1]: 0 is deterministic, 1 has DDPM's posterior variance.
            use_clipped_model_output: derive ε̂ anew from the clipped x̂_0. With it, η = 1 is DDPM `fixed_small`
                step for step even where x̂_0 was clipped; without it (Diffusers' default) only where it was not.
            generator: source of the step's noise when η > 0; one, or one per sample.
            variance_noise: that noise itself, instead of a generator.
            return_dict: False gives the tuple (x at the next timestep, x̂_0).

        Raises:
            ValueError: `set_timesteps` not called, a timestep out of range, η outside [0, 1], shapes that do not
                fit, ε-prediction where ᾱ_t = 0, both a generator and a noise.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step: the scheduler does not know how many steps to take")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        t = self._checked_timestep(timestep, model_output, sample)
        alpha_bar_t, alpha_bar_prev = self._alpha_bar(t), self._alpha_bar(self._previous(t))

        x0, eps = self._predict(model_output, sample, alpha_bar_t)
        if use_clipped_model_output:
            eps = gaussian.eps_from_x0(sample, x0, alpha_bar_t)
        # Song eq. 16 and 12; at t = 0 with set_alpha_to_one=False, ᾱ_prev = ᾱ_t and σ is 0
        sigma_t = gaussian.ddim_sigma(alpha_bar_t, alpha_bar_prev, eta)
        prev_sample = gaussian.ddim_mean(x0, eps, alpha_bar_prev, sigma_t)
        if eta > 0:
            if variance_noise is not None and (generator is not None or variance_noise.shape != sample.shape):
                raise ValueError("give a generator or a variance_noise shaped like the sample, not both")
            if variance_noise is None:
                variance_noise = gaussian.randn(sample.shape, generator, sample.device, model_output.dtype)
            prev_sample = prev_sample + sigma_t * variance_noise
        return DDIMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)


@torch.no_grad()
def ddim_invert(
    model: Callable[..., Any],
    x0: Tensor,
    scheduler: DDIMScheduler,
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Encodes images to x_T by running the deterministic DDIM backwards (Song section 4.3, eq. 13).

    The step x_s → x_t uses ε̂ at (x_s, s), so encoding then decoding returns the image as the steps shrink.
    Nothing is clipped: a clipped step has no inverse.

    Args:
        model: `model(x, t).sample` or `model(x, t)` gives the prediction of `scheduler.config.prediction_type`.
        x0: (B, C, H, W) in [-1, 1].
        scheduler: its `timesteps`, set beforehand, are visited from the smallest up.
        callback: called as `callback(step, t, x_t, x0_hat)` after each step.

    Returns:
        x at `scheduler.timesteps[0]`.

    Raises:
        ValueError: `set_timesteps` not called.
    """
    if scheduler.num_inference_steps is None:
        raise ValueError("call scheduler.set_timesteps before ddim_invert")
    unclipped = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    ascending = [int(t) for t in scheduler.timesteps.flip(0)]
    x, alpha_bar = x0, unclipped._alpha_bar(-1)
    t_now = ascending[0]  # x_0 has no timestep of its own: the network is asked at the smallest one
    for step, t in enumerate(ascending):
        output = model(x, t_now)
        prediction = getattr(output, "sample", output)[:, : x.shape[1]]  # without a learned variance
        _, eps = unclipped._predict(prediction, x, unclipped._alpha_bar(t_now))
        x0_hat = gaussian.x0_from_eps(x, eps, alpha_bar)
        alpha_bar, t_now = unclipped._alpha_bar(t), t
        x = gaussian.ddim_mean(x0_hat, eps, alpha_bar)
        if callback is not None:
            callback(step, t, x, x0_hat)
    return x
