"""The assignment of points to look-up tables: one pass over all blocks, wherever they live."""

from palette_core.tensors.assignment.passes import (
    PassResult,
    assign_and_sum,
    metric,
    tidy_entries,
)

__all__ = ["PassResult", "assign_and_sum", "metric", "tidy_entries"]
