"""Exercises of lesson 01, the forward process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.data import load_dataset

BETAS = schedules.linear()


def value_and_type(answer, *args):
    """What an answer gives and its type, for docstrings that name a dtype: the engine would let a wider one pass."""
    value = answer(*args)
    if isinstance(value, Tensor):
        return {"type": f"{value.dtype} tensor", "value": value}
    return None if value is None else {"type": type(value).__name__, "value": None}


# ---------------------------------------------------------------- 01.1


def forward_step(x_prev: Tensor, noise: Tensor, beta_t: float | Tensor) -> Tensor:
    """One step of the forward chain, from x_{t-1} to x_t.

    x_prev, noise: any shape, the same; noise is standard normal.
    beta_t: in (0, 1), a number or a tensor that broadcasts against x_prev.
    Returns x_t, of x_prev's shape.
    """
    return (1 - beta_t) ** 0.5 * x_prev + beta_t**0.5 * noise


def forward_step_inputs(generator: torch.Generator, index: int) -> Case:
    """Images, points in the plane, single numbers, and a batch in which every image has its own β."""
    shape = ((4, 3, 8, 8), (7, 2), (5,), (2, 1, 6, 6))[index]
    t = (99, 999, 0, 499)[index]
    x_prev = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    beta = float(BETAS[t])
    beta_t = torch.tensor([beta, 0.3]).reshape(2, 1, 1, 1) if index == 3 else beta
    return Case({"x_prev": x_prev, "noise": noise, "beta_t": beta_t}, {"t": t, "beta": beta})


def forward_step_in_float64(x_prev, noise, beta_t):
    mean, std = torch.as_tensor(1 - beta_t).double().sqrt(), torch.as_tensor(beta_t).double().sqrt()
    return (mean * x_prev.double() + std * noise.double()).to(x_prev.dtype)


def forward_step_by_loop(x_prev, noise, beta_t):
    betas = torch.as_tensor(beta_t, dtype=x_prev.dtype).expand(x_prev.shape[:1] + (1,) * (x_prev.ndim - 1))
    return torch.stack([(1 - b) ** 0.5 * x + b**0.5 * e for x, e, b in zip(x_prev, noise, betas, strict=True)])


def forward_step_in_place(x_prev, noise, beta_t):
    x_t = x_prev.clone()
    x_t *= (1 - beta_t) ** 0.5
    x_t += noise * beta_t**0.5
    return x_t


def forward_step_flat(x_prev, noise, beta_t):
    beta = torch.as_tensor(beta_t, dtype=x_prev.dtype).expand_as(x_prev).reshape(-1)
    return torch.addcmul(torch.sqrt(1 - beta) * x_prev.reshape(-1), beta.sqrt(), noise.reshape(-1)).reshape_as(x_prev)


FORWARD_STEP = Exercise(
    id="01.1",
    title="One step of noise",
    difficulty=1,
    minutes=3,
    equation="Ho eq. 2",
    where="One step",
    lines=1,
    reference=forward_step,
    inputs=forward_step_inputs,
    hints=(
        "Ho eq. 2 names a Gaussian by its mean and its variance. A draw from it is the mean plus the standard "
        "deviation "
        "times `noise`.",
        "q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I). The second argument is a variance.",
        "Fill in two coefficients: `return (...) ** 0.5 * x_prev + (...) ** 0.5 * noise`",
    ),
    mistakes=(
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x + b * e,
            lambda at: (
                f"you used β_t where the draw needs √β_t: your noise is {at.beta**-0.5:.0f} times too small at "
                f"t = {at.t}. β_t is a variance"
            ),
        ),
        Mistake(
            lambda x, e, b: (1 - b) * x + b**0.5 * e,
            "you scaled x_prev by 1-β_t, not by its square root: the variance is not kept, and at t = {t} the signal "
            "shrinks twice as fast as it should",
        ),
        Mistake(
            lambda x, e, b: (1 - b) * x + b * e,
            "you left out both square roots: β_t is a variance, and noise is scaled by a standard deviation",
        ),
        Mistake(
            lambda x, e, b: b**0.5 * x + (1 - b) ** 0.5 * e,
            lambda at: (
                f"you swapped the two coefficients: at t = {at.t} your step keeps {at.beta**0.5:.1%} of the image, "
                "where one step should hardly change it"
            ),
        ),
        Mistake(
            lambda x, e, b: x + b**0.5 * e,
            "you added the noise without shrinking x_prev: the variance grows by β_t at every step (t = {t} here)",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x - b**0.5 * e,
            "you subtracted the noise: as likely a draw, but not the one that `noise` stands for",
        ),
        Mistake(
            lambda x, e, b: (1 - b**0.5) * x + b**0.5 * e,
            "you took the root inside: 1-√β_t where the equation has √(1-β_t)",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x + b**0.5 * torch.randn_like(x),
            "you drew fresh noise and left the argument `noise` unused: no one can repeat your step",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x,
            "you returned the mean only: `noise` is not used",
        ),
        Mistake(
            lambda x, e, b: math.sqrt(1 - b) * x + math.sqrt(b) * e,
            "you made one Python number of β_t: `beta_t` may be a number or a tensor with one β per image, and "
            "`math.sqrt` and `float` take a single number only; `** 0.5` takes the root of both",
        ),
        Mistake(
            lambda x, e, b: torch.sqrt(1 - b) * x + torch.sqrt(b) * e,
            "you took β_t for a tensor: `beta_t` may be a tensor or a plain number, which `torch.sqrt` refuses; `** "
            "0.5` takes the root of both",
        ),
        Mistake(
            lambda x, e, b: (1 - b**2) ** 0.5 * x + b * e,
            "you took β_t for a standard deviation: it is a variance already, so nothing is squared and the noise has "
            "its root",
        ),
        Mistake(
            lambda x, e, b: (1 - b**2) ** 0.5 * x + b**0.5 * e,
            "you scaled x_prev by √(1-β_t²): β_t is a variance already, so nothing is squared",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * (x + e),
            lambda at: (
                f"you gave the noise x_prev's factor √(1-β_t): one step at t = {at.t} then adds noise of nearly the "
                "size of the image"
            ),
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * (x + b**0.5 * e),
            "you added the noise first and shrank both: the noise comes out with variance (1-β_t) β_t, where eq. 2 "
            "gives it β_t (t = {t} here)",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 0.5 * x + b**0.5 + 0 * e,
            "you added the number √β_t itself: it is the size of the noise, and `noise` is not used",
        ),
        Mistake(
            lambda x, e, b: ((1 - b) * x + b * e) ** 0.5,
            "you took one root of the whole sum: each of the two coefficients has its own, and the sum may be negative",
        ),
        Mistake(
            lambda x, e, b: (1 - b) ** 1 / 2 * x + b**1 / 2 * e,
            "you wrote **1/2, which Python reads as (... ** 1) / 2: write ** 0.5",
        ),
    ),
    alternatives=(forward_step_in_float64, forward_step_by_loop, forward_step_in_place, forward_step_flat),
    package="ddpm_from_scratch.gaussian.forward_step",
)


# ---------------------------------------------------------------- 01.2


def alpha_bars(betas: Tensor) -> Tensor:
    """ᾱ of every timestep from the β of every timestep.

    betas: shape (T,), each in (0, 1); entry 0 holds the papers' β_1.
    Returns shape (T,), in betas' dtype; entry 0 holds the papers' ᾱ_1.
    """
    return torch.cumprod(1 - betas, dim=0)


def alpha_bars_inputs(generator: torch.Generator, index: int) -> Case:
    """The linear schedule, long and short, and random ones."""
    betas = (
        BETAS,
        schedules.linear(10, 0.01, 0.3),
        torch.rand(50, generator=generator, dtype=torch.float64) * 0.3 + 0.01,
        torch.rand(7, generator=generator) * 0.8 + 0.1,
    )[index]
    return Case({"betas": betas}, {"T": len(betas)})


def alpha_bars_by_logarithm(betas):
    return torch.exp(torch.cumsum(torch.log1p(-betas), dim=0))


def alpha_bars_in_float64(betas):
    return torch.cumprod(1.0 - betas.double(), 0).to(betas.dtype)


def alpha_bars_by_loop(betas):
    kept, result = 1.0, []
    for beta in betas:
        kept = kept * (1 - beta)
        result.append(kept)
    return torch.stack(result)


def alpha_bars_in_place(betas):
    result = 1 - betas
    for i in range(1, len(result)):
        result[i] *= result[i - 1]
    return result


ALPHA_BARS = Exercise(
    id="01.2",
    title="What is left after t steps",
    difficulty=1,
    minutes=2,
    equation="Ho, above eq. 4",
    where="All steps in one jump",
    lines=1,
    reference=alpha_bars,
    inputs=alpha_bars_inputs,
    run=value_and_type,
    hints=(
        "Every step multiplies the variance of what is left of x_0 by α_t. What do t steps multiply it by?",
        "α_s = 1 - β_s and ᾱ_t = α_1 α_2 ⋯ α_t, for every t. PyTorch has one function for running products.",
        "`return torch.cumprod(..., dim=0)`",
    ),
    mistakes=(
        Mistake(
            lambda b: torch.cumprod(b, 0),
            "you multiplied the β_s: a running product of what each step adds, not of what it keeps",
        ),
        Mistake(
            lambda b: 1 - b,
            lambda at: (
                "you returned α_t, which one step keeps; ᾱ_t is what all steps up to t keep: your last entry is "
                f"{float(at.yours['value'][-1]):.3g}, and {float(at.expected['value'][-1]):.3g} is left after "
                f"{at.T} steps"
            ),
        ),
        Mistake(
            lambda b: 1 - torch.cumprod(1 - b, 0),
            "you returned 1-ᾱ_t, the variance of the noise; ᾱ_t is the part that is left of the signal, and falls "
            "with t",
        ),
        Mistake(
            lambda b: torch.cumprod((1 - b) ** 0.5, 0),
            "you returned √ᾱ_t, the scale of x_0; ᾱ_t itself has no square root",
        ),
        Mistake(
            lambda b: 1 - torch.cumsum(b, 0),
            lambda at: (
                "you subtracted the sum of the β_s, which is right only while that sum is small: after "
                f"{at.T} steps yours is {float(at.yours['value'][-1]):.3g}, and ᾱ is never negative"
            ),
        ),
        Mistake(
            lambda b: torch.exp(-torch.cumsum(b, 0)),
            lambda at: (
                "you took exp(-Σβ), the limit of infinitely many small steps: after these "
                f"{at.T} steps it is {float(at.yours['value'][-1] / at.expected['value'][-1]) - 1:.1%} too large"
            ),
        ),
        Mistake(
            lambda b: torch.cat([torch.ones_like(b[:1]), torch.cumprod(1 - b, 0)[:-1]]),
            "you are one step late: your entry 0 is 1, the ᾱ before any noise, where entry 0 holds the papers' ᾱ_1",
        ),
        Mistake(
            lambda b: torch.cumprod(torch.flip(1 - b, (0,)), 0),
            "you multiplied from the last step back to the first: entry t must hold the steps up to t",
        ),
        Mistake(
            lambda b: torch.cumprod(1 - b**2, 0),
            "you used 1-β_s² as the factor of a step: β_s is a variance already, so nothing is squared",
        ),
        Mistake(
            lambda b: torch.cumprod(1 - b[1:], 0),
            "you left out β_1: your loop starts from β_2, and entry 0 of `betas` is the papers' β_1",
        ),
        Mistake(
            lambda b: torch.cat([torch.ones_like(b[:1]), torch.cumprod(1 - b[1:], 0)]),
            "you left out β_1: your entry 0 is 1, and all later ones lack its factor; the product starts with entry 0 "
            "of `betas`",
        ),
        Mistake(
            lambda b: torch.cumsum(1 - b, 0),
            lambda at: (
                "you added the α_s; what is left of a part of a part is a product: your last entry is "
                f"{float(at.yours['value'][-1]):.3g}, and no share is larger than 1"
            ),
        ),
        Mistake(
            lambda b: 1 - torch.cumprod(b, 0),
            "you multiplied the β_s and took that from 1: multiply what each step keeps, not what it adds",
        ),
        Mistake(
            lambda b: torch.cat([torch.ones_like(b[:1]), torch.cumprod(1 - b, 0)]),
            lambda at: (
                f"you returned {at.T + 1} entries for {at.T} steps: the leading 1 is the clean image, which has no "
                "entry in the table"
            ),
        ),
        Mistake(
            lambda b: (1 - b) ** torch.arange(1, len(b) + 1),
            "you raised the last step's α_t to the power t: that is right only if all steps are alike, and each has "
            "its own β",
        ),
        Mistake(
            lambda b: torch.prod(1 - b),
            "you multiplied all of the steps into one number: every timestep has a product of its own",
        ),
        Mistake(
            lambda b: alpha_bars(b.double()),
            "your numbers are right, but they are float64 whatever the β are: the answer has the dtype of `betas`",
        ),
    ),
    alternatives=(alpha_bars_by_logarithm, alpha_bars_in_float64, alpha_bars_by_loop, alpha_bars_in_place),
    package="ddpm_from_scratch.schedules.alpha_bars",
)


# ---------------------------------------------------------------- 01.3

ALPHA_BAR = schedules.alpha_bars(BETAS)


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor, t: Tensor) -> Tensor:
    """x_t of a whole batch in one jump, each sample at its own timestep.

    x0, noise: shape (B, ...), the same: images (B, C, H, W), points (B, 2), ...; noise is standard normal.
    alpha_bar: ᾱ of every timestep, shape (T,), float64.
    t: shape (B,), whole numbers in 0..T-1, one per sample.
    Returns x_t, of x0's shape and dtype.
    """
    alpha_bar_t = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    x_t = alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise
    return x_t.to(x0.dtype)


def add_noise_inputs(generator: torch.Generator, index: int) -> Case:
    """First 8 images of 8 × 8 pixels, so that a coefficient on the wrong axis does not raise; last a batch of one."""
    shape = ((8, 1, 8, 8), (6, 2), (3, 3, 6, 6), (5,), (1, 1, 4, 4))[index]
    t = torch.randint(1, 999, shape[:1], generator=generator)
    if index < 4:
        t[:3] = torch.tensor([200, 0, 999])
    x0 = torch.rand(shape, generator=generator) * 2 - 1
    noise = torch.randn(shape, generator=generator)
    return Case({"x0": x0, "noise": noise, "alpha_bar": ALPHA_BAR, "t": t}, {"first": int(t[0]), "count": len(t)})


def _coefficients(x0, alpha_bar, t):
    a = alpha_bar[t].to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
    return a, 1 - a


def add_noise_by_loop(x0, noise, alpha_bar, t):
    samples = []
    for image, eps, step in zip(x0, noise, t.tolist(), strict=True):
        a = float(alpha_bar[step])
        samples.append(a**0.5 * image + (1 - a) ** 0.5 * eps)
    return torch.stack(samples)


def add_noise_roots_first(x0, noise, alpha_bar, t):
    signal, rest = alpha_bar.sqrt()[t].to(x0.dtype), (1 - alpha_bar).sqrt()[t].to(x0.dtype)
    while signal.ndim < x0.ndim:
        signal, rest = signal[..., None], rest[..., None]
    return signal * x0 + rest * noise


def add_noise_in_place(x0, noise, alpha_bar, t):
    x_t = x0.clone()
    for i in range(len(x0)):
        x_t[i] *= float(alpha_bar[t[i]]) ** 0.5
        x_t[i] += noise[i] * (1 - float(alpha_bar[t[i]])) ** 0.5
    return x_t


def add_noise_flat(x0, noise, alpha_bar, t):
    a = alpha_bar[t][:, None]
    flat = a.sqrt() * x0.reshape(len(x0), -1).double() + (1 - a).sqrt() * noise.reshape(len(x0), -1).double()
    return flat.to(x0.dtype).reshape(x0.shape)


def add_noise_wrong_axis(x0, noise, alpha_bar, t):
    a = alpha_bar[t].to(x0.dtype)
    return a**0.5 * x0 + (1 - a) ** 0.5 * noise


def add_noise_no_roots(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return a * x0 + b * noise


def add_noise_root_inside(x0, noise, alpha_bar, t):
    a, _ = _coefficients(x0, alpha_bar, t)
    return a**0.5 * x0 + (1 - a**0.5) * noise


def add_noise_squared(x0, noise, alpha_bar, t):
    a, _ = _coefficients(x0, alpha_bar, t)
    return a * x0 + (1 - a**2) ** 0.5 * noise


def add_noise_swapped(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return b**0.5 * x0 + a**0.5 * noise


def add_noise_one_early(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t - 1)
    return a**0.5 * x0 + b**0.5 * noise


def add_noise_first_t(x0, noise, alpha_bar, t):
    a = float(alpha_bar[t[0]])
    return a**0.5 * x0 + (1 - a) ** 0.5 * noise


def add_noise_no_shrinking(x0, noise, alpha_bar, t):
    _, b = _coefficients(x0, alpha_bar, t)
    return x0 + b**0.5 * noise


def add_noise_fresh(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return a**0.5 * x0 + b**0.5 * torch.randn_like(x0)


def add_noise_clipped(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return (a**0.5 * x0 + b**0.5 * noise).clamp(-1, 1)


def add_noise_mean(x0, noise, alpha_bar, t):
    a, _ = _coefficients(x0, alpha_bar, t)
    return a**0.5 * x0


def add_noise_four_axes(x0, noise, alpha_bar, t):
    a = alpha_bar[t].to(x0.dtype)[:, None, None, None]
    return a**0.5 * x0 + (1 - a) ** 0.5 * noise


def add_noise_two_axes(x0, noise, alpha_bar, t):
    a = alpha_bar[t].to(x0.dtype)[:, None]
    return a**0.5 * x0 + (1 - a) ** 0.5 * noise


def add_noise_noise_root_missing(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return a**0.5 * x0 + b * noise


def add_noise_signal_root_missing(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return a * x0 + b**0.5 * noise


def add_noise_multiplied_again(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar.cumprod(0), t)
    return a**0.5 * x0 + b**0.5 * noise


def add_noise_alpha_bar_for_beta(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, (1 - alpha_bar).cumprod(0), t)
    return a**0.5 * x0 + b**0.5 * noise


def add_noise_one_step(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, 1 - BETAS, t)
    return a**0.5 * x0 + b**0.5 * noise


def add_noise_one_late(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t + 1)
    return a**0.5 * x0 + b**0.5 * noise


def add_noise_subtracted(x0, noise, alpha_bar, t):
    a, b = _coefficients(x0, alpha_bar, t)
    return a**0.5 * x0 - b**0.5 * noise


def add_noise_not_cast(x0, noise, alpha_bar, t):
    return add_noise(x0.double(), noise.double(), alpha_bar, t)


def _not_cast(mistake: Mistake) -> Mistake:
    """The same mistake by an answer that does not come back from the table's float64 either."""

    def answer(x0, noise, alpha_bar, t):
        return mistake.answer(x0.double(), noise.double(), alpha_bar, t)

    return Mistake(answer, f"{mistake.says}. Besides, your result is float64, as the table is, not of x0's dtype")


