"""The training monitor: what it records, start, stop, go on, an error in its thread, its pictures."""

from __future__ import annotations

import io
import math
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from small_runs import config, differences, digits, run, small_model, weights

from ddpm_from_scratch.course import plots, widgets
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import EMA, Progress, load_checkpoint

SECONDS = 120


def recorder(**options: Any) -> widgets.Recorder:
    values = {"every": 2, "bins": 5, "count": 20, "shown": 4, "sampling_steps": 2} | options
    return widgets.Recorder(digits(12).images(), **values)


def monitor(record: widgets.Recorder | None = None, checkpoint: Path | None = None, **options: Any):
    parts = small_model(), DDPMScheduler(), digits(), config(**options)
    return widgets.training_monitor(*parts, record or recorder(), checkpoint)


def finish(one: widgets.TrainingMonitor) -> widgets.TrainingMonitor:
    one.start()
    assert one.join(SECONDS)
    return one


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def stop_after(one: widgets.TrainingMonitor, step: int) -> None:
    """Presses Stop within the given step, as a hand would, but at a known moment."""
    inner = one.recorder.measure

    def measure(progress: Progress) -> torch.Tensor:
        if progress.step == step:
            one.stop_button.click()
        return inner(progress)

    one.recorder.measure = measure  # type: ignore[method-assign]


# ---------------------------------------------------------------- the record


class Zero(torch.nn.Module):
    """Answers its weight times x_t, and `shift` more at t ≥ 500."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = torch.nn.Parameter(torch.zeros(1)), 1.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return type("Output", (), {"sample": x * self.weight + self.shift * (t >= 500).float().view(-1, 1, 1, 1)})


def test_the_measurement_is_the_mean_squared_error_in_each_range_of_t() -> None:
    """A network that says 0 at t < 500 and 1 above: E ε² = 1 and E (ε-1)² = 2; by the noises used."""
    record, network = recorder(count=40, bins=4), Zero()
    found = record.measure(Progress(1, 6, 0.5, 1.0, 1e-3, 0.0, EMA(network), network, DDPMScheduler()))  # type: ignore[arg-type]
    errors = [(record.noise[k : k + 10] - int(k >= 20)).square().mean() for k in (0, 10, 20, 30)]
    torch.testing.assert_close(found, torch.stack(errors))
    assert found[:2].mean() == pytest.approx(1, abs=0.2) and found[2:].mean() == pytest.approx(2, abs=0.3)


def test_a_measurement_uses_the_averaged_weights_in_eval_mode_and_gives_back() -> None:
    """The average answers x_t: E (ε - x_t)² at large t is nearly 0, where the own weights' answer of 0 has 1."""
    record, network = recorder(count=40, bins=4), Zero()
    ema, modes = EMA(network), []
    ema.shadow = [torch.ones(1)]
    network.register_forward_hook(lambda module, *_: modes.append(module.training))
    network.shift = 0.0
    found = record.measure(Progress(1, 6, 0.5, 1.0, 1e-3, 0.0, ema, network, DDPMScheduler()))  # type: ignore[arg-type]
    assert found[3] < 0.01 < 0.3 < found[0]
    assert modes == [False] and network.training and network.weight.item() == 0


def test_the_smoothed_loss_of_a_constant_is_that_constant_from_the_start() -> None:
    record = recorder()
    record.losses = dict.fromkeys(range(1, 50), 0.25)
    steps, values = record.smoothed()
    assert list(steps) == list(range(1, 50))
    np.testing.assert_allclose(values, 0.25, rtol=1e-12)


def test_the_smoothed_loss_while_a_run_adds_to_the_record() -> None:
    """A slider that is moved asks for it in another thread than the one that trains."""
    record, over = recorder(), threading.Event()
    record.losses = dict.fromkeys(range(2000), 0.5)

    def grow() -> None:
        for step in range(2000, 100_000):
            if over.is_set():
                break
            record.losses[step] = 0.5

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(5):
            steps, values = record.smoothed()
            assert len(steps) == len(values)
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(switch)


