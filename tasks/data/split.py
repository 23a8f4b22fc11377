"""Which split a sample belongs to: decided by a seeded hash of its content (or group), so new data
never moves an old sample."""

import hashlib
from collections.abc import Iterable

from tasks.errors import DataError
from tasks.records import Split

# What people call the splits; the keys are compared in lower case.
NAMES: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


def named(name: str) -> Split:
    """The split that a user's name for it means (`val` → `validation`).

    Raises:
        DataError: no split has this name.
    """
    try:
        return NAMES[name.strip().lower()]
    except KeyError:
        raise DataError(f"{name!r} is not a split; use train, validation or test") from None


def position(key: str, seed: int) -> float:
    """Where `key` falls from 0 to 1: the first 8 bytes of SHA-256 of `seed:key`, over 2^64."""
    first = hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]
    return int.from_bytes(first, "big") / 2**64


def assign(keys: Iterable[str], seed: int, test: float, validation: float) -> list[Split]:
    """A split for each key: test below `test`, validation in the next `validation`, else train."""
    return [_at(position(key, seed), test, validation) for key in keys]


def _at(u: float, test: float, validation: float) -> Split:
    if u < test:
        return "test"
    return "validation" if u < test + validation else "train"
