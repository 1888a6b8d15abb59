"""Every lesson in a real browser: all cells run without a warning, and light and dark themes are both legible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import Lab, errors, illegible, photograph, run_all, set_theme, warnings_on

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
        hard_to_read = {}
        for theme in ("Light", "Dark"):
            set_theme(page, theme)
            hard_to_read[theme] = illegible(page)
            photograph(page, screenshots / f"lesson_{name[:2]}_{theme.lower()}.png")
    except BaseException:
        page.screenshot(path=screenshots / f"lesson_{name[:2]}_failed.png")
        raise
    assert hard_to_read == {"Light": [], "Dark": []}
