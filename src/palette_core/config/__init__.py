"""The configuration: what to palettize, and how."""

from palette_core._common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
