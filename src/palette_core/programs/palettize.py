"""The weights of a runtime's program, planned, clustered and put back by its export backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palette_core._common.files import atomic_path
from palette_core._common.progress import progress_bar
from palette_core._common.warned import warn
from palette_core.config import KMeansPalettizerConfig
from palette_core.config.model import ConfigLike
from palette_core.engine.cluster_model import fallback_sentences
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job, check_finite
from palette_core.engine.kept import Kept, keeper_in
from palette_core.engine.results import Report, make_report
from palette_core.errors import BackendError, PlanError
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.planning import Plan, TensorPlan, make_plan
from palette_core.planning.make import OnIncompatible
from palette_core.plugins import Backend, ExportBackendEntry, ProgramWeight
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.checked.backends import make_backend

_STATE = "weight"


@dataclass(frozen=True)
class _Program:
    path: Path
    entry: ExportBackendEntry
    backend: Backend
    weights: Mapping[str, ProgramWeight]


def plan_program(
    path: str | Path,
    config: ConfigLike = None,
    *,
    backend: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    on_incompatible: OnIncompatible = "skip",
) -> Plan:
    """Decide what to do with each weight of a program; nothing is clustered or written.

    To the config, each weight is a module of its own, named as the program stores it, whose one
    tensor ``weight`` is consumed by the operation of torch that the program's stands for.

    Args:
        path: the program.
        config: the rules, also as a dictionary or the path of a YAML file; None is 4 bits per
            tensor.
        backend: the export backend that reads it; None is the one that writes such files.
        backend_options: of the backend.
        on_incompatible: what to do with a weight whose shape does not fit its spec; see
            `KMeansPalettizer.make_plan`.

    Raises:
        BackendError: no backend edits such programs, or it cannot be read.
        PlanError: a weight cannot be stored as the config asks.
    """
    catalog = get_catalog()
    program = _opened(path, backend, backend_options, catalog)
    return _planned(program, config, catalog, on_incompatible)


def palettize_program(
    path: str | Path,
    output: str | Path,
    config: ConfigLike = None,
    *,
    backend: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    on_incompatible: OnIncompatible = "skip",
    num_workers: int = 1,
    work_folder: str | Path | None = None,
) -> Report:
    """Palettize the weights of a program that exists, and write it anew, whole or not at all.

    Everything else in it stays as it is. What was written is read again, and every weight decoded
    and compared before the file takes its place.

    Args:
        path: the program; as it was afterwards, unless it is ``output``.
        output: where to write.
        config: the rules; see `plan_program`.
        backend: the export backend; None is the one that writes files named like ``path``.
        backend_options: of the backend.
        on_incompatible: see `plan_program`.
        num_workers: processes that cluster.
        work_folder: keep each result in this folder, as `KMeansPalettizer.prepare` does.

    Raises:
        StateError: another run has ``work_folder``.
        BackendError: as `plan_program`; or ``output`` lacks the suffix, what stands there is none
            of the backend's files, or a weight could not be replaced exactly.
        PlanError: as `plan_program`, or nothing is to be palettized.
        WeightError: a weight is NaN or infinite.
        OSError: the file cannot be written.
    """
    catalog, target = get_catalog(), Path(output)
    program = _opened(path, backend, backend_options, catalog)
    if target.suffix != program.entry.suffix:
        suffix = program.entry.suffix
        raise BackendError(f"backend {program.entry.name!r} writes {suffix}, got {target}")
    program.backend.check_place(target)
    plan = _planned(program, config, catalog, on_incompatible)
    jobs = [Job(item, program.weights[_stored(item)].values) for item in plan]
    if not jobs:
        raise PlanError(_nothing(program, plan))
    for job in jobs:
        check_finite(_stored(job.plan), job.weight)
    needy = [t.name for t in plan if catalog.clusterers.get(t.algorithm).needs_moments]
    missing = dict.fromkeys(needy, "a program without its model gives none")
    warn(*fallback_sentences(missing), stacklevel=2)
    with (
        keeper_in(work_folder, Kept(), catalog) as kept,
        progress_bar("Palettizing", len(jobs)) as advance,
    ):
        results = Executor(num_workers, catalog, kept=kept).run(jobs, advance)
    palettized = {
        _stored(job.plan): result.palettized for job, result in zip(jobs, results, strict=True)
    }
    with atomic_path(target, beside=program.entry.beside) as fresh:
        program.backend.replace_weights(program.path, palettized, fresh)
    return make_report(plan, results)


def _opened(
    path: str | Path, backend: str | None, options: Mapping[str, Any] | None, catalog: Catalog
) -> _Program:
    place = Path(path)
    entries = [item.entry for item in catalog.export_backends]
    able = [entry for entry in entries if entry.edits_programs]
    name = backend or next((each.name for each in able if each.suffix == place.suffix), None)
    if name not in [entry.name for entry in able]:
        known = ", ".join(f"{entry.name} ({entry.suffix})" for entry in able) or "none is installed"
        raise BackendError(
            f"{place}: {f'backend {name!r}' if name else 'no backend'} palettizes the weights of "
            f"such a program; these do: {known}"
        )
    made = make_backend(catalog, name, options or {})
    return _Program(place, catalog.backend(name), made, made.read_program(place))


def _planned(
    program: _Program,
    config: ConfigLike,
    catalog: Catalog,
    on_incompatible: OnIncompatible,
) -> Plan:
    modules = tuple(ModuleRecord((name,), program.entry.name) for name in program.weights)
    records = tuple(_record(name, weight) for name, weight in program.weights.items())
    return make_plan(
        ModelGraph(modules, records),
        KMeansPalettizerConfig.of(config),
        catalog,
        on_incompatible=on_incompatible,
        backend=program.backend,
        in_program=True,
    )


def _nothing(program: _Program, plan: Plan) -> str:
    found = ", ".join(program.weights) or "none, or all are compressed already"
    skipped = "".join(f"; {item.name}: {item.reason}" for item in plan.skipped)
    return (
        f"{program.path}: no weight is to be palettized, so nothing is written; dense weights in "
        f"it: {found}{skipped}"
    )


def _record(name: str, weight: ProgramWeight) -> TensorRecord:
    values, op = weight.values, weight.op_type
    uses = () if op is None else (Use(name, op, f"{name}.{op}", weight.axis),)
    shape = tuple(values.shape)
    return TensorRecord(
        (Owner(name, _STATE),), shape, values.dtype, "parameter", uses, obstacle=weight.obstacle
    )


def _stored(plan: TensorPlan) -> str:
    return plan.owners[0].module
