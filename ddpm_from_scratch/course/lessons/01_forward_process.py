# %% [markdown] id=title
# # 01 · The forward process
#
# **How an image turns into noise, exactly.** About 60 minutes, nearly half of them for six small exercises; and up to 15 more for the bug clinic
# and the gallery of wrong runs at the end, which can wait for another day.
#
# A diffusion model learns to undo a process that destroys images with noise, a little at a time. That process has nothing
# to learn: it is fixed, and simple enough to write down in full. This lesson does so. Everything after it stands on it.
#
# **You will build** the start of two modules: `forward_step`, which becomes `ddpm_from_scratch.gaussian.forward_step`; `alpha_bars`, which becomes
# `ddpm_from_scratch.schedules.alpha_bars`; and `add_noise`, the jump for a whole batch. Its equation is `gaussian.q_sample` in the package, its
# look-up by `t` the method `add_noise` of the schedulers. From the next lesson on they are imported.
#
# **Afterwards you can**
#
# - write one step of the forward process, and say why the image is shrunk while noise is added;
# - derive, with every step, the jump from $x_0$ to any $x_t$ (Ho eq. 4), check each step with numbers, and derive the jump between any two moments
#   yourself;
# - apply the jump to a batch in which every image has its own $t$;
# - say what $x_T$ must be, measure how far it is from that, and see what goes wrong when it is not;
# - read a signal-to-noise ratio.

# %% [markdown] id=notation
# ## Notation
#
# Every symbol is defined again where it first appears; this table is for looking up. *Ho* is the DDPM paper (Ho, Jain,
# Abbeel 2020), *Song* the DDIM paper (Song, Meng, Ermon 2021).
#
# {{notation 01}}
#
# **A trap to remember:** Song's $\alpha_t$ is our $\bar\alpha_t$. The same letter means another thing in the two papers.
#
# $\mathcal N(\mu, \sigma^2 I)$ is the Gaussian with mean $\mu$ whose elements (pixels, coordinates) are independent with
# variance $\sigma^2$ each; $I$ is the identity matrix. $q(a \mid b)$ is the distribution of $a$ once $b$ is known.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import math
from fractions import Fraction

import torch
from torch import Tensor

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets
from ddpm_from_scratch.data import load_dataset

setup("01")

# %% [markdown] id=picture-first
# ## The whole lesson in one picture
#
# Four images that no one has touched, on the left. To their right the same four images after more and more steps of the
# forward process. The last column is what it ends in.

# %% id=hero
fashion = load_dataset(
    "fashion-10k", split="test"
).images()  # x_0: shape (N, 1, 28, 28), values in [-1, 1]
four = fashion[[28, 7, 2, 30]]

betas = schedules.linear(T=1000)  # Ho section 4: from 0.0001 to 0.02 in a straight line
alpha_bar = schedules.alpha_bars(betas)
noise = torch.randn(four.shape, generator=torch.Generator().manual_seed(0))

plots.noising_strip(
    four,
    noise,
    alpha_bar,
    [20, 60, 120, 200, 300, 450, 999],
    alt="A boot, a checked shirt, trousers and a handbag, one per row. From left to "
    "right they dissolve into noise: the checks of the shirt go first, at t = 200 "
    "the outlines are still visible, at t = 450 hardly, and the last column has no "
    "structure.",
    caption="Each row is one image and one noise. Coarse shapes outlive fine detail: "
    "first the texture goes, then the edges, last the outline.",
)

# %% [markdown] id=predict-one
# > **Predict before you run.** The very first step adds noise of variance $\beta_1 = 0.0001$ to pixels between -1 and 1, and the
# > last one noise of variance $\beta_T = 0.02$. Could you see the first step? And the last?

# %% id=first-and-last
grey_level = 2 / 255  # one step of an 8-bit pixel, on the scale from -1 to 1
for name, beta in (("first", float(betas[0])), ("last", float(betas[-1]))):
    print(
        f"{name} step: variance {beta:.4f}, standard deviation {beta**0.5:.3f}, which is {beta**0.5 / grey_level:.1f} grey levels"
    )

# %% [markdown] id=predict-one-answer
# <details><summary>Answer</summary>
#
# The size of the noise is its standard deviation, the square root of the variance. The first step moves a pixel by about one grey
# level of 255: no, nobody sees it. On a clean image you would see the last one at once, as grain. Where it stands in the chain you would not: it
# falls on what is noise already. No single step does much harm to what it is given; a thousand of them leave nothing.
#
# </details>

# %% [markdown] id=one-step
# ## One step
#
# The forward process is a chain: it makes $x_1$ from $x_0$, then $x_2$ from $x_1$, and so on up to $x_T$. Every step does the
# same two things. It **shrinks** what it is given, and it **adds** fresh noise. As a distribution (Ho eq. 2):
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\!\left(\sqrt{1-\beta_t}\; x_{t-1},\ \beta_t I\right)$$
#
# Read: given $x_{t-1}$, the next $x_t$ is Gaussian, its mean is $x_{t-1}$ shrunk by $\sqrt{1-\beta_t}$, and every element gets
# noise of variance $\beta_t$. The numbers $\beta_1, \dots, \beta_T$ are chosen in advance, each between 0 and 1. They are
# called the *schedule*, and lesson 02 is about choosing them.
#
# To *draw* $x_t$, take $\varepsilon_t \sim \mathcal N(0, I)$, stretch it to standard deviation $\sqrt{\beta_t}$, and put it on
# the mean (this is the reparameterisation of lesson 00):
#
# $$x_t = \sqrt{1-\beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \varepsilon_t \tag{A}$$
#
# ### Why shrink?
#
# Suppose $x_{t-1}$ has variance 1 over the data. (Images have less. The section *Variance kept, and when it is not* drops this assumption.) The two
# terms of (A) are independent, so their variances add:
#
# $$\operatorname{Var}(x_t) = \underbrace{(1-\beta_t) \cdot 1}_{\text{what is kept}} + \underbrace{\beta_t}_{\text{what is added}} = 1$$
#
# The shrinking makes room for exactly the noise that is added. The variance stays 1, however many steps follow. Here are two other rules beside it,
# and what becomes of the variance under each.


# %% id=why-shrink
def variances(keep, add):
    """Variance after each step when a step multiplies it by `keep` and adds `add` (both of shape (T,))."""
    variance, result = torch.tensor(1.0, dtype=torch.float64), []
    for k, a in zip(keep, add, strict=True):
        variance = k * variance + a
        result.append(variance)
    return torch.stack(result)


rules = {
    "scale by √(1-β), as in (A)": variances(1 - betas, betas),
    "do not scale": variances(torch.ones_like(betas), betas),
    "scale by 1-β": variances((1 - betas) ** 2, betas),
}
for name, variance in rules.items():
    print(f"{name:<28} variance after {len(betas)} steps: {variance[-1]:.3f}")
plots.curves(
    torch.arange(1, 1001),
    rules,
    "steps taken",
    "variance of x",
    alt="Three curves of variance against steps, all starting at 1. With the square root "
    "the variance stays at 1. Without scaling it rises to about 11. Scaled by 1-β it "
    "falls to about one half.",
    caption="Only the square root keeps the variance. Without it the numbers drift away "
    "from the range a network likes, by an amount that depends on t.",
)

