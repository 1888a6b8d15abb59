"""A run of `train` in a process of its own, for the tests that kill, interrupt or multiply it.

Arguments: the output folder and a JSON object: fields of `TrainingConfig`, and `pause`, the seconds between two steps.
Prints the steps done.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from small_runs import config, digits, small_model

from ddpm_from_scratch.callbacks import LogFile
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import train


def main(output: Path, options: dict[str, float]) -> None:
    pause = options.pop("pause", 0.0)
    log = LogFile(output / "log.csv", every=2)
    model, settings = small_model(dropout=0.2), config(**options)
    print("training", flush=True)
    done = train(model, DDPMScheduler(), digits(), settings, output, [log, lambda _: time.sleep(pause)], resume=True)
    print(f"done {done}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
