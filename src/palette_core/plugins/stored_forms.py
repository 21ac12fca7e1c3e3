"""The kind *stored form*: how the indices of a palettized weight lie at rest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec

DENSE_FORM = "indices"


class Part(NamedTuple):
    """Shape and dtype of one part of a stored weight; None is a length that the data decides."""

    dtype: types.dtype
    shape: tuple[int | None, ...]


class StoredForm(ABC):
    """Stores the indices of a palettized weight as named parts, and gets them back, exactly.

    The parts lie in finalized models and in checkpoints, and are what export backends write. A
    form decides about the indices alone, a mask of weights that have none included:

    * Tables, their scales and zero points, and scales of channels lie beside the parts as
      `PalettizedTensor` has them, in every form alike.
    * Clustering, granularities and training know nothing of forms: `encode` is called once, when a
      weight is finalized or saved, with a palettized tensor that is whole and checked.
    * Parts are integers or booleans. They follow the model from device to device, and no cast of
      the model changes them; they may be mapped from files, and must not be written to.
    * How many elements a part has may depend on the values of the indices.
    * Weights with `PalettizedTensor.mask` come to forms whose entry says ``holds_masks``, which
      give them back; others never see one.
    * One object serves every weight, in several threads, and is copied and pickled with models:
      keep nothing in it.
    """

    parts: ClassVar[tuple[str, ...]]
    """Names of the parts, in the order of the operator's arguments; none is a name of a table."""

    operator: ClassVar[str]
    """Name of the torch operator that decodes a weight in a graph: ``"my_plugin::depalettize"``.

    It takes the parts, then the fields that `StoredTensor` has for all forms, and is registered
    (`palette_core.tensors.define_operator`) when the form is first used, unless it is already.
    """

    @abstractmethod
    def encode(self, tensor: types.PalettizedTensor) -> Mapping[str, types.Tensor]:
        """Return the parts, on the device of the indices."""

    @abstractmethod
    def decode(self, stored: types.StoredTensor) -> types.PalettizedTensor:
        """Return what was encoded: uint8 indices of ``stored.index_shape``, and the tables.

        ``stored.with_indices`` puts them together. Parts have the dtypes and shapes of `expects`;
        where they come from a file, their values may be anything.

        Raises:
            ValueError: the parts' values do not fit each other.
        """

    @abstractmethod
    def expects(self, stored: types.StoredTensor) -> Mapping[str, Part]:
        """Return what each part must look like, told by shapes and bits, not by the parts."""

    def size_in_bits(self, stored: types.StoredTensor) -> int:
        """Bits that the parts take, without tables and scales; by default whole bytes."""
        return sum(part.numel() * part.element_size() * 8 for part in stored.parts.values())

    def size_unencoded(self, tensor: types.PalettizedTensor) -> int | None:
        """Return the same before encoding, where that takes no pass over the indices.

        None, the default, has the core encode the tensor to see.
        """
        del tensor
        return None

    def mask_bits(self, shape: types.Shape, nonzeros: int) -> int:
        """Return the bits that tell nonzeros from zeros; by default one for each element.

        Asked of forms that hold masks, to see whether zeros beside the tables are worth it.
        """
        del nonzeros
        return math.prod(shape)

    def shape(self, stored: types.StoredTensor) -> types.Shape:
        """Return the shape of the weight, by shapes alone; by default each index stands for D."""
        return stored.shape

    def check_support(self, facts: types.TensorFacts) -> types.Refusal | None:
        """Return why this tensor cannot be stored so, or None, the default; asked in planning."""
        del facts
        return None


@dataclass(frozen=True, kw_only=True)
class StoredFormEntry(PluginEntry):
    """A stored form. It takes no options: a file is read by the form's name alone.

    Attributes:
        factory: makes the form.
        holds_masks: takes weights whose zeros lie beside their tables; users choose it by
            ``stored_form`` with a ``sparsity_detection_threshold``.
    """

    takes_options: ClassVar[bool] = False

    factory: Callable[[Any], StoredForm]
    holds_masks: bool = False


@hookspec
def palette_core_stored_forms() -> Iterable[StoredFormEntry]:
    """Return the stored forms that this distribution provides.

    Example::

        from palette_core.plugins import (
            INTERFACE_VERSION,
            Part,
            StoredForm,
            StoredFormEntry,
            hookimpl,
        )


        class Bytes(StoredForm):
            '''One byte for each index, in the indices' own shape.'''

            parts = ("bytes",)
            operator = "palette_bytes::depalettize"

            def encode(self, tensor):
                return {"bytes": tensor.indices}

            def decode(self, stored):
                return stored.with_indices(stored.parts["bytes"])

            def expects(self, stored):
                import torch

                return {"bytes": Part(torch.uint8, tuple(stored.index_shape))}


        @hookimpl
        def palette_core_stored_forms():
            return [
                StoredFormEntry(
                    name="bytes",
                    summary="one byte for each index",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: Bytes(),
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
