"""Bits budgets end to end: sizes counted exactly, metrics, constraints, the written config."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    PalettizationSpec,
    allocate,
    bits_per_weight,
)
from palette_core.allocation import Allocation
from palette_core.errors import AllocationError, UnknownPluginError

INPUTS = (torch.randint(0, 40, (3, 6), generator=torch.Generator().manual_seed(1)),)


class Net(nn.Module):
    """An embedding, attention, a convolution, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.conv = nn.Conv1d(16, 32, 3, padding=1)
        self.out = nn.Linear(32, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            self.out.weight.mul_(5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attn(x, x, x)[0]
        x = self.out(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(x)


CONFIG = {
    "kmeans_palettization_config": {
        "global_config": {
            "op_state_spec": {"weight": {"n_bits": 4}, "in_proj_weight": {"n_bits": 4}}
        }
    }
}


def config() -> KMeansPalettizerConfig:
    return KMeansPalettizerConfig.from_dict(CONFIG)


def run(target: float = 3.5, **how) -> Allocation:
    return allocate(Net().eval(), config(), INPUTS, target_bpw=target, **how)


def measured(allocation: Allocation) -> tuple[KMeansPalettizer, nn.Module]:
    """Prepare a fresh model with the written config, through YAML."""
    written = KMeansPalettizerConfig.from_dict(allocation.config.to_dict())
    model = Net().eval()
    palettizer = KMeansPalettizer(model, written)
    palettizer.prepare(INPUTS)
    return palettizer, model


def test_the_config_gives_what_was_promised() -> None:
    allocation = run()
    palettizer, _ = measured(allocation)
    report = palettizer.report
    assert report is not None
    assert len(report.tensors) == len(allocation.tensors) == 5
    bits = {t.name: t.n_bits for t in report.tensors}
    assert bits == {t.name: t.choice.plan.spec.n_bits for t in allocation.tensors}
    assert len(set(bits.values())) > 1
    # Rounded up to bytes in the report, tensor by tensor.
    assert report.bits_per_palettized_weight == pytest.approx(allocation.bits_per_weight, rel=1e-3)
    assert allocation.bits_per_weight <= 3.5


@pytest.mark.parametrize("target", [9.0, 12.0])
def test_the_whole_model_counts_when_asked(target: float) -> None:
    allocation = run(target, over="model")
    _, model = measured(allocation)
    assert bits_per_weight(model) == pytest.approx(allocation.bits_per_weight, rel=1e-12)
    assert allocation.bits_per_weight <= target


def test_nothing_within_the_target_is_predicted_to_lose_less() -> None:
    allocation = run(3.2, candidates=(2, 3, 4))
    rows = [t.candidates for t in allocation.tensors]
    weights = sum(torch.Size(r[0].plan.shape).numel() for r in rows)
    best = min(
        sum(c.loss for c in pick)
        for pick in itertools.product(*rows)
        if sum(c.bits for c in pick) <= 3.2 * weights
    )
    assert allocation.predicted_loss == pytest.approx(best, rel=1e-12)
    assert allocation.lower_bound <= best * (1 + 1e-12)


def test_the_curve_passes_through_better_and_worse() -> None:
    curve = run().curve
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(curve))


@pytest.mark.slow
@pytest.mark.parametrize("over", ["palettized", "model"])
def test_every_point_of_a_curve_can_be_asked_for(over: str, tmp_path: Path) -> None:
    how = {"over": over, "candidates": (2, 3, 4), "cache": tmp_path / "cache.json"}
    first = run(12.0, **how)
    assert len(first.curve) > 10
    for bits, loss in first.curve:
        found = run(bits, **how)
        assert (found.bits_per_weight, found.predicted_loss) == (bits, loss)
        assert found.bits_per_weight <= found.target_bpw


def test_a_target_beyond_everything_takes_the_least_loss() -> None:
    assert run(1e300, candidates=(2, 3)).predicted_loss == run(4, candidates=(3,)).predicted_loss


def test_data_free_is_the_relative_squared_error() -> None:
    allocation = run(8.0, candidates=(2,))
    _, model = measured(allocation)
    dense = dict(Net().named_parameters())
    for tensor in allocation.tensors:
        owner, _, state = tensor.name.rpartition(".")
        decoded = getattr(model.get_submodule(owner), state)
        before = dense[tensor.name].detach().double()
        error = (decoded.detach().double() - before).square().sum()
        expected = float(error / before.square().sum())
        assert tensor.choice.loss == pytest.approx(expected, rel=1e-9)


def test_output_is_what_the_model_says_with_one_weight_changed() -> None:
    batches = [INPUTS, (INPUTS[0].flip(0),)]
    allocation = run(8.0, candidates=(1,), metric="output", batches=batches)
    dense = Net().eval()
    for tensor in allocation.tensors:
        only = KMeansPalettizerConfig.from_dict(allocation.config.to_dict())
        owner = tensor.choice.plan.owners[0]
        entry = only.module_name_configs[owner.module.replace(".", r"\.")]
        entry.module_state_spec = {owner.state: entry.module_state_spec[owner.state]}
        only.module_name_configs = {owner.module.replace(".", r"\."): entry}
        one = Net().eval()
        KMeansPalettizer(one, only).prepare(INPUTS)
        with torch.no_grad():
            losses = []
            for batch in batches:
                a, b = dense(*batch).double(), one(*batch).double()
                losses.append(float((a - b).square().sum() / a.square().sum()))
        assert tensor.choice.loss == pytest.approx(sum(losses) / 2, rel=1e-6), tensor.name


def test_kl_of_logits() -> None:
    allocation = run(
        8.0,
        candidates=(2,),
        metric="output",
        metric_options={"divergence": "kl"},
        batches=[INPUTS],
        exclude=[r"(?!out\.).*"],
    )
    (tensor,) = allocation.tensors
    _, model = measured(allocation)
    with torch.no_grad():
        expected = nn.functional.kl_div(
            model(*INPUTS).log_softmax(-1).flatten(0, 1),
            Net().eval()(*INPUTS).log_softmax(-1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
    assert tensor.choice.loss == pytest.approx(float(expected), rel=1e-3)


def test_hessian_is_the_layers_output_error() -> None:
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    weight = model[0].weight.detach().clone()
    allocation = allocate(
        model, None, (inputs,), target_bpw=8, candidates=(1,), metric="hessian", batches=[inputs]
    )
    KMeansPalettizer(model, allocation.config).prepare((inputs,))
    with torch.no_grad():
        error = (model(inputs) - inputs @ weight.T).double().square().sum() / 50
    assert allocation.tensors[0].choice.loss == pytest.approx(float(error), rel=1e-5)


def calibrated(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    model = Net().eval()
    palettizer = KMeansPalettizer(model, config())
    palettizer.prepare(INPUTS)
    with palettizer.calibration_mode(
        loss_fn=nn.functional.mse_loss, sensitivity_path=path
    ) as calibration:
        for step in range(2):
            target = torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(step))
            calibration.step(model(*INPUTS), target)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [None, "gptq"])
def test_fisher_weighs_errors_by_squared_gradients(tmp_path: Path, algorithm: str | None) -> None:
    path = calibrated(tmp_path, "s.safetensors")
    wanted = copy.deepcopy(CONFIG)
    for spec in wanted["kmeans_palettization_config"]["global_config"]["op_state_spec"].values():
        spec["algorithm"] = algorithm
    settings = KMeansPalettizerConfig.from_dict(wanted)
    how = {"target_bpw": 8.0, "candidates": (2,), "metric": "fisher", "sensitivity_path": path}
    allocation = allocate(Net().eval(), settings, INPUTS, batches=[INPUTS], **how)
    written = KMeansPalettizerConfig.from_dict(allocation.config.to_dict())
    model = Net().eval()
    palettizer = KMeansPalettizer(model, written)
    palettizer.calibrate([INPUTS])
    # One that looks at moments takes no sensitivities; they are the metric's alone.
    palettizer.prepare(INPUTS, sensitivity_path=None if algorithm else path)
    dense = Net().eval()
    squares = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in dense.named_parameters()}
    for step in range(2):
        target = torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(step))
        dense.zero_grad()
        nn.functional.mse_loss(dense(*INPUTS), target).backward()
        for name, parameter in dense.named_parameters():
            squares[name] += parameter.grad.double().square() / 2
    for tensor in allocation.tensors:
        owner, _, state = tensor.name.rpartition(".")
        decoded = getattr(model.get_submodule(owner), state).double()
        change = decoded - dict(dense.named_parameters())[tensor.name].double()
        expected = 0.5 * float((squares[tensor.name] * change.square()).sum())
        # Elements without a gradient count as the smallest there is, not as nothing.
        assert tensor.choice.loss == pytest.approx(expected, rel=1e-3)


def test_fisher_wants_a_file_that_compares_weights(tmp_path: Path) -> None:
    with pytest.raises(AllocationError, match="calibration_mode"):
        run(metric="fisher")
    path = calibrated(tmp_path, "s.pt")
    with pytest.raises(AllocationError, match="safetensors"):
        run(metric="fisher", sensitivity_path=path)


def test_constraints() -> None:
    allocation = run(
        5.0,
        fixed={r"embed\.weight": 6},
        minimum={r"attn\..*": 3},
        exclude=[r"conv\.weight"],
        candidates=(1, 2, 3),
    )
    bits = {t.name: t.choice.plan.spec.n_bits for t in allocation.tensors}
    assert "conv.weight" not in bits
    assert bits["embed.weight"] == 6
    assert {b for n, b in bits.items() if n.startswith("attn")} <= {3, 4, 6, 8}
    palettizer, _ = measured(allocation)
    assert palettizer.plan is not None
    assert {p.name for p in palettizer.plan} == set(bits)


def test_candidates_of_other_kinds_and_shapes() -> None:
    grouped = {"type": "per_grouped_channel", "group_size": 16}
    allocation = run(
        4.0, candidates=[2, {"n_bits": 2, "granularity": grouped}, {"n_bits": 3}], over="palettized"
    )
    rows = {t.name: t.candidates for t in allocation.tensors}
    assert len(rows["conv.weight"]) == 3
    assert len(rows["embed.weight"]) == 2  # 40 rows have no groups of 16
    by_spec = {c.plan.spec.granularity.type: c for c in rows["conv.weight"][:2]}
    assert by_spec["per_grouped_channel"].bits > by_spec["per_tensor"].bits
    assert by_spec["per_grouped_channel"].loss < by_spec["per_tensor"].loss


def test_scales_by_block_are_candidates_and_come_out_as_promised() -> None:
    """Of the same bits per index, they cost a little more and lose less."""
    blocks = {"n_bits": 3, "scale_block_size": 8}
    allocation = run(5.0, candidates=[2, 3, blocks], over="palettized")
    rows = {t.name: t.candidates for t in allocation.tensors}["out.weight"]
    assert [c.plan.granularity for c in rows] == [*["per tensor"] * 2, "per tensor, scale / 8"]
    assert rows[2].bits == rows[1].bits + 16 * 32 // 8 * 16
    assert rows[2].loss < rows[1].loss < rows[0].loss
    chosen = {t.name: t.choice.plan for t in allocation.tensors}
    assert any(plan.spec.scale_block_size == 8 for plan in chosen.values())
    palettizer, _ = measured(allocation)
    assert palettizer.report is not None
    assert {t.name: t.granularity for t in palettizer.report.tensors} == {
        name: plan.granularity for name, plan in chosen.items()
    }
    assert palettizer.report.bits_per_palettized_weight == pytest.approx(
        allocation.bits_per_weight, rel=2e-3
    )


def test_a_backends_refusals_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from palette_core.builtins.backends.packed import PackedBackend
    from palette_core.plugins import Refusal

    monkeypatch.setattr(
        PackedBackend,
        "check_support",
        lambda self, facts: Refusal("odd") if facts.spec.n_bits % 2 else None,
    )
    allocation = run(8.0, backend="packed", candidates=(3, 4))
    assert {c.plan.spec.n_bits for t in allocation.tensors for c in t.candidates} == {4}
    with pytest.raises(AllocationError, match="the backend refuses it: odd"):
        run(8.0, backend="packed", candidates=(3,))


def test_the_cache_answers_and_a_change_of_anything_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palette_core.allocation import judging

    asked: list[str] = []
    original = judging.Executor.run

    def counted(self, jobs, **how):
        asked.extend(job.plan.name for job in jobs)
        return original(self, jobs, **how)

    monkeypatch.setattr(judging.Executor, "run", counted)
    path = tmp_path / "cache.json"
    first = run(candidates=(2, 4), cache=path)
    assert len(asked) == 10
    again = run(candidates=(2, 4), cache=path)
    assert len(asked) == 10
    assert again.to_dict() == first.to_dict()
    run(candidates=(2, 3, 4), cache=path)
    assert len(asked) == 15
    run(candidates=(2,), metric="output", batches=[INPUTS], cache=path, target=8)
    assert len(asked) == 20
    run(candidates=(2,), metric="output", batches=[INPUTS], cache=path, target=8)
    assert len(asked) == 20
    run(candidates=(2,), metric="output", batches=[INPUTS, INPUTS], cache=path, target=8)
    assert len(asked) == 25
    path.write_text("{")
    with pytest.raises(AllocationError, match="delete it"):
        run(cache=path)


def test_an_interrupt_keeps_what_was_judged(tmp_path: Path, monkeypatch) -> None:
    from palette_core.allocation import judging

    original, calls = judging.Executor.run, []

    def interrupted(self, jobs, **how):
        calls.append(len(jobs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, jobs, **how)

    monkeypatch.setattr(judging.Executor, "run", interrupted)
    path = tmp_path / "cache.json"
    with pytest.raises(KeyboardInterrupt):
        run(candidates=(2, 4), cache=path)
    assert len(path.read_text().splitlines()) == 1 + 4
    monkeypatch.undo()
    assert run(candidates=(2, 4), cache=path).to_dict() == run(candidates=(2, 4)).to_dict()


def test_the_model_and_the_random_states_stay() -> None:
    model = Net().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    allocate(
        model,
        config(),
        INPUTS,
        target_bpw=3.5,
        metric="output",
        batches=[INPUTS],
        candidates=(2, {"n_bits": 4}),
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_workers_change_nothing() -> None:
    import joblib

    with joblib.parallel_config(backend="threading"):
        assert run(num_workers=2).to_dict() == run().to_dict()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"target": 1.0}, "target_bpw=1 cannot be reached"),
        ({"target": 0}, "must be positive"),
        ({"target": float("nan")}, "must be positive"),
        ({"target": float("inf")}, "must be positive and finite"),
        ({"target": "3"}, "got '3'"),
        ({"target": True}, "got True"),
        ({"candidates": ()}, "no candidates"),
        ({"candidates": (9,)}, "candidate 9 is no spec"),
        ({"candidates": ({"bits": 4},)}, "is no spec"),
        ({"candidates": ("4",)}, "candidate '4' is no spec"),
        ({"over": "weights"}, "'palettized' or 'model'"),
        ({"metric": "hessian"}, "calibration batches"),
        ({"metric": "output"}, "calibration batches"),
        ({"exclude": ["embedd.*"]}, "matches no tensor"),
        ({"exclude": ["("]}, "not a valid regular expression"),
        ({"exclude": [".*"]}, "no tensor is left"),
        ({"minimum": {"out.*": 5}, "candidates": (2, 3)}, "no candidate is left for out.weight"),
    ],
)
def test_bad_input(how: dict, words: str) -> None:
    with pytest.raises(AllocationError, match=words):
        run(**how)


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (1.5, TypeError)])
def test_workers_are_checked_before_any_work(workers: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="num_workers must be"):
        run(num_workers=workers)


