"""What holds for every widget: labels, one figure, one picture for each movement, a fixed picture elsewhere."""

from __future__ import annotations

import ast
import base64
import inspect
import io
import pydoc
import re
from collections.abc import Iterator
from typing import Any

import ipywidgets
import nbformat
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch.course import widgets, workspace
from ddpm_from_scratch.course.widgets.bench import MOVEMENTS, Movement

ONE_CALL = [name for name in widgets.__all__ if name.islower()]
FIXED = re.compile(r'<figure[^>]*><img alt="[^"]{40,}" src="data:image/png;base64,([^"]+)".*<figcaption', re.DOTALL)


def parts(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


@pytest.fixture(params=MOVEMENTS.values(), ids=MOVEMENTS, scope="module")
def movement(request: pytest.FixtureRequest) -> Movement:
    return request.param


@pytest.fixture(scope="module")
def widget(movement: Movement) -> Any:
    return movement.build()


def test_every_widget_is_measured() -> None:
    assert sorted(MOVEMENTS) == sorted(ONE_CALL)


@pytest.mark.parametrize("name", ONE_CALL)
def test_help_shows_the_arguments_and_the_words_of_the_class_and_nothing_more(name: str) -> None:
    function = getattr(widgets, name)
    made = getattr(widgets, str(inspect.signature(function).return_annotation))
    assert issubclass(made, ipywidgets.VBox) and function.__name__ == name
    assert inspect.signature(function).parameters == inspect.signature(made).parameters
    page = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert "Args:" in page and made.__doc__.strip().splitlines()[0] in page
    assert all(argument in page for argument in inspect.signature(made).parameters) and len(page) < 2000


def test_every_control_is_labelled_and_every_picture_told_in_words(widget: Any) -> None:
    containers = ipywidgets.Box, ipywidgets.HTML
    for part in parts(widget):
        if isinstance(part, ipywidgets.Image):
            assert len(part.tooltip) > 40
        elif not isinstance(part, containers):
            assert part.description, f"{type(part).__name__} has no label"


def test_only_controls_whose_keys_work_and_whose_buttons_are_named(widget: Any) -> None:
    """JupyterLab takes the arrow keys from drop-down lists; the buttons of `Play` have neither words nor tooltips."""
    for part in parts(widget):
        assert not isinstance(part, ipywidgets.Dropdown | ipywidgets.Play)


def test_a_slider_is_over_what_has_an_order(widget: Any) -> None:
    """Names without one are buttons, all in view; each stop of a slider begins with its number."""
    for part in parts(widget):
        if isinstance(part, ipywidgets.SelectionSlider):
            assert all(re.match(r"\d", label) for label, _ in part.options), part.description
        if isinstance(part, ipywidgets.ToggleButtons):
            assert len(part.tooltips) == len(part.options) <= 4
            assert all(words.startswith(f"{part.description}: ") for words in part.tooltips)


def test_a_choice_redraws_once(widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    redrawn: list[Any] = []
    redraw = widget.redraw
    monkeypatch.setattr(widget, "redraw", lambda: redrawn.append(redraw()))
    for part in parts(widget):
        if isinstance(part, ipywidgets.ToggleButtons):
            first = part.value
            for _, value in [*part.options, (None, first)]:
                changed, before = value != part.value, len(redrawn)
                part.value = value
                assert len(redrawn) - before == changed


def test_a_movement_sends_one_picture_and_opens_no_figure(
    widget: Any, movement: Movement, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure, control = widget.live.figure, getattr(widget, movement.control)
    control.value = movement.values[0]
    sent: list[tuple[ipywidgets.Widget, str]] = []
    monkeypatch.setattr(ipywidgets.Widget, "send_state", lambda self, key=None: sent.append((self, key)))
    for value in (movement.values[1], movement.values[-1], movement.values[0]):
        moved = control.value != value
        control.value = value
        assert [key for part, key in sent if part is widget.picture] == ["value"] * moved
        assert len([key for part, key in sent if part is widget.text]) <= 1
        assert not any(part is widget for part, key in sent), "its parts were replaced"
        sent.clear()
    assert widget.live.figure is figure and plt.get_fignums() == []


def test_without_widgets_there_is_the_fixed_picture(widget: Any) -> None:
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert_fixed(bundle["text/html"])


def assert_fixed(page: str) -> None:
    """A figure with alt text, a caption and a picture in which there is something."""
    found = FIXED.search(page)
    assert found, page[:200]
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("L"))
    assert picture.shape[1] > 400 and picture.std() > 20


def explorers(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """The cells that end in one of the widgets."""
    for cell in notebook.cells:
        last = ast.parse(cell.source).body[-1:] if cell.cell_type == "code" else []
        call = last[0].value if last and isinstance(last[0], ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ONE_CALL:
            yield cell


def test_each_widget_is_in_a_lesson_and_its_fixed_picture_in_the_solved_notebook() -> None:
    seen = []
    for path in sorted((workspace.ROOT / "solutions").glob("*.ipynb")):
        for cell in explorers(nbformat.read(path, as_version=4)):
            (output,) = cell.outputs
            assert output.data.keys() == {"text/html", "text/plain"}
            assert_fixed(output.data["text/html"])
            seen.append(cell.source)
    for name in ONE_CALL:
        assert sum(f"widgets.{name}(" in source for source in seen) == 1, name
