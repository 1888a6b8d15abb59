"""Exercises of lesson 02, beta schedules."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch import schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

FLOAT64 = torch.float64
LINEAR_BAR = schedules.alpha_bars(schedules.linear())
COSINE_BAR = schedules.alpha_bars(schedules.cosine())


# ---------------------------------------------------------------- 02.1


def scaled_linear(T: int, beta_start: float, beta_end: float) -> Tensor:
    """The schedule in which the standard deviation √β_t, not the variance β_t, rises in a straight line.

    T: number of steps, at least 2.
    beta_start, beta_end: the first and the last β, in (0, 1).
    Returns shape (T,), torch.float64; entry 0 is beta_start and entry T-1 is beta_end.
    """
    return torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2


def scaled_linear_inputs(generator: torch.Generator, index: int) -> Case:
    """The default range, that of latent diffusion, a short one, and a random one."""
    T = (1000, 1000, 5, 60)[index]
    low = float(torch.rand(1, generator=generator)) * 0.01 + 0.001
    beta_start, beta_end = ((1e-4, 0.02), (0.00085, 0.012), (0.1, 0.5), (low, 20 * low))[index]
    return Case({"T": T, "beta_start": beta_start, "beta_end": beta_end})


def _line(T: int, first: float, last: float) -> Tensor:
    return torch.linspace(first, last, T, dtype=FLOAT64)


def scaled_linear_by_loop(T, beta_start, beta_end):
    low, high = math.sqrt(beta_start), math.sqrt(beta_end)
    return torch.tensor([(low + (high - low) * i / (T - 1)) ** 2 for i in range(T)], dtype=FLOAT64)


def scaled_linear_by_numpy(T, beta_start, beta_end):
    return torch.from_numpy(np.square(np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), T)))


def scaled_linear_multiplied_out(T, beta_start, beta_end):
    u = torch.arange(T, dtype=FLOAT64) / (T - 1)
    return (1 - u) ** 2 * beta_start + 2 * u * (1 - u) * (beta_start * beta_end) ** 0.5 + u**2 * beta_end


def scaled_linear_in_place(T, beta_start, beta_end):
    result = torch.arange(T, dtype=FLOAT64)
    result *= (beta_end**0.5 - beta_start**0.5) / (T - 1)
    result += beta_start**0.5
    return result.square_()


SCALED_LINEAR = Exercise(
    id="02.1",
    title="A straight line in √β",
    difficulty=1,
    minutes=4,
    equation="Diffusers' scaled_linear",
    where="Four schedules",
    lines=1,
    reference=scaled_linear,
    inputs=scaled_linear_inputs,
    hints=(
        "The straight line belongs to the standard deviation. Draw that line first, then turn it into variances.",
        "√β_t goes evenly from √β_start to √β_end, and β_t is its square. `torch.linspace` contains both ends.",
        "`return torch.linspace(..., ..., T, dtype=torch.float64) ** ...`",
    ),
    mistakes=(
        Mistake(
            lambda T, b0, b1: _line(T, b0, b1),
            "you spaced β_t itself evenly: that is the linear schedule, and its β in the middle is larger",
        ),
        Mistake(
            lambda T, b0, b1: _line(T, b0**0.5, b1**0.5),
            lambda at: (
                "you returned √β_t, the standard deviations; a schedule holds variances: your last entry is "
                f"{float(at.yours[-1]):.3g}, and beta_end is {at.beta_end:.3g}"
            ),
        ),
        Mistake(
            lambda T, b0, b1: _line(T, b0, b1) ** 2,
            lambda at: (
                "you squared a line between the β themselves: your last entry is "
                f"{float(at.yours[-1]):.3g}, and beta_end is {at.beta_end:.3g}"
            ),
        ),
        Mistake(
            lambda T, b0, b1: _line(T, b0**2, b1**2) ** 0.5,
            "you exchanged the root and the square: your line is straight in β², where it should be in √β",
        ),
        Mistake(
            lambda T, b0, b1: _line(T + 1, b0**0.5, b1**0.5)[:-1] ** 2,
            "you stop one step before beta_end: the last entry must be beta_end itself",
        ),
        Mistake(
            lambda T, b0, b1: _line(T + 1, b0**0.5, b1**0.5)[1:] ** 2,
            "you start one step after beta_start: entry 0 holds the papers' β_1, which is beta_start itself",
        ),
        Mistake(
            lambda T, b0, b1: _line(T, b1**0.5, b0**0.5) ** 2,
            "you run from beta_end down to beta_start: the noise grows with t, so β does",
        ),
        Mistake(
            lambda T, b0, b1: torch.exp(_line(T, math.log(b0), math.log(b1))),
            "you spaced the logarithm of β_t evenly: the line should be straight in √β_t",
        ),
        Mistake(
            lambda T, b0, b1: torch.linspace(b0**0.5, b1**0.5, T) ** 2,
            "you made the table in float32: tables stay in float64, and only the last coefficient is rounded",
        ),
        Mistake(
            lambda T, b0, b1: _line(T, float(torch.tensor(b0).sqrt()), float(torch.tensor(b1).sqrt())) ** 2,
            "you took the roots of the two ends in float32, which is what `torch.tensor` makes of a Python number: the "
            "table is float64, but holds float32's digits",
        ),
    ),
    alternatives=(
        scaled_linear_by_loop,
        scaled_linear_by_numpy,
        scaled_linear_multiplied_out,
        scaled_linear_in_place,
    ),
    package="ddpm_from_scratch.schedules.scaled_linear",
    rtol=1e-9,
)


# ---------------------------------------------------------------- 02.2


def betas_from_alpha_bars(alpha_bar: Tensor) -> Tensor:
    """The β of every step whose ᾱ are given: the way back from `alpha_bars`.

    alpha_bar: shape (T,), torch.float64, falling, each in (0, 1); entry 0 holds the papers' ᾱ_1.
    Returns shape (T,), torch.float64; entry 0 holds the papers' β_1.
    """
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def betas_from_alpha_bars_inputs(generator: torch.Generator, index: int) -> Case:
    """ᾱ of the linear schedule, of the cosine one, and of random ones, the last of which fall to almost nothing."""
    T = (1000, 40, 9, 6)[index]
    betas = torch.rand(T, generator=generator, dtype=FLOAT64) * 0.3 + 0.05
    if index == 3:
        betas[-1] = 0.9995
    alpha_bar = LINEAR_BAR if index == 0 else torch.cumprod(1 - betas, 0)
    return Case({"alpha_bar": COSINE_BAR[:500] if index == 2 else alpha_bar}, {"T": 500 if index == 2 else T})


def _divided_by_overwritten(alpha_bar: Tensor) -> Tensor:
    result = alpha_bar.clone()
    for t in range(1, len(result)):
        result[t] /= result[t - 1]
    return 1 - result


def _before(alpha_bar: Tensor, first: Tensor | float = 1.0) -> Tensor:
    """ᾱ one step earlier, `first` at index 0."""
    return torch.cat([torch.as_tensor(first, dtype=alpha_bar.dtype).reshape(1), alpha_bar[:-1]])


def betas_from_alpha_bars_by_loop(alpha_bar):
    result, before = [], 1.0
    for now in alpha_bar:
        result.append(1 - now / before)
        before = now
    return torch.stack(result)


def betas_from_alpha_bars_by_numpy(alpha_bar):
    before = np.concatenate([[1.0], alpha_bar.numpy()[:-1]])
    return torch.from_numpy((before - alpha_bar.numpy()) / before)


def betas_from_alpha_bars_by_logarithm(alpha_bar):
    logs = torch.log(torch.nn.functional.pad(alpha_bar, (1, 0), value=1.0))
    return -torch.expm1(logs.diff())


def betas_from_alpha_bars_in_place(alpha_bar):
    result = alpha_bar.clone()
    result[1:] /= alpha_bar[:-1]
    return result.neg_().add_(1)


BETAS_FROM_ALPHA_BARS = Exercise(
    id="02.2",
    title="From ᾱ back to β",
    difficulty=1,
    minutes=5,
    equation="Ho, above eq. 4",
    where="The cosine schedule",
    lines=1,
    reference=betas_from_alpha_bars,
    inputs=betas_from_alpha_bars_inputs,
    hints=(
        "ᾱ_t has exactly one factor more than ᾱ_{t-1}. How do you get that factor back?",
        "ᾱ_t/ᾱ_{t-1} = α_t = 1-β_t. Before the first step nothing is lost: the ᾱ before entry 0 is 1.",
        "`return 1 - torch.cat([..., alpha_bar[1:] / ...])`: the first entry has no neighbour to divide by",
    ),
    mistakes=(
        Mistake(
            lambda a: 1 - a,
            "you returned 1-ᾱ_t, the noise of all steps up to t; β_t is the noise of one step",
        ),
        Mistake(
            lambda a: a / _before(a),
            "you returned α_t, the share that a step keeps; β_t is the share that it loses",
        ),
        Mistake(
            lambda a: 1 - a[1:] / a[:-1],
            lambda at: f"you lost the first step: {len(at.yours)} ratios of neighbours, but there are {at.T} steps",
        ),
        Mistake(
            lambda a: 1 - a / _before(a, a[0]),
            "your β_1 is 0: you divided ᾱ_1 by itself, or put a 0 in front of the ratios. The first step goes from the "
            "clean image, where ᾱ is 1, to ᾱ_1",
        ),
        Mistake(
            lambda a: torch.cat([1 - a[1:] / a[:-1], a.new_zeros(1)]),
            "you put the ratio of ᾱ_2 and ᾱ_1 at entry 0, and a 0 at the end: every β stands one place too early; what "
            "is missing is the first one, not the last",
        ),
        Mistake(
            lambda a: (1 - a.float() / _before(a.float())).double(),
            "you worked in float32: a small β is the difference of 1 and a number close to 1, and its digits are lost "
            "there",
        ),
        Mistake(
            lambda a: 1 - a / a[0],
            "you divided every ᾱ by the first one; each has to be divided by the one before it",
        ),
        Mistake(
            lambda a: torch.cat([1 - a[:1], 1 - a[:-1] / a[1:]]),
            "you divided the earlier ᾱ by the later one: from the second on, your β are negative",
        ),
        Mistake(
            lambda a: 1 - a / torch.roll(a, 1),
            lambda at: (
                "you rolled the table, which puts the last ᾱ before the first: your β_1 is "
                f"{float(at.yours[0]):.3g}, and a β is never negative"
            ),
        ),
        Mistake(
            lambda a: _before(a) - a,
            "you subtracted neighbouring ᾱ: that is what a step takes of all of x_0, and β_t is what it takes of "
            "what was left",
        ),
        Mistake(
            lambda a: 1 - _before(a) / a,
            "you divided the earlier ᾱ by the later one: that is above 1, and your β are negative",
        ),
        Mistake(
            lambda a: _before(a) / a - 1,
            "you divided what a step takes by the ᾱ after it; β_t is its share of the ᾱ before it",
        ),
        Mistake(
            lambda a: -torch.log(a / _before(a)),
            "you returned -log α_t, which is β_t only in the limit of many small steps: yours is larger everywhere",
        ),
        Mistake(
            lambda a: 1 - (a / _before(a)) ** 0.5,
            "you took a square root: ᾱ is a product of variances' shares, and so is β, with no root in between",
        ),
        Mistake(
            lambda a: torch.cat([a[:1], 1 - a[1:] / a[:-1]]),
            "your β are right but the first: ᾱ_1 is what the first step keeps, and β_1 what it loses",
        ),
        Mistake(
            _divided_by_overwritten,
            "you overwrote the table while you still needed it: from the third entry on you divide by a ratio, not by "
            "the ᾱ before",
        ),
        Mistake(
            lambda a: betas_from_alpha_bars(a).clamp(max=0.999),
            "you capped β, as in exercise 02.3: the last β here is larger, and the way back has to find it",
        ),
    ),
    alternatives=(
        betas_from_alpha_bars_by_loop,
        betas_from_alpha_bars_by_numpy,
        betas_from_alpha_bars_by_logarithm,
        betas_from_alpha_bars_in_place,
    ),
    rtol=1e-9,
)


# ---------------------------------------------------------------- 02.3


def cosine(T: int, s: float, max_beta: float) -> Tensor:
    """The β whose ᾱ is a squared cosine, capped.

    T: number of steps.
    s: the offset of the equation, small and positive.
    max_beta: no β may be larger than this; it is below 1.
    Returns shape (T,), torch.float64; entry 0 holds the papers' β_1.
    """
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def cosine_inputs(generator: torch.Generator, index: int) -> Case:
    """The published setting, a short one, another cap, a random offset."""
    offset = float(torch.rand(1, generator=generator)) * 0.05 + 0.01
    T, s, max_beta = ((1000, 0.008, 0.999), (10, 0.008, 0.999), (50, 0.02, 0.7), (200, offset, 0.99))[index]
    return Case({"T": T, "s": s, "max_beta": max_beta})


def _squared_cosine(T: int, s: float, steps: Tensor | None = None) -> Tensor:
    t = torch.arange(T + 1, dtype=FLOAT64) if steps is None else steps
    return torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2


def _cosine_of(share: Tensor) -> Tensor:
    """The squared cosine, `share` of the way to a right angle."""
    return torch.cos(share * math.pi / 2) ** 2


def _normalised_short_cosine(T: int, s: float) -> Tensor:
    f = _cosine_of((torch.linspace(0, 1, T, dtype=FLOAT64) + s) / (1 + s))
    return _betas(f / f[0])


def _capped(f: Tensor, max_beta: float) -> Tensor:
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def cosine_by_loop(T, s, max_beta):
    def f(t):
        return math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2

    return torch.tensor([min(1 - f(t + 1) / f(t), max_beta) for t in range(T)], dtype=FLOAT64)


def cosine_by_alpha_bar(T, s, max_beta):
    f = _squared_cosine(T, s)
    alpha_bar = f / f[0]
    return torch.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], torch.tensor(max_beta, dtype=FLOAT64))


def cosine_by_numpy(T, s, max_beta):
    f = np.cos((np.linspace(0, 1, T + 1) + s) / (1 + s) * np.pi / 2) ** 2
    return torch.from_numpy(np.minimum(1 - f[1:] / f[:-1], max_beta))


def cosine_in_place(T, s, max_beta):
    f = torch.linspace(0, 1, T + 1, dtype=FLOAT64)
    f += s
    f *= math.pi / (1 + s)
    f.cos_().add_(1)
    return _capped(f, max_beta)


def draw_cosine(answer) -> Figure:
    """ᾱ of the learner's β, over the squared cosine itself."""
    t = torch.arange(1, 1001)
    f = _squared_cosine(1000, 0.008)
    yours = torch.cumprod(1 - answer(1000, 0.008, 0.999).double(), 0)
    with rc_context(plots.STYLE):
        figure = plots.new_figure(7, 2.8)
        plots.draw_curves(figure.axes[0], t, {"f(t)/f(0)": f[1:] / f[0], "from your β": yours}, "steps t", "ᾱ")
    return figure


