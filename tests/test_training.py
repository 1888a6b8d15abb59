"""Training: the loss against closed forms, draws by (seed, step, position), averaged weights, resuming, stopping."""

from __future__ import annotations

import math
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, norm
from small_runs import config, differences, digits, run, small_model, weights
from torch import Tensor, nn

from ddpm_from_scratch import training
from ddpm_from_scratch.callbacks import LogFile, Previews
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.models import UNet2DModel
from ddpm_from_scratch.models.unet import UNet2DOutput
from ddpm_from_scratch.pipelines import DDPMPipeline
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_from_scratch.training import (
    CHECKPOINT,
    EMA,
    GlobalBatches,
    Progress,
    StopTraining,
    TrainingConfig,
    TrainingDiverged,
    bound_term,
    diffusion_loss,
    draw,
    load_checkpoint,
    loss_weights,
    train,
    training_target,
)

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
EVERY_STEP = 1e-9
"""`checkpoint_minutes` after which every step is followed by a checkpoint."""


class Fixed(nn.Module):
    """A model whose prediction is a given tensor; it keeps what it was asked."""

    def __init__(self, prediction: Tensor) -> None:
        super().__init__()
        self.prediction, self.asked = prediction, []

    def forward(self, *args: Any, **kwargs: Any) -> UNet2DOutput:
        self.asked.append((args, kwargs))
        return UNet2DOutput(self.prediction)


def batch(size: int = 64, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels k/127.5 - 1, noise, and timesteps that include 0 and 999."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, 256, (size, *shape), generator=g) / 127.5 - 1
    t = torch.randint(0, 1000, (size,), generator=g)
    t[:2] = torch.tensor([0, 999])
    return x0, torch.randn((size, *shape), generator=g), t


def exact_target(kind: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """ε, x_0 or v in float64, from the linear schedule written out."""
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t].view(-1, 1, 1, 1)
    v = alpha_bar.sqrt() * noise.double() - (1 - alpha_bar).sqrt() * x0.double()
    return {"epsilon": noise.double(), "sample": x0.double(), "v_prediction": v}[kind]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_targets_and_the_loss_of_a_perfect_model(kind: str) -> None:
    scheduler, (x0, noise, t) = DDPMScheduler(prediction_type=kind), batch()
    target = training_target(scheduler, x0, noise, t)
    assert (target - exact_target(kind, x0, noise, t)).abs().max() < 1e-6
    assert diffusion_loss(Fixed(target), scheduler, x0, noise, t) == 0


def test_the_network_sees_x_t_and_t() -> None:
    scheduler, (x0, noise, t) = DDPMScheduler(), batch()
    model = Fixed(noise)
    diffusion_loss(model, scheduler, x0, noise, t, class_labels=torch.arange(64))
    (x_t, asked_t), keywords = model.asked[0]
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t].view(-1, 1, 1, 1)
    assert (x_t - (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise)).abs().max() < 1e-6
    assert torch.equal(asked_t, t) and torch.equal(keywords["class_labels"], torch.arange(64))


def test_a_model_that_says_zero_has_loss_one() -> None:
    """E‖ε‖² = 1 per pixel: the mean of n = 65,536 squares has variance 2/n; 5 standard deviations, false alarm 6e-7."""
    x0, noise, t = batch(1024)
    loss = diffusion_loss(Fixed(torch.zeros_like(noise)), DDPMScheduler(), x0, noise, t)
    assert abs(float(loss) - 1) < 5 * math.sqrt(2 / noise.numel())
    assert float(loss) == pytest.approx(float((noise.double() ** 2).mean()), rel=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights(gamma: float) -> None:
    """Hang et al. 2023, section 3.4: min(SNR, γ) in terms of x_0; over SNR for ε, over SNR + 1 for v."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    snr = alpha_bar / (1 - alpha_bar)
    expected = {
        "sample": np.minimum(snr, gamma),
        "epsilon": np.minimum(snr, gamma) / snr,
        "v_prediction": np.minimum(snr, gamma) / (snr + 1),
    }
    for kind in PREDICTION_TYPES:
        got = loss_weights(DDPMScheduler(prediction_type=kind), torch.arange(1000), gamma)
        assert isinstance(got, Tensor) and got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected[kind], rtol=1e-6)


@pytest.mark.parametrize("gamma", [5.0, 0.01])
def test_min_snr_is_the_same_loss_whatever_is_predicted(gamma: float) -> None:
    """One guess of x_0, told as x_0, as ε or as v, has the same loss and the same gradient."""
    x0, noise, t = batch(16)
    t = t.clamp(20, 900)  # where telling ε as x_0 and back costs at most 2 digits of float32
    alpha_bar = DDPMScheduler().alphas_cumprod[t].view(-1, 1, 1, 1)
    guess = (x0.double() + 0.3 * noise.double().flip(0)).requires_grad_()
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    eps = (x_t - alpha_bar.sqrt() * guess) / (1 - alpha_bar).sqrt()
    told = {"sample": guess, "epsilon": eps, "v_prediction": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * guess}
    results = []
    for kind in PREDICTION_TYPES:
        scheduler = DDPMScheduler(prediction_type=kind)
        loss = diffusion_loss(Fixed(told[kind]), scheduler, x0, noise, t, snr_gamma=gamma)
        results.append((loss.detach(), *torch.autograd.grad(loss, guess, retain_graph=True)))
    for loss, gradient in results[1:]:
        assert float(loss) == pytest.approx(float(results[0][0]), rel=1e-4)
        assert (gradient - results[0][1]).abs().max() < 1e-3 * results[0][1].abs().max()


def test_min_snr_stays_finite_where_the_snr_is_zero() -> None:
    for kind in PREDICTION_TYPES:
        scheduler = DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
        assert float(loss_weights(scheduler, torch.tensor([999]), 5.0)) == 0


# ---------------------------------------------------------------- learned variance


def bound_in_float64(kind: str, prediction: Tensor, v: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> np.ndarray:
    """L_{t-1} or L_0 in bits per dimension, pixel by pixel in numpy, from Ho eq. 5-7, 13 and IDDPM eq. 15."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    result = []
    for p, w, x, e, k in zip(*(z.double().numpy() for z in (prediction, v, x0, noise)), t.tolist(), strict=True):
        bar, prev, beta = bars[k], bars[k - 1] if k else 1.0, betas[k]
        x_t = np.sqrt(bar) * x + np.sqrt(1 - bar) * e
        by_eps = (x_t - np.sqrt(1 - bar) * p) / np.sqrt(bar)
        by_v = np.sqrt(bar) * x_t - np.sqrt(1 - bar) * p
        x0_hat = np.clip({"epsilon": by_eps, "sample": p, "v_prediction": by_v}[kind], -1, 1)
        a, b = np.sqrt(prev) * beta / (1 - bar), np.sqrt(1 - beta) * (1 - prev) / (1 - bar)
        true_mean, mean = a * x + b * x_t, a * x0_hat + b * x_t
        first = (1 - bars[0]) / (1 - bars[1]) * betas[1]
        beta_tilde = (1 - prev) / (1 - bar) * beta if k else first
        fraction = (w + 1) / 2
        variance = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(beta_tilde))
        if k:
            nats = 0.5 * (np.log(variance / beta_tilde) + (beta_tilde + (true_mean - mean) ** 2) / variance - 1)
        else:
            std = np.sqrt(variance)
            upper = np.where(x > 0.999, np.inf, (x + 1 / 255 - mean) / std)
            lower = np.where(x < -0.999, -np.inf, (x - 1 / 255 - mean) / std)
            mass = np.where(lower > 0, norm.sf(lower) - norm.sf(upper), norm.cdf(upper) - norm.cdf(lower))
            nats = -np.log(mass)
        result.append(nats.mean() / np.log(2))
    return np.array(result)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_bound_against_float64(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, variance_type="learned_range")
    x0, noise, t = batch(32)
    x0[0, 0, 0] = torch.tensor([-1.0, 1.0]).repeat(4)  # at t = 0: the outer bins too
    t[2:] = t[2:].clamp(min=5)
    v = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand_as(x0)
    prediction = exact_target(kind, x0, noise, t).float() + 0.05 * noise.flip(0)
    x_t = scheduler.add_noise(x0, noise, t)
    got = bound_term(scheduler, prediction, v, x0, x_t, t).double().numpy()
    expected = bound_in_float64(kind, prediction, v, x0, noise, t)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-6)


