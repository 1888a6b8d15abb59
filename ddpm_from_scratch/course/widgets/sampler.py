"""The sampler explorer of lesson 08: two samplers side by side from the same noise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import torch
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_from_scratch.course import plots
from ddpm_from_scratch.gaussian import randn
from ddpm_from_scratch.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_from_scratch.schedulers.base import TIMESTEP_SPACINGS

from .base import LIVE_DPI, Explorer, LiveFigure, Work, notice, one_call, option_buttons

DDIM, SMALL, LARGE = "DDIM", "DDPM, σ² = β̃", "DDPM, σ² = β"
SHORT = (("DDIM", DDIM), ("DDPM β̃", SMALL), ("DDPM β", LARGE))
"""The samplers as their narrow buttons name them."""
SIDES = ("A", "B")
STRIP = 7
FRAME_SECONDS = 0.15
LATE = 0.75
"""The share of the timesteps below which a trajectory begins too late: pure noise is no x_t there."""

SAMPLER_ALT = (
    "Two halves, sampler A and sampler B. In each, the top row shows the noisy images x_t at the chosen moment, the "
    "bottom row the clean images that the network predicts from them."
)


@dataclass(frozen=True)
class Choice:
    """What one side samples with: `sampler` is `DDIM`, `SMALL` or `LARGE`; `eta` counts for DDIM alone."""

    sampler: str = DDIM
    steps: int = 10
    eta: float = 0.0
    spacing: str = "leading"

    def __str__(self) -> str:
        eta = f", η = {self.eta:g}" if self.sampler == DDIM else ""
        return f"{self.sampler}{eta}, {self.steps} step{'s' * (self.steps > 1)}, {self.spacing}"


@dataclass
class Trajectory:
    """`x[i]` is the state after i steps, `x0[i]` the clean image predicted from it, `t[i]` its timestep, -1 at the end.

    The state at the end is clean: there `x0` repeats the last prediction.
    """

    x: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)
    t: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.x) - 1

    def at(self, share: float) -> int:
        """The moment, from 0 to `steps`, at a share of the way from 0 to 1."""
        return round(share * self.steps)


def make_scheduler(choice: Choice, config: Any) -> DDIMScheduler | DDPMScheduler:
    """The scheduler of a choice, for the noise schedule of `config`, its timesteps set."""
    kind: Any = DDIMScheduler if choice.sampler == DDIM else DDPMScheduler
    variance = {SMALL: {"variance_type": "fixed_small"}, LARGE: {"variance_type": "fixed_large"}}
    scheduler = kind.from_config(config, timestep_spacing=choice.spacing, **variance.get(choice.sampler, {}))
    scheduler.set_timesteps(choice.steps)
    return scheduler


@torch.no_grad()
def trajectory(
    unet: Any, config: Any, choice: Choice, count: int, seed: int, step_done: Callable[[], None] = lambda: None
) -> Trajectory:
    """`count` samples with everything on the way; the images are those of a pipeline with the same seed.

    Args:
        unet: an ε-, x_0- or v-predicting network, as the scheduler's `config` says.
        step_done: called after every step.
    """
    scheduler: Any = make_scheduler(choice, config)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    x = randn((count, unet.config.in_channels, height, width), generator, unet.device, unet.dtype)
    options: dict[str, Any] = {"eta": choice.eta} if choice.sampler == DDIM else {}
    path = Trajectory()
    for t in scheduler.timesteps.tolist():
        before, (x, x0) = x, scheduler.step(unet(x, t).sample, t, x, generator=generator, return_dict=False, **options)
        path.x.append(before)
        path.x0.append(x0)
        path.t.append(t)
        step_done()
    path.x.append(x)
    path.x0.append(path.x0[-1])
    path.t.append(-1)
    return path


class SamplerExplorer(Explorer):
    """Two samplers from the same noise: choose, sample, then play or scrub what happened on the way.

    Sampling runs in a thread of its own, shows its progress and can be stopped; the last finished trajectories stay
    in view meanwhile. Scrubbing draws stored states and asks no network.

    Args:
        unet: a trained network.
        scheduler: its noise schedule.
        choices: what the two sides start with.
        count: images of each side.
        seed: of x_T and of the steps' noise.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        choices: tuple[Choice, Choice] = (Choice(), Choice(SMALL)),
        count: int = 4,
        seed: int = 0,
    ) -> None:
        self.unet, self.config, self.count = unet.eval(), scheduler.config, count
        self.paths = [trajectory(self.unet, self.config, choice, count, seed) for choice in choices]
        self.choices, self.drawn_seed = list(choices), seed
        with rc_context(plots.STYLE):
            self.live = LiveFigure(*self._draw())
        super().__init__(self._controls(seed), SAMPLER_ALT, self._fixed())
        self.picture.width = f"{plots.WIDTH * plots.CSS_INCH:.0f}"
        self.redraw()

    # ------------------------------------------------------------ controls

    def _controls(self, seed: int) -> list[ipywidgets.Widget]:
        self.sides = [self._side(side, choice) for side, choice in zip(SIDES, self.choices, strict=True)]
        self.seed = ipywidgets.BoundedIntText(seed, 0, 2**31 - 1, description="seed", layout={"width": "11em"})
        self.work = Work("Sample", self.start, self.say, "the samples from before")
        self.moment = ipywidgets.IntSlider(
            0, 0, 1, description="step", layout={"width": "26em"}, tooltip="arrow keys move by one step"
        )
        self.play = ipywidgets.ToggleButton(False, description="Play", icon="play", tooltip="from noise to image")
        self.paused = threading.Event()
        self._set_range()
        self.play.observe(self._play_or_pause, names="value")
        for control in (*(control for side in self.sides for control in side.values()), self.seed, self.moment):
            control.observe(lambda change: self.redraw(), names="value")
        columns = [ipywidgets.VBox(list(side.values())) for side in self.sides]
        return [*columns, ipywidgets.VBox([self.seed, self.work]), ipywidgets.HBox([self.play, self.moment])]

    def _side(self, side: str, choice: Choice) -> dict[str, ipywidgets.Widget]:
        layout = {"width": "25em"}
        controls = {
            "sampler": option_buttons(SHORT, choice.sampler, f"{side}: sampler", "6em"),
            "steps": ipywidgets.BoundedIntText(
                choice.steps, 1, self.config.num_train_timesteps, description=f"{side}: steps", layout=layout
            ),
            "eta": ipywidgets.FloatSlider(
                choice.eta, min=0, max=1, step=0.05, description=f"{side}: η", layout=layout, disabled=True
            ),
            "spacing": option_buttons(
                [(name, name) for name in TIMESTEP_SPACINGS], choice.spacing, f"{side}: spacing", "6em"
            ),
        }

        def only_ddim_has_eta(change: Any = None) -> None:
            controls["eta"].disabled = controls["sampler"].value != DDIM

        controls["sampler"].observe(only_ddim_has_eta, names="value")
        only_ddim_has_eta()
        return controls

    def _set_range(self) -> None:
        """As many moments as the longer trajectory has; the shorter one keeps pace by its share of the way."""
        self.moment.max = max(path.steps for path in self.paths)
        self.moment.value = self.moment.max

    # ------------------------------------------------------------ playing

    def _play_or_pause(self, change: Any) -> None:
        self.play.description, self.play.icon = ("Pause", "pause") if change["new"] else ("Play", "play")
        self.paused.set()
        if change["new"]:
            self.paused = threading.Event()
            threading.Thread(target=self._play, args=(self.paused,), daemon=True).start()

    def _play(self, paused: threading.Event) -> None:
        """Moves the slider to its end, from the start if it stands there, until paused."""
        if self.moment.value == self.moment.max:
            self.moment.value = 0
        while not paused.wait(FRAME_SECONDS) and self.moment.value < self.moment.max:
            self.moment.value += 1
        if not paused.is_set():
            self.play.value = False

    # ------------------------------------------------------------ sampling

    def start(self) -> None:
        """Sample with what the controls say, in a thread."""
        choices, seed = self._chosen()

        def job(step_done: Callable[[], None]) -> None:
            paths = [trajectory(self.unet, self.config, choice, self.count, seed, step_done) for choice in choices]
            with self.live.lock:
                self.choices, self.paths, self.drawn_seed = choices, paths, seed
                self._set_range()
                self.redraw()

        self.work.start(sum(choice.steps for choice in choices), job)

    def _chosen(self) -> tuple[list[Choice], int]:
        """What the controls say: the choice of each side, and the seed."""
        sides = [{name: control.value for name, control in side.items()} for side in self.sides]
        return [Choice(**side) for side in sides], self.seed.value

    # ------------------------------------------------------------ drawing

    def frame(self, moment: int) -> bytes:
        """The picture after `moment` steps of the longer trajectory, as a PNG file."""
        with self.live.lock:
            share = moment / max(path.steps for path in self.paths)
            for path, grid, title in zip(self.paths, self.grids, self.titles, strict=True):
                i = path.at(share)
                grid.set_data(plots.montage(torch.cat([path.x[i], path.x0[i]]), self.count))
                title.set_text(f"{i} of {path.steps} steps, " + (f"t = {path.t[i]}" if i < path.steps else "done"))
            return self.live.png()

    def redraw(self) -> None:
        """Show the moment that the slider says."""
        with self.live.lock:
            self.picture.value = self.frame(self.moment.value)
            self.say(self._words())

    def _words(self) -> str:
        """What is drawn, whether the controls ask for something else, and which side begins too late."""
        named = [f"<b>{side}</b>: {choice}" for side, choice in zip(SIDES, self.choices, strict=True)]
        words = " &nbsp; ".join([*named, f"seed {self.drawn_seed}"])
        if self._chosen() != (self.choices, self.drawn_seed):
            running = self.work.thread.is_alive()
            words += ". Sampling for the new choices." if running else ". Press Sample for the new choices."
        T = self.config.num_train_timesteps
        for side, path in zip(SIDES, self.paths, strict=True):
            if path.t[0] < LATE * T:
                words += notice(
                    f"{side} begins at t = {path.t[0]} with pure noise, where the network expects an image in it. "
                    f"Trailing spacing begins at t = {T - 1}."
                )
        return words

    def _draw(self) -> tuple[Figure, list[Artist]]:
        figure = plots.new_figure(plots.WIDTH, 2.35, 1, 2)
        figure.set_dpi(LIVE_DPI)
        self.grids, self.titles = [], []
        for side, ax in zip(SIDES, figure.axes, strict=True):
            blank = torch.zeros_like(torch.cat([self.paths[0].x[0]] * 2))
            plots.draw_images(ax, blank, self.count, row_labels=["$x_t$", r"$\hat x_0$"])
            ax.set_title(side, fontweight="bold")
            self.grids.append(ax.images[0])
            text = "1000 of 1000 steps, t = 1000"
            self.titles.append(ax.text(1, 1.03, text, transform=ax.transAxes, ha="right", va="bottom"))
        return figure, [*self.grids, *self.titles]

    def _fixed(self) -> str:
        """A strip of the first image of both sides."""
        shares = [i / (STRIP - 1) for i in range(STRIP)]
        rows, labels, titles = [], [], []
        for side, path in zip(SIDES, self.paths, strict=True):
            moments = [path.at(share) for share in shares]
            rows += [torch.stack([values[i][0] for i in moments]) for values in (path.x, path.x0)]
            labels += [f"{side}: $x_t$", f"{side}: $\\hat x_0$"]
            titles.append([f"t = {path.t[i]}" if i < path.steps else "done" for i in moments])
        both = [a if a == b else f"{a}\n{b}" for a, b in zip(*titles, strict=True)]
        figure = plots.grid_figure(torch.cat(rows), STRIP, titles=both, row_labels=labels)
        named = "; ".join(f"{side}: {choice}" for side, choice in zip(SIDES, self.choices, strict=True))
        alt = (
            f"Four rows of {STRIP} pictures from noise to an image, for two samplers from the same noise ({named}): "
            "each sampler's noisy image and the clean image predicted from it, which sharpens from left to right."
        )
        caption = (
            f"What the explorer plays, as a strip. {named}. Both start from the same noise. In JupyterLab you choose "
            "the samplers, and play or scrub."
        )
        return plots.to_html(plots.to_png(figure), figure.get_figwidth(), alt, caption)


sampler_explorer = one_call(SamplerExplorer)
