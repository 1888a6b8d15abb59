# %% [markdown] id=title
# # 08 · DDIM sampling
#
# **Can ten steps do the work of a thousand?** About 60 minutes: half of it reading, the rest four exercises and a bug clinic. What is marked *Going deeper*, two more exercises among it, is not counted, and nothing later needs it.
#
# The sampler of lesson 07 asks the network a thousand times for one image. This lesson asks it ten times, with *the same network*: nothing is trained again. That is possible
# because training never fixed how to walk back. It fixed less than you may think, and DDIM uses the freedom that is left.
#
# **You will build** the module `ddpm_from_scratch.schedulers.ddim`: the noise of a step, the step, the list of timesteps, clipping, and the loop.
#
# **Afterwards you can**
#
# - prove that a whole family of processes has the same marginals (Song lemma 1), and why one trained network serves them all (Song theorem 1);
# - write the DDIM step (Song eq. 12) with any amount of noise, from none ($\eta = 0$) to DDPM's ($\eta = 1$, Song eq. 16), and show that the latter *is* DDPM;
# - choose which timesteps to visit, and say what goes wrong when the step does not go to the next one of them;
# - read the DDIM paper without falling into its notation trap;
# - say when "less noise is better with few steps" holds, when it does not, and show both.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson. Those of lessons 01 to 07 are used as they were.
#
# {{notation 08}}
#
# **Beware:** the DDIM paper writes $\alpha_t$ for our $\bar\alpha_t$. Every equation below is in *our* notation; the section *The notation trap* has the table. As before, $t$ counts from 1 in
# formulas and from 0 in code, and the clean end has $\bar\alpha = 1$. "Prev" is the step moved to, which need not be $t-1$.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import inspect
import math
from collections.abc import Callable

import torch
from IPython.display import Markdown, display
from torch import Tensor

from ddpm_from_scratch import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    few_steps,
    gaussian,
    schedules,
)
from ddpm_from_scratch.course import (
    check,
    hint,
    plots,
    progress,
    setup,
    solution,
    thousand_steps,
    widgets,
)
from ddpm_from_scratch.data import to_pixels
from ddpm_from_scratch.reference import classify, shipped_classifier

setup("08")
torch.set_num_threads(1)  # the images here are small: a second thread would only wait

betas = schedules.linear(T=1000)
alpha_bar = schedules.alpha_bars(betas)
pipeline = DDIMPipeline.from_pretrained("digits")
pipeline.set_progress_bar_config(disable=True)
unet = pipeline.unet.eval()


def level(t):
    """ᾱ at timestep t, where -1 stands for the clean end."""
    return float(alpha_bar[t]) if t >= 0 else 1.0


# %% [markdown] id=claim
# ## Ten steps
#
# Here are samples of one network, from the same eight noises. Three samplers, which keep these names in the whole lesson:
#
# | | fresh noise in a step | also known as |
# |---|---|---|
# | $\eta = 0$ | none | DDIM in the narrow sense |
# | $\eta = 1$ | $\sigma^2 = \tilde\beta$ | DDPM with lesson 07's smaller variance (`fixed_small`) |
# | $\hat\sigma$ | $\sigma^2 = \beta$ | DDPM with its larger variance (`fixed_large`) |
#
# Each with ten steps, and below with all thousand (made beforehand by `python -m ddpm_from_scratch.course.thousand_steps`, since a thousand steps take a while).
#
# > **Predict before you run.** With a hundredth of the steps, what will go wrong: blurred images, noisy ones, or wrong digits? In which of the three?

# %% id=hero
thousand = thousand_steps.load_images()
rows = {}
for name, stored_row in thousand_steps.SAMPLERS.items():
    rows[f"{name}\n10 steps"] = thousand_steps.samples(unet, stored_row[0], 10)
    rows[f"{name}\n1000 steps"] = thousand[stored_row]
plots.image_grid(
    torch.cat(list(rows.values())),
    8,
    row_labels=list(rows),
    alt="Six rows of eight pictures, two for each sampler: ten steps and a thousand. In five rows "
    "smooth digits, a few of them misshapen, most of these at eta 0 with a thousand steps; the digits of sigma-hat with ten steps are covered with coarse noise.",
    caption="The same network and the same eight starting noises, none left out.",
)

# %% [markdown] id=hero-answer
# <details><summary>Answer</summary>
#
# Only $\hat\sigma$'s ten steps leave noise in the images. $\eta = 0$ and $\eta = 1$ give digits without a trace of it, and $\eta = 1$ *is* a DDPM. So it is not DDPM as such that leaves noise in ten steps, but the larger of its two variances. Whether $\eta = 0$ is better still than $\eta = 1$ cannot be seen in eight images:
# that takes figures (*Ten steps against a thousand, in figures*).
#
# (That the digits are others with ten steps than with a thousand has two reasons. With $\eta = 1$ and $\hat\sigma$ it is the steps' noise; with $\eta = 0$, which has none, it is the clipping, and so are the misshapen ones of its thousand steps: see *Clipping*.)
#
# </details>

# %% [markdown] id=freedom
# ## What training fixed
#
# Look at the training loss of lesson 03 once more, with any positive weights $\gamma_t$ (Song eq. 5):
#
# $$
# \begin{aligned}
# L_\gamma(\varepsilon_\theta) &= \sum_{t=1}^T \gamma_t\; \mathbb E_{x_0, \varepsilon}\left[\lVert \varepsilon_\theta(x_t, t) - \varepsilon\rVert^2\right] \\
# x_t &= \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon \quad\text{(Song eq. 4)}
# \end{aligned}
# $$
#
# ($L_{\text{simple}}$ has all $\gamma_t = 1$.) It contains $q(x_t \mid x_0)$, one $t$ at a time. It never looks at two neighbours $x_{t-1}, x_t$ together. So the network cannot know *how*
# the noise came in. **Every process with these marginals $q(x_t \mid x_0)$ would have trained the same network.** The Markov chain of lesson 01 is one of them. Are there others, and better ones to walk back?
#
# ## The family
#
# ### Which steps back keep the marginals?
#
# Suppose $x_0$ is known and $x_t \sim \mathcal N(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t) I)$. Look for a step of the simplest form, linear in what is known, plus fresh noise $z$:
#
# $$x_{\text{prev}} = a\,x_0 + b\,x_t + \sigma z, \qquad z \sim \mathcal N(0, I) \text{ independent of } x_t, \quad b \ge 0 .$$
#
# It must end in $\mathcal N(\sqrt{\bar\alpha_{\text{prev}}}\,x_0,\ (1-\bar\alpha_{\text{prev}}) I)$. Compare means and variances:
#
# $$
# \begin{aligned}
# \text{mean:} && a + b\sqrt{\bar\alpha_t} &= \sqrt{\bar\alpha_{\text{prev}}} \\
# \text{variance:} && b^2 (1-\bar\alpha_t) + \sigma^2 &= 1-\bar\alpha_{\text{prev}}
# \end{aligned}
# $$
#
# Two equations, three unknowns: **one number is free**. Let it be $\sigma$. The second equation gives $b$, the first then $a$:
#
# $$b = \sqrt{\frac{1-\bar\alpha_{\text{prev}}-\sigma^2}{1-\bar\alpha_t}}, \qquad a = \sqrt{\bar\alpha_{\text{prev}}} - b\sqrt{\bar\alpha_t} .$$
#
# Put them in and sort by $b$:
#
# $$x_{\text{prev}} = \sqrt{\bar\alpha_{\text{prev}}}\,x_0 + \sqrt{1-\bar\alpha_{\text{prev}}-\sigma^2}\;\frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}} + \sigma z$$
#
# As a distribution, this is Song eq. 7. The fraction is the $\varepsilon$ that is in $x_t$. So a step back says: *the clean image at its new level, plus the old noise, scaled down, plus some fresh noise*.
# Any $\sigma$ from 0 to $\sqrt{1-\bar\alpha_{\text{prev}}}$, *the room that is there for noise*, keeps the marginals.
#
# ### The whole process
#
# The paper defines a process from its end (Song eq. 6), with one $\sigma_t$ for each step:
#
# $$
# \begin{aligned}
# q_\sigma(x_{1:T} \mid x_0) &= q_\sigma(x_T \mid x_0)\prod_{t=2}^T q_\sigma(x_{t-1} \mid x_t, x_0) \\
# q_\sigma(x_T \mid x_0) &= \mathcal N(\sqrt{\bar\alpha_T}\,x_0,\ (1-\bar\alpha_T) I)
# \end{aligned}
# $$
#
# $$
# \begin{aligned}
# &q_\sigma(x_{t-1} \mid x_t, x_0) = \mathcal N\bigg(\sqrt{\bar\alpha_{t-1}}\,x_0 \\
# &\qquad {}+ \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}},\ \sigma_t^2 I\bigg)
# \end{aligned} \tag{Song 7}
# $$
#
# Its steps *forward*, $q_\sigma(x_t \mid x_{t-1}, x_0)$, follow from Bayes (Song eq. 8). They look at $x_0$ too: the process is in general *not* a Markov chain. Nobody needs them.
#
# ## Lemma 1: the marginals hold
#
# **In words.** However the $\sigma_t$ are chosen within the room, $0 \le \sigma_t \le \sqrt{1-\bar\alpha_{t-1}}$, each $x_t$ by itself is distributed as in lesson 01. **Song lemma 1:** $q_\sigma(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t)I)$ for all $t$.
#
# **Proof**, by induction from $t = T$ down.
#
# *Start.* For $t = T$ it is the definition.
#
# *Step.* Let it hold at $t$. Then we may write $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon$ with $\varepsilon \sim \mathcal N(0, I)$. Draw $x_{t-1}$ from Song eq. 7, that is, take its mean and add $\sigma_t z$ with a fresh
# $z \sim \mathcal N(0, I)$. In the mean stands
#
# $$\frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}} = \frac{\sqrt{1-\bar\alpha_t}\;\varepsilon}{\sqrt{1-\bar\alpha_t}} = \varepsilon,$$
#
# so
#
# $$x_{t-1} = \sqrt{\bar\alpha_{t-1}}\,x_0 + \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\varepsilon + \sigma_t z .$$
#
# With $x_0$ fixed, this is a constant plus two independent Gaussians. So it is Gaussian, its mean is the constant $\sqrt{\bar\alpha_{t-1}}\,x_0$, and the variances add up:
#
# $$(1-\bar\alpha_{t-1}-\sigma_t^2) + \sigma_t^2 = 1-\bar\alpha_{t-1} .$$
#
# That is the statement at $t-1$. $\blacksquare$
#
# Now by numbers. First exactly: mean and variance through all 1000 steps, for four choices of the $\sigma_t$. Then by drawing.

