"""Training (Ho algorithm 1) on one device or many, resumable.

Which image, which t and which ε is a function of (seed, step, position in the global batch). So any number of processes
draws the same, and a resumed run continues as if it had never stopped, to the bit where the hardware computes the same
twice (CPUs do, some operations of GPUs do not). Dropout inside the network is drawn once per process and step: it
depends on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.data import to_pixels
from ddpm_from_scratch.models import UNet2DModel
from ddpm_from_scratch.pipelines import INDEX, DDPMPipeline
from ddpm_from_scratch.schedulers import DDPMScheduler

if TYPE_CHECKING:
    from accelerate import PartialState

CHECKPOINT = "checkpoint.pt"
SECONDS_TO_END = 8.0
"""How long a folder's lock may outlive a killed run: its loading processes notice after five seconds."""
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""What a closed terminal sends; Windows has none."""


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run depends on.

    Args:
        steps: optimiser steps in all.
        batch_size: images per step, over all processes.
        learning_rate: peak rate of AdamW, after `warmup_steps` of linear rise.
        learning_rate_decay: "constant", or "cosine" to 0 at the last step.
        weight_decay, grad_clip: of AdamW; largest norm of the gradient.
        ema_decay: of the averaged weights that are saved as the model.
        mixed_precision: "bf16", "no", or "auto" for bf16 where the hardware has it.
        snr_gamma: γ of min-SNR weighting (Hang et al. 2023), None for L_simple.
        label_dropout: share of labels replaced by the last class of the table (classifier-free guidance).
        horizontal_flip: mirror half of the images.
        seed: of everything random.
        checkpoint_minutes: time between checkpoints.
        num_workers: processes that load images and draw their noise ahead of the steps; 0 for none, best on a CPU.

    Raises:
        ValueError: a value out of range.
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    learning_rate_decay: str = "cosine"
    warmup_steps: int = 500
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9995
    mixed_precision: str = "auto"
    snr_gamma: float | None = None
    label_dropout: float = 0.0
    horizontal_flip: bool = False
    seed: int = 0
    checkpoint_minutes: float = 10.0
    num_workers: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be True or False, got {value!r}")
            if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{field.name} must be a number, got {value!r}")
        for name, least in {"steps": 1, "batch_size": 1, "warmup_steps": 0, "seed": 0, "num_workers": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("learning_rate", "checkpoint_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not self.grad_clip > 0:
            raise ValueError(f"grad_clip must be positive (inf for none), got {self.grad_clip}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        for name in ("ema_decay", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise ValueError(f"snr_gamma must be positive, or None for the plain loss, got {self.snr_gamma}")
        if self.learning_rate_decay not in ("constant", "cosine"):
            raise ValueError(f"learning_rate_decay must be 'constant' or 'cosine', got {self.learning_rate_decay!r}")
        if self.mixed_precision not in ("auto", "no", "bf16"):
            raise ValueError(f"mixed_precision must be 'auto', 'no' or 'bf16', got {self.mixed_precision!r}")

    def learning_rate_at(self, step: int) -> float:
        """The rate of optimiser step `step` = 0, 1, ..."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.learning_rate_decay == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being finite."""


class StopTraining(Exception):
    """Raised by a callback to end training after this step, with a checkpoint."""


@dataclass
class Progress:
    """What a callback sees after a step.

    `step` counts those done, `loss` is the mean over the global batch, `seconds` are those of training since step 0,
    over all resumed runs. `model` has its own weights; `ema.averaged()` lends it the averaged ones.
    """

    step: int
    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    ema: EMA
    model: UNet2DModel
    scheduler: DDPMScheduler


Callback = Callable[[Progress], None]


# ---------------------------------------------------------------- the loss


