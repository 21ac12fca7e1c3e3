"""Saved packages: what they hold, how large they are, what they are called, how they are put."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_cases import INT8, UINT8, CrossAttention, SelfAttention, palette
from torch import Tensor, nn

from coreml_backend import read_weights
from coreml_backend.backend import CoreMLBackend
from coreml_backend.constants import fold_scale
from coreml_backend.reading import constant_expressions, open_package
from coreml_backend_hooks import CoreMLOptions
from palette_core import PerGroupedChannelGranularity
from palette_core.errors import BackendError
from palette_core.layout import BlockLayout
from palette_core.packed_weight import PackedWeight, install_packed, palette_modules
from palette_core.palettized import PalettizedTensor
from palette_core.spec import PalettizationSpec

EXACT = CoreMLOptions(compute_precision="float32")
IOS26 = CoreMLOptions(compute_precision="float32", deployment_target="iOS26")
FOUR = PalettizationSpec(n_bits=4)


def pack(
    model: nn.Module, specs: dict[str | tuple[str, ...], PalettizationSpec], seed: int = 0
) -> nn.Module:
    """Put made-up palettes in the place of weights; several names are one tied weight."""
    model.eval()
    for i, (names, spec) in enumerate(specs.items()):
        places: Sequence[str] = (names,) if isinstance(names, str) else names
        prefix, _, state = places[0].rpartition(".")
        module = model.get_submodule(prefix)
        weight = getattr(module, state)
        axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
        block = spec.granularity.block_shape(tuple(weight.shape), axis)
        layout = BlockLayout(tuple(weight.shape), block, spec.cluster_dim, axis)
        made = palette(layout, spec, axis, seed=seed + i, dtype=weight.dtype)
        install_packed(model, places, PackedWeight(made))
    return model


def export(
    model: nn.Module, inputs: Any, path: Path, options: CoreMLOptions = EXACT, **more: Any
) -> Path:
    return CoreMLBackend(options).export(model, inputs, path, **more)


def palettes(model: nn.Module) -> dict[str, PalettizedTensor]:
    return {name: item.palettized() for name, _, _, item in palette_modules(model)}


def operations(path: Path) -> Counter[str]:
    ops = constant_expressions(open_package(path), roots=False)
    return Counter(op.op_type for op in ops)


def weight_file(path: Path) -> Path:
    return path / "Data/com.apple.CoreML/weights/weight.bin"


def assert_equal(path: Path, model: nn.Module) -> None:
    weights = read_weights(path)
    expected = palettes(model)
    assert set(weights) == set(expected)
    for name, made in expected.items():
        assert np.array_equal(weights[name], made.decode().numpy()), name


# --- sizes and operations -----------------------------------------------------------------------

GROUPS = PerGroupedChannelGranularity(axis=0, group_size=64)
SIZED = {
    "0": PalettizationSpec(n_bits=1),
    "1": PalettizationSpec(n_bits=2, cluster_dim=2),
    "2": PalettizationSpec(n_bits=3),
    "3": PalettizationSpec(n_bits=4, granularity=GROUPS),
    "4": PalettizationSpec(n_bits=6, lut_qspec=INT8),
    "5": PalettizationSpec(n_bits=8, lut_qspec=UINT8, granularity=GROUPS, cluster_dim=4),
    "6": PalettizationSpec(n_bits=2, enable_per_channel_scale=True),
    "7": PalettizationSpec(n_bits=4, enable_per_channel_scale=True, cluster_dim=2),
}


def sized() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in SIZED))


def ideal_bytes(model: nn.Module, *, folded: bool) -> float:
    """Bits of indices, tables and scales; before iOS 26 each channel's scale is in a table."""
    made = palettes(model).values()
    return (
        sum((fold_scale(p) if folded and p.scale is not None else p).size_in_bits() for p in made)
        / 8
    )


@pytest.mark.parametrize("options", [EXACT, IOS26], ids=lambda o: o.deployment_target)
def test_files_are_within_3_percent_of_the_ideal(tmp_path, options) -> None:
    model = pack(sized(), {f"{name}.weight": spec for name, spec in SIZED.items()})
    path = export(model, (torch.zeros(1, 512),), tmp_path / "m.mlpackage", options)
    assert_equal(path, model)
    ideal = ideal_bytes(model, folded=options is EXACT)
    assert ideal <= weight_file(path).stat().st_size <= 1.03 * ideal
    assert operations(path)["constexpr_lut_to_dense"] == len(SIZED)


