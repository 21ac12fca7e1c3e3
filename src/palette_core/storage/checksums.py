"""Checksums that files carry: of every tensor, and of the JSON that tells what the tensors are.

They are CRC-32, of damage and not of malice: whoever can change a tensor on purpose can change its
checksum too. One bit that flips, or 32 that lie together, are always found, anything else but for
one case in 2 ** 32; a cryptographic digest would take a fifth to a third of the time of loading.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from palette_core.tensors.dtypes import dtype_name

CHECKSUMS = "crc32"  # in a header: of every tensor, by key
# How a header ends. It is one entry of the metadata, as safetensors writes several in any order.
_END = ',"header_crc32":"{}"}}'
_SEAL = re.compile(r',"header_crc32":"(\w*)"\}\Z', re.ASCII)


def checksum(tensor: Tensor) -> str:
    """Return the CRC-32 of dtype, shape and bytes of a CPU tensor, in eight hexadecimal digits."""
    kind = f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}".encode()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return _crc32(flat.numpy(), zlib.crc32(kind))  # type: ignore[arg-type]


def sealed(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return JSON of a header, with checksums of CPU tensors and of the text itself."""
    return sealed_with(header, {key: checksum(tensor) for key, tensor in tensors.items()})


def sealed_with(header: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    """Return JSON of a header, with checksums of tensors, by key, and of the text itself."""
    text = json.dumps({**header, CHECKSUMS: dict(sums)}, separators=(",", ":"))
    return text[:-1] + _END.format(_crc32(text.encode()))


def is_sealed(text: str) -> bool:
    """Return whether JSON of a header has a checksum of itself.

    Raises:
        ValueError: it is of another text.
    """
    end = _SEAL.search(text, max(0, len(text) - 100))
    if end is None:
        return False
    if end[1] != _crc32((text[: -len(end[0])] + "}").encode("utf-8", "replace")):
        raise ValueError("it does not match its checksum")
    return True


def checksums_of(header: Mapping[str, Any], text: str) -> Mapping[str, str]:
    """Return the checksums of a header.

    Raises:
        ValueError: there are none.
    """
    found = header.get(CHECKSUMS)
    if not is_sealed(text) or not isinstance(found, dict):
        raise ValueError("it has no checksums, which this version has")
    return found


def difference(key: str, tensor: Tensor, checksums: Mapping[str, str]) -> str:
    """Return, in words, why a tensor is not the one that was written, or an empty text."""
    if key not in checksums:
        return f"{key} was not there when it was written"
    if checksum(tensor) != checksums[key]:
        return (
            f"{key} is damaged: its checksum is another than when it was written; get the file "
            "again from where it came from"
        )
    return ""


def _crc32(data: bytes, before: int = 0) -> str:
    return f"{zlib.crc32(data, before):08x}"
