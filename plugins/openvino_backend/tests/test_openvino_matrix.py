"""Weights of every form: read back by numpy, and run."""

from __future__ import annotations

import itertools

import numpy as np
import openvino_matrix as matrix
import openvino_support as support
import pytest
import torch
from torch import Tensor, nn

from openvino_backend import read_weights
from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.errors import BackendError, PlanError
from palette_core.operations import installed_operations
from palette_core.planning.choose import lay_out

ONE_ROUNDING = 2.0**-22  # of two scales multiplied when the file is written


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_weights_are_exact(dtype, tmp_path):
    path, weights = matrix.write_weights(dtype, tmp_path)
    verdicts = matrix.judge_weights(path, weights)
    assert {case.name: text for case, text in verdicts.items() if text} == {}
    assert len(verdicts) > 150


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
@pytest.mark.parametrize("exact_scales", [False, True])
def test_weights_of_linear_layers_are_exact_but_for_merged_scales(dtype, exact_scales, tmp_path):
    path, weights = matrix.write_weights(
        dtype, tmp_path, ("Linear",), "product", exact_scales=exact_scales
    )
    tolerance = 0.0 if exact_scales else ONE_ROUNDING
    verdicts = matrix.judge_weights(path, weights, "product", tolerance)
    assert {case.name: text for case, text in verdicts.items() if text} == {}
    # Tables of integers with one scale for each row are in the file as they are.
    by_row = [
        case
        for case in weights
        if case.granularity in ("per tensor", "groups on axis 0")
        and case.spec.scale_block_size is None
    ]
    wanted = sum(weights[case].lut.numel() for case in by_row if case.lut in ("int8", "uint8"))
    assert wanted > 1000
    assert matrix.widths(path)["i8"] >= wanted


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_rows_of_embeddings_are_exact_and_never_decoded_whole(dtype, tmp_path):
    kinds = ("Linear", "Embedding")
    path, weights = matrix.write_weights(dtype, tmp_path, kinds, "rows")
    verdicts = matrix.judge_weights(path, weights, "rows")
    assert {case.name: text for case, text in verdicts.items() if text} == {}
    # Wherever a whole weight was decoded, an operation would give its shape.
    for layer in support.compiled(path).get_runtime_model().get_ops():
        shape = layer.get_output_partial_shape(0)
        kind = layer.get_output_element_type(0).get_type_name()
        assert str(shape) != "[16,8]" or kind in ("u8", "u4", "u2", "i32"), (layer, kind)


def test_indices_keep_their_width(tmp_path):
    path, weights = matrix.write_weights(torch.float32, tmp_path, ("Linear",))
    held = matrix.widths(path)
    for bits in matrix.BITS:
        wanted = sum(w.indices.numel() for c, w in weights.items() if c.spec.n_bits == bits)
        tables = sum(w.lut.numel() for w in weights.values() if w.lut.dtype is torch.uint8)
        assert wanted <= held[f"u{bits}"] <= wanted + tables * (bits == 8)


@pytest.mark.parametrize("n_bits", [1, 3, 4, 6])
def test_one_flipped_bit_is_seen_by_both_judges(n_bits, tmp_path):
    path, weights = matrix.write_weights(torch.float32, tmp_path, ("Conv2d",))
    case = next(case for case in weights if case.spec.n_bits == n_bits)
    data = bytearray(path.with_suffix(".bin").read_bytes())
    data[_place_of_indices(path, case.name)] ^= 8
    path.with_suffix(".bin").write_bytes(bytes(data))
    wrong = {c.name: text for c, text in matrix.judge_weights(path, weights).items() if text}
    assert wrong == {case.name: "reads back otherwise, the runtime decodes it otherwise"}


def _place_of_indices(path, name):
    """Return where the indices of a weight begin in the .bin: they come first of its layers."""
    import xml.etree.ElementTree as ElementTree

    root = ElementTree.parse(path).getroot()
    into = {e.attrib["to-layer"]: [] for e in root.iter("edge")}
    for edge in root.iter("edge"):
        into[edge.attrib["to-layer"]].append(edge.attrib["from-layer"])
    layers = {layer.attrib["id"]: layer for layer in root.iter("layer")}
    waiting = [i for i, layer in layers.items() if layer.attrib["name"] == f"palette_core/{name}"]
    while waiting:
        layer = layers[waiting.pop()]
        data = layer.find("data")
        if data is not None and data.attrib.get("element_type") in ("u1", "u2", "u3", "u4", "u6"):
            return int(data.attrib["offset"])
        waiting += into.get(layer.attrib["id"], [])
    raise AssertionError(name)


# --- whole layers -------------------------------------------------------------------------------


