"""Write packed checkpoints, from tensors alone; `checkpoint_reading` says what is in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from palette_core._common.files import atomic_path
from palette_core._common.tensor_files import save_file
from palette_core.errors import CheckpointError
from palette_core.plugins.checked.stored_forms import CheckedForm
from palette_core.storage.checkpoint_header import metadata_of
from palette_core.storage.checkpoint_reading import TABLES
from palette_core.storage.forms.lookup import DEFAULT_FORM, encode, form_for, stored_form
from palette_core.storage.origins import Origin
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.palettized import PalettizedTensor, check_values
from palette_core.tensors.stored import StoredTensor

_NONE: Mapping[str, Any] = MappingProxyType({})


def write_checkpoint(
    path: str | Path,
    palettized: Mapping[str, PalettizedTensor],
    dense: Mapping[str, Tensor] = _NONE,
    *,
    aliases: Mapping[str, str] = _NONE,
    stored_forms: Mapping[str, str] = _NONE,
    origins: Mapping[str, Origin] = _NONE,
    values: Mapping[str, Any] = _NONE,
) -> Path:
    """Write palettized and dense tensors to a packed checkpoint, whole or not at all.

    Args:
        path: of the file; its folder exists.
        palettized: palettized weights by name.
        dense: other tensors by name.
        aliases: further names of tied tensors: alias to a name of the other two.
        stored_forms: names of registered stored forms by the names of palettized weights; those
            left out have the default form, or the sparse one where they have masks.
        origins: where palettes come from, by the names of palettized weights; the file says so.
        values: what modules keep that is no tensor, by name, such as extra state: JSON values.

    Raises:
        CheckpointError: the parts of a weight do not fit each other, its tables are NaN or
            infinite, two tensors have one name, or an alias, a form or an origin is of a tensor
            that is not there; a value is none that JSON holds exactly; or a form fails.
        UnknownPluginError: nobody knows a form.
        OSError: the file cannot be written; what stood there still does.
    """
    for name, first in aliases.items():
        if first not in palettized and first not in dense:
            raise CheckpointError(f"alias {name}: there is no tensor {first}")
    for what, given in (("stored form", stored_forms), ("origin", origins)):
        for name in given:
            if name not in palettized:
                raise CheckpointError(f"{what} of {name}: no such weight is palettized")
    stored: dict[str, tuple[CheckedForm, StoredTensor]] = {}
    for name, tensor in palettized.items():
        try:
            tensor.check()
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from None
        form = stored_form(stored_forms.get(name) or form_for(tensor, DEFAULT_FORM))
        stored[name] = form, encode(tensor, form)
    return write_stored(Path(path), stored, dense, aliases, origins, values)


def write_stored(
    path: Path,
    stored: Mapping[str, tuple[CheckedForm, StoredTensor]],
    dense: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    origins: Mapping[str, Origin],
    values: Mapping[str, Any],
    written: Sequence[str] = (),
) -> Path:
    """Write weights that are in a stored form already; see `write_checkpoint`."""
    host, metadata = host_content(stored, dense, aliases, origins, values, written)
    with atomic_path(path) as temporary:
        save_file(host, temporary, metadata=metadata)
    return path


def host_content(
    stored: Mapping[str, tuple[CheckedForm, StoredTensor]],
    dense: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    origins: Mapping[str, Origin],
    values: Mapping[str, Any],
    written: Sequence[str] = (),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the CPU tensors and the metadata of a file; see `write_checkpoint`."""
    tensors: dict[str, Tensor] = {}
    records: dict[str, Any] = {}
    for name, (form, weight) in stored.items():
        typed = weight.typed()
        tensors |= {f"{name}.{part}": tensor for part, tensor in typed.parts.items()}
        tables = {f"{name}.{table}": getattr(typed, table) for table in TABLES}
        for key, table in tables.items():
            if table is not None:
                tensors[key] = _usable(key, table)
        records[name] = {
            "form": form.name,
            "index_shape": list(typed.index_shape),
            "axis": typed.axis,
            "n_bits": typed.n_bits,
            "dtype": dtype_name(typed.dtype),
        }
    twice = sorted(tensors.keys() & dense.keys())
    if twice:
        raise CheckpointError(
            f"{', '.join(twice)}: a dense tensor and a part of a palettized weight have one name"
        )
    for alias in aliases:
        if alias in records or alias in dense:
            raise CheckpointError(f"alias {alias} has the name of a tensor of its own")
    host = _on_host(tensors | dict(dense))
    return host, metadata_of(records, aliases, host, origins, values, written)


def _usable(key: str, table: Tensor) -> Tensor:
    """Return a table as it is.

    Raises:
        CheckpointError: it is NaN or infinite.
    """
    try:
        check_values(key, table)
    except ValueError as error:
        raise CheckpointError(f"{error}; no file is written of it") from None
    return table


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors, none of which shares memory with another."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        storage = host.untyped_storage().data_ptr()
        out[name] = host.clone() if storage in seen else host
        seen.add(storage)
    return out
