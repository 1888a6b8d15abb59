"""The table of few steps: its cells, stopping and resuming, what it refuses, what it records."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from table_process import CELLS, PLAN, small_judge, small_pipeline
from torch import Tensor

from ddpm_from_scratch import evaluation, few_steps
from ddpm_from_scratch.classifier import FeatureClassifier
from ddpm_from_scratch.data import ImageDataset
from ddpm_from_scratch.evaluation import SamplingSettings, generate, sampling_minutes
from ddpm_from_scratch.few_steps import SIGMA_HAT, Cell, Plan, Table, few_steps_table, quadratic_timesteps
from ddpm_from_scratch.judges import classifier_judge
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.provenance import command_line, machine, model_hash
from ddpm_from_scratch.reference import measure
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

SCRIPT = Path(__file__).with_name("table_process.py")
ONE = Plan(rows=("0",), columns=(2,), num_samples=6, long_columns=(), repeat_columns=(), quadratic_columns=())


def make(folder: Path, plan: Plan = PLAN, **options: Any) -> Table:
    return few_steps_table(small_pipeline(), small_judge(), folder, plan, batch_size=5, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    """The table that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, make(folder, model="small", command="ddpm eval small")


def figures(table: Table) -> list[Any]:
    """All but the minutes."""
    return [(one.cell, one.figures) for one in table.results]


# ---------------------------------------------------------------- timesteps and cells


@pytest.mark.parametrize("steps", [1, 10, 20, 50, 63])
def test_quadratic_timesteps_are_dense_at_the_clean_end(steps: int) -> None:
    table = quadratic_timesteps(steps)
    assert len(table) == steps and table[0] == 999
    gaps = [a - b for a, b in zip(table, table[1:], strict=False)]
    assert all(gap >= 1 for gap in gaps)
    assert all(early >= late - 1 for early, late in zip(gaps, gaps[1:], strict=False)), "gaps shrink towards t = 0"
    DDIMScheduler().set_timesteps(timesteps=table)


@pytest.mark.parametrize("steps", [0, 64, 100, 1000, 1001])
def test_timesteps_taken_twice_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="twice|must lie in"):
        quadratic_timesteps(steps)


@pytest.mark.parametrize("timesteps", [(5, 5, 0), (0, 5, 9), (9, 5)])
def test_settings_refuse_timesteps_that_do_not_descend_or_are_not_S(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        SamplingSettings(num_inference_steps=3, timesteps=timesteps)
    with pytest.raises(ValueError, match="timesteps"):
        SamplingSettings("ddpm", 3, timesteps=(9, 5, 0))
    with pytest.raises(ValueError, match="variance_type"):
        SamplingSettings("ddim", variance_type="fixed_large")


def test_given_timesteps_are_visited() -> None:
    """The images are those of DDIM by hand at these timesteps."""
    pipeline, table = small_pipeline(), (900, 400, 30)
    found = generate(pipeline, 2, SamplingSettings(num_inference_steps=3, timesteps=table))
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(timesteps=table)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=evaluation.seeded(0, "sample", i)) for i in range(2)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    assert (found.int() - ((x / 2 + 0.5).clamp(0, 1) * 255).round().int()).abs().max() <= 1
    assert not torch.equal(found, generate(pipeline, 2, SamplingSettings(num_inference_steps=3)))


def test_sigma_hat_is_ddpm_with_the_large_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Cell(SIGMA_HAT, 4, 2).settings(1000)
    sampler = evaluation._Sampler(small_pipeline(), settings, 10)
    assert sampler.pipeline.scheduler.variance_type == "fixed_large"
    assert settings.scheduler == "ddpm"
    assert Cell("0.2", 4, 2).settings(1000).eta == 0.2


def test_rows_of_eta_can_be_made_without_clipping() -> None:
    """The images are those of the same sampler whose scheduler does not clip; σ̂ is made as ever."""
    pipeline = small_pipeline()
    unclipped = DDPMPipeline(pipeline.unet, DDPMScheduler(clip_sample=False))
    cell = Cell("0", 3, 2)
    found = generate(pipeline, 2, cell.settings(1000, clip_sample=False))
    assert torch.equal(found, generate(unclipped, 2, cell.settings(1000)))
    assert not torch.equal(found, generate(pipeline, 2, cell.settings(1000)))
    assert Cell(SIGMA_HAT, 3, 2).settings(1000, clip_sample=False) == Cell(SIGMA_HAT, 3, 2).settings(1000)


