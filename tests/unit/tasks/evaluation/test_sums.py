import numpy as np
import pytest

from tasks.evaluation import sums
from tasks.evaluation.metrics import Truth
from tasks.evaluation.sums import Floats
from tasks.params import METRICS
from tasks.records import Target


def models(target: Target, n: int = 60) -> tuple[Floats, Floats, Truth]:
    """Outputs of two models, and the truth."""
    generator = np.random.default_rng(0)
    if target == "number":
        y = generator.normal(size=n)
        return y[:, None] + generator.normal(size=(n, 1)), y[:, None] + generator.normal(size=(n, 1)) / 2, y
    if target == "labels":
        t = generator.random((n, 4)) < 0.4
        one, other = (np.clip(0.4 * t + 0.6 * generator.random((n, 4)), 0, 1) for _ in range(2))
        return one, other, t
    p, q = (generator.dirichlet(np.ones(4), size=n) for _ in range(2))
    return p, q, generator.integers(0, 4, n)


def test_at_stake__is_the_greatest_share_of_one_unit() -> None:
    # Class 0: 3 samples, 1: 1 sample. Of two units one has 2 of class 0, the other 1 of each.
    y = np.array([0, 0, 0, 1])
    found = sums.of(np.eye(2)[y], y, "class", 5)
    assert found.at_stake() == {
        "accuracy": pytest.approx(1 / 4), "balanced_accuracy": pytest.approx(1 / 2),
        "macro_f1": pytest.approx(1 / 2),
    }  # fmt: skip
    assert found.by_unit(np.array([0, 0, 1, 1])).at_stake() == {
        "accuracy": pytest.approx(2 / 4),
        "balanced_accuracy": pytest.approx((1 / 3 + 1) / 2),
        "macro_f1": pytest.approx((1 / 3 + 1) / 2),
    }


def test_at_stake__of_labels_and_numbers() -> None:
    t = np.array([[True, True], [True, False], [False, False]])
    assert sums.of(np.where(t, 0.9, 0.1), t, "labels", 5).at_stake() == {
        "subset_accuracy": pytest.approx(1 / 3),
        "macro_f1": pytest.approx((1 / 2 + 1) / 2),
        "micro_f1": pytest.approx(2 / 3),
    }
    assert sums.of(np.zeros((2, 1)), np.array([1.0, 2.0]), "number", 5).at_stake() == {}


@pytest.mark.parametrize("target", ["class", "labels", "number"])
def test_weights__what_the_samples_add_is_the_difference(target: Target) -> None:
    one, other, truth = models(target)
    ours, theirs = (sums.of(outputs, truth, target, 5) for outputs in (one, other))
    apart = ours.statistics - theirs.statistics
    for name, weight in ours.weights(ours.total(), theirs.total()).items():
        a, b = (model.formulas(model.total()[:, None])[0][name][0] for model in (ours, theirs))
        assert float((weight @ apart).sum()) == pytest.approx(a - b, abs=1e-12), name


def test_weights__accuracy_is_counted_sample_by_sample() -> None:
    y = np.array([0, 1, 1])
    ours, theirs = (sums.of(np.eye(2)[top], y, "class", 2) for top in ([0, 1, 0], [1, 1, 1]))
    weights = ours.weights(ours.total(), theirs.total())
    added = weights["accuracy"] @ (ours.statistics - theirs.statistics)
    np.testing.assert_allclose(added, [1 / 3, 0, -1 / 3])
    # Recall of class 0 counts half, and has one sample; class 1 has two.
    added = weights["balanced_accuracy"] @ (ours.statistics - theirs.statistics)
    np.testing.assert_allclose(added, [1 / 2, 0, -1 / 4])


def test_weights__of_equal_models_are_finite() -> None:
    p, _, y = models("class")
    one = sums.of(p, y, "class", 5)
    for name, weight in one.weights(one.total(), one.total()).items():
        assert np.isfinite(weight).all(), name


def test_by_unit__adds_the_samples_up() -> None:
    p, _, y = models("class", 6)
    one = sums.of(p, y, "class", 3)
    got = one.by_unit(np.array([0, 0, 1, 1, 1, 2]))
    whole = one.statistics.toarray()
    np.testing.assert_allclose(
        got.statistics.toarray(),
        np.stack([whole[:, :2].sum(1), whole[:, 2:5].sum(1), whole[:, 5]], axis=1),
    )
    np.testing.assert_allclose(got.total(), one.total())


@pytest.mark.parametrize(
    ("row", "target", "expected"),
    [
        ([0.5, 0.5], "class", True),
        ([0.5, 0.6], "class", False),
        ([0.9, 0.9], "labels", True),
        ([0.9, 1.2], "labels", False),
        ([-0.1, 0.5], "labels", False),
        ([np.nan, 0.5], "labels", False),
        ([1e9], "number", True),
        ([np.inf], "number", False),
    ],
)
def test_sound__is_what_can_be_judged(row: list[float], target: Target, expected: bool) -> None:
    assert sums.sound(np.array([row]), target).tolist() == [expected]


def test_right__of_labels_means_every_label() -> None:
    truth = np.array([[True, False], [True, True]])
    assert sums.right(np.array([[0.5, 0.4], [0.9, 0.4]]), truth, "labels").tolist() == [True, False]


def test_sums__have_all_metrics_of_the_target() -> None:
    targets: tuple[Target, ...] = ("class", "labels", "number")
    for target in targets:
        one, _, truth = models(target)
        made = sums.of(one, truth, target, 5)
        assert tuple(made.formulas(made.total()[:, None])[0]) == METRICS[target]
