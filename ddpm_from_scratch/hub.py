"""Folders and the hub: finding files, reading weights safely, saving and loading models in Diffusers' format."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ddpm_from_scratch.config import ConfigMixin, new_folder, read_json, staged, write_file
from ddpm_from_scratch.publish import PushMixin, hub_errors, is_passing

WEIGHTS = "diffusion_pytorch_model"
MAX_PARAMETERS = 100_000_000_000
MAX_SHARD = "10GB"
HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHIPPED = Path(__file__).parent / "assets" / "models"
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
Wanted = Sequence[str] | Callable[[Collection[str]], Sequence[str]]


# ---------------------------------------------------------------- finding files


def shipped_models() -> list[str]:
    """Names of the trained models that come with the package."""
    return sorted(folder.name for folder in SHIPPED.glob("*") if folder.is_dir())


def shipped_model(name: str) -> Path:
    """The folder of a model that comes with the package.

    Raises:
        FileNotFoundError: no model of that name.
    """
    if name not in shipped_models():
        names = ", ".join(shipped_models()) or "none"
        raise FileNotFoundError(f"no folder {name} here, and no shipped model of that name; shipped are: {names}")
    return SHIPPED / name


def resolve(
    name_or_path: str | Path, wanted: Wanted, subfolder: str | None = None, revision: str | None = None, **options: Any
) -> Path:
    """The local folder of a model: `name_or_path` itself, a shipped model, or files fetched from the hub.

    Args:
        name_or_path: an existing folder, the name of a shipped model, or "owner/name" on the hub.
        wanted: the files to fetch, named inside `subfolder`; or a function that picks them from those there.
        subfolder: folder inside the model.
        revision: branch, tag or commit on the hub.
        options: `token`, `cache_dir`, `local_files_only`, `force_download`, as in huggingface_hub; others are refused
            by name.

    Raises:
        TypeError: an option that is not supported.
        FileNotFoundError: no such folder, repository, revision or file.
        ConnectionError: the hub could not be reached, and the model was not fetched before.
        PermissionError: the hub wants a token, or another one.
        ValueError: a subfolder that leaves the model's folder.
    """
    if others := sorted(set(options) - {*HUB_OPTIONS}):
        raise TypeError(f"loading has no {', '.join(others)}; hub options are {', '.join(HUB_OPTIONS)}")
    inside = Path(subfolder or ".")
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"subfolder {subfolder!r} leaves the model's folder")
    path = Path(name_or_path).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+", str(name_or_path)):
        path = shipped_model(str(name_or_path))
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file: give the folder that holds it")
    if not path.is_dir():
        if not HUB_ID.fullmatch(str(name_or_path)):
            raise FileNotFoundError(f"no folder {name_or_path} here, and it is not a hub id of the form owner/name")
        try:
            path = _fetch(str(name_or_path), wanted, inside, revision, options)
        except (OSError, ValueError) as error:
            raise type(error)(f"no folder {name_or_path} here, and {error}") from None
    if not (path / inside).is_dir():
        raise FileNotFoundError(f"{path} has no folder {inside}: it has {_listing(path)}")
    return path / inside


def _listing(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:20]) or "nothing"


def _fetch(repo: str, wanted: Wanted, inside: Path, revision: str | None, options: dict[str, Any]) -> Path:
    """The folder in the hub's cache that holds the wanted files, downloaded where they are not there yet."""
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    with hub_errors(repo, revision):
        try:
            if options.get("local_files_only"):
                raise ConnectionError("local_files_only=True")
            hub = HfApi(token=options.get("token"))
            found = hub.model_info(repo, revision=revision, timeout=10)  # asks once, without retries
            there = [sibling.rfilename for sibling in found.siblings or ()]
        except Exception as error:
            needed = inside / (wanted(()) if callable(wanted) else wanted)[0]
            cache = Path(options.get("cache_dir") or constants.HF_HUB_CACHE).expanduser()
            found_before = try_to_load_from_cache(repo, needed.as_posix(), cache, revision)
            if is_passing(error) and isinstance(found_before, str):
                return Path(found_before).parents[len(needed.parts) - 1]
            raise
        prefix = "" if inside == Path(".") else f"{inside.as_posix()}/"
        names = [name.removeprefix(prefix) for name in there if name.startswith(prefix)]
        asked = wanted(names) if callable(wanted) else wanted
        files = [prefix + name for name in asked if name in names]
        if not files:
            listing = ", ".join(there[:20]) or "nothing"
            raise FileNotFoundError(f"{repo} on the hub has no {prefix}{asked[0]}: it has {listing}")
        return Path(snapshot_download(repo, allow_patterns=files, revision=revision, **options))


