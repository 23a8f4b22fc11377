"""Against scikit-learn's LogisticRegression, which minimises C Σᵢ lossᵢ + ‖w‖²/2."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from tasks.head.solver import Basis, solve

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    x: Matrix  # [N, D], centred
    y: NDArray[np.int64]
    classes: int
    strength: float

    def objective(self, weight: Matrix, bias: Matrix) -> float:
        log_p = log_softmax(self.x @ weight.T + bias, axis=1)
        loss = -log_p[np.arange(len(self.y)), self.y].mean()
        return float(loss + (weight**2).sum() / (2 * self.strength * len(self.y)))

    def gradient(self, weight: Matrix, bias: Matrix) -> Matrix:
        """[C, D + 1], the bias last."""
        n = len(self.y)
        residual = softmax(self.x @ weight.T + bias, axis=1) - np.eye(self.classes)[self.y]
        of_weight = residual.T @ self.x / n + weight / (self.strength * n)
        return np.column_stack([of_weight, residual.mean(axis=0)])

    def probabilities(self, weight: Matrix, bias: Matrix) -> Matrix:
        p: Matrix = softmax(self.x @ weight.T + bias, axis=1)
        return p


def problem(n: int, d: int, classes: int, strength: float = 0.3) -> Problem:
    """Overlapping clusters in dimensions whose spreads differ a thousandfold; one is constant."""
    chance = np.random.default_rng(n + d + classes)
    y = np.arange(n) % classes
    centres = chance.normal(size=(classes, d))
    x = (centres[y] + 2 * chance.normal(size=(n, d))) * np.logspace(0, -3, d)
    x[:, d // 2] = 0.0  # centred, a constant dimension is 0
    return Problem(x - x.mean(axis=0), y.astype(np.int64), classes, strength)


def solved(
    of: Problem,
    tolerance: float = 1e-9,
    start: tuple[Matrix, Matrix] | None = None,
    max_iterations: int = 5000,
) -> tuple[Matrix, Matrix]:
    """W [C, D] and b [C]; `start` alike."""
    basis = Basis.of(of.x)
    there = (start[0] @ basis.vectors, start[1]) if start else None
    weight, bias = solve(
        of.x @ basis.vectors,
        of.y,
        of.classes,
        of.strength,
        basis,
        there,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return weight @ basis.vectors.T, bias


def sklearn_solution(of: Problem) -> tuple[Matrix, Matrix]:
    # For two classes scikit-learn fits one vector w with the penalty ‖w‖²/2. Here there are two,
    # ±w/2, with ‖w‖²/4 in all: the same problem at twice the C.
    binary = of.classes == 2
    model = LogisticRegression(C=of.strength * (2 if binary else 1), tol=1e-10, max_iter=100_000)
    model.fit(of.x, of.y)
    weight, bias = model.coef_, model.intercept_
    if binary:
        return np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight, bias


CASES = [(80, 6, 2), (80, 6, 5), (30, 50, 2), (30, 50, 5)]


@pytest.mark.parametrize("strength", [1e-3, 0.3, 5.0])
@pytest.mark.parametrize(("n", "d", "classes"), CASES)
def test_solve__finds_scikit_learns_minimum(n: int, d: int, classes: int, strength: float) -> None:
    of = problem(n, d, classes, strength)
    ours, theirs = solved(of), sklearn_solution(of)
    assert of.objective(*ours) <= of.objective(*theirs) * (1 + 1e-6)
    assert of.objective(*ours) >= of.objective(*theirs) * (1 - 1e-6)
    np.testing.assert_allclose(of.probabilities(*ours), of.probabilities(*theirs), atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-8])
@pytest.mark.parametrize(("n", "d", "classes"), CASES)
def test_solve__gradient_at_the_solution_is_within_the_tolerance(
    n: int, d: int, classes: int, tolerance: float
) -> None:
    of = problem(n, d, classes)
    assert np.abs(of.gradient(*solved(of, tolerance))).max() <= tolerance * (1 + 1e-6)


def test_solve__gradient_of_the_test_is_that_of_its_objective() -> None:
    of = problem(20, 3, 3)
    chance = np.random.default_rng(0)
    weight, bias = chance.normal(size=(3, 3)), chance.normal(size=3)
    step = 1e-6
    for c, j in [(0, 0), (1, 2), (2, 1)]:
        moved = weight.copy()
        moved[c, j] += step
        slope = (of.objective(moved, bias) - of.objective(weight, bias)) / step
        assert of.gradient(weight, bias)[c, j] == pytest.approx(slope, abs=1e-5)


def test_solve__constant_dimension_has_no_weight() -> None:
    of = problem(80, 6, 3)
    weight, _ = solved(of)
    np.testing.assert_allclose(weight[:, 3], 0, atol=1e-12)


@pytest.mark.parametrize(("n", "d", "classes"), CASES)
def test_solve__warm_start_gives_the_same_minimum(n: int, d: int, classes: int) -> None:
    of = problem(n, d, classes)
    stronger = solved(Problem(of.x, of.y, of.classes, of.strength / 30))
    cold, warm = solved(of), solved(of, start=stronger)
    assert of.objective(*warm) == pytest.approx(of.objective(*cold), rel=1e-9)
    np.testing.assert_allclose(of.probabilities(*warm), of.probabilities(*cold), atol=1e-6)


def test_solve__start_at_the_minimum_stays_there() -> None:
    of = problem(80, 6, 3)
    best = solved(of, 1e-9)
    weight, bias = solved(of, 1e-4, start=best)
    np.testing.assert_allclose(weight, best[0], atol=1e-3)
    assert of.objective(weight, bias) == pytest.approx(of.objective(*best), rel=1e-7)


def test_solve__another_basis_gives_the_same_minimum() -> None:
    of, other = problem(80, 6, 3), problem(60, 6, 3)
    basis = Basis.of(other.x)
    turned, bias = solve(
        of.x @ basis.vectors, of.y, 3, of.strength, basis, tolerance=1e-9, max_iterations=5000
    )
    expected = of.objective(*solved(of))
    assert of.objective(turned @ basis.vectors.T, bias) == pytest.approx(expected, rel=1e-9)


def test_solve__limit_of_iterations_holds() -> None:
    of = problem(80, 6, 5, strength=100.0)
    one, many = solved(of, max_iterations=1), solved(of)
    assert np.abs(of.gradient(*one)).max() > 1e-4
    assert of.objective(*many) < of.objective(*one) < of.objective(np.zeros((5, 6)), np.zeros(5))


def test_basis__is_orthonormal_with_values_that_are_not_negative() -> None:
    of = problem(30, 50, 2)  # rank 29 at most: rounding makes some eigenvalues negative
    basis = Basis.of(of.x)
    np.testing.assert_allclose(basis.vectors.T @ basis.vectors, np.eye(50), atol=1e-12)
    assert basis.values.min() >= 0