COSINE = Exercise(
    id="02.3",
    title="The cosine schedule",
    difficulty=2,
    minutes=7,
    equation="IDDPM eq. 17",
    where="The cosine schedule",
    lines=3,
    reference=cosine,
    inputs=cosine_inputs,
    hints=(
        "Tabulate f first, at every step from 0 to T. Then it is exercise 02.2, with a cap.",
        "f(t) = cos²((t/T + s)/(1 + s) · π/2) and β_t = min(1 - f(t)/f(t-1), max_beta), for t = 1 to T. "
        "f(0) is needed too: that makes T + 1 values.",
        "`t = torch.arange(T + 1, dtype=...)`, then `f = torch.cos(...) ** 2`, then one ratio and `.clamp(max=...)`",
    ),
    mistakes=(
        Mistake(
            lambda T, s, m: _capped(_squared_cosine(T, s) ** 0.5, m),
            "you left out the square: your ᾱ is a cosine, not a squared one, and stays high for longer",
        ),
        Mistake(
            lambda T, s, m: _capped(_squared_cosine(T, 0.0), m),
            lambda at: (
                f"you left out the offset s: your first β is {float(at.yours[0]):.2g} "
                f"where {float(at.expected[0]):.2g} is expected"
            ),
        ),
        Mistake(
            lambda T, s, m: _capped(_squared_cosine(T, s), 1.0),
            "you left out the cap: your last β is 1, so ᾱ_T is 0. A sampler with a network that predicts ε starts "
            "there, and divides by √ᾱ_T",
        ),
        Mistake(
            lambda T, s, m: _capped(torch.cos((torch.arange(T + 1, dtype=FLOAT64) / T + s) * math.pi / 2) ** 2, m),
            "you left out the division by 1+s: your angle goes past the right angle, and ᾱ rises again at the end",
        ),
        Mistake(
            lambda T, s, m: (_squared_cosine(T, s) / _squared_cosine(T, s)[0])[1:],
            "you returned ᾱ_t; the schedule is made of β_t",
        ),
        Mistake(
            lambda T, s, m: _squared_cosine(T, s)[1:] / _squared_cosine(T, s)[:-1],
            "you returned α_t, the share that a step keeps; the schedule is made of β_t",
        ),
        Mistake(
            lambda T, s, m: _capped(_squared_cosine(T, s, torch.linspace(0, T, T, dtype=FLOAT64)), m),
            lambda at: (
                f"you made T values of f, which have only {len(at.yours)} neighbours; {at.T} steps need f(0) too"
            ),
        ),
        Mistake(
            lambda T, s, m: torch.cat(
                [torch.zeros(1, dtype=FLOAT64), _capped(_squared_cosine(T, s)[:-1], m)],
            ),
            "you start at f(0)/f(0): your first β is 0, and the last step is missing; entry 0 is the step from 0 to 1",
        ),
        Mistake(
            lambda T, s, m: _capped(
                torch.cos((torch.arange(T + 1, dtype=FLOAT64) / T + s) / (1 + s) * math.pi) ** 2, m
            ),
            "you took the angle up to π: a squared cosine is back at 1 there; it must end at a right angle",
        ),
        Mistake(
            lambda T, s, m: _capped(_cosine_of(torch.arange(T + 1, dtype=FLOAT64) / T + s / (1 + s)), m),
            "you divided only s by 1+s: the whole of t/T + s is divided, so that the angle ends at a right one",
        ),
        Mistake(
            lambda T, s, m: _betas(_squared_cosine(T, s)[1:]).clamp(max=m),
            "you took 1 for the f before the first step: f(0) is a little less, and ᾱ is f(t)/f(0)",
        ),
        Mistake(
            lambda T, s, m: _betas(_squared_cosine(T, s)[:-1]).clamp(max=m),
            "you start one step early: your entry 0 is 1-f(0), and the last step is missing; entry 0 is the step from "
            "0 to 1",
        ),
        Mistake(
            lambda T, s, m: _betas(_cosine_of((torch.linspace(0, 1, T, dtype=FLOAT64) + s) / (1 + s))).clamp(max=m),
            "you spread T values of f from 0 to the end: that leaves one step less between them; f is needed at every "
            "t from 0 to T, T+1 values",
        ),
        Mistake(
            lambda T, s, m: _normalised_short_cosine(T, s).clamp(max=m),
            "you spread T values of f from 0 to the end, so entry 0 is f(0)/f(0) and your first β is 0; f is needed at "
            "every t from 0 to T, T+1 values",
        ),
        Mistake(
            lambda T, s, m: (1 - _squared_cosine(T, s)[1:] / _squared_cosine(T, s)[0]).clamp(max=m),
            "you returned 1-ᾱ_t, the noise of all steps up to t; β_t is the noise of one step",
        ),
        Mistake(
            lambda T, s, m: _capped(_squared_cosine(T, s, torch.arange(1, T + 2, dtype=FLOAT64)), m),
            "you start one step late: your entry 0 is the step from 1 to 2, and the last one goes past the right angle",
        ),
        Mistake(
            lambda T, s, m: (1 - _squared_cosine(T, s)[:-1] / _squared_cosine(T, s)[1:]).clamp(max=m),
            "you divided the earlier f by the later one: that is above 1, and your β are negative",
        ),
        Mistake(
            lambda T, s, m: (1 - _squared_cosine(T, s)[1:] / _squared_cosine(T, s)[:-1]).clamp(min=m),
            "you raised every β to max_beta: it is a cap, the β above it come down to it",
        ),
        Mistake(
            lambda T, s, m: (1 - _squared_cosine(T, s)[1:] / _squared_cosine(T, s)[:-1]).clamp(0, 0.999),
            "you capped at 0.999 whatever max_beta is",
        ),
        Mistake(
            lambda T, s, m: _capped(_cosine_of((torch.arange(T + 1) / T + s) / (1 + s)), m),
            "you made the table in float32, which is what `torch.arange(T + 1) / T` gives: the first β are differences "
            "of numbers close to 1, and digits lost there do not come back",
        ),
        Mistake(
            lambda T, s, m: ((_squared_cosine(T, s)[:-1] - _squared_cosine(T, s)[1:]) / _squared_cosine(T, s)[0]).clamp(
                max=m
            ),
            "you subtracted neighbours of ᾱ: β_t is the share that a step takes of what was left, a ratio",
        ),
        Mistake(
            lambda T, s, m: _capped(_squared_cosine(T, s).float(), m),
            "you rounded f to float32: the first β are differences of numbers close to 1, and lose their digits",
        ),
        Mistake(
            lambda T, s, m: torch.minimum(_capped(_squared_cosine(T, s), 1.0), torch.tensor(m)),
            "you rounded the cap to float32, which is what `torch.tensor` makes of a Python number: your last β is not "
            "{max_beta}",
        ),
    ),
    alternatives=(cosine_by_loop, cosine_by_alpha_bar, cosine_by_numpy, cosine_in_place),
    package="ddpm_from_scratch.schedules.cosine",
    picture=draw_cosine,
    rtol=1e-9,
)


