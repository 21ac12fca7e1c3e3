"""Registers the backend; the converter is imported when something is exported, not before."""

from openvino_backend.options import OpenVINOOptions
from palette_core.plugins import Backend, ExportBackendEntry, hookimpl


def _make(options: OpenVINOOptions) -> Backend:
    from openvino_backend.backend import OpenVINOBackend

    return OpenVINOBackend(options)


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """OpenVINO."""
    return [
        ExportBackendEntry(
            name="openvino",
            summary="OpenVINO models for Intel and Arm CPUs and Intel GPUs, weights palettized",
            interface=1,
            options=OpenVINOOptions,
            factory=_make,
            suffix=".xml",
            supports_mmap=True,
            beside=(".bin",),
            stored_forms=("indices", "sparse"),
        )
    ]