def draw_add_noise(answer):
    """Eight images at rising t: the learner's row above the reference's."""
    fashion = load_dataset("fashion-10k", "test")
    x0 = torch.stack([fashion[i][0] for i in range(8)])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 50, 100, 200, 300, 450, 700, 999])
    yours = answer(x0.clone(), noise.clone(), ALPHA_BAR.clone(), t.clone())
    rows = torch.cat([yours.to(x0.dtype), add_noise(x0, noise, ALPHA_BAR, t)])
    return plots.grid_figure(rows, titles=[f"t = {int(step)}" for step in t], row_labels=["yours", "reference"])


ADD_NOISE_MISTAKES = (
    Mistake(
        add_noise_wrong_axis,
        "you multiplied by ᾱ of shape ({count},) as it stands: it lines up with the last axis, so every column of "
        "pixels gets its own t and all images the same ones; t belongs to the first axis",
    ),
    Mistake(
        add_noise_no_roots,
        "you left out both square roots: ᾱ_t and 1-ᾱ_t are variances, and samples are scaled by standard deviations",
    ),
    Mistake(
        add_noise_root_inside,
        "you scaled the noise by 1-√ᾱ_t where the equation has √(1-ᾱ_t): the two variances no longer add up to 1 "
        "(t = {first} for the first sample)",
    ),
    Mistake(
        add_noise_squared,
        "you scaled x0 by ᾱ_t and made the noise fit: that keeps the variance, but takes your ᾱ_t for its square root",
    ),
    Mistake(
        add_noise_swapped,
        "you swapped the two coefficients: at t = 0 your sample is almost pure noise, where it should be almost x0",
    ),
    Mistake(
        add_noise_one_early,
        "you looked ᾱ up one step too early: entry t of the table is the one for index t, and at t = 0 yours "
        "reads the "
        "last entry, so that the cleanest sample comes out as pure noise",
    ),
    Mistake(
        add_noise_first_t,
        "you used the first sample's t = {first} for all {count} samples: every sample has its own",
    ),
    Mistake(
        add_noise_no_shrinking,
        "you added the noise without shrinking x0: at t = 999 your samples still hold all of it",
    ),
    Mistake(
        add_noise_fresh,
        "you drew fresh noise and left the argument `noise` unused: training needs to know the noise it added",
    ),
    Mistake(
        add_noise_clipped,
        "you clipped x_t to [-1, 1]: x_t is not an image, and the noise that you cut off makes it no Gaussian any more",
    ),
    Mistake(
        add_noise_mean,
        "you returned the mean √ᾱ_t x_0 only: `noise` is not used",
    ),
    Mistake(
        add_noise_four_axes,
        "you assumed four axes: right for images, but samples may be points, shape (B, 2), or single numbers, which "
        "come out with four axes",
    ),
    Mistake(
        add_noise_two_axes,
        "you gave ᾱ one further axis, whatever x0 has: that is right for points, shape (B, 2), and for images it lines "
        "up with rows of pixels",
    ),
    Mistake(
        add_noise_noise_root_missing,
        "you left out the root of 1-ᾱ_t: noise is scaled by a standard deviation, and 1-ᾱ_t is a variance",
    ),
    Mistake(
        add_noise_signal_root_missing,
        "you left out the root of ᾱ_t: ᾱ_t is the share of the variance that is left, and x0 is scaled by its root",
    ),
    Mistake(
        add_noise_multiplied_again,
        "you multiplied the table up once more: `alpha_bar` holds the products already, so look up its entry",
    ),
    Mistake(
        add_noise_alpha_bar_for_beta,
        "you took `alpha_bar` for `betas`: it holds the products ᾱ already, so look up its entry",
    ),
    Mistake(
        add_noise_one_step,
        "you used β_t, the noise of the one step at t: the jump has the noise of all steps up to t, 1-ᾱ_t",
    ),
    Mistake(
        add_noise_one_late,
        "you looked ᾱ up at t + 1: t is an index already, 0 to T-1, and the last state, t = 999, has no entry after it",
    ),
    Mistake(
        add_noise_subtracted,
        "you subtracted the noise: as likely a draw, but not the one that `noise` stands for",
    ),
)
LIKELY_WITHOUT_CAST = (
    add_noise_wrong_axis,
    add_noise_four_axes,
    add_noise_two_axes,
    add_noise_no_roots,
    add_noise_noise_root_missing,
    add_noise_root_inside,
    add_noise_one_early,
    add_noise_one_late,
)

