"""Export backends at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import copied, mapped
from palette_core.plugins.backends import Backend, ProgramWeight, Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.export_requests import ExportRequest
from palette_core.plugins.guards import shown
from palette_core.plugins.kinds import EXPORT_BACKEND
from palette_core.plugins.making import Made, make
from palette_core.plugins.stored_forms import StoredForm
from palette_core.tensors.palettized import PalettizedTensor


def make_backend(catalog: Catalog, name: str, options: Mapping[str, Any]) -> Backend:
    """Make the export backend ``name``.

    Raises:
        MissingBackendError: it is one of ours, but its distribution is not installed.
        UnknownPluginError: nobody knows it.
        PluginOptionsError: its options do not validate.
        BackendError: making it fails.
    """
    catalog.backend(name)
    item = catalog[EXPORT_BACKEND].find(name)
    return _CheckedBackend(make(item, options), item.entry.stored_forms)


@final
class _Copies(Mapping[str, PalettizedTensor]):
    """Palettized weights in memory of their own, each made when it is looked up."""

    def __init__(self, palettized: Mapping[str, PalettizedTensor]) -> None:
        self._palettized = palettized

    def __getitem__(self, name: str) -> PalettizedTensor:
        tensor: PalettizedTensor = copied(self._palettized[name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._palettized)

    def __len__(self) -> int:
        return len(self._palettized)


@final
class _CheckedBackend(Backend):
    def __init__(self, made: Made[Backend], forms: tuple[str, ...] | None) -> None:
        self._made, self._forms = made, forms
        self.sparse_overhead = self._overhead()

    def _overhead(self) -> int:
        declared: object = self._made.ask(lambda backend: backend.sparse_overhead)
        if type(declared) is int and declared >= 0:
            return declared
        raise self._made.wrong(f"sparse_overhead is {shown(declared)}, expected a number of bytes")

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Ask the plug-in, about tensors in stored forms that it takes.

        Raises:
            BackendError: it fails, or answers neither None nor a Refusal.
        """
        forms = self._forms or facts.spec.stored_forms
        for form in facts.spec.stored_forms:
            if form not in forms:
                return Refusal(
                    f"{self._made.name} does not take stored form {form!r}, only "
                    f"{', '.join(forms)}",
                    facts.spec.stored_as(forms[0]),
                )
        return refusal(self._made, facts)

    def check_program(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any],
        dynamic_shapes: Any = None,
    ) -> Sequence[Refusal]:
        """Ask the plug-in about the operations of a model.

        Raises:
            BackendError: it fails, or answers with anything but refusals.
        """
        answer: object = self._made.ask(
            lambda backend: backend.check_program(model, example_inputs, dynamic_shapes)
        )
        if isinstance(answer, Sequence) and all(isinstance(item, Refusal) for item in answer):
            return answer
        raise self._made.wrong(f"check_program returned {shown(answer)}, expected Refusals")

    def check_place(self, path: Path) -> None:
        """Ask the plug-in whether what stands at ``path`` may be replaced.

        Raises:
            BackendError: it may not, or asking fails.
            OSError: it cannot be looked at.
        """
        self._made.ask(
            lambda backend: backend.check_place(path),
            doing=f"looking at {path} by ",
            passes=(OSError,),
        )

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Let the plug-in finalize.

        Raises:
            BackendError: it fails, or returns no module.
        """
        given = palettized if self._made.is_ours else _Copies(palettized)
        made: object = self._made.ask(
            lambda backend: backend.finalize(model, given), doing="finalizing for "
        )
        if isinstance(made, nn.Module):
            return made
        raise self._made.wrong(f"finalize returned {shown(made)}, expected a module")

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Let the plug-in export.

        Raises:
            BackendError: it fails, or returns no path to something.
            OSError: the file cannot be written.
        """
        given = example_inputs if self._made.is_ours else mapped(torch.clone, example_inputs)
        return self._written(
            "export", lambda backend: backend.export(model, given, path, dynamic_shapes), path
        )

    def export_functions(self, model: nn.Module, request: ExportRequest, path: Path) -> Path:
        """Let the plug-in export functions.

        Raises:
            BackendError: it fails, or returns no path to something.
            OSError: the file cannot be written.
        """
        copies = {
            name: replace(function, inputs=mapped(torch.clone, function.inputs))
            for name, function in request.functions.items()
        }
        given = request if self._made.is_ours else replace(request, functions=copies)
        return self._written(
            "export_functions", lambda backend: backend.export_functions(model, given, path), path
        )

    def _written(self, what: str, write: Callable[[Backend], object], path: Path) -> Path:
        made = self._made.ask(write, doing=f"exporting {path.name} by ", passes=(OSError,))
        if isinstance(made, Path) and made.exists():
            return made
        raise self._made.wrong(f"{what} returned {shown(made)}, expected the path written")

    def read_program(self, path: Path) -> Mapping[str, ProgramWeight]:
        """Let the plug-in read the dense weights of a program.

        Raises:
            BackendError: it fails, or returns anything but weights by name.
            OSError: the file cannot be read.
        """
        made: Any = self._made.ask(
            lambda backend: backend.read_program(path),
            doing=f"reading {path.name} by ",
            passes=(OSError,),
        )
        if isinstance(made, Mapping) and all(map(_is_named_weight, made.items())):
            return made
        raise self._made.wrong(f"read_program returned {shown(made)}, expected ProgramWeights")

    def replace_weights(
        self, path: Path, palettized: Mapping[str, PalettizedTensor], fresh: Path
    ) -> Path:
        """Let the plug-in write a program with other weights.

        Raises:
            BackendError: it fails, or returns no path to something.
            OSError: the file cannot be written.
        """
        made: object = self._made.ask(
            lambda backend: backend.replace_weights(path, palettized, fresh),
            doing=f"writing into {path.name} by ",
            passes=(OSError,),
        )
        if isinstance(made, Path) and made.exists():
            return made
        raise self._made.wrong(f"replace_weights returned {shown(made)}, expected the path written")


def _is_named_weight(item: tuple[object, object]) -> bool:
    name, weight = item
    if not isinstance(name, str) or not isinstance(weight, ProgramWeight):
        return False
    values: object = weight.values
    return isinstance(values, Tensor) and values.is_floating_point()


def refusal(made: Made[Backend] | Made[StoredForm], facts: TensorFacts) -> Refusal | None:
    """Ask a backend or a stored form about a tensor.

    Raises:
        PaletteError: of the kind's class: it fails, or answers neither None nor a Refusal.
    """
    answer: object = made.ask(lambda work: work.check_support(facts), tensor=facts.name)
    if answer is None or isinstance(answer, Refusal):
        return answer
    raise made.wrong(
        f"check_support returned {shown(answer)}, expected None or a Refusal", facts.name
    )