# %% exercise 01.1
# Write equation (A). This is the function that `gaussian.forward_step` becomes.

# %% [markdown] id=index
# ### Which step is number 0?
#
# The papers count steps from 1: $\beta_1, \dots, \beta_T$, and $x_0$ is the clean image. Code counts from 0: `betas[0]` is
# the papers' $\beta_1$. This course does as Diffusers does: **a timestep `t` in code is an index, 0 to T-1, and names the
# state after `t + 1` steps of noise.** So `t = 0` is *not* the clean image: it has had one step.
#
# | papers | clean $x_0$ | $x_1$ | $x_2$ | … | $x_T$ |
# |---|---|---|---|---|---|
# | steps of noise | 0 | 1 | 2 | … | T |
# | `t` in code | none | 0 | 1 | … | T-1 |
# | `betas[t]` | none | `betas[0]` $= \beta_1$ | `betas[1]` $= \beta_2$ | … | `betas[T-1]` $= \beta_T$ |
#
# Where a formula needs "the step before `t = 0`", the clean image, the code of later lessons writes `t = -1`, whose
# $\bar\alpha$ is 1.

# %% [markdown] id=how-checked
# ### How this lesson checks an equation
#
# Below, every step of a derivation is followed by a cell that checks it. Some checks are exact (fractions, or float64 to
# twelve digits). Others draw random numbers and compare their mean and variance with the equation. A mean of $n$ draws is never
# exactly right: it is off by about one *standard error*, $\sigma/\sqrt n$. Their variance is off too, by about $\sigma^2\sqrt{2/n}$ if the draws are
# Gaussian. So the helper prints how many standard errors the draws are off, in mean and in variance, and stops with an error beyond 4. Chance alone
# goes that far about once in 16,000 comparisons; the seeds here are fixed, so what you see is what everyone sees.


# %% id=compare
def compare(name, draws, mean, variance):
    """Print Gaussian draws beside the mean and variance that an equation claims; stop at 4 standard errors."""
    n = draws.numel()
    off_mean = float((draws.mean() - mean) / math.sqrt(variance / n))
    off_variance = float((draws.var() - variance) / (variance * math.sqrt(2 / n)))
    print(f"{name}, n = {n:,}")
    print(
        f"  mean      {draws.mean():+.5f}   equation {mean:+.5f}   {off_mean:+.1f} standard errors"
    )
    print(
        f"  variance  {draws.var():.6f}   equation {variance:.6f}   {off_variance:+.1f} standard errors"
    )
    assert abs(off_mean) < 4 and abs(off_variance) < 4, (
        f"{name}: the draws contradict the equation"
    )


generator = torch.Generator().manual_seed(1)
chance = math.erfc(4 / math.sqrt(2))
print(
    f"chance of one comparison beyond 4 standard errors when the equation is right: 1 in {1 / chance:,.0f}\n"
)

x_before, beta = 1.5, 0.02
eps = torch.randn(400_000, generator=generator, dtype=torch.float64)
x_after = gaussian.forward_step(torch.full_like(eps, x_before), eps, beta)
compare("one step from 1.5 with β = 0.02", x_after, math.sqrt(1 - beta) * x_before, beta)

# %% [markdown] id=jump
# ## All steps in one jump
#
# Training needs $x_t$ for a random $t$, millions of times. Taking $t$ steps for each would be hopeless. It is not needed: all
# of the steps together are again *one* shrinking and *one* noise. We derive that in five short steps, each checked.
#
# Write $\alpha_t = 1 - \beta_t$, so that (A) reads $x_t = \sqrt{\alpha_t}\, x_{t-1} + \sqrt{1-\alpha_t}\; \varepsilon_t$.
#
# ### Step 1: put the first step into the second
#
# $$
# \begin{aligned}
# x_2 &= \sqrt{\alpha_2}\; x_1 + \sqrt{1-\alpha_2}\;\varepsilon_2 \\
#     &= \sqrt{\alpha_2}\left(\sqrt{\alpha_1}\; x_0 + \sqrt{1-\alpha_1}\;\varepsilon_1\right) + \sqrt{1-\alpha_2}\;\varepsilon_2 \\
#     &= \sqrt{\alpha_2 \alpha_1}\; x_0 + \underbrace{\sqrt{\alpha_2 (1-\alpha_1)}\;\varepsilon_1 + \sqrt{1-\alpha_2}\;\varepsilon_2}_{\text{two independent noises}}
# \end{aligned}
# $$
#
# Nothing has happened but multiplying out. Check with numbers: two steps, and the last line, from the same $\varepsilon_1$ and
# $\varepsilon_2$.

# %% id=step-1
generator = torch.Generator().manual_seed(2)
x0, eps1, eps2 = (
    torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3)
)
a1, a2 = 0.9, 0.8

two_steps = gaussian.forward_step(gaussian.forward_step(x0, eps1, 1 - a1), eps2, 1 - a2)
multiplied_out = (
    math.sqrt(a2 * a1) * x0 + math.sqrt(a2 * (1 - a1)) * eps1 + math.sqrt(1 - a2) * eps2
)
print(f"largest difference: {(two_steps - multiplied_out).abs().max():.1e}")
assert torch.allclose(two_steps, multiplied_out, rtol=0, atol=1e-12)

# %% [markdown] id=jump-2
# ### Step 2: two independent Gaussian noises are one
#
# **Claim.** If $\varepsilon_1, \varepsilon_2 \sim \mathcal N(0, 1)$ are independent, then
# $a\,\varepsilon_1 + b\,\varepsilon_2 \sim \mathcal N(0,\, a^2 + b^2)$.
#
# *Mean.* The mean of a sum is the sum of the means: $a \cdot 0 + b \cdot 0 = 0$.
#
# *Variance.* $\mathbb E[(a\varepsilon_1 + b\varepsilon_2)^2] = a^2\,\mathbb E[\varepsilon_1^2] + 2ab\,\mathbb E[\varepsilon_1 \varepsilon_2] + b^2\,\mathbb E[\varepsilon_2^2] = a^2 + 0 + b^2$.
# The middle term is 0 because independence lets the expectation factor:
# $\mathbb E[\varepsilon_1 \varepsilon_2] = \mathbb E[\varepsilon_1]\,\mathbb E[\varepsilon_2] = 0$.
#
# *Shape.* That the sum is again *Gaussian* is a fact of its own. Refresher B of lesson 00 granted it; here is the proof, for those who know
# characteristic functions.
#
# <details><summary>Why the sum is Gaussian</summary>
#
# A distribution is determined by its characteristic function $\varphi(u) = \mathbb E[e^{iuX}]$ (here $i^2 = -1$, and $u$ is any real number), and
# that of $\mathcal N(0, \sigma^2)$ is $e^{-\sigma^2 u^2/2}$. Independence lets the expectation factor once more:
#
# $$\mathbb E\!\left[e^{iu(a\varepsilon_1 + b\varepsilon_2)}\right] = \mathbb E\!\left[e^{iua\varepsilon_1}\right]\,\mathbb E\!\left[e^{iub\varepsilon_2}\right] = e^{-a^2u^2/2}\; e^{-b^2u^2/2} = e^{-(a^2+b^2)u^2/2},$$
#
# the characteristic function of $\mathcal N(0, a^2 + b^2)$. $\square$
#
# </details>
#
# > **Predict before you run.** Replace the normal noise by uniform noise with mean 0 and variance 1. Do mean and variance
# > still come out right? Does the shape? What would the sum of a thousand such noises look like?

