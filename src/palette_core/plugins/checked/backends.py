"""Export backends at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import nn

from palette_core.errors import BackendError
from palette_core.plugins.backends import Backend, Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.guards import guarded, make
from palette_core.plugins.kinds import EXPORT_BACKEND
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
    made, who = make(item, options)
    return _CheckedBackend(who, made, item.entry.stored_forms)


@final
class _CheckedBackend(Backend):
    def __init__(self, who: str, backend: Backend, forms: tuple[str, ...] | None) -> None:
        self._who, self._backend, self._forms = who, backend, forms

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Ask the plug-in, about tensors in stored forms that it takes.

        Raises:
            BackendError: it fails, or answers neither None nor a Refusal.
        """
        form = facts.spec.stored_form
        if self._forms is not None and form not in self._forms:
            return Refusal(
                f"{self._who} does not take stored form {form!r}, only {', '.join(self._forms)}",
                facts.spec.model_copy(update={"stored_form": self._forms[0]}),
            )
        who = f"{facts.name}: {self._who}"
        answer: object = guarded(
            who, BackendError, lambda: self._backend.check_support(facts), tensor=facts.name
        )
        if answer is None or isinstance(answer, Refusal):
            return answer
        raise BackendError(f"{who}: check_support returned {answer!r}, expected None or a Refusal")

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
        answer: object = guarded(
            self._who,
            BackendError,
            lambda: self._backend.check_program(model, example_inputs, dynamic_shapes),
        )
        if isinstance(answer, Sequence) and all(isinstance(item, Refusal) for item in answer):
            return answer
        raise BackendError(f"{self._who}: check_program returned {answer!r}, expected Refusals")

    def check_place(self, path: Path) -> None:
        """Ask the plug-in whether what stands at ``path`` may be replaced.

        Raises:
            BackendError: it may not, or asking fails.
            OSError: it cannot be looked at.
        """
        guarded(
            f"looking at {path} by {self._who}",
            BackendError,
            lambda: self._backend.check_place(path),
            passes=(OSError,),
        )

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Let the plug-in finalize.

        Raises:
            BackendError: it fails, or returns no module.
        """
        made: object = guarded(
            f"finalizing for {self._who}",
            BackendError,
            lambda: self._backend.finalize(model, palettized),
        )
        if isinstance(made, nn.Module):
            return made
        raise BackendError(f"{self._who}: finalize returned {made!r}, expected a module")

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
        made: object = guarded(
            f"exporting {path.name} by {self._who}",
            BackendError,
            lambda: self._backend.export(model, example_inputs, path, dynamic_shapes),
            passes=(OSError,),
        )
        if isinstance(made, Path) and made.exists():
            return made
        raise BackendError(f"{self._who}: export returned {made!r}, expected the path written")
