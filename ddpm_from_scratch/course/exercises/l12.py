"""Exercises of lesson 12, going further."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm_from_scratch import schedules
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake

ALPHA_BAR = schedules.alpha_bars(schedules.linear())


# ---------------------------------------------------------------- 12.1


def drop_labels(labels: Tensor, uniform: Tensor, share: float, nothing: int) -> Tensor:
    """The labels of a training batch, some of them replaced by "no class" (Ho and Salimans 2022, algorithm 1).

    labels: (B,) whole numbers; -1 marks an image without a label.
    uniform: (B,) numbers drawn uniformly from [0, 1), one for each image.
    share: the part of the labels to drop, in [0, 1]; at 0 none, at 1 all.
    nothing: the number that stands for "no class".
    Returns a new tensor (B,): `nothing` where a label is dropped or missing.
    """
    dropped = (uniform < share) | (labels < 0)
    return torch.where(dropped, nothing, labels)


def drop_labels_inputs(generator: torch.Generator, index: int) -> Case:
    """A usual batch, none dropped, all dropped, and a large batch with images that have no label."""
    count, share, nothing = ((40, 0.3, 10), (12, 0.0, 10), (12, 1.0, 4), (60, 0.15, 100))[index]
    labels = torch.randint(nothing, (count,), generator=generator)
    uniform = torch.rand(count, generator=generator)
    if index in (1, 3):
        labels[::5] = -1
    if index == 1:
        uniform[1] = 0.0
    return Case({"labels": labels, "uniform": uniform, "share": share, "nothing": nothing})


def drop_labels_by_loop(labels, uniform, share, nothing):
    kept = [nothing if u < share or c < 0 else c for c, u in zip(labels.tolist(), uniform.tolist(), strict=True)]
    return torch.tensor(kept)


def drop_labels_on_a_copy(labels, uniform, share, nothing):
    kept = labels.clone()
    kept[uniform < share] = nothing
    kept[kept < 0] = nothing
    return kept


def drop_labels_by_masked_fill(labels, uniform, share, nothing):
    return labels.masked_fill((labels == -1).logical_or(uniform.double() < share), nothing)


def drop_labels_by_arithmetic(labels, uniform, share, nothing):
    keep = ((uniform >= share) & (labels >= 0)).long()
    return keep * labels + (1 - keep) * nothing


DROP_LABELS = Exercise(
    id="12.1",
    title="Forgetting labels on purpose",
    difficulty=1,
    minutes=4,
    equation="Guidance algorithm 1",
    where="Two networks in one",
    lines=2,
    reference=drop_labels,
    inputs=drop_labels_inputs,
    hints=(
        "Each image has one uniform number. The chance that it lies below `share` is `share`.",
        "A label is dropped where u < share, or where it is missing. `torch.where(condition, a, b)` chooses.",
        "`dropped = (... < ...) | (...)`, then `torch.where(dropped, ..., ...)`",
    ),
    mistakes=(
        Mistake(
            lambda c, u, share, nothing: torch.where((u > share) | (c < 0), nothing, c),
            lambda at: (
                f"you dropped the labels whose number lies above the share: that is a part of {1 - at.share:.0%}"
            ),
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where(u < share, nothing, c),
            "you kept -1 for the images that have no label: no row of the network's table belongs to it",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) | (c < 0), -1, c),
            "you wrote -1 for a dropped label: the network looks up the row `nothing`",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) | (c < 0), 0, c),
            "you wrote 0 for a dropped label: 0 is a class, and the network would learn it as the average of all",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.full_like(c, nothing) if u[0] < share else c.clone(),
            "you decided once for the whole batch: each image has its own number",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((torch.arange(len(c)) < share * len(c)) | (c < 0), nothing, c),
            "you dropped the first labels of the batch and left `uniform` unused: the choice must be random",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) & (c < 0), nothing, c),
            "you asked for both at once: a label goes if it is dropped *or* missing",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) | (c < 0), c, nothing),
            "you exchanged the two values: the labels that should stay became {nothing}, and the others stayed",
        ),
        Mistake(
            lambda c, u, share, nothing: (u < share) | (c < 0),
            "you returned which labels go: the labels after the replacement are asked for",
        ),
        Mistake(
            lambda c, u, share, nothing: c[(u >= share) & (c >= 0)],
            "you left images out: their labels are dropped, the images stay in the batch",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u <= share) | (c < 0), nothing, c),
            "you dropped the labels whose number equals the share too: a number can be exactly 0, and at share 0 "
            "nothing is dropped",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) | (c < 0), 10, c),
            "you wrote 10 for a dropped label: other data have more or fewer classes, here the number is {nothing}",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) | (c < 0), c.max() + 1, c),
            "you wrote one more than the largest label of the batch: the last class may be missing in it, and the "
            "number is given",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((u < share) | (c <= 0), nothing, c),
            "you took class 0 for a missing label: only a label below 0 is missing",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where(c < 0, nothing, c),
            "you replaced the missing labels alone: `uniform` and `share` say which others to drop",
        ),
        Mistake(
            lambda c, u, share, nothing: c.clone(),
            "you returned the labels as they were: none is dropped",
        ),
        Mistake(
            lambda c, u, share, nothing: torch.where((1 - u < share) | (c < 0), nothing, c),
            "you dropped the labels with the largest numbers: as large a part, but here those with the smallest go",
        ),
    ),
    alternatives=(
        drop_labels_by_loop,
        drop_labels_on_a_copy,
        drop_labels_by_masked_fill,
        drop_labels_by_arithmetic,
    ),
)


# ---------------------------------------------------------------- 12.2


def guided_eps(eps_class: Tensor, eps_none: Tensor, w: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, section 3.2).

    eps_class: the noise predicted with the class, any shape.
    eps_none: the noise predicted without, the same shape.
    w: how much guidance, at least 0; 0 is the class-conditional prediction itself. A number, or a tensor that
        broadcasts.
    Returns the guided prediction, of the same shape.
    """
    return (1 + w) * eps_class - w * eps_none


