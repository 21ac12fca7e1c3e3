"""`prepare(state_dict=)`: palettes from a dictionary, ours or the reference's, or no change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PaletteError,
    PalettizationSpec,
    PATSchedule,
    PerGroupedChannelGranularity,
    QuantizationSpec,
)
from palette_core.errors import SensitivityError, StateDictError, WeightError

pytestmark = pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
GROUPS = {
    "rows": PerGroupedChannelGranularity(axis=0, group_size=4),
    "columns": PerGroupedChannelGranularity(axis=1, group_size=4),
}
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows": {"granularity": GROUPS["rows"]},
    "columns": {"granularity": GROUPS["columns"]},
    "pairs": {"cluster_dim": 2, "granularity": GROUPS["columns"]},
    "channel_scale": {"enable_per_channel_scale": True},
    "block_scale": {"scale_block_size": 4},
    "int8": {"lut_qspec": QuantizationSpec(), "granularity": GROUPS["rows"]},
    "uint8": {
        "lut_qspec": QuantizationSpec(dtype="uint8", qscheme="asymmetric"),
        "granularity": GROUPS["columns"],
    },
    "e4m3": {"lut_qspec": QuantizationSpec(dtype="float8_e4m3fn")},
    "sparse": {"sparsity_detection_threshold": 0.3},
    "sparse_rows": {"sparsity_detection_threshold": 0.3, "granularity": GROUPS["rows"]},
    "zeros": {"preserve_zero": True},
    "trained": {"training_strategy": "dkm", "lut_qspec": QuantizationSpec()},
}


class Net(nn.Module):
    """A convolution, a norm, and two layers with one weight."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(4, 8, 2)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        with torch.no_grad():
            for weight in (self.conv.weight, self.first.weight):
                weight[torch.rand(weight.shape) < 0.6] = 0
            self.norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.norm(self.conv(x)).mean((2, 3))))


INPUT = (torch.linspace(-1, 1, 2 * 4 * 25).reshape(2, 4, 5, 5),)


def config(n_bits: int = 2, schedule: int | None = None, **fields: Any) -> KMeansPalettizerConfig:
    spec = PalettizationSpec(n_bits=n_bits, **fields)
    module = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec},
        enable_fast_kmeans_mode=spec.cluster_dim == 1,
        pat_schedule=None if schedule is None else PATSchedule(enable_fake_palettize=schedule),
    )
    return KMeansPalettizerConfig(global_config=module)


def prepared(seed: int = 0, **fields: Any) -> Net:
    model = Net(seed).eval()
    KMeansPalettizer(model, config(**fields)).prepare(INPUT)
    return model


def loaded(states: Any, model: nn.Module | None = None, **fields: Any) -> KMeansPalettizer:
    palettizer = KMeansPalettizer(Net(1).eval() if model is None else model, config(**fields))
    palettizer.prepare(INPUT, state_dict=states)
    return palettizer


def refused(
    states: Any, match: str, error: type[Exception] = StateDictError, **fields: Any
) -> None:
    """Demand an error of ours, and a model that is as it was."""
    model = Net(1).eval()
    before, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(error, match=match) as caught:
        loaded(states, model, **fields)
    assert isinstance(caught.value, RuntimeError if error is StateDictError else error)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [type(m) for m in model.modules()] == classes
    assert model.first.weight is model.second.weight
    loaded(prepared().state_dict(), model)  # and can be prepared


@pytest.mark.parametrize("name", SPECS)
def test_our_own_dictionary_round_trips(name, monkeypatch):
    model = prepared(**SPECS[name])
    states = copy.deepcopy(model.state_dict())
    monkeypatch.setattr("palette_core.palettizer.palettizer.cluster_model", None)
    palettizer = loaded(states, **SPECS[name])
    again = palettizer._model
    assert list(again.state_dict()) == list(states)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), states.values(), strict=True)
    )
    assert torch.equal(again(*INPUT), model(*INPUT))
    shared = [m.parametrizations.weight[0] for m in (again.first, again.second)]
    assert shared[0] is shared[1]
    assert (
        again.first.parametrizations.weight.original
        is again.second.parametrizations.weight.original
    )
    row = {row.name: row for row in palettizer.report.tensors}["conv.weight"]
    error = (again.conv.weight - states["conv.parametrizations.weight.original"]).square().sum()
    norm = states["conv.parametrizations.weight.original"].square().sum()
    assert row.snr_db == pytest.approx(float(10 * torch.log10(norm / error)), abs=1e-3)
    states["conv.parametrizations.weight.0.lut"].zero_()  # nobody else's memory
    assert torch.equal(again(*INPUT), model(*INPUT))
    palettizer.finalize(backend="packed")
    assert torch.allclose(again(*INPUT), model(*INPUT), atol=1e-6)


