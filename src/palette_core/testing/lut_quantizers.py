"""Checks of LUT quantizers. Entries are judged as the core dequantizes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from palette_core.config.spec import QuantizationScheme, QuantizationSpec
from palette_core.plugins.kinds import LUT_QUANTIZER
from palette_core.tensors.codebook import QuantizedLut
from palette_core.tensors.dtypes import parse_dtype
from palette_core.testing._kit import Subject, check, demand, fail
from palette_core.testing._probes import bits, draw, global_rng_untouched, other_global_rng

_KIND = LUT_QUANTIZER
_CLOSE = 1e-5  # of the largest magnitude


def _quantizers(subject: Subject) -> Iterator[tuple[QuantizationSpec, Callable[[], Any]]]:
    """Yield a spec and what makes its quantizer, for every dtype, scheme and set of options."""
    for options in subject.options:
        for dtype in map(parse_dtype, subject.entry.dtypes):
            for scheme in QuantizationScheme:
                if dtype.is_floating_point and scheme is not QuantizationScheme.SYMMETRIC:
                    continue
                spec = QuantizationSpec(dtype=dtype, qscheme=scheme)
                yield spec, partial(subject.entry.factory, spec, options)


def _tables() -> dict[str, Tensor]:
    """Tables ``[B, K, D]`` by what is particular about them."""
    return {
        "normal": draw(3, 16, 1),
        "of vectors": draw(2, 8, 4, seed=1),
        "far from zero": draw(2, 16, 1, seed=2) * 0.1 + 5,
        "in float16": draw(2, 16, 1, dtype=torch.float16),
        "in float64": draw(2, 16, 1, dtype=torch.float64),
    }


def _quantize(quantizer: Any, lut: Tensor) -> QuantizedLut:
    return cast("QuantizedLut", quantizer.quantize(lut))


@check(_KIND)
def parts(subject: Subject) -> None:
    """Values have the table's shape and the spec's dtype; scale and zero point are [B, 1, 1]."""
    for spec, make in _quantizers(subject):
        for lut in _tables().values():
            made: object = _quantize(make(), lut)
            if not isinstance(made, QuantizedLut):
                fail(subject, f"quantize returned {type(made).__name__}, not a QuantizedLut")
            one = (lut.shape[0], 1, 1)
            zero = made.zero_point
            for what, got, right in (
                ("values of shape", made.values.shape, lut.shape),
                ("values of", made.values.dtype, spec.dtype),
                ("a scale of shape", made.scale.shape, one),
                ("a scale of", made.scale.dtype, torch.float32),
                ("a zero point of shape", one if zero is None else zero.shape, one),
                ("a zero point of", spec.dtype if zero is None else zero.dtype, spec.dtype),
            ):
                demand(subject, got == right, f"returned {what} {got}, expected {right}")


@check(_KIND)
def finite(subject: Subject) -> None:
    """Tables of zeros, and of very large or small entries, decode to finite ones."""
    for spec, make in _quantizers(subject):
        for unit in (0.0, 1e30, 1e-30):
            decoded = _quantize(make(), draw(2, 16, 1).clamp(-3, 3) * unit).dequantize()
            held = bool(decoded.isfinite().all())
            demand(subject, held, f"entries of about {unit:g} as {spec.dtype} are not finite")
            zero = unit > 0 or not bool(decoded.any())
            demand(subject, zero, f"a table of zeros as {spec.dtype} does not decode to zeros")


@check(_KIND)
def error_bound(subject: Subject) -> None:
    """The root mean square error of a table is within error_bound times its largest magnitude."""
    bound = subject.entry.error_bound
    for spec, make in _quantizers(subject):
        for what, lut in _tables().items():
            gap = (_quantize(make(), lut).dequantize().double() - lut.double()).flatten(1)
            error = gap.square().mean(1).sqrt() / lut.double().flatten(1).abs().amax(1)
            worst = float(error.max())
            text = f"a table {what} as {spec.dtype}, {spec.qscheme.value}: {worst:.3g} of {bound}"
            demand(subject, worst <= bound * (1 + 1e-3), text)


@check(_KIND)
def idempotent(subject: Subject) -> None:
    """Entries that decode from quantized ones are quantized to themselves."""
    for spec, make in _quantizers(subject):
        for what, lut in _tables().items():
            once = _quantize(make(), lut).dequantize()
            twice = _quantize(make(), once).dequantize()
            gap = float((once - twice).abs().max() / once.abs().max().clamp_min(1e-30))
            demand(
                subject,
                gap <= _CLOSE,
                f"a table {what} as {spec.dtype}, {spec.qscheme.value}, quantized again, moves "
                f"by {gap:.3g} of its largest entry",
            )


@check(_KIND)
def tables_apart(subject: Subject) -> None:
    """A table is quantized the same with other tables beside it, or with none."""
    for spec, make in _quantizers(subject):
        lut = draw(3, 16, 1) * torch.tensor([1.0, 50.0, 0.01])[:, None, None]
        together = _quantize(make(), lut).dequantize()
        alone = torch.cat([_quantize(make(), lut[i : i + 1]).dequantize() for i in range(3)])
        same = bits(together) == bits(alone)
        demand(subject, same, f"tables as {spec.dtype} depend on those beside them")


@check(_KIND)
def inputs_untouched(subject: Subject) -> None:
    """The table is left as it was, and so are the global random states."""
    for _, make in _quantizers(subject):
        for lut in _tables().values():
            before = bits(lut)
            with global_rng_untouched(subject):
                _quantize(make(), lut)
            demand(subject, bits(lut) == before, "quantize has written to its table")


@check(_KIND)
def same_result(subject: Subject) -> None:
    """The same table gives the same result bit for bit, from a quantizer made anew too."""
    for spec, make in _quantizers(subject):
        lut, once = draw(3, 16, 1), make()
        made = []
        for state, quantizer in enumerate((once, once, make())):
            with other_global_rng(state):
                made.append(bits(_quantize(quantizer, lut).dequantize()))
        same = made[0] == made[1] == made[2]
        demand(subject, same, f"one table has two forms in {spec.dtype}, {spec.qscheme.value}")
