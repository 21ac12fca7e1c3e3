"""The published table, the contract, and a model."""

import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
)
from palette_core.plugins import ClusterProblem
from palette_core.testing import parametrize_contract
from palette_nf4.clusterer import NormalFloat, quantiles

# QLoRA, appendix E.
PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


@parametrize_contract(
    "palette-nf4",
    expected_failures={
        f"clusterer/nf4/{name}": "entries are fixed"
        for name in ("few-points", "few-values", "one-mean")
    },
)
def test_contract(check):
    check()


def test_four_bits_are_the_published_table():
    torch.testing.assert_close(
        quantiles(16), torch.tensor(PUBLISHED, dtype=torch.float64), rtol=0, atol=2e-7
    )


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_every_number_of_entries_ascends_from_end_to_end(n_bits):
    entries = quantiles(1 << n_bits)
    assert len(entries) == 1 << n_bits
    assert (entries.diff() > 0).all()
    assert entries[0] == -1
    assert entries[-1] == 1
    assert n_bits == 1 or 0 in entries


def test_blocks_are_scaled_by_their_largest_magnitude():
    points = torch.randn(3, 500, 1, generator=torch.Generator().manual_seed(0))
    points[1] *= 100
    points[2] = 0
    made = NormalFloat().fit(ClusterProblem(points, 16))
    table = points.abs().amax(1, keepdim=True) * torch.tensor(PUBLISHED)[:, None]
    torch.testing.assert_close(made.lut.float(), table, rtol=1e-6, atol=2e-5)
    gaps = (points - table.mT).abs()
    best = gaps.amin(-1, keepdim=True).double()
    torch.testing.assert_close((made.decode() - points).abs(), best, rtol=0, atol=1e-4)


def test_it_is_picked_by_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8)).eval()
    dense = model[0].weight.detach().clone()
    spec = PalettizationSpec(
        algorithm="nf4", granularity=PerGroupedChannelGranularity(group_size=1)
    )
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    )
    x = (torch.ones(1, 64),)
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(x)
    weight = palettizer.finalize(backend="packed")[0].weight
    rows = dense.abs().amax(1, keepdim=True) * torch.tensor(PUBLISHED)
    best = (dense[:, :, None] - rows[:, None]).abs().amin(-1)
    torch.testing.assert_close((weight - dense).abs(), best, rtol=0, atol=1e-6)