def test_the_size_check_notices_dense_weights(tmp_path) -> None:
    dense = export(sized().eval(), (torch.zeros(1, 512),), tmp_path / "m.mlpackage")
    model = pack(sized(), {f"{name}.weight": spec for name, spec in SIZED.items()})
    assert weight_file(dense).stat().st_size > 2 * ideal_bytes(model, folded=True)
    assert operations(dense) == {}
    assert read_weights(dense) == {}


def test_float16_rounds_tables_and_says_so(tmp_path) -> None:
    model = pack(nn.Sequential(nn.Linear(64, 64)), {"0.weight": FOUR})
    path = export(model, (torch.zeros(1, 64),), tmp_path / "m.mlpackage", CoreMLOptions())
    weight = read_weights(path)["0.weight"]
    expected = palettes(model)["0.weight"].decode().numpy()
    assert weight.dtype == np.float16
    assert not np.array_equal(weight, expected)
    np.testing.assert_allclose(weight, expected, rtol=2**-11)
    assert "0.05 %" in CoreMLOptions.model_fields["compute_precision"].description


@pytest.mark.parametrize("options", [EXACT, IOS26, CoreMLOptions()], ids=str)
def test_half_precision_models_are_exact(tmp_path, options) -> None:
    scaled = PalettizationSpec(n_bits=2, enable_per_channel_scale=True, cluster_dim=2)
    model = pack(
        nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).half(),
        {"0.weight": FOUR, "1.weight": scaled},
    )
    path = export(model, (torch.zeros(1, 64).half(),), tmp_path / "m.mlpackage", options)
    assert_equal(path, model)


# --- shared weights -----------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


TOKENS = (torch.arange(6).reshape(2, 3),)


@pytest.mark.parametrize("spec", [FOUR, PalettizationSpec(n_bits=3, lut_qspec=INT8, cluster_dim=2)])
def test_tied_weights_are_stored_once(tmp_path, spec) -> None:
    model = pack(Tied(), {("embed.weight", "head.weight"): spec})
    path = export(model, TOKENS, tmp_path / "m.mlpackage")
    weights = read_weights(path)
    assert set(weights) == {"embed.weight"}
    assert np.array_equal(weights["embed.weight"], palettes(model)["embed.weight"].decode())
    assert operations(path)["constexpr_lut_to_dense"] == 1


class Alike(nn.Module):
    """Layers whose tables differ in the last bit only."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "spec", [PalettizationSpec(n_bits=1, lut_qspec=INT8), FOUR, PalettizationSpec(n_bits=8)]
)
@pytest.mark.parametrize("options", [EXACT, IOS26], ids=lambda o: o.deployment_target)
def test_tables_that_nearly_agree_are_kept_apart(tmp_path, spec, options) -> None:
    """coremltools' const_deduplication alone takes them for one."""
    layout = BlockLayout((32, 32), (32, 32))
    made = palette(layout, spec, 0)
    model = Alike().eval()
    for i in range(3):
        factor = 1 + i * 2.0**-23
        near = copy.copy(made)
        if made.lut_scale is None:
            object.__setattr__(
                near, "lut", (made.lut * 1e-13 if spec.n_bits == 8 else made.lut) * factor
            )
        else:
            object.__setattr__(near, "lut_scale", made.lut_scale * factor)
        install_packed(model, [f"parts.{i}.weight"], PackedWeight(near))
    path = export(model, (torch.zeros(1, 32),), tmp_path / "m.mlpackage", options)
    assert_equal(path, model)
    decoded = list(read_weights(path).values())
    assert not np.array_equal(decoded[0], decoded[2])


