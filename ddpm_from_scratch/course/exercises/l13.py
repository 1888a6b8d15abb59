"""Exercises of lesson 13, the capstone: a whole diffusion model, checked from outside by what it does.

The networks here are stand-ins that keep a record of their calls. For data of one Gaussian the exact ε* is known, so a
sampler can be judged without any training.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from matplotlib import rc_context
from torch import Tensor, nn

from ddpm_from_scratch import schedules
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

# ---------------------------------------------------------------- stand-ins for a network


class Oracle:
    """The exact ε* of data N(mean, std²), in any dimension (lesson 03). Notes every timestep that it is asked for.

    Args:
        mean, std: of the data.
        alpha_bar: (T,) the schedule.
    """

    def __init__(self, mean: float, std: float, alpha_bar: Tensor) -> None:
        self.mean, self.std, self.alpha_bar = mean, std, alpha_bar
        self.asked: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor | int) -> Tensor:
        self.asked.append(int(torch.as_tensor(t).flatten()[0]))
        a = float(self.alpha_bar[self.asked[-1]])
        return (1 - a) ** 0.5 * (x_t - a**0.5 * self.mean) / (a * self.std**2 + 1 - a)


class Scale(nn.Module):
    """A network of one weight: ε = weight · x_t · (1 + t/10). Notes what it was given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.given: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        _refuse_other_numbers(x_t, self.weight.dtype)
        self.given.append((x_t.detach(), torch.as_tensor(t).detach().clone()))
        level = torch.as_tensor(t).reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)
        return self.weight * x_t * (1 + level / 10)


def _refuse_other_numbers(x_t: Tensor, dtype: torch.dtype) -> None:
    """What every network of PyTorch does, in words.

    Raises:
        TypeError: x_t of another dtype than the weights.
    """
    if x_t.is_complex():
        raise TypeError(
            "x_t consists of complex numbers: the root of a negative number is taken somewhere. Look at the levels: ᾱ "
            "is smaller at t than at the step moved to"
        )
    if x_t.dtype != dtype:
        raise TypeError(f"the network's weights are {dtype}, x_t is {x_t.dtype}: x_t keeps the dtype of the data")


def _as_network(oracle: Oracle) -> Callable[[Tensor, Tensor], Tensor]:
    """The oracle, as particular about its arguments as a U-Net of float32 weights."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or t.shape != x_t.shape[:1] or t.is_floating_point():
            raise TypeError(
                f"the network takes one whole t for each of the {len(x_t)} samples, as a tensor of that shape"
            )
        if not 0 <= int(t[0]) < len(oracle.alpha_bar):
            raise ValueError(f"the network knows t from 0 to {len(oracle.alpha_bar) - 1}, and is asked at t = {t[0]}")
        _refuse_other_numbers(x_t, torch.float32)
        return oracle(x_t, t)

    return network


def _record(x0: object, asked: list[int]) -> dict[str, Tensor] | None:
    """What a sampler is judged by: when it called the network, and its samples.

    Raises:
        TypeError: it returned no tensor.
    """
    if x0 is None:
        return None
    if not isinstance(x0, Tensor):
        raise TypeError(f"return the samples, one tensor: yours is a {type(x0).__name__}")
    if x0.is_complex():
        raise TypeError(
            "your samples are complex numbers: the root of a negative number is taken somewhere. Look at the last "
            "step: which level is read there (index -1 is the noisy end of the table), and how large is σ?"
        )
    return {"t of the network calls": torch.tensor(asked, dtype=torch.long), "x_0": x0}


# ---------------------------------------------------------------- 13.1


def make_schedule(T: int, beta_1: float, beta_T: float) -> Tensor:
    """ᾱ of a linear schedule.

    T: number of steps.
    beta_1, beta_T: the first and the last β, with a straight line between.
    Returns shape (T,), float64: entry t is the share of the variance of x_0 that is left after t + 1 steps.
    """
    betas = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def make_schedule_inputs(generator: torch.Generator, index: int) -> Case:
    """The schedule of the paper, the short one of the lesson, and two random ones."""
    T = (1000, 100, 10, 3)[index]
    low, high = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    beta_1, beta_T = ((1e-4, 0.02), (1e-3, 0.2), (0.01 + 0.05 * low, 0.3 + 0.2 * high), (0.1 * low + 0.1, 0.5))[index]
    return Case({"T": T, "beta_1": beta_1, "beta_T": beta_T})


def make_schedule_by_loop(T, beta_1, beta_T):
    left, values = 1.0, []
    for t in range(T):
        left *= 1 - (beta_1 + (beta_T - beta_1) * t / (T - 1))
        values.append(left)
    return torch.tensor(values, dtype=torch.float64)


def make_schedule_by_logarithm(T, beta_1, beta_T):
    betas = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    return torch.log1p(-betas).cumsum(0).exp()


def make_schedule_by_package(T, beta_1, beta_T):
    return schedules.alpha_bars(schedules.linear(T, beta_1, beta_T))


def make_schedule_in_place(T, beta_1, beta_T):
    left = 1 - torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    for t in range(1, T):
        left[t] *= left[t - 1]
    return left


def _line(T: int, beta_1: float, beta_T: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(beta_1, beta_T, T, dtype=dtype)


MAKE_SCHEDULE = Exercise(
    id="13.1",
    title="A schedule",
    difficulty=1,
    minutes=4,
    equation="Ho eq. 4, section 4",
    where="The contract",
    lines=2,
    reference=make_schedule,
    inputs=make_schedule_inputs,
    hints=(
        "β says what one step takes away. What is left after several steps?",
        "ᾱ_t = (1-β_1) (1-β_2) ⋯ (1-β_t), above Ho eq. 4, with the β on a straight line.",
        "`betas = torch.linspace(...)` in float64, then `torch.cumprod(..., dim=0)`",
    ),
    mistakes=(
        Mistake(_line, "you returned the β themselves: the later cells ask for what is left after all steps up to t"),
        Mistake(
            lambda *a: 1 - _line(*a),
            "you returned 1-β_t, what one step leaves: after {T} steps your x_t would still show x_0",
        ),
        Mistake(
            lambda *a: _line(*a).cumprod(0),
            "you multiplied up the β: multiply what each step leaves, not what it takes",
        ),
        Mistake(
            lambda *a: 1 - _line(*a).cumsum(0),
            "you subtracted the sum of the β from 1: steps take shares of what is left, so shares multiply",
        ),
        Mistake(
            lambda *a: (1 - _line(*a)).cumprod(0) ** 0.5,
            "you returned the square roots: ᾱ is a share of the variance, and roots are taken where it is used",
        ),
        Mistake(
            lambda *a: 1 - (1 - _line(*a)).cumprod(0),
            "you returned 1-ᾱ, the variance of the noise: yours rises with t, and what is left of x_0 must fall",
        ),
        Mistake(
            lambda *a: torch.cat([torch.ones(1, dtype=torch.float64), (1 - _line(*a)).cumprod(0)[:-1]]),
            "you start with 1, at no noise: index 0 already had one step",
        ),
        Mistake(
            lambda T, b, c: (1 - b - (c - b) / T * torch.arange(T, dtype=torch.float64)).cumprod(0),
            "you divided the way from the first β to the last by T: there are {T} of them and one gap less, so your "
            "last β is not {beta_T:.4g}",
        ),
        Mistake(
            lambda T, b, c: (1 - (c / b) ** torch.linspace(0, 1, T, dtype=torch.float64) * b).cumprod(0),
            "you made the β rise in equal ratios: a straight line has equal differences",
        ),
        Mistake(
            lambda *a: torch.cat([torch.ones(1, dtype=torch.float64), (1 - _line(*a)).cumprod(0)]),
            "you put a 1 in front: that level needs no entry, and the table has {T} of them",
        ),
        Mistake(
            lambda *a: (1 - _line(*a)).prod(),
            "you multiplied everything into one number: the product up to each t is asked for",
        ),
        Mistake(
            lambda *a: (1 - _line(*a)).cumprod(0).flip(0),
            "you have the schedule backwards: index 0 must be the cleanest",
        ),
        Mistake(
            lambda T, b, c: (1 - torch.linspace(b**0.5, c**0.5, T, dtype=torch.float64) ** 2).cumprod(0),
            "you made a straight line of the √β: that is the scaled schedule of lesson 02",
        ),
        Mistake(
            lambda T, b, c: (1 - _line(T, b, c, torch.float32)).cumprod(0),
            "you computed in float32: {T} factors close to 1 lose digits, and float64 is asked for",
        ),
        Mistake(
            lambda T, b, c: (1 - _line(T, b, c, torch.float32).double()).cumprod(0),
            "you made the β in float32 and cast them afterwards: their rounding stays, float64 is asked for from the "
            "start",
        ),
        Mistake(
            lambda *a: (-_line(*a).cumsum(0)).exp(),
            "you took the exponential of the summed β: that is the limit of many small steps, and these are finite",
        ),
        Mistake(
            lambda T, b, c: (1 - _line(T, c, b)).cumprod(0),
            "you let the β fall from {beta_T:.4g}: they rise, and the first is {beta_1:.4g}",
        ),
        Mistake(
            lambda T, b, c: (1 - _line(T + 1, b, c)[1:]).cumprod(0),
            "you left out the first β, {beta_1:.4g}: it belongs to index 0",
        ),
        Mistake(
            lambda *a: (1 - _line(*a)) ** torch.arange(1, a[0] + 1),
            "you raised 1-β_t to a power: each step before it has a β of its own",
        ),
        Mistake(
            lambda *a: (1 - _line(*a)).cumprod(0) ** 2,
            "you squared ᾱ: the product is that of 1-β as they are",
        ),
        Mistake(
            lambda *a: (1 - _line(*a)).log().cumsum(0),
            "you returned the logarithms: after the sum comes the exponential",
        ),
        Mistake(
            lambda *a: (1 - _line(*a).sqrt()).cumprod(0),
            "you multiplied up 1-√β: what a step leaves of the variance is 1-β",
        ),
        Mistake(
            lambda *a: (lambda left: left / (1 - left))((1 - _line(*a)).cumprod(0)),
            "you returned the SNR, ᾱ/(1-ᾱ): ᾱ itself is asked for",
        ),
        Mistake(
            lambda T, b, c: (1 - _line(T, 1e-4, 0.02)).cumprod(0),
            "you took the paper's first and last β: here they are {beta_1:.4g} and {beta_T:.4g}",
        ),
    ),
    alternatives=(
        make_schedule_by_loop,
        make_schedule_by_logarithm,
        make_schedule_by_package,
        make_schedule_in_place,
    ),
    rtol=1e-9,
)


# ---------------------------------------------------------------- 13.2


def training_loss(model: nn.Module, x0: Tensor, t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The loss of algorithm 1 for one batch.

    model: `model(x_t, t)` gives the prediction of the noise, with the shape of x_t.
    x0, noise: shape (B, ...), the clean batch and the ε to put into it.
    t: shape (B,), a whole number from 0 to T-1 for each sample.
    alpha_bar: shape (T,), float64.
    Returns a single number, a tensor of shape (), through which gradients flow into the model.
    """
    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    x_t = (a**0.5).to(x0.dtype) * x0 + ((1 - a) ** 0.5).to(x0.dtype) * noise
    return ((model(x_t, t) - noise) ** 2).mean()


