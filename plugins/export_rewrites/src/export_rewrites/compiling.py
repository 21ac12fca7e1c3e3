"""Graphs that torch writes out as Python, once somebody reads that."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, cast

from torch import fx
from torch.fx.graph import _PyTreeCodeGen


@contextlib.contextmanager
def compiled_late() -> Iterator[None]:
    """Let graph modules be compiled when they are called, or when their code is read, also later.

    torch compiles them after each of some twenty passes of an export, of which most are only there
    for the graph.
    """
    module = cast("Any", fx.GraphModule)
    compiles = module.recompile

    def later(made: fx.GraphModule) -> None:
        code = made.graph._codegen
        if isinstance(code, _PyTreeCodeGen):
            made._in_spec = code.pytree_info.in_spec
            made._out_spec = code.pytree_info.out_spec
        made.__dict__.pop("_code", None)
        owner: Any = type(made)  # each module has a class of its own
        owner.forward = _Late("forward", made, compiles)
        owner._code = _Late("_code", made, compiles)

    module.recompile = later
    try:
        yield
    finally:
        module.recompile = compiles


class _Late:
    """Attribute of a module that compiling sets, and reading it brings about."""

    def __init__(self, name: str, made: fx.GraphModule, compiles: Any) -> None:
        self._name, self._compiles = name, compiles
        self._made = weakref.ref(made)

    def __get__(self, instance: Any, owner: Any) -> Any:
        made = self._made() if instance is None else instance
        if made is None:
            raise AttributeError(self._name)
        self._compiles(made)
        return getattr(owner if instance is None else instance, self._name)
