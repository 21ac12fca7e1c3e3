"""Memory of a calibration: all of it is freed when it ends, without a collection of garbage."""

import contextlib
import gc

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig


class Mapped(nn.Module):
    """A layer that is called inside of ``torch.func.vmap``, and one that is not."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.second(torch.func.vmap(self.first)(x))


def layers():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Conv1d(5, 6, 3))


def palettizer_of(model, algorithm):
    spec = {"n_bits": 2, "algorithm": algorithm}
    config = {"global_config": {"op_state_spec": {"weight": spec}}}
    return KMeansPalettizer(
        model.eval(), KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": config})
    )


@contextlib.contextmanager
def collected_by_hand():
    """Yield a list that in the end has what only a collection of garbage would free."""
    found = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def told_of(found):
    """Return shapes of tensors, and classes of ours: of arrays, too, which are not tracked."""
    names = [type(x).__qualname__ for x in found if type(x).__module__.startswith("palette_core")]
    return [str(x.shape) for x in found if isinstance(x, torch.Tensor)] + names


@pytest.mark.parametrize("algorithm", ["lnq", "gptq", "kmeans1d"])
@pytest.mark.parametrize("options", [{"sequential": True}, {"sequential": False}])
def test_nothing_large_waits_for_garbage_collection(algorithm, options):
    batches = [torch.randn(2, 5, 8) for _ in range(3)]

    def prepared():
        palettizer = palettizer_of(layers(), algorithm)
        palettizer.calibrate(batches, **options)
        palettizer.prepare(batches[0])
        return palettizer

    kept = [prepared()]  # plug-ins are found, and kernels loaded, the first time
    with collected_by_hand() as found:
        kept.append(prepared())
    told = told_of(found)  # tensors in a message would be the garbage of the next test
    assert told == []


@pytest.mark.parametrize("sequential", [True, False])
def test_a_layer_inside_of_a_transform_is_palettized_without_data(sequential):
    palettizer = palettizer_of(Mapped(), "gptq")
    palettizer.calibrate([torch.randn(12, 8)], sequential=sequential)
    with pytest.warns(UserWarning, match=r"first\.weight: palettized by k-means.* not understood"):
        palettizer.prepare(torch.randn(12, 8))
    assert [row.algorithm for row in palettizer.report.tensors] == ["kmeans1d", "gptq"]
