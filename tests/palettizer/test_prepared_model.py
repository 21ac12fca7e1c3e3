"""A prepared model's life: training, moving, copying, saving, exporting."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from palettizer_models import (
    E4M3,
    EVERYTHING_INPUTS,
    EVERYTHING_NAMES,
    INT8,
    MLP_INPUTS,
    UINT8,
    Everything,
    decoded_weights,
    everything_config,
    everything_prepared,
    mlp,
    prepared_mlp,
    weight_config,
)
from torch import nn
from torch.nn.utils import parametrize

from palette_core import KMeansPalettizer, PerGroupedChannelGranularity
from palette_core.errors import PaletteWarning
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.sites import palette_sites
from palette_core.tensors.palettized import PalettizedTensor

SPECS = {
    "plain": {},
    "grouped": {"granularity": PerGroupedChannelGranularity(axis=0, group_size=2)},
    "int8": {"lut_qspec": INT8},
    "uint8": {"lut_qspec": UINT8},
    "e4m3": {"lut_qspec": E4M3},
    "channel scale": {"enable_per_channel_scale": True},
    "vectors": {"cluster_dim": 2, "fast": False},
}


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def torch_saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": torch_saved}
copies = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
Copy = Callable[[nn.Module], nn.Module]


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each decoding that runs."""
    calls: list[int] = []
    decode = PalettizedTensor.decode

    def counted(self: PalettizedTensor) -> torch.Tensor:
        calls.append(1)
        return decode(self)

    monkeypatch.setattr(PalettizedTensor, "decode", counted)
    return calls


# --- training -----------------------------------------------------------------------------------


def test_palettized_weights_get_no_gradient_and_the_rest_does() -> None:
    _, model = everything_prepared()
    model.train()(*EVERYTHING_INPUTS).square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {
        ".".join([*name.split(".")[:-1], "parametrizations", name.split(".")[-1], "original"])
        for name in EVERYTHING_NAMES
    }


def test_an_optimizer_step_leaves_palettes_and_moves_the_rest() -> None:
    _, model = prepared_mlp()
    model.train()
    before, bias = decoded_weights(model), model[0].bias.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(*MLP_INPUTS).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model[0].bias, bias)
    for name, weight in decoded_weights(model).items():
        assert torch.equal(weight, before[name])
        assert torch.equal(model.get_submodule(name.split(".")[0]).weight, weight)


def test_training_lowers_the_loss_with_frozen_palettes() -> None:
    _, model = prepared_mlp(n_bits=1)
    model.train()
    target = mlp()(*MLP_INPUTS).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(*MLP_INPUTS) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_gradients_reach_the_inputs_through_a_palettized_weight() -> None:
    _, model = prepared_mlp()
    x = MLP_INPUTS[0].clone().requires_grad_()
    model(x).sum().backward()
    w0, w2 = decoded_weights(model).values()
    hidden = x.detach() @ w0.T + model[0].bias
    expected = ((hidden > 0).float() * w2.sum(0)) @ w0
    torch.testing.assert_close(x.grad, expected)


# --- casting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_a_prepared_model(spec: dict[str, object], dtype: torch.dtype) -> None:
    _, model = prepared_mlp(**spec)
    exact = decoded_weights(model)
    item = palette_sites(model)[0].palette
    lut = item.palettized().lut
    model.to(dtype)
    assert model(MLP_INPUTS[0].to(dtype)).dtype is dtype
    for name, weight in decoded_weights(model).items():
        assert weight.dtype is dtype
        tolerance = 2.0**-6 if dtype is torch.bfloat16 else 2.0**-9
        torch.testing.assert_close(weight.double(), exact[name].double(), rtol=tolerance, atol=0)
    if "lut_qspec" in spec:
        now, scale = item.palettized().lut, item.palettized().lut_scale
        assert now.dtype is lut.dtype
        assert torch.equal(now.view(torch.uint8), lut.view(torch.uint8))
        assert scale.dtype is torch.float32
        model.float()
        assert all(torch.equal(w, exact[n]) for n, w in decoded_weights(model).items())


def test_moving_to_the_meta_device_moves_everything() -> None:
    _, model = everything_prepared(lut_qspec=INT8)
    model.to("meta")
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert model(EVERYTHING_INPUTS[0].to("meta")).shape == (2, 5, 6)


# --- copies -------------------------------------------------------------------------------------


@copies
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_copies_give_identical_outputs(copied: Copy, spec: dict[str, object]) -> None:
    palettizer, model = everything_prepared(**spec)
    expected = model(*EVERYTHING_INPUTS)
    assert torch.equal(copied(model)(*EVERYTHING_INPUTS), expected)
    final = palettizer.finalize(backend="packed")
    assert torch.equal(copied(final)(*EVERYTHING_INPUTS), final(*EVERYTHING_INPUTS))


