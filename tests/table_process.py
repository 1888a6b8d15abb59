"""A table of few steps in a process of its own, to be killed: `python tests/table_process.py FOLDER`."""

from __future__ import annotations

import sys

import torch

from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.few_steps import Plan, few_steps_table
from ddpm_from_scratch.judges import Judge
from ddpm_from_scratch.metrics import gaussian_statistics
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.schedulers import DDPMScheduler

PLAN = Plan(
    rows=("0", "1", "sigma-hat"),
    columns=(2, 5),
    num_samples=12,
    long_columns=(),
    repeat_columns=(2,),
    repeat_seeds=2,
    quadratic_columns=(2,),
)
CELLS = 9


def small_pipeline(seed: int = 0) -> DDPMPipeline:
    """An untrained U-Net of 8×8 images."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        unet = small_unet((1, 8, 8), widths=(16, 32))
    return DDPMPipeline(unet.eval(), DDPMScheduler())


def small_judge(name: str = "means") -> Judge:
    """Means of 2×2 pixels as features, on the digits."""

    def extract(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels.double() / 255, 4).flatten(1)

    train, test = (load_dataset("digits", split) for split in ("train", "test"))
    assert isinstance(train, ImageDataset) and isinstance(test, ImageDataset)
    seen, held_out = extract(train.pixels), extract(test.pixels)
    statistics = gaussian_statistics(seen), gaussian_statistics(held_out)
    return Judge(name, (1, 8, 8), extract, *statistics, seen[:200], 0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    few_steps_table(small_pipeline(), small_judge(), sys.argv[1], PLAN, batch_size=5)
    print("done")
