"""Sparse weights in Core AI programs: exact, small, and zero where they were zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coreai_support as support
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from coreai_backend import read_weights, stored_weights
from coreai_backend.backend import CoreAIBackend
from coreai_backend.options import CoreAIOptions
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    load_checkpoint,
)
from palette_core.errors import PlanError
from palette_core.storage import PackedWeight, install_packed, palette_sites
from palette_core.tensors import PalettizedTensor

ROWS = PerGroupedChannelGranularity(axis=0, group_size=4)
COLUMNS = PerGroupedChannelGranularity(axis=1, group_size=4)
SPARSE = {"sparsity_detection_threshold": 0.3, "stored_form": "sparse"}
UINT8 = {"dtype": "uint8", "qscheme": "asymmetric"}
SPECS: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": {"n_bits": bits} for bits in (1, 2, 3, 4, 6, 8)},
    "uneven rows": {"granularity": ROWS},
    "columns": {"granularity": COLUMNS},
    "channel scale": {"enable_per_channel_scale": True, "granularity": COLUMNS},
    "block scales": {"scale_block_size": 8},
    "int8": {"lut_qspec": {"dtype": "int8"}, "granularity": ROWS},
    "uint8": {"lut_qspec": {"dtype": "uint8"}, "granularity": COLUMNS},
    "affine": {"lut_qspec": UINT8},
    "affine, scale": {"lut_qspec": UINT8, "granularity": ROWS, "enable_per_channel_scale": True},
    "e4m3": {"lut_qspec": {"dtype": "float8_e4m3fn"}, "granularity": ROWS},
    "e5m2": {"lut_qspec": {"dtype": "float8_e5m2"}, "granularity": COLUMNS},
}
KINDS: dict[str, tuple[Any, str]] = {
    "conv": (lambda: nn.Conv2d(8, 16, 3, bias=False), "image"),
    "transposed": (lambda: nn.ConvTranspose1d(8, 16, 3, bias=False), "line"),
    "deep": (lambda: nn.Conv3d(8, 16, 2, bias=False), "cube"),
}
X = (
    torch.sin(torch.arange(64.0)).reshape(2, 32),
    torch.cos(torch.arange(200.0)).reshape(1, 8, 5, 5),
    torch.cos(torch.arange(48.0)).reshape(1, 8, 6),
    torch.cos(torch.arange(216.0)).reshape(1, 8, 3, 3, 3),
)


def prune(weight: Tensor, seed: int) -> None:
    """Zero six tenths of a weight, and more in its second quarter of rows."""
    random = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    zero = random < 0.6
    zero[len(zero) // 4 : len(zero) // 2] |= random[len(zero) // 4 : len(zero) // 2] < 0.9
    with torch.no_grad():
        weight[zero] = 0.0


class Layers(nn.Module):
    """A linear layer for each spec, and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in SPECS)
        self.others = nn.ModuleDict({name: make() for name, (make, _) in KINDS.items()})
        for seed, parameter in enumerate(self.parameters()):
            prune(parameter, seed)

    def forward(self, rows: Tensor, image: Tensor, line: Tensor, cube: Tensor) -> Any:
        given = {"image": image, "line": line, "cube": cube}
        made = [layer(rows) for layer in self.linear]
        return (*made, *(layer(given[KINDS[name][1]]) for name, layer in self.others.items()))


def spec_of(**more: Any) -> PalettizationSpec:
    return PalettizationSpec(**{"n_bits": 2, **SPARSE, **more})


def rule(**more: Any) -> ModuleKMeansPalettizerConfig:
    return ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec_of(**more)}, enable_fast_kmeans_mode=False
    )


def config() -> KMeansPalettizerConfig:
    named = {rf"linear\.{at}": rule(**spec) for at, spec in enumerate(SPECS.values())}
    return KMeansPalettizerConfig(global_config=rule(granularity=ROWS), module_name_configs=named)


