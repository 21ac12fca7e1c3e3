"""PalettizationSpec and QuantizationSpec: defaults, checks, equality, dumps."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from palette_core.spec import (
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationScheme,
    QuantizationSpec,
    default_weight_palettization_spec,
)

LUT_DTYPES = ["int8", "uint8", "float8_e4m3fn", "float8_e5m2"]


def test_defaults() -> None:
    spec = PalettizationSpec()
    assert spec.n_bits == 4
    assert spec.lut_qspec is None
    assert spec.granularity == PerTensorGranularity()
    assert spec.cluster_dim == 1
    assert spec.enable_per_channel_scale is False
    assert spec.algorithm is None
    assert spec.algorithm_options == {}
    assert spec == default_weight_palettization_spec()


@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 6, 8])
def test_bits_that_exist(n_bits: Any) -> None:
    assert PalettizationSpec(n_bits=n_bits).n_bits == n_bits
    assert PalettizationSpec(n_bits=n_bits).n_entries == 2**n_bits


@pytest.mark.parametrize("n_bits", [0, -1, 5, 7, 9, 16, None, "4", 4.5])
def test_bits_that_do_not(n_bits: Any) -> None:
    with pytest.raises(ValidationError, match=r"n_bits\n.*1, 2, 3, 4, 6 or 8"):
        PalettizationSpec(n_bits=n_bits)


@pytest.mark.parametrize(("given_", "kept"), [(4.0, 4), (True, 1)])
def test_numbers_equal_to_bits_become_integers(given_: Any, kept: int) -> None:
    n_bits = PalettizationSpec(n_bits=given_).n_bits
    assert n_bits == kept
    assert type(n_bits) is int


@pytest.mark.parametrize("cluster_dim", [0, -1, 2.5, None, "x"])
def test_cluster_dim_is_a_positive_integer(cluster_dim: Any) -> None:
    with pytest.raises(ValidationError, match="cluster_dim"):
        PalettizationSpec(cluster_dim=cluster_dim)


@pytest.mark.parametrize("cluster_dim", ["2", 2.0, 2])
def test_cluster_dim_is_coerced(cluster_dim: Any) -> None:
    assert PalettizationSpec(cluster_dim=cluster_dim).cluster_dim == 2


@pytest.mark.parametrize("value", [2, "not_a_bool", None])
def test_per_channel_scale_is_a_boolean(value: Any) -> None:
    with pytest.raises(ValidationError, match="enable_per_channel_scale"):
        PalettizationSpec(enable_per_channel_scale=value)


@pytest.mark.parametrize("cluster_dim", [1, 2, 4])
@pytest.mark.parametrize("value", ["true", "yes", 1, True])
def test_per_channel_scale_goes_with_any_cluster_dim(value: Any, cluster_dim: int) -> None:
    spec = PalettizationSpec(enable_per_channel_scale=value, cluster_dim=cluster_dim)
    assert spec.enable_per_channel_scale is True


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"nbits": 4}, "unknown field 'nbits' in PalettizationSpec; did you mean 'n_bits'"),
        ({"zzz": 4}, "unknown field 'zzz' in PalettizationSpec; fields are n_bits, lut_qspec"),
        (
            {"lut_qspec": {"qshceme": "symmetric"}},
            "lut_qspec.qshceme\n.*in QuantizationSpec; did you mean 'qscheme'",
        ),
        ({"training_strategy_spec": {"type": "soft"}}, "did you mean 'training_strategy'"),
    ],
)
def test_unknown_fields_name_the_nearest(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        PalettizationSpec(**fields)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        PalettizationSpec(nbits=4, n_bits=5, cluster_dim=0, lut_qspec={"dtpe": "int8"})
    places = {problem["loc"] for problem in caught.value.errors()}
    assert places == {("nbits",), ("n_bits",), ("cluster_dim",), ("lut_qspec", "dtpe")}


def test_frozen_keyword_only_final() -> None:
    spec = PalettizationSpec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.n_bits = 2  # type: ignore[misc]
    assert spec.n_bits == 4
    with pytest.raises(TypeError):
        PalettizationSpec(4)  # type: ignore[misc]
    for final in (PalettizationSpec, QuantizationSpec):
        with pytest.raises(TypeError, match=f"Mine cannot subclass {final.__name__}"):
            type("Mine", (final,), {})


# --- LUT entries --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LUT_DTYPES)
def test_dtypes_of_lut_entries_by_name_and_by_object(name: str) -> None:
    dtype = getattr(torch, name)
    specs = [
        PalettizationSpec(lut_qspec=QuantizationSpec(dtype=dtype)),
        PalettizationSpec(lut_qspec=QuantizationSpec(dtype=name)),
        PalettizationSpec(lut_qspec=QuantizationSpec(dtype=f"torch.{name}")),
        PalettizationSpec(lut_qspec={"dtype": name}),  # type: ignore[arg-type]
    ]
    assert all(spec == specs[0] for spec in specs)
    assert len(set(specs)) == 1
    assert specs[1].lut_qspec is not None
    assert specs[1].lut_qspec.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.int16, torch.int4, "bfloat16"])
def test_other_dtypes_are_refused_with_the_right_ones(dtype: Any) -> None:
    shown = str(dtype).removeprefix("torch.")
    with pytest.raises(
        ValidationError,
        match=f"must be one of int8, uint8, float8_e4m3fn, float8_e5m2, got {shown}",
    ):
        PalettizationSpec(lut_qspec=QuantizationSpec(dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("int9", "'int9' is not a torch dtype; did you mean 'int8'"),
        ("nn", "'nn' is not a torch dtype"),
        (8, "expected a torch dtype or its name such as 'int8', got 8"),
        (None, "got None"),
    ],
)
def test_what_is_no_dtype(dtype: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        QuantizationSpec(dtype=dtype)


def test_lut_granularity_is_per_tensor() -> None:
    grouped = PerGroupedChannelGranularity(axis=0, group_size=4)
    with pytest.raises(
        ValidationError,
        match=r"lut_qspec.granularity must be PerTensorGranularity.*PerGroupedChannelGranularity",
    ):
        PalettizationSpec(lut_qspec=QuantizationSpec(granularity=grouped))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric_with_clipping"])
def test_fp8_is_symmetric_only(dtype: str, scheme: str) -> None:
    with pytest.raises(ValidationError, match=f"{dtype} requires symmetric.*'{scheme}'"):
        QuantizationSpec(dtype=dtype, qscheme=scheme)


@pytest.mark.parametrize("scheme", list(QuantizationScheme))
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_take_every_scheme(dtype: str, scheme: QuantizationScheme) -> None:
    assert QuantizationSpec(dtype=dtype, qscheme=scheme.value).qscheme is scheme


def test_scale_dtype_is_a_power_of_two_for_fp8_only() -> None:
    spec = QuantizationSpec(dtype="float8_e4m3fn", scale_dtype="float8_e8m0fnu")
    assert spec.scale_dtype is torch.float8_e8m0fnu
    for dtype, scale in [("int8", "float8_e8m0fnu"), ("float8_e4m3fn", "float16")]:
        with pytest.raises(ValidationError, match=f"scale_dtype {scale} with dtype {dtype}"):
            QuantizationSpec(dtype=dtype, scale_dtype=scale)


# --- options of plug-ins ------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["algorithm_options", "training_strategy_options"])
@pytest.mark.parametrize(
    "value", [{"x": object()}, {"x": torch.int8}, {"x": float("nan")}, {"x": [float("inf")]}]
)
def test_options_hold_plain_values(field: str, value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{field}\n.*must hold plain JSON values"):
        PalettizationSpec(**{field: value})
    with pytest.raises(ValidationError, match="quantizer_options"):
        QuantizationSpec(quantizer_options=value)


def test_options_are_a_copy() -> None:
    inner = [1, 2]
    spec = PalettizationSpec(algorithm_options={"grid": inner, "pair": (1, 2)})
    inner.append(3)
    assert spec.algorithm_options == {"grid": [1, 2], "pair": [1, 2]}


# --- equality and dumps -------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4))
def test_equal_specs_hash_equally_whatever_the_order_of_their_options(
    options: dict[str, Any],
) -> None:
    one = PalettizationSpec(algorithm_options=options)
    two = PalettizationSpec(algorithm_options=dict(reversed(options.items())))
    assert one == two
    assert hash(one) == hash(two)


def test_specs_differ_in_any_field() -> None:
    specs = [
        PalettizationSpec(),
        PalettizationSpec(n_bits=3),
        PalettizationSpec(cluster_dim=2),
        PalettizationSpec(enable_per_channel_scale=True),
        PalettizationSpec(granularity=PerGroupedChannelGranularity(group_size=2)),
        PalettizationSpec(lut_qspec=QuantizationSpec()),
        PalettizationSpec(lut_qspec=QuantizationSpec(dtype="uint8")),
        PalettizationSpec(algorithm="other"),
        PalettizationSpec(algorithm_options={"a": 1}),
        PalettizationSpec(training_strategy="other"),
    ]
    assert len(set(specs)) == len(specs)
    assert all(a != b for i, a in enumerate(specs) for b in specs[:i])


FULL = PalettizationSpec(
    n_bits=3,
    lut_qspec=QuantizationSpec(dtype=torch.float8_e5m2, scale_dtype=torch.float8_e8m0fnu),
    granularity=PerGroupedChannelGranularity(axis=1, group_size=8),
    enable_per_channel_scale=True,
    algorithm_options={"tries": 3},
)


@pytest.mark.parametrize("spec", [PalettizationSpec(), FULL])
def test_dumps_make_the_same_spec_again(spec: PalettizationSpec) -> None:
    assert PalettizationSpec(**spec.model_dump()) == spec
    assert PalettizationSpec(**spec.model_dump(mode="json")) == spec
    assert PalettizationSpec.model_validate_json(spec.model_dump_json()) == spec
    assert PalettizationSpec(**spec.model_dump_preserve_objects()) == spec
    assert copy.deepcopy(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_json_dump_is_plain() -> None:
    dumped = FULL.model_dump(mode="json")
    assert json.loads(json.dumps(dumped)) == dumped
    assert dumped["lut_qspec"]["dtype"] == "float8_e5m2"
    assert dumped["lut_qspec"]["qscheme"] == "symmetric"


def test_dump_that_preserves_objects() -> None:
    dumped = FULL.model_dump_preserve_objects()
    assert dumped["granularity"] is FULL.granularity
    assert dumped["lut_qspec"] is FULL.lut_qspec
    assert dumped["n_bits"] == 3
    assert dumped["algorithm_options"] == {"tries": 3}
    assert set(dumped) == set(PalettizationSpec.model_fields)
