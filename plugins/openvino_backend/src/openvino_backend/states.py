"""Buffers that a model writes to, as states of the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov
from openvino import opset6 as op
from torch import Tensor

from openvino_backend.nodes import Constants


def join_states(
    model: ov.Model,
    parameters: Sequence[Any],
    results: Sequence[Any],
    states: Sequence[tuple[str, Tensor]],
    constants: Constants,
) -> None:
    """Make inputs and outputs that stand for buffers states, which begin as the buffers are.

    Args:
        model: changed in place.
        parameters: the inputs, one for each state.
        results: the outputs that hold their new values.
        states: names and first values.
        constants: of the model.
    """
    for parameter, result, (name, value) in zip(parameters, results, states, strict=True):
        first = constants.tensor(value)
        kind, shape = first.get_element_type(), first.get_partial_shape()
        read = op.read_value(first, name, kind, shape)
        read.set_friendly_name(name)
        new = result.input_value(0)
        parameter.output(0).replace(read.output(0))
        new = read.output(0) if new.get_node() is parameter else result.input_value(0)
        model.add_sinks([op.assign(new, name)])
        model.remove_result(result)
        model.remove_parameter(parameter)
