"""The published `google/ddpm-*-256` networks, or without network a folder laid out like theirs, with random weights."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ..hub import LEGACY_ATTENTION
from ..models import UNet2DModel

SIDE = 32
"""Side of the stand-in's images: the published one is 256, which takes 64 times as long."""

UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": SIDE,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}
INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": "0.1.1",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def within_reach(seconds: float = 2.0) -> bool:
    """Whether the hub takes a connection within `seconds`; False at once where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    address, answers = urlsplit(constants.ENDPOINT), []
    port = address.port or (443 if address.scheme == "https" else 80)

    def knock() -> None:
        try:
            socket.create_connection((address.hostname or "", port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            pass

    if not constants.HF_HUB_OFFLINE:
        knocking = threading.Thread(target=knock, daemon=True)  # looking up a name has no time limit of its own
        knocking.start()
        knocking.join(seconds)
    return bool(answers)


def published(repository: str, folder: Path) -> tuple[str, str]:
    """What `from_pretrained` should open for `repository`, and a sentence that says what that is.

    Where the hub is within reach, the repository itself. Else a folder below `folder` with the same files at the same
    places, the published configuration with images of 32×32, and random weights; it is made once for all repositories.
    """
    if within_reach():
        return repository, f"{repository} from the hub"
    made = folder / "google-ddpm"
    if not made.is_dir():
        write_stand_in(made)
    return str(made), f"a stand-in for {repository} (no network): its configuration at {SIDE}×{SIDE}, random weights"


def write_stand_in(folder: Path) -> None:
    """A repository as they were in 2022: all files at the top, a `.bin`, the attention's parameters by older names."""
    folder.mkdir(parents=True)
    for name, content in (("model_index.json", INDEX), ("config.json", UNET), ("scheduler_config.json", SCHEDULER)):
        (folder / name).write_text(json.dumps(content, indent=2))
    state = UNet2DModel(**UNET).state_dict()
    torch.save({older_name(key): value for key, value in state.items()}, folder / "diffusion_pytorch_model.bin")


def older_name(key: str) -> str:
    """A parameter's name in 2022 (`to_q` → `query`, ...)."""
    for old, new in LEGACY_ATTENTION.items():
        key = key.replace(f".{new}.", f".{old}.") if ".attentions." in key else key
    return key