# %% id=step-2
generator = torch.Generator().manual_seed(3)
a, b, n = 0.6, 0.5, 400_000
normal = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2)]
uniform = [
    (torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1) * math.sqrt(3)
    for _ in range(2)
]
normal_sum, uniform_sum = a * normal[0] + b * normal[1], a * uniform[0] + b * uniform[1]

compare("a ε_1 + b ε_2, normal", normal_sum, 0.0, a**2 + b**2)
std = math.sqrt(a**2 + b**2)
off = float(uniform_sum.mean()) / (std / math.sqrt(n))
print(
    f"a u_1 + b u_2, uniform: mean {uniform_sum.mean():+.5f} ({off:+.1f} standard errors), variance {uniform_sum.var():.6f}, equation {std**2:.6f}\n"
)
for label, draws in (("normal", normal_sum), ("uniform", uniform_sum)):
    beyond = (draws.abs() > 2 * std).double().mean()
    expected = math.erfc(2 / math.sqrt(2))
    off = (beyond - expected) / math.sqrt(expected * (1 - expected) / n)
    print(
        f"{label:<8} share beyond 2 standard deviations {beyond:.4f}, Gaussian {expected:.4f}: {off:+.1f} standard errors"
    )

with plots.figure(
    height=2.6,
    columns=2,
    alt="Two histograms. The sum of two normal noises fills the dashed Gaussian curve. "
    "The sum of two uniform noises has a flat top and straight flanks, and does not.",
    caption="Left, normal + normal is normal: the bars fill the dashed Gaussian. Right, "
    "uniform + uniform has the same mean and variance and another shape.",
) as axes:
    x = torch.linspace(-3, 3, 200)
    for ax, draws, title in zip(
        axes,
        (normal_sum, uniform_sum),
        ("two normal noises", "two uniform noises"),
        strict=True,
    ):
        ax.hist(draws.numpy(), bins=80, range=(-3, 3), density=True, color=plots.SKY)
        ax.plot(
            x,
            torch.exp(-(x**2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi)),
            "--",
            color=plots.INK,
        )
        ax.set(title=title, yticks=[], ylim=(0, 0.62))

# %% [markdown] id=step-2-answer
# <details><summary>Answer</summary>
#
# Mean and variance come out right, as printed: their argument used nothing but independence. The shape does not: the sum of two
# uniform noises is a trapezium, and the printed share in its tails is many standard errors away from the Gaussian's. With a thousand of
# them the sum would look Gaussian after all (the central limit theorem), but then no single $x_t$ for small $t$ would have the
# distribution that the equation states. With normal noise it holds at *every* $t$, exactly.
#
# </details>

# %% [markdown] id=jump-3
# ### Step 3: add the two variances
#
# By step 2 the two noises of step 1 are one noise, with variance
#
# $$\alpha_2(1-\alpha_1) + (1 - \alpha_2) = \alpha_2 - \alpha_2\alpha_1 + 1 - \alpha_2 = 1 - \alpha_2\alpha_1 .$$
#
# The $\alpha_2$ cancels. So $x_2 = \sqrt{\alpha_2\alpha_1}\; x_0 + \sqrt{1 - \alpha_2\alpha_1}\;\varepsilon$ with one
# $\varepsilon \sim \mathcal N(0, I)$: the form of a *single* step whose $\alpha$ is the product $\alpha_2\alpha_1$. Exactly, in
# fractions:

# %% id=step-3
for a1, a2 in ((Fraction(9, 10), Fraction(4, 5)), (Fraction(1, 3), Fraction(6, 7))):
    left, right = a2 * (1 - a1) + (1 - a2), 1 - a2 * a1
    print(f"α_1 = {a1}, α_2 = {a2}:  α_2(1-α_1) + (1-α_2) = {left},  1 - α_2 α_1 = {right}")
    assert left == right
# the uniform noises of step 2, too, have the mean and variance of the equation
assert abs(float(uniform_sum.mean())) < 4 * std / math.sqrt(n)
assert abs(float(uniform_sum.var()) / std**2 - 1) < 0.01

# %% [markdown] id=jump-4
# ### Step 4: from two steps to all of them, by induction
#
# Define $\bar\alpha_t = \alpha_1 \alpha_2 \cdots \alpha_t$ (say "alpha bar"). **Claim** (Ho eq. 4): for every $t \ge 1$
#
# $$q(x_t \mid x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_t}\; x_0,\ (1-\bar\alpha_t) I\right)$$
#
# *Start.* For $t = 1$ this is (A), since $\bar\alpha_1 = \alpha_1 = 1 - \beta_1$.
#
# *Step.* Suppose it holds for $t-1$. Then some $\varepsilon' \sim \mathcal N(0, I)$, made from the first $t-1$ noises, gives
# $x_{t-1} = \sqrt{\bar\alpha_{t-1}}\; x_0 + \sqrt{1-\bar\alpha_{t-1}}\;\varepsilon'$. Put it into (A):
#
# $$
# \begin{aligned}
# x_t &= \sqrt{\alpha_t}\left(\sqrt{\bar\alpha_{t-1}}\; x_0 + \sqrt{1-\bar\alpha_{t-1}}\;\varepsilon'\right) + \sqrt{1-\alpha_t}\;\varepsilon_t \\
#     &= \sqrt{\alpha_t \bar\alpha_{t-1}}\; x_0 + \sqrt{\alpha_t (1-\bar\alpha_{t-1})}\;\varepsilon' + \sqrt{1-\alpha_t}\;\varepsilon_t .
# \end{aligned}
# $$
#
# The noise $\varepsilon_t$ is fresh, so it is independent of $\varepsilon'$, and step 2 applies: the two are one noise of
# variance $\alpha_t(1-\bar\alpha_{t-1}) + 1 - \alpha_t = 1 - \alpha_t\bar\alpha_{t-1}$, as in step 3. And
# $\alpha_t\bar\alpha_{t-1} = \bar\alpha_t$ by definition. So the claim holds for $t$. $\square$
#
# Check: follow the factor in front of $x_0$ and the variance of the noise through all 1000 steps with (A) alone, and compare with
# the closed form at every one of them.

# %% id=step-4
factor, variance, worst = 1.0, 0.0, 0.0
for t, beta in enumerate(betas.tolist()):
    factor, variance = (
        math.sqrt(1 - beta) * factor,
        (1 - beta) * variance + beta,
    )  # what (A) does to both
    worst = max(
        worst,
        abs(factor - math.sqrt(alpha_bar[t])),
        abs(variance - float(1 - alpha_bar[t])),
    )
print(
    f"largest difference between the chain and the closed form over {len(betas)} steps: {worst:.1e}"
)
assert worst < 1e-12

# %% exercise 01.2
# Compute $\bar\alpha_t$ for every $t$ from the $\beta$s. This is what `schedules.alpha_bars` becomes.

