"""An operation of somebody else's library, from its registration to a packed checkpoint."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    load_checkpoint,
)
from palette_core.cli import main
from palette_core.errors import (
    DuplicatePluginError,
    OperationError,
    PaletteWarning,
    TracingError,
)
from palette_core.plugins import Consumption, Operation, OperationEntry
from palette_core.plugins.catalog import get_catalog
from palette_core.tensors import Features

HOOKS = """
from palette_core.plugins import Consumption, Operation, OperationEntry, hookimpl


class Project(Operation):
    def consumptions(self, call):
        from palette_core.tensors import Features

        yield Consumption(call["weight"], (call["x"],), Features(rows=(1,)))


@hookimpl
def palette_core_operations():
    return [
        OperationEntry(
            name="their_library.project",
            summary="x @ W",
            interface=1,
            factory=lambda options: Project(),
            channel_axis=1,
        )
    ]
"""
SPELLINGS = [
    "their_library.project",
    "their_library::project",
    "torch.ops.their_library.project",
    "torch.ops.their_library.project.default",
]


@torch.library.custom_op("their_library::project", mutates_args=())
def project(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@project.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1])


class Project(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 16) * torch.logspace(-2, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return project(x, weight=self.weight)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Project(), nn.ReLU(), nn.Linear(16, 4)).eval()


def config(name: str, **spec: object) -> KMeansPalettizerConfig:
    fields = {"n_bits": 2, "granularity": PerGroupedChannelGranularity(group_size=4)} | spec
    own = OpKMeansPalettizerConfig(op_state_spec={"weight": PalettizationSpec(**fields)})
    chosen = ModuleKMeansPalettizerConfig(
        op_state_spec=None, op_type_config={name: own}, enable_fast_kmeans_mode=False
    )
    return KMeansPalettizerConfig(global_config=chosen)


def batches() -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    mix = torch.randn(12, 12, generator=g)
    return [torch.randn(64, 12, generator=g) @ mix for _ in range(4)]


def test_without_a_plugin_nobody_can_name_it() -> None:
    with pytest.raises(ValueError, match="no installed plug-in registers an operation 'their_lib"):
        config("torch.ops.their_library.project")


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_name(name, install) -> None:
    install(HOOKS)
    kept = config(name).to_dict()["kmeans_palettization_config"]["global_config"]
    assert list(kept["op_type_config"]) == ["their_library.project"]


def test_no_such_overload(install) -> None:
    install(HOOKS)
    with pytest.raises(ValueError, match="no overload 'nope'"):
        config("torch.ops.their_library.project.nope")


@pytest.mark.parametrize("algorithm", ["kmeans1d", "gptq", "lnq"])
def test_the_whole_trip(algorithm, install, tmp_path) -> None:
    install(HOOKS)
    made = model()
    dense = made[0].weight.detach().clone()
    palettizer = KMeansPalettizer(made, config(SPELLINGS[0], algorithm=algorithm))
    x = batches()[0]
    plan = palettizer.make_plan((x,))
    assert [(t.name, t.axis, t.op_type, t.layout.grid) for t in plan] == [
        ("0.weight", 1, "their_library.project", (1, 4))
    ]
    if algorithm != "kmeans1d":
        palettizer.calibrate(batches())
    palettizer.prepare((x,))
    assert palettizer.report.tensors[0].algorithm == algorithm
    weight = made[0].weight.detach().clone()
    for group in range(4):  # a table for every four outputs
        assert len(weight[:, 4 * group : 4 * group + 4].unique()) <= 4
    before = made(x).detach()
    path = palettizer.export(tmp_path / "model.safetensors", backend="packed")
    loaded = load_checkpoint(path, model())
    assert torch.equal(loaded[0].weight, weight)
    assert torch.equal(loaded(x), before)
    assert path.stat().st_size < 12 * 16 * 4 + 4000
    assert not torch.equal(weight, dense)


def test_data_lowers_the_error_of_its_outputs(install) -> None:
    install(HOOKS)
    errors = {}
    for algorithm in ("kmeans1d", "gptq"):
        made = model()
        dense = made[0].weight.detach().clone()
        palettizer = KMeansPalettizer(made, config(SPELLINGS[0], algorithm=algorithm))
        if algorithm == "gptq":
            palettizer.calibrate(batches())
        palettizer.prepare((batches()[0],))
        gap = made[0].weight.detach() - dense
        errors[algorithm] = sum(float((x @ gap).square().sum()) for x in batches())
    assert errors["gptq"] < 0.8 * errors["kmeans1d"]


def test_it_is_palettized_unasked_where_its_plugin_says_so(install) -> None:
    install(HOOKS.replace("channel_axis=1", "channel_axis=1, is_default=True"))
    palettizer = KMeansPalettizer(model(), KMeansPalettizerConfig())
    assert [t.name for t in palettizer.make_plan((batches()[0],))] == ["0.weight", "2.weight"]


def test_of_two_claims_both_are_named(install, register) -> None:
    install(HOOKS)
    register(entry(lambda call: ()))
    with pytest.raises((DuplicatePluginError, ValueError), match=r"wrong-plugin 6\.6 and wrong"):
        config(SPELLINGS[0])


@pytest.mark.parametrize("call_of", ["consumptions", "channel_axis"])
def test_one_that_writes_to_the_weight_is_found_out_and_undone(call_of, register) -> None:
    def writes(call, *weight):
        call["weight"].data.zero_()
        return () if call_of == "consumptions" else 1

    register(entry(writes) if call_of == "consumptions" else entry(lambda call: (), writes))
    made = model()
    before = made[0].weight.detach().clone()
    palettizer = KMeansPalettizer(made, config(SPELLINGS[0], algorithm="gptq"))
    with pytest.raises((OperationError, TracingError), match="has written to what the operation"):
        palettizer.calibrate(batches())
    assert torch.equal(made[0].weight, before)


def test_two_that_claim_an_operation_break_nobodys_run_that_does_not_name_it(
    install, register
) -> None:
    install(HOOKS.replace("channel_axis=1", "channel_axis=1, is_default=True"))
    register(entry(lambda call: (), is_default=True))
    plan = KMeansPalettizer(model(), KMeansPalettizerConfig()).make_plan((batches()[0],))
    assert [tensor.name for tensor in plan] == ["2.weight"]


def entry(look, axis=lambda call, weight: None, **more) -> OperationEntry:
    class Theirs(Operation):
        def consumptions(self, call):
            return look(call)

        def channel_axis(self, call, weight):
            return axis(call, weight)

    return OperationEntry(
        name=SPELLINGS[0],
        summary="wrong",
        interface=1,
        **({"factory": lambda options: Theirs()} | more),
    )


def wrong_views():
    def consumed(view):
        return lambda call: [Consumption(call["weight"], (call["x"],), view)]

    yield lambda call: [call["nothing"]], "failed: KeyError: 'nothing'"
    yield lambda call: [call["weight"]], "consumptions yielded"
    yield consumed("rows"), "has a weight and an InputView, got Parameter and 'rows'"
    yield consumed(Features(rows=(2,))), "are no axes of a weight of shape"
    yield consumed(Features(parts=5, rows=(1,))), "has 5 groups, which do not divide axis 0"


@pytest.mark.parametrize(("look", "text"), [*wrong_views()])
def test_what_it_says_of_inputs_is_checked(look, text, register) -> None:
    register(entry(look))
    palettizer = KMeansPalettizer(model(), config(SPELLINGS[0], algorithm="gptq"))
    with pytest.raises(OperationError, match=r"project' \(wrong-plugin 6\.6\)") as e:
        palettizer.calibrate(batches())
    assert text in str(e.value)


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        (lambda call, weight: 2, "channel_axis returned 2 for a weight of shape"),
        (lambda call, weight: "last", "channel_axis returned 'last'"),
        (lambda call, weight: 1 // 0, "failed: ZeroDivisionError"),
    ],
)
def test_what_it_says_of_axes_is_checked(axis, text, register) -> None:
    register(entry(lambda call: (), axis))
    palettizer = KMeansPalettizer(model(), config(SPELLINGS[0]))
    before = copy.deepcopy(palettizer._model.state_dict())
    with pytest.raises(OperationError, match=r"'their_library\.project'") as e:
        palettizer.prepare((batches()[0],))
    assert text in str(e.value)
    assert all(torch.equal(a, before[n]) for n, a in palettizer._model.state_dict().items())


def fails(options: object) -> Operation:
    raise ImportError("no such library")


@pytest.mark.filterwarnings("ignore:0.weight .* stays dense")
@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda options: object(), "which is no Operation"),
        (fails, "failed: ImportError: no such library"),
    ],
)
def test_one_that_cannot_be_made_breaks_nobodys_run_that_does_not_name_it(
    factory, text, register, monkeypatch, capsys
) -> None:
    without = KMeansPalettizer(model(), KMeansPalettizerConfig())
    without.prepare((batches()[0],))
    register(entry(None, factory=factory, is_default=True, aliases=("theirs",)))
    palettizer = KMeansPalettizer(model(), KMeansPalettizerConfig())
    with pytest.warns(PaletteWarning, match=rf"wrong-plugin 6\.6 is left out: .*{text}") as warned:
        palettizer.prepare((batches()[0],))
    assert sum("is left out" in str(each.message) for each in warned) == 1
    for name, tensor in without._model.state_dict().items():
        assert torch.equal(tensor, palettizer._model.state_dict()[name])
    for name in (SPELLINGS[0], "theirs"):
        with pytest.raises(ValueError, match=rf"wrong-plugin 6\.6: .*{text}"):
            config(name)
    monkeypatch.setattr("sys.argv", ["palette", "plugins", "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = json.loads(capsys.readouterr().out)
    (listed,) = (q for q in printed["quarantined"] if q["distribution"] == "wrong-plugin")
    assert listed["entry_point"].startswith("operation:their_library")
    assert text in listed["error"]
    assert not [row for row in printed["plugins"] if row["distribution"] == "wrong-plugin"]


@pytest.mark.parametrize(
    "field", [{"aliases": "ns.op"}, {"module_types": [nn.Linear]}, {"channel_axis": None}]
)
def test_wrong_fields_are_refused(field) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(field))}"):
        entry(None, **field).check()


def test_a_name_of_the_cores_cannot_be_an_alias(install) -> None:
    install(
        "from palette_core.plugins import OperationEntry, hookimpl\n"
        "@hookimpl\ndef palette_core_operations():\n"
        "    about = {'summary': 's', 'interface': 1}\n"
        "    return [OperationEntry(name='a.op', aliases=('matmul',), **about),\n"
        "            OperationEntry(name='b.op', module_types=('torch.nn.Linear',), **about),\n"
        "            OperationEntry(name='addmm_', **about),\n"
        "            OperationEntry(name='c.op', **about)]\n"
    )
    catalog = get_catalog()
    refused = {q.entry_point: q.error for q in catalog.quarantined}
    assert "claims the name 'matmul'" in refused["operation:a.op"]
    assert "claims the module type 'torch.nn.Linear'" in refused["operation:b.op"]
    assert "claims the name 'addmm_'" in refused["operation:addmm_"]
    assert catalog.operations.find("c.op")
