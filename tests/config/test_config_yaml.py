"""Configs through dictionaries and YAML files, there and back."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_strategies import configs
from hypothesis import given
from torch import nn

from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
)
from palette_core.spec import PalettizationSpec, QuantizationSpec


def read(text: str) -> KMeansPalettizerConfig:
    return KMeansPalettizerConfig.from_yaml(io.StringIO(text))


@given(configs())
def test_round_trips_give_an_equal_config(config: KMeansPalettizerConfig) -> None:
    as_dict = config.to_dict()
    assert KMeansPalettizerConfig.from_dict(as_dict) == config
    assert KMeansPalettizerConfig.from_dict(json.loads(json.dumps(as_dict))) == config
    again = read(config.to_yaml())
    assert again == config
    # An equal dictionary has its keys in any order, but the entry declared last wins.
    assert list(again.module_type_configs) == list(config.module_type_configs)
    assert list(again.module_name_configs) == list(config.module_name_configs)


@given(configs())
def test_yaml_is_what_any_safe_loader_reads(config: KMeansPalettizerConfig) -> None:
    assert yaml.safe_load(config.to_yaml(defaults=True)) == config.to_dict()


@pytest.mark.slow
@given(configs())
def test_yaml_leaves_out_what_goes_without_saying(config: KMeansPalettizerConfig) -> None:
    text = config.to_yaml()
    assert read(config.to_yaml(defaults=True)) == config == read(text)
    left_out = {"algorithm: null", "preserve_zero: false", "op_name_config: {}"}
    assert not left_out & {line.strip() for line in text.split("\n")}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (KMeansPalettizerConfig(), {}),
        (KMeansPalettizerConfig(global_config=None), {"global_config": None}),
        (KMeansPalettizerConfig(seed=3), {"seed": 3}),
        # What only leaves modules alone, and what asks for something, mean other global configs.
        (
            KMeansPalettizerConfig(module_name_configs={"a": None}),
            {"module_name_configs": {"a": None}},
        ),
        (
            KMeansPalettizerConfig(
                global_config=ModuleKMeansPalettizerConfig(),
                module_name_configs={"a": ModuleKMeansPalettizerConfig()},
            ),
            {"global_config": {}, "module_name_configs": {"a": {}}},
        ),
        (
            KMeansPalettizerConfig(module_name_configs={"a": ModuleKMeansPalettizerConfig()}),
            {"module_name_configs": {"a": {}}},
        ),
    ],
)
def test_what_is_left_out_of_yaml(config: KMeansPalettizerConfig, expected: Any) -> None:
    assert yaml.safe_load(config.to_yaml()) == {"kmeans_palettization_config": expected}
    assert read(config.to_yaml()) == config


def test_a_spec_always_says_how_many_bits() -> None:
    module = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": PalettizationSpec(lut_qspec=QuantizationSpec())}
    )
    (said,) = yaml.safe_load(KMeansPalettizerConfig(global_config=module).to_yaml()).values()
    assert said == {"global_config": {"op_state_spec": {"weight": {"n_bits": 4, "lut_qspec": {}}}}}


def test_a_granularity_may_be_a_word() -> None:
    text = """
kmeans_palettization_config:
  global_config:
    op_state_spec:
      weight: {n_bits: 6, granularity: per_tensor}
"""
    spec = read(text).global_config.op_state_spec["weight"]
    assert spec == PalettizationSpec(n_bits=6)


def test_what_stands_for_a_config(tmp_path: Path) -> None:
    config = KMeansPalettizerConfig.presets.w6()
    config.to_yaml(tmp_path / "config.yaml")
    for given_ in (
        config,
        config.to_dict(),
        tmp_path / "config.yaml",
        str(tmp_path / "config.yaml"),
    ):
        assert KMeansPalettizerConfig.of(given_) == config
    assert KMeansPalettizerConfig.of(None) == KMeansPalettizerConfig()
    assert KMeansPalettizerConfig.of(config) is config
    with pytest.raises(TypeError, match=r"config must be .* got int"):
        KMeansPalettizerConfig.of(4)  # type: ignore[arg-type]


@given(configs())
def test_from_dict_leaves_its_input_alone(config: KMeansPalettizerConfig) -> None:
    data = config.to_dict()
    before = copy.deepcopy(data)
    made = KMeansPalettizerConfig.from_dict(data)
    assert data == before
    made.global_config.op_state_spec["bias"] = PalettizationSpec()
    made.global_config.op_type_config["linear"] = OpKMeansPalettizerConfig()
    made.module_name_configs["new"] = ModuleKMeansPalettizerConfig()
    assert data == before


def test_from_dict_leaves_loose_input_alone_too() -> None:
    data: dict[str, Any] = {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": None, "op_input_spec": None},
            "module_type_configs": {nn.Linear: None, "torch.nn.Conv2d": {"op_type_config": None}},
        },
        "palettization_spec": {"a": {"n_bits": 2}},
    }
    before = copy.deepcopy(data)
    config = KMeansPalettizerConfig.from_dict(data)
    assert data == before
    assert list(config.to_dict()) == ["kmeans_palettization_config"]


def test_from_dict_takes_objects() -> None:
    module = ModuleKMeansPalettizerConfig.presets.w8()
    data = {"kmeans_palettization_config": {"module_type_configs": {nn.Linear: module}}}
    assert KMeansPalettizerConfig.from_dict(data) == KMeansPalettizerConfig(
        module_type_configs={nn.Linear: module}
    )


def test_lut_quantization_is_plain_in_yaml() -> None:
    spec = PalettizationSpec(lut_qspec=QuantizationSpec(dtype="float8_e4m3fn"))
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    )
    data = yaml.safe_load(config.to_yaml(defaults=True))["kmeans_palettization_config"]
    lut = data["global_config"]["op_state_spec"]["weight"]["lut_qspec"]
    assert (lut["dtype"], lut["qscheme"]) == ("float8_e4m3fn", "symmetric")


def test_empty_means_defaults() -> None:
    assert read("kmeans_palettization_config: {}") == KMeansPalettizerConfig()
    assert read("kmeans_palettization_config: {global_config: {}}") == KMeansPalettizerConfig()


def test_null_turns_off() -> None:
    config = read("""
