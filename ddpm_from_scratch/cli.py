"""The command line: `ddpm train | sample | eval | info | bench | course ...`."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, sample and judge diffusion models, and find your way through the course.",
)
course = typer.Typer(no_args_is_help=True, help="The course: lessons, progress, handing out and grading.")
app.add_typer(course, name="course")

Model = Annotated[str, typer.Argument(help="A folder, a hub id (owner/name) or the name of a shipped model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto for the fastest there is.")]
Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first: about a minute, then up to twice as fast on a GPU."),
]


class SamplerName(StrEnum):
    """The samplers that `ddpm sample` offers."""

    ddpm = "ddpm"
    ddim = "ddim"


class Spacing(StrEnum):
    """Where the timesteps lie (Lin et al. 2024, table 2)."""

    leading = "leading"
    trailing = "trailing"
    linspace = "linspace"


class Benchmark(StrEnum):
    """What `ddpm bench` times."""

    library = "library"
    widgets = "widgets"


class TableName(StrEnum):
    """The tables that `ddpm eval` makes."""

    ddim = "ddim"
    bits = "bits"


class Features(StrEnum):
    """Whose features carry the distances."""

    classifier = "classifier"
    inception = "inception"


REPORTS: dict[str, tuple[TableName | None, ...]] = {
    **dict.fromkeys(("scheduler", "steps", "eta"), (None,)),
    **dict.fromkeys(("rows", "columns", "long_num", "repeats", "quadratic", "features"), (TableName.ddim,)),
    **dict.fromkeys(("precision", "no_clip", "classifier"), (None, TableName.ddim)),
    **dict.fromkeys(("dataset", "root"), (TableName.bits, TableName.ddim)),
    "per_image": (TableName.bits,),
}
"""The tables that an option of `ddpm eval` belongs to, None being the report without one."""

FEATURES = {"classifier": Features.classifier, "dataset": Features.inception, "root": Features.inception}
"""Of the options of `--table ddim`, those that one kind of features alone needs."""

DDIM_ROWS = "0,0.2,0.5,1,sigma-hat"
LARGEST_SEED = 2**63 - 1


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        float(torch.zeros(1, device=name))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"no device {name!r} that holds data here ({str(error).splitlines()[0]}): try --device cpu"
        ) from None
    return torch.device(name)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes whole numbers with commas between, such as 32,64; got {text!r}") from None


def _widths(text: str) -> list[int]:
    """Channels per resolution, as `small_unet` takes them."""
    from ddpm_from_scratch.models.presets import CHANNELS_PER_GROUP

    widths = _numbers("--widths", text)
    groups = max(1, widths[0] // CHANNELS_PER_GROUP)
    if min(widths) < 1 or any(width % groups for width in widths):
        raise ValueError(
            f"--widths {text}: the first must be a multiple of {CHANNELS_PER_GROUP}, the others multiples of the "
            "first, such as 32,64"
        )
    return widths


def _folder(name: str) -> Path:
    """A folder's path; an empty name, which would be the current folder, is refused."""
    if not name:
        raise typer.BadParameter("an empty name is no folder")
    return Path(name)


def _output(explained: str) -> Any:
    return typer.Option(parser=_folder, metavar="PATH", help=explained)


