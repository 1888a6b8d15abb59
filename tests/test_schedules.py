"""Schedules against the papers' numbers, their defining formulas, and Diffusers."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr as diffusers_rescale
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_from_scratch import schedules

examples = settings(max_examples=40, deadline=None, derandomize=True)
names = st.sampled_from(list(schedules.SCHEDULES))


def test_linear_is_that_of_the_paper() -> None:
    """Ho section 4: T = 1000, β from 1e-4 to 0.02; what is left of the image at T is 4e-5."""
    betas = schedules.linear()
    assert betas.shape == (1000,)
    assert betas[0] == 1e-4 and betas[-1] == 0.02
    np.testing.assert_allclose(betas.diff(), 0.0199 / 999, rtol=1e-9)
    exact = math.exp(math.fsum(math.log1p(-(1e-4 + i / 999 * 0.0199)) for i in range(1000)))
    assert schedules.alpha_bars(betas)[-1].item() == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(4.0e-5, rel=0.02)


def test_scaled_linear_is_linear_in_the_root() -> None:
    roots = schedules.scaled_linear(T=50, beta_start=0.00085, beta_end=0.012) ** 0.5
    np.testing.assert_allclose(roots[[0, -1]] ** 2, [0.00085, 0.012], rtol=1e-14)
    np.testing.assert_allclose(roots.diff(), (0.012**0.5 - 0.00085**0.5) / 49, rtol=1e-11)


def test_cosine_is_eq_17() -> None:
    """IDDPM eq. 17: ᾱ_t = f(t)/f(0), until β is capped at 0.999 in the last step."""
    T = 1000

    def f(t: int) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = schedules.cosine(T)
    expected = [f(t) / f(0) for t in range(1, T)]
    np.testing.assert_allclose(schedules.alpha_bars(betas)[:-1], expected, rtol=1e-10)
    assert betas[-1] == 0.999 and (betas[:-1] < 0.999).all()


def test_sigmoid_is_a_sigmoid_in_beta() -> None:
    betas = schedules.sigmoid(T=13, beta_start=0.1, beta_end=0.5)
    expected = [0.1 + 0.4 / (1 + math.exp(6 - i)) for i in range(13)]
    np.testing.assert_allclose(betas, expected, rtol=1e-14)


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
@pytest.mark.parametrize("rescaled", [False, True])
def test_tables_are_those_of_diffusers(name: str, T: int, rescaled: bool) -> None:
    """To Diffusers' precision: float32 β, whose rounding ᾱ gathers over T steps."""
    if rescaled and T == 1:
        pytest.raises(ValueError, schedules.rescale_zero_terminal_snr, schedules.make_betas(name, T))
        return
    theirs = diffusers.DDPMScheduler(T, beta_schedule=name, rescale_betas_zero_snr=rescaled)
    betas = schedules.make_betas(name, T)
    betas = schedules.rescale_zero_terminal_snr(betas) if rescaled else betas
    np.testing.assert_allclose(betas, theirs.betas, rtol=1e-6, atol=5e-6 if rescaled else 1e-8)
    capped = 1e-4 if name == "squaredcos_cap_v2" else 1e-5  # 1 - 0.999 keeps four digits in float32
    np.testing.assert_allclose(schedules.alpha_bars(betas), theirs.alphas_cumprod, rtol=capped, atol=1e-7)


@examples
@given(names, st.integers(1, 1200), st.floats(1e-5, 0.05), st.floats(1e-5, 0.05))
def test_every_schedule_falls_strictly_inside_0_and_1(name: str, T: int, start: float, end: float) -> None:
    betas = schedules.make_betas(name, T, start, end)
    alpha_bar = schedules.alpha_bars(betas)
    assert betas.dtype == alpha_bar.dtype == torch.float64
    assert betas.shape == alpha_bar.shape == (T,)
    assert 0 < alpha_bar[-1] and alpha_bar[0] < 1
    assert (alpha_bar.diff() < 0).all()


