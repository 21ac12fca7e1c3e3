"""Registers the backend; the exporter is imported when something is exported."""

from palette_core.plugins import Backend, ExportBackendEntry, NoOptions, hookimpl


def _make(options: NoOptions) -> Backend:
    from palette_onnx.backend import OnnxBackend

    return OnnxBackend()


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """ONNX."""
    text = "ONNX: indices and look-up tables, read by Gather"
    kind = ExportBackendEntry
    return [kind(name="onnx", summary=text, interface=1, factory=_make, suffix=".onnx")]
