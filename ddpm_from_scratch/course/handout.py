"""The edition that students get: the course without its solutions.

A file beside this module marks such an edition: there `solution()` refuses, and no output unfolds a solution. The
references stay in `course/exercises`, because checks compare with them: the edition leaves solutions out of sight, it
does not keep them secret.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = Path(__file__).with_name("HANDOUT")
NO_SOLUTIONS = "this edition of the course is handed out without solutions: ask whoever gave it to you"
CONTENTS = (
    "lessons",
    "ddpm_from_scratch",
    "pyproject.toml",
    "requirements.lock",
    "environment.yml",
    "bootstrap.sh",
    "Makefile",
    "LICENSE",
    ".gitattributes",
    ".gitignore",
)
TARGETS = ("help", "lab", "demo", "lessons-update", "clean")
"""Of the Makefile: the others need the tests, the sources of the lessons or their solutions."""
README = """# ddpm_from_scratch

Denoising diffusion from its equations to pictures, in notebooks. You need git, make and Python 3.11 or newer.

```sh
make lab     # set up, copy the lessons into work/, and open JupyterLab on them
```

On Windows, without make:

```bat
py -m venv .venv
.venv\\Scripts\\python -m pip install -e .
.venv\\Scripts\\python -m ddpm_from_scratch.course.workspace lab
```

This edition is handed out without solutions and without the course's own tests. Hand in the notebooks of `work/`.
"""


def is_handout() -> bool:
    """Whether this package is part of such an edition."""
    return MARK.exists()


def write(folder: Path, root: Path = ROOT) -> int:
    """Writes the edition into a new folder; the number of lessons in it.

    Raises:
        ValueError: the folder exists and is not empty, lies inside what is copied, or the course is not a clone.
    """
    if missing := [name for name in CONTENTS if not (root / name).exists()]:
        raise ValueError(f"{root} lacks {', '.join(missing)}: a handout is made from a clone of the whole repository")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a new folder")
    if any((root / name) in (folder.resolve(), *folder.resolve().parents) for name in CONTENTS):
        raise ValueError(f"{folder} lies inside what is copied: give a folder elsewhere")
    for name in CONTENTS:
        source, target = root / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.egg-info"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    makefile = folder / "Makefile"
    makefile.write_text(_without_other_targets(makefile.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")
    (folder / MARK.relative_to(ROOT)).write_text("An edition without solutions: see handout.py.\n", encoding="utf-8")
    return len(list((folder / "lessons").glob("*.ipynb")))


def _without_other_targets(makefile: str) -> str:
    """A Makefile, whose targets stand in paragraphs of their own, with those of `TARGETS` only."""
    parts = [(re.match(r"([a-z-]+):", part), part) for part in makefile.rstrip("\n").split("\n\n")]
    kept = "\n\n".join(part for target, part in parts if target is None or target[1] in TARGETS)
    return re.sub(r"^\.PHONY:.*", f".PHONY: {' '.join(TARGETS)}", kept, flags=re.MULTILINE) + "\n"
