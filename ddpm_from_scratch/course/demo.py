"""`make demo`: a minute of training on digits, samples by DDPM and DDIM, one picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from ..callbacks import ProgressBar
from ..data import ImageDataset, load_dataset
from ..gaussian import q_sample, randn
from ..models import UNet2DModel, small_unet
from ..pipelines import DDIMPipeline, DDPMPipeline
from ..schedulers import DDIMScheduler, DDPMScheduler
from ..training import TrainingConfig, train
from .plots import STYLE, blank_figure, draw_images, to_png

STEPS = 1200
DDPM_STEPS, DDIM_STEPS = 1000, 50
COLUMNS, ROWS = 6, 4
NOISING = (0, 50, 100, 150, 200, 300, 400, 500, 600, 800, 999)


def demo(folder: Path, steps: int = STEPS, seed: int = 0) -> Path:
    """Trains, samples and draws; the same seed gives the same picture.

    Args:
        folder: receives `demo.png`.
        steps: optimiser steps.
        seed: of the weights, the training and the samples.

    Returns:
        The picture's path.

    Raises:
        KeyboardInterrupt: the training was stopped.
    """
    data = load_dataset("digits", image_size=16)
    assert isinstance(data, ImageDataset)
    scheduler = DDPMScheduler()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = small_unet(data.shape, widths=(32, 64))
    config = TrainingConfig(
        steps=steps, batch_size=32, learning_rate=1.5e-3, warmup_steps=min(100, steps), ema_decay=0.99, seed=seed
    )
    print(f"Training {model.num_parameters():,} parameters on {len(data):,} digits of 16 × 16 pixels.")
    bar = ProgressBar()
    try:
        done = train(model.eval(), scheduler, data, config, callbacks=[bar])
    finally:
        bar.close()
    if done < steps:
        raise KeyboardInterrupt
    ddpm, ddim = samples(model, scheduler, seed)
    figure = picture(data, scheduler, ddpm, ddim, done)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "demo.png"
    path.write_bytes(to_png(figure))
    return path


def samples(model: UNet2DModel, scheduler: DDPMScheduler, seed: int) -> tuple[Tensor, Tensor]:
    """DDPM's and DDIM's images in [-1, 1], each pair from the same x_T."""
    pipelines: dict[DDPMPipeline | DDIMPipeline, int] = {
        DDPMPipeline(model, scheduler): DDPM_STEPS,
        DDIMPipeline(model, DDIMScheduler.from_config(scheduler.config)): DDIM_STEPS,
    }
    results = []
    for pipeline, steps in pipelines.items():
        pipeline.set_progress_bar_config(desc=f"{type(pipeline.scheduler).__name__[:4]}, {steps} steps")
        generators = [torch.Generator().manual_seed(seed + i) for i in range(COLUMNS * ROWS)]
        images = pipeline(COLUMNS * ROWS, generator=generators, num_inference_steps=steps, output_type="pt").images
        results.append(torch.as_tensor(images).cpu() * 2 - 1)
    return results[0], results[1]


def picture(data: ImageDataset, scheduler: DDPMScheduler, ddpm: Tensor, ddim: Tensor, steps: int) -> Figure:
    """Real images, the noising of one of them, and both samplers side by side."""
    x0 = data.images([0])
    noise = randn(x0.shape, torch.Generator().manual_seed(0))
    noised = torch.cat([x0, *(q_sample(x0, noise, float(scheduler.alphas_cumprod[t])) for t in NOISING)])
    with rc_context(STYLE):
        figure = blank_figure(8, 5.75)
        axes = figure.subplot_mosaic(
            [["real", "real"], ["noised", "noised"], ["ddpm", "ddim"]], height_ratios=[1, 1, 4.15]
        )
        draw_images(axes["real"], data.images(range(12)), 12)
        draw_images(axes["noised"], noised, 12, titles=["$x_0$", *(f"t = {t}" for t in NOISING)])
        draw_images(axes["ddpm"], ddpm, COLUMNS)
        draw_images(axes["ddim"], ddim, COLUMNS)
        axes["real"].set_title("Real digits")
        axes["noised"].set_title("The forward process destroys one of them", pad=20)
        axes["ddpm"].set_title(f"DDPM: {DDPM_STEPS:,} steps")
        axes["ddim"].set_title(f"DDIM: {DDIM_STEPS} steps, from the same noise")
        figure.suptitle(f"A diffusion model after {steps:,} training steps", x=0.01, ha="left", fontsize=13)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        path = demo(options.output, options.steps, options.seed)
    except KeyboardInterrupt:
        print("make demo: stopped before its picture was drawn", file=sys.stderr)
        sys.exit(130)
    print(f"Real images, the noising, DDPM and DDIM: {path.resolve()}")


if __name__ == "__main__":
    main()
