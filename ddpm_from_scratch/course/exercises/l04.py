"""Exercises of lesson 04, the blocks of a U-Net."""

from __future__ import annotations

import math

import torch
from matplotlib import rc_context
from torch import Tensor, nn

from ddpm_from_scratch.course import plots
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.models.resnet import ResnetBlock2D

# ---------------------------------------------------------------- 04.1


def sinusoidal_embedding(t: Tensor, dim: int, flip_sin_to_cos: bool = False, freq_shift: float = 0) -> Tensor:
    """Timesteps as vectors of sines and cosines.

    t: (B,), whole numbers.
    dim: length of a vector, even; half of it are sines, half cosines.
    flip_sin_to_cos: False puts the sines first, True the cosines.
    freq_shift: 0 divides the exponent by dim/2, 1 by dim/2 - 1.
    Returns (B, dim), float32.
    """
    half = dim // 2
    frequencies = 10000 ** (-torch.arange(half) / (half - freq_shift))
    angles = t.float()[:, None] * frequencies[None, :]
    parts = [angles.sin(), angles.cos()]
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=1)


def embedding_inputs(generator: torch.Generator, index: int) -> Case:
    """Both orders, both spacings, several lengths; one batch begins with t = 0."""
    dim, flip, shift = ((8, False, 0), (32, True, 0), (16, False, 1), (6, True, 1))[index]
    t = torch.randint(1, 1000, (3 + index,), generator=generator)
    t[0] = (5, 0, 900, 40)[index]
    args = {"t": t, "dim": dim, "flip_sin_to_cos": flip, "freq_shift": shift}
    return Case(args, {"first": int(t[0]), "half": dim // 2, "order": "cosines" if flip else "sines"})


def _embedding(t, dim, flip, shift, *, base=10000.0, sign=-1.0, exponent=None, parts=(torch.sin, torch.cos), scale=1.0):
    half = dim // 2
    exponent = torch.arange(half) / (half - shift) if exponent is None else exponent
    angles = scale * t.double()[:, None] * base ** (sign * exponent.double())
    halves = [part(angles) for part in parts]
    return torch.cat(halves[::-1] if flip else halves, dim=1).float()


def embedding_in_float64(t, dim, flip=False, shift=0):
    return _embedding(t, dim, flip, shift)


def embedding_by_loop(t, dim, flip=False, shift=0):
    half, rows = dim // 2, []
    for step in t.tolist():
        angles = [step / 10000 ** (i / (half - shift)) for i in range(half)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        rows.append(cosines + sines if flip else sines + cosines)
    return torch.tensor(rows)


def embedding_in_place(t, dim, flip=False, shift=0):
    half = dim // 2
    angles = torch.outer(t.float(), torch.exp(-math.log(10000) * torch.arange(half) / (half - shift)))
    result = torch.empty(len(t), dim)
    sines, cosines = (slice(half, None), slice(half)) if flip else (slice(half), slice(half, None))
    result[:, sines], result[:, cosines] = angles.sin(), angles.cos()
    return result


def embedding_one_by_one(t, dim, flip=False, shift=0):
    return torch.cat([_embedding(step[None], dim, flip, shift) for step in t])


def embedding_by_complex_numbers(t, dim, flip=False, shift=0):
    half = dim // 2
    turned = torch.exp(1j * t.double()[:, None] * 10000.0 ** (-torch.arange(half).double() / (half - shift)))
    parts = (turned.real, turned.imag) if flip else (turned.imag, turned.real)
    return torch.cat(parts, dim=1).float()


def embedding_interleaved(t, dim, flip, shift):
    halves = _embedding(t, dim, flip, shift).chunk(2, dim=1)
    return torch.stack(halves, dim=2).flatten(1)


def embedding_of_a_divided_power(t, dim, flip, shift):
    half = dim // 2
    return _embedding(t, dim, flip, shift, scale=1 / (half - shift), exponent=torch.arange(half))


def embedding_of_a_divided_whole_power(t, dim, flip, shift):
    frequencies = 10000 ** -torch.arange(dim // 2) / (dim // 2 - shift)  # of whole numbers: 1, 0, 0, ...
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()] if flip else [angles.sin(), angles.cos()], dim=1)


def embedding_scaled_outside(t, dim, flip, shift):
    frequencies = 10000.0 ** (-torch.arange(dim // 2) / (dim // 2 - shift))
    halves = [part(t.float())[:, None] * frequencies for part in (torch.sin, torch.cos)]
    return torch.cat(halves[::-1] if flip else halves, dim=1)


def unless_float64(answer, *args):
    """The vectors; or words in the place of float64 ones, which the float32 layers behind them refuse."""
    vectors = answer(*args)
    return "float64 vectors" if isinstance(vectors, Tensor) and vectors.dtype == torch.float64 else vectors


def draw_embedding(answer):
    """The table of the learner's function beside the reference's."""
    t, functions = torch.arange(0, 1000, 4), (answer, sinusoidal_embedding)
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH, 2.8, 1, 2, sharey=True)
        for ax, function, title in zip(figure.axes, functions, ("yours", "reference"), strict=True):
            ax.imshow(
                function(t, 32, True, 0).numpy(),
                cmap="PuOr",
                vmin=-1,
                vmax=1,
                aspect="auto",
                extent=(-0.5, 31.5, 1000, 0),
            )
            ax.grid(False)
            ax.set(title=title, xlabel="element of the vector")
        figure.axes[0].set_ylabel("timestep t")
    return figure


EMBEDDING = Exercise(
    id="04.1",
    title="The time as a vector",
    difficulty=2,
    minutes=5,
    equation="Vaswani section 3.5",
    where="Telling the network the time",
    lines=5,
    reference=sinusoidal_embedding,
    inputs=embedding_inputs,
    run=unless_float64,
    hints=(
        "One frequency per pair of elements. Make the frequencies first, then all angles t · ω_i as one matrix, then "
        "sines and cosines of it.",
        "ω_i = 10000^(-i / (dim/2 - shift)) for i = 0, ..., dim/2 - 1. The vector is (sin ω_0 t, sin ω_1 t, ..., "
        "cos ω_0 t, cos ω_1 t, ...), or the two halves the other way round.",
        "`frequencies = 10000 ** (...)` of shape (dim/2,), `angles = t[:, None] * frequencies[None, :]`, then "
        "`torch.cat([..., ...], dim=1)`",
    ),
    mistakes=(
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, not flip, shift),
            "you have the two halves the wrong way round: here the {order} come first",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, False, shift),
            "you always put the sines first: `flip_sin_to_cos` is not used",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, 0),
            "you divided the exponent by dim/2 whatever `freq_shift` says: with 1 the last frequency is exactly "
            "1/10000",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, False, 0),
            "you use neither `flip_sin_to_cos` nor `freq_shift`: here {order} come first, and the exponent is divided "
            "by dim/2 - {freq_shift}",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, -shift),
            "you added `freq_shift` where it is taken off: with 1 the last frequency is exactly 1/10000",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, base=math.exp(4)),
            "you took the logarithm of 10000 to base 10: `exp` wants the natural one, and your frequencies end near "
            "1/55",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, exponent=(torch.arange(dim // 2) > 0).float()),
            "you divided whole numbers by `//`: your exponents are 0 and -1 and nothing between",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift).T,
            "you gave each timestep a column: it should be a row, the halves lie side by side in it",
        ),
        Mistake(
            embedding_interleaved,
            "you put sines and cosines in turn, as the text of Vaswani section 3.5 does; here each of the two kinds "
            "fills one half of the vector",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, sign=1.0),
            "you lost the minus in the exponent: your frequencies grow up to 10000, and neighbouring timesteps have "
            "nothing in common",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, exponent=torch.arange(dim // 2) / (dim - shift)
            ),
            "you divided the exponent by dim: there are {half} frequencies, and yours end halfway, near 1/100",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, exponent=(torch.arange(dim // 2) + 1) / (dim // 2 - shift)
            ),
            "you counted the frequencies from 1: the first one, i = 0, is 1, an angle of t itself",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, parts=(torch.sin, torch.sin)),
            "you have sines twice and no cosine: a sine alone does not say where on its circle a hand stands",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t + 1, dim, flip, shift),
            "you embedded t+1: `t` in code is an index from 0, and t = 0 gives sines of 0 and cosines of 1",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, base=1000.0),
            "your frequencies end near 1/1000: the base of the power is 10000",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, scale=2 * math.pi),
            "you multiplied the angles by 2π: the frequencies ω_i are meant in radians per timestep",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, scale=1 / 1000),
            "you divided t by 1000 first: then even the fastest sine turns by only one radian from t = 0 to 1000",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, base=math.e, exponent=torch.arange(dim // 2) / (dim // 2 - shift)
            ),
            "your frequencies run from 1 to 1/e: the base of the power is 10000",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, base=1.0, exponent=torch.zeros(dim // 2), scale=1.0
            ),
            "you used the same frequency, 1, for all pairs: the exponent must depend on i",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift).double(),
            "you return float64: the layers that read these vectors hold float32 and refuse others",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, exponent=torch.arange(dim // 2) * 2 / (dim // 2 - shift)
            ),
            "you doubled the exponent, 2i over dim/2: with dim below the line it would be 2i, with dim/2 it is i",
        ),
        Mistake(
            embedding_of_a_divided_power,
            "you divided the power where its exponent has to be divided: `**` comes before `/`, so the quotient needs "
            "brackets",
        ),
        Mistake(
            embedding_of_a_divided_whole_power,
            "you took the power before the division, so of whole numbers, and got 1, 0, 0, ...: the quotient is the "
            "exponent and needs brackets",
        ),
        Mistake(
            embedding_scaled_outside,
            "you multiplied the sines by the frequencies: they belong inside, to the angles t · ω_i",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, 1),
            "you divided the exponent by dim/2 - 1 whatever `freq_shift` says: with 0 it is dim/2",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, exponent=torch.arange(dim // 2) * 2 / (dim - shift)
            ),
            "you took `freq_shift` off dim: it is taken off dim/2, the number that i is divided by",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(
                t, dim, flip, shift, exponent=(torch.arange(dim // 2) + shift) / (dim // 2)
            ),
            "you shifted i: `freq_shift` changes what i is divided by, and the first frequency stays 1",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, False, shift).flip(1 if flip else ()),
            "you turned the whole vector around where the cosines come first: the halves change places, and within "
            "each the fastest pair stays first",
        ),
        Mistake(
            lambda t, dim, flip, shift: embedding_interleaved(t, dim, False, 0),
            "you put sines and cosines in turn and use neither switch: here each of the two kinds fills one half of "
            "the vector",
        ),
        Mistake(
            lambda t, dim, flip, shift: _embedding(t, dim, flip, shift, parts=(torch.cos, torch.cos)),
            "you have cosines twice and no sine: t and -t then look the same",
        ),
    ),
    alternatives=(
        embedding_in_float64,
        embedding_by_loop,
        embedding_in_place,
        embedding_one_by_one,
        embedding_by_complex_numbers,
    ),
    package="ddpm_from_scratch.models.embeddings.sinusoidal_embedding",
    picture=draw_embedding,
    rtol=1e-3,  # an angle of 999 carries a rounding of 6e-5 in float32
)