# %% [markdown] id=jump-5
# ### Step 5: draw it
#
# As a recipe, the claim is a single line. It is the equation used most in this course:
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon, \qquad \varepsilon \sim \mathcal N(0, I) \tag{B}$$
#
# The last check is of the whole: 1000 steps with (A), in 20,000 chains that all start at $x_0 = 0.8$, against one jump with (B).

# %% id=step-5
generator = torch.Generator().manual_seed(4)
start, chains = 0.8, 20_000
x, history = torch.full((chains,), start, dtype=torch.float64), []
for beta in betas.tolist():
    x = gaussian.forward_step(
        x, torch.randn(chains, generator=generator, dtype=torch.float64), beta
    )
    history.append(x)
chain = torch.stack(history)  # shape (T, chains)

for t in (0, 99, 299, 999):
    compare(
        f"chain at t = {t}",
        chain[t],
        math.sqrt(alpha_bar[t]) * start,
        float(1 - alpha_bar[t]),
    )

# %% id=fan
steps, means, stds = torch.arange(1000), alpha_bar**0.5 * start, (1 - alpha_bar) ** 0.5
with plots.figure(
    width=7,
    height=3.2,
    alt="Ten jagged paths start together at 0.8 and spread out. A shaded band starts as "
    "a point at 0.8 and widens until, from about t = 800 on, it lies between -2 and 2, centred on "
    "0. The paths stay in it most of the time.",
    caption="Ten chains from the same x_0 (thin lines), and the mean and two standard "
    "deviations that (B) gives without any chain (dashed line and band). By the "
    "end the starting point is forgotten.",
) as ax:
    ax.fill_between(
        steps, means - 2 * stds, means + 2 * stds, color=plots.SKY, alpha=0.35, linewidth=0
    )
    ax.plot(
        steps,
        chain[:, 40:50].numpy(),
        linewidth=0.7,
        linestyle="-",
        color=plots.BLUE,
        alpha=0.7,
    )
    ax.plot(steps, means, color=plots.VERMILION, linestyle="--")
    ax.set(xlabel="timestep t", ylabel="x")

inside = ((chain[999] - means[999]).abs() < 2 * stds[999]).double().mean()
print(
    f"chains within two standard deviations at t = 999: {inside:.1%} (a Gaussian has {1 - math.erfc(math.sqrt(2)):.1%})"
)

# %% exercise 01.3
# Apply (B) to a batch in which every sample has its own `t`, as training does. The only difficulty is a shape: one number per
# sample has to multiply whole images.

# %% [markdown] id=library-names
# In the package the equation is `gaussian.q_sample`, which takes $\bar\alpha_t$ itself. The look-up by `t` is a method of the
# scheduler (lesson 07), under the name it has in Diffusers, `add_noise`. The two say the same:

# %% id=add-noise-names
from ddpm_from_scratch import DDPMScheduler

t = torch.tensor([0, 250, 500, 999])
by_equation = gaussian.q_sample(four, noise, alpha_bar[t].reshape(4, 1, 1, 1)).float()
by_scheduler = DDPMScheduler(num_train_timesteps=1000).add_noise(four, noise, t)
print(
    f"largest difference between gaussian.q_sample and DDPMScheduler.add_noise: {(by_equation - by_scheduler).abs().max():.1e}"
)
assert torch.allclose(by_equation, by_scheduler, atol=1e-6)

# %% [markdown] id=two-scales
# ### The two scales
#
# Everything about $x_t$ is in two numbers: the signal is scaled by $\sqrt{\bar\alpha_t}$ and the noise by $\sqrt{1-\bar\alpha_t}$.
# Their squares add up to 1, so the pair is a point on a quarter circle.

# %% id=scales
signal, rest = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
crossing = int((signal > rest).sum())
print(f"the noise outweighs the signal from t = {crossing} on")

with plots.figure(
    columns=2,
    width_ratios=(1.8, 1),
    alt="Left: the signal's scale falls from 1 to 0 in an S, the noise's rises from 0 to 1 with "
    f"a steep start; they cross at about t = {crossing}. Right: the pair of scales "
    "as points on a quarter circle from signal 1 to noise 1.",
    caption=f"Left, the two scales over t; they cross at t = {crossing}. Right, the same "
    "two as a point that moves along a quarter circle, marked every 100 steps.",
) as (left, right):
    plots.draw_curves(
        left, steps, {"signal √ᾱ": signal, "noise √(1-ᾱ)": rest}, "timestep t", "scale"
    )
    right.plot(signal, rest, color=plots.BLUE, linestyle="-")
    right.plot(signal[99::100], rest[99::100], "o", color=plots.VERMILION)
    right.annotate("clean", (1, 0), (0.62, 0.03))
    right.annotate("pure noise", (0, 1), (0.08, 1.03))
    right.set(
        xlabel="scale of the signal",
        ylabel="scale of the noise",
        aspect="equal",
        xlim=(0, 1.12),
        ylim=(0, 1.15),
    )

# %% [markdown] id=points
# ## Points in the plane
#
# Nothing in (A) or (B) is about images. The same two lines act on any numbers. Points in the plane are worth a look, because a
# plane can be drawn whole: one dot is one sample, and the cloud of dots is the distribution itself.
#
# > **Predict before you run.** The data below are two arms of a spiral. What will the cloud look like at the end? Which goes
# > first, the gap between neighbouring turns or the outer shape?


# %% id=spiral
def two_spirals(n, generator):
    """Points on two spiral arms, of variance 1 overall: shape (n, 2), and the arm (0 or 1) of each."""
    radius = torch.rand(n, generator=generator).sqrt() * 3
    arm = torch.randint(0, 2, (n,), generator=generator)
    angle = 3.4 * radius + math.pi * arm
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    points += 0.06 * torch.randn(n, 2, generator=generator)
    return (points - points.mean(0)) / points.std(), arm


generator = torch.Generator().manual_seed(6)
points, arm = two_spirals(1500, generator)
eps = torch.randn(points.shape, generator=generator)
panels = {
    f"t = {t}": gaussian.q_sample(points, eps, float(alpha_bar[t]))
    for t in (0, 40, 120, 300, 999)
}
for name, cloud in panels.items():
    print(f"{name:<8} variance {cloud.var():.3f}")
plots.scatter(
    panels,
    arm,
    alt="Five scatter plots of two interleaved spiral arms, told apart by colour and "
    "marker. At t = 40 the arms have blurred, at t = 120 they run into each other, at t = 300 a "
    "round cloud with mixed colours remains, and at t = 999 a standard normal cloud.",
    caption="The narrow gaps between the turns fill first, the outer shape goes last, "
    "and in the end both arms are the same round cloud: from there nothing tells "
    "which arm a point came from. (The variances printed above are of 3,000 numbers: "
    "chance alone moves a variance of 1 by about 0.026.)",
)

