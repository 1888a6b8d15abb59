"""Training killed, interrupted and resumed in processes of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import training_process
from small_runs import differences

from ddpm_from_scratch.training import CHECKPOINT, load_checkpoint

SCRIPT = Path(__file__).with_name("training_process.py")
OPTIONS: dict[str, Any] = {"steps": 12, "checkpoint_minutes": 1e-9}


def start(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Training in `folder`, resumed where there is a checkpoint, in a process group of its own."""
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(OPTIONS | options)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def step_of(folder: Path) -> int:
    """Of the checkpoint; it must be whole whenever it is looked at."""
    state = load_checkpoint(folder)
    return 0 if state is None else int(state["step"])


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    while step_of(folder) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def finish(folder: Path) -> int:
    """Trains to the end, here: a process of its own takes longer to start than to train. The steps done."""
    training_process.main(folder, dict(OPTIONS))
    state = load_checkpoint(folder)
    assert state is not None and (folder / "model_index.json").is_file()
    return int(state["step"])


def kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # a Mac's word for a group that has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def assert_same_run(whole: Path, cut: Path) -> None:
    states = [torch.load(folder / CHECKPOINT, weights_only=True) for folder in (whole, cut)]
    for state in states:
        state.pop("seconds")
    assert not differences(*states)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (whole / weights).read_bytes() == (cut / weights).read_bytes()
    logs = [[line.rsplit(",", 1)[0] for line in (f / "log.csv").read_text().splitlines()] for f in (whole, cut)]
    assert [line.split(",")[0] for line in logs[0]] == [line.split(",")[0] for line in logs[1]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes: the same sums, to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(folder) == 12
    return folder


def test_killed_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.1)
    wait_for_step(tmp_path, process, 3)
    kill(process)
    reached = step_of(tmp_path)
    assert 3 <= reached < 12
    assert finish(tmp_path) == 12
    assert_same_run(whole, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_until_it_is_through(whole: Path, tmp_path: Path, seed: int) -> None:
    """Kills fall into steps, checkpoints and the saving of the model alike."""
    moments = random.Random(seed)
    for _ in range(5):
        process = start(tmp_path)
        assert process.stdout is not None and process.stdout.readline() == "training\n"
        time.sleep(moments.uniform(0, 1.5))
        kill(process)
        step_of(tmp_path)
    finish(tmp_path)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, launchers and a closed terminal reach the whole process group, those that load images too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    process = start(tmp_path, pause=0.1, num_workers=1)
    signal.signal(signal.SIGHUP, before)
    wait_for_step(tmp_path, process, 2)
    os.killpg(process.pid, number)
    out, err = process.communicate()
    assert process.returncode == 0 and "Traceback" not in err
    done = int(out.split()[-1])
    assert 2 <= done < 12 and step_of(tmp_path) == done
    assert (tmp_path / "model_index.json").is_file()
    assert finish(tmp_path) == 12
    saved = [load_checkpoint(folder) for folder in (whole, tmp_path)]
    assert saved[0] and saved[1] and not differences(saved[0]["ema"], saved[1]["ema"])


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    """In the middle of a step that would last ten minutes."""
    process = start(tmp_path, pause=600, checkpoint_minutes=10)
    while not (tmp_path / "log.csv").exists():  # written in the first step, before the pause
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    while process.poll() is None:  # a machine under load may take two signals for one
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, err = process.communicate()
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    assert not (tmp_path / CHECKPOINT).exists()
