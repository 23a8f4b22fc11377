"""A head of samples: what is chosen and calibrated by samples that the fits did not see (those that each
fold held out, or the validation split), and the refit on all that a head may be fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.head.balance import balance_of
from tasks.head.calibrate import Chosen, calibrate, not_calibrated
from tasks.head.candidates import Candidates, Problem
from tasks.head.choose import one_standard_error
from tasks.head.fitted import Calibration, FittedHead, outputs_of
from tasks.head.judging import Judging, Samples
from tasks.head.linear import Matrix
from tasks.params import HeadParams
from tasks.records import Kind, Score, Target

__all__ = ["Samples", "Trained", "cross_validate", "train", "train_at"]

# From the cheapest to serve on; knn carries all training samples with it.
CHEAPEST: tuple[Kind, ...] = ("prototype", "logistic", "mlp", "knn")


@dataclass(frozen=True)
class Trained:
    """A fitted head, and how it was chosen."""

    fitted: FittedHead
    kind: Kind
    strength: float | None  # C; of knn k, of mlp the epochs, of prototype none
    strengths: dict[str, float]  # candidate -> loss on what was held out
    kinds: dict[str, Score]  # of kind auto: each candidate's
    calibration: Chosen
    # [N, K], calibrated outputs of the fits that did not see the sample; with `Samples.validation` of its
    # M rows, [M, K], by a choice and a calibration that did not see them either.
    held_out: Matrix
    score: Score  # of the choice


def train(samples: Samples, *, target: Target, classes: Sequence[str], params: HeadParams) -> Trained:
    """The head of `params.kind`; of kind auto the cheapest whose loss on what was held out is within
    one standard error of the least.

    Args:
        target: what `samples.y` is.
        classes: names of the K outputs; of a number none.

    Raises:
        DataError: there are fewer groups than folds.
    """
    problem = _problem(samples, target, classes, params)
    kinds = CHEAPEST if params.kind == "auto" else (params.kind,)
    judging = _judging(problem, target)
    tried = _tried(problem, target, kinds, judging)
    best = tried[one_standard_error(np.stack([each.losses[each.chosen] for each in tried]))]
    outputs = best.outputs(best.chosen)  # [M, K]
    chosen = not_calibrated(1) if judging is None else _calibration(problem, target, judging, outputs)
    fitted = FittedHead(
        target=target,
        kind=best.kind,
        classes=tuple(classes),
        model=best.refit(),
        calibration=problem.balance.before(chosen.calibration, best.kind),
    )
    return Trained(
        fitted=fitted,
        kind=best.kind,
        strength=best.strength,
        strengths={
            f"{strength:g}": float(loss.mean())
            for strength, loss in zip(best.strengths, best.losses, strict=False)
        },
        kinds={each.kind: each.score for each in tried} if params.kind == "auto" else {},
        calibration=chosen,
        held_out=(
            outputs_of(chosen.calibration(outputs), target)
            if judging is None or judging.units is None
            else outputs_of(_unseen(problem, target, judging, tried), target)
        ),
        score=best.score,
    )


def train_at(
    samples: Samples,
    *,
    target: Target,
    classes: Sequence[str],
    kind: Kind,
    strength: float | None,
    params: HeadParams,
    calibration: Calibration | None = None,
) -> FittedHead:
    """The head of one kind and strength (as `Trained` has them), fitted once on all samples.

    Args:
        calibration: another such head's, as its `FittedHead` has it; none: not calibrated.
    """
    problem = _problem(samples, target, classes, params)
    return FittedHead(
        target=target,
        kind=kind,
        classes=tuple(classes),
        model=problem.fit(kind, strength),
        calibration=calibration or problem.balance.before(Calibration.none(problem.outputs), kind),
    )


def cross_validate(samples: Samples, *, target: Target, classes: Sequence[str], params: HeadParams) -> Matrix:
    """The losses [F] of the folds (or of the units set apart) of the head that `train` would give,
    without the refit; of the kinds auto and mlp those of kind logistic, which is far quicker and ranks
    embeddings much alike.

    Raises:
        DataError: there are fewer groups than folds.
    """
    kind: Kind = "logistic" if params.kind == "auto" or params.kind == "mlp" else params.kind
    problem = _problem(samples, target, classes, params)
    (found,) = _tried(problem, target, (kind,), _judging(problem, target))
    losses: Matrix = found.losses[found.chosen]
    return losses


def _problem(samples: Samples, target: Target, classes: Sequence[str], params: HeadParams) -> Problem:
    outputs = 1 if target == "number" else len(classes)
    counted = None if samples.validation is None else ~samples.validation
    return Problem(samples, outputs, balance_of(samples.y, outputs, params, counted), params)


def _judging(problem: Problem, target: Target) -> Judging | None:
    """None: of numbers, of which each is left out by itself."""
    if target == "number" and problem.samples.validation is None:
        return None
    return Judging.of(problem.samples, target, problem.params)


def _tried(
    problem: Problem, target: Target, kinds: Sequence[Kind], judging: Judging | None
) -> list[Candidates]:
    if judging is None or target == "number":
        return [problem.ridge(judging)]
    return [problem.candidates(kind, judging) for kind in kinds]


def _calibration(
    problem: Problem,
    target: Target,
    judging: Judging,
    outputs: Matrix,
    some: NDArray[np.bool_] | slice = slice(None),
) -> Chosen:
    """Of outputs [M, K], by `some` of their rows."""
    if target == "number":
        return not_calibrated(1)
    y, weight = problem.judged(judging)
    return calibrate(outputs[some], y[some], judging.folds[some], None if weight is None else weight[some])


def _unseen(problem: Problem, target: Target, judging: Judging, tried: Sequence[Candidates]) -> Matrix:
    """Calibrated logits or numbers [M, K] of the samples set apart for judging, for which each fold of
    them is chosen and calibrated by the other folds: no threshold is read off samples that it was
    fitted to. It takes no fit: all candidates are those of the samples that are not set apart.
    """
    by_choice: dict[tuple[int, int], list[int]] = {}  # kind and strength -> folds
    for fold in range(int(judging.folds.max()) + 1):
        units = judging.units_without(fold)
        strengths = [one_standard_error(each.losses[:, units]) for each in tried]
        of_kinds = [each.losses[at][units] for each, at in zip(tried, strengths, strict=True)]
        kind = one_standard_error(np.stack(of_kinds))
        by_choice.setdefault((kind, strengths[kind]), []).append(fold)
    unseen = np.empty((len(judging.folds), problem.outputs))
    for (kind, at), folds in by_choice.items():
        outputs = tried[kind].outputs(at)  # [M, K]
        for fold in folds:
            own = judging.folds == fold
            rest = _calibration(problem, target, judging, outputs, ~own)
            unseen[own] = rest.calibration(outputs[own])
    return unseen
