"""Good and broken distributions, side by side: what is broken is set aside, and nothing else."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

from palette_core.errors import UnknownPluginError
from palette_core.plugins import kinds
from palette_core.plugins.catalog import discover
from palette_core.plugins.registries import CORE, Quarantined
from palette_core.version import __version__

BUILT_IN = {
    kinds.CLUSTERER: {"kmeans1d", "kmeans_vector"},
    kinds.GRANULARITY: {"per_tensor", "per_grouped_channel"},
    kinds.LUT_QUANTIZER: {"integer", "float8"},
    kinds.TRAINING_STRATEGY: {"frozen"},
    kinds.EXPORT_BACKEND: {"packed", "torch"},
    kinds.SENSITIVITY_METRIC: {"data_free", "fisher", "hessian", "output"},
    kinds.OPERATION: {"linear", "conv2d", "matmul", "embedding", "layer_norm"},
    kinds.STORED_FORM: {"indices"},
    kinds.COMMAND: set(),
}

HEAD = """
from pydantic import BaseModel, ConfigDict
from palette_core.plugins import Granularity
from palette_core.plugins import hookimpl
from palette_core.plugins import *
from palette_core.plugins import ClustererEntry, GranularityEntry, NoOptions


def entry(**changes):
    return ClustererEntry(
        **{"name": "broken", "summary": "one line", "interface": 1, "factory": print, **changes}
    )
"""

RETURNS = (
    HEAD
    + """
@hookimpl
def palette_core_clusterers():
    return {entries}