# %% id=lemma
x0 = 0.7
prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
generator = torch.Generator().manual_seed(0)
most = (1 - prev) ** 0.5  # the largest σ allowed
choices = {
    "σ = 0": torch.zeros_like(prev),
    "σ of DDPM": gaussian.posterior_variance(alpha_bar, prev) ** 0.5,
    "the largest σ": most,
    "σ at random": most * torch.rand(1000, generator=generator, dtype=torch.float64),
}
for name, sigmas in choices.items():
    mean, variance, worst = level(999) ** 0.5 * x0, 1 - level(999), 0.0
    for t in range(999, -1, -1):
        now, before, sigma = level(t), level(t - 1), float(sigmas[t])
        b = (max(1 - before - sigma**2, 0.0) / (1 - now)) ** 0.5
        a = before**0.5 - b * now**0.5
        mean, variance = a * x0 + b * mean, b**2 * variance + sigma**2
        worst = max(worst, abs(mean - before**0.5 * x0), abs(variance - (1 - before)))
    print(f"{name:<14} largest deviation from the marginals over 1000 steps: {worst:.0e}")
    assert worst < 1e-12

n = 100_000
visited = [999, 750, 500, 250, 100, 20]
print(
    f"\nby {n:,} draws each, along t = {', '.join(map(str, visited))}; deviations in standard errors"
)
for share in (0.0, 0.5, 1.0):
    x = level(999) ** 0.5 * x0 + (1 - level(999)) ** 0.5 * torch.randn(
        n, generator=generator, dtype=torch.float64
    )
    off = []
    for t, t_prev in zip(visited, visited[1:], strict=False):
        sigma = share * (1 - level(t_prev)) ** 0.5
        eps = gaussian.eps_from_x0(x, torch.tensor(x0), level(t))
        x = gaussian.ddim_mean(torch.tensor(x0), eps, level(t_prev), sigma)
        x = x + sigma * torch.randn(n, generator=generator, dtype=torch.float64)
        true_mean, true_variance = level(t_prev) ** 0.5 * x0, 1 - level(t_prev)
        off.append(float((x.mean() - true_mean) / (true_variance / n) ** 0.5))
        off.append(float((x.var() - true_variance) / (true_variance * (2 / n) ** 0.5)))
    print(f"σ = {share:.1f} of the largest: " + " ".join(f"{value:+.1f}" for value in off))
    assert max(map(abs, off)) < 4.5  # 30 comparisons: a false alarm once in 5,000 seeds
print("(at σ = 0 all pairs are alike: the first draw's ε is used again in every step)")

# %% [markdown] id=paths-predict
# So all these processes look alike at every single $t$. They differ in how the points are *joined*.
#
# > **Predict before you run.** Data are $+1$ and $-1$, half each. Draw forty paths of $q_\sigma$ from $t = T$ to 0 with $\sigma = 0$, with half of DDPM's $\sigma$ and with all of it. What will the paths at $\sigma = 0$ look like? ("Half" and "all" of DDPM's $\sigma$ are called $\eta = 0.5$ and $\eta = 1$ below.)

# %% id=paths
paths, steps = 40, list(range(999, -1, -20))
sign = torch.where(torch.arange(paths) % 2 == 0, 1.0, -1.0)
start = torch.randn(paths, generator=torch.Generator().manual_seed(1))
with plots.figure(
    columns=3,
    height=2.9,
    sharey=True,
    alt="Three panels of forty paths from pure noise at the left to +1 and -1 at the right. At eta 0 the paths are smooth curves. At eta 0.5 they are rough, at eta 1 very rough. "
    "In all three, the cloud of points has the same width at every t.",
    caption="One colour per x_0. At every t the three clouds have the same distribution (lemma 1); the paths through them do not.",
) as axes:
    for ax, eta in zip(axes, (0.0, 0.5, 1.0), strict=True):
        generator = torch.Generator().manual_seed(2)
        x, trace = gaussian.q_sample(sign, start, level(999)), []
        for t, t_prev in zip(steps, [*steps[1:], -1], strict=True):
            trace.append(x)
            sigma = gaussian.ddim_sigma(level(t), level(t_prev), eta)
            eps = gaussian.eps_from_x0(x, sign, level(t))
            x = gaussian.ddim_mean(sign, eps, level(t_prev), sigma) + sigma * torch.randn(
                paths, generator=generator
            )
        if eta == 0:
            drift = max(
                float((gaussian.eps_from_x0(y, sign, level(t)) - start).abs().max())
                for y, t in zip(trace, steps, strict=True)
            )
        lines = torch.stack(trace)
        for k, colour in ((0, plots.BLUE), (1, plots.ORANGE)):
            ax.plot(
                steps,
                lines[:, k::2].numpy(),
                color=colour,
                linewidth=0.8,
                linestyle="-",
                alpha=0.8,
            )
        ax.set(title=f"η = {eta:g}", xlabel="timestep t", xlim=(1000, 0))
print(f"at η = 0 the noise in x_t is the same all along a path, to {drift:.0e}")
assert drift < 1e-4

# %% [markdown] id=paths-answer
# <details><summary>Answer</summary>
#
# Smooth curves. With $\sigma = 0$ nothing random happens after $x_T$: the old $\varepsilon$ is used again in every step, and the whole path is $\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ with *one* $\varepsilon$.
# A smooth path can be followed in long strides; a rough one cannot.
#
# </details>
#
# **Why steps at all?** In these pictures $x_0$ is known, and then a single stride from $T$ to 0 lands exactly. A sampler does not know it. The best that a network can say is the *mean* of all $x_0$ that are still possible, and this mean changes along the path: at first it is the middle of the data, at the end it is one of them.
# A step goes straight for the mean that held at its beginning. So a long deterministic step goes wrong even with a perfect network, by what $\hat x_0$ would still have changed on the way. For the same data, $\pm 1$, the perfect network is known (lesson 03): $\hat x_0 = \tanh\!\big(\sqrt{\bar\alpha_t}\,x_t/(1-\bar\alpha_t)\big)$.


# %% id=mean-paths
def perfect_x0(x, t):
    """E[x_0 | x_t] for data +1 and -1."""
    return torch.tanh(level(t) ** 0.5 * x / (1 - level(t)))


def follow(x, visited):
    """States and predicted x_0 at each of `visited`, at η = 0, and where the path ends."""
    states, means = [], []
    for t, t_prev in zip(visited, [*visited[1:], -1], strict=True):
        states.append(x)
        means.append(perfect_x0(x, t))
        eps = gaussian.eps_from_x0(x, means[-1], level(t))
        x = gaussian.ddim_mean(means[-1], eps, level(t_prev))
    return torch.stack(states), torch.stack(means), x


starts = torch.tensor([-1.6, -0.8, -0.25, -0.08, 0.1, 0.3, 0.9, 1.7])
long, fine = list(range(999, 0, -200)), list(range(999, -1, -1))
(states, means, ends), (few_states, _, few_ends) = (
    follow(starts, fine),
    follow(starts, long),
)
for name, x in (("1000 steps", ends), ("5 steps", few_ends)):
    print(f"{name:<11} end at " + " ".join(f"{value:+.3f}" for value in x.tolist()))
with plots.figure(
    columns=2,
    height=3.0,
    alt="Two panels over t, from noise at the left to data at the right. Left, predicted x_0: eight "
    "curves that start near 0 and part to +1 and -1. Right, the states: eight smooth curves, and "
    "dashed lines with dots for five steps, which leave the curves where these bend.",
    caption="A perfect network, η = 0. Left, what it predicts along eight paths. Right, the "
    "paths in a thousand steps (solid) and in five (dashed).",
) as (left, right):
    left.plot(fine, means.numpy(), color=plots.BLUE, linestyle="-", linewidth=1.4)
    right.plot(fine, states.numpy(), color=plots.BLUE, linestyle="-", linewidth=1.4)
    right.plot(
        [*long, 0],
        torch.cat([few_states, few_ends[None]]).numpy(),
        "o--",
        color=plots.VERMILION,
        linewidth=1.2,
        markersize=3.5,
    )
    left.set(title="predicted $x_0$", xlabel="timestep t", xlim=(1000, 0))
    right.set(title="$x_t$", xlabel="timestep t", xlim=(1000, -8))
assert (ends.abs() - 1).abs().max() < 0.01 < (few_ends.abs() - 1).abs().max()

