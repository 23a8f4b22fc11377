"""Calibration: what makes confidence mean what it says, fitted on logits of samples that were held out.

Temperature and vector scaling are of Guo et al., On Calibration of Modern Neural Networks,
https://arxiv.org/abs/1706.04599; for labels the same with a sigmoid for each (Platt scaling).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, softmax

from tasks.head.fitted import Calibration
from tasks.head.linear import Matrix

Link = Literal["softmax", "sigmoid"]

# Beyond these the samples are separable or hopeless, and the optimum says nothing.
LOWEST, HIGHEST = 0.05, 20.0
# 95 % quantile of χ² with one degree of freedom: the likelihood-ratio test of temperature 1.
SIGNIFICANT = 3.841
# 95 % quantile of the normal distribution: how many standard errors vector scaling must win by.
STANDARD_ERRORS = 1.645
# With more classes each has few samples, and vector scaling is not tried.
VECTOR_COLUMNS = 100


@dataclass(frozen=True)
class Chosen:
    """A calibration and how it came about."""

    method: Literal["none", "temperature", "vector"]
    temperature: float  # 1 unless that is the method
    calibration: Calibration


def not_calibrated(outputs: int) -> Chosen:
    """What leaves `outputs` columns as they are."""
    return Chosen("none", 1.0, Calibration.none(outputs))


def losses(logits: Matrix, y: NDArray[np.generic]) -> Matrix:
    """The log loss of each sample, [N]: of classes (y [N], indices) of the softmax, of labels
    (y [N, C], 0 or 1) the sum over the sigmoids."""
    if y.ndim == 1:
        return -np.asarray(log_softmax(logits, axis=1)[np.arange(len(y)), y])
    signs = 2.0 * np.asarray(y, dtype=np.float64) - 1.0
    return -np.asarray(log_expit(signs * logits).sum(axis=1))


def fit_temperature(logits: Matrix, y: NDArray[np.generic], weight: Matrix | None = None) -> float:
    """The temperature with the least log loss on held-out samples; exactly 1 where these can't tell
    it from 1, because then it would be fitted to their noise.

    Args:
        logits: [N, C].
        y: [N] class indices, or [N, C] labels.
        weight: [N], of the samples; none: all the same.
    """
    weight = _normalised(weight, len(y))
    scale = _best_scale(logits, y, weight)
    gain = 2 * float(weight @ (losses(logits, y) - losses(logits * scale, y)))
    return 1 / scale if gain > SIGNIFICANT else 1.0


def cross_calibrated(
    logits: Matrix, y: NDArray[np.generic], folds: NDArray[np.int64], weight: Matrix | None = None
) -> Matrix:
    """The logits [N, C], those of each fold divided by the best temperature of the other folds.

    That is the best one of all folds and a Newton step from there without the fold, exact to the
    second order: a search for each fold and each strength would cost more than the fits.
    """
    weight = _normalised(weight, len(y))
    scale = _best_scale(logits, y, weight)
    slopes, curvatures = _derivatives(logits, y, scale)
    slope = np.bincount(folds, weight * slopes)  # [F]
    curvature = np.bincount(folds, weight * curvatures)
    rest = np.maximum(curvature.sum() - curvature, 1e-12)
    scales = np.clip(scale - (slope.sum() - slope) / rest, 1 / HIGHEST, 1 / LOWEST)
    calibrated: Matrix = logits * scales[folds][:, None]
    return calibrated


def _best_scale(logits: Matrix, y: NDArray[np.generic], weight: Matrix) -> float:
    """1/T of the least log loss, which is convex in it: Newton's method, each step bounded."""
    scale = 1.0
    for _ in range(40):
        slopes, curvatures = _derivatives(logits, y, scale)
        step = -float(weight @ slopes) / max(float(weight @ curvatures), 1e-300)
        moved = float(np.clip(scale + step, scale / 2, scale * 2))
        moved = min(max(moved, 1 / HIGHEST), 1 / LOWEST)
        if abs(moved - scale) <= 1e-9 * scale:
            break
        scale = moved
    return scale


def _derivatives(logits: Matrix, y: NDArray[np.generic], scale: float) -> tuple[Matrix, Matrix]:
    """The first and second derivative by `scale` of each sample's loss at logits * scale, [N] both."""
    if y.ndim == 2:
        guessed = expit(logits * scale)
        slopes = ((guessed - y) * logits).sum(axis=1)
        return slopes, (guessed * (1 - guessed) * logits**2).sum(axis=1)
    guessed = softmax(logits * scale, axis=1)  # [N, C]
    mean = (guessed * logits).sum(axis=1)
    true = logits[np.arange(len(y)), y]
    return mean - true, (guessed * logits**2).sum(axis=1) - mean**2