def _workers(data: Any, processes: Any) -> int:
    """Processes that load images and draw noise: GPUs wait for a folder's files, and CUDA for the noise.

    Noise alone pays only where processes start fast and share memory: on Linux.
    """
    from ddpm_from_scratch.data import ImageFolder

    device, folder = processes.device.type, isinstance(data, ImageFolder)
    if device == "cpu" or not (folder or (device == "cuda" and sys.platform == "linux")):
        return 0
    return min(8 if folder else 4, (os.cpu_count() or 1) // processes.num_processes)


@app.command()
def train(
    dataset: Annotated[str, typer.Option(help="A dataset's name or a folder of images.")],
    output: Annotated[Path, _output("Folder for checkpoints, log, previews and the trained pipeline.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in the output folder.")
    ] = False,
    init: Annotated[
        str | None, typer.Option(help="Start from the weights of this model, with its shape and schedule.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where torchvision's datasets are, or are downloaded to.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Read a folder's images as grey.")] = False,
    widths: Annotated[
        str | None, typer.Option(help="Channels per resolution of the U-Net; by default 32,64,128.")
    ] = None,
    layers_per_block: Annotated[int | None, typer.Option(help="ResNet blocks per resolution; by default 1.")] = None,
    conditional: Annotated[
        bool,
        typer.Option(
            "--conditional",
            help="Condition on the dataset's labels; a model of --init without classes gets a table of them.",
        ),
    ] = False,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon, sample or v_prediction; by default that of --init, or epsilon.")
    ] = None,
    beta_schedule: Annotated[
        str | None,
        typer.Option(help="linear, scaled_linear, squaredcos_cap_v2 or sigmoid; by default that of --init, or linear."),
    ] = None,
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
    num_workers: Annotated[
        int | None,
        typer.Option(help="Processes that load images and draw noise; by default none, or up to 8 with a GPU."),
    ] = None,
    compiled: Compiled = False,
    preview_every: Annotated[int, typer.Option(min=0, help="Steps between preview sheets; 0 for none.")] = 1000,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the trained model in half precision.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of everything random.")] = 0,
) -> None:
    """Train a DDPM and save it as a pipeline."""
    import torch

    from ddpm_from_scratch import training
    from ddpm_from_scratch.callbacks import ProgressBar
    from ddpm_from_scratch.data import load_dataset

    output, processes = output.expanduser(), training.processes()
    with processes.main_process_first():  # which alone downloads
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
        num_workers=_workers(data, processes) if num_workers is None else num_workers,
        seed=seed,
    )
    if conditional and not data.classes:
        raise ValueError(f"--conditional: {dataset} has no classes: leave it out, or put each class into a sub-folder")
    if preview_every:
        _check_apart(output, dataset, data)
    torch.manual_seed(seed)
    if init is not None:
        classes = len(data.classes) if conditional else None
        model, schedule = _initial_model(init, widths, layers_per_block, classes, learned_variance)
    else:
        model, schedule = _new_model(data, widths, layers_per_block, conditional, learned_variance), {}
    scheduler = _scheduler(schedule, beta_schedule, prediction_type, learned_variance)
    if compiled:
        model.compile()
    bar = ProgressBar()
    watchers = [bar, *_watchers(output, scheduler, preview_every, tensorboard)]
    if resume and processes.is_main_process:
        _say_if_anew(output)
    try:
        done = training.train(model, scheduler, data, config, output, watchers, resume)
    finally:
        bar.close()
    if processes.is_main_process:
        _finish_training(output, done, steps, half)


def _scheduler(base: Any, beta_schedule: str | None, prediction_type: str | None, learned_variance: bool) -> Any:
    """The scheduler of a configuration, changed by the options that were given."""
    from ddpm_from_scratch.schedulers import DDPMScheduler

    given: dict[str, Any] = {
        "beta_schedule": beta_schedule,
        "prediction_type": prediction_type,
        "variance_type": "learned_range" if learned_variance else None,
    }
    return DDPMScheduler.from_config(base, **{key: value for key, value in given.items() if value is not None})


def _watchers(output: Path, scheduler: Any, preview_every: int, tensorboard: bool) -> list[Any]:
    """The log, and what else was asked for.

    Raises:
        ValueError: previews are, of a scheduler that cannot make them.
    """
    from ddpm_from_scratch import callbacks as cb

    watchers: list[Any] = [cb.LogFile(output / "log.csv")]
    if preview_every:
        previews = cb.Previews(output / "previews", preview_every)
        previews.check(scheduler)
        watchers.append(previews)
    if tensorboard:
        watchers.append(cb.TensorBoard(output / "tensorboard"))
    return watchers


