"""The Gaussian algebra of diffusion: forward process, posterior, DDIM.

Every function is pure. Coefficients (`alpha_bar_t`, `beta_t`, `sigma_t`, ...) are Python floats or tensors that
broadcast against the images; the caller decides their precision. Equation numbers: "Ho" is arXiv 2006.11239,
"Song" is arXiv 2010.02502, whose α_t is the ᾱ_t used here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Coefficient = float | Tensor
Generator = torch.Generator | Sequence[torch.Generator]


def randn(
    shape: Sequence[int],
    generator: Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal noise, drawn on the generator's device and moved to `device`.

    Args:
        shape: shape of the result, batch first.
        generator: one generator for the batch, or one per sample (then sample i depends on generator i alone).

    Raises:
        TypeError: something else than generators, such as a seed.
        ValueError: a list of generators whose length is not the batch size.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)
    if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
        raise TypeError(f"generator must be a torch.Generator, or a list of them, got {generator!r}")
    if len(generator) != shape[0]:
        raise ValueError(f"got {len(generator)} generators for a batch of {shape[0]}: pass one, or one per sample")
    return torch.cat([randn((1, *shape[1:]), g, g.device, dtype) for g in generator]).to(device)


# ---------------------------------------------------------------- forward process


def forward_step(x_prev: Tensor, noise: Tensor, beta_t: Coefficient) -> Tensor:
    """One step of the forward chain, x_{t-1} → x_t (Ho eq. 2).

    Args:
        x_prev, noise: same shape; `noise` is standard normal.
        beta_t: in (0, 1), broadcastable.
    """
    # Ho eq. 2: x_t = √(1-β_t) x_{t-1} + √β_t ε
    return (1 - beta_t) ** 0.5 * x_prev + beta_t**0.5 * noise


def q_sample(x0: Tensor, noise: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """A draw of x_t given x_0 in one jump (Ho eq. 4, Song eq. 4).

    Args:
        x0, noise: same shape; `noise` is standard normal.
        alpha_bar_t: ᾱ_t in [0, 1], broadcastable.
    """
    # Ho eq. 4: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε
    return alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise


# ---------------------------------------------------------------- what a network may predict: ε, x_0 or v


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """x̂_0 from x_t and ε (Ho eq. 15, Song eq. 9). `alpha_bar_t` in (0, 1]: at ᾱ_t = 0, x_t holds no x_0."""
    # Ho eq. 15: x̂_0 = (x_t - √(1-ᾱ_t) ε) / √ᾱ_t
    return (x_t - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """ε from x_t and x_0 (Ho eq. 4 solved for ε). `alpha_bar_t` in [0, 1)."""
    # Ho eq. 4: ε = (x_t - √ᾱ_t x_0) / √(1-ᾱ_t)
    return (x_t - alpha_bar_t**0.5 * x0) / (1 - alpha_bar_t) ** 0.5


def velocity(x0: Tensor, noise: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """The velocity v of x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Salimans and Ho 2022, section 4 and appendix D)."""
    # v = √ᾱ_t ε - √(1-ᾱ_t) x_0
    return alpha_bar_t**0.5 * noise - (1 - alpha_bar_t) ** 0.5 * x0


def x0_from_v(x_t: Tensor, v: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """x̂_0 from x_t and v (Salimans and Ho 2022, appendix D). Finite for every ᾱ_t in [0, 1]."""
    # x̂_0 = √ᾱ_t x_t - √(1-ᾱ_t) v
    return alpha_bar_t**0.5 * x_t - (1 - alpha_bar_t) ** 0.5 * v


def eps_from_v(x_t: Tensor, v: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """ε̂ from x_t and v (the rotation of Salimans and Ho 2022, appendix D). Finite for every ᾱ_t in [0, 1]."""
    # ε̂ = √(1-ᾱ_t) x_t + √ᾱ_t v
    return (1 - alpha_bar_t) ** 0.5 * x_t + alpha_bar_t**0.5 * v


def score_from_eps(eps: Tensor, alpha_bar_t: Coefficient) -> Tensor:
    """∇ log q(x_t) from the expected noise E[ε | x_t] (Tweedie; Ho section 3.2). `alpha_bar_t` in [0, 1)."""
    # ∇ log q(x_t) = -ε / √(1-ᾱ_t)
    return -eps / (1 - alpha_bar_t) ** 0.5


# ---------------------------------------------------------------- posterior


def posterior_variance(alpha_bar_t: Coefficient, alpha_bar_prev: Coefficient) -> Coefficient:
    """β̃_t, the variance of q(x_{t-1} | x_t, x_0) (Ho eq. 7). 0 where ᾱ_prev = 1.

    `alpha_bar_prev` is ᾱ at the step that comes next in sampling, so strided schedules need no other formula
    (Nichol and Dhariwal 2021, eq. 19).
    """
    # Ho eq. 7: β̃_t = (1-ᾱ_{t-1}) / (1-ᾱ_t) · β_t,  with β_t = 1 - ᾱ_t/ᾱ_{t-1}
    return (1 - alpha_bar_prev) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_prev)


def posterior_mean(x_t: Tensor, x0: Tensor, alpha_bar_t: Coefficient, alpha_bar_prev: Coefficient) -> Tensor:
    """μ̃_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0) (Ho eq. 6, 7; with x_0 written by x_t and ε, eq. 9, 10).

    Args:
        x_t, x0: same shape.
        alpha_bar_t, alpha_bar_prev: ᾱ now and at the next, less noisy step; 0 ≤ ᾱ_t < ᾱ_prev ≤ 1.
    """
    alpha_t = alpha_bar_t / alpha_bar_prev
    # Ho eq. 7: μ̃_t = √ᾱ_{t-1} β_t / (1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) x_t
    x0_coefficient = alpha_bar_prev**0.5 * (1 - alpha_t) / (1 - alpha_bar_t)
    xt_coefficient = alpha_t**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    return x0_coefficient * x0 + xt_coefficient * x_t


# ---------------------------------------------------------------- DDIM


def ddim_sigma(alpha_bar_t: Coefficient, alpha_bar_prev: Coefficient, eta: float) -> Coefficient:
    """σ_t(η), the noise of a DDIM step (Song eq. 16): 0 at η = 0, √β̃_t at η = 1.

    Raises:
        ValueError: numbers with ᾱ_prev < ᾱ_t, for which there is no such step.
    """
    variance = posterior_variance(alpha_bar_t, alpha_bar_prev)
    if not isinstance(variance, Tensor) and variance < 0:
        raise ValueError(
            f"ᾱ_prev = {alpha_bar_prev:.4g} is below ᾱ_t = {alpha_bar_t:.4g}: is it a table's noisiest entry, [-1]?"
        )
    # Song eq. 16: σ = η √((1-ᾱ_prev)/(1-ᾱ_t)) √(1 - ᾱ_t/ᾱ_prev)
    return eta * variance**0.5


def ddim_mean(x0: Tensor, eps: Tensor, alpha_bar_prev: Coefficient, sigma_t: Coefficient = 0.0) -> Tensor:
    """The mean of a DDIM step: predicted x_0 and the direction that points to x_t (Song eq. 12, without σ_t ε_t).

    With the true x_0 and ε it is the mean of q_σ(x_prev | x_t, x_0) (Song eq. 6, 7), whose marginals are those of DDPM
    (Song lemma 1) and whose steps forward follow from Bayes (Song eq. 8).

    Args:
        x0, eps: same shape, the prediction at x_t.
        alpha_bar_prev: ᾱ at the step moved to.
        sigma_t: in [0, √(1-ᾱ_prev)].
    """
    direction = 1 - alpha_bar_prev - sigma_t**2  # rounding may take it a hair below 0
    direction = direction.clamp(min=0) if isinstance(direction, Tensor) else max(direction, 0.0)
    # Song eq. 12: √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ_t²) ε̂
    return alpha_bar_prev**0.5 * x0 + direction**0.5 * eps


# ---------------------------------------------------------------- divergences and likelihoods


def normal_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(N(mean_q, e^log_var_q) ‖ N(mean_p, e^log_var_p)) per element, in nats.

    The bounds are sums of these: Ho eq. 5, eq. 8 with fixed variances, eq. 16; Song eq. 11 and theorem 1.
    """
    # KL = ½ (log σ_p² - log σ_q² + (σ_q² + (μ_q-μ_p)²) / σ_p² - 1)
    spread = torch.exp(log_var_q - log_var_p) + (mean_q - mean_p) ** 2 * torch.exp(-log_var_p)
    return 0.5 * (log_var_p - log_var_q + spread - 1)


