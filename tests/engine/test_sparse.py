"""Weights with many zeros: tables of the nonzeros alone, zero beside them, the whole way."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from palettizer_models import weight_config
from torch import Tensor, nn
from wrong_forms import Places, form

from palette_core import (
    KMeansPalettizer,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    bits_per_weight,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from palette_core.errors import BackendError, CheckpointError, PlanError
from palette_core.plugins import Backend, ExportBackendEntry
from palette_core.plugins import catalog as plugins_catalog
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.kinds import STORED_FORM
from palette_core.storage import palette_sites
from palette_core.storage.forms.lookup import stored_form
from palette_core.storage.packed_weight import PackedWeight
from palette_core.tensors.nonzeros import Nonzeros

ROWS = PerGroupedChannelGranularity(axis=0, group_size=4)
COLUMNS = PerGroupedChannelGranularity(axis=1, group_size=8)
X = torch.sin(torch.arange(128.0)).reshape(4, 32)
SPECS: dict[str, dict[str, Any]] = {
    "one table": {},
    "rows": {"granularity": ROWS},
    "columns": {"granularity": COLUMNS},
    "channel scale": {"enable_per_channel_scale": True, "granularity": COLUMNS},
    "int8": {"lut_qspec": {"dtype": "int8"}, "granularity": ROWS},
    "uint8": {"lut_qspec": {"dtype": "uint8", "qscheme": "asymmetric"}},
    "e4m3": {"lut_qspec": {"dtype": "float8_e4m3fn"}, "granularity": ROWS},
    "8 bits": {"n_bits": 8},
    "pairs": {"cluster_dim": 2},
    "pairs in rows": {"cluster_dim": 2, "granularity": ROWS},
    "fours in columns": {"cluster_dim": 4, "granularity": COLUMNS, "n_bits": 3},
    "scaled pairs": {"cluster_dim": 2, "scale_block_size": 8, "granularity": ROWS},
    "quantized pairs": {"cluster_dim": 2, "granularity": ROWS, "lut_qspec": {"dtype": "int8"}},
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def sparse_weight(zeros: float = 0.6, seed: int = 0, shape: tuple[int, ...] = (16, 32)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight[torch.rand(shape, generator=generator) < zeros] = 0
    return weight


def prepared(
    weight: Tensor, inputs: Tensor = X, calibrated: bool = False, **spec: Any
) -> tuple[KMeansPalettizer, nn.Module, Any]:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    layer.weight.data = weight.clone()
    model = nn.Sequential(layer).eval()
    given = {"n_bits": 2, "sparsity_detection_threshold": 0.3, **spec}
    given.setdefault("fast", given.get("cluster_dim", 1) == 1)
    palettizer = KMeansPalettizer(model, weight_config(**given))
    inputs = inputs.to(weight.dtype)
    if calibrated:
        palettizer.calibrate([(inputs,)])
    palettizer.prepare((inputs,))
    return palettizer, model, palette_sites(model)[0].palette


def best_error(values: np.ndarray, k: int) -> float:
    """Return the least sum of squares of k-means of scalars, by dynamic programming over cuts."""
    x = np.sort(values.astype(np.float64))
    n = len(x)
    s, q = np.concatenate([[0], x.cumsum()]), np.concatenate([[0], (x * x).cumsum()])
    first, last = np.arange(n)[:, None], np.arange(1, n + 1)[None]
    count = np.maximum(last - first, 1)
    cost = np.where(last > first, q[last] - q[first] - (s[last] - s[first]) ** 2 / count, np.inf)
    best = np.concatenate([[0], cost[0]])
    for _ in range(k - 1):
        best = np.concatenate(
            [[0], [np.min(best[:end] + cost[:end, end - 1]) for end in range(1, n + 1)]]
        )
    return float(best[-1])


def _indices(weight: Tensor, plan: Any) -> int:
    """Return how many indices there have to be: of each block, one for D nonzeros."""
    axis = getattr(plan.spec.granularity, "axis", None)
    blocks = [weight] if axis is None else weight.split(plan.spec.granularity.group_size, axis)
    return sum(-(-int((block != 0).sum()) // plan.spec.cluster_dim) for block in blocks)


class Plain(Backend):
    def check_support(self, facts: Any) -> None:
        return None

    def finalize(self, model: nn.Module, palettized: Any) -> nn.Module:
        return model

    def export(self, *args: Any) -> Path:
        raise AssertionError


@pytest.mark.parametrize("n_bits", [1, 2, 3])
@pytest.mark.parametrize("rows", [None, 4])
def test_tables_are_the_best_ones_of_the_nonzeros(n_bits: int, rows: int | None) -> None:
    weight = sparse_weight()
    weight[4:8] = 0  # a group of its own, where there are groups
    grouped = {} if rows is None else {"granularity": ROWS}
    _, model, palette = prepared(weight, n_bits=n_bits, fast=False, **grouped)
    decoded = model[0].weight.detach()
    assert torch.equal(decoded == 0, weight == 0)
    groups = [weight] if rows is None else weight.split(rows)
    best = sum(best_error(g[g != 0].numpy(), 1 << n_bits) for g in groups if g.any())
    assert float((decoded - weight).double().square().sum()) == pytest.approx(best, rel=1e-5)
    if rows is None:
        assert len(decoded.unique()) == (1 << n_bits) + 1
    assert palette.form.name == "sparse"


@pytest.mark.slow
@specs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_whole_trip(spec: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    weight = sparse_weight().to(dtype)
    weight[4:8] = 0
    palettizer, model, palette = prepared(weight, **spec)
    decoded = model[0].weight.detach().clone()
    assert (decoded[weight == 0] == 0).all()
    count, tables = (
        _indices(weight, palette.plan),
        palette.lut.numel() * palette.lut.element_size() * 8,
    )
    for part in (palette.lut_scale, palette.lut_zero_point, palette.scale):
        tables += 0 if part is None else part.numel() * part.element_size() * 8
    bits = count * palette.n_bits + weight.numel() + tables
    assert palette.size_in_bits() == bits
    assert bits_per_weight(model) == bits / weight.numel()
    assert palettizer.report is not None
    assert palettizer.report.tensors[0].palettized_bytes == -(-bits // 8)
    gap = (decoded.double() - weight.double()).square().sum()
    snr = 10 * torch.log10(weight.double().square().sum() / gap)
    assert palettizer.report.tensors[0].snr_db == pytest.approx(float(snr), rel=1e-6)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        fresh[0].parametrizations.weight[0].mask.zero_()
    fresh.load_state_dict(model.state_dict())
    final = palettizer.finalize(backend="packed")
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    loaded = load_checkpoint(path, nn.Sequential(nn.Linear(32, 16, bias=False)).to(dtype))
    read = read_checkpoint(path)
    assert read.stored_forms == {"0.weight": "sparse"}
    assert torch.equal(read.palettized["0.weight"].decode(), decoded)
    for twin in (fresh, final, copy.deepcopy(final), pickle.loads(pickle.dumps(final)), loaded):
        assert torch.equal(twin[0].weight, decoded)
        assert bits_per_weight(twin) == bits / weight.numel()
    program = torch.export.export(final, (X.to(dtype),))
    assert torch.equal(program.module()(X.to(dtype)), final(X.to(dtype)))
    assert "depalettize_sparse" in str(program.graph)


@pytest.mark.parametrize("algorithm", ["kmeans1d", "gptq", "lnq"])
@pytest.mark.parametrize("spec", [{}, {"granularity": ROWS, "lut_qspec": {"dtype": "int8"}}])
def test_every_algorithm_leaves_zero_beside_the_table(algorithm: str, spec: dict[str, Any]) -> None:
    weight = sparse_weight(shape=(16, 32))
    inputs = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    inputs[:, 1::2] += inputs[:, ::2]
    _, model, palette = prepared(weight, inputs, True, algorithm=algorithm, **spec)
    decoded = model[0].weight.detach()
    assert palette.plan.algorithm == algorithm
    assert (decoded[weight == 0] == 0).all()
    assert len(decoded[decoded != 0].unique()) <= 4 * palette.lut.shape[0]
    other = prepared(weight, inputs, algorithm="kmeans1d", **spec)[1][0].weight.detach()
    loss = [float(((w - weight) @ inputs.T).square().sum()) for w in (decoded, other)]
    assert loss[0] <= loss[1] * (1.0 if algorithm == "kmeans1d" else 0.9)


def test_sensitivities_weigh_the_nonzeros(tmp_path: Path) -> None:
    weight = sparse_weight()
    palettizer, model, palette = prepared(weight, n_bits=1)
    before = palette.lut.clone()
    with palettizer.calibration_mode(loss_fn=lambda out, _: (out * torch.arange(16)).sum()) as run:
        run.step(model(X), None)
    decoded = model[0].weight.detach()
    assert torch.equal(decoded == 0, weight == 0)
    assert not torch.equal(palette.lut, before)
    values = palette.sensitivity.values
    values = values + 4 * values.mean()  # one batch: the mean counts as four more
    for value in decoded[decoded != 0].unique():
        mine = decoded == value
        mean = (weight[mine] * values[mine]).sum() / values[mine].sum()
        assert float(value) == pytest.approx(float(mean), rel=1e-3)


def test_a_backend_that_takes_no_sparse_weights_gets_none_from_checkpoints(
    register: Any, tmp_path: Path
) -> None:
    palettizer, model, _ = prepared(sparse_weight())
    palettizer.finalize(backend="packed")
    register(
        ExportBackendEntry(
            name="plain", summary="dense", interface=1, factory=lambda _: Plain(), suffix=".plain"
        )
    )
    with pytest.raises(BackendError, match=r"0\.weight is stored as 'sparse', and .* only indices"):
        KMeansPalettizer(model).export(tmp_path / "m.plain", (X,), backend="plain")


def test_forms_of_about_one_size_leave_the_smaller_error() -> None:
    weight = sparse_weight(0.0, shape=(32, 32))
    weight.view(-1)[:510] = 0  # two less than half of them: 4 bits more than dense indices
    _, model, palette = prepared(weight)
    assert palette.form.name == "sparse"
    assert len(model[0].weight.unique()) == 5


# --- which form -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
@pytest.mark.parametrize(
    ("zeros", "n_bits", "spec", "form"),
    [
        (0.6, 4, {}, "sparse"),
        (0.6, 4, {"sparsity_detection_threshold": 0.7}, "plain"),
        (0.6, 4, {"sparsity_detection_threshold": None}, "plain"),
        (0.1, 4, {"sparsity_detection_threshold": 0.0}, "kept"),
        (0.1, 4, {"sparsity_detection_threshold": 0.0, "stored_form": "sparse"}, "sparse"),
        (0.1, 1, {"sparsity_detection_threshold": 0.0}, "sparse"),
        (0.0, 4, {"sparsity_detection_threshold": 0.0}, "plain"),
        (1.0, 4, {"sparsity_detection_threshold": 1.0}, "kept"),
    ],
)
def test_the_smaller_form_is_chosen(
    zeros: float, n_bits: int, spec: dict[str, Any], form: str
) -> None:
    weight = sparse_weight(zeros)
    _, model, palette = prepared(weight, n_bits=n_bits, **spec)
    decoded = model[0].weight.detach()
    assert palette.form.name == ("sparse" if form == "sparse" else "indices")
    if form != "plain":
        assert (decoded[weight == 0] == 0).all()
    dense = weight.numel() * n_bits + (1 << n_bits) * 32
    if form == "kept" or (form == "sparse" and zeros > 0.5):
        assert palette.size_in_bits() <= dense


@pytest.mark.parametrize(("overhead", "form"), [(0, "sparse"), (66, "sparse"), (67, "indices")])
def test_the_smaller_form_is_that_in_files_of_the_backend(
    overhead: int, form: str, register: Any
) -> None:
    """Of 512 weights at 4 bits, half of them zero: 256 bytes against 192, with 1 % of tolerance."""
    backend = Plain()
    backend.sparse_overhead = overhead
    register(
        ExportBackendEntry(
            name="plain", summary="dense", interface=1, factory=lambda _: backend, suffix=".plain",
            stored_forms=("indices", "sparse"),
        )
    )  # fmt: skip
    weight = sparse_weight(0.0)
    weight.view(-1)[::2] = 0.0
    model = nn.Sequential(nn.Linear(32, 16, bias=False)).eval()
    model[0].weight.data = weight.clone()
    spec = weight_config(n_bits=4, sparsity_detection_threshold=0.3)
    KMeansPalettizer(model, spec).prepare((X,), backend="plain")
    assert palette_sites(model)[0].palette.form.name == form


@pytest.mark.parametrize("overhead", [-1, 1.5, None])
def test_an_overhead_that_is_no_number_of_bytes_is_refused(overhead: Any, register: Any) -> None:
    backend = Plain()
    backend.sparse_overhead = overhead
    register(
        ExportBackendEntry(
            name="plain", summary="dense", interface=1, factory=lambda _: backend, suffix=".plain"
        )
    )
    palettizer = KMeansPalettizer(nn.Sequential(nn.Linear(8, 8)), weight_config())
    with pytest.raises(BackendError, match=r"sparse_overhead is .*expected a number of bytes"):
        palettizer.prepare((torch.ones(1, 8),), backend="plain")


def test_groups_of_zeros_among_full_ones_stay_smaller_than_dense_indices() -> None:
    weight = sparse_weight(0.0)
    weight[:2] = 0
    palette = prepared(
        weight, n_bits=4, sparsity_detection_threshold=0.1,
        granularity=PerGroupedChannelGranularity(axis=0, group_size=1),
    )[2]  # fmt: skip
    assert palette.size_in_bits() <= weight.numel() * 4 + 16 * 16 * 32
    assert (palette.palettized().decode()[:2] == 0).all()


def test_two_of_four_pruning_takes_one_table_per_row_at_once() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    apart = weight.reshape(8, 8, 4)
    apart.scatter_(2, apart.abs().argsort(dim=2)[..., :2], 0.0)
    _, model, palette = prepared(weight, granularity=ROWS)
    assert torch.equal(model[0].weight == 0, weight == 0)
    assert palette.size_in_bits() == 128 * 2 + 256 + 2 * 4 * 32


@pytest.fixture
def places(register: Any) -> None:
    """Register somebody else's form that holds zeros beside tables."""
    register(replace(form(Places, "places"), holds_masks=True))


