"""All that an author of plug-ins imports: interfaces and records by kind, and the hooks' marker.

A plug-in hands the core *entries*: small frozen records with a name, a summary, an options model
and a factory. The core validates the user's options against the model, calls the factory with
them, and uses the object it gets through one of the abstract classes here. Weights never pass
through a hook. Importing this package imports no torch, so that a module of hooks need not.
"""

from importlib import import_module

from palette_core._common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)

# The interfaces, at once: every module of hooks needs some, and is to load nothing but itself.
import_module("palette_core.plugins.kinds")
