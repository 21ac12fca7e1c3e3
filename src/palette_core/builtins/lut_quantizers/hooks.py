"""Registers integer and 8-bit float entries of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palette_core.plugins import INTERFACE_VERSION, LutQuantizer, LutQuantizerEntry, hookimpl

if TYPE_CHECKING:
    from palette_core.plugins import QuantizationSpec


def _integer(spec: QuantizationSpec, options: Any) -> LutQuantizer:
    from palette_core.builtins.lut_quantizers.integer import IntegerLutQuantizer

    return IntegerLutQuantizer(spec, options)


def _float8(spec: QuantizationSpec, options: Any) -> LutQuantizer:
    from palette_core.builtins.lut_quantizers.float8 import Float8LutQuantizer

    return Float8LutQuantizer(spec, options)


@hookimpl
def palette_core_lut_quantizers() -> list[LutQuantizerEntry]:
    """Integer and 8-bit float entries."""
    return [
        LutQuantizerEntry(
            name="integer",
            summary="8-bit integers, symmetric or asymmetric, scale fitted to the entries",
            interface=INTERFACE_VERSION,
            factory=_integer,
            dtypes=("int8", "uint8"),
            is_default=True,
            error_bound=1 / 254,
            thread_safe=True,
        ),
        LutQuantizerEntry(
            name="float8",
            summary="8-bit floats e4m3fn and e5m2, scale fitted to the entries",
            interface=INTERFACE_VERSION,
            factory=_float8,
            dtypes=("float8_e4m3fn", "float8_e5m2"),
            is_default=True,
            error_bound=1 / 8,
            thread_safe=True,
        ),
    ]
