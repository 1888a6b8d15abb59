"""The lessons: both notebooks against their source, what stored outputs may hold, and the equation ledger."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from contextlib import nullcontext
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ddpm_from_scratch.course import build, exercises, ledger, plots
from ddpm_from_scratch.course.build import FAULTS, MAX_BYTES, Cell, Notebook, faults, notebook, read_source
from ddpm_from_scratch.course.syllabus import LESSONS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = build.sources()
FOLDERS = {"lessons": False, "solutions": True}
every_lesson = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])


# ---------------------------------------------------------------- both notebooks come from the source


def without_outputs(one: Notebook) -> Notebook:
    cells = [cell | ({"outputs": [], "execution_count": None} if "outputs" in cell else {}) for cell in one["cells"]]
    return one | {"cells": cells}


def drift(source: Path, root: Path) -> list[str]:
    """Where the stored notebooks differ from what the source gives, outputs apart."""
    found = []
    for folder, solved in FOLDERS.items():
        path = root / folder / f"{source.stem}.ipynb"
        if not path.exists():
            found.append(f"{folder}: not there")
            continue
        stored, fresh = json.loads(path.read_text(encoding="utf-8")), notebook(read_source(source), solved)
        if (without_outputs(stored) if solved else stored) == fresh:
            continue
        pairs = {cell["id"]: cell for cell in fresh["cells"]}
        changed = [c["id"] for c in without_outputs(stored)["cells"] if pairs.get(c["id"]) != c]
        found.append(f"{folder}: {', '.join(changed) or 'cells, order or metadata'}")
    words = root / build.WORDS / f"{source.name[:2]}.json"
    if not words.exists() or json.loads(words.read_text(encoding="utf-8")) != build.words_of(read_source(source)):
        found.append(f"words: {words.name}")
    return found


@every_lesson
def test_notebooks_are_what_the_source_gives(source: Path) -> None:
    assert drift(source, ROOT) == [], "edit the source, then: python -m ddpm_from_scratch.course.build --execute"


@every_lesson
def test_stored_pictures_have_their_words(source: Path) -> None:
    """A caption may be changed in the source, where the code of the notebook stays the same."""
    shown = (ROOT / "solutions" / f"{source.stem}.ipynb").read_text(encoding="utf-8")
    outputs = "".join(
        "".join(part)
        for cell in json.loads(shown)["cells"]
        for output in cell.get("outputs", [])
        for part in output.get("data", {}).values()
    )
    words = build.words_of(read_source(source))
    assert words
    for name, found in words.items():
        assert f'alt="{escape(found["alt"])}"' in outputs, name
        assert f"<em>{plots.prose(found['caption'])}</em>" in outputs, name


def test_every_notebook_has_a_source() -> None:
    names = {source.stem for source in SOURCES}
    stored = {path.stem for folder in FOLDERS for path in (ROOT / folder).glob("*.ipynb")}
    assert stored == names


@every_lesson
@pytest.mark.parametrize("folder", FOLDERS)
def test_notebook_is_valid(source: Path, folder: str) -> None:
    path = ROOT / folder / f"{source.stem}.ipynb"
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert path.read_text(encoding="utf-8") == build.as_json(json.loads(path.read_text(encoding="utf-8")))


@every_lesson
def test_solved_notebook_has_clean_outputs(source: Path) -> None:
    assert faults(json.loads((ROOT / "solutions" / f"{source.stem}.ipynb").read_text(encoding="utf-8"))) == []


@every_lesson
def test_lesson_holds_its_exercises_in_order(source: Path) -> None:
    lesson = source.name[:2]
    used = [cell.exercise for cell in read_source(source) if cell.kind == "exercise"]
    assert used == [exercise.id for exercise in exercises.of_lesson(lesson)]


@every_lesson
def test_lesson_names_the_sections_its_exercises_point_to(source: Path) -> None:
    text = "\n".join(cell.text for cell in read_source(source) if cell.kind == "markdown")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    for exercise in exercises.of_lesson(source.name[:2]):
        assert any(exercise.where in heading for heading in headings), f"{exercise.id} points to {exercise.where!r}"


@every_lesson
def test_setup_comes_before_the_first_exercise(source: Path) -> None:
    cells = read_source(source)
    first = next((n for n, cell in enumerate(cells) if cell.kind == "exercise"), len(cells))
    earlier = "\n".join(cell.text for cell in cells[:first] if cell.kind == "code")
    assert f'\nsetup("{source.name[:2]}")' in earlier


# ---------------------------------------------------------------- the generator

SOURCE = """\
# %% [markdown] id=title
# # A title
#
# $x_t$ and {{notation 08}}

