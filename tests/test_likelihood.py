"""Bits per dimension as a record: what it holds, and which images it refuses. The bound itself: test_metrics."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from table_process import small_pipeline

from ddpm_from_scratch import likelihood as module
from ddpm_from_scratch import metrics
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.likelihood import Likelihood, likelihood
from ddpm_from_scratch.reference import read_tensors


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
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), digits holds \(1, 16, 16\): bits of resized images"):
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


# ---------------------------------------------------------------- stopped and gone on

BATCHES = 14
"""Of 7 images with 21 terms each, 11 terms at a time."""
SLOWLY = """
import sys, time
import torch
from table_process import small_pipeline
from ddpm_from_scratch import likelihood
from ddpm_from_scratch.data import load_dataset
torch.set_num_threads(1)
likelihood.KEEP_SECONDS = 0
keep = likelihood._Store.keep
likelihood._Store.keep = lambda store, terms: (keep(store, terms), time.sleep(1))
likelihood.likelihood(small_pipeline(), load_dataset("digits", "test"), 7, 20, batch_size=11, folder=sys.argv[1])
"""


def small(folder: Path | None = None, **options: Any) -> Likelihood:
    pipeline = options.pop("pipeline", None) or small_pipeline()
    options = {"num_images": 7, "timesteps_per_image": 20, "batch_size": 11} | options
    return replace(likelihood(pipeline, digits(), folder=folder, **options), minutes=0.0)


@pytest.fixture
def kept_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.0)


def stopped_after(batches: int, folder: Path, **options: Any) -> int:
    """Asks for `small` of a network that breaks in the batch after these; how often it was asked."""
    pipeline, asked = small_pipeline(), 0

    def count(*_: Any) -> None:
        nonlocal asked
        if asked == batches:
            raise KeyboardInterrupt
        asked += 1

    pipeline.unet.register_forward_pre_hook(count)
    try:
        small(folder, pipeline=pipeline, **options)
    except KeyboardInterrupt:
        assert asked == batches
    return asked


def test_killed_and_gone_on_is_as_never_stopped(tmp_path: Path) -> None:
    """To the last digit, and what was kept is not asked again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(tmp_path)], env=environment)
    while not (tmp_path / module.TERMS).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() != 0
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert 0 < stopped_after(BATCHES, tmp_path) < BATCHES
        assert small(tmp_path) == small()
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("kept_always")
def test_stopped_anywhere_it_goes_on_from_there(tmp_path: Path) -> None:
    for batches in (0, 1, 5):
        assert stopped_after(batches, tmp_path) == batches
    assert stopped_after(BATCHES, tmp_path) == BATCHES - 6
    assert stopped_after(BATCHES, tmp_path) == 0
    assert small(tmp_path) == small()
    assert stopped_after(BATCHES, tmp_path / "another") == BATCHES


@pytest.mark.usefixtures("kept_always")
def test_the_minutes_before_a_stop_count(tmp_path: Path) -> None:
    stopped_after(3, tmp_path)
    path = tmp_path / module.TERMS
    save_file(read_tensors(path) | {"seconds": torch.tensor(3600.0)}, path)
    stopped_after(3, tmp_path)
    assert 3600 < float(read_tensors(path)["seconds"]) < 3660
    assert 60 < likelihood(small_pipeline(), digits(), 7, 20, batch_size=11, folder=tmp_path).minutes < 62


@pytest.mark.usefixtures("kept_always")
def test_terms_of_another_model_or_of_other_settings_are_refused(tmp_path: Path) -> None:
    stopped_after(3, tmp_path)
    linear = small_pipeline()
    linear.scheduler = type(linear.scheduler)(beta_schedule="scaled_linear")
    for options, what in (
        ({"pipeline": small_pipeline(seed=1)}, "model"),
        ({"pipeline": linear}, "schedule"),
        ({"num_images": 8, "seed": 1}, "num_images, seed"),
        ({"timesteps_per_image": 30}, "timesteps_per_image"),
    ):
        with pytest.raises(ValueError, match=rf"{module.TERMS} holds terms with another {what}: choose another folder"):
            small(tmp_path, **options)  # type: ignore[arg-type]
    assert small(tmp_path, batch_size=50).total == pytest.approx(small().total, rel=1e-5)


@pytest.mark.usefixtures("kept_always")
def test_damaged_terms_are_told_by_name(tmp_path: Path) -> None:
    stopped_after(3, tmp_path)
    path = tmp_path / module.TERMS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{module.TERMS} is not a valid safetensors file"):
        small(tmp_path)
    for settings in (b"{", b"[]", b"\xff"):
        content = {"settings": torch.tensor(list(settings), dtype=torch.uint8), "terms": torch.zeros(1).double()}
        for seconds in ({}, {"seconds": torch.zeros(())}, {"seconds": torch.zeros(2)}):
            save_file(content | seconds, path)
            with pytest.raises(ValueError, match=rf"{module.TERMS} is damaged: delete it, or choose another folder"):
                small(tmp_path)
