"""Models as people have them: names, shapes, states, ties, files, errors, what is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import openvino as ov
import openvino_matrix as matrix
import openvino_support as support
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typer.testing import CliRunner

import openvino_backend
from openvino_backend import read_weights, writing
from palette_core import (
    KMeansPalettizer,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    QuantizationSpec,
    load_checkpoint,
)
from palette_core.cli.app import app
from palette_core.cli.exporting import Target as Written
from palette_core.errors import BackendError, PlanError, PluginOptionsError
from palette_core.palettizer.exporting import export
from palette_core.palettizer.functions import Asked
from palette_core.palettizer.targets import Target
from palette_core.plugins import get_catalog

X = (torch.linspace(-1, 1, 24).reshape(3, 8),)
INT8 = QuantizationSpec(dtype="int8")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


# --- found and light ----------------------------------------------------------------------------


def test_it_is_discovered_with_its_distribution():
    found = get_catalog().export_backends.find("openvino")
    assert found.distribution.name == "palette-core-openvino"
    assert found.entry.suffix == ".xml"


def test_importing_the_hooks_loads_nothing_but_the_hooks():
    script = (
        "import sys, palette_core.plugins; before = set(sys.modules);"
        "import openvino_backend.hooks as hooks; hooks.palette_core_export_backends();"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str(
        ["openvino_backend", "openvino_backend.hooks", "openvino_backend.options"]
    )


def test_what_the_package_offers_is_there():
    assert all(callable(getattr(openvino_backend, name)) for name in openvino_backend.__all__)
    with pytest.raises(AttributeError, match="no attribute 'read_weight'"):
        _ = openvino_backend.read_weight


# --- sizes and ties -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_bits", "lut_qspec", "cluster_dim"),
    [(1, None, 1), (3, INT8, 1), (4, None, 2), (6, None, 1), (8, INT8, 1)],
)
def test_the_file_is_as_large_as_indices_and_tables(tmp_path, n_bits, lut_qspec, cluster_dim):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 768, bias=False)).eval()
    spec = PalettizationSpec(n_bits=n_bits, lut_qspec=lut_qspec, cluster_dim=cluster_dim)
    path = support.exported(model, (torch.randn(1, 1024),), tmp_path / "large.xml", spec)
    ideal = support.palettes(model)["0.weight"].size_in_bits() / 8
    assert ideal < path.with_suffix(".bin").stat().st_size < ideal * 1.03


class Tied(nn.Module):
    """An embedding tied to the output, and attention that reads its packed weight in parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(64, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 64, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.attention(x, x.flip(1), x * 2)[0])


@pytest.mark.parametrize("lut", [None, INT8])
def test_tied_weights_are_stored_once_under_their_first_name(tmp_path, lut):
    model, tokens = Tied().eval(), (torch.arange(6).reshape(2, 3),)
    spec = PalettizationSpec(n_bits=2, lut_qspec=lut)
    path = support.exported(model, tokens, tmp_path / "tied.xml", spec, ("embedding",))
    assert set(read_weights(path)) == set(support.palettes(model))
    assert "embed.weight" in read_weights(path)
    assert matrix.widths(path)["u2"] == 64 * 8 + 24 * 8 + 8 * 8
    with torch.no_grad():
        assert support.difference(support.run_file(path, *tokens), [model(*tokens)]) <= 1e-5


