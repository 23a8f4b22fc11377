"""Logistic heads, of classes (softmax) and of labels (sigmoids): what solver.py has to be asked."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.head.calibrate import Link, losses
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
    memory_bytes: int,
    judge: Callable[[Matrix], None] = lambda _: None,
) -> tuple[Callable[[int], Matrix], Solutions]:
    """What gives the logits [M, K] of each sample with a fold by the fit without that, at one of the S
    strengths from the least on; and the fits. The logits of all strengths at once (a million samples
    of a thousand classes: 8 GB each) are never held: `judge` is given them one after the other, and to
    compute them again takes one pass over x, of which the fits took hundreds. Once the loss has
    risen twice in a row, weaker regularisation is not tried: it overfits more, and its fits take
    longest.

    Args:
        x: [N, D].
        y: [N] class indices, or [N, K] labels.
        folds: [N], the fold of each sample; -1: none, every fit has it. M samples have one.
        outputs: K.
        weight: [N], of the samples in the loss; none: all the same.
        memory_bytes: larger x is read in blocks.
        judge: looks at the logits [M, K] of each strength.
    """
    loss: list[float] = []
    judged, count = np.flatnonzero(folds >= 0), int(folds.max()) + 1
    truth, weighed = y[judged], None if weight is None else weight[judged]

    def logits_of(one: Solutions) -> Matrix:
        logits = np.empty((len(judged), outputs))
        for fold in range(count):
            places = np.flatnonzero(folds[judged] == fold)
            for some in chunks(len(places)):
                logits[places[some]] = one.logits(x[judged[places[some]]], fold)[:, 0]
        return logits

    def overfits(found: Solutions) -> bool:
        """Judges the last strength of `found`."""
        logits = logits_of(found.at(-1))
        judge(logits)
        loss.append(float(np.average(losses(logits, truth), weights=weighed)))
        return len(loss) > 2 and loss[-3] < loss[-2] < loss[-1]

    strengths, rows = sorted(params.strengths), folds != np.arange(count)[:, None]
    found = _solve(x, y, strengths, rows, outputs, link, parts, weight, params, memory_bytes, enough=overfits)
    return lambda at: logits_of(found.at(at)), found


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
    memory_bytes: int,
    start: Solutions | None = None,
) -> Linear:
    """The head at C = `strength`, fitted on all rows; `start` is where the solver begins."""
    rows = np.ones((1, len(x)), dtype=bool)
    return linear(
        _solve(x, y, [strength], rows, outputs, link, parts, weight, params, memory_bytes, start=start)
    )


def linear(found: Solutions) -> Linear:
    """The head of one fit at one strength."""
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
    memory_bytes: int,
    *,
    start: Solutions | None = None,
    enough: Callable[[Solutions], bool] = lambda _: False,
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
        enough=enough,
        device=device(),
        memory_bytes=memory_bytes,
    )


def device() -> str:
    """Where the solver computes: on a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
