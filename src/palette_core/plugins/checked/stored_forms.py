"""Stored forms at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from palette_core.errors import CheckpointError
from palette_core.plugins.backends import Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.guards import guarded, make
from palette_core.plugins.kinds import STORED_FORM
from palette_core.plugins.stored_forms import Part, StoredForm
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
    made, who = make(catalog[STORED_FORM].find(name), {})
    return CheckedForm(name, who, made)


@final
class CheckedForm(StoredForm):
    """A stored form under its name; what it returns is checked.

    Attributes:
        name: as registered, which files hold.
    """

    def __init__(self, name: str, who: str, form: StoredForm) -> None:
        self.name, self._who, self._form = name, who, form
        parts: Any = form.parts
        if not isinstance(parts, tuple) or not parts or not set(parts).isdisjoint(SHARED):
            raise CheckpointError(
                f"{who}: parts must be a tuple of names, none of {', '.join(sorted(SHARED))}, "
                f"got {parts!r}"
            )
        vars(self).update(parts=parts, operator=form.operator)  # the class's, in the plug-in
        self._register()

    def _register(self) -> None:
        """Define the operator, where nobody has in this process."""
        self._namespace, self._operator = guarded(
            self._who,
            CheckpointError,
            lambda: define_once(self.operator, self.parts, self.decode, self.shape),
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
            CheckpointError: the plug-in fails, or returns other parts than it declares.
        """
        made: object = guarded(self._who, CheckpointError, lambda: self._form.encode(tensor))
        if not isinstance(made, Mapping) or sorted(made) != sorted(self.parts):
            raise CheckpointError(f"{self._who} returned {_short(made)}, expected {self.parts}")
        for name, part in made.items():
            if not isinstance(part, Tensor) or part.is_floating_point() or part.is_complex():
                raise CheckpointError(
                    f"{self._who} returned {_short(part)} as {name}, expected integers or booleans"
                )
        return {name: made[name] for name in self.parts}

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        """Decode.

        Raises:
            ValueError: the parts do not fit each other.
            CheckpointError: the plug-in fails, or returns other indices than it was given.
        """
        made: object = guarded(
            self._who,
            CheckpointError,
            lambda: self._form.decode(stored),
            passes=(ValueError,),
        )
        if (
            not isinstance(made, PalettizedTensor)
            or made.indices.dtype is not torch.uint8
            or list(made.indices.shape) != list(stored.index_shape)
        ):
            raise CheckpointError(
                f"{self._who} decoded {_short(made)}, expected a PalettizedTensor with uint8 "
                f"indices of shape {tuple(stored.index_shape)}"
            )
        return made

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        """Return what each part must look like.

        Raises:
            CheckpointError: the plug-in fails, or tells of other parts than it declares.
        """
        made: object = guarded(self._who, CheckpointError, lambda: self._form.expects(stored))
        if not isinstance(made, Mapping) or sorted(made) != sorted(self.parts):
            raise CheckpointError(f"{self._who} expects {_short(made)} of parts {self.parts}")
        return made

    def size_in_bits(self, stored: StoredTensor) -> int:
        """Return bits of the parts.

        Raises:
            CheckpointError: the plug-in fails.
        """
        return guarded(self._who, CheckpointError, lambda: self._form.size_in_bits(stored))

    def size_unencoded(self, tensor: PalettizedTensor) -> int | None:
        """Return bits of the parts, or None where only encoding tells.

        Raises:
            CheckpointError: the plug-in fails.
        """
        return guarded(self._who, CheckpointError, lambda: self._form.size_unencoded(tensor))

    def shape(self, stored: StoredTensor) -> Shape:
        """Return the weight's shape, as the plug-in has it."""
        return self._form.shape(stored)

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Ask the plug-in.

        Raises:
            CheckpointError: it fails, or answers neither None nor a Refusal.
        """
        who = f"{facts.name}: {self._who}"
        answer: object = guarded(
            who, CheckpointError, lambda: self._form.check_support(facts), tensor=facts.name
        )
        if answer is None or isinstance(answer, Refusal):
            return answer
        raise CheckpointError(
            f"{who}: check_support returned {answer!r}, expected None or a Refusal"
        )


def _short(made: object) -> str:
    if isinstance(made, Mapping):
        return f"parts {', '.join(map(str, made)) or 'none'}"
    if isinstance(made, Tensor):
        return f"{made.dtype} of shape {tuple(made.shape)}"
    return type(made).__name__
