"""``palette allocate``: from a target size to a configuration with one rule per tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape

from palette_core.allocation import Allocation, allocate
from palette_core.cli import show
from palette_core.cli.factories import FactoryError, Loaded, load_callable
from palette_core.config import KMeansPalettizerConfig
from palette_core.planning import TensorPlan
from palette_core.report import granularity_text


def run(
    loaded: Loaded,
    config: KMeansPalettizerConfig,
    output: Path,
    *,
    candidates: str,
    granularities: Sequence[str],
    data: str | None,
    plot: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Allocate, write the configuration, report.

    Raises:
        FactoryError: an option cannot be read.
        PaletteError: see `allocate`.
    """
    allocation = allocate(
        loaded.model,
        config,
        loaded.example_inputs,
        candidates=read_candidates(candidates, granularities),
        batches=() if data is None else _inputs(data),
        **how,
    )
    allocation.config.to_yaml(output)
    if plot is not None:
        from palette_core.plot import plot_curve

        plot_curve(allocation, plot)
    if as_json:
        show.print_json({**allocation.to_dict(), "file": str(output)})
        return
    _show(allocation)
    show.totals(
        {
            f"bits per weight, {_OVER[allocation.over]}": f"{allocation.bits_per_weight:.4f} "
            f"(at most {allocation.target_bpw:g})",
            "predicted loss": f"{allocation.predicted_loss:.6g} "
            f"(no choice is below {allocation.lower_bound:.6g})",
            "written": str(output),
            **({} if plot is None else {"picture": str(plot)}),
        }
    )


_OVER = {"palettized": "palettized ones", "model": "whole model"}


def read_candidates(bits: str, granularities: Sequence[str]) -> list[int | dict[str, Any]]:
    """Turn ``"2,3,4"`` and granularities, such as ``"16"`` or ``"per_tensor"``, into candidates.

    Raises:
        FactoryError: a text cannot be read.
    """
    try:
        numbers = [int(part) for part in bits.split(",")]
    except ValueError:
        raise FactoryError(
            f"cannot read --candidates {bits!r}; write bits with commas, such as 2,3,4,6,8"
        ) from None
    if not granularities:
        return list(numbers)
    return [
        {"n_bits": n, "granularity": read_granularity(g)} for g in granularities for n in numbers
    ]


def read_granularity(text: str) -> Any:
    """Read ``per_tensor``, a group size (``16``, or ``16@1`` on axis 1), or a YAML mapping.

    Raises:
        FactoryError: it is none of these.
    """
    size, _, axis = text.partition("@")
    if size.strip().isdecimal() and (not axis or axis.strip().isdecimal()):
        group: dict[str, Any] = {"type": "per_grouped_channel", "group_size": int(size)}
        return {**group, "axis": int(axis)} if axis else group
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, dict):
        return value
    raise FactoryError(
        f"cannot read --granularity {text!r}; write per_tensor, a group size such as 16, 16@1 for "
        "axis 1, or a mapping such as '{type: per_grouped_channel, group_size: 16}'"
    )


def _inputs(text: str) -> Iterable[Any]:
    found = load_callable(text)()
    if not isinstance(found, Iterable):
        raise FactoryError(f"{text} must return or yield model inputs, got {type(found).__name__}")
    return found


def _show(allocation: Allocation) -> None:
    shown = show.table(
        "Chosen",
        "tensor", "shape", "bits", "granularity", "bits per weight", "predicted loss", "instead of",
        right=("bits", "bits per weight", "predicted loss"),
    )  # fmt: skip
    for tensor in allocation.tensors:
        plan, choice = tensor.choice.plan, tensor.choice
        others = [c for i, c in enumerate(tensor.candidates) if i != tensor.chosen]
        shown.add_row(
            tensor.name,
            "×".join(map(str, plan.shape)),
            _bits(plan),
            granularity_text(plan.spec, plan.axis),
            f"{choice.bits / math.prod(plan.shape):.3f}",
            f"{choice.loss:.4g}",
            escape(", ".join(f"{_bits(c.plan)}: {c.loss:.3g}" for c in others)),
        )
    show.console.print(shown)


def _bits(plan: TensorPlan) -> str:
    dim = plan.spec.cluster_dim
    return str(plan.spec.n_bits) + (f" ×{dim}" if dim > 1 else "")
