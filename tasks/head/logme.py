"""LogME: how well an embedding suits a task, without a head being trained.

The log of the evidence of a Bayesian linear regression of each output on the embedding, a sample,
at its best precisions of the prior (α) and of the noise (β). You et al., LogME: Practical Assessment
of Pre-trained Models for Transfer Learning, https://arxiv.org/abs/2102.11005
"""

import numpy as np
from numpy.typing import NDArray

from tasks.head.linear import Matrix, Vectors

ITERATIONS = 100
PRECISE = 1e-4  # relative change of α/β at which to stop


def logme(x: Vectors, y: NDArray[np.generic]) -> float:
    """The mean log evidence of a sample and an output; higher is better.

    Args:
        x: [N, D].
        y: [N] class indices (integers), or [N] or [N, K] numbers or labels.
    """
    if y.ndim == 1 and np.issubdtype(y.dtype, np.integer):
        y = (y[:, None] == np.unique(y)).astype(np.float64)  # [N, classes that occur]
    targets = np.asarray(y, dtype=np.float64).reshape(len(x), -1)  # [N, K]
    left, singular, _ = np.linalg.svd(np.asarray(x, dtype=np.float64), full_matrices=False)
    values = singular**2  # σ [R]
    d = x.shape[1]
    evidence = [_evidence(values, left.T @ target, float(target @ target), len(x), d) for target in targets.T]
    return float(np.mean(evidence))


def _evidence(values: Matrix, along: Matrix, length: float, n: int, d: int) -> float:
    """The greatest log evidence / N of one output y.

    Args:
        values: squared singular values of x [R].
        along: Uᵀy [R].
        length: ‖y‖².
    """
    beyond = max(length - float(along @ along), 0.0)  # what no weights can fit
    alpha = beta = 1.0
    for _ in range(ITERATIONS):
        ratio = alpha / beta
        fitted = values / (values + ratio)
        gamma = float(fitted.sum())
        weights = float((along**2 * values / (values + ratio) ** 2).sum())  # ‖m‖²
        error = float(((1 - fitted) ** 2 * along**2).sum()) + beyond  # ‖y − x m‖²
        alpha = gamma / max(weights, 1e-12)
        beta = max(n - gamma, 1e-12) / max(error, 1e-12)
        if abs(alpha / beta - ratio) <= PRECISE * ratio:
            break
    ratio = alpha / beta
    fitted = values / (values + ratio)
    weights = float((along**2 * values / (values + ratio) ** 2).sum())
    error = float(((1 - fitted) ** 2 * along**2).sum()) + beyond
    spectrum = float(np.log(alpha + beta * values).sum()) + (d - len(values)) * np.log(alpha)
    total = (
        n * np.log(beta)
        + d * np.log(alpha)
        - n * np.log(2 * np.pi)
        - beta * error
        - alpha * weights
        - spectrum
    )
    return float(total) / (2 * n)