# %%
import torch

x = 1

# %% exercise 01.1
# Do this.

# %% id=last tags=nbval-check-output,slow
print(x)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "01_trial.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_source_becomes_cells(source: Path) -> None:
    assert read_source(source) == [
        Cell("markdown", "01-title", "# A title\n\n$x_t$ and {{notation 08}}"),
        Cell("code", "01-c01", "import torch\n\nx = 1"),
        Cell("exercise", "01-ex1", "Do this.", (), "01.1"),
        Cell("code", "01-last", "print(x)", ("nbval-check-output", "slow")),
    ]


def test_blank_and_solved_differ_in_the_exercise_alone(source: Path) -> None:
    blank, solved = (notebook(read_source(source), solved) for solved in (False, True))
    for one in (blank, solved):
        nbformat.validate(nbformat.reads(json.dumps(one), as_version=4))
    assert [cell["id"] for cell in blank["cells"]] == [cell["id"] for cell in solved["cells"]]
    differing = [(b, s) for b, s in zip(blank["cells"], solved["cells"], strict=True) if b != s]
    assert [b["id"] for b, _ in differing] == ["01-ex1", "01-ex1-check"]
    check, solved_check = differing[1]
    assert check["metadata"] == {"tags": ["raises-exception"]}, "a wrong answer does not keep Run All from later cells"
    assert check == solved_check | {"metadata": check["metadata"]}
    exercise = exercises.get("01.1")
    by_id = {cell["id"]: "".join(cell["source"]) for cell in solved["cells"]}
    assert by_id["01-ex1"] == exercise.solution
    assert by_id["01-ex1-check"] == 'check("01.1", forward_step)'
    assert by_id["01-ex1-task"].startswith("### Exercise 01.1 · ") and by_id["01-ex1-task"].endswith("Do this.")
    assert "| $\\eta$ |" in by_id["01-title"]
    assert blank["cells"][-1]["metadata"] == {"tags": ["nbval-check-output", "slow"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "line 1: text before the first"),
        ("# %% [markdwn]\n", "line 1: cannot read the cell header"),
        ("# %% exercise 1.1\n", "cannot read the cell header"),
        ("# %% id=a b\n", "cannot read the cell header"),
        ("# %% name=a\n", "unknown cell option name"),
        ("# %% id=a\n# %% id=a\n", "cell ids used twice: 01-a"),
        ("# %% exercise 01.1\n# %% exercise 01.1\n", "cell ids used twice: 01-ex1"),
    ],
)
def test_unreadable_sources_are_told(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "01_trial.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(says)):
        read_source(path)


def test_ids_hold_when_text_is_added(source: Path) -> None:
    before = [cell.id for cell in read_source(source)]
    source.write_text(
        SOURCE.replace("# %%\nimport", "# %% [markdown] id=new\n# Text.\n\n# %%\nimport"), encoding="utf-8"
    )
    after = [cell.id for cell in read_source(source)]
    assert [name for name in after if name != "01-new"] == before


def store(source: Path, root: Path) -> None:
    """Both notebooks as if they had been built and run, with an output in the last cell."""
    words = root / build.WORDS / f"{source.name[:2]}.json"
    words.parent.mkdir(parents=True)
    words.write_text(json.dumps(build.words_of(read_source(source))), encoding="utf-8")
    for folder, solved in FOLDERS.items():
        one = notebook(read_source(source), solved)
        if solved:
            for number, cell in enumerate(cell for cell in one["cells"] if cell["cell_type"] == "code"):
                cell["execution_count"] = number + 1
            one["cells"][-1]["outputs"] = [stream("1\n")]
        (root / folder).mkdir()
        (root / folder / f"{source.stem}.ipynb").write_text(build.as_json(one), encoding="utf-8")


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": [text]}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    "edit",
    [
        lambda one: one["cells"][0]["source"].append("!"),
        lambda one: one["cells"][-1]["source"].append("\n"),
        lambda one: one["cells"].pop(1),
        lambda one: one["cells"].reverse(),
        lambda one: one["cells"][1].update(id="other"),
        lambda one: one["cells"][-1]["metadata"].update(tags=[]),
        lambda one: one["metadata"].update(extra=1),
    ],
)
def test_any_hand_edit_is_drift(source: Path, tmp_path: Path, folder: str, edit: Any) -> None:
    store(source, tmp_path)
    assert drift(source, tmp_path) == []
    path = tmp_path / folder / f"{source.stem}.ipynb"
    one = json.loads(path.read_text(encoding="utf-8"))
    edit(one)
    path.write_text(build.as_json(one), encoding="utf-8")
    assert [line.split(":")[0] for line in drift(source, tmp_path)] == [folder]


