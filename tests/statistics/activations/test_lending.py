"""Functions of torch in runs that wait: computed by the thread that lets them run, if it can be."""

import threading
from contextlib import nullcontext

import pytest
import torch
from run_threads import run_threads
from torch import nn
from torch.overrides import TorchFunctionMode

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.statistics.activations import lending
from palette_core.statistics.activations.lending import is_worth_it
from palette_core.statistics.activations.threads import Waiting
from palette_core.statistics.activations.watch import Watch

SIZE = 32  # values of a float32 tensor that is large enough, in these tests

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "gptq"}}}
        }
    }
)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(lending, "_LARGE", 4 * SIZE)


def computed_by(call):
    """Run a call that waits, and return the thread of every function that it has had computed."""
    threads = []

    def noted(self, func, types, args, kwargs):
        def where(*args, **kwargs):
            threads.append(threading.current_thread())
            return func(*args, **kwargs)

        where.__module__ = "torch.functional"
        takes = any(isinstance(x, torch.Tensor) for x in args)
        return Waiting.compute(self, where if takes else func, types, args, kwargs)

    def run(waiting):
        with torch.no_grad(), Watch({}, {}, None, None, lambda *a: noted(waiting, *a)):
            call()

    waiting = Waiting(run)
    waiting.resume()
    assert waiting.ended
    waiting.close()
    assert run_threads() == []
    return threads


class Other(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad, nullcontext, Other])
def test_what_is_large_is_computed_by_the_thread_that_waits(around):
    large = torch.ones(SIZE)

    def call():
        with around():
            torch.relu(large)

    assert computed_by(call) == [threading.current_thread()]


def test_gradients_are_recorded_where_the_run_does():
    large, found = torch.ones(SIZE, requires_grad=True), []

    def call():
        found.append(torch.relu(large).requires_grad)
        with torch.enable_grad():
            found.append(torch.relu(large).requires_grad)

    with torch.no_grad():
        computed_by(call)
    computed_by(call)
    assert found == 2 * [False, True]


@pytest.mark.parametrize(
    "around", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_what_depends_on_the_thread_stays_on_it(around):
    large, found = torch.ones(SIZE, SIZE), []

    def call():
        with around():
            found.append(large @ large)

    (thread,) = computed_by(call)
    assert thread is not threading.current_thread()
    with around():
        truth = large @ large
    assert found[0].dtype == truth.dtype
    assert found[0].is_inference() == truth.is_inference()


def test_transforms_stay_on_their_thread():
    large, found = torch.arange(SIZE * SIZE).reshape(SIZE, SIZE).float(), []

    def call():
        found.append(torch.func.vmap(torch.sigmoid)(large))

    assert computed_by(call)[-1] is not threading.current_thread()
    assert torch.equal(found[0], torch.sigmoid(large))


class Wrapped(torch.Tensor):
    """A tensor of somebody else's, who does with functions of torch as he likes."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs)


def test_only_large_plain_tensors_and_functions_of_torch_are_lent():
    large, small = torch.ones(SIZE), torch.ones(SIZE - 1)

    def ask(func, *args, types=(), **kwargs):
        return is_worth_it(func, types, args, kwargs)

    assert ask(torch.relu, large)
    assert ask(nn.functional.hardtanh, large, types=(torch.Tensor, nn.Parameter))
    assert ask(torch.cat, [small, large])
    assert ask(torch.clamp, small, min=large)
    assert not ask(torch.relu, small)
    assert not ask(torch.Tensor.transpose, large, 0, 0)
    assert not ask(torch.relu, large.to("meta"))
    assert not ask(torch.where, large.to("meta"), large)
    assert not ask(torch.relu, large.to_sparse())
    assert not ask(torch.relu, large.as_subclass(Wrapped))
    assert not ask(torch.ops.aten.relu, large)
    assert not ask(computed_by, large)
    assert not ask(nn.functional.hardtanh, large.as_subclass(Wrapped), types=(Wrapped,))


def test_what_fails_fails_where_it_was_asked_for():
    caught = []

    def call():
        try:
            torch.ones(SIZE, 2) @ torch.ones(SIZE, 2)
        except RuntimeError as error:
            caught.append(str(error))
        torch.cat([torch.ones(SIZE), torch.ones(1, SIZE)])

    with pytest.raises(RuntimeError, match="dimensions"):
        computed_by(call)
    assert "shapes cannot be multiplied" in caught[0]
    assert run_threads() == []


def test_an_interrupt_while_something_is_computed_ends_the_run():
    def interrupt(*args):
        raise KeyboardInterrupt

    interrupt.__module__ = "torch.functional"
    ended = []

    def call(waiting):
        try:
            waiting.compute(interrupt, (), (torch.ones(SIZE),), {})
        finally:
            ended.append(True)

    waiting = Waiting(call)
    with pytest.raises(KeyboardInterrupt):
        waiting.resume()
    waiting.close()
    assert ended == [True]
    assert run_threads() == []


class Net(nn.Module):
    """Two layers, with operations between them of which some cannot be lent."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        with torch.inference_mode():
            y = x * 2
        with torch.autocast("cpu", torch.bfloat16):
            z = (x.mT @ x).float()
        return self.second(x + y.clone() + torch.func.vmap(torch.tanh)(x) @ z)


@pytest.mark.parametrize("compensate", [True, False])
def test_lent_or_not_results_are_the_same(compensate, monkeypatch):
    given = [torch.randn(12, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    found = []
    for least in (4, 1 << 30):
        monkeypatch.setattr(lending, "_LARGE", least)
        palettizer = KMeansPalettizer(Net().eval(), CONFIG)
        palettizer.calibrate(given, sequential=True, compensate=compensate)
        found.append(palettizer.prepare(given[0]))
    with torch.no_grad():
        lent, own = (model(given[0]) for model in found)
    assert torch.equal(lent, own)
