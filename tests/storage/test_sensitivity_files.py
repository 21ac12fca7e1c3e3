"""prepare() with a file of sensitivities."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from calibration_oracle import squares
from hypothesis import given
from hypothesis import strategies as st
from palettizer_models import (
    MLP_INPUTS,
    TOKENS,
    Tied,
    assert_untouched,
    decoded_weights,
    mlp,
    snapshot,
    squared_error,
    weight_config,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palette_core import KMeansPalettizer, read_checkpoint, save_checkpoint
from palette_core.errors import CheckpointError, PaletteWarning, SensitivityError
from palette_core.storage.checksums import checksum, sealed
from palette_core.storage.sensitivity_files import (
    WantedTensor,
    load_sensitivities,
    save_sensitivities,
)
from palette_core.tensors.sensitivities import Sensitivity, from_squares, normalized


def sensitivities(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "0.weight": torch.rand(16, 8, generator=generator) ** 8,
        "2.weight": torch.rand(4, 16, generator=generator) ** 8,
    }


def written(tmp_path: Path, values: dict[str, Any], suffix: str = ".pt") -> Path:
    path = tmp_path / f"sensitivities{suffix}"
    if suffix == ".safetensors":
        save_file(values, path)
    else:
        torch.save(values, path)
    return path


def prepared(path: Path | None, **spec: Any) -> nn.Module:
    return KMeansPalettizer(mlp(), weight_config(**spec)).prepare(MLP_INPUTS, path)


def brute_force(values: np.ndarray, weights: np.ndarray, k: int) -> float:
    """Least weighted squared error of k entries, by dynamic programming over sorted values."""
    order = np.argsort(values)
    x, w = values[order], weights[order]
    n = len(x)
    w1, wx, wxx = (np.concatenate([[0.0], np.cumsum(v)]) for v in (w, w * x, w * x * x))

    def cost(i: int, j: int) -> float:
        mass = w1[j] - w1[i]
        return 0.0 if mass <= 0 else wxx[j] - wxx[i] - (wx[j] - wx[i]) ** 2 / mass

    best = [cost(0, j) for j in range(n + 1)]
    for _ in range(k - 1):
        best = [min(best[i] + cost(i, j) for i in range(j + 1)) for j in range(n + 1)]
    return best[n]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_weighted_results_are_the_weighted_optimum(tmp_path: Path, suffix: str) -> None:
    values = sensitivities()
    weighted = prepared(written(tmp_path, values, suffix), algorithm_options={"exact": True})
    plain = prepared(None, algorithm_options={"exact": True})
    original = mlp()
    for name, sensitivity in values.items():
        at = int(name[0])
        weight = original[at].weight
        errors = [squared_error(m[at].weight, weight, sensitivity) for m in (weighted, plain)]
        assert errors[0] < 0.9 * errors[1]
        optimum = brute_force(
            weight.detach().double().flatten().numpy(), sensitivity.double().flatten().numpy(), 4
        )
        assert errors[0] == pytest.approx(optimum, rel=1e-3)
        assert squared_error(plain[at].weight, weight) < squared_error(weighted[at].weight, weight)


OTHERS = [{"enable_per_channel_scale": True}, {"cluster_dim": 2, "fast": False}]


@pytest.mark.parametrize("spec", OTHERS)
def test_weighted_results_of_scaled_and_vector_palettes(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    values = sensitivities()
    weighted, plain = prepared(written(tmp_path, values), **spec), prepared(None, **spec)
    original = mlp()[0].weight
    errors = [squared_error(m[0].weight, original, values["0.weight"]) for m in (weighted, plain)]
    assert errors[0] < errors[1]


def test_the_scale_of_sensitivities_does_not_matter(tmp_path: Path) -> None:
    results = []
    for factor in (1.0, 2.0**100, 2.0**-400):
        values = {n: v.double() * factor for n, v in sensitivities().items()}
        results.append(decoded_weights(prepared(written(tmp_path, values))))
    for other in results[1:]:
        for name, weight in other.items():
            torch.testing.assert_close(weight, results[0][name], rtol=1e-5, atol=1e-6)


def test_float64_values_beyond_float32(tmp_path: Path) -> None:
    values = {n: v.double() * 1e300 for n, v in sensitivities().items()}
    model = prepared(written(tmp_path, values))
    assert bool(torch.isfinite(model(*MLP_INPUTS)).all())


@pytest.mark.parametrize(
    "name", ["{}.parametrizations.weight.original", "{}.parametrizations.weight.original0"]
)
def test_names_that_parametrized_models_give(tmp_path: Path, name: str) -> None:
    values = {name.format(n[0]): v for n, v in sensitivities().items()}
    values["0.bias"] = torch.full((3,), float("nan"))  # of no planned tensor: not looked at
    by_name = prepared(written(tmp_path, sensitivities()))
    model = prepared(written(tmp_path, values))
    assert torch.equal(model[0].weight, by_name[0].weight)


def test_any_owner_of_a_tied_weight_will_do(tmp_path: Path) -> None:
    values = {"head.weight": torch.rand(16, 8), "middle.weight": torch.rand(8, 8)}
    path = written(tmp_path, values)
    model = KMeansPalettizer(Tied(), weight_config()).prepare(TOKENS, path)
    plain = KMeansPalettizer(Tied(), weight_config()).prepare(TOKENS)
    assert not torch.equal(model.head.weight, plain.head.weight)


def test_zeros_are_fine(tmp_path: Path) -> None:
    values = {n: torch.zeros_like(v) for n, v in sensitivities().items()}
    values["2.weight"][0, :8] = 1.0
    model, plain = prepared(written(tmp_path, values)), prepared(None)
    assert torch.equal(model[0].weight, plain[0].weight)  # all zeros: plain k-means
    original = mlp()[2].weight
    errors = [squared_error(m[2].weight, original, values["2.weight"]) for m in (model, plain)]
    assert errors[0] < errors[1]
    assert bool(torch.isfinite(model(*MLP_INPUTS)).all())


def test_normalized_is_at_most_one_and_float32() -> None:
    scaled = normalized(torch.tensor([0.0, 1e-20, 1.0, 4.0], dtype=torch.float64))
    assert scaled.dtype is torch.float32
    assert scaled.tolist() == [0.0, 0.0, 0.25, 1.0]
    assert normalized(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


# --- files that do not fit ----------------------------------------------------------------------


def refused(path: Path, kind: type[Exception] = SensitivityError) -> str:
    """The message of the refusal; the model must be as before, and free for another config."""
    model = mlp()
    before = snapshot(model)
    with pytest.raises(kind) as caught:
        KMeansPalettizer(model, weight_config()).prepare(MLP_INPUTS, path)
    assert_untouched(model, before)
    KMeansPalettizer(model, weight_config(n_bits=3)).prepare(MLP_INPUTS)
    assert len(model[0].weight.unique()) == 8
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_missing_file(tmp_path: Path, suffix: str) -> None:
    message = refused(tmp_path / f"none{suffix}", FileNotFoundError)
    assert f"none{suffix}" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 0.5])
def test_a_truncated_file(tmp_path: Path, suffix: str, keep: float) -> None:
    path = written(tmp_path, sensitivities(), suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    message = refused(path)
    assert path.name in message


@pytest.mark.parametrize("content", [[1, 2], {"0.weight": 3}, torch.zeros(3)])
def test_files_of_something_else(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    assert "dictionary from tensor names to tensors" in refused(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"0.weight": None}, "no entry for 0.weight"),
        ({"0.weight": torch.ones(8, 16)}, "0.weight has shape (8, 16), expected (16, 8)"),
        ({"0.weight": torch.full((16, 8), float("nan"))}, "0.weight has NaN or infinite values"),
        ({"0.weight": torch.full((16, 8), float("inf"))}, "0.weight has NaN or infinite values"),
        ({"0.weight": torch.full((16, 8), -0.5)}, "negative values, the smallest -0.5"),
        ({"0.weight": torch.ones(16, 8, dtype=torch.complex64)}, "0.weight has dtype complex64"),
        ({"0.weight": torch.ones(16, 8, dtype=torch.bool)}, "0.weight has dtype bool"),
    ],
)
def test_unfit_values(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    changed = {n: v for n, v in (sensitivities() | values).items() if v is not None}
    assert message in refused(written(tmp_path, changed))


def test_all_problems_are_listed(tmp_path: Path) -> None:
    message = refused(
        written(tmp_path, {"0.weights": torch.ones(2), "2.weight": -torch.ones(4, 16)})
    )
    assert "no entry for 0.weight; did you mean '0.weights'?" in message
    assert "2.weight has negative values" in message


def test_with_channel_scales_the_error_of_the_weight_itself_counts(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-2, 2, 16)[:, None])
    weight = model[0].weight.detach().double()
    values = sensitivities()
    spec = {
        "enable_per_channel_scale": True,
        "scale_fit": "range",
        "algorithm_options": {"exact": True},
    }
    path = written(tmp_path, values)
    KMeansPalettizer(model, weight_config(**spec)).prepare(MLP_INPUTS, path)
    scale = weight.abs().amax(dim=1, keepdim=True)
    optimum = brute_force(
        (weight / scale).flatten().numpy(),
        (values["0.weight"].double() * scale.square()).flatten().numpy(),
        4,
    )
    error = squared_error(model[0].weight, weight, values["0.weight"])
    assert error == pytest.approx(optimum, rel=1e-3)


# --- files of our own ---------------------------------------------------------------------------


def calibrated_file(tmp_path: Path, name: str = "own.safetensors") -> Path:
    palettizer = KMeansPalettizer(mlp(), weight_config())
    model = palettizer.prepare(MLP_INPUTS)
    path = tmp_path / "made" / name
    path.parent.mkdir(exist_ok=True)
    with palettizer.calibration_mode(loss_fn=lambda o, _: o.sum(), sensitivity_path=path) as c:
        for factor in (1.0, -3.0):
            c.step(model(MLP_INPUTS[0] * factor).square(), None)
    return path


def test_what_a_file_holds(tmp_path: Path) -> None:
    path = calibrated_file(tmp_path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary is left
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["palette_core_sensitivities"])
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["version"] == 2
    assert header["crc32"] == {name: checksum(tensor) for name, tensor in values.items()}
    assert set(values) == set(header["tensors"]) == {"0.weight", "2.weight"}
    steps = [lambda m, f=f: m(MLP_INPUTS[0] * f).square().sum() for f in (1.0, -3.0)]
    total = squares(mlp(), values, steps)
    for name, value in values.items():
        weight = mlp().get_parameter(name).detach()
        digest = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
        record = header["tensors"][name]
        assert record["shape"] == list(weight.shape)
        assert record["fingerprint"] == f"float32:{digest}"
        # The largest mean squared gradient.
        assert record["scale"] == pytest.approx(float(total[name].max()) / 2, rel=1e-4)
        assert record["batches"] == 2
        assert value.dtype is torch.float32
        assert value.max() == 1
        assert value.min() > 0


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_number_of_batches_travels_and_few_batches_count_less(
    tmp_path: Path, suffix: str
) -> None:
    torch.manual_seed(0)
    values = torch.rand(8, 8).square()
    values /= values.max()
    wanted = [WantedTensor(("0.weight",), (8, 8), "f")]

    def read(batches: int | None) -> Sensitivity:
        path = tmp_path / f"s{suffix}"
        save_sensitivities(path, {"0.weight": Sensitivity(values, "f", 1.0, batches)})
        return load_sensitivities(path, wanted)["0.weight"]

    assert read(None).batches is None
    assert torch.equal(read(None).importance(), values)
    spreads = []
    for batches in (1, 4, 1000):
        found = read(batches)
        assert found.batches == batches
        assert torch.equal(found.values, values)
        # As the mean of a conjugate prior does: the mean counts as so many batches more.
        prior = (found.importance().double() - values.double()) * batches / values.double().mean()
        assert torch.allclose(prior, torch.full_like(prior, 4.0), rtol=1e-4)
        spreads.append(float(found.importance().max() / found.importance().min()))
    assert spreads == sorted(spreads)
    assert spreads[0] < 5


def test_a_number_of_batches_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    torch.save(
        {"0.weight": torch.ones(2), "palette_core_sensitivities.batches": torch.ones(2)}, path
    )
    with pytest.raises(SensitivityError, match="no number of batches"):
        load_sensitivities(path, [WantedTensor(("0.weight",), (2,), "")])


def test_a_torch_file_is_of_the_documented_form(tmp_path: Path) -> None:
    stored = torch.load(calibrated_file(tmp_path, "own.pt"), weights_only=True)
    own = load_file(calibrated_file(tmp_path))
    counted = "palette_core_sensitivities.batches"
    keys = {f"{at}.parametrizations.weight.original" for at in (0, 2)}
    assert stored.keys() == {*keys, counted}
    assert stored[counted].item() == 2
    for at in (0, 2):
        value = stored[f"{at}.parametrizations.weight.original"]
        assert torch.equal(value, own[f"{at}.weight"])


@pytest.mark.parametrize("change", ["values", "dtype", "one value"])
def test_a_file_of_another_model(tmp_path: Path, change: str) -> None:
    path = calibrated_file(tmp_path)
    makers = {
        "values": lambda: mlp(seed=1),
        "dtype": lambda: mlp().half(),
        "one value": mlp,
    }
    model = makers[change]()
    inputs = tuple(x.to(model[0].weight.dtype) for x in MLP_INPUTS)
    if change == "one value":
        model[2].weight.data[1, 3] += 1e-6
    which = "2.weight" if change == "one value" else "every weight"
    before = snapshot(model)
    with pytest.raises(SensitivityError) as caught:
        KMeansPalettizer(model, weight_config()).prepare(inputs, path)
    assert_untouched(model, before)
    message = str(caught.value)
    assert f"measured on other values of {which};" in message
    assert "trust_sensitivities=True" in message
    # The way out that the message names.
    KMeansPalettizer(model, weight_config()).prepare(inputs, path, trust_sensitivities=True)
    plain = KMeansPalettizer(makers[change](), weight_config()).prepare(inputs)
    assert not torch.equal(model[0].weight, plain[0].weight)


def test_the_order_in_memory_does_not_make_another_model(tmp_path: Path) -> None:
    path = calibrated_file(tmp_path)
    model = mlp()
    model[0].weight.data = model[0].weight.data.T.contiguous().T
    KMeansPalettizer(model, weight_config()).prepare(MLP_INPUTS, path)


def test_all_kinds_of_problems_in_one_error(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    palettizer = KMeansPalettizer(Model(), weight_config())
    model = palettizer.prepare(MLP_INPUTS)
    path = tmp_path / "s.safetensors"
    with palettizer.calibration_mode(loss_fn=lambda o, _: o.sum(), sensitivity_path=path) as c:
        c.step(model(*MLP_INPUTS), None)
    values = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["palette_core_sensitivities"])
    values["layers.0.weight"] = values["layers.0.weight"][:4].contiguous()
    del values["layers.1.weight"]
    values["layers.2.weight"][0, 0] = float("nan")
    values["layers.3.weight"][0, 0] = -1
    del header["crc32"], header["header_crc32"]
    save_file(values, path, metadata={"palette_core_sensitivities": sealed(header, values)})
    other = Model()
    other.layers[4].weight.data.neg_()
    with pytest.raises(SensitivityError) as caught:
        KMeansPalettizer(other, weight_config()).prepare(MLP_INPUTS, path)
    for problem in (
        "layers.0.weight has shape (4, 8), expected (8, 8)",
        "no entry for layers.1.weight",
        "layers.2.weight has NaN",
        "layers.3.weight has negative values, the smallest -1.0",
        "measured on other values of",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged: KeyError: 'version'"),
        ('{"version": 3, "tensors": {}}', "has format version 3; this palette_core reads 2 and 1"),
        ('{"version": 2, "tensors": {}}', "is damaged: ValueError: it has no checksums"),
        ('{"version": 1,"header_crc32":"00000000"}', "is damaged: ValueError: it does not match"),
        ('{"version": 1, "tensors": {"0.weight": 3}}', "is damaged"),
        (
            '{"version": 1, "tensors": {"0.weight": {"fingerprint": "", "batches": 0}}}',
            "is damaged: ValueError: batches is 0",
        ),
    ],
)
def test_damaged_metadata(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.safetensors"
    save_file(sensitivities(), path, metadata={"palette_core_sensitivities": text})
    assert message in refused(path)


@pytest.mark.parametrize("name", ["own.safetensors", "own.pt"])
def test_one_bit_that_flips_in_the_values_is_refused(tmp_path: Path, name: str) -> None:
    path = calibrated_file(tmp_path, name)
    whole = bytearray(path.read_bytes())
    value = load_sensitivities(path, [WantedTensor(("0.weight",), (16, 8), "")], trust=True)
    at = whole.find(value["0.weight"].values.numpy().tobytes())
    assert at > 0
    whole[at + 8] ^= 1
    path.write_bytes(whole)
    part = r"0\.weight is damaged" if name.endswith("rs") else r"its part \w+/data/0 is not what"
    with pytest.raises(SensitivityError, match=part):
        KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, path)


def test_metadata_whose_name_is_damaged_do_not_make_it_a_file_of_others(tmp_path: Path) -> None:
    path = calibrated_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"core_sensitivities", b"core_semsitivities"))
    with pytest.raises(SensitivityError, match="metadata is damaged: it goes by another name"):
        KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, path)


def test_an_archive_that_torch_does_not_write(tmp_path: Path) -> None:
    path = calibrated_file(tmp_path, "own.pt")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    with pytest.raises(SensitivityError, match="is damaged: its part"):
        KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, path)


def test_a_part_that_is_called_a_folder(tmp_path: Path) -> None:
    path = calibrated_file(tmp_path, "own.pt")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for part, data in parts.items():
            item = zipfile.ZipInfo(part)
            item.external_attr = 0x10 if "data/" in part else 0
            archive.writestr(item, data)
    with pytest.raises(SensitivityError, match="is damaged: its part"):
        KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, path)


def test_an_older_file_is_taken_with_a_note(tmp_path: Path) -> None:
    path = calibrated_file(tmp_path)
    values = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["palette_core_sensitivities"])
    older = {"version": 1, "tensors": header["tensors"]}
    save_file(values, path, metadata={"palette_core_sensitivities": json.dumps(older)})
    with pytest.warns(PaletteWarning, match="was written without checksums"):
        KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, path)


def test_a_packed_checkpoint_is_no_file_of_sensitivities(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS)
    save_checkpoint(prepared(None), path)
    assert "no entry for 0.weight" in refused(path)
    with pytest.raises(CheckpointError, match="not a packed checkpoint"):
        read_checkpoint(calibrated_file(tmp_path))


def test_sensitivities_from_a_file_can_be_saved_again(tmp_path: Path) -> None:
    path, again = calibrated_file(tmp_path), tmp_path / "again.safetensors"
    palettizer = KMeansPalettizer(mlp(), weight_config())
    palettizer.prepare(MLP_INPUTS, path)
    palettizer.save_sensitivities(again)
    assert again.read_bytes() == path.read_bytes()


def test_zeros_of_a_file_are_kept_and_fit_vectors(tmp_path: Path) -> None:
    values = {n: torch.zeros_like(v) for n, v in sensitivities().items()}
    values["0.weight"][:, 0] = 1.0  # nothing else matters
    values["2.weight"][:2, :8] = 1.0
    spec: dict[str, Any] = {"cluster_dim": 2, "n_bits": 3, "fast": False}
    model = prepared(written(tmp_path, values, ".safetensors"), **spec)
    plain, original = prepared(None, **spec), mlp()
    for at in (0, 2):
        weight, value = original[at].weight, values[f"{at}.weight"]
        errors = [squared_error(m[at].weight, weight, value) for m in (model, plain)]
        assert errors[0] < 1e-10 < errors[1]  # 8 vectors that matter, 8 entries
        assert bool(torch.isfinite(model[at].weight).all())


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
        elements=st.floats(0, 2.0**120, width=32, allow_subnormal=True),
    )
)
def test_measured_values_are_as_documented_and_survive_a_file(raw: np.ndarray) -> None:
    values = from_squares(torch.from_numpy(raw.copy()))
    exact = raw.astype(np.float64)
    if not exact.any():
        assert bool((values == 1).all())
    else:
        scaled = exact / exact.max()
        expected = np.where(exact > 0, scaled, scaled[exact > 0].min()).clip(1e-12)
        np.testing.assert_allclose(values.double().numpy(), expected, rtol=1e-6)
        assert values.max() == 1
    assert torch.equal(normalized(values), values)


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (lambda w: w.to_sparse(), "nested, sparse"),
        (lambda w: torch.empty_like(w, device="meta"), "without values"),
        (lambda w: w.to(torch.uint16), "dtype uint16, expected a floating"),
        (lambda w: w.to(torch.uint32), "dtype uint32, expected a floating"),
        (lambda w: torch.quantize_per_tensor(w, 1.0, 0, torch.quint8), "quantized"),
        (lambda w: torch.nested.nested_tensor([w]), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_that_are_no_plain_ones(tmp_path: Path, odd: Any, problem: str) -> None:
    model = mlp()
    values = {name: torch.ones(p.shape) for name, p in model.named_parameters()}
    first = next(name for name in values if name.endswith("weight"))
    values[first] = odd(values[first])
    torch.save(values, tmp_path / "s.pt")
    with pytest.raises(SensitivityError, match=f"{first} .*{problem}"):
        KMeansPalettizer(model, weight_config()).prepare(MLP_INPUTS, tmp_path / "s.pt")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    for name in ("s.pt", "s.safetensors", "s"):
        (tmp_path / name).mkdir()
        with pytest.raises(SensitivityError, match="is a folder"):
            KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, tmp_path / name)


@pytest.mark.parametrize(
    "metadata", ["[" * 100_000, '{"version": 1, "tensors": {"x": {"scale": 1' + "0" * 400 + "}}}"]
)
def test_metadata_out_of_bounds(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "s.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata={"palette_core_sensitivities": metadata})
    with pytest.raises(SensitivityError, match="metadata is damaged"):
        KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, path)


def test_a_write_that_fails_is_an_oserror_and_leaves_the_older(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    values = {"w": Sensitivity(torch.ones(100, 100), "", 1.0)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("s.pt", "s.safetensors"):
        (tmp_path / name).write_text("older")
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # stands for a full disk
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                save_sensitivities(tmp_path / name, values)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / name).read_text() == "older"
        assert "palette-" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.pt", "s.safetensors"]


def test_a_folder_that_is_missing_is_told_before_any_step(tmp_path: Path) -> None:
    palettizer = KMeansPalettizer(mlp(), weight_config())
    palettizer.prepare(MLP_INPUTS)
    path = tmp_path / "missing" / "s.safetensors"
    mode = palettizer.calibration_mode(loss_fn=lambda o, _: o.sum(), sensitivity_path=path)
    with pytest.raises(FileNotFoundError, match="mkdir -p"):
        mode.__enter__()
    assert not path.parent.exists()
