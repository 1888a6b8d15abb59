"""The exercises: the bank against itself, the engine's diagnoses, and what a learner sees."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import pkgutil
import random
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from line_counts import code_lines
from mistake_bank import replay, undiagnosed
from torch import Tensor, nn

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.course import check, display, exercises, hint, progress, solution
from ddpm_from_scratch.course.display import CourseError, Panel, WrongAnswer
from ddpm_from_scratch.course.engine import difference, grade
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.course.progress import read, record, rows

BANK = exercises.all_exercises()
every_exercise = pytest.mark.parametrize("exercise", BANK, ids=[exercise.id for exercise in BANK])


@pytest.fixture(autouse=True)
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "progress.json"
    monkeypatch.setenv("DDPM_PROGRESS", str(path))
    return path


# ---------------------------------------------------------------- the bank


def body_lines(source: str) -> int:
    """Lines of code of a definition, its signature apart."""
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef | ast.ClassDef)
    return len([line for line in code_lines(source) if line >= definition.body[0].lineno])


def test_ids_follow_the_lessons() -> None:
    for lesson in exercises.lessons():
        ids = [exercise.id for exercise in exercises.of_lesson(lesson)]
        assert ids == [f"{lesson}.{number}" for number in range(1, len(ids) + 1)]


@every_exercise
def test_exercise_is_complete(exercise: Exercise) -> None:
    assert exercise.title and exercise.where
    assert exercise.difficulty in (1, 2, 3) and exercise.minutes >= 1 and exercise.cases >= 3
    assert len(exercise.hints) == 3 and len(set(exercise.hints)) == 3 and all(exercise.hints)
    assert len(exercise.mistakes) >= 5
    assert len(exercise.alternatives) >= 4


@every_exercise
def test_bank_is_refused_and_alternatives_are_accepted(exercise: Exercise) -> None:
    """Each mistake gets its own sentence, so none equals another one or the reference; float32 and float64 alike.

    The sentence speaks to the learner and does not give the answer away.
    """
    verdicts = replay(exercise)
    assert undiagnosed(exercise, verdicts) == []
    messages = [verdict.message for verdict in verdicts]
    assert len(set(messages)) == len(messages)
    for message in messages:
        assert message.startswith(("you ", "your ")), message
        assert "{" not in message and "nan" not in message.split(), message
        assert not any(line in message for line in solution_lines(exercise)), "the sentence gives the answer away"


@every_exercise
def test_the_packages_component_is_right_and_the_reference_not_the_learners_own(exercise: Exercise) -> None:
    if exercise.package:
        verdict = grade(exercise, pkgutil.resolve_name(exercise.package))
        assert (verdict.status, verdict.message, verdict.borrowed) == ("right", "", True)
    assert grade(exercise, exercise.reference).borrowed


@every_exercise
def test_stub_is_typed_and_unattempted(exercise: Exercise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = ast.parse(exercise.stub).body[-1]
    assert isinstance(definition, ast.FunctionDef | ast.ClassDef)
    assert definition.name == exercise.name
    assert ast.get_docstring(definition)
    for function in [node for node in ast.walk(definition) if isinstance(node, ast.FunctionDef)]:
        assert function.returns is not None, f"{function.name} has no return type"
        arguments = [a for a in function.args.args + function.args.kwonlyargs if a.arg != "self"]
        assert all(a.annotation is not None for a in arguments), f"{function.name} has untyped arguments"
    (tmp_path / "answer_file.py").write_text(f"from __future__ import annotations\n{exercise.stub}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "answer_file", raising=False)
    namespace = __import__("answer_file").__dict__
    assert grade(exercise, namespace[exercise.name]).status == "unattempted"


def solution_lines(exercise: Exercise) -> list[str]:
    """The lines of the solution that a hint or a sentence must not contain."""
    numbered = enumerate(exercise.solution.splitlines(), start=1)
    code = code_lines(exercise.solution)
    lines = [line.strip() for number, line in numbered if number in code][1:]
    return [line for line in lines if len(line) > 12]


@every_exercise
def test_hints_do_not_hold_the_solution(exercise: Exercise) -> None:
    """The skeleton may show less than half of the lines, the other two hints none."""
    lines = solution_lines(exercise)
    for text, share in zip(exercise.hints, (0, 0, 0.5), strict=True):
        assert sum(line in text for line in lines) <= share * (len(lines) - 1), text


@every_exercise
def test_reference_keeps_the_line_budget(exercise: Exercise) -> None:
    assert body_lines(exercise.solution) <= exercise.lines


@every_exercise
def test_inputs_vary_and_repeat(exercise: Exercise) -> None:
    state = torch.get_rng_state()
    cases = [exercise.case(seed, index) for seed in (0, 1) for index in range(exercise.cases)]
    again = [exercise.case(seed, index) for seed in (0, 1) for index in range(exercise.cases)]
    assert torch.equal(state, torch.get_rng_state()), "inputs are drawn from the global random state"
    outputs = [exercise.output(exercise.reference, case) for case in cases]
    repeated = [exercise.output(exercise.reference, case) for case in again]
    assert not any(difference(one, other) for one, other in zip(outputs, repeated, strict=True))
    assert all(difference(outputs[0], other) for other in outputs[1 : exercise.cases]), "two cases are alike"
    shapes = {tuple(tuple(v.shape) for v in case.args.values() if isinstance(v, Tensor)) for case in cases}
    values = {str(case.args) for case in cases}
    assert max(len(shapes), len(values)) >= 3


@every_exercise
def test_picture_is_drawn(exercise: Exercise) -> None:
    if exercise.picture:
        figure = exercise.picture(exercise.reference)
        assert figure.get_axes()


def test_an_answer_outside_the_bank_is_told_of_no_type_that_it_did_not_return() -> None:
    loop, step = exercises.get("08.6"), exercises.get("08.2")

    def levels_multiplied_again(predict: Any, x_T: Tensor, timesteps: Any, alpha_bar: Tensor, *rest: Any) -> Tensor:
        return loop.reference(predict, x_T, timesteps, alpha_bar.cumprod(0), *rest)  # ends in a division by zero

    def beyond_the_room(x_t: Tensor, eps: Tensor, noise: Tensor, *levels: float) -> Tensor:
        return step.reference(x_t, eps, noise, *levels) + (levels[1] - 2) ** 0.5 * eps  # complex

    for exercise, answer, says in ((loop, levels_multiplied_again, "not finite"), (step, beyond_the_room, "complex64")):
        message = grade(exercise, answer).message
        assert says in message and "`str`" not in message


def test_unknown_id_is_told() -> None:
    with pytest.raises(ValueError, match=r"no exercise '00.99'.*00\.1, 00\.2"):
        exercises.get("00.99")
    with pytest.raises(ValueError, match=r"no exercise '77.1'.*00\.1"):
        exercises.get("77.1")
    with pytest.raises(ValueError, match="write the id as text"):
        exercises.get(1.2)  # type: ignore[arg-type]


def stretched_by_the_shifted_table(betas: Tensor) -> Tensor:
    root = torch.cumprod(1 - betas, 0) ** 0.5
    root = root - root[-1]
    root = root * root[0] / (root[0] - root[-1])
    return 1 - torch.cat([root[:1], root[1:] / root[:-1]]) ** 2


def finer_width_from_below(widths: list[int], layers: int, skips: list[int]) -> list[int]:
    finer = [width for width in widths for _ in range(layers + 1)]
    finer = [widths[0], *finer[:-1]]
    return [below + skip for below, skip in zip(reversed(finer), reversed(skips), strict=True)]


@pytest.mark.parametrize(
    ("exercise", "answer", "says"),
    [
        ("02.4", stretched_by_the_shifted_table, "took the factor from the shifted table, where it is 1"),
        ("05.2", finer_width_from_below, "you let what comes from below be as wide as the skip"),
        ("07.1", lambda x, e, a, p: (x - (1 - a) ** 0.5 * e) / (a / p) ** 0.5, "the noise of all steps up to t = 700"),
        ("07.1", lambda x, e, a, p: p**0.5 * gaussian.x0_from_eps(x, e, a), "the noise of all steps up to t = 700"),
    ],
)
def test_a_sentence_holds_for_each_way_to_the_same_numbers(
    exercise: str, answer: Callable[..., Any], says: str
) -> None:
    verdict = grade(exercises.get(exercise), answer)
    assert verdict.mistake is not None and says in verdict.message, verdict


@pytest.mark.parametrize("exercise", ["01.2", "07.5", "11.3"])
def test_a_dtype_that_a_docstring_names_is_asked_for(exercise: str) -> None:
    right = exercises.get(exercise)
    assert "float64" in grade(right, lambda *args: right.reference(*args).double()).message


@pytest.mark.parametrize("exercise", ["07.4", "08.4"])
@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, lambda found: [float(t) for t in found]])
def test_timesteps_may_come_in_any_sequence(exercise: str, form: Callable[[list[int]], Any]) -> None:
    right = exercises.get(exercise)
    assert grade(right, lambda *args: form(right.reference(*args))).status == "right"
    assert grade(right, lambda *args: form([t + 0.5 for t in right.reference(*args)])).status == "wrong"


# ---------------------------------------------------------------- the engine, on an exercise of its own


def jump(x0: Tensor, noise: Tensor, alpha_bar_t: float | Tensor) -> Tensor:
    """x_t from x_0."""
    return alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise


def jump_inputs(generator: torch.Generator, index: int) -> Case:
    shape = ((4, 3, 5, 5), (6, 2), (2, 1, 3, 3))[index]
    alpha_bar = (0.3, 0.9, 0.6)[index]
    x0, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return Case({"x0": x0, "noise": noise, "alpha_bar_t": alpha_bar}, {"t": (500, 50, 300)[index]})


JUMP = Exercise(
    id="99.1",
    title="A jump",
    difficulty=1,
    minutes=1,
    equation="Ho eq. 4",
    where="Jump",
    lines=1,
    reference=jump,
    inputs=jump_inputs,
    hints=("a", "b", "c"),
    mistakes=(
        Mistake(lambda x, e, a: a * x + (1 - a) * e, "you left out the roots at t = {t}, ᾱ = {alpha_bar_t}"),
        Mistake(
            lambda x, e, a: a**0.5 * x + (1 - a) * e,
            lambda at: f"you scaled the noise by {1 - at.alpha_bar_t:.1f}; {tuple(at.yours.shape)}",
        ),
        Mistake(lambda x, e, a: a**0.5 * x + (1 - a) ** 0.5 * torch.rand_like(x), "you drew uniform noise"),
        Mistake(lambda x, e, a: (x[:, 0] if x.ndim > 3 else x.reshape(7, 7)) * a, "you took one channel"),
    ),
    alternatives=(),
    cases=3,
    seconds=5.0,
    package="ddpm_from_scratch.gaussian.q_sample",
)


def message(answer: Callable[..., Any], exercise: Exercise = JUMP) -> str:
    """The message to a wrong answer outside the bank."""
    verdict = grade(exercise, answer)
    assert (verdict.status, verdict.mistake) == ("wrong", None), verdict
    return verdict.message


def test_right_answers_of_every_kind_of_callable() -> None:
    class Callable_:
        def __call__(self, x: Tensor, e: Tensor, a: float) -> Tensor:
            return jump(x, e, a)

    namespace: dict[str, Any] = {}
    exec("def jump(x, e, a):\n    return a**0.5 * x + (1 - a)**0.5 * e", namespace)
    swapped = functools.partial(lambda scale, x, e, a: scale * jump(x, e, a), 1.0)
    for answer in (jump, lambda x, e, a: jump(x, e, a), swapped, Callable_(), Callable_().__call__, namespace["jump"]):
        assert grade(JUMP, answer).status == "right"
    assert grade(JUMP, gaussian.q_sample).borrowed
    assert not grade(JUMP, jump).borrowed


def test_known_mistakes_are_named_with_the_numbers_of_the_case() -> None:
    assert message_of(lambda x, e, a: a * x + (1 - a) * e, 0) == "you left out the roots at t = 500, ᾱ = 0.3"
    assert message_of(lambda x, e, a: a**0.5 * x - (a - 1) * e, 1) == "you scaled the noise by 0.7; (4, 3, 5, 5)"
    assert message_of(lambda x, e, a: (1 - a) ** 0.5 * torch.rand_like(x) + a**0.5 * x, 2) == "you drew uniform noise"


def test_half_of_a_first_power_is_told_from_a_root() -> None:
    exercise = exercises.get("01.1")
    assert grade(exercise, lambda x, e, b: (1 - b) ** (1 / 2) * x + b ** (1 / 2) * e).status == "right"
    verdict = grade(exercise, lambda x, e, b: (1 - b) ** 1 / 2 * x + b**1 / 2 * e)
    assert verdict.mistake is not None and "**1/2, which Python reads as (... ** 1) / 2" in verdict.message


def test_a_mistake_may_raise_on_some_inputs() -> None:
    def one_channel(x: Tensor, e: Tensor, a: float) -> Tensor:
        return a * (x[:, 0] if x.ndim > 3 else x.view(100))

    assert message_of(one_channel, 3) == "you took one channel"


def message_of(answer: Callable[..., Any], number: int) -> str:
    verdict = grade(JUMP, answer)
    assert (verdict.status, verdict.mistake) == ("wrong", number), verdict
    return verdict.message


def write_answer(folder: Path, source: str, name: str = "jump") -> Any:
    """The function `name` of a file with `source`, so that its own lines can be shown."""
    path = folder / "learner.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    namespace: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "nn": nn}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    return namespace[name]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("...", "unattempted"),
        ('"""Another text."""\n    ...', "unattempted"),
        ("# a thought\n    ...", "unattempted"),
        ("pass", "wrong"),
        ("return None", "wrong"),
        ("return", "wrong"),
        ("raise NotImplementedError", "wrong"),
        ("return ...", "wrong"),
        ("x0 * 2", "wrong"),
    ],
)
def test_only_the_untouched_stub_is_unattempted(tmp_path: Path, body: str, status: str) -> None:
    answer = write_answer(tmp_path, f"def jump(x0, noise, alpha_bar_t):\n    {body}\n")
    assert grade(JUMP, answer).status == status


def test_stub_without_source_is_unattempted() -> None:
    namespace: dict[str, Any] = {"Tensor": Tensor}
    exec(JUMP.stub, namespace)
    assert grade(JUMP, namespace["jump"]).status == "unattempted"
    exec("def jump(x0, noise, alpha_bar_t):\n    y = x0 * 2", namespace)
    assert message(namespace["jump"]).startswith("you forgot to return")


def test_forgotten_return() -> None:
    def no_return(x: Tensor, e: Tensor, a: float) -> None:
        x = jump(x, e, a)

    assert message(no_return) == "you forgot to return: the function gave None"


def test_exception_is_told_in_one_line_with_the_learners_line(tmp_path: Path) -> None:
    answer = write_answer(tmp_path, "def jump(x, e, a):\n    y = x\n    return torch.cat([y, e[:, :1]], 7)\n")
    told = message(answer)
    assert "your code stopped at line 3, `return torch.cat([y, e[:, :1]], 7)`: IndexError: Dimension out" in told
    assert "\n" not in told
    namespace: dict[str, Any] = {}
    exec("def jump(x, e, a):\n    return 1 / 0", namespace)
    assert "your code stopped at line 2: ZeroDivisionError: division by zero" in message(namespace["jump"])


def test_an_exception_without_a_message_of_its_own_is_told(tmp_path: Path) -> None:
    source = """
        class Silent(Exception):
            def __str__(self):
                raise RuntimeError
        def jump(x, e, a):
            raise Silent
    """
    assert "your code stopped at line 6, `raise Silent`: Silent" in message(write_answer(tmp_path, source))


def test_a_list_inside_itself_is_told() -> None:
    def endless(x: Tensor, e: Tensor, a: float) -> list[Any]:
        result: list[Any] = [x]
        result.append(result)
        return result

    assert message(endless) == "you returned `list of 2`, expected `Tensor`"
    x = torch.ones(2)
    assert difference(endless(x, x, 1.0), [x, 3]) == "output[1]: you returned `list of 2`, expected `int`"
    shared = [1]
    assert difference([shared, shared], [[1], [1]]) == "", "twice is not inside itself"


def test_exit_is_no_way_out() -> None:
    def leave(x: Tensor, e: Tensor, a: float) -> None:
        raise SystemExit(0)

    assert "SystemExit" in message(leave)


def test_wrong_arguments() -> None:
    assert (
        message(lambda x, e: x) == "your function cannot take (x0, noise, alpha_bar_t): too many positional arguments"
    )
    assert "missing a required argument: 'd'" in message(lambda a, b, c, d: a)
    for exercise_id in ("01.2", "06.1", "08.6"):  # whose answers are called for them
        told = grade(exercises.get(exercise_id), lambda: None).message
        assert told.startswith("your function cannot take ("), told


@pytest.mark.parametrize("exercise_id", ["01.1", "01.3"])
def test_arguments_in_another_order_are_told(exercise_id: str) -> None:
    exercise = exercises.get(exercise_id)
    names = list(exercise.case(0, 0).args)
    moved = [names[0], *reversed(names[1:])]
    swapped = eval(f"lambda {', '.join(moved)}: reference({', '.join(names)})", {"reference": exercise.reference})
    told = f"your function takes ({', '.join(moved)}), and is called with ({', '.join(names)})"
    assert message(swapped, exercise) == told
    right = eval(f"lambda {', '.join(moved)}: reference({', '.join(moved)})", {"reference": exercise.reference})
    assert grade(exercise, right).status == "right"


def in_a_notebook(source: str, **variables: Any) -> Any:
    """The last function that a cell with `source` defines among the notebook's variables."""
    exec(source, variables)
    return list(variables.values())[-1]


