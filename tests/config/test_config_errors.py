"""Errors in files and dictionaries name the place, the value, and what would be right."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import pytest

from palette_core.config import KMeansPalettizerConfig
from palette_core.errors import ConfigError
from palette_core.plugins import Granularity, GranularityEntry

ROOT = "kmeans_palettization_config"


def problems(source: Any) -> list[str]:
    """Return the lines of the error that reading ``source`` raises."""
    read: Any = KMeansPalettizerConfig.from_dict
    if isinstance(source, str):
        read, source = KMeansPalettizerConfig.from_yaml, io.StringIO(source)
    with pytest.raises(ConfigError) as caught:
        read(source)
    assert isinstance(caught.value, ValueError)
    return str(caught.value).splitlines()


FILE = """\
palettization_spec:
  bad: &bad
    n_bits: 5
  also: {dtype: int8}
kmeans_palettization_config:
  global_config:
    op_state_spec:
      weight: *bad
      bias:
        nbits: 4
        lut_qspec: {dtype: int9, qscheme: symetric}
    op_type_config:
      aten.liner.default: null
    op_nam_config: {}
    enable_fast_kmeans_mode: maybe
  module_type_configs:
    Linear: null
    torch.nn.Linear:
      op_input_spec:
        "*": {n_bits: 4}
      pat_schedule: {enable_fake_palettize: -1}
  module_name_configs:
    "layer.0(":
    head:
      op_state_spec:
        weight:
          granularity:
            type: per_grouped_chanel
            group_size: 16
        bias:
          granularity: {type: per_grouped_channel,
                        group_sise: 16}
        other: 4
      module_state_spec: [weight]
  sed: 3