# %% [markdown] id=theorem
# ## Theorem 1: one network for all of them
#
# **In words.** For every choice of the $\sigma_t > 0$ there is a bound to train with, as in lesson 03. Each of these bounds is the loss that we have used all along, with other weights on the $t$, plus a constant. So the network is trained already.
#
# **The model.** To walk back one needs $x_0$, and does not have it. Use what the network thinks it is (Song eq. 9, the same as Ho eq. 15):
#
# $$\hat x_0(x_t, t) = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}$$
#
# and put it into Song eq. 7 in the place of $x_0$ (Song eq. 10): $p_\theta(x_{t-1} \mid x_t) = q_\sigma\big(x_{t-1} \mid x_t, \hat x_0(x_t, t)\big)$ for $t > 1$, and
# $p_\theta(x_0 \mid x_1) = \mathcal N(\hat x_0(x_1, 1),\ \sigma_1^2 I)$ at the end.
#
# **The theorem.** Let $J_\sigma(\varepsilon_\theta) = \mathbb E_{q_\sigma}\big[\log q_\sigma(x_{1:T} \mid x_0) - \log p_\theta(x_{0:T})\big]$ be the bound of lesson 03 for this process (Song eq. 11). For all $\sigma_t > 0$ (within the room of lemma 1 for $t > 1$) there are weights $\gamma_t$ and a constant $C$ with
#
# $$\boxed{J_\sigma = L_\gamma + C}\qquad\text{(Song theorem 1)}$$
#
# $$
# \begin{aligned}
# \gamma_t &= \frac{a_t^2}{2\sigma_t^2}\cdot\frac{1-\bar\alpha_t}{\bar\alpha_t} \\
# a_t &= \sqrt{\bar\alpha_{t-1}} - \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\sqrt{\frac{\bar\alpha_t}{1-\bar\alpha_t}}\quad\text{for } t > 1,\ a_1 = 1
# \end{aligned}
# $$
#
# **Why, in three lines.** $J_\sigma$ is, but for its two ends, a sum of KLs between two steps of eq. 7, one with $x_0$ and one with $\hat x_0$. They have the same variance, so each KL is a squared distance of means, hence of $x_0$ and $\hat x_0$, hence of $\varepsilon$ and $\varepsilon_\theta$. What is left is a mean over $x_t$ one $t$ at a time, and by lemma 1 that is the mean in $L_\gamma$, whatever the $\sigma$s.
#
# The best answer at each $t$ is $\mathbb E[\varepsilon \mid x_t]$ for any weights (lesson 03, *What a perfect network says*). So the network that $L_{\text{simple}}$ aims at is the best one for *every* $\sigma$. (For a network of limited size, the weights decide which $t$ it is careful about.)
#
# **And $\sigma = 0$?** Lemma 1 allows it, from 0 to the most there is room for; theorem 1 wants $\sigma_t > 0$, since a KL of two spikes is infinite. $\eta = 0$, and the last step with its $\sigma_1 = 0$ in eq. 16 below, are limits: the best $\varepsilon_\theta$ is the same for every $\sigma > 0$, however small, and the step itself goes over smoothly.
#
# <details><summary>Going deeper: the algebra, step by step</summary>
#
# *The bound.* Both $q_\sigma$ (Song eq. 6) and $p_\theta$ are products, so the logarithm is a sum, and the steps already face the same way:
#
# $$
# \begin{aligned}
# J_\sigma = \mathbb E_{q_\sigma}\Big[&\underbrace{\log\frac{q_\sigma(x_T \mid x_0)}{p(x_T)}}_{\text{no } \theta} \\
# &{}+ \sum_{t>1} \mathrm{KL}\big(q_\sigma(x_{t-1} \mid x_t, x_0)\,\|\,q_\sigma(x_{t-1} \mid x_t, \hat x_0)\big) - \log p_\theta(x_0 \mid x_1)\Big]
# \end{aligned}
# $$
#
# *Each KL is a squared error of ε.* The two Gaussians in a KL have the same variance $\sigma_t^2$, so (refresher D) it is the squared distance of their means, over $2\sigma_t^2$. The means are one formula with $x_0$ and with $\hat x_0$ in it. The coefficient of $x_0$ there is the $a$ of *Which steps back keep the marginals?*:
#
# $$\mathrm{KL} = \frac{a_t^2}{2\sigma_t^2}\,\lVert x_0 - \hat x_0\rVert^2$$
#
# $x_0$ and $\hat x_0$ both solve $x_t = \sqrt{\bar\alpha_t}\,(\cdot) + \sqrt{1-\bar\alpha_t}\,(\cdot)$, one with $\varepsilon$, the other with $\varepsilon_\theta$. Subtract: $x_0 - \hat x_0 = \sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}\,(\varepsilon_\theta - \varepsilon)$. Hence
#
# $$\mathrm{KL} = \gamma_t\,\lVert \varepsilon_\theta(x_t, t) - \varepsilon\rVert^2, \qquad \gamma_t = \frac{a_t^2}{2\sigma_t^2}\cdot\frac{1-\bar\alpha_t}{\bar\alpha_t} .$$
#
# For $t = 1$, $-\log p_\theta(x_0 \mid x_1)$ is $\lVert x_0 - \hat x_0\rVert^2/(2\sigma_1^2)$ plus a constant: the same form with $a_1 = 1$.
#
# *The mean over $x_t$.* All that is left is a mean over $x_t$, one $t$ at a time. By lemma 1 it is the mean over $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$, whatever the $\sigma$s. That is the mean in $L_\gamma$. $\blacksquare$
#
# </details>
#
# Check that each KL is $\gamma_t$ times a squared error of $\varepsilon$, at all $t > 1$ and for three amounts of noise:

# %% id=theorem-check
t = torch.arange(1, 1000)
now, before = alpha_bar[t], prev[t]
generator = torch.Generator().manual_seed(3)
x0_, eps, guess = torch.randn(3, len(t), generator=generator, dtype=torch.float64)
x_t = gaussian.q_sample(x0_, eps, now)
for eta in (0.1, 0.5, 1.0):
    sigma = gaussian.ddim_sigma(now, before, eta)
    x0_hat = gaussian.x0_from_eps(x_t, guess, now)
    true_step = gaussian.ddim_mean(x0_, gaussian.eps_from_x0(x_t, x0_, now), before, sigma)
    model_step = gaussian.ddim_mean(x0_hat, guess, before, sigma)
    log_variance = 2 * sigma.log()
    kl = gaussian.normal_kl(true_step, log_variance, model_step, log_variance)
    a = before**0.5 - (1 - before - sigma**2) ** 0.5 * (now / (1 - now)) ** 0.5
    gamma = a**2 / (2 * sigma**2) * (1 - now) / now
    apart = float((kl - gamma * (guess - eps) ** 2).abs().max() / kl.max())
    print(
        f"η = {eta:.1f}: KL against γ_t (ε_θ - ε)², largest difference over 999 steps {apart:.0e}\n"
        f"{'':<9}γ at t = 10, 100, 900: "
        + ", ".join(f"{float(gamma[s - 1]):.2g}" for s in (10, 100, 900))
    )
    assert apart < 1e-9
ho = betas[t] ** 2 / (
    2 * gaussian.posterior_variance(now, before) * (1 - betas[t]) * (1 - now)
)
print(
    f"at η = 1 the weights are those of Ho eq. 12: {float((gamma / ho - 1).abs().max()):.0e}"
)
assert torch.allclose(gamma, ho, rtol=1e-8)

# %% [markdown] id=sampler
# ## The sampler
#
# Draw from the model $p_\theta$ of theorem 1. The fraction in Song eq. 7, with $\hat x_0$ in it, is $\varepsilon_\theta$ itself. So one step is (Song eq. 12)
#
# $$\boxed{x_{\text{prev}} = \sqrt{\bar\alpha_{\text{prev}}}\;\underbrace{\frac{x_t - \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta}{\sqrt{\bar\alpha_t}}}_{\text{predicted } x_0} + \underbrace{\sqrt{1-\bar\alpha_{\text{prev}}-\sigma_t^2}\;\varepsilon_\theta}_{\text{direction pointing to } x_t} + \underbrace{\sigma_t\, z}_{\text{fresh noise}}}$$
#
# One network call, three terms. With $\sigma_t = 0$ it is *DDIM*, deterministic: the same $x_T$ always gives the same image.
#
# ### One knob for the noise
#
# A single number $\eta$ sets all the $\sigma_t$ (Song eq. 16):
#
# $$\sigma_t(\eta) = \eta\,\sqrt{\frac{1-\bar\alpha_{\text{prev}}}{1-\bar\alpha_t}}\,\sqrt{1-\frac{\bar\alpha_t}{\bar\alpha_{\text{prev}}}}$$

# %% exercise 08.1
# Write $\sigma_t(\eta)$. This is what `gaussian.ddim_sigma` becomes.

# %% exercise 08.2
# Write Song eq. 12. Use the finished functions of `gaussian` for $\hat x_0$ and $\sigma$. When you are right, ten of your steps turn noise into digits.

