"""Schedulers: the same numbers as Diffusers where it follows the papers, both sides shown where it does not."""

from __future__ import annotations

import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from against_diffusers import (
    compare_steps,
    compare_trajectories,
    random_scheduler_config,
    random_step_count,
    relative,
    stand_in,
)
from float64_oracle import alpha_bars, ddim_step, timesteps

import ddpm_from_scratch
from ddpm_from_scratch import DDIMScheduler, DDPMScheduler, ddim_invert, gaussian

KINDS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}
BOTH = pytest.mark.parametrize("kind", list(KINDS))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stepped(
    scheduler: Any, output: torch.Tensor, t: int, sample: torch.Tensor, seed: int = 0, **options: Any
) -> torch.Tensor:
    return scheduler.step(output, t, sample, generator=torch.Generator().manual_seed(seed), **options).prev_sample


# ---------------------------------------------------------------- the same numbers as Diffusers


@BOTH
@pytest.mark.parametrize("seed", range(15))
def test_single_steps(kind: str, seed: int) -> None:
    """The formulas agree to rounding; in float32 Diffusers' tables differ by up to 1e-5, or ours is the closer one."""
    rng = random.Random(seed)
    config = random_scheduler_config(rng, kind)
    worst = compare_steps(kind, config, random_step_count(config, rng), rng)
    assert worst["formulas"] < 1e-12
    assert worst["ours to oracle"] < 2e-6
    assert worst["float32"] < 1e-5 or worst["theirs to oracle"] > 5 * worst["ours to oracle"]


@BOTH
def test_whole_trajectories(kind: str) -> None:
    """20 random configurations from noise to image: within 5e-4 in float32, to rounding in float64."""
    compared = 0
    for seed in range(20):
        rng = random.Random(seed)
        config = random_scheduler_config(rng, kind)
        difference = compare_trajectories(kind, config, min(random_step_count(config, rng), 100), rng)
        if difference is not None:
            assert difference[0] < 5e-4 and difference[1] < 1e-8, config
            compared += 1
    assert compared >= 8


@BOTH
def test_noising_and_velocity(kind: str) -> None:
    ours = KINDS[kind](beta_schedule="scaled_linear")
    theirs = getattr(diffusers, type(ours).__name__)(beta_schedule="scaled_linear")
    x, eps, t = noise(4, 3, 4, 4), noise(4, 3, 4, 4, seed=1), torch.tensor([0, 3, 500, 999])
    # 1 - ᾱ_0 = 1e-4 keeps four digits in float32, √ halves the error
    assert relative(ours.add_noise(x, eps, t), theirs.add_noise(x, eps, t)) < 1e-5
    assert relative(ours.get_velocity(x, eps, t), theirs.get_velocity(x, eps, t)) < 1e-5
    exact = alpha_bars(ours.config)[t.numpy()].reshape(-1, 1, 1, 1)
    noised = ours.add_noise(x.double(), eps.double(), t)
    np.testing.assert_allclose(
        noised, exact**0.5 * x.double().numpy() + (1 - exact) ** 0.5 * eps.double().numpy(), atol=1e-14
    )


