"""The README's picture: noising by a formula, denoising by the shipped network, and what comes out.

`python -m ddpm_from_scratch.course.overview` writes it anew.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from ..data import ImageDataset, load_dataset
from ..gaussian import q_sample, randn
from ..pipelines import DDIMPipeline
from ..training import seeded
from .plots import STYLE, blank_figure, draw_images, to_png

PICTURE = Path(str(files("ddpm_from_scratch"))) / "assets" / "readme" / "overview.png"
TIMESTEPS = (0, 60, 120, 200, 300, 400, 500, 650, 800, 980)
STEPS, SAMPLES = 50, 24


def trajectory(pipeline: DDIMPipeline, count: int) -> tuple[Tensor, list[Tensor]]:
    """`count` samples in [-1, 1], and the states that the first of them went through, the noisiest first."""
    path: list[Tensor] = []
    generators = [seeded(0, "sample", i) for i in range(count)]
    pipeline.set_progress_bar_config(disable=True)
    pipeline(count, generators, num_inference_steps=STEPS, callback=lambda step, t, x, x0: path.append(x))
    return path[-1], [x[:1] for x in path]


def overview() -> Figure:
    """The figure."""
    data = load_dataset("fashion-10k", "test")
    assert isinstance(data, ImageDataset)
    pipeline = DDIMPipeline.from_pretrained("fashion")
    images, path = trajectory(pipeline, SAMPLES)
    x0 = data.images([0])
    noise = randn(x0.shape, torch.Generator().manual_seed(0))
    noised = torch.cat([q_sample(x0, noise, float(pipeline.scheduler.alphas_cumprod[t])) for t in TIMESTEPS])
    visited = pipeline.scheduler.timesteps.tolist()
    shown = [path[min(range(STEPS), key=lambda i: abs(visited[i] - t))] for t in reversed(TIMESTEPS)]
    with rc_context(STYLE):
        figure = blank_figure(8, 3.75)
        axes = figure.subplot_mosaic([["forward"], ["reverse"], ["samples"]], height_ratios=[1, 1, 1.7])
        draw_images(axes["forward"], noised, len(TIMESTEPS))
        draw_images(axes["reverse"], torch.cat(shown), len(TIMESTEPS))
        draw_images(axes["samples"], images, SAMPLES // 2)
        axes["forward"].set_title("You write the noising: a formula, from a picture to noise")
        axes["reverse"].set_title("You train a network, and write the sampler: from noise to a picture")
        axes["samples"].set_title(f"What comes out: {SAMPLES} images by DDIM in {STEPS} steps, seed 0, none left out")
    return figure


def main() -> None:
    """Writes the picture."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(to_png(overview()))
    print(PICTURE)


if __name__ == "__main__":
    main()
