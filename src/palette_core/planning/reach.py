"""Entries of a config that would reach weights that stay dense, and what these are."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from palette_core.config import ModuleKMeansPalettizerConfig
from palette_core.config.problems import CONFIG_KEY
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import IncompatibleShapeError, PlanError
from palette_core.model.graph import ModelGraph, TensorRecord
from palette_core.operations import OperationTable
from palette_core.planning.choose import lay_out
from palette_core.planning.coverage import Config, Coverage, DenseWeights, merged
from palette_core.planning.rules import ModuleRule, RuleBook, prefixes
from palette_core.tensors.dtypes import dtype_name

_MANY_STATES = 8  # named one by one in an entry


@dataclass
class _Group:
    """Weights that one entry of a config would reach."""

    op_type: str | None
    module_type: str
    rule: ModuleRule
    key: tuple[str, ...]
    is_default: bool = False
    records: list[TensorRecord] = field(default_factory=list)
    specs: dict[str, Config] = field(default_factory=dict)


class Reach:
    """Finds the entries of a config that would reach dense weights.

    Args:
        graph: the model.
        rules: that have decided about it.
        operations: what is known of operations.

    Attributes:
        holding: what the config says of every module, as plain values.
    """

    def __init__(self, graph: ModelGraph, rules: RuleBook, operations: OperationTable) -> None:
        self.holding = _states(rules.global_config)
        self._types = {name: m.type_name for m in graph.modules for name in m.names}
        self._rules = rules
        self._operations = operations

    def is_ruled(self, record: TensorRecord) -> bool:
        """Return whether the config that holds for a weight asks for any at all."""
        return bool(self._rules.rule_for(record.owners[0].module).config.op_state_spec)

    def groups(
        self, unasked: Iterable[TensorRecord], skipped: Iterable[TensorRecord]
    ) -> tuple[DenseWeights, ...]:
        """Return dense weights by the entry that reaches them, those of most elements first.

        Args:
            unasked: no rule asks for them.
            skipped: a rule does, and they stay dense for the reason that it was told.
        """
        found: dict[tuple[tuple[str, ...], str | None], _Group] = {}
        # Entries for modules first: inside of those, entries for operations hold that stand there.
        ordered = sorted(unasked, key=lambda record: self._operation(record)[1])
        modules: set[tuple[str, ...]] = set()
        for record in ordered:
            group = self._group(record, modules)
            if "op_type_config" not in group.key:
                modules.add(group.key)
            group = found.setdefault((group.key, group.op_type), group)
            group.records.append(record)
            self._add_spec(group, record)
        made = [
            self._dense(group.op_type, group.records, _entry(group)) for group in found.values()
        ]
        by_operation: dict[str | None, list[TensorRecord]] = {}
        for record in skipped:
            by_operation.setdefault(self._operation(record)[0], []).append(record)
        made += [self._dense(op_type, records, None) for op_type, records in by_operation.items()]
        return tuple(sorted(made, key=lambda group: -group.elements))

    def _dense(
        self, op_type: str | None, records: list[TensorRecord], config: Config | None
    ) -> DenseWeights:
        return DenseWeights(
            op_type,
            self._types[records[0].owners[0].module],
            tuple(record.name for record in records),
            sum(math.prod(record.shape) for record in records),
            config,
        )

    def _operation(self, record: TensorRecord) -> tuple[str | None, bool]:
        """Return the operation that a weight is for, and whether it receives the weight itself."""
        known = [use.op_type for use in record.uses if use.op_type in self._operations]
        if known:
            return known[0], True
        if record.view_op is not None:
            return record.view_op, False
        return (record.uses[0].op_type if record.uses else None), False  # perhaps only looks at it

    def _group(self, record: TensorRecord, modules: Set[tuple[str, ...]]) -> _Group:
        module = record.owners[0].module
        kind, rule = self._types[module], self._rules.rule_for(module)
        op_type, itself = self._operation(record)
        if itself and op_type is not None:
            names = prefixes(module)
            around = [_keys(name, self._types[name]) for name in names if name in self._types]
            inside = next((key for keys in around for key in keys if key in modules), rule.place)
            key: tuple[str, ...] = (*inside, "op_type_config", op_type)
        elif rule.on_itself:
            key = rule.place
        else:  # beside an entry by name, one by type would not be looked at
            by_type, by_name = _keys(module, kind)
            key = by_type if rule.level < 2 else by_name
        return _Group(op_type, kind, rule, key, self._operations.is_default(op_type or ""))

    def _add_spec(self, group: _Group, record: TensorRecord) -> None:
        """Add the spec that the weight's rule has for other weights, as far as it fits."""
        state = record.owners[0].state
        states = group.rule.config.op_state_spec
        spec = next((s for s in (states.get("weight"), *states.values()) if s is not None), None)
        spec = PalettizationSpec() if spec is None else spec
        axis = next((use.axis for use in record.uses if use.axis is not None), record.view_axis)
        try:
            lay_out(record.shape, spec, axis or 0, record.name)
        except (IncompatibleShapeError, PlanError):
            group.specs[state] = {"n_bits": spec.n_bits}
        else:
            group.specs.setdefault(state, _fields(spec) or {})