# ---------------------------------------------------------------- where Diffusers leaves the papers, both sides


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 300), ("linspace", 7)])
def test_ddim_goes_to_the_next_timestep(spacing: str, steps: int) -> None:
    """Diffusers goes to t - T//n whatever the spacing; the oracle goes to the next entry."""
    options = {"timestep_spacing": spacing, "clip_sample": False}
    ours, theirs = DDIMScheduler(**options), diffusers.DDIMScheduler(**options)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() == timesteps(ours.config, steps)
    x, eps = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    visited = [*ours.timesteps.tolist(), -1]
    uneven = [i for i in range(steps) if max(visited[i] - 1000 // steps, -1) != visited[i + 1]]
    assert uneven
    for i in (uneven[0], uneven[len(uneven) // 2]):
        t, following = visited[i : i + 2]
        truth = ddim_step(ours.config, eps.double().numpy(), t, following, x.double().numpy(), 0 * x.numpy(), 0.0)
        assert relative(ours.step(eps, t, x).prev_sample, truth) < 2e-6
        elsewhere = ddim_step(
            ours.config, eps.double().numpy(), t, t - 1000 // steps, x.double().numpy(), 0 * x.numpy(), 0.0
        )
        assert relative(theirs.step(eps, t, x).prev_sample, truth) > 1e-4
        assert relative(theirs.step(eps, t, x).prev_sample, elsewhere) < 1e-5


@BOTH
def test_trailing_gives_n_steps(kind: str) -> None:
    """Diffusers gives n + 1 steps, the last at -1, for 62 of the n up to 1000; elsewhere the timesteps are the same."""
    ours = KINDS[kind](timestep_spacing="trailing")
    theirs = getattr(diffusers, type(ours).__name__)(timestep_spacing="trailing")
    differing = 0
    for n in range(1, 1001):
        ours.set_timesteps(n)
        theirs.set_timesteps(n)
        assert len(ours.timesteps) == n and 0 <= ours.timesteps[-1] and ours.timesteps[0] == 999
        if ours.timesteps.tolist() != theirs.timesteps.tolist():
            assert theirs.timesteps.tolist() == [*ours.timesteps.tolist(), -1]
            differing += 1
    assert differing == 62


@BOTH
def test_leading_with_an_offset_past_the_end_is_refused(kind: str) -> None:
    ours = KINDS[kind](steps_offset=1)
    theirs = getattr(diffusers, type(ours).__name__)(steps_offset=1)
    theirs.set_timesteps(1000)
    assert theirs.timesteps[0] == 1000
    with pytest.raises(ValueError, match=r"in \[0, 999\].*got 1000 to 1; with steps_offset=1 take fewer steps"):
        ours.set_timesteps(1000)
    ours.set_timesteps(999)
    assert ours.timesteps[0] == 999


def test_a_variance_is_a_variance() -> None:
    """Diffusers' `_get_variance` is a variance, a standard deviation or a logarithm by type; ours always a variance."""
    t = 500
    small = float(gaussian.posterior_variance(*DDPMScheduler().alphas_cumprod[[t, t - 1]].tolist()))
    large = float(DDPMScheduler().betas[t])
    expected = {"fixed_small": small, "fixed_small_log": small, "fixed_large": large, "fixed_large_log": large}
    theirs = {}
    for kind, variance in expected.items():
        assert DDPMScheduler(variance_type=kind)._get_variance(t).item() == pytest.approx(variance, rel=1e-12)
        theirs[kind] = diffusers.DDPMScheduler(variance_type=kind)._get_variance(t).item()
    assert theirs["fixed_small_log"] == pytest.approx(small**0.5, rel=1e-3)
    assert theirs["fixed_large_log"] == pytest.approx(np.log(large), rel=1e-3)
    learned = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    ours = DDPMScheduler(variance_type="learned_range")._get_variance(t, learned)
    np.testing.assert_allclose(ours, [small, (small * large) ** 0.5, large], rtol=1e-12)


def test_fixed_large_log_is_not_nan() -> None:
    x, eps = noise(1, 1, 4, 4), noise(1, 1, 4, 4, seed=1)
    options = {"variance_type": "fixed_large_log"}
    assert stepped(diffusers.DDPMScheduler(**options), eps, 500, x).isnan().all()
    assert torch.equal(
        stepped(DDPMScheduler(**options), eps, 500, x), stepped(DDPMScheduler(variance_type="fixed_large"), eps, 500, x)
    )


@pytest.mark.parametrize("variance_type", ["fixed_tiny", "learned"])
def test_other_variance_types_are_refused(variance_type: str) -> None:
    diffusers.DDPMScheduler(variance_type=variance_type)
    with pytest.raises(ValueError, match=f"unknown variance_type '{variance_type}'.*fixed_small.*learned_range"):
        DDPMScheduler(variance_type=variance_type)


def test_no_noise_in_the_last_step() -> None:
    """Algorithm 2 has z = 0 at the last step; Diffusers adds it where that step is not at t = 0."""
    options = {"timestep_spacing": "trailing", "variance_type": "fixed_large"}
    ours, theirs = DDPMScheduler(**options), diffusers.DDPMScheduler(**options)
    x, eps = noise(1, 1, 4, 4), noise(1, 1, 4, 4, seed=1)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert int(ours.timesteps[-1]) == 99
    last = ours.step(eps, 99, x)
    assert torch.equal(last.prev_sample, last.pred_original_sample)
    assert relative(stepped(theirs, eps, 99, x), last.prev_sample) > 0.1


@BOTH
def test_bfloat16_images_get_their_noise(kind: str) -> None:
    """Diffusers rounds ᾱ to bfloat16 first: 1 for the first 10 timesteps, whose noise is then 0."""
    ours = KINDS[kind]()
    theirs = getattr(diffusers, type(ours).__name__)()
    zeros, ones, t = torch.zeros(20, 1).bfloat16(), torch.ones(20, 1).bfloat16(), torch.arange(20)
    assert (theirs.add_noise(zeros, ones, t) == 0).flatten().tolist() == [True] * 10 + [False] * 10
    exact = (1 - alpha_bars(ours.config)[:20]) ** 0.5
    noised = ours.add_noise(zeros, ones, t)
    assert noised.dtype == torch.bfloat16
    np.testing.assert_allclose(noised.float().flatten(), exact, rtol=2**-8)


@BOTH
def test_epsilon_with_zero_terminal_snr(kind: str) -> None:
    """It constructs and loads; the step at ᾱ_t = 0 is refused here and divides by zero there."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    ours = KINDS[kind](**options)
    theirs = getattr(diffusers, type(ours).__name__)(**options, clip_sample=False)
    x, eps = noise(1, 1, 4, 4), noise(1, 1, 4, 4, seed=1)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert not theirs.step(eps, 999, x).prev_sample.isfinite().any()
    with pytest.raises(ValueError, match="ᾱ_t = 0.*v_prediction"):
        ours.step(eps, 999, x)
    assert ours.step(eps, 899, x).prev_sample.isfinite().all()
    for prediction_type in ("v_prediction", "sample"):
        able = KINDS[kind](**options, prediction_type=prediction_type)
        able.set_timesteps(10)
        assert able.step(eps, 999, x).prev_sample.isfinite().all()


def test_ddim_at_eta_1_is_ddpm_when_epsilon_is_derived_again() -> None:
    """With x̂_0 clipped, η = 1 is DDPM `fixed_small` only if ε̂ follows x̂_0; Diffusers' default leaves it, ours too."""
    ddpm, ddim, theirs = DDPMScheduler(), DDIMScheduler(), diffusers.DDIMScheduler()
    for scheduler in (ddpm, ddim, theirs):
        scheduler.set_timesteps(50)
    x = noise(2, 3, 4, 4, dtype=torch.float64)
    for i, t in enumerate(ddpm.timesteps.tolist()):
        eps = stand_in(x, t / 1000)
        expected = ddpm.step(eps, t, x, generator=torch.Generator().manual_seed(i))
        rederived = stepped(ddim, eps, t, x, seed=i, eta=1.0, use_clipped_model_output=True)
        np.testing.assert_allclose(rederived, expected.prev_sample, atol=1e-12)
        if t == 980:
            assert (expected.pred_original_sample.abs() == 1).any()
            for left in (ddim, theirs):
                assert relative(stepped(left, eps, t, x, seed=i, eta=1.0), expected.prev_sample) > 0.1
        x = expected.prev_sample


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_without_clipping_eta_1_is_ddpm(prediction_type: str) -> None:
    options = {"clip_sample": False, "prediction_type": prediction_type, "timestep_spacing": "linspace"}
    ddpm, ddim = DDPMScheduler(**options), DDIMScheduler(**options)
    for scheduler in (ddpm, ddim):
        scheduler.set_timesteps(13)
    x, output = noise(2, 3, 4, 4, dtype=torch.float64), noise(2, 3, 4, 4, seed=1, dtype=torch.float64)
    for t in ddpm.timesteps.tolist():
        np.testing.assert_allclose(
            stepped(ddim, output, t, x, eta=1.0), stepped(ddpm, output, t, x), rtol=1e-11, atol=1e-12
        )


@BOTH
def test_thresholding_below_one_is_refused(kind: str) -> None:
    """Diffusers divides by s = sample_max_value < 1, which scales x̂_0 up."""
    options = {"thresholding": True, "sample_max_value": 0.5}
    x0 = torch.linspace(-0.4, 0.4, 9).view(1, 1, 3, 3)
    theirs = getattr(diffusers, KINDS[kind].__name__)(**options)
    torch.testing.assert_close(theirs._threshold_sample(x0), 2 * x0)
    with pytest.raises(ValueError, match="sample_max_value must be at least 1"):
        KINDS[kind](**options)
    bounded = KINDS[kind](thresholding=True, sample_max_value=2.0, dynamic_thresholding_ratio=1.0)
    torch.testing.assert_close(bounded._threshold_sample(x0), x0)
    torch.testing.assert_close(bounded._threshold_sample(4 * x0), (4 * x0) / 1.6)
    torch.testing.assert_close(bounded._threshold_sample(10 * x0), (10 * x0).clamp(-2, 2) / 2)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_end": 1.5}, r"must lie in \(0, 1\)"),
        ({"trained_betas": [0.1, 1.0, 0.2], "num_train_timesteps": 3}, r"every beta must lie in \(0, 1\)"),
        ({"trained_betas": [0.1, 0.2, 0.3]}, r"shape \(3,\), but num_train_timesteps=1000 needs \(1000,\)"),
    ],
)
def test_betas_that_diffusers_lets_pass_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    getattr(diffusers, KINDS[kind].__name__)(**options)
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**options)


@BOTH
def test_the_config_is_read_only(kind: str) -> None:
    """Diffusers' "frozen" dictionary can be written; ours cannot, by item, attribute or method."""
    ours = KINDS[kind]()
    theirs = getattr(diffusers, type(ours).__name__)()
    theirs.config["clip_sample"] = "changed"
    assert theirs.config["clip_sample"] == "changed"
    for write in (
        lambda c: c.__setitem__("clip_sample", False),
        lambda c: setattr(c, "clip_sample", False),
        lambda c: c.update(clip_sample=False),
        lambda c: c.pop("clip_sample"),
        lambda c: c.__delitem__("clip_sample"),
        lambda c: c.__ior__({"clip_sample": False}),
        lambda c: c.clear(),
    ):
        with pytest.raises(TypeError, match="read-only.*from_config"):
            write(ours.config)
    with pytest.raises(AttributeError):
        ours.config = {}
    assert ours.config.clip_sample is True and ours.config["clip_sample"] is True
    with pytest.raises(AttributeError, match="no 'clip_smaple'; it has .*clip_sample"):
        _ = ours.config.clip_smaple
    assert pickle.loads(pickle.dumps(ours.config)) == ours.config


# ---------------------------------------------------------------- configuration


@BOTH
def test_defaults_and_order_of_the_constructor_are_those_of_diffusers(kind: str) -> None:
    ours, theirs = KINDS[kind]().config, getattr(diffusers, KINDS[kind].__name__)().config
    assert [(k, v) for k, v in ours.items() if k[0] != "_"] == [(k, v) for k, v in theirs.items() if k[0] != "_"]


OTHER_THAN_DEFAULT = {
    "num_train_timesteps": 100,
    "beta_start": 0.001,
    "beta_end": 0.05,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def test_from_config_goes_across_classes_and_libraries_and_back() -> None:
    ddpm = DDPMScheduler(**OTHER_THAN_DEFAULT, variance_type="fixed_large")
    ddim = DDIMScheduler.from_config(ddpm.config)
    assert {k: ddim.config[k] for k in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    assert DDPMScheduler.from_config(ddim.config).config.variance_type == "fixed_large"
    for cls in (diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler):
        theirs = cls.from_config(ddpm.config)
        shared = {k: v for k, v in OTHER_THAN_DEFAULT.items() if k in theirs.config and k != "clip_sample"}
        assert {k: theirs.config[k] for k in shared} == shared
        returned = DDPMScheduler.from_config(theirs.config)
        assert {k: returned.config[k] for k in shared} == shared
    # a value left at its default takes the default of the class it arrives at
    assert DDIMScheduler.from_config(DDPMScheduler().config).config.set_alpha_to_one is True
    assert DDIMScheduler.from_config(ddpm.config, steps_offset=0).config.steps_offset == 0


@BOTH
def test_positional_order_of_from_pretrained(kind: str, tmp_path: Path) -> None:
    """As in Diffusers: folder, subfolder, whether to return what was not used."""
    KINDS[kind](beta_end=0.03).save_pretrained(tmp_path / "scheduler")
    for library in (ddpm_from_scratch, diffusers):
        loaded, unused = getattr(library, KINDS[kind].__name__).from_pretrained(tmp_path, "scheduler", True)
        assert loaded.config.beta_end == 0.03 and isinstance(unused, dict)


@BOTH
@pytest.mark.parametrize(
    "betas", [None, np.linspace(0.01, 0.2, 100), torch.linspace(0.01, 0.2, 100)], ids=["", "numpy", "torch"]
)
def test_json_round_trip_in_both_libraries(kind: str, betas: Any, tmp_path: Path) -> None:
    ours = KINDS[kind](**OTHER_THAN_DEFAULT, trained_betas=betas)
    ours.save_pretrained(tmp_path / "ours")
    again = KINDS[kind].from_pretrained(tmp_path / "ours")
    theirs = getattr(diffusers, type(ours).__name__).from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = KINDS[kind].from_pretrained(tmp_path / "theirs")
    for other in (again, theirs, back):
        torch.testing.assert_close(other.betas.double(), ours.betas, rtol=1e-6, atol=0)
        assert {k: other.config[k] for k in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    saved = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    assert saved["_class_name"] == type(ours).__name__ and json.loads(ours.to_json_string()) == saved


@BOTH
def test_unknown_arguments_are_named(kind: str) -> None:
    with pytest.raises(TypeError, match=f"{KINDS[kind].__name__}.*'beta_strat'.*beta_start"):
        KINDS[kind](beta_strat=0.1)
    for options, message in (
        ({"prediction_type": "eps"}, "unknown prediction_type 'eps': choose one of epsilon, sample, v_prediction"),
        ({"timestep_spacing": "even"}, "unknown timestep_spacing 'even'.*leading, trailing, linspace"),
        ({"beta_schedule": "quadratic"}, "unknown beta_schedule 'quadratic'"),
        ({"dynamic_thresholding_ratio": 1.2}, r"must lie in \(0, 1\], got 1.2"),
        ({"clip_sample_range": 0}, "must be positive, got 0"),
        ({"steps_offset": -1}, "must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            KINDS[kind](**options)


# ---------------------------------------------------------------- timesteps


@BOTH
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_are_table_2(kind: str, spacing: str) -> None:
    scheduler = KINDS[kind](timestep_spacing=spacing)
    for n in (1, 3, 10, 333, 1000):
        scheduler.set_timesteps(n)
        assert scheduler.timesteps.tolist() == timesteps(scheduler.config, n)
        assert scheduler.timesteps.dtype == torch.int64 and scheduler.num_inference_steps == n
        following = [*scheduler.timesteps.tolist()[1:], -1]
        assert [int(scheduler.previous_timestep(t)) for t in scheduler.timesteps] == following


@BOTH
def test_given_timesteps(kind: str) -> None:
    scheduler = KINDS[kind](clip_sample=False)
    scheduler.set_timesteps(timesteps=[900, 500, 7])
    assert scheduler.timesteps.tolist() == [900, 500, 7] and scheduler.num_inference_steps == 3
    assert [int(scheduler.previous_timestep(t)) for t in (900, 500, 7)] == [500, 7, -1]
    x, eps = noise(1, 1, 2, 2, dtype=torch.float64), noise(1, 1, 2, 2, seed=1, dtype=torch.float64)
    last = scheduler.step(eps, 7, x)
    np.testing.assert_allclose(last.prev_sample, last.pred_original_sample, atol=1e-14)


@BOTH
def test_refused_timesteps(kind: str) -> None:
    scheduler = KINDS[kind]()
    for arguments, message in (
        ({"timesteps": [5, 5, 1]}, "strictly descending"),
        ({"timesteps": [1, 5]}, "strictly descending"),
        ({"timesteps": []}, "strictly descending"),
        ({"timesteps": [1000, 5]}, r"in \[0, 999\]"),
        ({"timesteps": [5, -1]}, r"in \[0, 999\]"),
        ({"num_inference_steps": 0}, "from 1 to 1000"),
        ({"num_inference_steps": 1001}, "from 1 to 1000.*got 1001"),
        ({"num_inference_steps": 2.5}, "got 2.5"),
        ({"num_inference_steps": 5, "timesteps": [5, 1]}, "exactly one"),
        ({}, "exactly one"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(**arguments)
    assert len(scheduler.timesteps) == 1000


@BOTH
def test_timesteps_go_to_the_device_and_tables_stay(kind: str) -> None:
    scheduler = KINDS[kind]()
    scheduler.set_timesteps(10, device="meta")
    assert scheduler.timesteps.device.type == "meta" and scheduler.alphas_cumprod.device.type == "cpu"
    on_meta = torch.empty(2, 3, 4, 4, device="meta")
    assert scheduler.step(on_meta, 900, on_meta).prev_sample.device.type == "meta"
    assert scheduler.add_noise(on_meta, on_meta, torch.tensor([1, 2])).device.type == "meta"


def test_set_alpha_to_one() -> None:
    """The last step ends at ᾱ = 1, or at ᾱ_0: there it does not move at t = 0."""
    x, eps = noise(1, 1, 2, 2), noise(1, 1, 2, 2, seed=1)
    for to_one in (True, False):
        scheduler = DDIMScheduler(set_alpha_to_one=to_one, clip_sample=False)
        scheduler.set_timesteps(10)
        result = scheduler.step(eps, 0, x)
        torch.testing.assert_close(result.prev_sample, result.pred_original_sample if to_one else x)


# ---------------------------------------------------------------- step: arguments and results


def test_positional_order_of_step() -> None:
    """As in Diffusers: DDPM (…, generator, return_dict); DDIM (…, eta, use_clipped, generator, noise, return_dict)."""
    x, eps = noise(1, 1, 2, 2), noise(1, 1, 2, 2, seed=1)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    for library in (diffusers, ddpm_from_scratch):
        ddpm, ddim = library.DDPMScheduler(), library.DDIMScheduler()
        ddim.set_timesteps(10)
        assert torch.equal(ddpm.step(eps, 500, x, generator(), False)[0], stepped(ddpm, eps, 500, x, seed=3))
        by_name = stepped(ddim, eps, 500, x, seed=3, eta=0.5, use_clipped_model_output=True)
        assert torch.equal(ddim.step(eps, 500, x, 0.5, True, generator(), None, False)[0], by_name)


@BOTH
def test_the_output_by_attribute_key_index_and_tuple(kind: str) -> None:
    scheduler = KINDS[kind]()
    scheduler.set_timesteps(10)
    x, eps = noise(1, 1, 2, 2), noise(1, 1, 2, 2, seed=1)
    output = scheduler.step(eps, 0, x)
    plain = scheduler.step(eps, 0, x, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 2
    assert list(output) == ["prev_sample", "pred_original_sample"]
    for i, name in enumerate(output):
        assert getattr(output, name) is output[name] is output[i] is output.to_tuple()[i]
        assert torch.equal(plain[i], output[i])


@BOTH
def test_one_generator_or_one_per_image(kind: str) -> None:
    scheduler = KINDS[kind]()
    scheduler.set_timesteps(10)
    options = {"eta": 1.0} if kind == "ddim" else {}
    x, eps = noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]

    batch = scheduler.step(eps, 500, x, generator=generators(), **options).prev_sample
    alone = scheduler.step(eps[1:2], 500, x[1:2], generator=generators()[1], **options).prev_sample
    assert torch.equal(batch[1:2], alone)
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        scheduler.step(eps[:2], 500, x[:2], generator=generators(), **options)
    state = torch.get_rng_state()
    first, second = (stepped(scheduler, eps, 500, x, seed=9, **options) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_dtype_is_kept(kind: str, dtype: torch.dtype, prediction_type: str) -> None:
    scheduler = KINDS[kind](prediction_type=prediction_type, thresholding=True)
    scheduler.set_timesteps(10)
    options = {"eta": 1.0} if kind == "ddim" else {}
    x, output = noise(2, 1, 4, 4).to(dtype), noise(2, 1, 4, 4, seed=1).to(dtype)
    result = scheduler.step(output, 500, x, generator=torch.Generator().manual_seed(0), **options)
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == dtype
    for tensor in (
        scheduler.add_noise(x, output, torch.tensor([1, 500])),
        scheduler.get_velocity(x, output, torch.tensor([5])),
    ):
        assert tensor.dtype == dtype and tensor.isfinite().all()


@BOTH
def test_one_image_at_many_timesteps(kind: str) -> None:
    x, timesteps, theirs = noise(2, 3, 4, 4), torch.tensor([0, 500, 999]), getattr(diffusers, KINDS[kind].__name__)()
    for method in ("add_noise", "get_velocity"):
        mine = getattr(KINDS[kind](), method)(x[:1], x[1:], timesteps)
        assert mine.shape == (3, 3, 4, 4)
        assert torch.allclose(mine, getattr(theirs, method)(x[:1], x[1:], timesteps), atol=1e-6)


@BOTH
def test_refused_steps(kind: str) -> None:
    scheduler, x = KINDS[kind](), noise(2, 3, 4, 4)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"timestep must lie in \[0, 999\], got 1000"):
        scheduler.step(x, 1000, x)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 4, 4\), expected \(2, 3, 4, 4\)"):
        scheduler.step(x[:1], 500, x)
    with pytest.raises(ValueError, match=r"timesteps must lie in \[0, 999\], got 3 to 1000"):
        scheduler.add_noise(x, x, torch.tensor([3, 1000]))
    with pytest.raises(ValueError, match="3 timesteps for a batch of 2"):
        scheduler.add_noise(x, x, torch.tensor([3, 4, 5]))
    with pytest.raises(ValueError, match="0 timesteps for a batch of 1"):
        scheduler.add_noise(x[:1], x[:1], torch.tensor([]))
    with pytest.raises(ValueError, match="must have the same shape"):
        scheduler.add_noise(x, x[:1], torch.tensor([3, 4]))


@BOTH
@pytest.mark.parametrize("timestep", [500.5, "500", None, [500], float("nan"), torch.tensor([500, 400])], ids=str)
def test_a_timestep_is_one_whole_number(kind: str, timestep: Any) -> None:
    """500.5 and "500" were taken as 500."""
    scheduler, x = KINDS[kind](), noise(2, 3, 4, 4)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="a timestep must be one whole number, got"):
        scheduler.step(x, timestep, x)
    with pytest.raises(ValueError, match="a timestep must be one whole number, got"):
        scheduler.set_timesteps(timesteps=[timestep, 1])
    with pytest.raises(ValueError, match="a timestep must be one whole number, got '900'"):
        scheduler.step(x, "900", x)  # type: ignore[arg-type]
    for same in (500, np.int64(500), torch.tensor(500), torch.tensor([500]), 500.0, torch.tensor(500.0)):
        assert torch.equal(stepped(scheduler, x, same, x), stepped(scheduler, x, 500, x))  # type: ignore[arg-type]


@BOTH
def test_what_cannot_be_noised(kind: str) -> None:
    """√ᾱ_t rounded to an integer is 0: images of bytes came out black, and t = 5.5 was taken as 5."""
    scheduler, x = KINDS[kind](), noise(2, 3, 4, 4)
    for act in (scheduler.add_noise, scheduler.get_velocity):
        with pytest.raises(ValueError, match=r"floating-point numbers in \[-1, 1\], got torch.uint8"):
            act((255 * x).byte(), x, torch.tensor([5, 6]))
        with pytest.raises(ValueError, match=r"whole numbers, got \[5\.5, 6\.0\]"):
            act(x, x, torch.tensor([5.5, 6.0]))
        torch.testing.assert_close(act(x, x, torch.tensor([5.0, 6.0])), act(x, x, torch.tensor([5, 6])))


def test_refusals_of_one_scheduler() -> None:
    x, ddim = noise(2, 3, 4, 4), DDIMScheduler()
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        ddim.step(x, 500, x)
    with pytest.raises(ValueError, match=r"call scheduler\.set_timesteps"):
        ddim_invert(lambda x, t: x, x, ddim)
    ddim.set_timesteps(10)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 1.5"):
        ddim.step(x, 500, x, eta=1.5)
    with pytest.raises(ValueError, match="a generator or a variance_noise shaped like the sample, not both"):
        ddim.step(x, 500, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    for shape in ((4,), (5, 2, 3, 4, 4), (3, 3, 4, 4)):
        with pytest.raises(ValueError, match="a variance_noise shaped like the sample"):
            ddim.step(x, 500, x, eta=1.0, variance_noise=noise(*shape))
    for steps, shown in (("ten", "'ten'"), (float("nan"), "nan"), ([3, 2], r"\[3, 2\]"), (2.5, "2.5")):
        with pytest.raises(ValueError, match=f"num_inference_steps must be one whole number, got {shown}"):
            ddim.set_timesteps(steps)  # type: ignore[arg-type]
    assert len(ddim.timesteps) == 10, "a refusal changes nothing"
    with pytest.raises(ValueError, match=r"expected \(2, 6, 4, 4\) \(learned_range: twice the channels\)"):
        DDPMScheduler(variance_type="learned_range").step(x, 500, x)


@BOTH
def test_a_part_of_the_timesteps_may_be_assigned(kind: str) -> None:
    scheduler, theirs = KINDS[kind](), diffusers.DDPMScheduler()
    for one in (scheduler, theirs):
        one.set_timesteps(50)
        one.timesteps = one.timesteps[10::5]
    assert scheduler.timesteps.tolist() == theirs.timesteps.tolist()
    visited = scheduler.timesteps.tolist()
    assert [int(scheduler.previous_timestep(t)) for t in visited] == [*visited[1:], -1]
    assert int(theirs.previous_timestep(visited[0])) == visited[1]
    scheduler.timesteps = visited[1:]  # type: ignore[assignment]
    assert torch.equal(scheduler.timesteps, torch.tensor(visited[1:]))
    scheduler.set_timesteps(torch.tensor(4))
    assert len(scheduler.timesteps) == 4 and int(scheduler.previous_timestep(750)) == 500


@BOTH
def test_a_scheduler_shows_its_configuration(kind: str) -> None:
    scheduler = KINDS[kind](beta_end=0.03)
    shown = repr(scheduler)
    assert shown == f"{type(scheduler).__name__} {scheduler.to_json()}" and '"beta_end": 0.03' in shown


@BOTH
def test_what_diffusers_pipelines_ask_for(kind: str) -> None:
    scheduler, x = KINDS[kind](), noise(1, 1, 2, 2)
    assert len(scheduler) == 1000 and scheduler.order == 1 and scheduler.init_noise_sigma == 1.0
    assert scheduler.scale_model_input(x, 5) is x
    assert scheduler.betas.dtype == scheduler.alphas.dtype == scheduler.alphas_cumprod.dtype == torch.float64


def test_variance_noise_is_taken_as_the_noise() -> None:
    scheduler, x, eps, z = DDIMScheduler(), noise(1, 1, 4, 4), noise(1, 1, 4, 4, seed=1), noise(1, 1, 4, 4, seed=2)
    scheduler.set_timesteps(10)
    assert torch.equal(
        scheduler.step(eps, 500, x, eta=0.5, variance_noise=z).prev_sample, stepped(scheduler, eps, 500, x, 2, eta=0.5)
    )


# ---------------------------------------------------------------- ddim_invert


def gaussian_eps(scheduler: DDIMScheduler, m: float = 0.2, s: float = 0.4) -> Any:
    """The exact ε*(x, t) for data N(m, s²)."""

    def model(x: torch.Tensor, t: int) -> torch.Tensor:
        alpha_bar = float(scheduler.alphas_cumprod[int(t)])
        return (1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5 * m) / (alpha_bar * s**2 + 1 - alpha_bar)

    return model


def decode(scheduler: DDIMScheduler, model: Any, x: torch.Tensor) -> torch.Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, int(t)), int(t), x).prev_sample
    return x


def test_encoding_then_decoding_returns_the_image_as_steps_shrink() -> None:
    """Song table 2: the error falls with S; here like 1/S, and the code of N(m, s²) is standard normal."""
    x0 = 0.2 + 0.4 * noise(4, 1, 4, 4, dtype=torch.float64)
    errors = []
    for n in (25, 50, 100, 200, 1000):
        scheduler = DDIMScheduler(clip_sample=True, timestep_spacing="linspace")
        scheduler.set_timesteps(n)
        unclipped = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
        unclipped.set_timesteps(n)
        model = gaussian_eps(scheduler)
        code = ddim_invert(model, x0, scheduler)
        errors.append(float((decode(unclipped, model, code) - x0).abs().max()))
    assert all(later < 0.6 * earlier for earlier, later in zip(errors, errors[1:], strict=False)), errors
    assert errors[-1] < 0.01
    torch.testing.assert_close(code, (x0 - 0.2) / 0.4, atol=0.02, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_inversion_is_exact_where_epsilon_does_not_depend_on_the_image(spacing: str) -> None:
    x0, eps = noise(2, 1, 4, 4, dtype=torch.float64), noise(2, 1, 4, 4, seed=1, dtype=torch.float64)
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    seen = []
    code = ddim_invert(
        lambda x, t: eps, x0, scheduler, callback=lambda step, t, x, x0_hat: seen.append((step, t, x0_hat))
    )
    np.testing.assert_allclose(decode(scheduler, lambda x, t: eps, code), x0, atol=1e-10)
    np.testing.assert_allclose(code, scheduler.add_noise(x0, eps, scheduler.timesteps[:1]), atol=1e-10)
    assert [entry[:2] for entry in seen] == list(enumerate(scheduler.timesteps.flip(0).tolist()))
    assert all(torch.allclose(entry[2], x0, atol=1e-10) for entry in seen)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_inversion_reads_every_prediction_type(prediction_type: str) -> None:
    """The same oracle, told as x̂_0 or v: the same code."""
    x0 = 0.2 + 0.4 * noise(2, 1, 4, 4, dtype=torch.float64)
    by_eps, other = DDIMScheduler(), DDIMScheduler(prediction_type=prediction_type)
    for scheduler in (by_eps, other):
        scheduler.set_timesteps(50)
    eps_model = gaussian_eps(by_eps)

    def translated(x: torch.Tensor, t: int) -> torch.Tensor:
        alpha_bar, eps = float(by_eps.alphas_cumprod[t]), eps_model(x, t)
        x0_hat = gaussian.x0_from_eps(x, eps, alpha_bar)
        return x0_hat if prediction_type == "sample" else gaussian.velocity(x0_hat, eps, alpha_bar)

    torch.testing.assert_close(
        ddim_invert(translated, x0, other), ddim_invert(eps_model, x0, by_eps), rtol=1e-9, atol=1e-9
    )


def test_nothing_here_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in KINDS.values():
            scheduler = kind(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
            scheduler.set_timesteps(5)
            x = noise(1, 1, 2, 2)
            for t in scheduler.timesteps:
                x = scheduler.step(x, t, x).prev_sample
