"""finalize(): packed weights behind one operator, dense originals freed."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from palettizer_models import (
    E4M3,
    EVERYTHING_INPUTS,
    EVERYTHING_NAMES,
    INT8,
    MLP_INPUTS,
    UINT8,
    decoded_weights,
    dense_bits,
    everything_prepared,
    mlp,
    prepared_mlp,
)
from torch import nn

from palette_core import (
    ExportBackend,
    KMeansPalettizer,
    PerGroupedChannelGranularity,
    load_checkpoint,
    save_checkpoint,
)
from palette_core.errors import (
    BackendError,
    MissingBackendError,
    PaletteWarning,
    StateError,
    UnknownPluginError,
)
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import palette_sites

SPECS = {
    **{f"{n} bits": {"n_bits": n} for n in (1, 2, 3, 4, 6, 8)},
    "axis 0": {"granularity": PerGroupedChannelGranularity(axis=0, group_size=2)},
    "axis 1": {"granularity": PerGroupedChannelGranularity(axis=1, group_size=4)},
    "int8": {"lut_qspec": INT8},
    "uint8": {"lut_qspec": UINT8},
    "e4m3": {"lut_qspec": E4M3},
    "channel scale": {"enable_per_channel_scale": True},
    "vectors": {"cluster_dim": 2, "fast": False},
    "vectors, axis 1": {
        "cluster_dim": 2,
        "fast": False,
        "granularity": PerGroupedChannelGranularity(axis=1, group_size=4),
    },
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
pytestmark = pytest.mark.filterwarnings("ignore::palette_core.errors.PaletteWarning")


@specs
def test_outputs_equal_the_prepared_models(spec: dict[str, object]) -> None:
    palettizer, model = everything_prepared(**spec)
    weights = decoded_weights(model)
    with torch.no_grad():
        expected = model(*EVERYTHING_INPUTS)
    final = palettizer.finalize(backend=ExportBackend.Packed)
    assert final is model
    assert all(isinstance(site.palette, PackedWeight) for site in palette_sites(final))
    for name, weight in weights.items():
        prefix, _, state = name.rpartition(".")
        assert torch.equal(getattr(final.get_submodule(prefix), state), weight)
    with torch.no_grad():
        torch.testing.assert_close(final(*EVERYTHING_INPUTS), expected, rtol=0, atol=1e-6)


def test_dense_originals_are_freed() -> None:
    palettizer, model = everything_prepared()
    final = palettizer.finalize(backend="packed")
    dense = {name: p.shape for name, p in final.named_parameters() if p.numel()}
    assert not {n for n in dense if "parametrizations" in n}
    for site in palette_sites(final, PackedWeight):
        assert site.palette.indices.dtype is torch.uint8
        count = site.palette.palettized_shape().numel()
        assert site.palette.indices.numel() == -(-count * 2 // 8), site.name
    assert dense_bits(final) < 0.5 * dense_bits(model.__class__.__bases__[0]())


def test_placeholders_tell_dtype_and_device_as_weights_did() -> None:
    palettizer, model = prepared_mlp()
    final = palettizer.finalize(model.half(), backend="packed")
    assert {p.dtype for p in final.parameters()} == {torch.float16}
    assert {t.device.type for t in [*final.to("meta").parameters(), *final.buffers()]} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("lut_qspec", [None, INT8, E4M3])
def test_a_finalized_model_may_be_cast(dtype: torch.dtype, lut_qspec: object) -> None:
    palettizer, model = prepared_mlp(lut_qspec=lut_qspec, enable_per_channel_scale=True)
    expected = copy.deepcopy(model).to(dtype)(MLP_INPUTS[0].to(dtype))
    final = palettizer.finalize(backend="packed").to(dtype)
    torch.testing.assert_close(final(MLP_INPUTS[0].to(dtype)), expected)


def test_frees_what_it_should_and_keeps_training_of_the_rest() -> None:
    palettizer, _ = prepared_mlp()
    final = palettizer.finalize(backend="packed").train()
    final(*MLP_INPUTS).sum().backward()
    assert {n for n, p in final.named_parameters() if p.grad is not None} == {"0.bias", "2.bias"}


def test_the_exported_program_holds_the_operator() -> None:
    palettizer, _ = everything_prepared()
    final = palettizer.finalize(backend="packed")
    with torch.no_grad():
        expected = final(*EVERYTHING_INPUTS)
        program = torch.export.export(final, EVERYTHING_INPUTS)
        torch.testing.assert_close(program.module()(*EVERYTHING_INPUTS), expected)
    op = torch.ops.palette_core.depalettize.default
    nodes = [n for n in program.graph.nodes if n.target is op]
    packed = {n.args[0].name for n in nodes}
    assert len(packed) == len(EVERYTHING_NAMES)
    floats = [
        t for t in [*program.state_dict.values(), *program.constants.values()]
        if t.dtype.is_floating_point
    ]  # fmt: skip
    assert max(t.numel() for t in floats) <= 32  # biases, norms and tables only


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn", "float8_e5m2"])
def test_an_exported_program_looks_up_in_bytes(dtype: str) -> None:
    palettizer, model = prepared_mlp(lut_qspec={"dtype": dtype})
    expected = model(*MLP_INPUTS)
    program = torch.export.export(palettizer.finalize(backend="packed"), MLP_INPUTS)
    torch.testing.assert_close(program.module()(*MLP_INPUTS), expected)
    called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert [name for name in called if "view" in name] == []
    assert called.count("palette_core.depalettize.default") == 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_program_holds_the_operator() -> None:
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    final = palettizer.finalize(backend="packed")
    traced = torch.jit.trace(final, MLP_INPUTS)
    assert str(traced.inlined_graph).count("palette_core::depalettize") == 2
    torch.testing.assert_close(traced(*MLP_INPUTS), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_of_a_prepared_model_is_right() -> None:
    _, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    with pytest.warns(PaletteWarning, match="a prepared model is being exported or traced"):
        traced = torch.jit.trace(model, MLP_INPUTS)
    torch.testing.assert_close(traced(*MLP_INPUTS), expected)


@pytest.mark.parametrize("strict", [True, False])
def test_an_export_of_a_prepared_model_is_warned_about(strict: bool) -> None:
    _, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    with pytest.warns(PaletteWarning, match="a prepared model is being exported or traced"):
        program = torch.export.export(model, MLP_INPUTS, strict=strict)
    torch.testing.assert_close(program.module()(*MLP_INPUTS), expected)


def test_a_compiled_prepared_model_is_not_warned_about() -> None:
    _, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaletteWarning)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*MLP_INPUTS), expected)


def test_state_dict_into_another_finalized_model() -> None:
    palettizer, _ = prepared_mlp(n_bits=3)
    final = palettizer.finalize(backend="packed")
    other = mlp(seed=5)
    fresh = KMeansPalettizer(other, palettizer._config)
    fresh.prepare(MLP_INPUTS)
    fresh.finalize(backend="packed")
    other.load_state_dict(final.state_dict())
    assert torch.equal(other(*MLP_INPUTS), final(*MLP_INPUTS))


# --- states and names ---------------------------------------------------------------------------


def test_before_prepare() -> None:
    with pytest.raises(StateError, match="Model must be prepared before finalization"):
        KMeansPalettizer(mlp()).finalize(backend="packed")


def test_twice() -> None:
    palettizer, _ = prepared_mlp()
    final = palettizer.finalize(backend="packed")
    expected = final(*MLP_INPUTS)
    with pytest.raises(StateError, match="Model must be prepared before finalization"):
        palettizer.finalize(backend="packed")
    assert torch.equal(final(*MLP_INPUTS), expected)


def test_preparing_a_finalized_or_loaded_model(tmp_path: Path) -> None:
    palettizer, _ = prepared_mlp()
    final = palettizer.finalize(backend="packed")
    loaded = load_checkpoint(save_checkpoint(final, tmp_path / "c"), mlp())
    for model in (final, loaded):
        with pytest.raises(StateError, match="already been prepared"):
            KMeansPalettizer(model).prepare(MLP_INPUTS)
        with pytest.raises(StateError, match="prepared before finalization"):
            KMeansPalettizer(model).finalize(backend="packed")


def test_what_is_not_a_module() -> None:
    palettizer, _ = prepared_mlp()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        palettizer.finalize("model", backend="packed")  # type: ignore[arg-type]


def test_the_default_backend_names_the_package_to_install() -> None:
    palettizer, model = prepared_mlp()
    catalog = palettizer._catalog
    if "coreai" in catalog.export_backends.names():
        pytest.skip("the Core AI backend is installed")
    with pytest.raises(MissingBackendError, match="plug-in 'palette-core-coreai'") as caught:
        palettizer.finalize()
    assert isinstance(caught.value, ImportError)
    assert not any(isinstance(site.palette, PackedWeight) for site in palette_sites(model))


def test_members_equal_their_names_and_former_ones_are_what_they_became() -> None:
    assert [str(member) for member in ExportBackend] == ["coreai", "coreml", "packed", "torch"]
    assert ExportBackend.CoreAI == "coreai"
    for name, now in (("MIL", "coreml"), ("MLIR", "coreai"), ("_TORCH", "torch")):
        with pytest.warns(DeprecationWarning, match=r"is ExportBackend\.\w+ now") as told:
            assert getattr(ExportBackend, name) == now
        with pytest.warns(DeprecationWarning, match="ExportBackend"):
            assert ExportBackend(name.lower()) is ExportBackend(now)
        assert len(told) == 1
    for wrong in ("mil", "Mil", "ONNX"):
        with pytest.raises(AttributeError, match="it has CoreAI, CoreML, Packed, Torch"):
            getattr(ExportBackend, wrong)
    with pytest.raises(ValueError, match="onnx"):
        ExportBackend("onnx")


@pytest.mark.parametrize("backend", ["torchh", "Torch", ""])
def test_an_unknown_backend_lists_what_there_is(backend: str) -> None:
    palettizer, _ = prepared_mlp()
    with pytest.raises(UnknownPluginError, match=r"torch"):
        palettizer.finalize(backend=backend)


@pytest.mark.parametrize("backend", [None, 3, nn.Linear])
def test_what_names_no_backend(backend: object) -> None:
    palettizer, _ = prepared_mlp()
    with pytest.raises(BackendError, match="backend must be an ExportBackend or the name"):
        palettizer.finalize(backend=backend)  # type: ignore[arg-type]


def test_export_finalizes_and_writes(tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    path = palettizer.export(tmp_path / "model.safetensors", backend="packed")
    assert path == tmp_path / "model.safetensors"
    assert all(isinstance(site.palette, PackedWeight) for site in palette_sites(model))
    torch.testing.assert_close(load_checkpoint(path, mlp())(*MLP_INPUTS), expected)
    again = palettizer.export(tmp_path / "again.safetensors", backend="packed")
    assert again.read_bytes() == path.read_bytes()
