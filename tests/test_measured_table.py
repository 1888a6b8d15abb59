"""The measured table of lesson 08: it is that of the shipped model, and can be made again."""

from __future__ import annotations

import pytest
import torch

from ddpm_from_scratch import DDIMPipeline
from ddpm_from_scratch.course import few_steps
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.reference import shipped_classifier


@pytest.fixture(scope="module")
def unet():
    return DDIMPipeline.from_pretrained("digits").unet.eval()


def test_the_table_is_of_the_shipped_model(unet) -> None:
    stored = few_steps.load()
    assert stored["model"] == model_hash(unet), f"the digits model has changed: {few_steps.COMMAND}"
    assert set(stored["cells"]) == set(few_steps.SAMPLERS)
    for name, cells in stored["cells"].items():
        assert {"10", "20", "50", "100"} <= set(cells), name
        assert all(value > 0 for value in cells.values())


def test_a_cell_can_be_measured_again(unet) -> None:
    stored = few_steps.load()["cells"]["η = 0"]["10"]
    measured = few_steps.distance(few_steps.samples(unet, "η = 0", 10), *shipped_classifier("digits"))
    assert measured == pytest.approx(stored, rel=0.02)


def test_every_sampler_starts_from_the_same_noise_whatever_the_batch(unet) -> None:
    one, two = (few_steps.samples(unet, "η = 0", 2, count) for count in (3, 5))
    torch.testing.assert_close(one, two[:3], rtol=0, atol=1e-4)


def test_the_stored_images_are_read_by_sampler() -> None:
    images = few_steps.load_images()
    assert {"η = 0", "σ̂"} <= set(images)
    for rows in images.values():
        assert rows.shape == (few_steps.SHOWN, 1, 16, 16) and rows.abs().max() <= 1 and rows.std() > 0.2
