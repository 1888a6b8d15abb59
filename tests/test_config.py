"""Configuration capture: what is kept, what is refused, and that nothing can change it."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import convert_to_fp32, send_to_device

import ddpm_from_scratch
from ddpm_from_scratch import (
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    FrozenConfig,
    Output,
    UNet2DModel,
    UNet2DOutput,
    register_to_config,
)
from ddpm_from_scratch.config import staged
from ddpm_from_scratch.schedulers import DDPMSchedulerOutput


class Example(ConfigMixin):
    @register_to_config
    def __init__(
        self,
        a: int = 2,
        b: float | None = 0.5,
        c: Sequence[int] = (2, 5),
        d: str = "text",
        e: bool = False,
        size: int | tuple[int, int] = 8,
    ) -> None:
        pass


def test_arguments_and_defaults_are_kept() -> None:
    example = Example(1, c=[6], _name_or_path="ignored")
    assert example.config == {
        "a": 1, "b": 0.5, "c": [6], "d": "text", "e": False, "size": 8, "_use_default_values": ["b", "d", "e", "size"]
    }  # fmt: skip
    assert example.config.a == example.config["a"] == 1
    with pytest.raises(AttributeError, match="no 'z'; it has a, b, c"):
        example.config.z  # noqa: B018


def test_the_caller_s_list_is_not_the_config_s() -> None:
    given = [1, 2]
    example = Example(c=given)
    given.append(3)
    assert example.config.c == [1, 2]


@pytest.mark.parametrize(
    "bad",
    [
        {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {"a": 10**30}, {"b": "x"}, {"b": float("nan")}, {"b": True},
        {"b": float("-inf")}, {"c": 5}, {"c": [1, "2"]}, {"c": "12"}, {"c": [True]}, {"d": 5}, {"d": None}, {"e": 1},
        {"e": "False"}, {"size": (8,)}, {"size": (8, 8.0)}, {"size": None},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_another_type_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"Example: {next(iter(bad))}=.* is not supported: it must be"):
        Example(**bad)  # type: ignore[arg-type]


def test_numbers_of_other_libraries_pass() -> None:
    assert Example(a=np.int64(3), b=np.float32(0.5), size=[8, 16]).config.size == [8, 16]
    assert Example(b=None).config.b is None and Example(b=3).config.b == 3


def test_an_unknown_override_is_named() -> None:
    """A key that a file brings along is kept; one that the caller wrote is a slip of the pen."""
    with pytest.raises(TypeError, match="Example has no dd, z; it takes a, b, c, d, e, size"):
        Example.from_config({"a": 7, "strange": 1}, z=1, dd="new")
    example, unused = Example.from_config({"a": 7}, return_unused_kwargs=True, z=1)
    assert unused == {"z": 1} and example.config.a == 7
    DDIMScheduler.from_config(DDPMScheduler().config, variance_type="fixed_large")  # the other class's: no slip


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match="Example: .*'f'; it takes a, b, c, d, e, size"):
        Example(f=1)  # type: ignore[call-arg]


def test_from_config(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING):
        example = Example.from_config({"a": 7, "strange": 1, "_private": 2}, d="new")
    assert example.config.a == 7 and example.config.d == "new" and example.config.strange == 1
    assert "Example does not use these configuration keys: strange" in caplog.text
    assert "_private" not in example.config
    same, unused = Example.from_config({"a": 7, "strange": 1}, return_unused_kwargs=True, other=3)
    assert same.config.a == 7 and unused == {"strange": 1, "other": 3}
    example.save_config(tmp_path)
    assert Example.from_config(tmp_path).config.a == Example.from_config(str(tmp_path)).config.a == 7
    with pytest.raises(FileNotFoundError, match="model has no config.json: is it a folder"):
        Example.from_config("someone/model")
    with pytest.raises(TypeError, match="not int"):
        Example.from_config(7)  # type: ignore[arg-type]


def test_between_schedulers_nothing_is_lost_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ddpm = DDPMScheduler(variance_type="fixed_large", beta_end=0.01)
    ddim = DDIMScheduler.from_config(ddpm.config, set_alpha_to_one=False)
    back = DDPMScheduler.from_config(ddim.config)
    assert back.config.variance_type == "fixed_large" and back.config.beta_end == 0.01
    assert DDIMScheduler.from_config(back.config).config.set_alpha_to_one is False
    assert caplog.text == ""


def test_it_cannot_be_written_but_copied_and_pickled() -> None:
    config = Example().config
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config and type(other) is FrozenConfig
    writes = (
        "config['a'] = 1", "config.a = 1", "del config['a']", "del config.a", "config.update(a=1)", "config.pop('a')",
        "config.popitem()", "config.clear()", "config.setdefault('z', 1)", "config |= {'a': 1}",
    )  # fmt: skip
    for write in writes:
        with pytest.raises(TypeError, match="read-only"):
            exec(write, {"config": config})
    assert dict(config)["a"] == 2


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    Example(a=4, size=(8, 16)).save_config(tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / "config.json"
    assert json.loads(path.read_text())["_class_name"] == "Example"
    assert Example.from_config_file(path).config == {
        "a": 4,
        "b": 0.5,
        "c": [2, 5],
        "d": "text",
        "e": False,
        "size": [8, 16],
    }
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_outputs_are_objects_dictionaries_and_tuples() -> None:
    x, x0 = torch.zeros(1), torch.ones(1)
    out = DDPMSchedulerOutput(prev_sample=x, pred_original_sample=x0)
    assert out.prev_sample is out["prev_sample"] is out[0] is out.to_tuple()[0] is x
    assert out[1] is x0 and out[:2] == (x, x0) and list(out) == ["prev_sample", "pred_original_sample"]
    assert len(DDPMSchedulerOutput(x)) == 1 and DDPMSchedulerOutput(x).pred_original_sample is None
    out.prev_sample = x0
    assert out["prev_sample"] is x0
    out["prev_sample"] = x
    assert out.prev_sample is x
    again = pickle.loads(pickle.dumps(out))
    assert isinstance(again, Output) and torch.equal(again.prev_sample, x)
    with pytest.raises(KeyError):
        out["nothing"]


def test_every_public_name_comes_from_the_package() -> None:
    for name in ddpm_from_scratch.__all__:
        assert getattr(ddpm_from_scratch, name) is not None
    modules = ("gaussian", "schedules", "schedulers", "models", "pipelines", "training", "callbacks", "images")
    for module_name in modules:
        module = __import__(f"ddpm_from_scratch.{module_name}", fromlist=["_"])
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", "").startswith(f"ddpm_from_scratch.{module_name}")
            if callable(value) and is_own and not name.startswith("_") and module_name != "training":
                assert name in ddpm_from_scratch.__all__, f"{module_name}.{name}"


# ---------------------------------------------------------------- outputs under the tools that take them apart


def network_output() -> UNet2DOutput:
    return UNet2DOutput(torch.full((1, 3, 2, 2), 0.5, dtype=torch.float16))


def test_accelerate_casts_and_moves_an_output() -> None:
    """It rebuilds a mapping as `type(mapping)({...})`: so a network prepared for mixed precision keeps `.sample`."""
    for rebuilt in (convert_to_fp32(network_output()), send_to_device(network_output(), "cpu")):
        assert type(rebuilt) is UNet2DOutput and rebuilt.sample is rebuilt["sample"] is rebuilt[0]
        assert rebuilt.sample.shape == (1, 3, 2, 2)
    assert convert_to_fp32(network_output()).sample.dtype == torch.float32
    both = convert_to_fp32(DDPMSchedulerOutput(torch.zeros(1).half(), torch.ones(1).half()))
    assert both.prev_sample.dtype == both.pred_original_sample.dtype == torch.float32


def test_torch_finds_the_tensors_of_an_output() -> None:
    """Without it DistributedDataParallel with a static graph, torch.func and torch.export see no tensor in it."""
    leaves = torch.utils._pytree.tree_leaves(network_output())
    assert [leaf.shape for leaf in leaves] == [(1, 3, 2, 2)]
    doubled = torch.utils._pytree.tree_map(lambda x: 2 * x, DDPMSchedulerOutput(torch.ones(1)))
    assert type(doubled) is DDPMSchedulerOutput and doubled.prev_sample.item() == 2
    assert doubled.pred_original_sample is None


def test_the_fields_of_an_output_are_fixed() -> None:
    out = DDPMSchedulerOutput(torch.zeros(1), torch.ones(1))
    for act in (
        lambda: out.pop("prev_sample"),
        lambda: out.popitem(),
        lambda: out.update(prev_sample=1),
        lambda: out.setdefault("more", 1),
        lambda: out.__delitem__("prev_sample"),
        lambda: out.clear(),
    ):
        with pytest.raises(TypeError, match="DDPMSchedulerOutput are fixed"):
            act()
    assert len(out) == 2


# ---------------------------------------------------------------- numbers of numpy and torch


def test_numbers_of_numpy_and_torch_become_python_s(tmp_path: Path) -> None:
    """`num_train_timesteps=np.int64(20)` was refused as "not an integer", and a head size of numpy's failed later."""
    scheduler = DDPMScheduler(num_train_timesteps=np.int64(20), beta_end=np.float64(0.03))
    assert type(scheduler.config.num_train_timesteps) is int and len(scheduler) == 20
    scheduler.save_config(tmp_path)
    assert DDPMScheduler.from_pretrained(tmp_path).config.beta_end == 0.03
    widths = {"block_out_channels": np.array([4, 8]), "norm_num_groups": np.int64(2), "layers_per_block": np.int8(1)}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    model = UNet2DModel(**widths, **blocks, sample_size=torch.tensor(8), attention_head_dim=np.int64(4))
    assert model.config.block_out_channels == [4, 8] and type(model.config.sample_size) is int
    assert model(torch.zeros(1, 3, 8, 8), 1).sample.shape == (1, 3, 8, 8)
    betas = np.array([0.1, 0.2])
    one, other = DDPMScheduler(2, trained_betas=betas), DDPMScheduler(2, trained_betas=torch.from_numpy(betas))
    assert one.config == other.config
    betas[0] = 0.9
    assert one.config.trained_betas == [0.1, 0.2]


