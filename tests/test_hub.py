"""Models from and to the hub, against a stand-in for it on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_stand_in import COMMIT, Hub, running_hub
from huggingface_hub import constants

from ddpm_from_scratch import DDIMPipeline, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel, cli, hub

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
REPOSITORY = "someone/digits"


def tiny_pipeline() -> DDPMPipeline:
    torch.manual_seed(0)
    return DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler(num_train_timesteps=20))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository that holds a pipeline with both kinds of weights, and an empty cache."""
    folder = tmp_path / "repository"
    tiny_pipeline().save_pretrained(folder)
    tiny_pipeline().unet.save_pretrained(folder / "unet", safe_serialization=False)
    tiny_pipeline().unet.save_pretrained(folder / "unet", variant="fp16")
    (folder / "README.md").write_text("# Digits")
    with running_hub() as served:
        served.add(REPOSITORY, folder)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield served


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


PARTS = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]


def test_only_the_files_needed_are_fetched(stand_in: Hub) -> None:
    pipeline = DiffusionPipeline.from_pretrained(REPOSITORY)
    assert type(pipeline) is DDPMPipeline and same_weights(pipeline.unet, tiny_pipeline().unet)
    assert stand_in.fetched() == sorted([*PARTS, "unet/diffusion_pytorch_model.safetensors"])


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"use_safetensors": False}, "unet/diffusion_pytorch_model.bin"),
        ({"variant": "fp16"}, "unet/diffusion_pytorch_model.fp16.safetensors"),
    ],
)
def test_the_kind_of_weights_that_was_asked_for(stand_in: Hub, options: dict[str, object], weights: str) -> None:
    assert same_weights(DDIMPipeline.from_pretrained(REPOSITORY, **options).unet, tiny_pipeline().unet)  # type: ignore[arg-type]
    assert stand_in.fetched() == sorted([*PARTS, weights])


