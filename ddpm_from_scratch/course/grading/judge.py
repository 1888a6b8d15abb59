"""The verdicts on one notebook: the exercise engine outside, the notebook in the sandbox."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ddpm_from_scratch.course.deadline import OutOfTime
from ddpm_from_scratch.course.engine import grade
from ddpm_from_scratch.course.exercise import Case, Exercise
from ddpm_from_scratch.course.grading import edition, notebooks, plain
from ddpm_from_scratch.course.grading.gradebook import Row, Status
from ddpm_from_scratch.course.grading.notebooks import Answer, BrokenNotebook, StudentNotebook
from ddpm_from_scratch.course.grading.sandbox import Limits, Sandbox, SandboxEnded

PATIENCE = 5.0
"""Seconds that a reply may come after the sandbox's own time limit."""


@dataclass(frozen=True)
class Trial(Case):
    """A case with what makes the same case inside the sandbox."""

    key: tuple[int, int, str] = (0, 0, "float32")


@dataclass(frozen=True)
class Remote(Exercise):
    """An exercise whose reference and mistakes are run here, and whose answer is run in the sandbox."""

    def case(self, seed: int, index: int, dtype: torch.dtype = torch.float32) -> Case:
        """As the exercise's own, with its key."""
        made = super().case(seed, index, dtype)
        return Trial(made.args, made.facts, (seed, index, str(dtype).removeprefix("torch.")))

    def output(self, answer: Any, case: Case) -> Any:
        """What the reference gives here, or the student's answer in the sandbox."""
        return answer.on(case) if isinstance(answer, RemoteAnswer) else super().output(answer, case)


@dataclass
class RemoteAnswer:
    """A student's function as the engine sees it: its outputs come out of the sandbox, as plain data."""

    sandbox: Sandbox
    exercise: Exercise
    asked: Counter[tuple[int, int, str]] = field(default_factory=Counter)

    def __call__(self, *args: Any) -> Any:
        raise TypeError("this answer can be asked for cases of its exercise only")

    def on(self, case: Case) -> Any:
        """The output on a case, whose arguments become what the answer made of them.

        A case that is asked for again is computed with the global random states at another seed, as the engine does.
        """
        if not isinstance(case, Trial):
            raise TypeError("this answer can be asked for cases of its exercise only")
        seed, index, dtype = case.key
        again = int(self.asked[case.key] > 0)
        self.asked[case.key] += 1
        reply = self.sandbox.request(
            self.exercise.seconds + PATIENCE,
            do="ask",
            exercise=self.exercise.id,
            seed=seed,
            index=index,
            dtype=dtype,
            global_seed=again,
        )
        left, error = reply.get("left"), reply.get("error")
        if isinstance(left, dict):
            for name in case.args.keys() & left.keys():
                if isinstance(case.args[name], torch.Tensor | list | tuple):
                    case.args[name] = left[name]
        if isinstance(error, list) and len(error) == 2:
            if error[0] == "OutOfTime":
                raise OutOfTime
            raise plain.stand_in(error[0], Exception)(str(error[1]))
        return reply.get("value")


def judge(path: Path, student: str, name: str, place: Path, limits: Limits, trust: bool = False) -> list[Row]:
    """The rows of one notebook.

    Args:
        path: the notebook.
        student: whose it is.
        name: what the gradebook calls it.
        place: folder in which to make the package's edition for the sandbox.
        limits: of the sandbox.
        trust: run without a sandbox.
    """
    try:
        notebook = notebooks.read(path)
    except BrokenNotebook as broken:
        return [Row(student, name, status=Status.BROKEN, comment=str(broken))]
    with tempfile.TemporaryDirectory(dir=place) as folder:
        made = edition.make(Path(folder), notebook.lesson, linked=not trust)
        made.chmod(0o755)
        with Sandbox(made, limits, trust) as sandbox:
            return [
                Row(student, name, answer.exercise.id, answer.exercise.title, *verdict)
                for answer, verdict in zip(notebook.answers, _verdicts(notebook, sandbox, made), strict=True)
            ]


