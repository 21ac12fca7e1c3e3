"""Notes of a plan, one sentence each: rules without effect, and other things to be told."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from palette_core._common.wrapped import packs_away
from palette_core.config import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.config.names import canonical_type_name
from palette_core.config.patterns import NameIndex
from palette_core.errors import did_you_mean
from palette_core.model.graph import ModelGraph, TensorRecord
from palette_core.operations import EVERY_MATRIX
from palette_core.planning.adapters import ADAPTER, adapter_notes
from palette_core.planning.records import DenseTensor, SkippedTensor, TensorPlan
from palette_core.planning.rules import RuleBook
from palette_core.planning.sizes import large_palette_notes

_ANYWHERE = ("*", "weight", "in_proj_weight")  # the defaults have these for models without them
_HINTS = 10  # nearest names are looked for this often: each time, all names are compared


def notes_of(
    config: KMeansPalettizerConfig,
    graph: ModelGraph,
    rules: RuleBook,
    tensors: Sequence[TensorPlan],
    skipped: Sequence[SkippedTensor],
    dense: Sequence[DenseTensor],
) -> tuple[str, ...]:
    """Return what is to be said about a plan beside its decisions, one sentence each.

    Args:
        config: the rules.
        graph: the model.
        rules: after it has decided about every tensor of ``graph``.
        tensors: what is palettized.
        skipped: what was asked for and stays dense.
        dense: what nobody asked for.
    """
    settled = [*(t.rule for t in tensors), *(s.rule for s in skipped)]
    return (
        *adapter_notes([tensor.name for tensor in dense if tensor.reason == ADAPTER]),
        *large_palette_notes(tensors),
        *_packed_away_notes(graph),
        *_ineffective_rules(config, graph, rules, settled),  # last: there may be thousands
    )


def _ineffective_rules(
    config: KMeansPalettizerConfig, graph: ModelGraph, rules: RuleBook, settled: Sequence[str]
) -> list[str]:
    """Return one sentence per rule without effect, the first ones with the nearest name.

    Args:
        config: the rules.
        graph: the model.
        rules: after it has decided about every tensor of ``graph``.
        settled: the rules that palettize a tensor, or that a tensor was skipped under.
    """
    model = _Model(graph, rules)
    effects = _Prefixes(settled)
    notes = []
    for entry in _entries(config, model):
        if not entry.ruled:
            notes.append(_without_effect(entry, model))
            continue
        more = [*_operations(entry, model), *_states(entry, model)]
        if not more and not entry.config.is_disabled:
            more = _nothing(entry, model, effects)
        notes += more
    return notes


def _packed_away_notes(graph: ModelGraph) -> list[str]:
    """Return a sentence about torch's quantized modules, if there are any."""
    names = [m.names[0] for m in graph.modules if packs_away(m.type_name)]
    names = [name for name in names if not name.endswith("._packed_params")]
    if not names:
        return []
    return [
        f"torch's quantized modules keep their weights out of sight and are left alone: "
        f"{_some(names)}; no packed checkpoint holds them, palettize the float model instead"
    ]


@dataclass(frozen=True)
class _Entry:
    """An entry of the config, beside what it does.

    Attributes:
        path: of the entry.
        key: name pattern or type.
        config: the entry.
        by_type: whether ``key`` is a type.
        ruled: modules, descendants included, that go by this entry.
    """

    path: str
    key: str
    config: ModuleKMeansPalettizerConfig
    by_type: bool
    ruled: tuple[str, ...]


