import builtins
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.data.s3 import unsafe
from tasks.data.source import Listing, list_source
from tasks.errors import DataError
from tasks.params import BUILTIN, DataParams
from tasks.settings import Settings


@pytest.fixture
def listed(settings: Settings) -> Callable[..., Listing]:
    def list_it(source: Path | str, **params: Any) -> Listing:
        return list_source(str(source), DataParams(**params), settings)

    return list_it


@pytest.fixture
def failure(listed: Callable[..., Listing]) -> Callable[[Path | str], str]:
    def fail(source: Path | str) -> str:
        with pytest.raises(DataError) as caught:
            listed(source)
        return str(caught.value)

    return fail


def paths(listing: Listing) -> list[str]:
    return [entry.path for entry in listing.entries]


def rejected(listing: Listing) -> dict[str, str]:
    return {bad.path: bad.reason for bad in listing.rejected}


def fill(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return root


def test_source__class_folders_without_hidden_files_and_files_at_the_top(
    tmp_path: Path, listed: Callable[..., Listing]
) -> None:
    root = fill(
        tmp_path / "d", "readme.txt", ".git/x", "cat/1.png", "cat/deep/2.png", "cat/.DS_Store", "dog/1.png"
    )
    (root / "empty").mkdir()
    listing = listed(root)
    assert listing.layout == "folders"
    assert paths(listing) == ["cat/1.png", "cat/deep/2.png", "dog/1.png"]
    assert [entry.size for entry in listing.entries] == [9, 14, 9]
    listing.entries[0].copy(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"cat/1.png"


def test_source__split_folders(tmp_path: Path, listed: Callable[..., Listing]) -> None:
    root = fill(tmp_path / "d", "Train/cat/1", "Train/dog/2", "val/cat/3", "test/dog/4", "test/readme")
    listing = listed(root)
    assert listing.layout == "split_folders"
    assert paths(listing) == ["Train/cat/1", "Train/dog/2", "test/dog/4", "val/cat/3"]
    fill(root, "other/cat/5")
    assert listed(root).layout == "folders"


def test_source__builtin_set(listed: Callable[..., Listing]) -> None:
    listing = listed(BUILTIN)
    labels = [path.split("/")[0] for path in paths(listing)]
    assert {label: labels.count(label) for label in set(labels)} == {
        "global": 500,
        "local": 500,
        "nominal": 1000,
    }


def test_source__builtin_set_that_is_not_installed_names_the_extra(
    failure: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "conformal_clip_data":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert failure(BUILTIN) == f"{BUILTIN}: not installed; pip install 'regraft[demo]'"


def test_source__what_is_no_dataset(tmp_path: Path, failure: Callable[[Path | str], str]) -> None:
    assert failure(tmp_path / "none") == f"{tmp_path}/none: no such folder or table"
    (tmp_path / "void").mkdir()
    assert "has no class folders with files" in failure(tmp_path / "void")
    assert "has no class folders with files" in failure(fill(tmp_path / "flat", "a.png", "b.png"))
    assert "has only one class (cat)" in failure(fill(tmp_path / "one", "cat/a.png"))
    assert "has only one class (cat)" in failure(
        fill(tmp_path / "one-split", "train/cat/a.png", "test/cat/b.png")
    )
    assert "train is named like a split but holds no class folders" in failure(
        fill(tmp_path / "bare", "train/a.png", "test/cat/b.png")
    )
    assert "name a folder of class folders, or a .csv or .parquet table" in failure(
        fill(tmp_path / "x", "a.txt") / "a.txt"
    )
    assert "name a folder, a .csv or .parquet table" in failure("gs://bucket/x")
    assert "there is no such built-in dataset" in failure("builtin:cats")


def test_source__that_holds_the_state_folder(tmp_path: Path, failure: Callable[[Path | str], str]) -> None:
    fill(tmp_path, "cat/1", "dog/2")
    assert f"holds the state folder {tmp_path}/state; name another with REGRAFT_STATE" in failure(tmp_path)


def test_source__links(tmp_path: Path, listed: Callable[..., Listing]) -> None:
    root = fill(tmp_path / "d", "cat/1", "dog/2")
    outside = fill(tmp_path / "outside", "3", "deep/4")
    (root / "cat/broken").symlink_to("nowhere")
    (root / "cat/inside").symlink_to(root / "dog/2")
    (root / "cat/outside").symlink_to(outside / "3")
    (root / "cat/folder").symlink_to(outside)
    (root / "cat/circle").symlink_to(root)
    (root / "cat/self").symlink_to("self")

    listing = listed(root)
    assert paths(listing) == ["cat/1", "cat/inside", "dog/2"]
    leads_out = "link leads outside the dataset's folder (data.follow_links would follow it)"
    assert rejected(listing) == {
        "cat/broken": "broken link",
        "cat/outside": leads_out,
        "cat/folder": leads_out,
        "cat/circle": "link leads to a folder that holds it",
        "cat/self": f"can't be read ({os.strerror(40)})",
    }
    following = listed(root, follow_links=True)
    assert paths(following) == [
        "cat/1",
        "cat/folder/3",
        "cat/folder/deep/4",
        "cat/inside",
        "cat/outside",
        "dog/2",
    ]


def test_source__strange_files_are_rejected(tmp_path: Path, listed: Callable[..., Listing]) -> None:
    root = fill(tmp_path / "d", "cat/1", "dog/2")
    os.mkfifo(root / "cat/pipe")
    (Path(os.fsdecode(bytes(root / "cat") + b"/\xff.png"))).write_bytes(b"x")
    assert rejected(listed(root)) == {
        "cat/pipe": "not a regular file",
        "cat/\\xff.png": "the name is not UTF-8",
    }


def test_source__token_changes_with_an_edit_that_keeps_size_and_time(
    tmp_path: Path, listed: Callable[..., Listing]
) -> None:
    root = fill(tmp_path / "d", "cat/1", "dog/2")
    before = listed(root)
    assert listed(root) == before
    file = root / "cat/1"
    status = file.stat()
    fresh = file.with_name("fresh")
    fresh.write_bytes(b"CAT/1")
    os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
    fresh.replace(file)
    assert [old == new for old, new in zip(before.entries, listed(root).entries, strict=True)] == [
        False,
        True,
    ]


def write_table(root: Path, rows: Mapping[str, str]) -> Path:
    file = root / "table.csv"
    file.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows.items()))
    return file


def test_source__table_lists_itself_and_its_files(tmp_path: Path, listed: Callable[..., Listing]) -> None:
    root = fill(tmp_path / "d", "1", "sub/2", "not-named")
    outside = fill(tmp_path / "outside", "3")
    (root / "out").symlink_to(outside / "3")
    (root / "folder").symlink_to(outside)
    (root / "broken").symlink_to("nowhere")
    file = write_table(
        root,
        {
            "1": "cat",
            "sub/2": "dog",
            "out": "cat",
            "folder/3": "cat",
            "broken": "dog",
            "gone": "dog",
            "sub": "x",
        }
        | {"table.csv": "x", "../outside/3": "x"},
    )
    listing = listed(file)
    assert (listing.layout, listing.table) == ("table", "table.csv")
    assert paths(listing) == ["1", "sub/2", "table.csv"]
    leads_out = "link leads outside the dataset's folder (data.follow_links would follow it)"
    assert rejected(listing) == {
        "out": f"row 4: {leads_out}",
        "folder/3": f"row 5: {leads_out}",
        "broken": "row 6: broken link",
        "gone": "row 7: no such file",
        "sub": "row 8: not a file",
        "table.csv": "row 9: is the table itself",
        "../outside/3": "row 10: the path leaves the table's folder",
    }
    assert paths(listed(file, follow_links=True)) == ["1", "folder/3", "out", "sub/2", "table.csv"]


def test_source__table_lists_a_stack_once_of_which_it_names_rows(
    tmp_path: Path, listed: Callable[..., Listing]
) -> None:
    root = fill(tmp_path / "d", "sub/x.npy", "y.npy#1.png")
    file = write_table(
        root, {"sub/x.npy#3": "cat", "y.npy#1.png": "cat", "sub/x.npy#10": "dog", "gone.npy#1": "dog"}
    )
    listing = listed(file)
    assert paths(listing) == ["sub/x.npy", "table.csv", "y.npy#1.png"]
    assert rejected(listing) == {"gone.npy#1": "row 5: no such file"}


def test_source__table_without_usable_rows_or_with_one_class(
    tmp_path: Path, failure: Callable[[Path | str], str]
) -> None:
    root = fill(tmp_path / "d", "1", "2")
    file = write_table(root, {"gone": "cat"})
    assert failure(file) == f"{file}: no row names a usable file; gone: row 2: no such file"
    write_table(root, {"1": "cat", "2": "cat"})
    assert failure(file) == f"{file}: has only one class (cat); two are needed"


def test_source__spellings_of_one_folder_are_one_source(
    tmp_path: Path, listed: Callable[..., Listing]
) -> None:
    root = fill(tmp_path / "d", "cat/1", "dog/2")
    (tmp_path / "link").symlink_to(root)
    assert listed(tmp_path / "link" / ".." / "d").source == listed(tmp_path / "link").source == str(root)
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("cat/1.png", None),
        ("cat/../../1.png", "the key holds .."),
        ("/etc/passwd", "the key is an absolute path"),
        ("cat//1.png", "the key has an empty part"),
        ("cat/./1.png", "the key has an empty part"),
        ("cat\\1.png", "the key holds a backslash"),
        ("cat/1\n.png", "the key holds a control character"),
        ("cat/" + "x" * 256, "the key is too long for a file's name"),
        ("cat/" + "é" * 128, "the key is too long for a file's name"),
        ("/".join(["x" * 200] * 6), "the key is too long for a file's name"),
    ],
)
def test_source__s3_keys_that_are_no_paths(key: str, reason: str | None) -> None:
    assert unsafe(key) == reason