def test_the_bound_is_zero_for_the_true_posterior() -> None:
    """The exact x_0 and v = -1, that is log β̃_t: every KL term vanishes."""
    scheduler = DDPMScheduler(prediction_type="sample", variance_type="learned_range")
    x0, noise, t = batch(32)
    t = t.clamp(min=1)
    bound = bound_term(scheduler, x0, -torch.ones_like(x0), x0, scheduler.add_noise(x0, noise, t), t)
    assert bound.abs().max() < 1e-6


def test_the_bound_clips_as_the_scheduler_does() -> None:
    """The true posterior has no error where nothing is clipped, however wide the data are."""
    x0, noise, t = batch(32)
    x0, t = 3 * x0, t.clamp(min=1)
    bounds = []
    for options in ({"clip_sample": False}, {"clip_sample_range": 3.0}, {}):
        scheduler = DDPMScheduler(prediction_type="sample", variance_type="learned_range", **options)  # type: ignore[arg-type]
        bound = bound_term(scheduler, x0, -torch.ones_like(x0), x0, scheduler.add_noise(x0, noise, t), t)
        bounds.append(float(bound.abs().max()))
    assert max(bounds[:2]) < 1e-6 and bounds[2] > 1e-2


def test_a_prediction_of_another_shape_is_not_broadcast() -> None:
    x0, noise, t = batch()
    with pytest.raises(ValueError, match=r"output has shape \(64, 3, 8, 8\), expected \(64, 1, 8, 8\)"):
        diffusion_loss(Fixed(noise.expand(-1, 3, -1, -1)), DDPMScheduler(), x0, noise, t)
    with pytest.raises(ValueError, match=r"expected \(64, 2, 8, 8\)"):
        diffusion_loss(Fixed(noise), DDPMScheduler(variance_type="learned_range"), x0, noise, t)


def test_the_bound_trains_the_variance_alone() -> None:
    """IDDPM section 3.1: L_hybrid's gradient is L_simple's in the mean, 0.001 T L_vlb's in the variance."""
    scheduler, (x0, noise, t) = DDPMScheduler(variance_type="learned_range"), batch()
    mean = (noise + 0.2 * noise.flip(0)).requires_grad_()
    v = torch.full_like(noise, 0.3).requires_grad_()
    loss = diffusion_loss(Fixed(torch.cat([mean, v], dim=1)), scheduler, x0, noise, t)
    by_mean, by_v = torch.autograd.grad(loss, (mean, v))
    simple = ((mean - noise) ** 2).mean()
    torch.testing.assert_close(by_mean, torch.autograd.grad(simple, mean)[0], rtol=1e-5, atol=1e-12)
    bound = bound_term(scheduler, mean.detach(), v, x0, scheduler.add_noise(x0, noise, t), t).mean()
    torch.testing.assert_close(by_v, 0.001 * 1000 * torch.autograd.grad(bound, v)[0], rtol=1e-5, atol=1e-12)
    assert (by_v != 0).double().mean() > 0.9  # at the largest t, β̃_t and β_t are the same to float32
    assert loss.item() == pytest.approx((simple + 0.001 * 1000 * bound).item(), rel=1e-5)