ROOM = 4
NOTE = "; it uses `beta`, a variable of the notebook, not one of its arguments"


@pytest.mark.parametrize(
    ("beta", "body", "told"),
    [
        (0.02, "return (1 - beta) ** 0.5 * x_prev + beta**0.5 * noise", NOTE),
        (torch.tensor(0.02), "return (1 - beta) ** 0.5 * x_prev + beta**0.5 * noise", NOTE),
        (np.float64(0.02), "return sum(noise * b for b in [beta for _ in noise])", NOTE),
        (1, "return x_prev.no_such_method(beta)", NOTE),
        (0.02, "beta = beta_t / 2\n    return beta * x_prev", ""),
        (0.02, "return types.SimpleNamespace(beta=1).beta * x_prev * noise", ""),
        ("linear", "return len(beta) * x_prev * noise", ""),
        (0.02, "return later() * x_prev * noise", ""),
    ],
)
def test_a_variable_of_the_notebook_in_place_of_an_argument_is_told(beta: Any, body: str, told: str) -> None:
    source = f"def forward_step(x_prev, noise, beta_t):\n    {body}\n"
    answer = in_a_notebook(source, torch=torch, types=types, later=lambda: 3, beta=beta)
    said = message(answer, exercises.get("01.1"))
    assert said.endswith(told) and ("notebook" in said) == bool(told)


