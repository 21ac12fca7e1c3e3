"""The ``openvino`` backend: from a finalized model to ``.xml`` and ``.bin``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import nn

from openvino_backend.finishing import finish
from openvino_backend.options import OpenVINOOptions
from openvino_backend.refusals import refusal
from openvino_backend.tracing import LackingOperationsError, calling, converted
from openvino_backend.writing import write_model
from palette_core.errors import BackendError
from palette_core.plugins import Backend, Refusal, TensorFacts
from palette_core.storage import PackedWeight, palette_sites
from palette_core.tensors import PalettizedTensor


@final
class OpenVINOBackend(Backend):
    """Exports through ``torch.export`` and OpenVINO's own converter."""

    sparse_overhead = 11_900  # operations, told in XML

    def __init__(self, options: OpenVINOOptions) -> None:
        self._options = options

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Return why a tensor cannot be exported, or None; see `refusals`."""
        return refusal(facts)

    def check_program(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any],
        dynamic_shapes: Any = None,
    ) -> Sequence[Refusal]:
        """Return a refusal for each operation that neither converts nor can be rewritten.

        OpenVINO has no list of what it converts, so the dense model is converted: its ``forward``,
        as the inputs are for that.
        """
        try:
            converted(model, example_inputs, dynamic_shapes)
        except LackingOperationsError as error:
            return [Refusal(f"OpenVINO has no conversion for {op}") for op in error.operations]
        except BackendError as error:
            return [Refusal(str(error))]
        return ()

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Return the model as it is: packed weights are looked for when it is exported."""
        del palettized
        return model

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Convert the model in evaluation mode and write it to ``path`` and its ``.bin``.

        The model is left as it was.

        Args:
            model: a finalized model.
            example_inputs: a tuple of positional or a dictionary of keyword inputs.
            path: of the ``.xml``; its ``.bin`` lies beside it.
            dynamic_shapes: as in ``torch.export.export``.

        Raises:
            BackendError: no example inputs, or ``torch.export`` or the converter does not take the
                model; the message names the operation and its module where there is one.
        """
        with calling(model, self._options.function):
            program, made = converted(model, example_inputs, dynamic_shapes, self._options.states)
        sites = palette_sites(model, PackedWeight)
        origins = {s.name: s.palette.origin for s in sites if s.palette.origin is not None}
        write_model(finish(program, made, self._options, origins), path)
        return path
