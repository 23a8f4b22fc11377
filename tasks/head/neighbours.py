"""k nearest neighbours by cosine of the standardised embeddings, searched in blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.head.linear import Matrix, Rows, Vectors, chunks, directions


@dataclass(frozen=True)
class Neighbours:
    """D = length of an embedding, C = number of classes."""

    mean: Matrix  # [D], of the training split
    scale: Matrix  # [D]
    vectors: Vectors  # [N, D], standardised training samples, each of length 1
    labels: NDArray[np.int64]  # [N], class indices
    prior: Matrix  # [C], shares of the classes
    k: NDArray[np.int64]  # [1]

    def logits(self, x: Rows) -> Matrix:
        """[M, D] to [M, C]: the log of the neighbours' shares, of which the prior counts for one."""
        logits: Matrix = self.logits_at(x, [int(self.k[0])])[0]
        return logits

    def logits_at(self, x: Rows, ks: Sequence[int]) -> Matrix:
        """[len(ks), M, C], the logits at each k, from one search."""
        out = np.empty((len(ks), len(x), len(self.prior)))
        most = min(max(ks), len(self.vectors))
        for rows in chunks(len(x)):
            nearest = self._nearest(x[rows], most)  # [m, most] labels, nearest first
            votes = np.zeros((len(nearest), len(self.prior)))
            at = np.arange(len(nearest))
            wanted = {min(k, most) for k in ks}
            shares = {}
            for rank in range(most):
                votes[at, nearest[:, rank]] += 1
                if rank + 1 in wanted:
                    shares[rank + 1] = np.log((votes + self.prior) / (rank + 2))
            for index, k in enumerate(ks):
                out[index, rows] = shares[min(k, most)]
        return out

    def _nearest(self, x: Vectors, most: int) -> NDArray[np.int64]:
        """Labels [m, most] of the nearest training samples; of equally near ones the first."""
        queries = unit(x, self.mean, self.scale)
        best = np.empty((len(x), 0), dtype=np.float32)
        which = np.empty((len(x), 0), dtype=np.int64)
        for rows in chunks(len(self.vectors)):
            cosine = np.concatenate([best, queries @ self.vectors[rows].T], axis=1)
            index = np.arange(rows.start, rows.stop)
            index = np.concatenate([which, np.broadcast_to(index, (len(x), len(index)))], axis=1)
            if cosine.shape[1] > 4 * most:  # only what can be among them is sorted
                kept = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
                kept.sort(axis=1)
                cosine, index = np.take_along_axis(cosine, kept, 1), np.take_along_axis(index, kept, 1)
            order = np.argsort(-cosine, axis=1, kind="stable")[:, :most]
            best, which = np.take_along_axis(cosine, order, 1), np.take_along_axis(index, order, 1)
        return self.labels[which]


def unit(x: Rows, mean: Matrix, scale: Matrix) -> Vectors:
    """[N, D], standardised and divided by each row's length."""
    out = np.empty(x.shape, dtype=np.float32)
    for rows in chunks(len(x)):
        out[rows] = directions((np.asarray(x[rows], dtype=np.float64) - mean) / scale)
    return out


def remember(x: Rows, y: NDArray[np.int64], classes: int, mean: Matrix, scale: Matrix, k: int) -> Neighbours:
    """Neighbours among the samples x [N, D] with the class indices y [N]."""
    # Half a sample of each class on top, so that no class is impossible.
    counts = np.bincount(y, minlength=classes).astype(np.float64)
    prior = (counts + 0.5) / (len(y) + 0.5 * classes)
    return Neighbours(mean, scale, unit(x, mean, scale), y, prior, np.array([k]))
