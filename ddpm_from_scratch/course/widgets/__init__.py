"""Pictures that move under the learner's hand, one module each.

Each widget is one call, has labels, is worked by mouse or keyboard, and carries a fixed picture that is shown where
widgets are not (a file viewer, a web page). All of a widget's frames are drawn into one figure: what stands still is
drawn once, and only what moves is drawn again.
"""

from .interpolation import InterpolationExplorer, interpolation_explorer
from .noise import NoiseSlider, noise_slider

__all__ = ["InterpolationExplorer", "NoiseSlider", "interpolation_explorer", "noise_slider"]
