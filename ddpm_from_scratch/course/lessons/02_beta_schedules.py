# %% [markdown] id=title
# # 02 · Beta schedules
#
# **How fast should an image turn into noise?** About 60 minutes on the main road, more than half of them for six small exercises. Two sections at the end are marked *going deeper* and not needed later (15 minutes more).
#
# Lesson 01 took the numbers $\beta_1, \dots, \beta_T$ as given. Somebody has to choose them. Nothing is learned in that choice, and no
# error message warns of a bad one. But a network can only be as good as the schedule lets it be, and some published models had one
# that harmed every sample. This lesson shows the common choices, and what goes wrong with each.
#
# **You will build** the module `ddpm_from_scratch.schedules`.
#
# **Afterwards you can**
#
# - write the scaled linear and the cosine schedule, and go from $\beta$ to $\bar\alpha$ and back;
# - read a schedule by its log-SNR;
# - say what is left of the image at the end, and compute what that does to the samples;
# - rescale a schedule so that nothing is left, and say why the network must then predict something other than $\varepsilon$;
# - tell $T$ from the number of sampling steps, and see from a log that a schedule is broken.

# %% [markdown] id=notation
# ## Notation
#
# The symbols of lesson 01 stay: $\beta_t$ is the variance that step $t$ adds, $\alpha_t = 1 - \beta_t$, $\bar\alpha_t = \alpha_1 \cdots \alpha_t$.
# New ones:
#
# {{notation 02}}
#
# In code `t` counts from 0: `betas[0]` is the papers' $\beta_1$. *Ho* is the DDPM paper (2020), *IDDPM* is Nichol and Dhariwal (2021),
# *Lin* is Lin et al. (2024).

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import math
from statistics import NormalDist

import torch
from torch import Tensor

from ddpm_from_scratch import gaussian, schedules
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets
from ddpm_from_scratch.data import load_dataset

setup("02")

# %% [markdown] id=picture-first
# ## The whole lesson in one picture
#
# One image, one noise, four schedules. Every column has had the same share of the steps.

# %% id=hero
T = 1000
fashion = load_dataset("fashion-10k", split="test").images()
betas = {
    "linear": schedules.linear(T),
    "scaled linear": schedules.scaled_linear(T),
    "cosine": schedules.cosine(T),
    "sigmoid": schedules.sigmoid(T),
}
alpha_bar = {name: schedules.alpha_bars(b) for name, b in betas.items()}

boot = fashion[28:29]
noise = torch.randn(boot.shape, generator=torch.Generator().manual_seed(0))
columns = [0, 99, 199, 299, 399, 499, 599, 799, 999]
rows = [
    gaussian.q_sample(boot, noise, float(a[t])) for a in alpha_bar.values() for t in columns
]
plots.image_grid(
    torch.cat(rows).float(),
    len(columns),
    titles=[f"{(t + 1) / T:.0%}" for t in columns],
    row_labels=["linear", "scaled\nlinear", "cosine", "sigmoid"],
    alt="Four rows of nine images of one boot, noisier from left to right. In the linear "
    "row the boot is gone at about half of the steps; in the scaled linear and sigmoid rows at "
    "about 60 %, and in the cosine row a trace is left at 60 %.",
    caption="The boot after the given share of all steps. All four end in noise, but they get "
    "there at different times.",
)

# %% [markdown] id=hero-answer
# > **Look, then unfold.** If you had to leave out some steps, in which row would it hurt least, and at which end?
#
# <details><summary>Answer</summary>
#
# At the noisy end of the linear one: there it turns noise into noise, and nothing that an eye could use changes. IDDPM
# (section 3.2) found that one fifth of the reverse steps of the linear schedule could be left out there with hardly any loss of image quality (measured by FID, lesson 11). The
# cosine schedule was made to mend that.
#
# </details>

# %% [markdown] id=four
# ## Four schedules
#
# Let $u$ run evenly from 0 at the first step to 1 at the last.
#
# | name | Diffusers' `beta_schedule` | rule | from |
# |---|---|---|---|
# | linear | `linear` | $\beta = \beta_1 + u\,(\beta_T - \beta_1)$ | Ho section 4, with $\beta_1 = 10^{-4}$, $\beta_T = 0.02$ |
# | scaled linear | `scaled_linear` | $\sqrt\beta = \sqrt{\beta_1} + u\,(\sqrt{\beta_T} - \sqrt{\beta_1})$ | latent diffusion |
# | sigmoid | `sigmoid` | $\beta = \beta_1 + \sigma(12u - 6)\,(\beta_T - \beta_1)$, with $\sigma(z) = 1/(1+e^{-z})$ | Diffusers |
# | cosine | `squaredcos_cap_v2` | $\bar\alpha_t$ is a squared cosine, and $\beta_t$ follows | IDDPM eq. 17 |
#
# The first three are drawn in $\beta$. The fourth is drawn in $\bar\alpha$, and the section *The cosine schedule* derives its $\beta$. ("Sigmoid" here is a sigmoid
# in $\beta$. Some papers use that word for a sigmoid in $\bar\alpha$, which is another schedule. Its $\beta$ only come near the $\beta_1$ and $\beta_T$ of its rule.)
#
# The same schedule can be looked at in three ways: $\beta_t$, what a step does; $\bar\alpha_t$, what is left; and
# $\lambda_t = \log \mathrm{SNR}_t$, how hard the task at $t$ is.

# %% id=three-views
steps = torch.arange(T)
with plots.figure(
    height=6.2,
    rows=2,
    columns=2,
    alt="Four panels with four curves each. Beta: linear rises in a straight line, scaled "
    "linear in a bow below it, sigmoid in an S, all to 0.02; cosine rises slowly and "
    "shoots up at the end. The same on a logarithmic axis. Alpha bar: linear is near "
    "zero from 600 on, sigmoid stays high and drops fast to zero at 650, scaled linear gets there "
    "at 850, cosine falls almost evenly. "
    "Log-SNR: all fall from about 9; the end is -10 for linear and sigmoid, -7 for "
    "scaled linear and -20 for cosine.",
    caption="The same four schedules in three ways (β twice, as it is and on a logarithmic "
    "axis). Read the last panel: equal heights are equal tasks, and flat stretches are "
    "where a schedule spends its steps.",
) as axes:
    views = (
        ("β", betas, "linear"),
        ("β, logarithmic axis", betas, "log"),
        ("ᾱ", alpha_bar, "linear"),
        ("λ = log-SNR", {n: schedules.log_snr(a) for n, a in alpha_bar.items()}, "linear"),
    )
    for ax, (label, lines, scale) in zip(axes.flat, views, strict=True):
        plots.draw_curves(ax, steps, lines, "timestep t", label, scale)
    axes[0, 0].set_ylim(0, 0.03)
    axes[1, 1].axhline(0, color=plots.FAINT, linewidth=1, linestyle="-")
    for ax in list(axes.flat)[1:]:
        ax.get_legend().remove()

