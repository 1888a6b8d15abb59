"""The U-Net tracer of lesson 05."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch.course import plots
from ddpm_from_scratch.gaussian import q_sample
from ddpm_from_scratch.models import UNet2DModel

from .base import LIVE_DPI, Explorer, LiveFigure, one_call

SIGNED = colormaps["PuOr"]
ROWS, COLUMNS, GAP = 4, 8, 0.12
KEPT = 64
"""How many timesteps' maps are kept."""

TRACER_ALT = (
    "Left, the blocks of the network as dots on a U, from conv_in down to the middle and up to conv_out, with an "
    "arc for every skip; the chosen block is ringed, its skip drawn thick. Right, its feature maps, orange "
    "where negative and purple where positive."
)


@dataclass(frozen=True)
class Node:
    """One stop of a forward pass.

    Args:
        name: what it is called: the dotted name of a layer.
        module: the dotted name of the module whose output the maps are; the attention, where one follows the layer.
        level: 0 at full resolution, 1 at half of it, and so on.
        partner: index of the stop at the other end of its skip; None without one.
        makes: whether it makes that skip, and does not take it.
    """

    name: str
    module: str
    level: int
    partner: int | None = None
    makes: bool = False


def nodes_of(unet: UNet2DModel) -> list[Node]:
    """Every stop of a forward pass, in order, each with the other end of its skip."""
    stops: list[tuple[str, str, int]] = [("conv_in", "conv_in", 0)]
    makers, level = [0], 0
    takers: list[int] = []
    for i, block in enumerate(unet.down_blocks):
        stops += [(*layer, level) for layer in _layers(block, f"down_blocks.{i}")]
        if block.downsamplers is not None:
            level += 1
            stops.append((f"down_blocks.{i}.downsamplers.0", f"down_blocks.{i}.downsamplers.0", level))
        makers = list(range(len(stops)))
    if unet.mid_block is not None:
        stops.append(("mid_block", "mid_block", level))
    for i, block in enumerate(unet.up_blocks):
        layers = _layers(block, f"up_blocks.{i}")
        takers += range(len(stops), len(stops) + len(layers))
        stops += [(*layer, level) for layer in layers]
        if block.upsamplers is not None:
            level -= 1
            stops.append((f"up_blocks.{i}.upsamplers.0", f"up_blocks.{i}.upsamplers.0", level))
    stops.append(("conv_out", "conv_out", 0))
    pairs = dict(zip(makers, reversed(takers), strict=True))
    back = {taker: maker for maker, taker in pairs.items()}
    return [Node(*stop, pairs.get(k, back.get(k)), k in pairs) for k, stop in enumerate(stops)]


def _layers(block: Any, name: str) -> list[tuple[str, str]]:
    """Name and module of each layer of a block: a ResNet block, or the attention after it."""
    last = "attentions" if hasattr(block, "attentions") else "resnets"
    return [(f"{name}.resnets.{j}", f"{name}.{last}.{j}") for j in range(len(block.resnets))]


