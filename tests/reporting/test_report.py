"""The report as records, JSON and a picture; the progress bar; files written whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from palettizer_models import MLP_INPUTS, mlp, prepared_mlp, weight_config
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
)
from palette_core._common.files import atomic_path
from palette_core._common.progress import progress_bar
from palette_core.engine.results import Report, snr_db
from palette_core.errors import PaletteWarning
from palette_core.plugins.checked.granularities import described
from palette_core.reporting.files import ReportFileError, check_report_file, write_report
from palette_core.reporting.pictures import MissingPlotError, PictureError, plot_report
from palette_core.spec import PalettizationSpec


@pytest.fixture
def report() -> Report:
    """One ordinary weight, one reproduced exactly, one left dense."""
    model = nn.Sequential(mlp()[0], nn.Linear(16, 8), nn.Linear(8, 6))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1.0]).repeat(8, 8))
    granularity = PerGroupedChannelGranularity(axis=0, group_size=4)
    palettizer = KMeansPalettizer(model, weight_config(granularity=granularity))
    with pytest.warns(PaletteWarning, match="group_size 4"):
        palettizer.prepare(MLP_INPUTS)
    assert palettizer.report is not None
    return palettizer.report


def test_to_dict_is_json_with_infinity_as_null(report: Report) -> None:
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [row["name"] for row in plain["tensors"]] == ["0.weight", "1.weight"]
    assert plain["tensors"][0]["snr_db"] > 5
    assert plain["tensors"][1]["snr_db"] is None
    assert plain["tensors"][0]["granularity"] == "4 × axis 0"
    assert plain["tensors"][0]["shape"] == [16, 8]
    (skipped,) = plain["skipped"]
    assert skipped["name"] == "2.weight"
    assert "group_size 4 does not divide" in skipped["reason"]


def test_bits_per_palettized_weight(report: Report) -> None:
    bits = (128 + 128) * 2 + (4 + 2) * 4 * 32
    assert report.bits_per_palettized_weight == bits / 256
    assert Report((), ()).bits_per_palettized_weight == 0.0


INF = float("inf")


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [(100.0, 1.0, 20.0), (1.0, 0.0, INF), (0.0, 0.0, INF), (0.0, 1.0, -INF)],
)
def test_signal_to_noise(signal: float, noise: float, expected: float) -> None:
    assert snr_db(signal, noise) == expected


def test_granularities_in_words() -> None:
    def text(granularity: object, axis: int = 0) -> str:
        return described(PalettizationSpec(granularity=granularity).granularity, axis, "w")

    assert text(PerTensorGranularity()) == "per tensor"
    assert text(PerGroupedChannelGranularity(group_size=8), axis=1) == "8 × axis 1"


def test_scales_are_told_beside_the_granularity() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 4)).eval()
    specs = [{}, {"enable_per_channel_scale": True}, {"scale_block_size": 8}]
    names = {
        str(at): {"op_state_spec": {"weight": {"n_bits": 2, **spec}}}
        for at, spec in enumerate(specs)
    }
    config = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"module_name_configs": names}}
    )
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare((torch.randn(1, 16),))
    assert palettizer.report is not None
    rows = palettizer.report.to_dict()["tensors"]
    assert [row["granularity"] for row in rows] == [
        "per tensor", "per tensor, scale / channel", "per tensor, scale / 8",
    ]  # fmt: skip
    assert [row["palettized_bytes"] for row in rows] == [
        weights // 4 + 4 * 4 + scales for weights, scales in ((128, 0), (128, 16 * 4), (64, 8 * 2))
    ]


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures_are_written_in_the_suffixs_format(
    report: Report, tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("matplotlib")
    path = plot_report(report, tmp_path / f"report{suffix}")
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["report.xyz", "report"])
def test_an_unknown_suffix_lists_the_known_ones(report: Report, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=rf"cannot draw '{name}'; use one of .*\.png"):
        plot_report(report, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPlotError, match=r"pip install 'palette-core\[plot\]'"):
        plot_report(report, tmp_path / "report.png")


def test_the_suffix_picks_the_format(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    check_report_file(path)
    write_report(report, path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(report.to_dict()))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ReportFileError, match="it is a folder"):
        check_report_file(tmp_path / "folder.json")
    pytest.importorskip("matplotlib")
    write_report(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PictureError, match=r"cannot draw 'report\.xyz'"):
        check_report_file(tmp_path / "report.xyz")


# --- progress and files -------------------------------------------------------------------------


def test_a_bar_on_request_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    palettizer = KMeansPalettizer(mlp(), weight_config())
    palettizer.prepare(MLP_INPUTS, show_progress=True)
    captured = capsys.readouterr()
    assert "Palettizing" in captured.err
    assert "2/2" in captured.err
    assert not captured.out


def test_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    prepared_mlp()
    with progress_bar("Nothing", 3) as advance:
        advance("a", 1)
    captured = capsys.readouterr()
    assert not captured.err
    assert not captured.out


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    target.parent.mkdir()
    with atomic_path(target) as temporary:
        temporary.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode
