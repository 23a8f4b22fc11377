"""Whether probabilities mean what they say: the bins behind the ECE, the ECE that chance alone gives,
and what became of the head's thresholds.

Legend: N samples, C classes or labels, M bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.evaluation.metrics import Truth, checked
from tasks.evaluation.sums import Floats, Ints, bins_of, sound, top
from tasks.records import Confidence, Conformal, Selective, Target

CHANCE = 200  # simulated outcomes; the mean ECE has an error of about a hundredth of itself
LEAST = 20  # of many samples, where each ECE hardly differs from the others
DRAWS = 40_000_000  # random numbers in all


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins; NaN where a bin is empty."""

    confidence: Floats  # [M] mean top probability; of labels mean probability
    accuracy: Floats  # [M] share of right answers; of labels share of true ones
    count: Ints  # [M]


def reliability(
    outputs: ArrayLike, truth: ArrayLike, *, bins: int = 15, target: Target = "class"
) -> Reliability:
    """The bins behind the ECE. Rows that can't be judged are left out.

    Args and raises: as `metrics.measure`; numbers have no such bins.
    """
    stated, came_true = _outcomes(outputs, truth, target)
    where = bins_of(stated, bins)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            confidence=np.bincount(where, weights=stated, minlength=bins) / count,
            accuracy=np.bincount(where, weights=came_true, minlength=bins) / count,
            count=count,
        )


def chance_ece(
    outputs: ArrayLike, truth: ArrayLike, *, seed: int, bins: int = 15, target: Target = "class"
) -> float:
    """The mean ECE of a model that is perfectly calibrated and says these probabilities, at this number
    of samples: outcomes are drawn from the probabilities themselves (consistency resampling, Bröcker
    and Smith 2007, https://doi.org/10.1175/WAF993.1). NaN without samples.

    Args and raises: as `metrics.measure`.
    """
    stated, _ = _outcomes(outputs, truth, target)
    if not len(stated):
        return float("nan")
    # In the order of the bins, a bin's sum is one slice.
    where = bins_of(stated, bins)
    order = np.argsort(where, kind="stable")
    stated, starts = np.minimum(stated[order], 1.0), np.flatnonzero(np.diff(where[order], prepend=-1))
    generator = np.random.default_rng(seed)
    repeats = min(CHANCE, max(LEAST, DRAWS // len(stated)))
    total = 0.0
    for _ in range(repeats):
        gaps = stated - (generator.random(len(stated)) < stated)
        total += float(np.abs(np.add.reduceat(gaps, starts)).sum()) / len(stated)
    return total / repeats


def selective(
    p: Floats, label: Ints, confidence: Confidence | None, conformal: Conformal | None
) -> Selective | None:
    """What the head's thresholds do on the test samples; NaN where a threshold is missing, no sample
    reaches it, or a row is no distribution.

    Args:
        p: [N, C], the probabilities of the head's own classes.
        label: [N], the column of the true class; -1 of a class that the head does not know.
    """
    if confidence is None and conformal is None:
        return None
    answered = precision = coverage = set_size = float("nan")
    if len(p) and sound(p, "class").all():
        best, sure = top(p)
        if confidence is not None:
            given = sure >= confidence.threshold
            answered = float(given.mean())
            precision = float((best == label)[given].mean()) if given.any() else float("nan")
        if conformal is not None:
            members = p >= conformal.threshold  # [N, C]
            known = label >= 0
            coverage = float((members[np.arange(len(p)), np.where(known, label, 0)] & known).mean())
            set_size = float(members.sum(axis=1).mean())
    return Selective(answered=answered, precision=precision, coverage=coverage, set_size=set_size)


def _outcomes(outputs: ArrayLike, truth: ArrayLike, target: Target) -> tuple[Floats, NDArray[np.float64]]:
    """The stated probabilities, one a sample (of labels one a label), and whether they came true (0, 1)."""
    if target == "number":
        raise ValueError("a number states no probability")
    o, y = checked(outputs, truth, target)
    good = sound(o, target)
    o, y = o[good], _rows(y, good)
    if target == "labels":
        return o.ravel(), y.astype(np.float64).ravel()
    best, confidence = top(o)
    return confidence, (best == y).astype(np.float64)


def _rows(truth: Truth, good: NDArray[np.bool_]) -> Truth:
    return truth[good]
