import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from tasks.head.conformal import confidence, conformal


def drawn(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities [n, 4] and classes drawn from them after they were flattened: not calibrated."""
    chance = np.random.default_rng(seed)
    logits = 3 * chance.normal(size=(n, 4))
    cumulated = softmax(logits / 1.5, axis=1).cumsum(axis=1)
    y = (chance.random((n, 1)) > cumulated[:, :-1]).sum(axis=1)
    return softmax(logits, axis=1), y.astype(np.int64)


def of_true(*probabilities: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p = np.array(probabilities)
    return np.stack([p, 1 - p], axis=1), np.zeros(len(p), dtype=np.int64)


def test_conformal__threshold_is_the_smallest_but_k() -> None:
    # Nine samples at 80 %: k = ⌊10 × 0.2⌋ = 2, so the second smallest.
    found = conformal(*of_true(0.9, 0.2, 0.8, 0.3, 0.7, 0.6, 0.5, 0.95, 0.4), coverage=0.8)
    assert found is not None
    assert found.threshold == 0.3
    # At 90 %: k = ⌊10 × 0.1⌋ = 1, which 1 - 0.9 in floating point must not lose.
    found = conformal(*of_true(0.9, 0.2, 0.8, 0.3, 0.7, 0.6, 0.5, 0.95, 0.4), coverage=0.9)
    assert found is not None
    assert found.threshold == 0.2


def test_conformal__too_few_samples_leave_no_class_out() -> None:
    found = conformal(*of_true(*[0.9] * 8), coverage=0.9)  # k = ⌊9 × 0.1⌋ = 0
    assert found is not None
    assert found.threshold == 0.0
    assert conformal(np.empty((0, 2)), np.empty(0, dtype=np.int64), 0.9) is None


def test_conformal__sets_cover_as_often_as_wanted() -> None:
    # Over 400 draws of 99 calibration and 200 test samples. The coverage of one draw is of the Beta
    # distribution B(90, 10), whose standard deviation is .03; of the mean that is .0015 + the test's.
    for coverage in (0.8, 0.9):
        covered = []
        for seed in range(400):
            p, y = drawn(299, seed)
            found = conformal(p[:99], y[:99], coverage)
            assert found is not None
            covered.append((p[np.arange(99, 299), y[99:]] >= found.threshold).mean())
        assert coverage - 0.008 < np.mean(covered) < coverage + 0.012  # continuous: exact in the mean


def test_confidence__is_the_least_threshold_that_is_right_often_enough() -> None:
    # In order of confidence 9 right, 1 wrong, 10 right: 1 + 1 wrong of 20 + 1 is .095.
    top = np.linspace(0.99, 0.80, 20)
    p = np.stack([top, 1 - top], axis=1)
    y = np.zeros(20, dtype=np.int64)
    y[9] = 1
    found = confidence(p, y, precision=0.9)
    assert found is not None
    assert (found.threshold, found.answered) == (top[19], 1.0)
    # Another wrong one at the end: 3/21 is too many, and so is 2/11 … only 2/20 = .1 is not.
    y[19] = 1
    found = confidence(p, y, precision=0.9)
    assert found is not None
    assert (found.threshold, found.answered) == (top[18], 0.95)


def test_confidence__equal_ones_are_answered_together() -> None:
    p = np.tile([0.9, 0.1], (40, 1))
    y = np.zeros(40, dtype=np.int64)
    y[39] = 1
    assert confidence(p, y, precision=0.99) is None
    found = confidence(p, y, precision=0.95)  # 2/41
    assert found is not None
    assert found.answered == 1.0


def test_confidence__none_where_the_samples_are_too_few() -> None:
    assert confidence(*of_true(*[0.9] * 98), precision=0.99) is None  # 1/99 > .01
    assert confidence(*of_true(*[0.9] * 99), precision=0.99) is not None  # 1/100
    assert confidence(np.empty((0, 2)), np.empty(0, dtype=np.int64), 0.9) is None


def test_confidence__new_samples_are_right_as_often_as_wanted() -> None:
    right = []
    for seed in range(200):
        p, y = drawn(700, seed)
        found = confidence(p[:500], y[:500], precision=0.9)
        assert found is not None
        sure = p[500:].max(axis=1) >= found.threshold
        right += (p[500:].argmax(axis=1) == y[500:])[sure].tolist()
    assert len(right) > 5_000
    assert np.mean(right) > 0.895  # of a threshold that is the best of 500
