"""The course's one plotting style, and the four pictures it keeps drawing.

Figures are drawn on light paper, so they read the same on a light and on a dark JupyterLab. The colours are those of
Okabe and Ito, told apart by readers with colour blindness, and every line also has its own dash. No global state of
matplotlib is touched: each picture is a `Figure` of its own, shown once and dropped.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from cycler import cycler
from IPython import get_ipython
from IPython.display import display
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..gaussian import q_sample

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, FAINT, PAPER = "#1f2328", "#8c959f", "#ffffff"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))

STYLE: Any = {
    "figure.facecolor": PAPER,
    "figure.dpi": 144,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.2,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
    "font.size": 11,
}
"""The matplotlib settings of every picture in the course."""

CSS_INCH = 96
WIDTH = 8.0
MAX_INCHES_PER_IMAGE = 1.05


# ---------------------------------------------------------------- one figure, shown with its alt text


def blank_figure(width: float = WIDTH, height: float = 3.0) -> Figure:
    """A figure without axes, on its own canvas; `width` and `height` in inches. Call inside `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(width: float = WIDTH, height: float = 3.0, rows: int = 1, columns: int = 1, **subplots: Any) -> Figure:
    """A figure with `rows` × `columns` axes. Call inside `rc_context(STYLE)`.

    Args:
        width, height: inches; 8 wide fills the output area of a notebook.
        subplots: further arguments of `Figure.subplots`, such as `sharey` or `width_ratios`.
    """
    figure = blank_figure(width, height)
    figure.subplots(rows, columns, **subplots)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 256 colours, a third of the size; the same bytes for the same figure."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
    return packed.getvalue()


def prose(text: str) -> str:
    """Plain text as HTML: what stands between backticks is code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", html.escape(text, quote=False))


def to_html(png: bytes, width: float, alt: str, caption: str) -> str:
    """An HTML figure that holds the picture itself, its alt text and its caption.

    JupyterLab drops the alt text of a plain image output; here screen readers find it.

    Args:
        png: the picture.
        width: inches on the page; the picture shrinks on a narrower one.

    Raises:
        ValueError: an empty `alt` or `caption`.
    """
    if not alt.strip() or not caption.strip():
        raise ValueError("a picture needs `alt` (what it shows, in words) and `caption` (what to see in it)")
    source = base64.b64encode(png).decode()
    caption = f"<em>{prose(caption)}</em>"
    return (
        '<figure style="margin: 0.5em 0">'
        f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{source}"'
        f' style="width: {width * CSS_INCH:.0f}px; max-width: 100%; height: auto">'
        f'<figcaption style="max-width: 46em; margin-top: 0.4em">{caption}</figcaption></figure>'
    )


def words(name: str) -> dict[str, str]:
    """The `alt` and `caption` of a lesson's picture, kept apart from its code so that this does not say what is to see.

    Args:
        name: the lesson's number and the cell's id, as in "03-hero".

    Raises:
        ValueError: a picture that the lessons do not have.
    """
    path = files("ddpm_from_scratch") / "course" / "words" / f"{name[:2]}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name not in known:
        raise ValueError(f"the lessons have no picture {name!r}: give `alt` and `caption` yourself")
    found: dict[str, str] = known[name]
    return found


def show(figure: Figure, alt: str, caption: str) -> None:
    """Display a figure in the notebook; where only text is shown, and in plain Python, its alt text."""
    if get_ipython() is None:
        print(f"[picture: {alt}]")
        return
    page = to_html(to_png(figure), figure.get_figwidth(), alt, caption)
    display({"text/html": page, "text/plain": f"[picture: {alt}]"}, raw=True)


@contextmanager
def figure(
    width: float = WIDTH,
    height: float = 3.0,
    rows: int = 1,
    columns: int = 1,
    *,
    alt: str,
    caption: str,
    **subplots: Any,
) -> Iterator[Any]:
    """Draw a picture in a `with` block; it is displayed at the end of the block.

        with plots.figure(columns=2, alt="…", caption="…") as (left, right):
            left.plot(x, y)

    Yields one `Axes`, or an array of them when there are several.
    """
    with rc_context(STYLE):
        fig = new_figure(width, height, rows, columns, **subplots)
        yield np.array(fig.axes).reshape(rows, columns).squeeze() if len(fig.axes) > 1 else fig.axes[0]
        show(fig, alt, caption)


# ---------------------------------------------------------------- drawing on given axes


def to_pixels(images: Tensor) -> np.ndarray:
    """Images in [-1, 1] as grey or RGB values in [0, 1]; what lies outside [-1, 1] becomes black or white.

    Args:
        images: shape (N, C, H, W) with C = 1 or 3, or (N, H, W).

    Returns:
        Shape (N, H, W, 3).
    """
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"expected images of shape (N, 1, H, W), (N, 3, H, W) or (N, H, W), got {tuple(images.shape)}")
    values = ((images.detach().cpu().float() + 1) / 2).clamp(0, 1)
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # (N, C, H, W) → (N, H, W, 3)


def montage(images: Tensor, columns: int, gap: float = 0.08) -> np.ndarray:
    """Images side by side, `columns` in a row, on paper white.

    Args:
        images: as in `to_pixels`.
        gap: width of the space between images, in parts of an image.

    Returns:
        Shape (height, width, 3), values in [0, 1].
    """
    pixels = to_pixels(images)
    count, height, width, _ = pixels.shape
    pad, rows = max(1, round(gap * width)), math.ceil(count / columns)
    page = np.ones((rows * (height + pad) - pad, columns * (width + pad) - pad, 3), dtype=np.float32)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + pad), i % columns * (width + pad)
        page[top : top + height, left : left + width] = image
    return page


def draw_images(
    ax: Axes,
    images: Tensor,
    columns: int,
    titles: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    outline: Sequence[str] = (),
) -> None:
    """A grid of images on one axes.

    Args:
        images: as in `to_pixels`.
        titles: one per column, above it.
        row_labels: one per row, to its left.
        outline: one colour per image, drawn around it.
    """
    height, width = images.shape[-2:]
    pad = max(1, round(0.08 * width))
    ax.imshow(montage(images, columns), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_anchor("E")
    for i, title in enumerate(titles):
        ax.text(i * (width + pad) + width / 2, -0.06 * height, title, ha="center", va="bottom", linespacing=1.3)
    for i, label in enumerate(row_labels):
        ax.text(-0.12 * width, i * (height + pad) + height / 2, label, ha="right", va="center", linespacing=1.3)
    for i, colour in enumerate(outline):
        left, top = i % columns * (width + pad) - 0.5, i // columns * (height + pad) - 0.5
        xs, ys = [left, left + width, left + width, left, left], [top, top, top + height, top + height, top]
        ax.plot(xs, ys, color=colour, linewidth=2.5, linestyle="-", clip_on=False)


def draw_curves(
    ax: Axes, x: Tensor, curves: Mapping[str, Tensor], xlabel: str, ylabel: str, yscale: str = "linear"
) -> None:
    """Lines over `x`, one per entry, each with a colour and a dash of its own; a legend where there are several."""
    for label, y in curves.items():
        ax.plot(x.numpy(), y.detach().numpy(), label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    if len(curves) > 1:
        ax.legend()


def draw_points(ax: Axes, points: Tensor, groups: Tensor | None = None, limit: float = 3.2, title: str = "") -> None:
    """2-D points, coloured by group, in the square [-limit, limit]².

    Args:
        points: shape (N, 2).
        groups: shape (N,), whole numbers from 0; each group has a colour and a marker.
    """
    groups = torch.zeros(len(points), dtype=torch.long) if groups is None else groups
    for part in torch.arange(len(points)).chunk(8):  # in parts, so that no group hides the others
        for group in groups[part].unique().tolist():
            x, y = points[part][groups[part] == group].T.numpy()
            ax.scatter(x, y, s=7, alpha=0.6, linewidths=0, color=COLOURS[group % 6], marker="os^Dv*"[group % 6])
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    ax.tick_params(labelsize=8)


# ---------------------------------------------------------------- the four pictures


def grid_figure(
    images: Tensor,
    columns: int = 8,
    titles: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    outline: Sequence[str] = (),
    width: float | None = None,
) -> Figure:
    """A figure with a grid of images (see `draw_images`). `width` in inches; by default what the images need."""
    columns = min(columns, len(images))
    label_width = 0.3 + 0.09 * max((len(line) for label in row_labels for line in label.split("\n")), default=0)
    width = width or min(WIDTH, columns * MAX_INCHES_PER_IMAGE + label_width)
    rows, cell = math.ceil(len(images) / columns), (width - label_width) / columns
    title_lines = max((title.count("\n") + 1 for title in titles), default=0)
    height = rows * cell * images.shape[-2] / images.shape[-1] + 0.1 + 0.22 * title_lines
    with rc_context(STYLE):
        fig = new_figure(width, height)
        draw_images(fig.axes[0], images, columns, titles, row_labels, outline)
    return fig


def image_grid(images: Tensor, columns: int = 8, *, alt: str, caption: str, **layout: Any) -> None:
    """Show a grid of images; `titles`, `row_labels`, `outline` and `width` as in `grid_figure`."""
    show(grid_figure(images, columns, **layout), alt, caption)


def noising_strip(
    x0: Tensor, noise: Tensor, alpha_bar: Tensor, timesteps: Sequence[int], *, alt: str, caption: str
) -> None:
    """Show x_t of each image (one row each) at several t, from the same noise (Ho eq. 4).

    Args:
        x0, noise: shape (N, C, H, W).
        alpha_bar: ᾱ of every timestep, shape (T,).
        timesteps: indices into `alpha_bar`, one column each; a first column shows x_0.
    """
    steps = [x0, *(q_sample(x0, noise, float(alpha_bar[t])) for t in timesteps)]
    images = torch.stack(steps, dim=1).flatten(0, 1)  # (N, columns, C, H, W) → (N · columns, C, H, W)
    image_grid(images, len(steps), titles=["$x_0$", *(f"t = {t}" for t in timesteps)], alt=alt, caption=caption)


def curves(
    x: Tensor, lines: Mapping[str, Tensor], xlabel: str, ylabel: str, *, yscale: str = "linear", alt: str, caption: str
) -> None:
    """Show lines over `x` (see `draw_curves`)."""
    with figure(7, 3.2, alt=alt, caption=caption) as ax:
        draw_curves(ax, x, lines, xlabel, ylabel, yscale)


def scatter(panels: Mapping[str, Tensor], groups: Tensor | None = None, *, alt: str, caption: str) -> None:
    """Show 2-D points, one panel per entry of `panels` (title → points of shape (N, 2))."""
    with figure(WIDTH, 0.35 + WIDTH / len(panels), columns=len(panels), alt=alt, caption=caption, sharey=True) as axes:
        for ax, (title, points) in zip(np.atleast_1d(axes), panels.items(), strict=True):
            draw_points(ax, points, groups, title=title)
