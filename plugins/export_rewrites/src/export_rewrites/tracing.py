"""From a model to an exported program, the model left as it is."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from export_rewrites.compiling import compiled_late
from palette_core.errors import BackendError

_NO_PYTREE = re.compile(
    r"(?:Found|Unsupported input type) <class '(?P<type>[^']+)'>(?P<out> in output)?"
)

_QUANTIZED = "torch.classes.quantized."


def trace(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any = None,
    *,
    backend: str,
    stack_traces: bool = True,
) -> ExportedProgram:
    """Export a model in evaluation mode.

    Args:
        model: every module is put back into the mode that it was in.
        example_inputs: a tuple of positional or a dictionary of keyword inputs; what is no
            tensor becomes a constant of the program.
        dynamic_shapes: as in ``torch.export.export``.
        backend: the name to blame in messages.
        stack_traces: whether nodes keep the lines of code that they come from, which takes a while.

    Raises:
        BackendError: no inputs, inputs of another kind, or ``torch.export`` fails.
    """
    args, kwargs = split_inputs(example_inputs, backend)
    try:
        with evaluating(model), torch.no_grad(), compiled_late(), traces_on(stack_traces):
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        raise BackendError(
            f"torch.export cannot take {type(model).__name__} with these inputs"
            f"{_failing_module(model, error)}: "
            f"{_advice(error) or summary(error) + _BY_ITSELF}"
        ) from error


@contextlib.contextmanager
def traces_on(wanted: bool) -> Iterator[None]:
    """Let torch keep stack traces in what it traces inside the block, or not."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = before or not wanted
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def of_function(name: str, functions: Mapping[str, Any]) -> Iterator[None]:
    """Name the function in what is raised about it, where there are several."""
    try:
        yield
    except BackendError as error:
        if len(functions) < 2:
            raise
        raise BackendError(f"function {name!r}: {error}") from error


def _failing_module(model: nn.Module, error: Exception) -> str:
    """Return, in words, the innermost module in whose forward an error came up; else nothing."""
    names = {id(module): name for name, module in model.named_modules()}
    found, cause, seen = "", cast("BaseException | None", error), set[int]()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            found = names.get(id(frame.f_locals.get("self"))) or found
        cause = cause.__cause__ or cause.__context__
    return f" (in {found!r})" if found else ""


_BY_ITSELF = (
    ". Try torch.export.export(model.eval(), inputs) by itself; its message and its documentation "
    "say what to rewrite"
)


def _advice(error: Exception) -> str:
    """Return what to do about an object in which torch finds no tensors; else nothing."""
    if _QUANTIZED in str(error):
        return (
            "it has modules that torch has quantized, whose weights are in objects that no "
            "converter takes; leave torch's quantization out and palettize the float model"
        )
    found = _NO_PYTREE.search(str(error))
    if found is None:
        return ""
    kind = found["type"].rpartition(".")[2]
    if "Cache" in kind:
        return (
            f"{'forward returns' if found['out'] else 'the inputs hold'} a {kind}, and a file "
            "takes and gives tensors only. Switch the cache off: add use_cache=False to "
            'example_inputs ({"input_ids": ids, "use_cache": False}), or set '
            "model.config.use_cache = False where the model is made"
            + ("" if found["out"] else ", and leave the cache out of the inputs")
        )
    return (
        f"{'forward returns' if found['out'] else 'the inputs hold'} a {found['type']}, in which "
        "torch finds no tensors; use tensors, tuples, lists, dictionaries or named tuples, or "
        "register the class with torch.utils._pytree.register_pytree_node"
    )


def split_inputs(
    inputs: Sequence[Any] | Mapping[str, Any] | None, backend: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword inputs.

    Raises:
        BackendError: there are none, or they are neither a sequence nor a mapping.
    """
    if inputs is None:
        raise BackendError(
            f"backend {backend!r} traces the model and needs example_inputs: a tuple of "
            "positional or a dictionary of keyword inputs"
        )
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence):
        return tuple(inputs), {}
    raise BackendError(
        f"example_inputs must be a tuple of positional or a dictionary of keyword inputs, got "
        f"{type(inputs).__name__}"
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Clear the flag ``training`` of every module, and set it again as it was.

    Not by ``eval()``, which may be the model's own and do more, or refuse.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def summary(error: Exception) -> str:
    """Return the type and the first lines of a message that may run over pages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}{' …' if len(text) > 600 else ''}".rstrip(".")