print("                 β_1       β_T       ᾱ at T/2   ᾱ_T        λ_T")
for name in betas:
    a = alpha_bar[name]
    print(
        f"{name:<16} {betas[name][0]:.6f}  {betas[name][-1]:.4f}    {a[T // 2 - 1]:.4f}     "
        f"{a[-1]:.1e}    {schedules.log_snr(a)[-1]:+.1f}"
    )

# %% exercise 02.1
# Write the scaled linear schedule. It is the one that Stable Diffusion was trained with, there with $\beta$ from 0.00085 to 0.012.

# %% [markdown] id=formulas-note
# The rules of the table against the package:

# %% id=formulas
u = torch.linspace(0, 1, T, dtype=torch.float64)
low, high = 1e-4, 0.02
by_hand = {
    "linear": low + u * (high - low),
    "sigmoid": low + (high - low) / (1 + torch.exp(-(12 * u - 6))),
}
for name, values in by_hand.items():
    difference = float((values - betas[name]).abs().max())
    print(f"{name:<14} largest difference to the package: {difference:.1e}")
    assert difference < 1e-15
rises = betas["scaled linear"].sqrt().diff()
print(f"scaled linear  √β rises by {rises.min():.6e} to {rises.max():.6e} at every step")
assert torch.allclose(rises, rises[:1], rtol=1e-9)

# %% [markdown] id=where-steps
# ### Where does a schedule spend its steps?
#
# A step is useful where the network has something to decide. Far above $\lambda = 0$ the image is plain to see, far below it there is
# nothing to see. The share of the steps in between says how much of the work is well spent. The borders are a matter of taste and of image size
# (lesson 01: larger images stay recognisable for longer); here, $|\lambda| < 5$.

# %% id=spend
print("share of the steps with        λ > 5     -5 < λ < 5     λ < -5")
for name, a in alpha_bar.items():
    lam = schedules.log_snr(a)
    shares = [(lam > 5), (lam.abs() < 5), (lam < -5)]
    print(f"{name:<28}" + "".join(f"{part.double().mean():>10.0%}  " for part in shares))

# %% [markdown] id=left
# ## What is left at the end
#
# How much of $x_0$ survives all steps? $\bar\alpha_T$ is a product, so its logarithm is a sum. With the series
# $\log(1-\beta) = -\beta - \tfrac12\beta^2 - \tfrac13\beta^3 - \dots$
#
# $$\log \bar\alpha_T = \sum_{t=1}^T \log(1-\beta_t) = -\sum_t \beta_t - \tfrac12 \sum_t \beta_t^2 - \dots$$
#
# Where the $\beta_t$ are small (in all but the cosine schedule), the first sum decides. **What is left at the end is $e^{-\sum\beta}$, nearly.** For three of the schedules this sum is known:
#
# - **linear**: evenly spaced numbers have the mean of their ends, so $\sum\beta = T\,\frac{\beta_1 + \beta_T}{2}$, exactly.
# - **sigmoid**: the same sum. Pair $u$ with $1-u$: since $\sigma(z) + \sigma(-z) = 1$, each pair has $\beta$s that add up to
#   $\beta_1 + \beta_T$.
# - **scaled linear**: the mean of a square whose root rises evenly is, for many steps,
#   $\int_0^1 \big(\sqrt{\beta_1} + u(\sqrt{\beta_T}-\sqrt{\beta_1})\big)^2 du = \frac{\beta_1 + \sqrt{\beta_1\beta_T} + \beta_T}{3}$.
#
# > **Predict before you run.** Linear from $10^{-4}$ to 0.02, $T = 1000$: what is $\sum\beta$? Does $e^{-\sum\beta}$ come out above or below the $\bar\alpha_T$ printed above, and why? And why is more left with the scaled linear one?

# %% id=left-check
sums = {
    "linear": T * (low + high) / 2,
    "sigmoid": T * (low + high) / 2,
    "scaled linear": T * (low + (low * high) ** 0.5 + high) / 3,
}
print("                 Σβ formula   Σβ table   exp(-Σβ)   with -½Σβ²   ᾱ_T")
for name, formula in sums.items():
    total, squares = float(betas[name].sum()), float((betas[name] ** 2).sum())
    print(
        f"{name:<16} {formula:<12.4f} {total:<10.4f} {math.exp(-total):<10.2e} "
        f"{math.exp(-total - squares / 2):<12.2e} {alpha_bar[name][-1]:.2e}"
    )
    assert abs(formula / total - 1) < (2e-3 if name == "scaled linear" else 1e-12)
    assert abs(math.exp(-total - squares / 2) / alpha_bar[name][-1] - 1) < 2e-3

# %% [markdown] id=left-answer
# <details><summary>Answer</summary>
#
# $\sum\beta$ is about 10, and $e^{-\sum\beta}$ lies above $\bar\alpha_T$: every term left out, $-\tfrac12\sum\beta^2$ and so on, is negative. The scaled linear one lies below the linear one everywhere but at its ends, so its sum is smaller and more is left.
#
# </details>

# %% [markdown] id=cosine
# ## The cosine schedule
#
# Nichol and Dhariwal turned the design round: say first how $\bar\alpha$ should fall, then compute the $\beta$ that do it. They wanted
# $\bar\alpha$ to fall almost evenly in the middle and to change little at both ends. A squared cosine does that (IDDPM eq. 17):
#
# $$\bar\alpha_t = \frac{f(t)}{f(0)}, \qquad f(t) = \cos^2\!\left(\frac{t/T + s}{1 + s} \cdot \frac{\pi}{2}\right), \qquad s = 0.008$$
#
# Here $t$ counts as in the papers, from 0 (clean) to $T$. Piece by piece:
#
# **The angle.** $t/T$ goes from 0 to 1. Adding $s$ and dividing by $1+s$ maps that to the range from $\frac{s}{1+s}$ to 1. Times $\pi/2$,
# the angle goes from a little above zero to a right angle, whose cosine is 0.
#
# **Dividing by $f(0)$** makes $\bar\alpha_0 = 1$: before the first step nothing is lost.
#
# **From $\bar\alpha$ to $\beta$.** $\bar\alpha_t$ has one factor more than $\bar\alpha_{t-1}$, namely $\alpha_t = 1-\beta_t$. So
#
# $$\beta_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}$$
#
# and $f(0)$ cancels from the ratio. This works for *any* falling $\bar\alpha$.