# %% [markdown] id=variance
# ## Variance kept, and when it is not
#
# "The variance stays 1" was said for data of variance 1. Images are not like that. In general, let the data have variance $s^2$.
# Both terms of (B) are independent, so
#
# $$\operatorname{Var}(x_t) = \bar\alpha_t\, s^2 + (1 - \bar\alpha_t) = 1 + \bar\alpha_t\,(s^2 - 1) .$$
#
# Whatever $s$ is, the variance moves from $s^2$ to 1, and if $s = 1$ it never leaves it. Nothing in the derivation of (B) needed
# $s = 1$. But how *fast* an image disappears depends on $s$: what counts is the signal $\bar\alpha_t s^2$ against the noise
# $1 - \bar\alpha_t$. So the scale of the data is part of the schedule. The papers agree on pixels in $[-1, 1]$ (Ho section 3.3).

# %% exercise 01.4
# Images arrive as bytes, 0 to 255. Bring them to $[-1, 1]$.

# %% id=data-scale
digits = load_dataset("digits").images()
print("data in [-1, 1]              mean   standard deviation   variance")
for name, data in {"Fashion-MNIST 28 × 28": fashion, "digits 8 × 8": digits}.items():
    print(
        f"{name:<24} {data.mean():+.3f}                {data.std():.3f}      {data.var():.3f}"
    )

# %% [markdown] id=variance-check
# The variance of these images starts below 1, so it rises. A check on real images:

# %% id=variance-curves
generator = torch.Generator().manual_seed(7)
scales = {
    "s² = 4": 4.0,
    "s² = 1": 1.0,
    "Fashion-MNIST": float(fashion.var()),
    "s² = 0.1": 0.1,
}
curves = {name: 1 + alpha_bar * (s2 - 1) for name, s2 in scales.items()}
measured = {}
for t in (50, 150, 300, 500, 800):
    batch = fashion[:4000]
    x_t = gaussian.q_sample(
        batch, torch.randn(batch.shape, generator=generator), float(alpha_bar[t])
    )
    measured[t] = float(x_t.var())
    predicted = float(1 + alpha_bar[t] * (batch.var() - 1))
    print(
        f"t = {t:>3}: variance of noised Fashion-MNIST {measured[t]:.4f}, equation {predicted:.4f}"
    )
    assert abs(measured[t] / predicted - 1) < 0.005

with plots.figure(
    width=7,
    alt="Four curves of variance over t, starting at 4, 1, about 0.5 and 0.1, which all "
    "run into 1 by about t = 600. Dots measured on noised Fashion-MNIST lie on its "
    "curve.",
    caption="Whatever the variance at the start, it ends at 1. Dots: measured on 4,000 "
    "noised images, within 0.5 % of the line.",
) as ax:
    plots.draw_curves(ax, steps, curves, "timestep t", "variance of $x_t$")
    ax.plot(
        list(measured),
        list(measured.values()),
        "o",
        color=plots.INK,
        linestyle="none",
        label="measured",
    )
    ax.legend()

# %% [markdown] id=variance-predict
# > **Predict before you run.** Take the same images with pixels in $[-1, 1]$, in $[0, 1]$, and left in 0 to 255, and apply the same schedule and the
# > same noise up to $t = 300$. In which range is the image hurt most, in which least, and by what factor does signal over noise, $\bar\alpha_t s^2/(1-\bar\alpha_t)$, differ between the three?

# %% id=wrong-scale
t = 300
versions = {
    "pixels in [-1, 1]": four,
    "pixels in [0, 1]": (four + 1) / 2,
    "pixels in 0 to 255": (four + 1) * 127.5,
}
rows, ratios = [], []
for data in versions.values():
    x_t = gaussian.q_sample(data, noise, float(alpha_bar[t]))
    black, white = data.min(), data.max()
    rows.append(
        2 * (x_t - black) / (white - black) - 1
    )  # drawn so that the data's black is black and its white is white
    ratios.append(float(alpha_bar[t] * data.var() / (1 - alpha_bar[t])))
for name, ratio in zip(versions, ratios, strict=True):
    print(
        f"{name:<19} variance of the signal over variance of the noise at t = {t}: {ratio:.3g}"
    )
plots.image_grid(
    torch.cat(rows),
    4,
    row_labels=[name.replace(" in ", "\nin ") for name in versions],
    alt="The four images at t = 300, three times. With pixels in [-1, 1] the shapes can "
    "be made out, with pixels in [0, 1] hardly, and with pixels in 0 to 255 the "
    "images are perfectly clear.",
    caption="The same schedule and the same noise at t = 300, on the same images in "
    "three ranges. In 0 to 255 the noise hardly scratches the image: the "
    "schedule was made for another scale.",
)

# %% [markdown] id=variance-answer
# <details><summary>Answer</summary>
#
# What counts is $s^2$, and that goes with the square of the range. $[0, 1]$ is half as wide as $[-1, 1]$, so the ratio is a quarter: hurt most. 0 to 255
# is 127.5 times as wide, so the ratio is $127.5^2$ times as large: the noise, of variance below 1, is invisible until $\bar\alpha_t$ has become
# tiny, and even $x_T$ still shows the image. A model trained on that sees hardly any noise, and then has to start from $\mathcal N(0, I)$, which it
# has never seen.
#
# </details>

# %% [markdown] id=prior
# ## What x_T must be
#
# To make a new image, a sampler starts from a draw of $\mathcal N(0, I)$ and walks the chain backwards. That start is only right if the
# forward chain *ends* there: $q(x_T \mid x_0)$ must be as good as $\mathcal N(0, I)$ for **every** image $x_0$. Then $x_T$ says nothing
# about $x_0$, and a fresh draw of noise is as good an $x_T$ as any.
#
# By (B), $q(x_T \mid x_0) = \mathcal N(\sqrt{\bar\alpha_T}\, x_0,\ (1-\bar\alpha_T) I)$. Two things are left over: a trace of the image in
# the mean, of size $\sqrt{\bar\alpha_T}$, and a variance a little below 1. The KL divergence (lesson 00) measures both in one number. For
# one element with value $x_0$, with $\mu = \sqrt{\bar\alpha_T}\, x_0$ and $\sigma^2 = 1 - \bar\alpha_T$:
#
# $$\mathrm{KL}\!\left(\mathcal N(\mu, \sigma^2)\,\|\,\mathcal N(0, 1)\right) = \tfrac12\left(\mu^2 + \sigma^2 - 1 - \log\sigma^2\right)$$
#
# The elements are independent, so their KLs add up. The sum is $L_T$, the first term of the bound that lesson 03 derives (Ho eq. 5). It has
# no network in it: only the schedule can make it small.

# %% exercise 01.5
# Compute $L_T$ for each sample of a batch.

# %% [markdown] id=prior-predict
# > **Predict before you run.** With all 1000 steps the paper reports $L_T \approx 10^{-5}$ bits per dimension, that is per element, for CIFAR-10 (Ho section 4). Keep every
# > $\beta_t$ as it is and stop after 100 steps: a tenth of the work. Is $L_T$ then about ten times as large, a thousand times, or more?



# %% id=prior-check
def bits_per_dimension(x0, alpha_bar_T):
    """KL(q(x_T | x_0) ‖ N(0, I)) in bits, per element, averaged over images and elements."""
    log_var = torch.tensor(math.log(1 - alpha_bar_T))
    nats = gaussian.normal_kl(
        alpha_bar_T**0.5 * x0, log_var, torch.zeros(()), torch.zeros(())
    )
    return float(gaussian.nats_to_bits(nats).mean())


