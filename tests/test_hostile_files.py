"""Damaged and hostile files: one clear error each, before memory is taken; nothing run, nothing written."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hub import TINY, tiny_pipeline

from ddpm_from_scratch import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

SAFETENSORS = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved pipeline."""
    tiny_pipeline().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def refused(load: Callable[[], Any], folder: Path, *words: str, kind: type[Exception] = ValueError) -> str:
    """The one line that `load` refuses with; the folder is as it was, and no memory worth naming was taken."""
    before = sorted(folder.rglob("*"))
    tracemalloc.start()
    with pytest.raises(kind) as caught:
        load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 1500 and peak < 64 * 2**20
    assert sorted(folder.rglob("*")) == before
    assert caught.value.__cause__ is None and caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- weights


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code(saved: Path, tmp_path: Path, zipped: bool) -> None:
    (saved / "unet" / SAFETENSORS).unlink()
    harm = {"conv_in.weight": Payload(tmp_path / "harm")}
    torch.save(harm, saved / "unet" / BIN, _use_new_zipfile_serialization=zipped)
    refused(lambda: UNet2DModel.from_pretrained(saved, subfolder="unet"), saved, BIN, "refused", "system", "run code")
    (saved / "unet" / BIN).write_bytes(pickle.dumps(harm))
    refused(lambda: DDPMPipeline.from_pretrained(saved), saved, BIN)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"conv_in.weight": [0.0]}], ids=str)
def test_a_pickle_without_a_dictionary_of_tensors(saved: Path, content: Any) -> None:
    torch.save(content, saved / "unet" / BIN)
    load = lambda: UNet2DModel.from_pretrained(saved / "unet", use_safetensors=False)  # noqa: E731
    refused(load, saved, BIN, "does not hold a dictionary of tensors")


def lie(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the header of a safetensors file."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["conv_in.weight"].update(shape=[10**6, 10**6]),
        lambda h: h["conv_in.weight"].update(data_offsets=[0, 10**15]),
        lambda h: h["conv_in.weight"].update(data_offsets=[8, 0]),
        lambda h: h["conv_in.weight"].update(dtype="F1024"),
        lambda h: h["conv_in.weight"].pop("shape"),
        lambda h: h.update(extra={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}),
    ],
    ids=["shape", "past the end", "backwards", "dtype", "no shape", "overlapping"],
)
def test_a_safetensors_header_that_lies(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    lie(saved / "unet" / SAFETENSORS, change)
    refused(lambda: UNet2DModel.from_pretrained(saved / "unet"), saved, SAFETENSORS, "not a valid safetensors file")


@pytest.mark.parametrize("size", [2**63, 2**40, 10**9, 0])
def test_a_safetensors_file_that_lies_about_its_header(saved: Path, size: int) -> None:
    path = saved / "unet" / SAFETENSORS
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    refused(lambda: UNet2DModel.from_pretrained(saved / "unet"), saved, SAFETENSORS, "not a valid safetensors file")


@pytest.mark.parametrize("name", [SAFETENSORS, BIN])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_truncated_weights(saved: Path, name: str, share: float) -> None:
    unet, path = saved / "unet", saved / "unet" / name
    tiny_pipeline().unet.save_pretrained(unet, safe_serialization=name == SAFETENSORS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(lambda: UNet2DModel.from_pretrained(unet, use_safetensors=name == SAFETENSORS), saved, name)


@pytest.mark.parametrize("safe", [True, False])
def test_keys_and_shapes_that_do_not_belong_to_the_config(saved: Path, safe: bool) -> None:
    unet = saved / "unet"
    whole = load_file(unet / SAFETENSORS)
    for change, words in (
        ({"conv_in.weight": None}, ("lacks conv_in.weight", "do not belong together")),
        ({"conv_in.bogus": torch.zeros(1)}, ("has unexpected conv_in.bogus",)),
        ({"conv_in.bias": torch.zeros(5)}, ("conv_in.bias has shape (5,)", "makes it (4,)", "shape mismatch")),
        ({"conv_in.bias": torch.zeros(1).expand(10**12)}, ("conv_in.bias", "shape mismatch")),
    ):
        state = {key: value for key, value in (whole | change).items() if value is not None}
        if safe and state.get("conv_in.bias", torch.zeros(0)).numel() > 10:
            continue
        save_file(state, unet / SAFETENSORS) if safe else torch.save(state, unet / BIN)
        refused(lambda: UNet2DModel.from_pretrained(unet, use_safetensors=safe), saved, *words)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.uint8], ids=str)
