"""A model in 16 bits, as the file is to compute."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from palette_core.errors import BackendError


def in_precision(model: nn.Module, inputs: Any, name: str | None) -> tuple[nn.Module, Any]:
    """Return a copy of a model, and example inputs, in a floating dtype; themselves without one.

    Palettes stay what they are: indices are shared by both dtypes, float tables are rounded, and
    quantized ones decode to the other dtype.

    Args:
        model: left as it is.
        inputs: example inputs, or None.
        name: ``"float16"``, ``"bfloat16"`` or None.

    Raises:
        BackendError: a parameter or a buffer is too large for the dtype.
    """
    if name is None:
        return model, inputs
    dtype = getattr(torch, name)
    made = copy.deepcopy(model).to(dtype)
    before = dict(model.state_dict(keep_vars=True))
    for state, now in made.state_dict(keep_vars=True).items():
        if now.is_floating_point() and now.dtype.itemsize > 1:
            lost = before[state].isfinite() & ~now.isfinite()
            if bool(lost.any()):
                raise BackendError(
                    f"{state} has {float(before[state].detach()[lost][0]):g}, which {name} cannot "
                    "hold; choose compute_precision='bfloat16', or leave it out"
                )
    return made, tree_map_only(
        Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs
    )
