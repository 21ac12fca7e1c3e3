"""Picking plug-ins by name: duplicates, unknown names, options, and a whole trip."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import palette_core
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
)
from palette_core.errors import (
    DuplicatePluginError,
    MissingBackendError,
    PaletteError,
    PlanError,
    PluginOptionsError,
    UnknownPluginError,
)
from palette_core.plugins.catalog import discover, get_catalog
from palette_core.plugins.kinds import EXPORT_BACKEND
from palette_core.plugins.options import validate_options

GRANULARITIES = '''
from typing import Literal

from pydantic import Field
from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import Granularity
from palette_core.plugins import GranularityEntry, hookimpl


class Tiles(Granularity):
    """Square tiles over the last two axes."""

    type: Literal["tiles"] = "tiles"
    side: int = Field(gt=0)

    def block_shape(self, shape, default_axis):
        if len(shape) < 2 or shape[-1] % self.side or shape[-2] % self.side:
            raise IncompatibleShapeError(f"tiles of side {self.side} do not fit shape {shape}")
        return (*shape[:-2], self.side, self.side)


@hookimpl
def palette_core_granularities():
    return [
        GranularityEntry(name="tiles", summary="2-D", interface=1, options=Tiles, model=Tiles)
    ]
'''


def config_with(**spec: object) -> KMeansPalettizerConfig:
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": PalettizationSpec(**spec)}
        )
    )


def prepare(model: nn.Module, config: KMeansPalettizerConfig) -> nn.Module:
    return KMeansPalettizer(model, config).prepare((torch.ones(1, 8),))


# --- duplicates ----------------------------------------------------------------------------------


def test_two_claims_on_one_name_matter_only_when_it_is_picked(site):
    site.install_good("fake-alpha", "contested")
    site.install_good("fake-beta", "contested")
    site.install_good("fake-gamma", "peaceful")
    registry = discover().clusterers
    assert registry.get("peaceful").name == "peaceful"
    assert registry.names().count("contested") == 1
    with pytest.raises(DuplicatePluginError) as caught:
        registry.get("contested")
    message = str(caught.value)
    assert "clusterer 'contested' is registered by fake-alpha 1.2.3 and fake-beta 1.2.3" in message
    assert "uninstall or block fake-alpha 1.2.3 or fake-beta 1.2.3" in message


def test_a_claim_on_a_built_ins_name_is_set_aside_alone(site):
    site.install_good("fake-alpha", "kmeans1d", "fine")
    catalog = discover()
    assert catalog.clusterers.find("kmeans1d").distribution.name == "palette-core"
    assert catalog.clusterers.find("fine").distribution.name == "fake-alpha"
    (refused,) = [q for q in catalog.quarantined if q.distribution.name == "fake-alpha"]
    assert refused.entry_point == "clusterer:kmeans1d"
    assert refused.error == (
        "DuplicatePluginError: clusterer 'kmeans1d' claims the name 'kmeans1d', "
        "as a built-in one does"
    )


SUFFIX = """
    from palette_core.plugins import ExportBackendEntry, LutQuantizerEntry, hookimpl

    @hookimpl
    def palette_core_export_backends():
        entry = {"summary": "s", "interface": 1, "factory": print}
        return [
            ExportBackendEntry(name="{package}", suffix=".own", **entry),
            ExportBackendEntry(name="{package}-2", suffix=".safetensors", **entry),
        ]

    @hookimpl
    def palette_core_lut_quantizers():
        return [
            LutQuantizerEntry(
                name="{package}", summary="s", interface=1, factory=print,
                dtypes=("int8", "int16"), is_default=True,
            )
        ]
