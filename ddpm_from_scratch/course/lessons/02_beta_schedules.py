# %% [markdown] id=title
# # 02 · Beta schedules
#
# **How fast should an image turn into noise?** About 45 minutes: half of it reading, half of it six small exercises.
#
# Lesson 01 took the numbers $\beta_1, \dots, \beta_T$ as given. Somebody has to choose them. Nothing is learned in that choice, and no
# error message warns of a bad one. But a network can only be as good as the schedule lets it be, and some published models had one
# that spoiled every sample. This lesson shows the common choices, and what goes wrong with each.
#
# **You will build** the module `ddpm_from_scratch.schedules`.
#
# **Afterwards you can**
#
# - write the linear, scaled linear, cosine and sigmoid schedules, and go from $\beta$ to $\bar\alpha$ and back;
# - read a schedule by its log-SNR;
# - say what is left of the image at the end, and compute what that does to the samples;
# - rescale a schedule so that nothing is left, and say why the network must then predict something other than $\varepsilon$;
# - change $T$ without breaking the schedule, and tell $T$ from the number of sampling steps.

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
import math
from statistics import NormalDist

import torch
from torch import Tensor

from ddpm_from_scratch import DDIMScheduler, gaussian, schedules
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets
from ddpm_from_scratch.data import load_dataset

setup("02")

# %% [markdown] id=picture-first
# ## The whole lesson in one picture
#
# One image, one noise, four schedules. Every column has had the same share of the steps.
#
# > **Predict before you run.** All four end in noise. Do they also spend their steps on the same things? In which one would you take
# > away a fifth of the steps at the end?

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
    caption="The boot after the given share of all steps. The linear schedule spends its "
    "second half on noise; the cosine schedule uses nearly all of its steps.",
)

# %% [markdown] id=hero-answer
# <details><summary>Answer</summary>
#
# The linear one: from the middle on its images are noise, and more noise changes nothing that an eye or a network could use. IDDPM
# (section 3.2) found that one fifth of the reverse steps of the linear schedule could be left out with hardly any loss in FID. The
# cosine schedule was made to mend that. The sigmoid keeps the image longest at the start, then drops fastest, and its last third is noise too.
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
# The first three are drawn in $\beta$. The fourth is drawn in $\bar\alpha$, and the next but one section derives its $\beta$. ("Sigmoid" here is a sigmoid
# in $\beta$. Some papers use that word for a sigmoid in $\bar\alpha$, which is another schedule.)
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

print("                 β_1       β_T       ᾱ at the middle   ᾱ_T        λ_T")
for name in betas:
    a = alpha_bar[name]
    print(
        f"{name:<16} {betas[name][0]:.6f}  {betas[name][-1]:.4f}    {a[T // 2]:.4f}            "
        f"{a[-1]:.1e}    {schedules.log_snr(a)[-1]:+.1f}"
    )

# %% [markdown] id=formulas-note
# The rules of the table, written out and compared with the package:

# %% id=formulas
u = torch.linspace(0, 1, T, dtype=torch.float64)
low, high = 1e-4, 0.02
by_hand = {
    "linear": low + u * (high - low),
    "scaled linear": (low**0.5 + u * (high**0.5 - low**0.5)) ** 2,
    "sigmoid": low + (high - low) / (1 + torch.exp(-(12 * u - 6))),
}
for name, values in by_hand.items():
    difference = float((values - betas[name]).abs().max())
    print(f"{name:<16} largest difference to the package: {difference:.1e}")
    assert difference < 1e-15

# %% exercise 02.1
# Write the scaled linear schedule. It is the one that Stable Diffusion was trained with, there with $\beta$ from 0.00085 to 0.012.

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
# The $\beta_t$ are small, so the first sum decides. **What is left at the end is $e^{-\sum\beta}$, nearly.** For three of the schedules this sum is known:
#
# - **linear**: evenly spaced numbers have the mean of their ends, so $\sum\beta = T\,\frac{\beta_1 + \beta_T}{2}$, exactly.
# - **sigmoid**: the same sum. Pair $u$ with $1-u$: since $\sigma(z) + \sigma(-z) = 1$, each pair has $\beta$s that add up to
#   $\beta_1 + \beta_T$.
# - **scaled linear**: with $a = \sqrt{\beta_1}$, $b = \sqrt{\beta_T}$ the mean of $\beta$ is, for many steps,
#   $\int_0^1 (a + u(b-a))^2 du = \frac{b^3 - a^3}{3(b-a)} = \frac{a^2 + ab + b^2}{3}$.
#
# > **Predict before you run.** Linear from $10^{-4}$ to 0.02: what is $\sum\beta$ for $T = 1000$? And $e^{-\sum\beta}$? What happens to both if somebody sets
# > $T = 100$ and leaves the range as it is?

