"""Requests for files of several functions, or of chosen names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from palette_core.plugins import types

Names = str | Sequence[str] | Mapping[str, str]
"""Names in order, one for each; or some of them, by what they are called without it."""


@dataclass(frozen=True)
class ExportFunction:
    """One function of a file.

    Attributes:
        inputs: example inputs: a tuple of positional inputs, a dictionary of keyword inputs, or
            one tensor.
        dynamic_shapes: as in ``torch.export.export``.
        module: whose ``forward`` is the function: the model, a part of it, or a module made
            around it or its parts, with weights and buffers of the model's; None is the model.
        input_names: names of its inputs, in order, or by argument of ``forward``; None takes
            those that the file's functions have in common, or keeps those of ``forward``.
        output_names: names of its outputs, in order, or by key where ``forward`` returns a
            dictionary; None likewise, or leaves them to the backend.
        state_names: names of its states, the buffers that it writes to, in the order of the
            model's buffers, or by the buffer's name in the module; None likewise.
    """

    inputs: Any
    dynamic_shapes: Any = None
    module: types.Module | None = None
    input_names: Names | None = None
    output_names: Names | None = None
    state_names: Names | None = None


@dataclass(frozen=True)
class ExportPart:
    """One of several files of a model: modules that follow each other.

    Inputs are those that the first of them gets when the model runs, and others that later ones
    get from before; the output is that of the last.

    Attributes:
        modules: names of modules, in the order in which they run, or ranges of a list's, as
            ``"layers[0:6]"``.
        dynamic_shapes: as in ``torch.export.export``, by name of the input.
        input_names: names of its inputs, in order, or by argument of the module that gets it.
        output_names: names of its outputs, in order, or by key.
        state_names: names of its states, in the order of buffers, or by the buffer's name in the
            model.
    """

    modules: str | Sequence[str]
    dynamic_shapes: Any = None
    input_names: Names | None = None
    output_names: Names | None = None
    state_names: Names | None = None


AnyPart = str | Sequence[str] | ExportPart | ExportFunction
"""Part of a model as users write it: names of modules, or what says more."""


@dataclass(frozen=True)
class ExportRequest:
    """Request to a backend that takes functions; checked, but for names in the model.

    Attributes:
        functions: by name, at least one; each with its module, never None, and with inputs that
            are a tuple or a dictionary.
        input_names: of all functions that have no names of their own. By argument, some function
            has to have it.
        output_names: likewise.
        state_names: likewise.
        metadata: of the user's own, to be kept in the file.
    """

    functions: Mapping[str, ExportFunction]
    input_names: Names | None = None
    output_names: Names | None = None
    state_names: Names | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def or_named(self, inputs: Names, outputs: Names, states: Names) -> ExportRequest:
        """Return it with the names of a backend's options, where it has none of its own."""
        return replace(
            self,
            input_names=self.input_names or inputs or None,
            output_names=self.output_names or outputs or None,
            state_names=self.state_names or states or None,
        )
