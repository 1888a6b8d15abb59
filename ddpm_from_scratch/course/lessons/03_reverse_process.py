# %% [markdown] id=title
# # 03 · The reverse process
#
# **What must a network predict to go back, and why?** About 60 minutes on the main road, more than half of them for six exercises. Not counted: the folded derivation of the bound (15 minutes) and what is marked *going deeper*, which no later lesson needs (40 minutes). Two sittings are better than one.
#
# Lesson 01 turned data into noise. This lesson finds out what is needed to turn noise into data. The answer is surprisingly small: one
# function, which looks at a noisy point and says how much of it is noise. We derive that, step by step, from the likelihood. Then we
# sample with the *exact* function, without any network, and only at the end let a network learn it.
#
# **You will build** the second half of the module `ddpm_from_scratch.gaussian`: `posterior_variance`, `posterior_mean`, `eps_from_v`, and
# with them one step of a sampler.
#
# **Afterwards you can**
#
# - derive $q(x_{t-1} \mid x_t, x_0)$ by completing the square (Ho eq. 6, 7);
# - derive the training loss from the likelihood, from Ho eq. 3 to Ho eq. 14, and say what was dropped on the way;
# - turn the three predictions $\varepsilon$, $x_0$ and $v$ into each other, and into the score;
# - write down the perfect answer for a mixture of Gaussians, and sample with it;
# - measure how far a trained network is from that answer, at each $t$.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson. Those of lesson 01 ($x_t$, $\beta_t$, $\alpha_t = 1-\beta_t$, $\bar\alpha_t$, $\varepsilon$) are used as they were.
#
# {{notation 03}}
#
# *Salimans* is Salimans and Ho 2022. $q(a \mid b)$ is the distribution of $a$ once $b$ is known, and $\mathbb E[a \mid b]$ its mean. In formulas
# $t$ counts as in the papers, from 1, and $\bar\alpha_0 = 1$. In code `t` is an index from 0, and the step before `t = 0` is the clean data.
# The functions of this lesson take $\bar\alpha_t$ and $\bar\alpha_{t-1}$ themselves, so they need no index.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import inspect
import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets

setup("03")
torch.set_num_threads(1)  # the tensors here are small: a second thread would only wait

betas = schedules.linear(T=1000)
alphas = 1 - betas
alpha_bar = schedules.alpha_bars(betas)
alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])

# %% [markdown] id=backwards
# ## Backwards: why it is hard
#
# One step forward is a formula. Is one step back a formula too? Take the simplest data there is: every $x_0$ is a single number, $+1$ in
# 70 % of the cases and $-1$ in the others. Run the forward process a million times, and keep only the runs that are near 0.25 at $t = 500$.
# Where were *these* runs a little earlier?
#
# > **Predict before you run.** Where were they one step earlier? And 350 steps earlier: one heap or two?

# %% id=hero
generator = torch.Generator().manual_seed(0)
n, t, seen = 1_000_000, 500, 0.25


def draw(shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


x0 = torch.where(torch.rand(n, generator=generator, dtype=torch.float64) < 0.7, 1.0, -1.0)
slices = {}
for earlier in (150, 499):
    a, p = float(alpha_bar[t]), float(alpha_bar[earlier])
    x_before = gaussian.q_sample(x0, draw(n), p)
    x_now = gaussian.forward_step(x_before, draw(n), 1 - a / p)  # all steps between, as one
    near = (x_now - seen).abs() < 0.02
    slices[earlier] = (x_before[near], x0[near])
    print(
        f"t = {t} → {earlier}: {int(near.sum()):,} runs kept, mean there {x_before[near].mean():+.3f}, standard deviation {x_before[near].std():.3f}"
    )

with plots.figure(
    columns=2,
    height=2.9,
    alt="Two stacked histograms. Left, 350 steps earlier: two separate heaps, one for "
    "runs "
    "from +1 and one for runs from -1. Right, one step earlier: a single narrow "
    "bell at 0.25, in which both kinds of runs are mixed.",
    caption="Where runs that are at 0.25 now were 350 steps ago (left) and one step ago "
    "(right), coloured by their x_0. Among the runs of one colour, the shape is a "
    "Gaussian in both pictures. Mind the axes: the right picture is much finer.",
) as axes:
    for ax, (earlier, (points, clean)) in zip(axes, slices.items(), strict=True):
        groups = [points[clean == sign].numpy() for sign in (1.0, -1.0)]
        ax.hist(
            groups,
            bins=60,
            stacked=True,
            color=[plots.SKY, plots.ORANGE],
            label=["$x_0 = +1$", "$x_0 = -1$"],
        )
        ax.set(title=f"t = {earlier}", yticks=[], xlabel="x")
    axes[0].legend()

# %% [markdown] id=backwards-answer
# <details><summary>Answer</summary>
#
# One step earlier they were where they are now, give or take $\sqrt{\beta_t}$: one narrow bell. 350 steps earlier there are two heaps.
#
# </details>
#
# Three facts are in this picture, and the whole method stands on them:
#
# 1. **The way back depends on the data.** With 50 % in place of the 70 %, the heaps would have other heights. So $q(x_{t-1} \mid x_t)$ is not a formula
#    that one can write down for images: one would have to know all images.
# 2. **If $x_0$ is known, the way back is Gaussian**, for steps of any length (each colour by itself). That one *is* a formula. We derive it next.
# 3. **If the step is small, the way back is nearly Gaussian even without $x_0$** (right picture). So a model of the form
#    $p_\theta(x_{t-1} \mid x_t) = \mathcal N(\mu_\theta(x_t, t),\ \sigma_t^2 I)$ (Ho eq. 1), with a variance $\sigma_t^2$ that is chosen, not learned, can be good, if the steps are many. Learning it means learning a mean.
#    (Why: by Bayes, $q(x_{t-1} \mid x_t) \propto q(x_t \mid x_{t-1})\,q(x_{t-1})$. The first factor is a bell of width about $\sqrt{\beta_t}$. Over so short a stretch the logarithm of the second
#    is nearly a straight line, and a bell times the exponential of a straight line is the same bell, moved.)

# %% [markdown] id=posterior
# ## The posterior when x_0 is known
#
# We look for $q(x_{t-1} \mid x_t, x_0)$. All elements are independent, so think of single numbers.
#
# ### Step 1: Bayes
#
# $$q(x_{t-1} \mid x_t, x_0) = \frac{q(x_t \mid x_{t-1}, x_0)\; q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)} = \frac{q(x_t \mid x_{t-1})\; q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}$$
#
# The second equality is the chain property: once $x_{t-1}$ is known, $x_0$ says nothing more about $x_t$. All three factors are known from
# lesson 01 (Ho eq. 2 and eq. 4):
#
# $$
# \begin{aligned}
# q(x_t \mid x_{t-1}) &= \mathcal N(\sqrt{\alpha_t}\, x_{t-1},\ \beta_t) \\
# q(x_{t-1} \mid x_0) &= \mathcal N(\sqrt{\bar\alpha_{t-1}}\, x_0,\ 1-\bar\alpha_{t-1}) \\
# q(x_t \mid x_0) &= \mathcal N(\sqrt{\bar\alpha_t}\, x_0,\ 1-\bar\alpha_t) .
# \end{aligned}
# $$
#
# Write $x$ for $x_{t-1}$. The denominator has no $x$ in it: it only scales. So, up to a constant $c$ without $x$,
#
# $$-2 \log q(x \mid x_t, x_0) = \frac{(x_t - \sqrt{\alpha_t}\, x)^2}{\beta_t} + \frac{(x - \sqrt{\bar\alpha_{t-1}}\, x_0)^2}{1-\bar\alpha_{t-1}} + c .$$
#
# ### Step 2: complete the square
#
# Multiply out and sort by powers of $x$:
#
# $$
# \begin{aligned}
# -2 \log q(x \mid x_t, x_0) &= A x^2 - 2 B x + c', \\
# A &= \frac{\alpha_t}{\beta_t} + \frac{1}{1-\bar\alpha_{t-1}}, \\
# B &= \frac{\sqrt{\alpha_t}}{\beta_t}\, x_t + \frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\, x_0 .
# \end{aligned}
# $$
#
# And $A x^2 - 2 B x = A\,(x - B/A)^2 - B^2/A$, where the last term has no $x$ in it. A density whose $-2\log$ is $A(x-B/A)^2$ plus a constant is a
# Gaussian with **mean $B/A$ and variance $1/A$**. That is Ho eq. 6. Check: the two sides may differ by a constant only, whatever $x$ is.

# %% id=square
t = 300
a_t, b_t, bar, bar_prev = (
    float(table[t]) for table in (alphas, betas, alpha_bar, alpha_bar_prev)
)
x_t, x0 = 0.4, -0.9
x = torch.linspace(-3, 3, 7, dtype=torch.float64)

left = (x_t - a_t**0.5 * x) ** 2 / b_t + (x - bar_prev**0.5 * x0) ** 2 / (1 - bar_prev)
A = a_t / b_t + 1 / (1 - bar_prev)
B = a_t**0.5 / b_t * x_t + bar_prev**0.5 / (1 - bar_prev) * x0
right = A * (x - B / A) ** 2
spread = (left - right).max() - (left - right).min()
print(
    f"left side - right side at {len(x)} values of x: {left[0] - right[0]:.6f}, the same to {spread:.0e}"
)
assert spread < 1e-10

# %% [markdown] id=posterior-3
# ### Step 3: tidy up the variance
#
# Bring $A$ to one denominator, and use $\alpha_t \bar\alpha_{t-1} = \bar\alpha_t$ and $\alpha_t + \beta_t = 1$:
#
# $$A = \frac{\alpha_t (1-\bar\alpha_{t-1}) + \beta_t}{\beta_t (1-\bar\alpha_{t-1})} = \frac{\alpha_t + \beta_t - \alpha_t\bar\alpha_{t-1}}{\beta_t (1-\bar\alpha_{t-1})} = \frac{1-\bar\alpha_t}{\beta_t (1-\bar\alpha_{t-1})}$$
#
# So
#
# $$\boxed{\tilde\beta_t = \frac1A = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t}$$
#
# ### Step 4: tidy up the mean
#
# $$\tilde\mu_t = \frac{B}{A} = B\,\tilde\beta_t = \left(\frac{\sqrt{\alpha_t}}{\beta_t}\, x_t + \frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\, x_0\right) \frac{(1-\bar\alpha_{t-1})\,\beta_t}{1-\bar\alpha_t}$$
#
# In the first term $\beta_t$ cancels, in the second $1-\bar\alpha_{t-1}$ does. What is left is Ho eq. 7:
#
# $$\boxed{\tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\, x_0 + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\, x_t}$$
#
# Exactly, in fractions:

# %% id=tidy
for a_t, before in ((Fraction(9, 10), Fraction(4, 5)), (Fraction(1, 3), Fraction(6, 7))):
    b_t, now = 1 - a_t, a_t * before
    A = a_t / b_t + 1 / (1 - before)
    print(
        f"α_t = {a_t}, ᾱ_prev = {before}: 1/A = {1 / A}, (1-ᾱ_prev)/(1-ᾱ_t) β_t = {(1 - before) / (1 - now) * b_t}"
    )
    assert 1 / A == (1 - before) / (1 - now) * b_t
    # the coefficients of x_t and x_0 in B/A, without their square roots
    assert (1 / b_t) / A == (1 - before) / (1 - now)
    assert 1 / (1 - before) / A == b_t / (1 - now)

# %% exercise 03.1
# Write $\tilde\beta_t$. The arguments are the two levels, so that the same function serves a sampler that skips steps. This is what
# `gaussian.posterior_variance` becomes.

# %% exercise 03.2
# Write $\tilde\mu_t$. This is what `gaussian.posterior_mean` becomes.

# %% [markdown] id=reading-posterior
# ### What the formula says
#
# > **Predict before you run.** Is $\tilde\beta_t$ larger or smaller than $\beta_t$? By much? And which of $x_0$ and $x_t$ has the greater say in
# > $\tilde\mu_t$: in the middle of the chain, and at its clean end?

# %% id=coefficients
variance = gaussian.posterior_variance(alpha_bar, alpha_bar_prev)
on_x0 = alpha_bar_prev**0.5 * betas / (1 - alpha_bar)
on_x_t = alphas**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar)
for t in (0, 1, 10, 100, 500, 999):
    print(
        f"t = {t:>3}: β̃/β = {variance[t] / betas[t]:.4f}   coefficient of x_0 {on_x0[t]:.4f}, of x_t {on_x_t[t]:.4f}"
    )
