"""Classes that are mistaken for one another, and classes that are rare."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.audit.rows import Bools

MOST = 10  # pairs


def confusable(said: Bools, truth: Bools, classes: Sequence[str]) -> tuple[tuple[str, str, float], ...]:
    """The pairs of classes that are mistaken most: the share of the samples of either that miss the
    one and are said to be of the other.

    Args:
        said: the classes that a head which did not see them gives the rows, [N, C].
        truth: [N, C].
    """
    missed = (truth & ~said).astype(np.float32)
    wrong = (said & ~truth).astype(np.float32)
    mistaken: NDArray[np.float64] = (missed.T @ wrong).astype(np.float64)  # [C, C]
    mistaken += mistaken.T
    counts = truth.sum(axis=0)
    both = truth.astype(np.float32).T @ truth.astype(np.float32)
    share = mistaken / np.maximum(counts[:, None] + counts[None, :] - both, 1)
    first, second = np.triu_indices(len(classes), 1)
    values = share[first, second]
    order = np.lexsort((second, first, -values))[:MOST]
    return tuple(
        (classes[first[at]], classes[second[at]], float(values[at])) for at in order if values[at] > 0
    )


def imbalance(counts: Mapping[str, int]) -> float | None:
    """Samples of the largest class / of the smallest; none without classes."""
    if not counts or min(counts.values()) == 0:
        return None
    return max(counts.values()) / min(counts.values())
