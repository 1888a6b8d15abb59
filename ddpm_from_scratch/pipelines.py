"""Pipelines: a network and a scheduler, from noise to images."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_from_scratch.config import DIFFUSERS_VERSION, FrozenConfig, new_folder, read_json, write_file
from ddpm_from_scratch.gaussian import Generator, randn
from ddpm_from_scratch.hub import MAX_SHARD, pick_weights, resolve
from ddpm_from_scratch.models import UNet2DModel
from ddpm_from_scratch.models.attention import Attention
from ddpm_from_scratch.outputs import Output
from ddpm_from_scratch.publish import PushMixin
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

INDEX = "model_index.json"
logger = logging.getLogger("diffusers.pipelines.pipeline_utils")  # one verbosity for both libraries
Callback = Callable[[int, int, Tensor, Tensor | None], None]
KNOWN_CLASSES: dict[str, dict[str, Any]] = {
    "unet": {"UNet2DModel": UNet2DModel, "UNetUnconditionalModel": UNet2DModel},
    "scheduler": {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler},
}
"""The classes that a `model_index.json` may name."""


@dataclass
class ImagePipelineOutput(Output):
    """`images`: a list of PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1]."""

    images: list[Image.Image] | np.ndarray | Tensor


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """(B, H, W, C) in [0, 1] → PIL images, grey where C = 1."""
    pixels = (images * 255).round().astype("uint8")
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


class DiffusionPipeline(PushMixin):
    """A U-Net and a scheduler: the denoising loop, moving, saving and loading."""

    _optional_components: ClassVar[list[str]] = []

    def __init__(self, unet: Any, scheduler: Any) -> None:
        if not callable(unet) or not hasattr(scheduler, "set_timesteps"):
            raise TypeError(f"expected a U-Net and a scheduler, got {type(unet).__name__}, {type(scheduler).__name__}")
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
        if output_type not in ("pil", "np", "numpy", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
        shape, condition = self._image_shape(batch_size), self._condition(class_labels, batch_size)
        if output_type == "pil" and shape[1] > 4:
            raise ValueError(f"{shape[1]} channels make no picture: ask for output_type='np' or 'pt'")
        self.scheduler.set_timesteps(num_inference_steps)
        x = randn(shape, generator, self.device, self.unet.dtype) * self.scheduler.init_noise_sigma

        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_output = self.unet(self.scheduler.scale_model_input(x, t), t, **condition).sample
            if not getattr(self.scheduler, "variance_is_learned", True) and model_output.shape[1] == 2 * x.shape[1]:
                model_output = model_output[:, : x.shape[1]]  # a scheduler of ours with no use for a learned variance
            out = self.scheduler.step(model_output, t, x, **self._accepted(generator=generator, **step_arguments))
            x = out.prev_sample
            if callback is not None:
                callback(step, int(t), x, getattr(out, "pred_original_sample", None))

        images: Any = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()  # (B, C, H, W) → (B, H, W, C)
        if output_type == "pil":
            images = numpy_to_pil(images)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _image_shape(self, batch_size: int) -> tuple[int, ...]:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("the U-Net's config has no sample_size, so the pipeline cannot know the images' size")
        height, width = (size, size) if isinstance(size, int) else size
        return int(batch_size), self.unet.config.in_channels, height, width

    def _condition(self, class_labels: Tensor | Sequence[int] | None, batch_size: int) -> dict[str, Tensor]:
        if class_labels is None:
            return {}
        labels = torch.as_tensor(class_labels, device=self.device).reshape(-1)
        if len(labels) != batch_size:
            raise ValueError(f"got {len(labels)} class_labels for a batch of {batch_size}")
        classes = self.unet.config.get("num_class_embeds")
        if classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"class_labels must lie in [0, {classes - 1}], got {labels.tolist()}")
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

    def enable_attention_slicing(self, slice_size: int | str | None = "auto") -> None:
        """Computes attention some heads at a time: less memory, more time, the same images.

        Args:
            slice_size: heads at a time, "auto" for half of them, "max" for one, None for all.
        """
        for module in self.unet.modules():
            if isinstance(module, Attention):
                named: dict[Any, int] = {None: module.heads, "auto": module.heads // 2, "max": 1}
                module.heads_at_once = max(int(named.get(slice_size, slice_size)), 1)  # type: ignore[arg-type]

    def disable_attention_slicing(self) -> None:
        """Computes all heads at once again."""
        self.enable_attention_slicing(None)

    # ------------------------------------------------------------ the parts

    def __getattr__(self, name: str) -> NoReturn:
        supported = ", ".join(key for key in dir(type(self)) if key[0] != "_")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}; it has {supported}")

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {"unet": self.unet, "scheduler": self.scheduler}

    @property
    def config(self) -> FrozenConfig:
        """What `model_index.json` says."""
        parts = {name: getattr(part, "_orig_mod", part) for name, part in self.components.items()}  # as before compile
        return FrozenConfig({name: ("diffusers", type(part).__name__) for name, part in parts.items()})

    @property
    def device(self) -> torch.device:
        """Device of the U-Net."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the U-Net's parameters."""
        return self.unet.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the U-Net to a device or a dtype, as `torch.nn.Module.to` does."""
        self.unet.to(*args, **kwargs)
        return self

    # ------------------------------------------------------------ disk

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Writes `unet/`, `scheduler/` and `model_index.json`: a folder that Diffusers opens too.

        Arguments as in `UNet2DModel.save_pretrained`.
        """
        folder, max_shard_size = new_folder(save_directory), max_shard_size or MAX_SHARD
        self.unet.save_pretrained(
            folder / "unet", safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
        )
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION, **self.config}
        write_file(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        unet: Any = None,
        scheduler: Any = None,
        low_cpu_mem_usage: bool = True,
        **hub_options: Any,
    ) -> Self:
        """A pipeline from a folder or a hub id; `DiffusionPipeline` takes the class that `model_index.json` names.

        The parts may lie in folders of their own (`unet/`, `scheduler/`) or beside `model_index.json`, as in the
        first `google/ddpm-*` repositories.

        Args:
            pretrained_model_name_or_path: a folder with `model_index.json`, the name of a shipped model, or
                "owner/name" on the hub.
            dtype, torch_dtype: as in `UNet2DModel.from_pretrained`, or {"unet": ..., "default": ...}.
            subfolder, revision, variant, use_safetensors, hub_options: as in `UNet2DModel.from_pretrained`.
            unet, scheduler: use these instead of the saved ones.
            low_cpu_mem_usage: taken for Diffusers' sake.

        Raises:
            FileNotFoundError, ConnectionError, PermissionError: nothing there, or not within reach.
            ValueError: a part of a class that is not supported, or damaged files.
        """

        def wanted(names: Collection[str]) -> list[str]:
            found = {part: _inside(names, part) for part in KNOWN_CLASSES}
            weights = pick_weights(found["unet"], variant, use_safetensors) if unet is None else []
            picked = [found["unet"].get(name) for name in ("config.json", *weights)]
            return list(filter(None, [INDEX, *picked, found["scheduler"].get("scheduler_config.json")]))

        folder = resolve(pretrained_model_name_or_path, wanted, subfolder, revision, **hub_options)
        classes = _named_classes(folder / INDEX, cls)
        where = {part: folder / part if (folder / part).is_dir() else folder for part in KNOWN_CLASSES}
        if unet is None:
            kind = dtype or torch_dtype
            kind = kind.get("unet", kind.get("default")) if isinstance(kind, dict) else kind
            unet = classes("unet").from_pretrained(
                where["unet"], dtype=kind, variant=variant, use_safetensors=use_safetensors
            )
        if scheduler is None:
            scheduler = classes("scheduler").from_pretrained(where["scheduler"])
        pipeline: Self = classes("_class_name")(unet=unet, scheduler=scheduler)
        for name, part in pipeline.components.items():
            logger.info("Loaded %s as %s from %s", name, type(part).__name__, where[name])
        return pipeline