with plots.figure(
    columns=2,
    alt="Two panels over t from 1 to 1000 on a logarithmic axis. Left: the ratio of "
    "the two "
    "variances rises from 0 to nearly 1 within the first fifty steps. Right: the "
    "coefficient of x_0 falls from 1 to nearly 0, that of x_t rises from 0 to nearly 1.",
    caption="Left, the variance once x_0 is known, as a share of β. Right, who is heard in "
    "the mean. Only in the last few steps does x_0 take over.",
) as (left, right):
    count = torch.arange(1, 1001)
    left.plot(count, variance / betas)
    left.set(
        xscale="log", xlabel="t + 1, the papers' t", title=r"$\tilde\beta_t / \beta_t$"
    )
    plots.draw_curves(
        right,
        count,
        {"of $x_0$": on_x0, "of $x_t$": on_x_t},
        "t + 1, the papers' t",
        "coefficient",
    )
    right.set(xscale="log")

# %% [markdown] id=coefficients-answer
# <details><summary>Answer</summary>
#
# Smaller: $1-\bar\alpha_{t-1} < 1-\bar\alpha_t$. (For data from $\mathcal N(0, I)$ the step back without $x_0$ has variance exactly $\beta_t$, and knowing $x_0$ can only narrow it.) But from a few dozen steps on hardly smaller, since what $x_0$ says about $x_{t-1}$ is vague compared
# with what the neighbour $x_t$ says. For the same reason $x_t$ has nearly all of the say in the middle. At the clean end ($t = 0$ in code) the
# step before *is* $x_0$: the coefficients are exactly 1 and 0, and the variance is 0.
#
# </details>

# %% [markdown] id=second-way
# ### Going deeper (not needed later): a second way, to be sure
#
# Given $x_0$, the pair $(x_{t-1}, x_t)$ is jointly Gaussian, and refresher C of lesson 00 conditions such a pair. The means are
# $\sqrt{\bar\alpha_{t-1}}\,x_0$ and $\sqrt{\bar\alpha_t}\,x_0$, the variances $1-\bar\alpha_{t-1}$ and $1-\bar\alpha_t$, and since
# $x_t = \sqrt{\alpha_t}\,x_{t-1} + $ fresh noise, the covariance is $\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})$. No square was completed here, so this is an
# independent check of all 1000 steps.

# %% id=joint
x_t, x0 = draw(1000), draw(1000)
covariance = alphas**0.5 * (1 - alpha_bar_prev)
slope = covariance / (1 - alpha_bar)
conditional_mean = alpha_bar_prev**0.5 * x0 + slope * (x_t - alpha_bar**0.5 * x0)
conditional_variance = 1 - alpha_bar_prev - covariance**2 / (1 - alpha_bar)

mean = gaussian.posterior_mean(x_t, x0, alpha_bar, alpha_bar_prev)
variance = gaussian.posterior_variance(alpha_bar, alpha_bar_prev)
print(
    f"largest difference over {len(betas)} steps: mean {(mean - conditional_mean).abs().max():.0e}, variance {(variance - conditional_variance).abs().max():.0e}"
)
assert torch.allclose(mean, conditional_mean, rtol=0, atol=1e-11)
assert torch.allclose(variance, conditional_variance, rtol=0, atol=1e-11)

