"""Whether two sets of samples can be told apart: a classifier two-sample test.

Lopez-Paz & Oquab, Revisiting Classifier Two-Sample Tests, https://arxiv.org/abs/1610.06545
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import hypergeom
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from tasks.audit.rows import Floats
from tasks.data.split import position
from tasks.records import Shift

LEAST = 20  # samples of each side
MOST = 5_000  # samples of each side; more make a shift that matters to nobody significant


def shuffled(digests: Sequence[str], seed: int) -> list[str]:
    """The samples in an order that has nothing to do with them: of a seeded hash."""
    return sorted(digests, key=lambda digest: position(f"audit:{digest}", seed))


def chosen(digests: Sequence[str], seed: int) -> list[str]:
    """At most 5,000 of the samples of a side, shuffled."""
    return shuffled(digests, seed)[:MOST]


def c2st(between: str, first: Floats, second: Floats) -> Shift:
    """Fits a logistic regression on half of the samples and judges it on the other half, in which
    both sides are equally many; the p-value is exact (one-sided, Fisher): the chance of as many
    right answers if the sides were dealt at random.

    Args:
        between: names of the two sides.
        first, second: coordinates [N, d] in a random order, independent of each other: of
            near-duplicates and groups no more than one sample. At least `LEAST` of each.
    """
    n = min(len(first), len(second))
    half = n // 2
    x = np.concatenate([first[:half], second[:half]]).astype(np.float64)
    side = np.repeat([0, 1], half)
    with threadpool_limits(1, user_api="blas"):
        model = LogisticRegression(C=1.0, max_iter=1000).fit(x, side)
        says_second = model.predict(second[half:n].astype(np.float64))
        says_first = 1 - model.predict(first[half:n].astype(np.float64))
    right_first, right_second, judged = int(says_first.sum()), int(says_second.sum()), n - half
    # `right_second` of all that the model calls second, when these are drawn from both sides alike.
    called = right_second + judged - right_first
    return Shift(
        between=between,
        samples=(len(first), len(second)),
        accuracy=(right_first + right_second) / (2 * judged),
        p_value=float(hypergeom.sf(right_second - 1, 2 * judged, judged, called)),
    )
