"""Stored forms at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from palette_core.plugins.backends import Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.backends import refusal
from palette_core.plugins.guards import shown
from palette_core.plugins.kinds import STORED_FORM
from palette_core.plugins.making import Made, make
from palette_core.plugins.stored_forms import SPARSE_FORM, Part, StoredForm
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor, define_once

SHARED = frozenset(StoredTensor._fields[1:])


def make_stored_form(catalog: Catalog, name: str) -> CheckedForm:
    """Make the stored form ``name``, and register its operator.

    Raises:
        UnknownPluginError: nobody knows it.
        CheckpointError: making it fails, or its parts or its operator are misnamed.
    """
    return CheckedForm(name, make(catalog[STORED_FORM].find(name), {}))


@final
class CheckedForm(StoredForm):
    """A stored form under its name; what it returns is checked.

    Attributes:
        name: as registered, which files hold.
    """

    def __init__(self, name: str, made: Made[StoredForm]) -> None:
        self.name, self._made = name, made
        form, parts = made.work, cast("Any", made.work.parts)
        if not isinstance(parts, tuple) or not parts or not set(parts).isdisjoint(SHARED):
            raise made.wrong(
                f"parts must be a tuple of names, none of {', '.join(sorted(SHARED))}, "
                f"got {shown(parts)}"
            )
        # The class's, in the plug-in.
        vars(self).update(parts=parts, operator=form.operator, holds_masks=form.holds_masks)
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
                f"has no place for zeros that lie beside the table; the form {SPARSE_FORM!r} has"
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
            ValueError: the parts do not fit each other.
            CheckpointError: the plug-in fails, or returns other indices than it was given.
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
        return self._made.apart(made)

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        """Return what each part must look like.

        Raises:
            CheckpointError: the plug-in fails, or tells of other parts than it declares.
        """
        given = self._made.apart(stored)
        made: object = self._made.ask(lambda form: dict(form.expects(given)))
        if not isinstance(made, Mapping) or sorted(made) != sorted(self.parts):
            raise self._made.wrong(f"expects {_short(made)} of parts {self.parts}")
        if not all(isinstance(part, Part) for part in made.values()):
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

    def shape(self, stored: StoredTensor) -> Shape:
        """Return the weight's shape, as the plug-in has it.

        Raises:
            CheckpointError: the plug-in fails, or returns no shape.
        """
        given = self._made.apart(stored)
        shape: Any = self._made.ask(lambda form: form.shape(given))
        if not isinstance(shape, Sequence) or not all(isinstance(size, int) for size in shape):
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


def _short(made: object) -> str:
    if isinstance(made, Mapping):
        return f"parts {', '.join(map(str, made)) or 'none'}"
    if isinstance(made, Tensor):
        return f"{made.dtype} of shape {tuple(made.shape)}"
    return type(made).__name__
