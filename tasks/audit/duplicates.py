"""Near-duplicates: pairs of samples that look alike and whose embeddings agree."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.audit.neighbours import Pairs, alike
from tasks.audit.rows import Bools, Floats, Ints, Rows, Vectors
from tasks.params import AuditParams

_PAIRS = 4_096  # whose embeddings are in memory at a time
_STRENGTH = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Duplicates:
    """Pairs of contents (numbers in `Rows.contents`), leaks into test first, then the most alike."""

    pairs: Pairs
    cosine: Floats  # [P], of the embeddings
    leaks: Bools  # [P], one is in test, the other in train
    leaked: int  # rows of test with a near-duplicate in train
    leakage: float  # their share of the test split

    def __len__(self) -> int:
        return len(self.cosine)


def find(rows: Rows, vectors: Vectors, thumbnails: NDArray[np.uint8], params: AuditParams) -> Duplicates:
    """The near-duplicates among the contents.

    Args:
        thumbnails: of each content, [N, S, S].
    """
    pairs = alike(thumbnails, params.pixels)
    cosine = _cosines(rows, vectors, pairs)
    split = np.array([_STRENGTH[name] for name in rows.text("split")])[rows.first_row]
    first, second = split[pairs.first], split[pairs.second]
    leaks = np.minimum(first, second) == _STRENGTH["train"]
    leaks &= np.maximum(first, second) == _STRENGTH["test"]
    good = np.flatnonzero(cosine >= params.similarity)
    good = good[np.argsort(~leaks[good], kind="stable")]
    in_test = np.where(first > second, pairs.first, pairs.second)[good][leaks[good]]
    test = rows.of_split("test")
    leaked = int(np.isin(rows.content_of[test], in_test).sum())
    return Duplicates(
        _taken(pairs, good), cosine[good], leaks[good], leaked, leaked / max(1, int(test.sum()))
    )


def clusters(contents: int, found: Duplicates) -> Ints:
    """A number for each content [N]; near-duplicates, also of near-duplicates, share it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shape = (contents, contents)
    edges = coo_array((np.ones(len(found)), (found.pairs.first, found.pairs.second)), shape=shape)
    numbers: Ints = connected_components(edges, directed=False)[1].astype(np.int64)
    return numbers


def weaker(rows: Rows, found: Duplicates) -> Bools:
    """Of each pair [P]: whether the second is the one to leave out, else the first is. What judges
    stays (test, then validation), as with exact copies."""
    split = np.array([_STRENGTH[name] for name in rows.text("split")])[rows.first_row]
    first, second = split[found.pairs.first], split[found.pairs.second]
    path = np.array(rows.text("path"), dtype=object)[rows.first_row]
    later = path[found.pairs.first] < path[found.pairs.second]
    return np.where(first == second, later, second < first).astype(np.bool_)


def _cosines(rows: Rows, vectors: Vectors, pairs: Pairs) -> Floats:
    """Of the embeddings of each pair, [P]."""
    digests = np.array(rows.contents, dtype=object)
    out = np.empty(len(pairs.first), dtype=np.float32)
    for at in range(0, len(out), _PAIRS):
        part = slice(at, at + _PAIRS)
        a = vectors.take(digests[pairs.first[part]].tolist())
        b = vectors.take(digests[pairs.second[part]].tolist())
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        out[part] = np.einsum("pd,pd->p", a, b) / np.maximum(lengths, 1e-12)
    return out


def _taken(pairs: Pairs, which: Ints) -> Pairs:
    return replace(
        pairs,
        first=pairs.first[which],
        second=pairs.second[which],
        correlation=pairs.correlation[which],
        mirrored=pairs.mirrored[which],
    )
