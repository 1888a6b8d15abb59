"""An exercise as a learner meets it: a wrong answer, the hints, the solution, a right answer, a restarted kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import Lab, choose, errors, illegible, photograph, run_all, set_theme, wait_for_kernel

from ddpm_from_scratch.course import exercises

pytestmark = [pytest.mark.browser, pytest.mark.long]
EXERCISE = exercises.get("01.1")
WRONG = "    return (1 - beta_t) * x_prev + beta_t**0.5 * noise  # the root is forgotten"
CELLS = [
    'import torch\nfrom torch import Tensor\n\nfrom ddpm_from_scratch.course import check, setup\n\nsetup("01")',
    EXERCISE.stub.rstrip().removesuffix("...").rstrip() + "\n" + WRONG,
    f'check("01.1", {EXERCISE.name})',
    'from ddpm_from_scratch.course import progress\n\nprogress("01")',
]


def test_from_a_wrong_answer_to_kept_progress(lab: Lab, page: Any, screenshots: Path) -> None:
    saved = run_all(page, lab.open(page, lab.write("exercise.ipynb", CELLS).name), seconds=90)
    (said,) = errors(saved)
    assert "Exercise 01.1 is not right yet" in said and "not by its square root" in said
    cell = page.locator(".jp-CodeCell").nth(2)
    shown = cell.inner_text()
    assert "Exercise 01.1 is not right yet" in shown and "Traceback" not in shown

    hint, solution = (cell.locator("details", has_text=words) for words in ("Hint 1: idea", "Solution"))
    for folded, inside in ((hint, "div"), (solution, "pre")):
        assert not folded.locator(inside).first.is_visible()
        folded.locator("summary").first.click()
        folded.locator(inside).first.wait_for(state="visible")
    assert EXERCISE.hints[0].replace("`", "")[:40] in hint.inner_text()
    assert EXERCISE.solution.strip().splitlines()[-1].strip() in solution.inner_text()
    for theme in ("Light", "Dark"):
        set_theme(page, theme)
        photograph(page, screenshots / f"exercise_wrong_{theme.lower()}.png")
        assert illegible(page) == []

    page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(EXERCISE.solution)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    cell.get_by_text("✓ Exercise 01.1 is right").wait_for()
    for theme in ("Light", "Dark"):
        set_theme(page, theme)
        photograph(page, screenshots / f"exercise_right_{theme.lower()}.png")
        assert illegible(page) == []

    choose(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    wait_for_kernel(page)
    last = page.locator(".jp-CodeCell").nth(3)
    last.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    row = last.locator("tr", has_text="01.1")
    row.wait_for()
    assert [text.strip() for text in row.locator("td").all_inner_texts()][2:] == ["✓ right", "2"]
