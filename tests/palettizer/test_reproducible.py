"""Same seed, same bytes: every built-in algorithm and training strategy, wherever it runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import joblib
import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.engine import executor as execution
from palette_core.plugins.catalog import get_catalog

CATALOG = get_catalog()
CORE = "palette_core"


def _built_in(registry: Any) -> list[str]:
    return [i.entry.name for i in registry.items if i.entry.factory.__module__.startswith(CORE)]


STRATEGIES = _built_in(CATALOG.training_strategies)


def _cases() -> dict[str, dict[str, Any]]:
    """A spec for everything that the built-in algorithms say they can do."""
    cases: dict[str, dict[str, Any]] = {}
    for name in _built_in(CATALOG.clusterers):
        entry = CATALOG.clusterers.get(name)
        dims = [1] * entry.supports_scalar + [2] * entry.supports_vector
        for dim in dims:
            for lut in (None, {"dtype": "int8"}):
                cases[f"{name}, {dim} wide, {'quantized' if lut else 'plain'}"] = {
                    "algorithm": name,
                    "cluster_dim": dim,
                    "lut_qspec": lut,
                }
    return cases


CASES = _cases()
INPUTS = (torch.linspace(-1, 1, 3 * 16).reshape(3, 16),)


def config(strategy: str = "frozen", seed: int = 0, **spec: Any) -> KMeansPalettizerConfig:
    palettization = PalettizationSpec(n_bits=3, training_strategy=strategy, **spec)
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": palettization}, enable_fast_kmeans_mode=False
        ),
        seed=seed,
    )


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16))


def digest(prepared: nn.Module) -> str:
    """Of the bytes of all indices and tables."""
    found = hashlib.sha256()
    for name, tensor in sorted(prepared.state_dict().items()):
        if not name.endswith(("original", "bias")):
            found.update(name.encode())
            found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


BATCHES = [INPUTS, (torch.sin(torch.arange(16 * 32.0)).reshape(32, 16),)]


def clustered(workers: int = 1, **spec: Any) -> list[str]:
    """Digests after `prepare`, and after a calibration where the algorithm takes one."""
    entry = CATALOG.clusterers.get(spec["algorithm"])
    palettizer = KMeansPalettizer(model(), config(**spec))
    if entry.needs_moments:
        palettizer.calibrate(BATCHES)
    prepared = palettizer.prepare(INPUTS, num_workers=workers).eval()
    digests = [digest(prepared)]
    if not entry.supports_importance:
        return digests
    with palettizer.calibration_mode(
        loss_fn=lambda o, _: o.square().sum(), num_workers=workers
    ) as calibration:
        for (inputs,) in BATCHES:
            calibration.step(prepared(inputs), None)
    return [*digests, digest(prepared)]


def trained(strategy: str) -> list[str]:
    """The digest after some steps of training."""
    palettizer = KMeansPalettizer(model(), config(strategy))
    prepared = palettizer.prepare(INPUTS)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    with palettizer.training_mode():
        for step in range(3):
            optimizer.zero_grad()
            prepared(INPUTS[0] * (1 + step)).square().mean().backward()
            optimizer.step()
            palettizer.step()
    prepared.eval()
    prepared(*INPUTS)
    return [digest(prepared)]


def everything() -> dict[str, list[str]]:
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    return {name: clustered(**spec) for name, spec in CASES.items()} | {
        f"training, {name}": trained(name) for name in STRATEGIES
    }


@pytest.fixture(scope="module")
def here() -> dict[str, list[str]]:
    return everything()


def test_the_cases_are_what_is_installed() -> None:
    assert {"kmeans1d", "kmeans_vector"} <= {spec["algorithm"] for spec in CASES.values()}
    assert "frozen" in STRATEGIES
    assert all(CATALOG.clusterers.get(s["algorithm"]).deterministic for s in CASES.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_twice_in_one_process(name: str, here: dict[str, list[str]]) -> None:
    torch.manual_seed(99)  # no global state has a part in it
    assert clustered(**CASES[name]) == here[name]
    # Different work gives different bytes, so that equality says something.
    assert len(set(here[name])) == len(here[name])
    assert here[name][0] != clustered(**{**CASES[name], "enable_per_channel_scale": True})[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_twice_in_one_process(strategy: str, here: dict[str, list[str]]) -> None:
    torch.manual_seed(99)
    assert trained(strategy) == here[f"training, {strategy}"]


@pytest.mark.slow
def test_in_another_process(here: dict[str, list[str]]) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "THREADS": "2"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == here


@pytest.mark.slow
def test_with_four_workers(here: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes, which only work worth starting them for would get."""
    monkeypatch.setattr(execution, "_WORTH_A_WORKER", 0)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        for name, spec in CASES.items():
            assert clustered(4, **spec) == here[name], name


@pytest.mark.parametrize("name", CASES)
def test_global_random_states_stay(name: str, untouched_rng: None) -> None:
    clustered(**CASES[name])


if __name__ == "__main__":
    print(json.dumps(everything()))