# %% exercise 02.2
# Go from $\bar\alpha$ back to $\beta$, for any schedule.

# %% [markdown] id=cosine-cap
# **The cap.** At the last step the angle is a right one, $f(T) = 0$, and so $\beta_T = 1 - 0 = 1$: one step that throws everything
# away. A sampler with a network that predicts $\varepsilon$ divides by $\sqrt{\bar\alpha_T}$ at its first step, so IDDPM caps $\beta_t$ at 0.999. Then $\bar\alpha_T = 0.001\,\bar\alpha_{T-1}$, tiny and not 0.
#
# **The offset $s$.** Without it, the first steps would do nearly nothing. For a small angle $\varphi$, $\cos^2\varphi \approx 1 - \varphi^2$, so without $s$ the first $\beta$ is
# $\left(\frac{\pi}{2T}\right)^2$, which falls with the *square* of $T$. IDDPM chose $s$ so that the first noise, $\sqrt{\beta_1}$, is slightly smaller than
# one 8-bit step of a pixel, $2/255$.

# %% exercise 02.3
# Write the cosine schedule.

# %% id=cosine-check
t = torch.arange(T + 1, dtype=torch.float64)


def squared_cosine(s):
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2
    return f / f[0]


worst = (alpha_bar["cosine"][:-1] - squared_cosine(0.008)[1:-1]).abs().max()
print(f"ᾱ of schedules.cosine against eq. 17, last step apart: {worst:.1e}")
print(
    f"β_T without the cap {1 - squared_cosine(0.008)[-1]:.4f}, with it {betas['cosine'][-1]}"
)
assert worst < 1e-12

without = float(1 - squared_cosine(0.0)[1])
print(f"β_1 without s: {without:.3e}, small-angle formula {(math.pi / 2 / T) ** 2:.3e}")
print(
    f"√β_1 without s {without**0.5:.4f}, with s {betas['cosine'][0] ** 0.5:.4f}; "
    f"one 8-bit step of a pixel {2 / 255:.4f}"
)
assert math.isclose(without, (math.pi / 2 / T) ** 2, rel_tol=1e-4)

# %% [markdown] id=bad
# ## What a bad schedule does to samples
#
# A sampler starts from a draw of $\mathcal N(0, I)$, but the forward process ends in $q(x_T)$, which still holds $\sqrt{\bar\alpha_T}\,x_0$. If
# $\bar\alpha_T$ is not small, the sampler starts from something that training never produced. What happens then?
#
# To see the schedule's fault and nothing else, we need a network without any fault: **the exact
# denoiser**, which returns the mean of everything clean that could be behind $x_t$, $\mathbb E[x_0 \mid x_t]$. If $x_0$ is one of $K$ known points (numbers, or
# images), point $m_k$ with probability $w_k$, it is a formula:
#
# 1. If $x_0 = m_k$, then $x_t \sim \mathcal N\!\left(\sqrt{\bar\alpha_t}\,m_k,\ (1-\bar\alpha_t) I\right)$ (Ho eq. 4).
# 2. By Bayes' rule, the probability that it was point $k$ is $r_k(x_t) \propto w_k \exp\!\left(-\frac{\lVert x_t - \sqrt{\bar\alpha_t}\,m_k\rVert^2}{2(1-\bar\alpha_t)}\right)$. The
#    normalisation of the Gaussian is the same for all $k$ and cancels.
# 3. The mean is $\mathbb E[x_0 \mid x_t] = \sum_k r_k(x_t)\, m_k$.
#
# (Lesson 03 does it for clouds in place of points.) First data: the number $-1$ in 80 % of the cases, $+1$ in 20 %. The check draws many pairs and averages the $x_0$ of
# those whose $x_t$ is near a given place.


# %% id=denoiser
def denoiser(x, a, points, weights):
    """E[x_0 | x_t] when x_0 is one of `points`; `a` is ᾱ_t. Shapes (n, d), (K, d), (K,)."""
    distance = torch.cdist(x, a**0.5 * points) ** 2
    share = torch.softmax(weights.log() - distance / (2 * (1 - a)), dim=1)
    return share @ points


pair = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
odds = torch.tensor([0.8, 0.2], dtype=torch.float64)


def draw_noise(n, generator):
    return torch.randn(n, 1, generator=generator, dtype=torch.float64)


def draw_data(n, generator):
    return pair[torch.multinomial(odds, n, replacement=True, generator=generator)]


generator = torch.Generator().manual_seed(1)
n = 400_000
for a in (0.4, 0.1):
    x0 = draw_data(n, generator)
    x_t = gaussian.q_sample(x0, draw_noise(n, generator), a)
    for place in (-0.5, 0.0, 0.5):
        near = (x_t[:, 0] - place).abs() < 0.05
        said = denoiser(x_t[near], a, pair, odds)
        off = x0[near] - said
        apart = float(off.mean() / (off.std() / math.sqrt(len(off))))
        print(
            f"ᾱ = {a}, x_t near {place:+.1f}: mean x_0 {x0[near].mean():+.3f}, "
            f"formula {said.mean():+.3f} ({apart:+.1f} standard errors apart)"
        )
        assert abs(apart) < 4

# %% [markdown] id=sampler
# Now a sampler. Lessons 03, 07 and 08 derive samplers with all their steps; here the simplest one is used, and its idea is one sentence: **guess the clean image,
# read off the noise that the guess implies, and mix the two again with the scales of the next lower noise.**
#
# $$
# \begin{aligned}
# \hat x_0 &= \mathbb E[x_0 \mid x_t] \\
# \hat\varepsilon &= \frac{x_t - \sqrt{\bar\alpha_t}\,\hat x_0}{\sqrt{1-\bar\alpha_t}} \\
# x_{t-1} &= \sqrt{\bar\alpha_{t-1}}\;\hat x_0 + \sqrt{1-\bar\alpha_{t-1}}\;\hat\varepsilon
# \end{aligned}
# $$
#
# The second is Ho eq. 4 solved for the noise, the third is Ho eq. 4 again, `q_sample` of lesson 01. (Lesson 08 calls this sampler DDIM.)


