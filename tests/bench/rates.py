"""The machine's rates that docs/scale.md is computed from: hashing, versioning, segments on this
disk and on S3, and listings."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import s3
from tasks.data.version import version_data
from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.tier import Tier
from tasks.params import DataParams
from tasks.settings import Settings
from tests.bench import engine, harness, machine, samples, seaweed
from tests.bench.harness import Row

DIM = 1_280
SEGMENTS = {"20 MB": 4_096, "256 MB": 50_000}  # rows; 4,096 is what a run writes at a time
OBJECTS = 1_000
FILES = 5_000
HASHED = 64 << 20  # bytes a piece


def run() -> Iterator[Row]:
    yield _hashing()
    yield _versioning()
    yield _writing()
    with samples.scratch() as folder, seaweed.settings(folder / "server") as settings:
        for name, rows in SEGMENTS.items():
            yield from _transfers(name, rows, settings, folder / name)
        yield _listing(settings)


def _hashing() -> Row:
    piece, pieces = np.random.default_rng(0).bytes(HASHED), 4 * machine.cores()

    def one() -> None:
        hashlib.sha256(piece).digest()

    seconds = harness.interleaved({"ours": engine.in_threads([one] * pieces)})
    gigabytes = pieces * HASHED / 1e9
    return harness.rate(f"SHA-256 on {machine.cores()} threads", seconds["ours"], gigabytes, "GB/s")


def _versioning() -> Row:
    with samples.scratch() as folder:
        data = folder / "data"
        data.mkdir()
        samples.copies(data, FILES)
        numbers = iter(range(100))

        def version() -> None:
            version_data(str(data), DataParams(), Settings(state=folder / f"state-{next(numbers)}"))

        seconds = harness.interleaved({"ours": version}, rounds=3)
    note = f"{FILES:,} JPEGs of 250 × 250 px, mirrored, added and pushed to a remote on this disk"
    return harness.rate("versioning new files", seconds["ours"], FILES, "files/s", note=note)


def _writing() -> Row:
    name, rows = list(SEGMENTS.items())[-1]
    digests, vectors = _segment(rows, seed=1)
    with samples.scratch() as folder:

        def write() -> None:
            shutil.rmtree(folder / "bench", ignore_errors=True)
            EmbeddingCache(folder, "bench", DIM).append(digests, vectors)

        seconds = harness.interleaved({"ours": write})
    note = "hashed, written, synced, renamed"
    return harness.rate(
        f"writing a segment of {name}", seconds["ours"], vectors.nbytes / 1e9, "GB/s", note=note
    )


def _transfers(name: str, rows: int, settings: Settings, folder: Path) -> Iterator[Row]:
    """A segment from this disk to the tier, and from there to an empty disk."""
    digests, vectors = _segment(rows, seed=2)
    numbers = iter(range(1_000))
    held: list[str] = []

    def put() -> float:
        fingerprint = f"{rows}-{next(numbers)}"  # each time one that the tier does not have
        EmbeddingCache(folder, fingerprint, DIM).append(digests, vectors)
        held[:] = [fingerprint]
        return _seconds(lambda: EmbeddingCache(folder, fingerprint, DIM, _tier(settings)))

    def get() -> float:
        shutil.rmtree(folder / held[0], ignore_errors=True)
        cache = EmbeddingCache(folder, held[0], DIM, _tier(settings))
        return _seconds(lambda: cache.fetch(digests))

    seconds = harness.interleaved({"put": put, "get": get})
    gigabytes = vectors.nbytes / 1e9
    yield harness.rate(f"S3 put of a segment of {name}", seconds["put"], gigabytes, "GB/s")
    yield harness.rate(f"S3 get of a segment of {name}", seconds["get"], gigabytes, "GB/s")


def _listing(settings: Settings) -> Row:
    client = s3.client(settings, "bench")
    for number in range(OBJECTS):
        client.put_object(Bucket=seaweed.BUCKET, Key=f"listed/{number:06d}", Body=b"x")

    def listed() -> None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=seaweed.BUCKET, Prefix="listed/")
        assert sum(len(page["Contents"]) for page in pages) == OBJECTS

    seconds = harness.interleaved({"ours": listed})
    return harness.rate(f"S3 listing of {OBJECTS:,} objects", seconds["ours"], OBJECTS, "objects/s")


def _tier(settings: Settings) -> Tier:
    assert settings.cache_url is not None
    return Tier(settings.cache_url, settings)


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _segment(rows: int, seed: int) -> tuple[list[str], NDArray[np.float32]]:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    return samples.random_digests(rows, seed), vectors
