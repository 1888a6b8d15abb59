"""Callbacks: the log of a resumed run, the progress bar, previews that disturb nothing, TensorBoard."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import differences, run, small_model, weights

from ddpm_from_scratch import callbacks
from ddpm_from_scratch.callbacks import LogFile, Previews, ProgressBar, TensorBoard, save_sheet
from ddpm_from_scratch.images import save_gif
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import EMA, Progress, StopTraining


def progress(step: int, steps: int = 100, loss: float | None = None, **model: Any) -> Progress:
    """What a callback sees after `step`; the loss is the step's number unless given."""
    network = small_model(**model)
    value = float(step) if loss is None else loss
    return Progress(step, steps, value, 1.5, 1e-3, 0.25 * step, EMA(network), network, DDPMScheduler())


@pytest.fixture(scope="module")
def steps() -> list[Progress]:
    """Progress after each of 100 steps, all of one model."""
    first = progress(1)
    network = first.model
    return [Progress(i, 100, float(i), 1.5, 1e-3, 0.25 * i, first.ema, network, first.scheduler) for i in range(1, 101)]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# ---------------------------------------------------------------- the log


def test_rows_hold_the_mean_since_the_last_row(tmp_path: Path, steps: list[Progress]) -> None:
    path = tmp_path / "made" / "log.csv"
    log = LogFile(path, every=40)
    for p in steps:
        log(p)
    head, *body = rows(path)
    assert head == ["step", "loss", "gradient_norm", "learning_rate", "seconds"]
    assert [(int(row[0]), float(row[1])) for row in body] == [(40, 20.5), (80, 60.5), (100, 90.5)]
    assert body[0][2:] == ["1.5000", "0.001", "10.0"]


def test_a_resumed_log_neither_repeats_nor_loses_rows(tmp_path: Path, steps: list[Progress]) -> None:
    """Killed after step 57 with the last checkpoint at 50, in the middle of writing a row."""
    whole, cut = LogFile(tmp_path / "whole.csv", every=10), LogFile(tmp_path / "cut.csv", every=10)
    for p in steps:
        whole(p)
    for p in steps[:77]:
        cut(p)
    with (tmp_path / "cut.csv").open("a") as file:
        file.write("80,7")
    resumed = LogFile(tmp_path / "cut.csv", every=10)
    for p in steps[50:]:
        resumed(p)
    assert rows(tmp_path / "cut.csv") == rows(tmp_path / "whole.csv")
    again = LogFile(tmp_path / "cut.csv", every=10)
    for p in steps[:20]:
        again(p)  # a new run in the same place
    assert [row[0] for row in rows(tmp_path / "cut.csv")] == ["step", "10", "20"]
    for p in steps[10:30]:
        again(p)  # the same callback in a run resumed from step 10
    assert [row[0] for row in rows(tmp_path / "cut.csv")] == ["step", "10", "20", "30"]


def test_a_damaged_byte_of_the_log_does_not_stop_a_run(tmp_path: Path, steps: list[Progress]) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"step,loss,gradient_norm,learning_rate,seconds\n10,1,1,1,1\n2\xff,1,1,1,1\n30,1,1,1,1\n")
    log = LogFile(path, every=10)
    for p in steps[30:40]:
        log(p)
    assert [row[0] for row in rows(path)] == ["step", "10", "30", "40"]


@pytest.mark.parametrize("every", [0, -1])
def test_every_no_step_is_refused(
    tmp_path: Path, steps: list[Progress], monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    module = types.ModuleType("tensorboard")
    module.SummaryWriter = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    for kind in (LogFile, Previews, TensorBoard):
        with pytest.raises(ValueError, match=f"every must be at least 1 step, got {every}"):
            kind(tmp_path / "x", every=every)
    assert not list(tmp_path.iterdir())


def test_seconds_go_on_after_resuming(tmp_path: Path) -> None:
    seconds: list[float] = []

    def stop(p: Progress) -> None:
        seconds.append(p.seconds)
        if p.step == 3:
            raise StopTraining

    run(tmp_path, callbacks=[stop])
    run(tmp_path, callbacks=[stop], resume=True)
    assert len(seconds) == 6 and seconds == sorted(seconds)


# ---------------------------------------------------------------- the bar


@pytest.mark.parametrize("disable", [False, True])
def test_the_bar_starts_where_the_run_does(
    monkeypatch: pytest.MonkeyPatch, steps: list[Progress], disable: bool
) -> None:
    opened: list[tuple[int, int]] = []
    bars: list[Any] = []
    real = callbacks.tqdm

    def keep(total: int, initial: int, **options: Any) -> Any:
        opened.append((initial, total))
        bars.append(real(total=total, initial=initial, disable=disable, **options))
        return bars[-1]

    monkeypatch.setattr(callbacks, "tqdm", keep)
    bar = ProgressBar()
    for p in steps[60:70]:
        bar(p)  # stopped at 70, then resumed from 65 with the same callback
    for p in steps[65:]:
        bar(p)
    assert opened == [(60, 100), (65, 100)]
    assert disable or (bars[0].n, bars[1].n) == (70, 100)
    assert bars[0].disable and bars[1].disable  # closed, the first when the second began


def test_a_bar_that_is_closed_early_ends_its_line(capsys: pytest.CaptureFixture[str], steps: list[Progress]) -> None:
    bar = ProgressBar()
    bar.close()
    bar(steps[0])
    assert "1/100" not in capsys.readouterr().err
    bar.close()
    said = capsys.readouterr().err
    assert "1/100" in said and said.endswith("\n")
    bar.close()
    assert not capsys.readouterr().err


# ---------------------------------------------------------------- previews


def test_previews_are_the_same_every_time_and_of_the_averaged_weights(tmp_path: Path) -> None:
    p = progress(4, dropout=0.5)
    previews = Previews(tmp_path, every=2, count=3, num_inference_steps=4, seed=5)
    first = previews.sample(p)
    assert first.shape == (3, 1, 8, 8) and first.isfinite().all() and len(first.flatten(1).unique(dim=0)) == 3
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in p.model.parameters():
            parameter.add_(torch.randn_like(parameter))  # the model's own weights play no part
    assert torch.equal(previews.sample(p), first)
    later = Previews(tmp_path, count=2, num_inference_steps=4, seed=6).sample(p)
    torch.testing.assert_close(later[0], first[1], rtol=0, atol=1e-5)  # a batch of another size is summed otherwise


def test_previews_disturb_nothing(tmp_path: Path) -> None:
    p = progress(2, dropout=0.5)
    p.model.train()
    p.model.conv_in.eval()
    modes, own, state = [m.training for m in p.model.modules()], weights(p.model), torch.get_rng_state()
    p.scheduler.set_timesteps(7)
    Previews(tmp_path, every=1, count=1, num_inference_steps=3)(p)
    assert [m.training for m in p.model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert not differences(weights(p.model), own) and p.scheduler.num_inference_steps == 7
    broken = p.model.conv_out.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("on the way")))
    with pytest.raises(RuntimeError, match="on the way"):
        Previews(tmp_path, every=1, count=1, num_inference_steps=3)(p)
    broken.remove()
    assert [m.training for m in p.model.modules()] == modes and not differences(weights(p.model), own)


