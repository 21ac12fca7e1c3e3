"""Checkpoints calibrated block by block: what sequential mode gives with all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_decoders
import torch
from checkpoint_folders import content
from safetensors.torch import save_file
from small_decoders import (
    LAYERS,
    Decoder,
    batches,
    config,
    decoder,
    skeleton_of,
    write_decoder,
)
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    PaletteWarning,
    Skeleton,
    palettize_checkpoint,
    read_checkpoint,
)
from palette_core.errors import CalibrationError, CheckpointError, PlanError
from palette_core.storage import verify_checkpoint
from palette_core.storage.checkpoint_folders import UNFINISHED
from palette_core.streaming import block_by_block, running
from palette_core.streaming.verifying import compare_checkpoints


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run small products where they are: threads that wait for each other take far longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_memory(
    model: Decoder, settings: KMeansPalettizerConfig, *, compensate: bool = True
) -> dict[str, Tensor]:
    """Return the weights that sequential mode makes of a model."""
    palettizer = KMeansPalettizer(model, settings)
    palettizer.calibrate(batches(), sequential=True, compensate=compensate)
    palettizer.prepare(batches()[0], show_progress=False)
    assert palettizer.report is not None
    modules = [row.name.removesuffix(".weight") for row in palettizer.report.tensors]
    return {f"{name}.weight": model.get_submodule(name).weight.detach() for name in modules}


def from_shards(
    model: Decoder, settings: KMeansPalettizerConfig, folder: Path, *, compensate: bool = True
) -> dict[str, Tensor]:
    """Return the weights that the checkpoint of a model gets, block by block."""
    src = write_decoder(model, folder / "src")
    palettize_checkpoint(
        src,
        settings,
        folder / "out",
        calibration=batches(),
        skeleton=skeleton_of(model),
        compensate=compensate,
    )
    assert verify_checkpoint(folder / "out").passed
    assert compare_checkpoints(src, folder / "out").passed
    return {n: t.decode() for n, t in read_checkpoint(folder / "out").palettized.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "kind", "compensate"),
    [
        ("gptq", {}, True),
        ("gptq", {}, False),
        ("lnq", {"form": "tuple"}, True),
        ("gptq", {"projects": True}, True),
        ("gptq", {"dtype": torch.bfloat16}, True),
    ],
)
def test_it_is_what_sequential_mode_gives_in_memory(
    tmp_path: Path, algorithm: str, kind: dict, compensate: bool
) -> None:
    settings, model = config(algorithm), decoder(**kind)
    found = from_shards(model, settings, tmp_path, compensate=compensate)
    expected = in_memory(model, settings, compensate=compensate)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_palettized_before_the_blocks_feed_them(tmp_path: Path) -> None:
    coarse = {"op_type_config": {"embedding": {"op_state_spec": {"weight": {"n_bits": 2}}}}}
    settings, model = config(embed_tokens=coarse), decoder()
    found = from_shards(model, settings, tmp_path)
    expected = in_memory(model, settings)
    assert "embed_tokens.weight" in found
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_tied_head_takes_part_and_stays_as_it_is(tmp_path: Path) -> None:
    model = decoder(tied=True)
    found = from_shards(model, config(), tmp_path)
    expected = in_memory(model, config(embed_tokens=None, lm_head=None))
    assert len(found) == 4 * LAYERS
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_tied_head_that_is_stored_twice_gets_one_palette(tmp_path: Path) -> None:
    spec = config().to_dict()["kmeans_palettization_config"]["global_config"]["op_state_spec"]
    settings = config(embed_tokens={"op_type_config": {"embedding": {"op_state_spec": spec}}})
    model = decoder(tied=True)
    src = write_decoder(model, tmp_path / "src", twice=True)
    palettize_checkpoint(
        src, settings, tmp_path / "out", calibration=batches(), skeleton=skeleton_of(model)
    )
    found = {n: t.decode() for n, t in read_checkpoint(tmp_path / "out").palettized.items()}
    assert torch.equal(found["lm_head.weight"], found["embed_tokens.weight"])
    once = from_shards(decoder(tied=True), settings, tmp_path / "once")
    assert once.keys() == found.keys() - {"lm_head.weight"}
    assert all(torch.equal(once[name], found[name]) for name in once)


def test_the_model_may_have_another_dtype_than_the_checkpoint(tmp_path: Path) -> None:
    src = write_decoder(decoder(), tmp_path / "src")
    skeleton = skeleton_of(decoder(dtype=torch.bfloat16))
    palettize_checkpoint(src, config(), tmp_path / "out", calibration=batches(), skeleton=skeleton)
    found = read_checkpoint(tmp_path / "out").palettized
    expected = in_memory(decoder(), config())
    for name, tensor in found.items():
        assert tensor.dtype is torch.float32
        both = tensor.decode().flatten(), expected[name].flatten()
        assert torch.nn.functional.cosine_similarity(*both, dim=0) > 0.9


def test_one_block_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = decoder(), set()
    src, skeleton = write_decoder(model, tmp_path / "src"), skeleton_of(model)
    forward = small_decoders.Block.forward

    def looked_at(block: nn.Module, *args: object, **kwargs: object) -> object:
        assert [b for b in skeleton.layers if not all(p.is_meta for p in b.parameters())] == [block]
        seen.add(block)
        return forward(block, *args, **kwargs)

    monkeypatch.setattr(small_decoders.Block, "forward", looked_at)
    palettize_checkpoint(src, config(), tmp_path / "out", calibration=batches(), skeleton=skeleton)
    assert len(seen) == LAYERS
    assert all(p.is_meta for p in skeleton.parameters())


# --- going on -------------------------------------------------------------------------------------


class StopError(Exception):
    """What a test raises in the middle."""


class Steps:
    """Lets work fail at its n-th part, kept output or note, and counts what blocks are run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.parts = -1, 0
        for place, name in (
            (block_by_block, "write_part"),
            (block_by_block, "write_sealed"),
            (block_by_block.KeptOutputs, "put"),
            (running, "assemble"),
        ):
            monkeypatch.setattr(place, name, self._counting(getattr(place, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise StopError
            self.left -= 1
            self.parts += function.__name__ == "write_part"
            return function(*args, **kwargs)

        return counted


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3, 7, 10, 18, 23, 27, 31])
def test_a_run_that_was_stopped_goes_on_from_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    model = decoder()
    src = write_decoder(model, tmp_path / "src")

    def run(out: str) -> None:
        palettize_checkpoint(
            src,
            config(),
            tmp_path / out,
            calibration=batches(2),
            skeleton=skeleton_of(model),
        )

    run("whole")
    steps = Steps(monkeypatch)
    steps.left = count
    with pytest.raises(StopError):
        run("out")
    done, steps.left, steps.parts = steps.parts, -1, 0
    run("out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    whole = done // 4 * 4 if done < 4 * LAYERS else done
    assert steps.parts <= 4 * LAYERS + 1 - max(0, whole - 4)


def test_kept_outputs_that_are_damaged_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder()
    src = write_decoder(model, tmp_path / "src")
    given = {"calibration": batches(2), "skeleton": skeleton_of(model)}
    palettize_checkpoint(src, config(), tmp_path / "whole", **given)
    with monkeypatch.context() as patched:
        Steps(patched).left = 18
        with pytest.raises(StopError):
            palettize_checkpoint(src, config(), tmp_path / "out", **given)
    kept = sorted((tmp_path / "out" / UNFINISHED / "outputs").glob("*.safetensors"))
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"\xff")
    palettize_checkpoint(src, config(), tmp_path / "out", **given)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


# --- what cannot be -------------------------------------------------------------------------------


def test_other_batches_and_none_are_refused_once_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder()
    src, out = write_decoder(model, tmp_path / "src"), tmp_path / "out"
    Steps(monkeypatch).left = 6
    with pytest.raises(StopError):
        palettize_checkpoint(
            src, config(), out, calibration=batches(2), skeleton=skeleton_of(model)
        )
    with pytest.raises(CheckpointError, match=r"calibration\.batches\.count was 2 and is 1"):
        palettize_checkpoint(
            src, config(), out, calibration=batches(1), skeleton=skeleton_of(model)
        )
    with (
        pytest.warns(PaletteWarning, match="without its model gives none"),
        pytest.raises(CheckpointError, match=r"calibration\.\w+ was .* and is not there"),
    ):
        palettize_checkpoint(src, config(), out)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"calibration": None}, CalibrationError, "skeleton is of no use without calibration"),
        ({"calibration": []}, CalibrationError, "at least one batch"),
        ({"skeleton": "a model"}, TypeError, "must be a torch.nn.Module or a Skeleton"),
        ({"config": config("kmeans1d")}, PlanError, "calibration is of no use"),
        ({"skeleton": nn.Linear(2, 2)}, CheckpointError, "Linear has no ModuleList"),
        ({"skeleton": Skeleton(decoder(), ["layers.7"])}, CheckpointError, "no module 'layers.7'"),
        ({"skeleton": Skeleton(decoder(), [])}, CheckpointError, "blocks are empty"),
        ({"skeleton": Skeleton(decoder(), ["norm", "norm"])}, CheckpointError, "module twice"),
        (
            {"skeleton": Skeleton(skeleton_of(decoder()), ["layers.1", "layers.0"])},
            CalibrationError,
            r"layers\.1: Decoder failed on calibration batch 0: .* meta",
        ),
        (
            {"skeleton": Skeleton(skeleton_of(decoder()), ["layers.0", "layers"])},
            CalibrationError,
            "layers: .* did not run it, and it is said to be a block",
        ),
        (
            {"skeleton": skeleton_of(decoder("note"))},
            CalibrationError,
            "cannot be kept in a file: a object",
        ),
        (
            {"skeleton": Skeleton(skeleton_of(decoder()), None, {"norm.weight": "other"})},
            CheckpointError,
            r"src has no tensor for norm\.weight of the model",
        ),
        (
            {"skeleton": Skeleton(skeleton_of(decoder()), None, {"norm.weight": "lm_head.weight"})},
            CheckpointError,
            r"norm\.weight has shape \(16,\), and lm_head\.weight of the model has \(40, 16\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    model = decoder()
    src = write_decoder(model, tmp_path / "src")
    given = {"config": config(), "calibration": batches(), "skeleton": skeleton_of(model), **change}
    with pytest.raises(error, match=says):
        palettize_checkpoint(src, out=tmp_path / "out", **given)


def test_weights_that_the_model_lacks_go_by_k_means(tmp_path: Path) -> None:
    model = decoder()
    states = {**model.state_dict(), "extra.weight": torch.randn(16, 16)}
    save_file(states, tmp_path / "model.safetensors")
    with pytest.warns(PaletteWarning, match=r"extra\.weight: .* the model has no such weight"):
        report = palettize_checkpoint(
            tmp_path / "model.safetensors",
            config(),
            tmp_path / "out",
            calibration=batches(),
            skeleton=skeleton_of(model),
        )
    algorithms = {row.name: row.algorithm for row in report.tensors}
    assert algorithms.pop("extra.weight") == "kmeans1d"
    assert set(algorithms.values()) == {"gptq"}
