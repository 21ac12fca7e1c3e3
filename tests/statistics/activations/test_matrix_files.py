"""Matrices in files: nobody else's, and gone when they are not needed."""

import copy
import gc

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import CalibrationError

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "lnq"}}}
        }
    }
)


def net(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 8)).eval()


def data(width, size=1.0):
    return [(torch.randn(50, width) * size,) for _ in range(2)]


def files(folder):
    gc.collect()
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("width", [16, 200])
@pytest.mark.parametrize("sequential", [False, True])
def test_two_palettizers_share_a_folder(tmp_path, width, sequential):
    """The second calibration must not replace the matrices of the first."""
    model, alone, own, other = net(width), net(width), data(width), data(12, 9.0)
    first = KMeansPalettizer(model, CONFIG)
    first.calibrate(own, sequential=sequential, folder=tmp_path)
    second = KMeansPalettizer(net(12), CONFIG)
    second.calibrate(other, folder=tmp_path)
    first.prepare(own[0])
    in_memory = KMeansPalettizer(alone, CONFIG)
    in_memory.calibrate(own, sequential=sequential)
    in_memory.prepare(own[0])
    assert torch.equal(model[0].weight, alone[0].weight)
    assert torch.equal(model[2].weight, alone[2].weight)
    second.prepare(other[0])


@pytest.mark.slow
def test_files_go_with_what_they_are_for(tmp_path):
    given = data(16)
    (tmp_path / "mine.txt").write_text("kept")
    mine = [tmp_path / "mine.txt"]
    palettizer = KMeansPalettizer(net(16), CONFIG)
    palettizer.calibrate(given, folder=tmp_path)
    assert len(files(tmp_path)) == 3  # the results; sums are not needed any more
    palettizer.calibrate(given, folder=tmp_path)
    assert len(files(tmp_path)) == 3
    palettizer.prepare(given[0])
    assert files(tmp_path) == mine
    assert list(tmp_path.iterdir()) == mine
    forgotten = KMeansPalettizer(net(16), CONFIG)
    forgotten.calibrate(given, folder=tmp_path)
    del forgotten
    assert files(tmp_path) == mine
    assert list(tmp_path.iterdir()) == mine


def test_files_go_when_a_batch_fails(tmp_path):
    palettizer = KMeansPalettizer(net(16), CONFIG)
    with pytest.raises(CalibrationError):
        palettizer.calibrate([*data(16), (torch.randn(3, 7),)], folder=tmp_path)
    assert files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_moments_outlives_them(tmp_path):
    given = data(16)
    palettizer = KMeansPalettizer(net(16), CONFIG)
    palettizer.calibrate(given, folder=tmp_path)
    other = copy.deepcopy(palettizer)
    palettizer.prepare(given[0])
    other.prepare(given[0])
    assert {row.algorithm for row in other.report.tensors} == {"lnq"}


def test_a_folder_that_is_none_is_named(tmp_path):
    palettizer = KMeansPalettizer(net(16), CONFIG)
    with pytest.raises(CalibrationError, match=r"folder: .*gone is no existing folder"):
        palettizer.calibrate(data(16), folder=tmp_path / "gone")
