"""Registers the backend; the converter is imported when something is exported, not before."""

from coreai_backend.options import CoreAIOptions
from palette_core.plugins import Backend, ExportBackendEntry, hookimpl


def _make(options: CoreAIOptions) -> Backend:
    from coreai_backend.backend import CoreAIBackend

    return CoreAIBackend(options)


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """Core AI."""
    return [
        ExportBackendEntry(
            name="coreai",
            summary="Apple's Core AI: packed indices and look-up tables in an .aimodel",
            interface=1,
            options=CoreAIOptions,
            factory=_make,
            suffix=".aimodel",
            supports_mmap=True,
            edits_programs=True,
            takes_functions=True,
            stored_forms=("indices", "sparse"),
        )
    ]
