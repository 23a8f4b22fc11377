"""What a test set can show: the smallest difference between two models that it would detect."""

import math
from collections.abc import Mapping

from scipy.special import gammaincinv, ndtri

from tasks.records import Difference, Evaluation

POWER = 0.8
# Of these one sample is right or wrong, and differences come in steps.
COUNTED = frozenset({"accuracy", "balanced_accuracy", "macro_f1", "subset_accuracy", "micro_f1"})


def detectable(evaluation: Evaluation, metric: str) -> float:
    """The smallest true difference in `metric` that the test split shows with 80 % probability, at the
    ends of 1 - alpha intervals: (z(1 - alpha/2) + z(.8)) standard errors (Cohen 1988).

    The standard error is that of the paired difference from the champion. Without a champion, that of a
    difference from a model with unrelated mistakes, √2 of the metric's own: more than needed against
    one that mostly agrees.

    Of metrics that count right answers no test set of n units (samples, or groups of them) shows less
    than `fewest(alpha) / n`, however little the two models seem to differ on it. NaN where a number is
    missing.
    """
    error = _standard_error(evaluation.differences, evaluation.standard_errors, metric)
    if error is None or not evaluation.units:
        return math.nan
    found = float(ndtri(1 - evaluation.alpha / 2) + ndtri(POWER)) * error
    if metric in COUNTED:
        found = max(found, fewest(evaluation.alpha) / evaluation.units)
    return found


def fewest(alpha: float) -> float:
    """How many units a worse model must be expected to lose, losing none to the other, so that with 80 %
    probability a sign test sees it: at least ⌈log2(2 / alpha)⌉ of a Poisson count."""
    needed = math.ceil(math.log2(2 / alpha))
    return float(gammaincinv(needed, POWER))  # P(Poisson(x) ≥ k) = P(Gamma(k) ≤ x)


def _standard_error(
    differences: Mapping[str, Difference], own: Mapping[str, float], metric: str
) -> float | None:
    """Of the paired difference, where the two differ at all."""
    if metric in differences:
        error = differences[metric].standard_error
        if not math.isfinite(error):
            return None
        if error > 0:
            return error
    error = own.get(metric, math.nan)
    return math.sqrt(2) * error if math.isfinite(error) else None
