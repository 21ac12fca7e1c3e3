"""Parts of one model in files of their own: what was asked for, what each file holds."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from torch import Tensor, nn

from palette_core.errors import BackendError, PaletteWarning, did_you_mean
from palette_core.model import ExampleInputs
from palette_core.palettizer.functions import checked_function, checked_names
from palette_core.palettizer.part_modules import Flow, record_parts
from palette_core.palettizer.targets import Target
from palette_core.plugins.export_requests import ExportFunction, ExportPart
from palette_core.storage.sites import palette_sites

MANIFEST = "parts.json"
_RANGE = re.compile(r"(?P<path>[^\[\]]*)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")
Part = str | Sequence[str] | ExportPart | ExportFunction


class _Input(BaseModel):
    name: str
    shape: list[int]
    dtype: str
    source: Flow | None = Field(alias="from")


class _PartFiles(BaseModel):
    name: str
    files: list[str]
    inputs: list[_Input] | None


class _Copy(BaseModel):
    weight: str
    parts: list[str]
    bytes: int


class _Manifest(BaseModel):
    backend: str
    parts: list[_PartFiles]
    copies: list[_Copy]
    left_out: list[str]


@dataclass
class Parts:
    """Parts to write, each a function, and what is to be told about them.

    Attributes:
        functions: by name; each with its module and inputs.
        flows: by part, where each of its inputs comes from; of parts named by modules.
        copies: weights that several files hold: by name, those parts and its bytes in one.
        left_out: names of weights that no file holds.
    """

    functions: dict[str, ExportFunction]
    flows: dict[str, dict[str, Flow | None]] = field(default_factory=dict)
    copies: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


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
    return {name: _checked(name, part, model, target) for name, part in parts.items()}


def make_parts(
    parts: Mapping[str, Any], model: nn.Module, example_inputs: ExampleInputs | None
) -> Parts:
    """Return the parts of a finalized model, run once where they are named by modules.

    Raises:
        BackendError: as of `record_parts`, or there are no inputs to run it on.
    """
    named = {name: part for name, part in parts.items() if isinstance(part, ExportPart)}
    if named and example_inputs is None:
        raise BackendError(
            f"part {next(iter(named))!r} is named by modules, whose inputs are found by running "
            "the model; give example_inputs"
        )
    paths = {name: list(part.modules) for name, part in named.items()}
    recorded = record_parts(model, paths, example_inputs) if example_inputs is not None else {}
    made = Parts({})
    for name, part in parts.items():
        if name not in recorded:
            made.functions[name] = part
            continue
        found = recorded[name]
        made.flows[name] = found.flows
        made.functions[name] = ExportFunction(
            found.inputs, part.dynamic_shapes, found.module, part.input_names,
            part.output_names, part.state_names,
        )  # fmt: skip
    _count(made, model)
    return made


def check_folder(folder: Path, target: Target) -> None:
    """Refuse to replace what is no folder of parts, or holds anything else.

    Raises:
        BackendError: saying what stands in the way.
    """
    if folder.suffix == target.entry.suffix:
        raise BackendError(
            f"parts are several files; give the path of a folder for them, not {folder.name}"
        )
    if not folder.exists():
        return
    try:
        written = read_manifest(folder)
    except BackendError:
        raise BackendError(
            f"{folder} exists and is no folder of parts; remove it or write elsewhere"
        ) from None
    known = {MANIFEST, *(name for part in written["parts"] for name in part["files"])}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    if foreign:
        raise BackendError(
            f"{folder} holds {foreign[0]}, which is no part that was written there; move it away, "
            "or write elsewhere"
        )


def write_manifest(parts: Parts, fresh: Path, target: Target) -> None:
    """Write what the files hold beside them."""
    listed = [
        {
            "name": name,
            "files": files_of(name, target),
            "inputs": [
                {"name": each, "shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:],
                 "from": parts.flows[name][each]}
                for each, tensor in function.inputs.items()
            ] if name in parts.flows else None,
        }
        for name, function in parts.functions.items()
    ]  # fmt: skip
    told = {
        "backend": target.name,
        "parts": listed,
        "copies": [
            {"weight": weight, "parts": names, "bytes": size}
            for weight, (names, size) in parts.copies.items()
        ],
        "left_out": parts.left_out,
    }
    text = json.dumps(told, indent=2, ensure_ascii=False)
    (fresh / MANIFEST).write_text(text + "\n", encoding="utf8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `write_manifest` has written.

    Raises:
        BackendError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return _Manifest.model_validate_json(path.read_bytes()).model_dump(by_alias=True)
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} does not list parts: {error}") from None


def files_of(name: str, target: Target) -> list[str]:
    """Return the names of a part's files."""
    suffixes = (target.entry.suffix, *target.entry.beside)
    return [f"{name}{suffix}" for suffix in suffixes]


