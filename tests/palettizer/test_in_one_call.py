"""One call from a model to a palettized one, and files whose names pick the backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import palette_core
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    load_checkpoint,
)
from palette_core.errors import BackendError, UnknownPluginError


class Net(nn.Module):
    """Matrices of all kinds, and tensors that are none, of two axes too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.recurrent = nn.LSTM(32, 32)
        self.right = nn.Parameter(torch.randn(32, 32))
        self.experts = nn.Parameter(torch.randn(3, 32, 32))
        self.head = nn.Linear(32, 32)
        self.norm = nn.LayerNorm([2, 32])
        self.shift = nn.Parameter(torch.randn(2, 32))
        self.register_buffer("waves", torch.randn(32, 32))

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.recurrent(self.table(ids) + self.shift)
        x = self.norm(torch.einsum("lbd,kde->lbe", x @ self.right, self.experts))
        return self.head(x) @ self.waves


IDS = torch.arange(8).reshape(4, 2)
MATRICES = {
    "table.weight": (50, 8),
    "recurrent.weight_ih_l0": (8, 32),
    "recurrent.weight_hh_l0": (8, 32),
    "right": (32, 8),
    "experts": (3, 32, 8),
    "head.weight": (8, 32),
}


def test_linear_layers_in_groups_are_the_default() -> None:
    torch.manual_seed(0)
    net, again = Net(), Net()
    again.load_state_dict(net.state_dict())
    with pytest.warns(palette_core.PaletteWarning, match="weights are palettized"):
        model, report = palette_core.palettize(net, IDS)
    assert model is net
    assert [row.name for row in report.tensors] == ["head.weight"]
    spec = PalettizationSpec(granularity=PerGroupedChannelGranularity(group_size=16))
    of_all = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec, "in_proj_weight": spec})
    with pytest.warns(palette_core.PaletteWarning, match="weights are palettized"):
        KMeansPalettizer(again, KMeansPalettizerConfig(global_config=of_all)).prepare(IDS)
    assert torch.equal(model.eval()(IDS), again.eval()(IDS))


def test_all_matrices_and_nothing_else() -> None:
    net = Net()
    model, report = palette_core.palettize(net, IDS, bits=2, group_size=8, all_matrices=True)
    assert {row.name: row.n_bits for row in report.tensors} == dict.fromkeys(MATRICES, 2)
    assert palette_core.bits_per_weight(model) > 2
    plan = KMeansPalettizer(Net(), KMeansPalettizerConfig.presets.w4_all(group_size=8)).make_plan(
        IDS
    )
    assert {tensor.name: tensor.layout.block for tensor in plan} == MATRICES
    assert plan.warnings == ()


def test_a_model_without_what_all_matrices_names_is_not_warned_of_it() -> None:
    plan = KMeansPalettizer(nn.Linear(16, 16), KMeansPalettizerConfig.presets.w4_all()).make_plan(
        torch.ones(1, 16)
    )
    assert (len(plan), plan.warnings) == (1, ())


def test_scales_and_algorithms_are_taken() -> None:
    model, report = palette_core.palettize(
        nn.Linear(64, 32),
        torch.ones(1, 64),
        3,
        None,
        "gptq",
        scale_block_size=32,
        calibration=[torch.randn(64, 64)],
    )
    (row,) = report.tensors
    assert (row.algorithm, row.n_bits, row.granularity) == ("gptq", 3, "per tensor, scale / 32")
    assert palette_core.bits_per_weight(model) == pytest.approx(3 + 16 / 32, abs=0.6)
    assert row.objective_after is not None


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"bits": 5}, ValueError),
        ({"group_size": 0}, ValueError),
        ({"algorithm": "no"}, UnknownPluginError),
    ],
)
def test_settings_that_there_are_not(settings, kind) -> None:
    with pytest.raises(kind):
        palette_core.palettize(nn.Linear(16, 16), torch.ones(1, 16), **settings)


def test_the_suffix_picks_the_backend(tmp_path) -> None:
    model, _ = palette_core.palettize(nn.Linear(16, 16), torch.ones(1, 16))
    path = KMeansPalettizer(model).export(tmp_path / "model.safetensors")
    assert torch.equal(
        load_checkpoint(path, nn.Linear(16, 16))(torch.ones(1, 16)), model(torch.ones(1, 16))
    )
    with pytest.raises(BackendError, match=r"no export backend writes .*other; .*\.safetensors"):
        KMeansPalettizer(model).export(tmp_path / "model.other")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
