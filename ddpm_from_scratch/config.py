"""Configuration capture: what a constructor was given, read-only in memory and as JSON on disk."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import secrets
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch

logger = logging.getLogger(__name__)
DIFFUSERS_VERSION = "0.30.0"
"""The version written into saved files, for Diffusers to read."""
MAX_JSON_BYTES = 64 * 2**20
MAX_INTEGER = 2**48


class FrozenConfig(dict[str, Any]):
    """A read-only dictionary whose items are attributes too: `config["eta"]` and `config.eta`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this configuration has no {name!r}; it has {', '.join(self)}") from None

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a configuration is read-only: build a new object with `from_config(config, key=value)`")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse
    __ior__ = pop = popitem = clear = update = setdefault = _refuse

    def __reduce__(self) -> Any:
        return FrozenConfig, (dict(self),)


class FrozenList(list[Any]):
    """A read-only list."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = FrozenConfig._refuse
    append = extend = insert = pop = remove = clear = sort = reverse = FrozenConfig._refuse

    def __reduce__(self) -> Any:
        return FrozenList, (list(self),)


def _plain(value: Any) -> Any:
    """`value` in Python's own types, as JSON can hold it; lists are copies."""
    if isinstance(value, np.ndarray | torch.Tensor | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return (FrozenList if isinstance(value, list) else tuple)(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value` is what an annotation asks for; numbers must be finite, and a bool is no number."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if kind in (int, float):
        is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= MAX_INTEGER
    return isinstance(value, kind) if kind in (bool, str, NoneType, np.ndarray, torch.Tensor) else True


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates `__init__` so that its arguments, defaults included, become `self.config`.

    Numbers and arrays of numpy and torch become Python's own; then all are checked against their annotations.
    """
    signature = inspect.signature(init)
    hints = functools.cache(lambda: typing.get_type_hints(init))

    @functools.wraps(init)
    def wrapped(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{owner}: {error}; it takes {', '.join(list(signature.parameters)[1:])}") from None
        given = set(bound.arguments)
        bound.apply_defaults()
        values = {key: _plain(value) for key, value in bound.arguments.items() if key != "self"}
        for key, value in values.items():
            if not _fits(value, hints().get(key)):
                expected = signature.parameters[key].annotation
                shown = repr(value)[:60]
                raise ValueError(f"{owner}: {key}={shown} is not supported: it must be {expected}, numbers finite")
        left = sorted(set(values) - given)
        self.register_to_config(**values, **({"_use_default_values": left} if left else {}))
        bound.arguments.update(values)
        init(*bound.args, **bound.kwargs)

    return wrapped


class ConfigMixin:
    """Gives a class `config`, `from_config` and `save_config` in Diffusers' format."""

    config_name: ClassVar[str] = "config.json"
    sibling_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of related classes that are carried along in silence."""
    older_keys: ClassVar[Mapping[str, Callable[[Any], tuple[str, Any]]]] = {}
    """Keys of 2022 and what they are today: older value → (name, value)."""
    _deprecated_kwargs: ClassVar[tuple[str, ...]] = ()  # what Diffusers' tools ask a class: there are none
    _internal_config: FrozenConfig

    def register_to_config(self, /, **values: Any) -> None:
        """Adds `values` to the configuration (used while constructing; the result is read-only)."""
        previous = dict(getattr(self, "_internal_config", {}))
        object.__setattr__(self, "_internal_config", FrozenConfig(previous | values))

    @property
    def config(self) -> FrozenConfig:
        """The constructor's arguments, read-only."""
        return self._internal_config

    @classmethod
    def from_config(cls, config: dict[str, Any] | str | Path, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """An instance from another object's `config` or a loaded JSON dictionary.

        Keys left at their default in the source take this class's default; keys this class does not know are kept
        in `config`, so that a round trip through another class loses nothing.

        Args:
            config: a dictionary, or the folder that holds it as `config_name`.
            return_unused_kwargs: also return the dictionary of keys that were not used.
            kwargs: values that override `config`.

        Raises:
            TypeError: `config` is neither, or an override has a name that this class does not know.
            ValueError: a value of the wrong type or out of range.
            FileNotFoundError: no such file.
        """
        config = config if isinstance(config, Mapping) else read_json(Path(config) / cls.config_name)
        left_at_default = set(config.get("_use_default_values", ()))
        accepted = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        given = {k: v for k, v in config.items() if not k.startswith("_") and k not in left_at_default}
        for key in set(given) & set(cls.older_keys):
            name, value = cls.older_keys[key](given.pop(key))
            given.setdefault(name, value)
        used = {**given, **kwargs}
        unused = {key: used.pop(key) for key in list(used) if key not in accepted}
        surprising = sorted(set(unused) - cls.sibling_keys)
        if surprising and not return_unused_kwargs:
            logger.warning("%s does not use these configuration keys: %s", cls.__name__, ", ".join(surprising)[:200])
        if (misspelt := set(kwargs) - set(accepted) - cls.sibling_keys) and not return_unused_kwargs:
            raise TypeError(f"{cls.__name__} has no {', '.join(sorted(misspelt))}; it takes {', '.join(accepted)}")
        instance = cls(**used)
        instance.register_to_config(**{key: value for key, value in unused.items() if key in given})
        return (instance, unused) if return_unused_kwargs else instance

    @classmethod
    def from_config_file(cls, path: Path, **kwargs: Any) -> Any:
        """`from_config` on a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a JSON object, or values that this class does not take; the message names the file.
        """
        config = read_json(path)
        try:
            return cls.from_config(config, **kwargs)
        except (TypeError, ValueError, RuntimeError, OverflowError, ArithmeticError, MemoryError) as error:
            raise ValueError(f"{path}: {error or type(error).__name__}") from None

    def to_json(self) -> str:
        """The configuration as it is written to disk."""
        values = {key: _plain(value) for key, value in self.config.items() if not key.startswith("_")}
        head = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION}
        return json.dumps({**head, **values}, indent=2, sort_keys=True) + "\n"

    to_json_string = to_json  # Diffusers' name

    def save_config(self, save_directory: str | Path) -> None:
        """Writes `config_name` into the folder, which is made if missing."""
        write_file(new_folder(save_directory) / self.config_name, self.to_json().encode())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object, one with a key twice, or larger than any configuration.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: is it a folder saved by save_pretrained?")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: no configuration is that large")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def new_folder(path: str | Path) -> Path:
    """The folder at `path`, made if missing.

    Raises:
        ValueError: a file is in the way.
    """
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to save into")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def staged() -> Iterator[Callable[[Path, bytes], None]]:
    """Gives a function that writes files; they appear whole, all at the end, and none where anything fails before.

    Each has the permissions that a new file has here.

    Raises:
        OSError: a file could not be written; the message names it.
    """
    written: dict[Path, Path] = {}

    def write(path: Path, content: bytes) -> None:
        written[path] = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with open(written[path], "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise type(error)(f"{path} could not be written ({error.strerror or error})") from None

    try:
        yield write
        for path, temporary in written.items():
            os.replace(temporary, path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with staged() as write:
        write(path, content)
