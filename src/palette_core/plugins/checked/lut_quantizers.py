"""LUT quantizers at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from palette_core.errors import ClusteringError
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.guards import guarded, make
from palette_core.plugins.kinds import LUT_QUANTIZER
from palette_core.plugins.lut_quantizers import LutQuantizer
from palette_core.tensors.palettized import QuantizedLut

if TYPE_CHECKING:
    from palette_core.config.spec import QuantizationSpec


def make_lut_quantizer(
    catalog: Catalog, name: str | None, spec: QuantizationSpec | None, tensor: str
) -> LutQuantizer | None:
    """Make the LUT quantizer ``name`` for one tensor; None where its tables stay floats.

    Raises:
        PluginOptionsError: its options do not validate.
        ClusteringError: making it fails, or makes something else.
    """
    if name is None or spec is None:
        return None
    item = catalog[LUT_QUANTIZER].find(name)
    made, who = make(item, spec.quantizer_options, spec, tensor=tensor)
    return _CheckedLutQuantizer(who, made, spec.dtype)


@final
class _CheckedLutQuantizer(LutQuantizer):
    def __init__(self, who: str, quantizer: LutQuantizer, dtype: torch.dtype) -> None:
        self._who, self._quantizer, self._dtype = who, quantizer, dtype

    def quantize(self, lut: Tensor) -> QuantizedLut:
        """Quantize, and check what comes out.

        Raises:
            ClusteringError: the plug-in fails, or returns what are no quantized tables.
        """
        made = guarded(self._who, ClusteringError, lambda: self._quantizer.quantize(lut))
        check_quantized(self._who, made, lut, self._dtype)
        return made


def check_quantized(who: str, made: object, lut: Tensor, dtype: torch.dtype | None = None) -> None:
    """Refuse what is not the quantized form of tables ``[B, K, D]``.

    Args:
        who: the plug-in, for the message.
        made: what it returned.
        lut: the tables.
        dtype: what the spec asks for; None takes any.

    Raises:
        ClusteringError: naming the part that is wrong.
    """
    if not isinstance(made, QuantizedLut):
        raise ClusteringError(f"{who} returned {type(made).__name__}, not a QuantizedLut")
    one = (lut.shape[0], 1, 1)
    zero = made.zero_point
    for what, got, right in (
        ("values", made.values.shape, lut.shape),
        ("values", made.values.dtype, dtype or made.values.dtype),
        ("values on", made.values.device, lut.device),
        ("a scale of shape", made.scale.shape, one),
        ("a zero point of shape", one if zero is None else zero.shape, one),
        ("a zero point", made.values.dtype if zero is None else zero.dtype, made.values.dtype),
    ):
        if got != right:
            raise ClusteringError(f"{who} returned {what} {_text(got)}, expected {_text(right)}")
    if not bool(torch.isfinite(made.dequantize()).all()):
        raise ClusteringError(f"{who} returned entries or scales that are NaN or infinite")


def _text(value: object) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)
