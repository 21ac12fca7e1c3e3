"""The quantizer: what transformers calls while it opens a palettized folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantizer

from palette_core.errors import CheckpointError
from palette_core.storage import fold, guard_savers, install_packed
from transformers_bridge.loading import PART, Folder, Maker, Tokens
from transformers_bridge.options import METHOD, PaletteConfig
from transformers_bridge.saving import Saver


@register_quantizer(METHOD)
class PaletteQuantizer(HfQuantizer):  # type: ignore[misc]
    """Opens palettized folders; see `PaletteConfig` for the two ways."""

    requires_calibration = False
    quantization_config: PaletteConfig
    _files: list[str] | None = None
    _folder: Folder | None = None
    _sizes: dict[str, int]
    _conversions: list[Any]

    # --- in the order in which transformers calls ------------------------------------------------

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse dense folders, and maps of devices over which packed weights cannot be spread.

        It is called once more where ``device_map="auto"`` has become a map.

        Raises:
            CheckpointError: the folder is not palettized, or weights that stay packed are to be
                on several devices or on the disk.
        """
        if not self.pre_quantized:
            raise CheckpointError(
                "PaletteConfig opens folders that are palettized; this one is dense. Palettize it "
                "first: palette palettize-checkpoint SRC -c config.yaml -o OUT"
            )
        if isinstance(device_map, dict) and not self.quantization_config.dequantize:
            _check_one_place(device_map)

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the files, and the dtype where the configuration has none."""
        config.transformers_weights = self.quantization_config.weights
        if getattr(config, "dtype", None) is None:
            config.dtype = self.quantization_config.dtype
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        self._files = list(checkpoint_files or ())

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Put the makers of palettized weights in front of all conversions."""
        if not self._files:
            return weight_conversions
        if getattr(model.config, "distributed_config", None) is not None:
            raise CheckpointError(
                "palettized folders are not cut over several processes on load; leave out tp_plan "
                "and distributed_config, or cut a dense checkpoint"
            )
        self._conversions = weight_conversions
        self._folder = Folder(
            Path(self._files[0]).parent,
            weight_conversions,
            model,
            keep_packed=not self.quantization_config.dequantize,
        )
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            f"{PART}$",
        }
        return [Tokens(self._folder.routes()), Maker(self._folder), *weight_conversions]

    def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
        """Return bytes per element, which decide what fits on a device."""
        folder = self._folder
        recipe = None if folder is None else folder.recipes.get(param_name)
        if folder is None or recipe is None or not folder.keep_packed:
            usual: float = super().param_element_size(model, param_name, param)
            return usual
        if not vars(self).get("_sizes"):
            self._sizes = dict(_sizes(self._files or []))
        names = [source.name for source in recipe.sources]
        own = (f"{name}." for name in names)
        parts = [name for start in own for name in self._sizes if name.startswith(start)]
        size: float = sum(self._sizes[part] for part in parts) / param.numel()
        return size

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Return None for what makers take, which learn the dtype of their weight here."""
        if isinstance(converter, Maker):
            converter.dtype = dtype
            return None
        return super().get_new_dtype(converter, param, dtype)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        folder, self._folder = self._folder, None
        del model.config.transformers_weights
        if folder is None:
            return model
        folder.close()
        model._weight_conversions = [item for item in self._conversions if item.was_used()]
        if not folder.keep_packed:
            return model
        for names, target in _places(model, list(folder.packed)):
            install_packed(model, names, folder.packed[target])
        guard_savers(model)
        model.save_pretrained = Saver(model)
        return model

    # --- afterwards ------------------------------------------------------------------------------

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        fold(model)
        return model if dtype is None else model.to(dtype)

    def is_serializable(self) -> bool:
        """Return False: transformers' own way writes model.safetensors, which says too little."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Return False: packed weights take no gradients."""
        return False


def _sizes(files: list[str]) -> Iterator[tuple[str, int]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_slice(name)
                bits = re.search(r"\d+", tensor.get_dtype())
                count = torch.Size(tensor.get_shape()).numel()
                yield name, count * (int(bits[0]) if bits else 8) // 8


def _check_one_place(device_map: Mapping[str, Any]) -> None:
    places = {str(place) for place in device_map.values()}
    if len(places) > 1 or "disk" in places:
        raise CheckpointError(
            f"packed weights are not spread over {', '.join(sorted(places))}; give a device_map of "
            "one device, or decode on load: quantization_config=PaletteConfig(dequantize=True)"
        )


def _places(model: Any, targets: list[str]) -> Iterator[tuple[list[str], str]]:
    """Yield the names at which a packed weight hangs, and the one under which it was made."""
    tied: dict[str, list[str]] = {}
    for name, first in model.all_tied_weights_keys.items():
        tied.setdefault(first, [first]).append(name)
    groups = {name: group for group in tied.values() for name in group}
    done: set[str] = set()
    for target in targets:
        names = groups.get(target, [target])
        if done.isdisjoint(names):
            yield names, target
        done |= {*names}
