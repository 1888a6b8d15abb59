"""How good are few steps? The table of Song's section 5.1: samplers down, numbers of steps across.

A cell is one set of samples: a row (η, or σ̂), a number of steps S, a seed, a choice of timesteps. Each cell lies in a
folder of its own, its samples batch by batch and then its figures, so a stopped run goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ddpm_from_scratch.config import new_folder, write_file
from ddpm_from_scratch.evaluation import SamplingSettings, generate, sampling_minutes
from ddpm_from_scratch.judges import Figures, Judge, check_shape
from ddpm_from_scratch.pipelines import DiffusionPipeline
from ddpm_from_scratch.provenance import machine, model_hash

SIGMA_HAT = "sigma-hat"
"""The row of DDPM with σ² = β, Song's σ̂."""
RESULT, FIGURES = "table.json", "figures.json"
PAPER = {
    "0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "1": (41.07, 18.36, 8.01, 5.78, 4.73),
    SIGMA_HAT: (367.43, 133.37, 32.72, 9.99, 3.17),
}
"""FID on CIFAR-10 at S = 10, 20, 50, 100, 1000 (Song, table 1)."""
PAPER_STEPS = (10, 20, 50, 100, 1000)


def quadratic_timesteps(steps: int, T: int = 1000) -> tuple[int, ...]:
    """`steps` timesteps that lie densely at the clean end, τ_i = ⌊c i²⌋ with τ_S = T - 1, largest first.

    Song section 4.2; the paper takes them for CIFAR-10 (its appendix on sub-sequences).

    Args:
        steps: S.
        T: number of training timesteps.

    Raises:
        ValueError: so many steps that the smallest would be taken twice, or fewer than 1.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in [1, {T}], got {steps}")
    table = tuple((T - 1) * i * i // steps**2 for i in range(steps, 0, -1))
    if len(set(table)) < steps:
        raise ValueError(
            f"of {steps} quadratic timesteps below {T}, {steps - len(set(table))} would be taken twice: take fewer or "
            "linear ones"
        )
    return table


# ---------------------------------------------------------------- which cells


@dataclass(frozen=True)
class Cell:
    """One set of samples.

    Args:
        row: η as text, "0" to "1", or `SIGMA_HAT`.
        steps: S.
        num_samples: how many.
        seed: of the samples.
        quadratic: visit `quadratic_timesteps` instead of the scheduler's own.
    """

    row: str
    steps: int
    num_samples: int
    seed: int = 0
    quadratic: bool = False

    @property
    def name(self) -> str:
        """What the cell's folder is called."""
        row = self.row if self.row == SIGMA_HAT else f"eta-{self.row}"
        return f"{row}_S-{self.steps}_seed-{self.seed}" + "_quadratic" * self.quadratic

    def settings(self, T: int, precision: str = "float32", clip_sample: bool | None = None) -> SamplingSettings:
        """How its samples are made, with a schedule of T timesteps; `clip_sample` is for the rows of η.

        Raises:
            ValueError: a row or a number of steps that cannot be.
        """
        common: dict[str, Any] = {"num_inference_steps": self.steps, "seed": self.seed, "precision": precision}
        if self.row == SIGMA_HAT:
            if self.quadratic:
                raise ValueError(f"quadratic timesteps are for rows of DDIM, not for {SIGMA_HAT}")
            return SamplingSettings("ddpm", variance_type="fixed_large", **common)
        try:
            eta = float(self.row)
        except ValueError:
            raise ValueError(f"a row is a number η from 0 to 1, or {SIGMA_HAT}; got {self.row!r}") from None
        timesteps = quadratic_timesteps(self.steps, T) if self.quadratic else None
        return SamplingSettings("ddim", eta=eta, timesteps=timesteps, clip_sample=clip_sample, **common)


