"""Bits per dimension as a record: what it holds, and which images it refuses. The bound itself: test_metrics."""

from __future__ import annotations

import csv

import pytest
import torch
from table_process import small_pipeline

from ddpm_from_scratch import metrics
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.likelihood import Likelihood, likelihood


def digits() -> ImageDataset:
    test = load_dataset("digits", "test")
    assert isinstance(test, ImageDataset)
    return test


@pytest.fixture(scope="module")
def found() -> Likelihood:
    """3 images of 8×8, asked at 20 timesteps each."""
    return likelihood(small_pipeline(), digits(), 3, 20, model="small", command="ddpm eval small --table bits")


def test_it_is_the_bound_of_the_first_test_images(found: Likelihood) -> None:
    pipeline = small_pipeline()
    truth = metrics.bits_per_dimension(pipeline.unet, pipeline.scheduler, digits().images(slice(3)), 20)
    assert found.total == pytest.approx(truth.total, rel=1e-6)
    assert found.total == pytest.approx(found.prior + found.diffusion + found.decoder, rel=1e-12)
    assert found.standard_error == pytest.approx(truth.standard_error, rel=1e-4)


def test_ranges_of_t_add_up_to_the_diffusion_term() -> None:
    """With every t asked of every image, the sums over ranges are exact."""
    scheduled = small_pipeline()
    scheduled.scheduler = type(scheduled.scheduler)(num_train_timesteps=41)
    every = likelihood(scheduled, digits(), 2, None)
    assert every.timesteps_per_image == 40 and None not in every.by_timestep
    assert sum(bits for *_, bits in every.ranges(7)) == pytest.approx(every.diffusion, rel=1e-12)
    assert [low for low, _, _ in every.ranges(4)] == [1, 11, 21, 31] and every.ranges(4)[-1][1] == 40


def test_json_csv_and_markdown_say_the_same(found: Likelihood) -> None:
    assert Likelihood.from_json(found.to_json()) == found
    lines = list(csv.DictReader(found.to_csv().splitlines()))
    assert len(lines) == sum(bits is not None for bits in found.by_timestep) <= 61
    assert float(lines[0]["bits_per_dimension"]) == found.by_timestep[0]
    page = found.to_markdown()
    for text in (
        f"{found.total:.4f}",
        "standard error",
        "not resized",
        "20 of 999",
        found.model_hash,
        "ddpm eval small",
    ):
        assert text in page
    with pytest.raises(ValueError, match="no table"):
        Likelihood.from_json('{"total": 1}')


def test_resized_images_and_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), digits holds, unresized, \(1, 16, 16\)"):
        likelihood(small_pipeline(), digits().resized(16), 3)
    for count in (1, 298):
        with pytest.raises(ValueError, match=r"\[2, 297\]"):
            likelihood(small_pipeline(), digits(), count)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            likelihood(small_pipeline(), digits(), 3, 20, batch_size=batch_size)


def test_the_model_is_asked_without_dropout() -> None:
    pipeline = small_pipeline()
    pipeline.unet.train()
    likelihood(pipeline, digits(), 2, 2)
    assert not pipeline.unet.training
    assert torch.is_grad_enabled()
