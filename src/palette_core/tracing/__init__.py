"""Find which operation consumes which tensor of a model, by running it once."""

from palette_core.tracing.op_types import op_type_of
from palette_core.tracing.run import ExampleInputs, check_example_inputs, trace
from palette_core.tracing.unchanged import evaluation_mode, restored_values, uncompiled

__all__ = [
    "ExampleInputs",
    "check_example_inputs",
    "evaluation_mode",
    "op_type_of",
    "restored_values",
    "trace",
    "uncompiled",
]
