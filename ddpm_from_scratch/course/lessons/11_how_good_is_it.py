# %% [markdown] id=title
# # 11 · How good is it?
#
# **How are samples judged, and when does a figure mislead?** About 60 minutes: a good third of it reading, the rest five exercises.
#
# Two samplers, two sheets of digits: which is better? One can look at a few dozen images, but not at ten thousand, and two people do not see the same.
# So papers print a number. This lesson takes the numbers apart: where each comes from, how sure it is, and how it depends on things that have nothing to
# do with the model.
#
# **You will build** the module `ddpm_from_scratch.metrics`: the Fréchet distance, the kernel distance, the last term of the likelihood bound.
#
# **Afterwards you can**
#
# - derive the Fréchet distance of two Gaussians, and compute FID and KID by hand and with a library;
# - say how large a figure's error bar is, and how much of the figure is there only because the samples were few;
# - compute bits per dimension, and check the computation where the answer is known;
# - read a table of few-step samplers such as Song's Table 1, and make one that can be repeated;
# - say in which ways a good figure can mislead.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson:
#
# {{notation 11}}
#
# $\sigma_t^2 = \beta_t$ in DDPM's sampler (`fixed_large`) is the row $\hat\sigma$ of Song's Table 1. $\mathbb E$ is a mean, $\operatorname{Tr}$ the trace of a matrix, the sum of its diagonal; $\Sigma^{1/2}$ is the symmetric
# matrix without negative eigenvalues whose square is $\Sigma$. A *real image* below is one of the dataset, a *held-out* one is in its test split, which no model of this course was trained on.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import copy
import inspect
import math
import warnings

import torch
from IPython.display import Markdown, display
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad
from tqdm.auto import tqdm

from ddpm_from_scratch import (
    DDPMPipeline,
    DDPMScheduler,
    SamplingSettings,
    few_steps,
    gaussian,
    generate,
    load_dataset,
    metrics,
    shipped_classifier,
    to_model_range,
    uncertainty,
)
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution
from ddpm_from_scratch.judges import named_judge

setup("11")
torch.set_num_threads(1)  # the networks here are small: a second thread would only wait

train = load_dataset("digits", "train", image_size=16)
test = load_dataset("digits", "test", image_size=16)
# a small classifier of digits, with its view of the training images
judge = named_judge("digits")
pipeline = DDPMPipeline.from_pretrained("digits")
print(
    f"{len(train):,} training images, {len(test)} held-out images, the judge: {judge.name}"
)

# %% [markdown] id=eye
# ## Two sheets
#
# The same network, asked ten times for each image: once by DDIM ($\eta = 0$), once by DDPM with $\sigma_t^2 = \beta_t$ ($\hat\sigma$). The third row is real.
#
# > **Predict before you run.** Which sampler copes better with only ten steps?

# %% id=eye-samples
COUNT = 40
quiet = tqdm(disable=True)
kinds = {
    "η = 0": SamplingSettings("ddim", 10),
    "σ̂": SamplingSettings("ddpm", 10, variance_type="fixed_large"),
}
few = {
    name: generate(pipeline, COUNT, how, batch_size=COUNT, bar=quiet)
    for name, how in kinds.items()
}
rows = torch.cat([few["η = 0"][:12], few["σ̂"][:12], test.pixels[:12]])
plots.image_grid(
    to_model_range(rows),
    12,
    row_labels=["η = 0, S = 10", "σ̂, S = 10", "real"],
    alt="Three rows of twelve small pictures: by DDIM in ten steps, by DDPM in ten steps, and real digits.",
    caption="One network, two samplers, ten steps each; below, images of the test split.",
)

# %% [markdown] id=eye-answer
# <details><summary>Answer</summary>
#
# DDIM: its row shows smooth shapes, most of them digits, and the row of DDPM is covered with grain. Here the eye is enough. It is not enough for "η = 0 or η = 0.2?", for "50 steps or 100?", or for "is any digit missing?". For those we need a number, and to know how far to trust it.
#
# </details>

# %% [markdown] id=features
# ## Features
#
# Comparing pixels does not work: shift a digit by one pixel, and most pixels have changed, but it is the same digit. So images are first turned into a few *features*, the
# numbers in front of the last layer of a classifier. Papers take 2,048 features of Inception, a network trained on photographs; hence the names FID and KID, Fréchet and kernel
# *Inception* distance. For small grey images the course has a classifier of its own for each dataset. It was trained with labels, on the training split, and has 64 features.

# %% id=features-see
features_train, features_test = (
    judge.extract(train.pixels).double(),
    judge.extract(test.pixels).double(),
)
D = features_test.shape[1]
centred = features_train - features_train.mean(dim=0)
directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[
    :, [-1, -2]
]  # where the features vary most
flat = (features_test - features_train.mean(dim=0)) @ directions
print(f"an image of {test.pixels[0].numel()} pixels becomes {D} features")
with plots.figure(
    5.6,
    4.2,
    alt="A scatter plot of 297 numerals from 0 to 9 in the plane, each numeral "
    "written where its image lies. Equal numerals lie mostly together, in heaps; "
    "some, such as 3, 5 and 9, overlap in this view.",
    caption="Real held-out digits in the two directions in which the features vary "
    "most. Each numeral is an image. What is alike for the classifier lies "
    "close together.",
) as ax:
    for (x, y), label in zip(flat.tolist(), test.labels.tolist(), strict=True):
        ax.text(
            x,
            y,
            str(label),
            color=plots.COLOURS[label % 6],
            size=8,
            ha="center",
            va="center",
        )
    low, high = flat.amin(0) - 0.3, flat.amax(0) + 0.3
    ax.set(
        xlim=(low[0], high[0]),
        ylim=(low[1], high[1]),
        xlabel="first direction",
        ylabel="second direction",
    )

# %% [markdown] id=frechet
# ## The distance of two Gaussians
#
# Real images give a cloud of points in feature space, samples give another. How far apart are two clouds? FID takes each for a Gaussian, with the cloud's mean $\mu$ and covariance $\Sigma$, and asks: *how far must points be carried to turn one
# into the other?* Pair up the points $x$ of the first with the points $y$ of the second as cleverly as possible, and take the mean squared distance of the pairs (Fréchet 1957):
#
# $$d^2 = \min_{\text{pairings}} \mathbb E\,\lVert x - y \rVert^2$$
#
# ### Step 1: what a pairing can change
#
# Split off the means. With $x = \mu_1 + \tilde x$ and $y = \mu_2 + \tilde y$, the mixed terms have mean 0, so
# $\mathbb E\lVert x - y\rVert^2 = \lVert\mu_1 - \mu_2\rVert^2 + \mathbb E\lVert\tilde x\rVert^2 + \mathbb E\lVert\tilde y\rVert^2 - 2\,\mathbb E[\tilde x^\top \tilde y]$.
# The mean of $\lVert\tilde x\rVert^2$ is the sum of the variances, $\operatorname{Tr}\Sigma_1$. And $\mathbb E[\tilde x^\top\tilde y] = \operatorname{Tr} C$, where $C = \mathbb E[\tilde x\,\tilde y^\top]$ is the covariance of the two. So
#
# $$\mathbb E\lVert x - y\rVert^2 = \lVert\mu_1 - \mu_2\rVert^2 + \operatorname{Tr}\Sigma_1 + \operatorname{Tr}\Sigma_2 - 2\operatorname{Tr} C .$$
#
# A pairing decides about $C$ alone. We want its trace as large as possible.
#
# ### Step 2: one dimension
#
# A covariance is at most the product of the standard deviations: $C \le \sigma_1\sigma_2$. It is reached by pairing in order, the smallest with the smallest. So
# $d^2 = (\mu_1 - \mu_2)^2 + \sigma_1^2 + \sigma_2^2 - 2\sigma_1\sigma_2 = (\mu_1-\mu_2)^2 + (\sigma_1 - \sigma_2)^2$: **means apart, and widths apart.**
#
# ### Step 3: any dimension
#
# For matrices, the largest trace of $C$ that a pairing can have is $\operatorname{Tr}\,(\Sigma_1\Sigma_2)^{1/2}$, the sum of the square roots of the eigenvalues of $\Sigma_1\Sigma_2$. In one dimension that is $\sigma_1\sigma_2$ again.
#
# <details><summary>Going deeper (not needed later): why</summary>
#
# Since $(\tilde x, \tilde y)$ has a covariance without negative eigenvalues, $C = \Sigma_1^{1/2} K\, \Sigma_2^{1/2}$ with a matrix $K$ that stretches nothing (its singular values are at most 1: it is the correlation
# of the two, each made round first). Then $\operatorname{Tr} C = \operatorname{Tr}(K\,\Sigma_2^{1/2}\Sigma_1^{1/2})$. Write $M = \Sigma_2^{1/2}\Sigma_1^{1/2}$ by its singular value decomposition $M = USV^\top$. Then $\operatorname{Tr}(KM) = \operatorname{Tr}(V^\top K U\,S)$, and the diagonal of
# $V^\top K U$ has no entry above 1, so this is at most $\operatorname{Tr} S$, the sum of the singular values of $M$. It is reached for $K = VU^\top$. The singular values of $M$ are the square roots of the eigenvalues of $M^\top M = \Sigma_1^{1/2}\Sigma_2\Sigma_1^{1/2}$, which has
# the same eigenvalues as $\Sigma_1\Sigma_2$. Therefore $\max \operatorname{Tr} C = \operatorname{Tr}\,(\Sigma_1^{1/2}\Sigma_2\Sigma_1^{1/2})^{1/2} = \operatorname{Tr}\,(\Sigma_1\Sigma_2)^{1/2}$.
#
# </details>
#
# With step 1, this is (Heusel eq. 6)
#
# $$\boxed{d^2 = \lVert\mu_1 - \mu_2\rVert^2 + \operatorname{Tr}\left(\Sigma_1 + \Sigma_2 - 2\,(\Sigma_1\Sigma_2)^{1/2}\right)}$$
#
# Checked with numbers: step 1 on points, step 3 against ten thousand random pairings and against the best one.

