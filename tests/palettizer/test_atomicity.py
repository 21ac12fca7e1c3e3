"""Whatever stops prepare(), the model is as it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from palettizer_models import (
    EVERYTHING_INPUTS,
    TOKENS,
    Everything,
    Tied,
    assert_untouched,
    everything_config,
    snapshot,
    weight_config,
)
from torch import nn
from torch.nn.utils import parametrize

from palette_core import KMeansPalettizer
from palette_core.builtins.backends.packed import PackedBackend
from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.engine import cluster_model as clustering
from palette_core.engine import executor as execution
from palette_core.errors import BackendError, ClusteringError, PluginOptionsError
from palette_core.model import parametrization
from palette_core.palettizer import attaching, exporting, palettizer
from palette_core.palettizer import palettizer as palettizer_module
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.plugins.catalog import get_catalog
from palette_core.storage import pack
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import palette_sites

FAILURES = [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3), MemoryError()]
failures = pytest.mark.parametrize("failure", FAILURES, ids=lambda f: type(f).__name__)


class At:
    """Calls through, and raises at the n-th call."""

    def __init__(self, call: object, number: int, failure: BaseException, after: bool) -> None:
        self.call, self.left, self.failure, self.after = call, number, failure, after

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise self.failure
        result = self.call(*args, **kwargs)  # type: ignore[operator]
        if self.left == 0:
            raise self.failure
        return result


def as_method(call: At) -> object:
    """A function, which unlike an object with ``__call__`` gets its ``self`` from a class."""

    def method(*args: object, **kwargs: object) -> object:
        return call(*args, **kwargs)

    return method


def attempt(model: nn.Module, failure: BaseException) -> None:
    """Prepare ``model``, which fails; it must be untouched, and prepare well afterwards."""
    before = snapshot(model)
    with pytest.raises((type(failure), ClusteringError)):
        KMeansPalettizer(model, everything_config()).prepare(EVERYTHING_INPUTS)
    assert_untouched(model, before)
    expected = model(*EVERYTHING_INPUTS)
    assert expected.requires_grad


@failures
@pytest.mark.parametrize("number", [1, 2, 10])
def test_clustering_stops(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, number: int
) -> None:
    with monkeypatch.context() as patch:
        stop = At(KMeans1d.fit, number, failure, after=False)
        patch.setattr(KMeans1d, "fit", as_method(stop))
        model = Everything().eval()
        attempt(model, failure)
    assert sum(len(site.names) for site in palette_sites(_prepared(model))) == 10


def _prepared(model: nn.Module) -> nn.Module:
    return KMeansPalettizer(model, everything_config()).prepare(EVERYTHING_INPUTS)


@failures
@pytest.mark.parametrize("number", [1, 6, 10])
@pytest.mark.parametrize("after", [False, True])
def test_attaching_stops(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, number: int, after: bool
) -> None:
    stop = At(parametrization.attach, number, failure, after)
    monkeypatch.setattr(parametrization, "attach", stop)
    attempt(Everything().train(), failure)


@pytest.mark.parametrize("inside", ["_inject_new_class", "_inject_property", "ParametrizationList"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 7])
def test_attaching_stops_in_the_middle_of_torch(
    monkeypatch: pytest.MonkeyPatch, inside: str, after: bool, number: int
) -> None:
    stop = At(getattr(parametrize, inside), number, KeyboardInterrupt(), after)
    if inside == "ParametrizationList":
        # A class that torch also asks about with isinstance: stop its constructor.
        init = parametrize.ParametrizationList.__init__
        stop = At(init, number, KeyboardInterrupt(), after)
        monkeypatch.setattr(parametrize.ParametrizationList, "__init__", as_method(stop))
    else:
        monkeypatch.setattr(parametrize, inside, stop)
    attempt(Everything().eval(), KeyboardInterrupt())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (palettizer, "trace"),
        (palettizer, "make_plan"),
        (palettizer, "warn"),
        (clustering, "check_finite"),
        (palettizer, "cluster_model"),
        (palettizer, "make_report"),
        (attaching, "PalettizedWeight"),
        (execution, "cluster_here"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_at_every_stage(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, after: bool
) -> None:
    model = Everything().eval()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, At(getattr(module, name), 1, KeyboardInterrupt(), after))
        attempt(model, KeyboardInterrupt())
    _prepared(model)


def test_ctrl_c_in_the_models_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Everything().train()
    with monkeypatch.context() as patch:
        patch.setattr(nn.LSTM, "forward", At(nn.LSTM.forward, 1, KeyboardInterrupt(), False))
        before = snapshot(model)
        with pytest.raises(KeyboardInterrupt):
            _prepared(model)
    assert_untouched(model, before)


def test_ties_survive_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tied()
    before = snapshot(model)
    config = weight_config()
    config.set_module_type(nn.Embedding, config.global_config)
    with monkeypatch.context() as patch:
        patch.setattr(parametrization, "attach", At(parametrization.attach, 3, MemoryError(), True))
        with pytest.raises(MemoryError):
            KMeansPalettizer(model, config).prepare(TOKENS)
    assert_untouched(model, before)
    assert model.head.weight is model.embed.weight


def test_an_optimizer_made_before_still_trains_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Everything().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(parametrization, "attach", At(parametrization.attach, 9, MemoryError(), True))
        with pytest.raises(MemoryError):
            _prepared(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(*EVERYTHING_INPUTS).square().sum().backward()
    optimizer.step()
    assert not [n for n, p in model.named_parameters() if torch.equal(p, before[n])]


def test_a_layer_that_was_parametrized_before_keeps_its_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.b = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model = Model()
    cls, chain = type(model.a), model.a.parametrizations.weight
    members = dict(vars(cls))
    original = [id(p) for p in model.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parametrization, "attach", At(parametrization.attach, 2, MemoryError(), True))
        with pytest.raises(MemoryError):
            KMeansPalettizer(model, weight_config()).prepare((torch.zeros(1, 8),))
    assert type(model.a) is cls
    assert dict(vars(cls)) == members
    assert model.a.parametrizations.weight is chain
    assert len(chain) == 1
    assert [id(p) for p in model.parameters()] == original


def test_a_missing_or_unfit_sensitivity_file_leaves_the_model(tmp_path: Path) -> None:
    model = Everything().eval()
    before = snapshot(model)
    with pytest.raises(FileNotFoundError):
        KMeansPalettizer(model).prepare(EVERYTHING_INPUTS, tmp_path / "none.pt")
    assert_untouched(model, before)


def test_options_of_a_strategy_that_do_not_validate() -> None:
    model = Everything().eval()
    before = snapshot(model)
    config = weight_config(training_strategy_options={"rate": 1})
    with pytest.raises(PluginOptionsError, match="rate"):
        KMeansPalettizer(model, config).prepare(EVERYTHING_INPUTS)
    assert_untouched(model, before)


@failures
def test_finalize_packs_all_weights_or_none(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    prepared = KMeansPalettizer(Everything().eval(), everything_config())
    model = prepared.prepare(EVERYTHING_INPUTS)
    expected = model(*EVERYTHING_INPUTS)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(pack, "replace_chain", At(pack.replace_chain, 4, failure, after=True))
        with pytest.raises(type(failure)):
            prepared.finalize(backend="packed")
    assert all(isinstance(site.palette, PalettizedWeight) for site in palette_sites(model))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    final = prepared.finalize(backend="packed")
    assert all(isinstance(site.palette, PackedWeight) for site in palette_sites(final))
    torch.testing.assert_close(final(*EVERYTHING_INPUTS), expected)


class Failing(PackedBackend):
    """Writes half of its file and fails, or writes somewhere else."""

    def __init__(self, failure: BaseException | None) -> None:
        self.failure = failure

    def export(
        self, model: nn.Module, example_inputs: Any, path: Path, dynamic_shapes: Any = None
    ) -> Path:
        if self.failure is None:
            elsewhere = path.parent.parent / "elsewhere.safetensors"
            elsewhere.write_text("whole")
            return elsewhere
        path.write_text("half")
        raise self.failure


@pytest.mark.parametrize("failure", [*FAILURES, OSError("disk full"), None], ids=repr)
def test_a_failed_export_leaves_the_model_prepared_and_the_older_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: BaseException | None
) -> None:
    palettizer = KMeansPalettizer(Everything().eval(), everything_config())
    model = palettizer.prepare(EVERYTHING_INPUTS)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    out = tmp_path / "model.safetensors"
    out.write_text("older")
    found = exporting.find_target(get_catalog(), "packed", {})
    monkeypatch.setattr(
        exporting,
        "find_target",
        lambda *_: exporting.Target("packed", found.entry, Failing(failure)),
    )
    monkeypatch.setattr(palettizer_module, "find_target", exporting.find_target)
    with pytest.raises(BackendError if failure is None else type(failure)):
        palettizer.export(out, backend="packed")
    assert out.read_text() == "older"
    assert all(isinstance(site.palette, PalettizedWeight) for site in palette_sites(model))
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    monkeypatch.undo()
    assert palettizer.export(out, backend="packed") == out
    assert out.read_bytes() != b"older"
