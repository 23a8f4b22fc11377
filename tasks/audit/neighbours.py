"""Pairs of thumbnails that look alike, found by blocked matrix products.

Compared is detail: each thumbnail without its blur, and without what all of the data set's have in
common (a fixed camera's scene), at length 1, so that a product is a correlation. The products are
of d = 48 leading principal components and one more number, the length of what these leave over:
<a, b> <= <Pa, Pb> + |a - Pa| |b - Pb|, so no pair above the threshold is lost. Those that pass are
computed in full.

All pairs are compared, but never held. In memory a sample takes 1 KB (a million 1 GB), a block of
products 16 MB, and the pairs that are found no more than `MAX_PAIRS`, leaks first. The time grows with the
square of N; docs/benchmarks.md (audits) has the pairs that a machine compares in a second. On
2 cores a hundred thousand samples take minutes and a million an hour or more; CUDA is used where
it is at hand.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MAX_PAIRS = 200_000
LEAST_DETAIL = 2.0  # standard deviation in levels of 255, below which it is the noise of rounding
_APART = 2  # of the numbers of train and test
_BLUR = 2.0  # px of the thumbnail
_COMPONENTS = 48
_FITTED = 20_000  # samples behind the mean and the components
_PRIOR = 20  # samples without anything in common, which the mean begins with
_ROWS, _COLUMNS = 1_024, 4_096  # of a block, of products
_COMPUTED = 65_536  # pairs that are computed in full at a time
_WORTH = 20_000  # samples from which CUDA is worth to import torch for
_SLACK = 1e-3  # float32 sums of a product, in whatever order


@dataclass(frozen=True)
class Pairs:
    """Pairs of samples that look alike, leaks first and then the most alike; in each, `first` < `second`."""

    first: Ints  # [P]
    second: Ints  # [P]
    correlation: Floats  # [P]
    mirrored: NDArray[np.bool_]  # [P], one is the mirror image of the other
    found: int  # of which MAX_PAIRS are kept
    truncated: bool  # leaks are among those that are not kept
    detail: Floats  # [N], of each sample; those with less than LEAST_DETAIL were not compared

    @property
    def plain(self) -> int:
        """Samples without detail."""
        return int((self.detail < LEAST_DETAIL).sum())


def alike(
    thumbnails: NDArray[np.uint8],
    threshold: float,
    splits: Ints | None = None,
    limit: int = MAX_PAIRS,
) -> Pairs:
    """All pairs of [N, S, S] whose detail correlates by at least `threshold`, mirrored or not.

    Args:
        splits: [N]; a pair of 0 and 2 is a leak, and is kept before others. None: there are no leaks.
    """
    splits = np.zeros(len(thumbnails), dtype=np.int64) if splits is None else splits
    n, side = len(thumbnails), thumbnails.shape[1]
    spreads = np.zeros(n, dtype=np.float32)
    details = np.empty((n, side * side), dtype=np.float16)
    for at in range(0, n, _COLUMNS):
        part, spread = _details(thumbnails[at : at + _COLUMNS])
        details[at : at + len(part)], spreads[at : at + len(part)] = part, spread
    kept = np.flatnonzero(spreads >= LEAST_DETAIL)
    details = details[kept]
    if len(kept) < 2:
        return _Found(splits, limit).pairs(spreads)
    common = _Common.of(details)
    columns = np.concatenate(
        [common.seen(details[at : at + _COLUMNS]) for at in range(0, len(details), _COLUMNS)]
    )  # [n, d + 1]
    above = _products(columns, threshold - _SLACK)
    found = _Found(splits, limit)
    for start in range(0, len(details), _ROWS):
        block = details[start : start + _ROWS]
        turned = block.reshape(-1, side, side)[:, :, ::-1].reshape(len(block), -1)
        for mirrored, rows in ((False, block), (True, turned)):
            whole = common.residual(rows)
            for first, second in above(common.seen(rows), start):
                values = np.einsum("pd,pd->p", whole[first - start], common.residual(details[second]))
                good = (values >= threshold) & (first < second)
                flags = np.full(int(good.sum()), mirrored)
                found.add(kept[first[good]], kept[second[good]], values[good], flags)
    return found.pairs(spreads)


def joined(some: Sequence[Pairs], splits: Ints, detail: Floats, limit: int = MAX_PAIRS) -> Pairs:
    """Pairs that were found in several ways, each once.

    Args:
        some: parts of what was found, each with the number that it was once.
        detail: [N], of each sample where it has most.
    """
    found = _Found(splits, limit)
    for one in some:
        found.add(one.first, one.second, one.correlation, one.mirrored)
    pairs = found.pairs(detail)
    truncated = pairs.truncated or any(one.truncated for one in some)
    return replace(pairs, found=sum(one.found for one in some), truncated=truncated)


def correlations(first: NDArray[np.uint8], second: NDArray[np.uint8], mirrored: NDArray[np.bool_]) -> Floats:
    """Of the detail of thumbnails [P, S, S], one by one; the second is turned where `mirrored`."""
    turned = np.where(mirrored[:, None, None], second[:, :, ::-1], second)
    found: Floats = (_details(first)[0] * _details(turned)[0]).sum(axis=1)
    return found


def _details(thumbnails: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """The detail [N, S²] at mean 0 and length 1, and its standard deviation [N] before that."""
    grey = thumbnails.astype(np.float32)
    detail = grey - gaussian_filter(grey, (0, _BLUR, _BLUR), mode="nearest")
    detail = detail.reshape(len(detail), -1)
    detail -= detail.mean(axis=1, keepdims=True)
    spread = detail.std(axis=1)
    length = np.linalg.norm(detail, axis=1, keepdims=True)
    return detail / np.maximum(length, 1e-6), spread


@dataclass(frozen=True)
class _Common:
    """What the details have in common: their mean [S²], and the leading components [S², d] of what
    is left without it."""

    mean: Floats
    components: Floats

    @classmethod
    def of(cls, details: NDArray[np.float16]) -> "_Common":
        some = details[:: -(-len(details) // _FITTED)].astype(np.float64)
        # Of a few samples the mean is rather what each of them is than what they have in common.
        mean = some.sum(axis=0) / (len(some) + _PRIOR)
        some -= mean
        with threadpool_limits(1, user_api="blas"):  # a small problem: threads would wait for each other
            _, basis = np.linalg.eigh(some.T @ some)
        leading = np.ascontiguousarray(basis[:, ::-1][:, :_COMPONENTS], dtype=np.float32)
        return cls(mean.astype(np.float32), leading)

    def residual(self, details: NDArray[np.float16]) -> Floats:
        """Without the mean, at length 1: [n, S²]."""
        left = details.astype(np.float32) - self.mean
        left /= np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-6)
        return left

    def seen(self, details: NDArray[np.float16]) -> Floats:
        """[n, d + 1], whose products are at least those of the residuals."""
        left = self.residual(details)
        inside = left @ self.components
        rest = np.sqrt(np.maximum(0, 1 - np.square(inside).sum(axis=1, keepdims=True)))
        return np.concatenate([inside, rest], axis=1)


_Above = Callable[[Floats, int], Iterator[tuple[Ints, Ints]]]


def _products(columns: Floats, threshold: float) -> _Above:
    """What gives the pairs (row, column) of rows [B, d] from `start` on and all columns from there
    whose product reaches the threshold."""
    device = _device() if len(columns) >= _WORTH else None

    def on_cpu(rows: Floats, start: int) -> Iterator[tuple[Ints, Ints]]:
        for at in range(start, len(columns), _COLUMNS):
            block = columns[at : at + _COLUMNS]
            hits = np.flatnonzero(rows @ block.T >= threshold)
            for at_hit in range(0, len(hits), _COMPUTED):
                some = hits[at_hit : at_hit + _COMPUTED]
                yield start + some // len(block), at + some % len(block)

    if device is None:
        return on_cpu
    import torch

    there = torch.from_numpy(columns).to(device)

    def on_device(rows: Floats, start: int) -> Iterator[tuple[Ints, Ints]]:
        seen = torch.from_numpy(rows).to(device)
        for at in range(start, len(columns), 16 * _COLUMNS):
            hits = torch.nonzero(seen @ there[at : at + 16 * _COLUMNS].T >= threshold)
            for at_hit in range(0, len(hits), _COMPUTED):
                row, column = hits[at_hit : at_hit + _COMPUTED].T.cpu().numpy()
                yield start + row, at + column

    return on_device


def _device() -> str | None:
    """CUDA where it is at hand."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


