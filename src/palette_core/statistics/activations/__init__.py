"""Second moments of what layers multiply their weights with, from calibration batches."""

from palette_core.statistics.activations.collect import collect
from palette_core.statistics.activations.compensating import Compensation
from palette_core.statistics.activations.feeding import Feeder
from palette_core.statistics.activations.look import completed, look
from palette_core.statistics.activations.options import Findings, InputCalibration, Loss, batches_of
from palette_core.statistics.activations.runs import Runner

__all__ = [
    "Compensation",
    "Feeder",
    "Findings",
    "InputCalibration",
    "Loss",
    "Runner",
    "batches_of",
    "collect",
    "completed",
    "look",
]
