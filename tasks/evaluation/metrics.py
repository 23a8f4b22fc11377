"""Metrics on test samples with bootstrap intervals, of classes, labels and numbers.

Legend: N samples, U units (samples, or groups of them), C classes or labels, M calibration bins,
B resamples, K statistics (see `sums`).
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

from tasks.evaluation import sums
from tasks.evaluation.sums import CLASS_METRICS, Floats, Ints, Sums
from tasks.params import METRICS
from tasks.records import Interval, Target

CHUNK = 4_000_000  # counts held at once (32 MB)
ALPHA = 0.05

# What is true of a test sample: a column of the outputs [N], which columns are labels [N, C], or the
# number [N].
Truth = NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """Point estimates and what they are on each resample. Undefined values are NaN."""

    target: Target
    seed: int
    outputs: Floats  # [N, C]
    truth: Truth  # [N], of labels [N, C]
    units: Ints  # [N], what is drawn together: 0 to U - 1
    sums: Sums | None  # by unit; none where the outputs can't be judged
    points: dict[str, float]  # metric -> value
    draws: dict[str, Floats]  # metric -> [B]
    class_points: dict[str, Floats]  # precision, recall, f1 -> [C]; of a number nothing
    class_draws: dict[str, Floats]  # precision, recall, f1 -> [C, B]

    @property
    def size(self) -> int:
        """U, how many units are drawn."""
        return int(self.units.max(initial=-1)) + 1

    def intervals(self, alpha: float = ALPHA) -> dict[str, Interval]:
        """Each metric with its 1 - alpha interval."""
        return {
            name: interval(self.points[name], draws, units=self.size, alpha=alpha)
            for name, draws in self.draws.items()
        }

    def standard_errors(self) -> dict[str, float]:
        """Metric -> standard error."""
        return {
            name: standard_error(self.points[name], draws, units=self.size)
            for name, draws in self.draws.items()
        }

    def per_class(self, classes: Sequence[str], alpha: float = ALPHA) -> dict[str, dict[str, Interval]]:
        """Precision, recall and F1 of each class with their 1 - alpha intervals.

        A ratio without a denominator (the precision of a class that is never predicted) is 0, as
        in scikit-learn; resamples in which it has none are left out of the interval.
        """
        return {
            label: {
                name: interval(self.class_points[name][i], draws[i], units=self.size, alpha=alpha)
                for name, draws in self.class_draws.items()
            }
            for i, label in enumerate(classes)
        }


def measure(
    outputs: ArrayLike, truth: ArrayLike, *, target: Target = "class", bins: int = 15
) -> dict[str, float]:
    """The point estimates of METRICS[target].

    Of classes, from probabilities [N, C]:

    - accuracy: share of samples whose top class is the label;
    - balanced_accuracy: mean recall over the classes among the labels;
    - macro_f1: mean F1 over the classes among labels and predictions;
    - log_loss: mean of -ln p(label), with p clipped to [EPS, 1 - EPS];
    - brier: mean over samples of the squared error summed over classes, 0 to 2 (Brier 1950,
      https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), also with two classes;
    - ece: expected calibration error, the mean distance of accuracy and top probability over
      equal-width bins, weighted by their samples (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Of labels, from a probability each [N, C]; from .5 on a label is predicted:

    - subset_accuracy: share of samples with every label right;
    - macro_f1, micro_f1: mean F1 over the labels that are true or predicted; F1 of all together;
    - log_loss, brier: of each label as a yes or no, mean over samples and labels;
    - ece: of all probabilities, against the share of them that are true.

    Of numbers, from values [N, 1]: r2 (1 - squared error / squared distance from the mean), mae, rmse.

    Args:
        outputs: [N, C]; probabilities of classes sum to 1.
        truth: column of the true class [N], the true labels [N, C] (bool), or the number [N].
        bins: M.

    Returns:
        Metric -> value. All are NaN where there are no samples, or any row can't be judged (see
        `sums.sound`): a metric of the other rows would look better than the model is.

    Raises:
        ValueError: the shapes do not fit, or the truth is not of this target.
    """
    return bootstrap(outputs, truth, resamples=0, seed=0, bins=bins, target=target).points


def bootstrap(
    outputs: ArrayLike,
    truth: ArrayLike,
    *,
    resamples: int,
    seed: int,
    bins: int = 15,
    target: Target = "class",
    groups: Sequence[Hashable] | None = None,
) -> Bootstrap:
    """`measure`, and the same on `resamples` bootstrap resamples.

    Equal `seed`, `resamples` and U give equal resamples: two models that are bootstrapped alike
    on the same samples are paired resample by resample. See Efron and Tibshirani, An Introduction
    to the Bootstrap (1993), chapter 13.

    Samples of one group (images of one part, of one patient) are alike, and tell less than as many
    single ones; so whole groups are drawn (cluster bootstrap, Davison and Hinkley 1997, 3.8).

    A class can vanish from a resample; balanced accuracy and macro F1 are means over the classes
    that the resample has.

    Args:
        groups: of each sample [N]; None: each is one of its own.

    Other args and raises: as `measure`.
    """
    o, y = checked(outputs, truth, target)
    units = _units(groups, len(o))
    valid = len(o) > 0 and bool(sums.sound(o, target).all())
    if not valid:
        return _undefined(target, seed, o, y, units, resamples)
    parts = sums.of(o, y, target, bins).by_unit(units)
    points, class_points = parts.formulas(parts.total()[:, None])
    draws: dict[str, list[Floats]] = {name: [] for name in points}
    class_draws: dict[str, list[Floats]] = {name: [] for name in class_points}
    for counts in resample_counts(parts.statistics.shape[1], resamples, seed):
        some, some_of_class = parts.formulas(parts.statistics @ np.ascontiguousarray(counts.T))
        for name, values in some.items():
            draws[name].append(values)
        for name, values in some_of_class.items():
            class_draws[name].append(values)
    return Bootstrap(
        target=target,
        seed=seed,
        outputs=o,
        truth=y,
        units=units,
        sums=parts,
        points={name: float(value[0]) for name, value in points.items()},
        draws={name: np.concatenate([*chunks, np.empty(0)]) for name, chunks in draws.items()},
        class_points={name: np.nan_to_num(value[:, 0], nan=0.0) for name, value in class_points.items()},
        class_draws={
            name: np.concatenate([*chunks, np.empty((o.shape[1], 0))], axis=1)
            for name, chunks in class_draws.items()
        },
    )


def resample_counts(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample drew each unit: chunks [b, U] of multinomial counts, B rows in all.

    A chunk is overwritten by the next one. The counts depend on U, B's position and the seed only.
    """
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK // max(units, 1))
    counts = np.empty((min(chunk, resamples), units))  # [b, U]
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        for row in range(size):
            # The same law as Generator.multinomial, at half the time for large U.
            drawn = generator.integers(0, units, size=units, dtype=np.uint32)
            counts[row] = np.bincount(drawn, minlength=units)
        yield counts[:size]


