"""Real models with their own weights, where they have been downloaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_HOW = "benchmarks/README.md says how to get it, under Real models"


@dataclass(frozen=True)
class RealModel:
    """A trained model.

    Attributes:
        name: unique, as tables show it.
        load: returns the model in evaluation mode, and its inputs; skips the test where it is not
            there.
    """

    name: str
    load: Callable[[], tuple[nn.Module, Mapping[str, Any]]]

    def forgotten(self) -> nn.Module:
        """Return the model with other weights: what a checkpoint lacks would show."""
        model, _ = self.load()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
        return model


def _minilm() -> tuple[nn.Module, Mapping[str, Any]]:
    from palette_core.demo.minilm import MissingDemoError, load_minilm, tokenize

    try:
        model = load_minilm()
        ids, mask = tokenize(["A palette has few colours.", "Look-up tables, two rows, padded."])
    except MissingDemoError as error:
        pytest.skip(str(error))
    return model, {"ids": ids, "mask": mask}


def _loaded(name: str, *names: str) -> Callable[[], tuple[nn.Module, Mapping[str, Any]]]:
    """Return what loads a model of the benchmarks, whose inputs get their names in forward."""

    def load() -> tuple[nn.Module, Mapping[str, Any]]:
        if not os.environ.get("PALETTE_LOADERS"):
            pytest.skip(f"PALETTE_LOADERS is not set, so {name} is not here; {_HOW}")
        try:
            model, inputs = getattr(_models(), name)()
        except (ImportError, OSError, IndexError) as error:  # what a loader meets without its files
            pytest.skip(f"{name} does not load ({type(error).__name__}: {error}); {_HOW}")
        return model.float(), dict(zip(names, (_short(x) for x in inputs), strict=True))

    return load


def _short(tensor: Tensor) -> Tensor:
    """Return the first eight tokens of a text; the evaluator of Core ML's programs is slow."""
    return tensor[:, :8].clone() if not tensor.is_floating_point() else tensor


def _models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_models", _BENCHMARKS / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REAL = [
    RealModel("MiniLM-L6-v2, its weights", _minilm),
    RealModel("EfficientNet-Lite0, its weights", _loaded("effnet", "inputs")),
    RealModel("Whisper tiny.en, its weights", _loaded("whisper", "mel", "ids")),
    RealModel("SmolLM2-135M, its weights", _loaded("smollm2", "ids")),
]
