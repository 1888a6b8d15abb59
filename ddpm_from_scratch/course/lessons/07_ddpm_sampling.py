# %% [markdown] id=title
# # 07 · DDPM sampling
#
# **How does noise turn into an image?** About 60 minutes: half of it reading, half of it five exercises.
#
# You have a trained network. It looks at a noisy image and says how much of it is noise. This lesson turns that into images, with the sampler of the DDPM paper. It has six lines,
# and almost every one hides a choice: how much noise to add, what to do with impossible pixels, how to end, which steps to visit.
#
# **You will build** the module `ddpm_from_scratch.schedulers.ddpm`: the step, the timesteps and the loop around it.
#
# **Afterwards you can**
#
# - write algorithm 2 from memory, and say where each line comes from;
# - say when $\sigma_t^2 = \beta_t$ is exact, when $\tilde\beta_t$ is, and prove it;
# - say why the last step adds no noise, and what clipping $\hat x_0$ repairs;
# - take fewer steps, and know what breaks first;
# - drive a scheduler: `set_timesteps`, `step`, one generator per image;
# - tell four broken samplers apart by their pictures.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson; the others are those of lessons 01 and 03.
#
# {{notation 07}}
#
# In the papers $t$ counts from 1. In code `t` is an index from 0 to $T-1$, and the clean end is written $-1$, where $\bar\alpha = 1$.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ddpm_from_scratch import DDPMPipeline, DDPMScheduler, gaussian, schedules
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution
from ddpm_from_scratch.data import load_dataset

setup("07")

betas = schedules.linear(T=1000)
alpha_bar = schedules.alpha_bars(betas)
alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])

digits = DDPMPipeline.from_pretrained("digits")
fashion = DDPMPipeline.from_pretrained("fashion")
for pipeline in (digits, fashion):
    pipeline.set_progress_bar_config(disable=True)


def seeds(n, first=0):
    """One generator per image, seeded `first`, `first + 1`, …"""
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def make(pipeline, n, steps, seed=0, **options):
    """n images by DDPM, and what happened on the way: (t, x after the step, x̂_0) of every step."""
    pipeline.scheduler = DDPMScheduler(timestep_spacing="trailing", **options)
    seen = []
    pipeline(n, seeds(n, seed), steps, callback=lambda i, t, x, x0: seen.append((t, x, x0)))
    return seen[-1][1], seen

# %% [markdown] id=first
# ## The whole lesson in one picture
#
# Two models come with the course, one of digits and one of clothes. This is the first of them at work; the loop inside it is what you write below.

# %% id=hero
images, journey = make(digits, 8, 100, seed=26)
start = gaussian.randn(images.shape, seeds(8, 26))
columns = [9, 39, 59, 69, 79, 89, 99]
strip = torch.stack([start, *(journey[i][1] for i in columns)], dim=1)[:3].flatten(0, 1)
plots.image_grid(
    strip,
    8,
    titles=["$x_T$", *(f"after\n{i + 1} steps" for i in columns)],
    alt="Three rows of eight pictures. The first column is pure noise. For more than half of "
    "the steps nothing can be seen, then a digit comes out of the noise in each row, "
    "and the last column is clean.",
    caption="One hundred steps of algorithm 2, three images. Each row starts from its own noise.",
)

# %% [markdown] id=algorithm
# ## Algorithm 2, line by line
#
# This is the sampler of the paper (Ho algorithm 2):
#
# | | |
# |---|---|
# | 1 | $x_T \sim \mathcal N(0, I)$ |
# | 2 | **for** $t = T, \dots, 1$ **do** |
# | 3 | $\quad z \sim \mathcal N(0, I)$ if $t > 1$, else $z = 0$ |
# | 4 | $\quad x_{t-1} = \dfrac{1}{\sqrt{\alpha_t}}\left(x_t - \dfrac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}}\,\varepsilon_\theta(x_t, t)\right) + \sigma_t z$ |
# | 5 | **end for** |
# | 6 | **return** $x_0$ |
#
# - **Line 1.** The forward process ends in $q(x_T) \approx \mathcal N(0, I)$ (lesson 01), so that is where we start.
# - **Line 2.** Backwards: the network is asked about the noisiest state first.
# - **Line 3.** Fresh noise at every step but the last one. Why not there? See *The last step*.
# - **Line 4.** A draw from $p_\theta(x_{t-1} \mid x_t) = \mathcal N(\mu_\theta(x_t, t),\ \sigma_t^2 I)$: mean plus standard deviation times noise. The mean is Ho eq. 11.
#   What $\sigma_t$ is, the algorithm leaves open.
#
# Lesson 03 made the same step in two moves: first $\hat x_0$ from $\varepsilon_\theta$ (Ho eq. 15), then the mean of the posterior $q(x_{t-1} \mid x_t, \hat x_0)$ (Ho eq. 7). Its step 6 put one into the other and got the mean of line 4, $1-\alpha_t$ being $\beta_t$.
# So the two forms are one, as long as nothing is done to $\hat x_0$ in between. Code uses the two moves, because something will be done to it (*Clipping*). In numbers:

# %% id=two-forms
generator = torch.Generator().manual_seed(0)
x_t, eps = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
x0 = gaussian.x0_from_eps(x_t, eps, alpha_bar)
by_x0 = gaussian.posterior_mean(x_t, x0, alpha_bar, alpha_bar_prev)
by_eps = (x_t - betas / (1 - alpha_bar) ** 0.5 * eps) / (1 - betas) ** 0.5
print(f"all {len(betas)} steps: largest difference {(by_x0 - by_eps).abs().max():.0e}")
assert torch.allclose(by_x0, by_eps, rtol=0, atol=1e-10)

# %% exercise 07.1
# Write the mean of line 4. The arguments are the two levels, so that the function also serves when steps are skipped.

# %% [markdown] id=variance
# ## How much noise: β or β̃
#
# The paper tried $\sigma_t^2 = \beta_t$ and $\sigma_t^2 = \tilde\beta_t$, got similar results, and says what they are: the first is optimal for data from $\mathcal N(0, I)$, the second for data that are
# a single point (Ho section 3.2). Both claims fall out of one formula. Let the data be Gaussian, $x_0 \sim \mathcal N(m, s^2)$ in each dimension.
#
# **How wide is everything?** $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ has variance
#
# $$V_t = \bar\alpha_t\,s^2 + 1 - \bar\alpha_t .$$
#
# **One step, both ways.** Forward, $x_t = \sqrt{\alpha_t}\,x_{t-1} + \sqrt{\beta_t}\,\varepsilon_t$ with fresh $\varepsilon_t$. So $(x_{t-1}, x_t)$ is jointly Gaussian with covariance
# $\sqrt{\alpha_t}\,V_{t-1}$, and $V_t = \alpha_t V_{t-1} + \beta_t$. Conditioning (refresher C of lesson 00: variance minus covariance squared over variance) gives the step back:
#
# $$\operatorname{Var}(x_{t-1} \mid x_t) = V_{t-1} - \frac{\alpha_t V_{t-1}^2}{V_t} = \frac{V_{t-1}\,(V_t - \alpha_t V_{t-1})}{V_t} = \boxed{\;\beta_t\,\frac{V_{t-1}}{V_t}\;}$$
#
# Now read off the two ends:
#
# - data from $\mathcal N(0, I)$: $s = 1$, all $V_t = 1$, and the variance is $\beta_t$;
# - data that are a point: $s = 0$, $V_t = 1 - \bar\alpha_t$, and it is $\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t = \tilde\beta_t$;
# - in between it is in between, since $V_{t-1}/V_t$ grows with $s$.
#
# Exactly, in fractions:

# %% id=variance-check
now, before = Fraction(1, 2), Fraction(3, 4)  # ᾱ_t and ᾱ_{t-1}
alpha = now / before
small = (1 - before) / (1 - now) * (1 - alpha)
for s2 in (Fraction(0), Fraction(1, 4), Fraction(1)):
    V, V_before = now * s2 + 1 - now, before * s2 + 1 - before
    boxed = (1 - alpha) * V_before / V
    print(f"s² = {s2}: β̃ = {small}, true variance {boxed}, β = {1 - alpha}")
    assert boxed == V_before - alpha * V_before**2 / V
    assert (s2 != 0 or boxed == small) and (s2 != 1 or boxed == 1 - alpha)

# %% id=variance-picture
t = torch.arange(1, 1001)


def true_variance(s2):
    """Variance of the step back at every t, for Gaussian data."""
    return (
        betas
        * (alpha_bar_prev * s2 + 1 - alpha_bar_prev)
        / (alpha_bar * s2 + 1 - alpha_bar)
    )


with plots.figure(
    width=7,
    height=3.2,
    alt="Four curves of the true variance divided by β over t, on a logarithmic axis. For s = 1 "
    "it is 1 everywhere. For s = 0 it rises from 0 to nearly 1 within thirty steps. The "
    "curves for s = 0.05 and s = 0.015 lie between the two.",
    caption="The variance that the step back should have, as a share of β_t. The upper line is "
    "σ² = β, the lowest curve σ² = β̃. All four meet after about a hundred steps: there the "
    "choice does not matter.",
) as ax:
    for s in (1.0, 0.05, 0.015, 0.0):
        ax.plot(t, true_variance(s**2) / betas, label=f"s = {s:g}")
    ax.set(
        xscale="log", xlabel="steps of noise, t + 1", ylabel=r"true variance / $\beta_t$"
    )
    ax.legend()

# %% exercise 07.2
# Write the boxed formula, for any two levels.

# %% [markdown] id=recursion
# ### One Gaussian, followed exactly
#
# For Gaussian data the perfect network is known (lesson 03), and it is linear: $\varepsilon^*(x_t) = \sqrt{1-\bar\alpha_t}\,(x_t - \sqrt{\bar\alpha_t}\,m)/V_t$. So one step of the sampler is $x \mapsto a\,x + b + \sigma_t z$, and turns the variance $v$
# of $x$ into $a^2 v + \sigma_t^2$. Nothing has to be drawn.
#
# > **Predict before you run.** Data with $s = 0.5$, so neither of the two extremes. With many steps, will $\sigma^2 = \beta$ make samples that are too wide or too narrow? And $\tilde\beta$?

