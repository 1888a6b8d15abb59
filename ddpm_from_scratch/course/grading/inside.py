"""What runs in the sandbox: a notebook's cells, and the student's answers on inputs made here.

It obeys requests that come through a pipe, and answers with plain data. The notebook shares this process and may spoil
all of it: nothing here decides what is right.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ddpm_from_scratch import course
from ddpm_from_scratch.course import display, exercises
from ddpm_from_scratch.course.attempt import attempt
from ddpm_from_scratch.course.grading import plain


class CellTimeout(BaseException):
    """A cell ran too long."""


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


def make_shell() -> InteractiveShell:
    """IPython, with the course's own calls silenced: checks are made outside."""
    for module in (course, display):
        for name in ("check", "hint", "solution", "progress"):
            setattr(module, name, lambda *_, **__: None)
    settings = Config()
    settings.HistoryManager.enabled = False
    return InteractiveShell.instance(config=settings, colors="nocolor")


def run_cell(shell: InteractiveShell, source: str, seconds: float) -> dict[str, Any]:
    """Runs a cell and goes on whatever happens: the kind and message of its error, if any."""

    def stop(*_: Any) -> None:
        raise CellTimeout(f"stopped after {seconds:g} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
    except BaseException as escaped:
        error = escaped
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"error": type(error).__name__, "message": str(error)[:200]} if error else {}


def find(shell: InteractiveShell, expression: str) -> tuple[Any, dict[str, Any]]:
    """What the student gives to `check`, and what can be said of it."""
    try:
        answer = shell.ev(expression)
    except BaseException as error:
        return None, {"problem": f"{type(error).__name__}: {str(error)[:200]}"}
    if not callable(answer):
        return None, {"problem": f"{expression} is no function"}
    return answer, {"module": str(getattr(answer, "__module__", ""))}


def ask(answer: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    """The answer's output on one case of its exercise, or its error; and the arguments as it left them."""
    exercise = exercises.get(request["exercise"])
    case = exercise.case(request["seed"], request["index"], getattr(torch, request["dtype"]))
    outcome = attempt(exercise, answer, case, request["global_seed"])
    error = outcome.error
    told = [type(error).__name__, str(error).strip().split("\n")[0][:300]] if error else None
    return {"value": outcome.value, "error": told, "left": dict(outcome.left.args)}


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
        except Exception as error:  # whatever an answer may return that has no form to be sent in
            send(replies, {"value": None, "error": [type(error).__name__, str(error)[:300]], "left": {}})


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
