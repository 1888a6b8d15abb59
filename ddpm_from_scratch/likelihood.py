"""Bits per dimension of held-out images, by term and by timestep, as a record that can be repeated."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_from_scratch import metrics
from ddpm_from_scratch.data import ImageDataset
from ddpm_from_scratch.hub import write_weights
from ddpm_from_scratch.judges import check_shape
from ddpm_from_scratch.pipelines import DiffusionPipeline
from ddpm_from_scratch.provenance import machine, model_hash
from ddpm_from_scratch.reference import read_tensors
from ddpm_from_scratch.schedulers import DDPMScheduler

TERMS = "bits_terms.safetensors"
KEEP_SECONDS = 30.0


@dataclass(frozen=True)
class Likelihood:
    """The variational bound of a model on held-out images, in bits per dimension.

    Args:
        total, standard_error: of the mean over the images.
        prior, diffusion, decoder: L_T, the sum of L_{t-1} over t > 0, and L_0.
        by_timestep: L_0 first, then the mean of L_{t-1} at each t; None where no image was asked.
        num_images: held-out images; the first ones of the test split.
        timesteps_per_image: t > 0 that each image was asked, one of each of as many equal ranges and weighted with the
            range's length, which keeps the estimate unbiased.
        T: number of timesteps.
        variance_type: of the reverse steps.
        seed: of the noise and of the choice of t.
        dataset, model, model_hash, command, machine, minutes: where it comes from.
    """

    total: float
    standard_error: float
    prior: float
    diffusion: float
    decoder: float
    by_timestep: list[float | None]
    num_images: int
    timesteps_per_image: int
    T: int
    variance_type: str
    seed: int
    dataset: str
    model: str
    model_hash: str
    command: str
    machine: str
    minutes: float

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Likelihood:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueError(f"this is no table of `ddpm eval --table bits` ({error})") from None

    def to_csv(self) -> str:
        """One line per timestep that was asked: t, bits per dimension."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["t", "bits_per_dimension"])
        writer.writerows((t, bits) for t, bits in enumerate(self.by_timestep) if bits is not None)
        return text.getvalue()

    def ranges(self, count: int = 10) -> list[tuple[int, int, float]]:
        """The sum of L_{t-1} over `count` equal ranges of t > 0, as (first t, last t, bits per dimension).

        A range's sum is its mean over the t that were asked, times its length.
        """
        edges = [1 + i * (self.T - 1) // count for i in range(count + 1)]
        found = []
        for low, high in zip(edges, edges[1:], strict=False):
            asked = [bits for bits in self.by_timestep[low:high] if bits is not None]
            if asked:
                found.append((low, high - 1, sum(asked) / len(asked) * (high - low)))
        return found

    def to_markdown(self) -> str:
        """The bound by term, its part in t > 0 by ranges of t, and where it comes from."""
        how = "all timesteps of each image"
        if self.timesteps_per_image < self.T - 1:
            how = (
                f"{self.timesteps_per_image} of {self.T - 1} timesteps an image, one of each of as many equal ranges, "
                "weighted with its length (unbiased); the rows are means over the t that were asked in them, and add "
                "up only nearly"
            )
        lines = ["| term | bits per dimension |", "|---|---|"]
        lines += [f"| L_0, into 8-bit pixels | {self.decoder:.4f} |"]
        lines += [f"| L_(t-1), t from {low} to {high} | {bits:.4f} |" for low, high, bits in self.ranges()]
        lines += [f"| all L_(t-1) | {self.diffusion:.4f} |", f"| L_T | {self.prior:.6f} |"]
        lines += [f"| **bound** | **{self.total:.4f}**, standard error {self.standard_error:.4f} |", ""]
        lines += [
            f"- {self.num_images} test images of {self.dataset}, not resized; {how}",
            f"- command: `{self.command}`",
            f"- model: {self.model}, weights {self.model_hash}, {self.variance_type}; seed {self.seed}",
            f"- {self.minutes:.1f} minutes on {self.machine}",
        ]
        return "\n".join(lines)


def likelihood(
    pipeline: DiffusionPipeline,
    test: ImageDataset,
    num_images: int,
    timesteps_per_image: int | None = 100,
    seed: int = 0,
    batch_size: int = 64,
    model: str = "model",
    command: str = "",
    folder: str | Path | None = None,
) -> Likelihood:
    """The bound of a model on the first test images (Ho eq. 5, 13), as `metrics.bits_per_dimension` computes it.

    Args:
        pipeline: its U-Net, and a schedule of which the DDPM is made.
        test: held-out images as they are stored. Bits of resized images are bits of another dataset: a model that makes
            images of another size is refused.
        num_images: how many, at least 2.
        timesteps_per_image, seed, batch_size: as in `metrics.bits_per_dimension`.
        model, command: for the record.
        folder: the terms found so far are kept in `TERMS` here, twice a minute, and a later call goes on from them.

    Raises:
        ValueError: a model and a dataset that do not match, or numbers out of range; a folder with the terms of another
            model or of other settings, or a damaged file of them.
    """
    own = f"bits of resized images are no bits of {test.name}; take a model trained on {test.name} without --image-size"
    check_shape(test.shape, pipeline.unet.config, f"{test.name} holds", own)
    if not 2 <= num_images <= len(test):
        raise ValueError(
            f"num_images (--num) must lie in [2, {len(test)}], the test images of {test.name}; got {num_images}"
        )
    began = time.monotonic()
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    labels = None if pipeline.unet.config.num_class_embeds is None else test.labels[:num_images]
    facts: dict[str, Any] = {
        "num_images": num_images,
        "timesteps_per_image": timesteps_per_image or len(scheduler) - 1,
        "seed": seed,
        "dataset": test.name,
    }
    hashed = model_hash(pipeline.unet)
    schedule = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    store = _Store(folder, {"model": hashed, **facts, "schedule": schedule})
    found = metrics.bits_per_dimension(
        pipeline.unet.eval(),
        scheduler,
        test.images(slice(num_images)),
        timesteps_per_image,
        batch_size,
        seed,
        class_labels=labels,
        done=store.terms,
        keep=store.keep,
    )
    return Likelihood(
        total=found.total,
        standard_error=found.standard_error,
        prior=found.prior,
        diffusion=found.diffusion,
        decoder=found.decoder,
        by_timestep=[None if math.isnan(bits) else bits for bits in found.by_timestep.tolist()],
        **facts,
        T=len(scheduler),
        variance_type=scheduler.variance_type,
        model=model,
        model_hash=hashed,
        command=command,
        machine=machine(pipeline.device),
        minutes=(store.seconds + time.monotonic() - began) / 60,
    )


class _Store:
    """The terms found so far, in a folder or nowhere."""

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]) -> None:
        self.path = None if folder is None else Path(folder).expanduser() / TERMS
        self.settings = json.loads(json.dumps(settings, default=str))
        self.terms, self.seconds = torch.zeros(0), 0.0
        self.began = self.kept = time.monotonic()
        if self.path is None or not self.path.exists():
            return
        found = read_tensors(self.path)
        try:
            saved = json.loads(found["settings"].numpy().tobytes())
            changed = [key for key in {**self.settings, **saved} if saved.get(key) != self.settings.get(key)]
            self.terms, self.seconds = found["terms"].clone(), float(found["seconds"])
        except (KeyError, ValueError, TypeError, RuntimeError):
            raise ValueError(f"{self.path} is damaged: delete it, or choose another folder") from None
        if changed:
            raise ValueError(f"{self.path} holds terms with another {', '.join(changed)}: choose another folder")

    def keep(self, terms: Tensor) -> None:
        """Writes the terms, unless it did so a moment ago."""
        if self.path is None or time.monotonic() < self.kept + KEEP_SECONDS:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings = torch.frombuffer(bytearray(json.dumps(self.settings).encode()), dtype=torch.uint8)
        self.kept = time.monotonic()
        seconds = torch.tensor(self.seconds + self.kept - self.began)
        write_weights(self.path, {"terms": terms.contiguous(), "settings": settings, "seconds": seconds})
