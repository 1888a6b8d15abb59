"""Pipelines: a network and a scheduler, from noise to images."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_from_scratch.config import DIFFUSERS_VERSION, ConfigMixin, FrozenConfig
from ddpm_from_scratch.gaussian import randn
from ddpm_from_scratch.hub import WEIGHTS, plain_subfolder, resolve
from ddpm_from_scratch.models import UNet2DModel
from ddpm_from_scratch.outputs import Output
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

INDEX = "model_index.json"
Generator = torch.Generator | Sequence[torch.Generator]
Callback = Callable[[int, int, Tensor, Tensor], None]
SCHEDULERS: dict[str, type[DDPMScheduler] | type[DDIMScheduler]] = {
    "DDPMScheduler": DDPMScheduler,
    "DDIMScheduler": DDIMScheduler,
}


@dataclass
class ImagePipelineOutput(Output):
    """`images`: a list of PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1]."""

    images: list[Image.Image] | np.ndarray | Tensor


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """(B, H, W, C) in [0, 1] → PIL images, grey where C = 1."""
    pixels = (images * 255).round().astype("uint8")
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


class DiffusionPipeline:
    """A U-Net and a scheduler: the denoising loop, moving, saving and loading."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self.unet, self.scheduler = unet, scheduler
        self._progress_bar_config: dict[str, Any] = {}

    # ------------------------------------------------------------ sampling

    @torch.no_grad()
    def _sample(
        self,
        batch_size: int,
        num_inference_steps: int,
        generator: Generator | None,
        output_type: str,
        return_dict: bool,
        callback: Callback | None,
        step_arguments: dict[str, Any],
        class_labels: Tensor | Sequence[int] | None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Noise → for t in scheduler.timesteps: unet, scheduler.step → images."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
        self.scheduler.set_timesteps(num_inference_steps)
        x = randn(self._image_shape(batch_size), generator, self.device, self.unet.dtype)
        x = x * self.scheduler.init_noise_sigma
        condition = self._condition(class_labels, batch_size)

        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_output = self.unet(self.scheduler.scale_model_input(x, t), t, **condition).sample
            out = self.scheduler.step(model_output, t, x, **self._accepted(generator=generator, **step_arguments))
            x = out.prev_sample
            if callback is not None:
                callback(step, int(t), x, out.pred_original_sample)

        images: Any = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()  # (B, C, H, W) → (B, H, W, C)
        if output_type == "pil":
            images = numpy_to_pil(images)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _image_shape(self, batch_size: int) -> tuple[int, ...]:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("the U-Net's config has no sample_size, so the pipeline cannot know the images' size")
        height, width = (size, size) if isinstance(size, int) else size
        return batch_size, self.unet.config.in_channels, height, width

    def _condition(self, class_labels: Tensor | Sequence[int] | None, batch_size: int) -> dict[str, Tensor]:
        if class_labels is None:
            return {}
        labels = torch.as_tensor(class_labels, device=self.device)
        if len(labels) != batch_size:
            raise ValueError(f"got {len(labels)} class_labels for a batch of {batch_size}")
        return {"class_labels": labels}

    def _accepted(self, **arguments: Any) -> dict[str, Any]:
        """Those of `arguments` that this scheduler's `step` takes."""
        parameters = inspect.signature(self.scheduler.step).parameters
        return {key: value for key, value in arguments.items() if key in parameters}

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options for the tqdm bar, such as `disable=True`."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Any) -> Any:
        """`iterable` under the pipeline's progress bar."""
        return tqdm(iterable, **self._progress_bar_config)

    # ------------------------------------------------------------ the parts

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {"unet": self.unet, "scheduler": self.scheduler}

    @property
    def config(self) -> FrozenConfig:
        """What `model_index.json` says."""
        return FrozenConfig({name: self._entry(part) for name, part in self.components.items()})

    @property
    def device(self) -> torch.device:
        """Device of the U-Net."""
        return self.unet.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the U-Net's parameters."""
        return self.unet.dtype  # type: ignore[no-any-return]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the U-Net to a device or a dtype, as `torch.nn.Module.to` does."""
        self.unet.to(*args, **kwargs)
        return self

    # ------------------------------------------------------------ disk

    @staticmethod
    def _entry(part: Any) -> tuple[str, str]:
        return "diffusers", type(part).__name__

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Writes `unet/`, `scheduler/` and `model_index.json`: a folder that Diffusers opens too."""
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: save_pretrained needs a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.unet.save_pretrained(folder / "unet", safe_serialization=safe_serialization, variant=variant)
        self.scheduler.save_pretrained(folder / "scheduler")
        head = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION}
        index = {**head, **self.config}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        unet: Any = None,
        scheduler: Any = None,
        **hub_options: Any,
    ) -> Self:
        """A pipeline from a folder or a hub id.

        The parts may lie in folders of their own (`unet/`, `scheduler/`) or beside `model_index.json`, as in the
        first `google/ddpm-*` repositories.

        Args:
            pretrained_model_name_or_path: a folder with `model_index.json`, or "owner/name" on the hub.
            subfolder, revision, dtype, torch_dtype, variant, use_safetensors, hub_options: as in
                `UNet2DModel.from_pretrained`.
            unet, scheduler: use these instead of the saved ones.

        Raises:
            FileNotFoundError, ConnectionError: nothing there.
            ValueError: a part of a class that is not supported, or damaged files.
        """
        patterns = [INDEX]
        for prefix in ("", "unet/"):
            tag = f".{variant}" if variant else ""
            patterns += [f"{prefix}config.json", *(f"{prefix}{WEIGHTS}{p}" for p in (f"{tag}.*", f"{tag}-*"))]
            patterns += [f"{prefix}{WEIGHTS}.*.index{tag}.json"]
        patterns += ["scheduler_config.json", "scheduler/scheduler_config.json"]
        folder = resolve(pretrained_model_name_or_path, patterns, subfolder, revision, **hub_options)
        index = ConfigMixin.read_config(folder / INDEX)
        unet_class, scheduler_class = _named_classes(index, folder / INDEX)
        if unet is None:
            where = folder / "unet" if (folder / "unet").is_dir() else folder
            unet = unet_class.from_pretrained(
                where, dtype=dtype or torch_dtype, variant=variant, use_safetensors=use_safetensors
            )
        if scheduler is None:
            where = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
            scheduler = scheduler_class.from_pretrained(where)
        return cls(unet=unet, scheduler=scheduler)


def _named_classes(index: dict[str, Any], path: Path) -> tuple[type[UNet2DModel], Any]:
    """The classes that a `model_index.json` names, from the known ones only."""
    known: dict[str, dict[str, Any]] = {
        "unet": {"UNet2DModel": UNet2DModel, "UNetUnconditionalModel": UNet2DModel},
        "scheduler": SCHEDULERS,
    }
    parts = {key: value for key, value in index.items() if not key.startswith("_")}
    if set(parts) != set(known):
        raise ValueError(f"{path} names {', '.join(sorted(parts)) or 'no parts'}: expected unet and scheduler")
    found = []
    for name, classes in known.items():
        entry = parts[name]
        class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if not isinstance(class_name, str) or class_name not in classes:
            raise ValueError(f"{path}: {name} {entry} is not supported; known are {', '.join(classes)}")
        found.append(classes[class_name])
    return found[0], found[1]


class DDPMPipeline(DiffusionPipeline):
    """Images by ancestral sampling (Ho algorithm 2), or by whatever the given scheduler's `step` does.

    Args:
        unet: the network.
        scheduler: a `DDPMScheduler`, a `DDIMScheduler`, or one of Diffusers'.
    """

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | None = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callback | None = None,
        class_labels: Tensor | Sequence[int] | None = None,
    ) -> Any:
        """Generates images.

        Args:
            batch_size: how many.
            generator: source of x_T and of every step's noise; one, or one per image.
            num_inference_steps: 1..T.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), the latter two in [0, 1].
            return_dict: False gives the tuple (images,).
            callback: called as `callback(step, t, x_t, x0_hat)` after each step, x_t being the new sample.
            class_labels: (B,) integers, for a class-conditional network.

        Raises:
            ValueError: an argument out of range.
        """
        return self._sample(
            batch_size, num_inference_steps, generator, output_type, return_dict, callback, {}, class_labels
        )


class DDIMPipeline(DiffusionPipeline):
    """Images by DDIM (Song eq. 12). Any given scheduler is converted to a `DDIMScheduler` of the same schedule."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__(unet, DDIMScheduler.from_config(scheduler.config))

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callback | None = None,
        class_labels: Tensor | Sequence[int] | None = None,
    ) -> Any:
        """Generates images.

        Args:
            eta: η of Song eq. 16, from 0 (deterministic) to 1.
            use_clipped_model_output: see `DDIMScheduler.step`.
            batch_size, generator, num_inference_steps, output_type, return_dict, callback, class_labels: as in
                `DDPMPipeline`.

        Raises:
            ValueError: an argument out of range.
        """
        arguments = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        return self._sample(
            batch_size, num_inference_steps, generator, output_type, return_dict, callback, arguments, class_labels
        )
