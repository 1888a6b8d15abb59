# %% [markdown] id=title
# # 08 · DDIM sampling
#
# **Can ten steps do the work of a thousand?** About 60 minutes: half of it reading, half of it six exercises.
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
# - say when "DDIM is better with few steps" holds, when it does not, and show both.

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
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_from_scratch import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    gaussian,
    metrics,
    schedules,
)
from ddpm_from_scratch.course import (
    check,
    few_steps,
    hint,
    plots,
    progress,
    setup,
    solution,
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
# Here are samples of one network, from the same eight noises. Two samplers, ten steps each; below each row, the same sampler with all thousand steps (made beforehand by
# `python -m ddpm_from_scratch.course.few_steps`, since a thousand steps take a while).
#
# > **Predict before you run.** With a tenth or a hundredth of the steps, what will go wrong: blurred images, noisy ones, or wrong digits?

# %% id=hero
ten = {name: few_steps.samples(unet, name, 10) for name in ("η = 0", "η = 1", "σ̂")}
thousand = few_steps.load_images()
rows = {
    "DDIM (η = 0)\n10 steps": ten["η = 0"][:8],
    "DDIM (η = 0)\n1000 steps": thousand["η = 0"],
    "DDPM (σ² = β)\n10 steps": ten["σ̂"][:8],
    "DDPM (σ² = β)\n1000 steps": thousand["σ̂"],
}
plots.image_grid(
    torch.cat(list(rows.values())),
    8,
    row_labels=list(rows),
    alt="Four rows of eight digits. DDIM with ten steps and with a thousand: clear digits. DDPM "
    "with ten steps: the digits are covered with coarse noise. DDPM with a thousand steps: clear "
    "digits.",
    caption="The same network and the same eight starting noises. DDIM makes digits in ten steps; "
    "DDPM needs its thousand.",
)

# %% [markdown] id=hero-answer
# <details><summary>Answer</summary>
#
# DDPM's ten steps leave noise in the images. DDIM's ten steps give clean digits. Why, is the subject of this lesson. (That the digits of a row are others with ten steps than with a thousand has two
# reasons: the steps' noise in DDPM, and for DDIM the clipping, see *Clipping* below.)
#
# </details>

# %% [markdown] id=freedom
# ## What training fixed
#
# Look at the training loss of lesson 03 once more, with any positive weights $\gamma_t$ (Song eq. 5):
#
# $$L_\gamma(\varepsilon_\theta) = \sum_{t=1}^T \gamma_t\; \mathbb E_{x_0, \varepsilon}\left[\lVert \varepsilon_\theta(x_t, t) - \varepsilon\rVert^2\right], \qquad x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon \quad\text{(Song eq. 4)}$$
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
# Any $\sigma$ from 0 to $\sqrt{1-\bar\alpha_{\text{prev}}}$ will do.
#
# ### The whole process
#
# The paper defines a process from its end (Song eq. 6), with one $\sigma_t$ for each step:
#
# $$q_\sigma(x_{1:T} \mid x_0) = q_\sigma(x_T \mid x_0)\prod_{t=2}^T q_\sigma(x_{t-1} \mid x_t, x_0), \qquad q_\sigma(x_T \mid x_0) = \mathcal N(\sqrt{\bar\alpha_T}\,x_0,\ (1-\bar\alpha_T) I)$$
#
# $$q_\sigma(x_{t-1} \mid x_t, x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_{t-1}}\,x_0 + \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}},\ \sigma_t^2 I\right) \tag{Song 7}$$
#
# Its steps *forward*, $q_\sigma(x_t \mid x_{t-1}, x_0)$, follow from Bayes (Song eq. 8). They look at $x_0$ too: the process is in general *not* a Markov chain. Nobody needs them.
#
# ## Lemma 1: the marginals hold
#
# **In words.** However the $\sigma_t$ are chosen, each $x_t$ by itself is distributed as in lesson 01. **Song lemma 1:** $q_\sigma(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t)I)$ for all $t$.
#
# **Proof**, by induction from $t = T$ down.
#
# *Start.* For $t = T$ it is the definition.
#
# *Step.* Let it hold at $t$. Then we may write $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon$ with $\varepsilon \sim \mathcal N(0, I)$. Draw $x_{t-1}$ from Song eq. 7, that is, take its mean and add $\sigma_t z$ with a fresh
# $z \sim \mathcal N(0, I)$. In the mean stands
#
# $$\frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}} = \frac{\sqrt{1-\bar\alpha_t}\;\varepsilon}{\sqrt{1-\bar\alpha_t}} = \varepsilon, \qquad\text{so}\qquad x_{t-1} = \sqrt{\bar\alpha_{t-1}}\,x_0 + \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\varepsilon + \sigma_t z .$$
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

n = 200_000
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

# %% [markdown] id=paths-predict
# So all these processes look alike at every single $t$. They differ in how the points are *joined*.
#
# > **Predict before you run.** Data are $+1$ and $-1$, half each. Draw forty paths of $q_\sigma$ from $t = T$ to 0 with $\sigma = 0$, with half of DDPM's $\sigma$ and with all of it. What will the paths at $\sigma = 0$ look like?

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
# A smooth path can be followed in long strides; a rough one cannot. That is the idea of the whole lesson in one picture.
#
# </details>

# %% [markdown] id=theorem
# ## Theorem 1: one network for all of them
#
# **In words.** For every choice of the $\sigma_t > 0$ there is a bound to train with, as in lesson 03. Each of these bounds is the loss that we have used all along, with other weights on the $t$, plus a constant. So the network is trained already.
#
# ### Step 1: the model
#
# To walk back one needs $x_0$, and does not have it. Use what the network thinks it is (Song eq. 9, the same as Ho eq. 15):
#
# $$\hat x_0(x_t, t) = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}$$
#
# and put it into Song eq. 7 in the place of $x_0$ (Song eq. 10): $p_\theta(x_{t-1} \mid x_t) = q_\sigma\big(x_{t-1} \mid x_t, \hat x_0(x_t, t)\big)$ for $t > 1$, and
# $p_\theta(x_0 \mid x_1) = \mathcal N(\hat x_0(x_1, 1),\ \sigma_1^2 I)$ at the end.
#
# ### Step 2: the bound
#
# Song eq. 11 is the bound of lesson 03 for this process, $J_\sigma(\varepsilon_\theta) = \mathbb E_{q_\sigma}\big[\log q_\sigma(x_{1:T} \mid x_0) - \log p_\theta(x_{0:T})\big]$. Both are products (Song eq. 6 for $q_\sigma$), so the logarithm is a sum, and the steps already face the same way:
#
# $$J_\sigma = \mathbb E_{q_\sigma}\Big[\underbrace{\log\frac{q_\sigma(x_T \mid x_0)}{p(x_T)}}_{\text{no } \theta} + \sum_{t>1} \mathrm{KL}\big(q_\sigma(x_{t-1} \mid x_t, x_0)\,\|\,q_\sigma(x_{t-1} \mid x_t, \hat x_0)\big) - \log p_\theta(x_0 \mid x_1)\Big]$$
#
# ### Step 3: each KL is a squared error of ε
#
# The two Gaussians in a KL have the same variance $\sigma_t^2$, so (refresher D) it is the squared distance of their means, over $2\sigma_t^2$. The means are one formula with $x_0$ and with $\hat x_0$ in it. The coefficient of $x_0$ there is $a$ from above:
#
# $$\mathrm{KL} = \frac{a_t^2}{2\sigma_t^2}\,\lVert x_0 - \hat x_0\rVert^2, \qquad a_t = \sqrt{\bar\alpha_{t-1}} - \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\sqrt{\frac{\bar\alpha_t}{1-\bar\alpha_t}}$$
#
# $x_0$ and $\hat x_0$ both solve $x_t = \sqrt{\bar\alpha_t}\,(\cdot) + \sqrt{1-\bar\alpha_t}\,(\cdot)$, one with $\varepsilon$, the other with $\varepsilon_\theta$. Subtract: $x_0 - \hat x_0 = \sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}\,(\varepsilon_\theta - \varepsilon)$. Hence
#
# $$\mathrm{KL} = \gamma_t\,\lVert \varepsilon_\theta(x_t, t) - \varepsilon\rVert^2, \qquad \gamma_t = \frac{a_t^2}{2\sigma_t^2}\cdot\frac{1-\bar\alpha_t}{\bar\alpha_t} .$$
#
# For $t = 1$, $-\log p_\theta(x_0 \mid x_1)$ is $\lVert x_0 - \hat x_0\rVert^2/(2\sigma_1^2)$ plus a constant: the same form with $a_1 = 1$.
#
# ### Step 4: the mean over x_t
#
# All that is left is a mean over $x_t$, one $t$ at a time. By lemma 1 it is the mean over $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$, whatever the $\sigma$s. That is the mean in $L_\gamma$. Together:
#
# $$\boxed{J_\sigma = L_\gamma + C}$$
#
# This is Song theorem 1. The best answer at each $t$ is $\mathbb E[\varepsilon \mid x_t]$ for any weights (lesson 03, *What a perfect network says*). So the network that $L_{\text{simple}}$ aims at is the best one for *every* $\sigma$. (For a network
# of limited size, the weights decide which $t$ it is careful about. And $\sigma = 0$, where $\gamma$ is infinite, is a limit.) Check step 3 at all $t > 1$ and for three amounts of noise:

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
        f"η = {eta:.1f}: KL against γ_t (ε_θ - ε)², largest difference over 999 steps {apart:.0e};  γ at t = 10, 100, 900: "
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
# Draw from $p_\theta$ of step 1. The fraction in Song eq. 7, with $\hat x_0$ in it, is $\varepsilon_\theta$ itself. So one step is (Song eq. 12)
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
# $1-\bar\alpha_t/\bar\alpha_{\text{prev}}$ is the $\beta$ of the stride, so $\sigma_t(1)^2 = \frac{1-\bar\alpha_{\text{prev}}}{1-\bar\alpha_t}\,\beta_t = \tilde\beta_t$, the variance of lesson 03's posterior. Is the mean the posterior's too? Under the root of the second term stands
#
# $$1-\bar\alpha_{\text{prev}}-\tilde\beta_t = (1-\bar\alpha_{\text{prev}})\left(1 - \frac{\beta_t}{1-\bar\alpha_t}\right) = (1-\bar\alpha_{\text{prev}})\,\frac{\alpha_t - \bar\alpha_t}{1-\bar\alpha_t} = \frac{\alpha_t\,(1-\bar\alpha_{\text{prev}})^2}{1-\bar\alpha_t},$$
#
# using $1-\beta_t = \alpha_t$ and $\bar\alpha_t = \alpha_t\bar\alpha_{\text{prev}}$. Its root, divided by $\sqrt{1-\bar\alpha_t}$, is the coefficient $b$ of $x_t$:
#
# $$b = \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{\text{prev}})}{1-\bar\alpha_t}, \qquad a = \sqrt{\bar\alpha_{\text{prev}}} - b\sqrt{\bar\alpha_t} = \sqrt{\bar\alpha_{\text{prev}}}\;\frac{1-\bar\alpha_t - \alpha_t + \bar\alpha_t}{1-\bar\alpha_t} = \frac{\sqrt{\bar\alpha_{\text{prev}}}\,\beta_t}{1-\bar\alpha_t} .$$
#
# (In $a$, $b\sqrt{\bar\alpha_t} = \sqrt{\bar\alpha_{\text{prev}}}\,\alpha_t(1-\bar\alpha_{\text{prev}})/(1-\bar\alpha_t)$.) These are the two coefficients of Ho eq. 7. So **DDPM is the member $\eta = 1$ of the family**. With the package's two schedulers, from one seed:

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
# The DDPM paper's own runs for images used $\sigma^2 = \beta_t$ (`fixed_large`). For a stride this is $\hat\sigma_t = \sqrt{1-\bar\alpha_t/\bar\alpha_{\text{prev}}}$, larger than $\sigma_t(1)$. With a thousand steps the two hardly differ. With ten:

# %% id=sigma-table
print("ten steps, leading                fresh noise that is added         room for noise")
print("step            σ(η = 0.5)        σ(η = 1)        σ̂                √(1 - ᾱ_prev)")
visited = [*range(900, -1, -100), -1]
for t, t_prev in zip(visited, visited[1:], strict=False):
    now, before = level(t), level(t_prev)
    half, full = (gaussian.ddim_sigma(now, before, eta) for eta in (0.5, 1.0))
    hat = (1 - now / before) ** 0.5
    mark = (
        "  <- more than there is room for"
        if hat > (1 - before) ** 0.5 and t_prev >= 0
        else ""
    )
    print(
        f"{t:>3} → {t_prev:<3}       {half:<18.4f}{full:<16.4f}{hat:<18.4f}{(1 - before) ** 0.5:.4f}{mark}"
    )
    assert full <= (1 - before) ** 0.5

# %% [markdown] id=sigma-hat-note
# $\sigma(1)$ always fits into the room that lemma 1 leaves. $\hat\sigma$ does not: near the end of ten steps it adds far more noise than the network at the next timestep expects, and nothing later removes it. That is the grain in the third row of the picture at the
# top. (The last step is an exception in every sampler: no noise is added there.)

# %% [markdown] id=trap
# ## The notation trap
#
# | | here, and Ho | Song (DDIM paper) | Diffusers |
# |---|---|---|---|
# | share of variance that *one* step keeps | $\alpha_t = 1-\beta_t$ | $\alpha_t/\alpha_{t-1}$ | `alphas` |
# | share of variance left after *all* steps | $\bar\alpha_t = \prod_{s \le t} \alpha_s$ | $\alpha_t$ | `alphas_cumprod` |
# | the jump, Song eq. 4 | $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ | $x_t = \sqrt{\alpha_t}\,x_0 + \sqrt{1-\alpha_t}\,\varepsilon$ | `add_noise` |
# | the step moved to | $\bar\alpha_{\text{prev}}$ | $\alpha_{\tau_{i-1}}$ | `alpha_prod_t_prev` |
# | the clean end | $\bar\alpha_0 = 1$ | $\alpha_0 = 1$ | `final_alpha_cumprod` |
#
# Who types Song eq. 12 from the paper into a program whose table `alphas` holds $1-\beta_t$ gets no error message. What one gets:
#
# > **Predict before you run.** With $\alpha_t = 1-\beta_t$ in the place of $\bar\alpha_t$, all levels are above 0.98. What will eq. 12 do to pure noise?

# %% id=trap-run
alphas = 1 - betas
generator = torch.Generator().manual_seed(few_steps.SEED)
same_noises = torch.randn(
    8, 1, 16, 16, generator=generator
)  # those of the pictures at the top
start = same_noises[:6]
outcome = {}
with torch.no_grad():
    for name, table in (("ᾱ", alpha_bar), ("α", alphas)):
        x = start
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
# Which ones? Three habits have names (Lin et al. 2024, table 2), and the paper adds a fourth:
#
# - **leading**: $0, \lfloor T/n\rfloor, 2\lfloor T/n\rfloor, \dots$ Contains $t = 0$. Starts below $T-1$: the network is told that pure noise is $x_{900}$.
# - **trailing**: $T-1$, then down in strides of $T/n$, each rounded. Starts in pure noise.
# - **linspace**: both ends, evenly spaced between them.
# - **quadratic**: $\tau_i \propto i^2$, denser at the clean end. The paper uses it for CIFAR-10. It is given to `set_timesteps` as a list.

# %% exercise 08.4
# Write the first three.

# %% id=spacing
# the finished functions of the exercises, so that nothing below depends on your answers
from ddpm_from_scratch.course.exercises.l08 import spaced_timesteps as spaced


def quadratic(n, T=1000):
    return [round((T - 1) * (i / (n - 1)) ** 2) for i in reversed(range(n))]


tables = {name: spaced(1000, 10, name) for name in ("leading", "trailing", "linspace")}
for name, table in tables.items():
    scheduler = DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == table
tables["quadratic"] = quadratic(10)
scheduler = DDIMScheduler()
scheduler.set_timesteps(timesteps=tables["quadratic"])
for name, table in tables.items():
    print(f"{name:<10}", " ".join(f"{t:>4}" for t in table))
try:
    scheduler.set_timesteps(timesteps=quadratic(50))
except ValueError as error:
    print(
        f"\nquadratic with 50 steps visits {quadratic(50)[-2:]} and is refused: {str(error)[:60]}"
    )

log_snr = schedules.log_snr(alpha_bar)
with plots.figure(
    7,
    2.6,
    alt="Four rows of ten dots over the log-SNR. Leading and trailing are dense at the noisy end and have one large gap at the clean end. Trailing starts further in the noise. Linspace "
    "is like leading, with both ends. Quadratic is spread more evenly.",
    caption="Where ten steps ask the network. In log-SNR, which measures how hard the task is, evenly spaced timesteps leave a wide gap near the clean end; quadratic ones do not.",
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
# next entry of `timesteps`. Both rules in numbers, and what they make, with the exact $\varepsilon^*$ of lesson 03's mixture:

# %% id=previous-table
from ddpm_from_scratch.course.exercises.l03 import CENTRES, STDS, WEIGHTS
from ddpm_from_scratch.course.exercises.l03 import mixture_eps as exact_eps

weights, centres, stds = (part.double() for part in (WEIGHTS, CENTRES, STDS))
n = 7
table = spaced(1000, n, "linspace")


def next_entries(table):
    return [*table[1:], -1]


def minus_stride(table):
    return [max(t - 1000 // len(table), -1) for t in table]


print(f"linspace, n = {n}, T//n = {1000 // n}")
print("visited t      next entry    its ᾱ       t - T//n    its ᾱ")
for t, right, other in zip(table, next_entries(table), minus_stride(table), strict=True):
    print(f"{t:<15}{right:<14}{level(right):<12.5f}{other:<12}{level(other):.5f}")


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
truth = math.sqrt(math.pi / 2)
print(
    f"\nmean distance of the samples from the nearest centre; true: {truth:.2f} standard deviations"
)
print("spacing     n      T/n      T//n     next entry    t - T//n")
for spacing in ("linspace", "trailing"):
    for n in (60, 300):
        table = spaced(1000, n, spacing)
        ours, theirs = (
            radius(walk(cloud, table, rule(table))) for rule in (next_entries, minus_stride)
        )
        print(f"{spacing:<12}{n:<7}{1000 / n:<9.2f}{1000 // n:<9}{ours:<14.3f}{theirs:.3f}")
assert abs(ours - truth) < 0.06 < abs(theirs - truth)

# %% [markdown] id=previous-note
# With the next entry, more steps bring the spots nearer to their true width. With `t - T // n` they do not: every step stops short of the next timestep, the network is told of less noise than there is, and some of it stays in the sample. More steps do not mend that.

# %% [markdown] id=clipping
# ## Clipping
#
# At large $t$, $\hat x_0$ is a small difference divided by a small $\sqrt{\bar\alpha_t}$, and often leaves $[-1, 1]$, where no image is. Clip it (`clip_sample=True`). But then $\hat x_0$ and $\varepsilon_\theta$ no longer fit together: $\sqrt{\bar\alpha_t}\,\hat x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon_\theta$ is not
# $x_t$ any more. DDPM does not notice, since Ho eq. 7 uses $\hat x_0$ and $x_t$. DDIM uses $\hat x_0$ and $\varepsilon$: one may keep the network's $\varepsilon$, as Diffusers does by default and so does this course, or derive the $\varepsilon$ that fits the clipped $\hat x_0$ (`use_clipped_model_output=True`).
#
# The difference is more than a detail. Keep $\varepsilon$, and let the step have no length at all, $\bar\alpha_{\text{prev}} = \bar\alpha_t$ and $\sigma = 0$. The result should be $x_t$. It is
#
# $$\sqrt{\bar\alpha_t}\,\mathrm{clip}(\hat x_0) + \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta = x_t - \sqrt{\bar\alpha_t}\,\big(\hat x_0 - \mathrm{clip}(\hat x_0)\big),$$
#
# a move that does not shrink with the step. More steps repeat it more often. So with clipping and a kept $\varepsilon$, the result at $\eta = 0$ does not settle as the steps get more: a thousand of them may end in another image than ten, as at the top of this lesson.
# Where the map from $x_T$ to $x_0$ matters, do not clip.

# %% exercise 08.5
# Write the second way.

# %% id=clipping-check
start = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(6))
with torch.no_grad():
    eps = unet(start, 900).sample
raw = gaussian.x0_from_eps(start, eps, level(900))
clipped = raw.clamp(-1, 1)
misfit = gaussian.q_sample(clipped, eps, level(900)) - start
print(
    f"at t = 900: {float((raw.abs() > 1).float().mean()):.0%} of the pixels of x̂_0 outside [-1, 1], the farthest at {float(raw.abs().max()):.1f}"
)
print(
    f"√ᾱ x̂_0 + √(1-ᾱ) ε misses x_t by up to {float(misfit.abs().max()):.2f} after clipping"
)

ends = {}
runs = {
    "DDPM fixed_small": (DDPMScheduler(), {}),
    "η = 1, ε kept": (DDIMScheduler(), {"eta": 1.0}),
    "η = 1, ε re-derived": (
        DDIMScheduler(),
        {"eta": 1.0, "use_clipped_model_output": True},
    ),
}
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
plots.image_grid(
    torch.cat(list(ends.values())),
    8,
    row_labels=["DDPM", "η = 1,\nε kept", "η = 1,\nε re-derived"],
    alt="Three rows of eight digits, made in ten steps. The first and the last row are equal; in the middle row some digits differ.",
    caption="With clipping on, η = 1 equals DDPM only if ε is derived anew from the clipped x̂_0.",
)

# %% [markdown] id=loop
# ## The loop
#
# All pieces are there. The loop is a dozen lines, and has two places to stumble over: what comes after the last timestep, and what the network is told.

# %% exercise 08.6
# Write it. When you are right, your loop samples lesson 03's mixture in ten steps, without a network.

# %% [markdown] id=oracle
# ## How wrong are few steps? With the exact ε*
#
# With lesson 03's mixture the network is perfect, so every error is one of the steps. Two questions:
#
# 1. **Does each point arrive where it should?** At $\eta = 0$ the sampler is a map from $x_T$ to $x_0$. The reference is the same map in 4000 steps: every $\beta$ cut into four parts that multiply to the same $\bar\alpha$.
# 2. **Is the distribution right?** For any $\eta$: the mean distance between sorted samples and sorted true draws (along 8 directions). Even two sets of true draws are a little apart; that is the floor.
#
# > **Predict before you run.** With twice the steps, how much smaller is the error of a single point at $\eta = 0$: not at all, half, a quarter?

# %% id=oracle-run
from ddpm_from_scratch.course.exercises.l08 import ddim_sample as sample

counts = (5, 10, 20, 50, 100, 200)
parts = 1 - (1 - betas) ** 0.25
fine = schedules.alpha_bars(parts.repeat_interleave(4))
few = cloud[:1000]
reference = walk(
    few,
    range(3999, -1, -1),
    range(3998, -2, -1),
    lambda t: float(fine[t]) if t >= 0 else 1.0,
)

generator = torch.Generator().manual_seed(8)
many = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
angle = torch.arange(8, dtype=torch.float64) * math.pi / 8
directions = torch.stack([angle.cos(), angle.sin()])


def true_draws(seed):
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(weights, len(many), replacement=True, generator=generator)
    return centres[k] + stds[k, None] * torch.randn(
        len(many), 2, generator=generator, dtype=torch.float64
    )


truth = true_draws(9)


def apart(points):
    ours, theirs = ((cloud @ directions).sort(dim=0).values for cloud in (points, truth))
    return float((ours - theirs).abs().mean())


def predict(x, t):
    return exact_eps(x, level(t), weights, centres, stds)


def with_sigma_hat(x, table, noises):
    for t, t_prev, z in zip(table, [*table[1:], -1], noises, strict=True):
        mean = gaussian.posterior_mean(
            x, gaussian.x0_from_eps(x, predict(x, t), level(t)), level(t), level(t_prev)
        )
        x = mean + (1 - level(t) / level(t_prev)) ** 0.5 * z if t_prev >= 0 else mean
    return x


floor = apart(true_draws(10))
by_point, by_cloud = [], {"η = 0": [], "η = 1": [], "σ̂": []}
print("        one point, η = 0          distribution")
print("steps   median error    ratio     η = 0     η = 1     σ̂")
for count in counts:
    table = spaced(1000, count, "trailing")
    by_point.append(
        float((walk(few, table, [*table[1:], -1]) - reference).norm(dim=1).median())
    )
    noises = torch.randn(count, *many.shape, generator=generator, dtype=torch.float64)
    by_cloud["η = 0"].append(apart(sample(predict, many, table, alpha_bar, 0.0, noises)))
    by_cloud["η = 1"].append(apart(sample(predict, many, table, alpha_bar, 1.0, noises)))
    by_cloud["σ̂"].append(apart(with_sigma_hat(many, table, noises)))
    ratio = f"{by_point[-2] / by_point[-1]:.1f}" if len(by_point) > 1 else ""
    print(
        f"{count:<8}{by_point[-1]:<16.4f}{ratio:<10}"
        + "".join(f"{values[-1]:<10.3f}" for values in by_cloud.values())
    )
print(f"two sets of {len(many):,} true draws are {floor:.3f} apart")
slope = math.log(by_point[1] / by_point[-1]) / math.log(counts[-1] / counts[1])
print(f"from 10 to 200 steps the error of a point falls like steps^-{slope:.2f}")
assert 0.7 < slope < 1.3
with plots.figure(
    columns=2,
    height=3.1,
    alt="Two panels over the number of steps, both axes logarithmic. Left: the error of a "
    "point falls along a straight line, by half for twice the steps. Right: the distance of "
    "the distributions falls for all three samplers from about a quarter towards the floor. "
    "At 5 and 10 steps eta 0 is below eta 1, later the two are close; sigma-hat is lowest at "
    "5, 10 and 20 steps.",
    caption="Left, where single points land: first order in the step. Right, the distribution: "
    "with few steps the deterministic sampler is nearer to the truth than that of DDPM; with "
    "many, all meet at the floor (grey) that the number of draws sets.",
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
        {name: torch.tensor(v) for name, v in by_cloud.items()},
        "steps",
        "distance of distributions",
        yscale="log",
    )
    right.axhline(floor, color=plots.FAINT, linestyle="-", linewidth=1)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()

# %% [markdown] id=oracle-answer
# <details><summary>Answer</summary>
#
# About half: the error is proportional to the length of a step (*first order*). Lesson 09 shows why: the deterministic step is an Euler step of a differential equation.
#
# The right panel is the claim of the paper without any network in the way. With 5 and 10 steps $\eta = 0$ is nearer to the truth than $\eta = 1$; later the two are close.
#
# And $\hat\sigma$? Up to 20 steps it comes out *lowest* here, for two reasons. Long steps leave the spots too narrow (lesson 03), and noise beyond the room widens them. And trailing spacing has no
# short step just before the end: the last visited timestep is far from clean, and a perfect $\varepsilon^*$ removes in one go all the noise it sees. With leading spacing and with images, neither helps: see the next section. A claim about samplers is a claim about data, spacing and measure too.
#
# </details>

# %% [markdown] id=figures
# ## Ten steps against a thousand, in figures
#
# Now with a network and images. The paper's own figures first (Song table 1, CIFAR-10, FID, lower is better), then ours: the Fréchet distance (lesson 11) between the digits that this model makes and the training digits, seen by a small classifier. Ours come from
# 200 samples a cell. That is few: the distance is biased upwards, equally for all cells, so compare the cells with each other, never with the paper's.
#
# The column of ten steps is made here and now. The table was made by the command printed below it.

# %% id=figures-run
PAPER = {  # Song, Meng, Ermon 2021, table 1, CIFAR-10: FID at S = 10, 20, 50, 100, 1000
    "η = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "η = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "η = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "η = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "σ̂": (367.43, 133.37, 32.72, 9.99, 3.17),
}
stored = few_steps.load()
head = "".join(f"{count:>9}" for count in few_steps.STEPS)
print(f"Song table 1, CIFAR-10, FID{head}")
for name, row in PAPER.items():
    print(f"{name:<26}" + "".join(f"{value:>9.2f}" for value in row))
print(f"\nour digits model, Fréchet{head}")
for name, cells in stored["cells"].items():
    print(
        f"{name:<26}"
        + "".join(
            f"{cells[str(c)]:>9.2f}" if str(c) in cells else f"{'':>9}"
            for c in few_steps.STEPS
        )
    )
rivals = {name: stored["cells"][name] for name in ("η = 0", "η = 1", "σ̂")}
lowest = []
for c in few_steps.STEPS:
    cell = {name: row[str(c)] for name, row in rivals.items() if str(c) in row}
    lowest.append(min(cell, key=cell.get) if len(cell) == len(rivals) else "")
print("lowest of η = 0, 1, σ̂     " + "".join(f"{name:>9}" for name in lowest))
print(
    f"{stored['samples']} samples a cell, seed {stored['seed']}, made by `{stored['command']}`"
)
print(
    f"on {stored['machine']}, in {sum(stored['seconds'].values()) / 60:.0f} minutes; model {stored['model']}"
)

# %% id=figures-live
classifier, real = shipped_classifier("digits")
generator = torch.Generator().manual_seed(11)
print(f"ten steps, live ({len(ten['η = 0'])} samples each)")
for name, images in ten.items():
    features, logits = classify(classifier, to_pixels(images))
    draws = []
    for rows in [
        slice(None),
        *torch.randint(len(features), (30, len(features)), generator=generator),
    ]:
        ours = metrics.gaussian_statistics(features[rows])
        draws.append(
            metrics.frechet_distance(
                ours.mean, ours.covariance, real.train_mean, real.train_covariance
            )
        )
    sure = metrics.confident_share(logits)
    print(
        f"{name:<6} Fréchet distance {draws[0]:6.2f} ± {torch.tensor(draws[1:]).std():.2f} (bootstrap), stored {stored['cells'][name]['10']:6.2f}; recognised with confidence {sure:.0%}"
    )
print(
    f"{len(real.train_features):,} training against {int(real.test_count)} real test digits: {real.frechet_floor:.2f}; recognised with confidence {float(real.confident_share):.0%}"
)
plots.image_grid(
    torch.cat([ten[name][:8] for name in ten]),
    8,
    row_labels=["η = 0", "η = 1", "σ̂"],
    alt="Three rows of eight digits made in ten steps. Eta 0: clean digits. Eta 1: other digits, a little softer. Sigma-hat: digits under coarse noise.",
    caption="Ten steps each, from the same eight noises, none left out.",
)

# %% [markdown] id=when
# ### When does the claim hold?
#
# "DDIM is better with few steps" is a claim about *few steps*, and in the paper's table it holds there. Read the last column too: at $S = 1000$ the lowest FID of the paper, 3.17, is that of $\hat\sigma$, the sampler with the most noise. Two errors compete.
#
# - **The error of long steps.** The deterministic path is smooth and forgives them; noise that does not fit does not. This decides at small $S$.
# - **The error of the network.** A deterministic sampler carries every wrong answer along to the end. Fresh noise hides part of it: each step pulls $x_t$ back towards the distribution that the network knows. This decides at large $S$, and the worse the network, the earlier.
#
# So with a well-trained $\varepsilon$-network and ten steps, expect $\eta = 0$ to win clearly; with a hundred, expect a draw, or noise to win. On a weakly trained model noise can win at *every* $S$: a trial of this course on MNIST, with $v$-prediction and too little training, had $\eta = 1$ ahead from $S = 10$ on. The line "lowest" in the table says what this model does;
# differences below the bootstrap's ± mean nothing. Nothing here was tuned to make the claim hold.

# %% [markdown] id=strip
# ## The same noise, the same image
#
# > **Predict before you run.** The same $x_T$ with 5, 10, 20, 50 and 100 steps, nothing clipped. At $\eta = 0$ and at $\eta = 1$: which images stay the same?

# %% id=strip-run
counts = (5, 10, 20, 50, 100)
start = same_noises[:3]
strips = {0.0: [], 1.0: []}
for eta, strip in strips.items():
    for count in counts:
        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(count)
        generator, x = torch.Generator().manual_seed(12), start
        for t in scheduler.timesteps.tolist():
            with torch.no_grad():
                eps = unet(x, t).sample
            x = scheduler.step(eps, t, x, eta=eta, generator=generator).prev_sample
        strip.append(x.clamp(-1, 1))
for eta, strip in strips.items():
    gaps = [float((images - strip[-1]).square().mean().sqrt()) for images in strip[:-1]]
    print(
        f"η = {eta:g}, root mean square difference from {counts[-1]} steps: "
        + ", ".join(f"{count}: {gap:.2f}" for count, gap in zip(counts, gaps, strict=False))
    )
    images = torch.stack(strip, dim=1).flatten(0, 1)  # one row per x_T
    plots.image_grid(
        images,
        len(strip),
        titles=[f"{count} steps" for count in counts],
        row_labels=[f"η = {eta:g}"] * 3,
        alt="Three rows of digits, one for each starting noise, over the number of steps. "
        + (
            "Each row shows one digit that only gets sharper."
            if eta == 0
            else "In each row the digit changes from column to column."
        ),
        caption="Each row starts from one x_T. "
        + (
            "Without noise, more steps change details."
            if eta == 0
            else "With noise, another number of steps gives another image."
        ),
    )

# %% [markdown] id=strip-answer
# <details><summary>Answer</summary>
#
# Those of $\eta = 0$. They all follow the same smooth path, with more or less care, so $x_T$ decides what the image shows: it is a *code* of the image, and lesson 09 reads and writes it. At $\eta = 1$ the steps' noise decides as much as $x_T$.
#
# </details>

# %% [markdown] id=explorer
# ## Explore
#
# Two samplers side by side, from the same noise. Choose sampler, steps, $\eta$, spacing and seed, press *Sample*, then play or drag the step (or click it and use the arrow keys): above the state $x_t$, below the image $\hat x_0$ that the network sees in it.
#
# Try: the same sampler twice with different spacing. DDIM with $\eta = 0$ against $\eta = 0.2$. At which step does $\hat x_0$ decide on a digit?

# %% id=sampler-explorer
widgets.sampler_explorer(unet, pipeline.scheduler)

# %% [markdown] id=clinic
# ## Bug clinic
#
# A learner's sampler with $\eta = 1$ and 20 steps. It runs, but the digits come out grainy and blotched. No error message. Here are the step, the log and the curve: the mean of $x_t^2$ on the way, beside what lemma 1 promises, $\bar\alpha_t\,\mathbb E[x_0^2] + 1 - \bar\alpha_t$.


# %% id=clinic-run
def learner_step(x_t, eps, noise, now, before, eta):
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta)
    direction = (1 - before) ** 0.5 * eps
    return before**0.5 * x0 + direction + sigma * noise


@torch.no_grad()
def run(step, steps, following=None, eta=1.0, count=8):
    """Digits made by `step`, and the mean of x_t² at every timestep visited."""
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(count, 1, 16, 16, generator=generator)
    energy = []
    for t, t_prev in zip(steps, following or [*steps[1:], -1], strict=True):
        energy.append(float(x.square().mean()))
        noise = torch.randn(x.shape, generator=generator)
        x = step(x, unet(x, t).sample, noise, level(t), level(t_prev), eta)
    return x, energy


twenty = spaced(1000, 20, "trailing")
power = float(thousand["η = 0"].square().mean())  # E[x_0²] of finished digits
promised = [level(t) * power + 1 - level(t) for t in twenty]
broken, energy = run(learner_step, twenty)
print("t        mean of x_t²    promised")
for i in (0, 2, 5, 9, 13, 16, 19):
    print(f"{twenty[i]:<9}{energy[i]:<16.3f}{promised[i]:.3f}")
plots.curves(
    torch.tensor(twenty),
    {"promised": torch.tensor(promised), "this run": torch.tensor(energy)},
    "timestep t (sampling runs from right to left)",
    "mean of $x_t^2$",
    alt="Two curves over t. They agree at t = 999. To the left the run's curve rises above the promised one and stays above it.",
    caption="The run leaves the promised curve with its first step, upwards.",
)
plots.image_grid(
    broken, 8, alt="Eight digits covered with coarse grain.", caption="Its samples."
)

# %% [markdown] id=clinic-questions
# Before you unfold the pointer:
#
# 1. Is the variance of $x_t$ too large or too small, and from which step on?
# 2. Would you see this bug at $\eta = 0$?
# 3. Which line is it? Change it in the cell above and run the cell again: the two curves should meet.
#
# <details><summary>A pointer</summary>
#
# Lemma 1 in one line: the variance of the old noise and the variance of the fresh noise add up to $1-\bar\alpha_{\text{prev}}$. Which of the learner's terms knows of the other?
#
# </details>


# %% id=clinic-fixed
def mended_step(x_t, eps, noise, now, before, eta):
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    sigma = gaussian.ddim_sigma(now, before, eta)
    return gaussian.ddim_mean(x0, eps, before, sigma) + sigma * noise


mended, energy_mended = run(mended_step, twenty)
off = [
    max(abs(e - p) for e, p in zip(run_, promised, strict=True))
    for run_ in (energy, energy_mended)
]
print(f"largest distance from the promised curve: before {off[0]:.2f}, mended {off[1]:.2f}")
assert off[1] < off[0] / 2
plots.image_grid(
    mended, 8, alt="Eight clean digits.", caption="The same noises, with the mended step."
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# 1. Too large, from the first step on: every step adds $\sigma^2$ on top of a full $1-\bar\alpha_{\text{prev}}$.
# 2. No: with $\sigma = 0$ there is nothing to make room for. A bug that needs $\eta > 0$ is found only by a test with $\eta > 0$.
# 3. The direction: $\sqrt{1-\bar\alpha_{\text{prev}}-\sigma^2}$, as in Song eq. 12. The learner forgot $\sigma^2$.
#
# </details>

# %% [markdown] id=wrong
# ## What could go wrong
#
# Four more samplers, each with one bug, 20 steps. The first row is right.
#
# > **Before you unfold the answers:** what is wrong in each row?


# %% id=gallery
def plain(x_t, eps, noise, now, before, eta):
    return gaussian.ddim_mean(gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1), eps, before)


def squared(x_t, eps, noise, now, before, eta):
    return mended_step(x_t, eps, noise, now, before, eta**2)


def up(x_t, eps, noise, now, before, eta):
    x0 = gaussian.x0_from_eps(x_t, eps, now).clamp(-1, 1)
    return before**0.5 * x0 + (1 - now) ** 0.5 * eps


rows = {
    "right": run(plain, twenty, count=6),
    "A": run(plain, twenty, [t - 1 for t in twenty], count=6),
    "B": run(up, twenty, count=6),
    "C": run(plain, twenty, [*twenty[1:], 999], count=6),
    "D": run(squared, twenty, eta=0.5, count=6),
}
for name, (images, energy) in rows.items():
    print(
        f"{name:<7} mean of x_t² at the middle {energy[10]:.2f} (promised {promised[10]:.2f}), at the end {images.square().mean():.2f} (digits: {power:.2f})"
    )
plots.image_grid(
    torch.cat([images for images, _ in rows.values()]),
    6,
    row_labels=list(rows),
    alt="Five rows of six pictures. The right one: digits. A: noise in which hardly anything is to be seen. B: noise in which bright blots can be made out. C: pure noise. D: digits, none of them wrong to the eye.",
    caption="One right run and four wrong ones. One of the wrong ones cannot be seen.",
)

# %% [markdown] id=gallery-answers
# <details><summary>Answers</summary>
#
# - **A** goes from $t$ to $t - 1$ in place of the next entry of the list. Twenty of a thousand steps' noise is removed, but the network is told that all of it is.
# - **B** scales the old noise by $\sqrt{1-\bar\alpha_t}$: the noise is not taken down to the new level. Every $x$ is one step too noisy, the last one too.
# - **C** reads the table at index -1 in the last step. In Python that is the noisiest entry: the finished image is noised again, fully. (Where eq. 16 is in the loop, the package's `ddim_sigma` refuses such a step.)
# - **D** squares $\eta$. The images are fine! At 0.5 it samples with $\eta = 0.25$, which is a right sampler, but not the one asked for. Only a number shows it: compare $\sigma$ with eq. 16.
#
# </details>
#
# Other classics:
#
# - the noise of lesson 07 kept, and only the steps left out: $\sigma$ must come from the two levels of the *stride*, not from $\beta_t$;
# - $\alpha$ for $\bar\alpha$ (above), or one `cumprod` too many;
# - $\eta > 1$: the room of lemma 1 may be too small, and the root of a negative number follows. The package refuses it;
# - comparing samplers with different clipping, or with different $x_T$;
# - few steps on a schedule whose $\bar\alpha_T$ is not near 0, with leading spacing: the first step is told the wrong level (lesson 02).

# %% [markdown] id=summary
# ## Summary
#
# - Training fixes the marginals $q(x_t \mid x_0)$ and nothing else. A family of processes shares them, with one free number $\sigma_t$ per step (Song eq. 6, 7; lemma 1).
# - Each of them has a bound, and each bound is the known loss with other weights (theorem 1). One network serves them all.
# - One step: the predicted $x_0$ at its new level, the old noise scaled down, fresh noise (Song eq. 12). The variances of the two noises add up to $1-\bar\alpha_{\text{prev}}$.
# - $\eta$ goes from 0, deterministic, to 1, which is DDPM (Song eq. 16). $\hat\sigma$ goes beyond, and does not fit long strides.
# - Any falling list of timesteps will do. A step goes to its next entry, and from the last one to $\bar\alpha = 1$.
# - Their $\alpha$ is our $\bar\alpha$.
# - Few steps: less noise is better. Many steps: noise repairs what the network got wrong. Measure, with equal numbers of samples.
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
#   theorem 1; section 4.2 (subsequences); table 1.
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: eq. 7 (the posterior, here $\eta = 1$), 12 (weights), 15 ($\hat x_0$).
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed* (2024), arXiv 2305.08891: table 2 (spacings), and why the first timestep should be the last of training.
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: eq. 19 ($\beta$ of a strided schedule).
