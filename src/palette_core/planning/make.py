"""Turn a model's graph and a config into a plan, everything checked before a weight is touched."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from palette_core._common.rng import derive_seed
from palette_core.config import KMeansPalettizerConfig
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import IncompatibleShapeError, PlanError
from palette_core.model import ExampleInputs, as_inputs
from palette_core.model.graph import ModelGraph, TensorRecord
from palette_core.operations import OperationTable, operations_of
from palette_core.planning.check import check_names
from palette_core.planning.choose import (
    check_stored_form,
    clusterer_for,
    clusterer_options,
    lay_out,
    lut_quantizer_name,
    nearest,
)
from palette_core.planning.notes import notes_of
from palette_core.planning.reach import Reach, coverage_of, obstacle_of
from palette_core.planning.records import DenseTensor, Plan, SkippedTensor, TensorPlan
from palette_core.planning.rules import Decision, RuleBook
from palette_core.plugins import Backend
from palette_core.plugins.catalog import Catalog

OnIncompatible = Literal["skip", "error"]


def make_plan(
    graph: ModelGraph,
    config: KMeansPalettizerConfig,
    catalog: Catalog,
    *,
    on_incompatible: OnIncompatible = "skip",
    backend: Backend | None = None,
    in_program: bool = False,
) -> Plan:
    """Decide about every tensor of ``graph``.

    Args:
        graph: from `tracing.trace`, or made by hand.
        config: the rules.
        catalog: the installed plug-ins.
        on_incompatible: what to do with a tensor whose shape does not fit its spec: leave it
            dense with a warning, or raise.
        backend: refuse what this backend cannot export.
        in_program: refuse what it cannot put into a program that exists.

    Raises:
        PlanError: incompatible shapes with ``on_incompatible="error"``, a backend's refusals,
            or an algorithm that cannot do what its spec asks.
        UnknownPluginError: a spec names an algorithm, LUT quantizer or strategy that is not
            installed.
        PluginOptionsError: options do not validate.
    """
    if on_incompatible not in ("skip", "error"):
        raise PlanError(f"on_incompatible must be 'skip' or 'error', got {on_incompatible!r}")
    config = config.checked_copy()  # its dictionaries may have been changed in place
    check_names(config, catalog)
    operations = operations_of(catalog)
    rules = RuleBook(config, graph, operations)
    tensors: list[TensorPlan] = []
    skipped: list[SkippedTensor] = []
    dense: list[DenseTensor] = []
    planned: list[TensorRecord] = []
    unasked: list[TensorRecord] = []
    refused: list[TensorRecord] = []
    for record in graph.tensors:
        decision = rules.decide(record)
        outcome = _outcome(record, decision, operations, config, catalog)
        if isinstance(outcome, TensorPlan):
            tensors.append(outcome)
            planned.append(record)
        elif isinstance(outcome, SkippedTensor):
            skipped.append(outcome)
            refused.append(record)
        else:
            dense.append(outcome)
            if not decision.left_alone:
                unasked.append(record)
    if on_incompatible == "error" and skipped:
        raise PlanError(
            "cannot be palettized as configured: "
            + "; ".join(f"{s.name} {s.shape} ({s.rule}): {s.reason}" for s in skipped)
        )
    if backend is not None:
        _refuse(tensors, backend, in_program)
        tensors = [replace(plan, sparse_overhead=backend.sparse_overhead) for plan in tensors]
    notes = notes_of(config, graph, rules, tensors, skipped, dense)
    coverage = coverage_of(Reach(graph, rules, operations), planned, unasked, refused)
    return Plan(tuple(tensors), tuple(skipped), tuple(dense), notes, coverage, graph.written)


def _outcome(
    record: TensorRecord,
    decision: Decision,
    operations: OperationTable,
    config: KMeansPalettizerConfig,
    catalog: Catalog,
) -> TensorPlan | SkippedTensor | DenseTensor:
    if decision.spec is None:
        if decision.asked:
            return _skip(record, decision.reason, decision.rule)
        return DenseTensor(record.name, record.shape, decision.reason, _bytes(record))
    obstacle = obstacle_of(record)
    if obstacle:
        return _skip(record, obstacle, decision.rule)
    axis = decision.axis
    if axis is None:
        axis = operations.channel_axis(decision.op_type, record.shape)
    try:
        return _plan_tensor(record, decision, decision.spec, axis, config, catalog)
    except IncompatibleShapeError as error:
        return _skip(record, f"incompatible with its spec: {error}", decision.rule)


def _skip(record: TensorRecord, reason: str, rule: str) -> SkippedTensor:
    return SkippedTensor(record.name, record.shape, reason, rule, _bytes(record))


def _bytes(record: TensorRecord) -> int:
    return math.prod(record.shape) * record.dtype.itemsize


def _plan_tensor(
    record: TensorRecord,
    decision: Decision,
    spec: PalettizationSpec,
    axis: int,
    config: KMeansPalettizerConfig,
    catalog: Catalog,
) -> TensorPlan:
    layout = lay_out(record.shape, spec, axis, record.name)
    entry = clusterer_for(spec, catalog)
    module = decision.config or config.global_config
    vectors = module.vector_kmeans_config if spec.cluster_dim > 1 else None
    plan = TensorPlan(
        owners=record.owners,
        shape=record.shape,
        dtype=record.dtype,
        op_type=decision.op_type,
        axis=axis,
        spec=spec,
        algorithm=entry.name,
        layout=layout,
        rule=decision.rule,
        algorithm_options=clusterer_options(entry, spec, vectors, catalog),
        lut_quantizer=lut_quantizer_name(spec.lut_qspec, catalog),
        seed=derive_seed(config.seed, record.name),
        resolution=module.rounding_precision if module.enable_fast_kmeans_mode else None,
        pat_schedule=module.pat_schedule,
        vector_kmeans_config=vectors,
    )
    check_stored_form(plan.facts, catalog)
    return plan


def refusals(tensors: list[TensorPlan], backend: Backend, *, in_program: bool = False) -> list[str]:
    """Return one sentence per tensor that ``backend`` cannot export, or put into a program."""
    sentences = []
    for plan in tensors:
        refusal = backend.check_support(replace(plan.facts, in_program=in_program))
        if refusal is None:
            continue
        text = f"{plan.name} {plan.shape} ({plan.rule}): {refusal.reason}"
        sentences.append(text + nearest(plan.spec, refusal))
    return sentences


def check_backend_named(backend: object, **about_it: Any) -> None:
    """Refuse what is about an export backend where none is named.

    Raises:
        PlanError: naming the argument.
    """
    given = [name for name, value in about_it.items() if value]
    if backend is None and given:
        raise PlanError(f"{given[0]} is about the export backend; name that with backend")


def refuse_program(
    model: nn.Module,
    example_inputs: ExampleInputs,
    backend: Backend,
    dynamic_shapes: Any = None,
    what: str = "",
) -> None:
    """Raise a `PlanError` that names each operation of ``model`` that ``backend`` cannot export.

    It begins with ``what``.
    """
    found = backend.check_program(model, as_inputs(example_inputs), dynamic_shapes)
    if found:
        reasons = "; ".join(refusal.reason for refusal in found)
        raise PlanError(f"{what}the backend cannot export: {reasons}")


def _refuse(tensors: list[TensorPlan], backend: Backend, in_program: bool) -> None:
    sentences = refusals(tensors, backend, in_program=in_program)
    if sentences:
        raise PlanError("the backend cannot export: " + "; ".join(sentences))
