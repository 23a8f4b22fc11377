"""L2-regularised multinomial logistic regression, solved to a gradient tolerance.

The objective, for X [N, D], labels y and the strength C (scikit-learn's parametrisation; for two
classes it has one weight vector and here are two, so that the same C regularises half as much):

    f(W, b) = 1/N Σᵢ −log softmax(W xᵢ + b)[yᵢ]  +  ‖W‖² / (2 C N)

L-BFGS needs many steps where X is ill-conditioned, as embeddings are. So the problem is solved in
the eigenbasis of the Gram matrix XᵀX/N = V diag(λ) Vᵀ: with Z = X V and W = U diag(s) Vᵀ the
penalty stays a sum over coordinates, and s = (λ/4 + 1/(CN))^−½ makes the curvature in U nearly 1
in every direction (¼ bounds the softmax's own curvature). The minimum is the same.
"""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.special import log_softmax

log = logging.getLogger(__name__)

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Basis:
    """Eigenbasis of a Gram matrix; any basis gives the same minimum, a fitting one gives it soon."""

    vectors: Matrix  # V [D, D], columns
    values: Matrix  # λ [D], ≥ 0

    @classmethod
    def of(cls, x: Matrix) -> "Basis":
        """Of X [N, D], centred."""
        values, vectors = eigh(x.T @ x / len(x))
        return cls(vectors, np.maximum(values, 0.0))


def solve(
    z: Matrix,
    y: NDArray[np.int64],
    classes: int,
    strength: float,
    basis: Basis,
    start: tuple[Matrix, Matrix] | None = None,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> tuple[Matrix, Matrix]:
    """The minimum in the coordinates of `basis`.

    Args:
        z: X V, [N, D].
        start: an earlier solution, to start from.
        tolerance: greatest absolute entry of the gradient of f at which to stop (scikit-learn's
            lbfgs has the same rule and default).

    Returns:
        W V [C, D] and b [C]; where `max_iterations` came first, a warning is logged.
    """
    n, d = z.shape
    rows = np.arange(n)
    penalty = 1.0 / (strength * n)
    scale = 1.0 / np.sqrt(basis.values / 4 + penalty)  # s [D]
    steepest = np.inf

    def objective(flat: Matrix) -> tuple[float, Matrix]:
        nonlocal steepest
        u = flat.reshape(classes, d + 1)
        w, b = u[:, :d] * scale, u[:, d]
        log_p = log_softmax(z @ w.T + b, axis=1)  # [N, C]
        residual = np.exp(log_p)
        residual[rows, y] -= 1.0
        gradient = np.empty_like(u)
        gradient[:, :d] = residual.T @ z / n + penalty * w
        gradient[:, d] = residual.sum(axis=0) / n
        steepest = float(np.abs(gradient).max())
        gradient[:, :d] *= scale
        loss = -log_p[rows, y].mean() + 0.5 * penalty * np.vdot(w, w)
        return float(loss), gradient.ravel()

    def stop_when_flat(intermediate_result: object) -> None:
        if steepest <= tolerance:
            raise StopIteration

    first = np.zeros((classes, d + 1))
    if start is not None:
        first[:, :d], first[:, d] = start[0] / scale, start[1]
    solution = minimize(
        objective,
        first.ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop_when_flat,
        options={"maxiter": max_iterations, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
    )
    objective(solution.x)  # the last evaluation may have been another point's
    if steepest > tolerance:
        log.warning(
            "C = %g: the gradient is %.1e after %d iterations, not %.0e",
            strength,
            steepest,
            solution.nit,
            tolerance,
        )
    u = solution.x.reshape(classes, d + 1)
    return u[:, :d] * scale, u[:, d]
