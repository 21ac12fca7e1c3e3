"""Packed checkpoints: one safetensors file with stored weights, look-up tables and the rest.

For each palettized weight ``name`` the file holds the parts of its stored form (``name.indices``
for the default form: 1-D uint8, a little-endian bit stream), ``name.lut`` and, where they exist,
``name.lut_scale``, ``name.lut_zero_point`` and ``name.scale``; every other parameter and buffer is
held dense under its own name. The metadata entry ``palette_core`` is JSON with the version of the
format, what is needed to decode, a checksum of every tensor, and where palettes come from; see
`checkpoint_header`. No model is needed to read or to write one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from palette_core._common.warned import warn
from palette_core.errors import (
    BlockedPluginError,
    CheckpointError,
    UnknownPluginError,
)
from palette_core.plugins.checked.stored_forms import CheckedForm
from palette_core.storage.checkpoint_header import damaged, decoding, read_header
from palette_core.storage.checksums import difference
from palette_core.storage.forms.lookup import DEFAULT_FORM, stored_form
from palette_core.storage.origins import Origin
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor

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
        origins: where palettes come from, by name of the weight, as far as the file says.
        values: what modules keep that is no tensor, by name.
        written: names of buffers that the model writes when it runs, such as caches; not here.
    """

    palettized: Mapping[str, PalettizedTensor]
    dense: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    version: int
    stored_forms: Mapping[str, str]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    written: Sequence[str] = ()


@final
class CheckpointReader:
    """A packed checkpoint, opened: names and shapes at once, each tensor when it is asked for.

    A tensor is checked against its checksum whenever it is read. Used in a ``with`` statement, or
    closed by `close`. Tensors that were read stay valid.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        stored_names: what the file holds, parts of palettized weights one by one.
        palettized_names: the palettized weights, by the names of their first owners.
        dense_names: all other tensors, sorted.
        aliases: further names of tied tensors: alias to first name.
        version: of the format.
        has_checksums: whether damage to a tensor shows; files of version 1 have no checksums.
        origins: where palettes come from, by name of the weight, as far as the file says.
        values: what modules keep that is no tensor, by name.
        written: names of buffers that the model writes when it runs, which the file does not hold.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a packed checkpoint, damaged, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, expected a packed checkpoint")
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        try:
            self._file: Any = safe_open(path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
            header = read_header(path, self._file.metadata() or {})
            self._keys = self.stored_names = frozenset(self._file.keys())
        except SafetensorError as error:
            self._unreadable(error)
        self._records = header.palettized
        self._checksums = header.checksums
        self._forms: dict[str, CheckedForm] = {}
        self.aliases, self.version, self.origins = header.aliases, header.version, header.origins
        self.values, self.written = header.values, header.written
        self.has_checksums = header.checksums is not None
        self.palettized_names = tuple(self._records)
        own = {f"{n}.{part}" for n in self._records for part in (*self.form(n).parts, *TABLES)}
        self.dense_names = tuple(sorted((self._keys | set(self._checksums or ())) - own))
        self._check_aliases()
        if not self.has_checksums:
            warn(
                f"{path} was written without checksums, so damage to it may not show; write it "
                "again with save_checkpoint",
                stacklevel=2,
            )

    def _check_aliases(self) -> None:
        """Refuse names that stand for two tensors, or for none."""
        names = {*self.palettized_names, *self.dense_names}
        for alias, first in self.aliases.items():
            if alias in names:
                raise damaged(self.path, f"alias {alias} has the name of a tensor of its own")
            if first not in names:
                raise damaged(self.path, f"alias {alias} is of {first}, which is not there")

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
                return self.form(name).shape(self._stored(name, check=False))
            except IndexError:
                raise CheckpointError(f"{self.path}: {name}.lut has no shape of tables") from None
        self._check_dense(name)
        self._check_present([name])
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
            raise CheckpointError(f"{self.path}: {name}: {error}") from None
        return tensor

    def stored(self, name: str) -> StoredTensor:
        """Return a palettized weight in its stored form, pages of the file where it can be.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: a part is missing, damaged, or of the wrong dtype or shape.
        """
        return self._stored(name)

    def _stored(self, name: str, *, check: bool = True) -> StoredTensor:
        form, path = self.form(name), self.path
        tables = [f"{name}.{table}" for table in TABLES]
        written = [key for key in tables if key in (self._checksums or ())]
        needed = [f"{name}.{part}" for part in (*form.parts, "lut")]
        self._check_present(dict.fromkeys([*needed, *written]))
        n_bits, axis, index_shape, dtype = decoding(path, name, self._records[name])
        parts = {part: self._tensor(f"{name}.{part}", check=check) for part in form.parts}
        lut, lut_scale, zero, scale = (
            self._tensor(key, check=check) if key in self._keys else None for key in tables
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

    def _check_present(self, keys: Iterable[str]) -> None:
        lacking = [key for key in keys if key not in self._keys]
        if lacking:
            raise CheckpointError(f"{self.path} lacks {' and '.join(lacking)}")

    def _tensor(self, key: str, *, check: bool = True) -> Tensor:
        self._check_present([key])
        try:
            found: Tensor = self._file.get_tensor(key)
        except SafetensorError as error:
            self._unreadable(error)
        if check and self._checksums is not None:
            problem = difference(key, found, self._checksums)
            if problem:
                raise CheckpointError(f"{self.path}: {problem}")
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
            raise damaged(self.path, f"record of {name}: form {form!r}")
        try:
            made = self._forms[name] = stored_form(form)
        except (UnknownPluginError, BlockedPluginError) as error:
            raise CheckpointError(f"{self.path}: {name} needs another plug-in: {error}") from None
        return made

    def _unreadable(self, error: SafetensorError) -> NoReturn:
        text = f"{self.path} is damaged or no safetensors file: {error}"
        raise CheckpointError(text) from error
