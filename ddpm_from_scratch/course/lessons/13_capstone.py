# %% [markdown] id=title
# # 13 · Capstone
#
# **Can I write all of it from a blank file?** About 60 minutes: most of it your own code.
#
# Twelve lessons took diffusion apart. This one has next to no text: you write a schedule, a training loop and both samplers, train a model on
# handwritten digits, and let a judge who cannot see your code say what your samples are worth.
#
# **You will build** DDPM and DDIM, whole. Nothing becomes a module of the package: it has all of this already, and at the end yours and
# the package's must agree to the last digits.
#
# **Afterwards you can**
#
# - write DDPM and DDIM from nothing but their equations;
# - test a sampler from outside, without a network and without reading it;
# - say what a trained model's samples are worth, by a yardstick set before the training;
# - hand your model to anyone who uses Diffusers.

# %% [markdown] id=notation
# ## Notation
#
# No new symbols. Here are all of the course, to look up.
#
# <details><summary>Notation of the course</summary>
#
# {{notation}}
#
# </details>
#
# In code `t` counts from 0: `alpha_bar[t]` is $\bar\alpha$ after $t + 1$ steps of noise, and the step before `t = 0` is the clean data, where $\bar\alpha = 1$.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_from_scratch.course import (
    check,
    exercises,
    hint,
    plots,
    progress,
    setup,
    solution,
)
from ddpm_from_scratch.course.engine import grade
from ddpm_from_scratch.course.exercises.l13 import Oracle
from ddpm_from_scratch.data import ImageDataset, load_dataset, to_pixels
from ddpm_from_scratch.models import small_unet
from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline
from ddpm_from_scratch.reference import shipped_classifier
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

setup("13")
torch.set_num_threads(1)  # images of 64 pixels: a second thread would only wait

# %% [markdown] id=rubric-text
# ## The rubric
#
# What counts, fixed before anything is trained. Points for what you wrote yourself; where you left a function blank, the course's own steps in so that
# the notebook runs on, and earns nothing.

# %% id=rubric
PASS = 70
RUBRIC = {
    "13.1": (10, "make_schedule passes its check"),
    "13.2": (10, "training_loss passes its check"),
    "13.3": (10, "train passes its check"),
    "13.4": (10, "ddpm_sample passes its check"),
    "13.5": (10, "ddim_sample passes its check"),
    "moments": (10, "DDPM with the exact ε*: 20,000 samples have the recursion's mean and spread (4 SE)"),
    "behaviour": (10, "DDIM: one network call per entry; same noise, same samples at η = 0; same seed at η = 1"),
    "loss": (5, "training: the last 100 losses average below 0.15 (a network that says 0 has 1)"),
    "recognised": (10, "DDPM: at least 25 of 100 recognised (probability above 0.9), at most 10 of a digit count"),
    "variety": (5, "DDPM: at least 8 of the ten digits appear among the recognised ones"),
    "few steps": (5, "DDIM in 20 steps: at least 25 recognised, counted in the same way"),
    "new": (5, "no copies: at most 5 of 100 samples lie nearer to a training image than any test image does"),
}
BONUS = (10, "a network of your own for the U-Net, and samples that still earn all their points")
for points, what in [*RUBRIC.values(), BONUS]:
    print(f"{points:>3}  {what}")
print(f"{sum(points for points, _ in RUBRIC.values())} points and a bonus of {BONUS[0]}. Passed: {PASS}.")

