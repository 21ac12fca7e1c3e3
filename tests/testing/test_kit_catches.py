"""Every check of the kit fails for a plug-in that is wrong in just that way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from test_builtins_contract import read_checkpoint_weights
from wrong_clusterers import CLUSTERERS, Fits, entry, right
from wrong_commands import COMMANDS
from wrong_forms import FORMS, Bytes, Places, Runs, form
from wrong_metrics import METRICS
from wrong_operations import OPERATIONS, calls, operation
from wrong_operations import right as right_operation
from wrong_runtimes import BACKENDS, TRAINING, backend, settles, strategy
from wrong_tables import GRANULARITIES, LUT_QUANTIZERS, Rows, granularity

from palette_core.errors import ContractError
from palette_core.plugins import kinds
from palette_core.plugins.registries import Distribution
from palette_core.testing import Check, ContractTest, all_checks
from palette_core.testing._kit import Subject


class Undescribed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    rounds: int = 3


class Thawed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rounds: int = Field(default=3, description="Rounds.")


class Lossy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str = Field(default="here", description="A folder.")

    def __reduce__(self) -> tuple[Any, ...]:
        return Lossy, ()


class LossyRows(Rows):
    rows: int = Field(default=2, description="Rows of a block.", exclude=True)


ENTRIES: dict[str, dict[str, Any]] = {
    kinds.CLUSTERER: CLUSTERERS,
    kinds.GRANULARITY: GRANULARITIES,
    kinds.LUT_QUANTIZER: LUT_QUANTIZERS,
    kinds.TRAINING_STRATEGY: TRAINING,
    kinds.EXPORT_BACKEND: BACKENDS,
    kinds.SENSITIVITY_METRIC: METRICS,
    kinds.OPERATION: OPERATIONS,
    kinds.STORED_FORM: FORMS,
    kinds.COMMAND: COMMANDS,
}
# For checks of any kind, on a clusterer.
ONE = Fits(right)
ANY = [
    ("options", entry(right, options=Undescribed), {}, "'rounds' has no description"),
    ("options", entry(right, options=Thawed), {}, "'rounds' can be changed"),
    ("options", entry(right, options=Lossy), {"folder": "there"}, "by way of pickle"),
    ("factory", entry(right, factory=lambda options: right), {}, "which is no Clusterer"),
    ("factory", entry(right, factory=lambda options: ONE), {}, "returns one object twice"),
]

HOOKS = """
from palette_core.plugins import ClustererEntry, hookimpl
{more}

@hookimpl
def palette_core_clusterers():
    return [ClustererEntry(name={name}, summary="s", interface=1, factory=print)]
