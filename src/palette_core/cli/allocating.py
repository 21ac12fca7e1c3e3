"""``palette allocate``: from a target size to a configuration with one rule per tensor."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palette_core._common.files import check_place
from palette_core.allocation import Allocation, Compared, allocate, compare_predictions
from palette_core.cli.axes import dynamic_shapes
from palette_core.cli.factories import FactoryError, load_callable, load_factory
from palette_core.config import KMeansPalettizerConfig, yaml_nodes
from palette_core.errors import AllocationError, ConfigError, MissingArgumentError
from palette_core.planning import TensorPlan
from palette_core.reporting import console as show


def run(
    factory: str,
    inputs: Sequence[str],
    config: KMeansPalettizerConfig,
    output: Path,
    *,
    candidates: str,
    granularities: Sequence[str],
    block_sizes: str | None,
    data: str | None,
    dynamic: Mapping[str, Mapping[int, Any]],
    measure: str | None,
    plot: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Allocate, write the configuration, measure where that is asked for, report.

    Raises:
        FactoryError: an option cannot be read.
        PaletteError: see `allocate` and `compare_predictions`.
    """
    if Path(factory).suffix in (".yaml", ".yml"):
        raise FactoryError(
            f"{factory} is a configuration, which goes to -c; FACTORY is the model's "
            "module:callable or file.py:callable"
        )
    for path in (output, how.get("cache")):
        if path is not None:
            check_place(path, is_file=True)
    if dynamic and how["backend"] is None:
        raise FactoryError("--dynamic is for the export backend; name it with --backend")
    specs = read_candidates(candidates, granularities, block_sizes)
    call = None if measure is None else load_callable(measure)
    loaded = load_factory(factory, inputs)
    batches = () if data is None else list(_inputs(data))
    with _options_named():
        allocation = allocate(
            loaded.model,
            config,
            loaded.example_inputs,
            candidates=specs,
            batches=batches,
            dynamic_shapes=dynamic_shapes(dynamic, loaded),
            **how,
        )
        allocation.config.to_yaml(output)
        compared: tuple[Compared, ...] = ()
        if call is not None:
            compared = compare_predictions(
                loaded.model,
                allocation,
                call,
                sensitivity_path=how["sensitivity_path"],
                batches=batches,
                num_workers=how["num_workers"],
            )
    if plot is not None:
        from palette_core.reporting.pictures import plot_curve

        plot_curve(allocation, plot, compared)
    if as_json:
        measured = {} if call is None else {"compared": _rows(compared)}
        show.print_json({**allocation.to_dict(), **measured, "file": str(output)})
        return
    _show(allocation)
    if compared:
        _show_compared(compared)
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


_OPTIONS = {"batches": "--data", "sensitivity_path": "--sensitivities"}


@contextlib.contextmanager
def _options_named() -> Iterator[None]:
    """Let errors name options where they name arguments of `allocate`."""
    try:
        yield
    except MissingArgumentError as error:
        raise AllocationError(f"{error.problem} ({_OPTIONS[error.argument]})") from error


_OVER = {"palettized": "palettized ones", "model": "whole model"}


def read_candidates(
    bits: str, granularities: Sequence[str], block_sizes: str | None = None
) -> list[int | dict[str, Any]]:
    """Turn ``"2,3,4"``, granularities and sizes of scale blocks into candidates: all of each.

    Args:
        bits: of an index.
        granularities: such as ``"16"`` or ``"per_tensor"``; none leaves the configuration's.
        block_sizes: such as ``"16,64,none"``; None leaves the configuration's.

    Raises:
        FactoryError: a text cannot be read.
    """
    numbers = [_whole("--candidates", part, "2,3,4,6,8") for part in bits.split(",")]
    axes: dict[str, list[Any]] = {}
    if granularities:
        axes["granularity"] = [read_granularity(text) for text in granularities]
    if block_sizes is not None:
        axes["scale_block_size"] = [_block_size(part) for part in block_sizes.split(",")]
    if not axes:
        return list(numbers)
    return [
        {"n_bits": n, **dict(zip(axes, chosen, strict=True))}
        for chosen in itertools.product(*axes.values())
        for n in numbers
    ]


def _block_size(text: str) -> int | None:
    if text.strip() == "none":
        return None
    return _whole("--scale-block-size", text, "16,32,64, with none for no blocks")


def _whole(option: str, text: str, example: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise FactoryError(
            f"cannot read {text!r} in {option}; write whole numbers with commas, such as {example}"
        ) from None


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
        value = yaml_nodes.value("--granularity", text)
    except ConfigError:
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


def _rows(compared: Iterable[Compared]) -> list[dict[str, float | None]]:
    """Return rows as JSON has them: it knows no NaN and no infinity."""
    return [
        {name: x if math.isfinite(x) else None for name, x in asdict(row).items()}
        for row in compared
    ]


def _show_compared(compared: Iterable[Compared]) -> None:
    columns = "bits per weight", "predicted loss", "measured loss, less the dense model's"
    shown = show.table("Predicted and measured", *columns, right=columns)
    for row in compared:
        shown.add_row(
            f"{row.bits_per_weight:.3f}", f"{row.predicted_loss:.4g}", f"{row.measured_loss:.4g}"
        )
    show.console.print(shown)


def _show(allocation: Allocation) -> None:
    shown = show.table(
        "Chosen",
        "tensor", "shape", "bits", "granularity", "bits per weight", "predicted loss", "instead of",
        right=("bits", "bits per weight", "predicted loss"),
        spare=("granularity", "bits per weight", "instead of"),
    )  # fmt: skip
    for tensor in allocation.tensors:
        plan, choice = tensor.choice.plan, tensor.choice
        name = _full if len({c.plan.granularity for c in tensor.candidates}) > 1 else _bits
        others = [c for i, c in enumerate(tensor.candidates) if i != tensor.chosen]
        shown.add_row(
            tensor.name,
            "×".join(map(str, plan.shape)),
            _bits(plan),
            plan.granularity,
            f"{choice.bits / math.prod(plan.shape):.3f}",
            f"{choice.loss:.4g}",
            ", ".join(f"{name(c.plan)}: {c.loss:.3g}" for c in others),
        )
    show.console.print(shown)


def _bits(plan: TensorPlan) -> str:
    dim = plan.spec.cluster_dim
    return str(plan.spec.n_bits) + (f" ×{dim}" if dim > 1 else "")


def _full(plan: TensorPlan) -> str:
    return f"{_bits(plan)} bits {plan.granularity}"
