"""The candidates of each kind of head: what each says of samples it was not fitted on, and its fit
on all samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.head import logistic, mlp, neighbours, prototype
from tasks.head.balance import Balance
from tasks.head.calibrate import Link, cross_calibrated, losses
from tasks.head.choose import fold_losses, one_standard_error, score
from tasks.head.fitted import Model
from tasks.head.linear import Matrix, Rows, Subset
from tasks.head.neighbours import Neighbours
from tasks.head.ridge import RidgePath
from tasks.head.solver import Solutions
from tasks.head.standard import standards
from tasks.params import HeadParams
from tasks.records import Kind, Score

LINKS: dict[str, Link] = {"logistic": "softmax", "multilabel": "sigmoid"}


@dataclass(frozen=True)
class Samples:
    """What a head is trained on. N samples, D = length of an embedding."""

    x: Rows  # float32 [N, D], an array or a memory map
    y: NDArray[np.generic]  # class: int64 [N], indices; labels: [N, C], 0 or 1; number: float64 [N]
    parts: tuple[int, ...]  # lengths of the parts of an embedding that share a scale; they sum to D
    groups: Sequence[str] | None = None  # copies and groups stay in one fold; none: each is its own
    memory_bytes: int = 4 << 30  # x larger than this is read in blocks


@dataclass(frozen=True)
class Candidates:
    """The candidates of one kind, from the most to the least regularised."""

    kind: Kind
    strengths: tuple[float, ...]  # empty: there is one candidate, and no strength
    # [N, K], adjusted logits, or numbers, of the choice's fits that did not see the sample; computed when
    # asked for: those of all strengths at once would be S times as large as what is needed.
    outputs: Callable[[], Matrix]
    losses: Matrix  # [S, F], of each fold
    chosen: int
    refit: Callable[[], Model]  # on all samples

    @property
    def strength(self) -> float | None:
        """The chosen one."""
        return self.strengths[self.chosen] if self.strengths else None

    @property
    def score(self) -> Score:
        """Of the choice."""
        return score(self.losses[self.chosen])


@dataclass(frozen=True)
class Problem:
    """Samples and how heads are fitted to them. K = number of outputs."""

    samples: Samples
    outputs: int  # K
    balance: Balance
    params: HeadParams

    def candidates(self, kind: Kind, folds: NDArray[np.int64]) -> Candidates:
        """All of one kind, cross-validated over `folds` [N].

        A strength is judged by the loss of its logits as they are calibrated by the other folds:
        calibration mends a confidence that is too low, and what it can't mend should decide. With
        little data that favours stronger regularisation (surface inspection, blocks.0 to 4: cross-
        validated log loss .294 at C = .032, where the plain loss takes C = .056 and ends at .299).
        """
        y, weight = self.samples.y, self.balance.judging
        of_folds: list[Matrix] = []

        def judge(logits: Matrix) -> None:  # [N, K]
            calibrated = cross_calibrated(self.balance.adjusted(logits, kind), y, folds, weight)
            of_folds.append(fold_losses(losses(calibrated, y), folds, weight))

        strengths, logits_at, start = self._held_out(kind, folds, judge)
        chosen = one_standard_error(np.stack(of_folds))
        strength = strengths[chosen] if strengths else None
        begin = start.average(chosen) if start else None
        return Candidates(
            kind,
            strengths,
            lambda: self.balance.adjusted(logits_at(chosen), kind),
            np.stack(of_folds),
            chosen,
            lambda: self.fit(kind, strength, begin),
        )

    def ridge(self) -> Candidates:
        """Ridge regression at every strength, each sample a fold of its own (or with its group)."""
        x, y = self.samples.x, np.asarray(self.samples.y, dtype=np.float64)
        strengths = tuple(sorted(self.params.strengths))
        path = RidgePath.of(x, y, self.samples.parts)
        without = path.left_out(x, y, strengths, self.samples.groups)  # [S, N]
        errors = (without - y) ** 2
        chosen = one_standard_error(errors)
        return Candidates(
            "ridge",
            strengths,
            lambda: without[chosen][:, None],
            errors,
            chosen,
            lambda: path.fit(strengths[chosen]),
        )

    def fit(self, kind: Kind, strength: float | None, start: Solutions | None = None) -> Model:
        """The model of all samples.

        Args:
            strength: C; of knn k, of mlp the epochs, of prototype none.
            start: where the solver begins.
        """
        x, parts, params = self.samples.x, self.samples.parts, self.params
        value = strength or 0.0
        if kind == "ridge":
            return RidgePath.of(x, np.asarray(self.samples.y, dtype=np.float64), parts).fit(value)
        if kind in LINKS:
            return logistic.fit(
                x,
                self.samples.y,
                value,
                outputs=self.outputs,
                link=LINKS[kind],
                parts=parts,
                weight=self.balance.fitting,
                params=params,
                memory_bytes=self.samples.memory_bytes,
                start=start,
            )
        return self._path(kind, [value], Subset(x, np.arange(len(x))))[0]

    def _held_out(
        self, kind: Kind, folds: NDArray[np.int64], judge: Callable[[Matrix], None]
    ) -> tuple[tuple[float, ...], Callable[[int], Matrix], Solutions | None]:
        """The candidates' strengths, what gives the logits [N, K] of one, and the solver's fits if it
        made them; `judge` is given the logits of each, one after the other."""
        x = self.samples.x
        if kind in LINKS:
            strengths = tuple(sorted(self.params.strengths))
            logits_at, found = logistic.held_out(
                x,
                self.samples.y,
                folds,
                outputs=self.outputs,
                link=LINKS[kind],
                parts=self.samples.parts,
                weight=self.balance.fitting,
                params=self.params,
                memory_bytes=self.samples.memory_bytes,
                judge=judge,
            )
            return strengths[: found.weight.shape[1]], logits_at, found
        # Many neighbours and few epochs are the simple end.
        choices: dict[Kind, tuple[float, ...]] = {
            "knn": tuple(sorted(self.params.neighbours, reverse=True)),
            "mlp": mlp.EPOCHS,
        }
        strengths = choices.get(kind, ())
        logits = np.empty((max(1, len(strengths)), len(x), self.outputs))
        for fold in range(self.params.folds):
            rows = np.flatnonzero(folds == fold)
            path = self._path(kind, strengths or [0.0], Subset(x, np.flatnonzero(folds != fold)))
            held_out = Subset(x, rows)
            if isinstance(path[0], Neighbours):  # one search serves every k
                logits[:, rows] = path[0].logits_at(held_out, [int(k) for k in strengths])
            else:
                for at, model in enumerate(path):
                    logits[at, rows] = model.logits(held_out)
        for each in logits:
            judge(each)
        return strengths, lambda at: logits[at], None

    def _path(self, kind: Kind, strengths: Sequence[float], rest: Subset) -> list[Model]:
        """The models of some rows at each candidate; of knn one, of the most neighbours."""
        y = np.asarray(self.samples.y, dtype=np.int64)[rest.rows]
        (mean,), (scale,) = standards(rest, self.samples.parts)
        if kind == "prototype":
            return [prototype.class_means(rest, y, self.outputs, mean, scale)]
        if kind == "knn":
            return [neighbours.remember(rest, y, self.outputs, mean, scale, int(max(strengths)))]
        weight = None if self.balance.fitting is None else self.balance.fitting[rest.rows]
        return list(
            mlp.train_epochs(
                rest,
                y,
                self.outputs,
                mean,
                scale,
                weight=weight,
                hidden=self.params.hidden,
                epochs=[int(epochs) for epochs in strengths],
                seed=self.params.seed,
            )
        )