def test_a_network_with_learned_variance_trains() -> None:
    before = weights(small_model(out_channels=2))
    model = run(model=small_model(out_channels=2), scheduler=DDPMScheduler(variance_type="learned_range"))
    last = model.conv_out.weight
    assert last.shape[0] == 2 and last.isfinite().all()
    assert all(bool((row != old).any()) for row, old in zip(last, before["conv_out.weight"], strict=True))


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"grad_clip": 0},
        {"weight_decay": -1},
        {"ema_decay": 1},
        {"label_dropout": -0.1},
        {"snr_gamma": 0},
        {"learning_rate_decay": "step"},
        {"mixed_precision": "fp16"},
        {"seed": -1},
        {"warmup_steps": -1},
        {"checkpoint_minutes": 0},
        {"num_workers": -1},
        {"learning_rate": "2e-4"},
        {"grad_clip": None},
        {"steps": True},
        {"horizontal_flip": "false"},
    ],
)
def test_a_wrong_configuration_names_the_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


def test_learning_rate() -> None:
    flat = TrainingConfig(steps=100, warmup_steps=10, learning_rate=2.0, learning_rate_decay="constant")
    assert [flat.learning_rate_at(s) for s in (0, 4, 9, 10, 99)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0], rel=1e-12)
    cosine = TrainingConfig(steps=100, warmup_steps=0, learning_rate=2.0)
    assert [cosine.learning_rate_at(s) for s in (0, 25, 50)] == pytest.approx([2, 1 + math.sqrt(0.5), 1.0], rel=1e-12)
    assert cosine.learning_rate_at(100) == pytest.approx(0, abs=1e-12)


def test_the_rate_and_the_clipped_norm_reach_the_optimiser() -> None:
    seen: list[Progress] = []
    run(steps=3, callbacks=[seen.append], warmup_steps=3, learning_rate_decay="constant", learning_rate=3e-3)
    assert [p.learning_rate for p in seen] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert [p.step for p in seen] == [1, 2, 3] and all(p.steps == 3 for p in seen)
    # AdamW's first step moves every weight by the rate, whatever the gradient's size
    model, before = small_model(), weights(small_model())
    run(model=model, steps=1, ema_decay=0.0, learning_rate=1e-3, warmup_steps=0, grad_clip=1e-3)
    moved = (model.conv_out.weight.detach() - before["conv_out.weight"]).abs()
    # one update takes decay min(0, 2/11) = 0, so that the averaged weights are the weights
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-2)


# ---------------------------------------------------------------- randomness


def test_draws_depend_on_seed_step_and_position_alone() -> None:
    whole = draw(3, 7, range(8), (1, 4, 4), 1000)
    for part in (range(4), range(4, 8), [6]):
        piece = draw(3, 7, part, (1, 4, 4), 1000)
        for name in ("t", "noise", "uniform"):
            assert torch.equal(getattr(piece, name), getattr(whole, name)[list(part)])
    others = [draw(4, 7, range(8), (1, 4, 4), 1000), draw(3, 8, range(8), (1, 4, 4), 1000)]
    assert all(not torch.equal(other.noise, whole.noise) for other in others)
    assert len(whole.noise.flatten(1).unique(dim=0)) == 8


def test_t_is_uniform_and_the_noise_normal() -> None:
    """n = 4,000 draws of t in 10 bins: χ²(9) below its 1 - 1e-6 quantile. Noise: mean and variance within 5 sd."""
    draws = [draw(0, step, range(200), (1, 2, 2), 1000) for step in range(20)]
    t = torch.cat([d.t for d in draws])
    assert t.min() >= 0 and t.max() <= 999
    assert sorted(set(draw(0, 0, range(100), (1,), 3).t.tolist())) == [0, 1, 2]  # the last of T = 3 too
    counts = torch.bincount(t // 100, minlength=10).double()
    assert float(((counts - 400) ** 2 / 400).sum()) < chi2.ppf(1 - 1e-6, 9)
    noise = torch.cat([d.noise for d in draws]).double()
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / noise.numel())
    uniform = torch.cat([d.uniform for d in draws]).double()
    assert abs(float(uniform.mean()) - 0.5) < 5 / math.sqrt(12 * uniform.numel())


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (7, 7), (3, 8), (50, 5)])
def test_every_epoch_holds_every_image_once(size: int, batch_size: int) -> None:
    steps = 5 * size
    settings = config(steps=steps, batch_size=batch_size)
    order = [i for indices in GlobalBatches(size, settings, 0, range(batch_size)) for i in indices]
    epochs = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_does_not_depend_on_where_it_starts_or_on_who_reads_it() -> None:
    settings = config(steps=12, batch_size=4)
    whole = list(GlobalBatches(10, settings, 0, range(4)))
    assert list(GlobalBatches(10, settings, 5, range(4))) == whole[5:]
    halves = zip(GlobalBatches(10, settings, 0, range(2)), GlobalBatches(10, settings, 0, range(2, 4)), strict=True)
    assert [left + right for left, right in halves] == whole
    assert len(GlobalBatches(10, settings, 5, range(4))) == 7


def recorded(model: UNet2DModel, steps: int, **options: Any) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """(x_t, t, class labels) of every step of a run."""
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        calls.append((args[0].clone(), args[1].clone(), kwargs.get("class_labels")))

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    run(model=model, steps=steps, **options)
    handle.remove()
    return calls