class Layers(nn.Module):
    """Many layers beside each other, each reading what its kind reads."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        self.layers = nn.ModuleList(matrix.KINDS[kind].make() for kind in kinds)

    def forward(
        self, rows: Tensor, line: Tensor, image: Tensor, cube: Tensor, tokens: Tensor, steps: Tensor
    ) -> tuple[Tensor, ...]:
        names = ("rows", "line", "image", "cube", "tokens", "steps")
        given = dict(zip(names, (rows, line, image, cube, tokens, steps), strict=True))
        return tuple(
            layer(given[matrix.KINDS[kind].input])
            for kind, layer in zip(self.kinds, self.layers, strict=True)
        )


def layer_inputs() -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    shapes = ((2, 8), (1, 8, 6), (1, 8, 5, 5), (1, 8, 3, 3, 3), (1, 3), (1, 3, 8))
    inputs = [torch.randn(shape, generator=random) for shape in shapes]
    inputs[4] = torch.tensor([[1, 15, 4]])
    return tuple(inputs)


def layer_specs() -> list[tuple[str, PalettizationSpec]]:
    """Every kind with every granularity and every cluster_dim; the rest takes turns."""
    bits, luts = itertools.cycle(matrix.BITS), itertools.cycle(matrix.LUTS.values())
    scales = itertools.cycle((False, True, True, False, False))
    found = []
    names = [name for name in matrix.GRANULARITIES if name != "tiles"]
    for at, kind in enumerate(matrix.KINDS):
        for turn, name in enumerate(names):
            spec = PalettizationSpec(
                n_bits=next(bits),
                granularity=matrix.GRANULARITIES[name],
                cluster_dim=matrix.DIMS[(at + turn) % len(matrix.DIMS)],
                lut_qspec=next(luts),
                enable_per_channel_scale=next(scales),
            )
            if layable(matrix.KINDS[kind], spec):
                found.append((kind, spec))
    return found


def layable(kind: matrix.Kind, spec: PalettizationSpec) -> bool:
    try:
        lay_out(kind.shape, spec, installed_operations().channel_axis(kind.op_type, kind.shape))
    except ValueError:
        return False
    return True


def layer_config(kind: str, spec: PalettizationSpec) -> ModuleKMeansPalettizerConfig:
    """Palettize by ``spec`` what a layer of this kind has; some kinds have to be asked for."""
    asked = {
        "Embedding": {"embedding": ["weight"]},
        "LSTM": {"lstm": ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse"]},
        "GRU": {"gru": ["weight_ih_l0", "weight_hh_l0"]},
    }.get(kind)
    states = ["weight", "in_proj_weight"] if kind == "MultiheadAttention" else ["weight"]
    return ModuleKMeansPalettizerConfig(
        op_state_spec=None if asked else dict.fromkeys(states, spec),
        op_type_config={
            op: OpKMeansPalettizerConfig(op_state_spec=dict.fromkeys(names, spec))
            for op, names in (asked or {}).items()
        },
        enable_fast_kmeans_mode=False,
    )


@pytest.fixture(scope="session")
def layers(tmp_path_factory):
    specs = layer_specs()
    torch.manual_seed(0)
    model = Layers([kind for kind, _ in specs]).eval()
    config = KMeansPalettizerConfig(
        module_name_configs={
            rf"layers\.{i}": layer_config(kind, spec) for i, (kind, spec) in enumerate(specs)
        }
    )
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(layer_inputs(), on_incompatible="error")
    path = tmp_path_factory.mktemp("layers") / "layers.xml"
    options = {"exact_scales": True}
    palettizer.export(path, layer_inputs(), backend="openvino", backend_options=options)
    return model, path


def test_layers_of_every_kind_compute_what_torch_computes(layers):
    model, path = layers
    with torch.no_grad():
        wanted = model(*layer_inputs())
    got = support.run_file(path, *layer_inputs())
    assert support.difference(got, wanted) <= 1e-5
    assert min(np.abs(g).max() for g in got) > 1e-3


def test_weights_of_layers_are_stored_exactly_and_by_name(layers):
    model, path = layers
    wanted, stored = support.palettes(model), read_weights(path)
    assert set(stored) == set(wanted)
    different = [
        name
        for name, weight in wanted.items()
        if not np.array_equal(stored[name], weight.decode().numpy())
    ]
    assert different == []


# --- what is refused ----------------------------------------------------------------------------


def test_what_is_refused_could_not_have_been_exported(tmp_path):
    layer, inputs = nn.Linear(8, 16).double().eval(), torch.randn(2, 8).double()
    palettizer = KMeansPalettizer(layer, support.config(PalettizationSpec(n_bits=2)))
    with pytest.raises(PlanError, match="the backend cannot export: weight"):
        palettizer.make_plan((inputs,), backend="openvino")
    palettizer.prepare((inputs,))
    with pytest.raises(BackendError, match="cannot take: weight"):
        palettizer.export(tmp_path / "refused.xml", (inputs,), backend="openvino")


@pytest.mark.parametrize("n_bits", [5, 7])
def test_widths_that_the_file_lacks_are_refused_with_the_next_one(n_bits):
    spec = PalettizationSpec.model_construct(**{**dict(PalettizationSpec()), "n_bits": n_bits})
    case = matrix.Case("Linear", "per tensor", "as the weight", torch.float32, spec)
    refusal = OpenVINOBackend(OpenVINOOptions()).check_support(case.facts)
    assert refusal is not None
    assert refusal.instead == PalettizationSpec(n_bits=n_bits + 1)