def test_a_variable_that_the_solution_uses_too_is_no_leftover() -> None:
    def scaled(x0: Tensor, noise: Tensor, alpha_bar_t: float) -> Tensor:
        return x0 / ROOM

    answer = in_a_notebook("def f(x, e, a):\n    return x + ROOM + T", ROOM=ROOM, T=1000)
    told = message(answer, replace(JUMP, reference=scaled))
    assert "it uses `T`" in told and "`ROOM`" not in told


def test_what_has_no_code_of_its_own_uses_no_variable_of_the_notebook() -> None:
    answer = functools.partial(in_a_notebook("def f(x, e, a, b):\n    return x + beta", beta=0.3), b=0)
    assert "notebook" not in message(answer) and "notebook" not in message(torch.addcmul)


@pytest.mark.parametrize("number", [0.02, torch.tensor(0.02)])
def test_a_power_written_as_in_other_languages_is_told(number: Any) -> None:
    power = replace(JUMP, inputs=lambda generator, index: Case({"x0": number, "noise": index, "alpha_bar_t": 0.5}))
    assert message(lambda x, e, a: x ^ a, power).endswith("; in Python a power is **, not ^")


def test_what_an_answer_prints_is_shown_for_the_first_call_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    def tells(lines: int) -> Callable[..., Tensor]:
        def answer(x: Tensor, e: Tensor, a: float) -> Tensor:
            print(*range(lines), sep=f" of {tuple(x.shape)}\n")
            return jump(x, e, a)

        return answer

    assert grade(JUMP, tells(2)).status == "right"
    title, *shown = capsys.readouterr().out.splitlines()
    assert title.startswith("Printed at t = ") and "with x0 of shape (4, 3, 5, 5)" in title
    assert shown == ["0 of (4, 3, 5, 5)", "1"]
    grade(JUMP, tells(100))
    shown = capsys.readouterr().out.splitlines()[1:]
    assert len(shown) == 16 and shown[14:] == ["14 of (4, 3, 5, 5)", "…"]
    message(lambda x, e, a: print(jump(x, e, a)[0, 0, :2] if x.ndim == 4 else x))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert grade(JUMP, jump).status == "right" and capsys.readouterr().out == ""


