"""Models as people have them: names, ties, sizes, inputs, errors, and what is left behind."""

from __future__ import annotations

import itertools
import subprocess
import sys

import coreai_support as support
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coreai_backend
from coreai_backend import read_weights, stored_weights
from coreai_backend.backend import CoreAIBackend, export_program
from coreai_backend.ir import quiet
from coreai_backend.options import CoreAIOptions
from palette_core import KMeansPalettizer, PalettizationSpec, QuantizationSpec, load_checkpoint
from palette_core.errors import BackendError, PluginOptionsError
from palette_core.plugins import get_catalog
from palette_core.tensors import depalettize

X = (torch.linspace(-1, 1, 24).reshape(3, 8),)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


# --- found and light ----------------------------------------------------------------------------


def test_it_is_discovered_with_its_distribution():
    found = get_catalog().export_backends.find("coreai")
    assert found.distribution.name == "palette-core-coreai"
    assert found.entry.suffix == ".aimodel"
    assert found.entry.supports_mmap


def test_importing_the_hooks_loads_nothing_but_the_hooks():
    script = (
        "import sys, palette_core.plugins; before = set(sys.modules);"
        "import coreai_backend.hooks as hooks; hooks.palette_core_export_backends();"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str(
        ["coreai_backend", "coreai_backend.hooks", "coreai_backend.options"]
    )


def test_what_the_package_offers_is_there():
    assert all(callable(getattr(coreai_backend, name)) for name in coreai_backend.__all__)
    with pytest.raises(AttributeError, match="no attribute 'read_weight'"):
        _ = coreai_backend.read_weight


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_bits", "lut_qspec", "cluster_dim"),
    [
        (1, None, 1),
        (3, QuantizationSpec(dtype="int8"), 1),
        (4, None, 2),
        (6, None, 1),
        (8, QuantizationSpec(dtype="float8_e4m3fn"), 1),
    ],
)
def test_the_file_is_as_large_as_indices_and_tables(tmp_path, n_bits, lut_qspec, cluster_dim):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 768, bias=False)).eval()
    spec = PalettizationSpec(n_bits=n_bits, lut_qspec=lut_qspec, cluster_dim=cluster_dim)
    path = support.exported(model, (torch.randn(1, 1024),), tmp_path / "large.aimodel", spec)
    ideal = support.palettes(model)["0.weight"].size_in_bits() / 8
    size = (path / "main.mlirb").stat().st_size
    assert ideal < size < ideal * 1.03
    # A file that holds anything dense would fail that.
    assert ideal + 768 * 1024 > ideal * 1.03


# --- ties ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("lut", [None, QuantizationSpec(dtype="int8")])
def test_tied_weights_are_stored_once_under_their_first_name(tmp_path, lut):
    model, tokens = Tied().eval(), (torch.arange(6).reshape(2, 3),)
    spec = PalettizationSpec(n_bits=2, lut_qspec=lut)
    path = support.exported(model, tokens, tmp_path / "tied.aimodel", spec, ("embedding",))
    names = [weight.name for weight in stored_weights(path)]
    assert set(names) == set(support.palettes(model))
    assert "embed.weight" in names
    assert len(names) == 3
    types, operations = support.summary(path)
    assert types["UInt2"] == 64 * 8 + 24 * 8 + 8 * 8
    assert operations["lut_to_dense"] == 3
    with torch.no_grad():
        assert np.abs(support.run_file(path, *tokens)[0] - model(*tokens).numpy()).max() <= 1e-6


def test_weights_of_equal_parts_are_not_taken_for_each_other(tmp_path):
    """Core AI stores equal constants once, under one name."""
    torch.manual_seed(0)
    first, second, third = (nn.Linear(8, 8) for _ in range(3))
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        third.weight.copy_(first.weight * 2)  # equal indices, another table
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).eval()
    path = support.exported(model, X, tmp_path / "equal.aimodel")
    wanted, stored = support.palettes(model), read_weights(path)
    assert torch.equal(wanted["0.weight"].indices, wanted["4.weight"].indices)
    assert set(stored) in ({"0.weight", "4.weight"}, {"2.weight", "4.weight"})
    assert all(support.same_values(stored[name], wanted[name].decode()) for name in stored)


# --- names --------------------------------------------------------------------------------------