def test_a_key_of_a_related_class_can_be_overridden() -> None:
    ddim = DDIMScheduler.from_config(DDPMScheduler(variance_type="fixed_large").config, variance_type="fixed_small")
    assert DDPMScheduler.from_config(ddim.config).config.variance_type == "fixed_small"


# ---------------------------------------------------------------- several files at once


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError, match=r"missing/b could not be written \(No such file"), staged() as write:
        write(tmp_path / "a", b"new")
        write(tmp_path / "missing" / "b", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    with staged() as write:
        write(tmp_path / "a", b"new")
        write(tmp_path / "b", b"new")
        assert (tmp_path / "a").read_text() == "old" and not (tmp_path / "b").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_lists_of_a_configuration_are_read_only_too() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=3, trained_betas=[0.1, 0.2, 0.3])
    betas = scheduler.config.trained_betas
    for write in (
        lambda: betas.__setitem__(0, 0.9),
        lambda: betas.__delitem__(0),
        lambda: betas.append(0.4),
        lambda: betas.extend([0.4]),
        lambda: betas.__iadd__([0.4]),
        lambda: betas.__imul__(2),
        lambda: betas.insert(0, 0.4),
        lambda: betas.pop(),
        lambda: betas.remove(0.1),
        lambda: betas.clear(),
        lambda: betas.sort(),
        lambda: betas.reverse(),
    ):
        with pytest.raises(TypeError, match="read-only.*from_config"):
            write()
    assert betas == [0.1, 0.2, 0.3] and isinstance(betas, list)
    for again in (pickle.loads(pickle.dumps(betas)), copy.deepcopy(betas)):
        assert again == betas and type(again) is type(betas)
    assert betas + [0.4] == [0.1, 0.2, 0.3, 0.4], "a new list is free"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_files_have_the_permissions_of_new_files(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        DDPMScheduler().save_pretrained(tmp_path)
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 2 and len(set(modes.values())) == 1, modes
