# %% [markdown] id=title
# # 09 · The latent space
#
# **What does the noise mean, and what lies between two images?** About 60 minutes: half of it reading, half of it five exercises.
#
# With DDPM the noise $x_T$ is only a beginning; most of what happens is decided by the noise of the steps. DDIM (lesson 08) adds none. So the image is a *function* of $x_T$, and that changes what $x_T$ is: a code. One can look up the
# code of a given image, walk between two codes, and look at what is on the way. This lesson does all three, and measures how well it works.
#
# **You will build** the step of the ODE behind DDIM, the encoder, and interpolation on the sphere. The encoder is `ddim_invert` of the package.
#
# **Afterwards you can**
#
# - derive the ODE of DDIM (Song eq. 13, 14), and solve it exactly for Gaussian data;
# - encode an image, decode it again, and say how the error falls with the number of steps;
# - say why one interpolates noise along a sphere and not along a straight line;
# - interpolate between real images;
# - say, with numbers, why this is done with DDIM and not with DDPM.

# %% [markdown] id=notation
# ## Notation
#
# {{notation 09}}
#
# The $\sigma(t)$ of this lesson is Song's, a *time* that replaces $t$. It is not the $\sigma_t$ of lessons 07 and 08, the noise of a step, which DDIM sets to 0.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_from_scratch import (
    DDIMScheduler,
    DDPMPipeline,
    ddim_invert,
    gaussian,
    schedules,
)
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets
from ddpm_from_scratch.data import load_dataset
from ddpm_from_scratch.reference import shipped_classifier

setup("09")

alpha_bar = schedules.alpha_bars(schedules.linear(T=1000))
digits = DDPMPipeline.from_pretrained("digits").unet
fashion = DDPMPipeline.from_pretrained("fashion").unet


def ddim(steps, spacing="trailing", clip=True):
    """A DDIM scheduler with its timesteps set."""
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=clip)
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def decode(model, x, scheduler, eta=0.0, step_noise=None):
    """From x_T to images, (N, C, H, W), by DDIM, or by DDPM with eta = 1 and one `step_noise` per step."""
    for i, t in enumerate(scheduler.timesteps.tolist()):
        output = model(x, t)
        output = getattr(output, "sample", output)
        if eta == 0:
            x = scheduler.step(output, t, x).prev_sample
        else:  # lesson 08: with ε̂ derived anew from the clipped x̂_0, this is DDPM step for step
            x = scheduler.step(output, t, x, eta, True, variance_noise=step_noise[i]).prev_sample
    return x


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown] id=first
# ## The whole lesson in one picture
#
# Two seeds give two noises, and DDIM makes an image from each: the two ends of the row. Between them the noise is turned gradually from one into the other.

# %% id=hero
from ddpm_from_scratch.course.exercises.l09 import slerp as between

ends = draw(2, 1, 1, 28, 28), draw(3, 1, 1, 28, 28)
path = torch.cat([between(*ends, i / 7) for i in range(8)])
walk = decode(fashion, path, ddim(12))
plots.image_grid(
    torch.cat([path / 2, walk]),
    8,
    row_labels=["$x_T$", "image"],
    alt="Two rows of eight pictures. Above, noise, in which no difference can be seen from one to "
    "the next. Below, one piece of clothing or shoe at the left end, another one at the right "
    "end; between them small changes, and a quick one where the first kind turns into the second.",
    caption="Above the noise, below what DDIM makes of it. Neighbours in the noise are mostly "
    "neighbours among images; where one kind of piece turns into another, the change is quick, and a picture beside it may be of neither kind.",
)