@pytest.mark.usefixtures("places")
def test_another_form_that_holds_masks_takes_the_place_of_ours(tmp_path: Any) -> None:
    weight = sparse_weight()
    _, ours, _ = prepared(weight)
    palettizer, model, palette = prepared(weight, stored_form="places")
    assert torch.equal(model[0].weight, ours[0].weight)
    assert palette.form.name == "places"
    assert palettizer.report.to_dict()["tensors"][0]["stored_form"] == "places"
    path = save_checkpoint(model, tmp_path / "model.safetensors")
    assert read_checkpoint(path).stored_forms == {"0.weight": "places"}
    found = load_checkpoint(path, nn.Sequential(nn.Linear(*reversed(weight.shape), bias=False)))
    assert torch.equal(found[0].weight, ours[0].weight)
    few = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert prepared(few, stored_form="places")[2].form.name == "indices"
    assert PalettizationSpec(sparsity_detection_threshold=0.3).stored_forms[0] == "sparse"
    with pytest.raises(ValueError, match="'places' needs a sparsity_detection_threshold"):
        PalettizationSpec(stored_form="places")


@pytest.mark.usefixtures("places")
def test_zeros_go_to_whatever_form_holds_them_where_ours_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog = get_catalog()
    left = [item for item in catalog[STORED_FORM] if item.entry.name != "sparse"]
    registry = replace(catalog[STORED_FORM], items=tuple(left))
    blocked = replace(catalog, by_kind={**catalog.by_kind, STORED_FORM: registry})
    monkeypatch.setattr(plugins_catalog, "discover", lambda: blocked)
    get_catalog.cache_clear()
    # 64 bits for each place: for few of them less than an index for every weight.
    assert prepared(sparse_weight(0.6))[2].form.name == "indices"
    assert prepared(sparse_weight(0.99))[2].form.name == "places"
    left = [item for item in left if item.entry.name != "places"]
    registry = replace(registry, items=tuple(left))
    none = replace(catalog, by_kind={**catalog.by_kind, STORED_FORM: registry})
    monkeypatch.setattr(plugins_catalog, "discover", lambda: none)
    get_catalog.cache_clear()
    with pytest.raises(ValueError, match="none is installed"):
        PalettizationSpec(sparsity_detection_threshold=0.3)


