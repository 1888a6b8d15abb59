"""`make test` and `make test-long`: every stage in turn, then where the time went.

A failing stage does not stop the later ones. Arguments after `--` go to pytest; with a test file named, that runs alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "test-output"
WORKERS = str(min(os.cpu_count() or 1, 8))
NOTHING_COLLECTED = 5
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=240", "-p", "tests.conftest"]


@dataclass(frozen=True)
class Stage:
    """One pytest run: its arguments, the seconds it should take, and those after which it is stopped."""

    name: str
    arguments: list[str]
    budget: float
    stop_after: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What a stage did."""

    name: str
    seconds: float
    budget: float | None = None
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""


def marked(expression: str, workers: str = "0") -> list[str]:
    return ["tests", "-m", expression, f"-n{workers}"]


def notebook_stage(folder: str) -> Stage:
    """The notebooks of a folder under nbval, on a copy: running them leaves the repository as it was."""
    copy = OUTPUT / folder
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / folder, copy) if (ROOT / folder).is_dir() else copy.mkdir(parents=True)
    return Stage(
        f"notebooks: {folder}",
        [f"test-output/{folder}", *NBVAL, "-n2", "--dist=loadfile"],
        240,
        900,
        {"OMP_NUM_THREADS": "1"},
    )


def quick_stages() -> list[Stage]:
    one_thread = {"OMP_NUM_THREADS": "1"}
    return [
        Stage("units", marked("not long and not fuzz and not browser", WORKERS), 240, 900, one_thread),
        notebook_stage("lessons"),
        notebook_stage("solutions"),
        Stage("fuzzing", marked("fuzz and not long"), 75, 240, {"FUZZ_SECONDS": "60"}),
        Stage("browser", marked("browser and not long"), 90, 300),
    ]


def long_stages() -> list[Stage]:
    return [
        Stage("long", marked("long and not browser"), 2400, 3600),
        Stage("fuzzing", marked("fuzz"), 620, 1200, {"FUZZ_SECONDS": "600"}),
        Stage("browser", marked("browser"), 600, 1200),
    ]


def names_a_test(argument: str) -> bool:
    return not argument.startswith("-") and (ROOT / argument.split("::")[0]).exists()


def count(report: Path, result: Result) -> None:
    """Add the counts of a JUnit report."""
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        result.passed += total - failed - skipped
        result.failed += failed
        result.skipped += skipped


def run(stage: Stage, extra: list[str]) -> Result:
    print(f"\n=== {stage.name} ===", flush=True)
    report = OUTPUT / "report.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "--durations=5",
        "--durations-min=2",
        f"--junitxml={report}",
    ]
    environment = {**os.environ, "MPLBACKEND": "Agg", "IPYTHONDIR": str(OUTPUT / "ipython"), **stage.environment}
    started = time.monotonic()
    result = Result(stage.name, 0.0, stage.budget)
    try:
        status = subprocess.run(
            [*command, *stage.arguments, *extra], cwd=ROOT, env=environment, timeout=stage.stop_after, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        status, result.note = 1, f"stopped after {stage.stop_after:.0f} s"
    result.seconds = time.monotonic() - started
    if report.exists():
        count(report, result)
    if status not in (0, NOTHING_COLLECTED) and not result.failed:
        result.failed = 1
        result.note = result.note or f"pytest ended with status {status}"
    if result.seconds > stage.budget:
        result.note = result.note or f"over its {stage.budget:.0f} s"
    return result


def print_table(results: list[Result]) -> None:
    print(f"\n{'where the time went':<24}{'seconds':>9}{'passed':>9}{'failed':>9}{'skipped':>9}")
    for r in results:
        print(f"{r.name:<24}{r.seconds:>9.1f}{r.passed:>9}{r.failed:>9}{r.skipped:>9}  {r.note}".rstrip())
    print(f"{'total':<24}{sum(r.seconds for r in results):>9.1f}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="run what is too slow for every time")
    parser.add_argument("--started", type=float, default=time.time(), help="when the set-up began (Unix time)")
    parser.add_argument("arguments", nargs="*", help="passed to pytest")
    options = parser.parse_args()
    results = [Result("set-up", max(0.0, time.time() - options.started))]
    OUTPUT.mkdir(exist_ok=True)
    if any(map(names_a_test, options.arguments)):
        stages = [Stage("chosen tests", [], 3600, 3600)]
    else:
        stages = long_stages() if options.long else quick_stages()
    results += [run(stage, options.arguments) for stage in stages]
    print_table(results)
    passed, failed, skipped = (sum(getattr(r, kind) for r in results) for kind in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
