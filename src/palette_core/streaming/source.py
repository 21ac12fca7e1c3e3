"""A dense checkpoint as it lies on disk: its files, their tensors, and what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palette_core._common.bounded_json import read_json
from palette_core.errors import CheckpointError
from palette_core.storage.checkpoint_header import METADATA_KEY
from palette_core.storage.shards import INDEX_SUFFIX, check_complete, read_index
from palette_core.storage.tensor_spans import Span, TensorFile
from palette_core.streaming.formats.known import (
    FORMATS,
    INDEX,
    CheckpointFormat,
    format_of,
    titles,
)

CONFIG = "config.json"
TIED = "tie_word_embeddings"
_SHARD = re.compile(r"-\d+-of-\d+\.\w+$")
# Weights of any kind: what is written in their place is the palettized checkpoint.
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|tflite|ot|npz|mlmodel)$"
    r"|\.index(\.[\w-]+)?\.json$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SourceCheckpoint:
    """A dense checkpoint.

    Attributes:
        path: as the user names it.
        shards: headers of its files, in the order of their names.
        config: content of ``config.json``; empty where there is none.
        beside: other files that belong to the model, each with its place in the folder.
    """

    path: Path
    shards: tuple[TensorFile, ...]
    config: Mapping[str, Any]
    beside: Mapping[str, Path]

    def spans(self) -> Iterator[Span]:
        """Yield every tensor."""
        for shard in self.shards:
            yield from shard.spans.values()

    @property
    def model_types(self) -> frozenset[str]:
        """Types of the model and of its parts, as its configuration says."""
        return frozenset(_model_types(self.config))


def open_source(path: str | Path) -> SourceCheckpoint:
    """Open a dense checkpoint; only headers are read.

    Args:
        path: of a folder with one file of weights or an index of several, of the index, or of
            the file; see `formats.known.FORMATS`.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is not clear which files are meant, one is missing or not whole, two
            hold a tensor of one name, or the weights are quantized already.
        OSError: a file cannot be read.
    """
    path = Path(path)
    chosen = _chosen(path) if path.is_dir() else path
    if not chosen.is_file():
        raise FileNotFoundError(f"no checkpoint at {chosen}")
    named = read_index(chosen) if chosen.name.endswith(".json") else {}
    files = [chosen.parent / name for name in sorted(set(named.values()))] or [chosen]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there, and {chosen.name} says it is")
    shards = tuple(format_of(file).read(file) for file in files)
    check_complete(chosen, named, {shard.path.name: shard.spans for shard in shards})
    for shard in shards:
        if METADATA_KEY in shard.metadata:
            raise CheckpointError(f"{shard.path} is a packed checkpoint, palettized already")
    folder = chosen.parent
    whole = path.is_dir() or (folder / CONFIG).is_file()
    config = _config(folder / CONFIG) if whole else {}
    if config and not says_untied(config):
        shards = tuple(map(_without_aliases, shards))
    return SourceCheckpoint(path, shards, config, dict(_beside(folder)) if whole else {})


def says_untied(config: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` says that the model ties no weights."""
    said = list(_said(config))
    return bool(said) and not any(said)


def _said(config: Mapping[str, Any]) -> Iterator[bool]:
    if TIED in config:
        yield bool(config[TIED])
    for value in config.values():
        if isinstance(value, dict):
            yield from _said(value)


def _without_aliases(file: TensorFile) -> TensorFile:
    """Leave out other names of the very same bytes, as safetensors files of a model have none.

    They are of weights that the model ties; libraries that go by its configuration tie them again.
    """
    kept: dict[tuple[Any, ...], str] = {}
    for name, span in file.spans.items():
        kept.setdefault((span.begin, span.shape, span.dtype) if span.size else (name,), name)
    return replace(file, spans={name: file.spans[name] for name in kept.values()})


def _chosen(folder: Path) -> Path:
    """Return the index, or the one file, of a folder."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    for known in FORMATS:
        found = _weights_in(folder, names, known)
        if found is not None:
            return folder / found
    raise FileNotFoundError(f"no weights in {folder}: no file of {titles()}")


def _weights_in(folder: Path, names: Sequence[str], known: CheckpointFormat) -> str | None:
    """Return the name of the index, or of the one file, that has a format."""
    files = [name for name in names if known.in_folders.match(name)]
    indexes = [
        name for name in names if INDEX.search(name) and known.in_folders.match(INDEX.sub("", name))
    ]
    singles = [name for name in files if not _SHARD.search(name)]
    if len(indexes) + len(singles) == 1:
        return (indexes or singles)[0]
    if indexes or singles:
        raise CheckpointError(
            f"{folder} holds {', '.join([*indexes, *singles])}, of which one is left over or a "
            "variant; remove what is not meant, or name the one that is"
        )
    if files:
        suffix = Path(files[0]).suffix
        raise CheckpointError(
            f"{folder} holds shards ({files[0]} and others) without their index "
            f"({suffix}{INDEX_SUFFIX}); get it from where they came from"
        )
    return None


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON object: {error}") from None
    quantized = found.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise CheckpointError(
            f"{path} says that the weights are quantized already ({method!r}); palettize the "
            "checkpoint that they were quantized from"
        )
    return found


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if name == "model_type" and isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _model_types(value)


def _beside(folder: Path, below: str = "") -> Iterator[tuple[str, Path]]:
    for entry in sorted((folder / below).iterdir()):
        place = f"{below}{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _beside(folder, f"{place}/")
        elif entry.is_file() and not _WEIGHTS.search(entry.name) and place != CONFIG:
            yield place, entry
