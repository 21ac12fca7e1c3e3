"""Annotations of what plug-ins implement can be read, though no torch was imported for them."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from palette_core import plugins
from palette_core.plugins import Backend, Clusterer, ClusterProblem, Part
from palette_core.plugins.kinds import KINDS
from palette_core.tensors import Codebook


def annotated() -> Iterator[Any]:
    """Yield classes and functions for authors, with methods, but for what dataclasses generate."""
    for name in plugins.__all__:
        value = getattr(plugins, name)
        if inspect.isclass(value):
            yield value
            for member in vars(value).values():
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if inspect.isfunction(function) and function.__name__ != "__init__":
                    yield function
        elif inspect.isfunction(value):
            yield value
    yield from (kind.hookspec for kind in KINDS)


@pytest.mark.parametrize("value", list(annotated()), ids=lambda value: value.__qualname__)
def test_hints_resolve(value: Any) -> None:
    hints = typing.get_type_hints(value)
    assert "types." not in repr(hints)


def test_hints_are_the_types_themselves() -> None:
    assert typing.get_type_hints(ClusterProblem)["points"] is torch.Tensor
    assert typing.get_type_hints(Clusterer.fit) == {"problem": ClusterProblem, "return": Codebook}
    assert typing.get_type_hints(Backend.finalize)["return"] is torch.nn.Module
    assert typing.get_type_hints(Part)["dtype"] is torch.dtype


def test_they_cost_no_import_of_torch() -> None:
    script = "import sys, palette_core.plugins; print('torch' in sys.modules)"
    run = [sys.executable, "-c", script]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