def interval(point: float, draws: Floats, *, units: int, alpha: float = ALPHA) -> Interval:
    """The percentile 1 - alpha interval of `draws` [B]; those that are undefined are left out.

    Percentiles are too narrow where few units are drawn; they are taken further out, as far as a t
    interval is wider than a normal one (Hesterberg 2015, https://arxiv.org/abs/1411.5279, the expanded
    percentile interval). The interval has no width where all resamples agree (an accuracy of exactly
    1). Resampling adds to the ECE, which noise only ever raises, so the interval of a small ECE lies
    to the right of its point estimate; it is widened to hold the point.

    Args:
        units: U, from how many each resample was drawn.
    """
    if not np.isfinite(point):
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    defined = draws[np.isfinite(draws)]
    if defined.size == 0:
        return Interval(value=point, low=point, high=point)
    tail = alpha / 2
    if units > 1:
        tail = float(ndtr(np.sqrt(units / (units - 1)) * stdtrit(units - 1, tail)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value=point, low=min(low, point), high=max(high, point))


def standard_error(point: float, draws: Floats, *, units: int) -> float:
    """The standard deviation of `draws` [B]; NaN where there is one unit, or the point is undefined.

    Drawing U of U makes the variance (U - 1) / U of what it should be.
    """
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(point) or defined.size < 2 or units < 2:
        return np.nan
    return float(defined.std(ddof=1) * np.sqrt(units / (units - 1)))


def checked(outputs: ArrayLike, truth: ArrayLike, target: Target) -> tuple[Floats, Truth]:
    """Outputs [N, C] and the truth in the types of the target.

    Raises:
        ValueError: they do not fit each other or the target.
    """
    o = np.asarray(outputs, dtype=np.float64)
    given = np.asarray(truth)
    shape = o.shape if target == "labels" else o.shape[:1]
    if o.ndim != 2 or given.shape != shape or o.shape[1] == 0 or (target == "number" and o.shape[1] != 1):
        meant = {"class": "[N, C] and [N]", "labels": "[N, C] and [N, C]", "number": "[N, 1] and [N]"}[target]
        raise ValueError(f"outputs {list(o.shape)} and truth {list(given.shape)} are not {meant}")
    if target == "labels":
        return o, given.astype(np.bool_)
    if target == "number":
        y = given.astype(np.float64)
        if not np.isfinite(y).all():
            raise ValueError("the true numbers must be finite")
        return o, y
    columns = given.astype(np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= o.shape[1]):
        raise ValueError(
            f"labels must be columns 0 to {o.shape[1] - 1}, found {columns.min()} to {columns.max()}"
        )
    return o, columns


def _units(groups: Sequence[Hashable] | None, n: int) -> Ints:
    """The unit of each sample [N], numbered as they first come."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups are not those of {n} samples")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)


def _undefined(target: Target, seed: int, o: Floats, y: Truth, units: Ints, resamples: int) -> Bootstrap:
    """NaN for every number."""
    c = o.shape[1]
    names = () if target == "number" else CLASS_METRICS
    return Bootstrap(
        target=target,
        seed=seed,
        outputs=o,
        truth=y,
        units=units,
        sums=None,
        points=dict.fromkeys(METRICS[target], np.nan),
        draws={name: np.full(resamples, np.nan) for name in METRICS[target]},
        class_points={name: np.full(c, np.nan) for name in names},
        class_draws={name: np.full((c, resamples), np.nan) for name in names},
    )
