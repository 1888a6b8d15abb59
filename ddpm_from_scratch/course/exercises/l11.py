"""Exercises of lesson 11, how good is it."""

from __future__ import annotations

import math

import torch
from matplotlib import rc_context
from torch import Tensor

from ddpm_from_scratch import metrics, to_model_range
from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.course.exercises.l01 import value_and_type

# ---------------------------------------------------------------- 11.1


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The squared Fréchet distance of two Gaussians in D dimensions.

    mean1, mean2: shape (D,).
    covariance1, covariance2: shape (D, D), symmetric; some directions may have no variance at all.
    Returns a number, at least 0.
    """
    values, vectors = torch.linalg.eigh(covariance1.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance2.double() @ root).clamp(min=0).sqrt().sum()
    apart = (mean1.double() - mean2.double()).square().sum()
    return float(apart + covariance1.trace() + covariance2.trace() - 2 * cross)


def frechet_distance_inputs(generator: torch.Generator, index: int) -> Case:
    """Two random Gaussians in 3, 6 and 2 dimensions, and in 8 of which the first has only two directions."""
    size = (3, 6, 2, 8)[index]
    means = torch.randn(2, size, generator=generator)
    factors = torch.randn(2, size, size, generator=generator)
    if index == 3:
        factors[0, :, 2:] = 0
    one, two = factors @ factors.transpose(1, 2) / size
    args = {"mean1": means[0], "covariance1": one, "mean2": means[1], "covariance2": two}
    return Case(args, {"D": size})


def frechet_by_the_product(mean1, covariance1, mean2, covariance2):
    roots = torch.linalg.eigvals(covariance1.double() @ covariance2.double()).real.clamp(min=0).sqrt()
    spread = covariance1.trace() + covariance2.trace() - 2 * roots.sum()
    return float(((mean1 - mean2) ** 2).sum() + spread)


def frechet_by_singular_values(mean1, covariance1, mean2, covariance2):
    roots = []
    for covariance in (covariance1, covariance2):
        values, vectors = torch.linalg.eigh(covariance.double())
        roots.append(vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T)
    cross = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    return ((mean1 - mean2) @ (mean1 - mean2) + (covariance1 + covariance2).trace() - 2 * cross).item()


def frechet_by_loop(mean1, covariance1, mean2, covariance2):
    total = sum(float(a - b) ** 2 for a, b in zip(mean1, mean2, strict=True))
    for i in range(len(mean1)):
        total += float(covariance1[i, i]) + float(covariance2[i, i])
    for value in torch.linalg.eigvals(covariance2.double() @ covariance1.double()).tolist():
        total -= 2 * math.sqrt(max(value.real, 0.0))
    return total


def frechet_in_place(mean1, covariance1, mean2, covariance2):
    difference = mean1.double().clone()
    difference -= mean2
    values, vectors = torch.linalg.eigh(covariance2.double())
    half = vectors * values.clamp(min=0).sqrt()
    inner = half.T @ covariance1.double() @ half
    inner += inner.T.clone()
    roots = (torch.linalg.eigvalsh(inner / 2).clamp(min=0)).sqrt()
    return torch.as_tensor(difference.dot(difference) + covariance1.trace() + covariance2.trace() - 2 * roots.sum())


def _frechet_parts(mean1, covariance1, mean2, covariance2):
    """‖μ1 - μ2‖², Tr Σ1 + Tr Σ2, and Tr (Σ1 Σ2)^½."""
    roots = torch.linalg.eigvals(covariance1.double() @ covariance2.double()).real.clamp(min=0).sqrt()
    return (mean1 - mean2).double().square().sum(), covariance1.trace() + covariance2.trace(), roots.sum()


def _wrong_frechet(combine):
    return lambda m1, c1, m2, c2: float(combine(*_frechet_parts(m1, c1, m2, c2)))


def _squared(mean1, mean2):
    return float((mean1 - mean2).double().square().sum())


def _roots(values):
    return values.double().clamp(min=0).sqrt()


def _root(covariance):
    values, vectors = torch.linalg.eigh(covariance.double())
    return vectors * _roots(values) @ vectors.T


def _with_cross(mean1, covariance1, mean2, covariance2, cross):
    return _squared(mean1, mean2) + float(covariance1.trace() + covariance2.trace() - 2 * cross)


def _cross_of_halves(covariance1, covariance2, half):
    """The cross term with another root of Σ1, `half(vectors, roots of the values)`."""
    values, vectors = torch.linalg.eigh(covariance1.double())
    root = half(vectors, _roots(values))
    return _roots(torch.linalg.eigvals(root @ covariance2.double() @ root).real).sum()


def _diagonals_alone(mean1, covariance1, mean2, covariance2):
    apart = (mean1 - mean2).square().sum()
    return float(apart + (covariance1.diagonal().sqrt() - covariance2.diagonal().sqrt()).square().sum())


def _elementwise_root(mean1, covariance1, mean2, covariance2):
    apart = (mean1 - mean2).square().sum()
    cross = (covariance1 @ covariance2).diagonal().clamp(min=0).sqrt().sum()
    return float(apart + covariance1.trace() + covariance2.trace() - 2 * cross)


def _no_root(mean1, covariance1, mean2, covariance2):
    apart = (mean1 - mean2).square().sum()
    return float(apart + (covariance1 + covariance2 - 2 * covariance1 @ covariance2).trace())


def _norm_of_covariances(mean1, covariance1, mean2, covariance2):
    return float((mean1 - mean2).square().sum() + (covariance1 - covariance2).square().sum())


def _no_clamp(mean1, covariance1, mean2, covariance2):
    values, vectors = torch.linalg.eigh(covariance1.double())
    root = vectors * values.sqrt() @ vectors.T
    cross = (
        torch.linalg.eigvals(root @ covariance2.double() @ root).real.sqrt().sum()
        if root.isfinite().all()
        else root.sum()
    )
    return float((mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross)


def draw_frechet(answer):
    """The distance while one Gaussian is moved and while it is widened, the learner's and the closed form."""
    eye, zero = torch.eye(2).double(), torch.zeros(2).double()
    moves = torch.linspace(0, 2, 21).double()
    widths = torch.linspace(0.2, 3, 21).double()
    mine = [
        [float(answer(zero, eye, torch.tensor([m, 0]).double(), eye)) for m in moves.tolist()],
        [float(answer(zero, eye, zero, s**2 * eye)) for s in widths.tolist()],
    ]
    truth = [moves**2, 2 * (widths - 1) ** 2]
    labels = "distance of the means", "standard deviation of the second"
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH * 0.8, 2.7, 1, 2)
        for ax, x, y, true, label in zip(figure.axes, (moves, widths), mine, truth, labels, strict=True):
            ax.plot(x, true, label="closed form")
            ax.plot(x, y, label="yours", linestyle="", marker="o", markersize=5)
            ax.set(xlabel=label, ylabel="squared distance")
        figure.axes[0].legend()
    return figure


