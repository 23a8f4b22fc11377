import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
)

from tasks.evaluation import metrics
from tasks.evaluation.metrics import bootstrap, interval, measure, resample_counts, standard_error
from tasks.evaluation.sums import Floats, Ints
from tasks.params import METRICS
from tasks.records import Target

# Two classes, four samples: right at .9, right at .6, wrong at .8, right at .7.
P = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.7, 0.3]])
Y = np.array([0, 1, 1, 0])


def simulated(n: int, c: int, seed: int = 0) -> tuple[Floats, Ints]:
    """Probabilities [n, c] that favour the label, with unequal classes."""
    generator = np.random.default_rng(seed)
    y = generator.choice(c, size=n, p=np.arange(1, c + 1) / (c * (c + 1) / 2))
    logits = generator.normal(size=(n, c))
    logits[np.arange(n), y] += 1.5
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), y


def test_measure__hand_arithmetic() -> None:
    got = measure(P, Y, bins=10)
    assert got["accuracy"] == pytest.approx(3 / 4)
    assert got["balanced_accuracy"] == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert got["macro_f1"] == pytest.approx((2 * 2 / (2 + 3) + 2 * 1 / (2 + 1)) / 2)
    assert got["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.2, 0.7]).mean())
    squares = [0.1**2 + 0.1**2, 0.4**2 + 0.4**2, 0.8**2 + 0.8**2, 0.3**2 + 0.3**2]
    assert got["brier"] == pytest.approx(sum(squares) / 4)
    # Each sample has a bin of its own.
    assert got["ece"] == pytest.approx((abs(0.9 - 1) + abs(0.6 - 1) + abs(0.8 - 0) + abs(0.7 - 1)) / 4)


def test_measure__ece_averages_within_a_bin() -> None:
    # Two bins; all confidences are in the upper one: mean .75, three of four right.
    assert measure(P, Y, bins=2)["ece"] == pytest.approx(abs((0.9 + 0.6 + 0.8 + 0.7) / 4 - 3 / 4), abs=1e-12)


@pytest.mark.parametrize("c", [2, 3, 12])
def test_measure__equals_scikit_learn(c: int) -> None:
    p, y = simulated(700, c)
    got, top = measure(p, y), p.argmax(axis=1)
    expected = {
        "accuracy": accuracy_score(y, top),
        "balanced_accuracy": balanced_accuracy_score(y, top),
        "macro_f1": f1_score(y, top, average="macro"),
        "log_loss": log_loss(y, p, labels=range(c)),
        "brier": brier_score_loss(np.eye(c)[y] if c > 2 else y, p if c > 2 else p[:, 1], scale_by_half=False),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-9), name


def test_measure__class_without_samples_or_predictions_is_as_in_scikit_learn() -> None:
    p, y = simulated(200, 4)
    y = np.where(y == 3, 0, y)  # class 3 is predicted, but no label
    p[:, 1] = 0  # class 1 is a label, but never predicted
    p /= p.sum(axis=1, keepdims=True)
    got, top = measure(p, y), p.argmax(axis=1)
    assert got["balanced_accuracy"] == pytest.approx(
        np.mean([(top[y == c] == c).mean() for c in (0, 1, 2)]), abs=1e-9
    )
    assert got["macro_f1"] == pytest.approx(f1_score(y, top, average="macro", zero_division=0), abs=1e-9)
    assert got["log_loss"] == pytest.approx(log_loss(y, p, labels=range(4)), abs=1e-9)


def test_measure__certain_and_wrong_is_finite() -> None:
    eps = np.finfo(np.float64).eps
    assert measure([[1.0, 0.0]], [1])["log_loss"] == pytest.approx(-math.log(eps))


def test_measure__float32_softmax_counts_as_distribution() -> None:
    p, y = simulated(1000, 5)
    assert measure(p.astype(np.float32), y)["log_loss"] == pytest.approx(measure(p, y)["log_loss"], abs=1e-6)


@pytest.mark.parametrize("row", [[np.nan, 0.5], [np.inf, 0.0], [-0.2, 1.2], [0.3, 0.3], [np.inf, -np.inf]])
def test_measure__one_bad_row_makes_every_metric_nan(row: list[float]) -> None:
    p = P.copy()
    p[2] = row
    got = bootstrap(p, Y, resamples=100, seed=0)
    assert all(math.isnan(value) for value in got.points.values())
    for found in (*got.intervals().values(), *got.per_class(["a", "b"])["a"].values()):
        assert np.isnan([found.value, found.low, found.high]).all()


def test_measure__no_samples_is_nan() -> None:
    assert all(math.isnan(value) for value in measure(np.empty((0, 3)), np.empty(0, int)).values())


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        (P, Y[:3], "not \\[N, C\\] and \\[N\\]"),
        (P[0], Y[:1], "not \\[N, C\\]"),
        (P, [0, 1, 1, 2], "columns 0 to 1, found 0 to 2"),
        (P, [-1, 1, 1, 0], "found -1"),
    ],
)
def test_measure__misfit_is_refused(p: Floats, y: Ints, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(p, y)


def test_bootstrap__draws_equal_metrics_of_the_resamples() -> None:
    p, y = simulated(40, 4)
    drawn = bootstrap(p, y, resamples=50, seed=7)
    counts = np.concatenate([chunk.copy() for chunk in resample_counts(40, 50, 7)])
    for b in range(50):
        sample = np.repeat(np.arange(40), counts[b].astype(int))
        for name, value in measure(p[sample], y[sample]).items():
            assert drawn.draws[name][b] == pytest.approx(value, abs=1e-12), name


def test_bootstrap__class_that_vanishes_is_left_out_of_the_mean() -> None:
    # Class 1 has one sample, always wrong: balanced accuracy is 1/2 with it and 1 without it.
    p = np.array([[0.9, 0.1]] * 10)
    y = np.array([0] * 9 + [1])
    got = bootstrap(p, y, resamples=2000, seed=0)
    assert set(got.draws["balanced_accuracy"]) == {0.5, 1.0}
    # A resample lacks it with probability (9/10)^10 = .349; standard error .011.
    assert (got.draws["balanced_accuracy"] == 1).mean() == pytest.approx(0.9**10, abs=0.05)
    recall = got.per_class(["a", "b"])["b"]["recall"]
    assert (recall.value, recall.low, recall.high) == (0, 0, 0)


def test_bootstrap__class_that_is_never_predicted_has_precision_zero() -> None:
    got = bootstrap([[0.9, 0.1], [0.9, 0.1]], [0, 1], resamples=100, seed=0).per_class(["a", "b"])
    assert got["b"]["precision"].value == 0
    assert got["b"]["precision"].high == 0
    assert got["a"]["precision"].value == pytest.approx(1 / 2)


def test_bootstrap__per_class_equals_scikit_learn() -> None:
    p, y = simulated(300, 5)
    got = bootstrap(p, y, resamples=100, seed=0).per_class(list("abcde"))
    expected = precision_recall_fscore_support(y, p.argmax(axis=1), labels=range(5), zero_division=0)
    for i, label in enumerate("abcde"):
        for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
            found = got[label][name]
            assert found.value == pytest.approx(values[i], abs=1e-9)
            assert found.low <= found.value <= found.high


def test_bootstrap__is_the_same_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = simulated(101, 3)
    whole = bootstrap(p, y, resamples=130, seed=3)
    monkeypatch.setattr(metrics, "CHUNK", 101 * 7)
    pieces = bootstrap(p, y, resamples=130, seed=3)
    for name in METRICS["class"]:
        np.testing.assert_allclose(whole.draws[name], pieces.draws[name], rtol=0, atol=1e-14)


def test_bootstrap__seed_changes_the_interval_and_not_the_point() -> None:
    p, y = simulated(80, 3)
    one, two = (bootstrap(p, y, resamples=100, seed=seed) for seed in (1, 2))
    assert one.points == two.points
    assert one.intervals() != two.intervals()
    assert one.intervals() == bootstrap(p, y, resamples=100, seed=1).intervals()


def test_resample_counts__are_multinomial() -> None:
    counts = np.concatenate([chunk.copy() for chunk in resample_counts(20, 4000, 0)])
    assert (counts.sum(axis=1) == 20).all()
    # A count is binomial(20, 1/20): mean 1, variance 20 · 1/20 · 19/20 = .95.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(counts.var(axis=0), 0.95, atol=0.12)


def test_bootstrap__interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 150 data sets of 150 samples from a model that is right with probability .8, in each class.
    generator, covered, wide = np.random.default_rng(0), 0, 0.0
    for trial in range(150):
        y = generator.integers(0, 2, 150)
        right = generator.random(150) < 0.8
        top = np.where(right, y, 1 - y)
        p = np.where(np.eye(2)[top] == 1, 0.8, 0.2)
        found = bootstrap(p, y, resamples=200, seed=trial).intervals()["balanced_accuracy"]
        covered += found.low <= 0.8 <= found.high
        wide += (found.high - found.low) / 150
    # .95 is meant; the percentile method falls a little short, and 150 trials have an error of .018.
    assert 0.88 <= covered / 150 <= 0.99
    assert wide == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 150), rel=0.1)


