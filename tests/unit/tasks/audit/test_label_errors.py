import numpy as np
import pytest

from tasks.audit.label_errors import of_classes, of_labels, of_numbers


def test_of_classes__flags_rows_five_times_likelier_another_class() -> None:
    # 8 sure rows of each class, and two that are labelled a: one surely b, one undecided.
    p = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 8 + [[0.05, 0.95], [0.4, 0.6]])
    labels = np.array([0] * 8 + [1] * 8 + [0, 0])
    found = of_classes(p, labels, ("a", "b"))
    assert found.rows.tolist() == [16]
    assert found.suggested == ("b",)
    assert found.reasons == ("labelled a (0.05), looks like b (0.95)",)
    # Thresholds: a (8 * .9 + .05 + .4) / 10 = .765, b .9.
    assert found.score[0] == pytest.approx(1 - (0.05 / 0.765) / (0.95 / 0.9))
    assert found.rate == pytest.approx(1 / 18)


def test_of_classes__counts_in_units_of_what_a_class_usually_reaches() -> None:
    # Of c the head is never sure: .4 for c is as much as .9 for the others.
    p = np.array([[0.9, 0.1, 0.0]] * 8 + [[0.6, 0.0, 0.4]] * 8 + [[0.1, 0.5, 0.4]])
    labels = np.array([0] * 8 + [2] * 8 + [0])
    found = of_classes(p, labels, ("a", "b", "c"))
    assert found.rows.tolist() == [16]
    assert found.suggested == ("c",)


def test_of_classes__flips_of_separable_classes_are_found() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    labels = truth.copy()
    labels[:15] = (truth[:15] + 1) % 3
    p = np.where(np.arange(3) == truth[:, None], 0.9, 0.05)
    found = of_classes(p, labels, "abc")
    assert sorted(found.rows.tolist()) == list(range(15))
    assert found.suggested == tuple("abc"[truth[row]] for row in found.rows)


def test_of_labels__each_label_is_judged_by_itself() -> None:
    truth = np.array([[True, False]] * 10 + [[False, True]] * 10)
    p = np.where(truth, 0.9, 0.1)
    p[3] = [0.9, 0.95]  # lacks the second label
    p[15] = [0.1, 0.02]  # should not have it
    found = of_labels(p, truth, ("rust", "dent"))
    assert dict(zip(found.rows.tolist(), found.suggested, strict=True)) == {3: "rust|dent", 15: ""}
    assert dict(zip(found.rows.tolist(), found.reasons, strict=True)) == {
        3: "lacks dent (probability 0.95)",
        15: "has dent (probability 0.02)",
    }
    assert found.rate == pytest.approx(2 / 20)  # rows


def test_of_labels__rate_is_of_rows_however_many_labels_there_are() -> None:
    truth = np.tile(np.eye(10, 50, dtype=np.bool_), (2, 1))  # 20 rows, of 50 labels each
    p = np.where(truth, 0.9, 0.1)
    p[:6, 49] = 0.99  # lack the last one
    assert of_labels(p, truth, [str(name) for name in range(50)]).rate == pytest.approx(6 / 20)


def test_of_numbers__flags_residuals_far_from_the_rest() -> None:
    values = np.arange(21.0)
    predicted = values + np.tile([1.0, -1.0, 0.0], 7)
    predicted[4] = values[4] + 20
    found = of_numbers(predicted, values, 5.0)
    # Residuals -1, 0, 1: their median is 0, the median absolute deviation 1.
    assert found.rows.tolist() == [4]
    assert found.score[0] == pytest.approx(20 / 1.4826)
    assert found.suggested == ("24",)
    assert found.rate is None


def test_of_numbers__a_perfect_head_flags_nothing() -> None:
    assert of_numbers(np.arange(5.0), np.arange(5.0), 5.0).rows.tolist() == []
