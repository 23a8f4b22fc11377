"""A head with one hidden layer; how it is trained is in mlp.py, which needs torch."""

from dataclasses import dataclass

import numpy as np

from tasks.head.linear import Matrix, Rows, Vectors, chunks


@dataclass(frozen=True)
class Perceptron:
    """logits = W₂ max(0, W₁ (x - mean) / scale + b₁) + b₂.

    D = length of an embedding, H = hidden units, C = number of classes.
    """

    mean: Matrix  # [D], of the training split
    scale: Matrix  # [D]
    hidden_weight: Vectors  # [H, D]
    hidden_bias: Vectors  # [H]
    weight: Vectors  # [C, H]
    bias: Vectors  # [C]

    def logits(self, x: Rows) -> Matrix:
        """[N, D] to [N, C]."""
        out = np.empty((len(x), len(self.bias)))
        for rows in chunks(len(x)):
            standard = (np.asarray(x[rows], dtype=np.float64) - self.mean) / self.scale
            hidden = np.maximum(standard @ self.hidden_weight.T.astype(np.float64) + self.hidden_bias, 0.0)
            out[rows] = hidden @ self.weight.T.astype(np.float64) + self.bias
        return out
