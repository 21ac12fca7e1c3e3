"""All that an author of plug-ins imports: interfaces and records by kind, and the hooks' marker.

A plug-in hands the core *entries*: small frozen records with a name, a summary, an options model
and a factory. The core validates the user's options against the model, calls the factory with
them, and uses the object it gets through one of the abstract classes here. Weights never pass
through a hook. Importing this package imports no torch, so that a module of hooks need not.
"""

from typing import TYPE_CHECKING

from palette_core._common.lazy import lazy_names
from palette_core.plugins.backends import (
    Backend,
    ExportBackendEntry,
    ProgramWeight,
    Refusal,
    TensorFacts,
)
from palette_core.plugins.clusterers import Clusterer, ClustererEntry, ClusterProblem
from palette_core.plugins.commands import Command, CommandEntry
from palette_core.plugins.entries import INTERFACE_VERSION, NoOptions, PluginEntry
from palette_core.plugins.granularities import Granularity, GranularityEntry
from palette_core.plugins.lut_quantizers import LutQuantizer, LutQuantizerEntry
from palette_core.plugins.markers import hookimpl
from palette_core.plugins.metrics import (
    Candidate,
    ModelOutputs,
    SensitivityMetric,
    SensitivityMetricEntry,
)
from palette_core.plugins.operations import (
    Consumption,
    Operation,
    OperationCall,
    OperationEntry,
)
from palette_core.plugins.stored_forms import Part, StoredForm, StoredFormEntry
from palette_core.plugins.training import TrainingStrategy, TrainingStrategyEntry

if TYPE_CHECKING:
    from palette_core.config.granularity import (
        PerGroupedChannelGranularity,
        PerTensorGranularity,
    )
    from palette_core.config.spec import PalettizationSpec, QuantizationScheme, QuantizationSpec
    from palette_core.config.vectors import VectorKMeansConfig
    from palette_core.plugins.catalog import get_catalog
    from palette_core.plugins.options import validate_options
    from palette_core.plugins.training_problem import TrainingProblem
    from palette_core.tensors.moments import InputMoments

__all__ = [
    "INTERFACE_VERSION",
    "Backend",
    "Candidate",
    "ClusterProblem",
    "Clusterer",
    "ClustererEntry",
    "Command",
    "CommandEntry",
    "Consumption",
    "ExportBackendEntry",
    "Granularity",
    "GranularityEntry",
    "InputMoments",
    "LutQuantizer",
    "LutQuantizerEntry",
    "ModelOutputs",
    "NoOptions",
    "Operation",
    "OperationCall",
    "OperationEntry",
    "PalettizationSpec",
    "Part",
    "PerGroupedChannelGranularity",
    "PerTensorGranularity",
    "PluginEntry",
    "ProgramWeight",
    "QuantizationScheme",
    "QuantizationSpec",
    "Refusal",
    "SensitivityMetric",
    "SensitivityMetricEntry",
    "StoredForm",
    "StoredFormEntry",
    "TensorFacts",
    "TrainingProblem",
    "TrainingStrategy",
    "TrainingStrategyEntry",
    "VectorKMeansConfig",
    "get_catalog",
    "hookimpl",
    "validate_options",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "palette_core.config.granularity": [
            "PerGroupedChannelGranularity",
            "PerTensorGranularity",
        ],
        "palette_core.config.spec": [
            "PalettizationSpec",
            "QuantizationScheme",
            "QuantizationSpec",
        ],
        "palette_core.config.vectors": ["VectorKMeansConfig"],
        "palette_core.plugins.catalog": ["get_catalog"],
        "palette_core.plugins.options": ["validate_options"],
        "palette_core.plugins.training_problem": ["TrainingProblem"],
        "palette_core.tensors.moments": ["InputMoments"],
    },
)
