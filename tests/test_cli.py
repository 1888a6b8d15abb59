"""The command line: what each command makes, and one line for what a person can mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._inductor.config
from PIL import Image

from ddpm_from_scratch import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DModel,
    cli,
    evaluation,
    few_steps,
    hub,
    images,
    judges,
    likelihood,
    load_dataset,
    metrics,
    reference,
    reports,
    training,
)
from ddpm_from_scratch.models import small_unet

TINY = ["--dataset", "digits", "--widths", "16", "--batch-size", "4", "--preview-every", "0", "--warmup-steps", "0"]


@pytest.fixture
def ddpm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `ddpm ARGUMENTS` in this process: exit status, stdout, stderr without progress bars."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddpm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("ddpm:")]
        return int(stopped.value.code or 0), out, "\n".join(lines)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that `ddpm train` made in three steps."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["ddpm", "train", *TINY, "--steps", "3", "--output", str(folder)])
        cli.main()
    assert not stopped.value.code
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return UNet2DModel.from_pretrained(folder / "unet").state_dict()


def test_greek_letters_go_into_a_pipe_of_windows() -> None:
    """Python writes into a pipe there as PYTHONIOENCODING makes it write here, and cp1252 has no σ."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "ddpm_from_scratch", "eval", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0 and "η" in done.stdout.decode("utf-8")


