"""Grading: what students' notebooks are told, and that a hostile one gains nothing and harms nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import mistake_bank
import pytest
import torch
from typer.testing import CliRunner

from ddpm_from_scratch import cli
from ddpm_from_scratch.course import display, engine, exercises, handout
from ddpm_from_scratch.course.exercises import l03
from ddpm_from_scratch.course.grading import edition, folder, gradebook, judge, notebooks, plain, seccomp
from ddpm_from_scratch.course.grading.gradebook import Row, Status
from ddpm_from_scratch.course.grading.sandbox import Limits, SandboxEnded, bubblewrap, filter_file, why_not

ROOT = Path(__file__).resolve().parents[1]
needs_sandbox = pytest.mark.skipif(why_not() != "", reason=why_not() or "there is a sandbox")


def solved(exercise_id: str) -> str:
    """A cell with a right answer, and its check."""
    exercise = exercises.get(exercise_id)
    return f'{exercise.solution}\n\n\ncheck("{exercise_id}", {exercise.name})'


SETUP = "import torch\nfrom torch import Tensor\nfrom ddpm_from_scratch.course import check, setup\nsetup('00')"
HONEST = [SETUP, *(solved(exercise.id) for exercise in exercises.of_lesson("00"))]


def write_notebook(path: Path, cells: list[str], lesson: str = "00") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"cell_type": "code", "id": f"{lesson}-c{n}", "source": text} for n, text in enumerate(cells)]
    path.write_text(json.dumps({"cells": listed, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


# ---------------------------------------------------------------- a notebook as text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no valid JSON"),
        ('{"cells": [', "no valid JSON"),
        ("[" * 100_000, "not a notebook"),
        ("[]", "no list of cells"),
        ('{"worksheets": [{"cells": []}]}', "no list of cells"),
        ('{"cells": [{"cell_type": "code", "source": 7}]}', "no text"),
        ('{"cells": []}', "belongs to no lesson"),
        ('{"cells": [{"cell_type": "code", "id": "77-ex1", "source": ""}]}', "lesson 77 has no exercises"),
        ("\x00\xff", "no valid JSON"),
    ],
)
def test_a_broken_notebook_gets_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "work.ipynb"
    path.write_text(content, encoding="latin-1")
    rows = judge.judge(path, "ada", "work.ipynb", tmp_path, Limits())
    assert [row.status for row in rows] == [Status.BROKEN]
    assert said in rows[0].comment and "\n" not in rows[0].comment


def test_links_pipes_and_giants_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.ipynb").symlink_to(write_notebook(tmp_path / "real.ipynb", HONEST))
    os.mkfifo(tmp_path / "pipe.ipynb")
    for name in ("link", "pipe"):
        with pytest.raises(notebooks.BrokenNotebook, match="a link or no file"):
            notebooks.read(tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(notebooks, "MAX_BYTES", 10)
    with pytest.raises(notebooks.BrokenNotebook, match="larger than"):
        notebooks.read(tmp_path / "real.ipynb")


def answer(tmp_path: Path, *cells: str, exercise_id: str = "00.1", lesson: str = "00") -> notebooks.Answer:
    found = notebooks.read(write_notebook(tmp_path / "x.ipynb", list(cells), lesson)).answers
    return next(one for one in found if one.exercise.id == exercise_id)


def test_answers_are_found_where_they_are(tmp_path: Path) -> None:
    assert answer(tmp_path, solved("00.1")).cell == 0
    renamed = answer(tmp_path, "def mix(a, b, c): return a", 'check("00.1", mix)', "blend = mix")
    assert (renamed.cell, renamed.expression) == (1, "mix")
    unchecked = answer(tmp_path, "x = 1", exercises.get("00.1").solution, "y = 2")
    assert (unchecked.cell, unchecked.expression) == (1, "blend")
    by_name = answer(tmp_path, "def mix(a, b, c): return a", 'check(exercise_id="00.1", answer=mix)')
    assert (by_name.cell, by_name.expression) == (1, "mix")
    assert answer(tmp_path, "def mix(a, b, c): return a", 'check("00.1", answer=mix)').expression == "mix"
    assert answer(tmp_path, "%matplotlib inline\n!ls\n" + solved("00.1")).cell == 0
    example = answer(tmp_path, "def hasty(image, noise, amount):\n    return image", exercises.get("00.1").stub)
    assert (example.cell, example.blank) == (1, True)
    assert "no cell defines blend" in answer(tmp_path, "x = 1").problem


def test_an_answer_below_its_check_is_found(tmp_path: Path) -> None:
    right, stub, check = exercises.get("00.1").solution, exercises.get("00.1").stub, 'check("00.1", blend)'
    for cells in ([stub, check, right], [check, right], ["# emptied", check, right, "x = 1"], [check, stub, right]):
        one = answer(tmp_path, *cells)
        assert (cells[one.cell or 0], one.blank, one.again) == (right, False, False), cells
    for cells, again in (([right, check, stub], True), ([right, check, "blend = 3"], False), ([right, check], False)):
        one = answer(tmp_path, *cells)
        assert (one.cell, one.source, one.blank, one.again) == (1, 0, False, again), cells
    assert answer(tmp_path, "def mix(a, b, c): return a", 'check("00.1", mix)', stub).expression == "mix"
    assert answer(tmp_path, stub, check, "def other():\n    blend = 3").blank


@pytest.mark.parametrize("magic", ["%%time", "%%timeit -n 1", "%%capture out", "%%prun", "\n%%capture\n%%time"])
def test_a_magic_above_a_cell_hides_nothing(magic: str, tmp_path: Path) -> None:
    stub, check = exercises.get("00.1").stub, 'check("00.1", blend)'
    assert answer(tmp_path, f"{magic}\n{stub}", f"%%time\n{check}").blank
    one = answer(tmp_path, f"{magic}\n{exercises.get('00.1').solution}", f"%%time\n{check}")
    assert (one.cell, one.source, one.problem) == (1, 0, "")


def test_a_blank_answer_is_not_attempted_whatever_its_docstring(tmp_path: Path) -> None:
    exercise = exercises.get("00.1")
    stub = f'{exercise.stub}\n\n\ncheck("00.1", blend)'
    assert answer(tmp_path, stub).blank
    assert answer(tmp_path, stub.replace('"""', '"""My ', 1)).blank
    assert not answer(tmp_path, stub.replace("...", "return None")).blank
    assert not answer(tmp_path, solved("00.1")).blank
    renamed = answer(tmp_path, exercises.get("00.1").stub, 'def mine(a, b, c): ...\nblend = mine\ncheck("00.1", blend)')
    assert not renamed.blank and renamed.cell == 1
    assert answer(tmp_path, "blend = 3", stub).blank


def test_every_handed_out_lesson_is_blank_and_every_solved_one_is_not() -> None:
    for path in sorted((ROOT / "lessons").glob("*.ipynb")):
        if exercises.of_lesson(path.name[:2]):
            assert all(one.blank for one in notebooks.read(path).answers), path.name
            found = notebooks.read(ROOT / "solutions" / path.name).answers
            assert not any(one.blank or one.problem for one in found), path.name


def test_a_cell_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = {"cell_type": "code", "id": "00-ex1", "source": "def blend(image, noise, amount):\n    return ]"}
    check = {"cell_type": "code", "id": "00-ex1-check", "source": 'check("00.1", blend)'}
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"cells": [broken, check]}), encoding="utf-8")
    assert "SyntaxError" in notebooks.read(path).answers[0].problem
    row = judge.judge(path, "ada", "x.ipynb", tmp_path, Limits(), trust=True)[0]
    (line, *_) = csv.DictReader(io.StringIO(gradebook.as_csv([row])))
    assert (line["attempted"], line["right"]) == ("yes", "no") and "SyntaxError" in line["comment"]


STAR = "from ddpm_from_scratch.gaussian import *\n"
OWN = "def forward_step(x, z, b): return (1 - b) ** 0.5 * x + b**0.5 * z"


@pytest.mark.parametrize(
    ("cell", "borrowed"),
    [
        ("from ddpm_from_scratch.gaussian import forward_step", True),
        ("from ddpm_from_scratch.gaussian import forward_step as f\ndef forward_step(*a): return f(*a)", True),
        ("from ddpm_from_scratch import gaussian\ndef forward_step(*a): return gaussian.forward_step(*a)", True),
        ("import ddpm_from_scratch\ndef forward_step(*a): return getattr(ddpm_from_scratch, 'forward_step')(*a)", True),
        ("forward_step = lambda x, z, b: gaussian.forward_step(x, z, b)", True),
        ("import functools\nforward_step = functools.partial(gaussian.forward_step)", True),
        ("step = gaussian.forward_step\ndef forward_step(x, z, b): return step(x, z, b)", True),
        (f"{STAR}_f = forward_step\ndef forward_step(*a): return _f(*a)", True),
        (
            "def forward_step(*a): return gaussian.forward_step(*a)\nforward_step = torch.no_grad()(forward_step)",
            True,
        ),
        ("%%time\ndef forward_step(*a): return gaussian.forward_step(*a)", True),
        ("def conv(*a): return gaussian.forward_step(*a)\ndef forward_step(*a): return conv(*a)", True),
        ("def forward_step(*a): return conv(*a)\ndef conv(*a): return gaussian.forward_step(*a)", True),
        (STAR, True),
        (OWN, False),
        (f"{STAR}{OWN}", False),
        (f"def forward_step(*a): return gaussian.forward_step(*a)\n{OWN}", False),
        (f"x = z = gaussian.forward_step(1, 2, 0.3)\n{OWN}", False),
        (f"{OWN}\nforward_step = torch.no_grad()(forward_step)", False),
        (f"b = gaussian.forward_step\nforward_step = lambda x, z, b: x + b\n{OWN}", False),
        ("def forward_step(x, z, b):\n    return gaussian.q_sample(x, z, 1 - b)", False),
    ],
)
def test_the_packages_own_function_is_noted(tmp_path: Path, cell: str, borrowed: bool) -> None:
    one = answer(tmp_path, cell, 'check("01.1", forward_step)', exercise_id="01.1", lesson="01")
    assert one.borrowed is borrowed


# ---------------------------------------------------------------- what enters the sandbox


def loaded(lesson: str) -> types.ModuleType:
    module = types.ModuleType(f"inputs_of_{lesson}")
    exec(compile(edition.exercise_modules(lesson)[f"l{lesson}"], module.__name__, "exec"), vars(module))
    return module


NEEDED_BY_INPUTS = {"skip_channels"}
"""References that make the inputs of another exercise of their lesson, and so cannot be kept out."""


@pytest.mark.parametrize("lesson", exercises.lessons())
def test_the_edition_has_every_input_and_no_answer(lesson: str) -> None:
    module, originals = loaded(lesson), exercises.of_lesson(lesson)
    assert [exercise.id for exercise in module.EXERCISES] == [exercise.id for exercise in originals]
    for inside, outside in zip(module.EXERCISES, originals, strict=True):
        assert (inside.cases, inside.seconds) == (outside.cases, outside.seconds)
        assert inside.reference is len and not inside.mistakes and not inside.alternatives and not any(inside.hints)
        for index in range(outside.cases):
            mine, theirs = inside.case(0, index).args, outside.case(0, index).args
            assert mine.keys() == theirs.keys()
            for name, value in theirs.items():
                if isinstance(value, torch.Tensor | int | float | str):
                    assert engine.difference(mine[name], value) == ""
        for one in (outside.reference, *outside.alternatives):
            open_anyway = outside.package or getattr(one, "__module__", "") != outside.reference.__module__
            hidden = one.__name__ not in vars(module) or one.__name__ in NEEDED_BY_INPUTS
            assert open_anyway or hidden, f"{outside.id}: {one.__name__} enters the sandbox"


@pytest.mark.parametrize("lesson", exercises.lessons())
def test_the_edition_has_what_the_rest_of_the_course_imports_from_exercises(lesson: str) -> None:
    """A name that is missing there would stop the cell in which a notebook imports the course."""
    made = edition.exercise_modules(lesson)
    hidden = {edition.PACKAGE / "course" / name for name in ("exercises", "lessons")}
    asking = [path for path in edition.COURSE.rglob("*.py") if not hidden & set(path.parents)]
    wanted = [edition._imports(edition._module(path)) for path in asking]
    assert any(wanted), "no module of the course imports from exercises any more: this test can go"
    assert {module for names in wanted for module in names} <= made.keys()


@pytest.mark.parametrize("lesson", ["06", "08"])
def test_a_notebooks_first_cell_runs_in_the_edition(lesson: str, tmp_path: Path) -> None:
    path = next((ROOT / "solutions").glob(f"{lesson}_*.ipynb"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    made = edition.make(tmp_path, lesson)
    environment = {**os.environ, "PYTHONPATH": str(made)}
    code = f"{first}\nimport ddpm_from_scratch\nprint(ddpm_from_scratch.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path))


def test_a_trusted_notebook_gets_files_of_its_own(tmp_path: Path) -> None:
    """Without a sandbox it may write to them: neither the teacher's package nor the next student's has the change."""
    made = edition.make(tmp_path, "01", linked=False) / edition.PACKAGE.name
    files = [path for path in made.rglob("*") if path.is_file()]
    assert len(files) > 100 and {path.stat().st_nlink for path in files} == {1}


def test_a_lessons_cells_may_import_answers_and_not_call_them() -> None:
    """Lessons show finished answers in later cells: such a cell is not to stop at its import."""
    module = loaded("03")
    assert torch.equal(module.CENTRES, l03.CENTRES)
    with pytest.raises(RuntimeError, match="eps_weight is left out"):
        module.eps_weight(None, None)
    before, after = (edition.exercise_modules("03", asked)["l03"] for asked in ([], ["03.3"]))
    assert "def eps_weight(" not in before and "def eps_weight(" in after and "def mixture_eps(" not in after


def test_an_edition_takes_what_it_needs_from_other_lessons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "exercises").mkdir()
    (tmp_path / "lessons").mkdir()
    first = "SIZE = 3\n\ndef shared(): return SIZE\n\ndef other(): return 1\n\nEXERCISES = (Exercise(id='03.1'),)\n"
    second = (
        "from ddpm_from_scratch.course.exercises.l03 import other, shared as theirs\n\n"
        "def inputs(generator, index): return theirs()\n\ndef prior_kl(): return other()\n\n"
        "PRIOR = Exercise(id='01.5', inputs=inputs, reference=prior_kl)\nEXERCISES = (PRIOR,)\n"
    )
    (tmp_path / "exercises" / "l03.py").write_text(first, encoding="utf-8")
    (tmp_path / "exercises" / "l01.py").write_text(second, encoding="utf-8")
    cell = "from ddpm_from_scratch.course.exercises.l01 import prior_kl\n"
    (tmp_path / "lessons" / "01_x.py").write_text(cell, encoding="utf-8")
    monkeypatch.setattr(edition, "COURSE", tmp_path)
    made = edition.exercise_modules("01")
    assert set(made) == {"l01", "l03"}
    assert "def shared" in made["l03"] and "SIZE = 3" in made["l03"] and "def other" not in made["l03"]
    assert "import shared as theirs" in made["l01"] and "other" not in made["l01"] and "def prior_kl" not in made["l01"]


# ---------------------------------------------------------------- what comes out of it


class Evil:
    """Equal to everything, and a danger to whoever unpickles it."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


