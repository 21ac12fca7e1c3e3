"""Call everything that is compiled, then print the kernels of the package that never were.

Run as a script: where kernels can be kept is decided when numba is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings

import numpy as np
import torch
from numba.core.dispatcher import Dispatcher
from torch import nn

import palette_core
from palette_core import KMeansPalettizer, KMeansPalettizerConfig


def every_kernel() -> dict[str, Dispatcher]:
    """Return all compiled functions of the package by name, but those that are always inlined."""
    kernels = {}
    for module in pkgutil.walk_packages(palette_core.__path__, "palette_core."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, Dispatcher) and value.targetoptions.get("inline") != "always":
                    function = value.py_func
                    kernels[f"{function.__module__}.{function.__name__}"] = value
    return kernels


def palettize(model: nn.Module, inputs: torch.Tensor, **spec: object) -> None:
    spec = {"op_state_spec": {"weight": spec}}
    palettizer = KMeansPalettizer(
        model,
        KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": {"global_config": spec}}),
    )
    palettizer.calibrate([inputs])
    palettizer.prepare((inputs,))


def scalars() -> None:
    from palette_core.builtins.clusterers.kmeans1d import costs, solver
    from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
    from palette_core.builtins.clusterers.kmeans1d.warm import warm_up
    from palette_core.plugins import ClusterProblem

    warm_up()
    far = np.concatenate([np.arange(50.0), 1e12 + np.arange(50.0)])
    costs.merged_moments(np.ones_like(far), far)  # for data that sums in float64 cannot tell apart
    solver.solve_atoms(np.ones_like(far), far, 8)
    KMeans1d().fit(ClusterProblem(torch.randn(1 << 14, 8, 1), 2))  # blocks of a few points


def tables() -> None:
    from palette_core.tensors.assignment.passes import assign_and_sum

    held = torch.linspace(-1, 1, 16).repeat(8, 4)  # a block of 16 values is taken exactly
    rows = {"type": "per_grouped_channel", "axis": 0, "group_size": 1}
    for weight in (held, torch.randn(8, 64)):
        layer = nn.Linear(64, 8, bias=False)
        layer.weight = nn.Parameter(weight)
        palettize(
            layer, torch.randn(4, 64), n_bits=4, lut_qspec={"dtype": "int8"}, granularity=rows
        )
    guess = torch.zeros(2, 50, dtype=torch.uint8)
    assign_and_sum(torch.randn(2, 50, 2), None, torch.randn(2, 16, 2).double(), guess)


def vectors() -> None:
    from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector
    from palette_core.plugins import ClusterProblem

    for count, dim in ((1 << 15, 2), (1 << 15, 4), (100, 2)):
        points = torch.randn(1, count, dim)
        KMeansVector().fit(ClusterProblem(points, 16))
        KMeansVector().fit(ClusterProblem(points, 16, points.square()))


def moments() -> None:
    from palette_core.builtins.clusterers.layerwise import kernels
    from palette_core.builtins.operations.windows import Windows

    one = np.ones((1, 4), np.float32)  # of solutions that error feedback has not made
    h = np.eye(4, dtype=np.float32)[None]
    kernels.multiply(one, np.zeros(1, np.int32), h, one.copy(), 0, 1)
    for columns in (16, 256):  # few, and as many as rows have sums by code from
        palettize(nn.Linear(columns, 32), torch.randn(64, columns), algorithm="lnq", n_bits=2)
    palettize(nn.Linear(16, 32), torch.randn(64, 16), scale_block_size=8, n_bits=2)
    palettize(
        nn.Linear(16, 32),
        torch.randn(64, 16),
        algorithm="gptq",
        n_bits=2,
        lut_qspec={"dtype": "int8"},
    )
    grouped = torch.randn(2, 4, 9, 9)
    for groups in (2, 4):
        layer = nn.Conv2d(4, 4, 3, groups=groups, stride=2)
        palettize(layer, grouped, algorithm="gptq", n_bits=2)
    windows = Windows(1, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 4)
    windows.products_and_moved((grouped,), (grouped,), torch.randn(4, 1, 9))


def products() -> None:
    from palette_core.tensors import products

    layer = nn.Linear(256, 128)
    config = KMeansPalettizerConfig.presets.w4()
    palettizer = KMeansPalettizer(layer, config)
    palettizer.prepare((torch.randn(1, 256),))
    final = palettizer.finalize(backend="packed")
    (stored,) = (m.stored() for m in final.modules() if hasattr(m, "stored"))
    for count in (1, 2 * products._FEW):
        final(torch.randn(count, 256))
    products.decode(stored)


if __name__ == "__main__":
    from palette_core._common.kernels import are_kept

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    scalars()
    tables()
    vectors()
    moments()
    products()
    kernels = every_kernel()
    idle = [name for name, kernel in kernels.items() if not kernel.signatures]
    print(are_kept(), len(kernels) > 50, *idle)
