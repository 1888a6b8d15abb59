"""`make test` and `make test-long`: every stage in turn, then where the time went.

A failing stage does not stop the later ones. Arguments after `--` go to pytest; a test file named there runs alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import lesson_budgets

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "test-output"
WORKERS = [f"-n{min(os.cpu_count() or 1, 8)}", "--dist=worksteal"]
FUZZING, BROWSER = "test_fuzz_*.py", "test_browser_*.py"
NOTHING_COLLECTED = 5
PYTEST = [sys.executable, "-m", "pytest", "-q", "-rs", "--continue-on-collection-errors", "--durations=5"]
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=240", "-n2", "--dist=loadfile"]
LEARNERS = ("DDPM_PROGRESS", "JUPYTER_PATH", "MPLBACKEND")  # settings of the person, kept from the notebooks
HEADLESS = {"MPLBACKEND": "Agg"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # several workers share the cores
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # no notebook fetches a network of half a gigabyte in a test


@dataclass(frozen=True)
class Stage:
    """One pytest run: its arguments, the seconds it should take, and those after which it is stopped."""

    name: str
    arguments: list[str]
    budget: float
    stop_after: float
    environment: dict[str, str]


@dataclass
class Result:
    """What a stage did."""

    name: str
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""
    lessons: dict[str, lesson_budgets.Cost] = field(default_factory=dict)


def marked(expression: str, *workers: str, files: str = "test_*.py") -> list[str]:
    """Pytest's arguments for the tests of a marker, in those files alone: reading all takes ten seconds."""
    paths = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob(files))
    return [*paths, "-m", expression, *(workers or ["-n0"]), "-p", "no:nbval"]


def notebook_stages() -> list[Stage]:
    """Both notebook sets under nbval, on copies: running them leaves the repository as it was."""
    stages = []
    for folder in ("lessons", "solutions"):
        if any((ROOT / folder).glob("*.ipynb")):
            shutil.rmtree(OUTPUT / folder, ignore_errors=True)
            shutil.copytree(ROOT / folder, OUTPUT / folder)
            shutil.copy(ROOT / "tests" / "conftest.py", OUTPUT / folder)
            arguments = [f"test-output/{folder}", *NBVAL]
            stages.append(Stage(f"notebooks: {folder}", arguments, 240, 900, ONE_THREAD | OFFLINE))
    return stages


def has_gpu() -> bool:
    """Whether PyTorch finds a CUDA device; it is not asked, and not loaded, where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


def quick_stages() -> list[Stage]:
    return [
        Stage("units", marked("not (long or fuzz or browser or gpu)", *WORKERS), 300, 900, HEADLESS | ONE_THREAD),
        *([Stage("gpu", marked("gpu"), 60, 300, HEADLESS)] if has_gpu() else []),
        *notebook_stages(),
        Stage("fuzzing", marked("fuzz and not long", files=FUZZING), 60, 240, HEADLESS | {"FUZZ_SECONDS": "45"}),
        Stage("browser", marked("browser and not long", files=BROWSER), 60, 300, {}),
    ]


def long_stages() -> list[Stage]:
    return [
        Stage("long", marked("long and not (fuzz or browser)"), 2100, 3600, HEADLESS),
        Stage("fuzzing", marked("fuzz", files=FUZZING), 620, 1200, HEADLESS | {"FUZZ_SECONDS": "600"}),
        Stage("browser", marked("browser", files=BROWSER), 950, 1800, ONE_THREAD),
    ]


def names_a_test(argument: str) -> bool:
    return argument.split("::")[0].endswith((".py", ".ipynb"))


def count(report: Path, result: Result) -> None:
    """Add the counts of a JUnit report, and what each notebook in it cost."""
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        result.passed += total - failed - skipped
        result.failed += failed
        result.skipped += skipped
    result.lessons = lesson_budgets.read_costs(report)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End pytest together with its workers."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def run(stage: Stage, extra: list[str]) -> Result:
    print(f"\n=== {stage.name} ===", flush=True)
    report = OUTPUT / "report.xml"
    report.unlink(missing_ok=True)
    command = [*PYTEST, f"--junitxml={report}", *stage.arguments, *extra]
    inherited = {name: value for name, value in os.environ.items() if name not in LEARNERS}
    result = Result(stage.name, 0.0)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as left:  # by kernels, which nbval kills
        environment = inherited | {"IPYTHONDIR": str(OUTPUT / "ipython"), "TMPDIR": left} | stage.environment
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            status = process.wait(timeout=stage.stop_after)
        except subprocess.TimeoutExpired:
            stop(process)
            status, result.note = 1, f"stopped after {stage.stop_after:.0f} s"
        except KeyboardInterrupt:
            stop(process)
            raise SystemExit("\nstopped") from None
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
        stages = [Stage("chosen tests", ["-n0"], 3600, 3600, HEADLESS)]
    else:
        stages = long_stages() if options.long else quick_stages()
    results += [run(stage, options.arguments) for stage in stages]
    print_table(results)
    for result in results:
        if result.lessons:
            print(f"{lesson_budgets.table(result.name, result.lessons)}\n")
    passed, failed, skipped = (sum(getattr(r, kind) for r in results) for kind in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
