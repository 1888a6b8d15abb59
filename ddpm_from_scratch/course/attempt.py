"""One call of an answer, fenced in: limited time, global states put back, its exceptions caught and told."""

from __future__ import annotations

import io
import os
import random
import site
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .deadline import OutOfTime, time_limit
from .exercise import Answer, Case, Exercise


@dataclass(frozen=True)
class Outcome:
    """What a call gave: its output or its exception's name, the arguments as the call left them, what it printed."""

    value: Any
    error: BaseException | None
    left: Case
    printed: str


def attempt(exercise: Exercise, answer: Answer, case: Case, global_seed: int = 0) -> Outcome:
    """Calls `answer` on `case`, which it may change, with the global random states at `global_seed` meanwhile."""
    printed = io.StringIO()
    try:
        with fence(global_seed), redirect_stdout(printed), time_limit(exercise.seconds):
            return Outcome(exercise.output(answer, case), None, case, printed.getvalue())
    except (Exception, SystemExit, OutOfTime) as error:
        return Outcome(type(error).__name__, error, case, printed.getvalue())


def in_words(error: BaseException) -> str:
    """One line for an exception in an answer: the learner's own line, the type and the message."""
    foreign = (f"{Path(__file__).parents[1]}{os.sep}", *site.getsitepackages(), os.path.dirname(os.__file__), "<frozen")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)]
    place = f" at line {own[-1].lineno}" + f", `{own[-1].line}`" * bool(own[-1].line) if own else ""
    message = str(traceback.TracebackException.from_exception(error)).strip().split("\n")[0]  # str(error) may raise
    power = "; in Python a power is **, not ^" * ("bitwise_xor" in message or " for ^:" in message)
    return f"your code stopped{place}: {type(error).__name__}" + f": {message}" * bool(message) + power


@contextmanager
def fence(seed: int = 0) -> Iterator[None]:
    """The global random states at `seed`; afterwards they and PyTorch's settings are as they were before."""
    with ExitStack() as afterwards:
        afterwards.callback(torch.set_rng_state, torch.get_rng_state())
        afterwards.callback(np.random.set_state, np.random.get_state())
        afterwards.callback(random.setstate, random.getstate())
        afterwards.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        afterwards.callback(torch.set_default_dtype, torch.get_default_dtype())
        for reseed in (torch.default_generator.manual_seed, np.random.seed, random.seed):
            reseed(seed)
        yield