def test_a_model_that_learns_the_variance_has_all_rows(tmp_path: Path) -> None:
    """σ̂ has a variance of its own, and so has DDIM."""
    unet = small_unet((1, 8, 8), (16,), learned_variance=True).eval()
    pipeline = DDPMPipeline(unet, DDPMScheduler(variance_type="learned_range"))
    plan = replace(ONE, rows=("0", SIGMA_HAT), num_samples=4)
    table = few_steps_table(pipeline, small_judge(), tmp_path, plan)
    assert [one.cell.row for one in table.results] == ["0", SIGMA_HAT]


def test_the_default_plan_is_the_papers_shape() -> None:
    cells = Plan().cells()
    assert len(cells) == 5 * 4 + 3 + 4 * 2 + 3
    assert {cell.num_samples for cell in cells if cell.steps < 1000} == {5000}
    assert [(cell.row, cell.num_samples) for cell in cells if cell.steps == 1000] == [
        ("0", 1000),
        ("1", 1000),
        (SIGMA_HAT, 1000),
    ]
    repeated = {(cell.row, cell.steps) for cell in cells if cell.seed == 2}
    assert repeated == {("0", 10), ("0", 50), ("1", 10), ("1", 50)}
    assert [(cell.row, cell.steps) for cell in cells if cell.quadratic] == [("0", 10), ("0", 20), ("0", 50)]
    assert cells == sorted(cells, key=lambda cell: cell.steps)
    assert set(few_steps.PAPER) == set(Plan().rows) and few_steps.PAPER_STEPS == Plan().columns


# ---------------------------------------------------------------- the run


def test_every_cell_has_the_figures_of_its_samples(whole: tuple[Path, Table]) -> None:
    _, table = whole
    assert len(table.results) == CELLS and table.model_hash == model_hash(small_pipeline().unet)
    for one in table.results:
        samples = generate(small_pipeline(), 12, one.cell.settings(1000), batch_size=5)
        assert small_judge().figures(samples) == one.figures
        assert one.figures.frechet_low <= one.figures.frechet <= one.figures.frechet_high
        assert one.figures.kernel_low <= one.figures.kernel <= one.figures.kernel_high
    assert len({one.figures.frechet for one in table.results}) == CELLS, "every cell is another set of samples"


def test_table_json_csv_and_markdown_say_the_same(whole: tuple[Path, Table]) -> None:
    folder, table = whole
    assert Table.from_json((folder / "table.json").read_text(encoding="utf-8")) == table
    lines = list(csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(line["frechet"]) for line in lines] == [one.figures.frechet for one in table.results]
    page = (folder / "table.md").read_text(encoding="utf-8")
    for text in (
        "`ddpm eval small`",
        table.model_hash,
        "minutes on",
        "CPU cores",
        "| σ̂ |",
        "η = 0, quadratic",
        "floor",
    ):
        assert text in page, text
    assert table.grid("frechet").splitlines()[0] == "| | S = 2 | S = 5 |"
    first = table.result("0", 2)
    assert first is not None and f"{first.figures.frechet:.3g}" in table.grid("frechet").splitlines()[2]
    assert table.result("0.7", 2) is None and table.result("0", 2, seed=1) != first
    assert str(folder) not in page + table.to_json() and os.path.expanduser("~") not in page
    with pytest.raises(ValueError, match="no table"):
        Table.from_json("{}")