def _inside(names: Collection[str], part: str) -> dict[str, str]:
    """The files of a part, by name: those in its folder, or those at the top where it has none."""
    prefix = f"{part}/" if any(name.startswith(f"{part}/") for name in names) else ""
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def _named_classes(path: Path, pipeline: type[DiffusionPipeline]) -> Callable[[str], Any]:
    """What a `model_index.json` names: a function from "unet", "scheduler" or "_class_name" to a known class.

    Raises:
        ValueError: other parts than these; from the function, a class that is not known.
    """
    index = read_json(path)
    parts = sorted(key for key in index if not key.startswith("_"))
    if parts != sorted(KNOWN_CLASSES):
        raise ValueError(f"{path} names {', '.join(parts)[:200] or 'no parts'}: expected unet and scheduler")
    if pipeline is not DiffusionPipeline:
        index["_class_name"] = pipeline.__name__
    pipelines = {k.__name__: k for k in (pipeline, *DiffusionPipeline.__subclasses__()) if k is not DiffusionPipeline}

    def named(key: str) -> Any:
        known = KNOWN_CLASSES.get(key, pipelines)
        entry = index.get(key)
        library, name = entry if isinstance(entry, list) and len(entry) == 2 else ("diffusers", entry)
        if library not in ("diffusers", "ddpm_from_scratch") or not isinstance(name, str) or name not in known:
            hint = "" if key.startswith("_") else f" (or give {key}=...)"
            raise ValueError(f"{path}: {key} {str(entry)[:100]} is not supported; known are {', '.join(known)}{hint}")
        return known[name]

    return named


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
        super().__init__(unet, scheduler)
        self.scheduler = DDIMScheduler.from_config(scheduler.config)

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
