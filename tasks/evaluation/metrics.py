"""Classification metrics with bootstrap intervals, from class probabilities.

Every metric here is a function of sums over samples, so a sample becomes a sparse column of K
statistics, and a bootstrap resample (how often each sample was drawn) a vector of counts: one
matrix product gives the sums of many resamples, and one set of formulas serves the point
estimate and the resamples alike.

Legend: N samples, C classes, M calibration bins, B resamples, K = 3 C + M + 2 statistics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tasks.params import METRICS
from tasks.records import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASS_METRICS = ("precision", "recall", "f1")
EPS = float(np.finfo(np.float64).eps)  # least probability in the log loss, as in scikit-learn
SUM_TOLERANCE = 1e-3  # how far from 1 a row of probabilities may sum: float32 softmax is far closer
CHUNK = 4_000_000  # counts held at once (32 MB)


@dataclass(frozen=True)
class Bootstrap:
    """Point estimates and what they are on each resample. Undefined values are NaN."""

    seed: int
    labels: Ints  # [N]
    points: dict[str, float]  # metric -> value
    draws: dict[str, Floats]  # metric -> [B]
    class_points: dict[str, Floats]  # precision, recall, f1 -> [C]
    class_draws: dict[str, Floats]  # precision, recall, f1 -> [C, B]

    def intervals(self) -> dict[str, Interval]:
        """Each metric with its 95 % interval."""
        return {name: interval(self.points[name], self.draws[name]) for name in METRICS}

    def per_class(self, classes: Sequence[str]) -> dict[str, dict[str, Interval]]:
        """Precision, recall and F1 of each class with their 95 % intervals.

        A ratio without a denominator (the precision of a class that is never predicted) is 0, as
        in scikit-learn; resamples in which it has none are left out of the interval.
        """
        return {
            label: {
                name: interval(self.class_points[name][i], self.class_draws[name][i])
                for name in CLASS_METRICS
            }
            for i, label in enumerate(classes)
        }


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins; NaN where a bin is empty."""

    confidence: Floats  # [M] mean top probability
    accuracy: Floats  # [M]
    count: Ints  # [M]


