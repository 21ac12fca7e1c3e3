"""Tied weights that a checkpoint holds twice: what becomes of one has to become of the other.

Libraries that open a checkpoint tie two weights only where the file holds equal values for them;
a head that is palettized beside a dense embedding would be another weight from then on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from palette_core.errors import PlanError
from palette_core.planning import Plan, TensorPlan
from palette_core.storage.tensor_spans import Span
from palette_core.streaming.recognition import Recognition
from palette_core.streaming.source import TIED, SourceCheckpoint, says_untied

_OPERATIONS = ("embedding", "linear")


def keep_tied(
    source: SourceCheckpoint,
    plan: Plan,
    recognized: Mapping[str, Recognition],
    stored: Mapping[str, str],
) -> Plan:
    """Return a plan by which tied weights that are stored twice stay equal.

    Two weights are taken for tied where one is of an embedding, their bytes are equal, and
    ``config.json`` does not say ``"tie_word_embeddings": false``. Bytes are compared where it
    matters: where shapes are equal, and one of both is to be palettized.

    Args:
        source: the checkpoint.
        plan: for its weights.
        recognized: the rule for each, by the plan's names.
        stored: names in the checkpoint, by the plan's names.

    Raises:
        PlanError: other things are to become of one than of the other.
        OSError: the source cannot be read.
    """
    if says_untied(source.config):
        return plan
    spans = {span.name: span for span in source.spans()}
    planned = {item.name: item for item in plan}
    seeds: dict[str, int] = {}
    for first, second in _candidates(spans, recognized, stored):
        one, other = planned.get(first), planned.get(second)
        pair = spans[stored[first]], spans[stored[second]]
        if one is other or pair[0].checksum() != pair[1].checksum():
            continue
        if one is None or other is None or _outcome(one) != _outcome(other):
            raise PlanError(_text(source, *pair, one, other))
        seeds[second] = seeds.get(first, one.seed)
    items = (replace(item, seed=seeds.get(item.name, item.seed)) for item in plan)
    return replace(plan, tensors=tuple(items)) if seeds else plan


def _candidates(
    spans: Mapping[str, Span], recognized: Mapping[str, Recognition], stored: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield pairs of weights of one shape and dtype, one of which is of an embedding."""
    kinds: dict[Any, list[str]] = {}
    for name, rule in recognized.items():
        if rule.operation in _OPERATIONS:
            span = spans[stored[name]]
            kinds.setdefault((span.shape, span.dtype), []).append(name)
    for names in kinds.values():
        embeddings = [name for name in names if recognized[name].operation == "embedding"]
        for first, second in itertools.product(embeddings, names):
            if first != second:
                yield first, second


def _outcome(plan: TensorPlan) -> tuple[Any, ...]:
    return plan.spec, plan.algorithm, plan.axis


def _text(
    source: SourceCheckpoint,
    first: Span,
    second: Span,
    one: TensorPlan | None,
    other: TensorPlan | None,
) -> str:
    told = [
        f"{span.name} {'stays dense' if plan is None else f'gets {plan.spec.n_bits} bits'}"
        for span, plan in ((first, one), (second, other))
    ]
    return (
        f"{source.path}: {first.name} and {second.name} hold the same values, as tied weights do, "
        f"and {' and '.join(told)}, after which they would be two; give both the same spec "
        "(op_type_config for embedding and linear, or module_name_configs), leave both dense "
        f'(null in module_name_configs), or say "{TIED}": false in config.json'
    )