def test_previews_are_written_when_due(tmp_path: Path, steps: list[Progress]) -> None:
    previews = Previews(tmp_path / "sheets", every=40, count=4, num_inference_steps=1)
    for p in (steps[0], steps[39], steps[99]):
        previews(p)
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["step_000040.png", "step_000100.png"]


@pytest.mark.parametrize("changes", [{"num_class_embeds": 11}, {"out_channels": 2}])
def test_previews_of_conditional_models_and_learned_variances(tmp_path: Path, changes: dict[str, Any]) -> None:
    images = Previews(tmp_path, count=12, num_inference_steps=2).sample(progress(1, **changes))
    assert images.shape == (12, 1, 8, 8) and images.isfinite().all()


@pytest.mark.parametrize(("rows", "expected"), [(4, [0, 1, 2, 0, 1]), (1, [0, 0, 0, 0, 0])])
def test_previews_show_every_class_but_no_class(tmp_path: Path, rows: int, expected: list[int]) -> None:
    p, asked = progress(1, num_class_embeds=rows), []

    def note(network: Any, arguments: Any, options: Any) -> None:
        asked.append(options["class_labels"].tolist())

    p.model.register_forward_pre_hook(note, with_kwargs=True)
    Previews(tmp_path, count=5, num_inference_steps=1).sample(p)
    assert asked == [expected]


def test_previews_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config has no sample_size"):
        Previews(tmp_path).sample(progress(1, sample_size=None))


@pytest.mark.parametrize(("spacing", "possible"), [("leading", True), ("trailing", False)])
def test_previews_that_cannot_begin_are_refused(tmp_path: Path, spacing: str, possible: bool) -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, timestep_spacing=spacing)
    if possible:
        Previews(tmp_path).check(scheduler)
        return
    with pytest.raises(ValueError, match="cannot be recovered from epsilon where ᾱ_t = 0.*, or train without previews"):
        Previews(tmp_path).check(scheduler)
    Previews(tmp_path).check(DDPMScheduler.from_config(scheduler.config, prediction_type="v_prediction"))


def test_a_sheet_shows_the_images_in_rows(tmp_path: Path) -> None:
    values = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 1, 6, 6)
    save_sheet(values, tmp_path / "a b" / "sheet.png", scale=2)
    sheet = np.asarray(Image.open(tmp_path / "a b" / "sheet.png"))
    assert sheet.shape == (2 * (2 * 7 + 1), 2 * (2 * 7 + 1), 3)
    assert [int(sheet[y, x, 0]) for y in (6, 20) for x in (6, 20)] == [0, 85, 170, 255]
    save_sheet(torch.zeros(1, 3, 4, 4), tmp_path / "one.png", scale=1)
    assert Image.open(tmp_path / "one.png").size == (6, 6) or Image.open(tmp_path / "one.png").size == (4, 4)


def test_nothing_to_draw_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    nothing = torch.zeros(0, 1, 4, 4)
    with pytest.raises(ValueError, match="no images to draw"):
        save_sheet(nothing, tmp_path / "new" / "x.png")
    with pytest.raises(ValueError, match="no images to draw"):
        save_gif([nothing], tmp_path / "new" / "x.gif")
    with pytest.raises(ValueError, match="no step to show"):
        save_gif([], tmp_path / "new" / "x.gif")
    assert not list(tmp_path.iterdir())


def test_pictures_at_home_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    save_sheet(torch.zeros(1, 1, 4, 4), "~/a/x.png")
    save_gif([torch.zeros(1, 1, 4, 4)], "~/b/x.gif")
    assert (tmp_path / "a" / "x.png").is_file() and (tmp_path / "b" / "x.gif").is_file()
    assert not list((tmp_path / "here").iterdir())


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="TensorBoard is not installed: `pip install tensorboard`"):
        TensorBoard(tmp_path)


def test_tensorboard_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[Progress]) -> None:
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def flush(self) -> None:
            calls.append(("flush",))

    fake = types.ModuleType("tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    board = TensorBoard(tmp_path, every=10)
    for p in steps[15:21]:
        board(p)
    expected = [("loss", 20.0, 20), ("gradient_norm", 1.5, 20), ("learning_rate", 1e-3, 20), ("flush",)]
    assert calls == [(str(tmp_path), 16), *expected]