class Experts(nn.Module):
    """Experts whose weights are one tensor, each chosen by what it reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Parameter(torch.randn(4, 16, 8))
        self.second = nn.Parameter(torch.randn(4, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.einsum("bi,eoi->ebo", x, self.first))
        return torch.bmm(x, self.second.transpose(1, 2)).sum(0)


@pytest.mark.parametrize("lut", [None, INT8])
def test_weights_of_three_axes_that_are_multiplied(tmp_path, lut):
    from palette_core.storage import install_packed

    model = Experts().eval()
    spec = PalettizationSpec(n_bits=4, lut_qspec=lut)
    case = matrix.Case("Conv1d", "groups on axis 0", "int8" if lut else "as the weight",
                       torch.float32, spec)  # fmt: skip
    del case
    for name in ("first", "second"):
        weight = getattr(model, name).detach()
        torch.manual_seed(3)
        entries = torch.randn(1, 1, 1, 16, 1)
        from palette_core.storage import PackedWeight
        from palette_core.tensors import PalettizedTensor

        indices = torch.randint(0, 16, weight.shape).to(torch.uint8)
        scale = None if lut is None else torch.full((1, 1, 1, 1, 1), 0.01)
        table = entries if lut is None else (entries * 50).to(torch.int8)
        packed = PackedWeight(PalettizedTensor(indices, table, 4, 0, torch.float32, scale))
        install_packed(model, [name], packed)
    backend = get_catalog().backend("openvino")
    path = backend.factory(backend.options()).export(model, X, tmp_path / "experts.xml")
    with torch.no_grad():
        assert support.difference(support.run_file(path, *X), [model(*X)]) <= 1e-5


def test_packed_checkpoints_are_exported_without_palettizing_again(tmp_path):
    palettizer = KMeansPalettizer(mlp(), support.config(PalettizationSpec(n_bits=3)))
    palettizer.prepare(X)
    direct = palettizer.export(tmp_path / "direct.xml", X, backend="openvino")
    palettizer.export(tmp_path / "packed.safetensors", backend="packed")
    loaded = load_checkpoint(tmp_path / "packed.safetensors", mlp())
    entry = get_catalog().backend("openvino")
    again = entry.factory(entry.options()).export(loaded, X, tmp_path / "again.xml")
    first, second = read_weights(direct), read_weights(again)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


FACTORY = """
import torch


def load():
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    return torch.nn.Sequential(*layers).eval(), (torch.linspace(-1, 1, 24).reshape(3, 8),)
"""


def test_the_command_line_writes_both_files_from_a_model_and_from_a_checkpoint(tmp_path):
    (tmp_path / "factory.py").write_text(FACTORY)
    factory = str(tmp_path / "factory.py")
    runner = CliRunner()
    commands = (
        ["palettize", factory, "-o", str(tmp_path / "model.xml")],
        ["palettize", factory, "-o", str(tmp_path / "packed.safetensors")],
        [
            "export",
            factory,
            str(tmp_path / "packed.safetensors"),
            "-o",
            str(tmp_path / "again.xml"),
        ],
    )
    for command in commands:
        done = runner.invoke(app, command)
        assert done.exit_code == 0, done.output
    names = {"model.xml", "model.bin", "again.xml", "again.bin"}
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        *names,
        "factory.py",
        "packed.safetensors",
    }
    direct, again = (read_weights(tmp_path / f"{name}.xml") for name in ("model", "again"))
    assert direct.keys() == {"0.weight", "2.weight"}
    assert all(np.array_equal(direct[name], again[name]) for name in direct)


# --- names, shapes, dtypes ----------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, unused: Tensor, x: Tensor, more: dict[str, Tensor], flag: bool = True):
        made = self.layer(x) + more["bias"]
        return {"logits": made, "x": x, "states": (made * 2, made.argmax(-1)), "none": None}


NAMED = {"unused": torch.ones(2), "x": X[0], "more": {"bias": torch.ones(8)}, "flag": False}


def test_inputs_and_outputs_keep_their_names(tmp_path):
    path = support.exported(Named().eval(), NAMED, tmp_path / "named.xml")
    model = ov.Core().read_model(path)
    assert [port.get_any_name() for port in model.inputs] == ["unused", "x", "more_bias"]
    names = [sorted(port.get_names()) for port in model.outputs]
    assert names == [["logits"], ["x", "x_out"], ["states.0"], ["states.1"]]
    found = support.compiled(path)({"x": X[0].numpy(), "more_bias": np.ones(8, np.float32)})
    assert found["logits"].shape == (3, 8)


def test_names_are_those_that_are_asked_for(tmp_path):
    options = {"input_names": ["tokens"], "output_names": ["scores"]}
    path = support.exported(mlp(), X, tmp_path / "asked.xml", backend_options=options)
    assert support.compiled(path)({"tokens": X[0].numpy()})["scores"].shape == (3, 4)
    with pytest.raises(BackendError, match="input_names has 2 names"):
        support.exported(
            mlp(), X, tmp_path / "wrong.xml", backend_options={"input_names": ["a", "b"]}
        )


def test_unknown_options_are_refused():
    with pytest.raises(PluginOptionsError, match="compute_precisoin"):
        KMeansPalettizer(mlp()).make_plan(
            X, backend="openvino", backend_options={"compute_precisoin": "float16"}
        )


def test_dynamic_axes_stay_dynamic_within_their_bounds(tmp_path):
    model = mlp()
    rows = torch.export.Dim("rows", min=2, max=64)
    path = support.exported(model, X, tmp_path / "any.xml", dynamic_shapes=({0: rows},))
    assert str(ov.Core().read_model(path).inputs[0].partial_shape) == "[2..64,8]"
    for count in (2, 5, 64):
        x = torch.randn(count, 8)
        with torch.no_grad():
            assert support.difference(support.run_file(path, x), [model(x)]) <= 1e-5


def test_versions_and_palettes_are_written_down(tmp_path):
    spec = PalettizationSpec(
        n_bits=3, granularity=PerGroupedChannelGranularity(group_size=4), lut_qspec=INT8
    )
    path = support.exported(mlp(), X, tmp_path / "informed.xml", spec)
    held = ov.Core().read_model(path).get_rt_info(["palette_core"])
    assert held["openvino"] == ov.get_version()
    row = json.loads(held["weights"])["0.weight"]
    assert row.pop("seed") > 0
    assert row == {
        "layer": "palette_core/0.weight",
        "first_row": 0,
        "shape": [16, 8],
        "n_bits": 3,
        "cluster_dim": 1,
        "grid": [4, 1],
        "lut_dtype": "int8",
        "scales": None,
        "sparse": False,
        "algorithm": "kmeans1d",
        "source": 0,
    }
    assert str(tmp_path) not in path.read_text()


class Two(nn.Module):
    """Two functions of one model, which share a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 8)

    def encode(self, x: Tensor) -> Tensor:
        return self.first(x)

    def decode(self, code: Tensor) -> Tensor:
        return self.second(code)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).relu())


