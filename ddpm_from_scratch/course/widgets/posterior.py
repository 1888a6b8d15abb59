"""The posterior explorer of lesson 03: one step back in one dimension, with x_0 known and with the data known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch.course import plots
from ddpm_from_scratch.gaussian import posterior_mean, posterior_variance

from .base import LIVE_DPI, Explorer, LiveFigure, notice, one_call

LIMIT = 3.4

EXPLORER_ALT = (
    "Left, the density of the noisy data over t, with a dot at x_0, a dot at x_t and a bar where x was before if it "
    "came from x_0. Right, two densities over the same vertical axis: the Gaussian posterior with x_0 known, and the "
    "exact reverse density of the mixture."
)


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians on the line; arrays of shape (K,)."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def density(self, x: np.ndarray) -> np.ndarray:
        """p(x), of x's shape."""
        return (self.weights * _normal(x[..., None], self.means, self.variances)).sum(axis=-1)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        mean = float(self.weights @ self.means)
        return mean, math.sqrt(float(self.weights @ (self.variances + (self.means - mean) ** 2)))

    def noised(self, alpha_bar_t: float) -> Mixture:
        """q(x_t) when x_0 comes from this mixture (Ho eq. 4 for each component)."""
        return Mixture(self.weights, alpha_bar_t**0.5 * self.means, alpha_bar_t * self.variances + 1 - alpha_bar_t)

    def given(self, x_t: float, alpha_bar_t: float) -> Mixture:
        """q(x_0 | x_t) when x_0 comes from this mixture."""
        noisy = self.noised(alpha_bar_t)
        log_share = (
            np.log(self.weights) - (x_t - noisy.means) ** 2 / (2 * noisy.variances) - np.log(noisy.variances) / 2
        )
        share = np.exp(log_share - log_share.max())
        gain = alpha_bar_t**0.5 * self.variances / noisy.variances
        means = self.means + gain * (x_t - noisy.means)
        return Mixture(share / share.sum(), means, self.variances * (1 - alpha_bar_t) / noisy.variances)

    def reverse(self, x_t: float, alpha_bar_t: float, alpha_bar_prev: float) -> Mixture:
        """q(x_prev | x_t) when x_0 comes from this mixture: the posterior (Ho eq. 6, 7) averaged over q(x_0 | x_t)."""
        clean = self.given(x_t, alpha_bar_t)
        by_x0: Any = posterior_mean(0.0, 1.0, alpha_bar_t, alpha_bar_prev)  # type: ignore[arg-type]
        means: Any = posterior_mean(x_t, clean.means, alpha_bar_t, alpha_bar_prev)  # type: ignore[arg-type]
        fresh = float(posterior_variance(alpha_bar_t, alpha_bar_prev))
        return Mixture(clean.weights, means, fresh + by_x0**2 * clean.variances)


def _normal(x: np.ndarray, mean: Any, variance: Any) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


