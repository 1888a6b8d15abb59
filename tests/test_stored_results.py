"""Results stored with the course: whole, repeatable, and of the models that are shipped now."""

from __future__ import annotations

import pytest

from ddpm_from_scratch.course.stored import stored_table
from ddpm_from_scratch.few_steps import Plan
from ddpm_from_scratch.hub import shipped_models
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.provenance import model_hash

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
