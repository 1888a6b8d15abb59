"""The lessons' budgets: complete, within the time of `make test`, and read rightly from nbval's report."""

from __future__ import annotations

from pathlib import Path

import lesson_budgets
from lesson_budgets import BUDGETS, Cost

from ddpm_from_scratch.course.syllabus import LESSONS

REPORT = """<testsuites><testsuite>
<testcase classname="out.01_a_b.ipynb" name="Cell 0" time="20.5"><properties>
<property name="kernel_mebibytes" value="300.5"/></properties></testcase>
<testcase classname="out.01_a_b.ipynb" name="Cell 1" time="6"><properties>
<property name="kernel_mebibytes" value="512.4"/></properties></testcase>
<testcase classname="out.00_c.ipynb" name="Cell 0" time="1"/>
<testcase classname="tests.test_01_x" name="test_a" time="99"/>
<testcase classname="tests.test_browser" name="test_b[01_a_b.ipynb]" time="99"/>
</testsuite></testsuites>"""


def test_every_lesson_has_its_budgets() -> None:
    numbers = [f"{lesson.number:02}" for lesson in LESSONS]
    for budgets in BUDGETS.values():
        assert list(budgets) == numbers and all(budget > 0 for budget in budgets.values())


def test_all_lessons_fit_into_four_minutes_of_two_workers() -> None:
    assert sum(BUDGETS["seconds"].values()) <= 2 * 240
    assert set(BUDGETS) == set(vars(Cost()))


def test_costs_are_read_from_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    costs = lesson_budgets.read_costs(report)
    assert costs == {"00": Cost(1.0, 0.0), "01": Cost(26.5, 512.4)}
    assert [cost.over(lesson) for lesson, cost in costs.items()] == [[], ["seconds"]]
    text = lesson_budgets.table("notebooks", costs)
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["00", "1.0", "20", "0", "1500"],
        ["01", "26.5", "25", "512", "1500", "over", "its", "seconds"],
    ]
