"""Logistic heads, of classes (softmax) and of labels (sigmoids): what solver.py has to be asked."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.head.calibrate import Link
from tasks.head.linear import Linear, Matrix, Rows, chunks
from tasks.head.solver import Solutions, solve
from tasks.params import HeadParams


def held_out(
    x: Rows,
    y: NDArray[np.generic],
    folds: NDArray[np.int64],
    *,
    outputs: int,
    link: Link,
    parts: Sequence[int],
    weight: Matrix | None,
    params: HeadParams,
) -> tuple[Matrix, Solutions]:
    """The logits [S, N, K] of each sample by the fits without its fold, at each strength; and the
    fits.

    Args:
        x: [N, D].
        y: [N] class indices, or [N, K] labels.
        folds: [N], the fold of each sample.
        outputs: K.
        weight: [N], of the samples in the loss; none: all the same.
    """
    strengths = sorted(params.strengths)
    found = _solve(
        x, y, strengths, folds != np.arange(params.folds)[:, None], outputs, link, parts, weight, params
    )
    logits = np.empty((len(strengths), len(x), outputs))
    for fold in range(params.folds):
        rows = np.flatnonzero(folds == fold)
        for some in chunks(len(rows)):
            logits[:, rows[some]] = np.moveaxis(found.logits(x[rows[some]], fold), 1, 0)
    return logits, found


def fit(
    x: Rows,
    y: NDArray[np.generic],
    strength: float,
    *,
    outputs: int,
    link: Link,
    parts: Sequence[int],
    weight: Matrix | None,
    params: HeadParams,
    start: Solutions | None = None,
) -> Linear:
    """The head at C = `strength`, fitted on all rows; `start` is where the solver begins."""
    rows = np.ones((1, len(x)), dtype=bool)
    found = _solve(x, y, [strength], rows, outputs, link, parts, weight, params, start)
    return Linear(
        mean=found.mean[0],
        scale=found.scale[0],
        weight=found.weight[0, 0].astype(np.float64),
        bias=found.bias[0, 0].astype(np.float64),
    )


def _solve(
    x: Rows,
    y: NDArray[np.generic],
    strengths: Sequence[float],
    rows: NDArray[np.bool_],
    outputs: int,
    link: Link,
    parts: Sequence[int],
    weight: Matrix | None,
    params: HeadParams,
    start: Solutions | None = None,
) -> Solutions:
    return solve(
        x,
        y,
        classes=outputs,
        link=link,
        strengths=strengths,
        rows=rows,
        parts=parts,
        sample_weight=weight,
        tolerance=params.tolerance,
        max_iterations=params.max_iterations,
        start=start,
        device=device(),
    )


def device() -> str:
    """Where the solver computes: on a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
