"""Every spec that the core accepts on every kind of layer, as weights and as whole layers.

    python plugins/coreai_backend/tests/coreai_matrix.py

writes docs/plugins/coreai-matrix.md from files that are saved, loaded again and judged. The tests
judge the same files, and that the page is current.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import coreai_support as support
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

from coreai_backend.backend import CoreAIBackend, export_program
from coreai_backend.externalized import Exported
from coreai_backend.options import CoreAIOptions
from coreai_backend.reader import stored_weights
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

PAGE = Path(__file__).parents[3] / "docs" / "plugins" / "coreai-matrix.md"
BITS = (1, 2, 3, 4, 6, 8)
DIMS = (1, 2, 4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Tiles(Granularity):
    """A granularity of a third party, which cuts two axes at once."""

    type: Literal["tiles_of_the_matrix"] = "tiles_of_the_matrix"

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
    "Conv1d, kernel 3": Kind(lambda: nn.Conv1d(8, 16, 3), "line", "conv1d", (16, 8, 3)),
    "Conv2d, kernel 1": Kind(lambda: nn.Conv2d(8, 16, 1), "image", "conv2d", (16, 8, 1, 1)),
    "Conv2d, kernel 3": Kind(lambda: nn.Conv2d(8, 16, 3), "image", "conv2d", (16, 8, 3, 3)),
    "Conv3d, kernel 2": Kind(lambda: nn.Conv3d(8, 16, 2), "cube", "conv3d", (16, 8, 2, 2, 2)),
    "Conv2d, depthwise": Kind(
        lambda: nn.Conv2d(8, 8, 3, groups=8), "image", "conv2d", (8, 1, 3, 3)
    ),
    "ConvTranspose1d": Kind(
        lambda: nn.ConvTranspose1d(8, 16, 3), "line", "conv_transpose1d", (8, 16, 3)
    ),
    "ConvTranspose2d": Kind(
        lambda: nn.ConvTranspose2d(8, 16, 3, stride=2, output_padding=1),
        "image",
        "conv_transpose2d",
        (8, 16, 3, 3),
    ),
    "ConvTranspose2d, depthwise": Kind(
        lambda: nn.ConvTranspose2d(8, 8, 3, groups=8), "image", "conv_transpose2d", (8, 1, 3, 3)
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


# --- weights ------------------------------------------------------------------------------------


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
            str(part) for part in (*parts, int(spec.enable_per_channel_scale))
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


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """All bit widths with plain LUTs, all LUTs with and without scales at bits that take turns."""
    cells = itertools.product(KINDS, GRANULARITIES.items(), DIMS)
    for turn, (kind, (granularity, cut), dim) in enumerate(cells):
        plain = [(bits, "as the weight", False) for bits in BITS]
        mixed = [
            (BITS[(turn + at + 3 * scaled) % len(BITS)], lut, scaled)
            for at, lut in enumerate(LUTS)
            for scaled in (False, True)
        ]
        # 16-bit weights differ from others only by a cast.
        chosen = [*plain, *mixed] if dtype is torch.float32 else mixed[turn % 3 :: 3]
        for bits, lut, scaled in dict.fromkeys(chosen):
            spec = PalettizationSpec(
                n_bits=bits,
                granularity=cut,
                cluster_dim=dim,
                lut_qspec=LUTS[lut],
                enable_per_channel_scale=scaled,
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
        wide = [s if i == axis else 1 for i, s in enumerate(layout.shape)]
        scale = (torch.rand(wide, generator=random) + 0.1).to(case.dtype)
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


class _Start(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def program_of(weights: dict[str, PalettizedTensor]) -> ExportedProgram:
    """Return a program that returns palettized weights.

    torch.export takes a tenth of a second for each of a thousand operations; the graph that it
    would make is put together here.
    """
    program = export_program(_Start(), (torch.ones(1),))
    graph, signature = program.graph, program.graph_signature
    start = next(iter(graph.nodes))
    output = graph.output_node()
    results = list(output.args[0])
    for name, weight in weights.items():
        parts = dict(PackedWeight(weight).named_buffers())
        nodes = {}
        for part, tensor in parts.items():
            with graph.inserting_before(start):
                node = graph.placeholder(f"b_{name}_{part}")
            node.target = node.name  # the converter looks for both
            node.meta["val"] = tensor.to("meta")
            target, argument = f"{name}.{part}", TensorArgument(name=node.name)
            spec = InputSpec(InputKind.BUFFER, argument, target, persistent=True)
            signature.input_specs.insert(len(signature.input_specs) - 1, spec)
            program.state_dict[target] = tensor
            nodes[part] = node
        shape = list(weight.indices.shape)
        with graph.inserting_before(output):
            made = graph.call_function(
                torch.ops.palette_core.depalettize.default,
                (nodes["indices"], nodes["lut"], shape, weight.n_bits, weight.axis, weight.dtype),
                {part: nodes.get(part) for part in ("lut_scale", "lut_zero_point", "scale")}
                | {"lut_dtype": None if weight.lut_scale is None else weight.lut.dtype},
            )
        made.meta["val"] = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        results.append(made)
        argument = TensorArgument(name=made.name)
        signature.output_specs.append(OutputSpec(OutputKind.USER_OUTPUT, argument, None))
    output.args = (tuple(results),)
    return program


def write_weights(dtype: torch.dtype, folder: Path) -> tuple[Path, dict[Case, PalettizedTensor]]:
    """Save all cases of a dtype that are not refused; returns file and weights."""
    backend = CoreAIBackend(CoreAIOptions())
    taken = {
        case: random_weight(case)
        for case in cases(dtype)
        if backend.check_support(case.facts) is None
    }
    path = folder / f"{str(dtype).removeprefix('torch.')}.aimodel"
    program = program_of({case.name: weight for case, weight in taken.items()})
    backend.convert({"main": Exported(program)}).save_asset(path)
    return path, taken


def judge_weights(path: Path, weights: dict[Case, PalettizedTensor]) -> dict[Case, str]:
    """Return what is wrong with each weight of a saved file; empty where nothing is."""
    stored = {weight.name: weight for weight in stored_weights(path)}
    returned = support.run_file(path, torch.ones(1))[1:]
    verdicts = {}
    for (case, weight), dense in zip(weights.items(), returned, strict=True):
        wanted, found = weight.decode(), stored.get(case.name)
        # Entries that stand for themselves are read as picked from a table of every byte.
        alone = weight.picked_entries() is not None
        tables = (*[1] * wanted.dim(), 256, 1) if alone else tuple(weight.lut.shape)
        wrong = []
        if found is None:
            wrong.append("not in the file")
        elif found.n_bits != case.spec.n_bits or found.lut.shape != tables:
            wrong.append(f"stored with {found.n_bits} bits and tables {found.lut.shape}")
        elif not support.same_values(found.dense, wanted):
            wrong.append("reads back otherwise")
        if not support.same_values(dense, wanted):
            wrong.append("the runtime decodes it otherwise")
        verdicts[case] = ", ".join(wrong)
    return verdicts


# --- the page -----------------------------------------------------------------------------------

INTRODUCTION = """# What exports to Core AI

