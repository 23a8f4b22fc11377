"""The index of ten million keys: time of 100,000 lookups, time to open, and memory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from tasks.embedding.cache import EmbeddingCache
from tests.bench import harness, samples
from tests.bench.harness import Row

KEYS, WANTED = 10_000_000, 100_000
DIM = 4  # the index does not depend on it, and the disk is spared
SEGMENT = 250_000


def run() -> list[Row]:
    with samples.scratch() as folder:
        present = _fill(folder)
        known = samples.random_digests(WANTED // 2, seed=KEYS)
        wanted = present + known
        cache = EmbeddingCache(folder, "bench", DIM)

        def look_up() -> None:
            assert len(cache.missing(wanted)) == len(known)

        seconds = harness.interleaved({"look up": look_up})["look up"]
        asked = folder / "asked.json"
        asked.write_text(json.dumps(wanted))
        children = [_child(folder, asked) for _ in range(harness.ROUNDS)]
    about = f"{KEYS:,} keys in {KEYS // SEGMENT} segments, files in the page cache; against the limit"
    return [
        harness.below(
            f"{WANTED:,} lookups in {KEYS:,} keys",
            seconds,
            0.2,
            "s",
            note=f"half of them in the cache; {about}",
            limits="each lookup is a handful of misses of the processor's cache",
        ),
        harness.below(
            f"opening a cache of {KEYS:,} keys",
            [opening for opening, _ in children],
            2.0,
            "s",
            note=f"with one lookup, in a fresh process, which checks every segment's keys; {about}",
            limits="checking, reading and ordering the keys of all segments",
        ),
        harness.below(
            f"memory of the index of {KEYS:,} keys",
            [megabytes for _, megabytes in children],
            400.0,
            "MB",
            note=f"resident memory of a fresh process after opening and {WANTED:,} lookups of absent keys,"
            f" above that before, mapped pages of keys included; {about}",
            limits="a packed key is 16 bytes, so the keys alone are 160 MB",
        ),
        harness.rate("opening a cache", [opening for opening, _ in children], KEYS / 1e6, "million keys/s"),
    ]


def _fill(folder: Path) -> list[str]:
    """Writes the segments; returns some of the digests."""
    cache = EmbeddingCache(folder, "bench", DIM)
    vectors = np.zeros((SEGMENT, DIM), dtype=np.float32)
    some = []
    for number in range(KEYS // SEGMENT):
        digests = samples.random_digests(SEGMENT, seed=number)
        vectors[:] = number  # segments are distinct
        cache.append(digests, vectors)
        some += digests[: WANTED // 2 // (KEYS // SEGMENT)]
    return some


def _child(folder: Path, asked: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.bench.lookup", str(folder), str(asked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    opening, megabytes = map(float, done.stdout.split())
    return opening, megabytes


def main(folder: Path, asked: Path) -> None:
    """Prints the seconds of opening, and the megabytes that it and the lookups add to this process."""
    wanted = json.loads(asked.read_text())
    process = psutil.Process()
    EmbeddingCache(folder, "empty", DIM).missing(wanted)  # imports and buffers
    before = process.memory_info().rss
    start = time.perf_counter()
    cache = EmbeddingCache(folder, "bench", DIM)
    cache.missing(wanted[:1])
    seconds = time.perf_counter() - start
    # Keys that are not there: the index looks for them, and no page of vectors is read.
    cache.missing(samples.random_digests(WANTED, seed=KEYS + 1))
    print(seconds, (process.memory_info().rss - before) / 1e6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
