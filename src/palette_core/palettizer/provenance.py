"""What makes the palettes of a model, for the files that are written of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.kinds import (
    CLUSTERER,
    GRANULARITY,
    LUT_QUANTIZER,
    STORED_FORM,
    TRAINING_STRATEGY,
    PluginKind,
)
from palette_core.storage.origins import Origin, Source


def origins_of(
    config: KMeansPalettizerConfig,
    jobs: Sequence[Job],
    results: Sequence[Clustered],
    catalog: Catalog,
) -> list[Origin]:
    """Return what made each result, of the configuration and the plug-ins that took part."""
    used: dict[str, str] = {}
    for job, result in zip(jobs, results, strict=True):
        for kind, name in _named(job, result):
            item = catalog[kind].find(name)
            used[f"{kind.slug}:{name}"] = str(item.distribution)
    source = Source(config.to_dict(), dict(sorted(used.items())))
    return [
        Origin(_algorithm(job, result), job.plan.seed, source)
        for job, result in zip(jobs, results, strict=True)
    ]


def _algorithm(job: Job, result: Clustered) -> str:
    return result.algorithm or job.plan.algorithm


def _named(job: Job, result: Clustered) -> Iterable[tuple[PluginKind[Any], str]]:
    spec, quantizer = job.plan.spec, job.plan.lut_quantizer
    yield CLUSTERER, _algorithm(job, result)
    yield GRANULARITY, spec.granularity.type
    yield TRAINING_STRATEGY, spec.training_strategy
    yield STORED_FORM, spec.stored_form
    if quantizer is not None:
        yield LUT_QUANTIZER, quantizer
