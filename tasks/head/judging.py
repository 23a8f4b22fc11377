"""What candidates are judged on: what each fold of the training split holds out, or the validation
split where the backbone was trained on the labels of all folds (docs/adr/0008)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.head.choose import fold_losses, unit_losses
from tasks.head.folds import assign_folds
from tasks.head.linear import Matrix, Rows, Subset
from tasks.params import HeadParams
from tasks.records import Target


@dataclass(frozen=True)
class Samples:
    """What a head is trained on. N samples, D = length of an embedding."""

    x: Rows  # float32 [N, D], an array or a memory map
    y: NDArray[np.generic]  # class: int64 [N], indices; labels: [N, C], 0 or 1; number: float64 [N]
    parts: tuple[int, ...]  # lengths of the parts of an embedding that share a scale; they sum to D
    groups: Sequence[str] | None = None  # copies and groups stay in one fold; none: each is its own
    memory_bytes: int = 4 << 30  # x larger than this is read in blocks
    # [N], the rows that no model is fitted on and all are judged on; none: the folds take turns.
    validation: NDArray[np.bool_] | None = None

    def fitted(self) -> tuple[Rows, NDArray[np.generic], NDArray[np.int64]]:
        """x, y and numbers of the rows that the final head is fitted on."""
        if self.validation is None:
            return self.x, self.y, np.arange(len(self.y))
        rows = np.flatnonzero(~self.validation)
        return Subset(self.x, rows), self.y[rows], rows


@dataclass(frozen=True)
class Judging:
    """Which fit is judged on which samples. N samples, of which M are judged."""

    fits: NDArray[np.int64]  # [N], the fit that does not have the sample; -1: all have it
    folds: NDArray[np.int64]  # [M], of what is calibrated: by the other folds
    units: NDArray[np.int64] | None = None  # [M], of which losses are the means; none: the folds are

    @classmethod
    def of(cls, samples: Samples, target: Target, params: HeadParams) -> "Judging":
        """The folds of all samples, or those of the validation split, to which no model is fitted.

        Raises:
            DataError: there are fewer groups than folds.
        """
        if samples.validation is None:
            folds = assign_folds(samples.y, samples.groups, params.folds, params.seed, target)
            return cls(folds, folds)
        rows = np.flatnonzero(samples.validation)
        groups = samples.groups
        names = [str(row) if groups is None else groups[row] for row in rows.tolist()]
        # They cost no fit. With two, what one of them calibrates would be judged by nothing else.
        count = max(3, params.folds)
        return cls(
            np.where(samples.validation, 0, -1),
            assign_folds(samples.y[rows], names, count, params.seed, target),
            np.unique(names, return_inverse=True)[1].reshape(-1).astype(np.int64),
        )

    @property
    def rows(self) -> NDArray[np.int64]:
        """[M], the judged ones of the N samples."""
        return np.flatnonzero(self.fits >= 0)

    def means(self, losses: Matrix, weight: Matrix | None) -> Matrix:
        """[F] of folds or [U] of units, of the losses [M] of samples weighted by `weight` [M]."""
        if self.units is None:
            return fold_losses(losses, self.folds, weight)
        return unit_losses(losses, self.units, weight)

    def units_without(self, fold: int) -> NDArray[np.bool_]:
        """Which units [U] are not of a fold; a unit is of one."""
        units = self.folds if self.units is None else self.units
        of_unit = np.empty(int(units.max()) + 1, dtype=np.int64)
        of_unit[units] = self.folds
        without: NDArray[np.bool_] = of_unit != fold
        return without
