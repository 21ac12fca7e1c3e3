"""Calls of modules in one run of a model, and what has written to the tensors that they take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from palette_core._common.pytrees import mapped
from palette_core.errors import BackendError


@dataclass
class Call:
    """One call of a module; times count operations."""

    path: str
    module: nn.Module
    given: tuple[tuple[Any, ...], dict[str, Any]]
    copies: tuple[tuple[Any, ...], dict[str, Any]]
    versions: dict[int, int]
    start: int
    end: int = -1
    output: Any = None
    output_copy: Any = None
    output_versions: dict[int, int] = field(default_factory=dict)


@final
class Watch(TorchFunctionMode):
    """Clock of operations, and when each tensor was made."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._made: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self.now += 1
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in given:
                self._made[leaf] = self.now
        return result

    def made(self, tensor: Tensor) -> int:
        """Return when a tensor was made; 0 is before the run."""
        return int(self._made.get(tensor, 0))


def versions_of(value: Any) -> dict[int, int]:
    """Return how often each tensor has been written to, by its id."""
    return {id(t): 0 if t.is_inference() else t._version for t in tensors(value)}


@contextlib.contextmanager
def recording(model: nn.Module, calls: dict[str, list[Call]], watch: Watch) -> Iterator[None]:
    """Record the calls of the modules that ``calls`` names, until it is left."""
    handles = []

    def before(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any) -> None:
            start = watch.now
            with torch._C.DisableTorchFunction():
                copies = mapped(torch.clone, (args, kwargs))
            versions = versions_of((args, kwargs))
            calls[path].append(Call(path, module, (args, kwargs), copies, versions, start))

        return record

    def after(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del module, args, kwargs
            call = calls[path][-1]
            with torch._C.DisableTorchFunction():
                call.output_copy = mapped(torch.clone, output)
            call.output, call.output_versions = output, versions_of(output)
            call.end = watch.now

        return record

    try:
        for path in calls:
            module = model.get_submodule(path)
            handles += [
                module.register_forward_pre_hook(before(path), with_kwargs=True),
                module.register_forward_hook(after(path), with_kwargs=True),
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


def only_call(part: str, path: str, calls: Mapping[str, list[Call]]) -> Call:
    """Return the call of a module.

    Raises:
        BackendError: there was none, or several.
    """
    found = calls[path]
    if len(found) != 1:
        raise BackendError(
            f"part {part!r}: {path} runs {len(found)} times with these inputs, and a part calls "
            "each of its modules once; write a module that does what it is to do, and give "
            "ExportFunction(inputs, module=it)"
        )
    return found[0]


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors among the leaves of what a module takes or returns."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