# ---------------------------------------------------------------- 02.4


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The same schedule, moved so that nothing of x_0 is left at the end.

    betas: shape (T,), float64, each in (0, 1), T at least 2.
    Returns shape (T,), float64: √ᾱ is shifted and scaled so that ᾱ_T is exactly 0 and ᾱ_1 is unchanged.
    """
    root = torch.cumprod(1 - betas, dim=0) ** 0.5
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def rescale_inputs(generator: torch.Generator, index: int) -> Case:
    """Latent diffusion's schedule, one that ends far too early, a short and a random one."""
    betas = (
        schedules.scaled_linear(1000, 0.00085, 0.012),
        schedules.linear(100),
        schedules.linear(6, 0.05, 0.4),
        torch.rand(20, generator=generator, dtype=FLOAT64) * 0.1 + 0.02,
    )[index]
    return Case({"betas": betas}, {"T": len(betas), "left": float(torch.prod(1 - betas))})


def _root(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, 0) ** 0.5


def _betas(alpha_bar: Tensor) -> Tensor:
    return 1 - alpha_bar / _before(alpha_bar)


def _rescaled_root(betas: Tensor) -> Tensor:
    root = _root(betas)
    return (root - root[-1]) * root[0] / (root[0] - root[-1])


def rescale_by_loop(betas):
    kept, roots = 1.0, []
    for beta in betas.tolist():
        kept *= 1 - beta
        roots.append(math.sqrt(kept))
    factor = roots[0] / (roots[0] - roots[-1])
    bars = [1.0, *((factor * (root - roots[-1])) ** 2 for root in roots)]
    return torch.tensor([1 - now / before for before, now in zip(bars, bars[1:], strict=False)], dtype=FLOAT64)


