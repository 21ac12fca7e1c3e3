"""The palettized weights of an exported program, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from palette_core.errors import BackendError
from palette_core.storage import palette_sites
from palette_core.tensors import (
    OP_NAME,
    SPARSE_OP_NAME,
    SPARSE_PARTS,
    BlockLayout,
    PalettizedTensor,
    StoredTensor,
    named_arguments,
    pack_indices,
    unpack_sparse,
)

_PARTS = {
    f"{name.replace('::', '.')}.default": parts
    for name, parts in ((OP_NAME, ("indices",)), (SPARSE_OP_NAME, SPARSE_PARTS))
}


@dataclass(frozen=True)
class Weight:
    """A palettized weight; B tables of K entries of D values.

    Attributes:
        name: qualified name of its first owner.
        nodes: where the program decodes it.
        packed: 1-D uint8, a little-endian stream of ``n_bits``-bit indices: of a sparse weight,
            those of its nonzeros, block by block.
        index_shape: shape of the indices of all elements.
        n_bits: bits per index.
        axis: the axis along which the D values of an entry lie.
        dtype: of the decoded weight.
        lut: ``[*grid, K, D]``, quantized or floating.
        lut_scale: ``[*grid]`` float32, or None.
        lut_zero_point: ``[*grid]`` in the dtype of ``lut``, or None.
        scale: factors by which the weight is multiplied, each for a regular block of it, or None.
        mask: bool, of the weight's shape, where a sparse weight is not zero; None of others.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    packed: Tensor
    index_shape: tuple[int, ...]
    n_bits: int
    axis: int
    dtype: torch.dtype
    lut: Tensor
    lut_scale: Tensor | None = None
    lut_zero_point: Tensor | None = None
    scale: Tensor | None = None
    mask: Tensor | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Tables along each axis."""
        return tuple(self.lut.shape[:-2])

    @property
    def listed(self) -> Tensor:
        """``[B]`` int64: how many indices the nonzeros of each block have, of a sparse weight."""
        block = tuple(s // g for s, g in zip(self.shape, self.grid, strict=True))
        assert self.mask is not None
        inside = BlockLayout(self.shape, block).split(self.mask)[..., 0]
        return (inside.sum(1) + self.dim - 1) // self.dim

    @property
    def n_blocks(self) -> int:
        """B, the number of tables."""
        return self.lut.shape[:-2].numel()

    @property
    def n_entries(self) -> int:
        """K, the number of entries of a table."""
        return self.lut.shape[-2]

    @property
    def dim(self) -> int:
        """D, the number of values of an entry."""
        return self.lut.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded weight."""
        return tuple(s * self.dim if i == self.axis else s for i, s in enumerate(self.index_shape))


def weights_of(model: nn.Module, program: ExportedProgram) -> list[Weight]:
    """Return the palettized weights of a program, each once, however often it is decoded.

    Raises:
        BackendError: one depends on the inputs, or holds NaN or infinity.
    """
    signature = program.graph_signature
    held = {**program.constants, **program.state_dict}
    targets = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    names = _names(model)
    places: dict[Any, list[fx.Node]] = {}
    parts: dict[Any, dict[str, Any]] = {}
    for node in program.graph.nodes:
        form = _PARTS.get(str(node.target))
        if form is None:
            continue
        given = named_arguments(node.args, node.kwargs, form)
        tensors = {n: _held(node, a, targets, held) for n, a in given.items()}
        key = tuple(_identity(part) for part in tensors.values())
        places.setdefault(key, []).append(node)
        parts[key] = tensors
    return [_weight(names, tuple(nodes), parts[key]) for key, nodes in places.items()]


def _names(model: nn.Module) -> dict[Any, str]:
    """Return the first name of each palettized weight by where its first part lies."""
    sites = ((site.name, site.palette.stored().parts) for site in palette_sites(model))
    return {_identity(next(iter(parts.values()))): name for name, parts in sites}


def _identity(part: Any) -> Any:
    """Return what tells arguments apart: of tensors, where they lie."""
    if not isinstance(part, Tensor):
        return str(part)
    return part.data_ptr(), tuple(part.shape), part.dtype


def _held(node: fx.Node, arg: Any, targets: Mapping[str, str], held: Mapping[str, Any]) -> Any:
    if not isinstance(arg, fx.Node):
        return arg
    if arg.op == "placeholder" and arg.name in targets:
        return held[targets[arg.name]].detach()
    raise BackendError(
        f"backend 'openvino' needs palettized weights to be constants; {arg.name!r}, of which "
        f"{node.name!r} is made, is computed by the model"
    )


def _weight(
    names: Mapping[Any, str], nodes: tuple[fx.Node, ...], parts: Mapping[str, Any]
) -> Weight:
    lut, stored = parts["lut"].cpu(), parts.get("lut_dtype")
    scale, zero, channels = (parts.get(name) for name in ("lut_scale", "lut_zero_point", "scale"))
    form = next(form for form in _PARTS.values() if form[0] in parts)
    name = names.get(_identity(parts[form[0]]), nodes[0].name)
    grid = lut.shape[:-2]
    if stored is not None:
        lut = lut.view(stored)
        zero = None if zero is None else zero.view(stored)
    elif scale is None:
        lut = lut.to(parts["dtype"])
    for part in (lut, scale, channels):
        if part is not None and not bool(torch.isfinite(part.float()).all()):
            raise BackendError(f"the look-up tables or scales of {name} hold NaN or infinity")
    packed, mask = parts[form[0]].cpu().contiguous(), None
    if form is SPARSE_PARTS:
        held: dict[str, Any] = {n: _on_host(p) for n, p in parts.items()}
        stored_so = StoredTensor({n: held.pop(n) for n in form}, **held)
        packed, mask = _by_block(unpack_sparse(stored_so))
    return Weight(
        name,
        nodes,
        packed,
        tuple(parts["index_shape"]),
        parts["n_bits"],
        parts["axis"],
        parts["dtype"],
        lut.contiguous(),
        None if scale is None else scale.cpu().reshape(grid).contiguous(),
        None if zero is None else zero.cpu().reshape(grid).contiguous(),
        None if channels is None else channels.cpu().contiguous(),
        mask,
    )


def _by_block(weight: PalettizedTensor) -> tuple[Tensor, Tensor | None]:
    """Return packed indices, block by block where there is a mask, and the mask."""
    if weight.mask is None:
        return weight.packed_indices(), None
    return pack_indices(weight.stored_indices(by_block=True), weight.n_bits), weight.mask


def _on_host(part: Any) -> Any:
    return part.cpu() if isinstance(part, Tensor) else part
