"""A palettizer goes through pickle with its model, whatever its plug-ins are made of."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from palettizer_models import MLP_INPUTS, mlp, weight_config

from palette_core import KMeansPalettizer
from palette_core.plugins import (
    INTERFACE_VERSION,
    Clusterer,
    ClustererEntry,
    ClusterProblem,
    PluginEntry,
)
from palette_core.tensors import Codebook, assign

Copy = Callable[[KMeansPalettizer], KMeansPalettizer]


class Even(Clusterer):
    """Entries spread evenly from the smallest value to the largest."""

    def fit(self, problem: ClusterProblem) -> Codebook:
        low, high = (end[..., None] for end in problem.points[..., 0].aminmax(dim=1, keepdim=True))
        lut = low + (high - low) * torch.linspace(0, 1, problem.n_entries)[None, :, None]
        return Codebook(lut, assign(problem.points, lut))


def pickled(palettizer: KMeansPalettizer) -> KMeansPalettizer:
    return pickle.loads(pickle.dumps(palettizer))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_catalog_with_a_lambda(
    register: Callable[[PluginEntry], None], copied: Copy, prepared: bool
) -> None:
    register(
        ClustererEntry(
            name="even",
            summary="evenly spread entries",
            interface=INTERFACE_VERSION,
            factory=lambda options: Even(),
        )
    )
    config = weight_config(algorithm="even", n_bits=2)
    palettizer, reference = (KMeansPalettizer(mlp(), config) for _ in range(2))
    expected = reference.prepare(MLP_INPUTS)(*MLP_INPUTS)
    if prepared:
        palettizer.prepare(MLP_INPUTS)
    other = copied(palettizer)
    if not prepared:
        other.prepare(MLP_INPUTS)
    assert torch.equal(other.finalize(backend="packed")(*MLP_INPUTS), expected)
    assert {row.algorithm for row in other.report.tensors} == {"even"}
