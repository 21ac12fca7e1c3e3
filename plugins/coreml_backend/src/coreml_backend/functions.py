"""From functions of a finalized model to a saved package, weights that they share once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
from torch import nn

from coreml_backend.describing import check_features
from coreml_backend.exporting import bars, converted, trace
from coreml_backend.reading import METADATA_KEY, merged_names, open_package
from coreml_backend.refusals import check_stored, generation
from coreml_backend_hooks import CoreMLOptions
from export_rewrites import Interface, named, of_function
from palette_core.errors import BackendError
from palette_core.plugins import ExportRequest

MAIN = "main"


def export_package(
    model: nn.Module, request: ExportRequest, path: Path, options: CoreMLOptions
) -> Path:
    """Convert functions of a finalized model and save them; the model is left as it was.

    Args:
        model: on the CPU or not, in training mode or not: it is exported in evaluation mode.
        request: the functions, their inputs, and names; every dynamic dimension needs a maximum.
        path: the folder to write, where nothing stands yet.
        options: deployment target and precision.

    Raises:
        BackendError: torch or coremltools cannot take the model, the target has no such
            functions, or a name is of nothing in them.
    """
    check_stored(model, options)
    request = request.or_named(options.input_names, options.output_names, options.state_names)
    several = list(request.functions) != [MAIN]
    if several and generation(options) < ct.target.iOS18:
        raise BackendError(
            f"{options.deployment_target} loads packages of one function {MAIN!r}, and not of "
            f"{', '.join(request.functions)}; deployment_target iOS18 does"
        )
    programs = {}
    for name, each in request.functions.items():
        with of_function(name, request.functions):
            programs[name] = trace(each.module or model, each.inputs, each.dynamic_shapes)
    faces = named(programs, request)
    check_features(programs, faces, options)
    for name, face in faces.items():
        _refuse_written_inputs(name, face, programs[name].graph_signature.inputs_to_buffers)
    packages, names = {}, []
    for name, program in programs.items():
        asked = request.functions[name]
        with of_function(name, request.functions):
            package, stored = converted(model, asked, program, faces[name], options)
        packages[name] = package
        names.append(stored)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, bars(options):
        package = _joined(packages, Path(folder)) if several else packages[MAIN]
        _describe(package, options, request.metadata)
        package.user_defined_metadata[METADATA_KEY] = json.dumps(merged_names(names))
        package.save(str(path))
    return path


def _refuse_written_inputs(function: str, face: Interface, buffers: Mapping[str, str]) -> None:
    written = [state.key for state in face.states if state.node not in buffers]
    if written:
        raise BackendError(
            f"function {function!r} writes to its input {written[0]!r}; Core ML's states are "
            "buffers: register_buffer it in the model, and leave it out of forward"
        )


def _joined(packages: Mapping[str, Any], folder: Path) -> Any:
    """Return one package of all functions; the first, or ``main``, is its default."""
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, package in packages.items():
        place = str(folder / f"{name}.mlpackage")
        package.save(place)
        descriptor.add_function(place, MAIN, name)
    descriptor.default_function_name = MAIN if MAIN in packages else next(iter(packages))
    ct.utils.save_multifunction(descriptor, str(folder / "all functions.mlpackage"))
    return open_package(folder / "all functions.mlpackage")


def _describe(package: Any, options: CoreMLOptions, metadata: Mapping[str, str]) -> None:
    package.user_defined_metadata.update({**options.user_metadata, **metadata})
    package.author, package.license = options.author, options.license
    package.version = options.version
    package.short_description = options.description
