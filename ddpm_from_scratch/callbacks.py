"""Callbacks for `train`: progress bar, log file, previews, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ddpm_from_scratch.data import to_pixels
from ddpm_from_scratch.gaussian import randn
from ddpm_from_scratch.schedulers import DDIMScheduler
from ddpm_from_scratch.training import Progress

Callback = Callable[[Progress], None]


def save_sheet(images: torch.Tensor, path: str | Path, scale: int = 2) -> None:
    """Writes images (B, C, H, W) in [-1, 1] as one PNG, in rows as square as can be, enlarged `scale` times."""
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(to_pixels(images), nrow=max(1, round(len(images) ** 0.5)), padding=1, pad_value=255)
    big = grid.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(big.permute(1, 2, 0).contiguous().numpy()).save(path)


class ProgressBar:
    """A tqdm bar with a smoothed loss."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._loss: float | None = None

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, unit="step", dynamic_ncols=True)
        self._loss = progress.loss if self._loss is None else 0.98 * self._loss + 0.02 * progress.loss
        self._bar.set_postfix(loss=f"{self._loss:.4f}", refresh=False)
        self._bar.update()
        if progress.step == progress.steps:
            self._bar.close()


class LogFile:
    """Appends mean loss, gradient norm, learning rate and speed to `log.csv`, every `every` steps."""

    COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "seconds")

    def __init__(self, path: str | Path, every: int = 50) -> None:
        self.path, self.every = Path(path), every
        self._losses: list[float] = []

    def __call__(self, progress: Progress) -> None:
        self._losses.append(progress.loss)
        if progress.step % self.every and progress.step != progress.steps:
            return
        fresh = not self.path.exists()
        mean = sum(self._losses) / len(self._losses)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(self.COLUMNS)
            row = (progress.step, f"{mean:.6f}", f"{progress.gradient_norm:.4f}", f"{progress.learning_rate:.3g}")
            writer.writerow((*row, f"{progress.seconds:.1f}"))
        self._losses.clear()


class Previews:
    """Samples from the averaged weights every `every` steps, always from the same noise.

    A scheduler of its own, the network's mode put back and generators of its own: training is not disturbed.

    Args:
        folder: receives `step_000500.png` and so on.
        count: images on a sheet.
        num_inference_steps: DDIM steps per preview.
    """

    def __init__(
        self, folder: str | Path, every: int = 500, count: int = 16, num_inference_steps: int = 25, seed: int = 0
    ) -> None:
        self.folder, self.every, self.count = Path(folder), every, count
        self.num_inference_steps, self.seed = num_inference_steps, seed

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every == 0 or progress.step == progress.steps:
            save_sheet(self.sample(progress), self.folder / f"step_{progress.step:06d}.png")

    @torch.no_grad()
    def sample(self, progress: Progress) -> torch.Tensor:
        """The preview itself, (count, C, H, W) in about [-1, 1]."""
        model = progress.model
        scheduler = DDIMScheduler.from_config(progress.scheduler.config)
        scheduler.set_timesteps(min(self.num_inference_steps, len(scheduler)))
        size = model.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        generators = [torch.Generator().manual_seed(self.seed + i) for i in range(self.count)]
        x = randn((self.count, model.config.in_channels, height, width), generators, model.device)
        classes = model.config.num_class_embeds
        condition = {} if classes is None else {"class_labels": torch.arange(self.count, device=x.device) % classes}
        was_training = model.training
        with progress.ema.averaged():
            model.eval()
            for t in scheduler.timesteps:
                output = model(x, t, **condition).sample[:, : x.shape[1]]
                x = scheduler.step(output, t, x).prev_sample
            model.train(was_training)
        return x.cpu()


class TensorBoard:
    """Loss, gradient norm and learning rate for TensorBoard, if it is installed.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path, every: int = 10) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("TensorBoard is not installed: `pip install tensorboard`, or leave it out") from None
        self.writer, self.every = SummaryWriter(str(folder)), every

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every == 0:
            for name in ("loss", "gradient_norm", "learning_rate"):
                self.writer.add_scalar(name, getattr(progress, name), progress.step)