def training_loss_inputs(generator: torch.Generator, index: int) -> Case:
    """Images, points, and batches of other ranks, early and late in the chain."""
    shape = ((4, 1, 6, 6), (16, 2), (5, 5), (3, 2, 4, 4))[index]
    alpha_bar = schedules.alpha_bars(schedules.linear(40, 0.002, 0.2))
    x0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(40, shape[:1], generator=generator)
    t[:2] = torch.tensor([0, 39])
    weight = torch.rand((), generator=generator) * 0.3 + 0.2
    return Case(
        {"x0": x0, "t": t, "noise": noise, "alpha_bar": alpha_bar, "weight": weight}, {"B": shape[0], "shape": shape}
    )


def _all_given(model: Scale, count: int) -> tuple[Tensor, Tensor]:
    """x_t and t of the `count` samples as the network got them, put together where it got a few at a time."""
    x_t, t = torch.zeros(()), torch.zeros(count)
    for number, (more, steps) in enumerate(model.given):
        steps = steps.expand(len(more) if more.ndim and len(model.given) > 1 else count) if steps.ndim == 0 else steps
        if number == 0:
            x_t, t = more, steps
        elif x_t.ndim and len(x_t) < count and more.shape[1:] == x_t.shape[1:]:
            x_t, t = torch.cat([x_t, more]), torch.cat([t, steps])
    return x_t, t


def run_training_loss(answer, x0, t, noise, alpha_bar, weight):
    """The loss, what reached the network, and the gradient that came back to its weight."""
    model = Scale(weight)
    loss = answer(model, x0, t, noise, alpha_bar)
    if loss is None:
        return None
    if not isinstance(loss, Tensor | float):
        raise TypeError(f"return the loss alone, a tensor of shape (): yours is a {type(loss).__name__}")
    x_t, steps = _all_given(model, len(x0))
    if model.weight.grad is not None:
        raise TypeError("the loss is only computed here: calling backward is left to the training loop")
    if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
        loss.backward()
    gradient = torch.zeros_like(weight) if model.weight.grad is None else model.weight.grad
    value = loss.detach() if isinstance(loss, Tensor) else loss
    return {"loss": value, "x_t": x_t, "t": steps, "gradient": gradient}


def training_loss_by_loop(model, x0, t, noise, alpha_bar):
    a = [float(alpha_bar[step]) for step in t]
    x_t = torch.stack([p**0.5 * x + (1 - p) ** 0.5 * e for p, x, e in zip(a, x0, noise, strict=True)])
    return nn.functional.mse_loss(model(x_t, t), noise)


def training_loss_in_float64(model, x0, t, noise, alpha_bar):
    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    x_t = (a.sqrt() * x0.double() + (1 - a).sqrt() * noise.double()).to(x0.dtype)
    return (model(x_t, t) - noise).square().mean()


def training_loss_in_place(model, x0, t, noise, alpha_bar):
    a = alpha_bar.to(x0.dtype)[t].reshape(-1, *[1] * (x0.ndim - 1))
    x_t = x0.clone().mul_(a.sqrt()).add_((1 - a).sqrt() * noise)
    return torch.mean((noise - model(x_t, t)) ** 2)


def training_loss_flat(model, x0, t, noise, alpha_bar):
    a = alpha_bar[t].unsqueeze(1)
    x_t = (a**0.5 * x0.flatten(1) + (1 - a) ** 0.5 * noise.flatten(1)).to(x0.dtype).view_as(x0)
    error = (model(x_t, t) - noise).flatten(1)
    return error.pow(2).mean(dim=1).mean()


def training_loss_image_by_image(model, x0, t, noise, alpha_bar):
    losses = []
    for i, step in enumerate(t.tolist()):
        a = float(alpha_bar[step])
        x_t = a**0.5 * x0[i : i + 1] + (1 - a) ** 0.5 * noise[i : i + 1]
        losses.append((model(x_t, t[i : i + 1]) - noise[i : i + 1]).square().mean())
    return torch.stack(losses).mean()


def _noised(x0, t, noise, alpha_bar, keep=None, add=None):
    """x_t with other coefficients of ᾱ."""
    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
    return (a**0.5 if keep is None else keep(a)) * x0 + ((1 - a) ** 0.5 if add is None else add(a)) * noise


def _loss(keep=None, add=None, target=lambda x0, x_t, noise: noise, measure=lambda error: (error**2).mean()):
    """A training loss with some of its parts replaced."""

    def loss(model, x0, t, noise, alpha_bar):
        x_t = _noised(x0, t, noise, alpha_bar, keep, add)
        return measure(model(x_t, t) - target(x0, x_t, noise))

    return loss


def _loss_at(change):
    """A training loss at changed timesteps."""
    return lambda model, x0, t, noise, alpha_bar: training_loss(model, x0, change(t), noise, alpha_bar)


def training_loss_detached(model, x0, t, noise, alpha_bar):
    with torch.no_grad():
        return training_loss(model, x0, t, noise, alpha_bar)


def training_loss_clean_input(model, x0, t, noise, alpha_bar):
    return ((model(x0, t) - noise) ** 2).mean()


def training_loss_four_axes(model, x0, t, noise, alpha_bar):
    a = alpha_bar[t].view(-1, 1, 1, 1).to(x0.dtype)
    return ((model(a**0.5 * x0 + (1 - a) ** 0.5 * noise, t) - noise) ** 2).mean()


def training_loss_one_before(model, x0, t, noise, alpha_bar):
    return ((model(_noised(x0, t - 1, noise, alpha_bar), t) - noise) ** 2).mean()


def training_loss_one_step(model, x0, t, noise, alpha_bar):
    alpha = alpha_bar / torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
    return training_loss(model, x0, t, noise, alpha)


def training_loss_subtracts(model, x0, t, noise, alpha_bar):
    return ((model(_noised(x0, t, -noise, alpha_bar), t) - noise) ** 2).mean()


def training_loss_multiplied_again(model, x0, t, noise, alpha_bar):
    return training_loss(model, x0, t, noise, alpha_bar.cumprod(0))


def training_loss_noised_backwards(model, x0, t, noise, alpha_bar):
    return ((model(_noised(x0, len(alpha_bar) - 1 - t, noise, alpha_bar), t) - noise) ** 2).mean()


def training_loss_of_scaled_noise(model, x0, t, noise, alpha_bar):
    return ((model(_noised(x0, t, noise, alpha_bar), t) - _noised(0 * x0, t, noise, alpha_bar)) ** 2).mean()


def training_loss_of_v(model, x0, t, noise, alpha_bar):
    v = _noised(-x0, t, noise, alpha_bar, keep=lambda a: (1 - a) ** 0.5, add=lambda a: a**0.5)
    return ((model(_noised(x0, t, noise, alpha_bar), t) - v) ** 2).mean()


def training_loss_shares_of_t(model, x0, t, noise, alpha_bar):
    return ((model(_noised(x0, t, noise, alpha_bar), t / len(alpha_bar)) - noise) ** 2).mean()


def training_loss_two_times(model, x0, t, noise, alpha_bar):
    return ((model(_noised(x0, t, noise, alpha_bar), t + 1) - noise) ** 2).mean()


