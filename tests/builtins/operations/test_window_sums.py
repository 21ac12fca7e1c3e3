"""Sums over windows against what the convolutions make of unit weights, in float64."""

import copy
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palette_core.builtins.operations import _window_correlations, _window_shapes, windows
from palette_core.operations import installed_operations
from palette_core.statistics.activations import accumulate, multiplying
from palette_core.tensors import BlockLayout, PartialSums


def modules():
    for rank, conv in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        yield conv(4, 6, 3), rank
        yield conv(4, 6, 3, stride=2, padding=1, dilation=2), rank
        yield conv(4, 6, 2, padding="same"), rank
        yield conv(4, 8, 2, groups=4, padding="same"), rank
        yield conv(4, 4, 3, groups=4, padding=1), rank
        yield conv(4, 8, 3, groups=4, stride=2, padding=2, dilation=2), rank
        yield conv(4, 6, 2, groups=2, stride=3), rank
    yield nn.Conv2d(4, 6, 1), 2
    yield nn.Conv2d(4, 6, 1, stride=2), 2
    yield nn.Conv2d(4, 4, (3, 1), stride=(1, 2), padding=(1, 0), groups=4), 2
    yield nn.Conv2d(4, 4, (1, 5), stride=(2, 3), padding=(0, 4), dilation=(1, 2), groups=4), 2
    for mode in ("circular", "reflect", "replicate"):
        yield nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, groups=4), 2
        yield nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode), 2
    yield nn.Conv2d(4, 4, 9, padding=5, groups=4), 2  # too many coordinates for the small kernel
    for rank, conv in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)):
        yield conv(4, 6, 3, stride=2, padding=1, output_padding=1), rank
        yield conv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), rank
        yield conv(4, 8, 3, groups=4, padding=2), rank
        yield conv(4, 4, 2, groups=4, stride=3, output_padding=2), rank


CASES = [(module, torch.randn(2, 4, *[(9, 7, 5)[rank - 1]] * rank)) for module, rank in modules()]
CASES += [
    (nn.Conv2d(4, 4, 3, groups=4), torch.randn(4, 8, 9)),  # one sample without an axis of its own
    (nn.Conv2d(4, 4, 3, groups=4), torch.randn(2, 4, 8, 9).to(memory_format=torch.channels_last)),
    (nn.Conv2d(4, 6, 3), torch.randn(2, 4, 8, 9).to(memory_format=torch.channels_last)),
    (nn.Conv2d(4, 6, 3), torch.randn(2, 8, 16, 9)[:, ::2, ::2]),
    (nn.Conv2d(2, 2, 3, groups=2, padding=1), torch.randn(3, 2, 40, 30)),  # several tiles
    (nn.Conv2d(2, 2, 3, groups=2, padding=1, stride=2), torch.randn(20, 2, 60, 50)),
]
IDS = [f"{i}-{type(m).__name__}" for i, (m, _) in enumerate(CASES)]


