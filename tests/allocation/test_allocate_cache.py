"""Kept predictions: everything that they depend on asks again, and nothing else does."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from pathlib import Path

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizerConfig, allocate
from palette_core.allocation import Allocation, judging
from palette_core.allocation.cache import LossFile, _line
from palette_core.allocation.sizes import planned_bits
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.errors import AllocationError, PaletteWarning
from palette_core.model import trace
from palette_core.planning import make_plan
from palette_core.plugins.catalog import get_catalog
from palette_core.storage.forms.lookup import stored_bits

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


@pytest.mark.slow
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


def test_what_objects_in_batches_hold_counts_whole(tmp_path: Path) -> None:
    from palette_core.allocation.cache import runs_digest

    class Held:
        def __init__(self, x: object) -> None:
            self.x, self.own = x, [self]

    @dataclasses.dataclass(slots=True)
    class Slotted:
        x: object

    large = [torch.zeros(5000), torch.zeros(5000)]
    large[1][2500] = 1.0  # where printing leaves out
    kinds = [
        Held,
        Slotted,
        lambda x: UserDict(x=x),
        lambda x: Held(Slotted(x.numpy())),
        lambda x: x,
    ]
    digests = [runs_digest(model(), [(kind(x),)]) for kind in kinds for x in large]
    assert len(set(digests)) == len(digests)
    assert digests == [runs_digest(model(), [(kind(x),)]) for kind in kinds for x in large]


# --- files that hold something else ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"version": 1, "losses": {}}', "\0\xff", '{"a": 1}\n']
)
def test_another_file_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cache.json"
    path.write_text(text)
    with pytest.raises(AllocationError, match=r"is no cache of predicted losses .* delete it"):
        run(model(), path)
    assert path.read_text() == text
    with pytest.raises(IsADirectoryError, match="this is a folder"):
        run(model(), tmp_path)


def test_lines_are_added_and_none_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.touch()  # as mktemp makes it
    run(model(), path)
    before = path.read_bytes()
    run(model(), path, metric="output", batches=BATCHES)
    assert path.read_bytes().startswith(before)
    assert len(path.read_bytes()) > len(before)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "harm",
    [
        lambda line: line[: len(line) // 2],  # a killed process, or a full disk
        lambda line: line.replace(b'"bits": ', b'"bits": 1'),
        lambda line: line.replace(b'"loss": ', b'"loss": -'),
        lambda line: line.replace(b'"loss": ', b'"loss": NaN, "a": '),
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: b"null\n",
        lambda line: b"\xff\n",
    ],
)
def test_damaged_lines_are_predicted_again(tmp_path: Path, clustered: list[str], harm) -> None:
    path = tmp_path / "cache.json"
    right = run(model(), path).to_dict()
    *rest, last = lines_of(path)
    path.write_bytes(b"".join(rest) + harm(last))
    del clustered[:]
    with pytest.warns(PaletteWarning, match="lines are damaged; what they held is predicted again"):
        assert run(model(), path).to_dict() == right
    assert len(clustered) == 1
    with pytest.warns(PaletteWarning, match="damaged"):
        assert run(model(), path).to_dict() == right
    assert len(clustered) == 1


def test_sizes_that_the_plan_does_not_have_are_not_believed(
    tmp_path: Path, clustered: list[str]
) -> None:
    path = tmp_path / "cache.json"
    right = run(model(), path).to_dict()
    keys = [judging_key.split(b'"')[3].decode() for judging_key in lines_of(path)[1:]]
    path.write_bytes(lines_of(path)[0] + b"".join(_line(key, 1, 0.0) for key in keys))
    del clustered[:]
    assert run(model(), path).to_dict() == right
    assert len(clustered) == 4


def test_a_full_disk_leaves_the_lines_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.json"
    file = LossFile(path)
    file.add({"a": (1, 2.0)})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.add({"b": (1, 2.0)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert LossFile(path).get("a") == (1, 2.0)


SPECS = [
    {},
    {"n_bits": 3, "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 4}},
    {"n_bits": 2, "lut_qspec": {"dtype": "int8", "qscheme": "symmetric"}},
    {"n_bits": 2, "lut_qspec": {"dtype": "uint8", "qscheme": "asymmetric"}},
    {"n_bits": 8, "lut_qspec": {"dtype": "float8_e4m3fn"}, "enable_per_channel_scale": True},
    {"n_bits": 4, "cluster_dim": 2},
]


BLOCKS = [
    {"n_bits": 4, "scale_block_size": 4},
    {"n_bits": 2, "lut_qspec": {"dtype": "int8"}, "scale_block_size": 8},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", BLOCKS)
def test_sizes_with_scales_by_block_are_known_where_the_weight_has_no_choice(
    spec: dict, dtype: torch.dtype
) -> None:
    """In float32 weights, scales are of float16 or float32, which weights decide."""
    chosen = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": spec}}}}
    )
    net = model().to(dtype)
    plan = make_plan(trace(net, (INPUTS[0].to(dtype),)), chosen, get_catalog())
    weights = dict(net.named_parameters())
    for item, result in zip(
        plan, Executor().run([Job(item, weights[item.name]) for item in plan]), strict=True
    ):
        known = planned_bits(item, get_catalog())
        expected = stored_bits(result.palettized, item.spec.stored_form)
        assert known == (None if dtype is torch.float32 else expected)


def test_cached_losses_of_scales_by_block_are_answered(
    tmp_path: Path, clustered: list[str]
) -> None:
    def once() -> list[float]:
        how = {"candidates": (2, {"n_bits": 2, "scale_block_size": 4})}
        found = allocate(
            model(), config(None), INPUTS, target_bpw=6, cache=tmp_path / "cache.json", **how
        )
        return [c.loss for t in found.tensors for c in t.candidates]

    first = once()
    assert len(clustered) == 4
    assert once() == first
    assert len(clustered) == 4


@pytest.mark.parametrize("spec", SPECS)
def test_the_size_of_a_plan_is_that_of_its_palettes(spec: dict) -> None:
    settings = {
        "op_state_spec": {"weight": spec},
        "enable_fast_kmeans_mode": "cluster_dim" not in spec,
    }
    chosen = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": settings}}
    )
    net = model()
    plan = make_plan(trace(net, INPUTS), chosen, get_catalog())
    weights = dict(net.named_parameters())
    results = Executor().run([Job(item, weights[item.name]) for item in plan])
    for item, result in zip(plan, results, strict=True):
        expected = stored_bits(result.palettized, item.spec.stored_form)
        assert planned_bits(item, get_catalog()) == expected
