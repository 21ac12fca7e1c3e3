"""Prepare a model from a state dictionary of one that was prepared, without clustering.

What palettes there are, and of which shape, comes from the plan alone; the dictionary has to hold
exactly that. Nothing of the model changes unless all of it fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered, Report, make_report
from palette_core.engine.sparsity import find_zeros
from palette_core.engine.views import view_of
from palette_core.errors import StateDictError, WeightError
from palette_core.model.hooked_weights import is_replaceable
from palette_core.model.parametrization import parametrizations
from palette_core.palettizer.attaching import attach_palettes
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.palettizer.state_values import not_plain, same_values
from palette_core.palettizer.stored_parts import UnfitError
from palette_core.palettizer.stored_states import StoredPalette, read_palette
from palette_core.planning import Plan, TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.statistics.gradients.reading import read_sensitivities
from palette_core.storage.fitting import OwnStates
from palette_core.storage.sites import PaletteSite, palette_sites
from palette_core.tensors.distortion import square_sums
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.palettized import PalettizedTensor

_TOLD = 20  # problems that are told one by one


def attach_stored(
    model: nn.Module,
    plan: Plan,
    state_dict: Mapping[str, Any],
    catalog: Catalog,
    *,
    sensitivity_path: str | Path | None = None,
    trust: bool = False,
) -> Report:
    """Install the palettes of a state dictionary, and take over all else that it holds.

    Args:
        model: the dense model that the plan is of.
        plan: what to do with which weight.
        state_dict: of a prepared model, ours or the reference's.
        catalog: the installed plug-ins.
        sensitivity_path: sensitivities to keep for clusterings to come, of the stored weights.
        trust: take sensitivities of other weights.

    Returns:
        what stands in the model now, judged by the stored weights.

    Raises:
        TypeError: ``state_dict`` is no mapping from names.
        StateDictError: it does not fit; the message names every problem.
        WeightError: a dense original is NaN or infinite.
        SensitivityError: the file does not fit.
    """
    given: object = state_dict
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise TypeError(
            f"state_dict must be a mapping from names to tensors, got "
            f"{type(given).__name__}; torch.load(path, weights_only=True) reads one"
        )
    _refuse(_wrapped(model, state_dict))
    found = _read(model, plan, state_dict, catalog)
    results = [Clustered(f.palettized, 0.0, 0.0, 0.0, t.algorithm) for t, f in found]
    # The weights are still the model's own, and are looked at only once they are the dictionary's.
    blank = [Job(tensor, torch.empty(0)) for tensor in plan]
    own = OwnStates.of(model, ())
    with own.put_back([*own.tensors, *own.values], model.modules()):
        attach_palettes(model, blank, results, None, catalog)
        _load(model, own, _complete(model, state_dict, found))
        return make_report(plan, _finished(model, plan, results, sensitivity_path, trust=trust))


def _wrapped(model: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """Return what is wrong where the dictionary is of something that holds the model."""
    first = {name.partition(".")[0] for name in state_dict if "." in name}
    if len(first) != 1 or first <= {*dict(model.named_children()), "parametrizations"}:
        return []
    outer = first.pop()
    if not all(name.startswith(f"{outer}.") for name in state_dict):
        return []
    return [
        f"every name begins with {outer!r}, which the model has not, as when DataParallel or "
        f"torch.compile wraps it; take the state_dict() of the model inside, or cut '{outer}.' off"
    ]


_Found = list[tuple[TensorPlan, StoredPalette]]


def _read(model: nn.Module, plan: Plan, state_dict: Mapping[str, Any], catalog: Catalog) -> _Found:
    """Return what a dictionary holds of every palette.

    Raises:
        StateDictError: parts are missing, or do not fit the plan.
    """
    problems: list[str] = []
    found: _Found = []
    for tensor in plan:
        prefixes = [_prefix(model, owner.module, owner.state) for owner in tensor.owners]
        try:
            read = read_palette(tensor, prefixes, state_dict, catalog)
        except UnfitError as problem:
            problems.append(str(problem))
            continue
        where = getattr(model.get_submodule(tensor.owners[0].module), tensor.owners[0].state)
        found.append((tensor, replace(read, palettized=_apart(read.palettized, where.device))))
    _refuse(problems)
    return found


def _apart(palettized: PalettizedTensor, device: torch.device) -> PalettizedTensor:
    """Return parts that are nobody else's, on a device."""
    parts: dict[str, Any] = {
        name: part.detach().clone() if isinstance(part, Tensor) else part
        for name, part in vars(palettized).items()
    }
    return PalettizedTensor(**parts).to(device)


