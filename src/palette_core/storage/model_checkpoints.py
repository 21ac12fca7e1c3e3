"""Save a palettized model's tensors to a packed checkpoint, and load one into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.torch_state import torch_state_kept
from palette_core._common.wrapped import inner_tensors, packs_away
from palette_core.config.names import type_name
from palette_core.errors import CheckpointError, StateError
from palette_core.storage.checkpoint_folders import read_checkpoint
from palette_core.storage.checkpoint_reading import Checkpoint
from palette_core.storage.checkpoint_writing import write_stored
from palette_core.storage.fitting import OwnStates, chain_prefix, with_memory
from palette_core.storage.forms.lookup import stored_form
from palette_core.storage.pack import install_packed
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.savers import guard_savers
from palette_core.storage.sites import palette_sites
from palette_core.storage.written_buffers import note_written, written_buffers

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """Write a prepared or finalized model's tensors to ``path``, whole or not at all.

    Buffers that the model writes when it runs, such as caches, are left out.

    Raises:
        StateError: no weight of the model is palettized, or one still trains dense.
        WeightFileError: a file that a weight is mapped from is missing or damaged.
        CheckpointError: look-up tables or scales are NaN or infinite, a tensor is on the meta
            device, torch has quantized a module, or the model has extra state
            (``nn.Module.get_extra_state``) that is neither a tensor nor a value that JSON holds
            exactly.
    """
    path = Path(path)
    _refuse_packed_away(model)
    packed_weights, aliases = _packed_weights(model)
    for packed in packed_weights.values():
        packed.check_file()
    dense, values = _rest(model, aliases)
    stored = {name: (packed.form, packed.stored()) for name, packed in packed_weights.items()}
    known = {name: packed.origin for name, packed in packed_weights.items()}
    origins = {name: origin for name, origin in known.items() if origin is not None}
    written = sorted(set(written_buffers(model)) & model.state_dict(keep_vars=True).keys())
    return write_stored(path, stored, dense, aliases, origins, values, written)


def load_checkpoint(path: str | Path, model: nn.Module) -> nn.Module:
    """Load a packed checkpoint, a file or a folder, into a dense model of the same architecture.

    The weights become packed ones, as after ``finalize(backend="packed")``, also where pruning or
    weight normalisation computes them; the rest is copied, but for buffers that the model writes
    when it runs, which no file holds and which may have any length. Tensors on the meta device get
    memory on the CPU, all of them. The model is not touched before everything has been found to
    fit, and as before after any error or interrupt.

    Raises:
        CheckpointError: the file or a tensor in it does not fit, or something on the meta device
            would stay there; the message lists what.
        StateError: the model is palettized already.
    """
    with torch_state_kept():
        if palette_sites(model):
            raise StateError("the model is palettized already; load into a fresh dense one")
        checkpoint = read_checkpoint(path)
        names = {
            name: [name, *(a for a, first in checkpoint.aliases.items() if first == name)]
            for name in checkpoint.palettized
        }
        own = OwnStates.of(model, [name for group in names.values() for name in group])
        problems = own.mismatches(checkpoint, names)
        if problems:
            raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
        rest: dict[str, Any] = {**checkpoint.dense, **checkpoint.values}
        rest |= {a: rest[first] for a, first in checkpoint.aliases.items() if first in rest}
        packed = {
            name: PackedWeight(
                tensor.to(_home(own.tensors[name])),
                stored_form(checkpoint.stored_forms[name]),
                checkpoint.origins.get(name),
            )
            for name, tensor in checkpoint.palettized.items()
        }
        owners = {name.rpartition(".")[0] for group in names.values() for name in group}
        with own.put_back(rest, map(model.get_submodule, owners)):
            with_memory(model, rest)
            with own.written():
                model.load_state_dict(rest, strict=False)
                own.fill_parts(rest)
            for name, item in packed.items():
                install_packed(model, names[name], item)
            note_written(model, checkpoint.written)
            guard_savers(model)
        return model


def _home(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _packed_weights(model: nn.Module) -> tuple[dict[str, PackedWeight], dict[str, str]]:
    """Return packed weights by name, and the further names of tied ones."""
    packed: dict[str, PackedWeight] = {}
    aliases: dict[str, str] = {}
    for site in palette_sites(model):
        aliases |= dict.fromkeys(site.names[1:], site.name)
        if isinstance(site.palette, PackedWeight):
            packed[site.name] = site.palette
        elif site.palette.is_enabled:
            site.palette.settle(site.dense())
            palette = site.palette
            packed[site.name] = PackedWeight(palette.palettized(), palette.form, palette.origin)
        else:
            raise StateError(
                f"{site.name} still trains dense, its PATSchedule has not come; finish training, "
                "or call finalize(), which clusters it as it is now"
            )
    if not packed:
        raise StateError("no weight of the model is palettized; call prepare() first")
    return packed, aliases


def _refuse_packed_away(model: nn.Module) -> None:
    """Refuse modules whose weights are in objects of torch's own, laid out for this processor.

    Raises:
        CheckpointError: naming the first.
    """
    for name, module in model.named_modules():
        kind = type_name(type(module))
        if packs_away(kind):
            raise CheckpointError(
                f"{name!r} is a {kind}, whose weights torch keeps in an object of its own, laid "
                "out for this processor; a checkpoint holds tensors. Leave torch's quantization "
                "out and palettize the float model, or save this one whole with torch.save"
            )


def _rest(model: nn.Module, aliases: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors that are not palettized, and values that are no tensors.

    Each tied tensor is there once; its other names go to ``aliases``.
    """
    palettized = tuple(chain_prefix(n) for site in palette_sites(model) for n in site.names)
    written = frozenset(written_buffers(model))
    first: dict[tuple[Any, ...], str] = {}
    dense: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, state in model.state_dict(keep_vars=True).items():
        if name.startswith(palettized) or name in written:
            continue
        if not isinstance(state, Tensor):
            values[name] = state
            continue
        if state.is_meta:
            raise CheckpointError(
                f"{name} is on the meta device and has no values; load them before saving"
            )
        for part, tensor in inner_tensors(state, name).items():
            _check_plain(part, tensor)
            key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if tensor.numel() and key in first:
                aliases[part] = first[key]
            else:
                first[key] = part
                dense[part] = tensor
    return dense, values


def _check_plain(name: str, tensor: Tensor) -> None:
    """Refuse what is no rectangle of numbers in memory.

    Raises:
        CheckpointError: naming the tensor and what it is.
    """
    if tensor.layout is not torch.strided:
        what = f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    elif tensor.is_quantized:
        what = f"quantized by torch ({str(tensor.dtype).removeprefix('torch.')})"
    else:
        return
    raise CheckpointError(
        f"{name} is {what}, which no checkpoint holds; make it dense (to_dense, dequantize) "
        "before saving, or keep it out of the state dictionary"
    )
