"""Checkpoints travel both ways, and parts of either library work in the other: same seed, same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import ddpm_from_scratch as ours
from ddpm_from_scratch import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULE: dict[str, Any] = {"num_train_timesteps": 20}
STEPS = 5  # divides 20: where it does not, Diffusers' DDIM steps to another timestep than the next
TOLERANCE = 2e-5  # of images in [0, 1], over 5 steps
NEW_TO_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SIZE_256: dict[str, Any] = CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    "sample_size": 256,
}
SCHEDULER_2022: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "tensor_format": "pt",
    "timestep_values": None,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def unet(library: Any, **options: Any) -> Any:
    """A small network of either library, the same weights in both."""
    torch.manual_seed(0)
    return library.UNet2DModel(**TINY | options).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(pipeline: Any, steps: int = STEPS, batch: int = 2, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    result: np.ndarray = pipeline(
        batch_size=batch, generator=generator(), num_inference_steps=steps, output_type="np", **options
    ).images
    return result


def old_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Attention parameters under their names of 2022."""
    renamed = {}
    for key, value in state.items():
        for new, old in NEW_TO_OLD.items():
            key = key.replace(f".{new}.", f".{old}.") if ".attentions." in key else key
        renamed[key] = value
    return renamed


def write_2022(folder: Path, config: dict[str, Any], model: Any, at_root: bool, weights: str) -> None:
    """A repository as `google/ddpm-*` are: old keys, old names, files at the root or in folders."""
    unet_folder, scheduler_folder = (folder, folder) if at_root else (folder / "unet", folder / "scheduler")
    for made in (unet_folder, scheduler_folder):
        made.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index | parts))
    (unet_folder / "config.json").write_text(json.dumps(config))
    (scheduler_folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER_2022))
    state = old_state(model.state_dict())
    if weights == "bin":
        torch.save(state, unet_folder / "diffusion_pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(state, unet_folder / "diffusion_pytorch_model.safetensors")


# ---------------------------------------------------------------- folders, both ways


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
@pytest.mark.parametrize("writer", [ours, diffusers], ids=["saved here", "saved by Diffusers"])
@pytest.mark.parametrize(
    "options", [{}, {"safe_serialization": False}, {"variant": "fp16"}, {"max_shard_size": "20KB"}], ids=str
)
def test_a_pipeline_opens_in_the_other(kind: str, writer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    reader = diffusers if writer is ours else ours
    scheduler = getattr(writer, kind.replace("Pipeline", "Scheduler"))(**SCHEDULE)
    saved = getattr(writer, kind)(unet=unet(writer), scheduler=scheduler)
    saved.save_pretrained(tmp_path, **options)
    how = {"variant": "fp16"} if "variant" in options else {}
    read = getattr(reader, kind).from_pretrained(tmp_path, **how)
    own = getattr(writer, kind).from_pretrained(tmp_path, **how)
    expected = images(saved)
    assert np.abs(images(own) - expected).max() == 0
    assert np.abs(images(read) - expected).max() < TOLERANCE
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path, **how)).__name__ == kind
    assert type(ours.DiffusionPipeline.from_pretrained(tmp_path, **how)).__name__ == kind


def test_of_one_file_and_shards_the_same_is_read(tmp_path: Path) -> None:
    """Diffusers leaves an older single file beside new shards, and an index whose shards are gone."""
    for value, size in ((0.25, "5GB"), (0.5, "20KB"), (0.75, "5GB")):
        model = unet(diffusers)
        for parameter in model.parameters():
            parameter.data.fill_(value)
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert UNet2DModel.from_pretrained(tmp_path).conv_in.bias[0].item() == value
        if value == 0.5:
            assert (tmp_path / "diffusion_pytorch_model.safetensors").exists(), "the case is no longer one"
            assert diffusers.UNet2DModel.from_pretrained(tmp_path).conv_in.bias[0].item() == value


@pytest.mark.parametrize(
    "options",
    [{"num_class_embeds": 3}, {"class_embed_type": "timestep"}, {"resnet_time_scale_shift": "scale_shift"}],
    ids=str,
)
def test_other_networks_open_in_the_other(options: dict[str, Any], tmp_path: Path) -> None:
    unet(ours, **options).save_pretrained(tmp_path / "ours")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = UNet2DModel.from_pretrained(tmp_path / "theirs")
    x = torch.randn(2, 3, 8, 8, generator=generator())
    labels = {} if "resnet_time_scale_shift" in options else {"class_labels": torch.tensor([0, 2])}
    with torch.no_grad():
        torch.testing.assert_close(back(x, 7, **labels).sample, theirs(x, 7, **labels).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    unet(ours).to(dtype).save_pretrained(tmp_path)
    assert UNet2DModel.from_pretrained(tmp_path).dtype == torch.float32
    for name in ("dtype", "torch_dtype"):
        mine = UNet2DModel.from_pretrained(tmp_path, **{name: dtype})
        assert mine.dtype == dtype and not mine.training
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[key]) and value.requires_grad for key, value in mine.named_parameters())


