"""Every spec that the core accepts on every kind of layer, as weights and as whole layers."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino_support as support
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils import _pytree as pytree

from export_rewrites import rewritten, trace
from openvino_backend.dialect import dialect
from openvino_backend.finishing import finish
from openvino_backend.options import OpenVINOOptions
from openvino_backend.programs import flatten
from openvino_backend.reader import read_weights
from openvino_backend.tracing import _converted
from openvino_backend.writing import write_model
from palette_core import (
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationSpec,
)
from palette_core.errors import IncompatibleShapeError
from palette_core.operations import installed_operations
from palette_core.planning.choose import lay_out
from palette_core.plugins import Granularity, TensorFacts
from palette_core.storage import PackedWeight
from palette_core.tensors import PalettizedTensor
from palette_core.tensors.scales import scale_shape

BITS = (1, 2, 3, 4, 6, 8)
DIMS = (1, 2, 4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Tiles(Granularity):
    """A granularity of a third party, which cuts two axes at once."""

    type: Literal["tiles_of_the_openvino_matrix"] = "tiles_of_the_openvino_matrix"

    def block_shape(self, shape: tuple[int, ...], default_axis: int) -> tuple[int, ...]:
        del default_axis
        if len(shape) < 2 or shape[0] % 8 or shape[1] % 4:
            raise IncompatibleShapeError(f"tiles of 8 by 4 do not fit {shape}")
        return (8, 4, *shape[2:])


def _groups(axis: int) -> PerGroupedChannelGranularity:
    return PerGroupedChannelGranularity(axis=axis, group_size=4)


GRANULARITIES: dict[str, Granularity] = {
    "per tensor": PerTensorGranularity(),
    "groups on axis 0": _groups(0),
    "groups on axis 1": _groups(1),
    "tiles": Tiles(),
}
LUTS: dict[str, QuantizationSpec | None] = {
    "as the weight": None,
    "int8": QuantizationSpec(dtype="int8"),
    "uint8": QuantizationSpec(dtype="uint8"),
    "uint8, asymmetric": QuantizationSpec(dtype="uint8", qscheme="asymmetric"),
    "float8_e4m3fn": QuantizationSpec(dtype="float8_e4m3fn"),
    "float8_e5m2": QuantizationSpec(dtype="float8_e5m2"),
}


class Attention(nn.Module):
    """Attention whose packed input projection is palettized, and its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@dataclass(frozen=True)
class Kind:
    """A kind of layer: how it is made, what it reads, the shape of its weight."""

    make: Any
    input: str
    op_type: str
    shape: tuple[int, ...]


KINDS = {
    "Linear": Kind(lambda: nn.Linear(8, 16), "rows", "linear", (16, 8)),
    "Conv1d": Kind(lambda: nn.Conv1d(8, 16, 3), "line", "conv1d", (16, 8, 3)),
    "Conv2d, kernel 1": Kind(lambda: nn.Conv2d(8, 16, 1), "image", "conv2d", (16, 8, 1, 1)),
    "Conv2d": Kind(lambda: nn.Conv2d(8, 16, 3), "image", "conv2d", (16, 8, 3, 3)),
    "Conv2d, 2 groups": Kind(
        lambda: nn.Conv2d(8, 16, 3, groups=2), "image", "conv2d", (16, 4, 3, 3)
    ),
    "Conv2d, depthwise": Kind(
        lambda: nn.Conv2d(8, 8, 3, groups=8), "image", "conv2d", (8, 1, 3, 3)
    ),
    "Conv3d": Kind(lambda: nn.Conv3d(8, 16, 2), "cube", "conv3d", (16, 8, 2, 2, 2)),
    "ConvTranspose1d": Kind(
        lambda: nn.ConvTranspose1d(8, 16, 3), "line", "conv_transpose1d", (8, 16, 3)
    ),
    "ConvTranspose2d": Kind(
        lambda: nn.ConvTranspose2d(8, 16, 3, stride=2, output_padding=1),
        "image",
        "conv_transpose2d",
        (8, 16, 3, 3),
    ),
    "ConvTranspose2d, 2 groups": Kind(
        lambda: nn.ConvTranspose2d(8, 16, 3, groups=2), "image", "conv_transpose2d", (8, 8, 3, 3)
    ),
    "ConvTranspose3d": Kind(
        lambda: nn.ConvTranspose3d(8, 16, 2), "cube", "conv_transpose3d", (8, 16, 2, 2, 2)
    ),
    "Embedding": Kind(lambda: nn.Embedding(16, 8), "tokens", "embedding", (16, 8)),
    "MultiheadAttention": Kind(Attention, "steps", "multi_head_attention_forward", (24, 8)),
    "LSTM": Kind(
        lambda: Recurrent(nn.LSTM(8, 4, bidirectional=True, batch_first=True)),
        "steps",
        "lstm",
        (16, 8),
    ),
    "GRU": Kind(lambda: Recurrent(nn.GRU(8, 4, batch_first=True)), "steps", "gru", (12, 8)),
}
SHAPES = ("Linear", "Conv1d", "Conv2d", "ConvTranspose2d")


