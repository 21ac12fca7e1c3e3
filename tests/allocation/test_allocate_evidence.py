"""Missing or empty evidence is said, never passed over."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizerConfig, PaletteWarning, allocate
from palette_core.errors import CalibrationError


class Dead(nn.Module):
    """No input comes to the second layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x * 0)


INPUTS = (torch.randn(3, 8, generator=torch.Generator().manual_seed(0)),)
BATCHES = [torch.randn(9, 8, generator=torch.Generator().manual_seed(1))]


def run(algorithm: str | None, **how):
    spec = {"n_bits": 4, "algorithm": algorithm}
    config = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": spec}}}}
    )
    return allocate(Dead(), config, INPUTS, target_bpw=20, **({"candidates": (2, 3)} | how))


@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_no_batches_for_what_needs_moments(algorithm: str) -> None:
    with pytest.warns(PaletteWarning, match=r"a\.weight, b\.weight: .*no calibration batches"):
        run(algorithm)


def test_a_layer_without_usable_moments() -> None:
    with pytest.warns(PaletteWarning, match="all its inputs were zero") as caught:
        run("lnq", batches=BATCHES)
    (one,) = caught
    assert str(one.message).startswith("b.weight: palettized by k-means")
    assert one.filename == __file__


def test_candidates_may_name_the_algorithm_that_needs_moments() -> None:
    candidates = [{"n_bits": 2, "algorithm": "lnq"}, 2]
    with pytest.warns(PaletteWarning, match=r"a\.weight, b\.weight"):
        run(None, candidates=candidates)
    with pytest.warns(PaletteWarning, match=r"^b\.weight"):
        found = run(None, candidates=candidates, batches=BATCHES)
    aware, plain = found.tensors[0].candidates
    # Lower output error, at the price of a higher one of the weight itself.
    assert aware.loss > plain.loss


def test_k_means_wants_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaletteWarning)
        run(None)
        run(None, batches=BATCHES)


def test_an_empty_batch_is_no_prediction_of_zero() -> None:
    with pytest.raises(CalibrationError, match="calibration batch 1 is empty"):
        run(None, metric="output", batches=[*BATCHES, torch.randn(0, 8)])
