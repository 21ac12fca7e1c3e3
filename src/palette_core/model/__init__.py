"""Find which operation consumes which tensor of a model, by running it once."""

from palette_core.model.inputs import ExampleInputs, as_inputs, call_arguments
from palette_core.model.isolation import (
    Baseline,
    Change,
    evaluation_mode,
    restored_state,
    undisturbed,
)
from palette_core.model.tracing import trace

__all__ = [
    "Baseline",
    "Change",
    "ExampleInputs",
    "as_inputs",
    "call_arguments",
    "evaluation_mode",
    "restored_state",
    "trace",
    "undisturbed",
]
