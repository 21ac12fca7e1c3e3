"""A palettized weight in a stored form, and the torch operator that decodes it in a graph.

What every form has in common (tables, scales, shapes) is a field of `StoredTensor`; how the
indices lie is the form's own, in named parts. An operator takes the parts, then these fields.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from palette_core.errors import TrainingError
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor

INDICES = ("indices",)


class StoredTensor(NamedTuple):
    """A palettized weight in a stored form.

    Attributes:
        parts: what stands for the indices, by the form's names.
        lut: ``[*grid, 2 ** n_bits, D]``, floating or quantized.
        index_shape: shape of the unpacked indices.
        n_bits: bits per index.
        axis: the axis along which the D values of an entry lie.
        dtype: floating dtype of the decoded weight.
        lut_scale: ``[*grid, 1, 1]`` float32 where the LUT is quantized.
        lut_zero_point: ``[*grid, 1, 1]``, in the LUT's dtype.
        scale: factor per output channel, or per block of its inputs; see `PalettizedTensor`.
        lut_dtype: 8-bit dtype of the quantized entries, where ``lut`` and ``lut_zero_point`` hold
            their bytes as uint8; None where they are in their own dtype.
    """

    parts: Mapping[str, Tensor]
    lut: Tensor
    index_shape: list[int]
    n_bits: int
    axis: int
    dtype: torch.dtype
    lut_scale: Tensor | None = None
    lut_zero_point: Tensor | None = None
    scale: Tensor | None = None
    lut_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, tensor: PalettizedTensor, parts: Mapping[str, Tensor]) -> StoredTensor:
        """Return ``tensor`` with ``parts`` in the place of its indices."""
        return cls(
            parts,
            tensor.lut,
            list(tensor.indices.shape),
            tensor.n_bits,
            tensor.axis,
            tensor.dtype,
            tensor.lut_scale,
            tensor.lut_zero_point,
            tensor.scale,
        )

    @classmethod
    def from_arguments(
        cls,
        arguments: Sequence[Any],
        named: Mapping[str, Any] | None = None,
        parts: Sequence[str] = INDICES,
    ) -> StoredTensor:
        """Read the arguments of an operator in a graph, which may be nodes as well as tensors.

        Args:
            arguments: positional ones; those left out have their defaults.
            named: keyword arguments.
            parts: the form's, in the operator's order; that of ``palette_core::depalettize``.
        """
        given = named_arguments(arguments, named, parts)
        return cls({name: given.pop(name) for name in parts}, **given)

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments of the form's operator."""
        return (*self.parts.values(), *self[1:])

    @property
    def index_count(self) -> int:
        """Number of indices."""
        return math.prod(self.index_shape)

    @property
    def shape(self) -> Shape:
        """Shape of the decoded weight, where each index stands for D values of it."""
        dim = self.lut.shape[-1]
        return tuple(s * dim if i == self.axis else s for i, s in enumerate(self.index_shape))

    def typed(self) -> StoredTensor:
        """Return the same with tables in their own dtype, ``lut_dtype`` None."""
        if self.lut_dtype is None:
            return self
        zero = self.lut_zero_point
        return self._replace(
            lut=self.lut.view(self.lut_dtype),
            lut_zero_point=None if zero is None else zero.view(self.lut_dtype),
            lut_dtype=None,
        )

    def with_indices(self, indices: Tensor) -> PalettizedTensor:
        """Return the weight with unpacked indices: uint8, of ``index_shape``."""
        _, lut, _, n_bits, axis, dtype, lut_scale, zero, scale, _ = self.typed()
        return PalettizedTensor(indices, lut, n_bits, axis, dtype, lut_scale, zero, scale)


def named_arguments(
    arguments: Sequence[Any],
    named: Mapping[str, Any] | None = None,
    parts: Sequence[str] = INDICES,
) -> dict[str, Any]:
    """Return the arguments that a call of an operator gives, by name; defaults are left out.

    Args:
        arguments: positional ones.
        named: keyword arguments.
        parts: the form's, in the operator's order; that of ``palette_core::depalettize``.
    """
    names = (*parts, *StoredTensor._fields[1:])
    return dict(zip(names, arguments, strict=False)) | dict(named or {})


