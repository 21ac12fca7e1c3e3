"""calibration_mode(): what is measured, and what becomes of the palettes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_oracle import documented, measured, squares
from palettizer_models import (
    EVERYTHING_INPUTS,
    EVERYTHING_NAMES,
    MLP_INPUTS,
    TOKENS,
    Everything,
    Tied,
    decoded_weights,
    everything_config,
    mlp,
    squared_error,
    weight_config,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from palette_core import (
    KMeansPalettizer,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.errors import PaletteWarning, PlanError, SensitivityError, StateError

Step = tuple[tuple[Any, ...], Tensor]


def mse(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output.float(), target.float())


def batches(shape: tuple[int, ...], target: tuple[int, ...], count: int = 3) -> list[Step]:
    generator = torch.Generator().manual_seed(7)
    return [
        ((torch.randn(shape, generator=generator),), torch.randn(target, generator=generator))
        for _ in range(count)
    ]


MLP_BATCHES = batches((5, 8), (5, 4))


def calibrate(
    palettizer: KMeansPalettizer,
    model: nn.Module,
    steps: list[Step],
    loss_fn: Callable[..., Tensor] = mse,
    **options: Any,
) -> None:
    with palettizer.calibration_mode(loss_fn=loss_fn, **options) as calibration:
        for inputs, target in steps:
            calibration.step(model(*inputs), target)
        assert calibration.steps == len(steps)


def agree(model: nn.Module, dense: nn.Module, steps: list[Step], rtol: float = 1e-4) -> None:
    """The model's sensitivities are those of plain autograd on its dense twin."""
    found = measured(model)
    expected = squares(dense, found, [lambda m, i=i, t=t: mse(m(*i), t) for i, t in steps])
    for name, total in expected.items():
        assert found[name].dtype is torch.float32
        torch.testing.assert_close(
            found[name].double(),
            documented(total),
            rtol=rtol,
            atol=1e-6,
        )


def prepared(model: nn.Module, inputs: Any, config: Any) -> tuple[KMeansPalettizer, nn.Module]:
    palettizer = KMeansPalettizer(model, config)
    return palettizer, palettizer.prepare(inputs)


# --- what is measured ---------------------------------------------------------------------------


@pytest.mark.parametrize("offload", [False, True])
def test_squares_of_gradients_add_up_over_steps(offload: bool) -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    calibrate(palettizer, model, MLP_BATCHES, offload=offload)
    agree(model, mlp(), MLP_BATCHES)


def test_every_kind_of_layer() -> None:
    palettizer, model = prepared(Everything().eval(), EVERYTHING_INPUTS, everything_config())
    steps = batches((2, 5, 8), (2, 5, 6))
    calibrate(palettizer, model, steps)
    assert set(measured(model)) == EVERYTHING_NAMES
    agree(model, Everything().eval(), steps)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.layer = kind(8, 6, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    names = [f"weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)]
    config = weight_config()
    config.set_module_type(
        kind,
        ModuleKMeansPalettizerConfig(
            op_state_spec=dict.fromkeys(names, PalettizationSpec(n_bits=2))
        ),
    )
    steps = batches((2, 5, 8), (2, 5, 6))
    palettizer, model = prepared(Recurrent(), steps[0][0], config)
    assert len(measured(model)) == 4
    calibrate(palettizer, model, steps)
    agree(model, Recurrent(), steps)


def test_a_tied_weight_gets_the_gradient_of_all_its_uses() -> None:
    config = weight_config()
    config.set_module_type(nn.Embedding, config.global_config)
    palettizer, model = prepared(Tied(), TOKENS, config)
    target = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    calibrate(palettizer, model, [(TOKENS, target)])
    found = measured(model)
    assert found["embed.weight"] is found["head.weight"]
    agree(model, Tied(), [(TOKENS, target)])


def test_frozen_weights_are_measured_all_the_same() -> None:
    model = mlp().requires_grad_(False)
    palettizer, model = prepared(model, MLP_INPUTS, weight_config())
    calibrate(palettizer, model, MLP_BATCHES)
    agree(model, mlp(), MLP_BATCHES)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_buffer_as_weight() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", mlp()[0].weight.detach().clone())
            self.head = mlp()[2]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(F.linear(x, self.weight)))

    palettizer, model = prepared(Model(), MLP_INPUTS, weight_config())
    calibrate(palettizer, model, MLP_BATCHES)
    dense = Model()
    dense.weight = nn.Parameter(dense._buffers.pop("weight"))
    agree(model, dense, MLP_BATCHES)
    assert not dict(model.named_buffers())["parametrizations.weight.original"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    steps = [(tuple(x.to(dtype) for x in i), t) for i, t in MLP_BATCHES]
    palettizer, model = prepared(mlp().to(dtype), steps[0][0], weight_config())
    calibrate(palettizer, model, steps)
    agree(model, mlp().to(dtype), steps, rtol=1e-3)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**80])
