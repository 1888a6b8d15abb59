"""What a learner sees: `check`, `hint`, `solution`, `progress`, in a notebook as HTML and elsewhere as text."""

from __future__ import annotations

import ast
import html
import os
import random
import re
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display

from . import exercises, handout, plots
from . import progress as progress_log
from .engine import grade
from .exercise import Exercise

RUNGS = ("idea", "equation", "skeleton")
BOX = "border-left: 4px solid {colour}; padding: 0.2em 0.8em; margin: 0.3em 0"
GREEN, GREY = "#009E73", "#8c959f"


class CourseError(Exception):
    """A message to the learner: in IPython it is shown alone, without a stack trace."""

    def _render_traceback_(self) -> list[str]:
        return textwrap.wrap(str(self), 76)


class WrongAnswer(CourseError):
    """An answer that `check` refuses, with what is wrong."""


@dataclass(frozen=True)
class Panel:
    """One output in two forms."""

    text: str
    html: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def setup(lesson: str) -> None:
    """The first cell of each lesson: seeds the global generators with the lesson's number.

    A lesson trains on the processor, for which it is made, also where there is a GPU.

    With `DDPM_WARNINGS=error`, which the tests set and the making of the solved notebooks, a warning is an error,
    apart from deprecations inside other packages. Else warnings are shown: a newer library stops no learner.
    """
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    seed = int(lesson)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    if os.environ.get("DDPM_WARNINGS") == "error":
        warnings.simplefilter("error")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("error", category=DeprecationWarning, module=r"__main__|ddpm_from_scratch")


def check(exercise_id: str, answer: Callable[..., Any]) -> None:
    """Says whether `answer` solves exercise "NN.n", and if not, what is wrong with it.

    An untouched stub is "not attempted", and the notebook runs on.

    Raises:
        WrongAnswer: the answer is wrong; the message says what it does and where to look.
        CourseError: there is no such exercise, `answer` is no function, the cell with it was refused by Python, or the
            check was interrupted.
    """
    exercise = _find(exercise_id)
    _refuse_an_older_answer(answer)
    try:
        verdict = grade(exercise, answer)
    except TypeError as error:
        raise CourseError(str(error)) from None
    except KeyboardInterrupt:
        raise CourseError(f"Interrupted: exercise {exercise.id} was not judged, your code was still running.") from None
    progress_log.record(exercise.id, verdict)
    if verdict.status == "unattempted":
        what = f"Exercise {exercise.id} is not attempted yet: write your code in the cell above, and run that cell."
        display(_help(exercise, what))
    elif verdict.status == "wrong":
        _display_after_the_message(_help(exercise, "Stuck?"))
        message = verdict.message[:1].upper() + verdict.message[1:].rstrip(".")
        end = "" if message.endswith("?") else "."
        raise WrongAnswer(f"Exercise {exercise.id} is not right yet. {message}{end}{_where(exercise)}") from None
    else:
        whose = " It is the package's own function, so it does not count as yours." if verdict.borrowed else ""
        display(_box(f"✓ Exercise {exercise.id} is right: {exercise.title}.{whose}", GREEN))
        if exercise.picture:
            title = f"Your {exercise.name} beside the reference"
            plots.show(exercise.picture(answer), alt=f"{title}: {exercise.title}.", caption=f"{title}.")


def hint(exercise_id: str, rung: int = 1) -> None:
    """Shows the three hints to exercise "NN.n" and its solution, folded; as text, hint `rung` (1 to 3) alone.

    Raises:
        CourseError: there is no such exercise or rung.
    """
    exercise = _find(exercise_id)
    if rung not in (1, 2, 3):
        raise CourseError(f"there are three hints, 1 (idea), 2 (equation) and 3 (skeleton): there is no hint {rung!r}")
    further = f'\nNext: hint("{exercise.id}", {rung + 1})' if rung < 3 else ""
    if rung == 3 and not handout.is_handout():
        further = f'\nNext: solution("{exercise.id}")'
    text = f"Hint {rung} of 3, the {RUNGS[rung - 1]}: {exercise.hints[rung - 1]}{further}"
    display(Panel(text, _folded(exercise)))


