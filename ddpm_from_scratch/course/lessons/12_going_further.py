# %% [markdown] id=title
# # 12 · Going further
#
# **How are images made to order, and what do large models add?** About 60 minutes: more than half of it reading, the rest five exercises.
#
# You have a complete diffusion model. This lesson adds, one after the other, four ideas that large models use: asking for
# a class and pressing for it (guidance), learning the variance, weighing the steps and choosing the target, and training on many GPUs. At the end a table says which part of
# Stable Diffusion is which lesson of this course.
#
# **You will build** the pieces that `ddpm train` and `ddpm sample` use for this: label dropout, guidance, the learned variance, min-SNR weights.
#
# **Afterwards you can**
#
# - train one network for both $p(x)$ and $p(x \mid c)$, and derive classifier-free guidance from Bayes' rule;
# - show, where the truth is known, what guidance does to a distribution, and what it does *not*;
# - say when a learned variance helps, and compute the best one exactly for Gaussian data;
# - compare ε- and v-prediction on the same budget, without fooling yourself;
# - divide a batch among processes so that the result does not depend on their number.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson; the others are used as they were.
#
# {{notation 12}}

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import inspect
import math

import torch
from torch import Tensor, nn

from ddpm_from_scratch import (
    DDIMScheduler,
    DDPMPipeline,
    gaussian,
    metrics,
    reference,
    schedules,
)
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution
from ddpm_from_scratch.course.exercises.l03 import mixture_eps
from ddpm_from_scratch.course.points import (  # from lesson 03
    MIXTURE,
    SmallNetwork,
    draw_mixture,
    sample_points,
)
from ddpm_from_scratch.data import load_dataset, to_pixels

setup("12")
torch.set_num_threads(1)  # the tensors here are small: a second thread would only wait

betas = schedules.linear(T=1000)
alpha_bar = schedules.alpha_bars(betas)

# %% [markdown] id=classes
# ## Asking for a class
#
# So far the network is asked one question: *what is the noise in this $x_t$?* Now the question has a second part: *... if the image is of class $c$?* In the network the class enters
# where the time does. A table has one row of numbers per class, and the row of $c$ is added to the embedding of $t$ (lesson 05: `num_class_embeds`).
# `digits-conditional` is the model `digits` with such a table.

# %% id=conditional
pipeline = DDPMPipeline.from_pretrained("digits-conditional")
unet = pipeline.unet.eval()
table = unet.class_embedding
nothing = table.num_embeddings - 1
print(f"rows of the table: {table.num_embeddings}, numbers in each: {table.embedding_dim}")
print(f"the classes are 0 to {nothing - 1}; row {nothing} stands for “no class”")
print(f"share of the parameters that the table takes: {table.weight.numel() / unet.num_parameters():.1%}")