# %% [markdown] id=bound
# ## The bound
#
# We want a model $p_\theta$ under which the data are probable: $-\log p_\theta(x_0)$ should be small. The model is a chain too (Ho eq. 1):
# $p(x_T) = \mathcal N(0, I)$, then steps $p_\theta(x_{t-1} \mid x_t)$ down to $x_0$. So
# $p_\theta(x_0) = \int p_\theta(x_{0:T})\, dx_{1:T}$, an integral over all paths, which no one can compute. We bound it.
#
# The result: $-\log p_\theta(x_0) \le L$, and $L$ is a sum with one term for the end of the chain and one for each of its steps, all KL divergences but the last, $L_0$ (Ho eq. 5):
#
# $$
# \begin{aligned}
# L = \mathbb E_q\Big[&\underbrace{\mathrm{KL}\big(q(x_T \mid x_0)\,\|\,p(x_T)\big)}_{L_T} \\
# &+ \sum_{t>1} \underbrace{\mathrm{KL}\big(q(x_{t-1} \mid x_t, x_0)\,\|\,p_\theta(x_{t-1} \mid x_t)\big)}_{L_{t-1}} \underbrace{-\log p_\theta(x_0 \mid x_1)}_{L_0}\Big]
# \end{aligned}
# $$
#
# <details><summary>The derivation in four steps: Jensen (step 1), two chains (step 2), the forward steps turned around (step 3), KLs (step 4)</summary>
#
# **Step 1: Jensen**
#
# Multiply and divide by $q(x_{1:T} \mid x_0)$. The integral becomes an expectation over forward paths. The logarithm is concave, so the logarithm of
# a mean is at least the mean of the logarithm:
#
# $$-\log p_\theta(x_0) = -\log \mathbb E_q\!\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T} \mid x_0)}\right] \le \mathbb E_q\!\left[-\log \frac{p_\theta(x_{0:T})}{q(x_{1:T} \mid x_0)}\right] =: L$$
#
# **Step 2: both are chains**
#
# Products become sums (Ho eq. 3):
#
# $$L = \mathbb E_q\!\left[-\log p(x_T) - \sum_{t \ge 1} \log \frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\right]$$
#
# **Step 3: turn the forward steps around**
#
# $p_\theta$ steps back and $q$ steps forward: they cannot be compared. Bayes, as above, turns $q$ around for $t > 1$:
#
# $$q(x_t \mid x_{t-1}) = q(x_{t-1} \mid x_t, x_0)\; \frac{q(x_t \mid x_0)}{q(x_{t-1} \mid x_0)}$$
#
# First line: take the term $t = 1$ out of the sum. Second and third line: put Bayes into the others, as two logarithms.
#
# $$
# \begin{aligned}
# L &= \mathbb E_q\!\left[-\log p(x_T) - \sum_{t>1} \log \frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})} - \log \frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\right] \\
# &= \mathbb E_q\Bigg[-\log p(x_T) - \sum_{t>1} \log \frac{p_\theta(x_{t-1} \mid x_t)}{q(x_{t-1} \mid x_t, x_0)} \\
# &\qquad\quad - \sum_{t>1} \log \frac{q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)} - \log \frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\Bigg]
# \end{aligned}
# $$
#
# The second sum *telescopes*: each term is $\log q(x_{t-1} \mid x_0)$ minus $\log q(x_t \mid x_0)$, and what one subtracts, the next adds:
#
# $$
# \begin{aligned}
# \sum_{t=2}^{T} \log \frac{q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)} &= \big(\log q(x_1 \mid x_0) - \log q(x_2 \mid x_0)\big) \\
# &\quad + \big(\log q(x_2 \mid x_0) - \log q(x_3 \mid x_0)\big) + \dots \\
# &= \log q(x_1 \mid x_0) - \log q(x_T \mid x_0)
# \end{aligned}
# $$
#
# It enters with a minus. So $-\log q(x_1 \mid x_0)$ meets the $+\log q(x_1 \mid x_0)$ of the last term and cancels, and $+\log q(x_T \mid x_0)$ joins $-\log p(x_T)$:
#
# $$L = \mathbb E_q\!\left[\log \frac{q(x_T \mid x_0)}{p(x_T)} + \sum_{t > 1} \log \frac{q(x_{t-1} \mid x_t, x_0)}{p_\theta(x_{t-1} \mid x_t)} - \log p_\theta(x_0 \mid x_1)\right]$$
#
# **Step 4: each quotient is a KL**
#
# Take the expectation over $x_{t-1}$ first, with $x_t$ fixed. A mean of $\log q - \log p$ over draws of $q$ is a KL divergence (refresher D). The last term has no $q$ in it, and stays. This is Ho eq. 5, above.
#
# </details>
#
# $L_T$ has no network in it (lesson 01). $L_0$ is the last step, into pixels (lesson 11). What is left are the $L_{t-1}$: the network's step should be the
# posterior of the previous section.

# %% [markdown] id=bound-check
# ### Going deeper (not needed later): the bound on a chain of three steps
#
# All of this can be checked on a tiny chain: single numbers, three steps, $x_0 = 0.8$, and a model whose steps
# are straight lines, so that even $-\log p_\theta(x_0)$ is known exactly. One cell for each step.

# %% id=bound-chain
small_betas = [0.3, 0.4, 0.5]
bars = [0.7, 0.7 * 0.6, 0.7 * 0.6 * 0.5]
model = [(0.9, 0.1, 0.5), (0.6, 0.0, 0.5), (0.8, -0.1, 0.7)]  # slope, offset, variance
n = 200_000
path = [torch.full((n,), 0.8, dtype=torch.float64)]
for beta in small_betas:
    path.append(gaussian.forward_step(path[-1], draw(n), beta))


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


def model_mean(t):
    slope, offset, _ = model[t - 1]
    return slope * path[t] + offset


def log_p(t):
    """log p(x_{t-1} | x_t) on every path."""
    return log_normal(path[t - 1], model_mean(t), model[t - 1][2])


def log_q(t):
    """log q(x_t | x_{t-1}) on every path."""
    beta = small_betas[t - 1]
    return log_normal(path[t], (1 - beta) ** 0.5 * path[t - 1], beta)


# %% id=bound-step-2
# step 2 (Ho eq. 3): two chains
eq3 = -log_normal(path[3], 0, 1) - sum(log_p(t) - log_q(t) for t in (1, 2, 3))
print(
    f"eq. 3: {eq3.mean():.4f} ± {eq3.std() / math.sqrt(n):.4f} nats, a mean over {n:,} paths"
)

# %% id=bound-step-3
# step 3: the forward steps turned around; the same on every path, not only in the mean
posterior = {
    t: (
        gaussian.posterior_mean(path[t], path[0], bars[t - 1], bars[t - 2]),
        gaussian.posterior_variance(bars[t - 1], bars[t - 2]),
    )
    for t in (2, 3)
}
last = log_normal(path[3], bars[2] ** 0.5 * path[0], 1 - bars[2])
turned = last - log_normal(path[3], 0, 1) - log_p(1)
for t in (2, 3):
    turned = turned + log_normal(path[t - 1], *posterior[t]) - log_p(t)
print(f"steps 2 and 3, path by path: largest difference {(eq3 - turned).abs().max():.0e}")
assert (eq3 - turned).abs().max() < 1e-10

# %% id=bound-step-4
# step 4 (Ho eq. 5): a KL for each log-ratio
kl = {}
for t in (2, 3):
    mean, spread = posterior[t]
    widths = [torch.tensor(math.log(variance)) for variance in (spread, model[t - 1][2])]
    kl[t] = gaussian.normal_kl(mean, widths[0], model_mean(t), widths[1])
mean_T, var_T = bars[2] ** 0.5 * 0.8, 1 - bars[2]
l_T = 0.5 * (mean_T**2 + var_T - 1 - math.log(var_T))
eq5 = l_T + kl[2] + kl[3] - log_p(1)
off = (eq3 - eq5).mean() / ((eq3 - eq5).std() / math.sqrt(n))
print(
    f"L_0 = {-log_p(1).mean():.4f}, L_1 = {kl[2].mean():.4f}, L_2 = {kl[3].mean():.4f}, L_T = {l_T:.4f}"
)
print(
    f"eq. 3 gives {eq3.mean():.4f}, eq. 5 {eq5.mean():.4f}: {off:+.1f} standard errors apart"
)
assert abs(off) < 4
print(
    f"without L_0, standard deviation over paths: step 3 {(turned + log_p(1)).std():.3f}, "
    f"step 4 {(eq5 + log_p(1)).std():.3f}"
)
assert (eq5 + log_p(1)).std() < (turned + log_p(1)).std()

# %% id=bound-step-1
# step 1: the exact -log p(x_0), by carrying mean and variance through the straight lines
mean, variance = 0.0, 1.0
for slope, offset, sigma2 in reversed(model):
    mean, variance = slope * mean + offset, slope**2 * variance + sigma2
exact = -float(log_normal(path[0][0], mean, variance))
print(f"exact -log p(x_0) = {exact:.4f}, below the bound by {eq5.mean() - exact:.4f}")
assert exact < eq5.mean()

# %% [markdown] id=bound-answer
# The last line of step 4 shows why the KLs are the better form: they take one of the expectations exactly, in closed form, and what is exact does not fluctuate. Fewer
# draws are needed for the same precision (the paper calls it Rao-Blackwellised, Ho section 2).

