"""Products with packed weights, against float64 products of weights that numpy decodes."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palette_core.errors import TrainingError
from palette_core.tensors import product_operators as operators
from palette_core.tensors import products
from palette_core.tensors.packing import pack_indices
from palette_core.tensors.stored import StoredTensor

BITS = [
    pytest.param(n, marks=[] if n in (3, 4, 8) else pytest.mark.slow)
    for n in (1, 2, 3, 4, 5, 6, 7, 8)
]
EPSILON = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Case:
    """A weight ``[g0 * dim * a, g1 * dim * b, *rest]`` with ``g0 * g1`` tables."""

    a: int
    b: int
    grid: tuple[int, int] = (1, 1)
    dim: int = 1
    axis: int = 0
    rest: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    scales: tuple[int, int] | None = None
    quantized: bool = False
    seed: int = 0

    def stored(self, n_bits: int) -> tuple[StoredTensor, np.ndarray]:
        """Return the packed weight, and what numpy decodes, in float64."""
        rng = np.random.default_rng(self.seed)
        shape = (self.grid[0] * self.dim * self.a, self.grid[1] * self.dim * self.b, *self.rest)
        index_shape = [s // self.dim if i == self.axis else s for i, s in enumerate(shape)]
        indices = rng.integers(0, 1 << n_bits, index_shape).astype(np.uint8)
        grid = (*self.grid, *(1 for _ in self.rest))
        lut = torch.from_numpy(rng.normal(size=(*grid, 1 << n_bits, self.dim))).to(self.dtype)
        lut_scale = zero = scale = None
        values = lut
        if self.quantized:
            lut = torch.from_numpy(rng.integers(-128, 128, lut.shape).astype(np.int8))
            lut_scale = torch.from_numpy(rng.random((*grid, 1, 1)).astype(np.float32))
            zero = torch.from_numpy(rng.integers(-5, 5, (*grid, 1, 1)).astype(np.int8))
            values = ((lut.float() - zero.float()) * lut_scale).to(self.dtype)
        where = np.indices(shape)
        within = where[self.axis] % self.dim
        where_index = [w // self.dim if i == self.axis else w for i, w in enumerate(where)]
        block = [w // (s // g) for w, s, g in zip(where, shape, grid, strict=True)]
        chosen = indices[tuple(where_index)]
        weight = values.double().numpy()[(*block, chosen, within)]
        if self.scales is not None:
            extents = (shape[0] // self.scales[0], shape[1] // self.scales[1])
            factors = rng.random((*extents, *(1 for _ in self.rest)))
            scale = torch.from_numpy(factors).to(self.dtype)
            spread = [w // (s // e) for w, s, e in zip(where, shape, scale.shape, strict=True)]
            weight = weight * scale.double().numpy()[tuple(spread)]
            weight = torch.from_numpy(weight).to(self.dtype).double().numpy()
        packed = pack_indices(torch.from_numpy(indices), n_bits)
        return StoredTensor(
            {"indices": packed}, lut, index_shape, n_bits, self.axis, self.dtype,
            lut_scale, zero, scale,
        ), weight  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> Case:
    grid, dim = (
        draw(st.tuples(*[st.sampled_from([1, 1, 2, 3])] * 2)),
        draw(st.sampled_from([1, 2, 4])),
    )
    a, b = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    rest = draw(st.sampled_from([(), (), (1, 1), (3, 2)]))
    scales = draw(st.sampled_from([None, (1, grid[1] * dim * b), (1, dim), (dim, 1)]))
    return Case(
        a, b, grid, dim, draw(st.sampled_from([0, 1])), rest,
        draw(st.sampled_from(list(EPSILON))), scales, draw(st.booleans()), draw(st.integers(0, 99)),
    )  # fmt: skip


@pytest.fixture
def cut_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take small weights for large ones: kernels, tiles and threads all have their part."""
    monkeypatch.setattr(products, "_SMALL", 0)
    monkeypatch.setattr(products, "_TILE", 150)
    monkeypatch.setattr(products, "_PART", 200)


def close(found: torch.Tensor, x: torch.Tensor, weight: np.ndarray, bias: torch.Tensor) -> bool:
    a, b, c = x.double().numpy(), weight.T, bias.double().numpy()
    error = np.abs(found.double().numpy() - (a @ b + c))
    return bool((error <= EPSILON[x.dtype] * (np.abs(a) @ np.abs(b) + np.abs(c))).all())


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.usefixtures("cut_fine")
def test_equal_what_numpy_decodes_and_multiplies(n_bits: int) -> None:
    taken = set()

    @settings(max_examples=40, deadline=None)
    @given(case=cases(), count=st.integers(1, 6))
    def check(case: Case, count: int) -> None:
        stored, weight = case.stored(n_bits)
        decoded = products.decode(stored)
        if decoded is None:  # a factor for each value, of vectors
            assert case.axis == 1
            assert case.dim > 1
            assert case.scales is not None
            return
        assert decoded.dtype is case.dtype
        assert np.array_equal(decoded.double().numpy(), weight)
        if len(weight.shape) > 2:
            return
        generator = torch.Generator().manual_seed(case.seed)
        x = torch.randn(count, weight.shape[1], generator=generator).to(case.dtype)
        bias = torch.randn(len(weight), generator=generator).to(case.dtype)
        product = products.linear(x, stored, bias)
        assert product is not None
        assert product.dtype is case.dtype
        assert close(product, x, weight, bias)
        taken.add(count <= products._FEW)
        rows = torch.randint(len(weight), (2, count), generator=generator)
        gathered = products.embedding(rows, stored)
        assert gathered is not None
        assert np.array_equal(gathered.double().numpy(), weight[rows.numpy()])

    check()
    assert taken == {True, False}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("cut_fine")
