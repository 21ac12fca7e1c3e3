"""Writing the nodes of a program that hold complex numbers as pairs of real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from export_rewrites.folding import add_constant

aten = torch.ops.aten
Pair = tuple[fx.Node, fx.Node]  # real and imaginary part
SAME_FOR_BOTH = frozenset(
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


def real_dtype(value: Any) -> Any:
    """Return the dtype of the parts of a complex dtype; anything else as it is."""
    return value.to_real() if isinstance(value, torch.dtype) else value


def short_name(node: fx.Node) -> str:
    """Return the name of an operation without its overload."""
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


class Writer:
    """Writes nodes of a program as pairs, one after the other.

    Args:
        program: functional; changed in place.
        held: its constants, by name of their node.
        written: how operations are written in real numbers, by name: called with the writer and
            the operation's arguments, returns a pair or what is real.
    """

    def __init__(
        self, program: ExportedProgram, held: Any, written: Mapping[str, Callable[..., Any]]
    ) -> None:
        self._program, self._held, self._written = program, held, written
        self._pairs: dict[fx.Node, Pair] = {}
        self._at: fx.Node

    def write(self, node: fx.Node) -> None:
        """Write a node in real numbers, before itself; what is real is read from there."""
        self._at = node
        if node.op == "placeholder":
            value = self._held[node.name].resolve_conj()
            self._pairs[node] = (self.constant(value.real), self.constant(value.imag))
            return
        short = short_name(node)
        if short in SAME_FOR_BOTH:
            self._pairs[node] = (self._part(node, 0), self._part(node, 1))
            return
        made = self._written[short](self, *node.args, **node.kwargs)
        if isinstance(made, tuple):
            self._pairs[node] = made
        else:
            node.replace_all_uses_with(made)

    def _part(self, node: fx.Node, part: int) -> fx.Node:
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs),
            lambda source: self._pairs[source][part] if source in self._pairs else source,
        )
        real = {key: real_dtype(value) for key, value in kwargs.items()}
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