def rescale_by_numpy(betas):
    root = np.sqrt(np.cumprod(1 - betas.numpy()))
    root = np.interp(root, [root[-1], root[0]], [0.0, root[0]])
    return torch.from_numpy(1 - np.square(root / np.concatenate([[1.0], root[:-1]])))


def rescale_in_place(betas):
    root = _root(betas)
    first, last = float(root[0]), float(root[-1])
    root -= last
    root *= first / (first - last)
    return _betas(root.square_())


def rescale_by_ratios(betas):
    moved = _root(betas) - _root(betas)[-1]
    return torch.cat([betas[:1], 1 - (moved[1:] / moved[:-1]) ** 2])


def draw_rescale(answer) -> Figure:
    """√ᾱ of a schedule that ends too early, before the rescale and after the learner's."""
    betas = schedules.linear(200)
    lines = {"before": _root(betas), "after yours": _root(answer(betas.clone()).double().clamp(max=1))}
    with rc_context(plots.STYLE):
        figure = plots.new_figure(7, 2.8)
        plots.draw_curves(figure.axes[0], torch.arange(200), lines, "timestep t", "√ᾱ")
    return figure


RESCALE = Exercise(
    id="02.4",
    title="Nothing left at the end",
    difficulty=2,
    minutes=8,
    equation="Lin algorithm 1",
    where="The rescale",
    lines=4,
    reference=rescale_zero_terminal_snr,
    inputs=rescale_inputs,
    hints=(
        "Work on r_t = √ᾱ_t. Shift the whole table so that its end is 0, then stretch it so that its start is where it "
        "was. Then go back to β.",
        "r'_t = (r_t - r_T) · r_1/(r_1 - r_T), then ᾱ'_t = r'_t², then β from ᾱ as in exercise 02.2.",
        "`root = torch.cumprod(...) ** 0.5`, `root = (root - ...) * ... / (... - ...)`, `alpha_bar = ...`, and the "
        "answer to 02.2",
    ),
    mistakes=(
        Mistake(
            lambda b: _betas((_root(b) - _root(b)[-1]) ** 2),
            lambda at: (
                "you shifted and did not stretch, or took the factor from the shifted table, where it is 1: your first "
                f"β is {float(at.yours[0]):.3g}, and it should have stayed {float(at.betas[0]):.3g}"
            ),
        ),
        Mistake(
            lambda b: _betas((_rescaled_root(b) / _root(b)[0]) ** 2),
            "your first β is 0, a step that does nothing: you stretched so that ᾱ_1 is 1, or divided ᾱ_1 by itself; "
            "the first step should stay what it was",
        ),
        Mistake(
            lambda b: _betas(
                (_root(b) ** 2 - _root(b)[-1] ** 2) * _root(b)[0] ** 2 / (_root(b)[0] ** 2 - _root(b)[-1] ** 2)
            ),
            "you shifted and stretched ᾱ itself; the algorithm works on its square root, the scale of x_0",
        ),
        Mistake(
            lambda b: _betas(_rescaled_root(b)),
            "you did not square before going back to β: what you shifted and stretched is √ᾱ",
        ),
        Mistake(
            lambda b: _rescaled_root(b) ** 2,
            "you returned the new ᾱ_t; the schedule is made of β_t",
        ),
        Mistake(
            lambda b: _rescaled_root(b) ** 2 / _before(_rescaled_root(b) ** 2),
            "you returned α_t, the share that a step keeps: your last entry is 0, and the last β must be 1",
        ),
        Mistake(
            lambda b: torch.cat([b[:-1], torch.ones_like(b[:1])]),
            lambda at: (
                "you only set the last β to 1, or ᾱ_T to 0: then the last step alone destroys "
                f"what is left, {at.left**0.5:.2g} of x_0's scale, at once"
            ),
        ),
        Mistake(
            lambda b: b / b[-1],
            "you stretched the β so that the last one is 1: that also changes the first ones, and ᾱ falls too early",
        ),
        Mistake(
            lambda b: 1 - (_rescaled_root(b)[1:] / _rescaled_root(b)[:-1]) ** 2,
            lambda at: f"you lost the first step: you returned {len(at.yours)} β for {at.T} steps",
        ),
        Mistake(
            lambda b: _betas(((_root(b) - _root(b)[-1]) * (_root(b)[0] - _root(b)[-1]) / _root(b)[0]) ** 2),
            "you have the factor upside down: it shrinks what it should stretch, and your ᾱ_1 is too small",
        ),
        Mistake(
            lambda b: _betas(((_root(b) - _root(b)[-1]) / (1 - _root(b)[-1])) ** 2),
            lambda at: (
                "you held the clean image, r = 1, where the first step should be held: your first β is "
                f"{float(at.yours[0]):.4g}, and it should have stayed {float(at.betas[0]):.4g}"
            ),
        ),
        Mistake(
            lambda b: _betas((_rescaled_root(b.float())) ** 2).double(),
            "you worked in float32: ᾱ_1 is close to 1 there, and β_1 loses its digits",
        ),
        Mistake(
            lambda b: _betas((_root(b) - _root(b)[-1] * torch.linspace(0, 1, len(b), dtype=FLOAT64)) ** 2),
            "you took away a share of r_T that grows evenly with t; a straight-line map takes the same shift from "
            "every r_t",
        ),
        Mistake(
            lambda b: _betas(_rescaled_root(b) ** 2).clamp(max=0.999),
            "you capped the last β, as in exercise 02.3: then something of x_0 is left, and here nothing should be",
        ),
    ),
    alternatives=(rescale_by_loop, rescale_by_numpy, rescale_in_place, rescale_by_ratios),
    package="ddpm_from_scratch.schedules.rescale_zero_terminal_snr",
    picture=draw_rescale,
    rtol=1e-9,
)


