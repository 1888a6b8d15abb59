"""What the widgets share: one figure whose moving parts are redrawn, and controls above it."""

from __future__ import annotations

import functools
import html
import inspect
import io
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import ipywidgets
import numpy as np
import traitlets
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ddpm_from_scratch.course.plots import VERMILION

LIVE_DPI = 100
NOTICE = "border-left: 4px solid {colour}; padding: 0.2em 0.8em"


def notice(sentence: str) -> str:
    """HTML for the line below a picture that says why nothing is drawn."""
    return f'<div role="status" style="{NOTICE.format(colour=VERMILION)}">{html.escape(sentence, quote=False)}</div>'


class Stopped(Exception):
    """Raised within heavy work whose Stop button was pressed."""


class Work(ipywidgets.VBox):
    """Heavy work in a thread of its own: a button that starts it, one that stops it, and its progress.

    Args:
        name: what the first button says.
        begin: what it does; it calls `start`.
        say: shows the reader a line of HTML, where the work did not end well.
        kept: what stays in view then, such as "the samples from before".
    """

    def __init__(self, name: str, begin: Callable[[], None], say: Callable[[str], None], kept: str) -> None:
        self.say, self.kept = say, kept
        self.thread, self.stopped = threading.Thread(), threading.Event()
        self.start_button = ipywidgets.Button(description=name, icon="refresh", tooltip=f"{name}: begin, or begin anew")
        self.stop_button = ipywidgets.Button(
            description="Stop", icon="stop", disabled=True, tooltip="end the work, and keep the picture as it is"
        )
        self.bar = ipywidgets.IntProgress(0, 0, 1, description="progress", layout={"width": "16em"})
        self.start_button.on_click(lambda button: begin())
        self.stop_button.on_click(lambda button: self.stopped.set())
        super().__init__([ipywidgets.HBox([self.start_button, self.stop_button]), self.bar])

    def start(self, steps: int, job: Callable[[Callable[[], None]], None]) -> None:
        """Run `job(step_done)`, which calls `step_done` after each of its steps; what still runs is stopped first."""
        self.stopped.set()
        self.join()
        self.stopped.clear()
        self.bar.value, self.bar.max = 0, steps
        self.stop_button.disabled = False
        self.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.thread.start()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the work to end; whether it has."""
        if self.thread.is_alive():
            self.thread.join(seconds)
        return not self.thread.is_alive()

    def _run(self, job: Callable[[Callable[[], None]], None]) -> None:
        try:
            job(self._step_done)
        except Stopped:
            self.say(notice(f"Stopped: the picture shows {self.kept}."))
        except Exception as error:  # nobody else would see it: this is the end of a thread
            what = str(error) or type(error).__name__
            self.say(notice(f"{self.start_button.description} failed: {what}. The picture shows {self.kept}."))
        finally:
            self.stop_button.disabled = True

    def _step_done(self) -> None:
        self.bar.value += 1
        if self.stopped.is_set():
            raise Stopped


class LiveFigure:
    """A figure whose moving artists are redrawn over a stored picture of the rest.

    Where several threads draw, each holds `lock` from the first change of an artist until its picture is shown.

    Args:
        figure: fully laid out but for what the moving artists show.
        moving: the artists that change from frame to frame.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        self.figure, self.moving, self.lock = figure, moving, threading.RLock()
        self.canvas = cast(FigureCanvasAgg, figure.canvas)
        self.canvas.draw()  # settles the layout with every artist in its place
        figure.set_layout_engine("none")
        for artist in moving:
            artist.set_animated(True)
        self.draw_still()

    def draw_still(self) -> None:
        """Draw what stands still, once it has changed, within the layout as it is."""
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def png(self) -> bytes:
        """The current frame as a PNG file."""
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
        return buffer.getvalue()


class Picture(ipywidgets.Image):
    """A PNG picture whose `tooltip` says what it shows.

    The browser's half of ipywidgets gives a tooltip to a widget only if its `description` is empty, and fails on
    pictures, which have none.
    """

    description = traitlets.Unicode("").tag(sync=True)

    def __init__(self, words: str) -> None:
        super().__init__(format="png", tooltip=words, layout={"max_width": "100%"})


def option_buttons(
    options: Sequence[tuple[str, str]], value: str, description: str, button_width: str
) -> ipywidgets.ToggleButtons:
    """A choice among a few names: a button for each, all in view, reached by Tab and pressed by Space or Enter.

    JupyterLab takes the arrow keys from a drop-down list: they go to another cell.

    Args:
        options: the name on each button, and the value that it stands for, which the tooltip says.
    """
    control = ipywidgets.ToggleButtons(
        options=options,
        value=value,
        description=description,
        tooltips=[f"{description}: {meaning}" for _, meaning in options],
        style={"button_width": button_width},
    )
    control.add_class("widget-inline-hbox")  # puts the description beside the buttons, as for every other control
    return control


CHOSEN = "<style>.widget-toggle-button.mod-active { box-shadow: inset 0 -3px currentColor }</style>"
"""A line below the name that is chosen, which otherwise differs from the others by a shade alone."""


class Explorer(ipywidgets.VBox):
    """Controls above one live picture and a line of text; a fixed picture where there are no widgets.

    Args:
        controls: ipywidgets with a `description` each.
        alt: what the picture shows, in words.
        fixed: HTML of the fixed picture (`plots.to_html`).
    """

    def __init__(self, controls: Sequence[ipywidgets.Widget], alt: str, fixed: str) -> None:
        self.picture = Picture(alt)
        self.text = ipywidgets.HTML()
        self.fixed = fixed
        row = ipywidgets.HBox(list(controls), layout={"flex_flow": "row wrap"})
        style = ipywidgets.HTML(CHOSEN, layout={"display": "none"})
        super().__init__([row, self.picture, style, self.text])

    def say(self, sentence: str) -> None:
        """Show a line of HTML below the picture."""
        self.text.value = sentence

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/html": self.fixed}


Arguments = ParamSpec("Arguments")
Widget = TypeVar("Widget", bound=Explorer)


def one_call(widget: Callable[Arguments, Widget]) -> Callable[Arguments, Widget]:
    """The class of a widget as a function: `NoiseSlider` becomes `noise_slider`, with its arguments and its words.

    `help` of the function shows these alone, and not the hundred methods of a class of ipywidgets.
    """

    @functools.wraps(widget, updated=())
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Widget:
        return widget(*args, **kwargs)

    build.__name__ = build.__qualname__ = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", widget.__name__).lower()
    build.__signature__ = inspect.signature(widget).replace(return_annotation=widget.__name__)  # type: ignore[attr-defined]
    return build
