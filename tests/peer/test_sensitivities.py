"""Sensitivities are those of coreai-opt, and files go both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 8, generator=generator), torch.randint(4, (5,), generator=generator))
        for _ in range(3)
    ]


def calibrated(palettizer: Any, path: Path) -> nn.Module:
    prepared: nn.Module = palettizer.prepare((data()[0][0],))
    with palettizer.calibration_mode(
        loss_fn=nn.functional.cross_entropy, sensitivity_path=str(path)
    ) as calibration:
        for inputs, target in data():
            calibration.step(prepared(inputs), target)
    return prepared


@pytest.mark.peer
def test_the_same_is_measured_and_either_reads_the_others_file(tmp_path: Path) -> None:
    from coreai_opt.palettization import KMeansPalettizer as Theirs

    from palette_core import KMeansPalettizer as Ours

    ours, theirs = tmp_path / "ours.pt", tmp_path / "theirs.pt"
    calibrated(Ours(model()), ours)
    other = calibrated(Theirs(model()), theirs)
    a, b = torch.load(ours, weights_only=True), torch.load(theirs, weights_only=True)
    assert a.pop("palette_core_sensitivities.batches") == 3  # which they do not look at
    assert set(a) <= set(b)  # theirs holds biases too
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-9)
    inputs = (data()[0][0],)
    plain = tmp_path / "plain.pt"
    torch.save(a, plain)  # without the number of batches, as theirs
    read, mine = (Ours(model()).prepare(inputs, path) for path in (theirs, plain))
    torch.testing.assert_close(read[0].weight, mine[0].weight, rtol=1e-3, atol=1e-4)
    read = Theirs(model()).prepare(inputs, str(ours))
    torch.testing.assert_close(read[0].weight, other[0].weight, rtol=1e-3, atol=1e-4)