def test_what_an_answer_prints_before_it_stops_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def endless(x: Tensor, e: Tensor, a: float) -> Tensor:
        print("begun")
        while True:
            pass

    assert "did not finish" in message(endless, replace(JUMP, seconds=0.2))
    assert capsys.readouterr().out.splitlines()[1:] == ["begun"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda y: [y], "you returned `list of 1`, expected `Tensor`"),
        (lambda y: y.numpy(), "you returned `ndarray`, expected `Tensor`"),
        (lambda y: "text", "you returned `str`, expected `Tensor`"),
        (lambda y: y[:1], "your result has shape (1, 2), expected (6, 2)"),
        (lambda y: y.half(), "your result has dtype torch.float16, expected torch.float32"),
        (lambda y: y.round().long(), "your result has dtype torch.int64, expected torch.float32"),
        (lambda y: y.log(), "values of your result are not finite"),
        (lambda y: y * 0, "your result is zero everywhere"),
        (lambda y: -y, "your result is the negative of the right one everywhere"),
        (lambda y: y * 3, "your result is 3 times the right one everywhere"),
        (lambda y: y + 0.25, "your result is off by the same +0.25 everywhere"),
        (lambda y: y.flip(0), "12 of 12 values are wrong, the first at index [0, 0]:"),
        (lambda y: y * 1.0004, "your result is 1.0004 times the right one everywhere"),
        (lambda y: y - y.mean(0), "; the result for one sample depends on the others"),
    ],
)
def test_what_is_wrong_outside_the_bank(spoil: Callable[[Tensor], Any], says: str) -> None:
    assert says in message(lambda x, e, a: spoil(jump(x, e, a)))


def test_a_whole_table_is_no_batch() -> None:
    """Where the reference fails on one entry alone, nothing is known of entries depending on each other."""

    def gaps(a: Tensor) -> Tensor:
        if len(a) < 2:
            raise ValueError("a table needs two entries")
        return a.diff()

    table = replace(JUMP, reference=gaps, inputs=lambda generator, index: Case({"a": torch.arange(4.0) ** 2 + index}))
    assert "depends on the others" not in message(lambda a: a[1:] - a.mean(), table)


