"""The paired randomisation test, without resamples: p-values that stay right far out in the tail.

Were two models equally good, what a sample adds to their difference could as well have had the other
sign (Fisher 1935; Noreen 1989, Computer-Intensive Methods for Testing Hypotheses). With k contributions
of sizes a that is S = Σ ± a, all 2^k signs as likely. Of few contributions all signs are tried; of more,
the tail of S comes from the saddlepoint of its cumulants K(t) = Σ ln cosh(t a) (Lugannani and Rice 1980,
https://doi.org/10.2307/1426607), with both signs tried of those that dominate it.
"""

import math

import numpy as np
from scipy.special import ndtr

from tasks.evaluation.sums import Floats

TRIED = 10  # contributions up to which all signs are tried
LARGE = 0.2  # a contribution with more of the variance is looked at by itself
SPLIT = 3  # of these at most
STEPS = 200  # of Newton's method; tens are enough
ROUNDING = 1e-9  # sums in another order differ in the last digits


def one_sided(added: Floats) -> tuple[float, float]:
    """The p-values of: the sum of `added` [U] is not above 0; it is not below 0. Both are 1 where nothing
    differs. Of contributions of one size (accuracy) they are those of McNemar's exact test or a little
    above."""
    moved = added[added != 0]
    if not moved.size:
        return 1.0, 1.0
    scaled = moved / np.abs(moved).max()
    return at_least(scaled), at_least(-scaled)


def at_least(moved: Floats) -> float:
    """P(S ≥ its value here), with sizes of at most 1; never below 2^-k."""
    sizes = np.sort(np.abs(moved))[::-1]
    return float(max(_tail(sizes, float(moved.sum()), SPLIT), 0.5 ** len(sizes)))


def _tail(sizes: Floats, total: float, splits: int) -> float:
    """P(S ≥ total) of sizes in descending order."""
    if len(sizes) <= TRIED:
        return _tried(sizes, total)
    end = float(sizes.sum())
    if total >= end - ROUNDING:  # all signs as they are, or not even these
        return float(0.5 ** len(sizes)) if total <= end + ROUNDING else 0.0
    if total <= ROUNDING - end:
        return 1.0
    if splits and sizes[0] ** 2 > LARGE * float((sizes**2).sum()):
        # S has two humps: one for each sign of the largest.
        largest, rest = float(sizes[0]), sizes[1:]
        return (_tail(rest, total - largest, splits - 1) + _tail(rest, total + largest, splits - 1)) / 2
    # S moves in steps, by twice a size: half of the smallest step is taken off, the continuity correction
    # of McNemar's test where all are equal.
    return _saddlepoint(sizes, total - float(sizes[-1]))


def _tried(sizes: Floats, total: float) -> float:
    reached = np.zeros(1)
    for size in sizes:
        reached = np.concatenate([reached + size, reached - size])
    return float((reached >= total - ROUNDING).mean())


def _saddlepoint(sizes: Floats, total: float) -> float:
    """P(S ≥ total) of a smooth S."""
    if total < 0:
        return 1 - _saddlepoint(sizes, -total)
    variance = float((sizes**2).sum())
    if total < 1e-3 * math.sqrt(variance):
        return float(ndtr(-total / math.sqrt(variance)))
    # K' is concave: from the left Newton's method comes nearer in every step.
    t = total / variance
    for _ in range(STEPS):
        slope = np.tanh(t * sizes)
        curvature = float((sizes**2 * (1 - slope**2)).sum())
        missing = total - float((sizes * slope).sum())
        if missing <= 1e-10 * total or curvature <= 0:
            break
        t += missing / curvature
    cumulant = float((np.logaddexp(t * sizes, -t * sizes) - math.log(2)).sum())
    curvature = float((sizes**2 * (1 - np.tanh(t * sizes) ** 2)).sum())
    r, q = math.sqrt(2 * max(t * total - cumulant, 0.0)), t * math.sqrt(max(curvature, 0.0))
    if not q > 0 or not r > 0:
        return float(ndtr(-r))
    density = math.exp(-r * r / 2) / math.sqrt(2 * math.pi)
    return min(max(float(ndtr(-r)) + density * (1 / q - 1 / r), 0.0), 1.0)
