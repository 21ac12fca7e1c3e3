"""Weights that an OpenVINO model cannot hold, known before anything is clustered."""

from __future__ import annotations

import torch

from palette_core.plugins import Refusal, TensorFacts
from palette_core.tensors import FP8_DTYPES, dtype_name

INDEX_BITS = (1, 2, 3, 4, 6, 8)
LUT_DTYPES = (torch.int8, torch.uint8, *FP8_DTYPES)
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(facts: TensorFacts) -> Refusal | None:
    """Return why a tensor cannot be exported, or None.

    Grids of any layout, vectors along any axis, 8-bit tables and scales per channel or block are
    all written in operations that OpenVINO has, so little is left to refuse.
    """
    spec = facts.spec
    if facts.dtype not in WEIGHT_DTYPES:
        return Refusal(
            f"OpenVINO computes {dtype_name(facts.dtype)} weights in float32; cast the model to "
            "float32 first"
        )
    if spec.n_bits not in INDEX_BITS:
        wider = min(bits for bits in INDEX_BITS if bits > spec.n_bits)
        return Refusal(
            f"OpenVINO has no {spec.n_bits}-bit indices, only {', '.join(map(str, INDEX_BITS))}",
            spec.model_copy(update={"n_bits": wider}),
        )
    if spec.lut_qspec is not None and spec.lut_qspec.dtype not in LUT_DTYPES:
        return Refusal(
            f"OpenVINO's look-up tables are not stored in {dtype_name(spec.lut_qspec.dtype)}",
            spec.model_copy(update={"lut_qspec": None}),
        )
    return None
