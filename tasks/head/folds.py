"""Folds of the cross-validation: copies and groups stay together, classes and labels are spread."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.data import units
from tasks.errors import DataError
from tasks.records import Manifest, Target

# Units. With 30, one choice and temperature in sixty was as bad as those of the folds, with 50 none
# (docs/adr/0008).
LEAST_VALIDATION = 50


def check_folds(manifest: Manifest, folds: int) -> None:
    """Every class or label needs a training sample in every fold, of numbers two; known before
    anything is embedded.

    Raises:
        DataError: there are fewer; the message has the count.
    """
    counts = manifest.counts["train"]
    if manifest.target == "number":
        samples = sum(counts.values())
        if samples < 2 * folds:
            raise DataError(
                f"{samples} training samples are fewer than two for each of head.folds = {folds};"
                " add samples or lower head.folds"
            )
        return
    label = min(manifest.classes, key=lambda name: counts.get(name, 0))
    if counts.get(label, 0) < folds:
        noun = "class" if manifest.target == "class" else "label"
        raise DataError(
            f"{noun} {label!r} has {counts.get(label, 0)} training samples, fewer than head.folds = {folds};"
            " add samples or lower head.folds"
        )


def check_validation(manifest: Manifest) -> None:
    """A head on a tuned backbone is chosen and calibrated by the validation split; known before the
    backbone is trained.

    Raises:
        DataError: that has too few units (samples that share no group and no content).
    """
    count = len(set(units.of_split(manifest, "validation")))
    if count < LEAST_VALIDATION:
        raise DataError(
            f"{count} independent validation samples are fewer than the {LEAST_VALIDATION} by which a head"
            " on a backbone that was trained on the training split is chosen and calibrated; add samples,"
            " raise data.validation_fraction, or keep the frozen backbone (finetune.when: never)"
        )


def assign_folds(
    y: NDArray[np.generic], groups: Sequence[str] | None, folds: int, seed: int, target: Target
) -> NDArray[np.int64]:
    """The fold [N] of each sample, 0 … folds - 1; a group is never in two of them.

    Args:
        y: [N] class indices, [N, C] labels, or [N] numbers.
        groups: the group of each of the N samples; none: each is its own.

    Raises:
        DataError: there are fewer groups than folds.
    """
    rows = len(y)
    names = groups if groups is not None else [str(row) for row in range(rows)]
    member = np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1) if rows else np.empty(0, int)
    count = int(member.max()) + 1 if rows else 0
    if count < folds:
        raise DataError(
            f"{count} groups of training samples are fewer than head.folds = {folds};"
            " add groups or lower head.folds"
        )
    of_group = _spread(_members(y, member, count, folds, target), folds, np.random.default_rng(seed))
    fold: NDArray[np.int64] = of_group[member]
    return fold


def _members(
    y: NDArray[np.generic], member: NDArray[np.int64], count: int, folds: int, target: Target
) -> NDArray[np.float64]:
    """[groups, kinds of samples]: how many samples of each kind (class, label, range of the number)
    a group has; the last column has all of them."""
    if target == "labels":
        kinds = np.asarray(y > 0, dtype=np.float64)  # type: ignore[operator]  # bool or float
    else:
        if target == "number":  # by rank, in stripes of a few folds' worth
            stripes = max(1, min(10, len(y) // (2 * folds)))
            rank = np.argsort(np.argsort(y, kind="stable"), kind="stable")
            which = rank * stripes // len(y)
        else:
            which = np.asarray(y, dtype=np.int64)
        kinds = np.zeros((len(y), int(which.max()) + 1))
        kinds[np.arange(len(y)), which] = 1.0
    kinds = np.concatenate([kinds, np.ones((len(y), 1))], axis=1)
    counted = np.zeros((count, kinds.shape[1]))
    np.add.at(counted, member, kinds)
    return counted


def _spread(counted: NDArray[np.float64], folds: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each group. Groups that are alike are dealt out evenly; what is left over of them,
    fewer than there are folds, goes where it is lacking, the rarest kinds of samples first.

    Sechidis et al., On the Stratification of Multi-Label Data (2011), with groups for samples.
    """
    of_group = np.full(len(counted), -1, dtype=np.int64)
    lacking = np.tile(counted.sum(axis=0) / folds, (folds, 1))  # [folds, kinds]
    order = chance.permutation(len(counted))
    _, alike = np.unique(counted[order], axis=0, return_inverse=True)
    by_kind = np.argsort(alike.reshape(-1), kind="stable")
    for some in np.split(order[by_kind], np.flatnonzero(np.diff(alike.reshape(-1)[by_kind])) + 1):
        each = len(some) // folds
        of_group[some[: each * folds]] = np.tile(np.arange(folds), each)
        lacking -= each * counted[some[0]]
    while (left := of_group[order] < 0).any():
        waiting = order[left]
        remaining = counted[waiting].sum(axis=0)
        kind = int(np.where(remaining > 0, remaining, np.inf).argmin())
        having = waiting[counted[waiting, kind] > 0]
        for group in having[np.argsort(-counted[having, kind], kind="stable")]:  # large ones first
            short = lacking[:, kind]
            best = np.flatnonzero(short >= short.max() - 1e-9)
            room = lacking[best, -1]
            fold = int(chance.choice(best[room >= room.max() - 1e-9]))
            of_group[group] = fold
            lacking[fold] -= counted[group]
    return of_group