# %% id=recursion-code
def final_variance(s2, steps, variance_type, last_noise=False):
    """Variance of what the sampler makes from N(0, 1), for data N(0, s²); exact."""
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    visited, v = [*scheduler.timesteps.tolist(), -1], 1.0
    for t, t_prev in zip(visited, visited[1:], strict=False):
        a, p = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        beta = 1 - a / p
        # eq. 11 with ε* = √(1-ᾱ) x / V
        slope = (1 - beta / (a * s2 + 1 - a)) / (a / p) ** 0.5
        sigma2 = beta if variance_type == "fixed_large" else (1 - p) / (1 - a) * beta
        v = slope**2 * v + (sigma2 if t_prev >= 0 or last_noise else 0.0)
    return v


unit = final_variance(1.0, 10, "fixed_large", last_noise=True)
point = final_variance(0.0, 10, "fixed_small")
print(f"s = 1, σ² = β, 10 steps: the variance of the samples is 1 to {abs(unit - 1):.0e}")
print(f"a point, σ² = β̃, 10 steps: the variance of the samples is {point:.0e}")
assert abs(unit - 1) < 1e-12 and point < 1e-12

# %% id=recursion-picture
counts = [3, 5, 10, 20, 50, 100, 200, 500, 1000]
spread = {
    label: torch.tensor([final_variance(0.25, n, kind) ** 0.5 / 0.5 for n in counts])
    for label, kind in (
        (r"$\sigma^2 = \beta$", "fixed_large"),
        (r"$\sigma^2 = \tilde\beta$", "fixed_small"),
    )
}
for i, n in enumerate(counts):
    print(
        f"{n:>5} steps: spread of the samples / spread of the data: "
        + ", ".join(
            f"{kind} {float(values[i]):.3f}"
            for kind, values in zip(("β", "β̃"), spread.values(), strict=True)
        )
    )
with plots.figure(
    width=7,
    height=3.2,
    alt="Two curves of the samples' spread over the number of steps, on a logarithmic axis, with "
    "a dashed line at 1. The curve for β rises steeply, crosses the line, and comes back to it from "
    "above. The curve for β̃ stays below and comes to the line from below.",
    caption="Data with s = 0.5, the perfect network, no randomness in the figure. With many steps β ends too wide, "
    "β̃ too narrow, and the error of both goes away with the number of steps.",
) as ax:
    plots.draw_curves(
        ax, torch.tensor(counts), spread, "number of steps", "spread of samples / of data"
    )
    ax.axhline(1, color=plots.FAINT, linestyle="--", linewidth=1)
    ax.set(xscale="log")

# %% [markdown] id=recursion-answer
# <details><summary>Answer</summary>
#
# $\beta$ adds more than the true step back would, so the samples come out too wide; $\tilde\beta$ adds less, and they come out too narrow. The true variance lies between the two at every step. More steps make both $V_{t-1}/V_t$ and
# $\tilde\beta_t/\beta_t$ closer to 1, and the difference vanishes.
#
# With very few steps both are too narrow. There the last stride is long, and algorithm 2 ends it with a mean and no noise: the spread of $x_0$ around that mean is lost. (In the printed case $s = 1$ the last step's noise is counted, too: there it has $\sigma^2 = \beta$.)
#
# </details>
#
# In Diffusers, and here, the two are called `variance_type="fixed_large"` ($\beta_t$) and `"fixed_small"` ($\tilde\beta_t$). What they do to images is in *Fewer steps*, where the difference shows.

# %% [markdown] id=last
# ## The last step
#
# At the last step the level moved to is $\bar\alpha_{\text{prev}} = 1$. Put that into Ho eq. 7: the coefficient of $x_t$ has the factor $1 - \bar\alpha_{\text{prev}} = 0$, and that of $\hat x_0$ is
# $\frac{1 \cdot \beta_t}{1-\bar\alpha_t} = 1$, because $\beta_t = 1 - \bar\alpha_t/1$. So **the last mean is $\hat x_0$ itself**, the network's best guess of the clean image. Noise on top of it is noise in the result: no later step
# takes it out. That is the $z = 0$ in line 3. With $\tilde\beta_t$ it would come by itself, since $\tilde\beta = 0$ there. With $\beta_t$ it has to be said.
#
# > **Predict before you run.** What if one forgets? With all 1000 steps, $\sigma = \sqrt{\beta_1} = 0.01$ on a scale from -1 to 1. Does one see it? And with 20 steps?