def test_labels_are_dropped_as_often_as_asked() -> None:
    """n = 16 · 24 labels dropped with p = 0.3: the count lies between the 1e-6 quantiles of the binomial."""
    model = small_model(num_class_embeds=11)
    calls = recorded(model, 16, batch_size=24, label_dropout=0.3)
    labels = torch.cat([call[2] for call in calls if call[2] is not None])
    dropped, n = int((labels == 10).sum()), len(labels)
    assert n == 16 * 24 and binom.ppf(1e-6, n, 0.3) <= dropped <= binom.ppf(1 - 1e-6, n, 0.3)
    plain = recorded(small_model(num_class_embeds=11), 3, batch_size=24)
    # a batch of 24 is an epoch of the 24 digits: the labels that were not dropped are the data's own
    assert all(
        torch.equal(call[2].sort().values, digits().labels.sort().values) for call in plain if call[2] is not None
    )


def test_images_without_label_train_the_class_of_no_label() -> None:
    data = ImageDataset(digits().pixels, torch.full((24,), -1))
    calls = recorded(small_model(num_class_embeds=11), 2, data=data)
    assert all(bool((call[2] == 10).all()) for call in calls if call[2] is not None) and calls[0][2] is not None


def test_half_of_the_images_are_mirrored() -> None:
    """n = 20 · 24 flips with p = 1/2: between the 1e-6 quantiles of the binomial."""
    left = torch.zeros(24, 1, 8, 8, dtype=torch.uint8)
    left[..., :4] = 255
    data = ImageDataset(left, torch.zeros(24, dtype=torch.long))
    betas = DDPMScheduler(trained_betas=[1e-6] * 10, num_train_timesteps=10)  # hardly any noise: x_t shows x_0
    calls = recorded(small_model(), 20, data=data, batch_size=24, horizontal_flip=True, scheduler=betas)
    flips = sum(int((x_t[:, 0, :, 0].mean(dim=1) < 0).sum()) for x_t, _, _ in calls)
    assert binom.ppf(1e-6, 480, 0.5) <= flips <= binom.ppf(1 - 1e-6, 480, 0.5)


def test_processes_that_load_ahead_change_no_bit() -> None:
    options: dict[str, Any] = {"horizontal_flip": True, "label_dropout": 0.3, "batch_size": 8}
    alone, helped = (small_model(num_class_embeds=11) for _ in range(2))
    run(model=alone, steps=5, **options)
    run(model=helped, steps=5, num_workers=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), helped.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_the_loss_takes_timesteps_of_another_device(kind: str, snr_gamma: float | None) -> None:
    """The meta device stands for a GPU: it computes nothing, but refuses to be mixed with the CPU."""
    images = torch.empty(4, 1, 8, 8, device="meta")
    scheduler = DDPMScheduler(prediction_type=kind)
    loss = diffusion_loss(small_model().to("meta"), scheduler, images, images, torch.arange(4), None, snr_gamma)
    assert loss.device.type == "meta" and loss.shape == ()


def test_two_runs_give_the_same_bits_and_another_seed_does_not() -> None:
    first, again, other = (run(model=small_model(dropout=0.2), steps=3, seed=seed) for seed in (1, 1, 2))
    assert not differences(weights(first), weights(again))
    assert differences(weights(first), weights(other))


# ---------------------------------------------------------------- averaged weights


def test_the_average_against_its_closed_form() -> None:
    """shadow_n = Σ_i (1 - d_i) Π_{j>i} d_j w_i + Π d_j w_0, with d_n = min(decay, (1 + n)/(10 + n))."""
    model = nn.Linear(3, 2)
    ema = EMA(model, decay=0.6)
    history = [torch.cat([p.detach().flatten() for p in model.parameters()]).double()]
    for _ in range(14):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(history))))
        ema.update()
        history.append(torch.cat([p.detach().flatten() for p in model.parameters()]).double())
    decays = [min(0.6, (1 + n) / (10 + n)) for n in range(1, 15)]
    assert decays[0] == pytest.approx(2 / 11) and decays[-1] == 0.6
    weights_of = [math.prod(decays)] + [(1 - decays[i]) * math.prod(decays[i + 1 :]) for i in range(14)]
    assert sum(weights_of) == pytest.approx(1)
    expected = sum(w * h for w, h in zip(weights_of, history, strict=True))
    got = torch.cat([s.flatten() for s in ema.shadow]).double()
    assert (got - expected).abs().max() < 1e-5 and all(s.dtype == torch.float32 for s in ema.shadow)


def test_averaged_weights_are_lent_and_given_back() -> None:
    model = small_model()
    ema = EMA(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    own = weights(model)
    with pytest.raises(RuntimeError, match="on the way"), ema.averaged() as lent:
        assert not differences(weights(lent), weights(small_model()))
        raise RuntimeError("on the way")
    assert not differences(weights(model), own)
    copy = EMA(small_model(1))
    copy.load_state_dict(ema.state_dict())
    assert not differences(copy.state_dict(), ema.state_dict())
    ema.write_to_model()
    assert not differences(weights(model), weights(small_model()))


# ---------------------------------------------------------------- learning


def test_it_learns_eight_images_by_heart() -> None:
    """Loss per pixel below 0.12 (untrained: 1); the median sample near one of the images."""
    data = digits(8)
    model, losses = small_model(block_out_channels=(32, 64), norm_num_groups=8), []
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_end=0.2)
    options: dict[str, Any] = {"steps": 250, "batch_size": 32, "learning_rate": 3e-3, "ema_decay": 0.98}
    run(model=model, data=data, scheduler=scheduler, callbacks=[lambda p: losses.append(p.loss)], **options)
    assert losses[0] > 0.8 and np.mean(losses[-25:]) < 0.12
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(25)
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in ddim.timesteps:
            x = ddim.step(model(x, t).sample, t, x).prev_sample
    images = data.images().flatten(1)
    between = torch.cdist(images, images).fill_diagonal_(math.inf).min()
    nearest = torch.cdist(x.flatten(1), images).min(dim=1)
    assert nearest.values.median() < 0.75 * between and len(nearest.indices.unique()) >= 4


