"""The exercise engine: what an answer did, found by replaying the reference and the known mistakes beside it.

`grade(exercise, answer)` runs the answer on several random inputs and returns a `Verdict`. Of what the answer prints it
shows the first call's first lines. It records nothing, leaves the global random states and PyTorch's global settings as
they were, and never compares an answer with itself.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from dataclasses import dataclass
from types import CodeType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .attempt import Outcome, attempt, fence, in_words
from .deadline import OutOfTime
from .exercise import Answer, Case, Exercise

SEEDS = (0, 1)
ROUNDINGS = 128
"""Two right answers may differ by this many units of rounding of the coarser dtype, relative to the value and to the
median size of the expected values."""

NUMBERS = (Tensor, bool, int, float, np.number)
OWN_WORDS = {"": "", " 'value'": "", " 'type'": "you returned a value of type "}
"""How a difference begins at some paths of an output; elsewhere the path is named."""

Outcomes = dict[tuple[int, int], Outcome]


@dataclass(frozen=True)
class Verdict:
    """What the engine found. `mistake` is the index in the exercise's bank; `borrowed`: it is the package's own."""

    status: Literal["right", "wrong", "unattempted"]
    message: str = ""
    mistake: int | None = None
    borrowed: bool = False


def grade(exercise: Exercise, answer: Answer) -> Verdict:
    """The verdict on `answer`, any callable that is called as the exercise's reference is.

    Raises:
        TypeError: `answer` cannot be called.
    """
    if not callable(answer):
        raise TypeError(f'pass the function itself, check("{exercise.id}", {exercise.name}), not its result')
    if is_untouched(exercise, answer):
        return Verdict("unattempted")
    message, mistake = _diagnose(exercise, answer)
    return Verdict("wrong" if message else "right", message, mistake, not message and is_the_packages(answer))


def _diagnose(exercise: Exercise, answer: Answer) -> tuple[str, int | None]:
    """The sentence for a wrong answer and the index of the known mistake; ("", None) for a right one."""
    if (signature := _wrong_signature(exercise, answer)).startswith("your function cannot take"):
        return signature, None
    yours: Outcomes = {}
    for trial in [(seed, index) for seed in SEEDS for index in range(exercise.cases)]:
        yours[trial] = attempt(exercise, answer, exercise.case(*trial))
        if len(yours) == 1 and (lines := yours[trial].printed.splitlines()):
            print(f"Printed {_place(exercise.case(*trial))}:", *lines[:15], *["…"] * (len(lines) > 15), sep="\n")
        if isinstance(yours[trial].error, OutOfTime):
            return f"your code did not finish within {exercise.seconds:g} seconds: does a loop never end?", None
    problems = {t: problem for t in yours if (problem := _problem(exercise, yours[t], exercise.case(*t)))}
    changed = sorted({name for t in yours for name in _changed(yours[t].left, exercise.case(*t))})
    in_place = f"you changed the input {' and '.join(changed)} in place: others still need it, work on a copy"
    if not problems:
        return in_place if changed else _wrong_in_float64(exercise, answer), None
    mistake, first = _known_mistake(exercise, yours), next(iter(problems))
    known = mistake is not None and _sentence(exercise, mistake, exercise.case(*first), yours[first].value)
    message = known or signature or _unknown_mistake(exercise, answer, yours, problems) + _leftovers(exercise, answer)
    return f"{message}; {in_place}" if changed else message, mistake


def _sentence(exercise: Exercise, mistake: int, case: Case, yours: Any) -> str:
    says = exercise.mistakes[mistake].says
    numbers = {"yours": yours, "expected": _expected(exercise, case), **case.args, **case.facts}
    return says.format(**numbers) if isinstance(says, str) else says(SimpleNamespace(**numbers))


# ---------------------------------------------------------------- two outputs side by side


def difference(yours: Any, expected: Any, rtol: float | None = None) -> str:
    """What is wrong with an output, in words; "" where it agrees with the expected one.

    Agreement is of structure, shape, device and value. A wider dtype is as good, a narrower one is not. In a dict,
    "value" stands for the output itself and "type" for the name of its type.
    """
    if yours is None and expected is not None:
        return "you forgot to return: the function gave None"
    mine, theirs = _leaves(yours), _leaves(expected)
    if odd := mine.keys() ^ theirs.keys():
        inside = f"; they part at output{min(odd)}" * ("" not in odd)
        return f"you returned `{_kind(yours)}`, expected `{_kind(expected)}`{inside}"
    problems = ((path, _leaf_difference(mine[path], leaf, rtol)) for path, leaf in theirs.items())
    return next((OWN_WORDS.get(path, f"output{path}: ") + problem for path, problem in problems if problem), "")


def _leaves(value: Any, path: str = "", above: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Tensors, numbers and other leaves by path: "" for a bare one, "[0]" in a tuple, " 'x'" in a dict.

    A container that is inside itself, one of those `above`, is a leaf there.
    """
    if not isinstance(value, dict | list | tuple) or any(value is container for container in above):
        return {path: value}
    items, form = (value.items(), "{} {!r}") if isinstance(value, dict) else (enumerate(value), "{}[{}]")
    return {p: leaf for key, x in items for p, leaf in _leaves(x, form.format(path, key), (*above, value)).items()}


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, dict | list | tuple) else type(value).__name__


