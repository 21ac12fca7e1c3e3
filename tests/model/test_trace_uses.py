"""Who consumes what: every kind of module, functional calls, sharing, compiled and exported."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils as nn_utils
from torch import nn
from torch.nn.utils import parametrizations, prune

from palette_core.model import trace
from palette_core.model.graph import ModelGraph, TensorRecord


def record(graph: ModelGraph, name: str) -> TensorRecord:
    return next(t for t in graph.tensors if name in {owner.name for owner in t.owners})


def ops(graph: ModelGraph, name: str) -> list[str]:
    return [use.op_name for use in record(graph, name).uses]


class Functional(nn.Module):
    """Runs ``forward_fn(self, x)`` over whatever it is given as attributes."""

    def __init__(self, forward_fn, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.forward_fn = forward_fn

    def forward(self, *args, **kwargs):
        return self.forward_fn(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


@pytest.mark.parametrize(
    ("module", "shape", "op"),
    [
        (nn.Linear(4, 6), (2, 4), "linear"),
        (nn.Conv1d(4, 6, 3), (2, 4, 5), "conv1d"),
        (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 5), "conv1d"),
        (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5), "conv1d"),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), "conv2d"),
        (nn.Conv3d(4, 6, 2), (1, 4, 3, 3, 3), "conv3d"),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5), "conv_transpose1d"),
        (nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5), "conv_transpose2d"),
        (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 3, 3), "conv_transpose3d"),
        (nn.Bilinear(4, 4, 6), None, "bilinear"),
        (nn.PReLU(4), (2, 4), "prelu"),
        (nn.LayerNorm(4), (2, 4), "layer_norm"),
        (nn.RMSNorm(4), (2, 4), "rms_norm"),
        (nn.GroupNorm(2, 4), (2, 4), "group_norm"),
        (nn.BatchNorm1d(4), (2, 4), "batch_norm"),
        (nn.InstanceNorm1d(4, affine=True), (2, 4, 3), "instance_norm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_op_of_each_module(module, shape, op):
    inputs = (torch.randn(2, 4), torch.randn(2, 4)) if shape is None else (torch.randn(shape),)
    root = Functional(lambda self, *args: self.inner(*args), inner=module)
    graph = trace(root, inputs)
    assert ops(graph, "inner.weight") == [f"inner.{op}"]
    assert record(graph, "inner.weight").reached


@pytest.mark.parametrize(
    ("module", "op"), [(nn.Embedding, "embedding"), (nn.EmbeddingBag, "embedding_bag")]
)
def test_embedding(module, op):
    graph = trace(module(8, 4), (torch.tensor([[1, 2]]),))
    assert ops(graph, "weight") == [op]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("module", "op"),
    [
        (nn.LSTM(4, 4, num_layers=2, bidirectional=True, proj_size=2), "lstm"),
        (nn.GRU(4, 4), "gru"),
        (nn.RNN(4, 4), "rnn_tanh"),
        (nn.RNN(4, 4, nonlinearity="relu"), "rnn_relu"),
        (nn.LSTMCell(4, 4), "lstm_cell"),
        (nn.GRUCell(4, 4), "gru_cell"),
        (nn.RNNCell(4, 4), "rnn_tanh_cell"),
    ],
)
def test_recurrent_layers_consume_every_parameter(module, op):
    graph = trace(module, (torch.randn(3, 4),))
    names = dict(module.named_parameters())
    assert {t.name for t in graph.tensors} == set(names)
    for name in names:
        assert ops(graph, name) == [op]


def test_attention_is_one_operation():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    other = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)

    def forward(self, x):
        y, _ = self.a(x, x, x)
        return self.b(y, x[..., :4], x[..., :6])[0]

    graph = trace(Functional(forward, a=attention, b=other).eval(), (torch.randn(1, 3, 8),))
    assert ops(graph, "a.in_proj_weight") == ["a.multi_head_attention_forward"]
    assert ops(graph, "a.out_proj.weight") == ["a.multi_head_attention_forward"]
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
        assert ops(graph, f"b.{name}") == ["b.multi_head_attention_forward"]
    assert not any(u.op_type == "linear" for t in graph.tensors for u in t.uses)


@pytest.mark.parametrize("training", [False, True])
def test_transformer_encoder_takes_no_fast_path(training):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).train(training)
    padding = torch.tensor([[False, False, False], [False, False, True]])
    graph = trace(model, {"src": torch.randn(2, 3, 8), "src_key_padding_mask": padding})
    for i in range(2):
        at = f"layers.{i}"
        attention = f"{at}.self_attn.multi_head_attention_forward"
        assert ops(graph, f"{at}.self_attn.in_proj_weight") == [attention]
        assert ops(graph, f"{at}.linear1.weight") == [f"{at}.linear1.linear"]
        assert ops(graph, f"{at}.linear2.weight") == [f"{at}.linear2.linear"]
        assert ops(graph, f"{at}.norm1.weight") == [f"{at}.norm1.layer_norm"]
    assert model.training is training


def test_functional_calls_are_numbered_by_call():
    def forward(self, x):
        return F.linear(F.linear(F.linear(x, self.u), self.v), self.u)

    graph = trace(Functional(forward, u=parameter(4, 4), v=parameter(4, 4)), (torch.randn(1, 4),))
    assert ops(graph, "u") == ["linear", "linear_2"]
    assert ops(graph, "v") == ["linear_1"]


def test_functional_call_on_another_modules_parameter():
    def forward(self, ids):
        return F.linear(self.tokens(ids), self.tokens.weight)

    model = nn.Sequential(Functional(forward, tokens=nn.Embedding(8, 4)))
    graph = trace(model, (torch.tensor([1]),))
    assert ops(graph, "0.tokens.weight") == ["0.tokens.embedding", "0.linear"]


def test_a_module_called_twice_counts_once():
    model = Functional(lambda self, x: self.lin(self.lin(x)), lin=nn.Linear(4, 4))
    assert ops(trace(model, (torch.randn(1, 4),)), "lin.weight") == ["lin.linear"]


def test_tied_parameters_are_one_record():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    graph = trace(nn.Sequential(a, b), (torch.randn(1, 4),))
    weight = record(graph, "1.weight")
    assert [owner.name for owner in weight.owners] == ["0.weight", "1.weight"]
    assert ops(graph, "0.weight") == ["0.linear", "1.linear"]
    assert len(graph.tensors) == 3


def test_shared_module_has_all_its_names():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    root = Functional(lambda self, x: self.d["b"][0](self.d["a"](x)), d=model)
    graph = trace(root, (torch.randn(1, 4),))
    (names,) = [m.names for m in graph.modules if m.type_name.endswith(".Linear")]
    assert names == ("d.a", "d.b.0")
    assert [owner.name for owner in record(graph, "d.a.weight").owners] == ["d.a.weight"]


def test_parameter_containers():
    holder = Functional(
        lambda self, x: F.linear(F.linear(x, self.p[0]), self.d["k"]),
        p=nn.ParameterList([parameter(4, 4)]),
        d=nn.ParameterDict({"k": parameter(4, 4)}),
    )
    graph = trace(holder, (torch.randn(1, 4),))
    assert ops(graph, "p.0") == ["linear"]
    assert ops(graph, "d.k") == ["linear_1"]
    assert record(graph, "p.0").reached


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Linear(6, 2))
    graph = trace(model, (torch.randn(3, 4),))
    assert record(graph, "0.weight").shape == (6, 4)
    assert ops(graph, "0.weight") == ["0.linear"]
    assert ops(graph, "1.weight") == ["1.batch_norm"]
    assert graph.modules[1].type_name == "torch.nn.modules.linear.Linear"


def test_buffers_constants_and_integers():
    def forward(self, x):
        return F.linear(F.linear(x, self.kept), self.plain) + self.steps

    model = Functional(forward, plain=torch.randn(4, 4))
    model.register_buffer("kept", torch.randn(4, 4))
    model.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    graph = trace(model, (torch.randn(1, 4),))
    kept, plain = record(graph, "kept"), record(graph, "plain")
    assert (kept.kind, kept.obstacle, ops(graph, "kept")) == ("buffer", None, ["linear"])
    assert (plain.kind, ops(graph, "plain")) == ("constant", ["linear_1"])
    assert "plain attribute" in plain.obstacle
    assert record(graph, "steps").dtype is torch.int64


def test_a_plain_attribute_beside_a_buffer_is_an_obstacle():
    model = Functional(lambda self, x: F.linear(x, self.alias))
    model.register_buffer("kept", torch.randn(4, 4))
    vars(model)["alias"] = model.kept
    weight = record(trace(model, (torch.randn(1, 4),)), "kept")
    assert weight.kind == "buffer"
    assert "plain attribute" in weight.obstacle


def test_computed_tensors_are_not_the_tensor():
    def forward(self, x):
        return F.linear(x, self.t_weight.t()) @ self.direct + F.linear(x, self.mT_weight.mT)

    model = Functional(
        forward, t_weight=parameter(4, 4), mT_weight=parameter(4, 4), direct=parameter(4, 4)
    )
    graph = trace(model, (torch.randn(1, 4),))
    assert ops(graph, "t_weight") == ["t"]
    assert ops(graph, "mT_weight") == []
    assert record(graph, "mT_weight").reached
    assert ops(graph, "direct") == ["matmul"]


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda x, w: x @ w, "matmul"),
        (torch.matmul, "matmul"),
        (lambda x, w: x + w, "add"),
        (lambda x, w: 1 + w, "add"),
        (lambda x, w: 1 - w, "sub"),
        (lambda x, w: 2 / w, "div"),
        (torch.true_divide, "div"),
        (lambda x, w: x.clone().mul_(w), "mul"),
        (torch.multiply, "mul"),
        (lambda x, w: torch.einsum("ij,jk->ik", x, w), "einsum"),
        (lambda x, w: torch.addmm(x, x, w), "addmm"),
        (torch.ops.aten.linear.default, "linear"),
        (torch.ops.aten.linear, "linear"),
    ],
)
def test_spellings_of_one_operation(call, op):
    model = Functional(lambda self, x: call(x, self.w), w=parameter(4, 4))
    assert ops(trace(model, (torch.randn(4, 4),)), "w") == [op]


def test_looking_at_a_tensor_is_no_use():
    def forward(self, x):
        assert self.w.dim() == 2
        assert self.w.size(0) == self.w.shape[1]
        x = x.to(self.w.dtype).type_as(self.w) + torch.zeros_like(self.w) + self.w.new_zeros(4)
        return F.linear(x, self.w.to(torch.float32))  # the same dtype: the tensor itself

    graph = trace(Functional(forward, w=parameter(4, 4)), (torch.randn(4, 4),))
    assert ops(graph, "w") == ["linear"]


def test_parametrized_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrizations.weight_norm(model[0])
    graph = trace(model, (torch.randn(1, 4),))
    weight = record(graph, "0.weight")
    assert (weight.kind, weight.obstacle, ops(graph, "0.weight")) == (
        "parameter",
        None,
        ["0.linear"],
    )
    assert {t.name for t in graph.tensors} == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert [m.names[0] for m in graph.modules] == ["", "0", "1"]
    assert graph.modules[1].type_name == "torch.nn.modules.linear.Linear"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), False),
        (nn_utils.weight_norm, False),
        (nn_utils.spectral_norm, True),
    ],
)
def test_weights_computed_by_hooks(change, obstacle):
    """Those of pruning and weight norm can be computed in another way, others cannot."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    change(model[0])
    graph = trace(model, (torch.randn(1, 4),))
    weight = record(graph, "0.weight")
    assert ops(graph, "0.weight") == ["0.linear"]
    assert ("computed before every call" in (weight.obstacle or "")) is obstacle
    assert weight.kind == ("constant" if obstacle else "parameter")


def test_modules_that_do_not_run():
    model = Functional(lambda self, x: self.a(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    graph = trace(model, (torch.randn(1, 4),))
    assert record(graph, "a.weight").reached
    assert not record(graph, "b.weight").reached


def test_forward_called_without_hooks():
    model = Functional(lambda self, x: self.lin.forward(x), lin=nn.Linear(4, 4))
    graph = trace(model, (torch.randn(1, 4),))
    assert ops(graph, "lin.weight") == ["linear"]
    assert record(graph, "lin.weight").reached


def test_a_failure_that_the_model_catches_keeps_the_place():
    def refuse(module, args):
        raise ValueError("not today")

    def forward(self, x):
        for part in (self.bad, self.worse):
            try:
                part(x)
            except Exception:
                continue
        return F.linear(x, self.w)

    bad = nn.Linear(9, 9)  # fails in forward
    worse = nn.Linear(4, 4)
    worse.register_forward_pre_hook(refuse)  # fails before forward
    model = Functional(forward, bad=bad, worse=worse, w=parameter(4, 4))
    graph = trace(nn.Sequential(model), (torch.randn(1, 4),))
    assert ops(graph, "0.w") == ["0.linear"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_parts_have_an_obstacle():
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.trace(nn.Linear(4, 4), torch.randn(1, 4)))
    graph = trace(model, (torch.randn(1, 4),))
    assert ops(graph, "0.weight") == ["0.linear"]
    assert "TorchScript" in record(graph, "1.weight").obstacle


def test_compiled_modules_run_as_written():
    def backend(graph, inputs):
        raise AssertionError("compiled while tracing")

    model = nn.Sequential(torch.compile(nn.Linear(4, 4), backend=backend), nn.Linear(4, 4))
    model[1].compile(backend=backend)
    graph = trace(model, (torch.randn(1, 4),))
    assert ops(graph, "0._orig_mod.weight") == ["0._orig_mod.linear"]
    assert ops(graph, "1.weight") == ["1.linear"]


def test_exported_modules():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 1))
    inputs = (torch.randn(1, 2, 4),)
    graph = trace(torch.export.export(model, inputs).module(), inputs)
    assert ops(graph, "0.weight") == ["linear"]
    assert ops(graph, "1.weight") == ["conv1d"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(4, 4)).to(dtype)
    graph = trace(model, (torch.randn(1, 4, dtype=dtype),))
    assert record(graph, "0.weight").dtype is dtype
    assert ops(graph, "0.weight") == ["0.linear"]


def test_autocast():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        graph = trace(model, (torch.randn(1, 4),))
    assert ops(graph, "0.weight") == ["0.linear"]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_cuda(dtype):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), layer).to("cuda", dtype)
    lstm = nn.LSTM(8, 8).to("cuda", dtype)
    state = torch.cuda.get_rng_state()
    x = torch.randn(1, 3, 8, device="cuda", dtype=dtype)
    state = torch.cuda.get_rng_state()
    graph = trace(model, (x,))
    assert ops(graph, "0.weight") == ["0.linear"]
    assert ops(graph, "1.self_attn.in_proj_weight") == ["1.self_attn.multi_head_attention_forward"]
    graph = trace(lstm, (x,))
    assert ops(graph, "weight_hh_l0") == ["lstm"]
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_tensors_inside_lists_and_dictionaries_count():
    def stack(tensors):
        return torch.stack(tensors)

    model = Functional(lambda self, x: stack([x, self.w]), w=parameter(4, 4))
    assert ops(trace(model, (torch.randn(4, 4),)), "w") == ["stack"]
