"""The first lesson opened as `make lab` opens it, in a real browser: every cell runs, in this environment's kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ddpm_from_scratch.course import workspace

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
WHICH_PYTHON = "import sys; print(sys.executable)"


@contextmanager
def served_lab(work: Path, home: Path, start: str) -> Iterator[str]:
    """JupyterLab on `work` as `make lab` serves it without a display; yields the address it prints."""
    environment = workspace.lab_environment({**os.environ, "HOME": str(home), "VIRTUAL_ENV": "/nonexistent"})
    command = workspace.lab_command(work, start, browser=False)
    log = home / "lab.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (address := re.search(r"http://(localhost|127\.0\.0\.1)\S+token=\w+", log.read_text())):
            assert server.poll() is None and time.monotonic() < end, (
                f"JupyterLab printed no address:\n{log.read_text()}"
            )
            time.sleep(0.1)
        yield address[0]
    finally:
        server.terminate()
        server.wait(timeout=30)


def foreign_kernel(home: Path) -> None:
    """A user-wide kernel of the name `python3` that belongs to an environment long gone."""
    folder = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = ["/nonexistent/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Gone", "language": "python"}))


def run_all(page: Any, notebook: Path, seconds: float) -> nbformat.NotebookNode:
    """Choose Run > Run All Cells, wait for the last cell, save; the notebook as saved."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        page.wait_for_timeout(1000)
        page.keyboard.press("Control+s")
        try:
            saved = nbformat.read(notebook, as_version=4)
        except nbformat.reader.NotJSONError:  # JupyterLab is writing it
            continue
        code = [cell for cell in saved.cells if cell.cell_type == "code"]
        errors = [output for cell in code for output in cell.outputs if output.output_type == "error"]
        if errors or all(cell.execution_count for cell in code):
            return saved
    raise AssertionError(f"the cells did not finish in {seconds:.0f} s")


def test_first_lesson_runs_in_the_browser(page: Any, screenshots: Path, tmp_path: Path) -> None:
    work, home = tmp_path / "a learner's work", tmp_path / "home"
    home.mkdir()
    foreign_kernel(home)
    workspace.copy_lessons(workspace.ROOT / "lessons", work)
    lesson = work / workspace.START
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(WHICH_PYTHON))
    nbformat.write(notebook, lesson)

    workspace.quieten_lab()
    with served_lab(work, home, workspace.START) as address:
        page.goto(address)
        try:
            saved = run_all(page, lesson, seconds=180)
        finally:
            page.screenshot(path=screenshots / "lesson_00.png")
        assert page.locator(".jp-Dialog").count() == 0, "JupyterLab asks something: see lesson_00.png"

    outputs = [output for cell in saved.cells if cell.cell_type == "code" for output in cell.outputs]
    errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    assert not errors
    assert outputs[-1].text.strip() == sys.executable
