"""From a model to a program of ``torch.export``, decomposed as OpenVINO's converter wants it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
from torch import nn
from torch.export import ExportedProgram

from palette_core.errors import BackendError


def export_program(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Trace a model in evaluation mode, and decompose what the converter has no operation for.

    Raises:
        BackendError: no example inputs, or ``torch.export`` fails on the model.
    """
    if example_inputs is None:
        raise BackendError(
            "backend 'openvino' traces the model and needs example_inputs: a tuple of positional "
            "or a dictionary of keyword inputs"
        )
    args, kwargs = _split(example_inputs)
    try:
        with _evaluating(model), torch.no_grad(), quiet():
            program: ExportedProgram = torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            ).run_decompositions(_decompositions())
            return program
    except Exception as error:
        raise BackendError(
            f"torch.export cannot trace the model: {told(error)}. Try "
            "torch.export.export(model.eval(), inputs) by itself; its message and its "
            "documentation say what to rewrite"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch warns about in its own code on the way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        warnings.filterwarnings("ignore", message="The tensor attributes? self")
        yield


def told(error: Exception) -> str:
    """Return the type and the first lines of a message that may run over pages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}{' …' if len(text) > 600 else ''}".rstrip(".")


def _decompositions() -> Any:
    """Return the decompositions that OpenVINO's own tracing would apply."""
    table: Any = torch.export.default_decompositions()
    for op in ops_to_not_decompose():
        if op in table.keys():  # noqa: SIM118 - the table is no mapping
            table.pop(op)
    return table


def _split(
    inputs: Sequence[Any] | Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence):
        return tuple(inputs), {}
    raise BackendError(
        f"example_inputs must be a tuple of positional or a dictionary of keyword inputs, got "
        f"{type(inputs).__name__}"
    )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:  # models may have a train() of their own
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