@examples
@given(names, st.integers(2, 1200))
def test_the_rescale_ends_at_exactly_zero(name: str, T: int) -> None:
    """Lin et al. 2024, algorithm 1: √ᾱ is moved and stretched, its first value kept."""
    betas = schedules.make_betas(name, T)
    before = schedules.alpha_bars(betas)
    rescaled = schedules.rescale_zero_terminal_snr(betas)
    after = schedules.alpha_bars(rescaled)
    assert rescaled.dtype == torch.float64
    assert rescaled[-1] == 1 and after[-1] == 0
    assert (after.diff() < 0).all() and (after[:-1] > 0).all()
    np.testing.assert_allclose(after[0], before[0], rtol=1e-15)
    root, moved = before.sqrt(), after.sqrt()
    np.testing.assert_allclose(moved, (root - root[-1]) * root[0] / (root[0] - root[-1]), rtol=1e-10, atol=1e-15)


def test_a_schedule_that_ends_too_early_is_not_rescaled() -> None:
    """Moved, ᾱ would be 0 in float64 before the end, and β there 1 - 0/0."""
    with pytest.raises(ValueError, match="ᾱ is 0 before the last step"):
        schedules.rescale_zero_terminal_snr(schedules.linear(4000, 0.1, 0.3))


def test_rescale_equals_diffusers_on_the_same_table() -> None:
    betas = schedules.linear()
    np.testing.assert_allclose(schedules.rescale_zero_terminal_snr(betas), diffusers_rescale(betas), atol=1e-14)


def test_snr() -> None:
    alpha_bar = torch.tensor([0.9, 0.5, 0.2, 1e-12, 0.0], dtype=torch.float64)
    np.testing.assert_allclose(schedules.snr(alpha_bar), [9, 1, 0.25, 1e-12 / (1 - 1e-12), 0], rtol=1e-14)
    np.testing.assert_allclose(
        schedules.log_snr(alpha_bar), [math.log(9), 0, math.log(0.25), math.log(1e-12), -math.inf], atol=1e-11
    )


def test_given_betas_are_taken_as_they_are() -> None:
    values = [0.1, 0.3, 0.2]
    for given_as in (values, np.array(values, dtype=np.float64), torch.tensor(values, dtype=torch.float64)):
        betas = schedules.make_betas(T=3, trained_betas=given_as)
        assert betas.dtype == torch.float64 and betas.tolist() == values
    source = torch.tensor(values, dtype=torch.float64)
    schedules.make_betas(T=3, trained_betas=source)[0] = 0.5
    assert source.tolist() == values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "laplace"}, "unknown beta_schedule 'laplace'.*linear, scaled_linear, squaredcos_cap_v2, sigmoid"),
        ({"T": 0}, "at least 1, got 0"),
        ({"T": 10.0}, "integer"),
        ({"T": True}, "integer"),
        ({"beta_end": 1.0}, r"must lie in \(0, 1\), got 0.0001 and 1.0"),
        ({"beta_start": 0.0}, r"must lie in \(0, 1\)"),
        ({"beta_start": -0.1, "name": "scaled_linear"}, r"must lie in \(0, 1\)"),
        ({"T": 3, "trained_betas": [0.1, 0.2]}, r"shape \(2,\), but num_train_timesteps=3 needs \(3,\)"),
        ({"T": 2, "trained_betas": [[0.1, 0.2]]}, r"shape \(1, 2\)"),
        ({"T": 2, "trained_betas": [0.1, 1.2]}, r"every beta must lie in \(0, 1\)"),
        ({"T": 2, "trained_betas": [0.0, 0.2]}, r"every beta must lie in \(0, 1\)"),
        ({"T": 2, "trained_betas": [0.1, math.nan]}, r"every beta must lie in \(0, 1\)"),
        ({"T": 1000, "beta_start": 0.9, "beta_end": 0.9}, "ᾱ"),
        ({"T": 3, "beta_start": 1e-17, "beta_end": 0.5}, "ᾱ"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.make_betas(**arguments)  # type: ignore[arg-type]
