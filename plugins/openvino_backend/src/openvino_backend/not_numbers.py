"""NaN in activations with bounds, which OpenVINO drops.

A rectifier with a slope of 0 below zero, as an ELU has it, keeps NaN and infinities, and the
runtime computes it together with what comes before, as it does ``Relu``. It takes an exponential,
4 to 6 % of the time of convolutions and products, and a third of that of depthwise ones. So,
unless it is asked for, it stands only where ``Relu`` would be an operation of its own anyway.
"""

from __future__ import annotations

import openvino as ov
from openvino import opset16 as op

from openvino_backend.nodes import Output

# What the runtime computes together with an activation that follows.
_FUSING = frozenset(
    (
        "Add", "BatchNormInference", "Convolution", "ConvolutionBackpropData", "Divide",
        "GroupConvolution", "GroupConvolutionBackpropData", "Interpolate", "MatMul", "Multiply",
        "MVN", "NormalizeL2", "ReduceMean", "ReduceSum", "Subtract",
    )
)  # fmt: skip


def keep_not_numbers(model: ov.Model, *, everywhere: bool) -> None:
    """Let activations with bounds give NaN where they read it, as torch's do.

    Args:
        model: changed in place.
        everywhere: also where that takes time.
    """
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Relu", "Clamp") or not node.get_element_type().is_real():
            continue
        given = node.input_value(0)
        if everywhere or given.get_node().get_type_name() not in _FUSING:
            users, names = node.output(0).get_target_inputs(), node.output(0).get_names()
            made = _rectified(given) if kind == "Relu" else _bounded(given, node.output(0))
            for user in users:
                user.replace_source_output(made)
            made.set_names(names)


def _rectified(given: Output) -> Output:
    return op.elu(given, 0.0).output(0)


def _bounded(given: Output, bounded: Output) -> Output:
    return op.select(op.is_nan(given), given, bounded).output(0)
