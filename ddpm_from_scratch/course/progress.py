"""The learner's progress, kept in one local JSON file.

The file is `.ddpm-progress.json` in the current folder, or in `work/` below it; the environment variable
`DDPM_PROGRESS` names another one. An empty `.lock` beside it lets one notebook write at a time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from . import exercises
from .engine import Verdict

NAME = ".ddpm-progress.json"


@dataclass(frozen=True)
class Row:
    """One exercise's state: `status` is "right", "wrong" or "" (not attempted), `attempts` the number of checks."""

    id: str
    title: str
    minutes: int
    status: str
    attempts: int


def progress_file() -> Path:
    """Where progress is kept."""
    if named := os.environ.get("DDPM_PROGRESS"):
        return Path(named)
    below = Path("work") / NAME
    return below if below.exists() and not Path(NAME).exists() else Path(NAME)


def read() -> dict[str, dict[str, Any]]:
    """What is kept, by exercise; nothing, with a warning, where the file cannot be read."""
    try:
        return _read()
    except OSError as error:
        _warn(error)
        return {}


def _read() -> dict[str, dict[str, Any]]:
    """What the file holds. A damaged entry is left out; a damaged file is moved aside with a warning."""
    path = progress_file()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict):
            return {name: entry for name, entry in kept.items() if _is_entry(entry)}
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    aside = path.with_name(path.name + ".unreadable")
    os.replace(path, aside)
    warnings.warn(f"{path.name} could not be read: it is now {aside.name}, and progress starts anew", stacklevel=3)
    return {}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("status") in ("right", "wrong")
        and isinstance(entry.get("attempts", 0), int)
    )


def record(exercise_id: str, verdict: Verdict) -> None:
    """Notes a verdict, with a warning where it cannot be kept.

    What was right once stays right; no answer, or the package's own, leaves no trace.
    """
    if verdict.status == "unattempted" or verdict.borrowed:
        return
    try:
        with _alone():
            _add(exercise_id, verdict)
    except OSError as error:
        _warn(error)


def _warn(error: OSError) -> None:
    reason = f"progress cannot be kept in {progress_file()} ({error.strerror or error})"
    warnings.warn(f"{reason}: name another file in the environment variable DDPM_PROGRESS", stacklevel=3)


@contextmanager
def _alone() -> Iterator[None]:
    """Within it no other notebook records: a lock that ends with its process, where the system has it."""
    path = progress_file()
    with open(path.parent / f"{path.name}.lock", "w") as lock:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):  # some network drives have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _add(exercise_id: str, verdict: Verdict) -> None:
    kept = _read()
    before = kept.get(exercise_id, {})
    kept[exercise_id] = {
        "status": "right" if "right" in (verdict.status, before.get("status")) else "wrong",
        "attempts": int(before.get("attempts", 0)) + 1,
        "mistake": verdict.mistake,
        "last": date.today().isoformat(),
    }
    _write(json.dumps(kept, indent=1, sort_keys=True))


def _write(text: str) -> None:
    """Replaces the file in one step, so that no reader sees half of it."""
    path = progress_file()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def rows(lesson: str | None = None) -> list[Row]:
    """The state of every exercise, or of those of lesson "NN", in the order of the course."""
    kept = read()
    chosen = exercises.all_exercises() if lesson is None else exercises.of_lesson(lesson)
    return [
        Row(
            exercise.id,
            exercise.title,
            exercise.minutes,
            str(kept.get(exercise.id, {}).get("status", "")),
            int(kept.get(exercise.id, {}).get("attempts", 0)),
        )
        for exercise in chosen
    ]


def as_text(table: list[Row]) -> str:
    """The rows as lines of text, with a count of what is right."""
    marks = {"right": "✓ right", "wrong": "✗ not yet", "": "· open"}
    width = max((len(row.title) for row in table), default=0)
    lines = [
        f"{row.id}  {row.title:<{width}}  {marks[row.status]:<9}"
        + (f"  {row.attempts} check{'s' * (row.attempts > 1)}" if row.attempts else f"  about {row.minutes} min")
        for row in table
    ]
    return "\n".join([*lines, f"{sum(row.status == 'right' for row in table)} of {len(table)} exercises right"])
