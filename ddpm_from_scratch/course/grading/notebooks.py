"""A student's notebook, read as text: its cells, and where the answer to each exercise is. Nothing is run."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from ddpm_from_scratch.course import build, exercises
from ddpm_from_scratch.course.exercise import Exercise

MAX_BYTES = 50_000_000
MAX_CELLS = 1_000
MAX_SOURCE = 200_000
CHECK = re.compile(r"""\bcheck\(\s*["'](\d\d)\.\d+["']""")
WRAPPER = re.compile(r"^%%(time|timeit|capture|prun)\b.*", re.MULTILINE)
"""Cell magics that run the cell's own Python."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class BrokenNotebook(Exception):
    """A file that cannot be graded, with the reason in one line."""


@dataclass(frozen=True)
class Answer:
    """Where an exercise's answer is: `expression` after cell `cell` has run.

    Args:
        exercise: the exercise.
        cell: index of the cell after which to ask; None where there is no answer.
        expression: source of what the student gave to `check`, mostly a name.
        problem: why there is no answer, in one line; "" where there is one.
        blank: the stub as it was handed out.
        borrowed: its source names the package's finished component.
        source: index of the cell that defines it; None where no cell does.
        again: a cell further down defines it once more, and does not check it.
    """

    exercise: Exercise
    cell: int | None = None
    expression: str = ""
    problem: str = ""
    blank: bool = False
    borrowed: bool = False
    source: int | None = None
    again: bool = False


@dataclass(frozen=True)
class StudentNotebook:
    """The lesson's number, the sources of the code cells, and the answers in the order of the exercises."""

    lesson: str
    cells: tuple[str, ...]
    answers: tuple[Answer, ...]


def read(path: Path) -> StudentNotebook:
    """A notebook file.

    Raises:
        BrokenNotebook: it is no notebook, or belongs to no lesson with exercises.
    """
    cells = _code_cells(_content(path))
    lesson = _lesson(path, cells)
    trees = [_tree(source) for _, source in cells]
    handed_out = {
        cell.text for source in build.sources() if source.name[:2] == lesson for cell in build.read_source(source)
    }
    own = [tree for (_, source), tree in zip(cells, trees, strict=True) if source.strip() not in handed_out]
    answers = tuple(_answer(exercise, cells, trees, own) for exercise in exercises.of_lesson(lesson))
    return StudentNotebook(lesson, tuple(source for _, source in cells), answers)


def _content(path: Path) -> Any:
    try:
        if path.is_symlink() or not path.is_file():
            raise BrokenNotebook("a link or no file: a notebook itself is needed")
        if path.stat().st_size > MAX_BYTES:
            raise BrokenNotebook(f"larger than {MAX_BYTES // 1_000_000} MB")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenNotebook(f"cannot be read: {error.strerror}") from None
    except RecursionError:
        raise BrokenNotebook("not a notebook: brackets without end") from None
    except ValueError as error:
        raise BrokenNotebook(f"not a notebook: no valid JSON ({str(error)[:80]})") from None


def _code_cells(content: Any) -> list[tuple[str, str]]:
    """Id and source of each code cell."""
    listed = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise BrokenNotebook("not a notebook: no list of cells (a notebook of version 4 has one)")
    cells = []
    for cell in listed:
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        lines = source if isinstance(source, list) else [source]
        if not all(isinstance(line, str) for line in lines):
            raise BrokenNotebook("not a notebook: a cell whose source is no text")
        cells.append((str(cell.get("id", "")), "".join(lines)))
    if len(cells) > MAX_CELLS or sum(len(source) for _, source in cells) > MAX_SOURCE:
        raise BrokenNotebook(f"more than {MAX_CELLS:,} code cells or {MAX_SOURCE:,} characters of code")
    return cells


def _lesson(path: Path, cells: list[tuple[str, str]]) -> str:
    named = Counter(found[1] for name, _ in cells if (found := re.match(r"(\d\d)-", name)))
    named.update(number for _, source in cells for number in CHECK.findall(source))
    in_name = re.search(r"(?<!\d)(\d\d)_", path.name)
    lesson = named.most_common(1)[0][0] if named else in_name[1] if in_name else ""
    if not exercises.of_lesson(lesson):
        raise BrokenNotebook(f"lesson {lesson} has no exercises" if lesson else "belongs to no lesson of the course")
    return lesson


def _tree(source: str) -> ast.Module | str:
    """A cell's syntax tree, or what is wrong with it."""
    try:
        return ast.parse(TransformerManager().transform_cell(WRAPPER.sub("", source)))
    except SyntaxError as error:
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {str(error)[:80]}"


# ---------------------------------------------------------------- one answer


def _answer(
    exercise: Exercise, cells: list[tuple[str, str]], trees: list[ast.Module | str], own: list[ast.Module | str]
) -> Answer:
    """Looks for the last check of the exercise, else for a definition of its name; `own` are the student's cells.

    A lesson may check an example: that counts as an answer only under the exercise's own name. Where the check comes
    before the answer, or finds the stub, the answer is asked for after the cell that defines it.
    """
    unreadable = {cells[n][0]: n for n, tree in enumerate(trees) if isinstance(tree, str)}
    own_cell = f"{exercise.id[:2]}-ex{exercise.id[3:]}"
    defining = [n for n, tree in enumerate(trees) if tree in own and _defines(tree, exercise.name)]
    asked = [
        (n, given)
        for n, tree in enumerate(trees)
        for given in _checks(tree, exercise.id)
        if given == exercise.name or tree in own
    ]
    if asked and not (own_cell in unreadable and asked[-1][1] == exercise.name):
        cell, expression = asked[-1]
    elif defining:
        cell, expression = defining[-1], exercise.name
    elif own_cell in unreadable:
        where = unreadable[own_cell]
        return Answer(exercise, problem=f"the answer's cell cannot be read: {trees[where]}", source=where)
    else:
        return Answer(exercise, problem=f"no cell defines {exercise.name}, and none checks exercise {exercise.id}")
    later = [n for n in defining if n > cell] if expression == exercise.name else []
    if later and (later == defining or _is_blank(_definition(trees[: cell + 1], expression), exercise)):
        cell, later = later[-1], []
    earlier = trees[: cell + 1]
    return Answer(
        exercise,
        cell,
        expression,
        blank=_is_blank(_definition(earlier, expression), exercise),
        borrowed=_borrows(earlier, expression, exercise.package),
        source=max((n for n, tree in enumerate(earlier) if _defines(tree, expression)), default=None),
        again=_definition([trees[n] for n in later], expression) is not None,
    )


def _checks(tree: ast.Module | str, exercise_id: str) -> list[str]:
    """The second argument of each call `check("01.1", answer)`, as source."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if isinstance(tree, ast.Module) else []
    given = []
    for call in calls:
        named = dict(zip(("exercise_id", "answer"), call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
        asked, answer = named.get("exercise_id"), named.get("answer")
        is_check = getattr(call.func, "id", getattr(call.func, "attr", "")) == "check"
        if is_check and answer is not None and isinstance(asked, ast.Constant) and asked.value == exercise_id:
            given.append(ast.unparse(answer))
    return given


def _statements(trees: list[ast.Module | str]) -> list[ast.stmt]:
    return [statement for tree in trees if isinstance(tree, ast.Module) for statement in tree.body]


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement of a cell binds."""
    if isinstance(statement, Definition):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    defined = {node.name for node in ast.walk(statement) if isinstance(node, Definition)}
    return defined | _stored(statement)


def _defines(tree: ast.Module | str, name: str) -> bool:
    """Whether a cell defines a function or class of that name, or assigns to it; an import is no answer."""
    imports = ast.Import | ast.ImportFrom
    return any(name in _bound(statement) and not isinstance(statement, imports) for statement in _statements([tree]))


def _definition(trees: list[ast.Module | str], name: str) -> Definition | None:
    """The function or class of that name, where nothing else was bound to it afterwards."""
    last: Definition | None = None
    for statement in _statements(trees):
        if name in _bound(statement):
            defined = [n for n in ast.walk(statement) if isinstance(n, Definition) and n.name == name]
            last = defined[-1] if defined else None
    return last


def _stored(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _is_blank(definition: Definition | None, exercise: Exercise) -> bool:
    """Whether the functions of an answer have the stub's bodies, docstrings apart."""

    def bodies(tree: ast.AST) -> list[str]:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        kept = [node.body[ast.get_docstring(node) is not None :] for node in functions]
        return [ast.dump(ast.Module(body, [])) for body in kept]

    return definition is not None and bodies(definition) == bodies(ast.parse(exercise.stub))


def _borrows(earlier: list[ast.Module | str], expression: str, package: str) -> bool:
    """Whether an answer's source names the package's component, or a name that stands for what does.

    Names are followed through the cells' own statements, in order; twice, as a function may use what comes after it.
    """
    component = package.rpartition(".")[2]
    if not component:
        return False
    taken: set[str] = set()
    for statement in 2 * _statements(earlier):
        if isinstance(statement, ast.ImportFrom):
            taken = taken - _bound(statement) | _imported(statement, component)
        elif _takes(statement, component, taken):
            taken = taken | _bound(statement)
        else:
            taken = taken - _bound(statement)
    return _takes(ast.parse(expression), component, taken)


def _imported(node: ast.AST, component: str) -> set[str]:
    """Names under which an import gets the package's component."""
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("ddpm_from_scratch"):
        return set()
    return {alias.asname or component for alias in node.names if alias.name in (component, "*")}


def _takes(tree: ast.AST, component: str, taken: set[str]) -> bool:
    """Whether code names the component, or uses a taken name that is none of its own."""
    nodes = list(ast.walk(tree))
    local = {node.arg for node in nodes if isinstance(node, ast.arg)}
    if isinstance(tree, Definition):
        local |= {tree.name} | _stored(tree)
    return any(
        (isinstance(node, ast.Attribute) and node.attr == component)
        or (isinstance(node, ast.Constant) and node.value == component)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in taken - local)
        or _imported(node, component)
        for node in nodes
    )
