"""The index of ten million keys: time of 100,000 lookups, time to open, and memory."""

import json
import subprocess
import sys
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

        def open_it() -> None:
            EmbeddingCache(folder, "bench", DIM)

        seconds = harness.interleaved({"look up": look_up, "open": open_it})
        asked = folder / "asked.json"
        asked.write_text(json.dumps(wanted))
        megabytes = [_child(folder, asked) for _ in range(3)]
    about = f"{KEYS:,} keys in {KEYS // SEGMENT} segments, files in the page cache; against the limit"
    return [
        harness.below(
            f"{WANTED:,} lookups in {KEYS:,} keys",
            seconds["look up"],
            0.2,
            "s",
            note=f"half of them in the cache; {about}",
            limits="each lookup is a handful of misses of the processor's cache",
        ),
        harness.below(
            f"opening a cache of {KEYS:,} keys",
            seconds["open"],
            2.0,
            "s",
            note=about,
            limits="reading and ordering the keys of all segments",
        ),
        harness.below(
            f"memory of the index of {KEYS:,} keys",
            megabytes,
            400.0,
            "MB",
            note=f"resident memory of a fresh process after opening and {WANTED:,} lookups, above that"
            f" before, file pages included; {about}",
            limits="a packed key is 16 bytes, so the keys alone are 160 MB",
        ),
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


def _child(folder: Path, asked: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.lookup", str(folder), str(asked)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def _memory(folder: Path, asked: Path) -> float:
    """Megabytes that opening and looking up add to this process."""
    wanted = json.loads(asked.read_text())
    process = psutil.Process()
    EmbeddingCache(folder / "empty", "bench", DIM).missing(wanted)  # imports and buffers
    before = process.memory_info().rss
    cache = EmbeddingCache(folder, "bench", DIM)
    cache.missing(wanted)
    return (process.memory_info().rss - before) / 1e6


if __name__ == "__main__":
    print(_memory(Path(sys.argv[1]), Path(sys.argv[2])))