# %% id=frechet-steps
generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


mu1, mu2 = draw(2), draw(2) + 2
half1, half2 = draw(2, 2), 0.6 * draw(2, 2)
sigma1, sigma2 = half1 @ half1.T, half2 @ half2.T

x, y = mu1 + draw(500, 2) @ root(sigma1), mu2 + draw(500, 2) @ root(sigma2)
xc, yc = x - x.mean(0), y - y.mean(0)
left = (x - y).square().sum(1).mean()
right = (x.mean(0) - y.mean(0)).square().sum() + (
    xc.T @ xc + yc.T @ yc - 2 * xc.T @ yc
).trace() / 500
print(
    f"step 1: mean squared distance of the pairs {left:.6f}, by means and covariances {right:.6f}"
)
assert torch.isclose(left, right)

M = root(sigma2) @ root(sigma1)
U, S, Vt = torch.linalg.svd(M)
K = torch.linalg.qr(draw(10_000, 2, 2))[0] * (
    2 * torch.rand(10_000, 1, 2, generator=generator, dtype=torch.float64) - 1
)
random_traces = (K @ M).diagonal(dim1=1, dim2=2).sum(1)
by_product = torch.linalg.eigvals(sigma1 @ sigma2).real.sqrt().sum()
print(
    f"step 3: largest trace of 10,000 random pairings {random_traces.max():.4f}, bound {S.sum():.4f}, by the eigenvalues of Σ1Σ2 {by_product:.4f}"
)
assert random_traces.max() <= S.sum() and torch.isclose(S.sum(), by_product)
assert torch.isclose((Vt.T @ U.T @ M).trace(), S.sum())

# the best pairing, as a map of points: y = μ2 + A (x - μ1)
inverse = torch.linalg.inv(root(sigma1))
A = inverse @ root(root(sigma1) @ sigma2 @ root(sigma1)) @ inverse
cloud = mu1 + draw(100_000, 2) @ root(sigma1)
carried = mu2 + (cloud - mu1) @ A
assert torch.allclose(A @ sigma1 @ A, sigma2)  # what arrives has the right covariance
exact = metrics.frechet_distance(mu1, sigma1, mu2, sigma2)
measured = (cloud - carried).square().sum(1)
off = (measured.mean() - exact) / (measured.std() / math.sqrt(len(measured)))
print(
    f"the formula says {exact:.4f}, carrying 100,000 points costs {measured.mean():.4f} on average ({off:+.1f} standard errors)"
)
assert abs(off) < 4

with plots.figure(
    5.6,
    3.9,
    alt="Two clouds of points, a wide blue one and a smaller orange one. A thin line"
    " leads from each blue point to the orange point that it is carried to; most"
    " of the lines run side by side.",
    caption="The cheapest way to turn one Gaussian into the other. The mean squared "
    "length of the lines is the Fréchet distance.",
) as ax:
    for a, b in zip(cloud[:60].tolist(), carried[:60].tolist(), strict=True):
        ax.plot([a[0], b[0]], [a[1], b[1]], color=plots.FAINT, linewidth=0.8, linestyle="-")
    for points, colour, marker, label in (
        (cloud, plots.BLUE, "o", "first"),
        (carried, plots.ORANGE, "^", "second"),
    ):
        ax.scatter(
            *points[:60].T.numpy(), s=18, color=colour, marker=marker, zorder=3, label=label
        )
    ax.set(aspect="equal")
    ax.legend()

# %% exercise 11.1
# Write the boxed formula, from two means and two covariances. The cell above finds the last term in two ways (`S.sum()` and `by_product`); either will do. A covariance of fewer images than features is flat in some directions: your function must not mind.
# This is what `metrics.frechet_distance` becomes.

# %% [markdown] id=fid
# ### The samples' FID
#
# Means and covariances of the features, your formula, done. By hand and by `torchmetrics`, a library that many use, with our classifier in Inception's place:

# %% id=fid-library
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


class Given(torch.nn.Module):
    """A feature extractor for torchmetrics that is handed the features themselves, as rows of one-pixel images."""

    num_features = D

    def forward(self, x):
        return x.flatten(1)


def by_library(samples: Tensor, real: Tensor) -> float:
    metric = FrechetInceptionDistance(
        feature=Given(), input_img_size=(D, 1, 1), normalize=True
    )
    metric.set_dtype(torch.float64)
    for values, is_real in ((real, True), (samples, False)):
        metric.update(values[:, :, None, None], real=is_real)
    return float(metric.compute())


def by_hand(samples: Tensor, real: Tensor) -> float:
    one, other = metrics.gaussian_statistics(samples), metrics.gaussian_statistics(real)
    return metrics.frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


looked_at = {name: judge.extract(pixels).double() for name, pixels in few.items()}
looked_at["held-out images"] = features_test[:COUNT]
for name, features in looked_at.items():
    ours, theirs = by_hand(features, features_train), by_library(features, features_train)
    print(
        f"{name:<16} Fréchet distance, {len(features)} images: by hand {ours:8.4f}, by the library {theirs:8.4f}"
    )
    assert math.isclose(ours, theirs, rel_tol=1e-4)

# %% [markdown] id=fid-note
# The figure agrees with the eye about the two samplers. But look at the last line. These are *real* digits, and their distance is far from 0. The section *Sample size and bias* shows where it comes from.

# %% [markdown] id=kernel
# ## The kernel distance
#
# The second figure takes no cloud for a Gaussian. Choose a list of functions $\varphi_1, \varphi_2, \dots$ of a feature vector, and compare their means on the two sets:
#
# $$\mathrm{MMD}^2 = \lVert \mathbb E\,\varphi(x) - \mathbb E\,\varphi(y)\rVert^2$$
#
# Multiply out the square. With a second, independent $x'$ of the first set, $\lVert\mathbb E\varphi(x)\rVert^2 = \mathbb E[\varphi(x)^\top\varphi(x')]$, so only products occur, and with $k(x, y) = \varphi(x)^\top\varphi(y)$
#
# $$\mathrm{MMD}^2 = \mathbb E\,k(x, x') + \mathbb E\,k(y, y') - 2\,\mathbb E\,k(x, y) .$$
#
# KID takes $k(x, y) = (x^\top y / D + 1)^3$ (Binkowski section 4). What is being compared then? In one dimension, $(xy + 1)^3 = 1 + 3\,xy + 3\,x^2y^2 + x^3y^3$, so $\varphi(x) = (1, \sqrt3\,x, \sqrt3\,x^2, x^3)$: **means, squares and cubes**, and all their
# mixtures in more dimensions. FID stops at the squares.
#
# ### Pairs of two
#
# $x$ and $x'$ are two *different* draws. If one averages $k(x_i, x_j)$ over all $i, j$, then $N$ of the $N^2$ pairs are a vector with itself, and
#
# $$\mathbb E\,\frac{1}{N^2}\sum_{i,j} k(x_i, x_j) = \mathbb E\,k(x, x') + \frac1N\big(\mathbb E\,k(x, x) - \mathbb E\,k(x, x')\big) .$$
#
# The last term is the bias, and leaving out $i = j$ removes it exactly. Check with $x \sim \mathcal N(0, 1)$ and $y \sim \mathcal N(m, 1)$, whose moments are known:

# %% id=kernel-check
m, n, repeats = 0.4, 10, 4000
moments_x, moments_y = (1, 0, 1, 0), (1, m, 1 + m**2, 3 * m + m**3)
truth = sum(math.comb(3, p) * (moments_x[p] - moments_y[p]) ** 2 for p in range(4))
x, y = draw(repeats, n, 1), draw(repeats, n, 1) + m


def averages(left, right):
    """Mean kernel over all pairs, and over pairs of two different members; one value per repetition."""
    k = (left @ right.transpose(1, 2) + 1) ** 3
    everything = k.mean(dim=(1, 2))
    return everything, (k.sum(dim=(1, 2)) - k.diagonal(dim1=1, dim2=2).sum(1)) / (
        n * (n - 1)
    )


between = averages(x, y)[0]
with_itself, without = (
    a + b - 2 * between for a, b in zip(averages(x, x), averages(y, y), strict=True)
)
assert math.isclose(float(without[0]), metrics.kernel_distance(x[0], y[0]), rel_tol=1e-9)
for name, found in (("all pairs", with_itself), ("pairs of two", without)):
    error = found.std() / math.sqrt(repeats)
    print(
        f"{name:<12} mean of {repeats:,} sets of {n}: {found.mean():7.4f} ± {error:.4f}   truth {truth:.4f}"
    )
assert abs(without.mean() - truth) < 4 * without.std() / math.sqrt(repeats)
assert with_itself.mean() - truth > 4 * with_itself.std() / math.sqrt(repeats)

with plots.figure(
    6.4,
    2.7,
    alt="Two histograms over many sets of ten numbers, each with a long tail to the right. "
    "Averaging over all pairs gives no value below zero, and most above the true value. "
    "Averaging over pairs of two gives most values below it, and nearly half of all values below zero.",
    caption="Ten draws against ten, many times; the far tails are cut off. The mean of the "
    "outlined histogram is the truth: values below 0 make up for the long tail.",
) as ax:
    ax.hist(
        with_itself.numpy(), bins=70, range=(-8, 25), color=plots.SKY, label="all pairs"
    )
    ax.hist(
        without.numpy(),
        bins=70,
        range=(-8, 25),
        histtype="step",
        linewidth=2,
        color=plots.VERMILION,
        label="pairs of two",
    )
    ax.axvline(truth, color=plots.INK, linestyle="--", linewidth=1.2, label="truth")
    ax.set(yticks=[], xlabel="squared discrepancy")
    ax.legend()

# %% exercise 11.2
# Write the unbiased kernel distance of two sets of feature vectors. This is what `metrics.kernel_distance` becomes.

