"""The folder that a palettized checkpoint is written into, and what is finished of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palette_core._common.locks import Lock, can_lock
from palette_core.errors import CheckpointError
from palette_core.storage.checkpoint_folders import UNFINISHED
from palette_core.storage.span_writing import file_checksum
from palette_core.streaming.job import Sealed, check_same, read_sealed, write_sealed
from palette_core.streaming.source import SourceCheckpoint

MANIFEST = "palette_manifest.json"
_JOB = "job.json"


@contextlib.contextmanager
def alone_in_folder(out: Path, source: SourceCheckpoint) -> Iterator[None]:
    """Make a folder where it is missing, and hold it against other runs, which are refused.

    Raises:
        CheckpointError: another run writes in it, or it is the folder of the source.
        OSError: it cannot be made.
    """
    place, folders = out.resolve(), {shard.path.parent.resolve() for shard in source.shards}
    copied = bool(source.config or source.beside)
    if any(place == folder or (copied and folder in place.parents) for folder in folders):
        raise CheckpointError(f"{out} is the folder of the source, or in it; name another one")
    out.mkdir(exist_ok=True)
    held = Lock(out)
    try:
        taken = held.take() if can_lock else True
    except OSError:  # a file system without locks
        taken = True
    try:
        if not taken:
            raise CheckpointError(f"another run writes in {out}; wait for its end, or stop it")
        yield
    finally:
        held.release()


class Workplace:
    """Finished and unfinished work in a folder that is held alone.

    Args:
        out: the folder.
        source: what is palettized.
        identity: what the run is about, see `job.identity`.

    Attributes:
        finished: the manifest, where all is done.
        work: the folder of unfinished work.

    Raises:
        CheckpointError: the folder holds something else, or was begun with something else.
        OSError: it cannot be read or written.
    """

    finished: Sealed | None = None

    def __init__(self, out: Path, source: SourceCheckpoint, identity: Mapping[str, Any]) -> None:
        self.out, self.work = out, out / UNFINISHED
        manifest = out / MANIFEST
        if manifest.is_file():
            self.finished = read_sealed(manifest)
            check_same(out, self.finished.value["made_of"], identity)
            shutil.rmtree(self.work, ignore_errors=True)
            return
        if not self.work.is_dir() and any(out.iterdir()):
            raise CheckpointError(
                f"{out} holds files already, and none of an unfinished run; name a new or empty "
                "folder, so that nothing in it is taken for a part of the checkpoint"
            )
        self.work.mkdir(exist_ok=True)
        job = self.work / _JOB
        changed = {
            shard.path.name: [shard.path.stat().st_mtime_ns, str(shard.path.parent.resolve())]
            for shard in source.shards
        }
        if job.is_file():
            then = read_sealed(job).value
            check_same(out, then["made_of"], identity)
            self.is_surely_same = then["changed"] == changed
        else:
            self.is_surely_same = True
            write_sealed(job, {"made_of": identity, "changed": changed}, {})
        for left in self.work.glob("*.tmp"):
            left.unlink(missing_ok=True)

    def part(self, number: int) -> Path:
        """Return the place of the part of a tensor."""
        return self.work / f"{number:06d}.safetensors"

    def fresh_shard(self, name: str) -> Path:
        """Return a place for a file until it is complete."""
        return self.work / f"{name}.tmp"

    def put_shard(self, name: str, told: Mapping[str, Any]) -> None:
        """Put a complete file into its place.

        Raises:
            OSError: it cannot be.
        """
        write_sealed(self._record(name), told, {})
        self.fresh_shard(name).replace(self.out / name)

    def shard(self, name: str) -> Mapping[str, Any] | None:
        """Return what is known of a finished file, or None where it is not there as written.

        Raises:
            CheckpointError: its record is damaged.
            OSError: it cannot be read.
        """
        record, path = self._record(name), self.out / name
        if not record.is_file() or not path.is_file():
            return None
        told = read_sealed(record).value
        whole = path.stat().st_size == told["bytes"] and file_checksum(path) == told["file_crc32"]
        return told if whole else None

    def finish(self, manifest: Mapping[str, Any], checksums: Mapping[str, str]) -> Sealed:
        """Write the manifest, after which all is done, and remove what was of the work.

        Raises:
            OSError: it cannot be written.
        """
        write_sealed(self.out / MANIFEST, manifest, checksums)
        shutil.rmtree(self.work, ignore_errors=True)
        self.finished = Sealed(manifest, checksums)
        return self.finished

    def _record(self, name: str) -> Path:
        return self.work / f"{name}.json"