# %% id=sampler-code
def sample(x, bars, points, weights):
    """The states from x_T to x_0, walking down the table `bars` of ᾱ."""
    states = [x]
    for t in range(len(bars) - 1, -1, -1):
        a = float(bars[t])
        a_prev = float(bars[t - 1]) if t > 0 else 1.0  # before entry 0 comes the clean end
        x0 = denoiser(x, a, points, weights)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        x = gaussian.q_sample(x0, eps, a_prev)
        states.append(x)
    return states


# %% [markdown] id=bad-predict
# > **Predict before you run.** The schedule is the linear one, stopped after 440 of its 1000 steps, with
# > $\bar\alpha_T$ about 0.14. The denoiser is exact. Starting from $\mathcal N(0, 1)$, will $+1$ get fewer than 20 % of the samples, more, or just 20 %?

# %% id=bad-samples
n = 8_000
cut = alpha_bar["linear"][3:440:4]  # every fourth ᾱ is enough here
proper = alpha_bar["linear"][3::4]
generator = torch.Generator().manual_seed(2)
fresh, eps = draw_noise(n, generator), draw_noise(n, generator)
right_start = gaussian.q_sample(draw_data(n, generator), eps, float(cut[-1]))
runs = {
    "cut, from N(0, 1)": (sample(fresh, cut, pair, odds), cut),
    "cut, from q(x_T)": (sample(right_start, cut, pair, odds), cut),
    "proper, from N(0, 1)": (sample(fresh, proper, pair, odds), proper),
}


def share_of_plus(points):
    return float((points > 0).double().mean())


def standard_errors(share, truth, n):
    return (share - truth) / math.sqrt(truth * (1 - truth) / n)


print(f"ᾱ_T: cut {cut[-1]:.3f}, proper {proper[-1]:.1e}")
for name, (states, _) in runs.items():
    print(f"{name:<22} share of +1: {share_of_plus(states[-1]):.3f}   in the data: 0.200")
with plots.figure(
    height=2.9,
    columns=3,
    sharey=True,
    alt="Three panels of paths, from a spread about 0 on the left to -1 or +1 on the right. From "
    "N(0, 1) with the cut schedule the share at +1, written in the corner, is too large; the two "
    "other panels have about the right one. By eye the panels are hard to tell apart.",
    caption="A hundred paths each, from noise (left) to data (right), coloured by where they end. "
    "Every path ends at a right value. But from N(0, 1) the cut schedule takes too many to +1: "
    "the shares in the corners are of all 8,000 paths, a hundred are too few to show it.",
) as axes:
    for ax, (name, (states, bars)) in zip(axes, runs.items(), strict=True):
        paths = torch.cat(states, dim=1)[:100]
        walked = torch.arange(len(bars), -1, -1) * 4
        for path in paths:
            colour = plots.VERMILION if path[-1] > 0 else plots.SKY
            ax.plot(walked, path, color=colour, linewidth=0.6, linestyle="-")
        ax.set(title=name, xlabel="steps of noise left", ylim=(-3.2, 3.2))
        ax.invert_xaxis()
        label = f"+1: {share_of_plus(states[-1]):.1%}"
        ax.text(0.97, 0.94, label, transform=ax.transAxes, ha="right", fontsize=10)
    axes[0].set_ylabel("x")

# %% [markdown] id=bad-answer
# <details><summary>Answer</summary>
#
# More. The data lean to the left, so a right $x_T$ leans to the left as well: its mean is $\sqrt{\bar\alpha_T}\,\mathbb E[x_0]$. Fresh noise does not lean, so more of it lies
# to the right of the border between the two bundles of paths, and ends at $+1$. With the right start the same
# schedule and denoiser are correct. So it is the start that is wrong, and nothing else.
#
# </details>

# %% [markdown] id=images
# ### The same with images
#
# The denoiser does not ask what its points are. Now they are images, all equally likely: $\hat x_0$ is a mean of the images, each weighted by how well it explains
# $x_t$. It can only give back images of its set. That would be useless as a generator, and it is just what we need here: whatever is wrong with its
# samples is the schedule's doing.
#
# The set: 150 pieces of clothing on black, and the negatives of 150 others, on white. So brightness, the mean of all pixels, varies a lot.
#
# > **Predict before you run.** The wrong start made the rare number too frequent. What will it do to dark and to bright images?

# %% id=image-samples
flat = torch.cat([fashion[:150], -fashion[150:300]]).flatten(1)
equal = torch.full((len(flat),), 1 / len(flat))
generator = torch.Generator().manual_seed(3)
count = 400
fresh_images = torch.randn(count, flat.shape[1], generator=generator)
picked = flat[torch.randint(0, len(flat), (count,), generator=generator)]
image_runs = {
    "draws from the set": picked,
    "cut, from N(0, I)": sample(fresh_images, cut[1::2], flat, equal)[-1],
    "proper, from N(0, I)": sample(fresh_images, proper[4::5], flat, equal)[-1],
}


def report(name, images):
    """Prints the mean brightness and its spread over images; returns the spread and its error."""
    light = images.mean(dim=1)
    squares = (light - light.mean()) ** 2
    spread = float(light.std())
    error = float(squares.std()) / (2 * spread * math.sqrt(len(light)))
    different = len(torch.cdist(images, flat).argmin(dim=1).unique())
    print(
        f"{name:<22} brightness {light.mean():+.3f}, spread {spread:.3f} ± {error:.3f}   "
        f"{different} different images"
    )
    return spread, error


spreads = {name: report(name, images) for name, images in image_runs.items()}
plots.image_grid(
    torch.cat([images[:10] for images in image_runs.values()]).reshape(-1, 1, 28, 28),
    10,
    row_labels=["the set", "cut, from\nN(0, I)", "proper, from\nN(0, I)"],
    alt="Three rows of ten images of clothing, some on black and some on white. The second row has "
    "only bags and tops that fill the frame, grey or patterned. The other rows also have shoes, "
    "trousers and black or white tops, from dark to bright.",
    caption="Every image is a perfect member of the set, in all rows. The second row is "
    "nevertheless a wrong sample: grey pieces of medium brightness, again and again.",
)

# %% [markdown] id=images-answer
# <details><summary>Answer</summary>
#
# It pulls them to the middle. At $\bar\alpha_T = 0.14$ the image still shows in $x_T$: an $x_T$ that belongs to a dark image is a little dark on average, and the denoiser, which is exact, knows that. Fresh noise has
# brightness 0, so the denoiser concludes: this was an image of medium brightness. Lin et al. (2024) found this in published models, which could
# not make a night scene or a white page. Variety is lost as well: see the number of different images.
#
# </details>

