"""Every spec on every kind of layer: as stored weights, and as layers that run."""

from __future__ import annotations

import itertools

import coreai_matrix as matrix
import coreai_support as support
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreai_backend import read_weights
from coreai_backend.backend import CoreAIBackend
from coreai_backend.options import CoreAIOptions
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


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    return {dtype: matrix.write_weights(dtype, folder) for dtype in matrix.DTYPES}


@pytest.fixture(scope="session")
def verdicts(files):
    return {dtype: matrix.judge_weights(*made) for dtype, made in files.items()}


@pytest.mark.parametrize("dtype", matrix.DTYPES)
def test_every_spec_is_exact_in_a_saved_file(verdicts, dtype):
    wrong = {case.name: text for case, text in verdicts[dtype].items() if text}
    assert not wrong
    assert len(verdicts[dtype]) > 300


def test_the_page_says_what_the_files_hold(verdicts):
    every = {case: text for found in verdicts.values() for case, text in found.items()}
    assert matrix.PAGE.read_text(encoding="utf8") == matrix.page(every), (
        "run python plugins/coreai_backend/tests/coreai_matrix.py"
    )


def test_every_combination_of_two_choices_is_tried(verdicts):
    tried = {
        (case.kind, case.granularity, case.lut, case.spec.cluster_dim, case.spec.n_bits)
        for case in verdicts[torch.float32]
    }
    for a, b in itertools.combinations(range(5), 2):
        firsts, seconds = {t[a] for t in tried}, {t[b] for t in tried}
        missing = set(itertools.product(firsts, seconds)) - {(t[a], t[b]) for t in tried}
        # Grids that do not fit a depthwise weight, or one of 12 rows.
        assert all("depthwise" in str(pair) or "GRU" in str(pair) for pair in missing), missing


def test_one_flipped_bit_is_seen_by_both_judges(files, tmp_path):
    path, weights = files[torch.float16]
    case = next(c for c in weights if c.kind.startswith("Conv2d") and c.spec.n_bits in (3, 6))
    packed = weights[case].packed_indices().numpy().tobytes()
    damaged = support.flipped(path, packed, 5, tmp_path / "damaged.aimodel")
    wrong = {c.name: text for c, text in matrix.judge_weights(damaged, weights).items() if text}
    assert wrong == {case.name: "reads back otherwise, the runtime decodes it otherwise"}


def test_widths_operations_and_types_are_those_of_the_specs(files):
    path, weights = files[torch.float32]
    types, operations = support.summary(path)
    alone = [picked for w in weights.values() if (picked := w.picked_entries()) is not None]
    looked_up = {c: w for c, w in weights.items() if w.picked_entries() is None}
    assert alone
    assert operations["lut_to_dense"] == len(looked_up)
    indices = {
        bits: sum(w.indices.numel() for c, w in looked_up.items() if c.spec.n_bits == bits)
        for bits in matrix.BITS
    }
    assert {bits: types[f"UInt{bits}"] for bits in matrix.BITS if bits < 8} == {
        bits: count for bits, count in indices.items() if bits < 8
    }
    tables = [w.lut for w in looked_up.values()] + alone
    for name, dtype in (("Float8E4M3FN", torch.float8_e4m3fn), ("Float8E5M2", torch.float8_e5m2)):
        held = sum(lut.numel() for lut in tables if lut.dtype is dtype)
        # Beside the tables, zeros for their offsets.
        assert held <= types[name] <= held * 1.1
    held = indices[8] + sum(lut.numel() for lut in tables if lut.dtype is torch.uint8)
    assert held <= types["UInt8"] <= held * 1.1


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
            if kind != "ConvTranspose3d" and layable(matrix.KINDS[kind], spec):
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
    path = tmp_path_factory.mktemp("layers") / "layers.aimodel"
    palettizer.export(path, layer_inputs(), backend="coreai")
    return model, path


def test_layers_of_every_kind_compute_what_torch_computes(layers):
    model, path = layers
    with torch.no_grad():
        wanted = model(*layer_inputs())
    got = support.run_file(path, *layer_inputs())
    differences = [np.abs(g - w.numpy()).max() for g, w in zip(got, wanted, strict=True)]
    assert max(differences) <= 1e-6
    assert min(np.abs(g).max() for g in got) > 1e-3


def test_weights_of_layers_are_stored_exactly_and_by_name(layers):
    model, path = layers
    wanted, stored = support.palettes(model), read_weights(path)
    assert set(stored) == set(wanted)
    assert all(support.same_values(stored[name], wanted[name].decode()) for name in wanted)


def test_a_flipped_bit_changes_the_output_of_its_layer_alone(layers, tmp_path):
    model, path = layers
    at = next(i for i, kind in enumerate(model.kinds) if kind == "Conv1d, kernel 3")
    weight = support.palettes(model)[f"layers.{at}.weight"]
    packed = weight.packed_indices().numpy().tobytes()
    damaged = support.flipped(path, packed, 0, tmp_path / "damaged.aimodel")
    pairs = zip(
        support.run_file(path, *layer_inputs()),
        support.run_file(damaged, *layer_inputs()),
        strict=True,
    )
    changed = [i for i, (a, b) in enumerate(pairs) if np.abs(a - b).max() > 1e-6]
    assert changed == [at]


# --- what is refused ----------------------------------------------------------------------------


def test_a_weight_that_would_be_unpacked_at_every_run_is_refused():
    layer, inputs = nn.ConvTranspose3d(8, 16, 2), torch.randn(1, 8, 3, 3, 3)
    palettizer = KMeansPalettizer(layer.eval(), support.config(PalettizationSpec(n_bits=2)))
    with pytest.raises(PlanError, match=r"the backend cannot export: weight .* turned round"):
        palettizer.make_plan((inputs,), backend="coreai")


def test_what_is_refused_could_not_have_been_exported(tmp_path):
    layer, inputs = nn.Linear(8, 16).double(), torch.randn(2, 8).double()
    palettizer = KMeansPalettizer(layer.eval(), support.config(PalettizationSpec(n_bits=2)))
    with pytest.raises(PlanError, match="the backend cannot export: weight"):
        palettizer.make_plan((inputs,), backend="coreai")
    palettizer.prepare((inputs,))
    with pytest.raises(BackendError, match="cannot take: weight"):
        palettizer.export(tmp_path / "refused.aimodel", (inputs,), backend="coreai")
    # What would have happened without the refusal.
    finalized = palettizer.finalize(backend="packed")
    path = tmp_path / "anyway.aimodel"
    with pytest.raises(BackendError, match="float64"):
        CoreAIBackend(CoreAIOptions()).export(finalized, (inputs,), path)


@pytest.mark.parametrize("n_bits", [5, 7])
def test_widths_that_the_file_lacks_are_refused_with_the_next_one(n_bits):
    spec = PalettizationSpec.model_construct(**{**dict(PalettizationSpec()), "n_bits": n_bits})
    case = matrix.Case("Linear", "per tensor", "as the weight", torch.float32, spec)
    refusal = CoreAIBackend(CoreAIOptions()).check_support(case.facts)
    assert refusal is not None
    assert refusal.instead == PalettizationSpec(n_bits=n_bits + 1)
