"""`make demo` with a tiny budget."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_from_scratch.callbacks import ProgressBar
from ddpm_from_scratch.course import demo
from ddpm_from_scratch.pipelines import DDIMPipeline
from ddpm_from_scratch.training import Progress


def test_the_demo_writes_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "DDPM_STEPS", 3)
    monkeypatch.setattr(demo, "DDIM_STEPS", 2)
    state = torch.get_rng_state()
    for name in ("one", "two"):
        demo.main(["--steps", "2", "--output", str(tmp_path / name / "a b")])
    path = tmp_path / "two" / "a b" / "demo.png"
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(path.resolve()))
    assert path.read_bytes() == (tmp_path / "one" / "a b" / "demo.png").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    picture = np.asarray(Image.open(path).convert("L"))
    assert picture.shape[1] >= 1000 and 0.1 < (picture < 128).mean() < 0.9


class Interrupted(ProgressBar):
    """Ctrl-C comes in the second step."""

    def __call__(self, progress: Progress) -> None:
        super().__call__(progress)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name", "fault"), [(demo, "ProgressBar", Interrupted), (DDIMPipeline, "__call__", interrupted)]
)
def test_ctrl_c_ends_the_demo_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: object,
    name: str,
    fault: object,
) -> None:
    monkeypatch.setattr(demo, "DDPM_STEPS", 3)
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--steps", "3", "--output", str(tmp_path)])
    assert stopped.value.code == 130 and not list(tmp_path.iterdir())
    out, err = capsys.readouterr()
    assert err.endswith("\nmake demo: stopped before its picture was drawn\n") and "Traceback" not in err
    assert ("DDPM, 3 steps" in err) is (fault is interrupted)