# %% [markdown] id=ode
# ## DDIM is an ODE in disguise
#
# Take the deterministic step of lesson 08 (Song eq. 12 with no noise):
#
# $$x_{\text{prev}} = \sqrt{\bar\alpha_{\text{prev}}}\;\frac{x_t - \sqrt{1-\bar\alpha_t}\,\varepsilon_\theta}{\sqrt{\bar\alpha_t}} + \sqrt{1-\bar\alpha_{\text{prev}}}\;\varepsilon_\theta .$$
#
# **Divide by $\sqrt{\bar\alpha_{\text{prev}}}$**, and sort by $x_t$ and $\varepsilon_\theta$:
#
# $$\frac{x_{\text{prev}}}{\sqrt{\bar\alpha_{\text{prev}}}} = \frac{x_t}{\sqrt{\bar\alpha_t}} + \left(\sqrt{\frac{1-\bar\alpha_{\text{prev}}}{\bar\alpha_{\text{prev}}}} - \sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}\right)\varepsilon_\theta(x_t, t)$$
#
# That is Song eq. 13. The same expression stands on both sides, once for each step. **Give the two expressions names**: $\bar x = x/\sqrt{\bar\alpha}$, which is $x$ with the shrinking undone, and
# $\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}$, the noise on that scale. Then
#
# $$\bar x_{\text{prev}} = \bar x_t + (\sigma_{\text{prev}} - \sigma_t)\;\varepsilon_\theta .$$
#
# New value = old value + (difference in time) × (slope): this is how one *solves a differential equation by Euler's method*, with $\sigma$ as the time. Let the difference go to 0, and what is left is Song eq. 14:
#
# $$\boxed{\;\frac{d\bar x}{d\sigma} = \varepsilon_\theta\!\left(\frac{\bar x}{\sqrt{\sigma^2+1}},\ t(\sigma)\right)\;}$$
#
# The argument is just $x$ again: from $\sigma^2 = (1-\bar\alpha)/\bar\alpha$ follows $\bar\alpha = 1/(1+\sigma^2)$, so $x = \sqrt{\bar\alpha}\,\bar x = \bar x/\sqrt{\sigma^2+1}$.
#
# Three things come for free with an ODE. **Through each point runs one path**, so $x_T$ and $x_0$ determine each other. **It can be run backwards**, from an image to its noise. And **the number of steps is only a matter of precision**: more steps give not another sample, but the same
# one more exactly.

# %% exercise 09.1
# Write the Euler step. Nothing in it says which way time runs, so the same function decodes and encodes.

# %% id=euler-check
from ddpm_from_scratch.course.exercises.l09 import ode_step as finished_step

scheduler = ddim(25, clip=False)
visited = [*scheduler.timesteps.tolist(), -1]
worst = 0.0
for t, t_prev in zip(visited, visited[1:], strict=False):
    x, eps = torch.randn(2, 50, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    before = float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
    gap = scheduler.step(eps, t, x).prev_sample - finished_step(x, eps, float(alpha_bar[t]), before)
    worst = max(worst, float(gap.abs().max()))
print(f"`DDIMScheduler.step` against the Euler step, {len(visited) - 1} steps: largest difference {worst:.0e}")
assert worst < 1e-11

# %% [markdown] id=paths-text
# To see such paths, take one-dimensional data for which $\varepsilon^*$ is a formula: three narrow heaps (lesson 03).
#
# > **Predict before you run.** Eleven starting points for DDIM. How many of the paths cross? And if DDPM starts eleven times from *one* point?

# %% id=paths
from ddpm_from_scratch.course.exercises.l03 import mixture_eps

heaps = (
    torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64),
    torch.tensor([[-1.0], [0.1], [0.9]], dtype=torch.float64),
    torch.tensor([0.06, 0.06, 0.06], dtype=torch.float64),
)


def trajectories(x, eta, seed=0):
    """x at every one of 200 steps, shape (201, N)."""
    scheduler, seen = ddim(200, clip=False), [x]
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps.tolist():
        eps = mixture_eps(x, float(alpha_bar[t]), *heaps)
        x = scheduler.step(eps, t, x, eta=eta, generator=generator).prev_sample
        seen.append(x)
    return torch.stack(seen)[..., 0]


starts = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]
lines = {"DDIM, eleven starts": trajectories(starts, 0.0)}
lines["DDPM, one start"] = trajectories(torch.full_like(starts, 0.4), 1.0)
for name, x in lines.items():
    in_order = (x.diff(dim=1) > 0).all(dim=1)
    print(f"{name:<18} in order at {int(in_order.sum())} of {len(x)} moments, ends spread by {x[-1].std():.2f}")
with plots.figure(
    columns=2,
    height=3.2,
    sharey=True,
    alt="Two panels with eleven lines each, x over t, read from right to left: DDIM and DDPM.",
    caption="x over t, with the exact ε*: the paths begin at the right end.",
) as axes:
    steps = torch.tensor([*ddim(200).timesteps.tolist(), -1])
    for ax, (title, x) in zip(axes, lines.items(), strict=True):
        ax.plot(steps, x, linewidth=1.2, linestyle="-", color=plots.BLUE, alpha=0.8)
        ax.set(title=title, xlabel="timestep t")