@dataclass(frozen=True)
class Plan:
    """The cells of a table; the defaults are those of the course's own.

    Args:
        rows: η as text, and `SIGMA_HAT`.
        columns: S.
        num_samples: samples of a cell.
        long_columns: numbers of steps that take so long that they get fewer rows and samples.
        long_rows, long_samples: these.
        seed: of every cell.
        repeat_seeds: seeds of the cells that are repeated, `seed` included, to show what the seed does.
        repeat_rows, repeat_columns: those cells.
        quadratic_rows, quadratic_columns: cells that are also made with quadratic timesteps.
        clip_sample: whether the rows of η clip x̂_0, None for what the model's scheduler says. Song's program does not;
            clipping while ε is kept, Diffusers' default, moves the images the more, the more steps there are.
    """

    rows: tuple[str, ...] = ("0", "0.2", "0.5", "1", SIGMA_HAT)
    columns: tuple[int, ...] = (10, 20, 50, 100, 1000)
    num_samples: int = 5000
    long_columns: tuple[int, ...] = (1000,)
    long_rows: tuple[str, ...] = ("0", "1", SIGMA_HAT)
    long_samples: int = 1000
    seed: int = 0
    repeat_seeds: int = 3
    repeat_rows: tuple[str, ...] = ("0", "1")
    repeat_columns: tuple[int, ...] = (10, 50)
    quadratic_rows: tuple[str, ...] = ("0",)
    quadratic_columns: tuple[int, ...] = (10, 20, 50)
    clip_sample: bool | None = None

    def cells(self) -> list[Cell]:
        """All cells, the cheap columns first.

        Raises:
            ValueError: no cell, or one named twice.
        """
        found = []
        for steps in sorted(self.columns):
            long = steps in self.long_columns
            count = min(self.long_samples, self.num_samples) if long else self.num_samples
            rows = [row for row in self.rows if not long or row in self.long_rows]
            found += [Cell(row, steps, count, self.seed) for row in rows]
            if steps in self.repeat_columns:
                seeds = range(self.seed + 1, self.seed + self.repeat_seeds)
                found += [Cell(row, steps, count, seed) for row in rows if row in self.repeat_rows for seed in seeds]
            if steps in self.quadratic_columns:
                found += [Cell(row, steps, count, self.seed, True) for row in rows if row in self.quadratic_rows]
        if not found or len({cell.name for cell in found}) < len(found):
            raise ValueError(f"the table needs rows and columns, none twice, got {self.rows} and {self.columns}")
        return found


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class CellResult:
    """A finished cell: what it is, what it scored, and the minutes that its samples took."""

    cell: Cell
    figures: Figures
    minutes: float