Verdict = tuple[Status, int | None, bool, str]


def _verdicts(notebook: StudentNotebook, sandbox: Sandbox, made: Path) -> list[Verdict]:
    """Runs the cells in order, and asks for each answer right after its cell; nothing after the last answer."""
    found: dict[str, Verdict] = {}
    stopped = ""
    stops: dict[int, str] = {}
    pending = {n: [a for a in notebook.answers if a.cell == n and not a.blank] for n in range(len(notebook.cells))}
    last = max((n for n, answers in pending.items() if answers), default=-1)
    try:
        if last >= 0:
            sandbox.ready()
        for n in range(last + 1):
            limit = sandbox.limits.cell_seconds
            reply = sandbox.request(limit + PATIENCE, do="run", source=notebook.cells[n], seconds=limit)
            if problem := reply.get("problem"):
                stops[n] = f"{problem!s:.260}"
            for answer in pending[n]:
                found[answer.exercise.id] = _verdict(answer, sandbox, stops)
            settled = [a.exercise.id for a in notebook.answers if a.cell is None or a.cell <= n]
            if pending[n] and edition.release(made, notebook.lesson, settled):
                sandbox.request(sandbox.limits.cell_seconds, do="reload", lesson=notebook.lesson)
    except SandboxEnded as ended:
        stopped = f"not run to here: {ended}"
    return [found.get(answer.exercise.id) or _unasked(answer, stopped) for answer in notebook.answers]


def _unasked(answer: Answer, stopped: str) -> Verdict:
    if answer.problem:
        return Status.MISSING if answer.source is None else Status.NOT_RUN, None, False, answer.problem
    return (Status.NOT_ATTEMPTED, None, False, "") if answer.blank else (Status.NOT_RUN, None, False, stopped)


def _verdict(answer: Answer, sandbox: Sandbox, stops: dict[int, str]) -> Verdict:
    """The engine's verdict on one answer, after cells that stopped with these errors.

    Raises:
        SandboxEnded: the answer ended the sandbox.
    """
    exercise = answer.exercise
    stop = "" if answer.source is None else stops.get(answer.source, "")
    found = sandbox.request(PATIENCE + sandbox.limits.cell_seconds, do="find", expression=answer.expression)
    if problem := found.get("problem"):
        if stop:
            return Status.NOT_RUN, None, False, f"its cell stopped: {stop}"
        return Status.MISSING, None, False, _why_missing(answer, str(problem), stops)
    remote = Remote(**vars(exercise) | {"seconds": exercise.seconds + 2 * PATIENCE})
    verdict = grade(remote, RemoteAnswer(sandbox, exercise))
    if sandbox.ended:
        raise SandboxEnded(sandbox.ended)
    owner = str(found.get("module", ""))
    borrowed = answer.borrowed or owner.startswith("ddpm_from_scratch")
    if verdict.status == "right":
        return Status.RIGHT, None, borrowed, verdict.message
    aside = f" (its cell stopped: {stop})" * bool(stop)
    aside += f" (a later cell defines {answer.expression} again, and does not check it)" * answer.again
    return Status.WRONG, verdict.mistake, borrowed, verdict.message + aside


def _why_missing(answer: Answer, problem: str, stops: dict[int, str]) -> str:
    """Why nothing can be asked. That the check of a missing name stopped its own cell is no reason."""
    missing = f"NameError: name '{answer.expression}' is not defined"
    told = [stop for n, stop in stops.items() if n == answer.cell or not stop.startswith("NameError")]
    other = next((stop for stop in reversed(told) if stop != missing), "")
    if problem.startswith("NameError"):
        problem = f"no {answer.expression} where exercise {answer.exercise.id} is checked" + ": renamed?" * (not other)
    return f"{problem:.200}" + f" (a cell stopped: {other})" * bool(other)