# %% id=last-step
clean = journey[-1][2][:6]
noise = gaussian.randn(clean.shape, seeds(6, 100))
grey_level = 2 / 255
rows = {"no noise": clean}
for steps in (1000, 100, 20):
    t_last = 1000 // steps - 1  # the last timestep of "trailing" spacing
    sigma = (1 - float(alpha_bar[t_last])) ** 0.5
    rows[f"noise, {steps} steps"] = clean + sigma * noise
    print(
        f"{steps:>4} steps: the last one starts at t = {t_last:>2}, σ = {sigma:.3f} = {sigma / grey_level:4.1f} grey levels"
    )
plots.image_grid(
    torch.cat(list(rows.values())),
    6,
    row_labels=list(rows),
    alt="Four rows of the same six digits. Without noise, and with the noise of the last of "
    "1000 steps, they look clean. With the last noise of 100 steps a slight grain is seen, "
    "with that of 20 steps a strong one.",
    caption="The same six images, with the noise that a forgotten z = 0 would leave in them.",
)

# %% [markdown] id=last-answer
# <details><summary>Answer</summary>
#
# With 1000 steps it is about one grey level, and nobody sees it: a bug that hides. With few steps the last stride is long, its $\beta$ is large, and the grain is plain. A bug that depends on a setting is worse than one that
# always shows.
#
# </details>

# %% exercise 07.3
# One full step. The first two lines are lesson 03's; add the rest: $\hat x_0$ is clipped to $[-1, 1]$ before it is used (the next section is about why), the chosen noise is added, and none at the last step. Return $\hat x_0$ too: it shows how far the image is.
# The picture that appears when you are right is made with your function.

# %% [markdown] id=clipping
# ## Clipping
#
# $\hat x_0$ is a quotient, and at large $t$ it divides by a small number. Whatever the network gets wrong comes out multiplied by $\sqrt{1-\bar\alpha_t}/\sqrt{\bar\alpha_t}$. But a pixel is known to lie in $[-1, 1]$. So
# clip $\hat x_0$ to that range before it is used (the implementation of the paper does so, and Diffusers' `clip_sample=True`).
#
# > **Predict before you run.** How large does $\hat x_0$ get without clipping? Does clipping change the images that a well-trained network makes? And those of a bad one?

# %% id=clip-runs
class Scaled:
    """A network whose output is multiplied by a factor."""

    def __init__(self, unet, factor):
        self.unet, self.factor = unet, factor
        self.config, self.device, self.dtype = unet.config, unet.device, unet.dtype

    def __call__(self, x, t):
        return SimpleNamespace(sample=self.factor * self.unet(x, t).sample)


worse = DDPMPipeline(Scaled(digits.unet, 0.7), digits.scheduler)
worse.set_progress_bar_config(disable=True)
runs = {}
for name, pipeline in (("trained network", digits), ("output × 0.7", worse)):
    for clip in (True, False):
        label = f"{name},\n{'clipped' if clip else 'not clipped'}"
        runs[label] = make(pipeline, 5, 25, seed=40, clip_sample=clip)
amplified = ((1 - alpha_bar) / alpha_bar) ** 0.5
for t, _, x0 in runs["trained network,\nnot clipped"][1][::5]:
    print(
        f"t = {t}: an error of ε grows {amplified[t]:6.1f} times in x̂_0; trained network, not clipped: largest |x̂_0| {x0.abs().max():.2f}"
    )
first, second = (x for x, _ in list(runs.values())[:2])
print(
    f"trained network: clipping moves a pixel of the result by {(first - second).abs().mean():.3f} on average"
)
plots.image_grid(
    torch.cat([x for x, _ in runs.values()]),
    5,
    row_labels=list(runs),
    alt="Four rows of digits. The first two, from the trained network, are clean and nearly "
    "the same. The third, from the network whose output is 0.7 of what it should be, shows "
    "grainy digits. The fourth, without clipping, is black and white noise.",
    caption="With a good network clipping hardly matters. With a bad one it is the difference "
    "between a grainy digit and noise.",
)

# %% [markdown] id=clip-answer
# <details><summary>Answer</summary>
#
# At the first steps $\hat x_0$ goes far beyond $[-1, 1]$ even with the trained network. Yet its images hardly change: $\hat x_0$ has a small coefficient at large $t$ (lesson 03), and a good network corrects in later steps what earlier
# ones did. A network that takes out too little noise is another matter. The noise that it leaves in goes into $\hat x_0$, and with $\hat x_0$ back into $x$. Each step adds fresh noise on top, so $x_t$ is noisier than its $t$ says, and ends as noise. Clipping puts in knowledge that the network lacks: no image has such an $\hat x_0$.
#
# </details>
#
# Clipping has a price: the step is no longer the one we derived. And it is right only for data that have these bounds.
#
# <details><summary>Going deeper (not needed later)</summary>
#
# *Dynamic thresholding.* Guidance (lesson 12) pushes many pixels of $\hat x_0$ beyond the bounds at once, and clipping makes them all plain black or white. *Imagen* takes a percentile $s$ of $|\hat x_0|$ per image instead, at least 1, clips to
# $[-s, s]$, and divides by $s$: the shading of bright strokes is kept (Saharia et al. 2022, section 2.3; here `thresholding=True`).
#
# </details>

