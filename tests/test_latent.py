"""Paths and encodings of x_T, with exact denoisers: a Gaussian, whose ODE and whose noise are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_from_scratch import latent
from ddpm_from_scratch.schedulers import DDIMScheduler
from ddpm_from_scratch.schedulers.ddim import ddim_invert

SHAPE = (1, 4, 4)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def schedule(steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


def exact_noise(variance: float) -> Any:
    """ε* for x_0 ~ N(0, s I)."""
    bars = DDIMScheduler().alphas_cumprod

    def model(x: Tensor, t: Any) -> SimpleNamespace:
        bar = float(bars[int(t)])
        return SimpleNamespace(sample=(1 - bar) ** 0.5 * x / (bar * variance + 1 - bar))

    return model


# ---------------------------------------------------------------- paths


def test_slerp_stays_on_the_sphere_and_turns_evenly() -> None:
    x = torch.zeros(SHAPE).double()
    y = torch.zeros(SHAPE).double()
    x[0, 0, 0], y[0, 1, 1] = 2, 2
    for share in (0.0, 0.25, 0.5, 1.0):
        found = latent.slerp(x, y, share)
        assert float(found.norm()) == pytest.approx(2, rel=1e-12)
        assert float(found[0, 0, 0]) == pytest.approx(2 * math.cos(share * math.pi / 2), abs=1e-12)
    assert torch.equal(latent.slerp(x, x, 0.3), x)
    with pytest.raises(ValueError, match="same shape"):
        latent.slerp(x, y[0], 0.5)


def test_slerp_of_noise_has_the_length_of_noise() -> None:
    a, b = normal((1, 64, 64), 0), normal((1, 64, 64), 1)
    assert float(latent.slerp(a, b, 0.5).std()) == pytest.approx(1, abs=0.05)
    assert float(((a + b) / 2).std()) == pytest.approx(0.5**0.5, abs=0.05)


def test_paths_start_and_end_alike_and_share_what_they_say() -> None:
    scheduler, model = schedule(8), exact_noise(0.5)
    ends = normal(SHAPE, 0), normal(SHAPE, 1)
    paths = latent.interpolation_paths(model, scheduler, ends, 5, seed=3)
    assert list(paths) == list(latent.KINDS)
    still = latent.interpolation_paths(model, scheduler, (ends[0], ends[0]), 3, seed=3)
    for kind in latent.KINDS[:2]:  # one x_T and one noise: one image
        assert torch.allclose(still[kind][0], still[kind][2], atol=1e-12)
    assert not torch.allclose(still["ddpm, fresh noise"][0], still["ddpm, fresh noise"][2], atol=0.1)
    again = latent.interpolation_paths(model, scheduler, ends, 5, seed=3)
    assert all(torch.equal(paths[kind], again[kind]) for kind in paths)
    direct = latent.sample_from(model, scheduler, torch.stack(ends))
    assert torch.allclose(paths["ddim"][[0, -1]], direct, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 points"):
        latent.interpolation_paths(model, scheduler, ends, 1)
    with pytest.raises(ValueError, match="step_noise"):
        latent.sample_from(model, scheduler, torch.stack(ends), eta=1.0)


def test_length_and_jump_of_known_paths() -> None:
    straight = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    assert latent.path_length_ratio(straight) == pytest.approx(1)
    assert latent.largest_jump(straight) == pytest.approx(1 / 3)
    corner = torch.tensor([[0.0, 0], [3, 0], [3, 4]])
    assert latent.path_length_ratio(corner) == pytest.approx(7 / 5)
    assert latent.largest_jump(corner) == pytest.approx(4 / 7)
    for bad in (torch.zeros(1, 2), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="at least 2 points|same"):
            latent.path_length_ratio(bad)
        with pytest.raises(ValueError, match="at least 2 points|same"):
            latent.largest_jump(bad)


# ---------------------------------------------------------------- what x_T explains


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_explained_share_of_a_known_mixture(share: float) -> None:
    """Features √p a + √(1-p) b with a of the x_T and b of the repetition: x_T explains p. n = 400 × 4 × 8 values."""
    own, other = normal((400, 1, 8), 0), normal((400, 4, 8), 1)
    found = latent.explained_share(share**0.5 * own + (1 - share) ** 0.5 * other)
    assert found == pytest.approx(share, abs=0.03)


def test_explained_share_is_unbiased_with_two_repetitions() -> None:
    """Nothing explained, 2 repetitions: the raw variance of the means would say 0.5. n = 200 sets of 30 × 2 × 4."""
    found = torch.tensor([latent.explained_share(normal((30, 2, 4), seed)) for seed in range(200)])
    assert abs(float(found.mean())) < 5 * float(found.std()) / math.sqrt(200)


def test_deterministic_sampling_is_decided_by_x_T_and_stochastic_is_not() -> None:
    """Exact ε* of N(0, 1): with η = 0 all is x_T's; with η = 1 and many steps nothing is left of it."""
    scheduler, model = schedule(50), exact_noise(1.0)
    x_T = normal((40, *SHAPE), 0)
    generator = torch.Generator().manual_seed(1)

    def noise(_: int) -> Tensor:
        return torch.randn(x_T.shape, generator=generator, dtype=torch.float64)

    shares = {}
    for eta in (0.0, 1.0):
        runs = [latent.sample_from(model, scheduler, x_T, eta, noise).flatten(1) for _ in range(3)]
        shares[eta] = latent.explained_share(torch.stack(runs, dim=1))
    assert shares[0.0] == pytest.approx(1, abs=1e-12)
    assert abs(shares[1.0]) < 0.1