# %% id=left-check
a, b = low**0.5, high**0.5
sums = {
    "linear": T * (low + high) / 2,
    "sigmoid": T * (low + high) / 2,
    "scaled linear": T * (a * a + a * b + b * b) / 3,
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

short = schedules.linear(100)
print(
    f"\nlinear with T = 100 and the range as it is: Σβ = {float(short.sum()):.4f}, "
    f"ᾱ_T = {schedules.alpha_bars(short)[-1]:.3f}"
)

# %% [markdown] id=left-answer
# <details><summary>Answer</summary>
#
# About 10, and $e^{-10}$ is about $5 \cdot 10^{-5}$. The sum is proportional to $T$: with a tenth of the steps it is about 1, and more than a third of
# the image's variance is still there. **The range of $\beta$ belongs to $T = 1000$.** It is the most common way to break a schedule, and the bug
# clinic below is about it.
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
# away. IDDPM caps $\beta_t$ at 0.999. Then $\bar\alpha_T = 0.001\,\bar\alpha_{T-1}$, tiny and not 0.
#
# **The offset $s$.** Without it, the first steps would do nearly nothing. For a small angle $\varphi$, $\cos^2\varphi \approx 1 - \varphi^2$, so without $s$ the first $\beta$ is
# $\left(\frac{\pi}{2T}\right)^2$, which falls with the *square* of $T$. IDDPM chose $s$ so that the first noise, $\sqrt{\beta_1}$, is slightly smaller than
# one 8-bit step of a pixel, $2/255$.
#
# **Symmetry.** Without $s$ and the cap, $\bar\alpha = \cos^2\varphi$ and $1-\bar\alpha = \sin^2\varphi$, so
# $\lambda = \log\frac{\cos^2\varphi}{\sin^2\varphi} = -2\log\tan\varphi$. Replace $t$ by $T-t$: $\varphi$ becomes $\frac\pi2 - \varphi$, the tangent becomes its inverse,
# and $\lambda$ changes its sign. The schedule has as many steps above $\lambda = 0$ as below.

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

plain = squared_cosine(0.0)
print(
    f"first β: without s {1 - plain[1]:.2e} (small-angle formula {(math.pi / 2 / T) ** 2:.2e}), "
    f"with s {betas['cosine'][0]:.2e}"
)
print(
    f"√β_1: without s {(1 - plain[1]) ** 0.5:.4f}, with s {betas['cosine'][0] ** 0.5:.4f}; "
    f"one 8-bit step of a pixel {2 / 255:.4f}"
)
lam = schedules.log_snr(plain[1:-1])
print(f"λ(t) + λ(T-t), largest: {(lam + lam.flip(0)).abs().max():.1e}")
assert (lam + lam.flip(0)).abs().max() < 1e-9

# %% exercise 02.3
# Write the cosine schedule.

# %% [markdown] id=bad
# ## What a bad schedule does to samples
#
# A sampler starts from a draw of $\mathcal N(0, I)$, but the forward process ends in $q(x_T)$, which still holds $\sqrt{\bar\alpha_T}\,x_0$. If
# $\bar\alpha_T$ is not small, the sampler starts from something that training never produced. What happens then?
#
# To see the schedule's fault and nothing else, we need a network without any fault. For simple data there is one, in closed form: **the exact
# denoiser**, which returns the mean of all clean points that could be behind $x_t$, $\mathbb E[x_0 \mid x_t]$.
#
# Let the data be a mixture of Gaussian clouds: with probability $w_k$ a point comes from cloud $k$, $\mathcal N(m_k, s^2 I)$.
#
# 1. *Inside cloud $k$*, $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ is a sum of independent Gaussians, so
#    $x_t \sim \mathcal N\!\left(\sqrt{\bar\alpha_t}\,m_k,\ \tau^2 I\right)$ with $\tau^2 = \bar\alpha_t s^2 + 1 - \bar\alpha_t$.
# 2. *Which cloud?* By Bayes' rule, $P(k \mid x_t) \propto w_k \exp\!\left(-\lVert x_t - \sqrt{\bar\alpha_t}\,m_k\rVert^2 / 2\tau^2\right)$. The
#    normalisation of the Gaussian is the same for all $k$ and cancels.
# 3. *Where in that cloud?* $x_0$ and $x_t$ are jointly Gaussian with covariance $c = \sqrt{\bar\alpha_t}\,s^2$. Refresher C of lesson 00 gives
#    $\mathbb E[x_0 \mid x_t, k] = m_k + \frac{c}{\tau^2}\left(x_t - \sqrt{\bar\alpha_t}\,m_k\right)$.
# 4. *Together:* $\mathbb E[x_0 \mid x_t] = \sum_k P(k \mid x_t)\ \mathbb E[x_0 \mid x_t, k]$.
#
# Check: $\mathbb E[x_0 \mid x_t]$ is the only function of $x_t$ whose error is uncorrelated with *every* function of $x_t$. So we draw pairs and correlate the error
# with a few.


# %% id=denoiser
weights = torch.tensor([0.8, 0.2], dtype=torch.float64)
centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
spread = 0.15


def probabilities(logits):
    """Softmax over the last axis. Below e^-60 only speed matters, and tiny numbers are slow."""
    return (logits - logits.amax(dim=-1, keepdim=True)).clamp(min=-60).softmax(dim=-1)


def mixture_denoiser(x, a):
    """E[x_0 | x_t] for the mixture; `a` is ᾱ_t. Shape (n, 2)."""
    tau2 = a * spread**2 + 1 - a
    offset = x[:, None] - a**0.5 * centres  # (n, 1, 2) - (clouds, 2) → (n, clouds, 2)
    which = probabilities(weights.log() - (offset**2).sum(-1) / (2 * tau2))
    inside = centres + a**0.5 * spread**2 / tau2 * offset
    return (which[..., None] * inside).sum(dim=1)


def draw_data(n, generator):
    cloud = (torch.rand(n, generator=generator, dtype=torch.float64) > weights[0]).long()
    return centres[cloud] + spread * torch.randn(
        n, 2, generator=generator, dtype=torch.float64
    )


generator = torch.Generator().manual_seed(1)
n = 400_000
for a in (0.9, 0.4, 0.1):
    x0 = draw_data(n, generator)
    x_t = gaussian.q_sample(
        x0, torch.randn(n, 2, generator=generator, dtype=torch.float64), a
    )
    error = x0 - mixture_denoiser(x_t, a)
    probes = {"1": torch.ones_like(x_t), "x_t": x_t, "tanh 3x_t": torch.tanh(3 * x_t)}
    offs = [
        float(p.mean() / (p.std() / math.sqrt(p.numel())))
        for p in ((error * probe)[:, 0] for probe in probes.values())
    ]
    print(
        f"ᾱ = {a}: error times "
        + ", ".join(f"{k}: {o:+.1f}" for k, o in zip(probes, offs, strict=True))
        + " standard errors from 0"
    )
    assert all(abs(off) < 4 for off in offs)

# %% [markdown] id=sampler
# Now a sampler. Lessons 03, 07 and 08 derive samplers with all their steps; here the simplest one is used, and its idea is one sentence: **guess the clean image,
# read off the noise that the guess implies, and mix the two again with the scales of the next lower noise.**
#
# $$\hat x_0 = \mathbb E[x_0 \mid x_t], \qquad \hat\varepsilon = \frac{x_t - \sqrt{\bar\alpha_t}\,\hat x_0}{\sqrt{1-\bar\alpha_t}}, \qquad
# x_{t-1} = \sqrt{\bar\alpha_{t-1}}\;\hat x_0 + \sqrt{1-\bar\alpha_{t-1}}\;\hat\varepsilon$$
#
# The second is equation (B) of lesson 01 solved for $\varepsilon$, the third is (B) again. (It is Song eq. 12 without added noise: DDIM.)


# %% id=sampler-code
def sample(x, alpha_bar, denoiser):
    """Walk from x_T to x_0 along the table `alpha_bar`; the denoiser gives E[x_0 | x_t]."""
    bars = [1.0, *alpha_bar.tolist()]
    for a, a_prev in zip(bars[:0:-1], bars[-2::-1], strict=True):
        x0 = denoiser(x, a)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        x = gaussian.ddim_mean(x0, eps, a_prev)  # √ᾱ_prev x̂_0 + √(1-ᾱ_prev) ε̂
    return x


# %% [markdown] id=bad-predict
# > **Predict before you run.** 80 % of the data lie in the left cloud, 20 % in the right one. The schedule is the linear one stopped after 200 steps, with
# > $\bar\alpha_T$ about 0.13. The denoiser is exact. Starting from $\mathcal N(0, I)$, will the right cloud get fewer than 20 % of the samples, more, or just 20 %?

# %% id=bad-samples
n = 8_000
cut = schedules.alpha_bars(schedules.linear(200))
proper = alpha_bar["linear"][4::5]  # every fifth ᾱ of the full schedule: also 200 steps
generator = torch.Generator().manual_seed(2)
fresh, eps = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
data = draw_data(n, generator)
runs = {
    "the data": data,
    "cut, from N(0, I)": sample(fresh, cut, mixture_denoiser),
    "cut, from q(x_T)": sample(
        gaussian.q_sample(data, eps, float(cut[-1])), cut, mixture_denoiser
    ),
    "proper, from N(0, I)": sample(fresh, proper, mixture_denoiser),
}


def right_share(points):
    return float((points[:, 0] > 0).double().mean())


print(f"ᾱ_T: cut {cut[-1]:.3f}, proper {proper[-1]:.1e}; both 200 steps")
for name, points in runs.items():
    print(
        f"{name:<22} right cloud {right_share(points):.3f}   mean x {points[:, 0].mean():+.3f}"
    )
with plots.figure(
    height=2.8,
    columns=4,
    sharey=True,
    alt="Four scatter plots, each with a large cloud on the left and a small one on the right. "
    "The data, the cut schedule from q(x_T) and the proper schedule have about 20 % on "
    "the right; the cut schedule from N(0, I) has visibly more.",
    caption="An exact denoiser and a bad schedule. Every sample looks right: both clouds are in "
    "their place. But from N(0, I) the cut schedule makes too many of the rare kind.",
) as axes:
    for ax, (name, points) in zip(axes, runs.items(), strict=True):
        plots.draw_points(ax, points[:1000], limit=1.8)
        ax.set_title(name.replace(", f", ",\nf"), fontsize=10)
        ax.set_yticks([])
        ax.text(0.2, 1.2, f"right: {right_share(points):.1%}", fontsize=9)

# %% [markdown] id=bad-answer
# <details><summary>Answer</summary>
#
# More. The data lean to the left, so a right $x_T$ leans to the left as well: its mean is $\sqrt{\bar\alpha_T}\,\mathbb E[x_0]$. Fresh noise does not lean, and what lies
# on the right of where it should be ends up in the right cloud. The samples are pulled towards the mean of the noise, 0. Third row: with the right start the same
# schedule and denoiser are correct. So it is the start that is wrong, and nothing else.
#
# </details>
#
# ### How large is the error? Exactly
#
# Only the horizontal coordinate tells the clouds apart, so look at that alone. With small steps the sampler follows smooth paths, and paths on a line
# cannot cross. So there is one border $z$ at the start: what starts to its right ends in the right cloud. If the start is the true $q(x_T)$, the sampler is
# correct, and 80 % of $q(x_T)$ must lie to the left of $z$:
#
# $$F_T(z) = 0.8, \qquad F_T(z) = \sum_k w_k\, \Phi\!\left(\frac{z - \sqrt{\bar\alpha_T}\,m_k}{\tau_T}\right)$$
#
# with $\Phi$ the distribution function of $\mathcal N(0, 1)$. From $\mathcal N(0, 1)$, the share on the right of the same border is $1 - \Phi(z)$. No sampling is
# needed to know the damage:

# %% id=exact-share
normal = NormalDist()


def predicted_share(a):
    """Share of samples in the right cloud when sampling starts from N(0, I) at ᾱ_T = `a`."""
    tau = math.sqrt(a * spread**2 + 1 - a)

    def below(z):
        return sum(
            float(w) * normal.cdf((z - a**0.5 * float(m)) / tau)
            for w, m in zip(weights, centres[:, 0], strict=True)
        )

    left, right = -9.0, 9.0
    for _ in range(60):  # halve the interval that holds the border
        middle = (left + right) / 2
        left, right = (middle, right) if below(middle) < 0.8 else (left, middle)
    return 1 - normal.cdf(left)


print("linear, stopped after T steps: ᾱ_T, share in the right cloud")
measured = {}
for stop in (50, 100, 200, 300, 400):
    a = schedules.alpha_bars(schedules.linear(stop))
    measured[stop] = right_share(sample(fresh, a, mixture_denoiser))
    formula = predicted_share(float(a[-1]))
    off = (measured[stop] - formula) / math.sqrt(formula * (1 - formula) / n)
    print(
        f"T = {stop:>3}: {a[-1]:.4f}   predicted {formula:.4f}   measured {measured[stop]:.4f}   "
        f"{off:+.1f} standard errors"
    )
    assert abs(off) < 4
lengths = torch.arange(20, 1001, 10)
exact = [
    predicted_share(float(schedules.alpha_bars(schedules.linear(int(k)))[-1]))
    for k in lengths
]
with plots.figure(
    width=7,
    alt="A curve that falls from about 0.45 at T = 20 to 0.21 at T = 500 and reaches 0.20 at "
    "about T = 900. Five measured dots lie on it. A horizontal line marks the truth, 0.20.",
    caption="The share of the rare cloud against the number of steps, with the range of β "
    "left as it is. Line: formula. Dots: sampled.",
) as ax:
    plots.draw_curves(
        ax,
        lengths,
        {"predicted": torch.tensor(exact)},
        "T, with β from 0.0001 to 0.02 whatever T is",
        "share in the right cloud",
    )
    ax.plot(list(measured), list(measured.values()), "o", color=plots.VERMILION)
    ax.axhline(0.2, color=plots.FAINT, linewidth=1.5, linestyle="--")

# %% [markdown] id=images
# ### The same with images
#
# The exact denoiser of a *set of images* is the same formula with $s = 0$ and one "cloud" per image: a weighted mean of the images, each weighted by how well it explains
# $x_t$. It can only give back images of its set. That would be useless as a generator, and it is just what we need here: whatever is wrong with its
# samples is the schedule's doing.
#
# The set: 150 pieces of clothing on black, and the negatives of 150 others, on white. So brightness, the mean of all pixels, varies a lot.
#
# > **Predict before you run.** What did the wrong start do to the two clouds? What will it do to dark and to bright images?


# %% id=image-samples
shown = torch.cat([fashion[:150], -fashion[150:300]])
flat = shown.flatten(1)


def image_denoiser(x, a):
    """E[x_0 | x_t] when x_0 is one of the 300 images, all equally likely."""
    fit = (a**0.5 * x @ flat.T - a * (flat**2).sum(1) / 2) / (1 - a)
    return probabilities(fit) @ flat


generator = torch.Generator().manual_seed(3)
count = 400
fresh_images = torch.randn(count, flat.shape[1], generator=generator)
picked = flat[torch.randint(0, len(flat), (count,), generator=generator)]
early = cut[3::4]  # 50 of the 200 steps: enough here, and the last is kept
image_runs = {
    "the images themselves": picked,
    "cut, from N(0, I)": sample(fresh_images, early, image_denoiser),
    "cut, from q(x_T)": sample(
        gaussian.q_sample(picked, fresh_images, float(early[-1])), early, image_denoiser
    ),
    "proper, from N(0, I)": sample(fresh_images, proper[3::4], image_denoiser),
}
brightness = {name: images.mean(dim=1) for name, images in image_runs.items()}


def report(name, images):
    light = images.mean(dim=1)
    different = len(torch.cdist(images, flat).argmin(dim=1).unique())
    print(
        f"{name:<24} brightness {light.mean():+.3f}, spread {light.std():.3f} "
        f"± {light.std() / math.sqrt(2 * count):.3f}   {different} different images"
    )


for name, images in image_runs.items():
    report(name, images)
plots.image_grid(
    torch.cat(
        [images[:10].reshape(-1, 1, 28, 28) for images in image_runs.values()]
    ).float(),
    10,
    row_labels=[
        "the set",
        "cut, from\nN(0, I)",
        "cut, from\nq(x_T)",
        "proper, from\nN(0, I)",
    ],
    alt="Four rows of ten images of clothing, some on black and some on white. The second row has "
    "only bags and tops that fill the frame, grey or patterned. The other rows also have shoes, "
    "trousers and black or white tops, from dark to bright.",
    caption="Every image is a perfect member of the set, in all rows. The second row is "
    "nevertheless a wrong sample: grey pieces of medium brightness, again and again.",
)

# %% id=brightness-histogram
with plots.figure(
    height=2.7,
    columns=4,
    sharey=True,
    alt="Four histograms of brightness. The set, the cut schedule from q(x_T) and the proper "
    "schedule spread evenly from about -0.9 to 0.9. The cut schedule from N(0, I) has a few tall "
    "spikes and hardly a value beyond 0.6 on either side.",
    caption="Mean brightness of 400 samples each, from black (-1) to white (1). From the wrong "
    "start, the darkest and the brightest images are missing.",
) as axes:
    for ax, (name, values) in zip(axes, brightness.items(), strict=True):
        ax.hist(values.numpy(), bins=24, range=(-1, 1), color=plots.SKY)
        ax.set_title(
            name.replace(", f", ",\nf").replace("the images themselves", "the set"),
            fontsize=10,
        )
        ax.set_xlabel("brightness")
limit = 4 * float(brightness["the images themselves"].std()) / math.sqrt(2 * count)
wide, narrow = (
    float(brightness[name].std()) for name in ("the images themselves", "cut, from N(0, I)")
)
print(
    f"spread lost by the cut schedule: {wide - narrow:.3f}; four standard errors: {limit:.3f}"
)
assert wide - narrow > limit

# %% [markdown] id=images-answer
# <details><summary>Answer</summary>
#
# It pulls them to the middle. An $x_T$ that belongs to a dark image is a little dark on average, and the denoiser, which is exact, knows that. Fresh noise has
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
    "linear, stopped at 200": schedules.linear(200),
}
print(
    "                                 SNR_T     √ᾱ_T      black against white, in standard deviations"
)
print(
    "                                                     of the noise:  28 × 28    256 × 256"
)
for name, b in in_use.items():
    a = schedules.alpha_bars(b)
    trace = float(a[-1]) ** 0.5
    print(
        f"{name:<32} {schedules.snr(a)[-1]:.1e}   {trace:.5f}"
        + " " * 18
        + "".join(f"{2 * trace * side:>11.2f}" for side in (28, 256))
    )