ADD_NOISE = Exercise(
    id="01.3",
    title="A batch of noisy images, each at its own t",
    difficulty=2,
    minutes=6,
    equation="Ho eq. 4",
    where="All steps in one jump",
    lines=3,
    reference=add_noise,
    inputs=add_noise_inputs,
    hints=(
        "Look up one ᾱ per sample, then give it as many axes of length 1 as it needs to multiply whole samples.",
        "x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε. PyTorch lines shapes up from the last axis: (B,) must become (B, 1, 1, 1) for "
        "images.",
        "`alpha_bar_t = alpha_bar[t].reshape(-1, *[1] * (...))`, then the equation, then `.to(x0.dtype)`",
    ),
    mistakes=ADD_NOISE_MISTAKES
    + tuple(_not_cast(mistake) for mistake in ADD_NOISE_MISTAKES if mistake.answer in LIKELY_WITHOUT_CAST)
    + (
        Mistake(
            add_noise_not_cast,
            "your numbers are right, but they are float64, as the table is: x_t goes into a network with x0's dtype, "
            "and a float32 network refuses it",
        ),
    ),
    alternatives=(add_noise_by_loop, add_noise_roots_first, add_noise_in_place, add_noise_flat),
    picture=draw_add_noise,
    run=value_and_type,
    cases=5,
)


