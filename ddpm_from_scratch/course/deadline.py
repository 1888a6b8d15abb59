"""A time limit for code that may never end and may swallow what would stop it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class OutOfTime(BaseException):
    """Code went over its time limit. Not an `Exception`: its own `except Exception` must not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the code inside after `seconds`, where the system has timers and this is the main thread.

    A bare `except` swallows it. So it is raised every 0.1 seconds, and once more at the end. From the second time on
    the next line that the code comes to raises it as well: after an `except` that swallowed it, outside of its `try`.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    overdue = OutOfTime(f"stopped after {seconds:g} seconds")
    late, below, tracing = threading.Event(), sys._getframe(2), sys.gettrace()  # 2: over contextlib's own frame

    def stop(_: int, frame: FrameType | None) -> None:
        if late.is_set():
            sys.settrace(lambda *_: None)
            while frame and frame is not below:
                frame.f_trace, frame = stop_at_line, frame.f_back
        late.set()
        raise overdue

    def stop_at_line(_frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "line":
            raise overdue
        return stop_at_line

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.settrace(tracing)
    if late.is_set():
        raise overdue
