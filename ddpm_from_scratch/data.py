"""Datasets: small ones that ship with the package, torchvision's, and any folder of images.

Every dataset yields `(image, label)`: the image float32 in [-1, 1], shape (C, H, W), and an integer label, -1 where
there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
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

        def resample(part: Tensor) -> Tensor:
            big = interpolate(part.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
            return big.round().clamp(0, 255).to(torch.uint8)

        pixels = torch.cat([resample(part) for part in self.pixels.split(1000)])
        return ImageDataset(pixels, self.labels, self.classes, self.name)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Every image below a folder, decoded when asked for, cropped to the middle square and resized.

    If the images lie in sub-folders, the names of the first level are the classes. Links are followed, hidden files and
    folders are left out. Images are turned upright as their EXIF data says; what is transparent becomes white.

    Args:
        folder: searched in full depth for files that end in one of `IMAGE_SUFFIXES`.
        image_size: side of the images that come out.
        channels: 3 for colour, 1 for grey.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
        ValueError: an image that cannot be read, when it is asked for.
    """

    def __init__(self, folder: str | Path, image_size: int = 32, channels: int = 3) -> None:
        if image_size < 1 or channels not in (1, 3):
            raise ValueError(f"image_size must be positive and channels 1 or 3, got {image_size} and {channels}")
        root = Path(folder).expanduser()
        found = list(_image_files(root))
        if not found:
            what = (
                f"no images ({', '.join(IMAGE_SUFFIXES)}) in {root}" if root.is_dir() else f"there is no folder {root}"
            )
            raise FileNotFoundError(what)
        self.paths = [path for _, path in found]
        self.classes = tuple(sorted({owner for owner, _ in found} - {""}))
        label = {name: i for i, name in enumerate(self.classes)} | {"": -1}
        self.labels = torch.tensor([label[owner] for owner, _ in found])
        self.image_size, self.channels, self.name = image_size, channels, root.resolve().name

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_image(self.paths[index], self.channels)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).view(self.image_size, self.image_size, self.channels)
        return to_model_range(pixels.permute(2, 0, 1)), int(self.labels[index])  # (H, W, C) → (C, H, W)


def _image_files(root: Path) -> Iterator[tuple[str, str]]:
    """(first-level folder or "", path) of every image below `root`, in order; each real folder is entered once."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        inside = Path(folder).relative_to(root).parts
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") and os.path.isfile(path):
                yield inside[0] if inside else "", path


def read_image(path: str | Path, channels: int = 3) -> Image.Image:
    """An image file as 8-bit RGB or grey, upright, on white where it is transparent, 16-bit values scaled to 8.

    Raises:
        ValueError: it cannot be read: damaged, no image, of 32-bit values, or too large to decode safely.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "F" or (image.mode == "I" and opened.format != "PNG"):  # a PNG has 16 bits at most
                raise ValueError("its values are 32-bit numbers of unknown range")
            if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut off at 255
                values = np.asarray(image).astype(np.int64)
                values[values == image.info.get("transparency")] = 65535
                image = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
            if image.mode == "LAB":  # which Pillow turns into colours, but not into grey
                image = image.convert("RGB")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB" if channels == 3 else "L")
    except Exception as error:  # decoders raise many kinds on damaged files
        raise ValueError(
            f"{path} cannot be read as an image ({error}): remove or repair it (a run is "
            "resumed only with as many images: replace it by a whole one)"
        ) from None


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
        ValueError: an unknown split or size, or damaged files in `root`.
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
    elif name and Path(name).expanduser().is_dir():
        if split != "train":
            raise ValueError(f"a folder has no {split!r} split: give the test images' own folder")
        return ImageFolder(name, image_size or 32, channels)
    else:
        raise FileNotFoundError(f"{str(name)!r} is neither a folder nor a known dataset ({', '.join(DATASETS)})")
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
    found = _find_or_download(name, split == "train", root)
    pixels = torch.as_tensor(found.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) → NCHW
    return ImageDataset(pixels, torch.as_tensor(found.targets).long(), found.classes, name)


def _find_or_download(name: str, train: bool, root: Path) -> Any:
    """torchvision's dataset from `root`, after a download if it is not there."""
    from torchvision import datasets

    loader = getattr(datasets, TORCHVISION[name])
    try:
        return loader(root, train=train, download=False)
    except Exception as error:
        if "download=True" not in str(error):  # what torchvision says where files are missing
            raise ValueError(f"the files of {name} in {root} are damaged ({_last_line(error)}): remove them") from None
    try:
        return loader(root, train=train, download=True)
    except Exception as error:
        raise ConnectionError(
            f"{name} is not in {root} and could not be downloaded ({_last_line(error)}): connect once, or give the "
            f"folder that holds {TORCHVISION[name]} in torchvision's layout (--root); 'digits' and 'fashion-10k' need "
            "no network"
        ) from None


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
