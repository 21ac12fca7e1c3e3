from palette_core.config.spec import Granularity as Granularity
from palette_core.config.spec import PalettizationGranularity as PalettizationGranularity
from palette_core.config.spec import PalettizationSpec as PalettizationSpec
from palette_core.config.spec import PerGroupedChannelGranularity as PerGroupedChannelGranularity
from palette_core.config.spec import PerTensorGranularity as PerTensorGranularity
from palette_core.config.spec import QuantizationScheme as QuantizationScheme
from palette_core.config.spec import QuantizationSpec as QuantizationSpec
from palette_core.config.spec import (
    default_weight_palettization_spec as default_weight_palettization_spec,
)
