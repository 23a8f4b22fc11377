"""The numbers of each slice of the test split: samples with the same value in a slice column."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tasks.evaluation.compare import differences
from tasks.evaluation.metrics import Bootstrap, Truth, bootstrap
from tasks.evaluation.sums import Floats, Ints
from tasks.params import EvaluationParams
from tasks.records import Difference, Interval, Target

SLICE_VALUES = 100  # of a slice column, the most frequent; a column of ids is no column of slices
OTHER = "(other)"  # the slice of the samples with rarer values
MISSING = "(missing)"  # the slice of the samples that have no value in a slice column


@dataclass(frozen=True)
class Outputs:
    """What the models say about samples, beside the truth."""

    target: Target
    truth: Truth  # [N], of labels [N, C]
    units: list[str]  # [N], the group of each sample, or its content
    challenger: Floats  # [N, C]
    champion: Floats | None  # [N, C]

    def bootstrapped(
        self, params: EvaluationParams, rows: Ints | None = None
    ) -> tuple[Bootstrap, Bootstrap | None]:
        """Challenger and champion (if any) on the same resamples of these rows."""
        some = np.arange(len(self.units)) if rows is None else rows
        units = [self.units[row] for row in some]

        def of(outputs: Floats) -> Bootstrap:
            return bootstrap(
                outputs[some],
                self.truth[some],
                resamples=params.bootstrap,
                seed=params.seed,
                bins=params.calibration_bins,
                target=self.target,
                groups=units,
            )

        return of(self.challenger), None if self.champion is None else of(self.champion)


@dataclass(frozen=True)
class Slices:
    """All by `column=value`."""

    metrics: dict[str, dict[str, Interval]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)


def measure(test: pd.DataFrame, columns: Sequence[str], outputs: Outputs, params: EvaluationParams) -> Slices:
    """The metrics of each slice, and the differences from the champion on its rows. A class that a slice
    lacks is left out of its means."""
    found = Slices()
    for name, rows in rows_of(test, columns):
        challenger, champion = outputs.bootstrapped(params, rows)
        found.metrics[name] = challenger.intervals(params.alpha)
        found.samples[name] = len(rows)
        found.units[name] = challenger.size
        if champion is not None:
            found.differences[name] = differences(challenger, champion, params.alpha)
    return found


def rows_of(test: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Ints]]:
    """`column=value` and the rows that have it, sorted by value within a column."""
    for column in columns:
        missing = test[column].isna()
        values = test[column].astype(object).map(str).mask(missing, MISSING)
        frequent = values.value_counts().index[:SLICE_VALUES]
        values = values.where(values.isin(frequent), OTHER)
        for value, rows in sorted(values.groupby(values).indices.items()):
            yield f"{column}={value}", np.asarray(rows, dtype=np.int64)