# %% [markdown] id=paths-answer
# <details><summary>Answer</summary>
#
# None: two paths that met would have the same slope from there on, and would be one path. In one dimension that means that the order is kept, and in the left panel the paths gather in three bundles without crossing. DDPM's paths part at once, wander and cross all the time, and their ends are spread over all heaps: where they start says next to nothing.
#
# </details>

# %% [markdown] id=exact
# ### One Gaussian, solved exactly
#
# For data from $\mathcal N(m, s^2)$ the perfect network is $\varepsilon^* = \sqrt{1-\bar\alpha}\,(x-\sqrt{\bar\alpha}\,m)\,/\,(\bar\alpha s^2 + 1 - \bar\alpha)$ (lesson 03). Write it in the new variables, with $x = \sqrt{\bar\alpha}\,\bar x$ and $1-\bar\alpha = \bar\alpha\sigma^2$:
#
# $$\varepsilon^* = \frac{\sqrt{\bar\alpha}\,\sigma \cdot \sqrt{\bar\alpha}\,(\bar x - m)}{\bar\alpha\,(s^2+\sigma^2)} = \frac{\sigma}{s^2+\sigma^2}\,(\bar x - m),$$
#
# so
#
# $$\frac{d}{d\sigma}\log|\bar x - m| = \frac{\sigma}{s^2+\sigma^2} = \frac{d}{d\sigma}\,\tfrac12\log(s^2+\sigma^2) .$$
#
# Both sides are derivatives of logarithms. Integrate from 0, where $\bar x = x_0$, to $\sigma$:
#
# $$\bar x(\sigma) - m = (x_0 - m)\,\frac{\sqrt{s^2+\sigma^2}}{s}$$
#
# As $\sigma$ grows, $x = \bar x/\sqrt{1+\sigma^2}$ tends to $(x_0-m)/s$: **the code of a point is how many standard deviations it lies from the mean.** A meaningful number, and standard normal over the data, as $x_T$ must be.

# %% id=flow


def flow(x0, level, m, s):
    """x at the level ᾱ on the exact path of x_0, for data N(m, s²)."""
    sigma2 = (1 - level) / level
    return level**0.5 * (m + (x0 - m) * ((s**2 + sigma2) / s**2) ** 0.5)


m, s = 0.3, 0.5


def perfect(x, t):
    level = float(alpha_bar[int(t)])
    return (1 - level) ** 0.5 * (x - level**0.5 * m) / (level * s**2 + 1 - level)


assert (lines["DDIM, eleven starts"].diff(dim=1) > 0).all()
points = m + s * torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
sigma = torch.linspace(0.1, 5, 50, dtype=torch.float64)
step = 1e-5
derivative = [
    (flow(points[:1], 1 / (1 + (v + h) ** 2), m, s) * (1 + (v + h) ** 2) ** 0.5) for v in sigma.tolist() for h in (step, -step)
]
derivative = (torch.cat(derivative[0::2]) - torch.cat(derivative[1::2])) / (2 * step)
levels = 1 / (1 + sigma**2)
slope = torch.stack(
    [
        (1 - a) ** 0.5 * (flow(points[0], a, m, s) - a**0.5 * m) / (a * s**2 + 1 - a)
        for a in levels.tolist()
    ]
)
print(f"derivative of the solution against ε*: largest difference {(derivative - slope).abs().max():.0e}")
assert (derivative - slope).abs().max() < 1e-6
code = flow(points, float(alpha_bar[-1]), m, s)
print(f"code at t = 999 against (x_0 - m)/s: largest difference {(code - (points - m) / s).abs().max():.4f}")

# %% [markdown] id=encode
# ## Encode
#
# To encode is to walk the same path the other way: from $\sigma = 0$ up. One thing is different. The slope of a step should be taken where the step *starts* (Euler), and the start is now the cleaner end. So
#
# - decoding from $t$ down to $t_{\text{prev}}$ asks the network at $(x_t, t)$;
# - encoding from $t_{\text{prev}}$ up to $t$ asks it at $(x_{\text{prev}}, t_{\text{prev}})$.
#
# These are not the same numbers. A step up does not undo a step down exactly, only up to the change of the slope along the step. And there is a detail at the beginning: $x_0$ has no timestep of its own, since `t = 0` has one step of noise. There one asks at the smallest timestep that is visited.

# %% exercise 09.2
# Write the encoder. The package has it as `ddim_invert(model, x0, scheduler)`.

