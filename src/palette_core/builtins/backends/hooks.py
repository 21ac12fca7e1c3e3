"""Registers the packed form that torch itself runs."""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, Backend, ExportBackendEntry, hookimpl


def _torch(options: Any) -> Backend:
    from palette_core.builtins.backends.packed import PackedBackend

    return PackedBackend(options)


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """Packed indices and LUTs in a safetensors checkpoint."""
    return [
        ExportBackendEntry(
            name="torch",
            summary="packed indices and LUTs, in the model and in a safetensors checkpoint",
            interface=INTERFACE_VERSION,
            factory=_torch,
            suffix=".safetensors",
            supports_mmap=True,
            stored_forms=None,
        ),
    ]
