"""Callbacks for `train`: progress bar, log file, previews, TensorBoard."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ddpm_from_scratch.evaluation import labels_in_turn
from ddpm_from_scratch.images import save_sheet
from ddpm_from_scratch.pipelines import DDIMPipeline
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_from_scratch.training import Progress, modes_kept


class ProgressBar:
    """A tqdm bar with a smoothed loss. It closes with the last step; after a run that ends earlier call `close`."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._last_step: int | None = None
        self._loss: float | None = None

    def __call__(self, progress: Progress) -> None:
        if self._last_step != progress.step - 1:  # the first step of a run, new or resumed
            self.close()
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, unit="step", dynamic_ncols=True)
            self._loss = None
        self._last_step = progress.step
        self._loss = progress.loss if self._loss is None else 0.98 * self._loss + 0.02 * progress.loss
        self._bar.set_postfix(loss=f"{self._loss:.4f}", refresh=False)
        self._bar.update()
        if progress.step == progress.steps:
            self.close()

    def close(self) -> None:
        """Leaves the bar as it is and ends its line."""
        if self._bar is not None:
            self._bar.close()


def _checked(every: int) -> int:
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every}: leave the callback out to have none")
    return every


class LogFile:
    """A CSV file of mean loss, gradient norm, learning rate and seconds, one row every `every` steps.

    A run that starts or resumes at step n first drops the rows from n on: what an earlier run wrote after its last
    checkpoint is about to be done again. The first row after a resume is the mean of the steps since the resume.

    Raises:
        ValueError: `every` below 1.
    """

    COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "seconds")

    def __init__(self, path: str | Path, every: int = 50) -> None:
        self.path, self.every = Path(path).expanduser(), _checked(every)
        self._losses: list[float] = []
        self._last_step: int | None = None

    def __call__(self, progress: Progress) -> None:
        if self._last_step != progress.step - 1:
            self._start(progress.step)
        self._last_step = progress.step
        self._losses.append(progress.loss)
        if progress.step % self.every and progress.step != progress.steps:
            return
        mean = sum(self._losses) / len(self._losses)
        row = (progress.step, f"{mean:.6f}", f"{progress.gradient_norm:.4f}", f"{progress.learning_rate:.3g}")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow((*row, f"{progress.seconds:.1f}"))
        self._losses.clear()

    def _start(self, step: int) -> None:
        self._losses.clear()
        old = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        rows = [line.split(",") for line in old]
        whole = [row for row in rows if len(row) == len(self.COLUMNS) and row[0].isdigit() and int(row[0]) < step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        with new.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.COLUMNS, *whole])
        os.replace(new, self.path)


class Previews:
    """Samples from the averaged weights every `every` steps, always from the same noise.

    A scheduler of its own, the network's mode put back and generators of its own: training is not disturbed. A
    class-conditional model is asked for its classes in turn (`labels_in_turn`).

    Args:
        folder: receives `step_000500.png` and so on.
        count: images on a sheet.
        num_inference_steps: DDIM steps per preview.

    Raises:
        ValueError: `every` below 1.
    """

    def __init__(
        self, folder: str | Path, every: int = 500, count: int = 16, num_inference_steps: int = 25, seed: int = 0
    ) -> None:
        self.folder, self.every, self.count = Path(folder).expanduser(), _checked(every), count
        self.num_inference_steps, self.seed = num_inference_steps, seed

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every == 0 or progress.step == progress.steps:
            save_sheet(self.sample(progress), self.folder / f"step_{progress.step:06d}.png")

    def check(self, scheduler: DDPMScheduler) -> None:
        """Tries the first step of a preview, which is the hardest, on an image of one pixel.

        Raises:
            ValueError: the scheduler cannot make it.
        """
        sampler = DDIMScheduler.from_config(scheduler.config)
        sampler.set_timesteps(self._steps(sampler))
        pixel = torch.zeros(1, 1, 1, 1)
        try:
            sampler.step(pixel, sampler.timesteps[0], pixel)
        except ValueError as error:
            raise ValueError(f"{error}, or train without previews") from None

    def _steps(self, scheduler: Any) -> int:
        return min(self.num_inference_steps, len(scheduler))

    @torch.no_grad()
    def sample(self, progress: Progress) -> torch.Tensor:
        """The preview itself, (count, C, H, W) in [-1, 1]."""
        pipeline = DDIMPipeline(progress.model, progress.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(self.seed + i) for i in range(self.count)]
        labels = labels_in_turn(range(self.count), progress.model.config.num_class_embeds)
        steps = self._steps(pipeline.scheduler)
        with progress.ema.averaged(), modes_kept(progress.model):
            progress.model.eval()
            images = pipeline(
                self.count, generators, num_inference_steps=steps, output_type="pt", class_labels=labels
            ).images
        return images.cpu() * 2 - 1


class TensorBoard:
    """Loss, gradient norm and learning rate for TensorBoard, if it is installed.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: `every` below 1.
    """

    def __init__(self, folder: str | Path, every: int = 10) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("TensorBoard is not installed: `pip install tensorboard`, or leave it out") from None
        self.folder, self.every = str(folder), _checked(every)
        self._open: Any = SummaryWriter
        self._writer: Any = None

    def __call__(self, progress: Progress) -> None:
        if self._writer is None:
            self._writer = self._open(self.folder, purge_step=progress.step)  # hides what a resumed run does again
        if progress.step % self.every == 0 or progress.step == progress.steps:
            for name in ("loss", "gradient_norm", "learning_rate"):
                self._writer.add_scalar(name, getattr(progress, name), progress.step)
            self._writer.flush()