x0 = fashion[:500].double()
print(" T used   √ᾱ_T     KL to N(0, I), bits per pixel")
for T in (100, 300, 500, 1000):
    print(
        f"{T:>6}    {alpha_bar[T - 1] ** 0.5:.4f}    {bits_per_dimension(x0, float(alpha_bar[T - 1])):.2e}"
    )

# the formula against draws: log q(x) - log p(x), averaged over draws x from q, for one pixel of value 0.9 at T = 100
generator = torch.Generator().manual_seed(8)
mean, variance = float(alpha_bar[99]) ** 0.5 * 0.9, float(1 - alpha_bar[99])
draws = mean + variance**0.5 * torch.randn(
    400_000, generator=generator, dtype=torch.float64
)
log_ratio = 0.5 * (draws**2 - (draws - mean) ** 2 / variance - math.log(variance))
formula = 0.5 * (mean**2 + variance - 1 - math.log(variance))
off = (log_ratio.mean() - formula) / (log_ratio.std() / math.sqrt(len(log_ratio)))
print(
    f"\none pixel, T = 100, n = {len(draws):,}: KL from draws {log_ratio.mean():.5f} nats, formula {formula:.5f}: {off:+.1f} standard errors"
)
assert abs(off) < 4

# %% [markdown] id=prior-answer
# <details><summary>Answer</summary>
#
# More: tens of thousands of times. Compare the first row with the last, which is the paper's quantity for our images. The chain has not arrived. $\sqrt{\bar\alpha_T}$ in
# the first row is close to 1, so its end still shows nearly the whole image.
#
# </details>
#
# And in pictures: what the chain ends in, beside what the sampler starts from.

# %% id=prior-picture
ends = [gaussian.q_sample(four, noise, float(alpha_bar[T - 1])) for T in (100, 300, 1000)]
fresh = torch.randn(four.shape, generator=torch.Generator().manual_seed(9))
plots.image_grid(
    torch.cat([*ends, fresh]),
    4,
    row_labels=[
        "end of\n100 steps",
        "end of\n300 steps",
        "end of\n1000 steps",
        "start of a\nsampler",
    ],
    alt="Four rows of four images. After 100 steps the clothes are easy to recognise, "
    "after 300 faintly, after 1000 not at all; the last row, fresh noise, looks like "
    "the row after 1000 steps.",
    caption="Only the third row could be mistaken for the last. A model trained with only "
    "100 steps has never seen anything like its own starting point.",
)

# %% [markdown] id=zero-snr-note
# $\sqrt{\bar\alpha_T}$ is small, but it is not 0. What survives best is the mean brightness of the whole image, because averaging over all
# pixels removes noise and keeps the mean. On large images a model can read it off $x_T$, and then makes every sample medium bright, since it starts
# from noise whose brightness is 0. That flaw was found in published models (Lin et al. 2024); lesson 02 shows it and mends it.

# %% [markdown] id=two-moments
# ## Two moments of one chain
#
# Equation (B) is a statement about one $t$ at a time. What do two moments of the same chain have to do with each other? In this section and its
# code, 100 and 200 are indices: the states after 101 and 201 steps.
#
# > **Predict before you run.** Jump to $t = 100$ and, with a *fresh* noise, jump to $t = 200$. Each alone has the right
# > distribution. Do the two together look like two moments of one chain?

# %% id=pairs
generator = torch.Generator().manual_seed(5)
jumps = [
    gaussian.q_sample(
        torch.full((chains,), start, dtype=torch.float64), eps, float(alpha_bar[t])
    )
    for t in (100, 200)
    for eps in [torch.randn(chains, generator=generator, dtype=torch.float64)]
]
correlation = {
    "two moments of one chain": torch.corrcoef(torch.stack([chain[100], chain[200]]))[0, 1],
    "two jumps, fresh noise each": torch.corrcoef(torch.stack(jumps))[0, 1],
}
for name, value in correlation.items():
    print(f"correlation of x at t = 100 and t = 200, {name:<28} {value:+.3f}")

# %% [markdown] id=pairs-answer
# <details><summary>Answer</summary>
#
# No. A later moment of a chain contains the noise of the earlier ones, so the two are correlated. Two jumps with fresh noise share nothing but
# $x_0$. Two jumps with the *same* noise, as in the slider below, are a third thing: there $x_{100}$ and $x_0$ together fix $x_{200}$ completely.
#
# All three have the same distribution at each $t$, and that is all that training uses. Lesson 08 turns this freedom into a faster
# sampler: DDIM keeps every $q(x_t \mid x_0)$ and changes how the moments hang together.
#
# </details>

# %% exercise 01.6
# How does the chain go on from $x_s$ to a later $x_t$? **Derive it on paper first:** write step 4 down again, but start it at $x_s$ in the place of
# $x_0$. The answer is a Gaussian $q(x_t \mid x_s) = \mathcal N(c\, x_s,\ v I)$. Which $c$ and which $v$, in terms of $\bar\alpha_s$ and
# $\bar\alpha_t$ alone? Test your result before you code: $s = 0$ must give equation (B), $s = t-1$ must give (A).

# %% [markdown] id=from-s-answer
# <details><summary>The derivation</summary>
#
# Steps 1 to 4 used nothing about $x_0$ but that the noises after it are independent of it. The noises after $s$ are independent of $x_s$, so they hold
# with $x_s$ for $x_0$ and the product of the $\alpha$s after $s$ for $\bar\alpha_t$:
#
# $$
# \begin{aligned}
# q(x_t \mid x_s) &= \mathcal N\!\left(\sqrt{\alpha_{s+1}\cdots\alpha_t}\; x_s,\ (1 - \alpha_{s+1}\cdots\alpha_t) I\right), \\
# \alpha_{s+1}\cdots\alpha_t &= \frac{\alpha_1\cdots\alpha_t}{\alpha_1\cdots\alpha_s} = \frac{\bar\alpha_t}{\bar\alpha_s}.
# \end{aligned}
# $$
#
# Or by bookkeeping: $c\sqrt{\bar\alpha_s} = \sqrt{\bar\alpha_t}$ from the means, and $c^2(1-\bar\alpha_s) + v = 1 - \bar\alpha_t$ from the variances, since
# what $x_s$ holds of noise shrinks with it. The samplers of lessons 07 and 08 live on this: with it they take a hundred steps at once.
#
# </details>
#
# A check on the chain. What is left of $x_{200}$ once $c\,x_{100}$ is taken off must be Gaussian of variance $v$, and the correlation above must be
# $c$ times the ratio of the two standard deviations.

# %% id=from-s-check
c = math.sqrt(alpha_bar[200] / alpha_bar[100])
v = float(1 - alpha_bar[200] / alpha_bar[100])
compare("x at t = 200, less c times x at t = 100", chain[200] - c * chain[100], 0.0, v)
exact = c * math.sqrt((1 - alpha_bar[100]) / (1 - alpha_bar[200]))
off = float(correlation["two moments of one chain"] - exact) / (
    (1 - exact**2) / math.sqrt(chains)
)
print(f"correlation by the equation {exact:+.3f}: {off:+.1f} standard errors")
assert abs(off) < 4
assert abs(correlation["two jumps, fresh noise each"]) < 4 / math.sqrt(chains)

