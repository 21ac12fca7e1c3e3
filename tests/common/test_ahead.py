"""Kernels that another process compiles while this one does something else."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core._common import ahead, kernels
from palette_core.engine.warming import warm_up_for
from palette_core.errors import ClusteringError
from palette_core.plugins.catalog import get_catalog

# Each test that compiles begins a process of its own: what is compiled stays in one.
BEGIN = """
import os, signal, sys
from palette_core._common import ahead
from palette_core.builtins.clusterers.kmeans1d import warm
ahead._has_room = lambda: True  # also where there is one core
warm.warm_up_beside()
"""
STEPS = """
from palette_core.builtins.clusterers.kmeans1d import floats
floats.is_compiled = lambda kernel: False  # what does all of them at once may be there by now
"""
FIT = """
import json, torch
from numba.core.sigutils import normalize_signature
from palette_core import KMeansPalettizer
palettizer = KMeansPalettizer(torch.nn.Linear(256, 1024).eval())
palettizer.prepare(torch.randn(1, 256))
found = {}
for kernel, types in warm.ORDINARY.items():
    wanted, _ = normalize_signature(types)
    found[kernel.py_func.__name__] = [
        kernel.signatures == [wanted], sum(kernel.stats.cache_hits.values())
    ]
print(json.dumps(found))
"""


def ran(script: str, cache: Path) -> str:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=env,
        cwd=cache,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
def test_what_a_weight_needs_is_taken_from_the_other_process(tmp_path):
    # Somebody's file of that name in the folder where they work is nothing to either process.
    (tmp_path / "numba.py").write_text("raise RuntimeError\n")
    alone = "assert ahead.AHEAD._others\nahead._Other.relieve = lambda self: False\n"
    found = json.loads(ran(BEGIN + alone + STEPS + FIT, tmp_path))
    assert found
    # Exactly the types of arguments that are called, and not one compiled in this process.
    assert found == {name: [True, 1] for name in found}
    again = BEGIN + "assert not any(map(ahead.AHEAD.is_to_bring, warm.ORDINARY))\n" + STEPS + FIT
    assert json.loads(ran(again, tmp_path)) == found


def test_who_waits_compiles_what_would_come_last(monkeypatch, tmp_path):
    (tmp_path / "slow_kernels.py").write_text(
        "import time\n"
        "class Slow:\n"
        "    def compile(self, arguments):\n"
        "        time.sleep(600)\n"
        "KERNELS = {Slow(): '()', Slow(): '()', Slow(): '()', Slow(): '()'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ahead, "_has_room", lambda: True)
    here: list[str] = []

    def fail():
        here.append("failed")
        raise TypeError("no such types")

    tasks = [
        (ahead.name_of(each), lambda each=each: here.append(each.__name__))
        for each in (len, max, min)
    ]
    tasks.append((ahead.name_of(sum), fail))  # which is no failure of what is waited for
    fresh = ahead.Ahead()
    fresh.start("slow_kernels:KERNELS", [len, max, min, sum], tasks)
    (other,) = fresh._others
    assert select.select([other.process.stdout], [], [], 60)[0], "it has begun nothing"
    looks = iter(range(1000))
    assert fresh.wait(len, lambda: next(looks) == 4 or None)
    # All but the first, with which the other process has begun; and these are not waited for.
    assert here == ["failed", "min", "max"]
    assert [fresh.is_to_bring(each) for each in (len, max, min)] == [True, False, False]
    other.end()


LAYER = """
import json, sys
import torch
from numba.core.sigutils import normalize_signature
from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.builtins.clusterers.layerwise import warm

recipe = {"gptq": warm.FED_BACK, "lnq": warm.DESCENDED}[sys.argv[1]]
rules = {"global_config": {"op_state_spec": {"weight": {"n_bits": 3, "algorithm": sys.argv[1]}}}}
config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": rules})
palettizer = KMeansPalettizer(torch.nn.Linear(256, 256).eval(), config)
palettizer.calibrate([(torch.randn(512, 256),)])
palettizer.prepare(torch.randn(1, 256), show_progress=False)
print(json.dumps(
    {k.py_func.__name__: k.signatures == [normalize_signature(t)[0]] for k, t in recipe.items()}
))
"""


@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_what_a_recipe_names_for_layers_is_what_they_call(algorithm):
    done = subprocess.run(
        [sys.executable, "-c", LAYER, algorithm], capture_output=True, text=True, check=True
    )
    fits = json.loads(done.stdout.splitlines()[-1])
    assert fits
    assert fits == dict.fromkeys(fits, True)


@pytest.mark.slow
def test_what_takes_over_is_compiled_afterwards_and_found_by_the_next_process(tmp_path):
    ran(BEGIN + "assert ahead.AHEAD._others[0].process.wait() == 0\n", tmp_path)
    script = BEGIN + "assert not ahead.AHEAD._others\n" + FIT
    script = script.replace("warm.ORDINARY", "warm.LATER")
    assert json.loads(ran(script, tmp_path)) == {"fit_block": [True, 1]}


@pytest.mark.slow
def test_what_takes_over_is_waited_for_where_it_pays(tmp_path):
    many = """