# ---------------------------------------------------------------- reading weights


def _tag(variant: str | None) -> str:
    """The part of a file's name that tells the variant."""
    if variant and not re.fullmatch(r"\w[\w-]*", variant):
        raise ValueError(f"variant must be a plain word such as 'fp16', got {variant!r}")
    return f".{variant}" if variant else ""


def pick_weights(names: Collection[str], variant: str | None = None, use_safetensors: bool | None = None) -> list[str]:
    """Those of `names` that hold a model's weights: safetensors before `.bin`.

    An index and its shards come before a single file, as in Diffusers, but not an index whose shards are gone.
    """
    tag = _tag(variant)
    for kind in {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}[use_safetensors]:
        single, index = f"{WEIGHTS}{tag}.{kind}", f"{WEIGHTS}.{kind}.index{tag}.json"
        patterns = (f"{WEIGHTS}{tag}-*.{kind}", f"{WEIGHTS}-*{tag}.{kind}")
        shards = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if index in names and (shards or single not in names):
            return [index, *shards]
        if single in names:
            return [single]
    return []


class MissingWeightsError(FileNotFoundError, ValueError):
    """No weights of the kind asked for: Diffusers' models raise an OSError then, its pipelines a ValueError."""


def weight_files(folder: Path, variant: str | None = None, use_safetensors: bool | None = None) -> list[Path]:
    """The files that hold a model's weights.

    Raises:
        FileNotFoundError: none there, or a shard missing.
        ValueError: an index that is not valid or names a file outside the folder.
    """
    picked = pick_weights([entry.name for entry in folder.iterdir() if entry.is_file()], variant, use_safetensors)
    if not picked:
        tag, kind = _tag(variant), "safetensors" if use_safetensors else "bin"
        asked = f"You are trying to load the model files of the `variant={variant}`: " if variant else ""
        raise MissingWeightsError(
            f"{asked}Error no file named {WEIGHTS}{tag}.{kind} found in directory {folder}"
            f"{'' if use_safetensors is not None else ', nor one with .safetensors'}: it has {_listing(folder)}"
        )
    return _shards(folder / picked[0]) if picked[0].endswith(".json") else [folder / picked[0]]


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is not a valid index of weights: it has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".."):
            raise ValueError(f"{index} names a file outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent} lacks the shard {name} that {index.name} names")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Names of today and shapes of the tensors in safetensors `files`, from their headers alone.

    Raises:
        ValueError: a damaged file, such as one whose header and size do not agree, or a tensor that is there twice.
    """
    from safetensors import SafetensorError, safe_open

    def shapes(file: Path) -> dict[str, tuple[int, ...]]:
        try:
            with safe_open(file, framework="pt") as opened:
                return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            # in the hub's cache the link's target must go, or it would be linked again
            again = f"delete {file.resolve()}, then fetch or save it again"
            raise ValueError(f"{file} is not a valid safetensors file ({error}): {again}") from None

    return _gather(files, shapes)


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of `files` by their names of today. Pickles are read by torch's weights-only loader: nothing runs.

    Raises:
        ValueError: a damaged file, a pickle that holds more than tensors, no dictionary of tensors, or one twice.
    """
    from safetensors.torch import load_file

    return _gather(files, lambda file: load_file(file) if file.suffix == ".safetensors" else _read_pickle(file))


