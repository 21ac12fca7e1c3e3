"""``finalize(mmap_dir=…)``: packed weights in files, mapped into memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from palettizer_models import MLP_INPUTS, mlp, prepared_mlp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, save_checkpoint
from palette_core._common import locks
from palette_core.builtins.backends.packed import PackedBackend
from palette_core.errors import BackendError, WeightFileError
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.storage import mapped_files
from palette_core.storage.mapped_files import WeightFolder
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import palette_sites


def packed_weights(model: nn.Module) -> list[PackedWeight]:
    return [site.palette for site in palette_sites(model) if isinstance(site.palette, PackedWeight)]


def mapped_mlp(folder: Path) -> tuple[nn.Module, Tensor]:
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS).detach()
    palettizer.finalize(backend="packed", mmap_dir=folder)
    return model, expected


def mapped_from(tensor: Tensor) -> str:
    """Return the file whose pages hold a tensor, as the operating system sees it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in parts[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return parts[5] if len(parts) > 5 else ""
    raise AssertionError("no mapping holds the tensor")


def test_indices_and_tables_live_in_the_files(tmp_path: Path) -> None:
    model, expected = mapped_mlp(tmp_path / "new" / "weights")
    items = packed_weights(model)
    files = sorted((tmp_path / "new" / "weights").iterdir())
    assert len(files) == len(items) > 1
    for item in items:
        for part in (item.indices, item.lut):
            assert Path(mapped_from(part)) in files
    assert torch.equal(model(*MLP_INPUTS), expected)


def test_files_have_the_names_of_weights(tmp_path: Path) -> None:
    """As coreai-opt names them; a number in front where a system could not tell or take a name."""
    names = ["conv", "CONV", "aux", "deep." * 40 + "conv", "00001-conv", "é"]
    mapped_files = {"conv": "conv.weight", "CONV": "00001-CONV.weight", "aux": "00002-aux.weight"}
    folder = WeightFolder(tmp_path / "maps")
    with folder:
        paths = {name: folder.next_path(f"{name}.weight").name for name in names}
        root = folder.next_path("weight").name
    assert root == "weight.safetensors"
    assert {n: f"{p}.safetensors" for n, p in mapped_files.items()}.items() <= paths.items()
    assert len({path.casefold() for path in paths.values()}) == len(names)
    assert all(len(path) < 160 and path.isascii() for path in paths.values())
    model, _ = mapped_mlp(tmp_path / "model")
    found = {path.name for path in (tmp_path / "model").iterdir()}
    owners = [name for name, module in model.named_modules() if hasattr(module, "parametrizations")]
    assert found == {f"{name}.weight.safetensors" for name in owners}


def test_a_plain_finalize_maps_nothing(tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    palettizer.finalize(backend="packed")
    assert all(not mapped_from(i.indices).endswith(".safetensors") for i in packed_weights(model))


def test_writing_to_a_mapped_weight_leaves_the_file_alone(tmp_path: Path) -> None:
    model, _ = mapped_mlp(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for item in packed_weights(model):
        item.indices.zero_()
        item.lut.fill_(3.0)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("harm", ["missing", "cut off", "emptied"])
def test_a_damaged_file_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, harm: str
) -> None:
    model, expected = mapped_mlp(tmp_path)
    assert torch.equal(model(*MLP_INPUTS), expected)
    victim = sorted(tmp_path.iterdir())[0]
    if harm == "missing":
        victim.unlink()
    else:
        keep = victim.stat().st_size // 2 if harm == "cut off" else 0
        with victim.open("r+b") as file:
            file.truncate(keep)
    first = packed_weights(model)[0]
    for use in (
        lambda: model(*MLP_INPUTS),
        first.palettized,
        lambda: copy.deepcopy(model),
        model.double,
        lambda: torch.save(model, io.BytesIO()),
        lambda: save_checkpoint(model, tmp_path / "copy.safetensors"),
        lambda: KMeansPalettizer(model).export(tmp_path / "m.safetensors", backend="packed"),
    ):
        with pytest.raises(WeightFileError, match=victim.name) as caught:
            use()
        assert isinstance(caught.value, OSError)


def test_a_change_in_place_is_noticed_when_the_weight_is_used(tmp_path: Path) -> None:
    model, expected = mapped_mlp(tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    whole = victim.read_bytes()
    os.utime(victim)  # touched, and not changed
    assert torch.equal(model(*MLP_INPUTS), expected)
    with victim.open("r+b") as file:
        file.seek(len(whole) - 2)
        file.write(bytes([whole[-2] ^ 1]))
    changed_at(victim, 1)
    for use in (lambda: model(*MLP_INPUTS), lambda: copy.deepcopy(model)):
        with pytest.raises(WeightFileError, match=f"{victim.name}.* has been changed"):
            use()
    with victim.open("r+b") as file:
        file.write(whole)
    changed_at(victim, 2)
    assert torch.equal(model(*MLP_INPUTS), expected)


def changed_at(path: Path, seconds: int) -> None:
    """Let a file have been changed at another time than any before, however coarse its clock."""
    later = path.stat().st_mtime_ns + seconds * 1_000_000_000
    os.utime(path, ns=(later, later))


def test_another_file_in_its_place_does_not_matter(tmp_path: Path) -> None:
    model, expected = mapped_mlp(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / "other").write_bytes(b"something else")
        (tmp_path / "other").replace(path)
    assert torch.equal(model(*MLP_INPUTS), expected)
    assert torch.equal(copy.deepcopy(model)(*MLP_INPUTS), expected)


def test_what_another_process_puts_there_at_once_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = mapped_files.atomic_path

    @contextlib.contextmanager
    def replaced(path: Path) -> Iterator[Path]:
        with put(path) as fresh:
            yield fresh
        tensors = load_file(path)
        others = {name: t.flip(0).contiguous() for name, t in tensors.items()}
        save_file(others, tmp_path / "other")
        (tmp_path / "other").replace(path)

    monkeypatch.setattr(mapped_files, "atomic_path", replaced)
    model, expected = mapped_mlp(tmp_path)
    assert torch.equal(model(*MLP_INPUTS), expected)


@pytest.mark.skipif(not locks.can_lock, reason="no locks here")
def test_who_writes_to_a_folder_keeps_others_waiting(tmp_path: Path) -> None:
    entered, done = threading.Event(), []

    def write() -> None:
        with WeightFolder(tmp_path / "new"):
            entered.set()
            done.append("other")

    other = threading.Thread(target=write)
    with WeightFolder(tmp_path / "new"):
        other.start()
        assert not entered.wait(0.2)
        done.append("first")
    other.join(20)
    assert done == ["first", "other"]


def test_a_folder_that_is_removed_while_one_waits_is_made_again(tmp_path: Path) -> None:
    other = threading.Thread(target=lambda: WeightFolder(tmp_path / "new").__enter__())
    with contextlib.suppress(OSError), WeightFolder(tmp_path / "new"):
        other.start()
        raise OSError
    other.join(20)
    assert (tmp_path / "new").is_dir()


def test_copies_do_not_need_the_files(tmp_path: Path) -> None:
    model, expected = mapped_mlp(tmp_path)
    stream = io.BytesIO()
    torch.save(model, stream)
    copies = [copy.deepcopy(model)]
    for path in tmp_path.iterdir():
        path.unlink()
    stream.seek(0)
    copies.append(torch.load(stream, weights_only=False))
    for twin in copies:
        assert torch.equal(twin(*MLP_INPUTS), expected)


def test_the_same_folder_twice(tmp_path: Path) -> None:
    first, expected = mapped_mlp(tmp_path)
    again, _ = mapped_mlp(tmp_path)
    assert torch.equal(first(*MLP_INPUTS), expected)
    assert torch.equal(again(*MLP_INPUTS), expected)


def test_hostile_module_names(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name in ("/up", "a/b", "ünïcode " * 30, "x" * 300, "X" * 300):
        model.add_module(name, nn.Linear(4, 4))
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig())
    palettizer.prepare((torch.zeros(1, 4),))
    palettizer.finalize(backend="packed", mmap_dir=tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert len(list((tmp_path / "weights").iterdir())) == 5


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    with pytest.raises(OSError, match="file"):
        palettizer.finalize(backend="packed", mmap_dir=tmp_path / "file")
    assert not packed_weights(model)
    assert torch.equal(model(*MLP_INPUTS), expected)


def test_an_interrupt_leaves_neither_files_nor_a_half_finalized_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0
    map_to = PackedWeight.map_to

    def interrupted(self: PackedWeight, path: Path) -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt
        map_to(self, path)

    monkeypatch.setattr(PackedWeight, "map_to", interrupted)
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    with pytest.raises(KeyboardInterrupt):
        palettizer.finalize(backend="packed", mmap_dir=tmp_path)
    assert done == 2
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(model(*MLP_INPUTS), expected)
    monkeypatch.undo()
    palettizer.finalize(backend="packed", mmap_dir=tmp_path)
    assert torch.equal(model(*MLP_INPUTS), expected)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose own finalize fails, after the weights are packed."""

    def finalize(self: PackedBackend, model: nn.Module, palettized: object) -> nn.Module:
        raise RuntimeError("no licence")

    monkeypatch.setattr(PackedBackend, "finalize", finalize)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("failing")
def test_a_backend_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    with pytest.raises(BackendError, match="no licence"):
        palettizer.finalize(backend="packed", mmap_dir=tmp_path / "new" / "weights")
    assert list(tmp_path.iterdir()) == []
    assert not packed_weights(model)
    assert torch.equal(model(*MLP_INPUTS), expected)


def test_a_backend_that_fails_leaves_what_was_in_the_folder(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, expected = mapped_mlp(tmp_path)  # its files have the names that come again
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    request.getfixturevalue("failing")
    palettizer, _ = prepared_mlp()
    with pytest.raises(BackendError, match="no licence"):
        palettizer.finalize(backend="packed", mmap_dir=tmp_path)
    assert contents(tmp_path) == before
    assert (tmp_path / "empty").is_dir()
    for item in packed_weights(model):
        item.check_file()
    assert torch.equal(model(*MLP_INPUTS), expected)


def test_somebody_elses_file_keeps_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finalize(self: PackedBackend, model: nn.Module, palettized: object) -> nn.Module:
        (tmp_path / "new" / "log.txt").write_text("theirs")
        raise RuntimeError("no licence")

    monkeypatch.setattr(PackedBackend, "finalize", finalize)
    with pytest.raises(BackendError, match="no licence"):
        prepared_mlp()[0].finalize(backend="packed", mmap_dir=tmp_path / "new" / "weights")
    assert contents(tmp_path) == {"new/log.txt": b"theirs"}
    assert not (tmp_path / "new" / "weights").exists()


def test_replaced_files_are_gone_in_the_end(tmp_path: Path) -> None:
    mapped_mlp(tmp_path)
    names = sorted(contents(tmp_path))
    mapped_mlp(tmp_path)
    assert sorted(contents(tmp_path)) == names


def test_what_a_killed_process_kept_aside_is_cleared_away(tmp_path: Path) -> None:
    one, two = tmp_path / ".a.safetensors.before", tmp_path / ".b.safetensors.before"
    one.write_text("older")
    two.write_text("older")
    (tmp_path / "b.safetensors").write_text("newer")
    mapped_mlp(tmp_path)
    assert not one.exists()
    assert not two.exists()
    assert (tmp_path / "a.safetensors").read_text() == "older"
    assert (tmp_path / "b.safetensors").read_text() == "newer"


def test_mmap_dir_is_for_backends_that_support_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(get_catalog().backend("packed"), supports_mmap=False)
    monkeypatch.setattr(Catalog, "backend", lambda self, name: entry)
    palettizer, model = prepared_mlp()
    with pytest.raises(ValueError, match="mmap_dir is not supported by backend 'packed'") as caught:
        palettizer.finalize(backend="packed", mmap_dir=tmp_path / "weights")
    assert isinstance(caught.value, BackendError)
    assert not packed_weights(model)
    assert not (tmp_path / "weights").exists()


def test_a_loaded_checkpoint_is_not_mapped(tmp_path: Path) -> None:
    model, expected = mapped_mlp(tmp_path / "weights")
    path = save_checkpoint(model, tmp_path / "m.safetensors")
    from palette_core import load_checkpoint

    assert torch.equal(load_checkpoint(path, mlp())(*MLP_INPUTS), expected)
