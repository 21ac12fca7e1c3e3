"""Rules for one weight: the specs and granularities, as the reference groups them."""

from palette_core._common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
