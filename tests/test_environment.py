"""The environment check: it finds what is wrong, says what to do, and shows no path of the machine."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement

from ddpm_from_scratch.course import environment
from ddpm_from_scratch.course.environment import Finding


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Pretends that the distribution `missing` is not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(("version", "good"), [((3, 11, 0), True), ((3, 13, 2), True), ((3, 10, 14), False)])
def test_python(version, good):
    finding = environment.check_python(version)
    assert finding.found == ".".join(map(str, version))
    assert (finding.advice == "") is good
    assert good or "3.11" in finding.advice


def test_the_oldest_python_is_the_package_s_own():
    metadata = importlib.metadata.metadata(environment.DISTRIBUTION)
    assert metadata["Requires-Python"] == ">=" + ".".join(map(str, environment.PYTHON_AT_LEAST))


def test_a_package_out_of_range_or_missing_gets_advice(monkeypatch):
    assert environment.check_package("numpy", None).advice == ""
    assert environment.check_package("numpy", Requirement("numpy>=1.0")).advice == ""
    assert "needs numpy>=99" in environment.check_package("numpy", Requirement("numpy>=99")).advice
    without(monkeypatch, "numpy")
    missing = environment.check_package("numpy", None)
    assert missing.found == "missing" and "make lab" in missing.advice


def test_a_foreign_kernel_is_named(monkeypatch):
    assert environment.check_kernel().advice == ""
    without(monkeypatch, environment.DISTRIBUTION)
    assert "Change Kernel" in environment.check_kernel().advice


def test_the_ranges_are_those_of_the_package():
    ranges = environment.requirements()
    assert set(environment.SHOWN_PACKAGES) <= set(ranges)
    assert "diffusers" not in ranges  # an extra


def test_memory_and_cores():
    gib = 2**30
    assert environment.check_memory(8 * gib, 16 * gib) == Finding("memory", "8.0 GiB free of 16.0")
    assert "close other programs" in environment.check_memory(int(1.9 * gib), 16 * gib).advice
    assert environment.check_processor(2) == Finding("processor", "2 cores")
    assert environment.check_processor(1).found == "1 core" and environment.check_processor(1).advice


def test_the_report_counts_what_is_wrong_and_puts_advice_below_it():
    text = environment.report([Finding("a", "1"), Finding("b", "2", "mend b"), Finding("c", "3", "mend c")])
    lines = text.splitlines()
    assert lines[0].startswith("✓ a") and lines[1].startswith("✗ b") and lines[2].endswith("mend b")
    assert lines[-1] == "2 things to look at, marked ✗."
    assert environment.report([Finding("a", "1")]).endswith("Everything is ready.")


def test_here_everything_is_found_and_no_path_is_shown(capsys):
    environment.check()
    text = capsys.readouterr().out
    assert not re.search(r"(^|\s)(/|[A-Z]:\\)\w", text)
    assert all(name in text for name in ("Python", "kernel", "torch", "memory", "processor", "accelerator"))