@copies
def test_a_copy_of_a_copy(copied: Copy) -> None:
    _, model = everything_prepared()
    again = copied(copied(model))
    assert torch.equal(again(*EVERYTHING_INPUTS), model(*EVERYTHING_INPUTS))
    assert type(again.lstm) is not type(model.lstm)
    assert isinstance(again.lstm, nn.LSTM)


@copies
def test_copies_are_independent(copied: Copy) -> None:
    _, model = prepared_mlp()
    twin = copied(model)
    expected = model(*MLP_INPUTS)
    parametrize.remove_parametrizations(twin[0], "weight")
    assert torch.equal(twin(*MLP_INPUTS), expected)
    assert type(twin[0]) is nn.Linear
    with torch.no_grad():
        twin[0].weight.zero_()
        palette_sites(twin)[0].palette.lut.zero_()
    assert not torch.equal(twin(*MLP_INPUTS), expected)
    assert torch.equal(model(*MLP_INPUTS), expected)
    parametrize.remove_parametrizations(model[2], "weight")
    assert parametrize.is_parametrized(twin[2], "weight")
    assert torch.equal(twin[2].weight, model[2].weight) is False  # its table is all zeros


def test_a_copy_trains_and_finalizes_on_its_own() -> None:
    palettizer, model = everything_prepared()
    expected = model(*EVERYTHING_INPUTS)
    twin = palettizer.finalize(copy.deepcopy(model), backend="packed")
    assert twin is not model
    assert torch.allclose(twin(*EVERYTHING_INPUTS), expected, atol=1e-6)
    assert all(isinstance(site.palette, PalettizedWeight) for site in palette_sites(model))
    assert torch.equal(model(*EVERYTHING_INPUTS), expected)


def test_copies_of_a_module_that_was_parametrized_before_do_not_disturb_each_other() -> None:
    """torch gives copies of a parametrized module one class; a property set for one hits both."""
    torch.manual_seed(0)
    original = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    twin = copy.deepcopy(original)
    expected = twin(*MLP_INPUTS)
    config = weight_config()
    config.global_config.op_state_spec = {"*": config.global_config.op_state_spec["weight"]}
    prepared = KMeansPalettizer(original, config).prepare(MLP_INPUTS)
    assert {name for site in palette_sites(prepared) for name in site.names} == {"weight", "bias"}
    assert torch.equal(twin(*MLP_INPUTS), expected)
    assert isinstance(twin.bias, nn.Parameter)


def test_weight_normed_layers_compute_with_the_palette() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    plain = layer.weight.detach().clone()
    palettizer = KMeansPalettizer(layer, weight_config(n_bits=3))
    model = palettizer.prepare(MLP_INPUTS)
    (decoded,) = decoded_weights(model).values()
    assert len(decoded.unique()) <= 8
    assert 0 < float((decoded - plain).square().mean()) < 0.05 * float(plain.square().mean())
    expected = MLP_INPUTS[0] @ decoded.T + layer.bias
    torch.testing.assert_close(model(*MLP_INPUTS), expected)
    torch.testing.assert_close(copy.deepcopy(model)(*MLP_INPUTS), expected)
    final = palettizer.finalize(backend="packed")
    torch.testing.assert_close(final(*MLP_INPUTS), expected)
    assert {n for n, p in final.named_parameters() if p.numel()} == {"bias"}


# --- state dictionaries -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_state_dict_into_a_fresh_prepared_model(spec: dict[str, object]) -> None:
    _, model = everything_prepared(**spec)
    fresh = Everything().eval()
    with torch.no_grad():
        for p in fresh.parameters():
            p.mul_(-1.7).add_(0.01)
    KMeansPalettizer(fresh, everything_config(**spec)).prepare(EVERYTHING_INPUTS)
    assert not torch.equal(fresh(*EVERYTHING_INPUTS), model(*EVERYTHING_INPUTS))
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(fresh(*EVERYTHING_INPUTS), model(*EVERYTHING_INPUTS))
    for a, b in zip(palette_sites(model), palette_sites(fresh), strict=True):
        assert a.names == b.names
        assert torch.equal(a.palette.indices, b.palette.indices), a.name


