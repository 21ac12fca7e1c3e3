"""Per-channel scales on any axis: algorithms still minimise the error of the layer itself."""

import copy

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig


class Product(nn.Module):
    """``x @ W``: scales lie on axis 1, the output axis."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 32))

    def forward(self, x):
        return x @ self.weight


def spread(size, axis, rank):
    shape = [1] * rank
    shape[axis] = size
    return torch.logspace(-0.7, 0.7, size).reshape(shape)


def case(name):
    """Return a module with channels of very different sizes, and inputs that make up for it."""
    torch.manual_seed(0)
    mix = torch.randn(12, 12)
    module, rank = {
        "product": (Product(), 0),
        "linear": (nn.Linear(12, 32, bias=False), 0),
        "embedding": (nn.Embedding(12, 32), 0),
        "grouped": (nn.Conv1d(12, 16, 3, groups=2, bias=False), 1),
        "transposed": (nn.ConvTranspose1d(12, 16, 3, groups=2, bias=False), 1),
    }[name]
    axis = 1 if name == "transposed" else 0
    with torch.no_grad():
        module.weight *= spread(module.weight.shape[axis], axis, module.weight.dim())
    if name == "embedding":
        module.weight.data *= spread(12, 0, 2)  # rare rows are the large ones
        many = torch.multinomial(torch.logspace(1.5, -1.5, 12), 600, replacement=True)
        return module.eval(), [(part,) for part in many.split(200)]
    batches = [torch.randn(40, 12) @ mix for _ in range(3)]
    if name == "product":
        batches = [x / spread(12, 1, 2) for x in batches]
    if rank:
        batches = [x.reshape(5, 8, 12).transpose(1, 2) for x in batches]
    return module.eval(), [(x,) for x in batches]


def palettized(module, batches, algorithm, **options):
    spec = {"n_bits": 3, "algorithm": algorithm, "enable_per_channel_scale": True}
    if algorithm != "kmeans1d":
        spec["algorithm_options"] = {"damping": 0.0}
    states = {"op_state_spec": {"weight": spec}}
    kinds = {"matmul": {"op_state_spec": {"*": spec}}, "embedding": {"op_state_spec": {"*": spec}}}
    config = KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "global_config": {
                    **states,
                    "op_type_config": {
                        name: kind
                        for name, kind in kinds.items()
                        if name == {Product: "matmul", nn.Embedding: "embedding"}.get(type(module))
                    },
                }
            }
        }
    )
    palettizer = KMeansPalettizer(copy.deepcopy(module), config)
    palettizer.calibrate(batches, **options)
    palettizer.prepare(batches[0])
    return palettizer


def output_error(palettizer, module, batches):
    """Return Σ of squared differences of all outputs, in float64, from the operations alone."""
    made, dense = copy.deepcopy(module).double(), copy.deepcopy(module).double()
    with torch.no_grad():
        made.weight.copy_(palettizer._model.weight.double())
        inputs = [b[0] if b[0].dtype == torch.long else b[0].double() for b in batches]
        return sum(float((made(x) - dense(x)).square().sum()) for x in inputs)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
@pytest.mark.parametrize("name", ["product", "linear", "grouped", "transposed"])
def test_the_objective_is_the_error_of_the_layer(name, algorithm):
    module, batches = case(name)
    aware = palettized(module, batches, algorithm)
    row = aware.report.tensors[0]
    vectors = sum(b[0].numel() for b in batches) // 12
    if name == "grouped":
        vectors = vectors // 8 * 6  # windows
    if name == "transposed":
        vectors = vectors // 8 * 10
    got = output_error(aware, module, batches) / vectors
    assert row.objective_after == pytest.approx(got, rel=2e-3)
    assert row.objective_after < row.objective_before
    plain = output_error(palettized(module, batches, "kmeans1d"), module, batches) / vectors
    assert got < 0.9 * plain


def test_rows_of_an_embedding_count_by_their_use_and_their_size():
    module, batches = case("embedding")
    plain = output_error(palettized(module, batches, "kmeans1d"), module, batches)
    aware = output_error(palettized(module, batches, "lnq"), module, batches)
    assert aware < 0.97 * plain


@pytest.mark.parametrize("name", ["product", "linear"])
@pytest.mark.parametrize("mode", ["sequential", "guided"])
def test_other_ways_to_calibrate_help_products_too(name, mode):
    """Guided moments are not of a group of rows of ``W`` in ``x @ W``: those go without."""
    module, batches = case(name)
    how = {"sequential": {"sequential": True}, "guided": {"loss": lambda o, b: o.square().mean()}}
    aware = palettized(module, batches, "lnq", **how[mode])
    assert aware.report.tensors[0].algorithm == "lnq"
    plain = palettized(module, batches, "kmeans1d")
    assert output_error(aware, module, batches) < 0.9 * output_error(plain, module, batches)


def test_a_scale_of_zeros_is_no_obstacle():
    module, batches = case("product")
    with torch.no_grad():
        module.weight[:, 2:] = 0.0
    kept = palettized(module, batches, "lnq")
    assert kept.report.tensors[0].algorithm == "lnq"
    assert not kept._model.weight[:, 2:].any()
    with torch.no_grad():
        module.weight.zero_()
    assert not palettized(module, batches, "lnq")._model.weight.any()
