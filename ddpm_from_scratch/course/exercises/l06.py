"""Exercises of lesson 06, training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor, nn

from ddpm_from_scratch import gaussian, schedules, training
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.data import load_dataset
from ddpm_from_scratch.models.unet import UNet2DOutput
from ddpm_from_scratch.schedulers import DDPMScheduler

ALPHA_BAR = schedules.alpha_bars(schedules.linear())

# ---------------------------------------------------------------- networks to train within a second


class TinyNetwork(nn.Module):
    """ε for images of 8×8 pixels, called as a U-Net is.

    Three linear layers, and a share of x_t that depends on t, predict the velocity v, from which ε follows (lesson 03).
    """

    def __init__(self, width: int = 256, pixels: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(pixels + 13, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, pixels),
        )
        self.share_of_x_t = nn.Linear(13, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        x_t, t = sample, timestep
        share = t.to(x_t.dtype)[:, None] / 1000
        waves = share * math.pi * 2.0 ** torch.arange(6)
        when, x = torch.cat([share, waves.sin(), waves.cos()], dim=1), x_t.flatten(1)
        v = self.share_of_x_t(when) * x + self.layers(torch.cat([x, when], dim=1))
        a = ALPHA_BAR[t].to(x_t.dtype).reshape(-1, 1, 1, 1)
        return UNet2DOutput(sample=gaussian.eps_from_v(x_t, v.view_as(x_t), a))


class _Toy(nn.Module):
    """A network of three numbers that looks at x_t, at its neighbour pixel and at t, called as a U-Net is.

    What it puts out goes beyond [-1, 1], as noise does.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.scales, self.shift = (nn.Parameter(torch.randn(n, generator=generator)) for n in (2, 1))

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        x_t, t = sample, torch.as_tensor(timestep)
        if x_t.dtype != self.shift.dtype:
            raise TypeError(f"the network's weights are {self.shift.dtype}, so x_t must be, too; yours is {x_t.dtype}")
        when = t.to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1)) / 1000
        seen = self.scales[0] * x_t + self.scales[1] * x_t.roll(1, -1) + 3 * self.shift * when
        return UNet2DOutput(sample=2 * torch.tanh(seen))


def flat(model: nn.Module) -> Tensor:
    """All weights of a network as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def must_be_a_number(loss: Any) -> None:
    """Refuses a tuple, a text and what else is no loss."""
    if not isinstance(loss, Tensor | float | int | np.number):
        raise TypeError(f"the result is of type {type(loss).__name__}, the loss alone is asked for")


# ---------------------------------------------------------------- 06.1


def diffusion_loss(model: nn.Module, scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The loss of one batch: how far the network's ε is from the ε that was put in.

    model: model(x_t, t).sample is the predicted noise, of x_t's shape.
    scheduler: scheduler.add_noise(x0, noise, t) is your q_sample for a batch, with ᾱ looked up for each t.
    x0, noise: shape (B, C, H, W).
    t: shape (B,), whole numbers.
    Returns a number as a tensor, from which backward() reaches the network's weights.
    """
    x_t = scheduler.add_noise(x0, noise, t)
    predicted = model(x_t, t).sample
    return ((noise - predicted) ** 2).mean()


def diffusion_loss_inputs(generator: torch.Generator, index: int) -> Case:
    """Grey and colour images, small batches, each image at a t of its own; little noise, all t, much noise.

    Once the network is in eval mode, as where a loss is measured.
    """
    shape = ((4, 1, 6, 6), (3, 3, 4, 4), (6, 1, 5, 5), (2, 2, 4, 6))[index]
    low, high = ((0, 1000), (0, 60), (300, 700), (800, 1000))[index]
    x0 = torch.rand(shape, generator=generator) * 2 - 1
    noise = torch.randn(shape, generator=generator)
    t = torch.randperm(high - low, generator=generator)[: shape[0]] + low
    model = _Toy(generator).train(index != 2)
    args = {"model": model, "scheduler": DDPMScheduler(), "x0": x0, "noise": noise, "t": t}
    return Case(args, {"B": shape[0], "size": x0.numel()})


def loss_and_gradient(answer: Callable[..., Any], model: nn.Module, *arguments: Any) -> Any:
    """The loss, the gradient that it gives the weights, which is what matters, and what is left in the network.

    The weights come with a gradient of an earlier batch, 1 everywhere.
    """
    gradient, weights = torch.zeros_like(flat(model)), list(model.parameters())
    for p in weights:
        p.grad = torch.ones_like(p)
    loss = answer(model, *arguments)
    if loss is None:
        return None
    must_be_a_number(loss)
    stored = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in weights])
    if isinstance(loss, Tensor) and loss.requires_grad and bool((stored == 1).all()):
        found = torch.autograd.grad(loss.sum(), weights, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([g.flatten() for g in found])
    loss = loss.float() if isinstance(loss, Tensor) else loss
    return {"loss": loss, "gradient": gradient, "training mode": model.training, "gradients stored": stored}


def loss_by_mse(model, scheduler, x0, noise, t):
    return nn.functional.mse_loss(model(scheduler.add_noise(x0, noise, t), t).sample, noise)


def loss_by_loop(model, scheduler, x0, noise, t):
    losses = []
    for i in range(len(x0)):
        one = slice(i, i + 1)
        predicted = model(scheduler.add_noise(x0[one], noise[one], t[one]), t[one]).sample
        losses.append((predicted - noise[one]).square().mean())
    return sum(losses) / len(losses)


def loss_in_float64(model, scheduler, x0, noise, t):
    a = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    x_t = (a**0.5 * x0.double() + (1 - a) ** 0.5 * noise.double()).to(x0.dtype)
    return (noise.double() - model(x_t, t).sample.double()).square().mean().to(x0.dtype)


def loss_flattened(model, scheduler, x0, noise, t):
    error = (noise - model(sample=scheduler.add_noise(x0, noise, t), timestep=t).sample).flatten(1)
    return error.norm(dim=1).square().sum() / error.numel()


def loss_in_place(model, scheduler, x0, noise, t):
    a = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1).to(x0.dtype)
    x_t = x0.clone()
    x_t *= a.sqrt()
    x_t += (1 - a).sqrt() * noise
    return torch.mean((model(x_t, t).sample - noise) ** 2)


def _squared(model, scheduler, x0, noise, t, target=None, x_t=None, at=None):
    """The squared error with another target, another input or another t."""
    x_t = scheduler.add_noise(x0, noise, t) if x_t is None else x_t
    return ((noise if target is None else target) - model(x_t, t if at is None else at).sample) ** 2


def _without_roots(model, scheduler, x0, noise, t):
    a = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1).to(x0.dtype)
    return _squared(model, scheduler, x0, noise, t, x_t=a * x0 + (1 - a) * noise).mean()


def _in_eval_mode(model, scheduler, x0, noise, t):
    return diffusion_loss(model.eval(), scheduler, x0, noise, t)


def _in_training_mode(model, scheduler, x0, noise, t):
    return diffusion_loss(model.train(), scheduler, x0, noise, t)


def _with_backward(model, scheduler, x0, noise, t):
    loss = diffusion_loss(model, scheduler, x0, noise, t)
    loss.backward()
    return loss


def _with_zero_grad(loss_function, model, *batch):
    model.zero_grad()
    return loss_function(model, *batch)