def test_training_goes_on_where_it_was():
    def train(palettizer, steps):
        model = palettizer._model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with palettizer.training_mode():
            for _ in range(steps):
                optimizer.zero_grad()
                model(*INPUT).square().sum().backward()
                optimizer.step()
                palettizer.step()
        return model

    fields = {"training_strategy": "ste", "schedule": 3}
    straight = KMeansPalettizer(Net(0), config(**fields))
    straight.prepare(INPUT)
    train(straight, 2)
    states = copy.deepcopy(straight._model.state_dict())
    resumed = loaded(states, Net(1), **fields)
    assert not resumed._model.conv.parametrizations.weight[0].is_enabled
    for one in (straight, resumed):
        train(one, 3)
    a, b = straight._model.state_dict(), resumed._model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_that_are_computed_keep_their_chain():
    def make(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        parametrizations.weight_norm(model[0])
        prune.l1_unstructured(model[1], "weight", 0.5)
        return model.eval()

    x, first = (torch.ones(1, 8),), make(0)
    KMeansPalettizer(first, config()).prepare(x)
    second = make(1)
    KMeansPalettizer(second, config()).prepare(x, state_dict=first.state_dict())
    assert torch.equal(second(*x), first(*x))


def changed(states: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Copy a dictionary with parts of the convolution's palette replaced, or left out."""
    made = dict(states)
    for name, value in changes.items():
        key = f"conv.parametrizations.weight.0.{name}"
        if value is None:
            del made[key]
        else:
            made[key] = value
    return made


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"indices": None}, r"missing: conv\.parametrizations\.weight\.0\.indices"),
        ({"lut": None}, r"missing: .*0\.lut"),
        ({"lut_scale": None}, r"missing: .*0\.lut_scale"),
        ({"lut_zero_point": None}, r"missing: .*0\.lut_zero_point"),
        ({"scale": None}, r"missing: .*0\.scale"),
        ({"enabled": None}, r"missing: .*0\.enabled"),
        ({"mask": torch.ones(8, 4, 2, 2).bool()}, r"not of the prepared model: .*0\.mask"),
        ({"indices": torch.zeros(8, 4, 2, 2).byte() + 4}, "indices go up to 4"),
        ({"indices": torch.zeros(8, 4, 2, 2).long()}, "indices is int64, expected uint8"),
        ({"indices": torch.zeros(4, 4, 2, 2).byte()}, "indices is .*4, 4, 2, 2.*expected"),
        ({"scale": torch.ones(1, 4, 1, 1)}, r"scale is \(1, 4, 1, 1\), expected \(8, 1, 1, 1\)"),
        ({"scale": torch.full((8, 1, 1, 1), torch.inf)}, "scale has NaN or infinite"),
        ({"lut": "table"}, "lut is str, expected a tensor"),
        ({"lut": torch.ones(2, 2).to_sparse()}, r"lut is of layout torch\.sparse_coo.*to_dense"),
        ({"lut": torch.ones(2, device="meta")}, "lut has no values: it is on the meta device"),
        ({"scale": torch.ones(8, 1, 1, 1).half()}, "scale is float16, expected float32"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, match):
    quantized = QuantizationSpec(dtype="uint8", qscheme="asymmetric")
    fields = {"enable_per_channel_scale": True, "lut_qspec": quantized}
    refused(changed(prepared(**fields).state_dict(), **change), match, **fields)