# ---------------------------------------------------------------- 01.4


def to_model_range(images: Tensor) -> Tensor:
    """8-bit pixels as numbers in [-1, 1].

    images: any shape, torch.uint8, 0 (black) to 255 (white).
    Returns the same shape, torch.float32: 0 becomes -1 and 255 becomes 1.
    """
    return images.to(torch.float32) / 127.5 - 1


def to_model_range_inputs(generator: torch.Generator, index: int) -> Case:
    """Random pixels; the first case lacks black and white, as one image may."""
    shape = ((4, 1, 8, 8), (28, 28), (2, 3, 6, 6), (256,))[index]
    images = torch.randint(20, 230, shape, generator=generator) if index < 3 else torch.arange(256)
    return Case({"images": images.to(torch.uint8)}, {"low": int(images.min()), "high": int(images.max())})


def to_model_range_by_halves(images):
    return (images / 255 - 0.5) / 0.5


def to_model_range_in_float64(images):
    return (2 * (images.double() / 255) - 1).float()


def to_model_range_by_table(images):
    return torch.linspace(-1, 1, 256)[images.long()]


def to_model_range_in_place(images):
    result = images.clone().float()
    result -= 127.5
    result /= 127.5
    return result


def to_model_range_by_loop(images):
    flat = [pixel / 127.5 - 1 for pixel in images.flatten().tolist()]
    return torch.tensor(flat).reshape(images.shape)


def _range(at) -> str:
    yours = at.yours["value"]
    return f"yours run from {float(yours.min()):.2f} to {float(yours.max()):.2f} on pixels {at.low} to {at.high}"


