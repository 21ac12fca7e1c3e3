"""The built-in LUT quantizers against the usual formulas and against a scan of scales."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palette_core.builtins.lut_quantizers.float8 import Float8LutQuantizer
from palette_core.builtins.lut_quantizers.integer import IntegerLutQuantizer
from palette_core.errors import ClusteringError, ConfigError
from palette_core.plugins import NoOptions
from palette_core.spec import QuantizationSpec

INTEGER = [
    (dtype, scheme)
    for dtype in ("int8", "uint8")
    for scheme in ("symmetric", "symmetric_with_clipping", "asymmetric")
]
FLOAT = [
    (dtype, scale) for dtype in ("float8_e4m3fn", "float8_e5m2") for scale in (None, "e8m0fnu")
]
LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def make(kind):
    name, extra = kind
    if name.startswith("float8"):
        scale = None if extra is None else f"float8_{extra}"
        return Float8LutQuantizer(QuantizationSpec(dtype=name, scale_dtype=scale), NoOptions())
    return IntegerLutQuantizer(QuantizationSpec(dtype=name, qscheme=extra), NoOptions())


def usual(values, kind):
    """The usual formula on a flat list of entries, in plain Python; returns decoded entries."""
    name, extra = kind
    largest = max(abs(v) for v in values)
    if name.startswith("float8"):
        scale = largest / LARGEST[name] or 1.0
        if extra:
            scale = 2.0 ** math.ceil(math.log2(scale))
        dtype = getattr(torch, name)
        return [float(torch.tensor(v / scale).to(dtype).float()) * scale for v in values]
    low, high = (-128, 127) if name == "int8" else (0, 255)
    zero = 0 if name == "int8" else 128
    if extra == "asymmetric":
        least, most = min(*values, 0.0), max(*values, 0.0)
        scale = (most - least) / 255 or 1.0
        zero = min(max(low - round(least / scale), low), high)
    elif extra == "symmetric":
        scale = largest / 127.5 or 1.0
    else:
        scale, low = largest / 127 or 1.0, low + 1
    return [(min(max(round(v / scale) + zero, low), high) - zero) * scale for v in values]


def squared_error(values, decoded):
    return sum((a - b) ** 2 for a, b in zip(values, decoded, strict=True))


def quantize(values, kind):
    lut = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1)
    return make(kind).quantize(lut)


@pytest.mark.parametrize(
    ("kind", "decoded"),
    [
        (("int8", "symmetric"), [-1.00392, 2.00784, 3.01177, 3.98431]),
        (("uint8", "asymmetric"), [-1.0, 2.0, 3.0, 4.0]),
        (("float8_e4m3fn", None), [-1.0, 2.0, 2.85714, 4.0]),
    ],
)
def test_the_oracle_gives_the_measured_values_of_the_reference(kind, decoded):
    assert usual([-1.0, 2.0, 3.0, 4.0], kind) == pytest.approx(decoded, abs=1e-5)


def test_the_oracle_gives_the_measured_values_for_entries_of_one_sign():
    found = usual([10.0, 11.0, 12.0, 13.0], ("int8", "asymmetric"))
    assert found == pytest.approx([9.99216, 11.01176, 11.98039, 13.0], abs=1e-5)


entries = st.lists(
    st.floats(-1.0, 1.0, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v),
    min_size=2,
    max_size=16,
)


@settings(max_examples=60, deadline=None)
@given(values=entries, kind=st.sampled_from(INTEGER + FLOAT), power=st.integers(-20, 20))
def test_never_worse_than_the_usual_formula(values, kind, power):
    values = [v * 2.0**power for v in values]
    made = quantize(values, kind)
    ours = squared_error(values, made.dequantize().double().flatten().tolist())
    rounding = sum((abs(v) * 1e-6) ** 2 for v in values)
    assert ours <= squared_error(values, usual(values, kind)) + rounding


@settings(max_examples=60, deadline=None)
@given(values=entries, kind=st.sampled_from(INTEGER + FLOAT))
def test_quantizing_again_changes_nothing(values, kind):
    once = quantize(values, kind).dequantize()
    twice = make(kind).quantize(once).dequantize()
    assert torch.allclose(once, twice, rtol=3e-7, atol=0.0)


@settings(max_examples=25, deadline=None)
@given(values=entries, kind=st.sampled_from([k for k in INTEGER + FLOAT if k[1] != "e8m0fnu"]))
def test_no_scale_of_a_fine_scan_is_better(values, kind):
    largest = max(abs(v) for v in values)
    if not largest:
        return
    x = torch.tensor(values, dtype=torch.float32).double()
    scales = largest / torch.linspace(1.0, 140.0, 6000, dtype=torch.float64)[:, None]
    name, extra = kind
    if name.startswith("float8"):
        scales = largest / LARGEST[name] * torch.logspace(-0.1, 5, 6000, dtype=torch.float64)
        scales = scales[:, None]
        level = (x / scales).clamp(-LARGEST[name], LARGEST[name]).float()
        level = level.to(getattr(torch, name)).double()
    elif extra == "asymmetric":
        # Any 256 neighbouring levels with zero among them; here those that clip nothing.
        spread = max(*values, 0.0) - min(*values, 0.0)
        scales = scales[scales[:, 0] >= spread / 254.0]
        level = (x / scales).round()
    else:
        level = (x / scales).round().clamp(-127 if "clipping" in extra else -128, 127)
    scanned = float((x - level * scales).square().sum(dim=1).min())
    ours = float((x - quantize(values, kind).dequantize().double().flatten()).square().sum())
    # Decoded entries are float32: each may be off by 6e-8 of itself besides its own error.
    rounding = 2.5e-7 * largest * (len(values) * scanned) ** 0.5 + (1e-6 * largest) ** 2
    assert ours <= scanned + rounding


@pytest.mark.parametrize("kind", INTEGER + FLOAT)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-20, 1e20, 3e38])
def test_extreme_entries_stay_finite(kind, size):
    lut = torch.tensor([[[-1.0], [0.25], [0.5], [1.0]]]) * size
    made = make(kind).quantize(lut)
    assert made.scale.shape == (1, 1, 1)
    assert made.scale.dtype is torch.float32
    assert bool((made.scale > 0).all())
    assert bool(made.scale.isfinite().all())
    decoded = made.dequantize()
    assert bool(decoded.isfinite().all())
    if size in (0.0, 1e-20, 1e20):
        step = {"float8_e4m3fn": 1 / 16, "float8_e5m2": 1 / 8}.get(kind[0], 1 / 128)
        assert torch.allclose(decoded, lut, atol=step * size, rtol=0.0)


@pytest.mark.parametrize("kind", INTEGER + FLOAT)
def test_storage_forms(kind):
    lut = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0)).double()
    made = make(kind).quantize(lut)
    assert made.values.dtype is getattr(torch, kind[0])
    assert made.values.shape == lut.shape
    wants_zero = kind[0] == "uint8" or kind[1] == "asymmetric"
    assert (made.zero_point is not None) == wants_zero
    if made.zero_point is not None:
        assert made.zero_point.dtype is made.values.dtype
        assert made.zero_point.shape == (3, 1, 1)
    if kind == ("uint8", "symmetric"):
        assert made.zero_point.flatten().tolist() == [128] * 3
    if kind[1] == "symmetric_with_clipping":
        assert int(made.values.min()) > torch.iinfo(made.values.dtype).min
    if kind[1] == "e8m0fnu":
        assert bool((made.scale.log2() == made.scale.log2().round()).all())
        assert torch.equal(made.scale.to(torch.float8_e8m0fnu).float(), made.scale)


@pytest.mark.parametrize("kind", INTEGER + FLOAT)
def test_tables_do_not_touch_each_other(kind):
    lut = torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(1))
    lut[2] *= 1000
    together = make(kind).quantize(lut)
    for b in range(4):
        alone = make(kind).quantize(lut[b : b + 1])
        assert torch.equal(alone.dequantize()[0], together.dequantize()[b])
        assert torch.equal(alone.scale[0], together.scale[b])


@pytest.mark.parametrize("kind", INTEGER + FLOAT)
def test_ascending_entries_stay_ascending(kind):
    lut = torch.randn(5, 64, 1, generator=torch.Generator().manual_seed(2)).sort(dim=1).values
    decoded = make(kind).quantize(lut).dequantize()
    assert bool((decoded.diff(dim=1) >= 0).all())


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ConfigError, match=r"int8 and uint8, got dtype float8_e5m2"):
        IntegerLutQuantizer(QuantizationSpec(dtype="float8_e5m2"), NoOptions())
    with pytest.raises(ConfigError, match="float8_e4m3fn and float8_e5m2, got dtype int8"):
        Float8LutQuantizer(QuantizationSpec(dtype="int8"), NoOptions())
    quantizer = make(("int8", "symmetric"))
    with pytest.raises(ClusteringError, match=r"\[B, K, D\]"):
        quantizer.quantize(torch.zeros(4, 1))
    with pytest.raises(ClusteringError, match="LUT 1 to quantize is not finite"):
        quantizer.quantize(torch.tensor([[[1.0]], [[torch.nan]]]))