class PosteriorExplorer(Explorer):
    """x_0, x_t, t and a number of steps back: where x was, with x_0 known, and with only the data's mixture known.

    Args:
        alpha_bar: ᾱ of every timestep, shape (T,).
        weights, centres, stds: of the data's mixture, K numbers each; weights add up to 1, stds are above 0.
        x0, x_t, t, back: where the sliders start.

    Raises:
        ValueError: a mixture that is none.
    """

    def __init__(
        self,
        alpha_bar: Tensor,
        weights: Sequence[float] = (0.7, 0.3),
        centres: Sequence[float] = (1.0, -1.0),
        stds: Sequence[float] = (0.15, 0.15),
        x0: float = 1.0,
        x_t: float = 0.25,
        t: int = 500,
        back: int = 350,
    ) -> None:
        if not len(weights) == len(centres) == len(stds) or abs(sum(weights) - 1) > 1e-6 or min(*weights, *stds) <= 0:
            raise ValueError("a mixture needs as many weights as centres and stds, all above 0, weights adding up to 1")
        self.bars = [1.0, *alpha_bar.tolist()]
        self.data = Mixture(np.array(weights), np.array(centres), np.array(stds) ** 2)
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        T, wide = len(alpha_bar), {"width": "24em"}
        self.x0 = ipywidgets.FloatSlider(x0, min=-2, max=2, step=0.05, description="clean x_0", layout=wide)
        self.x_t = ipywidgets.FloatSlider(x_t, min=-3, max=3, step=0.05, description="now x_t", layout=wide)
        self.t = ipywidgets.IntSlider(t, 0, T - 1, description="timestep t", layout=wide)
        self.back = ipywidgets.IntSlider(back, 1, T, description="steps back", layout=wide)
        controls = [self.x0, self.x_t, self.t, self.back]
        super().__init__(controls, EXPLORER_ALT, self._fixed())
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        for control in controls:
            control.observe(lambda change: self.redraw(), names="value")
        self.redraw()

    def redraw(self) -> None:
        """Show what the sliders say."""
        x0, x_t, t, back = (control.value for control in (self.x0, self.x_t, self.t, self.back))
        self.picture.value = self.frame(x0, x_t, t, back)
        if back > t + 1:
            most = f"at most {t + 1} step" + "s" * (t > 0)
            self.text.value = notice(f"No step is drawn: from t = {t} it is {most} back to the clean end.")
            return
        mean, std, reverse = self.before(x0, x_t, t, back)
        any_mean, any_std = reverse.moments()
        place = f"x at t = {t - back}" if back <= t else "x_0"
        shares = ", ".join(
            f"{_percent(share)} from {centre:+.3g}"
            for share, centre in zip(reverse.weights, self.data.means, strict=True)
        )
        self.text.value = (
            f"{place}, with x_0 known: mean {mean:+.3f}, standard deviation {std:.3f}. With only the data known: mean "
            f"{any_mean:+.3f}, standard deviation {any_std:.3f} ({shares})"
        )

    def before(self, x0: float, x_t: float, t: int, back: int) -> tuple[float, float, Mixture]:
        """Where x was `back` steps before t: mean and standard deviation given x_0, and the mixture without it."""
        now, earlier = self.bars[t + 1], self.bars[t + 1 - back]
        mean = float(posterior_mean(x_t, x0, now, earlier))  # type: ignore[arg-type]
        return mean, float(posterior_variance(now, earlier)) ** 0.5, self.data.reverse(x_t, now, earlier)

    def frame(self, x0: float, x_t: float, t: int, back: int) -> bytes:
        """The picture as a PNG file; where there are not so many steps, without x before t."""
        possible = back <= t + 1
        for artist in (self.bar, self.posterior, self.reverse):
            artist.set_visible(possible)
        self.ends.set_data([-1, t], [x0, x_t])
        if possible:
            mean, std, reverse = self.before(x0, x_t, t, back)
            self.bar.set_data([t - back] * 3, [mean - 2 * std, mean, mean + 2 * std])
            for line, (height, x) in zip((self.posterior, self.reverse), _profiles(mean, std, reverse), strict=True):
                line.set_data(height, x)
        return self.live.png()

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.blank_figure(plots.WIDTH, 4.3)
        figure.set_dpi(LIVE_DPI)
        chart, densities = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
        self._draw_map(chart)
        (self.bar,) = chart.plot([0, 0, 0], [0, 1, 2], "_-", color=plots.BLUE, markersize=9, linewidth=3)
        (self.ends,) = chart.plot([0, 1], [0, 1], "o:", color=plots.GREEN, markersize=9, linewidth=1.6)
        (self.posterior,) = densities.plot([0, 1], [0, 1], "-", color=plots.BLUE)
        (self.reverse,) = densities.plot([0, 1], [0, 1], linestyle=(0, (5, 1.5)), color=plots.VERMILION)
        _scale(densities)
        densities.set_title("where x was")
        handles = [self.ends, self.posterior, self.reverse]
        names = ["$x_0$ and $x_t$", "before, $x_0$ known (bar: ±2 std)", "before, only the data known"]
        figure.legend(handles, names, loc="outside lower center", ncols=3, columnspacing=1.5)
        moving = [self.bar, self.ends, *chart.spines.values(), self.posterior, self.reverse]
        return figure, [*moving, *densities.spines.values()]  # in drawing order

    def _draw_map(self, ax: Axes) -> None:
        """The density of q(x_t) over all t, in grey; the root makes thin parts visible."""
        T, x = len(self.bars) - 1, np.linspace(-LIMIT, LIMIT, 240)
        columns = [self.data.noised(self.bars[round(k)]).density(x) for k in np.linspace(0, T, 240)]
        shade = np.stack([column / column.max() for column in columns], axis=1) ** 0.5
        ax.imshow(shade, origin="lower", extent=(-1, T - 1, -LIMIT, LIMIT), aspect="auto", cmap="Greys", vmin=0, vmax=2)
        edge = 0.03 * T  # as wide as half a dot
        ax.set(xlim=(-1 - edge, T - 1 + edge), ylim=(-LIMIT, LIMIT), xlabel="timestep t")
        ax.set_title("x over t; grey: all data, noised")
        ax.grid(False)

    def _fixed(self) -> str:
        T = len(self.bars) - 1
        t = T // 2
        with rc_context(plots.STYLE):
            figure = plots.new_figure(plots.WIDTH, 3.3, 1, 3, sharey=True)
            for ax, back in zip(figure.axes, (max(1, T // 1000), max(1, T // 10), max(1, T * 35 // 100)), strict=True):
                styles = (("-", plots.BLUE, "$x_0$ known"), ((0, (5, 1.5)), plots.VERMILION, "only the data known"))
                profiles = _profiles(*self.before(float(self.data.means[0]), 0.25, t, back))
                for (height, x), (dash, colour, label) in zip(profiles, styles, strict=True):
                    ax.plot(height, x, linestyle=dash, color=colour, label=label)
                _scale(ax)
                ax.set_title(f"{back} step{'s' * (back > 1)} before t = {t}")
            figure.axes[0].set_ylabel("x")
            figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
            png = plots.to_png(figure)
        return plots.to_html(
            png,
            plots.WIDTH,
            "Two densities in each of three panels. One step back they are one narrow bell. Far back, the density with "
            "only the data known has one heap per component, and the one with x_0 known is a single bell at one of "
            "them.",
            f"What the explorer shows for x_t = 0.25 and x_0 = {self.data.means[0]:+g} at three of its settings. One "
            "step back, it hardly matters whether x_0 is known. Many steps back it decides, and the exact density is "
            "no Gaussian any more. In JupyterLab you can move x_0, x_t and t yourself.",
        )


def _profiles(mean: float, std: float, reverse: Mixture) -> list[tuple[np.ndarray, np.ndarray]]:
    """(height, x) of the posterior and of the reverse density, the taller peak being 1.

    A posterior without variance is a spike: all of its probability is at `mean`.
    """
    spread = np.linspace(-5, 5, 121)
    fine = [m + s * spread for m, s in zip(reverse.means, np.sqrt(reverse.variances), strict=True)]
    x = np.unique(np.concatenate([np.linspace(-LIMIT, LIMIT, 200), mean + std * spread, *fine]))
    exact = reverse.density(x)
    if std == 0:
        return [(np.array([0.0, 1.0]), np.array([mean, mean])), (exact / exact.max(), x)]
    known = _normal(x, mean, std**2)
    peak = max(known.max(), exact.max())
    return [(known / peak, x), (exact / peak, x)]


def _percent(share: float) -> str:
    """A share in whole percent; what is not quite all or nothing is not rounded to it."""
    if 0 < share < 0.005:
        return "under 1%"
    return "over 99%" if 0.995 < share < 1 else f"{share:.0%}"


def _scale(ax: Axes) -> None:
    ax.set(xlim=(-0.02, 1.08), ylim=(-LIMIT, LIMIT), xticks=(), xlabel="density, taller peak = 1")


posterior_explorer = one_call(PosteriorExplorer)
