"""Few steps against many on the shipped digits model: the measured table of lesson 08.

    python -m ddpm_from_scratch.course.few_steps

measures it anew, cell by cell; what is finished is kept, so it may be stopped and called again.
"""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_from_scratch.classifier import FeatureClassifier
from ddpm_from_scratch.data import to_model_range, to_pixels
from ddpm_from_scratch.evaluation import judge
from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.reference import Reference, shipped_classifier
from ddpm_from_scratch.schedulers import DDPMScheduler

COMMAND = "python -m ddpm_from_scratch.course.few_steps"
RESULTS = Path(str(files("ddpm_from_scratch"))) / "assets" / "results" / "few_steps_digits.json"
STEPS = (10, 20, 50, 100, 1000)
MANY = 1000
SAMPLERS: dict[str, dict[str, Any] | None] = {
    "η = 0": {"eta": 0.0},
    "η = 1": {"eta": 1.0},
    "σ̂": None,
    "η = 1, ε re-derived": {"eta": 1.0, "use_clipped_model_output": True},
}
"""Arguments of `DDIMPipeline` by name; None stands for DDPM with σ² = β, the σ̂ of Song et al."""
SAMPLES, SEED, SHOWN = 200, 8, 8


@torch.inference_mode()
def samples(unet: Any, sampler: str, steps: int, count: int = SAMPLES, seed: int = SEED) -> Tensor:
    """Images made in `steps` steps, (count, C, H, W) in [-1, 1]; one seed gives every sampler the same x_T."""
    scheduler = DDPMScheduler(variance_type="fixed_large")
    options = SAMPLERS[sampler]
    pipeline: Any = DDPMPipeline(unet, scheduler) if options is None else DDIMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    made = pipeline(count, generator, num_inference_steps=steps, output_type="pt", **(options or {})).images
    return 2 * made - 1


def distance(images: Tensor, classifier: FeatureClassifier, reference: Reference) -> float:
    """Fréchet distance of images in [-1, 1] to the classifier's training images."""
    return judge(to_pixels(images), classifier, reference).frechet


def load() -> dict[str, Any]:
    """The stored table: `cells` by sampler and number of steps, and how they were made."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def load_images() -> dict[str, Tensor]:
    """The first images of every sampler in 1000 steps, each (SHOWN, 1, 16, 16) in [-1, 1]."""
    sheet = torch.from_numpy(np.array(Image.open(RESULTS.with_suffix(".png"))))
    side = sheet.shape[1] // SHOWN
    rows = to_model_range(sheet.reshape(-1, side, SHOWN, side).transpose(1, 2)[:, :, None])  # (rows, SHOWN, 1, H, W)
    return dict(zip(load()["shown"], rows, strict=True))


def main() -> None:
    """Makes the images and measures the cells that are missing, 1000 steps last."""
    unet = DDIMPipeline.from_pretrained("digits").unet.eval()
    classifier, reference = shipped_classifier("digits")
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"command": COMMAND, "model": model_hash(unet), "samples": SAMPLES, "seed": SEED}
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread"
    table = load() if RESULTS.exists() else {}
    if {key: table.get(key) for key in facts} != facts:
        table = {**facts, "machine": machine, "seconds": {}, "cells": {name: {} for name in SAMPLERS}, "shown": []}
        RESULTS.with_suffix(".png").unlink(missing_ok=True)
    for name in SAMPLERS:
        if name not in table["shown"]:
            _append(to_pixels(samples(unet, name, MANY, SHOWN)))
            table["shown"].append(name)
            _write(table)
    for steps in STEPS:
        for name in SAMPLERS:
            if str(steps) in table["cells"][name]:
                continue
            began = time.process_time()
            images = samples(unet, name, steps)
            table["seconds"][f"{name}, {steps} steps"] = round(time.process_time() - began, 1)
            table["cells"][name][str(steps)] = round(distance(images, classifier, reference), 3)
            _write(table)
            print(name, steps, table["cells"][name][str(steps)], flush=True)


def _write(table: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _append(pixels: Tensor) -> None:
    """Adds one row of images to the stored sheet."""
    path = RESULTS.with_suffix(".png")
    row = pixels[:, 0].transpose(0, 1).flatten(1).numpy()  # (SHOWN, H, W) → (H, SHOWN · W)
    above = [np.array(Image.open(path))] if path.exists() else []
    Image.fromarray(np.concatenate([*above, row])).save(path, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
