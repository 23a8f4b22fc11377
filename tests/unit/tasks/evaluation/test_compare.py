import numpy as np
import pytest

from tasks.evaluation.compare import contributions, differences, holm, mcnemar, on_classes
from tasks.evaluation.metrics import Bootstrap, bootstrap, measure
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
    assert set(got) == set(METRICS["class"])
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


def bootstrapped(top: np.ndarray, y: np.ndarray, groups: list[int] | None = None) -> Bootstrap:
    return bootstrap(np.eye(2)[top] * 0.8 + 0.1, y, resamples=400, seed=0, groups=groups)


def test_differences__one_sample_says_nothing() -> None:
    y = np.array([0])
    got = differences(bootstrapped(y, y), bootstrapped(1 - y, y))["accuracy"]
    assert got.value == 1
    assert np.isnan([got.low, got.high, got.standard_error]).all()
    assert got.p_better == 0.5


def test_differences__one_sample_differs_from_itself_by_nothing() -> None:
    y = np.array([0])
    got = differences(bootstrapped(y, y), bootstrapped(y, y))["accuracy"]
    assert (got.value, got.low, got.high, got.standard_error, got.p_better) == (0, 0, 0, 0, 1)


def test_differences__better_is_lower_for_a_loss() -> None:
    y = np.arange(40) % 2
    worse = np.where(np.arange(40) < 12, 1 - y, y)  # the champion has 12 wrong, the challenger none
    got = differences(bootstrapped(y, y), bootstrapped(worse, y))
    assert got["log_loss"].value < 0 < got["accuracy"].value
    for name in ("log_loss", "accuracy"):
        assert got[name].p_better == pytest.approx(0.5**12)
        assert got[name].p_worse == 1


def test_differences__groups_count_once() -> None:
    y = np.arange(40) % 2
    worse = np.where(np.arange(40) < 12, 1 - y, y)
    groups = (np.arange(40) // 4).tolist()  # the 12 are three groups
    got = differences(bootstrapped(y, y, groups), bootstrapped(worse, y, groups))["accuracy"]
    assert got.p_better == pytest.approx(0.5**3)
    assert got.low <= 0  # 10 groups: no proof


def test_differences__nan_stays_nan() -> None:
    y = np.array([0, 1, 0])
    broken = bootstrap(np.full((3, 2), np.nan), y, resamples=400, seed=0)
    got = differences(broken, bootstrapped(y, y))["accuracy"]
    assert np.isnan([got.value, got.low, got.high, got.standard_error, got.p_better, got.p_worse]).all()


def test_differences__of_numbers() -> None:
    y = np.arange(30.0)
    one, two = (
        bootstrap((y + off)[:, None], y, resamples=200, seed=0, target="number") for off in (1.0, 3.0)
    )
    got = differences(one, two)
    assert got["mae"].value == pytest.approx(1 - 3)
    assert got["rmse"].value == pytest.approx(1 - 3)
    assert got["r2"].value == pytest.approx((9 - 1) * 30 / ((y - y.mean()) ** 2).sum())
    assert got["mae"].p_better == got["r2"].p_better == pytest.approx(0.5**30)


def test_contributions__sum_to_the_difference() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 50)
    one, two = (bootstrapped(generator.integers(0, 2, 50), y) for _ in range(2))
    for name, added in contributions(one, two).items():
        assert added.sum() == pytest.approx(one.points[name] - two.points[name], abs=1e-12), name


def test_mcnemar__hand_arithmetic() -> None:
    ours = np.array([True] * 5 + [False] * 1 + [True] * 10)
    theirs = np.array([False] * 5 + [True] * 1 + [True] * 10)
    got = mcnemar(ours, theirs)
    assert (got.only_challenger, got.only_champion) == (5, 1)
    assert got.p_better == pytest.approx((6 + 1) / 2**6)  # 5 or 6 of 6 coins
    assert got.p_worse == pytest.approx(1 - 1 / 2**6)  # at least 1 of 6


def test_mcnemar__without_disagreement_nothing_is_shown() -> None:
    got = mcnemar(np.ones(3, bool), np.ones(3, bool))
    assert (got.p_better, got.p_worse) == (1, 1)
    assert mcnemar(np.zeros(0, bool), np.zeros(0, bool)).p_better == 1


def test_holm__hand_arithmetic() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm__nan_stays_and_counts() -> None:
    got = holm([float("nan"), 0.01])
    assert np.isnan(got[0])
    assert got[1] == pytest.approx(0.02)