@pytest.fixture(scope="module", params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def files(request: Any, tmp_path_factory: Any) -> tuple[nn.Module, nn.Module, Path]:
    dense = Layers().eval().to(request.param)
    model = Layers().eval().to(request.param)
    inputs = tuple(x.to(request.param) for x in X)
    palettizer = KMeansPalettizer(model, config())
    palettizer.prepare(inputs, backend="coreai")
    path = tmp_path_factory.mktemp("sparse") / "m.aimodel"
    return dense, model, palettizer.export(path, inputs, backend="coreai")


def test_every_kind_is_exact_and_zero_where_it_was(files: Any) -> None:
    dense, model, path = files
    palettes, read = support.palettes(model), read_weights(path)
    assert len(palettes) == len(SPECS) + len(KINDS)
    assert set(read) == set(palettes)
    for name, palette in palettes.items():
        assert palette.mask is not None
        assert support.same_values(read[name], palette.decode()), name
        before = support.as_numpy(dense.get_parameter(name))
        assert not read[name].astype(np.float32)[before == 0].any(), name


def test_files_run_as_torch_does_and_hold_nothing_dense(files: Any) -> None:
    _, model, path = files
    types, operations = support.summary(path)
    palettes = support.palettes(model)
    count = len(palettes)
    assert operations["sparse_with_bitmask_to_dense"] == count
    assert operations["lut_to_dense"] + operations["lut_to_sparse_with_bitmask"] == count
    masks = sum(p.indices.numel() for p in palettes.values())
    ones = sum(int(p.mask.sum()) for p in palettes.values() if p.n_bits == 1)
    assert types["UInt1"] == masks + ones
    if next(iter(palettes.values())).dtype is torch.float32:  # others are computed loosely
        with torch.no_grad():
            wanted = model(*X)
        pairs = zip(support.run_file(path, *X), wanted, strict=True)
        assert max(np.abs(got - made.numpy()).max() for got, made in pairs) < 1e-5


def test_tables_keep_all_entries_where_rows_are_uneven(files: Any) -> None:
    """Where the reference keeps one of each table for zeros that it stores."""
    _, model, path = files
    stored = {weight.name: weight for weight in stored_weights(path)}
    weight = stored["linear.6.weight"]
    palette = support.palettes(model)["linear.6.weight"]
    assert len(weight.indices) == int(palette.mask.sum())
    assert weight.lut.shape == (4, 1, 4, 1)
    assert weight.lut.astype(np.float32).all()


def small(weight: Tensor, **spec: Any) -> tuple[KMeansPalettizer, nn.Module, tuple[Tensor]]:
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).eval()
    model[0].weight.data = weight.clone()
    inputs = (torch.ones(1, weight.shape[1]),)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=rule(**spec)))
    palettizer.prepare(inputs, backend="coreai")
    return palettizer, model, inputs


def test_two_of_four_pruning_takes_one_look_up_for_all_rows(tmp_path: Path) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    apart = weight.reshape(16, 8, 4)
    apart.scatter_(2, apart.abs().argsort(dim=2)[..., :2], 0.0)
    palettizer, model, inputs = small(weight, granularity=ROWS)
    path = palettizer.export(tmp_path / "m.aimodel", inputs, backend="coreai")
    assert "lut_to_dense" in support.summary(path)[1]
    (stored,) = stored_weights(path)
    assert stored.lut.shape == (4, 4, 1)
    assert support.same_values(stored.dense, model[0].weight)
    assert np.array_equal(stored.mask, weight.numpy() != 0)


# Share of zeros, bits, and what coreai-opt 0.4.0 takes and loses: bits per weight, mse / variance.
PEER = [
    (0.5, 1, 1.52, 3.6e-2),
    (0.5, 2, 2.02, 8.9e-3),
    (0.5, 4, 3.03, 5.6e-4),
    (0.75, 2, 1.52, 1.7e-3),
    (0.9, 4, 1.43, 1.5e-5),
]


def test_files_are_no_larger_and_no_worse_than_those_of_the_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in PEER)).eval()
    for layer, (zeros, *_) in zip(model, PEER, strict=True):
        prune_by_magnitude(layer, zeros)
    dense = [layer.weight.detach().clone() for layer in model]
    named = {str(at): rule(n_bits=n_bits) for at, (_, n_bits, *_) in enumerate(PEER)}
    inputs = (torch.ones(1, 1024),)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(module_name_configs=named))
    palettizer.prepare(inputs, backend="coreai")
    path = palettizer.export(tmp_path / "m.aimodel", inputs, backend="coreai")
    read = read_weights(path)
    for at, (weight, (*_, error)) in enumerate(zip(dense, PEER, strict=True)):
        got = torch.from_numpy(read[f"{at}.weight"])
        lost = (got - weight).double().square().mean() / weight.double().var()
        assert float(f"{lost:.1e}") <= error
        assert not got[weight == 0].any()
    size = 8 * sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert size / 1024**2 <= sum(bits for _, _, bits, _ in PEER)


