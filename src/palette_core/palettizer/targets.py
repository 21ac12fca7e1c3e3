"""Which backend is meant: by its documented member or by name, and made with the user's options."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import EnumType, StrEnum
from pathlib import Path
from typing import Any

from palette_core.errors import BackendError
from palette_core.plugins import Backend, ExportBackendEntry
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.backends import make_backend
from palette_core.plugins.registries import CORE

_FORMER = {"mil": "coreml", "mlir": "coreai", "_torch": "torch"}  # coreai-opt's names up to 0.3


class _WithFormerNames(EnumType):
    def __getattr__(cls, name: str) -> Any:
        if name.lower() in _FORMER and name.isupper():
            return cls(name.lower())
        raise AttributeError(f"{cls.__name__} has no {name!r}; it has {', '.join(cls.__members__)}")


class ExportBackend(StrEnum, metaclass=_WithFormerNames):
    """The documented export targets; any registered backend's name works in their place.

    Members equal their names. ``MIL``, ``MLIR`` and ``_TORCH``, also called by their values, are
    what they became, with a DeprecationWarning.

    ``Packed`` keeps n bits per weight in a torch model that runs from them; ``Torch``
    makes plain dense weights of the palettes' values, as large and as fast as before.
    """

    CoreAI = "coreai"
    CoreML = "coreml"
    Packed = "packed"
    Torch = "torch"

    @classmethod
    def _missing_(cls, value: object) -> ExportBackend | None:
        now = _FORMER.get(value) if isinstance(value, str) else None
        if now is None:
            return None
        made = cls(now)
        warnings.warn(
            f"ExportBackend {value!r} is ExportBackend.{made.name} now",
            DeprecationWarning,
            stacklevel=4,
        )
        return made


@dataclass(frozen=True)
class Target:
    """A backend, and what it is registered as.

    Attributes:
        name: as users write it.
        entry: its registration.
        backend: made with the user's options.
        is_ours: it comes with the core, and leaves alone what it is not to change.
    """

    name: str
    entry: ExportBackendEntry
    backend: Backend
    is_ours: bool = False


def backend_for(catalog: Catalog, path: Path) -> str:
    """Return the name of the backend that writes files named like a path.

    Raises:
        BackendError: none that is installed does.
        DuplicatePluginError: two distributions claim the suffix.
    """
    found = catalog.export_backends.find_by("suffix", path.suffix)
    if found is not None:
        return found.entry.name
    entries = [item.entry for item in catalog.export_backends]
    written = ", ".join(f"{entry.suffix} ({entry.name})" for entry in entries)
    raise BackendError(
        f"no export backend writes {path}; installed ones write {written}, and other plug-ins, as "
        f"the page on export lists them, other files{catalog.export_backends.left_out()}"
    )


def find_target(
    catalog: Catalog, backend: str | ExportBackend, options: Mapping[str, Any] | None = None
) -> Target:
    """Make the backend that is meant.

    Raises:
        BackendError: ``backend`` is no name, or making it fails.
        MissingBackendError: the backend's plug-in is not installed.
        UnknownPluginError: nobody knows it.
        PluginOptionsError: an option is unknown, or its value wrong.
    """
    name = _name(backend)
    made = make_backend(catalog, name, options or {})
    is_ours = catalog.export_backends.find(name).distribution.name == CORE
    return Target(name, catalog.backend(name), made, is_ours)


def _name(backend: str | ExportBackend) -> str:
    if isinstance(backend, str):
        return str(backend)
    raise BackendError(
        f"backend must be an ExportBackend or the name of a registered one, got {backend!r}"
    )
