"""Shared by all tests: a skip is a failure under CI, the time for fuzzing, and a Chromium to drive."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
fuzz_tests = 0


def pytest_configure() -> None:
    """A background job starts with the interrupt ignored, and so would the processes that tests interrupt.

    Tests compare with what the processor computes, so they train on it, also where there is a GPU.
    """
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    global fuzz_tests
    fuzz_tests = sum(item.get_closest_marker("fuzz") is not None for item in session.items)


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Under CI everything that a test may need is there, so a skip hides something."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped, which is a failure under CI=true: {reason}"


def peak_mebibytes(pid: int) -> float:
    """The most memory that a process has held; where the system does not say, what it holds now."""
    import psutil

    try:
        return float(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return psutil.Process(pid).memory_info().rss / 2**20


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """After each cell that nbval runs, notes the memory of the notebook's kernel in the report."""
    yield
    kernel = getattr(item.parent, "kernel", None)
    if kernel is not None and kernel.is_alive():
        item.user_properties.append(("kernel_mebibytes", peak_mebibytes(kernel.km.provisioner.pid)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.fixture
def fuzz_seeds() -> Callable[[], Iterator[int]]:
    """Seeds 0, 1, 2, ... until this test has spent its share of FUZZ_SECONDS (default 60); at least one."""

    def seeds() -> Iterator[int]:
        end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "60")) / max(fuzz_tests, 1)
        seed = 0
        while seed == 0 or time.monotonic() < end:
            yield seed
            seed += 1

    return seeds


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium on this machine."""
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    return found or pytest.skip(f"no Chromium found (looked for {', '.join(CHROMIUMS)})")


@pytest.fixture
def page(chromium: str) -> Iterator[object]:
    """A blank page of 1280 × 900 in a headless Chromium (a Playwright `Page`)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(90_000)
        yield page
        browser.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """JupyterLab on a fresh copy of the lessons, for all tests of the session (a `lab.Lab`)."""
    from lab import Lab, keep_all_cells_in_the_page, served_lab

    from ddpm_from_scratch.course import workspace

    work, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home")
    workspace.copy_lessons(workspace.ROOT / "lessons", work)
    keep_all_cells_in_the_page(home)
    with served_lab(work, home, workspace.START) as address:
        yield Lab(address, work)


@pytest.fixture
def lab(served: object) -> Iterator[object]:
    """The JupyterLab of the session; its kernels end with the test."""
    yield served
    served.stop_kernels()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """A git-ignored folder for pictures that a person may look at after the run."""
    folder = Path(__file__).resolve().parents[1] / "test-output" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