# %% [markdown] id=contract
# ## The contract
#
# Five functions. The checks never look inside them. They call them with stand-ins for a network, which note what they are asked, and compare
# what comes out. So the order of the draws is part of each contract: the same generator must give the same samples.
#
# | function | gives | from |
# |---|---|---|
# | `make_schedule(T, beta_1, beta_T)` | $\bar\alpha$, shape (T,), float64 | lessons 01, 02 |
# | `training_loss(model, x0, t, noise, alpha_bar)` | the loss of a batch | lessons 03, 06 |
# | `train(model, images, alpha_bar, steps, batch_size, learning_rate, generator)` | losses; the model is trained in place | lesson 06 |
# | `ddpm_sample(model, x_T, alpha_bar, generator, clip)` | $x_0$ | lessons 03, 07 |
# | `ddim_sample(model, x_T, alpha_bar, timesteps, eta, generator, clip)` | $x_0$ | lesson 08 |
#
# `model(x_t, t)` is always the predicted noise $\varepsilon_\theta(x_t, t)$, with `t` a tensor of shape (B,). The functions take data of any rank: images, points, single numbers. Use PyTorch and
# nothing of the package; write helper functions as you like, in cells of their own. Read on when you are done, or stuck.

# %% exercise 13.1
# The linear schedule of Ho section 4, as $\bar\alpha$.

# %% exercise 13.2
# One batch of algorithm 1, up to the loss.

# %% exercise 13.3
# All of algorithm 1, with your `training_loss`. Mind the order of the three draws.

# %% exercise 13.4
# Algorithm 2, with $\sigma_t^2 = \tilde\beta_t$. The check samples data of one Gaussian with the exact $\varepsilon^*$, so no training is needed to see what is wrong.

# %% exercise 13.5
# Song eq. 12 and 16, along any falling list of timesteps.

# %% [markdown] id=assemble-text
# ## Put together
#
# From here on the notebook uses your functions. Where one is missing or wrong the course's own takes its place.

# %% id=assemble
written = {
    "13.1": make_schedule,
    "13.2": training_loss,
    "13.3": train,
    "13.4": ddpm_sample,
    "13.5": ddim_sample,
}
yours, parts = {}, []
for number, function in written.items():
    exercise = exercises.get(number)
    verdict = grade(exercise, function)
    yours[number] = verdict.status == "right" and not verdict.borrowed
    parts.append(function if yours[number] else exercise.reference)
    print(f"{exercise.name:<14} {'yours' if yours[number] else 'the course’s own'}")
make_schedule, training_loss, train, ddpm_sample, ddim_sample = parts

T, beta_1, beta_T = 100, 1e-3, 0.2
alpha_bar = make_schedule(T, beta_1, beta_T)
ddim_steps = list(range(T - 1, -1, -5))
print(f"T = {T}, ᾱ from {alpha_bar[0]:.4f} to {alpha_bar[-1]:.1e}; DDIM visits {len(ddim_steps)} of the steps: {ddim_steps[0]}, {ddim_steps[1]}, …, {ddim_steps[-1]}")

