"""The feature classifier, its training, its reference, and the two that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_from_scratch import metrics
from ddpm_from_scratch.classifier import FeatureClassifier, shifted, train_classifier
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.reference import (
    Reference,
    classify,
    load_classifier,
    make_reference_classifier,
    measure,
    shipped_classifier,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bars(count: int, seed: int) -> ImageDataset:
    """8×8 noise with a bright row (label 0), a bright column (1) or neither (2): easy to tell apart."""
    draw = generator(seed)
    pixels = torch.randint(0, 100, (count, 1, 8, 8), generator=draw)
    labels = torch.arange(count) % 3
    place = torch.randint(1, 7, (count,), generator=draw)
    for image, label, at in zip(pixels, labels.tolist(), place.tolist(), strict=True):
        if label == 0:
            image[:, at] = 255
        elif label == 1:
            image[:, :, at] = 255
    return ImageDataset(pixels.to(torch.uint8), labels, ("row", "column", "noise"), "bars")


@pytest.fixture(scope="module")
def trained() -> FeatureClassifier:
    return train_classifier(bars(300, 0), epochs=6, batch_size=30)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (16, 1, 10), (32, 3, 7)])
def test_shapes(size: int, channels: int, classes: int) -> None:
    model = FeatureClassifier(size, channels, classes, widths=(4, 8, 8, 6)).eval()
    x = torch.randn(3, *model.image_shape, generator=generator(0))
    assert model.image_shape == (channels, size, size)
    assert model.features(x).shape == (3, 6)
    assert model(x).shape == (3, classes)
    torch.testing.assert_close(model(x), model.head(model.features(x)))


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"num_classes": 0}, {"widths": (4, 4)}, {"widths": (4, 0, 4, 4)}])
def test_wrong_sizes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be positive and widths four"):
        FeatureClassifier(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3×3 at least, got 2"):
        FeatureClassifier(2)
    assert FeatureClassifier(3).eval()(torch.zeros(1, 1, 3, 3)).shape == (1, 10)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        train_classifier(bars(4, 0), epochs=0)


def test_saved_and_loaded_it_says_the_same(trained: FeatureClassifier, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = FeatureClassifier.from_pretrained(tmp_path)
    x = bars(10, 3).images()
    assert not loaded.training
    assert torch.equal(loaded(x), trained(x))
    assert loaded.config.widths == [32, 64, 128, 64] and loaded.config.image_size == 8


def test_another_model_is_not_taken_for_a_classifier(tmp_path: Path) -> None:
    small_unet((1, 8, 8), widths=(16,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="UNet2DModel.*not.* FeatureClassifier"):
        FeatureClassifier.from_pretrained(tmp_path)


# ---------------------------------------------------------------- training


def test_shifts_are_whole_pixels_each_its_own() -> None:
    x = torch.full((500, 1, 5, 5), -1.0)
    x[:, :, 2, 2] = 1
    moved = shifted(x, 1, generator(0))
    places = (moved == 1).nonzero()[:, 2:]
    assert moved.shape == x.shape and (moved.sum(dim=(1, 2, 3)) == -23).all() and len(places) == 500
    # the nine places are equally likely: that one of them stays empty in 500 draws has a probability below 1e-24
    assert {tuple(place) for place in places.tolist()} == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
    assert torch.equal(shifted(x, 0, generator(0)), x)


def test_black_moves_in() -> None:
    moved = shifted(torch.ones(200, 1, 4, 4), 2, generator(0))
    assert set(moved.unique().tolist()) == {-1.0, 1.0}
    assert (moved.flatten(1) == 1).sum(dim=1).min() == 4  # moved by two pixels both ways: 2×2 of 4×4 remain


def accuracy(model: FeatureClassifier, dataset: ImageDataset) -> float:
    return float((classify(model, dataset.pixels)[1].argmax(dim=1) == dataset.labels).double().mean())


def test_training_learns_what_can_be_learnt(trained: FeatureClassifier) -> None:
    assert not trained.training
    assert accuracy(trained, bars(150, 1)) > 0.95


def test_training_follows_the_seed_and_leaves_the_random_state_alone() -> None:
    data = bars(60, 0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, same, other = (train_classifier(data, epochs=1, batch_size=20, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(("shape", "label"), [((4, 1, 8, 6), 0), ((4, 1, 8, 8), -1)])
def test_images_that_cannot_train_a_classifier_are_refused(shape: tuple[int, ...], label: int) -> None:
    data = ImageDataset(torch.zeros(shape, dtype=torch.uint8), torch.full((4,), label))
    with pytest.raises(ValueError, match="square images with labels"):
        train_classifier(data)


# ---------------------------------------------------------------- the reference


def test_reference_is_what_the_classifier_sees(trained: FeatureClassifier, tmp_path: Path) -> None:
    train, test = bars(300, 0), bars(150, 1)
    reference = measure(trained, train, test)
    features, logits = trained.features(test.images()), trained(test.images())
    torch.testing.assert_close(reference.test_mean.float(), features.mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reference.test_covariance.float(), torch.cov(features.T), rtol=1e-3, atol=1e-5)
    assert (reference.train.count, reference.test.count) == (300, 150)
    kept = trained.features(train.images()).detach()
    torch.testing.assert_close(reference.train_features.float(), kept, rtol=1e-3, atol=1e-4)
    floor = metrics.kernel_distance(reference.train_features, features.detach())
    assert float(reference.kernel_floor) == pytest.approx(floor, rel=1e-4)
    assert float(reference.accuracy) == accuracy(trained, test)
    assert float(reference.confident_share) == pytest.approx(float((logits.softmax(1).amax(1) > 0.9).double().mean()))
    assert reference.class_shares.tolist() == pytest.approx(
        [float((logits.argmax(1) == k).double().mean()) for k in range(3)]
    )
    assert 0 < reference.frechet_floor < float(reference.train_covariance.trace())
    reference.save(tmp_path)
    trained.save_pretrained(tmp_path)
    classifier, loaded = load_classifier(tmp_path)
    assert all(torch.equal(getattr(loaded, name), value) for name, value in vars(reference).items())
    assert torch.equal(classifier(test.images()), logits)


def test_missing_and_foreign_references_are_refused(trained: FeatureClassifier, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ddpm train-classifier"):
        Reference.load(tmp_path)
    measure(trained, bars(30, 0), bars(30, 1)).save(tmp_path)
    FeatureClassifier(8, 1, 3, widths=(4, 4, 4, 4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not belong together"):
        load_classifier(tmp_path)
    (tmp_path / "reference.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        Reference.load(tmp_path)


def test_images_of_another_size_are_refused(trained: FeatureClassifier) -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), these have \(1, 9, 9\)"):
        classify(trained, torch.zeros(2, 1, 9, 9, dtype=torch.uint8))


def test_the_command_writes_a_whole_folder(tmp_path: Path) -> None:
    reference = make_reference_classifier("digits", tmp_path, epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "reference.safetensors",
        "README.md",
    }
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    command = "`ddpm train-classifier --dataset digits --epochs 1 --seed 0 --output DIR`"
    assert command in card and f"{float(reference.accuracy):.2%}" in card
    assert load_classifier(tmp_path)[0].image_shape == (1, 8, 8)


def test_a_folder_of_images_cannot_make_a_reference(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="has no 'test' split"):
        make_reference_classifier(str(tmp_path), tmp_path / "out")


# ---------------------------------------------------------------- those that ship


def test_shipped_digits_classifier_is_what_its_reference_says() -> None:
    classifier, reference = shipped_classifier("digits")
    train, test = (load_dataset("digits", split, image_size=16) for split in ("train", "test"))
    assert isinstance(train, ImageDataset) and isinstance(test, ImageDataset)
    assert float(reference.accuracy) >= 0.97
    assert accuracy(classifier, test) == pytest.approx(float(reference.accuracy), abs=1 / 297)
    found = metrics.gaussian_statistics(classify(classifier, train.pixels)[0])
    torch.testing.assert_close(found.mean, reference.train_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.covariance, reference.train_covariance, rtol=1e-3, atol=1e-4)


def test_shipped_fashion_classifier_is_what_its_reference_says() -> None:
    """On the 2,000 embedded test images, a part of the 10,000 behind the reference: each share within 5 standard errors
    of a draw without replacement (false alarm below 1e-5)."""
    classifier, reference = shipped_classifier("fashion")
    test = load_dataset("fashion-10k", "test")
    assert isinstance(test, ImageDataset)
    _, logits = classify(classifier, test.pixels)
    assert float(reference.accuracy) >= 0.92 and float(reference.calibration_error) < 0.03
    assert reference.train.count == 60_000 and reference.test.count == 10_000
    shares: list[tuple[float, Tensor]] = [
        (accuracy(classifier, test), reference.accuracy),
        (metrics.confident_share(logits), reference.confident_share),
        *zip(metrics.class_shares(logits), reference.class_shares, strict=True),
    ]
    for found, whole in shares:
        p = float(whole)
        assert abs(found - p) < 5 * (p * (1 - p) / 2000 * 0.8) ** 0.5


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="choose digits or fashion"):
        shipped_classifier("cifar")