def measure(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> dict[str, float]:
    """The point estimates of all METRICS.

    - accuracy: share of samples whose top class is the label;
    - balanced_accuracy: mean recall over the classes among the labels;
    - macro_f1: mean F1 over the classes among labels and predictions;
    - log_loss: mean of -ln p(label), with p clipped to [EPS, 1 - EPS];
    - brier: mean over samples of the squared error summed over classes, 0 to 2 (Brier 1950,
      https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), also with two classes;
    - ece: expected calibration error, the mean distance of accuracy and top probability over
      equal-width bins, weighted by their samples (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: [N, C], rows that sum to 1.
        labels: [N], column of the true class.
        bins: M.

    Returns:
        Metric -> value. All are NaN where there are no samples, or any row is not a distribution
        (see `distributions`): a metric of the other rows would look better than the model is.

    Raises:
        ValueError: the shapes do not fit, or a label is not a column.
    """
    return bootstrap(probabilities, labels, resamples=0, seed=0, bins=bins).points


def bootstrap(
    probabilities: ArrayLike, labels: ArrayLike, *, resamples: int, seed: int, bins: int = 15
) -> Bootstrap:
    """`measure`, and the same on `resamples` bootstrap resamples of the samples.

    Equal `seed`, `resamples` and N give equal resamples: two models that are bootstrapped alike
    on the same samples are paired resample by resample. See Efron and Tibshirani, An Introduction
    to the Bootstrap (1993), chapter 13.

    A class can vanish from a resample; balanced accuracy and macro F1 are means over the classes
    that the resample has.

    Args and raises: as `measure`.
    """
    p, y = _checked(probabilities, labels)
    valid = len(y) > 0 and bool(distributions(p).all())
    if not valid:
        return _undefined(seed, y, p.shape[1], resamples)
    statistics = _statistics(p, y, bins)  # [K, N]
    points, class_points = _formulas(statistics @ np.ones((len(y), 1)), p.shape[1])
    draws: dict[str, list[Floats]] = {name: [] for name in METRICS}
    class_draws: dict[str, list[Floats]] = {name: [] for name in CLASS_METRICS}
    for counts in resample_counts(len(y), resamples, seed):
        some, some_of_class = _formulas(statistics @ np.ascontiguousarray(counts.T), p.shape[1])
        for name in METRICS:
            draws[name].append(some[name])
        for name in CLASS_METRICS:
            class_draws[name].append(some_of_class[name])
    return Bootstrap(
        seed=seed,
        labels=y,
        points={name: float(value[0]) for name, value in points.items()},
        draws={name: np.concatenate([*chunks, np.empty(0)]) for name, chunks in draws.items()},
        class_points={name: np.nan_to_num(value[:, 0], nan=0.0) for name, value in class_points.items()},
        class_draws={
            name: np.concatenate([*chunks, np.empty((p.shape[1], 0))], axis=1)
            for name, chunks in class_draws.items()
        },
    )


def resample_counts(samples: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample drew each sample: chunks [b, N] of multinomial counts, B rows in all.

    A chunk is overwritten by the next one. The counts depend on N, B's position and the seed only.
    """
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK // max(samples, 1))
    counts = np.empty((min(chunk, resamples), samples))  # [b, N]
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        for row in range(size):
            # The same law as Generator.multinomial, at half the time for large N.
            drawn = generator.integers(0, samples, size=samples, dtype=np.uint32)
            counts[row] = np.bincount(drawn, minlength=samples)
        yield counts[:size]


def interval(point: float, draws: Floats) -> Interval:
    """The percentile 95 % interval of `draws` [B]; those that are undefined are left out.

    The percentile method is too narrow for very few samples, and has no width where all
    resamples agree (an accuracy of exactly 1). Resampling adds to the ECE, which noise only ever
    raises, so the interval of a small ECE lies to the right of its point estimate; it is widened to
    hold the point.
    """
    if not np.isfinite(point):
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    defined = draws[np.isfinite(draws)]
    if defined.size == 0:
        return Interval(value=point, low=point, high=point)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(value=point, low=min(low, point), high=max(high, point))


def distributions(probabilities: Floats) -> NDArray[np.bool_]:
    """Which rows [N] of [N, C] are probability distributions: finite, in [0, 1], with sum 1."""
    with np.errstate(invalid="ignore", over="ignore"):
        inside = ((probabilities >= 0) & (probabilities <= 1 + SUM_TOLERANCE)).all(axis=1)
        whole = np.abs(probabilities.sum(axis=1) - 1) <= SUM_TOLERANCE
    return np.asarray(inside & whole, dtype=np.bool_)


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> Reliability:
    """The bins behind the ECE. Rows that are not distributions are left out.

    Args and raises: as `measure`.
    """
    p, y = _checked(probabilities, labels)
    good = distributions(p)
    p, y = p[good], y[good]
    top, confidence = _top(p)
    where = _bins(confidence, bins)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            confidence=np.bincount(where, weights=confidence, minlength=bins) / count,
            accuracy=np.bincount(where, weights=(top == y).astype(float), minlength=bins) / count,
            count=count,
        )


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.shape[1] == 0:
        raise ValueError(f"probabilities {list(p.shape)} and labels {list(y.shape)} are not [N, C] and [N]")
    if y.size and (y.min() < 0 or y.max() >= p.shape[1]):
        raise ValueError(f"labels must be columns 0 to {p.shape[1] - 1}, found {y.min()} to {y.max()}")
    return p, y


def _top(p: Floats) -> tuple[Ints, Floats]:
    """The top class [N] and its probability [N]; of equals the first."""
    top = p.argmax(axis=1)
    return top, p[np.arange(len(p)), top]


def _bins(confidence: Floats, bins: int) -> Ints:
    """The bin [N] of each confidence; bin m is (m / M, (m + 1) / M], and the first has 0 too."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _statistics(p: Floats, y: Ints, bins: int) -> sparse.csr_array:
    """[K, N], at most six entries a sample: is of class c (C rows), is predicted c (C), is c and
    predicted c (C), confidence - correctness in bin m (M), log loss, squared error."""
    n, c = p.shape
    sample = np.arange(n)
    top, confidence = _top(p)
    correct = top == y
    p_label = p[sample, y]
    log_loss = -np.log(np.clip(p_label, EPS, 1 - EPS))
    squares = np.einsum("nc,nc->n", p, p) - p_label**2 + (1 - p_label) ** 2
    hits = sample[correct]
    rows = np.concatenate(
        [
            y,
            c + top,
            2 * c + y[hits],
            3 * c + _bins(confidence, bins),
            np.full(n, 3 * c + bins),
            np.full(n, 3 * c + bins + 1),
        ]
    )
    columns = np.concatenate([sample, sample, hits, sample, sample, sample])
    ones = np.ones(n)
    values = np.concatenate([ones, ones, ones[hits], confidence - correct, log_loss, squares])
    return sparse.csr_array((values, (rows, columns)), shape=(3 * c + bins + 2, n))


def _formulas(sums: Floats, c: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """From the sums [K, B] of `_statistics`: metric -> [B], and class metric -> [C, B] with NaN
    where the denominator is 0."""
    support, predicted, correct = sums[:c], sums[c : 2 * c], sums[2 * c : 3 * c]  # each [C, B]
    gaps, log_loss, squares = sums[3 * c : -2], sums[-2], sums[-1]  # [M, B], [B], [B]
    n = support.sum(axis=0)
    with np.errstate(invalid="ignore"):
        precision, recall = correct / predicted, correct / support
        f1 = 2 * correct / (support + predicted)
    metrics = {
        "accuracy": correct.sum(axis=0) / n,
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        "log_loss": log_loss / n,
        "brier": squares / n,
        "ece": np.abs(gaps).sum(axis=0) / n,
    }
    return metrics, {"precision": precision, "recall": recall, "f1": f1}


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the classes that are not NaN: [C, B] -> [B]."""
    defined = ~np.isnan(values)
    means: Floats = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return means


def _undefined(seed: int, y: Ints, c: int, resamples: int) -> Bootstrap:
    """NaN for every number."""
    return Bootstrap(
        seed=seed,
        labels=y,
        points=dict.fromkeys(METRICS, np.nan),
        draws={name: np.full(resamples, np.nan) for name in METRICS},
        class_points={name: np.full(c, np.nan) for name in CLASS_METRICS},
        class_draws={name: np.full((c, resamples), np.nan) for name in CLASS_METRICS},
    )
