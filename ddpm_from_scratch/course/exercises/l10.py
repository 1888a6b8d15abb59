"""Exercises of lesson 10, pipelines and Diffusers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from matplotlib import rc_context
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from ddpm_from_scratch import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel, UNet2DOutput
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake


class StandIn:
    """In place of a network: a smooth function of x and t, and the part of `config` that a pipeline reads.

    What it puts out goes beyond [-1, 1], as noise does. Its `out_channels` are those of a network that puts out a
    variance too.
    """

    def __init__(self, channels: int, size: int) -> None:
        self.config = SimpleNamespace(in_channels=channels, out_channels=2 * channels, sample_size=size)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def __str__(self) -> str:
        return f"a network for {self.config.in_channels} × {self.config.sample_size} × {self.config.sample_size}"

    def __call__(self, sample: Tensor, timestep: int | Tensor) -> UNet2DOutput:
        t = torch.as_tensor(timestep).to(sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))  # one, or one per sample
        return UNet2DOutput(1.4 * torch.sin(2 * sample + t / 5))


class ScalingScheduler(DDIMScheduler):
    """Scales the network's input by the timestep and starts from wider noise, as Euler's scheduler does."""

    init_noise_sigma = 3.0

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor) -> Tensor:  # type: ignore[override]
        return sample / (1.5 + int(timestep) / 10)


def a_scheduler(index: int) -> Any:
    """DDPM, DDIM, DDPM with another variance, and one that scales its input and ends before x̂_0; T = 20."""
    return (
        DDPMScheduler(num_train_timesteps=20),
        DDIMScheduler(num_train_timesteps=20, timestep_spacing="trailing"),
        DDPMScheduler(num_train_timesteps=20, variance_type="fixed_large", clip_sample=False),
        ScalingScheduler(num_train_timesteps=20, set_alpha_to_one=False),
    )[index]


# ---------------------------------------------------------------- 10.1


def to_pixels(x: Tensor) -> Tensor:
    """What a sampler ends with, as pixels.

    x: shape (B, C, H, W); black is -1 and white is 1, and some values lie beyond.
    Returns shape (B, H, W, C), dtype torch.uint8, values 0 to 255, rounded to the nearest.
    """
    unit = (x / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def to_pixels_inputs(generator: torch.Generator, index: int) -> Case:
    """Colour and grey images, one of them oblong, all with values beyond [-1, 1]."""
    shape = ((2, 3, 5, 7), (1, 1, 6, 4), (4, 3, 3, 8), (3, 1, 4, 9))[index]
    return Case({"x": torch.randn(shape, generator=generator)}, {"shape": shape})


def to_pixels_clamped_first(x):
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).movedim(1, -1)


def to_pixels_in_float64(x):
    exact = (x.double() + 1) / 2
    return torch.floor(exact.clamp(0, 1) * 255 + 0.5).permute(0, 2, 3, 1).byte()


def to_pixels_by_loop(x):
    images = []
    for image in x:
        planes = [((plane + 1) * 127.5).clamp(0, 255).round().to(torch.uint8) for plane in image]
        images.append(torch.stack(planes, dim=-1))
    return torch.stack(images)


def to_pixels_in_place(x):
    page = x.clone()
    page += 1
    page *= 127.5
    return page.round_().clamp_(0, 255).permute(0, 2, 3, 1).to(torch.int64).to(torch.uint8)


def to_pixels_run(answer: Any, x: Tensor) -> Any:
    """The pixels and their type: a byte is asked for, and other whole numbers would pass for one by their values."""
    made = answer(x)
    return None if made is None else {"pixels": made, "dtype": str(getattr(made, "dtype", type(made).__name__))}


def _pixels(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1).to(torch.int64).to(torch.uint8)


TO_PIXELS = Exercise(
    id="10.1",
    title="From numbers to pixels",
    difficulty=1,
    minutes=5,
    equation="",
    where="What comes out",
    lines=2,
    reference=to_pixels,
    inputs=to_pixels_inputs,
    hints=(
        "Four things have to happen: another range, no values outside it, whole numbers, channels last. The order "
        "matters.",
        "[-1, 1] → [0, 1] is x/2 + 1/2. Bytes wrap around: 256 becomes 0, so what lies outside must go first.",
        "`unit = (...).clamp(..., ...)`, then `(unit * ...).round().to(...).permute(...)`",
    ),
    mistakes=(
        Mistake(
            lambda x: _pixels((x.clamp(0, 1) * 255).round()),
            "you cut at 0 without moving the range first: everything darker than middle grey became black",
        ),
        Mistake(
            lambda x: _pixels(((x / 2 + 0.5) * 255).round()),
            "you did not cut what lies outside the range, or cut it too late: in a byte it wraps around, and a value "
            "just above white becomes black",
        ),
        Mistake(
            lambda x: _pixels((x / 2 + 0.5).clamp(0, 1) * 255),
            "you cut off the decimals: the pixels are too dark by half a step on average; the nearest whole number is "
            "asked for",
        ),
        Mistake(
            lambda x: _pixels(((x / 2 + 0.5).clamp(0, 1) * 256).round()),
            "you multiplied by 256: white is the largest byte, and yours wraps around to 0",
        ),
        Mistake(
            lambda x: ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8),
            lambda at: (
                f"your result has shape {tuple(at.yours['pixels'].shape)}: the channels are still in front, a picture "
                "has them last"
            ),
        ),
        Mistake(
            lambda x: ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 3, 2, 1),
            "you swapped height and width on the way: your images are mirrored at the diagonal",
        ),
        Mistake(
            lambda x: (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1),
            "you stopped at [0, 1]: pixels are asked for, whole numbers from 0 to 255",
        ),
        Mistake(
            lambda x: _pixels(((x + 0.5).clamp(0, 1) * 255).round()),
            "you moved the range but did not halve it: it is 2 wide, from -1 to 1",
        ),
        Mistake(
            lambda x: _pixels(
                ((x - x.amin((1, 2, 3), True)) / (x.amax((1, 2, 3), True) - x.amin((1, 2, 3), True)) * 255).round()
            ),
            "you stretched each image to its own darkest and brightest value: middle grey is 0 for every image, "
            "whatever else is in it",
        ),
        *(
            Mistake(
                lambda x, dtype=dtype: to_pixels(x).to(dtype),
                lambda at: (
                    f"your pixels are right but stored as {at.yours['dtype']}: a picture holds bytes, torch.uint8"
                ),
            )
            for dtype in (torch.int64, torch.int32, torch.float32, torch.float64)
        ),
        Mistake(
            lambda x: _pixels(((x.clamp(-1, 1) / 2 + 0.5) * 127.5).round()),
            "you multiplied by 127.5 after the range was [0, 1] already: nothing is brighter than middle grey",
        ),
        Mistake(
            lambda x: list(to_pixels(x)),
            "you returned a list of images: one tensor (B, H, W, C) is asked for",
        ),
        Mistake(
            lambda x: 255 - to_pixels(x),
            "your images are negatives: black is -1 and white is 1",
        ),
        Mistake(
            lambda x: _pixels(((x / 2 + 0.5).clamp(0, 1) * 255).ceil()),
            "you rounded up, or added one half and rounded besides: the nearest whole number is asked for",
        ),
        Mistake(
            lambda x: to_pixels(x).permute(0, 3, 1, 2).reshape(len(x), *x.shape[2:], x.shape[1]),
            "you changed the shape without moving the axes: `reshape` and `view` keep the order of the values, and "
            "colours and places get mixed up",
        ),
        Mistake(
            lambda x: _pixels(((x / 2 + 0.5).clamp(min=0) * 255).round()),
            "you cut at black alone, or at 255 where white was still 1: what is brighter than white wraps around in a "
            "byte",
        ),
        Mistake(
            lambda x: _pixels(((x / 2 + 0.5).clamp(max=1) * 255).round()),
            "you cut at white alone: what is darker than black wraps around in a byte",
        ),
        Mistake(
            lambda x: _pixels(((x + 1) * 128).clamp(0, 255)),
            "you multiplied by 128, or by 256 after the range was [0, 1]: from 0 to 255 there are 255 steps",
        ),
        Mistake(
            lambda x: _pixels(((x + 1) * 128).clamp(0, 255).round()),
            "you multiplied by 128, or by 256 after the range was [0, 1], and rounded: from 0 to 255 there are 255 "
            "steps",
        ),
        Mistake(
            lambda x: _pixels((x / 2 + 0.5).clamp(0, 1).floor() * 255),
            "you made whole numbers too early: between 0 and 1 there are none, so only black and white are left",
        ),
        Mistake(
            lambda x: _pixels((x / 2 + 0.5).clamp(0, 1).round() * 255),
            "you rounded too early: between 0 and 1 there are no whole numbers, so only black and white are left",
        ),
        Mistake(
            lambda x: _pixels((x.clamp(-1, 1) * 255).round()),
            "you did not move the range: it starts at -1, and below 0 a byte wraps around",
        ),
        Mistake(
            lambda x: to_pixels(x).squeeze(),
            lambda at: (
                f"your result has shape {tuple(at.yours['pixels'].shape)}: `squeeze` takes away every axis of length "
                "1, but all four are asked for"
            ),
        ),
        Mistake(
            lambda x: to_pixels(x).squeeze(-1),
            lambda at: (
                f"your result has shape {tuple(at.yours['pixels'].shape)}: grey images keep the axis of their one "
                "channel"
            ),
        ),
        Mistake(
            lambda x: _pixels(((x - x.amin()) / (x.amax() - x.amin()) * 255).round()),
            "you stretched the batch to its own darkest and brightest value: middle grey is 0, whatever else is in it",
        ),
    ),
    run=to_pixels_run,
    alternatives=(to_pixels_clamped_first, to_pixels_in_float64, to_pixels_by_loop, to_pixels_in_place),
)


# ---------------------------------------------------------------- 10.2


def denoise(unet: Any, scheduler: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """The denoising loop, for any network and any scheduler whose `step` takes a generator.

    unet: `unet(x, t).sample` is its prediction.
    scheduler: its `timesteps` are set; it has `scale_model_input(x, t)` and `step(...)`.
    x: the noise to start from, shape (B, C, H, W).
    generator: source of the noise that the steps add.
    Returns the sample at the end, shape (B, C, H, W).
    """
    for t in scheduler.timesteps:
        model_output = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(model_output, t, x, generator=generator).prev_sample
    return x


def denoise_inputs(generator: torch.Generator, index: int) -> Case:
    """Four schedulers, each with a few timesteps of 20."""
    scheduler = a_scheduler(index)
    scheduler.set_timesteps((4, 5, 3, 4)[index])
    shape = ((2, 3, 4, 4), (1, 1, 6, 4), (3, 1, 4, 4), (2, 1, 5, 5))[index]
    x = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    noise = torch.Generator().manual_seed(index)
    arguments = {"unet": StandIn(shape[1], shape[-1]), "scheduler": scheduler, "x": x, "generator": noise}
    return Case(arguments, {"steps": len(scheduler.timesteps), "kind": type(scheduler).__name__})


def denoise_with_tuples(unet, scheduler, x, generator):
    for t in scheduler.timesteps:
        out = unet(scheduler.scale_model_input(x, t), t)[0]
        x = scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
    return x


def denoise_by_index(unet, scheduler, x, generator):
    number = 0
    while number < len(scheduler.timesteps):
        t = int(scheduler.timesteps[number])
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t)["sample"], t, x, generator=generator)[0]
        number += 1
    return x


def denoise_recursively(unet, scheduler, x, generator, timesteps=None):
    timesteps = scheduler.timesteps if timesteps is None else timesteps
    if len(timesteps) == 0:
        return x
    out = unet(scheduler.scale_model_input(x, timesteps[0]), timesteps[0]).sample
    x = scheduler.step(out, timesteps[0], x, generator=generator)["prev_sample"]
    return denoise_recursively(unet, scheduler, x, generator, timesteps[1:])


def denoise_in_place(unet, scheduler, x, generator):
    state = x.clone()
    for t in scheduler.timesteps.tolist():
        scaled = scheduler.scale_model_input(state.clone(), t)
        state.copy_(scheduler.step(unet(scaled, t).sample, t, state.clone(), generator=generator).prev_sample)
    return state


def denoise_in_float64(unet, scheduler, x, generator):
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = unet(scheduler.scale_model_input(x, t).double(), t).sample.to(x.dtype)
            x = scheduler.step(out, t, x, generator=generator).prev_sample
    return x


def _loop(unet, scheduler, x, generator, timesteps=None, step=None, ask=None):
    """The loop with other timesteps, another step or another way to ask the network."""
    start = x
    for t in scheduler.timesteps if timesteps is None else timesteps:
        out = ask(x, t, start) if ask else unet(scheduler.scale_model_input(x, t), t).sample
        x = step(out, t, x) if step else scheduler.step(out, t, x, generator=generator).prev_sample
    return x


def _clipped_output(unet, scheduler, x, t):
    return unet(scheduler.scale_model_input(x, t), t).sample.clamp(-1, 1)


def _keeps_the_first_sample(unet, scheduler, x, generator):
    for t in scheduler.timesteps:
        made = _loop(unet, scheduler, x, generator, timesteps=[t])
    return made


def _ends_with_the_guess(unet, scheduler, x, generator):
    *steps, last = scheduler.timesteps
    x = _loop(unet, scheduler, x, generator, timesteps=steps)
    out = unet(scheduler.scale_model_input(x, last), last).sample
    return scheduler.step(out, last, x, generator=generator).pred_original_sample


def _sets_its_own_timesteps(unet, scheduler, x, generator):
    scheduler.set_timesteps(len(scheduler))
    return _loop(unet, scheduler, x, generator)


DENOISE = Exercise(
    id="10.2",
    title="Three lines",
    difficulty=2,
    minutes=7,
    equation="Ho algorithm 2",
    where="The loop by hand",
    lines=4,
    reference=denoise,
    inputs=denoise_inputs,
    hints=(
        "Nothing in the loop knows which scheduler it has: when, what goes in, and what comes back are its business.",
        "For each t of the scheduler: ask the network about the (scaled) sample, then let `step` take it to the next "
        "one.",
        "`for t in ...:`, in it `model_output = unet(..., t).sample` and `x = scheduler.step(...).prev_sample`",
    ),
    mistakes=(
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, ask=lambda now, t, start: u(s.scale_model_input(start, t), t).sample),
            "you asked the network about the first noise in every step: it must see the sample as it is now "
            "({kind}, {steps} steps)",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u, s, x, g, step=lambda o, t, now: s.step(o, t, now, generator=g).pred_original_sample
            ),
            "you went on with x̂_0, the guess at the end: it is clean too early, and the next step takes it for noisy "
            "({kind})",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=range(len(s.timesteps))),
            "you counted 0, 1, 2, ... and took that for t: the {steps} timesteps are in `scheduler.timesteps`, the "
            "noisiest first",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=s.timesteps.flip(0)),
            "you went through the timesteps backwards: they fall already, and the noise is greatest at the first one",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, ask=lambda now, t, start: u(now, t).sample),
            "you gave the network the sample as it is: some schedulers (here the {kind}) scale it first, and have a "
            "method for that",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, ask=lambda now, t, start: u(s.scale_model_input(now), t).sample),
            "you did not say at which timestep the sample is to be scaled: the {kind} scales by it and asks for it",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u, s, x, g, ask=lambda now, t, start: u(s.scale_model_input(now, s.timesteps[0]), t).sample
            ),
            "you scaled the sample for the first timestep in every step: how much depends on the timestep of the step",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, step=lambda o, t, now: s.step(o, t, now).prev_sample),
            "you did not pass the generator on: the noise of the {kind}'s steps came from the global random state or "
            "from a generator of your own, and the seed asked for does not reach it",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, step=lambda o, t, now: s.step(o, t, now, g).prev_sample),
            "you passed the generator by its place, the fourth: there DDIM's step has `eta`. Pass it by name",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u,
                s,
                x,
                g,
                step=lambda o, t, now: s.step(o, t, s.scale_model_input(now, t), generator=g).prev_sample,
            ),
            "you went on with the scaled sample: it is for the network's eyes alone, `step` wants the sample itself "
            "({kind})",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, step=lambda o, t, now: s.step(now, t, o, generator=g).prev_sample),
            "you swapped the sample and the network's output in `step`: the output comes first, the sample last",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=s.timesteps[:-1]),
            "you stopped one step early: some noise is left ({kind}, {steps} steps)",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=range(len(s) - 1, -1, -1)),
            "you walked through all of the training's timesteps: the {steps} that were asked for are in "
            "`scheduler.timesteps`",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u, s, x, g, ask=lambda now, t, start: u(s.scale_model_input(now, t), s.timesteps[0]).sample
            ),
            "you told the network the first timestep every time: it must know how noisy the sample is now",
        ),
        Mistake(
            _keeps_the_first_sample,
            "you did not go on with the new sample: every step started from the first noise ({kind})",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=s.timesteps[:1]),
            "you returned after the first step: the loop has {steps} ({kind}; how far is `return` indented?)",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=range(len(s.timesteps) - 1, -1, -1)),
            "you took positions for timesteps, the last one first: the {steps} timesteps are the entries of "
            "`scheduler.timesteps`",
        ),
        Mistake(
            _sets_its_own_timesteps,
            "you set the timesteps anew: the scheduler came with its {steps} timesteps, and they are to be kept",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, ask=lambda now, t, start: u(s.scale_model_input(now, t), 0).sample),
            "you told the network t = 0 every time: it must know how noisy the sample is now",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, step=lambda o, t, now: now - o),
            "you subtracted the network's output: that is not a step; the scheduler has one ({kind})",
        ),
        Mistake(
            _ends_with_the_guess,
            "you returned x̂_0 of the last step: some schedulers (here the {kind}) do not end there; what comes back of "
            "the step is the sample",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x * s.init_noise_sigma, g),
            "you scaled the first noise: x comes with the standard deviation that the scheduler wants",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u, s, x, g, step=lambda o, t, now: s.step(o, t, now, generator=g).prev_sample.clamp(-1, 1)
            ),
            "you clamped the sample in every step: noisy samples reach beyond [-1, 1] and must; what is clipped is the "
            "scheduler's business",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g).clamp(-1, 1),
            "you clamped the result: the sample is asked for as the scheduler left it",
        ),
        Mistake(
            lambda u, s, x, g: (_loop(u, s, x, g) / 2 + 0.5).clamp(0, 1),
            "you went on to [0, 1]: the sample is asked for as the scheduler left it",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, timesteps=s.timesteps[1:]),
            "you left out the first timestep: there the noise is greatest ({kind}, {steps} steps)",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u, s, x, g, ask=lambda now, t, start: u(s.scale_model_input(now, t), int(t) / len(s)).sample
            ),
            "you told the network t divided by T: it expects the whole number",
        ),
        Mistake(
            lambda u, s, x, g: _loop(
                u,
                s,
                x,
                g,
                ask=lambda now, t, start: u(s.scale_model_input(now, t), s.timesteps.tolist().index(int(t))).sample,
            ),
            "you told the network the number of the step: it must know the timestep",
        ),
        Mistake(
            lambda u, s, x, g: torch.cat([_loop(u, s, one, g) for one in x.split(1)]),
            "you took the samples through the loop one after the other: one generator serves a batch as a whole, and "
            "the same seed gives other samples this way",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, torch.randn(x.shape, generator=g), g),
            "you drew a start of your own: the noise to start from is x, an argument",
        ),
        Mistake(
            lambda u, s, x, g: _loop(u, s, x, g, ask=lambda now, t, start: _clipped_output(u, s, now, t)),
            "you clipped the network's output to [-1, 1]: it is noise, which goes beyond; the range is that of x̂_0, "
            "and to clip that is the scheduler's business",
        ),
    ),
    alternatives=(
        denoise_with_tuples,
        denoise_by_index,
        denoise_recursively,
        denoise_in_place,
        denoise_in_float64,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 10.3


def generate(
    unet: Any, scheduler: Any, batch_size: int, num_inference_steps: int, generator: torch.Generator
) -> Tensor:
    """A pipeline's call: images from nothing but a network, a scheduler and a seed.

    unet: `unet(x, t).sample`; `unet.config.in_channels` and `unet.config.sample_size` (a number) tell the shape.
    scheduler: has `set_timesteps(n)`, `init_noise_sigma`, `timesteps`, `scale_model_input` and `step`.
    generator: source of the first noise, then of the noise in the steps.
    Returns shape (batch_size, C, H, W), values in [0, 1].
    """
    scheduler.set_timesteps(num_inference_steps)
    size = unet.config.sample_size
    x = torch.randn((batch_size, unet.config.in_channels, size, size), generator=generator)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_output = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(model_output, t, x, generator=generator).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


def generate_inputs(generator: torch.Generator, index: int) -> Case:
    """Four schedulers and networks of other channels and sizes."""
    channels, size, batch, steps = ((3, 4, 2, 4), (1, 6, 1, 5), (1, 4, 3, 3), (2, 5, 2, 4))[index]
    scheduler, noise = (
        a_scheduler(index),
        torch.Generator().manual_seed(int(torch.randint(99, (), generator=generator))),
    )
    arguments = {"unet": StandIn(channels, size), "scheduler": scheduler, "batch_size": batch}
    facts = {"steps": steps, "kind": type(scheduler).__name__, "sigma": scheduler.init_noise_sigma}
    return Case({**arguments, "num_inference_steps": steps, "generator": noise}, facts)


def _generate(
    unet, scheduler, batch_size, steps, generator, noise=None, sigma=None, finish=None, late=None, set=True, ask=None
):
    """The pipeline with another first noise, scale, ending, generator of the steps or way to ask the network."""
    if set:
        scheduler.set_timesteps(steps)
    shape = (batch_size, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    x = noise(shape) if noise else torch.randn(shape, generator=generator)
    x = x * (scheduler.init_noise_sigma if sigma is None else sigma)
    x = _loop(unet, scheduler, x, late or generator, ask=ask)
    return finish(x) if finish else (x / 2 + 0.5).clamp(0, 1)


def generate_by_parts(unet, scheduler, batch_size, num_inference_steps, generator):
    return _generate(unet, scheduler, batch_size, num_inference_steps, generator)


def generate_with_empty(unet, scheduler, batch_size, num_inference_steps, generator):
    side = unet.config.sample_size
    x = torch.empty(batch_size, unet.config.in_channels, side, side).normal_(generator=generator)
    x.mul_(scheduler.init_noise_sigma)
    scheduler.set_timesteps(num_inference_steps=num_inference_steps)
    x = denoise_with_tuples(unet, scheduler, x, generator)
    return x.clamp(-1, 1).add(1).div(2)


def generate_in_float64(unet, scheduler, batch_size, num_inference_steps, generator):
    return _generate(unet, scheduler, batch_size, num_inference_steps, generator).double()


def generate_by_recursion(unet, scheduler, batch_size, num_inference_steps, generator):
    def finish(x):
        return ((x + 1) / 2).clamp(min=0).clamp(max=1)

    return _generate(unet, scheduler, batch_size, num_inference_steps, generator, finish=finish)


def generate_one_by_one_at_the_end(unet, scheduler, batch_size, num_inference_steps, generator):
    def finish(x):
        return torch.stack([(image / 2 + 0.5).clamp(0, 1) for image in x])

    return _generate(unet, scheduler, batch_size, num_inference_steps, generator, finish=finish)


def generated_grid(answer: Any) -> Any:
    """Six digits from the learner's pipeline above those of the package's, from the same seed."""
    pipeline = DDPMPipeline.from_pretrained("digits")
    pipeline.set_progress_bar_config(disable=True)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad(), rc_context(plots.STYLE):
        yours = answer(pipeline.unet, scheduler, 6, 10, torch.Generator().manual_seed(10))
        pipeline.scheduler = scheduler
        package = pipeline(6, torch.Generator().manual_seed(10), 10, output_type="pt").images
        return plots.grid_figure(torch.cat([yours, package]) * 2 - 1, 6, row_labels=["yours", "course"])


GENERATE = Exercise(
    id="10.3",
    title="The whole pipeline",
    difficulty=2,
    minutes=9,
    equation="Ho algorithm 2",
    where="The pipeline itself",
    lines=8,
    reference=generate,
    inputs=generate_inputs,
    hints=(
        "Before the loop: how many steps, which shape, how much noise. After it: from [-1, 1] to [0, 1].",
        "x_T is standard normal times `init_noise_sigma`. Its shape comes from the network's config, and the same "
        "generator draws it and then serves the steps.",
        "`scheduler.set_timesteps(...)`, `x = torch.randn((..., ..., ..., ...), generator=...)`, scale it, the loop of "
        "exercise 10.2, `return (...).clamp(0, 1)`",
    ),
    mistakes=(
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, set=False),
            "you did not tell the scheduler how many steps to take: it walked through all 20, not {steps}",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, noise=lambda shape: torch.rand(shape, generator=g)),
            "your first noise is uniform, between 0 and 1: x_T is standard normal",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, noise=torch.randn),
            "you drew the first noise without the generator that was given: the seed asked for does not reach it",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, sigma=1),
            "you started from standard normal noise: this scheduler wants its standard deviation to be {sigma:g} and "
            "says so in an attribute",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: x),
            "you returned x_0 itself, in [-1, 1] and a little beyond: images in [0, 1] are asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: (x + 1).clamp(0, 1)),
            "you moved the range but did not halve it: everything brighter than middle grey became white",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: x / 2 + 0.5),
            "you did not cut at the ends of [0, 1]: the network owes nobody the range",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: x.clamp(0, 1)),
            "you cut at 0 without moving the range: half of every image became black",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, late=torch.Generator().manual_seed(0)),
            "you gave the steps a generator of their own, or none: the seed asked for does not reach them ({kind})",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, 1, n, g),
            lambda at: f"your result holds {len(at.yours)} image: {at.batch_size} were asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, ask=lambda now, t, start: u(now, t).sample),
            "you gave the network the sample as it is: this scheduler scales it first (`scale_model_input`), others "
            "leave it alone",
        ),
        Mistake(
            lambda u, s, b, n, g: torch.cat([_generate(u, s, 1, n, g) for _ in range(b)]),
            "you made the {batch_size} images one after the other: one generator serves a batch as a whole, and the "
            "same seed gives other images this way",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g).permute(0, 2, 3, 1),
            lambda at: f"your result has shape {tuple(at.yours.shape)}: the channels stay in front here, (B, C, H, W)",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g).mul(255).round(),
            "you went on to pixels from 0 to 255: [0, 1] is asked for, and nothing is rounded",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, noise=lambda shape: torch.zeros(shape)),
            "you started from grey, from zeros: without noise there is nothing to choose between",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(
                u,
                s,
                b,
                n,
                g,
                noise=lambda shape: torch.randn(b, u.config.out_channels, *shape[2:], generator=g),
            ),
            lambda at: (
                f"your result has shape {tuple(at.yours.shape)}: the noise has the network's `in_channels`, and what "
                "it puts out may have more"
            ),
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, sigma=1 / s.init_noise_sigma),
            "you divided the first noise by `init_noise_sigma`, {sigma:g}: that is to be its standard deviation",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, sigma=s.init_noise_sigma**2),
            "you scaled the first noise twice: its standard deviation is to be {sigma:g}",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: x.clamp(-1, 1)),
            "you cut at -1 and 1 and left it there: images in [0, 1] are asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: x.clamp(0, 1) / 2 + 0.5),
            "you cut at 0 before you moved the range: half of every image became middle grey",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, finish=lambda x: (x + 0.5).clamp(0, 1)),
            "you moved the range by one half without halving it: it is 2 wide, from -1 to 1",
        ),
        Mistake(
            lambda u, s, b, n, g: to_pixels(_generate(u, s, b, n, g, finish=lambda x: x)).permute(0, 3, 1, 2),
            "you went on to bytes: values in [0, 1] are asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: to_pixels(_generate(u, s, b, n, g, finish=lambda x: x)),
            "you went on to pixels, with the channels last: a tensor (B, C, H, W) with values in [0, 1] is asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n + 1, g),
            "you took a step more than the {steps} that were asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n - 1, g),
            "you took a step less than the {steps} that were asked for",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, n, b, g),
            lambda at: f"you exchanged the number of images, {at.batch_size}, and the number of steps, {at.steps}",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(
                u, s, b, n, g, noise=lambda shape: torch.randn(1, *shape[1:], generator=g).repeat(b, 1, 1, 1)
            ),
            "you gave all {batch_size} images the same first noise: each needs its own",
        ),
        Mistake(
            lambda u, s, b, n, g: _generate(u, s, b, n, g, ask=lambda now, t, start: _clipped_output(u, s, now, t)),
            "you clipped the network's output to [-1, 1]: it is noise, which goes beyond; the range is that of the "
            "images at the end",
        ),
    ),
    alternatives=(
        generate_by_parts,
        generate_with_empty,
        generate_in_float64,
        generate_by_recursion,
        generate_one_by_one_at_the_end,
    ),
    picture=generated_grid,
    rtol=1e-4,
)


# ---------------------------------------------------------------- 10.4


def convert_config(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of another scheduler for the same model, as `from_config` finds them.

    config: a scheduler's config. Its key "_use_default_values", if there, lists the keys nobody chose: they hold the
        defaults of the class they came from. Other keys with a leading underscore are remarks.
    defaults: the keys that the other class knows, with its own defaults.
    Returns a new dictionary with exactly the keys of `defaults`; `config` stays as it is.
    """
    nobody_chose = config.get("_use_default_values", [])
    chosen = {key: value for key, value in config.items() if key in defaults and key not in nobody_chose}
    return {**defaults, **chosen}


