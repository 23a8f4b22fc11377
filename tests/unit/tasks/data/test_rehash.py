"""Reading every file anew, in the mirror and in the whole of a version."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tasks.data.mirror import Mirrored, mirror
from tasks.data.source import Entry
from tasks.data.version import checkout, version_data
from tasks.params import DataParams
from tasks.settings import Settings

PARAMS = DataParams()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def edit_unseen(file: Path, content: bytes) -> None:
    """Another content of the same size, time and inode."""
    before = file.stat()
    assert len(content) == before.st_size
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_rehash__of_unchanged_files_asks_nothing_of_dvc(
    pets: Path, settings: Settings, no_dvc: Callable[[], None], mirrored: list[Mirrored]
) -> None:
    first = version_data(str(pets), PARAMS, settings)
    inode = (first.data / "cat/00.png").stat().st_ino
    no_dvc()
    assert version_data(str(pets), PARAMS, settings, rehash=True) == first
    assert mirrored[1] == Mirrored((), (), (), ())
    assert (first.data / "cat/00.png").stat().st_ino == inode
    assert list(settings.root.rglob("arriving")) == []


def test_rehash__makes_a_copy_good_that_was_edited_unseen(
    pets: Path, settings: Settings, tmp_path: Path, mirrored: list[Mirrored]
) -> None:
    first = version_data(str(pets), PARAMS, settings)
    whole = (pets / "cat/00.png").read_bytes()
    # Through the hard link: the snapshot, the workspace and DVC's cache show it.
    edit_unseen(first.data / "cat/00.png", b"x" * len(whole))
    version_data(str(pets), PARAMS, settings)
    assert mirrored[1] == Mirrored((), (), (), ())

    again = version_data(str(pets), PARAMS, settings, rehash=True)
    assert mirrored[2] == Mirrored(("cat/00.png",), (), (), ("cat/00.png",))
    assert again == first
    assert contents(again.data) == contents(pets)
    shutil.rmtree(settings.root / "dvc" / "remote")
    text = version_data(str(pets), PARAMS, settings).dvc_file.read_text()  # pushed from the cache
    assert contents(checkout(text, tmp_path / "there", settings).data) == contents(pets)


def test_rehash__makes_a_snapshot_good_that_is_no_longer_linked(pets: Path, settings: Settings) -> None:
    first = version_data(str(pets), PARAMS, settings)
    file = first.data / "cat/00.png"
    file.unlink()
    file.write_bytes(b"mine")
    again = version_data(str(pets), PARAMS, settings, rehash=True)
    assert again == first
    assert contents(again.data) == contents(pets)


def test_mirror__source_that_changed_behind_an_equal_token_is_noticed_when_told_to(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"old")
    entries = [Entry("cat/1", 3, "token", partial(shutil.copyfile, source))]
    assert mirror(entries, tmp_path).copied == ("cat/1",)
    source.write_bytes(b"new")
    assert mirror(entries, tmp_path) == Mirrored((), (), (), ())
    assert mirror(entries, tmp_path, anew=True) == Mirrored(("cat/1",), (), (), ("cat/1",))
    assert (tmp_path / "data/cat/1").read_bytes() == b"new"
    assert mirror(entries, tmp_path, anew=True) == Mirrored((), (), (), ())


def test_mirror__told_to_read_anew_takes_no_link_for_a_copy(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"old")
    entries = [Entry("1", 3, "token", partial(shutil.copyfile, source))]
    mirror(entries, tmp_path)
    (tmp_path / "data/1").unlink()
    (tmp_path / "data/1").symlink_to(source)
    assert mirror(entries, tmp_path, anew=True).copied == ("1",)
    assert not (tmp_path / "data/1").is_symlink()
