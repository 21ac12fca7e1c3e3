"""A stored form of somebody else goes the whole way: plan, finalize, module, file, export."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_edits import rewritten
from palettizer_models import MLP_INPUTS, decoded_weights, mlp, prepared_mlp, weight_config
from safetensors.torch import load_file
from torch import nn
from wrong_forms import Bytes, Curt, Flipped, Runs, form

from palette_core import (
    KMeansPalettizer,
    PalettizationSpec,
    bits_per_weight,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from palette_core.errors import (
    CheckpointError,
    DuplicatePluginError,
    PlanError,
    UnknownPluginError,
)
from palette_core.plugins import Backend, ExportBackendEntry, Part, PluginEntry, Refusal
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.checked.stored_forms import make_stored_form
from palette_core.storage import PackedWeight, palette_sites, write_checkpoint
from palette_core.tensors import StoredTensor

SPECS = {
    "plain": {},
    "quantized": {"lut_qspec": {"dtype": "float8_e4m3fn"}},
    "vectors and scales": {"cluster_dim": 2, "enable_per_channel_scale": True, "fast": False},
}


@pytest.fixture(params=[Bytes, Runs])
def name(request: pytest.FixtureRequest, register: Callable[[PluginEntry], None]) -> str:
    """The name of a form that is registered for one test."""
    made: str = request.param.__name__.lower()
    register(form(request.param, made))
    return made


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_whole_trip(name: str, spec: dict[str, object], tmp_path: Path) -> None:
    _, model = prepared_mlp(stored_form=name, **spec)
    weights, expected = decoded_weights(model), model(*MLP_INPUTS)
    before = bits_per_weight(model)
    palettizer, model = prepared_mlp(stored_form=name, **spec)
    path = save_checkpoint(model, tmp_path / "prepared.safetensors")
    final = palettizer.finalize(backend="packed")
    assert bits_per_weight(final) == before
    assert torch.equal(final(*MLP_INPUTS), expected)
    for twin in (copy.deepcopy(final), pickle.loads(pickle.dumps(final))):
        assert torch.equal(twin(*MLP_INPUTS), expected)
    for site in palette_sites(final, PackedWeight):
        assert site.palette.form.name == name
        assert torch.equal(site.palette.palettized().decode(), weights[site.name])
        assert site.palette.palettized_shape() == weights[site.name].shape
    other = palettizer.export(tmp_path / "exported.safetensors", backend="packed")
    assert path.read_bytes() == other.read_bytes()
    read = read_checkpoint(path)
    assert set(read.stored_forms.values()) == {name}
    assert all(torch.equal(t.decode(), weights[n]) for n, t in read.palettized.items())
    loaded = load_checkpoint(path, mlp(seed=7))
    assert {site.palette.form.name for site in palette_sites(loaded)} == {name}
    assert torch.equal(loaded(*MLP_INPUTS), expected)
    again = write_checkpoint(
        tmp_path / "again.safetensors",
        read.palettized,
        read.dense,
        stored_forms=read.stored_forms,
        origins=read.origins,
    )
    assert again.read_bytes() == path.read_bytes()


def test_parts_lie_in_the_file_and_count_as_they_are(
    register: Callable[[PluginEntry], None], tmp_path: Path
) -> None:
    register(form(Bytes, "bytes"))
    _, model = prepared_mlp(stored_form="bytes")
    stored = load_file(save_checkpoint(model, tmp_path / "model.safetensors"))
    assert stored["0.weight.codes"].shape == model[0].weight.shape
    _, packed = prepared_mlp()
    weights = sum(model[at].weight.numel() for at in (0, 2))
    elements = sum(t.numel() for t in mlp().state_dict().values())
    more = (bits_per_weight(model) - bits_per_weight(packed)) * elements
    assert more == pytest.approx(weights * (8 - 2))


def test_graphs_hold_the_operator_of_the_form(name: str) -> None:
    palettizer, _ = prepared_mlp(stored_form=name)
    final = palettizer.finalize(backend="packed")
    expected = final(*MLP_INPUTS)
    program = torch.export.export(final, MLP_INPUTS)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count(f"tests_{name}.depalettize.default") == 2
    assert torch.equal(program.module()(*MLP_INPUTS), expected)
    parts = ("codes",) if name == "bytes" else ("values", "lengths")
    node = next(n for n in program.graph.nodes if "depalettize" in str(n.target))
    read = StoredTensor.from_arguments(node.args, node.kwargs, parts)
    assert read.n_bits == 2
    assert read.index_shape == list(final[0].weight.shape)
    assert set(read.parts) == set(parts)


def test_casts_and_files_leave_parts_alone(name: str, tmp_path: Path) -> None:
    palettizer, _ = prepared_mlp(stored_form=name)
    final = palettizer.finalize(backend="packed", mmap_dir=tmp_path / "maps")
    expected = final(*MLP_INPUTS)
    assert torch.equal(copy.deepcopy(final)(*MLP_INPUTS), expected)
    half = final.half()
    for site in palette_sites(half, PackedWeight):
        assert not any(p.is_floating_point() for p in site.palette.stored().parts.values())
        assert site.palette.palettized().dtype is torch.float16


def test_training_and_granularity_know_nothing_of_it(name: str) -> None:
    palettizers = [
        KMeansPalettizer(
            mlp(),
            weight_config(
                training_strategy="ste",
                granularity={"type": "per_grouped_channel", "group_size": 4},
                stored_form=form_name,
            ),
        )
        for form_name in (name, "indices")
    ]
    outputs = []
    for palettizer in palettizers:
        model = palettizer.prepare(MLP_INPUTS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with palettizer.training_mode():
            for _ in range(3):
                optimizer.zero_grad()
                model(*MLP_INPUTS).square().mean().backward()
                optimizer.step()
                palettizer.step()
        outputs.append(palettizer.finalize(backend="packed")(*MLP_INPUTS))
    assert torch.equal(*outputs)


# --- planning -----------------------------------------------------------------------------------


def test_a_form_that_nobody_knows_is_refused_in_planning() -> None:
    with pytest.raises(
        UnknownPluginError, match=r"no stored form is named 'indicse'; .* mean 'indices'"
    ):
        prepared_mlp(stored_form="indicse")


class Dense(Backend):
    """A backend that takes packed indices, as every one does that declares nothing."""

    def check_support(self, facts: object) -> Refusal | None:
        return None

    def finalize(self, model: nn.Module, palettized: object) -> nn.Module:
        return model

    def export(self, model: nn.Module, inputs: object, path: Path, shapes: object = None) -> Path:
        path.touch()
        return path


def backend(**fields: object) -> ExportBackendEntry:
    return ExportBackendEntry(
        name="dense",
        summary="dense",
        interface=1,
        factory=lambda options: Dense(),
        suffix=".dense",
        **fields,
    )


def test_backends_get_only_forms_that_they_declare(
    name: str, register: Callable[[PluginEntry], None]
) -> None:
    register(backend())
    palettizer = KMeansPalettizer(mlp(), weight_config(stored_form=name))
    reason = f"does not take stored form '{name}', only indices; .*{{'stored_form': 'indices'}}"
    with pytest.raises(PlanError, match=reason):
        palettizer.prepare(MLP_INPUTS, backend="dense")
    palettizer.prepare(MLP_INPUTS)
    with pytest.raises(Exception, match=reason):
        palettizer.finalize(backend="dense")


def test_a_backend_that_declares_the_form_gets_it(
    name: str, register: Callable[[PluginEntry], None], tmp_path: Path
) -> None:
    register(backend(stored_forms=(name,)))
    palettizer = KMeansPalettizer(mlp(), weight_config(stored_form=name))
    palettizer.prepare(MLP_INPUTS, backend="dense")
    palettizer.export(tmp_path / "model.dense", MLP_INPUTS, backend="dense")
    with pytest.raises(PlanError, match="does not take stored form 'indices'"):
        KMeansPalettizer(mlp(), weight_config()).make_plan(MLP_INPUTS, backend="dense")


@pytest.mark.parametrize("forms", ["indices", (), (1,), ["indices"]])
def test_backends_declare_forms_by_name(forms: object) -> None:
    with pytest.raises(TypeError, match=r"stored_forms of 'dense' must be None, or a tuple"):
        backend(stored_forms=forms).check()


def test_a_form_can_refuse_a_tensor(register: Callable[[PluginEntry], None]) -> None:
    class OnlySmall(Bytes):
        def check_support(self, facts):
            if facts.spec.n_bits == 1:
                return None
            return Refusal("too many bits", facts.spec.model_copy(update={"n_bits": 1}))

    register(form(OnlySmall, "small"))
    palettizer = KMeansPalettizer(mlp(), weight_config(stored_form="small"))
    with pytest.raises(
        PlanError,
        match=r"stored form 'small' cannot hold it: too many bits; what works nearest to it: "
        r"{'n_bits': 1}",
    ):
        palettizer.make_plan(MLP_INPUTS, on_incompatible="error")
    skipped = palettizer.make_plan(MLP_INPUTS).skipped
    assert [tensor.name for tensor in skipped] == ["0.weight", "2.weight"]


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_file_in_a_form_that_is_not_installed_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = prepared_mlp(stored_form=name)
    path = save_checkpoint(model, tmp_path / "model.safetensors")
    monkeypatch.undo()
    get_catalog.cache_clear()
    with pytest.raises(CheckpointError, match=f"0.weight needs another plug-in: .*'{name}'"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": torch.zeros(3, dtype=torch.uint8)}, "runs of "),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, "lengths is int64 .* expected int32"),
        ({"values": torch.zeros(1, 1, dtype=torch.uint8)}, r"values is uint8 of shape \(1, 1\)"),
        (
            {
                "values": torch.tensor([200], dtype=torch.uint8),
                "lengths": torch.tensor([32], dtype=torch.int32),
            },
            r"'runs' \(wrong-plugin 6\.6\): an index is 200, expected less than \d+$",
        ),
    ],
)
def test_damaged_parts_are_named(
    change: dict[str, torch.Tensor],
    reason: str,
    register: Callable[[PluginEntry], None],
    tmp_path: Path,
) -> None:
    register(form(Runs, "runs"))
    spec = PalettizationSpec(stored_form="runs")
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    KMeansPalettizer(model, weight_config(stored_form=spec.stored_form)).prepare(
        (torch.ones(1, 8),)
    )
    path = save_checkpoint(model, tmp_path / "model.safetensors")
    tensors = {f"0.weight.{part}": tensor for part, tensor in change.items()}
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(rewritten(path, tensors=tensors))


def test_failures_of_a_form_name_it(register: Callable[[PluginEntry], None]) -> None:
    class Failing(Bytes):
        operator = "tests_failing::depalettize"

        def encode(self, tensor):
            raise KeyError("oh")

    class Misnamed(Bytes):
        parts = ("lut",)

    class Nameless(Bytes):
        operator = "depalettize"

    register(form(Failing, "failing"))
    with pytest.raises(CheckpointError, match=r"'failing' \(wrong-plugin 6.6\) failed: KeyError"):
        prepared_mlp(stored_form="failing")
    register(form(Misnamed, "misnamed"))
    with pytest.raises(CheckpointError, match="parts must be a tuple of names, none of axis"):
        make_stored_form(get_catalog(), "misnamed")
    register(form(Nameless, "nameless"))
    with pytest.raises(CheckpointError, match="named like 'my_plugin::depalettize'"):
        make_stored_form(get_catalog(), "nameless")
    register(form(Curt, "curt"))
    with pytest.raises(CheckpointError, match="check_support returned False"):
        prepared_mlp(stored_form="curt")
    register(form(Flipped, "flipped"))
    prepared_mlp(stored_form="flipped")  # what only the contract kit can find


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"indices": torch.full((32, 16), 100, dtype=torch.uint8)}, "an index is 100, expected"),
        ({"n_bits": 3}, "decoded with another n_bits than it was given"),
        ({"axis": 1}, "decoded with another axis than it was given"),
        ({"lut": None}, "decoded with another lut than it was given"),
        ({"scale": torch.ones(1, 1)}, "decoded with another scale than it was given"),
        ({"mask": torch.ones(32, 16, dtype=torch.bool)}, "decoded a mask .*, expected none"),
    ],
)
def test_what_a_form_decodes_is_checked(
    change: dict[str, object], reason: str, register: Callable[[PluginEntry], None]
) -> None:
    class Changing(Bytes):
        operator = "tests_changing::depalettize"

        def decode(self, stored):
            made = super().decode(stored)
            return replace(made, **(change | ({"lut": -made.lut} if "lut" in change else {})))

    register(form(Changing, "changing"))
    made = make_stored_form(get_catalog(), "changing")
    stored = StoredTensor(
        {"codes": torch.zeros(32, 16, dtype=torch.uint8)},
        *(torch.linspace(-1, 1, 4)[:, None][None, None], [32, 16], 2, 0, torch.float32),
    )
    with pytest.raises(ValueError, match=rf"'changing' \(wrong-plugin 6\.6\).*{reason}"):
        made.decode(stored)


@pytest.mark.parametrize(
    "part",
    [Part(None, (1,)), Part(torch.uint8, 3), Part(torch.uint8, (-1,)), Part(torch.uint8, ("a",))],
)
def test_what_a_form_expects_is_checked(
    part: Part, register: Callable[[PluginEntry], None]
) -> None:
    class Expecting(Bytes):
        def expects(self, stored):
            return {"codes": part}

    register(form(Expecting, "expecting"))
    made = make_stored_form(get_catalog(), "expecting")
    with pytest.raises(CheckpointError, match=r"'expecting' \(wrong-plugin 6\.6\): expects"):
        made.expects(StoredTensor({}, torch.zeros(1, 1, 4, 1), [8, 4], 2, 0, torch.float32))


@pytest.mark.parametrize("operator", ["palette_core::depalettize", "palette_core::mine"])
def test_operators_of_the_core_are_nobody_elses(
    operator: str, register: Callable[[PluginEntry], None]
) -> None:
    register(
        form(type("Taking", (Bytes,), {"parts": ("indices",), "operator": operator}), "taking")
    )
    with pytest.raises(CheckpointError, match=rf"'taking' \(wrong-.*'{operator}' is in the name"):
        prepared_mlp(stored_form="taking")
    prepared_mlp()


def test_of_two_forms_with_one_operator_both_are_named(
    register: Callable[[PluginEntry], None],
) -> None:
    class Failing(Bytes):
        def __init__(self):
            raise RuntimeError("never to be made")

    register(form(Bytes, "one"))
    register(form(Failing, "failing"))
    prepared_mlp(stored_form="one")
    register(form(type("Twin", (Bytes,), {}), "two"))
    for name in ("one", "two"):
        with pytest.raises(DuplicatePluginError, match=r"'tests_bytes::.* by wrong-plugin") as e:
            prepared_mlp(stored_form=name)
        assert "'one'" in str(e.value)
        assert "'two'" in str(e.value)
    prepared_mlp()