def guided_eps_inputs(generator: torch.Generator, index: int) -> Case:
    """Images and points with several strengths, none, and one strength per image."""
    shape = ((4, 3, 5, 5), (9, 2), (7,), (3, 1, 4, 4))[index]
    w = (2.0, 0.5, 0.0, torch.tensor([0.0, 1.0, 4.0]).reshape(3, 1, 1, 1))[index]
    eps = (torch.randn(shape, generator=generator) for _ in range(2))
    return Case(dict(zip(("eps_class", "eps_none", "w"), (*eps, w), strict=True)))


def guided_eps_from_none(eps_class, eps_none, w):
    return eps_none + (1 + w) * (eps_class - eps_none)


def guided_eps_from_class(eps_class, eps_none, w):
    return eps_class + w * (eps_class - eps_none)


def guided_eps_by_lerp(eps_class, eps_none, w):
    return torch.lerp(eps_none, eps_class, 1 + w)


def guided_eps_in_float64(eps_class, eps_none, w):
    w = w.double() if isinstance(w, Tensor) else w
    return ((1 + w) * eps_class.double() - w * eps_none.double()).to(eps_class.dtype)


def guided_eps_in_place(eps_class, eps_none, w):
    guided = eps_class.clone()
    guided -= eps_none
    guided *= w
    guided += eps_class
    return guided


def guided_eps_by_loop(eps_class, eps_none, w):
    strengths = w.flatten().tolist() if isinstance(w, Tensor) else [w] * len(eps_class)
    rows = zip(eps_class, eps_none, strengths, strict=True)
    return torch.stack([(1 + strength) * a - strength * b for a, b, strength in rows])


