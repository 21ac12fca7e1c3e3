"""Instructions on vectors of float32, as loops written for the processor are made of.

For numba's intrinsics: each function gets a ``builder``, and adds instructions to what it builds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from palette_core._common.kernels import has_feature

build: Any = cgutils  # has no types

# 32 registers of 64 bytes; else at least 16, of 32 bytes or two of 16.
WIDE = has_feature("avx512f")
REGISTER_BYTES = 64 if WIDE else 32
LANES = REGISTER_BYTES // 4  # float32 values of a register

WORD, LONG = ir.IntType(32), ir.IntType(64)


def data_of(target: Any, builder: Any, signature: Any, values: Any, array: int) -> Any:
    """Return where the elements of an argument begin."""
    return target.make_array(signature.args[array])(target, builder, values[array]).data


def begin_of(target: Any, builder: Any, signature: Any, values: Any, array: int) -> Any:
    """Return where an array is begun, which the argument after it says."""
    return builder.gep(data_of(target, builder, signature, values, array), [values[array + 1]])


def load(builder: Any, start: Any, lanes: int = LANES) -> Any:
    """Load a vector of float32."""
    kind = ir.VectorType(start.type.pointee, lanes)
    return builder.load(builder.bitcast(start, kind.as_pointer()), align=4)


def store(builder: Any, line: Any, start: Any) -> None:
    """Store a vector of float32."""
    builder.store(line, builder.bitcast(start, line.type.as_pointer()), align=4)


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector with one value in all its lanes."""
    kind = ir.VectorType(value.type, lanes)
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, WORD(0))
    everywhere = ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes)
    return builder.shuffle_vector(one, nothing, everywhere)


def plus(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """Return ``total + a * b``, in one instruction where there is such a one."""
    return builder.fadd(total, builder.fmul(a, b, flags=["contract"]), flags=["contract"])
