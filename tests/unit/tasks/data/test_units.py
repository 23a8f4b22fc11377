from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import units
from tasks.records import Manifest


def test_keys__are_the_group_or_the_content() -> None:
    assert units.keys(["g", "", "g", ""], ["a", "b", "c", "b"]) == ["g", "b", "g", "b"]


def test_keys__copies_with_and_without_a_group_are_one_unit() -> None:
    # Whichever comes first.
    assert units.keys(["", "g", "g"], ["a", "a", "b"]) == ["g", "g", "g"]
    assert units.keys(["g", "", "g"], ["a", "a", "b"]) == ["g", "g", "g"]


def test_keys__groups_that_share_a_content_are_one_unit() -> None:
    # z and y share a, y and x share b; w has nothing in common with them.
    groups = ["z", "y", "y", "x", "w", "z", "x", ""]
    digests = ["a", "a", "b", "b", "c", "d", "e", "e"]
    assert units.keys(groups, digests) == ["x", "x", "x", "x", "w", "x", "x", "x"]
    assert sorted(units.keys(groups[::-1], digests[::-1])) == sorted(units.keys(groups, digests))


def test_of_split__has_the_rows_of_the_split_in_order(tmp_path: Path) -> None:
    columns = {
        "digest": ["a", "a", "b", "c"],
        "group": ["", "g", "", "h"],
        "split": ["train", "train", "test", "train"],
    }
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    manifest = Manifest(
        digest="m", folder=str(tmp_path), samples=4, classes=(), slices=(), counts={}, conflicts=(),
        left_out=(), quarantined=0,
    )  # fmt: skip
    assert units.of_split(manifest, "train") == ["g", "g", "h"]
