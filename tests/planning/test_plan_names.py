"""Names of plug-ins and their options, checked before anything else, with the place of the spec."""

from __future__ import annotations

import pytest
from plan_helpers import OURS, plan_of
from plan_models import Deep, inputs

from palette_core import PalettizationSpec, QuantizationSpec
from palette_core.errors import PaletteError, PlanError, PluginOptionsError, UnknownPluginError
from palette_core.model import trace
from palette_core.planning import check_names, make_plan
from palette_core.plugins import Backend, Refusal
from palette_core.plugins.catalog import get_catalog


def places(spec: PalettizationSpec) -> dict[str, object]:
    """Return configs that hold ``spec``, by the path of the place."""
    states, op = {"weight": spec}, OURS.O(op_state_spec={"weight": spec})
    slow = {"enable_fast_kmeans_mode": False}
    none = {"op_state_spec": None}
    by_name = {"b.*": OURS.M(op_state_spec=states, **slow)}
    by_type = {"torch.nn.Linear": OURS.M(**none, module_state_spec=states)}
    linear = "module_type_configs['torch.nn.modules.linear.Linear']"
    return {
        "global_config.op_state_spec['weight']": OURS.K(
            global_config=OURS.M(op_state_spec=states, **slow)
        ),
        "global_config.op_type_config['linear'].op_state_spec['weight']": OURS.K(
            global_config=OURS.M(**none, op_type_config={"linear": op})
        ),
        "global_config.op_name_config['a.*'].op_state_spec['weight']": OURS.K(
            global_config=OURS.M(**none, op_name_config={"a.*": op})
        ),
        "module_name_configs['b.*'].op_state_spec['weight']": OURS.only(
            module_name_configs=by_name
        ),
        f"{linear}.module_state_spec['weight']": OURS.only(module_type_configs=by_type),
    }


PLACES = list(places(PalettizationSpec()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        (
            PalettizationSpec(algorithm="kmeens1d"),
            UnknownPluginError,
            ["'kmeens1d'", "did you mean 'kmeans1d'"],
        ),
        (
            PalettizationSpec(algorithm_options={"exakt": True}),
            PluginOptionsError,
            ["kmeans1d", "exakt"],
        ),
        (
            PalettizationSpec(algorithm="kmeans1d", cluster_dim=2),
            PlanError,
            ["'kmeans1d' does not take vectors (cluster_dim=2)", "kmeans_vector"],
        ),
        (
            PalettizationSpec(algorithm="kmeans_vector", algorithm_options={"nope": 1}),
            PaletteError,
            ["kmeans_vector"],
        ),
        (
            PalettizationSpec(training_strategy="frozn"),
            UnknownPluginError,
            ["'frozn'", "did you mean 'frozen'"],
        ),
        (
            PalettizationSpec(training_strategy_options={"rate": 1}),
            PluginOptionsError,
            ["frozen", "rate"],
        ),
        (
            PalettizationSpec(lut_qspec=QuantizationSpec(quantizer="intiger")),
            UnknownPluginError,
            ["'intiger'", "did you mean 'integer'"],
        ),
        (
            PalettizationSpec(lut_qspec=QuantizationSpec(quantizer="float8")),
            PlanError,
            ["'float8' cannot make int8", "integer"],
        ),
        (
            PalettizationSpec(lut_qspec=QuantizationSpec(quantizer_options={"rate": 1})),
            PluginOptionsError,
            ["rate"],
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_wrong_name_says_where(place, spec, kind, words):
    config = places(spec)[place]
    with pytest.raises(kind) as caught:
        check_names(config, get_catalog())
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert all(word in message for word in words), message
    with pytest.raises(kind):
        plan_of(Deep(), config)


def test_names_are_checked_even_where_a_rule_matches_nothing():
    wrong = OURS.M(op_state_spec={"weight": PalettizationSpec(algorithm="no such")})
    with pytest.raises(UnknownPluginError, match=r"^module_name_configs\['none'\]"):
        plan_of(Deep(), OURS.K(global_config=OURS.w(3), module_name_configs={"none": wrong}))


def test_the_plan_has_everything_resolved():
    spec = PalettizationSpec(lut_qspec=QuantizationSpec(dtype="float8_e4m3fn"))
    config = OURS.K(global_config=OURS.M(op_state_spec={"weight": spec}))
    tensor = plan_of(Deep(), config)["a.weight"]
    assert (tensor.algorithm, tensor.lut_quantizer) == ("kmeans1d", "float8")
    entry = get_catalog().clusterers.get("kmeans1d")
    assert tensor.algorithm_options == entry.options()


class Picky(Backend):
    """Takes four bits only."""

    def check_support(self, facts):
        if facts.spec.n_bits == 4:
            return None
        return Refusal("four bits only", facts.spec.model_copy(update={"n_bits": 4}))

    def finalize(self, model, palettized):
        return model

    def export(self, model, example_inputs, path, dynamic_shapes=None):
        return path


def test_a_backend_refuses_in_planning():
    graph = trace(Deep(), inputs())
    config = OURS.K(global_config=OURS.w(4), module_name_configs={"b": OURS.w(2)})
    with pytest.raises(PlanError) as caught:
        make_plan(graph, config, get_catalog(), backend=Picky())
    message = str(caught.value)
    assert "b.0.weight" in message
    assert "b.1.0.weight" in message
    assert "a.weight" not in message
    assert "four bits only; what works nearest to it: {'n_bits': 4}" in message
    assert len(make_plan(graph, OURS.K(), get_catalog(), backend=Picky())) == 4