@dataclass(frozen=True)
class Table:
    """A finished table, with all that is needed to repeat it.

    Args:
        results: one per cell.
        model, model_hash: the model's name and the hash of its weights.
        judge: who judged.
        test_floor, test_count: Fréchet distance between training and test images, and how many test images.
        command: that makes it again.
        machine: in general words.
        precision: of the network.
        minutes: of all cells.
    """

    results: list[CellResult]
    model: str
    model_hash: str
    judge: str
    test_floor: float
    test_count: int
    command: str
    machine: str
    precision: str = "float32"
    minutes: float = 0.0

    # ------------------------------------------------------------ looking up

    def result(self, row: str, steps: int, quadratic: bool = False, seed: int | None = None) -> CellResult | None:
        """The result of a cell, None where there is none; by default of the first seed there is."""
        for one in self.results:
            cell = one.cell
            same = (cell.row, cell.steps, cell.quadratic) == (row, steps, quadratic)
            if same and seed in (None, cell.seed):
                return one
        return None

    def of_all_seeds(self, row: str, steps: int) -> list[float]:
        """The Fréchet distances of a cell with the scheduler's own timesteps, one for each seed, in their order."""
        return [
            one.figures.frechet
            for one in self.results
            if (one.cell.row, one.cell.steps, one.cell.quadratic) == (row, steps, False)
        ]

    @property
    def rows(self) -> list[str]:
        """The rows there are, in order."""
        return list(dict.fromkeys(one.cell.row for one in self.results))

    @property
    def columns(self) -> list[int]:
        """The numbers of steps there are, in order."""
        return sorted({one.cell.steps for one in self.results})

    def _in_order(self) -> list[CellResult]:
        """Linear timesteps first, the rows as they came."""
        return sorted(self.results, key=lambda one: one.cell.quadratic)

    # ------------------------------------------------------------ files

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The table that `to_json` wrote.

        Raises:
            ValueError: it is not one.
        """
        try:
            facts = json.loads(text)
            results = [
                CellResult(Cell(**one["cell"]), Figures(**one["figures"]), one["minutes"]) for one in facts["results"]
            ]
            return cls(**{**facts, "results": results})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"this is no table of `ddpm eval --table ddim` ({error})") from None

    def to_csv(self) -> str:
        """One line per cell, all figures."""
        lines = [{**asdict(one.cell), **asdict(one.figures), "minutes": one.minutes} for one in self.results]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The two distances as tables, then every cell with its interval, bias and floor, then where it comes from."""
        return "\n\n".join(
            [
                f"Fréchet distance to the training images ({self.judge})",
                self.grid("frechet"),
                "Kernel distance to the training images × 1000 (it has no bias by the number of samples)",
                self.grid("kernel", scale=1000),
                "Every cell; in brackets the 95 % bootstrap interval of the samples",
                self._details(),
                self.origin(),
            ]
        )

    def grid(self, figure: str, scale: float = 1.0) -> str:
        """One figure ("frechet" or "kernel") as a Markdown table, rows and columns as in the paper's."""
        lines = ["| | " + " | ".join(f"S = {steps}" for steps in self.columns) + " |"]
        lines.append("|---" * (len(self.columns) + 1) + "|")
        for row, quadratic in dict.fromkeys((one.cell.row, one.cell.quadratic) for one in self._in_order()):
            found = [self.result(row, steps, quadratic) for steps in self.columns]
            values = ["" if one is None else f"{scale * getattr(one.figures, figure):.3g}" for one in found]
            lines.append(f"| {row_title(row)}{', quadratic' * quadratic} | " + " | ".join(values) + " |")
        return "\n".join(lines)

    def _details(self) -> str:
        columns = (
            *("sampler", "S", "seed", "samples"),
            *("Fréchet", "bias of so few", "so many real images", "kernel × 1000", "minutes"),
        )
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for one in self.results:
            cell, f = one.cell, one.figures
            values = [
                row_title(cell.row) + ", quadratic" * cell.quadratic,
                f"{cell.steps} | {cell.seed} | {cell.num_samples:,}",
                f"{f.frechet:.3f} [{f.frechet_low:.3f}, {f.frechet_high:.3f}]",
                f"{f.frechet_bias:.3f} | {f.frechet_floor:.3f}",
                f"{1000 * f.kernel:.2f} [{1000 * f.kernel_low:.2f}, {1000 * f.kernel_high:.2f}]",
                f"{one.minutes:.1f}",
            ]
            lines.append("| " + " | ".join(values) + " |")
        return "\n".join(lines)

    def origin(self) -> str:
        """Where the table comes from, as a Markdown list."""
        kernel_floor = self.results[0].figures.kernel_floor
        floors = {one.cell.num_samples: one.figures.frechet_floor for one in self.results}
        floor = ", ".join(f"{count:,} real images would score {value:.3f}" for count, value in floors.items())
        return "\n".join(
            [
                f"- command: `{self.command}`",
                f"- model: {self.model}, weights {self.model_hash}, network in {self.precision}",
                f"- floor: {floor} (Fréchet; reckoned from the {self.test_count:,} test images there are, which score "
                f"{self.test_floor:.3f}); by kernel × 1000 they score {1000 * kernel_floor:.2f}",
                f"- seeds: {', '.join(map(str, sorted({one.cell.seed for one in self.results})))}",
                f"- {self.minutes:.0f} minutes on {self.machine}",
            ]
        )


def row_title(row: str) -> str:
    """How a row is called in a table."""
    return "σ̂" if row == SIGMA_HAT else f"η = {row}"


