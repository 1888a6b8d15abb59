"""Datasets: those that ship, torchvision's from a given folder, and folders of images, whole, odd and broken."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets as torchvision_sets

from ddpm_from_scratch.data import (
    FASHION_CLASSES,
    ImageDataset,
    ImageFolder,
    load_dataset,
    read_image,
    to_model_range,
    to_pixels,
)

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


# ---------------------------------------------------------------- pixels


def test_every_pixel_value_survives_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    images = to_model_range(pixels)
    assert images.dtype == torch.float32 and images.min() == -1 and images.max() == 1
    assert (images.double() - (pixels.double() / 127.5 - 1)).abs().max() < 1e-7
    assert torch.equal(to_pixels(images), pixels)
    assert torch.equal(to_pixels(images.bfloat16())[[0, 255]], pixels[[0, 255]])
    assert to_pixels(torch.tensor([-7.0, 7.0, 0.0])).tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3)),
    ],
)
def test_wrong_pixels_are_refused(pixels: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 pixels \(N, C, H, W\) and N labels"):
        ImageDataset(pixels, labels)


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize(
    ("name", "split", "count", "side"),
    [
        ("digits", "train", 1500, 8),
        ("digits", "test", 297, 8),
        ("fashion-10k", "train", 10_000, 28),
        ("fashion-10k", "test", 2_000, 28),
    ],
)
def test_embedded_sets(name: str, split: str, count: int, side: int) -> None:
    data = load_dataset(name, split)
    assert isinstance(data, ImageDataset)
    assert len(data) == count and data.shape == (1, side, side) and data.name == name
    images = data.images()
    assert images.min() == -1 and images.max() == 1
    assert sorted(data.labels.unique().tolist()) == list(range(10)) and len(data.classes) == 10
    image, label = data[3]
    assert torch.equal(image, images[3]) and image.dtype == torch.float32 and label == int(data.labels[3])
    assert torch.equal(data.images([5, 3]), images[[5, 3]])


def test_fashion_is_the_head_of_the_original() -> None:
    """Labels of the first images as published, and shares of the classes near 1/10 (they were shuffled)."""
    train, test = load_dataset("fashion-10k"), load_dataset("fashion-10k", "test")
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    counts = torch.bincount(train.labels, minlength=10)
    assert counts.min() > 900 and counts.max() < 1100 and train.classes == FASHION_CLASSES
    assert isinstance(train, ImageDataset)
    trousers, bags = (train.images(train.labels == k).mean(dim=0)[0] for k in (1, 8))
    assert trousers[24:, 13:15].mean() < trousers[24:, 9:11].mean()  # trousers have a gap between their legs, bags not
    assert bags[18, 13:15].mean() > 0


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert isinstance(data, ImageDataset)
    levels = (data.images() + 1) * 8  # 17 grey levels 0..16
    assert (levels[:, 0] - torch.from_numpy(load_digits().images[:1500])).abs().max() < 16 / 255
    assert data.labels.tolist() == load_digits().target[:1500].tolist()


def test_the_embedded_files_are_small_and_attributed() -> None:
    folder = Path(str(files("ddpm_from_scratch"))) / "assets" / "data"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in text for word in ("Han Xiao", "Zalando", "MIT", "1708.07747", "Copyright"))


def test_resizing() -> None:
    data = load_dataset("digits", image_size=16)
    assert data.shape == (1, 16, 16) and len(data) == 1500
    original = load_dataset("digits")
    assert isinstance(original, ImageDataset) and isinstance(data, ImageDataset)
    assert original.resized(8) is original
    assert abs(float(data.images().mean() - original.images().mean())) < 0.02
    assert torch.equal(data.labels, original.labels) and data.classes == original.classes


# ---------------------------------------------------------------- torchvision's, from a given folder


def write_idx(folder: Path, class_name: str, counts: dict[str, int]) -> dict[str, Any]:
    """MNIST's files with random content; returns the pixels and labels by prefix."""
    raw = folder / class_name / "raw"
    raw.mkdir(parents=True)
    rng, content = np.random.default_rng(0), {}
    for prefix, n in counts.items():
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        pixels[0, 0, :2] = 0, 255
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
        content[prefix] = pixels, labels
    return content


