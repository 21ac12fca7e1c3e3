"""Programs with complex numbers, written in real ones, compute what torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from export_rewrites import Dialect, rewritten

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
FIXED = torch.tensor([1 + 2j, -0.5j, 3, 1j, 2 - 1j, 0.1, 1, -1])
MATRIX = FIXED[:, None] * torch.arange(1, 4)
DIALECT = Dialect(takes=lambda op: not str(op).startswith(("aten.fft", "aten.stft", "aten.einsum")))


def pairs(x: Tensor) -> Tensor:
    return torch.complex(x[..., :8], x[..., 8:])


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def written_out(function: Callable[[Tensor], Tensor], **how) -> ExportedProgram:
    return rewritten(torch.export.export(Call(function).eval(), (X,), **how), DIALECT)


def complex_nodes(program: ExportedProgram) -> list[fx.Node]:
    values = ((node, node.meta.get("val")) for node in program.graph.nodes)
    return [n for n, value in values if isinstance(value, Tensor) and value.is_complex()]


FUNCTIONS = {
    "sums": lambda x: pairs(x).add(x[:1, :8], alpha=2) + 1.5 - pairs(x).conj()[0],
    "numbers": lambda x: (1j * pairs(x) * 2 - pairs(x)) / (2 - 1j),
    "quotient": lambda x: pairs(x) / FIXED,
    "by real ones": lambda x: pairs(x) / (x[..., :8].abs() + 1) * x[0, 8:],
    "matrices": lambda x: pairs(x) @ MATRIX,
    "batches": lambda x: pairs(x).reshape(2, -1, 8) @ MATRIX.expand(2, 8, 3),
    "einsum": lambda x: torch.einsum("ab,bc->ac", pairs(x), MATRIX),
    "size and angle": lambda x: pairs(x).abs() + pairs(x).angle(),
    "exponential": lambda x: torch.exp(pairs(x)) * torch.exp(1j * x[:, :8]),
    "polar": lambda x: torch.view_as_complex(x.reshape(4, 8, 2)) * torch.polar(x[:, :8], x[:, 8:]),
    "joined and cut": lambda x: torch.cat([pairs(x), pairs(x) * 2]).chunk(2, -1)[1].roll(1, 0),
    "picked": lambda x: FIXED[torch.tensor([0, 1, 1])] * pairs(x)[:3, :3].sum(0, keepdim=True),
    "of real ones": lambda x: x.to(torch.complex64) * FIXED[0],
    "fft": lambda x: torch.fft.fftshift(torch.fft.fft(x)),
    "fftn": lambda x: torch.fft.fftn(x, dim=(1, 0)),
    "ifftn": lambda x: torch.fft.ifftn(pairs(x), norm="ortho"),
    "rfft2": lambda x: torch.fft.rfft2(x, norm="forward"),
    "correlation": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.flip(0)).conj()),
    "odd": lambda x: torch.fft.irfft(torch.fft.rfft(x, n=15), n=15),
    "irfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
    "cut": lambda x: torch.fft.irfft(pairs(x), n=10),
    "hfft": lambda x: torch.fft.hfft(pairs(x)),
    "stft": lambda x: torch.stft(x, 8, 4, window=torch.ones(8), return_complex=True),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_values_are_those_of_torch(function) -> None:
    def real(x: Tensor) -> Tensor:
        made = function(x)
        return torch.view_as_real(made.resolve_conj()) if made.is_complex() else made

    program = written_out(real)
    assert complex_nodes(program) == []
    torch.testing.assert_close(program.module()(X), real(X), rtol=1e-5, atol=1e-5)


def test_rows_of_any_number() -> None:
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=64)}}
    program = written_out(lambda x: torch.view_as_real(pairs(x) * FIXED), dynamic_shapes=rows)
    assert complex_nodes(program) == []
    more = torch.cat([X, X + 1])
    torch.testing.assert_close(program.module()(more), torch.view_as_real(pairs(more) * FIXED))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: pairs(x) * FIXED,
        lambda x: torch.view_as_real(torch.linalg.inv(pairs(x)[:, :4]) * FIXED[:4]),
        lambda x: torch.view_as_real(torch.cat([pairs(x) * FIXED, x[:, :8]])),
    ],
    ids=["given out", "not known", "joined with real ones"],
)
def test_what_is_not_known_stays_as_it_is(function) -> None:
    program = written_out(function)
    assert complex_nodes(program)
    torch.testing.assert_close(program.module()(X), function(X))
