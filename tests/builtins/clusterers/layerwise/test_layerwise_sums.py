"""Normal equations of entries that are kept while few codes change, beside their definition."""

import numpy as np
import pytest
import torch
from layerwise_cases import DAMPING, LAYOUTS, moments_for

from palette_core.builtins.clusterers.layerwise import steps
from palette_core.builtins.clusterers.layerwise import sums as sums_of
from palette_core.builtins.clusterers.layerwise.problem import pose, weighted_kmeans
from palette_core.builtins.clusterers.layerwise.tables import cast_tables
from palette_core.plugins import ClusterProblem
from palette_core.tensors.layout import BlockLayout

LONG = {"long rows": (BlockLayout((24, 330), (12, 330)), 1, (0,))}  # in several parts
WIDE = {  # several times as wide as what is added at once, and a rest
    "wide rows": (BlockLayout((24, 150), (12, 150)), 1, (0,)),
    "wide columns": (BlockLayout((24, 150), (24, 50)), 1, (0,)),
    "wide vectors": (BlockLayout((24, 150), (24, 150), 2), 2, (0,)),
}
GROUPS = {"wide groups": (BlockLayout((21, 70), (7, 70)), 3, (0,))}


def posed(name, scales=False, entries=4):
    layout, groups, rows = {**LAYOUTS, **WIDE, **LONG, **GROUPS}[name]
    generator = torch.Generator().manual_seed(1)
    points = layout.split(torch.randn(layout.shape, generator=generator))
    factors = 0.5 + torch.rand(points.shape, generator=generator) if scales else None
    if scales == "of rows":
        per_row = 0.5 + torch.rand(layout.shape[0], generator=generator)
        factors = layout.split(per_row[:, None].expand(layout.shape))
    n_rows = layout.shape[0] if rows == (0,) else None
    share = None if n_rows is None else torch.arange(n_rows) % 3 * 0.5  # some count nothing
    moments = moments_for(layout, groups, rows, share)
    problem = ClusterProblem(points, entries, None, moments, None, scales=factors)
    return pose(problem, moments, DAMPING, weighted_kmeans(problem, moments)).matrix


def defined(matrix, grad, codes, wanted):
    """A and b by their definition: sums over all pairs of elements of a row, in float64."""
    square = np.zeros((len(wanted), matrix.dim, matrix.entries, matrix.entries))
    right = np.zeros(square.shape[:3])
    for r in range(len(matrix.w)):
        s, d = divmod(r, matrix.dim)
        h = matrix.h[matrix.group[r]].astype(float)
        f = matrix.factor[r].astype(float).repeat(matrix.wide)
        for number, t in enumerate(wanted):
            one_hot = np.eye(matrix.entries)[codes[s]] * ((matrix.table[s] == t) * f)[:, None]
            square[number, d] += matrix.share[r] * (one_hot.T @ h @ one_hot)
            right[number, d] += matrix.share[r] * (one_hot.T @ grad[r])
    return square, right


def fitted(sums, matrix, grad, codes):
    """All tables' equations, colour by colour, as a fit of entries asks for them."""
    sums.begin(codes)
    for colour in range(matrix.colours.max() + 1):
        batch = np.flatnonzero(matrix.colours == colour)
        for found, truth in zip(
            sums.equations(matrix, grad, codes, batch),
            defined(matrix, grad, codes, batch),
            strict=True,
        ):
            np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5 * np.abs(truth).max())
    sums.end(codes)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("name", [*LAYOUTS, *WIDE])