DIFFUSION_LOSS = Exercise(
    id="06.1",
    title="The loss of one batch",
    difficulty=1,
    minutes=4,
    equation="Ho eq. 14, algorithm 1",
    where="Algorithm 1",
    lines=3,
    reference=diffusion_loss,
    inputs=diffusion_loss_inputs,
    run=loss_and_gradient,
    hints=(
        "Make x_t yourself: then you know which noise is in it. The network sees x_t and t and says what it thinks. "
        "Compare.",
        "L_simple = E ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖². Over a batch, the expectation is a mean over all images "
        "and pixels.",
        "`x_t = ...`, `predicted = model(..., ...).sample`, then the mean of a square",
    ),
    mistakes=(
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, target=x0).mean(),
            "you compared the prediction with x_0: this network is asked for the noise",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, target=s.add_noise(x0, e, t)).mean(),
            "you compared the prediction with x_t, which is the network's own input: to copy it would be perfect",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).sum(),
            "you summed over the {size} pixels of the batch: the loss, and with it the gradient, then grows with the "
            "batch and the image",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).flatten(1).mean(1),
            "you returned one loss for each of the {B} images: backward() needs one number",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).flatten(1).sum(1).mean(),
            "you took the mean over the images but the sum over the pixels: that is the norm as eq. 14 writes it, but "
            "this loss is per pixel, so that 1 means no better than answering 0",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=x0).mean(),
            "you showed the clean images to the network: there is no noise in them to be found",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=x0 + e).mean(),
            "you added the noise without the schedule: x_t has scales in front of both terms",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=s.add_noise(x0, e, t[:1].expand_as(t))).mean(),
            "you made all images with the t of the first one: each of the {B} images has its own",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, at=t[:1].expand_as(t)).mean(),
            "you told the network the t of the first image for all {B}",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, at=t + 1).mean(),
            "you told the network t+1, where x_t was made with t: in code both count from 0",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, at=t / 1000).mean(),
            "you told the network t/T: the networks of this course take t itself and scale it inside",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=s.add_noise(e, x0, t)).mean(),
            "you swapped the image and the noise, or their two scales, when you made x_t",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).sqrt().mean(),
            "you took the absolute error: its best answer is a median, and the theory of lesson 03 needs the mean, "
            "which the square gives",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).mean().sqrt(),
            "you took the root of the mean: that changes the length of every gradient",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).mean().detach(),
            "you have the right number, but it is cut off from the network (detach, item, float or no_grad): no "
            "gradient reaches the weights",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, target=torch.randn_like(e)).mean(),
            "you compared with fresh noise: it must be the noise that is in x_t",
        ),
        Mistake(
            _in_eval_mode,
            "you put the network into eval mode, and leave it there: its dropout is then off for the rest of the "
            "training. The mode is not this function's business",
        ),
        Mistake(
            lambda m, s, x0, e, t: 0.5 * _squared(m, s, x0, e, t).mean(),
            "you halved the loss: here 1 has to mean no better than answering 0",
        ),
        Mistake(
            _without_roots,
            "you made x_t with ᾱ_t and 1-ᾱ_t themselves: their square roots stand in front of x_0 and the noise",
        ),
        Mistake(
            lambda m, s, x0, e, t: -_squared(m, s, x0, e, t).mean(),
            "you returned the negative: an optimiser makes the loss small, and yours has no floor",
        ),
        Mistake(
            lambda m, s, x0, e, t: ((e - m(s.add_noise(x0, e, t), t).sample).mean()) ** 2,
            "you squared the mean: errors of both signs cancel first, so take the mean of the squares",
        ),
        Mistake(
            _in_training_mode,
            "you put the network into training mode, and leave it there: a loss that is measured in eval mode then "
            "has dropout in it. The mode is not this function's business",
        ),
        Mistake(
            _with_backward,
            "you called backward() within the loss: that is for whoever takes the step, and called twice it adds the "
            "gradient up twice",
        ),
        Mistake(
            lambda *batch: _with_zero_grad(diffusion_loss, *batch),
            "you cleared the gradients within the loss (`zero_grad`): that is for whoever takes the step, and what "
            "earlier batches have gathered there would be lost",
        ),
        Mistake(
            lambda *batch: _with_zero_grad(_with_backward, *batch),
            "you called zero_grad() and backward() within the loss: both are for whoever takes the step",
        ),
        Mistake(
            lambda m, s, x0, e, t: (e - m(s.add_noise(x0, e, t), t).sample.clamp(-1, 1)).square().mean(),
            "you clipped the prediction to [-1, 1]: that is the range of images, noise goes beyond, and no gradient "
            "passes where you clip",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, at=t - 1).mean(),
            "you told the network t-1, where x_t was made with t: in code both count from 0",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=s.add_noise(x0, e, (t + 1).clamp(max=999))).mean(),
            "you made x_t with t+1, where the network is told t: in code both count from 0",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=s.add_noise(x0, e, (t - 1).clamp(min=0))).mean(),
            "you made x_t with t-1, where the network is told t: in code both count from 0",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, target=x0 - e).mean(),
            "you compared the prediction with the difference of image and noise: this network is asked for the noise",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, target=-e).mean(),
            "you added noise and prediction: their difference is the error",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t, x_t=e).mean(),
            "you showed the noise alone to the network: it has to find it in x_t",
        ),
        Mistake(
            lambda m, s, x0, e, t: _squared(m, s, x0, e, t).sum().sqrt(),
            "you returned the length of the error, the root of a sum: the mean of the squares is asked for",
        ),
        Mistake(
            lambda m, s, x0, e, t: 2 * (e - m(s.add_noise(x0, e, t), t).sample).mean(),
            "you doubled the error instead of squaring it (`* 2` for `** 2`): errors of both signs cancel",
        ),
        Mistake(
            lambda m, s, x0, e, t: (e - m(s.add_noise(x0, e, t), t).sample).mean(),
            "you did not square the error: errors of both signs cancel, and the loss has no floor",
        ),
        Mistake(
            lambda m, s, x0, e, t: (e - m(s.add_noise(x0, e, t), t).sample).var(),
            "you took the variance of the error: an error that is the same at every pixel would cost nothing",
        ),
    ),
    alternatives=(loss_by_mse, loss_by_loop, loss_in_float64, loss_flattened, loss_in_place),
    package="ddpm_from_scratch.training.diffusion_loss",
    rtol=1e-4,
)


# ---------------------------------------------------------------- 06.2


def training_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scheduler: DDPMScheduler,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    largest_norm: float,
) -> float:
    """One step of algorithm 1 for one batch: changes the network's weights.

    model, scheduler, x0, noise, t: as in exercise 06.1; training.diffusion_loss is that exercise's finished function.
    optimiser: holds the network's weights.
    largest_norm: a gradient longer than this is shortened to it before it is used.
    Returns the loss before the step, as a number.
    """
    loss = training.diffusion_loss(model, scheduler, x0, noise, t)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimiser.step()
    return float(loss.detach())


def training_step_inputs(generator: torch.Generator, index: int) -> Case:
    """Three batches; a norm so small that it always bites, one that bites in some of the steps, and none."""
    shape = ((3, 4, 1, 6, 6), (3, 2, 3, 4, 4), (3, 6, 1, 5, 5))[index]
    x0 = torch.rand(shape, generator=generator) * 2 - 1
    noise = torch.randn(shape, generator=generator)
    t = torch.randint(1000, shape[:2], generator=generator)
    args = {"model": _Toy(generator), "x0": x0, "noise": noise, "t": t}
    return Case({**args, "largest_norm": (0.05, 1.5, math.inf)[index]})


class _Momentum:
    """Gradient descent with a memory, called as PyTorch's optimisers are, which take seconds to import."""

    def __init__(self, parameters: Any, lr: float, momentum: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr, "momentum": momentum}]
        self.moving: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None if set_to_none or p.grad is None else torch.zeros_like(p.grad)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is not None:
                self.moving[p] = group["momentum"] * self.moving.get(p, torch.zeros_like(p)) + p.grad
                p -= group["lr"] * self.moving[p]
        return loss


