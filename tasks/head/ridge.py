"""Ridge regression: all strengths, and what each says of every sample left out, from one
eigendecomposition.

With Z [N, D] centred and standardised, ZᵀZ = V diag(λ) Vᵀ and P = Z V, the minimum of

    ½ Σᵢ (w·zᵢ + b − yᵢ)² + ‖w‖²/2C

is w = V (λ + 1/C)⁻¹ Pᵀy, b the mean of y. The fit is ŷ = H y with H = 1/N + P (λ + 1/C)⁻¹ Pᵀ, and
without the samples G it would have erred on them by (I − H_GG)⁻¹ (y_G − ŷ_G), exactly: for one
sample the well-known (y − ŷ)/(1 − h). Only mean and scale of Z are those of all samples.
Rifkin & Lippert, Notes on Regularized Least Squares (2007), https://dspace.mit.edu/handle/1721.1/37318
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from tasks.head.linear import Linear, Matrix, Rows, chunks
from tasks.head.standard import standards


@dataclass(frozen=True)
class RidgePath:
    """Ridge regression of one set of samples at every strength."""

    mean: Matrix  # [D]
    scale: Matrix  # [D]
    vectors: Matrix  # V [D, R]
    values: Matrix  # λ [R], above 0
    moments: Matrix  # Pᵀ(y - mean of y) [R]
    bias: float  # mean of y

    @classmethod
    def of(cls, x: Rows, y: Matrix, parts: Sequence[int]) -> "RidgePath":
        """Of x [N, D], read in chunks, and y [N]."""
        (mean,), (scale,) = standards(x, parts)
        d = x.shape[1]
        bias = float(y.mean())
        moments = np.zeros(d)
        if len(x) < d:  # the thin way: of Z Zᵀ [N, N]
            z = (np.asarray(x, dtype=np.float64) - mean) / scale
            values, left = eigh(z @ z.T)
            kept = values > 1e-10 * max(values[-1], 1e-300)
            values, left = values[kept], left[:, kept]
            vectors = z.T @ (left / np.sqrt(values))
            moments = z.T @ (y - bias)
        else:
            gram = np.zeros((d, d))
            for rows in chunks(len(x)):
                z = (np.asarray(x[rows], dtype=np.float64) - mean) / scale
                gram += z.T @ z
                moments += z.T @ (y[rows] - bias)
            values, vectors = eigh(gram)
            kept = values > 1e-10 * max(values[-1], 1e-300)
            values, vectors = values[kept], vectors[:, kept]
        return cls(mean, scale, vectors, values, vectors.T @ moments, bias)

    def fit(self, strength: float) -> Linear:
        """The head at C = `strength`."""
        weight = self.vectors @ (self.moments / (self.values + 1 / strength))
        return Linear(self.mean, self.scale, weight[None], np.array([self.bias]))

    def left_out(
        self, x: Rows, y: Matrix, strengths: Sequence[float], groups: Sequence[str] | None = None
    ) -> Matrix:
        """What the fits without a sample, and without its group, say of it: [S, N].

        Args:
            x, y: the samples of this path.
            strengths: S candidates for C.
            groups: the group of each sample, left out as a whole; none: each is its own.
        """
        shrink = 1 / (self.values[:, None] + 1 / np.asarray(strengths))  # [R, S]
        fit, leverage = np.empty((2, len(strengths), len(y)))
        for rows in chunks(len(x)):
            p = self._coordinates(x[rows])  # [rows, R]
            fit[:, rows] = (p @ (shrink * self.moments[:, None])).T + self.bias
            leverage[:, rows] = (p**2 @ shrink).T + 1 / len(y)
        error = (y - fit) / np.maximum(1 - leverage, 1e-12)
        for members in _several(groups):
            p = self._coordinates(x[members])
            for at in range(len(strengths)):
                hat = (p * shrink[:, at]) @ p.T + 1 / len(y)  # H_GG [G, G]
                error[at, members] = np.linalg.lstsq(np.eye(len(members)) - hat, (y - fit[at])[members])[0]
        without: Matrix = y - error
        return without

    def _coordinates(self, x: Rows) -> Matrix:
        coordinates: Matrix = ((np.asarray(x, dtype=np.float64) - self.mean) / self.scale) @ self.vectors
        return coordinates


def _several(groups: Sequence[str] | None) -> list[NDArray[np.int64]]:
    """The rows of each group that has more than one."""
    if groups is None:
        return []
    _, member, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.argsort(member.reshape(-1), kind="stable")
    return [rows for rows in np.split(order, np.cumsum(counts)[:-1]) if len(rows) > 1]