def test_a_dtype_for_each_part(tmp_path: Path) -> None:
    DDPMPipeline(unet(ours), DDPMScheduler(**SCHEDULE)).save_pretrained(tmp_path)
    for given, dtype in (
        ({"unet": torch.bfloat16, "default": torch.float16}, torch.bfloat16),
        ({"default": torch.float16}, torch.float16),
        ({"scheduler": torch.float16}, torch.float32),
    ):
        assert DDPMPipeline.from_pretrained(tmp_path, torch_dtype=given).dtype == dtype
        assert diffusers.DDPMPipeline.from_pretrained(tmp_path, torch_dtype=given).unet.dtype == dtype


def test_what_diffusers_tools_ask_a_class_and_a_loader(tmp_path: Path) -> None:
    unet(ours).save_pretrained(tmp_path)
    mine, info = UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    theirs, there = diffusers.UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(mine) is UNet2DModel and info == {key: [] for key in there}
    assert theirs.num_parameters() == mine.num_parameters()
    for name in ("_no_split_modules", "_keep_in_fp32_modules"):
        assert getattr(UNet2DModel, name) == getattr(diffusers.UNet2DModel, name)
    for part in (UNet2DModel, DDPMScheduler, DDIMScheduler):
        assert len(part._deprecated_kwargs) == 0


def test_a_configuration_is_loaded_by_itself(tmp_path: Path) -> None:
    """As Diffusers' training script does: the dictionary of a file, then an untrained network from it."""
    DDPMPipeline(unet(ours), DDPMScheduler(beta_end=0.03)).save_pretrained(tmp_path)
    for name, part in (("UNet2DModel", "unet"), ("DDPMScheduler", "scheduler"), ("DDIMScheduler", "scheduler")):
        mine, theirs = (getattr(library, name).load_config(tmp_path, subfolder=part) for library in (ours, diffusers))
        assert mine == theirs == getattr(ours, name).load_config(tmp_path / part)
        made = getattr(ours, name).from_config(mine).config
        assert {key: made[key] for key in mine if key[0] != "_"} == {k: v for k, v in mine.items() if k[0] != "_"}


def test_diffusers_average_of_weights_is_saved_and_goes_on(tmp_path: Path) -> None:
    from diffusers.training_utils import EMAModel

    unet = UNet2DModel(**TINY)
    average = EMAModel(unet.parameters(), decay=0.9, model_cls=UNet2DModel, model_config=unet.config)
    average.step(unet.parameters())
    average.save_pretrained(tmp_path)
    for kind in (UNet2DModel, diffusers.UNet2DModel):
        found = EMAModel.from_pretrained(tmp_path, kind)
        assert found.state_dict().keys() == average.state_dict().keys()
        assert (found.decay, found.optimization_step) == (0.9, 1)
        names = [name for name, _ in kind(**TINY).named_parameters()]  # whose order is each library's own
        kept = dict(zip(names, found.shadow_params, strict=True))
        assert all(torch.equal(kept[name], value) for name, value in unet.named_parameters())


def test_a_variant_that_is_not_there(tmp_path: Path) -> None:
    """Diffusers raises an OSError from a model and a ValueError from a pipeline: this error is both."""
    DDIMPipeline(unet(ours), DDPMScheduler()).save_pretrained(tmp_path, safe_serialization=False)
    for load in (diffusers.DDIMPipeline.from_pretrained, DDIMPipeline.from_pretrained):
        with pytest.raises(ValueError, match="`variant=fp16`"):
            load(tmp_path, variant="fp16")
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model.fp16.bin found in directory"):
        UNet2DModel.from_pretrained(tmp_path / "unet", variant="fp16")


