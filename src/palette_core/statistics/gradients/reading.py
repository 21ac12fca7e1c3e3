"""Sensitivities of a plan's weights, from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from palette_core.planning import TensorPlan
from palette_core.storage.sensitivity_files import WantedTensor, load_sensitivities
from palette_core.tensors.sensitivities import Sensitivity, fingerprint


def read_sensitivities(
    path: str | Path,
    plan: Iterable[TensorPlan],
    weights: Mapping[str, Tensor],
    *,
    trust: bool = False,
) -> dict[str, Sensitivity]:
    """Read the sensitivities of planned tensors, by name; see `load_sensitivities`.

    Args:
        path: of the file.
        plan: the tensors.
        weights: their values by the plan's names.
        trust: take what was measured on other weights of the same shapes.

    Raises:
        FileNotFoundError: no such file.
        SensitivityError: it does not fit; the message lists every problem.
    """
    wanted = [
        WantedTensor(
            tuple(owner.name for owner in tensor.owners),
            tensor.shape,
            fingerprint(weights[tensor.name]),
        )
        for tensor in plan
    ]
    return load_sensitivities(path, wanted, trust=trust)
