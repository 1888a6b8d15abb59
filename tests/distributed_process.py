"""One of several processes that train together; each writes what it saw. Argument: the output folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from small_runs import config, digits, small_model, weights
from torch import nn

from ddpm_from_scratch.data import ImageDataset
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import Progress, StopTraining, train


class Damaged(ImageDataset):
    """Digits that the second process cannot read in its third step: it reads 17 before the first, then 4 a step."""

    reads = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        if os.environ.get("RANK") == "1" and self.reads > 17 + 2 * 4:
            raise ValueError("damaged")
        return super().__getitem__(index)


def main(output: Path) -> None:
    rank = int(os.environ.get("RANK", 0))
    # the first process's weights count, whatever the others have
    model, scheduler, drawn = small_model(seed=rank), DDPMScheduler(), []

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        drawn.append((args[0].clone(), args[1].clone()))

    losses: list[float] = []

    def watch(progress: Progress) -> None:
        losses.append(progress.loss)

    handle = model.register_forward_pre_hook(keep)
    done = train(model, scheduler, digits(), config(), output / "run", [watch])
    handle.remove()
    found: dict[str, Any] = {"done": done, "weights": weights(model), "drawn": drawn, "losses": losses}

    def stop(progress: Progress) -> None:  # called on the main process alone; all must stop
        if progress.step == 2:
            raise StopTraining

    found["stopped"] = train(small_model(), scheduler, digits(), config(), output / "stopped", [stop])
    resumed = small_model(seed=rank + 5)
    train(resumed, scheduler, digits(), config(), output / "stopped", resume=True)
    found["resumed"] = weights(resumed)
    try:
        train(small_model(), scheduler, digits(), config(batch_size=7), None)
    except ValueError as error:
        found["refused"] = str(error)
    try:
        train(small_model(), scheduler, Damaged(digits().pixels, digits().labels), config(), output / "damaged")
    except (ValueError, OSError) as error:
        found["damaged"] = str(error)
    torch.save(found, output / f"found_{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
