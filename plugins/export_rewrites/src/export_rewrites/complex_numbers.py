"""Complex numbers as pairs of real ones: no converter takes all that is done with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from export_rewrites.folding import add_constant, held_constants

aten = torch.ops.aten
Pair = tuple[fx.Node, fx.Node]  # real and imaginary part
_SAME_FOR_BOTH = frozenset(
    {
        "alias",
        "cat",
        "clone",
        "cumsum",
        "expand",
        "flip",
        "gather",
        "getitem",
        "index",
        "index_select",
        "mean",
        "neg",
        "permute",
        "repeat",
        "reshape",
        "roll",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "sum",
        "transpose",
        "unsqueeze",
        "view",
        "_unsafe_view",
    }
)
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
        writer = _Writer(program, held)
        for node in touched:
            writer.write(node)
        program.graph.eliminate_dead_code()


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return isinstance(first, Tensor) and first.is_complex()


def _touches(node: fx.Node) -> bool:
    return _is_complex(node) or any(_is_complex(source) for source in node.all_input_nodes)


def _real_dtype(value: Any) -> Any:
    return value.to_real() if isinstance(value, torch.dtype) else value


def _short(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def _known(node: fx.Node, held: Any) -> bool:
    """Return whether a node can be written in real numbers."""
    if node.op == "placeholder":
        return node.name in held
    short = _short(node)
    odd = (torch.dtype,) if short in _FACTORS else (torch.dtype, complex)
    if node.op != "call_function" or any(isinstance(value, odd) for value in node.args):
        return False
    if short in _JOINS:
        return all(_is_complex(source) for source in node.all_input_nodes)
    if short in _OF_FIXED_SIZES and not all(isinstance(n, int) for n in node.meta["val"].shape):
        return False
    return short in _SAME_FOR_BOTH or short in _WRITTEN


class _Writer:
    """Writes nodes of a program as pairs, one after the other."""

    def __init__(self, program: ExportedProgram, held: Any) -> None:
        self._program, self._held = program, held
        self._pairs: dict[fx.Node, Pair] = {}
        self._at: fx.Node

    def write(self, node: fx.Node) -> None:
        """Write a node in real numbers, before itself; what is real is read from there."""
        self._at = node
        if node.op == "placeholder":
            value = self._held[node.name].resolve_conj()
            self._pairs[node] = (self.constant(value.real), self.constant(value.imag))
            return
        short = _short(node)
        if short in _SAME_FOR_BOTH:
            self._pairs[node] = (self._part(node, 0), self._part(node, 1))
            return
        made = _WRITTEN[short](self, *node.args, **node.kwargs)
        if isinstance(made, tuple):
            self._pairs[node] = made
        else:
            node.replace_all_uses_with(made)

    def _part(self, node: fx.Node, part: int) -> fx.Node:
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs),
            lambda source: self._pairs[source][part] if source in self._pairs else source,
        )
        real = {key: _real_dtype(value) for key, value in kwargs.items()}
        return self(node.target, *args, **real)

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a node, and what is known about its result."""
        with self._program.graph.inserting_before(self._at):
            made: fx.Node = self._program.graph.call_function(op, args, kwargs)
        values, words = fx.node.map_arg((args, kwargs), lambda source: source.meta["val"])
        made.meta = {**self._at.meta, "val": op(*values, **words)}
        return made

    def constant(self, value: Tensor) -> fx.Node:
        """Add a stored tensor; float64 where it is that."""
        mode = self._at.meta["val"].fake_mode
        value = value.contiguous().clone()
        return add_constant(self._program, value, mode.from_tensor(value))

    def parts(self, value: Any) -> tuple[Any, Any]:
        """Return real and imaginary part, None for the second of a real number."""
        if isinstance(value, complex):
            return value.real, value.imag
        return self._pairs.get(value, (value, None))

    def sum(self, first: fx.Node | None, second: fx.Node | None, alpha: Any = 1) -> Any:
        """Return first + alpha second, where None is zero."""
        if second is not None and alpha != 1:
            second = self(aten.mul.Tensor, second, alpha)
        if first is None or second is None:
            return second if first is None else first
        return self(aten.add.Tensor, first, second)

    def product(self, op: Any, first: Any, second: Any) -> Any:
        """Return a product, None where a factor is."""
        return None if first is None or second is None else self(op, first, second)