# %% [markdown] id=fewer
# ## Fewer steps
#
# A thousand calls of the network per image are many. Nothing in the derivation needs neighbouring steps. If the sampler visits only $t$ and then $s < t$, the forward process from $s$ to $t$ is again a single shrinking and a single noise (lesson 01), with
#
# $$\frac{\bar\alpha_t}{\bar\alpha_s} = \alpha_{s+1}\cdots\alpha_t \quad\text{in the place of } \alpha_t, \qquad \beta = 1 - \frac{\bar\alpha_t}{\bar\alpha_s}, \qquad \tilde\beta = \frac{1-\bar\alpha_s}{1-\bar\alpha_t}\,\beta ,$$
#
# which is IDDPM eq. 19. The network is the same: it is asked only at timesteps that it knows from training. In this course $\bar\alpha_{\text{prev}}$ always means the level moved to, so every function above is ready for it.

# %% id=stride
t, s = 799, 599
product = torch.prod(1 - betas[s + 1 : t + 1])
print(
    f"from t = {t} to {s}: product of {t - s} α's {product:.12f}, ᾱ_t/ᾱ_s {alpha_bar[t] / alpha_bar[s]:.12f}"
)
assert abs(product - alpha_bar[t] / alpha_bar[s]) < 1e-12
print(f"β of one step at t = {t}: {betas[t]:.4f}; of the stride: {1 - product:.4f}")

# %% exercise 07.4
# Which timesteps? There are three customs, compared in Lin table 2. The first is written already; write the other two.

# %% id=spacings
n = 10
with plots.figure(
    width=8,
    height=2.0,
    alt="Three rows of ten dots on an axis from 0 to 999. Leading starts at 0 and ends at 900. "
    "Trailing starts at 99 and ends at 999. Linspace contains both 0 and 999.",
    caption="Ten of a thousand timesteps, in the three spacings. Sampling runs from right to "
    "left. `leading` never asks the network at the level where sampling starts.",
) as ax:
    for row, spacing in enumerate(("linspace", "trailing", "leading")):
        scheduler = DDPMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        visited = scheduler.timesteps.tolist()
        ax.plot(visited, [row] * n, "o", color=plots.COLOURS[row])
        print(f"{spacing:<9} {visited}")
    ax.set(
        yticks=range(3),
        yticklabels=("linspace", "trailing", "leading"),
        xlabel="timestep t",
        ylim=(-0.6, 2.6),
    )

# %% [markdown] id=fewer-predict
# > **Predict before you run.** Eight steps in place of a thousand, with the model of clothes. Which of the two variances suffers more, and how will the bad images look: blurred or grainy?

# %% id=fewer-pictures
real = load_dataset("fashion-10k", split="test").images(slice(0, 500))


def grain(x):
    """Mean squared difference of neighbouring pixels."""
    return float((x[..., 1:] - x[..., :-1]).square().mean())


rows = {}
for steps in (8, 20, 50):
    for symbol, kind in (("β̃", "fixed_small"), ("β", "fixed_large")):
        rows[f"{steps} steps, {symbol}"] = make(
            fashion, 3, steps, seed=0, variance_type=kind
        )[0]
print(f"grain of real images: {grain(real):.3f}")
for label, x in rows.items():
    print(f"{label:<12} {grain(x):.3f}")
order = [f"{steps} steps, {symbol}" for symbol in ("β̃", "β") for steps in (8, 20, 50)]
plots.image_grid(
    torch.cat([rows[label] for label in order])
    .reshape(2, 3, 3, 1, 28, 28)
    .transpose(0, 1)
    .flatten(0, 2),
    6,
    titles=["", "σ² = β̃", "", "", "σ² = β", ""],
    row_labels=["8 steps", "20 steps", "50 steps"],
    alt="Three rows of six pieces of clothing or shoes. The left three, made with the smaller variance, "
    "are free of grain in every row. The right three, made with the larger variance, are covered by "
    "strong grain with 8 steps, less with 20, and little with 50.",
    caption="The same seeds and the same network. With few steps β leaves noise in the image "
    "that the last steps cannot take out.",
)

# %% [markdown] id=fewer-answer
# <details><summary>Answer</summary>
#
# $\beta$ suffers first, and it is grainy. Its excess over the true variance is largest in the last strides (*How much noise*: the curves part at small $t$), and no step is left to take it out. $\tilde\beta$ errs to the other side: too little spread, which looks smooth, and so better
# than it is. (Compare the two variances within a row, not with the real images: three garments are too few for that.) What it loses is variety, which three images do not show.
#
# </details>
#
# Which of the two is better with all 1000 steps? Lesson 08 shows the published figures. Both lose with few steps, and for a deeper reason: a long step back is not Gaussian (lesson 03, the two heaps), whatever its variance. Lesson 08 keeps the few
# steps and changes the sampler.

