"""Rows of a table by index."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from palette_core.plugins import Consumption, Operation, OperationCall
from palette_core.tensors import Lookup


class Embedding(Operation):
    """``torch.nn.functional.embedding`` and ``torch.embedding``."""

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the table, which is multiplied with one-hot vectors."""
        names = ("first", "second", "input", "weight", "indices")
        tensors = [x for x in map(call.get, names) if isinstance(x, Tensor)]
        # torch.embedding and functional.embedding take the two in opposite orders.
        indices = [x for x in tensors if not x.is_floating_point()]
        weights = [x for x in tensors if x.is_floating_point()]
        if len(indices) == 1 and len(weights) == 1:
            yield Consumption(weights[0], (indices[0],), Lookup(weights[0].shape[0]))
