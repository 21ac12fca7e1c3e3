"""Second moments of what layers multiply their weights with, from calibration batches."""

from palette_core.statistics.activations.collect import collect, compensated
from palette_core.statistics.activations.feeding import Feeder
from palette_core.statistics.activations.look import completed, look
from palette_core.statistics.activations.options import Findings, InputCalibration, Loss, batches_of
from palette_core.statistics.activations.runs import Runner

__all__ = [
    "Feeder",
    "Findings",
    "InputCalibration",
    "Loss",
    "Runner",
    "batches_of",
    "collect",
    "compensated",
    "completed",
    "look",
]
