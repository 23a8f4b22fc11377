import hashlib

import pytest

from tasks.data.split import assign, named, position
from tasks.errors import DataError


def keys(start: int, stop: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(start, stop)]


def test_split__position_is_the_first_64_bits_of_the_seeded_hash() -> None:
    first = int(hashlib.sha256(b"3:abc").hexdigest()[:16], 16)
    assert position("abc", 3) == first / 2**64


def test_split__lowest_positions_are_test_then_validation() -> None:
    some = keys(0, 500)
    for key, got in zip(some, assign(some, 0, 0.2, 0.1), strict=True):
        u = position(key, 0)
        assert got == ("test" if u < 0.2 else "validation" if u < 0.3 else "train")


def test_split__new_data_moves_no_old_sample() -> None:
    old, both = keys(0, 300), keys(0, 900)
    assert assign(both, 7, 0.2, 0.1)[:300] == assign(old, 7, 0.2, 0.1)


def test_split__shares_are_as_asked() -> None:
    got = assign(keys(0, 20_000), 0, 0.2, 0.1)
    # Standard deviation of a share: sqrt(0.2 × 0.8 / 20,000) = 0.0028
    assert abs(got.count("test") / 20_000 - 0.2) < 0.012
    assert abs(got.count("validation") / 20_000 - 0.1) < 0.010


def test_split__another_seed_is_another_split() -> None:
    assert assign(keys(0, 100), 0, 0.5, 0.1) != assign(keys(0, 100), 1, 0.5, 0.1)


def test_split__names_that_people_use() -> None:
    assert {name: named(name) for name in ("train", "val", "Valid", " dev ", "validation", "TEST")} == {
        "train": "train",
        "val": "validation",
        "Valid": "validation",
        " dev ": "validation",
        "validation": "validation",
        "TEST": "test",
    }
    with pytest.raises(DataError, match="'holdout' is not a split; use train, validation or test"):
        named("holdout")