# %% id=kernel-library
def kid_by_library(samples: Tensor, real: Tensor) -> float:
    """torchmetrics wants equal numbers: one subset, as large as the sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it keeps all features
        metric = KernelInceptionDistance(
            feature=Given(), subsets=1, subset_size=len(samples), normalize=True
        )
    for values, is_real in ((real, True), (samples, False)):
        metric.update(values[:, :, None, None], real=is_real)
    return float(metric.compute()[0])


for name, features in looked_at.items():
    ours = metrics.kernel_distance(features, features_train[:COUNT])
    theirs = kid_by_library(features, features_train[:COUNT])
    print(
        f"{name:<16} kernel distance × 1000: by hand {1000 * ours:9.3f}, by the library {1000 * theirs:9.3f}"
    )
    assert math.isclose(ours, theirs, rel_tol=1e-3, abs_tol=1e-5)

# %% [markdown] id=size
# ## Sample size and bias
#
# Back to the real digits with their large Fréchet distance. Take an ideal experiment: *the samples come from exactly the Gaussian that they are compared with*. The distance should be 0.
#
# > **Predict before you run.** 64 features. How does the mean Fréchet distance of $N$ such samples depend on $N$: not at all, like $1/\sqrt N$, or like $1/N$? And the kernel distance?

# %% id=size-curve
mean_train, cov_train = judge.train.mean, judge.train.covariance
half = root(cov_train)
sizes = (100, 150, 250, 400, 700, 1200)
frechet_at, kernel_at, kernel_spread = [], [], []
against = mean_train + draw(1500, D) @ half
for n in sizes:
    sets = [mean_train + draw(n, D) @ half for _ in range(8)]
    frechet_at.append(
        sum(
            metrics.frechet_distance(s.mean, s.covariance, mean_train, cov_train)
            for s in map(metrics.gaussian_statistics, sets)
        )
        / len(sets)
    )
    found = torch.tensor([metrics.kernel_distance(one, against) for one in sets])
    kernel_at.append(float(found.mean()))
    kernel_spread.append(float(found.std()))
with plots.figure(
    columns=2,
    height=3.1,
    alt="Left: the mean Fréchet distance over the number of samples, both logarithmic, beside "
    "two straight lines, one for each of the two laws; the points follow the steeper one. Right: "
    "the kernel distance over the number of samples, with error bars, which hold 0 and shrink.",
    caption="Samples of the very Gaussian that they are compared with. Left, the Fréchet distance, "
    "and both laws drawn from its first point. Right, the kernel distance (bars: one "
    "standard deviation over the sets).",
) as (left, right):
    left.plot(sizes, frechet_at, linestyle="", marker="o", label="measured")
    for power, label in ((0.5, r"$1/\sqrt{N}$"), (1, "$1/N$")):
        left.plot(
            sizes, [frechet_at[0] * (sizes[0] / n) ** power for n in sizes], label=label
        )
    left.set(xlabel="N", ylabel="Fréchet distance", xscale="log", yscale="log")
    left.legend()
    right.errorbar(
        sizes,
        [1000 * k for k in kernel_at],
        [1000 * s for s in kernel_spread],
        marker="o",
        capsize=3,
    )
    right.axhline(0, color=plots.INK, linewidth=1, linestyle="--")
    right.set(xlabel="N", ylabel="kernel distance × 1000", xscale="log")

# %% [markdown] id=size-why
# <details><summary>Answer</summary>
#
# Like $1/N$: it is above 0 for every $N$. The kernel distance is right on average for any $N$; only its spread depends on it.
#
# </details>
#
# **Why 1/N.** In one dimension, $d^2 = (\hat\mu - \mu)^2 + (\hat\sigma - \sigma)^2$, where $\hat\mu$ and $\hat\sigma$ are those of $N$ draws. Both errors are of the size $1/\sqrt N$, but they come *squared*, so they cannot cancel.
#
# <details><summary>Going deeper (not needed later): the constant, and many dimensions</summary>
#
# $\mathbb E(\hat\mu - \mu)^2 = \sigma^2/N$, and since $\hat\sigma^2 = \sigma^2 + e$ with $\mathrm{Var}\,e = 2\sigma^4/(N-1)$ and $\sqrt{\sigma^2 + e} \approx \sigma + e/(2\sigma)$,
#
# $$\mathbb E(\hat\sigma-\sigma)^2 \approx \frac{\mathrm{Var}\,e}{4\sigma^2} = \frac{\sigma^2}{2(N-1)}, \qquad \mathbb E\,d^2 \approx \frac{\sigma^2}{N} + \frac{\sigma^2}{2(N-1)} .$$
#
# In $D$ dimensions every feature pays this, and every *pair* of features pays for its covariance: with eigenvalues $\lambda_i$ of $\Sigma$, a small change $E$ of $\Sigma$ costs $\frac12\sum_{ij} E_{ij}^2/(\lambda_i + \lambda_j)$, and $\mathrm{Var}\,E_{ij} = \lambda_i\lambda_j(1 + \delta_{ij})/(N-1)$ (with $\delta_{ij} = 1$ for $i = j$, else 0). That is
# `uncertainty.gaussian_bias`, the formula in the next cell. It grows with the number of features.
#
# </details>
#
# - **Compare Fréchet distances of equal N only.** FID of 5,000 samples is not the FID of 50,000. Even then a small difference may be one of biases: the bias depends on the samples' own covariance (Chong and Forsyth 2020).
# - **Print the floor beside it**: what as many *real* images score. It does not fall to 0 with $N$, since the training images are a finite set too.
# - The bias can be estimated from the samples themselves. If the figure is $a + b/N$ on average, then the two halves of a set have $a + 2b/N$: the halves give $b/N$ more than the whole, and that is the bias (`uncertainty.frechet_bias`).

# %% id=size-real
for n, found in zip(sizes, frechet_at, strict=True):
    said = uncertainty.gaussian_bias(cov_train, n)
    print(
        f"N = {n:>5}: mean Fréchet distance {found:.4f}, the formula says {said:.4f}; N times it {n * found:.0f}"
    )
    assert abs(found / said - 1) < 0.25
print("\n                  N     Fréchet   bias by halves   so many real images would have")
for name, features in {**looked_at, "held-out images, all": features_test}.items():
    n = len(features)
    bias = uncertainty.frechet_bias(features, judge.train)
    floor = uncertainty.floor_at(judge.train, judge.test, n)
    print(
        f"{name:<21}{n:>4}   {by_hand(features, features_train):8.3f}   {bias:8.3f}         {floor:8.3f}"
    )

# %% [markdown] id=size-real-note
# With fewer samples than features, as in the lines with 40, the covariance is flat in many directions and the $1/N$ line is only a rough guide: to the 40 held-out images it gives a bias larger than the figure itself. A figure of 40 samples that is mostly floor is no figure. That is why
# the small live sets of samples are judged by the kernel distance, and why papers take 50,000 samples.

# %% [markdown] id=sure
# ## How sure is a figure?
#
# With other samples the figure would be another. How different? One cannot make a thousand sets of samples, but one can *draw from the set that one has*, with replacement: some samples come twice, some not at all. Each such set gives a
# figure, and the spread of these figures is about the spread that new sets would have. This is the **bootstrap**. It needs no formula for the figure.

# %% exercise 11.3
# The random numbers come as an argument: `picks` holds the drawn indices. Give the interval for the mean of `values`.

# %% id=sure-brightness
# the finished function of the exercise, so that nothing below depends on your answers
from ddpm_from_scratch.course.exercises.l11 import bootstrap_interval as finished_interval

sheets = {
    **{f"{name}, S = 10": pixels for name, pixels in few.items()},
    "held-out images": test.pixels[:COUNT],
    "held-out images, all": test.pixels,
}
brightness = {name: pixels.double().mean(dim=(1, 2, 3)) for name, pixels in sheets.items()}
ends = {}
for name, values in brightness.items():
    picks = torch.randint(len(values), (1000, len(values)), generator=generator)
    ends[name] = finished_interval(values, picks, 0.95).tolist()
    print(
        f"{name:<21} mean brightness {values.mean():6.2f} of 255, 95 % interval [{ends[name][0]:6.2f}, {ends[name][1]:6.2f}], N = {len(values)}"
    )
with plots.figure(
    6.8,
    2.4,
    alt="Four horizontal error bars for the mean brightness of four sets of images,"
    " and a dashed line for the training images. The bar of all held-out images"
    " is a little more than half as long as that of forty of them. The bar of σ̂ lies apart, to the right.",
    caption="The mean brightness of four sets with its bootstrap interval; dashed, the "
    "training images. Forty images show that σ̂ is too bright, and settle little else.",
) as ax:
    for place, (name, values) in enumerate(brightness.items()):
        mean, (low, high) = float(values.mean()), ends[name]
        ax.errorbar(
            mean,
            -place,
            xerr=[[mean - low], [high - mean]],
            marker="o",
            capsize=4,
            color=plots.COLOURS[place],
        )
    ax.axvline(
        float(train.pixels.double().mean()), color=plots.INK, linewidth=1, linestyle="--"
    )
    ax.set(
        yticks=[-i for i in range(len(brightness))],
        yticklabels=list(brightness),
        xlabel="mean brightness of an image",
        ylim=(-3.6, 0.6),
    )

# %% [markdown] id=sure-note
# For the two distances the package does the same with whole feature vectors: `uncertainty.frechet_interval` and `uncertainty.kernel_interval`. The interval says nothing about the bias: it is one for the *mean* figure of as many samples, and the bias is in that mean. (The figure of one other set falls outside more often than once in twenty: it varies too.)
#
# <details><summary>Going deeper (not needed later): the interval of the Fréchet distance</summary>
#
# A set drawn *from a sample* carries the sample's bias once more, so the drawn Fréchet distances lie too high on average; the interval is moved back onto the figure. Near the floor it is still wider than it need be: the figure is a square of errors there, and the bootstrap adds the sample's own error to those that it draws (up to $\sqrt3$ times too wide).
#
# </details>

# %% [markdown] id=bits
# ## Bits per dimension
#
# Another question altogether: *how probable are held-out images under the model?* Lesson 03 derived the bound (Ho eq. 5) on $-\log p_\theta(x_0)$ and left out $L_0$, the last step into pixels. Pixels are whole numbers. A density gives each of them probability 0, and a
# model could make its density as large as it likes by narrow peaks at the 256 grey levels. So the last step gives each grey level the mass of its bin, of width 2/255 in $[-1, 1]$ (Ho eq. 13):
#
# $$
# \begin{aligned}
# p_\theta(x_0 \mid x_1) &= \prod_{i=1}^{D} \int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)} \mathcal N\big(x;\ \mu_\theta^i(x_1, 1),\ \sigma_1^2\big)\, dx, \\
# \delta_\pm(x) &= x \pm \tfrac1{255}, \quad \delta_+(1) = \infty,\ \delta_-(-1) = -\infty .
# \end{aligned}
# $$
#
# The integral is a difference of two values of $\Phi$, the distribution function of $\mathcal N(0, 1)$. The outermost bins are open, so that the 256 probabilities add up to 1.

# %% exercise 11.4
# Write its logarithm, pixel by pixel. This is what `gaussian.discretized_log_likelihood` becomes.

# %% id=bits-sum
levels = (torch.arange(256).double() / 127.5 - 1)[:, None]
centres, spreads = (
    torch.tensor([[-1.3, -0.2, 0.4, 0.999]]).double(),
    torch.tensor([[0.02, 0.3, 2.0, 0.004]]).double(),
)
mass = gaussian.discretized_log_likelihood(levels, centres, 2 * spreads.log()).exp()
print(
    "mass of all 256 grey levels, for four Gaussians:\n",
    ", ".join(f"{total:.12f}" for total in mass.sum(0).tolist()),
)
assert torch.allclose(mass.sum(0), torch.ones(4).double(), rtol=0, atol=1e-12)
uniform = gaussian.nats_to_bits(torch.tensor(math.log(256)))
print(
    f"a model that finds all grey levels equally likely needs {uniform:.1f} bits per pixel"
)

# %% [markdown] id=bits-unit
# **The unit.** $-\log p_\theta(x_0)$ in nats, divided by the number of values in an image (pixels times channels) and by $\log 2$: bits per dimension, the length of the shortest code that the model allows, per value. An uncompressed 8-bit image has 8.
#
# **A check where the truth is known.** Let the data be $\mathcal N(0, I)$ and the model perfect: the true $\varepsilon^* = \sqrt{1-\bar\alpha_t}\,x_t$ and $\sigma_t^2 = \beta_t$. Then every $x_t$ is $\mathcal N(0, I)$ too, and the true step back is exactly Gaussian with variance $\beta_t$: nothing is lost, and the
# bound (with a density in place of the bins) must be the entropy, $\frac12\log_2(2\pi e)$ bits per dimension.

# %% id=bits-truth
short = DDPMScheduler(
    trained_betas=torch.linspace(0.01, 0.3, 25).tolist(),
    num_train_timesteps=25,
    variance_type="fixed_large",
    clip_sample=False,
)


class Perfect(torch.nn.Module):
    """ε* for data from N(0, I)."""

    dtype, device = torch.float64, torch.device("cpu")

    def forward(self, x_t, t):
        level = short.alphas_cumprod[t].view(-1, 1, 1, 1)
        return type("Output", (), {"sample": (1 - level) ** 0.5 * x_t})()


normal_data = draw(60, 1, 16, 16)
bound = metrics.bits_per_dimension(
    Perfect(), short, normal_data, discrete=False, show_progress=False
)
entropy = 0.5 * math.log2(2 * math.pi * math.e)
off = (bound.total - entropy) / bound.standard_error
print(
    f"bound {bound.total:.4f} ± {bound.standard_error:.4f} bits per dimension, entropy {entropy:.4f}: {off:+.1f} standard errors"
)
assert abs(off) < 4

# %% [markdown] id=bits-live
# **A real model.** The course's `fashion` model and held-out images of 28×28 pixels, *as they are stored*: bits of resized images would be bits of another dataset. All thousand $t$ of all images would be too much for a notebook. Asking each image at a few $t$, one drawn from each of as many equal
# ranges and weighted with the range's length, gives the same mean, with a larger standard error. (In code, and in the table below, $t$ counts from 0: there $L_0$ is at $t = 0$, the first $L_{t-1}$ at $t = 1$.)
#
# > **Predict before you run.** Where are the bits: in the steps with much noise, where the shape is decided, or in those with little?

# %% id=bits-fashion
clothes = load_dataset("fashion-10k", "test")
fashion = DDPMPipeline.from_pretrained("fashion")
images = clothes.images(slice(10))
likelihood = metrics.bits_per_dimension(
    fashion.unet.eval(),
    DDPMScheduler.from_config(fashion.scheduler.config),
    images,
    16,
    64,
    show_progress=False,
)
for name, value in (
    ("L_0", likelihood.decoder),
    ("L_(t-1), all t > 1", likelihood.diffusion),
    ("L_T", likelihood.prior),
    ("bound", likelihood.total),
):
    print(f"{name:<20} {value:8.4f} bits per dimension")
print(
    f"standard error {likelihood.standard_error:.3f}: {len(images)} images, 16 of 999 timesteps each"
)
print(f"black pixels of these images: {(images == -1).double().mean():.0%}")
asked = [
    (t, float(bits))
    for t, bits in enumerate(likelihood.by_timestep)
    if not math.isnan(bits)
]
with plots.figure(
    columns=2,
    height=3.1,
    width_ratios=[1, 2],
    alt="Left: three bars, one for each term of the bound; the first is the tallest, the last cannot be "
    "seen. Right: the bits of single timesteps, one point each, over the timestep on logarithmic axes; "
    "they fall from above 1 to below a millionth, and no point lies between the first timestep and the tenth.",
    caption="Left, the bound by term. Right, by timestep (each point the mean of the images asked there).",
) as (left, right):
    left.bar(
        ["$L_0$", "$L_{t-1}$", "$L_T$"],
        [likelihood.decoder, likelihood.diffusion, likelihood.prior],
        color=[plots.BLUE, plots.ORANGE, plots.GREEN],
    )
    left.set(ylabel="bits per dimension")
    right.plot(
        [t + 1 for t, _ in asked],
        [bits for _, bits in asked],
        linestyle="",
        marker="o",
        markersize=4,
    )
    right.set(
        xscale="log", yscale="log", xlabel="timestep t + 1", ylabel="bits per dimension"
    )

# %% [markdown] id=bits-answer
# <details><summary>Answer</summary>
#
# In those with little: $L_0$ and a few steps near it hold most of the bits, and in the right panel they fall by several orders of magnitude towards large $t$. $L_T$ is too small to be seen. Which garment it is takes a few bits *per image*; the exact grey levels take bits *per pixel*, and there are 784 pixels. That is why $L_{\text{simple}}$, which gives small $t$ less weight than the bound does, makes better samples and worse bits (Ho section 3.4, lesson 03): **the two kinds of figures measure different
# things**, and neither implies the other. Ho reports at most 3.75 bits for CIFAR-10; that is another dataset, and not to be compared with the figure above: the last line says how much of these is plain black.
#
# </details>

# %% [markdown] id=bits-stored-text
# This is the same for 500 images at all timesteps, made once by the command line and stored:

# %% id=bits-stored
from ddpm_from_scratch.course.stored import stored_bits

thorough = stored_bits("fashion_bits")
display(Markdown(thorough.to_markdown()))
print(
    f"the ten images above: {likelihood.total:.3f} ± {likelihood.standard_error:.3f}, "
    f"these {thorough.num_images}: {thorough.total:.3f} ± {thorough.standard_error:.3f} bits per dimension"
)
smallest = min(t for t, _ in asked if t > 0)
below = sum(bits for bits in thorough.by_timestep[1:smallest] if bits is not None)
print(
    f"smallest t > 0 asked above: {smallest}; the t from 1 to {smallest - 1} alone hold {below:.3f} bits here"
)

# %% [markdown] id=bits-stored-note
# The two differ by more than their standard errors allow. $L_{t-1}$ rises steeply towards $t = 1$, and there the ten images were not asked at all. A standard error comes from the same draws as the mean: where a few rare draws hold much of the sum, a small sample mostly has **both too small**, and looks sure of itself.

# %% [markdown] id=table
# ## The few-steps table
#
# Now the question of lesson 08, with figures: *how good are few steps?* Song's Table 1 (CIFAR-10, FID, 50,000 samples) puts the samplers down the side, $\eta = 0$ to 1 and $\hat\sigma$, and the number of steps across. Here are two tables of the course's own, of two models: `fashion`, trained far longer, and the small `digits`. Both are made alike: 5,000 samples a cell (1,000 at $S = 1000$; `digits` ends at $S = 50$), $\hat x_0$ in the rows of $\eta$ not clipped, as in the paper, and three seeds of the sampling for some cells. The steps are evenly spaced but in the last row; the paper's for CIFAR-10 are quadratic (lesson 08). They were made by
# `ddpm eval`: that takes longer than a notebook may, so the results are stored, with all that is needed to repeat them.
#
# > **Predict before you run.** In the paper's table $\eta = 0$ is lowest at 50 steps. Which row is lowest there for `fashion`, and which for `digits`?

# %% id=table-stored
from ddpm_from_scratch.course.stored import stored_facts, stored_table

tables = {"fashion": stored_table("fashion_few_steps"), "digits": stored_table("digits_unclipped")}
heads = (
    "| | "
    + " | ".join(f"S = {steps}" for steps in few_steps.PAPER_STEPS)
    + " |\n"
    + "|---" * 6
    + "|\n"
)
rows = [
    f"| {few_steps.row_title(row)} | " + " | ".join(f"{value:g}" for value in values) + " |"
    for row, values in few_steps.PAPER.items()
]
pieces = ["**Song, Table 1, CIFAR-10: FID, Inception features**", heads + "\n".join(rows)]
for name, table in tables.items():
    pieces += [
        f"**This course, {name}: Fréchet distance, classifier features**",
        table.grid("frechet"),
        table.origin(),
    ]
display(Markdown("\n\n".join(pieces)))

# %% id=table-picture
with plots.figure(
    columns=3,
    height=3.6,
    alt="Three panels of the same form: distance over the number of steps, both "
    "logarithmic, one line per sampler. Left the fashion model and in the middle "
    "the digits model, with error bars, right the paper's. In all of them the line "
    "of σ̂ starts far above the others and falls most steeply. The line of η = 1 starts "
    "above that of η = 0; left they cross between 50 and 100 steps, in the middle between 10 and "
    "20, right they do not. At 1000 steps σ̂ has come down, left beside the other two, right "
    "below all others.",
    caption="Left and middle, this course's models with 95 % bootstrap intervals, and the "
    "floor: what as many real images would score, reckoned from the held-out ones that there "
    "are (of digits fewer than 300). At 1000 steps the samples are fewer, so figures and "
    "floor lie higher. Right, Song's Table 1.",
) as panels:
    for table, ax in zip(tables.values(), panels, strict=False):
        for place, row in enumerate(table.rows):
            cells = [table.result(row, steps) for steps in table.columns]
            cells = [one for one in cells if one is not None]
            f = [one.figures for one in cells]
            bars = [
                [a.frechet - a.frechet_low for a in f],
                [a.frechet_high - a.frechet for a in f],
            ]
            ax.errorbar(
                # side by side, so that no bar hides another
                [one.cell.steps * 1.03 ** (place - 2) for one in cells],
                [a.frechet for a in f],
                bars,
                label=few_steps.row_title(row),
                color=plots.COLOURS[place],
                linestyle=plots.DASHES[place],
                capsize=2,
            )
        ax.plot(
            table.columns,
            [table.result("0", steps).figures.frechet_floor for steps in table.columns],
            color=plots.INK,
            linewidth=1,
            linestyle=":",
            label="real images",
        )
    for place, values in enumerate(few_steps.PAPER.values()):
        panels[2].plot(
            few_steps.PAPER_STEPS, values, color=plots.COLOURS[place], linestyle=plots.DASHES[place]
        )
    titles = ("fashion, this course", "digits, this course", "CIFAR-10, Song's Table 1")
    for ax, title, steps in zip(
        panels, titles, (*(table.columns for table in tables.values()), few_steps.PAPER_STEPS), strict=True
    ):
        ax.set(xscale="log", yscale="log", xlabel="steps S", title=title)
        ax.set_xticks(steps, [str(count) for count in steps])
        ax.minorticks_off()
    panels[0].set(ylabel="Fréchet distance")
    panels[2].set(ylabel="FID")
    panels[2].legend(*panels[0].get_legend_handles_labels(), fontsize=8.5)
print("lowest figure of each column")
for name, table in tables.items():
    for place, steps in enumerate(few_steps.PAPER_STEPS):
        if steps not in table.columns:
            continue
        mine = min(
            (
                one
                for one in table.results
                if one.cell.steps == steps and not one.cell.quadratic and one.cell.seed == 0
            ),
            key=lambda one: one.figures.frechet,
        )
        theirs = min(few_steps.PAPER, key=lambda row: few_steps.PAPER[row][place])
        zero, one = table.result("0", steps).figures, table.result("1", steps).figures
        apart = "the intervals of η = 0 and η = 1 " + (
            "do not overlap"
            if zero.frechet_high < one.frechet_low or one.frechet_high < zero.frechet_low
            else "overlap"
        )
        print(
            f"{name:<8} S = {steps:>4}: ours {few_steps.row_title(mine.cell.row)}, the paper's {few_steps.row_title(theirs)}; {apart}"
        )

# %% [markdown] id=table-reading
# <details><summary>Answer</summary>
#
# For `digits` it is $\eta = 1$, with every seed, far below $\eta = 0$; at ten steps it is the other way round. For `fashion` no row up to $\eta = 0.5$ is settled to be the lowest there, since their intervals overlap, but $\eta = 1$ is above $\eta = 0$ up to 50 steps, as in the paper, at 10 and at 50 with every seed. At 100 and at 1000 steps it is below, though within the intervals. (In the paper $\eta = 1$ never comes below $\eta = 0$. What does, with 1000 steps, is $\hat\sigma$; here it is the highest of the three, within the intervals.) Two models make no law, but they fit the reason given below: noise repairs errors, and in the model that was trained far longer, which makes fewer, it begins to pay later.
#
# </details>
#
# ### Reading it
#
# **With very few steps, no sampler is right, and each is wrong in its own way**, even with a perfect network (lesson 07, *One Gaussian, followed exactly*; lesson 08, *Going deeper: how wrong are few steps?*). With $\eta$ up to 1 the samples vary too little. $\hat\sigma$ leaves noise where there should be none: each of its steps adds the noise that the forward
# process would add on the same stretch, and after the last long stretch no step is left that could take it away. That is the grain of the first sheet.
#
# **With many steps, noise may help**, since it replaces part of the errors that the network has made; *where* the order turns depends on the model (lesson 08, *When does the claim hold?*). A table for one model does not speak for another.
#
# **A difference counts if it is large against the interval, and comes back with another seed.** Where intervals overlap, one table does not settle the matter; new seeds may. (That is a careful rule: a difference can be real where two intervals just overlap.) The stored tables have three for some cells:

# %% id=table-seeds
for name, table in tables.items():
    for steps in (10, 50):
        for row in ("0", "1"):
            found = table.of_all_seeds(row, steps)
            first = table.result(row, steps).figures
            print(
                f"{name:<8} S = {steps}, {few_steps.row_title(row)}: seeds give "
                + ", ".join(f"{value:.3f}" for value in found)
                + f"; interval of the first [{first.frechet_low:.3f}, {first.frechet_high:.3f}]"
            )

# %% [markdown] id=table-thousand
# ### A thousand steps
#
# In the last column of `fashion` the figures of $\eta = 0$ and $\eta = 1$ are higher than at 100 steps. But there the samples are fewer, and the floor is higher too. The kernel distance has no such bias, so it may be compared:

# %% id=table-kernel
for row in ("0", "1", few_steps.SIGMA_HAT):
    for steps in (100, 1000):
        f = tables["fashion"].result(row, steps).figures
        print(
            f"fashion, {few_steps.row_title(row):<5} S = {steps:>4}: kernel distance × 1000 {1000 * f.kernel:5.1f} "
            f"[{1000 * f.kernel_low:5.1f}, {1000 * f.kernel_high:5.1f}]"
        )

# %% [markdown] id=table-kernel-reading
# Nine hundred steps more change nothing for $\eta = 0$ and $\eta = 1$ that these samples could show. For $\hat\sigma$ they make the difference: it ends level with the others, while in the paper it ends below them.
#
# **With very many steps, clipping counts.** In the table of lesson 08 for `digits` the rows of $\eta$ rise towards 1000 steps far above their floor. It was made with $\hat x_0$ clipped and $\varepsilon$ kept, as Diffusers does by default, and the small push of each step adds up (lesson 08, *Clipping*). That says more about clipping than about steps. Song's DDIM does not clip, nor does the table above; $\hat\sigma$, Ho's sampler, takes its mean from the clipped $\hat x_0$ and stays right.

# %% [markdown] id=table-live
# ### Two cells, live
#
# The samples of the first cell of this lesson are a small edition of two cells of *lesson 08's* table for `digits`: 40 images each, $\hat x_0$ clipped as there (the table above is not clipped). And 50 steps for $\eta = 0$, to see what the larger number buys. Judged by the kernel distance, which may be compared across sample sizes.

# %% id=table-live-run
few["η = 0, S = 50"] = generate(
    pipeline, COUNT, SamplingSettings("ddim", 50), batch_size=COUNT, bar=quiet
)
table = stored_table("digits_few_steps")  # made with clipping, as the samples above
stored = {
    "η = 0": table.result("0", 10),
    "σ̂": table.result(few_steps.SIGMA_HAT, 10),
    "η = 0, S = 50": table.result("0", 50),
}
print("kernel distance × 1000    live, 40 samples          stored, 500 samples")
for name, pixels in few.items():
    features = judge.extract(pixels)
    live, range_ = (
        metrics.kernel_distance(features, judge.train_features),
        uncertainty.kernel_interval(features, judge.train_features),
    )
    kept = stored[name].figures
    print(
        f"{name:<15} {1000 * live:9.1f} [{1000 * range_.low:7.1f}, {1000 * range_.high:7.1f}]   {1000 * kept.kernel:9.1f} [{1000 * kept.kernel_low:7.1f}, {1000 * kept.kernel_high:7.1f}]"
    )

# %% [markdown] id=budget
# ### More training
#
# The table asks what more *steps* buy. And more *training*? Here is the run that made such a digits model, judged on its way: the averaged weights after so many optimiser steps, with the same seed and the same sampler each time.
#
# > **Predict before you run.** Lesson 06: the loss falls fast, and soon looks flat. Do the samples stop getting better where the loss looks flat?

# %% id=budget-curve
budget = stored_facts("digits_budget")
trained = [row["step"] for row in budget["rows"]]
losses = [row["loss"] for row in budget["rows"]]
judged_rows = [row["figures"] for row in budget["rows"]]
distances = [f["frechet"] for f in judged_rows]
with plots.figure(
    columns=2,
    height=3.2,
    alt="Two panels over the number of optimiser steps. Left, the loss: it drops at once, then "
    "hardly moves. Right, on a logarithmic axis, the Fréchet distance of the samples with error "
    "bars: it falls at every point, towards a dotted line, the floor.",
    caption="One training run. Left, the mean loss of the steps before; right, samples of the "
    "averaged weights, with 95 % bootstrap intervals, and what as many real images would score, "
    "reckoned from the held-out ones.",
) as (left, ours):
    left.plot(trained, losses, marker="o")
    bars = [
        [f["frechet"] - f["frechet_low"] for f in judged_rows],
        [f["frechet_high"] - f["frechet"] for f in judged_rows],
    ]
    ours.errorbar(trained, distances, bars, marker="o", capsize=2)
    ours.axhline(
        judged_rows[0]["frechet_floor"], color=plots.INK, linewidth=1, linestyle=":"
    )
    left.set(ylabel="loss", ylim=(0, None))
    ours.set(ylabel="Fréchet distance", yscale="log")
    for ax in (left, ours):
        ax.set(xscale="log", xlabel="optimiser steps")
        ax.set_xticks(trained, [f"{step:,}" for step in trained])
        ax.minorticks_off()
for step, loss, f in zip(trained, losses, judged_rows, strict=True):
    print(
        f"{step:>6,} steps, {step * budget['batch_size']:>8,} images seen: loss {loss:.4f}, "
        f"Fréchet {f['frechet']:6.2f} [{f['frechet_low']:.2f}, {f['frechet_high']:.2f}]"
    )
print(
    f"made by `{budget['command']}`\nin {budget['minutes']:.0f} minutes on {budget['machine']}"
)
print(
    f"over the last doubling the loss fell by {1 - losses[-1] / losses[-2]:.0%}, the distance by "
    f"{1 - distances[-1] / distances[-2]:.0%}"
)

# %% [markdown] id=budget-answer
# <details><summary>Answer</summary>
#
# No. On this axis the falls of the loss are small, but it falls at every point, and over the last doubling the distance of the samples fell by a far larger share. Part of what is left of the loss is noise that cannot be told from the image, whatever the network (lesson 03); how large a part, the curve does not say. So a loss curve that looks flat is no reason to stop; samples, or figures of samples, are. (In a run whose learning rate falls to 0, as here, the last steps also gain by that.)
#
# </details>

# %% [markdown] id=mislead
# ## When a figure misleads
#
# ### The thief
#
# Here is a model that cannot fail. It has stored the training images, and returns one of them whenever it is asked for a sample.
#
# > **Predict before you run.** What Fréchet distance does it get: more than held-out real images, the same, or less?

# %% id=thief
order = torch.randperm(len(train), generator=generator)
judged = {
    "the thief": train.pixels[order[: len(test)]],
    "held-out real images": test.pixels,
}
verdicts = {name: judge.figures(pixels, replicates=50) for name, pixels in judged.items()}
for name, found in verdicts.items():
    print(
        f"{name:<22} N = {found.num_samples}: Fréchet {found.frechet:.3f} [{found.frechet_low:.3f}, {found.frechet_high:.3f}], kernel × 1000 {1000 * found.kernel:.2f}"
    )
everything = by_hand(features_train, features_train)
print(f"the thief, all {len(train):,} images: Fréchet {everything:.2e}")

# %% [markdown] id=thief-answer
# <details><summary>Answer</summary>
#
# Less. Better than reality: held-out images are judged by what *other* images look like, the thief's by what they look like themselves. (With 297 images the intervals overlap; near the floor they are wide, as said above. With all images nothing is in doubt. The kernel distance takes the two sets for independent; the thief's is not, and on average it gets less than 0.) No distance to the training set can tell learning from copying. The distance to the test set takes away the thief's lead, no more: there it scores like any other set of
# real images. Papers compare with the training set all the same, since it is larger.
#
# </details>
#
# What does tell is to look for each sample in the training set.

# %% exercise 11.5
# For each sample, find the training image that is nearest to it, and how far away it is.

# %% id=neighbours
from ddpm_from_scratch.course.exercises.l11 import nearest_neighbour as finished_neighbour

assert verdicts["the thief"].frechet < verdicts["held-out real images"].frechet
real = train.images()
made = to_model_range(few["η = 0, S = 50"])
looked_up = {
    "samples": finished_neighbour(made, real),
    "held-out": finished_neighbour(test.images(), real),
    "the thief": finished_neighbour(to_model_range(judged["the thief"]), real),
}
for name, (_, distance) in looked_up.items():
    print(
        f"{name:<10} distance to the nearest training image: median {distance.median():.3f}, smallest {distance.min():.3f}"
    )
closest = looked_up["samples"][1].argsort()[:12]
pairs = torch.cat([made[closest], real[looked_up["samples"][0][closest]]])
plots.image_grid(
    pairs,
    12,
    row_labels=["sample", "nearest\ntraining image"],
    alt="Two rows of twelve digits: samples, and below each the training image "
    "nearest to it. Most pairs show the same digit in a slightly different "
    "hand.",
    caption="The twelve samples that are closest to a training image, and that image. "
    "The ones most likely to be copies: look whether they are.",
)
with plots.figure(
    6,
    2.6,
    alt="Two histograms of the distance to the nearest training image, for samples "
    "and for held-out real images, lying largely over each other; a line at "
    "zero marks the thief.",
    caption="The distances of a model that copied would pile up near 0, left of those "
    "of held-out images. The thief's are all 0.",
) as ax:
    ax.hist(
        looked_up["held-out"][1].numpy(),
        bins=25,
        range=(0, 0.6),
        density=True,
        color=plots.SKY,
        label="held-out images",
    )
    ax.hist(
        looked_up["samples"][1].numpy(),
        bins=25,
        range=(0, 0.6),
        density=True,
        histtype="step",
        linewidth=2,
        color=plots.VERMILION,
        label="samples",
    )
    ax.axvline(0, color=plots.INK, linewidth=3, linestyle="-", label="the thief")
    ax.set(xlabel="distance to the nearest training image", yticks=[])
    ax.legend()

# %% [markdown] id=extractor
# ### Two extractors
#
# A figure sees what its features see. Take real held-out digits and spoil them in four ways. Judge them with the classifier's features, and with simple ones: the mean brightness of 16 patches. Each in units of its own floor, what *as many* unspoilt images score: the last set has only half of the images, so its floor is the mean over a hundred random choices of as many.
#
# > **Predict before you run.** Will the two agree on what is worst?


# %% id=extractor-run
def patches(pixels):
    return avg_pool2d(pixels.double() / 255, 4).flatten(1)


def floor_of(features, count, seen):
    """The distance of `count` unspoilt images: the mean over a hundred random choices of them."""
    choices = torch.Generator().manual_seed(1)
    chosen = [torch.randperm(len(features), generator=choices)[:count] for _ in range(100)]
    return sum(by_hand(features[one], seen) for one in chosen) / len(chosen)


grain = torch.randn(test.pixels.shape, generator=generator)
spoilt = {
    "blurred": avg_pool2d(pad(test.pixels.float(), [1] * 4, mode="replicate"), 3, stride=1)
    .round()
    .to(torch.uint8),
    "noise": (test.pixels + 40 * grain).round().clamp(0, 255).to(torch.uint8),
    "shifted": test.pixels.roll(2, dims=3),
    "0 to 4 only": test.pixels[test.labels < 5],
}
extractors = {"classifier": judge.extract, "patches": patches}
ratio = {}
for name, extract in extractors.items():
    seen = extract(train.pixels).double()
    unspoilt = extract(test.pixels).double()
    counts = sorted({len(pixels) for pixels in spoilt.values()}, reverse=True)
    floors = {count: floor_of(unspoilt, count, seen) for count in counts}
    ratio[name] = {
        kind: by_hand(extract(pixels).double(), seen) / floors[len(pixels)]
        for kind, pixels in spoilt.items()
    }
    print(
        f"{name:<11}floor: "
        + ", ".join(f"{floor:.3f} of {count} images" for count, floor in floors.items())
    )
    print(
        f"{name:<11}"
        + "   ".join(f"{kind} {value:6.1f}" for kind, value in ratio[name].items())
        + "   (times the floor)"
    )
ranking = {
    name: sorted(values, key=values.get, reverse=True) for name, values in ratio.items()
}
for name, order_of in ranking.items():
    print(f"{name:<11}from worst to best: " + ", ".join(order_of))
shown = torch.cat([test.pixels[:8], *(pixels[:8] for pixels in spoilt.values())])
plots.image_grid(
    to_model_range(shown),
    8,
    row_labels=["real", *spoilt],
    width=5.5,
    alt="Five rows of eight digits: real, blurred, with noise, shifted to the "
    "right, and only the digits 0 to 4.",
    caption="The same real digits, spoilt in four ways.",
)
with plots.figure(
    6.4,
    2.9,
    alt="Grouped bars on a logarithmic axis: for each of the four spoilt sets, the distance in "
    "units of the floor by the classifier's features and by patches.",
    caption="The distance of each spoilt set by the two extractors; dashed, the floor of as "
    "many unspoilt images.",
) as ax:
    for i, (name, values) in enumerate(ratio.items()):
        places = [place + 0.38 * (i - 0.5) for place in range(len(values))]
        ax.bar(places, list(values.values()), 0.36, color=plots.COLOURS[i], label=name)
    ax.axhline(1, color=plots.INK, linewidth=1, linestyle="--")
    ax.set(
        yscale="log",
        ylabel="times the floor",
        xticks=range(len(spoilt)),
        xticklabels=list(spoilt),
    )
    ax.legend()

# %% [markdown] id=extractor-answer
# <details><summary>Answer</summary>
#
# No. What one extractor finds terrible, another hardly notices, and the order of the four is another one for each: what a classifier was trained to ignore, it ignores here too, and patches do not see what happens within a patch. Neither is wrong: each answers the question that its features ask. Hence: **say which extractor**, compare figures of the same one only, and look at the samples. It also follows that a model trained *against* an extractor's features
# may please it without pleasing anyone else.
#
# </details>

# %% [markdown] id=clinic
# ## Bug clinic
#
# Five reports on the *same* held-out digits. The first is right, the other four come from code with one bug each, all of a kind that is soon made. The code is hidden. Each report also says what 100 of the images score, what they score when they are given in batches of 20 (they are sorted by class), and what the code
# says of the training images' features when all are moved by a vector of length 2, whose squared distance is 4.
#
# > **Before you unfold the answers:** one has forgotten `.eval()`, one gives the network pixels in another range, one does not take off the mean, and one compares a set with itself. Which is which?


# %% id=clinic-run
from ddpm_from_scratch.course.exercises.l11 import BROKEN, distance_of, features_of

assert ranking["classifier"] != ranking["patches"]
network = shipped_classifier("digits")[0].eval()
given = test.pixels[test.labels.argsort()]
hundred = torch.randperm(len(given), generator=generator)[:100]


def report(extract, compare):
    own = copy.deepcopy(network)  # whatever the code does to it
    whole, small = extract(own, given, len(given)), extract(own, given, 20)
    asked = whole, whole[hundred], small
    moved = compare(features_train + 2 / math.sqrt(D), features_train)
    return [*(compare(one, features_train) for one in asked), moved]


columns = "all 297", "100 of them", "batches of 20", "moved by 2"
reports = {
    name: report(*pair) for name, pair in {"right": (features_of, distance_of), **BROKEN}.items()
}
print("report  " + "".join(f"{column:>15}" for column in columns))
for name, values in reports.items():
    print(f"{name:<8}" + "".join(f"{value:15.3f}" for value in values))
with plots.figure(
    7,
    3.1,
    alt="Grouped bars of the five reports, four bars each. The first three bars of "
    "A are high. The third bar of B is much higher than its first. C looks like"
    " the right report but for its fourth bar. All bars of D are at zero.",
    caption="Five reports on the same images. A figure near the expected one proves "
    "little: look how it changes.",
) as ax:
    for i, column in enumerate(columns):
        places = [place + 0.2 * (i - 1.5) for place in range(len(reports))]
        heights = [max(values[i], 1e-2) for values in reports.values()]
        ax.bar(places, heights, 0.18, color=plots.COLOURS[i], label=column)
    ax.set(
        yscale="log",
        xticks=range(len(reports)),
        xticklabels=list(reports),
        ylabel="Fréchet distance",
        ylim=(1e-2, 600),
    )
    ax.legend(fontsize=9, ncols=4, loc="upper center")

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# - **A** gives the network pixels in $[0, 1]$, which expects $[-1, 1]$. To it, these are grey, pale images. Everything is far away, always by about the same. Check: do real images score the floor?
# - **B** has forgotten `.eval()`: batch normalisation uses the statistics of the batch. The figure depends on how images are put into batches, and with sorted batches it is far off. Check: another batch size must not change anything.
# - **C** computes $\mathbb E[xx^\top]$ and calls it the covariance, without taking off the mean. Since both sets get the same treatment, equal sets still have distance 0, and the figure looks plausible. Only the last column gives it away. Check: a pair of sets with a known distance.
# - **D** compares a set with itself. A distance of 0 to a finite set is never good news.
#
# </details>
#
# Now the code. In each pair, one function has the bug. **Fix it** in a cell of your own, and compare `report(extract, compare)` with the first line.

# %% id=clinic-code
for name, pair in BROKEN.items():
    print(f"# {name}")
    print("\n".join(inspect.getsource(function) for function in pair))

# %% [markdown] id=wrong
# ## What could go wrong
#
# - **Different N.** A common fault in tables put together from several sources.
# - **Different extractor, different resizing.** Implementations of FID differ in how they resize images to Inception's 299 pixels, and in the weights. Figures of two programs are not comparable until shown to be.
# - **The best of many.** Whoever computes the figure after every epoch and reports the lowest, reports luck as well. Choose by one set of samples, report another.
# - **8 bits.** Samples are rounded to 256 grey levels before they are judged, as the real images were. Judging the floats is another figure, and bits of resized images are bits of other data.
# - **A class that is missing** raises the distances, but they do not say that it is missing, nor which. Count the classes too: `ddpm eval` prints the shares.
# - **One figure.** Fréchet and kernel distance, shares of classes, nearest neighbours and bits answer different questions. And look at the samples: all of them, not at the best.

# %% [markdown] id=summary
# ## Summary
#
# - FID is the cost of carrying one Gaussian into another, in feature space (Heusel eq. 6). KID compares means, squares and cubes of features (Binkowski section 4).
# - FID has a bias of order $1/N$, with a known floor; KID has none if the pairs of a vector with itself are left out. Both have error bars: bootstrap.
# - Bits per dimension bound the code length of held-out images (Ho eq. 5, 13). Most bits lie at small $t$, where nobody looks.
# - A few-steps table says for which model, $N$, seed and extractor it holds, or it says nothing. Little noise wins at few steps; at many steps noise may repair a model's errors.
# - A thief has the best FID. Look for samples in the training set.
#
# Your functions are now part of `ddpm_from_scratch.metrics`; `ddpm eval MODEL` prints these figures, `--table ddim` makes the table and can be stopped and resumed, `--table bits` counts bits. **Next:** lesson 12 makes images to order.

# %% id=progress
progress("11")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 11}}
#
# - M. Fréchet, *Sur la distance de deux lois de probabilité* (1957), Comptes rendus 244: the distance.
# - M. Heusel and others, *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium* (2017), arXiv 1706.08500: eq. 6 (FID).
# - M. Bińkowski and others, *Demystifying MMD GANs* (2018), arXiv 1801.01401: section 4 (KID), and why the estimate of FID is biased.
# - M. Chong, D. Forsyth, *Effectively Unbiased FID and Inception Score and Where to Find Them* (2020), arXiv 1911.07023: the line in $1/N$, and its limit.
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: eq. 5 and 13 (the bound and its last term), section 3.4 (samples against bits).
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models* (2021), arXiv 2010.02502: section 5.1 and Table 1.
# - B. Efron, R. Tibshirani, *An Introduction to the Bootstrap* (1993).
