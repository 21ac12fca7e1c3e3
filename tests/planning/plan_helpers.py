"""Short ways from a model and a config to a plan."""

from __future__ import annotations

from plan_cases import Library
from plan_models import inputs
from torch import nn

from palette_core import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
)
from palette_core.model import trace
from palette_core.planning import Plan, make_plan
from palette_core.plugins.catalog import get_catalog

OURS = Library(
    K=KMeansPalettizerConfig,
    M=ModuleKMeansPalettizerConfig,
    O=OpKMeansPalettizerConfig,
    S=PalettizationSpec,
    G=PerGroupedChannelGranularity,
)


def plan_of(model: nn.Module, config: KMeansPalettizerConfig | None = None, **more) -> Plan:
    graph = trace(model, more.pop("example_inputs", None) or inputs())
    return make_plan(graph, config or KMeansPalettizerConfig(), get_catalog(), **more)


def bits(plan: Plan) -> dict[str, int]:
    return {tensor.name: tensor.spec.n_bits for tensor in plan}


def every(spec: PalettizationSpec | None = None, **spec_fields) -> KMeansPalettizerConfig:
    """Return a config that has one spec for every state of every operation."""
    spec = spec or PalettizationSpec(**spec_fields)
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"*": spec}, enable_fast_kmeans_mode=False
        )
    )
