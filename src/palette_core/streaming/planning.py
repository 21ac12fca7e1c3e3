"""From the headers of a checkpoint to a plan: which tensor is what, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from palette_core.config import KMeansPalettizerConfig
from palette_core.config.model import ConfigLike
from palette_core.config.names import canonical_type_name
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.planning import Plan, TensorPlan, make_plan
from palette_core.planning.make import OnIncompatible
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.storage.tensor_spans import Span
from palette_core.streaming.recognition import Recognition, recognize
from palette_core.streaming.source import SourceCheckpoint, open_source
from palette_core.streaming.ties import keep_tied

_STATES = ("weight", "in_proj_weight")  # what configurations are about by default
_PLAIN = "torch.nn.Module"


@dataclass(frozen=True)
class CheckpointPlan:
    """Decisions about every tensor of a checkpoint.

    Attributes:
        plan: what is palettized, what is left, and why.
        recognized: the rule that has said what a tensor is, by the name that the plan has for it.
        stored: the names of tensors in the checkpoint, by those of the plan.
    """

    plan: Plan
    recognized: Mapping[str, Recognition]
    stored: Mapping[str, str]

    def by_stored_name(self) -> dict[str, TensorPlan]:
        """Return the plans of what is palettized, by the names of the checkpoint."""
        return {self.stored[plan.name]: plan for plan in self.plan}


def plan_checkpoint(
    src: str | Path,
    config: ConfigLike = None,
    *,
    on_incompatible: OnIncompatible = "skip",
) -> CheckpointPlan:
    """Decide what to do with each tensor of a dense checkpoint, from the headers of its files.

    To the config, a tensor hangs in a module named as the file says; its operation and the type of
    the module come from rules by name, number of axes and model type. A tensor that is a weight
    and is not called one, such as ``experts.gate_up_proj``, is a module of its own, whose one
    tensor is ``weight``. Of tied weights that are stored twice, the values are read too.

    Args:
        src: folder, index or file; see `palettize_checkpoint`.
        config: the rules, also as a dictionary or the path of a YAML file; None is 4 bits per
            tensor.
        on_incompatible: what to do with a weight whose shape does not fit its spec; see
            `KMeansPalettizer.make_plan`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it cannot be read; see `palettize_checkpoint`.
        PlanError: a weight cannot be stored as the config asks, or tied weights that are stored
            twice would no longer be equal.
    """
    config = KMeansPalettizerConfig.of(config)
    return plan_source(open_source(src), config, get_catalog(), on_incompatible)


def plan_source(
    source: SourceCheckpoint,
    config: KMeansPalettizerConfig,
    catalog: Catalog,
    on_incompatible: OnIncompatible,
) -> CheckpointPlan:
    """Decide about every tensor of an opened checkpoint; see `plan_checkpoint`."""
    model_types = source.model_types
    modules: dict[str, str] = {}
    records: list[TensorRecord] = []
    recognized: dict[str, Recognition] = {}
    stored: dict[str, str] = {}
    for span in source.spans():
        rule = recognize(span.name, span.shape, model_types)
        record = _record(span, rule)
        module = record.owners[0].module
        if modules.get(module, _PLAIN) == _PLAIN:
            modules[module] = rule.module_type
        records.append(record)
        recognized[record.name], stored[record.name] = rule, span.name
    graph = ModelGraph(
        tuple(ModuleRecord((name,), canonical_type_name(kind)) for name, kind in modules.items()),
        tuple(records),
    )
    plan = make_plan(graph, config, catalog, on_incompatible=on_incompatible)
    return CheckpointPlan(keep_tied(source, plan, recognized, stored), recognized, stored)


def _record(span: Span, rule: Recognition) -> TensorRecord:
    module, _, state = span.name.rpartition(".")
    if rule.operation is not None and state not in _STATES:
        module, state = span.name, _STATES[0]
    record = TensorRecord((Owner(module, state),), span.shape, span.dtype, "parameter")
    if rule.operation is None:
        return replace(record, unused=f"{rule.leave} (rule {rule.name!r})")
    name = f"{module}.{rule.operation}" if module else rule.operation
    return replace(record, uses=(Use(module, rule.operation, name, rule.axis),))
