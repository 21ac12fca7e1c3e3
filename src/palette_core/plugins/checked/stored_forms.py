"""Stored forms at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from palette_core.errors import PaletteError
from palette_core.plugins.backends import Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.backends import refusal
from palette_core.plugins.guards import shown
from palette_core.plugins.kinds import STORED_FORM
from palette_core.plugins.making import Made, make
from palette_core.plugins.registries import CORE, Registered
from palette_core.plugins.stored_forms import DENSE_FORM, Part, StoredForm, StoredFormEntry
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor, define_once

SHARED = frozenset(StoredTensor._fields[1:])


def make_stored_form(catalog: Catalog, name: str) -> CheckedForm:
    """Make the stored form ``name``, and register its operator.

    Raises:
        UnknownPluginError: nobody knows it.
        DuplicatePluginError: two distributions claim the name, or the form's operator.
        CheckpointError: making it fails, or its parts or its operator are misnamed.
    """
    item = catalog[STORED_FORM].find(name)
    if item.distribution.name == CORE:  # has no state, and is asked for once for each weight
        known = _own.get(name)
        if known is None or known[0] is not item:
            known = _own[name] = item, CheckedForm(item.entry, make(item, {}))
        return known[1]
    made = make(item, {})
    _demand_own_operator(catalog, item, made)
    return CheckedForm(item.entry, made)


def form_with_mask(catalog: Catalog, asked: str) -> str | None:
    """Return the form of a weight whose zeros lie beside its tables, by what its spec asks for.

    That is ``asked`` where it holds masks; the first that does, the core's own first, where dense
    indices are asked for; else None.
    """
    able = [item for item in catalog[STORED_FORM] if item.entry.holds_masks]
    able.sort(key=lambda item: item.distribution.name != CORE)
    names = [item.entry.name for item in able]
    if asked in names:
        return asked
    return names[0] if names and asked == DENSE_FORM else None


_own: dict[str, tuple[Registered[StoredFormEntry], CheckedForm]] = {}


def _demand_own_operator(
    catalog: Catalog, item: Registered[StoredFormEntry], made: Made[StoredForm]
) -> None:
    """Refuse an operator of the core's, or of another form: one would decode what is the other's.

    Raises:
        CheckpointError: its name is in the core's namespace.
        DuplicatePluginError: another installed form has it.
    """
    operator = shown(made.work.operator)
    if operator[1:].startswith("palette_core::"):
        raise made.wrong(f"operator {operator} is in the namespace of palette_core's own operators")
    for other in catalog[STORED_FORM]:
        if other is item or other.distribution.name == CORE:
            continue
        try:
            theirs = shown(make(other, {}).work.operator)
        except PaletteError:  # what cannot be used claims nothing
            continue
        if theirs == operator:
            names = f"{item.entry.name!r} and {other.entry.name!r}"
            catalog[STORED_FORM].only((item, other), f"with the operator {operator} ({names})")


@final
class CheckedForm(StoredForm):
    """A stored form under its name; what it returns is checked.

    Attributes:
        name: as registered, which files hold.
        holds_masks: as registered.
    """

    def __init__(self, entry: StoredFormEntry, made: Made[StoredForm]) -> None:
        self.name, self.holds_masks, self._made = entry.name, entry.holds_masks, made
        form, parts = made.work, cast("Any", made.work.parts)
        if not isinstance(parts, tuple) or not parts or not set(parts).isdisjoint(SHARED):
            raise made.wrong(
                f"parts must be a tuple of names, none of {', '.join(sorted(SHARED))}, "
                f"got {shown(parts)}"
            )
        # The class's, in the plug-in.
        vars(self).update(parts=parts, operator=form.operator)
        self._register()

    def _register(self) -> None:
        """Define the operator, where nobody has in this process."""
        self._namespace, self._operator = self._made.ask(
            lambda form: define_once(form.operator, self.parts, self.decode, self.shape)
        )

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._register()

    @property
    def torch_operator(self) -> Callable[..., Tensor]:
        """The operator; looked up, since torch's objects do not pickle."""
        return getattr(getattr(torch.ops, self._namespace), self._operator).default  # type: ignore[no-any-return]

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        """Encode.

        Raises:
            CheckpointError: the plug-in fails, or returns other parts than it declares; or the
                weight has a mask, and the form takes none.
        """
        if tensor.mask is not None and not self.holds_masks:
            raise self._made.wrong(
                "has no place for zeros that lie beside the table; a form whose entry says "
                "holds_masks has"
            )
        given = self._made.apart(tensor)
        made: object = self._made.ask(lambda form: form.encode(given))
        if not isinstance(made, Mapping) or sorted(made) != sorted(self.parts):
            raise self._made.wrong(f"returned {_short(made)}, expected {self.parts}")
        self._made.demand_plain(*made.values())
        for name, part in made.items():
            if not isinstance(part, Tensor) or part.is_floating_point() or part.is_complex():
                raise self._made.wrong(
                    f"returned {_short(part)} as {name}, expected integers or booleans"
                )
        return self._made.apart({name: made[name] for name in self.parts})

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        """Decode.

        Raises:
            ValueError: the parts do not fit each other, or give indices that no table has.
            CheckpointError: the plug-in fails, or returns something else than indices of the
                weight beside its very tables.
        """
        given = self._made.apart(stored)
        made: object = self._made.ask(lambda form: form.decode(given), passes=(ValueError,))
        if (
            type(made) is not PalettizedTensor
            or not all(isinstance(part, Tensor) for part in (made.indices, made.lut))
            or made.indices.dtype is not torch.uint8
            or list(made.indices.shape) != list(stored.index_shape)
        ):
            raise self._made.wrong(
                f"decoded {_short(made)}, expected a PalettizedTensor with uint8 indices of shape "
                f"{tuple(stored.index_shape)}"
            )
        self._made.demand_plain(*vars(made).values())
        if not self._made.is_ours:
            self._check_decoded(stored, made)
        return self._made.apart(made)

    def _check_decoded(self, stored: StoredTensor, made: PalettizedTensor) -> None:
        mask = made.mask
        if mask is not None and (
            not self.holds_masks or mask.dtype is not torch.bool or mask.shape != made.shape
        ):
            raise self._made.wrong(
                f"decoded a mask that is {_short(mask)}, expected "
                + (f"{torch.bool} of shape {made.shape}" if self.holds_masks else "none")
            )
        for name, right in vars(stored.with_indices(made.indices)).items():
            if name not in ("indices", "mask") and not _same(getattr(made, name), right):
                raise self._made.wrong(f"decoded with another {name} than it was given")
        if made.indices.is_meta or not made.indices.numel():
            return
        top = int(made.indices.max())
        if top >> stored.n_bits:  # a damaged file's fault, or the plug-in's
            raise ValueError(
                f"{self._made.name}: an index is {top}, expected less than {1 << stored.n_bits}"
            )

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        """Return what each part must look like.

        Raises:
            CheckpointError: the plug-in fails, or tells of other parts than it declares.
        """
        given = self._made.apart(stored)
        made: object = self._made.ask(lambda form: dict(form.expects(given)))
        if not isinstance(made, Mapping) or sorted(made) != sorted(self.parts):
            raise self._made.wrong(f"expects {_short(made)} of parts {self.parts}")
        if not all(map(_is_part, made.values())):
            raise self._made.wrong(f"expects {shown(made)}, expected a Part for each name")
        return made

    def size_in_bits(self, stored: StoredTensor) -> int:
        """Return bits of the parts.

        Raises:
            CheckpointError: the plug-in fails, or tells no number.
        """
        given = self._made.apart(stored)
        return self._number(self._made.ask(lambda form: form.size_in_bits(given)))

    def size_unencoded(self, tensor: PalettizedTensor) -> int | None:
        """Return bits of the parts, or None where only encoding tells.

        Raises:
            CheckpointError: the plug-in fails, or tells no number.
        """
        given = self._made.apart(tensor)
        size = self._made.ask(lambda form: form.size_unencoded(given))
        return None if size is None else self._number(size)

    def mask_bits(self, shape: Shape, nonzeros: int) -> int:
        """Return bits that tell nonzeros from zeros.

        Raises:
            CheckpointError: the plug-in fails, or tells no number.
        """
        return self._number(self._made.ask(lambda form: form.mask_bits(shape, nonzeros)))

    def shape(self, stored: StoredTensor) -> Shape:
        """Return the weight's shape, as the plug-in has it.

        Raises:
            CheckpointError: the plug-in fails, or returns no shape.
        """
        given = self._made.apart(stored)
        shape: Any = self._made.ask(lambda form: form.shape(given))
        if not isinstance(shape, Sequence) or not all(map(_is_size, shape)):
            raise self._made.wrong(f"shape returned {shown(shape)}, expected integers")
        return tuple(shape)

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Ask the plug-in.

        Raises:
            CheckpointError: it fails, or answers neither None nor a Refusal.
        """
        return refusal(self._made, facts)

    def _number(self, size: object) -> int:
        if isinstance(size, int) and size >= 0:
            return size
        raise self._made.wrong(f"tells a size of {shown(size)} bits, expected an integer")


def _is_part(part: object) -> bool:
    if not isinstance(part, Part) or not isinstance(cast("object", part.dtype), torch.dtype):
        return False
    shape: object = part.shape
    return isinstance(shape, Sequence) and all(size is None or _is_size(size) for size in shape)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and size >= 0


def _same(one: Any, other: Any) -> bool:
    """Return whether two fields of a weight are equal; tensors by their bytes, NaN included."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.dtype is not other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    raw = (tensor.detach().contiguous().view(torch.uint8) for tensor in (one, other))
    return one.is_meta or torch.equal(*raw)


def _short(made: object) -> str:
    if isinstance(made, Mapping):
        return f"parts {', '.join(map(str, made)) or 'none'}"
    if isinstance(made, Tensor):
        return f"{made.dtype} of shape {tuple(made.shape)}"
    return type(made).__name__
