"""The sampler explorer: the pipelines' own images, stored frames, work that can be stopped, a fixed picture."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from ddpm_from_scratch.course import widgets
from ddpm_from_scratch.course.widgets import sampler
from ddpm_from_scratch.course.widgets.sampler import DDIM, LARGE, SMALL, Choice, trajectory


class StandIn:
    """Quick in the place of a network: a smooth function of x and t; may wait for `gate`, counts its calls."""

    config = SimpleNamespace(sample_size=6, in_channels=1)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.calls, self.gate = 0, threading.Event()
        self.gate.set()

    def eval(self) -> StandIn:
        return self

    def __call__(self, x: torch.Tensor, t: Any) -> Any:
        self.calls += 1
        assert self.gate.wait(20)
        return SimpleNamespace(sample=torch.sin(2 * x) + 0.1 * int(t) / 1000)


@pytest.fixture
def unet() -> StandIn:
    return StandIn()


@pytest.fixture
def explorer(unet: StandIn) -> widgets.SamplerExplorer:
    return widgets.sampler_explorer(unet, DDPMScheduler(), (Choice(steps=4), Choice(SMALL, steps=6)), count=2)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize(
    ("choice", "pipeline", "scheduler", "options"),
    [
        (Choice(DDIM, 5, 0.0, "trailing"), DDIMPipeline, DDIMScheduler(timestep_spacing="trailing"), {"eta": 0.0}),
        (Choice(DDIM, 7, 0.4), DDIMPipeline, DDIMScheduler(), {"eta": 0.4}),
        (Choice(SMALL, 5), DDPMPipeline, DDPMScheduler(), {}),
        (Choice(LARGE, 5, spacing="linspace"), DDPMPipeline, None, {}),
    ],
    ids=["DDIM", "DDIM with noise", "small variance", "large variance"],
)
def test_the_images_are_those_of_a_pipeline(
    unet: StandIn, choice: Choice, pipeline: Any, scheduler: Any, options: dict[str, Any]
) -> None:
    scheduler = scheduler or DDPMScheduler(variance_type="fixed_large", timestep_spacing="linspace")
    path = trajectory(unet, DDPMScheduler().config, choice, 3, seed=5)
    run = pipeline(unet, scheduler)
    run.set_progress_bar_config(disable=True)
    seen: list[torch.Tensor] = []
    predicted: list[torch.Tensor] = []

    def keep(step: int, t: int, x: torch.Tensor, x0: torch.Tensor) -> None:
        seen.append(x)
        predicted.append(x0)

    generator = torch.Generator().manual_seed(5)
    run(3, generator, num_inference_steps=choice.steps, callback=keep, output_type="pt", **options)
    assert path.steps == choice.steps and path.t[-1] == -1
    assert path.t[:-1] == run.scheduler.timesteps.tolist()
    for x, x0, after, before in zip(seen, predicted, path.x[1:], path.x0, strict=False):
        torch.testing.assert_close(after, x, rtol=0, atol=0)
        torch.testing.assert_close(before, x0, rtol=0, atol=0)


def test_both_sides_start_from_the_same_noise(explorer: widgets.SamplerExplorer) -> None:
    first, second = (path.x[0] for path in explorer.paths)
    assert torch.equal(first, second)
    assert not torch.equal(explorer.paths[0].x[-1], explorer.paths[1].x[-1])


def test_scrubbing_asks_no_network_and_opens_no_figure(explorer: widgets.SamplerExplorer, unet: StandIn) -> None:
    calls, figure = unet.calls, explorer.live.figure
    children = sum(len(ax.get_children()) for ax in figure.axes)
    shown = []
    for moment in range(explorer.moment.max + 1):
        explorer.moment.value = moment
        shown.append(explorer.picture.value)
    assert len(set(shown)) == explorer.moment.max + 1 == 7
    assert unet.calls == calls and explorer.live.figure is figure
    assert sum(len(ax.get_children()) for ax in figure.axes) == children
    assert plt.get_fignums() == []


def test_a_frame_equals_the_figure_drawn_from_scratch(explorer: widgets.SamplerExplorer) -> None:
    explorer.frame(0)
    frame = pixels(explorer.frame(3))
    for artist in explorer.live.moving:
        artist.set_animated(False)
    explorer.live.canvas.draw()
    np.testing.assert_array_equal(frame, np.asarray(explorer.live.canvas.buffer_rgba())[..., :3])


def test_the_shorter_side_keeps_pace(explorer: widgets.SamplerExplorer) -> None:
    short, long = explorer.paths
    assert [short.at(moment / 6) for moment in range(7)] == [0, 1, 1, 2, 3, 3, 4]
    assert [long.at(moment / 6) for moment in range(7)] == list(range(7))
    explorer.moment.value = 6
    assert [title.get_text() for title in explorer.titles] == ["4 of 4 steps, done", "6 of 6 steps, done"]
    explorer.moment.value = 0
    assert explorer.titles[0].get_text() == "0 of 4 steps, t = 750"


def wait_until(said: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not said():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_play_goes_from_the_start_to_the_end(explorer: widgets.SamplerExplorer, monkeypatch: Any) -> None:
    monkeypatch.setattr(sampler, "FRAME_SECONDS", 0.001)
    seen: list[bytes] = []
    explorer.picture.observe(lambda change: seen.append(change["new"]), names="value")
    explorer.play.value = True
    assert explorer.play.description == "Pause"
    wait_until(lambda: not explorer.play.value)
    assert explorer.play.description == "Play" and explorer.moment.value == 6
    assert seen == [explorer.frame(moment) for moment in range(7)]


def test_play_is_paused_and_goes_on_from_there(explorer: widgets.SamplerExplorer, monkeypatch: Any) -> None:
    monkeypatch.setattr(sampler, "FRAME_SECONDS", 0.05)
    explorer.moment.value = 2
    explorer.play.value = True
    wait_until(lambda: explorer.moment.value >= 3)
    explorer.play.value = False
    paused_at = explorer.moment.value
    time.sleep(0.2)
    assert paused_at <= explorer.moment.value <= paused_at + 1 < 6  # a frame may have been on its way
    explorer.play.value = True
    wait_until(lambda: explorer.moment.value == 6 and not explorer.play.value)


def test_sampling_anew(explorer: widgets.SamplerExplorer) -> None:
    before = explorer.paths
    a, b = explorer.sides
    a["steps"].value, a["eta"].value, a["spacing"].value = 9, 0.5, "trailing"
    b["sampler"].value = LARGE
    explorer.seed.value = 3
    explorer.work.start_button.click()
    assert explorer.work.join(20)
    assert explorer.choices == [Choice(DDIM, 9, 0.5, "trailing"), Choice(LARGE, 6)]
    assert explorer.paths is not before and explorer.paths[0].steps == explorer.moment.max == 9
    assert explorer.work.bar.value == explorer.work.bar.max == 15
    assert explorer.work.stop_button.disabled
    assert "DDIM, η = 0.5, 9 steps, trailing" in explorer.text.value
    expected = trajectory(explorer.unet, explorer.config, explorer.choices[0], 2, seed=3)
    assert torch.equal(explorer.paths[0].x[-1], expected.x[-1])


def test_sampling_can_be_stopped(explorer: widgets.SamplerExplorer, unet: StandIn) -> None:
    before, picture, calls = explorer.paths, explorer.picture.value, unet.calls
    unet.gate.clear()
    explorer.sides[0]["steps"].value = 500
    explorer.start()
    assert explorer.work.thread.is_alive() and not explorer.work.stop_button.disabled
    explorer.work.stop_button.click()
    unet.gate.set()
    assert explorer.work.join(20) and unet.calls <= calls + 2
    assert explorer.paths is before and explorer.picture.value == picture
    assert "Stopped: the picture shows the samples from before" in explorer.text.value
    assert explorer.work.stop_button.disabled


def test_sampling_again_ends_what_runs(explorer: widgets.SamplerExplorer, unet: StandIn) -> None:
    unet.gate.clear()
    explorer.sides[0]["steps"].value = 500
    explorer.start()
    first = explorer.work.thread
    threading.Timer(0.2, unet.gate.set).start()
    explorer.sides[0]["steps"].value = 3
    explorer.start()
    assert not first.is_alive() and explorer.work.join(20)
    assert [path.steps for path in explorer.paths] == [3, 6]
    assert "3 steps" in explorer.text.value


def test_choices_not_yet_sampled_are_said_to_be_so(explorer: widgets.SamplerExplorer) -> None:
    picture = explorer.picture.value
    assert "seed 0" in explorer.text.value and "Press Sample" not in explorer.text.value
    explorer.seed.value = 3
    assert "seed 0. Press Sample for the new choices." in explorer.text.value
    assert explorer.picture.value == picture
    unet = explorer.unet
    unet.gate.clear()
    explorer.start()
    explorer.redraw()
    assert "seed 0. Sampling for the new choices." in explorer.text.value
    unet.gate.set()
    assert explorer.work.join(20)
    assert "seed 3" in explorer.text.value and "Press Sample" not in explorer.text.value
    for name, value in (("steps", 5), ("eta", 0.5), ("spacing", "trailing"), ("sampler", LARGE)):
        explorer.sides[0][name].value = value
        assert "Press Sample" in explorer.text.value
        explorer.sides[0][name].value = getattr(explorer.choices[0], name)
        assert "Press Sample" not in explorer.text.value


@pytest.mark.parametrize(
    ("choice", "first"),
    [
        (Choice(steps=1), 0),
        (Choice(steps=600), 599),
        (Choice(steps=334), 666),
        (Choice(spacing="linspace", steps=1), 0),
    ],
)
def test_pure_noise_at_an_early_t_is_told(unet: StandIn, choice: Choice, first: int) -> None:
    explorer = widgets.sampler_explorer(unet, DDPMScheduler(), (Choice(steps=4), choice), count=2)
    assert f"B begins at t = {first} with pure noise" in explorer.text.value
    assert 'role="status"' in explorer.text.value and "A begins" not in explorer.text.value


def test_a_failure_in_the_thread_is_told(explorer: widgets.SamplerExplorer) -> None:
    def broken(x: torch.Tensor, t: Any) -> Any:
        raise RuntimeError("out of <luck>")

    explorer.unet = broken
    explorer.unet.config, explorer.unet.device, explorer.unet.dtype = StandIn.config, StandIn.device, StandIn.dtype
    explorer.start()
    assert explorer.work.join(20)
    assert "Sample failed: out of &lt;luck&gt;. The picture shows the samples from before" in explorer.text.value
    assert explorer.work.stop_button.disabled


def test_eta_belongs_to_ddim(explorer: widgets.SamplerExplorer) -> None:
    a, b = explorer.sides
    assert not a["eta"].disabled and b["eta"].disabled
    a["sampler"].value, b["sampler"].value = LARGE, DDIM
    assert a["eta"].disabled and not b["eta"].disabled


def test_controls_have_labels_and_limits(explorer: widgets.SamplerExplorer) -> None:
    sides = [control for side in explorer.sides for control in side.values()]
    work = [explorer.work.start_button, explorer.work.stop_button, explorer.work.bar]
    for control in (*sides, *work, explorer.seed, explorer.play, explorer.moment):
        assert control.description
    assert [label for label, _ in explorer.sides[0]["sampler"].options] == ["DDIM", "DDPM β̃", "DDPM β"]
    assert explorer.sides[1]["sampler"].tooltips[2] == "B: sampler: DDPM, σ² = β"
    explorer.sides[0]["steps"].value = 5000
    assert explorer.sides[0]["steps"].value == 1000
    assert "predicts" in explorer.picture.tooltip


def test_without_widgets_a_strip_is_shown(explorer: widgets.SamplerExplorer) -> None:
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{80,}" src="data:image/png;base64,', bundle["text/html"])
    assert "DDIM, η = 0, 4 steps" in bundle["text/html"] and "<figcaption" in bundle["text/html"]