def test_other_dictionaries_are_refused_by_name():
    states = prepared().state_dict()
    refused({}, r"missing: all of conv\.parametrizations\.weight\.0\.\*.*first")
    refused(Net(0).state_dict(), r"conv\.weight is dense, expected indices and tables")
    refused({**states, "more": torch.ones(1)}, "not of the prepared model: more")
    refused({k: v for k, v in states.items() if k != "norm.bias"}, r"missing: norm\.bias")
    refused({**states, "norm.bias": torch.ones(4)}, r"norm\.bias has shape \(4,\), expected \(8,\)")
    refused(
        {**states, "norm.bias": torch.ones(8).half()}, r"norm\.bias is float16, expected float32"
    )
    refused({**states, "norm.bias": 3}, r"norm\.bias is int, expected a tensor")
    refused({**states, "norm.bias": torch.ones(8).to_sparse()}, r"norm\.bias is of layout .*sparse")
    refused({**states, "norm.bias": torch.ones(8, device="meta")}, r"norm\.bias has no values")
    for wrapped in ("module", "_orig_mod"):
        inside = {f"{wrapped}.{name}": value for name, value in states.items()}
        refused(inside, f"every name begins with '{wrapped}'.*cut '{wrapped}.' off")
    refused(prepared(n_bits=3).state_dict(), r"lut is \(1, 1, 1, 1, 8, 1\), expected .*4, 1\)")
    refused(states, r"missing: .*0\.scale", enable_per_channel_scale=True)
    refused(
        prepared(enable_per_channel_scale=True).state_dict(), "not of the prepared model: .*scale"
    )
    refused(prepared(**SPECS["rows"]).state_dict(), r"lut is \(2, 1, 1, 1, 4, 1\), expected")
    torn = {**states, "second.parametrizations.weight.0.lut": torch.ones(1, 1, 4, 1)}
    refused(torn, r"second\.weight is tied to first\.weight, and has another palette")
    one = "second.parametrizations.weight.original"
    refused({**states, one: states[one] + 1}, f"{one} is tied to first.*, and has other values")
    original = "conv.parametrizations.weight.original"
    nan = states[original].clone().fill_(torch.nan)
    refused({**states, original: nan}, r"conv\.weight: .*NaN", WeightError)
    finalized = KMeansPalettizer(Net(0), config())
    finalized.prepare(INPUT)
    refused(finalized.finalize(backend="packed").state_dict(), "conv.*indices is")
    with pytest.raises(TypeError, match=r"mapping from names to tensors, got str; torch\.load"):
        loaded("model.pt")


def test_masks_that_are_lost_are_noticed():
    states = dict(prepared(**SPECS["sparse"]).state_dict())
    refused(changed(states, mask=None), r"conv\.weight: \d+ zeros decode", **SPECS["sparse"])
    cast = states["conv.parametrizations.weight.0.mask"].float()
    refused(changed(states, mask=cast), "mask is float32, expected bool", **SPECS["sparse"])


