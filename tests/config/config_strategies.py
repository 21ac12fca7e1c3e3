"""Random specs and configs for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import nn

from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PATSchedule,
    VectorKMeansConfig,
)
from palette_core.operations import installed_operations
from palette_core.spec import (
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationScheme,
    QuantizationSpec,
)

OP_TYPES = st.sampled_from(installed_operations().names())
GRANULARITIES = st.just(PerTensorGranularity()) | st.builds(
    PerGroupedChannelGranularity, axis=st.sampled_from([None, 0, 1]), group_size=st.integers(1, 64)
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=3)
)
OPTIONS = st.dictionaries(st.text(max_size=6), PLAIN, max_size=2)
INTEGER_LUTS = st.builds(
    QuantizationSpec,
    dtype=st.sampled_from(["int8", "uint8"]),
    qscheme=st.sampled_from(QuantizationScheme),
    quantizer=st.none() | st.text(max_size=5),
    quantizer_options=OPTIONS,
)
FP8_LUTS = st.builds(
    QuantizationSpec,
    dtype=st.sampled_from(["float8_e4m3fn", "float8_e5m2"]),
    scale_dtype=st.sampled_from([None, "float8_e8m0fnu"]),
)


def specs(max_cluster_dim: int = 4) -> st.SearchStrategy[PalettizationSpec]:
    """Return any valid spec."""
    return st.builds(
        PalettizationSpec,
        n_bits=st.sampled_from([1, 2, 3, 4, 6, 8]),
        lut_qspec=st.none() | INTEGER_LUTS | FP8_LUTS,
        granularity=GRANULARITIES,
        cluster_dim=st.integers(1, max_cluster_dim),
        enable_per_channel_scale=st.booleans(),
        algorithm=st.none() | st.text(max_size=5),
        algorithm_options=OPTIONS,
        training_strategy=st.text(max_size=5),
        training_strategy_options=OPTIONS,
    )


VECTORS = st.builds(
    VectorKMeansConfig,
    n_local_trials=st.none() | st.integers(1, 9),
    n_init=st.integers(1, 99),
    tol=st.floats(0, 1),
)
STATE_KEYS = st.sampled_from(["*", "weight", "bias", "in_proj_weight", "0", "on", "~", "<<", "ü"])


def states(max_cluster_dim: int = 4) -> st.SearchStrategy[Any]:
    """Return any valid op_state_spec or module_state_spec, None included."""
    return st.none() | st.dictionaries(STATE_KEYS, st.none() | specs(max_cluster_dim), max_size=2)


OPS = st.none() | st.builds(OpKMeansPalettizerConfig, op_state_spec=states())
# Any text is a name when escaped; some patterns as people write them besides.
NAMES = st.sampled_from(["", r"encoder\.\d+", "0.10", "lm_head", ".*", "null"]) | st.text(
    max_size=6
).map(lambda text: "".join(c if c.isalnum() or ord(c) > 127 else f"\\{c}" for c in text))


@st.composite
def modules(draw: st.DrawFn, with_states: bool = True) -> ModuleKMeansPalettizerConfig:
    """Draw any valid module config."""
    fast = draw(st.booleans())
    drawn = ModuleKMeansPalettizerConfig(
        op_state_spec=draw(states(1 if fast else 4)),
        op_type_config=draw(
            st.dictionaries(st.sampled_from(installed_operations().names()), OPS, max_size=1)
        ),
        op_name_config=draw(st.dictionaries(NAMES, OPS, max_size=1)),
        module_state_spec=draw(states()) if with_states else None,
        enable_fast_kmeans_mode=fast,
        rounding_precision=draw(st.integers(1, 12)),
        pat_schedule=draw(
            st.none() | st.builds(PATSchedule, enable_fake_palettize=st.integers(0, 9))
        ),
    )
    if any(spec is not None and spec.cluster_dim > 1 for spec in drawn.specs()):
        drawn.vector_kmeans_config = draw(st.none() | VECTORS)
    return drawn


TYPES = st.sampled_from([nn.Linear, "torch.nn.Conv2d", "my_package.layers.Block"])


@st.composite
def configs(draw: st.DrawFn) -> KMeansPalettizerConfig:
    """Draw any valid config."""
    return KMeansPalettizerConfig(
        global_config=draw(st.none() | modules(with_states=False)),
        module_type_configs=draw(st.dictionaries(TYPES, st.none() | modules(), max_size=2)),
        module_name_configs=draw(st.dictionaries(NAMES, st.none() | modules(), max_size=2)),
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
    )
