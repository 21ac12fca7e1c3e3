"""One test per check, for everything that a distribution registers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

from pydantic import BaseModel

from palette_core.config.spec import PalettizationSpec
from palette_core.errors import ConfigError, ContractError, PluginOptionsError, did_you_mean
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.kinds import EXPORT_BACKEND, OPERATION
from palette_core.plugins.options import validate_options
from palette_core.plugins.registries import Distribution
from palette_core.testing._kit import (
    ANY,
    CHECKS,
    DISTRIBUTION,
    Calls,
    Check,
    Reader,
    Subject,
    fail,
    import_tool,
)

TestT = TypeVar("TestT", bound=Callable[..., Any])
Options = Mapping[str, Any]

_MODULES = (
    "registration",
    "clusterers",
    "commands",
    "metrics",
    "declared",
    "granularities",
    "lut_quantizers",
    "stored_forms",
    "training",
    "training_calls",
    "backends",
    "programs",
    "operations",
)


def all_checks() -> tuple[Check, ...]:
    """Return every check of the kit."""
    for name in _MODULES:
        importlib.import_module(f"palette_core.testing.{name}")
    return tuple(CHECKS)


@final
@dataclass(frozen=True)
class ContractTest:
    """One check of one plug-in. Call it: it raises where the contract is broken.

    Attributes:
        check: the sentence of the contract.
        subject: what is held to it.
    """

    check: Check
    subject: Subject

    @property
    def id(self) -> str:
        """Name that ``expected_failures`` goes by, such as ``clusterer/lloyd/shapes``."""
        return f"{self.subject.slug}/{self.check.name}"

    def __call__(self) -> None:
        """Run the check.

        Raises:
            ContractError: the plug-in breaks the contract, or raises where it should work.
        """
        __tracebackhide__ = True  # pytest then shows the author's lines, not ours
        try:
            if self.subject.problem:
                fail(
                    self.subject,
                    f"{self.subject.problem}; give parametrize_contract sets of options that "
                    f"do, as options={{{self.subject.slug!r}: [{{…}}]}}",
                )
            self.check.run(self.subject)
        except ContractError as error:
            text = f"{error}\n  The contract: {self.check.contract}"
            raise ContractError(text) from error.__cause__
        except Exception as error:
            raise ContractError(
                f"{self.subject}: raised {type(error).__name__}: {error}\n"
                f"  The contract: {self.check.contract}"
            ) from error


def parametrize_contract(
    distribution: str,
    *,
    expected_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Sequence[Options]] | None = None,
    readers: Mapping[str, Reader] | None = None,
    specs: Mapping[str, Sequence[PalettizationSpec]] | None = None,
    calls: Mapping[str, Calls] | None = None,
) -> Callable[[TestT], TestT]:
    """Run a test function once for every check of everything that a distribution registers.

    The function takes one argument, a `ContractTest`, and calls it::

        @parametrize_contract("palette-lloyd")
        def test_contract(check):
            check()

    Args:
        distribution: name of the installed distribution.
        expected_failures: reasons by the id of a test (``clusterer/lloyd/nan``). Such a test is
            expected to fail, and an error when it does not.
        options: sets of options to check an entry with, by kind and name
            (``granularity/tiles``); needed where options have no defaults. Without, an entry is
            checked with its defaults.
        readers: for export backends, by name: a function that takes the path of an exported file
            and returns the palettized weights in it, by their names in the torch model, as dense
            float arrays. It must not use the code that wrote them.
        specs: for export backends, by name: specs to try besides those the kit knows.
        calls: for operations that look at their inputs, by name: a function that returns calls
            with small random tensors, each as what is called, its positional arguments, and maybe
            a dictionary of keyword arguments.

    Raises:
        MissingExtraError: pytest is not installed.
        ConfigError: an id or a name in the arguments is not one of the distribution's.
    """
    pytest = import_tool("pytest")
    expected = dict(expected_failures or {})
    tests = list(_tests(distribution, options or {}, readers or {}, specs or {}, calls or {}))
    # A distribution that is not found has nothing else to check, and says so by failing.
    if any(test.subject.kind for test in tests):
        known = [test.id for test in tests]
        for name in expected:
            if name not in known:
                raise ConfigError(
                    f"expected_failures: {distribution} has no check {name!r}"
                    f"{did_you_mean(name, known)}"
                )
    parameters = [
        pytest.param(
            test,
            id=test.id,
            marks=[pytest.mark.xfail(reason=expected[test.id], strict=True)]
            if test.id in expected
            else [],
        )
        for test in tests
    ]

    def decorate(function: TestT) -> TestT:
        argument = next(iter(inspect.signature(function).parameters), None)
        if argument is None:
            raise ConfigError(
                f"{function.__name__} must take one argument, the check to call; "
                f"def {function.__name__}(check): check()"
            )
        decorated: TestT = pytest.mark.parametrize(argument, parameters)(function)
        return decorated

    return decorate


def _tests(
    distribution: str,
    options: Mapping[str, Sequence[Options]],
    readers: Mapping[str, Reader],
    specs: Mapping[str, Sequence[PalettizationSpec]],
    calls: Mapping[str, Calls],
) -> Iterator[ContractTest]:
    checks = all_checks()
    found = [
        (registry.kind, item)
        for registry in get_catalog().registries()
        for item in registry
        if _same(item.distribution.name, distribution)
    ]
    about = found[0][1].distribution if found else Distribution(distribution, "")
    slugs = [f"{kind.slug}/{item.entry.name}" for kind, item in found]
    backends = [item.entry.name for kind, item in found if kind is EXPORT_BACKEND]
    operations = [item.entry.name for kind, item in found if kind is OPERATION]
    if found:
        _check_keys("options", options, slugs)
        _check_keys("readers", readers, backends)
        _check_keys("specs", specs, backends)
        _check_keys("calls", calls, operations)
    whole = Subject(about)
    yield from (ContractTest(check, whole) for check in checks if check.kind == DISTRIBUTION)
    for slug, (kind, item) in zip(slugs, found, strict=True):
        entry = item.entry
        given = tuple(options.get(slug, ({},)))
        made, problem = _validated(entry, given)
        subject = Subject(
            about,
            kind,
            entry,
            made,
            problem,
            readers.get(entry.name) if kind is EXPORT_BACKEND else None,
            tuple(specs.get(entry.name, ())) if kind is EXPORT_BACKEND else (),
            calls.get(entry.name) if kind is OPERATION else None,
            given,
        )
        for each in checks:
            if each.kind in (ANY, kind) and each.applies(entry):
                yield ContractTest(each, subject)


def _validated(entry: Any, given: Sequence[Options]) -> tuple[tuple[BaseModel, ...], str]:
    """Return sets of options, or why they do not validate: for the checks to report."""
    try:
        return tuple(validate_options(entry, dict(each)) for each in given), ""
    except PluginOptionsError as error:
        return (), str(error)


def _check_keys(argument: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{argument}: {key!r} is none of {', '.join(known) or 'nothing'}"
                f"{did_you_mean(key, known)}"
            )


def _same(a: str, b: str) -> bool:
    """Return whether two names of distributions are one, as pip sees them."""
    return _normal(a) == _normal(b)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