# Three samples, two labels: both right; one label too many; none is true and none said.
LABELS_P = np.array([[0.9, 0.2], [0.8, 0.5], [0.1, 0.4]])
LABELS_Y = np.array([[True, False], [True, False], [False, False]])


def test_measure__labels_hand_arithmetic() -> None:
    got = measure(LABELS_P, LABELS_Y, target="labels", bins=10)
    assert set(got) == set(METRICS["labels"])
    assert got["subset_accuracy"] == pytest.approx(2 / 3)
    assert got["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert got["micro_f1"] == pytest.approx(2 * 2 / (2 + 3))
    said = [0.9, 1 - 0.2, 0.8, 1 - 0.5, 1 - 0.1, 1 - 0.4]
    assert got["log_loss"] == pytest.approx(-np.log(said).mean())
    assert got["brier"] == pytest.approx(np.mean([(1 - q) ** 2 for q in said]))
    # Each probability has a bin of its own.
    assert got["ece"] == pytest.approx(np.mean([0.1, 0.2, 0.2, 0.5, 0.1, 0.4]))


def test_measure__labels_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    y = generator.random((400, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]
    p = np.clip(0.6 * y + 0.5 * generator.random((400, 5)), 0, 1)
    got = measure(p, y, target="labels")
    assert got["subset_accuracy"] == pytest.approx(accuracy_score(y, p >= 0.5))
    assert got["macro_f1"] == pytest.approx(f1_score(y, p >= 0.5, average="macro"))
    assert got["micro_f1"] == pytest.approx(f1_score(y, p >= 0.5, average="micro"))
    assert got["log_loss"] == pytest.approx(np.mean([log_loss(y[:, c], p[:, c]) for c in range(5)]))
    assert got["brier"] == pytest.approx(np.mean([brier_score_loss(y[:, c], p[:, c]) for c in range(5)]))


def test_measure__no_label_anywhere_leaves_f1_undefined() -> None:
    got = measure([[0.1, 0.2]], [[False, False]], target="labels")
    assert got["subset_accuracy"] == 1
    assert math.isnan(got["macro_f1"])
    assert math.isnan(got["micro_f1"])


def test_measure__numbers_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    y = generator.normal(1e6, 2.0, size=300)  # far from 0: Σy² alone would lose the digits
    o = y + generator.normal(size=300)
    got = measure(o[:, None], y, target="number")
    assert got["r2"] == pytest.approx(r2_score(y, o))
    assert got["mae"] == pytest.approx(mean_absolute_error(y, o))
    assert got["rmse"] == pytest.approx(root_mean_squared_error(y, o))


def test_measure__equal_numbers_have_no_r2() -> None:
    got = measure([[1.0], [3.0]], [2.0, 2.0], target="number")
    assert math.isnan(got["r2"])
    assert (got["mae"], got["rmse"]) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_measure__bad_output_makes_every_metric_nan_for_every_target(bad: float) -> None:
    labels = measure([[0.5, bad]], [[True, False]], target="labels")
    number = measure([[bad]], [1.0], target="number")
    assert all(math.isnan(value) for value in (*labels.values(), *number.values()))


@pytest.mark.parametrize(
    ("outputs", "truth", "target"),
    [
        ([[0.5, 0.5]], [0], "labels"),
        ([[0.5, 0.5]], [0.1], "number"),
        ([[0.5]], [np.nan], "number"),
    ],
)
def test_measure__truth_of_another_target_is_refused(
    outputs: list[list[float]], truth: list[float], target: Target
) -> None:
    with pytest.raises(ValueError, match=r"\[N, C\] and \[N, C\]|\[N, 1\] and \[N\]|finite"):
        measure(outputs, truth, target=target)


def test_measure__one_class_is_no_division_by_zero() -> None:
    got = measure([[1.0], [1.0]], [0, 0])
    assert (got["accuracy"], got["balanced_accuracy"], got["macro_f1"], got["ece"]) == (1, 1, 1, 0)


def test_bootstrap__groups_are_drawn_whole() -> None:
    p, y = simulated(40, 3)
    groups = [f"g{i // 4}" for i in range(40)]
    got = bootstrap(p, y, resamples=30, seed=7, groups=groups)
    assert got.size == 10
    counts = np.concatenate([chunk.copy() for chunk in resample_counts(10, 30, 7)])
    for b in range(30):
        rows = [
            4 * group + at for group in range(10) for _ in range(int(counts[b, group])) for at in range(4)
        ]
        for name, value in measure(p[rows], y[rows]).items():
            assert got.draws[name][b] == pytest.approx(value, abs=1e-12), name
    assert got.points == pytest.approx(measure(p, y))


def test_bootstrap__groups_of_one_are_the_samples() -> None:
    p, y = simulated(30, 3)
    single = bootstrap(p, y, resamples=50, seed=1, groups=list(range(30)))
    assert single.intervals() == bootstrap(p, y, resamples=50, seed=1).intervals()


def test_bootstrap__copies_of_a_sample_do_not_narrow_the_interval() -> None:
    p, y = simulated(100, 3)
    once = bootstrap(p, y, resamples=400, seed=0).intervals()["accuracy"]
    four = bootstrap(
        np.repeat(p, 4, axis=0),
        np.repeat(y, 4),
        resamples=400,
        seed=0,
        groups=np.repeat(np.arange(100), 4).tolist(),
    ).intervals()["accuracy"]
    assert (four.value, four.low, four.high) == pytest.approx((once.value, once.low, once.high))


def test_bootstrap__standard_error_is_that_of_a_mean() -> None:
    p, y = simulated(200, 2)
    accuracy = measure(p, y)["accuracy"]
    expected = math.sqrt(accuracy * (1 - accuracy) / 199)
    got = bootstrap(p, y, resamples=4000, seed=0).standard_errors()["accuracy"]
    assert got == pytest.approx(expected, rel=0.05)


def test_interval__covers_one_minus_alpha_of_many_units() -> None:
    draws = np.arange(10_001) / 10_000
    got = interval(0.5, draws, units=10**9, alpha=0.1)
    assert (got.low, got.high) == pytest.approx((0.05, 0.95), abs=1e-6)


def test_interval__of_few_units_is_wider() -> None:
    draws = np.random.default_rng(0).normal(size=100_000)
    got = interval(0.0, draws, units=5)
    # t(.975; 4) = 2.776, and √(5/4) for the bootstrap's own shortfall; z = 1.96.
    assert got.high == pytest.approx(2.776 * math.sqrt(5 / 4), abs=0.1)


def test_standard_error__of_one_unit_is_unknown() -> None:
    assert math.isnan(standard_error(0.5, np.full(100, 0.5), units=1))