def convert_config_inputs(generator: torch.Generator, index: int) -> Case:
    """From DDPM to Euler and back, with a list of what nobody chose and from a file without one."""
    start, end = 1e-4 + 1e-5 * float(torch.rand((), generator=generator)), 0.02
    ddpm = {"beta_start": start, "beta_end": end, "clip_sample": True, "variance_type": "fixed_large"}
    euler = {"beta_start": 1e-4, "beta_end": 0.01, "timestep_spacing": "linspace", "use_karras_sigmas": False}
    if index == 1:
        config = {**euler, "beta_end": end, "trained_betas": None, "_use_default_values": ["timestep_spacing"]}
        defaults = {"beta_start": 1e-5, "beta_end": 0.03, "clip_sample": False, "timestep_spacing": "leading"}
        defaults |= {"use_karras_sigmas": True, "trained_betas": [0.1]}
        return Case({"config": config, "defaults": defaults}, {"key": "timestep_spacing"})
    config = {**ddpm, "timestep_spacing": "leading", "_class_name": "DDPMScheduler", "_remark": 1}
    unchosen = (["timestep_spacing", "clip_sample"], None, None, ["timestep_spacing", "beta_end"])[index]
    if unchosen is not None:
        config["_use_default_values"] = unchosen
    return Case({"config": config, "defaults": euler})