def test_gradients_whose_squares_leave_the_range_of_float32(scale: float) -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    calibrate(palettizer, model, MLP_BATCHES, lambda o, t: mse(o, t) * scale)
    agree(model, mlp(), MLP_BATCHES)


def test_steps_of_very_different_magnitudes() -> None:
    factors = [2.0**-30, 2.0**20, 2.0**-5]
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    with palettizer.calibration_mode(loss_fn=lambda o, t: mse(o, t[0]) * t[1]) as calibration:
        for (inputs, target), factor in zip(MLP_BATCHES, factors, strict=True):
            calibration.step(model(*inputs), (target, factor))
    agree(model, mlp(), MLP_BATCHES[1:2])  # the middle one is all that counts


def test_autocast_and_a_scaled_loss() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    dense = mlp()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with palettizer.calibration_mode(loss_fn=lambda o, t: scaler.scale(mse(o, t))) as calibration:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            model(*MLP_INPUTS)
        for inputs, target in MLP_BATCHES:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = model(*inputs)
            calibration.step(output, target)
    found = measured(model)

    def loss(m: nn.Module, i: Any, t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = m(*i)
        return mse(output, t)

    steps = [lambda m, i=i, t=t: loss(m, i, t) for i, t in MLP_BATCHES]
    for name, total in squares(dense, found, steps).items():
        torch.testing.assert_close(found[name].double(), documented(total), rtol=1e-3, atol=1e-6)


class Checkpointed(nn.Module):
    """Tokens in; an embedding that is not palettized, then checkpoints, one layer in two."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.reentrant = reentrant
        self.embed = nn.Embedding(11, 8)
        self.shared = nn.Linear(8, 8)
        self.single = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def block(self, x: Tensor) -> Tensor:
        return torch.tanh(self.shared(self.single(x)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for part in (self.block, self.shared, torch.tanh, self.shared):
            if self.reentrant is None:
                x = part(x)
            else:
                x = checkpoint(part, x, use_reentrant=self.reentrant)
        return self.head(x)


TOKEN_BATCHES = [
    ((torch.randint(11, (2, 3), generator=torch.Generator().manual_seed(s)),), t)
    for s, (_, t) in enumerate(batches((1,), (2, 3, 4)))
]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_gradient_checkpointing(reentrant: bool, train: bool) -> None:
    model = Checkpointed(reentrant).train(train)
    palettizer, model = prepared(model, TOKEN_BATCHES[0][0], weight_config())
    calibrate(palettizer, model, TOKEN_BATCHES)
    agree(model, Checkpointed(None), TOKEN_BATCHES)


def test_evaluation_runs_between_steps_do_not_count() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    with palettizer.calibration_mode(loss_fn=mse) as calibration:
        for inputs, target in MLP_BATCHES:
            with torch.no_grad():
                model(*inputs)
            calibration.step(model(*inputs), target)
            model(*inputs)
    agree(model, mlp(), MLP_BATCHES)


def test_sparse_gradients() -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(4)
        return nn.Sequential(nn.Embedding(11, 8, sparse=True), nn.Linear(8, 4))

    config = weight_config()
    config.set_module_type(nn.Embedding, config.global_config)
    palettizer, model = prepared(make(), TOKEN_BATCHES[0][0], config)
    calibrate(palettizer, model, TOKEN_BATCHES)
    agree(model, make(), TOKEN_BATCHES)


def test_layouts_other_than_contiguous() -> None:
    def make() -> nn.Module:
        torch.manual_seed(4)
        layer = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
        layer.weight.data = layer.weight.data.transpose(2, 3)
        return nn.Sequential(layer)

    steps = batches((2, 8, 5, 5), (2, 16, 3, 3))
    palettizer, model = prepared(make(), steps[0][0], weight_config())
    calibrate(palettizer, model, steps)
    agree(model, make(), steps)


# --- what becomes of the palettes ---------------------------------------------------------------

SPECS: list[dict[str, Any]] = [
    {},
    {"enable_per_channel_scale": True},
    {"cluster_dim": 2, "fast": False},
    {"lut_qspec": {"dtype": "int8"}},
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".sens"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_fresh_model_prepared_with_the_file_is_the_same_bit_for_bit(
    tmp_path: Path, spec: dict[str, Any], suffix: str
) -> None:
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config(**spec))
    plain = decoded_weights(model)
    calibrate(palettizer, model, MLP_BATCHES, sensitivity_path=path)
    fresh = KMeansPalettizer(mlp(), weight_config(**spec))
    other = fresh.prepare(MLP_INPUTS, path)
    for (name, mine), (_, theirs) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    fresh.save_sensitivities(again)
    assert path.read_bytes() == again.read_bytes() or suffix in (".pt", ".pth")
    assert [(r.name, r.snr_db) for r in palettizer.report.tensors] == [
        (r.name, r.snr_db) for r in fresh.report.tensors
    ]
    assert any(not torch.equal(plain[n], w) for n, w in decoded_weights(model).items())


def test_weights_that_matter_are_met_more_closely() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config(n_bits=3))
    plain = decoded_weights(model)
    snr = [row.snr_db for row in palettizer.report.tensors]
    calibrate(palettizer, model, MLP_BATCHES)
    now, dense = decoded_weights(model), mlp()
    for name, sensitivity in measured(model).items():
        weight = dense.get_parameter(name)
        assert squared_error(now[name], weight, sensitivity) < squared_error(
            plain[name], weight, sensitivity
        )
    # Plain k-means is the optimum of the plain error, which the report tells.
    assert all(
        a < b for a, b in zip([r.snr_db for r in palettizer.report.tensors], snr, strict=True)
    )


def test_the_loss_itself_gets_smaller() -> None:
    torch.manual_seed(0)
    scales = torch.logspace(-1, 1, 32)
    data = torch.randn(64, 32) * scales
    noise = torch.randn(64, 16)
    losses = []
    for sensitive in (False, True):
        torch.manual_seed(1)
        dense = nn.Linear(32, 16)
        dense.weight.data /= scales  # the smallest weights matter most
        target = dense(data).detach()
        palettizer, model = prepared(dense, (data,), weight_config(n_bits=3))
        if sensitive:
            # At the optimum the gradient vanishes; that for a noisy target does not.
            samples = zip(data, target + noise, strict=True)
            calibrate(palettizer, model, [((x[None],), y[None]) for x, y in samples])
        losses.append(float(mse(model(data), target).detach()))
    assert losses[1] < 0.5 * losses[0]


def test_a_copy_is_calibrated_alone() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    before, report = decoded_weights(model), palettizer.report
    twin = copy.deepcopy(model)
    with palettizer.calibration_mode(twin, loss_fn=mse) as calibration:
        for inputs, target in MLP_BATCHES:
            calibration.step(twin(*inputs), target)
    assert all(torch.equal(before[n], w) for n, w in decoded_weights(model).items())
    assert palettizer.report is report
    assert not torch.equal(twin[0].weight, model[0].weight)
    agree(twin, mlp(), MLP_BATCHES)


def test_calibrating_again_replaces_what_was_measured() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    calibrate(palettizer, model, MLP_BATCHES)
    calibrate(palettizer, model, MLP_BATCHES[:1])
    agree(model, mlp(), MLP_BATCHES[:1])


def test_workers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib

    results = []
    for workers in (1, 4):
        palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
        with joblib.parallel_config(backend="threading"):
            calibrate(palettizer, model, MLP_BATCHES, num_workers=workers)
        results.append(decoded_weights(model))
    assert all(torch.equal(results[0][n], w) for n, w in results[1].items())


def test_weights_that_train_dense_use_them_when_their_step_comes() -> None:
    from palette_core import PATSchedule

    def scheduled() -> KMeansPalettizer:
        config = weight_config()
        config.global_config.pat_schedule = PATSchedule(enable_fake_palettize=1)
        return KMeansPalettizer(mlp(), config)

    palettizer = scheduled()
    model = palettizer.prepare(MLP_INPUTS)
    calibrate(palettizer, model, MLP_BATCHES)
    calibrated = decoded_weights(model)
    with palettizer.training_mode():
        palettizer.step()  # the weights have not moved
    assert all(torch.equal(calibrated[n], w) for n, w in decoded_weights(model).items())


# --- what cannot be measured --------------------------------------------------------------------


def test_no_gradient_means_plain_k_means_and_a_warning() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = mlp()[0], mlp(1)[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0 * self.idle(x)

    palettizer, model = prepared(Model(), MLP_INPUTS, weight_config())
    plain = decoded_weights(model)
    with pytest.warns(PaletteWarning, match=r"reached idle\.weight; plain k-means"):
        calibrate(palettizer, model, batches((5, 8), (5, 16)))
    now = decoded_weights(model)
    assert torch.equal(now["idle.weight"], plain["idle.weight"])
    assert not torch.equal(now["used.weight"], plain["used.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite(value: float) -> None:
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * value

    class Model(nn.Sequential):
        spoil = False

        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            return self[2](self[1](Spoil.apply(x) if self.spoil else x))

    palettizer, model = prepared(Model(*mlp()), MLP_INPUTS, weight_config())
    before = decoded_weights(model)

    def spoiled() -> None:
        with palettizer.calibration_mode(loss_fn=mse) as calibration:
            for inputs, target in MLP_BATCHES:
                calibration.step(model(*inputs), target)
                model.spoil = True

    with pytest.raises(
        SensitivityError, match=r"gradient of 0\.weight is NaN or infinite in step 2"
    ):
        spoiled()
    assert all(torch.equal(before[n], w) for n, w in decoded_weights(model).items())


def test_a_failed_step_ends_the_calibration() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    before = decoded_weights(model)
    inputs, target = MLP_BATCHES[0]

    def failing() -> None:
        with palettizer.calibration_mode(loss_fn=mse) as calibration:
            calibration.step(model(*inputs), target)
            output = model(*inputs)
            output.register_hook(lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                calibration.step(output, target)
            with pytest.raises(StateError, match="an earlier step has failed"):
                calibration.step(model(*inputs), target)

    with pytest.raises(SensitivityError, match="step 2 of the calibration failed"):
        failing()
    assert all(torch.equal(before[n], w) for n, w in decoded_weights(model).items())


def test_a_wrong_loss_is_refused_and_harmless() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    inputs, target = MLP_BATCHES[0]
    other = mlp()
    with palettizer.calibration_mode(loss_fn=lambda o, t: t(o)) as calibration:
        output = model(*inputs)
        for loss, error, match in (
            (lambda o: 3.0, TypeError, "must return a tensor, got float"),
            (
                lambda o: o,
                SensitivityError,
                r"must return a scalar, got a tensor of shape \(5, 4\)",
            ),
            (lambda o: o.sum() * float("nan"), SensitivityError, "the loss is nan in step 1"),
            (lambda o: o.detach().sum(), SensitivityError, "does not depend on any palettized"),
        ):
            with pytest.raises(error, match=match):
                calibration.step(output, loss)
        calibration.step(output, lambda o: mse(o, target))
    agree(model, mlp(), MLP_BATCHES[:1])
    with (
        pytest.raises(SensitivityError, match="does not depend on any palettized weight"),
        palettizer.calibration_mode(loss_fn=mse) as calibration,
    ):
        calibration.step(other(*inputs), target)


def test_a_backward_pass_of_ones_own() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    with (
        pytest.raises(StateError, match=r"gradient reached 2\.weight outside of step\(\)"),
        palettizer.calibration_mode(loss_fn=mse),
    ):
        model(*MLP_INPUTS).sum().backward()


def test_a_gradient_in_parts_is_an_error_and_not_a_wrong_number() -> None:
    model = Checkpointed(True)
    palettizer, model = prepared(model, TOKEN_BATCHES[0][0], weight_config())
    with (
        pytest.raises(SensitivityError, match="came in parts in step 1"),
        palettizer.calibration_mode(loss_fn=mse) as calibration,
        nn.utils.parametrize.cached(),  # one look at the weight for all uses
    ):
        calibration.step(model(*TOKEN_BATCHES[0][0]), TOKEN_BATCHES[0][1])


def test_no_step_is_an_error() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    before = decoded_weights(model)
    with (
        pytest.raises(StateError, match="requires at least one call to step"),
        palettizer.calibration_mode(loss_fn=mse),
    ):
        pass
    assert all(torch.equal(before[n], w) for n, w in decoded_weights(model).items())


def test_a_step_after_the_block() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    with palettizer.calibration_mode(loss_fn=mse) as calibration:
        calibration.step(model(*MLP_INPUTS), torch.zeros(3, 4))
    with pytest.raises(StateError, match=r"inside of its calibration_mode\(\) block"):
        calibration.step(model(*MLP_INPUTS), torch.zeros(3, 4))


def test_arguments() -> None:
    palettizer, model = prepared(mlp(), MLP_INPUTS, weight_config())
    with pytest.raises(TypeError, match="loss_fn"):
        palettizer.calibration_mode()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        palettizer.calibration_mode(model, mse)  # type: ignore[misc]
    for options, error in (
        ({"loss_fn": 3}, "loss_fn must be callable, got int"),
        ({"loss_fn": mse, "num_workers": 1.5}, "num_workers must be an integer"),
        ({"loss_fn": mse, "model": 3}, r"model must be a torch\.nn\.Module"),
    ):
        with pytest.raises(TypeError, match=error), palettizer.calibration_mode(**options):
            pass
    calibrate(palettizer, model, MLP_BATCHES)


def test_an_algorithm_that_takes_no_sensitivities_is_refused_on_entering() -> None:
    palettizer, _ = prepared(mlp(), MLP_INPUTS, weight_config())
    entry = palettizer._catalog.clusterers.get("kmeans1d")
    object.__setattr__(entry, "supports_importance", False)
    try:
        with (
            pytest.raises(
                PlanError, match=r"take sensitivities: 'kmeans1d' of 0\.weight, 2\.weight"
            ),
            palettizer.calibration_mode(loss_fn=mse),
        ):
            pass
    finally:
        object.__setattr__(entry, "supports_importance", True)


def test_running_statistics_as_weights_stay_plain() -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
        layers[1].running_mean.normal_()
        return layers.eval()

    config = weight_config()
    config.set_module_type(
        nn.BatchNorm1d,
        ModuleKMeansPalettizerConfig(
            op_state_spec=None,
            module_state_spec={"running_mean": PalettizationSpec(n_bits=2)},
        ),
    )
    palettizer, model = prepared(make(), MLP_INPUTS, config)
    assert set(measured(model)) == {"0.weight", "1.running_mean"}
    steps = batches((5, 8), (5, 16))
    with pytest.warns(PaletteWarning, match=r"1\.running_mean"):
        calibrate(palettizer, model, steps)
    dense = make()
    found = measured(model)["0.weight"]
    total = squares(dense, ["0.weight"], [lambda m, i=i, t=t: mse(m(*i), t) for i, t in steps])
    torch.testing.assert_close(found.double(), documented(total["0.weight"]), rtol=1e-4, atol=1e-6)


def test_an_embedding_that_renormalises_is_not_written_to() -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(4)
        return nn.Sequential(nn.Embedding(11, 8, max_norm=0.5), nn.Linear(8, 4))

    config = weight_config()
    config.global_config.op_type_config = {
        "embedding": OpKMeansPalettizerConfig(op_state_spec=config.global_config.op_state_spec)
    }
    palettizer, model = prepared(make(), TOKEN_BATCHES[0][0], config)
    before = model[0].parametrizations.weight.original.detach().clone()
    calibrate(palettizer, model, TOKEN_BATCHES)
    assert torch.equal(model[0].parametrizations.weight.original, before)
    agree(model, make(), TOKEN_BATCHES)
