"""The posterior explorer: its densities against closed forms and integrals, and what the picture shows."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch import schedules
from ddpm_from_scratch.course import widgets
from ddpm_from_scratch.course.widgets.posterior import Mixture

ALPHA_BAR = schedules.alpha_bars(schedules.linear())
LINE = np.linspace(-9, 9, 180_001)
STEP = LINE[1] - LINE[0]
MIXTURE = Mixture(np.array([0.6, 0.3, 0.1]), np.array([1.2, -0.8, 0.1]), np.array([0.04, 0.09, 0.5]))
LEVELS = [(ALPHA_BAR[t].item(), ALPHA_BAR[t - back].item()) for t, back in ((500, 1), (500, 350), (30, 5), (999, 900))]


@pytest.fixture
def explorer():
    return widgets.posterior_explorer(ALPHA_BAR)


def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def normalised(density):
    return density / (density.sum() * STEP)


@pytest.mark.parametrize(("now", "before"), LEVELS)
@pytest.mark.parametrize("x_t", [-2.0, 0.25, 1.4])
def test_reverse_density_is_bayes_rule(now, before, x_t):
    """q(x_prev | x_t) ∝ q(x_t | x_prev) q(x_prev), on a fine grid, without any formula of the posterior."""
    alpha = now / before
    exact = normalised(normal(x_t, alpha**0.5 * LINE, 1 - alpha) * MIXTURE.noised(before).density(LINE))
    reverse = MIXTURE.reverse(x_t, now, before)
    assert np.abs(reverse.density(LINE) - exact).max() < 1e-8 * exact.max()
    mean, std = reverse.moments()
    assert mean == pytest.approx((LINE * exact).sum() * STEP, abs=1e-8)
    assert std == pytest.approx(math.sqrt(((LINE - mean) ** 2 * exact).sum() * STEP), abs=1e-8)


@pytest.mark.parametrize(("now", "before"), LEVELS)
def test_noised_and_clean_densities_are_integrals(now, before):
    data = MIXTURE.density(LINE)
    by_integral = (data * normal(0.7, now**0.5 * LINE, 1 - now)).sum() * STEP
    assert MIXTURE.noised(now).density(np.array([0.7]))[0] == pytest.approx(by_integral, rel=1e-9)
    clean = normalised(data * normal(0.7, now**0.5 * LINE, 1 - now))
    assert np.abs(MIXTURE.given(0.7, now).density(LINE) - clean).max() < 1e-8 * clean.max()


@pytest.mark.parametrize(("t", "back"), [(500, 1), (500, 350), (7, 3)])
def test_posterior_with_x0_known_is_bayes_rule(explorer, t, back):
    now, before = (float(ALPHA_BAR[i]) for i in (t, t - back))
    mean, std, _ = explorer.before(-0.9, 0.4, t, back)
    alpha = now / before
    exact = normalised(normal(0.4, alpha**0.5 * LINE, 1 - alpha) * normal(LINE, before**0.5 * -0.9, 1 - before))
    assert mean == pytest.approx((LINE * exact).sum() * STEP, abs=1e-7)
    assert std == pytest.approx(math.sqrt(((LINE - mean) ** 2 * exact).sum() * STEP), abs=1e-7)


def test_at_the_clean_end_the_posterior_is_x0_itself(explorer):
    mean, std, reverse = explorer.before(0.35, -1.0, 200, 201)
    assert mean == pytest.approx(0.35) and std == 0
    clean = explorer.data.given(-1.0, float(ALPHA_BAR[200]))
    np.testing.assert_allclose(reverse.means, clean.means)
    np.testing.assert_allclose(reverse.variances, clean.variances)
    explorer.t.value, explorer.back.value, explorer.x0.value = 200, 201, 0.35
    assert list(explorer.posterior.get_ydata()) == pytest.approx([0.35, 0.35])
    assert "x_0, with x_0 known: mean +0.350, standard deviation 0.000" in explorer.text.value


def test_far_from_every_component_nothing_overflows(explorer):
    explorer.t.value, explorer.back.value = 0, 1
    for x_t in (-3, 3):
        explorer.x_t.value = x_t
        assert "nan" not in explorer.text.value


def test_what_is_drawn_are_the_two_densities(explorer):
    explorer.t.value, explorer.back.value, explorer.x_t.value = 600, 300, -0.5
    mean, std, reverse = explorer.before(1.0, -0.5, 600, 300)
    for line, density in (
        (explorer.posterior, lambda x: normal(x, mean, std**2)),
        (explorer.reverse, reverse.density),
    ):
        height, x = line.get_data()
        np.testing.assert_allclose(height / height.max(), density(x) / density(x).max(), atol=1e-12)
    assert max(line.get_xdata().max() for line in (explorer.posterior, explorer.reverse)) == pytest.approx(1)
    assert list(explorer.bar.get_ydata()) == pytest.approx([mean - 2 * std, mean, mean + 2 * std])
    assert list(explorer.bar.get_xdata()) == [300] * 3
    assert [list(data) for data in explorer.ends.get_data()] == [[-1, 600], [1.0, -0.5]]


def test_more_steps_back_than_there_are_get_a_sentence(explorer):
    explorer.t.value = 99
    assert "from t = 99 it is at most 100 steps back" in explorer.text.value
    assert not explorer.posterior.get_visible() and not explorer.reverse.get_visible()
    explorer.back.value = 100
    assert "x_0, with" in explorer.text.value and explorer.reverse.get_visible()
    explorer.t.value = 0
    assert "at most 1 step back" in explorer.text.value


@pytest.mark.parametrize("T", [3, 1000])
def test_both_dots_are_within_the_axes_at_every_t(T):
    short = widgets.posterior_explorer(schedules.alpha_bars(schedules.linear(T)), t=0, back=1)
    axes = short.ends.axes
    short.t.value = T - 1
    low, high = axes.transData.inverted().transform([axes.bbox.p0, axes.bbox.p1])[:, 0]
    left, right = short.ends.get_xdata()
    assert low < left and right < high
    if T == 1000:
        radius = short.ends.get_markersize() / 2 * axes.figure.dpi / 72
        assert axes.transData.transform((right, 0))[0] + radius <= axes.bbox.x1


def test_a_share_is_not_rounded_to_all_or_nothing(explorer):
    explorer.t.value, explorer.back.value, explorer.x_t.value = 80, 40, 0.25
    low = explorer.before(1.0, 0.25, 80, 40)[2].weights[1]
    assert 0 < low < 0.005
    assert "(over 99% from +1, under 1% from -1)" in explorer.text.value
    explorer.t.value, explorer.back.value = 500, 350
    assert re.search(r"\(\d\d% from \+1, \d\d% from -1\)", explorer.text.value)
    assert "(100% from +3)" in widgets.posterior_explorer(ALPHA_BAR, (1.0,), (3.0,), (0.1,)).text.value


def test_a_frame_equals_the_figure_drawn_from_scratch(explorer):
    explorer.t.value = 777
    frame = np.array(Image.open(io.BytesIO(explorer.picture.value)).convert("RGB"))
    for artist in explorer.live.moving:
        artist.set_animated(False)
    explorer.live.canvas.draw()
    np.testing.assert_array_equal(frame, np.asarray(explorer.live.canvas.buffer_rgba())[..., :3])


def test_a_frame_does_not_depend_on_the_one_before(explorer):
    for t, back in ((3, 1), (3, 600), (640, 200)):
        explorer.t.value, explorer.back.value = t, back
    assert explorer.picture.value == widgets.posterior_explorer(ALPHA_BAR, t=640, back=200).picture.value
    before = explorer.picture.value
    explorer.x0.value = 0.5
    assert explorer.picture.value != before


@pytest.mark.parametrize("T", [1, 2, 10])
def test_short_chains(T):
    short = widgets.posterior_explorer(schedules.alpha_bars(schedules.linear(T, 0.1, 0.4)), t=0, back=1)
    assert (short.t.max, short.back.max) == (T - 1, T)
    assert "x_0, with x_0 known" in short.text.value


@pytest.mark.parametrize(
    "wrong", [{"weights": (0.7, 0.7)}, {"weights": (1.0,)}, {"stds": (0.0, 0.1)}, {"weights": (1.5, -0.5)}]
)
def test_a_mixture_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="adding up to 1"):
        widgets.posterior_explorer(ALPHA_BAR, **wrong)


def test_labels_words_and_a_fixed_picture(explorer):
    assert all(c.description for c in (explorer.x0, explorer.x_t, explorer.t, explorer.back))
    assert "posterior" in explorer.picture.tooltip
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{40,}" src="data:image/png;base64,', bundle["text/html"])
    assert plt.get_fignums() == []