@pytest.mark.parametrize(("name", "class_name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_in_a_given_folder(tmp_path: Path, name: str, class_name: str) -> None:
    content = write_idx(tmp_path, class_name, {"train": 30, "t10k": 20})
    for split, prefix in (("train", "train"), ("test", "t10k")):
        data = load_dataset(name, split, root=tmp_path)
        assert isinstance(data, ImageDataset)
        assert torch.equal(data.pixels[:, 0], torch.from_numpy(content[prefix][0]))
        assert data.labels.tolist() == content[prefix][1].tolist() and data.labels.dtype == torch.int64
        assert len(data.classes) == 10 and data.images().min() == -1 and data.images().max() == 1


def test_damaged_idx_files_are_not_called_missing(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST", {"train": 30, "t10k": 20})
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for content in (path.read_bytes()[:-100], b"", b"\x00\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="files of mnist in .* are damaged") as caught:
            load_dataset("mnist", root=tmp_path)
        assert "\n" not in str(caught.value)


def test_cifar_pickles_in_a_given_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 3, 32, 32), dtype=np.uint8)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    batches = [
        write(f"batch_{i}", {"data": part.reshape(4, -1), "labels": [i, 1, 2, 3]}) for i, part in enumerate(pixels)
    ]
    names = write("batches.meta", {"label_names": list("abcdefghij")})
    cifar = torchvision_sets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", batches[:5])
    monkeypatch.setattr(cifar, "test_list", batches[5:])
    monkeypatch.setattr(cifar, "meta", {"filename": names[0], "key": "label_names", "md5": names[1]})
    data = load_dataset("cifar10", root=tmp_path)
    assert isinstance(data, ImageDataset) and data.shape == (3, 32, 32)
    assert torch.equal(data.pixels, torch.from_numpy(pixels[:5].reshape(20, 3, 32, 32)))
    assert data.labels[::4].tolist() == [0, 1, 2, 3, 4] and data.classes == tuple("abcdefghij")
    assert len(load_dataset("cifar10", "test", root=tmp_path)) == 4


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_without_network_it_says_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for proxy in PROXIES:
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
        monkeypatch.setenv(proxy.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConnectionError, match=f"{name} is not in .* could not be downloaded") as caught:
        load_dataset(name, root=tmp_path)
    assert "\n" not in str(caught.value) and "--root" in str(caught.value) and "refused" in str(caught.value)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address on the loopback where it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloading(tmp_path: Path, web: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a stand-in on the loopback; a file that is not what it should be is refused."""
    served, address = web
    content = write_idx(tmp_path / "source", "MNIST", {"train": 30, "t10k": 20})
    resources = []
    for path in sorted((tmp_path / "source" / "MNIST" / "raw").iterdir()):
        packed = gzip.compress(path.read_bytes())
        (served / f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision_sets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision_sets.MNIST, "resources", resources)
    data = load_dataset("mnist", root=tmp_path / "root")
    assert isinstance(data, ImageDataset)
    assert torch.equal(data.pixels[:, 0], torch.from_numpy(content["train"][0]))
    monkeypatch.setattr(torchvision_sets.MNIST, "resources", [(name, "0" * 32) for name, _ in resources])
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        load_dataset("mnist", root=tmp_path / "other")


def test_names_and_splits(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'imagenet' is neither a folder nor a known dataset .*digits"):
        load_dataset("imagenet")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        load_dataset("digits", "valid")
    with pytest.raises(ValueError, match=r"image_size must lie in \[1, 4096\], got 0"):
        load_dataset("digits", image_size=0)
    with pytest.raises(ValueError, match="no 'test' split"):
        load_dataset(tmp_path, "test")
    with pytest.raises(ValueError, match="channels 1 or 3, got 32 and 2"):
        ImageFolder(tmp_path, channels=2)


# ---------------------------------------------------------------- folders of images


def solid(path: Path, colour: Any = (255, 0, 0), size: tuple[int, int] = (10, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_nested_classes_odd_names_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "a folder – mit Ümläuten 图"
    solid(root / "cats" / "x y.png")
    solid(root / "cats" / "deep" / "er" / "é.JPG")
    solid(root / "dogs" / "1.bmp")
    solid(root / "loose.gif", colour=1, mode="P")
    for hidden in (root / ".thumbnails" / "t.png", root / "dogs" / ".hidden.png"):
        solid(hidden)
    (root / "dogs" / "._1.jpg").write_bytes(b"not an image")
    (root / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    data = load_dataset(root, image_size=16)
    assert isinstance(data, ImageFolder)
    found = {str(Path(path).relative_to(root)): int(label) for path, label in zip(data.paths, data.labels, strict=True)}
    expected = {"cats/x y.png": 0, "cats/deep/er/é.JPG": 0, "dogs/1.bmp": 1, "loose.gif": -1}
    assert found == expected and data.classes == ("cats", "dogs") and data.shape == (3, 16, 16)
    assert [label for _, label in (data[i] for i in range(len(data)))] == data.labels.tolist()
    assert data.paths == ImageFolder(root).paths and load_dataset(str(root)).shape == (3, 32, 32)


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    stripes = Image.new("RGB", (30, 10), (0, 0, 255))
    stripes.paste((255, 0, 0), (10, 0, 20, 10))
    stripes.save(tmp_path / "wide.png")
    stripes.rotate(90, expand=True).save(tmp_path / "tall.png")
    data = ImageFolder(tmp_path, image_size=8)
    for i in range(2):
        image, _ = data[i]
        assert image.shape == (3, 8, 8)
        assert torch.equal(image[0], torch.ones(8, 8)) and torch.equal(image[2], -torch.ones(8, 8))
    grey, _ = ImageFolder(tmp_path, image_size=8, channels=1)[0]
    assert grey.shape == (1, 8, 8) and float(grey[0, 0, 0]) == pytest.approx(76 / 127.5 - 1)  # luma of pure red


def test_every_mode_becomes_eight_bit_colour(tmp_path: Path) -> None:
    red = [255, 0, 0]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "clear_palette.png", transparency=1)
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(tmp_path / "alpha.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "clear_grey.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)).save(tmp_path / "sixteen.tif")
    Image.fromarray(np.full((4, 4), 30000, dtype=np.uint16)).save(tmp_path / "clear_sixteen.png", transparency=30000)
    Image.new("LAB", (4, 4), (128, 128, 128)).save(tmp_path / "lab.tif")
    expected = {
        "palette.png": red,
        "clear_palette.png": [255] * 3,
        "alpha.png": red,
        "clear.png": [255] * 3,
        "clear_grey.png": [255] * 3,
        "bit.png": [255] * 3,
        "cmyk.tif": red,
        "sixteen.png": [128] * 3,
        "sixteen.tif": [255] * 3,
        "clear_sixteen.png": [255] * 3,
        "lab.tif": [119] * 3,
    }
    for name, colour in expected.items():
        image = read_image(tmp_path / name)
        assert image.mode == "RGB" and np.asarray(image).reshape(-1, 3).tolist() == [colour] * 16, name
        assert read_image(tmp_path / name, channels=1).mode == "L"


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (15, 15)), (6, (0, 15)), (8, (15, 0))])
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    """A bright corner, stored at the top left; EXIF says where it belongs (row, column)."""
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    pixels, _ = ImageFolder(tmp_path, image_size=16, channels=1)[0]
    bright = [c for c in ((0, 0), (0, 15), (15, 0), (15, 15)) if pixels[0][c] > 0]
    assert bright == [corner]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = solid(tmp_path / "good" / "a.png", size=(40, 40)).read_bytes()
    solid(tmp_path / "good" / "b.jpg", size=(400, 400))
    photo = (tmp_path / "good" / "b.jpg").read_bytes()
    float_image = tmp_path / "float.tif"
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(float_image)
    long_image = tmp_path / "long.tif"
    Image.fromarray(np.full((4, 4), 200, dtype=np.int32)).save(long_image)
    damaged = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": good[: len(good) // 2],
        "cut.jpg": photo[: len(photo) // 2],
        "float.tif": float_image.read_bytes(),
        "long.tif": long_image.read_bytes(),
    }
    for name, content in damaged.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image .*: remove or repair it"):
            ImageFolder(folder)[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), suffix=st.sampled_from(["png", "jpg", "gif"])
)
def test_a_flipped_byte_gives_an_image_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, position: float, value: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("flipped") / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= value
    path.write_bytes(content)
    try:
        assert read_image(path).mode == "RGB"
    except ValueError as error:
        assert str(path) in str(error)


def test_an_image_too_large_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solid(tmp_path / "bomb.png", size=(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow refuses above twice this
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read as an image .*decompression bomb"):
        ImageFolder(tmp_path)[0]


def test_links_are_followed_once(tmp_path: Path) -> None:
    real, root = tmp_path / "elsewhere", tmp_path / "root"
    solid(real / "a.png")
    solid(root / "own" / "b.png")
    (root / "linked").symlink_to(real, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "own" / "up").symlink_to("..", target_is_directory=True)
    (root / "own" / "self.png").symlink_to("self.png")
    (root / "own" / "gone.png").symlink_to("nowhere.png")
    data = ImageFolder(root)
    assert [str(Path(p).relative_to(root)) for p in data.paths] == ["linked/a.png", "own/b.png"]
    assert data.classes == ("linked", "own")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no images \(\.png, .*\) in "):
        load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ImageFolder(tmp_path / "missing")


def test_a_large_folder_is_not_decoded_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = solid(tmp_path / "0.png")
    for i in range(1, 2000):
        (tmp_path / f"{i}.png").hardlink_to(original)
    opened: list[Any] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *args, **kwargs: opened.append(path) or real(path, *args, **kwargs))
    data = ImageFolder(tmp_path, image_size=4)
    assert len(data) == 2000 and not opened
    assert torch.equal(data[7][0], data[1999][0]) and len(opened) == 2
