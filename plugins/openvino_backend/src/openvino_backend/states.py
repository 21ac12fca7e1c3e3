"""States of the runtime for values that a model keeps from call to call.

Those are buffers that it writes to, and arguments that its outputs are the next values of. Keys and
values that grow so, behind a look-up by ``beam_idx``, the CPU joins with the attention that reads
them, and adds to in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import openvino as ov
import torch
from openvino import PartialShape
from openvino import opset16 as op
from openvino.op.util import Variable, VariableInfo
from torch import Tensor

from openvino_backend.nodes import TYPES, Constants, Output

_PRECISIONS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class State:
    """A tensor that is kept from call to call.

    Attributes:
        name: of the buffer or the input.
        first: what it begins as.
        shape: for each axis its length, None where that varies.
    """

    name: str
    first: Tensor
    shape: tuple[int | None, ...]


def join_states(
    model: ov.Model,
    parameters: Sequence[Any],
    results: Sequence[Any],
    states: Sequence[State],
    constants: Constants,
) -> None:
    """Make inputs and outputs that stand for states what they stand for.

    The CPU rounds keys and values that grow to 8 bits unless it is told otherwise, so the file
    tells it to keep them as they are; who compiles it can still choose.

    Args:
        model: changed in place.
        parameters: the inputs, one for each state.
        results: the outputs that hold their new values.
        states: in the same order.
        constants: of the model.
    """
    for parameter, result, state in zip(parameters, results, states, strict=True):
        value = state.first
        # The CPU has no states of other integers, and computes with those of 32 bits anyway.
        stored = value if value.is_floating_point() else value.to(torch.int32)
        first = constants.tensor(stored)
        info = VariableInfo()
        info.data_type = TYPES[stored.dtype]
        info.data_shape = PartialShape([-1 if size is None else size for size in state.shape])
        info.variable_id = state.name
        variable = Variable(info)
        read = ov.op.read_value(first, variable)
        read.set_friendly_name(state.name)
        parameter.output(0).replace(_as(read.output(0), TYPES[value.dtype]))
        new = _as(result.input_value(0), info.data_type)
        model.add_variables([variable])
        model.add_sinks([ov.op.assign(new.get_node(), variable)])
        model.remove_result(result)
        model.remove_parameter(parameter)
    for precision in {_PRECISIONS.get(s.first.dtype) for s in states if None in s.shape} - {None}:
        model.set_rt_info(precision, ["runtime_options", "KV_CACHE_PRECISION"])


def _as(value: Output, kind: Any) -> Output:
    """Return a value in a dtype, as the only output of a node: others cannot be assigned."""
    alone = value.get_node().get_output_size() == 1
    if alone and value.get_element_type() == kind:
        return value
    return op.convert(value, kind).output(0)
