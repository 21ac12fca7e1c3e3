"""Stored forms that are wrong in one way each, and three that are right."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palette_core.plugins import Part, Refusal, StoredForm, StoredFormEntry, TensorFacts
from palette_core.tensors import OP_NAME, PalettizedTensor, StoredTensor


class Bytes(StoredForm):
    """One byte for each index, in the indices' own shape."""

    parts = ("codes",)
    operator = "tests_bytes::depalettize"

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        return {"codes": tensor.indices}

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        return stored.with_indices(stored.parts["codes"])

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        return {"codes": Part(torch.uint8, tuple(stored.index_shape))}


class Runs(StoredForm):
    """Runs of equal indices, with their lengths: what takes space depends on the values."""

    parts = ("values", "lengths")
    operator = "tests_runs::depalettize"

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        values, lengths = torch.unique_consecutive(tensor.indices.flatten(), return_counts=True)
        return {"values": values, "lengths": lengths.to(torch.int32)}

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        values, lengths = stored.parts["values"], stored.parts["lengths"]
        if len(values) != len(lengths) or int(lengths.sum()) != stored.index_count:
            raise ValueError(f"runs of {int(lengths.sum())} for {stored.index_count} indices")
        codes = values.repeat_interleave(lengths.long())
        return stored.with_indices(codes.reshape(stored.index_shape))

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        return {"values": Part(torch.uint8, (None,)), "lengths": Part(torch.int32, (None,))}


class Places(StoredForm):
    """Places of nonzeros, with their indices: the form of others that holds zeros apart."""

    parts = ("places", "codes")
    operator = "tests_places::depalettize"

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        if facts.spec.cluster_dim == 1:
            return None
        return Refusal("one value each", facts.spec.model_copy(update={"cluster_dim": 1}))

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        every = torch.ones_like(tensor.indices, dtype=torch.bool)
        mask = (every if tensor.mask is None else tensor.mask).flatten()
        return {"places": mask.nonzero()[:, 0], "codes": tensor.indices.flatten()[mask]}

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        places, codes = stored.parts["places"], stored.parts["codes"]
        if len(places) != len(codes) or (len(places) and int(places.max()) >= stored.index_count):
            raise ValueError(f"{len(places)} places of {stored.index_count}, {len(codes)} indices")
        indices = torch.zeros(stored.index_count, dtype=torch.uint8, device=codes.device)
        indices[places] = codes
        made = stored.with_indices(indices.reshape(stored.index_shape))
        if len(places) == stored.index_count:
            return made
        mask = torch.zeros(stored.index_count, dtype=torch.bool, device=codes.device)
        mask[places] = True
        return replace(made, mask=mask.reshape(made.shape))

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        return {"places": Part(torch.int64, (None,)), "codes": Part(torch.uint8, (None,))}

    def mask_bits(self, shape: tuple[int, ...], nonzeros: int) -> int:
        return 64 * nonzeros


class Wide(Bytes):
    operator = "tests_wide::depalettize"

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        return {"codes": tensor.indices.to(torch.int16)}

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        return stored.with_indices(stored.parts["codes"].to(torch.uint8))


class Flipped(Bytes):
    operator = "tests_flipped::depalettize"

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        return stored.with_indices(stored.parts["codes"].flip(0))


class Elsewhere(Bytes):
    """Its operator is another form's."""

    operator = OP_NAME


class Free(Bytes):
    operator = "tests_free::depalettize"

    def size_in_bits(self, stored: StoredTensor) -> int:
        return 0


class Trusting(Runs):
    """It lets torch's own error out, where runs are too short."""

    operator = "tests_trusting::depalettize"

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        codes = stored.parts["values"].repeat_interleave(stored.parts["lengths"].long())
        return stored.with_indices(codes.reshape(stored.index_shape))


class Counting(Bytes):
    operator = "tests_counting::depalettize"
    calls = itertools.count()

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        return {"codes": (tensor.indices + next(self.calls)) & 1}


class Curt(Bytes):
    operator = "tests_curt::depalettize"

    def check_support(self, facts: object) -> Any:
        return False


def form(kind: type[StoredForm], name: str = "wrong") -> StoredFormEntry:
    return StoredFormEntry(name=name, summary="wrong", interface=1, factory=lambda options: kind())


FORMS: dict[str, StoredFormEntry] = {
    "parts": form(Wide),
    "exact": form(Flipped),
    "operator": form(Elsewhere),
    "size": form(Free),
    "damaged": form(Trusting),
    "stateless": form(Counting),
    "refusal": form(Curt),
}
