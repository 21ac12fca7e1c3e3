"""Less of what coremltools does over and over while it converts, with the same result.

coremltools 9.0 checks a program as a whole after each of a hundred passes, writes it out in words
for a log that nobody reads, finds anew, after each pass, which constant expressions every variable
comes from, and describes types anew each time that it asks of which kind they are. For a deep model
these are most of its seconds. In `unhurried` programs are checked when they enter a pipeline of
passes and when they leave it, words are written only where they are read, constant expressions are
found where something has changed, and types are described once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any

from coremltools import _logger
from coremltools.converters.mil.mil import Operation, Program
from coremltools.converters.mil.mil.block import Block
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager
from coremltools.converters.mil.mil.types import type_mapping
from coremltools.converters.mil.mil.var import InternalVar, Var


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Let conversions inside the block do so."""
    check, apply = Program.validate, PassPipelineManager.apply_pipeline
    written, sets = Program.__str__, Operation._validate_and_set_inputs

    def apply_all(program: Any, pipeline: Any) -> None:
        check(program)
        Program.validate = _check_scopes
        try:
            apply(program, pipeline)
        finally:
            Program.validate = check
        check(program)

    changes, found = count(), dict[int, tuple[Any, int]]()
    latest = next(changes)

    def set_inputs(op: Any, *arguments: Any, **named: Any) -> None:
        nonlocal latest
        latest = next(changes)
        sets(op, *arguments, **named)

    def propagate_anew(block: Any) -> None:
        _, known = found.get(id(block), (block, None))
        if known != latest:
            propagate(block)
            found[id(block)] = block, latest

    def in_words(program: Any, *arguments: Any, **named: Any) -> Any:
        return written(program, *arguments, **named) if _logger.isEnabledFor(logging.DEBUG) else ""

    places: tuple[tuple[Any, str, Any], ...] = (
        (PassPipelineManager, "apply_pipeline", staticmethod(apply_all)),
        (Program, "__str__", in_words),
        (Block, "_propagate_nonreplaceable_vars", propagate_anew),
        (Operation, "_validate_and_set_inputs", set_inputs),
        (type_mapping, "get_type_info", cache(type_mapping.get_type_info)),
    )
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in places]
    for owner, name, made in places:
        setattr(owner, name, made)
    try:
        yield
    finally:
        for owner, name, made in before:
            setattr(owner, name, made)


def _check_scopes(program: Any, check_essential_scope: bool | None = False) -> None:
    """Check what only holds right after some passes, and is soon done."""
    if check_essential_scope:
        for function in program.functions.values():
            function._check_has_scope_info()


def propagate(block: Any) -> None:
    """Note constant expressions at every variable that comes from them, as coremltools does.

    Sets are shared where they are alike; coremltools itself only ever replaces them.
    """
    for op in block.operations:
        for inner in op.blocks:
            propagate(inner)
        if op.outputs is None:
            continue
        if op.op_type.startswith("constexpr_"):
            for var in op.outputs:
                var.nonreplaceable_vars_upstream = {var}
            continue
        found = set() if op.op_type == "shape" else _sources(op)
        for var in op.outputs:
            var.nonreplaceable_vars_upstream = found


def _sources(op: Any) -> set[Var]:
    """Return the constant expressions from which the inputs of an operation come."""
    found: set[Var] = set()
    for given in op._input_vars.values():
        for var in given if isinstance(given, (list, tuple)) else (given,):
            if var is None or isinstance(var, InternalVar):
                continue
            more = var.nonreplaceable_vars_upstream
            if not more or more is found:
                continue
            found = found | more if found else more
    return found
