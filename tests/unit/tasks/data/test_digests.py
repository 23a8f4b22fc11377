import os
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.data import digests
from tasks.records import DatasetVersion

NAMES = ("cat/1", "cat/deep/2", "dog/3", "dog/#4 ü")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def remembered(folder: Path) -> pa.Table:
    """A memo in which the digest of a file is its path, backwards."""
    files = digests.scan(folder)
    file = folder.parent / "memo.arrow"
    digests.save(file, files, pa.array([path[::-1] for path in files["path"].to_pylist()]))
    return digests.load(file)


def known(folder: Path, memo: pa.Table) -> dict[str, str | None]:
    files = digests.scan(folder)
    return dict(zip(files["path"].to_pylist(), digests.known(files, memo).to_pylist(), strict=True))


def test_scan__gives_path_size_time_and_inode_of_every_file(folder: Path) -> None:
    (folder / "dog/linked").symlink_to("../cat/1")
    expected = []
    for name in sorted((*NAMES, "dog/linked")):
        status = (folder / name).stat()
        row = (name, status.st_size, status.st_mtime_ns, status.st_ino)
        expected.append(dict(zip(digests.FILES.names, row, strict=True)))
    assert digests.scan(folder).sort_by("path").to_pylist() == expected


def test_scan__file_that_has_no_status_is_listed_and_never_known(folder: Path) -> None:
    (folder / "cat/broken").symlink_to("nowhere")
    files = digests.scan(folder).to_pylist()
    assert [file["size"] for file in files if file["path"] == "cat/broken"] == [-1]


def test_known__unchanged_files_also_in_another_order_and_amid_others(folder: Path) -> None:
    memo = remembered(folder)
    (folder / "ant").mkdir()
    (folder / "ant/0").write_bytes(b"new")
    (folder / "cat/1").unlink()
    assert known(folder, memo) == {
        "ant/0": None,
        "cat/deep/2": "2/peed/tac",
        "dog/3": "3/god",
        "dog/#4 ü": "ü 4#/god",
    }
    assert set(known(folder, memo.take(pa.array([2, 0, 3, 1]))).values()) == set(known(folder, memo).values())


def test_known__hard_links_of_a_later_version_are_the_same_files(folder: Path, tmp_path: Path) -> None:
    memo = remembered(folder)
    for name in NAMES:
        (tmp_path / "later" / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / name, tmp_path / "later" / name)
    assert known(tmp_path / "later", memo) == {name: name[::-1] for name in NAMES}


@pytest.mark.parametrize("change", ["size", "earlier", "later", "inode"])
def test_known__any_difference_counts_whichever_way_the_clock_jumped(change: str, folder: Path) -> None:
    memo = remembered(folder)
    file = folder / "dog/3"
    before = file.stat()
    if change == "size":
        file.write_bytes(b"longer than it was")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "inode":
        other = folder / "dog/other"
        other.write_bytes(file.read_bytes())
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(file)
    else:
        moved = before.st_mtime_ns + (1 if change == "later" else -(10**18))
        os.utime(file, ns=(before.st_atime_ns, moved))
    assert known(folder, memo) == {name: None if name == "dog/3" else name[::-1] for name in NAMES}


def test_load__no_memo_is_an_empty_one(tmp_path: Path) -> None:
    assert digests.load(tmp_path / "none").num_rows == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_load__damaged_memo_is_passed_over(damage: str, folder: Path, tmp_path: Path) -> None:
    remembered(folder)
    file = tmp_path / "memo.arrow"
    content = bytearray(file.read_bytes())
    for at in range(0, len(content), 97):
        broken = bytearray(content)
        broken[at] ^= 1
        damaged = {"flipped": bytes(broken), "cut": bytes(content[:at]), "empty": b"", "another": b"x" * at}
        file.write_bytes(damaged[damage])
        assert digests.load(file).num_rows == 0, at


def test_save__leaves_out_what_could_not_be_read(folder: Path, tmp_path: Path) -> None:
    files = digests.scan(folder)
    digests.save(tmp_path / "memo", files, pa.array(["a", None, "c", None]))
    assert digests.load(tmp_path / "memo")["digest"].to_pylist() == ["a", "c"]


def test_save__two_at_once_leave_one_whole_memo(folder: Path, tmp_path: Path) -> None:
    files = digests.scan(folder)
    file = tmp_path / "memo.arrow"
    values = [pa.array([letter * 64] * len(files)) for letter in "ab"]
    digests.save(file, files, values[0])

    def save(mine: pa.StringArray) -> None:
        for _ in range(50):
            digests.save(file, files, mine)

    threads = [threading.Thread(target=save, args=(mine,)) for mine in values]
    for thread in threads:
        thread.start()
    seen = [set(digests.load(file)["digest"].to_pylist()) for _ in range(50)]
    for thread in threads:
        thread.join()
    assert all(letters in ({"a" * 64}, {"b" * 64}) for letters in seen)
    assert [path.name for path in tmp_path.iterdir() if "memo" in path.name] == ["memo.arrow"]


def test_place__is_that_of_the_source_and_of_the_folder_of_a_checkout(tmp_path: Path) -> None:
    def place(source: str, folder: str) -> Path:
        version = DatasetVersion(
            digest="d",
            folder=folder,
            source=source,
            layout="folders",
            table=None,
            files=0,
            size_bytes=0,
            rejected=(),
        )
        return digests.place(tmp_path, version)

    assert place("/pets", "versions/1") == place("/pets", "versions/2") != place("/plants", "versions/1")
    assert place("dvc:1", "/there") == place("dvc:2", "/there") != place("dvc:1", "/here")
