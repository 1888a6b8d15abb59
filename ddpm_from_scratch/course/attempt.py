"""One call of an answer, fenced in: limited time, global states put back, its exceptions caught and told."""

from __future__ import annotations

import os
import random
import signal
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .exercise import Answer, Case, Exercise


@dataclass(frozen=True)
class Outcome:
    """What a call gave: its output or its exception, and the arguments as the call left them."""

    value: Any
    error: BaseException | None
    left: Case

    @property
    def seen(self) -> Any:
        """The output, or the name of the exception."""
        return type(self.error).__name__ if self.error else self.value


class OutOfTime(BaseException):
    """A call went over its time limit. Not an `Exception`: an answer's `except Exception` must not catch it."""


def attempt(exercise: Exercise, answer: Answer, case: Case, global_seed: int = 0) -> Outcome:
    """Calls `answer` on `case`, which it may change, with the global random states at `global_seed` meanwhile."""
    try:
        with _global_states(global_seed), _time_limit(exercise.seconds):
            return Outcome(exercise.output(answer, case), None, case)
    except (Exception, SystemExit, OutOfTime) as error:
        return Outcome(None, error, case)


def in_words(error: BaseException) -> str:
    """One line for an exception in an answer: the learner's own line, the type and the message."""
    paths = sysconfig.get_paths() | {"stdlib": os.path.dirname(os.__file__)}
    foreign = (f"{Path(__file__).parents[1]}{os.sep}", paths["purelib"], paths["platlib"], paths["stdlib"], "<frozen")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)]
    place = f" at line {own[-1].lineno}" + f", `{own[-1].line}`" * bool(own[-1].line) if own else ""
    message = str(traceback.TracebackException.from_exception(error)).strip().split("\n")[0]  # str(error) may raise
    return f"your code stopped{place}: {type(error).__name__}" + f": {message}" * bool(message)


@contextmanager
def _global_states(seed: int) -> Iterator[None]:
    """The random states at `seed`; afterwards they and PyTorch's settings are as they were before."""
    with ExitStack() as afterwards:
        afterwards.callback(torch.set_rng_state, torch.get_rng_state())
        afterwards.callback(np.random.set_state, np.random.get_state())
        afterwards.callback(random.setstate, random.getstate())
        afterwards.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        afterwards.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` after `seconds` where the system has timers and this is the main thread; else does nothing."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