# %% [markdown] id=exact
# ## From outside: the exact test
#
# Training hides the bugs of a sampler: a wrong one still makes something digit-like. So first give it the *perfect* network. For data $\mathcal N(m, s^2)$ that is known (lesson 03):
#
# $$
# \begin{aligned}
# \varepsilon^*(x_t, t) &= \underbrace{\frac{\sqrt{1-\bar\alpha_t}}{\bar\alpha_t s^2 + 1 - \bar\alpha_t}}_{e_t} \left(x_t - \sqrt{\bar\alpha_t}\, m\right) \\
# \hat x_0 &= m + \underbrace{\frac{\sqrt{\bar\alpha_t}\, s^2}{\bar\alpha_t s^2 + 1 - \bar\alpha_t}}_{k_t} \left(x_t - \sqrt{\bar\alpha_t}\, m\right)
# \end{aligned}
# $$
#
# The second follows from the first by Ho eq. 15: $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\varepsilon^*)/\sqrt{\bar\alpha_t}$; put $x_t = \sqrt{\bar\alpha_t}\,m + (x_t - \sqrt{\bar\alpha_t}\,m)$, and the bracket is multiplied by
# $\big(1 - \tfrac{1-\bar\alpha_t}{\bar\alpha_t s^2 + 1-\bar\alpha_t}\big)/\sqrt{\bar\alpha_t} = k_t$. Both are straight lines in $x_t$. So Song eq. 12 is one too:
#
# $$
# \begin{aligned}
# x_{\text{prev}} &= \sqrt{\bar\alpha_{\text{prev}}}\, m + A_t \left(x_t - \sqrt{\bar\alpha_t}\, m\right) + \sigma_t z \\
# A_t &= \sqrt{\bar\alpha_{\text{prev}}}\, k_t + \sqrt{1 - \bar\alpha_{\text{prev}} - \sigma_t^2}\; e_t
# \end{aligned}
# $$
#
# A straight line of a Gaussian is a Gaussian. If $x_t$ has mean $m_t$ and variance $v_t$, then
#
# $$m_{\text{prev}} = \sqrt{\bar\alpha_{\text{prev}}}\, m + A_t \left(m_t - \sqrt{\bar\alpha_t}\, m\right), \qquad v_{\text{prev}} = A_t^2\, v_t + \sigma_t^2 .$$
#
# From $m_T = 0$, $v_T = 1$ this recursion gives the distribution of the samples **exactly**, error of the steps included. At $\eta = 1$, step by step, it is DDPM with $\tilde\beta$, so it tests both samplers.
#
# <details><summary>Going deeper (not needed later): why DDPM's slope is the same</summary>
#
# DDPM moves to the mean of Ho eq. 7. With $\hat x_0$ a straight line of slope $k_t$, that mean has the slope
# $\tfrac{\sqrt{\bar\alpha_{\text{prev}}}(1-\bar\alpha_t/\bar\alpha_{\text{prev}})}{1-\bar\alpha_t} k_t + \tfrac{\sqrt{\bar\alpha_t/\bar\alpha_{\text{prev}}}\,(1-\bar\alpha_{\text{prev}})}{1-\bar\alpha_t}$. It must be $A_t$ at $\eta = 1$ (lesson 08), and the next cell compares the two at every step.
#
# </details>


# %% id=recursion
def level(t):
    return float(alpha_bar[t]) if t >= 0 else 1.0


def moments(steps, eta, m, s):
    """Exact mean and standard deviation of the samples for data N(m, s²)."""
    mean, variance = 0.0, 1.0
    for t, t_prev in pairwise([*steps, -1]):
        a, p = level(t), level(t_prev)
        e, k = (1 - a) ** 0.5 / (a * s**2 + 1 - a), a**0.5 * s**2 / (a * s**2 + 1 - a)
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5
        A = p**0.5 * k + (1 - p - sigma**2) ** 0.5 * e
        if eta == 1:
            by_eq_7 = p**0.5 * (1 - a / p) / (1 - a) * k + (a / p) ** 0.5 * (1 - p) / (1 - a)
            assert abs(A - by_eq_7) < 1e-12
        mean, variance = p**0.5 * m + A * (mean - a**0.5 * m), A**2 * variance + sigma**2
    return mean, variance**0.5


m, s = 0.5, 0.3
x_t, a = torch.linspace(-2, 2, 9, dtype=torch.float64), level(30)
x0_hat = (x_t - (1 - a) ** 0.5 * Oracle(m, s, alpha_bar)(x_t, 30)) / a**0.5  # Ho eq. 15
k = a**0.5 * s**2 / (a * s**2 + 1 - a)
print(f"x̂_0 at nine values of x_t: the largest difference from the straight line is {(x0_hat - (m + k * (x_t - a**0.5 * m))).abs().max():.0e}")
assert torch.allclose(x0_hat, m + k * (x_t - a**0.5 * m), rtol=0, atol=1e-12)
every_step = list(range(T - 1, -1, -1))
ends = moments(every_step, 1, m, s)  # the slope of eq. 7 is compared with A_t on the way
print(f"the same slope from Song eq. 12 and from Ho eq. 7 in all {T} steps")

