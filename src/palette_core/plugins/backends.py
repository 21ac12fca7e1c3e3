"""The kind *export backend*: what turns a prepared model into what one runtime loads."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palette_core.errors import BackendError
from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.export_requests import ExportRequest
from palette_core.plugins.markers import hookspec

_SUFFIX = re.compile(r"\.[A-Za-z0-9_+-]{1,30}")


@dataclass(frozen=True)
class Refusal:
    """Reason why a backend cannot take a tensor or an operation, and a spec that it can take."""

    reason: str
    instead: types.PalettizationSpec | None = None


@dataclass(frozen=True)
class TensorFacts:
    """Facts about a tensor that planning knows; enough to decide, and made without a live module.

    Attributes:
        name: fully qualified name of the first owner.
        shape: shape of the weight.
        dtype: dtype of the weight.
        op_type: functional name of the operation that consumes it (``"linear"``), or None.
        layout: the blocks that the spec's granularity makes of it.
        spec: the resolved spec.
        in_program: it is to be replaced in a program that exists; see `Backend.replace_weights`.
    """

    name: str
    shape: types.Shape
    dtype: types.dtype
    op_type: str | None
    layout: types.BlockLayout
    spec: types.PalettizationSpec
    in_program: bool = False


@dataclass(frozen=True)
class ProgramWeight:
    """A dense weight in a program that exists already.

    Attributes:
        values: on the CPU, shaped as the program stores it, in one of torch's floating dtypes.
        op_type: functional name of the operation of torch that the consumer stands for, such as
            ``"linear"``; None where it is none that is known.
        axis: its output-channel axis there.
        obstacle: why it cannot be replaced where it is, or None.
    """

    values: types.Tensor
    op_type: str | None = None
    axis: int | None = None
    obstacle: str | None = None


class Backend(ABC):
    """Turns a prepared model into what one runtime loads."""

    sparse_overhead: int = 0
    """Bytes that a weight in the stored form ``sparse`` takes in a file beside its indices and its
    mask, more than one of dense indices does: what further operations take.

    Where a model is prepared for a backend, a weight gets that form where it is the smaller one
    with these counted in.
    """

    @abstractmethod
    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Return why this tensor cannot be exported, or None; asked in planning."""

    def check_program(
        self,
        model: types.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any],
        dynamic_shapes: Any = None,
    ) -> Sequence[Refusal]:
        """Return which operations of the model cannot be exported; none by default.

        Asked in planning, before anything is clustered, so that nobody waits for palettes that
        have no file.

        Args:
            model: not palettized, and to be left as it is.
            example_inputs: a tuple of positional or a dictionary of keyword inputs.
            dynamic_shapes: as in ``torch.export.export``.

        Returns:
            One refusal for each, its reason naming the operation and the module that holds it.
        """
        del model, example_inputs, dynamic_shapes
        return ()

    def check_place(self, path: Path) -> None:
        """Refuse to replace what stands at ``path``; by default anything may be replaced.

        Called before the work; `export` is given a fresh path, which takes the place afterwards.

        Args:
            path: what the user wants to be written, where something may stand or not.

        Raises:
            BackendError: what stands there is none of this backend's, and stays.
        """
        del path

    @abstractmethod
    def finalize(
        self, model: types.Module, palettized: Mapping[str, types.PalettizedTensor]
    ) -> types.Module:
        """Replace palettized weights by the runtime's form, in place, and return the model.

        Args:
            model: a model whose weights already decode through the operators of their stored
                forms (``palette_core::depalettize`` by default), the dense originals freed. Most
                backends have nothing to add.
            palettized: the same weights by fully qualified name of their first owner; each is
                unpacked when it is looked up.
        """

    @abstractmethod
    def export(
        self,
        model: types.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Write a finalized model to ``path`` (or as the runtime names it) and return the path."""

    def export_functions(self, model: types.Module, request: ExportRequest, path: Path) -> Path:
        """Write functions of a finalized model to ``path``, weights that they share once.

        Called in the place of `export` where functions, names or metadata are asked for; only
        where the entry declares ``takes_functions``.

        Args:
            model: whose weights the functions compute with.
            request: what is asked for.
            path: where nothing stands yet.

        Raises:
            BackendError: names that the functions do not have, or what `export` refuses.
        """
        raise BackendError(f"{path}: this backend writes files of one function")

    def read_program(self, path: Path) -> Mapping[str, ProgramWeight]:
        """Return the dense weights of a program of the runtime, by the names it stores them by.

        Called where the entry declares ``edits_programs``. The program need not be this
        backend's work, and is only read.

        Raises:
            BackendError: it cannot be read.
        """
        raise BackendError(f"{path}: this backend does not read programs")

    def replace_weights(
        self, path: Path, palettized: Mapping[str, types.PalettizedTensor], fresh: Path
    ) -> Path:
        """Write a program with other weights to ``fresh``, and return that path.

        Called where the entry declares ``edits_programs``. The weights written are read again:
        each decodes to the values of its `PalettizedTensor.decode`, in every bit.

        Args:
            path: the program, which stays as it is.
            palettized: by names of `read_program`; all other weights stay dense.
            fresh: where nothing stands yet.

        Raises:
            BackendError: a weight could not be replaced exactly.
        """
        raise BackendError(f"{path}: this backend does not write into programs")


def _is_suffix(text: object) -> bool:
    return type(text) is str and _SUFFIX.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class ExportBackendEntry(PluginEntry):
    """An export backend.

    Attributes:
        factory: makes the backend from validated options; import heavy modules inside it.
        suffix: file name suffix of what it writes, with the dot.
        supports_mmap: works with weights that ``finalize(mmap_dir=…)`` keeps in files and maps
            into memory, without copying them all.
        leaves_dense: ``finalize`` leaves an ordinary model without palettes, to be prepared again.
        stored_forms: names of the stored forms that it takes; None takes any, for a backend that
            does not look into them.
        beside: suffixes of further files that it writes beside, under the same stem. They take
            their places together with the first, or none does.
        edits_programs: reads the weights of programs that exist, and replaces them.
        takes_functions: writes files of several functions, with names and metadata of the user's,
            by ``export_functions``.
    """

    factory: Callable[[Any], Backend]
    suffix: str
    supports_mmap: bool = False
    leaves_dense: bool = False
    stored_forms: tuple[str, ...] | None = ("indices",)
    beside: tuple[str, ...] = ()
    edits_programs: bool = False
    takes_functions: bool = False

    def check(self) -> None:
        """Refuse what is no suffix, and stored forms that are not given by name.

        Raises:
            TypeError: naming what is no name.
            ValueError: a suffix that no file name ends with.
        """
        super().check()
        suffix: object = self.suffix
        if not _is_suffix(suffix):
            raise ValueError(f"suffix of {self.name!r} must be like '.onnx', got {suffix!r}")
        beside: Any = self.beside
        if not isinstance(beside, tuple) or len({suffix, *beside}) != 1 + len(beside):
            raise ValueError(f"beside of {self.name!r} must be a tuple of other suffixes")
        if not all(map(_is_suffix, beside)):
            raise ValueError(f"beside of {self.name!r} must be like ('.bin',), got {beside!r}")
        forms: Any = self.stored_forms
        if forms is not None and not (
            isinstance(forms, tuple) and forms and all(type(form) is str for form in forms)
        ):
            raise TypeError(
                f"stored_forms of {self.name!r} must be None, or a tuple of names such as "
                f"('indices',), got {forms!r}"
            )

    def claims(self) -> frozenset[str]:
        """Return name and suffix."""
        return super().claims() | {f"the suffix {self.suffix!r}"}


@hookspec
def palette_core_export_backends() -> Iterable[ExportBackendEntry]:
    """Return the export backends that this distribution provides.

    Example::

        from palette_core.plugins import INTERFACE_VERSION, Backend, ExportBackendEntry, hookimpl


        class TorchExport(Backend):
            '''The graph that torch.export records, packed weights and all.'''

            def check_support(self, facts):
                return None

            def finalize(self, model, palettized):
                return model

            def export(self, model, example_inputs, path, dynamic_shapes=None):
                import torch

                program = torch.export.export(model, example_inputs, dynamic_shapes=dynamic_shapes)
                torch.export.save(program, path)
                return path


        @hookimpl
        def palette_core_export_backends():
            return [
                ExportBackendEntry(
                    name="torch_export",
                    summary="the graph that torch.export records",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: TorchExport(),
                    suffix=".pt2",
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
