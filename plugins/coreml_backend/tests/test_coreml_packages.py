"""Saved packages: what they hold, how large they are, what they are called, how they are put."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from coreml_cases import INT8, UINT8, CrossAttention, SelfAttention, palette
from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
from torch import Tensor, nn

from coreml_backend import read_weights, reading
from coreml_backend.backend import CoreMLBackend
from coreml_backend.folding import fold_scale
from coreml_backend.reading import constant_expressions, open_package
from coreml_backend_hooks import CoreMLOptions
from palette_core import PerGroupedChannelGranularity
from palette_core.errors import BackendError
from palette_core.plugins import PalettizationSpec
from palette_core.storage import PackedWeight, install_packed, palette_sites
from palette_core.tensors import BlockLayout, PalettizedTensor

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
    return {name: site.palette.palettized() for site in palette_sites(model) for name in site.names}


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


@pytest.mark.parametrize("options", [EXACT, IOS26], ids=lambda o: o.deployment_target)
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


class Tied2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.again = nn.Linear(64, 64), nn.Linear(64, 64)
        self.again.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.up(x))


TOKENS = (torch.arange(6).reshape(2, 3),)


def test_tied_weights_are_stored_once(tmp_path) -> None:
    model = nn.Sequential(Tied(), nn.Softmax(-1), nn.Linear(64, 64), Tied2())
    model = pack(
        model,
        {
            ("0.embed.weight", "0.head.weight"): FOUR,
            ("3.up.weight", "3.again.weight"): PalettizationSpec(
                n_bits=3, lut_qspec=INT8, cluster_dim=2
            ),
        },
    )
    path = export(model, TOKENS, tmp_path / "m.mlpackage")
    weights = read_weights(path)
    assert set(weights) == {"0.embed.weight", "3.up.weight"}
    for name, weight in weights.items():
        assert np.array_equal(weight, palettes(model)[name].decode())
    assert operations(path)["constexpr_lut_to_dense"] == 2


NEARLY = (PalettizationSpec(n_bits=1, lut_qspec=INT8), FOUR, PalettizationSpec(n_bits=8))


@pytest.mark.parametrize("options", [EXACT, IOS26], ids=lambda o: o.deployment_target)
def test_tables_that_nearly_agree_are_kept_apart(tmp_path, options) -> None:
    """coremltools' const_deduplication alone takes some of them for one."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3 * len(NEARLY)))).eval()
    for i in range(3 * len(NEARLY)):
        spec = NEARLY[i % 3]
        near = palette(BlockLayout((32, 32), (32, 32)), spec, 0)
        factor = 1 + i // 3 * 2.0**-23  # the last bit
        if near.lut_scale is not None:
            near = replace(near, lut_scale=near.lut_scale * factor)
        else:
            # Large tables are compared by coremltools with an absolute tolerance of 1e-12.
            near = replace(near, lut=near.lut * factor * (1e-13 if spec.n_bits == 8 else 1))
        install_packed(model, [f"{i}.weight"], PackedWeight(near))
    path = export(model, (torch.zeros(1, 32),), tmp_path / "m.mlpackage", options)
    assert_equal(path, model)
    decoded = read_weights(path)
    for i in range(3):
        assert not np.array_equal(decoded[f"{i}.weight"], decoded[f"{i + 6}.weight"])


