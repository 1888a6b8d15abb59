"""Making many samples, resuming, and judging them."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_from_scratch import evaluation
from ddpm_from_scratch.classifier import FeatureClassifier
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.evaluation import (
    Evaluation,
    SamplingSettings,
    check_fits,
    evaluate,
    generate,
    judge,
    labels_in_turn,
    sampling_minutes,
)
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.reference import Reference, measure, shipped_classifier
from ddpm_from_scratch.schedulers import DDPMScheduler
from ddpm_from_scratch.training import seeded

FAST = SamplingSettings(num_inference_steps=3)


def small_pipeline(seed: int = 0, channels: int = 1, **options: Any) -> DDPMPipeline:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        unet = small_unet((channels, 8, 8), widths=(16, 32), **options)
    return DDPMPipeline(unet.eval(), DDPMScheduler(variance_type="fixed_large"))


@pytest.fixture(scope="module")
def judges() -> tuple[FeatureClassifier, Reference]:
    """A classifier of 8×8 images as it comes from initialisation, and its reference on the digits."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        classifier = FeatureClassifier(8, 1, 10, widths=(8, 8, 8, 8)).eval()
    train, test = (load_dataset("digits", split) for split in ("train", "test"))
    assert isinstance(train, ImageDataset) and isinstance(test, ImageDataset)
    return classifier, measure(classifier, train, test)


def assert_same_images(found: Tensor, expected: Tensor) -> None:
    """Equal but for a grey level where the order of additions tips the rounding."""
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.01


# ---------------------------------------------------------------- making samples