def test_text_is_renewed_and_outputs_stay_while_the_code_is_the_same(source: Path, tmp_path: Path) -> None:
    store(source, tmp_path)
    source.write_text(SOURCE.replace("A title", "Another"), encoding="utf-8")
    build.build(source, tmp_path)
    solved = json.loads((tmp_path / "solutions" / "01_trial.ipynb").read_text(encoding="utf-8"))
    assert solved["cells"][0]["source"][0] == "# Another\n"
    assert solved["cells"][-1]["outputs"] == [stream("1\n")]
    source.write_text(SOURCE.replace("print(x)", "print(x + 1)"), encoding="utf-8")
    with pytest.raises(ValueError, match="the code is not the code that was run"):
        build.build(source, tmp_path)


SPOKEN = """
with plots.figure(columns=2, alt="ε, " "then δ", caption='Two "curves".') as (one, other):
    one.plot([1])
plots.image_grid(
    x,  # δ
    alt=f"Seen {x} times",
    caption="Left as it is.",
)
plots.scatter(x, alt="Four.", caption="Fourth."); plots.scatter(x, alt="Five.", caption="Fifth.")
plots.image_grid(x, columns=8,
    alt="Three.",
    caption="Third.",
    **layout)
"""


def test_the_words_of_pictures_stand_apart() -> None:
    text, words = build.without_words(Cell("code", "01-hero", SPOKEN.strip()))
    assert words == {
        "01-hero": {"alt": "ε, then δ", "caption": 'Two "curves".'},
        "01-hero-2": {"alt": "Four.", "caption": "Fourth."},
        "01-hero-3": {"alt": "Five.", "caption": "Fifth."},
        "01-hero-4": {"alt": "Three.", "caption": "Third."},
    }
    calls: list[tuple[str, dict[str, Any]]] = []

    known = words.__getitem__

    class Plots:
        words = staticmethod(known)

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                calls.append((name, options))
                return nullcontext((self, self))

            return call

    scope: dict[str, Any] = {"plots": Plots(), "x": 3, "layout": {"width": 1}}
    said = []
    for code in (SPOKEN, text):
        calls.clear()
        exec(code, dict(scope))
        said.append(list(calls))
    assert said[0] == said[1] and len(said[0]) == 6
    assert not any(word in text for word in ("then δ", "curves", "Three")) and "Left as it is" in text


def test_unknown_words_are_told() -> None:
    assert plots.words("00-guess")["caption"]
    for name in ("00-gues", "99-x", "", "../x"):
        with pytest.raises(ValueError, match="no picture"):
            plots.words(name)


