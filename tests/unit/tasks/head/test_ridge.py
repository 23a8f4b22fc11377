import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tasks.head.linear import Matrix, Vectors
from tasks.head.ridge import RidgePath
from tasks.head.standard import standards

STRENGTHS = (0.01, 0.1, 10.0)


def data(n: int, d: int) -> tuple[Vectors, Matrix]:
    chance = np.random.default_rng(0)
    x = (chance.normal(size=(n, d)) * np.linspace(0.5, 2, d) + 3).astype(np.float32)
    return x, x @ chance.normal(size=d) + chance.normal(size=n) + 100


def reference(x: Vectors, y: Matrix, strength: float, mean: Matrix, scale: Matrix) -> Ridge:
    return Ridge(alpha=1 / strength, solver="cholesky").fit((x - mean) / scale, y)


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_fit__is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    x, y = data(*shape)
    path = RidgePath.of(x, y, (shape[1],))
    for strength in STRENGTHS:
        expected = reference(x, y, strength, path.mean, path.scale).predict((x - path.mean) / path.scale)
        np.testing.assert_allclose(path.fit(strength).logits(x)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_left_out__is_what_a_fit_without_the_sample_says(shape: tuple[int, int]) -> None:
    x, y = data(*shape)
    path = RidgePath.of(x, y, (shape[1],))
    found = path.left_out(x, y, STRENGTHS)
    for at, strength in enumerate(STRENGTHS):
        for row in range(0, len(x), 5):
            rest = np.arange(len(x)) != row
            model = reference(x[rest], y[rest], strength, path.mean, path.scale)
            expected = model.predict((x[[row]] - path.mean) / path.scale)
            np.testing.assert_allclose(found[at, [row]], expected, rtol=1e-6)


def test_left_out__leaves_a_group_out_as_a_whole() -> None:
    x, y = data(30, 5)
    groups = ["a"] * 4 + ["b"] + ["c"] * 10 + [str(row) for row in range(15)]
    path = RidgePath.of(x, y, (5,))
    found = path.left_out(x, y, STRENGTHS, groups)
    for at, strength in enumerate(STRENGTHS):
        for group in ("a", "b", "c", "7"):
            members = np.array([name == group for name in groups])
            model = reference(x[~members], y[~members], strength, path.mean, path.scale)
            expected = model.predict((x[members] - path.mean) / path.scale)
            np.testing.assert_allclose(found[at, members], expected, rtol=1e-6)


def test_standards__each_part_has_one_scale() -> None:
    x, _ = data(50, 6)
    mean, scale = standards(x, (1, 2, 3))
    variance = x.astype(np.float64).var(axis=0)
    means = [variance[:1].mean(), variance[1:3].mean(), variance[3:].mean()]
    np.testing.assert_allclose(mean[0], x.astype(np.float64).mean(axis=0), rtol=1e-12)
    # By the number of parts too, so that several do not count for more than one does.
    np.testing.assert_allclose(scale[0], np.sqrt(3 * np.repeat(means, [1, 2, 3])), rtol=1e-12)


def test_standards__are_of_the_rows_of_each_fit() -> None:
    x, _ = data(20, 3)
    rows = np.arange(20) % 2 == np.array([[0], [1]])
    mean, scale = standards(x, (3,), rows)
    for fold in range(2):
        own = standards(x[rows[fold]], (3,))
        np.testing.assert_allclose(mean[fold], own[0][0], rtol=1e-12)
        np.testing.assert_allclose(scale[fold], own[1][0], rtol=1e-10)


def test_standards__constant_part_is_not_divided_by_nothing() -> None:
    x = np.concatenate([np.full((9, 2), 0.1), np.arange(9.0)[:, None]], axis=1).astype(np.float32)
    mean, scale = standards(x, (2, 1))
    np.testing.assert_allclose(scale[0, :2], np.sqrt(2))
    np.testing.assert_allclose((x - mean[0])[:, :2], 0, atol=1e-7)