# %% id=encode-digits
real = load_dataset("digits", split="test").resized(16).images(slice(0, 5))
scheduler = ddim(30, spacing="linspace", clip=False)
with torch.no_grad():
    codes = ddim_invert(digits, real, scheduler)
back = decode(digits, codes, scheduler)


def in_two_scales(x):
    """Standard deviations of the means of 2 × 2 pixels, and of what is left."""
    coarse = torch.nn.functional.avg_pool2d(x, 2)
    detail = x - coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return float(coarse.std()), float(detail.std())


print("standard deviation: all, of means of 2 × 2 pixels, of the rest")
for name, x in (("images", real), ("codes", codes), ("N(0, I)", draw(50, 500, *real.shape[1:]))):
    print(f"{name:<8} {x.std():.2f}   " + "   ".join(f"{v:.2f}" for v in in_two_scales(x)))
print(f"decoded again: root mean squared error of a pixel {(back - real).square().mean().sqrt():.3f}")
plots.image_grid(
    torch.cat([real, codes / 2, back]),
    5,
    row_labels=["image", "code", "decoded"],
    alt="Three rows of five pictures: handwritten digits, their codes, which look like noise of small amplitude, and "
    "the digits decoded from the codes, nearly the same as those above.",
    caption="Five digits that the model was not trained on, their codes, and what comes back.",
)

# %% [markdown] id=codes-note
# Look at the second row again: it is noise, but quieter than a draw from $\mathcal N(0, I)$, and the table says where. These digits are smooth (they were enlarged from 8 × 8 pixels), so fine detail is a direction in which the data hardly vary. There the standard deviation $s$ is smaller than the first step of $\sigma$, so with few steps Euler's method cannot tell which noise is called for,
# and the way up from exactly no detail ends near the middle, 0. The same holds for border pixels that are always black. More steps make the codes louder, though only slowly. So the code that a few steps find is not a typical draw.

# %% [markdown] id=loss
# ## How much is lost
#
# Euler's method with $n$ steps makes an error of about $h^2$ in each step of length $h \approx 1/n$, and there are $n$ of them: $n \cdot h^2 = 1/n$ altogether. Twice as many steps, half the error. It is a method of **order 1**. On a picture with two logarithmic axes such a law is a straight line of slope $-1$, and the
# slope can be measured.

# %% exercise 09.3
# Write the measurement: the order from a list of step counts and errors.

# %% [markdown] id=loss-predict
# For one Gaussian the exact path is known, so each direction can be tested by itself: decode the exact code, encode the exact image, and both in a row. For digits only the last is possible.
#
# > **Predict before you run.** The law was derived for one way. Encode, then decode: do the two errors cancel, or which order is left? And does the network follow the law with as few as 5 to 40 steps?

# %% id=loss-runs
from ddpm_from_scratch.course.exercises.l09 import convergence_order as measured_order

counts = [25, 50, 100, 200, 400]
errors = {"decode": [], "encode": [], "encode, then decode": []}
for n in counts:
    scheduler = ddim(n, spacing="linspace", clip=False)
    exact_code = flow(points, float(alpha_bar[999]), m, s)
    coded = ddim_invert(perfect, points, scheduler)
    pairs = (
        (decode(perfect, exact_code, scheduler), points),
        (coded, exact_code),
        (decode(perfect, coded, scheduler), points),
    )
    for name, (found, truth) in zip(errors, pairs, strict=True):
        errors[name].append(float((found - truth).square().mean().sqrt()))
for name, values in errors.items():
    order = measured_order(torch.tensor(counts), torch.tensor(values))
    print(f"one Gaussian, {name:<20} error with {counts[0]} steps {values[0]:.4f}, with {counts[-1]} {values[-1]:.4f}: order {order:.2f}")

few = [5, 10, 20, 40]
lost = []
for n in few:
    scheduler = ddim(n, spacing="linspace", clip=False)
    with torch.no_grad():
        coded = ddim_invert(digits, real[:3], scheduler)
    lost.append(float((decode(digits, coded, scheduler) - real[:3]).square().mean().sqrt()))
order = measured_order(torch.tensor(few), torch.tensor(lost))
print("digits, encode, then decode: " + ", ".join(f"{n} steps {e:.3f}" for n, e in zip(few, lost, strict=True)) + f": order {order:.2f}")

