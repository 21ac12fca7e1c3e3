"""Files to export, as the command line names them: names, options, axes, sizes."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.export import Dim

from palette_core._common.files import check_place, size_on_disk
from palette_core._common.progress import progress_bar
from palette_core.cli.advice import known_plugins
from palette_core.cli.factories import FactoryError, Loaded
from palette_core.config import yaml_nodes
from palette_core.errors import ConfigError, did_you_mean
from palette_core.model import call_arguments
from palette_core.palettizer import KMeansPalettizer
from palette_core.palettizer.targets import backend_for
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.options import validate_options
from palette_core.reporting import console as show
from palette_core.storage.bits import bits_per_weight
from palette_core.storage.model_checkpoints import load_checkpoint


@dataclass(frozen=True)
class Target:
    """Place and manner of an export.

    Attributes:
        path: the file to write.
        backend: name of the export backend.
        options: options of the backend.
        dynamic: axes whose length may vary, by name of the input.
    """

    path: Path
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)

    def dynamic_shapes(self, loaded: Loaded) -> dict[str, dict[int, Any] | None] | None:
        """Return ``dynamic`` as torch.export takes it, an entry for every input of ``forward``.

        Raises:
            FactoryError: ``dynamic`` names an input that the model does not have.
        """
        return dynamic_shapes(self.dynamic, loaded)

    def write(self, palettizer: KMeansPalettizer, loaded: Loaded) -> Path:
        """Export ``loaded.model``, which is prepared or finalized.

        Raises:
            FactoryError: ``dynamic`` names an input that the model does not have.
            PaletteError: the backend cannot.
        """
        with progress_bar(f"Writing {self.path.name}", None):
            return palettizer.export(
                self.path,
                loaded.example_inputs,
                backend=self.backend,
                dynamic_shapes=self.dynamic_shapes(loaded),
                backend_options=self.options,
            )

    def size(self, path: Path) -> int:
        """Return the bytes of a file of the backend, with those that belong to it."""
        return size_on_disk(path, beside=get_catalog().backend(self.backend).beside)


def make_target(
    output: Path, backend: str | None, options: Sequence[str] = (), dynamic: Sequence[str] = ()
) -> Target:
    """Read the options of a command, and refuse, before any work, what cannot be written.

    Raises:
        FactoryError: the name has not the backend's suffix, a folder stands where a file is to
            be, or a text cannot be read.
        PaletteError: the backend is not installed, or does not know an option.
    """
    catalog = get_catalog()
    entry = catalog.backend(backend or _backend_for(output, catalog))
    backend = entry.name
    if output.suffix != entry.suffix:
        raise FactoryError(
            f"backend {backend!r} writes {entry.suffix} files, got --output {output}"
        )
    if output.is_dir() and backend == "packed":
        raise FactoryError(f"--output {output} is a folder")
    check_place(output)
    read = read_options(options)
    validate_options(entry, read)
    return Target(output, backend, read, read_dynamic(dynamic))


def _backend_for(output: Path, catalog: Catalog) -> str:
    """Return the backend that writes such files, or one that is known to and not installed."""
    known = known_plugins()["suffixes"]
    if catalog.export_backends.find_by("suffix", output.suffix) is None and output.suffix in known:
        return known[output.suffix]
    return backend_for(catalog, output)


def export_checkpoint(loaded: Loaded, checkpoint: Path, target: Target, *, as_json: bool) -> None:
    """Load a packed checkpoint into a model, export it, and report.

    Raises:
        PaletteError: the checkpoint does not fit the model, or the backend cannot take it.
        FileNotFoundError: no such checkpoint.
    """
    model = load_checkpoint(checkpoint, loaded.model.eval())
    bits = bits_per_weight(model)
    started = time.perf_counter()
    written = target.write(KMeansPalettizer(model), loaded)
    totals = {
        "bits_per_weight": bits,
        "checkpoint_bytes": size_on_disk(checkpoint),
        "file_bytes": target.size(written),
        "export_seconds": time.perf_counter() - started,
        "file": str(written),
    }
    if as_json:
        show.print_json(totals)
    else:
        show.totals(in_words(totals))


def read_options(
    texts: Sequence[str], flag: str = "--option", *, names_are_patterns: bool = False
) -> dict[str, Any]:
    """Turn ``name=value`` texts into options; values are read as YAML.

    Raises:
        FactoryError: a text cannot be read, or a name comes twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.rpartition("=") if names_are_patterns else text.partition("=")
        if not sign or not name.strip() or name.strip() in options:
            raise FactoryError(f"cannot read {flag} {text!r}; write NAME=VALUE, each name once")
        try:
            options[name.strip()] = yaml_nodes.value(flag, value)
        except ConfigError as error:
            raise FactoryError(f"{flag} {text!r}: {value!r} is no YAML value ({error})") from None
    return options


def in_words(totals: Mapping[str, Any]) -> dict[str, str]:
    """Return totals as people read them."""
    return {_WORDS.get(key, key): _value(key, value) for key, value in totals.items()}


_WORDS = {
    "bits_per_palettized_weight": "bits per weight, palettized ones",
    "bits_per_weight": "bits per weight, whole model",
    "dense_bytes": "weights before",
    "checkpoint_bytes": "checkpoint",
    "file_bytes": "file",
    "cosine_to_dense": "mean cosine to the dense outputs",
    "prepare_seconds": "seconds to palettize",
    "export_seconds": "seconds to write",
    "loaded_outputs_equal": "outputs after loading back equal",
    "file": "written",
    "report": "report",
}


def _value(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return show.size(value)
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4f}" if key == "cosine_to_dense" else f"{value:.2f}"
    return str(value)


# --- axes whose length may vary -----------------------------------------------------------------


def read_dynamic(texts: Sequence[str]) -> dict[str, dict[int, Any]]:
    """Read ``INPUT:AXIS`` and ``INPUT:AXIS=MIN..MAX``: axes that may vary, by name of the input.

    Raises:
        FactoryError: a text is neither.
    """
    found: dict[str, dict[int, Any]] = {}
    for text in texts:
        match = re.fullmatch(r"\s*(\w+)\s*:\s*(\d+)\s*(?:=\s*(\d+)\s*\.\.\s*(\d+)\s*)?", text)
        if match is None or (match[3] and int(match[3]) > int(match[4])):
            raise FactoryError(
                f"cannot read --dynamic {text!r}; write INPUT:AXIS or INPUT:AXIS=MIN..MAX, for "
                "example input_ids:1=1..128"
            )
        # AUTO finds out which axes of several inputs must be equal.
        length = Dim.AUTO if match[3] is None else Dim.AUTO(min=int(match[3]), max=int(match[4]))
        found.setdefault(match[1], {})[int(match[2])] = length
    return found


def dynamic_shapes(
    dynamic: Mapping[str, Mapping[int, Any]], loaded: Loaded
) -> dict[str, dict[int, Any] | None] | None:
    """Return axes that may vary as torch.export takes them: an entry for every input, or None.

    Raises:
        FactoryError: ``dynamic`` names an input that the model does not have.
    """
    if not dynamic:
        return None
    args, kwargs = call_arguments(loaded.example_inputs)
    bound = inspect.signature(loaded.model.forward).bind(*args, **kwargs)
    for name in dynamic:
        if name not in bound.arguments:
            raise FactoryError(
                f"--dynamic {name}: the model has no such input"
                f"{did_you_mean(name, bound.arguments)} (inputs: {', '.join(bound.arguments)})"
            )
    return {name: dict(dynamic[name]) if name in dynamic else None for name in bound.arguments}