# ---------------------------------------------------------------- 04.2


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Channels in groups, each brought to mean 0 and variance 1; then a scale and a shift for every channel.

    x: (B, C, H, W).
    groups: a divisor of C; neighbouring channels form a group.
    weight, bias: (C,).
    Returns (B, C, H, W).
    """
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(dim=2, keepdim=True)
    variance = grouped.var(dim=2, keepdim=True, correction=0)
    normed = ((grouped - mean) / (variance + eps) ** 0.5).reshape(x.shape)
    return normed * weight[:, None, None] + bias[:, None, None]


def group_norm_inputs(generator: torch.Generator, index: int) -> Case:
    """Two groups, one group of all, one group per channel, and a faint map whose variance is near eps.

    In the faint map one group of one image is constant.
    """
    shape, groups = (((3, 4, 5, 5), 2), ((2, 6, 4, 3), 1), ((4, 3, 3, 3), 3), ((2, 8, 4, 4), 2))[index]
    x = torch.randn(shape, generator=generator) * (torch.rand(shape[1], 1, 1, generator=generator) + 0.5)
    x = x + 2 * torch.randn(shape[0], shape[1], 1, 1, generator=generator)
    x = x * (0.004 if index == 3 else 1.5)
    if index == 3:
        x[1, :4] = 0.25
    weight, bias = torch.rand(shape[1], generator=generator) + 0.5, torch.randn(shape[1], generator=generator)
    args = {"x": x, "groups": groups, "weight": weight, "bias": bias, "eps": 4e-5 if index == 3 else 1e-5}
    return Case(args, {"per_group": shape[1] // groups, "C": shape[1]})


def _group_norm(x, groups, weight, bias, eps, *, dims=None, correction=0, root=True, outside=False, strided=False):
    b, c, h, w = x.shape
    grouped = x.reshape(b, groups, c // groups, h, w)
    if strided:
        grouped = x.reshape(b, c // groups, groups, h, w)
    dims = dims or ((1, 3, 4) if strided else (2, 3, 4))
    mean, variance = grouped.mean(dims, keepdim=True), grouped.var(dims, keepdim=True, correction=correction)
    std = (variance**0.5 + eps) if outside else (variance + eps) ** (0.5 if root else 1.0)
    return ((grouped - mean) / std).reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def group_norm_of_torch(x, groups, weight, bias, eps=1e-5):
    return nn.functional.group_norm(x, groups, weight, bias, eps)


def group_norm_in_float64(x, groups, weight, bias, eps=1e-5):
    return _group_norm(x.double(), groups, weight.double(), bias.double(), eps).to(x.dtype)


def group_norm_by_loop(x, groups, weight, bias, eps=1e-5):
    images = []
    for image in x:
        parts = [(part - part.mean()) / (part.var(correction=0) + eps).sqrt() for part in image.chunk(groups)]
        images.append(torch.cat(parts) * weight[:, None, None] + bias[:, None, None])
    return torch.stack(images)


def group_norm_in_place(x, groups, weight, bias, eps=1e-5):
    result = x.clone()
    for part in result.chunk(groups, dim=1):  # views of the copy
        part -= part.mean(dim=(1, 2, 3), keepdim=True)
        part /= (part.square().mean(dim=(1, 2, 3), keepdim=True) + eps) ** 0.5
    return result.mul_(weight[:, None, None]).add_(bias[:, None, None])


def group_norm_by_moments(x, groups, weight, bias, eps=1e-5):
    flat = x.reshape(x.shape[0] * groups, -1).double()
    mean, square = flat.mean(1, keepdim=True), flat.square().mean(1, keepdim=True)
    normed = ((flat - mean) * torch.rsqrt(square - mean**2 + eps)).reshape(x.shape)
    return (normed * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)).to(x.dtype)


def group_norm_without_affine(x, groups, weight, bias, eps):
    return _group_norm(x, groups, torch.ones_like(weight), torch.zeros_like(bias), eps)


def group_norm_groups_last(x, groups, weight, bias, eps):
    grouped = x.reshape(x.shape[0], -1, groups)
    variance, mean = torch.var_mean(grouped, 1, keepdim=True, correction=0)
    return ((grouped - mean) / (variance + eps) ** 0.5).reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def group_norm_along_the_width(x, groups, weight, bias, eps):
    return group_norm_without_affine(x, groups, weight, bias, eps) * weight + bias


def group_norm_with_a_floor(x, groups, weight, bias, eps, power):
    grouped = x.reshape(x.shape[0], groups, -1)
    std = (grouped.var(2, keepdim=True, correction=0) ** power).clamp(min=eps) ** (0.5 / power)
    normed = ((grouped - grouped.mean(2, keepdim=True)) / std).reshape(x.shape)
    return normed * weight[:, None, None] + bias[:, None, None]


def group_norm_of_other_sizes(x, groups, weight, bias, eps, *, around=1.0, centred=1.0, total=False):
    """The variance around a share of the mean, or as a sum, below the map without a share of its mean."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(2, keepdim=True)
    squares = (grouped - around * mean).square()
    variance = squares.sum(2, keepdim=True) if total else squares.mean(2, keepdim=True)
    normed = ((grouped - centred * mean) / (variance + eps).sqrt()).reshape(x.shape)
    return normed * weight[:, None, None] + bias[:, None, None]


