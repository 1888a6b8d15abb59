"""Judges: figures beside real images, Inception through torchmetrics, and what belongs together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from table_process import small_judge
from torch import Tensor, nn

from ddpm_from_scratch import judges, metrics
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.judges import check_dataset, check_shape, inception_judge, named_judge


def test_real_test_images_score_the_floor() -> None:
    judge = named_judge("digits")
    test = load_dataset("digits", "test", image_size=16)
    assert isinstance(test, ImageDataset)
    found = judge.figures(test.pixels, replicates=20)
    assert found.frechet == pytest.approx(judge.floor, rel=1e-3)
    assert found.frechet_floor == pytest.approx(judge.floor, rel=1e-9)
    assert found.kernel == pytest.approx(judge.kernel_floor, rel=1e-2, abs=1e-6)
    assert 0 < found.frechet_bias < found.frechet
    assert judge.name == "classifier of digits"


def test_figures_are_the_distances_of_the_features() -> None:
    judge = small_judge()
    pixels = torch.randint(256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found, features = judge.figures(pixels), judge.extract(pixels)
    own = metrics.gaussian_statistics(features)
    truth = metrics.frechet_distance(own.mean, own.covariance, judge.train.mean, judge.train.covariance)
    assert found.frechet == pytest.approx(truth) and found.num_samples == 30
    assert found.kernel == pytest.approx(metrics.kernel_distance(features, judge.train_features))
    with pytest.raises(ValueError, match=r"means takes images \(1, 8, 8\), these have \(3, 8, 8\)"):
        judge.figures(pixels.expand(-1, 3, -1, -1))


class StandIn(nn.Module):
    """In Inception's place: 8-bit colour images → the means of 4×4 pixels of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return nn.functional.avg_pool2d(x.float(), 4).flatten(1)


def digits() -> tuple[ImageDataset, ImageDataset]:
    train, test = (load_dataset("digits", split) for split in ("train", "test"))
    assert isinstance(train, ImageDataset) and isinstance(test, ImageDataset)
    return train, test


def test_inception_is_given_grey_images_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "inception_network", lambda device: StandIn())
    train, test = digits()
    judge = inception_judge(train, test)
    features = judge.extract(test.pixels)
    assert features.shape == (len(test), 12) and torch.equal(features[:, :4], features[:, 4:8])
    assert judge.train.count == len(train) and judge.test.count == len(test) and judge.name == "Inception on digits"
    assert judge.kernel_floor == pytest.approx(metrics.kernel_distance(judge.train_features, features))
    assert judge.figures(test.pixels[:50], replicates=5).frechet > 0


def test_missing_inception_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ModuleNotFoundError("torch-fidelity")

    def offline(*_: Any) -> None:
        raise OSError("no network")

    for fault, kind, says in ((missing, ImportError, "pip install torch-fidelity"), (offline, ConnectionError, "once")):
        module = SimpleNamespace(NoTrainInceptionV3=fault)
        monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.fid", module)
        with pytest.raises(kind, match=says):
            judges.inception_network()


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ("fashion", "mnist"),
        ("fashion", "digits"),
        ("digits", "fashion-10k"),
        ("digits", "mnist"),
        ("digits-conditional", "fashion"),
        ("digits-conditional", "cifar10"),
    ],
)
def test_a_dataset_of_the_same_shape_but_not_the_models_is_refused(model: str, dataset: str) -> None:
    with pytest.raises(ValueError, match=f"{model} was trained on"):
        check_dataset(model, dataset)


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ("fashion", "fashion"),
        ("fashion", "fashion-mnist"),
        ("digits", "digits"),
        ("digits-conditional", "digits"),
        ("digits-conditional", "digits-conditional"),
        ("own", "mnist"),
    ],
)
def test_what_belongs_together_passes(model: str, dataset: str) -> None:
    check_dataset(model, dataset)


def test_shapes_that_differ_are_refused() -> None:
    config = SimpleNamespace(sample_size=(8, 6), in_channels=1)
    check_shape((1, 8, 6), config, "the test takes")
    with pytest.raises(ValueError, match=r"\(1, 8, 6\), the test takes \(1, 8, 8\): train one with .*--image-size"):
        check_shape((1, 8, 8), config, "the test takes")
    with pytest.raises(ValueError, match=r"\(1, 8, 6\), the test takes \(3, 8, 6\): choose its own dataset"):
        check_shape((3, 8, 6), config, "the test takes")
