"""Safetensors files read tensor by tensor, or in pieces that are smaller.

The headers are read by ourselves, and what they say is checked against the size of the file before
anything is allocated: a file of any size is opened at the cost of its header, and a tensor is
mapped alone, so that its pages go when the tensor does.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palette_core._common.bounded_json import read_json
from palette_core.errors import CheckpointError, shortened
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.layout import Shape

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
}
METADATA = "__metadata__"
LENGTH = 8  # bytes that say how long the header is
_LONGEST_HEADER = 100_000_000  # as safetensors has it
_LONGEST_AXIS = 1 << 48
PIECE = 1 << 22


@dataclass(frozen=True)
class Span:
    """A tensor as it lies in a file.

    Attributes:
        path: of the file.
        name: of the tensor.
        dtype: its dtype.
        shape: its shape.
        begin: of its first byte, from the beginning of the file.
        size: in bytes.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: Shape
    begin: int
    size: int

    def mapped(self) -> Tensor:
        """Return the tensor, its pages those of the file; writing to it does not change that.

        Raises:
            CheckpointError: the file is shorter than it was when it was opened.
            OSError: it cannot be read.
        """
        if self.size == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        start = self.begin - self.begin % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            self._check_length(file.fileno())
            length = self.begin + self.size - start
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        flat = torch.frombuffer(
            pages, dtype=torch.uint8, count=self.size, offset=self.begin - start
        )
        if self.begin % self.dtype.itemsize:  # of a writer that does not align
            flat = flat.clone()
        return flat.view(self.dtype).reshape(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the tensor.

        Raises:
            CheckpointError: the file is shorter than it was when it was opened.
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            self._check_length(file.fileno())
            file.seek(self.begin)
            left = self.size
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise _shorter(self.path)
                left -= len(piece)
                yield piece

    def checksum(self) -> str:
        """Return what `checksums.checksum` says of the tensor."""
        found = kind_checksum(self.dtype, self.shape)
        for piece in self.pieces():
            found = zlib.crc32(piece, found)
        return f"{found:08x}"

    def _check_length(self, handle: int) -> None:
        if os.fstat(handle).st_size < self.begin + self.size:
            raise _shorter(self.path)


def kind_checksum(dtype: torch.dtype, shape: Shape) -> int:
    """Return the CRC-32 that a tensor's bytes continue."""
    return zlib.crc32(f"{dtype_name(dtype)} {tuple(shape)}".encode())


def _shorter(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} has become shorter while it was read; get the whole file")


@dataclass(frozen=True)
class TensorFile:
    """Header of a file of tensors, in safetensors or in a format of `streaming.formats`.

    Attributes:
        path: of the file.
        spans: its tensors, by name, in the order of the header.
        metadata: texts by name.
        header_checksum: CRC-32 of what tells names, dtypes and shapes, as it stands there.
        size: of the file, in bytes.
    """

    path: Path
    spans: Mapping[str, Span]
    metadata: Mapping[str, str]
    header_checksum: str
    size: int


def read_header_of(path: Path) -> TensorFile:
    """Read the header of a safetensors file, and check that the tensors in it can be there.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is no whole safetensors file.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a safetensors file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH), "little")
        if size < LENGTH or length > min(size - LENGTH, _LONGEST_HEADER):
            raise _unreadable(
                path,
                f"its header is said to have {length:,} bytes, and the file has {size:,}; it is "
                "truncated, or of another format",
            )
        text = file.read(length)
    if len(text) < length:
        raise _shorter(path)
    try:
        header = read_json(text)
        if not isinstance(header, dict):
            raise ValueError(f"a {type(header).__name__}")
    except ValueError as error:
        raise _unreadable(path, f"its header is no JSON object: {error}") from None
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _unreadable(path, f"{METADATA} does not map names to texts")
    start = LENGTH + length
    spans = {name: _span(path, name, value, start) for name, value in header.items()}
    _check_places(path, spans.values(), start, size)
    return TensorFile(path, spans, metadata, f"{zlib.crc32(text):08x}", size)


def _span(path: Path, name: str, value: Any, start: int) -> Span:
    shown = shortened(name)
    try:
        name.encode()  # half a character is a name that nobody can write
        code, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        whole = [type(number) is int for number in (*shape, begin, end)]
        if not all(whole) or not 0 <= begin <= end:
            raise ValueError(f"shape {shape!r}, data_offsets {[begin, end]!r}")
        if not all(0 <= length <= _LONGEST_AXIS for length in shape):
            raise ValueError(f"shape {shape!r}")
    except (KeyError, TypeError, ValueError) as error:
        reason = shortened(f"{type(error).__name__}: {error}")
        raise _unreadable(path, f"its header says of {shown} what cannot be: {reason}") from None
    if not isinstance(code, str) or code not in DTYPES:
        raise _unreadable(
            path,
            f"{shown} has dtype {shortened(repr(code))}; known are {', '.join(DTYPES)}",
        )
    dtype = DTYPES[code]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise _unreadable(
            path,
            f"{shown} has {end - begin:,} bytes, and {dtype_name(dtype)} of shape {tuple(shape)} "
            f"has {math.prod(shape) * dtype.itemsize:,}",
        )
    return Span(path, name, dtype, tuple(shape), start + begin, end - begin)


def _check_places(path: Path, spans: Iterable[Span], start: int, size: int) -> None:
    at = start
    for span in sorted(spans, key=lambda span: (span.begin, span.size)):
        if span.begin != at:
            raise _unreadable(
                path, f"{shortened(span.name)} does not begin where the tensor before it ends"
            )
        at += span.size
    if at != size:
        raise _unreadable(
            path,
            f"it has {size:,} bytes, and its header speaks of {at:,}; it is "
            f"{'truncated' if size < at else 'longer than what was written'}",
        )


def _unreadable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is no whole safetensors file: {what}")
