"""Results that took too long for a lesson, stored with the command that made them."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from ddpm_from_scratch.few_steps import Table
from ddpm_from_scratch.likelihood import Likelihood


def stored_table(name: str) -> Table:
    """A table of few steps that comes with the course, as `ddpm eval --table ddim` wrote it.

    Args:
        name: "fashion_few_steps", "digits_few_steps", or "digits_unclipped".

    Raises:
        FileNotFoundError: there is no result of this name; the message lists those there are.
        ValueError: the file is damaged.
    """
    return Table.from_json(_text(name))


def stored_bits(name: str) -> Likelihood:
    """Bits per dimension that come with the course, as `ddpm eval --table bits` wrote them.

    Args:
        name: "fashion_bits".

    Raises:
        FileNotFoundError: there is no result of this name; the message lists those there are.
        ValueError: the file is damaged.
    """
    return Likelihood.from_json(_text(name))


def stored_facts(name: str) -> dict[str, Any]:
    """Any other result that comes with the course, as its command wrote it.

    Args:
        name: "digits_budget", of `python -m ddpm_from_scratch.course.budget`.

    Raises:
        FileNotFoundError: there is no result of this name; the message lists those there are.
    """
    facts: dict[str, Any] = json.loads(_text(name))
    return facts


def _text(name: str) -> str:
    folder = files("ddpm_from_scratch") / "course" / "results"
    names = sorted(path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json"))
    if name not in names:
        raise FileNotFoundError(f"no stored result {name!r}: there are {', '.join(names)}")
    return (folder / f"{name}.json").read_text(encoding="utf-8")
