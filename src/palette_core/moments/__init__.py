"""Second moments of what layers multiply their weights with, from calibration batches."""

from palette_core.moments.accumulate import Accumulator
from palette_core.moments.blocks import block_of, find_blocks
from palette_core.moments.collect import CallKey, collect, compensated, moments_of
from palette_core.moments.guided import loss_weights
from palette_core.moments.runs import Runner, Seen, Stop, as_batch, copied

__all__ = [
    "Accumulator",
    "CallKey",
    "Runner",
    "Seen",
    "Stop",
    "as_batch",
    "block_of",
    "collect",
    "compensated",
    "copied",
    "find_blocks",
    "loss_weights",
    "moments_of",
]