def convert_config_run(answer: Any, config: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """What the answer returns, lists and the like in words, so that a list and None differ at the key that holds them.

    A config without its list of keys would pass for unchanged: no number of it changed.
    """
    before = dict(config)
    made = answer(config, defaults)
    if config != before:
        raise TypeError("your function changed `config` itself, which its caller still needs")
    if not isinstance(made, dict):
        return made
    return {key: value if isinstance(value, float | str) else str(value) for key, value in made.items()}


def convert_config_by_loop(config, defaults):
    result = {}
    for key, default in defaults.items():
        unchosen = key in config.get("_use_default_values", ())
        result[key] = default if key not in config or unchosen else config[key]
    return result


def convert_config_in_place(config, defaults):
    result = dict(defaults)
    for key in set(config) & set(defaults):
        if key not in config.get("_use_default_values", []):
            result[key] = config[key]
    return result


def convert_config_by_removal(config, defaults):
    left = dict(config)
    for key in left.pop("_use_default_values", []):
        left.pop(key, None)
    return {key: left.get(key, default) for key, default in defaults.items()}


def convert_config_with_union(config, defaults):
    skip = frozenset(config["_use_default_values"]) if "_use_default_values" in config else frozenset()
    return defaults | dict(filter(lambda item: item[0] in defaults.keys() - skip, config.items()))


def _pops_the_list(config, defaults):
    skip = config.pop("_use_default_values", [])
    return {**defaults, **{key: value for key, value in config.items() if key in defaults and key not in skip}}


def _adds_the_list(config, defaults):
    config.setdefault("_use_default_values", [])
    return convert_config(config, defaults)


def _chosen_by_or(config, defaults):
    skip = config.get("_use_default_values", ())
    return {key: default if key in skip else config.get(key) or default for key, default in defaults.items()}


CONVERT_CONFIG = Exercise(
    id="10.4",
    title="What a config means to another class",
    difficulty=2,
    minutes=7,
    equation="",
    where="Another scheduler for the same model",
    lines=4,
    reference=convert_config,
    inputs=convert_config_inputs,
    run=convert_config_run,
    hints=(
        "There are three kinds of keys: chosen by somebody and known to the other class; known there but not chosen "
        "here; unknown there.",
        "A chosen and known key keeps its value. Every other key of the other class takes that class's own default. "
        "The rest is dropped.",
        "`nobody_chose = config.get(..., [])`, `chosen = {... for key, value in config.items() if ... and ...}`, then "
        "join two dictionaries: in which order?",
    ),
    mistakes=(
        Mistake(
            _chosen_by_or,
            "you took a False or a None that somebody chose for nothing chosen: `or` and `is not None` ask for the "
            "value, `in` asks for the key",
        ),
        Mistake(
            lambda c, d: {**d, **{k: v for k, v in c.items() if k in d}},
            "you carried over values that nobody chose: `_use_default_values` names keys that hold the default of the "
            "old class, and the new class has its own",
        ),
        Mistake(
            lambda c, d: {**d, **{k: v for k, v in c.items() if k not in c.get("_use_default_values", [])}},
            "you kept keys that the other class does not know: its constructor would refuse them",
        ),
        Mistake(
            lambda c, d: {k: v for k, v in c.items() if k in d and k not in c.get("_use_default_values", [])},
            "you left out the keys that were not chosen: exactly those of `defaults` are asked for",
        ),
        Mistake(
            lambda c, d: {**{k: v for k, v in c.items() if k in d}, **d},
            "you returned the other class's defaults, or let them overwrite what was chosen: the model was trained "
            "with the schedule in `config`",
        ),
        Mistake(
            lambda c, d: {
                **{k: v for k, v in c.items() if k[0] != "_"},
                **{k: v for k, v in d.items() if k not in c or k in c.get("_use_default_values", [])},
            },
            "you kept the other keys of the old class beside the new ones: exactly those of `defaults` are asked for",
        ),
        Mistake(
            lambda c, d: {
                **d,
                **{k: c[k] for k in c.get("_use_default_values", []) if k in d},
            },
            "you turned it around: `_use_default_values` lists what was not chosen, and you took only that",
        ),
        Mistake(
            lambda c, d: {**d, **{k: v for k, v in c.items() if k in d and k not in c["_use_default_values"]}},
            'you asked the config for "_use_default_values" where it may be missing, in a file written by hand: then '
            "everything in it was chosen",
        ),
        Mistake(
            _pops_the_list,
            "you changed the config that was given, wherever it lists what nobody chose: look it up with `get`, and "
            "leave the config as it is",
        ),
        Mistake(
            _adds_the_list,
            "you changed the config that was given, wherever it does not list what nobody chose: read the list with a "
            "default, and leave the config as it is",
        ),
        Mistake(
            lambda c, d: {**c, **d},
            "you let the other class's defaults overwrite everything, and kept keys that it does not know",
        ),
        Mistake(
            lambda c, d: dict(c),
            "you returned the config as it is, remarks and all: the other class knows other keys",
        ),
        Mistake(
            lambda c, d: {**d, **{k: v for k, v in c.items() if k in d and k not in c.get("_use_default_values", c)}},
            "you took the defaults where the config does not list what nobody chose, as a file written by hand: then "
            "everything in it was chosen",
        ),
        Mistake(
            lambda c, d: {**d, **{k: v for k, v in c.items() if k[0] != "_"}},
            "you left out the remarks and nothing else: values that nobody chose stay behind too, and so do keys that "
            "the other class does not know",
        ),
        Mistake(
            lambda c, d: {
                k: c[k] if k in c and (k.startswith("beta") or k not in c.get("_use_default_values", [])) else v
                for k, v in d.items()
            },
            "you kept the β whoever chose them: a key in the list takes the other class's default, whatever it is "
            "called",
        ),
        Mistake(
            lambda c, d: {k: c.get(k) if k not in c.get("_use_default_values", []) else v for k, v in d.items()},
            "you gave None to keys that the config does not have: these take the other class's default",
        ),
        Mistake(
            lambda c, d: {k: d[k] if k in c.get("_use_default_values", []) else v for k, v in c.items() if k in d},
            "you left out the keys that the config does not have: exactly those of `defaults` are asked for",
        ),
        Mistake(
            lambda c, d: dict(convert_config(d, c)),
            "you exchanged the two arguments: the keys that count are those of `defaults`",
        ),
    ),
    alternatives=(
        convert_config_by_loop,
        convert_config_in_place,
        convert_config_by_removal,
        convert_config_with_union,
    ),
)


# ---------------------------------------------------------------- 10.5

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_and_reload(model: UNet2DModel, folder: Path) -> UNet2DModel:
    """Saves a network in Diffusers' format and opens it again, by hand: not by `save_pretrained` and `from_pretrained`.

    model: its `config` is a dictionary; its keys go into the file, but for those with a leading underscore: remarks.
    folder: exists and is empty. Afterwards it holds `config.json`, with the class's name under "_class_name", and the
        weights, named `diffusion_pytorch_model.safetensors`.
    Returns a new model, built from the two files alone, in evaluation mode.
    """
    config = {key: value for key, value in model.config.items() if key[0] != "_"}
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")

    written = json.loads((folder / "config.json").read_text())
    loaded = UNet2DModel(**{key: value for key, value in written.items() if key[0] != "_"})
    loaded.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return loaded.eval()


def save_and_reload_inputs(generator: torch.Generator, index: int) -> Case:
    """Three tiny networks in training mode, with weights of their own."""
    options: dict[str, Any] = (
        {},
        {"in_channels": 3, "freq_shift": 1},
        {"out_channels": 2, "center_input_sample": True},
    )[index]
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    defaults = {"in_channels": 1, "out_channels": 1, "sample_size": 4}
    small = {"layers_per_block": 1, "norm_num_groups": 2, "mid_block_type": None}
    with torch.random.fork_rng(devices=[]):  # building a network draws from the global state
        model = UNet2DModel(**{**blocks, **defaults, **small, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Case({"model": model.train()})


def _in_a_row(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0), *(weights[key].detach().flatten() for key in sorted(weights))])


@contextmanager
def _watched(model: UNet2DModel, folder: Path, *names: str) -> Iterator[list[str]]:
    """The methods of `UNet2DModel` among `names`, the constructor and `load_state_dict` that are called meanwhile.

    Once the weights are in their file, the given model has each of them moved by 1 from the making of a new network
    until that is loaded: so a copy from memory, however it is made, is no longer what the file holds.
    """
    called: list[str] = []
    kept = [parameter.detach().clone() for parameter in model.parameters()]

    def move(by: float) -> None:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value + by)

    def noting(name: str, method: Any) -> Any:
        @wraps(method)
        def noted(*args: Any, **options: Any) -> Any:
            called.append(name)
            if name == "__init__" and "block_out_channels" not in options:  # by default it has 274 million parameters
                raise TypeError("this network would have the sizes of the defaults: give it what config.json holds")
            if name == "__init__":
                torch.manual_seed(0)  # weights that are not loaded are the same in every call
            if name in ("__init__", "load_state_dict") and (folder / WEIGHTS).is_file():
                move(1.0)
            result = method(*args, **options)
            if name == "load_state_dict":
                move(0.0)
            return result

        return noted

    with ExitStack() as stack:
        stack.callback(move, 0.0)
        for name in (*names, "__init__", "load_state_dict"):
            stack.enter_context(patch.object(UNet2DModel, name, noting(name, getattr(UNet2DModel, name))))
        yield called