def fit_vector(
    logits: Matrix, y: NDArray[np.generic], weight: Matrix | None = None, temperature: float = 1.0
) -> Calibration:
    """A scale and a bias for each of the C columns with the least log loss, by Newton's method.

    A Gaussian prior of standard deviation 1 around the temperature is worth one sample: without it a
    label that all samples have would drive its bias without end, and of a softmax's biases only the
    differences would be known.

    Args:
        logits: [N, C].
        y: [N] class indices, or [N, C] labels.
        weight: [N], of the samples; none: all the same.
        temperature: what the scales are started from, and held to.
    """
    weight = _normalised(weight, len(y))
    columns = logits.shape[1]
    center = np.concatenate([np.full(columns, 1 / temperature), np.zeros(columns)])  # θ [2C]

    def loss(theta: Matrix) -> float:
        moved = logits * theta[:columns] + theta[columns:]
        return float(weight @ losses(moved, y) + 0.5 * ((theta - center) ** 2).sum())

    theta, before = center, loss(center)
    for _ in range(30):
        gradient, hessian = _of_vector(logits, y, weight, theta)
        step = np.linalg.solve(hessian + np.eye(2 * columns), gradient + theta - center)
        size = 1.0
        while (after := loss(theta - size * step)) > before and size > 1e-6:
            size /= 2
        if before - after <= 1e-9 * len(y):
            break
        theta, before = theta - size * step, after
    return Calibration(np.maximum(theta[:columns], 1 / HIGHEST), theta[columns:])


def _of_vector(
    logits: Matrix, y: NDArray[np.generic], weight: Matrix, theta: Matrix
) -> tuple[Matrix, Matrix]:
    """Gradient [2C] and Hessian [2C, 2C] of the summed loss by scales and biases."""
    columns = logits.shape[1]
    moved = logits * theta[:columns] + theta[columns:]
    if y.ndim == 1:
        guessed = softmax(moved, axis=1)  # [N, C]
        residual, own = guessed.copy(), guessed
        residual[np.arange(len(y)), y] -= 1
    else:
        guessed = expit(moved)
        residual, own = guessed - y, guessed * (1 - guessed)
    residual = residual * weight[:, None]
    gradient = np.concatenate([(residual * logits).sum(axis=0), residual.sum(axis=0)])
    own = own * weight[:, None]
    corners = [np.diag((own * power).sum(axis=0)) for power in (logits**2, logits, 1.0)]
    hessian = np.block([[corners[0], corners[1]], [corners[1], corners[2]]])
    if y.ndim == 1:  # classes of one sample compete
        both = np.concatenate([guessed * logits, guessed], axis=1)  # [N, 2C]
        hessian -= both.T @ (both * weight[:, None])
    return gradient, hessian


def calibrate(
    logits: Matrix, y: NDArray[np.generic], folds: NDArray[np.int64], weight: Matrix | None = None
) -> Chosen:
    """The calibration of out-of-fold logits: a temperature, or vector scaling where that wins on
    folds that it was not fitted on, by more than chance; none where the samples can't tell.

    Args:
        logits: [N, C].
        y: [N] class indices, or [N, C] labels.
        folds: [N], the fold of each sample.
        weight: [N], of the samples; none: all the same.
    """
    columns = logits.shape[1]
    temperature = fit_temperature(logits, y, weight)
    one = Calibration(np.full(columns, 1 / temperature), np.zeros(columns))
    if not 2 <= columns <= VECTOR_COLUMNS:
        return Chosen("none" if temperature == 1 else "temperature", temperature, one)
    gains = np.empty(len(y))
    for fold in np.unique(folds):
        held_out, rest = folds == fold, folds != fold
        some = None if weight is None else weight[rest]
        cooler = fit_temperature(logits[rest], y[rest], some)
        vector = fit_vector(logits[rest], y[rest], some, cooler)
        before = losses(logits[held_out] / cooler, y[held_out])
        gains[held_out] = before - losses(vector(logits[held_out]), y[held_out])
    gains = gains * _normalised(weight, len(y))
    if gains.mean() > STANDARD_ERRORS * gains.std() / np.sqrt(len(y)):
        return Chosen("vector", 1.0, fit_vector(logits, y, weight, temperature))
    return Chosen("none" if temperature == 1 else "temperature", temperature, one)


def _normalised(weight: Matrix | None, samples: int) -> Matrix:
    """Weights [N] whose mean is 1."""
    return np.ones(samples) if weight is None else weight * (samples / weight.sum())
