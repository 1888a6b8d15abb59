"""One call of an answer, fenced in: limited time, global states put back, its exceptions caught and told."""

from __future__ import annotations

import io
import os
import random
import signal
import site
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .exercise import Answer, Case, Exercise


@dataclass(frozen=True)
class Outcome:
    """What a call gave: its output or its exception's name, the arguments as the call left them, what it printed."""

    value: Any
    error: BaseException | None
    left: Case
    printed: str


class OutOfTime(BaseException):
    """A call went over its time limit. Not an `Exception`: an answer's `except Exception` must not catch it."""


def attempt(exercise: Exercise, answer: Answer, case: Case, global_seed: int = 0) -> Outcome:
    """Calls `answer` on `case`, which it may change, with the global random states at `global_seed` meanwhile."""
    printed = io.StringIO()
    try:
        with fence(exercise.seconds, global_seed), redirect_stdout(printed):
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
def fence(seconds: float, seed: int = 0) -> Iterator[None]:
    """The global random states at `seed`; afterwards they and PyTorch's settings are as they were before.

    Raises `OutOfTime` after `seconds` where the system has timers and this is the main thread: again and again, and at
    the end, since a bare `except` swallows it.
    """
    late = threading.Event()

    def stop(*_: Any) -> None:
        late.set()
        raise OutOfTime

    with ExitStack() as afterwards:
        afterwards.callback(torch.set_rng_state, torch.get_rng_state())
        afterwards.callback(np.random.set_state, np.random.get_state())
        afterwards.callback(random.setstate, random.getstate())
        afterwards.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        afterwards.callback(torch.set_default_dtype, torch.get_default_dtype())
        for reseed in (torch.default_generator.manual_seed, np.random.seed, random.seed):
            reseed(seed)
        if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
            afterwards.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, stop))
            afterwards.callback(signal.setitimer, signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        yield
        if late.is_set():
            raise OutOfTime