def test_the_first_t_at_which_an_answer_departs_is_named() -> None:
    told = message(lambda x, e, a: jump(x, e, a) * (2 if a < 0.7 else 1))
    assert told.startswith("at t = 300 with x0 of shape (2, 1, 3, 3), your result is 2 times the right one")
    assert told.endswith("right at t = 50 with x0 of shape (6, 2)")


def test_arguments_that_are_no_values_are_not_printed() -> None:
    def call(function: Callable[[float], float], n: int) -> float:
        return function(n)

    given = replace(JUMP, reference=call, inputs=lambda generator, index: Case({"function": abs, "n": index + 1}))
    assert message(lambda function, n: 2.0 * n + 3, given) == "with n = 1, 5 where 1 is expected"


def test_constants_and_memories_do_not_pass() -> None:
    stored = {tuple(c.args["x0"].shape): jump(*c.args.values()) for c in (JUMP.case(0, i) for i in range(3))}
    assert "values are wrong" in message(lambda x, e, a: stored[tuple(x.shape)].to(x.dtype))


@pytest.mark.parametrize("number", [np.complex128(1), torch.tensor(1j), 10**400, 2**70], ids=lambda n: str(n)[:20])
def test_a_number_of_another_kind_or_size_is_told(number: Any) -> None:
    def total(x0: Tensor, noise: Tensor, alpha_bar_t: float) -> float:
        return float(x0.sum())

    summed = replace(JUMP, reference=total, mistakes=())
    told = message(lambda x, e, a: number, summed)
    assert "is expected" in told or "no .real?" in told, told


def test_global_randomness_is_named() -> None:
    told = message(lambda x, e, a: jump(x, torch.randn_like(x), a))
    assert told.startswith("two calls with the same input differ: draw and keep nothing outside a call")


def test_changed_inputs_are_named() -> None:
    def in_place(x: Tensor, e: Tensor, a: float) -> Tensor:
        x *= a**0.5
        x += (1 - a) ** 0.5 * e
        return x

    def roots_forgotten(x: Tensor, e: Tensor, a: float) -> Tensor:
        e *= 1 - a
        return a * x + e

    def copied(x: Tensor, e: Tensor, a: float) -> Tensor:
        y = x.clone()
        y.mul_(a**0.5).add_(e, alpha=(1 - a) ** 0.5)
        return y

    assert message(in_place).startswith("you changed the input x0 in place")
    verdict = grade(JUMP, roots_forgotten)
    assert verdict.mistake == 0 and "you changed the input noise in place" in verdict.message
    assert grade(JUMP, copied).status == "right"


def test_writing_into_an_input_spoils_no_table_of_the_course() -> None:
    table = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)

    def first_entry(x: Tensor, table: Tensor) -> Tensor:
        return x * float(table[0])

    def overwrites(x: Tensor, table: Tensor) -> Tensor:
        table[0] += 1
        return x * (float(table[0]) - 1)

    lookup = replace(
        JUMP,
        reference=first_entry,
        inputs=lambda generator, index: Case({"x": torch.randn(3, generator=generator), "table": table}),
    )
    assert message(overwrites, lookup).startswith("you changed the input table in place")
    assert float(table[0]) == 0.1


def test_a_list_that_an_answer_lengthens_is_noticed() -> None:
    def total(steps: list[int]) -> int:
        return sum(steps)

    def lengthens(steps: list[int]) -> int:
        steps.append(0)
        return sum(steps)

    def case(generator: torch.Generator, index: int) -> Case:
        return Case({"steps": [3, 2, index]})

    assert message(lengthens, replace(JUMP, reference=total, inputs=case)).startswith("you changed the input steps")


def test_a_function_of_a_whole_table_is_no_function_of_samples() -> None:
    """The running product depends on the values before it, so a wrong one is not told that its samples mix."""

    def product(betas: Tensor) -> Tensor:
        return torch.cumprod(1 - betas, dim=0)

    def case(generator: torch.Generator, index: int) -> Case:
        return Case({"betas": torch.rand(5 + index, generator=generator)})

    told = message(lambda betas: product(betas).flip(0), replace(JUMP, reference=product, inputs=case))
    assert "with betas of shape (5,), " in told and "depends on" not in told


def test_arrays_in_a_tuple_are_refused_in_words() -> None:
    def both(x: Tensor, e: Tensor, a: float) -> tuple[Tensor, Tensor]:
        return x, e

    told = message(lambda x, e, a: (x.numpy(), e.numpy()), replace(JUMP, reference=both))
    assert "output[0]: you returned `ndarray`, expected `Tensor`" in told


@pytest.mark.parametrize("exercise_id", ["00.3", "01.3", "01.4", "01.7"])
def test_what_is_no_tensor_is_told_as_such_where_more_than_the_value_is_compared(exercise_id: str) -> None:
    """The check compares a dict there (value and dtype, or value and gradients), which the learner has not written."""
    exercise = exercises.get(exercise_id)
    for told, change in (("ndarray", lambda x: x.detach().float().numpy()), ("list", list), ("list", Tensor.tolist)):
        said = message(lambda *args, change=change: change(exercise.reference(*args)), exercise)
        assert f"you returned a value of type '{told}', expected 't" in said
        assert "output" not in said and "dict" not in said
    assert message(lambda *args: None, exercise) == "you forgot to return: the function gave None"
    halved = message(lambda *args: exercise.reference(*args) / 3, exercise)
    assert "output 'value'" not in halved and "output 'type'" not in halved


