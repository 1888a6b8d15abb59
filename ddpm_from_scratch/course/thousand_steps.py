"""Digits in a thousand steps, and what clipping does to them: the stored pictures of lesson 08.

    python -m ddpm_from_scratch.course.thousand_steps

makes them anew, row by row; what is finished is kept, so it may be stopped and called again.
"""

from __future__ import annotations

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_from_scratch.config import write_file
from ddpm_from_scratch.data import to_model_range, to_pixels
from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline
from ddpm_from_scratch.provenance import machine, model_hash
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

COMMAND = "python -m ddpm_from_scratch.course.thousand_steps"
RESULTS = Path(str(files("ddpm_from_scratch"))) / "course" / "results" / "digits_thousand_steps.json"
SEED, COUNT, MANY = 8, 8, 1000
"""Seed of the eight x_T that all rows share, their number, and the steps of the long rows."""

WAYS: dict[str, tuple[bool, bool]] = {
    "not clipped": (False, False),
    "clipped, ε kept": (True, False),
    "clipped, ε re-derived": (True, True),
}
"""How x̂_0 is clipped at η = 0: `clip_sample` and `use_clipped_model_output` by name."""
CLIPPING = [(way, steps) for steps in (10, 100, MANY) for way in WAYS]
SAMPLERS = {"η = 0": ("clipped, ε kept", MANY), "η = 1": ("η = 1", MANY), "σ̂": ("σ̂", MANY)}
"""The stored row of each sampler in a thousand steps; clipped, ε kept, as Diffusers does by default."""
ROWS = [*CLIPPING, SAMPLERS["η = 1"], SAMPLERS["σ̂"]]


@torch.inference_mode()
def samples(unet: Any, way: str, steps: int, count: int = COUNT, seed: int = SEED) -> Tensor:
    """Images by a sampler of leading timesteps, (count, C, H, W) in [-1, 1]; one seed gives every way the same x_T.

    Args:
        way: a key of `WAYS` (η = 0), "η = 1" or "σ̂", both clipped.
    """
    pipeline: Any
    options: dict[str, Any] = {}
    if way == "σ̂":
        pipeline = DDPMPipeline(unet, DDPMScheduler(variance_type="fixed_large"))
    else:
        clipped, derived = WAYS.get(way, (True, False))
        pipeline = DDIMPipeline(unet, DDIMScheduler(clip_sample=clipped))
        options = {"eta": float(way == "η = 1"), "use_clipped_model_output": derived}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    made = pipeline(count, generator, num_inference_steps=steps, output_type="pt", **options).images
    return 2 * made - 1


def distance(images: Tensor, others: Tensor) -> float:
    """Root mean square difference of two sets of images, over all pixels."""
    return float((images - others).square().mean().sqrt())


def load() -> dict[str, Any]:
    """The stored facts: `rows` (sampler, steps, minutes, distance from ten unclipped steps), and how they were made."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return stored


def load_images() -> dict[tuple[str, int], Tensor]:
    """The stored images by sampler and number of steps, each (COUNT, 1, H, W) in [-1, 1]."""
    sheet = torch.from_numpy(np.array(Image.open(RESULTS.with_suffix(".png"))))
    side = sheet.shape[1] // COUNT
    rows = to_model_range(sheet.reshape(-1, side, COUNT, side).transpose(1, 2)[:, :, None])  # (rows, COUNT, 1, H, W)
    return {(row["sampler"], row["steps"]): images for row, images in zip(load()["rows"], rows, strict=True)}


def main() -> None:
    """Makes the rows that are missing."""
    unet = DDIMPipeline.from_pretrained("digits").unet.eval()
    facts = {"command": COMMAND, "model": "digits", "model_hash": model_hash(unet), "seed": SEED, "machine": machine()}
    stored = load() if RESULTS.exists() else {}
    if {key: stored.get(key) for key in facts} != facts:
        stored = {**facts, "rows": []}
        RESULTS.with_suffix(".png").unlink(missing_ok=True)
    reference = samples(unet, *ROWS[0])
    for way, steps in ROWS[len(stored["rows"]) :]:
        began = time.monotonic()
        images = samples(unet, way, steps)
        minutes = round((time.monotonic() - began) / 60, 2)
        apart = round(distance(images, reference), 4)
        stored["rows"].append({"sampler": way, "steps": steps, "distance": apart, "minutes": minutes})
        _append(to_pixels(images))
        write_file(RESULTS, (json.dumps(stored, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"{way}, {steps} steps: {apart:.3f} from ten unclipped steps, {minutes:.1f} minutes", flush=True)


def _append(pixels: Tensor) -> None:
    """Adds one row of images to the stored sheet."""
    path = RESULTS.with_suffix(".png")
    row = pixels[:, 0].transpose(0, 1).flatten(1).numpy()  # (COUNT, H, W) → (H, COUNT · W)
    above = [np.array(Image.open(path))] if path.exists() else []
    Image.fromarray(np.concatenate([*above, row])).save(path, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
