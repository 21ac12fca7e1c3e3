"""``save_pretrained`` of a model with packed weights: a palettized folder once more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
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
from transformers_bridge.options import INDEX, SINGLE

_HARMLESS = {"push_to_hub": False, "save_original_format": True}
_SHARD = "50GB"  # as transformers has it
_FILES = SINGLE.replace(".", "{suffix}.")


class Saver:
    """Stands for ``save_pretrained`` of a model.

    Args:
        model: its owner.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        max_shard_size: int | str | None = None,
        **options: Any,
    ) -> None:
        """Write ``config.json`` and ``palette.safetensors``, or several files and their index.

        Where the weights are dense by now, transformers' own method does its work.

        Args:
            save_directory: the folder, made where it is missing.
            is_main_process: nothing is written where it is False.
            max_shard_size: of a file, in bytes or as ``"5GB"``; None is 50 GB. A larger weight has
                a file of its own.
            options: others of transformers; those that ask for something else are refused.

        Raises:
            StateError: an option cannot be heeded.
            OSError: a file cannot be written.
        """
        model = self._model
        sites = palette_sites(model, PackedWeight)
        if not sites:
            del model.save_pretrained
            if max_shard_size is not None:
                options["max_shard_size"] = max_shard_size
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
            _write(model, sites, Path(save_directory), max_shard_size or _SHARD)


def _write(
    model: Any, sites: list[PaletteSite[PackedWeight]], folder: Path, max_size: int | str
) -> None:
    packed = {_name(site, model): site.palette for site in sites}
    weights, dense = _Weights(dict(_palettized(model, packed))), _dense(model, sites)
    sizes = weights.sizes() | {name: tensor.nbytes for name, tensor in dense.items()}
    files = _split(sizes, max_size)
    folder.mkdir(parents=True, exist_ok=True)
    head = SINGLE if [*files] == [SINGLE] else INDEX
    stale = {path.name for path in folder.glob("*.safetensors*")} - {*files, head}
    if stale:
        raise StateError(
            f"{folder} holds {', '.join(sorted(stale))}, which a new {head} would be mixed up "
            "with; name another folder, or remove what is in it"
        )
    # Until the last file is there, none of an earlier time is taken for whole.
    (folder / INDEX).unlink(missing_ok=True)
    for file, names in files.items():
        weights.write(folder / file, names, {name: dense[name] for name in names if name in dense})
    if head == INDEX:
        _write_index(folder, [*files], sum(sizes.values()))
    about = model.config.quantization_config
    about.weights, about.dtype = head, str(model.dtype).removeprefix("torch.")
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


@dataclass(frozen=True)
class _Weights:
    """Palettized weights of a folder, by their names there, each with what it is taken from."""

    found: Mapping[str, tuple[PalettizedTensor, PackedWeight]]

    def sizes(self) -> dict[str, int]:
        """Return bytes on disk by name: of a stack as much as there is of it."""
        return {
            name: sum(buffer.nbytes for buffer in weight.buffers())
            * tensor.indices.numel()
            // weight.palettized().indices.numel()
            for name, (tensor, weight) in self.found.items()
        }

    def write(self, path: Path, names: Iterable[str], dense: Mapping[str, Tensor]) -> None:
        """Write some of them, with dense tensors, to a file."""
        mine = {name: self.found[name] for name in names if name in self.found}
        write_checkpoint(
            path,
            {name: tensor for name, (tensor, _) in mine.items()},
            dense,
            stored_forms={name: weight.form.name for name, (_, weight) in mine.items()},
            origins={n: w.origin for n, (_, w) in mine.items() if w.origin is not None},
        )


def _split(sizes: Mapping[str, int], max_size: int | str) -> dict[str, list[str]]:
    """Return the names of the tensors of each file, by its name."""
    stand_ins = {
        name: torch.empty(size, dtype=torch.uint8, device="meta") for name, size in sizes.items()
    }
    split = split_torch_state_dict_into_shards(
        stand_ins, filename_pattern=_FILES, max_shard_size=max_size
    )
    files: dict[str, list[str]] = split.filename_to_tensors
    return files


def _write_index(folder: Path, files: Iterable[str], total_size: int) -> None:
    """Write the index of a folder's files."""
    places: dict[str, str] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    told = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(places.items()))}
    fresh = folder / f"{INDEX}.tmp"
    fresh.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    fresh.replace(folder / INDEX)


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
