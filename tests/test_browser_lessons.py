"""Every lesson in a real browser: all cells run without a warning, and light and dark themes are both legible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import Lab, errors, illegible, photograph, run_all, set_theme, too_wide, warnings_on

from ddpm_from_scratch.course import workspace

pytestmark = [pytest.mark.browser, pytest.mark.long]
LESSONS = sorted(path.name for path in (workspace.ROOT / "lessons").glob("*.ipynb"))


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_runs_and_is_legible(lab: Lab, page: Any, screenshots: Path, name: str) -> None:
    notebook = lab.open(page, name)
    try:
        saved = run_all(page, notebook, seconds=300)
        assert errors(saved) == []
        assert warnings_on(page) == []
        assert too_wide(page) == []
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
