"""Temperature scaling: one number that makes confidence mean what it says.

Guo et al., On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Beyond these the validation split is separable or hopeless, and the optimum says nothing.
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature with the least log loss on held-out samples.

    Args:
        logits: [N, C].
        labels: [N], class indices.
    """
    rows = np.arange(len(labels))

    def log_loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, labels].mean())

    best = minimize_scalar(log_loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(best.x))