"""
)


def returns(entries: str) -> str:
    return RETURNS.replace("{entries}", entries)


# what a distribution's hooks module holds -> what its quarantine must say
BROKEN = {
    "import error": ("import no_such_module_anywhere", ["ModuleNotFoundError", "no_such_module"]),
    "syntax error": ("def palette_core_clusterers(:", ["SyntaxError"]),
    "exit at import": ("import sys\nsys.exit(3)", ["SystemExit", "3"]),
    "error at import": ("1 / 0", ["ZeroDivisionError"]),
    "interrupt at import": ("raise KeyboardInterrupt", ["KeyboardInterrupt"]),
    "cancelled at import": (
        "import asyncio\nraise asyncio.CancelledError('late')",
        ["CancelledError: late"],
    ),
    "panic at import": (
        "class PanicException(BaseException): pass\nraise PanicException('a Rust thread panicked')",
        ["PanicException: a Rust thread panicked"],
    ),
    "error without a text": (
        "class Mute(Exception):\n    def __str__(self): raise SystemExit(4)\nraise Mute",
        ["Mute: (its text cannot be read: SystemExit)"],
    ),
    "misspelled hook": (
        HEAD + "@hookimpl\ndef palette_core_clusterer():\n    return []\n",
        ["unknown hook 'palette_core_clusterer'", "did you mean 'palette_core_clusterers'"],
    ),
    "unmarked hook": (
        HEAD + "def palette_core_clusterers():\n    return [entry()]\n",
        ["'palette_core_clusterers'", "@hookimpl"],
    ),
    "no hook": ("x = 1\n", ["no hook is implemented", "palette_core_clusterers"]),
    "hook with an argument": (
        HEAD + "@hookimpl\ndef palette_core_clusterers(model):\n    return []\n",
        ["PluginValidationError", "model"],
    ),
    "error in a hook": (
        HEAD + "@hookimpl\ndef palette_core_clusterers():\n    raise OSError('disk is gone')\n",
        ["OSError: disk is gone"],
    ),
    "error in a generator": (
        HEAD
        + "@hookimpl\ndef palette_core_clusterers():\n    yield entry()\n    raise OSError(9)\n",
        ["OSError: 9"],
    ),
    "exit in a hook": (
        HEAD + "@hookimpl\ndef palette_core_clusterers():\n    raise SystemExit(4)\n",
        ["SystemExit: 4"],
    ),
    "nothing returned": (returns("None"), ["palette_core_clusterers", "list", "None"]),
    "one record, no list": (returns("entry()"), ["palette_core_clusterers", "list", "broken"]),
    "a dictionary for a record": (
        returns("[dict(name='broken')]"),
        ["must return ClustererEntry records", "{'name': 'broken'}"],
    ),
    "a record of another kind": (
        returns(
            "[TrainingStrategyEntry(name='broken', summary='s', interface=1, factory=print)]"
        ).replace("import ClustererEntry", "import TrainingStrategyEntry, ClustererEntry"),
        ["must return ClustererEntry records", "TrainingStrategyEntry"],
    ),
    "unknown field": (returns("[entry(speed=9)]"), ["TypeError", "speed"]),
    "later interface": (
        returns("[entry(interface=2)]"),
        ["'broken'", "written for interface version 2", "works with version 1"],
    ),
    "name in capitals": (returns("[entry(name='Broken')]"), ["'Broken'", "lower-case"]),
    "name that is no string": (returns("[entry(name=7)]"), ["name 7"]),
    "no summary": (returns("[entry(summary=' ')]"), ["'broken'", "summary"]),
    "factory that is no function": (returns("[entry(factory='fit')]"), ["factory", "'fit'"]),
    "one name twice": (returns("[entry(), entry()]"), ["two records named 'broken'"]),
    "options that are no model": (returns("[entry(options=dict)]"), ["options of 'broken'"]),
    "options that are an object": (
        returns("[entry(options=NoOptions())]"),
        ["options of 'broken'"],
    ),
    "options that take anything": (
        returns("[entry(options=type('Loose', (BaseModel,), {}))]"),
        ["options of 'broken'", 'extra="forbid"'],
    ),
    "options that ignore what they do not know": (
        returns("[entry(options=type('Open', (BaseModel,), {'model_config': {'frozen': True}}))]"),
        ["options of 'broken'", 'extra="forbid"'],
    ),
    "options that can be changed": (
        returns(
            "[entry(options=type('Open', (BaseModel,), {'model_config': {'extra': 'forbid'}}))]"
        ),
        ["options of 'broken'", "frozen=True"],
    ),
    "options that no config can hold": (
        returns(
            "[entry(options=type('Odd', (NoOptions,), {'__annotations__': {'f': iter}}))]"
        ).replace("'f': iter", "'f': __import__('typing').Callable"),
        ["PydanticInvalidForJsonSchema", "Callable"],
    ),
    "record of a subclass": (
        returns("[type('Odd', (ClustererEntry,), {'claims': lambda self: 7})(**FIELDS)]").replace(
            "**FIELDS", "name='broken', summary='s', interface=1, factory=print"
        ),
        ["ClustererEntry records, and none of a subclass", "Odd(name='broken'"],
    ),
    "long name": (returns("[entry(name='x' * 101)]"), ["'.', at most 100"]),
    "long summary": (returns("[entry(summary='x' * 201)]"), ["at most 200 characters"]),
    "summary for a terminal": (
        returns("[entry(summary='\\x1b[31m')]"),
        ["one printable line", r"got '\x1b[31m'"],
    ),
    "flag that is no bool": (
        returns("[entry(default_for_scalars='no')]"),
        ["default_for_scalars of 'broken'", "'no'"],
    ),
    "command with options": (
        "from palette_core.plugins import CommandEntry, NoOptions, hookimpl\n"
        "class Mine(NoOptions): pass\n"
        "@hookimpl\ndef palette_core_commands():\n    return [CommandEntry(name='broken', "
        "summary='s', interface=1, factory=print, options=Mine)]\n",
        ["options of 'broken'", "NoOptions"],
    ),
    "suffix that no file has": (
        "from palette_core.plugins import ExportBackendEntry, hookimpl\n"
        "@hookimpl\ndef palette_core_export_backends():\n    return [ExportBackendEntry("
        "name='broken', summary='s', interface=1, factory=print, suffix='')]\n",
        ["suffix of 'broken'", "''"],
    ),
    "granularity without a model": (
        HEAD
        + "@hookimpl\ndef palette_core_granularities():\n"
        + "    return [GranularityEntry(name='broken', summary='s', interface=1, model=None)]\n",
        ["model of 'broken'", "Granularity", "None"],
    ),
    "granularity of another name": (
        HEAD
        + "class Half(Granularity):\n    type: str = 'half'\n"
        + "    def block_shape(self, shape, default_axis):\n        return shape\n"
        + "@hookimpl\ndef palette_core_granularities():\n"
        + "    return [GranularityEntry(name='broken', summary='s', interface=1, model=Half)]\n",
        ["'type' that defaults to 'broken'", "Half"],
    ),
    "granularity without block_shape": (
        HEAD
        + "class Half(Granularity):\n    type: str = 'broken'\n"
        + "@hookimpl\ndef palette_core_granularities():\n"
        + "    return [GranularityEntry(name='broken', summary='s', interface=1, model=Half)]\n",
        ["model of 'broken'", "block_shape"],
    ),
}


def quarantine_of(distribution: str, catalog) -> list[Quarantined]:
    return [q for q in catalog.quarantined if q.distribution.name == distribution]


def test_built_ins_come_through_the_hooks():
    for registry in discover().registries():
        mine = {i.entry.name for i in registry if i.distribution.name == CORE}
        assert mine >= BUILT_IN[registry.kind]


def test_a_good_distribution_is_found_and_works(site):
    site.install_good()
    found = discover().clusterers.find("spread")
    assert (found.distribution.name, found.distribution.version) == ("fake-good", "1.2.3")
    assert found.distribution.seconds > 0
    assert not quarantine_of("fake-good", discover())


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_distribution_is_quarantined_and_the_rest_works(site, case):
    hooks, expected = BROKEN[case]
    site.install("fake-broken", hooks, version="0.7")
    site.install_good()
    catalog = discover()

    (broken,) = quarantine_of("fake-broken", catalog)
    assert str(broken.distribution) == "fake-broken 0.7"
    assert broken.entry_point == "main"
    for text in expected:
        assert text in broken.error
    for registry in catalog.registries():
        assert "broken" not in registry.names()
        assert set(registry.names()) >= BUILT_IN[registry.kind]
    assert catalog.clusterers.get("spread").summary == "evenly spread"


def test_a_distribution_is_registered_whole_or_not_at_all(site):
    good_then_bad = (
        HEAD
        + "@hookimpl\ndef palette_core_clusterers():\n    return [entry(name='half')]\n"
        + "@hookimpl\ndef palette_core_granularities():\n    raise RuntimeError('late')\n"
    )
    site.install("fake-broken", good_then_bad)
    catalog = discover()
    assert "half" not in catalog.clusterers.names()
    assert [q.error for q in quarantine_of("fake-broken", catalog)] == ["RuntimeError: late"]


def test_the_entry_points_of_one_distribution_stand_alone(site):
    site.install(
        "fake-two",
        "1 / 0",
        other=returns("[entry(name='fine')]"),
        entry_points="[palette_core]\nbad = fake_two.hooks\ngood = fake_two.other\n",
    )
    catalog = discover()
    assert catalog.clusterers.find("fine").distribution.name == "fake-two"
    assert [q.entry_point for q in quarantine_of("fake-two", catalog)] == ["bad"]


@pytest.mark.parametrize("points", ["main fake_odd.hooks", "main = fake_odd hooks", "main ="])
def test_malformed_entry_points_hide_no_other_distribution(site, points):
    site.install("fake-odd", "", entry_points=f"[palette_core]\n{points}\n")
    site.install_good()
    catalog = discover()
    assert "spread" in catalog.clusterers.names()
    assert len(quarantine_of("fake-odd", catalog)) == 1


def test_an_entry_point_may_name_an_object(site):
    holder = HEAD + (
        "class Holder:\n    @hookimpl\n    def palette_core_clusterers(self):\n"
        "        return [entry(name='held')]\nholder = Holder()\n"
    )
    site.install("fake-object", holder, entry_points="[palette_core]\nx = fake_object.hooks:holder")
    assert discover().clusterers.find("held").distribution.name == "fake-object"


def test_metadata_without_a_name_is_quarantined(site):
    site.install("fake-nameless", returns("[entry()]"), metadata="Metadata-Version: 2.1\n")
    site.install_good()
    catalog = discover()
    assert "spread" in catalog.clusterers.names()
    assert "broken" not in catalog.clusterers.names()
    assert len(quarantine_of("unknown", catalog)) == 1


@pytest.mark.parametrize(
    ("name", "version"), [("x" * 101, "1.0"), ("a b", "1.0"), ("fake-odd", "\x1b[31m")]
)
def test_metadata_that_nobody_can_print_are_quarantined(site, name, version):
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    site.install("fake-odd", returns("[entry()]"), metadata=metadata)
    catalog = discover()
    assert "broken" not in catalog.clusterers.names()
    assert "is no name of a distribution" in quarantine_of("unknown", catalog)[0].error


def test_of_two_versions_on_the_path_the_first_counts(site, tmp_path, monkeypatch):
    site.install("fake-twice", returns("[entry(name='newer')]"), version="2.0")
    older = type(site)(tmp_path / "older")
    older.install("fake-twice", returns("[entry(name='older')]"), version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.root)])
    found = [i for i in discover().clusterers if i.distribution.name == "fake-twice"]
    assert [(i.entry.name, i.distribution.version) for i in found] == [("newer", "2.0")]


def test_entry_points_of_other_groups_are_not_loaded(site):
    site.install("fake-other", "1 / 0", entry_points="[console_scripts]\nx = fake_other.hooks:f\n")
    assert not quarantine_of("fake-other", discover())
    assert "fake_other.hooks" not in sys.modules


CTRL_C = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize(
    "ending", ["finally:\n    pass", "except BaseException:\n    pass", "finally:\n    1 / 0"]
)
def test_ctrl_c_interrupts_whatever_a_plug_in_makes_of_it(site, ending):
    # A run in the background inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        site.install("fake-slow", CTRL_C + ending)
        with pytest.raises(KeyboardInterrupt):
            discover()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_plug_in_changes_of_the_process_is_put_back(site, tmp_path):
    changes = """
        import os, torch
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        from palette_core.plugins import ClustererEntry, hookimpl

        @hookimpl
        def palette_core_clusterers():
            torch.set_num_threads(torch.get_num_threads() + 1)
            return []
    """
    site.install("fake-loud", changes)
    before = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads()
    assert not quarantine_of("fake-loud", discover())
    assert (os.getcwd(), torch.get_default_dtype(), torch.get_num_threads()) == before
    assert torch.is_grad_enabled()


def test_a_broken_distribution_is_named_when_an_unknown_name_is_asked_for(site):
    site.install("fake-broken", "import no_such_module_anywhere", version="0.7")
    site.install_good()
    with pytest.raises(UnknownPluginError) as caught:
        discover().clusterers.get("spraed")
    message = str(caught.value)
    assert "no clusterer is named 'spraed'" in message
    assert "kmeans1d" in message
    assert "did you mean 'spread'?" in message
    assert "fake-broken 0.7: ModuleNotFoundError" in message


@pytest.mark.slow
def test_a_fresh_process_discovers_and_loads_only_hooks(site):
    """No plug-in's heavy modules are imported by looking at what is installed."""
    site.install_good()
    printed = site.run("""
        import sys
        from palette_core.plugins.catalog import discover
        catalog = discover()
        catalog.clusterers.get("spread")
        heavy = ("sklearn", "coremltools", "coreai", "onnx", "fake_good.work")
        print([m for m in heavy if m in sys.modules])
        catalog.clusterers.get("spread").factory(catalog.clusterers.get("spread").options())
        print("fake_good.work" in sys.modules)
    """)
    assert printed.splitlines() == ["[]", "True"]


