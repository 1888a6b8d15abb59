# %% [markdown] id=title
# # 06 · Training
#
# **How does a network learn, and how do I see that it does?** About 60 minutes: half of it reading, half of it six exercises.
#
# Lesson 03 found the loss and lesson 05 built the network. What is left is a loop of five lines, and around it the things that decide whether those
# five lines work: how far the first steps go, which weights are kept in the end, what can be repeated, and what the loss says. A network that learns
# nothing and a network that learns well can show you the same curve. At the end of this lesson you can tell them apart.
#
# **You will build** the module `ddpm_from_scratch.training`: the loss, one step of algorithm 1, the learning rate, the averaged weights.
#
# **Afterwards you can**
#
# - write algorithm 1 of the DDPM paper, and say why one random draw per image is enough;
# - explain what warm-up, clipping and averaged weights are for, each with a number you computed;
# - stop a run and go on with it so that not a single bit differs;
# - take a loss apart by $t$, and say how low it could be;
# - find a bug in a training run from its curve and its samples.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson. Those of lessons 01 to 03 ($x_t$, $\bar\alpha_t$, $\varepsilon$, $\varepsilon_\theta$, $L_{\text{simple}}$) are used as they were.
#
# {{notation 06}}
#
# In code, `t` counts from 0. A *step* is one change of the weights; a *timestep* is $t$.

# %% id=setup
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_from_scratch import gaussian, shipped_model, training
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.models import UNet2DModel, small_unet
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

setup("06")
torch.set_num_threads(1)  # the tensors here are small: a second thread would only wait

scheduler = DDPMScheduler()  # T = 1000, the linear schedule; lesson 07 builds it
alpha_bar = scheduler.alphas_cumprod
T = len(scheduler)

# %% [markdown] id=data
# ## The data
#
# Handwritten digits, 16×16 pixels with values in $[-1, 1]$. A network that must learn in the seconds that this lesson gives it gets only three of the
# ten: 0, 1 and 4. Images that it never sees are kept apart, to measure with.


# %% id=data-load
def only(data, labels):
    kept = torch.isin(data.labels, torch.tensor(labels))
    return ImageDataset(data.pixels[kept], data.labels[kept], data.classes, "0, 1 and 4")


train_set = only(load_dataset("digits", image_size=16), [0, 1, 4])
held_out = only(load_dataset("digits", split="test", image_size=16), [0, 1, 4])
images = train_set.images()  # shape (N, 1, 16, 16)
print(f"{len(train_set)} images to learn from, {len(held_out)} held out")
print(f"pixels from {images.min():.0f} to {images.max():.0f}, mean {images.mean():.2f}")
plots.image_grid(
    images[:16],
    columns=8,
    width=6.5,
    alt="Two rows of blurred white handwritten digits on black: zeros, ones and fours.",
    caption="What the network is to learn. The digits were written on 8×8 pixels and are enlarged, hence the blur.",
)

# %% [markdown] id=algorithm
# ## Algorithm 1
#
# The loss of lesson 03 (Ho eq. 14) is an average over everything that can happen in the forward process:
#
# $$L_{\text{simple}}(\theta) = \mathbb E_{t, x_0, \varepsilon}\left[\lVert \varepsilon - \varepsilon_\theta(\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon,\ t)\rVert^2\right]$$
#
# No one can compute it: there are $N$ images, $T$ timesteps, and infinitely many $\varepsilon$. But we need only its gradient, and that may be *estimated*. A derivative and an
# average may be exchanged:
#
# $$\nabla_\theta\, \mathbb E[\ell_\theta(t, x_0, \varepsilon)] = \mathbb E[\nabla_\theta\, \ell_\theta(t, x_0, \varepsilon)]$$
#
# So the gradient at one draw of $(t, x_0, \varepsilon)$ is right *on average*, and the mean over a batch of $B$ independent draws is right on average with a variance $B$ times smaller.
# This is why each image gets a $t$ of its own: $B$ draws of $t$ for the price of one.
#
# How wrong is a single estimate? Take a case that can be solved: data $x_0 \sim \mathcal N(0, 1)$, and a network with one weight, $\varepsilon_\theta(x_t, t) = a\,x_t$. Then
# $\mathbb E[x_t^2] = 1$ and $\mathbb E[\varepsilon\,x_t] = \sqrt{1-\bar\alpha_t}$, so that
#
# $$L(a) = \frac1T \sum_t \mathbb E\big[(\varepsilon - a\,x_t)^2\big] = 1 - 2 a\, m + a^2, \qquad \frac{dL}{da} = 2\,(a - m), \qquad m = \frac1T \sum_t \sqrt{1-\bar\alpha_t} .$$
#
# > **Predict before you run.** At $a = 0.5$: how far from $dL/da$ is the estimate of a batch of one image, of 16, of 256? More or less than $dL/da$ itself?