@pytest.mark.parametrize("command", ["train", "sample", "eval", "info", "bench", "train-classifier", "course"])
def test_help_explains_every_option(ddpm, command: str) -> None:
    code, out, _ = ddpm(command, "--help")
    assert code == 0
    assert command == "course" or "Options" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "digits", "--stesp", "3"], "--steps"),
        (["sample", "nothing-here"], "digits"),
        (["sample", "digits", "--output", "picture.jpg"], ".png or .gif"),
        (["sample", "digits", "--steps", "0"], "num_inference_steps"),
        (["sample", "digits", "--num", "0"], "at least 1"),
        (["sample", "digits", "--eta", "2"], "eta"),
        (["sample", "digits", "--scheduler", "ddpm", "--eta", "0.5"], "--eta belongs"),
        (["sample", "digits", "--label", "3"], "no classes"),
        (["sample", "digits", "--device", "quantum"], "--device cpu"),
        (["train", "--dataset", "nowhere", "--output", "x"], "neither a folder nor a known dataset"),
        (["train", "--dataset", "", "--output", "x"], "'' is neither a folder nor a known dataset"),
        (["train", "--dataset", "digits", "--output", "x", "--widths", "a,b"], "32,64"),
        (["train", "--dataset", "digits", "--output", "x", "--widths", ""], "--widths takes whole numbers"),
        (["train", "--dataset", "digits", "--output", "x", "--init", "digits", "--widths", ""], "--widths takes whole"),
        (["train", "--dataset", "digits", "--output", "x", "--widths", "33"], "--widths 33: the first must be"),
        (["train", "--dataset", "digits", "--output", "x", "--widths", "48,64"], "--widths 48,64: the first must be"),
        (["train", "--dataset", "digits", "--output", "x", "--widths", "0"], "--widths 0: the first must be"),
        (["train", "--dataset", "digits", "--output", "x", "--widths", "32,64,128,256,512"], "halved"),
        (["train", "--dataset", "digits", "--output", "x", "--steps", "0"], "steps"),
        (["train", "--dataset", "digits"], "--output"),
        (["train", *TINY, "--steps", "1", "--output", ""], "an empty name is no folder"),
        (["eval", "digits", "--num", "4", "--steps", "1", "--output", ""], "an empty name is no folder"),
        (["train-classifier", "--dataset", "digits", "--epochs", "1", "--output", ""], "an empty name is no folder"),
        (["course", "grade", ".", "--output", ""], "an empty name is no folder"),
        (["train", *TINY, "--steps", "1", "--output", "x", "--seed", str(2**64)], "'--seed'"),
        (["train", *TINY, "--steps", "1", "--output", "x", "--seed", "-1"], "'--seed'"),
        (
            ["train-classifier", "--dataset", "digits", "--epochs", "1", "--output", "x", "--seed", str(2**63)],
            "'--seed'",
        ),
        (["sample", "digits", "--steps", "1", "--num", "1", "--seed", str(2**63)], "'--seed'"),
        (["eval", "digits", "--steps", "1", "--num", "4", "--seed", str(2**63)], "'--seed'"),
        (["train", *TINY, "--steps", "1", "--output", "x", "--preview-every", "-1"], "'--preview-every'"),
        (
            ["train", "--dataset", "digits", "--output", "x", "--init", "digits", "--learned-variance"],
            "not fit the mod",
        ),
        (["train", "--dataset", "digits", "--output", "x", "--init", "digits", "--widths", "16"], "--widths 16 does"),
        (["train", "--dataset", "digits", "--output", "x", "--init", "digits", "--layers-per-block", "9"], "-block 9"),
        (["sample", "digits", "--device", "meta"], "holds data"),
        (["eval", "digits", "--classifier", "fashion", "--num", "4"], "trained on digits"),
        (["eval", "fashion", "--classifier", "digits"], "trained on"),
        (["eval", "digits", "--dataset", "mnist", "--table", "bits"], "trained on digits"),
        (["eval", "digits", "--table", "bits"], "(1, 16, 16), digits holds (1, 8, 8): bits of resized images are no"),
        (["eval", "digits", "--table", "bits", "--num", "2"], "trained on digits without --image-size"),
        (["eval", "digits", "--dataset", "nosuch"], "--dataset says nothing to the report without --table"),
        (["eval", "digits", "--root", "/nosuch"], "--root says nothing to the report without --table"),
        (["eval", "digits", "--table", "bits", "--classifier", "digits"], "--classifier says nothing to --table bits"),
        (
            ["eval", "digits", "--table", "ddim", "--dataset", "digits"],
            "--dataset says nothing to --features classifier",
        ),
        (["eval", "digits", "--table", "ddim", "--root", "x"], "--root says nothing to --features classifier"),
        (
            ["eval", "digits", "--table", "ddim", "--features", "inception", "--classifier", "digits"],
            "--classifier says nothing to --features inception",
        ),
        (["eval", "digits-conditional", "--classifier", "fashion"], "digits-conditional was trained on digits, not on"),
        (["eval", "digits", "--steps", "0"], "--steps) must be at least 1, got 0"),
        (
            ["eval", "digits", "--table", "ddim", "--columns", "0", "--output", "x"],
            "(--columns) must lie in [1, 1000]",
        ),
        (
            ["eval", "digits", "--table", "ddim", "--columns", "1", "--quadratic", "2000", "--output", "x"],
            "--quadratic 2000: not among --columns 1",
        ),
        (
            ["eval", "digits", "--table", "ddim", "--columns", "10", "--quadratic", "10,-3", "--output", "x"],
            "--quadratic -3: not among --columns 10",
        ),
        (
            ["eval", "digits", "--table", "ddim", "--rows", "1", "--quadratic", "10", "--output", "x"],
            "--quadratic 10: quadratic timesteps are for the row 0, which --rows 1 lacks",
        ),
        (["eval", "digits", "--table", "ddim"], "--output"),
        (["eval", "digits", "--features", "inception"], "--features says nothing to the report without --table"),
        (["eval", "digits", "--table", "bits", "--no-clip"], "--no-clip says nothing to --table bits"),
        (
            ["eval", "digits", "--table", "ddim", "--output", "x", "--steps", "9"],
            "--steps says nothing to --table ddim",
        ),
        (["train", "--dataset", "~nobody-here/x", "--output", "x"], "no user of the name after ~"),
        (["eval", "digits", "--table", "ddim", "--rows", "0,two", "--output", "x"], "sigma-hat"),
        (["eval", "digits", "--table", "ddim", "--columns", "ten", "--output", "x"], "--columns"),
        (["eval", "digits", "--table", "ddim", "--columns", "100", "--quadratic", "100", "--output", "x"], "twice"),
        (["eval", "digits", "--table", "ddim", "--num", "0", "--output", "x"], "at least 1"),
        (["eval", "digits", "--table", "ddpm"], "ddim"),
        (["info", "nothing-here"], "digits"),
        (["bench", "speed"], "widgets"),
        (["bench", "--image-size", "30"], "halved"),
        (["bench", "--widths", "33"], "--widths 33: the first must be"),
        (["bench", "--rounds", "0"], "at least one"),
        (["bench", "widgets", "--rounds", "0"], "at least one"),
        (["course", "grade", "nowhere"], "holds the students' notebooks"),
        (["course", "grade", ".", "--seconds", "0"], "--seconds above 0"),
        (["course", "grade", ".", "--seconds", "nan"], "at most a day"),
        (["course", "grade", ".", "--seconds", "inf"], "at most a day"),
    ],
)
def test_a_fault_gets_one_line_and_writes_nothing(
    ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = ddpm(*arguments)
    assert code != 0
    assert len(err.splitlines()) == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_trains_resumes_to_the_bit_and_starts_from_another_model(ddpm, trained: Path, tmp_path: Path) -> None:
    code, _, err = ddpm("train", *TINY, "--steps", 3, "--output", trained)
    assert code == 1 and "resume" in err
    again = tmp_path / "again"
    assert ddpm("train", *TINY, "--steps", 3, "--output", again)[0] == 0
    assert all(torch.equal(a, b) for a, b in zip(weights(trained).values(), weights(again).values(), strict=True))
    code, out, _ = ddpm("train", *TINY, "--steps", 5, "--output", again, "--resume")
    assert code == 0 and "Trained for 5 steps" in out
    follower = tmp_path / "follower"
    assert ddpm("train", *TINY, "--steps", 1, "--init", trained, "--learning-rate", 1e-12, "--output", follower)[0] == 0
    for mine, theirs in zip(weights(follower).values(), weights(trained).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_a_model_without_classes_is_trained_on_with_them(ddpm, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "conditional"
    run = ["train", *TINY, "--steps", 1, "--init", trained, "--conditional", "--output", folder]
    assert ddpm(*run, "--learning-rate", 1e-12)[0] == 0
    before, after = weights(trained), weights(folder)
    assert set(after) - set(before) == {"class_embedding.weight"}
    before["class_embedding.weight"] = torch.zeros(11, after["class_embedding.weight"].shape[1])
    for name, weight in after.items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-9, msg=name)
    x, t = torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(11)
    model, twin = (UNet2DModel.from_pretrained(place / "unet").eval() for place in (trained, folder))
    with torch.no_grad():
        torch.testing.assert_close(twin(x, t, torch.arange(11)).sample, model(x, t).sample, rtol=0, atol=1e-6)
    code, _, err = ddpm("train", *TINY, "--steps", 2, "--init", folder, "--conditional", "--output", tmp_path / "on")
    assert code == 0, err
    twin.from_config(twin.config, class_embed_type="timestep", num_class_embeds=None).save_pretrained(folder / "unet")
    code, _, err = ddpm("train", *TINY, "--init", folder, "--conditional", "--output", tmp_path / "other")
    assert code == 1 and "--conditional does not fit the model" in err


def test_a_resume_without_a_checkpoint_says_that_it_starts_anew(ddpm, tmp_path: Path) -> None:
    run = ["train", *TINY, "--output", tmp_path / "out", "--resume"]
    assert "no checkpoint to resume: starting anew" in ddpm(*run, "--steps", 1)[1]
    assert "anew" not in ddpm(*run, "--steps", 2)[1]
    (tmp_path / "out" / training.CHECKPOINT).unlink()
    code, out, err = ddpm(*run, "--steps", 2)
    assert code == 1 and "finished model without a checkpoint" in err and "anew" not in out


def test_the_variance_of_the_first_model_is_learned_on(ddpm, tmp_path: Path) -> None:
    learned, follower = tmp_path / "learned", ["--steps", 1, "--output", tmp_path / "follower"]
    assert ddpm("train", *TINY, "--steps", 1, "--learned-variance", "--output", learned)[0] == 0
    code, _, err = ddpm("train", *TINY, *follower, "--init", learned)
    assert code == 1 and "add --learned-variance" in err and len(err.splitlines()) == 1
    assert ddpm("train", *TINY, *follower, "--init", learned, "--learned-variance")[0] == 0


def test_the_schedule_of_the_first_model_is_kept(ddpm, tmp_path: Path) -> None:
    first, follower = tmp_path / "first", ["train", *TINY, "--steps", 1, "--init", tmp_path / "first"]
    asked = ("--prediction-type", "v_prediction", "--beta-schedule", "squaredcos_cap_v2")
    assert ddpm("train", *TINY, "--steps", 1, *asked, "--output", first)[0] == 0
    for options, expected in (
        ([], ("v_prediction", "squaredcos_cap_v2", "fixed_small")),
        (["--prediction-type", "epsilon"], ("epsilon", "squaredcos_cap_v2", "fixed_small")),
    ):
        output = tmp_path / f"follower-{len(options)}"
        assert ddpm(*follower, *options, "--output", output)[0] == 0
        config = DDPMPipeline.from_pretrained(output).scheduler.config
        assert (config.prediction_type, config.beta_schedule, config.variance_type) == expected


def test_a_folder_without_classes_trains_no_conditional_model(ddpm, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    options = ["--image-size", 8, "--widths", "16", "--steps", 1, "--conditional", "--output", tmp_path / "out"]
    code, _, err = ddpm("train", "--dataset", tmp_path, *options)
    assert code == 1 and f"--conditional: {tmp_path} has no classes" in err and not (tmp_path / "out").exists()


def test_previews_do_not_join_the_images_that_are_trained_on(ddpm, tmp_path: Path) -> None:
    """A resumed run would find another dataset."""
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    options = ["train", "--dataset", tmp_path, "--image-size", 8, "--widths", "16", "--batch-size", 2]
    for output in (tmp_path / "run", tmp_path):
        code, _, err = ddpm(*options, "--steps", 1, "--output", output)
        assert code == 1 and "lies among the images of" in err and not (tmp_path / "run").exists()
    for output, more in ((tmp_path / ".run", ["--preview-every", 1]), (tmp_path / "run", ["--preview-every", 0])):
        for steps in (1, 2):
            assert ddpm(*options, *more, "--steps", steps, "--output", output, "--resume")[0] == 0


def test_previews_that_cannot_be_made_are_refused_before_training(ddpm, tmp_path: Path) -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="sample")
    DDPMPipeline(small_unet((1, 8, 8), (16,)), scheduler).save_pretrained(tmp_path / "model")
    options = ["--init", tmp_path / "model", "--prediction-type", "epsilon", "--steps", 1, "--output", tmp_path / "out"]
    code, _, err = ddpm("train", *TINY, *options, "--preview-every", 1)
    assert code == 1 and "or train without previews" in err and not (tmp_path / "out").exists()
    assert ddpm("train", *TINY, *options)[0] == 0


def test_an_error_stands_on_a_line_of_its_own_below_the_bar(ddpm, tmp_path: Path) -> None:
    (tmp_path / "previews").write_text("in the way")
    code, _, err = ddpm("train", *TINY, "--steps", 3, "--output", tmp_path, "--preview-every", 1)
    assert code == 1 and err.startswith("ddpm: ") and "previews" in err


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_a_condition_that_is_no_class_is_named(ddpm, tmp_path: Path, kind: str) -> None:
    model = UNet2DModel.from_config(small_unet((1, 8, 8), (16,)).config, class_embed_type=kind)
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "model")
    sampled = ["sample", tmp_path / "model", "--num", 1, "--steps", 1, "--output", tmp_path / "x.png"]
    trained_on = ["train", *TINY, "--init", tmp_path / "model", "--steps", 1, "--output", tmp_path / "out"]
    for command in (sampled, [*sampled, "--label", 1], trained_on):
        code, _, err = ddpm(*command)
        assert code == 1 and f"class_embed_type='{kind}', whose conditions no dataset gives" in err


def test_outputs_at_home_lie_there(ddpm, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ddpm("train", *TINY, "--steps", 1, "--output", "~/run")[0] == 0
    assert ddpm("sample", trained, "--num", 1, "--steps", 1, "--output", "~/x.png")[0] == 0
    assert ddpm("eval", "digits", "--num", 4, "--steps", 1, "--output", "~/eval")[0] == 0
    assert ddpm("train-classifier", "--dataset", "digits", "--epochs", 1, "--output", "~/judge")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"here", "run", "x.png", "eval", "judge"}
    assert not list((tmp_path / "here").iterdir())


def test_a_sheet_of_nan_is_not_drawn_black(ddpm, tmp_path: Path) -> None:
    network = small_unet((1, 8, 8), (16,))
    with torch.no_grad():
        network.conv_in.weight.fill_(float("nan"))
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(tmp_path / "model")
    code, _, err = ddpm("sample", tmp_path / "model", "--num", 1, "--steps", 1, "--output", tmp_path / "x.png")
    assert code == 1 and "images of NaN" in err and not (tmp_path / "x.png").exists()


def test_a_model_of_one_class_is_sampled(ddpm, tmp_path: Path) -> None:
    network = small_unet((1, 8, 8), (16,), num_classes=0)
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(tmp_path / "model")
    sheet = tmp_path / "x.png"
    assert ddpm("sample", tmp_path / "model", "--num", 2, "--steps", 1, "--output", sheet)[0] == 0 and sheet.is_file()


def test_every_class_of_a_model_is_sampled_in_turn(ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row of its table is "no class", drawn where it is asked for by number."""
    DDIMPipeline(small_unet((1, 8, 8), (16,), num_classes=3), DDIMScheduler()).save_pretrained(tmp_path / "model")
    asked, sampled = [], DDIMPipeline.__call__

    def watch(self, *args: object, class_labels, **options: object) -> object:
        asked.append(class_labels)
        return sampled(self, *args, class_labels=class_labels, **options)

    monkeypatch.setattr(DDIMPipeline, "__call__", watch)
    run = ["sample", tmp_path / "model", "--num", 5, "--batch-size", 3, "--steps", 1, "--output", tmp_path / "x.png"]
    assert ddpm(*run)[0] == ddpm(*run, "--label", 3)[0] == 0
    assert asked == [[0, 1, 2], [0, 1], [3, 3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("folder.png", "folder.png is a folder: give the name of a file"),
        ("file/a.png", "cannot write in file (File exists): choose another output folder"),
        ("file/under/a.png", "cannot write in file/under (Not a directory): choose another output folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_sampling(
    ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(DDIMPipeline, "__call__", lambda *_, **__: pytest.fail("images were made"))
    code, _, err = ddpm("sample", "digits", "--num", 1, "--steps", 1, "--output", output)
    assert code == 1 and err.startswith("ddpm: ") and err.endswith(said)


def test_eval_tries_its_folder_before_sampling(ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("images were made"))
    code, _, err = ddpm("eval", "digits", "--num", 20, "--steps", 2, "--output", tmp_path / "file")
    assert code == 1 and err.endswith("choose another output folder")


def test_a_classifiers_folder_is_tried_before_training(ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(reference, "train_classifier", lambda *_, **__: pytest.fail("a classifier was trained"))
    code, _, err = ddpm("train-classifier", "--dataset", "digits", "--output", tmp_path / "file")
    assert code == 1 and err.endswith("choose another output folder")


def full_gpu(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has a total capacity of 1 GiB.")


@pytest.mark.parametrize(
    "fault", [lambda *_: torch.empty(2**60, dtype=torch.uint8), lambda *_: bytearray(2**60), full_gpu]
)
def test_too_little_memory_is_one_line(ddpm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Any) -> None:
    monkeypatch.setattr(training, "train", fault)
    code, _, err = ddpm("train", *TINY, "--output", tmp_path / "out")
    assert code == 1 and err == "ddpm: not enough memory: lower --batch-size or --image-size"


def test_half_precision_is_stored_where_asked(ddpm, tmp_path: Path) -> None:
    assert ddpm("train", *TINY, "--steps", 1, "--half", "--output", tmp_path / "half")[0] == 0
    files = hub.weight_files(tmp_path / "half" / "unet")
    assert {value.dtype for value in hub.read_weights(files).values()} == {torch.float16}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The networks that were compiled; no C++ compiler is needed."""
    found: list[object] = []
    real = torch.nn.Module.compile

    def compile(network: torch.nn.Module) -> None:
        found.append(network)
        real(network, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return found


def test_a_compiled_network_is_trained_and_judged_like_another(ddpm, compiled: list[object], tmp_path: Path) -> None:
    options = [*TINY, "--image-size", 16, "--steps", 2]
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        assert ddpm("train", *options, *more, "--output", tmp_path / name)[0] == 0
    assert len(compiled) == 1
    plain, other = (UNet2DModel.from_pretrained(tmp_path / name, subfolder="unet") for name in ("plain", "compiled"))
    torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)
    table = ["--table", "ddim", "--rows", "0", "--columns", "2", "--num", 4, "--repeats", 1, "--quadratic", ""]
    code, out, _ = ddpm("eval", "digits", *table, "--compile", "--output", tmp_path / "table")
    assert code == 0 and "--compile --output DIR" in out and len(compiled) == 2


@pytest.mark.long
def test_a_lack_of_a_compiler_is_one_line(ddpm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    code, _, err = ddpm("train", *TINY, "--steps", 1, "--compile", "--output", tmp_path / "out")
    assert code == 1 and "leave --compile out" in err and "no-such-compiler" in err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_whoever_reads_it(ddpm, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abcdefghijkl":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"not an image")  # not among the eight that are looked at before training
    options = ["--image-size", 8, "--widths", "16", "--batch-size", 12, "--preview-every", 0, "--num-workers", workers]
    code, _, said = ddpm("train", "--dataset", folder, "--steps", 2, *options, "--output", tmp_path / "out")
    assert code == 1 and said.startswith(f"ddpm: {folder / 'c.png'} cannot be read as an image")
    assert said.endswith("replace it by a whole one)") and "Traceback" not in said


def test_a_loading_process_that_ends_is_one_line(ddpm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dies(*arguments: object) -> None:
        os._exit(1)

    monkeypatch.setattr(training, "draw", dies)
    code, _, said = ddpm("train", *TINY, "--steps", 2, "--num-workers", 1, "--output", tmp_path / "out")
    assert code == 1 and said.endswith("try --num-workers 0") and "DataLoader worker" in said


class Joined(NamedTuple):
    """What `training.processes` says of the machine."""

    device: torch.device
    num_processes: int = 1


def test_processes_load_images_only_where_something_waits_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    folder, memory = load_dataset(tmp_path), load_dataset("digits")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for platform, device, in_folder, in_memory in (
        ("linux", "cpu", 0, 0),
        ("linux", "cuda", 8, 4),
        ("win32", "cuda", 8, 0),
        ("darwin", "mps", 8, 0),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        found = [cli._workers(data, Joined(torch.device(device))) for data in (folder, memory)]
        assert found == [in_folder, in_memory], (platform, device)


def test_samples_depend_on_the_seed_and_not_on_the_batch(ddpm, trained: Path, tmp_path: Path) -> None:
    sheets = {}
    for name, options in {"one": ["--batch-size", 1], "all": [], "other": ["--seed", 1]}.items():
        path = tmp_path / f"{name}.png"
        assert ddpm("sample", trained, "--num", 3, "--steps", 2, "--output", path, *options)[0] == 0
        sheets[name] = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).int()
    assert (sheets["one"] - sheets["all"]).abs().max() <= 1
    assert (sheets["one"] - sheets["other"]).abs().max() > 30


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_a_gif_shows_every_step(ddpm, trained: Path, tmp_path: Path, scheduler: str) -> None:
    path = tmp_path / "film.gif"
    assert ddpm("sample", trained, "--scheduler", scheduler, "--num", 2, "--steps", 7, "--output", path)[0] == 0
    assert getattr(Image.open(path), "n_frames", 1) == 7


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (2, 2), (59, 59), (60, 60), (61, 60), (1000, 60)])
def test_an_animation_has_sixty_frames_at_most(count: int, frames: int) -> None:
    chosen = images.frame_steps(count)
    assert len(chosen) == frames and chosen[0] == 0 and chosen[-1] == count - 1
    assert images.frame_steps(len(chosen)) == list(range(frames))  # choosing again keeps all


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_sampling_keeps_no_step_that_is_not_drawn(
    ddpm, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A thousand steps of large images would fill the memory."""
    kept: dict[str, list[torch.Tensor]] = {}
    monkeypatch.setattr(images, "save_gif", lambda frames, *rest: kept.update(frames=frames))
    monkeypatch.setattr(images, "MAX_FRAMES", 3)
    watched = DDIMPipeline.__call__

    def watch(self, *args: object, callback, **options: object) -> object:
        kept["path"] = callback.__defaults__[0]
        return watched(self, *args, callback=callback, **options)

    monkeypatch.setattr(DDIMPipeline, "__call__", watch)
    assert ddpm("sample", trained, "--num", 2, "--steps", 7, "--output", tmp_path / f"x.{ending}")[0] == 0
    assert len(kept["path"]) == (3 if ending == "gif" else 1)
    if ending == "gif":
        assert torch.equal(kept["frames"][-1], kept["path"][-1])


def test_info_counts_the_parameters_and_shows_the_card(ddpm) -> None:
    code, out, _ = ddpm("info", "digits")
    assert code == 0
    assert "701,345 parameters" in out and "down_blocks" in out and "num_train_timesteps" in out and "seed" in out


def test_info_of_images_that_are_not_square_and_of_a_card_that_is_not_text(ddpm, tmp_path: Path) -> None:
    DDIMPipeline(small_unet((1, 8, 16), (16,)), DDIMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(b"a \xff card")
    code, out, err = ddpm("info", tmp_path)
    assert code == 0 and not err and "images 8 × 16 × 1\n" in out and out.endswith("a \ufffd card\n")


def test_eval_writes_its_figures_and_goes_on_where_it_stopped(ddpm, tmp_path: Path) -> None:
    first = ddpm("eval", "digits", "--num", 4, "--steps", 2, "--output", tmp_path / "eval", "--batch-size", 2)
    again = ddpm("eval", "digits", "--num", 4, "--steps", 2, "--output", tmp_path / "eval")
    assert first[0] == again[0] == 0
    assert first[1] == again[1] and "Fréchet" in first[1]
    assert (tmp_path / "eval" / "evaluation.json").is_file()


def test_every_shipped_model_has_its_own_judge(ddpm) -> None:
    options = ["--num", 4, "--steps", 1, "--seed", 1]
    own = ddpm("eval", "digits-conditional", *options)
    assert own[0] == 0 and own == ddpm("eval", "digits-conditional", "--classifier", "digits", *options)
    assert {path.name for path in hub.SHIPPED.iterdir()} == set(judges.JUDGE_OF)


def test_a_size_that_does_not_fit_the_classifier_is_named(ddpm, trained: Path) -> None:
    code, _, err = ddpm("eval", trained, "--classifier", "digits")
    assert code == 1 and "shape (1, 8, 8), the classifier takes (1, 16, 16): train one with" in err
    assert "--image-size" in err


def test_eval_judges_samples_that_are_not_clipped(ddpm, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    clipped = ddpm("eval", "digits", "--num", 4, "--steps", 2)
    free = ddpm("eval", "digits", "--num", 4, "--steps", 2, "--no-clip", "--output", folder)
    assert clipped[0] == free[0] == 0 and clipped[1] != free[1]
    assert json.loads((folder / "evaluation.json").read_text())["settings"]["clip_sample"] is False


def test_eval_makes_the_table_of_few_steps_and_goes_on(ddpm, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    options = ["--rows", "0,sigma-hat", "--columns", "2,3", "--num", 4, "--repeats", 1, "--quadratic", 2]
    first = ddpm("eval", "digits", "--table", "ddim", *options, "--output", folder)
    again = ddpm("eval", "digits", "--table", "ddim", *options, "--output", folder)
    assert first == again and first[0] == 0
    assert "`ddpm eval digits --table ddim --rows 0,sigma-hat --columns 2,3 --num 4 --repeats 1" in first[1]
    assert "| σ̂ |" in first[1] and "η = 0, quadratic" in first[1] and str(tmp_path) not in first[1]
    made = few_steps.Table.from_json((folder / "table.json").read_text(encoding="utf-8"))
    assert len(made.results) == 5 and (folder / "table.csv").is_file() and (folder / "table.md").is_file()


def test_quadratic_timesteps_are_by_default_those_of_the_columns(ddpm, tmp_path: Path) -> None:
    """And the command that the table records makes it again."""
    options = ["--columns", "2,10", "--num", 4, "--repeats", 1, "--output", tmp_path]
    for rows, quadratic in (("0", "10"), ("1", "''")):
        code, out, _ = ddpm("eval", "digits", "--table", "ddim", "--rows", rows, *options)
        assert code == 0 and f" --quadratic {quadratic} " in out


def test_eval_makes_the_rows_of_eta_without_clipping(ddpm, tmp_path: Path) -> None:
    """The command that the table records makes the unclipped samples again; other samples are not taken for them."""
    options = ["--table", "ddim", "--rows", "0", "--columns", "3", "--num", 4, "--repeats", 1, "--quadratic", ""]
    code, out, _ = ddpm("eval", "digits", *options, "--no-clip", "--output", tmp_path / "table")
    assert code == 0 and " --no-clip " in out
    settings = (tmp_path / "table" / "eta-0_S-3_seed-0" / "settings.json").read_text(encoding="utf-8")
    assert '"clip_sample": false' in settings
    code, _, err = ddpm("eval", "digits", *options, "--output", tmp_path / "table")
    assert code == 1 and "holds samples with another clip_sample" in err


def test_eval_takes_inceptions_features_where_they_are(ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the network, and the model's dataset resized to its images."""
    options = ["--table", "ddim", "--rows", "0", "--columns", "2", "--num", 4, "--repeats", 1, "--quadratic", ""]
    monkeypatch.setattr(judges, "inception_network", lambda device: lambda x: x.float().mean(dim=(2,)).flatten(1))
    code, out, _ = ddpm("eval", "digits", *options, "--features", "inception", "--output", tmp_path / "table")
    assert code == 0 and "Inception on digits" in out and "--features inception" in out


def test_eval_counts_bits_of_unresized_images(
    ddpm, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "KEEP_SECONDS", 0.0)
    options = ["--table", "bits", "--dataset", "digits", "--num", 2, "--per-image", 3, "--output", tmp_path / "bits"]
    code, out, _ = ddpm("eval", trained, *options)
    assert code == 0 and "standard error" in out and "--per-image 3" in out and str(tmp_path) not in out
    assert {path.name for path in (tmp_path / "bits").iterdir()} == {"bits.json", "bits.csv", "bits.md"}
    code, _, err = ddpm("eval", trained, "--table", "bits")
    assert code == 1 and "--dataset" in err
    code, _, err = ddpm("eval", trained, "--table", "bits", "--dataset", "digits", "--num", 298)
    assert code == 1 and "--num) must lie in [2, 297], the test images of digits; got 298" in err


def test_eval_counts_bits_of_all_images_where_there_are_few(ddpm, trained: Path) -> None:
    code, out, _ = ddpm("eval", trained, "--table", "bits", "--dataset", "digits", "--per-image", 1)
    assert code == 0 and "297 test images of digits" in out and "--num 297" in out


def test_eval_goes_on_with_bits_where_it_was_stopped(
    ddpm, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "KEEP_SECONDS", 0.0)
    options = ["--table", "bits", "--dataset", "digits", "--num", 2, "--per-image", 3, "--output", tmp_path / "bits"]
    with monkeypatch.context() as broken:
        broken.setattr(reports, "write_file", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        code, _, err = ddpm("eval", trained, *options)
        assert code == 1 and "no space left" in err
    assert [path.name for path in (tmp_path / "bits").iterdir()] == [likelihood.TERMS]
    code, _, err = ddpm("eval", trained, *options, "--seed", 1)
    assert code == 1 and "holds terms with another seed: choose another folder" in err
    monkeypatch.setattr(metrics._Bound, "term", lambda *_: pytest.fail("the network was asked again"))
    code, out, _ = ddpm("eval", trained, *options)
    assert code == 0 and "standard error" in out


def test_progress_is_shown(ddpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_PROGRESS", str(tmp_path / "progress.json"))
    code, out, _ = ddpm("course", "progress")
    assert code == 0 and "01.1" in out


@pytest.mark.parametrize("graded", [["a.ipynb"], []])
def test_ctrl_c_says_whether_anything_was_graded(
    ddpm, graded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal too, where no bar counts."""

    def until_ctrl_c(*arguments: Any) -> None:
        for name in graded:
            arguments[-1](name)
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm_from_scratch.course.grading.folder.grade_folder", until_ctrl_c)
    (tmp_path / "a.ipynb").write_text("{", encoding="utf-8")
    code, _, error = ddpm("course", "grade", tmp_path)
    assert code == 130 and ("what was graded so far" if graded else "before any was graded") in error
