"""Fields of the reference's configs (coreai-opt 0.4.0) that ours lack: what they may say here.

The reference writes all its fields. Those of its quantizer hold what follows from dtype and
scheme, or Python classes; they are accepted where they say what happens here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from palette_core._common.strict import Foreign
from palette_core.tensors.dtypes import FP8_DTYPES, parse_dtype

_Fields = Mapping[str, Any]


def _is_inactive(value: Any, fields: _Fields) -> bool:
    del fields
    return value is None or (
        isinstance(value, Mapping) and all(inner is None for inner in value.values())
    )


def _equals(*accepted: Any) -> Callable[[Any, _Fields], bool]:
    return lambda value, fields: any(value == item for item in accepted)


def _is_class(*names: str) -> Callable[[Any, _Fields], bool]:
    """Accept a class of one of these names: itself, its name with or without module, its text."""

    def accepts(value: Any, fields: _Fields) -> bool:
        del fields
        text = value.__name__ if isinstance(value, type) else value
        return isinstance(text, str) and text.rpartition(".")[2].rstrip("'>") in names

    return accepts


def _is_default_strategy(value: Any, fields: _Fields) -> bool:
    del fields
    return value is None or (isinstance(value, Mapping) and dict(value) == {"type": "default"})


def _range_of(fields: _Fields) -> tuple[float, float] | None:
    """Return the least and the largest value that the reference derives for dtype and scheme."""
    dtype = parse_dtype(fields.get("dtype", torch.int8))
    if dtype in FP8_DTYPES:
        info = torch.finfo(dtype)
        return info.min, info.max
    if dtype not in (torch.int8, torch.uint8):
        return None
    low, high = (-128, 127) if dtype is torch.int8 else (0, 255)
    clipped = str(fields.get("qscheme", "")).endswith("symmetric_with_clipping")
    return low + (clipped and dtype is torch.int8), high


def _is_bound(at: int) -> Callable[[Any, _Fields], bool]:
    def accepts(value: Any, fields: _Fields) -> bool:
        try:
            bounds = _range_of(fields)
        except ValueError:  # the dtype is reported itself
            return True
        return value is None or (bounds is not None and value == bounds[at])

    return accepts


def _is_range(value: Any, fields: _Fields) -> bool:
    return value is None or (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(_is_bound(at)(value[at], fields) for at in (0, 1))
    )


def _is_same_dtype(value: Any, fields: _Fields) -> bool:
    try:
        return value is None or bool(parse_dtype(value) == parse_dtype(fields.get("dtype", "int8")))
    except ValueError:
        return False


_WEIGHTS_ONLY = Foreign(
    _is_inactive, "palettization is weight-only; say what happens to weights in op_state_spec"
)

of_operations: Mapping[str, Foreign] = {
    "op_input_spec": _WEIGHTS_ONLY,
    "op_output_spec": _WEIGHTS_ONLY,
}

of_modules: Mapping[str, Foreign] = {
    **of_operations,
    "module_input_spec": _WEIGHTS_ONLY,
    "module_output_spec": _WEIGHTS_ONLY,
}

of_palettization: Mapping[str, Foreign] = {
    "training_strategy_spec": Foreign(
        _is_default_strategy,
        "only {type: default}, which trains nothing, is the same here; "
        "did you mean 'training_strategy'?",
    ),
}

_FORMULA = "tables are quantized by scale and zero point, over the range of their entries"

of_quantization: Mapping[str, Foreign] = {
    "qformulation": Foreign(_equals(None, "zp"), f"it can only be 'zp': {_FORMULA}"),
    "fake_quantize_cls": Foreign(
        _is_class("_DefaultFakeQuantizeImpl", "default"), f"it can only be the default: {_FORMULA}"
    ),
    "qparam_calculator_cls": Foreign(
        _is_class("_DefaultQParamsCalculator", "default"), f"it can only be the default: {_FORMULA}"
    ),
    "range_calculator_cls": Foreign(
        _is_class("MinMaxRangeCalculator", "minmax"), f"it can only be the default: {_FORMULA}"
    ),
    "float_range": Foreign(
        _equals(None, [None, None], (None, None)), f"it can only be null: {_FORMULA}"
    ),
    "n_bits": Foreign(_equals(None, 8), "entries of quantized tables have 8 bits"),
    "target_dtype": Foreign(_is_same_dtype, "it can only be the dtype itself"),
    "_quant_range": Foreign(_is_range, "it can only be what dtype and qscheme imply"),
    "quant_min": Foreign(_is_bound(0), "it can only be what dtype and qscheme imply"),
    "quant_max": Foreign(_is_bound(1), "it can only be what dtype and qscheme imply"),
}