# %% id=estimates
a = 0.5
exact = 2 * (a - float((1 - alpha_bar).sqrt().mean()))
generator = torch.Generator().manual_seed(0)
estimates = {}
for B in (1, 16, 256):
    n = 4000  # batches
    t = torch.randint(T, (n, B), generator=generator)
    x0, eps = (
        torch.randn(n, B, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    x_t = gaussian.q_sample(x0, eps, alpha_bar[t])
    estimates[B] = (-2 * x_t * (eps - a * x_t)).mean(dim=1)  # d/da of the squared error
    spread, mean = float(estimates[B].std()), float(estimates[B].mean())
    off = (mean - exact) / (spread / math.sqrt(n))
    print(
        f"batch of {B:>3}: mean of {n} estimates {mean:+.3f} ({off:+.1f} standard errors from the exact {exact:+.3f}), "
        f"spread {spread:.3f}, spread·√B {spread * B**0.5:.2f}"
    )
    assert abs(off) < 4
with plots.figure(
    width=7,
    height=2.8,
    alt="Three histograms of gradient estimates around the same dashed line at the exact gradient. The batch of one is spread "
    "from far below to above zero, that of 16 is narrower, that of 256 is a narrow peak at the line.",
    caption="The estimated gradient for three batch sizes. All are right on average (dashed line); "
    "sixteen times as many images make it four times as precise.",
) as ax:
    for (B, values), colour in zip(estimates.items(), plots.COLOURS, strict=False):
        ax.hist(
            values.numpy(),
            bins=80,
            range=(-4, 2),
            density=True,
            histtype="stepfilled",
            alpha=0.6,
            color=colour,
            label=f"batch of {B}",
        )
    ax.axvline(exact, color=plots.INK, linestyle="--", linewidth=1.5)
    ax.set(xlabel="estimate of dL/da", yticks=[], ylim=(0, 4))
    ax.legend()

# %% [markdown] id=estimates-answer
# <details><summary>Answer</summary>
#
# One image is wrong by much more than the gradient itself, and sometimes points the wrong way. With 16 the error is a quarter of that. This is how networks are trained all the same: the
# errors of many small steps average out, the direction does not.
#
# </details>
#
# That is all of **algorithm 1** (Ho algorithm 1), line by line as in the paper and in code:
#
# | the paper | here |
# |---|---|
# | repeat | `for step in range(steps):` |
# | $x_0 \sim q(x_0)$ | a batch of images |
# | $t \sim \text{Uniform}(\{1, \dots, T\})$ | `t = torch.randint(T, (B,))`, one for each image, from 0 in code |
# | $\varepsilon \sim \mathcal N(0, I)$ | `noise = torch.randn(x0.shape)` |
# | take a gradient step on $\nabla_\theta\lVert \varepsilon - \varepsilon_\theta(\dots)\rVert^2$ | the next two exercises |
# | until converged | nobody does that: until the time is over |

# %% exercise 06.1
# Write the loss of a batch. The paper's norm is a sum over pixels; everybody takes the mean over pixels too, so that the loss does not depend on the size of the image. This is what
# `training.diffusion_loss` becomes.

# %% [markdown] id=one-means-nothing
# Two values are worth knowing by heart. A network that answers 0 has loss $\mathbb E[\varepsilon^2] = 1$: **a loss of 1 is knowing nothing**. And a network that answers $x_t$
# has $\mathbb E[(\varepsilon - x_t)^2]$, which is small wherever $x_t$ is nearly all noise: much of the loss can be had for nothing.


# %% id=know-nothing
class Answer:
    """What a network's call returns."""

    def __init__(self, sample):
        self.sample = sample


generator = torch.Generator().manual_seed(1)
many = images.repeat(4, 1, 1, 1)
noise = torch.randn(many.shape, generator=generator)
t = torch.randint(T, (len(many),), generator=generator)
rules = {"0": lambda x, t: Answer(0 * x), "x_t": lambda x, t: Answer(x)}
for name, network in rules.items():
    loss = training.diffusion_loss(network, scheduler, many, noise, t)
    print(f"a network that answers {name:<3} has loss {loss:.3f}")
    assert name != "0" or abs(loss - 1) < 0.02

# %% [markdown] id=step
# ## One step
#
# From the loss to moved weights it takes four calls, and their order matters. PyTorch *adds* each new gradient to the one that is there, so the old one must go first. Then `backward()`. Then the gradient's
# length is limited (why: next section). Then the optimiser uses it.

# %% exercise 06.2
# Write one step of algorithm 1. When it is right, the picture shows 200 steps of your function on a very small network.

# %% [markdown] id=warmup
# ## The first steps: warm-up
#
# The optimiser here is Adam (in its form AdamW). It keeps two running means for each weight: $m$ of the gradient $g$, and $v$ of its square, and moves the weight by $-\mathrm{lr}\, \hat m / (\sqrt{\hat v} + 10^{-8})$, where $\mathrm{lr}$ is the learning rate.
# At the very first step the means consist of one gradient, and the correction for their start makes $\hat m = g$ and $\hat v = g^2$. So the step is
#
# $$-\mathrm{lr}\,\frac{g}{\sqrt{g^2}} = \pm\mathrm{lr} .$$
#
# > **Predict before you run.** Three weights have the gradients 0.001, 1 and -1000. How far does Adam move each of them in its first step, with $\mathrm{lr} = 0.002$?

# %% id=adam-first
rate = 0.002
weights = nn.Parameter(torch.zeros(3, dtype=torch.float64))
optimiser = torch.optim.AdamW([weights], lr=rate, weight_decay=0.0)
weights.grad = torch.tensor([0.001, 1.0, -1000.0], dtype=torch.float64)
optimiser.step()
for gradient, moved in zip(weights.grad.tolist(), weights.tolist(), strict=True):
    print(f"gradient {gradient:>9}: moved by {moved:+.6f}")
assert torch.allclose(weights.detach().abs(), torch.tensor(rate).double(), rtol=1e-4)


def adam_path(scale, steps=50):
    """The way of one weight whose gradients are `scale` times the same random numbers."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.AdamW([w], lr=rate, weight_decay=0.0)
    draws = torch.randn(steps, generator=torch.Generator().manual_seed(2))
    path = []
    for g in draws.tolist():
        w.grad = torch.tensor([scale * g], dtype=torch.float64)
        adam.step()
        path.append(float(w.detach()))
    return torch.tensor(path)


apart = (adam_path(1.0) - adam_path(0.1)).abs().max()
print(f"50 steps with gradients ten times smaller: the way differs by at most {apart:.0e}")
assert apart < 1e-6

# %% [markdown] id=adam-answer
# <details><summary>Answer</summary>
#
# All by the same 0.002, whatever the gradient: Adam knows only signs at first. Of a batch that is mostly luck (the histogram above), every one of the weights takes a full step.
#
# </details>
#
# Two consequences:
#
# - **Warm-up.** The first steps are the least well-founded and as long as any. So the rate starts small and rises over the first steps, while $\hat m$ and $\hat v$ gather evidence.
# - **Clipping.** Adam does not care about the length of *all* gradients (the last line above). It does care about one that stands out: it enters $m$ at once with a tenth of its size, but $v$ only with a
#   thousandth of its square. Clipping, $g \leftarrow g \cdot \min(1, c/\lVert g\rVert)$, leaves usual gradients alone and shortens the unusual ones, without turning them.
#
# Towards the end of a run the rate is often lowered again: long steps near the goal only jump over it.

# %% exercise 06.3
# Write the learning rate of each step: a linear rise times a cosine that falls to 0. This is what `TrainingConfig.learning_rate_at` becomes.

# %% id=rate-check
from ddpm_from_scratch.course.exercises.l06 import learning_rate as rate_at

example = training.TrainingConfig(steps=1000, warmup_steps=100, learning_rate=1e-3)
largest = max(
    abs(rate_at(s, 1e-3, 100, 1000) - example.learning_rate_at(s)) for s in range(1000)
)
print(f"the package's rate at 1000 steps: the same to {largest:.0e}")
assert largest < 1e-15

# %% [markdown] id=average
# ## The average of the weights
#
# With a constant rate the weights never settle. Each batch pulls them to a place of its own, and they hover around the best place. Make that exact: one weight $w$, whose loss is
# $\frac12(w - w^*)^2$, and a gradient with noise of variance $s^2$. Then
#
# $$w_{n+1} = w_n - \mathrm{lr}\,(w_n - w^* + \text{noise}) \quad\Rightarrow\quad w_{n+1} - w^* = \rho\,(w_n - w^*) - \mathrm{lr}\cdot\text{noise}, \qquad \rho = 1-\mathrm{lr} .$$
#
# In the long run the variance $V$ of $w$ no longer changes: $V = \rho^2 V + \mathrm{lr}^2 s^2$, so $V = \mathrm{lr}^2 s^2 / (1-\rho^2)$.
#
# The **exponential moving average** (EMA) keeps a second set of weights, $\bar w_n = d\,\bar w_{n-1} + (1-d)\, w_n$. Unrolled, $\bar w_n = (1-d) \sum_{k\ge0} d^k\, w_{n-k}$. Weights that are $\ell$ steps
# apart have covariance $\rho^\ell V$, so
#
# $$\operatorname{Var} \bar w = (1-d)^2\, V \sum_{j,k} d^{\,j+k} \rho^{|j-k|} = (1-d)^2\, V\, \frac{1}{1-d^2}\Big(1 + 2\sum_{\ell\ge1} (d\rho)^\ell\Big) = \frac{1-d}{1+d}\;\frac{1+d\rho}{1-d\rho}\;V .$$
#
# (For the second step sort the pairs by their distance $\ell$: the sum over the smaller index gives $1/(1-d^2)$ for each $\ell$, and each $\ell \ge 1$ occurs twice. The last step is a geometric series.)
#
# > **Predict before you run.** $\mathrm{lr} = 0.1$, $d = 0.99$. How much smaller is the average's distance from $w^*$ than the weight's own: 2 times, 3 times, 10 times?

# %% id=hover
gamma, decays, chains = 0.1, (0.9, 0.99), 4000
rho = 1 - gamma
generator = torch.Generator().manual_seed(3)
V = gamma**2 / (1 - rho**2)
w = torch.randn(chains, generator=generator, dtype=torch.float64) * V**0.5
means = {d: torch.zeros(chains, dtype=torch.float64) for d in decays}
path = {"the weight": []} | {f"average, d = {d}": [] for d in decays}
for _ in range(1500):
    w = w - gamma * (w + torch.randn(chains, generator=generator, dtype=torch.float64))
    path["the weight"].append(float(w[0]))
    for d in decays:
        means[d] = d * means[d] + (1 - d) * w
        path[f"average, d = {d}"].append(float(means[d][0]))
print(f"variance of the weight:        measured {w.var():.5f}, formula {V:.5f}")
for d, mean in means.items():
    formula = (1 - d) / (1 + d) * (1 + d * rho) / (1 - d * rho) * V
    print(
        f"variance of the average, d = {d}: measured {mean.var():.5f}, formula {formula:.5f}; distance {(V / formula) ** 0.5:.1f} times smaller"
    )
    assert abs(float(mean.var()) / formula - 1) < 5 * (2 / chains) ** 0.5
with plots.figure(
    width=7,
    height=2.7,
    alt="Three curves over the last 400 steps. The weight jumps around zero, the average with decay 0.9 follows it smoothed, the "
    "average with decay 0.99 stays close to zero.",
    caption="One weight that hovers around its best value, 0, and two averages of it.",
) as ax:
    late = torch.arange(1100, 1500)
    for label, values in path.items():
        ax.plot(
            late,
            values[1100:],
            label=label,
            linewidth=1 if label == "the weight" else 2.2,
        )
    ax.set(xlabel="training step", ylabel="distance from the best", ylim=(-0.95, 0.75))
    ax.legend(loc="lower left", ncols=3)

# %% [markdown] id=hover-answer
# <details><summary>Answer</summary>
#
# About 3 times. The average looks back over some $1/(1-d) = 100$ steps, but neighbouring weights resemble each other, so these are not 100 independent ones.
#
# </details>
#
# ### How far back it looks, and how it starts
#
# The last $H$ weights have the share $1 - d^H$ of the average. For $H = 1/(1-d)$ that is close to $1 - 1/e$, two thirds: $1/(1-d)$ is the average's **horizon** in steps. A longer horizon is calmer and later.
#
# At the start there is nothing to average. $\bar w_0 = w_0$ is the random initialisation, and after $n$ updates it still has the share $d^n$. So early on the average keeps less,
# $d_n = \min\big(d, \frac{1+n}{10+n}\big)$. The share of $w_0$ is then the product of these, $\prod_{k=1}^{n} \frac{1+k}{10+k} = \frac{10!}{(n+2)(n+3)\cdots(n+10)}$ as long as the limit $d$ is not reached:

# %% id=start-share
d = 0.9995
print(f"decay {d}: horizon {1 / (1 - d):.0f} steps, holding {1 - d ** (1 / (1 - d)):.0%}")
share_plain, share_early = torch.ones(5001), torch.ones(5001, dtype=torch.float64)
for n in range(1, 5001):
    share_plain[n] = d**n
    share_early[n] = share_early[n - 1] * min(d, (1 + n) / (10 + n))
for n in (10, 100, 1000, 5000):
    closed = math.factorial(10) / math.prod(n + k for k in range(2, 11))
    print(
        f"after {n:>4} updates the random start has the share {share_plain[n]:.1%}, with the early rule {share_early[n]:.0e}"
    )
    assert math.isclose(float(share_early[n]), closed, rel_tol=1e-9)

# %% exercise 06.4
# Write one update of the average of one weight tensor, with the early rule. This is what `EMA.update` becomes, for all tensors of a network at once.

# %% [markdown] id=lending
# ### Lending the average
#
# Training goes on with the network's own weights. The average is needed now and then, for a look at the samples, and at the end. So it is *lent* to the network, and afterwards the network gets its own weights
# back, whatever happened in between: half-averaged weights after an interrupted look would spoil the run. In Python, "afterwards, whatever happens" is a context manager.


# %% id=write-weights
@torch.no_grad()
def write_weights(model: nn.Module, values: list[Tensor]) -> None:
    """Copy `values` into the network's weights, in the order of model.parameters()."""
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)


# %% exercise 06.5
# Write the context manager. `write_weights` above copies a list of tensors into a network. This is what `EMA.averaged` becomes.

# %% id=ema-check
# the package's EMA beside the finished function of exercise 06.4
from ddpm_from_scratch.course.exercises.l06 import ema_update as updated

layer = nn.Linear(3, 2)
average, by_hand = training.EMA(layer, decay=0.9), layer.weight.detach().clone()
for n in range(1, 121):
    moved = torch.randn(2, 3, generator=torch.Generator().manual_seed(n))
    write_weights(layer, [moved, moved[:, 0]])
    average.update()
    by_hand = updated(by_hand, moved, 0.9, n)
with average.averaged() as lent:
    apart = (lent.weight - by_hand).abs().max()
print(f"after 120 updates: EMA against exercise 06.4 {float(apart.detach()):.0e}")
print(f"given back afterwards: {torch.equal(layer.weight, moved)}")
assert apart < 1e-5 and torch.equal(layer.weight, moved)

# %% [markdown] id=repeat
# ## Randomness that can be repeated
#
# A run that stops after hours must be able to go on. Weights, optimiser and average can be saved. And the random numbers? If they came from one long stream, one would have to save its state too, and two processes could not share a batch.
# In `ddpm_from_scratch.training` they do not come from a stream: **what is drawn is a function of (seed, step, position in the batch)**, and of nothing else. Then nothing has to be saved.

# %% id=draws
whole = training.draw(seed=0, step=41, positions=range(8), shape=(1, 16, 16), T=T)
parts = [
    training.draw(0, 41, positions, (1, 16, 16), T) for positions in (range(3), range(3, 8))
]
noise = torch.cat([part.noise for part in parts])
print(f"t of step 41: {whole.t.tolist()}")
print(f"the same in two parts: {torch.cat([part.t for part in parts]).tolist()}")
assert torch.equal(whole.noise, noise)
assert not torch.equal(whole.noise, training.draw(0, 42, range(8), (1, 16, 16), T).noise)

# %% [markdown] id=loop
# Now everything is there. The whole loop with the package's parts fits on half a screen; `training.train` is this loop, with checkpoints, callbacks and several devices. It gives the same weights to the last bit,
# also if it is stopped in the middle and continued:


# %% id=loop-run
def new_network(widths=(16, 32, 48)) -> UNet2DModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return small_unet((1, 16, 16), widths=widths)


def algorithm_1(network, data, config):
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.0, fused=True)
    average = training.EMA(network, config.ema_decay)
    batches = training.GlobalBatches(len(data), config, 0, range(config.batch_size))
    for step, indices in enumerate(batches):
        x0 = data.images(indices)
        random = training.draw(config.seed, step, range(len(x0)), x0.shape[1:], T)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate_at(step)
        loss = training.diffusion_loss(network, scheduler, x0, random.noise, random.t)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        optimiser.step()
        average.update()
    average.write_to_model()


