"""Palettization of PyTorch models: weights become small indices into look-up tables."""

import sys
from importlib import import_module

from palette_core._common.lazy import lazy_names

# So that neither the command line nor a plug-in's module of hooks imports torch.
__getattr__, __dir__, __all__ = lazy_names(__name__)

# Whoever loads a saved program has imported torch, and needs the operator that stands in it.
if sys.modules.get("torch") is not None:
    import_module("palette_core.tensors.operators")
