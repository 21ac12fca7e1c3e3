"""Part of a model as a module: steps that call its modules as the model does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from palette_core.palettizer.parts.calls import tensors


class Source(NamedTuple):
    """Source of an argument: an input of the part, or a result of one of its steps.

    Attributes:
        step: index of the step; None is an input.
        at: name of the input, or index among the tensors of the result.
    """

    step: int | None
    at: str | int


@dataclass(frozen=True)
class Step:
    """Call of one module of a part: each leaf of its arguments is a source or a constant."""

    path: str
    leaves: tuple[Any, ...]
    tree: TreeSpec


class _Part(nn.Module):
    """Modules of a model, called as it calls them; they keep its names."""

    _steps: Sequence[Step]

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """Return what the last module returns."""
        results: list[Any] = []

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, Source):
                return leaf
            if leaf.step is None:
                return inputs[str(leaf.at)]
            return tensors(results[leaf.step])[int(leaf.at)]

        for step in self._steps:
            args, kwargs = tree_unflatten([value(leaf) for leaf in step.leaves], step.tree)
            results.append(self.get_submodule(step.path)(*args, **kwargs))
        return results[-1]


def part_module(model: nn.Module, steps: Sequence[Step], inputs: Sequence[str]) -> nn.Module:
    """Return a module that calls ``steps``, and whose ``forward`` takes the named inputs."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *inputs)]
    signature = inspect.Signature(parameters)

    def forward(self: _Part, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        return self.run(given)

    forward.__signature__ = signature  # type: ignore[attr-defined]  # converters read the names
    made: _Part = type("Part", (_Part,), {"forward": forward})()
    made._steps = tuple(steps)
    for step in steps:
        owner: nn.Module = made
        *owners, last = step.path.split(".")
        for name in owners:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = getattr(owner, name)
        owner.add_module(last, model.get_submodule(step.path))
    return made
