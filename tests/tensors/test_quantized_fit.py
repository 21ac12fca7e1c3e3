"""Joint refinement under a quantized LUT, against naive rounding worked out independently."""

import numpy as np
import pytest
import torch

from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector
from palette_core.builtins.lut_quantizers.float8 import Float8LutQuantizer
from palette_core.builtins.lut_quantizers.integer import IntegerLutQuantizer
from palette_core.errors import ClusteringError
from palette_core.plugins import ClusterProblem, LutQuantizer
from palette_core.spec import QuantizationSpec
from palette_core.tensors.assignment.cpu import nearest_scalars
from palette_core.tensors.codebook import Codebook, QuantizedLut
from palette_core.tensors.quantized_fit import quantize_codebook

QUANTIZERS = {
    "int8": IntegerLutQuantizer(QuantizationSpec(dtype="int8")),
    "uint8": IntegerLutQuantizer(QuantizationSpec(dtype="uint8")),
    "int8 clipped": IntegerLutQuantizer(
        QuantizationSpec(dtype="int8", qscheme="symmetric_with_clipping")
    ),
    "uint8 affine": IntegerLutQuantizer(QuantizationSpec(dtype="uint8", qscheme="asymmetric")),
    "e4m3": Float8LutQuantizer(QuantizationSpec(dtype="float8_e4m3fn")),
    "e5m2 e8m0": Float8LutQuantizer(
        QuantizationSpec(dtype="float8_e5m2", scale_dtype="float8_e8m0fnu")
    ),
}


def data(blocks, count, dim, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(blocks, count, dim, generator=generator) * 0.02
    weights = torch.rand(blocks, count, dim, generator=generator) ** 4
    return points.to(dtype), weights


def sse(points, weights, entries, codes):
    x = points.double().numpy()
    table = entries.to(points.dtype).double().numpy()
    w = np.ones_like(x) if weights is None else weights.double().numpy()
    picked = np.stack([t[c] for t, c in zip(table, codes.numpy(), strict=True)])
    return (w * (x - picked) ** 2).sum(axis=(1, 2))


def naive(name, lut):
    """Round to the nearest with the usual scale, entries in float64."""
    largest = lut.double().abs().amax(dim=(1, 2), keepdim=True)
    if name in ("int8", "uint8"):
        scale = largest / 127.5
        return (lut / scale).round().clamp(-128, 127) * scale
    if name == "int8 clipped":
        return (lut / (largest / 127)).round() * (largest / 127)
    if name == "uint8 affine":
        low = lut.amin(dim=(1, 2), keepdim=True).clamp(max=0)
        scale = (lut.amax(dim=(1, 2), keepdim=True).clamp(min=0) - low) / 255
        zero = (-(low / scale).round()).clamp(0, 255)
        return (((lut / scale).round() + zero).clamp(0, 255) - zero) * scale
    dtype = torch.float8_e4m3fn if name == "e4m3" else torch.float8_e5m2
    scale = largest / torch.finfo(dtype).max
    if name == "e5m2 e8m0":
        scale = torch.exp2(scale.log2().ceil())
    return (lut / scale).float().to(dtype).double() * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    ("blocks", "count", "entries", "dim", "weighted"),
    [
        (3, 500, 4, 1, False),
        (2, 2000, 16, 1, True),
        (2, 3000, 16, 2, True),
        (1, 4000, 256, 2, False),
    ],
)
def test_never_costs_more_than_naive_rounding(name, blocks, count, entries, dim, weighted):
    points, weights = data(blocks, count, dim)
    weights = weights if weighted else None
    floating = KMeansVector().fit(ClusterProblem(points, entries, importance=weights))
    made = quantize_codebook(points, weights, floating, QUANTIZERS[name])
    ours = sse(points, weights, made.lut, made.codes)
    rounded = naive(name, floating.lut.double())
    assert (ours <= sse(points, weights, rounded, floating.codes) * (1 + 1e-9)).all()
    by_quantizer = QUANTIZERS[name].quantize(floating.lut).dequantize()
    assert (ours <= sse(points, weights, by_quantizer, floating.codes)).all()

    assert torch.equal(made.lut, made.quantized.dequantize())
    assert made.lut.dtype is torch.float32
    assert made.codes.dtype is torch.uint8
    if dim == 1:
        assert bool((made.lut.diff(dim=1) >= 0).all())
    x, table = points.double(), made.lut.double()
    w = torch.ones_like(x) if weights is None else weights.double()
    costs = (w[:, :, None] * (x[:, :, None] - table[:, None]) ** 2).sum(dim=3)
    assert torch.allclose(costs.min(dim=2).values.sum(dim=1), torch.from_numpy(ours), rtol=1e-12)


