"""Compiled kernels, also where the package's own folder cannot be written to."""

from __future__ import annotations

import ast
import gc
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core import event
from numba.core.registry import cpu_target

import palette_core
from palette_core._common import kernels
from palette_core.tensors._product_kernel import decode_rows

PACKAGE = Path(palette_core.__file__).parent
SCRIPT = """
import numpy as np
from palette_core.builtins.clusterers.kmeans1d import rounding as _scalar_rounding
from palette_core.builtins.clusterers.kmeans1d import warm as _scalar_warm
from palette_core.builtins.clusterers.kmeans_vector import cpu_engine as _vector_cpu
from palette_core._common.kernels import are_kept
from palette_core.builtins.lut_quantizers import _scale_kernel
count = _scalar_rounding._count_to(np.arange(5.0), 2.5, 0, 5)
print(count, are_kept(), sum(_scalar_rounding._count_to.stats.cache_hits.values()))
"""

WINDOWS = """
import torch
from palette_core import KMeansPalettizer, KMeansPalettizerConfig
spec = {"op_state_spec": {"weight": {"algorithm": "gptq"}}}
config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": {"global_config": spec}})
layer = torch.nn.Conv2d(8, 8, 3, groups=8)
KMeansPalettizer(layer, config).calibrate([torch.randn(1, 8, 9, 9)])
"""


def ran(cache: Path, script: str = SCRIPT) -> tuple[list[str], str]:
    """Run the script in a process whose only folder for kernels is under ``cache``."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")},
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": str(PACKAGE.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


folders_can_be_chosen = pytest.mark.skipif(
    not hasattr(numba.config, "CACHE_LOCATOR_CLASSES"),
    reason="this numba has no setting for the folders that it keeps kernels in",
)


@pytest.mark.slow
@folders_can_be_chosen
def test_a_folder_of_the_users_keeps_them(tmp_path: Path) -> None:
    assert ran(tmp_path)[0] == ["3", "True", "0"]
    found, said = ran(tmp_path)
    assert found == ["3", "True", "1"]
    assert "compiling" not in said


PRODUCTS = """
import numpy as np
from palette_core.tensors._product_kernel import decode_rows
found = []
for n_bits in (1, 2):
    out, sizes = np.zeros(8, np.float32), np.array([8, 1, 1, 0, 1, 1, 1, 1, 0])
    tables = np.arange(1 << n_bits, dtype=np.float32)
    packed, none = np.full(n_bits, 0b01010101, np.uint8), np.zeros(0, np.float32)
    decode_rows(n_bits)(packed, tables, none, np.arange(1), sizes, out, 0, 1)
    found += [int(out.sum()), sum(decode_rows(n_bits).stats.cache_hits.values())]
