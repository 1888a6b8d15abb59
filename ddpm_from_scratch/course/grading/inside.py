"""What runs in the sandbox: a notebook's cells, and the student's answers on inputs made here.

It obeys requests that come through a pipe, and answers with plain data. The notebook shares this process and may spoil
all of it: nothing here decides what is right.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.text import SList
from traitlets.config import Config

from ddpm_from_scratch import course
from ddpm_from_scratch.course import display, exercises
from ddpm_from_scratch.course.attempt import Outcome, attempt
from ddpm_from_scratch.course.deadline import time_limit
from ddpm_from_scratch.course.grading import plain

NAME_OF = type.__dict__["__name__"].__get__
"""A class's own name, whatever its metaclass says."""
TELLING_SECONDS = 1.0


def told(error: BaseException) -> list[str]:
    """The kind of an error and its message, with a sentence in the place of one that cannot be had in time."""
    message = "its text cannot be shown"
    with suppress(BaseException), time_limit(TELLING_SECONDS):
        message = str.strip(str(error))[:300]
    return [NAME_OF(type(error))[:60], message]


def in_words(error: BaseException) -> str:
    """The kind and the message, where there is one."""
    return ": ".join(part for part in told(error) if part)


def send(pipe: BinaryIO, value: Any) -> None:
    message = plain.pack(value)
    pipe.write(len(message).to_bytes(plain.FRAME, "big") + message)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """The next message; None at the end."""
    head = pipe.read(plain.FRAME)
    return plain.unpack(pipe.read(int.from_bytes(head, "big"))) if len(head) == plain.FRAME else None


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Requests and replies, away from stdin and stdout, which become nothing: the notebook may print what it likes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    return requests, replies


def set_limits(memory: int, disk: int, seconds: int) -> None:
    """Limits on this process; with no way back for a user without rights.

    Args:
        memory: bytes beyond what Python and PyTorch have taken by now, as the address space counts them; 0 where there
            is no sandbox.
        disk: bytes of one file.
        seconds: of computing.
    """
    limits = {"CORE": 0, "FSIZE": disk, "NOFILE": 256, "CPU": seconds}
    if memory:
        limits["NPROC"] = 256  # of the sandbox; without one it would count all that the teacher runs
        with suppress(OSError):  # no such file elsewhere than on Linux
            taken = re.search(r"VmSize:\s*(\d+) kB", Path("/proc/self/status").read_text())
            limits["AS"] = memory + int(taken[1]) * 1024 if taken else memory
    for name, value in limits.items():
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    with suppress(OSError):  # should the machine run out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")


class Shell(InteractiveShell):
    """IPython that runs no programs and opens no windows: the sandbox has none, and no cell should stop for that."""

    def system(self, *_: Any, **__: Any) -> None:
        """Runs nothing."""

    def getoutput(self, *_: Any, **__: Any) -> SList:
        """No lines."""
        return SList()

    def enable_matplotlib(self, gui: str | None = None) -> tuple[str | None, str]:
        """Leaves figures in memory."""
        return gui, "agg"


def make_shell() -> InteractiveShell:
    """IPython, with the course's own calls silenced: checks are made outside."""
    for module in (course, display):
        for name in ("check", "hint", "solution", "progress"):
            setattr(module, name, lambda *_, **__: None)
    settings = Config()
    settings.HistoryManager.enabled = False
    return Shell.instance(config=settings, colors="nocolor")


def run_cell(shell: InteractiveShell, source: str, seconds: float) -> dict[str, Any]:
    """Runs a cell and goes on whatever happens: its error in words, if any."""
    try:
        with time_limit(seconds):
            result = shell.run_cell(source)
        error = result.error_in_exec if result.error_before_exec is None else result.error_before_exec
    except BaseException as escaped:
        error = escaped
    return {} if error is None else {"problem": in_words(error)}


def find(shell: InteractiveShell, expression: str) -> tuple[Any, dict[str, Any]]:
    """What the student gives to `check`, and what can be said of it."""
    try:
        answer = shell.ev(expression)
        if callable(answer):
            return answer, {"module": str(getattr(answer, "__module__", ""))}
    except BaseException as error:
        return None, {"problem": in_words(error)}
    return None, {"problem": f"{expression} is no function"}


def ask(answer: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    """The answer's output on one case of its exercise, or its error; and the arguments as it left them."""
    exercise = exercises.get(request["exercise"])
    case = exercise.case(request["seed"], request["index"], getattr(torch, request["dtype"]))
    try:
        outcome = attempt(exercise, answer, case, request["global_seed"])
    except BaseException as escaped:
        outcome = Outcome(None, escaped, case, "")
    error = None if outcome.error is None else told(outcome.error)
    return {"value": outcome.value, "error": error, "left": dict(outcome.left.args)}


def main(memory: int, disk: int, seconds: int) -> None:
    requests, replies = take_pipes()
    shell = make_shell()
    set_limits(memory, disk, seconds)
    send(replies, {"ready": True})
    answer: Any = None
    while (request := receive(requests)) is not None:
        if request["do"] == "run":
            reply = run_cell(shell, request["source"], request["seconds"])
        elif request["do"] == "find":
            answer, reply = find(shell, request["expression"])
        elif request["do"] == "reload":
            importlib.reload(importlib.import_module(f"{exercises.__name__}.l{request['lesson']}"))
            reply = {}
        else:
            reply = ask(answer, request)
        try:
            send(replies, reply)
        except BaseException as error:  # whatever an answer may return that has no form to be sent in
            send(replies, {"value": None, "error": told(error), "left": {}})


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
