"""One process in bubblewrap, and the pipe to it."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_from_scratch.course.grading import plain, seccomp

MAX_REPLY = 64_000_000
HOME = "/home/student"
COURSE = "/course"
MB = 1_000_000
SMALL = 64
"""MB of `/tmp` and of shared memory; temporary files go into the home folder."""
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/sbin", "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts")


@dataclass(frozen=True)
class Limits:
    """What one notebook may use.

    Args:
        seconds: for the whole notebook, its start included.
        cell_seconds: for one cell; it is stopped then, and the notebook goes on.
        memory: MB beyond what Python and PyTorch need themselves.
        disk: MB of its own files, which lie in memory and are gone afterwards.
    """

    seconds: float = 600.0
    cell_seconds: float = 120.0
    memory: int = 4_000
    disk: int = 2_000


class SandboxEnded(Exception):
    """The process is gone, or does not answer; the message says why."""


def why_not() -> str:
    """Why nothing can be sandboxed here, in one sentence; "" where it can."""
    if not sys.platform.startswith("linux"):
        return "the sandbox needs Linux"
    if shutil.which("bwrap") is None:
        return "the sandbox needs bubblewrap (on Debian or Ubuntu: apt install bubblewrap)"
    with tempfile.TemporaryDirectory() as folder, filter_file() as handle:
        command = [*bubblewrap(Path(folder), Limits(), handle), sys.executable, "-S", "-c", "print(1 + 1)"]
        ran = subprocess.run(command, capture_output=True, text=True, pass_fds=[handle] * (handle > 0), timeout=60)
    if ran.stdout.strip() == "2":
        return ""
    if "Unknown option" in ran.stderr:
        return "the sandbox needs bubblewrap 0.8 or newer"
    if "uid map" in ran.stderr:
        return (
            "this system lets no ordinary user make a sandbox (on Ubuntu 24.04 and newer: "
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    return f"bubblewrap cannot make a sandbox here ({(ran.stderr.strip().splitlines() or ['no output'])[-1][:200]})"


@contextmanager
def filter_file() -> Iterator[int]:
    """A descriptor from which bubblewrap reads the filter of system calls; 0 where there is none."""
    if not (program := seccomp.program()):
        yield 0
        return
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.seek(0)
        yield file.fileno()


def bubblewrap(edition: Path, limits: Limits, filter_handle: int = 0) -> list[str]:
    """The command in front of the one that is fenced in: what it may see, read-only, and where it may write."""
    size, small = (["--size", str(size * MB)] for size in (limits.disk, SMALL))
    readable = [path for path in SYSTEM if Path(path).exists()]
    prefixes = (sys.base_prefix, sys.base_exec_prefix, sys.prefix)
    python = dict.fromkeys(path for prefix in prefixes for path in (prefix, os.path.realpath(prefix)))
    outside = [path for path in python if path != "/usr" and not path.startswith("/usr/")]
    command = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--cap-drop", "ALL", "--clearenv"]
    command += [*small, "--tmpfs", "/tmp", *size, "--tmpfs", HOME]  # first: the environment may lie below them
    command += [word for path in [*readable, *outside] for word in ("--ro-bind", path, path)]
    command += [word for path in installed_copies(outside) for word in ("--tmpfs", path, "--remount-ro", path)]
    command += ["--ro-bind", str(edition), COURSE, "--proc", "/proc", "--dev", "/dev", *small, "--tmpfs", "/dev/shm"]
    command += ["--remount-ro", "/dev", "--chdir", HOME]
    command += [word for path in font_lists() for word in ("--ro-bind", str(path), f"{HOME}/.matplotlib/{path.name}")]
    command += ["--remount-ro", "/"]
    command += [word for pair in environment(HOME, COURSE).items() for word in ("--setenv", *pair)]
    return command + ["--seccomp", str(filter_handle)] * (filter_handle > 0)


def installed_copies(readable: list[str]) -> list[str]:
    """Where the whole package, answers included, would be seen: hidden by an empty folder."""
    package = str(Path(__file__).resolve().parents[2])
    return [package] if package.startswith(tuple(f"{path}/" for path in [*readable, "/usr"])) else []


def font_lists() -> list[Path]:
    """Matplotlib's list of this machine's fonts, which takes seconds to make."""
    import matplotlib

    return sorted(Path(matplotlib.get_cachedir()).glob("fontlist-*.json"))


def environment(home: str, edition: str) -> dict[str, str]:
    """All environment variables of the process."""
    fixed = {"LANG": "C.UTF-8", "USER": "student", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    places = {
        "HOME": home,
        "PYTHONPATH": edition,
        "MPLCONFIGDIR": f"{home}/.matplotlib",
        "IPYTHONDIR": home,
    }
    return fixed | places | {"PATH": os.defpath, "TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1"}


class Sandbox:
    """The process that runs a notebook; a context manager, which ends it.

    Args:
        edition: folder with the package's edition for the sandbox.
        limits: what it may use.
        trust: run it without bubblewrap, with this user's rights.
    """

    def __init__(self, edition: Path, limits: Limits, trust: bool = False) -> None:
        self.limits = limits
        self.ended = ""
        self._end = time.monotonic() + limits.seconds
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        memory = 0 if trust else limits.memory * MB
        arguments = [memory, limits.disk * MB, int(limits.seconds) + 1]
        command = [sys.executable, "-s", "-P", "-m", f"{__package__}.inside", *map(str, arguments)]
        with filter_file() as handle:
            self._process = subprocess.Popen(
                command if trust else bubblewrap(edition, limits, handle) + command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[handle] * (handle > 0 and not trust),
                cwd=self._home.name,
                env=environment(self._home.name, str(edition)),
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._requests, self._replies):
            os.set_blocking(pipe, False)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end("")
        self._home.cleanup()

    def end(self, why: str) -> None:
        """Kills the process and all that it started; `why` is kept, the first time."""
        self.ended = self.ended or why
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()

    def ready(self) -> None:
        """Waits until Python and PyTorch are loaded.

        Raises:
            SandboxEnded: they could not be.
        """
        self._receive(self._end)

    def request(self, seconds: float, /, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its reply.

        Raises:
            SandboxEnded: none came within `seconds` or the notebook's limit, or none that can be read.
        """
        if self.ended:
            raise SandboxEnded(self.ended)
        message = plain.pack(request, longest=None)
        by = min(time.monotonic() + seconds, self._end)
        self._write(len(message).to_bytes(plain.FRAME, "big") + message, by)
        reply = self._receive(by)
        if not isinstance(reply, dict):
            self._fail("the notebook wrote into the grader's pipe")
        return reply

    def _receive(self, by: float) -> Any:
        length = int.from_bytes(self._read(plain.FRAME, by), "big")
        if length > MAX_REPLY:
            self._fail(f"a result of more than {MAX_REPLY // MB} MB, or the notebook wrote into the grader's pipe")
        try:
            return plain.unpack(self._read(length, by))
        except ValueError:
            self._fail("the notebook wrote into the grader's pipe")

    def _read(self, count: int, by: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(self._replies, selectors.EVENT_READ, by)
            if not (part := os.read(self._replies, count - len(data))):
                self._fail("the notebook ended its own process, or used too much memory or computing time")
            data += part
        return bytes(data)

    def _write(self, data: bytes, by: float) -> None:
        while data:
            self._wait(self._requests, selectors.EVENT_WRITE, by)
            try:
                data = data[os.write(self._requests, data) :]
            except OSError:
                self._fail("the notebook ended its own process")

    def _wait(self, pipe: int, event: int, by: float) -> None:
        """Until the pipe is ready: no reader or writer that keeps us waiting does so for ever."""
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, event)
            if not ready.select(max(0.0, by - time.monotonic())):
                over = time.monotonic() >= self._end
                limit = f"the {self.limits.seconds:g} seconds of a notebook" if over else "the time of one step"
                self._fail(f"the notebook did not finish within {limit}")

    def _fail(self, why: str) -> Any:
        self.end(why)
        raise SandboxEnded(self.ended)