class Attentive(nn.Module):
    """Cross attention by several specs, then attention of a layer to itself."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.cross = nn.ModuleList(CrossAttention(32, 4) for _ in range(count))
        self.own = SelfAttention(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for attention in self.cross:
            x = attention(x)
        return self.own(x)


SPLIT = (
    PalettizationSpec(n_bits=3),
    PalettizationSpec(n_bits=2, cluster_dim=4, lut_qspec=UINT8),
    PalettizationSpec(n_bits=2, granularity=PerGroupedChannelGranularity(axis=0, group_size=8)),
    PalettizationSpec(n_bits=1, enable_per_channel_scale=True),
)
# 96 rows in groups of 48 do not split into thirds.
UNSPLIT = PalettizationSpec(
    n_bits=2, granularity=PerGroupedChannelGranularity(axis=0, group_size=48)
)


def test_attention_splits_its_packed_weight_while_it_is_palettized(tmp_path) -> None:
    specs = dict(
        zip((f"cross.{i}.in_proj_weight" for i in range(5)), (*SPLIT, UNSPLIT), strict=True)
    )
    model = pack(Attentive(5), {**specs, "own.in_proj_weight": FOUR})
    path = export(model, (torch.randn(3, 2, 32),), tmp_path / "m.mlpackage")
    weights, whole = read_weights(path), palettes(model)
    for name in ("cross.4.in_proj_weight", "own.in_proj_weight"):
        assert np.array_equal(weights.pop(name), whole[name].decode())
    thirds = [(at, at + 32) for at in (0, 32, 64)]
    assert set(weights) == {f"{name}[{a}:{b}]" for name in list(specs)[:4] for a, b in thirds}
    for name in list(specs)[:4]:
        for a, b in thirds:
            assert np.array_equal(weights[f"{name}[{a}:{b}]"], whole[name].decode()[a:b])
    kinds = Counter(op.op_type for op in program_of(path))
    assert kinds["constexpr_lut_to_dense"] == 4 * 3 + 2
    # Three projections and an output each; self-attention projects once. Where the weight is
    # split while the model runs, its parts are no constants, and are multiplied as matrices.
    assert kinds["linear"] == 4 * 4 + 1 + 2


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(64, 32), nn.Embedding(16, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rows.weight[4:20] + self.columns.weight[:, -32:]


def test_of_a_weight_that_is_sliced_only_the_slice_is_stored(tmp_path) -> None:
    spec = PalettizationSpec(n_bits=2, cluster_dim=4)
    model = pack(Positions(), {"rows.weight": spec, "columns.weight": FOUR})
    path = export(model, (torch.zeros(16, 32),), tmp_path / "m.mlpackage")
    weights, whole = read_weights(path), palettes(model)
    assert set(weights) == {"rows.weight[4:20]", "columns.weight[:, 32:64]"}
    assert np.array_equal(weights["rows.weight[4:20]"], whole["rows.weight"].decode()[4:20])
    columns = whole["columns.weight"].decode()
    assert np.array_equal(weights["columns.weight[:, 32:64]"], columns[:, 32:])


def program_of(path: Path) -> list[Any]:
    package = open_package(path)
    spec = package.get_spec()
    program = load_milproto(
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


# --- negative controls of reading ---------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
def test_every_part_of_the_file_is_looked_at(dim, tmp_path) -> None:
    groups = PerGroupedChannelGranularity(axis=0, group_size=2)
    spec = PalettizationSpec(n_bits=8, cluster_dim=dim, lut_qspec=INT8, granularity=groups)
    model = pack(nn.Sequential(nn.Linear(512, 32)), {"0.weight": spec})
    path = export(model, (torch.zeros(1, 512),), tmp_path / "m.mlpackage")
    made = palettes(model)["0.weight"]
    assert made.lut_scale is not None
    content = weight_file(path).read_bytes()
    picked = made.picked_entries()  # in the place of indices and tables
    looked_up = (made.indices, made.lut) if picked is None else (picked,)
    assert (picked is None) == (dim == 2)
    for part in (*looked_up, made.lut_scale):
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


@pytest.mark.parametrize("names", ["[" * 100_000, "[1]", "3", "{"])
def test_metadata_that_are_none_of_ours_are_refused(monkeypatch, names):
    model = SimpleNamespace(user_defined_metadata={reading.METADATA_KEY: names})
    monkeypatch.setattr(reading, "open_package", lambda path: model)
    with pytest.raises(BackendError, match="metadata is damaged"):
        reading.read_weights("m.mlpackage")


# --- 8 bits without a table ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [EXACT, IOS26], ids=["iOS18", "iOS26"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("table", [INT8, UINT8], ids=["int8", "uint8"])
def test_8_bit_scalars_with_8_bit_tables_have_none(options, grouped, table, tmp_path):
    granularity = {"granularity": PerGroupedChannelGranularity(axis=0, group_size=8)}
    spec = PalettizationSpec(n_bits=8, lut_qspec=table, **(granularity if grouped else {}))
    model = pack(nn.Sequential(nn.Linear(64, 32)), {"0.weight": spec})
    path = export(model, (torch.zeros(1, 64),), tmp_path / "m.mlpackage", options)
    kinds = [op.op_type for op in constant_expressions(open_package(path), roots=False)]
    assert kinds == ["constexpr_blockwise_shift_scale"]
    wanted = palettes(model)["0.weight"].decode().numpy()
    assert np.array_equal(read_weights(path)["0.weight"], wanted)
    # Of a half model the factor is one as well, which rounds all weights of a table alike.
    half = pack(nn.Sequential(nn.Linear(64, 32)).half(), {"0.weight": spec})
    x = torch.zeros(1, 64, dtype=torch.float16)
    rounding = options.model_copy(update={"compute_precision": "float16"})
    path = export(half, (x,), tmp_path / "half.mlpackage", rounding)
    kinds = [op.op_type for op in constant_expressions(open_package(path), roots=False)]
    assert kinds == ["constexpr_blockwise_shift_scale"]
    ratio = read_weights(path)["0.weight"] / palettes(half)["0.weight"].decode().double().numpy()
    assert np.abs(ratio[np.isfinite(ratio)] - 1).max() < 2**-9
