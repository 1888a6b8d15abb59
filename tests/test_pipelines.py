"""Pipelines: the denoising loop, its arguments and results, moving, and the whole path from noise to image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_hub import TINY, tiny_pipeline

from ddpm_from_scratch import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel, UNet2DOutput
from ddpm_from_scratch.gaussian import randn
from ddpm_from_scratch.pipelines import DiffusionPipeline


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline() -> DDPMPipeline:
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


class Oracle(UNet2DModel):
    """Predicts the exact ε where every image is the constant `value`: ε = (x_t - √ᾱ_t value) / √(1-ᾱ_t)."""

    value, alpha_bars = 0.25, DDPMScheduler(num_train_timesteps=20).alphas_cumprod

    def forward(self, sample: torch.Tensor, timestep: Any, *_: Any, **__: Any) -> UNet2DOutput:  # type: ignore[override]
        alpha_bar = float(self.alpha_bars[int(timestep)])
        return UNet2DOutput((sample - alpha_bar**0.5 * self.value) / (1 - alpha_bar) ** 0.5)


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_with_the_true_noise_the_image_is_found(kind: type[DiffusionPipeline], steps: int) -> None:
    """All data at one point: with the exact ε every sampler must end there, whatever the number of steps."""
    exact = kind(Oracle(**TINY), DDPMScheduler(num_train_timesteps=20))
    exact.set_progress_bar_config(disable=True)
    images = exact(batch_size=2, generator=generator(), num_inference_steps=steps, output_type="pt").images  # type: ignore[operator]
    torch.testing.assert_close(images, torch.full((2, 1, 8, 8), 0.625), rtol=0, atol=1e-5)


def test_the_loop_is_the_three_lines(pipeline: DDPMPipeline) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=20)
    scheduler.set_timesteps(5)
    random = generator(3)
    x = randn((2, 1, 8, 8), random)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x, generator=random).prev_sample  # type: ignore[union-attr]
    made = pipeline(2, generator(3), 5, output_type="pt").images
    assert torch.equal(made, (x / 2 + 0.5).clamp(0, 1))


def test_kinds_of_output(pipeline: DDPMPipeline) -> None:
    made = {kind: pipeline(2, generator(), 4, output_type=kind).images for kind in ("pil", "np", "numpy", "pt")}
    assert made["pt"].shape == (2, 1, 8, 8) and made["np"].shape == (2, 8, 8, 1) and made["np"].dtype == np.float32
    assert np.array_equal(made["np"], made["numpy"])
    assert np.array_equal(made["np"], made["pt"].permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.mode == "L" for image in made["pil"])
    assert np.array_equal(np.asarray(made["pil"][0]), (made["np"][0, ..., 0] * 255).round().astype("uint8"))
    assert 0 <= made["pt"].min() and made["pt"].max() <= 1
    out = pipeline(2, generator(), 4, output_type="np")
    assert out.images is out["images"] is out[0]
    as_tuple = pipeline(2, generator(), 4, output_type="np", return_dict=False)
    assert type(as_tuple) is tuple and np.array_equal(as_tuple[0], out.images)


def test_colour_and_sizes() -> None:
    colour = DDPMPipeline(
        UNet2DModel(**TINY | {"in_channels": 3, "out_channels": 3, "sample_size": (8, 16)}), DDPMScheduler()
    )
    colour.set_progress_bar_config(disable=True)
    assert len(colour(batch_size=np.int64(2), num_inference_steps=np.int64(1)).images) == 2
    image = colour(num_inference_steps=1).images[0]
    assert image.mode == "RGB" and image.size == (16, 8)


def test_one_generator_or_one_per_image(pipeline: DDPMPipeline) -> None:
    both = pipeline(2, [generator(1), generator(2)], 4, output_type="np").images
    for i, seed in enumerate((1, 2)):
        alone = pipeline(1, [generator(seed)], 4, output_type="np").images
        np.testing.assert_allclose(both[i], alone[0], atol=1e-5)
        assert np.array_equal(alone, pipeline(1, generator(seed), 4, output_type="np").images)
    assert not np.array_equal(both[0], both[1])
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        pipeline(2, [generator()] * 3, 4)


def test_sampling_leaves_the_global_random_state(pipeline: DDPMPipeline) -> None:
    before = torch.random.get_rng_state()
    pipeline(1, generator(), 3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_callback(kind: type[DiffusionPipeline]) -> None:
    seen: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
    made = kind(tiny_pipeline().unet, DDPMScheduler(num_train_timesteps=20))
    made.set_progress_bar_config(disable=True)
    images = made(  # type: ignore[operator]
        batch_size=2, generator=generator(), num_inference_steps=4, output_type="pt", callback=lambda *a: seen.append(a)
    ).images
    assert [(step, t) for step, t, _, _ in seen] == [(0, 15), (1, 10), (2, 5), (3, 0)]
    assert all(x.shape == x0.shape == (2, 1, 8, 8) and x0.abs().max() <= 1 for _, _, x, x0 in seen)
    assert torch.equal(images, (seen[-1][2] / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(seen[-1][2], seen[-1][3])


def test_more_channels_than_a_picture_has() -> None:
    wide = DDIMPipeline(UNet2DModel(**TINY | {"in_channels": 5, "out_channels": 5}), DDPMScheduler())
    wide.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="5 channels make no picture: ask for output_type='np' or 'pt'"):
        wide()
    assert wide(1, generator(), num_inference_steps=2, output_type="np").images.shape[-1] == 5


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    shown = tiny_pipeline()
    shown(num_inference_steps=2)
    assert "2/2" in capsys.readouterr().err
    shown.set_progress_bar_config(desc="noise to image")
    shown(num_inference_steps=2)
    assert "noise to image" in capsys.readouterr().err
    shown.set_progress_bar_config(disable=True)
    shown(num_inference_steps=2)
    assert capsys.readouterr().err == ""


def test_parts_and_moving(pipeline: DDPMPipeline) -> None:
    assert pipeline.components == {"unet": pipeline.unet, "scheduler": pipeline.scheduler}
    assert pipeline.config == {"unet": ("diffusers", "UNet2DModel"), "scheduler": ("diffusers", "DDPMScheduler")}
    assert pipeline.device == torch.device("cpu") and pipeline.dtype == torch.float32
    assert pipeline.to("cpu", torch.bfloat16) is pipeline and pipeline.dtype == torch.bfloat16
    assert pipeline(1, generator(), 2, output_type="pt").images.dtype == torch.bfloat16
    assert pipeline(1, generator(), 2, output_type="np").images.dtype == np.float32
    assert pipeline.to(dtype=torch.float64).dtype == torch.float64
    assert pipeline.to(torch.device("cpu")).to(torch.float32).dtype == torch.float32
    assert DDPMPipeline(**pipeline.components).unet is pipeline.unet


def test_classes() -> None:
    torch.manual_seed(0)
    conditional = DDIMPipeline(UNet2DModel(**TINY, num_class_embeds=3), DDPMScheduler(num_train_timesteps=20))
    conditional.set_progress_bar_config(disable=True)
    made = [
        conditional(2, generator(), num_inference_steps=4, output_type="np", class_labels=labels).images
        for labels in ([0, 1], torch.tensor([0, 1]), [0, 2])
    ]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0][1], made[2][1])
    np.testing.assert_allclose(made[0][0], made[2][0], atol=1e-6)
    with pytest.raises(ValueError, match="got 3 class_labels for a batch of 2"):
        conditional(2, class_labels=[0, 1, 2])
    for labels in ([0, 11], torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"class_labels must lie in \[0, \d+\], got \["):
            conditional(2, class_labels=labels)
    with pytest.raises(ValueError, match="class_labels missing"):
        conditional(2, num_inference_steps=4)


def test_a_learned_variance_in_both_pipelines() -> None:
    unet = UNet2DModel(**TINY | {"out_channels": 2})
    for kind in (DDPMPipeline, DDIMPipeline):
        made = kind(unet, DDPMScheduler(num_train_timesteps=20, variance_type="learned_range"))
        made.set_progress_bar_config(disable=True)
        assert made(2, generator(), num_inference_steps=3, output_type="pt").images.shape == (2, 1, 8, 8)


def test_a_learned_variance_is_left_out_where_the_scheduler_fixes_it() -> None:
    """DDPM by a fixed variance takes the half that predicts ε, as DDIM does."""
    unet = UNet2DModel(**TINY | {"out_channels": 2})
    made = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20, variance_type="fixed_large"))
    made.set_progress_bar_config(disable=True)
    assert made(2, generator(), num_inference_steps=3, output_type="pt").images.shape == (2, 1, 8, 8)


def test_a_compiled_network_is_saved_by_its_own_name(tmp_path: Path, pipeline: DDPMPipeline) -> None:
    compiled = DDPMPipeline(torch.compile(pipeline.unet), pipeline.scheduler)  # type: ignore[arg-type]
    compiled.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(loaded.unet.parameters(), pipeline.unet.parameters(), strict=True))


def test_diffusers_own_parts_are_saved(tmp_path: Path) -> None:
    theirs = diffusers.UNet2DModel(**TINY)
    DDPMPipeline(theirs, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    saved, loaded = theirs.state_dict(), DDPMPipeline.from_pretrained(tmp_path).unet.state_dict()
    assert set(loaded) == set(saved) and all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_channels_that_are_no_variance_are_refused() -> None:
    surplus = DDIMPipeline(UNet2DModel(**TINY | {"out_channels": 3}), DDIMScheduler())
    with pytest.raises(ValueError, match=r"model_output has shape \(1, 3, 8, 8\), expected \(1, 1, 8, 8\)"):
        surplus(num_inference_steps=2)


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_parts_that_are_swapped_or_none(kind: type[DiffusionPipeline], pipeline: DDPMPipeline) -> None:
    for unet, scheduler in ((pipeline.scheduler, pipeline.unet), (pipeline.unet, "ddpm"), (None, pipeline.scheduler)):
        with pytest.raises(TypeError, match=f"a U-Net and a scheduler, got {type(unet).__name__}, "):
            kind(unet, scheduler)


def test_swapping_the_scheduler(pipeline: DDPMPipeline) -> None:
    ddim = DDIMPipeline(pipeline.unet, pipeline.scheduler)
    assert isinstance(ddim.scheduler, DDIMScheduler) and len(ddim.scheduler) == 20
    ddim.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = ddim(2, generator(), num_inference_steps=4, output_type="np").images
    assert np.array_equal(pipeline(2, generator(), 4, output_type="np").images, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "jpg"}, "output_type must be 'pil', 'np' or 'pt', got 'jpg'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "got 2.0"),
        ({"num_inference_steps": 0}, "from 1 to 20"),
        ({"num_inference_steps": 21}, "from 1 to 20.*got 21"),
    ],
)
def test_refusals(pipeline: DDPMPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_a_network_without_a_size() -> None:
    sizeless = DDPMPipeline(UNet2DModel(**TINY | {"sample_size": None}), DDPMScheduler())
    with pytest.raises(ValueError, match="no sample_size"):
        sizeless()
