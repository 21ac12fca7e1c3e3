"""Where plug-ins' objects are called: failures name the plug-in, and nonsense stops there.

An object of a plug-in is made by these functions only; what they return does as the plug-in does,
and checks what comes out before it reaches a plan, a palette or a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch
from torch import Tensor, nn

from palette_core.errors import (
    BackendError,
    ClusteringError,
    IncompatibleShapeError,
    PaletteError,
    PlanError,
)
from palette_core.plugins import Backend, LutQuantizer, Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.granularities import Granularity
from palette_core.plugins.shelves import validate_options
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor, QuantizedLut

if TYPE_CHECKING:
    from palette_core.config.spec import QuantizationSpec

ResultT = TypeVar("ResultT")


def guarded(who: str, kind: type[PaletteError], call: Callable[[], ResultT]) -> ResultT:
    """Run a plug-in's code; failures that are not ours become errors of ``kind`` that name it."""
    try:
        return call()
    except PaletteError:
        raise
    # SystemExit too: a plug-in must not end the user's program.
    except (Exception, SystemExit) as error:
        raise kind(f"{who} failed: {type(error).__name__}: {error}") from error


# --- granularities --------------------------------------------------------------------------------


def block_shape(granularity: Granularity, shape: Shape, axis: int, tensor: str) -> Shape:
    """Return how many elements of each axis one block spans.

    Args:
        granularity: built-in, or a plug-in's.
        shape: of the weight.
        axis: its output-channel axis.
        tensor: its name.

    Raises:
        IncompatibleShapeError: the granularity refuses the shape.
        PlanError: it fails, or returns what is no block of this shape.
    """
    try:
        block: Any = granularity.block_shape(shape, axis)
    except IncompatibleShapeError:
        raise
    except (Exception, SystemExit) as error:
        raise PlanError(
            f"{tensor}: granularity {_named(granularity)} failed for shape {shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    fits = isinstance(block, Sequence) and len(block) == len(shape)
    if not fits or not all(
        type(step) is int and step > 0 and extent % step == 0
        for extent, step in zip(shape, block, strict=True)
    ):
        raise PlanError(
            f"{tensor}: granularity {_named(granularity)} cuts shape {shape} into {block!r}; "
            f"expected {len(shape)} positive integers, each dividing its axis, or an "
            "IncompatibleShapeError"
        )
    return tuple(block)


def _named(granularity: Granularity) -> str:
    owners = [
        f" ({item.distribution})"
        for item in get_catalog().granularities
        if item.entry.model is type(granularity)
    ]
    return f"{granularity.type!r}{''.join(owners[:1])}"


# --- LUT quantizers -------------------------------------------------------------------------------


def make_lut_quantizer(
    catalog: Catalog, name: str, spec: QuantizationSpec, tensor: str
) -> LutQuantizer:
    """Make the LUT quantizer ``name`` for one tensor.

    Raises:
        PluginOptionsError: its options do not validate.
        ClusteringError: making it fails.
    """
    item = catalog.lut_quantizers.find(name)
    options = validate_options(item.entry, spec.quantizer_options)
    who = f"{tensor}: LUT quantizer {name!r} ({item.distribution})"
    made = guarded(who, ClusteringError, lambda: item.entry.factory(spec, options))
    return _CheckedLutQuantizer(who, made, spec.dtype)


@final
class _CheckedLutQuantizer(LutQuantizer):
    def __init__(self, who: str, quantizer: LutQuantizer, dtype: torch.dtype) -> None:
        self._who, self._quantizer, self._dtype = who, quantizer, dtype

    def quantize(self, lut: Tensor) -> QuantizedLut:
        """Quantize, and check what comes out.

        Raises:
            ClusteringError: the plug-in fails, or returns what are no quantized tables.
        """
        made = guarded(self._who, ClusteringError, lambda: self._quantizer.quantize(lut))
        check_quantized(self._who, made, lut, self._dtype)
        return made


def check_quantized(who: str, made: object, lut: Tensor, dtype: torch.dtype | None = None) -> None:
    """Refuse what is not the quantized form of tables ``[B, K, D]``.

    Args:
        who: the plug-in, for the message.
        made: what it returned.
        lut: the tables.
        dtype: what the spec asks for; None takes any.

    Raises:
        ClusteringError: naming the part that is wrong.
    """
    if not isinstance(made, QuantizedLut):
        raise ClusteringError(f"{who} returned {type(made).__name__}, not a QuantizedLut")
    one = (lut.shape[0], 1, 1)
    zero = made.zero_point
    for what, got, right in (
        ("values", made.values.shape, lut.shape),
        ("values", made.values.dtype, dtype or made.values.dtype),
        ("values on", made.values.device, lut.device),
        ("a scale of shape", made.scale.shape, one),
        ("a zero point of shape", one if zero is None else zero.shape, one),
        ("a zero point", made.values.dtype if zero is None else zero.dtype, made.values.dtype),
    ):
        if got != right:
            raise ClusteringError(f"{who} returned {what} {_text(got)}, expected {_text(right)}")
    if not bool(torch.isfinite(made.dequantize()).all()):
        raise ClusteringError(f"{who} returned entries or scales that are NaN or infinite")


def _text(value: object) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


# --- export backends ------------------------------------------------------------------------------


def make_backend(catalog: Catalog, name: str, options: Mapping[str, Any]) -> Backend:
    """Make the export backend ``name``.

    Raises:
        MissingBackendError: it is one of ours, but its distribution is not installed.
        UnknownPluginError: nobody knows it.
        PluginOptionsError: its options do not validate.
        BackendError: making it fails.
    """
    entry = catalog.backend(name)
    valid = validate_options(entry, dict(options))
    who = f"export backend {name!r} ({catalog.export_backends.find(name).distribution})"
    made = guarded(who, BackendError, lambda: entry.factory(valid))
    if not isinstance(made, Backend):
        raise BackendError(f"{who}: its factory made {made!r}, which is no Backend")
    return _CheckedBackend(who, made)


@final
class _CheckedBackend(Backend):
    def __init__(self, who: str, backend: Backend) -> None:
        self._who, self._backend = who, backend

    def refuses(self, facts: TensorFacts) -> Refusal | None:
        """Ask the plug-in.

        Raises:
            BackendError: it fails, or answers neither None nor a Refusal.
        """
        who = f"{facts.name}: {self._who}"
        answer: object = guarded(who, BackendError, lambda: self._backend.refuses(facts))
        if answer is None or isinstance(answer, Refusal):
            return answer
        raise BackendError(f"{who}: refuses returned {answer!r}, expected None or a Refusal")

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
        try:
            made: object = self._backend.export(model, example_inputs, path, dynamic_shapes)
        except (PaletteError, OSError):
            raise
        except (Exception, SystemExit) as error:
            text = f"exporting to {path} by {self._who} failed: {type(error).__name__}: {error}"
            raise BackendError(text) from error
        if isinstance(made, Path) and made.exists():
            return made
        raise BackendError(f"{self._who}: export returned {made!r}, expected the path written")