class Attentive(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


def test_attention_splits_its_packed_weight_while_it_is_palettized(tmp_path) -> None:
    name = "attention.in_proj_weight"
    x = (torch.randn(3, 2, 32),)
    for spec in (
        PalettizationSpec(n_bits=3),
        PalettizationSpec(n_bits=2, cluster_dim=4, lut_qspec=UINT8),
        PalettizationSpec(n_bits=2, granularity=PerGroupedChannelGranularity(axis=0, group_size=8)),
        PalettizationSpec(n_bits=1, enable_per_channel_scale=True),
    ):
        model = pack(Attentive(CrossAttention(32, 4)), {name: spec})
        path = export(model, x, tmp_path / "m.mlpackage")
        whole = palettes(model)[name].decode().numpy()
        weights = read_weights(path)
        assert set(weights) == {f"{name}[{at}:{at + 32}]" for at in (0, 32, 64)}
        for at in (0, 32, 64):
            assert np.array_equal(weights[f"{name}[{at}:{at + 32}]"], whole[at : at + 32])
        kinds = Counter(op.op_type for op in program_of(path))
        assert kinds["split"] == kinds["matmul_of_weight"] == 0
        assert kinds["linear"] == 4


def test_groups_that_a_split_would_cut_stay_whole(tmp_path) -> None:
    """96 rows in groups of 48 do not split into thirds: the weight is stored, and split after."""
    name = "attention.in_proj_weight"
    spec = PalettizationSpec(
        n_bits=2, granularity=PerGroupedChannelGranularity(axis=0, group_size=48)
    )
    model = pack(Attentive(CrossAttention(32, 4)), {name: spec})
    path = export(model, (torch.randn(3, 2, 32),), tmp_path / "m.mlpackage")
    assert_equal(path, model)


def test_attention_of_a_layer_to_itself_keeps_it_whole(tmp_path) -> None:
    model = pack(Attentive(SelfAttention(32, 4)), {"attention.in_proj_weight": FOUR})
    path = export(model, (torch.randn(3, 2, 32),), tmp_path / "m.mlpackage")
    assert_equal(path, model)


def program_of(path: Path) -> list[Any]:
    from coremltools.converters.mil.frontend.milproto.load import load

    package = open_package(path)
    spec = package.get_spec()
    program = load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=package.weights_dir
    )
    return list(program.functions["main"].operations)


# --- names --------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Parameter(torch.zeros(8, 8))
        names = [
            "lut",
            "indices",
            "convolution",
            "linear",
            "ünï",
            "ünĩ",
            "weight",
            "0",
            "形",
            "a_b",
            "constexpr",
            "main",
        ]
        self.parts = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
        self.a = nn.ModuleDict({"b": nn.Linear(8, 8)})
        self.lut_to_dense = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = torch.tanh(part(x))
        x = self.a["b"](x) @ self.linear_1
        return self.lut_to_dense(x.mT).mT


def test_names_of_every_kind(tmp_path) -> None:
    model = Named()
    names = [f"parts.{name}.weight" for name in model.parts]
    names += ["linear_1", "a.b.weight", "lut_to_dense.weight"]
    model = pack(model, dict.fromkeys(names, PalettizationSpec(n_bits=2)))
    path = export(model, (torch.zeros(1, 2, 8),), tmp_path / "m.mlpackage")
    assert_equal(path, model)


def test_200_layers(tmp_path) -> None:
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(200)))
    model = pack(deep, {f"{i}.weight": PalettizationSpec(n_bits=1) for i in range(200)})
    path = export(model, (torch.zeros(1, 4),), tmp_path / "m.mlpackage")
    assert_equal(path, model)


# --- negative controls of reading ---------------------------------------------------------------


def test_every_part_of_the_file_is_looked_at(tmp_path) -> None:
    spec = PalettizationSpec(
        n_bits=8, lut_qspec=INT8, granularity=PerGroupedChannelGranularity(axis=0, group_size=2)
    )
    model = pack(nn.Sequential(nn.Linear(32, 32)), {"0.weight": spec})
    path = export(model, (torch.zeros(1, 32),), tmp_path / "m.mlpackage")
    made = palettes(model)["0.weight"]
    content = weight_file(path).read_bytes()
    for part in (made.indices, made.lut, made.lut_scale):
        at = content.index(part.numpy().tobytes())
        broken = Path(shutil.copytree(path, tmp_path / "broken.mlpackage"))
        changed = bytearray(content)
        changed[at + 2] ^= 1
        weight_file(broken).write_bytes(changed)
        with pytest.raises(AssertionError):
            assert_equal(broken, model)
        shutil.rmtree(broken)


def test_what_is_no_package(tmp_path) -> None:
    with pytest.raises(
        BackendError, match=r"nothing\.mlpackage cannot be read as a Core ML package"
    ):
        read_weights(tmp_path / "nothing.mlpackage")