def discretized_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(x_0 | x_1) per element for 8-bit pixels mapped to [-1, 1], in nats (Ho eq. 13).

    The Gaussian is integrated over the pixel's own bin of width 2/255; the two outer bins reach to infinity.

    Args:
        x0: values k/127.5 - 1 for k in 0..255.
        mean, log_var: broadcastable to `x0`.
    """
    inverse_std = torch.exp(-0.5 * log_var)
    upper = (x0 + 1 / 255 - mean) * inverse_std
    lower = (x0 - 1 / 255 - mean) * inverse_std
    log_cdf_upper = torch.special.log_ndtr(upper)
    log_sf_lower = torch.special.log_ndtr(-lower)
    # Φ(upper) - Φ(lower), taken in the tail where both are small, so that the difference keeps its digits
    swap = lower > 0
    high, low = torch.where(swap, -lower, upper), torch.where(swap, -upper, lower)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    log_bin = log_high + torch.log(-torch.expm1((log_low - log_high).clamp(max=-1e-300)))
    return torch.where(x0 < -1 + 1e-3, log_cdf_upper, torch.where(x0 > 1 - 1e-3, log_sf_lower, log_bin))


def nats_to_bits(nats: Tensor) -> Tensor:
    """Nats to bits."""
    return nats / math.log(2)
