"""Stored forms by the names that specs and files hold: which one, and what it makes of a weight."""

from __future__ import annotations

from palette_core.errors import CheckpointError
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.checked.stored_forms import (
    CheckedForm,
    form_with_mask,
    make_stored_form,
)
from palette_core.plugins.kinds import STORED_FORM
from palette_core.plugins.stored_forms import DENSE_FORM
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor

DEFAULT_FORM = DENSE_FORM


def stored_form(name: str = DEFAULT_FORM) -> CheckedForm:
    """Return the installed stored form ``name``.

    Raises:
        UnknownPluginError: nobody knows it.
        CheckpointError: making it fails.
    """
    return make_stored_form(get_catalog(), name)


def form_for(tensor: PalettizedTensor, asked: str) -> str:
    """Return the name of the form that holds ``tensor``, where a spec asks for ``asked``.

    Zeros beside a table take a form that holds masks, and nothing else does.

    Raises:
        CheckpointError: there are such zeros, and no such form.
    """
    if tensor.mask is None and asked == DENSE_FORM:
        return DENSE_FORM
    catalog = get_catalog()
    found = form_with_mask(catalog, asked)
    if tensor.mask is None:
        return DENSE_FORM if found == asked else asked
    if found is None:
        raise CheckpointError(
            f"stored form {asked!r} has no place for zeros beside the table, nor has another that "
            f"is installed{catalog[STORED_FORM].left_out()}"
        )
    return found


def encode(tensor: PalettizedTensor, form: CheckedForm) -> StoredTensor:
    """Return ``tensor`` in a stored form.

    Raises:
        CheckpointError: the form fails.
    """
    return StoredTensor.of(tensor, form.encode(tensor))


def size_in_bits(stored: StoredTensor, form: CheckedForm) -> int:
    """Return the bits of a weight in a stored form: parts, LUTs, scales and zero points."""
    return form.size_in_bits(stored) + _table_bits(stored)


def _table_bits(stored: StoredTensor) -> int:
    tables = (stored.lut, stored.lut_scale, stored.lut_zero_point, stored.scale)
    return sum(t.numel() * t.element_size() * 8 for t in tables if t is not None)


def stored_bits(tensor: PalettizedTensor, form: str) -> int:
    """Return the bits of a weight once it is stored, by a spec that asks for ``form``.

    Raises:
        UnknownPluginError: nobody knows the form.
        CheckpointError: the form fails.
    """
    made = stored_form(form_for(tensor, form))
    known = made.size_unencoded(tensor)
    if known is None:
        return size_in_bits(encode(tensor, made), made)
    return known + _table_bits(StoredTensor.of(tensor, {}))