def obstacle_of(record: TensorRecord) -> str | None:
    """Return why a tensor can have no palette, whatever rules say; or None."""
    if not record.dtype.is_floating_point:
        return f"its dtype is {dtype_name(record.dtype)}, only floating weights have palettes"
    if record.dtype.itemsize == 1:
        return f"its dtype {dtype_name(record.dtype)} is already one byte per weight"
    if math.prod(record.shape) <= 1:
        return "it has one element or none, a palette would only make it larger"
    return record.obstacle


def coverage_of(
    reach: Reach,
    planned: Iterable[TensorRecord],
    unasked: Iterable[TensorRecord],
    skipped: Iterable[TensorRecord],
) -> Coverage:
    """Return what is palettized of the weights of a model.

    Args:
        reach: finds the config for those that are not.
        planned: tensors to be palettized.
        unasked: tensors that no rule asks for, and none leaves alone.
        skipped: tensors that a rule asks for, and that cannot be palettized so.
    """
    there = [record for record in planned if len(record.shape) > 1]
    rest = [record for record in unasked if _is_weight(record) and reach.is_ruled(record)]
    refused = [record for record in skipped if _is_weight(record)]
    done = sum(math.prod(record.shape) for record in there)
    groups = reach.groups(rest, refused)
    elements = done + sum(group.elements for group in groups)
    return Coverage(elements, done, groups, reach.holding)


def _is_weight(record: TensorRecord) -> bool:
    is_matrix = len(record.shape) > 1 and record.kind == "parameter"
    return is_matrix and obstacle_of(record) is None


def _entry(group: _Group) -> Config:
    """Return the entry of a config for a group, within all that it stands in."""
    specs = group.specs
    if len(specs) > _MANY_STATES and len({str(spec) for spec in specs.values()}) == 1:
        specs = {"*": next(iter(specs.values()))}
    holding, place = group.rule.config, group.key
    if "op_type_config" in group.key:
        # An entry for an operation is all that holds for it: what was palettized has to stay so.
        kept = _states(holding)["op_state_spec"] if group.is_default else {}
        place, op_type = group.key[:-2], group.key[-1]
        added: Config = {"op_type_config": {op_type: {"op_state_spec": {**kept, **specs}}}}
    else:
        added = {"module_state_spec": specs}
    # Another entry than the one that holds now is all that holds for the module.
    own = {} if place == group.rule.place else _said(holding)
    entry = merged([own, added])
    for name in reversed((CONFIG_KEY, *place)):
        entry = {name: entry}
    return entry


def _keys(module: str, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return where entries for a module stand, by its type and by its name."""
    return ("module_type_configs", kind), ("module_name_configs", _pattern(module))


def _states(config: ModuleKMeansPalettizerConfig) -> Config:
    """Return a module's config, its most used part said even where it is the default."""
    states = {name: _fields(spec) for name, spec in config.op_state_spec.items()}
    return {**_said(config), "op_state_spec": states}


def _fields(spec: PalettizationSpec | None) -> Config | None:
    """Return what a spec says in a file, without what goes without saying."""
    if spec is None:
        return None
    return {"n_bits": spec.n_bits, **_said(spec)}


def _said(model: BaseModel) -> Config:
    """Return the fields that differ from their defaults, as plain values."""
    defaults = _defaults(type(model))
    said = {name for name, default in defaults.items() if getattr(model, name) != default}
    plain = model.model_dump(mode="json", include=said)
    return {name: plain[name] for name in defaults if name in said}


@functools.cache
def _defaults(kind: type[BaseModel]) -> dict[str, Any]:
    fields = kind.model_fields.items()
    return {name: field_.get_default(call_default_factory=True) for name, field_ in fields}


def _pattern(module: str) -> str:
    """Return an expression for a module and those that differ by numbers in their names."""
    return "".join(r"\d+" if part.isdigit() else re.escape(part) for part in _PARTS.split(module))


_PARTS = re.compile(r"(\d+)")