def _prefix(model: nn.Module, module: str, state: str) -> str:
    """Return what the names of a palette's parts will begin with."""
    owner, at = model.get_submodule(module), 0
    if parametrize.is_parametrized(owner, state):
        at = len(list(parametrizations(owner)[state].children()))
    elif is_replaceable(owner, state):
        at = 1
    return f"{module}{'.' if module else ''}parametrizations.{state}.{at}."


def _complete(model: nn.Module, state_dict: Mapping[str, Any], found: _Found) -> dict[str, Any]:
    """Return a dictionary by the names that the model has now.

    Raises:
        StateDictError: other names are in it, or shapes and dtypes.
    """
    expected = model.state_dict(keep_vars=True)
    # Palettes in another program's layout have been understood, and stand in the model already.
    foreign = tuple(p for _, read in found if read.is_foreign for p in read.prefixes)
    given = {k: v for k, v in state_dict.items() if not (foreign and k.startswith(foreign))}
    given |= {k: v for k, v in expected.items() if foreign and k.startswith(foreign)}
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    problems = [f"missing: {', '.join(missing)}"] if missing else []
    problems += [f"not of the prepared model: {', '.join(unknown)}"] if unknown else []
    problems += filter(None, (_other(n, given[n], t) for n, t in expected.items() if n in given))
    _refuse(problems)
    problems += _torn(expected, given)
    _refuse(problems)
    made = type(expected)(given)
    made._metadata = getattr(state_dict, "_metadata", expected._metadata)  # type: ignore[attr-defined]
    return made


def _other(name: str, value: Any, expected: Any) -> str:
    """Return in what a value differs from what the model has, or nothing."""
    if not isinstance(expected, Tensor) or torch.nn.parameter.is_lazy(expected):
        return ""
    problem = not_plain(value)
    if problem and not (expected.is_meta and getattr(value, "is_meta", False)):
        return f"{name} {problem}"
    if value.shape != expected.shape:
        return f"{name} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
    if value.dtype != expected.dtype:
        return (
            f"{name} is {dtype_name(value.dtype)}, expected {dtype_name(expected.dtype)}; cast "
            "the model before preparing it"
        )
    return ""


def _torn(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Name the tensors, one in the model, of which the dictionary has several that differ."""
    first: dict[int, str] = {}
    problems = []
    for name, tensor in expected.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            continue
        known = first.setdefault(id(tensor), name)
        if not same_values(given[known], given[name]):
            problems.append(f"{name} is tied to {known}, and has other values")
    return problems


def _load(model: nn.Module, own: OwnStates, states: Mapping[str, Any]) -> None:
    try:
        with own.written():
            model.load_state_dict(states)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise StateDictError(f"the model does not load its state dict: {error}") from error


def _finished(
    model: nn.Module,
    plan: Plan,
    results: Sequence[Clustered],
    sensitivity_path: str | Path | None,
    *,
    trust: bool,
) -> list[Clustered]:
    """Judge the palettes by the weights that they now stand for."""
    sites = {site.name: site for site in palette_sites(model, PalettizedWeight)}
    weights = {tensor.name: _dense(sites[tensor.name]) for tensor in plan}
    if sensitivity_path is not None:
        known = read_sensitivities(sensitivity_path, plan, weights, trust=trust)
        for name, sensitivity in known.items():
            sites[name].palette.sensitivity = sensitivity
    finished = []
    for tensor, result in zip(plan, results, strict=True):
        weight, palettized = weights[tensor.name], sites[tensor.name].palette.palettized()
        mask, zeros_stay = find_zeros(tensor.spec, weight, tensor.layout, tensor.sparse_overhead)
        if mask is not None or zeros_stay:
            lost = int((palettized.decode()[weight == 0] != 0).sum())
            _refuse([f"{tensor.name}: {lost} zeros decode to something else"] if lost else [])
        error, norm = square_sums(weight, palettized)
        late_view = view_of(weight, palettized)
        made = replace(result, palettized=palettized, squared_error=error, squared_norm=norm)
        finished.append(replace(made, late_view=late_view))
    return finished


@torch.no_grad()
def _dense(site: PaletteSite[PalettizedWeight]) -> Tensor:
    weight = site.dense().detach()
    if weight.is_meta or not bool(torch.isfinite(weight).all()):
        raise WeightError(f"{site.name}: the dense weight in the state dict is NaN or infinite")
    return weight


def _refuse(problems: Iterable[str]) -> None:
    told = list(problems)
    if told:
        more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        raise StateDictError(
            "State dict does not match the prepared model; it must come from a model prepared "
            f"with the same config: {'; '.join(told[:_TOLD])}{more}"
        )
