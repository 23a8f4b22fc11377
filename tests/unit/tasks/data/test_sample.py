import hashlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import sample
from tasks.data.split import position
from tasks.records import Manifest, Rejected, Target

CLASSES = ("cat", "dog")


def content(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def manifest(folder: Path, count: int = 60, target: Target = "class", **columns: list[str]) -> Manifest:
    """Of samples 0 to `count` - 1: every third is test, every fifth of the others validation."""
    folder.mkdir()
    split = ["test" if n % 3 == 0 else "validation" if n % 5 == 0 else "train" for n in range(count)]
    frame = pd.DataFrame(
        {
            "digest": [content(n) for n in range(count)],
            "path": [f"{n}.jpg" for n in range(count)],
            "label": [CLASSES[n % 2] for n in range(count)],
            "split": split,
            "site": ["north", None] * (count // 2),
            **columns,
        }
    ).sort_values("digest", ignore_index=True)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "manifest.parquet")
    return Manifest(
        digest="m", folder=str(folder), target=target, samples=count,
        classes=() if target == "number" else CLASSES, slices=("site",), counts={},
        conflicts=(Rejected(path="1.jpg", reason="copy"),), left_out=(), quarantined=3,
    )  # fmt: skip


def rows(made: Manifest) -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(made.file).to_pandas()
    return frame


def out(tmp_path: Path, name: str = "out") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def test_sample__takes_the_smallest_hashes_of_each_split_in_the_manifests_order(tmp_path: Path) -> None:
    whole = manifest(tmp_path / "m")
    made = sample.run(out(tmp_path), whole, {"train": 5, "test": 3}, seed=1)
    frame, everything = rows(made), rows(whole)
    for split, count in (("train", 5), ("test", 3)):
        digests = everything[everything["split"] == split]["digest"]
        expected = sorted(digests, key=lambda digest: position(digest, 1))[:count]
        assert list(frame[frame["split"] == split]["digest"]) == sorted(expected)
    assert made.samples == len(frame) == 8
    assert list(frame.columns) == list(everything.columns)
    assert pq.read_schema(made.file) == pq.read_schema(whole.file)
    assert (made.classes, made.slices, made.quarantined, made.conflicts) == (CLASSES, ("site",), 3, ())


def test_sample__counts_its_own_rows(tmp_path: Path) -> None:
    made = sample.run(out(tmp_path), manifest(tmp_path / "m"), {"test": 4}, seed=0)
    found = rows(made)["label"].value_counts()
    assert made.counts == {
        "train": {"cat": 0, "dog": 0},
        "validation": {"cat": 0, "dog": 0},
        "test": {"cat": found.get("cat", 0), "dog": found.get("dog", 0)},
    }


@pytest.mark.parametrize(
    ("target", "labels", "counted"),
    [("labels", ["cat|dog", ""], {"cat": 1, "dog": 1}), ("number", ["1.5", "-2"], {"": 2})],
)
def test_sample__counts_labels_and_numbers(
    tmp_path: Path, target: Target, labels: list[str], counted: dict[str, int]
) -> None:
    whole = manifest(tmp_path / "m", 2, target, label=labels, split=["test", "test"])
    assert sample.run(out(tmp_path), whole, {"test": 9}, seed=0).counts["test"] == counted


def test_sample__keeps_most_of_itself_when_the_data_grow(tmp_path: Path) -> None:
    before = sample.run(out(tmp_path, "a"), manifest(tmp_path / "m", 300), {"test": 50}, seed=0)
    after = sample.run(out(tmp_path, "b"), manifest(tmp_path / "n", 330), {"test": 50}, seed=0)
    kept = set(rows(before)["digest"]) & set(rows(after)["digest"])
    # Whoever goes was displaced by one of the ten new test samples.
    assert len(kept) >= 40


def test_sample__is_another_with_another_seed_and_the_same_with_the_same(tmp_path: Path) -> None:
    whole = manifest(tmp_path / "m")
    made = [
        sample.run(out(tmp_path, str(n)), whole, {"train": 5}, seed).digest
        for n, seed in enumerate((0, 0, 1))
    ]
    assert made[0] == made[1] != made[2]


def test_sample__of_more_than_there_is_is_all_of_it(tmp_path: Path) -> None:
    whole = manifest(tmp_path / "m")
    made = sample.run(out(tmp_path), whole, {"train": 999, "validation": 999, "test": 999}, seed=0)
    pd.testing.assert_frame_equal(rows(made), rows(whole))


def test_sample__copies_are_taken_together(tmp_path: Path) -> None:
    twice = [content(n // 2) for n in range(60)]
    whole = manifest(tmp_path / "m", digest=twice, split=["train"] * 60)
    made = sample.run(out(tmp_path), whole, {"train": 10}, seed=0)
    assert list(rows(made)["digest"].value_counts()) == [2] * 5
