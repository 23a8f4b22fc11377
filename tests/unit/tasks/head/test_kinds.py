"""Prototype, nearest neighbours and the hidden layer."""

import numpy as np
import pytest
from scipy.special import softmax

from tasks.head import linear, mlp
from tasks.head.linear import Subset
from tasks.head.mlp import train_epochs
from tasks.head.neighbours import remember
from tasks.head.prototype import class_means

NOWHERE, AS_IT_IS = np.zeros(2), np.ones(2)


def test_class_means__are_equal_gaussians_on_the_unit_sphere() -> None:
    x = np.array([[2, 0], [0, 3], [-1, 0], [0, -5]], dtype=np.float32)  # directions e1, e2, -e1, -e2
    y = np.array([0, 0, 1, 1])
    head = class_means(x, y, 2, NOWHERE, AS_IT_IS)
    # Means (½, ½) and (-½, -½); within: each direction is ½ away in both coordinates, σ² = ½.
    # Logits -‖u - μ‖²/2σ² of u = e1: -½ and -(9/4 + 1/4): odds e².
    p = softmax(head.logits(np.array([[7, 0]], dtype=np.float32)), axis=1)
    np.testing.assert_allclose(p[0, 0] / p[0, 1], np.exp(2))


def test_class_means__a_class_without_samples_is_finite() -> None:
    x = np.array([[2, 0], [0, 3]], dtype=np.float32)
    assert np.isfinite(class_means(x, np.array([0, 0]), 2, NOWHERE, AS_IT_IS).logits(x)).all()


def test_neighbours__shares_of_the_nearest_and_the_prior_for_one() -> None:
    x = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]], dtype=np.float32)
    y = np.array([0, 1, 1, 1, 0])
    head = remember(x, y, 2, NOWHERE, AS_IT_IS, 2)
    prior = np.array([2.5, 3.5]) / 6
    one, two, all_of_them = np.exp(head.logits_at(np.array([[5, 0]], dtype=np.float32), [1, 2, 10]))[:, 0]
    np.testing.assert_allclose(one, (np.array([1, 0]) + prior) / 2)
    np.testing.assert_allclose(two, (np.array([1, 1]) + prior) / 3)
    np.testing.assert_allclose(all_of_them, (np.array([2, 3]) + prior) / 6)  # there are no more than five
    np.testing.assert_allclose(np.exp(head.logits(np.array([[5, 0]], dtype=np.float32)))[0], two)


@pytest.mark.parametrize("rows", [3, 7, 4096])
def test_neighbours__the_same_whatever_the_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(40, 2)).astype(np.float32), chance.integers(0, 3, 40)
    expected = remember(x, y, 3, NOWHERE, AS_IT_IS, 5).logits(x)
    monkeypatch.setattr(linear, "ROWS", rows)
    np.testing.assert_allclose(remember(x, y, 3, NOWHERE, AS_IT_IS, 5).logits(x), expected)


def test_train_epochs__learns_what_no_line_can_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "LEARNING_RATE", 0.02)  # so that a few steps are enough
    chance = np.random.default_rng(0)
    x = chance.uniform(-1, 1, size=(600, 2)).astype(np.float32)
    y = ((x[:, 0] > 0) == (x[:, 1] > 0)).astype(np.int64)
    mean, scale = x.mean(axis=0).astype(np.float64), x.std(axis=0).astype(np.float64)
    path = train_epochs(x, y, 2, mean, scale, weight=None, hidden=32, epochs=(15,), seed=0)
    assert (next(path).logits(x).argmax(axis=1) == y).mean() > 0.9  # by a line .5


def test_train_epochs__follow_the_seed_and_the_rows_alone() -> None:
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(50, 2)).astype(np.float32), chance.integers(0, 2, 50)
    some = Subset(x, np.arange(10, 40))

    def weights(rows: linear.Rows, seed: int) -> bytes:
        path = train_epochs(
            rows, y[10:40], 2, NOWHERE, AS_IT_IS, weight=None, hidden=4, epochs=(2,), seed=seed
        )
        return next(path).weight.tobytes()

    assert weights(some, 0) == weights(x[10:40], 0)
    assert weights(some, 0) != weights(some, 1)
