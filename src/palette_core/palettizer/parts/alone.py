"""Parts run by themselves: what they return, what they use, and what they write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palette_core._common.modules import modules_of
from palette_core._common.pytrees import mapped
from palette_core.errors import BackendError
from palette_core.model import call_arguments, evaluation_mode, restored_state


@dataclass(frozen=True)
class Alone:
    """Findings of one run of a part.

    Attributes:
        output: what it returned.
        used: ids of the parameters and buffers that an operation took.
        written: of the buffers that it wrote to, or put others in the place of, by id, the names
            in the part; these are used, too.
    """

    output: Any
    used: frozenset[int]
    written: Mapping[int, str]


def run_alone(module: nn.Module, inputs: Any) -> Alone:
    """Run a part on copies of its inputs, in evaluation mode, and leave it as it was.

    Raises:
        BackendError: it fails.
    """
    states = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    buffers = [
        (f"{path}.{name}" if path else name, owner, name, buffer, _version(buffer))
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    args, kwargs = call_arguments(mapped(torch.clone, inputs))
    uses = _Uses(states)
    with evaluation_mode(module), restored_state(modules_of(module)), torch.no_grad():
        try:
            with uses:
                output = module(*args, **kwargs)
        except Exception as error:
            raise BackendError(
                f"it fails on its inputs: {type(error).__name__}: {error}"
            ) from error
        output = mapped(torch.clone, output)
        written = {
            id(buffer): path
            for path, owner, name, buffer, version in buffers
            if owner._buffers.get(name) is not buffer or _version(buffer) != version
        }
    return Alone(output, frozenset(uses.found | written.keys()), written)


@final
class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Parameters and buffers that operations take; by id, as they live longer than the run."""

    def __init__(self, states: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._states = states
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.found |= self._states & {id(leaf) for leaf in tree_leaves((args, kwargs))}
        return func(*args, **(kwargs or {}))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
