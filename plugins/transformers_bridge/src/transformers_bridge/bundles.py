"""Folders for a runtime: a model with its caches, and beside it what a runner wants to know."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from palette_core import ExportFunction, KMeansPalettizer
from palette_core.errors import BackendError
from palette_core.storage import palette_sites
from transformers_bridge.caches import KEYS, VALUES
from transformers_bridge.decoders import CachedDecoder
from transformers_bridge.speech import CROSS_KEYS, CROSS_VALUES, SpeechDecoder, SpeechEncoder

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
    options = {**_options("export_decoder", backend, backend_options), **_NAMES}
    with _folder(out, name, backend) as (made, file):
        decoder = CachedDecoder(model, context).eval()
        decoder.check_equal()
        KMeansPalettizer(decoder).export(
            file,
            decoder.example_inputs(),
            backend=backend,
            dynamic_shapes=decoder.dynamic_shapes(),
            backend_options=options,
        )
        _write_companions(made, model)
        if isinstance(tokenizer, (str, Path)):
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(made / "tokenizer")
        if backend == "coreai":
            (made / "metadata.json").write_text(
                json.dumps(_metadata(model, file.name, context, tokenizer), indent=2) + "\n"
            )
    return Path(out)


def export_speech(
    model: Any,
    out: str | Path,
    backend: str = "coreai",
    *,
    context: int | None = None,
    processor: Any = None,
    name: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model of speech like Whisper as two functions of one file, with caches.

    The folder holds ``NAME.aimodel`` (or ``NAME.mlpackage``), ``config.json``,
    ``generation_config.json`` and the folder ``processor``. The function ``encoder`` takes
    ``input_features [1, mel bins, 2 * frames]`` of a clip, and returns ``cross_keys`` and
    ``cross_values``, ``[layers, 1, heads, frames, width]``: what the decoder's layers look at. The
    function ``decoder`` takes those, ``input_ids [1, n]``, the new tokens, and ``position_ids
    [1, m]``, 0 to m - 1 for all tokens so far; it returns ``logits [1, n, vocabulary]`` and keeps
    the states ``keyCache`` and ``valueCache``, ``[layers, 1, heads, context, width]``. Both use
    the same weights of the file.

    Args:
        model: of transformers, with palettized weights: prepared by a palettizer, or opened from a
            palettized folder. It is left as it was.
        out: a folder that is made, where nothing is yet.
        backend: ``coreai`` or ``coreml``.
        context: how many tokens there is room for; None takes as many as the model has places.
        processor: of transformers, or a folder of one; None writes none.
        name: of the file, without its suffix; None is that of ``out``.
        backend_options: see ``palette plugins``; names of inputs, outputs and states are fixed.

    Returns:
        ``out``.

    Raises:
        StateError: the weights are dense.
        BackendError: the model is of another kind, see `SpeechDecoder`; the backend is another, or
            cannot take it; or ``out`` exists.
        OSError: ``out`` cannot be written. After any error nothing is there.
    """
    options = _options("export_speech", backend, backend_options)
    with _folder(out, name, backend) as (made, file):
        encoder, decoder = SpeechEncoder(model).eval(), SpeechDecoder(model, context).eval()
        decoder.check_equal(encoder)
        clip = (CROSS_KEYS, CROSS_VALUES)
        functions = {
            "encoder": ExportFunction(
                encoder.example_inputs(),
                module=encoder,
                input_names=("input_features",),
                output_names=clip,
            ),
            "decoder": ExportFunction(
                decoder.example_inputs(),
                decoder.dynamic_shapes(),
                input_names=(*_NAMES["input_names"], *clip),
                output_names=_NAMES["output_names"],
                state_names=_NAMES["state_names"],
            ),
        }
        KMeansPalettizer(decoder).export(
            file,
            functions=functions,
            backend=backend,
            backend_options=options,
            metadata={"context": str(decoder.context)},
        )
        _write_companions(made, model)
        if isinstance(processor, (str, Path)):
            processor = transformers.AutoProcessor.from_pretrained(processor, local_files_only=True)
        if processor is not None:
            processor.save_pretrained(made / "processor")
    return Path(out)


@contextmanager
def _folder(out: str | Path, name: str | None, backend: str) -> Iterator[tuple[Path, Path]]:
    """Give a folder that becomes ``out`` at the end, and the file in it to write."""
    out = Path(out)
    name = out.name if name is None else name
    if not name or name != Path(name).name or name.startswith("."):
        raise BackendError(f"name is {name!r}; expected that of a file, without a folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BackendError(f"{out} exists; name a folder that is not there yet")
    with tempfile.TemporaryDirectory(prefix=".exported-", dir=out.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        yield made, made / f"{name}{_SUFFIXES[backend]}"
        made.replace(out)


def _options(said: str, backend: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if backend not in _SUFFIXES:
        raise BackendError(f"{said} writes for {' and '.join(_SUFFIXES)}, got backend {backend!r}")
    fixed = [key for key in given or {} if key in _NAMES]
    if fixed:
        raise BackendError(f"{', '.join(fixed)}: a runner knows the names; leave them out")
    return dict(given or {})


def _write_companions(folder: Path, model: Any) -> None:
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the folder that the weights came from
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


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
