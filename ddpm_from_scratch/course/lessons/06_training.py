# %% [markdown] id=title
# # 06 · Training
#
# **How does a network learn, and how do I see that it does?** About 60 minutes: half of it reading, half of it six exercises.
#
# Lesson 03 found the loss and lesson 05 built the network. What is left is a loop of five lines, and around it the things that decide whether those
# five lines work: how far the first steps go, which weights are kept in the end, what can be repeated, and what the loss says. A network that learns
# the wrong thing and one that learns well can show you the same curve. At the end you can tell them apart.
#
# **You will build** the module `ddpm_from_scratch.training`: the loss, one step of algorithm 1, the learning rate, the averaged weights.
#
# **Afterwards you can**
#
# - write algorithm 1 of the DDPM paper, and say why one random draw per image is enough;
# - explain what warm-up, clipping and averaged weights are for;
# - stop a run and go on with it so that not a single bit differs;
# - take a loss apart by $t$, and say what it does not tell;
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
# Run this cell first, and again after every restart of the kernel.
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
# No one can compute it: there are infinitely many $\varepsilon$. But we need only its gradient, and that may be *estimated*, since the derivative of an average is the average of the derivatives.
# So the gradient at one draw of $(t, x_0, \varepsilon)$ is right *on average*, and the mean over a batch of $B$ independent draws is, too, with a variance $B$ times smaller.
# This is why each image gets a $t$ of its own: $B$ draws of $t$ for the price of one.
#
# How wrong is a single estimate? Take a case that can be solved: data $x_0 \sim \mathcal N(0, 1)$, and a network with one weight, $\varepsilon_\theta(x_t, t) = a\,x_t$. Its exact gradient is $dL/da = 2\,(a - m)$, where $m$ is the mean of $\sqrt{1-\bar\alpha_t}$ over all $t$.
#
# <details><summary>Going deeper (not needed later)</summary>
#
# *Where that comes from.* $\mathbb E[x_t^2] = 1$ and $\mathbb E[\varepsilon\,x_t] = \sqrt{1-\bar\alpha_t}$, so that
#
# $$L(a) = \frac1T \sum_t \mathbb E\big[(\varepsilon - a\,x_t)^2\big] = 1 - 2 a\, m + a^2, \qquad \frac{dL}{da} = 2\,(a - m) .$$
#
# </details>
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
        f"batch of {B:>3}: mean of {n} estimates {mean:+.3f} ({off:+.1f} standard errors from the exact {exact:+.3f})\n"
        f"{'':<14}spread {spread:.3f}, spread·√B {spread * B**0.5:.2f}"
    )
    assert abs(off) < 4
