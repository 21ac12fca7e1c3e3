"""Find which operation consumes which tensor of a model, by running it once."""

from palette_core.tracing.run import ExampleInputs, check_example_inputs, trace

__all__ = ["ExampleInputs", "check_example_inputs", "trace"]