# ---------------------------------------------------------------- 02.5


def strided_betas(alpha_bar: Tensor, timesteps: Tensor) -> Tensor:
    """The β of a chain that visits only some timesteps of a longer one and is as noisy as it at each of them.

    alpha_bar: ᾱ of every timestep of the long chain, shape (T,), float64.
    timesteps: shape (n,), whole numbers in 0..T-1, rising.
    Returns shape (n,), float64: entry 0 leads from the clean image to timesteps[0].
    """
    now = alpha_bar[timesteps]
    before = torch.cat([torch.ones_like(now[:1]), now[:-1]])
    return 1 - now / before


def strided_betas_inputs(generator: torch.Generator, index: int) -> Case:
    """Even, quadratic and random subsequences of the linear and the cosine schedule."""
    chosen = torch.randperm(998, generator=generator)[:30].sort().values + 1
    timesteps = (
        torch.arange(99, 1000, 100),
        (torch.linspace(1, 31.5, 15) ** 2).long(),
        torch.tensor([199, 599, 999]),
        chosen,
    )[index]
    alpha_bar = COSINE_BAR if index == 2 else LINEAR_BAR
    return Case({"alpha_bar": alpha_bar, "timesteps": timesteps}, {"n": len(timesteps)})


def strided_betas_by_loop(alpha_bar, timesteps):
    result, before = [], 1.0
    for t in timesteps.tolist():
        result.append(1 - float(alpha_bar[t]) / before)
        before = float(alpha_bar[t])
    return torch.tensor(result, dtype=FLOAT64)