def group_norm_of_the_batch(x, groups, weight, bias, eps):
    return _group_norm(x, groups, weight, bias, eps, dims=(0, 2, 3, 4))


GROUP_NORM = Exercise(
    id="04.2",
    title="Group norm by hand",
    difficulty=2,
    minutes=5,
    equation="equation (C)",
    where="Group norm",
    lines=5,
    reference=group_norm,
    inputs=group_norm_inputs,
    hints=(
        "Give the channels of a group, and all their pixels, one axis of their own. Mean and variance go over that "
        "axis alone.",
        "(x - μ_g) / √(σ_g² + ε) with μ_g and σ_g² over the C/G channels and all pixels of one image, σ_g² divided by "
        "the number of values. Then γ_c and β_c of each channel.",
        "`grouped = x.reshape(x.shape[0], groups, ...)`; `mean` and `variance` over its last axis with `keepdim=True`; "
        "back to `x.shape`; then weight and bias as `[:, None, None]`",
    ),
    mistakes=(
        Mistake(
            group_norm_of_the_batch,
            "you took mean and variance over the batch too: then an image's result depends on its neighbours, as in "
            "batch norm",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, x.shape[1], w, b, eps),
            "you normalised every channel by itself: here {per_group} channels share one mean and variance",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, x.shape[1] // g, w, b, eps),
            "you took `groups` for the number of channels in a group: it is the number of groups, here {groups}, each "
            "of {per_group} channels",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, 1, w, b, eps),
            "you normalised all {C} channels together: `groups` is not used",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, eps, dims=(2,)),
            "you took the statistics at each pixel, over the channels of a group only: they go over all pixels as well",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, eps, correction=1),
            "you divided the variance by n-1, which is PyTorch's default: the norm divides by n (`correction=0`)",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, eps, correction=1, outside=True),
            "you divided by `std(...) + eps`: that takes the sum of squares over n-1, and eps belongs under the root",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, eps, root=False),
            "you divided by the variance: the standard deviation, its root, brings the variance to 1",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, eps, outside=True),
            "you added eps to the standard deviation: it belongs under the root, which matters where the map is faint",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, 0.0),
            "you left out eps: where a map is faint it matters, and where it is constant you divide by 0",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, 1e-5),
            "you took 1e-5 for eps, PyTorch's default: here it is {eps:g}, an argument of your function",
        ),
        Mistake(group_norm_without_affine, "your maps are normalised, but weight and bias are not used"),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, torch.zeros_like(b), eps),
            "you left out the bias",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, b, w, eps),
            "you swapped weight and bias: the weight multiplies, the bias is added",
        ),
        Mistake(
            group_norm_groups_last,
            "you made the groups the last axis: every {groups}th number is then in the same group, where it should be "
            "all pixels of {per_group} neighbouring channels",
        ),
        Mistake(
            group_norm_along_the_width,
            "you let weight and bias run along the width, which fits only where it is {C} pixels wide: they belong to "
            "the channels, so give them two axes more",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, b, eps, strided=True),
            "you grouped every {per_group}th channel: a group is made of neighbouring channels",
        ),
        Mistake(
            lambda x, g, w, b, eps: (
                x
                / (x.reshape(len(x), g, -1).square().mean(2) + eps)
                .sqrt()
                .repeat_interleave(x.shape[1] // g, 1)[..., None, None]
                * w[:, None, None]
                + b[:, None, None]
            ),
            "you did not subtract the mean: only the size is normalised",
        ),
        Mistake(
            lambda x, g, w, b, eps: group_norm_of_other_sizes(x, g, w, b, eps, centred=0.0),
            "you have the right variance, but did not subtract the mean from x",
        ),
        Mistake(
            lambda x, g, w, b, eps: group_norm_of_other_sizes(x, g, w, b, eps, around=0.0),
            "you took the mean of x² for the variance: the squares are those of the distances from the mean",
        ),
        Mistake(
            lambda x, g, w, b, eps: group_norm_of_other_sizes(x, g, w, b, eps, total=True),
            "you summed the squares: the variance is their mean, so your map comes out too faint",
        ),
        Mistake(
            lambda x, g, w, b, eps: group_norm_with_a_floor(x, g, w, b, eps, 0.5),
            "you have an eps that counts for nearly nothing, squared or as the smallest standard deviation allowed: it "
            "is added to the variance, under the root",
        ),
        Mistake(
            lambda x, g, w, b, eps: group_norm_with_a_floor(x, g, w, b, eps, 1.0),
            "you took eps for the smallest variance allowed: it is added to every variance",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, torch.ones_like(w), b, eps),
            "you left out the weight",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x, g, w, w * b, eps),
            "you added the bias before the weight multiplies: it comes last",
        ),
        Mistake(
            lambda x, g, w, b, eps: _group_norm(x * w[:, None, None] + b[:, None, None], g, w**0, 0 * b, eps),
            "you used weight and bias before the norm, which throws most of them away: they come behind it",
        ),
        Mistake(
            lambda x, g, w, b, eps: nn.functional.batch_norm(x, None, None, w, b, True, 0.1, eps),
            "you normalised every channel over the whole batch: this is batch norm, and an image's result depends on "
            "its neighbours",
        ),
    ),
    alternatives=(
        group_norm_of_torch,
        group_norm_in_float64,
        group_norm_by_loop,
        group_norm_in_place,
        group_norm_by_moments,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 04.3


class ResnetBlock(nn.Module):
    """Normalise, activate, convolve, twice, with the time between; plus the input.

    in_channels, out_channels: where they differ, a 1×1 convolution carries the input across.
    temb_channels: length of the time embedding.
    groups: of both group norms (eps as PyTorch sets it).
    """

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(B, in_channels, H, W) and (B, temb_channels) → (B, out_channels, H, W)."""
        h = self.conv1(self.act(self.norm1(x)))
        h = h + self.time_emb_proj(self.act(temb))[:, :, None, None]
        h = self.conv2(self.act(self.norm2(h)))
        return self.conv_shortcut(x) + h


RESNET_STARTER = '''
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Normalise, activate, convolve, twice, with the time between; plus the input.

    in_channels, out_channels: where they differ, a 1×1 convolution carries the input across.
    temb_channels: length of the time embedding.
    groups: of both group norms (eps as PyTorch sets it).
    """

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.act = nn.SiLU()
        # your code: time_emb_proj (an nn.Linear), norm2 and conv2, 3 lines
        ...

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(B, in_channels, H, W) and (B, temb_channels) → (B, out_channels, H, W)."""
        # your code: about 4 lines
        ...
'''


def filled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """`module` with all its numbers drawn from `generator`."""
    with torch.no_grad():
        for parameter in module.parameters():
            size = 1.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return module


def resnet_inputs(generator: torch.Generator, index: int) -> Case:
    """More channels, as many, fewer, and oblong maps, faint between the halves; two, three or four groups."""
    sizes, shape = (((4, 8), (2, 5, 5)), ((6, 6), (3, 4, 4)), ((8, 4), (1, 3, 3)), ((4, 6), (2, 3, 6)))[index]
    groups = (4, 3, 2, 2)[index]
    with torch.random.fork_rng(devices=[]):
        block = ResnetBlock2D(*sizes, temb_channels=5, groups=groups)
    x = torch.randn(shape[0], sizes[0], *shape[1:], generator=generator)
    temb = torch.randn(shape[0], 5, generator=generator)
    filled(block, generator)
    if index == 3:
        with torch.no_grad():
            for parameter in (*block.conv1.parameters(), *block.time_emb_proj.parameters()):
                parameter.mul_(0.003)
    args = {"in_channels": sizes[0], "out_channels": sizes[1], "x": x, "temb": temb, "block": block}
    return Case(args, {"change": f"{sizes[0]} → {sizes[1]}", "groups": groups})


def run_resnet(answer, in_channels, out_channels, x, temb, block):
    """The output of the learner's block with the weights of `block`, after a check of its parameters' names."""
    if isinstance(answer, nn.Module):
        raise TypeError("pass the class itself, not a block made from it")
    mine = answer(in_channels, out_channels, temb.shape[1], block.norm1.num_groups)
    if not isinstance(mine, nn.Module):
        raise TypeError(f"the block is of type {type(mine).__name__}, and has to be an nn.Module")
    mine = mine.to(x.dtype)
    wanted = {name: tuple(p.shape) for name, p in block.state_dict().items()}
    given = {name: tuple(p.shape) for name, p in mine.state_dict().items()}
    for name, shape in wanted.items():
        if name not in given:
            raise AttributeError(f"with {in_channels} → {out_channels} channels the block has no parameter {name}")
        if given[name] != shape:
            raise ValueError(
                f"{name} has shape {given[name]}, expected {shape}, for {in_channels} → {out_channels} channels"
            )
    if extra := sorted(given.keys() - wanted.keys()):
        raise AttributeError(
            f"with {in_channels} → {out_channels} channels the block has {extra[0]}, which it does not need"
        )
    mine.load_state_dict(block.state_dict())
    with torch.no_grad():
        return mine(x, temb)


def resnet_with(forward):
    """`ResnetBlock` with another forward pass."""
    return type("ResnetBlock", (ResnetBlock,), {"forward": forward})


def _shifted(self, x, temb):
    return self.conv1(self.act(self.norm1(x))) + self.time_emb_proj(self.act(temb))[:, :, None, None]


def _second_half(self, x, h):
    return self.conv_shortcut(x) + self.conv2(self.act(self.norm2(h)))


def _resnet_spelt_out(self, x, temb):
    h = nn.functional.silu(nn.functional.group_norm(x, self.norm1.num_groups, self.norm1.weight, self.norm1.bias))
    h = nn.functional.conv2d(h, self.conv1.weight, self.conv1.bias, padding=1)
    h = h + (temb * temb.sigmoid() @ self.time_emb_proj.weight.T + self.time_emb_proj.bias).reshape(len(x), -1, 1, 1)
    h = nn.functional.silu(nn.functional.group_norm(h, self.norm2.num_groups, self.norm2.weight, self.norm2.bias))
    return nn.functional.conv2d(h, self.conv2.weight, self.conv2.bias, padding=1) + self.conv_shortcut(x)


def _resnet_one_by_one(self, x, temb):
    pairs = zip(x.split(1), temb.split(1), strict=True)
    return torch.cat([ResnetBlock.forward(self, image, time) for image, time in pairs])


def _resnet_in_float64(self, x, temb):
    dtype = x.dtype
    result = ResnetBlock.forward(self.double(), x.double(), temb.double()).to(dtype)
    self.to(dtype)
    return result


def _resnet_in_place(self, x, temb):
    result = self.conv_shortcut(x).clone()
    result += self.conv2(self.act(self.norm2(_shifted(self, x, temb))))
    return result


def _resnet_norm_after(self, x, temb):
    h = self.norm2(self.act(self.conv1(self.act(self.norm1(x))) + self.time_emb_proj(self.act(temb))[:, :, None, None]))
    return self.conv_shortcut(x) + self.conv2(h)


def _resnet_time_after_norm(self, x, temb):
    h = self.norm2(self.conv1(self.act(self.norm1(x)))) + self.time_emb_proj(self.act(temb))[:, :, None, None]
    return self.conv_shortcut(x) + self.conv2(self.act(h))


def _resnet_time_times(self, x, temb):
    h = self.conv1(self.act(self.norm1(x))) * self.time_emb_proj(self.act(temb))[:, :, None, None]
    return _second_half(self, x, h)


def _resnet_time_last(self, x, temb):
    h = self.conv1(self.act(self.norm1(x)))
    return _second_half(self, x, h) + self.time_emb_proj(self.act(temb))[:, :, None, None]


def _resnet_raw_time(self, x, temb):
    return _second_half(self, x, self.conv1(self.act(self.norm1(x))) + self.time_emb_proj(temb)[:, :, None, None])


def _resnet_norm1_twice(self, x, temb):
    return self.conv_shortcut(x) + self.conv2(self.act(self.norm1(_shifted(self, x, temb))))


def _resnet_conv1_twice(self, x, temb):
    return self.conv_shortcut(x) + self.conv1(self.act(self.norm2(_shifted(self, x, temb))))


def _resnet_shortcut_in_the_middle(self, x, temb):
    return self.conv2(self.act(self.norm2(_shifted(self, x, temb) + self.conv_shortcut(x))))


def _resnet_shortcut_of_half(self, x, temb):
    h = _shifted(self, x, temb)
    return h + self.conv2(self.act(self.norm2(h)))


def _resnet_linear(self, x, temb):
    h = self.conv1(self.norm1(x)) + self.time_emb_proj(temb)[:, :, None, None]
    return self.conv_shortcut(x) + self.conv2(self.norm2(h))


def _resnet_relu(self, x, temb):
    h = self.conv1(self.norm1(x).relu()) + self.time_emb_proj(temb.relu())[:, :, None, None]
    return self.conv_shortcut(x) + self.conv2(self.norm2(h).relu())


def _resnet_activated_first(self, x, temb):
    h = self.conv1(self.norm1(self.act(x))) + self.time_emb_proj(self.act(temb))[:, :, None, None]
    return _second_half(self, x, h)


def _resnet_time_activated_late(self, x, temb):
    h = self.conv1(self.act(self.norm1(x))) + self.act(self.time_emb_proj(temb))[:, :, None, None]
    return _second_half(self, x, h)


def _resnet_conv_first(self, x, temb):
    h = self.conv1(self.norm1(x)) + self.time_emb_proj(self.act(temb))[:, :, None, None]
    return _second_half(self, x, h)


def _with_two_groups(in_channels, out_channels, temb_channels, groups):
    block = ResnetBlock(in_channels, out_channels, temb_channels, groups)
    block.norm2 = nn.GroupNorm(2, out_channels)
    return block


def _with_one_group(in_channels, out_channels, temb_channels, groups):
    block = ResnetBlock(in_channels, out_channels, temb_channels, groups)
    block.norm2 = nn.GroupNorm(1, out_channels)
    return block


def _with_another_eps(in_channels, out_channels, temb_channels, groups):
    block = ResnetBlock(in_channels, out_channels, temb_channels, groups)
    block.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
    return block


def _with_padding_around(in_channels, out_channels, temb_channels, groups):
    block = ResnetBlock(in_channels, out_channels, temb_channels, groups)
    block.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, padding_mode="circular")
    return block


RESNET_BLOCK = Exercise(
    id="04.3",
    title="The ResNet block",
    difficulty=2,
    minutes=6,
    equation="equation (D)",
    where="The ResNet block",
    lines=22,
    reference=ResnetBlock,
    starter=RESNET_STARTER,
    inputs=resnet_inputs,
    run=run_resnet,
    hints=(
        "How many channels has the map behind conv1? The three missing layers follow from that. Then write (D) from "
        "the inside out.",
        "h = conv1(SiLU(norm1(x))); plus time_emb_proj(SiLU(temb)) as (B, C, 1, 1); conv2(SiLU(norm2(h))); plus the "
        "input, through the 1×1 convolution where the channels differ.",
        "`nn.Linear(..., ...)`, a second `nn.GroupNorm` and a second `nn.Conv2d`; in `forward` one line for "
        "each line of (D)",
    ),
    mistakes=(
        Mistake(
            resnet_with(lambda self, x, temb: _second_half(self, x, self.conv1(self.act(self.norm1(x))))),
            "your block does not use temb: it does the same at every t",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: self.conv2(self.act(self.norm2(_shifted(self, x, temb))))),
            "you left out the shortcut: the input is not added to the result",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: x + self.conv2(self.act(self.norm2(_shifted(self, x, temb))))),
            "you added x as it is, which cannot be done where the channels change ({change}): `conv_shortcut` carries "
            "it across",
        ),
        Mistake(
            resnet_with(_resnet_shortcut_in_the_middle),
            "you added the shortcut between the halves: it goes round both of them, to the very end",
        ),
        Mistake(
            resnet_with(_resnet_shortcut_of_half),
            "you added the map from between the halves: the shortcut carries the input of the block, x",
        ),
        Mistake(
            resnet_with(_resnet_linear),
            "you have no activation anywhere: equation (D) has one in front of each convolution and one on temb",
        ),
        Mistake(
            resnet_with(_resnet_time_after_norm),
            "you added the time after norm2: equation (D) adds it before, so that the norm acts on the sum",
        ),
        Mistake(
            resnet_with(_resnet_time_last),
            "you added the time to the block's result: it belongs between the two halves",
        ),
        Mistake(
            resnet_with(_resnet_time_times),
            "you multiplied by the projected time: in equation (D) it is added to each channel",
        ),
        Mistake(
            _with_two_groups,
            "you gave norm2 two groups: how many there are is an argument of the block, here {groups}",
        ),
        Mistake(
            resnet_with(_resnet_raw_time),
            "you projected temb as it is: equation (D) activates it first",
        ),
        Mistake(
            resnet_with(_resnet_time_activated_late),
            "you activated the projected time: equation (D) activates temb, before the projection",
        ),
        Mistake(
            resnet_with(_resnet_norm1_twice),
            "you used norm1 in both halves: the second has its own, norm2, for the channels behind conv1 ({change})",
        ),
        Mistake(
            resnet_with(_resnet_conv1_twice),
            "you used conv1 in both halves: the second has its own, conv2 ({change})",
        ),
        Mistake(
            resnet_with(_resnet_relu),
            "you activated with ReLU: the activation of these networks is SiLU",
        ),
        Mistake(
            resnet_with(_resnet_activated_first),
            "you activated before norm1: the order is norm, activation, convolution, in both halves",
        ),
        Mistake(
            resnet_with(_resnet_conv_first),
            "you have no activation between norm1 and conv1",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: self.conv_shortcut(x) + self.conv2(self.norm2(_shifted(self, x, temb)))),
            "you have no activation between norm2 and conv2",
        ),
        Mistake(
            resnet_with(_resnet_norm_after),
            "you activated before norm2: the order is norm, activation, convolution, in both halves",
        ),
        Mistake(
            resnet_with(
                lambda self, x, temb: (
                    self.conv_shortcut(self.act(self.norm1(x)))
                    + self.conv2(self.act(self.norm2(_shifted(self, x, temb))))
                )
            ),
            "you sent the normed and activated input through the shortcut: it carries the input itself",
        ),
        Mistake(
            resnet_with(
                lambda self, x, temb: (
                    self.conv_shortcut(self.norm1(x)) + self.conv2(self.act(self.norm2(_shifted(self, x, temb))))
                )
            ),
            "you sent the normed input through the shortcut: it carries the input itself",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: nn.functional.silu(ResnetBlock.forward(self, x, temb))),
            "you activated the sum at the end: the result of a block is left as it is, so that the shortcut stays open",
        ),
        Mistake(
            _with_one_group,
            "you gave norm2 one group: how many there are is an argument of the block, here {groups}",
        ),
        Mistake(
            _with_another_eps,
            "you gave norm2 an eps of your own, as Diffusers does: here it is PyTorch's, which matters where the map "
            "is faint",
        ),
        Mistake(
            _with_padding_around,
            "you gave conv2 another padding: beyond the edge there are zeros, as in conv1",
        ),
        Mistake(
            resnet_with(
                lambda self, x, temb: _second_half(
                    self, x, self.conv1(self.act(x)) + self.time_emb_proj(self.act(temb))[:, :, None, None]
                )
            ),
            "you did not use norm1: in equation (D) it comes first of all",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: self.conv_shortcut(x) + self.conv2(self.act(_shifted(self, x, temb)))),
            "you did not use norm2: it comes between the time and the second activation",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: self.conv_shortcut(x) + _shifted(self, x, temb)),
            "you left out the second half: norm2, the activation and conv2",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: self.conv_shortcut(x) + self.act(self.norm2(_shifted(self, x, temb)))),
            "you left out conv2: it is the last layer before the sum",
        ),
        Mistake(
            resnet_with(
                lambda self, x, temb: self.conv_shortcut(x) - self.conv2(self.act(self.norm2(_shifted(self, x, temb))))
            ),
            "you subtracted: the shortcut is added",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: ResnetBlock.forward(self, x, temb) / 2**0.5),
            "you divided the sum by √2, which some networks do: equation (D) leaves it as it is",
        ),
        Mistake(
            resnet_with(lambda self, x, temb: self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))),
            "you left out both the shortcut and the time",
        ),
    ),
    alternatives=(
        resnet_with(_resnet_spelt_out),
        resnet_with(_resnet_one_by_one),
        resnet_with(_resnet_in_float64),
        resnet_with(_resnet_in_place),
    ),
    package="ddpm_from_scratch.models.resnet.ResnetBlock2D",
    rtol=1e-4,
)


# ---------------------------------------------------------------- 04.4


def self_attention(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    """Every pixel asks all pixels: one head, before the output projection and the residual sum.

    x: (B, C, H, W).
    w_q, w_k, w_v: (C, C); a pixel with channels c asks with w_q c, offers w_k c, and tells w_v c.
    Returns (B, C, H, W).
    """
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = tokens @ w_q.T, tokens @ w_k.T, tokens @ w_v.T
    weights = (q @ k.transpose(1, 2) / x.shape[1] ** 0.5).softmax(dim=2)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


def attention_inputs(generator: torch.Generator, index: int) -> Case:
    """Square and oblong maps."""
    shape = ((2, 4, 3, 3), (1, 6, 2, 4), (3, 2, 4, 2), (2, 9, 3, 5))[index]
    x = torch.randn(shape, generator=generator)
    weights = [torch.randn(shape[1], shape[1], generator=generator) * 0.8 for _ in range(3)]
    args = {"x": x, "w_q": weights[0], "w_k": weights[1], "w_v": weights[2]}
    return Case(args, {"C": shape[1], "N": shape[2] * shape[3], "H": shape[2], "W": shape[3]})


def _attention(x, w_q, w_k, w_v, *, scale=None, dim=2, tokens=None, swap=False, after=1.0, given=False):
    tokens = x.flatten(2).transpose(1, 2) if tokens is None else tokens
    q, k, v = (tokens @ w.T for w in (w_q, w_k, w_v))
    scores = (k @ q.transpose(1, 2) if swap else q @ k.transpose(1, 2)) * (
        x.shape[1] ** -0.5 if scale is None else scale
    )
    shares = after * scores.softmax(dim)
    return ((shares.transpose(1, 2) if given else shares) @ v).transpose(1, 2).reshape(x.shape)


def attention_fused(x, w_q, w_k, w_v):
    q, k, v = (torch.einsum("dc,bchw->bdhw", w, x).flatten(2).transpose(1, 2) for w in (w_q, w_k, w_v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])


def attention_by_loop(x, w_q, w_k, w_v):
    result = torch.empty_like(x)
    for b, image in enumerate(x):
        pixels = image.flatten(1).T  # (C, H, W) → (N, C)
        keys, values = pixels @ w_k.T, pixels @ w_v.T
        for n, pixel in enumerate(pixels):
            share = torch.softmax(keys @ (w_q @ pixel) / len(pixel) ** 0.5, dim=0)
            result[b, :, n // x.shape[3], n % x.shape[3]] = share @ values
    return result


def attention_in_float64(x, w_q, w_k, w_v):
    return _attention(x.double(), w_q.double(), w_k.double(), w_v.double()).to(x.dtype)


def attention_channels_first(x, w_q, w_k, w_v):
    flat = x.flatten(2)  # (B, C, N): no transposition anywhere
    scores = (w_q @ flat).transpose(1, 2) @ (w_k @ flat) * flat.shape[1] ** -0.5
    return (w_v @ flat @ scores.softmax(-1).transpose(1, 2)).reshape(x.shape)


def attention_one_by_one(x, w_q, w_k, w_v):
    return torch.cat([_attention(image, w_q, w_k, w_v) for image in x.split(1)])


def attention_reshaped_back(x, w_q, w_k, w_v):
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w.T for w in (w_q, w_k, w_v))
    return ((q @ k.transpose(1, 2) * x.shape[1] ** -0.5).softmax(2) @ v).reshape(x.shape)


def attention_over_channels(x, w_q, w_k, w_v):
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w.T for w in (w_q, w_k, w_v))
    weights = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(2)
    return (v @ weights.transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def attention_across_the_batch(x, w_q, w_k, w_v):
    row = torch.cat(x.flatten(2).unbind(), dim=1)[None, :, None]  # all images as one of height 1
    shape = (x.shape[1], x.shape[0], *x.shape[2:])
    return _attention(row, w_q, w_k, w_v)[0].reshape(shape).transpose(0, 1)


def attention_over_all_pairs(x, w_q, w_k, w_v):
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w.T for w in (w_q, w_k, w_v))
    scores = q @ k.transpose(1, 2) * x.shape[1] ** -0.5
    shares = scores.flatten(1).softmax(1).reshape(scores.shape)
    return (shares @ v).transpose(1, 2).reshape(x.shape)


def attention_by_two_heads(x, w_q, w_k, w_v):
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = ((tokens @ w.T).unflatten(2, (2, -1)).transpose(1, 2) for w in (w_q, w_k, w_v))
    heads = nn.functional.scaled_dot_product_attention(q, k, v)
    return heads.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)


def attention_of_channels_fused(x, w_q, w_k, w_v):
    q, k, v = (w @ x.flatten(2) for w in (w_q, w_k, w_v))
    return nn.functional.scaled_dot_product_attention(q, k, v).reshape(x.shape)


def attention_along_rows(x, w_q, w_k, w_v):
    rows = x.transpose(1, 2)
    result = _attention(rows.flatten(0, 1)[:, :, None], w_q, w_k, w_v)
    return result.reshape(rows.shape).transpose(1, 2)


def attention_without_softmax(x, w_q, w_k, w_v):
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w.T for w in (w_q, w_k, w_v))
    return (q @ k.transpose(1, 2) * x.shape[1] ** -0.5 @ v).transpose(1, 2).reshape(x.shape)


SELF_ATTENTION = Exercise(
    id="04.4",
    title="Attention over pixels",
    difficulty=3,
    minutes=6,
    equation="Vaswani eq. 1",
    where="Attention",
    lines=4,
    reference=self_attention,
    inputs=attention_inputs,
    hints=(
        "Turn the map into a list of pixels, (B, N, C) with N = H·W, each a vector of its channels. Then it is the "
        "formula, and the way back.",
        "softmax(QKᵀ/√d) V with d = C. Row n of QKᵀ holds what pixel n thinks of all pixels; each row becomes shares "
        "that add up to 1.",
        "`tokens = x.flatten(2)...` of shape (B, N, C); q, k, v are `tokens @ w.T`; `weights = (...).softmax(dim=2)` "
        "of shape (B, N, N); at the end undo both steps that made the tokens",
    ),
    mistakes=(
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, scale=1.0),
            "you did not divide by √d: the products of {C} numbers are large, and the shares too sharp",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, scale=1 / x.shape[1]),
            "you divided by d = {C}, not by its root: the shares come out too even",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, scale=(x.shape[2] * x.shape[3]) ** -0.5),
            "you divided by the root of the number of pixels, {N}: d is the length of a query, {C}",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, scale=x.shape[1] ** 0.5),
            "you multiplied by √d where (E) divides: the shares come out far too sharp",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, scale=1.0, after=x.shape[1] ** -0.5),
            "you divided by √d after the softmax: the shares of a pixel then add up to 1/√{C}",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, dim=0),
            "you took the softmax over the batch: the shares are those of the {N} pixels of one image",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, given=True),
            "you multiplied the values by the shares turned round: row n of the shares belongs to the pixel n that "
            "asks, and gives its result",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, q, v),
            "you compared queries with queries: w_k is not used",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, k),
            "you averaged the keys: w_v is not used",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, dim=1),
            "you took the softmax down the columns: the shares that one pixel gives away must add up to 1, and they "
            "lie in a row",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, tokens=x.reshape(x.shape[0], -1, x.shape[1])),
            "you made the tokens by a reshape alone: that cuts the numbers of a {H}×{W} map into pieces of {C}, which "
            "are no pixels. The channel axis has to move",
        ),
        Mistake(
            attention_reshaped_back,
            "your attention is right, but the way back is not: (B, N, C) has to be turned to (B, C, N) before it "
            "becomes a map",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q.T, k.T, v.T),
            "you multiplied by the weights without turning them: row i of w_q makes element i of the query",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, swap=True),
            "you swapped queries and keys: the rows of the scores belong to those who ask",
        ),
        Mistake(
            attention_over_channels,
            "you let the {C} channels attend to each other: it is the {N} pixels that ask",
        ),
        Mistake(attention_without_softmax, "you left out the softmax: the scores are not shares"),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, torch.eye(len(v)).to(x)),
            "you averaged the pixels themselves: w_v is not used",
        ),
        Mistake(
            lambda x, q, k, v: x + _attention(x, q, k, v),
            "you added the input: the residual sum belongs to the block around it, not to this function",
        ),
        Mistake(
            attention_across_the_batch,
            "you let all pixels of the batch attend to each other: a pixel asks those of its own image",
        ),
        Mistake(
            attention_over_all_pairs,
            "you took one softmax over all pairs of an image: each pixel that asks has shares of its own, which add up "
            "to 1",
        ),
        Mistake(
            attention_by_two_heads,
            "you used two heads: here there is one, over all {C} channels",
        ),
        Mistake(
            attention_of_channels_fused,
            "you gave `scaled_dot_product_attention` the channels before the pixels: it takes the last axis for the "
            "vector and the one before it for those who ask",
        ),
        Mistake(
            attention_along_rows,
            "you let each pixel ask its own row alone: it asks all {N} pixels",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, torch.eye(len(q)).to(x), k, v),
            "you took the pixels themselves for queries: w_q is not used",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, torch.eye(len(k)).to(x), v),
            "you took the pixels themselves for keys: w_k is not used",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, q),
            "you averaged the queries: w_v is not used",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, q, q),
            "you made queries, keys and values with w_q: each of the three has a matrix of its own",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x.transpose(2, 3), q, k, v).reshape(x.shape),
            "you put the pixels down in another order than you took them: row by row in one, column by column in the "
            "other",
        ),
        Mistake(
            lambda x, q, k, v: _attention(x, q, k, v, scale=x.shape[1] ** -0.25),
            "you scaled by the fourth root of d: with both q and k scaled that is right, but here one of them is not",
        ),
    ),
    alternatives=(
        attention_fused,
        attention_by_loop,
        attention_in_float64,
        attention_channels_first,
        attention_one_by_one,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 04.5


def double(x: Tensor) -> Tensor:
    """Twice the height and width; every pixel becomes a square of four.

    x: (B, C, H, W).
    Returns (B, C, 2H, 2W).
    """
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def double_inputs(generator: torch.Generator, index: int) -> Case:
    """Square and oblong maps."""
    shape = ((2, 3, 4, 4), (1, 2, 3, 5), (3, 1, 2, 6), (2, 4, 5, 3))[index]
    return Case({"x": torch.randn(shape, generator=generator)}, {"H": shape[2], "W": shape[3]})


def double_by_interpolation(x):
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def double_by_index(x):
    rows, columns = torch.arange(2 * x.shape[2]) // 2, torch.arange(2 * x.shape[3]) // 2
    return x[:, :, rows[:, None], columns]


def double_in_place(x):
    result = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for i in (0, 1):
        for j in (0, 1):
            result[:, :, i::2, j::2] = x
    return result


def double_by_expansion(x):
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)


def double_by_kronecker(x):
    return torch.kron(x, torch.ones(1, 1, 2, 2, dtype=x.dtype))


def double_by_loop(x):
    rows = [row for row in x.unbind(2) for _ in range(2)]
    columns = [column for column in torch.stack(rows, 2).unbind(3) for _ in range(2)]
    return torch.stack(columns, 3)


def double_with_holes(x):
    result = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    result[:, :, ::2, ::2] = x
    return result


def double_by_reshape(x):
    return torch.cat([x] * 4, dim=1).reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])


def draw_double(answer):
    """A small face, doubled by the learner's function and by the reference."""
    face = torch.tensor([[0, 1, 1, 1, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [0, 1, 1, 1, 0.0]])
    images = [image.reshape(1, 1, 10, 10) for image in (answer(face[None, None]), double(face[None, None]))]
    return plots.grid_figure(1 - 2 * torch.cat(images), 2, titles=["yours", "reference"], width=3.2)


DOUBLE = Exercise(
    id="04.5",
    title="Twice the size",
    difficulty=1,
    minutes=2,
    equation="equation (F)",
    where="Half the size, double the size",
    lines=1,
    reference=double,
    inputs=double_inputs,
    hints=(
        "Repeat each row right after itself, then each column.",
        "y[i, j] = x[⌊i/2⌋, ⌊j/2⌋].",
        "`x.repeat_interleave(2, dim=...)`, twice",
    ),
    mistakes=(
        Mistake(
            lambda x: x.repeat(1, 1, 2, 2),
            "you tiled the map: four small copies, where each pixel should become a square of four",
        ),
        Mistake(
            lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False),
            "you interpolated bilinearly: here a pixel is repeated, nothing is blended",
        ),
        Mistake(double_with_holes, "you left zeros between the pixels: each value fills a whole 2×2 square"),
        Mistake(
            lambda x: x.repeat_interleave(2, dim=2),
            "you doubled the height alone: {H}×{W} has to become twice as wide, too",
        ),
        Mistake(lambda x: x.repeat_interleave(2, dim=3), "you doubled the width alone, the height is still {H}"),
        Mistake(
            lambda x: x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3),
            "you made the map four times as high and wide: each of the two sides doubles",
        ),
        Mistake(
            double_by_reshape,
            "you repeated the channels and reshaped: the numbers are there, but not at the right pixels",
        ),
        Mistake(
            lambda x: x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4,
            "you shared each value out among its four pixels: it is repeated, not divided",
        ),
        Mistake(
            lambda x: x.repeat_interleave(2, dim=2).repeat(1, 1, 1, 2),
            "you repeated the rows one by one, but set the whole width side by side twice",
        ),
        Mistake(
            lambda x: x.repeat_interleave(2, dim=3).repeat(1, 1, 2, 1),
            "you repeated the columns one by one, but set the whole height one below the other twice",
        ),
        Mistake(
            lambda x: 2 * x,
            "you doubled the numbers: it is height and width that double, the numbers stay",
        ),
        Mistake(
            lambda x: torch.cat([torch.cat([x, x.flip(3)], 3), torch.cat([x, x.flip(3)], 3).flip(2)], 2),
            "you mirrored the map: each pixel should become a square of four",
        ),
        Mistake(
            lambda x: nn.functional.interpolate(x, size=2 * x.shape[2], mode="nearest"),
            "you made a square of {H}·2 pixels, which fits square maps only: height and width double each",
        ),
        Mistake(
            lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bicubic"),
            "you interpolated bicubically: here a pixel is repeated, nothing is blended",
        ),
        Mistake(
            lambda x: x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2),
            "you doubled the channels and the height: axis 0 is the batch, 1 the channels, 2 and 3 are height and "
            "width",
        ),
        Mistake(
            lambda x: nn.functional.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
            "you shuffled copies of the channels together: the four pixels of a square have to come from one channel",
        ),
        Mistake(
            lambda x: x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).roll((1, 1), (2, 3)),
            "you moved the map by one pixel: output pixel i shows input pixel ⌊i/2⌋, so the first square begins at 0",
        ),
    ),
    alternatives=(
        double_by_interpolation,
        double_by_index,
        double_in_place,
        double_by_expansion,
        double_by_kronecker,
        double_by_loop,
    ),
    picture=draw_double,
)


