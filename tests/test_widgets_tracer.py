"""The U-Net tracer: the maps are those of the network, the skips go where the network puts them, frames are right."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from ddpm_from_scratch import UNet2DModel, gaussian, schedules
from ddpm_from_scratch.course import widgets
from ddpm_from_scratch.course.widgets.tracer import KEPT, feature_page, nodes_of

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


def network(levels: int, layers: int = 1, **options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=tuple(4 * (level + 1) for level in range(levels)),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        layers_per_block=layers,
        norm_num_groups=2,
        attention_head_dim=4,
        **options,
    ).eval()


def image(seed: int) -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.fixture
def tracer():
    return widgets.unet_tracer(network(2), image(0), image(1), ALPHA_BAR, t=300)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_last_stop_is_the_networks_output(tracer):
    x_t = gaussian.q_sample(image(0), image(1), float(ALPHA_BAR[700]))
    with torch.no_grad():
        expected = tracer.unet(x_t, 700).sample[0]
    torch.testing.assert_close(tracer.maps(700)["conv_out"], expected, rtol=0, atol=0)
    torch.testing.assert_close(tracer.maps(700)["x_t"], x_t[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("levels", "layers", "options"), [(1, 1, {}), (2, 1, {}), (3, 2, {}), (2, 3, {"mid_block_type": None})]
)
def test_a_skip_ends_where_the_network_uses_it(levels, layers, options):
    """What enters the taker's ResNet block ends in the maker's map, number for number."""
    unet = network(levels, layers, **options)
    tracer = widgets.unet_tracer(unet, image(0), image(1), ALPHA_BAR)
    entered = {}
    for i, block in enumerate(unet.up_blocks):
        for j, resnet in enumerate(block.resnets):
            resnet.register_forward_hook(
                lambda module, inputs, output, name=f"up_blocks.{i}.resnets.{j}": entered.update({name: inputs[0]})
            )
    nodes, maps = nodes_of(unet), tracer.maps(55)
    takers = [node for node in nodes if node.partner is not None and not node.makes]
    assert {node.name for node in takers} == entered.keys() and len(takers) == levels * (layers + 1)
    for node in takers:
        maker = nodes[node.partner]
        assert maker.makes and nodes[maker.partner] is node and maker.level == node.level
        skip = maps[maker.module]
        assert torch.equal(entered[node.name][0, -len(skip) :], skip)


def test_levels_are_the_resolutions(tracer):
    for node in tracer.nodes:
        assert tracer.maps(300)[node.module].shape[-1] == 16 // 2**node.level


def test_the_network_is_left_as_it_was(tracer):
    assert not any(module._forward_hooks for module in tracer.unet.modules())
    tracer.unet.train()
    tracer.maps(3)
    assert tracer.unet.training


def test_a_frame_equals_the_figure_drawn_from_scratch(tracer):
    frame = pixels(tracer.frame(4, 700))
    for artist in tracer.live.moving:
        artist.set_animated(False)
    tracer.live.canvas.draw()
    np.testing.assert_array_equal(frame, np.asarray(tracer.live.canvas.buffer_rgba())[..., :3])


def test_a_frame_does_not_depend_on_the_one_before(tracer):
    other = widgets.unet_tracer(network(2), image(0), image(1), ALPHA_BAR, t=300)
    tracer.frame(0, 900)
    assert tracer.frame(6, 120) == other.frame(6, 120) != tracer.frame(6, 121)


def test_controls_redraw_and_have_labels(tracer):
    before = tracer.picture.value
    assert tracer.block.description and tracer.slider.description and "feature maps" in tracer.picture.tooltip
    tracer.slider.value = 40
    assert tracer.picture.value == tracer.frame(1, 40) != before
    tracer.block.value = 4
    assert tracer.picture.value == tracer.frame(4, 40)
    assert "mid_block at t = 40: 8 maps of 8×8, full colour from ±" in tracer.text.value
    assert tracer.text.value.endswith("It makes no skip and takes none.")
    assert [label for label, _ in tracer.block.options][4] == "5. mid_block"


def test_the_words_count_the_channels(tracer):
    tracer.block.value = 6
    assert "8 channels from the stop before and 4 from down_blocks.0.downsamplers.0, 12 in all" in tracer.text.value
    assert tracer.unet.up_blocks[0].resnets[1].conv1.in_channels == 12
    tracer.block.value = len(tracer.nodes) - 1
    assert "conv_out at t = 300: 1 map of 16×16, full colour from ±" in tracer.text.value
    tracer.block.value = 0
    assert "A copy of them goes to up_blocks.1.resnets.1." in tracer.text.value


def test_the_plan_names_the_stops_of_each_part(tracer):
    texts = [text.get_text() for text in tracer.live.figure.axes[0].texts]
    assert {"down: 2–4", "middle: 5", "up: 6–10"} <= set(texts)
    assert [node.name.split("_")[0] for node in tracer.nodes[1:-1]] == ["down"] * 3 + ["mid"] + ["up"] * 5


@pytest.mark.parametrize(("channels", "rows"), [(1, 1), (2, 1), (3, 2), (8, 2), (9, 4), (64, 4)])
def test_few_maps_are_drawn_larger(tracer, channels, rows):
    tracer.kept[5] = dict(tracer.maps(300), conv_out=torch.ones(channels, 16, 16))
    tracer.frame(len(tracer.nodes) - 1, 5)
    page = tracer.grid.get_array()
    assert page.shape == feature_page(torch.ones(channels, 16, 16), rows, 2 * rows).shape
    assert (page[..., 0] < 1).sum() == min(channels, 32) * 16 * 16


def test_moving_opens_no_figures_and_keeps_few_maps(tracer):
    figure = tracer.live.figure
    children = sum(len(ax.get_children()) for ax in figure.axes)
    for t in range(0, 1000, 12):
        tracer.slider.value = t
    assert tracer.live.figure is figure and sum(len(ax.get_children()) for ax in figure.axes) == children
    assert plt.get_fignums() == [] and len(tracer.kept) <= KEPT


def test_without_widgets_a_fixed_picture_is_shown(tracer):
    bundle = tracer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert re.search(r'<img alt="[^"]{40,}" src="data:image/png;base64,', bundle["text/html"])
    assert "<figcaption" in bundle["text/html"]


def test_feature_page_is_coloured_by_sign():
    page = feature_page(torch.stack([torch.full((4, 4), value) for value in (1.0, -1.0, 0.0)]), 1, 3)
    pad = page.shape[1] // 3 - 3
    positive, negative, zero = (page[1, k * (4 + pad) + 1] for k in range(3))
    assert positive[2] > positive[1] and negative[0] > negative[2] and zero.min() > 0.9
    assert page.shape == (4, 3 * (4 + pad) - pad, 3)


def test_colour_images():
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    ).eval()
    wide = [image(seed).expand(1, 3, -1, -1) for seed in (0, 1)]
    assert pixels(widgets.unet_tracer(unet, *wide, ALPHA_BAR).picture.value).ndim == 3