# %% [markdown] id=terminal
# ## Terminal SNR
#
# How bad are the schedules in use? What counts is the trace that $x_T$ keeps, $\sqrt{\bar\alpha_T}$. In a black and a white image the means of $x_T$ differ by
# $2\sqrt{\bar\alpha_T}$, while the noise in the mean of $d$ pixels is about $1/\sqrt d$. If the first is larger than the second, a network can tell them apart.

# %% id=terminal-table
in_use = {
    "linear, T = 1000": betas["linear"],
    "scaled linear, 0.0001 to 0.02": betas["scaled linear"],
    "scaled linear, 0.00085 to 0.012": schedules.scaled_linear(T, 0.00085, 0.012),
    "cosine": betas["cosine"],
    "sigmoid": betas["sigmoid"],
}
print("black against white, in standard deviations of the noise:")
print(f"{'':<33}SNR_T      √ᾱ_T      28 × 28   256 × 256")
for name, b in in_use.items():
    a = schedules.alpha_bars(b)
    trace = float(a[-1]) ** 0.5
    print(
        f"{name:<33}{schedules.snr(a)[-1]:.1e}    {trace:.5f}"
        + "".join(f"{2 * trace * side:>10.2f}" for side in (28, 256))
    )

# %% [markdown] id=terminal-note
# The third row is the schedule of Stable Diffusion (which uses it on latent images of 64 × 64). Its trace is easy to read even in 28 × 28 pixels. For the linear schedule the trace is
# harmless in small images and legible in large ones. The cosine schedule is safe in any size in use.

# %% [markdown] id=rescale
# ## The rescale
#
# Lin algorithm 1 repairs any schedule so that $\bar\alpha_T = 0$ exactly (*zero terminal SNR*). Write $r_t = \sqrt{\bar\alpha_t}$, the scale of $x_0$ in $x_t$ (not the probability $r_k$ of above).
# We look for new scales $r'_t$ with
#
# 1. $r'_T = 0$: nothing is left at the end;
# 2. $r'_1 = r_1$: the first step stays as it was;
# 3. in between as little change as possible: a straight-line map, $r'_t = A\,r_t + B$.
#
# From 1, $A\,r_T + B = 0$, so $B = -A\,r_T$ and $r'_t = A\,(r_t - r_T)$. From 2, $A\,(r_1 - r_T) = r_1$, so $A = \frac{r_1}{r_1 - r_T}$. Together
#
# $$r'_t = (r_t - r_T)\,\frac{r_1}{r_1 - r_T}, \qquad \bar\alpha'_t = r_t'^2, \qquad \beta'_t = 1 - \frac{\bar\alpha'_t}{\bar\alpha'_{t-1}}$$
#
# and $\beta'_1 = 1 - \bar\alpha'_1 = \beta_1$. The last $\beta'_T = 1 - 0 = 1$: the last step replaces everything by noise.

# %% exercise 02.4
# Write the rescale.

# %% id=rescale-check
sd = in_use["scaled linear, 0.00085 to 0.012"]
before = schedules.alpha_bars(sd)
after = schedules.alpha_bars(schedules.rescale_zero_terminal_snr(sd))
slope = (after.sqrt().diff() / before.sqrt().diff())[:-1]
print(f"ᾱ_1: before {before[0]:.6f}, after {after[0]:.6f}")
print(f"ᾱ_T: before {before[-1]:.6f}, after {after[-1]}")
print(
    f"slope of the map r → r': from {slope.min():.6f} to {slope.max():.6f}, a straight line"
)
assert after[-1] == 0 and math.isclose(after[0], before[0], rel_tol=1e-12)
assert torch.allclose(slope, slope[:1], rtol=1e-6)

with plots.figure(
    columns=2,
    alt="Left: the scale of x_0 over t for the schedule of Stable Diffusion, before and after; the "
    "two curves part slowly, and only the second ends at zero. Right: their log-SNR; they "
    "agree for most of the way, and at the end the second one drops steeply.",
    caption="Before and after the rescale. Left, the scale of the image; right, the log-SNR. "
    "Little changes but the end. (The last log-SNR is minus infinity and cannot be drawn.)",
) as (left, right):
    both = {"before": before, "after": after}
    plots.draw_curves(left, steps, {k: a**0.5 for k, a in both.items()}, "timestep t", "√ᾱ")
    plots.draw_curves(
        right,
        steps[:-1],
        {k: schedules.log_snr(a)[:-1] for k, a in both.items()},
        "timestep t",
        "log-SNR",
    )

# %% [markdown] id=need-v
# ### At zero SNR, ε says nothing
#
# Most networks predict the noise $\varepsilon$, and the sampler turns it into $\hat x_0$ by solving Ho eq. 4: $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$. At
# $\bar\alpha_T = 0$ we have $x_T = \varepsilon$, so the prediction is trivial, $\hat\varepsilon = x_T$, and $\hat x_0$ is $0/0$. The network is asked for something it can copy, and
# what is needed, a first guess of the image, is not asked for.
#
# So after the rescale the network must predict something else: $x_0$ itself, or the *velocity* $v$, a mixture of $x_0$ and $\varepsilon$ from which $\hat x_0$ follows without dividing by
# $\sqrt{\bar\alpha_t}$ (lesson 03). Either lets it say, at $\bar\alpha_T = 0$, what it can know: the mean of the data. Our exact denoiser gives $x_0$, so it needs no change:

# %% id=mended
by_eps = gaussian.x0_from_eps(fresh, fresh, 0.0)  # what a perfect ε says at ᾱ_T = 0
print(f"x̂_0 from ε at ᾱ_T = 0: {int(by_eps.isfinite().sum())} of {n:,} are finite")
first_guess = float(denoiser(fresh, 0.0, pair, odds).mean())
print(f"x̂_0 itself: {first_guess:+.3f}, the mean of the data")
assert math.isclose(first_guess, -0.6, rel_tol=1e-9)

rescaled = schedules.alpha_bars(
    schedules.rescale_zero_terminal_snr(schedules.linear(T)[:440])
)[3::4]
share = share_of_plus(sample(fresh, rescaled, pair, odds)[-1])
off = standard_errors(share, 0.2, n)
print(
    f"cut schedule, rescaled: share of +1 {share:.4f}, {off:+.1f} standard errors from 0.2"
)
assert abs(off) < 4