RECORDED = (0.48671, 0.19634, 0.13498, 0.12409, 0.11426, 0.10335, 0.11029, 0.09675, 0.09134, 0.0935)
"""Mean losses of fifteen steps each, in the run of the next test."""


@pytest.mark.long
def test_the_loss_on_the_embedded_set_falls_as_recorded() -> None:
    """Within 0.5 %; the whole run in bfloat16 instead of float32 differs by 0.15 %."""
    data, losses = load_dataset("fashion-10k", image_size=16), []
    model = small_model(sample_size=16)
    run(model=model, data=data, callbacks=[lambda p: losses.append(p.loss)], steps=150, batch_size=32, seed=0)
    np.testing.assert_allclose(np.reshape(losses, (10, 15)).mean(axis=1), RECORDED, rtol=0.005)


# ---------------------------------------------------------------- resuming


def saved(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder)
    assert state is not None
    return {key: value for key, value in state.items() if key != "seconds"}


def stop_at(step: int) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if progress.step == step:
            raise StopTraining

    return callback


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, precision: str) -> None:
    """With dropout, averaged weights, dropped labels and mirrored images; previews in one run and not in the other."""
    options: dict[str, Any] = {"steps": 7, "mixed_precision": precision, "label_dropout": 0.2, "horizontal_flip": True}

    def network() -> UNet2DModel:
        return small_model(dropout=0.3, num_class_embeds=11)

    whole = run(tmp_path / "whole", network(), **options)
    previews = Previews(tmp_path / "previews", every=2, count=2, num_inference_steps=2)
    assert train(network(), DDPMScheduler(), digits(), config(**options), tmp_path / "cut", [previews, stop_at(3)]) == 3
    assert saved(tmp_path / "cut")["step"] == 3
    resumed = run(tmp_path / "cut", small_model(seed=9, dropout=0.3, num_class_embeds=11), resume=True, **options)
    assert not differences(weights(whole), weights(resumed))
    assert not differences(saved(tmp_path / "whole"), saved(tmp_path / "cut"))
    loaded = UNet2DModel.from_pretrained(tmp_path / "cut" / "unet")
    assert not differences(weights(loaded), weights(whole))


def test_a_longer_run_continues_a_shorter_one(tmp_path: Path) -> None:
    options = {"learning_rate_decay": "constant"}
    whole = run(steps=5, **options)
    run(tmp_path, steps=3, **options)
    assert not differences(weights(run(tmp_path, steps=5, resume=True, **options)), weights(whole))
    done = train(small_model(), DDPMScheduler(), digits(), config(steps=5, **options), tmp_path, resume=True)
    assert done == 5
    with pytest.raises(ValueError, match="has 5 steps already, more than steps=2"):
        run(tmp_path, steps=2, resume=True, **options)


def test_an_older_checkpoint_is_accepted(tmp_path: Path) -> None:
    """One that says nothing of the data, the time, or a field that had its default."""
    whole = run(steps=4)
    run(tmp_path, steps=4, callbacks=[stop_at(2)])
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["seconds"], state["dataset"], state["config"]["snr_gamma"], state["config"]["num_workers"]
    torch.save(state, tmp_path / CHECKPOINT)
    assert not differences(weights(run(tmp_path, steps=4, resume=True)), weights(whole))


def test_a_checkpoint_is_not_overwritten_by_another_run(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match="holds a checkpoint of step 2: resume it, or choose another"):
        run(tmp_path, steps=2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"learning_rate": 0.5, "seed": 4}, r"config: learning_rate was 0.001, is 0.5, seed was 0, is 4"),
        ({"scheduler": DDPMScheduler(beta_end=0.01)}, "scheduler: beta_end was 0.02, is 0.01"),
        ({"model": small_model(layers_per_block=2)}, "unet: layers_per_block was 1, is 2"),
        ({"data": digits(23)}, "dataset: images was 24, is 23"),
        ({"data": negative(digits())}, "dataset: pixels was"),
    ]
    for changes, message in refused:
        with pytest.raises(ValueError, match=message):
            run(tmp_path, resume=True, **{"steps": 2, **changes})
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_conditional_run_is_not_resumed_on_other_labels(tmp_path: Path) -> None:
    """One without classes never sees them, and an older checkpoint says nothing of them."""
    relabelled = ImageDataset(digits().pixels, digits().labels.flip(0))
    for name, network in (("plain", small_model()), ("conditional", small_model(num_class_embeds=10))):
        run(tmp_path / name, network, callbacks=[stop_at(2)])
    run(tmp_path / "plain", data=relabelled, resume=True)
    folder, network = tmp_path / "conditional", small_model(num_class_embeds=10)
    with pytest.raises(ValueError, match="dataset: labels was '.*', is '"):
        run(folder, network, data=relabelled, resume=True)
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    del state["dataset"]["labels"]
    torch.save(state, folder / CHECKPOINT)
    run(folder, network, data=relabelled, resume=True)


def negative(data: ImageDataset) -> ImageDataset:
    """Other images, as many and as large."""
    return ImageDataset(255 - data.pixels, data.labels, data.classes, data.name)


def test_images_that_change_when_read_again_do_not_bar_a_resume(tmp_path: Path) -> None:
    """Such as those that a dataset crops at random."""

    class Restless(ImageDataset):
        reads = 0

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.reads += 1
            return torch.full((1, 8, 8), self.reads % 100 / 100), 0

    data = Restless(digits().pixels, digits().labels)
    run(tmp_path, data=data, callbacks=[stop_at(2)])
    assert saved(tmp_path)["dataset"] == {"images": 24, "shape": [1, 8, 8]}
    run(tmp_path, data=data, resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_model_without_a_checkpoint_is_not_overwritten(tmp_path: Path, resume: bool) -> None:
    run(tmp_path, steps=1)
    (tmp_path / CHECKPOINT).unlink()
    for left in ("all of it", "the network alone"):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match="holds a finished model without a checkpoint: choose another folder"):
            run(tmp_path, small_model(seed=1), steps=1, resume=resume)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, left
        (tmp_path / "model_index.json").unlink(missing_ok=True)


