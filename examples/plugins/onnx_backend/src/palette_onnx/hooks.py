"""Registers the backend; the exporter is imported when something is exported."""

from functools import partial

from palette_core.plugins import Backend, ExportBackendEntry, NoOptions, hookimpl


def _make(options: NoOptions) -> Backend:
    from palette_onnx.backend import OnnxBackend

    return OnnxBackend()


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """ONNX."""
    text, forms = "ONNX: indices and look-up tables, read by Gather", ("indices", "sparse")
    kind = partial(ExportBackendEntry, interface=1, factory=_make, stored_forms=forms)
    return [kind(name="onnx", summary=text, suffix=".onnx")]