with plots.figure(
    width=7,
    height=2.8,
    alt="Three histograms of gradient estimates around the same dashed line at the exact gradient. The batch of one is spread "
    "from far below to above zero, that of 16 is narrower, that of 256 is a narrow peak at the line.",
    caption="The estimated gradient for three batch sizes. All are right on average (dashed line); "
    "sixteen times as many images make it four times as precise. That of one image peaks near 0; "
    "its long tail to the left, not all in the picture, brings the mean to the line.",
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
# One image is wrong by much more than the gradient itself, and sometimes points the wrong way. With 16 the error is a quarter of that, less than the gradient; with 256 a sixteenth, small beside it. Networks are trained all the same: the
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
# Write the loss of a batch. The paper's norm is a sum over pixels; most programs take the mean over pixels too, so that the loss does not depend on the size of the image. This is what
# `training.diffusion_loss` becomes.

# %% [markdown] id=one-means-nothing
# Two values are worth knowing by heart. A network that answers 0 has loss $\mathbb E[\varepsilon^2] = 1$: **a loss of 1 is knowing nothing**. And a network that answers $x_t$
# has $\mathbb E[(\varepsilon - x_t)^2]$, which is small wherever $x_t$ is nearly all noise: much of the loss can be had for nothing.

# %% [markdown] id=step
# ## One step
#
# From the loss to moved weights it takes four calls, in this order: clear the old gradient (PyTorch *adds* each new one to what is there), `backward()`, limit the gradient's length (why: next section), let the optimiser step.

# %% exercise 06.2
# Complete one step of algorithm 1. When it is right, the picture shows 200 steps of your function on a very small network.

# %% [markdown] id=warmup
# ## The first steps: warm-up
#
# The optimiser here is Adam (in its form AdamW). It keeps two running means for each weight: $m$ of the gradient $g$, and $v$ of its square, and moves the weight by $-\mathrm{lr}\, \hat m / (\sqrt{\hat v} + 10^{-8})$, where $\mathrm{lr}$ is the learning rate. The hats mark a correction: both means start at 0, so early on they are too small.
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

# %% [markdown] id=adam-answer
# <details><summary>Answer</summary>
#
# All by the same 0.002. At the very first step the means consist of one gradient, and the correction for their start makes $\hat m = g$ and $\hat v = g^2$. So the step is
#
# $$-\mathrm{lr}\,\frac{g}{\sqrt{g^2}} = \pm\mathrm{lr} ,$$
#
# whatever the gradient: Adam knows only signs at first. In a small batch the sign can be wrong (the histogram above), and yet every weight takes a full step.
#
# </details>
#
# Two consequences:
#
# - **Warm-up.** The first steps are the least well-founded and as long as any. So the rate starts small and rises over the first steps, while $\hat m$ and $\hat v$ gather evidence.
# - **Clipping.** A factor common to *all* gradients cancels in Adam's quotient. But one gradient that stands out does harm: it enters $m$ at once with a tenth of its size, but $v$ only with a
#   thousandth of its square. Clipping to a length $c$, $g \leftarrow g \cdot \min(1, c/\lVert g\rVert)$, leaves usual gradients alone and shortens the unusual ones, without turning them.
#
# Towards the end of a run the rate is often lowered again: long steps near the goal only jump over it.

# %% exercise 06.3
# Write the learning rate of each step: a linear rise times a cosine that falls to 0. This is what `TrainingConfig.learning_rate_at` becomes.

# %% [markdown] id=average
# ## The average of the weights
#
# With a constant rate the weights never settle: each batch pulls them to a place of its own, and they hover around the best one. The **exponential moving average** (EMA) keeps a second set of weights beside the network's and leaves them out of the training. After each step
#
# $$\bar w_n = d\,\bar w_{n-1} + (1-d)\, w_n .$$
#
# How much calmer is it? Take one weight $w$ with the loss $\frac12(w - w^*)^2$, whose gradient $w - w^*$ is only seen with noise: $w_{n+1} = w_n - \mathrm{lr}\,(w_n - w^* + \text{noise})$.
#
# <details><summary>Going deeper (not needed later)</summary>
#
# *The variances.* With $\rho = 1-\mathrm{lr}$ and noise of variance $s^2$, $w_{n+1} - w^* = \rho\,(w_n - w^*) - \mathrm{lr}\cdot\text{noise}$. In the long run the variance $V$ of $w$ no longer changes: $V = \rho^2 V + \mathrm{lr}^2 s^2$, so $V = \mathrm{lr}^2 s^2 / (1-\rho^2)$.
# Unrolled, $\bar w_n = (1-d) \sum_{k\ge0} d^k\, w_{n-k}$. Weights that are $\ell$ steps apart have covariance $\rho^\ell V$, so
#
# $$
# \begin{aligned}
# \operatorname{Var} \bar w &= (1-d)^2\, V \sum_{j,k} d^{\,j+k} \rho^{|j-k|} \\
# &= (1-d)^2\, V\, \frac{1}{1-d^2}\Big(1 + 2\sum_{\ell\ge1} (d\rho)^\ell\Big) \\
# &= \frac{1-d}{1+d}\;\frac{1+d\rho}{1-d\rho}\;V .
# \end{aligned}
# $$
#
# (Sort the pairs by their distance $\ell$: the sum over the smaller index gives $1/(1-d^2)$ for each $\ell$, and each $\ell \ge 1$ occurs twice. The last step is a geometric series.) The next cell prints these formulas beside what it measures.
#
# </details>
#
# > **Predict before you run.** $\mathrm{lr} = 0.1$, $d = 0.99$. How much smaller is the average's distance from $w^*$ than the weight's own: 2 times, 3 times, 10 times?

# %% id=hover
# Adam's first step, above
assert torch.allclose(weights.detach().abs(), torch.tensor(rate).double(), rtol=1e-4)
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
# The last $H$ weights have the share $1 - d^H$ of the average. For $H = 1/(1-d)$ that is close to two thirds: $1/(1-d)$ is the average's **horizon** in steps.
#
# At the start there is nothing to average. $\bar w_0 = w_0$ is the random initialisation, and after $n$ updates it still has the share $d^n$. So early on the average keeps less,
# $d_n = \min\big(d, \frac{1+n}{10+n}\big)$, and the share of $w_0$ is the product of these:

# %% id=start-share
d = 0.9995
print(f"decay {d}: horizon {1 / (1 - d):.0f} steps, holding {1 - d ** (1 / (1 - d)):.0%}")
share = 1.0
for n in range(1, 1001):
    share *= min(d, (1 + n) / (10 + n))
    if n in (10, 100, 1000):
        print(
            f"after {n:>4} updates the random start has the share {d**n:.1%}, with the early rule {share:.0e}"
        )

# %% exercise 06.4
# Write one update of the average of one weight tensor, with the early rule. This is what `EMA.update` becomes, for all tensors of a network at once.

# %% [markdown] id=lending
# ### Lending the average
#
# Training goes on with the network's own weights. For a look at the samples the average is *lent* to the network, and afterwards the network gets its own weights
# back, whatever happened in between. In Python this is done by a context manager: in a function under `@contextmanager`, what stands before `yield` happens at `with`, and what stands after it when the block ends. If the block ends in an error, the error comes out of the `yield`; what must happen even then has to be written so.

# %% id=write-weights
@torch.no_grad()
def write_weights(model: nn.Module, values: list[Tensor]) -> None:
    """Copy `values` into the network's weights, in the order of model.parameters()."""
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)