mended = sample(fresh_images, rescaled[1::2], flat, equal)[-1]
report("cut, from N(0, I)", image_runs["cut, from N(0, I)"])
spread, error = report("the same, rescaled", mended)
wide, narrow = spreads["draws from the set"], spreads["cut, from N(0, I)"]
assert wide[0] - narrow[0] > 4 * math.hypot(wide[1], narrow[1])
assert abs(spread - wide[0]) < 4 * math.hypot(error, wide[1])
plots.image_grid(
    torch.cat([image_runs["cut, from N(0, I)"][:10], mended[:10]]).reshape(-1, 1, 28, 28),
    10,
    row_labels=["cut", "mended"],
    alt="Two rows of ten images, from the same noise. Above, grey bags and tops of medium "
    "brightness. Below, clothes of all kinds, from dark to bright.",
    caption="From the same noise: above the cut schedule, below the same after the rescale. "
    "Nothing else was changed.",
)

# %% [markdown] id=steps-note
# ## T is not the number of sampling steps
#
# Two numbers are easily confused.
#
# - **T** is the number of noise levels that the schedule defines. Training draws one of them per image, so a large $T$ costs nothing.
# - **n** is the number of levels that a sampler visits. Every visit is one run of the network, so $n$ is the price of a sample.
#
# A sampler may leave levels out. What it then walks on is a shorter chain that has the *same* $\bar\alpha$ at the levels $\tau_1 < \tau_2 < \dots < \tau_n$ that it visits. The $\beta$ of
# that chain follow as in exercise 02.2 (IDDPM eq. 19):
#
# $$\beta_{\tau_i} = 1 - \frac{\bar\alpha_{\tau_i}}{\bar\alpha_{\tau_{i-1}}}$$
#
# They are *not* the $\beta$ of the long chain at those places: a step over a hundred levels adds the noise of all hundred.

# %% exercise 02.5
# Compute the $\beta$ of a shorter chain.

# %% [markdown] id=clinic
# ## Bug clinic
#
# Somebody trains a network that predicts $x_0$, with a linear schedule of $T = 100$ steps, to save time. Its loss is lower than ever. The samples are sharp, but they come in the wrong proportions. Here is the run, with the exact denoiser in the place
# of the network, so the network is not to blame. Its $\beta$ are in `broken`: measure them as you like.

# %% id=clinic-log
from ddpm_from_scratch.course.exercises.l02 import BROKEN as broken

generator = torch.Generator().manual_seed(6)
start = draw_noise(n, generator)
patients = {"this run": schedules.alpha_bars(broken), "T = 1000": alpha_bar["linear"]}
for label, bars in patients.items():
    got = share_of_plus(sample(start, bars[3::4], pair, odds)[-1])
    errors = []
    for a in bars[3::4].tolist():
        x0 = draw_data(500, generator)
        x_t = gaussian.q_sample(x0, draw_noise(500, generator), a)
        of_x0 = float((denoiser(x_t, a, pair, odds) - x0).square().mean())
        errors.append((of_x0, of_x0 * a / (1 - a)))  # the same guess, written as x̂_0 and as ε̂
    of_x0, of_eps = torch.tensor(errors).mean(0)
    lam = schedules.log_snr(bars)
    print(
        f"{label}: share of +1 {got:.3f} (data 0.200)   log-SNR from {lam[0]:+.1f} to {lam[-1]:+.1f}"
        f"\n{'':<10}mean squared error over all t: of x̂_0 {of_x0:.3f}, of ε̂ {of_eps:.3f}"
    )
plots.noising_strip(
    boot,
    noise,
    patients["this run"].float(),
    [0, 19, 39, 59, 79, 99],
    alt="A boot and its noisy versions at six timesteps. It is still to be seen in the last one.",
    caption="What this run's network is trained on, from the first to the last timestep.",
)

# %% [markdown] id=clinic-questions
# 1. Which number in the log shows the bug without any sampling?
# 2. Why is the error of $\hat x_0$ *smaller* in the broken run? Is that good?
# 3. Would a longer training help? A larger network? The rescale?
#
# <details><summary>A pointer</summary>
#
# What does the section *What is left at the end* say about $\bar\alpha_T$? Compute it for `broken` and for the schedule in the paper.
#
# </details>

# %% exercise 02.6
# The stub holds the schedule of the broken run. Mend it for any $T$ from 50 to 1000: it stays linear, the ratio of its last $\beta$ to its first stays as it is, and the sum of all $\beta$ is that of the schedule with 1000 steps.

# %% [markdown] id=trap
# ## The trap of scaling T
#
# Since $\bar\alpha_T \approx e^{-\sum\beta}$, **a range of $\beta$ belongs to one number of steps.** A schedule with another $T$ must keep the *sum* of its $\beta$s, so the range is multiplied by $1000/T$. Then $\bar\alpha$ as a function of
# $t/T$ stays the same, nearly, since $\log\bar\alpha_t \approx -(\beta_1 + \dots + \beta_t)$, and the sum over the first part of the steps is kept as well. The cosine schedule is defined by $t/T$
# and has no such trap.

# %% id=trap-check
print("           linear, range as it is        linear, range × 1000/T        cosine")
for length in (50, 100, 200, 1000, 4000):
    kept = schedules.alpha_bars(schedules.linear(length))
    fitted = schedules.alpha_bars(schedules.linear(length, 0.1 / length, 20 / length))
    cos = schedules.alpha_bars(schedules.cosine(length))
    half = length // 2 - 1
    print(
        f"T = {length:>4}:  ᾱ at T/2 {kept[half]:.4f}, ᾱ_T {kept[-1]:.0e}   "
        f"ᾱ at T/2 {fitted[half]:.4f}, ᾱ_T {fitted[-1]:.0e}   "
        f"ᾱ at T/2 {cos[half]:.4f}, ᾱ_T {cos[-1]:.0e}"
    )

with plots.figure(
    columns=2,
    sharey=True,
    alt="Two panels of alpha bar against t divided by T for T = 100, 200, 1000 and 4000. Left, with "
    "the range as it is, four different curves: for T = 100 it never falls below 0.36, for 4000 it "
    "is close to zero after a third. Right, with the scaled range, the four curves lie on each other.",
    caption="ᾱ against t/T. Left, β from 0.0001 to 0.02 whatever T is: four different schedules. "
    "Right, the range multiplied by 1000/T: one schedule, cut finer or coarser.",
) as (left, right):
    for length in (100, 200, 1000, 4000):
        where = torch.arange(1, length + 1) / length
        for ax, scale in ((left, 1.0), (right, 1000 / length)):
            a = schedules.alpha_bars(schedules.linear(length, scale * 1e-4, scale * 0.02))
            ax.plot(where, a, label=f"T = {length}")
    left.set(title="range as it is", xlabel="t/T", ylabel="ᾱ")
    right.set(title="range × 1000/T", xlabel="t/T")
    left.legend(loc="upper right")

