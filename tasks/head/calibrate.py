"""Temperature scaling: one number that makes confidence mean what it says.

Guo et al., On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Beyond these the validation split is separable or hopeless, and the optimum says nothing.
LOWEST, HIGHEST = 0.05, 20.0
# 95 % quantile of χ² with one degree of freedom: the likelihood-ratio test of temperature 1.
SIGNIFICANT = 3.841


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature with the least log loss on held-out samples; exactly 1 where these can't tell
    it from 1, because then it would be fitted to their noise.

    Args:
        logits: [N, C].
        labels: [N], class indices.
    """
    rows = np.arange(len(labels))

    def log_loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, labels].mean())

    best = minimize_scalar(log_loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    gain = 2 * len(labels) * (log_loss(0.0) - float(best.fun))
    return float(np.exp(best.x)) if gain > SIGNIFICANT else 1.0