NAMES = (
    "lut", "indices", "lut_indices", "lut_to_dense", "convolution", "conv2d", "weight_lut",
    "parametrizations_0", "größe", "重み", "main", "module", "constant", "input", "output", "scale",
)  # fmt: skip


class Named(nn.Module):
    """Linear layers under awkward names, at the root and inside each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            self.add_module(name, nn.Sequential())
            self.get_submodule(name).add_module("convolution", nn.Linear(8, 8))
        self.named = nn.ModuleDict({"lut indices": nn.Linear(8, 8), "it's (a) name, ß": mlp()})

    def forward(self, x: Tensor) -> Tensor:
        for name in NAMES:
            x = x + getattr(self, name)(x) / len(NAMES)
        return self.named["it's (a) name, ß"](self.named["lut indices"](x))


def test_names_of_every_kind_convert_and_come_back(tmp_path):
    model = Named().eval()
    path = support.exported(model, X, tmp_path / "lut indices.größe.aimodel")
    wanted, stored = support.palettes(model), read_weights(path)
    assert set(stored) == set(wanted)
    assert "größe.convolution.weight" in stored
    assert "named.it's (a) name, ß.0.weight" in stored
    assert all(support.same_values(stored[name], wanted[name].decode()) for name in wanted)
    with torch.no_grad():
        assert np.abs(support.run_file(path, *X)[0] - model(*X).numpy()).max() <= 1e-6


def test_two_hundred_layers_convert(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(200))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.6)
    spec = PalettizationSpec(n_bits=3)
    path = support.exported(model, X, tmp_path / "deep.aimodel", spec)
    wanted, stored = support.palettes(model), read_weights(path)
    assert list(stored) == [f"{i}.weight" for i in range(200)] == list(wanted)
    assert all(support.same_values(stored[name], wanted[name].decode()) for name in wanted)


# --- inputs and outputs -------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp()

    def forward(self, x: Tensor, factor: Tensor, *, shift: Tensor | None = None) -> Tensor:
        y = self.layer(x) * factor
        return y if shift is None else y + shift


def test_inputs_may_be_a_dictionary(tmp_path):
    model = TwoInputs().eval()
    inputs = {"x": X[0], "factor": torch.tensor([2.0]), "shift": torch.ones(4)}
    path = support.exported(model, inputs, tmp_path / "named.aimodel")
    with torch.no_grad():
        wanted = model(**inputs).numpy()
    assert np.abs(support.run_file(path, *inputs.values())[0] - wanted).max() <= 1e-6


def test_inputs_that_are_no_tensors_are_no_inputs_of_the_program(tmp_path):
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mlp()

        def forward(self, x: Tensor, shift: Tensor | None = None, as_dict: bool = True):
            y = self.layer(x) if shift is None else self.layer(x) + shift
            return {"y": y} if as_dict else y

    for at, inputs in enumerate([(X[0], None), {"x": X[0], "as_dict": False}]):
        model = Options().eval()
        path = support.exported(model, inputs, tmp_path / f"{at}.aimodel")
        with torch.no_grad():
            wanted = model(X[0], as_dict=False).numpy()
        assert np.abs(support.run_file(path, X[0])[0] - wanted).max() <= 1e-6


def test_lengths_may_vary(tmp_path):
    model, rows = mlp(), torch.export.Dim("rows", min=2, max=64)
    path = support.exported(model, X, tmp_path / "any.aimodel", dynamic_shapes=({0: rows},))
    for count in (2, 7):
        x = torch.randn(count, 8)
        with torch.no_grad():
            assert np.abs(support.run_file(path, x)[0] - model(x).numpy()).max() <= 1e-6


def test_options_name_inputs_and_outputs_and_describe_the_file(tmp_path):
    from coreai.authoring import AIModelAsset

    said = {"author": "us", "license": "MIT", "description": "layers"}
    options = {"input_names": ["features"], "output_names": ["scores"], **said}
    path = support.exported(mlp(), X, tmp_path / "n.aimodel", backend_options=options)
    asset = AIModelAsset.load(path)
    metadata = asset.metadata
    assert metadata.author == "us"
    assert metadata.license == "MIT"
    assert metadata.model_description == "layers"
    assert '"features"' in str(asset.program)
    assert '"scores"' in str(asset.program)
    with pytest.raises(PluginOptionsError, match="did you mean 'author'"):
        support.exported(mlp(), X, tmp_path / "n.aimodel", backend_options={"autor": "us"})


class Counts(nn.Module):
    """A layer, and a state: the sum of what it has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(self.layer(x).sum(0))
        return self.total * 2


