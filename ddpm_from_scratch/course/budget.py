"""Sample quality against training budget: the digits model's own training, judged on its way (lesson 11).

    python -m ddpm_from_scratch.course.budget FOLDER

trains as the model's card says, and at some steps lets the classifier judge samples of the averaged weights. It may be
stopped and called again. What it writes, `FOLDER/budget.json`, is stored as `course/results/digits_budget.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..callbacks import LogFile, ProgressBar
from ..config import new_folder, write_file
from ..data import load_dataset
from ..evaluation import SamplingSettings, generate
from ..judges import named_judge
from ..models import small_unet
from ..pipelines import DDIMPipeline
from ..provenance import machine, model_hash
from ..schedulers import DDPMScheduler
from ..training import Callback, Progress, TrainingConfig, modes_kept, train

COMMAND = "python -m ddpm_from_scratch.course.budget FOLDER"
STEPS = (125, 250, 500, 1000, 2000, 4000)
SAMPLES, SETTINGS = 500, SamplingSettings("ddim", 50, precision="bf16")


class JudgedOnTheWay:
    """A callback: figures of samples of the averaged weights after each of the given steps, kept in a JSON file."""

    def __init__(self, path: Path, steps: Sequence[int], num_samples: int) -> None:
        self.path, self.steps, self.num_samples = path, steps, num_samples
        self.judge = named_judge("digits")
        self.figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @torch.no_grad()
    def __call__(self, progress: Progress) -> None:
        if progress.step not in self.steps:
            return
        pipeline = DDIMPipeline(progress.model, progress.scheduler)
        with progress.ema.averaged(), modes_kept(progress.model):
            samples = generate(pipeline, self.num_samples, SETTINGS)
        self.figures[str(progress.step)] = asdict(self.judge.figures(samples))
        write_file(self.path, json.dumps(self.figures).encode())


def measure(folder: str | Path, steps: Sequence[int] = STEPS, num_samples: int = SAMPLES) -> dict[str, Any]:
    """Trains and judges, or goes on with it, and writes `budget.json`.

    Args:
        folder: of the training run and its figures.
        steps: after which the model is judged; the last one ends the training. A row's loss is the mean over as many
            steps before it as the first of them counts.
        num_samples: per judgement.

    Returns:
        What is written: one row per step, and how it was made.
    """
    root = new_folder(folder)
    data, scheduler = load_dataset("digits", image_size=16), DDPMScheduler()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = small_unet((1, 16, 16), widths=(32, 64))
    config = TrainingConfig(
        steps=steps[-1], batch_size=64, learning_rate=1e-3, warmup_steps=min(200, steps[0]), ema_decay=0.998
    )
    judged = JudgedOnTheWay(root / "figures.json", steps, num_samples)
    log, seconds = LogFile(root / "log.csv", every=1), [0.0]
    callbacks: list[Callback] = [ProgressBar(), log, judged, lambda progress: seconds.append(progress.seconds)]
    if train(model, scheduler, data, config, root, callbacks, resume=True) < steps[-1]:
        raise SystemExit(f"stopped: call again to go on from the checkpoint in {root.name}")
    lines = [line.split(",") for line in log.path.read_text(encoding="utf-8").splitlines()[1:]]
    losses = [float(line[1]) for line in lines]
    result = {
        "command": COMMAND,
        "model_hash": model_hash(model),
        "machine": machine(model.device),
        "minutes": seconds[-1] / 60,
        "batch_size": config.batch_size,
        "sampler": SETTINGS.facts(),
        "rows": [
            {
                "step": step,
                "loss": sum(losses[step - steps[0] : step]) / steps[0],
                "figures": judged.figures[str(step)],
            }
            for step in steps
        ],
    }
    write_file(root / "budget.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


if __name__ == "__main__":
    measure(sys.argv[1])
