"""A small network, a few images and short runs of `train`, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.models import UNet2DModel
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import TrainingConfig, train

DEFAULTS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "mixed_precision": "no",
}


def small_model(seed: int = 0, **changes: Any) -> UNet2DModel:
    """An 8×8 network of 0.1 M parameters, always the same for the same seed."""
    values: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**values | changes)


def digits(count: int = 24) -> ImageDataset:
    """The first `count` digits."""
    everything = load_dataset("digits")
    assert isinstance(everything, ImageDataset)
    return ImageDataset(everything.pixels[:count], everything.labels[:count], everything.classes, "digits")


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**DEFAULTS | changes)


def run(output: Path | None = None, model: UNet2DModel | None = None, **options: Any) -> UNet2DModel:
    """Trains `model` (by default `small_model()`) on `data` (by default `digits()`) and returns it."""
    model = small_model() if model is None else model
    arguments = {key: options.pop(key) for key in ("callbacks", "resume") if key in options}
    data = options.pop("data") if "data" in options else digits()
    scheduler = options.pop("scheduler") if "scheduler" in options else DDPMScheduler()
    train(model, scheduler, data, config(**options), output, **arguments)
    return model


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two nested structures of tensors and plain values differ in any bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [*left, *(key for key in right if key not in left)]
        return [d for key in keys for d in differences(left.get(key), right.get(key), f"{path}/{key}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        return [d for i, pair in enumerate(zip(left, right, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return [] if left.dtype == right.dtype and torch.equal(left, right) else [path]
    return [] if type(left) is type(right) and left == right else [path]