# %% [markdown] id=scheduler
# ## The scheduler
#
# A **scheduler** is everything of a sampler but the network: the tables, the timesteps, the step. The names are those of Diffusers.
#
# | call | does |
# |---|---|
# | `DDPMScheduler(variance_type=…, clip_sample=…, timestep_spacing=…)` | makes the tables of $\beta$ and $\bar\alpha$ |
# | `set_timesteps(n)` | chooses the timesteps, and puts them, largest first, into `timesteps` |
# | `step(model_output, t, sample, generator=…)` | one step of algorithm 2 from `t` to the next of `timesteps` |
# | `.prev_sample`, `.pred_original_sample` of its result | $x_{\text{prev}}$ and $\hat x_0$ |
# | `add_noise(x0, noise, t)` | the forward process (lesson 01) |
#
# `step` is your exercise 07.3, with the level of the next timestep looked up:

# %% id=scheduler-step
from ddpm_from_scratch.course.exercises.l07 import ddpm_step as finished_step

scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing")
scheduler.set_timesteps(50)
print(f"last timesteps: {scheduler.timesteps[-3:].tolist()}")
for t, t_prev in ((499, 479), (19, -1)):
    x, eps = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(t))
    out = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    level_prev = float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
    x_prev, x0 = finished_step(x, eps, noise, float(alpha_bar[t]), level_prev, large=True)
    gap = float((out.prev_sample - x_prev).abs().max())
    print(f"`step` from t = {t} against exercise 07.3: largest difference {gap:.0e}")
    assert gap < 1e-4 and torch.allclose(out.pred_original_sample, x0, atol=1e-4)

# %% [markdown] id=loop
# What is left of algorithm 2 is the loop. Randomness comes from a **generator**, never from a hidden global state: the same seed gives the same image on every run. And there is **one generator per image**, so that image 5 is the same image whether it
# is made alone or in a batch of 64. `gaussian.randn(shape, generators)` draws row $i$ from generator $i$; `step` does the same.

# %% exercise 07.5
# Write the loop. The picture that appears when you are right is made by your loop, with the model of digits.

# %% id=per-sample
from ddpm_from_scratch.course.exercises.l07 import sample as finished_sample


@torch.no_grad()
def ask_digits(x, t):
    return digits.unet(x, t).sample


scheduler = DDPMScheduler(timestep_spacing="trailing")
scheduler.set_timesteps(20)
batch = finished_sample(ask_digits, scheduler, (4, 1, 16, 16), seeds(4, 60))
alone = finished_sample(ask_digits, scheduler, (1, 1, 16, 16), seeds(1, 62))
apart = (batch[2] - alone[0]).abs().max()
print(f"seed 62, third of four or alone: largest difference {apart:.0e}")
assert torch.allclose(batch[2], alone[0], atol=1e-3)

# %% [markdown] id=diffusers-note
# <details><summary>Going deeper (not needed later)</summary>
#
# *Where Diffusers differs.* In the settings of this lesson its `DDPMScheduler` gives the same numbers, with one exception. With `trailing` spacing and `fixed_large` it adds noise at the last step: its rule is "no noise at $t = 0$", and the last timestep of `trailing` is not 0. Algorithm 2 says "no noise at the last step", and so does this
# package. You have seen above how such grain looks.
#
# </details>

# %% [markdown] id=progressive
# ## What is decided when
#
# Every step has a guess of the end, $\hat x_0$. The paper calls looking at it *progressive generation* (Ho section 4.3). Here it is for the images of the beginning.
#
# > **Predict before you run.** At $t = 609$ next to nothing can be seen in $x_t$. What does $\hat x_0$ look like there? And which comes first, the coarse shape or the detail?

# %% id=progressive-strip
columns = [0, 19, 39, 49, 59, 69, 79, 99]
strip = torch.stack([journey[i][2] for i in columns], dim=1)[:3].flatten(0, 1)
plots.image_grid(
    strip,
    8,
    titles=[f"t = {journey[i][0]}" for i in columns],
    alt="Three rows of eight guesses. At t = 999 black and white speckle, brighter in the middle. "
    "To the right the speckle turns into a grey blur that is much the same in every row, then "
    "into a blurred digit, and the edges become sharp last.",
    caption="x̂_0 on the way, for the three images of the first picture.",
)

# %% [markdown] id=progressive-answer
# <details><summary>Answer</summary>
#
# $\hat x_0$ is a mean over all images that are still possible. Early that is nearly everything, so it is near to the mean of all digits: a blur. (At the very first steps the amplified error of the network lies over it, see *Clipping*.) Then the coarse shape is settled (now and then it wavers first), and the detail last: noise hides fine detail first (lesson 01), so on the way back it comes last.
#
# </details>
#

