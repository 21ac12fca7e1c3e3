"""Parts before anything is written: copies that are counted, states that two parts share."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from part_models import IDS, PARTS, SCALE, Whole, prepared
from part_models import programs as programs  # noqa: PLC0414 - a fixture
from torch import Tensor, nn
from torch.export import Dim

from palette_core import ExportFunction, ExportPart, KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import BackendError, PaletteWarning, PlanError

CONFIGS: dict[str, dict[str, Any]] = {
    "groups": {"granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 8}},
    "3 bits": {"n_bits": 3},
    "vectors": {"cluster_dim": 2},
    "scales": {"enable_per_channel_scale": True},
    "blocks of scales": {"scale_block_size": 8},
    "8-bit tables": {"lut_qspec": {"dtype": "int8"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGS)
def test_a_plan_counts_the_copies_that_files_will_hold(case: str, programs, tmp_path) -> None:
    torch.manual_seed(0)
    spec = {"n_bits": 4, "granularity": {"type": "per_tensor"}, **CONFIGS[case]}
    config = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {
            "enable_fast_kmeans_mode": False,
            "op_state_spec": {"weight": spec},
            "op_type_config": {"embedding": {"op_state_spec": {"weight": spec}}},
        }}}
    )  # fmt: skip
    model = Whole()
    palettizer = KMeansPalettizer(model, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = palettizer.make_plan((IDS, SCALE), backend="programs", parts=PARTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ((weight, parts, size),) = ((each.weight, each.parts, each.bytes) for each in plan.copies)
    assert (weight, parts) == ("embed.weight", ("embeddings", "head"))
    assert plan.left_out == ()
    assert any(f"1 copy more than in one file, {size:,} bytes" in note for note in plan.notes)
    with pytest.warns(PaletteWarning, match="is in the files of embeddings and head"):
        palettizer.prepare((IDS, SCALE), backend="programs", parts=PARTS)
    folder = palettizer.export(tmp_path / "p", (IDS, SCALE), backend="programs", parts=PARTS)
    (told,) = json.loads((folder / "parts.json").read_text())["copies"]
    assert told["bytes"] == size


def test_weights_that_stay_dense_are_counted_too_and_only_where_used(programs) -> None:
    class Tail(nn.Module):
        def __init__(self, whole: Whole) -> None:
            super().__init__()
            self.whole = whole  # all of it, and only the head and the norm are used

        def forward(self, x: Tensor) -> Tensor:
            return self.whole.head(self.whole.norm(x))

    model = Whole()
    nn.utils.parametrizations.weight_norm(model.layers[0].up)
    nn.utils.weight_norm(model.layers[1].up)
    config = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"module_name_configs": {"embed|head": None}}}
    )
    parts = {
        "first": ["embed", "layers[:2]"],
        "tail": ExportFunction((torch.randn(4, 16),), module=Tail(model)),
        "end": ["norm", "head"],
    }
    plan = KMeansPalettizer(model, config).make_plan(
        (IDS, SCALE), backend="programs", parts=parts
    )  # fmt: skip
    found = {each.weight: (each.parts, each.bytes) for each in plan.copies}
    assert found == {
        "embed.weight": (("first", "tail", "end"), 32 * 16 * 4),
        "norm.weight": (("tail", "end"), 16 * 4),
        "norm.bias": (("tail", "end"), 16 * 4),
    }
    assert {name.rpartition(".")[0] for name in plan.left_out} == {
        f"layers.{layer}.{linear}" for layer in (2, 3) for linear in ("up", "down")
    }
    assert any("2 copies more than in one file, 4,096 bytes" in note for note in plan.notes)


def test_parts_are_refused_in_planning(programs) -> None:
    palettizer = KMeansPalettizer(Whole(), KMeansPalettizerConfig.presets.w4_all())
    for given, error, why in (
        ({"parts": {"a": "layer"}}, BackendError, "no module 'layer'"),
        ({"parts": {"a": ["layers.1", "layers.0"]}}, BackendError, "does not run after"),
        ({"parts": PARTS, "dynamic_shapes": {}}, BackendError, "dynamic_shapes of their own"),
        ({"parts": PARTS, "backend": None}, PlanError, "parts is about the export backend"),
        (
            {"parts": {"a": ExportPart("embed", dynamic_shapes={"x": {0: Dim("n")}})}},
            BackendError,
            "dynamic_shapes has 'x', which is no input of it.*input",
        ),
    ):
        with pytest.raises(error, match=f"(?s){why}"):
            palettizer.make_plan((IDS, SCALE), **{"backend": "programs", **given})
    programs.refuses = "up.weight"
    with pytest.raises(PlanError, match="part 'first': the backend cannot export: no relu"):
        palettizer.make_plan((IDS, SCALE), backend="programs", parts=PARTS)


def test_axes_of_a_part_may_be_of_some_inputs(programs, tmp_path) -> None:
    _, palettizer = prepared()
    rows = torch.export.Dim.AUTO(min=2, max=8)
    axes = {"x": {0: rows}, "scale": {0: rows}}
    parts = {"a": ExportPart("layers.0", axes), "b": ExportPart("norm", {"input": {0: rows}})}
    with pytest.warns(PaletteWarning):
        palettizer.export(tmp_path / "p", (IDS, SCALE), backend="programs", parts=parts)
    made = torch.export.load(tmp_path / "p" / "a.pt2").module()
    assert made(x=torch.randn(7, 16), scale=torch.ones(7, 32))[0].shape == (7, 16)


# --- states --------------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self, memory: nn.Module) -> None:
        super().__init__()
        self.linear, self.memory = nn.Linear(16, 16), memory

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.memory(x)


class Memory(nn.Module):
    """A sum of what it has seen, by writing to a buffer, or by putting another in its place."""

    def __init__(self, exchanges: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(16))
        self.exchanges = exchanges

    def forward(self, x: Tensor) -> Tensor:
        if self.exchanges:
            self.seen = self.seen + x.mean(0)
        else:
            self.seen += x.mean(0)
        return self.seen


class Reader(nn.Module):
    def __init__(self, memory: nn.Module) -> None:
        super().__init__()
        self.kept, self.linear = memory, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.kept.seen


class Shares(nn.Module):
    def __init__(self, exchanges: bool, reads: bool) -> None:
        super().__init__()
        memory = Memory(exchanges)
        self.first = Counter(memory)
        self.second = Reader(memory) if reads else Counter(memory)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("is_own", [False, True], ids=["named", "of one's own"])
@pytest.mark.parametrize("reads", [False, True], ids=["both write", "one reads"])
@pytest.mark.parametrize("exchanges", [False, True], ids=["in place", "exchanged"])
def test_a_state_of_two_parts_is_refused(
    exchanges: bool, reads: bool, is_own: bool, programs, tmp_path
) -> None:
    torch.manual_seed(0)
    model, x = Shares(exchanges, reads), torch.randn(4, 16)
    parts: dict[str, Any] = {"a": "first", "b": "second"}
    if is_own:
        parts = {
            "a": ExportFunction((x,), module=model.first),
            "b": ExportFunction((x,), module=model.second),
        }
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4_all())
    why = r"part 'a' writes state first\.memory\.seen, which 'b' uses, too.*functions="
    with pytest.raises(BackendError, match=why):
        palettizer.make_plan((x,), backend="programs", parts=parts)
    palettizer.prepare((x,))
    with pytest.raises(BackendError, match=why):
        palettizer.export(tmp_path / "p", (x,), backend="programs", parts=parts)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(model.first.memory.seen, torch.zeros(16))


def test_a_state_of_one_part_is_none_of_another_that_only_holds_it(programs, tmp_path) -> None:
    class Second(nn.Module):
        def __init__(self, whole: Shares) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, x: Tensor) -> Tensor:
            return self.whole.second.linear(x)

    model, x = Shares(exchanges=False, reads=False), torch.randn(4, 16)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4_all())
    palettizer.prepare((x,))
    parts = {"a": "first", "b": ExportFunction((x,), module=Second(model))}
    folder = palettizer.export(tmp_path / "p", (x,), backend="programs", parts=parts)
    made = torch.export.load(folder / "b.pt2").module()
    torch.testing.assert_close(made(x), model.second.linear(x))


def test_a_part_that_fails_is_named(programs, tmp_path) -> None:
    model, palettizer = prepared()
    parts = {"a": ExportFunction((torch.randn(4, 3),), module=model.head)}
    with pytest.raises(BackendError, match="part 'a': it fails on its inputs: RuntimeError"):
        palettizer.export(tmp_path / "p", (IDS, SCALE), backend="programs", parts=parts)
    with pytest.raises(BackendError, match="part 'a': give the inputs"):
        palettizer.export(
            tmp_path / "p", backend="programs", parts={"a": ExportFunction(None, module=model.head)}
        )  # fmt: skip
