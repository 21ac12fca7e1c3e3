"""Decoders of transformers with their cache inside, and the folder that generation opens.

``openvino_genai`` drives a model with four inputs and keeps its cache as states of the runtime;
`Decoder` gives a model of transformers that form, and `write_companions` puts beside its files what
else the folder needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from palette_core.errors import BackendError

_KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@final
class Decoder(nn.Module):
    """A causal language model of transformers whose keys and values are buffers.

    For one text at a time. The buffers become states of the runtime; what they hold behind
    ``position_ids`` is not read, so a text can be begun anew, or continued from any place.

    Args:
        model: in evaluation mode, with attention that looks at all that came before.
        longest: places of the cache, for what is given and what is generated.

    Raises:
        BackendError: its cache is not made of keys and values of all places.
    """

    _layers: list[Any]

    def __init__(self, model: Any, longest: int) -> None:
        super().__init__()
        from transformers import StaticCache
        from transformers.cache_utils import StaticLayer

        self.model, self.longest = model, longest
        config = model.config.get_text_config()
        self._cache = StaticCache(config=config, max_cache_len=longest)
        self._layers = list(self._cache.layers)
        other = {type(each).__name__ for each in self._layers if type(each) is not StaticLayer}
        if other:
            raise BackendError(
                f"the cache of {type(model).__name__} has layers of {', '.join(sorted(other))}, "
                "and Decoder takes those only that keep all keys and values"
            )
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        for at in range(len(self._layers)):
            for name in ("keys", "values"):
                empty = torch.zeros(1, heads, longest, width, dtype=model.dtype)
                self.register_buffer(f"{name}_{at}", empty)
        self._cache.early_initialization(1, heads, width, model.dtype, torch.device("cpu"))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, beam_idx: Tensor
    ) -> dict[str, Tensor]:
        """Return logits of the next token, at each place of ``input_ids``.

        Args:
            input_ids: ``[1, n]`` int64, tokens that follow each other.
            attention_mask: ``[1, places up to the last token]`` int64; not read.
            position_ids: ``[1, n]`` int64, places of the tokens.
            beam_idx: ``[1]`` int32; not read.
        """
        del attention_mask, beam_idx
        for at, layer in enumerate(self._layers):
            layer.keys, layer.values = getattr(self, f"keys_{at}"), getattr(self, f"values_{at}")
            layer.cumulative_length = position_ids[0, 0].clone()
        made = self.model(
            input_ids=input_ids, position_ids=position_ids, cache=self._cache, use_cache=True
        )
        return {"logits": made.logits}

    def example_inputs(self, tokens: int = 4) -> dict[str, Tensor]:
        """Return inputs of the first ``tokens`` tokens of a text."""
        return {
            "input_ids": torch.arange(tokens)[None],
            "attention_mask": torch.ones(1, tokens + 1, dtype=torch.int64),
            "position_ids": torch.arange(tokens)[None],
            "beam_idx": torch.zeros(1, dtype=torch.int32),
        }

    def dynamic_shapes(self) -> dict[str, dict[int, Any] | None]:
        """Return ``dynamic_shapes`` of any number of tokens up to ``longest``."""
        tokens = torch.export.Dim("tokens", max=self.longest)
        seen = torch.export.Dim("seen", max=self.longest)
        axes: dict[str, dict[int, Any] | None] = {
            name: {1: tokens} for name in ("input_ids", "position_ids")
        }
        return {**axes, "attention_mask": {1: seen}, "beam_idx": None}


def write_companions(source: str | Path, folder: str | Path) -> list[str]:
    """Put what generation needs beside ``openvino_model.xml``; returns the names of files.

    Configurations and tokenizer are copied as they are. Where ``openvino_tokenizers`` is
    installed, the tokenizer is also written as the two models that ``openvino_genai`` runs.

    Args:
        source: a folder of transformers, as ``save_pretrained`` writes it.
        folder: where the exported model lies.

    Raises:
        BackendError: there is no configuration in ``source``, or its tokenizer is not converted.
        OSError: a file cannot be read or written; each file is whole or as it was.
    """
    source, folder = Path(source), Path(folder)
    if not (source / "config.json").is_file():
        raise BackendError(f"{source} has no config.json; name a folder that save_pretrained wrote")
    names = [name for name in _KEPT if (source / name).is_file()]
    with _moved_when_whole(folder) as work:
        for name in names:
            shutil.copyfile(source / name, work / name)
        if importlib.util.find_spec("openvino_tokenizers") and "tokenizer_config.json" in names:
            _write_tokenizer(source, work)
        return sorted(path.name for path in work.iterdir())


def _write_tokenizer(source: Path, folder: Path) -> None:
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        made = convert_tokenizer(tokenizer, with_detokenizer=True)
    # The libraries raise whatever a tokenizer makes them.
    except Exception as error:
        raise BackendError(
            f"openvino_tokenizers cannot convert the tokenizer of {source}: {error}"
        ) from error
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), made, strict=True):
        ov.save_model(model, folder / f"{name}.xml")


@contextlib.contextmanager
def _moved_when_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder whose files take their places in ``folder`` when the block succeeds."""
    with tempfile.TemporaryDirectory(prefix=".companions-", dir=folder) as work:
        yield Path(work)
        for path in sorted(Path(work).iterdir()):
            path.replace(folder / path.name)
