"""Who judges samples: a feature extractor with its view of real images, and the figures that it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_from_scratch import metrics, uncertainty
from ddpm_from_scratch.classifier import FeatureClassifier
from ddpm_from_scratch.data import ImageDataset
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.reference import (
    KERNEL_FEATURES,
    SHIPPED,
    Reference,
    classify,
    load_classifier,
    shipped_classifier,
)

INCEPTION_FEATURES = 2048
JUDGE_OF = {"digits": "digits", "digits-conditional": "digits", "fashion": "fashion"}
"""The shipped classifier of each shipped model."""
DATASETS_OF = {"digits": ("digits",), "fashion": ("fashion-10k", "fashion-mnist")}
"""The datasets of the shipped classifiers."""


@dataclass(frozen=True)
class Figures:
    """What a set of samples scores, each figure with its bootstrap interval and beside what real images score.

    Args:
        num_samples: N.
        frechet: Fréchet distance to the training images, of these N samples.
        frechet_low, frechet_high: its interval (`uncertainty.frechet_interval`).
        frechet_bias: how far it lies above that of infinitely many samples (`uncertainty.frechet_bias`).
        frechet_floor: what N real held-out images would score (`uncertainty.floor_at`).
        kernel, kernel_low, kernel_high, kernel_floor: kernel distance, likewise; it has no bias.
    """

    num_samples: int
    frechet: float
    frechet_low: float
    frechet_high: float
    frechet_bias: float
    frechet_floor: float
    kernel: float
    kernel_low: float
    kernel_high: float
    kernel_floor: float


@dataclass(frozen=True)
class Judge:
    """A feature extractor and the real images it has seen.

    Args:
        name: of the extractor and of its dataset, for tables: "classifier of digits".
        image_shape: (C, H, W) of the images it takes.
        extract: 8-bit images (N, C, H, W) → features (N, D).
        train, test: statistics of the training images' features and of those held out.
        train_features: (n, D), of training images, for the kernel distance.
        kernel_floor: kernel distance between these and the images held out.
        weights: hash of the extractor's weights; empty for one that never changes.
    """

    name: str
    image_shape: tuple[int, ...]
    extract: Callable[[Tensor], Tensor]
    train: metrics.GaussianStatistics
    test: metrics.GaussianStatistics
    train_features: Tensor
    kernel_floor: float
    weights: str = ""

    @property
    def floor(self) -> float:
        """Fréchet distance between the training images and those held out."""
        return metrics.frechet_distance(self.train.mean, self.train.covariance, self.test.mean, self.test.covariance)

    def figures(self, pixels: Tensor, replicates: int = uncertainty.REPLICATES, seed: int = 0) -> Figures:
        """The figures of 8-bit images (N, C, H, W), N ≥ 4; `replicates` and `seed` are those of the bootstrap.

        Raises:
            ValueError: too few images, or images of another shape than the extractor's.
        """
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise ValueError(f"{self.name} takes images {self.image_shape}, these have {tuple(pixels.shape[1:])}")
        features = self.extract(pixels)
        own = metrics.gaussian_statistics(features)
        frechet = uncertainty.frechet_interval(features, self.train, replicates, seed)
        kernel = uncertainty.kernel_interval(features, self.train_features, replicates, seed)
        return Figures(
            num_samples=len(pixels),
            frechet=metrics.frechet_distance(own.mean, own.covariance, self.train.mean, self.train.covariance),
            frechet_low=frechet.low,
            frechet_high=frechet.high,
            frechet_bias=uncertainty.frechet_bias(features, self.train, seed=seed),
            frechet_floor=uncertainty.floor_at(self.train, self.test, len(pixels)),
            kernel=metrics.kernel_distance(features, self.train_features),
            kernel_low=kernel.low,
            kernel_high=kernel.high,
            kernel_floor=self.kernel_floor,
        )


# ---------------------------------------------------------------- a classifier of the same data


def classifier_judge(classifier: FeatureClassifier, reference: Reference, name: str = "classifier") -> Judge:
    """A trained classifier as a judge: its features, and its reference."""
    return Judge(
        name=name,
        image_shape=classifier.image_shape,
        extract=lambda pixels: classify(classifier, pixels)[0],
        train=reference.train,
        test=reference.test,
        train_features=reference.train_features,
        kernel_floor=float(reference.kernel_floor),
        weights=model_hash(classifier),
    )


def named_judge(name: str, device: torch.device | str = "cpu") -> Judge:
    """The judge of a shipped dataset ("digits", "fashion"), or of a folder that `ddpm train-classifier` wrote.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier`.
    """
    network, reference = shipped_classifier(name) if name in SHIPPED else load_classifier(name)
    return classifier_judge(network.to(device), reference, f"classifier of {Path(name).name}")


# ---------------------------------------------------------------- Inception, as in the papers


def inception_network(device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """torchmetrics' Inception: 8-bit images (N, 3, H, W), which it resizes itself → features (N, 2048).

    Raises:
        ImportError: torchmetrics needs the package torch-fidelity for it, which is not installed.
        ConnectionError: its weights are not on this machine and could not be downloaded.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)]).to(device)
    except ModuleNotFoundError:
        raise ImportError(
            "Inception's features come from torchmetrics with torch-fidelity, which is not installed: "
            "`pip install torch-fidelity`, or leave --features at classifier"
        ) from None
    except OSError as error:  # URLError is one
        raise ConnectionError(
            f"Inception's weights are not here and could not be downloaded ({error}): connect once, or leave "
            "--features at classifier"
        ) from None


def inception_judge(train: ImageDataset, test: ImageDataset, device: torch.device | str = "cpu") -> Judge:
    """A judge by Inception's features, FID and KID as in the papers; grey images are given three times.

    Inception was trained on photographs of 299×299 pixels. Of small grey images it says what it can; compare such
    figures with each other, not with those of a paper.

    Args:
        train, test: the model's own dataset.
        device: where the network runs.

    Raises:
        ImportError, ConnectionError: as `inception_network`.
    """
    network: Any = inception_network(device)

    @torch.no_grad()
    def extract(pixels: Tensor) -> Tensor:
        parts = tqdm(pixels.split(64), desc="Inception", unit="batch", leave=False)
        return torch.cat([network(part.expand(-1, 3, -1, -1).to(device)).cpu() for part in parts])

    of_train, of_test = extract(train.pixels), extract(test.pixels)
    kept = of_train[:KERNEL_FEATURES]
    return Judge(
        name=f"Inception on {train.name}",
        image_shape=train.shape,
        extract=extract,
        train=metrics.gaussian_statistics(of_train),
        test=metrics.gaussian_statistics(of_test),
        train_features=kept,
        kernel_floor=metrics.kernel_distance(kept, of_test),
    )


# ---------------------------------------------------------------- what belongs together


def check_dataset(model: str, dataset: str) -> None:
    """Refuses a dataset that a shipped model was not trained on, where both have the same shape and nobody would see.

    Args:
        model: the name of a shipped model; of another, nothing is known and nothing refused.
        dataset: a dataset's name, or that of a shipped classifier.

    Raises:
        ValueError: they do not belong together.
    """
    if model not in JUDGE_OF:
        return
    judge = JUDGE_OF[model]
    known = {*DATASETS_OF, *(name for names in DATASETS_OF.values() for name in names), "mnist", "cifar10"}
    if dataset in known and dataset not in (judge, *DATASETS_OF[judge]):
        own = " or ".join(DATASETS_OF[judge])
        raise ValueError(f"the model {model} was trained on {own}, not on {dataset}: choose its own")


def check_shape(image_shape: tuple[int, ...], config: Any, what: str, advice: str | None = None) -> None:
    """Refuses a model that makes other images than those given.

    Args:
        image_shape: (C, H, W).
        config: of a U-Net.
        what: whose images these are, for the message.
        advice: what to do, unless it is to take another dataset or another size.

    Raises:
        ValueError: channels or sizes that differ.
    """
    size = config.sample_size
    height, width = (size, size) if size is None or isinstance(size, int) else size
    made = (config.in_channels, height, width)
    if made == tuple(image_shape):
        return
    if advice is None and made[0] != image_shape[0]:
        advice = "choose its own dataset"
    advice = advice or "train one with the other's size (--image-size), if both are of one dataset"
    raise ValueError(f"the model makes images of shape {made}, {what} {tuple(image_shape)}: {advice}")
