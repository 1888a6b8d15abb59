"""Pictures that move under the learner's hand, one module each.

Each widget is one call, has labels, is worked by mouse or keyboard, and carries a fixed picture that is shown where
widgets are not (a file viewer, a web page). All of a widget's frames are drawn into one figure: what stands still is
drawn once, and only what moves is drawn again.
"""

from .monitor import Recorder, TrainingMonitor, training_monitor
from .noise import NoiseSlider, noise_slider

__all__ = ["NoiseSlider", "Recorder", "TrainingMonitor", "noise_slider", "training_monitor"]
