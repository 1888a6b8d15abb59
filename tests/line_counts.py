"""Lines of code against the limits that keep the package readable: no comments, docstrings or blank lines."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ddpm_from_scratch"
HUB_AND_PIPELINES = ["hub.py", "pipelines.py"]
EQUATIONS_AND_PARTS = ["gaussian.py", "schedules.py", "outputs.py", "config.py", "models/*.py", "schedulers/*.py"]
CORE = [*EQUATIONS_AND_PARTS, "publish.py", *HUB_AND_PIPELINES]
LIMITS = {
    "core path, equations to pipelines": (CORE, 1700),
    "of it hub and pipelines": (HUB_AND_PIPELINES, 500),
    "exercise engine": (["course/engine.py", "course/attempt.py"], 250),
}
LONGEST_FUNCTION = 50
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(tree: ast.AST) -> set[int]:
    """Line numbers taken by strings that stand alone as statements."""
    strings = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def code_lines(source: str) -> set[int]:
    """Line numbers that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for token in tokens if token.type not in NOT_CODE for line in range(token.start[0], token.end[0] + 1)}
    return lines - docstring_lines(ast.parse(source))


def long_functions(path: Path) -> list[str]:
    """Functions whose bodies have more lines of code than allowed."""
    source = path.read_text(encoding="utf-8")
    lines = code_lines(source)
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    lengths = ((sum(f.body[0].lineno <= line <= (f.end_lineno or 0) for line in lines), f) for f in functions)
    name = path.relative_to(PACKAGE.parent)
    return [f"{name}:{f.lineno} {f.name} has {n} lines" for n, f in lengths if n > LONGEST_FUNCTION]


def main() -> int:
    failed = False
    for name, (patterns, limit) in LIMITS.items():
        files = sorted({path for pattern in patterns for path in PACKAGE.glob(pattern)})
        total = sum(len(code_lines(path.read_text(encoding="utf-8"))) for path in files)
        failed |= total > limit
        print(f"{name:<36}{total:>6} of {limit:>5}{'  over' if total > limit else ''}")
    too_long = [line for path in sorted(PACKAGE.rglob("*.py")) for line in long_functions(path)]
    print(f"{'functions over ' + str(LONGEST_FUNCTION) + ' lines':<36}{len(too_long):>6}", *too_long, sep="\n  ")
    return int(failed or bool(too_long))


if __name__ == "__main__":
    sys.exit(main())
