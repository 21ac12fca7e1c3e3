"""Weights that are entries times channel scales are taken in every bit, whoever made them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    QuantizationSpec,
)
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.recovered_scales import recovered_scale

ROWS = PerGroupedChannelGranularity(axis=0, group_size=32)
COLUMNS = PerGroupedChannelGranularity(axis=1, group_size=32)
INT8 = QuantizationSpec(dtype=torch.int8)


def palettized(weight, **spec):
    """Return a linear layer's weight as a palette decodes it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    made = PalettizationSpec(enable_per_channel_scale=True, **spec)
    module = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": made}, enable_fast_kmeans_mode=made.cluster_dim == 1
    )
    config = KMeansPalettizerConfig(global_config=module)
    model = KMeansPalettizer(nn.Sequential(layer), config).prepare(
        (torch.zeros(1, weight.shape[1], dtype=weight.dtype),)
    )
    return model[0].weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {"n_bits": 4},
        {"n_bits": 2},
        {"n_bits": 4, "granularity": ROWS},
        {"n_bits": 3, "granularity": COLUMNS},
        {"n_bits": 4, "cluster_dim": 2},
        {"n_bits": 4, "lut_qspec": INT8},
        {"n_bits": 3, "cluster_dim": 2, "lut_qspec": INT8},
        {"n_bits": 4, "lut_qspec": QuantizationSpec(dtype="uint8", qscheme="asymmetric")},
    ],
    ids=str,
)
def test_a_palettized_weight_comes_back_in_every_bit(spec):
    torch.manual_seed(0)
    first = palettized(torch.randn(64, 128) * torch.rand(64, 1), **spec)
    assert torch.equal(palettized(first, **spec), first)


HALF, FULL = torch.float16, torch.float32
CASES = [
    (FULL, (48, 64), 1, 0),
    (FULL, (48, 32), 1, 0),
    (FULL, (48, 64), 2, 1),
    (HALF, (48, 64), 2, 0),
    (HALF, (16, 64), 1, 0),
    (HALF, (48, 32), 1, 0),
    (torch.bfloat16, (48, 64), 1, 0),
    (torch.bfloat16, (16, 64), 1, 0),
]


@pytest.mark.parametrize(("dtype", "block", "dim", "axis"), CASES)
def test_products_of_any_tables_and_factors_are_found(dtype, block, dim, axis):
    generator = torch.Generator().manual_seed(1)
    layout = BlockLayout((48, 64), block, dim, axis)
    lut = torch.randn(layout.n_blocks, 8, dim, generator=generator)
    lut[:, 0] = 0.0
    codes = torch.randint(8, (layout.n_blocks, layout.points_per_block), generator=generator)
    unit = lut.gather(1, codes[..., None].expand(-1, -1, dim)).to(dtype)
    scale = (torch.rand(48, 1, generator=generator) * 0.05 + 0.001).to(dtype)
    weight = layout.merge(unit) * scale
    weight[4:6] = 0.0  # channels of zeros say nothing of their factors
    found = recovered_scale(weight, layout, 0, 8)
    assert found is not None
    assert torch.equal(found[0] * found[1], weight)
    assert all(len(points.unique(dim=0)) <= 8 for points in layout.split(found[0]))


@pytest.mark.parametrize(
    ("block", "dim", "axis"), [((48, 64), 1, 0), ((16, 64), 1, 0), ((48, 64), 2, 0)]
)
def test_float64_products_are_found_but_for_their_rounding(block, dim, axis):
    generator = torch.Generator().manual_seed(1)
    layout = BlockLayout((48, 64), block, dim, axis)
    lut = torch.randn(layout.n_blocks, 8, dim, generator=generator, dtype=torch.float64)
    codes = torch.randint(8, (layout.n_blocks, layout.points_per_block), generator=generator)
    unit = layout.merge(lut.gather(1, codes[..., None].expand(-1, -1, dim)))
    weight = unit * (torch.rand(48, 1, generator=generator, dtype=torch.float64) + 0.001)
    weight[4:6] = 0.0
    found = recovered_scale(weight, layout, 0, 9)
    assert found is not None
    assert ((found[0] * found[1] - weight).abs() <= 2**-49 * weight.abs()).all()
    assert all(len(points.unique(dim=0)) <= 9 for points in layout.split(found[0]))
    assert recovered_scale(torch.randn(48, 64, dtype=torch.float64), layout, 0, 8) is None


def test_convolutions_have_their_channels_where_the_operation_says():
    torch.manual_seed(0)
    lut = torch.randn(16)
    unit, scale = lut[torch.randint(16, (12, 24, 3))], torch.rand(1, 24, 1) + 0.1
    found = recovered_scale(unit * scale, BlockLayout((12, 24, 3), (12, 24, 3)), 1, 16)
    assert found is not None
    assert torch.equal(found[0] * found[1], unit * scale)


def test_what_is_no_product_is_left_to_clustering():
    torch.manual_seed(0)
    layout = BlockLayout((32, 64), (32, 64))
    weight = torch.randn(16)[torch.randint(16, (32, 64))] * torch.rand(32, 1)
    assert recovered_scale(weight, layout, 0, 16) is not None
    assert recovered_scale(weight, layout, 0, 8) is None  # more entries than there is room for
    assert recovered_scale(weight.double(), layout, 0, 16) is None
    assert recovered_scale(torch.randn(32, 64), layout, 0, 16) is None
    assert recovered_scale(torch.randn(512, 9), BlockLayout((512, 9), (512, 9)), 0, 16) is None
    off = weight.clone()
    off[3, 3] = torch.nextafter(off[3, 3], torch.tensor(9.0))  # one bit of one weight
    assert recovered_scale(off, layout, 0, 16) is None
