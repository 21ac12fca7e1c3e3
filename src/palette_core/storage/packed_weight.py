"""The modules that stand for palettized weights: what all share, and that of a finalized model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from palette_core.plugins.checked.stored_forms import CheckedForm
from palette_core.storage.computing import layer_output
from palette_core.storage.forms.lookup import (
    DEFAULT_FORM,
    form_for,
    size_in_bits,
    stored_form,
)
from palette_core.storage.mapped_files import WeightFile, write_mapped
from palette_core.storage.origins import Origin
from palette_core.storage.undecoded import undecoded
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor


class PaletteModule(nn.Module, ABC):
    """Holds look-up tables as buffers; subclasses hold the indices in their own way.

    Args:
        palettized: the weight.
        form: how it is stored in the end.
        parts: buffers that stand for the indices.
    """

    indices: Tensor
    lut: Tensor
    lut_scale: Tensor | None
    lut_zero_point: Tensor | None
    scale: Tensor | None
    origin: Origin | None  # what made it, where that is known
    form: CheckedForm
    n_bits: int
    axis: int
    index_shape: list[int]
    part_names: tuple[str, ...]
    lut_dtype: torch.dtype | None
    _float: torch.dtype

    def __init__(
        self, palettized: PalettizedTensor, form: CheckedForm, parts: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        # Quantized entries are kept as bytes: moving a model to half precision must not turn
        # 8-bit floats into 16-bit ones.
        quantized = palettized.lut_scale is not None
        vars(self).update(  # nn.Module's setattr takes its time
            origin=None,
            form=form,
            n_bits=palettized.n_bits,
            axis=palettized.axis,
            index_shape=list(palettized.indices.shape),
            part_names=tuple(parts),
            lut_dtype=palettized.lut.dtype if quantized else None,
            _float=palettized.dtype,
        )
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.register_buffer(
            "lut", palettized.lut.view(torch.uint8) if quantized else palettized.lut
        )
        zero = palettized.lut_zero_point
        self.register_buffer("lut_scale", palettized.lut_scale)
        self.register_buffer("lut_zero_point", None if zero is None else zero.view(torch.uint8))
        self.register_buffer("scale", palettized.scale)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the decoded weight; follows the model where the model is cast."""
        return self._float if self.lut_dtype is not None else self.lut.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        lut_scale = self.lut_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if lut_scale is not None:
            # Quantized tables do not show what dtype the model is cast to; a probe does. Their
            # scale stays in float32.
            self._float = fn(torch.empty(0, dtype=self._float, device=lut_scale.device)).dtype
            self.lut_scale = lut_scale.to(self.lut.device)
        return self

    def stored(self) -> StoredTensor:
        """Return tables and the parts that stand for the indices, sharing this module's memory."""
        return StoredTensor(
            {name: getattr(self, name) for name in self.part_names},
            self.lut,
            self.index_shape,
            self.n_bits,
            self.axis,
            self.weight_dtype,
            self.lut_scale,
            self.lut_zero_point,
            self.scale,
            self.lut_dtype,
        )

    @property
    def is_enabled(self) -> bool:
        """Return whether the palette stands for the weight."""
        return True

    @abstractmethod
    def palettized_shape(self) -> torch.Size:
        """Shape of the decoded weight."""

    @abstractmethod
    def palettized(self) -> PalettizedTensor:
        """Return the weight as unpacked indices and tables."""

    @abstractmethod
    def size_in_bits(self) -> int:
        """Bits of indices, tables and scales as a finalized model stores them."""

    def changeable(self) -> list[Tensor]:
        """Return the tensors whose values `finalize` may change, or code that is handed them."""
        return [*self.parameters(recurse=False), *self.buffers(recurse=False)]

    def settle(self, weight: Tensor) -> None:
        """Make indices and tables what training has come to; by default they always are.

        Args:
            weight: the dense weight, `PaletteSite.dense`.
        """