# %% [markdown] id=means
# ## From means to noise
#
# The steps go on from the four of the bound (folded above).
#
# ### Step 5: a squared difference of means
#
# $L_{t-1}$ is a KL of two Gaussians with variances $\tilde\beta_t$ and $\sigma_t^2$, both fixed. By refresher D, for each element,
#
# $$\mathrm{KL} = \frac{(\tilde\mu_t - \mu_\theta)^2}{2\sigma_t^2} + \underbrace{\frac12\left(\log\frac{\sigma_t^2}{\tilde\beta_t} + \frac{\tilde\beta_t}{\sigma_t^2} - 1\right)}_{\text{no } \theta \text{ in it}}$$
#
# so that (Ho eq. 8)
#
# $$L_{t-1} = \mathbb E_q\!\left[\frac{1}{2\sigma_t^2}\,\lVert \tilde\mu_t(x_t, x_0) - \mu_\theta(x_t, t) \rVert^2\right] + C .$$
#
# ### Step 6: write x_0 by ε
#
# In training we made $x_t$ ourselves: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$. Solve for $x_0$ (this is the step from Ho eq. 9 to Ho eq. 10):
# $x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\varepsilon)/\sqrt{\bar\alpha_t}$, and put it into $\tilde\mu_t$. With
# $\sqrt{\bar\alpha_{t-1}}/\sqrt{\bar\alpha_t} = 1/\sqrt{\alpha_t}$, the coefficient of $x_t$ becomes
#
# $$\frac{1}{\sqrt{\alpha_t}}\,\frac{\beta_t}{1-\bar\alpha_t} + \frac{\sqrt{\alpha_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t} = \frac{1}{\sqrt{\alpha_t}}\;\frac{\beta_t + \alpha_t - \bar\alpha_t}{1-\bar\alpha_t} = \frac{1}{\sqrt{\alpha_t}},$$
#
# and that of $\varepsilon$ becomes $-\frac{1}{\sqrt{\alpha_t}}\frac{\beta_t}{1-\bar\alpha_t}\sqrt{1-\bar\alpha_t} = -\frac{1}{\sqrt{\alpha_t}}\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}$. Together:
#
# $$\tilde\mu_t = \frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\varepsilon\right)$$
#
# ### Step 7: let the network predict only what it does not know
#
# The network is given $x_t$. The only unknown in the last line is $\varepsilon$. So give $\mu_\theta$ the same form, with a prediction in its place (Ho eq. 11):
#
# $$\mu_\theta(x_t, t) = \frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\varepsilon_\theta(x_t, t)\right)$$
#
# In the difference $\tilde\mu_t - \mu_\theta$ the $x_t$ cancels, and $\frac{\beta_t}{\sqrt{\alpha_t}\sqrt{1-\bar\alpha_t}}(\varepsilon_\theta - \varepsilon)$ is left. Square it and put it into eq. 8. This is Ho eq. 12:
#
# $$L_{t-1} - C = \mathbb E_{x_0, \varepsilon}\!\left[\frac{\beta_t^2}{2\sigma_t^2\,\alpha_t\,(1-\bar\alpha_t)}\,\left\lVert \varepsilon - \varepsilon_\theta\big(\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon,\ t\big)\right\rVert^2\right]$$

# %% exercise 03.3
# Compute the weight in front of the squared norm of Ho eq. 12, for every $t$ at once, from the $\beta$s and the $\sigma_t^2$.

# %% [markdown] id=eq8-12-note
# The three steps, checked at all $t > 1$ with a prediction that is wrong by an arbitrary amount, and $\sigma_t^2 = \beta_t$:

# %% id=eq8-12
t = torch.arange(1, 1000)
b, a, bar, prev = (table[t] for table in (betas, alphas, alpha_bar, alpha_bar_prev))
x0, eps, guess = draw(len(t)), draw(len(t)), draw(len(t))
x_t = gaussian.q_sample(x0, eps, bar)

mean = gaussian.posterior_mean(x_t, x0, bar, prev)
by_noise = (x_t - b / (1 - bar) ** 0.5 * eps) / a**0.5
print(
    f"step 6: largest difference of the two forms of the mean {(mean - by_noise).abs().max():.0e}"
)
assert torch.allclose(mean, by_noise, rtol=0, atol=1e-10)

mu_theta = (x_t - b / (1 - bar) ** 0.5 * guess) / a**0.5
post = gaussian.posterior_variance(bar, prev)
kl = gaussian.normal_kl(mean, post.log(), mu_theta, b.log())
constant = 0.5 * ((b / post).log() + post / b - 1)
eq8 = (mean - mu_theta) ** 2 / (2 * b) + constant
eq12 = b**2 / (2 * b * a * (1 - bar)) * (eps - guess) ** 2 + constant
print(
    f"KL against eq. 8: {(kl - eq8).abs().max():.0e}, against eq. 12: {(kl - eq12).abs().max():.0e}"
)
assert torch.allclose(kl, eq8, rtol=1e-8, atol=1e-9) and torch.allclose(
    kl, eq12, rtol=1e-8, atol=1e-9
)

# %% [markdown] id=simple
# ### Step 8: drop the weight
#
# The paper trains with the same loss without the weight, and with $t$ drawn uniformly (Ho eq. 14):
#
# $$L_{\text{simple}} = \mathbb E_{t, x_0, \varepsilon}\left[\lVert \varepsilon - \varepsilon_\theta(\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon,\ t)\rVert^2\right]$$
#
# (In code the mean over the elements takes the place of their sum $\lVert\cdot\rVert^2$: a constant factor.) That is not the bound any more. It is the bound with other weights on its terms, and every term still has the same best answer. So *what* is learned
# by a perfect network does not change. What changes is which $t$ an imperfect one cares about.
#
# > **Predict before you run.** Compared with the bound, which $t$ does $L_{\text{simple}}$ care less about, and which more?

# %% id=weights
# the finished functions of the exercises, so that nothing below depends on your answers
from ddpm_from_scratch.course.exercises.l03 import eps_weight as bound_weight

weight = bound_weight(betas, betas)[1:]  # Ho eq. 12 holds for t > 1, in code t > 0
share = weight / weight.sum()
for first, last in ((1, 99), (100, 399), (400, 999)):
    simple = (last - first + 1) / 999
    print(
        f"t from {first:>3} to {last}: share of the weight {share[first - 1 : last].sum():.0%} in the bound, "
        f"{simple:.0%} in L_simple"
    )
plots.curves(
    torch.arange(2, 1001),
    {"bound (eq. 12)": share, "$L_{simple}$ (eq. 14)": torch.full((999,), 1 / 999)},
    "t + 1, the papers' t",
    "share of the weight",
    yscale="log",
    alt="Two curves over t on a logarithmic axis. The bound's share is far above one thousandth in "
    "the first steps, falls below it after about a hundred steps, and rises slowly back to it and "
    "a little above towards large t. The simple loss is a flat line at one thousandth.",
    caption="The bound gives the first steps up to dozens of times the weight of those in the "
    "middle, although nobody can see so little noise. The simple loss treats all t alike.",
)

# %% [markdown] id=weights-answer
# <details><summary>Answer</summary>
#
# Less about the first hundred, more about nearly all the others. The bound counts nats, and the finest details of an image hold most of its nats. The eye does not: it wants the shapes, which are decided
# where the noise hides the details. The paper reports worse likelihood and better-looking samples with $L_{\text{simple}}$ (Ho sections 3.4 and 4).
#
# </details>