# %% [markdown] id=exact-predict
# > **Predict before you run.** The data have a standard deviation of 0.3. The network is perfect, yet with few steps the samples are not. Will they be too narrow or too wide? And who needs more steps, DDPM ($\eta = 1$) or DDIM ($\eta = 0$)?

# %% id=exact-test
n = 20_000
start = torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
seeded = torch.Generator().manual_seed(2)
points = ddpm_sample(Oracle(m, s, alpha_bar), start, alpha_bar, seeded, False)
mean, std = ends
off_mean = float(points.mean() - mean) / (std / math.sqrt(n))
off_std = float(points.std() - std) / (std / math.sqrt(2 * n))
print(f"DDPM, n = {n:,}: mean {points.mean():.4f} ({off_mean:+.1f} standard errors), standard deviation {points.std():.4f} ({off_std:+.1f})")

counts = [2, 4, 10, 20, 50, 100]
spread = {0: [], 1: []}
measured = {0: [], 1: []}
for count in counts:
    steps = list(range(T - 1, -1, -T // count))
    for eta in (0, 1):
        spread[eta].append(moments(steps, eta, m, s)[1])
        points = ddim_sample(Oracle(m, s, alpha_bar), start, alpha_bar, steps, float(eta), torch.Generator().manual_seed(3), False)
        measured[eta].append(float(points.std()))
print(f"standard deviation of the samples, as the recursion says (and as measured); the data have {s}")
for count, *row in zip(counts, spread[0], measured[0], spread[1], measured[1], strict=True):
    print(f"{count:>4} steps: DDIM, η = 0: {row[0]:.4f} ({row[1]:.4f})   η = 1: {row[2]:.4f} ({row[3]:.4f})")
assert max(abs(a - b) / a for eta in (0, 1) for a, b in zip(spread[eta], measured[eta], strict=True)) < 4 / math.sqrt(2 * n)

# %% [markdown] id=exact-answer
# <details><summary>Answer</summary>
#
# Too narrow. $\hat x_0$ is a mean over all that is still possible, so it lies between the possibilities, and a long step trusts it too far. DDPM needs more steps: it throws part of what $x_t$ knows away in each of them, and has to make up for it with
# noise whose variance $\tilde\beta_t$ is that of *known* $x_0$, which is too small. So if real samples look washed out at few steps, the network need not be to blame.
#
# </details>

# %% id=exact-picture
with plots.figure(
    6.5,
    3.2,
    alt="Standard deviation of the samples over the number of steps, on a logarithmic axis. Both curves rise towards the data's 0.3 from far below; that of DDIM lies above that of DDPM. Dots lie on the curves.",
    caption="What the recursion says (lines) and what the sampler makes of 20,000 points (dots), with the exact ε*.",
) as ax:
    plots.draw_curves(ax, torch.tensor(counts), {"DDIM, η = 0": torch.tensor(spread[0]), "η = 1": torch.tensor(spread[1])}, "steps", "standard deviation of the samples")
    ax.set(xscale="log", ylim=(0, 0.33))
    for eta, colour in ((0, plots.BLUE), (1, plots.VERMILION)):
        ax.scatter(counts, measured[eta], color=colour, zorder=3)
    ax.axhline(s, color=plots.FAINT, linewidth=1.2, linestyle="-")
    ax.text(2, s + 0.007, "data", color=plots.INK, size=9)
    ax.legend(loc="lower right")

# %% [markdown] id=clinic
# ## Bug clinic: three samplers from others
#
# Three people handed in their DDPM samplers. You do not see the code. Each was given the exact $\varepsilon^*$ of data $\mathcal N(0.5, 0.3^2)$, and the samples of each lie around the right mean.
# One has another $\sigma$, one does not stop where it should, one never draws. Which is which?

# %% id=clinic-table
from ddpm_from_scratch.course.exercises.l13 import HANDED_IN  # do not look inside yet

handed_in = {"right": ddpm_sample, **HANDED_IN}
right_mean, right_std = moments(every_step, 1, m, s)
crowds = {}
print(f"{'':<6} network calls   last t   standard deviation   same start, other seed")
for name, sampler in handed_in.items():
    oracle = Oracle(m, s, alpha_bar)
    made = [sampler(oracle, start[:4000], alpha_bar, torch.Generator().manual_seed(seed), False) for seed in (5, 6)]
    crowds[name] = made[0]
    same = "the same samples" if torch.equal(*made) else "other samples"
    print(f"{name:<6} {len(oracle.asked) // 2:<15} {oracle.asked[-1]:<8} {made[0].std():.4f}               {same}")
print(f"expected: {T} calls, the last at t = 0, standard deviation {right_std:.4f}")
with plots.figure(
    columns=4,
    height=2.2,
    alt=f"Four histograms of samples around 0.5, with standard deviations {', '.join(f'{name} {crowd.std():.2f}' for name, crowd in crowds.items())}.",
    caption="What they made, from the same starts.",
) as axes:
    for ax, (name, crowd) in zip(axes, crowds.items(), strict=True):
        ax.hist(crowd.flatten().numpy(), bins=50, range=(-0.7, 1.7), color=plots.SKY)
        ax.set(title=name, yticks=[], xlabel="x")

# %% [markdown] id=clinic-answer
# <details><summary>Answer</summary>
#
# - **A** stops before $t = 0$: one call is missing, and the last is at $t = 1$. One step of noise is left in the samples. In an image that is the finest grain, and nobody sees it.
# - **B** draws nothing (the only one that stands out in the picture): another seed gives the same samples, and they are far too narrow. Each step takes the mean of many possible pasts.
# - **C** has $\sigma^2 = \beta_t$ for $\tilde\beta_t$. The paper allows both, and here it even comes out wider, nearer to the data. It breaks the contract, not the mathematics (Ho section 3.2).
#
# The fix of each is one line. Undo it in your own sampler, run its check again, and see whether the check says what you saw here.
#
# </details>

# %% [markdown] id=digits
# ## Digits
#
# 1,500 handwritten digits of 8 × 8 pixels. The network is the U-Net of lesson 05, small. **For the bonus** put a network of your own here: any `nn.Module` with `network(x_t, t)` → $\varepsilon$.
# (A hint: 64 pixels are few.)


# %% id=network
class Epsilon(nn.Module):
    """A U-Net of the package as `network(x_t, t)` → ε."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x_t, t):
        return self.unet(x_t, t).sample


images = load_dataset("digits").images()  # x_0: shape (1500, 1, 8, 8), in [-1, 1]
test_images = load_dataset("digits", "test").images()
torch.manual_seed(13)
network = Epsilon(small_unet((1, 8, 8), widths=(16, 32)))  # ← or your own
print(f"{len(images):,} images of {images.shape[-2]} × {images.shape[-1]} pixels, {sum(p.numel() for p in network.parameters()):,} weights")

# %% [markdown] id=training
# ### Training
#
# > **Predict before you run.** The rubric asks for less than 0.15. Will the loss end a little below that, or near 0.01? And will the two smaller learning rates at the end bring much, or little?
#
# Three calls of your `train`, with falling learning rates. The number of steps is fixed, so a slow machine takes longer; on another machine the figures may differ a little, since it rounds otherwise. Half a minute on one thread of an ordinary processor.

# %% id=train
stages = [(430, 4e-3), (150, 1e-3), (70, 2.5e-4)]
draws = torch.Generator().manual_seed(0)
losses, began = [], time.perf_counter()
for steps, rate in stages:
    losses += train(network, images, alpha_bar, steps, 32, rate, draws)
    print(f"{len(losses):>4} steps, learning rate {rate:g}: mean of the last 50 losses {sum(losses[-50:]) / 50:.3f}")
print(f"{time.perf_counter() - began:.0f} seconds")
network.eval()
final_loss = sum(losses[-100:]) / 100

# %% [markdown] id=training-answer
# <details><summary>Answer</summary>
#
# A little below, and on this axis the smaller learning rates bring little. Part of what is left is noise that cannot be told from the image, whatever the network, above all at small $t$ (lesson 03); how large a part, the curve does not say.
# Nor does it say what a small fall is worth: in lesson 11 the distance of the samples fell by a far larger share than the loss. Do not wait for 0: look at samples.
#
# </details>

# %% id=train-curve
plots.curves(
    torch.arange(0, len(losses), 10),
    {"mean of ten steps": torch.tensor(losses).reshape(-1, 10).mean(1)},
    "training step",
    "loss",
    alt="The loss falls steeply in the first hundred steps, then slowly, and keeps jumping up and down a little.",
    caption="The training loss. After the steep fall at the start little happens on this axis; how far it could still fall, the curve does not say.",
)

# %% [markdown] id=sampling
# ### Samples, and the judge
#
# 100 samples by DDPM and 100 by DDIM, from the same noise. The judge is the course's classifier of digits (lesson 11), which never saw a generated image. It takes 16 × 16 pixels, so samples are enlarged in the way its
# own training images were. For comparison it also judges pure noise, which nobody would call a digit, and test images. A model that makes one digit only
# would be recognised too: so each digit counts up to ten times.


# %% id=sample
def enlarged(pictures):
    return ImageDataset(to_pixels(pictures), torch.zeros(len(pictures), dtype=torch.long)).resized(16).images()


@torch.no_grad()
def judged(pictures):
    """Probability of the likeliest digit, and that digit."""
    return judge(enlarged(pictures)).softmax(dim=1).max(dim=1)


def counted(verdict):
    """How many are recognised of each digit, from 0 to 9."""
    probability, digit = verdict
    return digit[probability > 0.9].bincount(minlength=10)


judge = shipped_classifier("digits")[0].eval()
x_T = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(20))
with torch.no_grad():
    began = time.perf_counter()
    ddpm_images = ddpm_sample(network, x_T, alpha_bar, torch.Generator().manual_seed(21), True)
    middle = time.perf_counter()
    ddim_images = ddim_sample(network, x_T, alpha_bar, ddim_steps, 0.0, None, True)
    print(f"DDPM, {T} calls: {middle - began:.1f} s; DDIM, {len(ddim_steps)} calls: {time.perf_counter() - middle:.1f} s")
verdicts = {}
print("of 100 each    recognised  digit by digit, 0 to 9           up to 10 each")
for name, pictures in {"pure noise": x_T, "DDPM": ddpm_images, "DDIM": ddim_images, "test images": test_images[:100]}.items():
    verdicts[name] = judged(pictures)
    by_digit = counted(verdicts[name])
    print(f"{name:<14} {int(by_digit.sum()):<11} {' '.join(f'{int(count):>2}' for count in by_digit)}    {int(by_digit.clamp(max=10).sum())}")

# %% id=samples-shown
for name, pictures in {"DDPM": ddpm_images, "DDIM": ddim_images}.items():
    sure = (verdicts[name][0] > 0.9)[:40]
    plots.image_grid(
        pictures[:40],
        10,
        width=5.5,
        outline=[plots.BLUE if one else plots.ORANGE for one in sure],
        alt=f"Forty generated images of 8 × 8 pixels in four rows, by {name}: many look like digits, some like strokes that are none. A blue frame marks those that the judge recognises, an orange one the others.",
        caption=f"The first forty samples by {name}, none left out. Blue: recognised by the judge; orange: not.",
    )

# %% [markdown] id=verdict
# ## The verdict


# %% id=points
def nearest(pictures):
    """Distance to the nearest training image."""
    return torch.cdist(pictures.flatten(1), images.flatten(1)).min(dim=1).values


@torch.no_grad()
def behaves():
    oracle = Oracle(m, s, alpha_bar)

    def run(eta, seed):
        return ddim_sample(oracle, start[:500], alpha_bar, ddim_steps, eta, torch.Generator().manual_seed(seed), False)

    once, again, noisy, noisy_again, other = run(0.0, 1), run(0.0, 2), run(1.0, 3), run(1.0, 3), run(1.0, 4)
    same = torch.equal(once, again) and torch.equal(noisy, noisy_again) and not torch.equal(noisy, other)
    return same and oracle.asked == 5 * ddim_steps


by_ddpm, by_ddim = counted(verdicts["DDPM"]), counted(verdicts["DDIM"])
copies = int((nearest(ddpm_images) < nearest(test_images).min()).sum())
trained = yours["13.1"] and yours["13.2"] and yours["13.3"]
reached = {
    **yours,
    "moments": yours["13.4"] and abs(off_mean) < 4 and abs(off_std) < 4,
    "behaviour": yours["13.5"] and behaves(),
    "loss": trained and final_loss < 0.15,
    "recognised": trained and yours["13.4"] and int(by_ddpm.clamp(max=10).sum()) >= 25,
    "variety": trained and yours["13.4"] and int((by_ddpm > 0).sum()) >= 8,
    "few steps": trained and yours["13.5"] and int(by_ddim.clamp(max=10).sum()) >= 25,
    "new": trained and yours["13.4"] and copies <= 5,
}
total = 0
for number, (points, what) in RUBRIC.items():
    total += points * reached[number]
    print(f"{'✓' if reached[number] else '·'} {points * reached[number]:>3} of {points:<3} {what}")
bonus = BONUS[0] * (not isinstance(network, Epsilon) and all(reached.values()))
print(f"{'✓' if bonus else '·'} {bonus:>3} of {BONUS[0]:<3} {BONUS[1]}")
print(f"{total + bonus} points: {'passed' if total + bonus >= PASS else f'not passed yet ({PASS} are needed)'}")
if not all(yours.values()):
    print("Blank or wrong so far: " + ", ".join(exercises.get(number).name for number, right in yours.items() if not right))

# %% [markdown] id=honest
# What these points do not say: after half a minute of training many images are no digit yet, and the judge is a small network with blind spots of its own. Its figure for *pure noise* tells how easily it is fooled, and by which digit.
# The test images show how much is left to gain: train for more steps, and the figures rise.

# %% [markdown] id=export
# ## Hand it on
#
# Your samplers and the package's must be the same functions. Give the package your weights and your noise, and compare.

# %% id=agree
same_betas = {"num_train_timesteps": T, "beta_start": beta_1, "beta_end": beta_T}
theirs = DDIMScheduler(**same_betas, timestep_spacing="trailing")
theirs.set_timesteps(len(ddim_steps))
assert theirs.timesteps.tolist() == ddim_steps
x = x_T
with torch.no_grad():
    ours = ddim_sample(network, x, alpha_bar, ddim_steps, 0.0, None, True)
    for t in theirs.timesteps.tolist():
        x = theirs.step(network(x, torch.full((len(x),), t)), t, x).prev_sample
print(f"DDIM, {len(x)} images: the largest difference between your samples and the package's is {(x - ours).abs().max():.0e}")
assert torch.allclose(x, ours, atol=1e-3)
theirs = DDPMScheduler(**same_betas)
theirs.set_timesteps(T)
x, draws = x_T[:10], torch.Generator().manual_seed(22)
with torch.no_grad():
    ours = ddpm_sample(network, x, alpha_bar, torch.Generator().manual_seed(22), True)
    for t in theirs.timesteps.tolist():
        x = theirs.step(network(x, torch.full((len(x),), t)), t, x, generator=draws).prev_sample
print(f"DDPM, {len(x)} images: {(x - ours).abs().max():.0e}")
assert torch.allclose(x, ours, atol=1e-3)

# %% [markdown] id=export-2
# So your model *is* a Diffusers model. Saved in that format, it needs none of your code. (The format is for U-Nets: of a network of your own this cell saves nothing.)

# %% id=export-3
if isinstance(network, Epsilon):
    folder = Path("my_digits")  # beside this notebook
    DDPMPipeline(network.unet, DDPMScheduler(**same_betas)).save_pretrained(folder)
    for path in sorted(folder.rglob("*.*")):
        print(f"{path!s:<62} {path.stat().st_size:>9,} bytes")
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(batch_size=10, generator=torch.Generator().manual_seed(23), num_inference_steps=20, output_type="pt").images
    plots.image_grid(
        made * 2 - 1,
        10,
        width=5.5,
        alt="Ten generated digits in a row.",
        caption="Ten digits by the saved pipeline, opened again, with the package's DDIM.",
    )

# %% [markdown] id=export-4
# Anyone who has Diffusers opens it without this course:
#
# ```python
# from diffusers import DDIMPipeline
#
# images = DDIMPipeline.from_pretrained("my_digits")(num_inference_steps=20).images
# ```

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **The sampler is blamed for the network, or the network for the sampler.** Test the sampler with the exact $\varepsilon^*$ first. It takes seconds, and it is either right or not.
# - **A check with one seed passes.** A sampler that ignores its generator, or draws when it should not, shows only with two.
# - **Off by one at the ends.** The first call must be at $T-1$, the last at 0, and the level after the last is 1. A sampler that is wrong there may still make digits (sampler A of the clinic is one).
# - **Clipping hides divergence.** With `clip` a broken network still gives images in range. Look at the samples without it once.
# - **Choosing the yardstick afterwards.** Whatever the samples look like, some measure flatters them. That is why the rubric stands at the top.

# %% [markdown] id=next
# ## Where to go next
#
# - **More of the same.** `ddpm train --dataset fashion-10k --output runs/mine` on the command line, for hours where this took seconds; `ddpm eval` judges it as lesson 11 does.
# - **Your own images.** A folder of pictures is a dataset: `ddpm train --dataset path/to/images`. A GPU is used where there is one.
# - **Better samples from the same network.** Lessons 08 and 11: spacing, $\eta$, the number of steps. Beyond this course: higher-order solvers of the same ODE (Karras et al. 2022; Lu et al. 2022).
# - **Images to order.** Lesson 12: labels and guidance; then text in the place of labels, and a latent space in the place of pixels (Rombach et al. 2022).
# - **Another view of it all.** Score-based models and stochastic differential equations (Song et al. 2021), and flow matching (Lipman et al. 2023), where the network learns the direction of the straight lines from noise to data.

# %% [markdown] id=summary
# ## Summary
#
# - A diffusion model is five short functions: a schedule, a loss, a loop, and a sampler or two.
# - For one Gaussian the samples' distribution is known exactly, step by step: a test that needs no training and forgives nothing.
# - With few steps even a perfect network gives samples that are too narrow, by DDIM, and more so by DDPM with $\tilde\beta$.
# - What samples are worth is measured by something that has not seen the code, against figures set before.
# - Your code and the package's are the same functions, so your model opens in Diffusers.

# %% id=progress
progress("13")

# %% [markdown] id=reading
# ## Sources and further reading
#
# <details><summary>Every equation of the course, and where it is</summary>
#
# {{equations}}
#
# </details>
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: eq. 4, 7, 14, 15, algorithms 1 and 2, section 3.2 (the two variances), section 4 (the schedule).
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: eq. 12 and 16.
# - T. Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models* (2022), arXiv 2206.00364.
# - C. Lu et al., *DPM-Solver* (2022), arXiv 2206.00927.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), arXiv 2112.10752.
# - Y. Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations* (2021), arXiv 2011.13456.
# - Y. Lipman et al., *Flow Matching for Generative Modeling* (2023), arXiv 2210.02747.
