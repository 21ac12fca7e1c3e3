"""``palette export-decoder``: from a folder of transformers to one that a runner opens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
import transformers

from palette_core import KMeansPalettizer
from palette_core.errors import BackendError
from palette_core.plugins import Command
from palette_core.storage import palette_sites
from transformers_bridge.bundles import export_decoder


@final
class ExportDecoder(Command):
    """Opens a model, palettizes it where a configuration is given, and exports it."""

    def run(self, arguments: Sequence[str]) -> None:
        """Do so, and print what was written.

        Raises:
            BackendError: see `export_decoder`; or there is no model, or no palette in it.
            ConfigError: the configuration is none, or does not fit the model.
        """
        given = _parser().parse_args(arguments)
        folder = Path(given.model)
        if not (folder / "config.json").is_file():
            raise BackendError(f"{folder} has no config.json; name a folder of save_pretrained")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        model.eval()
        if given.config is not None:
            tokens = {"input_ids": torch.arange(4)[None], "use_cache": False}
            KMeansPalettizer(model, given.config).prepare(tokens)
        elif not palette_sites(model):
            raise BackendError(
                f"the weights of {folder} are dense; palettize them before, by palette "
                "palettize-checkpoint, or here, by --config"
            )
        has_tokenizer = any(folder.glob("tokenizer*"))
        out = export_decoder(
            model,
            given.out,
            given.backend,
            context=given.context,
            tokenizer=folder if has_tokenizer else None,
            backend_options=dict(map(_option, given.option)),
        )
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"{out}: {size / 1e6:.2f} MB, {given.context} tokens of context")
        if not has_tokenizer:
            print(f"{folder} has no tokenizer, so none was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="palette export-decoder",
        description="Write a causal language model of transformers with its cache in states, in "
        "the layout of Apple's runner: a file with the function main, config.json, the tokenizer.",
    )
    parser.add_argument("model", help="folder of save_pretrained, or of palettize-checkpoint")
    parser.add_argument("-o", "--out", required=True, help="folder to make")
    parser.add_argument(
        "--context", required=True, type=int, help="how many tokens there is room for"
    )
    parser.add_argument("--backend", default="coreai", help="coreai (default) or coreml")
    parser.add_argument("-c", "--config", help="palettize first, as this YAML file says")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the backend"
    )
    return parser


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BackendError(f"--option takes NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
