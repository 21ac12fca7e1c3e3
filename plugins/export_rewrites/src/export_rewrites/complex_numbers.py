"""Complex numbers as pairs of real ones: no converter takes all that is done with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from export_rewrites import fourier
from export_rewrites.complex_writer import SAME_FOR_BOTH, Writer, real_dtype, short_name
from export_rewrites.folding import held_constants

aten = torch.ops.aten
_JOINS = ("cat", "stack")
_FACTORS = ("mul", "div")
_OF_FIXED_SIZES = ("add", "sub", "_fft_c2c", "_fft_r2c", "_fft_c2r")


def write_out_complex(program: ExportedProgram) -> None:
    """Compute with real and imaginary parts wherever a program has complex numbers.

    Fourier transforms become products with matrices of cosines and sines. A program that does
    something else with complex numbers than is known here, or takes or gives them, stays as it is.

    Args:
        program: functional; changed in place.
    """
    held = held_constants(program)
    touched = [node for node in program.graph.nodes if _touches(node)]
    if touched and all(_known(node, held) for node in touched):
        writer = Writer(program, held, _WRITTEN)
        for node in touched:
            writer.write(node)
        program.graph.eliminate_dead_code()


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return isinstance(first, Tensor) and first.is_complex()


def _touches(node: fx.Node) -> bool:
    return _is_complex(node) or any(_is_complex(source) for source in node.all_input_nodes)


def _known(node: fx.Node, held: Any) -> bool:
    """Return whether a node can be written in real numbers."""
    if node.op == "placeholder":
        return node.name in held
    short = short_name(node)
    odd = (torch.dtype,) if short in _FACTORS else (torch.dtype, complex)
    if node.op != "call_function" or any(isinstance(value, odd) for value in node.args):
        return False
    if short in _JOINS:
        return all(_is_complex(source) for source in node.all_input_nodes)
    if short in _OF_FIXED_SIZES and not all(isinstance(n, int) for n in node.meta["val"].shape):
        return False
    return short in SAME_FOR_BOTH or short in _WRITTEN


# --- operations -----------------------------------------------------------------------------------


def _add(w: Writer, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    (c, d), (e, f) = w.parts(a), w.parts(b)
    real = w.sum(c, e, alpha) if isinstance(e, fx.Node) else w(aten.add.Tensor, c, e * alpha)
    # What is broadcast is so in both parts.
    shape = list(real.meta["val"].shape)
    return real, w(aten.expand.default, w.sum(d, f, alpha), shape)


def _sub(w: Writer, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    return _add(w, a, b, alpha=-alpha)


def _times(op: Any, w: Writer, a: Any, b: Any) -> Any:
    return _product(op, w, w.parts(a), w.parts(b))


def _product(op: Any, w: Writer, first: Any, second: Any) -> Any:
    (c, d), (e, f) = first, second
    real = w.sum(w.product(op, c, e), w.product(op, d, f), -1)
    return real, w.sum(w.product(op, c, f), w.product(op, d, e))


def _div(w: Writer, a: Any, b: Any) -> Any:
    if isinstance(b, complex):
        return _times(aten.mul.Tensor, w, a, 1 / b)
    e, f = w.parts(b)
    if f is None:
        c, d = w.parts(a)
        return w(aten.div.Tensor, c, e), w(aten.div.Tensor, d, e)
    size = w.sum(w(aten.mul.Tensor, e, e), w(aten.mul.Tensor, f, f))
    real, imaginary = _product(aten.mul.Tensor, w, w.parts(a), _conj(w, b))
    return w(aten.div.Tensor, real, size), w(aten.div.Tensor, imaginary, size)


def _conj(w: Writer, a: Any) -> Any:
    real, imaginary = w.parts(a)
    return real, w(aten.neg.default, imaginary)


def _view_as_complex(w: Writer, a: Any) -> Any:
    return w(aten.select.int, a, -1, 0), w(aten.select.int, a, -1, 1)


def _view_as_real(w: Writer, a: Any) -> Any:
    return w(aten.cat.default, [w(aten.unsqueeze.default, part, -1) for part in w.parts(a)], -1)


def _polar(w: Writer, size: Any, angle: Any) -> Any:
    cosine, sine = w(aten.cos.default, angle), w(aten.sin.default, angle)
    return w(aten.mul.Tensor, size, cosine), w(aten.mul.Tensor, size, sine)


def _exp(w: Writer, a: Any) -> Any:
    real, imaginary = w.parts(a)
    return _polar(w, w(aten.exp.default, real), imaginary)


def _abs(w: Writer, a: Any) -> Any:
    real, imaginary = w.parts(a)
    squares = [w(aten.mul.Tensor, part, part) for part in (real, imaginary)]
    return w(aten.sqrt.default, w.sum(*squares))


def _to_copy(w: Writer, a: Any, *, dtype: Any = None, **rest: Any) -> Any:
    real, imaginary = w.parts(a)
    if dtype is not None and not dtype.is_complex:
        return w(aten._to_copy.default, real, dtype=dtype, **rest)
    to = {**rest, **({} if dtype is None else {"dtype": real_dtype(dtype)})}
    made = w(aten._to_copy.default, real, **to)
    if imaginary is None:
        return made, w(aten.full_like.default, made, 0.0)
    return made, w(aten._to_copy.default, imaginary, **to)


_WRITTEN: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "mul": partial(_times, aten.mul.Tensor),
    "mm": partial(_times, aten.mm.default),
    "matmul": partial(_times, aten.matmul.default),
    "bmm": partial(_times, aten.bmm.default),
    "div": _div,
    "exp": _exp,
    "abs": _abs,
    "polar": _polar,
    "complex": lambda w, real, imaginary: (real, imaginary),
    "real": lambda w, a: w.parts(a)[0],
    "imag": lambda w, a: w.parts(a)[1],
    "angle": lambda w, a: w(aten.atan2.default, *reversed(w.parts(a))),
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    "_conj": _conj,
    "_conj_physical": _conj,
    "conj_physical": _conj,
    "resolve_conj": lambda w, a: w.parts(a),
    "_to_copy": _to_copy,
    "_fft_c2c": fourier.c2c,
    "_fft_r2c": fourier.r2c,
    "_fft_c2r": fourier.c2r,
}