_DEFINED: dict[str, tuple[str, ...]] = {}  # operators of stored forms, and the parts they take


def define_operator(
    name: str,
    parts: Sequence[str],
    decode: Callable[[StoredTensor], PalettizedTensor],
    shape: Callable[[StoredTensor], Shape] = lambda stored: stored.shape,
    dense: Callable[[StoredTensor], Tensor] | None = None,
) -> Callable[..., Tensor]:
    """Register the torch operator that stands for a weight in a stored form, and return it.

    It survives eager execution, ``torch.export`` and ``torch.jit.trace``. Its arguments are the
    parts, then the fields of `StoredTensor` that all forms share; it returns the dense weight, and
    its backward raises `TrainingError`.

    Args:
        name: with its namespace, such as ``"my_plugin::depalettize"``.
        parts: of the form, in the order of the arguments.
        decode: unpacks.
        shape: of the weight, told without decoding; tensors have shapes and dtypes only.
        dense: returns the dense weight; by default that of ``decode``.
    """

    def run(*arguments: Any, **named: Any) -> Tensor:
        stored = StoredTensor.from_arguments(arguments, named, parts)
        return decode(stored).decode() if dense is None else dense(stored)

    def fake(*arguments: Any, **named: Any) -> Tensor:
        stored = StoredTensor.from_arguments(arguments, named, parts)
        return stored.lut.new_empty(shape(stored), dtype=stored.dtype)

    def refuse(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        raise TrainingError(
            f"{name} takes no gradients for tables and scales, which are those of a finalized "
            "model; train the prepared model, or call requires_grad_(False) on them"
        )

    run.__signature__ = operator_signature(parts)  # type: ignore[attr-defined]
    operator = torch.library.custom_op(name, run, mutates_args=())
    operator.register_fake(fake)
    operator.register_autograd(refuse)
    _DEFINED[name] = tuple(parts)
    return operator


def define_once(
    name: str,
    parts: Sequence[str],
    decode: Callable[[StoredTensor], PalettizedTensor],
    shape: Callable[[StoredTensor], Shape],
) -> tuple[str, str]:
    """Do as `define_operator` where nobody has; returns namespace and name within it.

    Raises:
        ValueError: the name is none of the form ``"namespace::name"``, or that of an operator
            with other arguments.
    """
    namespace, _, own = name.partition("::")
    if not (namespace.isidentifier() and own.isidentifier()):
        raise ValueError(f"an operator is named like 'my_plugin::depalettize', not {name!r}")
    if not hasattr(getattr(torch.ops, namespace), own):
        define_operator(name, parts, decode, shape)
    elif _DEFINED.get(name) != tuple(parts):
        raise ValueError(
            f"operator {name!r} is there already, and does not take {', '.join(parts)}; a form "
            "needs an operator of its own"
        )
    return namespace, own


def operator_signature(
    parts: Sequence[str], *before: inspect.Parameter, after: Sequence[inspect.Parameter] = ()
) -> inspect.Signature:
    """Return the signature of an operator that takes a stored form's arguments.

    Args:
        parts: of the form.
        before: parameters ahead of them.
        after: parameters behind them.
    """
    types: dict[str, Any] = get_type_hints(StoredTensor)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shared = StoredTensor._fields[1:]
    defaults = StoredTensor._field_defaults
    return inspect.Signature(
        [
            *before,
            *(inspect.Parameter(name, kind, annotation=Tensor) for name in parts),
            *(
                inspect.Parameter(
                    name,
                    kind,
                    annotation=types[name],
                    default=defaults.get(name, inspect.Parameter.empty),
                )
                for name in shared
            ),
            *after,
        ],
        return_annotation=Tensor,
    )
