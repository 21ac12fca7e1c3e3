"""Decoders of transformers with their cache inside, and the folder that generation opens.

``openvino_genai`` drives a model with four inputs whose cache grows in states of the runtime;
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
    """A causal language model of transformers whose keys and values the runtime keeps.

    For one text at a time. Its argument ``past`` becomes states, by the option ``states`` of the
    backend (`backend_options`); they hold as many places as there were tokens, so a text is begun
    by resetting them. In this form the CPU joins attention with its cache, and adds to it in place.

    Args:
        model: in evaluation mode, with attention that looks at all that came before.
        longest: how many tokens a text may have, what is given and what is generated.

    Raises:
        BackendError: its cache is not made of keys and values of all places.
    """

    def __init__(self, model: Any, longest: int) -> None:
        super().__init__()
        self.model, self.longest = model, longest
        self._config = model.config.get_text_config()
        other = {type(each).__name__ for each in self._cache().layers} - {"DynamicLayer"}
        if other:
            raise BackendError(
                f"the cache of {type(model).__name__} has layers of {', '.join(sorted(other))}, "
                "and Decoder takes those only that keep all keys and values"
            )

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        beam_idx: Tensor,
        past: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return logits of the next token, at each place of ``input_ids``, and what came so far.

        Args:
            input_ids: ``[1, n]`` int64, tokens that follow each other.
            attention_mask: ``[1, places up to the last token]`` int64; not read.
            position_ids: ``[1, n]`` int64, places of the tokens.
            beam_idx: ``[1]`` int32, 0: which text of ``past`` goes on.
            past: ``keys_0``, ``values_0``, ``keys_1`` and so on, ``[1, heads, places before n,
                width]`` in the dtype of the model; None where nothing came before.

        Returns:
            ``logits``, ``[1, n, vocabulary]``, and ``present``, the next ``past``.
        """
        del attention_mask
        cache, past = self._cache(), self._empty(0) if past is None else past
        for at, layer in enumerate(cache.layers):
            pair = (past[f"{name}_{at}"].index_select(0, beam_idx) for name in ("keys", "values"))
            keys, values = pair
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        made = self.model(
            input_ids=input_ids, position_ids=position_ids, cache=cache, use_cache=True
        )
        present: dict[str, Tensor] = {}
        for at, layer in enumerate(cache.layers):
            present |= {f"keys_{at}": layer.keys, f"values_{at}": layer.values}
        return {"logits": made.logits, "present": present}

    def _empty(self, places: int) -> dict[str, Tensor]:
        config = self._config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return {
            f"{name}_{at}": torch.zeros(1, heads, places, width, dtype=self.model.dtype)
            for at in range(config.num_hidden_layers)
            for name in ("keys", "values")
        }

    def example_inputs(self, tokens: int = 4, before: int = 3) -> dict[str, Any]:
        """Return inputs of ``tokens`` tokens of a text, after ``before`` others, all zeros."""
        return {
            "input_ids": torch.arange(tokens)[None],
            "attention_mask": torch.ones(1, before + tokens, dtype=torch.int64),
            "position_ids": torch.arange(before, before + tokens)[None],
            "beam_idx": torch.zeros(1, dtype=torch.int32),
            "past": self._empty(before),
        }

    def dynamic_shapes(self) -> dict[str, Any]:
        """Return ``dynamic_shapes`` of any number of tokens up to ``longest``."""
        tokens = torch.export.Dim("tokens", max=self.longest)
        seen = torch.export.Dim("seen", max=self.longest)
        before = torch.export.Dim("before", max=self.longest - 1)
        return {
            "input_ids": {1: tokens},
            "attention_mask": {1: seen},
            "position_ids": {1: tokens},
            "beam_idx": None,
            "past": {name: {2: before} for name in self._empty(0)},
        }

    def backend_options(self) -> dict[str, Any]:
        """Return options of the backend that make ``past`` states."""
        return {"states": ("past",)}


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