def test_a_load_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch):
    states = prepared().state_dict()
    load = nn.Linear._load_from_state_dict

    def fails(module, *args):
        load(module, *args)
        raise RuntimeError("disk gone")

    with monkeypatch.context() as patched:
        patched.setattr(nn.Linear, "_load_from_state_dict", fails)
        model = Net(1).eval()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(StateDictError, match="disk gone"):
            loaded(states, model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_sensitivities_are_of_the_stored_weights(tmp_path):
    model = Net(0).eval()
    palettizer = KMeansPalettizer(model, config())
    palettizer.prepare(INPUT)
    with palettizer.calibration_mode(
        loss_fn=lambda out, target: (out - target).square().sum()
    ) as c:
        c.step(model(*INPUT), 1.0)
    palettizer.save_sensitivities(tmp_path / "s.safetensors")
    second = KMeansPalettizer(Net(1).eval(), config())
    second.prepare(INPUT, tmp_path / "s.safetensors", 1, model.state_dict())
    second.save_sensitivities(tmp_path / "again.safetensors")
    assert (tmp_path / "s.safetensors").read_bytes() == (
        tmp_path / "again.safetensors"
    ).read_bytes()
    third = KMeansPalettizer(Net(1).eval(), config())
    with pytest.raises(SensitivityError, match="measured on other values"):
        third.prepare(INPUT, tmp_path / "s.safetensors", state_dict=prepared(seed=5).state_dict())
    assert not hasattr(third._model.conv, "parametrizations")


# --- the reference's ----------------------------------------------------------------------------

LINEAR = (torch.ones(1, 8),)
_Q = "_lut_fake_quantizer."


def theirs(version: str, group: str, lut: torch.Tensor, quantized: Any = None, scale: Any = None):
    """Return a palette's parts as coreai-opt writes them, and the weight that they stand for.

    Args:
        version: 0.2 keeps ``lut``, later ones ``centroids``.
        group: as in `GROUPS`, or nothing.
        lut: ``[G, 4, 1]``.
        quantized: dtype, scale and zero point of tables.
        scale: ``[8, 1]``.
    """
    torch.manual_seed(3)
    indices = torch.randint(0, 4, (8, 8), dtype=torch.uint8)
    on_grid = lut[:, None] if group != "columns" else lut[None]
    flags = ["fake_palett_enabled", *(["observer_enabled"] if version == "0.2" else [])]
    parts = {flag: torch.ones(1, dtype=torch.uint8) for flag in flags}
    parts |= {"indices": indices}
    parts |= {"lut": on_grid} if version == "0.2" else {"centroids": lut}
    if scale is not None:
        parts["per_channel_scale"] = scale
    table = lut
    if quantized is not None:
        dtype, step, zero = quantized
        table = (lut / step).to(dtype)
        if not dtype.is_floating_point:
            info = torch.iinfo(dtype)
            table = ((lut / step).round() + zero).clamp(info.min, info.max).to(dtype)
        for flag in ("fake_quant_enabled", "observer_enabled"):
            parts[_Q + flag] = torch.ones(1, dtype=torch.uint8)
        parts[_Q + "_disabled"] = torch.tensor(False)
        each = torch.ones(len(lut), 1)
        parts[_Q + "qparams_calculator.scale"] = each * step
        if not dtype.is_floating_point:
            parts[_Q + "qparams_calculator.zero_point"] = (each * zero).int()
            parts[_Q + "qparams_calculator.minval"] = each
        if version == "0.2":
            parts["quantized_lut"] = table[:, None] if group != "columns" else table[None]
            parts["lut_quantization_scale"] = torch.ones(1, 1, 1, 1) * step
            parts["lut_quantization_zero_point"] = torch.ones(1, 1, 1, 1).int()
        table = (table.float() - zero) * step
    rows = torch.arange(8)[:, None].expand(8, 8)
    block = {"rows": rows // 4, "columns": rows.T // 4}.get(group, torch.zeros(8, 8)).long()
    weight = table[block, indices.long(), 0]
    return parts, weight if scale is None else weight * scale


def whole(parts: dict[str, torch.Tensor], original: torch.Tensor) -> dict[str, torch.Tensor]:
    prefix = "0.parametrizations.weight."
    states = {f"{prefix}0.{name}": part for name, part in parts.items()}
    return {"0.bias": torch.arange(8.0), f"{prefix}original": original, **states}


def linear(states: Any, **fields: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    return KMeansPalettizer(model, config(**fields)).prepare(LINEAR, state_dict=states)


ONE = torch.tensor([[-1.0, -0.25, 0.3, 0.9]])[..., None]
TWO = torch.cat([ONE, 2 * ONE])


@pytest.mark.parametrize("version", ["0.2", "0.3"])  # 0.4 writes what 0.3 does
@pytest.mark.parametrize(
    ("name", "lut", "how"),
    [
        ("plain", ONE, {}),
        ("rows", TWO, {}),
        ("columns", TWO, {}),
        ("channel_scale", ONE, {"scale": torch.arange(1.0, 9)[:, None]}),
        ("int8", TWO, {"quantized": (torch.int8, 1 / 63.75, 0.0)}),
        ("uint8", TWO, {"quantized": (torch.uint8, 1 / 60, 100.0)}),
        ("e4m3", ONE, {"quantized": (torch.float8_e4m3fn, 1 / 448, 0.0)}),
        ("trained", ONE, {"quantized": (torch.int8, 1 / 127.5, 0.0)}),
    ],
)
def test_palettes_of_the_reference_are_taken_over(version, name, lut, how):
    group = {"int8": "rows", "uint8": "columns"}.get(name, name)
    parts, weight = theirs(version, group, lut, **how)
    original = torch.randn(8, 8)
    model = linear(whole(parts, original), **SPECS[name])
    assert torch.allclose(model[0].weight, weight, rtol=1e-6, atol=1e-7)
    assert torch.equal(model[0].bias, torch.arange(8.0))
    assert torch.equal(model[0].parametrizations.weight.original, original)
    again = linear(model.state_dict(), **SPECS[name])
    assert torch.equal(again[0].weight, model[0].weight)


def test_vectors_and_sparse_weights_of_the_reference():
    parts, _ = theirs("0.4", "columns", TWO)
    parts["centroids"] = torch.randn(2, 4, 2)
    parts["indices"] = parts["indices"][:4]
    model = linear(whole(parts, torch.randn(8, 8)), **SPECS["pairs"])
    indices, tables = parts["indices"].long(), parts["centroids"]
    for row in range(8):
        for column in range(8):
            entry = tables[column // 4, indices[row // 2, column]]
            assert model[0].weight[row, column] == entry[row % 2]
    parts, weight = theirs("0.4", "rows", TWO)
    original = torch.where(torch.rand(8, 8) < 0.4, 0.0, weight)
    model = linear(whole(parts, original), **SPECS["sparse_rows"])
    assert torch.equal(model[0].weight, torch.where(original != 0, weight, 0.0))


def test_pairs_of_nonzeros_of_the_reference_are_taken_over_where_none_has_a_zero():
    spec = {"cluster_dim": 2, "sparsity_detection_threshold": 0.3, "granularity": GROUPS["rows"]}
    original = torch.where(torch.arange(8) % 4 < 2, 1.0, 0.0) * torch.rand(8, 8).add(1)
    parts, _ = theirs("0.4", "rows", TWO)
    parts["centroids"] = torch.randn(2, 4, 2)
    parts["indices"] = torch.arange(16, dtype=torch.uint8) % 4
    model = linear(whole(parts, original), **spec)
    found = [(parts["centroids"][at // 8, at % 4]) for at in range(16)]
    assert torch.equal(model[0].weight[original != 0], torch.cat(found))
    assert not model[0].weight[original == 0].any()
    for zeros in (1, 2):  # an odd one, and fewer than in other rows
        pruned = original.clone()
        pruned[0, :zeros] = 0
        with pytest.raises(StateDictError, match="zeros and other values are mixed"):
            linear(whole(parts, pruned), **spec)
    parts["indices"] = parts["indices"][:15]
    with pytest.raises(StateDictError, match=r"indices is \[15\], expected \[16\]"):
        linear(whole(parts, original), **spec)


def test_what_of_the_reference_cannot_be_taken_over_is_refused():
    parts, _ = theirs("0.4", "", ONE, scale=torch.ones(8, 1))
    states = whole(parts, torch.randn(8, 8))
    palette = "0.parametrizations.weight.0."

    def without(name):
        return {key: value for key, value in states.items() if key != palette + name}

    for given, fields, match in (
        (states, {}, r"not of the prepared model: .*per_channel_scale"),
        (states, {"enable_per_channel_scale": True, "n_bits": 3}, r"centroids is \(4, 1\)"),
        (without("indices"), {"enable_per_channel_scale": True}, r"missing: .*0\.indices"),
        (without("per_channel_scale"), {"enable_per_channel_scale": True}, "missing: .*scale"),
        (without("centroids"), {"enable_per_channel_scale": True}, r"missing: .*0\.lut"),
        (states, {"scale_block_size": 4}, "per_channel_scale has factors for axis 0"),
        (states, {"lut_qspec": QuantizationSpec()}, r"missing: .*qparams_calculator\.scale"),
        ({**states, palette + "more": torch.ones(1)}, {"enable_per_channel_scale": True}, "more"),
    ):
        with pytest.raises(StateDictError, match=match):
            linear(given, **fields)
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 3))
    parts["indices"] = torch.zeros(8, 8, 3, 3, dtype=torch.uint8)
    palettizer = KMeansPalettizer(model, config(enable_per_channel_scale=True))
    with pytest.raises(PaletteError, match="factors for axis 0"):
        palettizer.prepare(
            (torch.ones(1, 8, 4, 4),), state_dict=whole(parts, torch.ones(8, 8, 3, 3))
        )
    parts["centroids"], parts["indices"] = torch.ones(2, 4, 2), parts["indices"][:4]
    palettizer = KMeansPalettizer(nn.Sequential(nn.Conv2d(8, 8, 3)), config(**SPECS["pairs"]))
    with pytest.raises(PaletteError, match="vectors lie within kernels"):
        palettizer.prepare(
            (torch.ones(1, 8, 4, 4),), state_dict=whole(parts, torch.ones(8, 8, 3, 3))
        )
