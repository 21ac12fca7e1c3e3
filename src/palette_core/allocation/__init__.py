"""A budget of bits: which tensor gets which candidate spec."""

from palette_core.allocation.allocate import Allocated, Allocation, allocate
from palette_core.allocation.candidates import Judged
from palette_core.allocation.predictions import Compared, compare_predictions

__all__ = ["Allocated", "Allocation", "Compared", "Judged", "allocate", "compare_predictions"]