from palette_core.builtins.clusterers.kmeans1d import floats, whole
for rows, compiled in ((1, False), (4096, True)):
    floats.fit_floats(torch.randn(rows, 4096), None, 4, 4)
    assert bool(whole.fit_block.signatures) is compiled, rows
assert sum(whole.fit_block.stats.cache_hits.values()) == 1  # not compiled in this process
"""
    ran(BEGIN + "import torch\n" + many, tmp_path)


def test_what_is_missing_is_compiled(monkeypatch):
    started = []
    monkeypatch.setattr(kernels, "is_compiled", lambda kernel: kernel is done)
    monkeypatch.setattr(kernels.AHEAD, "start", lambda *args: started.append(args))
    done, missing = max, min
    kernels.compile_ahead("a:B,C", {done: "()"}, {missing: "()"})
    kernels.compile_ahead("a:B,C", {done: "()"})
    assert [arguments[:2] for arguments in started] == [("a:B,C", [missing])]


@pytest.mark.slow
def test_without_the_other_process_everything_is_compiled_here(tmp_path):
    killed = "ahead.AHEAD._others[0].process.kill()\n"
    found = json.loads(ran(BEGIN + killed + STEPS + FIT, tmp_path))
    assert all(fits for fits, _ in found.values())
    assert not any(hits for _, hits in found.values())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_other_process_ends_with_this_one(tmp_path, end):
    script = BEGIN + f"print(ahead.AHEAD._others[0].process.pid, flush=True)\n{end}\n"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    pid = int(done.stdout)
    until = time.monotonic() + 60
    while _runs(pid):
        assert time.monotonic() < until, f"process {pid} goes on"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state != "Z"


@pytest.mark.parametrize("executable", ["", "/usr/bin/uwsgi", "/opt/app/Studio"])
def test_no_process_of_what_is_no_interpreter(monkeypatch, executable):
    """A program that embeds Python would be started a second time."""
    monkeypatch.setattr(sys, "executable", executable)
    fresh = ahead.Ahead()
    fresh.start("palette_core.builtins.clusterers.kmeans1d.warm:ORDINARY", [len])
    assert not fresh._others


def test_nothing_is_waited_for_where_no_process_can_be_started(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no more processes")

    monkeypatch.setattr(ahead, "_has_room", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    fresh = ahead.Ahead()
    fresh.start("math:KERNELS", [len])
    assert not fresh.is_to_bring(len)
    assert fresh.wait(len, lambda: None) is None


def test_a_process_that_hangs_is_not_waited_for_long(monkeypatch, tmp_path):
    (tmp_path / "slow_to_compile.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ahead, "_LONGEST", 0.2)
    monkeypatch.setattr(ahead, "_has_room", lambda: True)
    fresh = ahead.Ahead()
    fresh.start("slow_to_compile:KERNELS", [len])
    assert fresh.is_to_bring(len)
    assert fresh.wait(len, lambda: None) is None
    assert not fresh.is_to_bring(len)


# --- what plug-ins declare ----------------------------------------------------------------------


def _catalog(warm_up):
    catalog = get_catalog()
    items = [
        replace(item, entry=replace(item.entry, warm_up=lambda name=item.entry.name: warm_up(name)))
        for item in catalog.clusterers
    ]
    kind = catalog.clusterers.kind
    registry = replace(catalog.clusterers, items=tuple(items))
    return replace(catalog, by_kind={**catalog.by_kind, kind: registry})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ["kmeans1d"]),
        ({"algorithm": "lnq"}, ["lnq"]),
        ({"cluster_dim": 2}, ["kmeans_vector"]),
        ({"algorithm": "nobody's"}, []),
        (None, []),
    ],
)
def test_only_what_a_config_asks_for_is_warmed_up(spec, expected):
    weight = None if spec is None else {"n_bits": 4, **spec}
    config = KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "global_config": {
                    "op_state_spec": {"weight": weight},
                    "enable_fast_kmeans_mode": False,
                }
            }
        }
    )
    called = []
    warm_up_for(config, _catalog(called.append))
    assert called == expected


def test_calibration_warms_up_what_will_use_it(monkeypatch):
    called = []
    catalog = _catalog(called.append)
    rules = {"global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "gptq"}}}}
    config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": rules})
    palettizer = KMeansPalettizer(nn.Linear(8, 8).eval(), config)
    monkeypatch.setattr(palettizer, "_catalog", catalog)
    palettizer.calibrate([(torch.randn(16, 8),)])
    assert called == ["gptq"]


def test_a_warm_up_that_fails_names_itself():
    def fail(name):
        raise RuntimeError("no compiler")

    with pytest.raises(ClusteringError, match=r"warm-up of .*'kmeans1d'.*no compiler"):
        warm_up_for(KMeansPalettizerConfig(), _catalog(fail))


def test_prepare_warms_up(monkeypatch):
    called = []
    palettizer = KMeansPalettizer(nn.Linear(8, 8))
    monkeypatch.setattr(palettizer, "_catalog", _catalog(called.append))
    palettizer.prepare(torch.randn(1, 8))
    assert called == ["kmeans1d"]
