"""The first lesson opened as `make lab` opens it, in a real browser: every cell runs, in this environment's kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import errors, outputs, run_all, served_lab, warnings_on

from ddpm_from_scratch.course import workspace

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
WHICH_PYTHON = "import sys; print(sys.executable)"


def foreign_kernel(home: Path) -> None:
    """A user-wide kernel of the name `python3` that belongs to an environment long gone."""
    folder = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = ["/nonexistent/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Gone", "language": "python"}))


def test_first_lesson_runs_in_the_browser(page: Any, screenshots: Path, tmp_path: Path) -> None:
    work, home = tmp_path / "a learner's work", tmp_path / "home"
    home.mkdir()
    foreign_kernel(home)
    workspace.copy_lessons(workspace.ROOT / "lessons", work)
    lesson = work / workspace.START
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(WHICH_PYTHON))
    nbformat.write(notebook, lesson)

    with served_lab(work, home, workspace.START) as address:
        page.goto(address)
        try:
            saved = run_all(page, lesson, seconds=180)
        finally:
            page.screenshot(path=screenshots / "smoke.png")
        assert warnings_on(page) == [], "see smoke.png"

    assert errors(saved) == []
    assert outputs(saved)[-1].text.strip() == sys.executable