def strided_betas_from_products(alpha_bar, timesteps):
    alphas, ends = alpha_bar / _before(alpha_bar), [-1, *timesteps.tolist()]
    return torch.stack([1 - alphas[a + 1 : b + 1].prod() for a, b in zip(ends, ends[1:], strict=False)])


def strided_betas_by_padding(alpha_bar, timesteps):
    padded = torch.cat([alpha_bar.new_ones(1), alpha_bar])
    previous = torch.cat([timesteps.new_tensor([-1]), timesteps[:-1]])
    return 1 - padded[timesteps + 1] / padded[previous + 1]


def strided_betas_in_place(alpha_bar, timesteps):
    result = alpha_bar[timesteps].clone()
    result[1:] /= alpha_bar[timesteps[:-1]]
    return result.neg_().add_(1)


STRIDED_BETAS = Exercise(
    id="02.5",
    title="Fewer steps, the same noise",
    difficulty=2,
    minutes=5,
    equation="IDDPM eq. 19",
    where="T is not the number of sampling steps",
    lines=3,
    reference=strided_betas,
    inputs=strided_betas_inputs,
    hints=(
        "The short chain must have the long one's ᾱ at every timestep that it visits. Write those down, then think of "
        "exercise 02.2.",
        "β_i = 1 - ᾱ(τ_i)/ᾱ(τ_{i-1}), where τ_1, τ_2, … are the visited timesteps, and the ᾱ before the first is 1.",
        "`now = ...`, `before = torch.cat([torch.ones_like(...), ...])`, and one line that uses both",
    ),
    mistakes=(
        Mistake(
            lambda a, t: _betas(a)[t],
            lambda at: (
                "you have the β of the long chain at the visited timesteps, the noise of one short step each: after "
                f"your {at.n} steps ᾱ is {float(torch.prod(1 - at.yours)):.3g}, and it should be "
                f"{float(at.alpha_bar[at.timesteps[-1]]):.3g}"
            ),
        ),
        Mistake(
            lambda a, t: _betas(a)[t] * t.diff(prepend=t.new_tensor([-1])),
            "you multiplied the β by the number of steps skipped: shares of a shrinking rest do not add up, and β "
            "changes on the way",
        ),
        Mistake(
            lambda a, t: 1 - a[t],
            "you returned 1-ᾱ_t, the noise since the clean image; each β is the noise since the timestep before",
        ),
        Mistake(
            lambda a, t: a[t] / _before(a[t]),
            "you returned the share that a step keeps; β is the share that it loses",
        ),
        Mistake(
            lambda a, t: 1 - a[t][1:] / a[t][:-1],
            lambda at: f"you lost the first step, from the clean image: {len(at.yours)} values for {at.n} timesteps",
        ),
        Mistake(
            lambda a, t: 1 - a[t] / _before(a[t], a[0]),
            "you took ᾱ at timestep 0 for the start: t = 0 has had one step of noise, the clean image has ᾱ = 1",
        ),
        Mistake(
            lambda a, t: 1 - _before(a[t]) / a[t],
            "you divided the earlier ᾱ by the later one: your β are negative",
        ),
        Mistake(
            lambda a, t: 1 - a[t - 1] / _before(a[t - 1]),
            "you looked ᾱ up one timestep early: `timesteps` holds indices of the table already",
        ),
        Mistake(
            lambda a, t: 1 - a[t + 1] / _before(a[t + 1]),
            "you looked ᾱ up one timestep late: `timesteps` holds indices of the table already",
        ),
        Mistake(
            lambda a, t: torch.stack(
                [_betas(a)[i + 1 : j + 1].sum() for i, j in zip([-1, *t.tolist()], t.tolist(), strict=False)]
            ),
            "you added up the β of the timesteps in between: each takes its share of what the ones before it left, so "
            "the shares do not add up",
        ),
        Mistake(
            lambda a, t: 1 - a[t] / torch.roll(a[t], 1),
            lambda at: (
                "you rolled the table, which puts the noisiest ᾱ before the first: your entry 0 is "
                f"{float(at.yours[0]):.3g}, and a β is never negative"
            ),
        ),
        Mistake(
            lambda a, t: 1 - a[t] / _before(a[t], a[-1]),
            "you looked up index -1 for the clean image: in Python that is the last entry, the noisiest one",
        ),
        Mistake(
            lambda a, t: 1 - a[t] / _before(a[t], a[t][0]),
            "your first β is 0: you divided the first ᾱ by itself; before it comes the clean image, with ᾱ = 1",
        ),
        Mistake(
            lambda a, t: torch.flip(1 - a[t] / _before(a[t]), (0,)),
            "you returned them from the last step to the first: `timesteps` rises, and so goes the answer",
        ),
        Mistake(
            lambda a, t: _before(a[t]) - a[t],
            "you subtracted neighbouring ᾱ: β is the share that a step takes of what was left, a ratio",
        ),
    ),
    alternatives=(
        strided_betas_by_loop,
        strided_betas_from_products,
        strided_betas_by_padding,
        strided_betas_in_place,
    ),
    rtol=1e-8,
)