TRAINING_LOSS = Exercise(
    id="13.2",
    title="The loss of one batch",
    difficulty=2,
    minutes=6,
    equation="Ho eq. 4, 14, algorithm 1",
    where="The contract",
    lines=4,
    reference=training_loss,
    inputs=training_loss_inputs,
    run=run_training_loss,
    hints=(
        "Two things happen: the batch is noised, each sample to its own level, and the network is asked for the noise.",
        "x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Ho eq. 4), and the mean of (ε - ε_θ(x_t, t))² (eq. 14) over the whole batch.",
        "`a = alpha_bar[t].to(x0.dtype).reshape(-1, 1, ...)` with one axis per axis of x0, then `x_t = ...`, then a "
        "mean of squares",
    ),
    mistakes=(
        Mistake(
            _loss(keep=lambda a: a, add=lambda a: 1 - a),
            "you left out both square roots in x_t: ᾱ is a share of the variance",
        ),
        Mistake(
            _loss(keep=lambda a: (1 - a) ** 0.5, add=lambda a: a**0.5),
            "you swapped the coefficients: at t = 0 your x_t is nearly pure noise",
        ),
        Mistake(
            _loss(keep=lambda a: a),
            "you left out the square root in front of x_0: ᾱ is a share of the variance",
        ),
        Mistake(
            _loss(add=lambda a: 1 - a),
            "you left out the square root in front of the noise: 1-ᾱ is a variance",
        ),
        Mistake(
            training_loss_four_axes,
            "you gave the levels four axes: that fits images alone, and the data may have any rank (here x_0 has shape "
            "{shape})",
        ),
        Mistake(
            training_loss_one_before,
            "you took the level of index t-1: index t of the table already means t + 1 steps of noise, and -1 is its "
            "noisy end",
        ),
        Mistake(
            training_loss_one_step,
            "you used α_t, what one step leaves: ᾱ_t is what is left after all steps up to t, and the table holds it",
        ),
        Mistake(
            training_loss_shares_of_t,
            "you told the network t divided by T: it expects the whole number",
        ),
        Mistake(
            _loss(measure=lambda error: 0.5 * (error**2).mean()),
            "you halved the loss: Ho eq. 14 has no ½",
        ),
        Mistake(
            _loss(keep=lambda a: torch.ones_like(a)),
            "you added noise without shrinking x_0: the variance of your x_t rises above 1",
        ),
        Mistake(
            _loss(target=lambda x0, x_t, noise: x0),
            "you compared the prediction with x_0: this network predicts the noise",
        ),
        Mistake(
            _loss(target=lambda x0, x_t, noise: x_t),
            "you compared the prediction with x_t, which the network was given",
        ),
        Mistake(
            _loss(measure=lambda error: (error**2).sum()),
            "you summed the squares: the loss then grows with the batch and the image, and the learning rate with it",
        ),
        Mistake(
            _loss(measure=lambda error: (error**2).flatten(1).sum(dim=1).mean()),
            "you summed over the image and averaged over the batch: L_simple as trained is the mean over all elements",
        ),
        Mistake(_loss(measure=lambda error: error.abs().mean()), "you took absolute values: Ho eq. 14 has squares"),
        Mistake(
            _loss(measure=lambda error: (error**2).mean() ** 0.5),
            "you took the root of the mean square: its gradient is another one",
        ),
        Mistake(
            _loss_at(lambda t: t[:1].expand(len(t))),
            "you used the first t for the whole batch: each of the {B} samples has its own",
        ),
        Mistake(
            _loss_at(lambda t: (t - 1).clamp(min=0)),
            "you went one step back: index t of the table already means t + 1 steps of noise",
        ),
        Mistake(
            training_loss_two_times,
            "you told the network another t than the one you noised to: it would learn a shifted clock",
        ),
        Mistake(
            training_loss_detached,
            "you cut the gradient: no learning can come of this loss, because nothing flows back to the weight",
        ),
        Mistake(training_loss_clean_input, "you gave the network x_0: there is no noise in it to be found"),
        Mistake(
            lambda model, x0, t, noise, alpha_bar: ((model(noise, t) - noise) ** 2).mean(),
            "you gave the network the noise itself: it must find it in x_t",
        ),
        Mistake(
            _loss(add=lambda a: 1 - a**0.5),
            "you put 1-√ᾱ_t in front of the noise: variances add up to 1, so it is the root of 1-ᾱ_t",
        ),
        Mistake(
            training_loss_subtracts,
            "you subtracted the noise in x_t and asked the network for it with the other sign",
        ),
        Mistake(
            training_loss_multiplied_again,
            "you multiplied the table up once more: it holds ᾱ already",
        ),
        Mistake(
            training_loss_noised_backwards,
            "you read the levels from the other end: index 0 is the cleanest",
        ),
        Mistake(
            training_loss_of_scaled_noise,
            "you compared the prediction with the noise as it stands in x_t: the network predicts ε, not √(1-ᾱ_t) ε",
        ),
        Mistake(
            training_loss_of_v,
            "you compared the prediction with v: this network predicts the noise",
        ),
        Mistake(
            _loss(measure=lambda error: error.mean() ** 2),
            "you squared the mean: errors of both signs cancel in it, so the squares come first",
        ),
        Mistake(
            _loss(measure=lambda error: (error**2).flatten(1).mean(dim=1)),
            lambda at: (
                f"your loss has shape {tuple(at.yours['loss'].shape)}: the mean goes over the {at.B} samples too"
            ),
        ),
        Mistake(
            _loss(measure=lambda error: (error**2).flatten(1).mean(dim=1).sum()),
            "you averaged over each image and summed over the batch: the loss then grows with the batch",
        ),
        Mistake(
            _loss(measure=lambda error: error.norm()),
            "you took the length of the error: Ho eq. 14 has the mean of its squares",
        ),
        Mistake(
            _loss(measure=lambda error: nn.functional.smooth_l1_loss(error, torch.zeros_like(error))),
            "you took a loss that is square for small errors alone: Ho eq. 14 has squares throughout",
        ),
        Mistake(
            _loss(measure=lambda error: error.var()),
            "you took the variance of the error: its mean belongs to the loss",
        ),
    ),
    alternatives=(
        training_loss_by_loop,
        training_loss_in_float64,
        training_loss_in_place,
        training_loss_flat,
        training_loss_image_by_image,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 13.3


def train(
    model: nn.Module,
    images: Tensor,
    alpha_bar: Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """Algorithm 1: trains the model in place, with Adam.

    model: an `nn.Module`; `model(x_t, t)` gives the prediction of the noise.
    images: shape (N, ...). alpha_bar: shape (T,).
    generator: in each step draw from it, in this order, the indices of `batch_size` images (`torch.randint`, with
        repetition), their t (`torch.randint`, uniform in 0..T-1), and the noise (`torch.randn`).
    Returns the losses of the steps, a list of numbers.
    """
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    losses: list[float] = []
    for _ in range(steps):
        x0 = images[torch.randint(len(images), (batch_size,), generator=generator)]
        t = torch.randint(len(alpha_bar), (batch_size,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        loss = training_loss(model, x0, t, noise, alpha_bar)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def train_inputs(generator: torch.Generator, index: int) -> Case:
    """Short runs: single numbers, images, and points in batches of one."""
    shape = ((30, 1), (12, 1, 4, 4), (9, 3))[index]
    steps, batch_size, rate = ((4, 8, 0.05), (3, 6, 0.1), (5, 1, 0.03))[index]
    args = {
        "images": torch.randn(shape, generator=generator),
        "weight": torch.rand((), generator=generator) * 0.2 + 0.1,
        "alpha_bar": schedules.alpha_bars(schedules.linear(25, 0.002, 0.3)),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": rate,
        "seed": int(torch.randint(1000, (), generator=generator)),
    }
    return Case(args, {"N": shape[0]})


def run_train(answer, images, weight, alpha_bar, steps, batch_size, learning_rate, seed):
    """The losses, the weight afterwards, and the timesteps that the network saw."""
    model = Scale(weight.float())
    generator = torch.Generator().manual_seed(seed)
    losses = answer(model, images.float(), alpha_bar, steps, batch_size, learning_rate, generator)
    if losses is None:
        return None
    if not isinstance(losses, list | tuple | Tensor) or isinstance(losses, Tensor) and losses.ndim != 1:
        raise TypeError(f"return the losses of all {steps} steps, in a list: yours is a {type(losses).__name__}")
    for loss in losses:
        if not hasattr(loss, "__float__"):
            raise TypeError(f"return the losses alone, a list of numbers: yours holds a {type(loss).__name__}")
    if any(isinstance(loss, Tensor) and loss.requires_grad for loss in losses):
        raise TypeError(
            "the losses are to be numbers: a tensor that gradients can flow through keeps its whole step alive"
        )
    values = torch.as_tensor([float(loss) for loss in losses])
    seen = torch.cat([t.reshape(-1) for _, t in model.given]) if model.given else torch.zeros(0, dtype=torch.long)
    return {"losses": values, "weight": model.weight.detach(), "t": seen}


def train_by_index_select(model, images, alpha_bar, steps, batch_size, learning_rate, generator):
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses: list[float] = []
    while len(losses) < steps:
        indices = torch.randint(0, images.shape[0], (batch_size,), generator=generator)
        t = torch.randint(0, alpha_bar.shape[0], (batch_size,), generator=generator)
        x0 = images.index_select(0, indices)
        noise = torch.randn(*x0.shape, generator=generator)
        optimiser.zero_grad()
        loss = training_loss_by_loop(model, x0, t, noise, alpha_bar)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def train_adam_by_hand(model, images, alpha_bar, steps, batch_size, learning_rate, generator):
    parameters = list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    losses: list[float] = []
    for step in range(1, steps + 1):
        x0 = images[torch.randint(len(images), (batch_size,), generator=generator)]
        t = torch.randint(len(alpha_bar), (batch_size,), generator=generator)
        loss = training_loss(model, x0, t, torch.randn(x0.shape, generator=generator), alpha_bar)
        gradients = torch.autograd.grad(loss, parameters)
        for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
            m.lerp_(g, 0.1)
            v.lerp_(g * g, 0.001)
            move = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            p.data.sub_(learning_rate * move)
        losses.append(loss.item())
    return losses


def train_in_float64(model, images, alpha_bar, steps, batch_size, learning_rate, generator):
    losses: list[float] = []
    optimiser = torch.optim.Adam([{"params": model.parameters()}], lr=learning_rate)
    for _ in range(steps):
        indices = torch.randint(len(images), (batch_size,), generator=generator)
        t = torch.randint(len(alpha_bar), (batch_size,), generator=generator)
        noise = torch.randn((batch_size, *images.shape[1:]), generator=generator)
        loss = training_loss_in_float64(model, images[indices], t, noise, alpha_bar)
        model.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def train_in_two_halves(model, images, alpha_bar, steps, batch_size, learning_rate, generator):
    optimiser, losses = torch.optim.Adam(model.parameters(), learning_rate), []
    for _ in range(steps):
        x0 = images[torch.randint(len(images), (batch_size,), generator=generator)]
        t = torch.randint(len(alpha_bar), (batch_size,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        loss = training_loss_flat(model, x0, t, noise, alpha_bar)
        optimiser.zero_grad(set_to_none=False)
        (loss / 2).backward(retain_graph=True)
        (loss / 2).backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def _train(draw=None, optimiser=torch.optim.Adam, clear=True, move=True, fresh=False, longest=None):
    """A training loop with some of its parts replaced; `draw` gives (indices, t, noise)."""

    def usual(images, T, batch_size, generator):
        indices = torch.randint(len(images), (batch_size,), generator=generator)
        t = torch.randint(T, (batch_size,), generator=generator)
        return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)

    def loop(model, images, alpha_bar, steps, batch_size, learning_rate, generator):
        moving, losses = optimiser(model.parameters(), learning_rate), []
        for _ in range(steps):
            indices, t, noise = (draw or usual)(images, len(alpha_bar), batch_size, generator)
            loss = training_loss(model, images[indices], t, noise, alpha_bar)
            if fresh:
                moving = optimiser(model.parameters(), learning_rate)
            if clear:
                moving.zero_grad()
            loss.backward()
            if longest:
                nn.utils.clip_grad_norm_(model.parameters(), longest)
            for _ in range(int(move)):
                moving.step()
            losses.append(loss.item())
        return losses

    return loop


def _one_batch_for_all(model, images, alpha_bar, steps, batch_size, learning_rate, generator):
    x0 = images[torch.randint(len(images), (batch_size,), generator=generator)]
    t = torch.randint(len(alpha_bar), (batch_size,), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    return _train(lambda *_: (torch.arange(batch_size), t, noise))(
        model, x0, alpha_bar, steps, batch_size, learning_rate, generator
    )


def _a_copy_of_the_model(model, *given):
    return train(deepcopy(model), *given)


def _averaged_losses(*given):
    losses = train(*given)
    return [sum(losses[: number + 1]) / (number + 1) for number in range(len(losses))]


def _one_t(images, T, batch_size, generator):
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    t = torch.randint(T, (1,), generator=generator).expand(batch_size)
    return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)


def _never_zero(images, T, batch_size, generator):
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    t = torch.randint(1, T, (batch_size,), generator=generator)
    return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)


def _uniform_noise(images, T, batch_size, generator):
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    t = torch.randint(T, (batch_size,), generator=generator)
    return indices, t, torch.rand((batch_size, *images.shape[1:]), generator=generator)


def _noise_first(images, T, batch_size, generator):
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    noise = torch.randn((batch_size, *images.shape[1:]), generator=generator)
    return indices, torch.randint(T, (batch_size,), generator=generator), noise


def _t_first(images, T, batch_size, generator):
    t = torch.randint(T, (batch_size,), generator=generator)
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)


def _never_last(images, T, batch_size, generator):
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    t = torch.randint(T - 1, (batch_size,), generator=generator)
    return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)


def _without_repetition(images, T, batch_size, generator):
    indices = torch.randperm(len(images), generator=generator)[:batch_size]
    t = torch.randint(T, (batch_size,), generator=generator)
    return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)


def _one_noise(images, T, batch_size, generator):
    indices = torch.randint(len(images), (batch_size,), generator=generator)
    t = torch.randint(T, (batch_size,), generator=generator)
    return indices, t, torch.randn(images.shape[1:], generator=generator).expand(batch_size, *images.shape[1:])


def _always_the_first(images, T, batch_size, generator):
    t = torch.randint(T, (batch_size,), generator=generator)
    indices = torch.arange(batch_size) % len(images)
    return indices, t, torch.randn((batch_size, *images.shape[1:]), generator=generator)


TRAIN = Exercise(
    id="13.3",
    title="The training loop",
    difficulty=2,
    minutes=8,
    equation="Ho algorithm 1",
    where="The contract",
    lines=12,
    reference=train,
    inputs=train_inputs,
    run=run_train,
    hints=(
        "One optimiser for the whole run. Each step draws a batch, asks for its loss, and moves the weights once.",
        "Algorithm 1: x_0 from the data, t uniform, ε normal, then a gradient step. PyTorch adds gradients up "
        "until they are cleared.",
        "`for _ in range(steps):` draw three things from `generator`, `loss = training_loss(...)`, then `zero_grad`, "
        "`backward`, `step`, and note `loss.item()`",
    ),
    mistakes=(
        Mistake(
            _train(clear=False), "you never cleared the gradients: each step moves by the sum of all earlier ones too"
        ),
        Mistake(
            _train(move=False),
            "you never moved the weights: without a `step` between `backward` and the next clearing, nothing learns "
            "from the loss",
        ),
        Mistake(
            _train(fresh=True),
            "you made a new optimiser in every step: Adam forgets its averages, and every step has the same length",
        ),
        Mistake(
            _train(optimiser=torch.optim.SGD),
            "you used plain gradient descent: the contract says Adam, and the learning rate is meant for it",
        ),
        Mistake(
            _train(optimiser=torch.optim.AdamW),
            "you used Adam with weight decay: it pulls the weights to zero, which the contract does not ask for",
        ),
        Mistake(
            _train(optimiser=lambda p, rate: torch.optim.Adam(p)),
            "you left the learning rate to Adam's own default: {learning_rate} is asked for",
        ),
        Mistake(
            _train(_t_first),
            "you drew t before the indices: as good a run, but not the one that this generator stands for; see the "
            "order in the docstring",
        ),
        Mistake(
            _train(_without_repetition),
            "you drew the images without repetition: the contract draws each index by itself, so one may come twice",
        ),
        Mistake(
            _train(_never_last),
            "you never drew the last t: the upper end of `torch.randint` is left out anyway, so t = T-1, where every "
            "sampler starts, is never trained",
        ),
        Mistake(
            _train(_one_t),
            "you drew one t for the whole batch: the loss jumps about, and each step teaches one noise level only",
        ),
        Mistake(
            _train(_never_zero),
            "you drew t from 1 on: the network never sees t = 0, which is the last step of every sampler",
        ),
        Mistake(
            _train(_uniform_noise),
            "you drew uniform noise: it has mean 0.5 and is never negative; the process adds normal noise",
        ),
        Mistake(
            _train(_noise_first),
            "you drew the noise before t: as good a run, but not the one that this generator stands for; see the order "
            "in the docstring",
        ),
        Mistake(
            _train(_one_noise),
            "you drew one noise for the whole batch: every sample needs its own",
        ),
        Mistake(
            _train(_always_the_first),
            "you took the same {batch_size} of the {N} images in every step: a batch is drawn anew each time",
        ),
        Mistake(
            _one_batch_for_all,
            "you drew images, t and noise once, before the loop: every step needs a batch of its own",
        ),
        Mistake(
            _a_copy_of_the_model,
            "you trained a copy: the model is to be trained in place",
        ),
        Mistake(
            _train(move=2),
            "you moved the weights twice in every step: one loss, one `step`",
        ),
        Mistake(
            _train(longest=0.1),
            "you cut the gradients to a length of 0.1: the contract does not ask for it",
        ),
        Mistake(
            _train(longest=1.0),
            "you cut the gradients to a length of 1: the contract does not ask for it",
        ),
        Mistake(
            _train(optimiser=torch.optim.RMSprop),
            "you used RMSprop: the contract says Adam",
        ),
        Mistake(
            lambda model, images, alpha_bar, steps, *rest: train(model, images, alpha_bar, steps - 1, *rest),
            "you took one step less than the {steps} that were asked for",
        ),
        Mistake(
            lambda model, images, alpha_bar, steps, *rest: train(model, images, alpha_bar, steps + 1, *rest),
            "you took one step more than the {steps} that were asked for",
        ),
        Mistake(
            lambda model, images, alpha_bar, steps, batch_size, *rest: train(
                model, images, alpha_bar, steps, len(images), *rest
            ),
            "you drew as many images as there are, {N}: a batch has {batch_size}",
        ),
        Mistake(
            _averaged_losses,
            "you returned averages over all losses so far: each step has its own",
        ),
    ),
    alternatives=(train_by_index_select, train_adam_by_hand, train_in_float64, train_in_two_halves),
    rtol=1e-3,
    cases=3,
    seconds=60.0,
)


# ---------------------------------------------------------------- 13.4


def ddpm_sample(
    model: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, alpha_bar: Tensor, generator: torch.Generator, clip: bool
) -> Tensor:
    """Algorithm 2 with the variance β̃: from noise to x_0, one network call for every t from T-1 down to 0.

    model: `model(x_t, t)` gives the noise in x_t; t is a tensor of shape (B,).
    x_T: shape (B, ...), the noise to start from. alpha_bar: shape (T,).
    generator: one `torch.randn` of x_T's shape for every t > 0, in this order. None is added at t = 0.
    clip: whether the x̂_0 behind each prediction is clamped to [-1, 1] before it is used.
    Returns x_0, with the shape of x_T.
    """
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        a, p = float(alpha_bar[t]), float(alpha_bar[t - 1]) if t > 0 else 1.0
        eps = model(x, torch.full((len(x),), t))
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        if clip:
            x0 = x0.clamp(-1, 1)
        x = p**0.5 * (1 - a / p) / (1 - a) * x0 + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        if t > 0:
            x = x + ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5 * torch.randn(x.shape, generator=generator)
    return x


def ddpm_sample_inputs(generator: torch.Generator, index: int) -> Case:
    """Gaussian data of several means and widths, as numbers, points and images; with and without clipping."""
    shape = ((6, 1), (5, 2), (3, 1, 4, 4), (4, 3))[index]
    mean, std = ((0.5, 0.3), (-0.4, 1.5), (0.2, 1.8), (0.0, 0.05))[index]
    T, clip = ((12, False), (20, False), (15, True), (2, True))[index]
    args = {
        "x_T": torch.randn(shape, generator=generator),
        "alpha_bar": schedules.alpha_bars(schedules.linear(T, 0.02, 0.4)),
        "seed": int(torch.randint(1000, (), generator=generator)),
        "clip": clip,
    }
    return Case({**args, "mean": mean, "std": std}, {"T": T})


def run_ddpm_sample(answer, x_T, alpha_bar, seed, clip, mean, std):
    """The samples, and the timesteps at which the network was called."""
    model = Oracle(mean, std, alpha_bar)
    x0 = answer(_as_network(model), x_T.float(), alpha_bar, torch.Generator().manual_seed(seed), clip)
    return _record(x0, model.asked)


def _level(alpha_bar, t):
    return float(alpha_bar[t]) if t >= 0 else 1.0


def ddpm_sample_by_eq_11(model, x_T, alpha_bar, generator, clip):
    x = x_T.clone()
    for t in range(len(alpha_bar) - 1, -1, -1):
        a, p = _level(alpha_bar, t), _level(alpha_bar, t - 1)
        alpha, beta = a / p, 1 - a / p
        eps = model(x, torch.full((x.shape[0],), t, dtype=torch.long))
        if clip:
            eps = (x - a**0.5 * ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)) / (1 - a) ** 0.5
        x = (x - beta / (1 - a) ** 0.5 * eps) / alpha**0.5
        z = torch.randn(x.shape, generator=generator) if t else torch.zeros_like(x)
        x = x + (beta * (1 - p) / (1 - a)) ** 0.5 * z
    return x


def ddpm_sample_in_float64(model, x_T, alpha_bar, generator, clip):
    x = x_T.double()
    for t in reversed(range(len(alpha_bar))):
        x = _ddpm_step(lambda x, t: model(x.float(), t).double(), x, alpha_bar, t, generator, clip)
    return x.float()


def ddpm_sample_by_package(model, x_T, alpha_bar, generator, clip):
    from ddpm_from_scratch import DDPMScheduler

    betas = 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    scheduler = DDPMScheduler(len(alpha_bar), trained_betas=betas, clip_sample=clip)
    scheduler.set_timesteps(len(alpha_bar))
    x = x_T
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(model(x, torch.full((len(x),), t)), t, x, generator, return_dict=False)[0]
    return x


def ddpm_sample_drawn_first(model, x_T, alpha_bar, generator, clip):
    draws = [torch.randn(x_T.shape, generator=generator) for _ in range(len(alpha_bar) - 1)]
    x = x_T
    for t in range(len(alpha_bar))[::-1]:
        x = _ddpm_step(model, x, alpha_bar, t, None, clip, z=draws[len(alpha_bar) - 1 - t] if t else 0.0)
    return x


def ddpm_sample_in_place(model, x_T, alpha_bar, generator, clip):
    x = x_T.clone()
    for t in range(len(alpha_bar) - 1, -1, -1):
        x.copy_(_ddpm_step(model, x, alpha_bar, t, generator, clip))
    return x


def _ddpm_mean(x, x0, a, p):
    return p**0.5 * (1 - a / p) / (1 - a) * x0 + (a / p) ** 0.5 * (1 - p) / (1 - a) * x


def _x0_hat(x, eps, a):
    return (x - (1 - a) ** 0.5 * eps) / a**0.5


def _ddpm_step(
    model,
    x,
    alpha_bar,
    t,
    generator,
    clip,
    z=None,
    mean=None,
    std=None,
    clamp=lambda x0: x0.clamp(-1, 1),
    before=lambda alpha_bar, t: _level(alpha_bar, t - 1),
    hat=_x0_hat,
):
    """One step of algorithm 2 with some of its parts replaced."""
    a, p = _level(alpha_bar, t), before(alpha_bar, t)
    eps = model(x, torch.full((len(x),), t))
    x0 = hat(x, eps, a)
    x0 = clamp(x0) if clip else x0
    x_mean = _ddpm_mean(x, x0, a, p) if mean is None else mean(x, x0, eps, a, p)
    if z is None:
        z = torch.randn(x.shape, generator=generator) if t > 0 else torch.zeros_like(x)
    return x_mean + (max((1 - p) / (1 - a) * (1 - a / p), 0.0) if std is None else std(a, p) ** 2) ** 0.5 * z


def _ddpm(order=lambda T: range(T - 1, -1, -1), clip=None, **parts):
    """A sampler made of such steps."""

    def sampler(model, x_T, alpha_bar, generator, asked_clip):
        x = x_T
        for t in order(len(alpha_bar)):
            x = _ddpm_step(model, x, alpha_bar, t, generator, asked_clip if clip is None else clip, **parts)
        return x

    return sampler


def ddpm_sample_noisy_end(model, x_T, alpha_bar, generator, clip):
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        z = torch.randn(x.shape, generator=generator)
        x = _ddpm_step(model, x, alpha_bar, t, generator, clip, z, std=lambda a, p: (1 - a / p) ** 0.5)
    return x


def ddpm_sample_one_noise(model, x_T, alpha_bar, generator, clip):
    z, x = torch.randn(x_T.shape, generator=generator), x_T
    for t in reversed(range(len(alpha_bar))):
        x = _ddpm_step(model, x, alpha_bar, t, generator, clip, z if t else 0 * z)
    return x


def ddpm_sample_own_start(model, x_T, alpha_bar, generator, clip):
    return ddpm_sample(model, torch.randn(x_T.shape, generator=generator), alpha_bar, generator, clip)


def ddpm_sample_clamps_the_end(model, x_T, alpha_bar, generator, clip):
    x = ddpm_sample(model, x_T, alpha_bar, generator, False)
    return x.clamp(-1, 1) if clip else x


def ddpm_sample_sigma_of_the_next(model, x_T, alpha_bar, generator, clip):
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        p, q = _level(alpha_bar, t - 1), _level(alpha_bar, t - 2)
        x = _ddpm_step(model, x, alpha_bar, t, generator, clip, std=_next_std(p, q))
    return x


def _next_std(p, q):
    return lambda *_: ((1 - q) / (1 - p) * (1 - p / q)) ** 0.5 if p < 1 else 0.0


def ddpm_sample_quiet_from(last):
    """A sampler that adds no noise from t = `last` down."""

    def sampler(model, x_T, alpha_bar, generator, clip):
        x = x_T
        for t in reversed(range(len(alpha_bar))):
            x = _ddpm_step(model, x, alpha_bar, t, generator, clip, z=0.0 if t <= last else None)
        return x

    return sampler


def ddpm_sample_uniform(model, x_T, alpha_bar, generator, clip):
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        x = _ddpm_step(model, x, alpha_bar, t, None, clip, torch.rand(x.shape, generator=generator) if t else 0.0)
    return x


def ddpm_sample_shares_the_noise(model, x_T, alpha_bar, generator, clip):
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        x = _ddpm_step(model, x, alpha_bar, t, None, clip, torch.randn(x.shape[1:], generator=generator) if t else 0.0)
    return x


def ddpm_sample_subtracts(model, x_T, alpha_bar, generator, clip):
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        x = _ddpm_step(model, x, alpha_bar, t, None, clip, -torch.randn(x.shape, generator=generator) if t else 0.0)
    return x


def ddpm_sample_clamps_x(model, x_T, alpha_bar, generator, clip):
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        x = _ddpm_step(model, x, alpha_bar, t, generator, False)
        x = x.clamp(-1, 1) if clip else x
    return x


def mixture_eps(x_t: Tensor, a: float) -> Tensor:
    """The exact ε* of two small Gaussians at (±1, ±0.6), standard deviation 0.25 (lesson 03)."""
    centres = torch.tensor([[-1.0, -0.6], [1.0, 0.6]])
    variance = a * 0.25**2 + 1 - a
    away = x_t[:, None] - a**0.5 * centres  # (B, 2 parts, 2)
    share = (-(away**2).sum(-1) / (2 * variance)).softmax(dim=1)
    return (1 - a) ** 0.5 * (share[..., None] * away).sum(1) / variance


def draw_ddpm(answer):
    """500 points from the same noise, with the learner's sampler and the reference."""
    alpha_bar = make_schedule(100, 1e-3, 0.2)
    x_T = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH * 0.75, 3.1, 1, 2, sharey=True)
        for ax, sampler, title in zip(figure.axes, (answer, ddpm_sample), ("yours", "reference"), strict=True):
            generator = torch.Generator().manual_seed(1)
            points = sampler(lambda x, t: mixture_eps(x, float(alpha_bar[int(t[0])])), x_T, alpha_bar, generator, False)
            plots.draw_points(ax, points, (points[:, 0] > 0).long(), limit=2.2, title=title)
    return figure


