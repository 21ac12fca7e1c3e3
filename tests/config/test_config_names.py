"""Names of module types: one thing, one name."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
from torch import nn

from palette_core.config.names import canonical_type_name, type_name

PUBLIC = sorted(
    name
    for name, value in vars(nn).items()
    if isinstance(value, type) and issubclass(value, nn.Module)
)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_way_to_name_a_torch_module_is_one_key(name: str) -> None:
    cls = getattr(nn, name)
    where = f"{cls.__module__}.{cls.__qualname__}"
    assert type_name(cls) == where
    assert {canonical_type_name(key) for key in (cls, f"torch.nn.{name}", where)} == {where}


def _all_subclasses(cls: type) -> set[type]:
    below = cls.__subclasses__()
    return {*below, *(inner for sub in below for inner in _all_subclasses(sub))}


def test_canonical_names_are_fixed_points_for_every_loaded_module_class() -> None:
    for cls in _all_subclasses(nn.Module):
        name = canonical_type_name(cls)
        assert name == type_name(cls)
        if cls.__name__.startswith("Parametrized"):
            continue  # torch makes one for each parametrized module, and it stands nowhere
        if cls.__module__ not in sys.modules:
            continue  # a test made it, and has taken its module away
        there = vars(sys.modules[cls.__module__]).get(cls.__qualname__)
        if cls.__qualname__.isidentifier() and there in (None, cls):
            assert canonical_type_name(name) == name


def test_a_class_defined_in_a_function_keeps_its_name() -> None:
    class Local(nn.Module):
        pass

    name = canonical_type_name(Local)
    assert name.endswith("<locals>.Local")
    assert canonical_type_name(name) == name


def test_aliases_in_imported_packages_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner = ModuleType("some_pkg"), ModuleType("some_pkg.layers")

    class Block(nn.Module):
        pass

    Block.__module__, Block.__qualname__ = "some_pkg.layers", "Block"
    assert canonical_type_name("some_pkg.Alias") == "some_pkg.Alias"
    inner.Block = package.Alias = Block  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_pkg", package)
    monkeypatch.setitem(sys.modules, "some_pkg.layers", inner)
    assert canonical_type_name("some_pkg.Alias") == "some_pkg.layers.Block"
    assert canonical_type_name("some_pkg.layers.Block") == "some_pkg.layers.Block"


def test_a_lazy_package_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("lazy_pkg")

    def load(name: str) -> object:
        raise AssertionError(f"asked for {name}")

    package.__getattr__ = load  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy_pkg", package)
    assert canonical_type_name("lazy_pkg.Block") == "lazy_pkg.Block"


@pytest.mark.slow
def test_naming_a_type_imports_nothing() -> None:
    script = """
import sys
from palette_core.config.names import canonical_type_name
before = set(sys.modules)
for key in ("torch.ao.nn.qat.Linear", "sqlite3.dbapi2.Foo", "torch.nn.Linear", "turtle.Turtle"):
    canonical_type_name(key)
assert set(sys.modules) == before, set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("Linear", "expected a fully qualified name, got 'Linear'; did you mean 'torch.nn.Linear'"),
        ("linear", "did you mean 'torch.nn.Linear'"),
        ("Block", "such as 'torch.nn.Linear' or 'my_package.layers.Block'"),
        ("torch.nn.Linaer", "no module type 'torch.nn.Linaer'; did you mean 'torch.nn.Linear'"),
        ("torch.n.Linear", "did you mean 'torch.nn.Linear'"),
        ("torch.nn.modules.linear.Conv2d", "did you mean 'torch.nn.Conv2d'"),
        (r"torch\.nn\..*", "matched exactly .*module_name_configs"),
        ("torch.nn.Linear.Inner.Deeper", "no module type"),
        ("torch..Linear", "not the name of a class"),
    ],
)
def test_what_is_no_module_type(key: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        canonical_type_name(key)


@pytest.mark.parametrize(
    "key",
    [int, 3, None, nn.Linear(1, 1), "torch.Tensor", "builtins.int", "torch.nn.functional.relu"],
)
def test_what_is_no_module_class(key: object) -> None:
    with pytest.raises(
        TypeError, match=r"keys of module_type_configs must be nn\.Module subclasses"
    ):
        canonical_type_name(key)  # type: ignore[arg-type]
