"""Safetensors files written of tensors that lie in other files, a piece at a time."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palette_core.errors import CheckpointError
from palette_core.storage.tensor_spans import DTYPES, LENGTH, METADATA, PIECE, Span, kind_checksum

_CODES = {dtype: code for code, dtype in DTYPES.items()}
NO_CHECKSUM = "0" * 8


@dataclass(frozen=True)
class Streamed:
    """A tensor to be written.

    Attributes:
        name: under which it is written.
        span: where it is now.
        checksum: what it has to be, or None where any will do.
    """

    name: str
    span: Span
    checksum: str | None = None


def write_spans(
    path: Path, tensors: Sequence[Streamed], metadata: Callable[[Mapping[str, str]], str], key: str
) -> dict[str, str]:
    """Write a safetensors file of tensors that lie in other files, a piece at a time.

    The same tensors give the same bytes.

    Args:
        path: of the file.
        tensors: the tensors.
        metadata: returns the one text of the metadata for checksums of all tensors; as long for
            any checksums.
        key: its name.

    Returns:
        The checksums of all tensors by name.

    Raises:
        DamagedPieceError: a tensor is not what its checksum says.
        OSError: the file cannot be written, or one cannot be read.
    """
    ordered = sorted(tensors, key=lambda item: (-item.span.dtype.itemsize, item.name))
    sums = {item.name: item.checksum or NO_CHECKSUM for item in tensors}
    with path.open("wb") as file:
        head = _head(ordered, metadata(sums), key)
        file.write(head)
        for item in ordered:
            span = item.span
            found = kind_checksum(span.dtype, span.shape)
            for piece in span.pieces():
                found = zlib.crc32(piece, found)
                file.write(piece)
            sums[item.name] = f"{found:08x}"
            if item.checksum not in (None, sums[item.name]):
                raise DamagedPieceError(span)
        again = _head(ordered, metadata(sums), key)
        if len(again) != len(head):
            raise AssertionError("metadata has another length for other checksums")
        file.seek(0)
        file.write(again)
    return sums


class DamagedPieceError(CheckpointError):
    """A tensor of a file is not what was written there.

    Attributes:
        path: of the file.
    """

    def __init__(self, span: Span) -> None:
        super().__init__(f"{span.path}: {span.name} is damaged: its checksum is another")
        self.path = span.path


def _head(ordered: Sequence[Streamed], metadata: str, key: str) -> bytes:
    header: dict[str, Any] = {METADATA: {key: metadata}}
    at = 0
    for item in ordered:
        end = at + item.span.size
        header[item.name] = {
            "dtype": _CODES[item.span.dtype],
            "shape": list(item.span.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text


def file_checksum(path: Path) -> str:
    """Return the CRC-32 of all bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    found = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"
