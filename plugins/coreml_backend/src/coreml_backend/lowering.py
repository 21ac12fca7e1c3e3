"""Teaches coremltools the operator behind which palettized weights hang.

``palette_core::depalettize``, or that of sparse weights, becomes constant expressions that hold the
exact indices and tables; nothing is derived again from dense values. Works for ``torch.export``
programs and for traced modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from coremltools.converters.mil.frontend.torch.ops import _get_bindings
from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
from coremltools.converters.mil.frontend.torch.utils import NUM_TO_TORCH_DTYPE, TorchFrontend
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.block import curr_block

from coreml_backend.constants import digest, emit
from coreml_backend.precision import fits_float16, with_float_tables
from coreml_backend.slicing import ranges, take
from palette_core.errors import BackendError
from palette_core.tensors import (
    OP_NAME,
    SPARSE_OP_NAME,
    SPARSE_PARTS,
    PalettizedTensor,
    StoredTensor,
    named_arguments,
    unpack,
    unpack_sparse,
)

Decode = Callable[[StoredTensor], PalettizedTensor]
_DTYPES = (torch.float32, torch.float16)
_TABLE_DTYPES = (torch.int8, torch.uint8)


@dataclass
class Lowered:
    """Result of lowering in one conversion.

    Attributes:
        given: names of weights by the name of their indices in the torch program.
        names: names of weights by the name of the operation that decodes them; several where
            weights are equal, with the range in brackets where only part of one is stored.
        wide: names of those operations whose weights float16 does not hold.
        folds: no floats are scaled, see `folding`.
    """

    given: dict[str, str] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)
    folds: bool = False


_recorder: ContextVar[Lowered | None] = ContextVar("coreml_backend_recorder", default=None)
# By conversion: what has been emitted, by content and block.
_emitted: WeakKeyDictionary[Any, dict[tuple[str, int], Var]] = WeakKeyDictionary()


# By conversion: results of nodes that cut weights, by name of the node.
_pieces: WeakKeyDictionary[Any, dict[str, Var | list[Var]]] = WeakKeyDictionary()
_PIECES = "palette_core::pieces"


def register() -> None:
    """Register the lowering with coremltools; once more does no harm."""
    aliases = [OP_NAME, OP_NAME.replace("::", ".")]  # the second in ExecuTorch's programs
    register_torch_op(depalettize, torch_alias=aliases, override=True)
    aliases = [SPARSE_OP_NAME, SPARSE_OP_NAME.replace("::", ".")]
    register_torch_op(depalettize_sparse, torch_alias=aliases, override=True)
    register_torch_op(_take_pieces, torch_alias=[_PIECES], override=True)


@contextmanager
def recording(given: dict[str, str], *, folds: bool = False) -> Iterator[Lowered]:
    """Name weights as ``given`` says, and record what is lowered inside the block."""
    record = Lowered(given, folds=folds)
    token = _recorder.set(record)
    try:
        yield record
    finally:
        _recorder.reset(token)


def depalettize(context: Any, node: Any) -> None:
    """Lower one ``palette_core::depalettize`` node."""
    _lower(context, node, ("indices",), unpack)


def depalettize_sparse(context: Any, node: Any) -> None:
    """Lower one ``palette_core::depalettize_sparse`` node."""
    _lower(context, node, SPARSE_PARTS, unpack_sparse)


def _lower(context: Any, node: Any, form: tuple[str, ...], decode: Decode) -> None:
    named = {name: item[0] for name, item in (node.kwinputs or {}).items()}
    given = named_arguments(node.inputs, named, form)
    parts = dict(zip(given, _get_bindings(context, given.values()), strict=True))
    for name, part in parts.items():
        if part is not None and part.val is None:
            raise BackendError(f"{node.name}: {name} is computed by the model, not a constant")
    values = {name: None if var is None else var.val for name, var in parts.items()}
    record = _recorder.get()
    folds = record is not None and record.folds
    palettized = with_float_tables(_palettized(node.name, values, form, decode), folds=folds)
    name = _torch_name(str(given[form[0]]))
    users = _users(context, node.name)
    cut = [user for user in users if _cut(context, user, palettized, name)]
    if not cut or len(cut) < len(users):
        context.add(_once(context, palettized, name), torch_name=node.name)


def _once(
    context: Any, palettized: PalettizedTensor, torch_name: str, *, recorded: bool = True
) -> Var:
    """Emit a weight, unless the same content has been emitted in this block already."""
    known = _emitted.setdefault(context, {})
    key = (digest(palettized), id(curr_block()))
    record = _recorder.get()
    folds = record is not None and record.folds
    if key not in known:
        known[key] = emit(palettized, _new_name(torch_name, known.values()), folds=folds)
    var = known[key]
    if record is not None and recorded:
        if not fits_float16(palettized, folds=folds):
            record.wide.add(var.name)
        names = record.names.setdefault(var.name, [])
        names += [torch_name] * (torch_name not in names)
    return var


def _users(context: Any, name: str) -> list[Any]:
    """Return the nodes that read a result, of ``torch.export`` programs only."""
    if context.frontend == TorchFrontend.TORCHSCRIPT:
        return []  # arguments there are names of other nodes
    return [node for node in context.torch_graph.nodes if name in node.inputs]


def _cut(context: Any, node: Any, palettized: PalettizedTensor, torch_name: str) -> bool:
    """Store the parts into which ``node`` cuts a weight instead of the weight, if they allow it."""
    dim, parts = ranges(node.kind, node.inputs[1:], palettized.shape)
    pieces = [take(palettized, dim, start, stop) for start, stop in parts]
    if not pieces or any(piece is None for piece in pieces) or node.kwinputs:
        return False
    used = _used(context, node, len(pieces))
    stored = [
        _once(context, piece, f"{torch_name}[{':, ' * dim}{start}:{stop}]", recorded=at in used)
        for at, (piece, (start, stop)) in enumerate(zip(pieces, parts, strict=True))
        if piece is not None
    ]
    _pieces.setdefault(context, {})[node.name] = stored[0] if node.kind == "slice" else stored
    node.kind = _PIECES
    return True


def _used(context: Any, node: Any, count: int) -> set[int]:
    """Return which results of a node anything reads; what nothing does, coremltools drops."""
    users = _users(context, node.name)
    if node.kind == "slice" or any(user.kind != "getitem" for user in users):
        return set(range(count))
    return {int(user.inputs[1]) % count for user in users}


def _take_pieces(context: Any, node: Any) -> None:
    """Lower a node whose result has been stored already."""
    context.add(_pieces[context][node.name], torch_name=node.name)


def _palettized(
    node: str, values: dict[str, Any], form: tuple[str, ...], decode: Decode
) -> PalettizedTensor:
    """Put the values of a node's arguments together."""
    dtype = NUM_TO_TORCH_DTYPE.get(int(values["dtype"]))
    if dtype not in _DTYPES:
        raise BackendError(f"{node}: Core ML has no weights of {dtype}; convert the model to float")
    tables = _tables(node, values)
    lut, lut_scale, zero, scale = (
        tables["lut"], tables.get("lut_scale"), tables.get("lut_zero_point"), tables.get("scale")
    )  # fmt: skip
    stored = StoredTensor(
        {n: torch.from_numpy(np.asarray(values[n]).astype(np.uint8).reshape(-1)) for n in form},
        lut if lut_scale is not None else lut.to(dtype),
        [int(s) for s in values["index_shape"]],
        int(values["n_bits"]),
        int(values["axis"]),
        dtype,
        lut_scale,
        None if zero is None else zero.to(lut.dtype),
        None if scale is None else scale.to(dtype),
    )
    palettized = decode(stored)
    palettized.check()
    return palettized