@torch.no_grad()
def make(predict, labels, steps=20, seed=0):
    """Digits by DDIM, one for each label, from `predict(x_t, t, labels)` → ε."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(steps)
    x = torch.randn((len(labels), 1, 16, 16), generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t, labels), t, x).prev_sample
    return x


def plain(x_t, t, labels):
    return unet(x_t, t, class_labels=labels).sample


in_order = torch.arange(10)
by_class = make(plain, in_order.repeat(4))
plots.image_grid(
    by_class,
    columns=10,
    titles=[str(c) for c in range(10)],
    width=7,
    alt="Four rows of ten generated digits. Column by column they are asked to be 0 to 9, and most of them are.",
    caption="One network, ten requests. Each column asks for the class above it; each image has a noise of its own.",
)

# %% [markdown] id=dropout
# ### Two networks in one
#
# Guidance will need the prediction *without* class as well. One could train a second network. Ho and Salimans train the same one for both (Guidance algorithm 1; *Guidance* is Ho and Salimans 2022): for a small share of the training images, the label is replaced by
# "no class". The network then learns $\varepsilon_\theta(x_t, t, c)$ from the others and $\varepsilon_\theta(x_t, t, \varnothing)$ from these.

# %% exercise 12.1
# Write the replacement. `ddpm train --conditional --label-dropout 0.1` does this to every batch. (The number $\varnothing$ is the last row of the table.)

# %% [markdown] id=guidance
# ## Guidance without a classifier
#
# Often an image should not just be *compatible* with its class but *typical* of it. Look at what the class changes. By Bayes,
#
# $$\log q(x_t \mid c) = \log q(x_t) + \log q(c \mid x_t) - \log q(c) ,$$
#
# and the last term does not depend on $x_t$. Take the gradient with respect to $x_t$ and solve for the middle one:
#
# $$\nabla \log q(c \mid x_t) = \nabla \log q(x_t \mid c) - \nabla \log q(x_t) .$$
#
# The left side is the direction in which a classifier grows more certain of $c$. The right side needs no classifier: it is the difference of two scores. *Guidance* goes in that direction $w$ times
# more than Bayes demands:
#
# $$\nabla \log q(x_t \mid c) + w\,\nabla \log q(c \mid x_t) = (1+w)\,\nabla \log q(x_t \mid c) - w\,\nabla \log q(x_t) .$$
#
# A score is $-\varepsilon / \sqrt{1-\bar\alpha_t}$ (lesson 03). Multiply by $-\sqrt{1-\bar\alpha_t}$, and put the two predictions in (Guidance section 3.2):
#
# $$\boxed{\tilde\varepsilon = (1+w)\,\varepsilon_\theta(x_t, t, c) - w\,\varepsilon_\theta(x_t, t, \varnothing)}$$
#
# **Mind the convention.** Diffusers writes the same as $\varepsilon_\varnothing + s\,(\varepsilon_c - \varepsilon_\varnothing)$ with `guidance_scale` $s = 1 + w$. No guidance is $w = 0$, but $s = 1$.
#
# Check the step from scores to classifier where everything is known: the mixture of lesson 03, its four components divided into two classes.

# %% id=bayes
weights, centres, stds = MIXTURE
class_a, class_b = torch.tensor([0, 1]), torch.tensor([2, 3])


def log_q(x, level, members=slice(None)):
    """log q(x_t, class), for the class that consists of these components, up to a constant."""
    w, c, s = weights[members], centres[members], stds[members]
    v = level * s**2 + 1 - level
    distance = ((x[:, None] - level**0.5 * c) ** 2).sum(-1)
    return torch.logsumexp(w.log() - distance / (2 * v) - v.log(), dim=1)


def exact(x, level, members=slice(None)):
    return mixture_eps(x, level, weights[members], centres[members], stds[members])


generator = torch.Generator().manual_seed(0)
for t in (100, 400, 800):
    level = float(alpha_bar[t])
    x = torch.randn(500, 2, generator=generator, dtype=torch.float64).requires_grad_(True)
    classifier = log_q(x, level, class_b) - log_q(x, level)
    (gradient,) = torch.autograd.grad(classifier.sum(), x)
    scores = gaussian.score_from_eps(exact(x.detach(), level, class_b), level)
    scores = scores - gaussian.score_from_eps(exact(x.detach(), level), level)
    gap = float((gradient - scores).abs().max())
    print(f"t = {t}: gradient of the classifier against the difference of scores: {gap:.0e}")
    assert gap < 1e-8

# %% exercise 12.2
# Write $\tilde\varepsilon$.

# %% [markdown] id=guidance-predict
# > **Predict before you run.** Class B has two components, of which the upper holds two thirds of the points. Both lie well apart from class A, so clean points leave no doubt about their class. What will strong guidance do
# > with the two thirds: nothing, or something?

# %% id=guidance-truth
from ddpm_from_scratch.course.exercises.l12 import guided_eps as guide


def sample_class(w, times=range(1000)):
    """Points of class B, made with exact predictions and guidance w at these timesteps."""

    def predict(x, t):
        level = float(alpha_bar[t])
        return guide(exact(x, level, class_b), exact(x, level), w if t in times else 0)

    return sample_points(predict, alpha_bar, n=1500, seed=1, stride=5)


def share_of_upper(points):
    return float(((points - centres[2]).norm(dim=1) < (points - centres[3]).norm(dim=1)).double().mean())


clouds = {w: sample_class(w) for w in (0, 1, 4)}
truth = float(weights[2] / weights[class_b].sum())
print(f"share of the upper component in class B: true {truth:.2f}")
for w, cloud in clouds.items():
    certain = (log_q(cloud, 1 - 1e-12, class_b) - log_q(cloud, 1 - 1e-12)).exp()
    print(f"w = {w}: upper component {share_of_upper(cloud):.2f}; mean probability of class B at these points {certain.mean():.4f}")
assert abs(share_of_upper(clouds[0]) - truth) < 4 * (truth * (1 - truth) / 1500) ** 0.5 + 0.01

# %% [markdown] id=guidance-answer
# <details><summary>Answer</summary>
#
# It empties the lower component almost entirely. At the *clean* end the classifier is all but certain at every point, so its gradient is nearly 0 and there is nothing to gain. But guidance acts at all noise levels, and at
# middle noise the lower component, next to class A, looks ambiguous: the points are driven away from it before anything is decided. The next cell says where: guidance at $t$ = 100 to 499 alone
# does nearly all of it, below 100 nothing.
#
# So guided samples are **not** draws from $q(x \mid c)\,q(c \mid x)^w$: that distribution would be nearly the same at every $w$ here. The scores of guidance are those of
# $q(x_t \mid c)\,q(c \mid x_t)^w$ at each $t$, and these are not the noised versions of any one distribution. What one gets is typical images, at the price of variety.
#
# </details>

# %% id=guidance-times
early, middle, late = (
    share_of_upper(sample_class(4, times)) for times in (range(500, 1000), range(100, 500), range(100))
)
print(f"upper component with w = 4 at t = 999 to 500 only: {early:.2f}; 499 to 100: {middle:.2f}; 99 to 0: {late:.2f}")
assert late < early < middle and middle > 0.9

# %% id=guidance-picture
other = torch.randn(300, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
other = centres[class_a].repeat_interleave(150, 0) + stds[class_a].repeat_interleave(150)[:, None] * other
plots.scatter(
    {f"w = {w}": torch.cat([cloud[:600], other]) for w, cloud in clouds.items()},
    groups=torch.tensor([0] * 600 + [1] * 300),
    alt="Three scatter plots of points of class B, and of class A in a second colour at the lower left and right. At w = 0 a large spot above and a small one in the middle. At w = 1 the "
    "small one has become thin, at w = 4 it is nearly gone.",
    caption="Class B with exact predictions, class A for comparison. At every w the points are all but certain to be of class B. What guidance changes is which of them one gets.",
)
assert share_of_upper(clouds[4]) > 0.9

# %% [markdown] id=guidance-digits
# ### The same on digits
#
# The two predictions are computed in one call, on a batch of twice the size. The classifier that came with the course judges: does it read the digit that was asked for? And how varied are the
# images of a class, pixel by pixel, compared with real ones (100 %)?

# %% id=guidance-run
def guided(w):
    def predict(x_t, t, labels):
        both = torch.cat([labels, torch.full_like(labels, nothing)])
        eps_class, eps_none = unet(x_t.repeat(2, 1, 1, 1), t, class_labels=both).sample.chunk(2)
        return guide(eps_class, eps_none, w)

    return predict


judge, _ = reference.shipped_classifier("digits")
real = load_dataset("digits", image_size=16)


def variety(pixels, labels):
    """Mean variance of a pixel within a class."""
    return float(torch.stack([pixels[labels == c].float().var(dim=0).mean() for c in range(10)]).mean())


labels = in_order.repeat(5)
strengths = (0.0, 0.5, 1.0, 4.0)
rows = []
for w in strengths:
    images = make(guided(w), labels, steps=12)
    pixels = to_pixels(images)
    logits = reference.classify(judge, pixels)[1]
    as_asked = float((logits.argmax(1) == labels).double().mean())
    confident = metrics.confident_share(logits)
    rows.append(images[:10])
    print(
        f"w = {w:>3.1f}: read as asked {as_asked:>4.0%}, with confidence {confident:>4.0%}, variety within a class {variety(pixels, labels) / variety(real.pixels, real.labels):>4.0%} of the real one"
    )
plots.image_grid(
    torch.cat(rows),
    columns=10,
    titles=[str(c) for c in range(10)],
    row_labels=[f"w = {w:.1f}" for w in strengths],
    alt="Four rows of ten digits, 0 to 9, from the same noise at growing guidance. Down the rows the contrast grows; at w = 4.0 strokes are bold and some shapes exaggerated.",
    caption="The same ten noises at four strengths of guidance: ever more contrast, and in the last row some exaggerated shapes. That the images of a class grow alike is in the numbers above.",
)

# %% [markdown] id=clinic
# ### Bug clinic
#
# Three samplers at $w = 1$, each with one bug in how the two predictions are made or put together. They are hidden: look at the log, the curves and the digits. The first run is right. None raises an error.
#
# The log measures what guidance does: how far $\tilde\varepsilon$ lies from $\varepsilon_c$, in units of the difference $\varepsilon_c - \varepsilon_\varnothing$ that it should go along. In the right run that is $w$, at every step.
#
# > **Before you unfold the answers:** one gives the class to both halves of the batch, one has another row of the table for "no class", one takes the halves in the wrong order. Which is which?

# %% id=clinic-runs
from ddpm_from_scratch.course.exercises.l12 import BROKEN  # do not look inside yet


def right_prediction(unet, x_t, t, labels, nothing, w):
    return guided(w)(x_t, t, labels)


def run(predict, w=1.0):
    """Digits by a guided prediction, two of each class, and how far it pushed each of them at every step."""
    log = []

    def logged(x_t, t, labels):
        made = predict(unet, x_t, t, labels, nothing, w)
        of_class = plain(x_t, t, labels)
        along = (of_class - plain(x_t, t, torch.full_like(labels, nothing))).flatten(1)
        log.append(((made - of_class).flatten(1) * along).sum(1) / along.square().sum(1))
        return made

    return make(logged, in_order.repeat(2), steps=12), torch.stack(log)  # log: (steps, images)


patients = {name: run(predict) for name, predict in {"right": right_prediction, **BROKEN}.items()}
for name, (images, log) in patients.items():
    logits = reference.classify(judge, to_pixels(images))[1]
    as_asked = (logits.argmax(1) == in_order.repeat(2)).double().mean()
    print(f"{name:<6} read as asked {as_asked:>4.0%}; mean push {log.mean():+.2f}, of the two zeros alone {log[:, ::10].mean():+.2f}, of the two ones {log[:, 1::10].mean():+.2f}")
plots.image_grid(
    torch.cat([images[:10] for images, _ in patients.values()]),
    columns=10,
    titles=[str(c) for c in range(10)],
    row_labels=list(patients),
    alt="Four rows of ten digits. Right: 0 to 9. A: shapes that are not the digits asked for. B and C: digits that differ from the right ones in detail.",
    caption="One right run and three wrong ones, from the same noise.",
)
scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
scheduler.set_timesteps(12)
plots.curves(
    scheduler.timesteps,
    {name: log.mean(1) for name, (_, log) in patients.items()},
    "timestep t (sampling runs from right to left)",
    "push, in units of the difference",
    alt="Four curves over t. The right run is a flat line at 1, C a flat line at 0, A a flat line at -2. B is no flat line and lies between C and the right run for most t.",
    caption="How far each run goes along the difference of the two predictions.",
)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# - **A** takes the two halves of the batch in the wrong order. It guides *away* from the class: with the names exchanged, $\tilde\varepsilon - \varepsilon_c = -(1+w)(\varepsilon_c - \varepsilon_\varnothing)$, the flat line. Hardly any digit is the one asked for.
# - **B** uses class 0 for "no class". All digits are driven away from the zero instead of from the average; the zeros themselves get no guidance at all, since their two predictions are equal.
# - **C** gives the class to both halves. The predictions are equal, $w$ cancels, and the images are those without guidance, however large $w$ is.
#
# The judge reads the digits of B and C as asked: whoever looks at the digits alone will not find these two.
#
# </details>
#
# Now the code. In each, one expression is wrong. **Fix them**: copy one into a cell, mend it, and compare `run(your_prediction)` with the first row. (Their `guided_eps` is the finished one, which is called `guide` here.)

# %% id=clinic-code
for name, predict in BROKEN.items():
    print(f"# {name}\n{inspect.getsource(predict)}")

# %% [markdown] id=variance
# ## Learning the variance
#
# Lesson 07 found the right variance of a step back for Gaussian data (its boxed formula, `reverse_variance` below), and the paper's two choices at the ends of it: $\tilde\beta_t$ for data that are a point, $\beta_t$ for $\mathcal N(0, I)$. Real data in $[-1, 1]$ lie
# between, on average over $x_t$, and each pixel lies elsewhere: the corner of a digit is nearly a point, its middle is not. So let the network say where. Nichol and Dhariwal interpolate, for each pixel, in the logarithm (IDDPM eq. 15):
#
# $$\log \sigma_t^2 = v \log \beta_t + (1-v) \log \tilde\beta_t , \qquad v \in [0, 1] .$$
#
# (This $v$ is a fraction. It has nothing to do with the velocity.)

# %% exercise 12.3
# Write it, for a step from any $t$ to any earlier step, as a sampler with few steps needs it.

# %% [markdown] id=variance-exact
# ### What would a perfect network answer?
#
# For data from $\mathcal N(0, s^2)$ it would answer the fraction that makes $\sigma_t^2$ the formula of lesson 07. Solve eq. 15 for $v$:
#
# $$v^* = \log\frac{\operatorname{Var}(x_{\text{prev}} \mid x_t)}{\tilde\beta_t} \Big/ \log\frac{\beta_t}{\tilde\beta_t}$$
#
# > **Predict before you run.** For $s = 1$ it is 1 at every $t$. For narrower data: near the clean end, is $v^*$ closer to 0 or to 1? And at large $t$?

# %% id=variance-truth
from ddpm_from_scratch.course.exercises.l07 import reverse_variance
from ddpm_from_scratch.course.exercises.l12 import log_variance as between


def best_fraction(a, p, s):
    beta, small = 1 - a / p, gaussian.posterior_variance(a, p)
    return math.log(reverse_variance(a, p, s**2) / small) / math.log(beta / small)


strides = range(20, 1000, 20)
fractions = {
    f"s = {s}": torch.tensor([best_fraction(float(alpha_bar[t]), float(alpha_bar[t - 20]), s) for t in strides])
    for s in (1.0, 0.5, 0.2, 0.05)
}
print("best fraction v*, for steps of 20")
for name, values in fractions.items():
    print(f"{name:<9}" + "   ".join(f"t = {strides[i]}: {values[i]:.4f}" for i in (0, 2, 9, 24, 48)))

# %% [markdown] id=variance-answer
# <details><summary>Answer</summary>
#
# Close to 1 as long as the noise in $x_t$ is small beside $s$, which ends the sooner the narrower the data are; at large $t$ it is $s^2$. (For small $\bar\alpha$ both logarithms are small, and their ratio is
# $\tfrac{(s^2-1)(\bar\alpha_{\text{prev}}-\bar\alpha_t) + (\bar\alpha_{\text{prev}}-\bar\alpha_t)}{\bar\alpha_{\text{prev}}-\bar\alpha_t} = s^2$.) So no single choice for all $t$ and all pixels is right, and a network that sees $x_t$ and $t$ can be.
#
# </details>
#
# And what is gained? The recursion of lesson 07 (*One Gaussian, followed exactly*) says how wide the samples come out. There both fixed choices failed at few steps.

# %% id=variance-spread
def final_spread(s, count, choice):
    """Standard deviation of the samples after `count` steps with the exact ε*; nothing is drawn."""
    visited = [*torch.linspace(999, 0, count).round().int().tolist(), -1]
    variance = float(alpha_bar[999]) * s**2 + 1 - float(alpha_bar[999])
    for t, t_prev in zip(visited, visited[1:], strict=False):
        a, p = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        slope = (1 - (1 - a / p) / (a * s**2 + 1 - a)) / (a / p) ** 0.5  # Ho eq. 11 with ε*
        if t_prev < 0:  # β̃ = 0 has no logarithm: the fixed choices end without noise
            sigma2 = reverse_variance(a, p, s**2) if choice == "best" else 0.0
        else:
            v = {"β̃": 0.0, "β": 1.0}.get(choice, best_fraction(a, p, s))
            sigma2 = math.exp(float(between(torch.tensor(v, dtype=torch.float64), a, p)))
        variance = slope**2 * variance + sigma2
    return variance**0.5


counts = (5, 10, 20, 50, 100, 1000)
curves = {choice: torch.tensor([final_spread(0.5, n, choice) for n in counts]) for choice in ("β̃", "best", "β")}
for choice, values in curves.items():
    print(f"{choice:<5}" + "   ".join(f"{n} steps {value:.3f}" for n, value in zip(counts, values.tolist(), strict=True)))
assert all(abs(value - 0.5) < 1e-9 for value in curves["best"].tolist())
with plots.figure(
    columns=2,
    height=3.2,
    alt="Left: the best fraction over t for four values of s. For s = 1 it is 1 throughout, for smaller s it falls from 1 as t grows, the sooner and lower the smaller s. Right: spread of "
    "samples over the number of steps: a flat line at 0.5 for the best variance, above it β, below it β̃, meeting at a thousand steps.",
    caption="Left, what a perfect network would answer, for steps of 20. Right, the spread of samples of data with s = 0.5: only the best variance is right at every number of steps.",
) as (left, right):
    plots.draw_curves(left, torch.tensor(list(strides)), fractions, "timestep t", "best fraction $v^*$")
    plots.draw_curves(right, torch.tensor(counts), curves, "number of steps", "spread of the samples")
    right.set(xscale="log")

# %% [markdown] id=variance-training
# Exact at every number of steps, since for Gaussian data the step back *is* Gaussian. For other data it is not (lesson 03), and no variance repairs that: DDIM takes the other way out, no variance at all.
#
# **How is it trained?** $L_{\text{simple}}$ does not contain $\sigma_t$, so it cannot teach it. The bound does: IDDPM adds a small part of it, $L_{\text{hybrid}} = L_{\text{simple}} + 0.001\, L_{\text{vlb}}$ (IDDPM eq. 16), and keeps the mean out of the second term,
# so that it teaches the variance alone. The network has twice the output channels: one half for ε, the other for $v$. `ddpm train --learned-variance` does that.

# %% [markdown] id=weights
# ## Weighing the steps
#
# All $t$ share one network, so at each step of training they pull in different directions, and those with a large weight win. Written as an error of $x_0$, $L_{\text{simple}}$ has the weight $\text{SNR}_t$ (lesson 03), which spans many powers of ten: nearly clean images,
# where there is little to learn, weigh most. Hang et al. cut it off (Hang section 3.4): the weight on the error of $x_0$ is $\min(\text{SNR}_t, \gamma)$, with $\gamma = 5$.

# %% exercise 12.4
# The weight, for whatever the network predicts. `ddpm train --snr-gamma 5` uses it.

# %% id=weights-picture
from ddpm_from_scratch.course.exercises.l12 import min_snr_weight as weigh

t = torch.arange(1000)
snr = alpha_bar / (1 - alpha_bar)
in_x0 = {
    "ε, plain": snr,
    "v, plain": snr + 1,
    "$x_0$, plain": torch.ones(1000, dtype=torch.float64),
    "min-SNR, γ = 5": snr.clamp(max=5.0),
}
for name, predicts, back in (("ε", "epsilon", snr), ("v", "v_prediction", snr + 1), ("x_0", "sample", 1 + 0 * snr)):
    same = weigh(alpha_bar, 5.0, predicts) * back
    print(f"min-SNR in terms of x_0, from the weight for {name}: the same to {(same - snr.clamp(max=5.0)).abs().max():.0e}")
    assert torch.allclose(same, snr.clamp(max=5.0))
print(f"at t = 0 plain ε weighs the error of x_0 {float(snr[0] / 5):,.0f} times as much as min-SNR")
plots.curves(
    t,
    in_x0,
    "timestep t",
    "weight of the error of $x_0$",
    yscale="log",
    alt="Four curves over t on a logarithmic axis. Plain ε falls from ten thousand to less than a ten-thousandth. Plain v follows it and then levels off at 1. Plain x_0 is flat at 1. Min-SNR is flat at 5 and then follows plain ε.",
    caption="Four losses in one currency. Plain ε and min-SNR agree at large t and part where an image is nearly clean; plain v and plain x_0 still care about x_0 at the noisy end.",
)

# %% [markdown] id=versus
# ## ε against v, on the same budget
#
# Which target is better? The losses cannot be compared: they are in different currencies. So train the same small network, with the same data, the same noise and the same number of steps, and compare (1) the distance from
# the exact $\varepsilon^*$, and (2) the samples: their *energy distance* from real points, $2\,\mathbb E\lVert X-Y\rVert - \mathbb E\lVert X-X'\rVert - \mathbb E\lVert Y-Y'\rVert$, which is 0 only for equal distributions. (It is estimated without bias, so on finitely many points it comes out a little above or below: the lines *exact ε\** and *real points* say how much.)
#
# > **Predict before you run.** ε, v, or ε with min-SNR? By more than the difference between two seeds?

# %% id=versus-run
levels = alpha_bar.float()


def fit(target, gamma, seed, steps=1200):
    torch.manual_seed(seed)
    network, generator = SmallNetwork(width=64), torch.Generator().manual_seed(100 + seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x0 = draw_mixture(256, generator)[0].float()
        t = torch.randint(1000, (256,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        a = levels[t, None]
        x_t = gaussian.q_sample(x0, eps, a)
        wanted = eps if target == "epsilon" else gaussian.velocity(x0, eps, a)
        weight = 1.0 if gamma is None else weigh(a, gamma, target)
        loss = (weight * (wanted - network(x_t, t)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
    return network


def as_eps(network, target):
    """The network's prediction as ε, whatever it predicts."""

    @torch.no_grad()
    def predict(x_t, t):
        said = network(x_t.float(), torch.full((len(x_t),), t)).double()
        return said if target == "epsilon" else gaussian.eps_from_v(x_t, said, float(alpha_bar[t]))

    return predict