class _Model:
    """Facts that notes ask about a model, looked up instead of searched for."""

    def __init__(self, graph: ModelGraph, rules: RuleBook) -> None:
        self.graph = graph
        self.rules = rules
        self._hints = _HINTS

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for module in self.graph.modules for name in module.names)

    @cached_property
    def _index(self) -> NameIndex:
        return NameIndex(self.names)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.names)

    @cached_property
    def by_type(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for module in self.graph.modules:
            found.setdefault(module.type_name, []).extend(module.names)
        return found

    @cached_property
    def _tensors(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for at, tensor in enumerate(self.graph.tensors):
            for owner in tensor.owners:
                found.setdefault(owner.module, []).append(at)
        return found

    @cached_property
    def op_types(self) -> list[str]:
        return sorted({use.op_type for tensor in self.graph.tensors for use in tensor.uses})

    @cached_property
    def op_names(self) -> list[str]:
        uses = (use for tensor in self.graph.tensors for use in tensor.uses)
        return sorted({name for use in uses for name in self.rules.op_names(use)})

    @cached_property
    def op_index(self) -> NameIndex:
        return NameIndex(self.op_names)

    def matched(self, entry: _Entry) -> Sequence[str]:
        """Return the modules that the key of an entry matches, descendants not included."""
        if entry.path == "global_config":
            return entry.ruled
        if entry.by_type:
            return self.by_type.get(canonical_type_name(entry.key), ())
        return self._index.matching(entry.key)

    def tensors_of(self, modules: Iterable[str]) -> list[TensorRecord]:
        found = {at for module in modules for at in self._tensors.get(module, ())}
        return [self.graph.tensors[at] for at in sorted(found)]

    def descendants(self, modules: Iterable[str]) -> Iterator[str]:
        for top in modules:
            yield top
            # "/" is the sign after ".", so this is all that begins with the name and a dot.
            first = bisect_left(self._sorted, f"{top}.") if top else 0
            end = bisect_left(self._sorted, f"{top}/") if top else len(self._sorted)
            yield from self._sorted[first:end]

    def hint(self, key: str, names: Sequence[str]) -> str:
        self._hints -= 1
        return did_you_mean(key, names) if self._hints >= 0 else ""


class _Prefixes:
    """Texts that are asked whether one of them begins in a certain way."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted(set(texts))

    def __bool__(self) -> bool:
        return bool(self._texts)

    def any_begins(self, start: str) -> bool:
        at = bisect_left(self._texts, start)
        return at < len(self._texts) and self._texts[at].startswith(start)


def _entries(config: KMeansPalettizerConfig, model: _Model) -> Iterator[_Entry]:
    ruled: dict[str, list[str]] = {}
    for name in model.names:
        ruled.setdefault(model.rules.rule_for(name).path, []).append(name)
    path = "global_config"
    # A global config is there for whatever the others leave; that may be nothing.
    if path in ruled:
        yield _Entry(path, path, config.global_config, False, tuple(ruled[path]))
    for field in ("module_type_configs", "module_name_configs"):
        for key, entry in getattr(config, field).items():
            path = f"{field}[{key!r}]"
            by_type = field == "module_type_configs"
            yield _Entry(path, key, entry, by_type, tuple(ruled.get(path, ())))


def _without_effect(entry: _Entry, model: _Model) -> str:
    matched = model.matched(entry)
    if matched:
        others = sorted({model.rules.rule_for(name).path for name in matched})
        return f"{entry.path} has no effect: what it matches goes by {_some(others)}"
    names = sorted(model.by_type) if entry.by_type else model.names
    return f"{entry.path} matches no module of the model{model.hint(entry.key, names)}"


def _operations(entry: _Entry, model: _Model) -> Iterator[str]:
    for key in entry.config.op_type_config:
        path = f"{entry.path}.op_type_config[{key!r}]"
        refines = EVERY_MATRIX in entry.config.op_type_config and key != EVERY_MATRIX
        if path not in model.rules.used and not refines:
            yield _unmatched(path, key, model, model.op_types, present=key in model.op_types)
    for key in entry.config.op_name_config:
        path = f"{entry.path}.op_name_config[{key!r}]"
        if path not in model.rules.used:
            present = bool(model.op_index.matching(key))
            yield _unmatched(path, key, model, model.op_names, present=present)


def _unmatched(path: str, key: str, model: _Model, names: Sequence[str], *, present: bool) -> str:
    if present:
        return f"{path} has no effect: the operations it matches go by other entries"
    return f"{path} matches no operation that consumes a weight{model.hint(key, names)}"


def _states(entry: _Entry, model: _Model) -> Iterator[str]:
    """Find state keys that name nothing where the entry holds."""
    places = list(_places(entry.config))
    named = {key for _, states in places for key in states if key not in _ANYWHERE}
    if not named:
        return
    is_global = entry.path == "global_config"
    tensors = model.graph.tensors if is_global else model.tensors_of(entry.ruled)
    present = sorted({owner.state for tensor in tensors for owner in tensor.owners})
    missing = named.difference(present)
    for place, states in places:
        for key in states:
            if key in missing:
                hint = model.hint(key, present) or f"; there are: {_some(present)}"
                path = f"{entry.path}.{place}[{key!r}]"
                yield f"{path} names no tensor of the modules it is for{hint}"


def _places(config: ModuleKMeansPalettizerConfig) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield every mapping by state name of a module config, and where it stands in it."""
    yield "op_state_spec", config.op_state_spec
    for key, op in config.op_type_config.items():
        yield f"op_type_config[{key!r}].op_state_spec", op.op_state_spec
    for key, op in config.op_name_config.items():
        yield f"op_name_config[{key!r}].op_state_spec", op.op_state_spec
    yield "module_state_spec", config.module_state_spec


def _nothing(entry: _Entry, model: _Model, effects: _Prefixes) -> list[str]:
    if entry.path == "global_config":
        if effects:  # a global config is for the rest, of which there may be none
            return []
    elif effects.any_begins(entry.path):
        return []
    tensors = model.tensors_of(entry.ruled)
    inside = tensors or model.tensors_of(model.descendants(model.matched(entry)))
    decisive = {model.rules.decide(tensor).rule for tensor in inside} - {""}
    others = sorted(rule for rule in decisive if not rule.startswith(entry.path))
    if others:
        return [f"{entry.path} palettizes nothing: what it matches goes by {_some(others)}"]
    names = _some([tensor.name for tensor in tensors])
    return [f"{entry.path} palettizes nothing; the tensors of the modules it matches are: {names}"]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{shown}{more}" or "none"
