"""What every scheduler shares: the tables, the timesteps, the reading of the network's output, clipping, noising."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.hub import HUB_OPTIONS, HubMixin, resolve

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


def whole(timestep: int | Tensor, name: str = "a timestep") -> int:
    """A timestep, or what `name` says, as an int.

    Raises:
        ValueError: not one whole number.
    """
    with suppress(TypeError, ValueError, RuntimeError, OverflowError):  # several numbers, none, NaN, infinity
        number = timestep.item() if isinstance(timestep, Tensor) else timestep
        if int(number) == number:
            return int(number)
    raise ValueError(f"{name} must be one whole number, got {timestep!r:.60}")


class Scheduler(HubMixin):
    """The noise schedule and one sampling step, apart from any network.

    Tables are float64 and stay on the CPU; `step` works with Python floats, so no precision is lost before the last
    multiplication, whatever the dtype of the images.

    Attributes:
        betas, alphas, alphas_cumprod: shape (T,), float64; index 0 is the papers' t = 1.
        timesteps: int64, strictly decreasing; the timesteps that a sampling loop visits.
        num_inference_steps: their number, None before `set_timesteps`.
        init_noise_sigma: standard deviation of the x_T that sampling starts from, 1.
        order: network calls per step, 1.
    """

    config_name: ClassVar[str] = "scheduler_config.json"
    sibling_keys: ClassVar[frozenset[str]] = frozenset({"variance_type", "set_alpha_to_one"})
    older_keys: ClassVar[Mapping[str, Callable[[Any], tuple[str, Any]]]] = {
        "predict_epsilon": lambda value: ("prediction_type", "epsilon" if value else "sample"),
    }
    order: ClassVar[int] = 1
    init_noise_sigma = 1.0
    variance_is_learned = False

    def _set_up(self) -> None:
        """Checks the part of `config` that both schedulers have, and makes the tables."""
        config = self.config
        for name, allowed in (("prediction_type", PREDICTION_TYPES), ("timestep_spacing", TIMESTEP_SPACINGS)):
            if config[name] not in allowed:
                raise ValueError(f"unknown {name} {config[name]!r}: choose one of {', '.join(allowed)}")
        T = config.num_train_timesteps
        for name, rule, holds in (
            ("dynamic_thresholding_ratio", "lie in (0, 1]", 0 < config.dynamic_thresholding_ratio <= 1),
            ("sample_max_value", "be at least 1, or it would scale x_0 up", config.sample_max_value >= 1),
            ("clip_sample_range", "be positive", config.clip_sample_range > 0),
            ("steps_offset", "not be negative", config.steps_offset >= 0),
        ):
            if not holds:
                raise ValueError(f"{name} must {rule}, got {config[name]}")

        betas = schedules.make_betas(config.beta_schedule, T, config.beta_start, config.beta_end, config.trained_betas)
        self.betas = schedules.rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas
        self.alphas = 1 - self.betas
        self.alphas_cumprod = schedules.alpha_bars(self.betas)
        self.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(T - 1, -1, -1)

    # ------------------------------------------------------------ timesteps

    @property
    def timesteps(self) -> Tensor:
        """The timesteps that a sampling loop visits; a part of them may be assigned, to enter halfway."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._timesteps = torch.as_tensor(timesteps)
        self._ascending = sorted(self._timesteps.tolist())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Chooses the timesteps that sampling visits.

        Args:
            num_inference_steps: how many, 1..T, placed by `timestep_spacing` (Lin et al. 2024, table 2).
            device: where `timesteps` goes.
            timesteps: or the timesteps themselves, strictly decreasing, in [0, T-1].

        Raises:
            ValueError: both or neither given, more steps than T, or timesteps outside [0, T-1] or out of order.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("set_timesteps takes exactly one of num_inference_steps and timesteps")
        table = self._spaced_timesteps(num_inference_steps or 0) if timesteps is None else [whole(t) for t in timesteps]
        T = len(self.betas)
        if not table or any(now <= later for now, later in zip(table, table[1:], strict=False)):
            raise ValueError(f"timesteps must be a strictly descending list (in descending order), got {table[:8]}")
        if table[0] >= T or table[-1] < 0:
            raise ValueError(
                f"timesteps must lie in [0, {T - 1}] (they must start before num_train_timesteps: {T}), "
                f"got {table[0]} to {table[-1]}; with steps_offset={self.config.steps_offset} take fewer steps"
            )
        self.num_inference_steps = len(table)
        self._timesteps, self._ascending = torch.tensor(table, device=device), table[::-1]  # a GPU need not be asked

    def _spaced_timesteps(self, n: int) -> list[int]:
        """`n` timesteps placed by `timestep_spacing`, largest first (Lin et al. 2024, table 2)."""
        T, n = len(self.betas), whole(n, "num_inference_steps")
        if not 1 <= n <= T:
            raise ValueError(f"num_inference_steps must be an integer from 1 to {T} (num_train_timesteps), got {n}")
        i = np.arange(n, dtype=np.float64)
        spacing = self.config.timestep_spacing
        if spacing == "leading":
            table = i[::-1] * (T // n) + self.config.steps_offset
        elif spacing == "trailing":
            table = np.round(np.arange(T, 0, -T / n)[:n]) - 1  # rounding may take the range one step past its end
        else:
            table = np.round(np.linspace(0, T - 1, n))[::-1]
        return [int(t) for t in table]

    def _previous(self, timestep: int | Tensor) -> int:
        index = bisect.bisect_left(self._ascending, int(timestep))
        return self._ascending[index - 1] if index else -1

    def previous_timestep(self, timestep: int | Tensor) -> Tensor:
        """The timestep that follows `timestep` in sampling: the next smaller one in `timesteps`, then -1."""
        return torch.tensor(self._previous(timestep))

    def __len__(self) -> int:
        """The number of training timesteps T."""
        return len(self.betas)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json()}"

    # ------------------------------------------------------------ one step

    def _alpha_bar(self, timestep: int) -> float:
        """ᾱ as a Python float; `final_alpha_cumprod` past the end, at -1."""
        return float(self.final_alpha_cumprod if timestep < 0 else self.alphas_cumprod[timestep])

    def _checked_timestep(self, timestep: int | Tensor, model_output: Tensor, sample: Tensor) -> int:
        t = whole(timestep)
        if not 0 <= t < len(self.betas):
            raise ValueError(f"timestep must lie in [0, {len(self.betas) - 1}], got {t}")
        channels = sample.shape[1] * 2 if self.variance_is_learned and sample.ndim > 1 else None
        expected = sample.shape if channels is None else (sample.shape[0], channels, *sample.shape[2:])
        if model_output.shape != expected:
            learned = " (learned_range: twice the channels)" if self.variance_is_learned else ""
            raise ValueError(
                f"model_output has shape {tuple(model_output.shape)}, expected {tuple(expected)}{learned} "
                f"for a sample of shape {tuple(sample.shape)}"
            )
        return t

    def _predict(self, model_output: Tensor, sample: Tensor, alpha_bar_t: float) -> tuple[Tensor, Tensor]:
        """x̂_0 (bounded as configured) and ε̂ from what the network gave."""
        kind = self.config.prediction_type
        if kind == "epsilon" and alpha_bar_t == 0:
            raise ValueError(
                "x_0 cannot be recovered from epsilon where ᾱ_t = 0 (zero terminal SNR): use a model trained "
                "with prediction_type='v_prediction' or 'sample', or timesteps that leave this one out"
            )
        eps_from = {"sample": gaussian.eps_from_x0, "v_prediction": gaussian.eps_from_v}
        eps = model_output if kind == "epsilon" else eps_from[kind](sample, model_output, alpha_bar_t)
        return self._predict_x0(model_output, sample, alpha_bar_t), eps

    def _predict_x0(self, model_output: Tensor, sample: Tensor, alpha_bar_t: float | Tensor) -> Tensor:
        """x̂_0 from what the network gave, thresholded or clipped as configured."""
        kind = self.config.prediction_type
        x0_from = {"epsilon": gaussian.x0_from_eps, "v_prediction": gaussian.x0_from_v}
        x0 = model_output if kind == "sample" else x0_from[kind](sample, model_output, alpha_bar_t)
        if self.config.thresholding:
            return self._threshold_sample(x0)
        limit = self.config.clip_sample_range
        return x0.clamp(-limit, limit) if self.config.clip_sample else x0

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        """Dynamic thresholding: clamp each image to its own percentile s ≥ 1, divide by s (Saharia et al. 2022, 2.3).

        `sample_max_value` bounds s from above.
        """
        magnitude = sample.flatten(1).abs()  # (B, C·H·W)
        exact = magnitude.to(torch.promote_types(magnitude.dtype, torch.float32))
        s = torch.quantile(exact, self.config.dynamic_thresholding_ratio, dim=1)
        s = s.clamp(1, self.config.sample_max_value).view(-1, *[1] * (sample.ndim - 1))
        return (sample.to(s.dtype).clamp(-s, s) / s).to(sample.dtype)

    # ------------------------------------------------------------ training targets

    def _alpha_bar_for(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """ᾱ_t for a batch of timesteps in float64, shaped (B, 1, ..., 1) on the CPU."""
        given = torch.as_tensor(timesteps).detach().cpu().reshape(-1)
        if bool(((t := given.long()) != given).any()):
            raise ValueError(f"timesteps must be whole numbers, got {given.tolist()[:4]}")
        if t.numel() != len(like) and min(t.numel(), len(like)) != 1:
            raise ValueError(f"got {t.numel()} timesteps for a batch of {like.shape[0]}: give one, or one per sample")
        if t.numel() and not (0 <= int(t.min()) and int(t.max()) < len(self.betas)):
            raise ValueError(f"timesteps must lie in [0, {len(self.betas) - 1}], got {int(t.min())} to {int(t.max())}")
        return self.alphas_cumprod[t].view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, for a batch of timesteps (Ho eq. 4).

        The square roots are taken in float64, so that bfloat16 images get their noise at small t too.

        Args:
            original_samples, noise: (B, ...), the same shape.
            timesteps: (B,) or one for all, integers in [0, T-1]; or many for one sample, which comes back at each.

        Raises:
            ValueError: shapes that differ, or a timestep out of range.
        """
        signal, spread = self._signal_and_noise(original_samples, noise, timesteps)
        return signal * original_samples + spread * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = √ᾱ_t ε - √(1-ᾱ_t) x_0, the target of v-prediction (Salimans and Ho 2022). Arguments as `add_noise`."""
        signal, spread = self._signal_and_noise(sample, noise, timesteps)
        return signal * noise - spread * sample

    def _signal_and_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), shaped for `sample` and cast to its dtype last."""
        if sample.shape != noise.shape:
            raise ValueError(f"samples {tuple(sample.shape)} and noise {tuple(noise.shape)} must have the same shape")
        if not sample.is_floating_point():
            raise ValueError(f"samples must be floating-point numbers in [-1, 1], got {sample.dtype}")
        alpha_bar = self._alpha_bar_for(timesteps, sample)
        signal, spread = alpha_bar.sqrt().to(sample.dtype), (1 - alpha_bar).sqrt().to(sample.dtype)
        return signal.to(sample.device), spread.to(sample.device)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The network's input for `sample`: itself, in the variance-preserving process."""
        return sample

    # ------------------------------------------------------------ disk

    save_pretrained = HubMixin.save_config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A scheduler from a folder or a hub id.

        Args:
            pretrained_model_name_or_path: a folder holding `scheduler_config.json`, or "owner/name" on the hub.
            subfolder: folder inside it, such as "scheduler".
            return_unused_kwargs: also return the configuration keys that were not used.
            revision: branch, tag or commit on the hub.
            kwargs: configuration values to override; hub options as in `UNet2DModel.from_pretrained`.

        Raises:
            FileNotFoundError, ValueError: nothing there, or not a scheduler configuration.
        """
        hub_options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = resolve(pretrained_model_name_or_path, [cls.config_name], subfolder, revision, **hub_options)
        return cls.from_config_file(folder / cls.config_name, return_unused_kwargs=return_unused_kwargs, **kwargs)