def energy_distance(x, y):
    def within(z):
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))


generator = torch.Generator().manual_seed(9)
real_points, more_points = (draw_mixture(1500, generator)[0] for _ in range(2))
times = (5, 50, 150, 300, 500, 700, 900, 999)
errors, distances = {}, {}
for name, target, gamma in (("ε", "epsilon", None), ("v", "v_prediction", None), ("ε, min-SNR", "epsilon", 5.0)):
    by_seed = []
    for seed in (0, 1):
        predict = as_eps(fit(target, gamma, seed), target)
        row = []
        for t in times:
            generator = torch.Generator().manual_seed(t)
            eps = torch.randn(real_points.shape, generator=generator, dtype=torch.float64)
            x_t = gaussian.q_sample(real_points, eps, float(alpha_bar[t]))
            row.append(float(((predict(x_t, t) - exact(x_t, float(alpha_bar[t]))) ** 2).mean()))
        by_seed.append(row)
        distances.setdefault(name, []).append(energy_distance(sample_points(predict, alpha_bar, 1500, 5, 10), real_points))
        if name == "ε" and seed == 0:
            learnt = predict
    errors[name] = torch.tensor(by_seed).mean(0)


def perfect(x_t, t):
    return exact(x_t, float(alpha_bar[t]))


exact_points = sample_points(perfect, alpha_bar, 1500, 5, 10)
print("energy distance of the samples from real points, for two seeds of the training")
for name, values in distances.items():
    print(f"{name:<12}" + "   ".join(f"{value:.4f}" for value in values))