def test_what_two_cases_share_is_not_given_as_the_cause() -> None:
    """Where cases differ in shape alone, "right with this shape" would send the learner after the shape."""

    def half(x: Tensor) -> Tensor:
        return x / 2

    def case(generator: torch.Generator, index: int) -> Case:
        return Case({"x": torch.full((2 + index,), float(index))})

    assert "right with" not in message(
        lambda x: x**2 / 2 if x[0] > 1 else x / 2, replace(JUMP, reference=half, inputs=case)
    )


def test_precision() -> None:
    assert grade(JUMP, lambda x, e, a: jump(x.double(), e.double(), a)).status == "right", "a wider dtype is as good"
    assert grade(JUMP, lambda x, e, a: torch.tensor(a) ** 0.5 * x + torch.tensor(1 - a) ** 0.5 * e).status == "right"
    told = message(lambda x, e, a: jump(x, e, a).float())
    assert told.startswith("your float32 result is right, but with float64 inputs your result has dtype torch.float32")
    assert "times the right one" in message(lambda x, e, a: jump(x, e, a) * (1 + 1e-4))


def test_endless_loop_is_stopped() -> None:
    def endless(x: Tensor, e: Tensor, a: float) -> Tensor:
        while True:
            with contextlib.suppress(Exception):
                x = x + 0

    def swallows(x: Tensor, e: Tensor, a: float) -> Tensor:
        try:
            while True:
                x = x + 0
        except:  # noqa: E722
            return jump(x, e, a)

    def swallows_twice(x: Tensor, e: Tensor, a: float) -> Tensor:
        try:
            return endless(x, e, a)
        except:  # noqa: E722
            return endless(x, e, a)

    def swallows_for_ever(x: Tensor, e: Tensor, a: float) -> Tensor:
        while True:
            try:
                for _ in range(10):
                    x = x + 0
            except:  # noqa: E722
                continue

    quick, tracing = replace(JUMP, seconds=0.2), sys.gettrace()
    for answer in (endless, swallows, swallows_twice, swallows_for_ever):
        assert message(answer, quick) == "your code did not finish within 0.2 seconds: does a loop never end?"
    assert sys.gettrace() is tracing


def test_outside_the_main_thread_there_is_no_limit() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(grade(JUMP, jump).status))
    thread.start()
    thread.join()
    assert found == ["right"]


def test_global_random_states_are_left_as_they_were() -> None:
    def careless(x: Tensor, e: Tensor, a: float) -> Tensor:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        return jump(x, e, a) + torch.rand(1) + random.random() + float(np.random.rand())

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]
    for answer in (careless, jump, JUMP.mistakes[2].answer):
        grade(JUMP, answer)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    assert before[2] == random.getstate()


def test_pytorchs_settings_are_left_as_they_were() -> None:
    def without_gradients(x: Tensor, e: Tensor, a: float) -> Tensor:
        torch.set_grad_enabled(False)
        return jump(x, e, a)

    def in_double(x: Tensor, e: Tensor, a: float) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return jump(x, e, a)

    try:
        for answer in (without_gradients, in_double):
            assert grade(JUMP, answer).status == "right"
            assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


def test_not_a_function() -> None:
    with pytest.raises(TypeError, match=r'pass the function itself, check\("99.1", jump\)'):
        grade(JUMP, torch.zeros(3))  # type: ignore[arg-type]


def test_outputs_are_compared_through_containers() -> None:
    x = torch.tensor([1.0, 2.0])
    assert difference({"a": x, "b": [1, 2.0]}, {"a": x.clone(), "b": (1, 2.0)}) == ""
    assert difference({"a": x}, {"b": x}) == "you returned `dict of 1`, expected `dict of 1`; they part at output 'a'"
    assert difference([1, [2]], [1, 2]) == "you returned `list of 2`, expected `list of 2`; they part at output[1]"
    assert difference((1, 2), 3) == "you returned `tuple of 2`, expected `int`"
    assert difference(10**30, 5) == "1e+30 where 5 is expected" and difference(2**70, 2**70) == ""
    assert difference(x.to_sparse(), x) == "" and difference(x.to_sparse() * 2, x) != ""
    assert difference((x, 3), (x, 4)) == "output[1]: 3 where 4 is expected"
    assert difference({"loss": 0.5}, {"loss": 0.25}) == "output 'loss': 0.5 where 0.25 is expected"
    assert difference(0.1, torch.tensor(0.1)) == "" and difference(torch.tensor(0.1), 0.1) == ""
    assert difference(35_000_000, 35_000_001) != "", "counts are exact"
    assert difference(torch.tensor([float("nan")]), torch.tensor([float("nan")])) == ""
    assert difference(x.to("meta"), x) == "your result has device meta, expected cpu"
    assert difference("linear", "cosine") == "'linear', expected 'cosine'"
    assert difference(x, None) != "" and difference(None, None) == ""
    assert difference((np.ones(2),), (np.ones(2),)) == "" and difference((np.ones(2),), (np.zeros(2),)) != ""


def test_small_values_beside_large_ones_are_compared() -> None:
    table = torch.logspace(4, -4, 100, dtype=torch.float64)
    wrong = table.clone()
    wrong[-1] *= 1.01
    assert difference(wrong, table) != ""
    assert difference(table * (1 + 1e-15), table) == ""