VALUES = [
    *(None, True, 3, 2.5, float("inf"), "text", (1, [2.0, {"a": None}]), {"x": torch.ones(2)}, ()),
    *(torch.tensor([1 + 2j, 3j]), torch.tensor(1j, dtype=torch.complex128)),
    *(torch.zeros(0, 3), torch.tensor(1.5, dtype=torch.float64), torch.arange(3), torch.ones(2, 3).t()),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    back = plain.unpack(plain.pack(value))
    assert type(back) is type(value)
    assert engine.difference(back, value) == ""
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype and torch.equal(back, value)


def test_everything_else_comes_back_as_a_name() -> None:
    back = plain.unpack(plain.pack({"answer": Evil(), "more": (torch.nn.Linear(1, 1), torch.Generator())}))
    assert type(back["answer"]).__name__ == "Evil" and type(back["answer"]) is not Evil
    assert back["answer"] != 3
    assert engine.difference(back["answer"], 3.0) == "you returned `Evil`, expected `float`"
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, list(range(plain.MAX_LEAVES + 1))):
        with pytest.raises(ValueError, match="too many parts"):
            plain.pack(value)
    assert plain.unpack(plain.pack(10**400)) is not None and len(plain.unpack(plain.pack("a" * 10**6))) == 2000
    assert len(plain.unpack(plain.pack("a" * 10**6, longest=None))) == 10**6