def three_steps(answer: Callable[..., Any], model: nn.Module, x0: Any, noise: Any, t: Any, largest_norm: float) -> Any:
    """Losses and weights of three steps in a row, by an optimiser with a memory."""
    optimiser = _Momentum(model.parameters(), lr=0.3, momentum=0.9)
    scheduler, losses, weights = DDPMScheduler(), [], []
    for batch in zip(x0, noise, t, strict=True):
        losses.append(answer(model, optimiser, scheduler, *batch, largest_norm))
        weights.append(flat(model))
    if all(loss is None for loss in losses):
        return None
    for loss in losses:
        must_be_a_number(loss)
    graphs = sum(isinstance(loss, Tensor) and loss.requires_grad for loss in losses)
    found = {"graphs kept": graphs, "weights": torch.stack(weights), "losses": losses}
    return {**found, "training mode": model.training}


def step_zeroed_at_the_end(model, optimiser, scheduler, x0, noise, t, largest_norm):
    loss = training.diffusion_loss(model, scheduler, x0, noise, t)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=largest_norm)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


def step_clipped_by_hand(model, optimiser, scheduler, x0, noise, t, largest_norm):
    loss = ((noise - model(scheduler.add_noise(x0, noise, t), t).sample) ** 2).mean()
    model.zero_grad()
    loss.backward()
    norm = sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5
    if norm > largest_norm:
        for p in model.parameters():
            p.grad *= largest_norm / norm
    optimiser.step()
    return loss.detach()


def step_by_autograd(model, optimiser, scheduler, x0, noise, t, largest_norm):
    parameters = list(model.parameters())
    loss = training.diffusion_loss(model, scheduler, x0, noise, t)
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.grad = gradient.clone()
    nn.utils.clip_grad_norm_(parameters, largest_norm)
    optimiser.step()
    return float(loss.detach())


def step_in_two_halves(model, optimiser, scheduler, x0, noise, t, largest_norm):
    optimiser.zero_grad(set_to_none=False)
    total, half = 0.0, len(x0) // 2
    for part in (slice(half), slice(half, None)):
        loss = training.diffusion_loss(model, scheduler, x0[part], noise[part], t[part]) / 2
        loss.backward()
        total += float(loss.detach())
    nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimiser.step()
    return total


def step_one_image_at_a_time(model, optimiser, scheduler, x0, noise, t, largest_norm):
    optimiser.zero_grad()
    losses = [training.diffusion_loss(model, scheduler, *(v[i : i + 1] for v in (x0, noise, t))) for i in range(len(t))]
    loss = torch.stack(losses).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimiser.step()
    return float(loss.detach())


def step_by_closure(model, optimiser, scheduler, x0, noise, t, largest_norm):
    def closure():
        optimiser.zero_grad()
        loss = training.diffusion_loss(model, scheduler, x0, noise, t)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
        return loss

    return float(optimiser.step(closure).detach())


def _step(order: str, clip: Callable[..., Any] = nn.utils.clip_grad_norm_, target: str = "noise") -> Callable[..., Any]:
    """A step whose parts come in the order of the letters: z(ero), b(ackward), c(lip), s(tep)."""

    def answer(model, optimiser, scheduler, x0, noise, t, largest_norm):
        loss = training.diffusion_loss(model, scheduler, x0, noise, t)
        parts = {
            "z": optimiser.zero_grad,
            "b": loss.backward,
            "c": lambda: clip(model.parameters(), largest_norm),
            "s": optimiser.step,
        }
        given = {letter: parts[letter]() for letter in order}
        if target == "norm":
            return float(given["c"])
        after = training.diffusion_loss(model, scheduler, x0, noise, t) if target == "after" else loss
        return float(after.detach())

    return answer


def _step_with_its_graph(model, optimiser, scheduler, x0, noise, t, largest_norm):
    loss = training.diffusion_loss(model, scheduler, x0, noise, t)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimiser.step()
    return loss


def _step_in_eval_mode(model, *rest):
    return training_step(model.eval(), *rest)


def _step_by_hand(model, optimiser, scheduler, x0, noise, t, largest_norm):
    loss = training.diffusion_loss(model, scheduler, x0, noise, t)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    with torch.no_grad():
        for p in model.parameters():
            p -= optimiser.param_groups[0]["lr"] * p.grad
    return float(loss.detach())


def _scale_to_it(parameters, largest_norm):
    parameters = list(parameters)
    if math.isfinite(largest_norm):
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            p.grad.mul_(largest_norm / norm)


def _drop_if_longer(parameters, largest_norm):
    parameters = list(parameters)
    if torch.stack([p.grad.norm() for p in parameters]).norm() > largest_norm:
        for p in parameters:
            p.grad.zero_()


def _clip_one_by_one(parameters, largest_norm):
    for p in parameters:
        nn.utils.clip_grad_norm_([p], largest_norm)


def _normalise(parameters, largest_norm):
    parameters = list(parameters)
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    for p in parameters:
        p.grad.mul_((largest_norm if math.isfinite(largest_norm) else 1.0) / norm)


def draw_training(answer):
    """Loss of 200 steps of a tiny network on digits, by the learner's function and by the reference."""
    data = load_dataset("digits")
    x0 = data.images(slice(512))  # type: ignore[union-attr]
    scheduler, curves = DDPMScheduler(), {}
    for name, step in (("yours", answer), ("reference", training_step)):
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = TinyNetwork(width=64)
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        losses = []
        for _ in range(200):
            batch = x0[torch.randint(len(x0), (32,), generator=generator)]
            noise, t = torch.randn(batch.shape, generator=generator), torch.randint(1000, (32,), generator=generator)
            losses.append(float(step(model, optimiser, scheduler, batch, noise, t, 1.0)))
        curves[name] = torch.tensor(losses).reshape(-1, 10).mean(1)
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH, 2.7, 1, 2, sharey=True)
        for ax, (name, curve) in zip(figure.axes, curves.items(), strict=True):
            ax.plot(10 * np.arange(len(curve)) + 5, curve.numpy())
            ax.set(title=name, xlabel="training step", ylabel="loss" * (name == "yours"), ylim=(0, 0.45))
    return figure


STEP_GIVEN = """
loss = training.diffusion_loss(model, scheduler, x0, noise, t)
# your code: about 5 lines
...
"""


