"""How long each widget takes to redraw after its control moved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddpm_from_scratch import schedules
from ddpm_from_scratch.data import load_dataset
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import TrainingConfig

from .base import Explorer
from .interpolation import interpolation_explorer
from .monitor import Recorder, training_monitor
from .noise import noise_slider
from .posterior import posterior_explorer
from .sampler import sampler_explorer
from .schedule import schedule_explorer
from .tracer import unet_tracer

GOAL = 100
"""Milliseconds within which a movement looks immediate."""


@dataclass(frozen=True)
class Movement:
    """A widget, and the values that one of its controls takes in turn."""

    build: Callable[[], Explorer]
    control: str
    values: Sequence[Any]


def _fashion() -> torch.Tensor:
    images: Any = load_dataset("fashion-10k", split="test")
    return images.images()[:64]


def _alpha_bar() -> torch.Tensor:
    return schedules.alpha_bars(schedules.linear())


def _tracer() -> Explorer:
    image, noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return unet_tracer(DDPMPipeline.from_pretrained("digits").unet, image, noise, _alpha_bar())


def _monitor() -> Explorer:
    """A monitor of a run that is over, which has measured twice."""
    data: Any = load_dataset("digits", image_size=16)
    config = TrainingConfig(steps=4, batch_size=4)
    recorder = Recorder(data.images()[:10], every=2, count=10, sampling_steps=2)
    monitor = training_monitor(small_unet(data.shape, (16, 32)), DDPMScheduler(), data, config, recorder)
    monitor.start()
    monitor.join()
    return monitor


def _sampler() -> Explorer:
    pipeline = DDPMPipeline.from_pretrained("digits")
    return sampler_explorer(pipeline.unet, pipeline.scheduler)


MOVEMENTS: dict[str, Movement] = {
    "noise_slider": Movement(lambda: noise_slider(_fashion(), _alpha_bar()), "slider", range(0, 1000, 37)),
    "schedule_explorer": Movement(lambda: schedule_explorer(_fashion()), "steps", range(20, 2000, 73)),
    "posterior_explorer": Movement(lambda: posterior_explorer(_alpha_bar()), "t", range(400, 1000, 23)),
    "unet_tracer": Movement(_tracer, "slider", range(0, 1000, 37)),
    "training_monitor": Movement(_monitor, "shown", (2, 4)),
    "sampler_explorer": Movement(_sampler, "moment", range(10)),
    "interpolation_explorer": Movement(lambda: interpolation_explorer(torch.tanh, (1, 16, 16)), "across", range(1, 9)),
}
"""One row per widget that redraws while it is moved."""


def milliseconds(movement: Movement, redraws: int = 25) -> float:
    """Median time of a redraw, from the control's new value to the new picture.

    Raises:
        ValueError: fewer than one redraw.
        RuntimeError: a movement that did not change the picture.
    """
    if redraws < 1:
        raise ValueError(f"a benchmark needs at least one round, got {redraws}")
    widget = movement.build()
    control, times = getattr(widget, movement.control), []
    for i in range(redraws):
        before = widget.picture.value
        value = movement.values[i % len(movement.values)]
        began = time.perf_counter()
        control.value = value
        times.append(1000 * (time.perf_counter() - began))
        if widget.picture.value == before:
            raise RuntimeError(f"{movement.control} = {value} did not change the picture")
    return statistics.median(times)


def table(redraws: int = 25) -> str:
    """One line per widget."""
    lines = [f"{'median redraw':<22}{'milliseconds':>14}"]
    for name, movement in MOVEMENTS.items():
        took = milliseconds(movement, redraws)
        lines.append(f"{name:<22}{took:>14.1f}{f'  over {GOAL}' if took > GOAL else ''}")
    return "\n".join(lines)
