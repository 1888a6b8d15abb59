"""Is this machine ready for the course? A check that answers in plain words and says what to do."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch
from packaging.requirements import Requirement

DISTRIBUTION = "ddpm_from_scratch"
PYTHON_AT_LEAST = (3, 11)
SHOWN_PACKAGES = ("torch", "numpy", "matplotlib", "ipywidgets")
MEMORY_NEEDED_GIB = 2.0
START_AGAIN = (
    "close this tab and start the course as the README says, with `make lab` or its lines for your system "
    "(or Kernel → Change Kernel, and pick the course's own)"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Args:
        name: what was looked at.
        found: what was found.
        advice: what to do about it; "" where nothing needs doing.
    """

    name: str
    found: str
    advice: str = ""


def requirements() -> dict[str, Requirement]:
    """The package's own version ranges by name, from its installed metadata; empty where it is not installed."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in lines]
    return {r.name.lower(): r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}


def check_python(version: tuple[int, ...]) -> Finding:
    """Is this Python new enough?"""
    found, needed = ".".join(map(str, version[:3])), ".".join(map(str, PYTHON_AT_LEAST))
    advice = "" if version[:2] >= PYTHON_AT_LEAST else f"the course needs Python {needed} or newer; {START_AGAIN}"
    return Finding("Python", found, advice)


def check_kernel() -> Finding:
    """Does the notebook run on the Python into which the course was installed?"""
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return Finding("kernel", "a Python into which the course is not installed", START_AGAIN)
    return Finding("kernel", f"the course's own environment, {DISTRIBUTION} {version}")


def check_package(name: str, needed: Requirement | None) -> Finding:
    """Is the package there, in a version within the course's range?"""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", START_AGAIN)
    if needed is not None and not needed.specifier.contains(version, prereleases=True):
        return Finding(name, version, f"the course needs {name}{needed.specifier}; {START_AGAIN}")
    return Finding(name, version)


def check_memory(available_bytes: int, total_bytes: int) -> Finding:
    """Is enough memory free for the largest lesson?"""
    free, total = available_bytes / 2**30, total_bytes / 2**30
    advice = "" if free >= MEMORY_NEEDED_GIB else f"lessons use up to {MEMORY_NEEDED_GIB:.0f} GiB: close other programs"
    return Finding("memory", f"{free:.1f} GiB free of {total:.1f}", advice)


def check_processor(cores: int) -> Finding:
    """How many cores are there? Two are enough."""
    found = f"{cores} core{'s' * (cores > 1)}"
    advice = "" if cores > 1 else "lessons are timed on 2 cores: expect the cells that train to take twice as long"
    return Finding("processor", found, advice)


def check_accelerator() -> Finding:
    """Is there a GPU? The course does not need one."""
    if torch.cuda.is_available():
        return Finding("accelerator", torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return Finding("accelerator", "Apple GPU")
    return Finding("accelerator", "none, and none is needed: every lesson is made for the processor")


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def findings() -> list[Finding]:
    """Everything the check looks at, in the order shown."""
    needed, memory = requirements(), psutil.virtual_memory()
    return [
        check_python(sys.version_info[:3]),
        check_kernel(),
        *(check_package(name, needed.get(name)) for name in SHOWN_PACKAGES),
        check_processor(core_count()),
        check_memory(memory.available, memory.total),
        check_accelerator(),
    ]


def report(found: Iterable[Finding]) -> str:
    """The findings as text: one line each, the advice below what it is about, the verdict last."""
    found = list(found)
    lines = []
    for item in found:
        lines.append(f"{'✗' if item.advice else '✓'} {item.name:<12} {item.found}")
        if item.advice:
            lines.append(f"  what to do:  {item.advice}")
    wrong = sum(bool(item.advice) for item in found)
    verdict = f"{wrong} thing{'s' * (wrong > 1)} to look at, marked ✗." if wrong else "Everything is ready."
    return "\n".join([*lines, "", verdict])


def check() -> None:
    """Print what was found and what to do about it."""
    print(report(findings()))
