"""Savers of other libraries, such as `save_pretrained` of transformers, on palettized models."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core import KMeansPalettizer, load_checkpoint, save_checkpoint
from palette_core.errors import StateError

IDS = torch.arange(6)[None]


class Pretrained(nn.Module):
    """Saves and loads as models of transformers do: what is missing gets random weights."""

    def save_pretrained(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"tied": self.tied}))
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        if self.tied:
            del tensors["head.weight"]
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Pretrained:
        model = cls(**json.loads((folder / "config.json").read_text()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        found = safetensors.torch.load_file(folder / "model.safetensors")
        model.load_state_dict(found, strict=False)
        return model.eval()


class Language(Pretrained):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tied = tied
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.body = nn.Linear(8, 8)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embed(ids))))


class Wrapper(nn.Module):
    """A model that has one that can be saved inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Language(), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.other(self.inner(ids))


def prepared(model: nn.Module) -> KMeansPalettizer:
    palettizer = KMeansPalettizer(model.eval(), None)
    palettizer.prepare((IDS,), show_progress=False)
    return palettizer


def assert_refused(model: nn.Module, folder: Path) -> None:
    with pytest.raises(StateError, match=r"save_checkpoint.*export.*dequantize"):
        model.save_pretrained(folder)
    assert not folder.exists()


def loaded(palettizer: KMeansPalettizer, folder: Path) -> nn.Module:
    path = save_checkpoint(palettizer._model, folder / "packed")
    return load_checkpoint(path, type(palettizer._model)(palettizer._model.tied))


STATES: dict[str, Callable[[KMeansPalettizer, Path], nn.Module]] = {
    "prepared": lambda palettizer, folder: palettizer._model,
    "finalized": lambda palettizer, folder: palettizer.finalize(backend="packed"),
    "loaded": loaded,
    "copied": lambda palettizer, folder: copy.deepcopy(palettizer._model),
    "pickled": lambda palettizer, folder: pickle.loads(pickle.dumps(palettizer._model)),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_palettized_model_is_saved_by_its_library_once_it_is_folded(
    state: str, tied: bool, tmp_path: Path
) -> None:
    palettizer = prepared(Language(tied))
    model = STATES[state](palettizer, tmp_path)
    wanted, folder = model(IDS), tmp_path / "folder"
    assert_refused(model, folder)
    palettizer.dequantize(model)
    assert not [name for name in vars(model) if name == "save_pretrained"]
    model.save_pretrained(folder)
    assert torch.equal(Language.from_pretrained(folder)(IDS), wanted)


@pytest.mark.parametrize("backend", ["prepared", "packed"])
def test_weights_that_torch_has_folded_are_saved(backend: str, tmp_path: Path) -> None:
    palettizer = prepared(Language())
    model = palettizer._model if backend == "prepared" else palettizer.finalize(backend="packed")
    wanted = model(IDS)
    parametrize.remove_parametrizations(model.head, "weight")
    assert_refused(model, tmp_path / "folder")  # the others still are
    parametrize.remove_parametrizations(model.body, "weight")
    model.save_pretrained(tmp_path / "folder")
    assert torch.equal(Language.from_pretrained(tmp_path / "folder")(IDS), wanted)


def test_a_part_of_a_palettized_model_refuses_by_itself(tmp_path: Path) -> None:
    palettizer = prepared(Wrapper())
    assert_refused(palettizer._model.inner, tmp_path / "folder")
    partly = Wrapper()
    partly.other = prepared_linear()
    partly.inner.save_pretrained(tmp_path / "folder")


def prepared_linear() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 4))
    KMeansPalettizer(model, None).prepare((torch.ones(1, 16),), show_progress=False)
    return model


def test_what_the_caller_gives_to_be_saved_is(tmp_path: Path) -> None:
    model = prepared(Language())._model
    dense = {
        f"{n}.weight": getattr(model, n).weight.detach().clone() for n in ("embed", "head", "body")
    }
    dense["body.bias"] = model.body.bias
    with pytest.raises(StateError, match=r"palettized weights \(head\.weight|body\.weight"):
        model.save_pretrained(tmp_path / "a", state_dict=model.state_dict())
    model.save_pretrained(tmp_path / "b", state_dict=dense)
    assert torch.equal(Language.from_pretrained(tmp_path / "b")(IDS), model(IDS))


class Inside(Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8)
        self.lora_A = nn.ModuleDict({"mine": nn.Linear(8, 2)})
        self.peft_config = {"mine": object()}

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_A["mine"](x).sum()


class Adapted(nn.Module):
    """Saves adapters only, as models of peft do around those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base_model = Inside()
        self.peft_config = self.base_model.peft_config

    def forward(self, x: Tensor) -> Tensor:
        return self.base_model(x)

    def save_pretrained(self, folder: Path) -> None:
        found = {n: t for n, t in self.state_dict().items() if "lora_" in n}
        safetensors.torch.save_file(found, folder)


@pytest.mark.parametrize("which", ["base_model.base", "base_model.lora_A.mine"])
def test_dense_adapters_of_a_palettized_model_are_saved(which: str, tmp_path: Path) -> None:
    from palette_core import KMeansPalettizerConfig

    config = KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "global_config": None,
                "module_name_configs": {which: {"op_state_spec": {"weight": {"n_bits": 2}}}},
            }
        }
    )
    model = Adapted()
    KMeansPalettizer(model, config).prepare((torch.ones(1, 8),), show_progress=False)
    assert_refused(model.base_model, tmp_path / "folder")
    if which == "base_model.base":
        model.save_pretrained(tmp_path / "m")
        found = safetensors.torch.load_file(tmp_path / "m")
        assert sorted(found) == [f"base_model.lora_A.mine.{name}" for name in ("bias", "weight")]
    else:
        with pytest.raises(StateError, match=r"lora_A\.mine\.weight"):
            model.save_pretrained(tmp_path / "m")


def test_ordinary_saving_goes_on_as_it_did(tmp_path: Path) -> None:
    model = prepared(Language())._model
    torch.save(model.state_dict(), tmp_path / "states.pt")
    safetensors.torch.save_model(model, str(tmp_path / "m.safetensors"))
    torch.save(model, tmp_path / "whole.pt")
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        fresh.body.bias.fill_(1.0)
    assert not torch.equal(fresh(IDS), model(IDS))
    fresh.load_state_dict(torch.load(tmp_path / "states.pt"))
    assert torch.equal(fresh(IDS), model(IDS))
    safetensors.torch.load_model(fresh, str(tmp_path / "m.safetensors"))
    assert torch.equal(fresh(IDS), model(IDS))
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(whole(IDS), model(IDS))
    assert_refused(whole, tmp_path / "folder")


def test_a_saver_that_hangs_in_the_model_itself_comes_back(tmp_path: Path) -> None:
    calls: list[Any] = []
    model = Language()
    model.save_pretrained = lambda *args, **kwargs: calls.append((args, kwargs))
    own = model.save_pretrained
    palettizer = prepared(model)
    with pytest.raises(StateError):
        model.save_pretrained("there")
    palettizer.dequantize()
    assert model.save_pretrained is own
    model.save_pretrained("there", variant="x")
    assert calls == [(("there",), {"variant": "x"})]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_models_of_transformers(tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    palettizer = prepared(transformers.LlamaForCausalLM(config))
    model, folder = palettizer._model, tmp_path / "folder"
    with torch.no_grad():
        wanted = model(IDS).logits
    assert_refused(model, folder)
    assert_refused(model.model, folder)
    palettizer.dequantize()
    model.save_pretrained(folder)
    again = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, wanted)
