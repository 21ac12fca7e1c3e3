"""What the tests of the OpenVINO backend share: running files, and short configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.storage import palette_sites
from palette_core.tensors import PalettizedTensor

# What the runtime does by default is faster, and off by half a percent; this is not.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "INFERENCE_NUM_THREADS": "1",
}


def compiled(path: Path) -> ov.CompiledModel:
    """Return a saved model, ready to run on the CPU without rounding."""
    return ov.Core().compile_model(path, "CPU", EXACT)


def run_file(path: Path, *inputs: Any) -> list[np.ndarray]:
    """Run a saved model on the CPU; returns its outputs in order."""
    model = compiled(path)
    results = model([_given(x) for x in inputs])
    return [_values(results[at], port) for at, port in enumerate(model.outputs)]


def _given(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype is torch.bfloat16:
        array = value.view(torch.uint16).numpy()
        return ov.Tensor(array, ov.Shape(list(value.shape)), ov.Type.bf16)
    return as_numpy(value)


def _values(array: np.ndarray, port: Any) -> np.ndarray:
    """Return an output; bfloat16, which comes as its bytes, as the float32 it stands for."""
    if port.get_element_type() != ov.Type.bf16:
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def config(every: PalettizationSpec, *op_types: str) -> KMeansPalettizerConfig:
    """All default weights by one spec, and those of ``op_types``."""
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": every, "in_proj_weight": every},
            op_type_config={
                name: OpKMeansPalettizerConfig(op_state_spec={"*": every}) for name in op_types
            },
            enable_fast_kmeans_mode=False,
        )
    )


def exported(
    model: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    path: Path,
    spec: PalettizationSpec | None = None,
    op_types: tuple[str, ...] = (),
    **arguments: Any,
) -> Path:
    """Palettize and export through the public interface."""
    palettizer = KMeansPalettizer(model, config(spec or PalettizationSpec(), *op_types))
    palettizer.prepare(inputs)
    return palettizer.export(path, inputs, backend="openvino", **arguments)


def palettes(model: nn.Module) -> dict[str, PalettizedTensor]:
    """Return the palettized weights of a model by the name of their first owner."""
    return {site.name: site.palette.palettized() for site in palette_sites(model)}


def as_numpy(value: Any) -> np.ndarray:
    """Return values that numpy can compare; bfloat16 as the float32 it stands for."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def difference(got: Sequence[np.ndarray], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest magnitude of each output."""
    gaps = []
    for g, w in zip(got, (as_numpy(w) for w in wanted), strict=True):
        assert g.shape == w.shape, (g.shape, w.shape)
        assert np.array_equal(np.isnan(g), np.isnan(w))
        gap = np.abs(np.nan_to_num(g) - np.nan_to_num(w)).max(initial=0)
        gaps.append(float(gap) / (float(np.abs(np.nan_to_num(w)).max(initial=0)) or 1.0))
    return max(gaps)