# %% [markdown] id=eq16
# <details><summary>Going deeper (not needed later)</summary>
#
# *The bound, read progressively.* The bound of lesson 03 compares each step with the posterior that knows $x_0$. It can be written without $x_0$. Start from Ho eq. 3 (lesson 03, *The bound*),
# $L = \mathbb E_q\big[-\log p(x_T) - \sum_{t\ge1} \log \frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\big]$, and turn each forward step round by Bayes, this time *without* $x_0$:
#
# $$
# \begin{aligned}
# q(x_t \mid x_{t-1}) &= q(x_{t-1} \mid x_t)\,\frac{q(x_t)}{q(x_{t-1})} \\
# \sum_{t\ge1}\log\frac{q(x_t)}{q(x_{t-1})} &= \log q(x_T) - \log q(x_0) \\
# L &= \mathbb E_q\!\left[\log\frac{q(x_T)}{p(x_T)} + \sum_{t\ge1} \log\frac{q(x_{t-1} \mid x_t)}{p_\theta(x_{t-1} \mid x_t)} - \log q(x_0)\right] \\
# &= \mathrm{KL}\big(q(x_T)\,\Vert\,p(x_T)\big) \\
# &\quad {}+ \mathbb E_q \sum_{t\ge1} \mathrm{KL}\big(q(x_{t-1} \mid x_t)\,\Vert\,p_\theta(x_{t-1} \mid x_t)\big) + H(x_0)
# \end{aligned}
# $$
#
# In the sum of the second line all factors but two cancel. The result is Ho eq. 16; $H(x_0)$ is the entropy of the data, which no model can change. So each step costs as many nats as it differs from the *true* step back. For one Gaussian all terms of both forms are formulas, and the next cell shows that they give the same number. With the true mean only the choice of
# $\sigma_t^2$ is left to pay for: for $s = 1$ the steps cost nothing, since $\beta$ is the true variance. The narrower the data, the more $\sigma^2 = \beta$ costs, most of it in the first few dozen timesteps, where the true variance is smaller. Pixels that are nearly certain, such as a black border, are
# narrow data. Their nats are fine detail that nobody sees, which is why learning $\sigma_t$ (lesson 12) helps the likelihood more than the pictures.
#
# </details>

# %% id=eq16-check
# Going deeper: checks the folded text above
def kl(variance, of_model, squared_distance=0.0):
    """KL of two Gaussians in one dimension."""
    ratio = (variance + squared_distance) / of_model
    return 0.5 * ((of_model / variance).log() + ratio - 1)


one = torch.tensor(1.0, dtype=torch.float64)
known = gaussian.posterior_variance(alpha_bar, alpha_bar_prev)
c2 = alpha_bar_prev * (betas / (1 - alpha_bar)) ** 2
for s in (1.0, 0.05, 0.01):  # data N(0, s²); the model has the true mean and σ² = β
    V = alpha_bar * s**2 + 1 - alpha_bar
    of_x0 = s**2 * (1 - alpha_bar) / V  # Var(x_0 | x_t)
    eq5 = kl(1 - alpha_bar[-1], one, alpha_bar[-1] * s**2)  # L_T
    eq5 = eq5 + kl(known[1:], betas[1:], c2[1:] * of_x0[1:]).sum()  # L_{t-1}
    eq5 = eq5 + 0.5 * ((2 * math.pi * betas[0]).log() + of_x0[0] / betas[0])  # L_0
    steps = kl(true_variance(s**2), betas)
    entropy = 0.5 * math.log(2 * math.pi * math.e * s**2)
    eq16 = kl(V[-1], one) + steps.sum() + entropy
    print(
        f"s = {s:4}: eq. 5 {eq5:+.5f} nats, eq. 16 {eq16:+.5f}; all steps {steps.sum():.1e}, of them the first fifty {steps[:50].sum():.1e}"
    )
    assert abs(eq5 - eq16) < 1e-8

# %% [markdown] id=clinic
# ## Bug clinic
#
# Four samplers with one bug each, and a right one in the first row: the same network, seeds, 30 steps and $\sigma^2 = \beta$. No error message comes. Look at the pictures and the log.
#
# > **Before you unfold the answers:** one adds noise at the last step, one takes $\beta_t$ for $\sqrt{\beta_t}$, one uses the $\bar\alpha$ of the neighbouring timestep, and one tells the network the timesteps in the wrong order. Which is which?
#
# The log: the pixels in the upper corners of a digit are black, so in $x_t$ they should be $-\sqrt{\bar\alpha_t}$ plus noise of standard deviation $\sqrt{1-\bar\alpha_t}$. The curves show the noise found in the corners, divided by the noise expected. (With $\sigma^2 = \beta$ and few steps even the right run has too much at the end. Compare with it.)

# %% id=clinic-runs
from ddpm_from_scratch.course.exercises.l07 import BROKEN, levels


def right_step(unet, x, t, t_prev, noise):
    level, level_prev = (
        float(alpha_bar[t]),
        float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0,
    )
    return finished_step(x, unet(x, t).sample, noise, level, level_prev, large=True)[0]