"""


def test_a_suffix_and_a_default_are_claims_too(site):
    site.install("fake-alpha", SUFFIX)
    catalog = discover()
    errors = {q.entry_point: q.error for q in catalog.quarantined}
    assert "claims the suffix '.safetensors', as" in errors["backend:fake_alpha-2"]
    assert "claims to be the default for int8, as" in errors["lut-quantizer:fake_alpha"]
    assert catalog.export_backends.find_by("suffix", ".own").entry.name == "fake_alpha"
    assert catalog.export_backends.find_by("suffix", ".safetensors").entry.name == "packed"
    assert catalog.export_backends.find_by("suffix", ".none") is None


def test_two_outsiders_with_one_suffix_are_named_when_it_is_picked(site):
    site.install("fake-alpha", SUFFIX)
    site.install("fake-beta", SUFFIX)
    registry = discover().export_backends
    assert registry.get("fake_beta").suffix == ".own"
    with pytest.raises(DuplicatePluginError) as caught:
        registry.find_by("suffix", ".own")
    assert "for suffix '.own' is registered by fake-alpha 1.0 and fake-beta 1.0" in str(
        caught.value
    )


def test_one_name_for_two_kinds_is_no_duplicate(site):
    site.install_good("fake-alpha", "per_tensor")
    catalog = discover()
    assert catalog.clusterers.get("per_tensor").summary == "evenly spread"
    assert catalog.granularities.get("per_tensor").model.__name__ == "PerTensorGranularity"


def test_a_contested_granularity_fails_in_a_spec_and_others_do_not(site):
    site.install("fake-tiles", GRANULARITIES)
    site.install("fake-more-tiles", GRANULARITIES)
    assert PalettizationSpec(granularity={"type": "per_tensor"}) == PalettizationSpec()
    with pytest.raises(ValidationError, match=r"fake-more-tiles 1\.0 and fake-tiles 1\.0"):
        PalettizationSpec(granularity={"type": "tiles", "side": 2})


# --- unknown names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "wrong", "right"),
    [
        ("clusterers", "kmean1d", "kmeans1d"),
        ("granularities", "per_tensors", "per_tensor"),
        ("lut_quantizers", "integers", "integer"),
        ("training_strategies", "frozn", "frozen"),
        ("export_backends", "torhc", "torch"),
    ],
)
def test_an_unknown_name_lists_what_is_installed_and_the_nearest(site, registry, wrong, right):
    found = getattr(discover(), registry)
    with pytest.raises(UnknownPluginError) as caught:
        found.get(wrong)
    message = str(caught.value)
    assert message.startswith(f"no {found.kind} is named {wrong!r}")
    assert f"did you mean {right!r}?" in message
    for name in found.names():
        assert name in message


def test_nothing_near_is_not_guessed_at(site):
    with pytest.raises(UnknownPluginError) as caught:
        discover().clusterers.get("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 3, ["kmeans1d"]])
def test_names_that_are_no_strings_are_unknown(site, wrong):
    with pytest.raises(UnknownPluginError, match="no clusterer is named"):
        discover().clusterers.get(wrong)


def test_an_unknown_granularity_in_a_spec_gets_the_same_message(site):
    site.install("fake-broken", "import no_such_module_anywhere", version="0.7")
    with pytest.raises(ValidationError) as caught:
        PalettizationSpec(granularity={"type": "per_tensr"})
    assert "did you mean 'per_tensor'" in str(caught.value)
    assert "fake-broken 0.7: ModuleNotFoundError" in str(caught.value)


# --- export backends that are known but absent ---------------------------------------------------


@pytest.mark.parametrize("name", ["coreml", "coreai"])
def test_a_known_backend_that_is_absent_names_what_to_install(site, name):
    catalog = discover()
    registry = catalog.export_backends
    without = replace(registry, items=tuple(i for i in registry if i.entry.name != name))
    catalog = replace(catalog, by_kind={**catalog.by_kind, EXPORT_BACKEND: without})
    with pytest.raises(MissingBackendError, match=f"plug-in 'palette-core-{name}', which"):
        catalog.backend(name)
    with pytest.raises(UnknownPluginError, match="no export backend is named 'coremll'"):
        catalog.backend("coremll")
    assert catalog.backend("packed").suffix == ".safetensors"


@pytest.mark.parametrize("extra", ["demo", "plot", "testing", "new-plugin"])
def test_other_extras_are_no_backends(site, extra):
    with pytest.raises(UnknownPluginError):
        discover().backend(extra)


def test_a_known_backend_that_is_broken_shows_its_error_and_not_how_to_install_it(site):
    site.install("palette-core-coreml", "raise ImportError('coremltools is too old')")
    catalog = discover()
    with pytest.raises(UnknownPluginError, match="coremltools is too old"):
        catalog.backend("coreml")


# --- options -------------------------------------------------------------------------------------


def test_options_are_validated_and_frozen(site):
    site.install_good()
    entry = discover().clusterers.get("spread")
    options = validate_options(entry, {"stretch": 2})
    assert options.stretch == 2.0
    with pytest.raises(ValidationError, match="frozen"):
        options.stretch = 3.0


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"strech": 2}, ["unknown option 'strech'", "did you mean 'stretch'?"]),
        ({"stretch": -1}, ["stretch=-1", "greater than 0"]),
        ({"stretch": "wide"}, ["stretch='wide'"]),
        ({"stretch": 0, "other": 1}, ["stretch=0", "unknown option 'other'"]),
    ],
)
def test_bad_options_name_plug_in_option_value_and_what_there_is(site, given, texts):
    site.install_good()
    with pytest.raises(PluginOptionsError) as caught:
        validate_options(discover().clusterers.get("spread"), given)
    for text in ["clusterer 'spread'", "(options: stretch)", *texts]:
        assert text in str(caught.value)


def test_a_required_option_is_asked_for(site):
    site.install("fake-tiles", GRANULARITIES)
    entry = discover().granularities.get("tiles")
    with pytest.raises(PluginOptionsError, match="option 'side' is required"):
        validate_options(entry, {})


def test_a_validator_that_breaks_is_the_plug_ins_fault(site):
    hooks = """
        from pydantic import BaseModel, field_validator
        from palette_core.plugins import ClustererEntry, hookimpl

        class Options(BaseModel, frozen=True, extra="forbid"):
            n: int = 1

            @field_validator("n")
            @classmethod
            def check(cls, value):
                return {}[value]

        @hookimpl
        def palette_core_clusterers():
            return [
                ClustererEntry(
                    name="fragile", summary="s", interface=1, options=Options, factory=print
                )
            ]
    """
    site.install("fake-fragile", hooks)
    entry = discover().clusterers.get("fragile")
    with pytest.raises(PluginOptionsError, match="'fragile': checking its options failed: KeyE"):
        validate_options(entry, {"n": 2})


# --- the whole trip ------------------------------------------------------------------------------


def test_a_third_partys_granularity_is_picked_by_type_and_round_trips(site):
    site.install("fake-tiles", GRANULARITIES)
    spec = PalettizationSpec(granularity={"type": "tiles", "side": 4})
    assert type(spec.granularity).__name__ == "Tiles"
    assert PalettizationSpec(**spec.model_dump()) == spec
    assert PalettizationSpec.model_validate_json(spec.model_dump_json()) == spec
    config = config_with(granularity={"type": "tiles", "side": 4})
    assert KMeansPalettizerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValidationError, match="side"):
        PalettizationSpec(granularity={"type": "tiles", "sides": 4})


def test_a_third_partys_granularity_survives_the_whole_trip(site):
    site.install("fake-tiles", GRANULARITIES)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    dense = model[0].weight.detach().clone()
    palettizer = KMeansPalettizer(
        model, config_with(n_bits=2, granularity={"type": "tiles", "side": 4})
    )
    x = torch.randn(3, 8)
    prepared = palettizer.prepare((x,))
    weight = prepared[0].weight.detach()
    for row in (slice(0, 4), slice(4, 8)):
        for column in (slice(0, 4), slice(4, 8)):
            entries = weight[row, column].unique()
            assert len(entries) == 4
            nearest = entries[(dense[row, column, None] - entries).abs().argmin(-1)]
            assert torch.equal(nearest, weight[row, column])
    assert len(weight.unique()) == 16
    expected = prepared(x)
    assert torch.equal(palettizer.finalize(backend="packed")(x), expected)


def test_a_third_partys_clusterer_is_picked_by_name_with_its_options(site):
    site.install_good()
    weight = torch.arange(64.0).reshape(8, 8) / 64
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    model[0].weight.data.copy_(weight)
    prepare(model, config_with(n_bits=2, algorithm="spread"))
    assert torch.allclose(model[0].weight.unique(), torch.linspace(0, 63 / 64, 4))
    other = nn.Sequential(nn.Linear(8, 8)).eval()
    other[0].weight.data.copy_(weight)
    prepare(other, config_with(n_bits=2, algorithm="spread", algorithm_options={"stretch": 0.5}))
    assert torch.allclose(other[0].weight.unique(), torch.linspace(0, 63 / 128, 4))


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ({"algorithm": "spraed"}, UnknownPluginError, "did you mean 'spread'"),
        (
            {"algorithm": "spread", "algorithm_options": {"strech": 1}},
            PluginOptionsError,
            "did you mean 'stretch'",
        ),
        ({"algorithm": "spread", "cluster_dim": 2}, PaletteError, "does not take vectors"),
        ({"training_strategy": "frozn"}, UnknownPluginError, "did you mean 'frozen'"),
        ({"training_strategy_options": {"x": 1}}, PluginOptionsError, "unknown option 'x'"),
        (
            {"lut_qspec": {"dtype": "int8", "quantizer": "integr"}},
            UnknownPluginError,
            "did you mean 'integer'",
        ),
    ],
)
def test_a_wrong_choice_is_refused_in_planning_and_the_model_is_unchanged(site, spec, error, text):
    site.install_good()
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": PalettizationSpec(**spec)}, enable_fast_kmeans_mode=False
        )
    )
    with pytest.raises(error, match=text):
        prepare(model, config)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_clusterer_that_raises_is_named_with_version_and_tensor(site):
    hooks = """
        from palette_core.plugins import ClustererEntry, hookimpl

        def make(options):
            raise LookupError("no licence")

        @hookimpl
        def palette_core_clusterers():
            return [ClustererEntry(name="faulty", summary="s", interface=1, factory=make)]
    """
    site.install("fake-faulty", hooks, version="3.1")
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    before = list(model.state_dict())
    with pytest.raises(PaletteError) as caught:
        prepare(model, config_with(algorithm="faulty"))
    for text in ("0.weight", "faulty", "fake-faulty 3.1", "LookupError: no licence"):
        assert text in str(caught.value)
    assert list(model.state_dict()) == before
    assert type(model[0].weight) is nn.Parameter


# --- dtypes of tables ----------------------------------------------------------------------------

DTYPES = """
    from palette_core.plugins import LutQuantizer, LutQuantizerEntry, hookimpl

    class Scaled(LutQuantizer):
        def __init__(self, spec):
            self.dtype = spec.dtype

        def quantize(self, lut):
            import torch
            from palette_core.tensors import QuantizedLut

            scale = lut.float().abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
            return QuantizedLut((lut.float() / scale).to(self.dtype), scale)

    @hookimpl
    def palette_core_lut_quantizers():
        return [
            LutQuantizerEntry(
                name="scaled", summary="s", interface=1, is_default=True,
                factory=lambda spec, options: Scaled(spec),
                dtypes=("float8_e4m3fnuz", "int16"),
            )
        ]
