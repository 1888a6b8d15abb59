"""The edition of the package that enters the sandbox when a lesson is graded: its exercises' inputs, not their answers.

`exercises/lNN.py` is cut down to what makes the inputs (and calls a class or a training step): references, mistakes,
alternatives and hints are gone, and so is every function that only they used. Of other lessons' modules only what this
one, the lesson's cells and the rest of the course import is left.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Collection
from functools import cache
from pathlib import Path

import ddpm_from_scratch
from ddpm_from_scratch.course import exercises

PACKAGE = Path(ddpm_from_scratch.__file__).parent
COURSE = PACKAGE / "course"
LEFT_OUT = ("__pycache__", "*.pyc", "exercises", "lessons")
KEPT = ("id", "inputs", "run", "cases", "seconds")
BLANK = (
    "title='', difficulty=1, minutes=1, equation='', where='', lines=1, reference=len, hints=('', '', ''), "
    "mistakes=(), alternatives=()"
)
"""What takes the place of the other fields of an exercise."""
FALLBACK = '''
def __getattr__(name):
    """A lesson's cells may import an answer that they show: the import works, the call only once it was released."""
    if name.startswith("__"):
        raise AttributeError(name)

    def left_out(*args, **options):
        if name in globals():
            return globals()[name](*args, **options)
        raise RuntimeError(f"{name} is left out while notebooks are graded")

    return left_out
