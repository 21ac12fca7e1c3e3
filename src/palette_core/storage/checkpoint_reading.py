"""Packed checkpoints: one safetensors file with stored weights, look-up tables and the rest.

For each palettized weight ``name`` the file holds the parts of its stored form (``name.indices``
for the default form: 1-D uint8, a little-endian bit stream), ``name.lut`` and, where they exist,
``name.lut_scale``, ``name.lut_zero_point`` and ``name.scale``; every other parameter and buffer is
held dense under its own name. The metadata entry ``palette_core`` is JSON with the format's version
and what is needed to decode. No model is needed to read or to write one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palette_core._common.bounded_json import read_json
from palette_core.errors import BlockedPluginError, CheckpointError, UnknownPluginError
from palette_core.plugins.checked.stored_forms import CheckedForm
from palette_core.storage.forms.registry import DEFAULT_FORM, stored_form
from palette_core.tensors.dtypes import dtype_name, parse_dtype
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor

FORMAT_VERSION = 1
METADATA_KEY = "palette_core"
_LONGEST = 1 << 48  # elements along an axis, far below what overflows
TABLES = ("lut", "lut_scale", "lut_zero_point", "scale")


@dataclass(frozen=True)
class Checkpoint:
    """A packed checkpoint, read.

    Attributes:
        palettized: palettized weights by the fully qualified name of their first owner.
        dense: every other tensor by name.
        aliases: further names of tied tensors: alias to first name.
        version: of the format.
        stored_forms: name of the stored form of each palettized weight.
    """

    palettized: Mapping[str, PalettizedTensor]
    dense: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    version: int
    stored_forms: Mapping[str, str]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a packed checkpoint, without a model.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a packed checkpoint, truncated, damaged, or of another version; or
            a weight's stored form is not installed, or is blocked.
    """
    with CheckpointReader(path) as file:
        return Checkpoint(
            {name: file.palettized(name) for name in file.palettized_names},
            {name: file.dense(name) for name in file.dense_names},
            file.aliases,
            file.version,
            {name: file.form(name).name for name in file.palettized_names},
        )