def solution(exercise_id: str) -> None:
    """Shows the solution of exercise "NN.n".

    Raises:
        CourseError: there is no such exercise, or this edition of the course has no solutions.
    """
    exercise = _find(exercise_id)
    if handout.is_handout():
        raise CourseError(handout.NO_SOLUTIONS)
    display(Panel(exercise.solution, _details("Solution", _code(exercise.solution))))


def progress(lesson: str | None = None) -> None:
    """Shows which exercises are right, of the course or of lesson "NN"."""
    table = progress_log.rows(lesson)
    marks = {"right": "✓ right", "wrong": "✗ not yet", "": "· open"}
    cells = "".join(
        f"<tr><td>{row.id}</td><td style='text-align: left'>{html.escape(row.title)}</td>"
        f"<td style='text-align: left'>{marks[row.status]}</td><td>{row.attempts}</td></tr>"
        for row in table
    )
    left = "<th style='text-align: left'>{}</th>"
    head = f"<tr><th>Exercise</th>{left.format('Title')}{left.format('State')}<th>Checks</th></tr>"
    text = progress_log.as_text(table)
    display(Panel(text, f"<table>{head}{cells}</table><p>{text.splitlines()[-1]}</p>"))


def _find(exercise_id: str) -> Exercise:
    try:
        return exercises.get(exercise_id)
    except ValueError as error:
        raise CourseError(str(error)) from None


def _refuse_an_older_answer(answer: Any) -> None:
    """A cell that Python cannot read leaves the function of before, which the learner does not mean."""
    history = getattr(get_ipython(), "history_manager", None)
    cells = reversed(list(zip(history.input_hist_raw, history.input_hist_parsed, strict=False))) if history else ()
    name = getattr(answer, "__name__", "")
    here = rf"^(async def|def|class) {re.escape(name)}\b"
    newest = next((parsed for raw, parsed in cells if re.search(here, raw, re.MULTILINE)), "")
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(newest, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        raise CourseError(
            f"The cell with your {name} was not run: Python cannot read its line {error.lineno} "
            f"({type(error).__name__}). Mend it and run it again, else the {name} of before would be judged."
        ) from None


def _display_after_the_message(panel: Panel) -> None:
    """IPython shows an error at the end of a cell, hence below all that the cell displays until then."""
    shell: Any = get_ipython()

    def show(*_: Any) -> None:
        if shell:
            shell.events.unregister("post_run_cell", show)
        display(panel)

    if shell:
        shell.events.register("post_run_cell", show)
    else:
        show()


def _where(exercise: Exercise) -> str:
    places = [exercise.equation, f"section “{exercise.where}”" if exercise.where else ""]
    return f" Look at {', '.join(filter(None, places))}." if any(places) else ""


def _help(exercise: Exercise, text: str) -> Panel:
    further = "" if handout.is_handout() else f', solution("{exercise.id}") the solution'
    calls = f'hint("{exercise.id}") gives a hint{further}.'
    return Panel(f"{text} {calls}", f'<div style="{BOX.format(colour=GREY)}">{text}{_folded(exercise)}</div>')


def _box(text: str, colour: str) -> Panel:
    return Panel(text, f'<div style="{BOX.format(colour=colour)}">{html.escape(text, quote=False)}</div>')


def _folded(exercise: Exercise) -> str:
    rungs = zip(RUNGS, exercise.hints, strict=True)
    hints = [_details(f"Hint {n}: {rung}", _prose(text)) for n, (rung, text) in enumerate(rungs, start=1)]
    answer = [] if handout.is_handout() else [_details("Solution", _code(exercise.solution))]
    return "".join([*hints, *answer])


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _prose(text: str) -> str:
    return f'<div style="white-space: pre-wrap">{plots.prose(text)}</div>'


def _code(source: str) -> str:
    return f"<pre><code>{html.escape(source, quote=False)}</code></pre>"
