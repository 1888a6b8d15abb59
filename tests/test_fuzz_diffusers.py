"""Random schedulers and U-Nets against Diffusers, live, until the time for fuzzing (`FUZZ_SECONDS`) is spent.

Seeds count up from 0, so a failing case is run again by its seed. Each test prints how many cases it ran and the
largest difference it saw. The long run is the same with more time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from against_diffusers import (
    compare_steps,
    compare_trajectories,
    compare_unets,
    random_scheduler_config,
    random_step_count,
    random_unet_config,
)

pytestmark = pytest.mark.fuzz
Seeds = Callable[[], Iterator[int]]


class Tally:
    """Cases and largest differences by group."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.worst: dict[str, float] = {}

    def add(self, group: str, difference: float) -> None:
        self.cases[group] += 1
        self.worst[group] = max(self.worst.get(group, 0.0), difference)

    def show(self, capsys: pytest.CaptureFixture[str]) -> None:
        with capsys.disabled():
            print()
            for group, count in self.cases.items():
                print(f"{group:<40}{count:>7} cases, largest relative difference {self.worst[group]:.1e}")


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_steps(kind: str, fuzz_seeds: Seeds, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    for seed in fuzz_seeds():
        rng = random.Random(seed)
        config = random_scheduler_config(rng, kind)
        worst = compare_steps(kind, config, random_step_count(config, rng), rng)
        # where 1 - ᾱ - σ² is 0 but for rounding, its root is about 1e-8 on either side
        assert worst["formulas"] < 5e-8, (seed, config)
        assert worst["ours to oracle"] < 2e-6, (seed, config)
        tally.add(f"{kind} step, formulas in float64", worst["formulas"])
        tally.add(f"{kind} step, here to the oracle", worst["ours to oracle"])
        if worst["float32"] < 1e-5:
            tally.add(f"{kind} step, float32", worst["float32"])
        else:
            assert worst["theirs to oracle"] > 5 * worst["ours to oracle"], (seed, config)
            tally.add(f"{kind} step, here closer to the oracle", worst["float32"])
    tally.show(capsys)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_trajectories(kind: str, fuzz_seeds: Seeds, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    for seed in fuzz_seeds():
        rng = random.Random(seed)
        config = random_scheduler_config(rng, kind)
        difference = compare_trajectories(kind, config, random_step_count(config, rng), rng)
        if difference is None:
            tally.add(f"{kind} trajectory, Diffusers elsewhere", 0.0)
        else:
            assert difference[1] < 1e-7, (seed, config)  # rounding over up to 1,000 steps
            tally.add(f"{kind} trajectory, float64", difference[1])
            # beyond 5e-4 the float32 tables of Diffusers are what differs: the float64 comparison has just said so
            apart = "" if difference[0] < 5e-4 else ", tables apart"
            tally.add(f"{kind} trajectory, float32{apart}", difference[0])
    tally.show(capsys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks(dtype: torch.dtype, fuzz_seeds: Seeds, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    tolerances = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-12, 1e-10)}[dtype]
    for seed in fuzz_seeds():
        rng = random.Random(seed)
        config = random_unet_config(rng)
        differences = compare_unets(config, rng, dtype)
        for name, difference, tolerance in zip(("forward", "backward"), differences, tolerances, strict=True):
            assert difference < tolerance, (seed, config)
            tally.add(f"U-Net {name}, {dtype}", difference)
    tally.show(capsys)
