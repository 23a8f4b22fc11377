import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from tasks.head.estimator import HeadClassifier, HeadRegressor

CHECKED = [
    HeadClassifier(strengths=(0.3,), folds=2, tolerance=1e-3),
    HeadClassifier(kind="knn", neighbours=(1, 5), folds=2),
    HeadRegressor(strengths=(0.1, 10.0)),
]


@parametrize_with_checks(CHECKED)  # type: ignore[untyped-decorator]
def test_estimator__passes_the_check(estimator: object, check: object) -> None:
    assert callable(check)
    check(estimator)


def test_classifier__knows_names_probabilities_and_how_it_was_chosen() -> None:
    chance = np.random.default_rng(0)
    labels = np.array(["ok", "crack", "dent"])[np.arange(120) % 3]
    x = chance.normal(size=(120, 4)) + 2 * np.eye(4)[np.arange(120) % 3]
    head = HeadClassifier(strengths=(0.01, 0.1, 1.0), folds=3).fit(x, labels)
    assert list(head.classes_) == ["crack", "dent", "ok"]
    p = head.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (head.predict(x) == head.classes_[p.argmax(axis=1)]).all()
    assert (head.predict(x) == labels).mean() > 0.8
    assert head.trained_ is not None
    assert head.trained_.strength in (0.01, 0.1, 1.0)


def test_classifier__one_sample_of_a_class_is_fitted_without_a_choice() -> None:
    head = HeadClassifier(kind="prototype", folds=3).fit([[0.0], [0.1], [5.0]], [0, 0, 1])
    assert head.trained_ is None
    assert list(head.predict([[0.05], [5.0]])) == [0, 1]


def test_classifier__parts_have_to_be_of_the_columns() -> None:
    with pytest.raises(ValueError, match="parts sum to 3, and X has 2 columns"):
        HeadClassifier(parts=(1, 2)).fit([[0.0, 1.0], [1.0, 0.0]], [0, 1])


def test_regressor__is_ridge_of_the_standardised() -> None:
    chance = np.random.default_rng(1)
    x = chance.normal(size=(50, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5]) + 3 + 0.1 * chance.normal(size=50)
    head = HeadRegressor(strengths=(0.5,)).fit(x, y)
    standard = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).mean())
    reference = RidgeCV(alphas=[2.0]).fit(standard.astype(np.float64), y)  # alpha = 1/C
    np.testing.assert_allclose(head.predict(x), reference.predict(standard), rtol=1e-4)