DDPM_SAMPLE = Exercise(
    id="13.4",
    title="The DDPM sampler",
    difficulty=3,
    minutes=12,
    equation="Ho eq. 7, 15, algorithm 2",
    where="The contract",
    lines=11,
    reference=ddpm_sample,
    inputs=ddpm_sample_inputs,
    run=run_ddpm_sample,
    hints=(
        "Each step has three parts: what clean image does the prediction stand for, where does the posterior with that "
        "image lie one step earlier, and a draw around it. After the last step there is nothing left to draw.",
        "x̂_0 from Ho eq. 15, then μ̃_t and β̃_t from eq. 7 with α_t = ᾱ_t / ᾱ_{t-1}; the level before t = 0 is ᾱ = 1.",
        "`for t in reversed(range(T)):` `a, p = ...`, `eps = model(x, ...)`, `x0 = ...`, maybe a clamp, "
        "`x = ... * x0 + ... * x`, and for t > 0 `x = x + ... * torch.randn(x.shape, generator=generator)`",
    ),
    mistakes=(
        Mistake(
            _ddpm(z=0.0),
            "you added no noise: your samples come out too close to each other, because each step takes the mean of "
            "many possible pasts",
        ),
        Mistake(
            _ddpm(std=lambda a, p: (1 - p) / (1 - a) * (1 - a / p)),
            "you scaled the noise by the variance β̃: a draw needs the standard deviation",
        ),
        Mistake(
            _ddpm(std=lambda a, p: (1 - a / p) ** 0.5),
            "you used σ² = β: that is the paper's other choice, and this contract says β̃",
        ),
        Mistake(
            ddpm_sample_noisy_end,
            "you used σ² = β, and added noise at t = 0 too: this contract says β̃, and your finished samples carry a "
            "grain that nobody removes",
        ),
        Mistake(
            ddpm_sample_one_noise,
            "you drew the noise once and used it in every step: fresh noise is needed each time, else the path is "
            "pulled one way",
        ),
        Mistake(
            _ddpm(order=lambda T: range(T - 1, 0, -1)),
            "you stopped before t = 0: one step of noise is left in the samples, and one call of the network is "
            "missing",
        ),
        Mistake(
            _ddpm(order=lambda T: range(T - 2, -1, -1)),
            "you started at T-2: x_T has all T steps of noise, and the first call of the network is at T-1",
        ),
        Mistake(
            _ddpm(before=lambda alpha_bar, t: float(alpha_bar[t - 1])),
            "you read index t-1 at t = 0 as well, which is -1, the noisy end of the table: what lies before t = 0 are "
            "the clean data",
        ),
        Mistake(
            _ddpm(before=lambda alpha_bar, t: float(alpha_bar[max(t - 1, 0)])),
            "you took ᾱ_0 for the level before t = 0: your last step goes nowhere, and one step of noise is left in "
            "the samples",
        ),
        Mistake(
            ddpm_sample_sigma_of_the_next,
            "you took σ of another step: it belongs to the two levels between which x moves, as the mean does",
        ),
        Mistake(
            ddpm_sample_quiet_from(1),
            "you added no noise at t = 1 either: only the very last step, t = 0, goes without",
        ),
        Mistake(
            ddpm_sample_uniform,
            "you drew uniform noise: it is never negative, and pushes all samples one way",
        ),
        Mistake(
            _ddpm(hat=lambda x, eps, a: (x + (1 - a) ** 0.5 * eps) / a**0.5),
            "you added the noise where Ho eq. 15 takes it out: look at the sign",
        ),
        Mistake(
            _ddpm(hat=lambda x, eps, a: (x - (1 - a) * eps) / a),
            "you left out the square roots in x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddpm(hat=lambda x, eps, a: x - (1 - a) ** 0.5 * eps),
            "you took the noise out and did not divide by √ᾱ_t: what is left is a shrunken x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: (x - (1 - a / p) / (1 - a) ** 0.5 * eps) / a**0.5),
            "you divided by √ᾱ_t where Ho eq. 11 has √α_t: one step back stretches by one step's factor",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: (x - (1 - a / p) / (1 - a) * eps) / (a / p) ** 0.5),
            "you divided β_t by 1-ᾱ_t where Ho eq. 11 has its square root",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: _ddpm_mean(x0, x, a, p)),
            "you exchanged the two coefficients of Ho eq. 7: which one is that of x̂_0?",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: p * (1 - a / p) / (1 - a) * x0 + a / p * (1 - p) / (1 - a) * x),
            "you left out the square roots in the two coefficients of Ho eq. 7",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: p**0.5 * (1 - a / p) / (1 - a) * x0 + a**0.5 * (1 - p) / (1 - a) * x),
            "you used ᾱ_t where Ho eq. 7 has α_t, in the coefficient of x_t",
        ),
        Mistake(
            ddpm_sample_clamps_the_end,
            "you clamped the finished samples only: it is x̂_0 that is clamped, in every step",
        ),
        Mistake(
            _ddpm(clamp=lambda x0: x0.clamp(0, 1)),
            "you clamped x̂_0 to [0, 1]: the data lie in [-1, 1]",
        ),
        Mistake(
            _ddpm(order=lambda T: range(T)),
            "you went up from t = 0: x_T is the noisiest, so the way back starts at T-1",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: p**0.5 * x0),
            "you jumped to x̂_0, shrunk to the level before: the posterior's mean lies between x̂_0 and x_t",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: x - (1 - a / p) / (1 - a) ** 0.5 * (x - a**0.5 * x0) / (1 - a) ** 0.5),
            "you left out the division by √α_t in Ho eq. 11: the forward step shrank, so the way back stretches",
        ),
        Mistake(
            _ddpm(clip=False),
            "you never clamped x̂_0, though `clip` asked for it",
        ),
        Mistake(
            _ddpm(clip=True),
            "you clamped x̂_0 without being asked: these data reach beyond [-1, 1], and your samples do not",
        ),
        Mistake(
            ddpm_sample_clamps_x,
            "you clamped x itself: noisy samples reach beyond [-1, 1] and must; it is x̂_0 that is clamped",
        ),
        Mistake(
            ddpm_sample_own_start,
            "you drew a start of your own: the noise to start from is x_T, an argument",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: p**0.5 * x0 + (1 - p) ** 0.5 * eps),
            "you took the deterministic direction of DDIM and added noise on top: your samples are too spread out",
        ),
        Mistake(
            _ddpm(clamp=lambda x0: x0.clamp(max=1)),
            "you clamped x̂_0 from above alone: it reaches below -1 too",
        ),
        Mistake(
            _ddpm(clamp=lambda x0: x0.clamp(min=-1)),
            "you clamped x̂_0 from below alone: it reaches above 1 too",
        ),
        Mistake(
            _ddpm(clamp=lambda x0: x0.tanh()),
            "you squashed x̂_0 where a clamp is asked for: what lies inside [-1, 1] stays as it is",
        ),
        Mistake(
            _ddpm(hat=lambda x, eps, a: (x - (1 - a) ** 0.5 * eps.clamp(-1, 1)) / a**0.5),
            "you clamped the prediction: noise has no bounds; it is x̂_0 that may be clamped",
        ),
        Mistake(
            lambda *given: ddpm_sample(*given).clamp(-1, 1),
            "you clamped the finished samples, asked or not: data may reach beyond [-1, 1]",
        ),
        Mistake(
            lambda *given: ddpm_sample(*given) / 2 + 0.5,
            "you moved the samples to [0, 1]: x_0 is asked for as it is",
        ),
        Mistake(
            ddpm_sample_subtracts,
            "you subtracted the noise: as good a sampler, but not the one that this generator stands for",
        ),
        Mistake(
            _ddpm(std=lambda a, p: ((1 - p) / (1 - a) * (p - a)) ** 0.5),
            "you took ᾱ_prev - ᾱ_t for β_t in the variance: a step multiplies ᾱ, so their quotient counts",
        ),
        Mistake(
            _ddpm(std=lambda a, p: (1 - p) ** 0.5),
            "you used σ² = 1-ᾱ_prev, the whole variance of the noise there, or put 1-ᾱ_t for β_t: β̃ is that of one "
            "step back",
        ),
        Mistake(
            _ddpm(std=lambda a, p: ((1 - a) / (1 - p) * (1 - a / p)) ** 0.5 if p < 1 else 0.0),
            "you turned the quotient in β̃ upside down: the variance with x_0 known is smaller than β",
        ),
        Mistake(
            _ddpm(hat=lambda x, eps, a: (x - (1 - a) * eps) / a**0.5),
            "you left out the square root of 1-ᾱ_t in x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddpm(hat=lambda x, eps, a: (x - (1 - a) ** 0.5 * eps) / a),
            "you left out the square root of ᾱ_t in x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: x0),
            "you jumped to x̂_0 in every step: the posterior's mean lies between x̂_0 and x_t",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: p**0.5 * (1 - a / p) * x0 + (a / p) ** 0.5 * (1 - p) * x),
            "you left out the denominator 1-ᾱ_t in the two coefficients of Ho eq. 7",
        ),
        Mistake(
            _ddpm(mean=lambda x, x0, eps, a, p: a**0.5 * (1 - a / p) / (1 - a) * x0 + _ddpm_mean(x, 0 * x0, a, p)),
            "you used ᾱ_t where Ho eq. 7 has the ᾱ of the step before, in the coefficient of x̂_0",
        ),
        Mistake(
            ddpm_sample_shares_the_noise,
            "you drew one noise for the whole batch: every sample needs its own",
        ),
    ),
    alternatives=(
        ddpm_sample_by_eq_11,
        ddpm_sample_in_float64,
        ddpm_sample_by_package,
        ddpm_sample_drawn_first,
        ddpm_sample_in_place,
    ),
    picture=draw_ddpm,
    rtol=2e-3,
)


