"""The ``coreai`` backend: from a finalized model to an ``.aimodel``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from torch import nn

from coreai_backend import programs
from coreai_backend.dialect import check_operations, dialect, latest_node
from coreai_backend.externalized import Exported, exported
from coreai_backend.ir import quiet
from coreai_backend.layouts import Layouts
from coreai_backend.lowering import Taken, register_lowerings, take_indices, teach_converters
from coreai_backend.operators import TRACED
from coreai_backend.options import CoreAIOptions
from coreai_backend.precision import in_precision
from coreai_backend.refusals import check_stored, refusal
from export_rewrites import (
    Interface,
    collecting_later,
    named,
    of_function,
    rewritten,
    summary,
    tidy_outputs,
    trace,
)
from palette_core.errors import BackendError
from palette_core.plugins import (
    Backend,
    ExportFunction,
    ExportRequest,
    ProgramWeight,
    Refusal,
    TensorFacts,
)
from palette_core.storage import PackedWeight, palette_sites
from palette_core.tensors import PalettizedTensor

if TYPE_CHECKING:
    from coreai.authoring import AIProgram
    from torch.export import ExportedProgram

_SUFFIX = ".aimodel"
MAIN = "main"  # what a runtime looks for where there is one function


@final
class CoreAIBackend(Backend):
    """Exports through ``torch.export`` and ``coreai_torch``."""

    sparse_overhead = 260

    def __init__(self, options: CoreAIOptions) -> None:
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
        """Trace and convert the model as it is, which is what export will do."""
        try:
            self.convert({MAIN: self._exported(MAIN, model, example_inputs, dynamic_shapes)})
        except BackendError as error:
            return [Refusal(str(error))]
        return []

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Have packed weights traced to an operator of Core AI's own, and converters know it.

        ``torch.export`` and a plain ``TorchConverter`` take the model, and tools that compress
        graphs leave its weights alone.
        """
        del palettized
        teach_converters()
        for site in palette_sites(model, PackedWeight):
            site.palette.traced_as = TRACED.get(site.palette.form.operator)
        return model

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Convert the model in evaluation mode and write it to ``path``.

        The model is left as it was.

        Args:
            model: a finalized model.
            example_inputs: a tuple of positional or a dictionary of keyword inputs.
            path: a folder with the suffix ``.aimodel``, where nothing stands yet.
            dynamic_shapes: as in ``torch.export.export``.

        Raises:
            BackendError: no example inputs, another suffix, or ``torch.export`` or the converter
                does not take the model; the message names the operation where there is one.
        """
        main = ExportFunction(example_inputs, dynamic_shapes, model)
        return self.export_functions(model, ExportRequest({MAIN: main}), path)

    def export_functions(self, model: nn.Module, request: ExportRequest, path: Path) -> Path:
        """Convert functions in evaluation mode and write them to ``path``; see `export`.

        Raises:
            BackendError: also names that a function does not have.
        """
        if path.suffix != _SUFFIX:
            raise BackendError(f"backend 'coreai' writes {_SUFFIX} folders, got {path}")
        check_stored(model)
        request = self._options.named(request)
        from coreai.authoring.asset import OSVersion

        with collecting_later():
            program = self.convert(self._traced(request), request, model)
            program.save_asset(path, self._metadata(request), OSVersion[self._options.minimum_os])
        return path

    def read_program(self, path: Path) -> Mapping[str, ProgramWeight]:
        """Return the dense weights of an ``.aimodel``; see `programs`."""
        return programs.read_program(path)

    def replace_weights(
        self, path: Path, palettized: Mapping[str, PalettizedTensor], fresh: Path
    ) -> Path:
        """Write an ``.aimodel`` with palettized weights, each decoded again; see `programs`."""
        return programs.replace_weights(path, palettized, fresh)

    def _traced(self, request: ExportRequest) -> dict[str, Exported]:
        programs: dict[str, Exported] = {}
        for name, function in request.functions.items():
            with of_function(name, request.functions):
                module = _module_of(name, function)
                programs[name] = self._exported(
                    name, module, function.inputs, function.dynamic_shapes
                )
        return programs

    def _exported(self, name: str, model: nn.Module, inputs: Any, dynamic_shapes: Any) -> Exported:
        model, inputs = in_precision(model, inputs, self._options.compute_precision)
        return exported(
            name,
            model,
            self._options,
            lambda: export_program(
                model, inputs, dynamic_shapes, stack_traces=self._options.debug_info
            ),
            _as_converter_reads,
        )

    def convert(
        self,
        given: Mapping[str, Exported],
        request: ExportRequest | None = None,
        model: nn.Module | None = None,
    ) -> AIProgram:
        """Convert decomposed programs, whose packed indices move over to the result.

        Args:
            given: by the name of their function.
            request: which names are asked for; None keeps the program's own.
            model: calls the weights by its names; None leaves them those of the programs.

        Raises:
            BackendError: the converter does not take them, or a name is of nothing in them.
        """
        with quiet():
            from coreai_torch import TorchConverter
        programs = {name: each.program for name, each in given.items()}
        asked = request or ExportRequest(dict.fromkeys(programs, ExportFunction(None)))
        faces = named(programs, asked)
        layouts = None if request is None else Layouts(self._options, programs, faces)
        modes = TorchConverter.Mode
        converter = TorchConverter(mode=modes.DEBUG if self._options.debug_info else modes.RELEASE)
        taken: list[Taken] = []
        for name, each in given.items():
            names = _names_in(model, asked.functions[name].module)
            with of_function(name, programs):
                for program, prefix in _programs_of(each):
                    check_operations(program)
                    taken.append(Taken(program, take_indices(program), names, prefix))
        register_lowerings(converter, taken)
        try:
            with quiet(), latest_node(converter) as node:
                for name, program in programs.items():
                    face = _as_converter_takes(faces[name])
                    inner = [each.record for each in given[name].inner]
                    converter.add_exported_program(
                        program, **face, entrypoint_name=name,
                        _externalized_exported_programs=inner or None,
                    )  # fmt: skip
                made = converter.to_coreai()
        except BackendError:
            raise
        # The converter raises whatever its parts raise.
        except Exception as error:
            raise BackendError(
                f"coreai-torch {version('coreai-torch')} cannot convert {node()}: "
                f"{summary(error)}. Write it in other operations, or register a lowering for it "
                "and convert with coreai_backend.register_lowerings"
            ) from error
        if layouts is not None:
            layouts.apply(made)
        return made

    def _metadata(self, request: ExportRequest) -> Any:
        from coreai.runtime import AIModelAssetMetadata

        metadata = AIModelAssetMetadata()
        metadata.author = self._options.author
        metadata.license = self._options.license
        metadata.model_description = self._options.description
        for key, value in {**self._options.user_metadata, **request.metadata}.items():
            metadata.set_custom(key, value)
        return metadata


def _module_of(name: str, function: ExportFunction) -> nn.Module:
    if function.module is None:
        raise BackendError(f"function {name!r} has no module")
    return function.module


def _names_in(model: nn.Module | None, module: nn.Module | None) -> dict[str, str]:
    """Return the model's names of a module's palettized weights."""
    if model is None or module is None or model is module:
        return {}
    names = {id(site.palette): site.name for site in palette_sites(model)}
    return {site.name: names[id(site.palette)] for site in palette_sites(module)}


def _as_converter_takes(face: Interface) -> dict[str, list[str]]:
    """Return names as the converter takes them: for all of a kind, or for none."""
    return {
        f"{kind}_names": [each.name or each.node for each in features]
        if any(each.name for each in features)
        else []
        for kind, features in (
            ("input", face.inputs),
            ("output", face.outputs),
            ("state", face.states),
        )
    }


def export_program(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any = None,
    *,
    stack_traces: bool = True,
) -> ExportedProgram:
    """Trace a model in evaluation mode and decompose it as the converter wants it.

    Without stack traces the converter reads none, of which it writes nothing but for debugging.

    Raises:
        BackendError: no example inputs, or ``torch.export`` fails on the model.
    """
    with quiet():
        program = trace(
            model, example_inputs, dynamic_shapes, backend="coreai", stack_traces=stack_traces
        )
        return _as_converter_reads(program)


def _as_converter_reads(program: ExportedProgram) -> ExportedProgram:
    program = rewritten(program, dialect())
    tidy_outputs(program)
    return program


def _programs_of(given: Exported) -> Iterator[tuple[ExportedProgram, str]]:
    """Yield the programs of a function, with the prefix of their names in its module."""
    yield given.program, ""
    for each in given.inner:
        yield each.program, f"{each.path}."
