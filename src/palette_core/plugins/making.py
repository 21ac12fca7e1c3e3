"""Objects of plug-ins, made from what the user asks for, and asked in one guarded way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from palette_core._common.pytrees import copied
from palette_core.errors import PaletteError
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.guards import guarded, shown
from palette_core.plugins.kinds import PluginKind, kind_of
from palette_core.plugins.options import validate_options
from palette_core.plugins.registries import CORE, Registered

WorkT = TypeVar("WorkT")
ValueT = TypeVar("ValueT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Made(Generic[WorkT]):
    """An object of a plug-in. Copies and pickles with models, as long as the object does.

    Attributes:
        work: the object.
        name: of the plug-in, for messages.
        error: what its failures become.
        is_ours: it comes with the core, and is trusted with the core's own tensors.
        tensor: name of the weight that it is for, where it is for one.
    """

    work: WorkT
    name: str
    error: type[PaletteError]
    is_ours: bool
    tensor: str = ""

    @classmethod
    def of(cls, item: Registered[Any], work: WorkT, tensor: str = "") -> Made[WorkT]:
        """Return an object under the name of the entry that it is of."""
        ours = item.distribution.name == CORE
        return cls(work, str(item), kind_of(item.entry).error, ours, tensor)

    def ask(
        self,
        call: Callable[[WorkT], ResultT],
        *,
        tensor: str = "",
        doing: str = "",
        about: str = "",
        passes: tuple[type[BaseException], ...] = (),
        may_draw: bool = False,
    ) -> ResultT:
        """Return what ``call`` makes of the object.

        Args:
            call: what is wanted of the object.
            tensor: name of the weight that it is about, where that is not said already.
            doing: what it was asked, for messages: ``"exporting m.npz by "``.
            about: the same, behind the name: ``" for shape (8, 8)"``.
            passes: failures that the caller takes as they are.
            may_draw: the object may move the global random states.

        Raises:
            PaletteError: of the kind's class; see `guarded`.
        """
        tensor = tensor or self.tensor
        who = self._who(tensor, doing)
        return guarded(
            who,
            self.error,
            lambda: call(self.work),
            tensor=tensor,
            about=about,
            passes=passes,
            is_ours=self.is_ours,
            may_draw=may_draw,
        )

    def apart(self, value: ValueT) -> ValueT:
        """Return ``value`` with tensors that nobody else holds, unless the plug-in is the core's.

        Somebody else's may write to what it is given, also unseen (through numpy, or ``.data``),
        and what it returns may lie in memory that it goes on using.
        """
        return value if self.is_ours else copied(value)

    def demand_plain(self, *answer: object, like: tuple[type, ...] = ()) -> None:
        """Refuse tensors in an answer that compute in a way of their own, or hold no values.

        Args:
            answer: tensors, or anything else, which is not looked at.
            like: tensor classes that are as good as torch's own, as what was given is of them.

        Raises:
            PaletteError: of the kind's class.
        """
        for each in answer:
            if isinstance(each, Tensor):
                if type(each) not in (Tensor, nn.Parameter, *like):
                    raise self.wrong(f"returned a {type(each).__name__}, expected a plain tensor")
                if each.layout is not torch.strided or each.is_quantized or each.is_nested:
                    what = "nested" if each.is_nested else "sparse or quantized"
                    raise self.wrong(f"returned a tensor that is {what}, expected a plain one")

    def wrong(self, problem: str, tensor: str = "") -> PaletteError:
        """Return the error for an answer that cannot be used.

        Args:
            problem: what it is, and what would be right.
            tensor: as for `ask`.
        """
        return self.error(f"{self._who(tensor or self.tensor)}: {problem}")

    def _who(self, tensor: str, doing: str = "") -> str:
        return f"{tensor}: {doing}{self.name}" if tensor else f"{doing}{self.name}"


def made_before(kind: PluginKind[Any], name: str, work: WorkT, tensor: str) -> Made[WorkT]:
    """Return an object under the name by which it was once picked."""
    for item in get_catalog()[kind]:
        if item.entry.name == name:
            return Made.of(item, work, tensor)
    return Made(work, f"{kind} {name!r}", kind.error, False, tensor)


def make(
    item: Registered[Any], options: Mapping[str, Any] | BaseModel, *given: Any, tensor: str = ""
) -> Made[Any]:
    """Make a plug-in's object.

    Args:
        item: the entry, whose factory is called.
        options: the user's, or what they were validated to.
        given: what the factory takes before them.
        tensor: name of the tensor that the object is for.

    Raises:
        PluginOptionsError: the options do not validate.
        PaletteError: of the kind's class: making it fails, or makes something else.
    """
    interface = kind_of(item.entry).interface
    valid = validate_options(item.entry, options)
    factory = Made.of(item, item.entry.factory, tensor)
    made = factory.ask(lambda factory: factory(*given, valid))
    if interface is not None and not isinstance(made, interface):
        raise factory.wrong(f"its factory made {shown(made)}, which is no {interface.__name__}")
    return Made.of(item, made, tensor)
