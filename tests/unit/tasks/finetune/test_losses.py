import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, r2_score

from tasks.finetune.losses import loss, score, standard, targets, weights

# Targets


def test_targets__of_classes_are_distributions() -> None:
    found = targets(np.array([2, 0]), 3, "class")
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_targets__smoothing_spreads_a_part_over_all_classes() -> None:
    found = targets(np.array([1]), 4, "class", smoothing=0.2)
    # .2 / 4 each, and .8 more for the label.
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))


def test_targets__of_labels_are_as_they_are() -> None:
    y = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.float32)
    assert targets(y, 3, "labels", smoothing=0.2).tolist() == y.tolist()


def test_targets__of_numbers_are_standardised() -> None:
    y = np.array([2.0, 4.0, 6.0, 8.0])
    mean, deviation = standard(y)
    assert mean == 5
    assert deviation == pytest.approx(math.sqrt(5))  # of 9 + 1 + 1 + 9 over 4
    found = targets(y, 1, "number", standard=(mean, deviation))
    assert (found.shape, found.dtype) == ((4, 1), torch.float32)
    torch.testing.assert_close(found[:, 0] * math.sqrt(5) + 5, torch.tensor([2.0, 4.0, 6.0, 8.0]))


def test_standard__of_equal_numbers_divides_by_one() -> None:
    assert standard(np.array([3.0, 3.0])) == (3, 1)


# Losses


def test_loss__of_a_class_is_the_cross_entropy_against_a_distribution() -> None:
    logits = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]] * 2) + 5
    y = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    found = loss(logits, y, "class")
    wanted = [-math.log(0.2), -(math.log(0.7) / 2 + math.log(0.2) / 4 + math.log(0.1) / 4)]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_loss__of_labels_is_summed_over_them() -> None:
    logits = torch.tensor([[math.log(3), -math.log(4)]])  # probabilities 3/4 and 1/5
    found = loss(logits, torch.tensor([[1.0, 0.0]]), "labels")
    torch.testing.assert_close(found, torch.tensor([-math.log(0.75) - math.log(0.8)]))


def test_loss__of_a_number_is_the_squared_error() -> None:
    found = loss(torch.tensor([[3.0], [0.0]]), torch.tensor([[5.0], [4.0]]), "number")
    assert found.tolist() == [(3 - 5) ** 2, (0 - 4) ** 2]


def test_loss__of_half_precision_is_computed_in_float32() -> None:
    logits = torch.tensor([[2.0, -2.0]], dtype=torch.bfloat16)
    found = loss(logits, torch.tensor([[1.0, 0.0]]), "class")
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(math.log1p(math.exp(-4)), rel=1e-5)  # of bfloat16 1e-2


def test_loss__of_far_logits_is_finite() -> None:
    logits, y = torch.tensor([[1000.0, -1000.0]]), torch.tensor([[0.0, 1.0]])
    assert float(loss(logits, y, "class")) == 2000
    assert float(loss(logits, y, "labels")) == 2000


# Scores


def test_score__of_classes_is_the_mean_recall_of_those_that_occur() -> None:
    y = np.array([0, 0, 0, 0, 1, 3])
    outputs = np.eye(4)[[0, 0, 0, 2, 1, 1]]
    # Recalls 3/4, 1, 0; class 2 does not occur.
    assert score(outputs, y, "class") == pytest.approx((0.75 + 1 + 0) / 3)
    with pytest.warns(UserWarning, match="classes not in y_true"):
        assert score(outputs, y, "class") == pytest.approx(balanced_accuracy_score(y, outputs.argmax(1)))


def test_score__of_labels_is_the_mean_average_precision() -> None:
    outputs = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5], [0.6, 0.4, 0.5]])
    y = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    # Label 0: found at ranks 1 and 3, precisions 1 and 2/3. Label 1 never occurs. Label 2: all at once,
    # a precision of 1/4.
    assert score(outputs, y, "labels") == pytest.approx(((1 + 2 / 3) / 2 + 1 / 4) / 2)


def test_score__of_labels_with_ties_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    y = random.random((200, 5)) < 0.3
    outputs = np.round(y + random.normal(0, 1, y.shape), 0)
    assert score(outputs, y, "labels") == pytest.approx(average_precision_score(y, outputs, average="macro"))


def test_score__of_numbers_is_r2() -> None:
    y = np.array([1.0, 2.0, 3.0, 6.0])
    outputs = np.array([[1.0], [2.0], [4.0], [5.0]])
    # Errors 0, 0, 1, 1; distances from the mean of 3: 4, 1, 0, 9.
    assert score(outputs, y, "number") == pytest.approx(1 - 2 / 14)
    assert score(outputs, y, "number") == pytest.approx(r2_score(y, outputs))


def test_score__of_what_cannot_be_judged_is_nan() -> None:
    good = np.array([[0.1, 0.9]])
    assert math.isnan(score(np.array([[float("nan"), 1.0]]), np.array([1]), "class"))
    assert math.isnan(score(np.array([[float("inf"), 1.0]]), np.array([[1, 0]]), "labels"))
    assert math.isnan(score(good, np.array([[0, 0]]), "labels"))
    assert math.isnan(score(good[:, :1], np.array([2.0]), "number"))
    assert math.isnan(score(good[:0], np.array([], dtype=np.int64), "class"))


# Rare classes

UNEVEN = np.array([0, 0, 0, 2, 0, 2])  # four of class 0, none of class 1, two of class 2


def test_weights__in_the_loss_are_the_inverse_frequency_with_mean_one() -> None:
    found, drawn = weights(UNEVEN, "loss")
    # 6 / (2 classes · 4) and 6 / (2 · 2).
    assert found.tolist() == [0.75, 0.75, 0.75, 1.5, 0.75, 1.5]
    assert found.dtype == torch.float32
    assert drawn is None


def test_weights__of_sampling_make_each_class_as_likely() -> None:
    found, drawn = weights(UNEVEN, "sampling")
    assert found.tolist() == [1.0] * 6
    assert drawn is not None
    assert drawn[UNEVEN == 0].sum() == drawn[UNEVEN == 2].sum()


@pytest.mark.parametrize("y", [np.array([[1, 0], [1, 1]], dtype=np.float32), np.array([1.0, 2.0])])
def test_weights__of_labels_and_numbers_are_one(y: np.ndarray) -> None:
    for balance in ("none", "loss", "sampling"):
        found, drawn = weights(y, balance)
        assert (found.tolist(), drawn) == ([1, 1], None)
    assert weights(UNEVEN, "none")[0].tolist() == [1.0] * 6
