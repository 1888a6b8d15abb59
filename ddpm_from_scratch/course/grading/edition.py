"""The edition of the package that enters the sandbox: the exercises' inputs without their answers.

Each `exercises/lNN.py` is cut down to what makes the inputs (and calls a class or a training step): references,
mistakes, alternatives and hints are gone, and so is every function that only they used.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import ddpm_from_scratch

PACKAGE = Path(ddpm_from_scratch.__file__).parent
LEFT_OUT = ("__pycache__", "*.pyc", "exercises", "lessons")
BLANK = {
    "title": "''",
    "difficulty": "1",
    "minutes": "1",
    "equation": "''",
    "where": "''",
    "lines": "1",
    "reference": "len",
    "hints": "('', '', '')",
    "mistakes": "()",
    "alternatives": "()",
}
"""What takes the place of the fields of an exercise that are left out."""
KEPT = ("id", "inputs", "run", "cases", "seconds")


def make(folder: Path) -> Path:
    """Writes the edition under `folder`; the folder from which it is imported."""
    target = folder / PACKAGE.name
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (target / "course" / "exercises").mkdir()
    for source in sorted((PACKAGE / "course" / "exercises").glob("*.py")):
        text = source.read_text(encoding="utf-8")
        (target / "course" / "exercises" / source.name).write_text(
            text if source.name == "__init__.py" else inputs_alone(text), encoding="utf-8"
        )
    return folder


def inputs_alone(source: str) -> str:
    """The source of an exercise module with the answers cut out."""
    module = ast.parse(source)
    calls = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Exercise"
    ]
    bare = [_bare(call) for call in calls]
    exercises = ast.parse(f"EXERCISES = ({''.join(f'{ast.unparse(call)}, ' for call in bare)})").body[0]
    definitions = [node for node in module.body if not _holds(node, calls)]
    wanted, kept = _names(exercises), set()
    while fresh := [n for n, node in enumerate(definitions) if n not in kept and _bound(node) & wanted]:
        kept.update(fresh)
        wanted |= {name for n in fresh for name in _names(definitions[n])}
    imports = [n for n, node in enumerate(definitions) if isinstance(node, ast.Import | ast.ImportFrom)]
    body = [definitions[n] for n in sorted(kept.union(imports))]
    return ast.unparse(ast.Module([*body, exercises], [])) + "\n"


def _bare(call: ast.Call) -> ast.Call:
    """`Exercise(...)` with its inputs and nothing that answers it."""
    kept = [keyword for keyword in call.keywords if keyword.arg in KEPT]
    blanks = [ast.keyword(name, ast.parse(text, mode="eval").body) for name, text in BLANK.items()]
    return ast.Call(call.func, [], [*kept, *blanks])


def _holds(node: ast.stmt, calls: list[ast.Call]) -> bool:
    return any(part in calls for part in ast.walk(node)) or "EXERCISES" in _bound(node)


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement at the top of a module binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _names(node: ast.stmt) -> set[str]:
    """Names that a statement uses."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