"""


def test_a_dtype_that_a_third_party_makes_survives_the_whole_trip(site, tmp_path):
    with pytest.raises(
        ValidationError, match=r"lut_qspec\.dtype must be one of int8, uint8, float8"
    ):
        PalettizationSpec(lut_qspec={"dtype": "float8_e4m3fnuz"})
    site.install("fake-dtypes", DTYPES)
    get_catalog.cache_clear()
    config = config_with(n_bits=2, lut_qspec={"dtype": "float8_e4m3fnuz"})
    assert KMeansPalettizerConfig.from_dict(config.to_dict()) == config
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    dense = copy.deepcopy(model)
    x = torch.randn(3, 8)
    palettizer = KMeansPalettizer(model, config)
    expected = palettizer.prepare((x,))(x)
    entries = model[0].weight.detach().unique()
    scale = entries.abs().max()
    exact = (entries / scale).to(torch.float8_e4m3fnuz).float() * scale
    assert torch.equal(exact, entries)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert torch.equal(model(x), expected)
    assert torch.equal(load_checkpoint(path, dense)(x), expected)


def test_a_dtype_that_cannot_be_stored_is_refused_by_name(site):
    site.install("fake-dtypes", DTYPES)
    get_catalog.cache_clear()
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    with pytest.raises(PlanError, match="quantizer 'scaled' makes int16, and entries are stored"):
        prepare(model, config_with(n_bits=2, lut_qspec={"dtype": "int16"}))


def test_the_core_names_no_plug_in() -> None:
    """Neither an algorithm nor a distribution: the seeds' names of targets are the exception."""
    root = Path(palette_core.__file__).parent
    clusterers = discover().clusterers.names()
    assert {"kmeans1d", "gptq"} <= {*clusterers}
    rooms = ("plugins", "config", "planning", "engine", "palettizer", "storage", "tensors")
    text = re.compile("|".join(rf"[\"']{re.escape(name)}[\"']" for name in clusterers))
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for room in rooms
        for path in sorted((root / room).rglob("*.py"))
        for line in path.read_text().splitlines()
        if text.search(line) or re.search(r"palette-core-|coremltools|kmeans_sklearn", line)
    ]
    assert not found