print(*found)
"""


@pytest.mark.slow
@folders_can_be_chosen
def test_kernels_that_close_over_others_are_kept(tmp_path: Path) -> None:
    assert ran(tmp_path, PRODUCTS)[0] == ["4", "0", "8", "0"]
    assert ran(tmp_path, PRODUCTS)[0] == ["4", "1", "8", "1"]


ROWS = """
import numpy as np
from palette_core.tensors._product_kernel import decode_rows
indices, nothing = np.full(128, 1 << 3, np.uint8), np.zeros(0, np.float32)
for n_bits in {}:
    sizes = np.array([64, 1, 1, 1, 1, 2, 1, 2, 0])
    table, out = np.arange(1 << n_bits, dtype=np.float32), np.zeros(128, np.float32)
    decode_rows(n_bits)(indices, table, nothing, np.arange(2), sizes, out, 0, 2)
    print(int(out[: 8 // n_bits].sum()), int(out[:3].sum()))
"""


@pytest.mark.slow
@folders_can_be_chosen
def test_kernels_of_one_factory_that_processes_compiled_apart_are_told_apart(
    tmp_path: Path,
) -> None:
    alone = {n_bits: ran(tmp_path, ROWS.format([n_bits]))[0] for n_bits in (1, 4)}
    assert alone[1] != alone[4]
    for order in ([1, 4], [4, 1]):
        assert ran(tmp_path, ROWS.format(order))[0] == [x for n in order for x in alone[n]]


def test_kernels_of_one_factory_have_names_of_their_own() -> None:
    made = [decode_rows(n_bits).py_func.__qualname__ for n_bits in (1, 2, 3)]
    assert len(set(made)) == 3


@pytest.mark.slow
@folders_can_be_chosen
def test_damaged_files_are_named_and_done_without(tmp_path: Path) -> None:
    ran(tmp_path)
    for pattern, keep in (("*.nbc", 0.5), ("*.nbi", 0)):
        (victim,) = tmp_path.rglob(f"rounding._count_to-{pattern}")
        data = victim.read_bytes()
        victim.write_bytes(data[: int(len(data) * keep)])
        found, said = ran(tmp_path)
        assert found == ["3", "False", "0"]
        assert f"{victim} cannot be read" in said
    victim.unlink()
    assert ran(tmp_path)[0] == ["3", "True", "0"]


@pytest.mark.slow
@folders_can_be_chosen
def test_a_full_disk_is_done_without(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    found, said = ran(tmp_path, limit + SCRIPT)
    assert found == ["3", "False", "0"]
    assert "cannot be written (OSError: [Errno 27] File too large)" in said
    assert not [path for path in tmp_path.rglob("*") if ".tmp." in path.name]


@pytest.mark.slow
@folders_can_be_chosen
def test_without_any_folder_they_are_compiled_every_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        found, said = ran(tmp_path / "file")  # nothing can be made inside a file
        assert found == ["3", "False", "0"]
        assert "NUMBA_CACHE_DIR" in said


@pytest.mark.slow
@folders_can_be_chosen
def test_kernels_of_moments_are_announced_too(tmp_path: Path) -> None:
    assert "compiling" in ran(tmp_path, WINDOWS)[1]
    assert "compiling" not in ran(tmp_path, WINDOWS)[1]


@pytest.mark.slow
@folders_can_be_chosen
def test_every_kernel_works_without_any_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    script = (Path(__file__).parent / "every_kernel.py").read_text()
    assert ran(tmp_path / "file", script)[0] == ["False", "True"]


INNER = """
from palette_core._common.kernels import kernel
_BY = {}
@kernel
def inner(x):
    return x + _BY
"""
OUTER = """
from inner_kernel_of_a_test import inner
from palette_core._common.kernels import kernel
@kernel
def outer(x):
    return inner(x)
"""


INTRINSIC = """
from numba.core import types
from numba.extending import intrinsic
def made(builder, value):
    return builder.add(value, value.type({}))
@intrinsic
def inner(context, x):
    def generate(target, builder, signature, values):
        return made(builder, values[0])
    return types.int64(types.int64), generate
"""


@pytest.mark.parametrize("called", [INNER, INTRINSIC])
def test_a_kernel_that_calls_what_changed_is_not_taken_from_what_is_kept(
    called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for by in (1, 1, 2):
        (tmp_path / "inner_kernel_of_a_test.py").write_text(called.format(by))
        (tmp_path / "outer_kernel_of_a_test.py").write_text(OUTER)
        importlib.invalidate_caches()
        outer = importlib.import_module("outer_kernel_of_a_test").outer
        keys.append(outer._cache._index_key((), cpu_target.target_context.codegen()))
        for name in ("inner_kernel_of_a_test", "outer_kernel_of_a_test"):
            del sys.modules[name]
    assert keys[0] == keys[1] != keys[2]


class _Collecting(event.Listener):
    """Notes, at the start of each compilation, whether garbage is being collected."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_start(self, event: Any) -> None:
        self.found.append(gc.isenabled())

    def on_end(self, event: Any) -> None:
        pass


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_is_not_collected_while_a_kernel_is_compiled(collects: bool, fails: bool) -> None:
    def function(x: Any) -> Any:
        return x.nothing_of_that_name if fails else x + 1

    function.__module__ = "palette_core.made_up"
    kernels._watch_compiling()
    made, watching, was = numba.njit(function), _Collecting(), gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with event.install_listener("numba:compile", watching):
            if fails:
                with pytest.raises(numba.TypingError):
                    made(1)
            else:
                assert made(1) == 2
        assert watching.found == [False]
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was else gc.disable)()


def test_numba_is_used_in_one_module_alone() -> None:
    """A second set of decorators would not fall back where nothing can be written to."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "njit" in names_from_numba(path.read_text())
    }
    assert users == {"_common/kernels.py"}


def names_from_numba(source: str) -> set[str]:
    """Return what a module takes from numba; ``import numba`` may take anything."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(
            alias.name.partition(".")[0] == "numba" for alias in node.names
        ):
            names |= {"njit"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "numba":
            names |= {"njit" if "jit" in alias.name else alias.name for alias in node.names}
    return names


def test_second_decorators_are_found() -> None:
    for source in ("import numba", "from numba import njit", "from numba import jit as quick"):
        assert "njit" in names_from_numba(source)
    assert "njit" not in names_from_numba("from numba import config")
