"""Choices by the loss on what was held out, with the one-standard-error rule.

Hastie et al., The Elements of Statistical Learning, 7.10.1: the simplest candidate whose loss is
within one standard error of the least. With few samples the least loss is least partly by luck.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.head.linear import Matrix
from tasks.records import Block, Score

SHOWN = 20  # losses in an error


def score(losses: Matrix) -> Score:
    """The mean and its standard error of the losses [F] of folds or units."""
    error = losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return Score(value=float(losses.mean()), standard_error=float(error))


def one_standard_error(losses: Matrix) -> int:
    """Which candidate to take.

    Args:
        losses: [S, F], of S candidates, simplest first, on F folds or units.

    Raises:
        DataError: a loss is no number.
    """
    _check("candidate", losses)
    return _first_within([score(each) for each in losses])


def fold_losses(losses: Matrix, folds: NDArray[np.int64], weight: Matrix | None = None) -> Matrix:
    """The (weighted) mean [F] over each fold of the losses [N] of samples."""
    weight = np.ones(len(losses)) if weight is None else weight
    means: Matrix = np.bincount(folds, weight * losses) / np.bincount(folds, weight)
    return means


def unit_losses(losses: Matrix, units: NDArray[np.int64], weight: Matrix | None = None) -> Matrix:
    """A number [U] for each unit of the losses [M] of samples: their mean is the (weighted) mean of the
    samples, and its standard error that of a ratio of two sums over units, of which one may be larger
    than another (Cochran, Sampling Techniques, 6.3)."""
    weight = np.ones(len(losses)) if weight is None else weight
    mean = np.average(losses, weights=weight)
    sums = np.bincount(units, weight * (losses - mean))
    means: Matrix = mean + sums * (len(sums) / weight.sum())
    return means


def choose_blocks(
    blocks: Sequence[Block], losses_of: Callable[[tuple[int, ...]], Matrix]
) -> tuple[tuple[int, ...], dict[str, Score]]:
    """Greedy forward selection: from the best block, the one is added that lowers the loss most, as
    long as one does; then of these steps the first that is not worse than the last by more than one
    standard error.

    It is the error of the differences of the folds (or units), which all choices share: how much harder
    one fold is than another says nothing about blocks.

    Surface inspection, of blocks.0 to blocks.6 (mean, max, std) and network: it takes blocks.0 to
    blocks.4, cross-validated log loss .288 (test .354); network alone .418 (test .481), blocks.2 to
    blocks.4 with network .337 (test .413).

    Args:
        blocks: what there is to choose from.
        losses_of: losses [F] of the folds or units that a head on some blocks (their places,
            ascending) did not see.

    Returns:
        The chosen blocks' places, ascending, and the score of every choice that was tried, by the
        names of its blocks.

    Raises:
        DataError: a loss is no number.
    """
    names = _names(blocks)
    tried: dict[str, Score] = {}
    steps: list[tuple[tuple[int, ...], Matrix]] = []
    while len(steps) < len(blocks):
        before = steps[-1][0] if steps else ()
        found: dict[tuple[int, ...], Matrix] = {}
        for place in sorted(set(range(len(blocks))) - set(before)):
            some = tuple(sorted((*before, place)))
            found[some] = losses_of(some)
            together = " + ".join(names[each] for each in some)
            _check(together, found[some][None])
            tried[together] = score(found[some])
        best = min(found, key=lambda some: float(found[some].mean()))
        if steps and found[best].mean() >= steps[-1][1].mean():
            break
        steps.append((best, found[best]))
    worse = [score(losses - steps[-1][1]) for _, losses in steps]
    enough = next(at for at, of in enumerate(worse) if of.value <= of.standard_error)
    return steps[enough][0], tried


def _check(what: str, losses: Matrix) -> None:
    """Whether all losses [S, F] are numbers: nothing is least among others."""
    for at, each in enumerate(losses):
        if not np.isfinite(each).all():
            which = what if len(losses) == 1 else f"{what} {at + 1} of {len(losses)}"
            some = each if len(each) <= SHOWN else each[~np.isfinite(each)][:SHOWN]
            shown = ", ".join(f"{loss:.3g}" for loss in some)
            raise DataError(
                f"{which}: the losses on what was held out are not all numbers ({shown}); "
                "look for embeddings or labels that are not finite or very large"
            )


def _first_within(scores: Sequence[Score]) -> int:
    best = min(scores, key=lambda of: of.value)
    bound = best.value + best.standard_error
    return next(at for at, of in enumerate(scores) if of.value <= bound)


def _names(blocks: Sequence[Block]) -> list[str]:
    """A name for each block: its layer, its view unless that is the image as it is, and the start of
    its digest where that leaves two alike."""
    names = [
        block.layer if block.view == "identity" else f"{block.layer} of {block.view}" for block in blocks
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({block.digest[:8]})"
        for name, block in zip(names, blocks, strict=True)
    ]