# %% [markdown] id=eta-one
# ### η = 1 is DDPM
#
# $1-\bar\alpha_t/\bar\alpha_{\text{prev}}$ is the $\beta$ of the stride. From here on $\alpha_t = \bar\alpha_t/\bar\alpha_{\text{prev}}$ and $\beta_t = 1 - \alpha_t$ are those of the *stride* that begins at $t$; where $\text{prev} = t-1$ they are lesson 01's. So $\sigma_t(1)^2 = \frac{1-\bar\alpha_{\text{prev}}}{1-\bar\alpha_t}\,\beta_t = \tilde\beta_t$,
# the variance of lesson 03's posterior. Its mean fits too: with $\sigma^2 = \tilde\beta_t$, the coefficients of $x_0$ and $x_t$ are
#
# $$a = \frac{\sqrt{\bar\alpha_{\text{prev}}}\,\beta_t}{1-\bar\alpha_t}, \qquad b = \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{\text{prev}})}{1-\bar\alpha_t},$$
#
# the two coefficients of Ho eq. 7. So **DDPM is the member $\eta = 1$ of the family**.
#
# <details><summary>The algebra</summary>
#
# Under the root of the second term of eq. 12 stands
#
# $$
# \begin{aligned}
# 1-\bar\alpha_{\text{prev}}-\tilde\beta_t &= (1-\bar\alpha_{\text{prev}})\left(1 - \frac{\beta_t}{1-\bar\alpha_t}\right) \\
# &= (1-\bar\alpha_{\text{prev}})\,\frac{\alpha_t - \bar\alpha_t}{1-\bar\alpha_t} = \frac{\alpha_t\,(1-\bar\alpha_{\text{prev}})^2}{1-\bar\alpha_t},
# \end{aligned}
# $$
#
# using $1-\beta_t = \alpha_t$ and $\bar\alpha_t = \alpha_t\bar\alpha_{\text{prev}}$. Its root, divided by $\sqrt{1-\bar\alpha_t}$, is the coefficient $b$ of $x_t$. Then $b\sqrt{\bar\alpha_t} = \sqrt{\bar\alpha_{\text{prev}}}\,\alpha_t(1-\bar\alpha_{\text{prev}})/(1-\bar\alpha_t)$, and
#
# $$a = \sqrt{\bar\alpha_{\text{prev}}} - b\sqrt{\bar\alpha_t} = \sqrt{\bar\alpha_{\text{prev}}}\;\frac{1-\bar\alpha_t - \alpha_t + \bar\alpha_t}{1-\bar\alpha_t} = \frac{\sqrt{\bar\alpha_{\text{prev}}}\,\beta_t}{1-\bar\alpha_t} .$$
#
# </details>
#
# With the package's two schedulers, from one seed:

# %% id=eta-one-check
settings = {"clip_sample": False}
ddpm, ddim = (
    DDPMScheduler(variance_type="fixed_small", **settings),
    DDIMScheduler(**settings),
)


def stand_in(x, t):
    """Any function will do in the place of a network."""
    return torch.sin(3 * x) + x * t / 1000


for count in (10, 50, 1000):
    ends = []
    for scheduler, options in ((ddpm, {}), (ddim, {"eta": 1.0})):
        scheduler.set_timesteps(count)
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(
                stand_in(x, t), t, x, generator=generator, **options
            ).prev_sample
        ends.append(x)
    apart = float((ends[0] - ends[1]).abs().max() / ends[0].abs().max())
    print(
        f"{count:>4} steps: DDPM fixed_small against DDIM with η = 1, relative difference at the end {apart:.0e}"
    )
    assert apart < 1e-9

# %% [markdown] id=sigma-hat
# ### One step beyond: σ̂
#
# The larger variance of DDPM, $\sigma^2 = \beta_t$, is for a stride $\hat\sigma_t = \sqrt{1-\bar\alpha_t/\bar\alpha_{\text{prev}}}$, more than $\sigma_t(1)$. The *mean* stays Ho's posterior mean, that of $\eta = 1$: near the clean end, eq. 12 with $\hat\sigma$ in it would have the root of a negative number (the lines marked below). So $\hat\sigma$ is no member of the family. With a thousand steps the two differ near the clean end alone. With ten:

# %% id=sigma-table
print("ten steps, leading                fresh noise that is added         room for noise")
print("step            σ(η = 0.5)        σ(η = 1)        σ̂                √(1 - ᾱ_prev)")
visited = [*range(900, -1, -100), -1]
for t, t_prev in zip(visited, visited[1:], strict=False):
    now, before = level(t), level(t_prev)
    half, full = (gaussian.ddim_sigma(now, before, eta) for eta in (0.5, 1.0))
    hat = (1 - now / before) ** 0.5
    mark = (
        "  <- more than the room"
        if hat > (1 - before) ** 0.5 and t_prev >= 0
        else ""
    )
    print(
        f"{t:>3} → {t_prev:<3}       {half:<18.4f}{full:<16.4f}{hat:<18.4f}{(1 - before) ** 0.5:.4f}{mark}"
    )
    assert full <= (1 - before) ** 0.5

# %% [markdown] id=sigma-hat-note
# $\sigma(1)$ always fits into the room that lemma 1 leaves. $\hat\sigma$ does not: near the end of ten steps it adds far more noise than the network at the next timestep expects, and nothing later removes it. That is the grain in $\hat\sigma$'s row of ten steps at the
# top. (The last step is an exception in every sampler: no noise is added there.)

# %% [markdown] id=trap
# ## The notation trap
#
# | | here, and Ho | Song (DDIM paper) | Diffusers |
# |---|---|---|---|
# | share of variance that *one* step keeps | $\alpha_t = 1-\beta_t$ | $\alpha_t/\alpha_{t-1}$ | `alphas` |
# | share of variance left after *all* steps | $\bar\alpha_t = \prod_{s \le t} \alpha_s$ | $\alpha_t$ | `alphas_cumprod` |
# | the jump, Song eq. 4 | $x_t = \sqrt{\bar\alpha_t}\,x_0$ $+ \sqrt{1-\bar\alpha_t}\,\varepsilon$ | $x_t = \sqrt{\alpha_t}\,x_0$ $+ \sqrt{1-\alpha_t}\,\varepsilon$ | `add_noise` |
# | the step moved to | $\bar\alpha_{\text{prev}}$ | $\alpha_{\tau_{i-1}}$ | `alpha_prod_t_prev` |
# | the clean end | $\bar\alpha_0 = 1$ | $\alpha_0 = 1$ | `final_alpha_cumprod` |
#
# Whoever types Song eq. 12 from the paper into a program whose table `alphas` holds $1-\beta_t$ gets no error message. What one gets:
#
# > **Predict before you run.** With $\alpha_t = 1-\beta_t$ in the place of $\bar\alpha_t$, all levels are 0.98 or more. What will eq. 12 do to pure noise?

# %% id=trap-run
alphas = 1 - betas
generator = torch.Generator().manual_seed(thousand_steps.SEED)
same_noises = torch.randn(
    8, 1, 16, 16, generator=generator
)  # those of the pictures at the top
outcome = {}
with torch.no_grad():
    for name, table in (("ᾱ", alpha_bar), ("α", alphas)):
        x = same_noises[:6]
        for t, t_prev in zip(visited, visited[1:], strict=False):
            now, before = float(table[t]), float(table[t_prev]) if t_prev >= 0 else 1.0
            eps = unet(x, t).sample
            x = gaussian.ddim_mean(gaussian.x0_from_eps(x, eps, now), eps, before)
        outcome[name] = x
        print(
            f"levels from table {name}: first {float(table[900]):.4f}, then {float(table[800]):.4f}; the samples' standard deviation {x.std():.2f}"
        )
plots.image_grid(
    torch.cat(list(outcome.values())),
    6,
    row_labels=["with ᾱ", "with α"],
    alt="Two rows of six pictures. With alpha-bar: digits. With alpha: noise that looks untouched.",
    caption="The trap. The second row is what eq. 12 makes when the paper's α is read as Ho's.",
)

# %% [markdown] id=trap-answer
# <details><summary>Answer</summary>
#
# Next to nothing. The steps believe that $x_t$ is almost clean already, and remove the little noise that such a state would have. The image stays noise. (If your samples look untouched: look at the first level. At the noisy end it must be near 0.)
#
# </details>

# %% exercise 08.3
# You have a table from a program that follows the DDIM paper: its `alphas` are Song's $\alpha_1, \dots, \alpha_T$. Compute Ho's $\beta_t$ from it.

# %% [markdown] id=subsequences
# ## Subsequences
#
# Where did the derivation use that the step before $t$ is $t - 1$? Nowhere. Song eq. 7 and lemma 1 contain two levels, and hold for any two. So choose any falling list of timesteps $\tau$, walk along it (Song section 4.2), and ask the network only there.
# It was trained at every $t$, and $x_t$ is distributed as in training (lemma 1), as far as $\hat x_0$ is right.
#
# Which ones? Lesson 07's three customs (Lin et al. 2024, table 2; there too $n$ is the number of steps, $S$ in Song), and a fourth from the paper:
#
# - **leading**: $0, \lfloor T/n\rfloor, 2\lfloor T/n\rfloor, \dots$ Contains $t = 0$. Starts below $T-1$: with ten steps, the network is told that pure noise is $x_{900}$.
# - **trailing**: $T-1$, then down in strides of $T/n$, each rounded. Starts in pure noise.
# - **linspace**: both ends, evenly spaced between them.
# - **quadratic**: $\tau_i \propto i^2$, denser at the clean end. The paper uses it for CIFAR-10 (Song appendix D.2). It is given to `set_timesteps` as a list.

# %% exercise 08.4
# *Going deeper.* Near 0 the squares lie so close that many of them round to the same timestep. Write the quadratic list so that none is taken twice.

# %% id=spacing
# finished functions, so that nothing below depends on your answers
from ddpm_from_scratch.course.exercises.l07 import spaced_timesteps as spaced
from ddpm_from_scratch.course.exercises.l08 import quadratic_timesteps as quadratic

tables = {name: spaced(10, 1000, name) for name in ("leading", "trailing", "linspace")}
for name, table in tables.items():
    scheduler = DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == table
