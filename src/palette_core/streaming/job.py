"""Identity of a run, kept beside its work, so that only the same run goes on from there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palette_core._common.bounded_json import read_json
from palette_core._common.files import atomic_path
from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.origins import source_of, told
from palette_core.errors import CheckpointError, shortened
from palette_core.plugins.catalog import Catalog
from palette_core.storage.checkpoint_header import FORMAT_VERSION
from palette_core.storage.checksums import CHECKSUMS, checksums_of, sealed_with
from palette_core.streaming.planning import CheckpointPlan
from palette_core.streaming.source import SourceCheckpoint
from palette_core.version import __version__

_SHOWN = 5


def identity(
    source: SourceCheckpoint,
    config: KMeansPalettizerConfig,
    planned: CheckpointPlan,
    catalog: Catalog,
) -> dict[str, Any]:
    """Return what has to be the same for two runs to write the same files, as JSON values."""
    made = [(plan, "", plan.spec.stored_form) for plan in planned.plan]
    decided = [
        (planned.stored[p.name], p.shape, str(p.dtype), p.op_type, p.axis, p.algorithm, p.seed)
        for p in planned.plan
    ]
    return {
        "versions": {
            "palette_core": __version__,
            "format": FORMAT_VERSION,
            **source_of(config, made, catalog).plugins,
        },
        "config": told(config, catalog),
        "source": {
            shard.path.name: {"bytes": shard.size, "header_crc32": shard.header_checksum}
            for shard in source.shards
        },
        "plan_crc32": f"{zlib.crc32(json.dumps(decided).encode()):08x}",
    }


def check_same(place: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what a folder was begun with to what is asked for now.

    Raises:
        CheckpointError: they differ; the message says in what.
    """
    before, after = dict(_flat(then)), dict(_flat(now))
    found = [
        f"{name} was {_shown(before, name)} and is {_shown(after, name)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name) or (name in before) != (name in after)
    ]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(
            f"{place} was begun with something else: {'; '.join(found[:_SHOWN])}{more}; run the "
            "command as it was then, or name another folder"
        )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return shortened(repr(values[name])) if name in values else "not there"


# --- sealed files ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """Content of a file of JSON, with checksums of other files."""

    value: Mapping[str, Any]
    checksums: Mapping[str, str]


def write_sealed(path: Path, value: Mapping[str, Any], checksums: Mapping[str, str]) -> None:
    """Write JSON values with checksums, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_path(path) as fresh:
        fresh.write_text(sealed_with(value, checksums), encoding="utf-8")


def read_sealed(path: Path) -> Sealed:
    """Read what `write_sealed` wrote.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is damaged.
    """
    try:
        text = path.read_bytes().decode()
        found = read_json(text)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        checksums = checksums_of(found, text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    value = {name: item for name, item in found.items() if name not in (CHECKSUMS, "header_crc32")}
    return Sealed(value, checksums)