@pytest.mark.parametrize(("scheduler", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
def test_samples_are_those_of_the_plain_pipeline(scheduler: str, eta: float) -> None:
    pipeline = small_pipeline()
    found = generate(pipeline, 4, replace(FAST, scheduler=scheduler, eta=eta, seed=5), batch_size=4)
    plain = DDIMPipeline(pipeline.unet, pipeline.scheduler) if scheduler == "ddim" else pipeline
    options = {"eta": eta} if scheduler == "ddim" else {}
    generators = [seeded(5, "sample", i) for i in range(4)]
    images = plain(4, generators, num_inference_steps=3, output_type="pt", **options).images
    assert torch.equal(found, (images * 255).round().to(torch.uint8))


def test_samples_do_not_depend_on_the_batch_and_follow_the_seed() -> None:
    pipeline = small_pipeline()
    whole = generate(pipeline, 7, FAST, batch_size=7)
    assert_same_images(generate(pipeline, 7, FAST, batch_size=3), whole)
    assert_same_images(generate(pipeline, 5, FAST), whole[:5])
    assert not torch.equal(generate(pipeline, 7, replace(FAST, seed=1), batch_size=7), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 7


def test_the_given_pipeline_keeps_its_scheduler_and_its_bar() -> None:
    pipeline = small_pipeline()
    pipeline.scheduler.set_timesteps(17)
    generate(pipeline, 2, FAST)
    assert isinstance(pipeline.scheduler, DDPMScheduler) and len(pipeline.scheduler.timesteps) == 17
    assert pipeline._progress_bar_config == {}


def test_conditional_models_are_asked_for_every_class_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = small_pipeline(num_classes=4)
    asked: list[Tensor] = []
    forward = pipeline.unet.forward

    def watched(x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        asked.append(class_labels)
        return forward(x, t, class_labels=class_labels)

    monkeypatch.setattr(pipeline.unet, "forward", watched)
    generate(pipeline, 10, replace(FAST, num_inference_steps=1), batch_size=6, num_classes=4)
    assert torch.cat(asked).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]  # never 4, the "no class" of guidance


@pytest.mark.parametrize(
    ("rows", "known", "named"), [(11, None, 10), (11, 10, 10), (5, 10, 4), (11, 4, 4), (10, 10, 10), (10, None, 9)]
)
def test_the_last_row_of_a_class_table_has_no_turn(rows: int, known: int | None, named: int) -> None:
    """Unless the data are known to have as many classes as there are rows."""
    assert labels_in_turn(range(3, 30), rows, known) == [i % named for i in range(3, 30)]
    assert labels_in_turn(range(2), None, known) is None and labels_in_turn(range(2), 1) == [0, 0]


@pytest.mark.parametrize(("rows", "highest"), [(3, 1), (10, 9), (11, 9)])
def test_a_model_is_judged_by_the_classes_it_has(
    judges: tuple[FeatureClassifier, Reference], monkeypatch: pytest.MonkeyPatch, rows: int, highest: int
) -> None:
    pipeline, asked = small_pipeline(num_classes=rows - 1), []
    forward = pipeline.unet.forward

    def watched(x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        asked.append(int(class_labels.max()))
        return forward(x, t, class_labels=class_labels)

    monkeypatch.setattr(pipeline.unet, "forward", watched)
    evaluate(pipeline, *judges, 24, SamplingSettings(num_inference_steps=1))
    assert asked == [highest]


def test_samples_at_home_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    generate(small_pipeline(), 2, SamplingSettings(num_inference_steps=1), folder="~/samples")
    assert (tmp_path / "samples" / "settings.json").is_file() and not list((tmp_path / "here").iterdir())
    assert sampling_minutes("~/samples") > 0


def test_bf16_is_close_to_float32() -> None:
    pipeline = small_pipeline()
    exact = generate(pipeline, 8, FAST)
    rough = generate(pipeline, 8, replace(FAST, precision="bf16"))
    assert 0 < (rough.float() - exact.float()).abs().mean() < 3
    assert pipeline.unet.dtype == torch.float32


def test_dropout_is_off_while_sampling() -> None:
    pipeline = small_pipeline()
    expected = generate(pipeline, 2, FAST)
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    pipeline.unet.train()
    assert torch.equal(generate(pipeline, 2, FAST), expected)


# ---------------------------------------------------------------- stopping and resuming


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = small_pipeline()
    made: list[range] = []
    make = evaluation._Sampler.__call__

    def tiring(self: Any, indices: range, bar: Any) -> Tensor:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(indices)
        return make(self, indices, bar)

    monkeypatch.setattr(evaluation._Sampler, "__call__", tiring)
    with pytest.raises(KeyboardInterrupt):
        generate(pipeline, 10, FAST, batch_size=3, folder=tmp_path)
    made.clear()
    resumed = generate(pipeline, 10, FAST, batch_size=4, folder=tmp_path)
    assert made == [range(6, 10)]
    made.clear()
    assert torch.equal(generate(pipeline, 8, FAST, folder=tmp_path), resumed[:8])
    assert made == []
    monkeypatch.setattr(evaluation._Sampler, "__call__", make)
    assert_same_images(resumed, generate(pipeline, 10, FAST, batch_size=10))


def test_a_given_bar_starts_at_what_was_found(tmp_path: Path) -> None:
    generate(small_pipeline(), 4, FAST, folder=tmp_path)
    per_sample = FAST.num_inference_steps
    with tqdm(total=10 * per_sample, file=io.StringIO(), miniters=10**9) as bar:
        bar.update(2 * per_sample)
        generate(small_pipeline(), 4, FAST, folder=tmp_path, bar=bar)
        assert bar.n == bar.last_print_n == 6 * per_sample
        generate(small_pipeline(), 7, FAST, folder=tmp_path, bar=bar)
        assert bar.n == (2 + 4 + 7) * per_sample


@pytest.mark.parametrize("change", ["seed", "num_inference_steps", "model", "schedule"])
def test_samples_of_another_kind_are_not_mixed(tmp_path: Path, change: str) -> None:
    pipeline, wanted = small_pipeline(), FAST
    generate(pipeline, 2, FAST, folder=tmp_path)
    if change == "model":
        pipeline = small_pipeline(seed=1)
    elif change == "schedule":
        pipeline.scheduler = DDPMScheduler(beta_end=0.03, variance_type="fixed_large")
    else:
        wanted = replace(FAST, **{change: 4})
    with pytest.raises(ValueError, match=f"samples with another {change}"):
        generate(pipeline, 2, wanted, folder=tmp_path)


@pytest.mark.parametrize("content", ["not JSON", "{}", "[]"])
def test_a_damaged_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="settings.json is damaged"):
        generate(small_pipeline(), 2, FAST, folder=tmp_path)


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    generate(small_pipeline(), 2, FAST, folder=tmp_path)
    (tmp_path / "samples_000000.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="samples_000000.safetensors"):
        generate(small_pipeline(), 2, FAST, folder=tmp_path)


def test_the_hash_depends_on_every_weight() -> None:
    model = small_pipeline().unet
    first = model_hash(model)
    assert first == model_hash(small_pipeline().unet) and len(first) == 12
    with torch.no_grad():
        model.conv_out.bias[0] += 1e-6
    assert model_hash(model) != first


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "wrong",
    [
        {"scheduler": "euler"},
        {"precision": "fp8"},
        {"eta": 1.5},
        {"eta": math.nan},
        {"eta": 0.5, "scheduler": "ddpm"},
        {"num_inference_steps": 0},
        {"seed": -1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name}.*got '?{value}"):
        SamplingSettings(**wrong)


@pytest.mark.parametrize(("samples", "batch"), [(0, 1), (2, 0)])
def test_no_samples_are_refused(samples: int, batch: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        generate(small_pipeline(), samples, FAST, batch)


def test_images_of_nan_are_not_taken_for_black() -> None:
    pipeline = small_pipeline()
    with torch.no_grad():
        next(pipeline.unet.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="images of NaN"):
        generate(pipeline, 2, FAST)


def test_a_classifier_of_other_images_is_refused_before_any_work(
    judges: tuple[FeatureClassifier, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "generate", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), the classifier takes \(1, 8, 8\)"):
        evaluate(small_pipeline(channels=3), *judges, num_samples=4)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), the classifier takes \(1, 16, 16\)"):
        check_fits(small_pipeline(), FeatureClassifier(16))
    with pytest.raises(ValueError, match="at least 2 samples"):
        evaluate(small_pipeline(), *judges, num_samples=1)


# ---------------------------------------------------------------- judging


def test_real_test_images_score_the_floor_and_pass() -> None:
    classifier, reference = shipped_classifier("digits")
    test = load_dataset("digits", "test", image_size=16)
    assert isinstance(test, ImageDataset)
    found = judge(test.pixels, classifier, reference)
    assert found.frechet == pytest.approx(found.frechet_floor, rel=1e-3)
    assert found.frechet_ratio == pytest.approx(1, rel=1e-3)
    assert found.kernel == pytest.approx(found.kernel_floor, rel=1e-2, abs=1e-6)
    assert found.frechet_floor_here == pytest.approx(found.frechet_floor, rel=1e-9)
    assert 0 < found.frechet_bias < found.frechet
    assert found.confident_share == pytest.approx(found.real_confident_share, abs=1 / 297)
    assert all(v.met for v in found.verdict())


def test_noise_and_a_lost_class_do_not_pass() -> None:
    classifier, reference = shipped_classifier("digits")
    test = load_dataset("digits", "test", image_size=16)
    assert isinstance(test, ImageDataset)
    noise = torch.randint(256, (300, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert [v.met for v in judge(noise, classifier, reference).verdict()][1:] == [False, False]
    without_threes = judge(test.pixels[test.labels != 3], classifier, reference)
    assert [v.met for v in without_threes.verdict()][:2] == [True, False]


def figures(**changed: Any) -> Evaluation:
    given: dict[str, Any] = {
        "num_samples": 100,
        "frechet": 1.0,
        "frechet_floor": 0.2,
        "kernel": 0.01,
        "kernel_floor": 0.001,
        "confident_share": 0.80,
        "real_confident_share": 0.84,
        "class_shares": [0.25, 0.75],
        "real_class_shares": [0.5, 0.5],
        "real_count": 50,
    }
    return Evaluation(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "met"),
    [
        ({}, [True, True, True]),
        ({"confident_share": 0.78}, [False, True, True]),
        ({"confident_share": 0.90}, [False, True, True]),
        ({"class_shares": [0.24, 0.76]}, [True, False, True]),
        ({"real_class_shares": [0.7, 0.3]}, [True, False, True]),
        ({"frechet": 1.01}, [True, True, False]),
        ({"frechet_floor": 0.0}, [True, True, False]),
    ],
)
def test_the_demands_hold_at_their_limits(changed: dict[str, Any], met: list[bool]) -> None:
    assert [v.met for v in figures(**changed).verdict()] == met


def test_evaluation_makes_and_judges(judges: tuple[FeatureClassifier, Reference], tmp_path: Path) -> None:
    pipeline = small_pipeline()
    found = evaluate(pipeline, *judges, num_samples=12, settings=FAST, batch_size=5, folder=tmp_path)
    again = judge(generate(pipeline, 12, FAST, folder=tmp_path), *judges)
    assert (found.frechet, found.kernel, found.class_shares) == (again.frechet, again.kernel, again.class_shares)
    assert found.settings == FAST and found.model == model_hash(pipeline.unet) and found.minutes > 0
    assert sum(found.class_shares) == pytest.approx(1)


def test_table_and_json_say_the_same() -> None:
    found = figures(settings=FAST, model="0123456789ab")
    table = found.table()
    assert "| Fréchet distance to the training images | 1.0000 | 0.2000 |" in table
    assert "| confident (> 0.9) | 80.00% | 84.00% |" in table and "5.00 times | yes |" in table
    facts = json.loads(found.to_json())
    assert facts["frechet_ratio"] == 5 and facts["settings"]["num_inference_steps"] == 3
    assert facts["minutes"] is None and [v["met"] for v in facts["verdict"]] == [True, True, True]
    lost = json.loads(figures(real_class_shares=[0.0, 1.0]).to_json())
    assert lost["share_ratios"] == [None, 0.75]
