"""Centres and scales of embeddings, of which nothing that a head is judged on is part."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.head.linear import Matrix, Rows, chunks


def standards(x: Rows, parts: Sequence[int], rows: NDArray[np.bool_] | None = None) -> tuple[Matrix, Matrix]:
    """The mean and the scale of each dimension, [F, D] both, over the rows of each of F fits.

    Each part has one scale (the root of its mean variance), because a backbone has dimensions that
    hardly ever fire: to blow each of them up to variance 1 raises their noise to the rank of signal
    (surface inspection, last layer: cross-validated log loss .451 instead of .411). It is multiplied
    by the root of the number of parts, so that several do not count for more than one does.

    Args:
        x: [N, D], read in chunks.
        parts: lengths of the parts, which sum to D.
        rows: [F, N], which rows each fit has; none: one fit that has all.
    """
    if rows is None:
        rows = np.ones((1, len(x)), dtype=bool)
    share = rows / rows.sum(axis=1, keepdims=True)  # [F, N]
    # Near the mean, so that the difference of squares below loses no digits.
    near = np.asarray(x[: min(len(x), 1024)], dtype=np.float64).mean(axis=0)
    first, second = np.zeros((2, len(rows), x.shape[1]))
    for some in chunks(len(x)):
        moved = np.asarray(x[some], dtype=np.float64) - near  # [rows, D]
        first += share[:, some] @ moved
        second += share[:, some] @ moved**2
    variance = np.maximum(second - first**2, 0.0)  # [F, D]
    ends = np.cumsum(parts)
    deviation = np.stack(
        [np.sqrt(variance[:, end - part : end].mean(axis=1)) for part, end in zip(parts, ends, strict=True)],
        axis=1,
    )
    # Rounding leaves a constant part a variance near 0; it says nothing, and stays at 0 undivided.
    size = np.stack([np.abs(near[end - part : end]).max() for part, end in zip(parts, ends, strict=True)])
    deviation[deviation <= 1e-7 * size] = 0.0
    deviation[deviation == 0] = 1.0
    return first + near, np.repeat(deviation, parts, axis=1) * np.sqrt(len(parts))