GUIDED_EPS = Exercise(
    id="12.2",
    title="Guidance",
    difficulty=1,
    minutes=4,
    equation="Guidance section 3.2",
    where="Guidance without a classifier",
    lines=1,
    reference=guided_eps,
    inputs=guided_eps_inputs,
    hints=(
        "The difference of the two predictions points to what the class changes. Go further in that direction.",
        "ε̃ = ε_class + w (ε_class - ε_none). At w = 0 nothing is added.",
        "`return (...) * eps_class - ... * eps_none`",
    ),
    mistakes=(
        Mistake(
            lambda c, n, w: n + w * (c - n),
            "you used the other convention, in which the scale s = 1 + w multiplies the difference (Diffusers' "
            "`guidance_scale`): at w = 0 yours ignores the class",
        ),
        Mistake(
            lambda c, n, w: (1 + w) * n - w * c,
            "you swapped the two predictions: yours moves away from the class",
        ),
        Mistake(
            lambda c, n, w: (1 - w) * c + w * n,
            "you mixed the two predictions: with more w yours gets less of the class, not more",
        ),
        Mistake(
            lambda c, n, w: (1 + w) * c + w * n,
            "you added the prediction without class: it has to be taken away. The two factors must add up to 1",
        ),
        Mistake(
            lambda c, n, w: (1 + w) * c - n,
            "you took away the whole prediction without class: the two factors, (1+w) and the other, must add up to 1",
        ),
        Mistake(
            lambda c, n, w: (2 + w) * c - (1 + w) * n,
            "you shifted w by one: at w = 0 yours is guided already",
        ),
        Mistake(
            lambda c, n, w: c + w * n,
            "you added w times the prediction without class: it is the *difference* of the two that shows where the "
            "class leads",
        ),
        Mistake(
            lambda c, n, w: ((1 + w) * c - w * n).clamp(-1, 1),
            "you clamped the result: noise has no bounds, and clipping is the scheduler's business",
        ),
        Mistake(
            lambda c, n, w: (c + w * n) / (1 + w),
            "you took a weighted average: it lies between the two predictions, and guidance goes beyond",
        ),
        Mistake(
            lambda c, n, w: w * (c - n),
            "you returned the difference alone: it is added to the prediction with class",
        ),
        Mistake(
            lambda c, n, w: (1 + w) * (c - n),
            "you went from zero, not from the prediction without class: the difference of the two is a way, and it "
            "starts there",
        ),
        Mistake(
            lambda c, n, w: w * c - (1 - w) * n,
            "you weighed the two predictions with w and w - 1: the factors must add up to 1, and at w = 0 that of the "
            "class is 1",
        ),
        Mistake(
            lambda c, n, w: n + (w - 1) * (c - n),
            "you took one off w where one is added: the scale of Diffusers is larger than w, not smaller",
        ),
        Mistake(
            lambda c, n, w: 1 + w * c - w * n,
            "you added the number 1: brackets are missing, and (1 + w) multiplies the prediction with class",
        ),
        Mistake(
            lambda c, n, w: (c + n) / 2,
            "you took the mean of the two predictions: `w` is not used, and guidance goes beyond both",
        ),
        Mistake(
            lambda c, n, w: guided_eps(c, n, torch.as_tensor(w).mean()),
            "you used one strength for the whole batch: `w` may hold one for each image",
        ),
        Mistake(
            lambda c, n, w: c.clone(),
            "you returned the prediction with the class unchanged: neither `w` nor the other prediction counts in it",
        ),
    ),
    alternatives=(
        guided_eps_from_none,
        guided_eps_from_class,
        guided_eps_by_lerp,
        guided_eps_in_float64,
        guided_eps_in_place,
        guided_eps_by_loop,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 12.3


def log_variance(v: Tensor, alpha_bar_t: float, alpha_bar_prev: float) -> Tensor:
    """The logarithm of a learned variance.

    v: what the network says, in [0, 1], any shape: 0 for β̃_t, 1 for β_t.
    alpha_bar_t, alpha_bar_prev: ᾱ at t and at the step moved to; alpha_bar_t < alpha_bar_prev < 1.
    Returns log σ_t², of v's shape.
    """
    beta = 1 - alpha_bar_t / alpha_bar_prev
    small = (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta
    return v * math.log(beta) + (1 - v) * math.log(small)


def log_variance_inputs(generator: torch.Generator, index: int) -> Case:
    """Neighbouring steps, strides, and a step near the clean end, where the two bounds are far apart."""
    t, t_prev = ((500, 499), (600, 500), (1, 0), (40, 20))[index]
    shape = ((2, 3, 4, 4), (8,), (5, 2), (3, 1, 4, 4))[index]
    v = torch.rand(shape, generator=generator)
    return Case({"v": v, "alpha_bar_t": float(ALPHA_BAR[t]), "alpha_bar_prev": float(ALPHA_BAR[t_prev])}, {"t": t})


def _bounds(a, p):
    beta = 1 - a / p
    return beta, (1 - p) / (1 - a) * beta


def log_variance_as_powers(v, a, p):
    beta, small = _bounds(a, p)
    return (beta**v * small ** (1 - v)).log()


def log_variance_from_small(v, a, p):
    return math.log(_bounds(a, p)[1]) + v * math.log((1 - a) / (1 - p))


def log_variance_in_float64(v, a, p):
    large, small = (torch.tensor(b, dtype=torch.float64).log() for b in _bounds(a, p))
    return torch.lerp(small.expand(v.shape), large.expand(v.shape), v.double()).to(v.dtype)


def log_variance_by_loop(v, a, p):
    large, small = (math.log(b) for b in _bounds(a, p))
    return torch.tensor([x * large + (1 - x) * small for x in v.flatten().tolist()], dtype=v.dtype).reshape(v.shape)


def log_variance_in_place(v, a, p):
    large, small = (math.log(b) for b in _bounds(a, p))
    out = v.clone()
    out *= large - small
    out += small
    return out


LOG_VARIANCE = Exercise(
    id="12.3",
    title="A variance that is learned",
    difficulty=2,
    minutes=6,
    equation="IDDPM eq. 15",
    where="Learning the variance",
    lines=3,
    reference=log_variance,
    inputs=log_variance_inputs,
    hints=(
        "Both bounds are known from lesson 03. Between them one goes in steps of equal ratio: the logarithm is what is "
        "interpolated.",
        "log σ_t² = v log β_t + (1-v) log β̃_t, with β_t = 1 - ᾱ_t/ᾱ_prev and β̃_t = (1-ᾱ_prev)/(1-ᾱ_t) β_t.",
        "`beta = ...`, `small = ... * beta`, then `return v * math.log(...) + (1 - v) * math.log(...)`",
    ),
    mistakes=(
        Mistake(
            lambda v, a, p: (v * _bounds(a, p)[0] + (1 - v) * _bounds(a, p)[1]).log(),
            "you interpolated the variances and then took the logarithm: near the clean end, where β̃_t is far smaller "
            "than β_t, most of yours is β_t",
        ),
        Mistake(
            lambda v, a, p: (1 - v) * math.log(_bounds(a, p)[0]) + v * math.log(_bounds(a, p)[1]),
            "you exchanged the two bounds: v = 1 must give β_t, the larger one",
        ),
        Mistake(
            lambda v, a, p: (v * math.log(_bounds(a, p)[0]) + (1 - v) * math.log(_bounds(a, p)[1])).exp(),
            "you returned the variance: its logarithm is asked for",
        ),
        Mistake(
            lambda v, a, p: 0.5 * (v * math.log(_bounds(a, p)[0]) + (1 - v) * math.log(_bounds(a, p)[1])),
            "you returned half of it: that is the logarithm of the standard deviation",
        ),
        Mistake(
            lambda v, a, p: (v + 1) / 2 * math.log(_bounds(a, p)[0]) + (1 - v) / 2 * math.log(_bounds(a, p)[1]),
            "you went only half of the way from log β_t to log β̃_t: v lies in [0, 1] here, not in [-1, 1] as the "
            "package stores it, and no root is taken in β̃_t",
        ),
        Mistake(
            lambda v, a, p: v * math.log(1 - a) + (1 - v) * math.log(1 - p),
            "you interpolated between 1-ᾱ_prev and 1-ᾱ_t, the variances of the two noise levels: the bounds are those "
            "of one step back, whose β_t is not 1-ᾱ_t",
        ),
        Mistake(
            lambda v, a, p: v * math.log(p - a) + (1 - v) * math.log((1 - p) / (1 - a) * (p - a)),
            "you took ᾱ_prev - ᾱ_t for β_t: a step multiplies ᾱ, so their quotient counts (t = {t})",
        ),
        Mistake(
            lambda v, a, p: v * math.log(_bounds(a, p)[0]) + (1 - v) * math.log((1 - p) / (1 - a)),
            "you forgot the factor β_t in β̃_t (t = {t})",
        ),
        Mistake(
            lambda v, a, p: v * math.log(_bounds(a, p)[0]) + (1 - v) * math.log((1 - a) / (1 - p) * _bounds(a, p)[0]),
            "you turned the quotient in β̃_t upside down: yours is larger than β_t, but the variance with x_0 known "
            "must be smaller (t = {t})",
        ),
        Mistake(
            lambda v, a, p: v * _bounds(a, p)[0] + (1 - v) * _bounds(a, p)[1],
            "you interpolated the variances and took no logarithm at all",
        ),
        Mistake(
            lambda v, a, p: torch.full_like(v, math.log(_bounds(a, p)[1])),
            "you returned log β̃_t whatever the network says: `v` is not used",
        ),
        Mistake(
            lambda v, a, p: v * math.log2(_bounds(a, p)[0]) + (1 - v) * math.log2(_bounds(a, p)[1]),
            "you took the logarithm to base 2: it is the natural one",
        ),
        Mistake(
            lambda v, a, p: v * math.log10(_bounds(a, p)[0]) + (1 - v) * math.log10(_bounds(a, p)[1]),
            "you took the logarithm to base 10: it is the natural one",
        ),
        Mistake(
            lambda v, a, p: v * math.log(a / p) + (1 - v) * math.log((1 - p) / (1 - a) * a / p),
            "you took α_t, which is ᾱ_t/ᾱ_prev, for β_t: what a step takes away is the rest (t = {t})",
        ),
        Mistake(
            lambda v, a, p: v * math.log(_bounds(a, p)[0]) + (1 - v) * math.log((1 - p) / (1 - a) * a / p),
            "you put α_t for β_t into β̃_t (t = {t})",
        ),
        Mistake(
            lambda v, a, p: v * math.log(_bounds(a, p)[0]) + (1 - v) * math.log(1 - p),
            "you put 1-ᾱ_t for β_t into β̃_t, where it cancels: what is left is 1-ᾱ_prev (t = {t})",
        ),
        Mistake(
            lambda v, a, p: v * math.log(_bounds(a, p)[0]) + math.log(_bounds(a, p)[1]),
            "you left out the factor (1-v): the two weights must add up to 1",
        ),
        Mistake(
            lambda v, a, p: 2 * (v * _bounds(a, p)[0] ** 0.5 + (1 - v) * _bounds(a, p)[1] ** 0.5).log(),
            "you interpolated the standard deviations: it is their logarithms that are interpolated",
        ),
        Mistake(
            lambda v, a, p: torch.full_like(v, math.log(_bounds(a, p)[0])),
            "you returned log β_t whatever the network says: `v` is not used",
        ),
        Mistake(
            lambda v, a, p: v.sigmoid() * math.log(_bounds(a, p)[0]) + v.neg().sigmoid() * math.log(_bounds(a, p)[1]),
            "you squashed v once more: it lies in [0, 1] already",
        ),
    ),
    alternatives=(
        log_variance_as_powers,
        log_variance_from_small,
        log_variance_in_float64,
        log_variance_by_loop,
        log_variance_in_place,
    ),
    rtol=1e-4,
)


# ---------------------------------------------------------------- 12.4


def min_snr_weight(alpha_bar_t: Tensor, gamma: float, predicts: str) -> Tensor:
    """The weight of the squared error at t in min-SNR-γ.

    alpha_bar_t: ᾱ_t, any shape, values in (0, 1).
    gamma: γ, positive.
    predicts: what the squared error is of: "sample" (x_0), "epsilon" or "v_prediction".
    Returns weights of alpha_bar_t's shape.
    """
    snr = alpha_bar_t / (1 - alpha_bar_t)
    divisor = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}
    return snr.clamp(max=gamma) / divisor[predicts]


def min_snr_weight_inputs(generator: torch.Generator, index: int) -> Case:
    """The three predictions, over all of the schedule or some of it, and a batch in which no SNR reaches γ."""
    predicts = ("epsilon", "v_prediction", "sample", "epsilon")[index]
    t = torch.randint(1000, (40,), generator=generator).sort().values if index < 3 else torch.arange(500, 1000, 50)
    gamma = (5.0, 5.0, 1.0, 5.0)[index]
    shape = ((40,), (10, 4), (40, 1, 1, 1), (10,))[index]
    return Case({"alpha_bar_t": ALPHA_BAR[t].float().reshape(shape), "gamma": gamma, "predicts": predicts})


def _snr(a):
    return a / (1 - a)


def _per_x0(snr, predicts):
    return {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[predicts]


def min_snr_weight_by_where(a, gamma, predicts):
    snr = _snr(a)
    return torch.where(snr < gamma, snr, torch.full_like(snr, gamma)) / _per_x0(snr, predicts)


def min_snr_weight_by_loop(a, gamma, predicts):
    weights = []
    for level in a.flatten().tolist():
        snr = level / (1 - level)
        weights.append(min(snr, gamma) / {"sample": 1, "epsilon": snr, "v_prediction": snr + 1}[predicts])
    return torch.tensor(weights, dtype=a.dtype).reshape(a.shape)


def min_snr_weight_in_float64(a, gamma, predicts):
    wide = a.double()
    if predicts == "epsilon":
        return torch.minimum(torch.ones_like(wide), gamma * (1 - wide) / wide).to(a.dtype)
    clipped = torch.minimum(wide / (1 - wide), torch.tensor(gamma, dtype=torch.float64))
    return (clipped * (1 - wide if predicts == "v_prediction" else 1)).to(a.dtype)


def min_snr_weight_in_cases(a, gamma, predicts):
    snr = a / (1 - a)
    weight = torch.minimum(snr, torch.as_tensor(gamma, dtype=a.dtype))
    if predicts == "epsilon":
        weight = weight / snr
    elif predicts == "v_prediction":
        weight = weight / (1 + snr)
    return weight


MIN_SNR_WEIGHT = Exercise(
    id="12.4",
    title="Min-SNR weights",
    difficulty=2,
    minutes=6,
    equation="Hang section 3.4",
    where="Weighing the steps",
    lines=3,
    reference=min_snr_weight,
    inputs=min_snr_weight_inputs,
    hints=(
        "The weight is min(SNR, γ) for a squared error of x_0. Lesson 03, *the same error in three currencies*, says "
        "what the same error is in ε and in v.",
        "‖Δx_0‖² = ‖Δε‖² / SNR, and ‖Δv‖² = ‖Δε‖² / ᾱ, so ‖Δx_0‖² = ‖Δv‖² / (SNR + 1).",
        "`snr = ...`, then `snr.clamp(max=...)` divided by 1, by `snr` or by `...`",
    ),
    mistakes=(
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g),
            "you gave the weight of a squared error of x_0 whatever the network predicts: an error of {predicts} is "
            "another currency",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(min=g) / _per_x0(_snr(a), k),
            "you took the larger of SNR and γ: the weight is limited from above",
        ),
        Mistake(
            lambda a, g, k: a.clamp(max=g) / _per_x0(_snr(a), k),
            "you used ᾱ_t for the SNR: it is signal over noise, ᾱ_t / (1-ᾱ_t)",
        ),
        Mistake(
            lambda a, g, k: _snr(a) / _per_x0(_snr(a), k),
            "you did not limit the SNR: `gamma` is not used",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / (_snr(a) if k != "sample" else 1),
            "you divided by the SNR for v as for ε: for v the divisor is another",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / _snr(a),
            "you gave the weight for ε whatever the network predicts: an error of {predicts} is another currency",
        ),
        Mistake(
            lambda a, g, k: (_snr(a) / _per_x0(_snr(a), k)).clamp(max=g),
            "you limited the weight after the division: it is the SNR that γ limits",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / g,
            "you divided by γ: then no weight is above 1, but it is not the loss of {predicts} any more",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) * _per_x0(_snr(a), k),
            "you multiplied where one divides: at little noise the weight then grows without limit",
        ),
        Mistake(
            lambda a, g, k: (_snr(a) ** 0.5).clamp(max=g) / _per_x0(_snr(a), k),
            "you took the ratio of the standard deviations, √ᾱ_t/√(1-ᾱ_t): SNR is a ratio of variances",
        ),
        Mistake(
            lambda a, g, k: (1 / _snr(a)).clamp(max=g) / _per_x0(_snr(a), k),
            "you turned the ratio over: it is signal to noise",
        ),
        Mistake(
            lambda a, g, k: (
                _snr(a).clamp(max=g) / _per_x0(_snr(a), k) / (_snr(a).clamp(max=g) / _per_x0(_snr(a), k)).mean()
            ),
            "you scaled the weights to a mean of 1 over the batch: a weight depends on its own t alone",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=5.0) / _per_x0(_snr(a), k),
            "you limited the SNR at 5 whatever `gamma` says: here it is {gamma:g}",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / _per_x0(_snr(a).clamp(max=g), k),
            "you divided by the limited SNR, or limited it in place: γ limits the weight's numerator alone, and the "
            "currency of {predicts} is the SNR itself",
        ),
        Mistake(
            lambda a, g, k: torch.ones_like(a) if k == "epsilon" else _snr(a).clamp(max=g) / _per_x0(_snr(a), k),
            "you gave ε the weight 1 everywhere: that is L_simple, which the limit γ is to change where the SNR is "
            "above it",
        ),
        Mistake(
            lambda a, g, k: g / _per_x0(_snr(a), k),
            "you took γ for the numerator everywhere: it replaces the SNR only where that is larger",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / (_snr(a) + 1 if k == "v_prediction" else 1),
            "you divided for v alone: an error of ε is another currency than one of x_0, too",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / (_snr(a) if k == "epsilon" else 1),
            "you divided for ε alone: an error of v is another currency than one of x_0, too",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / (_snr(a) if k == "epsilon" else _snr(a) + 1),
            "you divided for x_0 as for v: its squared error has the weight min(SNR, γ) as it is",
        ),
        Mistake(
            lambda a, g, k: _snr(a).clamp(max=g) / {"sample": 1, "epsilon": _snr(a), "v_prediction": _snr(a) - 1}[k],
            "you took 1 off the SNR for v: it is added",
        ),
    ),
    alternatives=(
        min_snr_weight_by_where,
        min_snr_weight_by_loop,
        min_snr_weight_in_float64,
        min_snr_weight_in_cases,
    ),
    rtol=1e-3,
)


