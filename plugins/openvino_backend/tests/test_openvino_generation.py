"""Decoders of transformers, run with their cache in states, and folders that others open."""

from __future__ import annotations

import json
import os

import numpy as np
import openvino as ov
import openvino_support as support
import pytest
import torch
from torch import Tensor, nn

from openvino_backend import Decoder, write_companions
from palette_core import PalettizationSpec
from palette_core.errors import BackendError

transformers = pytest.importorskip("transformers")

SPEC = PalettizationSpec(n_bits=4, lut_qspec={"dtype": "int8"}, scale_block_size=16)
PROMPT = [1, 5, 9, 20]


def llama(**changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.4,
    }
    config = transformers.LlamaConfig(**{**sizes, **changes})
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A palettized decoder, its file, and its tokenizer beside it."""
    found = tmp_path_factory.mktemp("generation")
    decoder = Decoder(llama(), 32).eval()
    inputs = decoder.example_inputs()
    path = support.exported(
        decoder,
        inputs,
        found / "openvino_model.xml",
        SPEC,
        ("embedding",),
        dynamic_shapes=decoder.dynamic_shapes(),
        backend_options=decoder.backend_options(),
    )
    return path, decoder


def torch_tokens(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """Return what torch generates, the whole text read again for each token."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def run_tokens(request, prompt: list[int], count: int) -> list[int]:
    """Return what a compiled file generates, each token read once."""
    found, given, at = [], list(prompt), 0
    request.reset_state()
    for _ in range(count):
        logits = read(request, given, at)
        at += len(given)
        given = [int(logits[0, -1].argmax())]
        found += given
    return found


def read(request, tokens: list[int], at: int) -> np.ndarray:
    """Return the logits of tokens that ``at`` others came before."""
    inputs = {
        "input_ids": np.array([tokens]),
        "position_ids": np.arange(at, at + len(tokens))[None],
        "attention_mask": np.ones((1, at + len(tokens)), np.int64),
        "beam_idx": np.zeros(1, np.int32),
    }
    return request.infer(inputs)["logits"].copy()


def test_a_llama_with_its_cache_in_states_generates_the_tokens_of_torch(folder):
    path, decoder = folder
    model = ov.Core().read_model(path)
    assert [port.get_any_name() for port in model.inputs] == [*decoder.example_inputs()][:4]
    assert [port.get_any_name() for port in model.outputs] == ["logits"]
    request = support.compiled(path).create_infer_request()
    assert {s.name for s in request.query_state()} == {
        f"past_{part}_{at}" for part in ("keys", "values") for at in range(2)
    }
    for prompt in (PROMPT, [7], [3] * 9):
        wanted = torch_tokens(decoder.model, prompt, 20)
        assert run_tokens(request, prompt, 20) == wanted
        assert len(set(wanted)) > 5


def test_logits_read_in_pieces_are_those_of_torch(folder):
    path, decoder = folder
    request, text = support.compiled(path).create_infer_request(), [*range(3, 21)]
    found = np.concatenate([read(request, text[a:b], a) for a, b in ((0, 9), (9, 10), (10, 18))], 1)
    with torch.no_grad():
        wanted = decoder.model(input_ids=torch.tensor([text]), use_cache=False).logits
        here = decoder(**{**decoder.example_inputs(5, 0), "past": None})["logits"]
        same = decoder.model(input_ids=torch.arange(5)[None], use_cache=False).logits
    assert support.difference([found], [wanted]) < 1e-5
    torch.testing.assert_close(here, same)


