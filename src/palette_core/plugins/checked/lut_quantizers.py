"""LUT quantizers at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from palette_core.plugins.catalog import Catalog
from palette_core.plugins.kinds import LUT_QUANTIZER
from palette_core.plugins.lut_quantizers import LutQuantizer
from palette_core.plugins.making import Made, make
from palette_core.tensors.codebook import QuantizedLut

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
    made = make(catalog[LUT_QUANTIZER].find(name), spec.quantizer_options, spec, tensor=tensor)
    return _CheckedLutQuantizer(made, spec.dtype)


@final
class _CheckedLutQuantizer(LutQuantizer):
    def __init__(self, made: Made[LutQuantizer], dtype: torch.dtype) -> None:
        self._made, self._dtype = made, dtype

    def quantize(self, lut: Tensor) -> QuantizedLut:
        """Quantize, and check what comes out.

        Raises:
            ClusteringError: the plug-in fails, or returns what are no quantized tables.
        """
        given = self._made.apart(lut)
        made = self._made.ask(lambda quantizer: quantizer.quantize(given))
        check_quantized(self._made, made, lut, self._dtype)
        return self._made.apart(made)


def check_quantized(
    plugin: Made[Any], made: object, lut: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Refuse what is not the quantized form of tables ``[B, K, D]``.

    Args:
        plugin: that has returned them.
        made: what it returned.
        lut: the tables.
        dtype: what the spec asks for; None takes any.

    Raises:
        PaletteError: of the plug-in's kind, naming the part that is wrong.
    """
    if type(made) is not QuantizedLut:
        raise plugin.wrong(f"returned {type(made).__name__}, not a QuantizedLut")
    one = (lut.shape[0], 1, 1)
    zero = made.zero_point
    for part in (made.values, made.scale, lut if zero is None else zero):
        if not isinstance(part, Tensor):
            raise plugin.wrong(f"returned a {type(part).__name__} in a QuantizedLut, not a tensor")
    plugin.demand_plain(made.values, made.scale, zero)
    for what, got, right in (
        ("values", made.values.shape, lut.shape),
        ("values", made.values.dtype, dtype or made.values.dtype),
        ("values on", made.values.device, lut.device),
        ("a scale of shape", made.scale.shape, one),
        ("a zero point of shape", one if zero is None else zero.shape, one),
        ("a zero point", made.values.dtype if zero is None else zero.dtype, made.values.dtype),
    ):
        if got != right:
            raise plugin.wrong(f"returned {what} {_text(got)}, expected {_text(right)}")
    if not bool(torch.isfinite(made.dequantize()).all()):
        raise plugin.wrong("returned entries or scales that are NaN or infinite")


def _text(value: object) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)