# %% exercise 06.5
# Complete the context manager. `write_weights` above copies a list of tensors into a network. This is what `EMA.averaged` becomes.

# %% [markdown] id=repeat
# ## Randomness that can be repeated
#
# A run that stops after hours must be able to go on. Weights, optimiser and average can be saved. And the random numbers? In `ddpm_from_scratch.training` they do not come from one long stream: **what is drawn is a function of (seed, step, position in the batch)**,
# and of nothing else. Then nothing has to be saved, and two processes can share a batch.

# %% id=draws
whole = training.draw(seed=0, step=41, positions=range(8), shape=(1, 16, 16), T=T)
later = training.draw(seed=0, step=41, positions=range(3, 8), shape=(1, 16, 16), T=T)
print(f"t of step 41:                {whole.t.tolist()}")
print(f"of its last five images alone:                {later.t.tolist()}")
assert torch.equal(whole.noise[3:], later.noise)

# %% [markdown] id=loop
# Now everything is there. Read `algorithm_1`: it is the whole loop. `training.train` is the same with checkpoints, callbacks and several devices. It gives the same weights to the last bit,
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
# held-out images and eight samples, always from the same noise. You may interrupt the run (■ in the toolbar): it ends after the step, with a checkpoint. Run the cell again, and it goes on from there.

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
# The monitor below shows the record of this run. In JupyterLab, move the slider to look back at any measurement, or press **Start** and watch a copy of the run go on in the background.

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

# %% [markdown] id=run-answer
# <details><summary>Answer</summary>
#
# Nearly all of it, and the samples of that moment are clouds. What is left of the fall is small on an ordinary axis and plain on a logarithmic one, and it is there that the clouds become shapes. So the curve alone is not the thing to look at.
#
# </details>

# %% [markdown] id=by-t
# ## The loss by t
#
# Why does the curve hide so much? Because it is a mean over $t$ of very different numbers. Take it apart.

# %% exercise 06.6
# Write the loss by $t$. `Recorder` measures it with the same ranges; here the draws of $t$ are random, as in training.

