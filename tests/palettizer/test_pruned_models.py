"""Models that others have pruned: masks in whatever place, zeros that stay, sizes that count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from palettizer_models import weight_config
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    allocate,
    load_checkpoint,
)
from palette_core.errors import PaletteWarning
from palette_core.storage import palette_sites

X = (torch.sin(torch.arange(128.0)).reshape(4, 32),)


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()


def masked(module: nn.Linear) -> None:
    prune.l1_unstructured(module, "weight", amount=0.6)


def removed(module: nn.Linear) -> None:
    masked(module)
    prune.remove(module, "weight")


def by_rows(module: nn.Linear) -> None:
    prune.ln_structured(module, "weight", amount=0.5, n=2, dim=0)


def twice(module: nn.Linear) -> None:
    by_rows(module)
    prune.random_unstructured(module, "weight", amount=0.2)


class MaskOfOnesOwn(nn.Module):
    """A mask beside a dense weight, as coreai-opt's pruner keeps it while it prunes."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class StoredNonzeros(nn.Module):
    """Nonzeros and a mask in the place of a weight, as that pruner finalizes for Core AI."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", weight != 0)
        self.register_buffer("nonzero_data", weight[weight != 0].clone())

    def forward(self, weight: Tensor) -> Tensor:
        del weight
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, self.nonzero_data)


def by_parametrization(module: nn.Linear) -> None:
    mask = (module.weight.abs() > module.weight.abs().median()).float()
    parametrize.register_parametrization(module, "weight", MaskOfOnesOwn(mask))


def by_stored_nonzeros(module: nn.Linear) -> None:
    removed(module)
    weight = module.weight.detach().clone()
    parametrize.register_parametrization(module, "weight", StoredNonzeros(weight), unsafe=True)


def two_of_four(module: nn.Linear) -> None:
    n_of_m(module, 2, 4)


def one_of_four(module: nn.Linear) -> None:
    n_of_m(module, 1, 4)


def n_of_m(module: nn.Linear, n: int, m: int) -> None:
    apart = module.weight.data.reshape(len(module.weight), -1, m)
    apart.scatter_(2, apart.abs().argsort(dim=2)[..., : m - n], 0.0)


PRUNERS: list[Callable[[nn.Linear], None]] = [
    masked,
    removed,
    by_rows,
    twice,
    by_parametrization,
    by_stored_nonzeros,
    two_of_four,
    one_of_four,
]


def pruned(pruner: Callable[[nn.Linear], None]) -> nn.Sequential:
    model = dense()
    for module in (model[0], model[2]):
        pruner(module)
    return model


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.__name__)
def test_zeros_stay_through_training_finalizing_and_files(
    pruner: Callable[[nn.Linear], None], tmp_path: Path
) -> None:
    model = pruned(pruner)
    zeros = [model[at].weight == 0 for at in (0, 2)]
    assert all(float(zero.float().mean()) > 0.4 for zero in zeros)
    config = weight_config(n_bits=2, sparsity_detection_threshold=0.3, training_strategy="ste")
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(X)

    def demand_zeros(model: nn.Module) -> None:
        for at, zero in zip((0, 2), zeros, strict=True):
            assert not model[at].weight[zero].any()
            assert model[at].weight[~zero].all()

    assert [site.palette.form.name for site in palette_sites(model)] == ["sparse", "sparse"]
    demand_zeros(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with palettizer.training_mode():
        for _ in range(3):
            (model(*X) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            palettizer.step()
    demand_zeros(model)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    demand_zeros(load_checkpoint(path, dense()))
    demand_zeros(palettizer.dequantize())


@pytest.mark.parametrize("pruner", [two_of_four, one_of_four])
def test_masks_of_n_of_m_cost_one_bit_and_their_share_of_indices(
    pruner: Callable[[nn.Linear], None],
) -> None:
    model = pruned(pruner)
    share = {two_of_four: 2, one_of_four: 1}[pruner] / 4
    config = weight_config(n_bits=4, sparsity_detection_threshold=0.3)
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(X)
    tables = 2 * 16 * 32
    bits = palettizer.report.bits_per_palettized_weight
    assert bits == 1 + 4 * share + tables / (32 * 64 + 64 * 16)
    for site in palette_sites(model):
        per_row = site.palette.mask.sum(1)
        assert len(per_row.unique()) == 1


# --- sizes that others go by --------------------------------------------------------------------


def test_allocate_counts_the_true_size_of_sparse_weights() -> None:
    config = weight_config(n_bits=4, sparsity_detection_threshold=0.3)
    model = pruned(removed)
    # Dense indices of 2 bits would take more than this.
    made = allocate(model, config, X, target_bpw=2.0, candidates=(1, 2, 3, 4), over="palettized")
    for tensor in made.tensors:
        shape = tensor.choice.plan.shape
        every = shape[0] * shape[1]
        nonzero = every - int(every * 0.6 + 0.5)
        for candidate in tensor.candidates:
            n_bits = candidate.plan.spec.n_bits
            sparse = nonzero * n_bits + every
            if sparse <= every * n_bits or n_bits == 1:
                assert candidate.bits == sparse + (1 << n_bits) * 32
    assert made.bits_per_weight <= 2.0
    palettizer = KMeansPalettizer(model, made.config)
    palettizer.prepare(X)
    # The report has whole bytes of each of two weights.
    bits = palettizer.report.bits_per_palettized_weight
    assert made.bits_per_weight <= bits <= made.bits_per_weight + 14 / 3072
    assert max(site.palette.n_bits for site in palette_sites(model)) > 1


def test_the_report_shows_the_form_and_its_size() -> None:
    model = pruned(removed)
    spec = PalettizationSpec(n_bits=4, sparsity_detection_threshold=0.3)
    rules = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    plain = ModuleKMeansPalettizerConfig(op_state_spec={"weight": PalettizationSpec(n_bits=4)})
    config = KMeansPalettizerConfig(global_config=rules, module_name_configs={"2": plain})
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(X)
    first, second = palettizer.report.tensors
    assert (first.stored_form, second.stored_form) == ("sparse", "indices")
    nonzero = int((model[0].weight != 0).sum())
    assert first.palettized_bytes == -(-(nonzero * 4 + 2048 + 16 * 32) // 8)
    assert palettizer.report.to_dict()["tensors"][0]["stored_form"] == "sparse"


# --- scales ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        {"scale_block_size": 8},
        {"enable_per_channel_scale": True},
        {"scale_block_size": 8, "lut_qspec": {"dtype": "int8"}},
        {"scale_block_size": 8, "granularity": PerGroupedChannelGranularity(group_size=4)},
    ],
    ids=["blocks", "channels", "int8", "groups"],
)
@pytest.mark.parametrize("n_bits", [1, 2])
def test_factors_are_those_of_the_nonzeros(spec: dict[str, Any], n_bits: int) -> None:
    """No other factors would do better with tables and indices, and tables alone do worse."""
    random = torch.Generator().manual_seed(3)
    weight = torch.randn((32, 64), generator=random)
    weight *= torch.randn((32, 8), generator=random).exp().repeat_interleave(8, 1)
    weight[torch.rand((32, 64), generator=random) < 0.6] = 0
    weight[4:6] = 0

    def error(**given: Any) -> tuple[float, Any]:
        model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
        model[0].weight.data = weight.clone()
        given = {"n_bits": n_bits, "sparsity_detection_threshold": 0.3, "fast": False, **given}
        KMeansPalettizer(model, weight_config(**given)).prepare((torch.ones(1, 64),))
        decoded = model[0].weight.detach()
        assert not decoded[weight == 0].any()
        (site,) = palette_sites(model)
        return float((decoded - weight).double().square().sum()), site.palette.palettized()

    found, palette = error(**spec)
    unit = copy.copy(vars(palette)) | {"scale": None}
    unit = type(palette)(**unit).decode().double()
    rows, blocks = palette.scale.shape

    def summed(part: Tensor) -> Tensor:
        return part.reshape(rows, 32 // rows, blocks, 64 // blocks).sum((1, 3))

    square = summed(unit.square())
    best = summed(unit * weight) / torch.where(square > 0, square, 1)
    wide = best.repeat_interleave(32 // rows, 0).repeat_interleave(64 // blocks, 1)
    least = float((unit * wide - weight).square().sum())
    assert found <= 1.01 * least
    unscaled = {name: part for name, part in spec.items() if name in ("granularity", "lut_qspec")}
    assert found < error(**unscaled)[0]


def test_prepare_warns_of_zeros_that_tables_lose() -> None:
    model = pruned(masked)
    zeros = model[0].weight == 0
    palettizer = KMeansPalettizer(model, weight_config(n_bits=1))
    with pytest.warns(PaletteWarning, match=r"lose zeros: 0\.weight \(60%\), 2\.weight \(60%\) of"):
        palettizer.prepare(X)
    assert model[0].weight[zeros].all()
    assert [row.zeros_lost for row in palettizer.report.tensors] == pytest.approx([0.6, 0.6], 1e-3)
    # None where they are kept, or an entry happens to be zero.
    for spec in ({"preserve_zero": True, "n_bits": 2}, {"n_bits": 6}):
        KMeansPalettizer(pruned(masked), weight_config(**spec)).prepare(X)