# %% [markdown] id=snr
# ## Signal-to-noise ratio
#
# One number says how far a state is along the way: the variance of the signal over the variance of the noise,
#
# $$\text{SNR}_t = \frac{\bar\alpha_t}{1-\bar\alpha_t}$$
#
# for data of variance 1; in the package, `schedules.snr`. Two schedules with different $T$ and different $\beta$s can be compared
# by it, and a state can be named by its SNR alone. It covers many powers of ten, so one mostly looks at its logarithm, *log-SNR*.

# %% id=snr-curves
ratio, log_ratio = schedules.snr(alpha_bar), schedules.log_snr(alpha_bar)
one = int((ratio > 1).sum())
print(
    f"SNR at t = 0: {ratio[0]:,.0f}    first t with SNR ≤ 1: {one}    SNR at t = 999: {ratio[999]:.1e}"
)
print(f"log-SNR runs from {log_ratio[0]:+.1f} to {log_ratio[999]:+.1f}")
with plots.figure(
    columns=2,
    alt="Two curves over t. The SNR drops from ten thousand so steeply that it looks "
    "like zero from t = 100 on. The log-SNR falls smoothly from about 9 to about -10 "
    f"and crosses zero at t = {one}.",
    caption="Left, the SNR itself: too steep to read. Right, its logarithm: signal and "
    f"noise are equal at t = {one}, where it crosses 0.",
) as (left, right):
    plots.draw_curves(left, steps, {"SNR": ratio}, "timestep t", "SNR")
    plots.draw_curves(right, steps, {"log-SNR": log_ratio}, "timestep t", "log-SNR")
    right.axhline(0, color=plots.FAINT, linewidth=1, linestyle="-")
    right.plot([one], [0.0], "o", color=plots.VERMILION)

# %% [markdown] id=snr-size
# > **Predict before you run.** One garment in 28 × 28 pixels, and averaged down to 14 × 14 and 7 × 7. All three at the same $t$, and so at the same
# > $\bar\alpha_t$ in every pixel. Which is easiest to recognise?


# %% id=snr-sizes
def enlarge(images, times):
    """Each pixel repeated `times` × `times`, so that small images are drawn as large as big ones."""
    return images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


generator = torch.Generator().manual_seed(10)
timesteps = (0, 100, 200, 300, 400, 500)
rows = []
print("standard deviations of noise between boot and handbag")
print("           " + "".join(f"t = {t:<6}" for t in timesteps))
for block in (1, 2, 4):
    small, bag = (
        torch.nn.functional.avg_pool2d(x, block) for x in (four[:1], four[3:4])
    )
    apart = [
        float(schedules.snr(alpha_bar[t]) ** 0.5 * (small - bag).norm()) for t in timesteps
    ]
    print(f"{28 // block:>2} × {28 // block:<6}" + "".join(f"{d:<10.2f}" for d in apart))
    eps = torch.randn(small.shape, generator=generator)
    rows += [
        enlarge(gaussian.q_sample(small, eps, float(alpha_bar[t])), block) for t in timesteps
    ]
plots.image_grid(
    torch.cat(rows),
    6,
    titles=[f"t = {t}" for t in timesteps],
    row_labels=["28 × 28", "14 × 14", "7 × 7"],
    alt="One boot at six timesteps in three sizes. With 28 by 28 pixels it can be made out up to "
    "about t = 300, with 14 by 14 a little less long, with 7 by 7 hardly at t = 100.",
    caption="The same boot, the same t, nearly the same SNR in every pixel. With fewer pixels "
    "it is lost earlier: compare the first row with the last.",
)

# %% [markdown] id=snr-size-answer
# <details><summary>Answer</summary>
#
# The largest one. The SNR is that of one pixel. The eye, like a network, averages over neighbouring pixels that belong together; their
# signal is shared, their noise is independent and averages away. More pixels per object, more averaging. So the same schedule destroys a
# large image later than a small one, and large images need more noise (lesson 02).
#
# The numbers above the picture say it without eyes. Someone who knows both images and only has to tell boot from handbag can add up all pixels, each
# weighted by the difference there. Then the two are so many standard deviations of noise apart: half the side, about half as many. At 4 of them
# one guess in forty-four is wrong, and below that soon more.
#
# </details>

# %% [markdown] id=slider
# ## Move t yourself
#
# One picture for the whole lesson. The noise is drawn once and kept, so that only $t$ changes: the signal part fades, the noise part grows,
# their sum is $x_t$, and the histogram of its pixels turns into the bell of $\mathcal N(0, 1)$. Drag the slider, or click it and use the
# arrow keys, or type a `t`.
#
# Try: find the last $t$ at which you recognise each image. Is it the same for all? What is the SNR there?

# %% id=noise-slider
widgets.noise_slider(torch.cat([four, fashion[40:100]]), alpha_bar)

# %% [markdown] id=clinic
# ## Bug clinic
#
# A preview of training, as far as you need it here (lessons 03 and 06): the network is shown $x_t$ and $t$, and guesses the $\varepsilon$ in it. Its
# loss is the mean squared error of that guess.
#
# A real bug. A library adds noise in half precision (bfloat16) to save memory. Training runs, samples come, no error appears. But at the smallest `t`
# the loss never falls below 1. The log of the run:


# %% id=clinic-log
def library_add_noise(x0, noise, alpha_bar, t):
    alpha_bar_t = alpha_bar.to(x0.dtype)[t].reshape(-1, *[1] * (x0.ndim - 1))
    return alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise


def measured_noise(add_noise, timesteps):
    """Standard deviation of what `add_noise` adds to a grey image (x_0 = 0) in bfloat16, at each timestep."""
    eps = (
        torch.randn(1, 4000, generator=torch.Generator().manual_seed(11))
        .bfloat16()
        .expand(len(timesteps), -1)
    )
    return add_noise(torch.zeros_like(eps), eps, alpha_bar, timesteps).double().std(dim=1)


early = torch.arange(60)
broken, wanted = measured_noise(library_add_noise, early), (1 - alpha_bar[early]) ** 0.5
for t in (0, 5, 9, 10, 20, 40):
    print(
        f"t = {t:>2}: standard deviation of the noise {broken[t]:.4f}, equation {wanted[t]:.4f}"
    )
plots.curves(
    early,
    {"equation (B)": wanted, "this run": broken},
    "timestep t",
    "standard deviation of the noise",
    alt="The equation's curve rises smoothly from 0.01. The run's is a staircase: "
    "exactly zero up to about t = 10, then a few flat steps above and below the "
    "curve.",
    caption="The noise of this run at the first 60 timesteps: none at all at first, then "
    "a staircase.",
)

# %% [markdown] id=clinic-questions
# Before you look at the code again:
#
# 1. Why a staircase? Which numbers can change only in jumps?
# 2. Why is the loss about 1, of all numbers, where the noise is 0?
# 3. Why does nobody see it in the samples?
#
# <details><summary>A pointer</summary>
#
# bfloat16 keeps 8 significant bits: fewer than three decimal digits. At small $t$, $\bar\alpha_t$ is very close to 1. Look for the place
# where the code rounds, and for the place where it subtracts.
#
# </details>