TRAINING_STEP = Exercise(
    id="06.2",
    title="One step of algorithm 1",
    difficulty=2,
    minutes=5,
    equation="Ho algorithm 1",
    where="One step",
    lines=6,
    reference=training_step,
    given=STEP_GIVEN,
    inputs=training_step_inputs,
    run=three_steps,
    hints=(
        "Four things happen between the loss and the moved weights, and their order matters: forget the old gradient, "
        "compute the new one, limit it, use it.",
        "PyTorch adds each backward() to what is in `.grad`. The gradient's length is that of all weights together, as "
        "one long vector.",
        "`loss = training.diffusion_loss(...)`, `optimiser.zero_grad()`, a backward, "
        "`nn.utils.clip_grad_norm_(..., ...)`, a step",
    ),
    mistakes=(
        Mistake(
            _step("bcs"),
            "you never cleared the gradient: from the second step on, those of the earlier batches are added to it",
        ),
        Mistake(
            _step_with_its_graph,
            "you returned the loss with the whole computation that led to it: a list of such losses fills the memory. "
            "A number is asked for",
        ),
        Mistake(
            _step("zbs"),
            "you did not limit the gradient, or not between backward() and the step: one unusual batch can then throw "
            "the weights far away (`largest_norm`)",
        ),
        Mistake(
            _step("bzcs"),
            "your weights do not move at all: you left out the optimiser's step, or cleared the gradient between "
            "backward() and the step",
        ),
        Mistake(
            _step("szbc"),
            "you stepped before backward(): each step then uses the gradient of the batch before",
        ),
        Mistake(
            _step("zbcs", nn.utils.clip_grad_value_),
            "you limited each number of the gradient by itself: that changes its direction, only its length should "
            "shrink",
        ),
        Mistake(
            _step("zbcs", _clip_one_by_one),
            "you limited each weight tensor by itself: the length is that of the whole gradient",
        ),
        Mistake(
            _step("zbcs", lambda parameters, _: nn.utils.clip_grad_norm_(parameters, 1.0)),
            "you limited the gradient to the length 1: the limit is an argument, `largest_norm`",
        ),
        Mistake(
            _step("zbcs", _normalise),
            "you gave every gradient the same length: one that is short enough should stay as it is",
        ),
        Mistake(
            _step("zbcs", target="after"),
            "you moved the weights rightly, but returned the loss after the step, which costs a second forward pass",
        ),
        Mistake(
            _step("zbcs", target="norm"),
            "you moved the weights rightly, but returned the length of the gradient, which is what "
            "`clip_grad_norm_` gives back",
        ),
        Mistake(
            _step("zbcss"),
            "you let the optimiser step twice with the same gradient",
        ),
        Mistake(
            _step_in_eval_mode,
            "you put the network into eval mode, and leave it there: its dropout is then off for the rest of the "
            "training",
        ),
        Mistake(
            _step("bs"),
            "you neither cleared the gradient nor limited it before the step",
        ),
        Mistake(
            _step("zbcs", _scale_to_it),
            "you brought every gradient to the length `largest_norm`: one that is shorter should stay as it is",
        ),
        Mistake(
            _step("zbcs", _drop_if_longer),
            "you threw gradients away that were too long: they are shortened, their direction is still good",
        ),
        Mistake(
            _step("zbcs", lambda parameters, limit: nn.utils.clip_grad_norm_(list(parameters)[:1], limit)),
            "you limited the gradient of the first weight tensor alone: give `clip_grad_norm_` all of them",
        ),
        Mistake(
            _step_by_hand,
            "you moved the weights by the present gradient alone, yourself or by a new optimiser: the one that you are "
            "given has a memory of the gradients before",
        ),
    ),
    alternatives=(
        step_zeroed_at_the_end,
        step_clipped_by_hand,
        step_by_autograd,
        step_in_two_halves,
        step_one_image_at_a_time,
        step_by_closure,
    ),
    picture=draw_training,
    rtol=1e-4,
    cases=3,
)


# ---------------------------------------------------------------- 06.3


def learning_rate(step: int, peak: float, warmup_steps: int, steps: int) -> float:
    """The learning rate of optimiser step `step`: a linear rise to the peak, times a cosine that falls to 0.

    step: 0 for the first step, steps-1 for the last.
    peak: the rate where neither the rise nor the fall holds it down.
    warmup_steps: at least 1. The first step has already 1/warmup_steps of the rate, so that it moves.
    steps: of the whole run. The cosine falls over all of it, from 1 at step 0 to 0 at `steps`:
    half a period, flat at both ends.
    Returns a number.
    """
    rise = min(1.0, (step + 1) / warmup_steps)
    return peak * rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def learning_rate_inputs(generator: torch.Generator, index: int) -> Case:
    """The first step, within the rise, its last step, the middle, near the end, and the first step after the rise."""
    warmup = int(torch.randint(20, 60, (1,), generator=generator))
    steps = int(torch.randint(400, 900, (1,), generator=generator))
    peak = round(float(torch.rand(1, generator=generator) * 0.5 + 0.1), 3)  # large: the check's zero is absolute
    step = (0, warmup // 2, warmup - 1, steps // 2, steps - 7, warmup)[index]
    return Case({"step": step, "peak": peak, "warmup_steps": warmup, "steps": steps})


def learning_rate_by_cases(step, peak, warmup_steps, steps):
    fall = math.cos(math.pi * step / (2 * steps)) ** 2
    if step + 1 < warmup_steps:
        return peak * fall * (step + 1) / warmup_steps
    return peak * fall


def learning_rate_in_tensors(step, peak, warmup_steps, steps):
    s = torch.tensor(step, dtype=torch.float64)
    rise = ((s + 1) / warmup_steps).clamp(max=1)
    return peak * rise * (1 + torch.cos(torch.pi * s / steps)) / 2


def learning_rate_in_float32(step, peak, warmup_steps, steps):
    return peak * min(1.0, (step + 1) / warmup_steps) * (1 + torch.cos(torch.tensor(math.pi * step / steps))) / 2


def learning_rate_by_loop(step, peak, warmup_steps, steps):
    rise = 0.0
    for _ in range(step + 1):
        rise = min(1.0, rise + 1 / warmup_steps)
    return peak * rise * (1 + math.cos(step * math.pi / steps)) / 2


def learning_rate_in_numpy(step, peak, warmup_steps, steps):
    table = np.minimum(1, np.arange(1, steps + 1) / warmup_steps) * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    return peak * table[step]


def learning_rate_in_place(step, peak, warmup_steps, steps):
    rate = peak
    rate *= 1 + math.cos(math.pi * step / steps)
    rate /= 2
    if step < warmup_steps:
        rate *= (step + 1) / warmup_steps
    return rate


def _cosine(step: int, steps: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def draw_learning_rates(answer):
    """The learner's rate over a run, and the reference's."""
    steps = np.arange(1000)
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH, 2.5, 1, 2, sharey=True)
        for ax, function, name in zip(figure.axes, (answer, learning_rate), ("yours", "reference"), strict=True):
            ax.plot(steps, [float(function(int(step), 1e-3, 100, 1000)) for step in steps])
            ax.set(title=name, xlabel="training step", ylabel="learning rate" * (name == "yours"))
    return figure


LEARNING_RATE = Exercise(
    id="06.3",
    title="A rise and a fall",
    difficulty=1,
    minutes=4,
    equation="",
    where="The first steps: warm-up",
    lines=2,
    reference=learning_rate,
    inputs=learning_rate_inputs,
    hints=(
        "Two factors, both between 0 and 1, multiplied: one that rises and then stays at 1, one that falls all the "
        "time.",
        "Rise: min(1, (step+1) / warmup_steps). Fall: ½ (1 + cos(π step / steps)).",
        "`rise = min(1.0, ... / ...)`, then the product of `peak`, `rise` and the fall",
    ),
    mistakes=(
        Mistake(
            lambda s, p, w, n: p * min(1.0, s / w) * _cosine(s, n),
            "you let the rise start at 0: the first step then moves nothing (step {step} of {warmup_steps})",
        ),
        Mistake(
            lambda s, p, w, n: p * _cosine(s, n),
            "you left out the rise, or let it be 1 from the beginning: step {step} of {warmup_steps} has nearly the "
            "peak rate already",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w),
            "you left out the fall, or its angle stays near 0: the cosine goes over the whole run (step {step} of "
            "{steps})",
        ),
        Mistake(
            lambda s, p, w, n: p * (s + 1) / w * _cosine(s, n),
            "you let the rise go on beyond 1: at step {step}, after {warmup_steps} steps of warm-up, it should be over",
        ),
        Mistake(
            lambda s, p, w, n: p * ((s + 1) / w if s <= w else 1.0) * _cosine(s, n),
            "you let the rise go on for one step too many: a warm-up of {warmup_steps} steps begins at step 0, so at "
            "step {step} it is over, and your rise is above 1",
        ),
        Mistake(
            lambda s, p, w, n: p * max(1.0, (s + 1) / w) * _cosine(s, n),
            "you took the larger of 1 and the rise: it holds nothing down",
        ),
        Mistake(
            lambda s, p, w, n: p * (s + 1) / w if s < w else p * _cosine(s - w, n - w),
            "you let the cosine begin after the warm-up: here it falls over the whole run, from step 0 "
            "(step {step} of {steps})",
        ),
        Mistake(
            lambda s, p, w, n: p * min((s + 1) / w, _cosine(s, n)),
            "you took the smaller of the rise and the fall: they are multiplied, so at step {step} both hold the rate "
            "down",
        ),
        Mistake(
            lambda s, p, w, n: p * (min(1.0, (s + 1) / w) + _cosine(s, n)),
            "you added the rise and the fall: they are multiplied, each holds the rate down by its own factor",
        ),
        Mistake(
            lambda s, p, w, n: p * ((s + 1) / w if s < w else _cosine(s, n)),
            "you left the fall out during the warm-up: the cosine goes over the whole run, from step 0 (step {step} of "
            "{steps})",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / (w + 1)) * _cosine(s, n),
            "you let the rise end one step too late: step {warmup_steps} minus 1 is the last of the warm-up, and has "
            "the whole rate",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(2 * s, n),
            "you used a whole period of the cosine: it goes down to 0 in the middle of the run and up again",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(s, n - w),
            "you let the cosine end {warmup_steps} steps early: it falls over all {steps} steps",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(s + 1, n),
            "you let the cosine fall from step 1: at step 0 it is still 1, only the rise counts from 1 (step {step} of "
            "{steps})",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * (1 + math.cos(math.pi * s / n)),
            "you forgot to halve 1 + cos: it starts at 2",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * 0.5 * (1 - math.cos(math.pi * s / n)),
            "you turned the cosine upside down: at step {step} of {steps} yours is on its way up",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(s, n - 1),
            "you let the cosine reach 0 at the last step, which then moves nothing: it ends at step {steps}, one later",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * math.cos(math.pi * s / n),
            "you used the bare cosine: it is 0 in the middle of the run and negative after it",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * math.cos(math.pi / 2 * s / n),
            "you used a quarter of the cosine's period: it should be flat at both ends, which is half a period, "
            "from 1 to -1, moved up",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * (1 - s / n),
            "you let the rate fall in a straight line: a cosine is asked for (step {step} of {steps})",
        ),
        Mistake(
            lambda s, p, w, n: min(1.0, (s + 1) / w) * _cosine(s, n),
            "you returned the factor without the peak rate",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * 0.5 * (1 + math.cos(180 * s / n)),
            "you gave the cosine degrees: it takes radians",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * 0.5 * (1 + math.cos(s / n)),
            "you left π out: the cosine then falls only a part of the way",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(s / 2, n),
            "you let the cosine go on for twice the run: at its end the rate is still half the peak",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(max(0, s - w), n),
            "you began the cosine after the warm-up and kept its length: it begins at step 0 and ends with the run",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * _cosine(s, n + 1),
            "you let the cosine end one step too late: it reaches 0 at step {steps}",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * (1 + 0.5 * math.cos(math.pi * s / n)),
            "you halved the cosine alone: it is 1 + cos, both, that is halved",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) * (0.5 + math.cos(math.pi * s / n)),
            "you halved the 1 alone: it is 1 + cos, both, that is halved",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1, (s + 1) // w) * _cosine(s, n),
            "you divided whole numbers by `//`: your rise is 0 until its last step",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 2) / w) * _cosine(s, n),
            "you let the rise begin one step too late: the first step has 1/{warmup_steps} of the rate",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, max(s, 1) / w) * _cosine(s, n),
            "you counted the steps from 1 at step 0 alone: at every step of the rise it is step + 1",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / w) ** 2 * _cosine(s, n),
            "you let the rise be a parabola: it is a straight line",
        ),
        Mistake(
            lambda s, p, w, n: p * min(1.0, (s + 1) / n) * _cosine(s, n),
            "you let the rise go over the whole run: it takes the first {warmup_steps} steps",
        ),
    ),
    alternatives=(
        learning_rate_by_cases,
        learning_rate_in_tensors,
        learning_rate_in_float32,
        learning_rate_by_loop,
        learning_rate_in_numpy,
        learning_rate_in_place,
    ),
    picture=draw_learning_rates,
    rtol=5e-4,  # 1 + cos of an angle near π loses digits in float32
    cases=6,
)