class Doubler(nn.Module):
    """Doubles."""

    def __init__(self, width: int) -> None:
        """Set up."""
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Twice the linear map."""
        return 2 * self.linear(x)


def doubler_stub() -> str:
    return '''
        class Doubler(nn.Module):
            """Doubles."""

            def __init__(self, width: int) -> None:
                super().__init__()
                ...

            def forward(self, x: Tensor) -> Tensor:
                """Twice the linear map."""
                ...
        '''


def run_doubler(answer: Any, x: Tensor) -> dict[str, Any]:
    torch.manual_seed(3)
    module = answer(x.shape[-1]).to(x.dtype)
    loss = module(x).square().sum()
    loss.backward()
    return {"loss": loss, "gradients": [p.grad for p in module.parameters()]}


DOUBLER = replace(
    JUMP,
    reference=Doubler,
    starter=doubler_stub(),
    package="",
    run=run_doubler,
    inputs=lambda generator, index: Case({"x": torch.randn(index + 2, 3 + index, generator=generator)}),
    mistakes=(),
)


def test_classes_and_training_steps(tmp_path: Path) -> None:
    class Tripler(Doubler):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.linear(x)

    assert grade(DOUBLER, Doubler).status == "right"
    assert "output 'loss'" in message(Tripler, DOUBLER)
    assert grade(DOUBLER, write_answer(tmp_path, DOUBLER.stub, "Doubler")).status == "unattempted"
    begun = DOUBLER.stub.replace("super().__init__()\n        ...", "super().__init__()")
    assert begun != DOUBLER.stub
    assert "your code stopped" in message(write_answer(tmp_path, begun, "Doubler"), DOUBLER)


# ---------------------------------------------------------------- what a learner sees


@pytest.fixture
def jump_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_from_scratch.course.exercises.get", lambda exercise_id: JUMP)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Panel]]:
    panels: list[Panel] = []
    monkeypatch.setattr("ddpm_from_scratch.course.display.display", panels.append)
    yield panels


@pytest.mark.usefixtures("jump_is_known")
def test_check_says_right_wrong_or_unattempted(shown: list[Panel], tmp_path: Path) -> None:
    assert check("99.1", jump) is None
    assert shown[-1].text == "✓ Exercise 99.1 is right: A jump."
    check("99.1", gaussian.q_sample)
    assert "package's own function" in shown[-1].text
    check("99.1", write_answer(tmp_path, JUMP.stub))
    assert "not attempted yet" in shown[-1].text
    with pytest.raises(WrongAnswer) as refused:
        check("99.1", lambda x, e, a: a * x + (1 - a) * e)
    assert str(refused.value) == (
        "Exercise 99.1 is not right yet. You left out the roots at t = 500, ᾱ = 0.3. Look at Ho eq. 4, section “Jump”."
    )
    assert shown[-1].html.count("<details>") == 4
    with pytest.raises(WrongAnswer, match=r"a negative root, no \.real\? Look at Ho eq. 4"):
        check("99.1", lambda x, e, a: (a**0.5 * x + (1 - a) ** 0.5 * e).to(torch.complex64))


@pytest.mark.usefixtures("jump_is_known")
def test_hints_come_rung_by_rung_as_text_and_folded_as_html(shown: list[Panel]) -> None:
    hint("99.1")
    assert shown[-1].text == 'Hint 1 of 3, the idea: a\nNext: hint("99.1", 2)'
    hint("99.1", 3)
    assert shown[-1].text.endswith('Next: solution("99.1")')
    assert shown[-1].html.count("<details><summary>") == 4 and " open" not in shown[-1].html
    solution("99.1")
    assert shown[-1].text == JUMP.solution and "&lt;" not in shown[-1].text
    with pytest.raises(CourseError, match="three hints"):
        hint("99.1", 4)


def test_unknown_exercise_is_a_short_message() -> None:
    with pytest.raises(CourseError, match="no exercise '99.9'"):
        check("99.9", jump)


def test_plain_python_prints_and_ends_with_the_message(progress_file: Path) -> None:
    code = """
        from ddpm_from_scratch.course import check
        from ddpm_from_scratch.course.exercises import get
        check("01.1", lambda *given: get("01.1").alternatives[0](*given))
        check("01.1", get("01.1").mistakes[0].answer)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("✓ Exercise 01.1 is right")
    assert "WrongAnswer: Exercise 01.1 is not right yet. You " in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) <= 8
    assert json.loads(progress_file.read_text(encoding="utf-8"))["01.1"]["attempts"] == 2


