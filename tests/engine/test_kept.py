"""Results kept in a folder are those that were there, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.engine import executor
from palette_core.engine.cluster_tensor import cluster_here
from palette_core.errors import StateError

SPECS = {
    "plain": {"n_bits": 3},
    "scaled": {"n_bits": 2, "enable_per_channel_scale": True},
    "8-bit tables": {"n_bits": 4, "lut_qspec": {"dtype": "int8"}},
    "8-bit floats": {"n_bits": 4, "lut_qspec": {"dtype": "float8_e4m3fn"}},
    "vectors": {"n_bits": 4, "cluster_dim": 2},
    "zeros beside": {"n_bits": 3, "sparsity_detection_threshold": 0.3},
}


def model(spec: object = None) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 8))
    if spec is SPECS["zeros beside"]:
        with torch.no_grad():
            for layer in made:
                layer.weight[layer.weight.abs() < 0.08] = 0.0
    return made


def config(spec: dict) -> KMeansPalettizerConfig:
    fast = spec.get("cluster_dim", 1) == 1
    rules = {"global_config": {"op_state_spec": {"weight": spec}, "enable_fast_kmeans_mode": fast}}
    return KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": rules})


INPUTS = (torch.ones(1, 16),)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Let the third call be interrupted, one after the other."""
    made: list[str] = []

    def counted(job, catalog):
        made.append(job.plan.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        return cluster_here(job, catalog)

    monkeypatch.setattr(executor, "cluster_here", counted)
    monkeypatch.setattr(executor, "_threads", lambda: 1)
    return made


@pytest.mark.parametrize("name", SPECS)
def test_another_process_takes_what_is_finished(name, calls, tmp_path) -> None:
    spec = SPECS[name]
    rules, whole = config(spec), model(spec)
    with pytest.raises(KeyboardInterrupt):
        KMeansPalettizer(model(spec), rules).prepare(INPUTS, work_folder=tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 2
    again = KMeansPalettizer(model(spec), rules)
    prepared = again.prepare(INPUTS, work_folder=tmp_path / "work")
    assert len(calls) == 4
    other = KMeansPalettizer(whole, rules)
    other.prepare(INPUTS)
    for one, two in zip(prepared.state_dict().items(), whole.state_dict().items(), strict=True):
        assert one[0] == two[0]
        torch.testing.assert_close(one[1], two[1], rtol=0, atol=0, equal_nan=True)
    assert [replace(t, seconds=0) for t in again.report.tensors] == [
        replace(t, seconds=0) for t in other.report.tensors
    ]


def test_other_weights_and_other_rules_find_nothing(calls, tmp_path) -> None:
    calls += ["", "", ""]  # no interrupt
    KMeansPalettizer(model(), config({"n_bits": 3})).prepare(INPUTS, work_folder=tmp_path)
    KMeansPalettizer(model(), config({"n_bits": 2})).prepare(INPUTS, work_folder=tmp_path)
    changed = model()
    with torch.no_grad():
        changed[0].weight[0, 0] += 1
    KMeansPalettizer(changed, config({"n_bits": 3})).prepare(INPUTS, work_folder=tmp_path)
    assert len(calls) == 3 + 3 + 3 + 1


@pytest.mark.parametrize("at", [0, 9, 200, -1])
def test_what_is_damaged_is_made_again(at, calls, tmp_path) -> None:
    calls += ["", "", ""]
    KMeansPalettizer(model(), config({"n_bits": 3})).prepare(INPUTS, work_folder=tmp_path)
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[at] ^= 0x41
        path.write_bytes(content)
    KMeansPalettizer(model(), config({"n_bits": 3})).prepare(INPUTS, work_folder=tmp_path)
    assert len(calls) == 3 + 3 + 3


def test_two_runs_do_not_share_a_folder(tmp_path) -> None:
    from palette_core.engine.kept import KeptInFolder
    from palette_core.plugins.catalog import get_catalog

    held = KeptInFolder(tmp_path, get_catalog())
    rules = config({"n_bits": 3})
    with pytest.raises(StateError, match="another run keeps its results in"):
        KMeansPalettizer(model(), rules).prepare(INPUTS, work_folder=tmp_path)
    held.release()
    KMeansPalettizer(model(), rules).prepare(INPUTS, work_folder=tmp_path)
