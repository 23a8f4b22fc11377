"""What is learned, by what loss, and by what training is judged; and what is done about rare classes.

Legend: N or B samples, K outputs (classes, labels, or 1 for a number).
"""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tasks.records import Target


def targets(
    y: NDArray[Any],
    outputs: int,
    target: Target,
    smoothing: float = 0.0,
    standard: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What the outputs should be, float32 [N, K].

    Args:
        y: class indices int64 [N], labels [N, K] of 0 and 1, or numbers [N]; see `head.fit.truth`.
        outputs: K.
        smoothing: part of a class that is spread over all of them
            (Szegedy et al., https://arxiv.org/abs/1512.00567); labels and numbers stay as they are.
        standard: mean and standard deviation of numbers, see `standard`.
    """
    if target == "class":
        return F.one_hot(torch.from_numpy(y), outputs) * (1 - smoothing) + smoothing / outputs
    if target == "labels":
        return torch.from_numpy(y).float()
    mean, deviation = standard
    return torch.from_numpy((y - mean) / deviation).float()[:, None]


def standard(y: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of the numbers of the training split; the latter 1 where all are
    equal."""
    return float(y.mean()), float(y.std()) or 1.0


def loss(logits: Tensor, y: Tensor, target: Target) -> Tensor:
    """Of each sample, float32 [B]: cross entropy, binary cross entropy summed over the labels, or the
    squared error of the standardised number.

    Args:
        logits: [B, K].
        y: [B, K], see `targets`.
    """
    logits = logits.float()
    if target == "class":
        return -(y * logits.log_softmax(1)).sum(1)
    if target == "labels":
        return F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1)
    return (logits - y).square().sum(1)


def score(outputs: NDArray[Any], y: NDArray[Any], target: Target) -> float:
    """How good outputs [N, K] are, of which the best is 1: balanced accuracy of classes, average
    precision of labels (mean over those that occur), R² of numbers.

    Args:
        outputs: anything that orders the classes or labels, or numbers as y has them.
        y: class indices [N], labels [N, K], or numbers [N].

    Returns:
        NaN where an output is no finite number, or nothing can be judged.
    """
    if not (np.isfinite(outputs).all() and len(y)):
        return float("nan")
    if target == "class":
        right = outputs.argmax(1) == y
        return float(np.mean([right[y == label].mean() for label in np.unique(y)]))
    if target == "labels":
        occurring = np.flatnonzero(y.any(axis=0))
        precisions = [_average_precision(outputs[:, label], y[:, label] > 0) for label in occurring]
        return float(np.mean(precisions)) if precisions else float("nan")
    spread = np.square(y - y.mean()).sum()
    return float(1 - np.square(y - outputs[:, 0]).sum() / spread) if spread else float("nan")


def weights(y: NDArray[Any], balance: Literal["none", "loss", "sampling"]) -> tuple[Tensor, Tensor | None]:
    """The weight of each sample in the loss, float32 [N] of mean 1, and that by which it is drawn,
    float64 [N] (None: each once), by `FinetuneParams.balance`.

    Balanced, all classes among y weigh the same in sum. Labels and numbers are taken as they come,
    as the head has it.
    """
    even = torch.ones(len(y))
    if balance == "none" or y.ndim > 1 or not np.issubdtype(y.dtype, np.integer):
        return even, None
    classes, found = np.unique(y, return_inverse=True)
    inverse = torch.from_numpy((len(y) / (len(classes) * np.bincount(found)))[found])
    return (inverse.float(), None) if balance == "loss" else (even, inverse)


def _average_precision(scores: NDArray[Any], true: NDArray[np.bool_]) -> float:
    """Sum over the thresholds of precision x gain in recall; samples of equal score are one step."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of runs of equal scores
    hits = true[order].cumsum()[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])
