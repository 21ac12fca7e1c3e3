"""What has to be imported before the command line answers, seen from a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "joblib", "numba", "numpy", "sklearn", "coremltools", "coreai_torch")
RUN = """
import sys
sys.argv = ["palette", *{arguments!r}]
try:
    from palette_core.cli import main
    main()
except SystemExit as end:
    assert not end.code, end.code
print("imported:", [name for name in {heavy!r} if name in sys.modules])
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["palettize", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments) -> None:
    printed = run(RUN.format(arguments=arguments, heavy=HEAVY))
    assert "palette" in printed
    assert printed.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize(
    "statement",
    [
        "import palette_core",
        "import palette_core.plugins",
        "from palette_core.plugins import Clusterer, ClustererEntry, hookimpl",
        "from palette_core.plugins import PerTensorGranularity",
        "from palette_core.plugins.catalog import get_catalog; get_catalog()",
    ],
)
def test_a_module_of_hooks_needs_no_torch(statement) -> None:
    printed = run(
        f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed.strip() == "[]"


def test_built_in_hooks_load_without_torch_one_by_one() -> None:
    """Each by itself: what one imports must not hide what another needs."""
    from importlib.metadata import distribution

    points = distribution("palette-core").entry_points.select(group="palette_core")
    assert len(points) >= 8
    script = "import sys, importlib\n" + "".join(
        f"importlib.import_module({point.module!r})\n"
        f"assert not [n for n in {HEAVY!r} if n in sys.modules], {point.module!r}\n"
        for point in points
    )
    run(script)


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["import torch, palette_core", "import palette_core.tensors.operators, torch"]
)
def test_a_process_that_loads_a_program_gets_the_operator(statement) -> None:
    assert run(f"{statement}\nprint(torch.ops.palette_core.depalettize)").strip() == (
        "palette_core.depalettize"
    )
