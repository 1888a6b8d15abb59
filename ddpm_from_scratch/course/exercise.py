'''What an exercise is: data, with no logic of its own.

A lesson's exercises live in `course/exercises/lNN.py`, which ends with `EXERCISES = (Exercise(...), ...)`, in the order
of the lesson. The ids are "NN.1", "NN.2", ... A worked example is `course/exercises/l01.py`. In short:

    def q_sample(x0: Tensor, noise: Tensor, alpha_bar_t: float | Tensor) -> Tensor:
        """Shapes, ranges, what to return. This docstring and the signature become the learner's stub."""
        return alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise

    def q_sample_inputs(generator: torch.Generator, index: int) -> Case:
        """Draw everything from `generator`; let `index` (0, 1, 2, ...) choose shape, rank and t."""
        ...
        return Case({"x0": x0, "noise": noise, "alpha_bar_t": 0.5}, {"t": t, "beta": beta})

    Mistake(lambda x0, noise, alpha_bar_t: alpha_bar_t * x0 + (1 - alpha_bar_t) * noise,
            "you left out both square roots: at t = {t} the variance is not kept")
    Mistake(some_wrong_function,
            lambda at: f"you used β_t where the equation has √β_t: your noise is {at.beta**-0.5:.0f} times too small")

A sentence is about the first case on which the answer departs from the reference. It may name that case's arguments
and facts, and `yours` and `expected`, the two outputs: a string through `{name}`, a callable through its one argument.
It starts with "you", says what the answer did and where to look, and never gives the corrected line.

Arguments are passed by position, so a learner may rename parameters. Random numbers come from arguments (`noise`, or a
`torch.Generator`), never from the global state. `inputs` and `run` use neither the reference nor its relatives: grading
takes them, cut out of the module by their names, into a sandbox that holds no answers (`grading/edition.py`). The
solved notebook shows the reference's source in the stub's place, so it may use only names that the lesson's earlier
cells define.
'''

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Answer = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One random input of an exercise.

    Args:
        args: the arguments, in the order of the stub's parameters.
        facts: further values that a sentence may name; `t`, a number, tells the reader where the case lies.
    """

    args: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer and the sentence for the learner who gave it.

    Args:
        answer: the wrong function (or class), called as the reference is. It may raise on some cases, not on all.
        says: a format string, or a callable from the case's numbers (`at.t`, `at.yours`, ...) to the sentence.
    """

    answer: Answer
    says: str | Callable[[Any], str]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Args:
        id: lesson and number, "01.2".
        title: a few words.
        difficulty: 1 (write the equation down) to 3 (think first).
        minutes: time to solve it.
        equation: what to look at, with its paper: "Ho eq. 4".
        where: title of the lesson's section that derives it.
        lines: line budget of the body, docstring, comments and blank lines apart.
        reference: the right answer; its source is the solution.
        inputs: (generator, index) → `Case`. Floating arguments in float32, tables in float64.
        hints: idea, equation, skeleton.
        mistakes: at least five, no two alike on the inputs.
        alternatives: at least four right answers written differently: in float64 inside, as a loop, in place on a
            copy, by another rank (flattened, or one sample at a time).
        package: dotted name of the finished component with the same signature; "" where there is none.
        given: what stands in the stub below the reference's signature and docstring; by default `...` with the budget.
        starter: the whole stub's source, for a class.
        run: `run(answer, *args)` turns an answer into what is compared (a tensor or number, or a tuple, list or dict of
            them), for classes and training steps. The default calls the answer.
        picture: `picture(answer)` → matplotlib figure of the learner's result beside the reference.
        rtol: relative tolerance where rounding alone does not explain the difference of two right answers; the default
            follows from the dtype.
        cases: number of inputs, at least 3.
        seconds: time limit of one call.
    """

    id: str
    title: str
    difficulty: int
    minutes: int
    equation: str
    where: str
    lines: int
    reference: Answer
    inputs: Callable[[torch.Generator, int], Case]
    hints: tuple[str, str, str]
    mistakes: tuple[Mistake, ...]
    alternatives: tuple[Answer, ...]
    package: str = ""
    given: str = ""
    starter: str = ""
    run: Callable[..., Any] | None = None
    picture: Callable[[Answer], Any] | None = None
    rtol: float | None = None
    cases: int = 4
    seconds: float = 20.0

    @property
    def name(self) -> str:
        """Name of the function or class that the learner writes."""
        return self.reference.__name__

    @property
    def solution(self) -> str:
        """Source of the reference."""
        return textwrap.dedent(inspect.getsource(self.reference)).strip()

    @property
    def stub(self) -> str:
        """Source of the blank that the learner fills: the reference's signature and docstring, and what is given."""
        if self.starter:
            return textwrap.dedent(self.starter).strip()
        definition = ast.parse(self.solution).body[0]
        assert isinstance(definition, ast.FunctionDef)
        head = self.solution.splitlines()[: definition.body[0].end_lineno]
        body = self.given or f"# your code: about {self.lines} line{'s' * (self.lines > 1)}\n..."
        return "\n".join([*head, textwrap.indent(textwrap.dedent(body).strip(), "    ")])

    def case(self, seed: int, index: int, dtype: torch.dtype = torch.float32) -> Case:
        """Case `index`, the same for the same seed, freshly made; float32 tensors and modules cast to `dtype`."""
        case = self.inputs(torch.Generator().manual_seed(1000 * seed + index), index)
        return Case({name: _copy(value, dtype) for name, value in case.args.items()}, case.facts)

    def output(self, answer: Answer, case: Case) -> Any:
        """What `answer` gives on `case`, in the form that is compared."""
        return self.run(answer, *case.args.values()) if self.run else answer(*case.args.values())


def _copy(value: Any, dtype: torch.dtype) -> Any:
    """A copy, so that an answer that writes into its inputs spoils no table of the course."""
    if isinstance(value, torch.nn.Module):
        return value.to(dtype)
    if isinstance(value, torch.Tensor):
        wanted = dtype if value.dtype == torch.float32 else value.dtype
        return value.detach().to(wanted, copy=True).requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(_copy(item, dtype) for item in value)
    return value