def same_bits(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stop_at_3(progress):
    if progress.step == 3:
        raise training.StopTraining


short = training.TrainingConfig(steps=6, batch_size=4, warmup_steps=2, mixed_precision="no")
small = (16, 32)
by_hand, by_package, resumed = (new_network(small) for _ in range(3))
algorithm_1(by_hand, train_set, short)
training.train(by_package, scheduler, train_set, short)
with tempfile.TemporaryDirectory() as kept:
    done = training.train(resumed, scheduler, train_set, short, kept, [stop_at_3])
    print(f"stopped after {done} of {short.steps} steps")
    resumed = new_network(small)  # as after a crash: everything comes from the checkpoint
    done = training.train(resumed, scheduler, train_set, short, kept, resume=True)
    print(f"went on to {done}")
print(f"train() is algorithm 1, to the bit: {same_bits(by_hand, by_package)}")
print(f"stopped and continued, to the bit:  {same_bits(by_package, resumed)}")
assert same_bits(by_hand, by_package) and same_bits(by_package, resumed)

# %% [markdown] id=run
# ## A run
#
# Now in earnest, as far as a few hundred steps go: a small U-Net, a constant rate so that the run can go on as long as you like, and a `Recorder` that keeps the loss of every step and, now and then, with the averaged weights, the loss by $t$ on the
# held-out images and eight samples, always from the same noise. (The samples are made in ten steps by the sampler of lesson 08.)
#
# You may interrupt the cell (■ in the toolbar, or `I` twice in command mode): it ends after the step, with a checkpoint. Run the cell again, and it goes on from there.

# %% id=run-prepare
network = new_network()
config = training.TrainingConfig(
    steps=250,
    batch_size=16,
    learning_rate=4e-3,
    learning_rate_decay="constant",
    warmup_steps=30,
    ema_decay=0.98,
    mixed_precision="no",
)
recorder = widgets.Recorder(held_out.images(), every=50, sampling_steps=10)
norms = {}
kept = tempfile.TemporaryDirectory()
folder = Path(kept.name)
print(
    f"{network.num_parameters():,} weights, {config.steps} steps of {config.batch_size} images"
)


def report(progress):
    norms[progress.step] = progress.gradient_norm
    if progress.step in recorder.by_t:
        smooth, by_t = recorder.smoothed()[1][-1], recorder.by_t[progress.step].mean()
        print(
            f"step {progress.step:>3}: training loss, smoothed {smooth:.3f}; held-out images, averaged weights {by_t:.3f}"
        )


# %% [markdown] id=run-predict
# > **Predict before you run.** After a fifth of the run, how much of the whole fall of the loss is over? And what do the samples look like then?

# %% id=run-train
done = training.train(
    network, scheduler, train_set, config, folder, [recorder, report], resume=True
)
print(f"{done} of {config.steps} steps done")

# %% [markdown] id=monitor
# The monitor below shows the record of this run. In JupyterLab, move the slider to look back at any measurement, press **Start** and watch the training go on in the background (a copy of it: this lesson's network stays as it is), press **Stop** whenever you
# like; both buttons and the slider work by keyboard too.

# %% id=monitor-widget
longer = replace(config, steps=1000)
widgets.training_monitor(network, scheduler, train_set, longer, recorder, folder)

# %% id=fall
steps_measured = list(recorder.samples)
losses = {step: float(by_t.mean()) for step, by_t in recorder.by_t.items()}
first, last = steps_measured[0], steps_measured[-1]
print(
    f"of the whole fall, from 1 to {losses[last]:.3f}, {(1 - losses[first]) / (1 - losses[last]):.0%} was over at step {first}"
)
assert (1 - losses[first]) / (1 - losses[last]) > 0.75

# %% [markdown] id=run-answer
# <details><summary>Answer</summary>
#
# Nearly all of it, and the samples of that moment are clouds. What is left of the fall is small on an ordinary axis and plain on a logarithmic one, and it is there that the clouds become shapes. So the curve alone is not the thing to look at: on an ordinary axis it seems to be over when
# most of the work is still ahead.
#
# </details>

# %% [markdown] id=by-t
# ## The loss by t
#
# Why does the curve hide so much? Because it is a mean over $t$ of very different numbers. Take it apart.

# %% exercise 06.6
# Write the loss by $t$. `Recorder` measures it with the same ranges; here the draws of $t$ are random, as in training.

# %% [markdown] id=bounds
# ### How low could it be?
#
# Lesson 03 knew the perfect answer $\varepsilon^*$. For images nobody knows it. But two answers can be computed and stand as yardsticks beside a network: one that knows the mean and covariance of the data and nothing else, which a good network should pass, and one that knows the training images by heart, which none should reach on new images.
#
# **The best answer that sees only mean and covariance.** If the pixels were one Gaussian with mean $\mu$ and covariance $C$, then along each eigenvector of $C$, with eigenvalue $\lambda_i$, everything is a single number: $x_t$ has the variance
# $\bar\alpha_t\lambda_i + 1 - \bar\alpha_t$ and its covariance with $\varepsilon$ is $\sqrt{1-\bar\alpha_t}$. By refresher C of lesson 00, what remains of the variance 1 of $\varepsilon$ is
#
# $$1 - \frac{1-\bar\alpha_t}{\bar\alpha_t\lambda_i + 1-\bar\alpha_t} = \frac{\bar\alpha_t\lambda_i}{\bar\alpha_t\lambda_i + 1-\bar\alpha_t},$$
#
# and the loss is the mean of this over $i$. No network is needed for it, only $\mu$ and $C$ of the training images. Where a network lies above it, it has not even learnt what those two say.
#
# **The best answer on the training images.** If the data *are* the $N$ training images, each with probability $1/N$, lesson 03's mixture with all $s_k = 0$ gives $\varepsilon^*$ exactly: $\hat x_0$ is the mean of the training images, each weighted with its probability given $x_t$. It is the answer of a network that knows all of them by heart. This is the
# floor of the *training* loss. No one should want to reach it: its samples are the training images.

# %% id=bounds-compute
from ddpm_from_scratch.course.exercises.l03 import mixture_eps as exact_eps

pixels = images.flatten(1).double()  # shape (N, 256)
mean, covariance = pixels.mean(0), torch.cov(pixels.T, correction=0)
eigenvalues, vectors = torch.linalg.eigh(covariance)
eigenvalues = eigenvalues.clamp(min=0)


def gaussian_eps(x_t, level):
    gain = (1 - level) ** 0.5 / (level * eigenvalues + 1 - level)
    return ((x_t - level**0.5 * mean) @ vectors * gain) @ vectors.T


def gaussian_loss(level):
    return float((level * eigenvalues / (level * eigenvalues + 1 - level)).mean())


def lesson_3(x_t, level, points):
    n = len(points)
    parts = torch.full((n,), 1 / n).double(), points, torch.zeros(n).double()
    return exact_eps(x_t, level, *parts)


def by_heart(x_t, level):
    distance = torch.cdist(x_t, level**0.5 * pixels) ** 2
    share = torch.softmax(-distance / (2 * (1 - level)), dim=1)  # of each training image
    return gaussian.eps_from_x0(x_t, share @ pixels, level)


generator = torch.Generator().manual_seed(4)
times, floor = torch.arange(50, 1000, 100), []
for t in times.tolist():
    level = float(alpha_bar[t])
    x0 = pixels[torch.randint(len(pixels), (300,), generator=generator)]
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x_t = gaussian.q_sample(x0, eps, level)
    best = by_heart(x_t, level)
    assert torch.allclose(best[:2], lesson_3(x_t[:2], level, pixels), atol=1e-6)
    floor.append(float(((eps - best) ** 2).mean()))
    measured = ((eps - gaussian_eps(x_t, level)) ** 2).mean(1)
    off = float(
        (measured.mean() - gaussian_loss(level)) / (measured.std() / len(x0) ** 0.5)
    )
    assert abs(off) < 4.5, (t, off)
print(
    f"the formula against {len(x0)} draws at each of {len(times)} t: within 4.5 standard errors"
)

# the Gaussian answer on the images, t and noises by which the recorder measured the network
t = (recorder.share * T).long()
level = alpha_bar[t][:, None]
eps = recorder.noise.flatten(1).double()
x_t = gaussian.q_sample(recorder.x0.flatten(1).double(), eps, level)
straight = ((eps - gaussian_eps(x_t, level)) ** 2).mean(1).reshape(10, -1).mean(1)
rows = {f"network, step {step}": by_t for step, by_t in recorder.by_t.items()}
rows["mean and covariance"] = straight
print("held-out images:     mean    in the ten ranges of t")
for name, by_t in rows.items():
    values = " ".join(f"{v:.3f}" for v in by_t.tolist())
    print(f"{name:<20} {by_t.mean():.3f}   {values}")
with plots.figure(
    width=7.5,
    height=3.4,
    alt="Loss over t on a logarithmic axis, as stairs. The network's first measurement is flat from the middle on, near two hundredths. "
    "Its last one falls by more than a decade from small to large t. The Gaussian answer is close to it at small and middle t and far below it at large t. "
    "The dotted curve of knowing by heart lies far below for small t.",
    caption="The network at its first and last measurement (held-out images), between what needs no network and what should not be reached. "
    "On this axis one sees the progress that the mean hides.",
) as ax:
    for step, colour in ((first, plots.SKY), (last, plots.BLUE)):
        ax.stairs(
            recorder.by_t[step],
            torch.arange(0, 1001, 100),
            baseline=None,
            color=colour,
            linewidth=2.4,
            label=f"network, step {step}",
        )
    ax.stairs(
        straight,
        torch.arange(0, 1001, 100),
        baseline=None,
        color=plots.VERMILION,
        linestyle="--",
        linewidth=2.4,
        label="mean and covariance only",
    )
    ax.plot(
        times, floor, color=plots.FAINT, linestyle=":", label="training images by heart"
    )
    ax.set(yscale="log", ylim=(1e-4, 1.5), xlabel="timestep t", ylabel="loss")
    ax.legend()

# %% [markdown] id=by-t-read
# Read it from right to left. At large $t$ nearly all of $x_t$ is noise: every answer is good, and the mean is full of these small numbers. At the smallest $t$ the noise is hardly visible, every answer is poor, and this one range is a large part of the mean. Between
# the first and the last measurement the right end fell by a far larger factor than the left end, and the mean does not show it: look at *ratios*, not at differences.
#
# *By heart* is no competitor for held-out images: it is what the loss on the training images would approach in a run that goes on for ever.

# %% [markdown] id=yardstick
# ### A yardstick
#
# The Gaussian answer can be sampled from like a network, in the same steps from the same noise. Beside ours stands the model `digits` that comes with the course: trained by the same loop, on all ten digits, for minutes where ours had seconds.
#
# > **Predict before you run.** What will the samples of an answer look like that knows nothing but means and covariances of pixels?


# %% id=yardstick-samples
count = 8
start = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def ddim(predict, x, steps=20):
    """Images in [-1, 1] from noise x, by predict(x_t, t) → ε, in few steps (lesson 08)."""
    sampler = DDIMScheduler()
    sampler.set_timesteps(steps)
    for t in sampler.timesteps.tolist():
        x = sampler.step(predict(x, torch.full((len(x),), t)), t, x).prev_sample
    return x.clamp(-1, 1)


def gaussian_answer(x_t, t):
    eps = gaussian_eps(x_t.flatten(1).double(), alpha_bar[t][:, None])
    return eps.float().view_as(x_t)


@torch.no_grad()
def measured_loss(predict):
    """On the held-out images, t and noises of the recorder."""
    t = (recorder.share * T).long()
    x_t = scheduler.add_noise(recorder.x0, recorder.noise, t)
    return float(((recorder.noise - predict(x_t, t)) ** 2).mean())


shipped = UNet2DModel.from_pretrained(shipped_model("digits"), subfolder="unet").eval()
network.eval()
answers = {
    "mean and\ncovariance": gaussian_answer,
    "this run": lambda x, t: network(x, t).sample,
    "model digits": lambda x, t: shipped(x, t).sample,
}
for name, predict in answers.items():
    print(f"{' '.join(name.split()):<20} mean held-out loss {measured_loss(predict):.3f}")
plots.image_grid(
    torch.cat([ddim(predict, start) for predict in answers.values()]),
    columns=count,
    row_labels=list(answers),
    alt="Three rows of eight samples from the same noise. By mean and covariance: soft white shapes, some nearly a digit, some clouds. By this run: "
    "thick strokes, some of which form a zero, a one or a four. By the model digits: clean strokes that are digits.",
    caption="Three answers, sampled from the same noise. Only the last two were trained.",
)

# %% [markdown] id=yardstick-answer
# <details><summary>Answer</summary>
#
# Closer to digits than most people guess: these digits are centred and much alike, so pixels that belong to a stroke are correlated. But a Gaussian has no alternatives: between a zero and a one it knows everything in between, and where two digits disagree it draws a cloud.
#
# </details>
#
# This is the bar. So short a training comes near it, as the losses say, and no further; `digits` has passed it. Press Start in the monitor, and see when the loss by $t$ drops below the dashed line of the figure above. Without such a yardstick one would have taken "the loss fell by more than nine tenths" for success.

# %% [markdown] id=untold
# ## What the loss does not tell
#
# An experiment with `digits`. We damage its answers in two ways. Each adds the same constant error $c$ to every pixel of $\varepsilon_\theta$ in a range of 200 timesteps, so each adds
# the same amount to the loss, up to chance: $0.2\,c^2$.
#
# > **Predict before you run.** The error sits at $t < 200$ in one network and at $t \ge 800$ in the other. Which one still makes digits?


# %% id=damage
c = 0.2
ranges = {"undamaged": (0, 0), "error at t < 200": (0, 200), "error at t ≥ 800": (800, T)}


@torch.no_grad()
def damaged(x_t, t, between):
    inside = (t >= between[0]) & (t < between[1])
    return shipped(x_t, t).sample + c * inside.view(-1, 1, 1, 1)


x0 = load_dataset("digits", split="test", image_size=16).images(slice(200))
generator = torch.Generator().manual_seed(5)
eps = torch.randn(x0.shape, generator=generator)
t = torch.arange(200) * 5
x_t = scheduler.add_noise(x0, eps, t)
rows = []
for name, between in ranges.items():
    loss = float(((eps - damaged(x_t, t, between)) ** 2).mean())
    print(f"{name:<17} loss {loss:.4f}")
    rows.append(ddim(lambda x, t, r=between: damaged(x, t, r), start))
plots.image_grid(
    torch.cat(rows),
    columns=count,
    row_labels=list(ranges),
    alt="Three rows of eight samples. The first two rows show the same clean digits, a little fainter in the second. "
    "The third row shows white blots that fill the image.",
    caption="Two networks with the same loss (the second and the third row), sampled from the same noise.",
)

# %% [markdown] id=damage-answer
# <details><summary>Answer</summary>
#
# The one whose error sits at small $t$. There an error of $\varepsilon$ hardly moves $\hat x_0$; at large $t$ it is multiplied by $\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$ (lesson 03, the same error in three currencies), and it acts where the sampler decides what the picture will be.
#
# </details>
#
# So the mean loss compares two moments of the *same* run at best. Across schedules, weights over $t$ or things to predict it compares nothing. Look at samples, always from the same noise, and measure them (lesson 11).
#
# ### And the average?
#
# The checkpoint holds the network's own weights of the last step, `network` the averaged ones:

# %% id=raw-against-average
own = new_network()
own.load_state_dict(training.load_checkpoint(folder)["model"])
x0, generator = held_out.images(), torch.Generator().manual_seed(7)
x0 = x0.repeat(3, 1, 1, 1)
eps = torch.randn(x0.shape, generator=generator)
t = torch.arange(len(x0)) * T // len(x0)
rows = []
for name, one in {"own weights": own, "averaged": network}.items():
    with torch.no_grad():
        print(
            f"{name:<12} held-out loss {training.diffusion_loss(one.eval(), scheduler, x0, eps, t):.4f}"
        )
    rows.append(ddim(lambda x, t, one=one: one(x, t).sample, start))
biggest = sorted(norms.values())
print(
    f"gradient's length: median {biggest[len(biggest) // 2]:.2f}, largest {biggest[-1]:.2f}; beyond 1, so clipped: {sum(n > 1 for n in biggest)} of {len(biggest)} steps"
)
plots.image_grid(
    torch.cat(rows),
    columns=count,
    row_labels=["own", "EMA"],
    alt="Two rows of eight samples from the same noise, by the network's own weights and by the averaged ones.",
    caption="The same run, the same step, the same noise: above the weights as the last batches left them, below their average.",
)

# %% [markdown] id=average-answer
# The same steps, the same gradients, and a clearly smaller loss: what the average leaves out is the hovering. This run keeps its rate constant, so the weights never come to rest by themselves. A rate that falls to 0, as in exercise 06.3, brings
# them to rest too; then the average gains less.
#
# The last line printed is about clipping: it touched a few steps only.

# %% [markdown] id=overfit
# ## Eight images by heart
#
# Before a long run, a short test: **can the network learn eight images by heart?** A sound loop can, and this is the one case with a known end: the floor is lesson 03's $\varepsilon^*$ for eight points, and the samples must come close to the eight images: near is enough, since this is a test of seconds and the floor at small $t$ would take hours. If the samples stay far from all eight, there is a bug, and you have found it in seconds.
#
# The network here is `TinyNetwork`, three linear layers on 8×8 pixels: a few milliseconds a step.

# %% id=overfit-run
from ddpm_from_scratch.course.exercises.l06 import TinyNetwork

tiny_digits = only(load_dataset("digits"), [0, 1, 4]).images()  # shape (N, 1, 8, 8)
tiny_held_out = only(load_dataset("digits", split="test"), [0, 1, 4]).images()
eight = tiny_digits[:8]
torch.manual_seed(0)
tiny = TinyNetwork()
optimiser = torch.optim.AdamW(tiny.parameters(), fused=True)
example = training.TrainingConfig(steps=1500, learning_rate=3e-3, warmup_steps=50)
generator = torch.Generator().manual_seed(8)
for step in range(example.steps):
    x0 = eight[torch.randint(8, (64,), generator=generator)]
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(T, (64,), generator=generator)
    optimiser.param_groups[0]["lr"] = example.learning_rate_at(step)
    loss = training.diffusion_loss(tiny, scheduler, x0, noise, t)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

points = eight.flatten(1).double()
print("  t    network   by heart, exactly")
for t in (50, 150, 300, 500, 700, 900):
    level = float(alpha_bar[t])
    x0 = eight.repeat(50, 1, 1, 1)
    eps = torch.randn(x0.shape, generator=generator)
    x_t = gaussian.q_sample(x0, eps, level)
    best = lesson_3(x_t.flatten(1).double(), level, points)
    with torch.no_grad():
        said = tiny(x_t, torch.full((len(x0),), t)).sample
    print(
        f"{t:>3}    {((said - eps) ** 2).mean():.4f}    {((best - eps.flatten(1)) ** 2).mean():.4f}"
    )

tiny_start = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(9))
made = ddim(lambda x, t: tiny(x, t).sample, tiny_start, steps=50)
distance = (made.flatten(1)[:, None] - eight.flatten(1)).square().mean(-1)
print(
    f"each sample's mean squared distance from the nearest of the eight: {', '.join(f'{d:.3f}' for d in distance.min(1).values.tolist())}"
)
assert distance.min(1).values.median() < 0.05
plots.image_grid(
    torch.cat([eight, made]),
    columns=8,
    row_labels=["images", "samples"],
    alt="Two rows of eight small digits: the training images above, and samples below that each look like one of them.",
    caption="Above what was learnt by heart, below samples. Some of the eight come more than once: the noise chooses.",
)