@torch.no_grad()
def run(step, n=5, steps=30):
    """Images by `step`, and the noise in their corners after every step, over what is expected."""
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    visited, generators = [*scheduler.timesteps.tolist(), -1], seeds(n, 20)
    x, log = gaussian.randn((n, 1, 16, 16), generators), []
    for t, t_prev in zip(visited, visited[1:], strict=False):
        x = step(digits.unet, x, t, t_prev, gaussian.randn(x.shape, generators))
        if t_prev >= 0:
            corners = (
                torch.cat([x[..., :4, :2], x[..., :4, -2:]])
                + float(alpha_bar[t_prev]) ** 0.5
            )
            log.append(
                float(corners.square().mean().sqrt())
                / (1 - float(alpha_bar[t_prev])) ** 0.5
            )
    return x, torch.tensor(log), visited[1:-1]


patients = {name: run(step) for name, step in {"right": right_step, **BROKEN}.items()}
for name, (x, log, _) in patients.items():
    print(
        f"{name:<6} largest |x| {x.abs().max():.2f}   difference between images {x.std(dim=0).mean():.2f}   "
        f"grain {grain(x):.3f}   noise left / expected {log[-1]:>5.2f}"
    )
plots.image_grid(
    torch.cat([x for x, _, _ in patients.values()]),
    5,
    row_labels=list(patients),
    alt="Five rows of five pictures. Right: digits. A: smooth, round, bold shapes that resemble "
    "each other. B: grey noise. C: digits with fine grain over everything. D: digits broken by "
    "strong grain.",
    caption="One right run and four wrong ones, from the same seeds.",
)
plots.curves(
    torch.tensor(patients["right"][2]),
    {name: log for name, (_, log, _) in patients.items()},
    "timestep t (sampling runs from right to left)",
    "noise found / expected",
    yscale="log",
    alt="Five curves on a logarithmic axis. Right and C lie on each other, near 1, and above it "
    "at the end. A falls below 1. Towards small t D rises above the right run, and B far above it.",
    caption="The noise in the corners of x_t. The network is told t, and expects 1.",
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# - **A** takes $\beta_t$ for $\sqrt{\beta_t}$. Since $\beta_t < 1$, too little noise is added, and the log falls below 1. The images are bold and like each other: the middle of the data.
# - **B** asks the network at $T-1-t$. Told that the noise is a nearly clean image, it takes nothing out. The log runs away, and the images are noise.
# - **C** adds noise at the last step. Its log lies on the right one, so every step but one is right. The grain lies over everything evenly, and some pixels are beyond 1, where no clipped $\hat x_0$ can be.
# - **D** uses the neighbouring $\bar\alpha$ when it makes $\hat x_0$. That level says "less noise than there is", so a part of the noise is taken for image, step by step, and the grain has grown into the strokes.
#
# </details>
#
# Now the code. In each, one expression is wrong. **Fix one**: copy it into a cell, mend it, and compare `run(your_step)[0]` with the first row.

# %% id=clinic-code
for name, step in BROKEN.items():
    print(f"# {name}\n{inspect.getsource(step)}")

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Noise at the last step.** Invisible with 1000 steps, plain with 20. Test with few steps.
# - **Clipping what has no bounds**: latents, points, a $v$-prediction's intermediate values. Clip $\hat x_0$ of pixels, never $x_t$.
# - **Tables in half precision.** $1 - \bar\alpha_t$ at small $t$ is a small difference of two numbers near 1. The tables here are float64, and the step works with Python floats.
# - **`leading` spacing.** With ten steps it starts the network at $t = 900$ while $x$ is pure noise: it is told a lie about the level. With `trailing` it is not.
# - **`eval()` and `no_grad()` forgotten.** Dropout is noise that nobody asked for; gradients fill the memory.

# %% [markdown] id=summary
# ## Summary
#
# - Algorithm 2: start from noise; at each step take the mean of eq. 11 and add $\sigma_t z$; at the last step add nothing.
# - For Gaussian data the true variance of a step back is $\beta_t V_{t-1}/V_t$. It is $\beta_t$ for unit Gaussian data and $\tilde\beta_t$ for a point, and between them for data that vary less than the unit Gaussian, as pixels in $[-1, 1]$ do.
# - The last mean is $\hat x_0$, so noise at the last step is noise in the image.
# - Clipping puts in what is known about pixels. A good network hardly needs it, a bad one does.
# - With fewer steps every formula holds with $\beta = 1 - \bar\alpha_t/\bar\alpha_{\text{prev}}$ (IDDPM eq. 19); what breaks is the Gaussian shape of a long step, and with $\sigma^2 = \beta$ the noise at the end.
# - $\hat x_0$ shows what is decided: coarse first, details last.
#
# Your functions are now `ddpm_from_scratch.schedulers.ddpm`. **Next:** lesson 08 gets from a thousand steps to ten.

# %% id=progress
progress("07")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 07}}
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: Ho algorithm 2 (sampling), eq. 7 and 11 (mean), section 3.2 (the two variances), section 3.3 (the last step without noise), section 4.3 and Ho eq. 16 (progressive generation).
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: IDDPM eq. 19 (strided schedules).
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: table 1 (few steps).
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed* (2024), arXiv 2305.08891: table 2 (spacings).
# - C. Saharia et al., *Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding* (2022), arXiv 2205.11487: section 2.3 (dynamic thresholding).
