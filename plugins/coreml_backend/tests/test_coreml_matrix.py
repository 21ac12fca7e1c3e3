"""Every kind of layer and spec: exact in the saved package, or refused in planning.

Writes ``docs/plugins/coreml-matrix.md`` with PALETTE_WRITE_DOCS=1 in the environment, and fails
where that page is out of date.
"""

from __future__ import annotations

import itertools
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_cases import (
    BITS,
    GRANULARITIES,
    INPUTS,
    LAYERS,
    LUTS,
    Cell,
    Together,
    made_up,
    shape_of,
)
from coremltools.converters.mil.mil import types

from coreml_backend.exporting import convert, trace
from coreml_backend.reading import constant_expressions, open_package, read_weights
from coreml_backend.refusals import refuse
from coreml_backend_hooks import CoreMLOptions
from export_rewrites import interface_of
from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import PalettizationSpec
from palette_core.storage import PackedWeight, palette_sites

PAGE = Path(__file__).parents[3] / "docs" / "plugins" / "coreml-matrix.md"
TARGETS = ("iOS16", "iOS18", "iOS26")
WHOLE = ("Linear",)  # every row; other layers take the rows of `SOME`

Row = tuple[str, int, str, bool]  # granularity, cluster_dim, LUT, scale per channel
ROWS: list[Row] = list(itertools.product(GRANULARITIES, (1, 2, 4), LUTS, (False, True)))
SOME = [
    row
    for row in ROWS
    if row[:2] == ("per tensor", 1)
    or (row[2] == "float" and not row[3])
    or (row[:2] in (("groups on axis 1", 2), ("per tensor", 2)) and row[2] != "float8")
]


def options(target: str) -> CoreMLOptions:
    return CoreMLOptions(deployment_target=target, compute_precision="float32")


@cache
def cells() -> dict[tuple[Row, str], Cell]:
    """The combinations, each with one of the bit widths, which take turns."""
    found = {}
    for column, layer in enumerate(LAYERS):
        for i, row in enumerate(ROWS if layer in WHOLE else SOME):
            granularity, dim, lut, scale = row
            spec = PalettizationSpec(
                n_bits=BITS[(i + column) % len(BITS)],
                granularity=GRANULARITIES[granularity],
                cluster_dim=dim,
                lut_qspec=LUTS[lut],
                enable_per_channel_scale=scale,
            )
            found[row, layer] = Cell(layer, spec)
    return found


def fits(cell: Cell) -> bool:
    try:
        cell.facts()
    except IncompatibleShapeError:
        return False
    return True


def refusal(cell: Cell, target: str) -> str | None:
    found = refuse(cell.facts(), options(target))
    return None if found is None else found.reason


class Exported:
    """Some of the combinations, in one saved package."""

    def __init__(self, target: str, path: Path, keys: list[Any], traced: Any) -> None:
        self.target, self.path, self.keys = target, path, keys
        self.model, program = traced
        convert(program, interface_of(program), options(target)).save(str(path))
        # Named by coremltools' operations here: parts_<i>_weight_palettized.
        self.weights = read_weights(path)
        self.operations = {
            op.name: op for op in constant_expressions(open_package(path), roots=True)
        }

    def palettes(self) -> dict[Any, PackedWeight]:
        found = {name: site.palette for site in palette_sites(self.model) for name in site.names}
        return {key: found[f"parts.{i}.{LAYERS[key[1]].weight}"] for i, key in enumerate(self.keys)}

    def name(self, key: Any) -> str:
        return f"parts_{self.keys.index(key)}_{LAYERS[key[1]].weight}_palettized"