def _same_text(one: UNet2DModel, other: UNet2DModel) -> bool:
    """Whether both configs hold the same string as one object: a copy does, what was read from a file does not."""
    return one.config["down_block_types"][0] is other.config["down_block_types"][0]


def save_and_reload_run(answer: Any, model: UNet2DModel) -> dict[str, Any]:
    """What lies in the folder afterwards, what the returned network is, and whether the package did the work."""
    finished = ("save_pretrained", "from_pretrained")
    place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Windows keeps files that are mapped into memory
    with place as name:
        folder = Path(name)
        with _watched(model, folder, *finished) as called:
            loaded = answer(model, folder)
        if loaded is None:
            return None  # type: ignore[return-value]
        if not isinstance(loaded, UNet2DModel):
            raise TypeError(f"return the new network alone: yours is a {type(loaded).__name__}")
        files = sorted(path.name for path in folder.iterdir())
        file = folder / "config.json"
        config = json.loads(file.read_text()) if file.is_file() else {}
        stored = load_file(folder / files[-1]) if files and files[-1].endswith(".safetensors") else {}
    known = [key for key in model.config if key[0] != "_"]
    weights, moved = _in_a_row(loaded.state_dict()), _in_a_row(model.state_dict()) + 1
    return {
        "files": ", ".join(files),
        "config": {
            key: json.dumps(config[key]) if key in config else "missing"
            for key in ("_class_name", "_use_default_values", *known)
        },
        "other keys": ", ".join(sorted(key for key in config if key[0] != "_" and key not in known)),
        "names in the file": ", ".join(sorted(stored)),
        "weights in the file": _in_a_row(stored),
        "a new model": loaded is not model,
        "its mode": "training" if loaded.training else "evaluation",
        "weights loaded from": "memory" if torch.equal(weights.float(), moved.float()) else "the file",
        "its weights": weights,
        "its config": {key: json.dumps(loaded.config[key]) for key in known},
        "built from": "memory" if "__init__" not in called or _same_text(loaded, model) else "the file",
        "finished methods called": ", ".join(name for name in called if name in finished),
    }


