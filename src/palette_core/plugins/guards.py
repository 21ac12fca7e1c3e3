"""Calls of plug-ins' code: failures name the plug-in, and have the error class of its kind.

What they return is checked in `palette_core.plugins.checked`, one module for each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from palette_core.errors import PaletteError
from palette_core.plugins.kinds import kind_of
from palette_core.plugins.registries import Registered, validate_options

ResultT = TypeVar("ResultT")


def guarded(
    who: str,
    error: type[PaletteError],
    call: Callable[[], ResultT],
    *,
    tensor: str = "",
    about: str = "",
    passes: tuple[type[BaseException], ...] = (),
) -> ResultT:
    """Run a plug-in's code.

    An interrupt is the user's, and memory that runs out is nobody's fault: both pass. So do errors
    of palette_core, which have been worded already; one that does not begin with the tensor that
    it is about gets ``who`` in front.

    Args:
        who: the plug-in, for messages, after the tensor where there is one.
        error: the class of what any other failure becomes.
        call: the code.
        tensor: name of the tensor that it is about.
        about: what it was asked, for messages: ``" for shape (8, 8)"``.
        passes: what else is for the caller as it is.
    """
    let_pass: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError, *passes)
    try:
        return call()
    except let_pass:
        raise
    except PaletteError as ours:
        if str(ours).startswith(tensor):
            raise
        known = type(ours).__module__ == PaletteError.__module__
        raise (type(ours) if known else error)(f"{who}: {ours}") from ours
    # SystemExit too: a plug-in must not end the user's program.
    except (Exception, SystemExit) as failure:
        raise error(f"{who} failed{about}: {type(failure).__name__}: {failure}") from failure


def named(item: Registered[Any], tensor: str = "") -> str:
    """Return how messages name a plug-in that works on a tensor."""
    return f"{tensor}: {item}" if tensor else str(item)


def make(
    item: Registered[Any], options: Mapping[str, Any], *given: Any, tensor: str = ""
) -> tuple[Any, str]:
    """Make a plug-in's object, and return it with its name for messages.

    Args:
        item: the entry, whose factory is called.
        options: the user's, not yet validated.
        given: what the factory takes before them.
        tensor: name of the tensor that the object is for.

    Raises:
        PluginOptionsError: the options do not validate.
        PaletteError: of the kind's class: making it fails, or makes something else.
    """
    kind, who = kind_of(item.entry), named(item, tensor)
    valid = validate_options(item.entry, dict(options))
    made = guarded(who, kind.error, lambda: item.entry.factory(*given, valid), tensor=tensor)
    if kind.interface is None or isinstance(made, kind.interface):
        return made, who
    raise kind.error(f"{who}: its factory made {made!r}, which is no {kind.interface.__name__}")