class Heir(Two):
    """Has the methods that it inherits."""

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("model", [Two(), Heir()])
def test_methods_that_there_are_are_named(model, tmp_path):
    entry = get_catalog().backend("openvino")
    backend = entry.factory(entry.options(function="deocde"))
    with pytest.raises(BackendError, match=r"which has decode, encode, forward$"):
        backend.export(model.eval(), X, tmp_path / "no.xml")
    assert not list(tmp_path.iterdir())


def test_functions_of_a_model_are_files(tmp_path):
    model, code = Two().eval(), (torch.linspace(-1, 1, 18).reshape(3, 6),)
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=2)))
    palettizer.prepare(X, backend="openvino", backend_options={"function": "decode"})
    for name, inputs in (("encode", X), ("decode", code), ("forward", X)):
        path = palettizer.export(
            tmp_path / f"{name}.xml",
            inputs,
            backend="openvino",
            backend_options={"function": name},
        )
        with torch.no_grad():
            wanted = getattr(model, name)(*inputs)
        assert support.difference(support.run_file(path, *inputs), [wanted]) <= 1e-5
    assert set(read_weights(tmp_path / "decode.xml")) == {"second.weight"}
    with pytest.raises(BackendError, match=r"function='deocde' .* decode, encode, forward"):
        palettizer.export(
            tmp_path / "no.xml", X, backend="openvino", backend_options={"function": "deocde"}
        )
    assert "forward" not in vars(model)
    assert not (tmp_path / "no.xml").exists()


# --- states -------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Adds up what it has been given; begins at 5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.register_buffer("total", torch.full((3, 8), 5.0))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.total += self.layer(x)
        self.calls += 1
        return self.total * 1, self.calls * 2


def test_buffers_that_are_written_to_are_states(tmp_path):
    model = Counter().eval()
    path = support.exported(model, X, tmp_path / "counter.xml")
    total, calls = (buffer.clone() for buffer in (model.total, model.calls))
    assert torch.equal(total, torch.full((3, 8), 5.0)), "exporting ran the model on itself"
    assert len(ov.Core().read_model(path).inputs) == 1
    request = support.compiled(path).create_infer_request()
    for _ in range(2):
        for _ in range(3):
            found = request.infer([X[0].numpy()])
            with torch.no_grad():
                assert support.difference([found[0], found[1]], model(*X)) <= 1e-5
        request.reset_state()
        model.total.copy_(total)
        model.calls.copy_(calls)


