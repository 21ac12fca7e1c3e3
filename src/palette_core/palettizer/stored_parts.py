"""Parts of one palette in a state dictionary, each checked against the tensor's plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palette_core.errors import IncompatibleShapeError
from palette_core.palettizer.state_values import not_plain
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.nonzeros import codes_in_use
from palette_core.tensors.palettized import PalettizedTensor


class UnfitError(Exception):
    """A dictionary does not fit a tensor's plan; the text names the tensor."""


@dataclass
class PartsReader:
    """Reads the parts of one palette, and notes which of them it has read."""

    plan: TensorPlan
    prefix: str
    parts: Mapping[str, Any]
    catalog: Catalog
    taken: set[str] = field(default_factory=set)

    def take(self, name: str) -> Tensor:
        """Return a part.

        Raises:
            UnfitError: it is missing, or no plain tensor with values.
        """
        if name not in self.parts:
            raise UnfitError(f"missing: {self.prefix}{name}")
        part: Tensor = self.parts[name]
        problem = not_plain(part)
        if problem:
            raise UnfitError(f"{self.prefix}{name} {problem}")
        self.taken.add(name)
        return part.detach()

    def demand(self, name: str, got: object, right: object) -> None:
        """Refuse a part that is not what it should be."""
        if got != right:
            shown, expected = (
                dtype_name(x) if isinstance(x, torch.dtype) else str(x) for x in (got, right)
            )
            raise UnfitError(f"{self.prefix}{name} is {shown}, expected {expected}")

    def checked(
        self,
        lut: Tensor,
        scale_of_lut: Tensor | None,
        zero: Tensor | None,
        scale: Tensor | None,
        mask: Tensor | None,
    ) -> PalettizedTensor:
        """Return the palette, as its plan has it."""
        plan, layout = self.plan, self.plan.layout
        self.demand("lut", tuple(lut.shape), layout.lut_shape(plan.spec.n_entries))
        indices = self.take("indices")
        self.demand("indices", indices.dtype, torch.uint8)
        indices = self.whole_indices(indices, mask)
        self.demand("indices", list(indices.shape), list(layout.index_shape))
        if indices.numel() and int(indices.max()) >= plan.spec.n_entries:
            raise UnfitError(
                f"{self.prefix}indices go up to {int(indices.max())}, and a table of "
                f"{plan.spec.n_bits} bits has {plan.spec.n_entries} entries"
            )
        if plan.spec.lut_qspec is None:
            self.demand("lut", lut.dtype, plan.dtype)
        if mask is not None:
            indices = layout.merge_codes(
                layout.split_indices(indices) * codes_in_use(mask, layout)
            ).contiguous()
        made = PalettizedTensor(
            indices,
            lut,
            plan.spec.n_bits,
            plan.axis,
            plan.dtype,
            scale_of_lut,
            zero,
            scale,
            mask,
        )
        try:
            made.check()
        except (ValueError, IncompatibleShapeError) as error:
            raise UnfitError(f"{plan.name}: {error}") from None
        return made

    def whole_indices(self, indices: Tensor, mask: Tensor | None) -> Tensor:
        """Return indices of all points, as ours are stored."""
        return indices

    def has_zero_point(self) -> bool:
        """Return whether the tables' quantizer makes zero points."""
        plan = self.plan
        name, spec = plan.lut_quantizer, plan.spec.lut_qspec
        quantizer = make_lut_quantizer(self.catalog, name, spec, plan.name)
        assert quantizer is not None
        return quantizer.quantize(torch.linspace(-1, 1, 2)[None, :, None]).zero_point is not None
