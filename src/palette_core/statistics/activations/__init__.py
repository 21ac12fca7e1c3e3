"""Second moments of what layers multiply their weights with, from calibration batches."""

from palette_core.statistics.activations.accumulate import Accumulator
from palette_core.statistics.activations.collect import CallKey, collect, compensated, moments_of
from palette_core.statistics.activations.feeding import Feeder
from palette_core.statistics.activations.guided import loss_weights
from palette_core.statistics.activations.look import completed, look
from palette_core.statistics.activations.options import Findings, InputCalibration, Loss, batches_of
from palette_core.statistics.activations.runs import Runner, Stop
from palette_core.statistics.activations.stages import find_stages, stage_of
from palette_core.statistics.activations.structure import Structure, find_structure
from palette_core.statistics.activations.watch import Seen

__all__ = [
    "Accumulator",
    "CallKey",
    "Feeder",
    "Findings",
    "InputCalibration",
    "Loss",
    "Runner",
    "Seen",
    "Stop",
    "Structure",
    "batches_of",
    "collect",
    "compensated",
    "completed",
    "find_stages",
    "find_structure",
    "look",
    "loss_weights",
    "moments_of",
    "stage_of",
]