def _leaf_difference(yours: Any, expected: Any, rtol: float | None) -> str:
    if not isinstance(expected, NUMBERS):
        same = type(yours) is type(expected) and np.array_equal(yours, expected)  # arrays have no single truth value
        return "" if same else f"{yours!r}, expected {expected!r}"
    if not isinstance(yours, NUMBERS):
        return f"you returned `{_kind(yours)}`, expected `{_kind(expected)}`"
    numbers = (np.float64(np.clip(x, -1e300, 1e300)) if isinstance(x, int) else x for x in (yours, expected))
    a, b = (torch.as_tensor(x).to_dense() for x in numbers)
    for what, mine, wanted in (("shape", tuple(a.shape), tuple(b.shape)), ("device", a.device, b.device)):
        if mine != wanted:
            return f"your result has {what} {mine}, expected {wanted}"
    coarser = _eps(yours) > _eps(expected) or a.is_floating_point() != b.is_floating_point()
    if a.is_complex() != b.is_complex() or coarser and isinstance(yours, Tensor) and isinstance(expected, Tensor):
        return f"your result has dtype {a.dtype}, expected {b.dtype}" + ": a negative root, no .real?" * a.is_complex()
    one, other = ((torch.view_as_real(x) if x.is_complex() else x).detach().cpu().double() for x in (a, b))
    return _value_difference(one, other, rtol or ROUNDINGS * max(_eps(yours), _eps(expected)))


def _eps(value: Any) -> float:
    """Unit of rounding; a Python number counts as float32, since it may have been computed from float32."""
    if isinstance(value, Tensor):
        return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return torch.finfo(torch.float32).eps if isinstance(value, float | np.floating) else 0.0


def _value_difference(a: Tensor, b: Tensor, rtol: float) -> str:
    finite = b.isfinite()
    sizes = b[finite & (b != 0)].abs()
    atol = rtol * float(sizes.median() if len(sizes) else 1)
    wrong = ~torch.isclose(a, b, rtol, atol, equal_nan=True)
    if not wrong.any():
        return ""
    if lost := int((finite & ~a.isfinite()).sum()):
        return f"{lost} of {a.numel()} values of your result are not finite"
    ratio, offset = float((a * b).sum() / (b * b).sum()), float((a - b).mean())
    if a.numel() > 1 and torch.allclose(a, ratio * b, rtol, atol):
        known = {0.0: "zero", -1.0: "the negative of the right one"}
        return f"your result is {known.get(round(ratio, 5), f'{_apart(ratio, 1)[0]} times the right one')} everywhere"
    if a.numel() > 1 and torch.allclose(a, b + offset, rtol, atol):
        return f"your result is off by the same {offset:+.4g} everywhere"
    first = tuple(wrong.nonzero()[0].tolist())
    place = f"{int(wrong.sum())} of {a.numel()} values are wrong, the first at index {list(first)}: " if first else ""
    return f"{place}{' where '.join(_apart(float(a[first]), float(b[first])))} is expected"


