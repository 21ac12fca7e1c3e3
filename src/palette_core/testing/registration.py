"""Checks of how a distribution is found, and of what its records say."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import subprocess
import sys
from typing import Any

from pydantic import BaseModel

from palette_core.config.spec import QuantizationSpec
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.discovery import ENTRY_POINT_GROUP
from palette_core.plugins.kinds import GRANULARITY, LUT_QUANTIZER
from palette_core.plugins.registries import CORE
from palette_core.testing._kit import ANY, DISTRIBUTION, Subject, check, demand, fail

_TIMEOUT = 300  # seconds; a fresh process imports torch

_LOOK = """
import importlib.metadata, json, sys
from palette_core.plugins.catalog import discover
before = set(sys.modules)
for point in importlib.metadata.distribution({name!r}).entry_points:
    if point.group == {group!r}:
        try:
            point.load()
        except (Exception, SystemExit):
            pass  # which discovery reports
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
catalog = discover()
print(json.dumps({{
    "loaded": sorted(new - set(sys.stdlib_module_names)),
    "found": [
        [registry.kind.slug, item.entry.name, item.distribution.name]
        for registry in catalog.registries() for item in registry
    ],
    "broken": [[q.distribution.name, q.entry_point, q.error] for q in catalog.quarantined],
}}))
"""


@check(DISTRIBUTION)
def discovered(subject: Subject) -> None:
    """The distribution is found, and every entry point of it can be used."""
    name = subject.distribution.name
    broken = [q for q in get_catalog().quarantined if q.distribution.name == name]
    for item in broken:
        fail(subject, f"entry point {item.entry_point!r} is quarantined: {item.error}")
    demand(
        subject,
        _registered_here(name),
        f"no entry point of the group {ENTRY_POINT_GROUP!r} is found; is it installed in this "
        "environment?",
    )


@check(DISTRIBUTION)
def fresh_process(subject: Subject) -> None:
    """A process that has imported nothing before finds the same records."""
    name = subject.distribution.name
    printed = _look(subject)
    there = sorted((kind, entry) for kind, entry, owner in printed["found"] if owner == name)
    broken = [f"{point}: {error}" for owner, point, error in printed["broken"] if owner == name]
    demand(subject, not broken, f"is quarantined in a fresh process: {'; '.join(broken)}")
    demand(
        subject,
        there == _registered_here(name),
        f"registers {there} in a fresh process, and {_registered_here(name)} in this one",
    )


@check(DISTRIBUTION)
def light(subject: Subject) -> None:
    """Loading the entry points imports no third-party package that the core does without."""
    name = subject.distribution.name
    if name == CORE:
        return  # what it imports is the measure of the others
    loaded, own = _look(subject)["loaded"], _own_packages(name)
    foreign = [package for package in loaded if package not in own]
    demand(
        subject,
        not foreign,
        f"loading the hooks imports {', '.join(foreign)}; import inside the factories instead",
    )


@check(ANY)
def options(subject: Subject) -> None:
    """Options are a frozen model, each field is described, and values reach another process.

    Those of granularities do as JSON, within a config; others are pickled with the plan.
    """
    model = subject.entry.options
    for name, field in model.model_fields.items():
        if name == "type" and subject.kind is GRANULARITY:
            continue
        demand(subject, field.description, f"option {name!r} has no description")
    for made in subject.options:
        again, way = _sent(subject, made)
        demand(subject, again == made, f"options {made!r} become {again!r} by way of {way}")
        for name in model.model_fields:
            try:
                setattr(made, name, getattr(made, name))
            except Exception:
                continue
            fail(subject, f"option {name!r} can be changed; the model must be frozen")


def _sent(subject: Subject, made: BaseModel) -> tuple[object, str]:
    if subject.kind is GRANULARITY:
        text = made.model_dump_json()
        return type(made).model_validate_json(text), f"JSON {text}"
    return pickle.loads(pickle.dumps(made)), "pickle"


@check(ANY, applies=lambda entry: hasattr(entry, "factory"))
def factory(subject: Subject) -> None:
    """The factory makes an object of the interface, a new one each time."""
    assert subject.kind is not None
    assert subject.kind.interface is not None
    expected = subject.kind.interface
    for made in subject.options:
        objects = [make(subject, made) for _ in range(2)]
        for each in objects:
            demand(
                subject,
                isinstance(each, expected),
                f"the factory made {each!r}, which is no {expected.__name__}",
            )
        demand(subject, objects[0] is not objects[1], "the factory returns one object twice")


def make(subject: Subject, options: Any) -> Any:
    """Call the factory."""
    if subject.kind is LUT_QUANTIZER:
        return subject.entry.factory(QuantizationSpec(dtype=subject.entry.dtypes[0]), options)
    return subject.entry.factory(options)


def _registered_here(name: str) -> list[tuple[str, str]]:
    return sorted(
        (registry.kind.slug, item.entry.name)
        for registry in get_catalog().registries()
        for item in registry
        if item.distribution.name == name
    )


def _look(subject: Subject) -> Any:
    """Return what a fresh process finds, and what it has to load for it; once for all checks."""
    if "look" not in subject.kept:
        script = _LOOK.format(name=subject.distribution.name, group=ENTRY_POINT_GROUP)
        subject.kept["look"] = _run(subject, script)
    return subject.kept["look"]


def _run(subject: Subject, script: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        fail(subject, f"in a fresh process: {done.stderr.strip()[-2000:]}")
    # The last line: a plug-in may print.
    return json.loads(done.stdout.strip().splitlines()[-1])


def _own_packages(name: str) -> set[str]:
    """Top-level modules of a distribution, and the core."""
    dist = importlib.metadata.distribution(name)
    points = dist.entry_points.select(group=ENTRY_POINT_GROUP)
    own = {point.module.partition(".")[0] for point in points}
    for package, owners in importlib.metadata.packages_distributions().items():
        if name in owners:
            own.add(package)
    return own | {"palette_core"}