@pytest.mark.slow
def test_importing_the_core_discovers_nothing(site):
    site.install("fake-broken", "raise RuntimeError('imported')")
    printed = site.run("""
        import sys, palette_core
        from palette_core import PalettizationSpec
        PalettizationSpec()
        print("fake_broken.hooks" in sys.modules)
    """)
    assert printed.strip() == "False"


def test_another_interface_version_is_set_aside_with_what_works(site):
    site.install(
        "fake-future",
        """
        from palette_core.plugins import ClustererEntry, hookimpl

        @hookimpl
        def palette_core_clusterers():
            return [ClustererEntry(name="later", summary="s", interface=2, factory=print)]
        """,
        version="9.0",
    )
    (broken,) = [q for q in discover().quarantined if q.distribution.name == "fake-future"]
    assert "'later' was written for interface version 2" in broken.error
    assert f"palette_core {__version__} works with version 1" in broken.error
    assert "a release of the plug-in for version 1, or a palette_core for version 2" in broken.error


def test_timings_name_the_slow_import(site, monkeypatch, capsys):
    from palette_core.cli import main

    site.install("fake-slow", GOOD_HOOK.format(before="import time; time.sleep(1.2)"))
    site.install("fake-quick", GOOD_HOOK.format(before=""))
    monkeypatch.setattr("sys.argv", ["palette", "plugins", "--timings"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out.partition("Imports")[2]
    slow = [line for line in printed.splitlines() if "slow, over 1 s" in line]
    assert len(slow) == 1
    assert slow[0].split()[0] == "fake-slow"
    assert "fake-quick" in printed


GOOD_HOOK = """
{before}
from palette_core.plugins import ClustererEntry, hookimpl


@hookimpl
def palette_core_clusterers():
    return [ClustererEntry(name=__name__, summary="s", interface=1, factory=print)]
"""
