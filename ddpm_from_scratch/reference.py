"""What samples are compared with: a classifier's view of real training and test images, and how to make one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from ddpm_from_scratch import metrics
from ddpm_from_scratch.classifier import FeatureClassifier, train_classifier
from ddpm_from_scratch.data import ImageDataset, load_dataset, to_model_range
from ddpm_from_scratch.hub import read_shapes, read_weights, write_weights
from ddpm_from_scratch.training import check_writable

SHIPPED = ("digits", "fashion")
REFERENCE = "reference.safetensors"
KERNEL_FEATURES = 10_000
LICENCES = {
    "digits": "Optical Recognition of Handwritten Digits (UCI; CC BY 4.0), as in scikit-learn (BSD-3-Clause)",
    "fashion-mnist": "Fashion-MNIST, Copyright (c) 2017 Zalando SE, MIT licence",
    "fashion-10k": "Fashion-MNIST, Copyright (c) 2017 Zalando SE, MIT licence",
}


@dataclass(frozen=True)
class Reference:
    """Real images as a classifier sees them; tensors, float64 unless said.

    Args:
        train_mean, train_covariance, train_count: statistics of the training images' features.
        test_mean, test_covariance, test_count: the same for the test images.
        train_features: (n, D) float16, of the first training images, for the kernel distance.
        kernel_floor: kernel distance between them and the test images.
        class_shares: (K,) share of the test images that the classifier puts into each class.
        confident_share: share of the test images classified with a probability above 0.9.
        accuracy: on the test images.
        calibration_error: mean gap between confidence and accuracy on them, over 15 equal ranges of confidence.
    """

    train_mean: Tensor
    train_covariance: Tensor
    train_count: Tensor
    test_mean: Tensor
    test_covariance: Tensor
    test_count: Tensor
    train_features: Tensor
    kernel_floor: Tensor
    class_shares: Tensor
    confident_share: Tensor
    accuracy: Tensor
    calibration_error: Tensor

    @property
    def train(self) -> metrics.GaussianStatistics:
        """Statistics of the training images' features."""
        return metrics.GaussianStatistics(self.train_mean, self.train_covariance, int(self.train_count))

    @property
    def test(self) -> metrics.GaussianStatistics:
        """Statistics of the test images' features."""
        return metrics.GaussianStatistics(self.test_mean, self.test_covariance, int(self.test_count))

    @property
    def frechet_floor(self) -> float:
        """Fréchet distance between training and test images: what a perfect model of so many samples would get."""
        return metrics.frechet_distance(self.train_mean, self.train_covariance, self.test_mean, self.test_covariance)

    def save(self, folder: str | Path) -> None:
        """Writes `reference.safetensors` into the folder."""
        state = {field.name: getattr(self, field.name).contiguous() for field in fields(self)}
        write_weights(Path(folder) / REFERENCE, state)

    @classmethod
    def load(cls, folder: str | Path) -> Reference:
        """The reference saved in a folder.

        Raises:
            FileNotFoundError: no reference there.
            ValueError: a damaged file, or one of something else.
        """
        path = Path(folder) / REFERENCE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {REFERENCE}: make it with `ddpm train-classifier`")
        state = read_tensors(path)
        if set(state) != {field.name for field in fields(cls)}:
            raise ValueError(f"{path} is not a reference of this version: make it anew with `ddpm train-classifier`")
        return cls(**state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        ValueError: a damaged file.
    """
    read_shapes([path])
    return read_weights([path])


@torch.no_grad()
def classify(classifier: FeatureClassifier, pixels: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, K), float32, of 8-bit images (N, C, H, W).

    Raises:
        ValueError: images of another shape than the classifier's.
    """
    if tuple(pixels.shape[1:]) != classifier.image_shape:
        raise ValueError(
            f"the classifier takes images of shape {classifier.image_shape}, these have {tuple(pixels.shape[1:])}: "
            "choose the classifier of their dataset and size"
        )
    features = [classifier.features(to_model_range(part).to(classifier.device)) for part in pixels.split(batch_size)]
    stacked = torch.cat(features)
    return stacked.cpu(), classifier.head(stacked).cpu()


def measure(classifier: FeatureClassifier, train: ImageDataset, test: ImageDataset) -> Reference:
    """The reference of a classifier: how it sees the training and the test images of a dataset."""
    train_features, _ = classify(classifier, train.pixels)
    test_features, logits = classify(classifier, test.pixels)
    of_train, of_test = (metrics.gaussian_statistics(f) for f in (train_features, test_features))
    kept = train_features[:KERNEL_FEATURES].half()
    return Reference(
        train_mean=of_train.mean,
        train_covariance=of_train.covariance,
        train_count=torch.tensor(of_train.count),
        test_mean=of_test.mean,
        test_covariance=of_test.covariance,
        test_count=torch.tensor(of_test.count),
        train_features=kept,
        kernel_floor=_scalar(metrics.kernel_distance(kept, test_features)),
        class_shares=torch.tensor(metrics.class_shares(logits)).double(),
        confident_share=_scalar(metrics.confident_share(logits)),
        accuracy=(logits.argmax(dim=1) == test.labels).double().mean(),
        calibration_error=_scalar(metrics.calibration_error(logits, test.labels)),
    )


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# ---------------------------------------------------------------- loading


def load_classifier(folder: str | Path) -> tuple[FeatureClassifier, Reference]:
    """A classifier and its reference, from a folder that `ddpm train-classifier` wrote.

    Raises:
        FileNotFoundError, ValueError: nothing there, or files that are damaged or do not fit together.
    """
    classifier, reference = FeatureClassifier.from_pretrained(folder), Reference.load(folder)
    if len(reference.train_mean) != classifier.head.in_features:
        raise ValueError(f"{folder}: the reference and the classifier do not belong together")
    return classifier, reference


def shipped_classifier(name: str) -> tuple[FeatureClassifier, Reference]:
    """A classifier that comes with the package, and its reference.

    Args:
        name: "digits" (16×16) or "fashion" (28×28).

    Raises:
        ValueError: another name.
    """
    if name not in SHIPPED:
        raise ValueError(f"no classifier named {name!r} comes with the package: choose {' or '.join(SHIPPED)}")
    return load_classifier(Path(str(files("ddpm_from_scratch") / "assets" / "classifiers" / name)))


# ---------------------------------------------------------------- making


def make_reference_classifier(
    dataset: str,
    output: str | Path,
    root: str | Path | None = None,
    image_size: int | None = None,
    epochs: int = 8,
    seed: int = 0,
) -> Reference:
    """Trains a classifier and writes it to a folder with its reference and its model card.

    Args:
        dataset, root, image_size: as in `load_dataset`; both splits are needed.
        output: folder for `config.json`, the weights, `reference.safetensors` and `README.md`.
        epochs: passes over the training images.
        seed: of everything random.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_dataset` and `train_classifier`.
        OSError: `output` cannot be written to.
    """
    train, test = (load_dataset(dataset, split, root, image_size) for split in ("train", "test"))
    if not isinstance(train, ImageDataset) or not isinstance(test, ImageDataset):
        raise ValueError(f"{dataset} is a folder of images: a classifier needs a dataset with labels and a test split")
    check_writable(Path(output))
    began = time.process_time()
    classifier = train_classifier(train, epochs=epochs, seed=seed)
    minutes = (time.process_time() - began) / 60
    reference = measure(classifier, train, test)
    classifier.save_pretrained(output)
    reference.save(output)
    size = f" --image-size {image_size}" if image_size else ""
    place = " --root data" if root else ""
    command = f"ddpm train-classifier --dataset {dataset}{place}{size} --epochs {epochs} --seed {seed} --output DIR"
    card = model_card(train, test, classifier, reference, command, minutes)
    (Path(output) / "README.md").write_text(card, encoding="utf-8")
    return reference


def model_card(
    train: ImageDataset,
    test: ImageDataset,
    classifier: FeatureClassifier,
    reference: Reference,
    command: str,
    minutes: float,
) -> str:
    """What a reader should know of a classifier, as Markdown; `minutes` are those of one core."""
    channels, height, width = train.shape
    names = train.classes or [str(i) for i in range(classifier.config.num_classes)]
    shares = "\n".join(f"| {c} | {s:.1%} |" for c, s in zip(names, reference.class_shares.tolist(), strict=True))
    return f"""# Classifier of {train.name}, {height}×{width}

It judges samples: its {classifier.head.in_features} features carry the Fréchet and the kernel distance, its
probabilities say how often an image is recognised. {classifier.num_parameters():,} parameters; it takes
images ({channels}, {height}, {width}) in [-1, 1].

| | |
|---|---|
| data | {train.name}: {len(train):,} training and {len(test):,} test images |
| command | `{command}` |
| training time | {minutes:.1f} minutes of one core, on a machine with {os.cpu_count()} CPU cores |
| accuracy on test images | {float(reference.accuracy):.2%} |
| confident (probability > 0.9) on test images | {float(reference.confident_share):.2%} |
| expected calibration error on test images | {float(reference.calibration_error):.4f} |
| Fréchet distance, training against test images (the floor) | {reference.frechet_floor:.4f} |
| kernel distance, training against test images | {float(reference.kernel_floor):.2e} |

The test images were used for nothing but these figures. `reference.safetensors` holds the means and covariances of the
features of both sets, and the features of the first {len(reference.train_features):,} training images (half precision).

| class | share of the test images, as classified |
|---|---|
{shares}

Licence: MIT for the weights. Data: {LICENCES.get(train.name, "see the dataset's own terms")}.
"""
