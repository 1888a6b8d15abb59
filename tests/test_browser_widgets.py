"""Each widget in a real browser: keys and the mouse move it, and what is shown is what Python draws for that value."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
from lab import Lab, illegible, photograph, run_all, set_theme, warnings_on
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.long]

SETUP = """\
import torch

from ddpm_from_scratch import DDPMPipeline, schedules
from ddpm_from_scratch.course import widgets
from ddpm_from_scratch.data import load_dataset

images = load_dataset("fashion-10k", split="test").images()[:64]
alpha_bar = schedules.alpha_bars(schedules.linear())
digits = DDPMPipeline.from_pretrained("digits")
image, noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
"""


@dataclass(frozen=True)
class Keys:
    """Keys pressed on the control of this label, and the value that it has then."""

    label: str
    keys: Sequence[str]
    value: Any


@dataclass(frozen=True)
class Row:
    """A widget by its call, what to press, and the label of a slider to drag."""

    call: str
    moves: Sequence[Keys]
    drag: str


ROWS = [
    Row(
        "widgets.noise_slider(images, alpha_bar)",
        [
            Keys("timestep t", ["ArrowRight"] * 3, 253),
            Keys("timestep t", ["ArrowLeft"], 252),
            Keys("or type t", ["Control+a", "7", "0", "1", "Enter"], 701),
        ],
        drag="timestep t",
    ),
    Row(
        "widgets.schedule_explorer(images[[28, 1]])",
        [
            Keys("schedule", ["ArrowRight", "ArrowRight"], "cosine"),
            Keys("zero terminal SNR", ["Space"], True),
            Keys("schedule", ["ArrowLeft", "ArrowLeft"], "linear"),
            Keys("last β", ["ArrowRight"] * 2, 0.05),
            Keys("last β", ["End"], 1.0),
            Keys("last β", ["ArrowLeft", "ArrowLeft"], 0.5),
            Keys("first β", ["End"], 1.0),
            Keys("first β", ["Home"], 1e-6),
            Keys("steps T", ["Home"], 1),
            Keys("steps T", ["ArrowRight"] * 9, 10),
        ],
        drag="steps T",
    ),
    Row(
        "widgets.posterior_explorer(alpha_bar)",
        [
            Keys("now x_t", ["ArrowRight"] * 4, 0.45),
            Keys("clean x_0", ["ArrowLeft"] * 10, 0.5),
            Keys("timestep t", ["ArrowLeft"], 499),
            Keys("steps back", ["End"], 1000),
            Keys("steps back", ["Home"], 1),
        ],
        drag="timestep t",
    ),
    Row(
        "widgets.unet_tracer(digits.unet, image, noise, alpha_bar)",
        [
            Keys("block", ["ArrowRight"] * 2, 3),
            Keys("timestep t", ["ArrowLeft"], 299),
            Keys("block", ["Home"], 0),
        ],
        drag="timestep t",
    ),
    Row(
        "widgets.sampler_explorer(digits.unet, digits.scheduler)",
        [Keys("step", ["ArrowLeft"] * 3, 7), Keys("step", ["Home"], 0)],
        drag="step",
    ),
    Row(
        "widgets.interpolation_explorer(torch.tanh, (1, 16, 16))",
        [Keys("A to B", ["ArrowRight"] * 2, 2), Keys("top to bottom", ["End"], 4), Keys("A to B", ["End"], 8)],
        drag="A to B",
    ),
]


class Shown:
    """The only widget of the page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.area = page.locator(".jp-OutputArea-output .widget-vbox").first
        self.area.wait_for()

    def control(self, label: str) -> Any:
        """The part of the control with this label that takes the keyboard."""
        named = self.page.get_by_text(label, exact=True)
        box = self.area.locator(".widget-inline-hbox, .widget-checkbox").filter(has=named)
        return box.locator(".noUi-handle, select, input").first

    def readout(self, label: str) -> str:
        named = self.page.get_by_text(label, exact=True)
        return str(self.area.locator(".widget-inline-hbox").filter(has=named).locator(".widget-readout").inner_text())

    def picture(self) -> np.ndarray:
        """The pixels of the PNG file that is on the page."""
        fetch = "async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"
        return pixels(bytes(self.area.locator("img").evaluate(fetch)))

    def text(self) -> str:
        return str(self.area.locator(".widget-html-content").last.inner_text()).strip()

    def wait_for(self, widget: Any) -> None:
        """Until picture and text are those of `widget`, which Python has moved to the same value."""
        wanted = pixels(widget.picture.value)
        for _ in range(50):
            same = np.array_equal(self.picture(), wanted)
            if same and self.text() == plain(widget.text.value):
                return
            self.page.wait_for_timeout(200)
        assert self.text() == plain(widget.text.value)
        assert same, "the picture on the page is not the one that Python draws"


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def plain(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", text)).strip()


def controls(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from controls(child)


def labelled(widget: ipywidgets.Widget, label: str) -> Any:
    """The control of this label, in Python."""
    return next(control for control in controls(widget) if getattr(control, "description", "") == label)


def drag(page: Any, handle: Any, pixels_right: int) -> None:
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x + pixels_right * step / 8, y)
        page.wait_for_timeout(30)
    page.mouse.up()


@pytest.mark.parametrize("row", ROWS, ids=[re.findall(r"\w+", row.call)[1] for row in ROWS])
def test_widget_moves_and_shows_what_python_draws(
    lab: Lab, page: Any, screenshots: Path, row: Row, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    names: dict[str, Any] = {}
    exec(SETUP, names)
    twin = eval(row.call, names)
    run_all(page, lab.open(page, lab.write(f"{name}.ipynb", [SETUP, row.call]).name), seconds=90)
    shown = Shown(page)
    shown.wait_for(twin)
    for move in row.moves:
        before = shown.picture()
        control = shown.control(move.label)
        control.focus()
        for key in move.keys:
            control.press(key)
        labelled(twin, move.label).value = move.value
        shown.wait_for(twin)
        assert not np.array_equal(shown.picture(), before), f"{move} changed nothing"

    before = shown.picture()
    control = labelled(twin, row.drag)
    middle = (control.min + control.max) / 2
    drag(page, shown.control(row.drag), 60 if control.value < middle else -60)
    page.wait_for_timeout(500)
    control.value = type(control.value)(float(shown.readout(row.drag).replace("−", "-")))
    shown.wait_for(twin)
    assert not np.array_equal(shown.picture(), before), "dragging changed nothing"

    assert warnings_on(page) == []
    for theme in ("Light", "Dark"):
        set_theme(page, theme)
        photograph(page, screenshots / f"widget_{name}_{theme.lower()}.png")
        assert illegible(page) == []
