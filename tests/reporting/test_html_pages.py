"""Pages of reports: all that they are to show, in one file, in a browser, whatever names are."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browsers import chromium
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.engine.results import Report
from palette_core.errors import CalibrationError, PaletteWarning, StateError
from palette_core.reporting.files import write_report
from palette_core.reporting.runs import RunFileError, read_run

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'


_FETCHING = ("src", "href", "data", "action", "srcset")


class _Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


class Named(nn.Module):
    """A model whose embedding stays dense, and one of whose layers has a name that bites."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 32)
        self.first = nn.Linear(32, 48)
        self.add_module(EVIL.replace(".", "_"), nn.Linear(48, 48))
        self.last = nn.Linear(48, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    spec = {"n_bits": 3, "granularity": {"type": "per_grouped_channel", "group_size": 8}}
    config = {"global_config": {"op_state_spec": {"weight": spec}}, "module_name_configs": {
        "last": {"op_state_spec": {"weight": {"n_bits": 2}}}
    }}  # fmt: skip
    palettizer = KMeansPalettizer(
        Named(), KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": config})
    )
    palettizer.prepare((torch.arange(64)[None],))
    return palettizer.measure((torch.arange(64)[None],))


def test_a_page_needs_nothing_else_and_names_do_no_harm(report: Report) -> None:
    page = report.to_html("a & <b>")
    tags = _Tags()
    tags.feed(page)
    assert tags.names.count("script") == 3
    assert {"img", "iframe", "link", "object"}.isdisjoint(tags.names)
    assert all(value.startswith("#") for name, value in tags.attributes if name in _FETCHING)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert "url(" not in page
    assert EVIL not in page
    assert "<title>a &amp; &lt;b&gt;</title>" in page
    assert "srcdoc=" in report._repr_html_()


def test_a_page_tells_what_was_done(report: Report) -> None:
    page = report.to_html()
    told = (
        "bits per weight, whole model", "first.weight", "words.weight", "op_state_spec",
        "palettize", "Python", str(report.tensors[0].seed), "squared error of the model",
        "operation &#39;embedding&#39; is palettized only when asked for",
    )  # fmt: skip
    assert [text for text in told if text not in page] == []


def test_a_run_is_read_back_as_it_was(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "run.json")
    run = read_run(tmp_path / "run.json")
    assert (run.name, run.report) == ("run", report)
    assert run.report.to_html() == report.to_html()
    for text in ("", "[]", "{}", '{"tensors": 1}', "[" * 100_000, '{"tensors": [{}]}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(RunFileError, match="is no run"):
            read_run(tmp_path / "run.json")
    with pytest.raises(RunFileError, match="what a run has written"):
        read_run(tmp_path)


def test_sizes_are_those_of_everything(report: Report) -> None:
    model = Named()
    total = sum(p.numel() * 4 for p in model.parameters())
    assert report.run.dense_bytes == total
    saved = sum(row.dense_bytes - row.palettized_bytes for row in report.tensors)
    assert report.run.bytes == total - saved
    assert sum(item.bytes for item in report.left) == total - sum(
        row.dense_bytes for row in report.tensors
    )


def test_frames_have_a_row_for_every_tensor(report: Report) -> None:
    pytest.importorskip("pandas")
    frame = report.to_pandas()
    assert frame.palettized.sum() == 3
    assert frame.loc[frame.name == "words.weight", "dense_bytes"].item() == 64 * 32 * 4
    assert frame.n_bits.dropna().tolist() == [3, 3, 2]


@pytest.mark.slow
def test_a_browser_sorts_opens_and_draws(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "run.html")
    with chromium(tmp_path / "profile") as browser:
        browser.get((tmp_path / "run.html").as_uri())
        assert browser.title == "run"

        def names() -> list[str]:
            cells = browser.find_elements("css selector", "#tensors tbody tr td:first-child")
            return [cell.text.split()[-1] for cell in cells]

        def sort(title: str) -> None:
            (button,) = (
                b for b in browser.find_elements("css selector", "th button") if b.text == title
            )
            button.click()

        as_planned = names()
        sort("SNR, dB")
        by_noise = [row.name for row in sorted(report.tensors, key=lambda row: row.snr_db)]
        assert names()[:3] == [name.split()[-1] for name in by_noise]
        sort("SNR, dB")
        assert names()[:3] == [name.split()[-1] for name in reversed(by_noise)]
        sort("before")
        assert names() != as_planned
        browser.find_element("css selector", "input[type=search]").send_keys("last.weight")
        shown = [r for r in browser.find_elements("css selector", "tr.row") if r.is_displayed()]
        assert [row.text.split()[1 if row.text[0] in "▸▾" else 0] for row in shown] == [
            "last.weight"
        ]
        (button,) = shown[0].find_elements("css selector", ".open")
        button.click()
        opened = browser.find_element("css selector", "tr.opening")
        assert len(opened.find_elements("tag name", "svg")) == 2
        drawn = opened.find_elements("css selector", "svg:first-of-type line[stroke='var(--gold)']")
        assert len(drawn) == 2 * len(report.tensors[2].view.tables[0])  # in the plot, and below it
        bars = opened.find_elements("css selector", "figure:first-child rect")
        assert len(bars) == len(report.tensors[2].view.weights.counts)
        assert str(report.tensors[2].seed) in opened.text
        picture = tmp_path / "page.png"
        browser.save_screenshot(str(picture))
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        for width in (1280, 800, 380):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert browser.execute_script(wide) <= 0, width
        assert browser.title == "run"
        assert browser.get_log("browser") == []


def test_views_are_of_the_weights_themselves() -> None:
    """Counted by numpy, for a weight that is small enough to be looked at whole."""
    numpy = pytest.importorskip("numpy")
    torch.manual_seed(1)
    layer = nn.Linear(24, 16, bias=False)
    weight = layer.weight.detach().clone()
    palettizer = KMeansPalettizer(layer)
    prepared = palettizer.prepare((torch.randn(2, 24),))
    assert palettizer.report is not None
    view = palettizer.report.tensors[0].view
    assert view is not None
    assert view.errors is not None
    decoded = prepared.weight.detach()
    for found, values in ((view.weights, weight), (view.errors, decoded - weight)):
        expected, _ = numpy.histogram(
            values.double().numpy(), bins=64, range=(found.low, found.high)
        )
        assert abs(numpy.array(found.counts) - expected).sum() <= 4  # ends have five digits
    assert view.tables[0] == pytest.approx(sorted(set(decoded.flatten().tolist())), rel=1e-4)
    assert (view.looked_at, view.n_tables) == (weight.numel(), 1)


@pytest.mark.parametrize("shape", [(16, 24), (64, 512)], ids=["whole", "in rows"])
def test_views_are_of_what_was_prepared_whatever_became_of_it(shape: tuple[int, int]) -> None:
    """They are made when somebody asks, and the weight and its table may be trained by then."""
    torch.manual_seed(1)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    views = []
    for overwritten in (False, True):
        model = copy.deepcopy(layer)
        palettizer = KMeansPalettizer(model)
        palettizer.prepare((torch.randn(2, shape[1]),))
        assert palettizer.report is not None
        if overwritten:
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.zero_()
        views.append(pickle.loads(pickle.dumps(palettizer.report)).tensors[0].view)
    assert views[0] == views[1]
    assert views[0].weights.counts != (0,) * len(views[0].weights.counts)


@pytest.mark.parametrize(
    "spec",
    [
        {"granularity": {"type": "per_grouped_channel", "group_size": 4}},
        {"granularity": {"type": "per_grouped_channel", "group_size": 4, "axis": 1}},
        {"enable_per_channel_scale": True},
        {"scale_block_size": 32},
        {"cluster_dim": 2},
        {"sparsity_detection_threshold": 0.3},
        {"lut_qspec": {"dtype": "int8"}},
    ],
    ids=json.dumps,
)
def test_large_weights_are_looked_at_in_rows(spec: dict[str, object]) -> None:
    """Errors of a part must be those of the whole, row by row, whatever the layout."""
    from palette_core.engine import views
    from palette_core.storage.sites import palette_sites

    torch.manual_seed(0)
    layer = nn.Linear(256, 512, bias=False)
    if "sparsity_detection_threshold" in spec:
        with torch.no_grad():
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.5)
    weight = layer.weight.detach().clone()
    states = {"op_state_spec": {"weight": {"n_bits": 2, **spec}}, "enable_fast_kmeans_mode": False}
    config = {"kmeans_palettization_config": {"global_config": states}}
    KMeansPalettizer(layer, config).prepare((torch.randn(2, 256),), show_progress=False)
    (site,) = palette_sites(layer)
    whole = site.palette.palettized()  # type: ignore[attr-defined]
    rows, part = views._evenly_spaced(weight, whole)
    assert rows.shape[0] < weight.shape[0]
    decoded = whole.decode()
    at = {tuple(row.tolist()): i for i, row in enumerate(weight)}
    order = [at[tuple(row.tolist())] for row in rows]
    assert torch.equal(part.decode(), decoded[order])


def test_the_error_of_outputs_is_that_of_the_outputs(report: Report) -> None:
    torch.manual_seed(0)
    model, inputs = Named().eval(), (torch.arange(64)[None],)
    with torch.no_grad():
        dense = model(*inputs)
    palettizer = KMeansPalettizer(model, {"kmeans_palettization_config": {"global_config": {
        "op_state_spec": {"weight": {"n_bits": 2}}}}})  # fmt: skip
    palettizer.prepare(inputs)
    found = palettizer.measure(inputs)
    with torch.no_grad():
        error = (model(*inputs) - dense).square().sum() / dense.square().sum()
        x = model.words(inputs[0])
        weight = model.first.parametrizations.weight.original
        expected = nn.functional.linear(x, weight, model.first.bias)
        of_layer = (model.first(x) - expected).square().sum() / expected.square().sum()
    assert found.run.output_error == pytest.approx(float(error), rel=1e-4)
    assert found.tensors[0].output_error == pytest.approx(float(of_layer), rel=1e-4)
    assert not model.training
    assert replace(found, run=report.run).tensors == found.tensors


class _Holder(nn.Module):
    """A model that owns a weight itself, beside layers that it calls, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))
        self.layer = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        self.calls += 1
        if x.sum() > 1e6:
            raise ValueError("too much")
        return {"y": nn.functional.linear(self.layer(x), self.weight), "names": ["a"]}


def test_measuring_leaves_a_model_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = _Holder().train(), torch.randn(4, 16)
    palettizer = KMeansPalettizer(model)
    palettizer.prepare((x,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = palettizer.measure((x,))
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks
    rows = {row.name: row for row in found.tensors}
    w = model.parametrizations.weight.original
    with torch.no_grad():
        inner = model.layer(x)
        layer = model.layer.parametrizations.weight.original
        plain = nn.functional.linear(x, layer, model.layer.bias)
    expected = {
        "weight": (nn.functional.linear(inner, model.weight), nn.functional.linear(inner, w)),
        "layer.weight": (inner, plain),
    }
    for name, (got, dense) in expected.items():
        error = float(((got - dense).square().sum() / dense.square().sum()).detach())
        assert rows[name].output_error == pytest.approx(error, rel=1e-4)
    assert all(0 < row.loss_share < 1 for row in found.tensors)
    with pytest.raises(
        CalibrationError, match="failed on the example inputs: ValueError: too much"
    ):
        palettizer.measure((x + 1e6,))
    with pytest.raises(CalibrationError, match="are for several runs"):
        palettizer.measure((x, (i for i in range(3))))
    palettizer.finalize(backend="packed")
    with pytest.raises(StateError, match="measure"):
        palettizer.measure((x,))


class _OfItsOwn(nn.Module):
    """A model that switches its mode by rules of its own, and draws numbers by numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def train(self, mode: bool = True) -> nn.Module:
        raise RuntimeError("modes are chosen by the trainer")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.layer(x) + float(np.random.rand())


def test_measuring_sets_modes_itself_and_every_run_draws_alike() -> None:
    torch.manual_seed(0)
    model, x = _OfItsOwn(), torch.randn(4, 16)
    palettizer = KMeansPalettizer(model)
    palettizer.prepare(x)
    drawn = np.random.get_state()[1].tolist()
    (row,) = palettizer.measure(x).tensors
    assert np.random.get_state()[1].tolist() == drawn
    assert row.loss_share == 1
    assert model.training


class _Fragile(nn.Module):
    """A model that divides by zero as soon as its weight is not what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y / torch.isclose(y, self.expected, rtol=0, atol=1e-6)


def test_outputs_that_are_no_numbers_are_told() -> None:
    torch.manual_seed(0)
    model, x = _Fragile().eval(), torch.randn(4, 16)
    with torch.no_grad():
        model.register_buffer("expected", model.layer(x))
    palettizer = KMeansPalettizer(model)
    palettizer.prepare((x,))
    with pytest.warns(PaletteWarning, match="are NaN or infinite; their error is not told"):
        found = palettizer.measure((x,))
    assert found.run.output_error is None
    json.dumps(found.to_dict(), allow_nan=False)
    assert "squared error of the model" not in found.to_html()