def test_weights_that_are_no_real_numbers(saved: Path, dtype: torch.dtype, safe: bool) -> None:
    unet = saved / "unet"
    state = load_file(unet / SAFETENSORS) | {"conv_in.bias": torch.zeros(4, dtype=dtype)}
    save_file(state, unet / SAFETENSORS) if safe else torch.save(state, unet / BIN)
    load = lambda: UNet2DModel.from_pretrained(unet, use_safetensors=safe)  # noqa: E731
    refused(load, saved, "conv_in.bias is not torch.float32: ", str(dtype))


@pytest.mark.parametrize("safe", [True, False])
def test_weights_in_double_precision_are_rounded_once(saved: Path, safe: bool) -> None:
    unet = saved / "unet"
    state = {key: value.double() / 3 for key, value in load_file(unet / SAFETENSORS).items()}
    save_file(state, unet / SAFETENSORS) if safe else torch.save(state, unet / BIN)
    loaded = UNet2DModel.from_pretrained(unet, use_safetensors=safe).state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items())


@pytest.mark.parametrize("odd", ["sparse", "meta"])
def test_tensors_in_a_pickle_that_hold_no_numbers(saved: Path, odd: str) -> None:
    bias = torch.zeros(4).to_sparse() if odd == "sparse" else torch.zeros(4, device="meta")
    torch.save(load_file(saved / "unet" / SAFETENSORS) | {"conv_in.bias": bias}, saved / "unet" / BIN)
    refused(
        lambda: UNet2DModel.from_pretrained(saved / "unet", use_safetensors=False),
        saved,
        "conv_in.bias is not torch.float32",
    )


def test_a_pickle_whose_keys_are_no_names(saved: Path) -> None:
    torch.save({1: torch.zeros(4)}, saved / "unet" / BIN)
    load = lambda: UNet2DModel.from_pretrained(saved / "unet", use_safetensors=False)  # noqa: E731
    refused(load, saved, "does not hold a dictionary of tensors")


def test_a_pickle_that_unpacks_to_gigabytes(saved: Path) -> None:
    """torch stores its archives uncompressed: a compressed one is refused before anything is unpacked."""
    path = saved / "unet" / BIN
    torch.save(load_file(saved / "unet" / SAFETENSORS), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    first = next(name for name in entries if name.endswith("data/0"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(10**8) if name == first else content)
    assert path.stat().st_size < 10**6
    load = lambda: UNet2DModel.from_pretrained(saved / "unet", use_safetensors=False)  # noqa: E731
    refused(load, saved, BIN, "compressed")


@pytest.mark.parametrize("safe", [True, False])
def test_a_parameter_under_both_its_names(saved: Path, safe: bool) -> None:
    unet = saved / "unet"
    state = load_file(unet / SAFETENSORS)
    key = next(key for key in state if key.endswith("to_q.weight"))
    state[key.replace("to_q", "query")] = state[key] + 1
    save_file(state, unet / SAFETENSORS) if safe else torch.save(state, unet / BIN)
    load = lambda: UNet2DModel.from_pretrained(unet, use_safetensors=safe)  # noqa: E731
    refused(load, saved, "was there before: which of the two counts?")


@pytest.mark.parametrize("safe", [True, False])
def test_a_parameter_in_two_shards(saved: Path, safe: bool) -> None:
    unet = saved / "unet"
    tiny_pipeline().unet.save_pretrained(unet, safe_serialization=safe, max_shard_size="8KB")
    shards = sorted(path for path in unet.iterdir() if path.suffix == (".safetensors" if safe else ".bin"))
    (unet / SAFETENSORS).unlink(missing_ok=True)
    first, second = (load_file(path) if safe else torch.load(path) for path in shards[:2])
    both = second | {key: value + 1 for key, value in first.items()}
    save_file(both, shards[1]) if safe else torch.save(both, shards[1])
    refused(lambda: UNet2DModel.from_pretrained(unet), saved, "was there before: which of the two counts?")


@pytest.mark.parametrize("name", [f"unet/{SAFETENSORS}", "unet/config.json", "model_index.json"])
def test_links(saved: Path, tmp_path: Path, name: str) -> None:
    """The hub's cache is made of links out of the folder, so they are followed; but only to a regular file."""
    path, away = saved / name, tmp_path / "blob"
    path.rename(away)
    path.symlink_to(away)
    DDPMPipeline.from_pretrained(saved)
    for target in (os.devnull, "/dev/zero", path.name, "gone", tmp_path):
        path.unlink()
        path.symlink_to(target)
        refused(lambda: DDPMPipeline.from_pretrained(saved), saved, kind=FileNotFoundError)
    path.unlink()
    os.mkfifo(path)
    refused(lambda: DDPMPipeline.from_pretrained(saved), saved, kind=FileNotFoundError)


@pytest.mark.parametrize("variant", ["../../x", "a/b", "..", "a.b", "-x", "x y"])
def test_a_variant_that_is_no_word(saved: Path, variant: str) -> None:
    for act in (UNet2DModel.from_pretrained, tiny_pipeline().unet.save_pretrained):
        refused(lambda act=act: act(saved / "unet", variant=variant), saved, "variant must be a plain word")


def test_an_index_that_leaves_the_folder(saved: Path, tmp_path: Path) -> None:
    unet = saved / "unet"
    model = tiny_pipeline().unet
    model.save_pretrained(unet, max_shard_size="8KB")
    index = unet / f"{SAFETENSORS}.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    assert len(set(weight_map.values())) > 2
    save_file(load_file(unet / weight_map["conv_in.weight"]), tmp_path / SAFETENSORS)
    for name in (f"../../{SAFETENSORS}", str(tmp_path / SAFETENSORS), "..", "", ".", f"x\\{SAFETENSORS}", 5, ["a"]):
        edit(index, weight_map=weight_map | {"conv_in.weight": name})
        refused(lambda: UNet2DModel.from_pretrained(unet), saved, index.name)
    for content in ({}, [], "x", None, 5):
        edit(index, weight_map=content)
        refused(lambda: UNet2DModel.from_pretrained(unet), saved, "not a valid index of weights")
    edit(index, weight_map=weight_map | {"conv_in.weight": "gone.safetensors"})
    refused(lambda: UNet2DModel.from_pretrained(unet), saved, "lacks the shard gone", kind=FileNotFoundError)


@pytest.mark.parametrize("name", [SAFETENSORS, "config.json"])
def test_a_directory_in_place_of_a_file(saved: Path, name: str) -> None:
    (saved / "unet" / name).unlink()
    (saved / "unet" / name).mkdir()
    refused(lambda: UNet2DModel.from_pretrained(saved / "unet"), saved, kind=FileNotFoundError)


# ---------------------------------------------------------------- configurations

BAD_UNET = [
    {"block_out_channels": [4000, 2**20]},
    {"in_channels": 10**12},
    {"in_channels": 10**30},
    {"in_channels": -3},
    {"out_channels": 0},
    {"out_channels": "3"},
    {"in_channels": True},
    {"in_channels": 1.5},
    {"block_out_channels": "many"},
    {"block_out_channels": []},
    {"block_out_channels": [4, "8"]},
    {"block_out_channels": [4, [8]]},
    {"block_out_channels": [4] * 100_000},
    {"block_out_channels": [4] * 64, "down_block_types": ["DownBlock2D"] * 64, "up_block_types": ["UpBlock2D"] * 64},
    {"block_out_channels": {"4": 8}},
    {"down_block_types": [None, "DownBlock2D"]},
    {"down_block_types": ["os.system", "DownBlock2D"]},
    {"layers_per_block": 10**9},
    {"layers_per_block": None},
    {"norm_num_groups": 0},
    {"norm_num_groups": -2},
    {"norm_eps": float("nan")},
    {"norm_eps": float("inf")},
    {"norm_eps": "1e-5"},
    {"dropout": 2.0},
    {"dropout": -1.0},
    {"sample_size": [8]},
    {"sample_size": [8, 8, 8]},
    {"sample_size": -8},
    {"sample_size": "8"},
    {"time_embedding_dim": 10**12},
    {"num_class_embeds": 10**12},
    {"num_class_embeds": -1},
    {"attention_head_dim": 0},
    {"act_fn": ["silu"]},
    {"act_fn": "__import__"},
    {"center_input_sample": 7},
    {"_class_name": "UNet2DConditionModel"},
    {"_class_name": ["UNet2DModel"]},
]


@pytest.mark.parametrize("change", BAD_UNET, ids=lambda change: str(change)[:50])
def test_absurd_networks(saved: Path, change: dict[str, Any]) -> None:
    edit(saved / "unet" / "config.json", **change)
    refused(lambda: UNet2DModel.from_pretrained(saved / "unet"), saved, "config.json")


def test_a_network_of_10_to_the_12_parameters(saved: Path) -> None:
    edit(saved / "unet" / "config.json", block_out_channels=[2**16, 2**18], attention_head_dim=8)
    refused(lambda: UNet2DModel.from_pretrained(saved / "unet"), saved, "config.json asks for", "parameters: refused")


BAD_SCHEDULER = [
    {"num_train_timesteps": value} for value in (True, 0, -5, 2.5, "20", None, float("nan"), 10**12, 10**30, [20])
]
for _key in ("beta_start", "beta_end", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"):
    BAD_SCHEDULER += [
        {_key: value} for value in (True, float("nan"), float("inf"), -float("inf"), "0.1", None, [0.1], -1.0)
    ]
BAD_SCHEDULER += [
    {"clip_sample": "no"},
    {"beta_start": 10**400},
    {"clip_sample_range": 10**400},
    {"thresholding": 1.5},
    {"rescale_betas_zero_snr": None},
    {"prediction_type": 5},
    {"prediction_type": ["epsilon"]},
    {"beta_schedule": {"linear": 1}},
    {"timestep_spacing": None},
    {"steps_offset": float("inf")},
    {"steps_offset": 10**30},
    {"trained_betas": [0.1] * 100_000},
    {"trained_betas": ["0.1"] * 20},
    {"trained_betas": [[0.1]] * 20},
    {"trained_betas": "0.1"},
    {"trained_betas": [float("nan")] * 20},
]


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("change", BAD_SCHEDULER, ids=lambda change: str(change)[:50])
def test_absurd_schedules(saved: Path, kind: type, change: dict[str, Any]) -> None:
    edit(saved / "scheduler" / "scheduler_config.json", **change)
    refused(lambda: kind.from_pretrained(saved / "scheduler"), saved, "scheduler_config.json")
    with pytest.raises(ValueError):
        kind(**change)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "expected an object"),
        (b"null", "expected an object"),
        (b"[" * 200_000 + b"]" * 200_000, "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b'{"in_channels": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"in_channels": 1, "in_channels": 2}', "'in_channels' is there twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "'b' is there twice"),
        (b'\xef\xbb\xbf{"in_channels": 1}', "not valid JSON"),
        (b'{"in_channels": 1} {}', "not valid JSON"),
    ],
    ids=[
        "empty",
        "cut",
        "binary",
        "list",
        "null",
        "deep",
        "deep objects",
        "digits",
        "twice",
        "twice inside",
        "byte order mark",
        "more after it",
    ],
)
def test_files_that_are_no_configuration(saved: Path, content: bytes, words: str) -> None:
    for path, load in (
        (saved / "scheduler/scheduler_config.json", lambda: DDPMScheduler.from_pretrained(saved / "scheduler")),
        (saved / "unet/config.json", lambda: UNet2DModel.from_pretrained(saved / "unet")),
        (saved / "model_index.json", lambda: DiffusionPipeline.from_pretrained(saved)),
    ):
        path.write_bytes(content)
        refused(load, saved, path.name, words)


def test_numbers_that_are_not_finite(saved: Path) -> None:
    """Diffusers' DPMSolverMultistepScheduler writes -Infinity under a key that is not used here."""
    path = saved / "scheduler/scheduler_config.json"
    edit(path, lambda_min_clipped=-math.inf)
    loaded = DDIMScheduler.from_pretrained(saved / "scheduler")
    loaded.save_pretrained(saved / "again")
    assert DDPMScheduler.from_pretrained(saved / "again").config.lambda_min_clipped == -math.inf
    for value in (math.inf, math.nan):
        edit(path, beta_end=value)
        refused(lambda: DDPMScheduler.from_pretrained(saved / "scheduler"), saved, path.name, "numbers finite")


def test_keys_that_are_python_s_own_names(saved: Path) -> None:
    names = ("self", "cls", "config", "kwargs", "__class__", "__init__", "forward")
    for path, load in (
        (saved / "scheduler/scheduler_config.json", lambda: DDIMScheduler.from_pretrained(saved / "scheduler")),
        (saved / "unet/config.json", lambda: UNet2DModel.from_pretrained(saved / "unet")),
    ):
        edit(path, **dict.fromkeys(names, 1))
        loaded = load()
        assert all(loaded.config[name] == 1 for name in names if name[0] != "_")
        assert callable(loaded.save_config) and isinstance(loaded.config, dict)


def test_a_configuration_of_gigabytes(saved: Path) -> None:
    with (saved / "model_index.json").open("r+b") as file:
        file.truncate(10**10)  # a hole: takes no space on the disk
    refused(lambda: DDPMPipeline.from_pretrained(saved), saved, "no configuration is that large")


# ---------------------------------------------------------------- pipelines


@pytest.mark.parametrize(
    "change",
    [
        {"unet": ["diffusers", "UNet2DConditionModel"]},
        {"unet": ["os", "system"]},
        {"unet": ["../evil", "UNet2DModel"]},
        {"unet": ["diffusers", "../../UNet2DModel"]},
        {"unet": ["diffusers", ["UNet2DModel"]]},
        {"unet": [None, None]},
        {"unet": 5},
        {"scheduler": ["diffusers", "PNDMScheduler"]},
        {"scheduler": {"a": "DDPMScheduler"}},
        {"vae": ["diffusers", "AutoencoderKL"]},
        {"../unet": ["diffusers", "UNet2DModel"]},
    ],
    ids=str,
)
def test_parts_that_are_not_known(saved: Path, change: dict[str, Any]) -> None:
    edit(saved / "model_index.json", **change)
    refused(lambda: DDPMPipeline.from_pretrained(saved), saved, "model_index.json")


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "DiffusionPipeline", "os.system", ["DDPMPipeline"], None, 5]
)
def test_a_pipeline_of_another_class(saved: Path, name: Any) -> None:
    edit(saved / "model_index.json", _class_name=name)
    words = ("model_index.json", "DDPMPipeline, DDIMPipeline")
    refused(lambda: DiffusionPipeline.from_pretrained(saved), saved, *words)
    DDPMPipeline.from_pretrained(saved)


@pytest.mark.parametrize("subfolder", ["..", "../saved", "/etc", "unet/../../x"])
def test_a_subfolder_that_climbs_out(saved: Path, subfolder: str) -> None:
    for kind in (UNet2DModel, DDPMScheduler, DDPMPipeline):
        refused(lambda kind=kind: kind.from_pretrained(saved, subfolder=subfolder), saved, "leaves the model's folder")


def test_saving_replaces_a_link_and_leaves_its_target(saved: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links to shared files: saving over them must not write through."""
    for name in ("unet/config.json", f"unet/{SAFETENSORS}", "model_index.json", "scheduler/scheduler_config.json"):
        target = tmp_path / Path(name).name
        target.write_text("shared")
        (saved / name).unlink()
        (saved / name).symlink_to(target)
    tiny_pipeline().save_pretrained(saved)
    assert {path.read_text() for path in tmp_path.glob("*") if path.is_file()} == {"shared"}
    DDPMPipeline.from_pretrained(saved)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "8KB"}], ids=str)
def test_saving_that_breaks_off_leaves_the_old_model_whole(
    saved: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at any file: the folder holds the old weights and nothing else; never some old and some new."""
    unet = saved / "unet"
    tiny_pipeline().unet.save_pretrained(unet, **options)
    before = {path.name: path.read_bytes() for path in unet.iterdir()}
    other = UNet2DModel(**TINY | {"layers_per_block": 2})
    real, written, fails_at = os.fsync, 0, 0

    def full_disk(handle: int) -> None:
        nonlocal written
        written += 1
        if written == fails_at:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full_disk)
    for attempt in range(1, 100):
        written, fails_at = 0, attempt
        try:
            other.save_pretrained(unet, **options)
        except OSError:
            assert {path.name: path.read_bytes() for path in unet.iterdir()} == before
        else:
            break
    assert fails_at > 2 + 5 * bool(options)
    assert UNet2DModel.from_pretrained(unet).num_parameters() == other.num_parameters()


def test_the_default_size_of_a_shard(tmp_path: Path) -> None:
    """Diffusers' pipelines give None for it."""
    tiny_pipeline().save_pretrained(tmp_path, max_shard_size=None)
    assert (tmp_path / "unet" / SAFETENSORS).is_file()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for thing in (tiny_pipeline(), tiny_pipeline().unet, tiny_pipeline().scheduler):
        refused(lambda thing=thing: thing.save_pretrained(tmp_path / "file"), tmp_path, "is a file")
    assert (tmp_path / "file").read_text() == "kept"


def test_dtypes_that_are_none(saved: Path) -> None:
    for dtype in (torch.int8, "float16", 16):
        refused(lambda dtype=dtype: UNet2DModel.from_pretrained(saved / "unet", dtype=dtype), saved, kind=TypeError)
    assert TINY["in_channels"] == 1
