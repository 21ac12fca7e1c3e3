"""The weight of a finalized embedding, as a tied head and anybody else reads it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from palette_core.storage import PackedWeight
from palette_core.storage.pack import install_packed
from palette_core.tensors import PalettizedTensor

COUNT, SIZE = 300, 64


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(COUNT, SIZE)

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(self.table(tokens), self.table.weight)


@pytest.fixture
def tied() -> Tied:
    model = Tied().eval()
    g = torch.Generator().manual_seed(0)
    indices = torch.randint(16, (COUNT, SIZE), generator=g, dtype=torch.uint8)
    lut = torch.randn(COUNT // 10, 1, 16, 1, generator=g)
    tensor = PalettizedTensor(indices, lut, 4, 0, torch.float32)
    install_packed(model, ["table.weight"], PackedWeight(tensor))
    return model


def dense_of(model: nn.Module) -> Tensor:
    (found,) = (part for part in model.modules() if isinstance(part, PackedWeight))
    return found.dense()


@pytest.fixture
def never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PackedWeight) -> Tensor:
        raise AssertionError("the whole table is decoded")

    monkeypatch.setattr(PackedWeight, "decoded", refuse)


@pytest.mark.usefixtures("never_decoded")
@pytest.mark.parametrize("tokens", [(), (1,), (2, 9)])
def test_a_tied_head_decodes_no_table(tied: Tied, tokens: tuple[int, ...]) -> None:
    given, dense = torch.randint(COUNT, tokens), dense_of(tied)
    with torch.inference_mode():
        torch.testing.assert_close(tied(given), linear(dense[given], dense))


@pytest.mark.usefixtures("never_decoded")
def test_gradients_reach_what_a_tied_head_is_given(tied: Tied) -> None:
    x, bias = torch.randn(3, SIZE, requires_grad=True), torch.zeros(COUNT, requires_grad=True)
    linear(x, weight=tied.table.weight, bias=bias).sum().backward()
    torch.testing.assert_close(x.grad, dense_of(tied).sum(0).expand(3, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias.grad, torch.full((COUNT,), 3.0))


@pytest.mark.usefixtures("never_decoded")
def test_what_it_looks_like_is_known_without_decoding(tied: Tied) -> None:
    weight = tied.table.weight
    assert weight.shape == (COUNT, SIZE)
    assert weight.size(0) == COUNT
    assert (weight.dtype, weight.device.type, weight.ndim) == (torch.float32, "cpu", 2)
    assert not weight.requires_grad
    assert tied.to(torch.bfloat16).table.weight.dtype is torch.bfloat16


USES: list[Callable[[Tensor], Tensor]] = [
    lambda weight: weight,
    lambda weight: torch.randn(2, SIZE, generator=torch.Generator().manual_seed(1)) @ weight.T,
    lambda weight: weight[3:7],
    lambda weight: torch.cat([weight, weight]),
    lambda weight: weight.data,
    lambda weight: weight.to(torch.float16),
    lambda weight: torch.from_numpy(weight.numpy()),
    copy.deepcopy,
    lambda weight: pickle.loads(pickle.dumps(weight)),
    lambda weight: nn.functional.embedding(torch.tensor([5, 5]), weight, max_norm=None),
    lambda weight: torch.func.vmap(lambda x: linear(x, weight))(torch.ones(3, 2, SIZE)),
    lambda weight: linear(weight, weight),
    lambda weight: weight.new_zeros(2),
    lambda weight: weight.clone().mul_(2),
]


@pytest.mark.parametrize("use", USES)
def test_anything_else_is_done_with_the_dense_weight(
    tied: Tied, use: Callable[[Tensor], Tensor]
) -> None:
    made, wanted = use(tied.table.weight), use(dense_of(tied))
    assert made.shape == wanted.shape
    assert made.dtype is wanted.dtype
    torch.testing.assert_close(made + 0, wanted)


def test_wrong_inputs_are_refused_by_torch(tied: Tied) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.ones(2, SIZE + 1), tied.table.weight)


def test_a_table_that_is_trained_is_decoded_as_ever(tied: Tied) -> None:
    (found,) = (part for part in tied.modules() if isinstance(part, PackedWeight))
    found.lut.requires_grad_()
    weight = tied.table.weight
    assert type(weight) is Tensor
    assert weight.requires_grad


def test_copies_and_exported_programs_compute_the_same(tied: Tied) -> None:
    tokens = torch.randint(COUNT, (2, 5))
    wanted = tied(tokens)
    for twin in (copy.deepcopy(tied), pickle.loads(pickle.dumps(tied))):
        torch.testing.assert_close(twin(tokens), wanted)
    program = torch.export.export(tied, (tokens,))
    names = {str(node.target) for node in program.graph.nodes}
    assert "palette_core.depalettize.default" in names
    torch.testing.assert_close(program.module()(tokens), wanted)
    compiled = torch.compile(tied, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), wanted)
