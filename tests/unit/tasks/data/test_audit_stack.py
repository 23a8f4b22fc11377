"""Stacks of array images through the data stage, with real files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tasks.data import audit, manifest, stack
from tasks.data.stack import Stack, row_digest, split_path
from tasks.data.version import version_data
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Manifest
from tasks.settings import Settings

Rows = list[dict[str, object]]


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Two classes of 60 grey images of 5 × 4 px, all different, and three images beside them."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 4, 5), dtype=np.uint8)
    root = tmp_path / "digits"
    for label, images in (("zero", pixels[:60]), ("one", pixels[60:, ..., None])):
        (root / label).mkdir(parents=True)
        np.save(root / label / "all.npy", images)
    return root


@pytest.fixture
def audited(tmp_path: Path, settings: Settings) -> Callable[..., tuple[DatasetVersion, Audit]]:
    """Versions a source, and audits it."""

    def run(source: Path, rehash: bool = False, **params: object) -> tuple[DatasetVersion, Audit]:
        values = DataParams.model_validate(params)
        version = version_data(str(source), values, settings, rehash)
        out = tmp_path / "audit"
        out.mkdir(exist_ok=True)
        return version, audit.run(out, version, values, settings.root, rehash)

    return run


def rows(got: Audit) -> dict[str, tuple[object, ...]]:
    listed = pq.read_table(got.path / "files.parquet").to_pylist()
    assert [row["path"] for row in listed] == sorted(row["path"] for row in listed)
    return {row["path"]: (row["digest"], row["size"], row["width"], row["height"]) for row in listed}


def reasons(got: Audit) -> dict[str, str]:
    return {bad.path: bad.reason for bad in got.quarantined}


def manifest_of(version: DatasetVersion, got: Audit, out: Path, **params: object) -> Manifest:
    out.mkdir()
    return manifest.run(out, version, got, DataParams.model_validate(params))


def by_path(made: Manifest, column: str) -> dict[str, str]:
    listed = pq.read_table(made.file).to_pylist()
    return {row["path"]: row[column] for row in listed}


Audited = Callable[..., tuple[DatasetVersion, Audit]]


def test_stacks__every_row_is_a_sample_with_its_own_digest(
    digits: Path, audited: Audited, make_png: Callable[[int], bytes]
) -> None:
    (digits / "one/a#b.png").write_bytes(make_png(1))
    version, got = audited(digits)
    expected = {
        f"{label}/all.npy#{number}": (row_digest(image.reshape(4, 5, 1)), 20, 5, 4)
        for label in ("zero", "one")
        for number, image in enumerate(np.load(digits / label / "all.npy"))
    }
    listed = rows(got)
    assert listed.pop("one/a#b.png")[2:] == (8, 8)
    assert listed == expected
    assert (version.files, got.samples, got.quarantined) == (3, 121, ())


def test_stacks__label_is_that_of_the_class_folder_and_rows_are_split_by_content(
    digits: Path, audited: Audited, tmp_path: Path
) -> None:
    made = manifest_of(*audited(digits), tmp_path / "m", min_per_class=1)
    assert {path.split("/")[0] for path, label in by_path(made, "label").items() if label == "one"} == {"one"}
    assert sum(made.counts[split]["one"] for split in made.counts) == 60
    assert all(made.counts[split]["one"] for split in made.counts)


def test_stacks__in_split_folders(digits: Path, audited: Audited, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("zero", "one"):
            (tmp_path / "s" / split / label).mkdir(parents=True)
            first = ("train", "val", "test").index(split) * 20
            np.save(
                tmp_path / "s" / split / label / "x.npy", np.load(digits / label / "all.npy")[first:][:20]
            )
    made = manifest_of(*audited(tmp_path / "s"), tmp_path / "m", min_per_class=1)
    assert made.counts == {split: {"one": 20, "zero": 20} for split in ("train", "validation", "test")}
    assert by_path(made, "split")["val/one/x.npy#7"] == "validation"


def test_stacks__same_pixels_are_exact_duplicates(digits: Path, audited: Audited, tmp_path: Path) -> None:
    images = np.load(digits / "zero/all.npy")
    np.save(digits / "one/again.npy", images[3:5])
    made = manifest_of(*audited(digits), tmp_path / "m", min_per_class=1)
    assert [bad.path for bad in made.conflicts] == [
        "one/again.npy#0",
        "one/again.npy#1",
        "zero/all.npy#3",
        "zero/all.npy#4",
    ]


def test_stacks__table_names_rows(digits: Path, audited: Audited, tmp_path: Path) -> None:
    chosen = [("zero/all.npy#0", "a"), ("./zero/all.npy#10", "b"), ("one/all.npy#59", "a")]
    lost = ["one/all.npy#60", "one/all.npy", "gone.npy#1", "zero/all.npy#01"]
    table = digits / "t.csv"
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in chosen))
    with table.open("a") as file:
        file.writelines(f"{path},a\n" for path in lost)
    version, got = audited(table, max_quarantined_fraction=0.9)
    assert list(rows(got)) == ["one/all.npy#59", "zero/all.npy#0", "zero/all.npy#10"]
    assert version.files == 3
    assert reasons(got) == {
        "one/all.npy#60": "no such row; the stack has 60 (from 0)",
        "one/all.npy": "is a stack; name its rows (one/all.npy#0 to one/all.npy#59)",
        "gone.npy#1": "row 7: no such file",
        "zero/all.npy#01": "row 8: no such file",
    }


def test_stacks__table_of_rows_makes_a_manifest(digits: Path, audited: Audited, tmp_path: Path) -> None:
    table = digits / "t.csv"
    lines = [f"zero/all.npy#{number},{'ab'[number % 2]},s{number % 3}" for number in range(60)]
    table.write_text("\n".join(["path,label,slice", *lines]))
    made = manifest_of(*audited(table), tmp_path / "m", min_per_class=1)
    assert (made.samples, made.slices) == (60, ("slice",))
    assert by_path(made, "label")["zero/all.npy#7"] == "b"
    assert by_path(made, "slice")["zero/all.npy#7"] == "s1"


def test_stacks__bad_one_is_one_quarantined_file(digits: Path, audited: Audited) -> None:
    np.save(digits / "one/bad.npy", np.zeros((9, 4, 5), np.float32))
    np.save(digits / "one/objects.npy", np.array([[[{}]]]), allow_pickle=True)
    whole = (digits / "one/all.npy").read_bytes()
    (digits / "one/cut.npy").write_bytes(whole[:-7])
    (digits / "one/text.npy").write_bytes(b"not an image")
    (digits / "one/x.npy#7").write_bytes(whole)
    _, got = audited(digits, max_quarantined_fraction=0.1)
    assert reasons(got) == {
        "one/bad.npy": "array of float32; uint8 is needed",
        "one/objects.npy": "array of Python objects; uint8 is needed",
        "one/cut.npy": "truncated (1,193 bytes of pixels, the header says 1,200)",
        "one/text.npy": "not an image (12 bytes)",
        "one/x.npy#7": "the name reads as a row of a stack; rename the file",
    }
    assert got.quarantined_fraction == 5 / 125


def test_stacks__rows_of_a_bad_one_that_a_table_names_are_all_lost(digits: Path, audited: Audited) -> None:
    np.save(digits / "one/bad.npy", np.zeros((9, 4, 5), np.float32))
    (digits / "t.csv").write_text(
        "path,label\nzero/all.npy#1,a\nzero/all.npy#2,b\none/bad.npy#0,a\none/bad.npy#1,b\n"
    )
    with pytest.raises(DataError, match="2 of 4 files quarantined"):
        audited(digits / "t.csv")


def test_stacks__one_above_the_limit_of_pixels_is_refused_also_when_known(
    digits: Path, audited: Audited
) -> None:
    audited(digits)
    with pytest.raises(DataError, match=r"one/all\.npy: too large: 20 pixels, limit 19 pixels; 2 of 2"):
        audited(digits, max_pixels=19)


def test_stacks__image_with_the_name_of_a_stack_stays_an_image(
    digits: Path, audited: Audited, make_png: Callable[[int], bytes]
) -> None:
    (digits / "one/image.npy").write_bytes(make_png(1))
    listed = rows(audited(digits)[1])
    assert listed["one/image.npy"][2:] == (8, 8)
    (digits / "t.csv").write_text("path,label\none/image.npy#0,a\nzero/all.npy#0,b\nzero/all.npy#1,a\n")
    got = audited(digits / "t.csv", max_quarantined_fraction=0.5)[1]
    assert reasons(got) == {"one/image.npy#0": "is one image, no stack; name it without #"}


def test_stacks__unchanged_one_is_not_read_again_unless_told_to(
    digits: Path, audited: Audited, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audited(digits)[1]
    hashed: list[Path] = []
    whole = Stack.digests

    def spy(self: Stack, start: int, stop: int) -> bytes:
        hashed.append(self.file)
        return whole(self, start, stop)

    monkeypatch.setattr(Stack, "digests", spy)
    assert audited(digits)[1] == first
    assert hashed == []
    assert audited(digits, rehash=True)[1] == first
    assert sorted(file.parent.name for file in hashed) == ["one", "zero"]

    hashed.clear()
    for known in (settings.root / "verified" / f"stack-{stack.VERSION}").iterdir():
        known.write_bytes(known.read_bytes()[:-1] + b"x")  # damaged: read again
    assert audited(digits)[1] == first
    assert len(hashed) == 2


def test_stacks__large_one_is_hashed_in_pieces(
    digits: Path, audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.data.content._ROW_BYTES", 7 * 20)
    listed = rows(audited(digits)[1])
    large = stack.check_stack(digits / "zero/all.npy", 10_000)
    images: NDArray[np.uint8] = large.read(range(large.rows))
    for path, (digest, *_) in listed.items():
        file, row = split_path(path)
        if file == "zero/all.npy" and row is not None:
            assert digest == row_digest(images[row])
