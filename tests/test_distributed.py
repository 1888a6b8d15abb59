"""Two processes draw, learn and save what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_process
import pytest
import torch
from safetensors.torch import load_file
from small_runs import differences

from ddpm_from_scratch.training import load_checkpoint, processes

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


def found(folder: Path) -> list[dict[str, Any]]:
    """What each process saw."""
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("found_*.pt"))]


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, Any]:
    """What one process does: this one."""
    (tmp_path / "alone").mkdir()
    distributed_process.main(tmp_path / "alone")
    return found(tmp_path / "alone")[0]


def test_two_processes_do_what_one_does(tmp_path: Path, alone: dict[str, Any]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *TORCHRUN, distributed_process.__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = found(tmp_path)
    assert first["done"] == second["done"] == alone["done"] == 6
    # the same draws: the two halves of every batch, to the bit
    for whole, left, right in zip(alone["drawn"], first["drawn"], second["drawn"], strict=True):
        for together, *halves in zip(whole, left, right, strict=True):
            assert len(halves[0]) == len(halves[1]) == 4 and torch.equal(torch.cat(halves), together)
    # the same averaged weights on both, and those of one process up to the rounding of sums
    assert not differences(first["weights"], second["weights"])
    for name, weight in alone["weights"].items():
        if not name.endswith("to_k.bias"):  # softmax does not see it: its gradient is rounding, which AdamW enlarges
            torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=1e-4)
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5) and second["losses"] == []
    # one stops, all stop; and go on as if nothing had been
    assert first["stopped"] == second["stopped"] == 2
    assert not differences(first["resumed"], second["resumed"]) and not differences(first["resumed"], first["weights"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.pt",
        "model_index.json",
        "scheduler",
        "unet",
    ]
    # what one cannot load ends all, with a checkpoint of the steps done
    assert first["damaged"] == "another process could not load its images" and second["damaged"] == "damaged"
    checkpoint = load_checkpoint(tmp_path / "damaged")
    assert checkpoint is not None and checkpoint["step"] == 2 and "damaged" not in alone
    assert first["refused"] == second["refused"] == "batch_size=7 does not divide among 2 processes"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="Accelerate does not join processes that train on MPS")
def test_command_line_trains_once_with_two_processes(tmp_path: Path) -> None:
    """No accelerator and nothing said to Accelerate: the two must join, and one alone must speak and save."""
    command = ["-m", "ddpm_from_scratch", "train", "--dataset", "digits", "--output", str(tmp_path / "run")]
    command += ["--steps", "2", "--batch-size", "8", "--widths", "8,16", "--preview-every", "0", "--half"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("ACCELERATE_USE_CPU", None)
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained for 2 steps") == 1
    assert done.stderr.count("0/2 [") == 1  # the bar as it begins; its end may be drawn twice
    weights = load_file(tmp_path / "run" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


def test_processes_that_do_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # of a kind that Accelerate does not join
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes were started, but 1 would train together"):
        processes()
