"""State of the compiled kernels of scalar k-means, and their compilation ahead of use.

Every kernel has one signature here, so one small problem of each kind compiles them all, except
the slower form of costs for ill-conditioned data, which waits until such data comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from palette_core._common.kernels import compile_ahead, is_compiled
from palette_core.builtins.clusterers.kmeans1d import block, costs, passes, rounding, search, whole

_KERNELS: tuple[Any, ...] = (
    block.middle_of,
    block.open_more,
    block.set_limits,
    costs.rounding_error,
    costs.running_sums,
    costs.segment_means,
    costs.thin,
    passes.assign_cells,
    passes.count_patterns,
    passes.fill_cells,
    passes.gather_open,
    passes.look_up,
    passes.merge_atoms,
    passes.weigh_patterns,
    rounding.settle,
    search.search,
    whole.fit_block,
)


_SUMS = "float64[::1]"
_FLOATS, _BYTES, _ENDS = "float32[::1]", "uint8[::1]", "int32[::1]"
_CELLS = "float64[:,::1]"
# What float32 weights need without sensitivities, in the order of use.
ORDINARY: Mapping[Any, str] = {
    kernel: f"({', '.join(types)},)"
    for kernel, types in {
        passes.fill_cells: (_FLOATS, _FLOATS, "float32", "float32", _CELLS),
        passes.merge_atoms: (_CELLS, _BYTES, _FLOATS, _FLOATS, "float64", _SUMS, _SUMS, _ENDS),
        costs.running_sums: (_SUMS, _SUMS, _CELLS),
        costs.thin: (_SUMS, _SUMS, "int64", _SUMS, _SUMS),
        costs.rounding_error: (_CELLS, _SUMS, _SUMS, _ENDS),
        search.search: (_CELLS, "int64", "int64", "float64", _SUMS, _ENDS, *2 * ("int32[:,::1]",)),
        costs.segment_means: (_SUMS, _SUMS, _ENDS),
        block.middle_of: (_CELLS,),
        block.open_more: (_SUMS, _ENDS, _ENDS, "float64", "float64", "int64", _BYTES),
        block.set_limits: (_FLOATS, "float32", "float32", _FLOATS, _BYTES),
        passes.gather_open: (_FLOATS, _FLOATS, "float32", "float32", _BYTES, _FLOATS, _FLOATS),
        passes.assign_cells: (_FLOATS, "float32", "float32", _BYTES, _FLOATS, _BYTES),
    }.items()
}
"""Kernels and the types of their arguments, for another process to compile."""

_POINTS = ("float32[:,::1]", "uint32[:,::1]", "float32[:,::1]")
LATER: Mapping[Any, str] = {
    whole.fit_block: f"""(
        {_FLOATS}, {_FLOATS}, float32, float32, float64, {_CELLS}, {_BYTES}, {", ".join(_POINTS)},
        {_CELLS}, {_CELLS}, int32[:,::1], {_FLOATS}, {_BYTES},
    )""",
}
"""The same of what takes over from them where it is compiled, as it is faster."""


def warm_up_beside() -> None:
    """Let another process compile what ordinary weights need, where it is not compiled yet.

    What takes over is not waited for, but where a weight has so many blocks that it pays.
    """
    compile_ahead(f"{__name__}:ORDINARY,LATER", ORDINARY, LATER)


def kernels_are_cached() -> bool:
    """Return whether all kernels are compiled already, in this process or in numba's file cache."""
    return all(is_compiled(kernel) for kernel in _KERNELS)


def warm_up() -> None:
    """Compile, or load from the cache, everything an ordinary weight needs."""
    import torch

    from palette_core.builtins.clusterers.kmeans1d.floats import fit_at_once, fit_floats
    from palette_core.builtins.clusterers.kmeans1d.grid import choose_grid
    from palette_core.builtins.clusterers.kmeans1d.halves import fit_halves
    from palette_core.tensors import PalettizedTensor, square_sums

    points = torch.linspace(-1.0, 1.0, 1 << 13).square()[None]
    for weights in (None, torch.ones_like(points)):
        fit_floats(points, weights, 16, 4)
        fit_halves(points.half(), weights, 16)
    codes = torch.zeros((1, points.numel()), dtype=torch.uint8)
    row = points[0].numpy()
    grid = choose_grid(row, row.size, 16, 4)
    assert grid is not None
    fit_at_once(row, None, grid, np.empty(16, np.float32), codes[0].numpy())
    palettized = PalettizedTensor(codes, torch.zeros(1, 1, 2, 1), 1, 0, points.dtype)
    square_sums(points, palettized)