# ---------------------------------------------------------------- 13.5


def ddim_sample(
    model: Callable[[Tensor, Tensor], Tensor],
    x_T: Tensor,
    alpha_bar: Tensor,
    timesteps: list[int],
    eta: float,
    generator: torch.Generator | None,
    clip: bool,
) -> Tensor:
    """DDIM along any falling list of timesteps: from noise to x_0, one network call for each entry.

    model, x_T, alpha_bar, clip: as for `ddpm_sample`. A clamped x̂_0 leaves the predicted ε as it is.
    timesteps: the visited t, falling. After the last one comes x_0 itself, where ᾱ is 1.
    eta: η of Song eq. 16, from 0 (deterministic) to 1.
    generator: one `torch.randn` of x_T's shape for every step but the last; not used at η = 0, where it may be None.
    Returns x_0, with the shape of x_T.
    """
    x = x_T
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        a, p = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        eps = model(x, torch.full((len(x),), t))
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        if clip:
            x0 = x0.clamp(-1, 1)
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5
        x = p**0.5 * x0 + (1 - p - sigma**2) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * torch.randn(x.shape, generator=generator)
    return x


def ddim_sample_inputs(generator: torch.Generator, index: int) -> Case:
    """Gaussian data again: uneven steps without and with noise, every step at η = 1, and clipping on either side."""
    shape = ((6, 1), (5, 2), (3, 1, 4, 4), (4, 3), (8, 2))[index]
    mean, std = ((0.5, 0.3), (-0.4, 1.5), (1.2, 1.6), (0.2, 0.4), (-1.2, 1.6))[index]
    every = list(range(29, -1, -1))
    steps = ([29, 20, 12, 7, 3], [27, 14, 6, 2], [29, 22, 9, 5, 1, 0], every, [28, 17, 11, 4])[index]
    eta, clip = ((0.0, False), (0.5, False), (0.0, True), (1.0, False), (0.5, True))[index]
    args = {
        "x_T": torch.randn(shape, generator=generator),
        "alpha_bar": schedules.alpha_bars(schedules.linear(30, 0.01, 0.3)),
        "timesteps": steps,
        "eta": eta,
        "seed": int(torch.randint(1000, (), generator=generator)),
        "clip": clip,
    }
    return Case({**args, "mean": mean, "std": std}, {"n": len(steps)})


