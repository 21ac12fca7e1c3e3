"""A palettized checkpoint beside the dense one that it was made of, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palette_core.engine.results import snr_db
from palette_core.errors import CheckpointError, PaletteError
from palette_core.storage.checkpoint_folders import FolderReader, checkpoint_files
from palette_core.storage.span_writing import file_checksum
from palette_core.storage.tensor_spans import Span
from palette_core.streaming.job import Sealed, read_sealed
from palette_core.streaming.source import open_source
from palette_core.streaming.workplace import MANIFEST
from palette_core.tensors.distortion import square_sums
from palette_core.tensors.palettized import PalettizedTensor

_NEAR = 1e-6  # sums of squares in another order


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of a palettized checkpoint beside that of the source.

    Attributes:
        name: of the tensor.
        is_palettized: whether it is.
        relative_error: Σ (decoded − weight)² / Σ weight²; 0 where it is equal, NaN where it could
            not be compared.
        problem: why it cannot be right; an empty text if it can.
    """

    name: str
    is_palettized: bool
    relative_error: float
    problem: str

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio, infinite where equal."""
        if math.isnan(self.relative_error):
            return math.nan
        return snr_db(1.0, self.relative_error)


@dataclass(frozen=True)
class Comparison:
    """Result of comparing a palettized checkpoint with its source.

    Attributes:
        tensors: one by one.
        files: by name, why a file cannot be right; an empty text if it can.
    """

    tensors: tuple[TensorCheck, ...]
    files: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Return whether everything is right."""
        return not any(self.files.values()) and not any(item.problem for item in self.tensors)


def compare_checkpoints(src: str | Path, out: str | Path) -> Comparison:
    """Decode every tensor of a palettized checkpoint and compare it with the source.

    Args:
        src: as for `palettize_checkpoint`.
        out: the folder that it wrote.

    Raises:
        FileNotFoundError: one of them is not there.
        CheckpointError: the source cannot be read; or ``out`` has no whole manifest, or a file
            whose header cannot be read.
        OSError: a file cannot be read.
    """
    out, source = Path(out), open_source(src)
    manifest = read_manifest(out)
    files = check_files(out)
    told: Mapping[str, Any] = manifest.value["tensors"]
    spans = {span.name: span for span in source.spans()}
    checks = []
    with FolderReader(out) as reader:
        held = {*reader.palettized_names, *reader.dense_names}
        for name in dict.fromkeys([*told, *spans, *sorted(held)]):
            missing = [
                f"it is not in {where}"
                for where, names in ((src, spans), (out, held), (out / MANIFEST, told))
                if name not in names
            ]
            if missing:
                is_palettized = name in reader.palettized_names
                checks.append(TensorCheck(name, is_palettized, math.nan, "; ".join(missing)))
            else:
                checks.append(_check(spans[name], reader, told[name]))
    return Comparison(tuple(checks), files)


def read_manifest(out: Path) -> Sealed:
    """Read the manifest of a palettized checkpoint.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or the folder is not finished.
    """
    checkpoint_files(out)
    path = out / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{out} has no {MANIFEST}: palettize_checkpoint did not write it")
    found = read_sealed(path)
    if not isinstance(found.value.get("tensors"), dict):
        raise CheckpointError(f"{path} is damaged: it has no 'tensors'")
    return found


def check_files(out: Path) -> dict[str, str]:
    """Compare all files of a palettized checkpoint with the hashes of its manifest.

    Returns:
        By name, why a file is not as it was written; an empty text if it is.

    Raises:
        FileNotFoundError, CheckpointError: see `read_manifest`.
        OSError: a file cannot be read.
    """
    expected = read_manifest(out).checksums
    found = {}
    for name, checksum in expected.items():
        path = out / name
        if not path.is_file():
            found[name] = "it is missing"
        elif file_checksum(path) != checksum:
            found[name] = "it is damaged: its checksum is another than when it was written"
        else:
            found[name] = ""
    for path in sorted(out.glob("*.safetensors")):
        if path.name not in expected:
            found[path.name] = "it was not there when the checkpoint was written"
    return found


def _check(span: Span, reader: FolderReader, told: Mapping[str, Any]) -> TensorCheck:
    palettized = span.name in reader.palettized_names
    problems: list[str] = []
    error = math.nan
    try:
        if palettized:
            error, problems = _palettized(span, reader.palettized(span.name), told)
        else:
            error, problems = _dense(span, reader, told)
    except PaletteError as raised:
        problems = [str(raised)]
    return TensorCheck(span.name, palettized, error, "; ".join(problems))


def _palettized(
    span: Span, found: PalettizedTensor, told: Mapping[str, Any]
) -> tuple[float, list[str]]:
    if tuple(found.shape) != span.shape or found.dtype is not span.dtype:
        shape = tuple(found.shape)
        return math.nan, [f"it has shape {shape}, the source {span.shape}, or another dtype"]
    row = told.get("palettized", {})
    error, norm = square_sums(span.mapped(), found)
    problems = list(_changed(span, row.get("source_crc32")))
    if not problems and not math.isclose(error, row.get("squared_error", -1.0), rel_tol=_NEAR):
        problems.append(
            f"its squared error is {error:.6g}, and was {row.get('squared_error')} when it was made"
        )
    return (error / norm if norm else 0.0), problems


def _dense(span: Span, reader: FolderReader, told: Mapping[str, Any]) -> tuple[float, list[str]]:
    reader.dense(span.name)  # by its own checksum
    problems = list(_changed(span, told.get("crc32")))
    return (math.nan if problems else 0.0), problems


def _changed(span: Span, then: Any) -> Iterator[str]:
    if span.checksum() != then:
        yield f"the source in {span.path} is not what it was when this was made"
