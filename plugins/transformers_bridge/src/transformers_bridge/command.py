"""``palette export-decoder`` and ``export-speech``: from transformers' folders to a runtime's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers

from palette_core import KMeansPalettizer
from palette_core.errors import BackendError
from palette_core.plugins import Command
from palette_core.storage import palette_sites
from transformers_bridge.bundles import export_decoder, export_speech
from transformers_bridge.speech import SpeechEncoder


@final
@dataclass(frozen=True)
class ExportFolder(Command):
    """Opens a model, palettizes it where a configuration is given, and exports it.

    Attributes:
        name: of the command.
        description: of it, for its help.
        opened: class of transformers that opens the folder.
        inputs: of a model, to find its operations.
        export: that writes the folder.
        companion: what lies beside the model, a tokenizer or a processor.
        companion_files: by which it is found in the folder.
        needs_context: whether the model does not say how many tokens there is room for.
    """

    name: str
    description: str
    opened: Any
    inputs: Callable[[Any], Mapping[str, Any]]
    export: Callable[..., Path]
    companion: str
    companion_files: str
    needs_context: bool

    def run(self, arguments: Sequence[str]) -> None:
        """Do so, and print what was written.

        Raises:
            BackendError: see `export_decoder` and `export_speech`; or there is no model, or no
                palette in it.
            ConfigError: the configuration is none, or does not fit the model.
        """
        given = self._parser().parse_args(arguments)
        folder = Path(given.model)
        if not (folder / "config.json").is_file():
            raise BackendError(f"{folder} has no config.json; name a folder of save_pretrained")
        model = _open(self.opened, folder)
        if given.config is not None:
            KMeansPalettizer(model, given.config).prepare(self.inputs(model))
        elif not palette_sites(model):
            raise BackendError(
                f"the weights of {folder} are dense; palettize them before, by palette "
                "palettize-checkpoint, or here, by --config"
            )
        beside = any(folder.glob(self.companion_files))
        out = self.export(
            model,
            given.out,
            given.backend,
            context=given.context,
            backend_options=dict(map(_option, given.option)),
            **{self.companion: folder if beside else None},
        )
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        room = given.context or model.config.max_target_positions
        print(f"{out}: {size / 1e6:.2f} MB, {room} tokens of context")
        if not beside:
            print(f"{folder} has no {self.companion}, so none was written")

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"palette {self.name}", description=self.description)
        parser.add_argument("model", help="folder of save_pretrained, or of palettize-checkpoint")
        parser.add_argument("-o", "--out", required=True, help="folder to make")
        parser.add_argument(
            "--context",
            required=self.needs_context,
            type=int,
            help="how many tokens there is room for"
            + ("" if self.needs_context else " (default: as many as the model takes)"),
        )
        parser.add_argument("--backend", default="coreai", help="coreai (default) or coreml")
        parser.add_argument("-c", "--config", help="palettize first, as this YAML file says")
        parser.add_argument(
            "--option", action="append", default=[], metavar="NAME=VALUE", help="of the backend"
        )
        return parser


def export_decoder_command() -> Command:
    """Return ``palette export-decoder``."""
    return ExportFolder(
        "export-decoder",
        "Write a causal language model of transformers with its cache in states, in "
        "the layout of Apple's runner: a file with the function main, config.json, the tokenizer.",
        transformers.AutoModelForCausalLM,
        lambda model: {"input_ids": torch.arange(4)[None], "use_cache": False},
        export_decoder,
        "tokenizer",
        "tokenizer*",
        needs_context=True,
    )


def export_speech_command() -> Command:
    """Return ``palette export-speech``."""
    return ExportFolder(
        "export-speech",
        "Write a speech model of transformers like Whisper with its caches: a file with the "
        "functions encoder and decoder, config.json, the processor.",
        transformers.AutoModelForSpeechSeq2Seq,
        speech_inputs,
        export_speech,
        "processor",
        "*processor_config.json",
        needs_context=False,
    )


def speech_inputs(model: Any) -> Mapping[str, Any]:
    """Return a clip of noise and four tokens."""
    tokens = {"decoder_input_ids": torch.arange(4)[None], "use_cache": False}
    return {**SpeechEncoder(model).example_inputs(), **tokens}


def _open(opened: Any, folder: Path) -> Any:
    try:
        return opened.from_pretrained(folder, local_files_only=True).eval()
    except ValueError as error:
        raise BackendError(f"{folder}: {error}") from error


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BackendError(f"--option takes NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