@dataclass(frozen=True)
class Case:
    """A spec on a kind of layer."""

    kind: str
    granularity: str
    lut: str
    dtype: torch.dtype
    spec: PalettizationSpec

    @property
    def name(self) -> str:
        spec = self.spec
        parts = (self.kind, self.granularity, self.lut, spec.n_bits, spec.cluster_dim)
        return "_".join(
            str(part)
            for part in (*parts, int(spec.enable_per_channel_scale), spec.scale_block_size or 0)
        ).translate({ord(c): "_" for c in " ,.-"})

    @property
    def facts(self) -> TensorFacts:
        kind = KINDS[self.kind]
        layout = lay_out(
            kind.shape, self.spec, installed_operations().channel_axis(kind.op_type, kind.shape)
        )
        return TensorFacts(self.name, kind.shape, self.dtype, kind.op_type, layout, self.spec)


def fits(case: Case) -> bool:
    """Whether the core itself accepts the spec on this shape."""
    try:
        return bool(case.facts)
    except IncompatibleShapeError:
        return False


def cases(dtype: torch.dtype, kinds: tuple[str, ...] = SHAPES) -> Iterator[Case]:
    """All bit widths with plain LUTs, all LUTs with and without scales at bits that take turns.

    Scales by block of inputs stand beside plain LUTs, and others that take turns.
    """
    cells = itertools.product(kinds, GRANULARITIES.items(), DIMS)
    for turn, (kind, (granularity, cut), dim) in enumerate(cells):
        plain = [(bits, "as the weight", False) for bits in BITS]
        mixed = [
            (BITS[(turn + at + 3 * scaled) % len(BITS)], lut, scaled)
            for at, lut in enumerate(LUTS)
            for scaled in (False, True)
        ]
        block = 4 * math.prod(KINDS[kind].shape[2:])
        lut = list(LUTS)[turn % len(LUTS)]
        # 16-bit weights differ from others only by a cast.
        chosen = [*plain, *mixed] if dtype is torch.float32 else mixed[turn % 3 :: 3]
        by_block = [(BITS[turn % len(BITS)], name, block) for name in ("as the weight", lut)]
        for bits, lut, scaled in dict.fromkeys([*chosen, *by_block]):
            spec = PalettizationSpec(
                n_bits=bits,
                granularity=cut,
                cluster_dim=dim,
                lut_qspec=LUTS[lut],
                enable_per_channel_scale=bool(scaled),
                scale_block_size=scaled if scaled > 1 else None,
            )
            case = Case(kind, granularity, lut, dtype, spec)
            if fits(case):
                yield case


def random_weight(case: Case) -> PalettizedTensor:
    """Return a palettized weight of random indices and tables."""
    layout, spec, axis = case.facts.layout, case.spec, case.facts.layout.vector_axis
    random = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    shape, ones = layout.lut_shape(spec.n_entries), (*layout.grid, 1, 1)
    lut = torch.randn(shape, generator=random)
    lut_scale = zero_point = scale = None
    if spec.lut_qspec is None:
        lut = lut.to(case.dtype)
    else:
        stored = spec.lut_qspec.dtype
        lut_scale = torch.rand(ones, generator=random) / 64 + 1e-3
        if stored.is_floating_point:
            lut = (lut * 100).to(stored)
        else:
            low, high = torch.iinfo(stored).min, torch.iinfo(stored).max
            lut = torch.randint(low, high + 1, shape, generator=random).to(stored)
        if stored is torch.uint8:
            symmetric = spec.lut_qspec.qscheme.value == "symmetric"
            zero_point = torch.randint(0, 256, ones, generator=random).to(stored)
            zero_point = torch.full_like(zero_point, 128) if symmetric else zero_point
    if spec.enable_per_channel_scale:
        out = installed_operations().channel_axis(KINDS[case.kind].op_type, layout.shape)
        wide = scale_shape(layout.shape, out, spec.scale_block_size)
        narrow = torch.float16 if spec.scale_block_size else case.dtype
        narrow = torch.bfloat16 if case.dtype is torch.bfloat16 else narrow
        scale = (torch.rand(wide, generator=random) + 0.1).to(narrow)
    return PalettizedTensor(
        torch.randint(0, spec.n_entries, layout.index_shape, generator=random).to(torch.uint8),
        lut,
        spec.n_bits,
        axis,
        case.dtype,
        lut_scale,
        zero_point,
        scale,
    )


Use = Literal["whole", "rows", "product"]
TOKENS = torch.tensor([[0, 5, 15], [3, 3, 9]])


class _Start(nn.Module):
    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return (x + 1,)


