"""Random schedulers, U-Nets and pipelines against Diffusers, live, until `FUZZ_SECONDS` are spent.

Seeds count up from 0, so a failing case is run again by its seed. Each test prints how many cases it ran and the
largest difference it saw. The long run is the same with more time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from against_diffusers import GROUPS, Tally, report


@pytest.mark.fuzz
@pytest.mark.parametrize("group", GROUPS)
def test_agrees(group: str, fuzz_seeds: Callable[[], Iterator[int]], capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    for seed in fuzz_seeds():
        GROUPS[group](tally, seed)
    with capsys.disabled():
        print(f"\n{tally.table()}")


def test_the_report_has_every_group() -> None:
    heading, *lines = report(seconds=0).splitlines()
    assert heading.startswith("Here against Diffusers")
    assert all(
        re.fullmatch(r".{44} +\d+ cases, (largest difference \d\.\de[+-]\d\d|not compared)", line) for line in lines
    )
    for group in ("ddpm step", "ddim step", "ddpm traj", "ddim traj", "U-Net forward", "ddpm pipe", "ddim pipe"):
        assert any(line.startswith(group) for line in lines)


def test_a_difference_stops_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_from_scratch import gaussian

    exact = gaussian.ddim_mean
    monkeypatch.setattr(gaussian, "ddim_mean", lambda *arguments: exact(*arguments) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        report(seconds=0)
