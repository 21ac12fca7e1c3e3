"""coreai-opt's quantizer and its casts on models that are finalized for Core AI or Core ML."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import palette_core as pc
from palette_core.storage import palette_sites

X = torch.linspace(-1, 1, 256).reshape(4, 64)


def finalized(backend: str = "coreai", **spec: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-2, 1, 64)[:, None])
    config = pc.KMeansPalettizerConfig(
        global_config=pc.ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": pc.PalettizationSpec(n_bits=4, **spec)}
        )
    )
    palettizer = pc.KMeansPalettizer(model, config)
    palettizer.prepare((X,))
    made: nn.Module = palettizer.finalize(backend=backend)
    return made


@pytest.mark.peer
@pytest.mark.parametrize("spec", [{}, {"enable_per_channel_scale": True}], ids=str)
def test_activations_are_quantized_and_palettized_weights_are_not(spec: dict[str, object]) -> None:
    pytest.importorskip("coreai_torch")
    pytest.importorskip("coreai_backend")
    from coreai_opt.quantization import ModuleQuantizerConfig, Quantizer, QuantizerConfig

    model = finalized(**spec)
    config = QuantizerConfig(global_config=ModuleQuantizerConfig(op_state_spec=None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = Quantizer(model, config).prepare((X,)).graph
    weights = [node for node in graph.nodes if "lut_to_dense" in str(node.target)]
    assert len(weights) == 2
    for node in weights:
        assert [str(user.target) for user in node.users] == ["aten.linear.default"]
    assert any("activation_post_process" in node.name for node in graph.nodes)


@pytest.mark.peer
@pytest.mark.parametrize("spec", [{}, {"enable_per_channel_scale": True}], ids=str)
def test_a_model_of_both_is_written_with_the_palettes_as_they_were(
    spec: dict[str, object], tmp_path: Path
) -> None:
    """Rounding weights of uneven rows a second time leaves 14 dB; what activations lose, 35."""
    coreai_torch = pytest.importorskip("coreai_torch")
    coreai_backend = pytest.importorskip("coreai_backend")
    from coreai_opt import ExportBackend
    from coreai_opt.quantization import ModuleQuantizerConfig, Quantizer, QuantizerConfig

    model = finalized(**spec)
    wanted = model(X).detach()
    palettes = {site.name: site.palette.palettized().decode() for site in palette_sites(model)}
    quantizer = Quantizer(
        model, QuantizerConfig(global_config=ModuleQuantizerConfig(op_state_spec=None))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantizer.prepare((X,))
        with quantizer.calibration_mode():
            prepared(X)
        made = quantizer.finalize(backend=ExportBackend.CoreAI)
        program = torch.export.export(made, (X,))
        program = program.run_decompositions(coreai_torch.get_decomp_table())
    lost = (made(X).detach() - wanted).square().sum() / wanted.square().sum()
    assert float(lost) < 10**-3
    asset = coreai_torch.TorchConverter().add_exported_program(program).to_coreai()
    asset.save_asset(tmp_path / "both.aimodel")
    read = coreai_backend.read_weights(tmp_path / "both.aimodel")
    assert {name: torch.equal(torch.from_numpy(read[name]), w) for name, w in palettes.items()} == {
        "0.weight": True,
        "2.weight": True,
    }


@pytest.mark.peer
@pytest.mark.parametrize("spec", [{}, {"enable_per_channel_scale": True}], ids=str)
@pytest.mark.parametrize("mode", ["graph", "eager"])
@pytest.mark.parametrize("backend", ["coreai", "coreml"])
def test_activations_of_8_bits_go_beside_weights_of_4(
    backend: str, mode: str, spec: dict[str, object], tmp_path: Path
) -> None:
    """Both quantizers, both files: only the first input of a layer is rounded, not its weight."""
    reader = pytest.importorskip(f"{backend}_backend")
    from coreai_opt import ExportBackend
    from coreai_opt.quantization import ModuleQuantizerConfig, Quantizer, QuantizerConfig
    from coreai_opt.quantization.spec import default_activation_quantization_spec

    model = finalized(backend, **spec)
    wanted = model(X).detach()
    palettes = {site.name: site.palette.palettized().decode() for site in palette_sites(model)}
    of_layers = ModuleQuantizerConfig(
        op_state_spec=None, op_input_spec={0: default_activation_quantization_spec()}
    )
    quantizer = Quantizer(model, QuantizerConfig(global_config=of_layers, execution_mode=mode))
    target = {"coreai": ExportBackend.CoreAI, "coreml": ExportBackend.CoreML}[backend]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantizer.prepare((X,))
        with quantizer.calibration_mode():
            prepared(X)
        made = quantizer.finalize(backend=target)
        lost = (made(X).detach() - wanted).square().sum() / wanted.square().sum()
        assert float(lost) < 10**-3
        options = {} if backend == "coreai" else {"deployment_target": "iOS26"}
        path = pc.KMeansPalettizer(model).export(
            tmp_path / ("m.aimodel" if backend == "coreai" else "m.mlpackage"),
            (X,), model=made, backend=backend, backend_options=options,
        )  # fmt: skip
    read = reader.read_weights(path)
    assert {name: agree(read[name], weight) for name, weight in palettes.items()} == {
        "0.weight": True,
        "2.weight": True,
    }


def agree(stored: object, weight: torch.Tensor) -> bool:
    """Return whether a file's weight is the palette's, in float16 where that is the file's."""
    read = torch.from_numpy(stored)
    return torch.allclose(read.float(), weight, rtol=2**-9 if read.dtype is torch.float16 else 0)


@pytest.mark.peer
def test_casts_to_16_bits_take_a_finalized_model() -> None:
    coreai_torch = pytest.importorskip("coreai_torch")
    pytest.importorskip("coreai_backend")
    from coreai_opt.casting import cast_to_16_bit_precision

    model = finalized()
    program = torch.export.export(model, (X,)).run_decompositions(coreai_torch.get_decomp_table())
    program = cast_to_16_bit_precision(program)
    got = program.module()(X.half()).float()
    assert torch.allclose(got, model(X), atol=0.02, rtol=0.02)
    coreai_torch.TorchConverter().add_exported_program(program).to_coreai()