# %% [markdown] id=bounds
# ### How low should it be?
#
# For these images nobody knows the perfect answer. But one answer can be computed and stands as a yardstick beside a network: the best one that knows the mean $\mu$ and covariance $C$ of the training images and nothing else. Where a network lies above it, it has not even learnt what those two say.
#
# <details><summary>Going deeper (not needed later)</summary>
#
# *Its loss.* If the pixels were one Gaussian with mean $\mu$ and covariance $C$, then along each eigenvector of $C$, with eigenvalue $\lambda_i$, everything is a single number: $x_t$ has the variance
# $\bar\alpha_t\lambda_i + 1 - \bar\alpha_t$ and its covariance with $\varepsilon$ is $\sqrt{1-\bar\alpha_t}$. By refresher C of lesson 00, what remains of the variance 1 of $\varepsilon$ is
#
# $$1 - \frac{1-\bar\alpha_t}{\bar\alpha_t\lambda_i + 1-\bar\alpha_t} = \frac{\bar\alpha_t\lambda_i}{\bar\alpha_t\lambda_i + 1-\bar\alpha_t},$$
#
# and the loss is the mean of this over $i$ (`gaussian_loss` below).
#
# </details>

# %% id=bounds-compute
assert (1 - losses[first]) / (1 - losses[last]) > 0.75  # of the fall in the run above
pixels = images.flatten(1).double()  # shape (N, 256)
mean, covariance = pixels.mean(0), torch.cov(pixels.T, correction=0)
eigenvalues, vectors = torch.linalg.eigh(covariance)
eigenvalues = eigenvalues.clamp(min=0)


def gaussian_eps(x_t, level):
    gain = (1 - level) ** 0.5 / (level * eigenvalues + 1 - level)
    return ((x_t - level**0.5 * mean) @ vectors * gain) @ vectors.T


def gaussian_loss(level):
    return float((level * eigenvalues / (level * eigenvalues + 1 - level)).mean())


generator = torch.Generator().manual_seed(4)
for t in (50, 350, 650, 950):
    level = float(alpha_bar[t])
    x0 = pixels[torch.randint(len(pixels), (300,), generator=generator)]
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x_t = gaussian.q_sample(x0, eps, level)
    measured = ((eps - gaussian_eps(x_t, level)) ** 2).mean(1)
    off = float(measured.mean() - gaussian_loss(level)) / float(measured.std() / 300**0.5)
    assert abs(off) < 4.5, (t, off)

# the same answer on the images, t and noises by which the recorder measured the network
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
stairs = {
    f"network, step {first}": (recorder.by_t[first], plots.SKY, "-"),
    f"network, step {last}": (recorder.by_t[last], plots.BLUE, "-"),
    "mean and covariance only": (straight, plots.VERMILION, "--"),
}
with plots.figure(
    width=7.5,
    height=3.4,
    alt="Loss over t on a logarithmic axis, as stairs. The network's first measurement is flat from the middle on, near three hundredths. "
    "Its last one falls by more than a decade from small to large t. The answer of mean and covariance is close to it at small and middle t and far below it at large t.",
    caption="The network at its first and last measurement (held-out images), beside the answer that needs no network. "
    "On this axis one sees the progress that the mean hides.",
) as ax:
    for label, (by_t, colour, style) in stairs.items():
        ax.stairs(
            by_t,
            torch.arange(0, 1001, 100),
            baseline=None,
            color=colour,
            linestyle=style,
            linewidth=2.4,
            label=label,
        )
    ax.set(yscale="log", ylim=(1e-5, 1.5), xlabel="timestep t", ylabel="loss")
    ax.legend()

# %% [markdown] id=by-t-read
# At large $t$ nearly all of $x_t$ is noise: even a crude answer is good. At the smallest $t$ the noise is hardly visible, even a careful answer is poor, and this one range is a large part of the mean. Between
# the first and the last measurement the right end fell by a far larger factor than the left end, and the mean does not show it: look at *ratios*, not at differences.
#
# So short a training comes near the dashed line at small and middle $t$, and stays far above it at large $t$. Press Start in the monitor, and see whether, and at which $t$, the loss drops below it. Without such a yardstick one would have taken "the loss fell by more than nine tenths" for success.