class Decoder(nn.Module):
    """One layer of a decoder with its keys and values in buffers."""

    def __init__(self, heads: int = 2, width: int = 16, longest: int = 24) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.heads, self.longest = heads, longest
        self.embed = nn.Embedding(40, width)
        self.places = nn.Embedding(longest, width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embed.weight
        shape = (1, heads, longest, width // heads)
        self.register_buffer("keys", torch.zeros(shape))
        self.register_buffer("values", torch.zeros(shape))
        nn.init.normal_(self.places.weight, std=2.0)
        nn.init.normal_(self.out.weight, std=0.8)

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places(place)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.project(x).chunk(3, -1)
        )
        self.keys.index_copy_(2, place, key)
        self.values.index_copy_(2, place, value)
        seen = torch.arange(self.longest) <= place[:, None]
        found = F.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=seen)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return self.head(x)[:, -1]


def generated(step, count: int) -> list[int]:
    tokens = [7]
    for at in range(count):
        logits = step(torch.tensor([[tokens[-1]]]), torch.tensor([at]))
        tokens.append(int(np.asarray(logits).argmax()))
    return tokens


@pytest.mark.parametrize("lut", [None, INT8])
def test_a_decoder_with_its_cache_in_states_generates_the_tokens_of_torch(tmp_path, lut):
    model = Decoder().eval()
    inputs = (torch.tensor([[7]]), torch.tensor([0]))
    spec = PalettizationSpec(n_bits=4, lut_qspec=lut)
    path = support.exported(model, inputs, tmp_path / "decoder.xml", spec, ("embedding",))
    model.keys.zero_()
    model.values.zero_()
    with torch.no_grad():
        wanted = generated(model, 20)
    request = support.compiled(path).create_infer_request()
    found = generated(lambda t, p: request.infer([t.numpy(), p.numpy()])[0], 20)
    assert found == wanted
    assert len(set(wanted)) > 3
    assert {s.name for s in request.query_state()} == {"keys", "values"}


