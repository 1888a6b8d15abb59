"""Results stored with the course: whole, repeatable, and of the models that are shipped now."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpm_from_scratch.course import budget
from ddpm_from_scratch.course.stored import stored_table
from ddpm_from_scratch.few_steps import Plan
from ddpm_from_scratch.hub import shipped_models
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.training import Progress

TABLES = ["digits_few_steps"]


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
    assert {one.cell.row for one in table.results} == set(Plan().rows)
    assert all(one.figures.frechet_low <= one.figures.frechet <= one.figures.frechet_high for one in table.results)


def test_an_unknown_result_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="digits_few_steps"):
        stored_table("nothing")


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
