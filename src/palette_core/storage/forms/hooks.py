"""Registers the form in which weights are stored unless a spec says otherwise."""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, StoredForm, StoredFormEntry, hookimpl


def _indices(options: Any) -> StoredForm:
    from palette_core.storage.forms.dense_indices import DenseIndices

    return DenseIndices()


@hookimpl
def palette_core_stored_forms() -> list[StoredFormEntry]:
    """Every index of a weight, packed."""
    return [
        StoredFormEntry(
            name="indices",
            summary="every index, packed to n bits",
            interface=INTERFACE_VERSION,
            factory=_indices,
        ),
    ]