# ---------------------------------------------------------------- 12.5


def combine(gradients: list[Tensor], counts: list[int]) -> Tensor:
    """The gradient of a batch that was divided among several processes.

    gradients: one per process, of the same shape: the gradient of the *mean* loss over that process's images.
    counts: how many images each process had.
    Returns the gradient of the mean loss over all images.
    """
    weighted = [g * n for g, n in zip(gradients, counts, strict=True)]
    return torch.stack(weighted).sum(dim=0) / sum(counts)


def combine_inputs(generator: torch.Generator, index: int) -> Case:
    """Two equal shares, unequal ones, a single process, and a last batch that left one process with little."""
    counts = ([8, 8], [3, 5, 4], [7], [32, 32, 32, 2])[index]
    shape = ((6,), (3, 4), (5,), (2, 2, 3))[index]
    gradients = [torch.randn(shape, generator=generator) for _ in counts]
    return Case({"gradients": gradients, "counts": counts}, {"processes": len(counts)})


def combine_by_stack(gradients, counts):
    shares = torch.tensor(counts, dtype=gradients[0].dtype) / sum(counts)
    return torch.tensordot(shares, torch.stack(gradients), dims=1)


def combine_in_float64(gradients, counts):
    wide = torch.stack([g.double() for g in gradients])
    shares = torch.tensor(counts, dtype=torch.float64).reshape(-1, *[1] * (wide.ndim - 1))
    return ((wide * shares).sum(0) / shares.sum()).to(gradients[0].dtype)


