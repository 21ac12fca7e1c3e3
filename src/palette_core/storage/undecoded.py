"""The weight of a finalized layer as other code reads it: decoded when somebody needs its values.

A tied head is often written ``linear(x, embedding.weight)``: that is computed from the packed
weight, as by a layer of its own. Whatever else is done with the weight gets it decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils._pytree import tree_map_only

from palette_core.storage.computing import is_watched, linear_output

if TYPE_CHECKING:
    from palette_core.storage.packed_weight import PackedWeight

_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn")
_KNOWN = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.is_floating_point),
}


class UndecodedWeight(Tensor):
    """A packed weight that looks like its dense tensor.

    It follows the layer, as a parameter does: who changes the layer's tables changes what is
    decoded afterwards, until it has been decoded once.
    """

    _packed: PackedWeight
    _decoded: Tensor | None

    @staticmethod
    def __new__(cls, packed: PackedWeight) -> Self:
        """Return what stands for the weight; nothing is decoded."""
        made: Self = Tensor._make_wrapper_subclass(
            cls, packed.palettized_shape(), dtype=packed.weight_dtype, device=packed.lut.device
        )
        made._packed, made._decoded = packed, None
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Multiply without the dense weight, or go on with it."""
        named = dict(kwargs or {})
        if func in _KNOWN:
            return super().__torch_function__(func, types, tuple(args), named)  # type: ignore[no-untyped-call]
        if func is linear:
            output = _multiplied(*args, **named)
            if output is not None:
                return output
        return func(*_decode(list(args)), **_decode(named))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        """Compute with the dense weight."""
        del types
        return func(*_decode(list(args)), **_decode(kwargs or {}))


def undecoded(packed: PackedWeight) -> Tensor | None:
    """Return what stands for a weight until it is needed, or None: it is to be decoded at once."""
    if torch.compiler.is_compiling() or len(packed.index_shape) != 2 or is_watched(packed):
        return None
    return UndecodedWeight(packed)


def _multiplied(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    if not isinstance(weight, UndecodedWeight) or isinstance(bias, UndecodedWeight):
        return None
    return linear_output(weight._packed, input, bias)


def _decode(given: Any) -> Any:
    return tree_map_only(UndecodedWeight, _dense, given)


def _dense(weight: UndecodedWeight) -> Tensor:
    if weight._decoded is None:
        weight._decoded = weight._packed.decoded()
    return weight._decoded
