"""Moments against the operations themselves: the output of an error is what H says it is."""

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import CalibrationError
from palette_core.statistics.activations import Runner, collect

SPEC = {"n_bits": 2}
CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {
                "op_state_spec": dict.fromkeys(
                    ("weight", "in_proj_weight", *(f"{p}_proj_weight" for p in "qkv")), SPEC
                ),
                "op_type_config": {
                    name: {"op_state_spec": {"*": SPEC}} for name in ("embedding", "matmul", "mul")
                },
                "module_state_spec": {},
            }
        }
    }
)


def plan_of(model, batch):
    return KMeansPalettizer(model, CONFIG).make_plan(batch)


def moments_of(model, batches):
    return collected(model, plan_of(model, batches[0]), batches)


def collected(model, plan, batches, **options):
    with Runner(model, list(plan), batches) as runner:
        return collect(runner, **options)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.kernel


def convolutions():
    for rank, conv in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        yield conv(4, 6, 3), rank
        yield conv(4, 6, 3, stride=2, padding=1, dilation=2), rank
        yield conv(4, 6, 2, padding="same"), rank
        yield conv(4, 4, 3, groups=4, padding=1), rank  # depthwise
        yield conv(4, 6, 3, groups=2, stride=2), rank
    yield nn.Conv2d(4, 6, (3, 1), stride=(1, 2), padding=(1, 0)), 2
    yield nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), 2
    for rank, conv in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d)):
        yield conv(4, 6, 3), rank
        yield conv(4, 6, 3, stride=2, padding=1, output_padding=1), rank
        yield conv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), rank
        yield conv(4, 6, 1, padding=1), rank
    yield nn.ConvTranspose3d(4, 6, 2, stride=2), 3


CASES = [
    (module, [torch.randn(2, 4, *[7] * rank) for _ in range(2)]) for module, rank in convolutions()
]
CASES += [
    (nn.Linear(5, 3), [torch.randn(2, 4, 5), torch.randn(7, 5)]),
    (nn.Conv1d(4, 6, 3), [torch.randn(4, 9)]),
    (nn.Embedding(9, 4), [torch.randint(9, (3, 5)), torch.randint(9, (4,))]),
    (Product(), [torch.randn(2, 3, 6)]),
]


@pytest.mark.parametrize(
    ("module", "inputs"), CASES, ids=lambda x: str(x) if isinstance(x, nn.Module) else ""
)
def test_the_output_of_an_error_is_what_the_moments_say(module, inputs):
    found, missing = moments_of(nn.Sequential(module), [(x,) for x in inputs])
    assert not missing
    (moments,) = found.values()
    weight = next(module.parameters())
    for _ in range(3):
        error = torch.randn_like(weight)
        with torch.no_grad():
            weight.copy_(error)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
            truth = sum(float(module(x).double().square().sum()) for x in inputs)
        matrices = moments.to_matrices(error).double()
        h = moments.hessian.double()
        h = torch.diag_embed(h) if moments.is_diagonal else h
        said = float(((matrices @ h) * matrices).sum()) * moments.count
        assert said == pytest.approx(truth, rel=1e-4)
        assert torch.equal(moments.from_matrices(moments.to_matrices(error)), error)


@pytest.mark.parametrize("kind", ["self", "cross", "separate"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_projections_of_multihead_attention(kind, batch_first):
    sizes = {"kdim": 6, "vdim": 10} if kind == "separate" else {}
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes)

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module

        def forward(self, q, k, v):
            return self.attention(q, k, v, need_weights=False)[0]

    q = torch.randn(3, 5, 8)
    k = torch.randn(3, 5, sizes.get("kdim", 8))
    v = torch.randn(3, 5, sizes.get("vdim", 8))
    batch = (q, q, q) if kind == "self" else (q, k, v)
    found, missing = moments_of(Attend(), [batch])
    assert not missing
    out = found["attention.out_proj.weight"]
    weight = module.out_proj.weight
    error = torch.randn_like(weight)
    with torch.no_grad():
        weight.copy_(error)
        module.out_proj.bias.zero_()
        truth = float(Attend()(*batch).double().square().sum())
    said = float(((error @ out.hessian[0]) * error).double().sum()) * out.count
    assert said == pytest.approx(truth, rel=1e-4)
    if kind == "separate":
        for name, x in (("q", q), ("k", k), ("v", v)):
            h = found[f"attention.{name}_proj_weight"]
            rows = x.reshape(-1, x.shape[-1]).double()
            assert torch.allclose(
                h.hessian[0].double() * h.count, rows.T @ rows, rtol=1e-4, atol=1e-4
            )
        return
    h = found["attention.in_proj_weight"]
    assert h.hessian.shape[0] == (1 if kind == "self" else 3)
    for group, x in zip(range(h.hessian.shape[0]), batch, strict=False):
        rows = x.reshape(-1, 8).double()
        assert torch.allclose(
            h.hessian[group].double() * h.count, rows.T @ rows, rtol=1e-4, atol=1e-4
        )


class Shared(nn.Module):
    """Two layers with one input, one with another, one that runs twice."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.gain = nn.Parameter(torch.ones(6, 2))

    def forward(self, x):
        x = self.twice(self.twice(x))
        return (self.o(self.q(x) + self.k(x))[..., None] * self.gain).sum(-1)


def test_layers_with_one_input_share_a_matrix_and_calls_add_up():
    model = Shared()
    found, _ = moments_of(model, [(torch.randn(3, 6),), (torch.randn(4, 6),)])
    assert found["q.weight"].hessian.data_ptr() == found["k.weight"].hessian.data_ptr()
    assert found["q.weight"].hessian.data_ptr() != found["o.weight"].hessian.data_ptr()
    assert found["twice.weight"].count == 14
    assert found["q.weight"].count == 7


def test_operations_that_are_not_understood_are_named():
    model = Shared()
    config = CONFIG.checked_copy()
    plan = KMeansPalettizer(model, config).make_plan((torch.randn(3, 6),))
    assert "gain" in {t.name for t in plan}
    _, missing = collected(model, plan, [(torch.randn(3, 6),)])
    assert "'mul'" in missing["gain"]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.full((2, 6), torch.nan), "NaN"),
        (torch.full((2, 6), 1e30), "large"),
        (torch.zeros(2, 6), "zero"),
    ],
)
def test_inputs_that_give_no_moments_are_explained(x, says):
    _, missing = moments_of(nn.Sequential(nn.Linear(6, 4)), [(x,)])
    assert says in missing["0.weight"]


def test_matrices_can_be_kept_on_disk(tmp_path):
    model, batches = Shared(), [(torch.randn(3, 6),)]
    plan = plan_of(model, batches[0])
    in_memory, _ = collected(model, plan, batches)
    on_disk, _ = collected(model, plan, batches, folder=tmp_path)
    assert list(tmp_path.rglob("*.npy"))
    for name, moments in in_memory.items():
        assert torch.equal(moments.hessian, on_disk[name].hessian)


def test_a_model_that_fails_is_named_with_the_batch():
    model = nn.Sequential(nn.Linear(6, 4))
    plan = plan_of(model, (torch.randn(2, 6),))
    with pytest.raises(
        CalibrationError, match=r"Sequential failed on calibration batch 1: Runtime"
    ):
        collected(model, plan, [(torch.randn(2, 6),), (torch.randn(2, 5),)])
    assert "forward" not in vars(model)