def test_forged_messages_are_refused() -> None:
    good = plain.pack({"value": torch.ones(3), "left": [1, (2.0, "x")]})
    dice = random.Random(0)
    for _ in range(2000):
        forged = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            forged[dice.randrange(len(forged))] = dice.randrange(256)
        try:
            plain.unpack(bytes(forged[: dice.choice([len(forged), dice.randrange(len(forged))])]))
        except ValueError as error:
            assert len(str(error)) < 500


class NoSandbox:
    """An answer that is asked in this process, through messages all the same."""

    ended = ""

    def __init__(self, function: Any) -> None:
        self.function = function

    def request(self, seconds: float, /, **request: Any) -> Any:
        inside = pytest.importorskip("ddpm_from_scratch.course.grading.inside")
        return plain.unpack(plain.pack(inside.ask(self.function, request)))


def remote_verdict(exercise: Any, function: Any) -> engine.Verdict:
    return engine.grade(judge.Remote(**vars(exercise)), judge.RemoteAnswer(NoSandbox(function), exercise))


@pytest.mark.parametrize("exercise_id", ["00.3", "01.1", "01.3", "03.5"])
def test_a_remote_answer_gets_the_verdict_that_a_local_one_gets(exercise_id: str) -> None:
    """Known mistakes, right answers, and answers that no bank knows."""
    exercise = exercises.get(exercise_id)

    def half(*args: Any) -> Any:
        return 0.5 * exercise.reference(*args)

    def broken(*args: Any) -> Any:
        raise RuntimeError("no")

    def changes(x: Any, *rest: Any) -> Any:
        result = exercise.reference(x, *rest)
        x.detach().add_(1)
        return result

    def unsure(*args: Any) -> Any:
        return exercise.reference(*args) + torch.rand(())

    answers = [
        *(mistake.answer for mistake in exercise.mistakes[:3]),
        *exercise.alternatives[:2],
        half,
        changes,
        unsure,
    ]
    for function in answers:
        local, remote = engine.grade(exercise, function), remote_verdict(exercise, function)
        assert (remote.status, remote.mistake) == (local.status, local.mistake), function.__name__
        assert remote.message.split(";")[0] == local.message.split(";")[0]
    assert "your code stopped: RuntimeError: no" in remote_verdict(exercise, broken).message
    assert mistake_bank.undiagnosed(exercise, mistake_bank.replay(exercise)) == []


