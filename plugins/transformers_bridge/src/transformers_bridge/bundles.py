"""A folder with a decoder for a runtime, its tokenizer, and what a runner wants to know of both."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from palette_core import KMeansPalettizer
from palette_core.errors import BackendError
from palette_core.storage import palette_sites
from transformers_bridge.decoders import KEYS, VALUES, CachedDecoder

_SUFFIXES = {"coreai": ".aimodel", "coreml": ".mlpackage"}
_NAMES: Mapping[str, Any] = {
    "input_names": ("input_ids", "position_ids"),
    "output_names": ("logits",),
    "state_names": (KEYS, VALUES),
}


def export_decoder(
    model: Any,
    out: str | Path,
    backend: str = "coreai",
    *,
    context: int,
    tokenizer: Any = None,
    name: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a causal language model with its cache in states, in the layout of Apple's runner.

    The folder holds ``NAME.aimodel`` (or ``NAME.mlpackage``), ``config.json``,
    ``generation_config.json``, the folder ``tokenizer`` and, for Core AI, ``metadata.json``. The
    model's function ``main`` takes ``input_ids [1, n]``, the new tokens, and ``position_ids
    [1, m]``, 0 to m - 1 for all tokens so far; it returns ``logits [1, n, vocabulary]`` and keeps
    the states ``keyCache`` and ``valueCache``, ``[layers, 1, heads, context, width]``. The names
    and ``metadata.json`` are those of https://github.com/apple/coreai-models.

    Args:
        model: of transformers, with palettized weights: prepared by a palettizer, or opened from a
            palettized folder. It is left as it was.
        out: a folder that is made, where nothing is yet.
        backend: ``coreai`` or ``coreml``.
        context: how many tokens there is room for.
        tokenizer: of transformers, or a folder of one; None writes none.
        name: of the file, without its suffix; None is that of ``out``.
        backend_options: see ``palette plugins``; names of inputs, outputs and states are fixed.

    Returns:
        ``out``.

    Raises:
        StateError: the weights are dense.
        BackendError: the model has a cache of another kind, see `CachedDecoder`; the backend is
            another, or cannot take it; or ``out`` exists.
        OSError: ``out`` cannot be written. After any error nothing is there.
    """
    out = Path(out)
    name = out.name if name is None else name
    options = _options(backend, backend_options, name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BackendError(f"{out} exists; name a folder that is not there yet")
    decoder = CachedDecoder(model, context).eval()
    decoder.check_equal()
    with tempfile.TemporaryDirectory(prefix=".decoder-", dir=out.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        file = f"{name}{_SUFFIXES[backend]}"
        KMeansPalettizer(decoder).export(
            made / file,
            decoder.example_inputs(),
            backend=backend,
            dynamic_shapes=decoder.dynamic_shapes(),
            backend_options=options,
        )
        _write_companions(made, model, tokenizer)
        if backend == "coreai":
            (made / "metadata.json").write_text(
                json.dumps(_metadata(model, file, context, tokenizer), indent=2) + "\n"
            )
        made.replace(out)
    return out


def _options(backend: str, given: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    if backend not in _SUFFIXES:
        raise BackendError(
            f"export_decoder writes for {' and '.join(_SUFFIXES)}, got backend {backend!r}"
        )
    fixed = [key for key in given or {} if key in _NAMES]
    if fixed:
        raise BackendError(f"{', '.join(fixed)}: a runner knows the names; leave them out")
    if not name or name != Path(name).name or name.startswith("."):
        raise BackendError(f"name is {name!r}; expected that of a file, without a folder")
    return {**_NAMES, **(given or {})}


def _write_companions(folder: Path, model: Any, tokenizer: Any) -> None:
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the folder that the weights came from
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")


def _metadata(model: Any, file: str, context: int, tokenizer: Any) -> dict[str, Any]:
    config = model.config.get_text_config()
    source = getattr(model.config, "_name_or_path", "") or type(model).__name__
    bits = sorted({site.palette.palettized().n_bits for site in palette_sites(model)})
    return {
        "metadata_version": "0.2",
        "kind": "llm",
        "name": Path(file).stem,
        "assets": {"main": file},
        "language": {
            "tokenizer": source,
            "vocab_size": config.vocab_size,
            "max_context_length": context,
            "embedded_tokenizer": tokenizer is not None,
            "function_map": {"main": ["main"]},
        },
        "source": {"model_definition": "torch", "hf_model_id": source},
        "compression": f"palettized to {', '.join(map(str, bits))} bits",
    }