def program_of(
    weights: dict[str, PalettizedTensor], dtype: torch.dtype, use: Use = "whole"
) -> ExportedProgram:
    """Return a program that uses palettized weights in one way, and returns what comes of it.

    Its first input is a unit matrix, by which some weights are multiplied; the second are tokens,
    whose rows are taken of others.

    torch.export takes a tenth of a second for each of a thousand operations; the graph that it
    would make is put together here.
    """
    start = trace(_Start(), (torch.eye(8, dtype=dtype), TOKENS), backend="openvino")
    program = rewritten(start, dialect(frozenset()))
    graph, signature = program.graph, program.graph_signature
    start = next(iter(graph.nodes))
    unit, asked = graph.find_nodes(op="placeholder")[-2:]
    output = graph.output_node()
    results = list(output.args[0])
    for name, weight in weights.items():
        parts = dict(PackedWeight(weight).named_buffers())
        nodes = {}
        for part, tensor in parts.items():
            with graph.inserting_before(start):
                node = graph.placeholder(f"b_{name}_{part}")
            node.meta["val"] = tensor.to("meta")
            target, argument = f"{name}.{part}", TensorArgument(name=node.name)
            spec = InputSpec(InputKind.BUFFER, argument, target, persistent=True)
            signature.input_specs.insert(0, spec)
            program.state_dict[target] = tensor
            nodes[part] = node
        arguments = (
            nodes["indices"],
            nodes["lut"],
            list(weight.indices.shape),
            weight.n_bits,
            weight.axis,
            weight.dtype,
        )
        keywords = {part: nodes.get(part) for part in ("lut_scale", "lut_zero_point", "scale")}
        keywords["lut_dtype"] = None if weight.lut_scale is None else weight.lut.dtype
        operator = torch.ops.palette_core.depalettize.default
        with graph.inserting_before(output):
            made = graph.create_node("call_function", operator, arguments, keywords, name)
            _describe(made, torch.empty(weight.shape, dtype=weight.dtype, device="meta"))
            if use == "rows":
                made = graph.call_function(torch.ops.aten.embedding.default, (made, asked))
                shape = (*TOKENS.shape, weight.shape[1])
                _describe(made, torch.empty(shape, dtype=weight.dtype, device="meta"))
            if use == "product":
                made = graph.call_function(torch.ops.aten.linear.default, (unit, made))
                _describe(made, torch.empty((8, weight.shape[0]), dtype=dtype, device="meta"))
        results.append(made)
        argument = TensorArgument(name=made.name)
        signature.output_specs.append(OutputSpec(OutputKind.USER_OUTPUT, argument, None))
    output.args = (tuple(results),)
    program.module_call_graph[0].signature.out_spec = pytree.tree_structure(tuple(results))
    return program


def _describe(node: Any, value: Tensor) -> None:
    node.meta["val"], node.meta["tensor_meta"] = value, _extract_tensor_metadata(value)


def write_weights(
    dtype: torch.dtype,
    folder: Path,
    kinds: tuple[str, ...] = SHAPES,
    use: Use = "whole",
    **options: Any,
) -> tuple[Path, dict[Case, PalettizedTensor]]:
    """Save all cases of a dtype; returns file and weights."""
    weights = {case: random_weight(case) for case in cases(dtype, kinds)}
    program = program_of({c.name: weight for c, weight in weights.items()}, dtype, use)
    path = folder / "weights.xml"
    flat = flatten(nn.Module(), program)
    write_model(finish(flat, _converted(flat), OpenVINOOptions(**options)), path)
    return path, weights


def judge_weights(
    path: Path,
    weights: dict[Case, PalettizedTensor],
    use: Use = "whole",
    tolerance: float = 0.0,
) -> dict[Case, str]:
    """Return what is wrong with each weight of a saved file; empty where nothing is.

    Args:
        path: of the file.
        weights: that are in it.
        use: what the file returns.
        tolerance: relative difference that is none, of weights with two scales merged in one.
    """
    stored = read_weights(path)
    dtype = next(iter(weights)).dtype
    returned = support.run_file(path, torch.eye(8, dtype=dtype), TOKENS)[1:]
    verdicts = {}
    for (case, weight), got in zip(weights.items(), returned, strict=True):
        wanted = weight.decode()
        late = case.spec.lut_qspec is not None and case.spec.enable_per_channel_scale
        slack = tolerance * late
        # The runtime keeps what stands for bfloat16 in float32, or rounds it otherwise.
        runs = 2.0**-6 if case.dtype is torch.bfloat16 else slack
        wrong = []
        if case.name not in stored:
            wrong.append("not in the file")
        elif not _same(stored[case.name], wanted, slack):
            wrong.append("reads back otherwise")
        right = {"rows": lambda w: w[TOKENS], "product": lambda w: w.T}.get(use, lambda w: w)
        if not _same(got, right(wanted), runs):
            wrong.append("the runtime decodes it otherwise")
        verdicts[case] = ", ".join(wrong)
    return verdicts


def _same(got: np.ndarray, wanted: Tensor, slack: float) -> bool:
    right = support.as_numpy(wanted)
    if got.shape != right.shape:
        return False
    gap = np.abs(got.astype(np.float64) - right.astype(np.float64))
    return bool((gap <= slack * np.abs(right)).all())


def widths(path: Path) -> dict[str, int]:
    """Return how many values of each element type a file holds."""
    found: dict[str, int] = {}
    for node in ov.Core().read_model(path).get_ops():
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().get_type_name()
            found[kind] = found.get(kind, 0) + int(np.prod(list(node.get_output_shape(0))))
    return found