def test_a_part_of_a_repository(stand_in: Hub) -> None:
    assert same_weights(UNet2DModel.from_pretrained(REPOSITORY, subfolder="unet"), tiny_pipeline().unet)
    assert len(DDPMScheduler.from_pretrained(REPOSITORY, subfolder="scheduler")) == 20
    wanted = ["scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert stand_in.fetched() == wanted
    assert (hub.resolve(REPOSITORY, ["README.md"]) / "README.md").read_text() == "# Digits"


def test_a_configuration_is_fetched_without_the_weights(stand_in: Hub) -> None:
    assert UNet2DModel.load_config(REPOSITORY, subfolder="unet")["block_out_channels"] == [4, 8]
    assert DDPMScheduler.load_config(REPOSITORY, subfolder="scheduler")["num_train_timesteps"] == 20
    assert stand_in.fetched() == ["scheduler/scheduler_config.json", "unet/config.json"]
    with pytest.raises(TypeError, match="loading has no weights_only; hub options are token, cache_dir"):
        UNet2DModel.load_config(REPOSITORY, weights_only=True)


def test_what_is_cached_is_not_fetched_again_and_opens_without_the_hub(
    stand_in: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    DDPMPipeline.from_pretrained(REPOSITORY)
    stand_in.requests.clear()
    DDPMPipeline.from_pretrained(REPOSITORY)
    assert stand_in.fetched() == []
    stand_in.requests.clear()
    DDPMPipeline.from_pretrained(REPOSITORY, local_files_only=True)
    assert stand_in.requests == []
    stand_in.broken = True
    DDPMPipeline.from_pretrained(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert same_weights(DDPMPipeline.from_pretrained(REPOSITORY).unet, tiny_pipeline().unet)
    assert DDPMPipeline.from_pretrained(REPOSITORY, revision=COMMIT, local_files_only=True)


def test_a_cache_of_ones_own(stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    UNet2DModel.from_pretrained(REPOSITORY, subfolder="unet", cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "models--someone--digits").is_dir() and not (tmp_path / "cache").exists()
    for cache_dir in (tmp_path / "mine", "~/mine"):
        UNet2DModel.from_pretrained(REPOSITORY, subfolder="unet", cache_dir=cache_dir, local_files_only=True)


def test_the_token_travels(stand_in: Hub) -> None:
    stand_in.gated.add(REPOSITORY)
    with pytest.raises(PermissionError, match=r"someone/digits is gated: accept its terms"):
        DDPMPipeline.from_pretrained(REPOSITORY, token=False)
    stand_in.tokens.clear()
    DDPMPipeline.from_pretrained(REPOSITORY, token="hf_secret")
    assert set(stand_in.tokens) == {"hf_secret"}


def test_each_fault_has_its_sentence(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.repositories["someone/empty"] = {"README.md": b"#"}
    for arguments, kind, message in (
        ({"pretrained_model_name_or_path": "no/body"}, FileNotFoundError, "the hub has no repository no/body"),
        ({"revision": "v9"}, FileNotFoundError, "someone/digits on the hub has no revision 'v9'"),
        ({"pretrained_model_name_or_path": "someone/empty"}, FileNotFoundError, "has no model_index.json"),
        ({"variant": "bf16"}, FileNotFoundError, r"no file named diffusion_pytorch_model\.bf16"),
        (
            {"pretrained_model_name_or_path": "never/fetched", "local_files_only": True},
            ConnectionError,
            "could not be reached for never/fetched",
        ),
        ({"subfolder": "../x"}, ValueError, "leaves the model's folder"),
    ):
        with pytest.raises(kind, match=message):
            DDPMPipeline.from_pretrained(**{"pretrained_model_name_or_path": REPOSITORY, **arguments})  # type: ignore[arg-type]
    stand_in.broken = True
    with pytest.raises(ConnectionError, match="could not be reached for a/b"):
        DDPMPipeline.from_pretrained("a/b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="could not be reached for a/b"):
        DDPMPipeline.from_pretrained("a/b")


def test_a_folder_that_is_not_there_is_said_first(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped folder looks like a hub id."""
    for name, kind, message in (
        ("runs/typo", FileNotFoundError, "the hub has no repository runs/typo"),
        ("runs/a--b", ValueError, "'runs/a--b' is not a valid hub id"),
    ):
        with pytest.raises(kind, match=f"^no folder {name} here, and {message}"):
            DDPMPipeline.from_pretrained(name)
    stand_in.gated.add(REPOSITORY)
    with pytest.raises(PermissionError, match=f"^no folder {REPOSITORY} here, and {REPOSITORY} is gated"):
        DDPMPipeline.from_pretrained(REPOSITORY, token=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for load in (DDPMPipeline.from_pretrained, DDPMScheduler.load_config, cli.info, cli.sample):
        with pytest.raises(ConnectionError, match="^no folder runs/typo here, and the hub could not be reached"):
            load("runs/typo")


def test_without_the_hub_nobody_waits(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question each, no retries: huggingface_hub itself would try six times, over 23 seconds."""
    stand_in.broken = True
    with pytest.raises(ConnectionError):
        DDPMPipeline.from_pretrained("a/b")
    assert [request for request in stand_in.requests if "a/b" in request] == ["GET /api/models/a/b"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        DDPMPipeline.from_pretrained("a/b")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", [429, 503, 200], ids=["too many requests", "overloaded", "a captive portal"])
def test_an_answer_that_is_none_is_no_connection(stand_in: Hub, status: int) -> None:
    """What was fetched before opens; the rest fails as without a network, not as a file that is missing."""
    DDPMPipeline.from_pretrained(REPOSITORY)
    stand_in.broken = status
    assert same_weights(DDPMPipeline.from_pretrained(REPOSITORY).unet, tiny_pipeline().unet)
    with pytest.raises(ConnectionError, match="could not be reached for a/b"):
        DDPMPipeline.from_pretrained("a/b")


def test_without_the_hub_a_part_that_was_not_fetched(stand_in: Hub) -> None:
    """The cache holds the network alone: the pipeline is out of reach, not missing."""
    UNet2DModel.from_pretrained(REPOSITORY, subfolder="unet")
    stand_in.broken = True
    UNet2DModel.from_pretrained(REPOSITORY, subfolder="unet")
    for kind, subfolder in ((DDPMPipeline, None), (DDPMScheduler, "scheduler")):
        with pytest.raises(ConnectionError, match="could not be reached for someone/digits"):
            kind.from_pretrained(REPOSITORY, subfolder=subfolder)  # type: ignore[attr-defined]


def test_a_file_that_is_missing_though_others_are_cached(stand_in: Hub) -> None:
    DDPMPipeline.from_pretrained(REPOSITORY)
    with pytest.raises(FileNotFoundError, match=r"someone/digits on the hub has no scheduler_config\.json: it has"):
        DDPMScheduler.from_pretrained(REPOSITORY)


def test_a_model_without_a_card_is_described_all_the_same(stand_in: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    cli.info(REPOSITORY)
    assert "# Digits" in capsys.readouterr().out
    del stand_in.repositories[REPOSITORY]["README.md"]
    stand_in.repositories["someone/plain"] = stand_in.repositories[REPOSITORY]
    for broken in (False, True):
        stand_in.broken = broken
        cli.info("someone/plain")
        assert "configuration:" in capsys.readouterr().out


def test_a_damaged_file_in_the_cache_can_be_fetched_again(stand_in: Hub, tmp_path: Path) -> None:
    """The error names the file to delete: the shared one, since a link alone would be made anew."""
    DDPMPipeline.from_pretrained(REPOSITORY)
    (link,) = (tmp_path / "cache").rglob("*.safetensors")
    link.resolve().write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not a valid safetensors file") as caught:
        DDPMPipeline.from_pretrained(REPOSITORY)
    Path(str(caught.value).split("delete ")[1].split(", then")[0]).unlink()
    assert same_weights(DDPMPipeline.from_pretrained(REPOSITORY).unet, tiny_pipeline().unet)


def test_a_cut_connection(stand_in: Hub) -> None:
    stand_in.cut.add("unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ConnectionError, match=r"someone/digits, or was cut off .*: try again"):
        DDPMPipeline.from_pretrained(REPOSITORY)
    stand_in.cut.clear()
    assert same_weights(DDPMPipeline.from_pretrained(REPOSITORY).unet, tiny_pipeline().unet)


def test_names_that_are_neither_a_folder_nor_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "models")
    tiny_pipeline().save_pretrained(tmp_path / "models" / "little")
    monkeypatch.chdir(tmp_path)
    assert hub.shipped_models() == ["little"]
    assert same_weights(DDPMPipeline.from_pretrained("little").unet, tiny_pipeline().unet)
    with pytest.raises(FileNotFoundError, match="no shipped model of that name; shipped are: little"):
        DDPMPipeline.from_pretrained("big")
    with pytest.raises(FileNotFoundError, match="not a hub id of the form owner/name"):
        DDPMPipeline.from_pretrained("a/b/c")
    (tmp_path / "little").mkdir()
    with pytest.raises(FileNotFoundError, match="has no model_index.json"):
        DDPMPipeline.from_pretrained("little")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        DDPMPipeline.from_pretrained("file")


def test_pushing_and_opening_again(stand_in: Hub, tmp_path: Path) -> None:
    address = tiny_pipeline().push_to_hub("learner/mine", token="hf_secret")
    assert address == f"{stand_in.url}/learner/mine/commit/{COMMIT}"
    card = stand_in.repositories["learner/mine"]["README.md"].decode()
    assert "library_name: diffusers" in card and "# mine" in card and 'from_pretrained("learner/mine")' in card
    assert f"{tiny_pipeline().unet.num_parameters():,}" in card
    assert same_weights(DDPMPipeline.from_pretrained("learner/mine").unet, tiny_pipeline().unet)


def test_pushing_keeps_a_card_that_is_there(stand_in: Hub) -> None:
    stand_in.repositories["learner/mine"] = {"README.md": b"written by hand"}
    tiny_pipeline().unet.push_to_hub("learner/mine", token="hf_secret")
    assert stand_in.repositories["learner/mine"]["README.md"] == b"written by hand"
    tiny_pipeline().unet.push_to_hub("learner/mine", token="hf_secret", card="new")
    assert stand_in.repositories["learner/mine"]["README.md"] == b"new"
    assert same_weights(UNet2DModel.from_pretrained("learner/mine"), tiny_pipeline().unet)


def test_pushing_without_a_right_to(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((PermissionError, FileNotFoundError)):
        tiny_pipeline().push_to_hub("learner/mine", token=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="could not be reached for learner/mine"):
        tiny_pipeline().push_to_hub("learner/mine", token="hf_secret")
