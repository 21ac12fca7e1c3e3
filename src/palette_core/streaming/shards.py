"""One file of a palettized checkpoint, put together from parts and from what stays dense."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palette_core._common.files import sync_file
from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.origins import source_of
from palette_core.plugins.catalog import get_catalog
from palette_core.storage.checkpoint_header import METADATA_KEY, header_of
from palette_core.storage.checksums import sealed_with
from palette_core.storage.origins import Origin
from palette_core.storage.span_writing import Streamed, file_checksum, write_spans
from palette_core.storage.tensor_spans import TensorFile
from palette_core.streaming.parts import Part, Task, read_part

_NOT_TOLD = ("seconds",)  # what differs between two runs of one command


def assemble(
    shard: TensorFile,
    tasks: Sequence[Task],
    reasons: Mapping[str, str],
    config: KMeansPalettizerConfig,
    path: Path,
) -> dict[str, Any]:
    """Write the file that stands for a shard of the source.

    Args:
        shard: the shard.
        tasks: what was palettized of it; all parts are there.
        reasons: why the others stay dense, by name.
        config: the rules, for the file to tell.
        path: of the file.

    Returns:
        What manifests say of it, as JSON values: ``tensors`` by name, ``keys`` that it holds, its
        ``bytes`` and its ``crc32``.

    Raises:
        DamagedPieceError: a part is not what was written.
        CheckpointError: a part or the source cannot be read.
        OSError: the file cannot be written.
    """
    parts = {task.span.name: read_part(task) for task in tasks}
    dense = [span for name, span in shard.spans.items() if name not in parts]
    streamed = [item for part in parts.values() for item in part.tensors]
    streamed += [Streamed(span.name, span) for span in dense]
    header = _header(tasks, parts, config)
    sums = write_spans(path, streamed, lambda sums: sealed_with(header, sums), METADATA_KEY)
    sync_file(path)
    tensors: dict[str, Any] = {}
    for name, span in shard.spans.items():
        if name in parts:
            told = parts[name].told
            tensors[name] = {"palettized": {k: v for k, v in told.items() if k not in _NOT_TOLD}}
        else:
            shape, dtype = list(span.shape), str(span.dtype).removeprefix("torch.")
            tensors[name] = {
                "dense": {"shape": shape, "dtype": dtype, "reason": reasons[name]},
                "crc32": sums[name],
            }
    return {
        "tensors": tensors,
        "keys": sorted(sums),
        "bytes": os.path.getsize(path),
        "file_crc32": file_checksum(path),
        "seconds": {name: part.told["seconds"] for name, part in parts.items()},
        "total_size": sum(item.span.size for item in streamed),
    }


def _header(
    tasks: Sequence[Task], parts: Mapping[str, Part], config: KMeansPalettizerConfig
) -> dict[str, Any]:
    told = {task.span.name: parts[task.span.name].told for task in tasks}
    made = [
        (task.plan, told[task.span.name]["algorithm"], told[task.span.name]["stored_form"])
        for task in tasks
    ]
    source = source_of(config, made, get_catalog())
    origins = {
        task.span.name: Origin(algorithm or plan.algorithm, plan.seed, source)
        for task, (plan, algorithm, _) in zip(tasks, made, strict=True)
    }
    return header_of({name: part.record for name, part in parts.items()}, {}, origins)
