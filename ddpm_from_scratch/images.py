"""Writing images: a sheet as PNG, a trajectory as GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ddpm_from_scratch.data import to_pixels

MAX_FRAMES = 60
FRAME_MS, LAST_FRAME_MS = 70, 2000


def sheet(images: Tensor, scale: int = 2) -> Image.Image:
    """Images (B, C, H, W) in [-1, 1] in rows as square as can be, each pixel enlarged `scale` times.

    Raises:
        ValueError: no images.
    """
    from torchvision.utils import make_grid

    if not len(images):
        raise ValueError("there are no images to draw: give at least one, (B, C, H, W)")
    grid = make_grid(to_pixels(images).cpu(), nrow=max(1, round(len(images) ** 0.5)), padding=1, pad_value=255)
    big = grid.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    return Image.fromarray(big.permute(1, 2, 0).contiguous().numpy())  # (3, H, W) → (H, W, 3)


def save_sheet(images: Tensor, path: str | Path, scale: int = 2) -> None:
    """Writes `sheet(images, scale)` to a PNG."""
    sheet(images, scale).save(_ready(path))


def _ready(path: str | Path) -> Path:
    """The file's place, its folder made if missing."""
    place = Path(path).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def frame_steps(count: int) -> list[int]:
    """Which of `count` pictures an animation shows: all, or 60 of them, evenly, the first and the last included."""
    return sorted({round(i * (count - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)})


def save_gif(trajectory: Sequence[Tensor], path: str | Path, scale: int = 2) -> None:
    """Writes the sheets of a trajectory as an animation, at most 60 of them, the last one held.

    Args:
        trajectory: x_t in the order of sampling, each (B, C, H, W).

    Raises:
        ValueError: no steps, or no images.
    """
    if not len(trajectory):
        raise ValueError("there is no step to show: give the images of at least one")
    first, *rest = (sheet(trajectory[i], scale) for i in frame_steps(len(trajectory)))
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(_ready(path), save_all=True, append_images=rest, duration=durations, loop=0)