def test_the_record_does_not_disturb_the_run(tmp_path: Path) -> None:
    record = recorder()
    watched, alone = run(callbacks=[record]), run()
    assert differences(weights(watched), weights(alone)) == []
    assert list(record.losses) == [1, 2, 3, 4, 5, 6]
    assert list(record.samples) == list(record.by_t) == [2, 4, 6]
    assert record.samples[6].shape == (4, 1, 8, 8) and record.by_t[6].shape == (5,)


# ---------------------------------------------------------------- start, stop, go on


def test_a_start_stops_the_monitor_of_a_cell_run_before() -> None:
    """Two runs at once would draw from one global random state."""
    first, second = monitor(steps=10_000), monitor()
    first.start()
    second.start()
    assert not first.running and 0 <= first.step < 10_000 and first.error is None
    assert second.join(SECONDS) and differences(weights(second.model), weights(run())) == []


def test_a_whole_run_is_that_of_train() -> None:
    one = finish(monitor())
    assert differences(weights(one.model), weights(run())) == []
    assert (one.step, one.error) == (6, None)
    assert one.text.value.startswith("finished: step 6 of 6, smoothed loss 0.")
    assert one.start_button.disabled and one.stop_button.disabled


def test_stopped_in_the_middle_and_gone_on_gives_the_same_bits() -> None:
    one = monitor()
    stop_after(one, 4)
    finish(one)
    assert one.step == 4 and one.text.value.startswith("stopped: step 4 of 6")
    assert not one.start_button.disabled and one.start_button.description == "Go on"
    one.start_button.click()
    assert one.join(SECONDS)
    assert list(one.recorder.losses) == [1, 2, 3, 4, 5, 6]
    assert differences(weights(one.model), weights(run())) == []


def test_it_goes_on_from_an_earlier_run_and_leaves_that_alone(tmp_path: Path) -> None:
    record = recorder()
    model = run(tmp_path, callbacks=[record], learning_rate_decay="constant")
    before = weights(model), load_checkpoint(tmp_path)
    one = widgets.training_monitor(
        model, DDPMScheduler(), digits(), config(steps=8, learning_rate_decay="constant"), record, tmp_path
    )
    finish(one)
    assert list(one.recorder.losses) == list(range(1, 9)) and list(record.losses) == list(range(1, 7))
    assert differences(before, (weights(model), load_checkpoint(tmp_path))) == []
    assert differences(weights(one.model), weights(run(steps=8, learning_rate_decay="constant"))) == []


def test_start_while_it_runs_and_after_the_end_does_nothing() -> None:
    one = monitor()
    one.start()
    thread = one._thread
    one.start()
    assert one._thread is thread and one.join(SECONDS)
    finish(one)
    assert list(one.recorder.losses) == [1, 2, 3, 4, 5, 6]


def test_an_error_in_the_thread_is_a_sentence_in_the_widget_and_it_can_go_on() -> None:
    one = monitor()
    inner = one.recorder.measure

    def fails(progress: Progress) -> torch.Tensor:
        raise RuntimeError("the disk <is> full")

    one.recorder.measure = fails  # type: ignore[method-assign]
    finish(one)
    assert one.text.value == "Training ended with an error after step 2: the disk &lt;is&gt; full"
    assert not one.start_button.disabled and one.stop_button.disabled
    one.recorder.measure = inner  # type: ignore[method-assign]
    finish(one)
    assert one.error is None and one.step == 6
    assert differences(weights(one.model), weights(run())) == []


def test_a_run_that_cannot_begin_says_why() -> None:
    one = finish(monitor(label_dropout=0.1))
    assert "label_dropout=0.1 needs a class-conditional model" in one.text.value
    assert not one.running


# ---------------------------------------------------------------- the picture


def test_the_slider_follows_the_newest_measurement_unless_it_was_moved() -> None:
    one = monitor()
    stop_after(one, 4)
    finish(one)
    assert [value for _, value in one.shown.options] == [2, 4] and one.shown.value == 4
    one.shown.value = 2
    finish(one)
    assert [value for _, value in one.shown.options] == [2, 4, 6] and one.shown.value == 2