FRECHET = Exercise(
    id="11.1",
    title="The Fréchet distance",
    difficulty=3,
    minutes=8,
    equation="Heusel eq. 6",
    where="The distance of two Gaussians",
    lines=6,
    reference=frechet_distance,
    inputs=frechet_distance_inputs,
    hints=(
        "Three parts: how far the means are apart, the two traces, and the cross term. Only the last needs thought: it "
        "is the sum of the square roots of the eigenvalues of a matrix.",
        "‖μ1 - μ2‖² + Tr Σ1 + Tr Σ2 - 2 Tr (Σ1^½ Σ2 Σ1^½)^½. The trace of a root is the sum of the roots of the "
        "eigenvalues, and Σ1 Σ2 has the same eigenvalues as the symmetric matrix.",
        "`torch.linalg.eigh` gives values and vectors of Σ1; `vectors * values.sqrt() @ vectors.T` is its root, and "
        "`torch.linalg.eigvalsh` gives the eigenvalues of the product. Rounding makes some of them a hair negative.",
    ),
    mistakes=(
        Mistake(
            lambda m1, c1, m2, c2: math.sqrt(max(frechet_distance(m1, c1, m2, c2), 0)),
            "you returned the root of the distance: what is called FID is the squared one",
        ),
        Mistake(
            _wrong_frechet(lambda apart, traces, cross: apart + traces - cross),
            "you lost the 2 in front of the cross term: two equal Gaussians then lie Tr Σ apart, not 0",
        ),
        Mistake(
            _wrong_frechet(lambda apart, traces, cross: apart.sqrt() + traces - 2 * cross),
            "you added the distance of the means where its square belongs",
        ),
        Mistake(
            _wrong_frechet(lambda apart, traces, cross: traces - 2 * cross),
            "you left out the means: two Gaussians of the same shape in different places have a distance too",
        ),
        Mistake(
            _wrong_frechet(lambda apart, traces, cross: apart),
            "you compared the means alone: the covariances are not used",
        ),
        Mistake(
            _diagonals_alone,
            "you used the variances of the {D} features alone: that is right only where no two features vary together",
        ),
        Mistake(
            _elementwise_root,
            "you took the square root of the entries of Σ1 Σ2: the root of a matrix has the roots of its eigenvalues",
        ),
        Mistake(
            _no_root,
            "you took the trace of Σ1 Σ2 without a square root: its unit is that of a variance squared",
        ),
        Mistake(
            _norm_of_covariances,
            "you compared the covariances entry by entry: that is no distance of the points that they describe",
        ),
        Mistake(
            _wrong_frechet(lambda apart, traces, cross: apart + traces + 2 * cross),
            "you added the cross term: it is what two clouds have in common, and brings them together",
        ),
        Mistake(
            lambda m1, c1, m2, c2: frechet_distance(m1, c1, m2, c2) - _squared(m1, m2) * (1 - 1 / len(m1)),
            "you averaged over the {D} features in the distance of the means: their squares are added up",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(m1, c1, m2, c2, (_root(c1) @ _root(c2)).trace()),
            "you took the trace of the product of the two roots: that is the trace of (Σ1 Σ2)^½ only where both have "
            "the same axes",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(m1, c1, m2, c2, _roots(torch.linalg.eigvalsh((c1 @ c2).double())).sum()),
            "you gave Σ1 Σ2 to `eigvalsh`: it is not symmetric, and `eigvalsh` looks at one half of a matrix alone",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(
                m1, c1, m2, c2, _roots(torch.linalg.eigvalsh(c1) * torch.linalg.eigvalsh(c2)).sum()
            ),
            "you multiplied the eigenvalues of the two covariances, in order: that forgets where their axes point",
        ),
        Mistake(
            _no_clamp,
            "you took the root of an eigenvalue that should be 0 and that rounding made negative: with a covariance "
            "that is flat in some directions ({D} features, 2 directions) the result is no number",
        ),
        Mistake(
            lambda m1, c1, m2, c2: float((m1 - m2).square().sum() + (c1 + c2).trace()),
            "you left out the cross term: two equal Gaussians then lie twice their variance apart, not 0",
        ),
        Mistake(
            lambda m1, c1, m2, c2: frechet_distance(m1, c1, m2, c2) - float(c2.trace()),
            "you left out the second trace: both clouds have a spread",
        ),
        Mistake(
            lambda m1, c1, m2, c2: frechet_distance(m1, c1, m2, c2) + float((m1 - m2).abs().sum()) - _squared(m1, m2),
            "you added up the sizes of the differences of the means: their squares are asked for",
        ),
        Mistake(
            lambda m1, c1, m2, c2: frechet_distance(m1, c1, m2, c2) + float((m1 - m2).sum() ** 2) - _squared(m1, m2),
            "you squared the sum of the differences of the means: the squares are added up",
        ),
        Mistake(
            lambda m1, c1, m2, c2: frechet_distance(m1, c1, m2, c2) / len(m1),
            "you divided by the number of features, {D}: the distance is that of points, all features together",
        ),
        Mistake(
            lambda m1, c1, m2, c2: frechet_distance(m1, c1, m2, c2) + float((c1 + c2).sum() - (c1 + c2).trace()),
            "you added up all entries of the covariances: a trace is the sum of the diagonal",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(
                m1, c1, m2, c2, torch.linalg.svdvals(c1.double() @ c2.double()).sqrt().sum()
            ),
            "you took the singular values of Σ1 Σ2: it is not symmetric, and its eigenvalues are others",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(
                m1, c1, m2, c2, _roots(torch.linalg.eigvals(_root(c1) @ c2.double()).real).sum()
            ),
            "you multiplied Σ2 by the root of Σ1 once: it belongs on both sides",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(
                m1, c1, m2, c2, torch.linalg.eigvalsh(_root(c1) @ c2.double() @ _root(c1)).clamp(min=0).sum().sqrt()
            ),
            "you took the root of the sum of the eigenvalues: each has its own root, and these are added up",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(m1, c1, m2, c2, _cross_of_halves(c1, c2, lambda q, v: q * v)),
            "you left out the last factor, `vectors.T`, of Σ1^½: what you have is no symmetric root",
        ),
        Mistake(
            lambda m1, c1, m2, c2: _with_cross(m1, c1, m2, c2, _cross_of_halves(c1, c2, lambda q, v: q.T * v @ q)),
            "you transposed the wrong factor of Σ1^½: the eigenvectors are the columns of what `eigh` gives",
        ),
    ),
    alternatives=(frechet_by_the_product, frechet_by_singular_values, frechet_by_loop, frechet_in_place),
    package="ddpm_from_scratch.metrics.frechet_distance",
    picture=draw_frechet,
    rtol=2e-3,
)


# ---------------------------------------------------------------- 11.2


