"""The interpolation explorer of lesson 09."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import torch
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercises.l09 import interpolation_grid

from .base import LIVE_DPI, Explorer, LiveFigure, Work, one_call

Decoder = Callable[[Tensor], Tensor]

PART = 9
"""How many images are decoded at once; between one part and the next the work can be stopped."""

CORNERS = ("A, top left", "B, top right", "C, bottom left", "D, bottom right")
ALT = (
    "Left one image, right a grid of images between four corners, with a frame around the one on the left: it changes "
    "gradually from the image of one seed to that of another."
)


class InterpolationExplorer(Explorer):
    """Images between four seeds: a slider from left to right, one from top to bottom, and the grid of them all.

    The noise of the four seeds is interpolated on the sphere and decoded once; the sliders only choose among the
    images made. Other seeds are decoded in a thread, which shows its progress and can be stopped; the images from
    before stay in view until all the new ones are there.

    Args:
        decode: x_T of shape (N, C, H, W) → images in [-1, 1]; deterministic, such as DDIM at η = 0. Each image must
            depend on its own x_T alone: it is called for some of them at a time.
        shape: (C, H, W) of one image.
        seeds: of the noise at the corners A, B (top), C and D (bottom).
        columns, rows: of the grid.
    """

    def __init__(
        self,
        decode: Decoder,
        shape: Sequence[int],
        seeds: Sequence[int] = (0, 1, 2, 3),
        columns: int = 9,
        rows: int = 5,
    ) -> None:
        self.decode, self.shape = decode, tuple(shape)
        self.columns, self.rows = columns, rows
        self.seeds, self.images = list(seeds), self.between(seeds)
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        place: dict[str, Any] = {"layout": {"width": "24em"}, "tooltip": "arrow keys move by one image"}
        place["style"] = {"description_width": "initial"}
        self.across = ipywidgets.IntSlider(0, 0, columns - 1, description="A to B", **place)
        self.down = ipywidgets.IntSlider(0, 0, rows - 1, description="top to bottom", **place)
        self.boxes = [
            ipywidgets.BoundedIntText(
                seed, 0, 10**6, description=name[0], layout={"width": "9em"}, tooltip=f"seed {name}"
            )
            for seed, name in zip(seeds, CORNERS, strict=True)
        ]
        for box in self.boxes:
            box.style.description_width = "1.5em"
        self.work = Work("Decode", self.start, self.say, "the images of the seeds from before")
        super().__init__([self.across, self.down, ipywidgets.HBox(self.boxes), self.work], ALT, self._fixed())
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        for control in (self.across, self.down, *self.boxes):
            control.observe(lambda change: self.redraw(), names="value")
        self.redraw()

    def noise(self, seed: int) -> Tensor:
        """x_T of a seed, of one image's shape."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))

    def between(self, seeds: Sequence[int], part_done: Callable[[], None] = lambda: None) -> Tensor:
        """The images between four seeds, shape (rows, columns, C, H, W); the slow part, done in parts."""
        latents = interpolation_grid(torch.stack([self.noise(seed) for seed in seeds]), self.rows, self.columns)
        parts = []
        for part in latents.flatten(0, 1).split(PART):
            parts.append(self.decode(part))
            part_done()
        return torch.cat(parts).unflatten(0, (self.rows, self.columns))

    def start(self) -> None:
        """Decode the seeds in the boxes, in a thread, and show their images."""
        seeds = [box.value for box in self.boxes]

        def job(part_done: Callable[[], None]) -> None:
            images = self.between(seeds, part_done)
            with self.live.lock:
                self.seeds, self.images = seeds, images
                self.redraw()

        self.work.start(math.ceil(self.rows * self.columns / PART), job)

    def frame(self, row: int, column: int) -> bytes:
        """The picture with the image at (row, column) on the left, as a PNG file."""
        with self.live.lock:
            self.large.set_data(plots.montage(self.images[row, column, None], 1))
            self.grid.set_data(plots.montage(self.images.flatten(0, 1), self.columns))
            self.marker.set_data(*self._outline(row, column))
            return self.live.png()

    def redraw(self) -> None:
        """Show the image that the sliders point to."""
        row, column = self.down.value, self.across.value
        with self.live.lock:
            self.picture.value = self.frame(row, column)
            self.say(self._words(row / max(self.rows - 1, 1), column / max(self.columns - 1, 1)))

    def _words(self, down: float, across: float) -> str:
        """Where the image shown is, and between which seeds."""
        corners = ", ".join(f"{name[0]} {seed}" for name, seed in zip(CORNERS, self.seeds, strict=True))
        place = f"{100 * across:.3g}% of the way from A to B (and from C to D), {100 * down:.3g}% of the way down"
        new = [box.value for box in self.boxes] != self.seeds
        return f"Seeds {corners}: {place}." + " Press Decode for the images of the new seeds." * new

    def _outline(self, row: int, column: int) -> tuple[list[float], list[float]]:
        """Corners of the image at (row, column) in the grid, as xs and ys."""
        height, width = self.shape[1:]
        pad = max(1, round(0.08 * width))
        left, top = column * (width + pad) - 0.5, row * (height + pad) - 0.5
        return [left, left + width, left + width, left, left], [top, top, top + height, top + height, top]

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.blank_figure(plots.WIDTH, 3.3)
        figure.set_dpi(LIVE_DPI)
        axes: Any = figure.subplots(1, 2, width_ratios=(1, 2.2))
        plots.draw_images(axes[0], self.images[0, 0, None], 1)
        plots.draw_images(axes[1], self.images.flatten(0, 1), self.columns)
        self.large, self.grid = axes[0].images[0], axes[1].images[0]
        (self.marker,) = axes[1].plot(
            *self._outline(0, 0), color=plots.VERMILION, linewidth=2.5, linestyle="-", clip_on=False
        )
        self._name_corners(axes[1])
        return figure, [self.large, self.grid, self.marker]

    def _name_corners(self, ax: Any) -> None:
        height, width = self.images.shape[-2:]
        for number, name in enumerate("ABCD"):
            xs, ys = self._outline(number // 2 * (self.rows - 1), number % 2 * (self.columns - 1))
            x = xs[0] - 0.1 * width if number % 2 == 0 else xs[1] + 0.1 * width
            ax.text(x, ys[0] + height / 2, name, ha="right" if number % 2 == 0 else "left", va="center", weight="bold")

    def _fixed(self) -> str:
        with rc_context(plots.STYLE):
            figure = plots.new_figure(plots.WIDTH * 0.8, plots.WIDTH * 0.8 * self.rows / self.columns)
            plots.draw_images(figure.axes[0], self.images.flatten(0, 1), self.columns)
            self._name_corners(figure.axes[0])
            png = plots.to_png(figure)
        alt = (
            f"A grid of {self.rows} rows and {self.columns} columns of images. The corners A, B, C and D come from "
            "four seeds, and between them each image differs a little from its neighbours."
        )
        caption = (
            "What the sliders move through: the noise of four seeds, interpolated along the rows and down the columns, "
            "and decoded by DDIM. In JupyterLab you can move through it yourself, and choose other seeds."
        )
        return plots.to_html(png, plots.WIDTH * 0.8, alt, caption)


interpolation_explorer = one_call(InterpolationExplorer)