def test_each_measurement_has_its_picture_and_looking_back_gives_it_again() -> None:
    one = finish(monitor())
    last = one.picture.value
    one.shown.value = 2
    assert one.picture.value != last
    np.testing.assert_array_equal(one.stairs.get_data().values, one.recorder.by_t[2].numpy())
    one.shown.value = 6
    assert one.picture.value == last
    assert list(one.dots.get_data()[0]) == [1, 2, 3, 4, 5, 6]


def test_a_frame_equals_the_figure_drawn_from_scratch() -> None:
    one = finish(monitor())
    frame = pixels(one.frame())
    for artist in one.live.moving:
        artist.set_animated(False)
    one.live.canvas.draw()
    drawn = np.asarray(one.live.canvas.buffer_rgba())[..., :3]
    assert (frame != drawn).any(axis=-1).mean() < 0.01  # the axes' lines lie below the moving artists here


def within(ax: Any, values: Any) -> bool:
    low, high = ax.get_ylim()
    return low <= min(values) and max(values) <= high


def test_the_axes_of_the_loss_follow_it() -> None:
    """At least from 0.001 to 2, in steps of a power of ten, the same for both; what no such axis shows is left out."""
    record = recorder()
    assert record.loss_range() == (1e-3, 2.0)
    record.losses = {1: 0.9, 2: 0.02, 3: 0.0, 4: math.nan, 5: math.inf}
    assert record.loss_range() == (1e-3, 2.0)
    record.losses[6] = 9e-4
    assert record.loss_range() == (1e-4, 2.0)
    record.by_t[6] = torch.tensor([0.5, 3e-6, 2.5, 0.1, 0.1])
    assert record.loss_range() == pytest.approx((1e-6, 20.0), rel=1e-12)


def test_a_small_loss_is_in_the_picture_live_and_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = finish(monitor())
    ordinary = one.picture.value
    assert [ax.get_ylim() for ax in one.loss_axes] == [(1e-3, 2.0)] * 2
    one.recorder.losses[5], one.recorder.by_t[4][2] = 3e-4, 2e-5
    one.redraw()
    upper, lower = one.loss_axes
    assert within(upper, one.dots.get_data()[1]) and within(lower, one.recorder.by_t[4])
    assert upper.get_ylim() == lower.get_ylim() == tuple(one.mark.get_data()[1]) == one.recorder.loss_range()
    drawn_from_there = widgets.training_monitor(one.model, one.scheduler, digits(), one.config, one.recorder)
    np.testing.assert_array_equal(pixels(one.picture.value), pixels(drawn_from_there.picture.value))
    one.recorder.losses[5], one.recorder.by_t[4][2] = 0.5, 0.5

    figures: list[Any] = []
    monkeypatch.setattr(plots, "to_png", lambda figure: figures.append(figure) or b"")
    drawn_from_there._repr_mimebundle_()
    assert [ax.get_ylim() for ax in figures[0].axes[:2]] == [upper.get_ylim()] * 2
    one.redraw()
    assert [ax.get_ylim() for ax in one.loss_axes] == [(1e-3, 2.0)] * 2 and one.picture.value != ordinary


def test_one_figure_and_labelled_controls() -> None:
    one = monitor()
    figure = one.live.figure
    artists = sum(len(ax.get_children()) for ax in figure.axes)
    finish(one)
    assert one.live.figure is figure and sum(len(ax.get_children()) for ax in figure.axes) == artists
    assert plt.get_fignums() == []
    assert all(control.description for control in (one.start_button, one.stop_button, one.shown))
    assert "samples" in one.picture.tooltip


def test_the_lines_of_the_fixed_picture_differ_in_more_than_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    one, figures = finish(monitor()), []
    monkeypatch.setattr(plots, "to_png", lambda figure: figures.append(figure) or b"")
    one._repr_mimebundle_()
    lines = figures[0].axes[1].patches
    assert len({str(line.get_linestyle()) for line in lines}) == len(lines) == 3


@pytest.mark.parametrize("trained", [True, False])
def test_without_widgets_a_fixed_picture_is_shown(trained: bool) -> None:
    one = monitor()
    bundle = (finish(one) if trained else one)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{40,}" src="data:image/png;base64,', bundle["text/html"])
    assert ("2, 4, 6" in bundle["text/html"]) == trained
