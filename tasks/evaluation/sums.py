"""What the metrics are made of: sums over samples.

Every metric is a function of sums over samples, so a sample becomes a sparse column of K statistics.
One set of formulas then serves the point estimate (sum over all columns), bootstrap resamples (a
matrix product with how often each was drawn) and the paired test (what a pair adds to the difference).

Legend: N samples, U units (samples, or groups of them), C classes or labels, M calibration bins,
B resamples, K statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tasks.params import METRICS
from tasks.records import Target

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASS_METRICS = ("precision", "recall", "f1")
EPS = float(np.finfo(np.float64).eps)  # least probability in the log loss, as in scikit-learn
SUM_TOLERANCE = 1e-3  # how far from 1 a row of probabilities may sum: float32 softmax is far closer
THRESHOLD = 0.5  # a label from this probability on is predicted
TAIL = 4  # rows after those of classes and bins: log loss, squared error, all right, samples


@dataclass(frozen=True)
class Sums:
    """The statistics of one model's outputs, column by column."""

    target: Target
    classes: int  # C; of a number 0
    bins: int  # M
    statistics: sparse.csr_array  # [K, U]

    def total(self) -> Floats:
        """[K], over all units."""
        return np.asarray(self.statistics @ np.ones(self.statistics.shape[1]))

    def by_unit(self, units: Ints) -> "Sums":
        """The columns of the same unit added up: [K, N] -> [K, U], `units` [N] being 0 to U - 1."""
        n = len(units)
        if n and np.array_equal(units, np.arange(n)):
            return self
        member = sparse.csr_array(
            (np.ones(n), (np.arange(n), units)), shape=(n, int(units.max(initial=-1)) + 1)
        )
        return Sums(self.target, self.classes, self.bins, sparse.csr_array(self.statistics @ member))

    def formulas(self, sums: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """From sums [K, B]: metric -> [B], and class metric -> [C, B] with NaN where the denominator
        is 0. A metric that is undefined (a mean over no class, an R² of equal numbers) is NaN."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.target == "number":
                return _number_formulas(sums), {}
            return _class_formulas(sums, self.target, self.classes)

    def at_stake(self) -> dict[str, float]:
        """Metric that counts right answers -> what it would lose, at most, if one unit were all right and
        turned all wrong. Of F1 it is that of the recall: what a lost hit costs of either is about alike."""
        if self.target == "number" or not self.statistics.shape[1]:
            return {}
        totals, given = self.total(), self.statistics[: self.classes]  # [K], [C, U]
        support = totals[: self.classes]
        present = max(int((support > 0).sum()), 1)
        share = np.where(support > 0, 1 / np.maximum(support, 1), 0.0) / present  # of a sample of the class
        of_classes = float(np.max(share @ given))
        of_labels = float(np.max(given.sum(axis=0))) / max(float(support.sum()), 1.0)
        of_samples = float(np.max(self.statistics[[-1]].toarray())) / float(totals[-1])
        found = {
            "accuracy": of_samples,
            "subset_accuracy": of_samples,
            "balanced_accuracy": of_classes,
            "macro_f1": of_classes,
            "micro_f1": of_labels,
        }
        return {name: found[name] for name in METRICS[self.target] if name in found}

    def weights(self, one: Floats, other: Floats) -> dict[str, Floats]:
        """Metric -> w [K] for two models with the sums `one` and `other` [K] on the same samples, so that
        w · (one - other) is the difference of the metric, and w · (their columns of a unit) what that
        unit adds to it. Undefined terms count as 0.

        Sums of products and quotients are split evenly between the two: a b - a' b' =
        (a - a')(b + b')/2 + (b - b')(a + a')/2.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.target == "number":
                found = _number_weights(one, other)
            else:
                found = _class_weights(one, other, self.target, self.classes)
        return {
            name: np.nan_to_num(found[name], nan=0.0, posinf=0.0, neginf=0.0) for name in METRICS[self.target]
        }


def sound(outputs: Floats, target: Target) -> NDArray[np.bool_]:
    """Which rows [N] of outputs [N, C] can be judged: of classes finite, in [0, 1], with sum 1; of labels
    finite and in [0, 1]; of a number finite."""
    if target == "number":
        return np.asarray(np.isfinite(outputs).all(axis=1), dtype=np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        inside = ((outputs >= 0) & (outputs <= 1 + SUM_TOLERANCE)).all(axis=1)
        if target == "class":
            inside &= np.abs(outputs.sum(axis=1) - 1) <= SUM_TOLERANCE
    return np.asarray(inside, dtype=np.bool_)


def of(outputs: Floats, truth: NDArray[np.generic], target: Target, bins: int) -> Sums:
    """The statistics of sound outputs [N, C] beside the truth (class [N], labels [N, C], number [N])."""
    if target == "number":
        y = np.asarray(truth, dtype=np.float64)
        return Sums(target, 0, bins, _of_number(outputs[:, 0], y))
    if target == "labels":
        return Sums(
            target, outputs.shape[1], bins, _of_labels(outputs, np.asarray(truth, dtype=np.bool_), bins)
        )
    return Sums(target, outputs.shape[1], bins, _of_class(outputs, np.asarray(truth, dtype=np.int64), bins))


def top(p: Floats) -> tuple[Ints, Floats]:
    """The top class [N] and its probability [N]; of equals the first."""
    best = p.argmax(axis=1)
    return best, p[np.arange(len(p)), best]


def bins_of(confidence: Floats, bins: int) -> Ints:
    """The bin of each confidence; bin m is (m / M, (m + 1) / M], and the first has 0 too."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def right(outputs: Floats, truth: NDArray[np.generic], target: Target) -> NDArray[np.bool_]:
    """Which samples [N] are all right: the top class, or every label."""
    if target == "labels":
        return np.asarray(((outputs >= THRESHOLD) == truth).all(axis=1), dtype=np.bool_)
    return np.asarray(outputs.argmax(axis=1) == truth, dtype=np.bool_)


def _of_class(p: Floats, y: Ints, bins: int) -> sparse.csr_array:
    """[K, N], at most eight entries a sample: is of class c (C rows), is predicted c (C), is c and
    predicted c (C), confidence - correctness in bin m (M), and the TAIL."""
    n, c = p.shape
    sample = np.arange(n)
    best, confidence = top(p)
    correct = best == y
    p_label = p[sample, y]
    squares = np.einsum("nc,nc->n", p, p) - p_label**2 + (1 - p_label) ** 2
    hits = sample[correct]
    ones = np.ones(n)
    entries = [
        (y, sample, ones),
        (c + best, sample, ones),
        (2 * c + y[hits], hits, ones[hits]),
        (3 * c + bins_of(confidence, bins), sample, confidence - correct),
        *_tail(3 * c + bins, -np.log(np.clip(p_label, EPS, 1 - EPS)), squares, correct),
    ]
    return _sparse(entries, (3 * c + bins + TAIL, n))


def _of_labels(p: Floats, t: NDArray[np.bool_], bins: int) -> sparse.csr_array:
    """[K, N] in the rows of `_of_class`; gaps, log loss and squared error are means over the labels."""
    n, c = p.shape
    predicted = p >= THRESHOLD
    where = bins_of(p, bins) + bins * np.arange(n)[:, None]  # [N, C]
    gaps = np.bincount(where.ravel(), weights=((p - t) / c).ravel(), minlength=bins * n).reshape(n, bins)
    clipped = np.clip(p, EPS, 1 - EPS)
    log_loss = -np.where(t, np.log(clipped), np.log1p(-clipped)).mean(axis=1)
    entries: list[Entries] = []
    for start, marked in ((0, t), (c, predicted), (2 * c, t & predicted)):
        samples, labels = np.nonzero(marked)
        entries.append((labels + start, samples, np.ones(len(samples), dtype=np.float64)))
    samples, filled = np.nonzero(gaps)
    entries.append((filled + 3 * c, samples, np.asarray(gaps[samples, filled], dtype=np.float64)))
    entries += _tail(3 * c + bins, log_loss, ((p - t) ** 2).mean(axis=1), (predicted == t).all(axis=1))
    return _sparse(entries, (3 * c + bins + TAIL, n))


def _of_number(predicted: Floats, y: Floats) -> sparse.csr_array:
    """[5, N]: absolute error, squared error, y and y² (y from its mean, so that no digits are lost), 1."""
    error, centred = predicted - y, y - (y.mean() if len(y) else 0.0)
    return sparse.csr_array(np.stack([np.abs(error), error**2, centred, centred**2, np.ones(len(y))]))


Entries = tuple[NDArray[Any], NDArray[Any], Floats]  # rows, columns, values


def _tail(start: int, log_loss: Floats, squares: Floats, correct: NDArray[np.bool_]) -> list[Entries]:
    n = len(log_loss)
    rows = (log_loss, squares, correct.astype(np.float64), np.ones(n))
    return [(np.full(n, start + at), np.arange(n), values) for at, values in enumerate(rows)]


def _sparse(entries: list[Entries], shape: tuple[int, int]) -> sparse.csr_array:
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    return sparse.csr_array((values, (rows, columns)), shape=shape)


def _class_formulas(sums: Floats, target: Target, c: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    support, predicted, correct = sums[:c], sums[c : 2 * c], sums[2 * c : 3 * c]  # each [C, B]
    gaps, (log_loss, squares, right_ones, n) = sums[3 * c : -TAIL], sums[-TAIL:]  # [M, B], each [B]
    precision, recall = correct / predicted, correct / support
    f1 = 2 * correct / (support + predicted)
    metrics = {
        "accuracy": right_ones / n,
        "subset_accuracy": right_ones / n,
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        "micro_f1": 2 * correct.sum(axis=0) / (support.sum(axis=0) + predicted.sum(axis=0)),
        "log_loss": log_loss / n,
        "brier": squares / n,
        "ece": np.abs(gaps).sum(axis=0) / n,
    }
    of_class = {"precision": precision, "recall": recall, "f1": f1}
    return {name: metrics[name] for name in METRICS[target]}, of_class


def _number_formulas(sums: Floats) -> dict[str, Floats]:
    absolute, squares, _, _, n = sums
    return {
        "r2": 1 - squares / _spread(sums),
        "mae": absolute / n,
        "rmse": np.sqrt(squares / n),
    }


def _spread(sums: Floats) -> Floats:
    """Σ (y - mean)²; NaN where all y are equal but for rounding."""
    _, _, y, y2, n = sums
    spread = y2 - y**2 / n
    return np.where(spread > 1e-12 * y2, spread, np.nan)


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the classes that are not NaN: [C, B] -> [B]."""
    defined = ~np.isnan(values)
    means: Floats = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return means


def _class_weights(one: Floats, other: Floats, target: Target, c: int) -> Mapping[str, Floats]:
    k, n, support = len(one), one[-1], one[:c]
    rows = {"log_loss": k - 4, "brier": k - 3, "accuracy": k - 2, "subset_accuracy": k - 2}
    found = {name: np.eye(1, k, row)[0] / n for name, row in rows.items()}

    recall = np.zeros(k)
    recall[2 * c : 3 * c] = 1 / np.where(support > 0, support, np.inf) / max((support > 0).sum(), 1)
    gaps, others = one[3 * c : -TAIL], other[3 * c : -TAIL]
    ece = np.zeros(k)
    ece[3 * c : -TAIL] = (np.abs(gaps) - np.abs(others)) / (gaps - others) / n

    # F1 = 2 hits / size, with size = labelled + predicted.
    sizes = [model[:c] + model[c : 2 * c] for model in (one, other)]
    shared = max(((sizes[0] > 0) | (sizes[1] > 0)).sum(), 1)
    macro = np.zeros(k)
    macro[c : 2 * c], macro[2 * c : 3 * c] = _f1_weights(
        one[2 * c : 3 * c], other[2 * c : 3 * c], sizes[0], sizes[1]
    )
    micro = np.zeros(k)
    of_predicted, of_hits = _f1_weights(
        one[2 * c : 3 * c].sum(), other[2 * c : 3 * c].sum(), sizes[0].sum(), sizes[1].sum()
    )
    micro[c : 2 * c], micro[2 * c : 3 * c] = of_predicted, of_hits
    return {**found, "balanced_accuracy": recall, "ece": ece, "macro_f1": macro / shared, "micro_f1": micro}


def _f1_weights(hits: Floats, others: Floats, size: Floats, other_size: Floats) -> tuple[Floats, Floats]:
    """Of a predicted sample and of a hit, in 2 hits / size - 2 others / other_size."""
    inverse, other_inverse = (np.where(s > 0, 1 / np.maximum(s, 1), 0.0) for s in (size, other_size))
    return -(hits + others) * inverse * other_inverse, inverse + other_inverse


def _number_weights(one: Floats, other: Floats) -> Mapping[str, Floats]:
    absolute, squares = np.eye(2, len(one))
    n = one[-1]
    return {
        "mae": absolute / n,
        # √a - √b = (a - b) / (√a + √b)
        "rmse": squares / n / (np.sqrt(one[1] / n) + np.sqrt(other[1] / n)),
        "r2": -squares / _spread(one[:, None])[0],
    }
