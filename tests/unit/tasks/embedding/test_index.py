import hashlib

import numpy as np

from tasks.embedding.index import KeyIndex
from tasks.embedding.segment import Keys


def keys_of(*names: str) -> Keys:
    content = b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names)
    return np.frombuffer(content, dtype=np.uint64).reshape(-1, 2)


def test_index__finds_keys_whose_first_bits_are_equal() -> None:
    # With 7 keys places take 3 bits: keys that differ in the last 3 bits of the first half, or only
    # in the second half, have equal entries.
    firsts = [1 << 40, 1 << 40, (1 << 40) + 1, (1 << 40) + 7, 5, 2**64 - 1, 2**64 - 1]
    seconds = [1, 2, 1, 1, 0, 0, 1]
    keys = np.array([firsts, seconds], dtype=">u8").T.astype(">u8").view(np.uint64)
    index = KeyIndex([np.ascontiguousarray(keys[:3]), np.ascontiguousarray(keys[3:])])
    assert index.find(keys).tolist() == list(range(7))
    absent = keys.copy()
    absent[:, 1] ^= np.uint64(1 << 63)
    assert index.find(absent).tolist() == [-1] * 7
    assert [(part, rows.tolist()) for part, _, rows in index.split(np.array([5, 0, 3]))] == [
        (0, [0]),
        (1, [2, 0]),
    ]


def test_index__counts_a_key_of_several_parts_once() -> None:
    parts = [keys_of("a", "b"), keys_of("b", "c"), keys_of("b")]
    index = KeyIndex([part[np.argsort([key.tobytes() for key in part])] for part in parts])
    assert index.distinct() == 3
    places = index.repeated()
    assert len(places) == 3
    assert {key.tobytes() for key in index.keys_at(places)} == {keys_of("b").tobytes()}


def test_index__of_nothing_finds_nothing() -> None:
    assert KeyIndex([]).find(keys_of("a")).tolist() == [-1]
    assert KeyIndex([]).distinct() == 0
    assert KeyIndex([keys_of("a")]).find(keys_of()).tolist() == []
