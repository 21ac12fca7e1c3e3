"""Kept predictions: everything that they depend on asks again, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizerConfig, allocate
from palette_core.allocation import Allocation, judging

INPUTS = (torch.randn(4, 16, generator=torch.Generator().manual_seed(1)),)
BATCHES = [torch.randn(9, 16, generator=torch.Generator().manual_seed(2))]


def model(*, bias: float = 0.0, mean: float = 0.0, slope: float = 0.01) -> nn.Module:
    """Linear layers with the same weights, whatever stands around them."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.LeakyReLU(slope), nn.Linear(32, 8)
    ).eval()
    with torch.no_grad():
        made[0].bias.fill_(bias)
        made[1].running_mean.fill_(mean)
    return made


def config(algorithm: str | None) -> KMeansPalettizerConfig:
    spec = {"n_bits": 4, "algorithm": algorithm}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": spec}}}}
    )


def run(net: nn.Module, cache: Path | None, algorithm: str | None = None, **how) -> Allocation:
    return allocate(
        net, config(algorithm), INPUTS, target_bpw=6, candidates=(2, 4), cache=cache, **how
    )


@pytest.fixture
def clustered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    original = judging.Executor.run

    def counted(self, jobs, **how):
        names.extend(job.plan.name for job in jobs)
        return original(self, jobs, **how)

    monkeypatch.setattr(judging.Executor, "run", counted)
    return names


LOOKING = [
    {"metric": "output"},
    {"metric": "hessian"},
    {"metric": "data_free", "algorithm": "gptq"},
]


@pytest.mark.parametrize("how", LOOKING)
@pytest.mark.parametrize("other", [{"bias": 3.0}, {"mean": 5.0}, {"slope": 0.9}])
def test_what_looks_at_batches_depends_on_the_whole_model(
    tmp_path: Path, how: dict, other: dict
) -> None:
    path = tmp_path / "cache.json"
    run(model(), path, batches=BATCHES, **how)
    cached = run(model(**other), path, batches=BATCHES, **how)
    assert cached.to_dict() == run(model(**other), None, batches=BATCHES, **how).to_dict()
    assert cached.to_dict() != run(model(), None, batches=BATCHES, **how).to_dict()


@pytest.mark.parametrize("how", LOOKING)
def test_an_equal_model_is_answered(tmp_path: Path, clustered: list[str], how: dict) -> None:
    path = tmp_path / "cache.json"
    first = run(model(), path, batches=BATCHES, **how)
    assert len(clustered) == 4
    assert run(model(), path, batches=BATCHES, **how).to_dict() == first.to_dict()
    assert len(clustered) == 4
    run(model(), path, batches=[*BATCHES, *BATCHES], **how)
    assert len(clustered) == 8


def test_what_looks_at_weights_only_asks_for_changed_weights_only(
    tmp_path: Path, clustered: list[str]
) -> None:
    path = tmp_path / "cache.json"
    run(model(), path)
    assert len(clustered) == 4
    run(model(bias=3.0), path)
    run(model(), path, batches=BATCHES)
    assert len(clustered) == 4
    changed = model()
    with torch.no_grad():
        changed[3].weight[0, 0] += 1
    run(changed, path)
    assert clustered[4:] == ["3.weight"] * 2
    # Without batches gptq is k-means; with them it is not.
    run(model(), path, batches=BATCHES, algorithm="gptq")
    assert len(clustered) == 10


def test_how_tensors_lie_in_batches_counts(tmp_path: Path) -> None:
    from palette_core.allocation.cache import runs_digest

    one, two = torch.zeros(2), torch.ones(2)
    forms = [[(one, two)], [(one,), (two,)], [{"a": one, "b": two}], [(two, one)], [(one, two, 1)]]
    assert len({runs_digest(model(), form) for form in forms}) == len(forms)
    odd = nn.Module()
    odd.register_buffer("c", torch.ones(3, dtype=torch.complex64)[::2], persistent=False)
    odd.register_buffer("empty", torch.ones(0), persistent=False)
    odd.register_buffer("scalar", torch.tensor(True), persistent=False)
    before = runs_digest(odd, [])
    assert runs_digest(odd, []) == before
    odd.scalar.fill_(False)
    assert runs_digest(odd, []) != before