def function(head: str, body: str) -> str:
    """The source of a function."""
    return f"def {head}:\n{textwrap.indent(body, '    ')}\n"


SILENT = "class MyError({}):\n    def __str__(self):\n        {}\n    __repr__ = __str__\nraise MyError"
ERRORS = {
    "its text raises": (SILENT.format("Exception", "raise ValueError('no')"), "MyError: its text cannot be shown"),
    "its text exits": (SILENT.format("Exception", "raise SystemExit"), "MyError: its text cannot be shown"),
    "its text is a number": (SILENT.format("Exception", "return 3"), "MyError: its text cannot be shown"),
    "its text has no end": (SILENT.format("Exception", "while True: pass"), "MyError: its text cannot be shown"),
    "its text is no plain text": (
        "class Text(str):\n    def strip(self): raise ValueError\n" + SILENT.format("Exception", "return Text('no')"),
        "MyError: no",
    ),
    "no exception": (SILENT.format("BaseException", "return 'no'"), "MyError: no"),
    "as good as none": (
        "class MyError(Exception):\n    def __bool__(self): return False\nraise MyError('no')",
        "MyError: no",
    ),
    "its class lies": ("class MyError(Exception):\n    __class__ = property(len)\nraise MyError('no')", "MyError: no"),
    "ends Python": ("raise SystemExit(3)", "SystemExit: 3"),
    "Ctrl-C": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "half a sign": ("raise ValueError('a\\ud800b')", "ValueError: a"),
    "before it is gone": (
        "class D:\n    def __del__(self): print('gone'); raise SystemExit\nd = D()\ndel d\nraise ValueError('no')",
        "ValueError: no",
    ),
    "long": ("raise ValueError('ab\\n' * 10**6)", "ValueError: ab"),
}
"""Cells that stop, and in which words."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", ERRORS)
def test_an_answers_error_is_told_whatever_it_is(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = pytest.importorskip("ddpm_from_scratch.course.grading.inside")
    monkeypatch.setattr(inside, "TELLING_SECONDS", 0.05)
    source, said = ERRORS[error]
    space: dict[str, Any] = {}
    exec(function("blend(image, noise, amount)", source), space)
    verdict = remote_verdict(exercises.get("00.1"), space["blend"])
    assert verdict.status == "wrong" and f"your code stopped: {said}" in verdict.message


def test_the_name_of_an_error_is_its_classs_own() -> None:
    inside = pytest.importorskip("ddpm_from_scratch.course.grading.inside")

    class Meta(type):
        __name__ = property(lambda _: "passed")  # type: ignore[assignment]

    class MyError(Exception, metaclass=Meta):
        pass

    assert inside.told(MyError("no")) == ["MyError", "no"]
    assert inside.told(type("A" * 10**6, (Exception,), {})("x" * 10**6)) == ["A" * 60, "x" * 300]


# ---------------------------------------------------------------- the sandbox itself


def verdict_of_filter(machine: str, call: int, argument: int = 0) -> int:
    """What the filter says of a system call: a small interpreter of its few instructions."""
    code = seccomp.program(machine)
    lines = [code[n : n + 8] for n in range(0, len(code), 8)]
    data = {seccomp.NUMBER: call, seccomp.MACHINE: seccomp.MACHINES[machine], seccomp.FIRST_ARGUMENT: argument}
    at = loaded_value = 0
    while True:
        kind, yes, no = int.from_bytes(lines[at][:2], "little"), lines[at][2], lines[at][3]
        value = int.from_bytes(lines[at][4:], "little")
        if kind == seccomp.RETURN:
            return value
        if kind == seccomp.LOAD:
            loaded_value = data[value]
            at += 1
            continue
        test = {
            seccomp.EQUALS: loaded_value == value,
            seccomp.AT_LEAST: loaded_value >= value,
            seccomp.ANY_BIT: bool(loaded_value & value),
        }
        at += 1 + (yes if test[kind] else no)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_lets_threads_pass_and_no_process(machine: str) -> None:
    clone = seccomp.CLONE[machine]
    assert verdict_of_filter(machine, clone, seccomp.THREAD | 0x100) == seccomp.ALLOW
    assert verdict_of_filter(machine, clone, 17) == seccomp.REFUSE | seccomp.NOT_PERMITTED
    assert verdict_of_filter(machine, seccomp.CLONE3) == seccomp.REFUSE | seccomp.NOT_IMPLEMENTED
    for numbers in seccomp.REFUSED.values():
        if machine in numbers:
            assert verdict_of_filter(machine, numbers[machine]) == seccomp.REFUSE | seccomp.NOT_PERMITTED
    assert verdict_of_filter(machine, 63) == seccomp.ALLOW  # uname, or read
    assert seccomp.program("abacus") == b""


ATTACKS = {
    "network": "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
    "another student's file": "open(SECRET).read()",
    "the solutions": "import os; os.listdir(ROOT + '/solutions')",
    "the references": "open(ROOT + '/ddpm_from_scratch/course/exercises/l01.py').read()",
    "the home folder": "import os; os.listdir(os.path.expanduser('~root') + '/.ssh')",
    "writing into Python": "import sys; open(sys.prefix + '/planted', 'w')",
    "writing into the edition": "open('/course/planted', 'w')",
    "writing beside": "open('/planted', 'w')",
    "a device": "open('/dev/planted', 'w')",
    "filling the disk": "\nfor n in range(99): open(f'big{n}', 'wb').write(bytes(10**7))",
    "filling /tmp": "\nfor n in range(99): open(f'/tmp/big{n}', 'wb').write(bytes(10**7))",
    "filling shared memory": "\nfor n in range(99): open(f'/dev/shm/big{n}', 'wb').write(bytes(10**7))",
    "memory without a name": "import os; os.memfd_create('x')",
    "fork": "import os; os.fork()",
    "a program": "import subprocess; subprocess.run(['true'])",
    "a namespace of its own": "import os; os.unshare(0x10000000) if hasattr(os, 'unshare') else os.fork()",
    "the grader's process": "import os; os.kill(os.getppid() + 10**5, 9); os.kill(GRADER, 9)",
    "the grader's secrets": "import os; os.environ['SECRET']",
}


@needs_sandbox
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_sandbox_refuses(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "reference outputs")
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / "secret.txt").write_text("42", encoding="utf-8")
    course = tmp_path / "edition"
    course.mkdir()
    names = f"PORT, ROOT, SECRET, GRADER = 9, {str(ROOT)!r}, {str(tmp_path / 'bob' / 'secret.txt')!r}, {os.getpid()}\n"
    attempt = ATTACKS[attack].strip().replace("\n", "\n    ")
    code = f"{names}try:\n    {attempt}\nexcept (OSError, KeyError):\n    print('refused')\nelse:\n    print('done')"
    with filter_file() as handle:
        command = [*bubblewrap(course, Limits(disk=50), handle), sys.executable, "-S", "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, pass_fds=[handle], timeout=60)
    assert ran.stdout == "refused\n", ran.stdout + ran.stderr


@needs_sandbox
def test_the_installed_package_is_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package inside the environment would show its references: an empty folder lies over it."""
    monkeypatch.setattr(sys, "prefix", str(ROOT))
    code = f"import os; print(os.listdir({str(ROOT)!r} + '/ddpm_from_scratch'))"
    with filter_file() as handle:
        command = [*bubblewrap(tmp_path, Limits(), handle), os.path.realpath(sys.executable), "-S", "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, pass_fds=[handle], timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


# ---------------------------------------------------------------- whole notebooks

HOSTILE = [
    SETUP + "\nimport json, os, gc",
    # monkeypatches whatever compares, writes its own progress, and says so itself
    "from ddpm_from_scratch.course import engine, display, attempt, exercise, progress\n"
    "engine.grade = lambda *a: engine.Verdict('right')\n"
    "engine.difference = lambda *a: ''\n"
    "torch.isclose = torch.allclose = lambda *a, **k: torch.tensor(True)\n"
    "open('.ddpm-progress.json', 'w').write(json.dumps({'00.1': {'status': 'right'}}))\n"
    "print('✓ Exercise 00.1 is right')\nprint('5 passed')",
    # equal to everything
    "class Always:\n    def __eq__(self, other): return True\n    def __getattr__(self, name): return self\n"
    "def blend(image, noise, amount):\n    return Always()\ncheck('00.1', blend)",
    # a danger to whoever unpickles it
    "class Bomb:\n    def __reduce__(self): return os.system, ('touch /tmp/pwned',)\n"
    "def scale_each(images, scales):\n    return Bomb()\ncheck('00.2', scale_each)",
    # looks for the reference
    "from ddpm_from_scratch.course import exercises\n"
    "def draw(mean, variance, noise):\n"
    "    return exercises.get('00.3').reference(mean, variance, noise)\ncheck('00.3', draw)",
    # a tensor that lies about itself
    "class Liar(Tensor):\n    @classmethod\n    def __torch_function__(cls, *a, **k): return torch.tensor(True)\n"
    "def condition(mean, covariance, y):\n    return torch.zeros(2).as_subclass(Liar)\ncheck('00.4', condition)",
    # takes all memory; and a check that says yes
    "def check(*a): print('right')\n"
    "def kl(mean_q, var_q, mean_p, var_p):\n    return torch.ones(25_000_000_000)\ncheck('00.5', kl)",
]
QUITTER = [
    SETUP,
    solved("00.1"),
    "def scale_each(images, scales):\n    import os\n    os._exit(0)\ncheck('00.2', scale_each)",
    solved("00.3"),
]


def marks(rows: list[Row], student: str) -> str:
    return " ".join(row.mark for row in rows if row.student == student)


@needs_sandbox
def test_long_cells_and_odd_results_cost_no_marks(tmp_path: Path) -> None:
    """All of a lesson in one cell of many lines; and a result of no form that is sent, before right answers."""
    words = "# a long remark\n" * 300
    merged = "\n".join([SETUP, words, *(solved(exercise.id) for exercise in exercises.of_lesson("00"))])
    nested = (
        "def blend(image, noise, amount):\n    return torch.quantize_per_tensor(image.float(), 1.0, 0, torch.qint8)"
    )
    odd = [SETUP, f'{nested}\ncheck("00.1", blend)', *HONEST[2:-1], "1 / 0\n" + solved("00.5")]
    for name, cells in (("merged", [merged]), ("odd", odd)):
        write_notebook(tmp_path / name / "00.ipynb", cells)
        rows = judge.judge(tmp_path / name / "00.ipynb", name, "00.ipynb", tmp_path, Limits())
        assert rows[-1].comment == "its cell stopped: ZeroDivisionError: division by zero" or name == "merged"
        assert marks(rows, name) == ("✓ ✓ ✓ ✓ ✓" if name == "merged" else "✗ ✓ ✓ ✓ !"), [row.comment for row in rows]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")], "no edition is left behind"


@needs_sandbox
def test_shell_commands_and_windows_stop_no_cell(tmp_path: Path) -> None:
    """They cannot work in the sandbox, and need not."""
    lines = [
        "!pip install einops",
        "%pip install einops\nfiles = !ls\nprint(files.n)",
        "%matplotlib inline",
        "%matplotlib widget",
        "%%capture",
    ]
    cells = [f"{line}\n{solved(one.id)}" for line, one in zip(lines, exercises.of_lesson("00"), strict=True)]
    write_notebook(tmp_path / "00.ipynb", [SETUP, *cells])
    rows = judge.judge(tmp_path / "00.ipynb", "ada", "00.ipynb", tmp_path, Limits())
    assert marks(rows, "ada") == "✓ ✓ ✓ ✓ ✓", [row.comment for row in rows]


@needs_sandbox
def test_the_reason_is_the_one_that_stopped_the_answer(tmp_path: Path) -> None:
    """The check of a name that is missing stops its own cell with a NameError: no reason, and said once at most."""
    first, second, third = exercises.of_lesson("00")[:3]
    wrong = "def blend(*_):\n    return 0"
    cells = [
        *(SETUP, 'check("00.4", condition)', f"{wrong}\nassert blend() == 1", 'check("00.1", blend)', first.solution),
        *(f"import not_there\n{second.solution}", 'check("00.2", scale_each)'),
        *(third.stub, 'check("00.3", draw)', third.solution),
    ]
    write_notebook(tmp_path / "00.ipynb", cells)
    rows = judge.judge(tmp_path / "00.ipynb", "ada", "00.ipynb", tmp_path, Limits())
    assert marks(rows, "ada") == "✗ ! ✓ ? ?", [row.comment for row in rows]
    assert "(its cell stopped: AssertionError) (a later cell defines blend again" in rows[0].comment
    assert rows[1].comment == "its cell stopped: ModuleNotFoundError: No module named 'not_there'"
    assert rows[3].comment == "no condition where exercise 00.4 is checked: renamed?"
    cells = [SETUP, "1 / 0", 'check("00.4", condition)', 'from helper import kl\ncheck("00.5", kl)']
    write_notebook(tmp_path / "00.ipynb", cells)
    rows = judge.judge(tmp_path / "00.ipynb", "ada", "00.ipynb", tmp_path, Limits())
    for row, stop in zip(rows[3:], ("ZeroDivisionError: division by zero", "ModuleNotFoundError"), strict=True):
        assert "where exercise 00." in row.comment and f" is checked (a cell stopped: {stop}" in row.comment


@needs_sandbox
def test_an_error_that_cannot_be_told_costs_no_other_marks(tmp_path: Path) -> None:
    """In cells, in an answer, in what an answer gives, and where an answer is looked for."""
    cells = [source for name, (source, _) in ERRORS.items() if name != "its text has no end"]
    blend = function("blend(image, noise, amount)", cells[0]) + "check('00.1', blend)"
    text = "class Text(str):\n    def __str__(self): raise SystemExit\nreturn Text()"
    scale_each = function("scale_each(images, scales)", text) + "check('00.2', scale_each)"
    draw = function("draw(mean, variance, noise)", "raise KeyboardInterrupt") + "check('00.3', draw)"
    condition = function("unknown()", cells[0]) + function("late()", "check('00.4', unknown())") + "unknown()"
    write_notebook(tmp_path / "00.ipynb", [SETUP, *cells, blend, scale_each, draw, condition, solved("00.5")])
    rows = judge.judge(tmp_path / "00.ipynb", "ada", "00.ipynb", tmp_path, Limits())
    assert marks(rows, "ada") == "✗ ✗ ✗ ? ✓", [row.comment for row in rows]
    said = "MyError: its text cannot be shown"
    for row, words in zip(rows, (said, "SystemExit", "KeyboardInterrupt"), strict=False):
        assert row.comment.endswith(f"your code stopped: {words}")
    assert rows[3].comment == f"{said} (a cell stopped: {said})"


@needs_sandbox
def test_a_class_is_graded(tmp_path: Path) -> None:
    write_notebook(tmp_path / "class/honest/00.ipynb", HONEST)
    write_notebook(tmp_path / "class/hostile/00.ipynb", HOSTILE)
    write_notebook(tmp_path / "class/quitter/00.ipynb", QUITTER)
    (tmp_path / "class/broken.ipynb").write_text("{", encoding="utf-8")
    rows = folder.grade_folder(tmp_path / "class", tmp_path / "book", Limits(seconds=120, cell_seconds=20), jobs=2)
    assert marks(rows, "honest") == "✓ ✓ ✓ ✓ ✓"
    assert marks(rows, "hostile") == "✗ ✗ ✗ ✗ ✗"
    assert marks(rows, "quitter") == "✓ ! ! ? ?"
    assert marks(rows, "broken") == "!"
    said = {(row.student, row.exercise): row.comment for row in rows}
    assert "you returned `Always`" in said["hostile", "00.1"]
    assert "you returned `Bomb`" in said["hostile", "00.2"]
    assert "memory" in said["hostile", "00.5"]
    assert "ended its own process" in said["quitter", "00.2"]
    written = [(tmp_path / "book" / name).read_text(encoding="utf-8") for name in ("gradebook.csv", "gradebook.md")]
    assert written == [gradebook.as_csv(rows), gradebook.as_table(rows)]
    assert {path.name for path in (tmp_path / "class").iterdir()} == {"broken.ipynb", "hostile", "honest", "quitter"}


STUBBORN = {
    "loops for ever": ("while True: pass", "✓ ✓", ""),
    "stops with an error whose text has no end": (ERRORS["its text has no end"][0], "✓ ✓", ""),
    "loops and takes no signal": (
        "import signal\nsignal.signal = signal.setitimer = print\nsignal.pthread_sigmask(0, {signal.SIGALRM})\n"
        "while True: pass",
        "✓ !",
        "did not finish",
    ),
    "catches every exception": (
        "def loop():\n    while True: pass\nwhile True:\n    try: loop()\n    except BaseException: pass",
        "✓ ✓",
        "",
    ),
    "forks without end": ("import os\nwhile True: os.fork()", "✓ ✓", ""),
    "writes to every pipe": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'passed' * 9)\n    except OSError: pass",
        "✓ !",
        "pipe",
    ),
    "reads the grader's requests": (
        "import os, threading\n"
        "def steal():\n    for n in range(3, 64):\n        try: os.read(n, 10**6)\n        except OSError: pass\n"
        "threading.Thread(target=steal, daemon=True).start()\nimport time; time.sleep(1)",
        "✓ !",
        "",
    ),
    "eats memory bit by bit": ("hoard = []\nwhile True: hoard.append(torch.ones(10**7))", "✓ ✓", ""),
    "floods its output": ("while True: print('passed' * 10**4)", "✓ ✓", ""),
}