def kernel_distance(features1: Tensor, features2: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of two sets, with the kernel (x·y / D + 1)³.

    features1: shape (N, D), N at least 2.
    features2: shape (M, D), M at least 2; M and N may differ.
    Returns a number; it may be a little below 0.
    """
    x, y, size = features1.double(), features2.double(), features1.shape[1]
    k_xx, k_yy, k_xy = ((a @ b.T / size + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within_x = (k_xx.sum() - k_xx.trace()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return float(within_x + within_y - 2 * k_xy.mean())


def kernel_distance_inputs(generator: torch.Generator, index: int) -> Case:
    """Sets of different numbers, apart in mean, in spread, and in neither."""
    n, m, size = ((12, 7, 4), (5, 9, 6), (8, 8, 3), (30, 25, 5))[index]
    shift, scale = ((0.8, 1.0), (0.0, 1.7), (0.5, 0.6), (0.0, 1.0))[index]
    x = torch.randn(n, size, generator=generator)
    y = torch.randn(m, size, generator=generator) * scale + shift
    return Case({"features1": x, "features2": y}, {"N": n, "M": m, "D": size})


def _kernels(x, y, size=None, power=3, constant=1.0):
    size = x.shape[1] if size is None else size
    x, y = x.double(), y.double()
    return [(a @ b.T / size + constant) ** power for a, b in ((x, x), (y, y), (x, y))]


def _unbiased(k_xx, k_yy, k_xy, *, cross=2.0):
    n, m = len(k_xx), len(k_yy)
    within = (k_xx.sum() - k_xx.trace()) / (n * (n - 1)) + (k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return float(within - cross * k_xy.mean())


def _without_equal_numbers(x, y):
    k_xx, k_yy, k_xy = _kernels(x, y)
    between = (k_xy.sum() - k_xy.diagonal().sum()) / (len(x) * (len(y) - 1))
    return _unbiased(k_xx, k_yy, between)


def _divides_by_the_first(x, y):
    k_xx, k_yy, k_xy = _kernels(x, y)
    n = len(x)
    return float((k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()) / (n * (n - 1)) - 2 * k_xy.mean())


def kernel_by_loop(features1, features2):
    def k(a, b):
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    def within(rows):
        values = [k(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(values) / len(values)

    between = [k(a, b) for a in features1 for b in features2]
    return within(features1) + within(features2) - 2 * sum(between) / len(between)


def kernel_with_a_mask(features1, features2):
    k_xx, k_yy, k_xy = _kernels(features1, features2)
    parts = [k[~torch.eye(len(k), dtype=torch.bool)].mean() for k in (k_xx, k_yy)]
    return float(parts[0] + parts[1] - 2 * k_xy.mean())


def kernel_from_the_upper_triangle(features1, features2):
    k_xx, k_yy, k_xy = _kernels(features1, features2)
    parts = [k[torch.triu_indices(len(k), len(k), 1).unbind()].mean() for k in (k_xx, k_yy)]
    return (sum(parts) - 2 * k_xy.mean()).item()


def kernel_in_place(features1, features2):
    k_xx, k_yy, k_xy = _kernels(features1.clone(), features2.clone())
    k_xx.fill_diagonal_(0)
    k_yy.fill_diagonal_(0)
    n, m = len(k_xx), len(k_yy)
    return torch.as_tensor(k_xx.sum() / (n * n - n) + k_yy.sum() / (m * m - m) - 2 * k_xy.sum() / (n * m))


def kernel_with_einsum(features1, features2):
    size = features1.shape[1]
    both = torch.cat([features1, features2]).double()
    k = (torch.einsum("id,jd->ij", both, both) / size + 1).pow(3)
    n = len(features1)
    return _unbiased(k[:n, :n], k[n:, n:], k[:n, n:])


KERNEL = Exercise(
    id="11.2",
    title="The kernel distance, without bias",
    difficulty=2,
    minutes=8,
    equation="Binkowski section 4",
    where="The kernel distance",
    lines=6,
    reference=kernel_distance,
    inputs=kernel_distance_inputs,
    hints=(
        "Three averages of the kernel: over pairs within the first set, within the second, and between them. Two "
        "*different* members make a pair.",
        "mean of k(x_i, x_j) over i ≠ j, plus the same for y, minus twice the mean of k(x_i, y_j). There are N (N - 1) "
        "pairs within N vectors.",
        "`(x @ y.T / D + 1) ** 3` is a matrix of all pairs; the pairs of a vector with itself stand on its diagonal, "
        "and `.trace()` adds them up",
    ),
    mistakes=(
        Mistake(
            lambda x, y: float(sum(k.mean() for k in _kernels(x, y)[:2]) - 2 * _kernels(x, y)[2].mean()),
            lambda at: (
                f"you counted the {at.N} pairs of a vector with itself: that adds "
                f"{float(at.yours) - float(at.expected):.2f} here, the more the fewer vectors there are"
            ),
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y), cross=1.0),
            "you lost the 2 in front of the pairs between the sets: two equal sets then do not give 0",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y), cross=-2.0),
            "you added the pairs between the sets: likeness makes the distance smaller",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y, size=1)),
            "you did not divide x·y by D = {D}: with 2,048 features the cube would be beyond all bounds",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y, power=2)),
            "you squared where the kernel is a third power: yours sees means and covariances, but no skewness",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y, power=1)),
            "you took the kernel x·y / D + 1 without the power of three: yours compares the means alone",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y, constant=0.0)),
            "you left out the + 1 in the kernel, or put it outside of the power, where it cancels: then "
            "the third moments alone are compared",
        ),
        Mistake(
            lambda x, y: float(
                sum((k.sum() - k.trace()) / len(k) ** 2 for k in _kernels(x, y)[:2]) - 2 * _kernels(x, y)[2].mean()
            ),
            "you left the pairs of a vector with itself out of the sum, but still divided by N²: there are N (N - 1) "
            "pairs left, {N} fewer",
        ),
        Mistake(
            lambda x, y: math.sqrt(abs(_unbiased(*_kernels(x, y)))),
            "you took the square root: what is called KID is the squared discrepancy, which alone has no bias",
        ),
        Mistake(
            lambda x, y: math.sqrt(max(_unbiased(*_kernels(x, y)), 0)),
            "you took the square root, of 0 where the result falls below it: what is called KID is the squared "
            "discrepancy, which alone has no bias",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x - x.mean(0), y - x.mean(0))),
            "you moved both sets by the mean of the first: the kernel depends on where 0 is, and no mean is taken off",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y, size=len(x))),
            "you divided x·y by the number of vectors, {N}: D = {D}, the number of features, belongs there",
        ),
        Mistake(
            _without_equal_numbers,
            "you left out pairs between the sets, as if x_i and y_i were the same vector: all {N} × {M} pairs count",
        ),
        Mistake(
            _divides_by_the_first,
            "you divided both sums by N (N - 1) with N = {N}: the second set has M = {M} vectors",
        ),
        Mistake(
            lambda x, y: float(sum(k.triu(1).mean() for k in _kernels(x, y)[:2]) - 2 * _kernels(x, y)[2].mean()),
            "you averaged a triangle over the whole matrix: the zeros of the other half are counted, so the pairs "
            "within a set have less than half their weight",
        ),
        Mistake(
            lambda x, y: max(_unbiased(*_kernels(x, y)), 0.0),
            "you cut the result off at 0: an unbiased estimate of a small number must be allowed to fall below it",
        ),
        Mistake(
            lambda x, y: abs(_unbiased(*_kernels(x, y))),
            "you took the size of the result: an unbiased estimate of a small number must be allowed to fall below 0",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y), cross=0.0),
            "you left out the pairs between the sets: nothing compares them then",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x, y, size=x.shape[1] ** 0.5)),
            "you divided x·y by √D: it is a sum of D = {D} products, and D itself is asked for",
        ),
        Mistake(
            lambda x, y: _unbiased(*((k / x.shape[1]) ** 3 for k in _kernels(x, y, size=1, power=1))),
            "you divided x·y + 1 by D = {D}: the 1 is added after the division",
        ),
        Mistake(
            lambda x, y: _unbiased(*(k / x.shape[1] for k in _kernels(x, y, size=1))),
            "you divided by D = {D} after the power: it belongs under it, at x·y",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x - x.mean(0), y - y.mean(0))),
            "you centred both sets: a difference of their means is then no longer seen",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True))),
            "you scaled every vector to length 1: the kernel takes the vectors as they are",
        ),
        Mistake(
            lambda x, y: float(
                sum(2 * (k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in _kernels(x, y)[:2])
                - 2 * _kernels(x, y)[2].mean()
            ),
            "you divided the whole table without its diagonal by N (N - 1) / 2: each pair stands in it twice",
        ),
        Mistake(
            lambda x, y: float(
                sum(k.triu(1).sum() / (len(k) * (len(k) - 1)) for k in _kernels(x, y)[:2])
                - 2 * _kernels(x, y)[2].mean()
            ),
            "you added up one triangle and divided by N (N - 1): it holds half as many pairs",
        ),
        Mistake(
            lambda x, y: float(
                sum((k.sum() - k.trace()) / (len(k) - 1) for k in _kernels(x, y)[:2]) - 2 * _kernels(x, y)[2].mean()
            ),
            "you divided the sums within the sets by N - 1: there are N (N - 1) pairs",
        ),
        Mistake(
            lambda x, y: _unbiased(*_kernels(x[: len(y)], y[: len(x)])),
            "you cut the larger set to the size of the smaller one: {N} and {M} vectors are given, and all count",
        ),
    ),
    alternatives=(
        kernel_by_loop,
        kernel_with_a_mask,
        kernel_from_the_upper_triangle,
        kernel_in_place,
        kernel_with_einsum,
    ),
    package="ddpm_from_scratch.metrics.kernel_distance",
    rtol=1e-3,
)


# ---------------------------------------------------------------- 11.3


def bootstrap_interval(values: Tensor, picks: Tensor, level: float) -> Tensor:
    """An interval for the mean of some values, by drawing from them again and again.

    values: shape (N,), one number per sample.
    picks: shape (B, N), whole numbers from 0 to N-1: B sets of N samples, drawn with replacement.
    level: share of the B means that lie inside, such as 0.95; as much is left out on either side.
    Returns shape (2,): the lower and the upper end, as `torch.quantile` gives them, in the dtype of `values`.
    """
    means = values[picks].mean(dim=1)
    tail = (1 - level) / 2
    return means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype))


def bootstrap_interval_inputs(generator: torch.Generator, index: int) -> Case:
    """Symmetric and skewed values, at two levels."""
    size, count, level = ((40, 200, 0.95), (15, 300, 0.9), (60, 150, 0.8), (25, 400, 0.5))[index]
    values = torch.randn(size, generator=generator)
    if index in (1, 2):
        values = values.exp()
    picks = torch.randint(size, (count, size), generator=generator)
    return Case({"values": values, "picks": picks, "level": level}, {"N": size, "B": count})


def interval_by_loop(values, picks, level):
    means = sorted(float(values[row].double().mean()) for row in picks)
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        place = share * (len(means) - 1)
        low = math.floor(place)
        high = min(low + 1, len(means) - 1)
        ends.append(means[low] + (place - low) * (means[high] - means[low]))
    return torch.tensor(ends, dtype=values.dtype)


def interval_in_float64(values, picks, level):
    means = values.double()[picks].sum(1) / picks.shape[1]
    return torch.stack([means.quantile((1 - level) / 2), means.quantile((1 + level) / 2)]).to(values.dtype)


def interval_by_counts(values, picks, level):
    counts = torch.stack([torch.bincount(row, minlength=len(values)) for row in picks]).to(values.dtype)
    means = counts @ values / len(values)
    return torch.quantile(means, torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=means.dtype))


def interval_in_place(values, picks, level):
    drawn = torch.gather(values.clone().expand(len(picks), -1), 1, picks)
    means = drawn.mean(-1)
    ends = torch.empty(2, dtype=values.dtype)
    ends[0] = means.quantile((1 - level) / 2)
    ends[1] = means.quantile(1 - (1 - level) / 2)
    return ends


def _ends(means, low, high):
    return means.quantile(torch.tensor([low, high], dtype=means.dtype))


def _means(values, picks):
    return values[picks].mean(dim=1)


def _of_the_sorted(places, how):
    """A mistake: two of the sorted means, at `places(B, tail)`, for the quantiles."""

    def answer(values, picks, level):
        return _means(values, picks).sort().values[list(places(len(picks), (1 - level) / 2))]

    def says(at):
        low, high = places(at.B, (1 - at.level) / 2)
        return (
            f"you took two of the {at.B} sorted means, at the places {low} and {high} ({how}): `torch.quantile` with "
            f"no further option goes between two neighbours, at the lower end to {(1 - at.level) / 2 * (at.B - 1):.2f}"
        )

    return Mistake(answer, says)


def _z(level):
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(level)))


BOOTSTRAP = Exercise(
    id="11.3",
    title="How sure is a figure?",
    difficulty=1,
    minutes=5,
    equation="",
    where="How sure is a figure?",
    lines=3,
    reference=bootstrap_interval,
    inputs=bootstrap_interval_inputs,
    run=value_and_type,
    hints=(
        "Each row of `picks` is a set that might have been. Compute the mean of each such set, and look where most of "
        "these means lie.",
        "B means, one per row; then the two quantiles that leave (1 - level)/2 of them out on either side.",
        "`values[picks]` has shape (B, N); then `.mean(dim=...)` and `.quantile(torch.tensor([...], dtype=...))`",
    ),
    mistakes=(
        Mistake(
            lambda v, p, level: _ends(v, (1 - level) / 2, (1 + level) / 2),
            "you took the quantiles of the values: they say where a single value lies, not where the mean of {N} does, "
            "and `picks` is not used",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), 1 - level, level),
            lambda at: (
                f"you left 1 - level out on each side: that leaves {2 * at.level - 1:.0%} inside, not {at.level:.0%}"
                if at.level > 0.5
                else "you left 1 - level out on each side: nothing is left inside"
            ),
        ),
        Mistake(
            lambda v, p, level: _ends(v[p].mean(dim=0), (1 - level) / 2, (1 + level) / 2),
            "you averaged over the {B} sets where the {N} samples of each set are to be averaged: look at `dim`",
        ),
        Mistake(
            lambda v, p, level: torch.stack([_means(v, p).min(), _means(v, p).max()]),
            "you returned the smallest and the largest of the {B} means: these move outwards the more sets you draw",
        ),
        Mistake(
            lambda v, p, level: _ends(v[p].median(dim=1).values, (1 - level) / 2, (1 + level) / 2),
            "you took the median of each set: the interval is for the mean",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), (1 - level) / 2, (1 + level) / 2).flip(0),
            "you returned the upper end first",
        ),
        Mistake(
            lambda v, p, level: v.mean() + torch.tensor([-1.0, 1.0]).to(v) * v.std() / len(v) ** 0.5,
            "you returned the mean and one standard error on either side: `picks` and `level` are not used, and the "
            "interval of skewed values is not symmetric",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p) - _means(v, p).mean(), (1 - level) / 2, (1 + level) / 2),
            "you centred the means at 0: the ends lie around the mean of the values",
        ),
        Mistake(
            lambda v, p, level: _ends(v[p].std(dim=1), (1 - level) / 2, (1 + level) / 2),
            "you took the standard deviation of each set: the interval is for the mean",
        ),
        _of_the_sorted(lambda n, tail: (int(tail * n), int((1 - tail) * n)), "cut down to whole numbers"),
        _of_the_sorted(lambda n, tail: (int(tail * n), n - 1 - int(tail * n)), "as many left out at both ends"),
        _of_the_sorted(lambda n, tail: (int(tail * n), int((1 - tail) * n) - 1), "cut down, less one at the upper end"),
        _of_the_sorted(lambda n, tail: (round(tail * (n - 1)), round((1 - tail) * (n - 1))), "the nearest ones"),
        _of_the_sorted(lambda n, tail: (int(tail * (n - 1)), int((1 - tail) * (n - 1))), "the neighbours below"),
        _of_the_sorted(lambda n, tail: (int(tail * (n - 1)), math.ceil((1 - tail) * (n - 1))), "the outer neighbours"),
        _of_the_sorted(lambda n, tail: (math.ceil(tail * (n - 1)), math.ceil((1 - tail) * (n - 1))), "those above"),
        Mistake(
            lambda v, p, level: _ends(v[p].flatten(), (1 - level) / 2, (1 + level) / 2),
            "you took the quantiles of all drawn values together: the mean of each of the {B} sets comes first",
        ),
        Mistake(
            lambda v, p, level: _means(v, p).mean() + torch.tensor([-1.0, 1.0]).to(v) * _z(level) * _means(v, p).std(),
            "you took the means for normally distributed, a number times their standard deviation: the interval asked "
            "for leaves out a share of the {B} means as they are",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), 0.025, 0.975),
            "you gave the interval of 95 %, whatever `level` says: here {level:.0%} are asked for",
        ),
        Mistake(
            lambda v, p, level: 2 * v.mean() - _ends(_means(v, p), (1 - level) / 2, (1 + level) / 2).flip(0),
            "you reflected the ends at the mean of the values: another kind of bootstrap; here the quantiles of the "
            "means themselves are asked for",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), 0.0, level),
            "you left out values at the upper end only: half of what is left out lies on either side",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), 1 - level, 1.0),
            "you left out values at the lower end only: half of what is left out lies on either side",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), 1 - level, (1 + level) / 2),
            "you halved 1 - level at the upper end alone: as much is left out at the lower one",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), level / 2, 1 - level / 2),
            "you left level/2 out on either side: it is 1 - level that is shared between the two",
        ),
        Mistake(
            lambda v, p, level: v.mean() + torch.tensor([-1.0, 1.0]).to(v) * _z(level) * v.std() / len(v) ** 0.5,
            "you computed the interval of normally distributed values from their standard error: `picks` is not used, "
            "and the interval of skewed values is not symmetric",
        ),
        Mistake(
            lambda v, p, level: v[p].quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).to(v), dim=1).mean(1),
            "you took the quantiles within each set and averaged them: the mean of each set comes first, then the "
            "quantiles of the {B} means",
        ),
        Mistake(
            lambda v, p, level: _ends(p.to(v).mean(dim=1), (1 - level) / 2, (1 + level) / 2),
            "you averaged the indices: they say which of the {N} values to take",
        ),
        Mistake(
            lambda v, p, level: _ends(_means(v, p), (1 - level) / 2, (1 + level) / 2) - _means(v, p).mean() + v.mean(),
            "you moved the interval to the mean of the values: the quantiles of the {B} means are asked for as they "
            "are",
        ),
        Mistake(
            lambda v, p, level: _ends(
                torch.stack([v[row.unique()].mean() for row in p]), (1 - level) / 2, (1 + level) / 2
            ),
            "you took each value once: a set may hold a value several times, and it counts as often",
        ),
        Mistake(
            lambda v, p, level: bootstrap_interval(v, p, level).double(),
            "your two ends are right, but they are float64: the answer has the dtype of `values`",
        ),
    ),
    alternatives=(interval_by_loop, interval_in_float64, interval_by_counts, interval_in_place),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 11.4


def discretized_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The logarithm of the probability of 8-bit pixels under a Gaussian, per pixel, in nats.

    x0: any shape, pixels k/127.5 - 1 with k = 0, ..., 255.
    mean, log_var: mean and log-variance of the Gaussian, the same shape or broadcastable.
    Returns x0's shape: the logarithm of the Gaussian's mass in the pixel's bin, which is 2/255 wide and centred at
    x0. The two outermost bins reach to -∞ and to +∞.
    """
    std = torch.exp(0.5 * log_var)
    upper = torch.special.ndtr((x0 + 1 / 255 - mean) / std)
    lower = torch.special.ndtr((x0 - 1 / 255 - mean) / std)
    upper = torch.where(x0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x0 < -0.999, torch.zeros_like(lower), lower)
    return torch.log(upper - lower)


def discretized_log_likelihood_inputs(generator: torch.Generator, index: int) -> Case:
    """Pixels, mostly with both outermost values among them; Gaussians from narrow to wide, in the last case far off."""
    shape = ((2, 1, 4, 4), (9,), (3, 5), (2, 3, 3, 3), (2, 6))[index]
    spread = (0.01, 0.2, 0.6, 0.05, 0.05)[index]
    pixels = torch.randint(256, shape, generator=generator)
    if index == 1:
        pixels.clamp_(1, 254)
    else:
        pixels.view(-1)[:4] = torch.tensor([0, 255, 1, 254])
    x0 = pixels / 127.5 - 1
    mean = (x0 + spread * torch.randn(shape, generator=generator)).clamp(-1.2, 1.2)
    log_var = torch.full(shape, 2 * math.log(spread)) + 0.3 * torch.randn(shape, generator=generator)
    if index == 2:
        log_var = log_var[:1]
    if index == 4:
        mean = x0 - 4 * torch.exp(0.5 * log_var) * x0.sign()
    return Case({"x0": x0, "mean": mean, "log_var": log_var}, {"spread": spread})


def _mass_between(x0, mean, log_var, upper, lower, half=1 / 255):
    """The mass of the bins, open above where `upper` says so, and below where `lower` does."""
    x, m, std = x0.double(), mean.double(), torch.exp(0.5 * log_var.double())
    above, below = torch.special.ndtr((x + half - m) / std), torch.special.ndtr((x - half - m) / std)
    return torch.where(upper, 1.0, above) - torch.where(lower, 0.0, below)


def _mass(x0, mean, log_var, half=1 / 255, edges=True):
    return _mass_between(x0, mean, log_var, edges * (x0 > 0.999), edges * (x0 < -0.999), half)


def _log_mass(*args, **kwargs):
    return lambda x, m, v: _mass(x, m, v, *args, **kwargs).log().to(x.dtype)


def likelihood_in_float64(x0, mean, log_var):
    return _mass(x0, mean, log_var).log().to(x0.dtype)


def likelihood_by_erf(x0, mean, log_var):
    z = [(x0.double() + side / 255 - mean) / torch.exp(log_var.double() / 2) for side in (1, -1)]
    upper, lower = (0.5 * (1 + torch.erf(one / math.sqrt(2))) for one in z)
    upper[x0 > 0.999] = 1
    lower[x0 < -0.999] = 0
    return (upper - lower).clamp(min=1e-300).log().to(x0.dtype)


def likelihood_by_loop(x0, mean, log_var):
    normal = torch.distributions.Normal(0.0, 1.0)
    means, stds = (value.double().expand(x0.shape).flatten().tolist() for value in (mean, torch.exp(log_var / 2)))
    found = []
    for x, m, s in zip(x0.double().flatten().tolist(), means, stds, strict=True):
        up = 1.0 if x > 0.999 else float(normal.cdf(torch.tensor((x + 1 / 255 - m) / s).double()))
        down = 0.0 if x < -0.999 else float(normal.cdf(torch.tensor((x - 1 / 255 - m) / s).double()))
        found.append(math.log(up - down))
    return torch.tensor(found, dtype=x0.dtype).reshape(x0.shape)


def likelihood_with_infinities(x0, mean, log_var):
    above, below = x0.double() + 1 / 255, x0.double() - 1 / 255
    above = torch.where(x0 > 0.999, torch.inf, above)
    below = torch.where(x0 < -0.999, -torch.inf, below)
    std = (log_var.double() / 2).exp()
    ends = [torch.special.ndtr((end - mean) / std) for end in (above, below)]
    return torch.log(ends[0] - ends[1]).to(x0.dtype)


def likelihood_by_distribution(x0, mean, log_var):
    normal = torch.distributions.Normal(mean, (log_var / 2).exp())
    up, down = normal.cdf(x0 + 1 / 255), normal.cdf(x0 - 1 / 255)
    up, down = up.masked_fill(x0 > 0.999, 1.0), down.masked_fill(x0 < -0.999, 0.0)
    return (up - down).clamp(min=1e-12).log()


def _density(x0, mean, log_var):
    return -0.5 * ((x0 - mean) ** 2 * torch.exp(-log_var) + log_var + math.log(2 * math.pi))


def _density_times_width(x0, mean, log_var):
    return _density(x0, mean, log_var) + math.log(2 / 255)


DECODER = Exercise(
    id="11.4",
    title="The last step, into pixels",
    difficulty=3,
    minutes=9,
    equation="Ho eq. 13",
    where="Bits per dimension",
    lines=6,
    reference=discretized_log_likelihood,
    inputs=discretized_log_likelihood_inputs,
    hints=(
        "The probability of a pixel is the area under the Gaussian between the two edges of its bin: a difference of "
        "two values of the distribution function Φ. Then the logarithm.",
        "Φ((x + 1/255 - μ)/σ) - Φ((x - 1/255 - μ)/σ). For the brightest pixel the first is 1, for the darkest the "
        "second is 0.",
        "`std = torch.exp(...)`, two calls of `torch.special.ndtr`, two `torch.where` for the outermost bins, a `log`",
    ),
    mistakes=(
        Mistake(
            _log_mass(edges=False),
            "you closed the two outermost bins, or your conditions for them are never true: the mass below the darkest "
            "and above the brightest pixel belongs to them, or the probabilities do not add up to 1",
        ),
        Mistake(
            _log_mass(half=1 / 127.5),
            "you went 2/255 to either side: the bin of a pixel is 2/255 wide as a whole, and yours overlap",
        ),
        Mistake(
            _log_mass(half=0.5 / 255),
            "you went half of 1/255 to either side: pixels lie 2/255 apart in [-1, 1], and yours leave gaps",
        ),
        Mistake(
            _log_mass(half=0.5),
            "you went ½ to either side: that is half a grey level for pixels from 0 to 255, but these lie in [-1, 1]",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, 2 * v).log().to(x.dtype),
            "you divided by σ² where σ belongs: `log_var` is the logarithm of the variance",
        ),
        Mistake(
            lambda x, m, v: discretized_log_likelihood(x, m, 2 * v),
            "you divided by σ² where σ belongs, so that bins away from the mean get no mass at all: `log_var` is the "
            "logarithm of the variance",
        ),
        Mistake(
            lambda x, m, v: _log_mass(half=1 / 256)(x, m, v),
            "you took 256 steps between black and white: 256 levels have 255 steps between them",
        ),
        Mistake(
            lambda x, m, v: torch.log(
                torch.special.ndtr((x + 1 / 255 - m) / (v / 2).exp())
                / torch.special.ndtr((x - 1 / 255 - m) / (v / 2).exp())
            ),
            "you subtracted two logarithms: the mass is a difference of two values of Φ, and its logarithm comes last",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, 2 * v).clamp(min=1e-12).log().to(x.dtype),
            "you divided by σ² where σ belongs, and the clamp hides that the mass is 0 away from the mean",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v).clamp(min=1e-4).log().to(x.dtype),
            "you gave every bin a mass of at least 1e-4: four σ away from the mean it is less, and rare pixels are "
            "those that cost most",
        ),
        Mistake(
            lambda x, m, v: (_mass(x, m, v) + 1e-4).log().to(x.dtype),
            "you added 1e-4 to the mass before the logarithm: four σ away from the mean that is more than the mass "
            "itself",
        ),
        Mistake(
            lambda x, m, v: discretized_log_likelihood(x, m, v.abs().log()),
            "you took the root of `log_var` itself, or of its size: the variance is its exponential",
        ),
        Mistake(
            lambda x, m, v: torch.log(_mass_between(x, m, v, upper=x < -0.999, lower=x > 0.999)).to(x.dtype),
            "you opened the wrong sides: the darkest bin reaches down to -∞ and the brightest up to +∞",
        ),
        Mistake(
            lambda x, m, v: torch.log(_mass_between(x, m, v, upper=x > 0.999, lower=x < -2)).to(x.dtype),
            "you opened the brightest bin alone: the darkest one reaches down to -∞",
        ),
        Mistake(
            lambda x, m, v: torch.log(_mass_between(x, m, v, upper=x > 2, lower=x < -0.999)).to(x.dtype),
            "you opened the darkest bin alone: the brightest one reaches up to +∞",
        ),
        Mistake(
            lambda x, m, v: torch.log(_mass_between(x, m, v, upper=x > 0.99, lower=x < -0.99)).to(x.dtype),
            "you opened the two bins next to the outermost ones as well: the levels lie 2/255 apart, and 0.99 takes in "
            "two of them",
        ),
        Mistake(
            lambda x, m, v: discretized_log_likelihood(x, m, v).sum().to(x.dtype),
            "you added the pixels up: one number per pixel is asked for",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, 2 * v.exp()).log().to(x.dtype),
            "you took the exponential twice, or took `log_var` for the logarithm of the logarithm",
        ),
        Mistake(
            _density,
            "you returned the logarithm of the density: a density is no probability, it has to be integrated over the "
            "bin",
        ),
        Mistake(
            _density_times_width,
            "you multiplied the density in the middle of the bin by its width: that is no integral where the Gaussian "
            "is as narrow as a bin, nor for the two outermost bins",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v).to(x.dtype),
            "you returned the probability: the logarithm is asked for",
        ),
        Mistake(
            lambda x, m, v: -_mass(x, m, v).log().to(x.dtype),
            "you changed the sign: the log-likelihood is asked for, which is at most 0",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v).log2().to(x.dtype),
            "you took the logarithm to base 2: nats are asked for here",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v).log().mean().to(x.dtype).expand(x.shape).clone(),
            "you averaged over the pixels: one number per pixel is asked for",
        ),
        Mistake(
            lambda x, m, v: torch.log(_mass_between(x, m, v, upper=x == x.max(), lower=x == x.min())).to(x.dtype),
            "you opened the bins of the darkest and the brightest pixel given: only those at -1 and 1 are open",
        ),
        Mistake(
            lambda x, m, v: torch.log(_mass_between(x, m, v, upper=m > 0.999, lower=m < -0.999)).to(x.dtype),
            "you opened bins by the mean: it is the pixel that says which bin it is",
        ),
        Mistake(
            lambda x, m, v: torch.log(
                torch.special.ndtr(((x + 1 / 255).clamp(max=1) - m).double() / (v.double() / 2).exp())
                - torch.special.ndtr(((x - 1 / 255).clamp(min=-1) - m).double() / (v.double() / 2).exp())
            ).to(x.dtype),
            "you cut the outermost bins at -1 and 1: they are open, and yours hold half of their bin at most",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v - math.log(2)).log().to(x.dtype),
            "you divided by a σ that is √2 too small: `erf` has its own √2, and Φ(z) is ½ (1 + erf(z/√2))",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, -v).log().to(x.dtype),
            "you turned the sign of `log_var`: your Gaussian is wide where it should be narrow",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, 4 * v).clamp(min=1e-12).log().to(x.dtype),
            "you took exp(2 log σ²) for σ: it is exp(½ log σ²), and the clamp hides that the mass is 0",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v).log10().to(x.dtype),
            "you took the logarithm to base 10: nats are asked for here",
        ),
        Mistake(
            lambda x, m, v: _mass(x, m, v.double().mean()).log().to(x.dtype),
            "you used one variance for all: each pixel has its own",
        ),
    ),
    alternatives=(
        likelihood_in_float64,
        likelihood_by_erf,
        likelihood_by_loop,
        likelihood_with_infinities,
        likelihood_by_distribution,
    ),
    package="ddpm_from_scratch.gaussian.discretized_log_likelihood",
    rtol=5e-4,
    cases=5,
)


