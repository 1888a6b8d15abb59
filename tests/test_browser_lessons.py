"""Every lesson in a real browser: all cells run without a warning, and light and dark themes are both legible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import Lab, errors, illegible, photograph, run_all, set_theme, too_wide, warnings_on

from ddpm_from_scratch.course import workspace

pytestmark = [pytest.mark.browser, pytest.mark.long]
LESSONS = sorted(path.name for path in (workspace.ROOT / "lessons").glob("*.ipynb"))

CUT_OFF = """
() => {
  const folded = [...document.querySelectorAll('.jp-MarkdownOutput details:not([open])')];
  folded.forEach(text => text.open = true);
  const found = [];
  for (const formula of document.querySelectorAll('.jp-MarkdownOutput mjx-container[display=true] > mjx-math')) {
    const cell = formula.closest('.jp-MarkdownOutput');
    const [ends, edge] = [formula, cell].map(element => element.getBoundingClientRect().right);
    if (ends > edge) found.push(`${Math.ceil(ends - edge)} pixels: ${cell.innerText.trim().slice(0, 80)}`);
  }
  folded.forEach(text => text.open = false);
  return found;
}
"""


def cut_off(page: Any) -> list[str]:
    """Cells with a formula on a line of its own that is wider than they are, also in a folded text."""
    found: list[str] = page.evaluate(CUT_OFF)
    return found


def cut_off_in_a_narrow_window(page: Any) -> list[str]:
    """The same in a window 1024 pixels wide, with the file browser open."""
    size = page.viewport_size
    page.set_viewport_size({"width": 1024, "height": 900})
    page.locator(".jp-FileBrowser").wait_for()
    page.wait_for_timeout(500)
    found = cut_off(page)
    page.set_viewport_size(size)
    return found


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_runs_and_is_legible(lab: Lab, page: Any, screenshots: Path, name: str) -> None:
    notebook = lab.open(page, name)
    try:
        saved = run_all(page, notebook, seconds=300)
        assert errors(saved) == []
        assert warnings_on(page) == []
        assert too_wide(page) == []
        assert cut_off_in_a_narrow_window(page) == []
        hard_to_read = {}
        for theme in ("Light", "Dark"):
            set_theme(page, theme)
            hard_to_read[theme] = illegible(page)
            photograph(page, screenshots / f"lesson_{name[:2]}_{theme.lower()}.png")
    except BaseException:
        page.screenshot(path=screenshots / f"lesson_{name[:2]}_failed.png")
        raise
    assert hard_to_read == {"Light": [], "Dark": []}


def test_what_is_too_wide_is_found(page: Any) -> None:
    page.set_content(
        '<div style="width: 300px"><div class="jp-MarkdownOutput" style="overflow: auto"><p>fits</p></div>'
        '<div class="jp-MarkdownOutput" style="overflow: auto"><p style="width: 310px">does not</p></div></div>'
    )
    assert too_wide(page) == ["310 of 300 pixels: does not"]


def test_a_formula_that_is_cut_off_is_found(page: Any) -> None:
    formula = '<mjx-container display="true"><mjx-math style="display: block; width: {}px"></mjx-math></mjx-container>'
    page.set_content(
        f'<div style="width: 300px"><div class="jp-MarkdownOutput">fits{formula.format(300)}</div>'
        f'<div class="jp-MarkdownOutput"><details><summary>cut off</summary>{formula.format(310)}</details></div></div>'
    )
    assert cut_off(page) == ["10 pixels: cut off"]
    assert page.locator("details[open]").count() == 0


def test_what_is_hard_to_read_is_found(page: Any) -> None:
    """The check itself: dark text and a dark bar on dark, a see-through picture; and nothing where all is well."""
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    page.set_content(
        '<body style="background: #111"><div class="jp-OutputArea-output" style="color: #eee">well'
        '<p style="color: #444">too dark</p><div style="border-left: 4px solid #222">barred</div>'
        f'<img alt="a dot" src="data:image/png;base64,{dot}"><details><summary>folded</summary>fine</details></div>'
    )
    page.wait_for_timeout(200)
    assert [line.split(":")[0] for line in illegible(page)] == [
        "too dark",
        "the bar of “barred”",
        "a picture not on light paper",
    ]
    page.set_content('<body style="background: white"><div class="jp-OutputArea-output">black on white</div>')
    assert illegible(page) == []