# %% [markdown] id=clinic
# ## Bug clinic
#
# Five training runs of `TinyNetwork` on 0, 1 and 4: one sound, four with one bug each. They start from the same weights and draw the same numbers. No error message comes. The evidence: the log, the curves, the samples. (The code is in `course/broken_runs.py`; do not look.)
#
# The four bugs, in no order:
#
# 1. the noise is drawn once, before the loop, and used in every step;
# 2. $t$ is drawn once per step, for the whole batch;
# 3. the images are left in $[0, 1]$;
# 4. the prediction is compared with $x_t$.
#
# > **Before you unfold the answers:** which run has which bug? For each, which *one* piece of evidence convinced you?

# %% id=clinic-runs
from ddpm_from_scratch.course import broken_runs

runs = {
    name: broken_runs.run(name, tiny_digits, tiny_held_out) for name in broken_runs.RUNS
}
print(
    "        mean loss of the steps                   spread of the   loss on held-out   mean pixel"
)
print(
    "        1-100    101-200  301-400  501-600       last 200        images             of samples"
)
for name, one in runs.items():
    parts = one.losses.reshape(-1, 100).mean(1)
    print(
        f"{name:<6}  "
        + "    ".join(f"{float(parts[k]):.3f}" for k in (0, 1, 3, 5))
        + f"         {one.losses[-200:].std():.3f}           {one.held_out:.3f}              {one.samples.mean():+.2f}"
    )
