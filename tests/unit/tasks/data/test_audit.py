import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.data import audit, content
from tasks.data.image import decode
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Rejected

Run = Callable[..., Audit]


def version_of(folder: Path, table: str | None = None, rejected: tuple[Rejected, ...] = ()) -> DatasetVersion:
    return DatasetVersion(
        digest="0" * 32 + ".dir",
        folder=str(folder),
        source="s",
        layout="table" if table else "folders",
        table=table,
        files=0,
        size_bytes=0,
        rejected=rejected,
    )


@pytest.fixture
def folder(tmp_path: Path, pets: Path) -> Path:
    (tmp_path / "version").mkdir()
    pets.rename(tmp_path / "version/data")
    return tmp_path / "version"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_it(version: DatasetVersion, rehash: bool = False, **params: object) -> Audit:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        return audit.run(out, version, DataParams.model_validate(params), tmp_path, rehash)

    return run_it


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each file that was decoded."""
    calls: list[int] = []

    def spy(content: bytes, max_pixels: int) -> object:
        calls.append(len(content))
        return decode(content, max_pixels)

    monkeypatch.setattr(content, "decode", spy)
    return calls


def test_audit__every_good_file_has_a_row_sorted_by_path(folder: Path, run: Run) -> None:
    got = run(version_of(folder))
    rows = pq.read_table(got.path / "files.parquet").to_pylist()
    expected = [
        {
            "path": str(file.relative_to(folder / "data")),
            "digest": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
            "width": 8,
            "height": 8,
        }
        for file in sorted((folder / "data").rglob("*.png"))
    ]
    assert rows == expected
    assert (got.samples, got.quarantined, got.quarantined_fraction) == (40, (), 0)


def test_audit__bad_files_and_rejected_ones_are_quarantined_with_reasons(folder: Path, run: Run) -> None:
    (folder / "data/cat/text.png").write_bytes(b"not an image")
    (folder / "data/cat/empty.png").write_bytes(b"")
    whole = (folder / "data/cat/00.png").read_bytes()
    (folder / "data/dog/00.png").write_bytes(whole[:60])
    link = Rejected(path="cat/a-link", reason="broken link")
    got = run(version_of(folder, rejected=(link,)), max_quarantined_fraction=0.1)
    assert [bad.path for bad in got.quarantined] == [
        "cat/a-link",
        "cat/empty.png",
        "cat/text.png",
        "dog/00.png",
    ]
    assert [bad.reason for bad in got.quarantined[:3]] == [
        "broken link",
        "empty file",
        "not an image (12 bytes)",
    ]
    assert got.quarantined[3].reason.startswith("truncated (")
    assert got.samples == 39
    assert got.quarantined_fraction == 4 / 43
    for place in (got.path, folder):
        listed = json.loads((place / "audit.json").read_text())["quarantined"]
        assert listed == [bad.model_dump() for bad in got.quarantined]


def test_audit__too_many_bad_files_fail_with_the_first_and_the_report(folder: Path, run: Run) -> None:
    (folder / "data/cat/text.png").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        run(version_of(folder), max_quarantined_fraction=0.02)
    # 1 of 41 is 2.439 %
    assert str(caught.value) == (
        "cat/text.png: not an image (12 bytes); 1 of 41 files quarantined (2.44 %), limit 2.00 % "
        f"(data.max_quarantined_fraction); see {folder}/audit.json"
    )
    assert (folder / "audit.json").exists()


def test_audit__no_good_file_at_all_fails_whatever_the_limit(tmp_path: Path, run: Run) -> None:
    (tmp_path / "v/data/cat").mkdir(parents=True)
    (tmp_path / "v/data/cat/1").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cat/1: not an image \(1 bytes\); 1 of 1 files quarantined"):
        run(version_of(tmp_path / "v"), max_quarantined_fraction=1)


def test_audit__a_table_names_the_samples(folder: Path, run: Run) -> None:
    (folder / "data/t.csv").write_text("path,label\ndog/01.png,dog\n./cat/00.png,cat\ngone.png,cat\n")
    gone = Rejected(path="gone.png", reason="row 4: no such file")
    got = run(version_of(folder, "t.csv", (gone,)), max_quarantined_fraction=0.5)
    assert pq.read_table(got.path / "files.parquet")["path"].to_pylist() == ["cat/00.png", "dog/01.png"]
    assert got.quarantined == (gone,)


def test_audit__known_content_is_not_decoded_again(
    folder: Path, run: Run, decoded: list[int], make_png: Callable[[int], bytes]
) -> None:
    first = run(version_of(folder))
    assert len(decoded) == 40
    decoded.clear()
    (folder / "data/cat/00.png").rename(folder / "data/dog/moved.png")
    new = make_png(600)
    (folder / "data/cat/new.png").write_bytes(new)
    second = run(version_of(folder))
    assert decoded == [len(new)]
    assert second.samples == 41
    assert second.digest != first.digest
    decoded.clear()
    run(version_of(folder))
    assert decoded == []


def test_audit__a_lower_limit_judges_known_images_anew(folder: Path, run: Run) -> None:
    run(version_of(folder))
    with pytest.raises(DataError, match=r"cat/00\.png: too large: 64 pixels, limit 63 pixels; 40 of 40"):
        run(version_of(folder), max_pixels=63)


def test_audit__damaged_memory_is_passed_over(
    folder: Path, run: Run, decoded: list[int], tmp_path: Path
) -> None:
    run(version_of(folder))
    (memory,) = (tmp_path / "verified").rglob("*.parquet")
    memory.write_bytes(memory.read_bytes()[:-9])
    decoded.clear()
    assert run(version_of(folder)).samples == 40
    assert len(decoded) == 40


def edit_unseen(file: Path, content: bytes) -> None:
    """Another content of the same size, time and inode."""
    before = file.stat()
    assert len(content) == before.st_size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


def digest_in(got: Audit, path: str) -> str:
    rows = pq.read_table(got.path / "files.parquet").to_pylist()
    (found,) = (row["digest"] for row in rows if row["path"] == path)
    return str(found)


def test_audit__unchanged_file_is_not_read_again_unless_told_to(
    folder: Path, run: Run, make_png: Callable[[int], bytes]
) -> None:
    file = folder / "data/cat/00.png"
    first = run(version_of(folder))
    before = digest_in(first, "cat/00.png")
    edit_unseen(file, make_png(19))  # as long as that of shade 0
    assert run(version_of(folder)) == first

    after = run(version_of(folder), rehash=True)
    assert digest_in(after, "cat/00.png") == hashlib.sha256(make_png(19)).hexdigest() != before
    assert after.digest != first.digest
    assert run(version_of(folder)) == after  # the memo was replaced


def test_audit__rehash_of_unchanged_files_finds_the_same(folder: Path, run: Run) -> None:
    assert run(version_of(folder), rehash=True) == run(version_of(folder), rehash=True)


def test_audit__file_that_was_touched_is_read_again(
    folder: Path, run: Run, make_png: Callable[[int], bytes]
) -> None:
    run(version_of(folder))
    file = folder / "data/cat/00.png"
    edit_unseen(file, make_png(19))
    os.utime(file, (0, 0))  # a clock that jumped back
    assert digest_in(run(version_of(folder)), "cat/00.png") == hashlib.sha256(make_png(19)).hexdigest()


def test_audit__next_version_in_another_folder_reads_only_what_is_new(
    folder: Path, run: Run, tmp_path: Path, make_png: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(version_of(folder))
    shutil.copytree(folder / "data", tmp_path / "next/data", copy_function=os.link)
    (tmp_path / "next/data/dog/new.png").write_bytes(make_png(600))
    (tmp_path / "next/data/cat/00.png").unlink()
    read: list[str] = []
    whole = content._read

    def spy(data: Path, path: str, sizes: content.Sizes, max_pixels: int) -> object:
        read.append(path)
        return whole(data, path, sizes, max_pixels)

    monkeypatch.setattr(content, "_read", spy)
    got = run(version_of(tmp_path / "next"))
    assert read == ["dog/new.png"]
    assert got.samples == 40


def test_audit__damaged_memo_of_digests_is_passed_over(
    folder: Path, run: Run, tmp_path: Path, make_png: Callable[[int], bytes]
) -> None:
    run(version_of(folder))
    edit_unseen(folder / "data/cat/00.png", make_png(19))
    (memo,) = (tmp_path / "digests").iterdir()
    memo.write_bytes(memo.read_bytes()[:-1])
    got = run(version_of(folder))
    assert digest_in(got, "cat/00.png") == hashlib.sha256(make_png(19)).hexdigest()


def test_audit__bad_file_keeps_its_reason_when_it_is_unchanged(folder: Path, run: Run) -> None:
    (folder / "data/cat/text.png").write_bytes(b"not an image")
    first, again = (run(version_of(folder), max_quarantined_fraction=0.1) for _ in range(2))
    assert first == again
    assert [bad.reason for bad in again.quarantined] == ["not an image (12 bytes)"]


def test_audit__digest_says_the_same_for_the_same(folder: Path, run: Run) -> None:
    assert run(version_of(folder)).digest == run(version_of(folder)).digest
