"""Judging a trained model: many samples, a classifier it was not trained with, and what real images score."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_from_scratch import metrics, uncertainty
from ddpm_from_scratch.classifier import FeatureClassifier
from ddpm_from_scratch.config import write_file
from ddpm_from_scratch.hub import write_weights
from ddpm_from_scratch.judges import check_shape
from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline, DiffusionPipeline
from ddpm_from_scratch.provenance import model_hash
from ddpm_from_scratch.reference import Reference, classify, read_tensors
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_from_scratch.schedulers.ddpm import VARIANCE_TYPES
from ddpm_from_scratch.training import seeded

SETTINGS = "settings.json"
CONFIDENT_POINTS = 0.05
SHARE_FACTOR = 2.0
FLOOR_FACTOR = 5.0


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are made. The images depend on these and the model alone, not on batches or interruptions.

    Args:
        scheduler: "ddim" or "ddpm".
        num_inference_steps: S.
        eta: η of Song eq. 16, for "ddim".
        seed: image i is made by a generator that depends on (seed, i) alone, as in `ddpm sample`; a class-conditional
            model is asked for the classes in turn (`labels_in_turn`).
        precision: "float32", or "bf16" for a network under autocast.
        variance_type: of "ddpm", instead of that of the pipeline's own scheduler.
        timesteps: of "ddim", the S timesteps visited, instead of those that the scheduler's spacing gives.
        clip_sample: whether x̂_0 is clipped to [-1, 1], instead of what the pipeline's own scheduler says.

    Raises:
        ValueError: an unknown choice, a value out of range, timesteps that are not S or not strictly descending.
    """

    scheduler: str = "ddim"
    num_inference_steps: int = 50
    eta: float = 0.0
    seed: int = 0
    precision: str = "float32"
    variance_type: str | None = None
    timesteps: tuple[int, ...] | None = None
    clip_sample: bool | None = None

    def __post_init__(self) -> None:
        if self.scheduler not in ("ddim", "ddpm"):
            raise ValueError(f"scheduler must be 'ddim' or 'ddpm', got {self.scheduler!r}")
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f"precision must be 'float32' or 'bf16', got {self.precision!r}")
        if not 0 <= self.eta <= 1 or (self.eta > 0 and self.scheduler == "ddpm"):
            raise ValueError(f"eta must lie in [0, 1], and be 0 for 'ddpm', got {self.eta}")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps (--steps) must be at least 1, got {self.num_inference_steps}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.variance_type is not None and (self.scheduler != "ddpm" or self.variance_type not in VARIANCE_TYPES):
            raise ValueError(f"variance_type belongs to 'ddpm' and is one of {', '.join(VARIANCE_TYPES)}")
        if self.timesteps is not None:
            self._check_timesteps(self.timesteps)

    def _check_timesteps(self, timesteps: tuple[int, ...]) -> None:
        if self.scheduler != "ddim" or len(timesteps) != self.num_inference_steps:
            raise ValueError(
                f"timesteps belong to 'ddim' and are num_inference_steps = {self.num_inference_steps} many, "
                f"got {len(timesteps)} for {self.scheduler!r}"
            )
        if any(now <= later for now, later in zip(timesteps, timesteps[1:], strict=False)):
            raise ValueError(f"timesteps must descend, none twice, got {timesteps}")

    def facts(self) -> dict[str, Any]:
        """The settings by name, without those that say nothing."""
        return {key: value for key, value in asdict(self).items() if value is not None}


# ---------------------------------------------------------------- making samples


