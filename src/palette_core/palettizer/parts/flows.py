"""Data flow between parts of a model, found by running it once on example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten_with_path

from palette_core._common.modules import modules_of
from palette_core.errors import BackendError
from palette_core.model import ExampleInputs, call_arguments, evaluation_mode, restored_state
from palette_core.palettizer.parts.calls import (
    Call,
    Watch,
    only_call,
    recording,
    tensors,
    versions_of,
)
from palette_core.palettizer.parts.modules import Source, Step, part_module

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


Flow = dict[str, str | int]


@dataclass
class RecordedPart:
    """Part of a model, with what it was given and has returned in the run.

    Attributes:
        module: calls the modules of the part as the model did.
        inputs: by name, as they were when the part began.
        flows: by name of the input, where it comes from: ``{"part": "body", "output": 0}``, a
            result of a part before it; ``{"model": "input_ids"}``; or None where the model itself
            computes it.
        output: copy of what its last module returned.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    flows: dict[str, Flow | None]
    output: Any


def record_parts(
    model: nn.Module, paths: Mapping[str, Sequence[str]], example_inputs: ExampleInputs
) -> dict[str, RecordedPart]:
    """Run a model once, and return its parts as modules with their inputs.

    Args:
        model: it is run in evaluation mode, and left as it was.
        paths: by part, the names of modules that follow each other.
        example_inputs: of the model.

    Raises:
        BackendError: a module does not run exactly once or not in this order, or the model computes
            something between two modules of a part.
    """
    args, kwargs = call_arguments(example_inputs)
    names = dict.fromkeys(path for part in paths.values() for path in part)
    calls: dict[str, list[Call]] = {path: [] for path in names}
    watch, versions = Watch(), versions_of((args, kwargs))
    known: dict[int, tuple[Flow, int]] = {
        id(leaf): ({"model": name}, versions[id(leaf)])
        for name, leaf in _named_leaves(model, args, kwargs)[0]
        if isinstance(leaf, Tensor)
    }
    with (
        evaluation_mode(model),
        restored_state(modules_of(model)) as restore,
        torch.no_grad(),
    ):
        with recording(model, calls, watch), watch:
            model(*args, **kwargs)
        restore()
        made = {}
        for name, part in paths.items():
            recorded = _Wiring(name, [only_call(name, path, calls) for path in part], watch)
            made[name] = recorded.part(model, known)
            last = recorded.calls[-1]
            for at, result in enumerate(tensors(last.output)):
                known[id(result)] = {"part": name, "output": at}, last.output_versions[id(result)]
    return made


# --- from calls to a module ---------------------------------------------------------------------


@dataclass
class _Wiring:
    name: str
    calls: list[Call]
    watch: Watch
    inputs: dict[str, Tensor] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def part(self, model: nn.Module, known: Mapping[int, tuple[Flow, int]]) -> RecordedPart:
        """Return the part; ``known`` are tensors from elsewhere, by id, with their versions."""
        steps = [self._step(at, call) for at, call in enumerate(self.calls)]
        flows: dict[str, Flow | None] = {}
        for name, tensor in self.originals.items():
            of, version = known.get(id(tensor), (None, -1))
            # Else what the model does between parts has written to it.
            flows[name] = of if version == self.versions[name] else None
        module = part_module(model, steps, list(self.inputs))
        return RecordedPart(module, self.inputs, flows, self.calls[-1].output_copy)

    def _step(self, at: int, call: Call) -> Step:
        if at and call.start < self.calls[at - 1].end:
            raise BackendError(
                f"part {self.name!r}: {call.path} does not run after {self.calls[at - 1].path}; "
                "name the modules of a part in the order in which they run"
            )
        named, tree = _named_leaves(call.module, *call.given)
        copies = _named_leaves(call.module, *call.copies)[0]
        leaves = [
            self._source(at, call, name, leaf, copy)
            for (name, leaf), (_, copy) in zip(named, copies, strict=True)
        ]
        return Step(call.path, tuple(leaves), tree)

    def _source(self, at: int, call: Call, name: str, leaf: Any, copy: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if isinstance(leaf, _PLAIN):
                return leaf
            raise BackendError(
                f"part {self.name!r}: {name} of {call.path} is a {type(leaf).__name__}, and a file "
                "takes and gives tensors only; leave it out of the inputs of the model, or switch "
                "off what makes it (use_cache=False)"
            )
        is_written = False
        for before in reversed(range(at)):
            earlier = self.calls[before]
            # What modules in between have written they write again.
            versions = earlier.output_versions if before == at - 1 else call.versions
            for index, result in enumerate(tensors(earlier.output)):
                if result is leaf and versions[id(leaf)] == call.versions[id(leaf)]:
                    return Source(before, index)
                is_written = is_written or result is leaf
        if is_written or self.watch.made(leaf) > self.calls[0].start:
            raise BackendError(
                f"part {self.name!r}: {name} of {call.path} is computed by the model itself, "
                f"between {self.calls[at - 1].path} and it; write a module that computes it, and "
                "give ExportFunction(inputs, module=it)"
            )
        for known, tensor in self.originals.items():
            if tensor is leaf:
                return Source(None, known)
        while name in self.inputs:
            name = f"{name}_"
        self.inputs[name], self.originals[name] = copy, leaf
        self.versions[name] = call.versions[id(leaf)]
        return Source(None, name)


def _named_leaves(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[tuple[str, Any]], TreeSpec]:
    """Return the leaves of a call, named after the arguments of ``forward`` that hold them."""
    of_forward = inspect.signature(module.forward).parameters.values()
    positional = [p.name for p in of_forward if p.kind is not p.KEYWORD_ONLY]
    found, tree = tree_flatten_with_path((args, kwargs))
    named = []
    for path, leaf in found:
        first, *keys = (str(getattr(key, "idx", getattr(key, "key", key))) for key in path)
        if first == "0":
            at = int(keys[0])
            keys[0] = positional[at] if at < len(positional) else f"{positional[-1]}_{at}"
        named.append(("_".join(keys), leaf))
    return named, tree


def check_output(name: str, got: Any, expected: Any) -> None:
    """Compare what a part returns by itself with what it returned in the model.

    Raises:
        BackendError: it is something else.
    """
    for found, wanted in zip(tensors(got), tensors(expected), strict=True):
        near = 1e-4 * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
        if found.shape != wanted.shape or not torch.allclose(
            found.double(), wanted.double(), rtol=0, atol=near, equal_nan=True
        ):
            raise BackendError(
                f"part {name!r} returns something else by itself than in the model: what it "
                "computes depends on more than its arguments and buffers; write a module that "
                "holds all of it, and give ExportFunction(inputs, module=it)"
            )
