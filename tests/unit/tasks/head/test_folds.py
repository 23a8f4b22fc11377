from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError
from tasks.head import folds
from tasks.head.folds import assign_folds, check_folds, check_validation
from tasks.records import SPLITS, Manifest, Target


def manifest(target: Target, train: dict[str, int], classes: tuple[str, ...] = ()) -> Manifest:
    empty: dict[str, Any] = {split: {} for split in SPLITS}
    return Manifest(
        digest="0",
        folder="",
        target=target,
        samples=sum(train.values()),
        classes=classes,
        slices=(),
        counts={**empty, "train": train},
        conflicts=(),
        left_out=(),
        quarantined=0,
    )


def test_check_folds__too_few_of_a_class_or_label_are_named() -> None:
    check_folds(manifest("class", {"a": 3, "b": 9}, ("a", "b")), 3)
    with pytest.raises(DataError, match=r"class 'a' has 2 training samples, fewer than head\.folds = 3"):
        check_folds(manifest("class", {"a": 2, "b": 9}, ("a", "b")), 3)
    with pytest.raises(DataError, match="label 'c' has 0 training samples"):
        check_folds(manifest("labels", {"a": 5, "b": 9}, ("a", "b", "c")), 3)


def test_check_folds__numbers_need_two_in_each() -> None:
    check_folds(manifest("number", {"": 6}), 3)
    with pytest.raises(DataError, match="5 training samples are fewer than two for each"):
        check_folds(manifest("number", {"": 5}), 3)


def test_assign_folds__classes_are_spread_evenly() -> None:
    y = np.repeat([0, 1, 2], [50, 23, 7])
    folds = assign_folds(y, None, 5, 0, "class")
    counts = np.stack([np.bincount(folds[y == c], minlength=5) for c in range(3)])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert np.bincount(folds).tolist() == [16] * 5


def test_assign_folds__follow_the_seed_alone() -> None:
    y = np.arange(60) % 3
    first, again, other = (assign_folds(y, None, 5, seed, "class") for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("target", ["class", "number"])
def test_assign_folds__a_group_is_never_in_two(target: Target) -> None:
    chance = np.random.default_rng(0)
    group = chance.integers(0, 30, 300)
    y = chance.integers(0, 3, 300) if target == "class" else chance.normal(size=300)
    folds = assign_folds(y, [str(each) for each in group], 5, 0, target)
    for each in range(30):
        assert len(set(folds[group == each])) == 1
    sizes = np.bincount(folds)
    assert sizes.min() > 40  # of 60


def test_assign_folds__rare_labels_are_in_every_fold() -> None:
    chance = np.random.default_rng(0)
    y = (chance.random((200, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(np.float32)
    y[:5, 3] = 1  # five samples of the rarest
    folds = assign_folds(y, None, 5, 0, "labels")
    assert sorted(folds[:5]) == [0, 1, 2, 3, 4]
    counts = np.stack([y[folds == fold].sum(axis=0) for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 3).all()


def test_assign_folds__numbers_are_spread_over_their_range() -> None:
    y = np.random.default_rng(0).normal(size=100)
    folds = assign_folds(y, None, 5, 0, "number")
    low = y < np.quantile(y, 0.1)
    assert np.bincount(folds[low]).tolist() == [2] * 5


def test_assign_folds__fewer_groups_than_folds_is_an_error() -> None:
    with pytest.raises(DataError, match=r"2 groups of training samples are fewer than head\.folds = 3"):
        assign_folds(np.arange(10) % 2, ["a"] * 5 + ["b"] * 5, 3, 0, "class")


def test_check_validation__groups_and_copies_count_once(tmp_path: Path) -> None:
    def of(groups: list[str], digests: list[str]) -> Manifest:
        rows = {"digest": digests, "group": groups, "split": ["validation"] * len(groups)}
        pq.write_table(pa.table(rows), tmp_path / "manifest.parquet")
        return manifest("class", {}).model_copy(update={"folder": str(tmp_path)})

    count = folds.LEAST_VALIDATION
    names = [f"d{number}" for number in range(2 * count)]
    check_validation(of([""] * count, names[:count]))
    for few in (
        of([""] * (count - 1), names[: count - 1]),
        of([f"g{number % (count - 1)}" for number in range(2 * count)], names),
        of([""] * (2 * count), [f"d{number % (count - 1)}" for number in range(2 * count)]),
    ):
        with pytest.raises(DataError, match=rf"{count - 1} independent .* raise data\.validation_fraction"):
            check_validation(few)
