"""The U-Net against Diffusers' with the same weights, published sizes, and what it refuses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from against_diffusers import compare_unets, random_unet_config

from ddpm_from_scratch import UNet2DModel
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.models.attention import scaled_dot_product_attention
from ddpm_from_scratch.models.embeddings import sinusoidal_embedding
from ddpm_from_scratch.models.resnet import ResnetBlock2D

CIFAR10 = {
    "sample_size": 32,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (128, 256, 256, 256),
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
CELEBAHQ = CIFAR10 | {
    "sample_size": 256,
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
}
TINY: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_equal_diffusers(seed: int) -> None:
    """Forward and backward in float64: what is left is the order of additions."""
    rng = random.Random(seed)
    output, gradient = compare_unets(random_unet_config(rng), rng, torch.float64)
    assert output < 1e-12 and gradient < 1e-10


@pytest.mark.parametrize("seed", range(100, 106))
def test_random_networks_equal_diffusers_in_float32(seed: int) -> None:
    rng = random.Random(seed)
    output, gradient = compare_unets(random_unet_config(rng), rng, torch.float32)
    assert output < 1e-5 and gradient < 1e-5


OPTIONS: dict[str, dict[str, Any]] = {
    "attention everywhere": {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "one head": {"attention_head_dim": None},
    "heads that do not divide": {"attention_head_dim": 3},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift with a norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "padding 0": {"downsample_padding": 0},
    "Ho's embedding": {"freq_shift": 1, "flip_sin_to_cos": False},
    "no middle": {"mid_block_type": None},
    "no middle attention": {"add_attention": False},
    "scaled middle": {"mid_block_scale_factor": 2**0.5},
    "classes": {"num_class_embeds": 5},
    "class as timestep": {"class_embed_type": "timestep"},
    "class as embedding": {"class_embed_type": "identity"},
    "embedding width": {"time_embedding_dim": 10},
    "centred input": {"center_input_sample": True},
    **{act: {"act_fn": act} for act in ("swish", "mish", "gelu", "relu")},
}


@pytest.mark.parametrize("option", list(OPTIONS))
def test_each_option_equals_diffusers(option: str) -> None:
    config = TINY | {"time_embedding_dim": None} | OPTIONS[option]
    output, gradient = compare_unets(config, random.Random(1), torch.float64)
    assert output < 1e-12 and gradient < 1e-10


@pytest.mark.parametrize(("config", "count"), [(CIFAR10, 35_746_307), (CELEBAHQ, 113_673_219)])
def test_published_sizes(config: dict[str, Any], count: int) -> None:
    """google/ddpm-cifar10-32 and google/ddpm-celebahq-256: parameter count, names and shapes, without their memory."""
    with torch.device("meta"):
        ours, theirs = UNet2DModel(**config), diffusers.UNet2DModel(**config)
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}


def test_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        ours, theirs = UNet2DModel().config, diffusers.UNet2DModel().config
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}


def test_old_block_names_are_read() -> None:
    renamed = TINY | {"down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D")}
    assert UNet2DModel(**renamed).state_dict().keys() == UNet2DModel(**TINY).state_dict().keys()


# ---------------------------------------------------------------- behaviour


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**TINY).double()
    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for switch in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        switch()
        model.zero_grad()
        output = model(x, 7).sample
        output.square().sum().backward()
        results.append((output.detach(), [p.grad.clone() for p in model.parameters()]))
    assert model.is_gradient_checkpointing
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


def test_checkpointing_recomputes_and_does_not_store() -> None:
    """The number of tensors saved for the backward pass falls."""
    model, x = UNet2DModel(**TINY), torch.zeros(1, 1, 8, 8)

    def saved() -> int:
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x, 1)
        return count

    plain = saved()
    model.enable_gradient_checkpointing()
    assert saved() < 0.8 * plain


def test_forms_of_the_timestep_and_of_the_output() -> None:
    torch.manual_seed(0)
    model, x = UNet2DModel(**TINY).eval(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x, 5).sample
        for timestep in (torch.tensor(5), torch.tensor([5]), torch.tensor([5, 5, 5]), 5.0):
            assert torch.equal(model(x, timestep).sample, expected)
        per_image = model(x, torch.tensor([5, 900, 5])).sample
        output = model(x, 5)
        (as_tuple,) = model(x, 5, return_dict=False)
    assert not torch.allclose(per_image[1], expected[1])
    torch.testing.assert_close(per_image[2], expected[2])
    assert (
        torch.equal(output[0], expected) and torch.equal(output["sample"], expected) and torch.equal(as_tuple, expected)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_weights_is_kept(dtype: torch.dtype) -> None:
    model = UNet2DModel(**TINY).to(dtype)
    output = model(torch.zeros(1, 1, 8, 8, dtype=dtype), 3).sample
    assert output.dtype == dtype and output.isfinite().all()


@pytest.mark.parametrize("tokens", [9, 200])
def test_attention_for_few_tokens_and_for_many(tokens: int) -> None:
    q, k, v = torch.randn((3, 2, 4, tokens, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (q @ k.mT / 5**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v), expected, rtol=1e-12, atol=1e-12)


def test_a_subclass_opens_what_its_parent_saved(tmp_path: Path) -> None:
    class Mine(UNet2DModel):
        pass

    saved = UNet2DModel(**TINY)
    saved.save_pretrained(tmp_path / "parent")
    opened = Mine.from_pretrained(tmp_path / "parent")
    assert type(opened) is Mine and torch.equal(opened.conv_in.weight, saved.conv_in.weight)
    opened.save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="is of a 'Mine', not of a UNet2DModel"):
        UNet2DModel.from_pretrained(tmp_path / "mine")


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 4), (4, 6)])
def test_a_resnet_block_written_out(c_in: int, c_out: int) -> None:
    torch.manual_seed(0)
    block, f = ResnetBlock2D(c_in, c_out, temb_channels=5, groups=2).double(), torch.nn.functional
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, temb = torch.randn(2, c_in, 5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    def normed(h: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        grouped = h.reshape(len(h), 2, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        unit = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(h.shape)
        return unit * norm.weight[:, None, None] + norm.bias[:, None, None]

    h = normed(x, block.norm1)
    h = f.conv2d(h * h.sigmoid(), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + f.linear(temb * temb.sigmoid(), block.time_emb_proj.weight, block.time_emb_proj.bias)[:, :, None, None]
    h = normed(h, block.norm2)
    h = f.conv2d(h * h.sigmoid(), block.conv2.weight, block.conv2.bias, padding=1)
    carried = x if block.conv_shortcut is None else f.conv2d(x, block.conv_shortcut.weight, block.conv_shortcut.bias)
    torch.testing.assert_close(block(x, temb), carried + h, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- timestep embedding


@pytest.mark.parametrize("dim", [4, 7, 32])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoidal_embedding(dim: int, flip: bool, shift: int) -> None:
    t, half = np.array([0, 1, 17, 999]), dim // 2
    angles = t[:, None] * 10000.0 ** (-np.arange(half) / (half - shift))
    halves = [np.sin(angles), np.cos(angles)]
    expected = np.concatenate(halves[::-1] if flip else halves, axis=1)
    embedding = sinusoidal_embedding(torch.from_numpy(t), dim, flip, shift)
    assert embedding.dtype == torch.float32 and embedding.shape == (4, dim)
    # an angle of 999 carries a rounding of 6e-5 in float32
    np.testing.assert_allclose(embedding[:, : 2 * half], expected, atol=2e-4)
    np.testing.assert_allclose(embedding[:3, : 2 * half], expected[:3], atol=4e-6)
    assert (embedding[:, 2 * half :] == 0).all()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")},
            "'SkipDownBlock2D' is not supported.*AttnDownBlock2D",
        ),
        ({"up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")}, "'ResnetUpsampleBlock2D' is not supported"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type='UNetMidBlock2DCrossAttn' is not supported"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is not supported.*positional"),
        ({"downsample_type": "resnet"}, "downsample_type='resnet' is not supported"),
        ({"upsample_type": "resnet"}, "upsample_type='resnet' is not supported"),
        ({"downsample_padding": 2}, "downsample_padding=2 is not supported"),
        ({"downsample_padding": None}, "downsample_padding=None is not supported"),
        ({"act_fn": "tanh"}, "act_fn='tanh' is not supported"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial' is not supported"),
        ({"class_embed_type": "projection"}, "class_embed_type='projection' is not supported"),
        ({"block_out_channels": (4, 8, 8)}, "same length.*got 3, 2 and 2"),
        ({"block_out_channels": (4, 7)}, "multiples of norm_num_groups=2, got 7"),
        ({"layers_per_block": 0}, r"layers_per_block must lie in \[1, 64\], got 0"),
        ({"attention_head_dim": 16}, r"attention_head_dim must lie in \[1, 8\]"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups=3"),
        ({"norm_eps": -1e-5}, "norm_eps=-1e-05 must be ≥ 0"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor=0 > 0"),
    ],
)
def test_unsupported_options_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**TINY | change)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="UNet2DModel.*'dropuot'.*dropout"):
        UNet2DModel(**TINY, dropuot=0.1)


def test_shapes_that_do_not_fit() -> None:
    model, conditional = UNet2DModel(**TINY), UNet2DModel(**TINY, num_class_embeds=3)
    x = torch.zeros(2, 1, 8, 8)
    for sample, message in (
        (torch.zeros(2, 3, 8, 8), r"\(batch, 1, height, width\), got \(2, 3, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"got \(1, 8, 8\)"),
        (torch.zeros(2, 1, 7, 8), "multiples of 2, got 7×8"),
    ):
        with pytest.raises(ValueError, match=message):
            model(sample, 1)
    with pytest.raises(ValueError, match="3 timesteps for a batch of 2"):
        model(x, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="class_labels given, but"):
        model(x, 1, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class_labels missing"):
        conditional(x, 1)
    for labels in ([3, 0], [-1, 0], [0.0, 1.0], [0, 1, 2]):
        with pytest.raises(ValueError, match=r"class_labels must be 2 integers in \[0, 2\], got \["):
            conditional(x, 1, labels)
    for other in (x.half(), x.double(), x.byte()):
        with pytest.raises(ValueError, match=f"weights are torch.float32, the images {other.dtype}: convert"):
            model(other, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x.bfloat16(), 1).sample.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_a_missing_condition_is_named_by_its_kind(kind: str) -> None:
    with pytest.raises(ValueError, match=f"class_labels missing: the model was built with class_embed_type='{kind}'"):
        UNet2DModel(**TINY, class_embed_type=kind)(torch.zeros(2, 1, 8, 8), 1)


def test_class_labels_of_any_integer_type_and_one_for_all() -> None:
    torch.manual_seed(0)
    model, x = UNet2DModel(**TINY, num_class_embeds=3), torch.randn(2, 1, 8, 8)
    expected = model(x, 1, torch.tensor([2, 2])).sample
    for labels in (torch.tensor([2, 2], dtype=torch.uint8), torch.tensor(2), [2], [2, 2]):
        assert torch.equal(model(x, 1, labels).sample, expected)
    assert not torch.equal(model(x, 1, torch.tensor([2, 1])).sample, expected)


def test_small_unet() -> None:
    model = small_unet((1, 28, 28), widths=(16, 32, 32), num_classes=10, learned_variance=True)
    assert model(torch.zeros(2, 1, 28, 28), 1, torch.tensor([0, 10])).sample.shape == (2, 2, 28, 28)
    assert model.config.sample_size == 28 and model.config.num_class_embeds == 11
    assert small_unet((3, 8, 16), widths=(16, 16)).config.sample_size == (8, 16)
    with pytest.raises(ValueError, match="28×28 images cannot be halved 3 times"):
        small_unet((1, 28, 28), widths=(16, 16, 16, 16))


def test_a_fresh_network_predicts_moderate_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    output = small_unet((1, 8, 8), widths=(16, 32))(x, 500).sample.detach()
    assert output.isfinite().all() and 0 < output.abs().max() < 10