def test_what_does_not_go_together_is_refused_by_name(register: Any) -> None:
    with pytest.raises(ValueError, match="needs a sparsity_detection_threshold"):
        PalettizationSpec(stored_form="sparse")
    with pytest.raises(ValueError, match="leave one of the two out"):
        PalettizationSpec(stored_form="runs", sparsity_detection_threshold=0.5)
    for wrong in (-0.1, 1.1, float("nan"), "many"):
        with pytest.raises(ValueError, match="sparsity_detection_threshold"):
            PalettizationSpec(sparsity_detection_threshold=wrong)
    assert PalettizationSpec(sparsity_detection_threshold="0.5").stored_forms[0] == "sparse"
    tensor = prepared(sparse_weight())[2].palettized()
    with pytest.raises(CheckpointError, match="no place for zeros that lie beside the table"):
        PackedWeight(tensor, stored_form("indices"))

    register(
        ExportBackendEntry(
            name="plain", summary="dense", interface=1, factory=lambda _: Plain(), suffix=".plain"
        )
    )
    palettizer = KMeansPalettizer(
        nn.Sequential(nn.Linear(8, 8)), weight_config(sparsity_detection_threshold=0.5)
    )
    with pytest.raises(PlanError, match=r"does not take stored form 'sparse'.*preserve_zero.*True"):
        palettizer.prepare((torch.ones(1, 8),), backend="plain")


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["frozen", "ste", "dkm", "tables"])
@pytest.mark.parametrize("name", ["rows", "channel scale", "int8", "scaled pairs"])
def test_zeros_stay_zero_in_training(strategy: str, name: str) -> None:
    weight = sparse_weight()
    weight[4:8] = 0
    palettizer, model, palette = prepared(weight, training_strategy=strategy, **SPECS[name])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.1)
    goal, losses, before = torch.cos(torch.arange(64.0)).reshape(4, 16), [], palette.lut.clone()
    with palettizer.training_mode():
        for _ in range(8):
            loss = (model(X) - goal).square().mean()
            if loss.requires_grad:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            palettizer.step()
            losses.append(float(loss.detach()))
            assert (model[0].weight[weight == 0] == 0).all()
    assert (losses[-1] < losses[0]) == (strategy != "frozen")
    assert torch.equal(before, palette.lut) == (strategy == "frozen")
    decoded = model[0].weight.detach().clone()
    assert (decoded[weight == 0] == 0).all()
    assert decoded[weight != 0].all()
    assert torch.equal(palettizer.finalize(backend="packed")[0].weight, decoded)


