"""Decoders in files, with their cache in states: they generate the tokens of torch."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import decoder_support as support
import pytest
import torch
import transformers
import yaml
from bridge_models import MODELS
from decoder_support import PROMPT, model_of

from palette_core import KMeansPalettizer
from palette_core.cli import main
from palette_core.errors import BackendError, StateError
from transformers_bridge import CachedDecoder, export_decoder


def config(**spec: Any) -> dict[str, Any]:
    weight = {"n_bits": 4, **spec}
    return {
        "kmeans_palettization_config": {
            "global_config": {
                "op_state_spec": {"weight": weight},
                "op_type_config": {"embedding": {"op_state_spec": {"*": {"n_bits": 4}}}},
            }
        }
    }


def palettized(kind: str, **changes: Any) -> Any:
    """Return a model with weights found by ``lnq`` on a few texts, 4 bits all."""
    model = model_of(kind, **changes)
    palettizer = KMeansPalettizer(model, config(algorithm="lnq"))
    made = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(3, 96, (2, 24), generator=made)} for _ in range(2)]
    palettizer.calibrate(batches)
    palettizer.prepare({"input_ids": batches[0]["input_ids"], "use_cache": False})
    return model


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: at for at, word in enumerate(["</s>", *(f"w{n}" for n in range(95))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["llama", pytest.param("qwen3", marks=SLOW), pytest.param("gemma3", marks=SLOW)]
)
def test_core_ai_generates_the_tokens_of_torch(tmp_path, kind):
    pytest.importorskip("coreai_torch")
    model = palettized(kind)
    out = export_decoder(model, tmp_path / "made", context=96, tokenizer=tokenizer())
    prompts = [PROMPT, [7], PROMPT[:9]]
    found = support.core_ai_tokens(out / "made.aimodel", prompts, 64)
    wanted = [support.torch_tokens(model, prompt, 64) for prompt in prompts]
    assert found == wanted
    assert len(set(wanted[0])) > 10
    assert sorted(os.listdir(out)) == [
        "config.json", "generation_config.json", "made.aimodel", "metadata.json", "tokenizer",
    ]  # fmt: skip
    told = json.loads((out / "metadata.json").read_text())
    assert (told["assets"], told["language"]["max_context_length"]) == (
        {"main": "made.aimodel"},
        96,
    )
    opened = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    assert opened("w3 w8")["input_ids"] == [4, 9]
    assert transformers.AutoConfig.from_pretrained(out).vocab_size == 96


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3", marks=SLOW)])
def test_core_ml_holds_what_generates_the_tokens_of_torch(tmp_path, kind):
    """Judged by an evaluator of ML programs; states are float16, the rest float32 here."""
    ct = pytest.importorskip("coremltools")
    evaluator = pytest.importorskip("mil_evaluator")
    model = model_of(kind)
    KMeansPalettizer(model, config()).prepare({"input_ids": torch.tensor([PROMPT])})
    exact = {"compute_precision": "float32"}
    out = export_decoder(
        model, tmp_path / "made", "coreml", context=48, name="file", backend_options=exact
    )
    assert sorted(os.listdir(out)) == [
        "config.json", "file.mlpackage", "generation_config.json",
    ]  # fmt: skip
    path = out / "file.mlpackage"
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert [each.name for each in described.input] == ["input_ids", "position_ids"]
    assert [each.name for each in described.output] == ["logits"]
    package = evaluator.Package(path)
    shape = model.config.num_hidden_layers, 1, 2, 48, 16
    assert {name: state.shape for name, state in package.states.items()} == {
        "keyCache": shape, "valueCache": shape,
    }  # fmt: skip
    for prompt in (PROMPT, [7]):  # the states are not cleared in between
        text, given, found = list(prompt), list(prompt), []
        for _ in range(16):
            logits = package(support.inputs_of(text, given))["logits"]
            given = [int(logits[0, -1].argmax())]
            text += given
            found += given
        assert found == support.torch_tokens(model, prompt, 16)


def test_a_palettized_folder_becomes_one_for_the_runtime(tmp_path, capsys, monkeypatch):
    pytest.importorskip("coreai_torch")
    model = model_of("llama", num_hidden_layers=1)
    KMeansPalettizer(model, config()).prepare({"input_ids": torch.tensor([PROMPT])})
    wanted = support.torch_tokens(model, PROMPT, 8)
    dense = tmp_path / "dense"
    model_of("llama", num_hidden_layers=1).save_pretrained(dense)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    packed = tmp_path / "packed"
    packs = ["-c", tmp_path / "config.yaml"]
    for line in (
        ["palettize-checkpoint", dense, *packs, "-o", packed],
        ["export-decoder", packed, "-o", tmp_path / "out", "--context", 48],
        ["export-decoder", dense, "-o", tmp_path / "own", "--context", 48, *packs],
    ):
        monkeypatch.setattr(sys, "argv", ["palette", *map(str, line)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr()
    assert "48 tokens of context" in capsys.readouterr().out
    for name in ("out", "own"):
        (found,) = support.core_ai_tokens(tmp_path / name / f"{name}.aimodel", [PROMPT], 8)
        assert found == wanted
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_the_cache_has_room_for_all_of_the_context():
    decoder = CachedDecoder(model_of("gemma3"), 32)
    text = torch.tensor([[*PROMPT, *PROMPT[:12]]])
    places = torch.arange(32)[None]
    with torch.no_grad():
        wanted = decoder.model(input_ids=text, use_cache=False).logits
        found = [
            decoder(text[:, start:end], places[:, :end])["logits"]
            for start, end in ((0, 20), (20, 21), (21, 31), (31, 32))
        ]
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context": 7}, r"context is 7; LlamaForCausalLM takes 8 to 128"),
        ({"context": 129}, r"context is 129; LlamaForCausalLM takes 8 to 128"),
        ({"backend": "onnx"}, r"writes for coreai and coreml, got backend 'onnx'"),
        ({"backend_options": {"state_names": ["a"]}}, r"state_names: a runner knows the names"),
        ({"name": "a/b"}, r"name is 'a/b'"),
        ({}, "must be prepared"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(tmp_path, change, said):
    given = {"context": 32, **change}
    with pytest.raises((BackendError, StateError), match=said):
        export_decoder(model_of("llama"), tmp_path / "made", **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(BackendError, match="exists; name a folder that is not there"):
        export_decoder(model_of("llama"), tmp_path, context=32)
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (MODELS["t5"], "is no decoder by itself"),
        (MODELS["bert"], "does not run with a cache|computes otherwise"),
        (
            lambda: model_of(
                "llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
            ),
            "depends on the length of the text",
        ),
    ],
)
def test_models_without_such_a_cache_are_named(make, said):
    with pytest.raises(BackendError, match=said):
        CachedDecoder(make(), 32).check_equal()
