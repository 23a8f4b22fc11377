"""A head of samples: folds, what is chosen by them, calibration on what they held out, and the refit
on all samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.head.balance import balance_of
from tasks.head.calibrate import Chosen, calibrate, not_calibrated
from tasks.head.candidates import Candidates, Problem, Samples
from tasks.head.choose import one_standard_error
from tasks.head.fitted import Calibration, FittedHead, outputs_of
from tasks.head.folds import assign_folds
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
    strengths: dict[str, float]  # candidate -> cross-validated loss
    kinds: dict[str, Score]  # of kind auto: each candidate's
    calibration: Chosen
    held_out: Matrix  # [N, K], calibrated outputs of the fits that did not see the sample
    score: Score  # of the choice


def train(samples: Samples, *, target: Target, classes: Sequence[str], params: HeadParams) -> Trained:
    """The head of `params.kind`; of kind auto the cheapest whose cross-validated loss is within one
    standard error of the least.

    Args:
        target: what `samples.y` is.
        classes: names of the K outputs; of a number none.

    Raises:
        DataError: there are fewer groups than folds.
    """
    problem = _problem(samples, target, classes, params)
    kinds = CHEAPEST if params.kind == "auto" else (params.kind,)
    tried = _tried(problem, target, kinds)
    best = tried[one_standard_error(np.stack([each.losses[each.chosen] for each in tried]))]
    outputs = best.outputs()  # [N, K]
    if target == "number":
        chosen = not_calibrated(1)
    else:
        chosen = calibrate(outputs, samples.y, _folds(problem, target), problem.balance.judging)
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
        held_out=outputs_of(chosen.calibration(outputs), target),
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
    """The losses [F] of the folds of the head that `train` would give, without the refit; of the
    kinds auto and mlp those of kind logistic, which is far quicker and ranks embeddings much alike.

    Raises:
        DataError: there are fewer groups than folds.
    """
    kind: Kind = "logistic" if params.kind == "auto" or params.kind == "mlp" else params.kind
    (found,) = _tried(_problem(samples, target, classes, params), target, (kind,))
    losses: Matrix = found.losses[found.chosen]
    return losses


def _problem(samples: Samples, target: Target, classes: Sequence[str], params: HeadParams) -> Problem:
    outputs = 1 if target == "number" else len(classes)
    return Problem(samples, outputs, balance_of(samples.y, outputs, params), params)


def _tried(problem: Problem, target: Target, kinds: Sequence[Kind]) -> list[Candidates]:
    if target == "number":
        return [problem.ridge()]
    return [problem.candidates(kind, _folds(problem, target)) for kind in kinds]


def _folds(problem: Problem, target: Target) -> NDArray[np.int64]:
    samples, params = problem.samples, problem.params
    return assign_folds(samples.y, samples.groups, params.folds, params.seed, target)
