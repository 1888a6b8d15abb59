"""The training monitor of lesson 06."""

from __future__ import annotations

import copy
import html
import math
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch.callbacks import Previews
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.gaussian import randn
from ddpm_from_scratch.models import UNet2DModel
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import CHECKPOINT, Callback, Progress, StopTraining, TrainingConfig, modes_kept, train

from .base import LIVE_DPI, Explorer, LiveFigure, one_call

LOSSES = (1e-3, 2.0)
"""The losses that the axes show at least."""
MEMORY = 0.95
REDRAW_SECONDS = 0.5

ALT = (
    "Left, the loss of every training step as dots with a smoothed line, above the loss by t as stairs. Right, samples "
    "from the averaged weights, always from the same noise."
)


class Recorder:
    """Keeps what a training run shows of itself; a callback for `train`.

    Every step: its loss. At every `every`-th step and the last: the loss by t on images that are not trained on, and
    samples, both with the averaged weights and always with the same images, t and noises.

    Args:
        images: held-out images in [-1, 1], (N, C, H, W).
        every: steps from one measurement to the next.
        bins: equal ranges of t.
        count: images that a measurement uses, spread evenly over t.
        shown: samples to draw, in `sampling_steps` steps each.
        seed: of the noises.
    """

    def __init__(
        self,
        images: Tensor,
        every: int = 50,
        bins: int = 10,
        count: int = 160,
        shown: int = 8,
        sampling_steps: int = 10,
        seed: int = 0,
    ) -> None:
        self.every, self.bins, self.shown = every, bins, shown
        self.x0 = images[torch.arange(count) % len(images)]
        self.share = (torch.arange(count) + 0.5) / count
        self.noise = randn(self.x0.shape, torch.Generator().manual_seed(seed))
        self.previews = Previews("", every, shown, sampling_steps, seed)
        self.losses: dict[int, float] = {}
        self.by_t: dict[int, Tensor] = {}
        self.samples: dict[int, Tensor] = {}

    def __call__(self, progress: Progress) -> None:
        self.losses[progress.step] = progress.loss
        if progress.step % self.every == 0 or progress.step == progress.steps:
            self.by_t[progress.step] = self.measure(progress)
            self.samples[progress.step] = self.previews.sample(progress)

    @torch.no_grad()
    def measure(self, progress: Progress) -> Tensor:
        """The loss of the averaged weights in each range of t, (bins,); Ho eq. 14 with t in that range."""
        t = (self.share * len(progress.scheduler)).long()
        x_t = progress.scheduler.add_noise(self.x0, self.noise, t)
        device = next(progress.model.parameters()).device
        with progress.ema.averaged(), modes_kept(progress.model):
            progress.model.eval()
            predicted = progress.model(x_t.to(device), t.to(device)).sample.cpu()
        return ((predicted - self.noise) ** 2).flatten(1).mean(1).reshape(self.bins, -1).mean(1)

    def smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and a moving average of their losses, without the pull of its start (see lesson 06)."""
        values, mean = [], 0.0
        losses = dict(self.losses)  # a run in another thread adds to it
        for count, loss in enumerate(losses.values(), start=1):
            mean = MEMORY * mean + (1 - MEMORY) * loss
            values.append(mean / (1 - MEMORY**count))
        return np.array(list(losses), dtype=float), np.array(values)

    def loss_range(self) -> tuple[float, float]:
        """Where the axes of the losses end: `LOSSES`, or so many powers of ten further that every loss is within."""
        low, high = LOSSES
        losses = [*list(self.losses.values()), *(loss for by_t in list(self.by_t.values()) for loss in by_t.tolist())]
        for loss in losses:
            if 0 < loss < math.inf:  # what a logarithmic axis can show
                while loss < low:
                    low /= 10
                while loss > high:
                    high *= 10
        return low, high


class TrainingMonitor(Explorer):
    """Watch a network learn: start and stop at will, and look back at any measurement.

    Training runs in a thread, on a copy of the model and of the record, so that nothing else changes. A stop keeps a
    checkpoint, and the next start goes on from it. While it runs, other code should not rely on the global random
    state, which `train` sets in every step; so a start stops any other monitor first, such as that of a cell run again.

    Args:
        model, scheduler, dataset, config: as for `train`.
        recorder: what is kept of the run; one that was a callback before goes on where it ended.
        checkpoint: folder of an earlier run of the same `config` (more steps allowed) to go on from; not changed.
    """

    _last_started: ClassVar[TrainingMonitor | None] = None

    def __init__(
        self,
        model: UNet2DModel,
        scheduler: DDPMScheduler,
        dataset: Any,
        config: TrainingConfig,
        recorder: Recorder,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.model, self.recorder = copy.deepcopy(model), copy.deepcopy(recorder)
        self.scheduler, self.dataset, self.config = scheduler, dataset, config
        self._folder = tempfile.TemporaryDirectory(prefix="monitor")
        if checkpoint is not None:
            shutil.copy(Path(checkpoint) / CHECKPOINT, self._folder.name)
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = 0.0
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        self.start_button = ipywidgets.Button(description="Start", icon="play", tooltip="train in the background")
        self.stop_button = ipywidgets.Button(
            description="Stop", icon="stop", tooltip="end after this step and keep a checkpoint", disabled=True
        )
        self.shown = ipywidgets.SelectionSlider(
            options=[("none yet", 0)],
            description="samples at step",
            style={"description_width": "initial"},
            layout={"width": "26em"},
        )
        super().__init__([self.start_button, self.stop_button, self.shown], ALT, "")
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.shown.observe(lambda _: self.redraw(), names="value")
        self._offer_measurements()
        self.redraw()

    # ------------------------------------------------------------ the run

    @property
    def running(self) -> bool:
        """Whether a thread trains at this moment."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def step(self) -> int:
        """Steps done, as far as the record knows."""
        return max(self.recorder.losses, default=0)

    def start(self) -> None:
        """Train in the background, from the last checkpoint on; does nothing while it runs."""
        if self.running:
            return
        if (other := TrainingMonitor._last_started) is not None:
            other.stop()
            other.join()
        TrainingMonitor._last_started = self
        self._stop.clear()
        self.error = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present step, with a checkpoint."""
        self._stop.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the run to end; whether it has."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def _work(self) -> None:
        self.start_button.disabled, self.stop_button.disabled = True, False
        callbacks: list[Callback] = [self.recorder, self._after_step]
        try:
            train(self.model, self.scheduler, self.dataset, self.config, self._folder.name, callbacks, resume=True)
        except Exception as error:
            self.error = error
        finally:
            self.start_button.disabled, self.stop_button.disabled = self._finished, True
            self.start_button.description = "Go on" if self.step else "Start"
            self.redraw(running=False)

    def _after_step(self, progress: Progress) -> None:
        if progress.step in self.recorder.samples:
            self._offer_measurements()
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self.redraw()
        if self._stop.is_set():
            raise StopTraining

    @property
    def _finished(self) -> bool:
        return self.step >= self.config.steps

    # ------------------------------------------------------------ the picture

    def _offer_measurements(self) -> None:
        """Lets the slider reach every measurement; if it stood on the newest one, it follows."""
        steps = list(self.recorder.samples)
        if steps:
            followed = self.shown.value in (0, self.shown.options[-1][1])
            chosen = steps[-1] if followed else self.shown.value
            with self.hold_trait_notifications():
                self.shown.options = [(str(step), step) for step in steps]
                self.shown.value = chosen

    def frame(self) -> bytes:
        """The picture of the record as it is, as a PNG file."""
        with self.live.lock:
            record, step = self.recorder, self.shown.value
            self._show_losses(record.loss_range())
            losses = dict(record.losses)
            self.dots.set_data(list(losses), list(losses.values()))
            self.line.set_data(*record.smoothed())
            if step in record.samples:
                self.images.set_data(plots.montage(record.samples[step], self._columns))
                self.stairs.set_data(record.by_t[step])
                self.mark.set_data([step, step], self.loss_axes[0].get_ylim())
            return self.live.png()

    def _show_losses(self, limits: tuple[float, float]) -> None:
        """Let both axes of the loss end there."""
        if self.loss_axes[0].get_ylim() != limits:
            for ax in self.loss_axes:
                ax.set_ylim(limits)
            self.live.draw_still()

    def redraw(self, running: bool | None = None) -> None:
        """Show the record as it is, with a line on the state of the run."""
        self._drawn = time.monotonic()
        with self.live.lock:
            self.picture.value = self.frame()
            self.text.value = self._state(self.running if running is None else running)

    def _state(self, running: bool) -> str:
        if self.error is not None:
            what = html.escape(str(self.error) or type(self.error).__name__, quote=False)
            return f"Training ended with an error after step {self.step}: {what}"
        state = "training" if running else "finished" if self._finished else "stopped" if self.step else "not started"
        smoothed = self.recorder.smoothed()[1]
        loss = f", smoothed loss {smoothed[-1]:.4f}" if len(smoothed) else ""
        return f"{state}: step {self.step} of {self.config.steps}{loss}"

    @property
    def _columns(self) -> int:
        return max(1, self.recorder.shown // 2)

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.blank_figure(plots.WIDTH, 3.9)
        figure.set_dpi(LIVE_DPI)
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
        upper, lower = self.loss_axes = halves[0].subplots(2)
        self.dots, self.line = _draw_loss(upper, self.config.steps, self.recorder.loss_range())
        (self.mark,) = upper.plot([], [], color=plots.VERMILION, linestyle=":", linewidth=1.6)
        self.stairs = _draw_by_t(lower, self.recorder.bins, len(self.scheduler), self.recorder.loss_range())
        images = halves[1].subplots()
        blank = torch.ones(self.recorder.shown, *self.recorder.x0.shape[1:])
        plots.draw_images(images, blank, self._columns)
        images.set_title("samples, same noise each time")
        images.set_anchor("C")
        self.images = images.images[0]
        return figure, [self.dots, self.line, self.mark, self.stairs, self.images]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        self.fixed = self._fixed()
        return super()._repr_mimebundle_(**kwargs)

    def _fixed(self) -> str:
        record, limits = self.recorder, self.recorder.loss_range()
        steps = list(record.samples)
        steps = [steps[i] for i in sorted({round(s * (len(steps) - 1)) for s in np.linspace(0, 1, 4)})] if steps else []
        height = 2.7 + (plots.WIDTH - 1) / record.shown * max(len(steps), 1)
        with rc_context(plots.STYLE):
            figure = plots.blank_figure(plots.WIDTH, height)
            parts: Any = figure.subfigures(2, 1, height_ratios=(2.7, height - 2.7))
            left, right = parts[0].subplots(1, 2)
            dots, line = _draw_loss(left, self.config.steps, limits)
            dots.set_data(list(record.losses), list(record.losses.values()))
            line.set_data(*record.smoothed())
            for step, colour, dash in zip(steps, plots.COLOURS, plots.DASHES, strict=False):
                stairs = _draw_by_t(right, record.bins, len(self.scheduler), limits, colour, f"step {step}")
                stairs.set(data=record.by_t[step], linestyle=dash)
            bottom = parts[1].subplots()
            if steps:
                right.legend()
                images = torch.cat([record.samples[step] for step in steps])
                plots.draw_images(bottom, images, record.shown, row_labels=[f"step {step}" for step in steps])
            else:
                bottom.axis("off")
            png = plots.to_png(figure)
        alt = (
            "Loss over training steps, loss by t, and one row of samples for each of the steps "
            f"{', '.join(map(str, steps)) or '(none yet)'}."
        )
        caption = (
            "What the monitor shows, at some of its moments. Top left the loss of every step and its moving average, "
            "top right the loss by t, below the samples, each column from one noise. In JupyterLab, Start trains on "
            "and Stop ends it."
        )
        return plots.to_html(png, plots.WIDTH, alt, caption)


def _draw_loss(ax: Axes, steps: int, limits: tuple[float, float]) -> tuple[Any, Any]:
    """Axes for the loss over the steps; its dots and its smoothed line, still empty."""
    (dots,) = ax.plot([], [], ".", color=plots.FAINT, markersize=2.5)
    (line,) = ax.plot([], [], color=plots.BLUE, linestyle="-")
    ax.set(xlim=(0, steps), ylim=limits, yscale="log", xlabel="training step", title="loss, smoothed")
    return dots, line


def _draw_by_t(
    ax: Axes, bins: int, T: int, limits: tuple[float, float], colour: str = plots.BLUE, label: str = ""
) -> Any:
    """Axes for the loss by t; its stairs, still empty."""
    stairs = ax.stairs(
        np.full(bins, np.nan), np.linspace(0, T, bins + 1), baseline=None, color=colour, linewidth=2, label=label
    )
    ax.set(xlim=(0, T), ylim=limits, yscale="log", xlabel="timestep t", title="loss by t, held-out images")
    return stairs


training_monitor = one_call(TrainingMonitor)
