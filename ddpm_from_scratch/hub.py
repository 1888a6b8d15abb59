"""Folders and the hub: finding files, reading weights safely, saving and loading models in Diffusers' format."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ddpm_from_scratch.config import ConfigMixin

WEIGHTS = "diffusion_pytorch_model"
MAX_PARAMETERS = 100_000_000_000
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHIPPED = Path(__file__).parent / "assets" / "models"
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


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
        raise FileNotFoundError(
            f"there is no folder {name} here and no shipped model of that name; "
            f"shipped are: {', '.join(shipped_models()) or 'none'}"
        )
    return SHIPPED / name


def resolve(
    name_or_path: str | Path,
    patterns: Iterable[str],
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a model: `name_or_path` itself, a shipped model, or files fetched from the hub.

    Args:
        name_or_path: an existing folder, the name of a shipped model, or "owner/name" on the hub.
        patterns: file names (globs) that are needed, inside `subfolder`; only these are fetched.
        subfolder: folder inside the model.
        revision: branch, tag or commit on the hub.
        token, cache_dir, local_files_only: as in huggingface_hub.

    Raises:
        FileNotFoundError: no such folder, repository, revision or file; or not cached while offline.
        ConnectionError: the hub could not be reached.
    """
    inside = plain_subfolder(subfolder)
    path = Path(name_or_path).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+", str(name_or_path)):
        path = shipped_model(str(name_or_path))
    if path.is_dir():
        if not (path / inside).is_dir():
            raise FileNotFoundError(f"{path} has no folder {inside}: it has {_listing(path)}")
        return path / inside
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file: give the folder that holds it")
    if not HUB_ID.fullmatch(str(name_or_path)):
        raise FileNotFoundError(f"no folder {name_or_path} here, and it is not a hub id of the form owner/name")
    wanted = [(inside / pattern).as_posix() for pattern in patterns]
    folder = _download(str(name_or_path), wanted, revision, token, cache_dir, local_files_only)
    if not (folder / inside).is_dir():
        raise FileNotFoundError(f"{name_or_path} on the hub has no folder {inside}")
    return folder / inside


def plain_subfolder(subfolder: str | None) -> Path:
    """`subfolder` as a relative path that stays inside.

    Raises:
        ValueError: an absolute path, or one that climbs out.
    """
    inside = Path(subfolder or ".")
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"subfolder {subfolder!r} leaves the model's folder")
    return inside