def save_and_reload_with_open(model, folder):
    named = {"_class_name": type(model).__name__}
    for key in model.config:
        if not key.startswith("_"):
            named[key] = model.config[key]
    with open(folder / "config.json", "w", encoding="utf-8") as file:
        json.dump(named, file, indent=2, sort_keys=True)
    save_file(
        {k: v.clone() for k, v in model.state_dict().items()}, str(folder / "diffusion_pytorch_model.safetensors")
    )
    with open(folder / "config.json", encoding="utf-8") as file:
        loaded = UNet2DModel(**json.load(file))  # keys with an underscore are dropped by the constructor
    loaded.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    loaded.train(False)
    return loaded


def save_and_reload_in_float64(model, folder):
    save_and_reload(model, folder)
    wide = UNet2DModel.from_config(json.loads((folder / "config.json").read_text())).double()
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    wide.load_state_dict({key: value.double() for key, value in weights.items()})
    return wide.eval()


def save_and_reload_step_by_step(model, folder):
    paths = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    chosen = dict(filter(lambda item: not item[0].startswith("_"), model.config.items()))
    paths[0].write_text(json.dumps(chosen | {"_class_name": model.__class__.__name__}))
    paths[1].write_bytes(save(model.state_dict()))
    known = json.loads(paths[0].read_text())
    del known["_class_name"]
    loaded = UNet2DModel(**known)
    loaded.load_state_dict(load(paths[1].read_bytes()))
    loaded.eval()
    return loaded


