"""Labels that are likely wrong: confident learning on probabilities of a head that did not see the
sample.

Northcutt et al., Confident Learning: Estimating Uncertainty in Dataset Labels,
https://arxiv.org/abs/1911.00068
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.audit.rows import Bools, Ints

Doubles = NDArray[np.float64]

ODDS = 5.0  # of another class against the label's, from which a row is flagged
_TO_DEVIATION = 1.4826  # of a normal distribution: standard deviation / median absolute deviation


@dataclass(frozen=True)
class LabelErrors:
    """The flagged rows, the worst first."""

    rows: Ints  # [F]
    suggested: tuple[str, ...]  # label of each
    score: Doubles  # [F], greater is worse
    reasons: tuple[str, ...]
    rate: float | None  # estimated share of wrongly labelled rows; of numbers not estimated


def of_classes(probabilities: Doubles, labels: Ints, classes: Sequence[str]) -> LabelErrors:
    """Flags the rows that are confidently of another class.

    As in confident learning a probability counts in units of its class's threshold, the mean p[j]
    of the rows labelled j, which makes up for classes of which the head is less sure. A row is
    flagged where the greatest of these is at least five times that of its label; the score is 1 - the ratio.
    The rate is the share of flagged rows. It is not taken from the paper's confident joint: that holds
    classes which can't be told apart for wrongly labelled (on the built-in images 20 % instead
    of 3 %), and misses flips that only lower the probability (on digits every fourth).

    Args:
        probabilities: [N, C], of a head that did not see the row.
        labels: [N], class indices.
    """
    at = np.arange(len(labels))
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=probabilities[at, labels], minlength=probabilities.shape[1])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    relative = probabilities / np.maximum(thresholds, 1e-12)
    best = relative.argmax(axis=1)
    score = 1 - relative[at, labels] / np.maximum(relative[at, best], 1e-12)
    flagged = np.flatnonzero(score > 1 - 1 / ODDS)
    order = flagged[np.lexsort((flagged, -score[flagged]))]
    return LabelErrors(
        order,
        tuple(classes[best[row]] for row in order),
        score[order],
        tuple(
            f"labelled {classes[labels[row]]} ({probabilities[row, labels[row]]:.2f}),"
            f" looks like {classes[best[row]]} ({probabilities[row, best[row]]:.2f})"
            for row in order
        ),
        len(order) / max(1, len(labels)),
    )


def of_labels(probabilities: Doubles, truth: Bools, classes: Sequence[str]) -> LabelErrors:
    """Each label by itself, as two classes: has it, has it not. The rate is the share of rows
    with a wrong entry; the score is that of the row's worst entry.

    Args:
        probabilities: of each label, [N, C].
        truth: [N, C].
    """
    wrong = np.zeros(truth.shape, dtype=np.bool_)
    margins = np.zeros(truth.shape)
    for number in range(truth.shape[1]):
        p = np.stack([1 - probabilities[:, number], probabilities[:, number]], axis=1)
        found = of_classes(p, truth[:, number].astype(np.int64), ("without", "with"))
        wrong[found.rows, number], margins[found.rows, number] = True, found.score
    flagged = np.flatnonzero(wrong.any(axis=1))
    order = flagged[np.lexsort((flagged, -margins[flagged].max(axis=1)))]
    suggested = truth ^ wrong

    def said(row: int) -> str:
        entries = [
            f"{'lacks' if not truth[row, number] else 'has'} {classes[number]}"
            f" (probability {probabilities[row, number]:.2f})"
            for number in np.flatnonzero(wrong[row]).tolist()
        ]
        return ", ".join(entries)

    return LabelErrors(
        order,
        tuple(
            "|".join(classes[number] for number in np.flatnonzero(suggested[row]).tolist()) for row in order
        ),
        margins[order].max(axis=1) if len(order) else np.zeros(0),
        tuple(said(int(row)) for row in order),
        len(order) / max(1, len(truth)),
    )


def of_numbers(predicted: Doubles, values: Doubles, limit: float) -> LabelErrors:
    """Flags the rows whose residual is at least `limit` robust standard deviations from the median
    residual; that many is the score.

    Args:
        predicted: [N], of a head that did not see the row.
        values: [N].
    """
    residual = values - predicted
    off = np.abs(residual - np.median(residual))
    deviation = _TO_DEVIATION * float(np.median(off))
    score = off / deviation if deviation > 0 else np.zeros(len(off))
    flagged = np.flatnonzero(score >= limit)
    order = flagged[np.lexsort((flagged, -score[flagged]))]
    return LabelErrors(
        order,
        tuple(f"{predicted[row]:.4g}" for row in order),
        score[order],
        tuple(
            f"labelled {values[row]:.4g}, predicted {predicted[row]:.4g}"
            f" ({score[row]:.1f} robust standard deviations off)"
            for row in order
        ),
        None,
    )
