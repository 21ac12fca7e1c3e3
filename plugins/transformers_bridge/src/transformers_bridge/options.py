"""Fields of ``quantization_config`` in ``config.json``, and of the argument of that name."""

from __future__ import annotations

from typing import Any

from transformers.quantizers import auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from palette_core.errors import CheckpointError

METHOD = "palette"
SINGLE = "palette.safetensors"
INDEX = f"{SINGLE}.index.json"


@auto.register_quantization_config(METHOD)
class PaletteConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Way in which a palettized folder is opened.

    Args:
        dequantize: decode on load; the model is then a dense one like any other. False keeps the
            weights packed in memory, as `palette_core.load_checkpoint` does.
        weights: the file that holds the weights, or the index of several; of ``config.json``.
        dtype: of the dense checkpoint, for models whose ``config.json`` names none.
        format_version: of the packed checkpoint.
        quant_method: always ``palette``.

    Raises:
        CheckpointError: a value is none that ``palette palettize-checkpoint`` writes, or a field
            is unknown.
    """

    def __init__(
        self,
        *,
        dequantize: bool = False,
        weights: str = SINGLE,
        dtype: str | None = None,
        format_version: int | None = None,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        told = {"weights": (weights, (SINGLE, INDEX)), "quant_method": (quant_method, (METHOD,))}
        told["dequantize"] = (dequantize, (False, True))  # type: ignore[assignment]
        for name, (value, known) in told.items():
            if value not in known:
                wanted = " or ".join(repr(item) for item in known)
                raise CheckpointError(f"quantization_config: {name} is {value!r}, not {wanted}")
        if unknown:
            raise CheckpointError(
                f"quantization_config has {', '.join(sorted(unknown))}, which this version of "
                "transformers_bridge does not know; install the one that goes with the folder"
            )
        self.quant_method = METHOD
        self.dequantize = bool(dequantize)
        self.weights = weights
        self.dtype = dtype
        self.format_version = format_version

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return what an argument of ``from_pretrained`` changes of that in ``config.json``."""
        return {"dequantize": self.dequantize}

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds; how it is opened is for whoever opens it."""
        told = {"weights": self.weights, "dtype": self.dtype, "format_version": self.format_version}
        return {"quant_method": METHOD} | {k: v for k, v in told.items() if v is not None}


# Of the configurations that are given beside one in config.json, transformers heeds those listed.
auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*auto.LOADING_ATTRIBUTES_CONFIG_TYPES, PaletteConfig)
