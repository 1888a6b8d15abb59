"""The result objects of models, schedulers and pipelines."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields
from typing import Any, NoReturn

from torch.utils._pytree import register_pytree_node


class Output(OrderedDict[str, Any]):
    """A dataclass that is also a dictionary and can be indexed like a tuple, as in Diffusers.

    `out.sample`, `out["sample"]`, `out[0]` and `out.to_tuple()[0]` are the same object. Fields that are None are left
    out of the dictionary and the tuple. Subclasses are declared with `@dataclass`. Given a dictionary alone, it takes
    its fields from there: Accelerate rebuilds what a network returns that way when it casts or moves it.
    """

    def __init_subclass__(cls) -> None:
        """Lets torch find the tensors inside, to transform or to synchronise them."""
        register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        first = next(iter(values.values()))
        for name, value in (first if isinstance(first, dict) else values).items():
            if value is not None:
                self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.keys() and value is not None:
            super().__setitem__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"the fields of a {type(self).__name__} are fixed: take what you need with to_tuple()")

    __delitem__ = pop = popitem = clear = update = setdefault = _refuse

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(self.values())