def test_a_straight_through_step_is_that_of_the_nonzeros_written_out() -> None:
    weight = sparse_weight()
    palettizer, model, palette = prepared(weight, training_strategy="ste")
    mask = weight != 0
    lut = palette.lut.detach().reshape(-1)
    with palettizer.training_mode():
        model(X).square().sum().backward()
        grad = model[0].parametrizations.weight.original.grad.clone()
        table = palette.lut.grad.reshape(-1).clone()
    codes = (weight[..., None] - lut).abs().argmin(-1)
    by_hand = torch.where(mask, lut[codes], 0.0).requires_grad_()
    (X @ by_hand.T).square().sum().backward()
    assert torch.allclose(grad, torch.where(mask, by_hand.grad, 0.0), rtol=1e-4, atol=1e-4)
    summed = torch.stack([by_hand.grad[mask & (codes == k)].sum() for k in range(4)])
    assert torch.allclose(table, summed, rtol=1e-3, atol=1e-3)


def test_weights_that_train_dense_keep_their_zeros_too() -> None:
    from palette_core import ModuleKMeansPalettizerConfig, PATSchedule
    from palette_core.config import KMeansPalettizerConfig

    weight = sparse_weight()
    spec = PalettizationSpec(n_bits=2, sparsity_detection_threshold=0.3)
    model = nn.Sequential(nn.Linear(32, 16, bias=False))
    model[0].weight.data = weight.clone()
    rules = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec}, pat_schedule=PATSchedule(enable_fake_palettize=2)
    )
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=rules))
    palettizer.prepare((X,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with palettizer.training_mode():
        for _ in range(2):
            model(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            palettizer.step()
    assert (model[0].weight[weight == 0] == 0).all()
    assert len(model[0].weight.unique()) == 5


def test_nonzeros_come_back_to_their_places() -> None:
    from palette_core.tensors.layout import BlockLayout

    weight = sparse_weight(shape=(4, 6))
    weight[2] = 0
    layout = BlockLayout((4, 6), (2, 3), 1, 0)
    found = Nonzeros.of(weight != 0, layout)
    points = layout.split(weight)
    assert torch.equal(found.put(found.take(points)), points)
    assert found.counts.tolist() == [(p != 0).sum() for p in points]
    assert sorted(b for blocks, _ in found.evenly() for b in blocks.tolist()) == [0, 1, 2, 3]


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("rows", [None, 4])
def test_vectors_of_nonzeros_are_as_good_as_those_of_scikit_learn(
    dim: int, rows: int | None
) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    weight = sparse_weight(0.5, shape=(16, 64))
    inputs, grouped = torch.ones(1, 64), {} if rows is None else {"granularity": ROWS}
    given = {"n_bits": 3, "cluster_dim": dim, "fast": False, **grouped}
    decoded = prepared(weight, inputs, **given)[1][0].weight.detach()
    assert torch.equal(decoded == 0, weight == 0)
    best, found = 0.0, 0.0
    for group in range(0, 16, rows or 16):
        part, made = (w[group : group + (rows or 16)] for w in (weight, decoded))
        listed, its = part[part != 0], made[part != 0]
        whole = len(listed) // dim * dim
        listed, its = (w[:whole].reshape(-1, dim).numpy() for w in (listed, its))
        best += cluster.KMeans(8, n_init=20, random_state=0).fit(listed).inertia_
        found += float(((listed - its) ** 2).sum())
        assert len({tuple(row) for row in its}) <= 8
    assert found <= 1.04 * best  # which knows nothing of the last vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("table", [None, {"dtype": "int8"}, {"dtype": "float8_e4m3fn"}])
def test_nonzeros_that_cancel_out_are_not_made_zero(dtype: torch.dtype, table: Any) -> None:
    weight = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(4, 8)
    weight = weight.to(dtype)
    weight[:, 4:8] = 0
    _, model, _ = prepared(
        weight, torch.ones(1, 16), n_bits=1, cluster_dim=2, sparsity_detection_threshold=0.1,
        lut_qspec=table, fast=False,
    )  # fmt: skip
    assert torch.equal(model[0].weight == 0, weight == 0)


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, "sparse"),  # pairs of all weights would lose zeros
        ({"whole": True}, "indices"),  # one entry for zero, and half a bit for each weight
        ({"whole": True, "stored_form": "sparse"}, "sparse"),
        ({"whole": True, "n_bits": 8}, "sparse"),
        ({"sparsity_detection_threshold": 0.9}, "plain"),
    ],
)
@pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
def test_vectors_take_the_smallest_form_that_keeps_zeros(changes: Any, form: str) -> None:
    spec = {"n_bits": 2, "cluster_dim": 2, "fast": False, **changes}
    weight = sparse_weight(0.5, shape=(64, 32))
    if spec.pop("whole", False):
        weight[::2] = torch.where(weight[1::2] == 0, 0.0, weight[::2] + (weight[::2] == 0))
    _, model, palette = prepared(weight, **spec)
    assert palette.form.name == ("sparse" if form == "sparse" else "indices")
    if form != "plain":
        assert not model[0].weight[weight == 0].any()


