"""The papers' sampling steps once more, in float64 NumPy and derived differently from the package.

Schedules come from their definitions, the DDPM step from Bayes' rule for two Gaussians (precisions add), the DDIM step
from Song eq. 12. A configuration is a scheduler's `config`; `t_prev` is -1 at the end of sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Config = Mapping[str, Any]


def betas(config: Config) -> np.ndarray:
    """The schedule's variances, by definition."""
    T, low, high = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    fraction = np.arange(T) / max(T - 1, 1)
    if config["trained_betas"] is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    if config["beta_schedule"] == "linear":
        return low + fraction * (high - low)
    if config["beta_schedule"] == "scaled_linear":
        return (low**0.5 + fraction * (high**0.5 - low**0.5)) ** 2
    if config["beta_schedule"] == "sigmoid":
        return low + (high - low) / (1 + np.exp(6 - 12 * fraction))
    cosine = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)


def alpha_bars(config: Config) -> np.ndarray:
    """ᾱ_t; with the rescale √ᾱ is moved and stretched to end at 0 (Lin et al. 2024, algorithm 1)."""
    alpha_bar = np.cumprod(1 - betas(config))
    if config["rescale_betas_zero_snr"]:
        first, last = alpha_bar[0] ** 0.5, alpha_bar[-1] ** 0.5
        alpha_bar = ((alpha_bar**0.5 - last) * (first / (first - last))) ** 2
    return alpha_bar


def timesteps(config: Config, n: int) -> list[int]:
    """Lin et al. 2024, table 2, 0-based."""
    T, i = config["num_train_timesteps"], np.arange(n)
    if config["timestep_spacing"] == "leading":
        ascending = i * (T // n) + config["steps_offset"]
    elif config["timestep_spacing"] == "trailing":
        ascending = np.sort(np.round(T - i * (T / n)) - 1)
    else:
        ascending = np.round(np.linspace(0, T - 1, n))
    return [int(t) for t in ascending[::-1]]


def predict(config: Config, output: np.ndarray, x: np.ndarray, alpha_bar: float) -> tuple[np.ndarray, np.ndarray]:
    """The bounded x̂_0 and ε̂: two unknowns, the equation x = √ᾱ x_0 + √(1-ᾱ) ε and the network's output."""
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    rows = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "v_prediction": (-noise, signal)}
    system = np.array([[signal, noise], rows[config["prediction_type"]]])
    x0, eps = np.linalg.solve(system, np.stack([x.ravel(), output.ravel()]))
    return bound(config, x0.reshape(x.shape)), eps.reshape(x.shape)


def bound(config: Config, x0: np.ndarray) -> np.ndarray:
    """Clipping, or dynamic thresholding image by image."""
    if config["thresholding"]:
        images = []
        for image in x0:
            s = np.quantile(np.abs(image), config["dynamic_thresholding_ratio"])
            s = min(max(s, 1.0), config["sample_max_value"])
            images.append(np.clip(image, -s, s) / s)
        return np.stack(images)
    return np.clip(x0, -config["clip_sample_range"], config["clip_sample_range"]) if config["clip_sample"] else x0


def ddpm_step(config: Config, output: np.ndarray, t: int, t_prev: int, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x_{t-1} given x_t: q(x_{t-1} | x̂_0) q(x_t | x_{t-1}), normalised; then the noise of the variance type."""
    table = alpha_bars(config)
    alpha_bar, alpha_bar_prev = table[t], (table[t_prev] if t_prev >= 0 else 1.0)
    learned = None
    if config["variance_type"] == "learned_range":
        output, learned = np.split(output, 2, axis=1)
    x0, _ = predict(config, output, x, alpha_bar)
    if t_prev < 0:
        return x0
    alpha = alpha_bar / alpha_bar_prev
    precision = 1 / (1 - alpha_bar_prev) + alpha / (1 - alpha)
    mean = (alpha_bar_prev**0.5 * x0 / (1 - alpha_bar_prev) + alpha**0.5 * x / (1 - alpha)) / precision
    small, large = 1 / precision, 1 - alpha
    if learned is not None:
        return mean + (large ** ((1 + learned) / 2) * small ** ((1 - learned) / 2)) ** 0.5 * z
    return mean + (large if "large" in config["variance_type"] else small) ** 0.5 * z


def ddim_step(
    config: Config,
    output: np.ndarray,
    t: int,
    t_prev: int,
    x: np.ndarray,
    z: np.ndarray,
    eta: float,
    use_clipped_model_output: bool = False,
) -> np.ndarray:
    """Song eq. 12 with σ of eq. 16."""
    table = alpha_bars(config)
    final = 1.0 if config["set_alpha_to_one"] else table[0]
    alpha_bar, alpha_bar_prev = table[t], (table[t_prev] if t_prev >= 0 else final)
    x0, eps = predict(config, output, x, alpha_bar)
    if use_clipped_model_output:
        eps = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)) ** 0.5
    direction = max(1 - alpha_bar_prev - sigma**2, 0.0) ** 0.5
    return alpha_bar_prev**0.5 * x0 + direction * eps + sigma * z
