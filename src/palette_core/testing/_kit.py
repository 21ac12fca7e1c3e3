"""Parts that the checks share: how one is declared, what it is given, and how it fails."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from palette_core.config.spec import PalettizationSpec
from palette_core.errors import ContractError, MissingExtraError
from palette_core.plugins.kinds import KINDS, PluginKind
from palette_core.plugins.registries import Distribution

Reader = Callable[[Path], Mapping[str, Any]]
Calls = Callable[[], Iterable[tuple[Any, ...]]]
Applies = Callable[[Any], bool]

ANY = "entry"
DISTRIBUTION = "distribution"


@dataclass(frozen=True)
class Subject:
    """Subject of a check: one entry of a distribution, or the distribution alone.

    Attributes:
        distribution: the distribution that registers it.
        kind: of the entry; None where the distribution itself is checked.
        entry: its record; None where the distribution itself is checked.
        options: sets of options to check it with, validated; at least one.
        given: the same as a config has them, in the same order.
        problem: why there are none.
        reader: reads the weights in a file that a backend has written, as float arrays by name.
        specs: what an export backend is tried with, besides the specs that the kit knows.
        calls: returns calls of an operation: a function, its positional arguments, and maybe a
            dictionary of keyword arguments.
        kept: results that several checks of this subject share.
    """

    distribution: Distribution
    kind: PluginKind[Any] | None = None
    entry: Any = None
    options: tuple[BaseModel, ...] = ()
    problem: str = ""
    reader: Reader | None = None
    specs: tuple[PalettizationSpec, ...] = ()
    calls: Calls | None = None
    given: tuple[Mapping[str, Any], ...] = ()
    kept: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def slug(self) -> str:
        """The first parts of the names of its checks."""
        return DISTRIBUTION if self.kind is None else f"{self.kind.slug}/{self.entry.name}"

    def in_config(self, options: BaseModel) -> dict[str, Any]:
        """Return one of `options` as a config has it; without `given`, as its fields tell."""
        pairs = zip(self.options, self.given, strict=False)
        found = [given for made, given in pairs if made is options]
        return dict(found[0]) if found else options.model_dump(mode="json", by_alias=True)

    def __str__(self) -> str:
        what = f"{self.kind} {self.entry.name!r} of " if self.kind else ""
        return f"{what}{self.distribution}"


@dataclass(frozen=True)
class Check:
    """One sentence of the contract, and the function that holds a plug-in to it.

    Attributes:
        kind: the kind of plug-in it is for, ``"entry"`` for every kind, or ``"distribution"``.
        name: its name among the checks for that kind.
        contract: the sentence.
        run: raises where a plug-in does not keep it.
        applies: whether an entry promises what is checked.
    """

    kind: PluginKind[Any] | str
    name: str
    contract: str
    run: Callable[[Subject], None]
    applies: Applies

    @property
    def id(self) -> str:
        """Kind and name, such as ``clusterer/shapes``."""
        return f"{getattr(self.kind, 'slug', self.kind)}/{self.name}"


CHECKS: list[Check] = []


def check(
    kind: PluginKind[Any] | str, *, applies: Applies = lambda _: True
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as a check; its docstring is the sentence of the contract."""

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        contract = " ".join(inspect.cleandoc(run.__doc__ or "").split())
        if kind not in (*KINDS, ANY, DISTRIBUTION) or not contract.endswith("."):
            raise ValueError(f"check {run.__name__} needs a kind, and a sentence as docstring")
        CHECKS.append(Check(kind, run.__name__.replace("_", "-"), contract, run, applies))
        return run

    return register


def fail(subject: Subject, text: str) -> NoReturn:
    """Report that a plug-in breaks its contract."""
    raise ContractError(f"{subject}: {text}")


def demand(subject: Subject, held: object, text: str) -> None:
    """Report it unless ``held``."""
    if not held:
        fail(subject, text)


def import_tool(name: str) -> Any:
    """Import what only the kit needs.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"the contract kit needs {name}: pip install 'palette-core[testing]'"
        ) from error
