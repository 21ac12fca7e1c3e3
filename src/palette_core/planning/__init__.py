"""From a model's graph and a config to a plan."""

from palette_core.planning.check import check_names
from palette_core.planning.coverage import Coverage, DenseWeights
from palette_core.planning.make import (
    OnIncompatible,
    check_backend_named,
    make_plan,
    refusals,
    refuse_program,
)
from palette_core.planning.records import DenseTensor, Plan, SkippedTensor, TensorPlan

__all__ = [
    "Coverage",
    "DenseTensor",
    "DenseWeights",
    "OnIncompatible",
    "Plan",
    "SkippedTensor",
    "TensorPlan",
    "check_backend_named",
    "check_names",
    "make_plan",
    "refusals",
    "refuse_program",
]