def test_an_unknown_metric_lists_the_known() -> None:
    with pytest.raises(UnknownPluginError, match="data_free, fisher, hessian, output"):
        run(metric="datafree")


def test_a_palettized_model_is_refused() -> None:
    model = Net().eval()
    KMeansPalettizer(model, config()).prepare(INPUTS)
    with pytest.raises(AllocationError, match="palettized already"):
        allocate(model, config(), INPUTS, target_bpw=4)


def test_what_the_config_says_besides_specs_is_kept() -> None:
    settings = config()
    settings.global_config.enable_fast_kmeans_mode = False
    settings.seed = 7
    written = allocate(Net().eval(), settings, INPUTS, target_bpw=4).config
    assert written.seed == 7
    assert all(not m.enable_fast_kmeans_mode for m in written.module_name_configs.values())


def test_hostile_module_names() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ("a+b", "a_b", "a", "(", "weight"):
        inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        model.add_module(name, inner)
    allocation = allocate(model, None, (torch.randn(2, 8),), target_bpw=4.7, candidates=(2, 4))
    KMeansPalettizer(model, allocation.config).prepare((torch.randn(2, 8),))
    assert bits_per_weight(model) < 32


def test_specs_that_the_config_gives_are_kept_where_candidates_are_silent() -> None:
    settings = config()
    settings.global_config.op_state_spec["weight"] = PalettizationSpec(
        n_bits=4, enable_per_channel_scale=True
    )
    allocation = allocate(Net().eval(), settings, INPUTS, target_bpw=8, candidates=(2,))
    scaled = {t.name: t.choice.plan.spec.enable_per_channel_scale for t in allocation.tensors}
    assert scaled["conv.weight"]
    assert not scaled["attn.in_proj_weight"]
