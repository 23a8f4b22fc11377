"""Against scikit-learn's LogisticRegression, which minimises C Σᵢ wᵢ lossᵢ + ‖w‖²/2."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from tasks.head import blocks
from tasks.head.solver import Solutions, solve

Matrix = NDArray[np.float64]

CASES = [(80, 6, 2), (80, 6, 5), (30, 50, 2), (30, 50, 5)]


@dataclass(frozen=True)
class Problem:
    x: Matrix  # [N, D], float64: computed in it
    y: NDArray[np.int64]
    classes: int
    parts: tuple[int, ...]

    def solve(
        self, strengths: tuple[float, ...] = (0.3,), tolerance: float = 1e-9, **kwargs: object
    ) -> Solutions:
        given: dict[str, object] = {"rows": np.ones((1, len(self.y)), bool), "max_iterations": 5000, **kwargs}
        return solve(
            given.pop("x", self.x),  # type: ignore[arg-type]
            self.y,
            classes=self.classes,
            link="softmax",
            strengths=strengths,
            parts=self.parts,
            tolerance=tolerance,
            **given,  # type: ignore[arg-type]
        )

    def gradient(
        self, found: Solutions, strength: float, rows: NDArray[np.bool_], fold: int, at: int
    ) -> Matrix:
        """[C, D + 1] of the objective on the fold's rows, the bias last."""
        z = (self.x[rows] - found.mean[fold]) / found.scale[fold]
        n = len(z)
        weight, bias = found.weight[fold, at].astype(float), found.bias[fold, at].astype(float)
        residual = softmax(z @ weight.T + bias, axis=1) - np.eye(self.classes)[self.y[rows]]
        return np.column_stack([residual.T @ z / n + weight / (strength * n), residual.mean(axis=0)])