def consumed(module, x):
    """What our code sees when the module runs."""
    found = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, "__name__", "")
            if name.startswith("conv"):
                found.extend(installed_operations().consumptions(name, func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        module(x)
    (what,) = found
    return what


def vectors(module, x, what):
    """``[G, T, C]`` float64: what one output channel of each group makes of unit weights."""
    module = copy.deepcopy(module).double().requires_grad_(False)
    if module.bias is not None:
        module.bias.zero_()
    view, weight, axis = what.view, module.weight, -1 - len(what.view.kernel)
    rows = module(x.double()).shape[axis] // view.n_groups
    made = []
    for group in range(view.n_groups):
        if view.rows == (1,):  # [inputs, outputs of a group, …]
            inputs = weight.shape[0] // view.n_groups
            own = weight[group * inputs : (group + 1) * inputs, 0]
        else:
            own = weight[group * rows]
        columns = []
        for at in range(own.numel()):
            weight.zero_()
            own[tuple(np.unravel_index(at, own.shape))] = 1.0
            columns.append(module(x.double()).movedim(axis, 0)[group * rows].flatten())
        made.append(torch.stack(columns, 1))
    return torch.stack(made)


def multiplied(what, weights, before):
    """Sums and count, also where they come in a form of the view's own."""
    sums, count = multiplying.multiply(what, weights, before)
    total, cross = sums.matrices() if isinstance(sums, PartialSums) else sums[:2]
    # A product that is alone may be float32.
    return total.double(), None if cross is None else cross.double(), count


@pytest.mark.slow
@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(("module", "x"), CASES, ids=IDS)
def test_sums_are_those_of_what_unit_weights_give(module, x, overlaps, monkeypatch):
    monkeypatch.setattr(windows, "_MANY", 1 if overlaps else 1 << 20)
    monkeypatch.setattr(windows, "_WORTH", 0.0)
    monkeypatch.setattr(_window_shapes, "_MOST_BESIDE", float("inf"))
    what = consumed(module, x)
    earlier = consumed(module, x + torch.randn_like(x))
    now, before = vectors(module, x, what), vectors(module, earlier.raw[0], what)
    if earlier.raw[0].shape != x.shape:  # padded before the operation
        padless = copy.deepcopy(module)
        padless.padding, padless.padding_mode = (0, 0), "zeros"
        before = vectors(padless, earlier.raw[0], what)
    for held in (1 << 20, 100):  # all samples at once, or one by one
        monkeypatch.setattr(windows, "_PADDED", held)
        monkeypatch.setattr(windows, "_CHUNK", held)
        total, cross, count = multiplied(what, None, earlier.raw)
        assert count == now.shape[1]
        torch.testing.assert_close(total, now.mT @ now, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(cross, (before - now).mT @ now, rtol=1e-5, atol=1e-4)
        alone, none, _ = multiplied(what, None, None)
        assert torch.equal(alone, total)
        assert none is None


@pytest.mark.parametrize(("module", "x"), CASES, ids=IDS)
@pytest.mark.parametrize("at_once", [1, 1 << 20], ids=["one by one", "all samples"])
def test_gaps_go_through_a_weight_as_its_definition_says(module, x, at_once, monkeypatch):
    monkeypatch.setattr(windows, "_TALL", at_once)
    what = consumed(module, x)
    (raw,), view = what.raw, what.view
    before = raw + torch.randn_like(raw)
    now, then = (
        torch.cat([piece.double() for _, piece in view.vectors((z,))], 2) for z in (raw, before)
    )
    matrices = torch.randn(view.groups(), 2, now.shape[1])
    truth = matrices.double() @ (then - now) @ now.mT
    found = view.moved((raw,), (before - raw,), matrices)
    assert (found is None) == bool(view.stuffing)
    if found is not None:
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-4)
    made, _ = multiplying.multiply(what, None, (before,), matrices)
    moved = made.moved
    if moved is None:  # of transposed ones in groups, whose windows are summed as such
        moved = matrices.double() @ made.cross
    torch.testing.assert_close(moved.double(), truth, rtol=1e-5, atol=1e-4)
    assert (made.moved is None) != (made.cross is None)


@pytest.mark.slow
@pytest.mark.parametrize("edges", [1, 1 << 23], ids=["often", "at the end"])
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(32, 2, 9, padding=4),
        nn.Conv1d(64, 2, 4, dilation=2, groups=2),
        nn.Conv2d(32, 2, (3, 5), padding=1),
    ],
    ids=["1-D", "dilated in groups", "2-D"],
)
def test_wide_convolutions_share_what_overlaps_over_inputs_of_all_sizes(module, edges, monkeypatch):
    monkeypatch.setattr(_window_correlations, "_EDGES", edges)
    shape = tuple(module.weight.shape)
    plan = types.SimpleNamespace(name="w", layout=BlockLayout(shape, shape))
    sums, truth, cross = accumulate.Accumulator(), 0.0, 0.0
    rank, count = len(module.kernel_size), 0
    for length in (60, 45, 60):
        x, before = (torch.randn(2, module.in_channels, *[length] * rank) for _ in range(2))
        what = consumed(module, x)
        sums.add("w", what, None, (before,))
        assert what.view.partial(what.raw, None) is not None
        now = torch.cat([piece.double() for _, piece in what.view.vectors(what.raw)], 2)
        then = torch.cat([piece.double() for _, piece in what.view.vectors((before,))], 2)
        truth, cross = truth + now @ now.mT, cross + (then - now) @ now.mT
        count += now.shape[2]
    found = sums.result(plan).hessian.double()
    torch.testing.assert_close(found, truth / count, rtol=1e-5, atol=1e-5)
    gap = sums.gap("w")
    assert gap.moved is None
    torch.testing.assert_close(gap.cross, cross / count, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("large", [30.0, 1e3, 1e4])
@pytest.mark.parametrize("some", [slice(None), slice(3, 35, 8)], ids=["all", "few"])
@pytest.mark.parametrize("groups", [1, 2])
def test_edges_that_outweigh_the_rest_hide_nothing(large, some, groups):
    module, x = nn.Conv1d(64, 2, 5, padding=2, groups=groups), torch.randn(2, 64, 120)
    x[:, some, 0] *= large  # as the first token of a sequence may be
    what = consumed(module, x)
    if some != slice(None):
        assert what.view.partial(what.raw, None) is not None
    for before in (None, (torch.zeros_like(x),), (x + F.one_hot(torch.tensor(119)),)):
        what = consumed(module, x)
        total, cross, _ = multiplied(what, None, before)
        now = vectors(module, x, what)
        scale = now.square().sum(1).sqrt()
        torch.testing.assert_close(
            total / (scale[:, :, None] * scale[:, None]),
            now.mT @ now / (scale[:, :, None] * scale[:, None]),
            rtol=0,
            atol=2e-5,
        )
        assert (cross is None) == (before is None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_depthwise_in_other_dtypes(dtype):
    module, x = nn.Conv2d(4, 4, 3, groups=4).to(dtype), torch.randn(2, 4, 8, 8).to(dtype)
    what = consumed(module, x)
    total, _, _ = multiplied(what, None, None)
    rows = F.unfold(x.double(), 3).reshape(2, 4, 9, -1).permute(1, 2, 0, 3).flatten(2)
    torch.testing.assert_close(total, rows @ rows.mT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [300, 700, 1501])
@pytest.mark.parametrize("weighted", [False, True])
def test_wide_inputs_use_symmetry_and_weights_count(columns, weighted):
    x = torch.randn(columns + 50, columns)
    linear = installed_operations().consumptions(
        "linear", F.linear, (x, torch.empty(3, columns)), {}
    )
    (what,) = linear
    weights = torch.rand(2, len(x)) if weighted else None
    total, _, count = multiplied(what, weights, None)
    rows = x.double()
    if weighted:
        truth = torch.stack([(rows * w[:, None].double()).T @ rows for w in weights])
    else:
        truth = (rows.T @ rows)[None]
        assert torch.equal(total, total.mT)
    assert count == len(x)
    torch.testing.assert_close(total, truth, rtol=1e-4, atol=1e-2)


def test_weights_of_windows_are_in_the_order_of_outputs():
    module, x = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(4, 3, 9, 7)
    what = consumed(module, x)
    weights = torch.rand(2, what.view.outputs(module(x)).shape[0])
    total, _, _ = multiplied(what, weights, None)
    rows = F.unfold(x.double(), 3, padding=1, stride=2).movedim(1, 2).flatten(0, 1)
    truth = torch.stack([(rows * w[:, None].double()).T @ rows for w in weights])
    torch.testing.assert_close(total, truth, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 30, 150], ids=["side by side", "few at once", "alone"])
def test_channels_count_alike_however_they_lie(stride, size):
    module = nn.Conv2d(20, 20, (3, 5), groups=20, stride=stride, padding=(1, 2))
    x, before = (torch.randn(5, 20, size, size + 1) for _ in range(2))
    matrices = torch.randn(20, 2, 15)
    now, then = (
        F.unfold(z.double(), (3, 5), padding=(1, 2), stride=stride).unflatten(1, (20, 15))
        for z in (x, before)
    )
    truth = (now @ now.mT).sum(0)
    moved = matrices.double() @ ((then - now) @ now.mT).sum(0)
    view, found = consumed(module, x).view, []
    for turned in (x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        beside = before.to(memory_format=torch.channels_last)
        total, gone, count = view.products_and_moved((turned,), (beside,), matrices)
        assert count == now.shape[0] * now.shape[-1]
        assert torch.equal(total, view.products((turned,), None)[0])
        found.append((total, gone))
        torch.testing.assert_close(total, truth, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(gone, moved, rtol=1e-4, atol=1e-2)
    for first, second in zip(found[0], found[1], strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5)])
def test_gaps_lie_as_inputs_do(shape):
    x = torch.randn(shape).movedim(-1, 1)
    before = (x + 1).contiguous()
    (gap,) = multiplying._gap((before,), (x,))
    assert gap.stride() == x.stride()
    assert torch.equal(gap, before - x)
    late = x.clone(memory_format=torch.preserve_format)
    late[(-1,) * x.dim()] += 1
    assert multiplying._has_changed((late,), (x,))
    assert not multiplying._has_changed((x.clone(),), (x,))
    one = torch.zeros(1).expand(1 << 16)  # of which there is one value in memory
    assert not multiplying._has_changed((one,), (one,))
    assert multiplying._has_changed((one + 1,), (one,))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads):
    module, x = nn.Conv2d(6, 6, 3, groups=6), torch.randn(3, 6, 20, 20)
    what = consumed(module, x)
    before = torch.get_num_threads()
    made = []
    try:
        for count in (threads, 1):
            torch.set_num_threads(count)
            made.append(multiplied(what, None, None)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)
