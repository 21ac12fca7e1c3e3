"""The kind *LUT quantizer*: what makes small numbers of a table's entries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from palette_core.errors import did_you_mean
from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec

# By name, so that registering imports no torch.
KNOWN_DTYPES = (
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float4_e2m1fn_x2", "float16", "bfloat16", "float32", "float64"),
)


class LutQuantizer(ABC):
    """Maps LUT entries to integers or 8-bit floats with one scale per LUT."""

    @abstractmethod
    def quantize(self, lut: types.Tensor) -> types.QuantizedLut:
        """Quantize ``[B, K, D]`` floating entries; scale and zero point are ``[B, 1, 1]``."""


@dataclass(frozen=True, kw_only=True)
class LutQuantizerEntry(PluginEntry):
    """A LUT quantizer.

    Attributes:
        factory: makes the quantizer from the ``lut_qspec`` and validated options.
        dtypes: names of the LUT dtypes it can make, as torch has them (``"int8"``).
        is_default: picked for its dtypes when ``lut_qspec.quantizer`` is None.
        error_bound: promised largest root mean square error of a table, relative to its largest
            magnitude; 1 promises no more than a table of zeros keeps.
        thread_safe: may be used by several threads at a time.
    """

    factory: Callable[[types.QuantizationSpec, Any], LutQuantizer]
    dtypes: tuple[str, ...]
    is_default: bool = False
    error_bound: float = 1.0
    thread_safe: bool = False

    def claims(self) -> frozenset[str]:
        """Return the name, and the dtypes that it is the default for."""
        default = self.dtypes if self.is_default else ()
        return super().claims() | {f"to be the default for {dtype}" for dtype in default}

    def check(self) -> None:
        """Refuse dtypes that are not given by name, and names of none.

        Raises:
            TypeError: naming what is no name.
            ValueError: naming a dtype that torch does not have.
        """
        super().check()
        dtypes: Any = self.dtypes
        if not isinstance(dtypes, tuple) or not dtypes or not all(type(d) is str for d in dtypes):
            raise TypeError(
                f"dtypes of {self.name!r} must be a tuple of names such as ('int8',), "
                f"got {dtypes!r}"
            )
        for dtype in dtypes:
            if dtype not in KNOWN_DTYPES:
                raise ValueError(
                    f"dtypes of {self.name!r}: torch has no {dtype!r}"
                    f"{did_you_mean(dtype, KNOWN_DTYPES)}; names are {', '.join(KNOWN_DTYPES)}"
                )


@hookspec
def palette_core_lut_quantizers() -> Iterable[LutQuantizerEntry]:
    """Return the LUT quantizers that this distribution provides.

    Example::

        from palette_core.plugins import (
            INTERFACE_VERSION,
            LutQuantizer,
            LutQuantizerEntry,
            hookimpl,
        )


        class Powers(LutQuantizer):
            '''Eight-bit integers whose scale is a power of two.'''

            def quantize(self, lut):
                import torch

                from palette_core.tensors import QuantizedLut

                top = lut.float().abs().amax((1, 2), keepdim=True).clamp(min=2.0**-100)
                scale = torch.exp2(torch.ceil(torch.log2(top / 127)))
                values = (lut.float() / scale).round().to(torch.int8)
                return QuantizedLut(values, scale)


        @hookimpl
        def palette_core_lut_quantizers():
            return [
                LutQuantizerEntry(
                    name="powers",
                    summary="8-bit integers, scaled by powers of two",
                    interface=INTERFACE_VERSION,
                    factory=lambda spec, options: Powers(),
                    dtypes=("int8",),
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