def few_steps_table(
    pipeline: DiffusionPipeline,
    judge: Judge,
    folder: str | Path,
    plan: Plan | None = None,
    model: str = "model",
    command: str = "",
    batch_size: int = 64,
    precision: str = "float32",
) -> Table:
    """Makes the table, or what of it is not yet in `folder`; Ctrl-C or a killed process loses one batch at most.

    Args:
        pipeline: its U-Net and its noise schedule are used.
        judge: from `named_judge` or `inception_judge`, made of the model's own dataset.
        folder: one folder per cell, then `table.json`, `table.csv` and `table.md`. Another judge of the same samples
            may use it too: the samples are kept.
        plan: which cells.
        model, command: for the table's record.
        batch_size: samples made at a time; it does not change them.
        precision: of the network, as in `SamplingSettings`.

    Raises:
        ValueError: a model and a judge that do not match, a plan that cannot be carried out (before any work), a folder
            that holds samples of another model, or a damaged batch of samples, by name.
    """
    plan = plan or Plan()
    cells = plan.cells()
    check_shape(judge.image_shape, pipeline.unet.config, f"the {judge.name} takes")
    T = len(pipeline.scheduler)
    for cell in cells:
        if not 4 <= cell.num_samples:
            raise ValueError(f"figures need at least 4 samples a cell, got {cell.num_samples}")
        if not 1 <= cell.steps <= T:
            raise ValueError(f"S (--columns) must lie in [1, {T}], the model's timesteps; got {cell.steps}")
    settings = [cell.settings(T, precision, plan.clip_sample) for cell in cells]
    root, weights = new_folder(folder), model_hash(pipeline.unet)
    total = sum(cell.num_samples * cell.steps for cell in cells)
    results = []
    with tqdm(total=total, desc="samples × steps", unit_scale=True, smoothing=0.02) as bar:
        for number, (cell, how) in enumerate(zip(cells, settings, strict=True), start=1):
            bar.set_postfix_str(f"cell {number} of {len(cells)}: {row_title(cell.row)}, S = {cell.steps}")
            result = _read(root / cell.name, cell, judge, weights, how)
            if result is None:
                result = _make(root / cell.name, cell, judge, weights, how, pipeline, batch_size, bar)
            results.append(result)
            bar.n = bar.last_print_n = sum(one.cell.num_samples * one.cell.steps for one in results)
    table = Table(
        results=results,
        model=model,
        model_hash=weights,
        judge=judge.name,
        test_floor=judge.floor,
        test_count=judge.test.count,
        command=command,
        machine=machine(pipeline.device),
        precision=precision,
        minutes=sum(one.minutes for one in results),
    )
    for name, text in ((RESULT, table.to_json()), ("table.csv", table.to_csv()), ("table.md", table.to_markdown())):
        write_file(root / name, text.encode())
    return table


def _facts(cell: Cell, judge: Judge, weights: str, settings: SamplingSettings) -> dict[str, Any]:
    """What figures depend on, in the form in which they are saved."""
    who = f"{judge.name} {judge.weights}".strip()
    facts = {"cell": asdict(cell), "judge": who, "model": weights, "settings": settings.facts()}
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _read(folder: Path, cell: Cell, judge: Judge, weights: str, settings: SamplingSettings) -> CellResult | None:
    """A finished cell; None where there is none, where it is damaged, or where it is of other figures.

    The samples are kept, so what cannot be read is judged anew; whether the samples themselves belong to this model is
    checked there.
    """
    try:
        saved = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        if {key: saved[key] for key in ("cell", "judge", "model", "settings")} != _facts(
            cell, judge, weights, settings
        ):
            return None
        return CellResult(cell, Figures(**saved["figures"]), float(saved["minutes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(
    folder: Path,
    cell: Cell,
    judge: Judge,
    weights: str,
    settings: SamplingSettings,
    pipeline: DiffusionPipeline,
    batch_size: int,
    bar: Any,
) -> CellResult:
    samples = generate(pipeline, cell.num_samples, settings, batch_size, folder, bar=bar)
    began = time.monotonic()
    figures = judge.figures(samples)
    minutes = sampling_minutes(folder) + (time.monotonic() - began) / 60
    record = {**_facts(cell, judge, weights, settings), "figures": asdict(figures), "minutes": minutes}
    write_file(folder / FIGURES, (json.dumps(record, indent=1) + "\n").encode())
    return CellResult(cell, figures, minutes)
