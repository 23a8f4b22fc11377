"""The leading principal components of the embeddings: few coordinates in which distances and
classifiers are cheap, also for a million samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tasks.audit.rows import Floats, Vectors
from tasks.audit.two_sample import shuffled

DIMENSIONS = 64
_FITTED = 10_000  # samples that the components are fitted on
_PER_DIMENSION = 10  # samples at least


@dataclass(frozen=True)
class Space:
    """From embeddings [N, D] to coordinates [N, d] with mean 0 and variance 1 where it was fitted."""

    mean: NDArray[np.float64]  # [D]
    components: NDArray[np.float64]  # [D, d]

    def project(self, vectors: Vectors, digests: Sequence[str]) -> Floats:
        """The coordinates of `digests`, [N, d]."""
        out = np.empty((len(digests), self.components.shape[1]), dtype=np.float32)
        for start, some in vectors.chunks(digests):
            out[start : start + len(some)] = (some - self.mean) @ self.components
        return out


def fit(vectors: Vectors, digests: Sequence[str], parts: Sequence[int], seed: int) -> Space:
    """The components of at most 10,000 of `digests`, those with the least seeded hash.

    Each part of an embedding (a layer's pooling, a view) counts the same, whatever its scale.

    Args:
        parts: lengths of the parts; their sum is D.
    """
    if len(digests) > _FITTED:
        digests = shuffled(digests, seed)[:_FITTED]
    x = vectors.take(digests).astype(np.float64)  # [n, D]
    mean = x.mean(axis=0)
    x -= mean
    ends = np.cumsum(parts)
    scale = np.repeat(
        [x[:, end - part : end].std() or 1.0 for part, end in zip(parts, ends, strict=True)], parts
    )
    x /= scale
    n, d = x.shape
    # The smaller of the two products has the same spectrum: X = U S Vᵀ.
    with threadpool_limits(1, user_api="blas"):  # the same sums whatever the number of cores
        values, basis = np.linalg.eigh(x.T @ x if d <= n else x @ x.T)
    kept = max(1, min(DIMENSIONS, n // _PER_DIMENSION, d))
    values, basis = values[::-1][:kept], basis[:, ::-1][:, :kept]
    real = values > 1e-9 * max(values[0], 1e-300)
    values, basis = values[real], basis[:, real]
    directions = basis if d <= n else x.T @ basis / np.sqrt(values)  # [D, d]
    return Space(mean, directions * np.sqrt(n / values) / scale[:, None])