# %% [markdown] id=three
# ## Three things to predict
#
# $x_t$ is given, and $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ ties $x_0$ and $\varepsilon$ together: who predicts one, predicts the other. From $\varepsilon$
# follows (Ho eq. 15)
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta}{\sqrt{\bar\alpha_t}} .$$
#
# Each has a bad end. At $\bar\alpha_t \to 0$ this divides by nearly 0, and a small error in $\varepsilon_\theta$ becomes a huge one in $\hat x_0$. At
# $\bar\alpha_t \to 1$ the same happens to $\varepsilon$ from a predicted $x_0$. A third target avoids both, the *velocity* (Salimans appendix D):
#
# $$v = \sqrt{\bar\alpha_t}\;\varepsilon - \sqrt{1-\bar\alpha_t}\;x_0$$
#
# **Why "velocity"?** The two scales lie on a circle (lesson 01). Call the angle $\varphi$: $\sqrt{\bar\alpha_t} = \cos\varphi$ and $\sqrt{1-\bar\alpha_t} = \sin\varphi$. Then
# $x = \cos\varphi\; x_0 + \sin\varphi\;\varepsilon$, and its derivative is $\frac{dx}{d\varphi} = -\sin\varphi\; x_0 + \cos\varphi\;\varepsilon = v$. In the
# plane of $x_0$ and $\varepsilon$, the pair $(x_t, v)$ is the pair $(x_0, \varepsilon)$, *rotated* by $\varphi$:
#
# $$\begin{pmatrix} x_t \\ v \end{pmatrix} = \begin{pmatrix} \cos\varphi & \sin\varphi \\ -\sin\varphi & \cos\varphi \end{pmatrix} \begin{pmatrix} x_0 \\ \varepsilon \end{pmatrix}$$
#
# A rotation is undone by rotating back, which is the transposed matrix. Its first row gives $x_0 = \sqrt{\bar\alpha_t}\,x_t - \sqrt{1-\bar\alpha_t}\,v$. Nothing is divided
# by anything. Its second row is your next exercise.

# %% id=circle
angle = 0.6
cos, sin = math.cos(angle), math.sin(angle)
with plots.figure(
    width=4.2,
    height=4.2,
    alt="A quarter circle between a horizontal axis, x_0, and a vertical axis, ε. An arrow of length "
    "1 from the origin, x_t, points at the circle at about 34 degrees. A second arrow of length 1, "
    "v, starts at its tip and runs along the tangent, at a right angle to the first.",
    caption="Noising moves x along the circle from x_0 to ε. v is the direction in which it moves.",
) as ax:
    turn = torch.linspace(0, math.pi / 2, 100)
    ax.plot(turn.cos(), turn.sin(), color=plots.FAINT, linestyle="-")
    colours, arrows = (
        [plots.BLUE, plots.VERMILION],
        ([0, cos], [0, sin], [cos, -sin], [sin, cos]),
    )
    ax.quiver(*arrows, color=colours, angles="xy", scale_units="xy", scale=1, width=0.013)
    ax.text(0.45, 0.2, "$x_t$", color=plots.BLUE, fontsize=14)
    ax.text(0.6, 1.02, "$v$", color=plots.VERMILION, fontsize=14)
    ax.set(xlim=(0, 1.5), ylim=(0, 1.5), aspect="equal")
    ax.set(xlabel="$x_0$ direction", ylabel=r"$\varepsilon$ direction")

x0, eps = draw(5), draw(5)
ahead, back = (math.cos(angle + s) * x0 + math.sin(angle + s) * eps for s in (1e-6, -1e-6))
difference = ((ahead - back) / 2e-6 - gaussian.velocity(x0, eps, cos**2)).abs().max()
print(f"derivative along the circle against v: {difference:.0e}")
assert difference < 1e-8

# %% exercise 03.4
# The inverse of the rotation, second row. Your function must also work at $\bar\alpha_t = 0$. This is what `gaussian.eps_from_v` becomes.

# %% [markdown] id=errors
# ### The same error in three currencies
#
# With $x_t$ fixed, an error of the prediction carries over. From eq. 15, $\Delta x_0 = -\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}\;\Delta\varepsilon$. And
# $\varepsilon = \sqrt{1-\bar\alpha_t}\,x_t + \sqrt{\bar\alpha_t}\,v$ gives $\Delta v = \Delta\varepsilon/\sqrt{\bar\alpha_t}$. So
#
# $$\lVert\Delta x_0\rVert^2 = \frac{1}{\mathrm{SNR}_t}\,\lVert\Delta\varepsilon\rVert^2, \qquad \lVert\Delta v\rVert^2 = \frac{1}{\bar\alpha_t}\,\lVert\Delta\varepsilon\rVert^2 .$$
#
# Choosing what to predict is, for the loss, choosing a weight over $t$.

# %% id=currencies
print("mean squared error, when ε is wrong by 0.1 everywhere")
for t in (0, 100, 300, 600, 999):
    level = float(alpha_bar[t])
    x0, eps = draw(2000), draw(2000)
    x_t, guess = gaussian.q_sample(x0, eps, level), eps + 0.1
    x0_guess = gaussian.x0_from_eps(x_t, guess, level)
    v_guess = gaussian.velocity(x0_guess, guess, level)
    of_x0 = float(((x0_guess - x0) ** 2).mean())
    of_v = float(((v_guess - gaussian.velocity(x0, eps, level)) ** 2).mean())
    back = gaussian.eps_from_v(x_t, v_guess, level)
    print(f"t = {t:>3}: of ε {0.01:.4f}   of x_0 {of_x0:10.6f}   of v {of_v:9.4f}")
    assert math.isclose(of_x0, 0.01 * (1 - level) / level, rel_tol=1e-9)
    assert math.isclose(of_v, 0.01 / level, rel_tol=1e-9)
    assert torch.allclose(back, guess, rtol=0, atol=1e-9) and torch.allclose(
        gaussian.x0_from_v(x_t, v_guess, level), x0_guess
    )

# %% [markdown] id=score
# ## The link to the score
#
# *A good place for a break. From here on the perfect answer is written down and sampled with; a network comes only in the last* going deeper *part.*
#
# The *score* of a distribution is the gradient of its log-density: at each point it says in which direction the density grows fastest. It is what another branch of the
# literature learns, and up to a factor it is our $\mathbb E[\varepsilon \mid x_t]$. For the density $q(x_t) = \int q(x_0)\, q(x_t \mid x_0)\, dx_0$ of all noisy data,
#
# $$
# \begin{aligned}
# \nabla \log q(x_t) &= \frac{\nabla q(x_t)}{q(x_t)} && \text{chain rule} \\
# &= \frac{1}{q(x_t)} \int q(x_0)\, \nabla q(x_t \mid x_0)\, dx_0 && \text{under the integral} \\
# &= \int \frac{q(x_0)\, q(x_t \mid x_0)}{q(x_t)}\, \nabla \log q(x_t \mid x_0)\, dx_0 && \nabla q = q\, \nabla \log q \\
# &= \mathbb E\!\left[\nabla \log q(x_t \mid x_0) \,\middle|\, x_t\right] && \text{Bayes} \\
# &= \mathbb E\!\left[-\frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{1-\bar\alpha_t} \,\middle|\, x_t\right] && \text{a Gaussian's score} \\
# &= -\frac{\mathbb E[\varepsilon \mid x_t]}{\sqrt{1-\bar\alpha_t}} && \text{Ho eq. 4}
# \end{aligned}
# $$
#
# By Bayes the fraction in the third line is $q(x_0 \mid x_t)$, and by Ho eq. 4 the numerator in the fifth is $\sqrt{1-\bar\alpha_t}\,\varepsilon$.
#
# So the expected noise points *downhill*, away from the data, and the score points back (Ho section 3.2 notes the resemblance). Check it on the data of $\pm 1$ from the beginning, where the expectation is a sum
# of two terms, against a derivative that PyTorch takes:

# %% id=score-check
level = float(alpha_bar[200])
clean = torch.tensor([1.0, -1.0], dtype=torch.float64)
prior = torch.tensor([0.7, 0.3], dtype=torch.float64)
x = torch.linspace(-3, 3, 121, dtype=torch.float64, requires_grad=True)
log_parts = prior.log() - (x[:, None] - level**0.5 * clean) ** 2 / (
    2 * (1 - level)
)  # shape (121, 2)
(score,) = torch.autograd.grad(torch.logsumexp(log_parts, dim=1).sum(), x)

share = torch.softmax(log_parts.detach(), dim=1)  # probability of each x_0, given x_t
eps_of_each = gaussian.eps_from_x0(x.detach()[:, None], clean, level)
expected = (share * eps_of_each).sum(dim=1)
difference = (score - gaussian.score_from_eps(expected, level)).abs().max()
print(f"gradient of the log-density against -E[ε | x_t]/√(1-ᾱ_t): {difference:.0e}")
assert difference < 1e-10