def test_what_is_no_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    path = tmp_path / CHECKPOINT
    good = path.read_bytes()
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    foreign = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    for content in (b"", b"not a checkpoint", good[:1000], good[: len(good) // 2], good[:-100], foreign):
        path.write_bytes(content)
        for resume in (True, False):
            with pytest.raises(ValueError, match=r"checkpoint\.pt is (damaged|not a checkpoint)") as caught:
                run(tmp_path, resume=resume)
            assert "\n" not in str(caught.value) and path.read_bytes() == content
    assert load_checkpoint(tmp_path / "elsewhere") is None


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes fails within it, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, steps=4, callbacks=[stop_at(2)])
    before = (tmp_path / CHECKPOINT).read_bytes()
    with largest_file(100_000), pytest.raises(OSError, match="step 4 could not be written .* kept as it was") as caught:
        run(tmp_path, steps=4, resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.glob(".checkpoint*"))
    assert not differences(weights(run(tmp_path, steps=4, resume=True)), weights(run(steps=4)))


def test_a_full_disk_for_the_model_says_that_the_steps_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = DDPMPipeline.save_pretrained

    def on_a_full_disk(pipeline: DDPMPipeline, folder: Path) -> None:
        with largest_file(1000):
            save(pipeline, folder)

    monkeypatch.setattr(DDPMPipeline, "save_pretrained", on_a_full_disk)
    said = r"safetensors could not be written \(File too large\): the checkpoint in .* all 4 steps, .* resume"
    with pytest.raises(OSError, match=said):
        run(tmp_path, steps=4)
    monkeypatch.undo()
    assert not differences(weights(run(tmp_path, steps=4, resume=True)), weights(run(steps=4)))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the superuser's right to write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model, before = small_model(), weights(small_model())
    with pytest.raises(OSError, match="cannot write in .*file.*: choose another output folder"):
        run(tmp_path / "file", model)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        with as_nobody(), pytest.raises(OSError, match="cannot write in .*Permission denied"):
            run(Path(folder), model)
        assert not list(Path(folder).iterdir())
    assert not differences(weights(model), before)


def test_looking_at_a_folder_leaves_a_checkpoint_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.save
    monkeypatch.setattr(torch, "save", lambda *args: (write(*args), training.check_writable(tmp_path)))
    training.save_checkpoint(tmp_path, {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.skipif(os.name != "posix", reason="there is no such lock")
def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_TO_END", 0.3)

    def second(progress: Progress) -> None:
        with pytest.raises(ValueError, match="another run trains in"):
            run(tmp_path, resume=True)
        raise KeyError("the first fails")

    with pytest.raises(KeyError, match="the first fails"):
        run(tmp_path, callbacks=[second])
    assert not differences(weights(run(tmp_path, resume=True)), weights(run()))


@pytest.mark.skipif(os.name != "posix", reason="there is no such lock")
def test_a_run_waits_for_the_last_processes_of_a_killed_one_and_then_looks_at_what_it_left(tmp_path: Path) -> None:
    import fcntl

    run(tmp_path / "finished")
    folder = tmp_path / "run"
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end() -> None:
        (tmp_path / "finished" / CHECKPOINT).rename(folder / CHECKPOINT)
        os.close(lock)

    threading.Timer(0.5, end).start()
    with pytest.raises(ValueError, match="holds a checkpoint of step 6"):
        run(folder)


def test_a_folder_at_home_is_the_same_for_checkpoint_log_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    watchers = [LogFile("~/run/log.csv"), Previews("~/run/previews", count=1, num_inference_steps=1)]
    run(Path("~/run"), steps=1, callbacks=watchers)
    assert not list((tmp_path / "here").iterdir())
    assert {"checkpoint.pt", "log.csv", "previews", "unet"} <= {path.name for path in (tmp_path / "run").iterdir()}


# ---------------------------------------------------------------- stopping and failing


class Poisoned(ImageDataset):
    """Digits that become too large for any network when told to."""

    poison = False

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image * 1e38 if self.poison else image, label


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    data, model, good = Poisoned(digits().pixels, digits().labels), small_model(), {}

    def poison(progress: Progress) -> None:
        if progress.step == 3:
            data.poison = True
            good.update(weights(progress.model))

    with pytest.raises(TrainingDiverged, match=r"after step 3 \(the gradient's norm is .*lower learning rate") as it:
        run(tmp_path, model, data=data, callbacks=[poison], checkpoint_minutes=EVERY_STEP)
    assert str(tmp_path) in str(it.value) and "\n" not in str(it.value)
    assert saved(tmp_path)["step"] == 3
    assert not differences(dict(saved(tmp_path)["model"]), good) and not differences(weights(model), good)
    assert all(p.grad is None for p in model.parameters())
    data.poison = False
    resumed = run(tmp_path, data=data, resume=True, checkpoint_minutes=EVERY_STEP)
    assert not differences(weights(resumed), weights(run(checkpoint_minutes=EVERY_STEP)))


def test_a_run_without_a_checkpoint_does_not_promise_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged) as it:
        run(tmp_path, learning_rate=1e38, warmup_steps=0)
    assert "kept in" not in str(it.value) and not (tmp_path / CHECKPOINT).exists()


def test_a_run_that_keeps_nothing_returns_no_weights_that_are_not_finite() -> None:
    with pytest.raises(TrainingDiverged, match="the weights are not finite"):
        run(learning_rate=1e38, warmup_steps=0, steps=1)


class Damaged(ImageDataset):
    """An image that is not a number, or a label that is too large, of which the list of labels says nothing."""

    nan, wrong = -1, -1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image * (math.nan if index == self.nan else 1), 11 if index == self.wrong else label


@pytest.mark.parametrize(
    ("fault", "message"), [("nan", "image {} of the dataset is not finite"), ("wrong", "label 11 is too large")]
)
def test_an_image_that_cannot_be_used_is_named_and_the_steps_are_kept(tmp_path: Path, fault: str, message: str) -> None:
    data, place = Damaged(digits().pixels, digits().labels), list(GlobalBatches(24, config(), 0, range(8)))[2][3]
    setattr(data, fault, place)
    with pytest.raises(ValueError, match=message.format(place)):
        run(tmp_path, small_model(num_class_embeds=11), data=data)
    assert saved(tmp_path)["step"] == 2


def test_weights_that_are_not_finite_do_not_replace_good_ones(tmp_path: Path) -> None:
    def spoil(progress: Progress) -> None:
        if progress.step == 2:
            with torch.no_grad():
                progress.model.conv_out.bias.fill_(math.inf)

    with pytest.raises(TrainingDiverged, match="the weights are not finite"):
        run(tmp_path, callbacks=[spoil], checkpoint_minutes=EVERY_STEP)
    assert saved(tmp_path)["step"] == 1


def test_an_error_in_a_callback_does_not_lose_the_run(tmp_path: Path) -> None:
    def broken(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyError("a mistake in a callback")

    with pytest.raises(KeyError, match="a mistake"):
        run(tmp_path, callbacks=[broken])
    assert saved(tmp_path)["step"] == 2
    assert not differences(weights(run(tmp_path, resume=True)), weights(run()))


LOOKED_AT = {i * 23 // 7 for i in range(8)}
"""Those of 24 images whose pixels a checkpoint remembers."""


class Fragile(ImageDataset):
    """Digits of which one cannot be read, until it is repaired."""

    broken: int | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise ValueError(f"image {index} cannot be read")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_does_not_lose_the_run(tmp_path: Path, workers: int) -> None:
    """The last image of the order: three steps of eight make an epoch, so the third step asks for it."""
    last = list(GlobalBatches(24, config(steps=3), 0, range(8)))[-1]
    data = Fragile(digits().pixels, digits().labels)
    data.broken = next(index for index in last if index not in LOOKED_AT)
    others = set(active_children())
    with pytest.raises(ValueError, match="cannot be read") as caught:
        run(tmp_path, data=data, num_workers=workers)
    assert set(active_children()) == others, f"the processes that load outlive {caught.value!r}: Python waits for them"
    assert saved(tmp_path)["step"] == 2
    data.broken = None
    assert not differences(weights(run(tmp_path, data=data, resume=True)), weights(run()))


def test_an_image_that_cannot_be_read_at_first_leaves_no_checkpoint(tmp_path: Path) -> None:
    data = Fragile(digits().pixels, digits().labels)
    first = next(iter(GlobalBatches(24, config(), 0, range(8))))
    data.broken = next(index for index in first if index not in LOOKED_AT)
    with pytest.raises(ValueError, match="cannot be read"):
        run(tmp_path, data=data)
    assert not (tmp_path / CHECKPOINT).exists()


@contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Within it the signal is handled so, however the tests were started."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_closed_terminal_ends_the_run_after_the_step(tmp_path: Path) -> None:
    """Shell and kernel both say so: a second signal cuts nothing short."""

    def hang_up(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)

    with handled(signal.SIGHUP, signal.default_int_handler):  # which would raise KeyboardInterrupt
        run(tmp_path, callbacks=[hang_up])
        assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler
    assert saved(tmp_path)["step"] == 2


def test_a_closed_terminal_is_ignored_under_nohup(tmp_path: Path) -> None:
    with handled(signal.SIGHUP, signal.SIG_IGN):
        run(tmp_path, callbacks=[lambda progress: signal.raise_signal(signal.SIGHUP)])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert saved(tmp_path)["step"] == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(number)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    model = small_model()
    assert train(model, DDPMScheduler(), digits(), config(), tmp_path, [interrupt]) == 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert saved(tmp_path)["step"] == 2
    assert not differences(weights(UNet2DModel.from_pretrained(tmp_path / "unet")), weights(model))
    assert not differences(weights(run(tmp_path, resume=True)), weights(run()))


def test_a_second_interrupt_is_obeyed_at_once(tmp_path: Path) -> None:
    def impatient(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[impatient])
    assert signal.getsignal(signal.SIGINT) == before and not (tmp_path / CHECKPOINT).exists()


def test_it_runs_in_a_thread(tmp_path: Path) -> None:
    models: list[UNet2DModel] = []
    thread = threading.Thread(target=lambda: models.append(run(tmp_path, steps=2)))
    thread.start()
    thread.join()
    assert models and not differences(weights(models[0]), weights(run(steps=2)))


# ---------------------------------------------------------------- what is left as it was


def surroundings() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32],
    }


@pytest.mark.parametrize("ending", ["whole", "stopped", "broken"])
def test_training_leaves_everything_as_it_was(tmp_path: Path, ending: str) -> None:
    model = small_model(dropout=0.5).eval()
    model.conv_in.train()  # modes may be mixed
    modes = [module.training for module in model.modules()]
    seen: list[bool] = []

    def watch(progress: Progress) -> None:
        seen.append(all(module.training for module in progress.model.modules()))
        if ending == "stopped":
            raise StopTraining
        if ending == "broken":
            raise RuntimeError("broken")

    before = surroundings()
    previews = Previews(tmp_path, every=1, count=1, num_inference_steps=1)
    try:
        run(model=model, steps=2, mixed_precision="bf16", callbacks=[previews, watch])
    except RuntimeError:
        assert ending == "broken"
    assert seen and all(seen) and not differences(before, surroundings())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize(("asked", "fast", "used"), [("no", True, False), ("bf16", False, True), ("auto", True, True)])
def test_mixed_precision_is_what_was_asked(monkeypatch: pytest.MonkeyPatch, asked: str, fast: bool, used: bool) -> None:
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: fast)
    model, seen = small_model(), []
    model.conv_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    for precision in (asked, "no"):  # twice in one process, with different precisions
        run(model=model, steps=1, mixed_precision=precision)
    assert seen == [torch.bfloat16 if used else torch.float32, torch.float32]
    assert all(p.dtype == torch.float32 for p in model.parameters())


CPU_BF16 = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.mark.parametrize("has_it", [True, False])
def test_where_bf16_is_chosen(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or has_it)
    for name in CPU_BF16:
        for other in CPU_BF16:
            monkeypatch.setattr(torch.cpu, other, lambda answer=has_it and other == name: answer, raising=False)
        assert training.bf16_is_fast(torch.device("cpu")) is has_it
    assert training.bf16_is_fast(torch.device("cuda")) is has_it
    assert training.bf16_is_fast(torch.device("mps")) is False
    for name in CPU_BF16:
        monkeypatch.delattr(torch.cpu, name)
    assert training.bf16_is_fast(torch.device("cpu")) is False


def test_resuming_where_memory_is_laid_out_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run begun with bf16, channels last, goes on without: AdamW must not take one weight's moments for another's."""
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: True)
    run(tmp_path / "a", steps=2, mixed_precision="auto")
    state = load_checkpoint(tmp_path / "a")
    assert state is not None
    moved = 0
    for moments in state["optimiser"]["state"].values():
        moved += not moments["exp_avg"].is_contiguous()
        moments.update({name: moments[name].contiguous() for name in ("exp_avg", "exp_avg_sq")})
    assert moved > 5
    (tmp_path / "b").mkdir()
    training.save_checkpoint(tmp_path / "b", state)
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: False)
    one, other = (run(tmp_path / name, steps=3, mixed_precision="auto", resume=True) for name in "ab")
    assert not differences(weights(one), weights(other))


@pytest.mark.parametrize(
    ("said", "has_accelerator", "cpu"), [("", True, False), ("true", True, True), ("", False, True)]
)
def test_where_training_runs(monkeypatch: pytest.MonkeyPatch, said: str, has_accelerator: bool, cpu: bool) -> None:
    """On the CPU where there is nothing else, or where ACCELERATE_USE_CPU says so."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    if said:
        monkeypatch.setenv("ACCELERATE_USE_CPU", said)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: SimpleNamespace(num_processes=1, on_cpu=cpu))
    assert training.processes().on_cpu is cpu


