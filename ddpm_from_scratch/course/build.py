"""The lesson generator: one source, two notebooks.

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

`id=` (letters, digits, hyphens) keeps a cell's id when cells are added before it; a cell without one is counted.
`tags=` takes a comma-separated list. `{{notation 01}}` and `{{equations 01}}` in a text become tables (see `ledger`).
The setup cell must import every name that the stubs and solutions use.

A picture's `alt=` and `caption=` tell what there is to see, and the cells above often ask that. So where both are plain
strings the notebooks hold `**plots.words("NN-id")` instead, and the strings go to `course/words/NN.json`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ddpm_from_scratch.course import exercises, ledger
from ddpm_from_scratch.course.exercise import Exercise

SOURCES = Path(__file__).parent / "lessons"
ROOT = Path(__file__).parents[2]
WORDS = Path("ddpm_from_scratch/course/words")
MAX_BYTES = 2_000_000

WIDGET = "application/vnd.jupyter.widget-view+json"
MAY_FAIL = ("raises-exception",)  # the tag of a cell whose error does not keep JupyterLab from the cells below it
"""A live widget, which no stored notebook can show; its other forms stay."""

Notebook = dict[str, Any]

HEADER = re.compile(
    r"# %%(?: \[(?P<kind>markdown)\]| exercise (?P<exercise>\d\d\.\d+))?(?P<options>(?: \w+=[\w,-]+)*)\s*"
)
FAULTS = {
    r"Traceback \(most recent call last\)": "a stack trace",
    r"\b\w*Warning\b": "a warning",
    r"(?<![\w.:/])/(?:home|root|Users|tmp|var|usr|opt|mnt|work)/\w|[A-Z]:\\\\?\w": "an absolute path",
    r"\b0x[0-9a-f]{8,}\b": "a memory address",
}
"""What no stored output may hold, by pattern."""


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


def without_words(cell: Cell) -> tuple[str, dict[str, dict[str, str]]]:
    """A code cell's text with the words of its pictures taken out, and these words by the name that stands for them."""
    text, words = cell.text.encode(), {}
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = sorted(_spoken(ast.parse(text)), key=lambda pair: (pair[0].lineno, pair[0].col_offset))
    names = [cell.id + f"-{i}" * (i > 1) for i in range(1, len(found) + 1)]
    for name, (alt, caption) in reversed(list(zip(names, found, strict=True))):
        begin, end = starts[alt.lineno - 1] + alt.col_offset, starts[caption.end_lineno - 1] + caption.end_col_offset
        text = text[:begin] + f'**plots.words("{name}")'.encode() + text[end:]
        words[name] = {"alt": alt.value.value, "caption": caption.value.value}
    return text.decode(), dict(reversed(words.items()))


