"""The initial inverse Hessian of the solver, from a Gram matrix.

The Hessian of the logistic loss is about h XᵀX/N with h the mean of p (1 − p), and the penalty
adds λ: in the eigenbasis XᵀX/N = V diag(e) Vᵀ the inverse is V diag(1 / (h e + λ)) Vᵀ. Without it
L-BFGS needs many steps where X is ill-conditioned, as embeddings are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLATTEST = 1e-5  # where all p are 0 or 1, h would say that there is no curvature at all


@dataclass(frozen=True)
class Basis:
    """Eigenbasis of a Gram matrix; any basis gives the same minimum, a fitting one gives it soon."""

    vectors: Tensor  # V [D, R], columns, R = min(n, D)
    values: Tensor  # e [R], ≥ 0

    @classmethod
    def of(cls, x: Tensor) -> "Basis":
        """Of X [n, D], centred."""
        # In float64: float32 leaves nothing of the least eigenvalues, and steps along them go wild.
        n, d, dtype = *x.shape, x.dtype
        x = x.double()
        if n >= d:
            values, vectors = torch.linalg.eigh(x.T @ x / n)
            return cls(vectors.to(dtype), values.clamp_min(0).to(dtype))
        values, left = torch.linalg.eigh(x @ x.T / n)  # XXᵀ/n = U diag(e) Uᵀ, V = Xᵀ U / √(n e)
        kept = values > values[-1:] * n * torch.finfo(x.dtype).eps
        values, left = values[kept], left[:, kept]
        return cls((x.T @ left / (n * values).sqrt()).to(dtype), values.to(dtype))

    def inverse(self, g: Tensor, h: Tensor, penalty: Tensor) -> Tensor:
        """H₀ g of gradients [A, C, D + 1] (the bias last), for h [A, C] and penalties λ [A]."""
        of_weight = g[..., :-1]
        penalty = penalty[:, None, None]
        outside = 1 / penalty  # of what V does not span, where X is 0
        h = h.clamp_min(FLATTEST)
        inside = 1 / (h[..., None] * self.values + penalty)  # [A, C, R]
        turned = (of_weight @ self.vectors) * (inside - outside)
        found = turned @ self.vectors.T + of_weight * outside
        return torch.cat([found, g[..., -1:] / h[..., None]], -1)
