"""Save a palettized model's tensors to a packed checkpoint, and load one into a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core.errors import CheckpointError, PaletteWarning, StateError, did_you_mean
from palette_core.model.parametrization import ModuleSnapshot
from palette_core.storage.checkpoint_reading import (
    Checkpoint,
    read_checkpoint,
)
from palette_core.storage.checkpoint_writing import write_stored
from palette_core.storage.forms.registry import stored_form
from palette_core.storage.pack import install_packed
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import palette_sites
from palette_core.tensors.dtypes import dtype_name

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """Write a prepared or finalized model's tensors to ``path``, whole or not at all.

    Extra state that is no tensor (``nn.Module.get_extra_state``) is left out, with a warning.

    Raises:
        StateError: no weight of the model is palettized, or one still trains dense.
        WeightFileError: a file that a weight is mapped from is missing or damaged.
        CheckpointError: look-up tables or scales are NaN or infinite.
    """
    path = Path(path)
    packed_weights, aliases = _packed_weights(model)
    for packed in packed_weights.values():
        packed.check_file()
    dense = _dense_tensors(model, aliases)
    stored = {name: (packed.form, packed.stored()) for name, packed in packed_weights.items()}
    known = {name: packed.origin for name, packed in packed_weights.items()}
    origins = {name: origin for name, origin in known.items() if origin is not None}
    return write_stored(path, stored, dense, aliases, origins)


def load_checkpoint(path: str | Path, model: nn.Module) -> nn.Module:
    """Load a packed checkpoint into a dense model of the same architecture, in place.

    The weights become packed ones, as after ``finalize(backend="packed")``; the rest is copied.
    The model is not touched before everything has been found to fit, and as before after any
    error or interrupt.

    Raises:
        CheckpointError: the file or a tensor in it does not fit; the message lists what.
        StateError: the model is palettized already.
    """
    if palette_sites(model):
        raise StateError("the model is palettized already; load into a fresh dense one")
    checkpoint = read_checkpoint(path)
    names = {
        name: [name, *(a for a, first in checkpoint.aliases.items() if first == name)]
        for name in checkpoint.palettized
    }
    own = _own_tensors(model, [name for group in names.values() for name in group])
    problems = _mismatches(checkpoint, names, own)
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
    dense = dict(checkpoint.dense)
    for alias, first in checkpoint.aliases.items():
        if first in dense:
            dense[alias] = dense[first]
    packed = {
        name: PackedWeight(
            tensor.to(own[name].device),
            stored_form(checkpoint.stored_forms[name]),
            checkpoint.origins.get(name),
        )
        for name, tensor in checkpoint.palettized.items()
    }
    owners = {name.rpartition(".")[0] for group in names.values() for name in group}
    kept = ModuleSnapshot(model.get_submodule(owner) for owner in owners)
    before = {name: own[name].detach().clone() for name in dense if name in own}
    try:
        model.load_state_dict(dense, strict=False)
        for name, item in packed.items():
            install_packed(model, names[name], item)
    except BaseException:
        kept.restore()
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)
        raise
    return model


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


def _dense_tensors(model: nn.Module, aliases: dict[str, str]) -> dict[str, Tensor]:
    """Return what is not palettized, each tied tensor once; its other names go to ``aliases``."""
    palettized = tuple(_chain_prefix(n) for site in palette_sites(model) for n in site.names)
    first: dict[tuple[Any, ...], str] = {}
    dense: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.startswith(palettized):
            continue
        if not isinstance(tensor, Tensor):
            warnings.warn(
                f"{name} is a {type(tensor).__name__}, not a tensor; the checkpoint leaves it out",
                PaletteWarning,
                stacklevel=3,
            )
            continue
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            dense[name] = tensor
    return dense


def _chain_prefix(name: str) -> str:
    """Return how the names of everything behind a parametrized tensor begin."""
    module, _, state = name.rpartition(".")
    return f"{module}.parametrizations.{state}." if module else f"parametrizations.{state}."


def _own_tensors(model: nn.Module, palettized: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors that a file must fit, by plain name.

    Of ``palettized``, those that are computed (parametrized in some other way) or that a state
    dictionary leaves out are in it too.
    """
    state_dict = model.state_dict(keep_vars=True)
    own = {name: t for name, t in state_dict.items() if isinstance(t, Tensor)}
    for name in palettized:
        prefix, _, state = name.rpartition(".")
        try:
            value = getattr(model.get_submodule(prefix), state)
        except AttributeError:
            continue
        if isinstance(value, Tensor) and name not in own:
            chain = _chain_prefix(name)
            own = {key: t for key, t in own.items() if not key.startswith(chain)}
            own[name] = value
    return own


def _mismatches(
    checkpoint: Checkpoint, names: Mapping[str, list[str]], own: Mapping[str, Tensor]
) -> list[str]:
    problems = []
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, tensor in checkpoint.palettized.items():
        wanted |= dict.fromkeys(names[name], (tensor.shape, tensor.dtype))
    for name, dense in checkpoint.dense.items():
        wanted[name] = (tuple(dense.shape), dense.dtype)
    for alias, first in checkpoint.aliases.items():
        if first in wanted:
            wanted[alias] = wanted[first]
    for name, (shape, dtype) in wanted.items():
        if name not in own:
            problems.append(f"the model has no {name}{did_you_mean(name, own)}")
        elif torch.nn.parameter.is_lazy(own[name]):
            problems.append(f"{name} has no shape yet; run the model once before loading")
        elif tuple(own[name].shape) != shape:
            problems.append(
                f"{name} has shape {tuple(own[name].shape)} in the model, {shape} in the file"
            )
        elif own[name].dtype is not dtype:
            problems.append(
                f"{name} is {dtype_name(own[name].dtype)} in the model, {dtype_name(dtype)} in "
                "the file; cast the model before loading, or the loaded one afterwards"
            )
    problems += [f"the file lacks {name}" for name in own if name not in wanted]
    return problems
