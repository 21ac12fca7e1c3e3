"""``from_pretrained`` of transformers for folders of ``palette palettize-checkpoint``.

To import this package is enough: it registers a quantizer under the name that ``config.json`` of
such a folder has in its ``quantization_config``. Without it, transformers finds no weights there.
"""

from transformers_bridge.bundles import export_decoder, export_speech
from transformers_bridge.decoders import CachedDecoder
from transformers_bridge.options import PaletteConfig
from transformers_bridge.quantizer import PaletteQuantizer
from transformers_bridge.skeletons import skeleton
from transformers_bridge.speech import SpeechDecoder, SpeechEncoder

__all__ = [
    "CachedDecoder",
    "PaletteConfig",
    "PaletteQuantizer",
    "SpeechDecoder",
    "SpeechEncoder",
    "export_decoder",
    "export_speech",
    "skeleton",
]
