"""Training runs with one bug each, for the bug clinic of lesson 06: their curves and samples are the evidence.

Do not read on before you have worked through the clinic: the bugs are below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_from_scratch import gaussian
from ddpm_from_scratch.course.exercises.l06 import TinyNetwork
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

SCHEDULER = DDPMScheduler()
Batch = tuple[Tensor, Tensor, Tensor]
"""What the network sees, its t, and what it is compared with."""


@dataclass(frozen=True)
class BrokenRun:
    """The evidence of a run: loss of every step, loss on fresh held-out images at the end, samples in [-1, 1]."""

    losses: Tensor
    held_out: float
    samples: Tensor


def sound(x0: Tensor, noise: Tensor, t: Tensor, first_noise: Tensor) -> Batch:
    """Algorithm 1 as it is."""
    return SCHEDULER.add_noise(x0, noise, t), t, noise


def bug_a(x0: Tensor, noise: Tensor, t: Tensor, first_noise: Tensor) -> Batch:
    """The noise is drawn once, before the loop."""
    return sound(x0, first_noise, t, first_noise)


def bug_b(x0: Tensor, noise: Tensor, t: Tensor, first_noise: Tensor) -> Batch:
    """The images are left in [0, 1]."""
    return sound((x0 + 1) / 2, noise, t, first_noise)


def bug_c(x0: Tensor, noise: Tensor, t: Tensor, first_noise: Tensor) -> Batch:
    """The prediction is compared with x_t."""
    x_t = SCHEDULER.add_noise(x0, noise, t)
    return x_t, t, x_t


def bug_d(x0: Tensor, noise: Tensor, t: Tensor, first_noise: Tensor) -> Batch:
    """One t for the whole batch."""
    return sound(x0, noise, t[:1].expand_as(t), first_noise)


RUNS: dict[str, Callable[..., Batch]] = {"sound": sound, "A": bug_a, "B": bug_b, "C": bug_c, "D": bug_d}


def run(name: str, images: Tensor, held_out: Tensor, steps: int = 600, batch_size: int = 32) -> BrokenRun:
    """Trains a `TinyNetwork` from the same start and with the same draws, whatever the bug.

    Args:
        name: a key of `RUNS`.
        images, held_out: (N, 1, 8, 8) in [-1, 1].
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = TinyNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, fused=True)
    first_noise = gaussian.randn((batch_size, *images.shape[1:]), generator)
    losses = []
    for _ in range(steps):
        x0 = images[torch.randint(len(images), (batch_size,), generator=generator)]
        t = torch.randint(1000, (batch_size,), generator=generator)
        x_t, t, target = RUNS[name](x0, gaussian.randn(x0.shape, generator), t, first_noise)
        loss = ((target - network(x_t, t).sample) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return BrokenRun(torch.tensor(losses), _held_out_loss(network, held_out), sample(network, images.shape[1:]))


@torch.no_grad()
def _held_out_loss(network: TinyNetwork, images: Tensor) -> float:
    """Ho eq. 14 on images and noises that were never seen."""
    t = torch.arange(len(images)) * 1000 // len(images)
    noise = gaussian.randn(images.shape, torch.Generator().manual_seed(1))
    return float(((noise - network(SCHEDULER.add_noise(images, noise, t), t).sample) ** 2).mean())


@torch.no_grad()
def sample(network: TinyNetwork, shape: torch.Size, count: int = 10, steps: int = 50) -> Tensor:
    """Images in [-1, 1], (count, C, H, W), always from the same noise."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    x = gaussian.randn((count, *shape), torch.Generator().manual_seed(2))
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, torch.full((count,), t)).sample, t, x, return_dict=False)[0]
    return x.clamp(-1, 1)
