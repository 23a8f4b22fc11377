"""Caches in which a sample's vector is its number, and children that use them."""

import hashlib
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tasks.embedding.cache import EmbeddingCache

DIM = 3
ONE, TWO = "1" * 64, "2" * 64  # fingerprints


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def opened(root: Path, fingerprint: str = ONE) -> EmbeddingCache:
    return EmbeddingCache(root, fingerprint, DIM)


def fill(cache: EmbeddingCache, numbers: Sequence[int]) -> None:
    """Writes a segment of these samples."""
    cache.append([digest(n) for n in numbers], np.array([[n] * DIM for n in numbers], dtype=np.float32))


def append(root: Path, numbers: Sequence[int], fingerprint: str = ONE) -> Path:
    """Writes a segment of these samples; its file."""
    cache = opened(root, fingerprint)
    before = set(cache.segments())
    fill(cache, numbers)
    (segment,) = set(cache.segments()) - before
    return segment


def check(root: Path, numbers: Sequence[int]) -> EmbeddingCache:
    """These samples are there, and right."""
    cache = opened(root)
    digests = [digest(n) for n in numbers]
    assert cache.missing(digests) == []
    np.testing.assert_array_equal(cache.gather(digests)[:, 0], numbers)
    return cache


def forked(act: Callable[[], object]) -> int:
    """Runs `act` in a child, which costs no imports; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        act()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def ended(child: int) -> int:
    """The exit status of a child, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