# %% [markdown] id=terminal-note
# The third row is the schedule of Stable Diffusion (which uses it on latent images of 64 × 64). Its trace is easy to read even in 28 × 28 pixels. For the linear schedule the trace is
# harmless in small images and legible in large ones. The cosine schedule is safe in any size in use.

# %% [markdown] id=rescale
# ## The rescale
#
# Lin algorithm 1 repairs any schedule so that $\bar\alpha_T = 0$ exactly (*zero terminal SNR*). Write $r_t = \sqrt{\bar\alpha_t}$, the scale of $x_0$ in $x_t$.
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

# %% id=rescale-check
sd = in_use["scaled linear, 0.00085 to 0.012"]
r = schedules.alpha_bars(sd) ** 0.5
A = r[0] / (r[0] - r[-1])
B = -A * r[-1]
moved = (A * r + B) ** 2
package = schedules.alpha_bars(schedules.rescale_zero_terminal_snr(sd))
print(
    f"A = {A:.4f}, B = {B:.4f}; largest difference to the package {(moved - package).abs().max():.1e}"
)
print(
    f"ᾱ_1: before {r[0] ** 2:.6f}, after {package[0]:.6f};  ᾱ_T: before {r[-1] ** 2:.6f}, after {package[-1]}"
)
assert package[-1] == 0 and torch.allclose(moved, package, rtol=0, atol=1e-12)

