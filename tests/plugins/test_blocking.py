"""Block lists: what ships with the core is a set of plug-ins that may be left out."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
    read_checkpoint,
    save_checkpoint,
)
from palette_core.cli import main
from palette_core.errors import (
    BlockedPluginError,
    CheckpointError,
    ConfigError,
    PaletteWarning,
    PlanError,
    UnknownPluginError,
)
from palette_core.plugins.blocking import VARIABLE, BlockList
from palette_core.plugins.catalog import discover, get_catalog
from palette_core.plugins.kinds import CLUSTERER, EXPORT_BACKEND
from palette_core.plugins.registries import CORE

BACKEND = """
from palette_core.plugins import Backend, ExportBackendEntry, hookimpl


class Arrays(Backend):
    def check_support(self, facts):
        return None

    def finalize(self, model, palettized):
        self.names = sorted(palettized)
        return model

    def export(self, model, example_inputs, path, dynamic_shapes=None):
        from palette_core.storage import palette_sites

        path.write_text(" ".join(site.name for site in palette_sites(model)))
        return path


@hookimpl
def palette_core_export_backends():
    return [
        ExportBackendEntry(
            name="arrays", summary="s", interface=1, factory=lambda _: Arrays(), suffix=".arrays"
        )
    ]
"""


@pytest.fixture
def block(site, monkeypatch):
    """Block items, and forget what was discovered."""

    def put(*items: str) -> None:
        monkeypatch.setenv(VARIABLE, ",".join(items))
        get_catalog.cache_clear()

    put()
    return put


def built_in(*kinds: object) -> list[str]:
    return [
        f"{kind.slug}:{item.entry.name}"
        for kind in kinds
        for item in discover()[kind]
        if item.distribution.name == CORE
    ]


def test_a_list_is_read() -> None:
    read = BlockList.read(" Palette_NF4, clusterer:kmeans1d ,,")
    assert read.entries == {"clusterer:kmeans1d"}
    assert read.has_distribution("palette.nf4")
    assert not read.has_distribution("palette")
    assert BlockList.read("") == BlockList()
    with pytest.raises(ConfigError, match=r"'clusterr:x': there is no kind.*mean 'clusterer'"):
        BlockList.read("clusterr:x")


def test_a_blocked_entry_says_so_and_the_rest_works(block) -> None:
    block("clusterer:kmeans1d")
    catalog = discover()
    with pytest.raises(BlockedPluginError, match="clusterer 'kmeans1d' is blocked by --block or "):
        catalog.clusterers.get("kmeans1d")
    with pytest.raises(UnknownPluginError, match=r"\(blocked: clusterer:kmeans1d\)"):
        catalog.clusterers.get("kmeans")
    assert catalog.clusterers.get("kmeans_vector")
    assert [(each.item, each.distribution.name) for each in catalog.blocked] == [
        ("clusterer:kmeans1d", CORE)
    ]


@pytest.mark.parametrize("item", ["clusterer:kmeans", "kmeans1d"])
def test_a_block_that_meets_nothing_is_warned_of(block, item) -> None:
    block(f"clusterer:gptq,{item}")
    with pytest.warns(PaletteWarning, match=f"'{item}' was to be blocked, and no ") as warned:
        discover()
    assert len(warned) == 1


def test_a_blocked_distribution_is_not_even_loaded(block, site) -> None:
    site.install("fake-broken", "raise RuntimeError('loaded')")
    block("Fake.Broken")
    catalog = discover()
    assert not [q for q in catalog.quarantined if q.distribution.name == "fake-broken"]
    assert [each.item for each in catalog.blocked] == ["fake-broken"]


def test_a_blocked_name_is_free_for_others(block, site) -> None:
    site.install_good("fake-good", "gptq")
    block(CORE)
    assert discover().clusterers.find("gptq").distribution.name == "fake-good"


@pytest.mark.parametrize("name", ["per_tensor", "per_grouped_channel"])
def test_a_blocked_granularity_is_refused_also_where_its_class_is_named(block, name) -> None:
    config = KMeansPalettizerConfig.presets.w8() if name == "per_tensor" else None
    config = config or KMeansPalettizerConfig.presets.w4(group_size=4)
    block(f"granularity:{name}")
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    with pytest.raises(BlockedPluginError, match=f"weight.*granularity '{name}' is blocked by"):
        KMeansPalettizer(model, config).prepare((torch.ones(1, 8),))


def test_a_blocked_lut_quantizer_is_told_where_its_dtype_is_asked_for(block) -> None:
    block("lut-quantizer:integer")
    told = r"lut_qspec.dtype must be one of .*got int8 \(blocked: lut-quantizer:integer\)"
    with pytest.raises(ValueError, match=told):
        PalettizationSpec(lut_qspec=QuantizationSpec())


def test_a_file_in_a_blocked_form_says_which_file_and_weight(block, tmp_path) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    path = save_checkpoint(KMeansPalettizer(model).prepare((torch.ones(1, 8),)), tmp_path / "m")
    block("stored-form:indices")
    with pytest.raises(CheckpointError, match=r"m: 0\.weight needs.*'indices' is blocked"):
        read_checkpoint(path)


def test_without_an_algorithm_the_config_has_to_choose(block) -> None:
    block("clusterer:kmeans1d")
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    with pytest.raises(PlanError, match=r"for scalars \(blocked: clusterer:kmeans1d\)"):
        KMeansPalettizer(model).prepare((torch.ones(1, 8),))


def test_plug_ins_alone_do_the_whole_trip(block, site, tmp_path) -> None:
    """Every built-in clusterer and backend is blocked; scikit-learn and an outsider do."""
    pytest.importorskip("kmeans_sklearn")
    site.install("fake-arrays", BACKEND)
    mine = built_in(CLUSTERER, EXPORT_BACKEND)
    assert len(mine) >= 5
    block(*mine)
    assert built_in(CLUSTERER, EXPORT_BACKEND) == []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    spec = PalettizationSpec(n_bits=2, algorithm="sklearn_kmeans")
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
        )
    )
    inputs = (torch.randn(3, 16),)
    palettizer = KMeansPalettizer(model, config)
    plan = palettizer.make_plan(inputs, backend="arrays")
    assert {tensor.algorithm for tensor in plan} == {"sklearn_kmeans"}
    prepared = palettizer.prepare(inputs, backend="arrays")
    expected = prepared(*inputs)
    assert all(len(prepared[at].weight.unique()) == 4 for at in (0, 2))
    finalized = palettizer.finalize(backend="arrays")
    assert torch.equal(finalized(*inputs), expected)
    written = KMeansPalettizer(finalized).export(tmp_path / "m.arrays", inputs, backend="arrays")
    assert written.read_text().split() == ["0.weight", "2.weight"]
    with pytest.raises(BlockedPluginError, match="export backend 'packed' is blocked"):
        KMeansPalettizer(finalized).export(tmp_path / "m.safetensors", inputs, backend="packed")


def test_the_command_line_blocks_and_lists_what_is_blocked(block, monkeypatch, capsys) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["palette", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    options = ("--block", "clusterer:gptq", "--block", "metric:hessian")
    shown = json.loads(run(*options, "plugins", "--json"))
    assert [each["item"] for each in shown["blocked"]] == ["clusterer:gptq", "metric:hessian"]
    assert "gptq" not in {row["name"] for row in shown["plugins"]}
    text = run("plugins")
    assert "Blocked: installed and left out" in text
    assert "clusterer:gptq" in text


def test_a_kind_that_does_not_exist_is_refused_on_the_command_line(
    block, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("sys.argv", ["palette", "--block", "clusterr:x", "plugins"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "there is no kind 'clusterr'; did you mean 'clusterer'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("default", "another"),
    [
        ("clusterer:kmeans1d", {"algorithm": "gptq"}),
        (
            "granularity:per_tensor",
            {"granularity": {"type": "per_grouped_channel", "group_size": 4}},
        ),
        ("training:frozen", {"training_strategy": "ste"}),
    ],
)
def test_a_blocked_default_is_refused_until_another_is_named(block, default, another) -> None:
    block(default)
    model, inputs = nn.Sequential(nn.Linear(16, 8)), (torch.randn(4, 16),)
    with pytest.raises((BlockedPluginError, PlanError), match="blocked"):
        KMeansPalettizer(model).make_plan(inputs)
    spec = PalettizationSpec(**another)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    )
    assert len(KMeansPalettizer(model, config).make_plan(inputs)) == 1


def test_sparse_weights_are_stored_by_indices_where_zeros_are_few(block) -> None:
    block("stored-form:indices")
    spec = PalettizationSpec(stored_form="sparse", sparsity_detection_threshold=0.0)
    for config in (
        None,
        KMeansPalettizerConfig(
            global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
        ),
    ):
        with pytest.raises(BlockedPluginError, match="stored form 'indices' is blocked"):
            KMeansPalettizer(nn.Sequential(nn.Linear(16, 8)), config).make_plan(
                (torch.randn(4, 16),)
            )


def test_nothing_else_that_is_blocked_refuses_the_default(block) -> None:
    model, inputs = nn.Sequential(nn.Linear(16, 8)), (torch.randn(4, 16),)
    kinds = [registry.kind for registry in discover().registries()]
    defaults = ("clusterer:kmeans1d", "granularity:per_tensor", "training:frozen")
    others = set(built_in(*kinds)) - {*defaults, "stored-form:indices", "operation:linear"}
    assert len(others) > 40
    block(*others)
    assert len(KMeansPalettizer(model).make_plan(inputs)) == 1