# ---------------------------------------------------------------- data and model that do not fit

ZERO_SNR = {"rescale_betas_zero_snr": True, "variance_type": "learned_range"}
SOME_MISSING = torch.where(torch.arange(24) == 3, -1, digits().labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": small_model(in_channels=3, out_channels=3)}, r"takes images of shape \[3, 8, 8\].*\[1, 8, 8\]"),
        ({"model": small_model(sample_size=16)}, r"takes images of shape \[1, 16, 16\], the dataset's are \[1, 8, 8\]"),
        ({"model": small_model(num_class_embeds=3)}, "too large for a model of num_class_embeds=3"),
        (
            {"model": small_model(num_class_embeds=10), "label_dropout": 0.1},
            'label 9 is too large for a model of num_class_embeds=10, whose last row is for "no class"',
        ),
        (
            {"model": small_model(num_class_embeds=10), "data": ImageDataset(digits().pixels, SOME_MISSING)},
            'label 9 is too large for a model of num_class_embeds=10, whose last row is for "no class"',
        ),
        ({"label_dropout": 0.1}, "label_dropout=0.1 needs a class-conditional model"),
        ({"model": small_model(out_channels=3)}, "needs out_channels=1, got 3"),
        (
            {"scheduler": DDPMScheduler(variance_type="learned_range")},
            "needs out_channels=2, twice the channels for a learned variance, got 1",
        ),
        ({"model": small_model().bfloat16(), "mixed_precision": "bf16"}, "weights are torch.bfloat16, which loses"),
        ({"model": small_model(class_embed_type="timestep")}, "class_embed_type='timestep', whose conditions no"),
        ({"model": small_model(class_embed_type="identity")}, "class_embed_type='identity', whose conditions no"),
        (
            {"scheduler": DDPMScheduler(clip_sample=False, **ZERO_SNR), "model": small_model(out_channels=2)},
            "cannot learn a variance where ᾱ_T = 0",
        ),
        (
            {"scheduler": DDPMScheduler(thresholding=True, **ZERO_SNR), "model": small_model(out_channels=2)},
            "cannot learn a variance where ᾱ_T = 0",
        ),
        ({"data": ImageDataset(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0))}, "the dataset is empty"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_sample": False, "prediction_type": "v_prediction"},
        {"thresholding": True, "prediction_type": "sample"},
    ],
    ids=str,
)
def test_where_the_bound_is_finite_a_variance_is_learned_without_terminal_snr(options: dict[str, Any]) -> None:
    """ε-prediction is clipped, the other two need no x_0 from it; T is small so that its last timestep is met."""
    scheduler = DDPMScheduler(num_train_timesteps=4, **ZERO_SNR, **options)
    losses: list[float] = []
    run(model=small_model(out_channels=2), scheduler=scheduler, callbacks=[lambda p: losses.append(p.loss)])
    assert np.isfinite(losses).all()


def test_a_model_that_could_not_be_sampled_is_not_trained_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no sample_size, so what is saved could not be sampled"):
        run(tmp_path, small_model(sample_size=None))
    run(model=small_model(sample_size=None), steps=1)


def test_a_launchers_gradient_accumulation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert not differences(weights(plain), weights(run(steps=2)))
