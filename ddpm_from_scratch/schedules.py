"""Beta schedules and what follows from them: ᾱ, SNR, the zero-terminal-SNR rescale.

A schedule is a float64 tensor of T variances β_1..β_T, stored at index t = 0..T-1 as in Diffusers: `betas[0]` is the
papers' β_1. All tables stay in float64; cast the final coefficient, never the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

DTYPE = torch.float64
MAX_TIMESTEPS = 1_000_000


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """β_t evenly spaced from `beta_start` to `beta_end` (Ho section 4). Shape (T,)."""
    return torch.linspace(beta_start, beta_end, T, dtype=DTYPE)


def scaled_linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """√β_t evenly spaced, the schedule of latent diffusion (Diffusers' `scaled_linear`). Shape (T,)."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=DTYPE) ** 2


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """β_t whose ᾱ follows a squared cosine (Nichol and Dhariwal 2021, eq. 17; Diffusers' `squaredcos_cap_v2`).

    Args:
        s: offset that keeps β_1 from vanishing.
        max_beta: cap of each β_t, which keeps the last step from ᾱ_T = 0.
    """
    t = torch.arange(T + 1, dtype=DTYPE) / T
    # IDDPM eq. 17: ᾱ_t = f(t)/f(0),  f(t) = cos²((t/T + s)/(1 + s) · π/2);  β_t = min(1 - ᾱ_t/ᾱ_{t-1}, 0.999)
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def sigmoid(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """β_t along a sigmoid over [-6, 6] (Diffusers' `sigmoid`, a sigmoid in β, not in ᾱ). Shape (T,)."""
    return torch.sigmoid(torch.linspace(-6, 6, T, dtype=DTYPE)) * (beta_end - beta_start) + beta_start


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": cosine,
    "sigmoid": sigmoid,
}
"""The schedules by Diffusers' name."""


def make_betas(
    name: str = "linear",
    T: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    trained_betas: Sequence[float] | np.ndarray | Tensor | None = None,
) -> Tensor:
    """The schedule called `name`, or the given one, checked. Shape (T,), float64.

    Args:
        name: a key of `SCHEDULES`.
        beta_start, beta_end: ends of the range; the cosine schedule does not use them.
        trained_betas: T variances to take instead.

    Raises:
        ValueError: an unknown name, a number of given betas other than T, a β outside (0, 1), or an ᾱ that rounds to
            0 or 1.
    """
    if isinstance(T, bool) or not isinstance(T, int) or not 1 <= T <= MAX_TIMESTEPS:
        raise ValueError(f"num_train_timesteps must be an integer, at most {MAX_TIMESTEPS} and at least 1, got {T!r}")
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=DTYPE).clone()
        if betas.shape != (T,):
            raise ValueError(f"trained_betas has shape {tuple(betas.shape)}, but num_train_timesteps={T} needs ({T},)")
    elif name not in SCHEDULES:
        raise ValueError(f"unknown beta_schedule {name!r}: choose one of {', '.join(SCHEDULES)}, or give trained_betas")
    elif name == "squaredcos_cap_v2":
        betas = cosine(T)
    else:
        if not (0 < beta_start < 1 and 0 < beta_end < 1):
            raise ValueError(f"beta_start and beta_end must lie in (0, 1), got {beta_start} and {beta_end}")
        betas = SCHEDULES[name](T, beta_start, beta_end)
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"every beta must lie in (0, 1), got values from {betas.min():.3g} to {betas.max():.3g}")
    alpha_bar = alpha_bars(betas)
    if alpha_bar[0] == 1 or alpha_bar[-1] == 0:
        raise ValueError(
            "ᾱ leaves (0, 1) in float64: the betas are too small at the start or too large for so many steps"
        )
    return betas


def alpha_bars(betas: Tensor) -> Tensor:
    """ᾱ_t = ∏_{s≤t} (1-β_s), strictly decreasing. Shape (T,) (Ho, above eq. 4)."""
    return torch.cumprod(1 - betas, dim=0)


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ_t / (1-ᾱ_t) of x_t for data of unit variance."""
    return alpha_bar / (1 - alpha_bar)


def log_snr(alpha_bar: Tensor) -> Tensor:
    """Natural logarithm of `snr`; -inf where ᾱ_t = 0."""
    return torch.log(alpha_bar) - torch.log1p(-alpha_bar)


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The schedule shifted and scaled so that ᾱ_T is exactly 0 and ᾱ_1 unchanged (Lin et al. 2024, algorithm 1).

    Its last β is exactly 1. Shape (T,), T at least 2.

    Raises:
        ValueError: fewer than 2 steps, or so much noise that ᾱ is 0 before the last.
    """
    if len(betas) < 2:
        raise ValueError("the zero-terminal-SNR rescale needs at least 2 timesteps")
    root = alpha_bars(betas) ** 0.5
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    if not alpha_bar[-2] > 0:  # β = 1 - 0/0
        raise ValueError("rescaled, ᾱ is 0 before the last step, in float64: choose smaller β or fewer steps")
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
