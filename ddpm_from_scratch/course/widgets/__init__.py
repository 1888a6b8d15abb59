"""Pictures that move under the learner's hand, one module each.

Each widget is one call, has labels, is worked by mouse or keyboard, and carries a fixed picture that is shown where
widgets are not (a file viewer, a web page). All of a widget's frames are drawn into one figure: what stands still is
drawn once, and only what moves is drawn again.
"""

from .interpolation import InterpolationExplorer, interpolation_explorer
from .monitor import Recorder, TrainingMonitor, training_monitor
from .noise import NoiseSlider, noise_slider
from .posterior import PosteriorExplorer, posterior_explorer
from .sampler import SamplerExplorer, sampler_explorer
from .schedule import ScheduleExplorer, schedule_explorer
from .tracer import UNetTracer, unet_tracer

__all__ = [
    "InterpolationExplorer",
    "NoiseSlider",
    "PosteriorExplorer",
    "Recorder",
    "SamplerExplorer",
    "ScheduleExplorer",
    "TrainingMonitor",
    "UNetTracer",
    "interpolation_explorer",
    "noise_slider",
    "posterior_explorer",
    "sampler_explorer",
    "schedule_explorer",
    "training_monitor",
    "unet_tracer",
]
