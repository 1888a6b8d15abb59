"""Where a figure comes from: the weights, the machine, the command."""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Mapping
from os import cpu_count
from pathlib import Path
from typing import Any

import torch


def model_hash(model: torch.nn.Module) -> str:
    """Twelve hexadecimal digits that depend on every weight of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def machine(device: torch.device | str = "cpu") -> str:
    """The machine in general words: the kind of processor or GPU, their number, the version of PyTorch."""
    device = torch.device(device)
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
        if torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= (8, 0):
            what += ", convolutions in TF32"
    elif device.type == "mps":
        what = "Apple GPU"
    else:
        extension = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        what = (
            f"{cpu_count()} CPU cores ({platform.machine()}, {extension}), {threads} thread{'s' * (threads > 1)} used"
        )
    return f"{what}; PyTorch {torch.__version__.split('+')[0]}"


def command_line(name: str, model: str, options: Mapping[str, Any]) -> str:
    """The command that repeats a result, without the folders of the machine that it was made on.

    Args:
        name: "eval".
        model: as given; of a folder its last name is kept.
        options: option → value; None and False are left out, True stands alone, and a `Path` becomes `DIR`.
    """
    words = ["ddpm", name, model if not Path(model).is_dir() else Path(model).resolve().name]
    for option, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{option}")
        if value is not True:
            words.append("DIR" if isinstance(value, Path) else str(value))
    return shlex.join(words)
