import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from tasks.head.calibrate import HIGHEST, LOWEST, SIGNIFICANT, fit_temperature


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
