"""Sensitive k-means: squared gradients of the loss as the weights of the clustering."""

from palette_core.calibration.mode import CalibrationOptions, Results, calibration
from palette_core.calibration.session import Calibration

__all__ = ["Calibration", "CalibrationOptions", "Results", "calibration"]
