"""Each widget in a real browser: keys and the mouse move it, and what is shown is what Python draws for that value."""

from __future__ import annotations

import html
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
from lab import Lab, illegible, photograph, run_all, run_cell, set_theme, warnings_on
from PIL import Image

from ddpm_from_scratch.course.widgets.sampler import LARGE

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
    """Keys pressed from the control of this label on, its first button where it has several, and its value then."""

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
            Keys("schedule", ["Tab", "Tab", "Space"], "cosine"),
            Keys("zero terminal SNR", ["Space"], True),
            Keys("schedule", ["Enter"], "linear"),
            Keys("schedule", ["Tab", "Enter", "Tab", "Tab", "Enter"], "sigmoid"),
            Keys("schedule", ["Space"], "linear"),
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
        return box.locator(".noUi-handle, input, button").first

    def readout(self, label: str) -> str:
        named = self.page.get_by_text(label, exact=True)
        return str(self.area.locator(".widget-inline-hbox").filter(has=named).locator(".widget-readout").inner_text())

    def picture(self) -> np.ndarray:
        """The pixels of the PNG file that is on the page."""
        fetch = "async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"
        return pixels(bytes(self.area.locator("img").evaluate(fetch)))

    def text(self) -> str:
        return str(self.area.locator(".widget-html-content").last.inner_text()).strip()

    def button(self, name: str) -> Any:
        return self.area.locator("button").filter(has_text=re.compile(f"^{name}$"))

    def wait_until(self, said: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Until `said()` holds."""
        end = time.monotonic() + seconds
        while not said():
            assert time.monotonic() < end, f"in {seconds:.0f} s not seen: {what}; the text is {self.text()!r}"
            self.page.wait_for_timeout(100)

    def wait_for(self, widget: Any, seconds: float = 10) -> None:
        """Until picture and text are those of `widget`, which Python has moved to the same value."""
        wanted = pixels(widget.picture.value)
        words = plain(widget.text.value)
        self.wait_until(lambda: self.text() == words, f"the text {words!r}", seconds)
        self.wait_until(lambda: np.array_equal(self.picture(), wanted), "the picture that Python draws", seconds)


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
        shown.control(move.label).focus()
        for key in move.keys:
            page.keyboard.press(key)
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

    look(page, screenshots, f"widget_{name}")


def test_a_notebook_opened_again_shows_the_last_picture(lab: Lab, page: Any, screenshots: Path) -> None:
    """Its kernel is gone, and nothing is run."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    twin = eval(ROWS[0].call, names)
    cells = [SETUP, ROWS[0].call]
    notebook = lab.open(page, lab.write("again.ipynb", cells).name)
    run_all(page, notebook, seconds=90)
    shown = Shown(page)
    shown.control("timestep t").press("ArrowRight")
    twin.slider.value = 251
    shown.wait_for(twin)
    page.keyboard.press("Control+s")
    shown.wait_until(lambda: "t = 251" in notebook.read_text(encoding="utf-8"), "the widget in the saved notebook")
    lab.stop_kernels()
    lab.open(page, notebook.name)
    Shown(page).wait_for(twin, 60)
    look(page, screenshots, "widget_opened_again")


CUT_OFF = """
() => [...document.querySelectorAll('.jp-OutputArea-output .widget-vbox')].flatMap(area => {
  const edge = area.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1;
  const words = e => `${e.className} “${e.innerText.slice(0, 30)}”`;
  return [...area.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > edge
    || (e.matches('button, .widget-label') && e.scrollWidth > e.clientWidth)).map(words);
})
"""
"""What of a widget ends beyond its cell, and the labels and buttons that are too narrow for their words."""


def look(page: Any, screenshots: Path, name: str) -> None:
    """No warning, nothing cut off, and a picture in both themes, in each of which all can be read."""
    assert warnings_on(page) == [] and page.evaluate(CUT_OFF) == []
    for theme in ("Light", "Dark"):
        set_theme(page, theme)
        photograph(page, screenshots / f"{name}_{theme.lower()}.png")
        assert illegible(page) == []


# ---------------------------------------------------------------- heavy work: started, watched, stopped, by keyboard

LEFT_OVER = """\
import threading

from matplotlib import pyplot as plt

print([thread.name for thread in threading.enumerate() if "_run)" in thread.name or "_work)" in thread.name])
print(plt.get_fignums())
"""
"""What is left of a widget's threads and figures."""

TRAINING = """\
from ddpm_from_scratch import DDPMScheduler
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.training import TrainingConfig

data = load_dataset("digits", image_size=16)
config = TrainingConfig(
    steps=150, batch_size=8, learning_rate=3e-3, warmup_steps=10, ema_decay=0.9, mixed_precision="no"
)
recorder = widgets.Recorder(data.images()[:40], every=25, count=40, shown=4, sampling_steps=4)
torch.manual_seed(0)
network = small_unet(data.shape, (16, 32))
"""
MONITOR = "widgets.training_monitor(network, DDPMScheduler(), data, config, recorder)"

SLOWLY = """\
import time


def slowly(x):
    time.sleep(1)
    return torch.tanh(x)
"""


def press(page: Any, button: Any, presses_of_tab: int) -> None:
    """Go to a button by the Tab key alone, and press Enter."""
    for _ in range(presses_of_tab):
        page.keyboard.press("Tab")
    assert button.evaluate("button => button === document.activeElement"), "Tab does not lead to the button"
    page.keyboard.press("Enter")


def steps_done(text: str) -> int:
    found = re.search(r"step (\d+) of", text)
    return int(found[1]) if found else -1


def test_the_monitor_trains_stops_and_goes_on(lab: Lab, page: Any, screenshots: Path) -> None:
    """What it shows in the end is, to the pixel, what Python draws of a run that nobody stopped."""
    names: dict[str, Any] = {}
    exec(SETUP + TRAINING, names)
    twin = eval(MONITOR, names)
    cells = [SETUP + TRAINING, MONITOR, LEFT_OVER]
    run_all(page, lab.open(page, lab.write("training_monitor.ipynb", cells).name), seconds=90)
    shown = Shown(page)
    shown.wait_for(twin)
    untrained = shown.picture()
    previews = (slice(None), slice(untrained.shape[1] * 55 // 100, None))

    shown.button("Start").focus()
    page.keyboard.press("Enter")
    shown.wait_until(lambda: shown.text().startswith("training: step "), "training")
    shown.wait_until(lambda: not np.array_equal(shown.picture()[previews], untrained[previews]), "samples")
    first = shown.picture()
    shown.wait_until(lambda: not np.array_equal(shown.picture(), first), "a longer curve")
    press(page, shown.button("Stop"), 1)
    shown.wait_until(lambda: shown.text().startswith("stopped: step "), "a stop")
    stopped, picture = steps_done(shown.text()), shown.picture()
    assert 25 <= stopped < 150
    page.wait_for_timeout(1500)
    assert steps_done(shown.text()) == stopped and np.array_equal(shown.picture(), picture), "it trains on"
    assert run_cell(page, 2).splitlines() == ["[]", "[]"]

    shown.button("Go on").focus()
    page.keyboard.press("Enter")
    shown.wait_until(lambda: steps_done(shown.text()) > stopped, "more steps")
    twin.start()
    assert twin.join(300)
    shown.wait_for(twin, 300)
    assert shown.text().startswith("finished: step 150 of 150")
    shown.control("samples at step").focus()
    page.keyboard.press("ArrowLeft")
    twin.shown.value = 125
    shown.wait_for(twin)
    assert run_cell(page, 2).splitlines() == ["[]", "[]"]
    look(page, screenshots, "widget_training_monitor")


def test_decoding_new_seeds_is_stopped_by_keyboard(lab: Lab, page: Any, screenshots: Path) -> None:
    names: dict[str, Any] = {}
    exec(SETUP, names)
    twin = eval("widgets.interpolation_explorer(torch.tanh, (1, 16, 16))", names)
    cells = [SETUP + SLOWLY, "widgets.interpolation_explorer(slowly, (1, 16, 16))", LEFT_OVER]
    run_all(page, lab.open(page, lab.write("decoding.ipynb", cells).name), seconds=120)
    shown = Shown(page)
    shown.wait_for(twin)
    picture = shown.picture()
    shown.control("B").focus()
    for key in ("Control+a", "6", "0", "Enter"):
        page.keyboard.press(key)
    twin.boxes[1].value = 60
    shown.wait_for(twin)

    press(page, shown.button("Decode"), 3)
    shown.wait_until(shown.button("Stop").is_enabled, "a Stop button to press")
    press(page, shown.button("Stop"), 1)
    shown.wait_until(lambda: shown.text().startswith("Stopped: the picture shows the images of the seeds"), "a stop")
    assert np.array_equal(shown.picture(), picture)
    look(page, screenshots, "widget_interpolation_stopped")
    assert run_cell(page, 2).splitlines() == ["[]", "[]"]

    shown.button("Decode").focus()
    page.keyboard.press("Enter")
    twin.start()
    assert twin.work.join(20)
    shown.wait_for(twin, 60)
    assert not np.array_equal(shown.picture(), picture) and "B 60" in shown.text()


def test_sampling_is_started_stopped_and_played_by_keyboard(lab: Lab, page: Any, screenshots: Path) -> None:
    names: dict[str, Any] = {}
    exec(SETUP, names)
    twin = eval("widgets.sampler_explorer(digits.unet, digits.scheduler)", names)
    cells = [SETUP, "widgets.sampler_explorer(digits.unet, digits.scheduler)", LEFT_OVER]
    run_all(page, lab.open(page, lab.write("sampling.ipynb", cells).name), seconds=90)
    shown = Shown(page)
    shown.wait_for(twin)
    picture = shown.picture()
    for key in ("Control+a", "9", "9", "9", "Enter"):
        shown.control("A: steps").press(key)
    shown.button("Sample").focus()
    page.keyboard.press("Enter")
    shown.wait_until(shown.button("Stop").is_enabled, "a Stop button to press")
    press(page, shown.button("Stop"), 1)
    shown.wait_until(lambda: shown.text().startswith("Stopped: the picture shows the samples from before"), "a stop")
    assert np.array_equal(shown.picture(), picture)
    assert run_cell(page, 2).splitlines() == ["[]", "[]"]

    for key in ("Control+a", "4", "Enter"):
        shown.control("A: steps").press(key)
    twin.sides[0]["steps"].value = 4
    shown.control("A: spacing").focus()
    for key in ("Tab", "Space"):
        page.keyboard.press(key)
    twin.sides[0]["spacing"].value = "trailing"
    shown.button("DDPM β").last.click()
    twin.sides[1]["sampler"].value = LARGE
    shown.wait_for(twin)
    shown.button("Sample").focus()
    page.keyboard.press("Enter")
    twin.start()
    assert twin.work.join(60)
    shown.wait_for(twin, 60)

    shown.control("step").press("Home")
    twin.moment.value = 0
    shown.wait_for(twin)
    shown.button("Play").focus()
    page.keyboard.press("Enter")
    shown.wait_until(lambda: not np.array_equal(shown.picture(), pixels(twin.picture.value)), "a moving picture")
    twin.moment.value = twin.moment.max
    shown.wait_for(twin, 60)  # it has played to the end
    shown.button("Play").wait_for()
    page.keyboard.press("Enter")
    shown.wait_until(shown.button("Pause").is_visible, "a pause button")
    page.keyboard.press("Enter")
    shown.button("Play").wait_for()
    page.wait_for_timeout(500)
    twin.moment.value = int(shown.readout("step"))
    shown.wait_for(twin)
    page.wait_for_timeout(500)
    assert int(shown.readout("step")) == twin.moment.value, "it plays on"
    look(page, screenshots, "widget_sampler_played")