def _apart(a: float, b: float) -> tuple[str, str]:
    """Two different numbers in as many digits as tell them apart: at least four, whole numbers in full."""
    return next(p for n in range(4 if a % 1 or b % 1 else 15, 18) if (p := (f"{a:.{n}g}", f"{b:.{n}g}"))[0] != p[1])


# ---------------------------------------------------------------- diagnosis


def _expected(exercise: Exercise, case: Case) -> Any:
    with fence():
        return exercise.output(exercise.reference, case)


def _problem(exercise: Exercise, out: Outcome, case: Case, rtol: float | None = None) -> str:
    return in_words(out.error) if out.error else difference(out.value, _expected(exercise, case), rtol or exercise.rtol)


def _changed(left: Case, case: Case) -> set[str]:
    """Names of the arguments in which a call changed a number, or how many there are."""
    before, after = _leaves(case.args), _leaves(left.args)
    changed = {path for path, x in before.items() if isinstance(x, NUMBERS) and difference(after.get(path), x)}
    return {path.split("'")[1] for path in changed | (after.keys() - before.keys())}


def _known_mistake(exercise: Exercise, yours: Outcomes) -> int | None:
    """Index of the mistake that does on every input what the answer does; None where that is only to raise."""

    def matches(mistake: Answer) -> bool:
        replays = ((mine, attempt(exercise, mistake, exercise.case(*trial))) for trial, mine in yours.items())
        return not any(difference(mine.value, replay.value, exercise.rtol) for mine, replay in replays)

    if all(outcome.error or outcome.value is None for outcome in yours.values()):
        return None
    return next((number for number, mistake in enumerate(exercise.mistakes) if matches(mistake.answer)), None)


def _unknown_mistake(exercise: Exercise, answer: Answer, yours: Outcomes, problems: dict[tuple[int, int], str]) -> str:
    """What can be said of a wrong answer outside the bank, about the first case (by t) on which it departs."""
    in_order = sorted(yours, key=lambda trial: exercise.case(*trial).facts.get("t", trial[1]))
    first = next(trial for trial in in_order if trial in problems)
    if problems[first].startswith("you "):
        return problems[first]
    again = attempt(exercise, answer, exercise.case(*first), global_seed=1)
    if not again.error and not yours[first].error and difference(again.value, yours[first].value):
        return "two calls with the same input differ: draw and keep nothing outside a call, use what the inputs give"
    place, *right = (_place(exercise.case(*t)) for t in (first, *(t for t in in_order if t not in problems)))
    right_at = f"; right {right[0]}" if right and place not in right and "=" in place else ""
    mixed = " has shape " not in problems[first] and _mixes_batch(exercise, answer, exercise.case(*first))
    return f"{place}, {problems[first]}{right_at}" + "; the result for one sample depends on the others" * mixed


def _leftovers(exercise: Exercise, answer: Answer) -> str:
    """The notebook's numbers and tensors that the answer uses and the reference does not, in words."""
    names, variables = _global_names(answer) - _global_names(exercise.reference), getattr(answer, "__globals__", {})
    found = sorted(name for name in names if isinstance(variables.get(name), NUMBERS))
    return "".join(f"; it uses `{name}`, a variable of the notebook, not one of its arguments" for name in found)


def _global_names(function: Answer) -> set[str]:
    """Names that a function, its comprehensions included, looks up outside itself; none for other callables."""
    code = getattr(function, "__code__", None)
    codes = [code, *(c for c in code.co_consts if isinstance(c, CodeType))] if code else []
    return {step.argval for c in codes for step in dis.get_instructions(c) if step.opname == "LOAD_GLOBAL"}


