"""What a plug-in implements, and the records by which it is registered.

A plug-in hands the core *entries*: small frozen records with a name, a summary, an options model
and a factory. The core validates the user's options against the model, calls the factory with
them, and uses the object it gets through one of the abstract classes here. Weights never pass
through a hook.
"""

from palette_core.plugins.backends import Backend, Refusal, TensorFacts
from palette_core.plugins.clustering import Clusterer, ClusterProblem, LutQuantizer
from palette_core.plugins.entries import (
    INTERFACE_VERSION,
    ClustererEntry,
    ExportBackendEntry,
    GranularityEntry,
    LutQuantizerEntry,
    NoOptions,
    PluginEntry,
    SensitivityMetricEntry,
    TrainingStrategyEntry,
)
from palette_core.plugins.metrics import Candidate, ModelOutputs, SensitivityMetric
from palette_core.plugins.training import TrainingStrategy
from palette_core.tensors.moments import InputMoments

__all__ = [
    "INTERFACE_VERSION",
    "Backend",
    "Candidate",
    "ClusterProblem",
    "Clusterer",
    "ClustererEntry",
    "ExportBackendEntry",
    "GranularityEntry",
    "InputMoments",
    "LutQuantizer",
    "LutQuantizerEntry",
    "ModelOutputs",
    "NoOptions",
    "PluginEntry",
    "Refusal",
    "SensitivityMetric",
    "SensitivityMetricEntry",
    "TensorFacts",
    "TrainingStrategy",
    "TrainingStrategyEntry",
]
