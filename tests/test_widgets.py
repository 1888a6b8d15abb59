"""The widgets: right numbers, right frames, one figure, usable by keyboard, a fixed picture where there are none."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import widgets

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def slider(images):
    return widgets.noise_slider(images, ALPHA_BAR, t=250)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("t", [0, 37, 500, 999])
def test_parts_are_the_two_terms_of_ho_eq_4(slider, images, t):
    signal, noise, x_t = slider.parts(t)
    torch.testing.assert_close(signal, float(ALPHA_BAR[t]) ** 0.5 * images)
    torch.testing.assert_close(noise, (1 - float(ALPHA_BAR[t])) ** 0.5 * slider.noise)
    torch.testing.assert_close(signal + noise, x_t)


def test_the_noise_is_kept_while_t_moves(slider, images):
    kept = []
    for t in (100, 900, 100):
        slider.slider.value = t
        kept.append(gaussian.eps_from_x0(slider.parts(t)[2], images, float(ALPHA_BAR[t])))
    torch.testing.assert_close(kept[0], slider.noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept[1], slider.noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept[0], kept[2], rtol=0, atol=0)


def test_a_frame_equals_the_figure_drawn_from_scratch(slider):
    frame = pixels(slider.frame(700))
    for artist in slider.live.moving:
        artist.set_animated(False)
    slider.live.canvas.draw()
    np.testing.assert_array_equal(frame, np.asarray(slider.live.canvas.buffer_rgba())[..., :3])


def test_a_frame_does_not_depend_on_the_one_before(slider, images):
    slider.frame(5)
    after_another = slider.frame(321)
    assert after_another == widgets.noise_slider(images, ALPHA_BAR, t=321).picture.value
    assert after_another != slider.frame(322)


def test_what_is_drawn_is_the_state_at_t(slider):
    slider.slider.value = 400
    x, y = slider.dot.get_data()
    assert list(x) == [400] and y[0] == pytest.approx(float(ALPHA_BAR[400] / (1 - ALPHA_BAR[400])))
    heights, edges, _ = slider.bars.get_data()
    x_t = slider.parts(400)[2]
    inside = float(((x_t >= edges[0]) & (x_t <= edges[-1])).float().mean())
    assert (heights * np.diff(edges)).sum() == pytest.approx(inside)


def test_slider_and_number_move_together_and_redraw(slider):
    before = slider.picture.value
    slider.box.value = 777
    assert slider.slider.value == 777
    assert slider.picture.value == slider.frame(777) != before
    assert f"t = 777: signal scale √ᾱ_t = {float(ALPHA_BAR[777]) ** 0.5:.3f}" in slider.text.value
    slider.slider.value = 3
    assert slider.box.value == 3


def test_t_stays_within_the_schedule(images):
    short = widgets.noise_slider(images, ALPHA_BAR[:50], t=10)
    assert (short.slider.min, short.slider.max) == (0, 49)
    short.box.value = 4000
    assert short.slider.value == 49


def test_controls_have_labels_and_the_picture_its_words(slider):
    assert slider.slider.description and slider.box.description
    assert "histogram" in slider.picture.tooltip
    assert slider.picture.get_state()["description"] == ""  # without it the browser fails on the tooltip


def test_moving_opens_no_figures(slider):
    figure = slider.live.figure
    axes = len(figure.axes), sum(len(ax.get_children()) for ax in figure.axes)
    for t in range(0, 1000, 100):
        slider.slider.value = t
    assert slider.live.figure is figure
    assert (len(figure.axes), sum(len(ax.get_children()) for ax in figure.axes)) == axes
    assert plt.get_fignums() == []


def test_without_widgets_a_fixed_picture_is_shown(slider):
    bundle = slider._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{40,}" src="data:image/png;base64,', bundle["text/html"])
    assert "<figcaption" in bundle["text/html"]


def test_colour_images_and_few_of_them(images):
    colour = widgets.noise_slider(images[:2].expand(-1, 3, -1, -1), ALPHA_BAR)
    assert colour.shown == 2 and pixels(colour.picture.value).ndim == 3
