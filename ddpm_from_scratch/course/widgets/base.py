"""What the widgets share: one figure whose moving parts are redrawn, and controls above it."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any, cast

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


class LiveFigure:
    """A figure whose moving artists are redrawn over a stored picture of the rest.

    Args:
        figure: fully laid out but for what the moving artists show.
        moving: the artists that change from frame to frame.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        self.figure, self.moving = figure, moving
        self.canvas = cast(FigureCanvasAgg, figure.canvas)
        self.canvas.draw()  # settles the layout with every artist in its place
        figure.set_layout_engine("none")
        for artist in moving:
            artist.set_animated(True)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

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
        super().__init__([row, self.picture, self.text])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/html": self.fixed}