mended_bars = schedules.alpha_bars(schedules.linear(100, 0.1 / 100, 20 / 100))
got = share_of_plus(sample(start, mended_bars, pair, odds)[-1])
off = standard_errors(got, 0.2, n)
print(
    f"the clinic's run with the range × 10: share of +1 {got:.3f}, {off:+.1f} standard errors from 0.2"
)
assert abs(off) < 4
try:
    schedules.make_betas("linear", 20, 1e-4 * 50, 0.02 * 50)
except ValueError as message:
    print(f"\nT = 20: {message}")

# %% [markdown] id=trap-note
# At $T = 20$ the scaled range reaches $\beta = 1$, and the recipe ends. It is a rule for small $\beta$. (For few *sampling* steps one does not need a small $T$: train with 1000 levels and visit 20.)

# %% [markdown] id=clinic-answers
# <details><summary>Answers to the three questions of the clinic</summary>
#
# 1. The last log-SNR. A schedule should end far below 0; this one ends near it.
# 2. It never sees the noisiest states, where $x_0$ is hardest to guess. For $\varepsilon$ it is the other way round: those states are the easiest, and the *same* guesses, written as $\hat\varepsilon$, have the larger error in this run. A loss compares networks on *one* schedule
#    and for *one* target. Across schedules it says nothing.
# 3. Training and size: no, since the exact denoiser has the same fault. The rescale mends the end, if the network predicts $v$ or $x_0$ and is trained on the new schedule, but the levels in between remain
#    those of another schedule.
#
# </details>

# %% [markdown] id=explorer
# ## Move it yourself
#
# All of this lesson's knobs in one place: the rule, the number of steps, the range of $\beta$, the rescale. The noise is drawn once and kept, so what
# changes in the images is the schedule's doing. Press the button of a rule; drag a slider, or click it and use the arrow keys; the number of steps can be typed.
#
# Try: take $T$ from 1000 down to 100 and watch the last image; then mend it with the range alone. Tick the rescale: where do $\beta$ and log-SNR go? Then ask for something
# impossible: a range that falls, a $\beta$ of 1.

# %% id=schedule-explorer
widgets.schedule_explorer(fashion[[28, 1]])

# %% [markdown] id=exact
# ## Going deeper (not needed later): how large the error is, exactly
#
# In the pictures of *What a bad schedule does to samples* the paths do not cross. So there is one border $z$ at the start: what starts to its right ends at $+1$. From the true start $q(x_T)$ the sampler is
# correct, so 80 % of $q(x_T)$ must lie to the left of $z$. The share of $q(x_T)$ to the left of a place $z$ is
#
# $$F_T(z) = \sum_k w_k\, \Phi\!\left(\frac{z - \sqrt{\bar\alpha_T}\,m_k}{\sqrt{1-\bar\alpha_T}}\right),$$
#
# with $\Phi$ the distribution function of $\mathcal N(0, 1)$. Solve $F_T(z) = 0.8$. From $\mathcal N(0, 1)$, the share to the right of the same border is $1 - \Phi(z)$. No sampling is
# needed to know the damage:

# %% id=exact-share
normal = NormalDist()


def predicted_share(a):
    """Share of samples at +1 when sampling starts from N(0, 1) at ᾱ_T = `a`."""

    def below(z):
        return sum(
            float(w) * normal.cdf((z - a**0.5 * float(m)) / (1 - a) ** 0.5)
            for w, m in zip(odds, pair[:, 0], strict=True)
        )

    left, right = -9.0, 9.0
    for _ in range(60):  # halve the interval that holds the border
        middle = (left + right) / 2
        left, right = (middle, right) if below(middle) < 0.8 else (left, middle)
    return 1 - normal.cdf(left)


print("the linear schedule, stopped after some steps: share of +1, from fresh noise each")
measured = {}
for stop in (240, 320, 440, 600, 800):
    bars = alpha_bar["linear"][3:stop:4]
    share = share_of_plus(sample(draw_noise(n, generator), bars, pair, odds)[-1])
    formula = predicted_share(float(bars[-1]))
    off = standard_errors(share, formula, n)
    measured[float(bars[-1])] = share
    print(
        f"after {stop}: ᾱ_T = {bars[-1]:.4f}   predicted {formula:.4f}   measured {share:.4f}   "
        f"{off:+.1f} standard errors"
    )
    assert abs(off) < 4
ends = torch.logspace(-4, -0.2, 60, dtype=torch.float64)
with plots.figure(
    width=7,
    height=2.8,
    alt="A curve that rises from 0.20 at alpha bar 0.0001 to about 0.40 near 0.6. Five measured "
    "dots lie on it. A horizontal line marks the truth, 0.20.",
    caption="The share of +1 against what is left at the end. Line: formula. Dots: sampled. "
    "Dashed: the truth.",
) as ax:
    line = torch.tensor([predicted_share(a) for a in ends.tolist()])
    plots.draw_curves(ax, ends, {"predicted": line}, "ᾱ_T", "share of +1")
    ax.plot(list(measured), list(measured.values()), "o", color=plots.VERMILION)
    ax.axhline(0.2, color=plots.FAINT, linewidth=1.5, linestyle="--")
    ax.set_xscale("log")

# %% [markdown] id=steps-error-note
# ## Going deeper (not needed later): what few steps cost
#
# With an exact network and a perfect end, the number of steps still matters. For one Gaussian cloud around 0, of standard deviation $\rho$, the sampler can be followed exactly. $x_t$ has variance
# $V = \bar\alpha_t \rho^2 + 1 - \bar\alpha_t$ and covariance $\sqrt{\bar\alpha_t}\,\rho^2$ with $x_0$, so $\hat x_0 = \frac{\sqrt{\bar\alpha_t}\,\rho^2}{V}x_t$ (refresher C of lesson 00), and
# $\hat\varepsilon = \frac{x_t}{\sqrt{1-\bar\alpha_t}}\left(1 - \frac{\bar\alpha_t \rho^2}{V}\right) = \frac{\sqrt{1-\bar\alpha_t}}{V}\,x_t$. A step therefore multiplies $x$ by
#
# $$\kappa = \frac{\sqrt{\bar\alpha_{\text{prev}}\,\bar\alpha_t}\;\rho^2 + \sqrt{(1-\bar\alpha_{\text{prev}})(1-\bar\alpha_t)}}{V}$$
#
# and the samples end with standard deviation $\kappa_1\kappa_2\cdots\kappa_n$. It should be $\rho$.
#
# > **Predict before you run.** What does twice as many steps do to the error? And a schedule with $T = 4000$ in place of 1000, with as many sampling steps?


