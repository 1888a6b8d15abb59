"""The learner's folder `work/`: fresh copies of the lessons, never over an answer, and JupyterLab opened on it.

`python -m ddpm_from_scratch.course.workspace lab` is what `make lab` runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = ".lessons.json"  # in work/: file name → hash of the lesson as it was handed out
START = "00_start_here.ipynb"
# Variables by which another environment, or an earlier server, would reach into this one.
FOREIGN = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "JUPYTER_PATH", "JUPYTER_TOKEN", "MPLBACKEND")
# JupyterLab otherwise asks whether it may fetch news, and for a kernel when a cell is run before the kernel is up.
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {
        "autoStartDefaultKernel": True,
        "codeCellConfig": {"lineNumbers": False, "lineWrap": True},
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosaveInterval": 30},
    "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},
}
"""No questions at the start, a kernel for each notebook, long lines of code broken instead of cut off, answers saved
every 30 seconds instead of every 120, and the widgets' last pictures where one is opened again."""


class WorkspaceError(Exception):
    """The lessons could not be copied, in one sentence for the learner."""


def file_hash(path: Path) -> str:
    """Of a notebook its cells alone: into one that was only opened, JupyterLab writes what it knows of the kernel."""
    content = path.read_bytes()
    with suppress(ValueError, TypeError, KeyError):
        content = json.dumps(json.loads(content)["cells"], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def read_record(work: Path) -> dict[str, str]:
    """The hash of each file as it was handed out. A lost record is empty: then every file counts as the learner's."""
    try:
        record = json.loads((work / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def copies_of(lesson: Path, work: Path) -> Iterator[Path]:
    """Where versions of a lesson may lie: `01_x.ipynb`, `01_x.new.ipynb`, `01_x.new2.ipynb`, ..."""
    yield work / lesson.name
    yield work / f"{lesson.stem}.new{lesson.suffix}"
    number = 2
    while True:
        yield work / f"{lesson.stem}.new{number}{lesson.suffix}"
        number += 1


def hand_out(lesson: Path, copy: Path, record: dict[str, str]) -> None:
    partial = copy.with_name(copy.name + ".part")
    shutil.copyfile(lesson, partial)
    os.replace(partial, copy)
    record[copy.name] = file_hash(lesson)


def new_version(lesson: Path, work: Path, record: dict[str, str]) -> Path | None:
    """Hand out a lesson that changed since its last copy: over a copy nobody touched, else beside. What was written."""
    if not (work / lesson.name).exists():
        hand_out(lesson, work / lesson.name, record)
        return work / lesson.name
    version = file_hash(lesson)
    for copy in copies_of(lesson, work):
        if copy.exists() and version in (record.get(copy.name), file_hash(copy)):
            return None
        if not copy.exists() or file_hash(copy) == record.get(copy.name):
            hand_out(lesson, copy, record)
            return copy
    return None


def copy_lessons(lessons: Path, work: Path, update: bool = False) -> list[Path]:
    """Copy the lessons a learner does not have yet into `work`; a file that exists is left as it is.

    Args:
        update: also hand out lessons that changed since they were copied. A copy that the learner never touched is
            replaced; beside any other the new version is laid as `NAME.new.ipynb`.

    Returns:
        The files written.

    Raises:
        WorkspaceError: there are no lessons, or `work` cannot be written.
    """
    sources = sorted(path for path in lessons.glob("*") if path.is_file() and not path.name.startswith("."))
    if not sources:
        raise WorkspaceError(f"no lessons found in {lessons}: run this from a clone of the whole repository")
    try:
        work.mkdir(parents=True, exist_ok=True)
        record = read_record(work)
        written = []
        for lesson in sources:
            if update:
                copy = new_version(lesson, work, record)
                written += [copy] if copy else []
            elif not (work / lesson.name).exists():
                hand_out(lesson, work / lesson.name, record)
                written.append(work / lesson.name)
        (work / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise WorkspaceError(f"cannot write the lessons into {work}: {error.strerror or error}") from None
    return written


def has_display(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser opened here would be seen: not over ssh, and on Linux only under X or Wayland."""
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return False
    return platform in ("darwin", "win32") or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def lab_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for JupyterLab: this Python's kernel first, nothing of another environment."""
    clean = {name: value for name, value in environ.items() if name not in FOREIGN}
    clean["JUPYTER_PREFER_ENV_PATH"] = "1"
    clean["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    return clean


def lab_command(work: Path, start: str = START, browser: bool = True) -> list[str]:
    """The command that serves `work` and opens `start`; the token is JupyterLab's own, new at each start."""
    options = {
        "ServerApp.root_dir": str(work),
        "LabApp.default_url": f"/lab/tree/{start}",
        "MultiKernelManager.default_kernel_name": "python3",
        "ServerApp.log_level": "ERROR",
        "LabApp.log_level": "ERROR",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return command


def quieten_lab() -> None:
    """Settle JupyterLab's questions for this environment; what somebody settled stays.

    Where its settings cannot be read or written, JupyterLab goes on to ask.
    """
    settings = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    with suppress(OSError, ValueError):
        settled = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
        if LAB_SETTINGS.keys() - settled.keys():
            settings.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(json.dumps(LAB_SETTINGS | settled), encoding="utf-8")


def serve(work: Path) -> int:
    """Run JupyterLab on `work` until it is stopped; its exit status."""
    browser = has_display()
    quieten_lab()
    print(f"JupyterLab serves {work}. Stop it with Ctrl-C.")
    if not browser:
        print("No display here: open the address below in a browser.")
    print(flush=True)
    server = subprocess.Popen(lab_command(work, browser=browser), env=lab_environment())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is JupyterLab's to answer
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    return server.wait()


def main(arguments: list[str]) -> int:
    if arguments not in (["lab"], ["update"], ["copy"]):
        print("usage: python -m ddpm_from_scratch.course.workspace lab | update | copy", file=sys.stderr)
        return 2
    work = ROOT / "work"
    try:
        written = copy_lessons(ROOT / "lessons", work, update=arguments == ["update"])
    except WorkspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        kind = "beside yours, which stays" if ".new" in path.name else "new"
        print(f"{kind}: {path.relative_to(ROOT)}")
    if arguments == ["update"] and not written:
        print("Your lessons are up to date.")
    return serve(work) if arguments == ["lab"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