# %% [markdown] id=untold
# ## What the loss does not tell
#
# An experiment with the model `digits` that comes with the course: trained by the same loop, on all ten digits, for longer. We damage its answers in two ways. Each adds the same constant error $c$ to every pixel of $\varepsilon_\theta$ in a range of 200 timesteps, so each adds
# the same amount to the loss, up to chance: $0.2\,c^2$.
#
# > **Predict before you run.** The error sits at $t < 200$ in one network and at $t \ge 800$ in the other. Sampled by DDIM in 20 steps, which one still makes digits?

# %% id=damage
shipped = UNet2DModel.from_pretrained(shipped_model("digits"), subfolder="unet").eval()
start = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(6))
c = 0.2
ranges = {"undamaged": (0, 0), "error at t < 200": (0, 200), "error at t ≥ 800": (800, T)}


@torch.no_grad()
def ddim(predict, x, steps=20):
    """Images in [-1, 1] from noise x, by predict(x_t, t) → ε, in few steps (lesson 08)."""
    sampler = DDIMScheduler()
    sampler.set_timesteps(steps)
    for t in sampler.timesteps.tolist():
        x = sampler.step(predict(x, torch.full((len(x),), t)), t, x).prev_sample
    return x.clamp(-1, 1)


@torch.no_grad()
def damaged(x_t, t, between):
    inside = (t >= between[0]) & (t < between[1])
    return shipped(x_t, t).sample + c * inside.view(-1, 1, 1, 1)


x0 = load_dataset("digits", split="test", image_size=16).images(slice(200))
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
t = torch.arange(200) * 5
x_t = scheduler.add_noise(x0, eps, t)
rows = []
for name, between in ranges.items():
    loss = float(((eps - damaged(x_t, t, between)) ** 2).mean())
    print(f"{name:<17} loss {loss:.4f}")
    rows.append(ddim(lambda x, t, r=between: damaged(x, t, r), start))
plots.image_grid(
    torch.cat(rows),
    columns=8,
    row_labels=list(ranges),
    alt="Three rows of eight samples. The first two rows show the same clean digits, a little fainter in the second. "
    "The third row shows white blots that fill the image.",
    caption="Two networks with the same loss (the second and the third row), sampled from the same noise.",
)

# %% [markdown] id=damage-answer
# <details><summary>Answer</summary>
#
# The one whose error sits at small $t$. There an error of $\varepsilon$ hardly moves $\hat x_0$. At large $t$ it moves $\hat x_0$ by $c\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$ (lesson 03, the same error in three currencies), more than 25 times $c$. The sampler clips that, but goes on with the wrong $\varepsilon$: each of its four steps at $t \ge 800$ makes all pixels brighter, and the network takes the brightness for part of the image.
#
# That is this sampler. DDPM hardly notices the same error, nor does DDIM if it derives $\varepsilon$ anew from the clipped $\hat x_0$ (lesson 08). Which error does harm depends on the sampler, and the loss knows nothing of it.
#
# </details>
#
# So the mean loss compares two moments of the *same* run at best. Look at samples, always from the same noise, and measure them (lesson 11).
#
# ### And the average?
#
# The checkpoint holds the network's own weights of the last step, `network` the averaged ones:

# %% id=raw-against-average
own = new_network()
own.load_state_dict(training.load_checkpoint(folder)["model"])
x0 = held_out.images().repeat(3, 1, 1, 1)
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7))
t = torch.arange(len(x0)) * T // len(x0)
for name, one in {"own weights": own, "averaged": network}.items():
    with torch.no_grad():
        loss = training.diffusion_loss(one.eval(), scheduler, x0, eps, t)
    print(f"{name:<12} held-out loss {loss:.4f}")
clipped = sum(norm > config.grad_clip for norm in norms.values())
print(f"clipped: the gradients of {clipped} of {len(norms)} steps")

