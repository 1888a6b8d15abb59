"""The noise slider of lesson 01."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch.course import plots
from ddpm_from_scratch.gaussian import q_sample
from ddpm_from_scratch.schedules import snr

from .base import LIVE_DPI, Explorer, LiveFigure, one_call

EDGES = np.linspace(-4, 4, 65)

SLIDER_ALT = (
    "Three rows of images: the signal part, the noise part and their sum x_t; beside them a histogram of the pixels "
    "of x_t with the standard normal density, and the signal-to-noise ratio over t with a dot at the chosen t."
)


class NoiseSlider(Explorer):
    """A slider over t: x_t and its two parts, the histogram of its pixels, its signal-to-noise ratio.

    One noise per image is drawn at the start and kept while t moves.

    Args:
        images: x_0 in [-1, 1], shape (N, C, H, W); the first `shown` are drawn, all are counted in the histogram.
        alpha_bar: ᾱ of every timestep, shape (T,).
        t: where the slider starts.
        shown: how many images to draw.
        seed: of the noise.
    """

    def __init__(self, images: Tensor, alpha_bar: Tensor, t: int = 250, shown: int = 5, seed: int = 0) -> None:
        self.images, self.alpha_bar, self.shown = images, alpha_bar, min(shown, len(images))
        self.noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        self.snr = snr(alpha_bar)
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        last = len(alpha_bar) - 1
        self.slider = ipywidgets.IntSlider(
            t, 0, last, description="timestep t", layout={"width": "30em"}, tooltip="arrow keys move by one step"
        )
        self.box = ipywidgets.BoundedIntText(t, 0, last, description="or type t", layout={"width": "11em"})
        ipywidgets.link((self.slider, "value"), (self.box, "value"))
        super().__init__([self.slider, self.box], SLIDER_ALT, self._fixed())
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        self.slider.observe(lambda change: self.redraw(change["new"]), names="value")
        self.redraw(t)

    def parts(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """√ᾱ_t x_0, √(1-ᾱ_t) ε and their sum x_t (Ho eq. 4), each of the images' shape."""
        nothing, a = torch.zeros_like(self.images), float(self.alpha_bar[t])
        return q_sample(self.images, nothing, a), q_sample(nothing, self.noise, a), q_sample(self.images, self.noise, a)

    def frame(self, t: int) -> bytes:
        """The picture at timestep t as a PNG file."""
        parts = self.parts(t)
        rows = torch.cat([part[: self.shown] for part in parts])
        self.grid.set_data(plots.montage(rows, self.shown))
        self.bars.set_data(_density(parts[2]))
        self.dot.set_data([t], [float(self.snr[t])])
        return self.live.png()

    def redraw(self, t: int) -> None:
        """Show timestep t."""
        self.picture.value = self.frame(t)
        a = float(self.alpha_bar[t])
        self.text.value = (
            f"t = {t}: signal scale √ᾱ_t = {a**0.5:.3f}, noise scale √(1-ᾱ_t) = {(1 - a) ** 0.5:.3f}, "
            f"SNR = {float(self.snr[t]):.3g}"
        )

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.blank_figure(plots.WIDTH, 3.7)
        figure.set_dpi(LIVE_DPI)
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.6, 1))
        images, (histogram, ratio) = halves[0].subplots(), halves[1].subplots(2)
        blank = torch.zeros(3 * self.shown, *self.images.shape[1:])
        plots.draw_images(images, blank, self.shown, row_labels=["signal", "+ noise", "= $x_t$"])
        self.grid = images.images[0]
        self.bars = histogram.stairs(np.zeros(len(EDGES) - 1), EDGES, fill=True, color=plots.SKY)
        _draw_standard_normal(histogram)
        histogram.set_title("pixels of $x_t$; dashed: N(0, 1)")
        ratio.plot(np.arange(len(self.alpha_bar)), self.snr.numpy(), color=plots.BLUE)
        (self.dot,) = ratio.plot([0], [1.0], "o", color=plots.VERMILION, markersize=9, clip_on=False)
        ratio.set(yscale="log", xlabel="timestep t", title="signal-to-noise ratio")
        return figure, [
            self.grid,
            self.bars,
            *histogram.lines,
            *histogram.spines.values(),
            self.dot,
        ]  # in drawing order

    def _fixed(self) -> str:
        steps = [round(s * (len(self.alpha_bar) - 1)) for s in (0, 0.1, 0.25, 0.5, 1)]
        with rc_context(plots.STYLE):
            figure = plots.new_figure(plots.WIDTH, 3.9, 2, len(steps), height_ratios=(2.1, 1), sharey="row")
            for t, top, bottom in zip(steps, figure.axes[: len(steps)], figure.axes[len(steps) :], strict=True):
                x_t = self.parts(t)[2]
                plots.draw_images(top, x_t[:2], 1, titles=[f"t = {t}\nSNR = {float(self.snr[t]):.2g}"])
                bottom.stairs(_density(x_t), EDGES, fill=True, color=plots.SKY)
                _draw_standard_normal(bottom)
            png = plots.to_png(figure)
        alt = (
            f"Two images and the histogram of the pixels at t = {', '.join(map(str, steps))}: from clean to pure noise."
        )
        caption = (
            "What the slider shows, at five of its values: the same noise grows over the same images, and the "
            "histogram "
            "of the pixels turns into the bell of the standard normal (dashed). In JupyterLab you can move t yourself."
        )
        return plots.to_html(png, plots.WIDTH, alt, caption)


def _density(values: Tensor) -> np.ndarray:
    """Histogram of all the values over `EDGES`, as a density."""
    return np.histogram(values.numpy(), EDGES)[0] / (values.numel() * (EDGES[1] - EDGES[0]))


def _draw_standard_normal(ax: Axes) -> None:
    """The density of N(0, 1), on axes that cut off the tall bars of clean pixels."""
    x = np.linspace(EDGES[0], EDGES[-1], 200)
    ax.plot(x, np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5, "--", color=plots.INK, linewidth=1.6)
    ax.set(xlim=(EDGES[0], EDGES[-1]), ylim=(0, 1), xticks=(-3, 0, 3), yticks=[])


noise_slider = one_call(NoiseSlider)