def prune_by_magnitude(layer: nn.Linear, zeros: float) -> None:
    torch_prune.l1_unstructured(layer, "weight", amount=zeros)
    torch_prune.remove(layer, "weight")


def test_groups_of_zeros_among_full_ones_take_less_than_dense_weights(tmp_path: Path) -> None:
    """Theirs take more."""
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for zeros in (0, 16, 48):
        weight[:zeros] = 0
        groups = PerGroupedChannelGranularity(axis=0, group_size=16)
        given = {"n_bits": 4, "granularity": groups, "sparsity_detection_threshold": 0.1}
        given["stored_form"] = "indices"  # where that is smaller
        palettizer, _, inputs = small(weight, **given)
        path = palettizer.export(tmp_path / f"{zeros}.aimodel", inputs, backend="coreai")
        sizes[zeros] = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        assert not read_weights(path)["0.weight"][:zeros].any()
    assert sizes[16] == sizes[0]  # with an entry for zero
    assert sizes[48] < 0.95 * sizes[0]


def test_one_flipped_bit_of_mask_or_indices_is_seen(tmp_path: Path) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    prune(weight, 1)
    palettizer, model, inputs = small(weight, granularity=COLUMNS)
    path = palettizer.export(tmp_path / "m.aimodel", inputs, backend="coreai")
    (site,) = palette_sites(model)
    indices = site.palette.nonzero_indices.numpy().tobytes()
    damaged = support.flipped(path, indices, 5, tmp_path / "damaged.aimodel")
    (stored,) = stored_weights(damaged)
    changed = stored.dense != model[0].weight.numpy()
    assert changed.sum() == 1
    once, twice = (support.run_file(p, *inputs)[0] for p in (path, damaged))
    assert (once != twice).sum() == 1


