"""Numbers that no runtime computes with."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from export_rewrites import Dialect, rewritten, unfit
from export_rewrites.programs import PROGRAMS

BYTES = torch.tensor([[200, 100], [3, 4]], dtype=torch.uint8)

C64 = torch.complex64


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def sentences(function, x: Tensor) -> list[str]:
    program = torch.export.export(nn.Sequential(nn.Identity(), Calls(function)).eval(), (x,))
    return unfit(rewritten(program, Dialect(takes=lambda op: True)), "this runtime")


@pytest.mark.parametrize(
    ("function", "x", "said"),
    [
        (lambda x: x.double() * 2, torch.ones(2), [r"aten\..*\(in '1'\): .*float64 in float32"]),
        (
            lambda x: x * torch.cos(torch.arange(2.0, dtype=torch.float64)),
            torch.ones(2),
            [r"aten\.cos\.default \(in '1'\): .*float64 in float32"],
        ),
        (lambda x: x * 2, torch.ones(2, dtype=torch.float64), ["input or weight 'input'"]),
        (lambda x: x + x, BYTES, [r"aten\.add\.Tensor \(in '1'\): .* does not wrap uint8"]),
        (lambda x: (x * 100).to(torch.int8).int(), torch.tensor([3]), ["does not wrap int8"]),
        (
            lambda x: torch.view_as_real(torch.view_as_complex(x) ** torch.ones(1, dtype=C64)),
            torch.ones(3, 2),
            [r"aten\.pow\.Tensor_Tensor \(in '1'\): this runtime has no complex constants"],
        ),
        (lambda x: x.float() / 255, BYTES, []),
        (lambda x: x.reshape(-1)[1:], BYTES, []),
        (lambda x: x.to(torch.uint8).float(), torch.ones(2), []),
        (lambda x: x * 0.3 + 2**0.5, torch.ones(2), []),
    ],
)
def test_what_is_said(function, x, said) -> None:
    found = sentences(function, x)
    for text in said:
        assert any(re.search(text, sentence) for sentence in found)
    assert bool(found) == bool(said)


def test_a_parameter_that_the_model_writes_to() -> None:
    (program,) = (p for p in PROGRAMS if p.name == "Embedding, max_norm")
    exported = torch.export.export(program.make(), program.inputs)
    found = unfit(rewritten(exported, Dialect(takes=lambda op: True)), "this runtime")
    assert "writes to its parameter 'weight', which this runtime has constant" in found[0]
