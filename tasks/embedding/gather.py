"""Embeddings out of the cache: the blocks of each sample side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.embedding.cache import EmbeddingCache
from tasks.records import Block, Embeddings

if TYPE_CHECKING:
    from tasks.embedding.tier import Tier


def open_caches(blocks: Iterable[Block], root: Path, tier: "Tier | None" = None) -> dict[str, EmbeddingCache]:
    """The cache of each block, by its digest."""
    return {block.digest: EmbeddingCache(root, block.digest, block.dim, tier) for block in blocks}


def gather(embeddings: Embeddings, digests: Sequence[str]) -> NDArray[np.float32]:
    """The embeddings of `digests`, [N, D].

    Raises:
        CacheError: some are not in the cache.
    """
    vectors = np.empty((len(digests), embeddings.dim), dtype=np.float32)
    start = 0
    for cache in open_caches(embeddings.blocks, Path(embeddings.root)).values():
        cache.gather(digests, out=vectors[:, start : start + cache.dim])
        start += cache.dim
    return vectors


def parts(embeddings: Embeddings) -> tuple[int, ...]:
    """Lengths of the parts of an embedding that are alike: each layer, pooling and view. Their sum
    is D."""
    return tuple(part for block in embeddings.blocks for part in block.parts)
