# %% [markdown] id=title
# # 10 · Pipelines and Diffusers
#
# **How does this carry over to the library people use?** About 60 minutes: a good third of it reading, the rest five exercises.
#
# You have built a network, two schedulers and a training loop. Hugging Face Diffusers, the library that most people use, is made of the same
# parts under the same names. This lesson puts the parts together into a *pipeline*, walks through everything that Diffusers' own introduction
# does with the published `google/ddpm-*` networks, and ends with your weights opened there.
#
# **You will build** what the modules `ddpm_from_scratch.pipelines` and `ddpm_from_scratch.hub` are: the denoising loop, a pipeline's call, the
# conversion of a scheduler, saving and loading.
#
# **Afterwards you can**
#
# - load a published diffusion model and make images with it, in one line or by hand;
# - write the loop for any model and any scheduler, in three lines;
# - exchange the scheduler of a model without breaking it, and say what its config must keep;
# - read what lies in a saved folder, and tell which files are safe to open;
# - move a model between this package and Diffusers, and show that it is the same model.

# %% [markdown] id=notation
# ## Notation
#
# No new symbol.
#
# <details><summary>The whole dictionary of the course, to look things up; its column *Diffusers* is what you will meet there</summary>
#
# {{notation}}
#
# </details>

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import inspect
import json
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_from_scratch import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DModel,
)
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution
from ddpm_from_scratch.course.published import published
from ddpm_from_scratch.data import load_dataset

setup("10")
torch.set_num_threads(1)
scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # all that this lesson saves; deleted with the kernel
folder = Path(scratch.name)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown] id=three-words
# ## Three words
#
# - A **model** is a network: `model(x, t).sample` is its prediction. It knows nothing of steps. (Lessons 04 to 06.)
# - A **scheduler** is a noise schedule and one sampling step: `scheduler.step(prediction, t, x).prev_sample`. It has no weights and knows
#   nothing of networks. (Lessons 02, 07, 08.)
# - A **pipeline** is one of each, and the loop between them.
#
# That is all. It is why one model can be sampled by twenty schedulers, and one scheduler can serve any model that was trained with its schedule.

# %% id=diagram
with plots.figure(
    height=2.5,
    alt="A diagram. Noise goes into a frame called pipeline and an image comes out. In it "
    "are two boxes, the model and the scheduler, with an arrow from the model to the "
    "scheduler, labelled prediction, and one back, labelled next sample, next t.",
    caption="A pipeline: the model says what the noise is, the scheduler takes the step, "
    "and round it goes.",
) as ax:
    ax.set(xlim=(0, 10), ylim=(0, 3))
    ax.axis("off")
    for x, y, width, height, text, colour in (
        (2.2, 0.15, 5.6, 2.7, "", plots.FAINT),
        (2.6, 0.8, 1.9, 1.2, "model\nUNet2DModel", plots.BLUE),
        (5.5, 0.8, 1.9, 1.2, "scheduler\nDDPM, DDIM, ...", plots.VERMILION),
    ):
        corners = [x, x + width, x + width, x, x], [y, y, y + height, y + height, y]
        ax.plot(*corners, color=colour, linestyle="-", linewidth=1.8)
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)
    ax.text(5, 2.6, "pipeline", ha="center", va="center", fontsize=10)
    arrows = (
        (4.5, 1.7, 5.5, 1.7),
        (5.5, 1.1, 4.5, 1.1),
        (1.2, 1.4, 2.6, 1.4),
        (7.4, 1.4, 8.8, 1.4),
    )
    for x1, y1, x2, y2 in arrows:
        ax.annotate(
            "", (x2, y2), (x1, y1), arrowprops={"arrowstyle": "->", "color": plots.INK}
        )
    ax.text(5, 2.02, "prediction", ha="center", fontsize=9)
    ax.text(5, 0.42, "next sample, next t", ha="center", fontsize=9)
    ax.text(0.6, 1.4, "noise", ha="center", va="center")
    ax.text(9.3, 1.4, "image", ha="center", va="center")

