"""Which algorithm stands in where a config names none: one that says so, whatever its name."""

from __future__ import annotations

import pytest

from palette_core.errors import ClusteringError, DuplicatePluginError, PlanError
from palette_core.planning.choose import default_clusterer
from palette_core.plugins import INTERFACE_VERSION, ClustererEntry
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.checked.clusterers import damping_of
from palette_core.plugins.kinds import CLUSTERER
from palette_core.plugins.registries import Distribution, Registered, Registry


def registered(name: str, **flags: object) -> Registered[ClustererEntry]:
    entry = ClustererEntry(
        name=name, summary="", interface=INTERFACE_VERSION, factory=print, **flags
    )
    return Registered(entry, Distribution("theirs", "1.0"))


def catalog(*items: Registered[ClustererEntry]) -> Catalog:
    return Catalog({CLUSTERER: Registry(CLUSTERER, items)})


def test_the_declared_one_is_taken() -> None:
    ours = catalog(registered("line", default_for_scalars=True), registered("other"))
    assert default_clusterer(1, ours) == "line"
    ours = catalog(
        registered("line", default_for_scalars=True), registered("b", default_for_vectors=True)
    )
    assert default_clusterer(4, ours) == "b"


def test_without_one_the_config_has_to_choose() -> None:
    with pytest.raises(PlanError, match="0 algorithms are the default for vectors; choose one by"):
        default_clusterer(2, catalog(registered("line", default_for_scalars=True)))


def test_two_of_them_are_named() -> None:
    two = catalog(
        registered("a", default_for_scalars=True), registered("b", default_for_scalars=True)
    )
    with pytest.raises(DuplicatePluginError, match=r"default for scalars: a \(.+\), b \(.+\);"):
        default_clusterer(1, two)


def test_damping_is_what_the_algorithm_says() -> None:
    assert damping_of(registered("theirs", damping=lambda options: 0.25), {}, "w") == 0.25
    assert damping_of(registered("theirs", damping=lambda options: None), {}, "w") is None
    assert damping_of(registered("theirs"), {}, "w") is None
    gptq = get_catalog().clusterers.find("gptq")
    assert damping_of(gptq, {"damping": 0.125}, "w") == 0.125
    assert damping_of(gptq, {}, "w") is None


@pytest.mark.parametrize("given", [-1.0, float("nan"), "much"])
def test_damping_that_is_none_is_refused(given: object) -> None:
    with pytest.raises(ClusteringError, match=r"w: clusterer 'theirs' .*damps by"):
        damping_of(registered("theirs", damping=lambda options: given), {}, "w")