# ---------------------------------------------------------------- 06.4


def ema_update(average: Tensor, weights: Tensor, decay: float, updates: int) -> Tensor:
    """The exponential moving average of one weight tensor after one more update.

    average, weights: of the same shape: the average so far, and the network's present weights.
    decay: what the average keeps of itself in one update, in the long run.
    updates: how many updates there were, this one included: 1, 2, 3, ...
    Early on the average keeps less: (1 + updates) / (10 + updates), as long as that is below `decay`.
    Returns the new average as a new tensor; the inputs stay as they are.
    """
    keep = min(decay, (1 + updates) / (10 + updates))
    return keep * average + (1 - keep) * weights


def ema_update_inputs(generator: torch.Generator, index: int) -> Case:
    """The first update, an early one, one where the limit begins, late ones, and one limited early."""
    shape = ((3, 2), (2, 3, 3), (5,), (2, 4, 3, 3), (4, 1), (6,))[index]
    average, weights = (torch.randn(shape, generator=generator) for _ in range(2))
    decay, updates = ((0.99, 1), (0.999, 40), (0.9, 80), (0.95, 50_000), (0.9999, 3000), (0.5, 12))[index]
    return Case({"average": average, "weights": weights, "decay": decay, "updates": updates})


def ema_by_lerp(average, weights, decay, updates):
    return torch.lerp(average, weights, 1 - min(decay, (1 + updates) / (10 + updates)))


def ema_in_float64(average, weights, decay, updates):
    step = 1 - min(decay, (1 + updates) / (10 + updates))
    return (average.double() + step * (weights.double() - average.double())).to(average.dtype)


def ema_in_place_on_a_copy(average, weights, decay, updates):
    keep = decay if decay < (1 + updates) / (10 + updates) else (1 + updates) / (10 + updates)
    return average.clone().mul_(keep).add_(weights, alpha=1 - keep)


def ema_by_loop(average, weights, decay, updates):
    keep, new = min(decay, 1 - 9 / (10 + updates)), torch.empty_like(average)
    pairs = zip(average.flatten().tolist(), weights.flatten().tolist(), strict=True)
    new.view(-1)[:] = torch.tensor([keep * a + (1 - keep) * w for a, w in pairs], dtype=average.dtype)
    return new


def ema_row_by_row(average, weights, decay, updates):
    keep = min(decay, (1 + updates) / (10 + updates))
    return torch.stack([keep * a + (1 - keep) * w for a, w in zip(average, weights, strict=True)])


def _mix(average, weights, keep, add=None):
    return keep * average + (1 - keep if add is None else add) * weights


def _early(n):
    return (1 + n) / (10 + n)