'''

Names = dict[str, set[str]]
"""Names by module, as {"l03": {"CENTRES", "levels"}}."""


def make(folder: Path, lesson: str, linked: bool = True) -> Path:
    """Writes the edition for lesson "NN" under `folder`; the folder from which it is imported.

    Args:
        folder: where to.
        lesson: number of the lesson.
        linked: files may be the package's own, which only a sandbox keeps from being written to.
    """
    target = folder / PACKAGE.name
    copy = _link_or_copy if linked else shutil.copyfile
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns(*LEFT_OUT), copy_function=copy)
    place = target / "course" / "exercises"
    place.mkdir()
    shutil.copy(COURSE / "exercises" / "__init__.py", place)
    for name, source in exercise_modules(lesson).items():
        (place / f"{name}.py").write_text(source, encoding="utf-8")
    return folder


def _link_or_copy(source: str, target: str) -> str:
    """Models and data take no time and no space where they can be linked."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def release(folder: Path, lesson: str, asked: Collection[str]) -> bool:
    """Puts the answers of exercises that were asked, and that the lesson's later cells use, into a made edition.

    Returns:
        Whether this changed the edition.
    """
    path = folder / PACKAGE.name / "course" / "exercises" / f"l{lesson}.py"
    source = exercise_modules(lesson, asked)[path.stem]
    changed = source != path.read_text(encoding="utf-8")
    path.write_text(source, encoding="utf-8")
    return changed


def exercise_modules(lesson: str, asked: Collection[str] = ()) -> dict[str, str]:
    """The sources of the exercise modules for lesson "NN", by name, with its answers cut out.

    Args:
        asked: ids of exercises whose answers are no secret any more.
    """
    own = f"l{lesson}"
    modules = {path.stem: _module(path) for path in _sources("exercises", "l[0-9]*.py")}
    bare = _bare_exercises(modules[own])
    needed = _closure(modules, {own: _used(bare)}, set())
    shown: Names = {}
    for path in [*_sources("lessons", f"{lesson}_*.py"), *_sources("widgets", "*.py"), *_sources(".", "*.py")]:
        shown = _union(shown, _imports(_module(path)))
    secret = {(own, name) for name in _answers(lesson, asked) - needed.get(own, set())}
    kept = _closure(modules, _union(needed, shown), secret)
    none = ast.parse("EXERCISES = ()").body[0]
    return {name: _cut(modules[name], kept[name], bare if name == own else none) for name in kept if name in modules}


def _sources(folder: str, pattern: str) -> list[Path]:
    return sorted((COURSE / folder).glob(pattern))


@cache
def _module(path: Path) -> ast.Module:
    """A source, read once: a notebook asks for its edition after every answer."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _answers(lesson: str, asked: Collection[str]) -> set[str]:
    """Names of the functions that answer the lesson's exercises, rightly or wrongly, but for those asked already."""
    answers = [
        answer
        for exercise in exercises.of_lesson(lesson)
        if exercise.id not in asked
        for answer in (exercise.reference, *exercise.alternatives, *(mistake.answer for mistake in exercise.mistakes))
    ]
    return {getattr(answer, "__name__", "") for answer in answers}


def _union(one: Names, other: Names) -> Names:
    return {name: one.get(name, set()) | other.get(name, set()) for name in one.keys() | other.keys()}


def _closure(modules: dict[str, ast.Module], wanted: Names, secret: set[tuple[str, str]]) -> Names:
    """`wanted` and all names that the statements binding them use, in other modules too, but for what is secret."""
    wanted = {module: {name for name in names if (module, name) not in secret} for module, names in wanted.items()}
    while True:
        found = wanted
        for module in wanted.keys() & modules.keys():
            for statement in _statements(modules[module]):
                if _bound(statement) & wanted[module]:
                    used = {name for name in _used(statement) if (module, name) not in secret}
                    found = _union(found, {module: used})
                    found = _union(found, _imports(statement, wanted[module]))
        if found == wanted:
            return wanted
        wanted = found


def _cut(module: ast.Module, wanted: set[str], exercises_: ast.stmt) -> str:
    """The source of what binds the wanted names, and of the exercises."""
    body: list[ast.stmt] = []
    for statement in _statements(module):
        if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            aliases = [alias for alias in statement.names if (alias.asname or alias.name) in wanted]
            body += [ast.ImportFrom(statement.module, aliases, statement.level)] if aliases else []
        elif _bound(statement) & (wanted | {"annotations"}):
            body.append(statement)
    return ast.unparse(ast.Module([*body, *_constructors(exercises_), exercises_], [])) + "\n" + FALLBACK


def _constructors(statement: ast.stmt) -> list[ast.stmt]:
    from_course = "from ddpm_from_scratch.course.exercise import Exercise"
    return ast.parse(from_course).body if "Exercise" in _used(statement) else []


def _bare_exercises(module: ast.Module) -> ast.stmt:
    """`EXERCISES = (Exercise(...), ...)` with inputs and without answers."""
    blank = ast.parse(f"Exercise({BLANK})", mode="eval").body
    assert isinstance(blank, ast.Call)
    bare = [
        ast.Call(call.func, [], [keyword for keyword in call.keywords if keyword.arg in KEPT] + blank.keywords)
        for call in ast.walk(module)
        if _is_exercise(call)
        if isinstance(call, ast.Call)
    ]
    return ast.parse(f"EXERCISES = ({''.join(f'{ast.unparse(call)}, ' for call in bare)})").body[0]


def _is_exercise(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Exercise"


@cache
def _statements(module: ast.Module) -> list[ast.stmt]:
    """The statements of a module that define no exercise."""
    return [
        statement
        for statement in module.body
        if "EXERCISES" not in _bound(statement) and not any(map(_is_exercise, ast.walk(statement)))
    ]


def _imports(part: ast.AST, wanted: set[str] | None = None) -> Names:
    """What is imported from exercise modules under a wanted name."""
    found: Names = {}
    for node in _import_statements(part):
        origin = (node.module or "").rpartition(".")[2]
        if origin[:1] == "l" and origin[1:].isdigit():
            names = {alias.name for alias in node.names if wanted is None or (alias.asname or alias.name) in wanted}
            found.setdefault(origin, set()).update(names)
    return found


@cache
def _import_statements(part: ast.AST) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(part) if isinstance(node, ast.ImportFrom)]


@cache
def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement at the top of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {part.id for part in ast.walk(statement) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


@cache
def _used(statement: ast.stmt) -> set[str]:
    """Names that a statement uses."""
    return {part.id for part in ast.walk(statement) if isinstance(part, ast.Name)}
