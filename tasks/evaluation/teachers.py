"""What a student is compared with: its teachers' outputs for the test split, as one model's."""

from collections.abc import Sequence

import numpy as np

from tasks.errors import DataError
from tasks.evaluation.evaluate import ChampionResult
from tasks.evaluation.student import named
from tasks.evaluation.sums import Floats
from tasks.records import Target


def averaged(teachers: Sequence[ChampionResult], classes: Sequence[str], target: Target) -> ChampionResult:
    """What several teachers say together about the test split: the mean of their outputs [N, K], of
    probabilities in the order of `classes`; classes that a teacher alone knows are left out.

    Args:
        teachers: `version` is the digest of each one's package.

    Raises:
        DataError: there is none, or one lacks a class.
    """
    if not teachers:
        raise DataError("there is no teacher to compare the student with")
    placed = [_placed(one, classes, target) for one in teachers]
    version = named([one.version for one in teachers])
    return ChampionResult(version, tuple(classes), np.mean(placed, axis=0, dtype=np.float64))


def _placed(teacher: ChampionResult, classes: Sequence[str], target: Target) -> Floats:
    if target == "number":
        return np.asarray(teacher.outputs, dtype=np.float64)
    if lacking := sorted(set(classes) - set(teacher.classes)):
        raise DataError(f"teacher {teacher.version[:12]} does not know {lacking[0]}; name another teacher")
    columns = [teacher.classes.index(label) for label in classes]
    p: Floats = np.asarray(teacher.outputs, dtype=np.float64)[:, columns]
    if target == "labels":
        return p
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing is left: NaN, which fails the gate
        return np.asarray(p / p.sum(axis=1, keepdims=True))
