"""The shape of the package: which way imports point, how long things are, and what a public name must have."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import line_counts
import pytest

import ddpm_from_scratch

PACKAGE = Path(ddpm_from_scratch.__file__).parent
FOUNDATION = {"config", "outputs", "hub"}
MAY_IMPORT: dict[str, set[str]] = {
    "gaussian": set(),
    "schedules": set(),
    "outputs": set(),
    "config": set(),
    "publish": {"config"},
    "hub": {"config", "publish"},
    "models": FOUNDATION,
    "schedulers": FOUNDATION | {"gaussian", "schedules"},
    "pipelines": FOUNDATION | {"publish", "gaussian", "models", "schedulers"},
}
"""The core: each part and the parts that it may stand on."""
ABOVE_ALL = {"course", "cli", "__main__"}


def part(path: Path) -> str:
    """The module or sub-package directly under the package that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports, inside functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            home = ("ddpm_from_scratch", *path.relative_to(PACKAGE).parts)[: -node.level]
            names = [".".join((*home, node.module or "", alias.name)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("ddpm_from_scratch.")}
    return found - {part(path)}


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_imports_point_one_way() -> None:
    for path in SOURCES:
        name, imports = part(path), imported_parts(path)
        if name in MAY_IMPORT:
            assert imports <= MAY_IMPORT[name], f"{path.name} imports {imports - MAY_IMPORT[name]}"
        if name not in ABOVE_ALL:
            assert not imports & ABOVE_ALL, f"{path.name} imports {imports & ABOVE_ALL}"


def test_no_import_goes_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        graph[part(path)] = graph.get(part(path), set()) | imported_parts(path)

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        for following in graph.get(name, ()):
            walk(following, (*trail, name))

    for name in set(graph) - ABOVE_ALL:
        walk(name, ())


def test_the_equations_import_only_torch_and_numpy() -> None:
    heavy = ("diffusers", "matplotlib", "IPython", "accelerate", "torchvision", "sklearn")
    code = f"import sys, ddpm_from_scratch; print(*(m for m in {heavy} if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
    for name in ("gaussian.py", "schedules.py"):
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        modules = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        modules |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert modules <= {"__future__", "numpy", "torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", list(line_counts.LIMITS))
def test_line_budgets(name: str) -> None:
    patterns, limit = line_counts.LIMITS[name]
    files = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert files
    assert sum(len(line_counts.code_lines(path.read_text(encoding="utf-8"))) for path in files) <= limit


def test_no_function_is_long() -> None:
    assert [line for path in SOURCES for line in line_counts.long_functions(path)] == []


# ---------------------------------------------------------------- public names

CORE = [
    "gaussian",
    "schedules",
    "outputs",
    "config",
    "hub",
    "pipelines",
    "schedulers",
    "models",
    "training",
    "data",
    "metrics",
]
LIBRARY = [ddpm_from_scratch.__name__] + [
    f"ddpm_from_scratch.{name}" for name in CORE if list(PACKAGE.glob(f"{name}*"))
]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions of the package that a module shows."""
    for name, value in vars(module).items():
        shown = name[0] != "_" and (inspect.isclass(value) or inspect.isfunction(value))
        if shown and (value.__module__ or "").startswith("ddpm_from_scratch"):
            yield name, value


def callables(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A function, or the public methods that a class defines itself."""
    if inspect.isfunction(value):
        yield name, inspect.unwrap(value)
        return
    for key, member in vars(value).items():
        function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        if inspect.isfunction(function) and function.__name__ == key and (key[0] != "_" or key == "__init__"):
            yield f"{name}.{key}", inspect.unwrap(function)


NAMES = {
    (value.__module__, name): value
    for module in map(importlib.import_module, LIBRARY)
    for name, value in public(module)
}


@pytest.mark.parametrize(
    ("module", "name"), list(NAMES), ids=[".".join(key).removeprefix("ddpm_from_scratch.") for key in NAMES]
)
def test_public_names_are_documented_and_typed(module: str, name: str) -> None:
    value = NAMES[module, name]
    assert inspect.getdoc(value) and value.__doc__, f"{name} has no docstring"
    for called, function in callables(name, value):
        assert function.__doc__ or function.__name__ == "__init__", f"{called} has no docstring"
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            typed = parameter.annotation is not parameter.empty or parameter.name in ("self", "cls")
            assert typed, f"{called}: {parameter.name} has no type"
        assert signature.return_annotation is not signature.empty, f"{called} has no return type"


EQUATIONS = [(n, f) for (module, n), f in NAMES.items() if module.rsplit(".", 1)[-1] in ("gaussian", "schedules")]


@pytest.mark.parametrize(("name", "function"), EQUATIONS, ids=[name for name, _ in EQUATIONS])
def test_equations_name_their_source(name: str, function: Any) -> None:
    """Each equation cites a paper, in the docstring or directly above the line that computes it."""
    papers = ("Ho", "Song", "Salimans", "Nichol", "IDDPM", "Lin et al.", "Diffusers", "Tweedie")
    if name not in ("randn", "nats_to_bits", "snr", "log_snr", "make_betas"):
        assert any(paper in inspect.getsource(function) for paper in papers)


def test_the_promised_names() -> None:
    promised = ["DDPMScheduler", "DDIMScheduler", "UNet2DModel", "DDPMPipeline", "DDIMPipeline", "ddim_invert"]
    assert all(hasattr(ddpm_from_scratch, name) for name in promised)
    assert (PACKAGE / "py.typed").exists()


def test_no_policy_by_assert_and_no_exec() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("exec", "eval"), f"{path.name}:{node.lineno}"
