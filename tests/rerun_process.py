"""Runs all code cells of a notebook, then each alone once more, as a learner does who goes back to one.

Argument: the notebook. Prints what the cells of the second round raised, one a line. The last cell comes first, so that
no cell finds what an earlier one has just put right. Cells that take longer than `SLOW` seconds run once.
"""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell

SLOW = 3.0


def main(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    shell, quick, failures = InteractiveShell.instance(), [], []
    with redirect_stdout(sys.stderr):
        for cell in cells:
            start = time.perf_counter()
            shell.run_cell(cell.source, store_history=True).raise_error()
            if time.perf_counter() - start < SLOW:
                quick.append(cell)
        names = dict(shell.user_ns)
        for cell in reversed(quick):
            try:
                shell.run_cell(cell.source, store_history=True).raise_error()
            except Exception as error:
                failures.append(f"{cell.id}: {type(error).__name__}: {error}")
            shell.user_ns.clear()
            shell.user_ns.update(names)
    print(*failures, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
