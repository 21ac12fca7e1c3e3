"""Zeros stay exactly zero, whatever clusters, quantizes and trains."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_models import INPUTS, SPECS, STRATEGIES, config, convnet, items, prepared, train

from palette_core import KMeansPalettizer
from palette_core.errors import WeightError
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.zeros import keep_zeros


def pruned(vectors: int = 1) -> nn.Sequential:
    """Half of all weights zero, in runs of ``vectors`` along the output channels."""
    model = convnet()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i in (0, 3, 5):
            weight = model[i].weight
            keep = torch.rand(weight.shape[0] // vectors, *weight.shape[1:], generator=generator)
            weight.mul_((keep > 0.5).repeat_interleave(vectors, 0))
    return model


def zeros_of(model: nn.Module) -> dict[int, Tensor]:
    return {i: model[i].weight == 0 for i in (0, 3, 5)}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("algorithm", [None, "kmeans_vector"])
def test_zeros_stay_through_clustering_training_and_finalize(
    algorithm: str | None, strategy: str, spec: dict[str, Any]
) -> None:
    vectors = spec.get("cluster_dim", 1)
    zeros = zeros_of(pruned(vectors))
    palettizer, model = prepared(
        lambda: pruned(vectors),
        training_strategy=strategy,
        algorithm=algorithm,
        preserve_zero=True,
        **spec,
    )
    for stage in ("prepared", "trained", "finalized"):
        for i, zero in zeros.items():
            assert (model[i].weight[zero] == 0).all(), (stage, i)
            assert not (model[i].weight == 0).all()
        if stage == "prepared":
            for item in items(model):
                assert (item.palettized().codebook().lut == 0).all(-1).any(1).all()
            train(palettizer, model, 8)
            with palettizer.training_mode():  # in training mode too
                for i, zero in zeros.items():
                    assert (model[i].weight[zero] == 0).all()
            model.eval()
        elif stage == "trained":
            expected = model(*INPUTS)
            model = palettizer.finalize(backend="packed")
            assert torch.equal(model(*INPUTS), expected)


@pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
def test_without_it_they_do_not() -> None:
    """So the test above can fail."""
    _, model = prepared(pruned, n_bits=1)
    zeros = zeros_of(pruned())
    assert any((model[i].weight[zero] != 0).any() for i, zero in zeros.items())


def test_zeros_within_vectors_are_refused() -> None:
    palettizer = KMeansPalettizer(pruned(), config(preserve_zero=True, cluster_dim=2))
    with pytest.raises(WeightError, match=r"^\d\.weight: preserve_zero with cluster_dim=2"):
        palettizer.prepare(INPUTS)


def test_channels_of_zeros_with_a_scale() -> None:
    def make() -> nn.Module:
        model = convnet()
        with torch.no_grad():
            model[3].weight[2] = 0
        return model

    _, model = prepared(make, preserve_zero=True, enable_per_channel_scale=True)
    assert (model[3].weight[2] == 0).all()


# --- against brute force ------------------------------------------------------------------------


def cost(x: Tensor, w: Tensor, entries: Tensor) -> float:
    return float((w * (x[:, None] - entries).square()).amin(1).sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_entry_that_costs_least_gives_way(seed: int, weighted: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, generator=g).double() + seed % 3
    w = torch.rand(200, generator=g).double() if weighted else torch.ones(200).double()
    lut = torch.randn(4, generator=g).double().sort().values
    importance = w[None, :, None] if weighted else None
    codes = torch.zeros(1, 200, dtype=torch.uint8)
    made = keep_zeros(
        x[None, :, None], importance, Codebook(lut[None, :, None], codes), torch.float64
    )
    candidates = [lut.clone().index_fill_(0, torch.tensor([j]), 0.0) for j in range(4)]
    first = min(cost(x, w[:, None], c) for c in candidates)
    got = made.lut[0, :, 0]
    assert 0.0 in got.tolist()
    assert (got.diff() >= 0).all()
    assert cost(x, w[:, None], got) <= first * (1 + 1e-12)
    near = (x[:, None] - got).abs()
    chosen = near.gather(1, made.codes[0].long()[:, None])[:, 0]
    assert torch.equal(chosen, near.amin(1))
    # Every other entry is the mean of its points, or no step to it lowers the error.
    for j, entry in enumerate(got.tolist()):
        member = made.codes[0] == j
        if entry != 0 and member.any():
            mean = float((w * x)[member].sum() / w[member].sum())
            assert entry == pytest.approx(mean, abs=0.1)


def test_other_assignments_stay_where_an_algorithm_looked_at_more_than_distances() -> None:
    x = torch.tensor([0.0, 0.1, 1.0, 1.1, 2.2, 5.0, 5.1])[None, :, None]
    lut = torch.tensor([0.05, 1.05, 3.0, 5.05])[None, :, None]
    codes = torch.tensor([[0, 0, 1, 1, 1, 3, 3]], dtype=torch.uint8)  # 2.2 is nearer to 3.0
    made = keep_zeros(x, None, Codebook(lut, codes), torch.float32, reassign=False)
    assert torch.equal(made.lut[0, :, 0], torch.tensor([0.0, 1.05, 3.0, 5.05]))
    assert torch.equal(made.codes, codes)
    anew = keep_zeros(x, None, Codebook(lut, codes), torch.float32)
    assert not torch.equal(anew.codes, codes)


def test_two_bits_next_to_the_optimum_with_a_zero() -> None:
    """The optimum over all splits of sorted points into runs, one of them at zero."""
    x = torch.randn(14, generator=torch.Generator().manual_seed(3)).sort().values.double()
    best = float("inf")
    for cuts in itertools.combinations(range(1, 14), 3):
        runs = torch.tensor_split(x, list(cuts))
        errors = [float((r - r.mean()).square().sum()) for r in runs]
        at_zero = [float(r.square().sum()) for r in runs]
        best = min(best, *(sum(errors) - e + z for e, z in zip(errors, at_zero, strict=True)))
    model = nn.Linear(14, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(x.float())
    _, model = prepared(lambda: model, (torch.zeros(1, 14),), preserve_zero=True)
    error = float((model.weight.double() - x).square().sum())
    assert best * (1 - 1e-6) <= error <= best * 2