def _check_apart(output: Path, dataset: str, data: Any) -> None:
    """Refuses previews that would become images of the dataset: a resumed run would find it changed."""
    from ddpm_from_scratch.data import ImageFolder

    folder, place = (Path(os.path.realpath(Path(path).expanduser())) for path in (dataset, output))
    if not isinstance(data, ImageFolder) or not place.is_relative_to(folder):
        return
    if not any(part.startswith(".") for part in place.relative_to(folder).parts):
        raise ValueError(
            f"--output {output} lies among the images of {dataset}, which previews would join: choose another folder, "
            "or --preview-every 0"
        )


def _say_if_anew(output: Path) -> None:
    """Tells who resumes that there is nothing to resume; a saved model without a checkpoint is refused elsewhere."""
    from ddpm_from_scratch.training import CHECKPOINT, holds_model

    if not (output / CHECKPOINT).exists() and not holds_model(output):
        typer.echo(f"{output} has no checkpoint to resume: starting anew.")


def _new_model(data: Any, widths: str | None, layers: int | None, conditional: bool, learned_variance: bool) -> Any:
    """The network that the options ask for, as it comes from initialisation."""
    from ddpm_from_scratch.models import small_unet

    return small_unet(
        data.shape,
        _widths("32,64,128" if widths is None else widths),
        1 if layers is None else layers,
        num_classes=len(data.classes) if conditional else None,
        learned_variance=learned_variance,
    )


def _initial_model(
    init: str, widths: str | None, layers: int | None, classes: int | None, learned_variance: bool
) -> tuple[Any, Any]:
    """The network of `--init`, given a class table if it is to have one, and the configuration of its scheduler.

    Raises:
        ValueError: an option asks for another one.
    """
    from ddpm_from_scratch.pipelines import DDPMPipeline

    loaded = DDPMPipeline.from_pretrained(init)
    has = loaded.unet.config
    learns = has.out_channels == 2 * has.in_channels
    wrong = {
        f"--widths {widths}": widths is not None and _numbers("--widths", widths) != list(has.block_out_channels),
        f"--layers-per-block {layers}": layers is not None and layers != has.layers_per_block,
        "--conditional": classes is not None and has.class_embed_type is not None,
        "--learned-variance": learned_variance and not learns,
    }
    for option, differs in wrong.items():
        if differs:
            raise ValueError(f"{option} does not fit the model of --init {init}: leave it out, or start without --init")
    if learns and not learned_variance:
        raise ValueError(f"the model of --init {init} learns the variance: add --learned-variance")
    if classes is not None and has.num_class_embeds is None:
        return _with_classes(loaded.unet, classes), loaded.scheduler.config
    return loaded.unet, loaded.scheduler.config


def _with_classes(model: Any, classes: int) -> Any:
    """The network with a class table of zeros: for every class it does what it did without one."""
    import torch

    from ddpm_from_scratch.models import UNet2DModel

    conditional = UNet2DModel.from_config(model.config, num_class_embeds=classes + 1)  # the last is "no class"
    table = torch.zeros_like(conditional.class_embedding.weight)
    conditional.load_state_dict(model.state_dict() | {"class_embedding.weight": table})
    return conditional


def _finish_training(output: Path, done: int, steps: int, half: bool) -> None:
    """Stores a finished model in half precision if asked to, and says how it ended."""
    import torch

    from ddpm_from_scratch.pipelines import DDPMPipeline

    if done < steps:
        typer.echo(f"Stopped after {done} of {steps} steps: continue with --resume.")
        return
    if half:
        DDPMPipeline.from_pretrained(output, dtype=torch.float16).save_pretrained(output)
    typer.echo(f"Trained for {done} steps. Saved in {output}.")


