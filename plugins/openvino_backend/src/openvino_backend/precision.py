"""Constants of float32 that are not palettized, stored in float16 where that keeps them."""

from __future__ import annotations

import numpy as np
import openvino as ov
import torch
from openvino import Type
from openvino import opset16 as op

from openvino_backend.nodes import Array, Constants

_SMALLEST = 32  # values; fewer are not worth a rounding
_NORMAL = float(np.finfo(np.float16).smallest_normal)


def store_in_float16(model: ov.Model, constants: Constants) -> None:
    """Put float16 constants, converted to float32 when read, in the place of float32 ones.

    Constants with values beyond 65504 stay as they are, and so do those in which no value reaches
    6.1e-5, where float16 begins to lose digits.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != Type.f32:
            continue
        values = node.get_data()
        if values.size < _SMALLEST or not _fits(values):
            continue
        users = node.output(0).get_target_inputs()
        stored = constants.tensor(torch.from_numpy(values.astype(np.float16)))
        wide = op.convert(stored, "f32").output(0)
        for user in users:
            user.replace_source_output(wide)


def _fits(values: Array) -> bool:
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size:
        return True
    return bool(finite.max() <= np.finfo(np.float16).max and finite.max() >= _NORMAL)
