"""The interpolation explorer: right images, right frames, nothing decoded while a slider moves."""

from __future__ import annotations

import io
import re
import threading
import time

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor

from ddpm_from_scratch.course import plots, widgets
from ddpm_from_scratch.course.exercises import l09

SHAPE = (1, 8, 8)


class Decoder:
    """Counts its calls, may wait for `gate`; a smooth function of the noise."""

    def __init__(self) -> None:
        self.calls, self.gate = 0, threading.Event()
        self.gate.set()

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert self.gate.wait(20)
        return torch.tanh(x)


@pytest.fixture
def decode() -> Decoder:
    return Decoder()


@pytest.fixture
def explorer(decode):
    return widgets.interpolation_explorer(decode, SHAPE, seeds=(5, 6, 7, 8), columns=6, rows=4)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_the_corners_are_the_images_of_the_seeds(explorer):
    corners = [explorer.images[row, column] for row in (0, -1) for column in (0, -1)]
    for image, seed in zip(corners, (5, 6, 7, 8), strict=True):
        torch.testing.assert_close(image, torch.tanh(noise(seed)), rtol=0, atol=1e-5)


def test_between_the_corners_the_noise_is_on_the_sphere(explorer):
    latents = torch.atanh(explorer.images)
    sizes = latents.flatten(2).norm(dim=-1)
    ends = torch.stack([noise(seed).norm() for seed in (5, 6, 7, 8)])
    assert float(sizes.min()) > 0.95 * float(ends.min()) and float(sizes.max()) < 1.05 * float(ends.max())


def test_sliders_choose_an_image_and_decode_nothing(explorer, decode):
    calls, before = decode.calls, explorer.picture.value
    explorer.across.value, explorer.down.value = 3, 2
    assert explorer.picture.value != before
    np.testing.assert_allclose(explorer.large.get_array(), plots.montage(explorer.images[2, 3, None], 1))
    assert "60% of the way from A to B" in explorer.text.value and "66.7% of the way down" in explorer.text.value
    assert decode.calls == calls


def test_the_marker_stands_around_the_image_shown(explorer):
    explorer.across.value, explorer.down.value = 5, 1
    xs, ys = explorer.marker.get_data()
    page = plots.montage(explorer.images.flatten(0, 1), explorer.columns)
    inside = page[round(min(ys) + 0.5) : round(max(ys) + 0.5), round(min(xs) + 0.5) : round(max(xs) + 0.5)]
    np.testing.assert_allclose(inside, plots.to_pixels(explorer.images[1, 5, None])[0])


def decoded(explorer: widgets.InterpolationExplorer, **seeds: int) -> widgets.InterpolationExplorer:
    """After new seeds, by corner, are decoded."""
    for corner, seed in seeds.items():
        explorer.boxes["ABCD".index(corner)].value = seed
    explorer.work.start_button.click()
    assert explorer.work.join(20)
    return explorer


def test_another_seed_makes_other_images(explorer):
    kept = explorer.images[-1, 0].clone()
    decoded(explorer, B=60)
    torch.testing.assert_close(explorer.images[0, -1], torch.tanh(noise(60)), rtol=0, atol=1e-5)
    torch.testing.assert_close(explorer.images[-1, 0], kept)
    assert explorer.picture.value == explorer.frame(0, 0)
    assert explorer.text.value.startswith("Seeds A 5, B 60, C 7, D 8: 0% of the way")
    assert explorer.work.bar.value == explorer.work.bar.max == 3  # 24 images, 9 at a time


def test_the_same_seed_twice_is_one_image(explorer):
    decoded(explorer, B=5)
    assert explorer.images.isfinite().all()
    torch.testing.assert_close(explorer.images[0, 2], torch.tanh(noise(5)), rtol=0, atol=1e-5)


def test_a_seed_alone_decodes_nothing_and_the_words_say_whose_images_are_shown(explorer, decode):
    calls, picture = decode.calls, explorer.picture.value
    explorer.boxes[2].value = 70
    assert decode.calls == calls and explorer.picture.value == picture
    assert "Seeds A 5, B 6, C 7, D 8" in explorer.text.value and "Press Decode" in explorer.text.value
    explorer.boxes[2].value = 7
    assert "Press Decode" not in explorer.text.value


