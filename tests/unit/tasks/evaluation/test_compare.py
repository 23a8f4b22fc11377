import numpy as np
import pytest
from scipy.stats import t as student

from tasks.evaluation.compare import contributions, differences, holm, mcnemar, on_classes, on_labels, worst
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


def test_on_labels__what_is_not_wanted_is_left_out() -> None:
    got = on_labels([[0.3, 0.7, 0.2]], ["a", "old", "c"], ["b", "c", "a"])
    np.testing.assert_array_equal(got, [[0.0, 0.2, 0.3]])


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
        assert (found.at_worst, found.unseen) == (0.0, 0.0)


def test_differences__equal_answers_of_two_models_are_no_proof() -> None:
    y = np.arange(60) % 2
    sure, less = (np.where(np.arange(2) == y[:, None], p, 1 - p) for p in (0.9, 0.8))
    one, two = (bootstrap(p, y, resamples=200, seed=0) for p in (sure, less))
    got = differences(one, two)["accuracy"]
    assert (got.value, got.low, got.high) == (0, 0, 0)
    assert got.at_worst == got.unseen == pytest.approx(student.ppf(0.975, 59) ** 2 / 60)


def test_differences__a_rare_class_may_hide_more() -> None:
    y = np.array([0] * 55 + [1] * 5)
    sure, less = (np.where(np.arange(2) == y[:, None], p, 1 - p) for p in (0.9, 0.8))
    one, two = (bootstrap(p, y, resamples=200, seed=0) for p in (sure, less))
    got = differences(one, two)
    # One sample of the rare class is a fifth of its recall.
    assert got["balanced_accuracy"].unseen == pytest.approx(student.ppf(0.975, 59) ** 2 / 5 / 2)
    assert got["log_loss"].unseen == 0


@pytest.mark.parametrize("together", [1, 30])
def test_differences__few_groups_are_no_proof(together: int) -> None:
    y = np.arange(60) % 2
    answers = np.where(np.arange(60) % 30 == 0, 1 - y, y)  # one of 30 is wrong, in every group
    groups = (np.arange(60) // together).tolist()
    got = differences(bootstrapped(answers, y, groups), bootstrapped(y, y, groups))["accuracy"]
    assert got.low <= got.value == pytest.approx(-1 / 30)
    if together == 30:
        # Both groups lose as much, so resamples of two groups know of no more; t of one degree of freedom.
        assert got.low == pytest.approx(-1 / 30)
        assert got.at_worst == pytest.approx(1 / 30 + student.ppf(0.975, 1) ** 2 / 2)
    else:
        assert 0.1 < got.at_worst < 0.2


def test_worst__of_losses_alone_is_wilsons_bound() -> None:
    # c = 3 of 10,000 lost: Wilson's bound of a rare loss, (c + z²/2 + z √(c + z²/4)) / n.
    added = np.where(np.arange(10_000) < 3, -1e-4, 0.0)
    z = 1.96
    bound, unseen = worst(added, 1e-4)
    assert bound == pytest.approx((3 + z**2 / 2 + z * np.sqrt(3 + z**2 / 4)) / 10_000, rel=1e-3)
    assert unseen == pytest.approx(z**2 / 10_000, rel=1e-3)


def test_worst__without_a_stake_is_the_t_interval() -> None:
    added = np.array([0.1, -0.2, 0.3, 0.0, 0.1])
    error = added.std(ddof=1) * np.sqrt(5)  # of the sum
    bound, unseen = worst(added, 0.0, alpha=0.1)
    assert bound == pytest.approx(student.ppf(0.95, 4) * error - 0.3)
    assert unseen == 0


def test_worst__one_unit_says_nothing() -> None:
    assert np.isnan(worst(np.array([0.1]), 1.0)).all()


@pytest.mark.parametrize("wins", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(("samples", "loss"), [(50, 0.02), (50, 0.1), (100, 0.05), (200, 0.02), (200, 0.1)])
def test_worst__loss_of_the_margin_is_rarely_let_through(samples: int, loss: float, wins: float) -> None:
    drawn = np.random.default_rng(0).random((1500, samples))
    signs = np.where(drawn < wins, 1, np.where(drawn < 2 * wins + loss, -1, 0))
    passed = [worst(sign / samples, 1 / samples)[0] <= loss + 1e-9 for sign in signs]
    assert np.mean(passed) <= 0.025


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
