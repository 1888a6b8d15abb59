"""DDPM: the reverse chain of Ho, Jain and Abbeel 2020 (arXiv 2006.11239), algorithm 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.config import register_to_config
from ddpm_from_scratch.outputs import Output
from ddpm_from_scratch.schedulers.base import Scheduler

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")
SMALLEST_VARIANCE = 1e-20


@dataclass
class DDPMSchedulerOutput(Output):
    """`prev_sample` is x_{t-1}, `pred_original_sample` the x̂_0 behind it; both shaped like the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class DDPMScheduler(Scheduler):
    """Ancestral sampling with the posterior of Ho eq. 7.

    The last step, the one to x_0, draws no noise, whatever its timestep (Diffusers draws it where that is above 0, as
    with "trailing" spacing).

    Args:
        num_train_timesteps: T.
        beta_start, beta_end: ends of the β range, in (0, 1).
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" (cosine) or "sigmoid".
        trained_betas: T values of β instead.
        variance_type: "fixed_small" (σ² = β̃_t), "fixed_large" (σ² = β_t) or "learned_range" (the network's second
            half of channels interpolates between the two in the log domain; Nichol and Dhariwal 2021, eq. 15).
            "fixed_small_log" and "fixed_large_log" are accepted as the same variances under Diffusers' older names.
        clip_sample, clip_sample_range: clamp x̂_0 to ±range.
        prediction_type: what the network predicts: "epsilon", "sample" (x_0) or "v_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂_0 (Saharia et al. 2022)
            instead of clipping; `sample_max_value` ≥ 1 bounds the threshold.
        timestep_spacing: "leading", "trailing" or "linspace" (Lin et al. 2024, table 2).
        steps_offset: added to "leading" timesteps.
        rescale_betas_zero_snr: rescale the schedule to ᾱ_T = 0 (Lin et al. 2024, algorithm 1).

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
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        if variance_type not in VARIANCE_TYPES:
            raise ValueError(f"unknown variance_type {variance_type!r}: choose one of {', '.join(VARIANCE_TYPES)}")
        self._set_up()
        self.variance_type = variance_type
        self.variance_is_learned = variance_type == "learned_range"

    def _log_variance(self, alpha_bar_t: float, alpha_bar_prev: float, learned: Tensor | None = None) -> float | Tensor:
        """log σ_t²; β̃_t is 0 at the last step and counts as 1e-20 there."""
        small = math.log(max(gaussian.posterior_variance(alpha_bar_t, alpha_bar_prev), SMALLEST_VARIANCE))
        large = math.log(1 - alpha_bar_t / alpha_bar_prev)
        if learned is not None:
            # IDDPM eq. 15: log σ² = v log β_t + (1-v) log β̃_t, with v from [-1, 1] to [0, 1]
            v = (learned + 1) / 2
            return v * large + (1 - v) * small
        return large if self.variance_type.startswith("fixed_large") else small

    def _get_variance(self, t: int, predicted_variance: Tensor | None = None) -> Tensor:
        """σ_t² at timestep `t`, the variance whatever the type (the log-variance, exponentiated)."""
        alpha_bar_t, alpha_bar_prev = self._alpha_bar(int(t)), self._alpha_bar(self._previous(t))
        log_variance = self._log_variance(alpha_bar_t, alpha_bar_prev, predicted_variance)
        return torch.as_tensor(log_variance, dtype=torch.float64).exp()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: gaussian.Generator | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step of algorithm 2, x_t → x_{t-1} (Ho eq. 1, 6, 7, 11).

        Args:
            model_output: the network's prediction, shaped like `sample`; twice the channels with "learned_range".
            timestep: t, an integer in [0, T-1].
            sample: x_t, (B, C, H, W).
            generator: source of the step's noise; one, or one per sample.
            return_dict: False gives the tuple (x_{t-1}, x̂_0).

        Raises:
            ValueError: a timestep out of range, shapes that do not fit, ε-prediction where ᾱ_t = 0.
        """
        t = self._checked_timestep(timestep, model_output, sample)
        learned = None
        if self.variance_is_learned:
            model_output, learned = model_output.chunk(2, dim=1)
        t_prev = self._previous(t)
        alpha_bar_t, alpha_bar_prev = self._alpha_bar(t), self._alpha_bar(t_prev)

        x0, _ = self._predict(model_output, sample, alpha_bar_t)
        # Ho eq. 7: the posterior's mean at the predicted x_0
        prev_sample = gaussian.posterior_mean(sample, x0, alpha_bar_t, alpha_bar_prev)
        if t_prev >= 0:
            # algorithm 2: x_{t-1} = μ + σ_t z, with z = 0 at the last step
            log_variance = self._log_variance(alpha_bar_t, alpha_bar_prev, learned)
            sigma_t = math.exp(0.5 * log_variance) if isinstance(log_variance, float) else (0.5 * log_variance).exp()
            z = gaussian.randn(sample.shape, generator, sample.device, model_output.dtype)
            prev_sample = prev_sample + sigma_t * z
        return DDPMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