@final
class CheckpointReader:
    """A packed checkpoint, opened: names and shapes at once, each tensor when it is asked for.

    Used in a ``with`` statement, or closed by `close`. Tensors that were read stay valid.

    Args:
        path: of the file.

    Attributes:
        palettized_names: the palettized weights, by the names of their first owners.
        dense_names: all other tensors, sorted.
        aliases: further names of tied tensors: alias to first name.
        version: of the format.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a packed checkpoint, damaged, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        try:
            self._file: Any = safe_open(path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
            header = _header(path, self._file.metadata() or {})
            self._keys = frozenset(self._file.keys())
        except SafetensorError as error:
            self._unreadable(error)
        self._records: dict[str, Any] = header["palettized"]
        self._forms: dict[str, CheckedForm] = {}
        self.aliases: Mapping[str, str] = header["aliases"]
        self.version: int = header["version"]
        self.palettized_names = tuple(self._records)
        own = {f"{n}.{part}" for n in self._records for part in (*self.form(n).parts, *TABLES)}
        self.dense_names = tuple(sorted(self._keys - own))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.__exit__(None, None, None)

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor, decoded where it is palettized, from the file's header.

        Raises:
            KeyError: there is no such tensor.
            CheckpointError: the parts of a palettized weight do not fit.
        """
        name = self.aliases.get(name, name)
        if name in self._records:
            try:
                return self.form(name).shape(self.stored(name))
            except IndexError:
                raise CheckpointError(f"{self._path}: {name}.lut has no shape of tables") from None
        self._check_dense(name)
        return tuple(self._file.get_slice(name).get_shape())

    def dense(self, name: str) -> Tensor:
        """Read a tensor that is not palettized.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: the file is damaged.
        """
        self._check_dense(name)
        return self._tensor(name)

    def palettized(self, name: str) -> PalettizedTensor:
        """Read a palettized weight, its indices unpacked.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: its parts are missing, damaged, or do not fit each other.
        """
        stored = self.stored(name)
        try:
            tensor = self.form(name).decode(stored)
            tensor.check()
            if int(tensor.indices.max()) >> tensor.n_bits:
                raise ValueError(f"an index is {int(tensor.indices.max())}")
        except ValueError as error:
            raise CheckpointError(f"{self._path}: {name}: {error}") from None
        return tensor

    def stored(self, name: str) -> StoredTensor:
        """Return a palettized weight in its stored form, pages of the file where it can be.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: a part is missing, or of the wrong dtype or shape.
        """
        form, path = self.form(name), self._path
        needed = [f"{name}.{part}" for part in (*form.parts, "lut")]
        lacking = [key for key in needed if key not in self._keys]
        if lacking:
            raise CheckpointError(f"{path} lacks {' and '.join(lacking)}")
        n_bits, axis, index_shape, dtype = _decoding(path, name, self._records[name])
        parts = {part: self._tensor(f"{name}.{part}") for part in form.parts}
        lut, lut_scale, zero, scale = (
            self._tensor(key) if (key := f"{name}.{table}") in self._keys else None
            for table in TABLES
        )
        assert lut is not None
        stored = StoredTensor(
            parts, lut, index_shape, n_bits, axis, dtype, lut_scale, zero, scale
        )  # fmt: skip
        for part, expected in form.expects(stored).items():
            got = parts[part]
            sizes = zip(got.shape, expected.shape, strict=False)
            fits = got.dim() == len(expected.shape) and all(e in (None, g) for g, e in sizes)
            if got.dtype is not expected.dtype or not fits:
                raise CheckpointError(
                    f"{path}: {name}.{part} is {dtype_name(got.dtype)} of shape "
                    f"{tuple(got.shape)}, expected {dtype_name(expected.dtype)} of shape "
                    f"{expected.shape} for {stored.index_count} indices of {n_bits} bits"
                )
        return stored

    def _check_dense(self, name: str) -> None:
        if name not in self.dense_names:
            raise KeyError(name)

    def _tensor(self, key: str) -> Tensor:
        try:
            found: Tensor = self._file.get_tensor(key)
        except SafetensorError as error:
            self._unreadable(error)
        return found

    def form(self, name: str) -> CheckedForm:
        """Return the stored form of a palettized weight.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: the form is not installed, or blocked.
        """
        if name in self._forms:
            return self._forms[name]
        record = self._records[name]
        form = record.get("form", DEFAULT_FORM) if isinstance(record, dict) else DEFAULT_FORM
        if not isinstance(form, str):
            raise _damaged(self._path, f"record of {name}: form {form!r}")
        try:
            made = self._forms[name] = stored_form(form)
        except (UnknownPluginError, BlockedPluginError) as error:
            raise CheckpointError(f"{self._path}: {name} needs another plug-in: {error}") from None
        return made

    def _unreadable(self, error: SafetensorError) -> NoReturn:
        text = f"{self._path} is damaged or no safetensors file: {error}"
        raise CheckpointError(text) from error


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file but not a packed checkpoint (no {METADATA_KEY!r} in "
            "its metadata); write one with save_checkpoint"
        )
    try:
        header: Any = read_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise _damaged(path, f"no JSON: {error}") from None
    if not isinstance(header, dict) or "version" not in header:
        raise _damaged(path, "no version")
    if header["version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {header['version']!r}; "
            f"this palette_core reads {FORMAT_VERSION}"
        )
    aliases = header.get("aliases")
    if not isinstance(header.get("palettized"), dict) or not isinstance(aliases, dict):
        raise _damaged(path, "'palettized' and 'aliases' must be objects")
    if not all(isinstance(first, str) for first in aliases.values()):
        raise _damaged(path, "'aliases' must map names to names")
    return header


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: its {METADATA_KEY!r} metadata is damaged: {what}")


def _decoding(path: Path, name: str, record: Any) -> tuple[int, int, list[int], torch.dtype]:
    """Return bits, axis, index shape and dtype from a tensor's record."""
    try:
        n_bits, axis, shape = record["n_bits"], record["axis"], record["index_shape"]
        dtype = parse_dtype(record["dtype"])
        whole = all(type(number) is int for number in (n_bits, axis, *shape))
        if not (whole and 1 <= n_bits <= 8 and shape and 0 < min(shape) <= max(shape) <= _LONGEST):
            raise ValueError(f"n_bits {n_bits!r}, axis {axis!r}, index_shape {shape!r}")
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype {dtype!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"record of {name}: {type(error).__name__}: {error}") from None
    return n_bits, axis, list(shape), dtype