with plots.figure(
    width=7,
    height=3.4,
    alt="Four curves on two logarithmic axes, three for one Gaussian and one for digits, beside a thin "
    "dashed line of slope -1.",
    caption="Error over the number of steps. The dashed line halves when the steps double.",
) as ax:
    for name, values in errors.items():
        ax.plot(counts, values, "o-", markersize=4, label=f"one Gaussian, {name}")
    ax.plot(few, lost, "s-", markersize=5, label="digits, encode, then decode")
    ax.plot(counts, [3 / n for n in counts], "--", linewidth=1, color=plots.FAINT)
    ax.set(xscale="log", yscale="log", xlabel="number of steps", ylabel="root mean squared error")
    ax.legend(fontsize=9)

# %% [markdown] id=loss-answer
# <details><summary>Answer</summary>
#
# Order 1 in both directions, as Euler's method must have, and for the two in a row, since their errors add up: three straight lines, parallel to the dashed one. (An error of the code is $s = 0.5$ times as large in the data: half of the second printed error plus the first is about the third.) (A method of order 2 would need the network twice per step, or its earlier answers.) And yes, the network follows the law
# from 5 steps on: each doubling nearly halves its error.
#
# </details>

# %% [markdown] id=between
# ## Between two noises
#
# What lies between $z_0$ and $z_1$, two draws from $\mathcal N(0, I)$ in $D$ dimensions? The first idea is the straight line, $(1-w)\,z_0 + w\,z_1$ ("lerp"). It is wrong. The two are independent, so each element of the mixture has variance
#
# $$(1-w)^2 + w^2, \qquad\text{which is } \tfrac12 \text{ at } w = \tfrac12 .$$
#
# The network at $t = T$ has never seen noise of variance ½. In high dimension this is not a matter of chance: $\lVert z\rVert^2$ is a sum of $D$ independent squares of mean 1, so $\lVert z\rVert$ lies in a thin shell around $\sqrt D$. The straight line cuts through the inside of the ball, where no draw ever is.

# %% id=norms
assert all(
    0.9 < measured_order(torch.tensor(counts), torch.tensor(values)) < 1.1
    for values in errors.values()
)
w = torch.linspace(0, 1, 41)
D = 28 * 28
sample = draw(10, 2000, D).norm(dim=1)
pair = draw(11, 1, D), draw(12, 1, D)
along = {
    "straight (lerp)": torch.cat([((1 - v) * pair[0] + v * pair[1]).norm(dim=1) for v in w.tolist()]),
    "sphere (slerp)": torch.cat([between(*pair, v).norm(dim=1) for v in w.tolist()]),
}
print(f"√D = {D**0.5:.1f}; length of 2000 draws: mean {sample.mean():.1f}, from {sample.min():.1f} to {sample.max():.1f}")
for name, length in along.items():
    print(f"{name:<16} length in the middle {length[20]:.1f}")
print(f"from the formula, √(D/2) = {(D / 2) ** 0.5:.1f}")
print(f"angle between the two: {math.degrees(math.acos(float(torch.cosine_similarity(*pair)))):.1f}°")
with plots.figure(
    width=7,
    height=3.0,
    alt="Length over w. A shaded band near 28 marks where 2000 draws lie. The curve of slerp stays in "
    "it. The curve of lerp sags to 19 in the middle.",
    caption="How long the noise is on the way. The band holds all of 2000 random draws.",
) as ax:
    ax.axhspan(float(sample.min()), float(sample.max()), color=plots.SKY, alpha=0.4, linewidth=0)
    plots.draw_curves(ax, w, along, "w", "length")
    ax.set(ylim=(15, 32))

# %% [markdown] id=slerp
# ### Along the great circle
#
# Stay on the sphere: *spherical linear interpolation*, or slerp (Song section 5.3). Let $\theta$ be the angle between $z_0$ and $z_1$, and $u_0, u_1$ their directions, of length 1. We look for the direction $u = a\,u_0 + b\,u_1$ in their plane that has the angle $w\theta$ to $u_0$, and so $(1-w)\theta$ to $u_1$. Take the scalar product with each:
#
# $$u\cdot u_0 = a + b\cos\theta = \cos(w\theta), \qquad u\cdot u_1 = a\cos\theta + b = \cos(\theta - w\theta) .$$
#
# Multiply the first by $\cos\theta$ and subtract it from the second: $b\,(1 - \cos^2\theta) = \cos(\theta - w\theta) - \cos\theta\cos(w\theta)$. The right side is $\sin\theta\sin(w\theta)$, by the rule for the cosine of a difference. Divide by $\sin^2\theta$; $a$ follows in the same way with $w$ and $1-w$ swapped:
#
# $$b = \frac{\sin(w\theta)}{\sin\theta}, \qquad a = \frac{\sin((1-w)\theta)}{\sin\theta},$$
#
# $$\boxed{\;z_w = \frac{\sin((1-w)\theta)}{\sin\theta}\,z_0 + \frac{\sin(w\theta)}{\sin\theta}\,z_1\;}$$
#
# The last formula uses $z_0, z_1$ themselves, so that the length goes over from one to the other. In high dimension $\theta$ is nearly 90° (printed above), and then the weights are $\cos$ and $\sin$ of one angle: their squares add up to 1, and **$z_w$ is again a draw from $\mathcal N(0, I)$**.