def combine_in_place(gradients, counts):
    total = torch.zeros_like(gradients[0])
    for gradient, count in zip(gradients, counts, strict=True):
        total += gradient * (count / sum(counts))
    return total


def combine_by_image(gradients, counts):
    images = [g for g, n in zip(gradients, counts, strict=True) for _ in range(n)]
    return torch.stack(images).mean(0)


COMBINE = Exercise(
    id="12.5",
    title="Many processes, one gradient",
    difficulty=2,
    minutes=5,
    equation="",
    where="Many GPUs",
    lines=2,
    reference=combine,
    inputs=combine_inputs,
    hints=(
        "A mean of means is the mean only if all groups are of the same size.",
        "mean over all = Σ_r n_r g_r / Σ_r n_r",
        "`weighted = [... for g, n in zip(gradients, counts)]`, then their sum, divided by the number of images",
    ),
    mistakes=(
        Mistake(
            lambda gradients, counts: torch.stack(gradients).mean(0),
            "you averaged the processes alike: with shares of {counts} images a small share then counts too much",
        ),
        Mistake(
            lambda gradients, counts: torch.stack(gradients).sum(0),
            "you added the gradients of {processes} processes: the step would grow with their number",
        ),
        Mistake(
            lambda gradients, counts: sum(g * n for g, n in zip(gradients, counts, strict=True)),
            "you did not divide by the number of images: yours is the gradient of a sum, {counts} images of it",
        ),
        Mistake(
            lambda gradients, counts: sum(g * n for g, n in zip(gradients, counts, strict=True)) / len(counts),
            "you divided by the number of processes, not by the number of images",
        ),
        Mistake(
            lambda gradients, counts: sum(g / n for g, n in zip(gradients, counts, strict=True)),
            "you divided each gradient by its own number of images: it is a mean over them already",
        ),
        Mistake(
            lambda gradients, counts: sum(gradients) / sum(counts),
            "you added the means and divided by the number of images: a mean is one gradient, not as many as its "
            "images",
        ),
        Mistake(
            lambda gradients, counts: combine(gradients, counts) / len(counts),
            "you divided twice, by the number of images and by the number of processes",
        ),
        Mistake(
            lambda gradients, counts: combine(gradients, counts) * sum(counts) / max(counts),
            "you divided by the largest share: it is all {counts} images together that count",
        ),
        Mistake(
            lambda gradients, counts: gradients[0].clone(),
            "you returned the first process's gradient: the others' images would teach nothing",
        ),
        Mistake(
            lambda gradients, counts: sum(g * max(counts) for g in gradients) / sum(counts),
            "you took every share for as large as the largest: {counts} images",
        ),
        Mistake(
            lambda gradients, counts: sum(g * counts[0] for g in gradients) / sum(counts),
            "you took every share for as large as the first: {counts} images",
        ),
        Mistake(
            lambda gradients, counts: (
                sum(g * n for g, n in zip(gradients, counts, strict=True)) / counts[0] / len(counts)
            ),
            "you divided by the first share times the number of processes: the shares are {counts}",
        ),
        Mistake(
            lambda gradients, counts: (
                sum(g / n for g, n in zip(gradients, counts, strict=True)) / sum(1 / n for n in counts)
            ),
            "you gave the small shares the large weights: with {counts} images each image is to count alike",
        ),
        Mistake(
            lambda gradients, counts: (
                sum(g * n**0.5 for g, n in zip(gradients, counts, strict=True)) / sum(n**0.5 for n in counts)
            ),
            "you weighed by the roots of the numbers: with {counts} images each image is to count alike",
        ),
        Mistake(
            lambda gradients, counts: gradients[-1] * counts[-1] / sum(counts),
            "you kept the last process's part alone: the parts are added up",
        ),
        Mistake(
            lambda gradients, counts: [g * n / sum(counts) for g, n in zip(gradients, counts, strict=True)],
            "you returned the parts of the {processes} processes in a list: their sum is asked for",
        ),
    ),
    alternatives=(combine_by_stack, combine_in_float64, combine_in_place, combine_by_image),
    rtol=1e-4,
)


