"""The schedule explorer of lesson 02."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch import schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.gaussian import q_sample

from .base import LIVE_DPI, Explorer, LiveFigure, notice, one_call, option_buttons

NAMES = {
    "linear": "linear",
    "scaled linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}
"""The schedules by the lesson's name, and Diffusers' name of each."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9, 1.0)
MAX_T = 4000
DOTS_UP_TO = 60

EXPLORER_ALT = (
    "Three panels over the share of the steps: beta on a logarithmic axis, alpha bar, and log-SNR; the chosen schedule "
    "as a line over the linear one of the paper in grey. Below, two images after 0 to 100 % of the chosen steps."
)


def checked_betas(name: str, beta_start: float, beta_end: float, T: int, zero_snr: bool) -> Tensor:
    """The chosen schedule. Shape (T,), float64.

    Args:
        name: a key of `NAMES`; the cosine schedule does not use the range of β.
        zero_snr: rescale it to zero terminal SNR.

    Raises:
        ValueError: a choice that gives no schedule; the message tells a learner why.
    """
    if T < 2:
        raise ValueError(f"T = {T} is a single jump from the image to noise, and no schedule: choose at least 2 steps")
    if name != "cosine":
        if beta_end >= 1:
            raise ValueError(
                f"β = {beta_end:.3g} at the end: a step's variance must stay below 1, or √(1-β) has no meaning"
            )
        if beta_start > beta_end:
            raise ValueError(
                f"β would fall, from {beta_start:.3g} to {beta_end:.3g}: noise should grow, so let the first β be the "
                "smaller one"
            )
    betas = schedules.make_betas(NAMES[name], T, beta_start, beta_end)
    return schedules.rescale_zero_terminal_snr(betas) if zero_snr else betas


def levels_at(alpha_bar: Tensor, shares: Sequence[float]) -> list[float]:
    """ᾱ after each share of the steps; 1 before the first."""
    bars = [1.0, *alpha_bar.tolist()]
    return [bars[round(share * len(alpha_bar))] for share in shares]