# ---------------------------------------------------------------- 04.6


def receptive_field(layers: list[tuple[int, int]]) -> int:
    """How many input pixels in a row one output pixel depends on, at most.

    layers: (kernel size, stride) of each convolution, the first one first.
    Returns the width of the field.
    """
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field


def field_inputs(generator: torch.Generator, index: int) -> Case:
    """Convolutions of stride 1, one halving, several halvings, and random ones with even kernels among them."""
    drawn = torch.randint(1, 4, (6, 2), generator=generator).tolist()
    extra = int(torch.randint(1, 5, (1,), generator=generator))
    layers = (
        [(3, 1)] * (2 + extra),
        [(3, 1), (3, 2), *[(3, 1)] * extra],
        [(3, 1), (3, 1), (3, 2)] * 2 + [(5, 1)] * extra,
        [(4, 2), *[(2 * k - 1, s) for k, s in drawn], (3, 2), (4, 1)],
    )[index]
    return Case({"layers": layers}, {"n": len(layers), "strides": [s for _, s in layers]})


def field_backwards(layers):
    field = 1
    for kernel, stride in reversed(layers):
        field = (field - 1) * stride + kernel
    return field


def field_by_products(layers):
    strides = [stride for _, stride in layers]
    return 1 + sum((kernel - 1) * math.prod(strides[:i]) for i, (kernel, _) in enumerate(layers))