def _spoken(tree: ast.AST) -> Iterator[tuple[Any, Any]]:
    """The arguments `alt` and `caption` of every call in which one follows the other and both are plain strings."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for one, next_one in zip(call.keywords, call.keywords[1:], strict=False):
            plain = all(isinstance(k.value, ast.Constant) for k in (one, next_one))
            if (one.arg, next_one.arg) == ("alt", "caption") and plain:
                yield one, next_one


def words_of(cells: Iterable[Cell]) -> dict[str, dict[str, str]]:
    """The words of all pictures of a lesson."""
    return {name: found for cell in cells if cell.kind == "code" for name, found in without_words(cell)[1].items()}


def exercise_heading(exercise: Exercise, statement: str) -> str:
    """The markdown above an exercise: number, title, difficulty, minutes, equation, section, the statement."""
    stars = "★" * exercise.difficulty + "☆" * (3 - exercise.difficulty)
    minutes = f"{exercise.minutes} minute" + "s" * (exercise.minutes > 1)
    section = f"section “{exercise.where}”" if exercise.where else ""
    facts = " · ".join(filter(None, [stars, minutes, exercise.equation, section]))
    return f"### Exercise {exercise.id} · {exercise.title}\n\n*{facts}*\n\n{statement}".strip()


def notebook(cells: Iterable[Cell], solved: bool) -> Notebook:
    """The blank or the solved notebook of a lesson, without outputs, as nbformat 4.5 JSON."""
    built = []
    for cell in cells:
        if cell.kind != "exercise":
            text = ledger.fill(cell.text) if cell.kind == "markdown" else without_words(cell)[0]
            built.append(_cell(cell.kind, cell.id, text, cell.tags))
            continue
        exercise = exercises.get(cell.exercise)
        built += [
            _cell("markdown", f"{cell.id}-task", exercise_heading(exercise, cell.text)),
            _cell("code", cell.id, exercise.solution if solved else exercise.stub, cell.tags),
            _cell("code", f"{cell.id}-check", f'check("{exercise.id}", {exercise.name})', () if solved else MAY_FAIL),
        ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": built, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, name: str, source: str, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": name, "metadata": {"tags": list(tags)} if tags else {}}
    lines = source.splitlines(keepends=True)
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}) | {"source": lines}


# ---------------------------------------------------------------- outputs


def execute(built: Notebook) -> Notebook:
    """The notebook with its outputs, run in a fresh kernel, an empty folder and offline, warnings being errors.

    Raises:
        CellExecutionError: a cell failed.
    """
    alone = {"DDPM_WARNINGS": "error", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder, _environment(**alone, DDPM_PROGRESS=f"{folder}/p.json"):
        running = nbformat.reads(json.dumps(built), as_version=4)
        resources = {"metadata": {"path": folder}}
        NotebookClient(running, timeout=600, record_timing=False, coalesce_streams=True, resources=resources).execute()
    executed = json.loads(nbformat.writes(running)) | {"metadata": built["metadata"]}
    for output in (output for cell in executed["cells"] for output in cell.get("outputs", [])):
        output.get("data", {}).pop(WIDGET, None)
    return executed


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def with_outputs_of(built: Notebook, stored: Notebook) -> Notebook:
    """`built` with the outputs of an earlier run.

    Raises:
        ValueError: the code is not the code that was run.
    """
    fresh, old = ([cell for cell in one["cells"] if cell["cell_type"] == "code"] for one in (built, stored))
    if [cell["source"] for cell in fresh] != [cell["source"] for cell in old]:
        raise ValueError("the code is not the code that was run: build it with --execute")
    for cell, earlier in zip(fresh, old, strict=True):
        cell |= {key: earlier[key] for key in ("execution_count", "outputs")}
    return built


def faults(solved: Notebook) -> list[str]:
    """What a solved notebook must not hold: unrun cells, errors, stderr, `FAULTS`, more than `MAX_BYTES`."""
    found = []
    for cell in solved["cells"]:
        if cell["cell_type"] == "code":
            unrun = ["not run"] if cell["source"] and cell["execution_count"] is None else []
            found += [f"{cell['id']}: {what}" for what in unrun + sum(map(_output_faults, cell["outputs"]), [])]
    size = len(as_json(solved).encode())
    return found + [f"{size} bytes, more than {MAX_BYTES}"] * (size > MAX_BYTES)


def _output_faults(output: dict[str, Any]) -> list[str]:
    if output["output_type"] == "error":
        return [output["ename"]]
    if output.get("name") == "stderr":
        return ["stderr"]
    data = output.get("data", {})
    words = [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", "\n".join("".join(part) for part in words))
    silent = any(kind.startswith("image/") for kind in data) or re.search(r"<img(?![^>]* alt=\"\w)", text)
    return ["a picture without alt text"] * bool(silent) + [FAULTS[p] for p in FAULTS if re.search(p, text)]


# ---------------------------------------------------------------- files


def as_json(one: dict[str, Any]) -> str:
    """The text of a notebook or of a lesson's words."""
    return json.dumps(one, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def sources(numbers: Sequence[str] = ()) -> list[Path]:
    """The lesson sources, all or those numbered.

    Raises:
        ValueError: a number without a source.
    """
    found = {path.name[:2]: path for path in sorted(SOURCES.glob("[0-9][0-9]_*.py"))}
    if missing := [number for number in numbers if number not in found]:
        raise ValueError(f"no lesson {', '.join(missing)}: there are {', '.join(found)}")
    return [path for number, path in found.items() if not numbers or number in numbers]


def build(source: Path, root: Path = ROOT, run: bool = False) -> None:
    """Writes both notebooks of a lesson under `root`.

    Raises:
        ValueError: the source cannot be read, its code needs `run`, or its outputs have faults.
        CellExecutionError: a cell failed.
    """
    cells = read_source(source)
    words, told = words_of(cells), root / WORDS / f"{source.name[:2]}.json"
    if not run and told.exists() and json.loads(told.read_text(encoding="utf-8")) != words:
        raise ValueError("the words of its pictures are not those that are shown: build it with --execute")
    blank, solved = (root / folder / f"{source.stem}.ipynb" for folder in ("lessons", "solutions"))
    _write(told, words)
    _write(blank, notebook(cells, solved=False))
    stored = json.loads(solved.read_text(encoding="utf-8")) if solved.exists() else {"cells": []}
    built = notebook(cells, solved=True)
    built = execute(built) if run else with_outputs_of(built, stored)
    if wrong := faults(built):
        raise ValueError("; ".join(wrong))
    _write(solved, built)


def _write(path: Path, one: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(one), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the notebooks of lessons/ and solutions/ from their sources.")
    parser.add_argument("--execute", action="store_true", help="run the solved notebooks and store their outputs")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers; all by default")
    options = parser.parse_args()
    try:
        chosen = sources(options.lessons)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for source in chosen:
        try:
            build(source, run=options.execute)
            print(f"{source.stem}: blank and solved")
        except (ValueError, SyntaxError, CellExecutionError) as error:
            failed += 1
            print(f"{source.stem}: {error}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
