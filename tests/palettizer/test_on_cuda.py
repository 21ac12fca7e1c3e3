"""The same on a CUDA device."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from palettizer_models import (
    E4M3,
    EVERYTHING_INPUTS,
    MLP_INPUTS,
    UINT8,
    Everything,
    decoded_weights,
    everything_config,
    everything_prepared,
    mlp,
    weight_config,
)

from palette_core import KMeansPalettizer, load_checkpoint, save_checkpoint
from palette_core.storage.sites import palette_sites

pytestmark = pytest.mark.cuda
INPUTS = (EVERYTHING_INPUTS[0].cuda(),) if torch.cuda.is_available() else ()
SPECS = [
    {},
    {"lut_qspec": UINT8, "enable_per_channel_scale": True},
    {"lut_qspec": E4M3},
    {"cluster_dim": 2, "fast": False},
]
specs = pytest.mark.parametrize("spec", SPECS)


@specs
def test_preparing_there_computes_with_the_decoded_weights(spec: dict[str, object]) -> None:
    model = Everything().eval().cuda()
    KMeansPalettizer(model, everything_config(**spec)).prepare(INPUTS)
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"cuda"}
    here = copy.deepcopy(model).cpu()
    torch.testing.assert_close(model(*INPUTS).cpu(), here(*EVERYTHING_INPUTS), rtol=1e-3, atol=1e-4)


def test_scalar_palettes_are_the_same_there_and_here() -> None:
    here = KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS)
    there = KMeansPalettizer(mlp().cuda(), weight_config()).prepare((MLP_INPUTS[0].cuda(),))
    for name, weight in decoded_weights(there).items():
        assert torch.equal(weight.cpu(), decoded_weights(here)[name])


@specs
def test_moving_finalizing_and_loading(spec: dict[str, object], tmp_path: Path) -> None:
    palettizer, model = everything_prepared(**spec)
    expected = model(*EVERYTHING_INPUTS)
    model.cuda()
    torch.testing.assert_close(model(*INPUTS).cpu(), expected, rtol=1e-3, atol=1e-4)
    final = palettizer.finalize(backend="packed")
    assert {t.device.type for t in [*final.parameters(), *final.buffers()]} == {"cuda"}
    torch.testing.assert_close(final(*INPUTS).cpu(), expected, rtol=1e-3, atol=1e-4)
    path = save_checkpoint(final, tmp_path / "c")
    loaded = load_checkpoint(path, Everything().eval().cuda())
    assert all(site.palette.indices.is_cuda for site in palette_sites(loaded))
    torch.testing.assert_close(loaded(*INPUTS), final(*INPUTS), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("untouched_rng")
@pytest.mark.parametrize("spec", [{}, {"cluster_dim": 2, "fast": False}])
def test_the_devices_random_state_is_not_moved(spec: dict[str, object]) -> None:
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 8, 8, device="cuda")
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 64).sin().reshape(8, 8))
    model = torch.nn.Sequential(layer, torch.nn.Dropout()).train()
    KMeansPalettizer(model, weight_config(**spec)).prepare((torch.zeros(1, 8).cuda(),))


def test_training_there() -> None:
    model = Everything().train().cuda()
    KMeansPalettizer(model, everything_config()).prepare(INPUTS)
    model(*INPUTS).square().sum().backward()
    assert model.head.bias.grad is not None
    assert all(
        p.grad is None for name, p in model.named_parameters() if name.endswith("weight.original")
    )


@pytest.mark.parametrize("offload", [False, True])
def test_calibrating_there_measures_the_same_as_here(offload: bool) -> None:
    found = []
    for device in ("cpu", "cuda"):
        # In evaluation mode, in which cuDNN does not differentiate recurrent layers by itself.
        model = Everything().eval().to(device)
        palettizer = KMeansPalettizer(model, everything_config())
        x = EVERYTHING_INPUTS[0].to(device)
        palettizer.prepare((x,))
        with palettizer.calibration_mode(
            loss_fn=lambda o, _: o.square().sum(), offload=offload
        ) as calibration:
            calibration.step(model(x), None)
            calibration.step(model(-x), None)
        assert not model.lstm.training
        found.append({s.name: s.palette.sensitivity.values for s in palette_sites(model)})
    for name, here in found[0].items():
        assert found[1][name].device.type == "cpu"
        torch.testing.assert_close(found[1][name], here, rtol=2e-2, atol=1e-3)
