"""What a CUDA device computes, beside the CPU. `make test` runs these where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import config, digits, small_model

from ddpm_from_scratch import DDIMPipeline, DDPMPipeline
from ddpm_from_scratch.data import load_dataset
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_from_scratch.training import Progress, StopTraining, diffusion_loss, draw, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions without TF32, and training where it would run by itself."""
    from accelerate.state import AcceleratorState

    monkeypatch.setitem(os.environ, "ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(("kind", "steps"), [(DDIMPipeline, 20), (DDPMPipeline, 50)])
def test_the_same_generators_give_the_same_images(kind: Any, steps: int) -> None:
    """Float32 sums in another order, carried along by a chain of steps: a grey level is 4e-3."""
    images = []
    for device in ("cpu", DEVICE):
        pipeline = kind.from_pretrained("digits").to(device)
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(i) for i in range(4)]
        images.append(pipeline(4, generators, num_inference_steps=steps, output_type="pt").images.cpu())
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=4e-3)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_a_step_is_the_same(kind: Any) -> None:
    x, eps = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = kind(variance_type="fixed_large") if kind is DDPMScheduler else kind()
    scheduler.set_timesteps(10)
    for t in (900, 500, 0):
        one, other = (
            scheduler.step(eps.to(d), t, x.to(d), generator=torch.Generator().manual_seed(1)).prev_sample.cpu()
            for d in ("cpu", DEVICE)
        )
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


def test_loss_and_gradient_are_the_same() -> None:
    data, found = load_dataset("digits", image_size=16), []
    for device in ("cpu", DEVICE):
        model = DDPMPipeline.from_pretrained("digits").unet.to(device)
        random = draw(0, 0, range(16), (1, 16, 16), 1000)
        x0 = data.images(range(16)).to(device)
        loss = diffusion_loss(model, DDPMScheduler(), x0, random.noise.to(device), random.t, None, 5.0)
        loss.backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        found.append((float(loss.detach()), gradient))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert float((found[1][1] - found[0][1]).norm() / found[0][1].norm()) < 1e-3


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on(tmp_path: Path, precision: str, workers: int) -> None:
    """Many options at once. Some operations of a GPU add in no fixed order, so nearly, and not to the bit."""

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise StopTraining

    def scheduler() -> DDPMScheduler:
        return DDPMScheduler(variance_type="learned_range")

    options: dict[str, Any] = {"snr_gamma": 5.0, "label_dropout": 0.1, "horizontal_flip": True}
    settings = config(steps=10, mixed_precision=precision, num_workers=workers, **options)
    whole, parts, other = (small_model(num_class_embeds=11, out_channels=2, dropout=0.2) for _ in range(3))
    train(whole, scheduler(), digits(), settings)
    train(parts, scheduler(), digits(), settings, tmp_path, [stop])
    train(parts, scheduler(), digits(), settings, tmp_path, resume=True)
    train(other, scheduler(), digits(), replace(settings, seed=1))
    assert {p.device.type for p in whole.parameters()} == {DEVICE}
    weights, resumed, foreign = (
        torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (whole, parts, other)
    )
    assert float((resumed - weights).norm()) < 1e-3 * float(weights.norm()) < float((foreign - weights).norm())
    assert DDPMPipeline.from_pretrained(tmp_path).unet.device.type == "cpu"
