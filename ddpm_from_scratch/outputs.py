"""The result objects of models, schedulers and pipelines."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields
from typing import Any


class Output(OrderedDict[str, Any]):
    """A dataclass that is also a dictionary and can be indexed like a tuple, as in Diffusers.

    `out.sample`, `out["sample"]`, `out[0]` and `out.to_tuple()[0]` are the same object. Fields that are None are left
    out of the dictionary and the tuple. Subclasses are declared with `@dataclass`.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.keys() and value is not None:
            super().__setitem__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(self.values())