tables["quadratic"] = quadratic(1000, 10)
scheduler = DDIMScheduler()
scheduler.set_timesteps(timesteps=tables["quadratic"])
for name, table in tables.items():
    print(f"{name:<10}", " ".join(f"{t:>4}" for t in table))

log_snr = schedules.log_snr(alpha_bar)
with plots.figure(
    7,
    2.6,
    alt="Four rows of ten dots over the log-SNR. Leading is dense at the noisy end and has one large gap at the clean end. Trailing starts further in the noise and stops before that gap. Linspace "
    "is like leading, with both ends. Quadratic is spread more evenly.",
    caption="Where ten steps ask the network. In log-SNR, which measures how hard the task is, evenly spaced timesteps leave a wide gap near the clean end, or stop before it; quadratic ones leave a smaller one.",
) as ax:
    for row, table in enumerate(tables.values()):
        ax.plot(
            log_snr[table].numpy(),
            [-row] * len(table),
            "o-",
            color=plots.COLOURS[row],
            linewidth=1,
        )
    ax.set(
        yticks=[0, -1, -2, -3],
        yticklabels=list(tables),
        xlabel="log-SNR: noise at the left, image at the right",
        ylim=(-3.6, 0.6),
    )

# %% [markdown] id=previous
# ### The step must go to the next entry
#
# Diffusers' `DDIMScheduler` computes the step moved to as `t - T // n`. For leading spacing this is the next entry. For the other two it often is not: then the noise left in $x$ belongs to one timestep, and the network is told another. This course's scheduler goes to the
# next entry of `timesteps`. What the two rules make, with the exact $\varepsilon^*$ of lesson 03's mixture, whose spots have a known width:

# %% id=previous-table
from ddpm_from_scratch.course.exercises.l03 import CENTRES, STDS, WEIGHTS
from ddpm_from_scratch.course.exercises.l03 import mixture_eps as exact_eps

weights, centres, stds = (part.double() for part in (WEIGHTS, CENTRES, STDS))


def walk(x, table, following, levels=level):
    """Deterministic steps from each entry of `table` to the entry of `following` beside it."""
    for t, t_prev in zip(table, following, strict=True):
        eps = exact_eps(x, levels(t), weights, centres, stds)
        x = gaussian.ddim_mean(gaussian.x0_from_eps(x, eps, levels(t)), eps, levels(t_prev))
    return x


def radius(points):
    """Mean distance to the nearest centre, in standard deviations of its component."""
    return float(((points[:, None] - centres).norm(dim=-1) / stds).min(dim=1).values.mean())


