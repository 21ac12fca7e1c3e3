"""Defaults, None, "*", activation fields, fast mode, and assignment of the config classes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
from config_strategies import configs
from hypothesis import given
from pydantic import ValidationError
from torch import nn

from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PATSchedule,
)
from palette_core.spec import PalettizationSpec, default_weight_palettization_spec

DEFAULT = {
    "weight": default_weight_palettization_spec(),
    "in_proj_weight": default_weight_palettization_spec(),
}
OFF = {"*": None}
TWO = PalettizationSpec(n_bits=2)
PAIRS = PalettizationSpec(cluster_dim=2)
CLASSES = [KMeansPalettizerConfig, ModuleKMeansPalettizerConfig, OpKMeansPalettizerConfig]
LINEAR = "torch.nn.modules.linear.Linear"


# --- defaults and None --------------------------------------------------------------------------


def test_documented_defaults() -> None:
    assert OpKMeansPalettizerConfig().op_state_spec == DEFAULT
    module = ModuleKMeansPalettizerConfig()
    assert module.op_state_spec == DEFAULT
    assert module.op_type_config == module.op_name_config == module.module_state_spec == {}
    assert module.enable_fast_kmeans_mode is True
    assert module.rounding_precision == 4
    assert module.pat_schedule is None
    config = KMeansPalettizerConfig()
    assert config.global_config == module
    assert config.module_type_configs == config.module_name_configs == {}
    assert config.seed == 0


def test_documented_equivalences() -> None:
    assert (
        KMeansPalettizerConfig()
        == KMeansPalettizerConfig(global_config=ModuleKMeansPalettizerConfig())
        == KMeansPalettizerConfig(global_config=ModuleKMeansPalettizerConfig(op_state_spec=DEFAULT))
        == KMeansPalettizerConfig(module_type_configs={}, module_name_configs=None)
    )
    assert OpKMeansPalettizerConfig() == OpKMeansPalettizerConfig(op_state_spec=DEFAULT)


def test_defaults_are_not_shared() -> None:
    one = ModuleKMeansPalettizerConfig()
    one.op_state_spec["bias"] = TWO
    assert ModuleKMeansPalettizerConfig().op_state_spec == DEFAULT


@pytest.mark.parametrize("cls", [ModuleKMeansPalettizerConfig, OpKMeansPalettizerConfig])
def test_none_for_states_turns_them_off_and_empty_names_nothing(cls: Any) -> None:
    assert cls(op_state_spec=None).op_state_spec == OFF
    assert cls(op_state_spec={}).op_state_spec == {}
    assert cls(op_state_spec=None) == cls.disabled()
    assert cls(op_state_spec={"weight": None}).op_state_spec == {"weight": None}


def test_none_for_the_other_mappings_is_empty() -> None:
    none = ModuleKMeansPalettizerConfig(
        op_type_config=None, op_name_config=None, module_state_spec=None
    )
    assert none == ModuleKMeansPalettizerConfig()


def test_none_for_an_entry_turns_it_off() -> None:
    off = OpKMeansPalettizerConfig(op_state_spec=OFF)
    module = ModuleKMeansPalettizerConfig(
        op_type_config={"linear": None}, op_name_config={"a.linear": None}
    )
    assert module.op_type_config == {"linear": off}
    assert module.op_name_config == {"a.linear": off}
    config = KMeansPalettizerConfig(
        module_type_configs={nn.Linear: None}, module_name_configs={"a": None}
    )
    for entry in (config.module_type_configs[LINEAR], config.module_name_configs["a"]):
        assert entry.is_disabled
        assert entry == ModuleKMeansPalettizerConfig(op_state_spec=OFF)


def test_global_config_none_is_disabled() -> None:
    config = KMeansPalettizerConfig(global_config=None)
    assert config.global_config == ModuleKMeansPalettizerConfig.disabled()
    assert config != KMeansPalettizerConfig()


@pytest.mark.parametrize(
    "named",
    [
        {"module_type_configs": {nn.Linear: ModuleKMeansPalettizerConfig()}},
        {"module_name_configs": {"a": ModuleKMeansPalettizerConfig()}},
        {"module_name_configs": {"a": ModuleKMeansPalettizerConfig(), "b": None}},
    ],
)
def test_without_a_global_config_modules_that_are_not_listed_are_skipped(named: Any) -> None:
    assert KMeansPalettizerConfig(**named).global_config.is_disabled
    assert KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": named}
    ) == KMeansPalettizerConfig(**named)
    both = KMeansPalettizerConfig(global_config=ModuleKMeansPalettizerConfig(), **named)
    assert both.global_config == ModuleKMeansPalettizerConfig()


@pytest.mark.parametrize(
    "skipped",
    [
        {"module_type_configs": {nn.BatchNorm2d: None}},
        {"module_type_configs": {}, "module_name_configs": {"2": None}},
        {"module_name_configs": {"2": ModuleKMeansPalettizerConfig.disabled()}},
        {"module_name_configs": {"2": {"op_state_spec": {}}}},
        {"module_name_configs": None, "module_type_configs": None},
    ],
)
def test_a_config_that_only_skips_keeps_the_default_for_the_rest(skipped: Any) -> None:
    config = KMeansPalettizerConfig(**skipped)
    assert config.global_config == ModuleKMeansPalettizerConfig()
    data = {"kmeans_palettization_config": skipped}
    assert KMeansPalettizerConfig.from_dict(data) == config
    assert KMeansPalettizerConfig.from_yaml(io.StringIO(config.to_yaml())) == config


def test_skipping_by_a_setter_and_by_the_constructor_is_the_same() -> None:
    by_name = KMeansPalettizerConfig().set_module_name("2", None)
    assert by_name == KMeansPalettizerConfig(module_name_configs={"2": None})
    by_type = KMeansPalettizerConfig().set_module_type(nn.BatchNorm2d, None)
    assert by_type == KMeansPalettizerConfig(module_type_configs={nn.BatchNorm2d: None})
    assert KMeansPalettizerConfig().without("2", nn.BatchNorm2d) == KMeansPalettizerConfig(
        module_name_configs={"2": None}, module_type_configs={nn.BatchNorm2d: None}
    )


@pytest.mark.parametrize(
    ("module", "disabled"),
    [
        (ModuleKMeansPalettizerConfig(), False),
        (ModuleKMeansPalettizerConfig(op_state_spec={}), True),
        (ModuleKMeansPalettizerConfig(op_state_spec=None, module_state_spec={"b": TWO}), False),
        (
            ModuleKMeansPalettizerConfig(
                op_state_spec=None, op_type_config={"linear": OpKMeansPalettizerConfig()}
            ),
            False,
        ),
        (ModuleKMeansPalettizerConfig(op_state_spec={}, op_name_config={"a": None}), True),
    ],
)
def test_is_disabled(module: ModuleKMeansPalettizerConfig, disabled: bool) -> None:
    assert module.is_disabled is disabled


# --- state keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["op_state_spec", "module_state_spec"])
@pytest.mark.parametrize(
    ("key", "expected"),
    [(0, "got 0"), ("", "state key ''"), ("a.weight", "'a.weight': .*within their module")],
)
def test_state_keys_are_local_names(field: str, key: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        ModuleKMeansPalettizerConfig(**{field: {key: TWO}})


# --- what these classes do not have -------------------------------------------------------------


@pytest.mark.parametrize("inactive", [None, {}, {"*": None}, {"0": None, 1: None}])
def test_inactive_activation_fields_are_dropped(inactive: Any) -> None:
    op = {"op_input_spec": inactive, "op_output_spec": inactive}
    assert OpKMeansPalettizerConfig(**op) == OpKMeansPalettizerConfig()
    module = {**op, "module_input_spec": inactive, "module_output_spec": inactive}
    assert ModuleKMeansPalettizerConfig(**module) == ModuleKMeansPalettizerConfig()
    assert "op_input_spec" not in ModuleKMeansPalettizerConfig(**module).model_dump()


@pytest.mark.parametrize("active", [{"*": TWO}, {"0": {"n_bits": 4}}, [TWO], 3])
@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (OpKMeansPalettizerConfig, "op_input_spec"),
        (OpKMeansPalettizerConfig, "op_output_spec"),
        (ModuleKMeansPalettizerConfig, "op_input_spec"),
        (ModuleKMeansPalettizerConfig, "module_input_spec"),
        (ModuleKMeansPalettizerConfig, "module_output_spec"),
    ],
)
def test_active_ones_are_refused(cls: Any, field: str, active: Any) -> None:
    with pytest.raises(ValidationError, match=f"{cls.__name__} has no {field}: .*weight-only"):
        cls(**{field: active})


def test_an_op_config_has_no_module_fields() -> None:
    with pytest.raises(ValidationError, match="unknown field 'module_input_spec'"):
        OpKMeansPalettizerConfig(module_input_spec=None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("cls", "field", "near"),
    [
        (KMeansPalettizerConfig, "global_confg", "global_config"),
        (KMeansPalettizerConfig, "module_type_config", "module_type_configs"),
        (ModuleKMeansPalettizerConfig, "op_type_configs", "op_type_config"),
        (ModuleKMeansPalettizerConfig, "rounding_precison", "rounding_precision"),
        (OpKMeansPalettizerConfig, "op_state_specs", "op_state_spec"),
        (PATSchedule, "enable_fake_palletize", "enable_fake_palettize"),
    ],
)
def test_unknown_fields_name_the_nearest(cls: Any, field: str, near: str) -> None:
    with pytest.raises(
        ValidationError, match=f"'{field}' in {cls.__name__}; did you mean '{near}'"
    ):
        cls(**{field: None})


@pytest.mark.parametrize("cls", [*CLASSES, PATSchedule])
def test_final_and_keyword_only(cls: Any) -> None:
    with pytest.raises(TypeError, match=f"Mine cannot subclass {cls.__name__}"):
        type("Mine", (cls,), {})
    with pytest.raises(TypeError, match="positional"):
        cls({})


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, "x", None])
def test_rounding_precision_is_positive(value: Any) -> None:
    with pytest.raises(ValidationError, match="rounding_precision"):
        ModuleKMeansPalettizerConfig(rounding_precision=value)


@pytest.mark.parametrize("value", [-1, 1.5, None])
def test_pat_schedule_starts_at_a_step(value: Any) -> None:
    assert PATSchedule(enable_fake_palettize=0).enable_fake_palettize == 0
    with pytest.raises(ValidationError, match="enable_fake_palettize"):
        PATSchedule(enable_fake_palettize=value)
    with pytest.raises(ValidationError, match="enable_fake_palettize"):
        PATSchedule()  # type: ignore[call-arg]


@pytest.mark.parametrize("key", ["weight", "*"])
def test_fast_mode_does_not_go_with_vectors_in_op_state_spec(key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModuleKMeansPalettizerConfig(op_state_spec={key: PAIRS})
    message = str(caught.value)
    assert "not supported when cluster_dim > 1, got cluster_dim=2" in message
    assert f"state {key!r}" in message
    assert "set enable_fast_kmeans_mode=False" in message
    slow = ModuleKMeansPalettizerConfig(op_state_spec={key: PAIRS}, enable_fast_kmeans_mode=False)
    assert slow.op_state_spec == {key: PAIRS}


def test_fast_mode_is_not_asked_about_vectors_elsewhere() -> None:
    op = OpKMeansPalettizerConfig(op_state_spec={"weight": PAIRS})
    module = ModuleKMeansPalettizerConfig(
        op_type_config={"linear": op}, op_name_config={"a": op}, module_state_spec={"weight": PAIRS}
    )
    assert module.enable_fast_kmeans_mode


def test_global_config_has_no_module_states() -> None:
    with_states = ModuleKMeansPalettizerConfig(module_state_spec={"bias": TWO})
    with pytest.raises(ValidationError, match="global_config cannot have a module_state_spec"):
        KMeansPalettizerConfig(global_config=with_states)
    with pytest.raises(ValidationError, match="global_config cannot have a module_state_spec"):
        KMeansPalettizerConfig().set_global(with_states)
    KMeansPalettizerConfig(module_type_configs={nn.BatchNorm2d: with_states})


@pytest.mark.parametrize("key", ["aten.linear.default", "torch.nn.functional.linear", "linear"])
def test_op_types_are_kept_under_one_name(key: str) -> None:
    op = OpKMeansPalettizerConfig(op_state_spec={"weight": TWO})
    assert ModuleKMeansPalettizerConfig(op_type_config={key: op}).op_type_config == {"linear": op}


def test_one_thing_under_two_keys_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'linear' and 'aten\.linear\.default' both name"):
        ModuleKMeansPalettizerConfig(op_type_config={"linear": None, "aten.linear.default": None})
    with pytest.raises(ValidationError, match=f"and 'torch.nn.Linear' both name '{LINEAR}'"):
        KMeansPalettizerConfig(module_type_configs={nn.Linear: None, "torch.nn.Linear": None})


def test_module_types_are_kept_under_one_name() -> None:
    by = [
        KMeansPalettizerConfig(module_type_configs={key: ModuleKMeansPalettizerConfig()})
        for key in (nn.Linear, "torch.nn.Linear", LINEAR)
    ]
    assert by[0] == by[1] == by[2]
    assert list(by[0].module_type_configs) == [LINEAR]


@pytest.mark.parametrize("key", [int, 3, None, "Linear", "torch.nn.Linaer"])
def test_keys_that_are_no_module_types(key: Any) -> None:
    with pytest.raises(ValidationError, match="module_type_configs"):
        KMeansPalettizerConfig(module_type_configs={key: None})


@pytest.mark.parametrize(
    ("key", "expected"), [("a(", "'a\\(' is not a valid .*unterminated"), ("*", r"write '\.\*'")]
)
def test_bad_patterns_are_found_at_once(key: str, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        KMeansPalettizerConfig(module_name_configs={key: None})
    with pytest.raises(ValidationError, match=expected):
        ModuleKMeansPalettizerConfig(op_name_config={key: None})


# --- assignment and copies ----------------------------------------------------------------------


def _snapshot(config: Any) -> tuple[dict[str, Any], dict[str, int]]:
    return config.model_dump(), {name: id(value) for name, value in config.__dict__.items()}


@pytest.mark.parametrize(
    ("config", "field", "wrong"),
    [
        (ModuleKMeansPalettizerConfig(), "rounding_precision", 0),
        (ModuleKMeansPalettizerConfig(), "op_state_spec", {"weight": PAIRS}),
        (ModuleKMeansPalettizerConfig(), "op_type_config", {"linaer": None}),
        (ModuleKMeansPalettizerConfig(), "pat_schedule", {"enable_fake_palettize": -1}),
        (ModuleKMeansPalettizerConfig(), "nothing", 1),
        (ModuleKMeansPalettizerConfig(), "op_input_spec", {"*": TWO}),
        (
            ModuleKMeansPalettizerConfig(
                op_state_spec={"weight": PAIRS}, enable_fast_kmeans_mode=False
            ),
            "enable_fast_kmeans_mode",
            True,
        ),
        (OpKMeansPalettizerConfig(), "op_state_spec", {3: None}),
        (KMeansPalettizerConfig(), "seed", "x"),
        (KMeansPalettizerConfig(), "global_config", 3),
        (
            KMeansPalettizerConfig(),
            "global_config",
            ModuleKMeansPalettizerConfig(module_state_spec={"b": TWO}),
        ),
        (KMeansPalettizerConfig(), "module_type_configs", {"Linear": None}),
        (KMeansPalettizerConfig(), "module_name_configs", {"(": None}),
        (PATSchedule(enable_fake_palettize=1), "enable_fake_palettize", -1),
    ],
)
def test_an_assignment_that_fails_changes_nothing(config: Any, field: str, wrong: Any) -> None:
    before = _snapshot(config)
    with pytest.raises(ValidationError):
        setattr(config, field, wrong)
    assert _snapshot(config) == before


def test_assignments_are_read_like_arguments() -> None:
    module = ModuleKMeansPalettizerConfig()
    module.op_state_spec = None  # type: ignore[assignment]
    assert module.op_state_spec == OFF
    module.op_type_config = {"aten.linear.default": None}  # type: ignore[dict-item]
    assert list(module.op_type_config) == ["linear"]
    module.op_input_spec = None  # type: ignore[attr-defined]
    assert module.op_input_spec == {}
    assert "op_input_spec" not in module.model_dump()
    config = KMeansPalettizerConfig()
    kept = config.global_config
    config.module_type_configs = {nn.Linear: None}  # type: ignore[dict-item]
    assert list(config.module_type_configs) == [LINEAR]
    assert config.global_config is kept


def test_parts_are_copied_in() -> None:
    module = ModuleKMeansPalettizerConfig()
    config = KMeansPalettizerConfig(
        global_config=module, module_name_configs={"a": module, "b": module}
    )
    module.rounding_precision = 7
    module.op_state_spec["bias"] = TWO
    config.module_name_configs["a"].rounding_precision = 6
    config.module_name_configs["a"].op_state_spec.clear()
    assert config.global_config == config.module_name_configs["b"] == ModuleKMeansPalettizerConfig()


def test_a_checked_copy_finds_what_was_broken_in_place() -> None:
    config = KMeansPalettizerConfig.presets.w4()
    config.module_type_configs["torch.nn.Linear"] = ModuleKMeansPalettizerConfig()
    fixed = config.checked_copy()
    assert list(fixed.module_type_configs) == [LINEAR]
    fixed.global_config.op_state_spec.clear()
    assert config.global_config.op_state_spec
    config.global_config.op_state_spec["weight"] = PAIRS
    with pytest.raises(ValidationError, match=r"global_config\n.*enable_fast_kmeans_mode"):
        config.checked_copy()


@given(configs())
def test_copies_and_pickles_are_equal(config: KMeansPalettizerConfig) -> None:
    for same in (
        config.checked_copy(),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        KMeansPalettizerConfig(**config.model_dump()),
        KMeansPalettizerConfig.model_validate_json(config.model_dump_json()),
    ):
        assert same == config
        assert same is not config


@pytest.mark.filterwarnings("ignore:Default value torch")
def test_configs_have_a_json_schema() -> None:
    for cls in CLASSES:
        assert set(cls.model_json_schema()["properties"]) == set(cls.model_fields)