def test_equations_are_those_of_the_codes_however_these_have_changed(
    name, scales, kept, monkeypatch
):
    if not kept:
        monkeypatch.setattr(sums_of, "_MOST_KEPT", 0)
    monkeypatch.setattr(sums_of, "_FEW", 4)
    matrix = posed(name, scales)
    rng = np.random.default_rng(0)
    grad = rng.normal(size=matrix.w.shape).astype(np.float32)
    codes = rng.integers(0, matrix.entries, matrix.table.shape).astype(np.uint8)
    sums = sums_of.Sums(matrix)
    fitted(sums, matrix, grad, codes)
    for changed in (1, max(1, codes.size // 6), codes.size // 2):  # one, a few, and too many
        places = rng.choice(codes.size, min(changed, codes.size), replace=False)
        codes.reshape(-1)[places] = (codes.reshape(-1)[places] + 1) % matrix.entries
        fitted(sums, matrix, rng.normal(size=grad.shape).astype(np.float32), codes)


def test_few_changes_cost_no_sums_over_all_pairs(monkeypatch):
    matrix = posed("rows")
    grad, codes = np.ones_like(matrix.w), np.zeros(matrix.table.shape, np.uint8)
    sums = sums_of.Sums(matrix)
    fitted(sums, matrix, grad, codes)
    monkeypatch.setattr(sums_of.entries_of, "normal_equations", None)
    codes[3, 5] = 2
    fitted(sums, matrix, grad, codes)
    codes[:] = 1
    with pytest.raises(TypeError):  # all is summed anew
        fitted(sums, matrix, grad, codes)


def test_codes_of_other_numbers_are_summed_anew():
    matrix = posed("grid")
    grad, codes = np.ones_like(matrix.w), np.zeros(matrix.table.shape, np.uint8)
    sums = sums_of.Sums(matrix)
    fitted(sums, matrix, grad, codes)
    sums.end(None)
    codes[0, 0] = 1
    fitted(sums, matrix, grad, codes)


def test_many_entries_are_looked_up_rather_than_compared():
    matrix = posed("wide rows", scales=True, entries=32)
    rng = np.random.default_rng(0)
    grad = rng.normal(size=matrix.w.shape).astype(np.float32)
    codes = rng.integers(0, 32, matrix.table.shape).astype(np.uint8)
    sums = sums_of.Sums(matrix)
    fitted(sums, matrix, grad, codes)
    codes[::3, 5] = 7
    fitted(sums, matrix, grad, codes)


def lines_by_definition(matrix, codes):
    one_hot = np.eye(matrix.entries)[codes]
    return np.einsum("rjk,rji->rki", one_hot, matrix.h[matrix.group].astype(float))


AS_MANY = [("long rows", 4)]
AS_MANY += [("wide groups", entries) for entries in (1, 2, 3, 6, 8, 16)]  # 6 rows together, or less


@pytest.mark.parametrize(("name", "entries"), AS_MANY)
@pytest.mark.parametrize("scales", [False, "of rows"])
def test_lines_are_those_of_the_codes(scales, name, entries):
    matrix = posed(name, scales, entries)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, matrix.entries, matrix.table.shape).astype(np.uint8)
    sums = sums_of.Sums(matrix)
    for changed in (0, 1, codes.size // 10, codes.size // 2):  # of none, a few, and too many
        places = rng.choice(codes.size, changed, replace=False)
        codes.reshape(-1)[places] = (codes.reshape(-1)[places] + 1) % matrix.entries
        fitted(sums, matrix, rng.normal(size=matrix.w.shape).astype(np.float32), codes)
        truth = lines_by_definition(matrix, codes)
        np.testing.assert_allclose(sums.lines, truth, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("scales", [False, True, "of rows"])
@pytest.mark.parametrize("name", ["rows", "grid", *WIDE])
def test_a_fit_of_entries_leaves_the_gradient_of_its_error(name, scales):
    matrix = posed(name, scales)
    rng = np.random.default_rng(0)
    state = None
    for changed in (1.0, 0.02):
        codes = np.zeros(matrix.table.shape, np.uint8) if state is None else state.codes
        other = rng.integers(0, matrix.entries, codes.shape).astype(np.uint8)
        codes = np.where(rng.random(codes.shape) < changed, other, codes)
        lut = np.sort(rng.normal(size=(len(matrix.colours), matrix.entries, matrix.dim)), axis=1)
        tables = cast_tables(lut.astype(np.float32), matrix.dtype)
        before = steps.evaluate(matrix, tables if state is None else state.tables, codes)
        state = steps.refit(matrix, before)
        again = steps.evaluate(matrix, state.tables, state.codes)
        for found, truth in ((state.error, again.error), (state.grad, again.grad)):
            np.testing.assert_allclose(found, truth, atol=2e-5 * np.abs(before.grad).max())
        assert state.cost == pytest.approx(again.cost, rel=1e-4)
        assert state.cost <= before.cost * (1 + 1e-6)


def test_rows_have_lines_only_where_they_are_few_and_of_one_table(monkeypatch):
    assert sums_of.Sums(posed("wide rows")).lines is not None
    assert sums_of.Sums(posed("wide columns")).lines is None
    assert sums_of.Sums(posed("wide vectors")).lines is None
    assert sums_of.Sums(posed("wide rows", scales=True)).lines is None
    assert sums_of.Sums(posed("wide rows", entries=32)).lines is None
    monkeypatch.setattr(sums_of, "_MOST_KEPT", 4 * 24 * 150 * 4 - 1)
    assert sums_of.Sums(posed("wide rows")).lines is None


@pytest.mark.parametrize("entries", [4, 7, 32])  # compared with codes, and too many for that
@pytest.mark.parametrize("scales", [False, True, "of rows"])
def test_a_descent_ends_where_no_other_code_helps(entries, scales):
    matrix = posed("wide rows", scales, entries)
    rng = np.random.default_rng(0)
    lut = np.sort(rng.normal(size=(len(matrix.colours), entries, 1)), axis=1).astype(np.float32)
    codes = rng.integers(0, entries, matrix.table.shape).astype(np.uint8)
    state = steps.evaluate(matrix, cast_tables(lut, matrix.dtype), codes)
    assert steps.descend(matrix, state, 1000) > 0
    factor = matrix.factor.astype(float).repeat(matrix.wide, axis=1)
    known = lut[matrix.table, :, 0] * factor[:, :, None]  # what each element may be
    taken = np.take_along_axis(known, state.codes[:, :, None].astype(int), axis=2)
    error = matrix.w - taken[:, :, 0]
    grad = error @ matrix.h[0].astype(float)
    np.testing.assert_allclose(state.error, error, atol=1e-5)
    np.testing.assert_allclose(state.grad, grad, atol=1e-5 * np.abs(grad).max())
    step = taken - known
    change = 2 * step * grad[:, :, None] + step**2 * matrix.h[0].diagonal()[:, None]
    counts = matrix.share > 0  # of other rows no code is changed
    assert change[counts].min() > -1e-4 * np.abs(change).max()