cloud = torch.randn(
    2000, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64
)
true_radius = math.sqrt(math.pi / 2)
print(
    f"mean distance of the samples from the nearest centre; true: {true_radius:.2f} standard deviations"
)
print("spacing     n      T/n      T//n     next entry    t - T//n")
for spacing, n in (("linspace", 60), ("linspace", 300), ("trailing", 300)):
    table = spaced(n, 1000, spacing)
    ours = radius(walk(cloud, table, [*table[1:], -1]))
    theirs = radius(walk(cloud, table, [max(t - 1000 // n, -1) for t in table]))
    print(f"{spacing:<12}{n:<7}{1000 / n:<9.2f}{1000 // n:<9}{ours:<14.3f}{theirs:.3f}")
assert abs(ours - true_radius) < 0.06 < abs(theirs - true_radius)

# %% [markdown] id=previous-note
# With the next entry, more steps bring the spots nearer to their true width. With `t - T // n` they do not: every step stops short of the next timestep, the network is told of less noise than there is, and some of it stays in the sample. More steps do not mend that.
#
# Beware of the first line. At $n = 60$ the wrong rule comes out *nearer* to the truth. Two errors cancel there: steps that are still long make the spots too narrow, as the right rule shows, and the noise left over widens them. With more steps the first error goes away and the second stays.

# %% [markdown] id=clipping
# ## Clipping
#
# At large $t$, $\hat x_0$ is a small difference divided by a small $\sqrt{\bar\alpha_t}$, and often leaves $[-1, 1]$; no image is out there. Clip it (`clip_sample=True`). But then $\hat x_0$ and $\varepsilon_\theta$ no longer fit together: $\sqrt{\bar\alpha_t}\,\hat x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon_\theta$ is not
# $x_t$ any more. DDPM does not notice, since Ho eq. 7 uses $\hat x_0$ and $x_t$. DDIM uses $\hat x_0$ and $\varepsilon$: one may keep the network's $\varepsilon$, as Diffusers does by default and so does this course, or derive the $\varepsilon$ that fits the clipped $\hat x_0$ (`use_clipped_model_output=True`).
#
# Keep $\varepsilon$, and let the step have no length at all, $\bar\alpha_{\text{prev}} = \bar\alpha_t$ and $\sigma = 0$. The result should be $x_t$. It is
#
# $$\sqrt{\bar\alpha_t}\,\mathrm{clip}(\hat x_0) + \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta = x_t - \sqrt{\bar\alpha_t}\,\big(\hat x_0 - \mathrm{clip}(\hat x_0)\big),$$
#
# a move that does not shrink with the step. More steps repeat it more often.
#
# > **Predict before you run.** $\eta = 0$, the eight noises of the top, with 10, 100 and 1000 steps. At the top, with $\varepsilon$ kept, a thousand steps ended in other digits than ten. Will they with the other two ways, not clipped and $\varepsilon$ re-derived? And with $\varepsilon$ kept, do a hundred steps suffice for it?

# %% id=clipping-check
stored = thousand_steps.load()
apart = {(row["sampler"], row["steps"]): row["distance"] for row in stored["rows"]}
counts = (10, 100, 1000)
print("root mean square distance from ten steps that are not clipped, η = 0")
print(f"{'steps':<26}" + "".join(f"{count:>9}" for count in counts))
for way in thousand_steps.WAYS:
    print(f"{way:<26}" + "".join(f"{apart[way, count]:>9.3f}" for count in counts))
print(f"made by `{stored['command']}`\non {stored['machine']}")
print(
    f"in {sum(row['minutes'] for row in stored['rows']):.0f} minutes; model {stored['model']}, weights {stored['model_hash']}"
)
plots.image_grid(
    torch.cat(
        [
            thousand["not clipped", 10],
            thousand["clipped, ε kept", 100],
            *(thousand[way, 1000] for way in thousand_steps.WAYS),
        ]
    ),
    8,
    row_labels=[
        "not clipped\n10 steps",
        "clipped, ε kept\n100 steps",
        *(f"{way}\n1000 steps" for way in thousand_steps.WAYS),
    ],
    alt="Five rows of eight digits from the same noises. All but the fourth show the same eight digits. In the fourth, clipped with epsilon kept and a thousand steps, most are other shapes.",
    caption="η = 0 from the same eight noises. One row has gone elsewhere.",
)

start = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(6))
ends = {}
runs = {
    "DDPM fixed_small": (DDPMScheduler(), {}),
    "η = 1, ε kept": (DDIMScheduler(), {"eta": 1.0}),
    "η = 1, ε re-derived": (
        DDIMScheduler(),
        {"eta": 1.0, "use_clipped_model_output": True},
    ),
}
print("\nten steps, clipped, from one seed")
for name, (scheduler, options) in runs.items():
    scheduler.set_timesteps(10)
    generator, x = torch.Generator().manual_seed(7), start
    for t in scheduler.timesteps.tolist():
        with torch.no_grad():
            x = scheduler.step(
                unet(x, t).sample, t, x, generator=generator, **options
            ).prev_sample
    ends[name] = x
    print(
        f"{name:<20} largest difference from DDPM {float((x - ends['DDPM fixed_small']).abs().max()):.0e}"
    )
assert (ends["η = 1, ε re-derived"] - ends["DDPM fixed_small"]).abs().max() < 5e-3
assert (ends["η = 1, ε kept"] - ends["DDPM fixed_small"]).abs().max() > 1e-3

# %% [markdown] id=clipping-answer
# <details><summary>Answer</summary>
#
# No: not clipped, or with $\varepsilon$ re-derived, a thousand steps end in the digits of ten; the distance settles, and more steps change details. With $\varepsilon$ kept it grows with the steps: at a hundred it is twice that of the other two, but the digits are still those of ten; at a thousand most are others. So a thousand steps of $\eta = 0$ end in other images than ten, as at the top of this lesson, and not because ten were too few. Where the map from $x_T$ to $x_0$ matters (lesson 09), do not clip, or re-derive $\varepsilon$.
#
# The last lines say the same of $\eta = 1$: with clipping on, it equals DDPM only if $\varepsilon$ is derived anew from the clipped $\hat x_0$.
#
# </details>

# %% exercise 08.5
# *Going deeper.* Write the way that derives $\varepsilon$ anew.

# %% [markdown] id=loop
# ## The loop
#
# All pieces are there. The loop is eight lines, and has two places to stumble over: what comes after the last timestep, and what the network is told.

# %% exercise 08.6
# Write it. When you are right, your loop samples lesson 03's mixture in ten steps, without a network.

# %% [markdown] id=figures
# ## Ten steps against a thousand, in figures
#
# First the paper's own figures (Song table 1, CIFAR-10, FID, lower is better), then ours: the Fréchet distance (lesson 11) between the images that a model makes and its training images, seen by a small classifier. Few samples bias it upwards, the more the fewer they are: compare cells of the same number of samples, never one table with another.
# Ours are two: one of the `digits` model of this lesson, one of `fashion` (28×28 pixels), trained far longer, its rows of $\eta$ sampled without clipping, with 5,000 samples a cell but 1,000 at $S = 1000$: compare within a column there. They took longer than a notebook may, so they are stored, with all that is needed to repeat them. Lesson 11 says how such a figure and its interval come about.
#
# > **Predict before you run.** In the paper, which row wins at $S = 10$, and which at $S = 1000$?

# %% id=figures-run
from ddpm_from_scratch.course.stored import stored_table

table, fashion_table = stored_table("digits_few_steps"), stored_table("fashion_few_steps")
heads = "| | " + " | ".join(f"S = {steps}" for steps in few_steps.PAPER_STEPS) + " |"
paper = [
    f"| {few_steps.row_title(row)} | " + " | ".join(f"{value:g}" for value in values) + " |"
    for row, values in few_steps.PAPER.items()
]
pieces = [
    "**Song, table 1, CIFAR-10: FID**",
    "\n".join([heads, "|---" * (len(few_steps.PAPER_STEPS) + 1) + "|", *paper]),
    "**This course, digits: Fréchet distance**",
    table.grid("frechet"),
    table.origin(),
    "**This course, fashion: Fréchet distance**",
    fashion_table.grid("frechet"),
    fashion_table.origin(),
]
display(Markdown("\n\n".join(pieces)))
for place, steps in enumerate(few_steps.PAPER_STEPS):
    best = min(few_steps.PAPER, key=lambda row: few_steps.PAPER[row][place])
    print(f"paper, S = {steps:>4}: lowest {few_steps.row_title(best)}")

# %% [markdown] id=figures-intervals
# Is the lowest figure of a column really the lowest? Here are the digits. Each figure has a 95 % bootstrap interval. Where two intervals do not overlap, the difference is there; where they do, one table does not settle it (though a difference can be real where they just overlap). And some cells were made three times, with three seeds: a difference that comes back with every seed counts more than any one figure.

# %% id=figures-compare
samplers = {"η = 0": "0", "η = 1": "1", "σ̂": few_steps.SIGMA_HAT}
for steps in table.columns:
    found = {name: table.result(row, steps) for name, row in samplers.items()}
    figures = {name: one.figures for name, one in found.items() if one is not None}
    best = min(figures, key=lambda name: figures[name].frechet)
    level_with = [
        name
        for name, f in figures.items()
        if name != best and f.frechet_low <= figures[best].frechet_high
    ]
    print(
        f"S = {steps:<5}"
        + "   ".join(
            f"{name} {f.frechet:5.2f} [{f.frechet_low:.2f}, {f.frechet_high:.2f}]"
            for name, f in figures.items()
        )
    )
    print(
        f"         lowest {best}; "
        + (
            f"{' and '.join(level_with)} within the intervals"
            if level_with
            else "clear of the others"
        )
    )
few, most = table.columns[0], table.columns[-1]
print(f"\nS = {few} against S = {most}")
for name, row in samplers.items():
    ends = [table.result(row, steps) for steps in (few, most)]
    if all(ends):
        a, b = (one.figures for one in ends)
        clear = a.frechet_low > b.frechet_high or b.frechet_low > a.frechet_high
        print(
            f"{name:<6} {a.frechet:5.2f} [{a.frechet_low:.2f}, {a.frechet_high:.2f}]  {b.frechet:5.2f} [{b.frechet_low:.2f}, {b.frechet_high:.2f}]  "
            + ("the intervals are apart" if clear else "within the intervals")
        )
print("\nthree seeds")
repeated = sorted(
    {one.cell.steps for one in table.results if one.cell.seed != table.results[0].cell.seed}
)
for steps in repeated:
    zero, one = (sorted(table.of_all_seeds(row, steps)) for row in ("0", "1"))
    order = "lower" if zero[-1] < one[0] else "higher" if zero[0] > one[-1] else ""
    print(
        f"S = {steps:<5}η = 0: {', '.join(f'{v:.2f}' for v in zero)}   η = 1: {', '.join(f'{v:.2f}' for v in one)}\n"
        f"{'':<9}"
        + (
            f"every seed of η = 0 is {order} than every seed of η = 1"
            if order
            else "the seeds overlap"
        )
    )

# %% [markdown] id=figures-fashion-text
# And the same comparison, of $\eta = 0$ with $\eta = 1$, on `fashion`:

# %% id=figures-fashion
for steps in fashion_table.columns:
    zero, one = (fashion_table.result(row, steps).figures for row in ("0", "1"))
    clear = zero.frechet_high < one.frechet_low or one.frechet_high < zero.frechet_low
    print(
        f"S = {steps:<5}η = 0 {zero.frechet:.2f} [{zero.frechet_low:.2f}, {zero.frechet_high:.2f}]   "
        f"η = 1 {one.frechet:.2f} [{one.frechet_low:.2f}, {one.frechet_high:.2f}]   "
        + ("the intervals are apart" if clear else "within the intervals")
    )
    seeds = {row: sorted(fashion_table.of_all_seeds(row, steps)) for row in ("0", "1")}
    if len(seeds["0"]) > 1:
        print(
            "         three seeds: "
            + "   ".join(f"η = {row} {', '.join(f'{v:.2f}' for v in found)}" for row, found in seeds.items())
        )

# %% id=figures-live
classifier, real = shipped_classifier("digits")
print("ten steps, live, 128 samples each")
for name, (way, _) in thousand_steps.SAMPLERS.items():
    images = thousand_steps.samples(unet, way, 10, 128)
    features, logits = classify(classifier, to_pixels(images))
    sure = (logits.double().softmax(dim=1).amax(dim=1) > 0.9).double()
    error = 1.96 * float(sure.std() / len(sure) ** 0.5)
    print(f"{name:<6} recognised with confidence {sure.mean():4.0%} ± {error:.0%}")
print(f"real test digits: {float(real.confident_share):.0%}")

# %% [markdown] id=figures-reading
# <details><summary>Answer, and how to read the lines above</summary>
#
# In the paper $\eta = 0$ has the lowest FID at $S = 10$, and $\hat\sigma$ the lowest of the whole table at $S = 1000$: the order turns round.
#
# In ours of the digits, read the words, not the second decimal. At $S = 10$ $\hat\sigma$ is far above the other two, as in the paper. Between $\eta = 0$ and $\eta = 1$ the intervals overlap at ten steps, and only the seeds together speak for one of them. At fifty steps compare the seeds again: less noise need not be better there.
#
# The lines *S against S* (digits) ask the question of the title, but where a row of $\eta$ has drifted (third error of the next section) they are a trap: ten steps of $\eta = 0$ come out *better* than a thousand. Compare with $S = 50$ instead: there both rows of $\eta$ are lower than at ten, with every seed. So ten steps come near, and do not do the whole work. For $\hat\sigma$, which does not drift, ten are far from a thousand.
#
# On `fashion` $\eta = 0$ is lower than $\eta = 1$ up to fifty steps: at ten clear of the intervals, at fifty with every seed. At twenty the intervals overlap, and there is one seed only. At a hundred and at a thousand $\eta = 1$ has the lower figure; the intervals overlap, and there is one seed, so this is not settled either. And fifty steps of either are far better than ten. (That both are higher at a thousand than at a hundred says nothing: the samples are fewer. Lesson 11 has a measure for that.) $\hat\sigma$ comes from far above down to the level of the other two, though not below both of them, as in the paper.
#
# The share that is recognised with confidence is another measure, and it need not agree. It asks whether each image is a plain digit; the Fréchet distance asks whether the images together are *spread* like the real ones. A sampler that draws plain and similar digits gains in the one and loses in the other. Here too the ± tells whether there is anything to explain.
#
# </details>

# %% [markdown] id=when
# ### When does the claim hold?
#
# "Less noise is better with few steps" is a claim about *few steps*, and in the paper's table it holds there. At $S = 1000$ the lowest FID of the paper, 3.17, is that of $\hat\sigma$, the sampler with the most noise. Three errors compete.
#
# - **The error of long steps.** The deterministic path is smooth and forgives them; noise that does not fit does not. This decides at small $S$.
# - **The error of the network.** A deterministic sampler carries every wrong answer along to the end. Fresh noise hides part of it: each step pulls $x_t$ back towards the distribution that the network knows. This decides at large $S$, and the worse the network, the earlier.
# - **The drift of a clipped $\hat x_0$ with $\varepsilon$ kept** (*Clipping*). It grows with the number of steps, most at $\eta = 0$, where no fresh noise takes it back. Our table of the digits was made with this default; the paper's DDIM and our table of `fashion` do not clip. So where a row of $\eta$ rises again towards $S = 1000$, that is no sign that more steps are worse as such. (The figures of *Clipping* show it without a judge.)
#
# Our two tables differ in the model, in clipping, in precision and in the number of samples, so side by side they do not tell these errors apart; lesson 11 has both models under the same conditions. Where the turn lies, at which $S$ and whether at all, depends on network, data, spacing, clipping and measure. Measure it, with intervals and more than one seed. Nothing here was tuned to make the claim hold.

# %% [markdown] id=strip
# ## The same noise, the same image
#
# > **Predict before you run.** The same $x_T$ with 5, 10, 20, 50 and 100 steps, nothing clipped. At $\eta = 0$ and at $\eta = 1$: which images stay the same?

# %% id=strip-run
counts = (5, 10, 20, 50, 100)
strips = {0.0: [], 1.0: []}
for eta, strip in strips.items():
    for count in counts:
        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(count)
        generator, x = torch.Generator().manual_seed(12), same_noises[:3]
        for t in scheduler.timesteps.tolist():
            with torch.no_grad():
                eps = unet(x, t).sample
            x = scheduler.step(eps, t, x, eta=eta, generator=generator).prev_sample
        strip.append(x.clamp(-1, 1))
for eta, strip in strips.items():
    gaps = [thousand_steps.distance(images, strip[-1]) for images in strip[:-1]]
    print(
        f"η = {eta:g}, root mean square difference from {counts[-1]} steps: "
        + ", ".join(f"{count}: {gap:.2f}" for count, gap in zip(counts, gaps, strict=False))
    )
plots.image_grid(
    torch.cat([torch.stack(strip, dim=1).flatten(0, 1) for strip in strips.values()]),
    len(counts),
    titles=[f"{count} steps" for count in counts],
    row_labels=["η = 0"] * 3 + ["η = 1"] * 3,
    alt="Six rows of five digits, over 5, 10, 20, 50 and 100 steps. The three rows of eta 0 keep "
    "their shape from column to column, but that in the second a closed ring opens at the top right between 5 and 20 steps. In the rows of eta 1 the shape is another one in almost every column.",
    caption="Each row starts from one x_T; the same three noises for both η.",
)

# %% [markdown] id=strip-answer
# <details><summary>Answer</summary>
#
# Those of $\eta = 0$. They all follow the same smooth path, with more or less care, so $x_T$ decides what the image shows: it is a *code* of the image, and lesson 09 reads and writes it. At $\eta = 1$ the steps' noise decides nearly everything, and $x_T$ next to nothing; lesson 09 measures it.
#
# </details>

# %% [markdown] id=explorer
# ## Going deeper: explore
#
# Two samplers side by side, from the same noise. Choose sampler, steps, $\eta$, spacing and seed, press *Sample*, then play or drag the step (or click it and use the arrow keys): above the state $x_t$, below the image $\hat x_0$ that the network sees in it.
#
# Try: the same sampler twice with different spacing. DDIM with $\eta = 0$ against $\eta = 0.2$. And: at which step does $\hat x_0$ decide on a digit? Guess, then look at the figures of the next cell.

# %% id=sampler-explorer
widgets.sampler_explorer(unet, pipeline.scheduler)

# %% id=decides
assert thousand_steps.distance(strips[0.0][1], strips[0.0][-1]) < 0.2  # of the strips above
scheduler = DDIMScheduler()
scheduler.set_timesteps(20)
x, seen = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(21)), {}
for t in scheduler.timesteps.tolist():
    with torch.no_grad():
        out = scheduler.step(unet(x, t).sample, t, x)
    x = out.prev_sample
    shown = out.pred_original_sample.clamp(-1, 1)
    seen[t] = classify(classifier, to_pixels(shown))[1].argmax(dim=1)
final = seen[0]
share = {t: float((digit == final).double().mean()) for t, digit in seen.items()}
print(
    "η = 0, 20 steps: share of 32 images whose predicted x_0 already shows the final digit"
)
print("t       " + "".join(f"{t:>6}" for t in list(share)[::2]))
print("share   " + "".join(f"{share[t]:>6.0%}" for t in list(share)[::2]))
settled = max(t for t in share if all(share[s] >= 0.9 for s in share if s <= t))
print(f"from t = {settled} on, at least 90 % show it")

# %% [markdown] id=decides-answer
# <details><summary>Answer</summary>
#
# Not at one step. At the largest $t$ the guess is near the mean of all digits, and a classifier's reading of it is little better than chance. Then the shapes part, as in the left panel of *Why steps at all?*, in some images earlier than in others, and nearly all are settled at the $t$ printed above, the last few somewhat later. After that only strokes change.
#
# </details>

# %% [markdown] id=clinic
# ## Bug clinic
#
# A learner's sampler with $\eta = 1$ and 20 steps. It runs without an error message, but look at its images. Here are the step, the log and the curve: the mean of $x_t^2$ on the way, beside what lemma 1 promises, $\bar\alpha_t\,\mathbb E[x_0^2] + 1 - \bar\alpha_t$.


# %% id=clinic-run
def learner_step(x_t, eps, noise, t, t_prev, eta):
    now, before = level(t), level(t_prev)
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta)
    direction = (1 - before) ** 0.5 * eps
    return before**0.5 * x0 + direction + sigma * noise


@torch.no_grad()
def run(step, eta=1.0, count=8):
    """Digits made by `step` in twenty steps, and the mean of x_t² at every timestep visited."""
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(count, 1, 16, 16, generator=generator)
    energy = []
    for t, t_prev in zip(twenty, [*twenty[1:], -1], strict=True):
        energy.append(float(x.square().mean()))
        noise = torch.randn(x.shape, generator=generator)
        x = step(x, unet(x, t).sample, noise, t, t_prev, eta)
    return x, energy


twenty = spaced(20, 1000, "trailing")
power = float(thousand["not clipped", 1000].square().mean())  # E[x_0²] of finished digits
promised = [level(t) * power + 1 - level(t) for t in twenty]
images, energy = run(learner_step)
print("t        mean of x_t²    promised")
for i in (0, 1, 5, 9, 13, 16, 19):
    print(f"{twenty[i]:<9}{energy[i]:<16.3f}{promised[i]:.3f}")
plots.curves(
    torch.tensor(twenty),
    {"promised": torch.tensor(promised), "this run": torch.tensor(energy)},
    "timestep t (sampling runs from right to left)",
    "mean of $x_t^2$",
    alt="Two curves over t that start together at t = 999 and part at once. The promised one falls slowly towards the left; the run's has a high hump.",
    caption="What lemma 1 promises, and what this run has. Read it from right to left.",
)
plots.image_grid(
    images,
    8,
    alt="Eight pictures of blotches in black, grey and white. No digit can be made out.",
    caption="Its images.",
)

# %% [markdown] id=clinic-questions
# Before you unfold the pointer:
#
# 1. Is the variance of $x_t$ too large or too small, and from which step on?
# 2. Would you see this bug at $\eta = 0$?
# 3. Which line is it? Change it in the cell above and run that cell again: the two curves should meet. (The next cell shows the images that should come out; it does not care whether you have mended yours.)
#
# <details><summary>A pointer</summary>
#
# Lemma 1 in one line: the variance of the old noise and the variance of the fresh noise add up to $1-\bar\alpha_{\text{prev}}$. Which of the learner's terms knows of the other?
#
# </details>


# %% id=clinic-fixed
def finished_step(x_t, eps, noise, t, t_prev, eta):
    now, before = level(t), level(t_prev)
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta)
    return gaussian.ddim_mean(x0, eps, before, sigma) + sigma * noise


