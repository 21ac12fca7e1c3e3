"""Parts as users ask for them, checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from torch import nn

from palette_core.errors import BackendError, did_you_mean
from palette_core.palettizer.functions import Asked, checked_function, checked_names
from palette_core.palettizer.targets import Target
from palette_core.plugins.export_requests import ExportFunction, ExportPart

_RANGE = re.compile(r"(?P<path>[^\[\]]*)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")
_KINDS = ("input_names", "output_names", "state_names")


def check_beside(asked: Asked) -> None:
    """Refuse what describes one file, beside parts.

    Raises:
        BackendError: naming it.
    """
    of_one = ("functions", "dynamic_shapes", *_KINDS)
    beside = [name for name in of_one if getattr(asked, name) is not None]
    if beside:
        raise BackendError(f"parts have {', '.join(beside)} of their own; give them by ExportPart")


def check_parts(parts: object, model: nn.Module, target: Target) -> dict[str, Any]:
    """Return parts by name: ExportFunctions, or ExportParts whose modules are single names.

    Raises:
        BackendError: naming the part, and what is wrong with it.
    """
    if target.is_ours:
        raise BackendError(
            f"backend {target.name!r} keeps all weights of a model, and no function; parts take a "
            "backend that writes programs"
        )
    if not isinstance(parts, Mapping) or not parts:
        raise BackendError(f"parts must be modules of the model by name, got {parts!r:.200}")
    seen: dict[str, str] = {}
    for name in parts:
        if type(name) is not str or not re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII):
            raise BackendError(
                f"parts: {name!r} is no name of a file; use letters, digits, _ and -"
            )
        if seen.setdefault(name.casefold(), name) != name:
            raise BackendError(f"parts: {name!r} and {seen[name.casefold()]!r} are one file")
    return {name: _checked(part, name, model, target) for name, part in parts.items()}


@singledispatch
def _checked(part: object, name: str, model: nn.Module, target: Target) -> Any:
    raise BackendError(
        f"part {name!r} must be names of modules, an ExportPart or an ExportFunction, got "
        f"{part!r:.200}"
    )


@_checked.register(str)
@_checked.register(list)
@_checked.register(tuple)
def _of_names(part: Any, name: str, model: nn.Module, target: Target) -> ExportPart:
    return _of_modules(ExportPart(part), name, model, target)


@_checked.register
def _of_modules(part: ExportPart, name: str, model: nn.Module, target: Target) -> ExportPart:
    _check_takes_names(part, name, target)
    try:
        names = {kind: checked_names(kind, getattr(part, kind)) for kind in _KINDS}
    except BackendError as error:
        raise BackendError(f"part {name!r}: {error}") from None
    return ExportPart(_modules(name, part.modules, model), part.dynamic_shapes, **names)


@_checked.register
def _of_function(
    part: ExportFunction, name: str, model: nn.Module, target: Target
) -> ExportFunction:
    if part.module is None:
        raise BackendError(
            f"part {name!r}: an ExportFunction needs its module here; name the modules of the "
            "model by ExportPart"
        )
    checked = checked_function(f"part {name!r}", part, model, target)
    _check_takes_names(checked, name, target)
    return checked


def _check_takes_names(part: ExportPart | ExportFunction, name: str, target: Target) -> None:
    named = [kind for kind in _KINDS if getattr(part, kind) is not None]
    if named and not target.entry.takes_functions:
        raise BackendError(f"part {name!r}: backend {target.name!r} takes no {', '.join(named)}")


def _modules(part: str, given: object, model: nn.Module) -> list[str]:
    """Return names of single modules, in order, for names and ranges of names."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts:
        raise BackendError(f"part {part!r}: modules must be names of modules, got {given!r:.200}")
    known = dict(model.named_modules(remove_duplicate=False))
    found: list[str] = []
    for text in texts:
        match = _RANGE.fullmatch(text) if isinstance(text, str) else None
        path = match["path"] if match is not None else text
        if type(path) is not str or not path or path not in known:
            raise BackendError(
                f"part {part!r}: the model has no module {path!r}"
                f"{did_you_mean(str(path), known)}; write a name of named_modules(), or a range of "
                "a list's, 'layers[0:6]'"
            )
        if match is None:
            found.append(path)
            continue
        ends = [int(match[end]) if match[end] else None for end in ("start", "stop")]
        inside = list(known[path]._modules)[slice(*ends)]
        if not inside:
            count = len(known[path]._modules)
            raise BackendError(f"part {part!r}: {text} is empty; {path} has {count} modules")
        found += [f"{path}.{name}" for name in inside]
    for at, path in enumerate(found):
        for other in found[:at]:
            if path == other or path.startswith(f"{other}.") or other.startswith(f"{path}."):
                raise BackendError(f"part {part!r}: {other} and {path} hold the same module")
    return found
