"""Plug-ins that fail, or return nonsense: the error names them, and the model is as before."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from wrong_clusterers import entry, right, spoiled
from wrong_commands import command
from wrong_commands import right as right_run
from wrong_forms import Bytes, form
from wrong_metrics import metric
from wrong_metrics import right as right_loss
from wrong_operations import operation
from wrong_operations import right as right_operation
from wrong_runtimes import backend, strategy
from wrong_tables import Rows, granularity, quantizer
from wrong_tables import right as right_table

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    allocate,
)
from palette_core.errors import (
    AllocationError,
    BackendError,
    ClusteringError,
    PaletteError,
    PlanError,
    TrainingError,
    WeightError,
)
from palette_core.plugins import LutQuantizerEntry, PluginEntry, QuantizationSpec, Refusal
from palette_core.plugins.kinds import KINDS, kind_of
from palette_core.plugins.making import make
from palette_core.plugins.registries import Distribution, Registered


def raises(*given: object, **named: object):
    raise LookupError("no licence")


def exits(*given: object, **named: object):
    raise SystemExit(3)


class PanicException(BaseException):
    """What pyo3 makes of a panic in Rust."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text either")


def panics(*given: object, **named: object):
    raise PanicException("a thread panicked")


def fails_mutely(*given: object, **named: object):
    raise Mute


def palettizer_of(model: nn.Module, **spec: object) -> KMeansPalettizer:
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": PalettizationSpec(n_bits=2, **spec)}
        )
    )
    return KMeansPalettizer(model, config)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval()


