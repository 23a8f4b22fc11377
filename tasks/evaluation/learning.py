"""The learning curve: what more labels have brought so far, and what twice as many may bring."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation.sums import Floats, Ints
from tasks.params import LOWER_IS_BETTER
from tasks.records import CurvePoint, Interval

FRACTIONS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Trained:
    """A head that was trained on part of the training samples, and judged on all test samples."""

    fraction: float
    samples: int
    value: float  # of the metric
    draws: Floats  # [B], on the same resamples of the test samples for all


def fits(
    judge: Callable[[Ints], tuple[float, Floats]],
    strata: Sequence[str],
    keys: Sequence[str],
    repeats: int,
    seed: int,
) -> list[Trained]:
    """Trains on a tenth, a quarter and half of the samples, `repeats` times each, and once on all.

    Args:
        judge: trains on these rows; the metric and its bootstrap draws [B].
        strata: [N] class of each training sample; each keeps its share, and one sample at least.
        keys: [N] group, or content, of each: those of one key are taken together as far as the shares
            allow, or a tenth of near-copies would be as good as all.
    """
    found = []
    for fraction in FRACTIONS:
        for repeat in range(repeats if fraction < 1 else min(repeats, 1)):
            rows = part(strata, keys, fraction, f"{seed} {repeat}")
            value, draws = judge(rows)
            found.append(Trained(fraction, len(rows), value, draws))
    return found


def part(strata: Sequence[str], keys: Sequence[str], fraction: float, seed: str) -> Ints:
    """Rows, in order, of a share of each stratum (rounded up), by a seeded hash of their keys. Of equal
    seeds, a smaller share is part of a larger one."""
    rows_of: dict[str, list[int]] = {}
    for row, stratum in enumerate(strata):
        rows_of.setdefault(stratum, []).append(row)
    places = {key: hashlib.sha256(f"{seed} {key}".encode()).digest() for key in set(keys)}
    taken: list[int] = []
    for rows in rows_of.values():
        rows.sort(key=lambda row: (places[keys[row]], row))
        taken += rows[: math.ceil(fraction * len(rows))]
    return np.array(sorted(taken), dtype=np.int64)


def points(trained: Sequence[Trained]) -> tuple[CurvePoint, ...]:
    """The mean and the range of each fraction's repeats."""
    found = []
    for fraction in sorted({one.fraction for one in trained}):
        some = [one for one in trained if one.fraction == fraction]
        values = [one.value for one in some]
        found.append(
            CurvePoint(
                fraction=fraction,
                samples=round(float(np.mean([one.samples for one in some]))),
                value=float(np.mean(values)),
                low=float(np.min(values)),
                high=float(np.max(values)),
            )
        )
    return tuple(found)


def doubled(
    trained: Sequence[Trained], metric: str, test_samples: int, alpha: float, seed: int
) -> Interval | None:
    """The metric with twice the training samples, if its error goes on falling as a power of their
    number (Hestness et al. 2017, https://arxiv.org/abs/1712.00409): error(2 n) = error(n) / 2^b.

    b is the least-squares slope of the logarithms over all of `trained`, 0 where it would be negative.
    The error is the metric itself where lower is better, else its distance from 1. The interval
    (1 - alpha) holds the noise of the test samples, by the slope and the error of each bootstrap
    resample, and that of the training samples, by Student's t of the slope. It says nothing of data
    that is unlike the present.

    Returns:
        None where the numbers are too few or undefined.
    """
    lower = metric in LOWER_IS_BETTER
    values = np.array([one.value for one in trained])
    sizes = np.log([one.samples for one in trained])
    if len(trained) < 3 or len(set(sizes)) < 2 or not np.isfinite(values).all():
        return None
    centred = sizes - sizes.mean()  # [P]
    spread = float(centred @ centred)

    def errors(some: Floats) -> Floats:
        # None can be told from less than half a sample.
        found: Floats = np.maximum(some if lower else 1 - some, 0.5 / max(test_samples, 1))
        return found

    logs = np.log(errors(values))  # [P]
    slope = float(centred @ logs) / spread
    residuals = logs - logs.mean() - slope * centred
    deviation = math.sqrt(float(residuals @ residuals) / (len(trained) - 2) / spread)

    def at_twice(error: Floats, slopes: Floats) -> Floats:
        ahead: Floats = error * 2 ** np.minimum(slopes, 0)
        found: Floats = ahead if lower else 1 - ahead
        return found

    largest = int(sizes.argmax())
    measured = values[largest] if lower else 1 - values[largest]  # none is none, with more samples too
    value = float(at_twice(np.array(measured), np.array(slope)))
    draws = np.array([one.draws for one in trained])  # [P, B]
    draws = errors(draws[:, np.isfinite(draws).all(axis=0)])
    if draws.shape[1] == 0:
        return Interval(value=value, low=value, high=value)
    slopes = centred @ np.log(draws) / spread  # [B]
    chance = np.random.default_rng(seed).standard_t(len(trained) - 2, size=len(slopes))
    low, high = np.quantile(at_twice(draws[largest], slopes + deviation * chance), [alpha / 2, 1 - alpha / 2])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