def _place(case: Case) -> str:
    """The case in words: its t, the shape of its first tensor and its words, else its arguments."""
    shapes = [f"{name} of shape {tuple(v.shape)}" for name, v in case.args.items() if isinstance(v, Tensor)][:1]
    words = [f"{name} = {v}" for name, v in case.args.items() if isinstance(v, str) and shapes]
    t = f"at t = {case.facts['t']} " if "t" in case.facts else ""
    plain = ((name, textwrap.shorten(str(value), 60, placeholder=" …")) for name, value in case.args.items())
    named = shapes + words or [f"{name} = {v}" for name, v in plain if "<" not in v and "tensor(" not in v]
    return f"{t}with {', '.join(named)}"


def _mixes_batch(exercise: Exercise, answer: Answer, case: Case) -> bool:
    """Whether the last sample comes out differently without the rest of its batch, where the reference's does not."""
    size = next((len(value) for value in case.args.values() if isinstance(value, Tensor) and value.ndim), 0)

    def last(value: Any) -> Any:
        return value[-1:].clone() if isinstance(value, Tensor) and value.ndim and len(value) == size else value

    def differs(function: Answer) -> bool | None:  # None: it fails on one of the two
        alone = Case({name: last(value) for name, value in case.args.items()})
        one, all_of_them = attempt(exercise, function, alone), attempt(exercise, function, case)
        return None if one.error or all_of_them.error else bool(difference(one.value, last(all_of_them.value)))

    return size > 1 and differs(exercise.reference) is False and differs(answer) is True


def _wrong_in_float64(exercise: Exercise, answer: Answer) -> str:
    """What goes wrong when an answer that is right so far gets float64 inputs; float32's precision is enough."""
    rtol = exercise.rtol or ROUNDINGS * torch.finfo(torch.float32).eps

    def case(index: int) -> Case:
        return exercise.case(0, index, torch.float64)

    problems = (_problem(exercise, attempt(exercise, answer, case(n)), case(n), rtol) for n in range(exercise.cases))
    return next((f"your float32 result is right, but with float64 inputs {text}" for text in problems if text), "")


def _wrong_signature(exercise: Exercise, answer: Answer) -> str:
    args, parameters = exercise.case(0, 0).args, inspect.signature(exercise.reference).parameters
    try:
        taken = inspect.signature(answer).bind(*args.values()).arguments
    except (TypeError, ValueError) as error:  # a ValueError: a built-in function may have no signature
        accepted = exercise.run and list(parameters) != list(args) or isinstance(error, ValueError)
        return "" if accepted else f"your function cannot take ({', '.join(args)}): {error}"
    moved = taken.keys() == args.keys() and list(taken) != list(args)
    return f"your function takes ({', '.join(taken)}), and is called with ({', '.join(args)})" * moved


# ---------------------------------------------------------------- whose code it is


def is_the_packages(answer: Answer) -> bool:
    """Whether the answer is the package's own, a finished component or the reference of an exercise."""
    return str(getattr(inspect.unwrap(answer), "__module__", "")).startswith("ddpm_from_scratch.")


def is_untouched(exercise: Exercise, answer: Answer) -> bool:
    """Whether the answer is the stub as it was handed out, docstrings and comments apart.

    A function, or the methods of a class, are compared as syntax trees; a function without source, as bytecode.
    """
    functions = [f for f in vars(answer).values() if inspect.isfunction(f)] if inspect.isclass(answer) else [answer]
    try:
        written = [ast.parse(textwrap.dedent(inspect.getsource(function))).body[0] for function in functions]
    except (OSError, TypeError, SyntaxError):
        blank = next(c for c in compile(exercise.stub, "stub", "exec").co_consts if isinstance(c, CodeType))
        code = getattr(answer, "__code__", None)
        return code is not None and (code.co_code, code.co_consts[1:]) == (blank.co_code, blank.co_consts[1:])
    blanks = [node for node in ast.walk(ast.parse(exercise.stub)) if isinstance(node, ast.FunctionDef)]
    return functions != [] and {_body(node) for node in written} == {_body(node) for node in blanks}


def _body(node: ast.stmt) -> str:
    body = node.body[ast.get_docstring(node) is not None :] if isinstance(node, ast.FunctionDef) else [node]
    return ast.dump(ast.Module(body, []))