@app.command()
def sample(
    model: Model,
    output: Annotated[Path, typer.Option(help="A .png sheet, or a .gif of the images appearing.")] = Path(
        "samples.png"
    ),
    scheduler: Annotated[SamplerName, typer.Option(help="The sampler.")] = SamplerName.ddim,
    steps: Annotated[
        int | None, typer.Option(help="Network calls per image; by default 50 (ddim) or all (ddpm).")
    ] = None,
    eta: Annotated[float, typer.Option(help="Noise of DDIM, from 0 (deterministic) to 1.")] = 0.0,
    num: Annotated[int, typer.Option(help="How many images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Image i depends on the seed and i alone.")] = 0,
    spacing: Annotated[
        Spacing | None, typer.Option(help="Where the timesteps lie; the model's own by default.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="Class of all images; by default each in turn.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images made at a time.")] = 64,
    scale: Annotated[int, typer.Option(help="Enlarge each pixel this many times.")] = 2,
    device: Device = "auto",
) -> None:
    """Generate images with a trained model."""
    import torch

    from ddpm_from_scratch.evaluation import labels_in_turn
    from ddpm_from_scratch.images import frame_steps, save_gif, save_sheet
    from ddpm_from_scratch.training import check_condition, seeded

    output = output.expanduser()
    if output.suffix.lower() not in (".png", ".gif"):
        raise ValueError(f"--output must end in .png or .gif, got {output}")
    if num < 1 or batch_size < 1 or not 1 <= scale <= 32:
        raise ValueError("--num, --batch-size and --scale must be at least 1 (scale at most 32)")
    if eta and scheduler is SamplerName.ddpm:
        raise ValueError("--eta belongs to --scheduler ddim")
    pipeline = _sampling_pipeline(model, scheduler, spacing).to(_device(device))
    if steps is None:
        steps = len(pipeline.scheduler) if scheduler is SamplerName.ddpm else min(50, len(pipeline.scheduler))
    check_condition(pipeline.unet)
    classes = pipeline.unet.config.num_class_embeds
    if label is not None and (classes is None or not 0 <= label < classes):
        raise ValueError(
            f"--label {label}: the model knows {'no classes' if classes is None else f'0 to {classes - 1}'}"
        )

    _check_file(output)
    film = output.suffix.lower() == ".gif"
    kept = set(frame_steps(steps) if film else [steps - 1])
    paths: list[list[torch.Tensor]] = []
    for first in range(0, num, batch_size):
        indices = range(first, min(num, first + batch_size))
        path: list[torch.Tensor] = []
        options: dict[str, Any] = {
            "callback": lambda step, t, x, x0, path=path: path.append(x.cpu()) if step in kept else None
        }
        options["class_labels"] = labels_in_turn(indices, classes) if label is None else [label] * len(indices)
        if scheduler is SamplerName.ddim:
            options["eta"] = eta
        pipeline.set_progress_bar_config(desc=f"images {first + 1} to {indices[-1] + 1} of {num}", unit="step")
        generators = [seeded(seed, "sample", i) for i in indices]
        pipeline(len(indices), generators, num_inference_steps=steps, output_type="pt", **options)
        paths.append(path)
    frames = [torch.cat(batches) for batches in zip(*paths, strict=True)]
    if not frames[-1].isfinite().all():
        raise ValueError(f"{model} makes images of NaN: its weights are damaged")
    if film:
        save_gif(frames, output, scale)
    else:
        save_sheet(frames[-1], output, scale)
    typer.echo(f"{num} images in {output}")


def _sampling_pipeline(model: str, scheduler: SamplerName, spacing: Spacing | None) -> Any:
    """The model with the sampler asked for, of its own schedule."""
    from ddpm_from_scratch.pipelines import DDIMPipeline, DDPMPipeline
    from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler

    loaded = DDPMPipeline.from_pretrained(model)
    changes: dict[str, Any] = {} if spacing is None else {"timestep_spacing": str(spacing)}
    if scheduler is SamplerName.ddim:
        return DDIMPipeline(loaded.unet, DDIMScheduler.from_config(loaded.scheduler.config, **changes))
    return DDPMPipeline(loaded.unet, DDPMScheduler.from_config(loaded.scheduler.config, **changes))


def _check_file(path: Path) -> None:
    """Refuses an output that cannot be written, before there is work to lose."""
    from ddpm_from_scratch.training import check_writable

    if path.is_dir():
        raise ValueError(f"--output {path} is a folder: give the name of a file")
    if not path.exists():
        check_writable(path.parent)
    elif not os.access(path, os.W_OK):
        raise ValueError(f"--output {path} may not be written over: choose another name")


@app.command("eval")
def evaluate(
    context: typer.Context,
    model: Model,
    classifier: Annotated[
        str | None, typer.Option(help="The judge: digits, fashion, or a folder; a shipped model has its own.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="How many samples: 10,000; 5,000 a cell of --table ddim; 500 of bits, or all.")
    ] = None,
    scheduler: Annotated[SamplerName, typer.Option(help="The sampler.")] = SamplerName.ddim,
    steps: Annotated[int, typer.Option(help="Network calls per sample.")] = 50,
    eta: Annotated[float, typer.Option(help="Noise of DDIM, from 0 (deterministic) to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Sample i depends on the seed and i alone.")] = 0,
    precision: Annotated[str, typer.Option(help="float32, or bf16 for the network.")] = "float32",
    output: Annotated[Path | None, _output("Folder for samples and figures; stopped runs go on there.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples made at a time.")] = 250,
    table: Annotated[
        TableName | None,
        typer.Option(help="ddim: samplers by numbers of steps. bits: bits per dimension of held-out images, by term."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Rows of --table ddim: values of η, and sigma-hat.")] = DDIM_ROWS,
    columns: Annotated[str, typer.Option(help="Columns of --table ddim: numbers of steps.")] = "10,20,50,100,1000",
    long_num: Annotated[int, typer.Option(help="Samples of a cell with S = 1000 (η = 0, 1, σ̂ only).")] = 1000,
    repeats: Annotated[int, typer.Option(help="Seeds of the cells S = 10 and 50, η = 0 and 1.")] = 3,
    quadratic: Annotated[
        str | None,
        typer.Option(help="Columns made with quadratic timesteps too, at η = 0; 10,20,50 where they are columns."),
    ] = None,
    no_clip: Annotated[
        bool, typer.Option("--no-clip", help="Do not clip x̂_0, like Song's program; in --table ddim, the rows of η.")
    ] = False,
    features: Annotated[
        Features, typer.Option(help="Features of --table ddim: the classifier's, or Inception's by torchmetrics.")
    ] = Features.classifier,
    dataset: Annotated[
        str | None, typer.Option(help="The model's dataset, for bits and Inception; a shipped model has its own.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where torchvision's datasets are, or are downloaded to.")] = None,
    per_image: Annotated[int, typer.Option(help="Timesteps at which --table bits asks each image; 0 for all.")] = 100,
    compiled: Compiled = False,
    device: Device = "auto",
) -> None:
    """Judge a model: its samples beside real images, a table of few steps, or bits per dimension."""
    from ddpm_from_scratch import judges, reports
    from ddpm_from_scratch.evaluation import SamplingSettings
    from ddpm_from_scratch.pipelines import DDPMPipeline

    _check_options(context, table, features)
    judges.check_dataset(model, dataset or classifier or model)
    pipeline = DDPMPipeline.from_pretrained(model).to(_device(device))
    if compiled:
        pipeline.unet.compile()
    asked = reports.Request(
        model=model,
        classifier=classifier,
        dataset=dataset,
        root=root,
        output=output and output.expanduser(),
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        compiled=compiled,
    )
    clip = False if no_clip else None
    if table is TableName.ddim:
        plan = reports.plan_of(
            rows.split(","),
            _numbers("--columns", columns),
            5000 if num is None else num,
            long_num,
            seed,
            repeats,
            _numbers("--quadratic", quadratic) if quadratic else [] if quadratic == "" else None,
            clip_sample=clip,
        )
        text = reports.ddim_table(pipeline, asked, plan, inception=features is Features.inception).to_markdown()
    elif table is TableName.bits:
        text = reports.bits_table(pipeline, asked, num, per_image or None).to_markdown()
    else:
        settings = SamplingSettings(str(scheduler), steps, eta, seed, precision, clip_sample=clip)
        text = reports.plain(pipeline, asked, 10_000 if num is None else num, settings).table()
    typer.echo(text)


def _check_options(context: typer.Context, table: TableName | None, features: Features) -> None:
    """Refuses options that the report asked for would not heed."""
    for name, tables in REPORTS.items():
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        what = None
        if table not in tables:
            what = f"--table {table}" if table else "the report without --table"
        elif table is TableName.ddim and FEATURES.get(name, features) is not features:
            what = f"--features {features}"
        if what is not None:
            raise ValueError(f"--{name.replace('_', '-')} says nothing to {what}: leave it out")


@app.command()
def train_classifier(
    dataset: Annotated[str, typer.Option(help="A dataset with labels and a test split.")],
    output: Annotated[Path, _output("Folder for the classifier, its reference and its card.")],
    root: Annotated[Path | None, typer.Option(help="Where torchvision's datasets are, or are downloaded to.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of everything random.")] = 0,
) -> None:
    """Train the classifier that judges samples, and measure real images with it."""
    from ddpm_from_scratch.reference import make_reference_classifier

    output = output.expanduser()
    real = make_reference_classifier(dataset, output, root, image_size, epochs, seed)
    typer.echo(f"{float(real.accuracy):.2%} of the test images are right. Saved in {output}.")


@app.command()
def info(model: Model) -> None:
    """Say what a model is: its parts, its size, its schedule, its card."""
    from ddpm_from_scratch.hub import resolve
    from ddpm_from_scratch.pipelines import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(model)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    size = unet.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    typer.echo(
        f"{type(unet).__name__}: {unet.num_parameters():,} parameters, "
        f"images {height} × {width} × {unet.config.in_channels}"
    )
    for name, part in unet.named_children():
        typer.echo(f"  {name:16} {sum(p.numel() for p in part.parameters()):>12,}")
    for part in (unet, scheduler):
        typer.echo(f"{type(part).__name__} configuration:")
        for key, value in part.config.items():
            if not key.startswith("_"):
                typer.echo(f"  {key:28} {value}")
    with suppress(OSError):  # a model without a card, or with one that was not fetched and is out of reach
        typer.echo("\n" + (resolve(model, ["README.md"]) / "README.md").read_text(encoding="utf-8", errors="replace"))


@app.command()
def bench(
    what: Annotated[
        Benchmark, typer.Argument(help="The library beside Diffusers, or the course's widgets.")
    ] = Benchmark.library,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 16,
    image_size: Annotated[int, typer.Option(help="Side of the images.")] = 32,
    widths: Annotated[str, typer.Option(help="Channels per resolution of the U-Net.")] = "32,64,128",
    rounds: Annotated[int, typer.Option(help="How often each is timed; the median counts.")] = 10,
    device: Device = "cpu",
) -> None:
    """Time a sampler's step, the network and a training step beside Diffusers, or the redraw of each widget."""
    if what is Benchmark.widgets:
        from ddpm_from_scratch.course.widgets import bench as widgets

        typer.echo(widgets.table(rounds))
        return
    from ddpm_from_scratch import bench as library

    timings = library.run(batch_size, image_size, _widths(widths), rounds, str(_device(device)))
    typer.echo(library.table(timings))


@course.command()
def progress() -> None:
    """Show which exercises are done."""
    from ddpm_from_scratch.course import progress as show

    show()


@course.command()
def lab() -> None:
    """Copy the lessons into work/ and open JupyterLab there."""
    from ddpm_from_scratch.course import workspace

    raise typer.Exit(workspace.main(["lab"]))


@course.command()
def update() -> None:
    """Bring changed lessons into work/, beside what was written there."""
    from ddpm_from_scratch.course import workspace

    raise typer.Exit(workspace.main(["update"]))


@course.command()
def grade(
    folder: Annotated[
        Path,
        typer.Argument(parser=_folder, metavar="PATH", help="One sub-folder per student, or one notebook per student."),
    ],
    output: Annotated[Path | None, _output("Where the gradebook goes; the graded folder by default.")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time; 0 for one per processor.")] = 0,
    seconds: Annotated[float, typer.Option(help="Time for one notebook.")] = 600.0,
    memory: Annotated[int, typer.Option(help="MB for one notebook, beside PyTorch itself.")] = 4000,
    trust: Annotated[bool, typer.Option("--trust", help="Run without a sandbox: with all your rights.")] = False,
) -> None:
    """Run a folder of students' notebooks and write a gradebook: CSV, table (markdown) and JUnit.

    Each notebook runs in bubblewrap on Linux: no network, nothing to read but Python and this package without its
    exercises' answers, no further processes, limits on memory, disk and time. The answers are compared outside of it.
    What it cannot see: whether a student copied, or hid a call of the package's own function (a plain one is noted).
    """
    from tqdm import tqdm

    from ddpm_from_scratch.course.grading import folder as grading
    from ddpm_from_scratch.course.grading import gradebook
    from ddpm_from_scratch.course.grading.sandbox import Limits

    if jobs < 0 or not 0 < seconds <= 86_400 or memory < 100:
        raise ValueError("--jobs must be at least 0, --seconds above 0 and at most a day, --memory at least 100")
    folder, place = folder.expanduser(), (output or folder).expanduser()
    limits = Limits(seconds=seconds, memory=memory)
    files = f"{place}: {gradebook.CSV}, {gradebook.TABLE}, {gradebook.JUNIT}"
    graded: list[str] = []
    with tqdm(total=len(grading.find(folder)), unit="notebook", desc="grading", disable=None) as bar:

        def after_each(name: str) -> None:
            graded.append(name)
            bar.update()

        try:
            rows = grading.grade_folder(folder, place, limits, jobs, trust, after_each)
        except KeyboardInterrupt:
            _fail(f"stopped: what was graded so far is in {files}" if graded else "stopped before any was graded", 130)
    typer.echo(gradebook.as_table(rows))
    typer.echo(f"Gradebook in {files}")


@course.command()
def handout(
    folder: Annotated[
        Path, typer.Argument(parser=_folder, metavar="PATH", help="A new folder for the edition that students get.")
    ],
) -> None:
    """Write the edition for students: everything they need, without the solutions.

    Left out: solutions/, the tests, and the solutions that the notebooks unfold. Not hidden: the package is open. The
    finished components are in it, since later lessons build on them, and so are the references that checks compare
    with, in course/exercises. Checks in the notebooks are for learning; `ddpm course grade` is for grading.
    """
    from ddpm_from_scratch.course import handout as edition

    folder = folder.expanduser()
    count = edition.write(folder)
    typer.echo(f"{count} lessons in {folder}, without solutions. Students call `make lab` there.")


def main() -> None:
    """Runs the command line; what a person can mend is said in one line."""
    from ddpm_from_scratch.training import TrainingDiverged

    for stream in (sys.stdout, sys.stderr):  # Windows has no σ and no ✓ for what goes into a pipe or a file
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except (ValueError, TypeError, OSError, ImportError, TrainingDiverged) as error:
        _fail(_sentence(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if _is_lack_of_memory(error):
            _fail("not enough memory: lower --batch-size or --image-size", 1)
        if "home directory" in str(error):  # what Python says of ~name
            _fail("there is no user of the name after ~", 1)
        if "DataLoader worker" in str(error):
            _fail(f"a process that loads images has ended ({str(error).splitlines()[0]}): try --num-workers 0", 1)
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            _fail(f"the network could not be compiled, which needs a C++ compiler: leave --compile out ({reason})", 1)
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()} (--help lists the options)", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _is_lack_of_memory(error: Exception) -> bool:
    """Python says it with a class, PyTorch's devices with words."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "DefaultCPUAllocator" in said


def _sentence(error: Exception) -> str:
    """What the error says; of one that a loading process wraps into its traceback, the last line."""
    text = str(error) or type(error).__name__
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text


def _fail(message: str, code: int) -> None:
    typer.echo(f"ddpm: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
