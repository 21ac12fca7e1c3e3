"""Speech models in files, as functions with caches: they transcribe the tokens of torch."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
import speech_support as support
import torch
import transformers
import yaml
from bridge_models import MODELS
from speech_support import clips, whisper

from palette_core import KMeansPalettizer
from palette_core.cli import main
from palette_core.errors import BackendError, StateError
from transformers_bridge import SpeechDecoder, SpeechEncoder, export_speech


def config(**spec: Any) -> dict[str, Any]:
    weight = {"n_bits": 4, **spec}
    return {
        "kmeans_palettization_config": {
            "global_config": {
                "op_state_spec": {"weight": weight},
                "op_type_config": {"embedding": {"op_state_spec": {"*": {"n_bits": 4}}}},
            },
            "module_name_configs": {"model.decoder.embed_positions": None},
        }
    }


def palettized(**spec: Any) -> Any:
    """Return a model of 4 bits in all, the table that embedding and head share among them."""
    model = whisper()
    palettizer = KMeansPalettizer(model, config(**spec))
    tokens = torch.tensor([[1, 5, 9, 44, 17, 80, 33, 61]])
    batches = [{"input_features": clip, "decoder_input_ids": tokens} for clip in clips(2, 7)]
    if spec:
        palettizer.calibrate(batches)
    palettizer.prepare({**batches[0], "use_cache": False})
    return model


def test_core_ai_transcribes_the_tokens_of_torch(tmp_path):
    pytest.importorskip("coreai_torch")
    from coreai_backend import read_weights

    model = palettized(algorithm="lnq")
    extractor = transformers.WhisperFeatureExtractor(feature_size=8)
    out = export_speech(model, tmp_path / "made", context=48, processor=extractor)
    given = clips(3)
    wanted = [support.torch_tokens(model, clip, 40) for clip in given]
    with support.core_ai(out / "made.aimodel") as functions:
        assert [support.tokens_of(functions, clip, 40) for clip in given] == wanted
    assert len(set(wanted[0])) > 8
    assert len(set(map(tuple, wanted))) == 3
    assert sorted(os.listdir(out)) == [
        "config.json", "generation_config.json", "made.aimodel", "processor",
    ]  # fmt: skip
    opened = transformers.AutoFeatureExtractor.from_pretrained(out / "processor")
    assert opened.feature_size == 8
    kept = read_weights(out / "made.aimodel")
    shared = kept["model.model.decoder.embed_tokens.weight"]
    np.testing.assert_array_equal(shared, model.proj_out.weight.detach())
    assert not any("proj_out" in name for name in kept)  # tied, and stored once
    assert "model.model.encoder.layers.0.fc1.weight" in kept


def test_core_ml_holds_what_transcribes_the_tokens_of_torch(tmp_path):
    """Judged by an evaluator of ML programs; states are float16, the rest float32 here."""
    pytest.importorskip("coremltools")
    evaluator = pytest.importorskip("mil_evaluator")
    model = palettized()
    out = export_speech(
        model,
        tmp_path / "made",
        "coreml",
        context=48,
        backend_options={"compute_precision": "float32"},
    )
    encoder, decoder = (
        evaluator.Package(out / "made.mlpackage", n) for n in ("encoder", "decoder")
    )
    assert {name: value.shape for name, value in decoder.states.items()} == dict.fromkeys(
        ("keyCache", "valueCache"), (2, 1, 4, 48, 16)
    )
    assert not encoder.states
    for clip in clips(2):
        found = support.tokens_of((encoder, decoder), clip, 12)
        assert found == support.torch_tokens(model, clip, 12)


def run(monkeypatch: Any, line: list[Any]) -> Any:
    monkeypatch.setattr(sys, "argv", ["palette", *map(str, line)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_folder_becomes_one_for_the_runtime(tmp_path, capsys, monkeypatch):
    pytest.importorskip("coreai_torch")
    dense = tmp_path / "dense"
    whisper().save_pretrained(dense)
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(dense)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    packed = tmp_path / "packed"
    (clip,) = clips(1)
    wanted = support.torch_tokens(palettized(), clip, 12)
    for line in (
        ["palettize-checkpoint", dense, "-c", tmp_path / "config.yaml", "-o", packed],
        ["export-speech", packed, "-o", tmp_path / "out"],
    ):
        assert not run(monkeypatch, line), capsys.readouterr()
    assert "64 tokens of context" in capsys.readouterr().out
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out" / "processor")
    for given, out, said in ((packed, "out", "exists"), (dense, "new", "are dense")):
        assert run(monkeypatch, ["export-speech", given, "-o", tmp_path / out])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with support.core_ai(tmp_path / "out" / "out.aimodel") as functions:
        assert support.tokens_of(functions, clip, 12) == wanted


def test_the_cache_has_room_for_all_of_the_context():
    model = whisper()
    encoder, decoder = SpeechEncoder(model), SpeechDecoder(model, 16)
    (clip,) = clips(1)
    text, places = torch.tensor([[1, *range(40, 55)]]), torch.arange(16)[None]
    with torch.no_grad():
        wanted = model(input_features=clip, decoder_input_ids=text, use_cache=False).logits
        heard = encoder(clip)
        found = [
            decoder(text[:, start:end], places[:, :end], **heard)["logits"]
            for start, end in ((0, 10), (10, 11), (11, 15), (15, 16))
        ]
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context": 7}, r"context is 7; WhisperForConditionalGeneration takes 8 to 64"),
        ({"context": 65}, r"context is 65; WhisperForConditionalGeneration takes 8 to 64"),
        ({"backend": "onnx"}, r"export_speech writes for coreai and coreml, got backend 'onnx'"),
        ({"backend_options": {"output_names": ["a"]}}, r"output_names: a runner knows the names"),
        ({"name": "a/b"}, r"name is 'a/b'"),
        ({}, "must be prepared"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(tmp_path, change, said):
    with pytest.raises((BackendError, StateError), match=said):
        export_speech(whisper(), tmp_path / "made", **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_models_that_hear_nothing_are_named(kind):
    with pytest.raises(BackendError, match="is no model that hears a clip and writes tokens"):
        SpeechEncoder(MODELS[kind]())


def test_a_model_that_computes_otherwise_is_refused():
    model = whisper()
    model.proj_out.register_forward_hook(lambda _, __, logits: logits * logits.shape[1])
    with pytest.raises(BackendError, match="computes otherwise with a cache in buffers"):
        SpeechDecoder(model, 16).check_equal(SpeechEncoder(model))