def test_state_dict_of_an_unprepared_model_is_refused() -> None:
    _, model = prepared_mlp()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(mlp().state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        mlp().load_state_dict(model.state_dict())


# --- the kept weight ----------------------------------------------------------------------------


def test_evaluation_decodes_once(decodes: list[int]) -> None:
    _, model = everything_prepared()
    expected = model(*EVERYTHING_INPUTS)
    decodes.clear()
    for _ in range(3):
        assert torch.equal(model(*EVERYTHING_INPUTS), expected)
    assert not decodes


def test_training_with_frozen_weights_decodes_once_too(decodes: list[int]) -> None:
    _, model = prepared_mlp()
    model.train()(*MLP_INPUTS)
    decodes.clear()
    model(*MLP_INPUTS).sum().backward()
    assert not decodes


@pytest.mark.parametrize("buffer", ["lut", "indices", "scale", "lut_scale", "lut_zero_point"])
def test_a_buffer_changed_in_place_is_seen(buffer: str) -> None:
    _, model = prepared_mlp(n_bits=3, enable_per_channel_scale=True, lut_qspec=UINT8)
    before = model[0].weight.clone()
    item = palette_sites(model)[0].palette
    with torch.no_grad():
        part = getattr(item, buffer)
        part.copy_(7 - part if buffer == "indices" else part + 1)
    assert torch.equal(model[0].weight, item.palettized().decode())
    assert not torch.equal(model[0].weight, before)


def test_a_buffer_replaced_is_seen() -> None:
    _, model = prepared_mlp()
    before = model[0].weight.clone()
    item = palette_sites(model)[0].palette
    item.lut = item.lut * 2
    assert torch.equal(model[0].weight, before * 2)


def test_loading_and_casting_are_seen() -> None:
    _, model = prepared_mlp()
    model(*MLP_INPUTS)
    state = {n: t * 2 if n.endswith("0.lut") else t for n, t in model.state_dict().items()}
    before = model[0].weight.clone()
    model.load_state_dict(state)
    assert torch.equal(model[0].weight, before * 2)
    model.load_state_dict({n: t.clone() for n, t in state.items()}, assign=True)
    assert torch.equal(model[0].weight, before * 2)
    assert model.half()[0].weight.dtype is torch.float16


def test_writing_to_the_weight_changes_nothing_for_good() -> None:
    _, model = prepared_mlp()
    before = model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(model[0].weight, before)


def test_inference_mode_first_and_training_afterwards() -> None:
    _, model = everything_prepared()
    with torch.inference_mode():
        model(*EVERYTHING_INPUTS)
    first = model(*EVERYTHING_INPUTS).detach()
    model.train()(*EVERYTHING_INPUTS).sum().backward()
    assert model.head.bias.grad is not None
    model.eval()
    model.bn.reset_running_stats()
    assert torch.equal(model(*EVERYTHING_INPUTS), first)


# --- export -------------------------------------------------------------------------------------


def largest_float_constant(program: torch.export.ExportedProgram) -> int:
    """Elements of the largest floating tensor in an exported program that is no graph input."""
    held = [
        t
        for t in [*program.constants.values(), *program.tensor_constants.values()]
        if isinstance(t, torch.Tensor) and t.dtype.is_floating_point
    ]
    return max((t.numel() for t in held), default=0)


def used_state(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the parameters and buffers that some node of the graph reads."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {targets[n.name] for n in program.graph.nodes if n.name in targets and n.users}


def exported(model: nn.Module, inputs: tuple[object, ...]) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
        warnings.filterwarnings("ignore", "a prepared model is being exported")
        return torch.export.export(model, inputs)


@pytest.mark.parametrize("warm", [False, True])
def test_export_of_a_prepared_model_holds_the_decoding_not_its_result(warm: bool) -> None:
    _, model = prepared_mlp()
    expected = model(*MLP_INPUTS) if warm else None
    program = exported(model, MLP_INPUTS)
    expected = model(*MLP_INPUTS) if expected is None else expected
    torch.testing.assert_close(program.module()(*MLP_INPUTS), expected)
    assert largest_float_constant(program) <= 4
    used = used_state(program)
    assert "0.parametrizations.weight.0.indices" in used
    assert "0.parametrizations.weight.0.lut" in used
    assert not any("original" in name for name in used)


def test_export_of_every_kind_of_layer() -> None:
    palettizer, model = everything_prepared(lut_qspec=UINT8, enable_per_channel_scale=True)
    expected = model(*EVERYTHING_INPUTS)
    prepared = exported(model, EVERYTHING_INPUTS)
    torch.testing.assert_close(prepared.module()(*EVERYTHING_INPUTS), expected)
    final = exported(palettizer.finalize(backend="packed"), EVERYTHING_INPUTS)
    torch.testing.assert_close(final.module()(*EVERYTHING_INPUTS), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("record", [torch.export.export, torch.jit.trace])
def test_a_prepared_model_that_is_exported_by_hand_says_so_once(record) -> None:
    palettizer, model = prepared_mlp()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", PaletteWarning)
        record(model, MLP_INPUTS)
    (told,) = [each for each in caught if each.category is PaletteWarning]
    assert "KMeansPalettizer(model).export(path, example_inputs, backend=...)" in str(told.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaletteWarning)
        torch.compile(model, backend="eager")(*MLP_INPUTS)
        record(palettizer.finalize(backend="packed"), MLP_INPUTS)


def test_a_model_whose_palettes_are_switched_off_is_exported_without_a_word() -> None:
    _, model = prepared_mlp()
    for site in palette_sites(model, PalettizedWeight):
        site.palette.enable(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaletteWarning)
        torch.export.export(model, MLP_INPUTS)


def test_a_prepared_model_compiles_without_breaks() -> None:
    _, model = prepared_mlp()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*MLP_INPUTS), model(*MLP_INPUTS))
