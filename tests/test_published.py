"""The stand-in for the published networks: laid out like them, and found quickly where there is no network."""

from __future__ import annotations

import time
from pathlib import Path

import diffusers
import pytest
import torch
from hub_stand_in import running_hub
from huggingface_hub import constants

from ddpm_from_scratch import DDPMPipeline, UNet2DModel
from ddpm_from_scratch.course import published

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels, so that the tests need no half a gigabyte."""
    options = {"block_out_channels": [16, 16, 32, 32, 64, 64], "norm_num_groups": 4}
    monkeypatch.setattr(published, "UNET", published.UNET | options)


def test_the_stand_in_opens_in_both_libraries(tmp_path: Path) -> None:
    published.write_stand_in(tmp_path / "repository")
    mine = DDPMPipeline.from_pretrained(tmp_path / "repository")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "repository")
    state = torch.load(tmp_path / "repository" / "diffusion_pytorch_model.bin")
    assert any(".query." in key for key in state) and not any(".to_q." in key for key in state)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.unet.state_dict().items())


def test_the_configuration_is_the_published_one() -> None:
    with torch.device("meta"):
        model = UNet2DModel(**published.UNET | {"block_out_channels": [128, 128, 256, 256, 512, 512]})
    assert model.num_parameters() > 100_000_000


def test_offline_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        assert published.within_reach()
        assert published.published("google/x", tmp_path) == ("google/x", "google/x from the hub")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not published.within_reach()


def test_without_network_a_folder_is_made_once_and_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    started = time.monotonic()
    first, what = published.published("google/one", tmp_path)
    made = (Path(first) / "config.json").stat().st_mtime_ns
    second, _ = published.published("google/other", tmp_path)
    assert time.monotonic() - started < 20
    assert first == second and (Path(second) / "config.json").stat().st_mtime_ns == made
    assert what == "a stand-in for google/one (no network): its configuration at 32×32, random weights"
