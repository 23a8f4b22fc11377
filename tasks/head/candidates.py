"""The candidates of each kind of head: what each says of samples it was not fitted on, and its fit
on all samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.head import logistic, mlp, neighbours, prototype
from tasks.head.balance import Balance
from tasks.head.calibrate import Link, cross_calibrated, losses
from tasks.head.choose import one_standard_error, score
from tasks.head.fitted import Model
from tasks.head.judging import Judging, Samples
from tasks.head.linear import Matrix, Subset
from tasks.head.neighbours import Neighbours
from tasks.head.ridge import RidgePath
from tasks.head.solver import Solutions
from tasks.head.standard import standards
from tasks.params import HeadParams
from tasks.records import Kind, Score

LINKS: dict[str, Link] = {"logistic": "softmax", "multilabel": "sigmoid"}


@dataclass(frozen=True)
class Candidates:
    """The candidates of one kind, from the most to the least regularised."""

    kind: Kind
    strengths: tuple[float, ...]  # empty: there is one candidate, and no strength
    # [M, K], adjusted logits, or numbers, of one candidate's fits that did not see the sample; computed
    # when asked for: those of all strengths at once would be S times as large as what is needed.
    outputs: Callable[[int], Matrix]
    losses: Matrix  # [S, F], of each fold or unit
    chosen: int
    refit: Callable[[], Model]  # on all samples that a head may be fitted on

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

    def judged(self, judging: Judging) -> tuple[NDArray[np.generic], Matrix | None]:
        """y and weight of the M samples that candidates are judged on."""
        weight = self.balance.judging
        return self.samples.y[judging.rows], None if weight is None else weight[judging.rows]

    def candidates(self, kind: Kind, judging: Judging) -> Candidates:
        """All of one kind, each judged on samples that its fits did not see.

        A strength is judged by the loss of its logits as they are calibrated by the other folds:
        calibration mends a confidence that is too low, and what it can't mend should decide. With
        little data that favours stronger regularisation (surface inspection, blocks.0 to 4: cross-
        validated log loss .294 at C = .032, where the plain loss takes C = .056 and ends at .299).
        """
        y, weight = self.judged(judging)
        of_folds: list[Matrix] = []

        def judge(logits: Matrix) -> None:  # [M, K]
            calibrated = cross_calibrated(self.balance.adjusted(logits, kind), y, judging.folds, weight)
            of_folds.append(judging.means(losses(calibrated, y), weight))

        strengths, logits_at, start = self._held_out(kind, judging.fits, judge)
        chosen = one_standard_error(np.stack(of_folds))
        strength = strengths[chosen] if strengths else None

        def refit() -> Model:
            if start is None:
                return self.fit(kind, strength)
            if len(start.weight) == 1:  # the one fit has all the rows that there are for it
                return logistic.linear(start.at(chosen))
            return self.fit(kind, strength, start.average(chosen))

        return Candidates(
            kind,
            strengths,
            lambda at: self.balance.adjusted(logits_at(at), kind),
            np.stack(of_folds),
            chosen,
            refit,
        )

    def ridge(self, judging: Judging | None) -> Candidates:
        """Ridge regression at every strength; where no samples are set apart for judging, each sample
        is a fold of its own (or with its group)."""
        x, truth, _ = self.samples.fitted()
        y = np.asarray(truth, dtype=np.float64)
        strengths = tuple(sorted(self.params.strengths))
        path = RidgePath.of(x, y, self.samples.parts)
        if judging is None:
            without = path.left_out(x, y, strengths, self.samples.groups)  # [S, N]
            errors = (without - y) ** 2
        else:
            some = Subset(self.samples.x, judging.rows)
            without = np.stack([path.fit(strength).logits(some)[:, 0] for strength in strengths])  # [S, M]
            apart = np.asarray(self.judged(judging)[0], dtype=np.float64)
            errors = np.stack([judging.means((said - apart) ** 2, None) for said in without])
        chosen = one_standard_error(errors)
        return Candidates(
            "ridge",
            strengths,
            lambda at: without[at][:, None],
            errors,
            chosen,
            lambda: path.fit(strengths[chosen]),
        )

    def fit(self, kind: Kind, strength: float | None, start: Solutions | None = None) -> Model:
        """The model of all samples that are not set apart for judging.

        Args:
            strength: C; of knn k, of mlp the epochs, of prototype none.
            start: where the solver begins.
        """
        parts, params, weight = self.samples.parts, self.params, self.balance.fitting
        x, y, rows = self.samples.fitted()
        value = strength or 0.0
        if kind == "ridge":
            return RidgePath.of(x, np.asarray(y, dtype=np.float64), parts).fit(value)
        if kind in LINKS:
            return logistic.fit(
                x,
                y,
                value,
                outputs=self.outputs,
                link=LINKS[kind],
                parts=parts,
                weight=None if weight is None else weight[rows],
                params=params,
                memory_bytes=self.samples.memory_bytes,
                start=start,
            )
        return self._path(kind, [value], Subset(self.samples.x, rows))[0]

    def _held_out(
        self, kind: Kind, folds: NDArray[np.int64], judge: Callable[[Matrix], None]
    ) -> tuple[tuple[float, ...], Callable[[int], Matrix], Solutions | None]:
        """The candidates' strengths, what gives the logits [M, K] of one, and the solver's fits if it
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
        judged = np.flatnonzero(folds >= 0)
        logits = np.empty((max(1, len(strengths)), len(judged), self.outputs))
        for fold in range(int(folds.max()) + 1):
            rows = folds[judged] == fold
            path = self._path(kind, strengths or [0.0], Subset(x, np.flatnonzero(folds != fold)))
            held_out = Subset(x, judged[rows])
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
