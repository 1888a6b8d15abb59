"""How fast this library is beside Diffusers: the same work, run in turn in one process.

Both sides have the same weights, inputs, threads and device. Rounds alternate, and the median of each side counts, so
that a machine that slows down for a while slows both.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_from_scratch.training import diffusion_loss

Work = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of one piece of work here and in Diffusers; None where Diffusers is not installed."""

    name: str
    here: float
    diffusers: float | None

    @property
    def ratio(self) -> float | None:
        """Our time over theirs: below 1 we are faster."""
        return None if self.diffusers is None else self.here / self.diffusers


@dataclass(frozen=True)
class Side:
    """One library's parts: a U-Net, both schedulers, and the loss of a training step."""

    unet: Any
    ddpm: Any
    ddim: Any
    loss: Callable[[Any, Any, Tensor, Tensor, Tensor], Tensor]


def milliseconds(sides: Sequence[Work], rounds: int, device: torch.device) -> list[float]:
    """Median time of each side, run in turn `rounds` times after one round that is not counted."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds + 1):
        for run, kept in zip(sides, times, strict=True):
            began = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize()
            kept.append(1000 * (time.perf_counter() - began))
    return [statistics.median(kept[1:]) for kept in times]


def our_side(size: int, widths: Sequence[int], device: torch.device) -> Side:
    """This library's parts, with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet: Any = small_unet((1, size, size), widths)
    return Side(unet.to(device), DDPMScheduler(), DDIMScheduler(), diffusion_loss)


def their_side(ours: Side, device: torch.device) -> Side | None:
    """Diffusers' parts with our U-Net's configuration and weights; None where it is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        return None
    import diffusers  # type: ignore[import-not-found, unused-ignore]

    def loss(model: Any, scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(model(scheduler.add_noise(x0, noise, t), t).sample, noise)

    config = {key: value for key, value in ours.unet.config.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        unet: Any = diffusers.UNet2DModel(**config)
    unet.to(device)
    unet.load_state_dict(ours.unet.state_dict())
    return Side(unet, diffusers.DDPMScheduler(), diffusers.DDIMScheduler(), loss)


def work(side: Side, batch: int, size: int, device: torch.device) -> dict[str, Work]:
    """What is timed, by name."""
    x, eps = torch.randn(2, batch, 1, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.arange(batch, device=device) * 997 % 1000
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(side.unet.parameters(), lr=1e-4)
    side.ddim.set_timesteps(50)

    @torch.no_grad()
    def forward() -> None:
        side.unet(x, t)

    def training_step() -> None:
        side.loss(side.unet, side.ddpm, x, eps, t).backward()
        optimiser.step()
        optimiser.zero_grad()

    return {
        "DDPM step": lambda: side.ddpm.step(eps, 500, x, generator=generator),
        "DDIM step": lambda: side.ddim.step(eps, 500, x),
        "U-Net forward": forward,
        "training step": training_step,
    }


def run(
    batch: int = 16, size: int = 32, widths: Sequence[int] = (32, 64, 128), rounds: int = 10, device: str = "cpu"
) -> list[Timing]:
    """The timings of every piece of work.

    Args:
        batch, size: images (batch, 1, size, size).
        widths: channels per resolution of the U-Net.
        rounds: how often each side runs; a scheduler step, which is short, 20 times as often.

    Raises:
        ValueError: widths or a size that do not fit, fewer than one round or image.
    """
    if batch < 1 or rounds < 1:
        raise ValueError(f"a benchmark needs at least one image and one round, got {batch} and {rounds}")
    place = torch.device(device)
    ours = our_side(size, widths, place)
    sides = [work(side, batch, size, place) for side in (ours, their_side(ours, place)) if side is not None]
    timings = []
    for name in sides[0]:
        often = rounds * (20 if name.endswith(("DDPM step", "DDIM step")) else 1)
        here, *there = milliseconds([side[name] for side in sides], often, place)
        timings.append(Timing(name, here, there[0] if there else None))
    return timings


def table(timings: Sequence[Timing]) -> str:
    """The timings as text; where Diffusers is missing, a sentence says so."""
    lines = [f"{'milliseconds, median':<22}{'here':>10}{'Diffusers':>12}{'ratio':>8}"]
    for timing in timings:
        there = "" if timing.diffusers is None else f"{timing.diffusers:>12.3f}{timing.ratio:>8.2f}"
        lines.append(f"{timing.name:<22}{timing.here:>10.3f}{there}")
    if any(timing.diffusers is None for timing in timings):
        lines.append("Diffusers is not installed, so there is nothing to compare with: pip install diffusers")
    return "\n".join(lines)
