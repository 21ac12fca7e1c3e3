"""Calibration in the life cycle: what it changes, what it leaves alone, and when it cannot."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import palette_core.engine.executor as execution
from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.builtins.clusterers.layerwise.clusterer import Gptq
from palette_core.errors import (
    CalibrationError,
    ClusteringError,
    PaletteWarning,
    PlanError,
    StateError,
)


class Net(nn.Module):
    """A convolution, two residual blocks with attention-like sharing, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(4, 16, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 8)

    def forward(self, x):
        x = self.stem(x).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
            x += 0.0  # writes to what a block returned
        return self.head(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.o(torch.tanh(self.q(x)) * self.k(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches():
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 4, generator=g)
    return [
        (torch.einsum("ij,njt->nit", mix, torch.randn(8, 4, 12, generator=g)),) for _ in range(4)
    ]


def config(algorithm, n_bits=2, **spec):
    states = {"weight": {"n_bits": n_bits, "algorithm": algorithm, **spec}}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_state_spec": states}}}
    )


def error(model, dense, batches):
    with torch.no_grad():
        pairs = [(model(*b), dense(*b)) for b in batches]
    return sum(float((a - b).square().sum()) for a, b in pairs)


def palettized(net, batches, algorithm="lnq", num_workers=1, n_bits=2, damping=None, **options):
    more = {} if damping is None else {"algorithm_options": {"damping": damping}}
    palettizer = KMeansPalettizer(copy.deepcopy(net), config(algorithm, n_bits, **more))
    if batches:
        palettizer.calibrate(batches, **options)
    palettizer.prepare(batches[0] if batches else (torch.randn(1, 4, 12),), num_workers=num_workers)
    return palettizer


MODES = {
    "at once": {},
    "sequential": {"sequential": True},
    "sequential, weights": {"sequential": True, "compensate": False},
    "guided": {"loss": lambda out, batch: out.square().mean()},
    "guided, sequential": {"loss": lambda out, batch: out.square().mean(), "sequential": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_outputs_on_other_batches_come_nearer(net, batches, mode, algorithm):
    plain = palettized(net, batches[:0] or [], "kmeans1d")
    aware = palettized(net, batches[:3], algorithm, **MODES[mode])
    held_out = batches[3:]
    worse = error(plain._model, net, held_out)
    assert error(aware._model, net, held_out) < 0.6 * worse
    for row in aware.report.tensors:
        assert row.algorithm == algorithm
        assert row.objective_after <= row.objective_before
    assert plain.report.tensors[0].objective_before is None


def test_sequential_compensation_helps(net, batches):
    at_once = error(palettized(net, batches[:3])._model, net, batches[3:])
    in_turn = error(palettized(net, batches[:3], sequential=True)._model, net, batches[3:])
    assert in_turn < at_once


@pytest.mark.parametrize("mode", MODES)
def test_calibration_leaves_the_model_as_it_was(net, batches, mode):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    net.train()
    palettizer = KMeansPalettizer(net, config("lnq"))
    palettizer.calibrate(batches, **MODES[mode])
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any("forward" in vars(m) for m in net.modules())


def test_a_failing_batch_leaves_the_model_as_it_was(net, batches):
    runs = itertools.count()

    class Fussy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            if next(runs) >= 6:
                raise RuntimeError("enough")
            return self.net(x)

    model = Fussy()
    palettizer = KMeansPalettizer(model, config("lnq"))
    palettizer.calibrate(batches, sequential=True)
    with pytest.raises(CalibrationError, match=r"Fussy failed on calibration batch \d: .*enough"):
        palettizer.prepare(batches[0])
    assert not any("forward" in vars(m) or hasattr(m, "parametrizations") for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True])
def test_workers_give_the_same_result(net, batches, sequential, monkeypatch):
    monkeypatch.setattr(execution, "_WORTH_A_WORKER", 1)
    here = palettized(net, batches, sequential=sequential)
    there = palettized(net, batches, sequential=sequential, num_workers=2)
    for a, b in zip(
        here._model.state_dict().values(), there._model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_without_calibration_kmeans_takes_over_and_says_so(net, batches):
    palettizer = KMeansPalettizer(copy.deepcopy(net), config("lnq"))
    with pytest.warns(PaletteWarning, match=r"stem.weight, .*no calibration batches were given"):
        palettizer.prepare(batches[0])
    assert {row.algorithm for row in palettizer.report.tensors} == {"kmeans1d"}
    plain = palettized(net, [], "kmeans1d")
    for a, b in zip(
        palettizer._model.state_dict().values(), plain._model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_layer_without_usable_inputs_is_named(net, batches, sequential):
    with torch.no_grad():
        net.blocks[1].q.weight.zero_()
        net.blocks[1].q.bias.zero_()  # tanh(0) · k: what reaches o is zero
    palettizer = KMeansPalettizer(net, config("lnq"))
    palettizer.calibrate(batches, sequential=sequential)
    with pytest.warns(
        PaletteWarning, match=r"^blocks.1.o.weight: palettized by k-means.*all its inputs were zero"
    ) as warned:
        palettizer.prepare(batches[0])
    assert [w.filename for w in warned] == [__file__]  # the line that called prepare
    algorithms = {row.name: row.algorithm for row in palettizer.report.tensors}
    assert algorithms.pop("blocks.1.o.weight") == "kmeans1d"
    assert set(algorithms.values()) == {"lnq"}


@pytest.mark.parametrize("sequential", [False, True])
def test_held_out_batches_turn_down_what_makes_a_block_worse(net, batches, sequential):
    """Calibrated on inputs along one direction, a layer is lost for all others."""
    narrow = [
        (b[0][:, :1].expand(-1, 4, -1) * torch.tensor([9.0, 0.0, 0.0, 0.0])[:, None],)
        for b in batches[:2]
    ]
    how = {"sequential": sequential, "damping": 0.01}
    trusting = palettized(net, narrow, **how)
    guarded = palettized(net, narrow, **how, held_out=batches[2:3])
    chosen = {row.name: row.algorithm for row in guarded.report.tensors}
    assert "kmeans1d" in chosen.values()
    assert error(guarded._model, net, batches[3:]) < error(trusting._model, net, batches[3:])
    kept = palettized(net, batches[:3], sequential=sequential, held_out=batches[3:])
    assert "lnq" in {row.algorithm for row in kept.report.tensors}


def test_mistakes_are_explained(net, batches):
    palettizer = KMeansPalettizer(net, config("lnq"))
    with pytest.raises(CalibrationError, match="at least one batch"):
        palettizer.calibrate([])
    with pytest.raises(TypeError, match=r"^calibration batch 1 must be .* or one tensor, got int"):
        palettizer.calibrate([batches[0], 3])
    with pytest.raises(TypeError, match=r"^held-out batch 0 must be .* got str"):
        palettizer.calibrate(batches, held_out=["abc"])
    with pytest.raises(TypeError, match=r"^calibration batches must be an iterable .* NoneType"):
        palettizer.calibrate(None)
    with pytest.raises(
        CalibrationError, match="the loss failed on calibration batch 0: ValueError"
    ):
        palettizer.calibrate(batches, loss=lambda out, batch: [].remove(1))
    palettizer.calibrate(batches, sequential=True, stages=["blocks.7"])
    with pytest.raises(CalibrationError, match=r"no module 'blocks.7'; did you mean 'blocks"):
        palettizer.prepare(batches[0])
    palettizer.calibrate([b[0] for b in batches])
    palettizer.prepare(batches[0])
    with pytest.raises(StateError, match="before prepare"):
        palettizer.calibrate(batches)


@pytest.fixture
def sensitivities(net, tmp_path):
    path = tmp_path / "s.pt"
    torch.manual_seed(3)
    torch.save({n: torch.rand_like(p) ** 4 for n, p in net.named_parameters()}, path)
    return path


@pytest.mark.parametrize("sequential", [False, True])
def test_sensitivities_weigh_what_has_no_moments(net, batches, sensitivities, sequential):
    with torch.no_grad():
        net.blocks[1].q.weight.zero_()
        net.blocks[1].q.bias.zero_()  # what reaches o is zero
    made = {}
    for algorithm, path in (("lnq", None), ("lnq", sensitivities), ("kmeans1d", sensitivities)):
        palettizer = KMeansPalettizer(copy.deepcopy(net), config(algorithm))
        if algorithm == "lnq":
            palettizer.calibrate(batches, sequential=sequential)
            with pytest.warns(PaletteWarning, match="^blocks.1.o.weight: palettized by k-means"):
                made[algorithm, path] = palettizer.prepare(batches[0], path)
        else:
            made[algorithm, path] = palettizer.prepare(batches[0], path)

    def weights(key, name):
        return made[key].get_submodule(name).weight

    aware, both, plain = ("lnq", None), ("lnq", sensitivities), ("kmeans1d", sensitivities)
    assert torch.equal(weights(both, "blocks.1.o"), weights(plain, "blocks.1.o"))
    assert not torch.equal(weights(both, "blocks.1.o"), weights(aware, "blocks.1.o"))
    for name in ("stem", "blocks.0.o", "head"):
        if not sequential or name != "head":  # whose input depends on the fallback
            assert torch.equal(weights(both, name), weights(aware, name))


def test_sensitivities_that_nothing_can_use_are_refused(net, batches, sensitivities):
    palettizer = KMeansPalettizer(net, config("gptq"))
    palettizer.calibrate(batches)
    with pytest.raises(PlanError, match="'gptq' does not take sensitivities, and all weights"):
        palettizer.prepare(batches[0], sensitivities)
    in_turn = KMeansPalettizer(net, config("gptq"))
    in_turn.calibrate(batches, sequential=True)
    with pytest.warns(PaletteWarning, match="^sensitivity_path was of no use") as warned:
        in_turn.prepare(batches[0], sensitivities)
    assert [w.filename for w in warned] == [__file__]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
@pytest.mark.parametrize("spec", [{}, {"enable_per_channel_scale": True}, {"n_bits": 3}])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_pruned_weights_stay_zero_also_where_their_aim_is_not(net, batches, mode, algorithm, spec):
    zeros = {}
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.dim() > 1:
                zeros[name] = torch.rand(weight.shape) < 0.5
                weight.masked_fill_(zeros[name], 0.0)
        net.blocks[0].q.weight[3] = 0.0  # a whole channel
    zeros["blocks.0.q.weight"][3] = True
    made = {}
    for preserve in (True, False):
        given = config(algorithm, **{"preserve_zero": preserve, **spec})
        palettizer = KMeansPalettizer(copy.deepcopy(net), given)
        palettizer.calibrate(batches[:3], **MODES[mode])
        made[preserve] = palettizer.prepare(batches[0])

    def filled(preserve):
        """How many pruned weights of each layer are not zero."""
        owners = {n: made[preserve].get_submodule(n.removesuffix(".weight")) for n in zeros}
        return {n: int((owner.weight[zeros[n]] != 0).sum()) for n, owner in owners.items()}

    assert not any(filled(True).values())
    assert any(filled(False).values())
    assert error(made[True], net, batches[3:]) < 3 * error(made[False], net, batches[3:])


def test_an_algorithm_that_loses_zeros_it_promised_to_keep_is_refused(net, batches, monkeypatch):
    monkeypatch.setattr(Gptq, "fit", lambda self, p: KMeans1d().fit(replace(p, zeros=None)))
    palettizer = KMeansPalettizer(net, config("gptq", preserve_zero=True))
    with torch.no_grad():
        net.head.weight[:, ::3] = 0.0
    palettizer.calibrate(batches)
    with pytest.raises(ClusteringError, match=r"'gptq' .* declares keeps_zeros, and \d+ of"):
        palettizer.prepare(batches[0])


def test_per_channel_scale_and_finalize(net, batches):
    spec = {"enable_per_channel_scale": True, "lut_qspec": {"dtype": "int8"}}
    palettizer = KMeansPalettizer(copy.deepcopy(net), config("lnq", **spec))
    palettizer.calibrate(batches, sequential=True)
    model = palettizer.prepare(batches[0])
    with torch.no_grad():
        wanted = model(*batches[0])
        assert torch.equal(palettizer.finalize(backend="packed")(*batches[0]), wanted)


def test_a_dead_channel_of_a_depthwise_convolution(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8)).eval()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, -1.0
    dense = copy.deepcopy(model)
    palettizer = KMeansPalettizer(model, config("lnq"))
    palettizer.calibrate(batches[:3], sequential=True)
    palettizer.prepare(batches[0])
    assert {row.algorithm for row in palettizer.report.tensors} == {"lnq"}
    size = sum(float(dense(*b).detach().square().sum()) for b in batches[3:])
    assert error(model, dense, batches[3:]) < 0.3 * size
