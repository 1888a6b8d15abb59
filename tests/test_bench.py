"""`ddpm bench`: it runs at tiny size and says what it measured. No test judges a time."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest
import torch

from ddpm_from_scratch import bench, cli
from ddpm_from_scratch.course import widgets
from ddpm_from_scratch.course.widgets import bench as widget_bench

TINY = {"batch": 2, "size": 8, "widths": (16, 32), "rounds": 1}


@pytest.fixture
def without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name))


def test_both_sides_do_the_same_work() -> None:
    """Same weights, inputs and steps: the losses, predictions and samples that are timed agree."""
    device = torch.device("cpu")
    ours = bench.our_side(8, (16, 32), device)
    theirs = bench.their_side(ours, device)
    assert theirs is not None
    x, eps = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.unet(x, t).sample, theirs.unet(x, t).sample, rtol=1e-4, atol=1e-5)
    loss = [side.loss(side.unet, side.ddpm, x, eps, t) for side in (ours, theirs)]
    torch.testing.assert_close(loss[0], loss[1], rtol=1e-4, atol=1e-6)
    for name in ("ddpm", "ddim"):
        moved = []
        for scheduler in (getattr(ours, name), getattr(theirs, name)):
            scheduler.set_timesteps(50)
            moved.append(scheduler.step(eps, 500, x, generator=torch.Generator().manual_seed(2)).prev_sample)
        torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-5)


def test_rounds_alternate_and_the_first_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = iter([0, 9, 0, 9, 0, 1, 0, 2, 0, 3, 0, 4])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    sides = [lambda: order.append("a"), lambda: order.append("b")]
    assert bench.milliseconds(sides, 2, torch.device("cpu")) == [2000, 3000]
    assert order == ["a", "b"] * 3


def test_the_library_beside_diffusers() -> None:
    state = torch.random.get_rng_state()
    timings = bench.run(**TINY)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [timing.name for timing in timings] == ["DDPM step", "DDIM step", "U-Net forward", "training step"]
    lines = bench.table(timings).splitlines()
    assert len(lines) == 5
    for timing, line in zip(timings, lines[1:], strict=True):
        assert timing.here > 0 and timing.diffusers and timing.ratio == timing.here / timing.diffusers
        assert line.split()[-1] == f"{timing.ratio:.2f}"


def test_without_diffusers_a_sentence_says_so(without_diffusers: None) -> None:
    timings = bench.run(**TINY)
    assert all(timing.diffusers is None and timing.ratio is None for timing in timings)
    assert "Diffusers is not installed" in bench.table(timings).splitlines()[-1]


def test_every_widget_has_a_row_and_moves() -> None:
    calls = {name for name in widgets.__all__ if name.islower()}
    assert set(widget_bench.MOVEMENTS) == calls
    lines = widget_bench.table(redraws=2).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(widget_bench.MOVEMENTS)
    assert all(re.search(r"\d\.\d", line) for line in lines[1:])


@pytest.mark.parametrize("arguments", [["library", "--image-size", "8", "--batch-size", "1"], ["widgets"]])
def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], without_diffusers: None
) -> None:
    monkeypatch.setattr(sys, "argv", ["ddpm", "bench", *arguments, "--rounds", "1"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert re.search("training step|noise_slider", capsys.readouterr().out)