# %% exercise 01.7
# Here is the library's function. Change it so that the noise is right at every `t`, in bfloat16 as in float32. Do not treat the symptom (a floor
# under the noise, a later first `t`): find where the digits are lost.

# %% id=clinic-fixed
scheduler = DDPMScheduler(num_train_timesteps=1000)
mended = measured_noise(
    lambda x0, eps, alpha_bar, t: scheduler.add_noise(x0, eps, t), early
)
print("standard deviation of the noise, bfloat16, with the package's own add_noise")
for t in (0, 5, 9, 10, 20, 40):
    print(f"t = {t:>2}: {mended[t]:.4f}, equation {wanted[t]:.4f}")
assert (
    float((mended / wanted - 1).abs().max()) < 0.05
)  # n = 4,000 draws: 4 standard errors are 4.5 %

# %% id=clinic-why
print("t      ᾱ_t in float64   in bfloat16   1 - ᾱ_t in float64   in bfloat16")
for t in (0, 5, 9, 10, 20, 40):
    rounded = alpha_bar[t].bfloat16()
    print(
        f"{t:<6} {alpha_bar[t]:<16.6f} {rounded:<13.6f} {1 - alpha_bar[t]:<20.6f} {1 - rounded:.6f}"
    )
print(
    f"bfloat16's numbers just below 1: {', '.join(f'1 - {k}/256 = {1 - k / 256:.6f}' for k in (1, 2, 3))}"
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers to the three questions</summary>
#
# 1. $\bar\alpha_t$, rounded to 8 significant bits: near 1 it can only take the few values in the table's third column. The noise
#    inherits their jumps.
# 2. Without noise in $x_t$ the best guess for $\varepsilon$ is its mean, 0, and the mean squared error of that guess is the variance of
#    $\varepsilon$, which is 1. In a healthy run the loss on images like the garments above comes below 1 even there: on a plain black background the noise can be
#    read off. (For data without plain parts it stays near 1 at the smallest $t$; lesson 03 shows such data.)
# 3. The first ten steps of a thousand are the last ten of the sampler, where next to nothing is left to remove. The damage is in the finest
#    detail, and no error message tells of it.
#
# This is not invented: Diffusers' `add_noise` computed it so when this was written. The course keeps its tables in float64 and rounds last.
#
# </details>

# %% [markdown] id=wrong
# ## What could go wrong
#
# Four more noising runs, each with one bug, and no error message from any of them. Their code is hidden. Each row should show one thing: **the clean
# image at the left, pure noise at the right**. All runs noise a batch of 28 boots, at 28 timesteps from 0 to 999; six of them are shown.
#
# > **Before you unfold the answers:** what is wrong in each row? The printed standard deviations help.

# %% id=gallery
import inspect

from ddpm_from_scratch.course.exercises.l01 import BROKEN

t = torch.linspace(0, 999, 28).long()
shown = [0, 3, 8, 12, 19, 27]
boots = four[:1].expand(28, -1, -1, -1)
eps = torch.randn(boots.shape, generator=torch.Generator().manual_seed(13))
rows = {"as it should be": DDPMScheduler().add_noise(boots, eps, t)}
rows |= {name: noise_it(boots, eps, t) for name, noise_it in BROKEN.items()}
print("standard deviation of x_t     " + "".join(f"t = {int(t[i]):<6}" for i in shown))
for name, images in rows.items():
    print(f"{name:<30}" + "".join(f"{images[i].std():<10.2f}" for i in shown))
plots.image_grid(
    torch.cat([images[shown] for images in rows.values()]),
    6,
    titles=[f"t = {int(t[i])}" for i in shown],
    row_labels=["as it\nshould be", "A", "B", "C", "D"],
    alt="Five rows of six images of one boot. First row: it dissolves into noise. A: "
    "noise appears, but the boot stays visible to the end. B: hardly any noise at "
    "all. C: all six images alike, clean at the left edge and noisy at the right "
    "edge. D: like the first row, but grey and flat in the middle columns.",
    caption="One right run and four wrong ones.",
)

# %% [markdown] id=gallery-answers
# <details><summary>Answers</summary>
#
# - **A** adds the noise without shrinking the image: $x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$. The boot is there to the end, and
#   the standard deviation rises above 1.
# - **B** uses $\beta_t$ where the jump needs $1-\bar\alpha_t$: one step instead of all of them up to $t$. Even at the last $t$ the image is
#   hardly touched.
# - **C** lets $\bar\alpha$ line up with the last axis: the columns of pixels have different $t$, the images all the same. It raised no error
#   because the number of timesteps and the width of the image happened to agree.
# - **D** forgets both square roots. The image looks almost right. The standard deviation gives it away: it dips where that of the
#   right run rises, since $\bar\alpha_t^2 s^2 + (1-\bar\alpha_t)^2$ falls to $s^2/(1+s^2)$, at $\bar\alpha_t = 1/(1+s^2)$: below both of its ends, $s^2$ and 1.
#
# The code of the four, which the next cell prints, holds one wrong expression each.
#
# Other classics: `t` one off (the clean end is noisier than it should be, or the table is read at -1 and gives pure noise at `t = 0`); pixels left in
# 0 to 255 (seen above); one noise for the whole batch, which no single image shows; $x_t$ clipped to $[-1, 1]$, as if it were an image.
#
# </details>

# %% id=gallery-code
for name, noise_it in BROKEN.items():
    print(f"# {name}\n{inspect.getsource(noise_it)}")

# %% [markdown] id=summary
# ## Summary
#
# - One step: $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\varepsilon_t$. Shrinking makes room for the noise; variance 1 stays 1.
# - All steps up to $t$ at once: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$, since independent Gaussian noises
#   add up to one, and shrinkings multiply. From any $x_s$ the same holds with $\bar\alpha_t/\bar\alpha_s$ for $\bar\alpha_t$.
# - In code `t` counts from 0: `t = 0` has had one step.
# - The scale of the data belongs to the schedule: pixels in $[-1, 1]$.
# - $x_T$ must be $\mathcal N(0, I)$ for every image. The KL says how far it is from that; a chain stopped early is far from it.
# - $\text{SNR}_t = \bar\alpha_t/(1-\bar\alpha_t)$ names a state whatever the schedule.
# - Compute $\sqrt{1-\bar\alpha_t}$ in high precision, and round last.
#
# `forward_step` and the equation of your `add_noise`, `q_sample`, are now `ddpm_from_scratch.gaussian`; `alpha_bars` is in
# `ddpm_from_scratch.schedules`. **Next:** lesson 02 chooses the $\beta$s.

# %% id=progress
progress("01")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 01}}
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: eq. 2 (one step), eq. 4 (the jump), eq. 5
#   ($L_T$), section 3.3 (data in $[-1, 1]$), section 4 ($T$, the linear schedule, $L_T \approx 10^{-5}$ bits per dimension).
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: eq. 4 is (B) in their notation, with $\alpha_t$ for
#   $\bar\alpha_t$; section 3 starts from the observation that training uses only $q(x_t \mid x_0)$.
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed* (2024), arXiv 2305.08891: what the trace of the image in $x_T$ does.
# - J. Sohl-Dickstein et al., *Deep Unsupervised Learning using Nonequilibrium Thermodynamics* (2015), arXiv 1503.03585: where the idea began.
