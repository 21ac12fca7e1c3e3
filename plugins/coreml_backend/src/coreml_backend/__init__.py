"""Core ML packages with palettized weights, for palette_core.

Importing this package registers the lowering of ``palette_core::depalettize`` with coremltools, so
``coremltools.convert`` takes finalized models.
"""

from coreml_backend.lowering import register
from coreml_backend.reading import keep_names, read_weights

__all__ = ["keep_names", "read_weights", "register"]

register()
