"""The bug clinic of lesson 06: every broken run shows the evidence by which the lesson tells it from the sound one."""

from __future__ import annotations

import pytest
import torch

from ddpm_from_scratch.course import broken_runs
from ddpm_from_scratch.course.broken_runs import BrokenRun
from ddpm_from_scratch.data import load_dataset


def images(split: str) -> torch.Tensor:
    data = load_dataset("digits", split=split)
    return data.images(torch.isin(data.labels, torch.tensor([0, 1, 4])))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def runs() -> dict[str, BrokenRun]:
    state = torch.get_rng_state()
    found = {name: broken_runs.run(name, images("train"), images("test"), steps=300) for name in broken_runs.RUNS}
    assert torch.equal(state, torch.get_rng_state())
    return found


def late(run: BrokenRun) -> float:
    return float(run.losses[-100:].mean())


def test_the_sound_run_learns_and_holds_on_images_it_has_not_seen(runs: dict[str, BrokenRun]) -> None:
    sound = runs["sound"]
    assert late(sound) < 0.2 and sound.held_out == pytest.approx(late(sound), rel=0.4)
    assert sound.samples.mean() == pytest.approx(float(images("train").mean()), abs=0.25)


def test_noise_drawn_once_is_learnt_by_heart(runs: dict[str, BrokenRun]) -> None:
    assert late(runs["A"]) < 0.8 * late(runs["sound"])
    assert runs["A"].held_out > 1.2 * runs["sound"].held_out


def test_images_in_0_to_1_give_a_good_loss_and_grey_samples(runs: dict[str, BrokenRun]) -> None:
    assert late(runs["B"]) < late(runs["sound"])
    assert runs["B"].samples.mean() > runs["sound"].samples.mean() + 0.3
    assert runs["B"].held_out > 3 * runs["sound"].held_out


def test_x_t_as_the_target_gives_a_loss_that_no_honest_run_has(runs: dict[str, BrokenRun]) -> None:
    assert late(runs["C"]) < 0.05 * late(runs["sound"])


def test_one_t_per_batch_learns_with_a_wild_curve(runs: dict[str, BrokenRun]) -> None:
    assert runs["D"].losses[-200:].std() > 3 * runs["sound"].losses[-200:].std()
    assert runs["D"].held_out < 1.5 * runs["sound"].held_out
