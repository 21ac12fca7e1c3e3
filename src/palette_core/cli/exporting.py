"""Files to export, as the command line names them: names, options, axes, sizes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palette_core._common.files import check_place, size_on_disk
from palette_core._common.progress import progress_bar
from palette_core.cli.advice import known_plugins
from palette_core.cli.axes import dynamic_shapes, read_dynamic
from palette_core.cli.factories import FactoryError, Loaded
from palette_core.cli.functions import FunctionsFile, read_functions, read_metadata
from palette_core.cli.parts import PartsFile, read_parts
from palette_core.config import yaml_nodes
from palette_core.errors import ConfigError
from palette_core.palettizer import KMeansPalettizer
from palette_core.palettizer.functions import Asked, make_request
from palette_core.palettizer.parts.asked import check_parts
from palette_core.palettizer.parts.files import check_folder
from palette_core.palettizer.targets import backend_for, find_target
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.options import validate_options
from palette_core.reporting import console as show
from palette_core.storage.bits import bits_per_weight
from palette_core.storage.model_checkpoints import load_checkpoint


@dataclass(frozen=True)
class Target:
    """Place and manner of an export.

    Attributes:
        path: the file to write; with parts, their folder.
        backend: name of the export backend.
        options: options of the backend.
        dynamic: axes whose length may vary, by name of the input.
        functions: functions and names that the file is to have, or None.
        metadata: of the user's own, by key.
        parts: parts of the model that get files of their own, or None.
    """

    path: Path
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    functions: FunctionsFile | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: PartsFile | None = None

    def dynamic_shapes(self, loaded: Loaded) -> dict[str, dict[int, Any] | None] | None:
        """Return ``dynamic`` as torch.export takes it, an entry for every input of ``forward``.

        Raises:
            FactoryError: ``dynamic`` names an input that the model does not have.
        """
        return dynamic_shapes(self.dynamic, loaded)

    def arguments(self, loaded: Loaded) -> dict[str, Any]:
        """Return what `KMeansPalettizer.export` is told of a model: functions, or inputs; names.

        Raises:
            FactoryError: an axis, an input or a module that is named is not there.
            BackendError: names or functions that no backend takes.
        """
        made = {} if self.functions is None else self.functions.arguments(loaded)
        if self.metadata:
            made["metadata"] = {**made.get("metadata", {}), **self.metadata}
        if self.parts is not None:
            made |= {"example_inputs": loaded.example_inputs, "parts": self.parts.parts(loaded)}
        elif "functions" in made:
            if self.dynamic:
                raise FactoryError(
                    "--dynamic is about one function; write dynamic for each in --functions"
                )
        else:
            made["example_inputs"] = loaded.example_inputs
            made["dynamic_shapes"] = self.dynamic_shapes(loaded)
        # What no backend takes is refused here, before any work.
        backend = find_target(get_catalog(), self.backend, self.options)
        if self.parts is None:
            make_request(Asked(**made), loaded.model, backend)
        else:
            check_parts(made["parts"], loaded.model, backend)
            check_folder(self.path, backend)
        return made

    def write(self, palettizer: KMeansPalettizer, arguments: Mapping[str, Any]) -> Path:
        """Export a model that is prepared or finalized, with what `arguments` has returned.

        Raises:
            PaletteError: the backend cannot.
        """
        with progress_bar(f"Writing {self.path.name}", None):
            return palettizer.export(
                self.path, backend=self.backend, backend_options=self.options, **arguments
            )

    def size(self, path: Path) -> int:
        """Return the bytes of a file of the backend, with those that belong to it, or of parts."""
        return size_on_disk(path, beside=get_catalog().backend(self.backend).beside)


@dataclass(frozen=True)
class Content:
    """Options of a command about what a file, or a folder of parts, is to hold.

    Attributes:
        dynamic: axes whose length may vary, as texts.
        functions: file of functions and names.
        metadata: ``NAME=VALUE``.
        parts: file of parts.
    """

    dynamic: Sequence[str] = ()
    functions: Path | None = None
    metadata: Sequence[str] = ()
    parts: Path | None = None


def make_target(
    output: Path,
    backend: str | None,
    options: Sequence[str] = (),
    content: Content = Content(),
) -> Target:
    """Read the options of a command, and refuse, before any work, what cannot be written.

    Raises:
        FactoryError: the name has not the backend's suffix, a folder stands where a file is to
            be, a text cannot be read, or options do not go together or with the backend.
        PaletteError: the backend is not installed, or does not know an option.
        FileNotFoundError: there is no file of functions, or of parts.
    """
    catalog = get_catalog()
    _check_parts_alone(content, backend)
    entry = catalog.backend(backend or _backend_for(output, catalog))
    backend = entry.name
    if content.parts is None and output.suffix != entry.suffix:
        raise FactoryError(
            f"backend {backend!r} writes {entry.suffix} files, got --output {output}"
        )
    if output.is_dir() and backend == "packed":
        raise FactoryError(f"--output {output} is a folder")
    check_place(output)
    read = read_options(options)
    validate_options(entry, read)
    given = {"--functions": content.functions, "--metadata": content.metadata}
    if not entry.takes_functions and any(given.values()):
        first = next(flag for flag, value in given.items() if value)
        able = [each.entry.name for each in catalog.export_backends if each.entry.takes_functions]
        raise FactoryError(
            f"{first}: backend {backend!r} takes no functions, names or metadata; "
            f"backends that do: {', '.join(able) or 'none that is installed'}"
        )
    return Target(
        output,
        backend,
        read,
        read_dynamic(content.dynamic),
        None if content.functions is None else read_functions(content.functions),
        read_metadata(content.metadata),
        None if content.parts is None else read_parts(content.parts),
    )


def _check_parts_alone(content: Content, backend: str | None) -> None:
    if content.parts is None:
        return
    if backend is None:
        raise FactoryError("--parts goes to a folder, whose name tells no backend; add --backend")
    for flag, value in {"--functions": content.functions, "--dynamic": content.dynamic}.items():
        if value:
            raise FactoryError(f"{flag} is about one file; write it for each part in --parts")


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
    arguments = target.arguments(loaded)
    model = load_checkpoint(checkpoint, loaded.model.eval())
    bits = bits_per_weight(model)
    started = time.perf_counter()
    written = target.write(KMeansPalettizer(model), arguments)
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