@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_vectors_of_nonzeros_are_weighed_where_errors_cannot_be_fed_back(algorithm: str) -> None:
    weight = sparse_weight(shape=(16, 32))
    inputs = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    inputs[:, ::4] *= 5
    given = {"cluster_dim": 2, "n_bits": 3, "fast": False}
    palettizer, model, _ = prepared(weight, inputs, True, algorithm=algorithm, **given)
    decoded = model[0].weight.detach()
    assert torch.equal(decoded == 0, weight == 0)
    assert palettizer.report.tensors[0].algorithm == "kmeans_vector"
    plain = prepared(weight, inputs, **given)[1][0].weight.detach()
    loss = [float(((w - weight) @ inputs.T).square().sum()) for w in (decoded, plain)]
    assert loss[0] < loss[1]


def test_sensitivities_weigh_each_element_of_vectors_of_nonzeros() -> None:
    weight = sparse_weight(0.5)
    palettizer, model, palette = prepared(weight, n_bits=1, cluster_dim=2, fast=False)
    with palettizer.calibration_mode(loss_fn=lambda out, _: (out * torch.arange(16)).sum()) as run:
        run.step(model(X), None)
    decoded = model[0].weight.detach()
    assert torch.equal(decoded == 0, weight == 0)
    values = palette.sensitivity.values
    values = (values + 4 * values.mean())[weight != 0]
    listed, its = weight[weight != 0], decoded[weight != 0]
    whole = len(listed) // 2 * 2
    listed, its, values = (w[:whole].reshape(-1, 2) for w in (listed, its, values))
    for entry in its.unique(dim=0):
        mine = (its == entry).all(1)
        mean = (listed[mine] * values[mine]).sum(0) / values[mine].sum(0)
        assert entry.tolist() == pytest.approx(mean.tolist(), rel=0.02, abs=0.01)


def test_a_state_dict_gives_vectors_of_nonzeros_back() -> None:
    weight = sparse_weight()
    given = {"cluster_dim": 2, "fast": False, "granularity": ROWS}
    _, model, palette = prepared(weight, **given)
    fresh = nn.Sequential(nn.Linear(32, 16, bias=False)).eval()
    config = weight_config(n_bits=2, sparsity_detection_threshold=0.3, **given)
    KMeansPalettizer(fresh, config).prepare((X,), state_dict=model.state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert palette_sites(fresh)[0].palette.size_in_bits() == palette.size_in_bits()