@contextmanager
def outputs_kept(unet: UNet2DModel, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """In the `with` block, the dict holds what each named module gave last."""
    kept: dict[str, Tensor] = {}
    modules = dict(unet.named_modules())

    def keep(name: str) -> Any:
        return lambda module, inputs, output: kept.__setitem__(name, output.detach())

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class UNetTracer(Explorer):
    """Choose a block and a timestep: the block's feature maps, its shape, and where its skip goes.

    Args:
        unet: the network; left as it is.
        image: x_0, shape (C, H, W) or (1, C, H, W), in [-1, 1].
        noise: ε of the same shape.
        alpha_bar: ᾱ of every timestep, shape (T,).
        t: where the slider starts.
    """

    def __init__(self, unet: UNet2DModel, image: Tensor, noise: Tensor, alpha_bar: Tensor, t: int = 300) -> None:
        self.unet, self.alpha_bar = unet, alpha_bar
        self.x0, self.noise = (a.reshape(1, *a.shape[-3:]) for a in (image, noise))
        self.nodes = nodes_of(unet)
        self.kept: dict[int, dict[str, Tensor]] = {}
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        options = [(f"{k + 1}. {_short(node.name)}", k) for k, node in enumerate(self.nodes)]
        self.block = ipywidgets.SelectionSlider(
            options=options,
            value=1,
            description="block",
            layout={"width": "36em"},
            tooltip="arrow keys change the block",
        )
        last = len(alpha_bar) - 1
        self.slider = ipywidgets.IntSlider(
            t, 0, last, description="timestep t", layout={"width": "26em"}, tooltip="arrow keys move by one step"
        )
        super().__init__([self.block, self.slider], TRACER_ALT, self._fixed(t))
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        for control in (self.block, self.slider):
            control.observe(lambda change: self.redraw(), names="value")
        self.redraw()

    def maps(self, t: int) -> dict[str, Tensor]:
        """Each stop's output at timestep t, (C, H, W) by module, from one forward pass; "x_t" is the input."""
        if t not in self.kept:
            x_t = q_sample(self.x0, self.noise, float(self.alpha_bar[t]))
            with outputs_kept(self.unet, [node.module for node in self.nodes]) as kept, torch.no_grad():
                self.unet(x_t, t)
            while len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[t] = {name: map_[0] for name, map_ in ({"x_t": x_t} | kept).items()}
        return self.kept[t]

    def frame(self, block: int, t: int) -> bytes:
        """The picture of stop `block` at timestep t as a PNG file."""
        maps, node = self.maps(t), self.nodes[block]
        channels = len(maps[node.module])
        rows = next((rows for rows in (1, 2) if channels <= 2 * rows**2), ROWS)  # few maps are drawn larger
        self.grid.set_data(feature_page(maps[node.module], rows, 2 * rows))
        self.input.set_data(plots.to_pixels(maps["x_t"][None])[0])
        self.ring.set_data([block], [-node.level])
        self.arc.set_data(*([], []) if node.partner is None else arc(self.nodes, block))
        return self.live.png()

    def redraw(self) -> None:
        """Show the chosen block at the chosen timestep."""
        block, t = self.block.value, self.slider.value
        self.picture.value = self.frame(block, t)
        self.text.value = self.words(block, t)

    def words(self, block: int, t: int) -> str:
        """Shape and skip of stop `block`, in a sentence or two."""
        node, maps = self.nodes[block], self.maps(t)
        channels, height, width = maps[node.module].shape
        size = f"{channels} map{'s' * (channels > 1)} of {height}×{width}"
        shown = f", {ROWS * COLUMNS} of them shown" * (channels > ROWS * COLUMNS)
        name = node.name + " with attention" * (node.module != node.name)
        text = f"{name} at t = {t}: {size}{shown}, full colour from ±{full_colour(maps[node.module]):.2g} on. "
        if node.partner is None:
            return text + "It makes no skip and takes none."
        other = self.nodes[node.partner].name
        if node.makes:
            return text + f"A copy of them goes to {other}."
        before, skip = (maps[self.nodes[k].module].shape[0] for k in (block - 1, node.partner))
        text += f"Its input: {before} channels from the stop before and {skip} from {other}, {before + skip} in all."
        return text

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.blank_figure(plots.WIDTH, 3.5)
        figure.set_dpi(LIVE_DPI)
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
        plan, (grid, small) = halves[0].subplots(), halves[1].subplots(2, 1, height_ratios=(2.6, 1))
        draw_plan(plan, self.nodes)
        (self.arc,) = plan.plot([], [], "-", color=plots.VERMILION, linewidth=3)
        (self.ring,) = plan.plot([0], [0], "o", markersize=15, markerfacecolor="none", color=plots.VERMILION, mew=2.5)
        self.grid = _blank_page(grid)
        grid.set_title("feature maps")
        self.input = small.imshow(np.zeros((8, 8, 3)), interpolation="nearest")
        small.set(xticks=[], yticks=[], xlabel="the input, $x_t$")
        small.grid(False)
        return figure, [self.arc, self.ring, self.grid, self.input, *small.spines.values()]

    def _fixed(self, t: int) -> str:
        """The plan, and the maps of five stops."""
        middle = next((k for k, node in enumerate(self.nodes) if node.name == "mid_block"), len(self.nodes) // 2)
        last = len(self.nodes) - 1
        chosen = sorted({0, middle - 1, middle, self.nodes[0].partner or last - 1, last})
        with rc_context(plots.STYLE):
            figure = plots.blank_figure(plots.WIDTH, 4.6)
            halves: Any = figure.subfigures(2, 1, height_ratios=(1.5, 1))
            top, bottom = halves
            plan = top.subplots()
            draw_plan(plan, self.nodes)
            for ax, k in zip(bottom.subplots(1, len(chosen)), chosen, strict=True):
                maps = self.maps(t)[self.nodes[k].module]
                _blank_page(ax, 2, 2).set_data(feature_page(maps, 2, 2))
                size = "×".join(map(str, maps.shape))
                ax.set_title(f"{k + 1}. {_short(self.nodes[k].name)}\n{size}", fontsize=9.5)
            png = plots.to_png(figure)
        alt = (
            f"The {len(self.nodes)} stops of a forward pass as numbered dots on a U, joined by nested arcs, one for "
            f"each skip; below, four feature maps of {len(chosen)} of the stops, fine at both ends and coarse in "
            "the middle."
        )
        caption = (
            f"What the tracer shows, for {len(chosen)} stops at t = {t}: fine maps at both ends of the U, coarse ones "
            "at its bottom. Each arc carries a copy from the way down to the way up; the arcs are nested, since the "
            "last skip made is the first one used. Purple is positive, orange negative. In JupyterLab you choose "
            "block and t."
        )
        return plots.to_html(png, plots.WIDTH, alt, caption)


def full_colour(maps: Tensor) -> float:
    """The size of a number that `feature_page` draws in full colour; larger ones look the same."""
    return max(float(maps.abs().quantile(0.995)), 1e-6)


def feature_page(maps: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Up to rows · columns feature maps side by side, coloured by sign and size on a common scale.

    Args:
        maps: (C, H, W).

    Returns:
        (height, width, 3), values in [0, 1]; paper white between the maps.
    """
    channels, height, width = maps.shape
    pad = max(1, round(GAP * width))
    page = np.ones((rows * (height + pad) - pad, columns * (width + pad) - pad, 3))
    limit = full_colour(maps)
    for k, one in enumerate(maps[: rows * columns].float().numpy()):
        top, left = k // columns * (height + pad), k % columns * (width + pad)
        page[top : top + height, left : left + width] = SIGNED(0.5 + one / (2 * limit))[..., :3]
    return page


def arc(nodes: list[Node], block: int) -> tuple[np.ndarray, np.ndarray]:
    """The curve of the skip at stop `block`, from its maker to its taker."""
    partner = nodes[block].partner
    assert partner is not None
    start, end = sorted((block, partner))
    along = np.linspace(0, 1, 60)
    height = 0.16 + 0.036 * (end - start)
    return start + (end - start) * along, -nodes[start].level + 4 * height * along * (1 - along)


def draw_plan(ax: Axes, nodes: list[Node]) -> None:
    """The stops as dots on a U, one row per resolution, with the skips as arcs and each stop's number below it."""
    levels = max(node.level for node in nodes)
    xs, ys = list(range(len(nodes))), [-node.level for node in nodes]
    ax.plot(xs, ys, color=plots.FAINT, linestyle="-", linewidth=1.6, zorder=1)
    for k, node in enumerate(nodes):
        if node.makes:
            ax.plot(*arc(nodes, k), color=plots.SKY, linestyle="-", linewidth=1.8, zorder=1)
    kinds = {"down": plots.BLUE, "mid_": plots.PURPLE, "up_b": plots.GREEN, "conv": plots.INK}
    for k, (node, y) in enumerate(zip(nodes, ys, strict=True)):
        ax.plot([k], [y], "o", color=kinds[node.name[:4]], markersize=8, zorder=2)
        number = ax.text(k, y - 0.16, str(k + 1), ha="center", va="top", fontsize=8.5)
        number.set_bbox({"facecolor": plots.PAPER, "edgecolor": "none", "pad": 0.8})
    for level in range(levels + 1):
        label = "full size" if level == 0 else f"1/{2**level}"
        ax.text(-0.7, -level, label, ha="right", va="center", fontsize=9)
    arcs = [float(arc(nodes, k)[1].max()) for k, node in enumerate(nodes) if node.makes]
    ax.set(xlim=(-0.6, len(nodes) - 0.4), ylim=(-levels - 0.5, max(arcs, default=0) + 0.15), xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    for x, text, align in ((0.0, "down", "left"), (0.5, "middle", "center"), (1.0, "up", "right")):
        stops = [k + 1 for k, node in enumerate(nodes) if node.name.startswith(text[:3])]
        if not stops:
            continue
        which = "–".join(str(k) for k in sorted({stops[0], stops[-1]}))
        ax.text(x, -0.02, f"{text}: {which}", transform=ax.transAxes, ha=align, va="top", fontsize=10)


def _short(name: str) -> str:
    """A stop's name in a few letters: `up_blocks.0.resnets.1` becomes `up 0, layer 1`."""
    parts = name.split(".")
    if len(parts) == 1:
        return name
    layer = {"downsamplers": "halving", "upsamplers": "doubling"}.get(parts[2], f"layer {parts[3]}")
    return f"{parts[0].removesuffix('_blocks')} {parts[1]}, {layer}"


def _blank_page(ax: Axes, rows: int = ROWS, columns: int = COLUMNS) -> Any:
    """An empty page of feature maps on `ax`, of fixed size whatever the resolution of the maps."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax.imshow(np.ones((rows, columns, 3)), interpolation="nearest", extent=(0, columns, rows, 0))


unet_tracer = one_call(UNetTracer)
