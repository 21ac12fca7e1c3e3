"""A plan as an ordinary config: one rule for each tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable

from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
)
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import AllocationError
from palette_core.model.graph import ModelGraph
from palette_core.planning import TensorPlan, make_plan
from palette_core.plugins.catalog import Catalog

_FAST_DIGITS = 4


def config_of(
    plans: Iterable[TensorPlan], graph: ModelGraph, seed: int, catalog: Catalog
) -> KMeansPalettizerConfig:
    """Return a config that gives every tensor of ``plans`` its spec, and leaves all others dense.

    Every tensor has a ``module_state_spec`` under the name of its first owner.

    Raises:
        AllocationError: the config would not give the same plans; that is a defect of ours.
    """
    wanted = {plan.name: plan for plan in plans}
    modules: dict[str, dict[str, TensorPlan]] = {}
    for plan in wanted.values():
        modules.setdefault(plan.owners[0].module, {})[plan.owners[0].state] = plan
    order = {name: at for at, record in enumerate(graph.modules) for name in record.names}
    config = KMeansPalettizerConfig(
        global_config=None,
        # Entries reach descendants, and the last one wins: outer modules come first.
        module_name_configs={
            re.escape(name): _module_config(modules[name])
            for name in sorted(modules, key=lambda n: (n.count("."), order.get(n, 0)))
        },
        seed=seed,
    )
    made = {plan.name: plan for plan in make_plan(graph, config, catalog)}
    for name in wanted.keys() | made.keys():
        if name not in made or name not in wanted or _gist(made[name]) != _gist(wanted[name]):
            raise AllocationError(
                f"the written config would not palettize {name} as decided; please report this "
                "with the model's structure"
            )
    return config


def _gist(plan: TensorPlan) -> tuple[object, ...]:
    how = plan.spec, plan.layout, plan.algorithm, plan.resolution, plan.seed
    return *how, plan.pat_schedule, plan.vector_kmeans_config


def _module_config(states: dict[str, TensorPlan]) -> ModuleKMeansPalettizerConfig:
    specs: dict[str, PalettizationSpec | None] = {s: plan.spec for s, plan in states.items()}
    first = next(iter(states.values()))
    vectors = [plan.vector_kmeans_config for plan in states.values()]
    # All states of a module come from one config, so these agree.
    return ModuleKMeansPalettizerConfig.model_validate(
        {
            "op_state_spec": {},
            "module_state_spec": specs,
            "enable_fast_kmeans_mode": first.resolution is not None,
            "rounding_precision": first.resolution or _FAST_DIGITS,
            "pat_schedule": first.pat_schedule,
            "vector_kmeans_config": next((each for each in vectors if each is not None), None),
        }
    )
