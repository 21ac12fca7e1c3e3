"""Setters, only_for, without, presets: they chain, and a failed one changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from palette_core.config import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.spec import (
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
)

M = ModuleKMeansPalettizerConfig
OFF = M.disabled()
LINEAR, CONV = "torch.nn.modules.linear.Linear", "torch.nn.modules.conv.Conv2d"
BROKEN = {"op_state_spec": {"weight": {"n_bits": 5}}}


def make() -> KMeansPalettizerConfig:
    return (
        KMeansPalettizerConfig.presets.w4()
        .set_module_type(nn.Conv2d, M.presets.w6())
        .set_module_name("head", M.presets.w2())
    )


def test_setters_return_the_config_and_set() -> None:
    config = KMeansPalettizerConfig()
    assert config.set_global(M.presets.w6()) is config
    assert config.set_module_type(nn.Linear, M.presets.w8()) is config
    assert config.set_module_name("head", None) is config
    assert config.global_config == M.presets.w6()
    assert config.module_type_configs == {LINEAR: M.presets.w8()}
    assert config.module_name_configs == {"head": OFF}


def test_none_turns_off() -> None:
    config = make().set_global(None).set_module_type("torch.nn.Conv2d", None)
    assert config.global_config == OFF
    assert config.module_type_configs == {CONV: OFF}


def test_setters_leave_the_rest_alone() -> None:
    config = make()
    kept = config.module_type_configs, config.module_name_configs
    config.set_global(None)
    assert (config.module_type_configs, config.module_name_configs) == kept
    config.set_module_type(nn.Linear, None)
    assert list(config.module_type_configs) == [CONV, LINEAR]
    assert config.module_name_configs is kept[1]


@pytest.mark.parametrize("key", [nn.Linear, "torch.nn.Linear", LINEAR])
def test_setting_a_type_anew_replaces_it_under_any_name(key: Any) -> None:
    config = KMeansPalettizerConfig().set_module_type(nn.Linear, M.presets.w8())
    config.set_module_type(key, M.presets.w2())
    assert config.module_type_configs == {LINEAR: M.presets.w2()}


def test_what_was_set_last_is_declared_last() -> None:
    config = KMeansPalettizerConfig().set_module_name("a", None).set_module_name("b", None)
    config.set_module_name("a", M.presets.w8())
    assert list(config.module_name_configs) == ["b", "a"]
    config.set_module_type(nn.Linear, None).set_module_type(nn.Conv2d, None)
    config.set_module_type("torch.nn.Linear", None)
    assert list(config.module_type_configs) == [CONV, LINEAR]


def test_what_is_set_is_a_copy() -> None:
    module = M.presets.w8()
    config = KMeansPalettizerConfig().set_module_type(nn.Linear, module).set_global(module)
    module.rounding_precision = 9
    assert config.module_type_configs[LINEAR] == config.global_config == M.presets.w8()


@pytest.mark.parametrize(
    ("call", "error", "expected"),
    [
        (lambda c: c.set_module_type(int, None), TypeError, "module_type_configs must be"),
        (lambda c: c.set_module_type(3, None), TypeError, "module_type_configs must be"),
        (lambda c: c.set_module_type("Linear", None), ValueError, "'torch.nn.Linear'"),
        (lambda c: c.set_module_type(nn.Linear, BROKEN), ValidationError, "n_bits"),
        (lambda c: c.set_module_type(nn.Linear, 3), ValidationError, LINEAR),
        (lambda c: c.set_module_name(3, None), TypeError, "strings, got 3"),
        (lambda c: c.set_module_name("(", None), ValueError, "regular expression"),
        (lambda c: c.set_module_name("head", BROKEN), ValidationError, "n_bits"),
        (lambda c: c.set_global(BROKEN), ValidationError, "n_bits"),
        (
            lambda c: c.set_global(M(module_state_spec={"*": PalettizationSpec()})),
            ValueError,
            "cannot",
        ),
        (lambda c: c.only_for(), ValueError, "at least one target"),
        (lambda c: c.only_for([]), ValueError, "at least one target"),
        (lambda c: c.only_for(nn.Linear, 42), TypeError, "module types or name strings, got 42"),
        (lambda c: c.only_for(nn.Linear, int), TypeError, "nn.Module subclasses or name .*int"),
        (lambda c: c.only_for(nn.Linear, "("), ValueError, "regular expression"),
        (lambda c: c.only_for([nn.Linear], [nn.Conv2d]), TypeError, "module types or name"),
        (lambda c: c.without("body", 42), TypeError, "module types or name strings, got 42"),
        (lambda c: c.without(nn.Linear, int), TypeError, "nn.Module subclasses or name .*int"),
        (lambda c: c.without("body", "*"), ValueError, "regular expression"),
    ],
)
def test_a_setter_that_fails_changes_nothing(call: Any, error: Any, expected: str) -> None:
    config = make()
    parts = {name: id(value) for name, value in config.__dict__.items()}
    with pytest.raises(error, match=expected):
        call(config)
    assert config == make()
    assert {name: id(value) for name, value in config.__dict__.items()} == parts


@pytest.mark.parametrize("as_list", [False, True])
def test_only_for_moves_the_global_config(as_list: bool) -> None:
    targets = [nn.Linear, "head", r"layers\.\d+"]
    config = make()
    assert (config.only_for(targets) if as_list else config.only_for(*targets)) is config
    w4 = M.presets.w4()
    assert config.global_config == OFF
    assert config.module_type_configs == {CONV: M.presets.w6(), LINEAR: w4}
    assert config.module_name_configs == {"head": w4, r"layers\.\d+": w4}


def test_only_for_gives_each_target_its_own() -> None:
    config = KMeansPalettizerConfig.presets.w4().only_for("a", "b")
    config.module_name_configs["a"].op_state_spec.clear()
    assert config.module_name_configs["b"] == M.presets.w4()


def test_only_for_needs_a_global_config() -> None:
    for config in (
        KMeansPalettizerConfig(global_config=None),
        KMeansPalettizerConfig.presets.w4().only_for(nn.Conv2d),
        KMeansPalettizerConfig(module_name_configs={"a": M()}),
    ):
        before = config.checked_copy()
        with pytest.raises(ValueError, match="non-disabled global_config"):
            config.only_for(nn.Linear)
        assert config == before


@pytest.mark.parametrize("as_list", [False, True])
def test_without_turns_targets_off(as_list: bool) -> None:
    targets = [nn.Linear, "head"]
    config = make()
    assert (config.without(targets) if as_list else config.without(*targets)) is config
    assert config.global_config == M.presets.w4()
    assert config.module_type_configs == {CONV: M.presets.w6(), LINEAR: OFF}
    assert config.module_name_configs == {"head": OFF}


def test_without_nothing_is_nothing() -> None:
    assert make().without() == make().without([]) == make()


# --- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_bits"), [("w2", 2), ("w3", 3), ("w4", 4), ("w6", 6)])
@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"axis": 1, "group_size": 8}])
def test_grouped_presets(name: str, n_bits: Any, options: dict[str, Any]) -> None:
    granularity = PerGroupedChannelGranularity(**{"axis": 0, "group_size": 16, **options})
    spec = PalettizationSpec(n_bits=n_bits, granularity=granularity)
    module = getattr(M.presets, name)(**options)
    assert module == M(op_state_spec={"weight": spec, "in_proj_weight": spec})
    assert module.enable_fast_kmeans_mode
    config = getattr(KMeansPalettizerConfig.presets, name)(**options)
    assert config == KMeansPalettizerConfig(global_config=module)


def test_w8_is_per_tensor() -> None:
    spec = PalettizationSpec(n_bits=8, granularity=PerTensorGranularity())
    assert M.presets.w8() == M(op_state_spec={"weight": spec, "in_proj_weight": spec})
    assert KMeansPalettizerConfig.presets.w8().global_config == M.presets.w8()


@pytest.mark.parametrize("presets", [M.presets, KMeansPalettizerConfig.presets])
def test_presets_take_what_is_documented(presets: Any) -> None:
    with pytest.raises(TypeError):
        presets.w4(0)
    with pytest.raises(TypeError):
        presets.w8(axis=0)
    with pytest.raises(ValidationError, match="axis"):
        presets.w4(axis=2)
    with pytest.raises(ValidationError, match="group_size"):
        presets.w4(group_size=0)
    assert not hasattr(presets, "w5")


def test_presets_make_a_new_config_each_time() -> None:
    KMeansPalettizerConfig.presets.w4().global_config.op_state_spec.clear()
    assert KMeansPalettizerConfig.presets.w4().global_config == M.presets.w4()