def test_interrupted_and_resumed_equals_uninterrupted(
    whole: tuple[Path, Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of the third cell: only its second batch and what follows are made afterwards."""
    made: list[range] = []
    sampler = evaluation._Sampler.__call__

    def tiring(self: Any, indices: range, bar: Any) -> Tensor:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(indices)
        return sampler(self, indices, bar)

    monkeypatch.setattr(evaluation._Sampler, "__call__", tiring)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert len(list(tmp_path.glob("*/figures.json"))) == 2
    made.clear()
    monkeypatch.setattr(evaluation._Sampler, "__call__", lambda self, i, bar: made.append(i) or sampler(self, i, bar))
    assert figures(make(tmp_path)) == figures(whole[1])
    assert len(made) == 3 * CELLS - 7 and made[0] == range(5, 10)
    made.clear()
    assert figures(make(tmp_path)) == figures(whole[1]) and made == []


def test_killed_process_loses_no_finished_cell(whole: tuple[Path, Table], tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/figures.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.read_bytes() for path in tmp_path.glob("*/figures.json")}
    assert kept
    assert figures(make(tmp_path)) == figures(whole[1])
    assert all(path.read_bytes() == before for path, before in kept.items()), "a finished cell was made again"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cell": 1}'])
def test_a_damaged_cell_is_judged_anew_from_its_samples(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(tmp_path, ONE)
    path = tmp_path / ONE.cells()[0].name / "figures.json"
    path.write_text(content)
    monkeypatch.setattr(evaluation._Sampler, "__call__", lambda *_: pytest.fail("samples were made again"))
    assert figures(make(tmp_path, ONE)) == figures(before)
    assert json.loads(path.read_text(encoding="utf-8"))["cell"]["row"] == "0"


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    make(tmp_path, ONE)
    folder = tmp_path / ONE.cells()[0].name
    (folder / "figures.json").unlink()
    (folder / "samples_000005.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="samples_000005.safetensors"):
        make(tmp_path, ONE)


def test_another_judge_and_more_samples_use_the_samples_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path, ONE)
    more = make(tmp_path, replace(ONE, num_samples=11))
    assert more.results[0].figures.num_samples == 11
    monkeypatch.setattr(evaluation._Sampler, "__call__", lambda *_: pytest.fail("samples were made again"))
    other = few_steps_table(small_pipeline(), small_judge("other"), tmp_path, ONE)
    assert other.judge == "other" and figures(other) == figures(first)


def test_a_judge_trained_anew_under_its_old_name_judges_anew(tmp_path: Path) -> None:
    classifiers = [FeatureClassifier(8, widths=(4, 4, 4, 4 + i)).eval() for i in range(2)]
    data = ImageDataset(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))
    judges = [classifier_judge(one, measure(one, data, data), "mine") for one in classifiers]
    before, after = (few_steps_table(small_pipeline(), judge, tmp_path, ONE) for judge in judges)
    fresh = few_steps_table(small_pipeline(), judges[1], tmp_path / "fresh", ONE)
    assert figures(after) == figures(fresh) != figures(before)


def test_minutes_are_those_of_all_batches(tmp_path: Path) -> None:
    table = make(tmp_path, ONE)
    assert 0 < sampling_minutes(tmp_path / ONE.cells()[0].name) < table.minutes == table.results[0].minutes


# ---------------------------------------------------------------- refusals


def test_another_model_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ONE)
    with pytest.raises(ValueError, match="samples with another model"):
        few_steps_table(small_pipeline(seed=1), small_judge(), tmp_path, ONE)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rows": ("0", "x")}, "a number η"),
        ({"rows": ("0", "1.5")}, r"eta must lie in \[0, 1\]"),
        ({"rows": ("0", "0")}, "none twice"),
        ({"rows": ()}, "rows and columns"),
        ({"columns": (2, 1001)}, r"S \(--columns\) must lie in \[1, 1000\], .* got 1001"),
        ({"columns": (0, 2)}, r"S \(--columns\) must lie in \[1, 1000\], .* got 0"),
        ({"columns": (100,), "quadratic_columns": (100,)}, "twice"),
        ({"rows": (SIGMA_HAT,), "quadratic_columns": (2,), "quadratic_rows": (SIGMA_HAT,)}, "quadratic"),
        ({"num_samples": 3}, "at least 4 samples"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, changed: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_steps, "generate", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(ValueError, match=says):
        make(tmp_path / "new", replace(ONE, **changed))
    assert not (tmp_path / "new").exists()


def test_a_judge_of_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), the means takes \(1, 16, 16\)"):
        few_steps_table(small_pipeline(), replace(small_judge(), image_shape=(1, 16, 16)), tmp_path, ONE)


# ---------------------------------------------------------------- provenance


def test_command_and_machine_name_no_folder(tmp_path: Path) -> None:
    options = {"table": "ddim", "output": tmp_path, "none": None, "off": False, "on": True, "num": 3}
    found = command_line("eval", str(tmp_path), options)
    assert found == f"ddpm eval {tmp_path.name} --table ddim --output DIR --on --num 3"
    assert "CPU cores" in machine() and "PyTorch" in machine() and os.uname().nodename not in machine().split()


@pytest.mark.parametrize(
    ("allowed", "capability", "said"), [(True, (9, 0), True), (True, (7, 5), False), (False, (9, 0), False)]
)
def test_the_machine_says_where_float32_is_not_quite(
    monkeypatch: pytest.MonkeyPatch, allowed: bool, capability: tuple[int, int], said: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert machine("cuda").startswith("GPU") and ("TF32" in machine("cuda")) is said