def test_decoding_can_be_stopped_and_the_picture_stays_whole(explorer, decode):
    images, picture, calls = explorer.images, explorer.picture.value, decode.calls
    decode.gate.clear()
    explorer.boxes[1].value = 60
    explorer.work.start_button.click()
    assert explorer.work.thread.is_alive() and not explorer.work.stop_button.disabled
    explorer.work.stop_button.click()
    decode.gate.set()
    assert explorer.work.join(20) and decode.calls == calls + 1, "it ends after the part that it was at"
    assert explorer.images is images and explorer.picture.value == picture and explorer.seeds == [5, 6, 7, 8]
    assert "Stopped: the picture shows the images of the seeds from before" in explorer.text.value
    assert explorer.work.stop_button.disabled and explorer.work.bar.value < explorer.work.bar.max
    explorer.across.value = 5
    torch.testing.assert_close(explorer.images[0, 5], torch.tanh(noise(6)), rtol=0, atol=1e-5)
    assert "B 6" in explorer.text.value and "Press Decode" in explorer.text.value
    decoded(explorer)
    assert explorer.seeds == [5, 60, 7, 8] and explorer.work.bar.value == explorer.work.bar.max


def test_sliders_move_while_it_decodes(explorer, decode):
    decode.gate.clear()
    explorer.boxes[1].value = 60
    explorer.work.start_button.click()
    before = explorer.picture.value
    explorer.across.value = 3
    assert explorer.picture.value != before and "B 6" in explorer.text.value
    decode.gate.set()
    assert explorer.work.join(20)
    assert explorer.picture.value == explorer.frame(0, 3) and "B 60" in explorer.text.value


def test_a_failure_in_the_thread_is_told(explorer):
    explorer.decode = lambda x: x @ torch.ones(3)
    picture = explorer.picture.value
    explorer.work.start_button.click()
    assert explorer.work.join(20)
    assert "Decode failed: " in explorer.text.value and explorer.picture.value == picture


def test_parts_give_the_images_of_one_call(explorer):
    whole = torch.tanh(l09.interpolation_grid(torch.stack([noise(seed) for seed in (5, 6, 7, 8)]), 4, 6))
    torch.testing.assert_close(explorer.images, whole, rtol=0, atol=1e-6)


def test_a_frame_equals_the_figure_drawn_from_scratch(explorer):
    frame = pixels(explorer.frame(2, 4))
    for artist in explorer.live.moving:
        artist.set_animated(False)
    explorer.live.canvas.draw()
    np.testing.assert_array_equal(frame, np.asarray(explorer.live.canvas.buffer_rgba())[..., :3])


def test_a_frame_does_not_depend_on_the_one_before(explorer):
    first = explorer.frame(1, 1)
    explorer.frame(3, 5)
    assert explorer.frame(1, 1) == first


def test_moving_opens_no_figures_and_is_quick(explorer):
    figure = explorer.live.figure
    children = sum(len(ax.get_children()) for ax in figure.axes)
    times = []
    for column in range(6):
        start = time.perf_counter()
        explorer.across.value = 5 - column
        times.append(time.perf_counter() - start)
    assert sum(len(ax.get_children()) for ax in figure.axes) == children
    assert plt.get_fignums() == []
    print(f"median {sorted(times)[3] * 1000:.0f} ms")


def test_controls_have_labels_and_the_picture_its_words(explorer):
    for control in (explorer.across, explorer.down, *explorer.boxes, explorer.work.start_button):
        assert control.description and control.tooltip
    assert "grid of images" in explorer.picture.tooltip


def test_without_widgets_a_fixed_picture_is_shown(explorer):
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{40,}" src="data:image/png;base64,', bundle["text/html"])
    assert "<figcaption" in bundle["text/html"]


def test_one_row_and_colour(decode):
    explorer = widgets.interpolation_explorer(decode, (3, 8, 8), columns=4, rows=1)
    assert explorer.images.shape == (1, 4, 3, 8, 8)
    assert pixels(explorer.picture.value).ndim == 3
