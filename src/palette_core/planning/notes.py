"""Rules of a config that match nothing in a model, or change nothing there: one sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palette_core.config import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.config.names import canonical_type_name
from palette_core.errors import did_you_mean
from palette_core.model.graph import ModelGraph, TensorRecord
from palette_core.planning.rules import RuleBook

_ANYWHERE = ("*", "weight", "in_proj_weight")  # the defaults have these for models without them


def ineffective_rules(
    config: KMeansPalettizerConfig, graph: ModelGraph, rules: RuleBook, settled: Sequence[str]
) -> list[str]:
    """Return one sentence per rule without effect, with the nearest name that has one.

    Args:
        config: the rules.
        graph: the model.
        rules: after it has decided about every tensor of ``graph``.
        settled: the rules that palettize a tensor, or that a tensor was skipped under.
    """
    notes = []
    for entry in _entries(config, graph, rules):
        if not entry.matched:
            notes.append(
                f"{entry.path} matches no module of the model{did_you_mean(entry.key, entry.names)}"
            )
            continue
        if not entry.ruled:
            others = ", ".join(sorted({rules.rule_for(name).path for name in entry.matched}))
            notes.append(f"{entry.path} has no effect: what it matches goes by {others}")
            continue
        more = [*_operations(entry, graph, rules), *_states(entry, graph)]
        if not more and not entry.config.is_disabled:
            more = _nothing(entry, graph, rules, settled)
        notes += more
    return notes


@dataclass(frozen=True)
class _Entry:
    """An entry of the config, beside what it could match and does.

    Attributes:
        path: of the entry.
        key: name pattern or type.
        config: the entry.
        names: what the key could have been.
        matched: modules that the key matches, descendants not included.
        ruled: modules, descendants included, that go by this entry.
    """

    path: str
    key: str
    config: ModuleKMeansPalettizerConfig
    names: tuple[str, ...]
    matched: tuple[str, ...]
    ruled: tuple[str, ...]


def _entries(
    config: KMeansPalettizerConfig, graph: ModelGraph, rules: RuleBook
) -> Iterator[_Entry]:
    names = tuple(name for module in graph.modules for name in module.names)
    ruled: dict[str, list[str]] = {}
    for name in names:
        ruled.setdefault(rules.rule_for(name).path, []).append(name)
    path = "global_config"
    # A global config is there for whatever the others leave; that may be nothing.
    by_global = tuple(ruled.get(path, ()))
    if by_global:
        yield _Entry(path, path, config.global_config, (), by_global, by_global)
    types = tuple(sorted({module.type_name for module in graph.modules}))
    for key, entry in config.module_type_configs.items():
        path, wanted = f"module_type_configs[{key!r}]", canonical_type_name(key)
        matched = tuple(n for m in graph.modules for n in m.names if m.type_name == wanted)
        yield _Entry(path, key, entry, types, matched, tuple(ruled.get(path, ())))
    for key, entry in config.module_name_configs.items():
        path = f"module_name_configs[{key!r}]"
        matched = tuple(name for name in names if re.fullmatch(key, name))
        yield _Entry(path, key, entry, names, matched, tuple(ruled.get(path, ())))


def _operations(entry: _Entry, graph: ModelGraph, rules: RuleBook) -> Iterator[str]:
    uses = [use for tensor in graph.tensors for use in tensor.uses]
    types = sorted({use.op_type for use in uses})
    for key in entry.config.op_type_config:
        path = f"{entry.path}.op_type_config[{key!r}]"
        if path not in rules.used:
            yield _unmatched(path, key, types, present=key in types)
    names = sorted({name for use in uses for name in rules.op_names(use)})
    for key in entry.config.op_name_config:
        path = f"{entry.path}.op_name_config[{key!r}]"
        if path not in rules.used:
            present = any(re.fullmatch(key, name) for name in names)
            yield _unmatched(path, key, names, present=present)


def _unmatched(path: str, key: str, names: list[str], *, present: bool) -> str:
    if present:
        return f"{path} has no effect: the operations it matches go by other entries"
    return f"{path} matches no operation that consumes a weight{did_you_mean(key, names)}"


def _states(entry: _Entry, graph: ModelGraph) -> Iterator[str]:
    """Find state keys that name nothing where the entry holds."""
    if entry.path == "global_config":
        tensors: Sequence[TensorRecord] = graph.tensors
    else:
        tensors = _tensors_of(entry.ruled, graph)
    present = sorted({owner.state for tensor in tensors for owner in tensor.owners})
    config = entry.config
    places = {f"{entry.path}.op_state_spec": config.op_state_spec}
    for field in ("op_type_config", "op_name_config"):
        for key, op in getattr(config, field).items():
            places[f"{entry.path}.{field}[{key!r}].op_state_spec"] = op.op_state_spec
    places[f"{entry.path}.module_state_spec"] = config.module_state_spec
    for path, states in places.items():
        for key in states:
            if key not in _ANYWHERE and key not in present:
                hint = did_you_mean(key, present) or f"; there are: {_some(present)}"
                yield f"{path}[{key!r}] names no tensor of the modules it is for{hint}"


def _nothing(
    entry: _Entry, graph: ModelGraph, rules: RuleBook, settled: Sequence[str]
) -> list[str]:
    if entry.path == "global_config":
        if settled:  # a global config is for the rest, of which there may be none
            return []
    elif any(rule.startswith(entry.path) for rule in settled):
        return []
    tensors = _tensors_of(entry.ruled, graph)
    inside = tensors or _tensors_of(_descendants(entry.matched, graph), graph)
    decisive = {rules.decide(tensor).rule for tensor in inside} - {""}
    others = sorted(rule for rule in decisive if not rule.startswith(entry.path))
    if others:
        return [f"{entry.path} palettizes nothing: what it matches goes by {_some(others)}"]
    names = _some([tensor.name for tensor in tensors])
    return [f"{entry.path} palettizes nothing; the tensors of the modules it matches are: {names}"]


def _tensors_of(modules: Sequence[str], graph: ModelGraph) -> list[TensorRecord]:
    wanted = set(modules)
    return [t for t in graph.tensors if any(owner.module in wanted for owner in t.owners)]


def _descendants(modules: Sequence[str], graph: ModelGraph) -> list[str]:
    return [
        name
        for module in graph.modules
        for name in module.names
        if any(not top or name == top or name.startswith(f"{top}.") for top in modules)
    ]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{shown}{more}" or "none"