# --- operations -----------------------------------------------------------------------------------


def _add(w: _Writer, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    (c, d), (e, f) = w.parts(a), w.parts(b)
    real = w.sum(c, e, alpha) if isinstance(e, fx.Node) else w(aten.add.Tensor, c, e * alpha)
    # What is broadcast is so in both parts.
    shape = list(real.meta["val"].shape)
    return real, w(aten.expand.default, w.sum(d, f, alpha), shape)


def _sub(w: _Writer, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    return _add(w, a, b, alpha=-alpha)


def _times(op: Any, w: _Writer, a: Any, b: Any) -> Any:
    return _product(op, w, w.parts(a), w.parts(b))


def _product(op: Any, w: _Writer, first: Any, second: Any) -> Any:
    (c, d), (e, f) = first, second
    real = w.sum(w.product(op, c, e), w.product(op, d, f), -1)
    return real, w.sum(w.product(op, c, f), w.product(op, d, e))


def _div(w: _Writer, a: Any, b: Any) -> Any:
    if isinstance(b, complex):
        return _times(aten.mul.Tensor, w, a, 1 / b)
    e, f = w.parts(b)
    if f is None:
        c, d = w.parts(a)
        return w(aten.div.Tensor, c, e), w(aten.div.Tensor, d, e)
    size = w.sum(w(aten.mul.Tensor, e, e), w(aten.mul.Tensor, f, f))
    real, imaginary = _product(aten.mul.Tensor, w, w.parts(a), _conj(w, b))
    return w(aten.div.Tensor, real, size), w(aten.div.Tensor, imaginary, size)


def _conj(w: _Writer, a: Any) -> Any:
    real, imaginary = w.parts(a)
    return real, w(aten.neg.default, imaginary)


def _view_as_complex(w: _Writer, a: Any) -> Any:
    return w(aten.select.int, a, -1, 0), w(aten.select.int, a, -1, 1)


def _view_as_real(w: _Writer, a: Any) -> Any:
    return w(aten.cat.default, [w(aten.unsqueeze.default, part, -1) for part in w.parts(a)], -1)


def _polar(w: _Writer, size: Any, angle: Any) -> Any:
    cosine, sine = w(aten.cos.default, angle), w(aten.sin.default, angle)
    return w(aten.mul.Tensor, size, cosine), w(aten.mul.Tensor, size, sine)


def _exp(w: _Writer, a: Any) -> Any:
    real, imaginary = w.parts(a)
    return _polar(w, w(aten.exp.default, real), imaginary)


def _abs(w: _Writer, a: Any) -> Any:
    real, imaginary = w.parts(a)
    squares = [w(aten.mul.Tensor, part, part) for part in (real, imaginary)]
    return w(aten.sqrt.default, w.sum(*squares))


def _to_copy(w: _Writer, a: Any, *, dtype: Any = None, **rest: Any) -> Any:
    real, imaginary = w.parts(a)
    if dtype is not None and not dtype.is_complex:
        return w(aten._to_copy.default, real, dtype=dtype, **rest)
    to = {**rest, **({} if dtype is None else {"dtype": _real_dtype(dtype)})}
    made = w(aten._to_copy.default, real, **to)
    if imaginary is None:
        return made, w(aten.full_like.default, made, 0.0)
    return made, w(aten._to_copy.default, imaginary, **to)


# --- Fourier transforms ---------------------------------------------------------------------------


def _turned(w: _Writer, pair: Any, axis: int, matrix: Tensor) -> Any:
    """Multiply one axis of a pair, whose second part may be None, by a complex matrix [out, in]."""
    like = pair[0]
    rank = like.meta["val"].dim()
    order = [i for i in range(rank) if i != axis % rank] + [axis % rank]
    back = [order.index(i) for i in range(rank)]
    dtype = like.meta["val"].dtype
    cosine, sine = (w.constant(part.mT.to(dtype)) for part in (matrix.real, matrix.imag))

    def by(part: Any, table: fx.Node) -> Any:
        if part is None:
            return None
        moved = w(aten.permute.default, part, order)
        whole = w(aten.clone.default, moved, memory_format=torch.contiguous_format)
        *rows, n = whole.meta["val"].shape
        flat = w(aten.view.default, whole, [math.prod(rows), n])
        shaped = w(aten.view.default, w(aten.mm.default, flat, table), [*rows, matrix.shape[0]])
        return w(aten.permute.default, shaped, back)

    c, d = pair
    real = w.sum(by(c, cosine), by(d, sine), -1)
    return real, w.sum(by(c, sine), by(d, cosine))


def _waves(n: int, sign: int, rows: int | None = None) -> Tensor:
    """Return exp(±2πi j k / n) for j below ``rows`` and k below n, in complex128."""
    j, k = torch.arange(n if rows is None else rows), torch.arange(n)
    angle = 2 * math.pi * sign / n * (j[:, None] * k % n).double()
    return torch.polar(torch.ones_like(angle), angle)


def _factor(normalization: int, sizes: list[int]) -> float:
    """Return what torch multiplies by: nothing, the root, or the number of elements."""
    n = math.prod(sizes)
    return (1.0, 1 / math.sqrt(n), 1 / n)[normalization]


def _c2c(w: _Writer, a: Any, dim: Any, normalization: int, forward: bool) -> Any:
    pair = w.parts(a)
    shape = pair[0].meta["val"].shape
    scale = _factor(normalization, [shape[axis] for axis in dim])
    for i, axis in enumerate(dim):
        matrix = _waves(shape[axis], -1 if forward else 1) * (1 if i else scale)
        pair = _turned(w, pair, axis, matrix)
    return pair


def _r2c(w: _Writer, a: Any, dim: Any, normalization: int, onesided: bool) -> Any:
    shape = a.meta["val"].shape
    pair: Any = (a, None)
    scale = _factor(normalization, [shape[axis] for axis in dim])
    for i, axis in enumerate(reversed(dim)):
        n = shape[axis]
        rows = n // 2 + 1 if onesided and not i else n
        pair = _turned(w, pair, axis, _waves(n, -1, rows) * (1 if i else scale))
    return pair


def _c2r(w: _Writer, a: Any, dim: Any, normalization: int, last_dim_size: int) -> Any:
    pair: Any = w.parts(a)
    shape = [*pair[0].meta["val"].shape]
    sizes = [shape[axis] for axis in dim[:-1]] + [last_dim_size]
    scale = _factor(normalization, sizes)
    for axis in dim[:-1]:
        pair = _turned(w, pair, axis, _waves(shape[axis], 1))
    # Frequencies but the first and, of even sizes, the last stand for two that are conjugates.
    half = last_dim_size // 2 + 1
    often = torch.full((half,), 2.0, dtype=torch.float64)
    often[0] = 1
    if last_dim_size % 2 == 0:
        often[-1] = 1
    matrix = _waves(last_dim_size, 1, half).mT * often * scale
    if half != shape[dim[-1]]:
        pair = tuple(w(aten.slice.Tensor, part, dim[-1], 0, half) for part in pair)
    return _turned(w, pair, dim[-1], matrix)[0]


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
    "_fft_c2c": _c2c,
    "_fft_r2c": _r2c,
    "_fft_c2r": _c2r,
}
