"""Compiled products and factors beside numpy's in float64."""

import numpy as np
import pytest

from palette_core.builtins.clusterers.layerwise import factors as factors_of
from palette_core.builtins.clusterers.layerwise import kernels, products, steps

GROUPS = [[0] * 16, [0] * 5, [0] * 3 + [1] * 13, list(range(6))]


@pytest.mark.parametrize("group", GROUPS, ids=["one", "few rows", "two", "each"])
@pytest.mark.parametrize("columns", [1, 7, 31, 64, 75, 150])
@pytest.mark.parametrize("zeros", ["none", "columns", "rows", "all"])
def test_products_are_those_of_each_rows_matrix(columns, group, zeros):
    rng = np.random.default_rng(0)
    group = np.array(group, np.int32)
    error = rng.normal(size=(len(group), columns)).astype(np.float32)
    if zeros == "columns":
        error[:, columns // 3 : -2] = 0.0
    elif zeros == "rows":
        error[::2] = 0.0
    elif zeros == "all":
        error[:] = 0.0
    h = rng.normal(size=(group.max() + 1, columns, columns)).astype(np.float32)
    out = np.full((len(group) + 2, columns), 7.0, np.float32)
    low, high = 1, len(group) + 1
    error = np.pad(error, ((1, 1), (0, 0)), constant_values=np.nan)
    kernels.multiply(error, np.pad(group, 1), h, out, low, high)
    truth = np.einsum("rk,rkj->rj", error[1:-1].astype(float), h[group].astype(float))
    np.testing.assert_allclose(out[1:-1], truth, rtol=1e-5, atol=1e-5 * columns)
    assert (out[[0, -1]] == 7.0).all()


@pytest.mark.parametrize("group", GROUPS, ids=["one", "few rows", "two", "each"])
@pytest.mark.parametrize("columns", [1, 31, 64, 150])
def test_half_a_product_says_what_errors_cost(columns, group):
    rng = np.random.default_rng(0)
    group = np.array(group, np.int32)
    error = rng.normal(size=(len(group), columns)).astype(np.float32)
    h = rng.normal(size=(group.max() + 1, columns, columns)).astype(np.float32)
    h += h.transpose(0, 2, 1)
    out = np.full((len(group) + 2, columns), 7.0, np.float32)
    padded = np.pad(error, ((1, 1), (0, 0)), constant_values=np.nan)
    products.multiply_half(padded, np.pad(group, 1), h, out, 1, len(group) + 1)
    wide = error.astype(float)
    truth = np.einsum("rk,rkj,rj->r", wide, h[group].astype(float), wide)
    found = (wide * out[1:-1]).sum(axis=1)
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5 * columns)
    assert (out[[0, -1]] == 7.0).all()


@pytest.mark.parametrize("columns", [1, 31, 32, 64, 101])
def test_matrices_become_symmetric(columns):
    h = np.random.default_rng(0).normal(size=(2, columns, columns)).astype(np.float32)
    found = h.copy()
    products.symmetrize(found)
    np.testing.assert_array_equal(found, (h + h.transpose(0, 2, 1)) * np.float32(0.5))


@pytest.mark.parametrize("columns", [1, 7, 48, 64, 101, 200])
def test_factors_are_those_of_numpy(columns):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(columns, 2 * columns))
    a = x @ x.T + np.eye(columns)
    found = a.copy()
    assert products.factorize(found)
    np.testing.assert_allclose(np.tril(found), np.linalg.cholesky(a), rtol=1e-9, atol=1e-9)
    assert not products.factorize(a - 2.0 * a.max() * np.eye(columns))


@pytest.mark.parametrize("act_order", [True, False])
def test_factors_put_together_are_the_matrix(act_order):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 70, 140))
    h = (x @ x.transpose(0, 2, 1)).astype(np.float32)
    factors = factors_of.factorize(h, act_order=act_order)
    for g in range(2):
        order = factors.order[g]
        assert sorted(order) == list(range(70))
        diagonal = h[g].diagonal()[order]
        assert (np.diff(diagonal) <= 0).all() if act_order else (order == np.arange(70)).all()
        upper = np.triu(factors.feedback[g], 1).astype(float) + np.eye(70)
        truth = h[g][np.ix_(order, order)]
        found = upper * factors.pivot[g] @ upper.T
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max())


def test_a_matrix_that_is_not_definite_is_given_a_ridge():
    h = np.ones((1, 9, 9), np.float32)
    factors = factors_of.factorize(h, act_order=True)
    upper = np.triu(factors.feedback[0], 1).astype(float) + np.eye(9)
    np.testing.assert_allclose(upper * factors.pivot[0] @ upper.T, h[0], atol=1e-3)


def test_a_wide_factor_is_the_same_on_any_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(620, 700)).astype(np.float32)
    h = (x @ x.T)[None]
    found = []
    for threads in (1, 2, 3):
        for module in ("_common.threads", "builtins.clusterers.layerwise.factors"):
            monkeypatch.setattr(f"palette_core.{module}.thread_count", lambda n=threads: n)
        found.append(factors_of.factorize(h, act_order=True))
    for other in found[1:]:
        np.testing.assert_array_equal(other.feedback, found[0].feedback)
        np.testing.assert_array_equal(other.pivot, found[0].pivot)
    order = found[0].order[0]
    truth = h[0][np.ix_(order, order)]
    upper = np.triu(found[0].feedback[0], 1).astype(float) + np.eye(620)
    np.testing.assert_allclose(
        upper * found[0].pivot[0] @ upper.T, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max()
    )


@pytest.mark.parametrize("most", [1, 8, 16, 64])
def test_two_threads_get_nearly_the_same_share_of_pieces(most):
    for count in range(1, 700):
        pieces = steps.pieces_of(count, most)
        assert [low for low, _ in pieces] == [0, *(high for _, high in pieces[:-1])]
        assert pieces[-1][1] == count
        longest = pieces[0][1]
        assert all(high - low == longest for low, high in pieces[:-1])
        shares = [sum(high - low for low, high in pieces[at::2]) for at in (0, 1)]
        if count >= 64 and most <= 64 and len(pieces) > 1:
            assert max(shares) <= 0.58 * count, (count, pieces)
