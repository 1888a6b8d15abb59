"""Configuration capture: what a constructor was given, read-only in memory and as JSON on disk."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch

logger = logging.getLogger(__name__)
DIFFUSERS_VERSION = "0.30.0"
"""The version written into saved files, for Diffusers to read."""


class FrozenConfig(dict[str, Any]):
    """A read-only dictionary whose items are attributes too: `config["eta"]` and `config.eta`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this configuration has no {name!r}; it has {', '.join(self)}") from None

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a configuration is read-only: build a new object with `from_config(config, key=value)`")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse  # type: ignore[assignment]
    __ior__ = pop = popitem = clear = update = setdefault = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return FrozenConfig, (dict(self),)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, np.ndarray | torch.Tensor | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates `__init__` so that its arguments, defaults included, become `self.config`."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            allowed = ", ".join(list(signature.parameters)[1:])
            raise TypeError(f"{type(self).__name__}: {error}; it takes {allowed}") from None
        given = set(bound.arguments)
        bound.apply_defaults()
        values = {key: value for key, value in bound.arguments.items() if key != "self"}
        init(self, *args, **kwargs)
        self.register_to_config(**values, _use_default_values=sorted(set(values) - given))

    return wrapped


class ConfigMixin:
    """Gives a class `config`, `from_config`, `save_config` and `load_config` in Diffusers' format."""

    config_name: ClassVar[str] = "config.json"
    sibling_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of related classes that are carried along in silence."""
    _internal_config: FrozenConfig

    def register_to_config(self, **values: Any) -> None:
        """Adds `values` to the configuration (used while constructing; the result is read-only)."""
        previous = dict(getattr(self, "_internal_config", {}))
        object.__setattr__(self, "_internal_config", FrozenConfig(previous | values))

    @property
    def config(self) -> FrozenConfig:
        """The constructor's arguments, read-only."""
        return self._internal_config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """An instance from another object's `config` or a loaded JSON dictionary.

        Keys left at their default in the source take this class's default; keys this class does not know are kept
        in `config`, so that a round trip through another class loses nothing.

        Args:
            config: a dictionary.
            return_unused_kwargs: also return the dictionary of keys that were not used.
            kwargs: values that override `config`.

        Raises:
            TypeError: `config` is not a dictionary.
        """
        if not isinstance(config, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_config takes a dictionary, got {type(config).__name__}; "
                "for a folder or a hub id use from_pretrained"
            )
        left_at_default = set(config.get("_use_default_values", ()))
        accepted = set(inspect.signature(cls.__init__).parameters) - {"self"}
        given = {k: v for k, v in config.items() if not k.startswith("_") and k not in left_at_default}
        used = {k: v for k, v in {**given, **kwargs}.items() if k in accepted}
        extra = {k: v for k, v in given.items() if k not in accepted}
        unused = {**extra, **{k: v for k, v in kwargs.items() if k not in accepted}}
        surprising = sorted(set(unused) - cls.sibling_keys)
        if surprising and not return_unused_kwargs:
            logger.warning("%s does not use these configuration keys: %s", cls.__name__, ", ".join(surprising))
        instance = cls(**used)
        instance.register_to_config(**extra)
        return (instance, unused) if return_unused_kwargs else instance

    def to_json(self) -> str:
        """The configuration as it is written to disk."""
        values = {key: _plain(value) for key, value in self.config.items() if not key.startswith("_")}
        head = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION}
        return json.dumps({**head, **values}, indent=2, sort_keys=True) + "\n"

    def to_json_string(self) -> str:
        """`to_json` under Diffusers' name."""
        return self.to_json()

    def save_config(self, save_directory: str | Path) -> None:
        """Writes `config_name` into the folder, which is made if missing."""
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: save_config needs a folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.config_name).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read_config(cls, path: Path) -> dict[str, Any]:
        """The dictionary in a configuration file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a JSON object, or the configuration of a class this one cannot stand for.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} has no {path.name}: is it a folder saved by save_pretrained?")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path} holds a JSON {type(config).__name__}, expected an object")
        return config