def field_by_recursion(layers):
    if not layers:
        return 1
    (kernel, stride), *rest = layers
    return (field_by_recursion(rest) - 1) * stride + kernel


def field_by_sets(layers):
    seen = {0}
    for kernel, stride in reversed(layers):
        seen = {pixel * stride + offset for pixel in (min(seen), max(seen)) for offset in range(kernel)}
    return max(seen) - min(seen) + 1


def field_in_tensors(layers):
    kernels, strides = torch.tensor(layers).T
    jumps = torch.cat([torch.ones(1, dtype=torch.long), strides.cumprod(0)[:-1]])
    return int(1 + ((kernels - 1) * jumps).sum())


def _field(layers, *, start=1, less=1, early=False, product=True, last=False):
    field, jump = start, 1
    for kernel, stride in reversed(layers) if last else layers:
        if early:
            jump = jump * stride
        field += (kernel - less) * jump
        if not early:
            jump = jump * stride if product else jump + stride - 1
    return field


RECEPTIVE_FIELD = Exercise(
    id="04.6",
    title="How far a pixel sees",
    difficulty=2,
    minutes=4,
    equation="equation (G)",
    where="How far a pixel sees",
    lines=5,
    reference=receptive_field,
    inputs=field_inputs,
    hints=(
        "Keep two numbers as you go through the layers: how wide the field is by now, and how many input pixels lie "
        "between two neighbours of the current map.",
        "r ← r + (k-1) j, then j ← j s, beginning with r = 1 and j = 1.",
        "`field, jump = 1, 1`, a loop over `kernel, stride`, one line for each of the two, in the right order",
    ),
    mistakes=(
        Mistake(
            lambda layers: _field(layers, early=True),
            "you let a layer's own stride act on its own kernel: it spreads the pixels of the map it makes, so it "
            "counts from the next layer on",
        ),
        Mistake(
            lambda layers: 1 + sum(k - 1 for k, _ in layers),
            "you left out the strides: after a halving, one pixel further on is two pixels further on in the input",
        ),
        Mistake(
            lambda layers: _field(layers, less=0),
            "you added the whole kernel at each layer: one of its pixels is inside the field already",
        ),
        Mistake(
            lambda layers: _field(layers, start=0),
            "your field is one pixel too narrow: a map that nothing has been done to sees one pixel, itself, so r "
            "begins with 1",
        ),
        Mistake(
            lambda layers: math.prod(k for k, _ in layers),
            "you multiplied the kernel sizes: fields of layers in a row add up",
        ),
        Mistake(
            lambda layers: _field(layers, product=False),
            "you added the strides up: two halvings in a row make one step four pixels long",
        ),
        Mistake(
            lambda layers: _field(layers, last=True),
            "your rule and your direction do not fit: r + (k-1) j is for going from the first layer to the last, "
            "(r-1) s + k for going from the last to the first; yours lets a stride act on the layers before it",
        ),
        Mistake(
            lambda layers: (_field(layers) - 1) // 2,
            "you returned how far the field reaches to one side: its whole width is asked for",
        ),
        Mistake(
            lambda layers: 1 + sum((k - 1) * s for k, s in layers),
            "you multiplied each kernel by its own layer's stride: what counts are the strides of the layers before it",
        ),
        Mistake(
            lambda layers: (
                1 + sum((k - 1) * s for (k, _), s in zip(layers, [1] + [s for _, s in layers], strict=False))
            ),
            "you used the stride of the layer before alone: all strides before a layer multiply",
        ),
        Mistake(
            lambda layers: _field([(2 * (k // 2) // 2 + 1, s) for k, s in layers]),
            "you added half of each kernel: the field grows on both sides",
        ),
        Mistake(
            lambda layers: sum(k for k, _ in layers),
            "you added up the kernel sizes: neighbouring kernels overlap, and strides count too",
        ),
        Mistake(
            lambda layers: _field(layers) ** 2,
            "you returned the number of pixels in the square: its width is asked for",
        ),
        Mistake(
            lambda layers: math.prod(s for _, s in layers),
            "you returned the step between neighbours of the last map, the product of the strides",
        ),
        Mistake(
            lambda layers: (
                1 + sum(2 * (k // 2) * math.prod(s for _, s in layers[:i]) for i, (k, _) in enumerate(layers))
            ),
            "you took every kernel for an odd one, with as many pixels to the left as to the right: a kernel of 4 "
            "looks at 4 pixels",
        ),
        Mistake(
            lambda layers: _field([(3, s) for _, s in layers]),
            "you took 3 for every kernel size: it is the first number of each pair",
        ),
        Mistake(
            lambda layers: _field([(k, min(s, 2)) for k, s in layers]),
            "you took 2 for every stride above 1: it is the second number of each pair",
        ),
        Mistake(
            lambda layers: _field([(s, k) for k, s in layers]),
            "you swapped kernel size and stride: the first number of a pair is the kernel size",
        ),
        Mistake(
            lambda layers: _field(layers[:-1]),
            "you left out the last layer: it looks at several pixels of the map before it, too",
        ),
        Mistake(
            lambda layers: _field(layers[1:]),
            "you left out the first layer: it widens the field by its kernel as every other one does",
        ),
        Mistake(
            lambda layers: layers[0][0],
            "you returned after the first layer (how far is `return` indented?): all {n} of them count",
        ),
        Mistake(
            lambda layers: max(k for k, _ in layers),
            "you returned the largest kernel: fields of layers in a row add up",
        ),
    ),
    alternatives=(field_backwards, field_by_products, field_by_recursion, field_by_sets, field_in_tensors),
)


EXERCISES = (EMBEDDING, GROUP_NORM, RESNET_BLOCK, SELF_ATTENTION, DOUBLE, RECEPTIVE_FIELD)