def test_the_runtime_joins_attention_and_cache_and_keeps_the_cache_as_it_is(folder):
    path, _ = folder
    compiled = ov.Core().compile_model(path, "CPU", {**support.EXACT, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    read(request, PROMPT, 0)
    kinds = [node.node_type for node in request.get_profiling_info()]
    assert kinds.count("ScaledDotProductAttentionWithKVCache") == 2
    assert "ScatterElementsUpdate" not in kinds
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.f32
    rounded = ov.Core().compile_model(path, "CPU", {"KV_CACHE_PRECISION": "u8"})
    assert rounded.get_property("KV_CACHE_PRECISION") == ov.Type.u8


def test_attention_in_pages_gets_a_row_for_each_token(folder):
    """As ``openvino_genai`` runs such a file: tokens of all texts stand where the batch does."""
    transformations = pytest.importorskip("openvino._offline_transformations")
    path, decoder = folder
    model = ov.Core().read_model(path)
    transformations.paged_attention_transformation(model)
    config = decoder.model.config
    width = config.head_dim
    wanted = [
        ov.PartialShape([-1, heads * width])
        for heads in (config.num_attention_heads, *[config.num_key_value_heads] * 2)
    ]
    found = [n for n in model.get_ordered_ops() if n.get_type_name() == "PagedAttentionExtension"]
    assert len(found) == config.num_hidden_layers
    for node in found:
        assert [node.input_value(at).get_partial_shape() for at in range(3)] == wanted


def test_what_made_the_palettes_is_in_the_file(folder):
    path, _ = folder
    held = ov.Core().read_model(path).get_rt_info(["palette_core"])
    (source,) = json.loads(held["sources"])
    row = json.loads(held["weights"])["model.model.layers.0.mlp.up_proj.weight"]
    assert (row["scales"], row["algorithm"], row["source"]) == ([128, 4], "kmeans1d", 0)
    assert source["plugins"]["clusterer:kmeans1d"].startswith("palette-core ")
    spec = source["config"]["kmeans_palettization_config"]["global_config"]["op_state_spec"]
    assert spec["weight"]["scale_block_size"] == 16


def test_other_caches_are_refused():
    with pytest.raises(BackendError, match="has layers of DynamicSlidingWindowLayer"):
        Decoder(
            transformers.MistralForCausalLM(
                transformers.MistralConfig(
                    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, num_key_value_heads=1, sliding_window=4,
                )
            ),
            32,
        )  # fmt: skip


class Writes(nn.Module):
    """Writes to a tensor that is none of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(8, 8), torch.zeros(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.add_(self.layer(x))
        return self.kept * 2


def test_writes_that_a_file_would_forget_are_named(tmp_path):
    x = torch.ones(3, 8)
    with pytest.raises(BackendError, match=r"aten\.add_\.Tensor .*writes to a tensor that is no b"):
        support.exported(Writes().eval(), (x,), tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


# --- beside the model ---------------------------------------------------------------------------


def saved_tokenizer(folder) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: at for at, word in enumerate(["</s>", *(f"w{n}" for n in range(299))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>").save_pretrained(
        folder
    )


def test_configurations_and_tokenizer_are_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = llama(num_hidden_layers=1)
    model.config.save_pretrained(source)
    model.generation_config.save_pretrained(source)
    (source / "model.safetensors").write_bytes(b"weights")
    for name in ("tokenizer.json", "vocab.txt"):
        (source / name).write_text("words")
    names = write_companions(source, target)
    assert names == ["config.json", "generation_config.json", "tokenizer.json", "vocab.txt"]
    assert sorted(os.listdir(target)) == names
    assert all((target / n).read_bytes() == (source / n).read_bytes() for n in names)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(BackendError, match=r"has no config\.json"):
        write_companions(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", ["PA", "SDPA"])  # to pages, its default, and to states
def test_openvino_genai_opens_the_folder_and_generates_the_same(attention, folder, tmp_path):
    genai = pytest.importorskip("openvino_genai")
    pytest.importorskip("openvino_tokenizers")
    path, decoder = folder
    source = tmp_path / "source"
    decoder.model.config.save_pretrained(source)
    decoder.model.generation_config.save_pretrained(source)
    saved_tokenizer(source)
    assert "openvino_tokenizer.xml" in write_companions(source, path.parent)
    exact = {n: v for n, v in support.EXACT.items() if n != "INFERENCE_NUM_THREADS"}
    pipe = genai.LLMPipeline(path.parent, "CPU", ATTENTION_BACKEND=attention, **exact)
    config = genai.GenerationConfig(max_new_tokens=20, ignore_eos=True, do_sample=False)
    for prompt in (PROMPT, [7]):
        found = pipe.generate(ov.Tensor(np.array([prompt])), config)
        assert found.tokens[0] == torch_tokens(decoder.model, prompt, 20)
    assert set(str(pipe.generate("w3 w8", config)).split()) <= {f"w{n}" for n in range(299)}