EMA_UPDATE = Exercise(
    id="06.4",
    title="One update of the average",
    difficulty=1,
    minutes=3,
    equation="",
    where="The average of the weights",
    lines=2,
    reference=ema_update,
    inputs=ema_update_inputs,
    hints=(
        "A mixture of the old average and the present weights whose two shares add up to 1. First find the share that "
        "is kept.",
        "d = min(decay, (1+n) / (10+n)); new = d · average + (1-d) · weights, element by element.",
        "`keep = min(..., ...)`, then a sum of two products",
    ),
    mistakes=(
        Mistake(
            lambda a, w, d, n: _mix(a, w, 1 - min(d, _early(n))),
            "you swapped the shares: d is the share that the average keeps, 1-d that of the new weights (updates so "
            "far: {updates})",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, d),
            "you kept {decay} from the first update on: after {updates} updates the random start is still in the "
            "average. If you have the early share, look at its brackets: it must be below 1",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, max(d, _early(n))),
            "you took the larger of the two decays: the early one should hold the share down, not up",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, _early(n)),
            "you left out the limit {decay}: after {updates} updates the average becomes slower than it should",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, n / (9 + n))),
            "you counted the updates from 0: `updates` includes this one already",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, (2 + n) / (11 + n))),
            "you counted this update twice: `updates` includes it already",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, n / (10 + n))),
            "you left the 1 out of the numerator: the early share is (1 + updates) / (10 + updates)",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, _early(n))) / (1 - min(d, _early(n)) ** n),
            "you divided by 1 - d^n, as Adam does for its start: here the early rule takes care of it",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, d * min(d, _early(n))),
            "you multiplied the two decays: the smaller of them counts",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, 1 / 10 + n / (10 + n))),
            "you lost a bracket in (1 + updates) / (10 + updates)",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, 1 - 1 / n),
            "you took the plain mean of all weights so far: the first, random ones count in it for ever",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, _early(n)), add=1.0),
            "you added the weights with share 1: the two shares should add up to 1, or the average grows and grows",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, 1.0, add=1 - min(d, _early(n))),
            "you kept all of the old average: what comes in must make room for itself",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, _early(n)), add=1 - d),
            "you used two decays, one for what is kept and another for what comes in: the shares do not add up to 1",
        ),
        Mistake(
            lambda a, w, d, n: a.clone(),
            "you returned the old average: `weights` is not used",
        ),
        Mistake(
            lambda a, w, d, n: w.clone(),
            "you returned the present weights: `average` is not used, or its share is 0 (`//` divides whole numbers)",
        ),
        Mistake(
            lambda a, w, d, n: w.clone() if n == 1 else _mix(a, w, min(d, _early(n))),
            "you let the first update copy the weights: it keeps 2/11 of the average, by the same rule as the others",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, _early(n)), add=min(d, _early(n)) - 1),
            "you took the new weights off the average: their share is added",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, _early(n)), add=min(d, _early(n))),
            "you gave both the share d: that of the new weights is 1-d",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, d**n),
            "you took decay to the power of the updates: that is the share of the start after so many, not what one "
            "update keeps",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, (d + _early(n)) / 2),
            "you took the mean of the two decays: the smaller of them counts",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, (1 + n) / (1 + 10 * n))),
            "you multiplied by 10 where it is added: the early share is (1 + updates) / (10 + updates)",
        ),
        Mistake(
            lambda a, w, d, n: _mix(a, w, min(d, _early(n))) / (1 - d**n),
            "you divided by 1 - decay^n, as Adam does for its start: here the early rule takes care of it",
        ),
    ),
    alternatives=(ema_by_lerp, ema_in_float64, ema_in_place_on_a_copy, ema_by_loop, ema_row_by_row),
    cases=6,
)


# ---------------------------------------------------------------- 06.5


@torch.no_grad()
def write_weights(model: nn.Module, values: list[Tensor]) -> None:
    """Copy `values` into the network's weights, in the order of model.parameters()."""
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)


@contextmanager
def averaged(model: nn.Module, average: list[Tensor]) -> Iterator[nn.Module]:
    """Within `with averaged(model, average) as m:` the network has the averaged weights, afterwards its own again.

    model: any network.
    average: one tensor per weight, in the order of model.parameters(). It is not changed.
    Yields the network. It gets its own weights back even if the block ends in an error.
    """
    own = [parameter.detach().clone() for parameter in model.parameters()]
    write_weights(model, average)
    try:
        yield model
    finally:
        write_weights(model, own)


STARTER = '''
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def averaged(model: nn.Module, average: list[Tensor]) -> Iterator[nn.Module]:
    """Within `with averaged(model, average) as m:` the network has the averaged weights, afterwards its own again.

    model: any network.
    average: one tensor per weight, in the order of model.parameters(). It is not changed.
    Yields the network. It gets its own weights back even if the block ends in an error.
    """
    ...  # your code: keep what will be overwritten, one line
    write_weights(model, average)
    # your code: lend the network, and give its own weights back, about 4 lines
    ...
'''


def averaged_inputs(generator: torch.Generator, index: int) -> Case:
    """Networks of three sizes and the averages that go with them."""
    sizes = ((3, 4, 2), (5, 2), (2, 6, 6, 1))[index]
    with torch.random.fork_rng([]):
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)))
    write_weights(model, [torch.randn(p.shape, generator=generator) for p in model.parameters()])
    return Case({"model": model, "average": [torch.randn(p.shape, generator=generator) for p in model.parameters()]})


class _Stop(Exception):
    """What the check raises within the block."""


def lend(answer: Callable[..., Any], model: nn.Module, average: list[Tensor]) -> Any:
    """What the weights are within the block, after it, and after a block that trained and then failed."""
    own, held = [p.detach().clone() for p in model.parameters()], list(model.parameters())
    found: dict[str, Any] = {}
    lending = answer(model, average)
    if lending is None or (hasattr(lending, "gen") and not hasattr(lending.gen, "__next__")):
        return "no yield"
    if isinstance(lending, nn.Module | Iterator):
        return "a network" if isinstance(lending, nn.Module) else "a generator"
    if not hasattr(lending, "__enter__"):
        raise TypeError(f"the function returns something of type {type(lending).__name__}, which `with` cannot use")
    with lending as lent:
        found["the weights within the block"] = flat(model)
        found["what the block gets"] = flat(lent) if isinstance(lent, nn.Module) else type(lent).__name__
    if not (lent is None or isinstance(lent, nn.Module | list)):
        raise TypeError(f"`as m` gets something of type {type(lent).__name__}, and should get the network")
    found["the weights after the block"] = flat(model)
    write_weights(model, own)
    found["the error in the block reaches the caller"] = False
    try:
        with answer(model, average), torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
            raise _Stop
    except _Stop:
        found["the error in the block reaches the caller"] = True
    found["the weights after an error in the block"] = flat(model)
    found["the average afterwards"] = torch.cat([a.flatten() for a in average])
    found["training mode afterwards"] = model.training
    found["the optimiser's weights afterwards"] = all(p is q for p, q in zip(held, model.parameters(), strict=True))
    found["weights with a gradient afterwards"] = sum(p.requires_grad for p in model.parameters())
    return found


@contextmanager
def averaged_by_state_dict(model, average):
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict({name: value for (name, _), value in zip(model.named_parameters(), average, strict=True)})
    try:
        yield model
    finally:
        model.load_state_dict(own)


@contextmanager
def averaged_as_one_vector(model, average):
    own = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    try:
        nn.utils.vector_to_parameters(torch.cat([a.flatten() for a in average]), model.parameters())
        yield model
    finally:
        nn.utils.vector_to_parameters(own, model.parameters())


class averaged_as_class:  # noqa: N801
    def __init__(self, model, average):
        self.model, self.average = model, average

    def __enter__(self):
        self.own = [p.detach().clone() for p in self.model.parameters()]
        write_weights(self.model, self.average)
        return self.model

    def __exit__(self, *error):
        write_weights(self.model, self.own)


@contextmanager
def averaged_by_loop(model, average):
    own = []
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            own.append(parameter.clone())
            parameter[...] = average[i]
    try:
        yield model
    finally:
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter[...] = own[i]


