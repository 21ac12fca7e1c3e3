"""Facts about a run as a whole: timings, environment, configuration, files, measurements."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from palette_core._common.files import size_on_disk
from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.origins import told
from palette_core.plugins.catalog import Catalog
from palette_core.version import __version__

_LIBRARIES = ("torch", "numpy", "numba", "transformers", "diffusers", "timm")


@dataclass(frozen=True)
class WrittenFile:
    """File of a palettized model.

    Attributes:
        backend: that wrote it.
        name: of the file or folder.
        bytes: of all that it holds, files beside it included.
    """

    backend: str
    name: str
    bytes: int


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run, for people and for comparisons.

    Attributes:
        seconds: wall time by stage, in order.
        environment: versions and the machine.
        config: as plain values, without secrets.
        seed: from which every random choice derives.
        bits_per_weight: over all parameters and buffers of the model.
        dense_bytes: of these before.
        bytes: of these now.
        files: that were written.
        output_error: ‖outputs − dense ones‖² / ‖dense ones‖² on the example inputs; None where it
            was not measured.
        scores: what the user's own evaluation says, by name.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    bits_per_weight: float | None = None
    dense_bytes: int | None = None
    bytes: int | None = None
    files: tuple[WrittenFile, ...] = ()
    output_error: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def with_file(
        self, backend: str, path: Path, seconds: Mapping[str, float], beside: Sequence[str] = ()
    ) -> Self:
        """Return these facts and one more file, in the place of one of the same name.

        Args:
            backend: that wrote it.
            path: of the file or folder.
            seconds: by stage, with those of writing.
            beside: suffixes of further files that belong to it.
        """
        made = WrittenFile(backend, path.name, size_on_disk(path, beside=beside))
        others = tuple(file for file in self.files if file.name != made.name)
        return replace(self, files=(*others, made), seconds=dict(seconds))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_dict` returns."""
        files = tuple(WrittenFile(**row) for row in values["files"])
        return cls(**{**values, "files": files})


class Stopwatch:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


@functools.cache
def _versions() -> dict[str, str]:
    """Return versions of the libraries that are installed: reading them takes milliseconds."""
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def facts_of(
    config: KMeansPalettizerConfig,
    catalog: Catalog,
    seconds: Mapping[str, float],
    dense: tuple[int, int],
    saved: int,
) -> RunFacts:
    """Return what is known about a run when weights are palettized.

    Args:
        config: the rules.
        catalog: the installed plug-ins.
        seconds: by stage.
        dense: bits and elements of the model before, as `model_bits` counts them.
        saved: bytes by which the palettes are smaller than their weights.
    """
    bits, elements = dense
    size = bits // 8 - saved
    return RunFacts(
        seconds=dict(seconds),
        environment=environment(),
        config=told(config, catalog),
        seed=config.seed,
        bits_per_weight=8 * size / elements if elements else None,
        dense_bytes=bits // 8,
        bytes=size,
    )


def environment() -> dict[str, str]:
    """Return versions of what took part, and what machine it was."""
    found = {"palette_core": __version__, "Python": platform.python_version()}
    found |= _versions()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processors"] = f"{os.cpu_count()}, {torch.get_num_threads()} threads of torch"
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found