"""

EXPECTED = {
    (3, "palettization_spec.bad.n_bits", "1, 2, 3, 4, 6 or 8, got 5"),
    (4, "palettization_spec.also.dtype", "unknown field 'dtype' in PalettizationSpec"),
    (3, f"{ROOT}.global_config.op_state_spec.weight.n_bits", "1, 2, 3, 4, 6 or 8, got 5"),
    (10, f"{ROOT}.global_config.op_state_spec.bias.nbits", "did you mean 'n_bits'?"),
    (11, f"{ROOT}.global_config.op_state_spec.bias.lut_qspec.dtype", "did you mean 'int8'?"),
    (
        11,
        f"{ROOT}.global_config.op_state_spec.bias.lut_qspec.qscheme",
        "got 'symetric'; did you mean 'symmetric'?",
    ),
    (13, f'{ROOT}.global_config.op_type_config["aten.liner.default"]', "did you mean 'linear'?"),
    (14, f"{ROOT}.global_config.op_nam_config", "did you mean 'op_name_config'?"),
    (15, f"{ROOT}.global_config.enable_fast_kmeans_mode", "valid boolean, unable to interpret"),
    (17, f"{ROOT}.module_type_configs.Linear", "did you mean 'torch.nn.Linear'?"),
    (19, f'{ROOT}.module_type_configs["torch.nn.Linear"].op_input_spec', "weight-only"),
    (23, f'{ROOT}.module_name_configs["layer.0("]', "not a valid regular expression"),
    (
        27,
        f"{ROOT}.module_name_configs.head.op_state_spec.weight.granularity",
        "'per_grouped_chanel'",
    ),
    (31, f"{ROOT}.module_name_configs.head.op_state_spec.bias.granularity.group_size", "required"),
    (
        32,
        f"{ROOT}.module_name_configs.head.op_state_spec.bias.granularity.group_sise",
        "did you mean 'group_size'?",
    ),
    (
        33,
        f"{ROOT}.module_name_configs.head.op_state_spec.other",
        "should be a mapping of the fields of PalettizationSpec, got 4",
    ),
    (
        34,
        f"{ROOT}.module_name_configs.head.module_state_spec",
        "should be a mapping, got ['weight']",
    ),
    (35, f"{ROOT}.sed", "unknown field 'sed' in KMeansPalettizerConfig; did you mean 'seed'?"),
}


def test_every_problem_of_a_file_has_its_line_place_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    with pytest.raises(ConfigError) as caught:
        KMeansPalettizerConfig.from_yaml(path)
    lines = str(caught.value).splitlines()
    for number, place, words in EXPECTED:
        found = [line for line in lines if line.startswith(f"{path}:{number}: {place}: ")]
        assert len(found) == 1, (place, lines)
        assert words in found[0]
    assert len(lines) == len(EXPECTED)


def test_a_problem_beside_an_activation_field_shows_once_that_is_gone() -> None:
    text = FILE.replace('      op_input_spec:\n        "*": {n_bits: 4}\n', "")
    place = f'{ROOT}.module_type_configs["torch.nn.Linear"].pat_schedule.enable_fake_palettize'
    assert [line for line in problems(text) if f":19: {place}: " in line and "got -1" in line]


def test_fast_mode_with_vectors_says_what_to_set() -> None:
    lines = problems(
        f"{ROOT}:\n  global_config:\n    op_state_spec: {{weight: {{cluster_dim: 2}}}}"
    )
    assert len(lines) == 1
    assert lines[0].startswith(f"<stream>:2: {ROOT}.global_config: enable_fast_kmeans_mode")
    assert lines[0].endswith("set enable_fast_kmeans_mode=False")


def test_global_module_states() -> None:
    lines = problems(f"{ROOT}:\n  global_config:\n    module_state_spec: {{bias: {{}}}}")
    assert lines[0].startswith(f"<stream>:2: {ROOT}.global_config: ")
    assert "module_type_configs" in lines[0]


def with_options(options: str) -> str:
    return f"{ROOT}: {{global_config: {{op_state_spec: {{w: {{algorithm_options: {options}}}}}}}}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["<stream>: the file is empty; ", "'kmeans_palettization_config: {}'"]),
        ("# only a comment\n", ["the file is empty"]),
        ("- 1\n- 2", ["<stream>:1: expected a mapping with the key", "got list", "minimal"]),
        ("hello", ["got str"]),
        ("null", ["got NoneType"]),
        (f"{ROOT}:\n", [f"<stream>:1: {ROOT}: ", "is empty", f"'{ROOT}: {{}}'"]),
        (f"{ROOT}: 3", [f"<stream>:1: {ROOT}: ", "fields of KMeansPalettizerConfig, got 3"]),
        (f"{ROOT}: {{}}\n{ROOT}: {{}}", ["<stream>:2: key", "there twice, first on line 1"]),
        (f"{ROOT}:\n  seed: 1\n  seed: 1", ["<stream>:3: key 'seed'", "first on line 2"]),
        (f"{ROOT}:\n  module_name_configs:\n    0: null\n    '0': null", ["<stream>:4: key '0'"]),
        (f"{ROOT}:\n  global_config: [", ["<stream>:2: not valid YAML: ", "stream end"]),
        (f"{ROOT}:\n\tseed: 1", ["<stream>:2: not valid YAML: ", "cannot start any token"]),
        (f"a: &w4 1\n{ROOT}: *w5", ["<stream>:2: ", "undefined alias 'w5'; did you mean 'w4'?"]),
        (f"{ROOT}:\n  global_config: {{op_state_spec: {{*: null}}}}", ["<stream>:2: ", '"*" in q']),
        (f"{ROOT}: {{}}\n---\n{ROOT}: {{}}", ["single document"]),
        (f"{ROOT}:\n  seed: !!python/object/apply:os.getcwd []", ["<stream>:2: ", "constructor"]),
        (f"{ROOT}:\n  [1, 2]: 3", ["<stream>:2: a key is a list or a mapping"]),
        ("[" * 500, ["nested too deeply"]),
        (f"{ROOT}: &a\n  global_config: *a", ["unknown field 'global_config'"]),
        (with_options("&a [*a]"), ["algorithm_options: Input should be a mapping"]),
        (with_options("&a {x: *a}"), ["algorithm_options: must hold plain JSON values: Circular"]),
        (with_options("{x: 2020-01-01}"), ["must hold plain JSON values: ", "date"]),
        (with_options("{x: .nan}"), ["must hold plain JSON values: Out of range float"]),
    ],
)  # fmt: skip
def test_files_that_are_no_config(text: str, expected: list[str]) -> None:
    lines = problems(text)
    assert len(lines) == 1, lines
    assert all(words in lines[0] for words in expected), lines


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigError, match=r"<stream>: not valid YAML: .*invalid start byte"):
        KMeansPalettizerConfig.from_yaml(io.BytesIO(b"a: '\xff'"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, ["is missing; a minimal config is"]),
        ({ROOT: None}, [f"{ROOT}: '{ROOT}' is empty"]),
        ([1], ["expected a mapping", "got list"]),
        ({ROOT: {3: 4}}, [f"{ROOT}[3]: ", "strings"]),
        ({ROOT: {"module_name_configs": {3: None}}}, ["module_name_configs[3]: ", "got 3"]),
        ({ROOT: {}, "zzz": {}}, ["zzz: unknown key 'zzz'; keys are"]),
        ({ROOT: {}, "palettization_specs": {}}, ["did you mean 'palettization_spec'?"]),
        ({ROOT: {}, "seed": 3}, [f"seed: unknown key 'seed'; it belongs under '{ROOT}'"]),
        ({ROOT: {}, 3: 3}, ["3: unknown key 3"]),
        ({ROOT: {}, "palettization_spec": {"a": {"n_bits": 7}}}, ["palettization_spec.a.n_bits"]),
        ({ROOT: {}, "palettization_spec": [1]}, ["palettization_spec: Input should be a mapping"]),
        (
            {
                ROOT: {
                    "global_config": {"op_state_spec": {"weight": {"training_strategy_spec": {}}}}
                }
            },
            ["did you mean 'training_strategy'?"],
        ),
    ],
)
def test_dictionaries_that_are_no_config(data: Any, expected: list[str]) -> None:
    lines = problems(data)
    assert len(lines) == 1, lines
    assert all(words in lines[0] for words in expected), lines


def test_a_misspelt_section_says_so_and_that_the_right_one_is_missing() -> None:
    assert problems("kmeans_palletization_config: {}") == [
        "<stream>:1: kmeans_palletization_config: unknown key 'kmeans_palletization_config'; "
        f"did you mean '{ROOT}'?",
        f"<stream>:1: '{ROOT}' is missing; a minimal config is '{ROOT}: {{}}'",
    ]


def test_lines_of_merged_keys_are_those_where_they_stand() -> None:
    lines = problems(f"""\