# %% [markdown] id=best
# ### What a perfect network says
#
# For one $x_t$ many $\varepsilon$ are possible. Which single answer $f(x_t)$ has the smallest mean squared error? Put $m = \mathbb E[\varepsilon \mid x_t]$ between the two and multiply out:
#
# $$\mathbb E\big[\lVert\varepsilon - f\rVert^2 \,\big|\, x_t\big] = \mathbb E\big[\lVert\varepsilon - m\rVert^2 \,\big|\, x_t\big] + 2\,\big\langle \underbrace{\mathbb E[\varepsilon - m \mid x_t]}_{0},\ m - f\big\rangle + \lVert m - f\rVert^2$$
#
# The first term does not depend on $f$, the last is 0 only for $f = m$. So the best network is $\varepsilon^*(x_t, t) = \mathbb E[\varepsilon \mid x_t]$, whatever the weights of the
# loss. And the loss never reaches 0: its floor is the first term, the noise that cannot be guessed.

# %% [markdown] id=mixture
# ## A mixture, exactly
#
# For images no one knows $\varepsilon^*$. For a *mixture of Gaussians* it is a formula. Let $x_0$ be made in two steps: choose a component $k$ with probability $w_k$, then draw
# $x_0 \sim \mathcal N(m_k, s_k^2 I)$ in $D$ dimensions. (Lesson 02 had the case $s_k = 0$: points.)
#
# **If $k$ is known**, $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ is Gaussian, with mean $\sqrt{\bar\alpha_t}\,m_k$ and variance
# $V_k = \bar\alpha_t s_k^2 + 1 - \bar\alpha_t$ in each dimension. Its covariance with $\varepsilon$ is $\sqrt{1-\bar\alpha_t}$. Refresher C of lesson 00 gives the conditional mean ($\varepsilon$ has mean 0):
#
# $$\mathbb E[\varepsilon \mid x_t, k] = \frac{\sqrt{1-\bar\alpha_t}}{V_k}\,\big(x_t - \sqrt{\bar\alpha_t}\, m_k\big)$$
#
# **How probable is $k$?** By Bayes, and with the density of a Gaussian in $D$ dimensions,
#
# $$r_k(x_t) = \frac{w_k\, \mathcal N(x_t;\ \sqrt{\bar\alpha_t}\,m_k,\ V_k I)}{\sum_j w_j\, \mathcal N(x_t;\ \sqrt{\bar\alpha_t}\,m_j,\ V_j I)}$$
#
# $$\mathcal N(x;\ \mu,\ V I) = (2\pi V)^{-D/2}\, e^{-\lVert x - \mu\rVert^2/(2V)}$$
#
# **Together**, averaging over $k$:
#
# $$\varepsilon^*(x_t, t) = \sum_k r_k(x_t)\; \frac{\sqrt{1-\bar\alpha_t}}{V_k}\,\big(x_t - \sqrt{\bar\alpha_t}\, m_k\big)$$

# %% exercise 03.5
# Write $\varepsilon^*$. Work with the logarithm of $w_k\,\mathcal N(\dots)$ and a softmax: the densities themselves are too small for float32 far from every centre, and one case of the check lies there. (The factor $(2\pi)^{-D/2}$
# is the same for all $k$, and a softmax does not see it.)

# %% id=mixture-data
from ddpm_from_scratch.course.exercises.l03 import CENTRES, STDS, WEIGHTS
from ddpm_from_scratch.course.exercises.l03 import mixture_eps as exact_eps

mixture = [part.double() for part in (WEIGHTS, CENTRES, STDS)]
weights, centres, stds = mixture


