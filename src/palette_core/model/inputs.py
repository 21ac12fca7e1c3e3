"""Inputs of a model: the one meaning of example inputs and of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tuple or list of positional inputs, a mapping of keyword inputs, or the only input."""


def as_inputs(value: Any, what: str = "example_inputs") -> tuple[Any, ...] | dict[str, Any]:
    """Return model inputs as a tuple of positional or a dictionary of keyword inputs.

    Inputs may be anything that the model takes, ``None`` and ``False`` among it.

    Args:
        value: inputs as users write them; a lone tensor is the only input.
        what: what to call them in an error.

    Raises:
        TypeError: neither a tensor, a tuple or list, nor a mapping by name.
    """
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)):
        return tuple(value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    got = type(value).__name__
    if isinstance(value, Mapping):
        wrong = next(name for name in value if not isinstance(name, str))
        got = f"a mapping with the key {wrong!r}"
    raise TypeError(
        f"{what} must be a tuple of positional inputs, as in model(*inputs), a dictionary of "
        f"keyword inputs, as in model(**inputs), or one tensor, got {got}"
    )


def call_arguments(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return model inputs as positional and keyword arguments.

    Raises:
        TypeError: see `as_inputs`.
    """
    inputs = as_inputs(value)
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})