def test_options_name_states(tmp_path):
    from coreai.authoring import AIModelAsset

    for names in ([], ["memory"]):
        model, options = Counts().eval(), {"state_names": names}
        path = support.exported(model, X, tmp_path / "s.aimodel", backend_options=options)
        assert ('"memory"' in str(AIModelAsset.load(path).program)) == bool(names)


@pytest.mark.parametrize("kind", ["input_names", "output_names", "state_names"])
def test_names_that_do_not_fit_are_refused(kind, tmp_path):
    options = {kind: ["a", "b", "c"]}
    with pytest.raises(BackendError, match=kind):
        support.exported(Counts().eval(), X, tmp_path / "n.aimodel", backend_options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("debug_info", [False, True])
def test_source_paths_are_in_the_file_only_when_asked_for(tmp_path, debug_info):
    options = {"debug_info": debug_info}
    path = support.exported(mlp(), X, tmp_path / "d.aimodel", backend_options=options)
    assert (b".py" in (path / "main.mlirb").read_bytes()) is debug_info


# --- nothing else changes -----------------------------------------------------------------------


def test_the_model_is_left_as_it_was(tmp_path):
    model = mlp()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=2)))
    palettizer.prepare(X)
    palettizer.finalize(backend="coreai")
    model.train()
    model[0].eval()
    flags = [module.training for module in model.modules()]
    state = {name: (t, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        before = model(*X)
    random = torch.get_rng_state()
    palettizer.export(tmp_path / "m.aimodel", X, backend="coreai")
    assert [module.training for module in model.modules()] == flags
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is t and torch.equal(t, kept) for name, (t, kept) in state.items())
    with torch.no_grad():
        assert torch.equal(model(*X), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_is_printed_or_warned_about(tmp_path, capsys, recwarn):
    support.exported(mlp(), X, tmp_path / "m.aimodel")
    assert capsys.readouterr().out == ""
    assert not [w for w in recwarn if "coreai" in str(w.message) or "LeafSpec" in str(w.message)]


def test_weights_mapped_from_files_export_too(tmp_path):
    model = mlp()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=3)))
    palettizer.prepare(X)
    palettizer.finalize(backend="coreai", mmap_dir=tmp_path / "weights")
    path = palettizer.export(tmp_path / "m.aimodel", X, backend="coreai")
    wanted = support.palettes(model)
    assert {n: support.same_values(d, wanted[n].decode()) for n, d in read_weights(path).items()}


def test_an_existing_file_is_replaced_or_left_whole(tmp_path):
    path = support.exported(mlp(), X, tmp_path / "m.aimodel")
    before = (path / "main.mlirb").read_bytes()
    (path / "left over").touch()

    class Unsupported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(self.layer(x).mT @ self.layer(x))

    with pytest.raises(BackendError):
        support.exported(Unsupported(), X, path)
    assert (path / "main.mlirb").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.aimodel"]
    support.exported(nn.Sequential(nn.Linear(8, 2)), X, path)
    assert (path / "main.mlirb").read_bytes() != before
    assert not (path / "left over").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m.aimodel"]


# --- errors -------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(self.layer(x).mT @ self.layer(x))


