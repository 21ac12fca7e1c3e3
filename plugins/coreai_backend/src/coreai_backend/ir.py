"""The one module that touches Core AI's intermediate representation.

``coreai.authoring`` has no 1-, 3- or 6-bit types, so constants of packed indices go through the
compiler's own bindings, which promise no stability. Everything that a new release of coreai-core
can break is here; the names of the operations are those of the ``coreai`` dialect.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# coreai.authoring has to come first: the dialect imports it, in a circle.
from coreai.authoring import AIModelAsset  # isort: skip
from coreai._compiler import ir
from coreai._compiler.dialects import coreai as dialect

PICKED = "values"  # last part of the name of a constant of entries that stand for themselves
LONGER_MASK = "longer_mask"  # the same of a mask whose rows go on behind the weight's
Value = Any  # an SSA value of the representation
Type = Any  # of its elements, or of a value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the converter says on its way.

    It prints a line per program, warns about torch releases newer than it was tried with, and
    makes torch warn about torch's own use of ``LeafSpec``.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="coreai-torch has only been validated")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        # Ours is an error.
        warnings.filterwarnings("ignore", message="coreai_torch.externalize: skipping unused")
        yield


def element_type(dtype: torch.dtype) -> Type:
    """Return the element type for a torch dtype; needs an active context.

    Raises:
        KeyError: there is none.
    """
    return {
        torch.float32: ir.F32Type.get,
        torch.float16: ir.F16Type.get,
        torch.bfloat16: ir.BF16Type.get,
        torch.float8_e4m3fn: ir.Float8E4M3FNType.get,
        torch.float8_e5m2: ir.Float8E5M2Type.get,
        torch.int8: lambda: ir.IntegerType.get_signed(8),
        torch.uint8: lambda: ir.IntegerType.get_unsigned(8),
    }[dtype]()


def packed_constant(packed: Tensor, shape: Sequence[int], n_bits: int, name: str) -> Value:
    """Return unsigned ``n_bits``-bit integers of ``shape``.

    Args:
        packed: 1-D uint8, a little-endian bit stream, least significant bit first. Its memory
            is kept, not copied.
        shape: of the integers.
        n_bits: 1, 2, 3, 4, 6 or 8.
        name: of the stored bytes in the file.
    """
    return _resource(packed, ir.RankedTensorType.get(list(shape), _unsigned(n_bits)), name)


def constant(tensor: Tensor, name: str) -> Value:
    """Return a constant of any dtype that `element_type` knows, its bytes stored as ``name``."""
    kind = ir.RankedTensorType.get(list(tensor.shape), element_type(tensor.dtype))
    return _resource(tensor.contiguous().view(torch.uint8), kind, name)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Value:
    """Return a constant of zeros, stored as one value that the compiler recognises."""
    kind = element_type(dtype)
    zero = ir.FloatAttr.get(kind, 0.0) if dtype.is_floating_point else ir.IntegerAttr.get(kind, 0)
    tensor = ir.RankedTensorType.get(list(shape), kind)
    return dialect.ConstantOp(value=ir.DenseElementsAttr.get_splat(tensor, zero)).result


def lut_to_dense(indices: Value, lut: Value, axis: int) -> Value:
    """Return ``lut`` looked up by ``indices``; entries lie along ``axis``."""
    return dialect.lut_to_dense(indices, lut, dialect.constant(np.array(axis, np.int16)))


def build_sparse(values: Value, bitmask: Value) -> Value:
    """Return a sparse tensor of ``values`` ``[N]``, where ``bitmask`` is 1, in row-major order."""
    return dialect.build_sparse_with_bitmask(values, bitmask)


def first_of(values: Value, count: int) -> Value:
    """Return the first ``count`` of ``values`` ``[N]``."""
    if count == shape_of(values)[0]:
        return values
    start, end, step = (dialect.constant(np.array([n], np.int32)) for n in (0, count, 1))
    return dialect.slice_(values, start, end, step)


def first_columns(values: Value, count: int) -> Value:
    """Return the first ``count`` columns of ``values`` ``[R, C]``."""
    rows, _ = shape_of(values)
    ends = ([0, 0], [rows, count], [1, 1])
    return dialect.slice_(values, *(dialect.constant(np.array(n, np.int32)) for n in ends))


def reshape(values: Value, shape: Sequence[int]) -> Value:
    """Return ``values`` in another shape."""
    return dialect.reshape(values, dialect.constant(np.array(shape, np.int32)))


def one_list(parts: Sequence[Value]) -> Value:
    """Return lists of values one after the other."""
    if len(parts) == 1:
        return parts[0]
    return dialect.concat(dialect.constant(np.array(0, np.int32)), list(parts))


def lut_to_sparse(indices: Value, lut: Value, axis: int) -> Value:
    """Return ``lut`` looked up by sparse ``indices``, sparse as they are."""
    along = dialect.constant(np.array(axis, np.int16))
    return dialect.lut_to_sparse_with_bitmask(indices, lut, along)


def sparse_to_dense(sparse: Value) -> Value:
    """Return a sparse tensor with zeros where it has no values."""
    return dialect.sparse_with_bitmask_to_dense(sparse)


def shift_scale(data: Value, scale: Value, offset: Value, zero: Value) -> Value:
    """Return ``scale * (data - offset) + zero`` in the type of ``zero``, blockwise."""
    return dialect.blockwise_shift_scale(data, scale, offset, zero)


def cast(data: Value, dtype: torch.dtype) -> Value:
    """Return ``data`` rounded to ``dtype``."""
    return dialect.cast(data, element_type(dtype))


def _unsigned(n_bits: int) -> Type:
    return ir.IntegerType.get_unsigned(n_bits)


def _resource(data: Tensor, kind: Type, name: str) -> Value:
    buffer = data.detach().cpu().contiguous().numpy()
    attribute = ir.DenseResourceElementsAttr.get_from_buffer(buffer, name, kind)
    return dialect.ConstantOp(value=attribute).result


# --- reading ------------------------------------------------------------------------------------

Operation = Any
_RESOURCE = re.compile(rb'^ +(?P<name>".*"|[^":]+): "0x(?P<hex>[0-9A-Fa-f]*)",?$', re.MULTILINE)
_ALIGNMENT = 4  # bytes in front of a resource's own


class Program:
    """A saved program, opened to read its operations and the bytes of its constants."""

    def __init__(self, path: Path) -> None:
        # The bindings end the process when they are given a missing or damaged file.
        digest = hashlib.sha256((path / "main.mlirb").read_bytes()).digest()
        if digest != (path / "main.hash").read_bytes():
            raise ValueError("main.mlirb does not fit its checksum, the file is damaged")
        self._asset = AIModelAsset.load(path)
        self._program = self._asset.program
        self._module = self._program._module._mlir_module
        text = io.BytesIO()
        # Dense constants are not read; resources have to be printed to be read.
        self._module.operation.print(
            file=text,
            binary=True,
            large_elements_limit=16,
            large_resource_limit=2**62,
            assume_verified=True,
        )
        section = text.getbuffer()[text.getvalue().rfind(b"\n{-#") + 1 :]
        self._resources = {
            _unescaped(found["name"].decode()): bytes.fromhex(found["hex"].decode())[_ALIGNMENT:]
            for found in _RESOURCE.finditer(section)
        }

    def operations(self, name: str) -> list[Operation]:
        """Return all operations called ``name``, in order."""
        found: list[Operation] = []

        def visit(operation: Operation) -> Any:
            if operation.name == name:
                found.append(operation)
            return ir.WalkResult.ADVANCE

        self._module.operation.walk(visit, ir.WalkOrder.PRE_ORDER)
        return found

    def constant(self, value: Value) -> tuple[str, str, list[int], bytes | float] | None:
        """Return name, element type, shape and content of a constant, or None for other values.

        The content is one number where it is the same for all elements and has no name.
        """
        made_by = value.owner
        if getattr(made_by, "name", None) != "coreai.constant":
            return None
        attribute, kind = made_by.attributes["value"], ir.RankedTensorType(value.type)
        shape, element = list(kind.shape), str(kind.element_type)
        named = re.match(r'dense_resource<(".*"|[^>]*)>', str(attribute))
        if named is not None:
            name = _unescaped(named[1])
            return name, element, shape, self._resources[name]
        if ir.DenseElementsAttr.isinstance(attribute):
            dense = ir.DenseElementsAttr(attribute)
            if dense.is_splat:
                return "", element, shape, float(dense.get_splat_value().value)
        return None

    def replace(self, operation: Operation, emit: Callable[[], Value]) -> None:
        """Put what ``emit`` emits in the place of an operation of one result."""
        with operation.context, operation.location, ir.InsertionPoint(operation):
            value = emit()
        operation.results[0].replace_all_uses_with(value)
        operation.erase()

    def save(self, path: Path) -> None:
        """Write the program to a folder where nothing stands, with the metadata that it had."""
        self._program.save_asset(path, self._asset.metadata)


def shape_of(value: Value) -> list[int]:
    """Return the extents of a value."""
    return list(ir.RankedTensorType(value.type).shape)


def element_name(value: Value) -> str:
    """Return the name of a value's element type, such as ``f32`` or ``ui4``."""
    return str(ir.RankedTensorType(value.type).element_type)


def users(value: Value) -> list[Operation]:
    """Return the operations that use a value."""
    return [use.owner for use in value.uses]


def _unescaped(text: str) -> str:
    """Return a name as it was given, without the quotes and escapes of the printed form."""
    if not text.startswith('"'):
        return text
    raw = re.sub(
        rb"\\([0-9A-Fa-f]{2}|\\)",
        lambda found: b"\\" if found[1] == b"\\" else bytes.fromhex(found[1].decode()),
        text[1:-1].encode(),
    )
    return raw.decode()
