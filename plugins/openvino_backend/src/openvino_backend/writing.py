"""Write the two files of a model."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from openvino_backend.finishing import Converted
from palette_core.errors import BackendError


def write_model(converted: Converted, path: Path) -> None:
    """Write ``path``, and its constants to a ``.bin`` beside it.

    Raises:
        BackendError: OpenVINO cannot write the files.
    """
    try:
        # Rounding to float16 is an option of this backend, and done before.
        ov.save_model(converted.model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot write {path.name}: {error}") from error