print(f"mean pixel of the data {tiny_digits.mean():+.2f}")
with plots.figure(
    width=plots.WIDTH,
    height=2.6,
    columns=5,
    sharey=True,
    alt="Five loss curves on a logarithmic axis. Sound and B look alike. A is somewhat lower. C falls far below all others. D is scattered "
    "over four decades.",
    caption="The loss of every step.",
) as axes:
    for ax, (name, one) in zip(axes, runs.items(), strict=True):
        ax.plot(one.losses, ".", markersize=1.5)
        ax.set(
            title=name, yscale="log", ylim=(1e-4, 2), xlabel="step", xticks=(0, 300, 600)
        )
    axes[0].set_ylabel("loss")
plots.image_grid(
    torch.cat([one.samples for one in runs.values()]),
    columns=10,
    row_labels=list(runs),
    alt="Five rows of ten samples. Sound: crude digits on black. A: torn patches of black and white. B: pale digits on grey. C: noise. D: crude digits, like the sound run's.",
    caption="Ten samples of each run, from the same noise.",
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# - **A** has the noise drawn once. Its training loss lies *below* the sound run's, and its loss on held-out images above: the network has learnt that one batch of noise by heart. A training loss that is too good is a symptom.
#   Fix: `noise = torch.randn(...)` inside the loop.
# - **B** left the images in $[0, 1]$. Curve and log look healthy, even a little better: half the contrast, so there is less to confuse with noise. The samples give it away: black has become grey, and the mean pixel of the samples is far above
#   the data's. The held-out images, which are in $[-1, 1]$, are strange to it. Fix: `x0 = 2 * x0 - 1`, once, where the data are loaded.
# - **C** compares with $x_t$, its own input. The loss falls far below what is possible: in *the loss by t*, no honest answer gets near that. Samples: noise, since its "noise" is the whole image, and the sampler takes away what should stay.
#   Fix: compare with `noise`.
# - **D** has one $t$ per step. Mean and samples are nearly those of the sound run, but the curve jumps by more than a factor of ten from step to step, with the loss of whatever $t$ came up. The gradient is still right on average (section *Algorithm 1*), only with far more variance: this
#   bug costs time, not correctness, and hides for years. Fix: `t = torch.randint(T, (B,))`.
#
# </details>
#
# Now be the fixer: `broken_runs.RUNS` maps each name to a function from `(x0, noise, t, first_noise)` to what the network sees, its $t$, and what it is compared with. Change one in a cell of your own (`broken_runs.RUNS["A"] = ...`), run the cell above again, and see its row become the sound one.

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Nothing is learnt, loss stays at 1.** The step is missing, or the gradient was cleared before it, or the loss is cut off from the network. The test with eight images finds it.
# - **The loss is too good.** It has a floor (*the loss by t*). Below it, something leaks: the target into the input, or the same noise again and again.
# - **The loss turns into a number that is not finite.** The rate is too high, or the warm-up too short. `train` stops then, and keeps the last good checkpoint.
# - **Samples from the wrong weights.** Forgetting the average gives the samples of the last few batches' weights; an average with a horizon longer than the run gives those of the random start.
# - **Weights changed by a look at them.** Samples made during training must leave the network's mode, its weights and the random state as they were.
# - **Comparing losses of different runs** with another schedule, weight or target. They are different units.
# - **Stopping when the curve is flat.** See the run above.

# %% [markdown] id=summary
# ## Summary
#
# - Algorithm 1 estimates the gradient of $L_{\text{simple}}$ from one draw of $(t, \varepsilon)$ per image: right on average, and the batch makes it precise.
# - Warm-up, because Adam's first steps are as long as any and know the least. Clipping, because of single bad batches. An average of the weights, because a constant rate hovers; its horizon is $1/(1-d)$ steps, and its start needs care.
# - What is drawn depends on (seed, step, position) alone: so runs can be stopped, continued and shared among processes, to the bit.
# - The loss is a mean over $t$ of numbers of very different size. By $t$, and between the two answers that can be computed, it says something. The mean alone does not even say whether the samples are digits.
# - Learn eight images by heart first. Look at samples from the same noise. Distrust a loss that is too good.
#
# Your functions are now `ddpm_from_scratch.training`. **Next:** lesson 07 builds the sampler that this network is for.

# %% id=progress
progress("06")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 06}}
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: algorithm 1, eq. 14 ($L_{\text{simple}}$), section 4 and appendix B (rate, batch, EMA with decay 0.9999).
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: section 3.3 (the noise of the gradient of the bound), eq. 18 (drawing $t$ by importance).
# - D. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization* (2015), arXiv 1412.6980: algorithm 1 and section 3 (the correction of the start).
# - T. Karras et al., *Analyzing and Improving the Training Dynamics of Diffusion Models* (2024), arXiv 2312.02696: averages of weights, chosen after the run.
