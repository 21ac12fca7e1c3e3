"""Models that accelerate spreads or offloads, and adapters that peft adds, as the libraries do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer, allocate, load_checkpoint
from palette_core.errors import PaletteWarning, TracingError

pytestmark = pytest.mark.slow  # the libraries take seconds to import
X = torch.linspace(-1, 1, 64).reshape(2, 32)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


def on_one_device(dense: nn.Module, folder: Path) -> nn.Module:
    dispatch = pytest.importorskip("accelerate").dispatch_model
    hooked: nn.Module = dispatch(dense, {"0": "cpu", "1": "cpu"}, force_hooks=True)
    return hooked


def in_memory(dense: nn.Module, folder: Path) -> nn.Module:
    pytest.importorskip("accelerate").cpu_offload(dense, "cpu")
    return dense


def on_disk(dense: nn.Module, folder: Path) -> nn.Module:
    pytest.importorskip("accelerate").disk_offload(dense, str(folder), execution_device="cpu")
    return dense


def in_part(dense: nn.Module, folder: Path) -> nn.Module:
    device_map = {"0": "cpu", "1": "disk"}
    dispatch = pytest.importorskip("accelerate").dispatch_model
    hooked: nn.Module = dispatch(dense, device_map, main_device="cpu", offload_dir=str(folder))
    return hooked


def test_a_model_with_hooks_is_prepared_where_it_is(tmp_path: Path) -> None:
    spread, plain = on_one_device(model(), tmp_path), model()
    assert hasattr(spread[0], "_hf_hook")
    for one in (spread, plain):
        palettizer = KMeansPalettizer(one)
        palettizer.calibrate([X], sequential=True)
        palettizer.prepare(X)
        path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert torch.equal(spread(X), plain(X))
    assert torch.equal(load_checkpoint(path, on_one_device(model(), tmp_path))(X), plain(X))


@pytest.mark.parametrize("offload", [in_memory, on_disk, in_part])
def test_an_offloaded_model_is_refused_by_name_before_any_work(
    offload: Callable[[nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    spread = offload(model(), tmp_path)
    first = "1" if offload is in_part else "0"
    for call in (
        lambda: KMeansPalettizer(spread).prepare(X),
        lambda: KMeansPalettizer(spread).make_plan(X),
        lambda: KMeansPalettizer(spread).calibrate([X]),
        lambda: KMeansPalettizer(spread).calibrate([X], sequential=True),
        lambda: allocate(spread, None, X, target_bpw=4),
    ):
        with pytest.raises(TracingError, match=rf"^{first}\.up\.weight and .* on the meta"):
            call()
    assert torch.equal(spread(X), model()(X))


def with_adapters() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["up"], init_lora_weights=False)
    made: nn.Module = peft.get_peft_model(model(), config).eval()
    return made


def test_adapters_of_peft_stay_dense_with_a_note_and_train(tmp_path: Path) -> None:
    adapted = with_adapters()
    palettizer = KMeansPalettizer(adapted)
    with pytest.warns(PaletteWarning, match=r"adapters stay dense: .*lora_A.* and 3 more"):
        palettizer.prepare(X)
    names = [tensor.name for tensor in palettizer.plan]
    assert len(names) == 4
    assert not any("lora" in name for name in names)
    adapted.train()
    adapted(X).square().mean().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora" in name for name in trained)
    wanted = adapted.eval()(X)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert torch.equal(load_checkpoint(path, with_adapters())(X), wanted)


def test_adapters_that_are_merged_first_are_palettized_with_the_base(tmp_path: Path) -> None:
    merged = with_adapters().merge_and_unload()
    palettizer = KMeansPalettizer(merged)
    palettizer.prepare(X)
    assert len(palettizer.plan) == 4
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert torch.equal(load_checkpoint(path, model())(X), merged(X))