with plots.figure(
    columns=2,
    alt="Left: the scale of x_0 over t for the schedule of Stable Diffusion, before and after; the "
    "two curves part slowly, and only the second ends at zero. Right: their log-SNR; they "
    "agree for most of the way, and at the end the second one drops steeply.",
    caption="Before and after the rescale. Left, the scale of the image; right, the log-SNR. "
    "Little changes but the end. (The last log-SNR is minus infinity and cannot be drawn.)",
) as (left, right):
    both = {"before": r**2, "after": package}
    plots.draw_curves(left, steps, {k: a**0.5 for k, a in both.items()}, "timestep t", "√ᾱ")
    plots.draw_curves(
        right,
        steps[:-1],
        {k: schedules.log_snr(a)[:-1] for k, a in both.items()},
        "timestep t",
        "log-SNR",
    )

# %% exercise 02.4
# Write the rescale.

# %% [markdown] id=need-v
# ### At zero SNR, ε says nothing
#
# Most networks predict the noise $\varepsilon$, and the sampler turns it into $\hat x_0$ by solving (B): $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$. At
# $\bar\alpha_T = 0$ we have $x_T = \varepsilon$, so the prediction is trivial, $\hat\varepsilon = x_T$, and $\hat x_0$ is $0/0$. The network is asked for something it can copy, and
# what is needed, a first guess of the image, is not asked for.
#
# So the prediction must be another one. Salimans and Ho (2022) use the *velocity*
#
# $$v = \sqrt{\bar\alpha_t}\;\varepsilon - \sqrt{1-\bar\alpha_t}\;x_0 .$$
#
# The sampler gets $\hat x_0$ back without dividing. Put (B) and $v$ into $\sqrt{\bar\alpha_t}\,x_t - \sqrt{1-\bar\alpha_t}\,v$ and multiply out:
#
# $$
# \begin{aligned}
# \sqrt{\bar\alpha_t}\,x_t - \sqrt{1-\bar\alpha_t}\,v
# &= \bar\alpha_t\,x_0 + \sqrt{\bar\alpha_t(1-\bar\alpha_t)}\,\varepsilon - \sqrt{(1-\bar\alpha_t)\bar\alpha_t}\,\varepsilon + (1-\bar\alpha_t)\,x_0 \\
# &= x_0 .
# \end{aligned}
# $$
#
# In the same way $\varepsilon = \sqrt{1-\bar\alpha_t}\,x_t + \sqrt{\bar\alpha_t}\,v$. At $\bar\alpha_T = 0$, $v = -x_0$: the network says what it can know, the mean of the data. (Lesson 03 says
# more about the three predictions.)


