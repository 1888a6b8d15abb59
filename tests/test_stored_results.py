"""Results stored with the course: whole, repeatable, and of the models that are shipped now.

A retrained model fails these tests until the command stored beside each result has been run again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpm_from_scratch.course import budget, thousand_steps
from ddpm_from_scratch.course.stored import stored_bits, stored_table
from ddpm_from_scratch.few_steps import Plan
from ddpm_from_scratch.hub import shipped_models
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.training import Progress

TABLES = ["digits_few_steps", "digits_unclipped", "fashion_few_steps"]


@pytest.mark.parametrize("name", TABLES)
def test_a_stored_table_is_of_the_model_that_is_shipped(name: str) -> None:
    """A retrained model needs a new table: run its command, and store `table.json` under this name."""
    table = stored_table(name)
    assert table.model in shipped_models()
    assert table.model_hash == model_hash(DDPMPipeline.from_pretrained(table.model).unet)


@pytest.mark.parametrize("name", TABLES)
def test_a_stored_table_says_where_it_comes_from(name: str) -> None:
    table = stored_table(name)
    assert table.command.startswith(f"ddpm eval {table.model} --table ddim") and "/" not in table.command
    assert table.machine and table.minutes > 0 and table.judge
    distances = table.of_all_seeds("0", 10)
    first = table.result("0", 10)
    assert len(distances) == 3 == len(set(distances)) and first is not None and distances[0] == first.figures.frechet
    assert {one.cell.row for one in table.results} == set(Plan().rows)
    assert all(one.figures.frechet_low <= one.figures.frechet <= one.figures.frechet_high for one in table.results)


def test_the_stored_bits_are_of_the_model_that_is_shipped() -> None:
    """Its parts add up; the ranges of t, another estimate from the same draws, within 3 standard errors."""
    stored = stored_bits("fashion_bits")
    pipeline = DDPMPipeline.from_pretrained(stored.model)
    assert stored.model in shipped_models() and stored.model_hash == model_hash(pipeline.unet)
    assert stored.command.startswith(f"ddpm eval {stored.model} --table bits") and "/" not in stored.command
    assert stored.num_images == 500 and stored.machine and stored.minutes > 0
    assert stored.prior + stored.diffusion + stored.decoder == pytest.approx(stored.total, rel=1e-6)
    assert sum(bits for _, _, bits in stored.ranges()) == pytest.approx(stored.diffusion, abs=3 * stored.standard_error)


def test_an_unknown_result_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="digits_few_steps"):
        stored_table("nothing")


# ---------------------------------------------------------------- the pictures of lesson 08


def test_the_stored_pictures_are_of_the_model_that_is_shipped() -> None:
    stored = thousand_steps.load()
    weights = model_hash(DDPMPipeline.from_pretrained(stored["model"]).unet)
    assert stored["model_hash"] == weights, f"the model has changed: run {thousand_steps.COMMAND}"
    assert stored["command"] == thousand_steps.COMMAND and "/" not in stored["command"]
    assert stored["machine"] and all(row["minutes"] >= 0 for row in stored["rows"])
    assert [(row["sampler"], row["steps"]) for row in stored["rows"]] == thousand_steps.ROWS


def test_a_row_of_pictures_can_be_made_again() -> None:
    unet = DDPMPipeline.from_pretrained("digits").unet.eval()
    images = thousand_steps.load_images()
    reference = thousand_steps.samples(unet, "not clipped", 10)
    for row in thousand_steps.load()["rows"]:
        shown = images[row["sampler"], row["steps"]]
        assert shown.shape == reference.shape and shown.abs().max() <= 1 and shown.std() > 0.2
        assert thousand_steps.distance(shown, reference) == pytest.approx(row["distance"], abs=5e-3)
        if row["steps"] == 10:
            made = thousand_steps.samples(unet, row["sampler"], 10)
            torch.testing.assert_close(made, shown, rtol=0, atol=2 / 255)


def test_every_sampler_starts_from_the_same_noise_whatever_the_batch() -> None:
    unet = DDPMPipeline.from_pretrained("digits").unet.eval()
    one, two = (thousand_steps.samples(unet, "not clipped", 2, count) for count in (3, 5))
    torch.testing.assert_close(one, two[:3], rtol=0, atol=1e-4)


# ---------------------------------------------------------------- the training run of lesson 11


class Killed(Exception):
    """Stands for whatever ends a run."""


def test_the_budgets_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = budget.measure(tmp_path / "whole", steps=(2, 4), num_samples=4)
    judge, calls = budget.JudgedOnTheWay.__call__, []

    def killed_at_the_second(self: budget.JudgedOnTheWay, progress: Progress) -> None:
        calls.append(progress.step)
        if progress.step == 3:
            raise Killed
        judge(self, progress)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(budget.JudgedOnTheWay, "__call__", killed_at_the_second)
        budget.measure(tmp_path / "stopped", steps=(2, 4), num_samples=4)
    assert calls == [1, 2, 3]
    again = budget.measure(tmp_path / "stopped", steps=(2, 4), num_samples=4)
    assert again["rows"] == whole["rows"] and again["model_hash"] == whole["model_hash"]
    assert [row["step"] for row in whole["rows"]] == [2, 4] and whole["rows"][0]["figures"]["num_samples"] == 4
