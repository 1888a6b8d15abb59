"""A folder of notebooks: which there are, and each judged in a process of its own, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_from_scratch.course.grading import gradebook
from ddpm_from_scratch.course.grading.gradebook import Row, Status
from ddpm_from_scratch.course.grading.sandbox import Limits, why_not
from ddpm_from_scratch.training import check_writable

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext  # the first of them not on Windows

PATIENCE = 120.0
"""Seconds that a judge may take beyond the notebook's own limit: to load, and to compare."""


def find(folder: Path) -> list[Path]:
    """The notebooks below `folder`, in order. Hidden files and copies that Jupyter keeps are left out.

    Raises:
        ValueError: there is no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder that holds the students' notebooks")
    below = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".ipynb")
    found = [folder / path for path in below if not any(part.startswith(".") for part in path.parts)]
    if not found:
        raise ValueError(f"no notebooks (*.ipynb) in {folder}")
    return sorted(found)


def idle(folder: Path, output: Path) -> list[Path]:
    """Where no notebook is: sub-folders without one, and files of another kind, the gradebook's own apart."""
    busy = {path.relative_to(folder).parts[0] for path in find(folder)} | {*gradebook.FILES}
    others = [path for path in folder.iterdir() if path.name not in busy and not path.name.startswith((".", "_"))]
    return [path for path in others if not output.resolve().is_relative_to(path.resolve())]


def student_of(path: Path, folder: Path) -> str:
    """Whose a notebook is: the name of its folder below `folder`, or of the file."""
    parts = path.relative_to(folder).parts
    return gradebook.plain_line(parts[0] if len(parts) > 1 else path.stem)


def grade_folder(
    folder: Path,
    output: Path,
    limits: Limits | None = None,
    jobs: int = 0,
    trust: bool = False,
    watch: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Judges every notebook below `folder`, and keeps the gradebook in `output` up to date meanwhile.

    Args:
        folder: one sub-folder per student, or one file per student.
        output: folder for the three files of the gradebook.
        limits: what a notebook may use.
        jobs: notebooks at a time; as many as there are processors by default.
        trust: run the notebooks without a sandbox, with this user's rights.
        watch: called with the name of each notebook that is done.

    Returns:
        The rows, by student, notebook and exercise.

    Raises:
        ValueError: no notebooks, or no sandbox here and no `trust`.
        OSError: `output` cannot be written to.
    """
    paths = find(folder)
    if sys.platform == "win32":
        raise ValueError("grading needs Linux, or with --trust a Mac")
    if not trust and (reason := why_not()):
        raise ValueError(f"{reason}; with --trust the notebooks run without one, with all your rights")
    rows = [_missing(path) for path in idle(folder, output)]
    check_writable(output)
    with tempfile.TemporaryDirectory() as place:
        tasks = [(path, student_of(path, folder), str(path.relative_to(folder))) for path in paths]
        for name, some in _judged(tasks, (Path(place), limits or Limits(), trust), jobs or os.cpu_count() or 1):
            rows += some
            gradebook.write(rows, output)
            watch(name)
    return sorted(rows, key=lambda row: (row.student, row.notebook, row.exercise))


def _missing(path: Path) -> Row:
    """The row of a sub-folder without a notebook, or of a file that is none."""
    if path.is_dir():
        return Row(path.name, f"{path.name}/", status=Status.MISSING, comment="no notebook here")
    return Row(path.stem, path.name, status=Status.MISSING, comment="no notebook: its name does not end in .ipynb")


Task = tuple[Path, str, str]


def _judged(tasks: Sequence[Task], settings: tuple[Any, ...], jobs: int) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each notebook as they come; whatever ends this generator ends the judges."""
    context = _context()
    waiting, running = list(reversed(tasks)), dict[Connection, tuple[Task, BaseProcess]]()
    limit = settings[1].seconds + PATIENCE
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                mine, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_judge, args=(theirs, task, settings, limit), daemon=True)
                process.start()
                theirs.close()
                running[mine] = task, process
            for done in wait(list(running)):
                task, process = running.pop(done)  # type: ignore[call-overload]
                yield task[2], _result(done, task)  # type: ignore[arg-type]
                process.join()
    finally:
        for _, process in running.values():
            process.kill()


def _context() -> ForkServerContext | SpawnContext:
    """Processes that share nothing with this one; on Linux, PyTorch is loaded for all of them once.

    A Mac's libraries do not survive a fork after they were used.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.judge"])
    return context


def _result(pipe: Connection, task: Task) -> list[Row]:
    try:
        return list(pipe.recv())
    except (EOFError, OSError):
        return [Row(task[1], task[2], status=Status.NOT_RUN, comment="the grader did not finish with this notebook")]
    finally:
        pipe.close()


def _judge(pipe: Connection, task: Task, settings: tuple[Any, ...], seconds: float) -> None:
    """One judge. It ends by itself after `seconds`, whatever happens; Ctrl-C is for the process that started it."""
    import torch

    from ddpm_from_scratch.course.grading.judge import judge

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clock = threading.Timer(seconds, os._exit, (1,))
    clock.daemon = True
    clock.start()
    torch.set_num_threads(1)
    path, student, name = task
    try:
        rows = judge(path, student, name, *settings)
    except Exception as error:
        comment = f"the grader stopped at this notebook: {type(error).__name__}: {error}"
        rows = [Row(student, name, status=Status.NOT_RUN, comment=comment)]
    pipe.send(rows)