# %% [markdown] id=one-line
# ## One line
#
# `google/ddpm-celebahq-256` is a DDPM trained on faces, at 256×256, published on the Hugging Face hub. Loading it is one line, running it another.
# If the hub can be reached, the next cell fetches 0.45 GB, and a later one as much again for a second network (on a CPU the cells with these
# networks then take minutes). If it cannot, or if `HF_HUB_OFFLINE=1` is set, you get the same network with random weights and small images,
# in the same files, and a sentence that says so;
# everything works except that its images are noise.

# %% id=celeba
celeba, what = published("google/ddpm-celebahq-256", folder)
print(what)
pipeline = DDPMPipeline.from_pretrained(celeba)
pipeline.set_progress_bar_config(disable=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
pipeline.to(device)
steps = 1000 if device == "cuda" else 4  # on a CPU one step at 256×256 takes many seconds
images = pipeline(num_inference_steps=steps, generator=seeded(0)).images
print(f"{len(images)} image of {images[0].size}, made in {steps} steps")
pixels = torch.from_numpy(np.array(images[0])).permute(2, 0, 1)[None]  # (1, C, H, W)
plots.image_grid(
    pixels / 127.5 - 1,
    width=2.2,
    alt="One small square image. With random weights and four steps it is coloured noise; "
    "with the published weights and a thousand steps it is a face.",
    caption=f"`pipeline().images[0]`: {what}, {steps} steps. With random weights there "
    "is nothing to see yet.",
)
del pipeline

# %% [markdown] id=own-line
# The same two lines with a network that this course trained and that comes with the package. Its weights are real:

# %% id=digits-line
pipeline = DDIMPipeline.from_pretrained("digits")
pipeline.set_progress_bar_config(disable=True)
images = pipeline(
    batch_size=12, num_inference_steps=20, generator=seeded(1), output_type="pt"
).images
print(f"shape {tuple(images.shape)}, from {images.min():.2f} to {images.max():.2f}")
plots.image_grid(
    images * 2 - 1,
    columns=12,
    alt="Twelve handwritten digits, white on black.",
    caption="Two lines: load, call. 20 steps of DDIM.",
)

# %% [markdown] id=inside
# What is in it? The `components` are the two parts, and `config` is what the file `model_index.json` says: for each part, the library and the class.

# %% id=components
for name, part in pipeline.components.items():
    print(f"{name:<10} {type(part).__name__}")
print(dict(pipeline.config))

# %% [markdown] id=comes-out
# ## What comes out
#
# The sampler ends with $x_0$ in $[-1, 1]$, roughly: a network owes nobody the range. A pipeline turns it into what you ask for with `output_type`: `"pt"` is a
# tensor $(B, C, H, W)$ in $[0, 1]$, `"np"` an array $(B, H, W, C)$ in $[0, 1]$, `"pil"` (the default) a list of pictures with whole numbers from 0 to 255.

# %% exercise 10.1
# Write the last part of every pipeline: from $x_0$ to pixels.

# %% [markdown] id=the-model
# ## The model alone
#
# `google/ddpm-church-256` is the same architecture, trained on churches, and another 0.45 GB. This time take the network without its pipeline. `from_pretrained` reads `config.json`, builds the
# network, and loads the weights. The parameters of its attention layers had other names in 2022 (`query` for `to_q`); both libraries rename them while loading.

# %% id=church
church, what = published("google/ddpm-church-256", folder)
print(what)
model = UNet2DModel.from_pretrained(church)
print(
    f"{model.num_parameters():,} parameters, {model.dtype}, {'training' if model.training else 'evaluation'} mode"
)
assert model.num_parameters() == 113_673_219
blocks = {
    "conv_in": model.conv_in,
    "time_embedding": model.time_embedding,
    "mid_block": model.mid_block,
}
blocks |= {f"down_blocks[{i}]": block for i, block in enumerate(model.down_blocks)}
blocks |= {f"up_blocks[{i}]": block for i, block in enumerate(model.up_blocks)}
for name, block in blocks.items():
    print(
        f"  {name:<16}{type(block).__name__:<18}{sum(p.numel() for p in block.parameters()):>12,}"
    )

# %% [markdown] id=config-text
# Everything that it takes to build the network again, weights apart, is in `model.config`. It is read-only: it says how the network *was* built, and changing it would not change the network.

# %% id=config
for key, value in model.config.items():
    if not key.startswith("_"):
        print(textwrap.fill(f"{key:<26}{value}", 100, subsequent_indent=" " * 26))
try:
    model.config["in_channels"] = 4
except TypeError as error:
    print(f"\nTypeError: {error}")

# %% [markdown] id=predict-forward
# One forward pass. The network takes a noisy sample and a timestep.
#
# > **Predict before you run.** Which shape has `model(noisy, timestep).sample`? And `t` counts from 0 to 999: what does `timestep=2` say about the sample?

# %% id=forward
torch.manual_seed(0)
side = 64 if model.config.sample_size < 256 else model.config.sample_size
noisy = torch.randn(1, model.config.in_channels, side, side)
with torch.no_grad():
    noisy_residual = model(sample=noisy, timestep=2).sample
    half = model(noisy[:, :, : side // 2, : side // 2], 2).sample
print(f"in {tuple(noisy.shape)}, out {tuple(noisy_residual.shape)}")
print(f"the same network at half the size: out {tuple(half.shape)}")

# %% [markdown] id=forward-answer
# <details><summary>Answer</summary>
#
# The shape of the sample: it is a prediction of the noise in each of its pixels. `timestep=2` is the third of a thousand noise levels: the network is told that there is hardly any noise. The
# sample here *is* noise, so the question is badly put; a network answers anyway. Nothing checks that `t` and the sample belong together. That is the scheduler's business.
#
# The network is convolutional and takes other sizes too, if they can be halved often enough. It was trained at one size, and is good only near it.
#
# </details>

# %% [markdown] id=random
# ### The same network at random
#
# `UNet2DModel(**model.config)` builds it again, untrained. This is how you start training a published architecture on your own data. A thinner one, with a quarter of the channels, is
# a change of one key:

# %% id=random-model
torch.manual_seed(0)
random_model = UNet2DModel(**model.config)
thin_widths = [width // 4 for width in model.config.block_out_channels]
thin_model = UNet2DModel(**{**model.config, "block_out_channels": thin_widths}).eval()
print(f"random: {random_model.num_parameters():,} parameters, thin: {thin_model.num_parameters():,}")
assert random_model.num_parameters() == 113_673_219
del random_model

# %% [markdown] id=scheduler
# ## The scheduler alone
#
# A scheduler is a config and tables. Its file, `scheduler_config.json`, lies beside the model's.

# %% id=church-scheduler
church_scheduler = DDPMScheduler.from_pretrained(church)
for key, value in church_scheduler.config.items():
    if not key.startswith("_"):
        print(f"{key:<28}{value}")
church_scheduler.save_config(folder / "my_scheduler")
again = DDPMScheduler.from_pretrained(folder / "my_scheduler")
print(
    f"\nsaved and loaded: the same tables, {torch.equal(again.alphas_cumprod, church_scheduler.alphas_cumprod)}"
)
print(
    f"{len(church_scheduler)} training timesteps, the first ones of sampling: {church_scheduler.timesteps[:4].tolist()}"
)

# %% [markdown] id=one-step-text
# One step, from the noisy sample and the prediction that we have:

# %% id=one-step
less_noisy = church_scheduler.step(
    model_output=noisy_residual, timestep=2, sample=noisy, generator=seeded(0)
).prev_sample
print(f"in {tuple(noisy.shape)}, out {tuple(less_noisy.shape)}")
assert less_noisy.shape == noisy_residual.shape == noisy.shape

# %% [markdown] id=loop
# ## The loop by hand
#
# Repeat that for all timesteps, and you have a sampler. Nothing in the loop knows which scheduler it is: *when* (`timesteps`), *what goes in* (`scale_model_input`, which DDPM and DDIM leave as it
# is) and *what comes back* (`step`) are all the scheduler's business.

# %% exercise 10.2
# Write it once, for every scheduler whose `step` takes a `generator`.

# %% [markdown] id=loops-text
# First with the big network and DDPM, as Diffusers' introduction does it, then with DDIM: another class, fewer steps, and the loop is the same. (Offline at 32×32, with random weights; without a GPU in 4 steps each.)


# %% id=loops
model.to(device)
side = model.config.sample_size
torch.manual_seed(0)
start_noise = torch.randn(1, model.config.in_channels, side, side).to(device)

ddpm = DDPMScheduler.from_pretrained(church)
ddpm.set_timesteps(1000 if device == "cuda" else 4)
sample, seen, source = start_noise, [start_noise], torch.Generator(device).manual_seed(0)
for t in ddpm.timesteps:
    with torch.no_grad():
        residual = model(sample, t).sample  # 1. predict the noise
    sample = ddpm.step(residual, t, sample, generator=source).prev_sample  # 2. one step
    seen.append(sample)

ddim = DDIMScheduler.from_pretrained(church)  # the same file, read by another class
ddim.set_timesteps(50 if device == "cuda" else 4)
sample = start_noise
for t in ddim.timesteps:
    with torch.no_grad():
        residual = model(sample, t).sample
    sample = ddim.step(residual, t, sample).prev_sample
    seen.append(sample)
model.to("cpu")

print(
    f"DDPM visited {ddpm.timesteps.tolist()[:4]} ..., DDIM {ddim.timesteps.tolist()[:4]} ..."
)
for name, made in (("DDPM", seen[len(ddpm.timesteps)]), ("DDIM", seen[-1])):
    print(
        f"{name}: shape {tuple(made.shape)}, values from {made.min():.2f} to {made.max():.2f}"
    )

# %% [markdown] id=loops-result
# With random weights there is nothing to look at: the loop runs and ends in $[-1, 1]$, because $\hat x_0$ is clipped. With the digits' weights the same loop makes digits. We look at the sample and at the
# guess $\hat x_0$ on the way:


# %% id=watch
digits = DDPMPipeline.from_pretrained("digits")
unet = digits.unet
scheduler = DDPMScheduler.from_config(digits.scheduler.config)
scheduler.set_timesteps(50)
x, noise_source = torch.randn((3, 1, 16, 16), generator=seeded(3)), seeded(4)
columns, titles = [], []
for t in scheduler.timesteps:
    with torch.no_grad():
        out = scheduler.step(unet(x, t).sample, t, x, generator=noise_source)
    if int(t) % 180 == 0:
        columns += [x, out.pred_original_sample]
        titles += [f"$x_t$, t = {t}", r"$\hat x_0$"]
    x = out.prev_sample
columns, titles = [*columns, x], [*titles, "result"]
plots.image_grid(
    torch.stack(columns, dim=1).flatten(0, 1),
    columns=len(columns),
    titles=[title.replace("$, t", "$\nt") for title in titles],
    alt="Three rows of images. From left to right pairs of a noisy sample and a guess of the "
    "clean image; the samples get less noisy, the guesses change from grainy blurs to the "
    "digit that is the result.",
    caption="Inside the loop: the sample, and what the network thinks it will become.",
)

# %% [markdown] id=pipeline
# ## The pipeline itself
#
# What is missing for a pipeline? Before the loop: the number of steps, the shape, and the first noise, with the standard deviation that the scheduler wants to start from. After it: your pixels. And one promise: **a seed gives
# the same images**, so one generator draws the first noise and then serves the steps.

# %% exercise 10.3
# Write the call of a pipeline. The picture compares yours with the package's, on the digits.

# %% [markdown] id=generators
# A batch may also have one generator *per image*. Then an image depends on its own seed alone, not on its neighbours:

# %% id=per-image
pipeline = DDPMPipeline(unet, DDIMScheduler.from_config(digits.scheduler.config))
pipeline.set_progress_bar_config(disable=True)
options = {"num_inference_steps": 10, "output_type": "pt"}
three = pipeline(3, [seeded(s) for s in (5, 6, 7)], **options).images
alone = pipeline(1, [seeded(6)], **options).images
largest = float((three[1] - alone[0]).abs().max())
print(f"seed 6 in a batch of three and alone: largest difference {largest:.0e}")
assert largest < 1e-4

# %% [markdown] id=another
# ## Another scheduler for the same model
#
# A model is trained with one noise schedule and one target. Any scheduler that keeps *these* may sample it. They are in the config:
#
# | must be kept: how it was trained | may be chosen: how it is sampled |
# |---|---|
# | `num_train_timesteps`, `beta_schedule`, `beta_start`, `beta_end`, `trained_betas`, `rescale_betas_zero_snr` | the class, the number of steps, `timestep_spacing`, `steps_offset` |
# | `prediction_type`, and `variance_type` if it is a learned one | else `variance_type`; `eta`, `clip_sample`, `thresholding` |
#
# So one never writes a new scheduler's arguments by hand: `DDIMScheduler.from_config(other.config)` takes over what belongs to the training. There is one trap. A config holds *all* values, also those
# that nobody chose. Should the other class take over the old class's default, or its own? Its own: DDPM's default for `timestep_spacing` is `"leading"`, Euler's is `"linspace"`. So a config remembers in
# `_use_default_values` which keys were never chosen.
#
# Two consequences. A file has no such list: all that is read from one counts as chosen, and the Euler scheduler below takes over `"leading"`. And the rule does not know the left column of the table: if nobody chose the β, the new class takes its own,
# and those of Diffusers' `HeunDiscreteScheduler` are others (0.00085 to 0.012). So convert a config that comes from a file, or name the β when you make a scheduler.

# %% id=defaults
made = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
print(
    "chosen:",
    {
        key: made.config[key]
        for key in made.config
        if key not in made.config["_use_default_values"] and key[0] != "_"
    },
)
print(textwrap.fill("nobody chose: " + ", ".join(made.config["_use_default_values"]), 100))

# %% exercise 10.4
# Find the arguments for the other class.

# %% [markdown] id=swap-predict
# Now one network and one first noise, and several schedulers. Diffusers has more than we built; they work with our network, since it answers as theirs does. (If Diffusers is not installed, the cell shows ours alone.) The pipeline is this package's: it scales the noise and the network's input, and gives `step` only what it takes. Diffusers' own `DDPMPipeline` does none of this (Euler comes out wrong there, Heun raises an error), and its `DDIMPipeline` makes a DDIM of whatever scheduler it gets: there, write the loop by hand for other schedulers.
#
# > **Predict before you run.** From the same $x_T$, which of them make the same digits: DDPM with 50 steps, DDIM with 10 and with 50, and three other solvers of the ODE (Euler, Heun, DPM-Solver++) with 10?

# %% id=swap
try:
    import diffusers
except ImportError:
    diffusers = None
    print("Diffusers is not installed. Run `%pip install diffusers` in a cell, then restart the kernel.")
else:
    diffusers.utils.logging.disable_progress_bar()

config = digits.scheduler.config
schedulers = {
    "DDPM, 50": (DDPMScheduler.from_config(config), 50),
    "DDIM, 50": (DDIMScheduler.from_config(config), 50),
    "DDIM, 10": (DDIMScheduler.from_config(config), 10),
}
if diffusers:
    for label, name in (
        ("Euler, 10", "EulerDiscreteScheduler"),
        ("Heun, 10", "HeunDiscreteScheduler"),
        ("DPM++, 10", "DPMSolverMultistepScheduler"),
    ):
        schedulers[label] = (getattr(diffusers, name).from_config(config), 10)

rows, calls = {}, {}
for label, (scheduler, count) in schedulers.items():
    pipeline = DDPMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    asked = []
    counting = unet.register_forward_hook(lambda *_, asked=asked: asked.append(1))
    rows[label] = pipeline(8, seeded(8), count, output_type="pt").images * 2 - 1
    counting.remove()
    calls[label] = len(asked)
for label, (scheduler, _) in schedulers.items():
    away = float((rows[label] - rows["DDIM, 50"]).abs().mean())
    print(
        f"{label:<10} {type(scheduler).__name__:<28} {calls[label]:>3} network calls   mean distance from DDIM, 50: {away:.3f}"
    )
plots.image_grid(
    torch.cat(list(rows.values())),
    columns=8,
    row_labels=list(rows),
    alt="One row of eight digits per scheduler; the answer below compares the rows.",
    caption="One network, one x_T, several schedulers (class and steps at the left).",
)

# %% [markdown] id=swap-answer
# <details><summary>Answer</summary>
#
# All but DDPM: the rows of the deterministic samplers show the same digits with small differences, the row of DDPM others. They solve the same ODE from the same starting point, each with its own error, so they head for the same digit (lesson 09). DDPM adds fresh noise on the way and ends somewhere else. Heun asks the network nearly twice per step, and gains nothing by it here: in ten steps of this spacing its images stay a little grainy. The
# count of *calls* is the honest price.
#
# </details>

# %% [markdown] id=clinic
# ## Bug clinic
#
# Five loops: the first is right, the other four have one bug each, and none raises an error. They are hidden: look at the log, the curves and the samples, not at the code. The network, the first noise and the number of steps, 20, are the same in all of them.
#
# > **Before you unfold the answers:** one samples with another noise schedule, one takes the position of a step for its timestep, one goes on with the wrong output of `step`, and one takes the network's prediction for something else. Which is which?
#
# The log and the curves come from a witness: it stands in the network's place, and notes what it was asked. The network was trained on $x_t$ whose standard deviation at $t$ is known; the dashed line shows it.


# %% id=clinic-runs
from ddpm_from_scratch.course.exercises.l10 import BROKEN


class Witness:
    """The network, and a note of every timestep and of the standard deviation of x that it was asked about."""

    def __init__(self, network):
        self.network, self.asked, self.spread = network, [], []

    def __call__(self, x, t):
        self.asked.append(int(t))
        self.spread.append(float(x.std()))
        return self.network(x, t)


def right(unet, config, x, steps):
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return x


first_noise = torch.randn((8, 1, 16, 16), generator=seeded(9))
witnesses, samples = {}, {}
for name, loop in {"right": right, **BROKEN}.items():
    witnesses[name] = Witness(unet)
    with torch.no_grad():
        samples[name] = loop(witnesses[name], config, first_noise, 20)
    made, asked = samples[name], witnesses[name].asked
    print(
        f"{name:<6} {len(asked)} calls, t = {asked[0]}, {asked[1]}, ..., {asked[-1]:<4} mean {made.mean():+.2f}   spread {made.std():.2f}   at the edge of the range {(made.abs() > 0.99).float().mean():.0%}"
    )
levels = DDIMScheduler.from_config(config).alphas_cumprod[witnesses["right"].asked]
pixels = load_dataset("digits").resized(16).images()
with plots.figure(
    7,
    3.2,
    alt="Five curves and a thin dashed one over the number of the call. The right loop stays a little "
    "below the dashed one. C lies on the right loop but for its last call, where it jumps up. B sinks "
    "faster, A and D fall at once.",
    caption="How widely spread the x was that the network was asked about; thin and dashed, in training "
    "at the right loop's t. Compare with the right loop.",
) as ax:
    trained_on = (levels * pixels.std() ** 2 + 1 - levels) ** 0.5
    plots.draw_curves(
        ax,
        torch.arange(1, 21),
        {name: torch.tensor(one.spread) for name, one in witnesses.items()},
        "call",
        "standard deviation of x",
    )
    ax.plot(range(1, 21), trained_on, color=plots.INK, linewidth=1, linestyle="--")
    ax.set(xticks=(1, 5, 10, 15, 20))
plots.image_grid(
    torch.cat(list(samples.values())),
    columns=8,
    row_labels=list(samples),
    alt="Five rows of eight images. The first shows digits. A shows soft shapeless blotches, B "
    "digits under noise, C black and white noise, D the same upright bar in every image.",
    caption="One right loop and four wrong ones, all from the same noise.",
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# - **A** walks through 19, 18, ..., 0 in place of `scheduler.timesteps`: it takes the position for the timestep, as the log says. From the first step on the network is told that there is hardly any noise. So it takes the noise for an image, and only smooths it.
# - **B** samples with another noise schedule than the one that the network was trained with. The timesteps are right, but at each of them the network gets another amount of noise than it expects. This is what a hand-written scheduler does; `from_config` keeps the schedule.
# - **C** says `prediction_type="sample"`: the scheduler takes the predicted noise for the predicted image, and so makes noise of the right size until the last call. A checkpoint without its scheduler's config invites this one.
# - **D** goes on with `pred_original_sample` in place of `prev_sample`: after one step the sample has no noise left, and its curve drops at once, but the network is still told that there is a lot. What it then takes for noise is what tells the digits apart: all images end as the same upright bar.
#
# </details>
#
# Now the code. In each, one expression is wrong. **Fix them**: copy one into a cell, mend it, and compare its samples with the first row.

# %% id=clinic-code
for name, loop in BROKEN.items():
    print(f"# {name}\n{inspect.getsource(loop)}")

# %% [markdown] id=disk
# ## What is on the disk
#
# Save a pipeline, and look:

# %% id=tree
digits.save_pretrained(folder / "my_pipeline")
for path in sorted((folder / "my_pipeline").rglob("*")):
    if path.is_file():
        print(
            f"{path.relative_to(folder / 'my_pipeline')!s:<55}{path.stat().st_size:>10,} bytes"
        )
print((folder / "my_pipeline" / "model_index.json").read_text())

# %% [markdown] id=formats
# The early `google/ddpm-*` repositories have all files at the top and their weights as `.bin`. Both libraries still open them. The two formats of weights:
#
# - **`.bin`** is a Python *pickle*. A pickle is a program: loading one can run anything. So it is only opened with PyTorch's weights-only loader, which lets tensors and plain values through and refuses the rest.
# - **`.safetensors`** is a header in JSON (name, type, shape and place of each tensor) and then the bare numbers. There is nothing to run, and the shapes can be read before any memory is taken.

# %% id=save-both
for safe in (True, False):
    thin_model.save_pretrained(folder / "my_model", safe_serialization=safe)
for path in sorted((folder / "my_model").iterdir()):
    print(f"{path.name:<45}{path.stat().st_size:>12,} bytes")
one, other = (
    UNet2DModel.from_pretrained(folder / "my_model", use_safetensors=safe)
    for safe in (True, False)
)
same = all(
    torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
)
print(f"both hold the same numbers: {same}")
assert same

content = (folder / "my_model" / "diffusion_pytorch_model.safetensors").read_bytes()
length = int.from_bytes(content[:8], "little")
header = json.loads(content[8 : 8 + length])
print(f"a header of {length:,} bytes, its first entries:")
for name in sorted(header)[:3]:
    print(f"  {name}: {header[name]}")


# %% [markdown] id=harmful-text
# And a file that wants to do harm:


# %% id=harmful
class Harm:
    def __reduce__(self):
        return print, ("I could have deleted your files",)


torch.save({"conv_in.weight": Harm()}, folder / "my_model" / "diffusion_pytorch_model.bin")
try:
    UNet2DModel.from_pretrained(folder / "my_model", use_safetensors=False)
except ValueError as error:
    print(str(error).replace(str(folder), "..."))

# %% exercise 10.5
# Write and read the two files of a model by hand. (`save_file` and `load_file` are those of `safetensors.torch`.)

# %% [markdown] id=there
# ## Opened in Diffusers
#
# The folder `my_pipeline` was written by this package. Now Diffusers opens it, with its own network, its own schedulers and its own pipelines.
#
# > **Predict before you run.** Same weights, same seed, two independent implementations. How large will the largest difference of a pixel be, in $[0, 1]$: exactly 0, about $10^{-6}$, or visible?

# %% id=there-run
gaps = []
if diffusers:
    for name in ("DDPMPipeline", "DDIMPipeline"):
        theirs = getattr(diffusers, name).from_pretrained(folder / "my_pipeline")
        ours = {"DDPMPipeline": DDPMPipeline, "DDIMPipeline": DDIMPipeline}[
            name
        ].from_pretrained(folder / "my_pipeline")
        made = []
        for pipeline in (ours, theirs):
            pipeline.set_progress_bar_config(disable=True)
            made.append(
                torch.from_numpy(
                    pipeline(
                        4, generator=seeded(11), num_inference_steps=20, output_type="np"
                    ).images
                )
            )
        apart = float((made[0] - made[1]).abs().max())
        print(
            f"{name}: {type(theirs.unet).__module__.split('.')[0]} and this package, largest difference of a pixel {apart:.0e}"
        )
        gaps.append(apart)
    theirs.save_pretrained(folder / "from_diffusers")
    back = DDIMPipeline.from_pretrained(folder / "from_diffusers")
    kept = all(
        torch.equal(a, b)
        for a, b in zip(back.unet.parameters(), digits.unet.parameters(), strict=True)
    )
    print(f"and back again: the same weights, {kept}")
    images = torch.cat(made).permute(0, 3, 1, 2) * 2 - 1
else:
    ours = DDIMPipeline.from_pretrained(folder / "my_pipeline")
    ours.set_progress_bar_config(disable=True)
    images = ours(4, seeded(11), num_inference_steps=20, output_type="pt").images * 2 - 1
plots.image_grid(
    images,
    columns=4,
    row_labels=["here", "Diffusers"][: len(images) // 4],
    alt="Two rows of four digits, the upper one by this package, the lower one by Diffusers.",
    caption="The same folder and seed, sampled by this package and by Diffusers (DDIM, 20 steps).",
)

# %% [markdown] id=there-answer
# <details><summary>Answer</summary>
#
# Nearly 0, but not exactly, and the rows are alike to the eye: the same sums in another order round differently, and Diffusers keeps its tables in float32 where this package keeps them in float64. Nothing that a picture could show.
#
# </details>
#
# One difference is meant. With `"linspace"` spacing, and with `"trailing"` and a number of steps that does not divide $T$, Diffusers' DDIM steps from $t$ to $t - \lfloor T/n \rfloor$, which is then not always the next timestep of
# its own list. This package steps to the next timestep of the list, so every step starts where the one before ended.

# %% id=spacing
assert all(gap < 1e-3 for gap in gaps)  # the images of the two libraries above
scheduler = DDIMScheduler(timestep_spacing="linspace")
scheduler.set_timesteps(8)
table = scheduler.timesteps.tolist()
print(f"timesteps                       {table}")
print(
    f"here each one leads to          {[int(scheduler.previous_timestep(t)) for t in table]}"
)
print(f"by the rule t - T // n          {[t - len(scheduler) // 8 for t in table]}")
assert [int(scheduler.previous_timestep(t)) for t in table] == [*table[1:], -1]

# %% [markdown] id=sharing
# To share a model, `digits.push_to_hub("your-name/digits")` makes a repository with these files and a model card. It needs an account and `hf auth login`; nothing in this course does it for you.

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **A scheduler written by hand.** One value that differs from the training's, and images get worse, with no error (bug B: another `beta_schedule`). Use `from_config`.
# - **Weights without their scheduler's config.** Then `prediction_type` is a guess (bug C). Save the whole pipeline.
# - **The wrong mode or precision.** `from_pretrained` gives evaluation mode and float32, whatever the file holds. For half precision say `dtype=torch.float16`.
# - **A seed is not an image.** It is the start of a sequence of numbers. Another batch size, another device or another way to draw uses the sequence otherwise. One generator per image, made on the CPU, is the most robust.
# - **Trusting a download.** Prefer `.safetensors`. If there is only a `.bin`, load it with a loader that refuses programs, as here.
# - **The scheduler has a state.** `set_timesteps` changes it. Do not share one scheduler object between two loops that run at the same time.

# %% [markdown] id=summary
# ## Summary
#
# - Model, scheduler, pipeline: a network, a step, and the loop between them. The loop is three lines and the same for every scheduler (some of Diffusers' take no `generator`; a pipeline leaves it out there).
# - A scheduler may be exchanged if the new one keeps the training's schedule and target; `from_config` carries over what was chosen, so all that a saved file says.
# - A model is two files, a config and weights; a pipeline is a folder of such parts and an index. Safetensors hold no programs.
# - A folder saved here opens in Diffusers and the other way round, with the same images up to rounding.
#
# Your functions are what `ddpm_from_scratch.pipelines` and `ddpm_from_scratch.hub` do. **Next:** lesson 11 asks how good the images are.

# %% id=progress
progress("10")

# %% [markdown] id=reading
# ## Sources and further reading
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: algorithm 2, the loop; appendix B, the network.
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: eq. 12 and section 4.3, why the deterministic samplers agree.
# - The documentation of Hugging Face Diffusers: the pages on loading pipelines, and on models and schedulers. With this lesson you have run what they show.
