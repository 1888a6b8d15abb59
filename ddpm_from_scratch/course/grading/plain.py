"""Messages of plain data: numbers, text, tensors, and lists, tuples and dicts of them; nothing that could run.

A message is four bytes that say how long its JSON is, the JSON, and the tensors in the safetensors format. What has no
such form is sent as the name of its type.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

MAX_LEAVES = 10_000
MAX_TEXT = 2_000
HEAD = 4
FRAME = 8
"""Bytes in front of a message in a pipe, which hold its length."""


def pack(value: Any, longest: int | None = MAX_TEXT) -> bytes:
    """The message for `value`, text in it cut to `longest` characters if that is a number.

    Raises:
        ValueError: more than `MAX_LEAVES` parts, or parts inside each other without end.
    """
    tensors: dict[str, Tensor] = {}
    count = 0

    def node(item: Any, depth: int) -> list[Any]:
        nonlocal count
        count += 1
        if count > MAX_LEAVES or depth > 20:
            raise ValueError("too many parts, or parts too deep inside each other")
        if item is None or type(item) is bool:
            return ["it", item]
        if isinstance(item, int | np.integer) and abs(int(item)) < 2**63:
            return ["it", int(item)]
        if isinstance(item, float | np.floating):
            return ["it", float(item)]
        if isinstance(item, str):
            return ["it", str(item)[:longest]]
        if isinstance(item, list | tuple):
            return ["tuple" if isinstance(item, tuple) else "list", [node(part, depth + 1) for part in item]]
        if isinstance(item, dict) and all(type(key) in (str, int) for key in item):
            return ["dict", [[key, node(part, depth + 1)] for key, part in item.items()]]
        if isinstance(item, Tensor) and item.layout == torch.strided and item.device.type == "cpu":
            name = str(len(tensors))
            plain = item.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
            tensors[name] = torch.view_as_real(plain) if plain.is_complex() else plain
            return ["complex" if plain.is_complex() else "tensor", name]
        return ["other", type(item).__name__[:100]]

    text = json.dumps(node(value, 0)).encode()
    return len(text).to_bytes(HEAD, "big") + text + safetensors.torch.save(tensors)


def unpack(message: bytes) -> Any:
    """The value of a message, which may come from anyone.

    Raises:
        ValueError: it is no such message.
    """
    length = int.from_bytes(message[:HEAD], "big")
    try:
        tree = json.loads(message[HEAD : HEAD + length])
        return _value(tree, safetensors.torch.load(bytes(message[HEAD + length :])))
    except ValueError:
        raise
    except Exception as error:  # whatever a forged message breaks in the parsers
        raise ValueError(f"not a message: {type(error).__name__}") from None


def _value(tree: Any, tensors: dict[str, Tensor]) -> Any:
    kind, content = tree
    if kind == "it" and (content is None or isinstance(content, bool | int | float | str)):
        return content
    if kind in ("list", "tuple"):
        parts = [_value(part, tensors) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {_key(key): _value(part, tensors) for key, part in content}
    if kind == "tensor":
        return tensors[content]
    if kind == "complex":
        return torch.view_as_complex(tensors[content])
    if kind == "other":
        return stand_in(content)()
    raise ValueError(f"not a message: {kind!s:.20}")


def _key(key: Any) -> str | int:
    if type(key) not in (str, int):
        raise ValueError("not a message: a key that is neither text nor a number")
    return key


def stand_in(name: str, base: type = object) -> type:
    """An empty type of that name, in the place of one that was not let out."""
    return type(re.sub(r"\W", "_", str(name))[:100] or "object", (base,), {})
