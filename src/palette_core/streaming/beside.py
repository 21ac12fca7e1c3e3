"""Files beside the weights of a palettized checkpoint: index, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palette_core._common.files import atomic_path
from palette_core.storage.checkpoint_folders import INDEX
from palette_core.storage.checkpoint_header import FORMAT_VERSION
from palette_core.storage.shards import write_index
from palette_core.storage.span_writing import file_checksum
from palette_core.streaming.source import CONFIG, SourceCheckpoint
from palette_core.tensors.dtypes import dtype_name

METHOD = "palette"
"""Name of the method in the ``quantization_config`` of models of transformers."""


def write_beside(
    source: SourceCheckpoint,
    out: Path,
    names: Mapping[str, str],
    told: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write all but the weights.

    Args:
        source: what was palettized.
        out: the folder.
        names: of the written files, by those of the source.
        told: of each file of the source, what `assemble` says.

    Returns:
        The content of the manifest, and checksums of all files by name.

    Raises:
        OSError: a file cannot be read or written.
    """
    told = {shard: told[shard] for shard in names}  # in whatever order they were finished
    checksums = {names[shard]: item["file_crc32"] for shard, item in told.items()}
    weights = INDEX if len(names) > 1 else next(iter(names.values()))
    if len(names) > 1:
        files = {key: names[shard] for shard, item in told.items() for key in item["keys"]}
        write_index(out / INDEX, files, sum(item["total_size"] for item in told.values()))
        checksums[INDEX] = file_checksum(out / INDEX)
    for place, path in source.beside.items():
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as fresh:
            shutil.copyfile(path, fresh)
        checksums[place] = file_checksum(target)
    if source.config:
        about = {"quant_method": METHOD, "format_version": FORMAT_VERSION, "weights": weights}
        about |= _dtype(source)
        text = json.dumps({**source.config, "quantization_config": about}, indent=2)
        with atomic_path(out / CONFIG) as fresh:
            fresh.write_text(text + "\n", encoding="utf-8")
        checksums[CONFIG] = file_checksum(out / CONFIG)
    tensors = {
        name: {"file": names[shard], **item["tensors"][name]}
        for shard, item in told.items()
        for name in item["tensors"]
    }
    return {"tensors": tensors}, checksums


def _dtype(source: SourceCheckpoint) -> dict[str, str]:
    """Return what transformers would take for the dtype of a model whose config names none."""
    dtypes = [span.dtype for span in source.spans() if span.dtype.is_floating_point]
    return {"dtype": dtype_name(dtypes[0])} if dtypes else {}
