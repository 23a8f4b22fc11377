import numpy as np
import pytest

from tasks.evaluation.compare import differences, on_classes
from tasks.evaluation.metrics import bootstrap, measure
from tasks.params import METRICS


def test_on_classes__missing_class_gets_probability_zero() -> None:
    got = on_classes([[0.3, 0.7]], ["c", "a"], ["a", "b", "c"])
    np.testing.assert_array_equal(got, [[0.7, 0.0, 0.3]])


def test_on_classes__class_without_column_is_refused() -> None:
    with pytest.raises(ValueError, match="'z'"):
        on_classes([[0.3, 0.7]], ["a", "z"], ["a", "b"])


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_on_classes__columns_that_are_not_the_classes_are_refused(classes: list[str]) -> None:
    with pytest.raises(ValueError, match="a column for each"):
        on_classes([[0.3, 0.7]], classes, ["a", "b", "c"])


def test_on_classes__extra_classes_change_no_metric() -> None:
    p, y = np.random.default_rng(0).dirichlet(np.ones(3), size=60), np.arange(60) % 3
    wider = on_classes(p, ["b", "c", "d"], ["a", "b", "c", "d", "e"])
    for name, value in measure(wider, y + 1).items():
        assert value == pytest.approx(measure(p, y)[name], abs=1e-12), name


def test_differences__identical_models_differ_by_exactly_nothing() -> None:
    p, y = np.random.default_rng(0).dirichlet(np.ones(4), size=90), np.arange(90) % 4
    one, two = (bootstrap(p, y, resamples=200, seed=5) for _ in range(2))
    got = differences(one, two)
    assert set(got) == set(METRICS)
    for name, found in got.items():
        assert (found.metric, found.value, found.low, found.high) == (name, 0.0, 0.0, 0.0)


def test_differences__is_challenger_minus_champion() -> None:
    y = np.array([0, 1, 0, 1])
    right = np.array([[0.9, 0.1], [0.1, 0.9]] * 2)
    one_wrong = right.copy()
    one_wrong[0] = [0.1, 0.9]
    got = differences(
        bootstrap(right, y, resamples=100, seed=0), bootstrap(one_wrong, y, resamples=100, seed=0)
    )
    assert got["accuracy"].value == pytest.approx(4 / 4 - 3 / 4)
    assert got["log_loss"].value == pytest.approx((-np.log(0.9) + np.log(0.1)) / 4)
    assert got["accuracy"].low == 0  # no resample in which the champion is better


def test_differences__pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 400)
    champion = np.where(generator.random(400) < 0.8, y, 1 - y)
    challenger = np.where(generator.random(400) < 0.02, 1 - champion, champion)  # 2 % other answers
    one, two = (
        bootstrap(np.eye(2)[top] * 0.8 + 0.1, y, resamples=500, seed=0) for top in (challenger, champion)
    )
    paired, alone = differences(one, two)["accuracy"], one.intervals()["accuracy"]
    assert paired.high - paired.low < (alone.high - alone.low) / 2


@pytest.mark.parametrize("change", ["seed", "labels", "resamples"])
def test_differences__other_resamples_are_refused(change: str) -> None:
    p, y = np.full((6, 2), 0.5), np.array([0, 1] * 3)
    one = bootstrap(p, y, resamples=100, seed=0)
    two = bootstrap(
        p,
        1 - y if change == "labels" else y,
        resamples=101 if change == "resamples" else 100,
        seed=1 if change == "seed" else 0,
    )
    with pytest.raises(ValueError, match="differ in samples, seed or number"):
        differences(one, two)
