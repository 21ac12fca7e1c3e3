"""Arguments that the runtime keeps from call to call, in models of any kind."""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino_support as support
import pytest
import torch
from torch import Tensor, nn

from palette_core.errors import BackendError


class Remembers(nn.Module):
    """A layer of all rows so far, and how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = torch.cat((kept["rows"], x))
        calls = kept["calls"] + 1
        return {"y": self.layer(rows).sum(0) * calls, "rows": rows, "calls": calls}


KEPT = {"rows": torch.zeros(3, 8), "calls": torch.zeros(1, dtype=torch.int64)}
SHAPES = {"x": {0: torch.export.Dim("new")}, "kept": {"rows": {0: torch.export.Dim("old")}}}
SHAPES["kept"]["calls"] = None
INPUTS = {"x": torch.ones(2, 8), "kept": KEPT}


def test_arguments_become_states_that_grow_from_nothing(tmp_path):
    torch.manual_seed(0)
    model = Remembers().eval()
    path = support.exported(
        model,
        INPUTS,
        tmp_path / "model.xml",
        dynamic_shapes=SHAPES,
        backend_options={"states": ("kept",)},
    )
    request = support.compiled(path).create_infer_request()
    held = {state.name: state for state in request.query_state()}
    assert sorted(held) == ["kept_calls", "kept_rows"]
    for _ in range(2):
        kept = {"rows": torch.zeros(0, 8), "calls": KEPT["calls"]}
        for rows in (2, 1, 5):
            x = torch.randn(rows, 8)
            with torch.no_grad():
                made = model(x, kept)
            kept = {"rows": made["rows"], "calls": made["calls"]}
            found = request.infer({"x": x.numpy()})
            assert [port.get_any_name() for port in found.to_dict()] == ["y"]
            assert support.difference([found["y"]], [made["y"]]) < 1e-5
            assert np.array_equal(held["kept_rows"].state.data, kept["rows"].numpy())
        request.reset_state()


def test_without_the_option_they_are_inputs_and_outputs(tmp_path):
    path = support.exported(Remembers().eval(), INPUTS, tmp_path / "m.xml", dynamic_shapes=SHAPES)
    model = ov.Core().read_model(path)
    assert [port.get_any_name() for port in model.inputs] == ["x", "kept_rows", "kept_calls"]
    assert [port.get_any_name() for port in model.outputs] == ["y", "rows", "calls"]
    assert not model.get_sinks()


def test_positional_arguments_are_found_by_their_names(tmp_path):
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            total = total + self.layer(x)
            return total.exp(), total

    torch.manual_seed(0)
    model, x = Sums().eval(), torch.randn(2, 8)
    options = {"states": ("total",), "output_names": ("powers",)}
    path = support.exported(
        model, (x, torch.ones(2, 8)), tmp_path / "model.xml", backend_options=options
    )
    request = support.compiled(path).create_infer_request()
    for times in (1, 2):
        with torch.no_grad():
            wanted = (model.layer(x) * times).exp()
        assert support.difference([request.infer([x.numpy()])["powers"]], [wanted]) < 1e-5


class Returns(nn.Module):
    """Returns what it is told to."""

    def __init__(self, made) -> None:
        super().__init__()
        self.layer, self.made = nn.Linear(8, 8), made

    def forward(self, x: Tensor, old: Tensor):
        return self.made(self.layer(x), old)


@pytest.mark.parametrize(
    ("names", "made", "message"),
    [
        (
            ("odl",),
            lambda y, old: (y, old),
            "states names 'odl', and example_inputs give 'x', 'old",
        ),
        (("old",), lambda y, old: y + old.sum(), "states has 1 tensors, and the model returns 1: "),
        (
            ("old",),
            lambda y, old: (old + 1, y),
            r"output 'output_1' is float32 \[2, 8\], and would be the next value of state 'old', "
            r"which is float32 \[3, 8\]; return the next values last",
        ),
        (
            ("old",),
            lambda y, old: (y, old.long()),
            r"'output_1' is int64 \[3, 8\], and would be .* float32 \[3, 8\]",
        ),
    ],
)
def test_states_that_do_not_fit_are_named(names, made, message, tmp_path):
    with pytest.raises(BackendError, match=message):
        support.exported(
            Returns(made).eval(),
            (torch.ones(2, 8), torch.ones(3, 8)),
            tmp_path / "model.xml",
            backend_options={"states": names},
        )
    assert not list(tmp_path.iterdir())