TO_MODEL_RANGE = Exercise(
    id="01.4",
    title="The scale of the data",
    difficulty=1,
    minutes=2,
    equation="Ho section 3.3",
    where="Variance kept, and when it is not",
    lines=1,
    reference=to_model_range,
    inputs=to_model_range_inputs,
    hints=(
        "A straight line takes 0 to -1 and 255 to 1. What is its slope, and where does it cross zero?",
        "The range 0..255 is 255 wide, [-1, 1] is 2 wide, and the middle, 127.5, becomes 0. Convert to float32 first.",
        "`return images.to(torch.float32) / ... - ...`",
    ),
    mistakes=(
        Mistake(
            lambda u: u.float() / 255,
            lambda at: f"you mapped to [0, 1]: {_range(at)}; the noise is centred on 0, so the data should be too",
        ),
        Mistake(
            lambda u: u.float() / 255 - 0.5,
            lambda at: f"you mapped to [-½, ½]: {_range(at)}; the range must be twice as wide",
        ),
        Mistake(
            lambda u: u.float() / 255 - 1,
            lambda at: f"you mapped to [-1, 0]: {_range(at)}; white must become 1",
        ),
        Mistake(
            lambda u: u.float() / 128 - 1,
            "you divided by 128: white (255) becomes 0.992, not 1; there are 255 steps from 0 to 255",
        ),
        Mistake(
            lambda u: u * 2 / 255 - 1,
            "you doubled the pixels while they were still 8-bit: uint8 wraps round at 256, so bright pixels come out "
            "dark; convert first",
        ),
        Mistake(
            lambda u: u.float() * 2 - 1,
            lambda at: f"you took the pixels for numbers in [0, 1]: {_range(at)}; they go up to 255",
        ),
        Mistake(
            lambda u: 1 - u.float() / 127.5,
            "you turned black into 1 and white into -1: the image is inverted",
        ),
        Mistake(
            lambda u: (u.float() - u.float().mean()) / u.float().std(),
            "you standardised by the mean and deviation of this batch: the same pixel then gets another value in every "
            "batch, and no one can turn it back into a pixel",
        ),
        Mistake(
            lambda u: (u.float() - u.min()) / (u.max().float() - u.min()) * 2 - 1,
            lambda at: (
                f"you stretched the batch from its own darkest pixel ({at.low}) to its brightest ({at.high}): "
                "the map must be the same for every batch"
            ),
        ),
        Mistake(
            lambda u: u.double() / 127.5 - 1,
            "your numbers are right, but they are float64: images and networks of this course are float32, as the "
            "docstring says",
        ),
        Mistake(
            lambda u: (2 * u - 255) / 255,
            "you did the arithmetic while the pixels were still 8-bit: uint8 wraps round at 256, and holds no negative "
            "number; convert first",
        ),
        Mistake(
            lambda u: (u - 127.5).to(torch.uint8) / 127.5,
            "you went back to 8-bit before the division: uint8 holds no negative number; convert once, first",
        ),
        Mistake(
            lambda u: u.float() / 127 - 1,
            "you divided by 127: white (255) becomes 1.008, not 1; half of 255 is no whole number",
        ),
        Mistake(
            lambda u: u.float() - 127.5,
            lambda at: f"you centred the pixels and left their scale: {_range(at)}",
        ),
        Mistake(
            lambda u: u.float() / 127.5,
            lambda at: f"you mapped to [0, 2]: {_range(at)}; the noise is centred on 0, so the data should be too",
        ),
        Mistake(
            lambda u: u.float() / u.max() * 2 - 1,
            "you divided by the brightest pixel of this batch, {high}: the map must be the same for every batch",
        ),
    ),
    alternatives=(
        to_model_range_by_halves,
        to_model_range_in_float64,
        to_model_range_by_table,
        to_model_range_in_place,
        to_model_range_by_loop,
    ),
    package="ddpm_from_scratch.data.to_model_range",
    run=value_and_type,
)


# ---------------------------------------------------------------- 01.5


def prior_kl(x0: Tensor, alpha_bar_T: Tensor) -> Tensor:
    """KL(q(x_T | x_0) ‖ N(0, I)) of each sample, in nats.

    x0: shape (B, ...).
    alpha_bar_T: ᾱ at the last timestep, in (0, 1): a tensor of shape (), as `alpha_bar[-1]` is.
    Returns shape (B,): the sum over the elements of each sample.
    """
    mean, variance = alpha_bar_T**0.5 * x0, 1 - alpha_bar_T
    kl = 0.5 * (mean**2 + variance - 1 - torch.log(variance))
    return kl.flatten(1).sum(dim=1)


