'''The lesson generator: one source, two notebooks.

    python -m ddpm_from_scratch.course.build [--execute] [NN ...]

reads `course/lessons/NN_title.py` and writes `lessons/NN_title.ipynb` (exercises blank, no outputs) and
`solutions/NN_title.ipynb` (solved; with `--execute` run anew, else with the outputs it has, if its code is unchanged).
Edit the source, never a notebook.

A source is a Python file in percent format:

    # %% [markdown] id=title
    # # 01 · The forward process
    # Text, a `# ` before every line.

    # %% id=setup
    import torch
    from torch import Tensor

    from ddpm_from_scratch.course import check, hint, progress, setup, solution

    setup("01")

    # %% exercise 01.1
    # What to do, in markdown. The heading, stub and `check` cell come from the exercise's data.

    # %% id=decay tags=nbval-check-output
    print("a cell whose printed output nbval compares")

`id=` (letters, digits, hyphens) keeps a cell's id when cells are added before it; a cell without one is counted. `tags=`
takes a comma-separated list. The setup cell must import every name the stubs and solutions use (`torch`, `Tensor`, ...).
'''

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_from_scratch.course import exercises
from ddpm_from_scratch.course.exercise import Exercise

SOURCES = Path(__file__).parent / "lessons"
ROOT = Path(__file__).parents[2]
MAX_BYTES = 2_000_000

Notebook = dict[str, Any]

HEADER = re.compile(r"# %%(?: \[(?P<kind>markdown)\]| exercise (?P<exercise>\d\d\.\d+))?(?P<options>(?: \w+=[\w,-]+)*)\s*")


@dataclass(frozen=True)
class Cell:
    """One cell of a source: `kind` is "markdown", "code" or "exercise", and `text` has no comment signs left."""

    kind: str
    id: str
    text: str
    tags: tuple[str, ...] = ()
    exercise: str = ""


def read_source(path: Path) -> list[Cell]:
    """The cells of a lesson source.

    Raises:
        ValueError: a header that is not in the format above, text before the first header, an id used twice.
    """
    lesson = path.name[:2]
    blocks: list[tuple[re.Match[str], list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# %%"):
            header = HEADER.fullmatch(line)
            if header is None:
                raise ValueError(f"{path.name}, line {number}: cannot read the cell header {line!r}")
            blocks.append((header, []))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            raise ValueError(f"{path.name}, line {number}: text before the first `# %%` header")
    cells, counted = [], 0
    for header, lines in blocks:
        options = dict(option.split("=") for option in header["options"].split())
        if unknown := options.keys() - {"id", "tags"}:
            raise ValueError(f"{path.name}: unknown cell option {', '.join(unknown)}: use id= or tags=")
        kind = header["kind"] or ("exercise" if header["exercise"] else "code")
        counted += not header["exercise"] and "id" not in options
        name = f"ex{header['exercise'][3:]}" if header["exercise"] else options.get("id", f"c{counted:02d}")
        text = "\n".join(lines if kind == "code" else [re.sub(r"^# ?", "", line) for line in lines]).strip()
        tags = tuple(options["tags"].split(",")) if "tags" in options else ()
        cells.append(Cell(kind, f"{lesson}-{name}", text, tags, header["exercise"] or ""))
    ids = [cell.id for cell in cells]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"{path.name}: cell ids used twice: {', '.join(twice)}")
    return cells


def exercise_heading(exercise: Exercise, statement: str) -> str:
    """The markdown above an exercise: number, title, difficulty, minutes, equation, section, the statement."""
    stars = "★" * exercise.difficulty + "☆" * (3 - exercise.difficulty)
    minutes = f"{exercise.minutes} minute" + "s" * (exercise.minutes > 1)
    facts = [stars, minutes, exercise.equation, f"section “{exercise.where}”"]
    return f"### Exercise {exercise.id} · {exercise.title}\n\n*{' · '.join(filter(None, facts))}*\n\n{statement}".strip()


def notebook(cells: Iterable[Cell], solved: bool) -> Notebook:
    """The blank or the solved notebook of a lesson, without outputs, as nbformat 4.5 JSON."""
    built = []
    for cell in cells:
        if cell.kind != "exercise":
            built.append(_cell(cell.kind, cell.id, cell.text, cell.tags))
            continue
        exercise = exercises.get(cell.exercise)
        built += [
            _cell("markdown", f"{cell.id}-task", exercise_heading(exercise, cell.text)),
            _cell("code", cell.id, exercise.solution if solved else exercise.stub, cell.tags),
            _cell("code", f"{cell.id}-check", f'check("{exercise.id}", {exercise.name})'),
        ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": built, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, name: str, source: str, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": name, "metadata": {"tags": list(tags)} if tags else {}}
    lines = source.splitlines(keepends=True)
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}) | {"source": lines}
