"""A budget of bits: which tensor gets which candidate spec."""

from palette_core.allocation.allocate import Allocated, Allocation, allocate
from palette_core.allocation.candidates import Judged

__all__ = ["Allocated", "Allocation", "Judged", "allocate"]