def problem(n: int, d: int, classes: int) -> Problem:
    """Overlapping clusters in dimensions whose spreads differ a thousandfold; one is constant."""
    chance = np.random.default_rng(n + d + classes)
    y = np.arange(n) % classes
    x = (chance.normal(size=(classes, d))[y] + 2 * chance.normal(size=(n, d))) * np.logspace(0, -3, d) + 5
    x[:, d // 2] = 7.0
    return Problem(x, y.astype(np.int64), classes, (d // 3, d - d // 3))


def folds(n: int, count: int) -> NDArray[np.bool_]:
    """Every fold leaves out each `count`-th row."""
    return np.asarray(np.arange(n)[None] % count != np.arange(count)[:, None])


def loss(
    found: Solutions, x: NDArray[np.floating], y: NDArray[np.int64], fold: int = 0, at: int = -1
) -> float:
    """Without the penalty."""
    return -float(
        log_softmax(found.logits(x, fold)[:, at].astype(float), axis=1)[np.arange(len(y)), y].mean()
    )


@pytest.mark.parametrize(("n", "d", "classes"), CASES)
def test_solve__finds_scikit_learns_minimum(n: int, d: int, classes: int) -> None:
    of = problem(n, d, classes)
    strengths = (1e-3, 0.3, 5.0)
    found = of.solve(strengths)
    z = (of.x - found.mean[0]) / found.scale[0]
    for at, strength in enumerate(strengths):
        # For two classes scikit-learn fits one vector w with the penalty ‖w‖²/2. Here there are
        # two, ±w/2, with ‖w‖²/4 in all: the same problem at twice the C.
        c = strength * (2 if classes == 2 else 1)
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(z, of.y).predict_proba(z)
        np.testing.assert_allclose(softmax(found.logits(of.x)[:, at], axis=1), theirs, atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
@pytest.mark.parametrize(("n", "d", "classes"), CASES)
def test_solve__gradient_is_within_the_tolerance_in_every_cell(
    n: int, d: int, classes: int, tolerance: float
) -> None:
    of, strengths, rows = problem(n, d, classes), (1e-2, 1.0, 100.0), folds(n, 3)
    found = of.solve(strengths, tolerance, rows=rows)
    assert found.gradient.shape == (3, 3)
    for fold in range(3):
        for at, strength in enumerate(strengths):
            steepest = np.abs(of.gradient(found, strength, rows[fold], fold, at)).max()
            assert steepest <= tolerance * (1 + 1e-6)
            assert found.gradient[fold, at] == pytest.approx(steepest, rel=1e-4, abs=1e-12)


def test_solve__fold_is_what_a_fit_on_its_rows_alone_is() -> None:
    of, rows = problem(80, 6, 5), folds(80, 4)
    together = of.solve((0.01, 1.0), rows=rows)
    for fold in range(4):
        alone = Problem(of.x[rows[fold]], of.y[rows[fold]], 5, of.parts).solve((0.01, 1.0))
        np.testing.assert_allclose(together.mean[fold], alone.mean[0], rtol=1e-12)
        np.testing.assert_allclose(together.scale[fold], alone.scale[0], rtol=1e-9)
        np.testing.assert_allclose(together.weight[fold], alone.weight[0], atol=1e-6)
        np.testing.assert_allclose(together.bias[fold], alone.bias[0], atol=1e-6)


def test_solve__standardises_each_part_by_one_scale() -> None:
    of = problem(80, 6, 3)
    found = of.solve()
    variance = of.x.var(axis=0)
    # Two parts, of 2 and 4 dimensions: each divided by √2 times the root of its mean variance.
    expected = np.sqrt(2 * np.array([variance[:2].mean()] * 2 + [variance[2:].mean()] * 4))
    np.testing.assert_allclose(found.mean[0], of.x.mean(axis=0))
    np.testing.assert_allclose(found.scale[0], expected)


def test_solve__weight_counts_as_repeated_rows() -> None:
    of = problem(40, 6, 3)
    times = np.arange(40) % 3  # 0: as if it were not there
    weighted = of.solve(sample_weight=times.astype(float))
    repeated = Problem(of.x.repeat(times, 0), of.y.repeat(times), 3, of.parts).solve()
    np.testing.assert_allclose(weighted.mean, repeated.mean)
    np.testing.assert_allclose(weighted.scale, repeated.scale)
    np.testing.assert_allclose(weighted.weight, repeated.weight, atol=1e-7)


def test_solve__labels_are_independent_logistic_regressions() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(90, 5))
    y = (x @ chance.normal(size=(5, 3)) + chance.normal(size=(90, 3)) > 0.5).astype(float)
    found = solve(
        x, y, classes=3, link="sigmoid", strengths=(0.1, 2.0), rows=np.ones((1, 90), bool), parts=(5,),
        tolerance=1e-9,
    )  # fmt: skip
    z = (x - found.mean[0]) / found.scale[0]
    for label in range(3):
        theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(z, y[:, label])
        ours = expit(found.logits(x)[:, 1, label])
        np.testing.assert_allclose(ours, theirs.predict_proba(z)[:, 1], atol=1e-5)


def test_solve__read_in_blocks_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)  # blocks of 256 rows, the least
    of = problem(700, 6, 3)
    x = of.x.astype(np.float32)
    held = of.solve((0.01, 1.0), 1e-5, rows=folds(700, 3), x=x)
    read = of.solve((0.01, 1.0), 1e-5, rows=folds(700, 3), x=x, memory_bytes=0)
    assert held.weight.dtype == np.float32
    np.testing.assert_array_equal(held.weight, read.weight)
    np.testing.assert_array_equal(held.bias, read.bias)


def test_solve__block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    of = problem(700, 6, 3)
    one = of.solve(rows=folds(700, 3))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    np.testing.assert_allclose(of.solve(rows=folds(700, 3)).weight, one.weight, atol=1e-6)


def test_solve__float32_far_from_zero_keeps_its_digits() -> None:
    of = problem(200, 6, 3)
    near = of.x.astype(np.float32)
    far = near + np.float32(64)  # the same numbers but for rounding of 4e-6
    a, b = of.solve(tolerance=1e-5, x=near), of.solve(tolerance=1e-5, x=far)
    assert loss(b, far, of.y) == pytest.approx(loss(a, near, of.y), rel=1e-4)


def test_solve__start_saves_iterations_and_gives_the_same_minimum() -> None:
    of, rows = problem(80, 6, 5), folds(80, 4)
    stronger = of.solve((0.1,), rows=rows)
    cold, warm = of.solve((0.3,), rows=rows), of.solve((0.3,), rows=rows, start=stronger)
    np.testing.assert_allclose(warm.weight, cold.weight, atol=1e-6)
    again = of.solve((0.3,), 1e-6, rows=rows, start=cold)
    assert again.iterations.tolist() == [[0]] * 4
    assert again.passes == 1


def test_solutions__average_of_the_folds_starts_near_the_fit_on_all_rows() -> None:
    of = problem(200, 6, 3)
    start = of.solve((0.1, 0.3), rows=folds(200, 5)).average(1)
    cold, warm = of.solve((0.3,)), of.solve((0.3,), start=start)
    np.testing.assert_allclose(warm.weight, cold.weight, atol=1e-6)
    assert loss(start, of.x, of.y) == pytest.approx(loss(cold, of.x, of.y), abs=0.01)


def test_solve__constant_dimension_has_no_weight() -> None:
    found = problem(80, 6, 3).solve()
    np.testing.assert_allclose(found.weight[..., 3], 0, atol=1e-12)


def test_solve__rows_that_are_all_the_same_are_told_by_the_bias() -> None:
    of = Problem(np.full((10, 2), 3.0), np.array([0] * 7 + [1] * 3), 2, (2,))
    found = of.solve()
    np.testing.assert_allclose(softmax(found.logits(of.x)[:, 0], axis=1), [[0.7, 0.3]] * 10, atol=1e-6)


def test_solve__limit_of_iterations_is_kept_and_told(caplog: pytest.LogCaptureFixture) -> None:
    of = problem(80, 6, 5)
    with caplog.at_level(logging.WARNING):
        found = of.solve((100.0,), max_iterations=2)
    assert found.iterations.tolist() == [[2]]
    assert found.gradient[0, 0] > 1e-9
    assert "C = 100, fold 0" in caplog.text
    assert loss(found, of.x, of.y) < np.log(5)


def test_solve__more_precision_than_float32_has_ends_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    of = problem(80, 6, 5)
    with caplog.at_level(logging.WARNING):
        found = of.solve((1.0,), 1e-12, x=of.x.astype(np.float32))
    assert found.gradient[0, 0] < 1e-5
    assert "not 1e-12" in caplog.text


def test_solve__strengths_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascend"):
        problem(30, 6, 2).solve((1.0, 0.1))


def test_solve__class_without_rows_in_a_fold_is_bearable() -> None:
    of = replace(problem(60, 6, 3), classes=4)  # nothing is of class 3
    found = of.solve((0.3, 1000.0), 1e-6)
    assert np.isfinite(found.weight).all()
    assert softmax(found.logits(of.x)[:, -1], axis=1)[:, 3].max() < 1e-4