# ---------------------------------------------------------------- 02.6


def short_linear(T: int) -> Tensor:
    """A linear schedule of T steps that destroys an image as the one with 1000 steps does.

    T: number of steps, from 50 to 1000; at T = 1000 the β run from 1e-4 to 0.02.
    Returns shape (T,), torch.float64. For every T, the last β over the first and the sum of all β are the same.
    """
    scale = 1000 / T
    return torch.linspace(scale * 1e-4, scale * 0.02, T, dtype=torch.float64)


CLINIC_GIVEN = """
# the schedule of the broken run: mend it
return torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
"""


def short_linear_inputs(generator: torch.Generator, index: int) -> Case:
    """Round numbers of steps and a random one."""
    T = (200, 100, 500, int(torch.randint(51, 99, (1,), generator=generator)))[index]
    return Case({"T": T}, {"steps": T})


def short_linear_by_loop(T):
    return torch.tensor([(0.1 + 19.9 * i / (T - 1)) / T for i in range(T)], dtype=FLOAT64)


def short_linear_by_package(T):
    return schedules.linear(T, 0.1 / T, 20 / T)


def short_linear_by_numpy(T):
    return torch.from_numpy(np.linspace(1e-4, 0.02, T) * 1000 / T)


def short_linear_in_place(T):
    betas = _line(T, 1e-4, 0.02)
    betas *= 1000
    betas /= T
    return betas


