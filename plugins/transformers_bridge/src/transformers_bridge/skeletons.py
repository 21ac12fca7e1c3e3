"""Models of transformers without weights, for calibration block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping

from palette_core import Skeleton, plan_checkpoint
from palette_core.errors import CheckpointError
from transformers_bridge.experts import put_one_by_one
from transformers_bridge.routing import recipes


def skeleton(folder: str | Path) -> Skeleton:
    """Build the model of a dense checkpoint on the meta device, from its ``config.json``.

    It is the class that ``architectures`` names, in the dtype that `from_pretrained` would give
    it, without a cache of keys and values. Only headers of the weights are read. Experts that lie
    one by one on disk are linear layers of their own.

    Args:
        folder: with ``config.json`` and safetensors files, as ``save_pretrained`` writes them.

    Raises:
        CheckpointError: transformers has no class for it; or see `palette_core.plan_checkpoint`.
        OSError: there is no ``config.json``.
    """
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    for part in _parts(config):
        part.use_cache = False
    names = list(plan_checkpoint(folder).stored.values())
    with torch.device("meta"):
        model = _class_of(config, folder)._from_config(config, dtype=_dtype(config)).eval()
    _fill_buffers(model)
    conversions = get_model_conversion_mapping(model)
    found = dict.fromkeys(names, "")  # what is made of several tensors has no name
    made = list(recipes(names, (), conversions, model))
    for recipe in made:
        if recipe.converter is None and len(recipe.sources) == 1:
            found[recipe.sources[0].name] = recipe.target
    return Skeleton(model, names=found | put_one_by_one(model, made))


def offered(folder: str | Path) -> Skeleton | None:
    """Build the model of a checkpoint that has a ``config.json``; see `skeleton`."""
    return skeleton(folder) if (Path(folder) / "config.json").is_file() else None


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part)


def _class_of(config: Any, folder: str | Path) -> Any:
    architectures = config.architectures or ()
    found = getattr(transformers, architectures[0], None) if architectures else None
    if found is None:
        raise CheckpointError(
            f"{Path(folder) / 'config.json'} has architectures {architectures!r}; expected the "
            "name of a model of transformers in front"
        )
    return found


def _dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _fill_buffers(model: Any) -> None:
    """Give their values to the buffers that no checkpoint holds, such as rotary frequencies."""
    for name, buffer in list(model.named_non_persistent_buffers()):
        module, _, key = name.rpartition(".")
        model.get_submodule(module)._buffers[key] = torch.empty_like(buffer, device="cpu")
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model.initialize_weights()