def traced(keys: list[Any]) -> Any:
    model = made_up([cells()[key] for key in keys])
    return model, trace(model, INPUTS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    """Packages for every target; what two of them store alike is traced once."""
    takes = {
        target: [k for k, cell in cells().items() if fits(cell) and refusal(cell, target) is None]
        for target in TARGETS
    }
    assert set(takes["iOS16"]) < set(takes["iOS18"]) < set(takes["iOS26"])
    path = tmp_path_factory.mktemp("matrix")
    both = traced(takes["iOS18"])
    assert len(takes["iOS18"]) >= 200  # as many layers as deep models have
    later = [key for key in takes["iOS26"] if key not in takes["iOS18"]]
    return [
        Exported("iOS16", path / "16.mlpackage", takes["iOS16"], traced(takes["iOS16"])),
        Exported("iOS18", path / "18.mlpackage", takes["iOS18"], both),
        Exported("iOS26", path / "26.mlpackage", takes["iOS18"], both),
        Exported("iOS26", path / "26_only.mlpackage", later, traced(later)),
    ]


def wrong(exported: Exported, weights: dict[str, Any]) -> list[Any]:
    """The combinations whose decoded weights differ from ours in any bit."""
    return [
        key
        for key, item in exported.palettes().items()
        if not np.array_equal(weights[exported.name(key)], item.palettized().decode().numpy())
    ]


def test_decoded_weights_equal_ours_to_the_bit(exported) -> None:
    for ours in exported:
        assert wrong(ours, ours.weights) == []
        assert len(ours.weights) == len(ours.keys)


def stored_alone(op: Any) -> str:
    """Return the dtype of a weight that is shifted and scaled, not looked up."""
    while op.inputs["data"].op.op_type != "const":
        op = op.inputs["data"].op
    assert op.op_type == "constexpr_blockwise_shift_scale"
    return f"torch.{op.data.val.dtype}"


def indices_of(op: Any) -> Any:
    while op.op_type != "constexpr_lut_to_dense":
        op = op.inputs["data"].op
    return op


def test_indices_and_tables_have_the_widths_asked_for(exported) -> None:
    for ours in exported[1:]:
        for key in ours.keys:
            spec, op = cells()[key].spec, ours.operations[ours.name(key)]
            if ours.palettes()[key].palettized().picked_entries() is not None:
                assert stored_alone(op) == str(spec.lut_qspec.dtype)
                continue
            look_up = indices_of(op)
            assert types.builtin_to_string(look_up.indices.dtype) == f"uint{spec.n_bits}"
            table = look_up.lut
            if spec.lut_qspec is None:
                assert table.val.dtype == np.float32
            else:
                integers = table.op.data if ours.target == "iOS18" else table
                assert f"torch.{integers.val.dtype}" == str(spec.lut_qspec.dtype)
            if ours.target == "iOS26":
                tables = torch.Size(cells()[key].facts().layout.grid).numel()
                assert table.val.size == tables * spec.n_entries * spec.cluster_dim


def test_weights_are_read_by_the_operation_itself(exported) -> None:
    """Nothing stands between a weight and its operation: no transpose, reshape or cast."""
    takers = {"Linear": "linear", "Embedding": "gather", "MultiheadAttention": "linear"}
    for ours in exported:
        for key in ours.keys:
            users = ours.operations[ours.name(key)].outputs[0].child_ops
            kind = "conv_transpose" if "Transpose" in key[1] else "conv"
            assert {op.op_type for op in users} == {takers.get(key[1], kind)}, key


def test_outputs_of_the_torch_model_with_decoded_weights(exported) -> None:
    for ours in exported:
        torch.manual_seed(0)
        dense = Together((key[1], LAYERS[key[1]]) for key in ours.keys).eval()
        with torch.no_grad():
            expected = ours.model(*INPUTS)
            for i, key in enumerate(ours.keys):
                weight = getattr(dense.parts[i], LAYERS[key[1]].weight)
                weight.copy_(torch.from_numpy(ours.weights[ours.name(key)]))
            for got, want in zip(dense(*INPUTS), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


# --- negative controls --------------------------------------------------------------------------


def test_a_flipped_bit_of_an_index_is_noticed(exported, tmp_path) -> None:
    ours = exported[1]
    path = Path(shutil.copytree(ours.path, tmp_path / "flipped.mlpackage"))
    stored = path / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(stored.read_bytes())
    eight = [key for key in ours.keys if cells()[key].spec.n_bits == 8]
    key = next(k for k in eight if ours.palettes()[k].palettized().picked_entries() is None)
    packed = ours.palettes()[key].palettized().indices.numpy().tobytes()
    at = content.index(packed)
    content[at + 5] ^= 1
    stored.write_bytes(content)
    assert wrong(ours, read_weights(path)) == [key]


def test_a_wrong_table_is_noticed(exported) -> None:
    ours = exported[1]
    key = ours.keys[0]
    weight = ours.weights[ours.name(key)].copy()
    weight.flat[3] = np.nextafter(weight.flat[3], np.float32(9))
    assert wrong(ours, {**ours.weights, ours.name(key): weight}) == [key]


# --- the page -----------------------------------------------------------------------------------

_INTRO = """# What Core ML stores

Written by the tests of `plugins/coreml_backend`: every combination below was exported, the
package saved, read back by coremltools' own decoder, and the decoded weight compared with
`PalettizedTensor.decode()`: equal in every bit, in float32. Nothing ran on a device. [Sparse
weights](../pruned-models.md), from iOS 18 on, are judged by tests of their own.

A cell gives the bits tested, then what each deployment target does: **18** and **26** (iOS 18, iOS
26 and their siblings) store it exactly, a number in parentheses is the reason below for which
planning refuses it. A dash: the groups do not divide a weight of that shape.

Not checkable here, and reported by others: the Neural Engine of macOS 26 refuses scales over
float16 data, which **26** holds in rows with a scale per channel. The option `channel_scales`
`folded` avoids them; what it decodes to is judged by tests of its own.
"""

_LATER = """
## iOS 16 and 17

One table of floats per weight, 1, 2, 4, 6 or 8 bits, exact: checked for {layers}. Everything else
is refused with the nearest spec that works.
"""


def page(exported: list[Exported]) -> str:
    reasons: dict[str, int] = {}
    lines = [_INTRO]
    for layers, rows in ((WHOLE, ROWS), ([n for n in LAYERS if n not in WHOLE], SOME)):
        columns = [f"{name} {'×'.join(map(str, shape_of(name)))}" for name in layers]
        lines += [
            "| granularity | `cluster_dim` | table | scale | " + " | ".join(columns) + " |",
            "|" + "---|" * (4 + len(columns)),
        ]
        for row in rows:
            granularity, dim, lut, scale = row
            texts = [
                cell_text(cells()[row, layer], (row, layer), exported, reasons) for layer in layers
            ]
            first = [granularity, str(dim), lut, "per channel" if scale else ""]
            lines.append("| " + " | ".join([*first, *texts]) + " |")
        lines.append("")
    lines += ["## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    tested = sorted({key[1] for key in exported[0].keys})
    lines.append(_LATER.format(layers=", ".join(tested)))
    return "\n".join(lines)


def cell_text(cell: Cell, key: Any, exported: list[Exported], reasons: dict[str, int]) -> str:
    if not fits(cell):
        return "–"
    parts = []
    for target in ("iOS18", "iOS26"):
        reason = refusal(cell, target)
        if reason is None:
            assert any(key in ours.keys for ours in exported if ours.target == target)
            parts.append(f"**{target[3:]}**")
        else:
            # How much larger differs from shape to shape.
            head, _, tail = reason.partition("own, ")
            if tail:
                reason = (
                    f"{head}own, larger together than the dense weight;{tail.partition(';')[2]}"
                )
            parts.append(f"({reasons.setdefault(reason, len(reasons) + 1)})")
    return f"{cell.spec.n_bits}-bit: {' '.join(parts)}"


def test_the_page_is_current(exported) -> None:
    text = page(exported)
    if os.environ.get("PALETTE_WRITE_DOCS"):
        PAGE.write_text(text, encoding="utf8")
    assert PAGE.read_text(encoding="utf8") == text


def test_the_page_covers_every_width_for_every_layer() -> None:
    for layer in LAYERS:
        assert {cell.spec.n_bits for (_, name), cell in cells().items() if name == layer} == set(
            BITS
        )
