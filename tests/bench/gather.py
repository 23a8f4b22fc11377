"""Gathering 10,000 random rows of 100,000 × 1,280 float32 from the cache, against lmdb and sqlite,
everything in memory's page cache."""

import sqlite3
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.embedding.cache import EmbeddingCache
from tests.bench import harness, samples
from tests.bench.harness import Row

ROWS, DIM, WANTED = 100_000, 1_280, 10_000
SEGMENT = 4_096  # rows that a run puts in a segment
LIMITS = "the gather copies 51 MB, so memory's bandwidth for rows of 5 kB in random order is the floor"

Floats = NDArray[np.float32]


def run() -> list[Row]:
    digests = samples.random_digests(ROWS, seed=1)
    chosen = np.random.default_rng(2).choice(ROWS, WANTED, replace=False)
    wanted = [digests[at] for at in chosen]
    vectors = np.random.default_rng(3).standard_normal((ROWS, DIM), dtype=np.float32)
    keys = [bytes.fromhex(digest[:32]) for digest in digests]
    asked = [keys[at] for at in chosen]
    with samples.scratch() as folder:
        cache = EmbeddingCache(folder / "cache", "bench", DIM)
        for start in range(0, ROWS, SEGMENT):
            cache.append(digests[start : start + SEGMENT], vectors[start : start + SEGMENT])
        sides: dict[str, Callable[[], Floats]] = {
            "ours": lambda: cache.gather(wanted),
            **_lmdb(folder / "lmdb", keys, vectors, asked),
            **_sqlite(folder / "sqlite.db", keys, vectors, asked),
        }
        expected = vectors[chosen]
        for name, side in sides.items():
            assert np.array_equal(side(), expected), name
        seconds = harness.interleaved({name: _timed(side) for name, side in sides.items()}, rounds=9)
    return [_row(kind, seconds, goal) for kind, goal in (("lmdb", 4.0), ("sqlite", 7.0))]


def _timed(side: Callable[[], Floats]) -> Callable[[], None]:
    def once() -> None:
        side()

    return once


def _row(kind: str, seconds: harness.Seconds, goal: float) -> Row:
    """Against the quicker way of using the other store."""
    ways = [name for name in seconds if name.startswith(kind)]
    best = min(ways, key=lambda name: np.median(seconds[name]))
    return harness.row(
        f"gather of {WANTED:,} of {ROWS:,} × {DIM:,}, against {kind}",
        seconds["ours"],
        seconds[best],
        unit="ms",
        goal=goal,
        note=f"against {best}, the quickest of {len(ways)} ways; rows in the order asked for, warm",
        limits=LIMITS,
    )


def _lmdb(
    file: Path, keys: list[bytes], vectors: Floats, asked: list[bytes]
) -> dict[str, Callable[[], Floats]]:
    lmdb: Any = import_module("lmdb")
    store = lmdb.open(str(file), map_size=2 * vectors.nbytes, subdir=False)
    order = sorted(range(ROWS), key=keys.__getitem__)
    with store.begin(write=True) as transaction:
        for at in order:
            transaction.put(keys[at], vectors[at].tobytes(), append=True)

    def in_turn() -> Floats:
        out = np.empty((len(asked), DIM), dtype=np.float32)
        with store.begin(buffers=True) as transaction:
            for row, key in enumerate(asked):
                out[row] = np.frombuffer(transaction.get(key), dtype=np.float32)
        return out

    def in_order() -> Floats:
        out = np.empty((len(asked), DIM), dtype=np.float32)
        with store.begin(buffers=True) as transaction:
            for row in sorted(range(len(asked)), key=asked.__getitem__):
                out[row] = np.frombuffer(transaction.get(asked[row]), dtype=np.float32)
        return out

    def at_once() -> Floats:
        places = {key: row for row, key in enumerate(asked)}
        out = np.empty((len(asked), DIM), dtype=np.float32)
        with store.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            for key, value in cursor.getmulti(sorted(asked)):
                out[places[bytes(key)]] = np.frombuffer(value, dtype=np.float32)
        return out

    return {
        "lmdb, one read transaction, keys as asked": in_turn,
        "lmdb, one read transaction, keys sorted": in_order,
        "lmdb, one read transaction, getmulti of sorted keys": at_once,
    }


def _sqlite(
    file: Path, keys: list[bytes], vectors: Floats, asked: list[bytes]
) -> dict[str, Callable[[], Floats]]:
    store = sqlite3.connect(file)
    store.execute(f"PRAGMA mmap_size = {4 * vectors.nbytes}")
    store.execute("PRAGMA page_size = 16384")
    store.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB)")
    rows = ((key, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True))
    with store:
        store.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
    one = "SELECT vector FROM vectors WHERE key = ?"

    def in_turn() -> Floats:
        out = np.empty((len(asked), DIM), dtype=np.float32)
        for row, key in enumerate(asked):
            out[row] = np.frombuffer(store.execute(one, (key,)).fetchone()[0], dtype=np.float32)
        return out

    def by_list() -> Floats:
        places = {key: row for row, key in enumerate(asked)}
        out = np.empty((len(asked), DIM), dtype=np.float32)
        for start in range(0, len(asked), 1000):
            some = asked[start : start + 1000]
            marks = ",".join("?" * len(some))
            for key, value in store.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", some):
                out[places[key]] = np.frombuffer(value, dtype=np.float32)
        return out

    return {
        "sqlite, a prepared statement, keys as asked": in_turn,
        "sqlite, WHERE key IN, a thousand keys a statement": by_list,
    }