# --- precision ----------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Constants that float16 keeps, and constants that it does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)
        self.register_buffer("fits", torch.randn(64))
        self.register_buffer("large", torch.full((64,), 1e6))
        self.register_buffer("small", torch.full((64,), 1e-7) * torch.rand(64))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = self.layer(x)
        return made + self.fits, made * self.large, made * self.small


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_float16_is_asked_for_and_takes_what_it_keeps(tmp_path, precision):
    model, x = Mixed().eval(), torch.randn(2, 64)
    options = {"compute_precision": precision}
    path = support.exported(model, (x,), tmp_path / "mixed.xml", backend_options=options)
    held = matrix.widths(path)
    assert held.get("f16", 0) == (0 if precision == "float32" else 2 * 64)  # fits, and the bias
    assert np.array_equal(read_weights(path)["layer.weight"], model.layer.weight.detach().numpy())
    with torch.no_grad():
        gap = support.difference(support.run_file(path, x), model(x))
    assert gap <= (1e-5 if precision == "float32" else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_of_16_bits(tmp_path, dtype):
    model, x = mlp().to(dtype), X[0].to(dtype)
    path = support.exported(model, (x,), tmp_path / "half.xml", PalettizationSpec(n_bits=4))
    wanted = support.palettes(model)["0.weight"].decode()
    assert np.array_equal(read_weights(path)["0.weight"].astype(np.float32), wanted.float().numpy())
    with torch.no_grad():
        assert support.difference(support.run_file(path, x), [model(x)]) <= 2e-2


# --- files --------------------------------------------------------------------------------------


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_older_pair_is_replaced_whole(tmp_path):
    support.exported(mlp(), X, tmp_path / "model.xml", PalettizationSpec(n_bits=8))
    before = contents(tmp_path)
    support.exported(mlp(), X, tmp_path / "model.xml", PalettizationSpec(n_bits=2))
    after = contents(tmp_path)
    assert set(after) == {"model.xml", "model.bin"}
    assert all(after[name] != before[name] for name in after)


@pytest.mark.parametrize("moves", range(1, 5))
def test_when_files_cannot_be_moved_the_older_pair_stays(tmp_path, monkeypatch, moves):
    path = support.exported(mlp(), X, tmp_path / "model.xml", PalettizationSpec(n_bits=8))
    before, done = contents(tmp_path), []

    def failing(move):
        def moved(self, target):
            done.append(target)
            if len(done) == moves:
                raise OSError("the disk is gone")
            return move(self, target)

        return moved

    kind = type(path)
    monkeypatch.setattr(kind, "rename", failing(kind.rename))
    monkeypatch.setattr(kind, "replace", failing(kind.replace))
    with pytest.raises(OSError, match="the disk is gone"):
        support.exported(mlp(), X, path, PalettizationSpec(n_bits=2))
    assert contents(tmp_path) == before


def test_an_interrupt_while_writing_leaves_the_older_pair(tmp_path, monkeypatch):
    path = support.exported(mlp(), X, tmp_path / "model.xml", PalettizationSpec(n_bits=8))
    before = contents(tmp_path)

    def interrupted(model, to, **arguments):
        to.write_text("half of it")
        signal.raise_signal(signal.SIGINT)  # an interrupt of the code's own is its failure

    monkeypatch.setattr(writing.ov, "save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        support.exported(mlp(), X, path, PalettizationSpec(n_bits=2))
    assert contents(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "model.bin").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.bin"):
        support.exported(mlp(), X, tmp_path / "model.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


@pytest.mark.parametrize("damage", ["cut", "missing", "text"])
def test_damaged_files_are_an_error_that_names_them(tmp_path, damage):
    path = support.exported(mlp(), X, tmp_path / "model.xml")
    if damage == "cut":
        held = path.with_suffix(".bin")
        held.write_bytes(held.read_bytes()[:20])
    elif damage == "missing":
        path.with_suffix(".bin").unlink()
    else:
        path.write_text(path.read_text()[:500])
    with pytest.raises(BackendError, match=r"model\.xml cannot be read"):
        read_weights(path)


def test_files_that_the_entry_does_not_declare_are_an_error(tmp_path):
    palettizer = KMeansPalettizer(mlp(), support.config(PalettizationSpec(n_bits=2)))
    prepared, catalog = palettizer.prepare(X), get_catalog()
    entry = catalog.backend("openvino")
    target = Target("openvino", replace(entry, beside=()), entry.factory(entry.options()))
    with pytest.raises(BackendError, match=r"wrote m\.bin that its entry does not declare"):
        export(prepared, target, catalog, tmp_path / "m.xml", Asked(X))
    assert not list(tmp_path.iterdir())


def test_sizes_are_those_of_both_files(tmp_path):
    palettizer = KMeansPalettizer(mlp(), support.config(PalettizationSpec(n_bits=2)))
    palettizer.prepare(X)
    path = palettizer.export(tmp_path / "m.xml", X)
    (written,) = palettizer.report.run.files
    assert written.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert Written(path, "openvino").size(path) == written.bytes > path.stat().st_size


# --- bad input ----------------------------------------------------------------------------------


class Returns(nn.Module):
    def __init__(self, what: object) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(8, 4), what

    def forward(self, x: Tensor) -> object:
        made = self.layer(x)
        return (made, self.what) if self.what is not None else None


@pytest.mark.parametrize(
    ("what", "message"),
    [(3, "output 'output_1' of the model is 3"), (None, "the model returns no tensor")],
)
def test_outputs_that_are_no_tensors_are_named(tmp_path, what, message):
    model = Returns(what).eval()
    entry = get_catalog().backend("openvino")
    with pytest.raises(BackendError, match=message):
        entry.factory(entry.options()).export(model, X, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


class Lacking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.special = nn.Linear(8, 8), Special()

    def forward(self, x: Tensor) -> Tensor:
        return self.special(self.layer(x))


class Special(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Positions(nn.Module):
    """Writes rows and columns of a table, as BEiT does for its positions."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.zeros(5, 5, dtype=torch.int64)
        table[1:, 1:] = torch.arange(16).reshape(4, 4)
        table[0, 0:] = 16
        table[0:, 0] = 17
        return x[table]


def test_what_the_converter_fails_at_is_named_in_planning():
    model = nn.Sequential(nn.Linear(8, 8), Positions()).eval()
    with pytest.raises(
        PlanError, match=r"cannot convert aten\.select_scatter\.default \(in '1'\): "
    ):
        KMeansPalettizer(model).make_plan((torch.randn(18, 8),), backend="openvino")


def test_operations_that_do_not_convert_are_named_in_planning(tmp_path):
    palettizer = KMeansPalettizer(Lacking().eval(), support.config(PalettizationSpec(n_bits=2)))
    with pytest.raises(PlanError, match=r"special_bessel_j0\.default \(in 'special'\)"):
        palettizer.make_plan(X, backend="openvino")
    palettizer.prepare(X)
    with pytest.raises(BackendError, match=r"special_bessel_j0\.default \(in 'special'\)"):
        palettizer.export(tmp_path / "model.xml", X, backend="openvino")
    assert not list(tmp_path.iterdir())


def test_models_that_torch_cannot_trace_are_told_so(tmp_path):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            made = self.layer(x)
            return made if float(made.sum()) > 0 else -made

    entry = get_catalog().backend("openvino")
    with pytest.raises(BackendError, match=r"torch\.export cannot take Branches"):
        entry.factory(entry.options()).export(Branches().eval(), X, tmp_path / "model.xml")


def test_tables_of_nan_or_infinity_are_named(tmp_path):
    model = mlp()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=2)))
    palettizer.prepare(X)
    palettizer.finalize(backend="openvino")
    for site_lut in (p for n, p in model.named_buffers() if n.startswith("2.") and "lut" in n):
        site_lut[..., 1, :] = float("nan")
    with pytest.raises(BackendError, match=r"look-up tables or scales of 2\.weight"):
        palettizer.export(tmp_path / "model.xml", X, backend="openvino")
    assert not list(tmp_path.iterdir())


def test_training_flags_and_the_model_stay_as_they_were(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8))
    model[0].eval()
    flags = [module.training for module in model.modules()]
    support.exported(model, X, tmp_path / "model.xml")
    kept = {id(module): module.training for module in model.modules()}
    assert [kept[id(module)] for module in (model, *model)] == flags[:4]
    assert ElementTree.parse(tmp_path / "model.xml").getroot().tag == "net"


@pytest.mark.parametrize("stored", ["[" * 100_000, "[]", "{", '{"w": 1' + "0" * 5000 + "}"])
def test_metadata_that_are_none_of_ours_are_refused(tmp_path, stored):
    path = tmp_path / "m.xml"
    info = f"<rt_info><palette_core><weights value='{stored}'/></palette_core></rt_info>"
    path.write_text(f"<net>{info}</net>")
    path.with_suffix(".bin").touch()
    with pytest.raises(BackendError, match="cannot be read as a model"):
        read_weights(path)


class Box(dict):
    pass


def test_outputs_given_twice_and_in_containers_that_hide_their_keys(tmp_path):
    """diffusers registers its outputs without what tells torch their names."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Box:
            y = self.layer(x)
            return Box(first=y, again=y, positive=y > 0, same=y > 1)

    pytree.register_pytree_node(
        Box,
        lambda box: ([*box.values()], [*box]),
        lambda values, keys: Box(zip(keys, values, strict=True)),
    )
    try:
        model, inputs = Model().eval(), (torch.linspace(-2, 2, 48).reshape(3, 16),)
        path = support.exported(model, inputs, tmp_path / "model.xml")
        wanted = model(*inputs)
    finally:
        pytree._deregister_pytree_node(Box)
    outputs = support.compiled(path).outputs
    assert [min(port.get_names()) for port in outputs] == [*wanted]
    for got, want in zip(support.run_file(path, *inputs), wanted.values(), strict=True):
        assert got.shape == want.shape
        assert np.allclose(got, want.detach().numpy(), atol=1e-6)