def test_mapped_and_loaded_weights_are_written_alike(tmp_path: Path) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    prune(weight, 1)
    palettizer, model, inputs = small(weight, granularity=COLUMNS)
    wanted = model[0].weight.detach().clone()
    palettizer.export(tmp_path / "m.safetensors", backend="packed")
    loaded = load_checkpoint(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(32, 16, False)))
    palettizer, model, inputs = small(weight, granularity=COLUMNS)
    mapped = palettizer.finalize(backend="coreai", mmap_dir=tmp_path / "mapped")
    for name, made in {"loaded": loaded, "mapped": mapped}.items():
        path = tmp_path / f"{name}.aimodel"
        palettizer.export(path, inputs, model=made, backend="coreai")
        assert support.same_values(read_weights(path)["0.weight"], wanted)
        assert "sparse_with_bitmask_to_dense" in support.summary(path)[1]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_a_grid_of_both_axes_and_a_tied_weight(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    made = PalettizedTensor(
        torch.randint(0, 8, (16, 16), generator=random).to(torch.uint8),
        torch.randn((2, 4, 8, 1), generator=random), 3, 0, torch.float32,
        mask=torch.rand((16, 16), generator=random) < 0.4,
    )  # fmt: skip
    inputs = (torch.ones(1, 16),)
    model = Tied().eval()
    install_packed(model, ["a.weight", "b.weight"], PackedWeight(made))
    path = CoreAIBackend(CoreAIOptions()).export(model, inputs, tmp_path / "m.aimodel")
    assert support.same_values(read_weights(path)["a.weight"], made.decode())
    assert support.summary(path)[1]["lut_to_sparse_with_bitmask"] == 1
    wanted = made.decode() @ made.decode() @ inputs[0][0]
    assert np.allclose(support.run_file(path, *inputs)[0], wanted.numpy(), atol=1e-5)


def test_a_weight_without_nonzeros_is_zeros(tmp_path: Path) -> None:
    made = PalettizedTensor(
        torch.zeros((4, 4), dtype=torch.uint8), torch.ones((1, 1, 2, 1)), 1, 0, torch.float32,
        mask=torch.zeros((4, 4), dtype=torch.bool),
    )  # fmt: skip
    model, x = nn.Sequential(nn.Linear(4, 4, bias=False)).eval(), torch.ones(1, 4)
    install_packed(model, ["0.weight"], PackedWeight(made))
    path = CoreAIBackend(CoreAIOptions()).export(model, (x,), tmp_path / "m.aimodel")
    assert not support.run_file(path, x)[0].any()


VECTORS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "one bit": {"n_bits": 1},
    "fours": {"cluster_dim": 4, "n_bits": 4},
    "uneven rows": {"granularity": ROWS},
    "scales": {"granularity": ROWS, "scale_block_size": 8},
    "int8": {"granularity": ROWS, "lut_qspec": {"dtype": "int8"}},
    "affine": {"granularity": ROWS, "lut_qspec": UINT8, "enable_per_channel_scale": True},
    "e4m3": {"lut_qspec": {"dtype": "float8_e4m3fn"}},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_vectors_of_nonzeros_are_exact_and_no_table_gives_up_an_entry(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in VECTORS).to(dtype)
    dense = []
    for seed, layer in enumerate(model):
        prune(layer.weight, seed)
        with torch.no_grad():
            layer.weight[12:] = 0.0  # a group of nothing
        dense.append(layer.weight.detach().clone())
    named = {
        rf"layers\.{at}": rule(**{"cluster_dim": 2, **spec})
        for at, spec in enumerate(VECTORS.values())
    }
    whole, x = SideBySide(model).eval(), torch.eye(32, dtype=dtype)
    palettizer = KMeansPalettizer(whole, KMeansPalettizerConfig(module_name_configs=named))
    palettizer.prepare((x,), backend="coreai")
    path = palettizer.export(tmp_path / "m.aimodel", (x,), backend="coreai")
    read = read_weights(path)
    stored = {weight.name: weight for weight in stored_weights(path)}
    got = None if dtype is torch.bfloat16 else support.run_file(path, x)
    for at, before in enumerate(dense):
        name = f"layers.{at}.weight"
        after = whole.layers[at].weight
        assert torch.equal(after == 0, before == 0), name
        assert support.same_values(read[name], after), name
        assert np.array_equal(stored[name].mask, before.float().numpy() != 0)
        if got is not None:
            assert np.array_equal(got[at].T.astype(np.float32), after.detach().float().numpy())
    rows = stored["layers.3.weight"]
    counts = [int((group != 0).sum()) for group in dense[3].split(4)]
    assert len(rows.indices) == sum(-(-count // 2) for count in counts)
    assert rows.lut.shape == (4, 4, 2)
    assert sum(count > 0 for count in counts) == 3
    assert "lut_to_sparse_with_bitmask" not in support.summary(path)[1]


class SideBySide(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Any:
        return tuple(layer(x) for layer in self.layers)


def test_rows_with_equally_many_pairs_take_one_look_up_and_no_step_more(tmp_path: Path) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    apart = weight.reshape(16, 8, 4)
    apart.scatter_(2, apart.abs().argsort(dim=2)[..., :2], 0.0)
    palettizer, model, inputs = small(weight, granularity=ROWS, cluster_dim=2)
    path = palettizer.export(tmp_path / "m.aimodel", inputs, backend="coreai")
    operations = support.summary(path)[1]
    assert operations["lut_to_dense"] == 1
    assert not {"slice", "concat"} & set(operations)
    (stored,) = stored_weights(path)
    assert stored.lut.shape == (4, 4, 2)
    assert len(stored.indices) == 128
    assert support.same_values(stored.dense, model[0].weight)


def test_vectors_in_groups_of_columns_are_refused_with_what_would_do() -> None:
    weight = torch.randn(16, 32)
    prune(weight, 1)
    with pytest.raises(PlanError, match=r"parts of rows.*'cluster_dim': 1"):
        small(weight, cluster_dim=2, granularity=COLUMNS)


@pytest.mark.parametrize("more", [{}, {"lut_qspec": UINT8}, {"enable_per_channel_scale": True}])
def test_groups_with_unevenly_many_vectors_take_one_look_up_where_that_is_smaller(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """A look-up of each group's own takes more than dense indices do."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.0
    weight[8:12, :40] = 0.0
    palettizer, model, inputs = small(weight, granularity=ROWS, cluster_dim=2, **more)
    path = palettizer.export(tmp_path / "m.aimodel", inputs, backend="coreai")
    assert support.summary(path)[1]["lut_to_dense"] == 1
    (stored,) = stored_weights(path)
    assert support.same_values(stored.dense, model[0].weight)
    assert np.array_equal(stored.mask, weight.numpy() != 0)
    counts = [int((group != 0).sum()) for group in weight.split(4)]
    assert len(stored.indices) == sum(-(-count // 2) for count in counts)
    assert stored.lut.shape == (16, 4, 2)
    eye = torch.eye(64)
    path = palettizer.export(tmp_path / "eye.aimodel", (eye,), backend="coreai")
    assert np.array_equal(support.run_file(path, eye)[0].T, model[0].weight.detach().numpy())
