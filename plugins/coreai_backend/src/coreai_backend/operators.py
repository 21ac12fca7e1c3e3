"""The operators that a finalized model is traced to, of Core AI's own.

``coreai::lut_to_dense.palette_core`` is an overload of the operator that coreai-torch and
coreai-opt know as a compressed weight: what inserts quantizers into a graph leaves it and its
result alone. It takes what ``palette_core::depalettize`` takes, packed indices included, and
returns the same weight. ``coreai::sparse_with_bitmask_to_dense.palette_core`` does so for
``palette_core::depalettize_sparse``. Importing this module defines them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palette_core.tensors import OP_NAME, SPARSE_OP_NAME

_OVERLOAD = "palette_core"
_made: Any = torch.library.Library  # has no types
_library = _made("coreai", "FRAGMENT")


def _overload(source: str, name: str) -> str:
    """Define an overload that does what another operator does; returns its name."""
    namespace, _, own = source.partition("::")
    decode = getattr(getattr(torch.ops, namespace), own).default
    name = f"{name}.{_OVERLOAD}"
    _library.define(str(decode._schema).replace(source, name, 1))
    _library.impl(name, decode, "CompositeExplicitAutograd")
    torch.library.register_fake(f"coreai::{name}", decode, lib=_library)
    return f"coreai::{name}"


DENSE = _overload(OP_NAME, "lut_to_dense")
SPARSE = _overload(SPARSE_OP_NAME, "sparse_with_bitmask_to_dense")


def lut_to_dense(*arguments: Any) -> Tensor:
    """Decode a weight by `DENSE`; see `StoredTensor.arguments`."""
    made: Tensor = torch.ops.coreai.lut_to_dense.palette_core(*arguments)
    return made


def sparse_to_dense(*arguments: Any) -> Tensor:
    """Decode a sparse weight by `SPARSE`."""
    made: Tensor = torch.ops.coreai.sparse_with_bitmask_to_dense.palette_core(*arguments)
    return made


TRACED: dict[str, Callable[..., Tensor]] = {OP_NAME: lut_to_dense, SPARSE_OP_NAME: sparse_to_dense}