# %% exercise 09.4
# Write slerp for a batch. Each sample has an angle of its own, and where the two ends are equal it is 0: your function must not divide by it. The picture that appears when you are right is decoded from your noises.

# %% id=lerp-pictures
straight = torch.cat([torch.lerp(*ends, i / 7) for i in range(8)])
flat = decode(fashion, straight, ddim(12))


def contrast(x):
    """Standard deviation of the differences of neighbouring pixels, one number per image."""
    return (x[..., 1:] - x[..., :-1]).flatten(1).std(dim=1)


print("texture along the way: slerp " + " ".join(f"{v:.2f}" for v in contrast(walk).tolist()))
print("                       lerp  " + " ".join(f"{v:.2f}" for v in contrast(flat).tolist()))
print("largest difference at the two ends: " + ", ".join(f"{(walk - flat)[i].abs().max():.0e}" for i in (0, -1)))
plots.image_grid(
    torch.cat([walk, flat]),
    8,
    row_labels=["slerp", "lerp"],
    alt="Two rows of eight pieces of clothing or shoes with the same ends. The upper row keeps its "
    "texture, in the lower one the pictures in the middle are flatter and plainer.",
    caption="The same ends, decoded from noise on the sphere and from noise on the straight line.",
)

# %% [markdown] id=lerp-note
# With lerp the middle becomes *plain*. For one Gaussian the code counted standard deviations from the mean; so a noise that is too short is the code of an image that deviates from the mean less than any of the data, and that is what the network makes. (In two dimensions it would hardly matter: there a shorter vector is nothing unusual.)

# %% [markdown] id=semantic
# ## Between two images
#
# Now everything together: encode two real images, go from code to code on the sphere, decode. Beside it the naive way, fading one image into the other.
#
# > **Predict before you run.** What does the middle look like in either row?

# %% id=semantic-run
scheduler = ddim(25, spacing="linspace", clip=False)
chosen = load_dataset("digits", split="test").resized(16).images([0, 3])
with torch.no_grad():
    code_a, code_b = ddim_invert(digits, chosen, scheduler)[:, None]
places = [i / 7 for i in range(8)]
morph = decode(digits, torch.cat([between(code_a, code_b, v) for v in places]), scheduler)
fade = torch.cat([(1 - v) * chosen[:1] + v * chosen[1:] for v in places])
classifier = shipped_classifier("digits")[0].eval()
with torch.no_grad():
    for name, x in (("latent", morph), ("fade", fade)):
        sure = classifier(x).softmax(dim=1).max(dim=1)
        print(f"{name:<7} the classifier sees " + " ".join(str(k) for k in sure.indices.tolist()) + "   and is sure to " + " ".join(f"{p:.0%}" for p in sure.values.tolist()))
plots.image_grid(
    torch.cat([morph, fade]),
    8,
    row_labels=["latent", "fade"],
    alt="Two rows of eight pictures with nearly the same ends, two different digits: above the way "
    "through the latent space, below the fading.",
    caption="From one handwritten digit to another, through the latent space and through the pixels.",
)

# %% [markdown] id=semantic-answer
# <details><summary>Answer</summary>
#
# Fading shows both images at once, one fainter and the other stronger, like a double exposure, and its middle is no digit. (The classifier is sure of some of it all the same: it must choose among ten digits and cannot say "none", so its certainty does not show that a picture is a digit.) On the way through the latent space each picture is one that the model could have made: strokes move, open and close. That is what *semantic* interpolation means. It is no promise of evenness: the class changes somewhere, and often within one step.
#
# </details>

# %% [markdown] id=against
# ## DDIM against DDPM
#
# **Claim: for semantic interpolation, use DDIM.** One can interpolate $x_T$ and decode with DDPM too. Why should one not? There are two ways to treat the noise of the steps: draw it afresh for every image of the path, or draw it once and share it.
#
# > **Predict before you run.** Which of the three paths is smooth? Which gets from one image to another?

