"""Models that carry other parametrizations, pruning masks, or quantized activations."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune
from training_models import INPUTS, STRATEGIES, config, convnet, items, prepared, train

from palette_core import KMeansPalettizer

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

PRUNING = {
    "prune": lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
    "prune twice": lambda m: prune.random_unstructured(
        prune.l1_unstructured(m, "weight", amount=0.3), "weight", amount=0.3
    ),
    "prune channels": lambda m: prune.ln_structured(m, "weight", amount=0.25, n=2, dim=0),
}
OTHERS = {
    "weight norm": parametrizations.weight_norm,
    "old weight norm": utils.weight_norm,
    "old weight norm of all": lambda m: utils.weight_norm(m, dim=None),
    "orthogonal": lambda m: parametrizations.orthogonal(m) if isinstance(m, nn.Linear) else m,
    "spectral norm": parametrizations.spectral_norm,
}
CHANGES: dict[str, Callable[[Any], Any]] = {**PRUNING, **OTHERS}


def changed(name: str) -> nn.Module:
    model = convnet()
    for i in (0, 3, 5):
        torch.manual_seed(i)
        CHANGES[name](model[i])
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CHANGES)
def test_prepares_keeps_trains_and_finalizes(name: str, strategy: str) -> None:
    model = changed(name)
    before = {id(p) for p in model.parameters()}
    dense = {i: model[i].weight.detach().clone() for i in (0, 3, 5)}
    palettizer = KMeansPalettizer(
        model, config(n_bits=4, training_strategy=strategy, preserve_zero=name in PRUNING)
    )
    palettizer.prepare(INPUTS)
    assert before <= {id(p) for p in model.parameters()}
    for i, weight in dense.items():
        error = (model[i].weight - weight).square().mean()
        assert 0 < error < 0.05 * weight.square().mean()
    losses = train(palettizer, model, 8)
    assert losses[-1] < losses[0]
    model.eval()
    expected = model(*INPUTS)
    assert torch.equal(copy.deepcopy(model)(*INPUTS), expected)
    if name in PRUNING:
        for i, weight in dense.items():
            assert (model[i].weight[weight == 0] == 0).all()
    final = palettizer.finalize(backend="packed")
    assert torch.equal(final(*INPUTS), expected)
    names = {n for n, p in final.named_parameters() if p.numel()}
    assert names == {"0.bias", "3.bias", "5.bias"}
    if name != "weight norm":  # of which torch leaves a hook that no pickle takes
        assert torch.equal(pickle.loads(pickle.dumps(final))(*INPUTS), expected)


@pytest.mark.parametrize("strategy", ["ste", "dkm"])
def test_the_rule_of_the_parametrization_still_holds(strategy: str) -> None:
    """What the palette is made of is still orthogonal, and normed, after training."""
    for name in ("orthogonal", "weight norm"):
        model = changed(name)
        palettizer = KMeansPalettizer(model, config(training_strategy=strategy))
        palettizer.prepare(INPUTS)
        before = model[3].parametrizations.weight[0]
        train(palettizer, model, 5)
        chain = model[3].parametrizations.weight
        assert chain[0] is before
        if name == "orthogonal":
            dense = chain[0](chain.original)
            torch.testing.assert_close(
                dense.T @ dense if dense.shape[0] > dense.shape[1] else dense @ dense.T,
                torch.eye(min(dense.shape)),
                rtol=0,
                atol=1e-5,
            )
        else:
            dense = chain[0](chain.original0, chain.original1)
            torch.testing.assert_close(dense.norm(dim=1), chain.original0.abs()[:, 0])


def test_gradients_do_not_reach_what_is_pruned() -> None:
    model = changed("prune")
    palettizer = KMeansPalettizer(model, config(training_strategy="ste", preserve_zero=True))
    mask = model[3].weight_mask.clone()
    palettizer.prepare(INPUTS)
    with palettizer.training_mode():
        model(*INPUTS).square().sum().backward()
    grad = model[3].parametrizations.weight.original.grad
    assert (grad[mask == 0] == 0).all()
    assert (grad[mask == 1] != 0).any()


@pytest.mark.parametrize("name", ["prune", "old weight norm"])
def test_when_prepare_fails_the_hooks_are_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = changed(name)
    with torch.no_grad():
        expected = model(*INPUTS)
    before = {n: id(t) for n, t in model.named_parameters()}
    order = list(model.state_dict())
    calls = []

    def fail_late(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        attach(*args, **kwargs)

    from palette_core.model import parametrization

    attach = parametrization.attach
    monkeypatch.setattr(parametrization, "attach", fail_late)
    with pytest.raises(KeyboardInterrupt):
        KMeansPalettizer(model, config()).prepare(INPUTS)
    assert len(calls) == 3
    assert {n: id(t) for n, t in model.named_parameters()} == before
    assert list(model.state_dict()) == order
    assert not any(hasattr(m, "parametrizations") for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(*INPUTS), expected)
        for name, parameter in model.named_parameters():
            if name.endswith(("_orig", "_g")):
                parameter.mul_(2)  # from which the hooks compute again
        assert not torch.equal(model(*INPUTS), expected)


def test_a_hook_that_is_not_known_leaves_the_weight_dense() -> None:
    model = convnet()
    prune.l1_unstructured(model[3], "weight", amount=0.5)
    utils.spectral_norm(model[5])
    palettizer = KMeansPalettizer(model, config())
    with pytest.warns(match=r"5\.weight .* stays dense.*spectral_norm"):
        palettizer.prepare(INPUTS)
    assert {item.plan.name for item in items(model)} == {"0.weight", "3.weight"}


def test_a_parametrization_that_comes_after_the_palette() -> None:
    """As when a mask is put on a prepared model."""

    class Mask(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (torch.arange(weight.numel()) % 2).reshape(weight.shape)

    palettizer, model = prepared(training_strategy="ste")
    utils.parametrize.register_parametrization(model[3], "weight", Mask(), unsafe=True)
    train(palettizer, model, 5)
    item = items(model)[1]
    assert len(item.palettized().decode().unique()) == 4
    assert (model[3].weight.flatten()[::2] == 0).all()


def test_activations_quantized_by_torchao() -> None:
    qat = pytest.importorskip("torchao.quantization.qat")
    int8 = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    model = convnet()
    for i in (3, 5):
        model[i] = qat.linear.FakeQuantizedLinear.from_linear(model[i], activation_config=int8)
    plain = model(*INPUTS)
    palettizer = KMeansPalettizer(model, config(n_bits=6, training_strategy="ste"))
    palettizer.prepare(INPUTS)
    assert {item.plan.name for item in items(model)} == {"0.weight", "3.weight", "5.weight"}
    torch.testing.assert_close(model(*INPUTS), plain, rtol=0.1, atol=0.05)
    losses = train(palettizer, model, 8)
    assert losses[-1] < losses[0]
    expected = model.eval()(*INPUTS)
    assert model[3].activation_fake_quantizer is not None
    assert torch.equal(palettizer.finalize(backend="packed")(*INPUTS), expected)