def training_target(scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should output at x_t, by the scheduler's `prediction_type`. Shapes as `x0`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    return x0 if kind == "sample" else scheduler.get_velocity(x0, noise, t)


def outputs(scheduler: DDPMScheduler, channels: int) -> int:
    """How many channels the network puts out for images of `channels`."""
    return channels * (2 if scheduler.variance_is_learned else 1)


def loss_weights(scheduler: DDPMScheduler, t: Tensor, snr_gamma: float | None) -> Tensor | float:
    """γ_t, the weight of a squared error (Song eq. 5): 1 for L_simple (Ho eq. 14), or min-SNR (Hang section 3.4).

    Args:
        t: (B,) timesteps.
        snr_gamma: γ, or None.

    Returns:
        (B,) float32 on t's device, or 1.
    """
    if snr_gamma is None:
        return 1.0
    snr = schedules.snr(scheduler.alphas_cumprod[t.cpu()])
    clipped = snr.clamp(max=snr_gamma)
    # in terms of x_0 the weight is min(SNR, γ); the same for ε is divided by SNR, for v by SNR + 1
    divisor = {"epsilon": snr.clamp(min=1e-20), "sample": torch.ones_like(snr), "v_prediction": snr + 1}
    return (clipped / divisor[scheduler.config.prediction_type]).float().to(t.device)


def diffusion_loss(
    model: nn.Module,
    scheduler: DDPMScheduler,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    class_labels: Tensor | None = None,
    snr_gamma: float | None = None,
) -> Tensor:
    """The mean weighted squared error at x_t (Ho eq. 14 and algorithm 1).

    With a learned variance, Nichol and Dhariwal's L_hybrid (eq. 16): the bound's term, times 0.001 and T, trains the
    variance alone.

    Args:
        model: `model(x_t, t[, class_labels]).sample` is the prediction.
        x0, noise: (B, C, H, W).
        t: (B,) timesteps; on the CPU they spare a GPU one wait.

    Returns:
        A scalar, float32.
    """
    x_t = scheduler.add_noise(x0, noise, t)
    labels = {} if class_labels is None else {"class_labels": class_labels}
    weights = torch.as_tensor(loss_weights(scheduler, t, snr_gamma), device=x_t.device)
    prediction = model(x_t, t.to(x_t.device), **labels).sample.float()
    if prediction.shape != (expected := (len(x0), outputs(scheduler, x0.shape[1]), *x0.shape[2:])):
        raise ValueError(f"the model's output has shape {tuple(prediction.shape)}, expected {expected}")
    bound: Tensor | float = 0.0
    if scheduler.variance_is_learned:
        prediction, v = prediction.chunk(2, dim=1)
        bound = 0.001 * len(scheduler) * bound_term(scheduler, prediction.detach(), v, x0, x_t, t).mean()
    error = (prediction - training_target(scheduler, x0, noise, t).float()) ** 2
    # Ho eq. 14: L_simple = E ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²
    return (weights * error.flatten(1).mean(dim=1)).mean() + bound


def bound_term(scheduler: DDPMScheduler, prediction: Tensor, v: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """L_{t-1} (or L_0 at t = 0) of the variational bound per sample, in bits per dimension (Ho eq. 5; IDDPM eq. 4-7).

    x̂_0 is thresholded or clipped where the scheduler does so.

    Args:
        prediction: the network's mean part, (B, C, H, W).
        v: its variance part, interpolating log β̃_t (-1) to log β_t (1) (Nichol and Dhariwal 2021, eq. 15).
        x0, x_t: (B, C, H, W).
        t: (B,) timesteps.
    """
    table = torch.cat([torch.ones(1, dtype=torch.float64), scheduler.alphas_cumprod])  # ᾱ_{-1} = 1
    shape = (-1, *[1] * (x0.ndim - 1))
    now, prev = table[t.cpu() + 1].view(shape), table[t.cpu()].view(shape)
    variance = gaussian.posterior_variance(now, prev)
    assert isinstance(variance, Tensor)
    second = gaussian.posterior_variance(table[2], table[1]) if len(table) > 2 else torch.tensor(1e-20)
    small = torch.where(variance > 0, variance, second).log()  # β̃ at t = 0 is 0: the next one stands in, as in IDDPM
    large = (1 - now / prev).log()
    small, large, now, prev = (c.to(x0.device, torch.float32) for c in (small, large, now, prev))
    x0_hat = scheduler._predict_x0(prediction, x_t, now)
    mean = gaussian.posterior_mean(x_t, x0_hat, now, prev)
    log_variance = (v + 1) / 2 * large + (1 - v) / 2 * small
    kl = gaussian.normal_kl(gaussian.posterior_mean(x_t, x0, now, prev), small, mean, log_variance)
    first = (t.cpu() == 0).nonzero().flatten()  # few, and on the CPU, since not every device has log Φ
    decoder = gaussian.discretized_log_likelihood(*(part[first].cpu() for part in (x0, mean, log_variance)))
    nats = kl.index_copy(0, first.to(kl.device), -decoder.to(kl))
    return gaussian.nats_to_bits(nats.flatten(1).mean(dim=1))


# ---------------------------------------------------------------- randomness by (seed, step, position)

STREAMS = {"order": 0, "noise": 1, "dropout": 2, "sample": 3}


def seeded(seed: int, stream: str, *indices: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    state = np.random.SeedSequence([seed, STREAMS[stream], *indices]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Draw(NamedTuple):
    """The random part of a batch: t (B,), ε (B, C, H, W), and two uniforms per sample (B, 2)."""

    t: Tensor
    noise: Tensor
    uniform: Tensor


def draw(seed: int, step: int, positions: Sequence[int], shape: Sequence[int], T: int) -> Draw:
    """t, ε and two uniform numbers for the given positions of the global batch of `step`.

    Args:
        positions: of this process's samples in the global batch.
        shape: (C, H, W) of an image.
        T: t is uniform in 0..T-1.
    """
    generators = [seeded(seed, "noise", step, position) for position in positions]
    t = torch.cat([torch.randint(T, (1,), generator=g) for g in generators])
    noise = gaussian.randn((len(generators), *shape), generators)
    return Draw(t, noise, torch.stack([torch.rand(2, generator=g) for g in generators]))


class GlobalBatches(Sampler[list[int]]):
    """Indices of this process's share of every global batch from `start` on, a new order each epoch."""

    def __init__(self, size: int, config: TrainingConfig, start: int, positions: Sequence[int]) -> None:
        self.size, self.config, self.start, self.positions = size, config, start, positions
        self.orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.config.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.steps):
            counts = (step * self.config.batch_size + position for position in self.positions)
            yield [self._order(epoch)[place] for epoch, place in (divmod(count, self.size) for count in counts)]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self.orders:
            order = torch.randperm(self.size, generator=seeded(self.config.seed, "order", epoch)).tolist()
            self.orders = {**{e: o for e, o in self.orders.items() if e == epoch - 1}, epoch: order}
        return self.orders[epoch]


class _DrawnBatches(Dataset[tuple[Tensor, Tensor, Draw]]):
    """Images and labels of the given indices, with what is drawn for them at a step.

    An item depends on (step, indices) alone, so processes may make it long before it is needed.
    """

    def __init__(self, dataset: Any, seed: int, positions: Sequence[int], T: int) -> None:
        self.dataset, self.seed, self.positions, self.T = dataset, seed, positions, T

    def __getitem__(self, item: tuple[int, list[int]]) -> tuple[Tensor, Tensor, Draw]:
        step, indices = item
        x0, labels = default_collate([self.dataset[index] for index in indices])
        finite = x0.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise ValueError(f"image {indices[int(finite.int().argmin())]} of the dataset is not finite everywhere")
        return x0, labels, draw(self.seed, step, self.positions, x0.shape[1:], self.T)


# ---------------------------------------------------------------- averaged weights


class EMA:
    """Exponential moving average of a model's parameters, in float32.

    The decay rises as (1 + n) / (10 + n) to its limit, so that the first steps do not linger.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9995) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.parameters = list(model.parameters())
        self.shadow = [p.detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's present weights into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        # shadow ← decay · shadow + (1 - decay) · weights
        torch._foreach_lerp_(self.shadow, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within it the model has the averaged weights; afterwards its own again."""
        own = [p.detach().clone() for p in self.parameters]
        self.write_to_model()
        try:
            yield self.model
        finally:
            self._write(own)

    def write_to_model(self) -> None:
        """Gives the model the averaged weights for good."""
        self._write(self.shadow)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.updates = int(state["updates"])
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes the checkpoint so that a kill or a full disk leaves a whole one: new file, flush, rename.

    The rename is atomic, so no second, older copy is kept.

    Raises:
        OSError: the file could not be written; the checkpoint that was there is kept.
    """
    temporary = folder / f".{CHECKPOINT}.new"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / CHECKPOINT)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint of step {state['step']} could not be written in {folder} ({_reason(error)}): make room "
            "and resume; an earlier checkpoint is kept as it was"
        ) from None


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The checkpoint in `folder`, None if there is none.

    Raises:
        ValueError: a file that is damaged, or not a checkpoint of `train`.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}): put back a whole copy, or move it away to "
            "start anew"
        ) from None
    parts = ("model", "optimiser", "ema", "config", "scheduler", "unet")
    whole = isinstance(state, dict) and isinstance(state.get("step"), int)
    if not whole or not all(isinstance(state.get(part), dict) for part in parts):
        raise ValueError(f"{path} is not a checkpoint of this program: choose another folder, or move it away")
    return state


def _check_same_run(state: dict[str, Any], now: dict[str, dict[str, Any]], path: Path) -> None:
    """Refuses a checkpoint of another run. What an older checkpoint does not say had its default."""
    may_change = {"steps", "checkpoint_minutes", "num_workers"}
    defaults = {"config": asdict(TrainingConfig())}
    for part, values in now.items():
        saved = {**values, **defaults.get(part, {}), **state.get(part, {})}
        changed = [key for key in values if key not in may_change and saved[key] != values[key]]
        if changed:
            what = ", ".join(f"{key} was {saved[key]!r}, is {values[key]!r}" for key in changed)
            raise ValueError(f"{path} belongs to another run ({part}: {what}): use the same options or another folder")
    if state["step"] > now["config"]["steps"]:
        raise ValueError(f"{path} has {state['step']} steps already, more than steps={now['config']['steps']}")


def holds_model(folder: Path) -> bool:
    """Whether `train` would write over a saved model there."""
    return (folder / INDEX).exists() or (folder / "unet").exists()


def check_writable(folder: Path) -> None:
    """Makes the folder and tries to write in it, so that no work is done for nothing.

    Raises:
        OSError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write in {folder} ({_reason(error)}): choose another output folder") from None


@contextmanager
def _alone_in(folder: Path | None) -> Iterator[None]:
    """Within it no other process trains in the folder: a lock that ends with its processes, where the system has it.

    Raises:
        ValueError: another one does.
    """
    if folder is None or not processes().is_main_process:
        yield
        return
    check_writable(folder)
    if sys.platform == "win32":
        yield
        return
    place, until = os.open(folder, os.O_RDONLY), time.monotonic() + SECONDS_TO_END
    try:
        while not _locked(place):
            if time.monotonic() > until:
                raise ValueError(f"another run trains in {folder}: wait for its end, or choose another folder")
            time.sleep(0.2)
        yield
    finally:
        os.close(place)


def _locked(place: int) -> bool:
    """Whether the open folder is ours alone, or cannot be locked, as on some network drives."""
    import fcntl

    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _reason(error: Exception) -> str:
    """The error in a few words."""
    return getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------- the loop


def bf16_is_fast(device: torch.device) -> bool:
    """Whether training in bfloat16 pays: GPUs that have it, and CPUs with matrix units for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return False


def processes() -> PartialState:
    """Those that `accelerate launch` or `torchrun` started, or this one alone.

    They train on the CPU where there is no accelerator, or where the environment says `ACCELERATE_USE_CPU=true`.

    Raises:
        ValueError: several were started that Accelerate does not join; each would train alone, in the others' folder.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    joined = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != joined.num_processes:
        raise ValueError(
            f"{started} processes were started, but {joined.num_processes} would train together on {joined.device}: "
            "start them with `accelerate launch`, or set ACCELERATE_USE_CPU=true"
        )
    return joined


def train(
    model: UNet2DModel,
    scheduler: DDPMScheduler,
    dataset: Dataset[tuple[Tensor, int]],
    config: TrainingConfig,
    output_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> int:
    """Trains `model` in place (Ho algorithm 1) and leaves it with its averaged weights, on the device it trained on.

    Runs on every process that `accelerate launch` or `torchrun` starts. An interrupt, a termination signal, a closed
    terminal or `StopTraining` ends it after the step with a checkpoint; calling again with `resume=True` continues to
    the bit.
    So does any other exception from a callback or from loading an image, which is raised again once the checkpoint is
    written.
    The model's mode (train or eval) and the global random state are afterwards as they were.

    Args:
        model: class-conditional ones take the dataset's labels.
        scheduler: gives the noise schedule and the prediction type.
        dataset: yields (image in [-1, 1] of shape (C, H, W), label, -1 for none); has a length.
        output_dir: where checkpoints go, and the model at the end; None keeps nothing on disk.
        callbacks: each called with a `Progress` after every step, on the main process.
        resume: continue from the checkpoint in `output_dir`, if there is one.

    Returns:
        The steps done, `config.steps` unless stopped early.

    Raises:
        ValueError: a batch that does not divide among the processes; a model, a scheduler, images or labels that do
            not fit together; an image that is not finite; a checkpoint of another run; one, or a saved model, that
            would be overwritten; a folder in which another run trains; or as `processes`.
        OSError: `output_dir` cannot be written to, or another process could not load its images.
        TrainingDiverged: the gradient is no longer finite. The model keeps the weights it had before that step, its
            own and not the averaged ones; the last checkpoint is kept.
    """
    folder = None if output_dir is None else Path(output_dir).expanduser()
    with _alone_in(folder):
        run = _Run(model, scheduler, dataset, config, folder, resume)
        with run.settings_kept(), _stop_on_signal() as stop, closing(run.loaded()) as batches:
            for batch in batches:
                x0, noise, t, labels = run.prepare(*batch)
                with run.precision():
                    loss = diffusion_loss(run.network, scheduler, x0, noise, t, labels, config.snr_gamma)
                progress = run.update(loss)
                try:
                    for callback in callbacks if run.is_main else ():
                        callback(progress)
                except StopTraining:
                    stop.set()
                except Exception:
                    run.checkpoint()
                    raise
                ending = run.any_process(stop.is_set()) or run.done == config.steps
                if ending or run.checkpoint_is_due():
                    run.checkpoint()
                if ending:
                    break
        return run.finish()


class _Run:
    """One training run: what `train` sets up, and the parts of a step that are not algorithm 1."""

    def __init__(
        self,
        model: UNet2DModel,
        scheduler: DDPMScheduler,
        dataset: Any,
        config: TrainingConfig,
        folder: Path | None,
        resume: bool,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin

        processes()
        one_step = GradientAccumulationPlugin(num_steps=1)  # whatever a launcher's environment says
        self.accelerator = Accelerator(mixed_precision="no", gradient_accumulation_plugin=one_step)
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.model, self.scheduler, self.config, self.folder = model, scheduler, config, folder
        self.images = _check_fits(dataset, model, scheduler, config, folder)
        n, rank = self.accelerator.num_processes, self.accelerator.process_index
        if config.batch_size % n:
            raise ValueError(f"batch_size={config.batch_size} does not divide among {n} processes")
        share = config.batch_size // n
        self.positions = range(rank * share, (rank + 1) * share)
        state = None if folder is None else self._saved_state(folder, resume)

        self.bf16 = config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and bf16_is_fast(self.device))
        if state is not None:
            model.load_state_dict(state["model"])
        model.to(self.device).to(memory_format=torch.channels_last if self.bf16 else torch.contiguous_format)
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.network = self.accelerator.prepare_model(model)  # from here on all processes have the same weights
        self.ema = EMA(model, config.ema_decay)
        self.done, self.seconds_before = 0, 0.0
        if state is not None:
            self.optimiser.load_state_dict(state["optimiser"])
            self._lay_out_moments()
            self.ema.load_state_dict(state["ema"])
            self.done, self.seconds_before = state["step"], state.get("seconds", 0.0)
        indices = GlobalBatches(len(dataset), config, self.done, self.positions)
        self.batches = DataLoader(
            _DrawnBatches(dataset, config.seed, self.positions, len(scheduler)),
            batch_size=None,
            sampler=enumerate(indices, start=self.done),
            num_workers=config.num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_parent,
        )
        self.began = self.saved = time.monotonic()

    def _lay_out_moments(self) -> None:
        """AdamW walks weights and moments side by side: those of another machine may lie otherwise in memory."""
        for parameter, moments in self.optimiser.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name])

    def _facts(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint must agree on to be continued."""
        return {
            "config": asdict(self.config),
            "scheduler": json.loads(self.scheduler.to_json()),
            "unet": json.loads(self.model.to_json()),
            "dataset": self.images,
        }

    def _saved_state(self, folder: Path, resume: bool) -> dict[str, Any] | None:
        state = load_checkpoint(folder)
        if state is None:
            if holds_model(folder):
                raise ValueError(f"{folder} holds a finished model without a checkpoint: choose another folder")
            return None
        if not resume:
            raise ValueError(f"{folder} holds a checkpoint of step {state['step']}: resume it, or choose another")
        _check_same_run(state, self._facts(), folder / CHECKPOINT)
        return state

    @contextmanager
    def settings_kept(self) -> Iterator[None]:
        """Within it the model trains; afterwards its mode and the global random state are as before."""
        states = [(source, source.get_rng_state()) for source in self._random_sources()]
        with modes_kept(self.model):
            self.model.train()
            try:
                yield
            finally:
                self.optimiser.zero_grad()
                self.model.to(memory_format=torch.contiguous_format)
                for source, state in states:
                    source.set_rng_state(state)

    def _random_sources(self) -> list[Any]:
        """The modules whose global random state dropout draws from."""
        return [torch] if self.device.type == "cpu" else [torch, torch.get_device_module(self.device)]

    def loaded(self) -> Generator[tuple[Tensor, Tensor, Draw], None, None]:
        """The batches; where a process cannot load one, the steps done are kept in a checkpoint and all end."""
        batches = iter(self.batches)
        try:
            while self.done < self.config.steps:
                yield self._next(batches)
        finally:  # the processes that load ignore SIGTERM, with which Python would end them at its own end
            getattr(batches, "_shutdown_workers", lambda: None)()

    def _next(self, batches: Iterator[tuple[Tensor, Tensor, Draw]]) -> tuple[Tensor, Tensor, Draw]:
        failure: Exception | None = None
        try:
            batch = next(batches)
            _check_labels(batch[1], self.model.config.num_class_embeds, self.config.label_dropout)
        except Exception as error:
            failure = error
        if self.any_process(failure is not None):
            if self.done:
                self.checkpoint()
            self.accelerator.wait_for_everyone()  # a launcher ends all as soon as one has ended
            raise failure or OSError("another process could not load its images")
        return batch

    def precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def prepare(self, x0: Tensor, labels: Tensor, random: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x0, ε, t and class labels: flips and drops labels as drawn; all but t go to the device.

        Also seeds the network's dropout.
        """
        seed = seeded(self.config.seed, "dropout", self.done, self.positions[0]).initial_seed()
        for source in self._random_sources():
            source.manual_seed(seed)
        if self.config.horizontal_flip:
            mirrored = (random.uniform[:, 0] < 0.5).view(-1, 1, 1, 1)
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        pinned = self.device.type == "cuda"  # on other devices a copy that does not wait may read what is gone
        x0, noise = (part.to(self.device, non_blocking=pinned) for part in (x0, random.noise))
        classes = self.model.config.num_class_embeds
        if classes is None:
            return x0, noise, random.t, None
        nothing = classes - 1
        dropped = (random.uniform[:, 1] < self.config.label_dropout) | (labels < 0)
        return x0, noise, random.t, torch.where(dropped, nothing, labels).to(self.device)

    def update(self, loss: Tensor) -> Progress:
        """Backward pass, clipping, optimiser, average.

        Raises:
            TrainingDiverged: before anything is changed by a gradient that is not finite.
        """
        rate = self.config.learning_rate_at(self.done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.accelerator.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(self.ema.parameters, self.config.grad_clip))
        mean_loss = float(self.accelerator.reduce(loss.detach(), reduction="mean"))
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}, the loss {mean_loss:.4g}")
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.ema.update()
        self.done += 1
        return Progress(
            self.done, self.config.steps, mean_loss, norm, rate, self.seconds(), self.ema, self.model, self.scheduler
        )

    def _diverged(self, what: str) -> TrainingDiverged:
        there = self.folder is not None and (self.folder / CHECKPOINT).exists()
        kept = f" The last checkpoint is kept in {self.folder}." if there else ""
        return TrainingDiverged(
            f"training diverged after step {self.done} ({what}): start again with a lower learning rate than "
            f"{self.config.learning_rate}, or mixed_precision='no'.{kept}"
        )

    def seconds(self) -> float:
        """Spent training since step 0, over all resumed runs."""
        return self.seconds_before + time.monotonic() - self.began

    def any_process(self, flag: bool) -> bool:
        """Whether any process sets the flag, so that all end after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device)).item())

    def checkpoint_is_due(self) -> bool:
        return time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes

    def checkpoint(self) -> None:
        """Saves everything that the next step depends on.

        Raises:
            TrainingDiverged: instead of writing weights that are not finite over good ones.
        """
        self.check_finite()
        if self.folder is None or not self.is_main:
            return
        state = {"step": self.done, "seconds": self.seconds(), "model": self.model.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "ema": self.ema.state_dict()}
        save_checkpoint(self.folder, state | self._facts())
        self.saved = time.monotonic()

    def check_finite(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise self._diverged("the weights are not finite")

    def finish(self) -> int:
        """Writes the averaged weights into the model, and the pipeline to disk."""
        self.accelerator.wait_for_everyone()
        self.ema.write_to_model()
        if self.folder is not None and self.is_main:
            try:
                DDPMPipeline(self.model, self.scheduler).save_pretrained(self.folder)
            except OSError as error:
                raise OSError(
                    f"{error}: the checkpoint in {self.folder} holds all {self.done} steps, so make room and resume"
                ) from None
        return self.done


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module trains or evaluates as it did before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_fits(
    dataset: Any, model: UNet2DModel, scheduler: DDPMScheduler, config: TrainingConfig, folder: Path | None
) -> dict[str, Any]:
    """Refuses a model, a scheduler and data that do not fit together; returns what is known of the data."""
    if not len(dataset):
        raise ValueError("the dataset is empty")
    check_condition(model)
    _check_bound(scheduler)
    if torch.finfo(model.dtype).bits < 32:
        raise ValueError(f"the model's weights are {model.dtype}, which loses small updates: train model.float()")
    shape, channels, size = list(dataset[0][0].shape), model.config.in_channels, model.config.sample_size
    if size is None and folder is not None:
        raise ValueError("the model's config has no sample_size, so what is saved could not be sampled: give it one")
    if model.config.out_channels != (needed := outputs(scheduler, channels)):
        learned = ", twice the channels for a learned variance" if scheduler.variance_is_learned else ""
        raise ValueError(f"the model needs out_channels={needed}{learned}, got {model.config.out_channels}")
    sides = shape[1:] if size is None else [size, size] if isinstance(size, int) else list(size)
    if shape != [channels, *sides]:
        raise ValueError(f"the model takes images of shape {[channels, *sides]}, the dataset's are {shape}")
    if config.label_dropout and model.config.num_class_embeds is None:
        raise ValueError(f"label_dropout={config.label_dropout} needs a class-conditional model (num_class_embeds)")
    if isinstance(labels := getattr(dataset, "labels", None), Tensor):
        _check_labels(labels, model.config.num_class_embeds, config.label_dropout)
    known: dict[str, Any] = {"images": len(dataset), "shape": shape}
    if isinstance(labels, Tensor) and model.config.num_class_embeds is not None:
        known["labels"] = hashlib.sha256(labels.cpu().long().numpy().tobytes()).hexdigest()[:16]
    return known | _fingerprint(dataset)


def check_condition(model: UNet2DModel) -> None:
    """Refuses a network whose condition is not one of a number of classes.

    Raises:
        ValueError: its `class_embed_type`, named.
    """
    if (kind := model.config.class_embed_type) is not None:
        raise ValueError(
            f"the model was built with class_embed_type={kind!r}, whose conditions no dataset gives: only classes "
            "(class_embed_type=None, num_class_embeds) are trained and sampled here"
        )


def _check_bound(scheduler: DDPMScheduler) -> None:
    """Refuses a learned variance whose bound is infinite at the last timestep."""
    config = scheduler.config
    clipped = config.clip_sample and not config.thresholding  # ±∞ becomes ±1; its percentile is NaN
    epsilon = config.prediction_type == "epsilon"
    if scheduler.variance_is_learned and epsilon and not clipped and scheduler.alphas_cumprod[-1] == 0:
        raise ValueError(
            "ε-prediction cannot learn a variance where ᾱ_T = 0 (zero terminal SNR), for x_0 cannot be recovered "
            "there: take prediction_type='v_prediction' or 'sample'"
        )


def _check_labels(labels: Tensor, classes: int | None, label_dropout: float) -> None:
    """Refuses labels without a row in the class table; its last is "no class" where labels are dropped or missing."""
    if classes is None:
        return
    without = label_dropout > 0 or bool((labels < 0).any())
    if labels.max() >= classes - without:
        last = ', whose last row is for "no class"' if without else ""
        raise ValueError(f"label {int(labels.max())} is too large for a model of num_class_embeds={classes}{last}")


def _fingerprint(dataset: Any) -> dict[str, str]:
    """A hash of eight images' 8-bit pixels; nothing where an image is not the same when it is read again."""
    first, second = _hash(dataset), _hash(dataset)
    return {"pixels": first} if first == second else {}


def _hash(dataset: Any) -> str:
    """Of eight images, spread over the dataset."""
    found = hashlib.sha256()
    for index in sorted({i * (len(dataset) - 1) // 7 for i in range(8)}):
        found.update(to_pixels(dataset[index][0]).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _leave_interrupts_to_parent(worker: int) -> None:
    """A Ctrl-C or a launcher's signal reaches every process; those that load images go on until the step is done."""
    for number in _stopping_signals():
        signal.signal(number, signal.SIG_IGN)


def _stopping_signals() -> list[signal.Signals]:
    """Ctrl-C, termination, and a closed terminal unless it is ignored (nohup)."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        numbers.append(HANGUP)
    return numbers


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that a signal sets, so that a step is never cut in two.

    A second one is obeyed at once, but for that of a closed terminal: shell and kernel both send it.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in _stopping_signals()}

    def request(number: int, frame: FrameType | None) -> None:
        event.set()
        if number != HANGUP:
            signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, request)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
