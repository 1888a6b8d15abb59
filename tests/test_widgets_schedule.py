"""The schedule explorer: right tables and images for every choice, a sentence where there is no schedule."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch.course import widgets
from ddpm_from_scratch.course.widgets.schedule import NAMES, SHARES, checked_betas, levels_at


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def explorer(images):
    return widgets.schedule_explorer(images)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def drawn(explorer) -> list[np.ndarray]:
    """What the three lines show: β, ᾱ and log-SNR."""
    return [line.get_ydata() for line in explorer.lines]


def test_linear_against_its_closed_form(explorer):
    betas, alpha_bar, log_snr = drawn(explorer)
    by_hand = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    np.testing.assert_allclose(betas, by_hand, rtol=1e-12)
    left = math.exp(math.fsum(math.log1p(-b) for b in by_hand))
    assert alpha_bar[-1] == pytest.approx(left, rel=1e-9)
    assert log_snr[-1] == pytest.approx(math.log(left / (1 - left)), rel=1e-9)
    np.testing.assert_allclose(explorer.lines[0].get_xdata(), np.arange(1, 1001) / 1000, rtol=1e-6)
    assert f"Σβ = {1000 * (1e-4 + 0.02) / 2:.4g}" in explorer.text.value


def test_cosine_against_its_closed_form(explorer):
    explorer.schedule.value = "cosine"
    explorer.steps.value = 400
    f = [math.cos((t / 400 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(401)]
    np.testing.assert_allclose(drawn(explorer)[1][:-1], np.array(f[1:-1]) / f[0], rtol=1e-10)
    assert drawn(explorer)[0][-1] == pytest.approx(0.999)
    assert explorer.beta_start.disabled and explorer.beta_end.disabled


def test_range_and_length_are_followed(explorer):
    explorer.steps.value, explorer.beta_end.value = 50, 0.2
    betas = drawn(explorer)[0]
    assert len(betas) == 50 and betas[-1] == pytest.approx(0.2)
    explorer.schedule.value = "scaled linear"
    roots = np.sqrt(drawn(explorer)[0])
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-9)
    explorer.schedule.value = "sigmoid"
    betas = drawn(explorer)[0]
    np.testing.assert_allclose(betas + betas[::-1], 1e-4 + 0.2, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_ends_at_zero_and_starts_as_before(images, name):
    plain = checked_betas(name, 1e-4, 0.02, 500, zero_snr=False)
    explorer = widgets.schedule_explorer(images, schedule=name, T=500, zero_snr=True)
    betas, alpha_bar, log_snr = drawn(explorer)
    assert alpha_bar[-1] == 0 and betas[-1] == 1 and log_snr[-1] == -math.inf
    assert betas[0] == pytest.approx(float(plain[0]), rel=1e-9)
    assert "-∞" in explorer.text.value


def test_images_are_noised_to_the_level_of_each_share(explorer, images):
    alpha_bar = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    assert levels_at(alpha_bar, (0.0, 0.2, 0.4, 0.5, 1.0)) == [1.0, 0.9, 0.6, 0.6, 0.0]
    strip = explorer.noised(alpha_bar, (0.0, 0.4, 1.0))
    assert strip.shape == (6, 1, 8, 8)
    torch.testing.assert_close(strip[0], images[0])
    torch.testing.assert_close(strip[1], 0.6**0.5 * images[0] + 0.4**0.5 * explorer.noise[0])
    torch.testing.assert_close(strip[5], explorer.noise[1])
    assert SHARES[0] == 0 and SHARES[-1] == 1


def test_the_strip_names_the_steps_that_it_shows(explorer):
    titles = [f"{share:.0%}".replace("%", " %") if share else "$x_0$" for share in SHARES]
    assert [title.get_text() for title in explorer.titles] == titles
    explorer.steps.value = 2
    expected = ["$x_0$"] * 3 + ["50 %"] * 3 + ["100 %"] * 3
    assert [title.get_text() for title in explorer.titles] == expected
    shown = explorer.noised(torch.tensor(drawn(explorer)[1]), SHARES)[: len(SHARES)]
    for image, title in zip(shown, expected, strict=True):
        assert torch.equal(image, shown[{"$x_0$": 0, "50 %": 4, "100 %": 8}[title]])


def test_what_is_left_is_not_rounded_to_all(explorer):
    explorer.steps.value = 2
    assert "ᾱ half way = 1 - 0.0001, ᾱ at the end = 0.98" in explorer.text.value
    explorer.beta_start.value = explorer.beta_end.value = 1e-6
    assert "ᾱ half way = 1 - 1e-06, ᾱ at the end = 1 - 2e-06" in explorer.text.value


BAD = {
    "T = 1": ({"T": 1}, "T = 1 is a single jump"),
    "T = 1 and zero SNR": ({"T": 1, "zero_snr": True}, "T = 1 is a single jump"),
    "β = 1": ({"beta_end": 1.0}, "must stay below 1"),
    "β from 1": ({"beta_start": 1.0, "beta_end": 1.0}, "must stay below 1"),
    "falling β": ({"beta_start": 0.02, "beta_end": 1e-4}, "β would fall, from 0.02 to 0.0001"),
    "nothing left in float64": ({"beta_end": 0.9, "T": 2000}, "ᾱ leaves (0, 1)"),
    "nothing left after the rescale": (
        {"beta_start": 0.1, "beta_end": 0.3, "T": 4000, "zero_snr": True},
        "ᾱ is 0 before the last step",
    ),
}


@pytest.mark.parametrize(("choice", "says"), BAD.values(), ids=list(BAD))
def test_no_schedule_gives_a_sentence_and_no_curve(images, choice, says):
    explorer = widgets.schedule_explorer(images, **choice)
    assert says in explorer.text.value and 'role="status"' in explorer.text.value
    assert explorer.picture.value == explorer.frame(None)
    explorer.steps.value, explorer.beta_start.value, explorer.beta_end.value = 1000, 1e-4, 0.02
    assert "nan" not in explorer.text.value
    assert explorer.picture.value != explorer.frame(None)
    assert "status" not in explorer.text.value


def test_the_cosine_does_not_mind_the_range(images):
    explorer = widgets.schedule_explorer(images, "cosine", beta_start=0.5, beta_end=1e-3)
    assert "half way" in explorer.text.value


def test_any_range_may_be_given_and_is_among_the_choices(images):
    explorer = widgets.schedule_explorer(images, beta_start=0.00085, beta_end=0.012)
    assert drawn(explorer)[0][[0, -1]].tolist() == pytest.approx([0.00085, 0.012])
    labels = [label for label, _ in explorer.beta_start.options]
    assert labels[0] == "0.000001" and "0.00085" in labels and labels[-1] == "1"
    assert len(explorer.beta_end.options) == len(labels) == 38


def test_no_choice_of_the_controls_breaks(explorer):
    for name in NAMES:
        for T in (1, 2, 4000):
            for low, high in ((1e-6, 1e-6), (1e-6, 1.0), (1e-3, 0.7), (1.0, 1e-6)):
                explorer.schedule.value, explorer.steps.value = name, T
                explorer.beta_start.value, explorer.beta_end.value = low, high
                explorer.zero_snr.value = not explorer.zero_snr.value
                assert explorer.text.value


def test_a_frame_equals_the_figure_drawn_from_scratch(explorer):
    explorer.schedule.value = "sigmoid"
    frame = pixels(explorer.picture.value)
    for artist in explorer.live.moving:
        artist.set_animated(False)
    explorer.live.canvas.draw()
    np.testing.assert_array_equal(frame, np.asarray(explorer.live.canvas.buffer_rgba())[..., :3])


def test_a_frame_does_not_depend_on_the_one_before(explorer, images):
    for name, T in (("cosine", 20), ("linear", 1), ("scaled linear", 700)):
        explorer.schedule.value, explorer.steps.value = name, T
    assert explorer.picture.value == widgets.schedule_explorer(images, "scaled linear", T=700).picture.value
    before = explorer.picture.value
    explorer.steps.value = 701
    assert explorer.picture.value != before


def test_labels_words_and_a_fixed_picture(explorer):
    controls = (explorer.schedule, explorer.steps, explorer.beta_start, explorer.beta_end, explorer.zero_snr)
    assert all(control.description for control in controls)
    assert "log-SNR" in explorer.picture.tooltip
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{40,}" src="data:image/png;base64,', bundle["text/html"])
    assert plt.get_fignums() == []
