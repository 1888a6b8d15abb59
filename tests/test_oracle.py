"""Samplers run on data whose ε* is known: exact recursions for one Gaussian, a step-refined reference for a mixture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from float64_oracle import alpha_bars, betas, timesteps

from ddpm_from_scratch import DDIMScheduler, DDPMScheduler, gaussian
from ddpm_from_scratch.course.exercises.l07 import reverse_variance

M, S = 0.3, 0.6
"""One Gaussian of data: N(M, S²)."""


# ---------------------------------------------------------------- one Gaussian: exact recursions


def prediction(kind: str, x: torch.Tensor, alpha_bar: float, m: float, s: float) -> torch.Tensor:
    """What a perfect network says at x_t for data N(m, s²): E[x_0 | x_t] and what follows from it."""
    signal, variance = alpha_bar**0.5, 1 - alpha_bar
    x0 = m + signal * s**2 / (alpha_bar * s**2 + variance) * (x - signal * m)
    eps = variance**0.5 * (x - signal * m) / (alpha_bar * s**2 + variance)
    return {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - variance**0.5 * x0}[kind]


def affine_map(scheduler: Any, t: int, m: float, s: float, **options: Any) -> tuple[float, float, float]:
    """(slope, intercept, σ) of one step, x ↦ slope · x + intercept + σ z: read off at x = 0 and 1 with two noises."""
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    seeds = (1, 1, 2)
    output = prediction(scheduler.config.prediction_type, x, float(scheduler.alphas_cumprod[t]), m, s)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    at = scheduler.step(output, t, x, generator=generators, **options).prev_sample.flatten().tolist()
    z = [torch.randn(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).item() for seed in seeds]
    sigma = (at[2] - at[0]) / (z[2] - z[0])
    return at[1] - at[0], at[0] - sigma * z[0], sigma


def expected_map(config: Any, t: int, t_prev: int, eta: float | None, m: float, s: float) -> tuple[float, float, float]:
    """The same from the papers. `eta` None is DDPM: Ho eq. 7 with E[x_0 | x_t] for x_0."""
    table = alpha_bars(config)
    a = table[t]
    p = table[t_prev] if t_prev >= 0 else (1.0 if eta is None or config["set_alpha_to_one"] else table[0])
    gain = a**0.5 * s**2 / (a * s**2 + 1 - a)  # E[x_0 | x_t] = m + gain (x_t - √ᾱ m)
    constant = m - gain * a**0.5 * m
    beta = 1 - a / p
    if eta is None:
        on_x0, on_x = p**0.5 * beta / (1 - a), (a / p) ** 0.5 * (1 - p) / (1 - a)
        sigma2 = beta if "large" in config["variance_type"] else (1 - p) / (1 - a) * beta
        sigma = sigma2**0.5 if t_prev >= 0 else 0.0
    else:
        sigma = eta * ((1 - p) / (1 - a) * beta) ** 0.5
        on_x = (max(1 - p - sigma**2, 0.0) / (1 - a)) ** 0.5
        on_x0 = p**0.5 - on_x * a**0.5
    return on_x + on_x0 * gain, on_x0 * constant, sigma


@pytest.mark.parametrize("s", [0.0, 0.05, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("stride", [1, 40])
def test_the_true_variance_of_a_step_back_keeps_every_marginal(s: float, stride: int) -> None:
    """With ε* and σ² = Var(x_prev | x_t), a step carries q(x_t) to q(x_prev); β and β̃ are its two ends."""
    config = DDPMScheduler().config
    table, visited = alpha_bars(config), [*range(999, -1, -stride), -1]
    for t, t_prev in zip(visited, visited[1:], strict=False):
        a, p = table[t], table[t_prev] if t_prev >= 0 else 1.0
        slope, intercept, _ = expected_map(config, t, t_prev, None, M, s)
        variance = reverse_variance(a, p, s**2)
        assert slope * a**0.5 * M + intercept == pytest.approx(p**0.5 * M, abs=1e-12)
        assert slope**2 * (a * s**2 + 1 - a) + variance == pytest.approx(p * s**2 + 1 - p, abs=1e-12)
        if s == 1:
            assert variance == pytest.approx(1 - a / p, abs=1e-12)
        if s == 0:
            assert variance == pytest.approx(gaussian.posterior_variance(a, p), abs=1e-12)


SAMPLERS = [("ddpm", None), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0)]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_mean_and_variance_after_every_step(sampler: str, eta: float | None, schedule: str, spacing: str) -> None:
    """Starting from N(0, 1), at every step of 20 and for every prediction type, to 1e-12."""
    options: dict[str, Any] = {"beta_schedule": schedule, "timestep_spacing": spacing, "clip_sample": False}
    for kind in ("epsilon", "sample", "v_prediction"):
        cls = DDPMScheduler if sampler == "ddpm" else DDIMScheduler
        scheduler = cls(**options, prediction_type=kind)
        scheduler.set_timesteps(20)
        check_recursion(scheduler, eta)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_all_thousand_steps(variance_type: str) -> None:
    check_recursion(DDPMScheduler(variance_type=variance_type, clip_sample=False), None)


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_with_zero_terminal_snr_and_at_the_other_end(sampler: str, eta: float | None, kind: str) -> None:
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    ends = {} if sampler == "ddpm" else {"set_alpha_to_one": False}
    scheduler = (DDPMScheduler if sampler == "ddpm" else DDIMScheduler)(**options, **ends, prediction_type=kind)
    scheduler.set_timesteps(15)
    check_recursion(scheduler, eta)


def check_recursion(scheduler: Any, eta: float | None) -> None:
    visited = [*scheduler.timesteps.tolist(), -1]
    if scheduler.num_inference_steps:
        assert visited[:-1] == timesteps(scheduler.config, scheduler.num_inference_steps)
    options = {} if eta is None else {"eta": eta}
    mean, variance = expected_mean, expected_variance = 0.0, 1.0
    for t, t_prev in zip(visited, visited[1:], strict=False):
        slope, intercept, sigma = affine_map(scheduler, t, M, S, **options)
        mean, variance = slope * mean + intercept, slope**2 * variance + sigma**2
        slope, intercept, sigma = expected_map(scheduler.config, t, t_prev, eta, M, S)
        expected_mean, expected_variance = slope * expected_mean + intercept, slope**2 * expected_variance + sigma**2
        assert mean == pytest.approx(expected_mean, rel=1e-12, abs=1e-12), t
        assert variance == pytest.approx(expected_variance, rel=1e-12, abs=1e-12), t


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_for_a_single_image_every_marginal_is_exact(sampler: str, eta: float | None, steps: int) -> None:
    """Data of one point x_0: from q(x_T | x_0), each step lands on N(√ᾱ x_0, 1-ᾱ), however few (Song lemma 1)."""
    scheduler = (DDPMScheduler if sampler == "ddpm" else DDIMScheduler)(clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    table, visited = alpha_bars(scheduler.config), [*scheduler.timesteps.tolist(), -1]
    mean, variance = table[visited[0]] ** 0.5 * M, 1 - table[visited[0]]
    for t, t_prev in zip(visited, visited[1:], strict=False):
        slope, intercept, sigma = affine_map(scheduler, t, M, 0.0, **({} if eta is None else {"eta": eta}))
        mean, variance = slope * mean + intercept, slope**2 * variance + sigma**2
        alpha_bar = table[t_prev] if t_prev >= 0 else 1.0
        assert mean == pytest.approx(alpha_bar**0.5 * M, abs=1e-12)
        assert variance == pytest.approx(1 - alpha_bar, abs=1e-12)


# ---------------------------------------------------------------- a mixture


class Mixture:
    """Equal isotropic Gaussians of standard deviation `s` at `centres`, shape (K, D), and everything exact about it."""

    def __init__(self, centres: list[list[float]] | np.ndarray, s: float) -> None:
        self.centres, self.s = np.array(centres), s

    def eps(self, x: np.ndarray, alpha_bar: float) -> np.ndarray:
        """ε*(x_t): the components' answers weighted by their share in x_t. (N, D) → (N, D)."""
        variance = alpha_bar * self.s**2 + 1 - alpha_bar
        away = x[:, None] - alpha_bar**0.5 * self.centres  # (N, K, D)
        log_share = -(away**2).sum(-1) / (2 * variance)
        share = np.exp(log_share - log_share.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return (1 - alpha_bar) ** 0.5 * (share[..., None] * away).sum(1) / variance

    def at(self, alpha_bar: float) -> Mixture:
        """The distribution of x_t."""
        return Mixture(alpha_bar**0.5 * self.centres, (alpha_bar * self.s**2 + 1 - alpha_bar) ** 0.5)

    def quantile(self, u: float) -> float:
        """Of the one-dimensional mixture."""
        cdf = scipy.stats.norm(self.centres[:, 0], self.s).cdf
        return float(scipy.optimize.brentq(lambda x: cdf(x).mean() - u, -20, 20, xtol=1e-13))


ONE_D = Mixture([[-0.8], [0.1], [0.7]], 0.15)
TWO_D = Mixture([[0.8, 0.0], [-0.4, 0.7], [-0.4, -0.7]], 0.2)


def sample(scheduler: Any, data: Mixture, x: torch.Tensor, seed: int = 0, **options: Any) -> np.ndarray:
    """The sampling loop of the package with the exact ε*, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps.tolist():
        eps = torch.from_numpy(data.eps(x.numpy(), float(scheduler.alphas_cumprod[t])))
        x = scheduler.step(eps, t, x, generator=generator, **options).prev_sample
    return x.numpy()


def refined_reference(data: Mixture, n: int, refine: int) -> np.ndarray:
    """Samples of the same process cut into `refine` times as many steps: plain ancestral sampling in NumPy."""
    config = DDPMScheduler().config
    table = np.cumprod(1 - np.repeat(betas(config) / refine, refine))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, data.centres.shape[1]))
    for i in range(len(table) - 1, -1, -1):
        alpha_bar, before = table[i], (table[i - 1] if i else 1.0)
        beta = 1 - alpha_bar / before
        x = (x - beta / (1 - alpha_bar) ** 0.5 * data.eps(x, alpha_bar)) / (1 - beta) ** 0.5
        x += (beta * (1 - before) / (1 - alpha_bar)) ** 0.5 * rng.standard_normal(x.shape)
    return x


def smallest_p(samples: np.ndarray, reference: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov tests along 8 directions (1 in one dimension), corrected by Bonferroni."""
    dimension = samples.shape[1]
    angles = np.arange(8) * np.pi / 8
    directions = np.ones((1, 1)) if dimension == 1 else np.stack([np.cos(angles), np.sin(angles)], axis=1)
    tests = [scipy.stats.ks_2samp(samples @ d, reference @ d).pvalue for d in directions]
    return min(1.0, min(tests) * len(tests))


N, FALSE_ALARM = 4000, 1e-3


@pytest.fixture(scope="module", params=["1-D", "2-D"])
def mixture_and_reference(request: pytest.FixtureRequest) -> tuple[Mixture, np.ndarray]:
    data = ONE_D if request.param == "1-D" else TWO_D
    return data, refined_reference(data, N, refine=2)


@pytest.mark.parametrize(
    ("scheduler", "steps", "options"),
    [
        (DDPMScheduler(clip_sample=False), 1000, {}),
        (DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), 250, {}),
        (DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), 100, {"eta": 0.0}),
        (DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), 250, {"eta": 0.5}),
        (DDIMScheduler(clip_sample=False), 250, {"eta": 1.0}),
    ],
    ids=["ddpm-1000", "ddpm-250", "ddim-100", "ddim-250-eta-0.5", "ddim-250-eta-1"],
)
def test_samples_of_a_mixture(
    mixture_and_reference: tuple[Mixture, np.ndarray], scheduler: Any, steps: int, options: dict[str, Any]
) -> None:
    """4,000 samples each; every test has a false-alarm rate of 1e-3, and the seeds are fixed."""
    data, reference = mixture_and_reference
    scheduler.set_timesteps(steps)
    x = gaussian.randn((N, data.centres.shape[1]), torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (
        smallest_p(sample(scheduler, data, scheduler.init_noise_sigma * x, seed=2, **options), reference) > FALSE_ALARM
    )


def test_the_statistic_sees_what_it_should(mixture_and_reference: tuple[Mixture, np.ndarray]) -> None:
    """Too few steps, the wrong variance and a start of the wrong width are all found out."""
    data, reference = mixture_and_reference
    x = gaussian.randn((N, data.centres.shape[1]), torch.Generator().manual_seed(1), dtype=torch.float64)
    few, wide = DDIMScheduler(clip_sample=False), DDPMScheduler(clip_sample=False, variance_type="fixed_large")
    few.set_timesteps(5)
    wide.set_timesteps(20)
    precise = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    precise.set_timesteps(100)
    assert smallest_p(sample(few, data, x), reference) < FALSE_ALARM
    assert smallest_p(sample(wide, data, x), reference) < FALSE_ALARM
    assert smallest_p(sample(precise, data, 0.8 * x), reference) < FALSE_ALARM


def test_ddim_converges_to_the_exact_transport() -> None:
    """In one dimension the ODE carries each quantile of x_T to that of x_0; the error falls like the step."""
    u = np.linspace(0.05, 0.95, 19)
    truth = np.array([ONE_D.quantile(q) for q in u])
    errors = []
    for T in (500, 1000, 2000, 4000):
        # the same process in more steps: β dt, from 0.1 to 20 over unit time
        scheduler = DDIMScheduler(T, beta_start=0.1 / T, beta_end=20 / T, clip_sample=False)
        scheduler.set_timesteps(T)
        start = torch.tensor(
            [[ONE_D.at(float(scheduler.alphas_cumprod[-1])).quantile(q)] for q in u], dtype=torch.float64
        )
        errors.append(np.abs(sample(scheduler, ONE_D, start)[:, 0] - truth).max())
    ratios = [earlier / later for earlier, later in zip(errors, errors[1:], strict=False)]
    assert all(1.5 < ratio < 3 for ratio in ratios), (errors, ratios)
    assert errors[-1] < 0.02


def test_x_T_is_drawn_right() -> None:
    """n = 200,000: Kolmogorov-Smirnov against N(0, 1) at 1e-3, and q(x_T) is N(0, 1) up to √ᾱ_T = 0.006."""
    scheduler = DDPMScheduler()
    x = scheduler.init_noise_sigma * gaussian.randn((200_000,), torch.Generator().manual_seed(0), dtype=torch.float64)
    assert scipy.stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    assert math.sqrt(scheduler.alphas_cumprod[-1]) == pytest.approx(0.00635, abs=1e-4)
