"""``palette calibrate``: batches and a loss of the user's, a file of sensitivities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palette_core._common.files import check_place
from palette_core.cli.factories import FactoryError, Loaded, load_callable
from palette_core.config import KMeansPalettizerConfig
from palette_core.errors import SensitivityError, did_you_mean
from palette_core.model import call_arguments
from palette_core.palettizer import KMeansPalettizer
from palette_core.reporting import console as show

LossFn = Callable[[Any, Any], Tensor]


def calibrate(
    loaded: Loaded,
    config: KMeansPalettizerConfig,
    output: Path,
    *,
    data: str,
    loss: str,
    offload: bool,
    num_workers: int,
    as_json: bool,
) -> None:
    """Measure sensitivities, write them, report.

    Raises:
        FactoryError: ``data`` or ``loss`` names nothing that can be used.
    """
    check_place(output, is_file=True)
    batches, loss_fn = _batches(data), load_loss(loss)
    model = loaded.model
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(loaded.example_inputs, num_workers=num_workers)
    started = time.perf_counter()
    with palettizer.calibration_mode(
        loss_fn=loss_fn, sensitivity_path=output, offload=offload, num_workers=num_workers
    ) as calibration:
        for number, batch in enumerate(batches, start=1):
            inputs, target = _pair(data, number, batch)
            with torch.enable_grad():
                args, kwargs = call_arguments(inputs)
                calibration.step(model(*args, **kwargs), target)
        if calibration.steps == 0:
            raise SensitivityError(f"--data {data} yields no batches")
    report = palettizer.report
    assert report is not None
    totals = {
        "steps": calibration.steps,
        "weights": len(report.tensors),
        "seconds": time.perf_counter() - started,
        "file": str(output),
    }
    if as_json:
        show.print_json({**report.to_dict(views=False), "totals": totals})
        return
    show.report(report)
    show.totals({k: f"{v:.2f}" if k == "seconds" else str(v) for k, v in totals.items()})


def load_loss(text: str) -> LossFn:
    """Return a function of torch.nn.functional by its name, or what ``module:callable`` names.

    Raises:
        FactoryError: there is none.
    """
    if ":" in text:
        return load_callable(text)
    known = [n for n in dir(F) if n.endswith(("_loss", "cross_entropy", "kl_div"))]
    if text not in known:
        raise FactoryError(
            f"--loss {text!r} is neither module:callable or file.py:callable nor a loss of "
            f"torch.nn.functional{did_you_mean(text, known)}"
        )
    found: LossFn = getattr(F, text)
    return found


def _batches(text: str) -> Iterable[Any]:
    if ":" not in text:
        raise FactoryError(
            f"cannot read --data {text!r}; write module:callable or file.py:callable"
        )
    source = load_callable(text)
    try:
        batches = source()
    except Exception as error:
        raise FactoryError(f"{text} failed: {type(error).__name__}: {error}") from error
    if not isinstance(batches, Iterable):
        raise FactoryError(
            f"{text} must return or yield batches (inputs, target), got {type(batches).__name__}"
        )
    return batches


def _pair(text: str, number: int, batch: Any) -> tuple[Any, Any]:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise FactoryError(
            f"batch {number} of {text} is no pair (inputs, target), but {type(batch).__name__}"
        )
    return batch[0], batch[1]