def save_and_reload_by_copy(model, folder):
    model.save_config(folder)
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    loaded = UNet2DModel.from_config(json.loads((folder / "config.json").read_bytes())).eval()
    with torch.no_grad():
        for key, value in load_file(folder / "diffusion_pytorch_model.safetensors").items():
            loaded.get_parameter(key).copy_(value)
    return loaded


def _saved(model, folder, remarks=False, name=True, weights="diffusion_pytorch_model.safetensors"):
    config = {key: value for key, value in model.config.items() if remarks or key[0] != "_"}
    (folder / "config.json").write_text(json.dumps({**({"_class_name": "UNet2DModel"} if name else {}), **config}))
    if weights:
        save_file(model.state_dict(), folder / weights)


def _opened(folder, load=True, weights="diffusion_pytorch_model.safetensors", evaluate=True):
    loaded = UNet2DModel(**json.loads((folder / "config.json").read_text()))
    if load:
        loaded.load_state_dict(load_file(folder / weights))
    return loaded.train(not evaluate)


def _save_a_pickle(model, folder, load=False):
    _saved(model, folder, weights="")
    torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
    loaded = _opened(folder, load=False)
    if load:
        loaded.load_state_dict(torch.load(folder / "diffusion_pytorch_model.bin"))
    return loaded