def _same_end(T):
    """The range scaled until ᾱ_T is that of 1000 steps, to the last digit."""
    low, high = 0.5 * 1000 / T, 1000 / T
    for _ in range(60):
        middle = (low + high) / 2
        more = torch.log1p(-_line(T, middle * 1e-4, middle * 0.02)).sum() < LINEAR_BAR[-1].log()
        low, high = (low, middle) if more else (middle, high)
    return _line(T, low * 1e-4, low * 0.02)


def _left(at) -> str:
    return f"{float(torch.prod(1 - at.yours.double())):.2g}"


SHORT_LINEAR = Exercise(
    id="02.6",
    title="Bug clinic: the schedule of somebody else's T",
    difficulty=2,
    minutes=6,
    equation="Ho section 4",
    where="Bug clinic",
    lines=2,
    reference=short_linear,
    given=CLINIC_GIVEN,
    inputs=short_linear_inputs,
    hints=(
        "What decides how much is left at the end is the sum of all β. What happens to that sum when T changes?",
        "The sum is T · (β_1 + β_T)/2. With fewer steps, every step has to do more: how many times more? If both ends "
        "grow by the same factor, their ratio stays.",
        "`scale = ...`, then the same line with both ends multiplied",
    ),
    mistakes=(
        Mistake(
            lambda T: _line(T, 1e-4, 0.02),
            lambda at: f"you kept the range that belongs to 1000 steps: after {at.T} steps ᾱ is still {_left(at)}",
        ),
        Mistake(
            lambda T: _line(T, 1e-4 * T / 1000, 0.02 * T / 1000),
            lambda at: f"you scaled the wrong way: fewer steps must each do more, and with yours ᾱ ends at {_left(at)}",
        ),
        Mistake(
            lambda T: _line(T, 1e-4, 0.02 * 1000 / T),
            "you scaled the last β only: the end is nearly right, but the first steps are too gentle, and the ratio of "
            "the two ends has changed",
        ),
        Mistake(
            lambda T: _line(T, 1e-4, 20.1 / T - 1e-4),
            "you kept the first β and the sum: the end is right, but the first steps are too gentle, since the ratio "
            "of the last β to the first has changed",
        ),
        Mistake(
            lambda T: _line(T, 20.1 / T - 0.02, 0.02),
            "you kept the last β and the sum: your schedule does nearly all its work at the start, and the ratio of "
            "the last β to the first has changed",
        ),
        Mistake(
            _same_end,
            lambda at: (
                f"you made ᾱ_T exactly that of 1000 steps; asked is the same sum of the β, and yours is "
                f"{float(at.yours.sum()):.4f} where it should be {float(at.expected.sum()):.4f}"
            ),
        ),
        Mistake(
            lambda T: strided_betas(LINEAR_BAR, (torch.linspace(1000 / T, 1000, T)).round().long() - 1),
            "you took T of the 1000 ᾱ and the β between them: as noisy on the way as the long chain, but not linear",
        ),
        Mistake(
            lambda T: torch.full((T,), 10.05 / T, dtype=FLOAT64),
            "you made all β equal: the sum is right, but the ratio of the last β to the first is 1",
        ),
        Mistake(
            lambda T: _line(T, 1e-4, 0.02) * (1000 // T),
            lambda at: f"you rounded 1000/{at.T} down to a whole number: the sum of your β is a little too small",
        ),
        Mistake(
            lambda T: _line(T, 0.1 / (T - 1), 20 / (T - 1)),
            "you counted T-1 steps, the gaps between the β; all T of them add noise",
        ),
        Mistake(
            lambda T: _line(T, 1e-4 * (1000 / T) ** 0.5, 0.02 * (1000 / T) ** 0.5),
            lambda at: f"you scaled by a square root: β is a variance, and variances add; ᾱ ends at {_left(at)}",
        ),
        Mistake(
            lambda T: _line(T, 1e-4 * (1000 / T) ** 2, min(0.02 * (1000 / T) ** 2, 0.999)),
            "you scaled twice: the β now sum up to much more than those of 1000 steps",
        ),
        Mistake(
            lambda T: schedules.linear()[torch.linspace(0, 999, T).round().long()],
            lambda at: (
                "you picked T of the 1000 β: each of them is still the noise of one of a thousand steps, and after "
                f"{at.T} of them ᾱ is {_left(at)}"
            ),
        ),
        Mistake(
            lambda T: schedules.rescale_zero_terminal_snr(_line(T, 1e-4, 0.02)),
            "you forced ᾱ_T to 0: that mends the last step, but the schedule on the way is still another one than that "
            "of 1000 steps",
        ),
        Mistake(
            lambda T: torch.cat([_line(T, 1e-4, 0.02)[:-1], torch.tensor([0.999], dtype=FLOAT64)]),
            "you made the last β large: one step then has to undo what the others left, and no network can",
        ),
        Mistake(
            lambda T: schedules.cosine(T),
            "you took the cosine schedule: it does not know this bug, but the exercise asks for the linear one",
        ),
        Mistake(
            lambda T: torch.linspace(0.1 / T, 20 / T, T),
            "you made the table in float32: tables stay in float64",
        ),
    ),
    alternatives=(
        short_linear_by_loop,
        short_linear_by_package,
        short_linear_by_numpy,
        short_linear_in_place,
    ),
    rtol=1e-9,
)


BROKEN = schedules.linear(100)
"""The β of the bug clinic's run."""


EXERCISES = (SCALED_LINEAR, BETAS_FROM_ALPHA_BARS, COSINE, RESCALE, STRIDED_BETAS, SHORT_LINEAR)
