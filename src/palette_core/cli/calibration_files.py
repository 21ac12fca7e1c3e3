"""Calibration batches for a checkpoint, and the model that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from palette_core.cli.factories import FactoryError, load_batches, load_callable
from palette_core.storage.tensor_spans import read_header_of

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".safetensors"


def calibration_of(source: Path, calibration: str | None, model: str | None) -> dict[str, Any]:
    """Return the arguments of `palettize_checkpoint` that are about calibration.

    Args:
        source: the checkpoint.
        calibration: of the command line: a file, or what returns batches.
        model: of the command line: what returns the model of a checkpoint; None leaves it to
            installed distributions.

    Raises:
        FactoryError: one of them is not there, cannot be used, or the model is given alone.
    """
    if calibration is None:
        if model is not None:
            raise FactoryError("--model is of no use alone; give --calibration FILE, too")
        return {}
    is_file = calibration.endswith(_SUFFIX)
    batches = read_batches(Path(calibration)) if is_file else load_batches(calibration)
    if model is None:
        return {"calibration": batches}
    factory = load_callable(model)
    folder = source if source.is_dir() else source.parent
    try:
        skeleton = factory(folder)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{model} failed: {type(error).__name__}: {error}") from error
    return {"calibration": batches, "skeleton": skeleton}


def read_batches(path: Path) -> list[dict[str, Tensor]]:
    """Read calibration batches from a safetensors file.

    Its tensors are keyword inputs of the model, such as ``input_ids`` ``[n, length]``; all of them
    have the same first axis, and each index of that is a batch, its first axis 1.

    Raises:
        FactoryError: there is no such file, it is none, or its tensors do not go together.
    """
    if not path.is_file():
        raise FactoryError(f"--calibration: there is no file {path}")
    spans = read_header_of(path).spans
    lengths = {name: span.shape[0] if span.shape else 0 for name, span in spans.items()}
    if not lengths or 0 in lengths.values() or len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {list(span.shape)}" for name, span in spans.items())
        raise FactoryError(
            f"--calibration: {path} holds {told or 'nothing'}; expected keyword inputs of the "
            "model, such as input_ids [n, length], with one first axis: that of the batches"
        )
    count = next(iter(lengths.values()))
    return [
        {name: span.mapped()[number : number + 1].clone() for name, span in spans.items()}
        for number in range(count)
    ]
