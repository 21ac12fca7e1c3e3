"""What the tests of the Core AI backend share: running files, damaging them, short configs."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray
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


def run_file(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    """Run a saved file on the CPU; returns its outputs in order."""
    return asyncio.run(_run(path, inputs))


async def _run(path: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    async with AIModelAsset.load(path).executable() as loaded:
        function = loaded.load_function("main")
        arrays = [x.to(torch.int32) if x.dtype is torch.int64 else x for x in inputs]
        named = zip(function.desc.input_names, arrays, strict=True)
        outputs = await function(inputs={name: NDArray(x.numpy()) for name, x in named})
        return [np.array(outputs[name].numpy()) for name in function.desc.output_names]


def summary(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return elements by storage type, and operations by name."""
    found = AIModelAsset.load(path).summary()
    return dict(found.storage_types), dict(found.operation_distribution)


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
    inputs: Any,
    path: Path,
    spec: PalettizationSpec | None = None,
    op_types: tuple[str, ...] = (),
    **arguments: Any,
) -> Path:
    """Palettize and export through the public interface."""
    palettizer = KMeansPalettizer(model, config(spec or PalettizationSpec(), *op_types))
    palettizer.prepare(inputs)
    return palettizer.export(path, inputs, backend="coreai", **arguments)


def palettes(model: nn.Module) -> dict[str, PalettizedTensor]:
    """Return the palettized weights of a model by the name of their first owner."""
    return {site.name: site.palette.palettized() for site in palette_sites(model)}


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Return values that numpy can compare; bfloat16 as the float32 it stands for."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def same_values(got: np.ndarray, wanted: Tensor) -> bool:
    """Whether dtype and every value are the same, the sign of zeros aside."""
    dtype = str(wanted.dtype).removeprefix("torch.")
    values = got.astype(np.float32) if dtype == "bfloat16" else got
    return str(got.dtype) == dtype and np.array_equal(values, as_numpy(wanted))


def flipped(path: Path, content: bytes, bit: int, to: Path) -> Path:
    """Copy a file and flip one bit of ``content``, which has to be in it exactly once.

    The checksum is made to fit, so that nothing but the bit tells.
    """
    shutil.copytree(path, to)
    program = to / "main.mlirb"
    data = bytearray(program.read_bytes())
    assert data.count(content) == 1, data.count(content)
    data[data.index(content) + bit // 8] ^= 1 << bit % 8
    program.write_bytes(bytes(data))
    (to / "main.hash").write_bytes(hashlib.sha256(data).digest())
    return to