def prior_kl_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points, with schedules that end too early by more and by less."""
    shape = ((4, 1, 6, 6), (5, 2), (2, 3, 4, 4), (3, 7))[index]
    level = (0.36, 0.05, 0.5, 0.01)[index]
    x0 = torch.rand(shape, generator=generator) * 2 - 1
    alpha_bar_T = torch.tensor(level, dtype=torch.float64)
    return Case({"x0": x0, "alpha_bar_T": alpha_bar_T}, {"level": level, "size": x0[0].numel()})


def _prior_kl(x0, mean, variance):
    return (0.5 * (mean**2 + variance - 1 - math.log(variance))).flatten(1).sum(1)


def prior_kl_simplified(x0, alpha_bar_T):
    size = x0[0].numel()
    return 0.5 * (alpha_bar_T * x0.square().flatten(1).sum(1) - size * (alpha_bar_T + math.log1p(-alpha_bar_T)))


def prior_kl_in_float64(x0, alpha_bar_T):
    mean, variance = alpha_bar_T**0.5 * x0.double(), 1 - alpha_bar_T
    return (0.5 * (mean**2 + variance - 1 - variance.log())).flatten(1).sum(1).to(x0.dtype)


def prior_kl_by_loop(x0, alpha_bar_T):
    variance = 1 - alpha_bar_T
    return torch.stack([(0.5 * (alpha_bar_T * x**2 + variance - 1 - math.log(variance))).sum() for x in x0])


def prior_kl_by_torch(x0, alpha_bar_T):
    q = torch.distributions.Normal(alpha_bar_T**0.5 * x0, (1 - alpha_bar_T) ** 0.5)
    p = torch.distributions.Normal(torch.zeros_like(x0), 1.0)
    return torch.distributions.kl_divergence(q, p).reshape(len(x0), -1).sum(1)


PRIOR_KL = Exercise(
    id="01.5",
    title="The distance of x_T from pure noise",
    difficulty=2,
    minutes=5,
    equation="L_T of Ho eq. 5",
    where="What x_T must be",
    lines=3,
    reference=prior_kl,
    inputs=prior_kl_inputs,
    hints=(
        "q(x_T | x_0) is a Gaussian whose mean and variance Ho eq. 4 gives. Every pixel is independent, so their KLs "
        "add up.",
        "KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² - 1 - log σ²), with μ = √ᾱ_T x_0 and σ² = 1-ᾱ_T.",
        "`mean, variance = ..., 1 - alpha_bar_T`, then `kl = 0.5 * (...)`, then `return kl.flatten(1).sum(dim=1)`",
    ),
    mistakes=(
        Mistake(
            lambda x0, a: 2 * _prior_kl(x0, a**0.5 * x0, 1 - a),
            "you left out the factor ½ of the Gaussian's KL: yours is twice too large",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, a**0.5 * x0, 1 - a) / x0[0].numel(),
            "you averaged over the {size} elements of a sample; independent elements' KLs add up",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, a * x0, 1 - a),
            "you took ᾱ_T x_0 for the mean: eq. 4 has its square root (ᾱ_T = {level} here)",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, x0, 1 - a),
            "you took x_0 itself for the mean: at T only a part of it is left (ᾱ_T = {level} here)",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, a**0.5 * x0, (1 - a) ** 0.5),
            "you put the standard deviation √(1-ᾱ_T) where the formula has the variance",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, 0 * x0, 1 - a),
            "you left out the mean: your KL is the same for every image, where a brighter or darker one is further "
            "away",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, a**0.5 * x0, a),
            "you took ᾱ_T for the variance: eq. 4 gives the noise the rest, 1-ᾱ_T (ᾱ_T = {level} here)",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 - a + math.log(1 - a))).flatten(1).sum(1),
            "you added the logarithm of the variance where it is subtracted: a KL is never negative, and yours can be",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 - a)).flatten(1).sum(1),
            "you left out the logarithm of the variance",
        ),
        Mistake(
            lambda x0, a: (0.5 * ((a * x0**2 + 1) / (1 - a) - 1 + math.log(1 - a))).flatten(1).sum(1),
            "you computed the KL the other way round, from N(0, I) to q(x_T | x_0); it is not symmetric",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, a**0.5 * x0, 1 - a) / math.log(2),
            "you returned bits; the answer is asked in nats, with the natural logarithm",
        ),
        Mistake(
            lambda x0, a: 0.5 * ((a * x0**2).flatten(1).sum(1) - a - math.log(1 - a)),
            "you summed μ² over the elements and added the other terms once: each of the {size} elements has its own "
            "σ² - 1 - log σ²",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 - a - 0.5 * math.log(1 - a))).flatten(1).sum(1),
            "you took log σ where the formula has log σ², which is twice as large",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 + (1 - a) ** 0.5 - 1 - math.log(1 - a))).flatten(1).sum(1),
            "you put σ where the formula has σ²: 1-ᾱ_T is the variance already, without a root",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 + 1 - a - math.log(1 - a))).flatten(1).sum(1),
            "you left out the -1: even N(0, I) itself would be ½ away from N(0, I) in every element",
        ),
        Mistake(
            lambda x0, a: (0.5 * a * x0**2).flatten(1).sum(1),
            "you counted only the mean, ½ μ²: the variance 1-ᾱ_T is not 1 either, and its terms are missing",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 - a - math.log(1 - a))).sum(dim=(1, 2, 3)),
            "you summed over axes 1, 2 and 3: right for images, but samples may be points, shape (B, 2), which have no "
            "axes 2 and 3",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 - a - math.log(1 - a))).sum(),
            "you summed over the batch too: the answer is one number per sample",
        ),
        Mistake(
            lambda x0, a: 0.5 * (a * x0**2 - a - math.log(1 - a)),
            "you stopped one step early: yours is the KL of every element, and those of one sample add up",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a * x0**2 - a - math.log(a))).flatten(1).sum(1),
            "you took the logarithm of ᾱ_T: the variance is 1-ᾱ_T (ᾱ_T = {level} here)",
        ),
        Mistake(
            lambda x0, a: gaussian.normal_kl(a**0.5 * x0, 1 - a, a * 0, a * 0).flatten(1).sum(1),
            "you gave `gaussian.normal_kl` the variance: it takes the logarithm of it",
        ),
        Mistake(
            lambda x0, a: (0.5 * (a**0.5 * x0 - a - math.log(1 - a))).flatten(1).sum(1),
            "you did not square the mean: a dark image is as far away as a bright one",
        ),
        Mistake(
            lambda x0, a: (0.5 * a * x0**2 - a - math.log(1 - a)).flatten(1).sum(1),
            "your ½ is on μ² alone: it belongs to all of the terms, look at your brackets",
        ),
        Mistake(
            lambda x0, a: _prior_kl(x0, a**0.5 * x0, (1 - a) ** 2),
            "you squared 1-ᾱ_T, or gave it to PyTorch's `Normal`, which takes a standard deviation: it is the variance "
            "already",
        ),
    ),
    alternatives=(prior_kl_simplified, prior_kl_in_float64, prior_kl_by_loop, prior_kl_by_torch),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 01.6


def from_s_to_t(alpha_bar_s: Tensor, alpha_bar_t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_t | x_s) = N(factor · x_s, variance · I) for s < t, without x_0.

    alpha_bar_s, alpha_bar_t: ᾱ at the two moments, the same shape; 0 < alpha_bar_t < alpha_bar_s <= 1.
    Returns (factor, variance), each of that shape.
    """
    kept = alpha_bar_t / alpha_bar_s
    return kept**0.5, 1 - kept


def from_s_to_t_inputs(generator: torch.Generator, index: int) -> Case:
    """Moments far apart, neighbours, several at once, and steps from the clean image."""
    if index < 2:
        s, t = ((99, 199), (499, 500))[index]
        return Case({"alpha_bar_s": ALPHA_BAR[s], "alpha_bar_t": ALPHA_BAR[t]}, {"s": s, "t": t})
    shape = ((), (), (5,), (2, 3))[index]
    later = torch.rand(shape, generator=generator) * 0.3 + 0.05
    earlier = later + torch.rand(shape, generator=generator) * 0.5 + 0.1
    return Case({"alpha_bar_s": torch.ones(shape) if index == 3 else earlier, "alpha_bar_t": later})


def from_s_to_t_by_bookkeeping(alpha_bar_s, alpha_bar_t):
    factor = torch.sqrt(alpha_bar_t) / torch.sqrt(alpha_bar_s)
    return factor, (1 - alpha_bar_t) - factor**2 * (1 - alpha_bar_s)


def from_s_to_t_in_float64(alpha_bar_s, alpha_bar_t):
    alpha = alpha_bar_t.double() / alpha_bar_s.double()
    return alpha.sqrt(), 1 - alpha


def from_s_to_t_by_logarithm(alpha_bar_s, alpha_bar_t):
    log_kept = torch.log(alpha_bar_t) - torch.log(alpha_bar_s)
    return torch.exp(log_kept / 2), -torch.expm1(log_kept)


def from_s_to_t_by_loop(alpha_bar_s, alpha_bar_t):
    pairs = zip(alpha_bar_s.flatten(), alpha_bar_t.flatten(), strict=True)
    alphas = torch.stack([t / s for s, t in pairs]).reshape(alpha_bar_t.shape)
    return [alphas.sqrt(), (alpha_bar_s - alpha_bar_t) / alpha_bar_s]


def from_s_to_t_in_place(alpha_bar_s, alpha_bar_t):
    kept = alpha_bar_t.clone()
    kept /= alpha_bar_s
    return kept.sqrt(), kept.mul(-1).add_(1)


def stacked_if_one(answer, alpha_bar_s, alpha_bar_t):
    """What an answer gives; one tensor that holds both results is as good as a pair."""
    value = answer(alpha_bar_s, alpha_bar_t)
    return tuple(value) if isinstance(value, Tensor) and value.shape == (2, *alpha_bar_t.shape) else value


