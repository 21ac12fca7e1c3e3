"""Graph that a model was traced to before, for as long as it and its inputs are what they were."""

from __future__ import annotations

from typing import Any, Self, final

import torch
from torch import Tensor, nn

from palette_core._common.modules import modules_of, tensors_of
from palette_core._common.pytrees import tensors
from palette_core.model.contents import Contents, Glance
from palette_core.model.deeper import Deeper
from palette_core.model.graph import ModelGraph
from palette_core.model.inputs import ExampleInputs, call_arguments
from palette_core.model.tracing import trace

_Versions = list[tuple[Tensor, int]]


@final
class TracedBefore:
    """A graph, and all that tells whether tracing would give it again.

    That is every attribute of every module, what is held there in any depth, the version of every
    tensor, and the inputs by their values. Copies and pickles know no graph: it is of this model.

    Args:
        model: the model, as it is to be used.
        example_inputs: for it; they are kept.

    Raises:
        TypeError, TracingError, OperationError: see `trace`.
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs) -> None:
        self.graph = trace(model, example_inputs)
        self._modules = modules = modules_of(model)
        self._inputs = call_arguments(example_inputs)
        self._of_inputs = _versions(tensors(self._inputs))
        self._of_states = _versions(tensor for each in modules for tensor in tensors_of(each))
        self._glance = Glance(
            ((vars(each), dict(vars(each))) for each in modules), map(Contents, modules)
        )
        self._deeper = Deeper(modules)

    @classmethod
    def unless_compiled(cls, model: nn.Module, example_inputs: ExampleInputs) -> Self | None:
        """Trace a model, or return None where there is no telling whether it has changed."""
        if any(isinstance(each, torch.jit.ScriptModule) for each in modules_of(model)):
            return None
        return cls(model, example_inputs)

    def graph_of(self, model: nn.Module, example_inputs: ExampleInputs) -> ModelGraph | None:
        """Return the graph, or None where it is to be traced anew."""
        modules = modules_of(model)
        same = (
            len(modules) == len(self._modules)
            and all(a is b for a, b in zip(modules, self._modules, strict=True))
            and _are_unwritten(self._of_states)
            and _are_unwritten(self._of_inputs)
            and _are_equal(self._inputs, call_arguments(example_inputs))
            and self._glance.is_same()
            and not self._deeper.is_written()
        )
        return self.graph if same else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def _versions(found: Any) -> _Versions:
    return [(tensor, -1 if tensor.is_inference() else tensor._version) for tensor in found]


def _are_unwritten(known: _Versions) -> bool:
    # What has no version may have been written to.
    return all(version >= 0 and version == tensor._version for tensor, version in known)


def _are_equal(a: Any, b: Any) -> bool:
    """Return whether inputs are equal: the same objects, or tensors of the same values."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    if type(a) is Tensor:
        alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
        return (
            alike and not a.is_meta and a.layout is b.layout is torch.strided and torch.equal(a, b)
        )
    return type(a) in (bool, int, float, str) and a == b