class Computing(nn.Module):
    """Looks up what its inputs say."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp()

    def forward(self, x: Tensor) -> Tensor:
        indices = (x > 0).to(torch.uint8).flatten()[:2]
        lut = torch.ones(1, 1, 4, 1)
        return self.layer(x) @ depalettize(indices, lut, [4, 2], 2, 0, torch.float32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching, r"torch\.export cannot take Branching .*[Cc]ould not (guard|extract)"),
        (Foreign, r"no lowering for .*_linalg_eigh.*register one"),
        (Computing, r"needs palettized weights to be constants; .* depends on the inputs"),
    ],
)
def test_a_model_that_does_not_convert_is_an_error_that_names_the_operation(
    tmp_path, model, message
):
    with pytest.raises(BackendError, match=message):
        support.exported(model(), X, tmp_path / "m.aimodel")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_errors_of_ours(tmp_path):
    model = mlp()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec()))
    palettizer.prepare(X)
    with pytest.raises(BackendError, match="needs example_inputs"):
        palettizer.export(tmp_path / "m.aimodel", backend="coreai")
    with pytest.raises(BackendError, match=r"tuple of positional or a dictionary.*got int"):
        palettizer.export(tmp_path / "m.aimodel", 3, backend="coreai")
    with pytest.raises(BackendError, match=r"writes \.aimodel"):
        palettizer.export(tmp_path / "m.mlpackage", X, backend="coreai")
    with pytest.raises(BackendError, match=r"writes \.aimodel folders"):
        CoreAIBackend(CoreAIOptions()).export(model, X, tmp_path / "m.bin")


def test_files_that_cannot_be_read_are_errors_of_ours(tmp_path):
    with pytest.raises(BackendError, match="cannot be read"):
        read_weights(tmp_path / "nothing.aimodel")
    path = support.exported(mlp(), X, tmp_path / "m.aimodel")
    (path / "main.mlirb").write_bytes((path / "main.mlirb").read_bytes()[:200])
    with pytest.raises(BackendError, match="cannot be read"):
        read_weights(path)


# --- converting by oneself ----------------------------------------------------------------------


def test_lowerings_can_be_registered_with_a_converter_of_ones_own(tmp_path):
    with quiet():
        from coreai_torch import TorchConverter

    model = mlp()
    spec = PalettizationSpec(n_bits=4, lut_qspec=QuantizationSpec(dtype="float8_e5m2"))
    palettizer = KMeansPalettizer(model, support.config(spec))
    palettizer.prepare(X)
    palettizer.finalize(backend="coreai")
    converter = TorchConverter()
    coreai_backend.register_lowerings(converter)
    for name in ("first", "second"):
        converter.add_exported_program(export_program(model, X), entrypoint_name=name)
    path = tmp_path / "own.aimodel"
    with quiet():
        converter.to_coreai().save_asset(path)
    stored = stored_weights(path)
    assert [w.n_bits for w in stored] == [4] * 4
    wanted = support.palettes(model)
    by_shape = {tuple(w.shape): w.decode() for w in wanted.values()}
    assert all(support.same_values(w.dense, by_shape[w.dense.shape]) for w in stored)
    with pytest.raises(ValueError, match="already registered"):
        coreai_backend.register_lowerings(converter)


def test_the_reader_looks_up_as_the_definition_says():
    """Against a loop over elements, for blocks on two axes and vectors on either."""
    from coreai_backend.decoding import looked_up

    random = np.random.default_rng(0)
    for axis, shape in itertools.product((0, 1), ((4, 6), (2, 2))):
        indices = random.integers(0, 4, shape).astype(np.uint8)
        lut = random.normal(size=(2, 2, 4, 3))
        dense = looked_up(indices, lut, axis)
        for (i, j), index in np.ndenumerate(indices):
            entry = lut[i // (shape[0] // 2), j // (shape[1] // 2), index]
            for v, value in enumerate(entry):
                at = (i * 3 + v, j) if axis == 0 else (i, j * 3 + v)
                assert dense[at] == value


def test_a_model_from_a_checkpoint_is_refused_alike(tmp_path):
    palettizer = KMeansPalettizer(mlp().double())
    palettizer.prepare((X[0].double(),))
    palettizer.export(tmp_path / "m.safetensors")
    loaded = load_checkpoint(tmp_path / "m.safetensors", mlp().double())
    for model in (loaded, None):
        with pytest.raises(BackendError, match=r"0\.weight: Core AI has no float64 weights"):
            palettizer.export(tmp_path / "m.aimodel", (X[0].double(),), model=model)
    assert not (tmp_path / "m.aimodel").exists()


def test_a_graph_that_somebody_has_traced_is_exported(tmp_path):
    model = mlp()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=3)))
    palettizer.prepare(X)
    palettizer.finalize(backend="coreai")
    weights = {name: model.get_submodule(name).weight.detach().numpy() for name in ("0", "2")}
    graph = torch.export.export(model, X).module()
    path = palettizer.export(tmp_path / "m.aimodel", X, model=graph)
    stored = read_weights(path)
    assert {name: np.array_equal(stored[f"{name}.weight"], w) for name, w in weights.items()} == {
        "0": True,
        "2": True,
    }
    (got,) = support.run_file(path, *X)
    assert np.allclose(got, model(*X).detach(), atol=1e-5)
