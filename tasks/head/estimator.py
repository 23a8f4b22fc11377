"""The heads as scikit-learn estimators: for arrays that did not come from a manifest.

They take one part (one scale for all columns) unless `parts` says otherwise, choose among the same
candidates as the head stage by the same folds, and calibrate.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from tasks.head.fitted import FittedHead
from tasks.head.linear import Matrix
from tasks.head.mlp import EPOCHS
from tasks.head.training import Samples, train, train_at
from tasks.params import HeadParams
from tasks.records import Kind

DEFAULT = HeadParams()


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A head for classes.

    Parameters are those of `HeadParams`, and `parts`: lengths of the parts of a row, each
    standardised by a scale of its own; none: one part.

    Attributes:
        classes_: [C], sorted.
        trained_: how the head was chosen; none where the samples were too few for it, and the middle
            candidate was fitted.
    """

    def __init__(
        self,
        kind: Literal["logistic", "prototype", "knn", "mlp", "auto"] = "logistic",
        imbalance: Literal["none", "balanced", "logit_adjustment"] = "none",
        strengths: Sequence[float] = DEFAULT.strengths,
        neighbours: Sequence[int] = DEFAULT.neighbours,
        hidden: int = DEFAULT.hidden,
        folds: int = DEFAULT.folds,
        tolerance: float = DEFAULT.tolerance,
        max_iterations: int = DEFAULT.max_iterations,
        seed: int = DEFAULT.seed,
        parts: Sequence[int] | None = None,
    ) -> None:
        self.kind = kind
        self.imbalance = imbalance
        self.strengths = strengths
        self.neighbours = neighbours
        self.hidden = hidden
        self.folds = folds
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.seed = seed
        self.parts = parts

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """X [N, D], y [N] of any labels that can be sorted; where a class has fewer samples than
        there are folds, there are as many folds as it has."""
        x, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"classes have to be two or more, not the one class {self.classes_[0]!r}")
        params = HeadParams(
            kind=self.kind,
            imbalance=self.imbalance,
            strengths=tuple(self.strengths),
            neighbours=tuple(self.neighbours),
            hidden=self.hidden,
            folds=self.folds,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            seed=self.seed,
        )
        names = [str(name) for name in self.classes_]
        samples = Samples(x, index.astype(np.int64), _parts(x, self.parts))
        folds = min(self.folds, int(np.bincount(index).min()))
        if folds < 2:  # nothing can be held out
            kind: Kind = "logistic" if self.kind == "auto" else self.kind
            self.trained_, self.head_ = None, _at_middle(samples, names, kind, params)
        else:
            params = params.model_copy(update={"folds": folds})
            self.trained_ = train(samples, target="class", classes=names, params=params)
            self.head_ = self.trained_.fitted
        return self

    def predict_proba(self, X: ArrayLike) -> Matrix:  # noqa: N803
        """[N, C], calibrated, in the order of `classes_`."""
        check_is_fitted(self)
        return self.head_.outputs(validate_data(self, X, dtype=np.float32, reset=False))

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """[N], the likeliest class."""
        check_is_fitted(self)
        predicted: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return predicted


class HeadRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Ridge regression whose strength is chosen by what the fits without a sample say of it."""

    def __init__(
        self, strengths: Sequence[float] = DEFAULT.strengths, parts: Sequence[int] | None = None
    ) -> None:
        self.strengths = strengths
        self.parts = parts

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """X [N, D], y [N]."""
        x, y = validate_data(self, X, y, dtype=np.float32, y_numeric=True, ensure_min_samples=2)
        params = HeadParams(kind="ridge", strengths=tuple(self.strengths))
        samples = Samples(x, np.asarray(y, dtype=np.float64), _parts(x, self.parts))
        self.trained_ = train(samples, target="number", classes=(), params=params)
        self.head_ = self.trained_.fitted
        return self

    def predict(self, X: ArrayLike) -> Matrix:  # noqa: N803
        """[N]."""
        check_is_fitted(self)
        return self.head_.outputs(validate_data(self, X, dtype=np.float32, reset=False))[:, 0]


def _parts(x: NDArray[np.float32], parts: Sequence[int] | None) -> tuple[int, ...]:
    if parts is None:
        return (x.shape[1],)
    if sum(parts) != x.shape[1]:
        raise ValueError(f"parts sum to {sum(parts)}, and X has {x.shape[1]} columns")
    return tuple(parts)


def _at_middle(samples: Samples, names: Sequence[str], kind: Kind, params: HeadParams) -> FittedHead:
    """The head of the middle candidate, not calibrated."""
    choices: dict[Kind, Sequence[float]] = {
        "logistic": params.strengths,
        "knn": params.neighbours,
        "mlp": EPOCHS,
    }
    some = sorted(choices.get(kind, (0.0,)))
    middle = some[len(some) // 2]
    return train_at(samples, target="class", classes=names, kind=kind, strength=middle, params=params)