def off(energy):
    """Largest distance from the promised curve."""
    return max(abs(e - p) for e, p in zip(energy, promised, strict=True))


mended, energy_mended = run(finished_step)
print(
    f"largest distance from the promised curve: learner_step as it stands {off(energy):.2f}"
)
print(
    f"                                          the finished step         {off(energy_mended):.2f}"
)
assert off(energy_mended) < 0.3
plots.image_grid(
    mended,
    8,
    alt="Eight digits without noise, one or two of them misshapen.",
    caption="The same noises, with the finished step.",
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# 1. Too large, from the first step on: every step adds $\sigma^2$ on top of a full $1-\bar\alpha_{\text{prev}}$.
# 2. No: with $\sigma = 0$ there is nothing to make room for. A bug that needs $\eta > 0$ is found only by a test with $\eta > 0$.
# 3. The direction. The learner forgot $\sigma^2$, which Song eq. 12 has under the root:
#
#    `direction = (1 - before - sigma**2) ** 0.5 * eps`
#
# </details>

# %% [markdown] id=wrong
# ## Going deeper: four more patients
#
# Four more samplers, each with one bug, 20 steps. They are hidden: look at the pictures and the log, not at the code. The log is the mean of $x_t^2$ over what lemma 1 promises; a right run stays near 1. A, B and C are run at $\eta = 0$, D at $\eta = 0.5$, with a right run of the same $\eta$ above.
#
# > **Before you unfold the answers:** one reads the table at index -1, one squares $\eta$, one goes to $t-1$ in place of the next entry of the list, and one leaves the noise of $t$ in. Which is which?

# %% id=gallery
from ddpm_from_scratch.course.exercises.l08 import BROKEN

patients = {"right, η = 0": run(finished_step, 0.0, 6)}
patients |= {name: run(BROKEN[name], 0.0, 6) for name in "ABC"}
patients |= {
    "right, η = 0.5": run(finished_step, 0.5, 6),
    "D": run(BROKEN["D"], 0.5, 6),
}
watched = (4, 8, 12, 16, 18, 19)
print(" " * 16 + "".join(f"t = {twenty[i]:<6}" for i in watched) + "end")
for name, (images, energy) in patients.items():
    ratios = [energy[i] / promised[i] for i in watched]
    ratios.append(float(images.square().mean()) / power)
    print(f"{name:<16}" + "".join(f"{ratio:<10.2f}" for ratio in ratios))
plots.image_grid(
    torch.cat([images for images, _ in patients.values()]),
    6,
    row_labels=list(patients),
    alt="Six rows of six pictures. Right, eta 0: digits, some misshapen. A: noise. "
    "B: noise, brighter in the middle, where strokes may be. C: noise. Right, eta 0.5, and D: digits, much like each other.",
    caption="Two right runs and four wrong ones, from the same noises.",
)

# %% [markdown] id=gallery-answers
# <details><summary>Answers</summary>
#
# - **A** goes from $t$ to $t - 1$ in place of the next entry of the list. Twenty of a thousand steps' noise is removed, but the network is told that all of it is.
# - **B** scales the old noise by $\sqrt{1-\bar\alpha_t}$: it leaves the noise of $t$ in, while the image is taken to the new level. The next step starts with this excess and adds its own, and the log climbs through most of the run.
# - **C** reads the table at index -1 in the last step. In Python that is the noisiest entry: the log is right up to the last state, and then the finished image is noised again, fully. (Where eq. 16 is in the loop, the package's `ddim_sigma` refuses such a step.)
# - **D** squares $\eta$. The images are fine! At 0.5 it samples with $\eta = 0.25$, which is a right sampler, but not the one asked for. Neither picture nor log shows it: compare $\sigma$ with eq. 16.
#
# </details>
#
# Now the code:

# %% id=gallery-code
for name, step in BROKEN.items():
    print(f"# {name}\n{inspect.getsource(step)}")

# %% [markdown] id=oracle
# ## Going deeper: how wrong are few steps? With the exact ε*
#
# With lesson 03's mixture the network is perfect, so every error is one of the steps. Two questions:
#
# 1. **Does each point arrive where it should?** At $\eta = 0$ the sampler is a map from $x_T$ to $x_0$. The reference is the same map in 2000 steps: every $1-\beta$ cut into two equal factors.
# 2. **Is the distribution right?** For any $\eta$: the mean distance between sorted samples and sorted true draws (along 8 directions), for five seeds. Even two sets of true draws are a little apart; that is the floor, a band here, since it too is different for every draw.
#
# > **Predict before you run.** With twice the steps, how much smaller is the error of a single point at $\eta = 0$: not at all, half, a quarter?

# %% id=oracle-run
from ddpm_from_scratch.course.exercises.l08 import ddim_sample as sample

counts, seeds = (5, 10, 20, 40, 80), range(5)
fine = schedules.alpha_bars((1 - (1 - betas) ** 0.5).repeat_interleave(2))
reference = walk(
    cloud[:500],
    range(1999, -1, -1),
    range(1998, -2, -1),
    lambda t: float(fine[t]) if t >= 0 else 1.0,
)
angle = torch.arange(8, dtype=torch.float64) * math.pi / 8
directions = torch.stack([angle.cos(), angle.sin()])


def true_draws(seed, n=2000):
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return centres[k] + stds[k, None] * noise


def apart_by_sorting(one, other):
    ours, theirs = ((points @ directions).sort(dim=0).values for points in (one, other))
    return float((ours - theirs).abs().mean())


def predict(x, t):
    return exact_eps(x, level(t), weights, centres, stds)


def with_sigma_hat(x, visited, noises):
    for t, t_prev, z in zip(visited, [*visited[1:], -1], noises, strict=True):
        x0 = gaussian.x0_from_eps(x, predict(x, t), level(t))
        mean = gaussian.posterior_mean(x, x0, level(t), level(t_prev))
        x = mean + (1 - level(t) / level(t_prev)) ** 0.5 * z if t_prev >= 0 else mean
    return x


def cloud_errors(visited, seed):
    """Distance from true draws of the samples of η = 0, η = 1 and σ̂, from the same noise."""
    generator = torch.Generator().manual_seed(100 + seed)
    x, *z = torch.randn(len(visited) + 1, 2000, 2, generator=generator, dtype=torch.float64)
    made = [sample(predict, x, visited, alpha_bar, eta, z) for eta in (0.0, 1.0)]
    made.append(with_sigma_hat(x, visited, z))
    return [apart_by_sorting(points, true_draws(seed)) for points in made]


floor = [apart_by_sorting(true_draws(seed), true_draws(50 + seed)) for seed in seeds]
by_point, by_cloud = [], []
print("        one point, η = 0          distribution, mean of five seeds")
print("steps   median error    ratio     η = 0     η = 1     σ̂")
for count in counts:
    visited = spaced(count, 1000, "leading")
    ends = walk(cloud[:500], visited, [*visited[1:], -1])
    by_point.append(float((ends - reference).norm(dim=1).median()))
    by_cloud.append([cloud_errors(visited, seed) for seed in seeds])
    ratio = f"{by_point[-2] / by_point[-1]:.1f}" if len(by_point) > 1 else ""
    means = torch.tensor(by_cloud[-1]).mean(dim=0).tolist()
    print(
        f"{count:<8}{by_point[-1]:<16.4f}{ratio:<10}"
        + "".join(f"{m:<10.3f}" for m in means)
    )
print(f"floor: two sets of true draws are {min(floor):.3f} to {max(floor):.3f} apart")
by_cloud = torch.tensor(by_cloud)  # (counts, seeds, samplers)
ten = by_cloud[counts.index(10)]
print("\nten steps, leading, seed by seed")
for name, values in zip(samplers, ten.T.tolist(), strict=True):
    print(f"{name:<6}" + "  ".join(f"{value:.3f}" for value in values))
assert (ten[:, 0] < ten[:, 1:].min(dim=1).values).all()

# %% id=oracle-picture
with plots.figure(
    columns=2,
    height=3.1,
    alt="Two panels over the number of steps, both axes logarithmic. Left: the error of a point "
    "falls along a nearly straight line. Right: the distances of the three samplers fall with the "
    "steps towards a grey band. Eta 0 is lowest at 5, 10 and 20 steps; at 40 the three are level, and at 80 eta 0 is a little above the other two.",
    caption="Left, where single points land. Right, the distribution, mean of five seeds; grey, "
    "how far apart sets of true draws are.",
) as (left, right):
    plots.draw_curves(
        left,
        torch.tensor(counts),
        {"median error of a point": torch.tensor(by_point)},
        "steps",
        "distance",
        yscale="log",
    )
    plots.draw_curves(
        right,
        torch.tensor(counts),
        dict(zip(samplers, by_cloud.mean(dim=1).T, strict=True)),
        "steps",
        "distance of distributions",
        yscale="log",
    )
    right.axhspan(min(floor), max(floor), color=plots.FAINT, alpha=0.3, linewidth=0)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.set_yticks(ticks := [0.02, 0.05, 0.1, 0.2, 0.4], [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()

# %% [markdown] id=oracle-answer
# <details><summary>Answer</summary>
#
# About half: the error is proportional to the length of a step (*first order*). Lesson 09 shows why: the deterministic step is an Euler step of a differential equation.
#
# The ten-step lines are the claim of the paper without any network in the way: with leading spacing, $\eta = 0$ is nearest to the truth, with every seed; then come $\eta = 1$ and $\hat\sigma$. At forty steps the advantage is gone, and at eighty the two samplers with noise are even a little nearer.
#
# The claim is one about spacing and measure too. With *trailing* spacing and this mixture, $\hat\sigma$ comes out lowest at few steps (replace `"leading"` above; the assertion at the end of the cell then fails, and the lines before it say why): at ten and twenty steps, long steps leave the spots too narrow (lesson 03), noise beyond the room widens them, and since trailing has no short step just before the end, a perfect $\varepsilon^*$ removes in one go all the noise that it sees.
#
# </details>

# %% [markdown] id=classics
# ## What could go wrong
#
# - **The noise of lesson 07 kept, and only the steps left out**: $\sigma$ must come from the two levels of the *stride*, not from the $\beta_t$ of one training step.
# - **$\alpha$ for $\bar\alpha$** (*The notation trap*), or one `cumprod` too many.
# - **A step to $t-1$, or to `t - T // n`**, where the list says otherwise; index -1 for the clean end.
# - **$\eta > 1$**: the room of lemma 1 may be too small, and the root of a negative number follows. The package refuses it.
# - **A comparison of samplers** with different clipping, different $x_T$, or one seed and no interval.
# - **Few steps on a schedule whose $\bar\alpha_T$ is not near 0, with leading spacing**: the first step is told the wrong level (lesson 02).

# %% [markdown] id=summary
# ## Summary
#
# - Training fixes the marginals $q(x_t \mid x_0)$ and nothing else. A family of processes shares them, with one free number $\sigma_t$ per step (Song eq. 6, 7; lemma 1).
# - Each of them with $\sigma_t > 0$ has a bound, and each bound is the known loss with other weights (theorem 1). One network serves them all.
# - One step: the predicted $x_0$ at its new level, the old noise scaled down, fresh noise (Song eq. 12). The variances of the two noises add up to $1-\bar\alpha_{\text{prev}}$.
# - $\eta$ goes from 0, deterministic, to 1, which is DDPM with $\tilde\beta$ (Song eq. 16). $\hat\sigma$ goes beyond, and does not fit long strides.
# - Any falling list of timesteps will do. A step goes to its next entry, and from the last one to $\bar\alpha = 1$.
# - Clipping with $\varepsilon$ kept moves the image in every step: at $\eta = 0$ it drifts as the steps get more.
# - Their $\alpha$ is our $\bar\alpha$.
# - Few steps: noise beyond the room does harm, and in the paper less noise is better throughout. Many steps: noise repairs what the network got wrong. Where the two meet depends on network, spacing, clipping and measure: measure, with intervals.
#
# Your functions are now `ddpm_from_scratch.gaussian` and `ddpm_from_scratch.schedulers.DDIMScheduler`. **Next:** lesson 09 reads the deterministic sampler as a map, and runs it backwards.

# %% id=progress
progress("08")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 08}}
#
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: eq. 4 (the jump), 5 ($L_\gamma$), 6 and 7 (the family), 8 (its forward process), 9 (predicted $x_0$), 10 and 11 (model and bound), 12 (the sampler), 16 ($\sigma(\eta)$); lemma 1,
#   theorem 1; section 4.2 (subsequences); appendix D.2 (quadratic ones); table 1.
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: eq. 7 (the posterior, here $\eta = 1$), 12 (weights), 15 ($\hat x_0$).
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed* (2024), arXiv 2305.08891: table 2 (spacings), and why the first timestep should be the last of training.
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: eq. 19 ($\beta$ of a strided schedule).
