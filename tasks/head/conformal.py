"""From where on an answer is to be trusted: thresholds on samples that nothing was fitted on."""

import numpy as np
from numpy.typing import NDArray

from tasks.head.linear import Matrix
from tasks.records import Confidence, Conformal

# Against 1 - .9 = .09999999999999998, which would lose a sample that is due.
ROUNDING = 1e-9


def confidence(probabilities: Matrix, y: NDArray[np.int64], precision: float) -> Confidence | None:
    """The least top probability from which on answers are right as often as wanted; none where no
    threshold gives that.

    One more wrong answer is counted than there was: the samples are few, and the threshold is the
    best of many for them. So a precision of 99 % takes 99 right answers in a row or more.

    Args:
        probabilities: [N, C], calibrated, of samples that they were not fitted on.
        y: [N], class indices.
    """
    top = probabilities.max(axis=1)
    order = np.argsort(-top, kind="stable")
    wrong = np.cumsum(probabilities.argmax(axis=1)[order] != y[order])  # among the 1, 2, … surest
    answered = np.arange(1, len(y) + 1)
    right = (wrong + 1) / (answered + 1) <= 1 - precision + ROUNDING
    # Equal probabilities are answered together or not at all.
    last = np.append(top[order][1:] < top[order][:-1], True)[: len(y)]
    fitting = np.flatnonzero(right & last)
    if not len(fitting):
        return None
    at = int(fitting[-1])
    return Confidence(
        precision=precision, threshold=float(top[order][at]), answered=float(answered[at] / len(y))
    )


def conformal(probabilities: Matrix, y: NDArray[np.int64], coverage: float) -> Conformal | None:
    """The threshold of sets that hold the true class with probability `coverage` at least, over the
    draw of both these samples and the next: all classes with that probability or more.

    With N samples, the k-th smallest probability of a true class, k = ⌊(N + 1)(1 - coverage)⌋;
    where k is 0, the samples are too few to leave any class out.
    Sadinle et al., Least Ambiguous Set-Valued Classifiers, https://arxiv.org/abs/1609.00451

    Args:
        probabilities: [N, C], of samples that they were not fitted on.
        y: [N], class indices.
    """
    if not len(y):
        return None
    true = np.sort(probabilities[np.arange(len(y)), y])
    k = int((len(y) + 1) * (1 - coverage) + ROUNDING)
    return Conformal(coverage=coverage, threshold=float(true[k - 1]) if k else 0.0)