def test_notebook_shows_the_message_without_a_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell()
    shell.run_cell("from ddpm_from_scratch.course import check\nfrom torch import Tensor, nn\nimport torch")
    capsys.readouterr()
    shell.run_cell(exercises.get("01.1").stub)
    shell.run_cell('check("01.1", forward_step)')
    assert "not attempted yet" in capsys.readouterr().out
    shell.run_cell("def forward_step(x, e, b):\n    return x +\\\n        b**0.5 * e")
    result = shell.run_cell('check("01.1", forward_step)')
    output = capsys.readouterr().out
    assert isinstance(result.error_in_exec, WrongAnswer)
    assert "Exercise 01.1 is not right yet. You " in output
    assert "Traceback" not in output and "engine" not in output and "---" not in output
    shell.run_cell(DOUBLER.stub)
    assert grade(DOUBLER, shell.user_ns["Doubler"]).status == "unattempted", "a class of a notebook has no file"


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """The shell that `get_ipython` finds."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_hints_stand_below_what_is_wrong_and_once(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell("from ddpm_from_scratch.course import check\ndef forward_step(x0, noise, beta):\n    return x0")
    for _ in range(2):
        capsys.readouterr()
        shell.run_cell('check("01.1", forward_step)')
        output = capsys.readouterr().out
        assert output.count("Stuck?") == 1
        assert output.index("is not right yet") < output.index("Stuck?")
    shell.run_cell("1 + 1")
    assert "Stuck?" not in capsys.readouterr().out


def test_an_interrupted_check_says_so_without_a_trace(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("import _thread\nfrom ddpm_from_scratch.course import check")
    shell.run_cell("def forward_step(x0, noise, beta):\n    _thread.interrupt_main()\n    while True:\n        pass")
    capsys.readouterr()
    shell.run_cell('check("01.1", forward_step)')
    assert capsys.readouterr().out.strip() == (
        "Interrupted: exercise 01.1 was not judged, your code was still running."
    )


@pytest.mark.parametrize("broken", ["    return x +", "  x\n    y", '    return f"{x"'])
def test_a_cell_that_python_cannot_read_leaves_no_answer_to_judge(shell: InteractiveShell, broken: str) -> None:
    run = functools.partial(shell.run_cell, store_history=True)
    right = "def forward_step(x0, noise, beta):\n    return (1 - beta) ** 0.5 * x0 + beta**0.5 * noise"
    asked = 'check("01.1", forward_step)'
    run("from ddpm_from_scratch.course import check")
    run(right)
    assert run(asked).success
    run(f"def forward_step(x0, noise, beta):\n{broken}")
    for _ in range(2):
        told = run(asked).error_in_exec
        assert "forward_step was not run" in str(told) and not isinstance(told, WrongAnswer)
    run("def another(:\n    pass")
    assert not run(asked).success, "a cell between changes nothing"
    assert run('check("01.1", lambda *given: forward_step(*given))').success, "another function"
    run("%%time\n" + right)
    assert run(asked).success
    run(f"# a note\ndef forward_step(x0, noise, beta):\n{broken}")
    assert not run(asked).success
    run(right + "\n1 / 0")
    assert run(asked).success, "the function is the new one"


# ---------------------------------------------------------------- progress


@pytest.mark.usefixtures("jump_is_known")
def test_progress_is_kept_and_shown(shown: list[Panel], progress_file: Path) -> None:
    first, second = (exercise.id for exercise in BANK[:2])
    record(first, grade(JUMP, lambda x, e, a: a * x + (1 - a) * e))
    assert read()[first]["mistake"] == 0
    record(first, grade(JUMP, jump))
    record(first, grade(JUMP, lambda x, e, a: x))
    record(second, grade(JUMP, lambda x, e, a: x))
    kept = {row.id: (row.status, row.attempts) for row in rows()}
    assert kept[first] == ("right", 3), "what was right once stays right"
    assert kept[second] == ("wrong", 1)
    assert len(rows()) == len(BANK) and {row.id[:2] for row in rows("01")} == {"01"}
    progress()
    assert f"1 of {len(BANK)} exercises right" in shown[-1].text and shown[-1].html.count("<tr>") == len(BANK) + 1
    names = {path.name for path in progress_file.parent.iterdir()}
    assert names == {progress_file.name, f"{progress_file.name}.lock"}, "no half-written file is left"


@pytest.mark.usefixtures("jump_is_known")
def test_unattempted_leaves_no_trace(shown: list[Panel], tmp_path: Path, progress_file: Path) -> None:
    check("99.1", write_answer(tmp_path, JUMP.stub))
    assert not progress_file.exists()


def test_what_the_package_wrote_is_not_counted_as_the_learners(shown: list[Panel], progress_file: Path) -> None:
    for number, function in (("01.1", gaussian.forward_step), ("13.4", exercises.get("13.4").reference)):
        check(number, function)
        assert "is right" in shown[-1].text and "does not count as yours" in shown[-1].text
    assert not progress_file.exists()


@pytest.mark.parametrize("content", ["{half", "[1, 2]", "", "\x00"])
def test_unreadable_progress_is_moved_aside(progress_file: Path, content: str) -> None:
    progress_file.write_text(content, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"progress.json could not be read: it is now progress.json.unreadable"):
        assert read() == {}
    assert (progress_file.parent / "progress.json.unreadable").read_text(encoding="utf-8") == content
    record(BANK[0].id, grade(JUMP, jump))
    assert read()[BANK[0].id]["status"] == "right"


@pytest.mark.parametrize("entry", [{"status": "odd", "attempts": 1}, {"status": "right", "attempts": "x"}, {}, 3])
def test_a_damaged_entry_of_progress_is_left_out(progress_file: Path, entry: Any) -> None:
    whole = {"status": "right", "attempts": 2}
    progress_file.write_text(json.dumps({"01.1": entry, "01.2": whole}), encoding="utf-8")
    assert read() == {"01.2": whole}
    assert [row.id for row in rows("01") if row.status == "right"] == ["01.2"]


@pytest.mark.usefixtures("jump_is_known")
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere/progress.json", "No such file or directory"),
        ("folder", "Is a directory"),
        ("file/progress.json", "Not a directory"),
        ("damaged", "Is a directory"),  # and cannot be moved aside
    ],
)
def test_progress_that_cannot_be_kept_hides_no_verdict(
    place: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Panel]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.unreadable").mkdir()
    for name in ("file", "damaged"):
        (tmp_path / name).write_text("{half", encoding="utf-8")
    monkeypatch.setenv("DDPM_PROGRESS", str(tmp_path / place))
    with pytest.warns(UserWarning, match=rf"^progress cannot be kept in .*{place} \({reason}\): name another") as told:
        check("99.1", jump)
    assert "is right" in shown[0].text and len(told) == 1
    with warnings.catch_warnings(record=True) as told_again:
        assert rows()[0].status == ""
    assert len(told_again) == (place != "nowhere/progress.json"), "that nothing was kept yet is no news"


def test_progress_that_cannot_be_read_is_not_written_over(progress_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    progress_file.write_text('{"01.1": {"status": "right"}}', encoding="utf-8")
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be kept"):
        patch.setattr(Path, "read_text", refuse)
        record("01.2", grade(JUMP, jump))
    assert read() == {"01.1": {"status": "right"}}


def test_two_notebooks_lose_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for two processes: the lock belongs to the opened file, so it parts both alike."""
    write = display.progress_log._write

    def slowly(text: str) -> None:
        time.sleep(0.05)
        write(text)

    monkeypatch.setattr(display.progress_log, "_write", slowly)
    verdict, ids = grade(JUMP, jump), ["01.1", "01.2", "01.3"]
    notebooks = [threading.Thread(target=record, args=(number, verdict)) for number in ids]
    for notebook in notebooks:
        notebook.start()
    for notebook in notebooks:
        notebook.join()
    assert sorted(read()) == ids


def test_command_line_finds_the_progress_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDPM_PROGRESS")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".ddpm-progress.json").write_text('{"00.1": {"status": "right"}}', encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows()[0].status == "right"
