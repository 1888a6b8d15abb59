"""What each lesson's notebook costs, from nbval's report, beside the budgets of `lesson_budgets.toml`."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

BUDGETS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@dataclass
class Cost:
    """Seconds of all cells, with the start of the kernel, and the most memory that the kernel held (MiB)."""

    seconds: float = 0.0
    mebibytes: float = 0.0

    def over(self, lesson: str) -> list[str]:
        """Which budgets of lesson "NN" are exceeded."""
        return [kind for kind, budget in BUDGETS.items() if getattr(self, kind) > budget.get(lesson, float("inf"))]


def read_costs(report: Path) -> dict[str, Cost]:
    """The cost of each notebook "NN" in a JUnit report; empty where no notebook was run."""
    costs: dict[str, Cost] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        notebook = re.search(r"(\d\d)_\w+\.ipynb$", case.get("classname", ""))
        if notebook:
            cost = costs.setdefault(notebook[1], Cost())
            cost.seconds += float(case.get("time", 0))
            held = [float(p.get("value", 0)) for p in case.iter("property") if p.get("name") == "kernel_mebibytes"]
            cost.mebibytes = max([cost.mebibytes, *held])
    return dict(sorted(costs.items()))


def table(title: str, costs: dict[str, Cost]) -> str:
    """Measured beside budget, one line per lesson, with a warning where one is exceeded."""
    lines = [f"{title:<24}{'seconds':>9}{'budget':>9}{'MiB':>9}{'budget':>9}"]
    for lesson, cost in costs.items():
        seconds, mebibytes = (BUDGETS[kind].get(lesson, 0) for kind in ("seconds", "mebibytes"))
        over = "".join(f"  over its {kind}" for kind in cost.over(lesson))
        lines.append(f"  {lesson:<22}{cost.seconds:>9.1f}{seconds:>9}{cost.mebibytes:>9.0f}{mebibytes:>9}{over}")
    return "\n".join(lines)
