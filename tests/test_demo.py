"""`make demo` with a tiny budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_from_scratch.course import demo


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