def draw_mixture(n, generator):
    """Points of the mixture, shape (n, 2), and the component of each."""
    k = torch.multinomial(weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return centres[k] + stds[k, None] * noise, k


def log_density(x, level):
    """log q(x_t) of the noised mixture, up to a constant."""
    variances = level * stds**2 + 1 - level
    distance = ((x[:, None] - level**0.5 * centres) ** 2).sum(dim=-1)
    logs = weights.log() - distance / (2 * variances) - variances.log()  # D/2 = 1
    return torch.logsumexp(logs, dim=1)


generator = torch.Generator().manual_seed(1)
points, component = draw_mixture(200_000, generator)
print("component   weight   centre          standard deviation")
for k in range(4):
    x, y = centres[k].tolist()
    print(f"{k}           {weights[k]:.1f}      ({x:+.1f}, {y:+.1f})    {stds[k]:.2f}")
print(
    f"data: mean {points.mean(0).tolist()[0]:+.2f}, {points.mean(0).tolist()[1]:+.2f}, variance per axis {float(points.var(0).mean()):.2f}"
)
for t in (20, 200, 600):
    level = float(alpha_bar[t])
    eps = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    x_t = gaussian.q_sample(points, eps, level)
    x = x_t[:2000].clone().requires_grad_(True)
    (score,) = torch.autograd.grad(log_density(x, level).sum(), x)
    best = exact_eps(x_t, level, *mixture)
    wrong = (score - gaussian.score_from_eps(best[:2000], level)).abs().max()
    floor, other = ((eps - best) ** 2).mean(), ((eps - best - 0.1) ** 2).mean()
    gap = (eps - best) * 0.1  # the middle term of the three above: its mean is 0
    off = float(2 * gap.mean() / (2 * gap.std() / math.sqrt(gap.numel())))
    print(
        f"t = {t:>3}: score against autograd {wrong:.0e}; error of ε* {floor:.4f}, of ε* + 0.1 {other:.4f}\n"
        f"{'':<9}which is 0.01 more within {abs(off):.1f} standard errors"
    )
    assert wrong < 1e-8 and abs(off) < 4

# %% id=field
side = torch.linspace(-2.4, 2.4, 15, dtype=torch.float64)
grid = torch.cartesian_prod(side, side)
fine = torch.linspace(-2.4, 2.4, 120, dtype=torch.float64)
fine_grid = torch.cartesian_prod(fine, fine)
with plots.figure(
    columns=3,
    height=3.1,
    sharey=True,
    alt="Three maps of the noised density with arrows. At t = 500 one round hill, and "
    "all arrows point "
    "to its middle. At t = 200 three soft hills that run into each other. At t = 60 "
    "four separate "
    "spots, and long arrows, each to one of them.",
    caption="Grey: density of the noisy data (its square root, so that faint spots show). Arrows: -ε*, the direction of the "
    "score. With "
    "much noise there is one place to go, with less noise the roads part.",
) as axes:
    for ax, t in zip(axes, (500, 200, 60), strict=True):
        level = float(alpha_bar[t])
        density = log_density(fine_grid, level).exp().reshape(120, 120).T
        ax.imshow(
            density.numpy() ** 0.5,
            origin="lower",
            extent=(-2.4, 2.4, -2.4, 2.4),
            cmap="Greys",
        )
        arrows = -exact_eps(grid, level, *mixture)
        ax.quiver(
            *grid.T.numpy(), *arrows.T.numpy(), color=plots.BLUE, scale=45, width=0.006
        )
        ax.set(title=f"t = {t}", aspect="equal")
        ax.grid(False)

# %% [markdown] id=sampling
# ## Sampling without a network
#
# Everything for a sampler is there. At $x_t$: ask for $\varepsilon$; turn it into $\hat x_0$ (eq. 15); draw $x_{t-1}$ from $q(x_{t-1} \mid x_t, \hat x_0)$, a Gaussian with mean $\tilde\mu_t$ and
# variance $\tilde\beta_t$ (eq. 7). By step 6 its mean is exactly $\mu_\theta$ of eq. 11. Do that from $t = T$ down to 1, starting from noise. This is called
# *ancestral sampling*, and it is algorithm 2 of the paper with $\sigma_t^2 = \tilde\beta_t$ (lesson 07 looks at other choices of $\sigma_t$).

# %% exercise 03.6
# Write one step. Use the finished functions of `gaussian`. The picture that appears when you are right is made by your function, in 100 steps.

# %% [markdown] id=sampling-predict
# > **Predict before you run.** 4,000 points of pure noise, 1000 steps, no network. Will each of the four components get its share, 40, 30, 20 and 10 %?

# %% id=sample
from ddpm_from_scratch.course.exercises.l03 import ancestral_step as step_back


def sample(predict, n, seed, stride=1, step=step_back):
    """Points made by `predict(x_t, t)` → ε, and the points on the way, by t."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    visited, kept = [*range(999, -1, -stride), -1], {}
    for t, t_prev in zip(visited, visited[1:], strict=False):
        kept[t] = x
        level, level_prev = (
            float(alpha_bar[t]),
            float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0,
        )
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = step(x, predict(x, t), noise, level, level_prev)
    return x, kept


def perfect(x_t, t):
    return exact_eps(x_t, float(alpha_bar[t]), *mixture)


def nearest(points):
    """The most probable component of clean points."""
    distance = ((points[:, None] - centres) ** 2).sum(dim=-1)
    return (weights.log() - distance / (2 * stds**2) - (stds**2).log()).argmax(dim=1)


made, on_the_way = sample(perfect, 4000, seed=2)
truth = nearest(points)
print("component   share true   share made           spread true   spread made")
compared = []
for k in range(4):
    mine, theirs = nearest(made) == k, truth == k
    share_true, share_made = float(theirs.double().mean()), float(mine.double().mean())
    off = (share_made - share_true) / math.sqrt(share_true * (1 - share_true) / len(made))
    spread_true, spread_made = points[theirs].std(0).mean(), made[mine].std(0).mean()
    print(
        f"{k}           {share_true:.3f}        {share_made:.3f} ({off:+.1f} s.e.)     {spread_true:.3f}         {spread_made:.3f}"
    )
    compared.append((off, float(spread_made / spread_true)))
plots.scatter(
    {f"t = {t}": on_the_way[t][:1000] for t in (999, 400, 200, 80)} | {"made": made[:1000]},
    nearest(made[:1000]),
    alt="Five scatter plots, from a round cloud of mixed colours at t = 999 to four "
    "separate "
    "spots of different size. The colours, which mark the spot where a point ends, "
    "separate between t = 400 and t = 80.",
    caption="Noise turns into the mixture, with formulas only. A point's colour says "
    "where "
    "it will end: at t = 999 nobody could tell, at t = 80 it is decided for nearly all.",
)

# %% [markdown] id=sampling-answer
# <details><summary>Answer</summary>
#
# It does, within the standard errors printed (s.e. = standard errors; with four comparisons the chance of going beyond 4 is about 1 in 4,000, and the seed is fixed). The process is not
# exact: each step has the variance $\tilde\beta_t$ of a *known* $x_0$, a little less than the true step back has. So the spots come out slightly too narrow (the last two columns) with 1000 steps.
#
# </details>
#
# > **Predict before you run.** What happens with 10 steps in place of 1000: are the spots too wide, too narrow, or in the wrong place?


# %% id=steps
def stray(points):
    """Whether each point is further than 4 standard deviations from every centre."""
    away = (points[:, None] - centres).norm(dim=-1) / stds
    return away.min(dim=1).values > 4


# the samples of 1000 steps above, against the truth
assert all(abs(off) < 4 and abs(ratio - 1) < 0.1 for off, ratio in compared)
results = {}
for stride in (1, 10, 50, 100):
    results[1000 // stride] = sample(perfect, 1000, seed=3, stride=stride)[0]
for count, cloud in results.items():
    lost = stray(cloud)
    spread = cloud[(nearest(cloud) == 0) & ~lost].std(0).mean()
    print(
        f"{count:>4} steps: spread of component 0: {spread:.3f} (true {stds[0]:.3f}), "
        f"further than 4σ from every centre: {lost.double().mean():.1%}"
    )
plots.scatter(
    {f"{count} steps": cloud for count, cloud in results.items()},
    alt="Four scatter plots of samples made in 1000, 100, 20 and 10 steps. The first "
    "two look "
    "alike. With 20 steps the spots have shrunk and first bridges appear, with 10 "
    "steps bridges of points lead from "
    "the middle to the three outer spots.",
    caption="The same exact ε*, in fewer and longer steps: what is wrong here is "
    "wrong by "
    "the length of the steps alone.",
)

# %% [markdown] id=steps-answer
# <details><summary>Answer</summary>
#
# Too narrow, and connected by bridges. A long step back is not Gaussian (the two heaps at the beginning), and the sampler takes the one Gaussian whose mean is right and whose variance
# is that of a *known* $x_0$. It leaves out the uncertainty about $x_0$: too little spread, and in between the heaps it lands in the middle. (The printed spread is no smaller with 10 steps than with 20 only because points of the bridges near the spot count as part of it.) Lesson 08 does better with 10 steps.
#
# </details>

# %% [markdown] id=explorer
# ## Move it yourself
#
# The whole lesson on one line, and nothing in it is estimated: the data are two narrow Gaussians, 70 % around $+1$ and 30 % around $-1$. Choose where $x$ is now
# ($x_t$ at $t$) and how many steps to go back. Blue is where it was *if it came from $x_0$* (Ho eq. 6 and 7). Orange is where it was if nobody tells you $x_0$: the exact
# $q(x_{t-1} \mid x_t)$, which is the blue density averaged over every $x_0$ that could be behind $x_t$.
#
# Try: go back one step. Does it matter which $x_0$ you choose? Now 350 steps: when is the orange density one heap, when two? And back to one step:
# which of $x_0$ and $x_t$ moves the blue bell at $t = 0$, which at $t = 900$?

# %% id=posterior-explorer
widgets.posterior_explorer(alpha_bar)

# %% [markdown] id=clinic
# ## Going deeper (not needed later): bug clinic
#
# Four samplers with one bug each, in 250 steps. Their code is hidden: look at the pictures and the log. The first panel is right. No error message comes from any of them.
#
# > **Before you unfold the answers:** one clips $\hat x_0$ to $[-1, 1]$, as one does with pixels; one uses the same noise in every step; one tells the predictor a $t$ that is 60 too small; one adds no noise. Which is which?

# %% id=clinic-runs
from ddpm_from_scratch.course.exercises.l03 import BROKEN

runs = {
    name: sample(perfect, 1000, 4, 4, step)[0]
    for name, step in {"right": step_back, **BROKEN}.items()
}
for name, cloud in runs.items():
    shares = [float((nearest(cloud) == k).double().mean()) for k in range(4)]
    print(
        f"{name:<6} shares "
        + " ".join(f"{s:.2f}" for s in shares)
        + f"   largest |x| {cloud.abs().max():.2f}   spread of component 0 {cloud[nearest(cloud) == 0].std(0).mean():.3f}"
    )
plots.scatter(
    runs,
    alt="Five scatter plots. Right: four spots. A: only two tiny dots. B: everything inside a square "
    "from -1 to 1, with points piled up at its border. C: the spots have moved outwards and are "
    "torn, many points lie outside the picture. D: the spots are blurred.",
    caption="One right run and four wrong ones. C goes on far outside the picture.",
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# - **A** adds no noise. The mean $\tilde\mu_t$ counts on the fresh noise: by itself it leaves too little noise in $x_{t-1}$. Without it, each step pulls the points together, and they end in the most crowded places. Whole components are
#   missing, and what is left has no variety. (Lesson 02's sampler uses the same $\hat x_0$, adds no noise either, and is right: its mean keeps *all* the noise that belongs at $t-1$.)
# - **B** clips $\hat x_0$ to $[-1, 1]$. These data go beyond that.
# - **C** draws the noise once and uses it again in every step. Each step alone is right, but the noises no longer average out: they push in one direction all the way.
# - **D** tells the predictor the wrong $t$, 60 too small. It takes part of the noise for data, so too little is removed at each step, and the spots stay blurred.
#
# </details>
#
# Now the code. In each, one thing is wrong. **Mend one**: copy it into a cell (in D, `ALPHA_BAR` is called `alpha_bar` here, and `mixture_eps` is `exact_eps`) and compare `sample(perfect, 1000, 4, 4, your_step)[0]` with the first panel.

# %% id=clinic-code
for name, step in BROKEN.items():
    print(f"# {name}\n{inspect.getsource(step)}")

# %% [markdown] id=network
# ## Going deeper (not needed later): a network instead
#
# Now forget the formula, and keep only 20,000 points. A small network gets $x_t$ and $t$ and is trained with $L_{\text{simple}}$: draw points, draw a $t$ for each, draw $\varepsilon$, make $x_t$, compare. (Lesson 06 takes
# this loop apart.) Since we know $\varepsilon^*$, we can do what no one can do for images: measure the distance from the perfect answer.


# %% id=net
class SmallNetwork(nn.Module):
    """ε for points in the plane, from x_t of shape (N, 2) and t of shape (N,)."""

    def __init__(self, width=96):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 13, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x_t, t):
        share = t[:, None] / 1000
        waves = share * math.pi * 2.0 ** torch.arange(6)
        return self.layers(torch.cat([x_t, share, waves.sin(), waves.cos()], dim=1))


torch.manual_seed(0)
network = SmallNetwork()
generator = torch.Generator().manual_seed(6)
train_points = draw_mixture(20_000, generator)[0].float()
optimiser = torch.optim.Adam(network.parameters(), lr=6e-3)
steps = 2500
falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
levels = alpha_bar.float()
losses = []
for _ in range(steps):
    clean = train_points[torch.randint(len(train_points), (512,), generator=generator)]
    t = torch.randint(1000, (512,), generator=generator)
    eps = torch.randn(clean.shape, generator=generator)
    x_t = gaussian.q_sample(clean, eps, levels[t, None])
    loss = ((eps - network(x_t, t)) ** 2).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    falling.step()
    losses.append(float(loss.detach()))

# %% [markdown] id=net-predict
# > **Predict before you run.** How far above the loss of the perfect answer does the network's end: by a few per cent, by half, or by several times? And at which $t$ is the network furthest from the perfect answer: little noise or much?

# %% id=net-error
test_points = draw_mixture(4000, generator)[0]
rows, errors = {}, {}
for t in (0, 5, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999):
    eps = torch.randn(test_points.shape, generator=generator, dtype=torch.float64)
    x_t = gaussian.q_sample(test_points, eps, float(alpha_bar[t]))
    best = perfect(x_t, t)
    with torch.no_grad():
        said = network(x_t.float(), torch.full((len(x_t),), t)).double()
    squares = [(a**2).flatten() for a in (eps - best, eps - said, said - best)]
    rows[t] = [float(a.mean()) for a in squares]
    errors[t] = float(squares[0].std()) / math.sqrt(len(squares[0]))
for t in (0, 20, 100, 300, 600, 999):
    print(
        f"t = {t:>3}: loss of the perfect answer {rows[t][0]:.4f} ± {errors[t]:.4f}, of the network {rows[t][1]:.4f}, network against ε* {rows[t][2]:.4f}"
    )
times = torch.tensor(list(rows))
floor, loss_by_t, excess = torch.tensor(list(rows.values())).T
lowest = []
for t in range(5, 1000, 10):
    eps = torch.randn(test_points.shape, generator=generator, dtype=torch.float64)
    x_t = gaussian.q_sample(test_points, eps, float(alpha_bar[t]))
    lowest.append(float(((eps - perfect(x_t, t)) ** 2).mean()))
print(
    f"mean over all t: the last 200 training losses {sum(losses[-200:]) / 200:.3f}, the perfect answer {sum(lowest) / len(lowest):.3f}"
)
with plots.figure(
    columns=2,
    height=3.2,
    alt="Left: the training loss, noisy, falls to 0.2 within a few hundred steps and "
    "then hardly any more. Right: over t, on a logarithmic axis, "
    "the loss of the network lies on that of the perfect answer, from about 1 at t = "
    "0 down, until they part near t = 900; the network's distance from the "
    "perfect answer lies far below both for most t and is largest below t = 100.",
    caption="Left, what one sees in training. Right, what it hides: the loss is "
    "almost all floor, the noise that nobody can guess. "
    "What the network could still learn is the dotted curve.",
) as (left, right):
    left.plot(torch.tensor(losses).reshape(-1, 20).mean(1).repeat_interleave(20))
    left.set(xlabel="training step", ylabel="loss", ylim=(0, 1))
    plots.draw_curves(
        right,
        times,
        {"network": loss_by_t, "perfect answer": floor, "network to perfect": excess},
        "timestep t",
        "mean squared error",
        yscale="log",
    )

# %% [markdown] id=net-answer
# <details><summary>Answer</summary>
#
# By a few per cent, and well above 0: even the perfect answer has nearly this loss. At small $t$ there is next to no noise in $x_t$, so it cannot be told from the data, and for data as smooth as these no predictor gets much below 1 (images with plain backgrounds give more away). At large $t$ nearly all
# of $x_t$ is noise, and the loss is near 0. So **a loss curve says little by itself**: a large loss at small $t$ is not a fault, and two models whose losses differ in the third digit may differ much
# in the dotted curve, the only one that samples depend on.
#
# Against $\varepsilon^*$ the network is worst at small $t$, where $\varepsilon^*$ bends most sharply (the map for $t = 60$ above). There the same error matters least: in $\hat x_0$ it is divided by the SNR. At $t = 999$ it is the other way
# round: a small error, much amplified.
#
# </details>
#
# And the samples: real points, those of the exact $\varepsilon^*$, and those of the network, the last two from the same noise.


# %% id=net-samples
@torch.no_grad()
def learned(x_t, t):
    return network(x_t.float(), torch.full((len(x_t),), t)).double()


assert float(excess.mean()) < 0.05  # the network against ε*, above
by_formula = sample(perfect, 2000, seed=7, stride=4)[0]
by_network = sample(learned, 2000, seed=7, stride=4)[0]
clouds = {"data": test_points[:2000], "exact ε*": by_formula, "network": by_network}
for name, cloud in clouds.items():
    shares = [float((nearest(cloud) == k).double().mean()) for k in range(4)]
    print(
        f"{name:<9} shares "
        + " ".join(f"{s:.3f}" for s in shares)
        + f"   stray points {stray(cloud).double().mean():.1%}"
    )
plots.scatter(
    clouds,
    alt="Three scatter plots with the same four spots. In the network's panel a few "
    "points lie between the spots, "
    "and the edges of the spots are a little softer.",
    caption="Left the truth, in the middle the best that this sampler can do, right "
    "what the "
    "network makes of 20,000 points. Stray points between the spots are its errors.",
)

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Which variance?** $\tilde\beta_t$ is right if $x_0$ is known; the true step back without $x_0$ is a little wider. The paper names two extremes: $\beta_t$ is best for data from $\mathcal N(0, I)$, $\tilde\beta_t$ for data
#   that are a single point (Ho section 3.2). With many steps they nearly agree.
# - **$\hat x_0$ at large $t$ is not an image.** It is a mean over all that is still possible: a blur, and with an imperfect $\varepsilon_\theta$ an amplified error (the table in *the same error in three currencies*).
# - **The target and the sampler must agree.** A network trained for $v$ and sampled as if it gave $\varepsilon$ raises no error. It makes noise.
# - **$\varepsilon$ at $\bar\alpha_t = 0$.** With zero terminal SNR (lesson 02), $x_T$ *is* the noise. Predicting it teaches nothing, and eq. 15 divides by 0. Predict $v$ or $x_0$ there.
# - **The last step.** $\tilde\beta = 0$ there, so no noise is added. With another $\sigma_t$ one has to say so: algorithm 2 sets $z = 0$.
# - **Reading the loss.** See above: most of it is floor.

# %% [markdown] id=summary
# ## Summary
#
# - $q(x_{t-1} \mid x_t)$ depends on all data; $q(x_{t-1} \mid x_t, x_0)$ is a Gaussian with mean $\tilde\mu_t$ and variance $\tilde\beta_t$.
# - The bound on $-\log p_\theta(x_0)$ is, but for its two ends $L_T$ and $L_0$, a sum of KLs between that Gaussian and the network's step. With fixed variances each is a squared difference of means.
# - Written by $\varepsilon$, it is a weighted squared error of the predicted noise. $L_{\text{simple}}$ drops the weight.
# - $\varepsilon$, $x_0$, $v$ and the score are one prediction in four forms; the choice is a weight over $t$, and a question of what is divided by 0.
# - The best prediction is the conditional mean. For a mixture of Gaussians it is a formula, and ancestral sampling with it needs no network.
# - A network approximates it. Its loss is mostly a floor that no network can pass.
#
# Your functions are now `ddpm_from_scratch.gaussian`. **Next:** lesson 04 builds the pieces of a network for images.

# %% id=progress
progress("03")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 03}}
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: eq. 1 (reverse chain), 3 and 5 (bound), 6 and 7 (posterior), 8 to 12 (from means to noise),
#   14 ($L_{\text{simple}}$), 15 ($\hat x_0$), algorithm 2 (sampling), section 3.2 (choice of $\sigma_t$, score), section 3.4 (why drop the weight), appendix A (the bound in full).
# - T. Salimans, J. Ho, *Progressive Distillation for Fast Sampling of Diffusion Models* (2022), arXiv 2202.00512: section 4 and appendix D ($v$ and the circle).
# - Y. Song, S. Ermon, *Generative Modeling by Estimating Gradients of the Data Distribution* (2019), arXiv 1907.05600: the score, and sampling with it.
