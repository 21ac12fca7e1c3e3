"""The contract, and the whole trip: cluster, decode, finalize, checkpoint, Core AI."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.config.granularity import parse_granularity
from palette_core.errors import IncompatibleShapeError
from palette_core.storage import load_checkpoint, palette_sites
from palette_core.testing import parametrize_contract

X = (torch.linspace(-1, 1, 2 * 4 * 64).reshape(2, 4, 8, 8),)
OPTIONS = {"granularity/per_block": [{"rows": 2, "columns": 4}, {"rows": 4, "columns": 1}]}


@parametrize_contract("palette-per-block", options=OPTIONS)
def test_contract(check):
    check()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Conv2d(4, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16)
    return nn.Sequential(*parts).eval()


def palettized(**spec) -> tuple[KMeansPalettizer, nn.Module]:
    spec = PalettizationSpec.model_validate(
        {"n_bits": 2, "granularity": {"type": "per_block", "rows": 4, "columns": 2}, **spec}
    )
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
        )
    )
    palettizer = KMeansPalettizer(net(), config)
    return palettizer, palettizer.prepare(X)


def blocks_of(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return blocks of 4 × 2 channels, cut by loops."""
    rows, columns = range(0, weight.shape[0], 4), range(0, weight.shape[1], 2)
    return [weight[r : r + 4, c : c + 2] for r, c in itertools.product(rows, columns)]


def test_each_block_has_a_table_of_its_own():
    _, model = palettized()
    grids = {site.name: site.palette.palettized().grid for site in palette_sites(model)}
    assert grids == {"0.weight": (2, 2, 1, 1), "3.weight": (4, 144)}
    dense = net()
    for at in (0, 3):
        blocks = blocks_of(model[at].weight.detach())
        assert max(len(block.unique()) for block in blocks) == 4
        assert len(model[at].weight.unique()) > 4
        # The two outer entries are means, so no value lies outside what its block spans.
        for block, old in zip(blocks, blocks_of(dense[at].weight), strict=True):
            assert old.min() <= block.min()
            assert block.max() <= old.max()


def test_finalized_and_loaded_weights_are_the_prepared_ones(tmp_path):
    palettizer, model = palettized(lut_qspec={"dtype": "int8"})
    with torch.no_grad():
        prepared, output = model[3].weight.clone(), model(*X).clone()
        final = palettizer.finalize(backend="packed")
        assert torch.equal(final[3].weight, prepared)
        path = palettizer.export(tmp_path / "net.safetensors", X, backend="packed")
        loaded = load_checkpoint(path, net())
        assert torch.equal(loaded[3].weight, prepared)
        torch.testing.assert_close(loaded(*X), output)


@pytest.mark.parametrize("lut", [None, {"dtype": "int8"}])
def test_core_ai_reads_the_blocks_back(tmp_path, lut):
    pytest.importorskip("coreai_torch")
    coreai_backend = pytest.importorskip("coreai_backend")
    palettizer, model = palettized(lut_qspec=lut)
    wanted = {f"{at}.weight": model[at].weight.detach().clone().numpy() for at in (0, 3)}
    palettizer.finalize(backend="coreai")
    path = palettizer.export(tmp_path / "net.aimodel", X, backend="coreai")
    read = coreai_backend.read_weights(path)
    assert read.keys() == wanted.keys()
    for name, weight in wanted.items():
        np.testing.assert_allclose(read[name], weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((8,), "no axis 1"),
        ((6, 4), r"rows=4 does not divide the 6 channels of axis 0"),
        ((8, 5), r"columns=2 does not divide the 5 channels of axis 1"),
    ],
)
def test_what_cannot_be_cut_is_said(shape, text):
    blocks = parse_granularity({"type": "per_block", "rows": 4, "columns": 2})
    with pytest.raises(IncompatibleShapeError, match=text):
        blocks.block_shape(shape, 0)
