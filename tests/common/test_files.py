"""Files and folders are replaced whole or not at all, and nothing is left behind."""

import errno
import os
import stat
from pathlib import Path

import pytest

from palette_core._common import files
from palette_core._common.files import atomic_path, check_place, clear_away, work_folder


def write(path: Path, text: str, *, folder: bool) -> None:
    if folder:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text(text)
    else:
        path.write_text(text)


def read(path: Path) -> str:
    return (path / "inner" / "file").read_text() if path.is_dir() else path.read_text()


@pytest.fixture(params=["exchange", "two renames"])
def renames(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)


@pytest.mark.usefixtures("renames")
@pytest.mark.parametrize("folder", [False, True])
def test_the_new_takes_the_place_of_the_old(tmp_path, folder):
    out = tmp_path / "out.x"
    for text in ("first", "second"):
        with atomic_path(out) as fresh:
            assert fresh.name == out.name
            write(fresh, text, folder=folder)
        assert read(out) == text
    assert os.listdir(tmp_path) == ["out.x"]


@pytest.mark.usefixtures("renames")
def test_a_folder_takes_the_place_of_a_file_but_no_file_that_of_a_folder(tmp_path):
    out = tmp_path / "out.x"
    out.write_text("file")
    with atomic_path(out) as fresh:
        write(fresh, "folder", folder=True)
    with pytest.raises(IsADirectoryError, match="name a file"):
        check_place(out, is_file=True)
    with pytest.raises(IsADirectoryError, match="name a file"), atomic_path(out) as fresh:
        fresh.write_text("file")
    assert read(out) == "folder"
    assert os.listdir(tmp_path) == ["out.x"]


@pytest.mark.usefixtures("renames")
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_the_block_the_old_stays(tmp_path, folder, error):
    out = tmp_path / "out.x"
    write(out, "old", folder=folder)

    def fail() -> None:
        with atomic_path(out) as fresh:
            write(fresh, "half", folder=folder)
            raise error

    with pytest.raises(error):
        fail()
    assert read(out) == "old"
    assert os.listdir(tmp_path) == ["out.x"]


def test_an_interrupt_between_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    out, real = tmp_path / "out.x", Path.rename
    write(out, "old", folder=True)

    def once(self, target):
        monkeypatch.setattr(Path, "rename", real)
        real(self, target)
        raise KeyboardInterrupt

    def replace() -> None:
        with atomic_path(out) as fresh:
            write(fresh, "new", folder=True)
            monkeypatch.setattr(Path, "rename", once)

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert read(out) == "old"
    assert os.listdir(tmp_path) == ["out.x"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_symbolic_link_is_written_through_and_the_mode_kept(tmp_path, folder):
    real = tmp_path / "real"
    real.mkdir()
    write(real / "out.x", "old", folder=folder)
    (real / "out.x").chmod(0o750)
    link = tmp_path / "link.x"
    link.symlink_to(real / "out.x")
    with atomic_path(link) as fresh:
        write(fresh, "new", folder=folder)
    assert link.is_symlink()
    assert read(real / "out.x") == "new"
    assert stat.S_IMODE((real / "out.x").stat().st_mode) == 0o750
    assert os.listdir(real) == ["out.x"]


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "out.x") as fresh:
            fresh.write_text("new")
            fresh.chmod(0o600)  # as some libraries do
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.x").stat().st_mode) == 0o640


def test_a_missing_folder_is_an_error_with_a_hint(tmp_path):
    out = tmp_path / "missing" / "out.x"
    for use in (check_place, lambda path: atomic_path(path).__enter__()):
        with pytest.raises(FileNotFoundError, match="mkdir -p") as caught:
            use(out)
        assert caught.value.filename == str(out.parent)
    assert not out.parent.exists()


def test_what_cannot_be_written_names_the_folder_and_no_hidden_file(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".hidden"))

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match="cannot write in this folder") as caught:
        check_place(tmp_path / "out.x")
    assert caught.value.filename == str(tmp_path)


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="neither a file nor a folder"):
        check_place(pipe)


def test_work_folders_in_use_are_left_alone_and_others_cleared(tmp_path, monkeypatch):
    stale = tmp_path / ".out.x.palette-abcd1234"
    write(stale / ".former", "old", folder=True)
    foreign = tmp_path / ".out.x.backup"
    foreign.mkdir()
    with work_folder(tmp_path, "other") as used:
        monkeypatch.setattr(files, "_cleared", set())
        (tmp_path / "again").mkdir()
        monkeypatch.setattr(files, "_cleared", set())
        clear_away(tmp_path)
        assert used.exists()
        assert foreign.exists()
        assert not stale.exists()
        assert read(tmp_path / "out.x") == "old"


def test_a_disk_that_is_full_when_the_file_is_synced_leaves_the_old(tmp_path, monkeypatch):
    out = tmp_path / "out.x"
    out.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_path(out) as fresh:
        fresh.write_text("new")
    assert read(out) == "old"
    assert os.listdir(tmp_path) == ["out.x"]


# --- files beside each other ----------------------------------------------------------------------


def write_pair(path, text):
    with atomic_path(path, beside=(".bin",)) as fresh:
        fresh.write_text(text)
        fresh.with_suffix(".bin").write_text(text)


def held(folder):
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


def test_files_beside_each_other_take_their_places_together(tmp_path):
    for text in ("old", "new"):
        write_pair(tmp_path / "pair.xml", text)
        assert held(tmp_path) == {"pair.xml": text, "pair.bin": text}


@pytest.mark.parametrize("moves", range(1, 5))
def test_when_one_of_them_cannot_be_moved_the_older_ones_stay(tmp_path, monkeypatch, moves):
    write_pair(tmp_path / "pair.xml", "old")
    done = []

    def failing(move):
        def moved(self, target):
            done.append(target)
            if len(done) == moves:
                raise KeyboardInterrupt
            return move(self, target)

        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(Path.rename))
        patch.setattr(Path, "replace", failing(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            write_pair(tmp_path / "pair.xml", "new")
    assert held(tmp_path) == {"pair.xml": "old", "pair.bin": "old"}


def test_what_a_kill_left_between_them_is_put_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("palette_core._common.files._cleared", set())
    work = tmp_path / ".pair.xml.palette-abcdefgh"
    work.mkdir()
    (work / ".former").write_text("old")
    (work / ".former.bin").write_text("old")
    (tmp_path / "pair.bin").write_text("new")
    clear_away(tmp_path)
    assert held(tmp_path) == {"pair.xml": "old", "pair.bin": "old"}
