"""A palettized weight as data: layout, bit packing, look-up tables, decoding, distortion."""

from palette_core._common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
