"""`parametrize_contract`: which tests it makes, and what it says when it cannot."""

from __future__ import annotations

import sys

import pytest

from palette_core.errors import ConfigError, ContractError, MissingExtraError
from palette_core.plugins.kinds import COMMAND
from palette_core.plugins.registries import Distribution
from palette_core.testing import ContractTest, all_checks, parametrize_contract

GROUPS = {"granularity/per_grouped_channel": [{"group_size": 2}]}


def parameters(*names: str, **arguments):
    def test_contract(check):
        check()

    decorated = parametrize_contract(*names, **arguments)(test_contract)
    (mark,) = decorated.pytestmark
    assert mark.args[0] == "check"
    return {parameter.id: parameter for parameter in mark.args[1]}


def test_every_entry_gets_every_check_that_applies() -> None:
    made = parameters("palette-core", options=GROUPS)
    assert "distribution/discovered" in made
    assert "clusterer/kmeans1d/importance-zero" in made
    assert "clusterer/kmeans1d/quantized" not in made  # it does not declare to fit under one
    assert "backend/torch/read-back" in made
    assert all(parameter.id == parameter.values[0].id for parameter in made.values())
    assert "clusterer/gptq/quantized" in made
    checked = {p.values[0].check for p in made.values()}
    # The core registers no command, and no backend of its own edits programs, or names the sparse
    # form among those it takes: they take all.
    expected = {check for check in all_checks() if check.kind is not COMMAND}
    assert {check.name for check in expected - checked} == {"programs", "sparse-overhead"}
    assert checked <= expected


def test_the_name_of_a_distribution_is_as_pip_takes_it() -> None:
    assert parameters("Palette_Core").keys() == parameters("palette-core").keys()


def test_expected_failures_are_strict() -> None:
    made = parameters(
        "palette-core", expected_failures={"clusterer/kmeans1d/nan": "entries are fixed"}
    )
    marked = [p for p in made.values() if p.marks]
    assert [p.id for p in marked] == ["clusterer/kmeans1d/nan"]
    (mark,) = marked[0].marks
    assert mark.name == "xfail"
    assert mark.kwargs == {"reason": "entries are fixed", "strict": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"expected_failures": {"clusterer/kmeans1d/nans": "x"}},
            "no check 'clusterer/kmeans1d/nans'; did you mean 'clusterer/kmeans1d/nan'",
        ),
        ({"options": {"clusterer/kmean1d": [{}]}}, "did you mean 'clusterer/kmeans1d'"),
        ({"readers": {"troch": print}}, "readers: 'troch' is none of packed, torch"),
        ({"specs": {"coreml": []}}, "specs: 'coreml' is none of packed, torch"),
    ],
)
def test_names_that_do_not_exist_are_errors(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        parametrize_contract("palette-core", **arguments)


def test_a_function_without_arguments_cannot_be_given_a_check() -> None:
    def test_nothing():
        pass

    with pytest.raises(ConfigError, match="test_nothing must take one argument"):
        parametrize_contract("palette-core")(test_nothing)


def test_a_distribution_that_is_not_installed_fails_with_a_reason() -> None:
    made = parameters("palette-nowhere", expected_failures={"clusterer/x/nan": "x"})
    assert sorted(made) == [
        "distribution/discovered",
        "distribution/fresh-process",
        "distribution/light",
    ]
    check = made["distribution/discovered"].values[0]
    with pytest.raises(ContractError, match="is it installed in this environment"):
        check()


def test_options_without_defaults_must_be_given() -> None:
    made = parameters("palette-core")
    with pytest.raises(ContractError, match=r"'group_size' is required.*options=\{'gran"):
        made["granularity/per_grouped_channel/pure"].values[0]()


def test_a_backend_without_a_reader_is_told_so() -> None:
    made = parameters("palette-core")
    with pytest.raises(ContractError, match=r"readers=\{'packed': read_weights\}"):
        made["backend/packed/read-back"].values[0]()


def test_what_a_check_raises_itself_names_the_plugin_and_the_contract() -> None:
    from palette_core.testing._kit import Check, Subject

    def breaks(subject: Subject) -> None:
        raise LookupError("no licence")

    check = Check("distribution", "breaks", "It works.", breaks, lambda _: True)
    with pytest.raises(ContractError) as caught:
        ContractTest(check, Subject(Distribution("some-plugin", "3.1")))()
    assert "some-plugin 3.1: raised LookupError: no licence" in str(caught.value)
    assert "The contract: It works." in str(caught.value)
    assert isinstance(caught.value.__cause__, LookupError)  # with the plug-in's own lines


def test_a_failed_check_shows_the_authors_lines_and_not_ours() -> None:
    from palette_core.testing._kit import Check, Subject, demand

    def too_few(subject: Subject) -> None:
        demand(subject, False, "found 3 of 4")

    check = Check("distribution", "all", "All are found.", too_few, lambda _: True)
    with pytest.raises(ContractError) as caught:
        ContractTest(check, Subject(Distribution("some-plugin", "3.1")))()
    shown = str(caught.getrepr())  # as pytest prints it
    assert "some-plugin 3.1: found 3 of 4" in shown
    assert "The contract: All are found." in shown
    assert 'Distribution("some-plugin", "3.1")))()' in shown  # the line of the call
    assert "self.check.run" not in shown
    assert "direct cause" not in shown


def test_without_its_tools_the_kit_names_what_to_install(monkeypatch) -> None:
    check = parameters("palette-core")["granularity/per_tensor/pure"].values[0]
    monkeypatch.setitem(sys.modules, "pytest", None)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(MissingExtraError, match=r"pytest: pip install 'palette-core\[testing"):
        parametrize_contract("palette-core")
    with pytest.raises(ContractError, match=r"hypothesis: pip install 'palette-core\[testing"):
        check()


def test_importing_the_kit_needs_neither_pytest_nor_hypothesis(monkeypatch) -> None:
    for name in [n for n in sys.modules if n.startswith("palette_core.testing")]:
        monkeypatch.delitem(sys.modules, name)
    for tool in ("pytest", "hypothesis"):
        monkeypatch.setitem(sys.modules, tool, None)
    import palette_core.testing

    assert len(palette_core.testing.all_checks()) == len(all_checks())
