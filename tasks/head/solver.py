"""L2-regularised logistic regression, all folds and strengths together, solved to a gradient tolerance.

The objective of a fold f and a strength C (scikit-learn's parametrisation; for two classes it has
one weight vector and here are two, so that the same C regularises half as much):

    1/N_f Σᵢ wᵢ loss(W zᵢ + b, yᵢ)  +  ‖W‖² / (2 C N_f)

where z is standardised by the fold's own rows, N_f = Σᵢ wᵢ over them, and the loss is the log loss
of a softmax or, summed over the outputs, of independent sigmoids.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.head.blocks import Blocks, Matrix
from tasks.head.calibrate import Link
from tasks.head.lbfgs import Lanes, Minimum
from tasks.head.objective import Objective, scaling
from tasks.head.precondition import Basis

log = logging.getLogger(__name__)

Floats = NDArray[np.floating]

SMALL = 1 << 26  # products in a pass over the rows; below it a second thread costs more than it does


@dataclass(frozen=True)
class Solutions:
    """Of F folds and S strengths, from the most to the least regularised.

    Weights and biases are for standardised rows z = (x − mean) / scale.
    """

    weight: Floats  # [F, S, C, D], float32, or float64 where x was
    bias: Floats  # [F, S, C]
    mean: NDArray[np.float64]  # [F, D]
    scale: NDArray[np.float64]  # [F, D]
    gradient: NDArray[np.float64]  # [F, S], greatest absolute entry where it stopped
    iterations: NDArray[np.int64]  # [F, S], points evaluated
    passes: int  # over all rows

    def logits(self, x: Floats, fold: int = 0) -> Floats:
        """Of rows [n, D], at each strength: [n, S, C]."""
        strengths, classes, d = self.weight.shape[1:]
        z = ((x - self.mean[fold]) / self.scale[fold]).astype(self.weight.dtype)
        found: Floats = (z @ self.weight[fold].reshape(-1, d).T).reshape(len(x), strengths, classes)
        found += self.bias[fold]
        return found

    def at(self, strength: int) -> "Solutions":
        """Those at one strength (its index): S = 1."""
        one = slice(strength, strength + 1 or None)
        return replace(
            self,
            weight=self.weight[:, one],
            bias=self.bias[:, one],
            gradient=self.gradient[:, one],
            iterations=self.iterations[:, one],
        )

    def average(self, strength: int) -> "Solutions":
        """One start from those of all folds at a strength (its index): F = S = 1."""
        mean, scale = self.mean.mean(0), self.scale.mean(0)
        raw = self.weight[:, strength] / self.scale[:, None]  # [F, C, D], by x
        bias = self.bias[:, strength] + ((mean - self.mean)[:, None] * raw).sum(-1)
        return Solutions(
            weight=(raw.mean(0) * scale)[None, None].astype(self.weight.dtype),
            bias=bias.mean(0)[None, None].astype(self.bias.dtype),
            mean=mean[None],
            scale=scale[None],
            gradient=np.full((1, 1), np.nan),
            iterations=np.zeros((1, 1), np.int64),
            passes=0,
        )


def solve(
    x: Matrix,
    y: NDArray[np.generic],
    *,
    classes: int,
    link: Link,
    strengths: Sequence[float],
    rows: NDArray[np.bool_],
    parts: Sequence[int],
    sample_weight: NDArray[np.floating] | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    start: Solutions | None = None,
    enough: Callable[[Solutions], bool] = lambda _: False,
    device: torch.device | str = "cpu",
    memory_bytes: int = 4 << 30,
) -> Solutions:
    """The minima of all folds and strengths.

    Args:
        x: [N, D], float32 (computed in it, sums over blocks in float64) or float64.
        y: softmax: classes int [N]; sigmoid: [N, C], 0 or 1 (or between).
        strengths: C, ascending.
        rows: [F, N], which rows each fold is fitted on. One fit: `np.ones((1, N), bool)`.
        parts: dimensions of each part of a row, each standardised by a scale of its own.
        sample_weight: [N]; a row of weight 2 is like two rows, in the statistics too.
        tolerance: greatest absolute entry of the gradient, by the weights of z and the bias, at which
            to stop (scikit-learn's lbfgs has the same rule).
        max_iterations: points evaluated for each fold and strength.
        start: an earlier solution, of as many folds or of one; its last strength is started from.
        enough: asked whenever one more strength is solved for all folds; where it says so, weaker
            regularisation is left out, and S is smaller than the number of `strengths`.
        memory_bytes: x larger than this is not held but read in blocks in each pass, with the same
            result.

    Returns:
        Where `max_iterations` or the precision of x came first, a warning is logged.
    """
    if list(strengths) != sorted(strengths):
        raise ValueError("strengths must ascend")
    device = torch.device(device)
    dtype = torch.float64 if getattr(x, "dtype", None) == np.float64 else torch.float32
    folds = len(rows)
    products = x.shape[0] * x.shape[1] * folds * classes
    with _threads(1 if products < SMALL else torch.get_num_threads()):
        blocks = Blocks(
            x, rows, outputs=folds * classes, dtype=dtype, device=device, memory_bytes=memory_bytes
        )
        targets = torch.from_numpy(y[blocks.order]).to(device, torch.long if link == "softmax" else dtype)
        weight = None
        if sample_weight is not None:
            weight = torch.from_numpy(np.asarray(sample_weight)[blocks.order]).to(device, dtype)
        standard = scaling(blocks, weight, folds, parts)
        objective = Objective(blocks, targets, weight, link, standard)
        basis = Basis.of(blocks.sample() / standard.scale.mean(0).to(dtype))
        penalties = 1 / (
            torch.tensor(strengths, dtype=torch.float64, device=device) * standard.count[:, None]
        )
        first = torch.zeros(folds, classes, blocks.d + 1, dtype=dtype, device=device)
        if start is not None:
            first = _converted(start, standard.mean, standard.scale).to(dtype)

        def solutions(minima: list[list[Minimum]]) -> Solutions:
            theta = np.stack([np.stack([at.theta.cpu().numpy() for at in lane]) for lane in minima])
            return Solutions(
                weight=theta[..., :-1],
                bias=theta[..., -1],
                mean=standard.mean.cpu().numpy(),
                scale=standard.scale.cpu().numpy(),
                gradient=np.array([[at.gradient for at in lane] for lane in minima]),
                iterations=np.array([[at.iterations for at in lane] for lane in minima]),
                passes=objective.passes,
            )

        lanes = Lanes(objective, first, penalties, basis)
        found = solutions(lanes.run(tolerance, max_iterations, lambda minima: enough(solutions(minima))))
    _warn(found, strengths, tolerance)
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _converted(start: Solutions, mean: Tensor, scale: Tensor) -> Tensor:
    """θ [F, C, D + 1] of the last strength of `start`, for rows standardised by `mean` and `scale`."""
    weight, bias, old_mean, old_scale = (
        torch.from_numpy(part).to(mean)
        for part in (start.weight[:, -1], start.bias[:, -1], start.mean, start.scale)
    )
    raw = weight / old_scale[:, None]  # [F, C, D], by x
    bias = bias + ((mean - old_mean)[:, None] * raw).sum(-1)
    return torch.cat([raw * scale[:, None], bias[..., None]], -1)


def _warn(found: Solutions, strengths: Sequence[float], tolerance: float) -> None:
    for fold, at in np.argwhere(found.gradient > tolerance).tolist():
        log.warning(
            "C = %g, fold %d: the gradient is %.1e after %d iterations, not %.0e",
            strengths[at],
            fold,
            found.gradient[fold, at],
            found.iterations[fold, at],
            tolerance,
        )