# %% [markdown] id=average-answer
# The same steps, the same gradients, and a clearly smaller loss: the average leaves out the hovering. (A rate that falls to 0, as in exercise 06.3, brings the weights to rest too; then the average gains less.)

# %% [markdown] id=overfit
# ## Eight images by heart
#
# Before a long run, a short test: **can the network learn eight images by heart?** A sound loop can, and the end is known: the samples must come close to the eight. If they stay far from all of them, there is a bug, and you have found it in seconds. The network here is `TinyNetwork`: three linear layers on 8×8 pixels, and a share of $x_t$ that depends on $t$, predict $v$ (lesson 03), from which $\varepsilon$ follows. So it begins far below a loss of 1.

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

tiny_start = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(9))
made = ddim(lambda x, t: tiny(x, t).sample, tiny_start, steps=50)
distance = (made.flatten(1)[:, None] - eight.flatten(1)).square().mean(-1)
print(
    "each sample's mean squared distance from the nearest of the eight:\n",
    ", ".join(f"{d:.3f}" for d in distance.min(1).values.tolist()),
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
# Five training runs of `TinyNetwork` on 0, 1 and 4: one sound, four with one bug each, from the same weights and draws. No error message comes. The evidence: the log, the curves, the samples. (The code is in `course/broken_runs.py`; do not look.)
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
    alt="Five loss curves on a logarithmic axis. Sound, A and B fall alike, B ends lower than sound and A lowest of the three. C falls far below all others. D is scattered "
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
# - **A** has the noise drawn once. Its training loss lies *below* the sound run's, and its loss on held-out images above: the network has learnt that one batch of noise by heart. Fix: `noise = torch.randn(...)` inside the loop.
# - **B** left the images in $[0, 1]$. Its curve looks healthy, even lower than the sound run's: images of half the contrast hide less of the noise. Its loss on held-out images does not: they are in $[-1, 1]$, as its training images were not. The samples say the same: black has become grey, and their mean pixel is far above the data's. Fix: `x0 = 2 * x0 - 1`, once, where the data are loaded.
# - **C** compares with $x_t$, its own input. The loss falls far below the sound run's: too good to be true. Samples: noise, since with $\varepsilon_\theta = x_t$ the estimate $\hat x_0$ is a multiple of $x_t$, and each step of the sampler only makes $x$ smaller: what comes out is the noise that went in. Fix: compare with `noise`.
# - **D** has one $t$ per step. Held-out loss and samples are nearly those of the sound run, but the curve jumps by more than a factor of ten from step to step. The gradient is still right on average (*Algorithm 1*), only with far more variance: this bug costs time, not correctness. Fix: `t = torch.randint(T, (B,))`.
#
# </details>
#
# Now fix one: `broken_runs.RUNS` maps each name to a function from `(x0, noise, t, first_noise)` to what the network sees, its $t$, and what it is compared with. Change one in a cell of your own (`broken_runs.RUNS["A"] = ...`), run the cell above again, and see its row become the sound one.

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Nothing is learnt, loss stays at 1.** The step is missing, the gradient was cleared before it, or the loss is cut off from the network.
# - **The loss is too good.** Something leaks: the target into the input, or the same noise again and again.
# - **The loss is no longer finite.** The rate is too high, or the warm-up too short. `train` stops then, and keeps the last good checkpoint.
# - **Samples from the wrong weights.** An average with a horizon longer than the run, and without the early rule, gives those of the random start.
# - **Comparing losses of runs** with another schedule, weight over $t$ or thing to predict. They are different units.

# %% [markdown] id=summary
# ## Summary
#
# - Algorithm 1 estimates the gradient of $L_{\text{simple}}$ from one draw of $(t, \varepsilon)$ per image: right on average, and the batch makes it precise.
# - Warm-up, because Adam's first steps are as long as any and know the least. Clipping, because of single bad batches. An average of the weights, because a constant rate hovers.
# - What is drawn depends on (seed, step, position) alone: so runs can be stopped and continued to the bit.
# - The loss is a mean over $t$ of numbers of very different size. By $t$, beside an answer that can be computed, it says something. The mean alone does not even say whether the samples are digits.
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