print(f"{'exact ε*':<12}{energy_distance(exact_points, real_points):.4f}   (the sampler's own error)")
print(f"{'real points':<12}{energy_distance(more_points, real_points):.4f}   (the floor: two sets of real points)")
mixtures = {
    "exact ε* at t ≥ 300": lambda x, t: (perfect if t >= 300 else learnt)(x, t),
    "exact ε* at t < 300": lambda x, t: (learnt if t >= 300 else perfect)(x, t),
}
for name, predict in mixtures.items():
    mixed = sample_points(predict, alpha_bar, 1500, 5, 10)
    print(f"{name}, at the other t the network for ε of seed 0: {energy_distance(mixed, real_points):.4f}")
plots.curves(
    torch.tensor(times),
    errors,
    "timestep t",
    "squared distance from ε*",
    yscale="log",
    alt="Three curves over t, the squared distance of a trained network from the exact prediction: for ε, for v and for ε with min-SNR weights. All rise a little up to t = 50 and then fall; v keeps falling, to a ten-millionth, where the two of ε level off below a thousandth and rise again at the end.",
    caption="The same network and budget, three losses: distance from the perfect ε at each t, mean of two seeds. What one predicts decides where one is accurate.",
)

# %% [markdown] id=versus-answer
# <details><summary>Answer</summary>
#
# $v$, in both seeds here, and its samples come nearer to the floor. Two seeds are few, though: with more of them (in the line `for seed in (0, 1)`) the ranges of the two overlap, and now and then ε wins. At large $t$ nearly all of $x_t$ is noise, so $\varepsilon^* \approx x_t$: a network for ε must carry its own input through all its layers, to several digits.
# A network for $v$ is given that part for free: $\varepsilon = \sqrt{1-\bar\alpha_t}\,x_t + \sqrt{\bar\alpha_t}\,v$ has $x_t$ in it already, and the error of $v$ is made *smaller* by $\sqrt{\bar\alpha_t}$. Hence the wide gap at the right.
#
# But the samples do not suffer from that gap. With the exact $\varepsilon^*$ at all $t \ge 300$ they stay as far off; with the exact one below 300 they come to the floor (the last two lines). What counts is the small gap at the left: a network that need not carry its input has more to give there too.
#
# Min-SNR does not help here: it takes weight from small $t$, where the width of the narrow spots is decided. On images the ranking may be another: there small $t$ decides what no eye sees. Measure on your
# own data, convert to one currency, and run at least two seeds: where two seeds differ by as much as two losses do, the experiment has shown nothing.
#
# </details>
#
# One thing is not a matter of taste: with zero terminal SNR (lesson 02) ε-prediction has no answer at the last $t$, and $v$ or $x_0$ is needed there.