kmeans_palettization_config:
  global_config: null
  module_type_configs: {torch.nn.Linear: null}
  module_name_configs:
""")
    assert config == KMeansPalettizerConfig(
        global_config=None, module_type_configs={nn.Linear: None}
    )


def test_the_order_of_declaration_is_kept() -> None:
    config = KMeansPalettizerConfig(module_name_configs={"b": None, "a": None, "c": None})
    assert list(read(config.to_yaml()).module_name_configs) == ["b", "a", "c"]


def test_anchors_and_merges() -> None:
    config = read("""
palettization_spec:
  base: &base {n_bits: 2, granularity: {type: per_grouped_channel, axis: 0, group_size: 8}}
  off: &off null
kmeans_palettization_config:
  global_config: &all
    op_state_spec:
      weight: *base
      in_proj_weight: {<<: *base, n_bits: 3}
      "*": *off
  module_name_configs:
    head: {<<: [*all], rounding_precision: 6}
""")
    base = ModuleKMeansPalettizerConfig.presets.w2(group_size=8).op_state_spec["weight"]
    assert base is not None
    states = {"weight": base, "in_proj_weight": base.model_copy(update={"n_bits": 3}), "*": None}
    module = ModuleKMeansPalettizerConfig(op_state_spec=states)
    head = ModuleKMeansPalettizerConfig(op_state_spec=states, rounding_precision=6)
    assert config == KMeansPalettizerConfig(
        global_config=module, module_name_configs={"head": head}
    )


@pytest.mark.parametrize("key", ["0", "0.10", "1e3", "on", "yes", "null", "~", "0x1F"])
def test_keys_are_the_text_that_stands_there(key: str) -> None:
    config = read(f"kmeans_palettization_config: {{module_name_configs: {{{key}: null}}}}")
    assert list(config.module_name_configs) == [key]


def test_a_scalar_that_is_key_and_value_stays_a_number_as_value() -> None:
    config = read("""
kmeans_palettization_config:
  seed: &n 8
  module_name_configs: {*n : {op_state_spec: {weight: {n_bits: *n}}}}
""")
    assert config.seed == 8
    assert config.module_name_configs["8"].op_state_spec["weight"] == PalettizationSpec(n_bits=8)


@pytest.mark.parametrize("as_text", [False, True])
def test_files(tmp_path: Path, as_text: bool) -> None:
    config = KMeansPalettizerConfig.presets.w6()
    path: Any = tmp_path / "new" / "config.yaml"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        config.to_yaml(path)
    path.parent.mkdir()
    text = config.to_yaml(str(path) if as_text else path)
    assert path.read_text(encoding="utf-8") == text == config.to_yaml()
    assert KMeansPalettizerConfig.from_yaml(str(path) if as_text else path) == config
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("make", [io.StringIO, io.BytesIO])
def test_streams(make: Any) -> None:
    config = KMeansPalettizerConfig(module_name_configs={"größe": None})
    stream = make()
    config.to_yaml(stream)
    stream.seek(0)
    assert KMeansPalettizerConfig.from_yaml(stream) == config
    assert not stream.closed


def test_open_files(tmp_path: Path) -> None:
    config = KMeansPalettizerConfig.presets.w3()
    for mode in ("", "b"):
        with (tmp_path / "c.yaml").open("w" + mode) as file:
            config.to_yaml(file)
        with (tmp_path / "c.yaml").open("r" + mode) as file:
            assert KMeansPalettizerConfig.from_yaml(file) == config


def test_utf16_and_byte_order_marks(tmp_path: Path) -> None:
    config = KMeansPalettizerConfig(module_name_configs={"größe": None})
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / encoding
        path.write_text(config.to_yaml(), encoding=encoding)
        assert KMeansPalettizerConfig.from_yaml(path) == config


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    KMeansPalettizerConfig.presets.w4().to_yaml(path)
    before = path.read_bytes()

    def fail(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        KMeansPalettizerConfig.presets.w8().to_yaml(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("old")
    link.symlink_to(real)
    text = KMeansPalettizerConfig().to_yaml(link)
    assert link.is_symlink()
    assert real.read_text() == text
