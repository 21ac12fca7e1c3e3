"""Buffers that a model writes to, as states of the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov
import torch
from openvino import PartialShape
from openvino import opset16 as op
from openvino.op.util import Variable, VariableInfo
from torch import Tensor

from openvino_backend.nodes import TYPES, Constants, Output


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
        # The CPU has no states of other integers, and computes with those of 32 bits anyway.
        stored = value if value.is_floating_point() else value.to(torch.int32)
        first = constants.tensor(stored)
        info = VariableInfo()
        info.data_type, info.data_shape = TYPES[stored.dtype], PartialShape(list(value.shape))
        info.variable_id = name
        variable = Variable(info)
        read = ov.op.read_value(first, variable)
        read.set_friendly_name(name)
        parameter.output(0).replace(_as(read.output(0), TYPES[value.dtype]))
        new = _as(result.input_value(0), info.data_type)
        model.add_variables([variable])
        model.add_sinks([ov.op.assign(new.get_node(), variable)])
        model.remove_result(result)
        model.remove_parameter(parameter)


def _as(value: Output, kind: Any) -> Output:
    """Return a value in a dtype, as the only output of a node: others cannot be assigned."""
    alone = value.get_node().get_output_size() == 1
    if alone and value.get_element_type() == kind:
        return value
    return op.convert(value, kind).output(0)