def _gather(files: list[Path], read: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """What `read` finds in all the files, by the names of today."""
    found: dict[str, Any] = {}
    for file in files:
        for key, value in read(file).items():
            if modern_name(key) in found:
                raise ValueError(f"{file} holds {key} though it was there before: which of the two counts?")
            found[modern_name(key)] = value
    return found


def _read_pickle(file: Path) -> Mapping[str, Tensor]:
    try:
        if zipfile.is_zipfile(file) and any(entry.compress_type for entry in zipfile.ZipFile(file).infolist()):
            raise ValueError("it is compressed, which torch.save never does")
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {found[1]}" if found else "it holds more than tensors"
        raise ValueError(f"{file} was refused: {what}, which could run code on loading") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} is damaged and cannot be read ({reason})") from None
    if isinstance(state, Mapping) and set(state) == {"state_dict"}:
        state = state["state_dict"]
    pairs = state.items() if isinstance(state, Mapping) else [("", None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        raise ValueError(f"{file} does not hold a dictionary of tensors")
    return state


def modern_name(key: str) -> str:
    """A parameter's name today, for the attention layers of 2022 checkpoints (`query` → `to_q`, ...)."""
    parts = key.split(".")
    if "attentions" in parts and len(parts) >= 2 and parts[-2] in LEGACY_ATTENTION:
        parts[-2] = LEGACY_ATTENTION[parts[-2]]
    return ".".join(parts)


def check_shapes(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Compares the tensors of a file with those of a model.

    Raises:
        ValueError: one missing, one too many, or one of another shape.
    """
    for kind, names in (("lacks", set(expected) - set(given)), ("has unexpected", set(given) - set(expected))):
        if names:
            some = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{source} {kind} {some}: its config.json and its weights do not belong together")
    for name, shape in expected.items():
        if given[name] != shape:
            raise ValueError(
                f"{source}: {name} has shape {given[name]}, but config.json makes it {shape} (shape mismatch)"
            )


# ---------------------------------------------------------------- models


class HubMixin(ConfigMixin):
    """A configuration that lies in a folder or on the hub."""

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> dict[str, Any]:
        """The dictionary in the configuration's file, for `from_config`: no weights are read.

        Args:
            pretrained_model_name_or_path: as in `from_pretrained`.
            options: `subfolder`, `revision`, and the hub's, as in `UNet2DModel.from_pretrained`.

        Raises:
            FileNotFoundError, ConnectionError, PermissionError: nothing there, or not within reach.
            ValueError: not a JSON object.
        """
        return read_json(resolve(pretrained_model_name_or_path, [cls.config_name], **options) / cls.config_name)


class ModelMixin(nn.Module, HubMixin, PushMixin):
    """Saving, loading and a few facts about a network."""

    config_name: ClassVar[str] = "config.json"
    older_names: ClassVar[tuple[str, ...]] = ()
    """Names that the class had in older `config.json` files."""
    # what Diffusers' tools ask a class before they split, offload or cast it
    _no_split_modules: ClassVar[None] = None
    _keep_in_fp32_modules: ClassVar[None] = None
    _supports_group_offloading: ClassVar[bool] = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Writes `config.json` and the weights, in Diffusers' format: all of it, or after an error nothing.

        Args:
            save_directory: made if missing.
            safe_serialization: safetensors, or with False a `.bin` pickle. Files of the other kind stay, and of both
                safetensors are read.
            variant: tag in the file name, such as "fp16".
            max_shard_size: largest file, such as "5GB", by default "10GB"; larger models are split, with an index.
        """
        from huggingface_hub import split_torch_state_dict_into_shards

        folder = new_folder(save_directory)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        kind, tag = ("safetensors" if safe_serialization else "bin"), _tag(variant)
        pattern = f"{WEIGHTS}{tag}{{suffix}}.{kind}"
        split = split_torch_state_dict_into_shards(
            state, filename_pattern=pattern, max_shard_size=max_shard_size or MAX_SHARD
        )
        index_name = f"{WEIGHTS}.{kind}.index{tag}.json"
        stale = re.compile(re.escape(f"{WEIGHTS}{tag}") + rf"(-\d{{5}}-of-\d{{5}})?\.{kind}|" + re.escape(index_name))
        with staged() as write:
            for name, keys in split.filename_to_tensors.items():
                write(folder / name, weights_bytes({key: state[key] for key in keys}, safe_serialization))
            if split.is_sharded:
                index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
                write(folder / index_name, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
            write(folder / self.config_name, self.to_json().encode())
        kept = {*split.filename_to_tensors, split.is_sharded and index_name}
        for file in folder.iterdir():
            if stale.fullmatch(file.name) and file.name not in kept:
                file.unlink(missing_ok=True)

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
        low_cpu_mem_usage: bool = True,
        output_loading_info: bool = False,
        **hub_options: Any,
    ) -> Any:
        """A network from a folder or a hub id, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder with `config.json` and weights, the name of a shipped model, or
                "owner/name" on the hub.
            subfolder: folder inside it, such as "unet".
            revision: branch, tag or commit on the hub.
            dtype: type of the parameters, float32 by default whatever the file holds; `torch_dtype` is its older name.
            variant: tag in the weights' file name, such as "fp16".
            use_safetensors: True or False to insist on safetensors or `.bin`.
            low_cpu_mem_usage: taken for Diffusers' sake; the weights are never held twice.
            output_loading_info: also return Diffusers' lists of missing, unexpected and mismatched keys: all empty,
                since such files are refused.
            hub_options: `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            FileNotFoundError, ConnectionError, PermissionError: nothing there, or not within reach.
            ValueError: files that are damaged, unsafe, or do not fit the configuration.
        """
        target = dtype or torch_dtype or torch.float32
        if not isinstance(target, torch.dtype) or not target.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype such as torch.float16, got {target!r}")

        def wanted(names: Collection[str]) -> list[str]:
            return [cls.config_name, *pick_weights(names, variant, use_safetensors)]

        folder = resolve(pretrained_model_name_or_path, wanted, subfolder, revision, **hub_options)
        config_file = folder / cls.config_name
        named = read_json(config_file).get("_class_name", cls.__name__)
        if named not in [*(base.__name__ for base in cls.__mro__), *cls.older_names]:
            raise ValueError(f"{config_file} is of a {named!r}, not of a {cls.__name__}")
        files = weight_files(folder, variant, use_safetensors)
        with torch.device("meta"):
            model: Self = cls.from_config_file(config_file)
        if model.num_parameters() > MAX_PARAMETERS:
            raise ValueError(f"{config_file} asks for {model.num_parameters():.1e} parameters: refused")
        model._load(files, target)
        model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        faults: dict[str, list[str]] = {f"{kind}_keys": [] for kind in ("missing", "unexpected", "mismatched")}
        return (model.eval(), faults | {"error_msgs": []}) if output_loading_info else model.eval()

    def _load(self, files: list[Path], dtype: torch.dtype) -> None:
        """Takes the weights in `files`, whose names and shapes are compared before any memory is taken."""
        own = self.state_dict()
        expected = {key: tuple(value.shape) for key, value in own.items()}
        if files[0].suffix == ".safetensors":
            check_shapes(read_shapes(files), expected, files[0])
        state = read_weights(files)
        check_shapes({key: tuple(value.shape) for key, value in state.items()}, expected, files[0])
        for key, value in state.items():
            target = dtype if own[key].is_floating_point() else own[key].dtype
            if value.layout != torch.strided or value.is_meta or (target == dtype and not value.is_floating_point()):
                raise ValueError(f"{files[0]}: {key} is not {target}: {value.dtype} {value.layout} {value.device}")
            state[key] = value.to(target, copy=True)
        self.load_state_dict(state, assign=True)
        self.requires_grad_(True)


def weights_bytes(state: dict[str, Tensor], safe_serialization: bool = True) -> bytes:
    """The content of a file of weights: safetensors, or with False a pickle."""
    from safetensors.torch import save

    if safe_serialization:
        return save(state, metadata={"format": "pt"})
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Writes tensors to `path` as safetensors, whole or not at all."""
    write_file(path, weights_bytes(state))