Written by `plugins/coreai_backend/tests/coreai_matrix.py` from files that were saved and loaded
again. *Exact* means that the palettized weights of the file are those of
`PalettizedTensor.decode()` in every value, read back with numpy and computed by Core AI's runtime
on Linux. Nothing ran on a device. [Sparse weights](../pruned-models.md) are judged by tests of
their own.

## By layer and granularity

Float32 weights. Numbers are the `cluster_dim` for which all of 1, 2, 3, 4, 6 and 8 bits, all kinds
of LUT entries, and per-channel scales on and off are exact; a dash means that the core itself finds
the spec incompatible with the weight's shape. *Tiles* is a granularity of a third party that cuts
two axes at once.
"""


def page(verdicts: dict[Case, str]) -> str:
    """Return the page for what `judge_weights` has found."""
    lines = [INTRODUCTION, _row("layer", "weight", *GRANULARITIES), _row(*["---"] * 6)]
    for kind, about in KINDS.items():
        shape = " × ".join(map(str, about.shape))
        lines.append(_row(kind, shape, *(_cell(verdicts, kind, name) for name in GRANULARITIES)))
    lines += [
        "\n## By LUT entries and dtype of the weight\n",
        "Exact weights of those tried, over all layers, granularities, bits and `cluster_dim`.\n",
        _row("LUT entries", "per-channel scale", *(str(d).removeprefix("torch.") for d in DTYPES)),
        _row(*["---"] * 5),
    ]
    for lut, scaled in itertools.product(LUTS, (False, True)):
        counts = []
        for dtype in DTYPES:
            found = [
                not wrong
                for case, wrong in verdicts.items()
                if (case.lut, case.spec.enable_per_channel_scale, case.dtype)
                == (lut, scaled, dtype)
            ]
            counts.append(f"{sum(found)} of {len(found)}")
        lines.append(_row(lut, "yes" if scaled else "no", *counts))
    lines += ["\n## What is refused\n", "`palette plan --backend coreai` says so.\n"]
    lines += [_row("what", "why", "instead"), _row(*["---"] * 3)]
    lines += [_row(*refused) for refused in refusals()]
    return "\n".join(lines) + "\n"


def refusals() -> list[tuple[str, str, str]]:
    """Return what is refused, why, and what works instead."""
    backend, spec = CoreAIBackend(CoreAIOptions()), PalettizationSpec()
    found = []
    for what, kind, dtype in (
        ("ConvTranspose3d", "ConvTranspose3d", torch.float32),
        ("weights in float64", "Linear", torch.float64),
    ):
        refusal = backend.check_support(
            Case(kind, "per tensor", "as the weight", dtype, spec).facts
        )
        assert refusal is not None
        reason, _, instead = refusal.reason.partition("; ")
        found.append((what, reason, instead))
    return found


def _cell(verdicts: dict[Case, str], kind: str, granularity: str) -> str:
    found: dict[int, list[str]] = {}
    for case, wrong in verdicts.items():
        if (case.kind, case.granularity, case.dtype) == (kind, granularity, torch.float32):
            found.setdefault(case.spec.cluster_dim, []).append(wrong)
    if not found:
        every = [c for c in cases(torch.float32) if (c.kind, c.granularity) == (kind, granularity)]
        return "refused" if every else "–"
    exact = [str(dim) for dim, wrong in found.items() if not any(wrong)]
    inexact = [f"{dim} wrong" for dim, wrong in found.items() if any(wrong)]
    return ", ".join([*exact, *inexact])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    verdicts: dict[Case, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            verdicts |= judge_weights(*write_weights(dtype, Path(folder)))
    PAGE.write_text(page(verdicts), encoding="utf8")
    wrong = {case.name: text for case, text in verdicts.items() if text}
    print(f"{len(verdicts)} weights, {len(wrong)} not exact; {PAGE.name} written")
    for name, text in wrong.items():
        print(f"{name}: {text}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
