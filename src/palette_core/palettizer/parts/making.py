"""Parts to write, made of a model, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from palette_core.errors import BackendError, did_you_mean
from palette_core.model import ExampleInputs
from palette_core.palettizer.parts.alone import Alone, run_alone
from palette_core.palettizer.parts.flows import Flow, check_output, record_parts
from palette_core.planning.records import WeightCopies
from palette_core.plugins.export_requests import ExportFunction, ExportPart


@dataclass(frozen=True)
class Weight:
    """A weight of the model as files hold it: its tensors, and its bytes in one file."""

    tensors: list[Tensor]
    bytes: int


@dataclass
class Parts:
    """Parts to write, each a function, and what is to be told about them.

    Attributes:
        functions: by name; each with its module and inputs.
        flows: by part, where each of its inputs comes from; of parts named by modules.
        copies: weights that several files hold.
        left_out: names of weights that no file holds.
    """

    functions: dict[str, ExportFunction]
    flows: dict[str, dict[str, Flow | None]] = field(default_factory=dict)
    copies: list[WeightCopies] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def make_parts(
    parts: Mapping[str, Any],
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    weights: Mapping[str, Weight],
) -> Parts:
    """Return the parts of a model, which is run where they are named by modules, and they are.

    Args:
        parts: as `check_parts` returns them.
        model: dense, or finalized.
        example_inputs: of the model, for parts that are named by modules.
        weights: of the model, by name.

    Raises:
        BackendError: as of `record_parts`, there are no inputs to run it on, a part fails or
            returns something else by itself, or a state is of several parts.
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
            found.inputs, _axes(name, part, found.inputs), found.module, part.input_names,
            part.output_names, part.state_names,
        )  # fmt: skip
    alone = {name: _alone(name, function) for name, function in made.functions.items()}
    _check_states(alone, model)
    for name, found in recorded.items():
        check_output(name, alone[name].output, found.output)
    return _counted(made, alone, weights)


def _axes(name: str, part: ExportPart, inputs: Mapping[str, Tensor]) -> Any:
    """Return axes that may vary as torch.export takes them: an entry for every input."""
    axes = part.dynamic_shapes
    if not isinstance(axes, Mapping):
        return axes
    unknown = [each for each in axes if each not in inputs]
    if unknown:
        raise BackendError(
            f"part {name!r}: dynamic_shapes has {unknown[0]!r}, which is no input of it"
            f"{did_you_mean(str(unknown[0]), inputs)} (inputs: {', '.join(inputs)})"
        )
    return {each: axes.get(each) for each in inputs}


def _alone(name: str, function: ExportFunction) -> Alone:
    if function.module is None or function.inputs is None:
        raise BackendError(f"part {name!r}: give the inputs of its ExportFunction")
    try:
        return run_alone(function.module, function.inputs)
    except BackendError as error:
        raise BackendError(f"part {name!r}: {error}") from error


def _check_states(alone: Mapping[str, Alone], model: nn.Module) -> None:
    """Refuse a buffer that one part writes and another uses: each file would have its own.

    Raises:
        BackendError: naming the first of them, and those parts.
    """
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    for writer, run in alone.items():
        for key, local in run.written.items():
            others = [name for name, other in alone.items() if name != writer and key in other.used]
            if others:
                raise BackendError(
                    f"part {writer!r} writes state {names.get(key, local)}, which "
                    f"{' and '.join(map(repr, others))} {'use' if len(others) > 1 else 'uses'}, "
                    "too; each file would have a state of its own, and none would see what another "
                    "writes. Make one part of what takes it, write both as functions= of one file, "
                    "or pass its values from part to part as inputs and outputs"
                )


def _counted(made: Parts, alone: Mapping[str, Alone], weights: Mapping[str, Weight]) -> Parts:
    """Add the weights that several parts hold, and those that none does."""
    copies, left_out = [], []
    for name, weight in weights.items():
        ids = {id(tensor) for tensor in weight.tensors}
        holders = tuple(part for part, run in alone.items() if ids & run.used)
        if len(holders) > 1:
            copies.append(WeightCopies(name, holders, weight.bytes))
        elif not holders:
            left_out.append(name)
    return replace(made, copies=copies, left_out=left_out)
