"""Weights that only some batches use, or use more often: all batches are looked at."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.engine.executor import Executor
from palette_core.errors import CalibrationError
from palette_core.statistics.activations import Runner
from palette_core.statistics.activations.stages import find_stages
from palette_core.statistics.activations.structure import find_structure, merged

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "lnq"}}}
        }
    }
)


class Experts(nn.Module):
    """Rows go to one of two layers by their sign; a layer without rows does not run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = y = self.stem(x)
        for i, expert in enumerate(self.experts):
            rows = (x[:, 0] > 0) == bool(i)
            if rows.any():
                y = y.index_put((rows,), expert(x[rows]))
        return self.out(y)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.l, self.o = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x, turns):
        for _ in range(turns):
            x = torch.tanh(self.l(x)) * 3
        return self.o(x)


def batches():
    """Return one batch of rows for the first expert alone, and two for both."""
    torch.manual_seed(1)
    rows = torch.randn(300, 8)
    with torch.no_grad():
        one = Experts().stem(rows)[:, 0] <= -1.0
    return [(rows[one],), (rows[:40],), (rows[40:80],)]


@pytest.fixture
def counts(monkeypatch):
    """How many input vectors the moments of each weight are from."""
    found, real = {}, Executor.run

    def spy(self, jobs, *rest):
        found.update({job.plan.name: job.moments and job.moments.count for job in jobs})
        return real(self, jobs, *rest)

    monkeypatch.setattr(Executor, "run", spy)
    return found


MODES = {
    "at once": {},
    "sequential": {"sequential": True},
    "weights": {"sequential": True, "compensate": False},
    "guided": {"loss": lambda out, batch: out.square().mean()},
    "guided sequential": {"loss": lambda out, batch: out.square().mean(), "sequential": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_experts_are_calibrated_whenever_they_are_reached(mode, order, counts, recwarn):
    given = [batches()[i] for i in order]
    palettizer = KMeansPalettizer(Experts().eval(), CONFIG)
    palettizer.calibrate(given, **MODES[mode])
    palettizer.prepare(batches()[1])
    assert {row.algorithm for row in palettizer.report.tensors} == {"lnq"}
    assert not [w for w in recwarn if "k-means" in str(w.message)]
    rows = sum(len(b[0]) for b in given)
    assert counts["stem.weight"] == counts["out.weight"] == rows
    assert counts["experts.0.weight"] + counts["experts.1.weight"] == rows


def test_weights_that_the_first_batch_does_not_use_can_be_judged():
    given = batches()
    palettizer = KMeansPalettizer(Experts().eval(), CONFIG)
    palettizer.calibrate(given[:2], sequential=True, held_out=[given[0], given[2]])
    palettizer.prepare(given[1])
    assert len(palettizer.report.tensors) == 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turns", [(1, 3), (3, 1)])
def test_a_loop_counts_with_all_its_turns(mode, turns, counts):
    given = [(torch.randn(20, 8), n) for n in turns]
    palettizer = KMeansPalettizer(Loop().eval(), CONFIG)
    palettizer.calibrate(given, **MODES[mode])
    palettizer.prepare(given[0])
    assert counts == {"l.weight": 80, "o.weight": 40}


def test_structure_is_of_all_batches():
    model, given = Experts().eval(), batches()
    plans = list(KMeansPalettizer(model, CONFIG).make_plan(given[1]))
    runner = Runner(model, plans, given, find_stages(model, plans))
    found = find_structure(runner, range(2), keep=range(2))
    names = ("stem", "experts.0", "experts.1", "out")
    assert [step.stage for step in found.steps] == list(names)
    wanted = dict.fromkeys((f"{n}.weight" for n in names), 1)
    assert found.calls == {**wanted, "experts.1.weight": None}
    assert found.once == set(names)
    assert set(found.outputs[0]) == set(names) - {"experts.1"}
    with torch.no_grad():
        assert torch.equal(found.outputs[1]["out"], model(*given[1]))


@given(st.permutations(range(7)), st.lists(st.sets(st.integers(0, 6)), max_size=5))
def test_orders_that_fit_together_are_kept(order, parts):
    orders = [[item for item in order if item in part] for part in parts]
    out = merged(orders)
    assert sorted(out) == sorted(set().union(*parts))
    for part in orders:
        assert [item for item in out if item in part] == part


def test_orders_that_contradict_each_other_are_merged_all_the_same():
    assert sorted(merged([["a", "b"], ["b", "a"], ["c"]])) == ["a", "b", "c"]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    "bad",
    [torch.full((3, 8), torch.nan), torch.randn(0, 8), torch.full((3, 8), torch.inf)],
    ids=["nan", "empty", "inf"],
)
def test_held_out_batches_that_say_nothing_are_refused(sequential, bad):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    palettizer = KMeansPalettizer(model, CONFIG)
    palettizer.calibrate(
        [torch.randn(30, 8)], sequential=sequential, held_out=[torch.randn(5, 8), bad]
    )
    with pytest.raises(CalibrationError, match="nothing can be judged by held-out batch 1: "):
        palettizer.prepare((torch.randn(2, 8),))
    assert not any(hasattr(m, "parametrizations") for m in model.modules())


@pytest.mark.parametrize("sequential", [False, True])
def test_a_single_bad_row_is_left_out_of_the_judgement(sequential):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    narrow = [torch.randn(40, 1) * torch.tensor([9.0, *[0.0] * 7])]
    held_out = torch.randn(30, 8)
    held_out[3] = torch.nan
    palettizer = KMeansPalettizer(model, CONFIG)
    palettizer.calibrate(narrow, sequential=sequential, held_out=[held_out])
    palettizer.prepare((held_out,))
    assert palettizer.report.tensors[0].algorithm == "kmeans1d"


def test_batches_that_do_not_fit_are_named_by_what_they_are():
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    palettizer = KMeansPalettizer(model, CONFIG)
    good, narrow = torch.randn(30, 8), torch.randn(3, 7)
    message = r"Sequential failed on calibration batch 1: RuntimeError: mat1 and mat2 .*3x7"
    with pytest.raises(CalibrationError, match=message):
        palettizer.calibrate([good, narrow])
    palettizer.calibrate([good], held_out=[narrow])
    with pytest.raises(CalibrationError, match="Sequential failed on held-out batch 0: Runtime"):
        palettizer.prepare((good,))


def test_what_looks_at_weights_is_not_taken_for_the_model():
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    plans = list(KMeansPalettizer(model, CONFIG).make_plan((torch.randn(2, 8),)))
    full = OSError("no space left")

    def see(seen):
        raise full

    message = r"'linear' multiplies 0\.weight with .* calibration batch 0: OSError: no space left"
    with pytest.raises(CalibrationError, match=message) as failed:
        Runner(model, plans, [(torch.randn(2, 8),)]).run(0, see)
    assert failed.value.__cause__ is full