def run_ddim_sample(answer, x_T, alpha_bar, timesteps, eta, seed, clip, mean, std):
    """The samples, and the timesteps at which the network was called."""
    model = Oracle(mean, std, alpha_bar)
    generator = torch.Generator().manual_seed(seed) if eta > 0 else None
    x0 = answer(_as_network(model), x_T.float(), alpha_bar, timesteps, eta, generator, clip)
    return _record(x0, model.asked)


def _ddim(
    previous=None,
    end=1.0,
    eta=None,
    keep=None,
    noise=True,
    redo=False,
    clip=None,
    root=0.5,
    clamp=lambda x0: x0.clamp(-1, 1),
    hat=_x0_hat,
    sigma_of=None,
    level_root=0.5,
    draw=lambda x, generator: torch.randn(x.shape, generator=generator),
):
    """A DDIM sampler with some of its parts replaced."""

    def sampler(model, x_T, alpha_bar, timesteps, asked_eta, generator, asked_clip):
        x, clamped = x_T, asked_clip if clip is None else clip
        for number, t in enumerate(timesteps):
            t_prev = timesteps[number + 1] if number + 1 < len(timesteps) else -1
            t_prev = t_prev if previous is None else previous(t, t_prev, len(alpha_bar) // len(timesteps))
            a, p = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else end or float(alpha_bar[0])
            eps = model(x, torch.full((len(x),), t))
            x0 = hat(x, eps, a)
            x0 = clamp(x0) if clamped else x0
            eps = (x - a**0.5 * x0) / (1 - a) ** 0.5 if redo else eps
            strength = asked_eta if eta is None else eta
            sigma = strength * max((1 - p) / (1 - a) * (1 - a / p), 0.0) ** root
            sigma = sigma if sigma_of is None else sigma_of(strength, a, p)
            kept = max(1 - p - sigma**2, 0.0) ** 0.5 if keep is None else keep(p, sigma)
            x = p**level_root * x0 + kept * eps
            if sigma > 0 and noise:
                x = x + sigma * draw(x, generator)
        return x

    return sampler


def ddim_sample_by_song(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    """Song eq. 12 as printed, three terms, noise at every step (with σ = 0 at the last)."""
    x, levels = x_T, [*(float(alpha_bar[t]) for t in timesteps), 1.0]
    for number, t in enumerate(timesteps):
        now, before = levels[number], levels[number + 1]
        eps = model(x, torch.full((x.shape[0],), t, dtype=torch.long))
        predicted = (x - (1 - now) ** 0.5 * eps) / now**0.5
        predicted = torch.clamp(predicted, -1, 1) if clip else predicted
        sigma = eta * ((1 - before) / (1 - now)) ** 0.5 * (1 - now / before) ** 0.5
        z = torch.randn(x.shape, generator=generator) if eta > 0 else torch.zeros_like(x)
        x = before**0.5 * predicted + (1 - before - sigma**2) ** 0.5 * eps + sigma * z
    return x


def ddim_sample_in_float64(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    def wide(x, t):
        return model(x.float(), t).double()

    return _ddim()(wide, x_T.double(), alpha_bar, timesteps, eta, generator, clip).float()


def ddim_sample_in_place(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    x, path = x_T.clone(), list(timesteps)
    while path:
        t = path.pop(0)
        a, p = alpha_bar[t].item(), alpha_bar[path[0]].item() if path else 1.0
        eps = model(x, torch.tensor([t]).expand(len(x)))
        x0 = (x - eps * (1 - a) ** 0.5) / a**0.5
        x0 = x0.clamp_(-1, 1) if clip else x0
        sigma = eta * ((1 - p) * (p - a) / (p * (1 - a))) ** 0.5
        x.copy_(p**0.5 * x0).add_((1 - p - sigma**2) ** 0.5 * eps)
        if sigma:
            x.add_(torch.randn(x.shape, generator=generator), alpha=sigma)
    return x


def ddim_sample_flat(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    def flat_model(x, t):
        return model(x.view_as(x_T), t).flatten(1)

    def noise():
        return torch.randn(x_T.shape, generator=generator).flatten(1)

    x = x_T.flatten(1)
    for t, after in zip(timesteps, timesteps[1:] + [None], strict=True):
        a = alpha_bar[t]
        p = torch.ones((), dtype=torch.float64) if after is None else alpha_bar[after]
        eps = flat_model(x, torch.full((len(x),), t))
        x0 = (x - (1 - a).sqrt().float() * eps) / a.sqrt().float()
        x0 = x0.clip(-1, 1) if clip else x0
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)).sqrt()
        x = p.sqrt().float() * x0 + (1 - p - sigma**2).sqrt().float() * eps
        if eta and after is not None:
            x = x + sigma.float() * noise()
    return x.view_as(x_T)


def ddim_sample_wraps_around(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    x = x_T
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        a, p = alpha_bar[t], alpha_bar[t_prev]
        eps = model(x, torch.full((len(x),), t))
        x0 = _x0_hat(x, eps, a)
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5
        x = p**0.5 * (x0.clamp(-1, 1) if clip else x0) + (1 - p - sigma**2) ** 0.5 * eps
        x = x + sigma * torch.randn(x.shape, generator=generator) if eta and t_prev >= 0 else x
    return x


def ddim_sample_stops_early(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    x = x_T
    for t, t_prev in zip(timesteps, timesteps[1:], strict=False):
        a, p = float(alpha_bar[t]), float(alpha_bar[t_prev])
        eps = model(x, torch.full((len(x),), t))
        x0 = _x0_hat(x, eps, a)
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5
        x = p**0.5 * (x0.clamp(-1, 1) if clip else x0) + (1 - p - sigma**2) ** 0.5 * eps
        x = x + sigma * torch.randn(x.shape, generator=generator) if eta else x
    return x


def ddim_sample_at_the_old_level(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    x = x_T
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        a, p = _level(alpha_bar, t), _level(alpha_bar, t_prev)
        eps = model(x, torch.full((len(x),), t))
        x0 = _x0_hat(x, eps, a)
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5
        x = a**0.5 * (x0.clamp(-1, 1) if clip else x0) + (1 - p - sigma**2) ** 0.5 * eps
        x = x + sigma * torch.randn(x.shape, generator=generator) if sigma > 0 else x
    return x


def ddim_sample_clamps_the_end(model, x_T, alpha_bar, timesteps, eta, generator, clip):
    x = ddim_sample(model, x_T, alpha_bar, timesteps, eta, generator, False)
    return x.clamp(-1, 1) if clip else x


def draw_ddim(answer):
    """The paths of 40 points from noise to data, deterministic, with the learner's sampler and the reference."""
    alpha_bar = make_schedule(100, 1e-3, 0.2)
    x_T = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    steps = list(range(99, -1, -9))

    def path(sampler):
        visited = []

        def model(x, t):
            visited.append(x.clone())
            return mixture_eps(x, float(alpha_bar[int(t[0])]))

        visited.append(sampler(model, x_T, alpha_bar, steps, 0.0, None, False))
        return torch.stack(visited)  # (steps + 1, 40, 2)

    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH * 0.75, 3.1, 1, 2, sharey=True)
        for ax, sampler, title in zip(figure.axes, (answer, ddim_sample), ("yours", "reference"), strict=True):
            lines = path(sampler)
            ax.plot(lines[..., 0].numpy(), lines[..., 1].numpy(), color=plots.FAINT, linewidth=0.8, linestyle="-")
            plots.draw_points(ax, lines[-1], (lines[-1, :, 0] > 0).long(), limit=2.6, title=title)
    return figure


DDIM_SAMPLE = Exercise(
    id="13.5",
    title="The DDIM sampler",
    difficulty=3,
    minutes=10,
    equation="Song eq. 12, 16",
    where="The contract",
    lines=12,
    reference=ddim_sample,
    inputs=ddim_sample_inputs,
    run=run_ddim_sample,
    hints=(
        "The same x̂_0 as before. Then the new x is made of x̂_0 at the level moved to, the same ε once more, and as "
        "much fresh noise as η says; together they must have the right variance.",
        "x_prev = √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ²) ε + σ z (Song eq. 12), "
        "σ = η √((1-ᾱ_prev)/(1-ᾱ_t)) √(1-ᾱ_t/ᾱ_prev) (eq. 16). "
        "ᾱ_prev belongs to the next entry of the list, and is 1 after the last.",
        "`for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):` `a, p = ...`, `eps = ...`, `x0 = ...`, "
        "`sigma = eta * ...`, `x = ... * x0 + ... * eps`, and noise where sigma > 0",
    ),
    mistakes=(
        Mistake(
            _ddim(previous=lambda t, t_prev, stride: t - 1),
            "you moved to t-1 whatever the list says: the next entry may be many steps away, and your samples are not "
            "finished when the list is",
        ),
        Mistake(
            _ddim(previous=lambda t, t_prev, stride: max(t - stride, -1)),
            "you moved by T/n steps: the list need not be even, the level moved to belongs to its next entry",
        ),
        Mistake(
            _ddim(end=None),
            "you ended at ᾱ_0, the level of index 0: after the last entry comes x_0 itself, without noise",
        ),
        Mistake(
            ddim_sample_wraps_around,
            "you took a root of a negative number, and nothing finite is left: which level do you read after the last "
            "entry? Index -1 is the noisy end of the table",
        ),
        Mistake(
            ddim_sample_stops_early,
            "you stopped at the level of the last entry, without asking the network there: the list has {n} entries, "
            "and each of them is a call",
        ),
        Mistake(
            lambda m, x, a, steps, *rest: ddim_sample(m, x, a, list(range(len(a) - 1, -1, -1)), *rest),
            "you visited every t: only the {n} entries of the list are asked for",
        ),
        Mistake(
            lambda m, x, a, steps, *rest: ddim_sample(m, x, a, list(range(len(steps) - 1, -1, -1)), *rest),
            "you used positions in the list for timesteps: the entries themselves are the t",
        ),
        Mistake(
            _ddim(hat=lambda x, eps, a: (x + (1 - a) ** 0.5 * eps) / a**0.5),
            "you added the noise where Ho eq. 15 takes it out: look at the sign",
        ),
        Mistake(
            _ddim(hat=lambda x, eps, a: (x - (1 - a) * eps) / a),
            "you left out the square roots in x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddim(level_root=1.0),
            "you left out the root in front of x̂_0: ᾱ_prev is a share of the variance",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: eta * (1 - a / p) ** 0.5),
            "you took σ = η√β, the second root of Song eq. 16 alone: the first one is missing",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: eta * ((1 - p) * (1 - a / p)) ** 0.5),
            "you left the denominator 1-ᾱ_t out of σ (Song eq. 16)",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: eta**2 * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5),
            "you squared η: σ grows with η itself, and σ² with its square",
        ),
        Mistake(
            _ddim(keep=lambda p, sigma: max(1 - p - sigma, 0.0) ** 0.5),
            "you took σ off where σ² comes off: variances add up, standard deviations do not",
        ),
        Mistake(
            _ddim(keep=lambda p, sigma: (1 - p + sigma**2) ** 0.5),
            "you added σ² under the root of the direction: the fresh noise needs its room, so it comes off",
        ),
        Mistake(
            ddim_sample_clamps_the_end,
            "you clamped the finished samples only: it is x̂_0 that is clamped, in every step",
        ),
        Mistake(
            _ddim(clamp=lambda x0: x0.clamp(0, 1)),
            "you clamped x̂_0 to [0, 1]: the data lie in [-1, 1]",
        ),
        Mistake(
            _ddim(eta=0.0),
            "you ignored η: at η = {eta} there must be fresh noise in each step",
        ),
        Mistake(
            _ddim(eta=1.0),
            "you took η = 1 always: at η = 0 the same noise must give the same samples, without any draw",
        ),
        Mistake(
            _ddim(keep=lambda p, sigma: (1 - p) ** 0.5),
            "you kept all of ε and added fresh noise on top: the variances must add up to 1-ᾱ_prev, so σ² comes off",
        ),
        Mistake(
            _ddim(noise=False),
            "you made room for the fresh noise and added none: the variance falls short in every step",
        ),
        Mistake(
            _ddim(root=1.0),
            "you left out the square roots of Song eq. 16: σ is a standard deviation",
        ),
        Mistake(
            _ddim(keep=lambda p, sigma: 1 - p - sigma**2),
            "you left out the root in front of ε: the direction is scaled by a standard deviation",
        ),
        Mistake(_ddim(clip=False), "you never clamped x̂_0, though `clip` asked for it"),
        Mistake(
            _ddim(clip=True),
            "you clamped x̂_0 without being asked: these data reach beyond [-1, 1], and your samples do not",
        ),
        Mistake(
            _ddim(redo=True),
            "you derived ε anew from the clamped x̂_0: a fair choice that the package offers too, but the "
            "contract keeps the network's own",
        ),
        Mistake(
            lambda m, x, a, steps, *rest: _ddim()(m, x, a, steps[::-1], *rest),
            "you went through the list backwards: it falls, and starts where the noise is",
        ),
        Mistake(
            lambda m, x, a, steps, *rest: ddim_sample(m, x, a, steps[:-1], *rest),
            "you left out the last entry: the network is called once for each of the {n}",
        ),
        Mistake(
            lambda m, x, a, steps, *rest: ddim_sample(m, x, a, steps[1:], *rest),
            "you left out the first entry: the network is called once for each of the {n}",
        ),
        Mistake(
            lambda m, x, a, steps, *rest: ddim_sample(m, x, a, [*steps, 0], *rest),
            "you visited t = 0 besides: the list ends where it ends, and after it comes x_0",
        ),
        Mistake(
            _ddim(previous=lambda t, t_prev, stride: t_prev if t_prev >= 0 else t),
            "you stayed at the level of the last entry: after it comes x_0 itself, without noise",
        ),
        Mistake(
            _ddim(clamp=lambda x0: x0.clamp(max=1)),
            "you clamped x̂_0 from above alone: it reaches below -1 too",
        ),
        Mistake(
            _ddim(clamp=lambda x0: x0.clamp(min=-1)),
            "you clamped x̂_0 from below alone: it reaches above 1 too",
        ),
        Mistake(
            lambda *given: ddim_sample(*given).clamp(-1, 1),
            "you clamped the finished samples, asked or not: data may reach beyond [-1, 1]",
        ),
        Mistake(
            _ddim(hat=lambda x, eps, a: (x - (1 - a) * eps) / a**0.5),
            "you left out the square root of 1-ᾱ_t in x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddim(hat=lambda x, eps, a: (x - (1 - a) ** 0.5 * eps) / a),
            "you left out the square root of ᾱ_t in x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddim(hat=lambda x, eps, a: x - (1 - a) ** 0.5 * eps),
            "you took the noise out and did not divide by √ᾱ_t: what is left is a shrunken x̂_0 (Ho eq. 15)",
        ),
        Mistake(
            _ddim(level_root=0.0),
            "you left out the factor in front of x̂_0: at the level moved to it is shrunk",
        ),
        Mistake(
            ddim_sample_at_the_old_level,
            "you shrank x̂_0 by √ᾱ_t, the level you come from: it goes to the level moved to",
        ),
        Mistake(
            _ddim(keep=lambda p, sigma: (1 - p) ** 0.5 - sigma),
            "you took σ off outside of the root: variances add up, standard deviations do not",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: eta * (1 - p) ** 0.5),
            "you gave all of the noise's room to the fresh noise at η = 1: Song eq. 16 has a second factor",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: eta * (1 - p) / (1 - a) * (1 - a / p) ** 0.5),
            "you left out the first of the two square roots of Song eq. 16",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: eta * ((1 - p) / (1 - a)) ** 0.5 * (1 - a / p)),
            "you left out the second of the two square roots of Song eq. 16",
        ),
        Mistake(
            _ddim(sigma_of=lambda eta, a, p: float(eta > 0) * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5),
            "you asked only whether η is above 0: here it is {eta:g}, and σ grows with it",
        ),
        Mistake(
            _ddim(draw=lambda x, generator: -torch.randn(x.shape, generator=generator)),
            "you subtracted the noise: as good a sampler, but not the one that this generator stands for",
        ),
        Mistake(
            _ddim(draw=lambda x, generator: torch.rand(x.shape, generator=generator)),
            "you drew uniform noise: it is never negative, and pushes all samples one way",
        ),
        Mistake(
            _ddim(draw=lambda x, generator: torch.randn(x.shape[1:], generator=generator)),
            "you drew one noise for the whole batch: every sample needs its own",
        ),
    ),
    alternatives=(ddim_sample_by_song, ddim_sample_in_float64, ddim_sample_in_place, ddim_sample_flat),
    picture=draw_ddim,
    rtol=2e-3,
    cases=5,
)


HANDED_IN = {
    "A": _ddpm(order=lambda T: range(T - 1, 0, -1)),
    "B": _ddpm(z=0.0),
    "C": _ddpm(std=lambda a, p: (1 - a / p) ** 0.5),
}
"""The samplers of the bug clinic, with one bug each. Guess before you read them."""


EXERCISES = (MAKE_SCHEDULE, TRAINING_LOSS, TRAIN, DDPM_SAMPLE, DDIM_SAMPLE)