palettization_spec:
  base: &base
    n_bits: 2
{ROOT}:
  global_config:
    op_state_spec:
      weight:
        <<: *base
        n_bits: 7
        cluster_dim: 0
""")
    place = f"{ROOT}.global_config.op_state_spec.weight"
    assert [line.split(": ")[:2] for line in lines] == [
        ["<stream>:9", f"{place}.n_bits"],
        ["<stream>:10", f"{place}.cluster_dim"],
    ]


class PerTile(Granularity):
    """A granularity of somebody else, with a list among its options."""

    type: Literal["per_tile"] = "per_tile"
    tile: list[int]

    def block_shape(self, shape: tuple[int, ...], default_axis: int) -> tuple[int, ...]:
        return tuple(self.tile)


def test_items_of_lists_have_their_own_line(register) -> None:
    register(GranularityEntry(name="per_tile", summary="tiles", interface=1, model=PerTile))
    text = f"""\
{ROOT}:
  global_config:
    op_state_spec:
      weight:
        granularity:
          type: per_tile
          tile:
            - 4
            - wide
"""
    place = f"{ROOT}.global_config.op_state_spec.weight.granularity.tile[1]"
    [line] = problems(text)
    assert line.startswith(f"<stream>:9: {place}: Input should be a valid integer")
    assert line.endswith("got 'wide'")
    config = KMeansPalettizerConfig.from_yaml(io.StringIO(text.replace("wide", "8")))
    assert KMeansPalettizerConfig.from_yaml(io.StringIO(config.to_yaml())) == config
    spec = config.global_config.op_state_spec["weight"]
    assert spec is not None
    assert spec.granularity == PerTile(tile=[4, 8])


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KMeansPalettizerConfig.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(TypeError, match="from_dict takes a dictionary"):
        KMeansPalettizerConfig.from_yaml({})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"wrap it in io\.StringIO"):
        KMeansPalettizerConfig.from_yaml(f"{ROOT}:\n  seed: 3\n")