@pytest.mark.long
@needs_sandbox
@pytest.mark.parametrize("attack", STUBBORN)
def test_a_stubborn_notebook_harms_nothing(attack: str, tmp_path: Path) -> None:
    source, expected, said = STUBBORN[attack]
    write_notebook(tmp_path / "class/a.ipynb", [SETUP, solved("00.1"), source, solved("00.2")])
    limits = Limits(seconds=60, cell_seconds=4, memory=1000)
    started = time.monotonic()
    rows = folder.grade_folder(tmp_path / "class", tmp_path / "book", limits, jobs=1)
    assert time.monotonic() - started < 120
    assert marks(rows[:2], "a") == expected, [row.comment for row in rows]
    assert said in rows[1].comment


@pytest.mark.long
def test_trusted_notebooks_run_without_a_sandbox(tmp_path: Path) -> None:
    own_files = "import os, ddpm_from_scratch\nassert os.stat(ddpm_from_scratch.__file__).st_nlink == 1\n"
    write_notebook(tmp_path / "class/a.ipynb", [SETUP, own_files + HONEST[1], *HONEST[2:]])
    rows = folder.grade_folder(tmp_path / "class", tmp_path / "book", Limits(seconds=120), trust=True)
    assert marks(rows, "a") == "✓ ✓ ✓ ✓ ✓"