# ---------------------------------------------------------------- bug clinic


def halves_exchanged(unet, x_t, t, labels, nothing, w):
    both = torch.cat([labels, torch.full_like(labels, nothing)])
    eps_none, eps_class = unet(x_t.repeat(2, 1, 1, 1), t, class_labels=both).sample.chunk(2)
    return guided_eps(eps_class, eps_none, w)


def wrong_row(unet, x_t, t, labels, nothing, w):
    both = torch.cat([labels, torch.zeros_like(labels)])
    eps_class, eps_none = unet(x_t.repeat(2, 1, 1, 1), t, class_labels=both).sample.chunk(2)
    return guided_eps(eps_class, eps_none, w)


def class_in_both(unet, x_t, t, labels, nothing, w):
    both = labels.repeat(2)
    eps_class, eps_none = unet(x_t.repeat(2, 1, 1, 1), t, class_labels=both).sample.chunk(2)
    return guided_eps(eps_class, eps_none, w)


BROKEN = {"A": halves_exchanged, "B": wrong_row, "C": class_in_both}
"""Guided predictions with one bug each, as `predict(unet, x_t, t, labels, nothing, w)` → ε̃. Guess before you read."""


EXERCISES = (DROP_LABELS, GUIDED_EPS, LOG_VARIANCE, MIN_SNR_WEIGHT, COMBINE)