# %% id=three-paths
S = 12
shared = draw(20, S, 1, 1, 28, 28)
fresh = draw(21, S, 8, 1, 28, 28)
paths = {
    "DDIM": walk,
    "DDPM,\nshared noise": decode(fashion, path, ddim(S), 1.0, shared.expand(-1, 8, -1, -1, -1)),
    "DDPM,\nfresh noise": decode(fashion, path, ddim(S), 1.0, fresh),
}
plots.image_grid(
    torch.cat(list(paths.values())),
    8,
    row_labels=list(paths),
    alt="Three rows of eight pieces of clothing or shoes: DDIM, DDPM with shared noise, DDPM with fresh noise.",
    caption="The same eight x_T in each row. Only the noise of the steps is treated differently.",
)

# %% [markdown] id=three-paths-answer
# <details><summary>Answer</summary>
#
# DDIM and DDPM with shared noise are smooth, but only DDIM gets anywhere, with most of the change in few places: with shared noise it is nearly the same piece eight times. With fresh noise the path is no path, but eight unrelated pieces.
#
# </details>
#
# ### Measured
#
# Pixels are a poor measure of likeness. The course's classifier of digits has a layer of 64 features before its last one, in which images of one kind lie close together (lesson 11 uses it for the Fréchet distance). We measure there, in units of the mean distance of two unrelated images.
#
# **Smooth?** A smooth path has steps that shrink when the path is divided more finely. **Does it arrive?** The distance between its two ends tells.

# %% id=smooth
@torch.no_grad()
def features(x):
    return classifier.features(x)


unrelated = features(decode(digits, draw(30, 24, 1, 16, 16), ddim(S)))
typical = torch.pdist(unrelated).mean()
start, end = draw(0, 1, 1, 16, 16), draw(1, 1, 1, 16, 16)
fine = torch.cat([between(start, end, i / 24) for i in range(25)])
step_noise = {
    "DDIM": None,
    "DDPM, shared noise": draw(31, S, 1, 1, 16, 16).expand(-1, 25, -1, -1, -1),
    "DDPM, fresh noise": draw(32, S, 25, 1, 16, 16),
}
steps_of = {}
for name, noise in step_noise.items():
    f = features(decode(digits, fine, ddim(S), 0.0 if noise is None else 1.0, noise)) / typical
    steps_of[name] = f.diff(dim=0).norm(dim=1)
    coarse = f[::6].diff(dim=0).norm(dim=1)
    print(f"{name:<19} ends apart {(f[-1] - f[0]).norm():.2f}   mean step with 5 images {coarse.mean():.2f}, with 25 {steps_of[name].mean():.2f}")
with plots.figure(
    width=7,
    height=3.2,
    alt="Three curves over 24 steps. DDPM with fresh noise is high and jumps up and down. DDIM is low "
    "with single peaks. DDPM with shared noise is close to 0 everywhere.",
    caption="How far each step goes, in units of the distance of two unrelated images. The peaks of "
    "DDIM are where one digit becomes another.",
) as ax:
    plots.draw_curves(
        ax, torch.arange(1, 25), steps_of, "step along the path", "length in feature space"
    )
    ax.set_ylim(-0.05, 2.3)

# %% [markdown] id=share-text
# **How much does $x_T$ decide?** Take six $x_T$ and six lots of step noise, make all 36 images, and ask which of the two the features depend on. Write $f_{ij}$ for the features with $x_T$ number $i$ and step noise number $j$, $\bar f_{i\cdot}$ for the mean over $j$, and $\bar f$ for that over all. The share that $x_T$ explains by itself is
#
# $$\frac{\frac16\sum_i \lVert \bar f_{i\cdot} - \bar f\rVert^2}{\frac1{36}\sum_{ij} \lVert f_{ij} - \bar f\rVert^2},$$
#
# the same with $j$ for the step noise, and what is left depends on both together. (The same six step noises serve every $x_T$, so without any influence of $x_T$ its share would be exactly 0.) For DDIM there is no step noise, and the share is 100 % by construction.