# ---------------------------------------------------------------- 11.5


def nearest_neighbour(samples: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the training image that is nearest to it.

    samples: shape (N, C, H, W), values in [-1, 1].
    training: shape (M, C, H, W).
    Returns two tensors of shape (N,): the index of the nearest training image, and the root of the mean squared
    difference of all its values to the sample's.
    """
    apart = torch.cdist(samples.flatten(1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = apart.min(dim=1)
    return index, distance / samples[0].numel() ** 0.5


def nearest_neighbour_inputs(generator: torch.Generator, index: int) -> Case:
    """Training images with a little noise, in shuffled order, one that is none, one that is an exact copy."""
    n, m, shape = ((4, 9, (1, 4, 4)), (6, 5, (3, 3, 3)), (5, 12, (1, 5, 3)), (7, 20, (1, 2, 2)))[index]
    training = torch.rand(m, *shape, generator=generator) * 2 - 1
    chosen = torch.randint(m, (n,), generator=generator)
    samples = (training[chosen] + 0.2 * torch.randn(n, *shape, generator=generator)).clamp(-1, 1)
    samples[0] = torch.rand(shape, generator=generator) * 2 - 1
    if index:
        samples[-1] = training[chosen[-1]]
    return Case({"samples": samples, "training": training}, {"N": n, "M": m})


def neighbour_by_loop(samples, training):
    index, distance = [], []
    for sample in samples:
        apart = [float(((sample.double() - one.double()) ** 2).mean()) for one in training]
        index.append(min(range(len(apart)), key=apart.__getitem__))
        distance.append(math.sqrt(min(apart)))
    return torch.tensor(index), torch.tensor(distance, dtype=samples.dtype)


def neighbour_by_broadcasting(samples, training):
    apart = (samples[:, None] - training[None]).square().flatten(2).mean(2).sqrt()
    return apart.argmin(1), apart.amin(1)


def neighbour_by_products(samples, training):
    x, y = samples.flatten(1).double(), training.flatten(1).double()
    apart = (x.square().sum(1)[:, None] - 2 * x @ y.T + y.square().sum(1)).clamp(min=0) / x.shape[1]
    best = apart.min(1)
    return best.indices, best.values.sqrt().to(samples.dtype)


def neighbour_one_by_one(samples, training):
    pairs = [neighbour_by_broadcasting(one[None].double(), training.double()) for one in samples]
    return torch.cat([i for i, _ in pairs]), torch.cat([d for _, d in pairs]).to(samples.dtype)


def _product_without_clamp(samples, training):
    x, y = samples.flatten(1), training.flatten(1)
    apart = (x.square().sum(1)[:, None] - 2 * x @ y.T + y.square().sum(1)) / x.shape[1]
    best = apart.min(1)
    return best.indices, best.values.sqrt()


def _apart(samples, training):
    return (samples[:, None] - training[None]).square().flatten(2).mean(2).sqrt()


def _by_channel(samples, training):
    return (samples[:, None] - training[None]).square().flatten(3).mean(3).sqrt().mean(2)


NEIGHBOUR = Exercise(
    id="11.5",
    title="Has it been seen before?",
    difficulty=2,
    minutes=6,
    equation="",
    where="The thief",
    lines=3,
    reference=nearest_neighbour,
    inputs=nearest_neighbour_inputs,
    hints=(
        "Make a table of the distances of all samples to all training images, and look for the smallest in each row.",
        "The root of the mean squared difference is the Euclidean distance of the flattened images, divided by the "
        "root of the number of values in an image.",
        "`torch.cdist(samples.flatten(1), ...)` has shape (N, M); `.min(dim=...)` gives values and indices",
    ),
    mistakes=(
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) * s[0].numel() ** 0.5),
            "you returned the Euclidean distance: it grows with the number of pixels, so divide by its root",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) / s[0].numel() ** 0.5),
            "you divided the Euclidean distance by the number of values: the mean is under the root",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) ** 2),
            "you returned the mean squared difference: its root is asked for",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmax(1), _apart(s, t).amax(1)),
            "you found the training image that is farthest away",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(0), _apart(s, t).amin(0)),
            "you looked for the nearest sample of each training image: {M} answers, where each of the {N} samples "
            "needs one",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).amin(1), _apart(s, t).argmin(1)),
            "you returned the distance first: the index comes first",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), (s - t[_apart(s, t).argmin(1)]).abs().flatten(1).mean(1)),
            "you averaged the absolute differences: squares are asked for, which weigh a large difference more",
        ),
        Mistake(
            lambda s, t: ((s.flatten(1) @ t.flatten(1).T).argmax(1), (s.flatten(1) @ t.flatten(1).T).amax(1)),
            "you took the largest product of two images: a bright image has large products with everything",
        ),
        Mistake(
            lambda s, t: (
                (s.flatten(1).mean(1)[:, None] - t.flatten(1).mean(1)).abs().argmin(1),
                (s.flatten(1).mean(1)[:, None] - t.flatten(1).mean(1)).abs().amin(1),
            ),
            "you compared the brightness of whole images: the differences of single pixels are asked for",
        ),
        Mistake(
            lambda s, t: (lambda apart: (apart.argmin(1), apart.amin(1)))(
                _apart(s, t).masked_fill(_apart(s, t) == 0, 9)
            ),
            "you passed over training images at distance 0: an exact copy is just what is looked for",
        ),
        Mistake(
            lambda s, t: _apart(s, t).argmin(1),
            "you returned the index alone: the distance is asked for too",
        ),
        Mistake(
            lambda s, t: tuple(_apart(s, t).min(1, keepdim=True))[::-1],
            lambda at: (
                f"you kept the axis of the training images, shape {tuple(at.yours[0].shape)}: each sample has one "
                f"answer, shape ({at.N},)"
            ),
        ),
        Mistake(
            lambda s, t: (
                torch.cdist(s.flatten(1), t.flatten(1), p=1).argmin(1),
                torch.cdist(s.flatten(1), t.flatten(1), p=1).amin(1) / s[0].numel(),
            ),
            "you looked for the smallest mean of absolute differences: squares are asked for, and by them another "
            "image is nearest now and then",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) * s.shape[1] ** 0.5),
            "you averaged over height and width and added the channels up: all values of an image are averaged",
        ),
        Mistake(
            lambda s, t: (lambda apart: (apart.argmin(1), apart.amin(1)))(_by_channel(s, t)),
            "you took the root for each channel and averaged after it: first the mean of all values, then one root",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) * s[0].numel() ** 0.5 / len(s) ** 0.5),
            "you divided by the root of the number of samples, {N}: the mean is over the values of one image",
        ),
        Mistake(
            lambda s, t: _product_without_clamp(s, t),
            "you get no number, or not 0, for an exact copy: |x|² - 2 x·y + |y|² is a difference of large numbers, and "
            "rounding can make it negative under the root",
        ),
        Mistake(
            lambda s, t: (t[_apart(s, t).argmin(1)], _apart(s, t).amin(1)),
            "you returned the nearest images: their indices are asked for",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(), _apart(s, t).min()),
            "you looked for the smallest of the whole table: each of the {N} samples needs an answer",
        ),
        Mistake(
            lambda s, t: torch.stack([_apart(s, t).argmin(1).to(s.dtype), _apart(s, t).amin(1)]),
            "you put indices and distances into one tensor: two are asked for",
        ),
        Mistake(
            lambda s, t: tuple(part.tolist() for part in nearest_neighbour(s, t)),
            "you returned two lists of numbers: tensors are asked for",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).sort(1).indices[:, 1], _apart(s, t).sort(1).values[:, 1]),
            "you left out the nearest one, as if a sample were among the training images itself",
        ),
        Mistake(
            lambda s, t: (lambda apart: (apart.argmin(1), apart.amin(1)))(
                1 - torch.cosine_similarity(s.flatten(1)[:, None], t.flatten(1)[None], dim=2)
            ),
            "you compared the directions of the images: one twice as bright would then be the same image",
        ),
        Mistake(
            lambda s, t: (lambda apart: (apart.argmin(1), apart.amin(1)))(
                (s[:, None] - t[None]).abs().flatten(2).amax(2)
            ),
            "you took the largest difference of a pixel: the mean over all of them is asked for",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), (s - t[_apart(s, t).argmin(1)]).flatten(1).std(1)),
            "you took the standard deviation of the differences: it takes off their mean, so a darker copy would be at "
            "distance 0",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) * (s[0].numel() / (s[0].numel() - 1)) ** 0.5),
            "you divided by the number of values less one: a mean divides by all of them",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1) / 2),
            "you compared images in [0, 1]: the values are in [-1, 1] as they are, and distances twice as large",
        ),
        Mistake(
            lambda s, t: (_apart(s, t).argmin(1), _apart(s, t).amin(1).mean()),
            "you averaged the distances: each of the {N} samples has its own",
        ),
    ),
    alternatives=(neighbour_by_loop, neighbour_by_broadcasting, neighbour_by_products, neighbour_one_by_one),
    rtol=1e-3,
)


# ---------------------------------------------------------------- the bug clinic


@torch.no_grad()
def features_of(network, pixels, batch):
    """Features of 8-bit images, (N, 1, H, W) → (N, D), `batch` images at a time."""
    return torch.cat([network.features(to_model_range(part)) for part in pixels.split(batch)]).double()


def distance_of(features: Tensor, real: Tensor) -> float:
    """The Fréchet distance of two sets of features."""
    own, other = metrics.gaussian_statistics(features), metrics.gaussian_statistics(real)
    return metrics.frechet_distance(own.mean, own.covariance, other.mean, other.covariance)


def features_from_0_to_1(network, pixels, batch):
    with torch.no_grad():
        return torch.cat([network.features(part.float() / 255) for part in pixels.split(batch)]).double()


def features_without_eval(network, pixels, batch):
    return features_of(network.train(), pixels, batch)


def distance_not_centred(features, real):
    second = [set_.T @ set_ / len(set_) for set_ in (features, real)]
    return metrics.frechet_distance(features.mean(0), second[0], real.mean(0), second[1])


def distance_to_itself(features, real):
    own = other = metrics.gaussian_statistics(features)
    return metrics.frechet_distance(own.mean, own.covariance, other.mean, other.covariance)


BROKEN = {
    "A": (features_from_0_to_1, distance_of),
    "B": (features_without_eval, distance_of),
    "C": (features_of, distance_not_centred),
    "D": (features_of, distance_to_itself),
}
"""Two functions for each report, as `features_of` and `distance_of` are, one of them with a bug. Guess first."""


EXERCISES = (FRECHET, KERNEL, BOOTSTRAP, DECODER, NEIGHBOUR)
