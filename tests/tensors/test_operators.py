"""The operator: what it computes, and that graphs may hold it."""

from __future__ import annotations

import pytest
import torch

from palette_core.tensors import operators as ops
from palette_core.tensors.palettized import PalettizedTensor

CASES = {
    "scalar": {},
    "vectors on axis 1": {"axis": 1, "dim": 2},
    "int8 entries": {"kind": torch.int8},
    "uint8 with zero points": {"kind": torch.uint8, "zero": True},
    "8-bit floats, half": {"kind": torch.float8_e4m3fn, "dtype": torch.float16},
    "channel scale": {"scale": True, "dtype": torch.bfloat16},
    "3 bits": {"n_bits": 3},
    "one block of ones": {"shape": (1, 4, 1), "grid": (1, 2, 1)},
}


def arguments(
    shape: tuple[int, ...] = (4, 6),
    grid: tuple[int, ...] = (2, 3),
    *,
    n_bits: int = 2,
    axis: int = 0,
    dim: int = 1,
    dtype: torch.dtype = torch.float32,
    kind: torch.dtype | None = None,
    zero: bool = False,
    scale: bool = False,
) -> tuple[PalettizedTensor, tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 1 << n_bits, shape, dtype=torch.uint8, generator=generator)
    lut = torch.randn((*grid, 1 << n_bits, dim), generator=generator)
    ones = (*grid, 1, 1)
    tensor = PalettizedTensor(
        indices,
        lut.to(dtype) if kind is None else (lut * 20).to(kind),
        n_bits,
        axis,
        dtype,
        None if kind is None else torch.rand(ones, generator=generator),
        torch.full(ones, 100).to(kind) if zero else None,
        torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator).to(dtype)
        if scale
        else None,
    )
    tensor.check()
    return tensor, (
        tensor.packed_indices(),
        tensor.lut,
        list(shape),
        n_bits,
        axis,
        dtype,
        tensor.lut_scale,
        tensor.lut_zero_point,
        tensor.scale,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_decodes_and_keeps_the_rules_of_torch_operators(case: dict[str, object]) -> None:
    tensor, args = arguments(**case)  # type: ignore[arg-type]
    assert torch.equal(ops.depalettize(*args), tensor.decode())
    # Fake kernel against the real one; schema and no aliases of inputs, where torch can compare.
    checks = ["test_faketensor", "test_autograd_registration"]
    if tensor.lut.dtype is not torch.float8_e4m3fn:
        checks.append("test_schema")
    op = torch.ops.palette_core.depalettize.default
    torch.library.opcheck(op, args, test_utils=tuple(checks))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantized_entries_may_come_as_bytes(kind: torch.dtype) -> None:
    tensor, args = arguments(kind=kind, zero=kind is torch.uint8)
    zero = tensor.lut_zero_point
    held = (
        args[0],
        tensor.lut.view(torch.uint8),
        *args[2:7],
        None if zero is None else zero.view(torch.uint8),
        tensor.scale,
        kind,
    )
    assert torch.equal(ops.depalettize(*held), tensor.decode())
    checks = ("test_faketensor", "test_autograd_registration", "test_schema")
    torch.library.opcheck(torch.ops.palette_core.depalettize.default, held, test_utils=checks)


def test_compiles_into_a_graph_without_breaks() -> None:
    tensor, args = arguments()

    def double(indices: torch.Tensor, lut: torch.Tensor) -> torch.Tensor:
        return ops.depalettize(indices, lut, *args[2:]) * 2

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(args[0], args[1]), tensor.decode() * 2)


def test_indices_of_the_wrong_length_are_refused() -> None:
    _, args = arguments()
    with pytest.raises(ValueError, match="24 indices of 2 bits take 6 bytes, got 5"):
        ops.depalettize(args[0][:-1], *args[1:])  # type: ignore[index]
