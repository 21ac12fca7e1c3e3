"""Knowledge of operations: their names, which are palettized, and how inputs meet weights."""

from palette_core.operations.calls import COPIES
from palette_core.operations.names import EVERY_MATRIX, canonical_op_type
from palette_core.operations.table import (
    OperationTable,
    installed_operations,
    op_type_of,
    operations_of,
)

__all__ = [
    "COPIES",
    "EVERY_MATRIX",
    "OperationTable",
    "canonical_op_type",
    "installed_operations",
    "op_type_of",
    "operations_of",
]
