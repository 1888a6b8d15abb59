"""The command line: `ddpm train | sample | eval | info | course ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    dataset: Annotated[str, typer.Option(help="A dataset's name or a folder of images.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, log, previews and the trained pipeline.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in the output folder.")] = False,
    root: Annotated[Path | None, typer.Option(help="Where torchvision's datasets are, or are downloaded to.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Read a folder's images as grey.")] = False,
    widths: Annotated[str, typer.Option(help="Channels per resolution of the U-Net.")] = "32,64,128",
    layers_per_block: Annotated[int, typer.Option(help="ResNet blocks per resolution.")] = 1,
    conditional: Annotated[bool, typer.Option("--conditional", help="Condition on the dataset's labels.")] = False,
    prediction_type: Annotated[str, typer.Option(help="epsilon, sample or v_prediction.")] = "epsilon",
    beta_schedule: Annotated[str, typer.Option(help="linear, scaled_linear, squaredcos_cap_v2 or sigmoid.")] = "linear",
    learned_variance: Annotated[bool, typer.Option("--learned-variance", help="Learn the variance too.")] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all processes.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    warmup_steps: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 500,
    ema_decay: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.9995,
    snr_gamma: Annotated[float | None, typer.Option(help="γ of min-SNR weighting; none by default.")] = None,
    label_dropout: Annotated[float, typer.Option(help="Share of labels dropped, for guidance.")] = 0.0,
    horizontal_flip: Annotated[bool, typer.Option("--horizontal-flip", help="Mirror half of the images.")] = False,
    mixed_precision: Annotated[str, typer.Option(help="auto, no or bf16.")] = "auto",
    num_workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    preview_every: Annotated[int, typer.Option(help="Steps between preview sheets; 0 for none.")] = 1000,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train a DDPM and save it as a pipeline."""
    import torch

    from ddpm_from_scratch import callbacks as cb
    from ddpm_from_scratch import training
    from ddpm_from_scratch.data import load_dataset
    from ddpm_from_scratch.models import small_unet
    from ddpm_from_scratch.schedulers import DDPMScheduler

    data = load_dataset(dataset, root=root, image_size=image_size, channels=1 if grey else 3)
    config = training.TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        ema_decay=ema_decay,
        mixed_precision=mixed_precision,
        snr_gamma=snr_gamma,
        label_dropout=label_dropout,
        horizontal_flip=horizontal_flip,
        num_workers=num_workers,
        seed=seed,
    )
    torch.manual_seed(seed)
    model = small_unet(
        data.shape,
        [int(width) for width in widths.split(",")],
        layers_per_block,
        num_classes=len(data.classes) if conditional else None,
        learned_variance=learned_variance,
    )
    scheduler = DDPMScheduler(
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        variance_type="learned_range" if learned_variance else "fixed_small",
    )
    watchers: list[training.Callback] = [cb.ProgressBar(), cb.LogFile(output / "log.csv")]
    if preview_every:
        watchers.append(cb.Previews(output / "previews", preview_every))
    if tensorboard:
        watchers.append(cb.TensorBoard(output / "tensorboard"))
    done = training.train(model, scheduler, data, config, output, watchers, resume)
    if done < steps:
        typer.echo(f"Stopped after {done} of {steps} steps: continue with --resume.")
    else:
        typer.echo(f"Trained for {done} steps. Saved in {output}.")


@app.command()
def info() -> None:
    """Placeholder until the next commit."""
