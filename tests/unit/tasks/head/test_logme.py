import numpy as np
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from tasks.head.logme import logme


def test_logme__is_the_greatest_log_evidence() -> None:
    # By its definition: y ~ N(0, I/β + X Xᵀ/α), maximised over both.
    chance = np.random.default_rng(0)
    x = chance.normal(size=(30, 4)).astype(np.float32)
    y = x @ np.array([1.0, -1.0, 0.5, 0.0]) + chance.normal(size=30)

    def negative(logs: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        alpha, beta = np.exp(logs)
        covariance = np.eye(30) / beta + x.astype(np.float64) @ x.T.astype(np.float64) / alpha
        return -float(multivariate_normal.logpdf(y, np.zeros(30), covariance))

    best = minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    np.testing.assert_allclose(logme(x, y), -best.fun / 30, rtol=1e-6)


def test_logme__of_classes_is_the_mean_over_their_indicators() -> None:
    chance = np.random.default_rng(1)
    x, y = chance.normal(size=(40, 50)).astype(np.float32), chance.integers(0, 3, 40)  # also N < D
    each = [logme(x, (y == c).astype(np.float64)) for c in range(3)]
    np.testing.assert_allclose(logme(x, y), np.mean(each))
    np.testing.assert_allclose(logme(x, np.eye(3)[y]), np.mean(each))


def test_logme__what_says_more_scores_higher() -> None:
    chance = np.random.default_rng(2)
    y = chance.integers(0, 3, 200)
    signal = np.eye(5)[y] + 0.5 * chance.normal(size=(200, 5))
    noisy = np.eye(5)[y] + 2.0 * chance.normal(size=(200, 5))
    noise = chance.normal(size=(200, 5))
    scores = [logme(x.astype(np.float32), y) for x in (signal, noisy, noise)]
    assert scores == sorted(scores, reverse=True)
