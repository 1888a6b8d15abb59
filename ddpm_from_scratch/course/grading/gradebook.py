"""The gradebook: rows, and the three files made from them."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

CSV, TABLE, JUNIT = FILES = "gradebook.csv", "gradebook.md", "gradebook.xml"
MAX_COMMENT = 400


class Status(StrEnum):
    """What became of an exercise, or of a whole notebook."""

    RIGHT = "right"
    WRONG = "wrong"
    NOT_ATTEMPTED = "not attempted"
    MISSING = "missing"
    NOT_RUN = "not run"
    BROKEN = "broken notebook"


MARKS = {
    Status.RIGHT: "✓",
    Status.WRONG: "✗",
    Status.NOT_ATTEMPTED: "·",
    Status.MISSING: "?",
    Status.NOT_RUN: "!",
    Status.BROKEN: "!",
}
LEGEND = "✓ right, (✓) right by the package's own function, ✗ wrong, · not attempted, ? no answer found, ! not run"


@dataclass(frozen=True, order=True)
class Row:
    """One exercise of one notebook; a notebook that cannot be graded is one row without an exercise.

    Args:
        student: whose it is.
        notebook: the file, below the graded folder.
        exercise: "NN.k".
        title: of the exercise.
        status: what became of it.
        mistake: number of the known mistake, from 1 as in the bank's order; None for others.
        borrowed: the answer is the package's own function, or calls it by name.
        comment: one line.
    """

    student: str
    notebook: str
    exercise: str = ""
    title: str = ""
    status: Status = Status.BROKEN
    mistake: int | None = None
    borrowed: bool = False
    comment: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "comment", plain_line(self.comment))

    @property
    def mark(self) -> str:
        """One sign for the table."""
        return "(✓)" if self.borrowed and self.status is Status.RIGHT else MARKS[self.status]


def plain_line(text: str) -> str:
    """One line without control signs, of limited length: students' text must not steer a terminal or a file format."""
    words = "".join(" " if sign.isspace() else sign for sign in text if sign.isspace() or _is_visible(sign))
    line = re.sub(r" +", " ", words).strip()
    return line if len(line) <= MAX_COMMENT else line[: MAX_COMMENT - 1] + "…"


def _is_visible(sign: str) -> bool:
    return unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn")


# ---------------------------------------------------------------- three forms


def as_csv(rows: Sequence[Row]) -> str:
    """One line per exercise; no cell begins with a sign that a spreadsheet takes for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["student", "notebook", "exercise", "title", "attempted", "right", "mistake", "package", "status", "comment"]
    )
    for row in rows:
        attempted = row.status in (Status.RIGHT, Status.WRONG, Status.NOT_RUN)
        values = [
            *(plain_line(name) for name in (row.student, row.notebook)),
            *(row.exercise, row.title),
            *("yes" if fact else "no" for fact in (attempted, row.status is Status.RIGHT)),
            "" if row.mistake is None else str(row.mistake + 1),
            "yes" if row.borrowed else "no",
            *(str(row.status), row.comment),
        ]
        writer.writerow([f"'{value}" if value.startswith(("=", "+", "-", "@")) else value for value in values])
    return text.getvalue()


def as_table(rows: Sequence[Row]) -> str:
    """One markdown table per lesson, a line per notebook; then what is wrong, line by line."""
    lessons = sorted({row.exercise[:2] for row in rows if row.exercise})
    parts = [_lesson_table(lesson, [row for row in rows if row.exercise[:2] == lesson]) for lesson in lessons]
    if lessons:
        parts.append(LEGEND)
    remarks = [f"- {_cell(f'{row.notebook} {row.exercise}')}: {_cell(row.comment)}" for row in rows if row.comment]
    return "\n\n".join([*parts, *(["\n".join(remarks)] if remarks else [])]) + "\n"


def _lesson_table(lesson: str, rows: Sequence[Row]) -> str:
    ids = sorted({row.exercise for row in rows}, key=lambda name: int(name[3:]))
    marks: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        marks.setdefault((row.student, row.notebook), {})[row.exercise] = row.mark
    head = [f"lesson {lesson}", "notebook", *ids, "right"]
    lines = [
        [student, name, *(of[number] for number in ids), f"{sum('✓' in mark for mark in of.values())} of {len(ids)}"]
        for (student, name), of in marks.items()
    ]
    cells = [head, *([_cell(value) for value in line] for line in lines)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) + " |"
        for line in [cells[0], rule, *cells[1:]]
    )


def _cell(text: str) -> str:
    """Text that means nothing to markdown."""
    return re.sub(r"([\\|`*<\[\]])", r"\\\1", plain_line(text))


def as_junit(rows: Sequence[Row]) -> str:
    """A suite per notebook and a case per exercise: wrong is a failure, no answer an error, not attempted a skip."""
    root = ElementTree.Element("testsuites", name="ddpm course grade")
    for name in dict.fromkeys(row.notebook for row in rows):
        mine = [row for row in rows if row.notebook == name]
        kinds = [_junit_kind(row) for row in mine]
        suite = ElementTree.SubElement(root, "testsuite", name=plain_line(name), tests=str(len(mine)))
        for counted, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(counted, str(kinds.count(kind)))
        for row, kind in zip(mine, kinds, strict=True):
            title = plain_line(f"{row.exercise} {row.title}".strip() or "the notebook")
            case = ElementTree.SubElement(suite, "testcase", classname=plain_line(row.student), name=title)
            if kind:
                ElementTree.SubElement(case, kind, message=row.comment or str(row.status))
            elif row.borrowed:
                ElementTree.SubElement(case, "system-out").text = "This is the package's own function."
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _junit_kind(row: Row) -> str:
    return {Status.RIGHT: "", Status.WRONG: "failure", Status.NOT_ATTEMPTED: "skipped"}.get(row.status, "error")


def write(rows: Sequence[Row], folder: Path) -> None:
    """Writes the three files, each in one step, so that no reader sees half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    in_order = sorted(rows, key=lambda row: (row.student, row.notebook, row.exercise))
    for name, text in ((CSV, as_csv(in_order)), (TABLE, as_table(in_order)), (JUNIT, as_junit(in_order))):
        partial = folder / f".{name}.part"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
        os.replace(partial, folder / name)
