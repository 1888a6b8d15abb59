"""What `ddpm eval` does: from a request to a report, with its files where a folder is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_from_scratch import evaluation, few_steps, judges, likelihood
from ddpm_from_scratch.config import write_file
from ddpm_from_scratch.data import ImageDataset, load_dataset
from ddpm_from_scratch.pipelines import DiffusionPipeline
from ddpm_from_scratch.provenance import command_line
from ddpm_from_scratch.reference import SHIPPED, load_classifier, shipped_classifier
from ddpm_from_scratch.training import check_writable


@dataclass(frozen=True)
class Request:
    """What all reports are asked for with.

    Args:
        model: its name, folder or hub id.
        classifier: a shipped classifier's name or a folder; None for a shipped model's own.
        dataset: the model's dataset; None for a shipped model's own.
        root: where torchvision's datasets are.
        output: folder for samples and figures.
        seed, precision, batch_size: as in `generate`.
        compiled: whether the network was compiled, for the record.
    """

    model: str
    classifier: str | None = None
    dataset: str | None = None
    root: Path | None = None
    output: Path | None = None
    seed: int = 0
    precision: str = "float32"
    batch_size: int = 250
    compiled: bool = False

    @property
    def judge(self) -> str:
        """The classifier asked for.

        Raises:
            ValueError: none was named, and the model is none that ships.
        """
        name = self.classifier or judges.JUDGE_OF.get(self.model)
        if name is None:
            choices = ", ".join(SHIPPED)
            raise ValueError(f"say which classifier judges {self.model}: --classifier {choices} or a folder")
        return name

    def data(self, split: str, image_size: int | None = None) -> ImageDataset:
        """The model's dataset, resized only where a size is given.

        Raises:
            ValueError: none was named and the model is none that ships, or a folder without splits.
        """
        name = self.dataset
        if name is None and self.model in judges.JUDGE_OF:
            name = judges.DATASETS_OF[judges.JUDGE_OF[self.model]][0]
        if name is None:
            raise ValueError(f"say on which dataset {self.model} was trained: --dataset NAME")
        found = load_dataset(name, split, self.root, image_size)
        if not isinstance(found, ImageDataset):
            raise ValueError(f"{name} is a folder of images: a dataset with a test split is needed")
        return found


def plan_of(
    rows: Sequence[str],
    columns: Sequence[int],
    num: int,
    long_num: int,
    seed: int,
    repeats: int,
    quadratic: Sequence[int] | None,
    clip_sample: bool | None = None,
) -> few_steps.Plan:
    """The plan that the command line's options describe; `quadratic` None takes what it can of the usual numbers.

    Raises:
        ValueError: a number of seeds or samples below 1, or quadratic timesteps of a cell that there is not.
    """
    if min(repeats, num, long_num) < 1:
        raise ValueError("--num, --long-num and --repeats must be at least 1")
    rows = [row.strip() for row in rows]
    with_rows = set(rows) & set(few_steps.Plan.quadratic_rows)
    if quadratic is None:
        quadratic = [steps for steps in few_steps.Plan.quadratic_columns if with_rows and steps in columns]
    for steps in quadratic:
        if steps not in columns:
            columns_asked = ",".join(map(str, columns))
            raise ValueError(f"--quadratic {steps}: not among --columns {columns_asked}; add it there, or leave it out")
        if not with_rows:
            raise ValueError(
                f"--quadratic {steps}: quadratic timesteps are for the row 0, which --rows {','.join(rows)} lacks; "
                "add it, or leave --quadratic out"
            )
    return few_steps.Plan(
        rows=tuple(rows),
        columns=tuple(columns),
        num_samples=num,
        long_samples=long_num,
        seed=seed,
        repeat_seeds=repeats,
        quadratic_columns=tuple(quadratic),
        clip_sample=clip_sample,
    )


def ddim_table(
    pipeline: DiffusionPipeline, asked: Request, plan: few_steps.Plan, inception: bool = False
) -> few_steps.Table:
    """The table of few steps, in `asked.output`.

    Raises:
        ValueError: no folder, or as `few_steps_table`.
        ImportError, ConnectionError: as `inception_judge`.
    """
    if asked.output is None:
        raise ValueError("a table takes long: say with --output where its cells are kept, so that it can be resumed")
    options: dict[str, Any] = {
        "table": "ddim",
        "rows": ",".join(plan.rows),
        "columns": ",".join(map(str, plan.columns)),
        "num": plan.num_samples,
        "long-num": plan.long_samples if set(plan.columns) & set(plan.long_columns) else None,
        "repeats": plan.repeat_seeds,
        "quadratic": ",".join(map(str, plan.quadratic_columns)),
        "no-clip": plan.clip_sample is False,
        "seed": asked.seed,
        "precision": asked.precision,
        "features": "inception" if inception else "classifier",
        "classifier": _label(asked.classifier),
        "dataset": asked.dataset,
        "compile": asked.compiled,
        "output": asked.output,
    }
    if inception:
        train, test = (asked.data(split, pipeline.unet.config.sample_size) for split in ("train", "test"))
        judge = judges.inception_judge(train, test, pipeline.device)
    else:
        judge = judges.named_judge(asked.judge, pipeline.device)
    return few_steps.few_steps_table(
        pipeline,
        judge,
        asked.output,
        plan,
        model=_label(asked.model) or "",
        command=command_line("eval", asked.model, options),
        batch_size=asked.batch_size,
        precision=asked.precision,
    )


def bits_table(
    pipeline: DiffusionPipeline, asked: Request, num: int | None, per_image: int | None
) -> likelihood.Likelihood:
    """Bits per dimension of held-out images; with `asked.output`, `bits.json`, `bits.csv` and `bits.md` there.

    `num` None takes 500 images, or all where there are fewer.
    Until these are written a stopped run leaves its terms there, from which a later one goes on.

    Raises:
        ValueError: as `likelihood.likelihood`.
        OSError: `asked.output` cannot be written to.
    """
    if asked.output is not None:
        check_writable(asked.output)
    test = asked.data("test")
    num = min(500, len(test)) if num is None else num
    options: dict[str, Any] = {
        "table": "bits",
        "num": num,
        "per-image": per_image or 0,
        "seed": asked.seed,
        "dataset": asked.dataset,
        "compile": asked.compiled,
        "output": asked.output,
    }
    found = likelihood.likelihood(
        pipeline,
        test,
        num,
        per_image,
        asked.seed,
        asked.batch_size,
        model=_label(asked.model) or "",
        command=command_line("eval", asked.model, options),
        folder=asked.output,
    )
    if asked.output is not None:
        for name, text in (("json", found.to_json()), ("csv", found.to_csv()), ("md", found.to_markdown())):
            write_file(asked.output / f"bits.{name}", text.encode())
        (asked.output / likelihood.TERMS).unlink(missing_ok=True)
    return found


def plain(
    pipeline: DiffusionPipeline, asked: Request, num: int, settings: evaluation.SamplingSettings
) -> evaluation.Evaluation:
    """One set of samples beside real images; with `asked.output`, `evaluation.json` there.

    Raises:
        ValueError: as `evaluate`.
        OSError: `asked.output` cannot be written to.
    """
    load = shipped_classifier if asked.judge in SHIPPED else load_classifier
    network, real = load(asked.judge)
    network.to(pipeline.device)
    if asked.output is not None:
        check_writable(asked.output)
    figures = evaluation.evaluate(pipeline, network, real, num, settings, asked.batch_size, asked.output)
    if asked.output is not None:
        write_file(asked.output / "evaluation.json", figures.to_json().encode())
    return figures


def _label(name: str | None) -> str | None:
    """A name as it may stand in a record: of a folder its last part."""
    return Path(name).resolve().name if name is not None and Path(name).is_dir() else name
