"""State dictionaries written by ``torch.save``: where their tensors lie in the file.

Such a file is an archive of uncompressed entries, one for each storage. torch itself reads what
names and shapes there are, into tensors without memory; nothing else of the file is loaded, and
nothing in it is run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palette_core.errors import CheckpointError, shortened
from palette_core.storage.tensor_spans import DTYPES, Span, TensorFile
from palette_core.tensors.dtypes import dtype_name

_WRAPPERS = ("state_dict", "model", "module", "params")
_ANEW = "load it with torch, and save its state dictionary as safetensors"
_STORABLE = frozenset(DTYPES.values())


def read_torch_file(path: Path) -> TensorFile:
    """Find the tensors of a state dictionary that ``torch.save`` wrote.

    The dictionary may also lie under ``state_dict``, ``model``, ``module`` or ``params``, as
    training scripts write it beside their own state.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is no whole archive, holds no state dictionary or what torch does not
            load without running code, or a tensor that is no contiguous part of the file.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a file of torch.save")
    size, checksum = path.stat().st_size, _checksum_of_names(path)
    states = _states(path, _loaded(path))
    spans = {name: _span(path, name, tensor, size) for name, tensor in states}
    return TensorFile(path, spans, {}, checksum, size)


def _checksum_of_names(path: Path) -> str:
    """Return the checksum that the archive has of all but the values."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if "data.pkl" not in entries:
                raise _unreadable(path, "the archive has no data.pkl")
            order = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
            if order != b"little":
                raise _unreadable(path, f"its bytes are in {order.decode()} order; {_ANEW}")
            return f"{archive.getinfo(entries['data.pkl']).CRC:08x}"
    except zipfile.BadZipFile as error:
        raise _unreadable(
            path, f"{error}; it is truncated, of another format, or of torch before 1.6: {_ANEW}"
        ) from None


def _loaded(path: Path) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode  # late: it loads much

    try:
        with FakeTensorMode():  # keeps where storages lie, and allocates nothing
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # torch's own text goes on with how to run what the file says: not to be advised.
        raise _unreadable(
            path,
            f"torch loads nothing but tensors from it, and it holds something else, or is damaged "
            f"({type(error).__name__}); where you trust it, {_ANEW}",
        ) from error


def _states(path: Path, content: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Mapping):
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(inner) == 1:
            (content,) = inner
    if not isinstance(content, Mapping) or not content:
        raise _unreadable(
            path, f"it holds a {type(content).__name__}, expected tensors by name; {_ANEW}"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _unreadable(
                path,
                f"its {shortened(repr(name))} is a {type(value).__name__}, expected tensors by "
                f"name, or such a dictionary as {', '.join(_WRAPPERS)}; {_ANEW}",
            )
        yield name, value


def _span(path: Path, name: str, tensor: Tensor, size: int) -> Span:
    shown = shortened(name)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise _unreadable(path, f"{shown} is a name that nobody can write: {error}") from None
    if tensor.layout is not torch.strided or tensor.dtype not in _STORABLE:
        kind = dtype_name(tensor.dtype)
        raise _unreadable(path, f"{shown} is {tensor.layout} of {kind}, which stays as it is there")
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        raise _unreadable(
            path,
            f"{shown} is a view of other values (shape {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}); {_ANEW} after .contiguous().resolve_conj().resolve_neg()",
        )
    length = tensor.numel() * tensor.element_size()
    offset: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    begin = (offset or 0) + int(tensor.storage_offset()) * tensor.element_size()
    if length and (offset is None or begin + length > size):
        raise _unreadable(path, f"{shown} lies outside of it; get the whole file")
    return Span(path, name, tensor.dtype, tuple(tensor.shape), begin, length)


def _unreadable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a file of torch.save: {what}")
