"""Nearest class mean on the unit sphere: few samples are enough, and nothing is to be chosen.

Wang et al., SimpleShot, https://arxiv.org/abs/1911.04623 (centred, of length 1). The logits are
those of equal Gaussians around the class means μ_c, of the variance σ² within the classes:

    −‖u − μ_c‖² / 2σ²  =  u·μ_c/σ² − ‖μ_c‖²/2σ²  + what all classes share
"""

import numpy as np
from numpy.typing import NDArray

from tasks.head.linear import Matrix, Rows, UnitLinear, chunks, directions


def class_means(x: Rows, y: NDArray[np.int64], classes: int, mean: Matrix, scale: Matrix) -> UnitLinear:
    """The head of the samples x [N, D] with the class indices y [N]; a class without samples has
    the mean of all."""
    sums, counts = np.zeros((classes, x.shape[1])), np.bincount(y, minlength=classes)
    length = 0.0  # Σ‖u‖², which is N but for rows of zeros
    for rows in chunks(len(x)):
        unit = directions((np.asarray(x[rows], dtype=np.float64) - mean) / scale)
        sums += np.eye(classes)[y[rows]].T @ unit
        length += float((unit**2).sum())
    means = sums / np.maximum(counts, 1)[:, None]
    means[counts == 0] = sums.sum(axis=0) / len(y)
    within = (length - float((counts * (means**2).sum(axis=1)).sum())) / len(y)
    variance = max(within, 1e-6)  # none where each class is one point
    return UnitLinear(mean, scale, means / variance, -(means**2).sum(axis=1) / (2 * variance))