@final
class PackedWeight(PaletteModule):
    """A weight of a finalized model: a stored form and tables behind one operator.

    The parts of the form are buffers under their names: ``indices`` where the form is the default.

    Args:
        palettized: the weight.
        form: how to store it; None packs every index to n bits, or those of nonzeros where the
            weight has a mask.
        origin: what made it, where that is known.

    Attributes:
        takes_gradients: the dense original did; a folded weight will.
        traced_as: what stands for the weight in a graph of ``torch.export``, in the place of the
            form's operator: a function at the top of a module, of the same arguments. A backend
            sets it to an operator that tools of its runtime know.
    """

    traced_as: Callable[..., Tensor] | None

    def __init__(
        self,
        palettized: PalettizedTensor,
        form: CheckedForm | None = None,
        origin: Origin | None = None,
    ) -> None:
        form = stored_form(form_for(palettized, DEFAULT_FORM)) if form is None else form
        super().__init__(palettized, form, form.encode(palettized))
        self.takes_gradients = False
        self.traced_as = None
        self.origin = origin
        self._file: WeightFile | None = None

    def map_to(self, path: Path) -> None:
        """Move parts and tables to a file, and map them from there.

        The file must stay; `check_file` tells when it has not.

        Raises:
            OSError: the file cannot be written.
        """
        parts = {name: part.detach().cpu() for name, part in self.named_buffers()}
        mapped, self._file = write_mapped(parts, path)
        for name, part in mapped.items():
            setattr(self, name, part)

    def check_file(self) -> None:
        """Check the file that the weight is mapped from, where there is one.

        Raises:
            WeightFileError: it is missing, or its size has changed.
        """
        if self._file is not None:
            self._file.check()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.check_file()
        before = self.stored().parts
        super()._apply(fn, recurse)
        moved = zip(before.values(), self.stored().parts.values(), strict=True)
        if all(now is not old and now.data_ptr() != old.data_ptr() for old, now in moved):
            self._file = None  # everything has been copied
        return self

    def __getstate__(self) -> dict[str, Any]:
        self.check_file()
        return {**vars(self), "_file": None}  # a copy is in memory

    def palettized_shape(self) -> torch.Size:
        """Shape of the decoded weight."""
        return torch.Size(self.form.shape(self.stored()))

    def palettized(self) -> PalettizedTensor:
        """Return the weight with its indices unpacked.

        Raises:
            WeightFileError: the file it is mapped from is missing or damaged.
        """
        self.check_file()
        return self.form.decode(self.stored())

    def dense(self) -> Tensor:
        """Return the decoded weight, in memory of its own and free of any graph.

        Raises:
            WeightFileError: the file it is mapped from is missing or damaged.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            return self.palettized().decode()

    def changeable(self) -> list[Tensor]:
        """Return the tensors that other code may change; a mapped file keeps its own values."""
        return [] if self._file is not None else super().changeable()

    def placeholder(self) -> nn.Parameter:
        """Return an empty parameter of the weight's dtype and device, to stand for the original."""
        empty = torch.empty(0, dtype=self.weight_dtype, device=self.lut.device)
        return nn.Parameter(empty, requires_grad=False)

    def size_in_bits(self) -> int:
        """Bits of parts, tables and scales."""
        return size_in_bits(self.stored(), self.form)

    def forward(self, weight: Tensor) -> Tensor:
        """Decode; the placeholder that stands where the dense weight was is not read."""
        del weight
        return self.decoded()

    def decoded(self) -> Tensor:
        """Return the dense weight, as the operator or what stands for it in graphs makes it.

        Raises:
            WeightFileError: the file it is mapped from is missing or damaged.
        """
        if torch.compiler.is_compiling() and self.traced_as is not None:
            return self.traced_as(*self.stored().arguments())
        if self._file is not None and not torch.compiler.is_compiling():
            self._file.check()
        return self.form.torch_operator(*self.stored().arguments())

    def layer_output(self, layer: nn.Module, given: Tensor) -> Tensor | None:
        """Return what a layer computes with the weight, or None: it is to use the dense one."""
        return layer_output(self, layer, given)

    def as_weight(self) -> Tensor | None:
        """Return what a layer shows as its weight, or None: it is to decode it."""
        return undecoded(self)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows in brackets."""
        return f"n_bits={self.n_bits}, index_shape={tuple(self.index_shape)}"
