"""The backend ``coreml``: what it refuses, and the package it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import nn

from coreml_backend.exporting import check_place, convert, trace
from coreml_backend.functions import MAIN, export_package
from coreml_backend.programs import read_program, replace_weights
from coreml_backend.refusals import refuse
from coreml_backend_hooks import CoreMLOptions
from export_rewrites import collecting_later, interface_of
from palette_core.errors import BackendError
from palette_core.plugins import (
    Backend,
    ExportFunction,
    ExportRequest,
    ProgramWeight,
    Refusal,
    TensorFacts,
)
from palette_core.tensors import PalettizedTensor


@final
class CoreMLBackend(Backend):
    """Writes ``.mlpackage`` folders whose weights stay palettized."""

    sparse_overhead = 550

    def __init__(self, options: CoreMLOptions) -> None:
        self._options = options

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse what the deployment target cannot store exactly; see `refusals`."""
        return refuse(facts, self._options)

    def check_program(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any],
        dynamic_shapes: Any = None,
    ) -> Sequence[Refusal]:
        """Trace and convert the model as it is, which is what export will do."""
        try:
            with collecting_later():
                program = trace(model, example_inputs, dynamic_shapes)
                convert(program, interface_of(program), self._options, check=True)
        except BackendError as error:
            return [Refusal(str(error))]
        return []

    def check_place(self, path: Path) -> None:
        """Replace packages only."""
        check_place(path)

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Return the model as it is: coremltools takes packed weights behind their operator."""
        del palettized
        return model

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Write a package; see `exporting.export_package`."""
        main = ExportFunction(example_inputs, dynamic_shapes, model)
        return self.export_functions(model, ExportRequest({MAIN: main}), path)

    def export_functions(self, model: nn.Module, request: ExportRequest, path: Path) -> Path:
        """Write a package of several functions, or of chosen names; see `functions`."""
        with collecting_later():
            return export_package(model, request, path, self._options)

    def read_program(self, path: Path) -> Mapping[str, ProgramWeight]:
        """Return the dense weights of a package; see `programs`."""
        return read_program(path, self._options)

    def replace_weights(
        self, path: Path, palettized: Mapping[str, PalettizedTensor], fresh: Path
    ) -> Path:
        """Write a package with palettized weights, each decoded again; see `programs`."""
        return replace_weights(path, palettized, fresh, self._options)