def test_refinement_is_worth_it_where_levels_are_few():
    points, _ = data(1, 20000, 1)
    floating = KMeansVector().fit(ClusterProblem(points, 256))
    made = quantize_codebook(points, None, floating, QUANTIZERS["int8"])
    rounded = naive("int8", floating.lut.double())
    assert sse(points, None, made.lut, made.codes) < 0.9 * sse(
        points, None, rounded, floating.codes
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codes_are_nearest_to_the_entries_as_cast(dtype):
    points, _ = data(2, 1000, 2, dtype=dtype)
    floating = KMeansVector().fit(ClusterProblem(points, 16))
    made = quantize_codebook(points, None, floating, QUANTIZERS["int8"])
    table = made.lut.to(dtype).double()
    costs = (points.double()[:, :, None] - table[:, None]).square().sum(dim=3)
    picked = costs.gather(2, made.codes.long()[..., None]).squeeze(2)
    assert torch.equal(picked, costs.min(dim=2).values)


def test_largest_half_floats_do_not_become_infinite():
    points = torch.tensor([[[-65504.0], [65504.0], [1.0], [65504.0]]], dtype=torch.float16)
    floating = KMeansVector().fit(ClusterProblem(points, 4))
    made = quantize_codebook(points, None, floating, QUANTIZERS["int8"])
    assert bool(made.lut.to(torch.float16)[0][made.codes[0].long()].isfinite().all())


def test_blocks_do_not_touch_each_other():
    points, weights = data(3, 800, 2)
    floating = KMeansVector().fit(ClusterProblem(points, 16, importance=weights))
    together = quantize_codebook(points, weights, floating, QUANTIZERS["e4m3"])
    for b in range(3):
        one = Codebook(floating.lut[b : b + 1], floating.codes[b : b + 1])
        alone = quantize_codebook(points[b : b + 1], weights[b : b + 1], one, QUANTIZERS["e4m3"])
        cost = sse(points[b : b + 1], weights[b : b + 1], alone.lut, alone.codes)
        both = sse(points, weights, together.lut, together.codes)[b]
        assert cost == pytest.approx(both, rel=1e-5)


class WrongShape(LutQuantizer):
    def quantize(self, lut):
        return QuantizedLut(lut[:, :1].to(torch.int8), torch.ones(lut.shape[0], 1, 1))


def test_a_quantizer_that_returns_something_else_is_named():
    points, _ = data(1, 100, 1)
    floating = KMeansVector().fit(ClusterProblem(points, 4))
    with pytest.raises(ClusteringError, match="WrongShape returned values"):
        quantize_codebook(points, None, floating, WrongShape())


@pytest.mark.parametrize("size", [1.0, 1e-40, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scalars_go_to_the_first_of_the_nearest_entries(dtype, size):
    generator = torch.Generator().manual_seed(0)
    for blocks, count, entries in ((1, 5000, 256), (3, 513, 16), (7, 2, 4), (2, 40, 1)):
        points = (size * torch.randn(blocks, count, generator=generator).double()).to(dtype)
        points.clamp_(torch.finfo(dtype).min, torch.finfo(dtype).max)
        lut = (size * torch.randn(blocks, entries, generator=generator).double()).float()
        lut[:, -1] = lut[:, 0]  # equal entries
        exact = points.double()
        # Points on the entries, and half way between neighbours where floats can be.
        middle = lut.double().sort(dim=1).values
        middle = ((middle[:, 1:] + middle[:, :-1]) / 2).to(dtype).double()
        some = torch.cat([lut.to(dtype).double(), middle], dim=1)[:, :count]
        exact[:, : some.shape[1]] = some.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
        found = nearest_scalars(exact.to(dtype)[..., None], lut[..., None])
        gap = (exact[:, :, None] - lut.double()[:, None]).abs()
        its = gap.gather(2, found.long()[..., None])[..., 0]
        # Differences are rounded: between two entries either may come out nearer.
        assert bool((its <= gap.amin(dim=2) * (1 + 1e-14)).all())
        assert bool((found < max(1, entries - 1)).all())