# %% id=v-check
def sample_with(x, alpha_bar, denoiser, prediction):
    """As `sample`, but what passes between network and sampler is "epsilon" or "v"."""
    bars = [1.0, *alpha_bar.tolist()]
    for a, a_prev in zip(bars[:0:-1], bars[-2::-1], strict=True):
        x0 = denoiser(x, a)  # what the exact network knows,
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        if prediction == "epsilon":  # how it says it, and how the sampler reads it
            x0 = gaussian.x0_from_eps(x, eps, a)
        else:
            v = gaussian.velocity(x0, eps, a)
            x0, eps = gaussian.x0_from_v(x, v, a), gaussian.eps_from_v(x, v, a)
        x = gaussian.ddim_mean(x0, eps, a_prev)
    return x


generator = torch.Generator().manual_seed(4)
x0, eps = (torch.randn(1000, generator=generator, dtype=torch.float64) for _ in range(2))
for a in (0.9, 0.3, 0.0):
    x_t, v = gaussian.q_sample(x0, eps, a), gaussian.velocity(x0, eps, a)
    off = max(
        float((gaussian.x0_from_v(x_t, v, a) - x0).abs().max()),
        float((gaussian.eps_from_v(x_t, v, a) - eps).abs().max()),
    )
    print(f"ᾱ = {a}: x_0 and ε back from x_t and v, largest error {off:.1e}")
    assert off < 1e-12

