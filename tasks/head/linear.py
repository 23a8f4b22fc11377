"""Heads that are an affine map of the standardised embedding: logistic, multilabel, ridge, prototype."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Matrix = NDArray[np.float64]

ROWS = 4096  # of embeddings that are worked on at a time: they may be larger than the memory


class Rows(Protocol):
    """Embeddings [N, D]: an array, a memory map, or some rows of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class Subset:
    """Some rows of embeddings, copied only as they are read."""

    x: Rows
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), self.x.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> Any:
        return self.x[self.rows[rows]]


def chunks(rows: int) -> Iterator[slice]:
    """Slices of `ROWS` that cover `rows` rows, in order."""
    return (slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS))


@dataclass(frozen=True)
class Linear:
    """logits = W (x - mean) / scale + b. D = length of an embedding, K = number of outputs."""

    mean: Matrix  # [D], of the training split
    scale: Matrix  # [D], one number for each part of an embedding, never 0
    weight: Matrix  # [K, D]
    bias: Matrix  # [K]

    def logits(self, x: Rows) -> Matrix:
        """[N, D] to [N, K]."""
        out = np.empty((len(x), len(self.bias)))
        for rows in chunks(len(x)):
            out[rows] = self.standardised(x[rows]) @ self.weight.T + self.bias
        return out

    def standardised(self, x: Vectors) -> Matrix:
        """[N, D], centred and divided by the scale."""
        standard: Matrix = (np.asarray(x, dtype=np.float64) - self.mean) / self.scale
        return standard


@dataclass(frozen=True)
class UnitLinear(Linear):
    """An affine map of the standardised embedding's direction."""

    def standardised(self, x: Vectors) -> Matrix:
        """[N, D], of length 1."""
        return directions(super().standardised(x))


def directions(standard: Matrix) -> Matrix:
    """[N, D] divided by each row's length; a row of zeros stays."""
    length = np.linalg.norm(standard, axis=1, keepdims=True)
    unit: Matrix = standard / np.where(length > 0, length, 1.0)
    return unit