# %% id=share
n = 6
x_T, z = draw(40, n, 1, 16, 16), draw(41, S, n, 1, 16, 16)
table = decode(
    digits,
    x_T[:, None].expand(n, n, 1, 16, 16).flatten(0, 1),
    ddim(S),
    1.0,
    z[:, None].expand(S, n, n, 1, 16, 16).flatten(1, 2),
)
f = features(table).unflatten(0, (n, n))  # (x_T, step noise, features)
off = f - f.mean(dim=(0, 1))
total = off.square().sum(dim=-1).mean()
by_x_T, by_noise = (off.mean(dim=d).square().sum(dim=-1).mean() / total for d in (1, 0))
print(f"DDPM, {S} steps: x_T explains {by_x_T:.1%}, the noise of the steps {by_noise:.1%}, both together {1 - by_x_T - by_noise:.1%}")
plots.image_grid(
    table.unflatten(0, (n, n))[:4].flatten(0, 1),
    n,
    titles=[f"step noise\n{j + 1}" for j in range(n)],
    row_labels=[f"$x_T$ {i + 1}" for i in range(4)],
    alt="Four rows of six digits, a row for each x_T, a column for each lot of step noise. In each "
    "column the digits are nearly the same. Along each row they differ.",
    caption="DDPM: the columns are alike, not the rows. The image is in the noise of the steps.",
)

# %% [markdown] id=share-note
# So the claim holds, and the reason is plain. DDPM draws noise $T$ or $S$ times, and $x_T$ is the draw that is overwritten by all the others. It is no code of the image. One could call all of DDPM's noises together the code; they determine the image. But it is a code $S$ times as large as the image, and an image
# does not determine it: many sequences of noise lead to the same one. DDIM puts everything into $x_T$.

# %% [markdown] id=grid
# ## A grid to walk in
#
# Two seeds span a path, four a surface: interpolate down the two sides, then across from side to side.

# %% id=use-slerp
from ddpm_from_scratch.course.exercises.l09 import slerp

# %% exercise 09.5
# Write the grid. `slerp` is now the finished function, whatever your own does.

# %% id=explorer
widgets.interpolation_explorer(
    lambda x: decode(digits, x, ddim(12)), (1, 16, 16), seeds=(0, 1, 2, 3), columns=9, rows=5
)

# %% [markdown] id=explorer-text
# Choose the seeds and press *Decode*: all images are made then, and the sliders only choose among them. Try the same seed at A and B, and try to find the place where one digit becomes another.

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Interpolating with DDPM.** See above: smooth at best, and going nowhere.
# - **lerp.** No error and no noise in the picture, only plainness in the middle. Print the length of what you feed in.
# - **One angle for the whole batch**, or one per row of pixels, in slerp. Each image is one vector.
# - **Slerp from an image to itself.** $\sin 0 = 0$: without care, NaN.
# - **Clipping while encoding.** A clipped step has no inverse. `ddim_invert` never clips; decode without clipping too if the image has to come back.
# - **Different timesteps for the way up and the way down.** The code belongs to the ODE and nearly not to the steps. The errors of the two ways add up, so more steps on either of them help. It does little harm if their lists differ.
# - **A code of an image the model knows nothing of.** A shoe can be encoded by the model of digits, and comes back less exactly. Its code is just not a typical draw, and its surroundings hold nothing of use.
# - **Reading meaning into single elements.** The directions of this space have no names. What can be read is how far apart two images lie along a path.

# %% [markdown] id=summary
# ## Summary
#
# - With $\bar x = x/\sqrt{\bar\alpha}$ and $\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}$, the DDIM step is an Euler step of $d\bar x/d\sigma = \varepsilon_\theta$ (Song eq. 13, 14).
# - Its paths do not cross, and it runs backwards: images have codes. For one Gaussian the code is the number of standard deviations from the mean.
# - Encoding and decoding lose an amount that falls like one over the number of steps.
# - Noise in $D$ dimensions lies on a shell of radius $\sqrt D$; slerp stays on it, lerp does not.
# - Semantic interpolation needs a code that decides the image. DDIM's $x_T$ does, DDPM's does not.
#
# **Next:** lesson 10 puts network and scheduler into a pipeline, and opens other people's models.

# %% id=progress
progress("09")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 09}}
#
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: section 4.3 with Song eq. 13 and Song eq. 14 (the ODE), eq. 15 (its link to the probability-flow ODE of score models), Song section 5.3 (interpolation), section 5.4 (reconstruction error over the number of steps).
# - Y. Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations* (2021), arXiv 2011.13456: the probability-flow ODE.
# - K. Shoemake, *Animating Rotation with Quaternion Curves* (1985): where slerp comes from.
