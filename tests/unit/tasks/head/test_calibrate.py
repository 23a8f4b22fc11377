import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

from tasks.head.calibrate import (
    HIGHEST,
    LOWEST,
    SIGNIFICANT,
    calibrate,
    cross_calibrated,
    fit_temperature,
    fit_vector,
    losses,
)


def drawn(
    n: int, classes: int, temperature: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    chance = np.random.default_rng(seed)
    logits = 3 * chance.normal(size=(n, classes))
    cumulated = softmax(logits / temperature, axis=1).cumsum(axis=1)
    labels = (chance.random((n, 1)) > cumulated[:, :-1]).sum(axis=1)
    return logits, labels.astype(np.int64)


def log_loss(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def folds_of(n: int, folds: int = 5) -> NDArray[np.int64]:
    return np.arange(n) % folds


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 5])
def test_fit_temperature__recovers_the_one_that_made_the_labels(temperature: float, classes: int) -> None:
    logits, labels = drawn(20_000, classes, temperature, seed=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_fit_temperature__log_loss_is_no_worse_and_at_its_minimum(seed: int) -> None:
    logits, labels = drawn(200, 3, temperature=0.2 * (seed + 1), seed=seed)
    fitted = fit_temperature(logits, labels)
    loss = log_loss(logits, labels, fitted)
    assert loss <= log_loss(logits, labels, 1.0)
    least = min(log_loss(logits, labels, float(t)) for t in np.geomspace(LOWEST, HIGHEST, 500))
    if fitted == 1.0:  # the likelihood ratio can't tell the best one from 1
        assert 2 * len(labels) * (loss - least) <= SIGNIFICANT + 1e-6
    else:
        assert loss <= least + 1e-9


def test_fit_temperature__few_samples_that_cannot_tell_leave_it_at_one() -> None:
    # Four samples at confidence 0.9, one of them wrong: the best temperature is above 1, but the
    # log-likelihood that it gains is far below 3.841 / 2.
    logits = np.tile([np.log(9.0), 0.0], (4, 1))
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == 1.0
    # The same shares of 400 samples leave no doubt: confidence 0.75, so 9^(1/T) = 3 and T = 2.
    many = np.repeat([0, 0, 0, 1], 100)
    assert fit_temperature(np.tile([np.log(9.0), 0.0], (400, 1)), many) == pytest.approx(2.0, rel=1e-3)


def test_fit_temperature__answer_is_the_same_for_scaled_logits() -> None:
    logits, labels = drawn(500, 3, 2.5, seed=2)
    once, thrice = fit_temperature(logits, labels), fit_temperature(3 * logits, labels)
    assert thrice == pytest.approx(3 * once, rel=1e-3)


def test_fit_temperature__all_right_or_all_wrong_stays_within_bounds() -> None:
    labels = np.arange(200) % 2
    right = np.eye(2)[labels]
    assert fit_temperature(right, labels) == pytest.approx(LOWEST, rel=1e-2)
    assert fit_temperature(-right, labels) == pytest.approx(HIGHEST, rel=1e-2)


def test_fit_temperature__of_labels_is_one_for_all() -> None:
    chance = np.random.default_rng(3)
    logits = 3 * chance.normal(size=(5_000, 4))
    labels = (chance.random((5_000, 4)) < expit(logits / 2)).astype(np.float32)
    assert fit_temperature(logits, labels) == pytest.approx(2.0, rel=0.05)


def test_fit_temperature__weighs_samples_as_if_they_were_repeated() -> None:
    logits, labels = drawn(300, 3, 2.0, seed=4)
    weight = np.where(np.arange(300) < 100, 3.0, 1.0)
    order = np.repeat(np.arange(300), weight.astype(int))
    repeated = fit_temperature(logits[order], labels[order])
    assert fit_temperature(logits, labels, weight) == pytest.approx(repeated, rel=1e-6)


def test_losses__are_those_of_the_softmax_and_the_sum_of_the_sigmoids() -> None:
    logits = np.log([[3.0, 1.0]])
    np.testing.assert_allclose(losses(logits, np.array([0])), [-np.log(3 / 4)])
    # Odds 3 and 1: probabilities 3/4 and 1/2.
    np.testing.assert_allclose(losses(logits, np.array([[1.0, 0.0]])), [-np.log(3 / 4) - np.log(1 / 2)])


def test_cross_calibrated__each_fold_has_the_temperature_of_the_others() -> None:
    logits, labels = drawn(4_000, 3, 2.0, seed=5)
    folds = folds_of(4_000)
    found = cross_calibrated(logits, labels, folds)
    for fold in range(5):
        expected = logits[folds == fold] / fit_temperature(logits[folds != fold], labels[folds != fold])
        np.testing.assert_allclose(found[folds == fold], expected, rtol=1e-3)


def test_fit_vector__recovers_the_scales_and_biases_that_made_the_labels() -> None:
    logits, _ = drawn(20_000, 3, 1.0, seed=6)
    scale, bias = np.array([0.5, 1.0, 1.5]), np.array([0.5, 0.0, -0.5])
    cumulated = softmax(logits * scale + bias, axis=1).cumsum(axis=1)
    labels = (np.random.default_rng(7).random((20_000, 1)) > cumulated[:, :-1]).sum(axis=1)
    found = fit_vector(logits, labels)
    np.testing.assert_allclose(found.scale, scale, atol=0.06)
    np.testing.assert_allclose(found.bias - found.bias[1], bias, atol=0.06)  # the same to all is nothing


def test_calibrate__takes_the_vector_only_where_it_wins() -> None:
    logits, labels = drawn(2_000, 3, 2.0, seed=8)
    plain = calibrate(logits, labels, folds_of(2_000))
    assert plain.method == "temperature"
    np.testing.assert_allclose(plain.calibration.scale, 1 / plain.temperature)
    # The same logits, of which the first was moved by 2.
    moved = calibrate(logits + np.array([2.0, 0.0, 0.0]), labels, folds_of(2_000))
    assert (moved.method, moved.temperature) == ("vector", 1.0)
    assert moved.calibration.bias[0] < moved.calibration.bias[1] - 0.5


def test_calibrate__leaves_alone_what_is_calibrated() -> None:
    # 5 % of the likelihood-ratio tests are passed by chance, and no more by the vector.
    found = [calibrate(*drawn(300, 3, 1.0, seed=seed), folds_of(300)) for seed in range(40)]
    assert sum(each.method == "none" for each in found) >= 31  # 40 × .9 = 36, less 2.6 standard deviations
    for each in found:
        if each.method == "none":
            assert each.temperature == 1.0
            np.testing.assert_array_equal(each.calibration(np.eye(3)), np.eye(3))


def test_calibrate__a_label_that_all_have_stays_finite() -> None:
    chance = np.random.default_rng(9)
    logits = chance.normal(size=(200, 2))
    labels = np.stack([np.ones(200), chance.random(200) < expit(logits[:, 1])], axis=1)
    found = calibrate(logits, labels, folds_of(200))
    assert np.isfinite(found.calibration.bias).all()