def _tables(node: str, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors beside the indices that are given, quantized entries in their dtype."""
    names = ("lut", "lut_scale", "lut_zero_point", "scale")
    found = {
        name: torch.from_numpy(np.array(values[name]))
        for name in names
        if values.get(name) is not None
    }
    if values.get("lut_dtype") is not None:
        dtype = NUM_TO_TORCH_DTYPE.get(int(values["lut_dtype"]))
        if dtype not in _TABLE_DTYPES:
            raise BackendError(f"{node}: of 8-bit look-up tables Core ML has int8 and uint8 only")
        for name in {"lut", "lut_zero_point"} & found.keys():
            # coremltools widens constants of bytes to int32.
            found[name] = found[name].to(torch.uint8).view(dtype)
    return found


# --- names --------------------------------------------------------------------------------------

_INDICES = re.compile(r"^(?:b_)?(.*?)[._]?parametrizations[._](.*)[._]\d+[._]indices$")


def _torch_name(indices: str) -> str:
    """Return the name of a weight from that of its indices in the torch program."""
    record = _recorder.get()
    if record is not None and indices in record.given:
        return record.given[indices]
    match = _INDICES.match(indices)
    return indices if match is None else ".".join(filter(None, match.groups()))


def _new_name(torch_name: str, taken: Iterable[Var]) -> str:
    """Return a name that Core ML takes, that is unused, and that no operation of torch has."""
    base = re.sub(r"\W+", "_", torch_name, flags=re.ASCII).strip("_") + "_palettized"
    if not base[0].isalpha():
        base = f"w_{base}"
    used = {var.name for var in taken}
    return next(n for i in count(1) if (n := base if i == 1 else f"{base}_{i}") not in used)