# %% [markdown] id=gpus
# ## Many GPUs
#
# A batch is divided among $n$ processes. Each has a copy of the network, computes the gradient of the mean loss over its share, and all average their gradients before the step. Then all copies make the same step, and stay equal.

# %% exercise 12.5
# When is the average of the processes' gradients the gradient of the whole batch? Write what is right in any case.

# %% [markdown] id=gpus-why
# The package refuses a batch that does not divide evenly (`batch_size=64 does not divide among 3 processes`), so the plain average is right. And it draws $t$ and $\varepsilon$ as a function of (seed, step, position in the batch), so that it does not matter *who* draws them:

# %% id=gpus-check
from ddpm_from_scratch.course.exercises.l12 import combine as average
from ddpm_from_scratch.training import draw

whole = draw(seed=0, step=7, positions=range(8), shape=(1, 4, 4), T=1000)
halves = [draw(0, 7, positions, (1, 4, 4), 1000) for positions in (range(4), range(4, 8))]
assert torch.equal(whole.t, torch.cat([half.t for half in halves]))
assert torch.equal(whole.noise, torch.cat([half.noise for half in halves]))
print("t of 8 images, drawn by one process:  ", whole.t.tolist())
print("the same, drawn by two processes:     ", halves[0].t.tolist(), halves[1].t.tolist())