FROM_S_TO_T = Exercise(
    id="01.6",
    title="From one moment to a later one",
    difficulty=2,
    minutes=6,
    equation="Ho eq. 4",
    where="Two moments of one chain",
    lines=2,
    reference=from_s_to_t,
    inputs=from_s_to_t_inputs,
    run=stacked_if_one,
    hints=(
        "Start the derivation of the jump at x_s, not at x_0. Which steps lie between s and t, and what do they keep?",
        "The steps after s keep α_{s+1} ⋯ α_t of the variance. All steps up to t keep ᾱ_t = α_1 ⋯ α_t, those up to s "
        "keep ᾱ_s. What they keep and what they add make 1, as in step 4.",
        "`kept = ...`, a fraction of two ᾱ; then return its root and what is missing to 1",
    ),
    mistakes=(
        Mistake(
            lambda s, t: (t**0.5, 1 - t),
            "you gave the jump from x_0: x_s has some of the shrinking and some of the noise behind it already",
        ),
        Mistake(
            lambda s, t: (t / s, 1 - t / s),
            "your variance is right, but your factor lacks its square root: shares of variance belong to x_s squared",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, (1 - t / s) ** 0.5),
            "your factor is right, but you returned the standard deviation of the noise: its variance is asked for",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, s - t),
            "your factor is right, but your variance is 1-ᾱ_t less 1-ᾱ_s: the noise in x_s shrinks on the way to t "
            "too, so less of it than 1-ᾱ_s arrives",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, 1 - t),
            "your factor is right, but you counted all of the noise in x_t: a part of it came in before s, and x_s "
            "holds it already",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, 1 - (t / s) ** 0.5),
            "your factor is right, but you took it off 1: the variances add up to 1, so square it first",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, t / s),
            "your factor is right, but your variance is what the steps keep: what they add is asked for",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, (1 - t) / (1 - s)),
            "your factor is right, but you divided the two noise variances: variances of independent noises add up, "
            "they do not multiply",
        ),
        Mistake(
            lambda s, t: ((t / s) ** 0.5, (1 - s) / (1 - t) * (1 - t / s)),
            "your factor is right, but your variance is that of the way back, β̃ of Ho eq. 7 (lesson 03): here nothing "
            "is known but x_s",
        ),
        Mistake(
            lambda s, t: (1 - t / s, (t / s) ** 0.5),
            "your two numbers are right, but swapped: first the factor, then the variance",
        ),
        Mistake(
            lambda s, t: ((s / t) ** 0.5, 1 - s / t),
            "you turned the fraction over: your factor is above 1, and steps of noise only ever shrink",
        ),
        Mistake(
            lambda s, t: ((s / t) ** 0.5, 1 - t / s),
            "your variance is right, but you turned the fraction in the factor over: steps of noise only ever shrink",
        ),
        Mistake(
            lambda s, t: ((s * t) ** 0.5, 1 - s * t),
            "you multiplied the two ᾱ: ᾱ_t holds the steps up to s already, so they count twice in yours",
        ),
        Mistake(
            lambda s, t: (t**0.5 - s**0.5, s - t),
            "you subtracted: shares that one step after the other keeps are multiplied, so those of the steps up to s "
            "are divided out",
        ),
        Mistake(
            lambda s, t: ((s - t) ** 0.5, 1 - (s - t)),
            "you subtracted the two ᾱ: shares that one step after the other keeps are multiplied, so those of the "
            "steps up to s are divided out",
        ),
        Mistake(
            lambda s, t: (t / s) ** 0.5,
            "you returned the factor alone: the variance belongs to it, as (factor, variance)",
        ),
    ),
    alternatives=(
        from_s_to_t_by_bookkeeping,
        from_s_to_t_in_float64,
        from_s_to_t_by_logarithm,
        from_s_to_t_by_loop,
        from_s_to_t_in_place,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 01.7


def add_noise_in_any_dtype(x0: Tensor, noise: Tensor, alpha_bar: Tensor, t: Tensor) -> Tensor:
    """x_t of a whole batch, right to the last digit that x0's dtype can hold.

    x0, noise: shape (B, ...), the same, in bfloat16 or float32.
    alpha_bar: ᾱ of every timestep, shape (T,), float64.
    t: shape (B,), whole numbers in 0..T-1.
    Returns x_t, of x0's shape and dtype.
    """
    shape = (-1, *[1] * (x0.ndim - 1))
    signal = (alpha_bar[t] ** 0.5).reshape(shape).to(x0.dtype)
    rest = ((1 - alpha_bar[t]) ** 0.5).reshape(shape).to(x0.dtype)
    return signal * x0 + rest * noise


CLINIC_GIVEN = """
# the broken function: find the line that loses the digits, and mend it
alpha_bar_t = alpha_bar.to(x0.dtype)[t].reshape(-1, *[1] * (x0.ndim - 1))
return alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise
"""


def clinic_inputs(generator: torch.Generator, index: int) -> Case:
    """Grey images and others in bfloat16 and float32, at the first timesteps and further on."""
    shape = ((10, 64), (6, 1, 8, 8), (5, 2), (6, 1, 4, 4), (12, 16))[index]
    first = (0, 3, 100, 30, 0)[index]
    x0, noise = torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)
    x0 = x0 * (index in (1, 2))
    if index not in (2, 4):
        x0, noise = x0.bfloat16(), noise.bfloat16()
    t = torch.arange(first, first + shape[0])
    return Case({"x0": x0, "noise": noise, "alpha_bar": ALPHA_BAR, "t": t}, {"first": first, "last": int(t[-1])})


def value_type_and_digits(answer, x0, noise, alpha_bar, t):
    """What an answer gives in bfloat16 or float32, its type, and whether all digits of float32 are there."""
    if x0.dtype == torch.float64:  # never asked for
        x0, noise = x0.float(), noise.float()
    result = value_and_type(answer, x0, noise, alpha_bar, t)
    right_shape = result is not None and getattr(result["value"], "shape", None) == x0.shape
    if right_shape and x0.dtype == torch.float32:
        level = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
        exact = gaussian.q_sample(x0.double(), noise.double(), level)
        rounding = torch.finfo(torch.float32).eps * (exact.abs() + exact.abs().median())
        lost = bool(((result["value"] - exact).abs() > 16 * rounding).any())
        result["digits"] = "not all of float32's" if lost else "all of float32's"
    return result


def clinic_in_float64(x0, noise, alpha_bar, t):
    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    return (a**0.5 * x0.double() + (1 - a) ** 0.5 * noise.double()).to(x0.dtype)


def clinic_by_loop(x0, noise, alpha_bar, t):
    values = [float(alpha_bar[step]) for step in t]
    return torch.stack([a**0.5 * x + (1 - a) ** 0.5 * e for a, x, e in zip(values, x0, noise, strict=True)])


