"""The shared plotting style: what is drawn is what was given, every picture has its words, nothing leaks."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colors, rc_context
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import plots

# Viénot, Brettel, Mollon 1999, on linear RGB: what a reader without red (or green) cones sees.
PROTANOPIA = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
DEUTERANOPIA = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])


class Images(HTMLParser):
    """The attributes of every <img>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What `plots` displays, instead of displaying it."""
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr(plots, "display", lambda bundle, raw: bundles.append(bundle))
    monkeypatch.setattr(plots, "get_ipython", object)
    return bundles


def linear_rgb(colour: str) -> np.ndarray:
    rgb = np.array(colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear_rgb(colour))


# ---------------------------------------------------------------- images


def test_pixels_are_the_images_on_a_scale_from_black_to_white():
    images = torch.tensor([-1.0, 0.0, 1.0, -7.0, 7.0, 0.5]).reshape(1, 1, 2, 3)
    grey = plots.to_pixels(images)
    assert grey.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(grey[0, :, :, 0].ravel(), [0, 0.5, 1, 0, 1, 0.75])
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()


def test_colour_channels_keep_their_order():
    images = torch.stack([torch.full((2, 2), value) for value in (-1.0, 0.0, 1.0)])[None]
    np.testing.assert_allclose(plots.to_pixels(images)[0, 0, 0], [0, 0.5, 1])


@pytest.mark.parametrize("shape", [(4,), (2, 2, 4, 4), (1, 1, 1, 4, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected images of shape \(N, 1, H, W\)"):
        plots.to_pixels(torch.zeros(shape))


def test_montage_puts_every_image_in_its_place():
    values = torch.linspace(-1, 1, 5)
    page = plots.montage(values.reshape(5, 1, 1, 1).expand(-1, -1, 10, 20), columns=3)
    pad = 2  # 8 % of 20, rounded
    assert page.shape == (2 * 10 + pad, 3 * 20 + 2 * pad, 3)
    for i, value in enumerate(values):
        top, left = i // 3 * (10 + pad), i % 3 * (20 + pad)
        np.testing.assert_allclose(page[top : top + 10, left : left + 20], (float(value) + 1) / 2, atol=1e-6)
    assert (page[10:12] == 1).all() and (page[:, 20:22] == 1).all() and (page[12:, 44:] == 1).all()


def test_the_strip_shows_ho_eq_4_with_one_noise(monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "image_grid", lambda images, columns, **rest: drawn.update(images=images, n=columns))
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 1, 4, 4, generator=generator) for _ in range(2))
    alpha_bar = schedules.alpha_bars(schedules.linear())
    plots.noising_strip(x0, noise, alpha_bar, [0, 500, 999], alt="a", caption="c")
    assert drawn["n"] == 4 and drawn["images"].shape == (8, 1, 4, 4)
    for row in range(2):
        expected = [x0[row], *(gaussian.q_sample(x0[row], noise[row], float(alpha_bar[t])) for t in (0, 500, 999))]
        torch.testing.assert_close(drawn["images"][4 * row : 4 * row + 4], torch.stack(expected))


# ---------------------------------------------------------------- words


def test_a_picture_carries_its_alt_text_and_caption(shown):
    with plots.figure(alt='a "quoted" <alt>', caption="see <this> & that") as ax:
        ax.plot([0, 1], [0, 1])
    (image,) = Images(shown[0]["text/html"]).found
    assert image["alt"] == 'a "quoted" <alt>'
    assert "see &lt;this&gt; &amp; that" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == '[picture: a "quoted" <alt>]'
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8 * 144, 3 * 144)


def test_what_stands_between_backticks_is_code():
    assert "<em>Here <code>a &lt; b</code> is &amp; code</em>" in plots.to_html(b"", 8, "a", "Here `a < b` is & code")


@pytest.mark.parametrize(("alt", "caption"), [("", "c"), ("a", " ")])
def test_a_picture_without_words_is_refused(alt, caption):
    with pytest.raises(ValueError, match="needs `alt`"):
        plots.to_html(b"", 8, alt, caption)


# ---------------------------------------------------------------- style


def test_nothing_global_is_changed_and_no_figure_is_left_open(shown):
    before = dict(matplotlib.rcParams)
    images = torch.zeros(3, 1, 4, 4)
    plots.image_grid(images, alt="a", caption="c", titles=["1", "2", "3"], row_labels=["row"], outline=["r", "g", "b"])
    plots.curves(torch.arange(3), {"one": torch.arange(3), "two": torch.ones(3)}, "x", "y", alt="a", caption="c")
    plots.scatter({"a": torch.randn(9, 2), "b": torch.randn(9, 2)}, torch.arange(9) % 2, alt="a", caption="c")
    assert len(shown) == 3
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_the_same_picture_is_the_same_file():
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    files = [plots.to_png(plots.grid_figure(images, titles=["a"] * 4)) for _ in range(2)]
    assert files[0] == files[1]


def test_every_line_has_a_colour_and_a_dash_of_its_own():
    with rc_context(plots.STYLE):
        ax = plots.new_figure().axes[0]
        plots.draw_curves(ax, torch.arange(2), {str(i): torch.arange(2) for i in range(6)}, "x", "y")
    assert len({line.get_color() for line in ax.lines}) == 6
    assert len({str(line._dash_pattern) for line in ax.lines}) == 6
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list("012345")


@pytest.mark.parametrize("sees", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["all", "no red", "no green"])
def test_colours_differ_for_readers_with_colour_blindness(sees):
    seen = [lab(sees @ linear_rgb(colour)) for colour in plots.COLOURS]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 10  # a difference of about 2.3 is just noticeable


def test_text_stands_out_from_the_paper():
    contrast = (luminance(plots.PAPER) + 0.05) / (luminance(plots.INK) + 0.05)
    assert contrast > 7  # WCAG 2.2, level AAA


@pytest.mark.parametrize("label", ["row 1", "end of\n1000 steps", "most similar\nin training"])
def test_row_labels_and_titles_stay_inside_the_picture(label):
    figure = plots.grid_figure(torch.zeros(8, 1, 8, 8), 4, titles=["t = 999"] * 4, row_labels=[label] * 2)
    figure.canvas.draw()
    page = figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()


def test_in_plain_python_a_picture_is_its_words(capsys):
    with plots.figure(alt="a line", caption="it rises") as ax:
        ax.plot([0, 1], [0, 1])
    assert capsys.readouterr().out == "[picture: a line]\n"
