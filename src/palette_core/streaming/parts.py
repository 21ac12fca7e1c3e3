"""One weight of a checkpoint: mapped, clustered, and written into a file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from palette_core._common.tensor_files import save_file
from palette_core.engine.cluster_tensor import cluster_here
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered, tensor_report
from palette_core.errors import CheckpointError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import get_catalog
from palette_core.storage.checkpoint_header import read_header
from palette_core.storage.checkpoint_reading import CheckpointReader
from palette_core.storage.checkpoint_writing import host_content
from palette_core.storage.checksums import checksum
from palette_core.storage.forms.lookup import encode, form_for, stored_form
from palette_core.storage.span_writing import Streamed
from palette_core.storage.tensor_spans import Span, read_header_of

_RECORD = "record"


@dataclass(frozen=True)
class Task:
    """A weight to be palettized.

    Attributes:
        plan: what to do.
        span: the weight, as it lies in the source.
        part: file to write.
    """

    plan: TensorPlan
    span: Span
    part: Path


@dataclass(frozen=True)
class Part:
    """A palettized weight in a file of its own.

    Attributes:
        tensors: what is stored of it.
        record: what decodes it, as headers of packed checkpoints have it.
        told: what is known of it: a row of the report, and what manifests say beside that.
    """

    tensors: tuple[Streamed, ...]
    record: Mapping[str, Any]
    told: Mapping[str, Any]


def palettize_tensor(task: Task) -> Task:
    """Palettize one weight, and write its part, whole or not at all; returns the task.

    Raises:
        PaletteError: naming the tensor.
        OSError: the source cannot be read, or the part cannot be written.
    """
    weight = task.span.mapped()
    source = checksum(weight)
    result = cluster_here(Job(task.plan, weight), get_catalog())
    del weight
    write_part(task, result, source)
    return task


def write_part(task: Task, result: Clustered, source: str) -> None:
    """Write the part of a weight, whole or not at all.

    Args:
        task: the weight.
        result: what became of it.
        source: `checksum` of the weight.

    Raises:
        PaletteError: naming the tensor.
        OSError: the part cannot be written.
    """
    name, plan = task.span.name, task.plan
    form = stored_form(form_for(result.palettized, plan.spec.stored_form))
    stored = {name: (form, encode(result.palettized, form))}
    tensors, metadata = host_content(stored, {}, {}, {}, {_RECORD: _told(plan, result, source)})
    # A kill leaves it under the first name; one of the power a part that its checksums tell.
    fresh = task.part.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(tensors, fresh, metadata)
        fresh.replace(task.part)
    finally:
        fresh.unlink(missing_ok=True)


def _told(plan: TensorPlan, result: Clustered, source: str) -> dict[str, Any]:
    return {
        **tensor_report(plan, result).to_dict(),
        "shape": list(plan.shape),
        "squared_error": result.squared_error,
        "squared_norm": result.squared_norm,
        "seed": plan.seed,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "source_crc32": source,
        "spec": plan.spec.model_dump(mode="json"),
    }


def decoded_part(task: Task) -> Tensor:
    """Return the weight that a part decodes to.

    Raises:
        FileNotFoundError: it is not there.
        CheckpointError: it is damaged.
    """
    with CheckpointReader(task.part) as reader:
        return reader.palettized(task.span.name).decode()


def read_part(task: Task) -> Part:
    """Read the header of a part.

    Raises:
        FileNotFoundError: it is not there.
        CheckpointError: it is damaged.
    """
    file = read_header_of(task.part)
    header = read_header(task.part, file.metadata)
    sums, told = header.checksums, header.values.get(_RECORD)
    record = header.palettized.get(task.span.name)
    if sums is None or record is None or not isinstance(told, dict) or sums.keys() != {*file.spans}:
        raise CheckpointError(f"{task.part} is damaged: it is no part of {task.span.name}")
    streamed = (Streamed(name, span, sums[name]) for name, span in file.spans.items())
    return Part(tuple(streamed), record, told)