torch.manual_seed(0)
model = nn.Linear(4, 4)


def gradient(draws):
    model.zero_grad()
    ((model(draws.noise) - draws.noise.roll(1, -1)) ** 2).mean().backward()
    return model.weight.grad.clone()


together = average([gradient(half) for half in halves], [4, 4])
print(f"gradient of the whole batch against that of two halves: {(gradient(whole) - together).abs().max():.0e}")
assert torch.allclose(gradient(whole), together, atol=1e-6)

# %% [markdown] id=gpus-run
# The command is the same as on one machine, with a launcher in front. Nothing else changes: `training.train`, the package's form of lesson 06's loop, is written on an `Accelerator`:
#
# ```sh
# accelerate launch --multi_gpu -m ddpm_from_scratch.cli train --dataset path/to/images --output runs/mine
# ```

# %% [markdown] id=latent
# ## What Stable Diffusion adds
#
# Three things, and none of them changes the loop.
#
# 1. **It diffuses something smaller than pixels.** An autoencoder, trained beforehand, turns an image into a small *latent* array and back. The diffusion runs on the latents.
# 2. **It is asked in words.** A text encoder turns the prompt into a sequence of vectors. In place of one row of a table, the U-Net gets them all, through *cross-attention*: the queries come from the image, keys and values from the text.
# 3. **It is large**, and trained on very many pictures.
#
# Guidance, the schedule, the U-Net's blocks and the samplers are those of this course. The numbers behind the first point:

# %% id=latent-numbers
pixels, latents = 512 * 512 * 3, 64 * 64 * 4
print(f"numbers per image: {pixels:,} as pixels, {latents:,} as latents: {pixels / latents:.0f} times fewer")
attention = (512 * 512) ** 2 / (64 * 64) ** 2
print(f"pairs of positions in self-attention at full resolution: {attention:,.0f} times fewer")
theirs = schedules.alpha_bars(schedules.scaled_linear(T=1000, beta_start=0.00085, beta_end=0.012))
for name, bars in (("this course, linear", alpha_bar), ("Stable Diffusion, scaled linear", theirs)):
    print(f"{name:<34} signal left at the last step, √ᾱ_T = {float(bars[-1]) ** 0.5:.4f}")


def cross_attention(image, text, to_q, to_k, to_v):
    """Positions of the image (N, C) look things up in the words (M, D)."""
    q, k, v = to_q(image), to_k(text), to_v(text)
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v


torch.manual_seed(0)
image, text = torch.randn(64 * 64, 32), torch.randn(77, 48)
looked_up = cross_attention(image, text, nn.Linear(32, 32), nn.Linear(48, 32), nn.Linear(48, 32))
print(f"cross-attention: image {tuple(image.shape)}, text {tuple(text.shape)} → {tuple(looked_up.shape)}")