def test_what_is_not_supported_says_what_is(tmp_path: Path) -> None:
    pipeline = DDPMPipeline(unet(ours), DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'enable_model_cpu_offload'; it has .*save_pretrained"):
        pipeline.enable_model_cpu_offload()
    for kind, folder in ((DDPMPipeline, tmp_path), (UNet2DModel, tmp_path / "unet")):
        with pytest.raises(TypeError, match="has no device_map; hub options are .*local_files_only"):
            kind.from_pretrained(folder, device_map="auto")  # type: ignore[attr-defined]
        kind.from_pretrained(folder, low_cpu_mem_usage=False, force_download=True)  # type: ignore[attr-defined]


@pytest.mark.parametrize("at_root", [True, False], ids=["root", "folders"])
@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_layouts_of_2022(at_root: bool, weights: str, tmp_path: Path) -> None:
    small = CIFAR10 | TINY | {"attention_head_dim": None, "downsample_padding": 0, "some_old_key": 1}
    model = diffusers.UNet2DModel(**{k: v for k, v in small.items() if k[0] != "_" and k != "some_old_key"})
    write_2022(tmp_path, small, model, at_root, weights)
    mine = DDPMPipeline.from_pretrained(tmp_path)
    source = tmp_path if at_root else tmp_path / "unet"
    theirs = diffusers.DDPMPipeline(
        unet=diffusers.UNet2DModel.from_pretrained(source),
        scheduler=diffusers.DDPMScheduler.from_pretrained(tmp_path if at_root else tmp_path / "scheduler"),
    )
    assert mine.scheduler.config.variance_type == "fixed_large" and mine.unet.config.some_old_key == 1
    assert np.abs(images(mine) - images(theirs)).max() < TOLERANCE
    assert (
        np.abs(images(DDIMPipeline.from_pretrained(tmp_path)) - images(DDIMPipeline(mine.unet, mine.scheduler))).max()
        == 0
    )


def test_renamed_keys(tmp_path: Path) -> None:
    unet(ours).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config |= {"image_size": config.pop("sample_size"), "num_head_channels": config.pop("attention_head_dim")}
    config |= {"resnet_eps": 1e-6, "_class_name": "UNetUnconditionalModel"}
    config["down_block_types"] = [f"UNetRes{name}" for name in config["down_block_types"]]
    del config["norm_eps"]
    path.write_text(json.dumps(config))
    model = UNet2DModel.from_pretrained(tmp_path)
    assert (model.config.sample_size, model.config.attention_head_dim, model.config.norm_eps) == (8, 8, 1e-6)
    assert DDPMScheduler.from_config({"predict_epsilon": False}).config.prediction_type == "sample"
    assert DDPMScheduler.from_config({"predict_epsilon": True}).config.prediction_type == "epsilon"


@pytest.mark.long
@pytest.mark.parametrize(("config", "parameters"), [(CIFAR10, 35_746_307), (SIZE_256, 113_673_219)], ids=["32", "256"])
@pytest.mark.parametrize(("at_root", "weights"), [(True, "bin"), (False, "safetensors")])
def test_published_configurations_at_true_size(
    config: dict[str, Any], parameters: int, at_root: bool, weights: str, tmp_path: Path
) -> None:
    """The forward pass and two steps, at 64×64 for the large network, whose images would take minutes."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{key: value for key, value in config.items() if key[0] != "_"})
    write_2022(tmp_path, config, model, at_root, weights)
    mine = DDPMPipeline.from_pretrained(tmp_path)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path if at_root else tmp_path / "unet")
    assert mine.unet.num_parameters() == parameters == theirs.num_parameters()
    size = min(config["sample_size"], 64)
    x = torch.randn(1, 3, size, size, generator=generator())
    with torch.no_grad():
        a, b = mine.unet(x, 500).sample, theirs(x, 500).sample
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    if size == config["sample_size"]:
        other = diffusers.DDPMPipeline(unet=theirs, scheduler=diffusers.DDPMScheduler.from_config(SCHEDULER_2022))
        assert np.abs(images(mine, 2, 1) - images(other, 2, 1)).max() < TOLERANCE


# ---------------------------------------------------------------- parts of one in the other


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_gives_the_same_images(prediction_type: str, variance_type: str) -> None:
    options = SCHEDULE | {"prediction_type": prediction_type, "variance_type": variance_type}
    mine, theirs = DDPMScheduler(**options), diffusers.DDPMScheduler(**options)
    expected = images(diffusers.DDPMPipeline(unet(diffusers), theirs))
    assert np.abs(images(DDPMPipeline(unet(ours), mine)) - expected).max() < TOLERANCE
    assert np.abs(images(DDPMPipeline(unet(diffusers), theirs)) - expected).max() < TOLERANCE
    assert np.abs(images(diffusers.DDPMPipeline(unet(diffusers), mine)) - expected).max() < TOLERANCE
    assert np.abs(images(diffusers.DDPMPipeline(unet(ours), theirs)) - expected).max() < TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clipped", [None, True])
def test_ddim_gives_the_same_images(eta: float, clipped: bool | None) -> None:
    mine, theirs = DDPMScheduler(**SCHEDULE), diffusers.DDPMScheduler(**SCHEDULE)
    options = {"eta": eta, "use_clipped_model_output": clipped}
    expected = images(diffusers.DDIMPipeline(unet(diffusers), theirs), **options)
    assert np.abs(images(DDIMPipeline(unet(ours), mine), **options) - expected).max() < TOLERANCE
    assert np.abs(images(DDIMPipeline(unet(diffusers), theirs), **options) - expected).max() < TOLERANCE
    assert np.abs(images(diffusers.DDIMPipeline(unet(ours), mine), **options) - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
    ],
)
def test_other_schedulers_of_diffusers(name: str) -> None:
    scheduler = getattr(diffusers, name).from_config(DDPMScheduler().config)
    seen: list[int] = []
    mine = images(DDPMPipeline(unet(ours), scheduler), callback=lambda step, t, x, x0: seen.append(step))
    assert np.isfinite(mine).all() and seen == list(range(len(scheduler.timesteps)))
    again = getattr(diffusers, name).from_config(diffusers.DDPMScheduler().config)
    assert np.abs(mine - images(DDPMPipeline(unet(diffusers), again))).max() < TOLERANCE
    if name == "DPMSolverMultistepScheduler":  # Diffusers' pipeline neither scales the inputs that Euler needs scaled,
        # nor spares Heun the generator that its step does not take
        for network in (unet(ours), unet(diffusers)):
            assert np.abs(images(diffusers.DDPMPipeline(network, again)) - mine).max() < TOLERANCE


def test_attention_in_slices_gives_the_same_images() -> None:
    pipeline = DDIMPipeline(unet(ours, attention_head_dim=4), DDPMScheduler(**SCHEDULE))
    layers = [module for module in pipeline.unet.modules() if isinstance(module, ours.Attention)]
    whole = images(pipeline)
    for slice_size, heads in ((1, 1), ("max", 1), ("auto", 2), (3, 3)):
        pipeline.enable_attention_slicing(slice_size)  # type: ignore[arg-type]
        assert [layer.heads_at_once for layer in layers] == [heads] * len(layers)
        assert np.abs(images(pipeline) - whole).max() < 1e-6
    pipeline.disable_attention_slicing()
    assert all(layer.heads_at_once == layer.heads == 4 for layer in layers)
    DDIMPipeline(unet(diffusers), DDPMScheduler(**SCHEDULE)).enable_attention_slicing()


def test_a_seed_gives_the_same_weights() -> None:
    for options in ({}, {"layers_per_block": 2, "num_class_embeds": 3}, {"add_attention": False}, {"in_channels": 1}):
        theirs = unet(diffusers, **options).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in unet(ours, **options).state_dict().items())


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_configs_cross_libraries_and_classes(kind: str) -> None:
    options = SCHEDULE | {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "timestep_spacing": "trailing"}
    mine, theirs = getattr(ours, kind)(**options), getattr(diffusers, kind)(**options)
    for name in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        a = getattr(diffusers, name).from_config(mine.config).config
        b = getattr(diffusers, name).from_config(theirs.config).config
        assert {key: a[key] for key in b if key[0] != "_"} == {key: b[key] for key in b if key[0] != "_"}
    other = getattr(ours, kind).from_config(diffusers.EulerDiscreteScheduler.from_config(mine.config).config)
    keys = set(mine.config) - {"_use_default_values"}
    assert {key: other.config[key] for key in keys} == {key: mine.config[key] for key in keys}
    assert DDIMScheduler.from_config(mine.config).config.timestep_spacing == "trailing"


@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_ddpm_config_round_trips_through_every_class(zero_snr: bool) -> None:
    """DDPM → DDIM → Euler → DPM-Solver++ → DDPM: nothing that was chosen is lost on the way."""
    chosen: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_end": 0.012, "variance_type": "fixed_large"}
    chosen |= {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    start = DDPMScheduler(**chosen)
    for middle in ((DDIMScheduler,), (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler)):
        passed: Any = start
        for kind in middle:
            passed = kind.from_config(passed.config)
        back = DDPMScheduler.from_config(passed.config)
        assert {key: back.config[key] for key in chosen} == chosen
        torch.testing.assert_close(back.alphas_cumprod, start.alphas_cumprod, rtol=0, atol=0)


def test_zero_snr_samples_alike_in_both() -> None:
    """A v-prediction network from ᾱ_T = 0: same images; with ε both load, and only here the step is refused."""
    options = SCHEDULE | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for kind in ("DDPM", "DDIM"):
        made = []
        for library in (ours, diffusers):
            scheduler = getattr(library, f"{kind}Scheduler")(**options, prediction_type="v_prediction")
            made.append(images(getattr(library, f"{kind}Pipeline")(unet(library), scheduler)))
        assert np.isfinite(made[1]).all() and np.abs(made[0] - made[1]).max() < 5e-4
        epsilon = getattr(ours, f"{kind}Scheduler").from_config(
            getattr(diffusers, f"{kind}Scheduler")(**options).config
        )
        with pytest.raises(ValueError, match="zero terminal SNR"):
            images(getattr(ours, f"{kind}Pipeline")(unet(ours), epsilon))
