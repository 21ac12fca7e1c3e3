"""Experts that are stacked in memory, as they lie on disk: one by one, in linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import Concatenate, MergeModulelist

from transformers_bridge.routing import Recipe

_LAST = "down_proj"
_STACKED = [(MergeModulelist, 0)]
_JOINED = [*_STACKED, (Concatenate, 1)]  # of layers to the inner width
_ODD = ("has_bias", "has_post_expert_norm", "is_transposed")


class OneByOne(nn.Module):
    """Experts of a mixture, each in linear layers of its own.

    What happens between their layers is up to the module in whose place it is.

    Args:
        stacked: the module of transformers with all experts in two weights, which are let go.
        first: names of the layers before the activation.
        last: name of the one behind it.
    """

    def __init__(self, stacked: Any, first: Sequence[str], last: str) -> None:
        super().__init__()
        vars(self)["_stacked"] = stacked  # no module of this one: it has no states by now
        self._first, self._last, self._count = tuple(first), last, stacked.num_experts
        weights = dict(stacked.named_parameters())
        down = weights[_LAST]
        outer, inner = down.shape[1:]
        for name in weights:
            delattr(stacked, name)
        for number in range(self._count):
            layers = {name: _layer(outer, inner, down.dtype) for name in first}
            layers[last] = _layer(inner, outer, down.dtype)
            self.add_module(str(number), nn.ModuleDict(layers))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return what the chosen experts make of each row, by its weights for them."""
        result = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if number >= self._count:
                continue
            expert: Any = self.get_submodule(str(number))
            row, place = torch.where(top_k_index == number)
            x = torch.cat([expert[name](hidden_states[row]) for name in self._first], dim=-1)
            x = expert[self._last](self._activated(x)) * top_k_weights[row, place, None]
            result.index_add_(0, row, x.to(result.dtype))
        return result

    def _activated(self, x: Tensor) -> Tensor:
        stacked = vars(self)["_stacked"]
        found: Tensor = stacked._apply_gate(x) if stacked.has_gate else stacked.act_fn(x)
        return found


def _layer(columns: int, rows: int, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False, device="meta", dtype=dtype)


def put_one_by_one(model: Any, recipes: Sequence[Recipe]) -> dict[str, str]:
    """Let experts that lie one by one on disk do so in a model, too.

    Those with biases, or whose two weights are made in another way, are left as they are.

    Args:
        model: on the meta device; its modules of experts are exchanged.
        recipes: for its weights.

    Returns:
        the names in the model of what was exchanged, by those on disk.
    """
    by_module: dict[str, dict[str, Recipe]] = {}
    for recipe in recipes:
        module, _, state = recipe.target.rpartition(".")
        if recipe.converter is not None:
            by_module.setdefault(module, {})[state] = recipe
    names: dict[str, str] = {}
    for module, made in by_module.items():
        stacked = model.get_submodule(module)
        layers = _layers(stacked, made)
        if not layers:
            continue
        *first, last = layers
        model.set_submodule(module, OneByOne(stacked, first, last))
        for layer, sources in layers.items():
            for number, source in enumerate(sources):
                names[source] = f"{module}.{number}.{layer}.weight"
    return names


def _layers(stacked: Any, made: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Return the names on disk of each layer of all experts, the last layer last.

    Nothing where `OneByOne` cannot stand for the module.
    """
    if not hasattr(stacked, "_apply_gate") or any(getattr(stacked, name, True) for name in _ODD):
        return {}
    up = "gate_up_proj" if stacked.has_gate else "up_proj"
    if {*made} != {up, _LAST} or {*made} != {name for name, _ in stacked.named_parameters()}:
        return {}
    found: dict[str, list[str]] = {}
    for state, form in ((up, _JOINED if stacked.has_gate else _STACKED), (_LAST, _STACKED)):
        converter = made[state].converter
        if [(type(op), getattr(op, "dim", None)) for op in converter.operations] != form:
            return {}
        for pattern in converter.source_patterns:
            sources = [item.name for item in made[state].sources if item.pattern == pattern]
            if len(sources) != stacked.num_experts:
                return {}
            found[sources[0].removesuffix(".weight").rpartition(".")[2]] = sources
    return found
