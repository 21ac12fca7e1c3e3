"""From a finalized model to an ``.onnx`` file."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import onnx_ir
import torch
from torch import Tensor, nn

from palette_core.errors import BackendError
from palette_core.plugins import Backend, Refusal, TensorFacts
from palette_core.storage import palette_sites
from palette_core.tensors import PalettizedTensor, apply_scale, pack_indices, turns_of


@final
class OnnxBackend(Backend):
    """Exports through ``torch.onnx``."""

    sparse_overhead = 8_500  # operations

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse bfloat16, which onnxruntime does not compute with on a CPU."""
        if facts.dtype is torch.bfloat16:
            return Refusal("onnxruntime has no bfloat16 on a CPU; cast the model to float32 first")
        return None

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Return the model as it is."""
        return model

    def export(
        self, model: nn.Module, example_inputs: Any, path: Path, dynamic_shapes: Any = None
    ) -> Path:
        """Convert a copy of the model, in evaluation mode.

        Raises:
            BackendError: no example inputs, a bfloat16 weight, or ``torch.onnx`` fails.
        """
        if example_inputs is None:
            raise BackendError("backend 'onnx' traces the model and needs example_inputs")
        named = dict(example_inputs) if isinstance(example_inputs, Mapping) else None
        args = () if named else tuple(example_inputs)
        prepared, n_bits = _with_look_ups(model)
        # The first with 2-bit and 4-bit integers; optimizing would replace look-ups by weights.
        opset = 25 if min(n_bits.values(), default=8) <= 2 else 21
        how: Any = {"opset_version": opset, "kwargs": named, "dynamic_shapes": dynamic_shapes}
        try:
            program: Any = torch.onnx.export(prepared, args, optimize=False, verbose=False, **how)
        except Exception as error:  # whatever its parts raise
            raise BackendError(f"torch.onnx cannot convert the model: {error}") from error
        _narrow(program.model, n_bits)
        program.save(str(path))
        return path


def _with_look_ups(model: nn.Module) -> tuple[nn.Module, dict[str, int]]:
    """Return a copy that computes weights by `LookUp`, and bits by names of index buffers."""
    prepared = copy.deepcopy(model).eval()
    for site in palette_sites(prepared):
        if site.palette.weight_dtype is torch.bfloat16:
            raise BackendError(f"{site.name} is bfloat16, which onnxruntime has not on a CPU")
        look_up = LookUp(site.palette.palettized())
        for place in site.places:
            place.chain[list(place.chain).index(site.palette)] = look_up
    parts = prepared.named_modules(remove_duplicate=False)
    return prepared, {f"{name}.indices": m.n_bits for name, m in parts if isinstance(m, LookUp)}


def _narrow(model: onnx_ir.Model, n_bits: Mapping[str, int]) -> None:
    """Store indices of up to four bits in two or four; a Cast is all that reads them."""
    for name, value in model.graph.initializers.items():
        if (bits := n_bits.get(name, 8)) <= 4 and value.const_value is not None:
            codes = value.const_value.numpy()
            value.dtype = onnx_ir.DataType.UINT2 if bits <= 2 else onnx_ir.DataType.UINT4
            value.const_value = onnx_ir.Tensor(codes.astype(value.dtype.numpy()), name=name)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # up to 2 kB, local paths included
    model.ir_version = 13 if model.opset_imports[""] >= 25 else model.ir_version


@final
class LookUp(nn.Module):
    """Stands where the packed weight was, and gathers entries by unpacked indices.

    The tables of all B blocks are one table of B·K rows; block b begins at row b·K. A sparse weight
    has the indices of its nonzeros, block by block, and a mask of one bit for each element.
    """

    def __init__(self, weight: PalettizedTensor) -> None:
        super().__init__()
        self.n_bits, self.dtype, self.layout = weight.n_bits, weight.dtype, weight.layout
        indices = weight.indices if weight.mask is None else weight.stored_indices(by_block=True)
        first = torch.arange(self.layout.n_blocks, dtype=torch.int32) * weight.lut.shape[-2]
        self.indices = nn.Buffer(indices.contiguous())
        self.mask = None if (m := weight.mask) is None else nn.Buffer(pack_indices(m.byte(), 1))
        self.first = nn.Buffer(first.reshape([n for g in weight.grid for n in (g, 1)]))
        self.powers = nn.Buffer(2 ** torch.arange(8, dtype=torch.int32))
        self.lut = nn.Buffer(weight.lut.reshape(len(first), -1))
        own = (weight.lut_scale, weight.lut_zero_point, weight.scale)
        self.lut_scale, self.lut_zero, self.scale = [p if p is None else nn.Buffer(p) for p in own]

    def forward(self, placeholder: Tensor) -> Tensor:
        """Return the weight; what stands for the dense one is not read."""
        shape, dim = self.layout.shape, self.layout.cluster_dim
        lut: Tensor = self.lut
        if self.lut_zero is not None:
            lut = lut.float() - self.lut_zero.float().reshape(-1, 1)
        if self.lut_scale is not None:  # not DequantizeLinear, which onnxruntime does not fold
            lut = lut.float() * self.lut_scale.reshape(-1, 1)
        table = lut.to(self.dtype).reshape(-1, dim)
        if self.mask is None:
            weight = nn.functional.embedding(self.rows(self.indices), table)  # Gather
            weight = weight.movedim(-1, self.layout.vector_axis + 1).reshape(shape)
        else:
            bits = (self.mask.to(torch.int32)[:, None] // self.powers).remainder(self.powers[1])
            mask = bits.reshape(-1)[: torch.Size(shape).numel()].reshape(shape) > 0
            turns = turns_of(mask, self.layout)
            at = self.rows(self.indices.to(torch.int32).take(turns // dim)) * dim + turns % dim
            weight = torch.where(mask, table.reshape(-1).take(at), 0.0)
        return weight if self.scale is None else apply_scale(weight, self.scale)

    def rows(self, codes: Tensor) -> Tensor:
        """Return rows of the table; cut into axes of the grid and inside a block, in turn."""
        cut = [n for s, g in zip(codes.shape, self.layout.grid, strict=True) for n in (g, s // g)]
        return (codes.to(torch.int32).reshape(cut) + self.first).reshape(codes.shape)
