import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import manifest
from tasks.data.split import position
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Manifest

Run = Callable[..., Manifest]


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs on files given as path -> content; a table is given as its CSV text."""

    def run_it(files: Mapping[str, str], table: str | None = None, **params: Any) -> Manifest:
        for folder in ("v/data", "audit", "out"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        if table is not None:
            (tmp_path / "v/data/t.csv").write_text(table)
        rows = sorted((path, sha(content), len(content), 8, 9) for path, content in files.items())
        columns = dict(
            zip(("path", "digest", "size", "width", "height"), zip(*rows, strict=True), strict=True)
        )
        pq.write_table(pa.table(columns), tmp_path / "audit/files.parquet")
        firsts = {path.split("/")[0] for path in files}
        split_folders = firsts <= {"train", "val", "validation", "test"}
        version = DatasetVersion(
            digest="d",
            folder=str(tmp_path / "v"),
            source="s",
            layout="table" if table is not None else "split_folders" if split_folders else "folders",
            table="t.csv" if table is not None else None,
            files=len(files),
            size_bytes=0,
            rejected=(),
        )
        audited = Audit(
            digest="a",
            folder=str(tmp_path / "audit"),
            samples=len(files),
            quarantined=(),
            quarantined_fraction=0,
        )
        return manifest.run(tmp_path / "out", version, audited, DataParams.model_validate(params))

    return run_it


def table_of(got: Manifest) -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(got.file).to_pandas()
    return frame


def by_path(got: Manifest, column: str) -> dict[str, Any]:
    frame = table_of(got)
    return dict(zip(frame["path"], frame[column], strict=True))


def folders(count: int, labels: Sequence[str] = ("cat", "dog")) -> dict[str, str]:
    return {f"{label}/{number}": f"{label}{number}" for label in labels for number in range(count)}


def hashed(key: str, seed: int = 0) -> str:
    u = position(key, seed)
    return "test" if u < 0.2 else "validation" if u < 0.3 else "train"


def test_manifest__rows_are_sorted_and_split_by_content(run: Run) -> None:
    files = folders(100)
    got = run(files)
    frame = table_of(got)
    assert list(frame.columns) == ["digest", "path", "label", "split", "group", "size", "width", "height"]
    assert list(zip(frame["digest"], frame["path"], strict=True)) == sorted(
        (sha(c), p) for p, c in files.items()
    )
    assert by_path(got, "split") == {path: hashed(sha(content)) for path, content in files.items()}
    assert by_path(got, "label") == {path: path[:3] for path in files}
    assert got.classes == ("cat", "dog")
    assert got.samples == 200
    expected = {path: hashed(sha(content)) for path, content in files.items()}
    assert got.counts["test"]["cat"] == sum(s == "test" for p, s in expected.items() if p.startswith("cat"))


def test_manifest__new_data_moves_no_old_sample(run: Run) -> None:
    old = by_path(run(folders(80)), "split")
    new = by_path(run(folders(300)), "split")
    assert {path: new[path] for path in old} == old


def test_manifest__digest_is_of_the_content_and_repeats(run: Run) -> None:
    files = folders(60)
    first = run(files)
    assert run(files).digest == first.digest
    assert run(files, split_seed=1).digest != first.digest
    assert run(files | {"cat/x": "x"}).digest != first.digest
    assert run({f"b{path}": content for path, content in files.items()}).digest != first.digest


def csv(rows: Sequence[tuple[Any, ...]], header: str) -> str:
    return header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


def test_manifest__groups_stay_together_and_slices_are_kept(run: Run) -> None:
    rows = [
        (f"{number}.png", number % 2, f"patient{number // 4}", f"site{number % 3}") for number in range(400)
    ]
    got = run({row[0]: row[0] for row in rows}, csv(rows, "path,label,group,site"))
    assert got.slices == ("site",)
    assert got.classes == ("0", "1")
    assert by_path(got, "site") == {row[0]: row[3] for row in rows}
    assert by_path(got, "split") == {row[0]: hashed(row[2]) for row in rows}


def test_manifest__given_split_is_kept_and_blanks_are_hashed(run: Run) -> None:
    given = ["train", "val", "test", ""]
    rows = [(f"{number}.png", "ab"[number // 4 % 2], given[number % 4]) for number in range(160)]
    got = run({row[0]: row[0] for row in rows}, csv(rows, "path,label,split"), min_per_class=1)
    meant = {"train": "train", "val": "validation", "test": "test"}
    assert by_path(got, "split") == {row[0]: meant.get(row[2]) or hashed(sha(row[0])) for row in rows}


def test_manifest__split_folders_without_validation_take_it_from_train(run: Run) -> None:
    files = {f"train/{path}": content for path, content in folders(100).items()}
    files |= {f"test/{path}": f"t{content}" for path, content in folders(10).items()}
    got = by_path(run(files), "split")
    for path, content in files.items():
        if path.startswith("test/"):
            assert got[path] == "test"
        else:
            assert got[path] == ("validation" if position(sha(content), 0) < 0.1 else "train")


def test_manifest__given_split_without_test_is_an_error(run: Run) -> None:
    files = {
        f"{split}/{path}": split + content
        for split in ("train", "val")
        for path, content in folders(9).items()
    }
    with pytest.raises(DataError, match="the given split has no test samples; name some test"):
        run(files)


def test_manifest__copies_stay_in_the_split_that_judges(run: Run) -> None:
    files = {
        f"{split}/{path}": split + content
        for split in ("train", "validation", "test")
        for path, content in folders(5).items()
    }
    files |= {"train/cat/x": "same", "validation/cat/y": "same", "test/cat/z": "same"}
    files |= {"train/dog/x": "other", "train/dog/x2": "other", "validation/dog/y": "other"}
    got = run(files)
    kept = by_path(got, "split")
    assert {"test/cat/z", "validation/dog/y"} <= kept.keys()
    assert [(copy.path, copy.reason) for copy in got.left_out] == [
        ("train/cat/x", "left out of train: same content as test/cat/z in test"),
        ("train/dog/x", "left out of train: same content as validation/dog/y in validation"),
        ("train/dog/x2", "left out of train: same content as validation/dog/y in validation"),
        ("validation/cat/y", "left out of validation: same content as test/cat/z in test"),
    ]
    assert kept.keys().isdisjoint({copy.path for copy in got.left_out})
    frame = table_of(got)
    assert (frame.groupby("digest")["split"].nunique() == 1).all()


def test_manifest__copies_in_two_groups_end_on_one_side(run: Run) -> None:
    in_test = next(f"g{number}" for number in range(99) if hashed(f"g{number}") == "test")
    in_train = next(f"g{number}" for number in range(99) if hashed(f"g{number}") == "train")
    rows = [(f"{number}.png", "ab"[number % 2], "") for number in range(200)]
    rows += [("one.png", "a", in_test), ("two.png", "a", in_train)]
    files = {row[0]: row[0] for row in rows} | {"one.png": "same", "two.png": "same"}
    got = run(files, csv(rows, "path,label,group"))
    assert by_path(got, "split")["one.png"] == "test"
    assert [copy.path for copy in got.left_out] == ["two.png"]


def test_manifest__copies_with_other_labels_are_reported_and_kept(run: Run) -> None:
    files = folders(100) | {"cat/x": "same", "dog/x": "same", "dog/y": "twin", "dog/z": "twin"}
    got = run(files)
    reason = "same content, other label: cat/x is labelled cat, dog/x is labelled dog"
    assert [(bad.path, bad.reason) for bad in got.conflicts] == [("cat/x", reason), ("dog/x", reason)]
    assert {"cat/x", "dog/x", "dog/y", "dog/z"} <= by_path(got, "split").keys()


def test_manifest__too_few_of_a_class_shows_its_counts(run: Run) -> None:
    files = {
        f"{split}/{path}": split + content
        for split in ("train", "val", "test")
        for path, content in folders(3).items()
    }
    files |= {"train/mouse/1": "m1", "val/mouse/2": "m2"}
    with pytest.raises(DataError) as caught:
        run(files)
    assert str(caught.value) == (
        "1 of 3 classes have fewer than 2 samples in a split (data.min_per_class): mouse 1 train, "
        "1 validation, 0 test. Add samples, raise data.validation_fraction or data.test_fraction, or "
        "remove the class"
    )


def test_manifest__only_one_class_left(run: Run) -> None:
    with pytest.raises(DataError, match=r"only one class is left \(cat\)"):
        run(folders(50, ("cat",)))


def test_manifest__units_are_hashed_by_group_or_content_as_ever(run: Run) -> None:
    # Copies of one group, copies without one, and rows without copies stay where they always were.
    rows = [(f"{i}.jpg", ("cat", "dog")[i % 2], f"g{i % 25}" if i % 3 else "") for i in range(90)]
    files = {row[0]: f"group {row[2]}" if row[2] and i < 40 else row[0] for i, row in enumerate(rows)}
    files |= {"0.jpg": "same", "30.jpg": "same"}
    got = run(files, csv(rows, "path,label,group"), min_per_class=1)
    params = DataParams()
    for path, _, group in rows:
        u = position(group or sha(files[path]), params.split_seed)
        test, both = params.test_fraction, params.test_fraction + params.validation_fraction
        expected = "test" if u < test else "validation" if u < both else "train"
        assert by_path(got, "split")[path] == expected


def test_manifest__rows_without_a_split_take_their_groups(run: Run) -> None:
    # Of each group of three rows only the first says where it belongs.
    splits = ("train", "validation", "test")
    rows = [
        (f"{group}-{row}.jpg", ("cat", "dog")[row % 2], splits[group % 3] if row == 0 else "", f"g{group}")
        for group in range(12)
        for row in range(3)
    ]
    got = run({row[0]: row[0] for row in rows}, csv(rows, "path,label,split,group"))
    table = table_of(got)
    assert {group: set(of) for group, of in table.groupby("group")["split"]} == {
        f"g{group}": {splits[group % 3]} for group in range(12)
    }


def test_manifest__group_in_two_given_splits_is_an_error(run: Run) -> None:
    rows = [("a.jpg", "cat", "train", "g"), ("b.jpg", "dog", "test", "g")]
    with pytest.raises(DataError, match=r"group 'g' is given to (train and to test|test and to train)"):
        run({row[0]: row[0] for row in rows}, csv(rows, "path,label,split,group"))


def test_manifest__excluded_samples_are_taken_out_by_path_or_digest(run: Run) -> None:
    files = folders(60) | {"cat/copy": "cat5"}
    exclude = ("dog/3", sha("cat5"), "dog/none", "f" * 64)
    before = by_path(run(files), "split")
    got = run(files, exclude=exclude)
    assert by_path(got, "label").keys() == files.keys() - {"dog/3", "cat/5", "cat/copy"}
    assert [(sample.path, sample.reason) for sample in got.excluded] == [
        ("cat/5", f"data.exclude names its digest; of {before['cat/5']}"),
        ("cat/copy", f"data.exclude names its digest; of {before['cat/copy']}"),
        ("dog/3", f"data.exclude names its path; of {before['dog/3']}"),
    ]
    assert got.unmatched == ("dog/none", "f" * 64)
    assert sum(got.counts[split]["cat"] for split in got.counts) == 59
    rest = {path: content for path, content in files.items() if path in by_path(got, "label")}
    assert run(rest).digest == got.digest != run(files).digest


def test_manifest__a_test_copy_that_is_excluded_leaves_its_train_copy(run: Run) -> None:
    files = {
        f"{split}/{path}": split + content
        for split in ("train", "validation", "test")
        for path, content in folders(5).items()
    }
    files |= {"train/cat/x": "same", "test/dog/x": "same"}
    got = run(files, exclude=("test/dog/x",))
    assert by_path(got, "split")["train/cat/x"] == "train"
    assert [sample.reason for sample in got.excluded] == ["data.exclude names its path; of test"]
    assert (got.left_out, got.conflicts) == ((), ())


def test_manifest__everything_excluded_is_an_error(run: Run) -> None:
    files = folders(3)
    with pytest.raises(DataError, match=r"data.exclude names all 6 samples"):
        run(files, exclude=tuple(files))


def test_manifest__sets_of_labels_are_sorted_and_counted_by_label(run: Run) -> None:
    given = [" b | a|b", "", "c", "|"]
    rows = [
        (f"{number}.png", given[number % 4], ("train", "val", "test")[number % 3]) for number in range(24)
    ]
    rows.append(("copy.png", "c", "train"))  # of 0.png, which has other labels
    files = {row[0]: row[0] for row in rows} | {"copy.png": "0.png"}
    got = run(files, csv(rows, "path,label,split"), target="labels")
    assert (got.target, got.classes) == ("labels", ("a", "b", "c"))
    labels = by_path(got, "label")
    assert [labels[f"{number}.png"] for number in range(4)] == ["a|b", "", "c", ""]
    # Two of every four numbers below 24 in each of three splits: 24 / 4 / 3 = 2, and the copy.
    assert got.counts["train"] == {"a": 2, "b": 2, "c": 3}
    assert got.counts["test"] == {"a": 2, "b": 2, "c": 2}
    reason = "same content, other label: 0.png is labelled a|b, copy.png is labelled c"
    assert [(bad.path, bad.reason) for bad in got.conflicts] == [("0.png", reason), ("copy.png", reason)]
    with pytest.raises(DataError, match="3 of 3 classes have fewer than 3 samples in a split"):
        run(files, csv(rows, "path,label,split"), target="labels", min_per_class=3)


def test_manifest__numbers_are_written_in_one_way_and_have_no_classes(run: Run) -> None:
    given = ["1", "1.0", "1e0", "-0", "-2.50"]
    rows = [
        (f"{number}.png", given[number % 5], ("train", "val", "test")[number % 3]) for number in range(15)
    ]
    files = {row[0]: row[0] for row in rows}
    got = run(files, csv(rows, "path,label,split"), target="number")
    assert (got.target, got.classes) == ("number", ())
    assert got.counts == {"train": {"": 5}, "validation": {"": 5}, "test": {"": 5}}
    labels = by_path(got, "label")
    assert [labels[f"{number}.png"] for number in range(5)] == ["1.0", "1.0", "1.0", "0.0", "-2.5"]
    with pytest.raises(DataError, match="too few samples in a split: 5 train, 5 validation, 5 test; 6 are"):
        run(files, csv(rows, "path,label,split"), target="number", min_per_class=6)


def test_manifest__labels_that_are_no_numbers_are_an_error_unless_excluded(run: Run) -> None:
    rows = [(f"{number}.png", str(number), ("train", "val", "test")[number % 3]) for number in range(9)]
    rows += [("x.png", "inf", "train"), ("y.png", "high", "test")]
    files = {row[0]: row[0] for row in rows}
    table = csv(rows, "path,label,split")
    with pytest.raises(DataError) as caught:
        run(files, table, target="number")
    assert str(caught.value) == (
        "x.png: the label 'inf' is not a finite number; 2 of 11 labels are none. Correct them, leave them"
        " out (data.exclude), or set data.target to class"
    )
    assert run(files, table, target="number", exclude=("x.png", "y.png")).samples == 9


def test_manifest__the_target_is_part_of_the_digest(run: Run) -> None:
    rows = [
        (f"{number}.png", f"{number % 2}.0", ("train", "val", "test")[number % 3]) for number in range(12)
    ]
    files, table = {row[0]: row[0] for row in rows}, csv(rows, "path,label,split")
    assert len({run(files, table, target=target).digest for target in ("class", "labels", "number")}) == 3
