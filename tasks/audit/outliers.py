"""Samples far from their class in embedding space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.audit.rows import Bools, Floats, Ints

Doubles = NDArray[np.float64]

_OWN = 20  # samples of a class from which its distances are judged by themselves
_KEPT = 0.95  # share of the samples that the second fit is on: what is far must not widen the measure
_RIDGE = 1e-3  # of the mean variance, added to every direction
_TO_DEVIATION = 1.4826  # of a normal distribution: standard deviation / median absolute deviation


@dataclass(frozen=True)
class Outliers:
    """The rows whose distance reaches the limit, the farthest first."""

    rows: Ints  # [F]
    score: Doubles  # [F], robust standard deviations above the class's median distance


def find(coordinates: Floats, labels: Ints, limit: float) -> Outliers:
    """Flags rows by their Mahalanobis distance to the mean of their class, with one covariance for
    all classes (Lee et al. 2018, https://arxiv.org/abs/1807.03888).

    Args:
        coordinates: [N, d].
        labels: [N], from 0 on.
        limit: robust standard deviations, see `Outliers.score`.
    """
    x = coordinates.astype(np.float64)
    distance = _distances(x, labels, np.ones(len(x), dtype=np.bool_))
    distance = _distances(x, labels, distance <= np.quantile(distance, _KEPT))
    score = np.empty(len(x))
    counts = np.bincount(labels)
    few = counts[labels] < _OWN
    for label in np.flatnonzero(counts >= _OWN):
        of_class = labels == label
        score[of_class] = _deviations(distance[of_class], distance[of_class])
    score[few] = _deviations(distance[few], distance)
    flagged = np.flatnonzero(score >= limit)
    order = flagged[np.lexsort((flagged, -score[flagged]))]
    return Outliers(order, score[order])


def _distances(x: Doubles, labels: Ints, fitted: Bools) -> Doubles:
    """Of each row [N] to the mean of its class; `fitted` rows are behind means and covariance."""
    c, d = int(labels.max()) + 1, x.shape[1]
    counts = np.bincount(labels[fitted], minlength=c)
    sums = np.zeros((c, d))
    np.add.at(sums, labels[fitted], x[fitted])
    means = sums / np.maximum(counts, 1)[:, None]
    # A class that lost all its rows is measured from the mean of all.
    means[counts == 0] = x[fitted].mean(axis=0)
    off = x - means[labels]
    covariance = off[fitted].T @ off[fitted] / max(1, int(fitted.sum()) - int((counts > 0).sum()))
    covariance += np.eye(d) * (_RIDGE * np.trace(covariance) / d + 1e-12)
    white = np.linalg.solve(np.linalg.cholesky(covariance), off.T)  # [d, N]
    distance: Doubles = np.sqrt(np.square(white).sum(axis=0))
    return distance


def _deviations(distance: Doubles, among: Doubles) -> Doubles:
    """How many robust standard deviations above the median of `among`."""
    middle = np.median(among)
    deviation = _TO_DEVIATION * np.median(np.abs(among - middle))
    result: Doubles = (distance - middle) / max(float(deviation), 1e-12)
    return result
