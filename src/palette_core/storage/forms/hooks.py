"""Registers the forms in which weights are stored: dense indices, and those of nonzeros."""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, StoredForm, StoredFormEntry, hookimpl


def _indices(options: Any) -> StoredForm:
    from palette_core.storage.forms.dense_indices import DenseIndices

    return DenseIndices()


def _sparse(options: Any) -> StoredForm:
    from palette_core.storage.forms.sparse import SparseIndices

    return SparseIndices()


@hookimpl
def palette_core_stored_forms() -> list[StoredFormEntry]:
    """Every index of a weight, or those of its nonzeros."""
    return [
        StoredFormEntry(
            name="indices",
            summary="every index, packed to n bits",
            interface=INTERFACE_VERSION,
            factory=_indices,
        ),
        StoredFormEntry(
            name="sparse",
            summary="indices of nonzeros, and a bit for each weight that tells them from zeros",
            interface=INTERFACE_VERSION,
            factory=_sparse,
            holds_masks=True,
        ),
    ]
