"""From a finalized model to an ``.onnx`` file."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import onnx_ir
import torch
from torch import Tensor, nn

from palette_core.errors import BackendError
from palette_core.plugins import Backend, Refusal, TensorFacts
from palette_core.storage import palette_sites
from palette_core.tensors import PalettizedTensor, apply_scale


@final
class OnnxBackend(Backend):
    """Exports through ``torch.onnx``."""

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse bfloat16, which onnxruntime does not compute with on a CPU."""
        if facts.dtype is torch.bfloat16:
            return Refusal("onnxruntime has no bfloat16 on a CPU; cast the model to float32 first")
        return None

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Return the model as it is."""
        return model

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Convert a copy of the model, in evaluation mode.

        Raises:
            BackendError: no example inputs, a weight that was cast to bfloat16, or ``torch.onnx``
                does not take the model.
        """
        if example_inputs is None:
            raise BackendError("backend 'onnx' traces the model and needs example_inputs")
        named = dict(example_inputs) if isinstance(example_inputs, Mapping) else None
        args = () if named else tuple(example_inputs)
        prepared, n_bits = _with_look_ups(model)
        # The first with 2-bit and 4-bit integers; optimizing would replace look-ups by weights.
        opset = 25 if min(n_bits.values(), default=8) <= 2 else 21
        how: Any = {"opset_version": opset, "dynamo": True, "optimize": False, "verbose": False}
        how |= {"kwargs": named, "dynamic_shapes": dynamic_shapes}
        try:
            program = torch.onnx.export(prepared, args, **how)
        # torch.onnx raises whatever its parts raise.
        except Exception as error:
            raise BackendError(f"torch.onnx cannot convert the model: {error}") from error
        assert program is not None
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
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # 1.3 kB of local paths
    model.ir_version = 13 if model.opset_imports[""] >= 25 else model.ir_version


@final
class LookUp(nn.Module):
    """Stands where the packed weight was, and gathers entries by unpacked indices.

    The tables of all B blocks are one table of B·K rows; block b begins at row b·K.
    """

    indices: Tensor
    first: Tensor
    lut: Tensor
    lut_scale: Tensor | None
    lut_zero: Tensor | None
    scale: Tensor | None

    def __init__(self, weight: PalettizedTensor) -> None:
        super().__init__()
        grid, count, self.dim = weight.grid, weight.layout.n_blocks, weight.cluster_dim
        self.n_bits, self.axis, self.dtype = weight.n_bits, weight.axis, weight.dtype
        self.shape, self.index_shape = weight.shape, weight.indices.shape
        # Axes of the grid and inside a block, in turn.
        self.cut = [n for s, g in zip(self.index_shape, grid, strict=True) for n in (g, s // g)]
        first = torch.arange(count, dtype=torch.int32) * weight.lut.shape[-2]
        self.register_buffer("indices", weight.indices.contiguous())
        self.register_buffer("first", first.reshape([n for g in grid for n in (g, 1)]))
        self.register_buffer("lut", weight.lut.reshape(count, -1))
        self.register_buffer("scale", weight.scale)
        for name, part in (("lut_scale", weight.lut_scale), ("lut_zero", weight.lut_zero_point)):
            self.register_buffer(name, None if part is None else part.reshape(-1, 1))

    def forward(self, placeholder: Tensor) -> Tensor:
        """Return the weight; what stands for the dense one is not read."""
        lut = self.lut
        if self.lut_zero is not None:
            lut = lut.float() - self.lut_zero.float()
        if self.lut_scale is not None:  # not DequantizeLinear, which onnxruntime does not fold
            lut = lut.float() * self.lut_scale
        rows = self.indices.to(torch.int32).reshape(self.cut) + self.first
        table = lut.to(self.dtype).reshape(-1, self.dim)
        weight = nn.functional.embedding(rows.reshape(self.index_shape), table)  # Gather
        weight = weight.movedim(-1, self.axis + 1).reshape(self.shape)
        return weight if self.scale is None else apply_scale(weight, self.scale)