def _listing(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"


def _download(
    repo: str,
    wanted: list[str],
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=wanted,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )
    except errors.GatedRepoError:
        raise PermissionError(f"{repo} is gated: accept its terms on the hub and pass token=...") from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} on the hub has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"the hub has no repository {repo} (and there is no such folder here); a private one needs token=..."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ConnectionError(
            f"{repo} is not in the local cache and the hub could not be reached: connect once to fetch it, "
            "or give a local folder"
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is not a valid hub id: {error}") from None
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConnectionError(f"fetching {repo} from the hub failed ({reason[0]}): try again") from None


# ---------------------------------------------------------------- reading weights


def weight_files(folder: Path, variant: str | None = None, use_safetensors: bool | None = None) -> list[Path]:
    """The files that hold a model's weights: safetensors before `.bin`, one file or the shards of an index.

    Raises:
        FileNotFoundError: none there, or a shard missing.
        ValueError: an index that is not valid or names a file outside the folder.
    """
    kinds = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}[use_safetensors]
    tag = f".{variant}" if variant else ""
    for kind in kinds:
        single = folder / f"{WEIGHTS}{tag}.{kind}"
        if single.is_file():
            return [single]
        index = folder / f"{WEIGHTS}.{kind}.index{tag}.json"
        if index.is_file():
            return _shards(index)
    wanted = " or ".join(f"{WEIGHTS}{tag}.{kind}" for kind in kinds)
    raise FileNotFoundError(f"{folder} has no weights ({wanted}): it has {_listing(folder)}")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{index} is not a valid index of weights") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise ValueError(f"{index} names a file outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent} lacks the shard {name} that {index.name} names")
    return [index.parent / name for name in sorted(names)]


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in safetensors `files`, from their headers alone."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a valid safetensors file ({error}): fetch or save it again") from None
    return shapes


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of `files`. Pickles are read by torch's weights-only loader: nothing in them runs.

    Raises:
        ValueError: a damaged file, a pickle that holds more than tensors, or no dictionary of tensors.
    """
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            read_shapes([file])
            state |= load_file(file)
        else:
            state |= _read_pickle(file)
    return state


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {found[1]}" if found else "it holds more than tensors"
        raise ValueError(f"{file} was refused: {what}, which could run code on loading") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{file} is damaged and cannot be read ({reason[0]})") from None
    if isinstance(state, Mapping) and set(state) == {"state_dict"}:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} does not hold a dictionary of tensors")
    return dict(state)


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


class ModelMixin(nn.Module, ConfigMixin):
    """Saving, loading and a few facts about a network."""

    config_name: ClassVar[str] = "config.json"

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
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Writes `config.json` and the weights, in Diffusers' format; files appear whole or not at all.

        Args:
            save_directory: made if missing.
            safe_serialization: safetensors, or with False a `.bin` pickle.
            variant: tag in the file name, such as "fp16".
            max_shard_size: largest file, such as "5GB"; larger models are split, with an index.
        """
        from huggingface_hub import split_torch_state_dict_into_shards

        folder = Path(save_directory)
        self.save_config(folder)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        kind, tag = ("safetensors" if safe_serialization else "bin"), (f".{variant}" if variant else "")
        pattern = f"{WEIGHTS}{tag}{{suffix}}.{kind}"
        split = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=max_shard_size)
        index_name = f"{WEIGHTS}.{kind}.index{tag}.json"
        stale = re.compile(re.escape(f"{WEIGHTS}{tag}") + rf"(-\d{{5}}-of-\d{{5}})?\.{kind}|" + re.escape(index_name))
        for name, keys in split.filename_to_tensors.items():
            write_weights(folder / name, {key: state[key] for key in keys}, safe_serialization)
        for file in folder.iterdir():
            if stale.fullmatch(file.name) and file.name not in split.filename_to_tensors:
                file.unlink()
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / index_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

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
        **hub_options: Any,
    ) -> Self:
        """A network from a folder or a hub id, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder with `config.json` and weights, or "owner/name" on the hub.
            subfolder: folder inside it, such as "unet".
            revision: branch, tag or commit on the hub.
            dtype: type of the parameters, float32 by default whatever the file holds; `torch_dtype` is its older name.
            variant: tag in the weights' file name, such as "fp16".
            use_safetensors: True or False to insist on safetensors or `.bin`.
            hub_options: `token`, `cache_dir`, `local_files_only`.

        Raises:
            FileNotFoundError, ConnectionError: nothing there.
            ValueError: files that are damaged, unsafe, or do not fit the configuration.
        """
        tag = f".{variant}" if variant else ""
        patterns = [cls.config_name, *(f"{WEIGHTS}{p}" for p in (f"{tag}.*", f"{tag}-*", f".*.index{tag}.json"))]
        folder = resolve(pretrained_model_name_or_path, patterns, subfolder, revision, **hub_options)
        config = cls.read_config(folder / cls.config_name)
        named = config.get("_class_name", cls.__name__)
        if named not in (cls.__name__, "UNetUnconditionalModel", "UNetModel"):
            raise ValueError(f"{folder} holds a {named}, not a {cls.__name__}")
        files = weight_files(folder, variant, use_safetensors)
        with torch.device("meta"):
            model: Self = cls.from_config(config)
        expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        if model.num_parameters() > MAX_PARAMETERS:
            raise ValueError(f"{folder / cls.config_name} asks for {model.num_parameters():.1e} parameters: refused")
        if files[0].suffix == ".safetensors":
            check_shapes({modern_name(k): shape for k, shape in read_shapes(files).items()}, expected, files[0])
        state = {modern_name(key): value for key, value in read_weights(files).items()}
        check_shapes({key: tuple(value.shape) for key, value in state.items()}, expected, files[0])
        target = dtype or torch_dtype or torch.float32
        model.load_state_dict({key: value.to(target).clone() for key, value in state.items()}, assign=True)
        model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return model.requires_grad_(True).eval()


def write_weights(path: Path, state: dict[str, Tensor], safe_serialization: bool = True) -> None:
    """Writes tensors to `path`, whole or not at all."""
    from safetensors.torch import save

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if safe_serialization:
                file.write(save(state, metadata={"format": "pt"}))
            else:
                torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, temporary) if path.exists() else os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