def test_several_threads_may_multiply_at_once(threads: int) -> None:
    stored, weight = Case(32, 64, (2, 1)).stored(4)
    inputs = [torch.randn(count, 64) for count in (1, 4, 9, 2, 1, 30)]
    none = torch.zeros(len(weight))
    wrong: list[int] = []

    def work(x: torch.Tensor) -> None:
        for _ in range(20):
            product = products.linear(x, stored, None)
            if product is None or not close(product, x, weight, none):
                wrong.append(len(x))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        workers = [threading.Thread(target=work, args=(x,)) for x in inputs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(before)
    assert wrong == []


def test_infinite_inputs_and_nans_stay_where_they_are() -> None:
    stored, weight = Case(40, 512).stored(4)
    x = torch.randn(2, 512)
    x[1, 3], x[1, 500] = math.inf, math.nan
    product = products.linear(x, stored, None)
    assert product is not None
    assert close(product[:1], x[:1], weight, torch.zeros(40))
    assert product[1].isnan().all()


def arguments(**changed: object) -> tuple[object, ...]:
    stored, _ = Case(40, 512, scales=(1, 512)).stored(4)
    return stored._replace(**changed).arguments()  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True])
def test_keep_the_rules_of_torch_operators(gradients: bool) -> None:
    x = torch.randn(2, 3, 512, requires_grad=gradients)
    bias = torch.randn(40, requires_grad=gradients)
    torch.library.opcheck(operators.palettized_linear, (x, *arguments(), bias))
    torch.library.opcheck(operators.palettized_linear, (x, *arguments()))
    rows = torch.tensor([[0, 39], [7, 7]])
    torch.library.opcheck(operators.palettized_embedding, (rows, *arguments()))


def test_gradients_are_those_of_the_dense_product() -> None:
    stored, weight = Case(40, 512).stored(4)
    x, bias = torch.randn(2, 3, 512), torch.randn(40)
    given = x.clone().requires_grad_(), bias.clone().requires_grad_()
    dense = x.double().requires_grad_(), bias.double().requires_grad_()
    loss = operators.palettized_linear(given[0], *stored.arguments(), given[1])
    loss.square().sum().backward()
    torch.nn.functional.linear(
        dense[0], torch.from_numpy(weight), dense[1]
    ).square().sum().backward()
    for a, b in zip(given, dense, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-3)


def test_gradients_of_tables_are_refused() -> None:
    stored, _ = Case(40, 512).stored(4)
    learnt = stored._replace(lut=stored.lut.clone().requires_grad_())
    with pytest.raises(TrainingError, match="no gradients for tables and scales"):
        operators.palettized_linear(torch.randn(1, 512), *learnt.arguments())


def altered(**changed: object) -> StoredTensor:
    return Case(4, 16).stored(2)[0]._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stored",
    [
        altered(lut=torch.zeros(1, 1, 3, 1)),
        altered(lut=torch.zeros(3, 1, 4, 1)),
        altered(lut=torch.zeros(1, 4, 1)),
        altered(n_bits=0),
        altered(axis=-1),
        altered(scale=torch.zeros(3, 1)),
        altered(scale=torch.zeros(4)),
        altered(parts={"indices": torch.zeros(4, dtype=torch.int32)}),
        altered(lut_scale=torch.zeros(2, 1, 1, 1)),
    ],
)
def test_kernels_are_told_of_nothing_that_does_not_fit(stored: StoredTensor) -> None:
    assert products.decode(stored) is None


@pytest.mark.parametrize(
    "stored",
    [
        Case(4, 16, dtype=torch.float32).stored(2)[0]._replace(dtype=torch.float64),
        Case(4, 16).stored(2)[0]._replace(lut=torch.empty(1, 1, 4, 1, device="meta")),
        Case(4, 16).stored(2)[0]._replace(parts={"indices": torch.zeros(3, dtype=torch.uint8)}),
    ],
    ids=["float64", "another device", "too few bytes"],
)
def test_what_kernels_do_not_take_is_left_to_others(stored: StoredTensor) -> None:
    assert products.decode(stored) is None
    assert products.linear(torch.randn(1, 16), stored, None) is None
    assert products.embedding(torch.tensor([1]), stored) is None