def generate(
    pipeline: DiffusionPipeline,
    num_samples: int,
    settings: SamplingSettings | None = None,
    batch_size: int = 250,
    folder: str | Path | None = None,
    num_classes: int | None = None,
    bar: Any = None,
) -> Tensor:
    """Samples as 8-bit pixels (N, C, H, W), like the images a model is trained on.

    Args:
        pipeline: its U-Net and its noise schedule are used; the U-Net is put into evaluation mode.
        num_samples: how many.
        settings: how they are made.
        batch_size: made at a time; it does not change the images.
        folder: finished batches are kept here, and found again by a later call with the same model and settings.
        num_classes: classes of the model's data, where they are known, as in `labels_in_turn`.
        bar: a progress bar to move by samples × steps, instead of one of its own.

    Raises:
        ValueError: a number below 1, a folder that holds samples of another model or of other settings, or images that
            are not finite.
    """
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples and batch_size must be at least 1, got {num_samples} and {batch_size}")
    settings = settings or SamplingSettings()
    store = _Store(folder, pipeline, settings)
    done = store.load(num_samples)
    sampler = _Sampler(pipeline, settings, num_classes)
    starts = range(sum(map(len, done)), num_samples, batch_size)
    steps = settings.num_inference_steps
    options = {"initial": starts.start * steps, "desc": "samples × steps", "unit_scale": True}
    if bar is not None:
        bar.n = bar.last_print_n = bar.n + starts.start * steps  # found, not made: no part of the speed
    with tqdm(total=num_samples * steps, **options) if bar is None else nullcontext(bar) as moving:
        for start in starts:
            began = time.monotonic()
            done.append(sampler(range(start, min(start + batch_size, num_samples)), moving))
            store.save(start, done[-1], time.monotonic() - began)
    return torch.cat(done)


def labels_in_turn(indices: range, rows: int | None, num_classes: int | None = None) -> list[int] | None:
    """Each image's class: 0, 1, ... in turn, by its index; None for a model without classes.

    The last row of a class table means "no class", as `label_dropout` trains it, and has no turn, unless the data are
    known to have as many classes as the table has rows.

    Args:
        indices: of the images.
        rows: of the model's class table, its `num_class_embeds`.
        num_classes: of the model's data, where they are known.
    """
    if rows is None:
        return None
    named = max(1, rows - 1)
    if num_classes is not None:
        named = rows if num_classes == rows else min(num_classes, named)
    return [index % named for index in indices]


def sampling_minutes(folder: str | Path) -> float:
    """The minutes that went into the batches of samples in a folder, interruptions apart."""
    seconds = [
        read_tensors(path).get("seconds") for path in sorted(Path(folder).expanduser().glob("samples_*.safetensors"))
    ]
    return sum(float(s) for s in seconds if s is not None) / 60


class _Visiting(DDIMScheduler):
    """Visits the timesteps it is given, whatever number of steps a pipeline asks for."""

    chosen: tuple[int, ...] = ()

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None) -> None:
        super().set_timesteps(device=device, timesteps=self.chosen)


class _Sampler:
    """Makes the samples of given indices."""

    def __init__(self, pipeline: DiffusionPipeline, settings: SamplingSettings, num_classes: int | None) -> None:
        self.settings, self.unet, self.num_classes = settings, pipeline.unet.eval(), num_classes
        self.pipeline: Any
        changes = {name: getattr(settings, name) for name in ("variance_type", "clip_sample")}
        changes = {name: value for name, value in changes.items() if value is not None}
        if settings.scheduler == "ddim":
            self.pipeline = DDIMPipeline(self.unet, DDIMScheduler.from_config(pipeline.scheduler.config, **changes))
            if settings.timesteps is not None:
                self.pipeline.scheduler = _Visiting.from_config(self.pipeline.scheduler.config)
                self.pipeline.scheduler.chosen = settings.timesteps
        else:
            scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, **changes)
            self.pipeline = DDPMPipeline(self.unet, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        if settings.precision == "bf16":
            self.unet.to(memory_format=torch.channels_last)

    def __call__(self, indices: range, bar: Any) -> Tensor:
        generators = [seeded(self.settings.seed, "sample", index) for index in indices]
        options: dict[str, Any] = {"eta": self.settings.eta} if self.settings.scheduler == "ddim" else {}
        with torch.autocast(self.unet.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            images = self.pipeline(
                len(indices),
                generators,
                num_inference_steps=self.settings.num_inference_steps,
                output_type="pt",
                callback=lambda *_: bar.update(len(indices)),
                class_labels=labels_in_turn(indices, self.unet.config.num_class_embeds, self.num_classes),
                **options,
            ).images
        if not images.isfinite().all():
            raise ValueError("the model makes images of NaN: its weights are damaged, or too large for this precision")
        return (images.float() * 255).round().to(torch.uint8).cpu()


class _Store:
    """Finished batches in a folder, or nowhere."""

    def __init__(self, folder: str | Path | None, pipeline: DiffusionPipeline, settings: SamplingSettings) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        if self.folder is None:
            return
        schedule = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
        now = {"model": model_hash(pipeline.unet), **settings.facts(), "schedule": schedule}
        now = json.loads(json.dumps(now, default=str))
        path = self.folder / SETTINGS
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, (json.dumps(now, indent=2) + "\n").encode())
            return
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in {**now, **saved, "model": saved["model"]} if saved.get(key) != now.get(key)]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: choose another folder for the samples, or delete this one") from None
        if changed:
            what = ", ".join(changed)
            raise ValueError(f"{self.folder} holds samples with another {what}: choose another folder")

    def load(self, num_samples: int) -> list[Tensor]:
        """The batches that follow on each other from the first sample on, `num_samples` at most."""
        found: list[Tensor] = []
        while self.folder is not None and self._path(count := sum(map(len, found))).is_file() and count < num_samples:
            found.append(read_tensors(self._path(count))["pixels"][: num_samples - count])
        return found

    def save(self, start: int, pixels: Tensor, seconds: float) -> None:
        if self.folder is not None:
            write_weights(self._path(start), {"pixels": pixels.contiguous(), "seconds": torch.tensor(seconds)})

    def _path(self, start: int) -> Path:
        assert self.folder is not None
        return self.folder / f"samples_{start:06d}.safetensors"