class ScheduleExplorer(Explorer):
    """Type, range, length and end of a schedule; β, ᾱ, log-SNR and a strip of images follow.

    A choice that gives no schedule is answered by a sentence, and no curve is drawn.

    Args:
        images: x_0 in [-1, 1], shape (N, C, H, W); the first two are drawn.
        schedule, beta_start, beta_end, T, zero_snr: the first choice, as in `checked_betas`.
        seed: of the noise, which is kept while the schedule changes.
    """

    def __init__(
        self,
        images: Tensor,
        schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        T: int = 1000,
        zero_snr: bool = False,
        seed: int = 0,
    ) -> None:
        self.images = images[:2]
        self.noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(seed))
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        wide = {"width": "24em"}
        self.schedule = option_buttons([(name, name) for name in NAMES], schedule, "schedule", "8em")
        self.steps = ipywidgets.IntSlider(T, 1, max(T, MAX_T), description="steps T", layout=wide)
        self.beta_start = ipywidgets.SelectionSlider(
            options=_betas_to_choose(beta_start), value=beta_start, description="first β", layout=wide
        )
        self.beta_end = ipywidgets.SelectionSlider(
            options=_betas_to_choose(beta_end), value=beta_end, description="last β", layout=wide
        )
        self.zero_snr = ipywidgets.Checkbox(
            zero_snr, description="zero terminal SNR", indent=False, layout={"width": "12em"}
        )
        controls = [self.schedule, self.steps, self.zero_snr, self.beta_start, self.beta_end]
        super().__init__(controls, EXPLORER_ALT, self._fixed())
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        for control in controls:
            control.observe(lambda change: self.redraw(), names="value")
        self.redraw()

    def redraw(self) -> None:
        """Show what the controls say."""
        name, T = self.schedule.value, self.steps.value
        self.beta_start.disabled = self.beta_end.disabled = name == "cosine"
        try:
            betas = checked_betas(name, self.beta_start.value, self.beta_end.value, T, self.zero_snr.value)
        except ValueError as error:
            self.picture.value = self.frame(None)
            self.text.value = notice(f"Nothing is drawn: {error}.")
            return
        self.picture.value = self.frame(betas)
        alpha_bar = schedules.alpha_bars(betas)
        half, last = levels_at(alpha_bar, (0.5, 1.0))
        end = f"{_bars(betas)[1][-1]:+.1f}" if last else "-∞: ε cannot be the target there"
        self.text.value = (
            f"{name}, T = {T}: Σβ = {float(betas.sum()):.4g}, ᾱ half way = {_level(half, 3)}, "
            f"ᾱ at the end = {_level(last, 2)}, log-SNR at the end = {end}"
        )

    def frame(self, betas: Tensor | None) -> bytes:
        """The picture of a schedule as a PNG file; without one, the empty axes."""
        for artist in (*self.lines, self.strip, *self.titles):
            artist.set_visible(betas is not None)
        if betas is not None:
            alpha_bar = schedules.alpha_bars(betas)
            share = torch.arange(1, len(betas) + 1) / len(betas)
            for line, y in zip(self.lines, (betas, alpha_bar, schedules.log_snr(alpha_bar)), strict=True):
                line.set_data(share.numpy(), y.numpy())
                line.set_marker("o" if len(betas) <= DOTS_UP_TO else "")
            self.strip.set_data(plots.montage(self.noised(alpha_bar, SHARES), len(SHARES)))
            for title, words in zip(self.titles, _titles(SHARES, len(betas)), strict=True):
                title.set_text(words)
        return self.live.png()

    def noised(self, alpha_bar: Tensor, shares: Sequence[float]) -> Tensor:
        """Each image after each share of the steps (Ho eq. 4), image by image. Shape (N · shares, C, H, W)."""
        steps = [q_sample(self.images, self.noise, level) for level in levels_at(alpha_bar, shares)]
        return torch.stack(steps, dim=1).flatten(0, 1)  # (N, shares, C, H, W) → (N · shares, C, H, W)

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.blank_figure(plots.WIDTH, 5.2)
        figure.set_dpi(LIVE_DPI)
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.45, 1))
        axes = parts[0].subplots(1, 3)
        paper = schedules.linear()
        for ax, y in zip(axes, (paper, *_bars(paper)), strict=True):
            ax.plot(np.arange(1, 1001) / 1000, y.numpy(), "--", color=plots.FAINT, linewidth=1.6)
        self.lines = [ax.plot([0.5], [0.5], "-", color=plots.BLUE, markersize=4)[0] for ax in axes]
        _scale(axes)
        handles = [self.lines[0], axes[0].lines[0]]
        names = ["chosen schedule", "for comparison: linear, T = 1000, β from 0.0001 to 0.02"]
        parts[0].legend(handles, names, loc="outside lower center", ncols=2)
        images = parts[1].subplots()
        blank = torch.ones(len(self.images) * len(SHARES), *self.images.shape[1:])
        plots.draw_images(images, blank, len(SHARES), titles=_titles(SHARES))
        images.set_anchor("C")
        self.strip, self.titles = images.images[0], list(images.texts)
        moving = [artist for ax, line in zip(axes, self.lines, strict=True) for artist in (line, *ax.spines.values())]
        return figure, [*moving, self.strip, *self.titles]  # in drawing order

    def _fixed(self) -> str:
        choices = {
            "linear": ("linear", 1000, False),
            "linear,\nT = 100": ("linear", 100, False),
            "cosine": ("cosine", 1000, False),
            "linear,\nzero SNR": ("linear", 1000, True),
        }
        tables = {label: checked_betas(n, 1e-4, 0.02, T, zero) for label, (n, T, zero) in choices.items()}
        with rc_context(plots.STYLE):
            figure = plots.blank_figure(plots.WIDTH, 3.2)
            halves: Any = figure.subfigures(1, 2, width_ratios=(1.6, 1))
            left, right = halves
            shares = SHARES[::2]
            strips = [self.noised(schedules.alpha_bars(betas), shares)[: len(shares)] for betas in tables.values()]
            plots.draw_images(left.subplots(), torch.cat(strips), len(shares), _titles(shares), list(tables))
            ax = right.subplots()
            for label, betas in tables.items():
                share = np.arange(1, len(betas) + 1) / len(betas)
                ax.plot(share, schedules.log_snr(schedules.alpha_bars(betas)).numpy(), label=label.replace("\n", " "))
            ax.set(xlabel="share of the steps", title="log-SNR", xlim=(0, 1), ylim=(-14, 11))
            ax.legend(fontsize=9, loc="lower left")
            png = plots.to_png(figure)
        return plots.to_html(
            png,
            plots.WIDTH,
            "One image after 0 to 100 % of the steps of four schedules, one row each, and their log-SNR. With T = 100 "
            "and the range of beta as it is, the image is still there at the end.",
            "What the explorer shows at four of its settings. With T = 100 and the same range of β the image survives; "
            "the rescaled schedule follows the linear one, and falls to minus infinity at the end. In JupyterLab you "
            "can choose the schedule yourself.",
        )


def _betas_to_choose(first: float) -> list[tuple[str, float]]:
    """Six values in each power of ten from 0.000001 to 1, and `first`, with their labels."""
    values = {round(digit * 10.0**power, 9) for power in range(-6, 0) for digit in (1, 1.5, 2, 3, 5, 7)}
    return [(f"{beta:.9f}".rstrip("0").rstrip("."), beta) for beta in sorted({*values, 1.0, first})]


def _bars(betas: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ and log-SNR of a schedule."""
    alpha_bar = schedules.alpha_bars(betas)
    return alpha_bar, schedules.log_snr(alpha_bar)


def _titles(shares: Sequence[float], T: int = 1000) -> list[str]:
    """What share of T steps is over at the step nearest to each of the shares."""
    steps = [round(share * T) for share in shares]
    return [f"{100 * step / T:.0f} %" if step else "$x_0$" for step in steps]


def _level(alpha_bar: float, digits: int) -> str:
    """ᾱ in a few digits; where it would round to 1, as 1 less the rest."""
    short = f"{alpha_bar:.{digits}g}"
    return f"1 - {1 - alpha_bar:.{digits}g}" if short == "1" else short


def _scale(axes: np.ndarray) -> None:
    """Ranges that hold every schedule, so that the axes stand still."""
    beta, alpha_bar, log_snr = axes
    beta.set(yscale="log", ylim=(5e-7, 2), title="β, one step")
    alpha_bar.set(ylim=(-0.03, 1.03), title="ᾱ, what is left")
    log_snr.set(ylim=(-16, 14), title="log-SNR")
    ax: Axes
    for ax in axes:
        ax.set(xlim=(-0.02, 1.02), xlabel="share of the steps", xticks=(0, 0.5, 1))


schedule_explorer = one_call(ScheduleExplorer)