def _save_a_bare_config(model, folder):
    _saved(model, folder)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    loaded = UNet2DModel.from_config(model.config)
    loaded.load_state_dict(model.state_dict())
    return loaded.eval()


def _config_from_memory(model, folder):
    _saved(model, folder)
    loaded = UNet2DModel(**model.config)
    loaded.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return loaded.eval()


def _all_from_memory(model, folder):
    _saved(model, folder)
    loaded = UNet2DModel(**model.config)
    loaded.load_state_dict(model.state_dict())
    return loaded.eval()


def _save_what_was_chosen(model, folder):
    _saved(model, folder)
    left = model.config.get("_use_default_values", ())
    chosen = {key: value for key, value in model.config.items() if key[0] != "_" and key not in left}
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **chosen}))
    return _opened(folder)


def _weights_from_memory(model, folder):
    _saved(model, folder)
    loaded = _opened(folder, load=False)
    loaded.load_state_dict(model.state_dict())
    return loaded


SAVE_AND_RELOAD = Exercise(
    id="10.5",
    title="Two files",
    difficulty=2,
    minutes=9,
    equation="",
    where="What is on the disk",
    lines=8,
    reference=save_and_reload,
    inputs=save_and_reload_inputs,
    run=save_and_reload_run,
    cases=3,
    hints=(
        "One file says how to build the network, the other what its parameters are. Write both, then pretend that you "
        "have nothing else.",
        "`json.dumps` and `json.loads` for the config, `save_file` and `load_file` for the state_dict. Build, then "
        "load the weights into it.",
        "`config = {... if key[0] != '_'}`, write it with the class's name; `save_file(model.state_dict(), ...)`; then "
        "`UNet2DModel(**...)`, `.load_state_dict(...)` and the mode",
    ),
    mistakes=(
        Mistake(
            lambda m, f: (_saved(m, f), _opened(f, load=False))[1],
            "your new model has weights of its own, at random: the file was written but never loaded into it",
        ),
        Mistake(
            lambda m, f: (_saved(m, f), m.eval())[1],
            "you returned the model that was given: a new one, built from the files, is asked for",
        ),
        Mistake(
            lambda m, f: (_saved(m, f), m)[1],
            "you returned the model that was given, still in training mode: a new one, built from the files, is asked "
            "for",
        ),
        Mistake(
            lambda m, f: (_saved(m, f, name=False), _opened(f))[1],
            'your config.json does not say of which class it is: others look for "_class_name" before they build',
        ),
        Mistake(
            lambda m, f: (_saved(m, f, remarks=True), _opened(f))[1],
            'your config.json holds "_use_default_values", a remark of the running object: keys with a leading '
            "underscore stay out, the class's name apart",
        ),
        Mistake(
            lambda m, f: (_saved(m, f), _opened(f, evaluate=False))[1],
            "your model is in training mode: dropout would be on while it samples",
        ),
        Mistake(
            lambda m, f: (_saved(m, f, weights="model.safetensors"), _opened(f, weights="model.safetensors"))[1],
            "you gave the weights another name: Diffusers looks for diffusion_pytorch_model.safetensors",
        ),
        Mistake(
            _save_a_pickle,
            "you wrote a pickle: the safe format is asked for, and the weights were not loaded either",
        ),
        Mistake(
            lambda m, f: _save_a_pickle(m, f, load=True),
            "you wrote a pickle: safetensors is asked for, a format that holds numbers and no code",
        ),
        Mistake(
            _save_a_bare_config,
            "your config.json holds the class's name and nothing else: nobody could build the network from it",
        ),
        Mistake(
            lambda m, f: (m.save_pretrained(f), UNet2DModel.from_pretrained(f))[1],
            "you let `save_pretrained` and `from_pretrained` do it: your two files are right, but here you write and "
            "read them by hand",
        ),
        Mistake(
            lambda m, f: (_saved(m, f), UNet2DModel.from_pretrained(f))[1],
            "you wrote the two files by hand and let `from_pretrained` read them: build the network and load its "
            "weights yourself",
        ),
        Mistake(
            _weights_from_memory,
            "you wrote the weights and then loaded those of the given model: a new one, built from the files alone, "
            "is asked for",
        ),
        Mistake(
            _config_from_memory,
            "you made the new model from the given one, by a copy or by its `config`: config.json was written, but the "
            "network was not built from it",
        ),
        Mistake(
            _all_from_memory,
            "you wrote both files and built the new model without them: config and weights came from the given model",
        ),
        Mistake(
            _save_what_was_chosen,
            "your config.json leaves out what was at its default: another library may have other defaults, so every "
            "key is written",
        ),
        Mistake(
            lambda m, f: (m.save_pretrained(f), _opened(f))[1],
            "you let `save_pretrained` write the two files: write them yourself, a config and the weights",
        ),
    ),
    alternatives=(
        save_and_reload_step_by_step,
        save_and_reload_with_open,
        save_and_reload_in_float64,
        save_and_reload_by_copy,
    ),
)

# ---------------------------------------------------------------- the bug clinic


def by_position(unet, config, x, steps):
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    for t in range(steps - 1, -1, -1):
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return x


def by_another_schedule(unet, config, x, steps):
    scheduler: Any = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return x


def by_another_prediction_type(unet, config, x, steps):
    scheduler = DDIMScheduler.from_config(config, prediction_type="sample")
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return x


def by_the_guess(unet, config, x, steps):
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).pred_original_sample
    return x


BROKEN = {"A": by_position, "B": by_another_schedule, "C": by_another_prediction_type, "D": by_the_guess}
"""Loops with one bug each, as `loop(unet, config, x, steps)` → samples. Guess before you read them."""


EXERCISES = (TO_PIXELS, DENOISE, GENERATE, CONVERT_CONFIG, SAVE_AND_RELOAD)