"""
DISTRIBUTIONS = {
    "discovered": HOOKS.format(more="import no_such_module_anywhere", name="'x'"),
    "fresh-process": HOOKS.format(
        more="import sys", name="f'n{\"pytest\" in sys.modules}'.lower()"
    ),
    "light": HOOKS.format(more="import hypothesis", name="'x'"),
}


def checks_of(*kinds: str) -> dict[str, Check]:
    return {check.name: check for check in all_checks() if check.kind in kinds}


def subject_of(kind: str, record: Any, *more: BaseModel) -> Subject:
    about = Distribution("wrong-plugin", "6.6")
    options = more or (record.options(),)
    return Subject(about, kind, record, options, reader=read_checkpoint_weights, calls=calls)


def test_every_check_has_a_wrong_plugin() -> None:
    for kind, wrong in ENTRIES.items():
        assert sorted(wrong) == sorted(checks_of(kind))
    assert {name for name, *_ in ANY} == set(checks_of("entry"))
    assert sorted(DISTRIBUTIONS) == sorted(checks_of("distribution"))
    known = {*ENTRIES, "entry", "distribution"}
    assert {check.kind for check in all_checks()} <= known


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, wrong in ENTRIES.items() for name in wrong]
)
def test_a_wrong_plugin_is_caught(kind, name, register) -> None:
    record = ENTRIES[kind][name]
    check = checks_of(kind)[name]
    assert check.applies(record)
    more = [record.options(rows=4), record.options(rows=1)] if kind is kinds.GRANULARITY else []
    register(record)
    with pytest.raises(ContractError) as caught:
        ContractTest(check, subject_of(kind, record, *more))()
    assert f"{kind} 'wrong' of wrong-plugin 6.6" in str(caught.value)
    assert check.contract in str(caught.value)


@pytest.mark.parametrize(("name", "record", "options", "text"), ANY)
def test_a_wrong_record_is_caught(name, record, options, text) -> None:
    subject = subject_of(kinds.CLUSTERER, record, record.options(**options))
    with pytest.raises(ContractError, match="'wrong' of wrong-plugin") as caught:
        ContractTest(checks_of("entry")[name], subject)()
    assert text in str(caught.value)


def test_a_granularity_that_is_lost_in_a_config_is_caught() -> None:
    record = granularity(LossyRows)
    subject = subject_of(kinds.GRANULARITY, record, record.options(rows=4))
    with pytest.raises(ContractError, match="by way of JSON"):
        ContractTest(checks_of("entry")["options"], subject)()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wrong_distribution_is_caught(name, install) -> None:
    install(DISTRIBUTIONS[name])
    with pytest.raises(ContractError, match=r"wrong-plugin 6\.6"):
        ContractTest(
            checks_of("distribution")[name], Subject(Distribution("wrong-plugin", "6.6"))
        )()


# What the wrong ones are made of is right: it is the change that the kit catches.


def test_the_right_clusterer_passes() -> None:
    for check in checks_of(kinds.CLUSTERER).values():
        if check.applies(entry(right)):
            ContractTest(check, subject_of(kinds.CLUSTERER, entry(right)))()


def test_the_right_quantizer_and_granularity_pass(register) -> None:
    from wrong_tables import Rows, granularity, quantizer
    from wrong_tables import right as right_table

    for check in checks_of(kinds.LUT_QUANTIZER).values():
        ContractTest(check, subject_of(kinds.LUT_QUANTIZER, quantizer(right_table)))()
    record = granularity(Rows)
    register(record)
    for check in checks_of(kinds.GRANULARITY).values():
        ContractTest(check, subject_of(kinds.GRANULARITY, record, Rows(rows=4), Rows(rows=1)))()


@pytest.mark.slow
@pytest.mark.parametrize(
    "record", [strategy(lambda s, w, decoded: decoded + w - w.detach()), settles()]
)
def test_the_right_strategies_pass(record, register) -> None:
    register(record)
    for check in checks_of(kinds.TRAINING_STRATEGY).values():
        if check.applies(record):
            ContractTest(check, subject_of(kinds.TRAINING_STRATEGY, record))()


def test_the_right_backend_passes(register) -> None:
    record = backend(check_support=None)
    register(record)
    subject = subject_of(kinds.EXPORT_BACKEND, record)
    for check in checks_of(kinds.EXPORT_BACKEND).values():
        if check.applies(record):
            ContractTest(check, subject)()


def test_the_right_metric_passes(register) -> None:
    from wrong_metrics import metric
    from wrong_metrics import right as right_loss

    record = metric(right_loss)
    register(record)
    for check in checks_of(kinds.SENSITIVITY_METRIC).values():
        ContractTest(check, subject_of(kinds.SENSITIVITY_METRIC, record))()


def test_the_right_operation_passes(register) -> None:
    record = operation(right_operation)
    register(record)
    for check in checks_of(kinds.OPERATION).values():
        ContractTest(check, subject_of(kinds.OPERATION, record))()


def check_form(kind: type, holds_masks: bool) -> None:
    entry = replace(form(kind), holds_masks=holds_masks)
    for check in checks_of(kinds.STORED_FORM).values():
        ContractTest(check, subject_of(kinds.STORED_FORM, entry))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Bytes, Runs, Places])
def test_the_right_forms_pass(kind) -> None:
    check_form(kind, holds_masks=kind is Places)


def test_a_form_that_loses_zeros_and_says_that_it_holds_them_is_caught() -> None:
    with pytest.raises(ContractError, match="zeros beside a table"):
        check_form(Runs, holds_masks=True)


def test_the_right_command_passes() -> None:
    from wrong_commands import command
    from wrong_commands import right as right_run

    for check in checks_of(kinds.COMMAND).values():
        ContractTest(check, subject_of(kinds.COMMAND, command(right_run)))()
