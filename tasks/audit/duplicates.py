"""Near-duplicates: pairs of samples that look alike and whose embeddings agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.audit.neighbours import LEAST_DETAIL, Pairs, alike, correlations, joined
from tasks.audit.rows import Bools, Floats, Ints, Rows, Vectors
from tasks.params import AuditParams

# What is looked at, of the sides: where thumbnails of whole images show no detail, those of the centre.
# Fine textures average out in the former: noise of deviation 25 in an image of 256 px to 1.6.
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
_CENTRE, _ABOVE = 0.5, 0.25  # of the height
_UNSURE = 1.5 * LEAST_DETAIL  # below it the centre is looked at too: a copy may be below the least
Look = Callable[[Sequence[str], float, float], NDArray[np.uint8]]

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
    unchecked: int  # rows of test without detail, of which nothing is known

    def __len__(self) -> int:
        return len(self.cosine)


def find(
    rows: Rows,
    vectors: Vectors,
    look: Look,
    params: AuditParams,
) -> Duplicates:
    """The near-duplicates among the contents.

    Args:
        look: gives the thumbnails [n, S, S] of some contents: of a share of the sides, at a height.
    """
    split = np.array([_STRENGTH[name] for name in rows.text("split")])[rows.first_row]
    pairs = _alike(rows, vectors, split, look, params)
    cosine = _cosines(rows, vectors, pairs)
    first, second = split[pairs.first], split[pairs.second]
    leaks = np.minimum(first, second) == _STRENGTH["train"]
    leaks &= np.maximum(first, second) == _STRENGTH["test"]
    in_test = np.where(first > second, pairs.first, pairs.second)[leaks]
    test = rows.of_split("test")
    leaked = int(np.isin(rows.content_of[test], in_test).sum())
    return Duplicates(
        pairs=pairs,
        cosine=cosine,
        leaks=leaks,
        leaked=leaked,
        leakage=leaked / max(1, int(test.sum())),
        unchecked=int((pairs.detail[rows.content_of[test]] < LEAST_DETAIL).sum()),
    )


def _alike(rows: Rows, vectors: Vectors, split: Ints, look: Look, params: AuditParams) -> Pairs:
    """Pairs that look alike, and are: by their embeddings. Those of fine textures change with the
    file's compression (cosines of .4 were seen), so pairs that are found by their centre may also be
    alike in another part."""
    contents = np.array(rows.contents, dtype=object)
    left = np.arange(len(contents))
    detail = np.zeros(len(contents), dtype=np.float32)
    found = []
    for share in SHARES:
        if not len(left):
            break
        some = alike(look(contents[left].tolist(), share, _CENTRE), params.pixels, split[left])
        detail[left] = np.maximum(detail[left], some.detail)
        pairs = replace(some, first=left[some.first], second=left[some.second])
        left = left[some.detail < _UNSURE]
        same = _cosines(rows, vectors, pairs) >= params.similarity
        if share < 1:
            same |= _above(contents, pairs, look, share) >= params.pixels
        found.append(_taken(pairs, np.flatnonzero(same)))
    return joined(found, split, detail)


def _above(contents: NDArray[np.object_], pairs: Pairs, look: Look, share: float) -> Floats:
    """How alike the pairs [P] are in a part above the centre."""
    used, at = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    seen = look(contents[used].tolist(), share, _ABOVE)
    first, second = at.reshape(2, -1)
    out = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(out), _PAIRS):
        some = slice(start, start + _PAIRS)
        out[some] = correlations(seen[first[some]], seen[second[some]], pairs.mirrored[some])
    return out


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
