"""Look-ups of packed indices, by what processors can do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK_UP = """
import numpy as np
from palette_core._common.kernels import kernel
from palette_core.tensors._product_kernel import _piece
rng = np.random.default_rng(0)
for n_bits in {bits}:
    pick = _piece(n_bits)

    @kernel
    def look_up(packed, start, count, table, out):
        pick(packed, start, count, table, 2, out, 3)

    indices = rng.integers(0, 1 << n_bits, 64 * 5 + 37)
    bits = (indices[:, None] >> np.arange(n_bits)) & 1
    packed = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")
    for dtype in (np.float32, np.uint16):
        table = rng.integers(0, 1 << 16, max(16, 1 << n_bits) + 2).astype(dtype)
        for start, count in ((0, len(indices)), (8, 200), (3, 131), (300, 57), (5, 0)):
            out = np.zeros(count + 5, dtype)
            look_up(packed, start, count, table, out)
            assert (out[3:-2] == table[2 + indices[start : start + count]]).all(), (n_bits, start)
            assert not out[:3].any() and not out[-2:].any()
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "features",
    [
        pytest.param(None, id="of this one"),
        pytest.param("", id="none"),
        pytest.param("+avx,+avx2", id="AVX2"),
        pytest.param("+avx,+avx2,+avx512f", id="AVX-512"),
    ],
)
def test_are_what_numpy_looks_up(features: str | None) -> None:
    environment = dict(os.environ)
    if features is not None:
        if not _runs_here(features):
            pytest.skip(f"this processor lacks some of {features}")
        environment |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    bits = range(1, 9) if features is None else (3, 6, 8)
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP.format(bits=tuple(bits))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.split() == ["equal"], done.stderr


def _runs_here(features: str) -> bool:
    from llvmlite import binding

    has = binding.get_host_cpu_features()
    return all(has.get(name[1:], False) for name in features.split(",") if name)