@pytest.mark.parametrize("bad", [torch.zeros(3, 2), torch.zeros(1, 3, 2), torch.zeros(3, 1, 2), torch.zeros(3, 3, 2)])
def test_shares_without_an_answer_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 2 of each|no variance"):
        latent.explained_share(bad)


# ---------------------------------------------------------------- encode, then decode


def test_encoding_then_decoding_gets_better_with_the_order_of_an_euler_step() -> None:
    """On N(0, s), s = 0.16: a step back asks at the wrong end, an error of order 1 in all; its square of order 2."""
    images = normal((3, *SHAPE), 0) * 0.4
    images[0] *= 4  # beyond [-1, 1]: a clipped step has no inverse
    steps = [100, 200, 500]
    scheduler = DDIMScheduler()
    errors = latent.encode_decode_errors(exact_noise(0.16), scheduler, images, steps)
    assert errors == sorted(errors, reverse=True)
    assert latent.observed_order(steps, errors) == pytest.approx(2, abs=0.1)
    assert scheduler.num_inference_steps is None


def test_observed_order_of_a_power_law() -> None:
    assert latent.observed_order([10, 20, 80], [3 * n**-1.5 for n in (10, 20, 80)]) == pytest.approx(1.5, rel=1e-9)
    for steps, errors in (([10], [1.0]), ([10, 20], [1.0, 0.0])):
        with pytest.raises(ValueError, match="at least two"):
            latent.observed_order(steps, errors)


def test_opposite_ends_have_no_way_between_them() -> None:
    x = normal((1, 8, 8), 0)
    for y in (-x, -2 * x, -x.float()):
        with pytest.raises(ValueError, match="opposite directions"):
            latent.slerp(x.to(y), y, 0.5)
    assert float(latent.slerp(x, normal((1, 8, 8), 1) - x, 0.5).norm()) > 1


def test_a_learned_variance_plays_no_part() -> None:
    exact, scheduler, images = exact_noise(0.16), schedule(6), 0.4 * normal((2, *SHAPE), 0)

    def learned(x: Tensor, t: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.cat([exact(x, t).sample, torch.ones_like(x)], dim=1))

    assert torch.equal(latent.sample_from(learned, scheduler, images), latent.sample_from(exact, scheduler, images))
    scheduler.set_timesteps(3)
    assert torch.equal(ddim_invert(learned, images, scheduler), ddim_invert(exact, images, scheduler))
    errors = [latent.encode_decode_errors(model, scheduler, images, [6, 9]) for model in (learned, exact)]
    assert errors[0] == errors[1]