def warn_of(parts: Parts) -> None:
    """Warn of what a user may not expect: copies, weights in no file, inputs that no file computes.

    Warns:
        PaletteWarning: one for each kind.
    """
    for weight, (names, size) in parts.copies.items():
        more = len(names) - 1
        _warn(
            f"{weight} is in the files of {', '.join(names[:-1])} and {names[-1]}: "
            f"{more} {'copy' if more == 1 else 'copies'} more than in one file, "
            f"{size * more:,} bytes"
        )
    if parts.left_out:
        _warn(f"in no part, and so in no file: {', '.join(parts.left_out)}")
    between = [
        f"{name} of {part!r}"
        for part, inputs in parts.flows.items()
        for name, source in inputs.items()
        if source is None
    ]
    if between and len(parts.flows) == len(parts.functions):  # else a function may compute them
        _warn(f"computed by the model itself, and by no file: {', '.join(between)}")


def _warn(text: str) -> None:
    warnings.warn(text, PaletteWarning, stacklevel=5)


# --- checks -------------------------------------------------------------------------------------


def _checked(name: str, part: object, model: nn.Module, target: Target) -> Any:
    if isinstance(part, ExportFunction):
        if part.module is None:
            raise BackendError(
                f"part {name!r}: an ExportFunction needs its module here; name the modules of the "
                "model by ExportPart"
            )
        checked: ExportPart | ExportFunction = checked_function(
            f"part {name!r}", part, model, target
        )
    elif isinstance(part, ExportPart):
        checked = part
    elif isinstance(part, (str, list, tuple)):
        checked = ExportPart(part)
    else:
        raise BackendError(
            f"part {name!r} must be names of modules, an ExportPart or an ExportFunction, got "
            f"{part!r:.200}"
        )
    kinds = ("input_names", "output_names", "state_names")
    named = [kind for kind in kinds if getattr(checked, kind) is not None]
    if named and not target.entry.takes_functions:
        raise BackendError(f"part {name!r}: backend {target.name!r} takes no {', '.join(named)}")
    if isinstance(checked, ExportFunction):
        return checked
    try:
        names = {kind: checked_names(kind, getattr(checked, kind)) for kind in kinds}
    except BackendError as error:
        raise BackendError(f"part {name!r}: {error}") from None
    return ExportPart(_modules(name, checked.modules, model), checked.dynamic_shapes, **names)


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


# --- weights ------------------------------------------------------------------------------------


def _count(made: Parts, model: nn.Module) -> None:
    """Find the weights that several parts hold, and those that none does."""
    held = {name: _tensors(function.module) for name, function in made.functions.items()}
    for weight, tensors in _weights(model).items():
        parts = [name for name, ids in held.items() if any(id(t) in ids for t in tensors)]
        if len(parts) > 1:
            made.copies[weight] = (parts, sum(t.numel() * t.element_size() for t in tensors))
        elif not parts:
            made.left_out.append(weight)


def _tensors(module: nn.Module | None) -> set[int]:
    assert module is not None  # parts have one
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _weights(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return the tensors of each palettized weight, and of each parameter that is none."""
    found: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for site in palette_sites(model):
        found[site.name] = list(site.palette.buffers())
        seen.update(map(id, (*site.palette.buffers(), *site.palette.parameters())))
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen and parameter.numel():  # packed weights leave empty ones
            found[name] = [parameter]
    return found
