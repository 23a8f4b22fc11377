import math

import numpy as np
import pytest

from tasks.evaluation import calibration
from tasks.evaluation.calibration import chance_ece, reliability, selective
from tasks.evaluation.metrics import measure
from tasks.records import Confidence, Conformal

# Two classes, four samples: right at .9, right at .6, wrong at .8, right at .7.
P = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.7, 0.3]])
Y = np.array([0, 1, 1, 0])


def test_reliability__hand_arithmetic() -> None:
    got = reliability(P, Y, bins=4)  # confidences .9, .6, .8, .7: bins (.75, 1] and (.5, .75]
    assert got.count.tolist() == [0, 0, 2, 2]
    np.testing.assert_allclose(got.confidence, [np.nan, np.nan, 0.65, 0.85])
    np.testing.assert_allclose(got.accuracy, [np.nan, np.nan, 1.0, 0.5])


def test_reliability__bins_are_closed_on_the_right() -> None:
    assert reliability([[0.5, 0.5], [1.0, 0.0]], [0, 0], bins=2).count.tolist() == [1, 1]


def test_reliability__bad_rows_are_left_out() -> None:
    p = P.copy()
    p[0] = np.nan
    assert reliability(p, Y, bins=1).count.tolist() == [3]


def test_reliability__of_labels_counts_every_label() -> None:
    got = reliability([[0.9, 0.2], [0.7, 0.6]], [[True, False], [True, False]], bins=2, target="labels")
    assert got.count.tolist() == [1, 3]
    np.testing.assert_allclose(got.confidence, [0.2, (0.9 + 0.7 + 0.6) / 3])
    np.testing.assert_allclose(got.accuracy, [0, 2 / 3])


def test_chance_ece__one_sample_is_off_by_what_it_could_not_say() -> None:
    # Right with .8: off by .2; wrong with .2: off by .8. The mean is 2 · .8 · .2.
    got = [chance_ece([[0.8, 0.2]], [0], seed=seed) for seed in range(40)]
    assert np.mean(got) == pytest.approx(2 * 0.8 * 0.2, abs=0.02)


def test_chance_ece__certain_model_has_none() -> None:
    assert chance_ece([[1.0, 0.0], [0.0, 1.0]], [1, 1], seed=0) == 0


def test_chance_ece__is_what_a_calibrated_model_shows() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, size=300)
    p = np.stack([confidence, 1 - confidence], axis=1)
    shown = [measure(p, (generator.random(300) > confidence).astype(int), bins=10)["ece"] for _ in range(200)]
    assert chance_ece(p, np.zeros(300, int), seed=0, bins=10) == pytest.approx(np.mean(shown), rel=0.1)


def test_chance_ece__shrinks_with_the_root_of_the_samples() -> None:
    few, many = (
        chance_ece(np.tile([[0.7, 0.3]], (n, 1)), np.zeros(n, int), seed=0, bins=1) for n in (100, 10_000)
    )
    # One bin: the mean of |mean of n coins - .7| is √(2/π · .7 · .3 / n).
    assert few == pytest.approx(math.sqrt(2 / math.pi * 0.21 / 100), rel=0.2)
    assert many == pytest.approx(math.sqrt(2 / math.pi * 0.21 / 10_000), rel=0.2)


def test_chance_ece__of_labels_counts_every_label() -> None:
    p = np.tile([[0.5, 0.5]], (50, 1))
    got = chance_ece(p, np.zeros((50, 2), bool), seed=0, bins=1, target="labels")
    assert got == pytest.approx(math.sqrt(2 / math.pi * 0.25 / 100), rel=0.2)


def test_chance_ece__is_the_same_for_the_same_seed() -> None:
    assert chance_ece(P, Y, seed=3) == chance_ece(P, Y, seed=3)


def test_chance_ece__of_no_samples_is_undefined() -> None:
    assert math.isnan(chance_ece(np.empty((0, 2)), np.empty(0, int), seed=0))


def test_calibration__a_number_states_no_probability() -> None:
    with pytest.raises(ValueError, match="no probability"):
        calibration.reliability([[1.0]], [1.0], target="number")


def test_selective__hand_arithmetic() -> None:
    got = selective(
        P,
        Y,
        Confidence(precision=0.99, threshold=0.7, answered=0.5),
        Conformal(coverage=0.9, threshold=0.3),
    )
    assert got is not None
    assert got.answered == pytest.approx(3 / 4)  # .9, .8, .7
    assert got.precision == pytest.approx(2 / 3)
    assert got.coverage == pytest.approx(3 / 4)  # .9, .6 and .7 of the true class; .2 is below
    assert got.set_size == pytest.approx((1 + 2 + 1 + 2) / 4)


def test_selective__class_that_the_head_does_not_know_is_never_covered() -> None:
    got = selective(P, np.full(4, -1), None, Conformal(coverage=0.9, threshold=0.0))
    assert got is not None
    assert got.coverage == 0
    assert math.isnan(got.answered)


def test_selective__where_nothing_is_answered_there_is_no_precision() -> None:
    got = selective(P, Y, Confidence(precision=0.99, threshold=0.95, answered=0.1), None)
    assert got is not None
    assert got.answered == 0
    assert math.isnan(got.precision)


def test_selective__without_thresholds_there_is_nothing() -> None:
    assert selective(P, Y, None, None) is None


def test_selective__nan_is_not_judged() -> None:
    got = selective(np.full((2, 2), np.nan), np.zeros(2, int), None, Conformal(coverage=0.9, threshold=0.1))
    assert got is not None
    assert math.isnan(got.coverage)
