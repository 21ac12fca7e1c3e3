"""Find which operation consumes which tensor of a model, by running it once."""

from palette_core.model.isolation import evaluation_mode, restored_values, uncompiled
from palette_core.model.tracing import ExampleInputs, check_example_inputs, trace

__all__ = [
    "ExampleInputs",
    "check_example_inputs",
    "evaluation_mode",
    "restored_values",
    "trace",
    "uncompiled",
]