def test_new_words_are_no_words_of_the_old_outputs(source: Path, tmp_path: Path) -> None:
    picture = 'plots.curves(x, alt="Old.", caption="Old.")\n'
    source.write_text(SOURCE.replace("print(x)\n", picture), encoding="utf-8")
    store(source, tmp_path)
    source.write_text(SOURCE.replace("print(x)\n", picture.replace("Old", "New")), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(ValueError, match="words of its pictures"):
            build.build(source, tmp_path)
    assert drift(source, tmp_path) == ["words: 01.json"]


def test_printed_lines_fit_the_page() -> None:
    """JupyterLab breaks a longer line inside a word, at about 107 characters on a screen 1280 pixels wide."""
    printed = {
        (path.name, line)
        for path in sorted((ROOT / "solutions").glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for out in cell.get("outputs", [])
        for line in "".join(out.get("text", [])).splitlines()
    }
    assert len(printed) > 500
    assert not [(name, line) for name, line in printed if len(line) > 106]


def test_solved_notebook_is_run_with_warnings_as_errors(tmp_path: Path) -> None:
    """Two kernels: one lesson that runs, one that warns."""
    setup = 'from ddpm_from_scratch.course import check, setup\nfrom torch import Tensor\n\nsetup("01")\n'
    good = tmp_path / "01_good.py"
    good.write_text(SOURCE.replace("import torch\n", setup), encoding="utf-8")
    build.build(good, tmp_path, run=True)
    solved = json.loads((tmp_path / "solutions" / "01_good.ipynb").read_text(encoding="utf-8"))
    texts = [line for cell in solved["cells"] for out in cell.get("outputs", []) for line in out.get("text", [])]
    assert texts == ["1\n"]
    assert "Exercise 01.1 is right" in json.dumps(solved, ensure_ascii=False)
    assert drift(good, tmp_path) == []
    bad = tmp_path / "01_bad.py"
    bad.write_text(f"# %%\n{setup}\nimport warnings\n\nwarnings.warn('late')\n", encoding="utf-8")
    with pytest.raises(build.CellExecutionError, match="late"):
        build.build(bad, tmp_path, run=True)
    assert not (tmp_path / "solutions" / "01_bad.ipynb").exists()


@pytest.mark.long
@every_lesson
def test_every_cell_runs_again_after_the_last(source: Path, tmp_path: Path) -> None:
    """A learner goes back to an exercise and runs single cells: no later cell has taken their names or files."""
    settings = {"DDPM_PROGRESS": str(tmp_path / "progress.json"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings, "MPLBACKEND": "Agg", "IPYTHONDIR": str(tmp_path)}
    script, solved = ROOT / "tests" / "rerun_process.py", ROOT / "solutions" / f"{source.stem}.ipynb"
    command = [sys.executable, str(script), str(solved)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-2000:]


def solved_with(*outputs: dict[str, Any], count: int | None = 1) -> Notebook:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["x"], "execution_count": count}
    return {"cells": [cell | {"outputs": list(outputs)}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def html(text: str) -> dict[str, Any]:
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": [text], "text/plain": ["words"]}}


PIXEL = "data:image/png;base64,/tmp/a+/home/b=="


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (solved_with(count=None), "a: not run"),
        (solved_with({"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}), "a: KeyError"),
        (solved_with(stream("x", "stderr")), "a: stderr"),
        (solved_with(stream("Traceback (most recent call last)\n")), "a: a stack trace"),
        (solved_with(stream("x.py:3: UserWarning: old\n")), "a: a warning"),
        (solved_with(stream("saved to /home/someone/x.png\n")), "a: an absolute path"),
        (solved_with(html("<b>/tmp/x</b>")), "a: an absolute path"),
        (solved_with(stream(r"C:\Users\x")), "a: an absolute path"),
        (solved_with(stream("<object at 0x7f81cc02d0a0>")), "a: a memory address"),
        (solved_with(html(f'<img src="{PIXEL}">')), "a: a picture without alt text"),
        (solved_with({"output_type": "display_data", "data": {"image/png": "x"}}), "a: a picture without alt text"),
        (solved_with(stream("x" * MAX_BYTES)), f"more than {MAX_BYTES}"),
    ],
)
def test_faults_in_outputs_are_found(one: Notebook, says: str) -> None:
    assert [says in fault for fault in faults(one)] == [True]


def test_clean_outputs_have_no_faults() -> None:
    assert len(FAULTS) == 4
    clean = f'<img alt="a" src="{PIXEL}"> see https://example.org/home/x and work/01.ipynb, 1/2, and/or'
    assert faults(solved_with(stream("3/4 of it\n"), html(clean))) == []


# ---------------------------------------------------------------- the ledger

every_equation = pytest.mark.parametrize(
    "equation", ledger.EQUATIONS, ids=lambda e: f"{e.paper}-{e.place}-{e.function}"
)


@every_equation
def test_function_computes_and_cites_its_equation(equation: ledger.Equation) -> None:
    function = pkgutil.resolve_name(f"ddpm_from_scratch.{equation.function}")
    assert equation.paper in ledger.PAPERS
    text = inspect.getsource(function) + (inspect.getmodule(function).__doc__ or "")
    number = equation.place.removeprefix("eq. ")
    pattern = rf"eq\. [\d, and-]*\b{number}\b" if number.isdigit() else re.escape(equation.place)
    assert re.search(pattern, text), f"{equation.function} does not cite {equation.paper} {equation.place}"


@every_equation
def test_equation_has_its_test(equation: ledger.Equation) -> None:
    file, _, name = equation.test.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), equation.test


@every_equation
def test_equation_is_in_its_lesson(equation: ledger.Equation) -> None:
    assert int(equation.lesson) in [lesson.number for lesson in LESSONS]
    for source in SOURCES:
        if source.name[:2] == equation.lesson:
            text = source.read_text(encoding="utf-8")
            assert f"{equation.paper} {equation.place}" in text or equation.place.startswith("above"), source.name


def test_ledger_covers_what_the_equations_module_cites() -> None:
    """Every function of `gaussian` that cites an equation of Ho or Song is in the ledger."""
    gaussian = pkgutil.resolve_name("ddpm_from_scratch.gaussian")
    listed = {equation.function for equation in ledger.EQUATIONS}
    derived = {"gaussian.eps_from_x0"}  # Ho eq. 4 solved for ε
    for name, function in inspect.getmembers(gaussian, inspect.isfunction):
        if re.search(r"(Ho|Song) eq\.", function.__doc__ or ""):
            assert f"gaussian.{name}" in listed | derived


KIND = r"eq\.|algorithm|lemma|theorem"
CITATION = re.compile(
    rf"\b({'|'.join(ledger.PAPERS)})(?:'s)?,? ((?:{KIND}) \d+(?:(?:,| and|, and) (?:(?:{KIND}) )?\d+)*)"
)


def cited(text: str) -> set[tuple[str, str]]:
    """The equations, algorithms, lemmas and theorems that a text cites by paper: ("Ho", "eq. 4"), ..."""
    found = set()
    for paper, places in CITATION.findall(text):
        kind = ""
        for named, number in re.findall(rf"({KIND})? ?(\d+)", places):
            kind = named or kind
            found.add((paper, f"{kind} {number}"))
    return found


def not_in_ledger(text: str) -> set[tuple[str, str]]:
    """What a text cites and the ledger does not know; a number without its paper must be in some paper's row."""
    known = {(equation.paper, equation.place) for equation in ledger.EQUATIONS}
    bare = {("", f"eq. {number}") for number in re.findall(r"\beq\. (\d+)", text)}
    return cited(text) - known | bare - {("", place) for _, place in known}


@every_lesson
def test_ledger_knows_what_a_lesson_cites(source: Path) -> None:
    """In texts, code and exercises; the reading list at the end names what else is in a paper."""
    texts = [cell.text for cell in read_source(source) if not cell.text.startswith("## Sources")]
    texts += [exercise.equation for exercise in exercises.of_lesson(source.name[:2])]
    assert not_in_ledger("\n".join(texts)) == set()


def test_an_equation_without_a_row_is_noticed() -> None:
    text = "By Ho eq. 6, 7 and 99, Song lemma 1, Lin algorithm 2 and eq. 16. Also Song's eq. 12; see eq. 14, eq. 1234."
    assert cited(text) == {
        *(("Ho", f"eq. {number}") for number in (6, 7, 99)),
        *(("Song", place) for place in ("lemma 1", "eq. 12")),
        *(("Lin", place) for place in ("algorithm 2", "eq. 16")),
    }
    assert not_in_ledger(text) == {("Ho", "eq. 99"), ("Lin", "algorithm 2"), ("Lin", "eq. 16"), ("", "eq. 1234")}


def test_ledger_follows_the_lessons() -> None:
    for rows in (ledger.EQUATIONS, ledger.SYMBOLS):
        assert [row.lesson for row in rows] == sorted(row.lesson for row in rows)
    assert len({symbol.here for symbol in ledger.SYMBOLS}) == len(ledger.SYMBOLS)


def test_tables_are_markdown() -> None:
    text = ledger.fill("{{notation}}\n{{equations 01}}")
    assert "{{" not in text
    for block, columns in (
        (ledger.notation_table(), 6),
        (ledger.notation_table("07"), 5),
        (ledger.equations_table(), 4),
    ):
        assert {line.count("|") for line in block.splitlines()} == {columns + 1}
    assert "gaussian.q_sample" in ledger.equations_table("01")
    assert "ddim_mean" not in ledger.equations_table("01")
    assert "| here |" in text and "forward_step" in text