class _Found:
    """Pairs as they are found, the best `limit` of them kept: leaks first, then the most alike."""

    def __init__(self, splits: Ints, limit: int) -> None:
        self._splits, self._limit = splits, limit
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_))
        self._parts: list[tuple[Ints, Ints, Floats, NDArray[np.bool_]]] = [empty]
        self._count = self._waiting = 0
        self._dropped = self._truncated = False

    def add(self, first: Ints, second: Ints, values: Floats, mirrored: NDArray[np.bool_]) -> None:
        self._parts.append((first, second, values, mirrored))
        self._count, self._waiting = self._count + len(first), self._waiting + len(first)
        if self._waiting > 2 * self._limit:
            self._cut()

    def pairs(self, detail: Floats) -> Pairs:
        """Each pair once."""
        self._cut()
        first, second, values, mirrored = self._parts[0]
        found = self._count if self._dropped else len(first)  # the former with both ways round
        return Pairs(first, second, values, mirrored, found, self._truncated, detail)

    def _cut(self) -> None:
        first, second, values, mirrored = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        leaks = np.abs(self._splits[first] - self._splits[second]) == _APART
        order = np.lexsort((mirrored, second, first, -values, ~leaks))
        # Of the two ways round the better comes first.
        ordered = np.stack([first[order], second[order]], axis=1)
        _, once = np.unique(ordered, axis=0, return_index=True)
        order = order[np.sort(once)]
        kept, lost = order[: self._limit], order[self._limit :]
        self._dropped |= bool(len(lost))
        self._truncated |= bool(leaks[lost].any())
        self._parts = [(first[kept], second[kept], values[kept], mirrored[kept])]
        self._waiting = len(kept)
