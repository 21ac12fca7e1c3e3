"""``save_pretrained`` of a model with packed weights: a palettized folder once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from palette_core.errors import StateError
from palette_core.storage import (
    PackedWeight,
    PaletteSite,
    palette_sites,
    write_checkpoint,
)
from palette_core.tensors import PalettizedTensor
from transformers_bridge.fusing import PARTS
from transformers_bridge.options import SINGLE

_HARMLESS = {"push_to_hub": False, "max_shard_size": "50GB", "save_original_format": True}


class Saver:
    """Stands for ``save_pretrained`` of a model.

    Args:
        model: its owner.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self, save_directory: str | Path, is_main_process: bool = True, **options: Any
    ) -> None:
        """Write ``config.json`` and ``palette.safetensors``.

        Where the weights are dense by now, transformers' own method does its work.

        Args:
            save_directory: the folder, made where it is missing.
            is_main_process: nothing is written where it is False.
            options: others of transformers; those that ask for something else are refused.

        Raises:
            StateError: an option cannot be heeded.
            OSError: a file cannot be written.
        """
        model = self._model
        sites = palette_sites(model, PackedWeight)
        if not sites:
            del model.save_pretrained
            model.save_pretrained(save_directory, is_main_process=is_main_process, **options)
            return
        for name, value in options.items():
            if value is not None and value != _HARMLESS.get(name):
                raise StateError(
                    f"save_pretrained of a model with packed weights heeds no {name}={value!r}; "
                    "leave it out (push_to_hub of the model uploads the folder), or decode first: "
                    "model.dequantize()"
                )
        if is_main_process:
            _write(model, sites, Path(save_directory))


def _write(model: Any, sites: list[PaletteSite[PackedWeight]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stale = [path.name for path in folder.glob("*.safetensors*") if path.name != SINGLE]
    if stale:
        raise StateError(
            f"{folder} holds {', '.join(sorted(stale))}, which a new {SINGLE} would be mixed up "
            "with; name another folder, or remove what is in it"
        )
    packed = {_name(site, model): site.palette for site in sites}
    on_disk = dict(_palettized(model, packed))
    write_checkpoint(
        folder / SINGLE,
        {name: tensor for name, (tensor, _) in on_disk.items()},
        _dense(model, sites),
        stored_forms={name: weight.form.name for name, (_, weight) in on_disk.items()},
        origins={n: w.origin for n, (_, w) in on_disk.items() if w.origin is not None},
    )
    about = model.config.quantization_config
    about.weights, about.dtype = SINGLE, str(model.dtype).removeprefix("torch.")
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _name(site: PaletteSite[PackedWeight], model: Any) -> str:
    tied = model.all_tied_weights_keys
    return next((name for name in site.names if name not in tied), site.name)


def _palettized(
    model: Any, packed: dict[str, PackedWeight]
) -> Iterator[tuple[str, tuple[PalettizedTensor, PackedWeight]]]:
    """Yield palettized tensors by their names in a folder, with what they are taken from."""
    for name, weight in packed.items():
        whole = weight.palettized()
        parts: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            tensor = getattr(whole, part)
            if tensor is not None:
                for key, value in revert_weight_conversion(model, {name: tensor}).items():
                    parts.setdefault(key, {})[part] = value
        for key, found in parts.items():
            fewer = whole.indices.dim() - found["indices"].dim()
            yield key, (replace(whole, axis=whole.axis - fewer, **found), weight)


def _dense(model: Any, sites: list[PaletteSite[PackedWeight]]) -> dict[str, Tensor]:
    chains = tuple(
        f"{prefix}{dot}parametrizations.{state}."
        for site in sites
        for prefix, dot, state in (name.rpartition(".") for name in site.names)
    )
    left_out = set(model._keys_to_ignore_on_save or ())
    state: dict[str, Any] = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(chains) and name not in left_out
    }
    state = remove_tied_weights_from_state_dict(state, model)
    found: dict[str, Tensor] = revert_weight_conversion(model, state)
    return found