@contextmanager
def averaged_in_float64(model, average):
    own = [p.detach().double() + 0 for p in model.parameters()]
    write_weights(model, [a.double() for a in average])
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_without_a_copy(model, average):
    own = [p.detach() for p in model.parameters()]
    write_weights(model, average)
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_saved_too_late(model, average):
    write_weights(model, average)
    own = [p.detach().clone() for p in model.parameters()]
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_without_finally(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    yield model
    write_weights(model, own)


@contextmanager
def _averaged_not_at_all(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_swallows_errors(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    with suppress(Exception):
        yield model
    write_weights(model, own)


@contextmanager
def _averaged_given_back_after_errors(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    try:
        yield model
    except Exception:
        write_weights(model, own)
        raise


@contextmanager
def _averaged_by_sharing(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    for p, a in zip(model.parameters(), average, strict=True):
        p.data = a
    try:
        yield model
    finally:
        for p, value in zip(model.parameters(), own, strict=True):
            p.data = value


@contextmanager
def _averaged_yields_nothing(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    try:
        yield
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_swapped(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    try:
        yield model
    finally:
        write_weights(model, average)
        del own


@contextmanager
def _averaged_half(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, [(a + o) / 2 for a, o in zip(average, own, strict=True)])
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_yields_the_average(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    try:
        yield average
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_copy(model, average):
    lent = copy.deepcopy(model)
    write_weights(lent, average)
    yield lent


@contextmanager
def _averaged_left_in_eval_mode(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model.eval(), average)
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_left_frozen(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model.requires_grad_(False), average)
    try:
        yield model
    finally:
        write_weights(model, own)


def _averaged_undecorated(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    try:
        yield model
    finally:
        write_weights(model, own)


def _averaged_returned(model, average):
    write_weights(model, average)
    return model


@contextmanager
def _averaged_without_yield(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    write_weights(model, own)
    return model


@contextmanager
def _averaged_given_back_at_once(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    write_weights(model, own)
    yield model


@contextmanager
def _averaged_added(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, [a + o for a, o in zip(average, own, strict=True)])
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_in_part(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, [*average[:1], *own[1:]])
    try:
        yield model
    finally:
        write_weights(model, own)


@contextmanager
def _averaged_given_back_in_part(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    write_weights(model, average)
    try:
        yield model
    finally:
        write_weights(model, [own[0], *(p.detach().clone() for p in list(model.parameters())[1:])])


@contextmanager
def _averaged_in_new_parameters(model, average):
    own = [p.detach().clone() for p in model.parameters()]
    for (name, _), value in zip(list(model.named_parameters()), average, strict=True):
        layer, _, last = name.rpartition(".")
        setattr(model.get_submodule(layer), last, nn.Parameter(value.clone()))
    try:
        yield model
    finally:
        write_weights(model, own)


AVERAGED = Exercise(
    id="06.5",
    title="Lend the average, and give back",
    difficulty=3,
    minutes=6,
    equation="",
    where="Lending the average",
    lines=6,
    reference=averaged,
    inputs=averaged_inputs,
    starter=STARTER,
    run=lend,
    hints=(
        "Three parts: before the `yield` the averaged weights go in, at the `yield` the block runs, after it the own "
        "weights come back. Think of what must be kept before anything is overwritten, and of a block that fails.",
        "A parameter is one piece of memory: `p.detach()` looks at the same memory, `p.detach().clone()` is a copy. "
        "`try: ... finally: ...` runs its last part whatever happens.",
        "`own = [...]`, a `write_weights(...)`, then `try:` with the yield and `finally:` with a second "
        "`write_weights(...)`",
    ),
    mistakes=(
        Mistake(
            _averaged_without_a_copy,
            "your network keeps the average after the block: either you give nothing back, or what you kept was no "
            "copy, and writing the average into the network changed it too",
        ),
        Mistake(
            _averaged_without_finally,
            "you give the own weights back after a good end only: a block that ends in an error leaves the network "
            "with the average",
        ),
        Mistake(
            _averaged_swallows_errors,
            "you keep the error of the block to yourself: the weights are given back, but whoever called must hear of "
            "the error",
        ),
        Mistake(
            _averaged_given_back_after_errors,
            "you give the own weights back after an error, but not after a good end",
        ),
        Mistake(
            _averaged_not_at_all,
            "you never wrote the average into the network: within the block it has its own weights",
        ),
        Mistake(
            _averaged_by_sharing,
            "your average changes: either you put its own tensors into the network, so that whatever changes the "
            "weights within the block changes it too, or you wrote the network's weights into it",
        ),
        Mistake(
            _averaged_yields_nothing,
            "you yield nothing: `as m` then gets None, and the network is asked for",
        ),
        Mistake(
            _averaged_saved_too_late,
            "you kept the own weights too late, when the average was in the network already: it is given back to "
            "itself",
        ),
        Mistake(
            _averaged_swapped,
            "you run the block with the own weights, and write the average after it",
        ),
        Mistake(
            _averaged_half,
            "you mixed the average with the own weights: within the block the average alone counts",
        ),
        Mistake(
            _averaged_yields_the_average,
            "you yield the list of tensors: `as m` should get the network, ready to be called",
        ),
        Mistake(
            _averaged_copy,
            "you lend a copy of the network: the network itself, which the block may use as well, never gets the "
            "average, and the copy needs its memory a second time",
        ),
        Mistake(
            _averaged_left_in_eval_mode,
            "you leave the network in eval mode after the block: the training that goes on gets it without dropout",
        ),
        Mistake(
            _averaged_left_frozen,
            "you leave the weights without gradients (`requires_grad_`) after the block: the training that goes on "
            "cannot move them",
        ),
        Mistake(
            _averaged_undecorated,
            "your function gives a generator, which `with` cannot use: the line `@contextmanager` above it is missing",
        ),
        Mistake(
            _averaged_returned,
            "your function returns a network, and a `with` needs more: under `@contextmanager`, and with `yield` in "
            "the place of `return`, it can give the own weights back",
        ),
        Mistake(
            _averaged_without_yield,
            "your function has no `yield`: that is where the block of the `with` runs, between lending and giving back",
        ),
        Mistake(
            _averaged_in_new_parameters,
            "you put new parameters into the network: the optimiser goes on moving the old ones, which nobody uses",
        ),
        Mistake(
            _averaged_given_back_at_once,
            "your network has its own weights within the block, and keeps what the block makes of them: the `yield` "
            "belongs between lending and giving back",
        ),
        Mistake(
            _averaged_added,
            "you added the average to the own weights: it takes their place",
        ),
        Mistake(
            _averaged_in_part,
            "you lend the first tensor of the average only: every weight has one",
        ),
        Mistake(
            _averaged_given_back_in_part,
            "you give the first weight tensor back only: all of them were overwritten",
        ),
    ),
    alternatives=(
        averaged_by_state_dict,
        averaged_as_one_vector,
        averaged_as_class,
        averaged_by_loop,
        averaged_in_float64,
    ),
    cases=3,
)


# ---------------------------------------------------------------- 06.6


def loss_by_t(losses: Tensor, t: Tensor, T: int, bins: int) -> Tensor:
    """The mean loss within each of `bins` equal ranges of t.

    losses: shape (N,), the loss of each image.
    t: shape (N,), whole numbers from 0 to T-1, in any order: at which t each image was.
    bins: divides T. The first range is t = 0 to T/bins - 1, and so on.
    Returns shape (bins,); a range without any image is not a number (0 divided by 0).
    """
    which = t * bins // T
    total = torch.zeros(bins, dtype=losses.dtype).index_add(0, which, losses)
    return total / torch.bincount(which, minlength=bins)


def loss_by_t_inputs(generator: torch.Generator, index: int) -> Case:
    """Many images and few, other T and other numbers of ranges; twice a range stays empty, once the last."""
    T, bins, count = ((1000, 10, 300), (1000, 4, 57), (20, 5, 80), (1000, 10, 90))[index]
    t = torch.randint(T, (count,), generator=generator)
    t[:2] = torch.tensor([T // bins - 1, T - 1])
    if index == 1:
        t[t >= 750] = 3
    if index == 3:
        t[t // 100 == 6] = 3
    losses = torch.rand(count, generator=generator) + 1 - t / T
    return Case({"losses": losses, "t": t, "T": T, "bins": bins}, {"N": count})


def loss_by_t_by_loop(losses, t, T, bins):
    width = T // bins
    means = [losses[(t >= k * width) & (t < (k + 1) * width)].mean() for k in range(bins)]
    return torch.stack(means)


def loss_by_t_in_float64(losses, t, T, bins):
    total, count = torch.zeros(bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.float64)
    for value, at in zip(losses.tolist(), t.tolist(), strict=True):
        total[at * bins // T] += value
        count[at * bins // T] += 1
    return (total / count).to(losses.dtype)


def loss_by_t_by_one_hot(losses, t, T, bins):
    member = nn.functional.one_hot(torch.div(t, T // bins, rounding_mode="floor"), bins).to(losses.dtype)
    return losses @ member / member.sum(0)


def loss_by_t_sorted(losses, t, T, bins):
    order = t.argsort()
    counts = torch.bincount(t // (T // bins), minlength=bins).tolist()
    return torch.stack([part.mean() for part in losses[order].split(counts)])


def loss_by_t_in_place(losses, t, T, bins):
    edges = torch.arange(1, bins) * (T // bins)
    which = torch.bucketize(t, edges, right=True)
    means = torch.zeros_like(losses[:bins]) if len(losses) >= bins else torch.zeros(bins, dtype=losses.dtype)
    means.scatter_add_(0, which, losses)
    means /= torch.bincount(which, minlength=bins)
    return means


def _grouped(losses, which, bins, count=None):
    total = torch.zeros(bins, dtype=losses.dtype).index_add(0, which, losses)
    return total / (torch.bincount(which, minlength=bins) if count is None else count)


def loss_by_t_last_value(losses, t, T, bins):
    means = torch.full((bins,), torch.nan, dtype=losses.dtype)
    for value, k in zip(losses, t * bins // T, strict=True):
        means[k] = value
    return means


def loss_by_t_added_by_index(losses, t, T, bins):
    which, total = t * bins // T, torch.zeros(bins, dtype=losses.dtype)
    total[which] += losses
    return total / torch.bincount(which, minlength=bins)


def loss_by_t_without_empty_ranges(losses, t, T, bins):
    which = t * bins // T
    return torch.stack([losses[which == k].mean() for k in which.unique()])


def loss_by_t_of_narrow_ranges(losses, t, T, bins):
    return torch.stack([losses[t // bins == k].mean() for k in range(bins)])


def loss_by_t_with_both_edges(losses, t, T, bins):
    edges = [k * T // bins for k in range(bins + 1)]
    return torch.stack([losses[(t >= a) & (t <= b)].mean() for a, b in zip(edges, edges[1:], strict=False)])


def loss_by_t_equal_counts(losses, t, T, bins):
    return torch.stack([part.mean() for part in losses[t.argsort()].tensor_split(bins)])


LOSS_BY_T = Exercise(
    id="06.6",
    title="The loss, taken apart by t",
    difficulty=2,
    minutes=5,
    equation="Ho eq. 14",
    where="The loss by t",
    lines=3,
    reference=loss_by_t,
    inputs=loss_by_t_inputs,
    hints=(
        "First find for each image the number of its range, then add up the losses of each range and divide by how "
        "many there are.",
        "Range k holds k T/bins ≤ t < (k+1) T/bins, so k = ⌊t · bins / T⌋.",
        "`which = ... // ...`, `total = torch.zeros(...).index_add(0, which, ...)`, and `torch.bincount(which, "
        "minlength=...)` counts",
    ),
    mistakes=(
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b, 1),
            "you returned the sums: divide each by the number of images in its range",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b, len(v)),
            "you divided by all {N} images: each range has its own number of them",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b, len(v) / b),
            "you divided every range by {N} / {bins}: that many images are in it on average, not exactly",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, (t + 1).clamp(max=T - 1) * b // T, b),
            "you counted t from 1: the last t of each range slipped into the next one",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, (t * b / T).round().long().clamp(max=b - 1), b),
            "you rounded to the nearest range: the ranges are then shifted by half a width",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, b - 1 - t * b // T, b),
            "you returned the ranges in reverse: the first one is that of the smallest t",
        ),
        Mistake(
            loss_by_t_last_value,
            "you kept one loss of each range, the last: `means[which] = losses` overwrites, it does not add",
        ),
        Mistake(
            loss_by_t_equal_counts,
            "you made {bins} groups of equally many images: the ranges are equally wide in t",
        ),
        Mistake(
            lambda v, t, T, b: torch.stack([part.mean() for part in v.sort().values.tensor_split(b)]),
            "you sorted the losses: your groups are the low and the high losses, where the ranges are those of t",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t // b, b),
            "you divided t by the number of ranges, {bins}: what counts is their width",
        ),
        Mistake(
            lambda v, t, T, b: torch.bincount(t // b, v, b) / torch.bincount(t // b, minlength=b),
            "you divided t by the number of ranges, {bins}: that makes ranges {bins} timesteps wide, and too many "
            "of them",
        ),
        Mistake(
            loss_by_t_of_narrow_ranges,
            "you divided t by the number of ranges, {bins}: your ranges are {bins} timesteps wide, and most t lie in "
            "none of them",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t % b, b),
            "you took the remainder of t: the images of one range then lie all over the timesteps",
        ),
        Mistake(
            loss_by_t_with_both_edges,
            "you let two ranges share their border: the first t of a range belongs to that range alone",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b).nan_to_num(0.0),
            "you gave an empty range the loss 0, which looks like a perfect network: nothing is known there",
        ),
        Mistake(
            lambda v, t, T, b: v.mean().expand(b).clone(),
            "you gave every range the mean over all t, which is what this function is to take apart",
        ),
        Mistake(
            lambda v, t, T, b: torch.stack([v[: len(v) // b * b].reshape(b, -1).mean(1)])[0],
            "you cut the list as it came: the images are in no order of t",
        ),
        Mistake(
            loss_by_t_added_by_index,
            "you added with `total[which] += losses`: where an index occurs several times, that counts once only",
        ),
        Mistake(
            loss_by_t_without_empty_ranges,
            "you left out the ranges without any image: they belong into the result, and nothing is known there",
        ),
        Mistake(
            lambda v, t, T, b: torch.bincount(t * b // T, v).to(v.dtype) / torch.bincount(t * b // T),
            "you counted without `minlength`: where the last ranges are empty, they are missing",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b, torch.bincount(t * b // T, minlength=b) + 1),
            "you counted one image too many in each range: the 0 from which a sum starts is no image",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, (t - 1).clamp(min=0) * b // T, b),
            "you let the first t of a range fall into the range before: a range begins with it",
        ),
        Mistake(
            lambda v, t, T, b: torch.stack(
                [v[(t >= k * T // b) & (t < (k + 1) * T // b - 1)].mean() for k in range(b)]
            ),
            "you left out the last t of each range: a range ends just before the next one begins",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b, b),
            "you divided the sums by the number of ranges: each has its own number of images",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // T, b, T // b),
            "you divided the sums by the width of a range: what counts is how many images are in it",
        ),
        Mistake(
            lambda v, t, T, b: torch.bincount(t * b // T, minlength=b).to(v.dtype),
            "you returned how many images are in each range: their mean loss is asked for",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // 1000, b),
            "you took 1000 for T: how many timesteps there are is an argument, here {T}",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t * b // (int(t.max()) + 1), b),
            "you took the largest t of the images for the end of the ranges: they go up to T-1, whatever t occurs",
        ),
        Mistake(
            lambda v, t, T, b: torch.stack([v[t < (k + 1) * (T // b)].mean() for k in range(b)]),
            "you took all images up to the end of each range: those of the ranges before do not belong into it",
        ),
        Mistake(
            lambda v, t, T, b: _grouped(v, t.sort().values * b // T, b),
            "you sorted t and left the losses: each loss has to keep the t of its image",
        ),
    ),
    alternatives=(
        loss_by_t_by_loop,
        loss_by_t_in_float64,
        loss_by_t_by_one_hot,
        loss_by_t_sorted,
        loss_by_t_in_place,
    ),
    rtol=1e-4,
)


EXERCISES = (DIFFUSION_LOSS, TRAINING_STEP, LEARNING_RATE, EMA_UPDATE, AVERAGED, LOSS_BY_T)