rescaled = schedules.alpha_bars(schedules.rescale_zero_terminal_snr(schedules.linear(200)))
by_eps = sample_with(fresh, rescaled, mixture_denoiser, "epsilon")
by_v = sample_with(fresh, rescaled, mixture_denoiser, "v")
print(
    f"\nrescaled, ε: {int(by_eps.isfinite().all(dim=1).sum())} of {n:,} samples are finite"
)
off = (right_share(by_v) - 0.2) / math.sqrt(0.2 * 0.8 / n)
print(
    f"rescaled, v: right cloud {right_share(by_v):.4f}, truth 0.2000: {off:+.1f} standard errors"
)
print(f"cut,      ε: right cloud {right_share(runs['cut, from N(0, I)']):.4f}")
assert abs(off) < 4

# %% [markdown] id=v-scheduler
# The package's schedulers do not hide that behind a NaN:

# %% id=v-refused
scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
scheduler.set_timesteps(10)
x = torch.zeros(1, 1, 4, 4)
try:
    scheduler.step(x, 999, x)
except ValueError as message:
    print(message)

# %% id=mended-images
mended = sample_with(fresh_images, rescaled[3::4], image_denoiser, "v")
report("the images themselves", picked)
report("cut, from N(0, I)", image_runs["cut, from N(0, I)"])
report("the same, rescaled, v", mended)
assert abs(float(mended.mean(dim=1).std()) - wide) < limit
plots.image_grid(
    torch.cat([image_runs["cut, from N(0, I)"][:10], mended[:10]])
    .reshape(-1, 1, 28, 28)
    .float(),
    10,
    row_labels=["cut", "mended"],
    alt="Two rows of ten images, from the same noise. Above, grey bags and tops of medium "
    "brightness. Below, clothes of all kinds, from dark to bright.",
    caption="From the same noise: above the cut schedule, below the same after the rescale, with "
    "v. Nothing else was changed.",
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

# %% [markdown] id=steps-error-note
# ### What few steps cost
#
# With an exact network and a perfect end, the number of steps still matters. For one Gaussian cloud of standard deviation $s$ the sampler can be followed exactly. Around the
# cloud's centre at 0, $\hat x_0 = \frac{\sqrt{\bar\alpha_t}\,s^2}{\tau^2}x_t$ by item 3 above. So
# $\hat\varepsilon = \frac{x_t}{\sqrt{1-\bar\alpha_t}}\left(1 - \frac{\bar\alpha_t s^2}{\tau^2}\right) = \frac{\sqrt{1-\bar\alpha_t}}{\tau^2}\,x_t$, since
# $\tau^2 - \bar\alpha_t s^2 = 1-\bar\alpha_t$. A step therefore multiplies $x$ by
#
# $$\kappa = \frac{\sqrt{\bar\alpha_{\text{prev}}\,\bar\alpha_t}\;s^2 + \sqrt{(1-\bar\alpha_{\text{prev}})(1-\bar\alpha_t)}}{\tau^2}$$
#
# and the samples end with standard deviation $\kappa_1\kappa_2\cdots\kappa_n$. It should be $s$.
#
# > **Predict before you run.** Which schedule will be best with 10 steps? What does twice as many steps do to the error?


# %% id=steps-error
def visited(alpha_bar, n):
    """ᾱ at n levels, evenly spaced, the last one included ("trailing")."""
    count = len(alpha_bar)
    return alpha_bar[[round(count * (i + 1) / n) - 1 for i in range(n)]]


def final_std(bars, s=spread):
    """Standard deviation of the samples of one cloud N(0, s²), started from N(0, 1)."""
    a = bars.double()
    prev = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
    kappa = ((prev * a) ** 0.5 * s**2 + ((1 - prev) * (1 - a)) ** 0.5) / (a * s**2 + 1 - a)
    return float(kappa.prod())


counts = [5, 10, 20, 40, 100, 200, 1000]
errors = {
    name: torch.tensor([final_std(visited(a, k)) / spread - 1 for k in counts])
    for name, a in alpha_bar.items()
}
print("relative error of the standard deviation, by number of steps n")
print(" " * 16 + "".join(f"{k:>9}" for k in counts))
for name, error in errors.items():
    print(f"{name:<16}" + "".join(f"{float(e):>+9.1%}" for e in error))

generator = torch.Generator().manual_seed(5)
start = torch.randn(n, 2, generator=generator, dtype=torch.float64)
bars = visited(alpha_bar["cosine"], 20)
drawn = float(sample(start, bars, mixture_denoiser)[:, 1].std() / start[:, 1].std())
print(
    f"\nsampled with 20 steps of cosine: {drawn:.5f}; product of the κ: {final_std(bars):.5f}"
)
assert abs(drawn - final_std(bars)) < 1e-12
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
# With 10 steps the sigmoid, with 40 and more the cosine; the linear one is last throughout, since it spends its steps on noise. That holds for a cloud of this width and is
# no law: the answer depends on where the data need the steps. All errors are negative: with few steps the samples are too narrow. From 20 steps on the error falls about as $1/n$: twice the
# steps, half the error. And $T$ does not appear: a schedule with $T = 1000$ sampled in 20 steps has the error of 20 steps.
#
# </details>
#
# ### Start where the noise is
#
# There is a second way to start wrong: a good schedule, and steps that leave out its end. *Leading* spacing (the default of Diffusers' DDPM and DDIM schedulers) visits 0, T/n, 2T/n, … and never
# $T-1$. The sampler's first input is still pure noise, but it is told a $t$ at which the image should show. *Trailing* spacing ends at $T-1$ (Lin et al. recommend it). Lesson 08 compares them on images.

# %% id=spacing
for steps_taken in (3, 5, 10, 50):
    line = f"n = {steps_taken:>2}:"
    for spacing in ("leading", "trailing"):
        scheduler = DDIMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(steps_taken)
        first = int(scheduler.timesteps[0])
        a = float(alpha_bar["linear"][first])
        line += f"   {spacing} starts at t = {first}, ᾱ = {a:.5f}, share {predicted_share(a):.4f}"
    print(line)

# %% [markdown] id=trap
# ## The trap of scaling T
#
# Since $\bar\alpha_T \approx e^{-\sum\beta}$, a schedule with another number of steps must keep the *sum* of its $\beta$s. That is: **multiply the range by $1000/T$**. Then $\bar\alpha$ as a function of
# $t/T$ stays the same, nearly, since by the series above $\log\bar\alpha_t \approx -\sum\beta$, and the sum over the first part of the steps is kept as well. The cosine schedule is defined by $t/T$
# and has no such trap.

# %% id=trap-check
print("           linear, range as it is         linear, range × 1000/T         cosine")
for length in (50, 100, 200, 1000, 4000):
    kept = schedules.alpha_bars(schedules.linear(length))
    fitted = schedules.alpha_bars(schedules.linear(length, 0.1 / length, 20 / length))
    cos = schedules.alpha_bars(schedules.cosine(length))
    half = length // 2 - 1
    print(
        f"T = {length:>4}:  ᾱ half way {kept[half]:.4f}, ᾱ_T {kept[-1]:.0e}   "
        f"ᾱ half way {fitted[half]:.4f}, ᾱ_T {fitted[-1]:.0e}   "
        f"ᾱ half way {cos[half]:.4f}, ᾱ_T {cos[-1]:.0e}"
    )

with plots.figure(
    columns=2,
    sharey=True,
    alt="Two panels of alpha bar against t divided by T for T = 100, 200, 1000 and 4000. Left, with "
    "the range as it is, four different curves: for T = 100 it never falls below 0.36, for 4000 it "
    "is zero after a quarter. Right, with the scaled range, the four curves lie on each other.",
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

try:
    schedules.make_betas("linear", 20, 1e-4 * 50, 0.02 * 50)
except ValueError as message:
    print(f"\nT = 20: {message}")

# %% [markdown] id=trap-note
# At $T = 20$ the scaled range reaches $\beta = 1$, and the recipe ends. It is a rule for small $\beta$. (For few *sampling* steps one does not need a small $T$: train with 1000 levels and visit 20.)

# %% [markdown] id=explorer
# ## Move it yourself
#
# All of this lesson's knobs in one place: the rule, the number of steps, the range of $\beta$, the rescale. The noise is drawn once and kept, so what
# changes in the images is the schedule's doing. Drag a slider, or click it and use the arrow keys; the number of steps can be typed.
#
# Try: take $T$ from 1000 down to 100 and watch the last image; then mend it with the range alone. Tick the rescale: where do $\beta$ and log-SNR go? Then ask for something
# impossible: a range that falls, a $\beta$ of 1.

# %% id=schedule-explorer
widgets.schedule_explorer(fashion[[28, 1]])

# %% [markdown] id=clinic
# ## Bug clinic
#
# To save time, somebody trains with $T = 100$. The loss falls faster than ever. The samples are sharp, but they come in the wrong proportions. Here is the run, with the exact denoiser in the place
# of the network, so the network is not to blame.

# %% id=clinic-log
broken = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
broken_bar = schedules.alpha_bars(broken)
got = right_share(sample(fresh, broken_bar, mixture_denoiser))
print(
    "num_train_timesteps = 100, beta_start = 0.0001, beta_end = 0.02, beta_schedule = linear"
)
print(f"samples in the right cloud: {got:.3f}, in the data: 0.200")
print(
    f"log-SNR from {schedules.log_snr(broken_bar)[0]:+.1f} to {schedules.log_snr(broken_bar)[-1]:+.1f}"
)
generator = torch.Generator().manual_seed(6)
for label, a in (("this run", broken_bar), ("T = 1000", alpha_bar["linear"])):
    t = torch.randint(0, len(a), (20_000,), generator=generator)
    a_t = a[t][:, None]
    x0 = draw_data(len(t), generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x_t = a_t**0.5 * x0 + (1 - a_t) ** 0.5 * eps
    guess = torch.cat([mixture_denoiser(x_t[t == k], float(a[k])) for k in t.unique()])
    clean = torch.cat([x0[t == k] for k in t.unique()])
    print(
        f"{label}: mean squared error of the best guess of x_0: {(guess - clean).square().mean():.3f}"
    )

# %% [markdown] id=clinic-questions
# Before you look at the code:
#
# 1. Which of the three numbers in the log shows the bug without any sampling?
# 2. Why is the error of the best guess *smaller* in the broken run? Is that good?
# 3. Would a longer training help? A larger network? The rescale?
#
# <details><summary>A pointer</summary>
#
# Compute $\sum\beta$ for this run and for the one in the paper.
#
# </details>

# %% exercise 02.6
# Mend the schedule for any `T` from 50 to 1000, so that it destroys the image as the published one does. It stays linear.

# %% id=clinic-fixed
mended_bar = schedules.alpha_bars(schedules.linear(100, 0.1 / 100, 20 / 100))
got = right_share(sample(fresh, mended_bar, mixture_denoiser))
off = (got - 0.2) / math.sqrt(0.2 * 0.8 / n)
print(
    f"range × 1000/T: ᾱ_T = {mended_bar[-1]:.1e}, log-SNR at the end {schedules.log_snr(mended_bar)[-1]:+.1f}"
)
print(f"samples in the right cloud: {got:.3f}, {off:+.1f} standard errors from 0.200")
assert abs(off) < 4

# %% [markdown] id=clinic-answers
# <details><summary>Answers to the three questions</summary>
#
# 1. The last log-SNR. A schedule should end far below 0 (for the linear one with $T = 1000$, at about $-10$); this one ends near it.
# 2. It never sees the noisiest states, so its tasks are easier. A loss compares networks on *one* schedule. Across schedules it says nothing.
# 3. Training and size: no, since the exact denoiser has the same fault. The rescale mends the end, if the network predicts $v$ and is trained on the new schedule, but the levels in between remain
#    those of another schedule.
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
# | leading spacing, few steps, dull samples | the sampler does not start at $T-1$ | trailing spacing |

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
# - $\bar\alpha_T \approx e^{-\sum\beta}$. The range $10^{-4}$ to 0.02 belongs to $T = 1000$; for another $T$, multiply it by $1000/T$.
# - Any falling $\bar\alpha$ is a schedule: $\beta_t = 1 - \bar\alpha_t/\bar\alpha_{t-1}$. The cosine schedule is made so.
# - If $\bar\alpha_T$ is not near 0, samples are wrong even with an exact network: proportions and brightness are pulled to those of noise.
# - The rescale makes $\bar\alpha_T = 0$. Then the network must predict $v$ (or $x_0$), since $\varepsilon$ says nothing about $x_0$ there.
# - $T$ is how finely the noise is divided, $n$ how many levels a sampler visits. The price is $n$.
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