# %% id=steps-error
def visited(alpha_bar, n):
    """ᾱ at n levels, evenly spaced, the last one included."""
    count = len(alpha_bar)
    return alpha_bar[[round(count * (i + 1) / n) - 1 for i in range(n)]]


def final_std(bars, rho=0.15):
    """Standard deviation of the samples of one cloud N(0, ρ²), started from N(0, 1)."""
    prev = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    mixed = (prev * bars) ** 0.5 * rho**2 + ((1 - prev) * (1 - bars)) ** 0.5
    return float((mixed / (bars * rho**2 + 1 - bars)).prod())


counts = [5, 10, 20, 40, 100, 200, 1000]
errors = {
    name: torch.tensor([final_std(visited(a, k)) / 0.15 - 1 for k in counts])
    for name, a in alpha_bar.items()
}
finer = schedules.alpha_bars(schedules.cosine(4000))
shown = errors | {
    "cosine, T = 4000": torch.tensor(
        [final_std(visited(finer, k)) / 0.15 - 1 for k in counts]
    )
}
print("relative error of the standard deviation, by number of steps n")
print(" " * 18 + "".join(f"{k:>9}" for k in counts))
for name, error in shown.items():
    print(f"{name:<18}" + "".join(f"{float(e):>+9.1%}" for e in error))

x, bars = torch.ones(1, dtype=torch.float64), visited(alpha_bar["cosine"], 20).tolist()
for a, a_prev in zip(bars[::-1], [*bars[-2::-1], 1.0], strict=True):
    x0 = a**0.5 * 0.15**2 / (a * 0.15**2 + 1 - a) * x
    x = gaussian.q_sample(x0, (x - a**0.5 * x0) / (1 - a) ** 0.5, a_prev)
print(
    f"\n20 steps of cosine, walked: {float(x):.5f}; product of the κ: {final_std(torch.tensor(bars)):.5f}"
)
assert math.isclose(
    float(x), final_std(torch.tensor(bars, dtype=torch.float64)), rel_tol=1e-9
)
with plots.figure(
    width=7,
    alt="Four curves of relative error against the number of steps, both axes logarithmic. From "
    "20 steps on they fall in parallel straight lines, the linear schedule well above the others.",
    caption="How much too narrow the cloud comes out, with an exact network. The schedule decides "
    "where the steps lie; the number of steps decides how far apart.",
) as ax:
    sizes = {name: error.abs() for name, error in errors.items()}
    plots.draw_curves(
        ax, torch.tensor(counts), sizes, "sampling steps n", "relative error", "log"
    )
    ax.set(xscale="log", xticks=counts, xticklabels=counts)
    ax.minorticks_off()

# %% [markdown] id=steps-answer
# <details><summary>Answer</summary>
#
# All errors are negative: with few steps the samples are too narrow. From 20 steps on the error falls about as $1/n$: twice the
# steps, half the error. The two cosine rows agree: a schedule with $T = 4000$ sampled in 20 steps has the error of 20 steps. The linear schedule is last throughout, since it spends its steps on noise; which one is first depends on the number of steps and on where the data need them.
#
# </details>

# %% [markdown] id=wrong
# ## What could go wrong
#
# | what you see | what it is | what to do |
# |---|---|---|
# | samples of medium brightness, no night, no white page | $\bar\alpha_T$ too far from 0 for images of this size | rescale and $v$, or the cosine schedule |
# | samples sharp, but in the wrong proportions | the range of $\beta$ of another $T$ | multiply it by $1000/T$ |
# | NaN in the first sampling step | zero terminal SNR with a network that predicts $\varepsilon$ | predict $v$ or $x_0$ |
# | a trained model gives mush after a change of schedule | a network belongs to the schedule it was trained with | never change the schedule of a trained model; choose other *timesteps* |
# | half of the steps seem to do nothing | a schedule too fast for images of this size | cosine, or fewer levels at the noisy end |
# | a first $\beta$ of 0 | a table that starts at $t = 0$ of the papers | entry 0 is the step from clean to $x_1$ |
# | digits lost at small `t` | a table in float32 or bfloat16 | float64 to the last coefficient (lesson 01) |
# | few steps, dull samples | the sampler's steps leave out $T-1$: it starts from pure noise, but is told a $t$ at which the image should show | end at $T-1$, "trailing" spacing (lesson 08) |

# %% id=wrong-float32
f = torch.cos((torch.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
narrow_betas = 1 - f[1:] / f[:-1]
print("cosine, relative error of β from float32 tables")
for index in (0, 1, 5, 50, 500):
    wanted = float(betas["cosine"][index])
    print(f"t = {index:>3}: {float(narrow_betas[index]) / wanted - 1:+.2%}")

# %% [markdown] id=summary
# ## Summary
#
# - A schedule can be read in three ways: $\beta$ (a step), $\bar\alpha$ (what is left), $\lambda = \log\mathrm{SNR}$ (how hard the task is). Compare schedules by $\lambda$.
# - $\bar\alpha_T \approx e^{-\sum\beta}$ where the $\beta$ are small. The range $10^{-4}$ to 0.02 belongs to $T = 1000$; for another $T$, multiply it by $1000/T$.
# - Any falling $\bar\alpha$ is a schedule: $\beta_t = 1 - \bar\alpha_t/\bar\alpha_{t-1}$. The cosine schedule is made so.
# - If $\bar\alpha_T$ is not near 0, samples are wrong even with an exact network: proportions and brightness are pulled to those of noise.
# - The rescale makes $\bar\alpha_T = 0$. Then the network must predict $v$ (or $x_0$), since $\varepsilon$ says nothing about $x_0$ there.
# - $T$ is how finely the noise is divided, $n$ how many levels a sampler visits. The price is $n$.
# - A loss compares networks on one schedule and for one target only.
#
# The functions of this lesson are now `ddpm_from_scratch.schedules`. **Next:** lesson 03 goes back from noise to data.

# %% id=progress
progress("02")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 02}}
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: section 4, the linear schedule.
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: eq. 17, the cosine schedule; eq. 19, the $\beta$ of a shorter chain.
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed* (2024), arXiv 2305.08891: algorithm 1, the rescale; trailing spacing; $v$-prediction.
# - T. Salimans, J. Ho, *Progressive Distillation for Fast Sampling of Diffusion Models* (2022), arXiv 2202.00512: the velocity $v$.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), arXiv 2112.10752: the model behind the scaled linear schedule.
