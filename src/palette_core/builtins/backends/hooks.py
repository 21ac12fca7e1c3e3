"""Registers what torch itself runs: packed weights, and plain dense ones."""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, Backend, ExportBackendEntry, hookimpl


def _packed(options: Any) -> Backend:
    from palette_core.builtins.backends.packed import PackedBackend

    return PackedBackend(options)


def _dense(options: Any) -> Backend:
    from palette_core.builtins.backends.dense import DenseBackend

    return DenseBackend(options)


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """Packed indices and LUTs in a safetensors checkpoint, and plain weights in a state dict."""
    return [
        ExportBackendEntry(
            name="packed",
            summary="packed indices and LUTs, in the model and in a safetensors checkpoint",
            interface=INTERFACE_VERSION,
            factory=_packed,
            suffix=".safetensors",
            supports_mmap=True,
            stored_forms=None,
        ),
        ExportBackendEntry(
            name="torch",
            summary="plain dense weights of the palettes' values, as large as before; no indices",
            interface=INTERFACE_VERSION,
            factory=_dense,
            suffix=".pt",
            leaves_dense=True,
            supports_mmap=False,
            stored_forms=None,
        ),
    ]
