import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.gather import gather, open_caches, parts
from tasks.errors import CacheError
from tasks.records import Block, Embeddings

DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(5)]
BLOCKS = (
    Block(digest="b" * 64, layer="network", pooling=(), view="identity", parts=(3,)),
    Block(digest="a" * 64, layer="blocks.1", pooling=("mean", "max"), view="hflip", parts=(2, 2)),
)


@pytest.fixture
def vectors() -> dict[str, NDArray[np.float32]]:
    chance = np.random.default_rng(0)
    return {block.digest: chance.normal(size=(5, block.dim)).astype(np.float32) for block in BLOCKS}


@pytest.fixture
def embeddings(tmp_path: Path, vectors: dict[str, NDArray[np.float32]]) -> Embeddings:
    for block in BLOCKS:
        EmbeddingCache(tmp_path, block.digest, block.dim).append(DIGESTS, vectors[block.digest])
    return Embeddings(digest="", root=str(tmp_path), blocks=BLOCKS, computed=0, cached=5)


def test_gather__blocks_are_side_by_side_in_their_order(
    embeddings: Embeddings, vectors: dict[str, NDArray[np.float32]]
) -> None:
    found = gather(embeddings, [DIGESTS[3], DIGESTS[0], DIGESTS[3]])
    assert found.shape == (3, embeddings.dim) == (3, 7)
    assert found.dtype == np.float32
    expected = np.concatenate([vectors["b" * 64], vectors["a" * 64]], axis=1)[[3, 0, 3]]
    np.testing.assert_array_equal(found, expected)


def test_gather__of_none_is_empty(embeddings: Embeddings) -> None:
    assert gather(embeddings, []).shape == (0, 7)


def test_gather__sample_that_one_block_lacks_is_an_error(embeddings: Embeddings) -> None:
    new = "f" * 64
    EmbeddingCache(Path(embeddings.root), "b" * 64, 3).append([new], np.ones((1, 3), dtype=np.float32))
    with pytest.raises(CacheError, match=r"a{64}: 1 of 2 samples are not in the cache"):
        gather(embeddings, [DIGESTS[0], new])


def test_parts__are_those_of_all_blocks(embeddings: Embeddings) -> None:
    assert parts(embeddings) == (3, 2, 2)


def test_open_caches__one_for_each_block(tmp_path: Path) -> None:
    caches = open_caches(BLOCKS, tmp_path)
    assert {digest: (cache.folder.name, cache.dim) for digest, cache in caches.items()} == {
        "b" * 64: ("b" * 64, 3),
        "a" * 64: ("a" * 64, 4),
    }