def clinic_in_place(x0, noise, alpha_bar, t):
    x_t = x0.clone().float()
    for i, step in enumerate(t):
        x_t[i] *= float(alpha_bar[step].sqrt())
        x_t[i] += float((1 - alpha_bar[step]).sqrt()) * noise[i].float()
    return x_t.to(x0.dtype)


def clinic_subtract_first(x0, noise, alpha_bar, t):
    shape = (-1, *[1] * (x0.ndim - 1))
    kept, added = alpha_bar[t].reshape(shape).to(x0.dtype), (1 - alpha_bar)[t].reshape(shape).to(x0.dtype)
    return kept.sqrt() * x0 + added.sqrt() * noise


def clinic_rounded_signal(x0, noise, alpha_bar, t):
    """√ᾱ of a rounded ᾱ is right to a rounding: no digits are lost where nothing is subtracted."""
    shape = (-1, *[1] * (x0.ndim - 1))
    signal = alpha_bar.to(x0.dtype)[t].reshape(shape) ** 0.5
    return signal * x0 + ((1 - alpha_bar[t]) ** 0.5).reshape(shape).to(x0.dtype) * noise


def _clinic(x0, noise, alpha_bar, t, rounded=None, floor=0.0):
    a = alpha_bar[t].to(rounded or x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
    return (a**0.5 * x0 + (1 - a).clamp(min=floor) ** 0.5 * noise).to(x0.dtype)


def clinic_from_rounded_signal(x0, noise, alpha_bar, t):
    signal = (alpha_bar[t] ** 0.5).to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
    return signal * x0 + (1 - signal**2).clamp(min=0) ** 0.5 * noise


def clinic_no_roots(x0, noise, alpha_bar, t):
    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    return (a * x0.double() + (1 - a) * noise.double()).to(x0.dtype)


def clinic_root_inside(x0, noise, alpha_bar, t):
    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    return (a**0.5 * x0.double() + (1 - a**0.5) * noise.double()).to(x0.dtype)


CLINIC = Exercise(
    id="01.7",
    title="Bug clinic: the noise that is not there",
    difficulty=2,
    minutes=5,
    equation="Ho eq. 4",
    where="Bug clinic",
    lines=4,
    reference=add_noise_in_any_dtype,
    given=CLINIC_GIVEN,
    inputs=clinic_inputs,
    hints=(
        "1-ᾱ_t is the difference of two nearly equal numbers. It is exactly as precise as ᾱ_t was when it was taken.",
        "√ᾱ_t and √(1-ᾱ_t) are two ordinary numbers. Compute both from the float64 table, and round each of them "
        "once, last.",
        "`signal = (alpha_bar[t] ** 0.5).reshape(...).to(x0.dtype)` and the same for the noise, then one line",
    ),
    mistakes=(
        Mistake(
            lambda x, e, a, t: _clinic(x, e, a, t),
            "you still round ᾱ_t to x0's dtype before subtracting it from 1: at t = {first} that leaves 1-1",
        ),
        Mistake(
            lambda x, e, a, t: _clinic(x, e, a, t, rounded=torch.float16),
            "you round ᾱ_t to float16: that has more digits than bfloat16, and still none for the first timesteps",
        ),
        Mistake(
            lambda x, e, a, t: _clinic(x, e, a, t, floor=1e-4),
            "you put a floor under 1-ᾱ_t: the noise is no longer 0, but the same at all of the first timesteps, and "
            "the "
            "staircase is still there",
        ),
        Mistake(
            lambda x, e, a, t: _clinic(x, e, a, t.clamp(min=10)),
            "you moved the first timesteps to t = 10: a sample at t = 0 then has the noise of another t",
        ),
        Mistake(
            lambda x, e, a, t: add_noise_in_any_dtype(x, e, a, t.clamp(min=10)),
            "your digits are saved, but you moved the first timesteps to t = 10: with them saved, t = 0 needs no "
            "exception",
        ),
        Mistake(
            lambda x, e, a, t: _clinic(x, e, a, t, rounded=torch.float32),
            "you round ᾱ_t to float32 before subtracting it from 1: enough for bfloat16, but for float32 images at the "
            "first timesteps half of the digits of 1-ᾱ_t are lost",
        ),
        Mistake(
            lambda x, e, a, t: gaussian.q_sample(x, e, a[t].reshape(-1, *[1] * (x.ndim - 1))),
            "your digits are saved, but your result is float64, as the table is: x_t should have the dtype of x0, or "
            "the memory that bfloat16 saves is gone",
        ),
        Mistake(
            lambda x, e, a, t: add_noise_in_any_dtype(x.float(), e.float(), a, t),
            "your digits are saved, but your result is float32 for bfloat16 images: x_t should have the dtype of x0, "
            "or the memory that bfloat16 saves is gone",
        ),
        Mistake(
            lambda x, e, a, t: _clinic(x.float(), e.float(), a.float(), t),
            "you made everything float32: ᾱ_t is still rounded before it is subtracted from 1, and bfloat16 images "
            "come out as float32",
        ),
        Mistake(
            clinic_from_rounded_signal,
            "you round the signal's scale and compute the noise's from it: the digits are lost in that rounding "
            "already",
        ),
        Mistake(
            clinic_no_roots,
            "your digits are saved, but the square roots are gone: both coefficients are standard deviations",
        ),
        Mistake(
            clinic_root_inside,
            "your digits are saved, but the noise is scaled by 1-√ᾱ_t where the equation has √(1-ᾱ_t)",
        ),
    ),
    alternatives=(clinic_in_float64, clinic_by_loop, clinic_in_place, clinic_subtract_first, clinic_rounded_signal),
    run=value_type_and_digits,
    rtol=0.02,
    cases=5,
)


# ---------------------------------------------------------------- the gallery of wrong runs


def image_not_shrunk(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    level = ALPHA_BAR[t].float().reshape(-1, 1, 1, 1)
    return x0 + (1 - level) ** 0.5 * noise


def one_step_only(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    beta = BETAS[t].float().reshape(-1, 1, 1, 1)
    return (1 - beta) ** 0.5 * x0 + beta**0.5 * noise


def along_the_columns(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    level = ALPHA_BAR[t].float()
    return level**0.5 * x0 + (1 - level) ** 0.5 * noise


def no_square_roots(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    level = ALPHA_BAR[t].float().reshape(-1, 1, 1, 1)
    return level * x0 + (1 - level) * noise


BROKEN = {"A": image_not_shrunk, "B": one_step_only, "C": along_the_columns, "D": no_square_roots}
"""Noising with one bug each, as `noise_it(x0, noise, t)` → x_t. Guess before you read them."""


EXERCISES = (FORWARD_STEP, ALPHA_BARS, ADD_NOISE, TO_MODEL_RANGE, PRIOR_KL, FROM_S_TO_T, CLINIC)
