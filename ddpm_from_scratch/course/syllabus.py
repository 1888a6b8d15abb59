"""The fourteen lessons as data, and the map and the table drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from . import plots


@dataclass(frozen=True)
class Lesson:
    """One lesson.

    Args:
        number: 0 to 13.
        title: a few words.
        minutes: time to work through it.
        stage: the part of the course it belongs to, a key of `STAGES`.
        builds: the modules of the package that its exercises become; "" where it builds none.
        answers: the question that it answers.
    """

    number: int
    title: str
    minutes: int
    stage: str
    builds: str
    answers: str


STAGES = ("Equations", "Network", "Train", "Sample", "Use")

LESSONS = (
    Lesson(0, "Start here", 20, "Equations", "", "Does everything run, and what will I be able to do?"),
    Lesson(1, "The forward process", 60, "Equations", "gaussian", "How does an image turn into noise, exactly?"),
    Lesson(2, "Beta schedules", 60, "Equations", "schedules", "How fast should it turn into noise?"),
    Lesson(3, "The reverse process", 60, "Equations", "gaussian", "What must a network predict to go back, and why?"),
    Lesson(4, "U-Net blocks", 60, "Network", "models", "Which pieces is such a network made of?"),
    Lesson(5, "The U-Net", 50, "Network", "models.unet", "How do the pieces fit together?"),
    Lesson(6, "Training", 60, "Train", "training", "How does it learn, and how do I see that it does?"),
    Lesson(7, "DDPM sampling", 60, "Sample", "schedulers.ddpm", "How does noise turn into an image?"),
    Lesson(8, "DDIM sampling", 60, "Sample", "schedulers.ddim", "Can ten steps do the work of a thousand?"),
    Lesson(9, "The latent space", 60, "Sample", "", "What does the noise mean, and what lies between two images?"),
    Lesson(
        10,
        "Pipelines and Diffusers",
        60,
        "Use",
        "pipelines, hub",
        "How does this carry over to the library people use?",
    ),
    Lesson(11, "How good is it?", 60, "Use", "metrics", "How are samples judged, and when does a figure mislead?"),
    Lesson(12, "Going further", 60, "Use", "", "How are images made to order, and what do large models add?"),
    Lesson(13, "Capstone", 60, "Use", "", "Can I write all of it from a blank file?"),
)


def table() -> str:
    """The lessons as a markdown table."""
    rows = [
        f"| {n.number:02d} | {n.title} | {n.minutes} | {f'`{n.builds}`' if n.builds else ''} | {n.answers} |"
        for n in LESSONS
    ]
    return "\n".join(["| | lesson | minutes | builds | answers |", "|---|---|---:|---|---|", *rows])


def _draw_lesson(ax: Axes, lesson: Lesson, left: float, top: float, colour: str) -> None:
    box = FancyBboxPatch((left, top - 0.72), 0.86, 0.72, "round,pad=0,rounding_size=0.05", linewidth=1.4)
    box.set(facecolor=plots.PAPER, edgecolor=colour)
    ax.add_patch(box)
    ax.text(left + 0.05, top - 0.09, f"{lesson.number:02d}", color=plots.INK, weight="bold", size=9.5, va="top")
    ax.text(left + 0.81, top - 0.09, f"{lesson.minutes} min", color=plots.INK, size=8, ha="right", va="top")
    ax.text(left + 0.05, top - 0.32, lesson.title, color=plots.INK, size=8.5, va="top")
    ax.text(left + 0.05, top - 0.53, lesson.builds, color=plots.INK, size=7.5, va="top", family="DejaVu Sans Mono")


def map_figure() -> Figure:
    """The course at a glance: one column per stage, the lessons below each other, arrows from stage to stage."""
    with rc_context(plots.STYLE):
        figure = plots.new_figure(plots.WIDTH + 0.6, 3.7)
        ax = figure.axes[0]
        for column, (stage, colour) in enumerate(zip(STAGES, plots.COLOURS, strict=False)):
            ax.text(column, 0.1, stage, weight="bold", size=11)
            ax.plot([column, column + 0.86], [0.03, 0.03], color=colour, linewidth=3, linestyle="-")
            for row, lesson in enumerate(n for n in LESSONS if n.stage == stage):
                _draw_lesson(ax, lesson, column, -0.08 - 0.84 * row, colour)
            if column:
                ax.annotate(
                    "", (column, -0.44), (column - 0.13, -0.44), arrowprops={"arrowstyle": "->", "color": plots.INK}
                )
        ax.set(xlim=(-0.02, len(STAGES) - 0.12), ylim=(-3.4, 0.3))
        ax.axis("off")
    return figure