# %% [markdown] id=latent-table
# | in Stable Diffusion | here |
# |---|---|
# | `scheduler` (`scaled_linear`, 1000 steps) | lessons 01, 02; the configuration is read by this course's schedulers too |
# | `unet`: ResNet blocks, self-attention, skips, time embedding | lessons 04, 05 |
# | `unet`: cross-attention to the prompt | the function above, in the place of the class table |
# | training: ε at a random $t$, L_simple | lesson 06 |
# | the denoising loop, `scheduler.step` | lessons 07, 08 |
# | `guidance_scale` 7.5, i.e. $w = 6.5$; the "negative prompt" takes the place of $\varnothing$ | this lesson |
# | `vae`, `text_encoder` | two networks trained beforehand, not part of diffusion |
#
# Its schedule leaves signal at the last step (the number above): it has the fault of lesson 02, and Lin et al. mend it the way you did.

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Two conventions.** $w$ and $s = 1 + w$. Check which of the two a number is before you use it.
# - **No label dropout in training.** Row ∅ of the table is then what it was at the start, random. Guidance runs, and pushes somewhere.
# - **Guidance and clipping.** Large $w$ throws $\hat x_0$ far out of $[-1, 1]$. DDIM with clipping, and $\varepsilon$ kept as it was, then takes a step whose two parts no longer belong together (lesson 08), and the images break: set `clip_sample=True` in `make` and look at $w = 4$. Either do not clip, as above, or re-derive $\varepsilon$ (`use_clipped_model_output=True`). Imagen answers the same trouble with dynamic thresholding.
# - **A learned variance in the wrong sampler.** The network then has twice the channels. DDIM has no use for the second half, and must cut it off.
# - **Comparing losses of different targets.** They are different currencies. Convert first.
# - **One seed.** A difference between two runs is news only if it is larger than that between two seeds.
# - **A learning rate for one GPU on eight.** Here `batch_size` is that of all processes together. In many scripts it is that of each: eight GPUs then mean eight times the batch, another optimisation problem, and nothing warns you.

# %% [markdown] id=summary
# ## Summary
#
# - A class enters like the time, as a vector. Dropping it now and then makes one network do for both $p(x \mid c)$ and $p(x)$.
# - Guidance follows $\nabla \log q(c \mid x_t)$, the difference of two scores, further than Bayes would. It buys typical images with variety, and its samples are draws from no simple distribution.
# - For Gaussian data narrower than the unit Gaussian, the right variance of a step back lies between $\tilde\beta$ and $\beta$. It is a formula, and with it any number of steps is exact.
# - What a network predicts decides two things: the weight of the loss over $t$, and how much of $x_t$ it must carry through itself. Compare in one currency, with more than one seed.
# - With randomness tied to (seed, step, position), the number of processes changes nothing.
# - Stable Diffusion is this course, on latents, asked in words.
#
# **Next:** lesson 13 starts from a blank file.

# %% id=progress
progress("12")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 12}}
#
# - J. Ho, T. Salimans, *Classifier-Free Diffusion Guidance* (2022), arXiv 2207.12598: section 3 (guidance with and without a classifier), algorithms 1 and 2.
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: eq. 15 and 16 (learned variance, hybrid loss).
# - T. Hang et al., *Efficient Diffusion Training via Min-SNR Weighting Strategy* (2023), arXiv 2303.09556: section 3.4.
# - T. Salimans, J. Ho, *Progressive Distillation for Fast Sampling of Diffusion Models* (2022), arXiv 2202.00512: section 4 and appendix D (v, and losses as weights).
# - C. Saharia et al., *Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding* (2022), arXiv 2205.11487: dynamic thresholding.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), arXiv 2112.10752: latents and cross-attention.