# ---------------------------------------------------------------- judging them


@dataclass(frozen=True)
class Verdict:
    """One demand: what it asks, what was found, and whether that meets it."""

    demand: str
    found: str
    met: bool


@dataclass(frozen=True)
class Evaluation:
    """Figures of a set of samples, each beside the figure of real images.

    Args:
        num_samples: how many samples were judged.
        frechet, frechet_floor: Fréchet distance to the training images, of the samples and of real test images.
        kernel, kernel_floor: kernel distance, likewise.
        confident_share, real_confident_share: share classified with a probability above 0.9.
        class_shares, real_class_shares: share put into each class.
        real_count: how many test images stand behind the figures of real images.
        settings: how the samples were made.
        model: hash of the model's weights.
        minutes: spent on sampling in this call, and judging.
        frechet_bias: how far `frechet` lies above that of infinitely many samples; NaN for fewer than 4 samples.
        frechet_floor_here: what as many real images as there are samples would score.
    """

    num_samples: int
    frechet: float
    frechet_floor: float
    kernel: float
    kernel_floor: float
    confident_share: float
    real_confident_share: float
    class_shares: list[float]
    real_class_shares: list[float]
    real_count: int
    settings: SamplingSettings | None = None
    model: str = ""
    minutes: float = math.nan
    frechet_bias: float = math.nan
    frechet_floor_here: float = math.nan

    @property
    def frechet_ratio(self) -> float:
        """The Fréchet distance in units of its floor."""
        return self.frechet / self.frechet_floor if self.frechet_floor > 0 else math.inf

    @property
    def share_ratios(self) -> list[float]:
        """Each class's share in units of its share of the real images; infinite for a class they do not have."""
        pairs = zip(self.class_shares, self.real_class_shares, strict=True)
        return [share / real if real > 0 else math.inf for share, real in pairs]

    def verdict(self) -> list[Verdict]:
        """The demands on a model that ships: recognised as often as real images, no class lost, close in features."""
        gap = abs(self.confident_share - self.real_confident_share)
        low, high = min(self.share_ratios), max(self.share_ratios)
        return [
            Verdict(
                f"confident as often as on real images, within {100 * CONFIDENT_POINTS:g} points",
                f"{self.confident_share:.1%} against {self.real_confident_share:.1%}",
                gap <= CONFIDENT_POINTS,
            ),
            Verdict(
                f"every class between 1/{SHARE_FACTOR:g} and {SHARE_FACTOR:g} times its real share",
                f"{low:.2f} to {high:.2f} times",
                low >= 1 / SHARE_FACTOR and high <= SHARE_FACTOR,
            ),
            Verdict(
                f"Fréchet distance at most {FLOOR_FACTOR:g} times its floor",
                f"{self.frechet_ratio:.2f} times",
                self.frechet_ratio <= FLOOR_FACTOR,
            ),
        ]

    def table(self) -> str:
        """A short table in Markdown: figures, then the verdict."""
        rows = [
            ("Fréchet distance to the training images", f"{self.frechet:.4f}", f"{self.frechet_floor:.4f}"),
            ("of it bias of so few samples", f"{self.frechet_bias:.4f}", ""),
            (f"what {self.num_samples:,} real images would have", "", f"{self.frechet_floor_here:.4f}"),
            ("kernel distance to the training images", f"{self.kernel:.2e}", f"{self.kernel_floor:.2e}"),
            ("confident (> 0.9)", f"{self.confident_share:.2%}", f"{self.real_confident_share:.2%}"),
            *(
                (f"share of class {i}", f"{a:.2%}", f"{b:.2%}")
                for i, (a, b) in enumerate(zip(self.class_shares, self.real_class_shares, strict=True))
            ),
        ]
        head = [f"| | {self.num_samples:,} samples | {self.real_count:,} real test images |", "|---|---|---|"]
        lines = head + [f"| {name} | {ours} | {real} |" for name, ours, real in rows]
        lines += ["", "| demand | found | met |", "|---|---|---|"]
        lines += [f"| {v.demand} | {v.found} | {'yes' if v.met else 'no'} |" for v in self.verdict()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything, with the verdict, as JSON."""
        facts = {**asdict(self), "frechet_ratio": self.frechet_ratio, "share_ratios": self.share_ratios}
        facts["verdict"] = [asdict(v) for v in self.verdict()]
        return json.dumps(dict(_finite(facts)), indent=2, allow_nan=False) + "\n"


def _finite(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """JSON knows neither NaN nor infinity: null stands for them."""
    for key, value in facts.items():
        if isinstance(value, list):
            yield key, [None if isinstance(v, float) and not math.isfinite(v) else v for v in value]
        else:
            yield key, None if isinstance(value, float) and not math.isfinite(value) else value


def judge(pixels: Tensor, classifier: FeatureClassifier, reference: Reference) -> Evaluation:
    """The figures of 8-bit images (N, C, H, W), N ≥ 2.

    Raises:
        ValueError: images of another shape than the classifier's, or fewer than two.
    """
    features, logits = classify(classifier, pixels)
    ours = metrics.gaussian_statistics(features)
    return Evaluation(
        num_samples=len(pixels),
        frechet=metrics.frechet_distance(ours.mean, ours.covariance, reference.train_mean, reference.train_covariance),
        frechet_floor=reference.frechet_floor,
        kernel=metrics.kernel_distance(features, reference.train_features),
        kernel_floor=float(reference.kernel_floor),
        confident_share=metrics.confident_share(logits),
        real_confident_share=float(reference.confident_share),
        class_shares=metrics.class_shares(logits),
        real_class_shares=reference.class_shares.tolist(),
        real_count=int(reference.test_count),
        frechet_bias=uncertainty.frechet_bias(features, reference.train) if len(features) >= 4 else math.nan,
        frechet_floor_here=uncertainty.floor_at(reference.train, reference.test, len(features)),
    )


def evaluate(
    pipeline: DiffusionPipeline,
    classifier: FeatureClassifier,
    reference: Reference,
    num_samples: int = 10_000,
    settings: SamplingSettings | None = None,
    batch_size: int = 250,
    folder: str | Path | None = None,
) -> Evaluation:
    """Makes samples and judges them.

    Args:
        pipeline, num_samples, settings, batch_size, folder: as in `generate`.
        classifier, reference: from `shipped_classifier` or `load_classifier`, made of the model's own dataset.

    Raises:
        ValueError: a model whose images the classifier does not take, fewer than two samples, or as `generate`.
    """
    if num_samples < 2:
        raise ValueError(f"statistics need at least 2 samples, got {num_samples}")
    settings = settings or SamplingSettings()
    check_fits(pipeline, classifier)
    began = time.monotonic()
    pixels = generate(pipeline, num_samples, settings, batch_size, folder, classifier.config.num_classes)
    figures = judge(pixels, classifier, reference)
    minutes = (time.monotonic() - began) / 60
    return Evaluation(**{**vars(figures), "settings": settings, "model": model_hash(pipeline.unet), "minutes": minutes})


def check_fits(pipeline: DiffusionPipeline, classifier: FeatureClassifier) -> None:
    """Refuses a model and a classifier of different images, before any time is spent.

    Raises:
        ValueError: channels or sizes that differ.
    """
    check_shape(classifier.image_shape, pipeline.unet.config, "the classifier takes")
