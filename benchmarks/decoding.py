"""SmolLM2-135M exported with its cache, and what the file generates beside torch.

    python benchmarks/decoding.py [--algorithm lnq] [--group-size 16] [--tokens 64] [--keep FOLDER]

transformers' model is palettized at 4 bits with tables of 8, the embedding that is its head too
among its weights; with an algorithm for inputs it is calibrated on a few thousand tokens of news.
``export_decoder`` writes it for Core AI, whose runtime continues texts on the CPU, greedily.
Ends with 1 where tokens are not torch's. Needs PALETTE_LOADERS and PALETTE_MODELS, as models.py
says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from palette_core import KMeansPalettizer
from palette_core.storage.bits import model_bits

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "accuracy"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins/transformers_bridge/tests"))

import decoder_support as support
import generating
import models
import tasks

_PROMPT = 20  # tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", help="such as lnq; default: k-means")
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="of 1,024 tokens, for calibration")
    parser.add_argument("--tokens", type=int, default=64, help="after a prompt of 20")
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="write the folder here, and keep it")
    arguments = parser.parse_args()
    model = generating.smollm2()
    tokenizer = models._loader("smollm2").tokenizer()
    batches = [tokens for (tokens,) in tasks.smollm2(0).batches[: arguments.batches]]
    palettizer = palettize(model, arguments, batches)
    print(palettizer.report.coverage.sentence())
    told = tokenizer.encode(tasks._text("lee.cor")).ids
    prompts = [told[300 * at : 300 * at + _PROMPT] for at in range(arguments.texts)]
    wanted = [support.torch_tokens(model, prompt, arguments.tokens) for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, arguments.keep or Path(folder) / "smollm2")
        size = sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
        bits, _ = model_bits(model)
        print(f"{size:,} bytes, {size * 8 / bits:.4f} of the ideal bits")
        found = support.core_ai_tokens(path, prompts, arguments.tokens)
    for prompt, torchs, files in zip(prompts, wanted, found, strict=True):
        same = sum(a == b for a, b in zip(torchs, files, strict=True))
        print(f"{tokenizer.decode(prompt)} …{tokenizer.decode(files)}")
        print(f"{same} of {len(torchs)} tokens are torch's")
    return int(found != wanted)


def palettize(
    model: nn.Module, arguments: argparse.Namespace, batches: list[Tensor]
) -> KMeansPalettizer:
    weight: dict[str, Any] = {
        "n_bits": 4,
        "lut_qspec": {"dtype": "int8"},
        "granularity": {
            "type": "per_grouped_channel",
            "axis": 0,
            "group_size": arguments.group_size,
        },
    }
    aware = weight if arguments.algorithm is None else {**weight, "algorithm": arguments.algorithm}
    rules = {
        "op_state_spec": {"weight": aware},
        "op_type_config": {"embedding": {"op_state_spec": {"weight": weight}}},
    }
    palettizer = KMeansPalettizer(model, {"kmeans_palettization_config": {"global_config": rules}})
    given = [{"input_ids": tokens, "use_cache": False} for tokens in batches]
    if arguments.algorithm:
        palettizer.calibrate(given, sequential=True)
    palettizer.prepare(given[0])
    return palettizer


def export(model: nn.Module, out: Path) -> Path:
    """Return the file in the folder that is written, without tokenizer and config beside it."""
    from transformers_bridge import export_decoder

    return export_decoder(model, out, "coreai", context=256) / f"{out.name}.aimodel"


if __name__ == "__main__":
    sys.exit(main())