def refused(model: nn.Module, error: type[Exception], **spec: object) -> str:
    """Prepare; return the message, having seen that nothing has changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = list(model.named_modules())
    with pytest.raises(error) as caught:
        palettizer_of(model, **spec).prepare((torch.ones(1, 8),))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert list(model.named_modules()) == parts
    return str(caught.value)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (entry(raises), "failed: LookupError: no licence"),
        (entry(exits), "failed: SystemExit: 3"),
        (entry(panics), "failed: PanicException: a thread panicked"),
        (entry(fails_mutely), "failed: Mute: (its text cannot be read: RuntimeError)"),
        (entry(right, factory=lambda _: Unprintable()), "made a Unprintable, which is no Clus"),
        (entry(lambda p: None), "returned NoneType, not a Codebook"),
        (spoiled(lambda p, m: replace(m, lut=m.lut.tolist())), "of list and Tensor"),
        (spoiled(lambda p, m: replace(m, codes=m.codes + 4)), "expected codes below 4"),
        (spoiled(lambda p, m: replace(m, codes=m.codes.long())), "codes dtype torch.int64"),
        (spoiled(lambda p, m: replace(m, codes=m.codes[:, 1:])), "codes shape (1, 63)"),
        (spoiled(lambda p, m: replace(m, lut=m.lut.long())), "lut of torch.int64"),
        (spoiled(lambda p, m: replace(m, lut=m.lut * torch.nan)), "NaN or infinite"),
        (spoiled(lambda p, m: replace(m, lut=m.lut.double() * 1e300)), "infinite in torch.float32"),
        (spoiled(lambda p, m: replace(m, quantized=m.lut)), "not a QuantizedLut"),
    ],
)
def test_a_clusterer(record, text, model, register) -> None:
    register(record)
    message = refused(model, ClusteringError, algorithm="wrong")
    assert text in message
    assert "0.weight: clusterer 'wrong' (wrong-plugin 6.6)" in message


def test_a_clusterer_that_writes_to_the_weights_is_found_out(model, register) -> None:
    def writes(problem):
        made = right(problem)
        problem.points.zero_()
        return made

    register(entry(writes))
    with pytest.raises(ClusteringError, match=r"wrong-plugin 6\.6\): has written to the points"):
        palettizer_of(model, algorithm="wrong").prepare((torch.ones(1, 8),))


def test_what_a_call_changes_of_the_process_is_put_back(model, register, monkeypatch) -> None:
    def fit(problem):
        seen.append(problem)
        os.chdir("/")
        torch.set_num_threads(before[1] + 1)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = not before[4]
        torch.set_grad_enabled(True)
        raise LookupError("no licence")

    def settings() -> list[object]:
        return [
            os.getcwd(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
        ]

    register(entry(fit))
    monkeypatch.chdir(os.getcwd())  # back there whatever happens
    seen: list[object] = []
    with torch.no_grad():
        before = settings()
        refused(model, ClusteringError, algorithm="wrong")
        assert settings() == before
    assert seen


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda t: t.as_subclass(Odd)])
def test_tensors_that_compute_in_their_own_way_are_refused(change, model, register) -> None:
    register(spoiled(lambda p, m: replace(m, lut=change(m.lut))))
    message = refused(model, ClusteringError, algorithm="wrong")
    assert "0.weight: clusterer 'wrong' (wrong-plugin 6.6): returned a" in message


class Odd(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("hands off")


def test_random_states_are_put_back(model, register, untouched_rng) -> None:
    def fit(problem):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        raise LookupError("no licence")

    register(entry(fit))
    refused(model, ClusteringError, algorithm="wrong")


def test_a_metric_gets_outputs_of_its_own(model, register) -> None:
    def writes(candidate):
        for batch in candidate.outputs(None):
            for tensor in batch:
                assert bool(tensor.isfinite().all())
                tensor.fill_(torch.nan)
        return 1.0

    register(replace(metric(writes), needs_outputs=True))
    inputs = (torch.ones(1, 8),)
    assert allocate(model, None, inputs, target_bpw=8, metric="wrong", batches=[inputs])


def shapes(answer):
    class Nonsense(Rows):
        def block_shape(self, shape, default_axis):
            return answer(shape)

    return granularity(Nonsense)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (shapes(raises), "failed for shape (8, 8): LookupError: no licence"),
        (shapes(lambda s: 4), "into 4; expected 2 positive integers"),
        (shapes(lambda s: (4,)), "into (4,); expected 2 positive integers"),
        (shapes(lambda s: (3, 8)), "into (3, 8); expected 2 positive integers"),
        (shapes(lambda s: (0, 8)), "into (0, 8)"),
        (shapes(lambda s: (-8, 8)), "into (-8, 8)"),
        (shapes(lambda s: (4.0, 8)), "into (4.0, 8)"),
        (shapes(lambda s: None), "into None"),
    ],
)
def test_a_granularity(record, text, model, register) -> None:
    register(record)
    message = refused(model, PlanError, granularity={"type": "wrong"})
    assert text in message
    assert "0.weight: granularity 'wrong' (wrong-plugin 6.6)" in message


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (quantizer(raises), "failed: LookupError: no licence"),
        (replace(quantizer(right_table), factory=raises), "failed: LookupError: no licence"),
        (quantizer(lambda lut: lut), "returned Tensor, not a QuantizedLut"),
        (
            quantizer(lambda lut: replace(right_table(lut), values=lut.round())),
            "returned values torch.float32, expected torch.int8",
        ),
        (
            quantizer(lambda lut: replace(right_table(lut), values=right_table(lut).values[:, 1:])),
            "returned values (1, 3, 1), expected (1, 4, 1)",
        ),
        (
            quantizer(lambda lut: replace(right_table(lut), scale=torch.ones(1))),
            "returned a scale of shape (1,), expected (1, 1, 1)",
        ),
        (
            quantizer(
                lambda lut: replace(right_table(lut), scale=torch.full((1, 1, 1), torch.nan))
            ),
            "NaN or infinite",
        ),
    ],
)
def test_a_lut_quantizer(record, text, model, register) -> None:
    register(record)
    spec = {"dtype": "int8", "quantizer": "wrong"}
    message = refused(model, ClusteringError, lut_qspec=spec)
    assert text in message
    assert "0.weight: LUT quantizer 'wrong' (wrong-plugin 6.6)" in message


@pytest.mark.parametrize(
    ("answer", "text"),
    [(raises, "failed: LookupError"), (lambda facts: "no", "check_support returned 'no'")],
)
def test_a_backend_that_cannot_say_what_it_refuses(answer, text, model, register) -> None:
    register(backend(check_support=answer))
    with pytest.raises(BackendError) as caught:
        palettizer_of(model).make_plan((torch.ones(1, 8),), backend="wrong")
    assert "0.weight: export backend 'wrong' (wrong-plugin 6.6)" in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(raises, "failed: LookupError"), (lambda *asked: "no", "check_program returned 'no'")],
)
def test_a_backend_that_cannot_say_what_it_refuses_of_a_program(
    answer, text, model, register
) -> None:
    register(backend(check_program=answer))
    with pytest.raises(BackendError) as caught:
        palettizer_of(model).make_plan((torch.ones(1, 8),), backend="wrong")
    assert "export backend 'wrong' (wrong-plugin 6.6)" in str(caught.value)
    assert text in str(caught.value)


def test_what_a_backend_refuses_of_a_program_is_said_before_any_clustering(model, register) -> None:
    reasons = [Refusal("aten.lstm (in 'a')"), Refusal("aten.sort (in 'b')")]
    register(backend(check_program=lambda *asked: reasons))
    palettizer = palettizer_of(model)
    with pytest.raises(PlanError, match=r"aten\.lstm \(in 'a'\); aten\.sort \(in 'b'\)"):
        palettizer.prepare((torch.ones(1, 8),), backend="wrong")
    assert palettizer.report is None
    assert not hasattr(model[0], "parametrizations")


@pytest.mark.parametrize(
    ("answer", "text"),
    [(raises, "failed: LookupError"), (lambda model: 3, "finalize returned 3, expected a module")],
)
def test_a_backend_that_cannot_finalize_leaves_a_prepared_model(
    answer, text, model, register
) -> None:
    register(backend(finalize=answer))
    inputs = (torch.ones(1, 8),)
    palettizer = palettizer_of(model)
    wanted = palettizer.prepare(inputs)(*inputs)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BackendError) as caught:
        palettizer.finalize(backend="wrong")
    assert "export backend 'wrong' (wrong-plugin 6.6)" in str(caught.value)
    assert text in str(caught.value)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(palettizer.finalize(backend="packed")(*inputs), wanted)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (raises, "failed: LookupError: no licence"),
        (lambda model: Path("nowhere"), "export returned PosixPath('nowhere')"),
    ],
)
def test_a_backend_that_cannot_export(answer, text, model, register, tmp_path) -> None:
    register(backend(export=answer))
    palettizer = palettizer_of(model)
    inputs = (torch.ones(1, 8),)
    wanted = palettizer.prepare(inputs)(*inputs)
    with pytest.raises(BackendError) as caught:
        palettizer.export(tmp_path / "m.safetensors", inputs, backend="wrong")
    assert "export backend 'wrong' (wrong-plugin 6.6)" in str(caught.value)
    assert text in str(caught.value)
    assert torch.equal(model(*inputs), wanted)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (replace(backend(), factory=raises), "failed: LookupError: no licence"),
        (replace(backend(), factory=lambda options: Refusal("x")), "which is no Backend"),
    ],
)
def test_a_backend_that_cannot_be_made(record, text, model, register) -> None:
    register(record)
    with pytest.raises(BackendError, match=r"'wrong' \(wrong-plugin 6\.6\)") as caught:
        palettizer_of(model).make_plan((torch.ones(1, 8),), backend="wrong")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (strategy(lambda s, w, decoded: raises()), "failed: LookupError: no licence"),
        (strategy(lambda s, w, decoded: exits()), "failed: SystemExit: 3"),
        (strategy(lambda s, w, decoded: decoded / 0), "NaN or infinite"),
    ],
)
def test_a_training_strategy(record, text, model, register) -> None:
    register(record)
    palettizer = palettizer_of(model, training_strategy="wrong")
    inputs = (torch.ones(1, 8),)
    wanted = palettizer.prepare(inputs)(*inputs)
    with pytest.raises(TrainingError) as caught, palettizer.training_mode():
        model(*inputs)
    assert text in str(caught.value)
    assert "0.weight: training strategy 'wrong' (wrong-plugin 6.6)" in str(caught.value)
    assert torch.equal(model.eval()(*inputs), wanted)


@pytest.mark.parametrize(
    ("factory", "text"),
    [(raises, "failed: LookupError: no licence"), (print, "made None, which is no Training")],
)
def test_a_training_strategy_that_cannot_be_made(factory, text, model, register) -> None:
    register(replace(strategy(None), factory=factory))
    message = refused(model, TrainingError, training_strategy="wrong")
    assert text in message
    assert "0.weight: training strategy 'wrong' (wrong-plugin 6.6)" in message


@pytest.mark.parametrize(
    ("record", "error", "text"),
    [
        (metric(raises), AllocationError, "failed: LookupError: no licence"),
        (metric(exits), AllocationError, "failed: SystemExit: 3"),
        (metric(lambda candidate: "much"), AllocationError, "failed: ValueError"),
        (metric(lambda candidate: torch.nan), AllocationError, "predicts a loss of nan"),
        (metric(lambda candidate: -1), AllocationError, "predicts a loss of -1.0"),
    ],
)
def test_a_sensitivity_metric(record, error, text, model, register) -> None:
    register(record)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error) as caught:
        allocate(model, None, (torch.ones(1, 8),), target_bpw=6, metric="wrong")
    assert text in str(caught.value)
    assert "0.weight: sensitivity metric 'wrong' (wrong-plugin 6.6)" in str(caught.value)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("factory", "text"),
    [(raises, "failed: LookupError: no licence"), (print, "made None, which is no Sensitivity")],
)
def test_a_sensitivity_metric_that_cannot_be_made(factory, text, model, register) -> None:
    register(replace(metric(right_loss), factory=factory))
    with pytest.raises(PaletteError, match=r"'wrong' \(wrong-plugin 6\.6\)") as caught:
        allocate(model, None, (torch.ones(1, 8),), target_bpw=6, metric="wrong")
    assert text in str(caught.value)


# --- one meaning for every kind -------------------------------------------------------------------

RECORDS = {
    "clusterer": entry(right),
    "LUT quantizer": quantizer(right_table),
    "export backend": backend(),
    "training strategy": strategy(None),
    "sensitivity metric": metric(right_loss),
    "operation": operation(right_operation),
    "stored form": form(Bytes),
    "command": command(right_run),
}


def made_of(record: PluginEntry, factory: Callable[..., object]) -> object:
    item = Registered(replace(record, factory=factory), Distribution("wrong-plugin", "6.6"))
    given = [QuantizationSpec()] if isinstance(record, LutQuantizerEntry) else []
    return make(item, {}, *given, tensor="0.weight")


def test_there_is_a_record_of_every_kind_with_a_factory() -> None:
    made = [kind.title for kind in KINDS if "factory" in kind.record.__dataclass_fields__]
    assert set(made) == set(RECORDS)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_what_a_factory_returns_is_checked(record) -> None:
    kind = kind_of(record)
    wrong = {"options": object()}
    with pytest.raises(kind.error) as caught:
        made_of(record, lambda *given: wrong)
    text = f"0.weight: {kind} 'wrong' (wrong-plugin 6.6): its factory made {wrong!r}, which is no "
    assert str(caught.value) == text + kind.interface.__name__
    with pytest.raises(kind.error, match=r"6\.6\) failed: LookupError: no licence"):
        made_of(record, raises)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("passes", [MemoryError, torch.OutOfMemoryError])
def test_exhausted_memory_passes(record, passes) -> None:
    def fails(*given: object) -> object:
        raise passes

    with pytest.raises(passes):
        made_of(record, fails)


def test_ctrl_c_passes_whatever_the_plug_in_makes_of_it() -> None:
    def interrupted(*given: object) -> object:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise LookupError("no licence") from None

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        made_of(entry(right), interrupted)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_an_interrupt_of_the_plug_ins_own_is_a_failure(record) -> None:
    def fails(*given: object) -> object:
        raise KeyboardInterrupt

    with pytest.raises(kind_of(record).error, match=r"6\.6\) failed: KeyboardInterrupt"):
        made_of(record, fails)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_an_error_of_ours_keeps_its_class_and_names_the_tensor_once(record) -> None:
    def fails(*given: object) -> object:
        raise WeightError("the moments are not finite")

    def names_it(*given: object) -> object:
        raise WeightError("0.weight: the moments are not finite")

    with pytest.raises(WeightError, match=r"^0\.weight: .* 'wrong' .*: the moments are not"):
        made_of(record, fails)
    with pytest.raises(WeightError, match=r"^0\.weight: the moments are not finite$"):
        made_of(record, names_it)


def test_a_quantizer_that_fails_inside_an_algorithm_is_named_alone(model, register) -> None:
    def fit(problem):
        problem.lut_quantizer.quantize(torch.ones(1, 4, 1))

    register(entry(fit, fits_quantized=True))
    register(quantizer(raises))
    spec = {"dtype": "int8", "quantizer": "wrong"}
    message = refused(model, ClusteringError, algorithm="wrong", lut_qspec=spec)
    assert message.startswith("0.weight: LUT quantizer 'wrong' (wrong-plugin 6.6) failed: Lookup")
    assert "clusterer" not in message


@pytest.mark.parametrize("passes", [MemoryError, torch.OutOfMemoryError])
def test_exhausted_memory_of_an_algorithm_passes_the_engine(model, register, passes) -> None:
    def fit(problem):
        raise passes("none left")

    register(entry(fit))
    assert refused(model, passes, algorithm="wrong") == "none left"