@pytest.mark.long
@needs_sandbox
def test_ctrl_c_leaves_the_gradebook_of_what_was_graded(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class/a.ipynb").write_text("{", encoding="utf-8")
    write_notebook(tmp_path / "class/b.ipynb", [SETUP, "import time; time.sleep(100)", solved("00.1")])
    command = [sys.executable, "-m", "ddpm_from_scratch", "course", "grade", str(tmp_path / "class"), "--jobs", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    book = tmp_path / "class/gradebook.csv"
    for _ in range(600):
        if book.exists() and "broken" in book.read_text(encoding="utf-8"):
            break
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "what was graded so far" in error and "Traceback" not in error
    rows = list(csv.DictReader(io.StringIO(book.read_text(encoding="utf-8"))))
    assert [row["notebook"] for row in rows] == ["a.ipynb"]


# ---------------------------------------------------------------- the folder and the gradebook


def test_refuses_without_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_notebook(tmp_path / "a.ipynb", HONEST)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="needs Linux; with --trust"):
        folder.grade_folder(tmp_path, tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="^grading needs Linux, or with --trust a Mac$"):
        folder.grade_folder(tmp_path, tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt install bubblewrap.*with --trust"):
        folder.grade_folder(tmp_path, tmp_path)
    for message, said in (
        ("Unknown option --size", "0.8 or newer"),
        ("setting up uid map: Permission denied", "on Ubuntu 24.04 and newer: sudo sysctl -w"),
        ("No permissions", r"here \(bwrap: No permissions\)"),
    ):
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\necho 'bwrap: {message}' >&2\nexit 1\n", encoding="utf-8")
        (tmp_path / "bwrap").chmod(0o755)
        with pytest.raises(ValueError, match=said):
            folder.grade_folder(tmp_path, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ipynb", "bwrap"]


def test_grading_can_be_imported_where_there_is_no_forkserver() -> None:
    """So that a teacher on Windows reads the sentence above."""
    as_there = "from multiprocessing import context; del context.ForkServerContext"
    lines = [as_there, "import ddpm_from_scratch.course.grading.folder"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)


def test_notebooks_are_found_below_the_folder(tmp_path: Path) -> None:
    for name in ("ada/01.ipynb", "ada/02.ipynb", "bob.IPYNB", "ada/.ipynb_checkpoints/01-checkpoint.ipynb"):
        write_notebook(tmp_path / name, [])
    found = folder.find(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["ada/01.ipynb", "ada/02.ipynb", "bob.IPYNB"]
    assert [folder.student_of(path, tmp_path) for path in found] == ["ada", "ada", "bob"]
    for missing in (tmp_path / "nowhere", tmp_path / "ada/.ipynb_checkpoints"):
        missing.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="no notebooks|no folder"):
            folder.find(missing / "x" if missing.name == "nowhere" else tmp_path / "nowhere")


ROWS = [
    Row("ada", "ada/01.ipynb", "01.1", "One step", Status.RIGHT),
    Row("ada", "ada/01.ipynb", "01.2", "What is left", Status.RIGHT, borrowed=True),
    Row("=HYPERLINK(1)", "b.ipynb", "01.1", "One step", Status.WRONG, 2, comment="you | did\x1b[31m\n<b>that</b>"),
    Row("=HYPERLINK(1)", "b.ipynb", "01.2", "What is left", Status.NOT_ATTEMPTED),
    Row("carl", "c.ipynb", comment="not a notebook \ud800\x00"),
]


def test_who_handed_nothing_in_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "class/ada").mkdir(parents=True)
    (tmp_path / "class/ada/a.ipynb").write_text("{", encoding="utf-8")
    for name in ("bob", ".git", "__pycache__", "book"):
        (tmp_path / "class" / name).mkdir()
    for name in ("carol.zip", "dora.ipynb.txt", ".hidden", *gradebook.FILES):
        (tmp_path / "class" / name).touch()
    rows = folder.grade_folder(tmp_path / "class", tmp_path / "class/book", trust=True)
    missing = [(row.student, row.notebook) for row in rows if row.status is Status.MISSING]
    assert missing == [("bob", "bob/"), ("carol", "carol.zip"), ("dora.ipynb", "dora.ipynb.txt")]
    assert [row.student for row in rows if row.status is Status.BROKEN] == ["ada"] and len(rows) == 4
    assert "- bob/: no notebook here" in gradebook.as_table(rows)
    assert "- carol.zip: no notebook: its name does not end in .ipynb" in gradebook.as_table(rows)
    names = sorted(path.name for path in (tmp_path / "class/book").iterdir())
    assert names == [gradebook.CSV, gradebook.TABLE, gradebook.JUNIT]


@pytest.mark.parametrize("given", ["class", "{here}/class"])
@pytest.mark.parametrize("output", ["class/book", "{here}/class/book", "class/../class/book", "class/book/week 1"])
def test_the_gradebooks_own_folder_is_no_student(
    given: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ada", "bob", "book"):
        (tmp_path / "class" / name).mkdir(parents=True)
    (tmp_path / "class/ada/a.ipynb").write_text("{", encoding="utf-8")
    idle = folder.idle(Path(given.format(here=tmp_path)), Path(output.format(here=tmp_path)))
    assert [path.name for path in idle] == ["bob"]


def test_an_empty_name_is_no_folder_and_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for command in ("grade", "handout"):
        assert "an empty name is no folder" in CliRunner().invoke(cli.app, ["course", command, ""]).output
    (tmp_path / "home/class").mkdir(parents=True)
    (tmp_path / "home/class/a.ipynb").write_text("{", encoding="utf-8")
    given = ["course", "grade", "~/class", "--output", "~/book", "--trust"]
    assert CliRunner().invoke(cli.app, given, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "home/book" / gradebook.CSV).exists() and not (tmp_path / "~").exists()


def test_an_older_gradebook_stays_until_there_is_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ipynb").write_text("{", encoding="utf-8")
    (tmp_path / gradebook.CSV).write_text("of last week", encoding="utf-8")
    monkeypatch.setattr(folder, "_judged", lambda *_: iter(()))
    folder.grade_folder(tmp_path, tmp_path, trust=True)
    assert (tmp_path / gradebook.CSV).read_text(encoding="utf-8") == "of last week"


def test_the_gradebook_as_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(gradebook.as_csv(ROWS))))
    assert len(lines) == len(ROWS)
    assert [line["right"] for line in lines] == ["yes", "yes", "no", "no", "no"]
    assert [line["attempted"] for line in lines] == ["yes", "yes", "yes", "no", "no"]
    assert [line["mistake"] for line in lines] == ["", "", "3", "", ""]
    assert [line["package"] for line in lines] == ["no", "yes", "no", "no", "no"]
    assert lines[2]["student"] == "'=HYPERLINK(1)"
    assert lines[2]["comment"] == "you | did[31m <b>that</b>"


@pytest.mark.parametrize("name", ["\t=1+1.ipynb", " =1+1.ipynb", "\u200b=1+1.ipynb", "=1+1.ipynb"])
def test_a_notebooks_name_is_no_formula(name: str) -> None:
    (line,) = csv.DictReader(io.StringIO(gradebook.as_csv([Row(name, name)])))
    assert line["notebook"] == line["student"] == "'=1+1.ipynb"


def test_the_gradebook_as_a_table() -> None:
    table = gradebook.as_table(ROWS)
    head, rule, ada, bob = table.splitlines()[:4]
    assert {line.count("|") for line in (head, rule, ada)} == {6}
    assert ada.split() == ["|", "ada", "|", "ada/01.ipynb", "|", "✓", "|", "(✓)", "|", "2", "of", "2", "|"]
    assert "0 of 2" in bob and "\x1b" not in table
    assert "- b.ipynb 01.1: you \\| did\\[31m \\<b>that\\</b>" in table
    assert gradebook.as_table([]) == "\n"


def test_the_gradebook_as_junit() -> None:
    suites = ElementTree.fromstring(gradebook.as_junit(ROWS))
    counts = [[suite.get(name) for name in ("tests", "failures", "errors", "skipped")] for suite in suites]
    assert counts == [["2", "0", "0", "0"], ["2", "1", "0", "1"], ["1", "0", "1", "0"]]


def test_every_write_is_whole_and_in_order(tmp_path: Path) -> None:
    gradebook.write(list(reversed(ROWS)), tmp_path / "book")
    gradebook.write(ROWS, tmp_path / "again")
    for name in (gradebook.CSV, gradebook.TABLE, gradebook.JUNIT):
        assert (tmp_path / "book" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert len(list((tmp_path / "book").iterdir())) == 3


def test_a_student_whose_name_is_no_text_gets_a_row(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller")
    gradebook.write([*ROWS, Row(name, f"{name}/01.ipynb", status=Status.BROKEN, comment="no notebook")], tmp_path)
    assert all(
        "ller/01.ipynb" in (tmp_path / file).read_text(encoding="utf-8") for file in (gradebook.CSV, gradebook.TABLE)
    )


def test_an_ended_sandbox_is_told_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        ended = "gone"
        limits = Limits()

        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Gone:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def ready(self) -> None:
            raise SandboxEnded("it did not start")

    monkeypatch.setattr(judge, "Sandbox", Gone)
    rows = judge.judge(write_notebook(tmp_path / "x.ipynb", HONEST), "ada", "x.ipynb", tmp_path, Limits())
    assert {row.status for row in rows} == {Status.NOT_RUN}
    assert rows[0].comment == "not run to here: it did not start"


# ---------------------------------------------------------------- the handout edition


def test_the_handout_has_what_a_student_needs_and_no_solutions(tmp_path: Path) -> None:
    target = tmp_path / "handout"
    count = handout.write(target)
    assert count == len(list((ROOT / "lessons").glob("*.ipynb")))
    names = {path.name for path in target.iterdir()}
    assert names == {*handout.CONTENTS, "README.md"}
    assert (target / handout.MARK.relative_to(ROOT)).exists()
    assert not any("executed" in path.name or path.name == "solutions" for path in target.rglob("*"))
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=target, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {*handout.TARGETS}
    makefile = (target / "Makefile").read_text(encoding="utf-8")
    assert not any(word in makefile for word in ("tests", "uv pip", "course.build"))
    with pytest.raises(ValueError, match="not empty"):
        handout.write(target)
    with pytest.raises(ValueError, match="inside what is copied"):
        handout.write(ROOT / "lessons" / "mine")
    with pytest.raises(ValueError, match="clone"):
        handout.write(tmp_path / "other", root=tmp_path)


def test_a_handout_shows_no_solution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise = exercises.get("01.1")
    line = exercise.solution.splitlines()[-1].strip()
    assert line in display._folded(exercise)
    assert not handout.is_handout()
    monkeypatch.setattr(handout, "MARK", tmp_path)
    assert line not in display._folded(exercise) and "Hint 3" in display._folded(exercise)
    with pytest.raises(display.CourseError, match="without solutions"):
        display.solution("01.1")
    display.hint("01.1", 3)
    assert "solution(" not in capsys.readouterr().out
    assert "solution" not in display._help(exercise, "Stuck?").text
