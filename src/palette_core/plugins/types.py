"""Types that the interfaces of plug-ins speak of, each imported when it is first asked for.

A module of hooks imports the interfaces, and is not to import torch for it. Annotations of the
interfaces name these types as attributes of this module, where `typing.get_type_hints` finds them.
"""

from palette_core._common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
