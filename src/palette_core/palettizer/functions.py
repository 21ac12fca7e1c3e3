"""Requests for a file: its functions, names and metadata, checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import mapped
from palette_core.errors import BackendError
from palette_core.model import ExampleInputs, as_inputs
from palette_core.palettizer.targets import Target
from palette_core.plugins.export_requests import ExportFunction, ExportRequest, Names
from palette_core.storage.sites import palette_sites

MAIN = "main"
_KINDS = ("input_names", "output_names", "state_names")


@dataclass(frozen=True)
class Asked:
    """Arguments of `KMeansPalettizer.export` about what the file holds, as users write them."""

    example_inputs: ExampleInputs | None = None
    dynamic_shapes: Any = None
    functions: Mapping[str, ExportFunction] | None = None
    input_names: Names | None = None
    output_names: Names | None = None
    state_names: Names | None = None
    metadata: Mapping[str, str] | None = None
    parts: Mapping[str, Any] | None = None


def make_request(asked: Asked, model: nn.Module, target: Target) -> ExportRequest | None:
    """Return what a backend is asked for by `export_functions`; None where `export` does.

    Raises:
        BackendError: the backend takes no functions, names or metadata, or what is given is
            none; naming the argument, and the function where there is one.
    """
    given = ["functions", *_KINDS, "metadata"]
    used = [name for name in given if getattr(asked, name) is not None]
    if not used:
        return None
    if not target.entry.takes_functions:
        raise BackendError(_takes_none(target, used))
    functions: Any = asked.functions
    if functions is None:
        functions = {MAIN: ExportFunction(asked.example_inputs, asked.dynamic_shapes)}
    elif asked.example_inputs is not None or asked.dynamic_shapes is not None:
        raise BackendError("functions have inputs and dynamic_shapes of their own; give either")
    elif not isinstance(functions, Mapping) or not functions:
        raise BackendError(f"functions must be ExportFunctions by name, got {functions!r}")
    names = {kind: checked_names(kind, getattr(asked, kind)) for kind in _KINDS}
    return ExportRequest(
        {name: _function(name, each, model, target) for name, each in functions.items()},
        **names,
        metadata=checked_metadata(asked.metadata),
    )


def of_model(request: ExportRequest, model: nn.Module) -> ExportRequest:
    """Return a request in which functions without a module have the finalized model."""
    functions = {
        name: function if function.module is not None else replace(function, module=model)
        for name, function in request.functions.items()
    }
    return replace(request, functions=functions)


def inputs_for(target: Target, given: ExampleInputs | None) -> Any:
    """Return inputs as backends take them, or None where there are none.

    Raises:
        BackendError: they are neither a tuple nor a dictionary, nor a tensor.
    """
    try:
        inputs = None if given is None else as_inputs(given)
    except TypeError as error:
        raise BackendError(
            f"backend {target.name!r} takes a tuple of positional or a dictionary of keyword "
            f"inputs: {error}"
        ) from None
    return mapped(_row_major, inputs)


def checked_names(kind: str, names: object) -> Any:
    """Return names as a tuple or a dictionary, or None.

    Raises:
        BackendError: they are neither, hold what is no name, or two alike in order.
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        keys, values = list(names), list(names.values())
    else:
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, (tuple, list)):
            raise BackendError(f"{kind} must be names in order or by name, got {names!r}")
        keys, values = [], list(listed)
    wrong = [item for item in (*keys, *values) if type(item) is not str or not item]
    if wrong:
        raise BackendError(f"{kind}: {wrong[0]!r} is no name; in {names!r}")
    # By name they may be of different functions.
    twice = [name for name in values if not keys and values.count(name) > 1]
    if twice:
        raise BackendError(f"{kind}: {twice[0]!r} is there twice; no two may be alike")
    return dict(zip(keys, values, strict=True)) if isinstance(names, Mapping) else tuple(values)


def _takes_none(target: Target, used: list[str]) -> str:
    instead = [name for name in used if name in target.entry.options.model_fields]
    advice = f"; of these, {', '.join(instead)} can be given in backend_options" if instead else ""
    several = (
        "; export each function to a file of its own, by model= and example_inputs"
        if "functions" in used
        else ""
    )
    return f"backend {target.name!r} takes no {', '.join(used)}{advice}{several}"


def _function(name: object, given: object, model: nn.Module, target: Target) -> ExportFunction:
    if type(name) is not str or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise BackendError(
            f"functions: {name!r} is no name of a function; use letters, digits and _"
        )
    if not isinstance(given, ExportFunction):
        raise BackendError(f"function {name!r} must be an ExportFunction, got {given!r:.200}")
    return checked_function(f"function {name!r}", given, model, target)


def checked_function(
    what: str, given: ExportFunction, model: nn.Module, target: Target
) -> ExportFunction:
    """Return a function with inputs and names as backends take them.

    Raises:
        BackendError: beginning with ``what``: its module is none, or not of the model, or inputs
            or names are none.
    """
    module: object = model if given.module is None else given.module
    if not isinstance(module, nn.Module):
        raise BackendError(f"{what}: module is no torch.nn.Module: {module!r:.200}")
    own = {id(site.palette) for site in palette_sites(model)}
    foreign = [site.name for site in palette_sites(module) if id(site.palette) not in own]
    if foreign:
        raise BackendError(
            f"{what}: {foreign[0]} of its module is a palettized weight of another "
            "model; a function's module holds the model, or parts of it"
        )
    try:
        names = {kind: checked_names(kind, getattr(given, kind)) for kind in _KINDS}
        inputs = inputs_for(target, given.inputs)
    except BackendError as error:
        raise BackendError(f"{what}: {error}") from None
    return replace(given, inputs=inputs, **names)


def checked_metadata(given: object) -> dict[str, str]:
    """Return metadata as texts by name.

    Raises:
        BackendError: it is none.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping) and all(
        type(key) is str and type(value) is str for key, value in given.items()
    ):
        return dict(given)
    raise BackendError(f"metadata must be texts by name, got {given!r:.200}")


def _row_major(tensor: Tensor) -> Tensor:
    """Return a tensor laid out in the order of its dimensions; some converters take no other."""
    return tensor.contiguous() if tensor.layout is torch.strided else tensor
