from palette_core.allocation import Allocation as Allocation
from palette_core.allocation import Compared as Compared
from palette_core.allocation import allocate as allocate
from palette_core.allocation import compare_predictions as compare_predictions
from palette_core.config import KMeansPalettizerConfig as KMeansPalettizerConfig
from palette_core.config import ModuleKMeansPalettizerConfig as ModuleKMeansPalettizerConfig
from palette_core.config import OpKMeansPalettizerConfig as OpKMeansPalettizerConfig
from palette_core.config import PATSchedule as PATSchedule
from palette_core.config import VectorKMeansConfig as VectorKMeansConfig
from palette_core.config.spec import PalettizationSpec as PalettizationSpec
from palette_core.config.spec import PerGroupedChannelGranularity as PerGroupedChannelGranularity
from palette_core.config.spec import PerTensorGranularity as PerTensorGranularity
from palette_core.config.spec import QuantizationScheme as QuantizationScheme
from palette_core.config.spec import QuantizationSpec as QuantizationSpec
from palette_core.config.spec import (
    default_weight_palettization_spec as default_weight_palettization_spec,
)
from palette_core.errors import PaletteError as PaletteError
from palette_core.errors import PaletteWarning as PaletteWarning
from palette_core.palettizer import ExportBackend as ExportBackend
from palette_core.palettizer import KMeansPalettizer as KMeansPalettizer
from palette_core.palettizer.in_one_call import Palettized as Palettized
from palette_core.palettizer.in_one_call import palettize as palettize
from palette_core.plugins.export_requests import ExportFunction as ExportFunction
from palette_core.plugins.export_requests import ExportPart as ExportPart
from palette_core.reporting.run_comparison import RunComparison as RunComparison
from palette_core.reporting.run_comparison import compare_runs as compare_runs
from palette_core.storage.bits import bits_per_weight as bits_per_weight
from palette_core.storage.model_checkpoints import load_checkpoint as load_checkpoint
from palette_core.storage.model_checkpoints import read_checkpoint as read_checkpoint
from palette_core.storage.model_checkpoints import save_checkpoint as save_checkpoint
from palette_core.streaming import Skeleton as Skeleton
from palette_core.streaming import palettize_checkpoint as palettize_checkpoint
from palette_core.streaming import plan_checkpoint as plan_checkpoint
from palette_core.tensors.palettized import PalettizedTensor as PalettizedTensor
from palette_core.version import __version__ as __version__
