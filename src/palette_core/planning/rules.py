"""Which rule of the config decides about a tensor.

Order of precedence, highest first: the level of the module's config (``module_name_configs``,
``module_type_configs``, ``global_config``), then within that config ``module_state_spec``,
``op_name_config``, ``op_type_config``, ``op_state_spec``. Within one level the entry declared
last wins, and an entry reaches all descendants of the modules it matches. A tensor that several
modules share, or several operations consume, goes by the highest of all their rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from palette_core.config import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.config.names import canonical_type_name
from palette_core.config.patterns import NamePatterns
from palette_core.config.spec import PalettizationSpec
from palette_core.model.graph import ModelGraph, ModuleRecord, TensorRecord, Use
from palette_core.operations import EVERY_MATRIX, OperationTable
from palette_core.planning import opt_in
from palette_core.planning.adapters import ADAPTER, is_adapter, names_adapters

_States = Mapping[str, PalettizationSpec | None]


@dataclass(frozen=True)
class ModuleRule:
    """The config that holds for one module.

    Attributes:
        level: 2 for an entry of ``module_name_configs``, 1 for one of ``module_type_configs``,
            0 for ``global_config``; higher wins.
        order: where in its mapping the entry stands; later wins.
        place: fields and keys that lead to the entry: ``("module_name_configs", "head")``.
        config: the entry.
        on_itself: the entry matches this module, not only an ancestor.
        by_choice: it matches by type or by its literal name, which opts the module in to
            operations that are not palettized by default.
    """

    level: int
    order: int
    place: tuple[str, ...]
    config: ModuleKMeansPalettizerConfig
    on_itself: bool
    by_choice: bool

    @cached_property
    def path(self) -> str:
        """The entry as a path into the config: ``"module_name_configs['head']"``."""
        return self.place[0] + "".join(f"[{key!r}]" for key in self.place[1:])


@dataclass(frozen=True)
class Decision:
    """The outcome for one tensor.

    Attributes:
        spec: what to do, or None to leave the tensor alone.
        rule: path of the entry that decided.
        config: the module config it stands in.
        op_type: the operation through which it was reached, or None.
        axis: its output-channel axis in that operation; None where no call showed it.
        asked: with ``spec`` None, whether some rule did ask for the tensor to be palettized.
        left_alone: with ``spec`` None, whether a rule says that it stays dense.
        reason: with ``spec`` None, why.
    """

    spec: PalettizationSpec | None
    rule: str
    config: ModuleKMeansPalettizerConfig | None = None
    op_type: str | None = None
    axis: int | None = None
    asked: bool = False
    left_alone: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Candidate:
    """A rule that names a tensor; ``binding`` where it decides, not only says why it cannot."""

    rank: tuple[int, int, int, int]  # level, step, order of the entry, order within the entry
    decision: Decision
    binding: bool = True


class _OpRules:
    """Entries for operations of one module config, as they are looked up."""

    def __init__(self, config: ModuleKMeansPalettizerConfig) -> None:
        self.patterns = NamePatterns(list(config.op_name_config))
        self.by_name = list(config.op_name_config.items())
        types = config.op_type_config.items()
        self.by_type = {key: (order, entry) for order, (key, entry) in enumerate(types)}


class RuleBook:
    """Resolves the rules of one config for one model."""

    def __init__(
        self, config: KMeansPalettizerConfig, graph: ModelGraph, operations: OperationTable
    ) -> None:
        self.global_config = config.global_config
        self._operations = operations
        self._types = {name: m.type_name for m in graph.modules for name in m.names}
        self._modules = {name: m for m in graph.modules for name in m.names}
        self._names = list(config.module_name_configs.items())
        self._patterns = NamePatterns(list(config.module_name_configs))
        self._type_orders = {
            canonical_type_name(key): order for order, key in enumerate(config.module_type_configs)
        }
        self._type_entries = list(config.module_type_configs.items())
        self._rest = ModuleRule(0, 0, ("global_config",), self.global_config, False, False)
        self._op_rules: dict[tuple[str, ...], _OpRules] = {}
        self._rules: dict[str, ModuleRule] = {}
        self.used: set[str] = set()

    def rule_for(self, module: str) -> ModuleRule:
        """Return the config entry that holds for a module."""
        if module not in self._rules:
            self._rules[module] = self._find_rule(self._modules[module])
        return self._rules[module]

    def op_names(self, use: Use) -> tuple[str, ...]:
        """Return the name of an operation under every name of its module."""
        if use.module not in self._modules:
            return (use.op_name,)
        local = use.op_name.removeprefix(f"{use.module}." if use.module else "")
        names = self._modules[use.module].names
        return tuple(f"{name}.{local}" if name else local for name in names)

    def decide(self, tensor: TensorRecord) -> Decision:
        """Return what happens to a tensor, and the rule that says so."""
        decision = self._decided(tensor)
        if decision.spec is not None and is_adapter(tensor) and not names_adapters(decision.rule):
            return Decision(None, decision.rule, left_alone=True, reason=ADAPTER)
        return decision

    def _decided(self, tensor: TensorRecord) -> Decision:
        candidates = list(self._candidates(tensor))
        if len(candidates) == 1:
            return candidates[0].decision
        for pool in (
            [c for c in candidates if c.binding],
            [c for c in candidates if c.decision.asked],
            candidates,
        ):
            if pool:
                return max(pool, key=lambda c: c.rank).decision
        return Decision(None, "", reason="no rule names it")

    def _find_rule(self, module: ModuleRecord) -> ModuleRule:
        if not self._names and not self._type_entries:
            return self._rest
        chain = {prefix: None for name in module.names for prefix in prefixes(name)}
        return self._by_name(module, chain) or self._by_type(module, chain) or self._rest

    def _by_name(self, module: ModuleRecord, chain: Iterable[str]) -> ModuleRule | None:
        order = _latest(self._patterns.last(name) for name in chain)
        if order is None:
            return None
        key, config = self._names[order]
        place = ("module_name_configs", key)
        on_itself = any(self._patterns.last(name) == order for name in module.names)
        return ModuleRule(2, order, place, config, on_itself, key in module.names)

    def _by_type(self, module: ModuleRecord, chain: Iterable[str]) -> ModuleRule | None:
        order = _latest(self._type_orders.get(self._types.get(name, "")) for name in chain)
        if order is None:
            return None
        key, config = self._type_entries[order]
        on_itself = self._type_orders.get(module.type_name) == order
        place = ("module_type_configs", key)
        return ModuleRule(1, order, place, config, on_itself, on_itself)

    def _candidates(self, tensor: TensorRecord) -> Iterator[_Candidate]:
        places = [owner.module for owner in tensor.owners]
        owners = set(places)
        for module in dict.fromkeys([*places, *[use.module for use in tensor.uses]]):
            if module not in self._modules:
                continue
            rule = self.rule_for(module)
            names = [owner.state for owner in tensor.owners]
            if len(names) > 1:
                # A module's own name for a tensor comes before those that others have for it.
                ranked = sorted(tensor.owners, key=lambda owner: owner.module != module)
                names = [owner.state for owner in ranked]
            if module in owners and rule.on_itself:
                yield from self._module_state(rule, names, tensor)
            # An owner's rules see every use of its tensor; others only their own.
            uses = [u for u in tensor.uses if module in owners or u.module == module]
            for use in uses:
                yield from self._operation(rule, names, use, tensor)
                yield from self._state(rule, names, use, tensor)
            if not tensor.uses:
                yield from self._state(rule, names, None, tensor)

    def _module_state(
        self, rule: ModuleRule, names: list[str], tensor: TensorRecord
    ) -> Iterator[_Candidate]:
        found, key, spec = _lookup(rule.config.module_state_spec, names)
        if found:
            path = f"{rule.path}.module_state_spec[{key!r}]"
            types = [self._types[owner.module] for owner in tensor.owners]
            op_type = opt_in.main_op_type(tensor, types, self._operations)
            axes = [use.axis for use in tensor.uses if use.op_type == op_type]
            axis = next((axis for axis in axes if axis is not None), tensor.view_axis)
            yield _binding(rule, 3, 0, path, spec, op_type, axis)

    def _operation(
        self, rule: ModuleRule, names: list[str], use: Use, tensor: TensorRecord
    ) -> Iterator[_Candidate]:
        for step, order, path, states in self._op_entries(rule, use, _is_matrix(tensor)):
            self.used.add(path)
            found, key, spec = _lookup(states, names)
            # An operation config that does not name the state leaves it alone: no falling back.
            where = f"{path}.op_state_spec[{key!r}]" if found else path
            yield _binding(rule, step, order, where, spec, use.op_type, _axis(use, tensor))

    def _state(
        self, rule: ModuleRule, names: list[str], use: Use | None, tensor: TensorRecord
    ) -> Iterator[_Candidate]:
        """Yield what ``op_state_spec`` says, for an operation that takes the tensor or for none."""
        found, key, spec = _lookup(rule.config.op_state_spec, names)
        if not found:
            return
        path, operations = f"{rule.path}.op_state_spec[{key!r}]", self._operations
        op_type = None if use is None else use.op_type
        is_default = op_type is not None and (rule.by_choice or operations.is_default(op_type))
        if spec is None or is_default:
            axis = None if use is None else _axis(use, tensor)
            yield _binding(rule, 0, 0, path, spec, op_type, axis)
            return
        if op_type is None:
            types = [self._types[owner.module] for owner in tensor.owners]
            asked, reason = opt_in.why_unused(tensor, types, key, rule.by_choice, operations)
        else:
            by_name = rule.level == 2 and rule.on_itself
            asked, reason = opt_in.why_not(tensor, op_type, key, by_name, operations)
        decision = Decision(None, path, rule.config, op_type, asked=asked, reason=reason)
        yield _Candidate((rule.level, 0, rule.order, 0), decision, binding=False)

    def _op_entries(
        self, rule: ModuleRule, use: Use, is_matrix: bool
    ) -> Iterator[tuple[int, int, str, _States]]:
        """Yield step, order, path and states of the entries that hold for an operation."""
        if not rule.config.op_name_config and not rule.config.op_type_config:
            return
        if rule.place not in self._op_rules:
            self._op_rules[rule.place] = _OpRules(rule.config)
        rules = self._op_rules[rule.place]
        order = _latest(rules.patterns.last(name) for name in self.op_names(use))
        if order is not None:
            key, entry = rules.by_name[order]
            yield 2, order, f"{rule.path}.op_name_config[{key!r}]", entry.op_state_spec
        key = use.op_type
        if key not in rules.by_type and is_matrix and self._operations.takes_matrices(key):
            key = EVERY_MATRIX
        if key in rules.by_type:
            order, entry = rules.by_type[key]
            yield 1, order, f"{rule.path}.op_type_config[{key!r}]", entry.op_state_spec


def _binding(
    rule: ModuleRule,
    step: int,
    order: int,
    path: str,
    spec: PalettizationSpec | None,
    op_type: str | None,
    axis: int | None = None,
) -> _Candidate:
    alone = spec is None
    reason = f"left alone by {path}" if alone else ""
    decision = Decision(spec, path, rule.config, op_type, axis, left_alone=alone, reason=reason)
    return _Candidate((rule.level, step, rule.order, order), decision)


def _is_matrix(tensor: TensorRecord) -> bool:
    """Return whether a tensor is of those that are meant by all matrices: not a table of waves."""
    return len(tensor.shape) > 1 and tensor.kind == "parameter"


def _axis(use: Use, tensor: TensorRecord) -> int | None:
    return tensor.view_axis if use.axis is None else use.axis


def _lookup(states: _States, names: Iterable[str]) -> tuple[bool, str, PalettizationSpec | None]:
    """Find the first of ``names``, else ``"*"``; returns found, key, spec."""
    for key in (*names, "*"):
        if key in states:
            return True, key, states[key]
    return False, "", None


def _latest(orders: Iterable[int | None]) -> int | None:
    return max((order for order in orders if order is not None), default=None)


def prefixes(name: str) -> Iterator[str]:
    """Yield the names of a module and all its ancestors, the root's empty name included."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name
