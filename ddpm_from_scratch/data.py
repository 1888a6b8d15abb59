"""Datasets: small ones that ship with the package, torchvision's, and any folder of images.

Every dataset yields `(image, label)`: the image float32 in [-1, 1], shape (C, H, W), and an integer label, -1 where
there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

EMBEDDED = ("digits", "fashion-10k")
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
DATASETS = (*EMBEDDED, *TORCHVISION)
DEFAULT_ROOT = "~/.cache/ddpm_from_scratch/data"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def to_model_range(pixels: Tensor) -> Tensor:
    """8-bit pixels 0..255 → float32 in [-1, 1] (Ho section 3.3)."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] (values outside are clamped) → 8-bit pixels 0..255, rounded to the nearest."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images held in memory as 8-bit pixels.

    Args:
        pixels: (N, C, H, W), uint8.
        labels: (N,), int64, -1 where there is none.
        classes: names of the classes, by label.
        name: what the dataset is called in logs and model cards.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes: Sequence[str] = (), name: str = "images") -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
            raise ValueError(f"expected uint8 pixels (N, C, H, W) and N labels, got {pixels.dtype} {pixels.shape}")
        self.pixels, self.labels, self.classes, self.name = pixels, labels, tuple(classes), name

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_model_range(self.pixels[index]), int(self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def images(self, indices: slice | Tensor | Sequence[int] = slice(None)) -> Tensor:
        """A batch of images in [-1, 1], (n, C, H, W)."""
        return to_model_range(self.pixels[indices])

    def resized(self, size: int) -> ImageDataset:
        """The same images, square of side `size`, resampled bilinearly with antialiasing."""
        if self.pixels.shape[2:] == (size, size):
            return self
        resample = torch.nn.functional.interpolate
        pixels = resample(self.pixels.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
        return ImageDataset(pixels.round().clamp(0, 255).to(torch.uint8), self.labels, self.classes, self.name)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Every image below a folder, decoded when asked for, cropped to the middle square and resized.

    If the images lie in sub-folders, the sub-folders' names are the classes.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
        ValueError: an image that cannot be read, when it is asked for.
    """

    def __init__(self, folder: str | Path, image_size: int = 32, channels: int = 3) -> None:
        if image_size < 1 or channels not in (1, 3):
            raise ValueError(f"image_size must be positive and channels 1 or 3, got {image_size} and {channels}")
        root = Path(folder).expanduser()
        found = root.rglob("*") if root.is_dir() else ()
        self.paths = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not self.paths:
            raise FileNotFoundError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {root}")
        owners = [path.relative_to(root).parts[0] if path.parent != root else "" for path in self.paths]
        self.classes = tuple(sorted(set(owners) - {""}))
        self.labels = torch.tensor([self.classes.index(o) if o else -1 for o in owners])
        self.image_size, self.channels, self.name = image_size, channels, root.name

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            with Image.open(self.paths[index]) as opened:
                image = opened.convert("RGB" if self.channels == 3 else "L")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.paths[index]} cannot be read as an image ({error}): remove or repair it") from None
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS, box=box)
        pixels = torch.from_numpy(np.array(image)).view(self.image_size, self.image_size, self.channels)
        return to_model_range(pixels.permute(2, 0, 1)), int(self.labels[index])  # (H, W, C) → (C, H, W)


def load_dataset(
    name: str | Path,
    split: str = "train",
    root: str | Path | None = None,
    image_size: int | None = None,
    channels: int = 3,
) -> ImageDataset | ImageFolder:
    """A dataset by name, or a folder of images.

    Args:
        name: "digits" (8×8, scikit-learn) or "fashion-10k" (28×28), which come with the package; "mnist",
            "fashion-mnist" or "cifar10", read from `root` or downloaded into it; or a folder.
        split: "train" or "test"; a folder has only "train".
        root: where torchvision's data is or goes, by default `~/.cache/ddpm_from_scratch/data`.
        image_size: resize to this side; a folder's default is 32.
        channels: of a folder's images, 3 or 1.

    Raises:
        FileNotFoundError: neither a known name nor a folder, or an empty folder.
        ConnectionError: the data is not in `root` and cannot be downloaded.
        ValueError: an unknown split or size.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if image_size is not None and not 1 <= image_size <= 4096:
        raise ValueError(f"image_size must lie in [1, 4096], got {image_size}")
    if name == "digits":
        dataset = _digits(split)
    elif name == "fashion-10k":
        dataset = _fashion_10k(split)
    elif name in TORCHVISION:
        dataset = _torchvision(str(name), split, Path(root or DEFAULT_ROOT).expanduser())
    elif Path(name).expanduser().is_dir():
        if split != "train":
            raise ValueError(f"a folder has no {split!r} split: give the test images' own folder")
        return ImageFolder(name, image_size or 32, channels)
    else:
        raise FileNotFoundError(f"{name} is neither a folder nor a known dataset ({', '.join(DATASETS)})")
    return dataset if image_size is None else dataset.resized(image_size)


def _digits(split: str) -> ImageDataset:
    """scikit-learn's 1,797 digits of 8×8 pixels and 17 grey levels: the first 1,500 to train, the rest to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    part = slice(0, 1500) if split == "train" else slice(1500, None)
    pixels = torch.from_numpy(data.images[part] * 255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(data.target[part]).long()
    return ImageDataset(pixels[:, None], labels, [str(i) for i in range(10)], "digits")


def _fashion_10k(split: str) -> ImageDataset:
    """The embedded part of Fashion-MNIST, stored as one sheet of 28×28 tiles per split."""
    folder = files("ddpm_from_scratch") / "assets" / "data"
    with (folder / f"fashion_10k_{split}.png").open("rb") as opened:
        sheet = torch.from_numpy(np.array(Image.open(opened)))
    rows, columns = sheet.shape[0] // 28, sheet.shape[1] // 28
    tiles = sheet.view(rows, 28, columns, 28).transpose(1, 2).reshape(-1, 1, 28, 28)
    with (folder / "fashion_10k_labels.npz").open("rb") as opened:
        labels = torch.from_numpy(np.load(opened)[split]).long()
    return ImageDataset(tiles.contiguous(), labels, FASHION_CLASSES, "fashion-10k")


def _torchvision(name: str, split: str, root: Path) -> ImageDataset:
    from torchvision import datasets

    loader = getattr(datasets, TORCHVISION[name])
    train = split == "train"
    try:
        found = loader(root, train=train, download=False)
    except RuntimeError:
        try:
            found = loader(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConnectionError(
                f"{name} is not in {root} and could not be downloaded ({reason[0]}): connect once, or give the "
                f"folder that holds {TORCHVISION[name]} in torchvision's layout (--root); 'digits' and 'fashion-10k' "
                "need no network"
            ) from None
    pixels = torch.as_tensor(found.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) → NCHW
    return ImageDataset(pixels, torch.as_tensor(found.targets).long(), found.classes, name)
