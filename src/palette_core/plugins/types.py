"""Types that the interfaces of plug-ins speak of, each imported when it is first asked for.

A module of hooks imports the interfaces, and is not to import torch for it. Annotations of the
interfaces name these types as attributes of this module, where `typing.get_type_hints` finds them.
"""

from typing import TYPE_CHECKING

from palette_core._common.lazy import lazy_names

if TYPE_CHECKING:
    from torch import Tensor, dtype
    from torch.nn import Module

    from palette_core.config.spec import PalettizationSpec, QuantizationSpec
    from palette_core.config.vectors import VectorKMeansConfig
    from palette_core.plugins.backends import Refusal, TensorFacts
    from palette_core.plugins.lut_quantizers import LutQuantizer
    from palette_core.plugins.training_problem import TrainingProblem
    from palette_core.tensors.codebook import Codebook, QuantizedLut
    from palette_core.tensors.input_views import InputView
    from palette_core.tensors.layout import BlockLayout, Shape
    from palette_core.tensors.moments import InputMoments
    from palette_core.tensors.palettized import PalettizedTensor
    from palette_core.tensors.stored import StoredTensor

__all__ = [
    "BlockLayout",
    "Codebook",
    "InputMoments",
    "InputView",
    "LutQuantizer",
    "Module",
    "PalettizationSpec",
    "PalettizedTensor",
    "QuantizationSpec",
    "QuantizedLut",
    "Refusal",
    "Shape",
    "StoredTensor",
    "Tensor",
    "TensorFacts",
    "TrainingProblem",
    "VectorKMeansConfig",
    "dtype",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torch": ["Tensor", "dtype"],
        "torch.nn": ["Module"],
        "palette_core.config.spec": ["PalettizationSpec", "QuantizationSpec"],
        "palette_core.config.vectors": ["VectorKMeansConfig"],
        "palette_core.plugins.backends": ["Refusal", "TensorFacts"],
        "palette_core.plugins.lut_quantizers": ["LutQuantizer"],
        "palette_core.plugins.training_problem": ["TrainingProblem"],
        "palette_core.tensors.codebook": ["Codebook", "QuantizedLut"],
        "palette_core.tensors.input_views": ["InputView"],
        "palette_core.tensors.layout": ["BlockLayout", "Shape"],
        "palette_core.tensors.moments": ["InputMoments"],
        "palette_core.tensors.palettized": ["PalettizedTensor"],
        "palette_core.tensors.stored": ["StoredTensor"],
    },
)
